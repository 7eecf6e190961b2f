"""The numba kernels of the rasteriser. Everything is in this one file because numba's cache watches the file of a kernel only.

How it is fast. A tile is 8 pixels wide and 32 high, and two of its rows are one vector of 16 lanes, so that a lane's column is
the same in every vector: along a column the exponent is a quadratic in y, two operations a vector, and the backward pass
needs only the sums of h, h u and h u^2 of each lane, weighted by functions of dx once a Gaussian. A Gaussian visits exactly
the row pairs of a tile that its ellipse alpha >= 1/255 touches. The backward pass walks front to back like the forward pass:
with R the gradient's dot product with what is still to be composited, dL/dalpha = T v - R / (1 - alpha), so no per-pixel
history is kept. Gradients go to one slot of 16 numbers for each (Gaussian, tile) and are added up in a fixed order: no atomic
additions, the same bits every time.
"""

# The type checker does not know that numba's intrinsics drop their first parameter.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math
import operator

import numpy as np
from llvmlite import ir
from numba import njit, prange, types, uintp
from numba.core import cgutils
from numba.core.errors import RequireLiteralValue
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

NEAR = 0.01
EPS2D = 0.3
ALPHA_MAX = 0.999
ALPHA_MIN = 1 / 255
TRANSMITTANCE_MIN = 1e-4
MAX_VARIANCE = 1e15
COLUMNS, PAIRS = 8, 16  # a tile is 8 pixels wide and 16 pairs of rows high
LANES = 16
# A record of a projected Gaussian, 16 float32: what the tiles read of it. With dx, dy
# the offset from the centre, the exponent sigma = 8 t and t = (KW dx)^2 + (KU dy + KX dx)^2: no cancellation for needles.
MX, MY, KW, KU, KX, OPACITY, RED, GREEN, BLUE, DEPTH, TMAX, EX, EY, XTOP, SLOPE, ROOT = range(16)
CHUNK = 256  # Gaussians per unit of work
AHEAD = 4  # list entries that records are asked for in advance
GROUP = 1 << 15  # Gaussians that a worker's cache holds


# ---- vectors of 16 float32, which LLVM maps to what the machine has ----------------------------------------------------------


class _Vector(types.Type):
    def __init__(self, name: str) -> None:
        super().__init__(name)


lanes = _Vector("lanes16f")
mask = _Vector("lanes16b")
_F32 = ir.FloatType()
_VECTOR = ir.VectorType(_F32, LANES)
_I32 = ir.IntType(32)


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind) -> None:
        super().__init__(manager, kind, _VECTOR if kind.name == "lanes16f" else ir.VectorType(ir.IntType(1), LANES))


def _operator(function, cases, build):
    infer_global(function)(type(function.__name__, (ConcreteTemplate,), {"cases": cases}))  # pyright: ignore
    for case in cases:
        lower_builtin(function, *case.args)(lambda context, builder, sig, args: build(builder, *args))


_binary = [signature(lanes, lanes, lanes)]
_compare = [signature(mask, lanes, lanes)]
_operator(operator.add, _binary, lambda b, x, y: b.fadd(x, y, flags=("contract",)))
_operator(operator.sub, _binary, lambda b, x, y: b.fsub(x, y, flags=("contract",)))
_operator(operator.mul, _binary, lambda b, x, y: b.fmul(x, y, flags=("contract",)))
_operator(operator.truediv, _binary, lambda b, x, y: b.fdiv(x, y))
_operator(operator.gt, _compare, lambda b, x, y: b.fcmp_ordered(">", x, y))
_operator(operator.le, _compare, lambda b, x, y: b.fcmp_ordered("<=", x, y))
_operator(operator.and_, [signature(mask, mask, mask)], lambda b, x, y: b.and_(x, y))


def _shuffle(builder, x, y, order):
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(_I32, len(order)), list(order)))


@intrinsic
def splat(typingctx, x):
    """A number in all lanes."""

    def codegen(context, builder, sig, args):
        value = context.cast(builder, args[0], sig.args[0], types.float32)
        one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, _I32(0))
        return _shuffle(builder, one, one, [0] * LANES)

    return lanes(x), codegen


def _address(context, builder, sig, args, kind):
    array = context.make_array(sig.args[0])(context, builder, args[0])
    return builder.bitcast(builder.gep(array.data, [args[1]]), kind.as_pointer())


@intrinsic
def load(typingctx, array, start):
    """16 numbers of a flat float32 array, unchecked."""

    def codegen(context, builder, sig, args):
        return builder.load(_address(context, builder, sig, args, _VECTOR), align=4)

    return lanes(array, types.uintp), codegen


