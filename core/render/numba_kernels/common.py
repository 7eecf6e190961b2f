"""What all kernels of the rasteriser share: how they compile, tiles, records of Gaussians and queues of work."""

# The type checker does not know that numba's intrinsics drop their first parameter.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ..numba_support import cache_folder
from .vectors import LANES, address

inner = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)  # compiled into the calls that use it
entry = njit(cache=cache_folder() is not None, nogil=True)  # called from Python

EPS2D = 0.3
ALPHA_MAX = 0.999
TRANSMITTANCE_MIN = 1e-4
COLUMNS, PAIRS = 8, 16  # a tile is 8 pixels wide and 16 pairs of rows high
AREA = LANES * PAIRS  # pixels of a tile; a tile's planes lie one after the other in one flat buffer
# A record of a projected Gaussian, 16 float32: what the tiles read of it. With dx, dy
# the offset from the centre, the exponent sigma = 8 t and t = (KW dx)^2 + (KU dy + KX dx)^2: no cancellation for needles.
MX, MY, KW, KU, KX, OPACITY, RED, GREEN, BLUE, DEPTH, TMAX, EX, EY, XTOP, SLOPE, ROOT = range(16)
CHUNK = 256  # Gaussians per unit of work
AHEAD = 4  # list entries that records are asked for in advance
PATIENCE = 20000  # looks at a counter, some microseconds, before a thread lets others run

_lane = np.arange(LANES)
#: Pixel centres of a vector's lanes within the tile's first two rows.
LANE_X = (_lane % COLUMNS + 0.5).astype(np.float32)
LANE_Y = (_lane // COLUMNS + 0.5).astype(np.float32)


@intrinsic
def take(typingctx, counters, at):
    """A number of a flat int64 array that threads share, before it is increased by one."""

    def codegen(context, builder, sig, args):
        pointer = address(context, builder, sig, args, ir.IntType(64))
        return builder.atomic_rmw("add", pointer, ir.IntType(64)(1), "acq_rel")

    return types.int64(counters, types.intp), codegen


@intrinsic
def peek(typingctx, counters, at):
    """A number of a flat int64 array that threads share."""

    def codegen(context, builder, sig, args):
        return builder.load_atomic(address(context, builder, sig, args, ir.IntType(64)), "acquire", 8)

    return types.int64(counters, types.intp), codegen


@inner
def completed(queue, units):
    """Whether all units of a queue are done, after a little patience."""
    looks = 0
    while peek(queue, 1) < units and looks < PATIENCE:
        looks += 1
    return looks < PATIENCE


@inner
def row(array, item):
    """The item's part of an attribute that has one for each item or one for all."""
    return array[min(item, len(array) - 1)]
