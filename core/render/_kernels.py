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
from numba import njit, types
from numba.core import cgutils
from numba.core.errors import RequireLiteralValue
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

from .numba_support import cache_folder

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
_CACHE = cache_folder() is not None
PATIENCE = 20000  # looks at a counter, some microseconds, before a thread lets others run


_inner = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)  # compiled into the calls that use it


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
def spread(typingctx, array, at):
    """One number of a flat float32 array in all lanes, unchecked."""

    def codegen(context, builder, sig, args):
        value = builder.load(_address(context, builder, sig, args, _F32))
        one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, _I32(0))
        return _shuffle(builder, one, one, [0] * LANES)

    return lanes(array, types.intp), codegen


@intrinsic
def load(typingctx, array, start):
    """16 numbers of a flat float32 array, unchecked."""

    def codegen(context, builder, sig, args):
        return builder.load(_address(context, builder, sig, args, _VECTOR), align=4)

    return lanes(array, types.intp), codegen


@intrinsic
def store(typingctx, array, start, x):
    """16 numbers into a flat float32 array, unchecked."""

    def codegen(context, builder, sig, args):
        builder.store(args[2], _address(context, builder, sig, args, _VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


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

    return types.void(array, types.intp), codegen


@intrinsic
def take(typingctx, counters, at):
    """A number of a flat int64 array that threads share, before it is increased by one."""

    def codegen(context, builder, sig, args):
        pointer = _address(context, builder, sig, args, ir.IntType(64))
        return builder.atomic_rmw("add", pointer, ir.IntType(64)(1), "acq_rel")

    return types.int64(counters, types.intp), codegen


@intrinsic
def peek(typingctx, counters, at):
    """A number of a flat int64 array that threads share."""

    def codegen(context, builder, sig, args):
        return builder.load_atomic(_address(context, builder, sig, args, ir.IntType(64)), "acquire", 8)

    return types.int64(counters, types.intp), codegen


# ---- geometry ----------------------------------------------------------------------------------------------------------------

_lane = np.arange(LANES)
#: Pixel centres of a vector's lanes within the tile's first two rows.
LANE_X = (_lane % COLUMNS + 0.5).astype(np.float32)
LANE_Y = (_lane // COLUMNS + 0.5).astype(np.float32)
_SLACK = 0.01  # pixels: rounding of the row spans


@_inner
def _exp8(t):
    """exp(-8 t) for t in [0, 0.7], relative error 5e-7: a minimax polynomial to the eighth power."""
    e = splat(0.039704766170988254) + t * splat(-0.005811119279843886)
    e = splat(0.49986970907913036) + t * (splat(-0.16592801676753474) + t * e)
    e = splat(0.9999999315344229) + t * (splat(-0.9999913493878236) + t * e)
    e = e * e
    e = e * e
    return e * e


@_inner
def _geometry(means, quats, scales, stride, g, camera):
    """Projection of 16 Gaussians from ``g`` on, and what its derivative needs.

    Args:
        means, quats, scales: planes (3 or 4, stride) of the item's Gaussians.
        camera: three rows of world-to-camera, fx, fy, cx, cy, and the limits of x/z and y/z in the Jacobian.
    """
    one, two = splat(1), splat(2)
    r00, r01, r02, r03 = spread(camera, 0), spread(camera, 1), spread(camera, 2), spread(camera, 3)
    r10, r11, r12, r13 = spread(camera, 4), spread(camera, 5), spread(camera, 6), spread(camera, 7)
    r20, r21, r22, r23 = spread(camera, 8), spread(camera, 9), spread(camera, 10), spread(camera, 11)
    X, Y, Z = load(means, g), load(means, g + stride), load(means, g + 2 * stride)
    x = r00 * X + r01 * Y + r02 * Z + r03
    y = r10 * X + r11 * Y + r12 * Z + r13
    z = r20 * X + r21 * Y + r22 * Z + r23
    near = splat(NEAR) <= z
    z = select(near, z, one)
    inverse = one / z
    qw, qx = load(quats, g), load(quats, g + stride)
    qy, qz = load(quats, g + 2 * stride), load(quats, g + 3 * stride)
    norm = root(qw * qw + qx * qx + qy * qy + qz * qz)
    norm = one / select(norm > splat(1e-12), norm, splat(1e-12))
    qw, qx, qy, qz = qw * norm, qx * norm, qy * norm, qz * norm
    s0, s1, s2 = load(scales, g), load(scales, g + stride), load(scales, g + 2 * stride)
    # Rotation times scales: the standard deviations along the Gaussian's axes.
    m00, m01, m02 = (one - two * (qy * qy + qz * qz)) * s0, two * (qx * qy - qw * qz) * s1, two * (qx * qz + qw * qy) * s2
    m10, m11, m12 = two * (qx * qy + qw * qz) * s0, (one - two * (qx * qx + qz * qz)) * s1, two * (qy * qz - qw * qx) * s2
    m20, m21, m22 = two * (qx * qz - qw * qy) * s0, two * (qy * qz + qw * qx) * s1, (one - two * (qx * qx + qy * qy)) * s2
    u, v = x * inverse, y * inverse
    uc = select(u > spread(camera, 17), spread(camera, 17), select(u > spread(camera, 16), u, spread(camera, 16)))
    vc = select(v > spread(camera, 19), spread(camera, 19), select(v > spread(camera, 18), v, spread(camera, 18)))
    jx, jy = spread(camera, 12) * inverse, spread(camera, 13) * inverse
    # Rows of Jacobian times world-to-camera, then of that times rotation times scales, in pixels.
    p0, p1, p2 = jx * (r00 - uc * r20), jx * (r01 - uc * r21), jx * (r02 - uc * r22)
    q0, q1, q2 = jy * (r10 - vc * r20), jy * (r11 - vc * r21), jy * (r12 - vc * r22)
    t0, t1, t2 = p0 * m00 + p1 * m10 + p2 * m20, p0 * m01 + p1 * m11 + p2 * m21, p0 * m02 + p1 * m12 + p2 * m22
    w0, w1, w2 = q0 * m00 + q1 * m10 + q2 * m20, q0 * m01 + q1 * m11 + q2 * m21, q0 * m02 + q1 * m12 + q2 * m22
    eps = splat(EPS2D)
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


@_inner
def _project(means, quats, scales, opacity, reach, stride, g, camera, width, height, out):
    """Project 16 Gaussians into the planes of ``out``, in the order of a record; RED holds 1 where one may be seen, else 0.

    Returns False where a Gaussian is not finite. One whose covariance overflows is not drawn.
    """
    local, angles, q, s, _, _, _, _, covariance = _geometry(means, quats, scales, stride, g, camera)
    x, y, z, near, _ = local
    u, v, _, _ = angles
    a, b, c, determinant = covariance
    zero, one, big = splat(0), splat(1), splat(1e38)
    room = load(reach, g)
    check = x + y + z + s[0] + s[1] + s[2] + room
    check = check + q[0] + q[1] + q[2] + q[3]
    finite = (check <= big) & (zero - big <= check)
    ex, ey = root(room * a), root(room * c)
    mx, my = spread(camera, 12) * u + spread(camera, 14), spread(camera, 13) * v + spread(camera, 15)
    seen = near & finite & (zero <= room) & (a <= splat(MAX_VARIANCE)) & (c <= splat(MAX_VARIANCE))
    seen = seen & (mx + ex > zero) & (splat(width) > mx - ex)
    seen = seen & (my + ey > zero) & (splat(height) > my - ey)
    slope, ku = b / a, root(a / determinant) * splat(0.25)
    n = LANES
    store(out, MX * n, mx)
    store(out, MY * n, my)
    store(out, KW * n, splat(0.25) / root(a))
    store(out, KU * n, ku)
    store(out, KX * n, zero - ku * slope)
    store(out, OPACITY * n, load(opacity, g))
    store(out, RED * n, select(seen, one, zero))
    store(out, DEPTH * n, z)
    store(out, TMAX * n, room * splat(1 / 16))
    store(out, EX * n, ex)
    store(out, EY * n, ey)
    store(out, XTOP * n, b / c * ey)
    store(out, SLOPE * n, slope)
    store(out, ROOT * n, root(determinant) / a)
    return not some(select(finite, zero, one) > zero)


@_inner
def _column_range(record, r, width):
    """First and one past the last tile column whose pixel centres the Gaussian may touch."""
    mx, ex = float(record[r + MX]), float(record[r + EX]) + _SLACK
    first = max(math.ceil(mx - ex - 0.5), 0.0)
    last = min(math.floor(mx + ex - 0.5), width - 1.0)
    if first > last:
        return 0, 0
    return int(first) // COLUMNS, int(last) // COLUMNS + 1


@_inner
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


@_inner
def _row_range(record, r, height):
    """First and one past the last tile row that the Gaussian may touch."""
    my, ey = float(record[r + MY]), float(record[r + EY]) + _SLACK
    first = max(math.ceil(my - ey - 0.5), 0.0)
    last = min(math.floor(my + ey - 0.5), height - 1.0)
    if first > last:
        return 0, 0
    return int(first) // (2 * PAIRS), int(last) // (2 * PAIRS) + 1


@_inner
def _bound_tiles(record, r, width, height):
    """Number of tiles that the bounding box of a Gaussian touches."""
    first, last = _column_range(record, r, width)
    top, bottom = _row_range(record, r, height)
    return (last - first) * (bottom - top)


@_inner
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


@_inner
def _sort_views(queue, units, first_view, count, record, base, stop, tile_of, span_of, tile_start, members, slots, spans):
    """Fill the tile lists of views, nearest first.

    Args:
        count: Gaussians a view, N.
        base, stop: first and one past the last intersection of each Gaussian of each view.
        tile_of, span_of: tile and row pairs of each intersection.
        tile_start: first list entry of each tile, one past the last at the end, (V, tiles + 1); filled.
        members, slots, spans: Gaussian, intersection and row pairs of each list entry; filled.
    """
    key, key2 = np.empty(count, np.uint32), np.empty(count, np.uint32)
    index, index2 = np.empty(count, np.int32), np.empty(count, np.int32)
    histogram = np.empty(3 * 2048, np.int32)
    tiles = tile_start.shape[1] - 1
    cursor = np.empty(tiles + 1, np.int64)
    depth_bits = record.view(np.uint32)  # the order of positive floats is that of their bits
    while True:
        view = first_view + take(queue, 0)
        if view >= first_view + units:
            return
        for value in range(3 * 2048):
            histogram[value] = 0
        for tile in range(tiles + 1):
            cursor[tile] = 0
        n = 0
        for g in range(view * count, view * count + count):
            if stop[g] > base[g]:
                bits = depth_bits[g * LANES + DEPTH]
                key[n], index[n] = bits, g
                n += 1
                histogram[bits & np.uint32(2047)] += 1
                histogram[2048 + ((bits >> np.uint32(11)) & np.uint32(2047))] += 1
                histogram[4096 + (bits >> np.uint32(22))] += 1
                for e in range(base[g], stop[g]):
                    cursor[tile_of[e] + 1] += 1
        # Three passes of a stable radix sort; after an odd number the result is in the second pair of arrays.
        for digit in range(3):
            shift, offset, total = np.uint32(11 * digit), 2048 * digit, 0
            for value in range(offset, offset + 2048):
                here = histogram[value]
                histogram[value] = total
                total += here
            for i in range(n):
                bits = key2[i] if digit == 1 else key[i]
                g = index2[i] if digit == 1 else index[i]
                value = offset + ((bits >> shift) & np.uint32(2047))
                place = histogram[value]
                histogram[value] = place + 1
                if digit == 1:
                    key[place], index[place] = bits, g
                else:
                    key2[place], index2[place] = bits, g
        cursor[0] = base[view * count]
        for tile in range(tiles):
            cursor[tile + 1] += cursor[tile]
        for tile in range(tiles + 1):
            tile_start[view, tile] = cursor[tile]
        for i in range(n):
            g = index2[i]
            for e in range(base[g], stop[g]):
                place = cursor[tile_of[e]]
                cursor[tile_of[e]] = place + 1
                members[place] = g
                slots[place] = e
                spans[place] = span_of[e]
        take(queue, 1)


# ---- tiles -------------------------------------------------------------------------------------------------------------------

_AREA = LANES * PAIRS  # pixels of a tile; a tile's planes lie one after the other in one flat buffer


@_inner
def _start_tile(buffer, x0, y0, width, height):
    """Transmittance 1 inside the picture, -1 (finished) outside."""
    for k in range(_AREA):
        inside = x0 + k % COLUMNS < width and y0 + k // COLUMNS < height
        buffer[k] = np.float32(1.0) if inside else np.float32(-1.0)


@_inner
def _finished(buffer):
    zero = splat(0)
    most = load(buffer, 0)
    for pair in range(1, PAIRS):
        through = load(buffer, pair * LANES)
        most = select(through > most, through, most)
    return not some(most > zero)


@_inner
def _forward_tile(record, members, spans, begin, end, x0, y0, lane_x, lane_y, buffer):
    """Composite a tile's list into buffer planes: transmittance (negative once finished), red, green, blue, depth.

    Returns one past the last list entry that was needed.
    """
    zero, alpha_max, stop = splat(0), splat(ALPHA_MAX), splat(TRANSMITTANCE_MIN)
    columns, rows = load(lane_x, 0), load(lane_y, 0)
    for i in range(begin, end):
        ahead = min(i + AHEAD, end - 1)
        prefetch(record, members[ahead] * LANES)
        r = members[i] * LANES
        span = spans[i]
        dx = columns + (splat(x0) - spread(record, r + MX))
        w = spread(record, r + KW) * dx
        ww = w * w
        ku, tmax, opacity = spread(record, r + KU), spread(record, r + TMAX), spread(record, r + OPACITY)
        red, green, blue = spread(record, r + RED), spread(record, r + GREEN), spread(record, r + BLUE)
        depth = spread(record, r + DEPTH)
        first = span & 255
        dy = rows + (splat(y0 + 2 * first) - spread(record, r + MY))
        u = ku * dy + spread(record, r + KX) * dx
        step = ku + ku
        u = u - step
        for pair in range(first, span >> 8):
            k = pair * LANES
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
                store(buffer, k + _AREA, load(buffer, k + _AREA) + weight * red)
                store(buffer, k + 2 * _AREA, load(buffer, k + 2 * _AREA) + weight * green)
                store(buffer, k + 3 * _AREA, load(buffer, k + 3 * _AREA) + weight * blue)
                store(buffer, k + 4 * _AREA, load(buffer, k + 4 * _AREA) + weight * depth)
        if i & 15 == 15 and _finished(buffer):
            return i + 1
    return end


@_inner
def _backward_tile(record, members, slots, spans, begin, end, x0, y0, lane_x, lane_y, buffer, origin, partial):
    """Gradients of a tile's list, one slot of 16 numbers each, intersection ``origin`` first.

    Buffer planes: transmittance, R (module docstring), then the loss gradients by red, green, blue, depth and alpha. A slot
    has, with h = alpha dL/dalpha, u = KU dy + KX dx and w = KW dx, summed over the tile's pixels: h, h w, h w^2, h u, h w u,
    h u^2, red, green, blue, depth.
    """
    zero, alpha_max, stop = splat(0), splat(ALPHA_MAX), splat(TRANSMITTANCE_MIN)
    one = splat(1)
    columns, rows = load(lane_x, 0), load(lane_y, 0)
    for i in range(begin, end):
        ahead = min(i + AHEAD, end - 1)
        prefetch(record, members[ahead] * LANES)
        r = members[i] * LANES
        slot = slots[i] - origin
        prefetch(partial, (slots[ahead] - origin) * LANES)
        span = spans[i]
        dx = columns + (splat(x0) - spread(record, r + MX))
        w = spread(record, r + KW) * dx
        ww = w * w
        ku, tmax, opacity = spread(record, r + KU), spread(record, r + TMAX), spread(record, r + OPACITY)
        red, green, blue = spread(record, r + RED), spread(record, r + GREEN), spread(record, r + BLUE)
        depth = spread(record, r + DEPTH)
        first = span & 255
        dy = rows + (splat(y0 + 2 * first) - spread(record, r + MY))
        u = ku * dy + spread(record, r + KX) * dx
        step = ku + ku
        u = u - step
        sum_h, sum_u, sum_uu = zero, zero, zero
        sum_red, sum_green, sum_blue, sum_depth = zero, zero, zero, zero
        for pair in range(first, span >> 8):
            k = pair * LANES
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
                g_red, g_green = load(buffer, k + 2 * _AREA), load(buffer, k + 3 * _AREA)
                g_blue, g_depth = load(buffer, k + 4 * _AREA), load(buffer, k + 5 * _AREA)
                value = load(buffer, k + 6 * _AREA) + g_red * red + g_green * green + g_blue * blue + g_depth * depth
                share = weight * value
                rest = load(buffer, k + _AREA) - share
                store(buffer, k + _AREA, rest)
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
        store(partial, slot * LANES, fold(low, fold(high, high, 4), 8))


# ---- whole calls -------------------------------------------------------------------------------------------------------------


@_inner
def _completed(queue, units):
    """Whether all units of a queue are done, after a little patience."""
    looks = 0
    while peek(queue, 1) < units and looks < PATIENCE:
        looks += 1
    return looks < PATIENCE


@_inner
def _row(array, item):
    """The item's part of an attribute that has one for each item or one for all."""
    return array[min(item, len(array) - 1)]


@_inner
def _project_views(
    queue, units, means, quats, scales, opacity, reach, colors, cameras, items, width, height, radii, record, base, bad
):  # fmt: skip
    """Fill record, radii and, at one past the Gaussian, base."""
    views, count, padded = len(cameras), colors.shape[1], means.shape[2]
    chunks = (count + CHUNK - 1) // CHUNK
    out = np.zeros(LANES * LANES, np.float32)
    while True:
        unit = take(queue, 0)
        if unit >= units:
            return
        view, chunk = unit // chunks, unit % chunks
        item = view // (views // items)
        color = colors[view] if len(colors) == views else _row(colors, item)
        for block in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, count), LANES):
            if not _project(
                _row(means, item), _row(quats, item), _row(scales, item), _row(opacity, item), _row(reach, item),
                padded, block, cameras[view], width, height, out,
            ):  # fmt: skip
                bad[0] = 1
            for lane in range(min(LANES, count - block)):
                seen = out[RED * LANES + lane] > 0
                g = view * count + block + lane
                r = g * LANES
                if seen:
                    for field in range(LANES):
                        record[r + field] = out[field * LANES + lane]
                    for channel in range(3):
                        record[r + RED + channel] = color[block + lane, channel]
                    if not math.isfinite(record[r + RED] + record[r + GREEN] + record[r + BLUE]):
                        bad[0] = 1
                    base[g + 1] = _bound_tiles(record, r, width, height)
                if len(radii):
                    radii[view, block + lane] = math.ceil(max(record[r + EX], record[r + EY])) if seen else 0.0
        take(queue, 1)


@_inner
def _emit_views(queue, units, first_view, count, width, height, record, base, stop, tile_of, span_of):
    """Fill stop, tile_of and span_of."""
    chunks = (count + CHUNK - 1) // CHUNK
    while True:
        unit = take(queue, 0)
        if unit >= units:
            return
        view, chunk = first_view + unit // chunks, unit % chunks
        for g in range(view * count + chunk * CHUNK, view * count + min(chunk * CHUNK + CHUNK, count)):
            stop[g] = base[g]
            if base[g + 1] > base[g]:
                stop[g] = _emit_tiles(record, g * LANES, width, height, base[g], tile_of, span_of)
        take(queue, 1)


@_inner
def _draw_views(
    queue, units, first_view, width, height, record, tile_start, members, spans, needed, lane_x, lane_y, color, alpha, depth
):  # fmt: skip
    """Fill the pictures and needed."""
    across, tiles = (width + COLUMNS - 1) // COLUMNS, tile_start.shape[1] - 1
    buffer = np.empty(5 * _AREA, np.float32)
    while True:
        unit = take(queue, 0)
        if unit >= units:
            return
        view, tile = first_view + unit // tiles, unit % tiles
        x0, y0 = tile % across * COLUMNS, tile // across * 2 * PAIRS
        begin, end = tile_start[view, tile], tile_start[view, tile + 1]
        _start_tile(buffer, x0, y0, width, height)
        for k in range(_AREA, 5 * _AREA):
            buffer[k] = 0
        needed[view, tile] = _forward_tile(record, members, spans, begin, end, x0, y0, lane_x, lane_y, buffer)
        for y in range(y0, min(y0 + 2 * PAIRS, height)):
            for x in range(x0, min(x0 + COLUMNS, width)):
                k = (y - y0) * COLUMNS + x - x0
                color[view, y, x, 0] = buffer[k + _AREA]
                color[view, y, x, 1] = buffer[k + 2 * _AREA]
                color[view, y, x, 2] = buffer[k + 3 * _AREA]
                depth[view, y, x] = buffer[k + 4 * _AREA]
                alpha[view, y, x] = np.float32(1) - abs(buffer[k])
        take(queue, 1)


@njit(cache=_CACHE, nogil=True)
def project(
    queues, phase, means, quats, scales, opacity, reach, colors, cameras, items, width, height, record, base, radii, bad
):  # fmt: skip
    """Project the Gaussians of B items into V views, V / B each. One phase; see :func:`draw` for the first two arguments.

    Args:
        means, quats, scales: planes (B or 1, 3 or 4, P), float32, P >= N a multiple of 16.
        opacity, reach: (B or 1, P), reach = 2 ln(255 opacity), negative where there is no Gaussian.
        colors: (B or 1 or V, N, 3).
        cameras: (V, 20), see _geometry.
        record: (V N 16,), filled with the projected Gaussians.
        base: (V N + 1,) of zeros, filled at one past each Gaussian with a bound of its intersections.
        radii: (V, N), filled, or (0, 0).
        bad: (1,), set to 1 for input that is not finite.
    """
    units = len(cameras) * ((colors.shape[1] + CHUNK - 1) // CHUNK)
    if phase == 0:
        _project_views(
            queues[0], units, means, quats, scales, opacity, reach, colors, cameras, items, width, height,
            radii, record, base, bad,
        )  # fmt: skip
    return 1 if _completed(queues[0], units) else 0


@njit(cache=_CACHE, nogil=True)
def draw(
    queues, phase, count, width, height, lane_x, lane_y, groups, record, base, stop, tile_of, span_of, tile_start, needed,
    members, slots, spans, color, alpha, depth,
):  # fmt: skip
    """List the Gaussians of each tile and composite them. Three phases a group of views.

    Any number of threads call this at once, with the same arguments; each takes units of work from the queue of a phase until
    none is left. When others take long over their last units the call returns the number of the phase that it waits for, to
    be called with again, in the end the number of phases.

    Args:
        queues: (phases, 2) of zeros: units taken and done.
        phase: to begin with.
        count: Gaussians a view, N.
        lane_x, lane_y: LANE_X, LANE_Y.
        groups: first view of each group, one past the last at the end: their records stay in the processor's cache.
        record: from project; base: the sums over it of what project wrote, first intersections.
        stop: (V N,), filled with one past each Gaussian's last intersection.
        tile_of, span_of: filled with the tile and the span of row pairs of each intersection.
        tile_start, needed: (V, tiles + 1) and (V, tiles), filled with each tile's list and its end of use.
        members, slots, spans: filled with the Gaussian, intersection and span of each list entry.
        color, alpha, depth: (V, H, W, 3), (V, H, W), (V, H, W), filled.
    """
    chunks, tiles = (count + CHUNK - 1) // CHUNK, tile_start.shape[1] - 1
    for p in range(phase, 3 * len(groups) - 3):
        view, views = groups[p // 3], groups[p // 3 + 1] - groups[p // 3]
        queue, units = queues[p], views
        if p % 3 == 0:
            units = views * chunks
            _emit_views(queue, units, view, count, width, height, record, base, stop, tile_of, span_of)
        elif p % 3 == 1:
            _sort_views(queue, units, view, count, record, base, stop, tile_of, span_of, tile_start, members, slots, spans)
        else:
            units = views * tiles
            _draw_views(
                queue, units, view, width, height, record, tile_start, members, spans, needed, lane_x, lane_y,
                color, alpha, depth,
            )  # fmt: skip
        if not _completed(queue, units):
            return p
    return 3 * len(groups) - 3


@_inner
def _accumulate(planes, at, x):
    store(planes, at, load(planes, at) + x)


@_inner
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
    zero, one, two, n = splat(0), splat(1), splat(2), LANES
    drawn = load(sums, 15 * n) > zero
    h, hw, hww = load(sums, 0), load(sums, n), load(sums, 2 * n)
    hu, hwu, huu = load(sums, 3 * n), load(sums, 4 * n), load(sums, 5 * n)
    kw, ku = one / root(a), root(a / determinant)
    kx = zero - ku * b / a
    four, sixteen = splat(4), splat(16)  # a record's factors are a quarter of these
    hw, hww, hu, hwu, huu = four * hw, sixteen * hww, four * hu, sixteen * hwu, sixteen * huu

    # sigma = (u^2 + w^2) / 2 and h = -dL/dsigma.
    d_mx, d_my = kx * hu + kw * hw, ku * hu
    # dL/dCov = L (huu, hwu; hwu, hww) L^T / 2 with the conic L L^T, L = (kx, kw; ku, 0); times 2 for d(T T^t) = 2 dCov T.
    # kx t + ku w = ku / a ((t x w) x t + eps w), which does not cancel for needles.
    (k0, k1, k2), eps, k = cross, splat(EPS2D), ku / a
    au0, au1, au2 = k * (k1 * t2 - k2 * t1 + eps * w0), k * (k2 * t0 - k0 * t2 + eps * w1), k * (k0 * t1 - k1 * t0 + eps * w2)
    aw0, aw1, aw2 = kw * t0, kw * t1, kw * t2
    fu0, fu1, fu2 = huu * au0 + hwu * aw0, huu * au1 + hwu * aw1, huu * au2 + hwu * aw2
    fw0, fw1, fw2 = hwu * au0 + hww * aw0, hwu * au1 + hww * aw1, hwu * au2 + hww * aw2
    dt0, dt1, dt2 = kx * fu0 + kw * fw0, kx * fu1 + kw * fw1, kx * fu2 + kw * fw2
    dw0, dw1, dw2 = ku * fu0, ku * fu1, ku * fu2
    dp0, dp1, dp2 = dt0 * m00 + dt1 * m01 + dt2 * m02, dt0 * m10 + dt1 * m11 + dt2 * m12, dt0 * m20 + dt1 * m21 + dt2 * m22
    dq0, dq1, dq2 = dw0 * m00 + dw1 * m01 + dw2 * m02, dw0 * m10 + dw1 * m11 + dw2 * m12, dw0 * m20 + dw1 * m21 + dw2 * m22
    # J W has the rows jx (W0 - u W2) and jy (W1 - v W2) with jx = fx / z, jy = fy / z; u and v are fixed where clamped.
    r20, r21, r22 = spread(camera, 8), spread(camera, 9), spread(camera, 10)
    fx, fy = spread(camera, 12), spread(camera, 13)
    d_u = zero - fx * inverse * (dp0 * r20 + dp1 * r21 + dp2 * r22)
    d_v = zero - fy * inverse * (dq0 * r20 + dq1 * r21 + dq2 * r22)
    d_u = fx * d_mx + select((u <= uc) & (uc <= u), d_u, zero)
    d_v = fy * d_my + select((v <= vc) & (vc <= v), d_v, zero)
    along = dp0 * p0 + dp1 * p1 + dp2 * p2 + dq0 * q0 + dq1 * q1 + dq2 * q2
    d_z = load(sums, 9 * n) - inverse * (along + d_u * u + d_v * v)
    d_x, d_y = d_u * inverse, d_v * inverse
    store(d_center, 0, select(drawn, d_mx, zero))
    store(d_center, n, select(drawn, d_my, zero))
    for axis in range(3):
        d = spread(camera, axis) * d_x + spread(camera, axis + 4) * d_y + spread(camera, axis + 8) * d_z
        _accumulate(d_means, g + axis * stride, select(drawn, d, zero))
    _accumulate(d_logits, g, select(drawn, h * (one - load(opacity, g)), zero))

    # By rotation times scales, then by the scales' logarithms and the rotation.
    e00, e01, e02 = p0 * dt0 + q0 * dw0, p0 * dt1 + q0 * dw1, p0 * dt2 + q0 * dw2
    e10, e11, e12 = p1 * dt0 + q1 * dw0, p1 * dt1 + q1 * dw1, p1 * dt2 + q1 * dw2
    e20, e21, e22 = p2 * dt0 + q2 * dw0, p2 * dt1 + q2 * dw1, p2 * dt2 + q2 * dw2
    _accumulate(d_scales, g, select(drawn, e00 * m00 + e10 * m10 + e20 * m20, zero))
    _accumulate(d_scales, g + stride, select(drawn, e01 * m01 + e11 * m11 + e21 * m21, zero))
    _accumulate(d_scales, g + 2 * stride, select(drawn, e02 * m02 + e12 * m12 + e22 * m22, zero))
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
    _accumulate(d_quats, g + 2 * stride, select(drawn, (dqy - along * qy) * norm, zero))
    _accumulate(d_quats, g + 3 * stride, select(drawn, (dqz - along * qz) * norm, zero))


@_inner
def _backward_views(
    queue, units, first_view, width, height, record, tile_start, members, slots, spans, needed, lane_x, lane_y,
    color, alpha, depth, g_color, g_alpha, g_depth, origin, partial,
):  # fmt: skip
    """Fill the slots in ``partial``, that of intersection ``origin`` first."""
    across, tiles = (width + COLUMNS - 1) // COLUMNS, tile_start.shape[1] - 1
    buffer = np.zeros(7 * _AREA, np.float32)
    while True:
        unit = take(queue, 0)
        if unit >= units:
            return
        view, tile = first_view + unit // tiles, unit % tiles
        begin, end = tile_start[view, tile], tile_start[view, tile + 1]
        if begin == end:
            take(queue, 1)
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
        last = needed[view, tile]
        _backward_tile(record, members, slots, spans, begin, last, x0, y0, lane_x, lane_y, buffer, origin, partial)
        for i in range(last, end):
            store(partial, (slots[i] - origin) * LANES, splat(0))
        take(queue, 1)


@_inner
def _pull_back_views(
    queue, units, begin_view, end_view, means, quats, scales, opacity, cameras, items, width, height, base, stop, origin,
    partial, d_means, d_quats, d_scales, d_logits, d_colors, screen,
):  # fmt: skip
    """Add up the Gaussians' slots in a group of views, in a fixed order, into d_*."""
    views, count, padded = len(cameras), d_colors.shape[1], means.shape[2]
    rows, sums = np.zeros(LANES * LANES, np.float32), np.zeros(LANES * LANES, np.float32)
    center = np.zeros(2 * LANES, np.float32)
    while True:
        chunk = take(queue, 0)
        if chunk >= units:
            return
        for view in range(begin_view, end_view):
            item = view // (views // items)
            d_color = d_colors[view] if len(d_colors) == views else _row(d_colors, item)
            for block in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, count), LANES):
                inside = min(LANES, count - block)
                first = view * count + block
                if base[first] < stop[first + inside - 1]:
                    for lane in range(LANES):
                        total = splat(0)
                        drawn = False
                        if lane < inside:
                            drawn = base[first + lane] < stop[first + lane]
                            for e in range(base[first + lane] - origin, stop[first + lane] - origin):
                                total = total + load(partial, e * LANES)
                        store(rows, lane * LANES, total)
                        rows[lane * LANES + 15] = np.float32(1 if drawn else 0)
                        if drawn:
                            for channel in range(3):
                                d_color[block + lane, channel] += rows[lane * LANES + 6 + channel]
                    for field in range(LANES):
                        for lane in range(LANES):
                            sums[field * LANES + lane] = rows[lane * LANES + field]
                    _pull_back(
                        _row(means, item), _row(quats, item), _row(scales, item), _row(opacity, item), padded,
                        block, cameras[view], sums, _row(d_means, item), _row(d_quats, item), _row(d_scales, item),
                        _row(d_logits, item), center,
                    )  # fmt: skip
                if len(screen):
                    for lane in range(inside):
                        if base[first + lane] < stop[first + lane]:
                            dx, dy = center[lane] * width / 2, center[LANES + lane] * height / 2
                            screen[view, block + lane] = math.sqrt(dx * dx + dy * dy)
        take(queue, 1)


@njit(cache=_CACHE, nogil=True)
def backward(
    queues, phase, means, quats, scales, opacity, cameras, items, width, height, lane_x, lane_y, groups,
    record, base, stop, tile_start, needed, members, slots, spans, color, alpha, depth, g_color, g_alpha, g_depth,
    partial, d_means, d_quats, d_scales, d_logits, d_colors, screen,
):  # fmt: skip
    """Add the gradients by means, quats, the scales' logarithms, the opacities' logits and the colours to d_*.

    Two phases a group of views; see :func:`draw` for how it is called.

    Args:
        means, quats, scales, opacity, cameras: as passed to project; d_means and so on are of their shapes.
        groups: as for draw; the slots of a group stay in the processor's cache until they are added up.
        record to depth: the forward pass's.
        g_color, g_alpha, g_depth: loss gradients by the pictures, each (0, ...) where there is none.
        partial: scratch, 16 numbers an intersection of the largest group.
        screen: (V, N) of zeros, receives the gradient norm by the centre in half pictures, or (0, 0).
    """
    count, tiles = d_colors.shape[1], tile_start.shape[1] - 1
    for p in range(phase, 2 * len(groups) - 2):
        view, end_view = groups[p // 2], groups[p // 2 + 1]
        queue, origin = queues[p], base[view * count]
        if p % 2 == 0:
            units = (end_view - view) * tiles
            _backward_views(
                queue, units, view, width, height, record, tile_start, members, slots, spans, needed, lane_x, lane_y,
                color, alpha, depth, g_color, g_alpha, g_depth, origin, partial,
            )  # fmt: skip
        else:
            units = (count + CHUNK - 1) // CHUNK
            _pull_back_views(
                queue, units, view, end_view, means, quats, scales, opacity, cameras, items, width, height, base, stop,
                origin, partial, d_means, d_quats, d_scales, d_logits, d_colors, screen,
            )  # fmt: skip
        if not _completed(queue, units):
            return p
    return 2 * len(groups) - 2