@intrinsic
def store(typingctx, array, start, x):
    """16 numbers into a flat float32 array, unchecked."""

    def codegen(context, builder, sig, args):
        builder.store(args[2], _address(context, builder, sig, args, _VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(array, types.uintp, lanes), codegen


@intrinsic
def select(typingctx, condition, x, y):
    """x where the mask holds, else y."""

    def codegen(context, builder, sig, args):
        return builder.select(*args)

    return lanes(mask, lanes, lanes), codegen


@intrinsic
def some(typingctx, condition):
    """Whether a mask holds in any lane."""

    def codegen(context, builder, sig, args):
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.IntType(LANES)(0))

    return types.boolean(mask), codegen


@intrinsic
def root(typingctx, x):
    """Square roots."""

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(_VECTOR, [_VECTOR])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.sqrt.v{LANES}f32"), args)

    return lanes(lanes), codegen


@intrinsic
def minus_abs(typingctx, x):
    """-|x|."""

    def codegen(context, builder, sig, args):
        kind = ir.VectorType(_I32, LANES)
        bits = builder.bitcast(args[0], kind)
        return builder.bitcast(builder.or_(bits, ir.Constant(kind, [0x80000000] * LANES)), _VECTOR)

    return lanes(lanes), codegen


@intrinsic
def fold(typingctx, x, y, half):
    """One step of a transposing reduction: lanes of x added in pairs ``half`` apart, then those of y, interleaved by blocks."""
    if not isinstance(half, types.IntegerLiteral):
        raise RequireLiteralValue("half")
    step = half.literal_value

    def codegen(context, builder, sig, args):
        low = [i + (LANES if i & step else 0) - (step if i & step else 0) for i in range(LANES)]
        high = [i + (LANES if i & step else 0) + (0 if i & step else step) for i in range(LANES)]
        return builder.fadd(_shuffle(builder, args[0], args[1], low), _shuffle(builder, args[0], args[1], high))

    return lanes(lanes, lanes, half), codegen


@intrinsic
def prefetch(typingctx, array, start):
    """Asks for the cache line of a flat float32 array's element."""

    def codegen(context, builder, sig, args):
        pointer = _address(context, builder, sig, args, ir.IntType(8))
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [pointer, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(array, types.uintp), codegen


@intrinsic
def take(typingctx, counter):
    """The next number of a counter (an int64 array of one) that threads share."""

    def codegen(context, builder, sig, args):
        array = context.make_array(sig.args[0])(context, builder, args[0])
        return builder.atomic_rmw("add", array.data, ir.IntType(64)(1), "monotonic")

    return types.int64(counter), codegen


# ---- geometry ----------------------------------------------------------------------------------------------------------------

_lane = np.arange(LANES)
LANE_X = (_lane % COLUMNS + 0.5).astype(np.float32)
LANE_Y = (_lane // COLUMNS + 0.5).astype(np.float32)
_P0, _P1, _P2 = np.float32(0.9999999315344229), np.float32(-0.9999913493878236), np.float32(0.49986970907913036)
_P3, _P4, _P5 = np.float32(-0.16592801676753474), np.float32(0.039704766170988254), np.float32(-0.005811119279843886)
_ALPHA_MAX, _TRANSMITTANCE_MIN = np.float32(ALPHA_MAX), np.float32(TRANSMITTANCE_MIN)
_NEAR, _EPS2D, _TINY, _BIG = np.float32(NEAR), np.float32(EPS2D), np.float32(1e-12), np.float32(1e38)
_MAX_VARIANCE = np.float32(MAX_VARIANCE)
_SLACK = 0.01  # pixels: rounding of the row spans


@njit(inline="always")
def _exp8(t):
    """exp(-8 t) for t in [0, 0.7], relative error 5e-7: a minimax polynomial to the eighth power."""
    e = splat(_P0) + t * (splat(_P1) + t * (splat(_P2) + t * (splat(_P3) + t * (splat(_P4) + t * splat(_P5)))))
    e = e * e
    e = e * e
    return e * e


@njit(inline="always")
def _geometry(means, quats, scales, stride, g, camera):
    """Projection of 16 Gaussians from ``g`` on, and what its derivative needs.

    Args:
        means, quats, scales: planes (3 or 4, stride) of the item's Gaussians.
        camera: three rows of world-to-camera, fx, fy, cx, cy, and the limits of x/z and y/z in the Jacobian.
    """
    one, two = splat(np.float32(1)), splat(np.float32(2))
    r00, r01, r02, r03 = splat(camera[0]), splat(camera[1]), splat(camera[2]), splat(camera[3])
    r10, r11, r12, r13 = splat(camera[4]), splat(camera[5]), splat(camera[6]), splat(camera[7])
    r20, r21, r22, r23 = splat(camera[8]), splat(camera[9]), splat(camera[10]), splat(camera[11])
    X, Y, Z = load(means, g), load(means, g + stride), load(means, g + uintp(2) * stride)
    x = r00 * X + r01 * Y + r02 * Z + r03
    y = r10 * X + r11 * Y + r12 * Z + r13
    z = r20 * X + r21 * Y + r22 * Z + r23
    near = splat(_NEAR) <= z
    z = select(near, z, one)
    inverse = one / z
    qw, qx = load(quats, g), load(quats, g + stride)
    qy, qz = load(quats, g + uintp(2) * stride), load(quats, g + uintp(3) * stride)
    norm = root(qw * qw + qx * qx + qy * qy + qz * qz)
    norm = one / select(norm > splat(_TINY), norm, splat(_TINY))
    qw, qx, qy, qz = qw * norm, qx * norm, qy * norm, qz * norm
    s0, s1, s2 = load(scales, g), load(scales, g + stride), load(scales, g + uintp(2) * stride)
    # Rotation times scales: the standard deviations along the Gaussian's axes.
    m00, m01, m02 = (one - two * (qy * qy + qz * qz)) * s0, two * (qx * qy - qw * qz) * s1, two * (qx * qz + qw * qy) * s2
    m10, m11, m12 = two * (qx * qy + qw * qz) * s0, (one - two * (qx * qx + qz * qz)) * s1, two * (qy * qz - qw * qx) * s2
    m20, m21, m22 = two * (qx * qz - qw * qy) * s0, two * (qy * qz + qw * qx) * s1, (one - two * (qx * qx + qy * qy)) * s2
    u, v = x * inverse, y * inverse
    uc = select(u > splat(camera[17]), splat(camera[17]), select(u > splat(camera[16]), u, splat(camera[16])))
    vc = select(v > splat(camera[19]), splat(camera[19]), select(v > splat(camera[18]), v, splat(camera[18])))
    jx, jy = splat(camera[12]) * inverse, splat(camera[13]) * inverse
    # Rows of Jacobian times world-to-camera, then of that times rotation times scales, in pixels.
    p0, p1, p2 = jx * (r00 - uc * r20), jx * (r01 - uc * r21), jx * (r02 - uc * r22)
    q0, q1, q2 = jy * (r10 - vc * r20), jy * (r11 - vc * r21), jy * (r12 - vc * r22)
    t0, t1, t2 = p0 * m00 + p1 * m10 + p2 * m20, p0 * m01 + p1 * m11 + p2 * m21, p0 * m02 + p1 * m12 + p2 * m22
    w0, w1, w2 = q0 * m00 + q1 * m10 + q2 * m20, q0 * m01 + q1 * m11 + q2 * m21, q0 * m02 + q1 * m12 + q2 * m22
    eps = splat(_EPS2D)
    a, b, c = t0 * t0 + t1 * t1 + t2 * t2, t0 * w0 + t1 * w1 + t2 * w2, w0 * w0 + w1 * w1 + w2 * w2
    # The determinant of (t, w) (t, w)^T + eps without the cancellation of a c - b^2.
    k0, k1, k2 = t1 * w2 - t2 * w1, t2 * w0 - t0 * w2, t0 * w1 - t1 * w0
    determinant = k0 * k0 + k1 * k1 + k2 * k2 + eps * (a + c + eps)
    a, c = a + eps, c + eps
    return (
        (x, y, z, near, inverse),
        (u, v, uc, vc),
        (qw, qx, qy, qz, norm),
        (s0, s1, s2),
        (m00, m01, m02, m10, m11, m12, m20, m21, m22),
        (p0, p1, p2, q0, q1, q2),
        (t0, t1, t2, w0, w1, w2),
        (k0, k1, k2),
        (a, b, c, determinant),
    )


@njit(cache=True)
def _project(means, quats, scales, opacity, reach, stride, g, camera, width, height, out):
    """Project 16 Gaussians into the planes of ``out``, in the order of a record; RED holds 1 where one may be seen, else 0.

    Returns False where a Gaussian is not finite. One whose covariance overflows is not drawn.
    """
    local, angles, q, s, _, _, _, _, covariance = _geometry(means, quats, scales, stride, g, camera)
    x, y, z, near, _ = local
    u, v, _, _ = angles
    a, b, c, determinant = covariance
    zero, one, big = splat(np.float32(0)), splat(np.float32(1)), splat(_BIG)
    room = load(reach, g)
    check = x + y + z + s[0] + s[1] + s[2] + room
    check = check + q[0] + q[1] + q[2] + q[3]
    finite = (check <= big) & (zero - big <= check)
    ex, ey = root(room * a), root(room * c)
    mx, my = splat(camera[12]) * u + splat(camera[14]), splat(camera[13]) * v + splat(camera[15])
    seen = near & finite & (zero <= room) & (a <= splat(_MAX_VARIANCE)) & (c <= splat(_MAX_VARIANCE))
    seen = seen & (mx + ex > zero) & (splat(np.float32(width)) > mx - ex)
    seen = seen & (my + ey > zero) & (splat(np.float32(height)) > my - ey)
    slope, ku = b / a, root(a / determinant) * splat(np.float32(0.25))
    n = uintp(LANES)
    store(out, uintp(MX) * n, mx)
    store(out, uintp(MY) * n, my)
    store(out, uintp(KW) * n, splat(np.float32(0.25)) / root(a))
    store(out, uintp(KU) * n, ku)
    store(out, uintp(KX) * n, zero - ku * slope)
    store(out, uintp(OPACITY) * n, load(opacity, g))
    store(out, uintp(RED) * n, select(seen, one, zero))
    store(out, uintp(DEPTH) * n, z)
    store(out, uintp(TMAX) * n, room * splat(np.float32(1 / 16)))
    store(out, uintp(EX) * n, ex)
    store(out, uintp(EY) * n, ey)
    store(out, uintp(XTOP) * n, b / c * ey)
    store(out, uintp(SLOPE) * n, slope)
    store(out, uintp(ROOT) * n, root(determinant) / a)
    return not some(select(finite, zero, one) > zero)


@njit(inline="always")
def _column_range(record, r, width):
    """First and one past the last tile column whose pixel centres the Gaussian may touch."""
    mx, ex = float(record[r + MX]), float(record[r + EX]) + _SLACK
    first = max(math.ceil(mx - ex - 0.5), 0.0)
    last = min(math.floor(mx + ex - 0.5), width - 1.0)
    if first > last:
        return 0, 0
    return int(first) // COLUMNS, int(last) // COLUMNS + 1


@njit(inline="always")
def _pair_range(record, r, column, height):
    """First and one past the last pair of picture rows that the ellipse touches within a tile column."""
    mx, my, ex = float(record[r + MX]), float(record[r + MY]), float(record[r + EX])
    low = min(max(column * COLUMNS + 0.5 - mx, -ex), ex)
    high = max(min(column * COLUMNS + COLUMNS - 0.5 - mx, ex), -ex)
    slope, root, top = float(record[r + SLOPE]), float(record[r + ROOT]), float(record[r + XTOP])
    x = min(max(-top, low), high)
    first = max(math.ceil(my + slope * x - root * math.sqrt(max(ex * ex - x * x, 0.0)) - (0.5 + _SLACK)), 0.0)
    x = min(max(top, low), high)
    last = min(math.floor(my + slope * x + root * math.sqrt(max(ex * ex - x * x, 0.0)) - (0.5 - _SLACK)), height - 1.0)
    if first > last:
        return 0, 0
    return int(first) // 2, int(last) // 2 + 1


@njit(inline="always")
def _row_range(record, r, height):
    """First and one past the last tile row that the Gaussian may touch."""
    my, ey = float(record[r + MY]), float(record[r + EY]) + _SLACK
    first = max(math.ceil(my - ey - 0.5), 0.0)
    last = min(math.floor(my + ey - 0.5), height - 1.0)
    if first > last:
        return 0, 0
    return int(first) // (2 * PAIRS), int(last) // (2 * PAIRS) + 1


@njit(cache=True)
def _bound_tiles(record, r, width, height):
    """Number of tiles that the bounding box of a Gaussian touches."""
    first, last = _column_range(record, r, width)
    top, bottom = _row_range(record, r, height)
    return (last - first) * (bottom - top)


@njit(cache=True)
def _emit_tiles(record, r, width, height, slot, tile_of, span_of):
    """Writes the tile and the span of row pairs, first | last << 8, of each intersection of one Gaussian, from ``slot`` on.

    Returns one past the last slot written, at most _bound_tiles later.
    """
    columns = (width + COLUMNS - 1) // COLUMNS
    first, last = _column_range(record, r, width)
    top, bottom = _row_range(record, r, height)
    for column in range(first, last):
        low, high = _pair_range(record, r, column, height)
        if low < high:
            for row in range(max(low // PAIRS, top), min((high - 1) // PAIRS + 1, bottom)):
                tile_of[slot] = row * columns + column
                span_of[slot] = max(low - row * PAIRS, 0) | min(high - row * PAIRS, PAIRS) << 8
                slot += 1
    return slot


@njit(cache=True)
def _sort_view(depth_bits, first, base, stop, tile_of, span_of, tile_start, members, slots, spans):
    """Fill the tile lists of one view, nearest first.

    Args:
        depth_bits: records as uint32, flat; the order of positive floats is that of their bits.
        first: first Gaussian of the view, of base's.
        base, stop: first and one past the last intersection of each Gaussian, (N,).
        tile_of, span_of: tile and row pairs of each intersection.
        tile_start: first list entry of each tile of the view, one past the last at the end, (tiles + 1,); filled.
        members, slots, spans: Gaussian, intersection and row pairs of each list entry; filled.
    """
    count = len(base)
    key, index = np.empty(count, np.uint32), np.empty(count, np.int32)
    key2, index2 = np.empty(count, np.uint32), np.empty(count, np.int32)
    histogram = np.zeros((3, 2048), np.int32)
    n = 0
    for g in range(count):
        if stop[g] > base[g]:
            bits = depth_bits[(first + g) * LANES + DEPTH]
            key[n], index[n] = bits, g
            n += 1
            histogram[0, bits & 2047] += 1
            histogram[1, (bits >> 11) & 2047] += 1
            histogram[2, bits >> 22] += 1
    for digit in range(3):
        shift = np.uint32(11 * digit)
        total = 0
        for value in range(2048):
            here = histogram[digit, value]
            histogram[digit, value] = total
            total += here
        for i in range(n):
            value = (key[i] >> shift) & np.uint32(2047)
            place = histogram[digit, value]
            histogram[digit, value] = place + 1
            key2[place], index2[place] = key[i], index[i]
        key, key2, index, index2 = key2, key, index2, index

    tiles = len(tile_start) - 1
    tile_start[:] = 0
    for g in range(count):
        for e in range(base[g], stop[g]):
            tile_start[tile_of[e] + 1] += 1
    tile_start[0] = base[0]
    for tile in range(tiles):
        tile_start[tile + 1] += tile_start[tile]
    cursor = tile_start[:tiles].copy()
    for i in range(n):
        g = index[i]
        for e in range(base[g], stop[g]):
            place = cursor[tile_of[e]]
            cursor[tile_of[e]] = place + 1
            members[place] = first + g
            slots[place] = e
            spans[place] = span_of[e]


# ---- tiles -------------------------------------------------------------------------------------------------------------------

_AREA = LANES * PAIRS  # pixels of a tile; a tile's planes lie one after the other in one flat buffer


@njit(inline="always")
def _start_tile(buffer, x0, y0, width, height):
    """Transmittance 1 inside the picture, -1 (finished) outside."""
    for k in range(_AREA):
        inside = x0 + k % COLUMNS < width and y0 + k // COLUMNS < height
        buffer[k] = np.float32(1.0) if inside else np.float32(-1.0)


@njit(inline="always")
def _finished(buffer):
    zero = splat(np.float32(0))
    most = load(buffer, uintp(0))
    for pair in range(uintp(1), uintp(PAIRS)):
        through = load(buffer, pair * uintp(LANES))
        most = select(through > most, through, most)
    return not some(most > zero)


@njit(cache=True)
def _forward_tile(record, members, spans, begin, end, x0, y0, lane_x, lane_y, buffer):
    """Composite a tile's list into buffer planes: transmittance (negative once finished), red, green, blue, depth.

    Returns one past the last list entry that was needed.
    """
    zero, alpha_max, stop = splat(np.float32(0)), splat(_ALPHA_MAX), splat(_TRANSMITTANCE_MIN)
    columns, rows = load(lane_x, uintp(0)), load(lane_y, uintp(0))
    area = uintp(_AREA)
    for i in range(begin, end):
        ahead = uintp(min(i + AHEAD, end - 1))
        prefetch(record, uintp(members[ahead]) * uintp(LANES))
        r = uintp(members[uintp(i)]) * uintp(LANES)
        span = uintp(spans[uintp(i)])
        dx = columns + splat(np.float32(x0) - record[r + uintp(MX)])
        w = splat(record[r + uintp(KW)]) * dx
        ww = w * w
        ku, tmax, opacity = record[r + uintp(KU)], splat(record[r + uintp(TMAX)]), splat(record[r + uintp(OPACITY)])
        red, green, blue = splat(record[r + uintp(RED)]), splat(record[r + uintp(GREEN)]), splat(record[r + uintp(BLUE)])
        depth = splat(record[r + uintp(DEPTH)])
        first = span & uintp(255)
        dy = rows + splat(np.float32(y0) + np.float32(uintp(2) * first) - record[r + uintp(MY)])
        u = splat(ku) * dy + splat(record[r + uintp(KX)]) * dx
        step = splat(np.float32(2) * ku)
        u = u - step
        for pair in range(first, span >> uintp(8)):
            k = pair * uintp(LANES)
            u = u + step
            t = ww + u * u
            through = load(buffer, k)
            seen = (t <= tmax) & (through > zero)
            if some(seen):
                alpha = opacity * _exp8(t)
                alpha = select(seen, select(alpha > alpha_max, alpha_max, alpha), zero)
                weight = alpha * through
                behind = through - weight
                going = behind > stop
                store(buffer, k, select(going, behind, minus_abs(through)))
                weight = select(going, weight, zero)
                store(buffer, k + area, load(buffer, k + area) + weight * red)
                store(buffer, k + uintp(2) * area, load(buffer, k + uintp(2) * area) + weight * green)
                store(buffer, k + uintp(3) * area, load(buffer, k + uintp(3) * area) + weight * blue)
                store(buffer, k + uintp(4) * area, load(buffer, k + uintp(4) * area) + weight * depth)
        if i & 15 == 15 and _finished(buffer):
            return i + 1
    return end


@njit(cache=True)
def _backward_tile(record, members, slots, spans, begin, end, x0, y0, lane_x, lane_y, buffer, origin, partial):
    """Gradients of a tile's list, one slot of 16 numbers each, intersection ``origin`` first.

    Buffer planes: transmittance, R (module docstring), then the loss gradients by red, green, blue, depth and alpha. A slot
    has, with h = alpha dL/dalpha, u = KU dy + KX dx and w = KW dx, summed over the tile's pixels: h, h w, h w^2, h u, h w u,
    h u^2, red, green, blue, depth.
    """
    zero, alpha_max, stop = splat(np.float32(0)), splat(_ALPHA_MAX), splat(_TRANSMITTANCE_MIN)
    one = splat(np.float32(1))
    columns, rows = load(lane_x, uintp(0)), load(lane_y, uintp(0))
    area = uintp(_AREA)
    for i in range(begin, end):
        ahead = uintp(min(i + AHEAD, end - 1))
        prefetch(record, uintp(members[ahead]) * uintp(LANES))
        r = uintp(members[uintp(i)]) * uintp(LANES)
        slot = uintp(slots[uintp(i)] - origin)
        prefetch(partial, uintp(slots[ahead] - origin) * uintp(LANES))
        span = uintp(spans[uintp(i)])
        dx = columns + splat(np.float32(x0) - record[r + uintp(MX)])
        w = splat(record[r + uintp(KW)]) * dx
        ww = w * w
        ku, tmax, opacity = record[r + uintp(KU)], splat(record[r + uintp(TMAX)]), splat(record[r + uintp(OPACITY)])
        red, green, blue = splat(record[r + uintp(RED)]), splat(record[r + uintp(GREEN)]), splat(record[r + uintp(BLUE)])
        depth = splat(record[r + uintp(DEPTH)])
        first = span & uintp(255)
        dy = rows + splat(np.float32(y0) + np.float32(uintp(2) * first) - record[r + uintp(MY)])
        u = splat(ku) * dy + splat(record[r + uintp(KX)]) * dx
        step = splat(np.float32(2) * ku)
        u = u - step
        sum_h, sum_u, sum_uu = zero, zero, zero
        sum_red, sum_green, sum_blue, sum_depth = zero, zero, zero, zero
        for pair in range(first, span >> uintp(8)):
            k = pair * uintp(LANES)
            u = u + step
            t = ww + u * u
            through = load(buffer, k)
            seen = (t <= tmax) & (through > zero)
            if some(seen):
                raw = opacity * _exp8(t)
                alpha = select(seen, select(raw > alpha_max, alpha_max, raw), zero)
                weight = alpha * through
                behind = through - weight
                going = behind > stop
                store(buffer, k, select(going, behind, minus_abs(through)))
                weight = select(going, weight, zero)
                g_red, g_green = load(buffer, k + uintp(2) * area), load(buffer, k + uintp(3) * area)
                g_blue, g_depth = load(buffer, k + uintp(4) * area), load(buffer, k + uintp(5) * area)
                value = load(buffer, k + uintp(6) * area) + g_red * red + g_green * green + g_blue * blue + g_depth * depth
                share = weight * value
                rest = load(buffer, k + area) - share
                store(buffer, k + area, rest)
                h = share - rest * alpha / (one - alpha)
                h = select(going & (raw <= alpha_max), h, zero)
                hu = h * u
                sum_h = sum_h + h
                sum_u = sum_u + hu
                sum_uu = sum_uu + hu * u
                sum_red = sum_red + weight * g_red
                sum_green = sum_green + weight * g_green
                sum_blue = sum_blue + weight * g_blue
                sum_depth = sum_depth + weight * g_depth
        sum_w = w * sum_h
        low = fold(fold(sum_h, sum_w, 1), fold(w * sum_w, sum_u, 1), 2)
        low = fold(low, fold(fold(w * sum_u, sum_uu, 1), fold(sum_red, sum_green, 1), 2), 4)
        high = fold(sum_blue, sum_depth, 1)
        high = fold(high, high, 2)
        store(partial, slot * uintp(LANES), fold(low, fold(high, high, 4), 8))


# ---- whole calls -------------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _grown(array, size):
    larger = np.empty(size, array.dtype)
    larger[: len(array)] = array
    return larger


@njit(parallel=True, cache=True, nogil=True)
def forward(means, quats, scales, opacity, reach, colors, cameras, items, width, height, radii, workers, lane_x, lane_y):
    """Draw V views of B items, V / B views each.

    Args:
        means, quats, scales: planes (B or 1, 3 or 4, P), float32, P >= N a multiple of 16.
        opacity, reach: (B or 1, P), reach = 2 ln(255 opacity), negative where there is no Gaussian.
        colors: (B or 1 or V, N, 3).
        cameras: (V, 20), see _geometry.
        radii: (V, N), filled, or (0, 0).
        lane_x, lane_y: LANE_X, LANE_Y.

    Returns a code (0 fine, 1 not finite, 2 too many intersections), the pictures (V, H, W, 3), (V, H, W), (V, H, W), and what
    the backward pass needs.
    """
    views, count, padded = len(cameras), colors.shape[1], means.shape[2]
    per_item = views // items
    chunks = (count + CHUNK - 1) // CHUNK
    across, down = (width + COLUMNS - 1) // COLUMNS, (height + 2 * PAIRS - 1) // (2 * PAIRS)
    tiles = across * down
    counter = np.zeros(1, np.int64)
    bad = np.zeros(1, np.int64)
    record = np.empty(views * count * LANES, np.float32)
    base = np.zeros(views * count + 1, np.int64)
    stop = np.empty(views * count, np.int64)
    color = np.empty((views, height, width, 3), np.float32)
    alpha = np.empty((views, height, width), np.float32)
    depth = np.empty((views, height, width), np.float32)
    needed = np.zeros(views * tiles, np.int64)
    tile_start = np.zeros((views, tiles + 1), np.int64)

    room = 0
    tile_of, span_of = np.empty(0, np.int32), np.empty(0, np.int32)
    members, slots, spans = np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int32)
    depth_bits = record.view(np.uint32)
    # Group by group of views, so that their records stay in the processor's cache.
    group = workers * max(1, GROUP // max(count, 1))
    for begin_view in range(0, views, group):
        end_view = min(begin_view + group, views)
        counter[0] = begin_view * chunks
        for _ in prange(workers):
            out = np.zeros(LANES * LANES, np.float32)
            while True:
                unit = take(counter)
                if unit >= end_view * chunks:
                    break
                view, chunk = unit // chunks, unit % chunks
                item = view // per_item
                i, j = min(item, len(means) - 1), min(item, len(quats) - 1)
                k, o = min(item, len(scales) - 1), min(item, len(reach) - 1)
                s = view if len(colors) == views else min(item, len(colors) - 1)
                for block in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, count), LANES):
                    if not _project(
                        means[i], quats[j], scales[k], opacity[o], reach[o], uintp(padded), uintp(block), cameras[view],
                        width, height, out,
                    ):  # fmt: skip
                        bad[0] = 1
                    for lane in range(min(LANES, count - block)):
                        seen = out[RED * LANES + lane] > 0
                        g = view * count + block + lane
                        if seen:
                            r = g * LANES
                            for field in range(LANES):
                                record[r + field] = out[field * LANES + lane]
                            for channel in range(3):
                                record[r + RED + channel] = colors[s, block + lane, channel]
                            if not math.isfinite(record[r + RED] + record[r + GREEN] + record[r + BLUE]):
                                bad[0] = 1
                            base[g + 1] = _bound_tiles(record, r, width, height)
                        if len(radii):
                            r = g * LANES
                            radii[view, block + lane] = math.ceil(max(record[r + EX], record[r + EY])) if seen else 0.0
        for g in range(begin_view * count, end_view * count):
            base[g + 1] += base[g]
        total = base[end_view * count]
        if total > 2**31 - 1:
            bad[0] = 2
        if bad[0]:
            break
        if total > room:
            room = total * views // end_view
            tile_of, span_of = _grown(tile_of, room), _grown(span_of, room)
            members, slots, spans = _grown(members, room), _grown(slots, room), _grown(spans, room)
        counter[0] = begin_view * chunks
        for _ in prange(workers):
            while True:
                unit = take(counter)
                if unit >= end_view * chunks:
                    break
                view, chunk = unit // chunks, unit % chunks
                for g in range(view * count + chunk * CHUNK, view * count + min(chunk * CHUNK + CHUNK, count)):
                    if base[g + 1] > base[g]:
                        stop[g] = _emit_tiles(record, g * LANES, width, height, base[g], tile_of, span_of)
                    else:
                        stop[g] = base[g]
        counter[0] = begin_view
        for _ in prange(workers):
            while True:
                view = take(counter)
                if view >= end_view:
                    break
                own = slice(view * count, view * count + count)
                _sort_view(depth_bits, view * count, base[own], stop[own], tile_of, span_of, tile_start[view], members, slots, spans)
        counter[0] = begin_view * tiles
        for _ in prange(workers):
            buffer = np.empty(5 * _AREA, np.float32)
            while True:
                unit = take(counter)
                if unit >= end_view * tiles:
                    break
                view, tile = unit // tiles, unit % tiles
                x0, y0 = tile % across * COLUMNS, tile // across * 2 * PAIRS
                begin, end = tile_start[view, tile], tile_start[view, tile + 1]
                _start_tile(buffer, x0, y0, width, height)
                buffer[_AREA:] = 0
                needed[unit] = _forward_tile(record, members, spans, begin, end, x0, y0, lane_x, lane_y, buffer)
                for y in range(y0, min(y0 + 2 * PAIRS, height)):
                    for x in range(x0, min(x0 + COLUMNS, width)):
                        k = (y - y0) * COLUMNS + x - x0
                        color[view, y, x, 0] = buffer[k + _AREA]
                        color[view, y, x, 1] = buffer[k + 2 * _AREA]
                        color[view, y, x, 2] = buffer[k + 3 * _AREA]
                        depth[view, y, x] = buffer[k + 4 * _AREA]
                        alpha[view, y, x] = np.float32(1) - abs(buffer[k])
    return bad[0], color, alpha, depth, (record, base, stop, members, slots, spans, tile_start, needed)


@njit(inline="always")
def _accumulate(planes, at, x):
    store(planes, at, load(planes, at) + x)


@njit(cache=True)
def _pull_back(means, quats, scales, opacity, stride, g, camera, sums, d_means, d_quats, d_scales, d_logits, d_center):
    """Pull the gradients of 16 Gaussians in one view back through the projection, adding to the planes d_*.

    ``sums`` has the planes of the summed slots (see _backward_tile) and, last, 1 where the Gaussian was drawn; d_center is
    given the gradients by the centre in pixels, x then y.
    """
    local, angles, q, s, m, pq, tw, cross, covariance = _geometry(means, quats, scales, stride, g, camera)
    _, _, _, _, inverse = local
    u, v, uc, vc = angles
    a, b, _, determinant = covariance
    qw, qx, qy, qz, norm = q
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = m
    p0, p1, p2, q0, q1, q2 = pq
    t0, t1, t2, w0, w1, w2 = tw
    zero, one, two, n = splat(np.float32(0)), splat(np.float32(1)), splat(np.float32(2)), uintp(LANES)
    drawn = load(sums, uintp(15) * n) > zero
    h, hw, hww = load(sums, uintp(0)), load(sums, n), load(sums, uintp(2) * n)
    hu, hwu, huu = load(sums, uintp(3) * n), load(sums, uintp(4) * n), load(sums, uintp(5) * n)
    kw, ku = one / root(a), root(a / determinant)
    kx = zero - ku * b / a
    four, sixteen = splat(np.float32(4)), splat(np.float32(16))  # a record's factors are a quarter of these
    hw, hww, hu, hwu, huu = four * hw, sixteen * hww, four * hu, sixteen * hwu, sixteen * huu

    # sigma = (u^2 + w^2) / 2 and h = -dL/dsigma.
    d_mx, d_my = kx * hu + kw * hw, ku * hu
    # dL/dCov = L (huu, hwu; hwu, hww) L^T / 2 with the conic L L^T, L = (kx, kw; ku, 0); times 2 for d(T T^t) = 2 dCov T.
    # kx t + ku w = ku / a ((t x w) x t + eps w), which does not cancel for needles.
    (k0, k1, k2), eps, k = cross, splat(_EPS2D), ku / a
    au0, au1, au2 = k * (k1 * t2 - k2 * t1 + eps * w0), k * (k2 * t0 - k0 * t2 + eps * w1), k * (k0 * t1 - k1 * t0 + eps * w2)
    aw0, aw1, aw2 = kw * t0, kw * t1, kw * t2
    fu0, fu1, fu2 = huu * au0 + hwu * aw0, huu * au1 + hwu * aw1, huu * au2 + hwu * aw2
    fw0, fw1, fw2 = hwu * au0 + hww * aw0, hwu * au1 + hww * aw1, hwu * au2 + hww * aw2
    dt0, dt1, dt2 = kx * fu0 + kw * fw0, kx * fu1 + kw * fw1, kx * fu2 + kw * fw2
    dw0, dw1, dw2 = ku * fu0, ku * fu1, ku * fu2
    dp0, dp1, dp2 = dt0 * m00 + dt1 * m01 + dt2 * m02, dt0 * m10 + dt1 * m11 + dt2 * m12, dt0 * m20 + dt1 * m21 + dt2 * m22
    dq0, dq1, dq2 = dw0 * m00 + dw1 * m01 + dw2 * m02, dw0 * m10 + dw1 * m11 + dw2 * m12, dw0 * m20 + dw1 * m21 + dw2 * m22
    # J W has the rows jx (W0 - u W2) and jy (W1 - v W2) with jx = fx / z, jy = fy / z; u and v are fixed where clamped.
    r20, r21, r22 = splat(camera[8]), splat(camera[9]), splat(camera[10])
    fx, fy = splat(camera[12]), splat(camera[13])
    d_u = zero - fx * inverse * (dp0 * r20 + dp1 * r21 + dp2 * r22)
    d_v = zero - fy * inverse * (dq0 * r20 + dq1 * r21 + dq2 * r22)
    d_u = fx * d_mx + select((u <= uc) & (uc <= u), d_u, zero)
    d_v = fy * d_my + select((v <= vc) & (vc <= v), d_v, zero)
    along = dp0 * p0 + dp1 * p1 + dp2 * p2 + dq0 * q0 + dq1 * q1 + dq2 * q2
    d_z = load(sums, uintp(9) * n) - inverse * (along + d_u * u + d_v * v)
    d_x, d_y = d_u * inverse, d_v * inverse
    store(d_center, uintp(0), select(drawn, d_mx, zero))
    store(d_center, n, select(drawn, d_my, zero))
    for axis in range(uintp(3)):
        d = splat(camera[axis]) * d_x + splat(camera[axis + uintp(4)]) * d_y + splat(camera[axis + uintp(8)]) * d_z
        _accumulate(d_means, g + axis * stride, select(drawn, d, zero))
    _accumulate(d_logits, g, select(drawn, h * (one - load(opacity, g)), zero))

    # By rotation times scales, then by the scales' logarithms and the rotation.
    e00, e01, e02 = p0 * dt0 + q0 * dw0, p0 * dt1 + q0 * dw1, p0 * dt2 + q0 * dw2
    e10, e11, e12 = p1 * dt0 + q1 * dw0, p1 * dt1 + q1 * dw1, p1 * dt2 + q1 * dw2
    e20, e21, e22 = p2 * dt0 + q2 * dw0, p2 * dt1 + q2 * dw1, p2 * dt2 + q2 * dw2
    _accumulate(d_scales, g, select(drawn, e00 * m00 + e10 * m10 + e20 * m20, zero))
    _accumulate(d_scales, g + stride, select(drawn, e01 * m01 + e11 * m11 + e21 * m21, zero))
    _accumulate(d_scales, g + uintp(2) * stride, select(drawn, e02 * m02 + e12 * m12 + e22 * m22, zero))
    s0, s1, s2 = s
    e00, e10, e20 = e00 * s0, e10 * s0, e20 * s0
    e01, e11, e21 = e01 * s1, e11 * s1, e21 * s1
    e02, e12, e22 = e02 * s2, e12 * s2, e22 * s2
    dqw = two * (qx * (e21 - e12) + qy * (e02 - e20) + qz * (e10 - e01))
    dqx = two * (qy * (e01 + e10) + qz * (e02 + e20) + qw * (e21 - e12) - two * qx * (e11 + e22))
    dqy = two * (qx * (e01 + e10) + qz * (e12 + e21) + qw * (e02 - e20) - two * qy * (e00 + e22))
    dqz = two * (qx * (e02 + e20) + qy * (e12 + e21) + qw * (e10 - e01) - two * qz * (e00 + e11))
    along = dqw * qw + dqx * qx + dqy * qy + dqz * qz
    _accumulate(d_quats, g, select(drawn, (dqw - along * qw) * norm, zero))
    _accumulate(d_quats, g + stride, select(drawn, (dqx - along * qx) * norm, zero))
    _accumulate(d_quats, g + uintp(2) * stride, select(drawn, (dqy - along * qy) * norm, zero))
    _accumulate(d_quats, g + uintp(3) * stride, select(drawn, (dqz - along * qz) * norm, zero))


@njit(parallel=True, cache=True, nogil=True)
def backward(
    means, quats, scales, opacity, reach, colors, cameras, items, width, height, workers, lane_x, lane_y,
    saved, color, alpha, depth, g_color, g_alpha, g_depth, groups, partial, screen,
):  # fmt: skip
    """Gradients by means, quats, the scales' logarithms, the opacities' logits (planes, as passed to forward) and the colours.

    Args:
        saved, color, alpha, depth: the forward pass's.
        g_color, g_alpha, g_depth: loss gradients by the pictures, each (0, ...) where there is none.
        groups: first view of each group, one past the last at the end.
        partial: scratch, 16 numbers an intersection of the largest group.
        screen: (V, N), receives the gradient norm by the centre in half pictures, or (0, 0).
    """
    record, base, stop, members, slots, spans, tile_start, needed = saved
    views, count, padded = len(cameras), colors.shape[1], means.shape[2]
    per_item = views // items
    chunks = (count + CHUNK - 1) // CHUNK
    across = (width + COLUMNS - 1) // COLUMNS
    tiles = tile_start.shape[1] - 1
    d_means, d_quats, d_scales = np.zeros_like(means), np.zeros_like(quats), np.zeros_like(scales)
    d_logits, d_colors = np.zeros_like(opacity), np.zeros_like(colors)
    counter = np.zeros(1, np.int64)

    # Group by group, so that the slots stay in the processor's cache until they are added up.
    for group in range(len(groups) - 1):
        begin_view, end_view = groups[group], groups[group + 1]
        origin = base[begin_view * count]
        counter[0] = begin_view * tiles
        for _ in prange(workers):
            buffer = np.zeros(7 * _AREA, np.float32)
            while True:
                unit = take(counter)
                if unit >= end_view * tiles:
                    break
                view, tile = unit // tiles, unit % tiles
                begin, end = tile_start[view, tile], tile_start[view, tile + 1]
                if begin == end:
                    continue
                x0, y0 = tile % across * COLUMNS, tile // across * 2 * PAIRS
                _start_tile(buffer, x0, y0, width, height)
                for y in range(y0, min(y0 + 2 * PAIRS, height)):
                    for x in range(x0, min(x0 + COLUMNS, width)):
                        k = (y - y0) * COLUMNS + x - x0
                        rest = np.float32(0)
                        if len(g_color):
                            for channel in range(3):
                                g = g_color[view, y, x, channel]
                                buffer[k + (2 + channel) * _AREA] = g
                                rest += g * color[view, y, x, channel]
                        if len(g_depth):
                            buffer[k + 5 * _AREA] = g_depth[view, y, x]
                            rest += g_depth[view, y, x] * depth[view, y, x]
                        if len(g_alpha):
                            buffer[k + 6 * _AREA] = g_alpha[view, y, x]
                            rest += g_alpha[view, y, x] * alpha[view, y, x]
                        buffer[k + _AREA] = rest
                last = needed[unit]
                _backward_tile(record, members, slots, spans, begin, last, x0, y0, lane_x, lane_y, buffer, origin, partial)
                for i in range(last, end):
                    store(partial, uintp(slots[i] - origin) * uintp(LANES), splat(np.float32(0)))

        counter[0] = 0
        for _ in prange(workers):
            rows, sums = np.zeros(LANES * LANES, np.float32), np.zeros(LANES * LANES, np.float32)
            center = np.zeros(2 * LANES, np.float32)
            while True:
                chunk = take(counter)
                if chunk >= chunks:
                    break
                for view in range(begin_view, end_view):
                    item = view // per_item
                    i, j, k = min(item, len(means) - 1), min(item, len(quats) - 1), min(item, len(scales) - 1)
                    o = min(item, len(reach) - 1)
                    s = view if len(colors) == views else min(item, len(colors) - 1)
                    for block in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, count), LANES):
                        inside = min(LANES, count - block)
                        first = view * count + block
                        if base[first] < stop[first + inside - 1]:
                            for lane in range(LANES):
                                total = splat(np.float32(0))
                                drawn = False
                                if lane < inside:
                                    drawn = base[first + lane] < stop[first + lane]
                                    for e in range(base[first + lane] - origin, stop[first + lane] - origin):
                                        total = total + load(partial, uintp(e) * uintp(LANES))
                                store(rows, uintp(lane) * uintp(LANES), total)
                                rows[lane * LANES + 15] = np.float32(1 if drawn else 0)
                                if drawn:
                                    for channel in range(3):
                                        d_colors[s, block + lane, channel] += rows[lane * LANES + 6 + channel]
                            for field in range(LANES):
                                for lane in range(LANES):
                                    sums[field * LANES + lane] = rows[lane * LANES + field]
                            _pull_back(
                                means[i], quats[j], scales[k], opacity[o], uintp(padded), uintp(block), cameras[view], sums,
                                d_means[i], d_quats[j], d_scales[k], d_logits[o], center,
                            )  # fmt: skip
                        else:
                            center[:] = 0
                        if len(screen):
                            for lane in range(inside):
                                dx, dy = center[lane] * width / 2, center[LANES + lane] * height / 2
                                screen[view, block + lane] = math.hypot(dx, dy)
    return d_means, d_quats, d_scales, d_logits, d_colors
