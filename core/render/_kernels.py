"""The numba kernels of the rasteriser. Everything is in this one file because numba's cache watches the file of a kernel only.

How it is fast. A tile is 8 pixels wide and 32 high, and two of its rows are one vector of 16 lanes, so that a lane's column is
the same in every vector: along a column the exponent is a quadratic in y, three operations a vector, and the backward pass needs
only the sums of h, h dy and h dy^2 of each lane, weighted by dx once a Gaussian. A Gaussian visits exactly the row pairs of a tile
that its ellipse alpha >= 1/255 touches. The backward pass walks front to back like the forward pass: with R the gradient's dot
product with what is still to be composited, dL/dalpha = T v - R / (1 - alpha), so no per-pixel history is kept. Gradients go to one
slot of 16 numbers for each (Gaussian, tile) and are added up in a fixed order: no atomic additions, the same bits every time.
"""

from __future__ import annotations

import math
import operator

import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types, uintp
from numba.core.errors import RequireLiteralValue
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

NEAR = 0.01
EPS2D = 0.3
ALPHA_MAX = 0.999
ALPHA_MIN = 1 / 255
TRANSMITTANCE_MIN = 1e-4
COLUMNS, PAIRS = 8, 16  # a tile is 8 pixels wide and 16 pairs of rows high
LANES = 16
# A record of a projected Gaussian, 16 float32: what the tiles read of it. The exponent is divided by 8, see _exp8.
MX, MY, QA, QB, QC, OPACITY, RED, GREEN, BLUE, DEPTH, TMAX, EX, EY, XTOP, SLOPE, ROOT = range(16)
CHUNK = 256  # Gaussians per unit of work


# ---- vectors of 16 float32, which LLVM maps to what the machine has ---------------------------------------------------------


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
    @infer_global(function)
    class _Typing(ConcreteTemplate):
        pass

    _Typing.cases = cases
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
def take(typingctx, counter):
    """The next number of a counter (an int64 array of one) that threads share."""

    def codegen(context, builder, sig, args):
        array = context.make_array(sig.args[0])(context, builder, args[0])
        return builder.atomic_rmw("add", array.data, ir.IntType(64)(1), "monotonic")

    return types.int64(counter), codegen


# ---- geometry -----------------------------------------------------------------------------------------------------------------

_lane = np.arange(LANES)
_LANE_X = (_lane % COLUMNS + 0.5).astype(np.float32)
_LANE_Y = (_lane // COLUMNS + 0.5).astype(np.float32)
_P0, _P1, _P2 = np.float32(0.9999999315344229), np.float32(-0.9999913493878236), np.float32(0.49986970907913036)
_P3, _P4, _P5 = np.float32(-0.16592801676753474), np.float32(0.039704766170988254), np.float32(-0.005811119279843886)
_ALPHA_MAX, _TRANSMITTANCE_MIN = np.float32(ALPHA_MAX), np.float32(TRANSMITTANCE_MIN)
_SLACK = 0.01  # pixels: rounding of the row spans


@njit(inline="always")
def _exp8(t):
    """exp(-8 t) for t in [0, 0.7], relative error 5e-7: a minimax polynomial to the eighth power."""
    e = splat(_P0) + t * (splat(_P1) + t * (splat(_P2) + t * (splat(_P3) + t * (splat(_P4) + t * splat(_P5)))))
    e = e * e
    e = e * e
    return e * e


@njit(cache=True)
def _axes(quats, log_scales, axes, i, j, k):
    """Rotation times scales, row-major, of quaternion row i and scale row j into row k of axes; False where not finite."""
    w, x, y, z = float(quats[i, 0]), float(quats[i, 1]), float(quats[i, 2]), float(quats[i, 3])
    norm = max(math.sqrt(w * w + x * x + y * y + z * z), 1e-12)
    w, x, y, z = w / norm, x / norm, y / norm, z / norm
    s0, s1, s2 = math.exp(log_scales[j, 0]), math.exp(log_scales[j, 1]), math.exp(log_scales[j, 2])
    axes[k, 0] = (1 - 2 * (y * y + z * z)) * s0
    axes[k, 1] = 2 * (x * y - w * z) * s1
    axes[k, 2] = 2 * (x * z + w * y) * s2
    axes[k, 3] = 2 * (x * y + w * z) * s0
    axes[k, 4] = (1 - 2 * (x * x + z * z)) * s1
    axes[k, 5] = 2 * (y * z - w * x) * s2
    axes[k, 6] = 2 * (x * z - w * y) * s0
    axes[k, 7] = 2 * (y * z + w * x) * s1
    axes[k, 8] = (1 - 2 * (x * x + y * y)) * s2
    return math.isfinite(norm + s0 + s1 + s2)


@njit(inline="always")
def _camera(camera, width, height):
    """Limits of x/z and y/z for the Jacobian: the picture plus 15 % a side."""
    fx, fy, cx, cy = camera[12], camera[13], camera[14], camera[15]
    mx, my = 0.15 * width / fx, 0.15 * height / fy
    return -cx / fx - mx, (width - cx) / fx + mx, -cy / fy - my, (height - cy) / fy + my


@njit(cache=True)
def _project(means, i, axes, k, opacity, camera, width, height, record, r):
    """Project one Gaussian into its record. Returns its radius in pixels, 0 where it cannot be seen, -1 where not finite."""
    X, Y, Z = float(means[i, 0]), float(means[i, 1]), float(means[i, 2])
    x = camera[0] * X + camera[1] * Y + camera[2] * Z + camera[3]
    y = camera[4] * X + camera[5] * Y + camera[6] * Z + camera[7]
    z = camera[8] * X + camera[9] * Y + camera[10] * Z + camera[11]
    if not math.isfinite(x + y + z + opacity):
        return -1.0
    if z < NEAR or opacity < ALPHA_MIN:
        return 0.0
    fx, fy = camera[12], camera[13]
    low_u, high_u, low_v, high_v = _camera(camera, width, height)
    u, v = x / z, y / z
    mx, my = fx * u + camera[14], fy * v + camera[15]
    u, v = min(max(u, low_u), high_u), min(max(v, low_v), high_v)
    jx, jy = fx / z, fy / z
    # Rows of J W, then of J W (R S): the standard deviations along the three axes, in pixels.
    p0, p1, p2 = jx * (camera[0] - u * camera[8]), jx * (camera[1] - u * camera[9]), jx * (camera[2] - u * camera[10])
    q0, q1, q2 = jy * (camera[4] - v * camera[8]), jy * (camera[5] - v * camera[9]), jy * (camera[6] - v * camera[10])
    t0 = p0 * axes[k, 0] + p1 * axes[k, 3] + p2 * axes[k, 6]
    t1 = p0 * axes[k, 1] + p1 * axes[k, 4] + p2 * axes[k, 7]
    t2 = p0 * axes[k, 2] + p1 * axes[k, 5] + p2 * axes[k, 8]
    w0 = q0 * axes[k, 0] + q1 * axes[k, 3] + q2 * axes[k, 6]
    w1 = q0 * axes[k, 1] + q1 * axes[k, 4] + q2 * axes[k, 7]
    w2 = q0 * axes[k, 2] + q1 * axes[k, 5] + q2 * axes[k, 8]
    a, b, c = t0 * t0 + t1 * t1 + t2 * t2 + EPS2D, t0 * w0 + t1 * w1 + t2 * w2, w0 * w0 + w1 * w1 + w2 * w2 + EPS2D
    determinant = a * c - b * b
    reach = 2 * math.log(opacity / ALPHA_MIN)
    ex, ey = math.sqrt(reach * a), math.sqrt(reach * c)
    if not (determinant > 0 and mx + ex > 0 and mx - ex < width and my + ey > 0 and my - ey < height):
        return 0.0
    record[r + MX], record[r + MY] = mx, my
    record[r + QA] = c / determinant / 16
    record[r + QB] = -b / determinant / 8
    record[r + QC] = a / determinant / 16
    record[r + OPACITY] = opacity
    record[r + DEPTH] = z
    record[r + TMAX] = reach / 16
    record[r + EX], record[r + EY] = ex, ey
    record[r + XTOP] = b / c * ey
    record[r + SLOPE] = b / a
    record[r + ROOT] = math.sqrt(determinant) / a
    return math.ceil(max(ex, ey))


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


@njit(cache=True)
def _count_tiles(record, r, width, height):
    count = 0
    first, last = _column_range(record, r, width)
    for column in range(first, last):
        low, high = _pair_range(record, r, column, height)
        if low < high:
            count += (high - 1) // PAIRS - low // PAIRS + 1
    return count


@njit(cache=True)
def _emit_tiles(record, r, width, height, slot, tile_of, span_of):
    """Writes the tile and the span of row pairs, first | last << 8, of each intersection of one Gaussian, from ``slot`` on."""
    columns = (width + COLUMNS - 1) // COLUMNS
    first, last = _column_range(record, r, width)
    for column in range(first, last):
        low, high = _pair_range(record, r, column, height)
        if low < high:
            for row in range(low // PAIRS, (high - 1) // PAIRS + 1):
                tile_of[slot] = row * columns + column
                span_of[slot] = max(low - row * PAIRS, 0) | min(high - row * PAIRS, PAIRS) << 8
                slot += 1


@njit(cache=True)
def _sort_view(depth_bits, first, base, tile_of, tile_start, members, slots):
    """Fill the tile lists of one view, nearest first.

    Args:
        depth_bits: records as uint32, flat; the order of positive floats is that of their bits.
        first: first Gaussian of the view, of base's.
        base: first intersection of each Gaussian, one past the last at the end, (N + 1,).
        tile_of: tile of each intersection.
        tile_start: first list entry of each tile of the view, one past the last at the end, (tiles + 1,); filled.
        members, slots: Gaussian and intersection of each list entry; filled.
    """
    count = len(base) - 1
    key, index = np.empty(count, np.uint32), np.empty(count, np.int32)
    key2, index2 = np.empty(count, np.uint32), np.empty(count, np.int32)
    histogram = np.zeros((3, 2048), np.int32)
    n = 0
    for g in range(count):
        if base[g + 1] > base[g]:
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
    for e in range(base[0], base[count]):
        tile_start[tile_of[e] + 1] += 1
    tile_start[0] = base[0]
    for tile in range(tiles):
        tile_start[tile + 1] += tile_start[tile]
    cursor = tile_start[:tiles].copy()
    for i in range(n):
        g = index[i]
        for e in range(base[g], base[g + 1]):
            place = cursor[tile_of[e]]
            cursor[tile_of[e]] = place + 1
            members[place] = first + g
            slots[place] = e


# ---- tiles --------------------------------------------------------------------------------------------------------------------

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
    for pair in range(uintp(PAIRS)):
        if some(load(buffer, pair * uintp(LANES)) > zero):
            return False
    return True


@njit(cache=True)
def _forward_tile(record, members, slots, span_of, begin, end, x0, y0, lane_x, lane_y, buffer):
    """Composite a tile's list into buffer planes: transmittance (negative once finished), red, green, blue, depth.

    Returns one past the last list entry that was needed.
    """
    zero, alpha_max, stop = splat(np.float32(0)), splat(_ALPHA_MAX), splat(_TRANSMITTANCE_MIN)
    columns, rows = load(lane_x, uintp(0)), load(lane_y, uintp(0))
    area = uintp(_AREA)
    for i in range(begin, end):
        r = uintp(members[uintp(i)]) * uintp(LANES)
        span = uintp(span_of[uintp(slots[uintp(i)])])
        dx = columns + splat(np.float32(x0) - record[r + uintp(MX)])
        qa, qb = splat(record[r + uintp(QA)]) * dx * dx, splat(record[r + uintp(QB)]) * dx
        qc, tmax, opacity = splat(record[r + uintp(QC)]), splat(record[r + uintp(TMAX)]), splat(record[r + uintp(OPACITY)])
        red, green, blue = splat(record[r + uintp(RED)]), splat(record[r + uintp(GREEN)]), splat(record[r + uintp(BLUE)])
        depth = splat(record[r + uintp(DEPTH)])
        top = np.float32(y0) - record[r + uintp(MY)]
        for pair in range(span & uintp(255), span >> uintp(8)):
            k = pair * uintp(LANES)
            dy = rows + splat(top + np.float32(uintp(2) * pair))
            t = qa + dy * (qb + qc * dy)
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
def _backward_tile(record, members, slots, span_of, begin, end, x0, y0, lane_x, lane_y, buffer, partial):
    """Gradients of a tile's list, one slot of 16 numbers each.

    Buffer planes: transmittance, R (module docstring), then the loss gradients by red, green, blue, depth and alpha. A slot has,
    with h = alpha dL/dalpha summed over the tile's pixels: h, h dx, h dx^2, h dy, h dx dy, h dy^2, red, green, blue, depth.
    """
    zero, alpha_max, stop = splat(np.float32(0)), splat(_ALPHA_MAX), splat(_TRANSMITTANCE_MIN)
    one = splat(np.float32(1))
    columns, rows = load(lane_x, uintp(0)), load(lane_y, uintp(0))
    area = uintp(_AREA)
    for i in range(begin, end):
        r = uintp(members[uintp(i)]) * uintp(LANES)
        slot = uintp(slots[uintp(i)])
        span = uintp(span_of[slot])
        dx = columns + splat(np.float32(x0) - record[r + uintp(MX)])
        qa, qb = splat(record[r + uintp(QA)]) * dx * dx, splat(record[r + uintp(QB)]) * dx
        qc, tmax, opacity = splat(record[r + uintp(QC)]), splat(record[r + uintp(TMAX)]), splat(record[r + uintp(OPACITY)])
        red, green, blue = splat(record[r + uintp(RED)]), splat(record[r + uintp(GREEN)]), splat(record[r + uintp(BLUE)])
        depth = splat(record[r + uintp(DEPTH)])
        top = np.float32(y0) - record[r + uintp(MY)]
        sum_h, sum_y, sum_yy = zero, zero, zero
        sum_red, sum_green, sum_blue, sum_depth = zero, zero, zero, zero
        for pair in range(span & uintp(255), span >> uintp(8)):
            k = pair * uintp(LANES)
            dy = rows + splat(top + np.float32(uintp(2) * pair))
            t = qa + dy * (qb + qc * dy)
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
                hy = h * dy
                sum_h = sum_h + h
                sum_y = sum_y + hy
                sum_yy = sum_yy + hy * dy
                sum_red = sum_red + weight * g_red
                sum_green = sum_green + weight * g_green
                sum_blue = sum_blue + weight * g_blue
                sum_depth = sum_depth + weight * g_depth
        sum_x = dx * sum_h
        low = fold(fold(sum_h, sum_x, 1), fold(dx * sum_x, sum_y, 1), 2)
        low = fold(low, fold(fold(dx * sum_y, sum_yy, 1), fold(sum_red, sum_green, 1), 2), 4)
        high = fold(sum_blue, sum_depth, 1)
        high = fold(high, high, 2)
        store(partial, slot * uintp(LANES), fold(low, fold(high, high, 4), 8))


# ---- whole calls --------------------------------------------------------------------------------------------------------------


@njit(parallel=True, cache=True, nogil=True)
def forward(means, quats, log_scales, logits, colors, cameras, items, width, height, radii, workers, lane_x, lane_y):
    """Draw V views. Attributes are (B or 1, N, ...), colours also (V, N, 3); cameras (V, 16) are three rows of world-to-camera
    and fx, fy, cx, cy, float64; radii is (V, N) or (0, 0).

    Returns a code (0 fine, 1 not finite, 2 too many intersections), the pictures (V, H, W, 3), (V, H, W), (V, H, W), and what
    the backward pass needs.
    """
    views, count = len(cameras), means.shape[1]
    per_item = views // items
    sets = max(len(quats), len(log_scales))
    chunks = (count + CHUNK - 1) // CHUNK
    across, down = (width + COLUMNS - 1) // COLUMNS, (height + 2 * PAIRS - 1) // (2 * PAIRS)
    tiles = across * down
    counter = np.zeros(1, np.int64)
    bad = np.zeros(1, np.int64)
    axes = np.empty((sets, count, 9), np.float32)
    record = np.empty(views * count * LANES, np.float32)
    base = np.zeros(views * count + 1, np.int64)
    color = np.empty((views, height, width, 3), np.float32)
    alpha = np.empty((views, height, width), np.float32)
    depth = np.empty((views, height, width), np.float32)
    needed = np.zeros(views * tiles, np.int64)
    tile_start = np.zeros((views, tiles + 1), np.int64)

    for worker in prange(workers):
        while True:
            unit = take(counter)
            if unit >= sets * chunks:
                break
            k, chunk = unit // chunks, unit % chunks
            i, j = min(k, len(quats) - 1), min(k, len(log_scales) - 1)
            for g in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, count)):
                if not _axes(quats[i], log_scales[j], axes[k], g, g, g):
                    bad[0] = 1
    counter[0] = 0
    for worker in prange(workers):
        while True:
            unit = take(counter)
            if unit >= views * chunks:
                break
            view, chunk = unit // chunks, unit % chunks
            item = view // per_item
            i, k, o = min(item, len(means) - 1), min(item, sets - 1), min(item, len(logits) - 1)
            s = view if len(colors) == views else min(item, len(colors) - 1)
            for g in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, count)):
                r = (view * count + g) * LANES
                opacity = 1 / (1 + math.exp(-float(logits[o, g])))
                radius = _project(means[i], g, axes[k], g, opacity, cameras[view], width, height, record, r)
                if radius > 0:
                    record[r + RED], record[r + GREEN], record[r + BLUE] = colors[s, g, 0], colors[s, g, 1], colors[s, g, 2]
                    base[view * count + g + 1] = _count_tiles(record, r, width, height)
                if radius < 0 or not math.isfinite(colors[s, g, 0] + colors[s, g, 1] + colors[s, g, 2]):
                    bad[0] = 1
                if len(radii):
                    radii[view, g] = radius
    for g in range(views * count):
        base[g + 1] += base[g]
    total = base[views * count]
    if total > 2**31 - 1:
        bad[0] = 2
    if bad[0]:
        total = 0
    tile_of, span_of = np.empty(total, np.int32), np.empty(total, np.int32)
    members, slots = np.empty(total, np.int32), np.empty(total, np.int32)
    if bad[0] == 0:
        counter[0] = 0
        for worker in prange(workers):
            while True:
                unit = take(counter)
                if unit >= views * chunks:
                    break
                view, chunk = unit // chunks, unit % chunks
                for g in range(view * count + chunk * CHUNK, view * count + min(chunk * CHUNK + CHUNK, count)):
                    if base[g + 1] > base[g]:
                        _emit_tiles(record, g * LANES, width, height, base[g], tile_of, span_of)
        depth_bits = record.view(np.uint32)
        counter[0] = 0
        for worker in prange(workers):
            while True:
                view = take(counter)
                if view >= views:
                    break
                own = base[view * count : view * count + count + 1]
                _sort_view(depth_bits, view * count, own, tile_of, tile_start[view], members, slots)
        counter[0] = 0
        for worker in prange(workers):
            buffer = np.empty(5 * _AREA, np.float32)
            while True:
                unit = take(counter)
                if unit >= views * tiles:
                    break
                view, tile = unit // tiles, unit % tiles
                x0, y0 = tile % across * COLUMNS, tile // across * 2 * PAIRS
                begin, end = tile_start[view, tile], tile_start[view, tile + 1]
                _start_tile(buffer, x0, y0, width, height)
                buffer[_AREA:] = 0
                needed[unit] = _forward_tile(record, members, slots, span_of, begin, end, x0, y0, lane_x, lane_y, buffer)
                for y in range(y0, min(y0 + 2 * PAIRS, height)):
                    for x in range(x0, min(x0 + COLUMNS, width)):
                        k = (y - y0) * COLUMNS + x - x0
                        color[view, y, x, 0] = buffer[k + _AREA]
                        color[view, y, x, 1] = buffer[k + 2 * _AREA]
                        color[view, y, x, 2] = buffer[k + 3 * _AREA]
                        depth[view, y, x] = buffer[k + 4 * _AREA]
                        alpha[view, y, x] = np.float32(1) - abs(buffer[k])
    return bad[0], color, alpha, depth, (axes, record, base, span_of, members, slots, tile_start, needed)


@njit(cache=True)
def _pull_back(partial, begin, end, means, i, axes, k, opacity, camera, width, height, d_axes, d_mean, d_color):
    """Sum one Gaussian's slots in one view and pull the gradient back through the projection.

    Adds to d_axes (9,), d_mean (3,), d_color (3,); returns the gradients by the opacity's logit and by the centre's pixel x, y.
    """
    total = load(partial, uintp(begin) * uintp(LANES))
    for e in range(begin + 1, end):
        total = total + load(partial, uintp(e) * uintp(LANES))
    sums = np.empty(LANES, np.float32)
    store(sums, uintp(0), total)
    h, hx, hxx, hy, hxy, hyy = sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]
    d_color[0] += sums[6]
    d_color[1] += sums[7]
    d_color[2] += sums[8]

    X, Y, Z = float(means[i, 0]), float(means[i, 1]), float(means[i, 2])
    x = camera[0] * X + camera[1] * Y + camera[2] * Z + camera[3]
    y = camera[4] * X + camera[5] * Y + camera[6] * Z + camera[7]
    z = camera[8] * X + camera[9] * Y + camera[10] * Z + camera[11]
    fx, fy = camera[12], camera[13]
    low_u, high_u, low_v, high_v = _camera(camera, width, height)
    u, v = min(max(x / z, low_u), high_u), min(max(y / z, low_v), high_v)
    jx, jy = fx / z, fy / z
    p0, p1, p2 = jx * (camera[0] - u * camera[8]), jx * (camera[1] - u * camera[9]), jx * (camera[2] - u * camera[10])
    q0, q1, q2 = jy * (camera[4] - v * camera[8]), jy * (camera[5] - v * camera[9]), jy * (camera[6] - v * camera[10])
    t0 = p0 * axes[k, 0] + p1 * axes[k, 3] + p2 * axes[k, 6]
    t1 = p0 * axes[k, 1] + p1 * axes[k, 4] + p2 * axes[k, 7]
    t2 = p0 * axes[k, 2] + p1 * axes[k, 5] + p2 * axes[k, 8]
    w0 = q0 * axes[k, 0] + q1 * axes[k, 3] + q2 * axes[k, 6]
    w1 = q0 * axes[k, 1] + q1 * axes[k, 4] + q2 * axes[k, 7]
    w2 = q0 * axes[k, 2] + q1 * axes[k, 5] + q2 * axes[k, 8]
    a, b, c = t0 * t0 + t1 * t1 + t2 * t2 + EPS2D, t0 * w0 + t1 * w1 + t2 * w2, w0 * w0 + w1 * w1 + w2 * w2 + EPS2D
    determinant = a * c - b * b
    A, B, C = c / determinant, -b / determinant, a / determinant

    # sigma = A dx^2 / 2 + B dx dy + C dy^2 / 2 with dx = pixel - centre, and h = -dL/dsigma.
    d_mx, d_my = A * hx + B * hy, B * hx + C * hy
    # dL/dCov = -Q G Q with G = dL/dQ = -(hxx, hxy; hxy, hyy) / 2; times 2 for d(T T^t) = 2 dCov T.
    m00, m01, m10, m11 = A * hxx + B * hxy, A * hxy + B * hyy, B * hxx + C * hxy, B * hxy + C * hyy
    g00, g01, g11 = m00 * A + m01 * B, m00 * B + m01 * C, m10 * B + m11 * C
    dt0, dt1, dt2 = g00 * t0 + g01 * w0, g00 * t1 + g01 * w1, g00 * t2 + g01 * w2
    dw0, dw1, dw2 = g01 * t0 + g11 * w0, g01 * t1 + g11 * w1, g01 * t2 + g11 * w2
    d_axes[0] += p0 * dt0 + q0 * dw0
    d_axes[1] += p0 * dt1 + q0 * dw1
    d_axes[2] += p0 * dt2 + q0 * dw2
    d_axes[3] += p1 * dt0 + q1 * dw0
    d_axes[4] += p1 * dt1 + q1 * dw1
    d_axes[5] += p1 * dt2 + q1 * dw2
    d_axes[6] += p2 * dt0 + q2 * dw0
    d_axes[7] += p2 * dt1 + q2 * dw1
    d_axes[8] += p2 * dt2 + q2 * dw2
    dp0 = dt0 * axes[k, 0] + dt1 * axes[k, 1] + dt2 * axes[k, 2]
    dp1 = dt0 * axes[k, 3] + dt1 * axes[k, 4] + dt2 * axes[k, 5]
    dp2 = dt0 * axes[k, 6] + dt1 * axes[k, 7] + dt2 * axes[k, 8]
    dq0 = dw0 * axes[k, 0] + dw1 * axes[k, 1] + dw2 * axes[k, 2]
    dq1 = dw0 * axes[k, 3] + dw1 * axes[k, 4] + dw2 * axes[k, 5]
    dq2 = dw0 * axes[k, 6] + dw1 * axes[k, 7] + dw2 * axes[k, 8]
    # J W rows are jx (W0 - u W2) and jy (W1 - v W2), with jx = fx / z, jy = fy / z.
    d_u = -jx * (dp0 * camera[8] + dp1 * camera[9] + dp2 * camera[10])
    d_v = -jy * (dq0 * camera[8] + dq1 * camera[9] + dq2 * camera[10])
    d_z = float(sums[9]) - (dp0 * p0 + dp1 * p1 + dp2 * p2 + dq0 * q0 + dq1 * q1 + dq2 * q2) / z
    if not low_u <= x / z <= high_u:
        d_u = 0.0
    if not low_v <= y / z <= high_v:
        d_v = 0.0
    d_u += fx * d_mx
    d_v += fy * d_my
    d_x, d_y = d_u / z, d_v / z
    d_z -= (d_u * x + d_v * y) / (z * z)
    d_mean[0] += camera[0] * d_x + camera[4] * d_y + camera[8] * d_z
    d_mean[1] += camera[1] * d_x + camera[5] * d_y + camera[9] * d_z
    d_mean[2] += camera[2] * d_x + camera[6] * d_y + camera[10] * d_z
    return h * (1 - opacity), d_mx, d_my


@njit(cache=True)
def _axes_backward(quats, i, log_scales, j, d_axes, d_quats, d_scales):
    """Pull the gradient by rotation times scales back; adds to d_quats (4,) and d_scales (3,), the latter by the logarithms."""
    w, x, y, z = float(quats[i, 0]), float(quats[i, 1]), float(quats[i, 2]), float(quats[i, 3])
    norm = max(math.sqrt(w * w + x * x + y * y + z * z), 1e-12)
    w, x, y, z = w / norm, x / norm, y / norm, z / norm
    s0, s1, s2 = math.exp(log_scales[j, 0]), math.exp(log_scales[j, 1]), math.exp(log_scales[j, 2])
    r0, r3, r6 = d_axes[0] * s0, d_axes[3] * s0, d_axes[6] * s0
    r1, r4, r7 = d_axes[1] * s1, d_axes[4] * s1, d_axes[7] * s1
    r2, r5, r8 = d_axes[2] * s2, d_axes[5] * s2, d_axes[8] * s2
    d_scales[0] += (1 - 2 * (y * y + z * z)) * r0 + 2 * (x * y + w * z) * r3 + 2 * (x * z - w * y) * r6
    d_scales[1] += 2 * (x * y - w * z) * r1 + (1 - 2 * (x * x + z * z)) * r4 + 2 * (y * z + w * x) * r7
    d_scales[2] += 2 * (x * z + w * y) * r2 + 2 * (y * z - w * x) * r5 + (1 - 2 * (x * x + y * y)) * r8
    dw = 2 * (x * (r7 - r5) + y * (r2 - r6) + z * (r3 - r1))
    dx = 2 * (y * (r1 + r3) + z * (r2 + r6) + w * (r7 - r5) - 2 * x * (r4 + r8))
    dy = 2 * (x * (r1 + r3) + z * (r5 + r7) + w * (r2 - r6) - 2 * y * (r0 + r8))
    dz = 2 * (x * (r2 + r6) + y * (r5 + r7) + w * (r3 - r1) - 2 * z * (r0 + r4))
    along = dw * w + dx * x + dy * y + dz * z
    d_quats[0] += (dw - along * w) / norm
    d_quats[1] += (dx - along * x) / norm
    d_quats[2] += (dy - along * y) / norm
    d_quats[3] += (dz - along * z) / norm


@njit(parallel=True, cache=True, nogil=True)
def backward(
    means, quats, log_scales, logits, colors, cameras, items, width, height, workers, lane_x, lane_y,
    saved, color, alpha, depth, g_color, g_alpha, g_depth, partial, screen,
):  # fmt: skip
    """Gradients by means, quats, log_scales, logits and colours, of their shapes.

    ``saved`` and the pictures are the forward pass's, g_color, g_alpha, g_depth the loss gradients by the pictures, each
    (0, ...) where there is none; partial has room for 16 numbers an intersection; screen, (V, N) or (0, 0), receives the
    gradient norm by the centre in half pictures.
    """
    axes, record, base, span_of, members, slots, tile_start, needed = saved
    views, count = len(cameras), means.shape[1]
    per_item = views // items
    sets = len(axes)
    chunks = (count + CHUNK - 1) // CHUNK
    across = (width + COLUMNS - 1) // COLUMNS
    tiles = tile_start.shape[1] - 1
    d_means, d_quats = np.zeros_like(means), np.zeros_like(quats)
    d_scales, d_logits, d_colors = np.zeros_like(log_scales), np.zeros_like(logits), np.zeros_like(colors)
    counter = np.zeros(1, np.int64)

    for worker in prange(workers):
        buffer = np.zeros(7 * _AREA, np.float32)
        while True:
            unit = take(counter)
            if unit >= views * tiles:
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
            _backward_tile(record, members, slots, span_of, begin, last, x0, y0, lane_x, lane_y, buffer, partial)
            for i in range(last, end):
                store(partial, uintp(slots[i]) * uintp(LANES), splat(np.float32(0)))

    counter[0] = 0
    for worker in prange(workers):
        d_axes, d_mean, d_color = np.zeros((sets, 9)), np.zeros(3), np.zeros(3)
        while True:
            chunk = take(counter)
            if chunk >= chunks:
                break
            for g in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, count)):
                d_axes[:] = 0
                for view in range(views):
                    item = view // per_item
                    i, k, o = min(item, len(means) - 1), min(item, sets - 1), min(item, len(logits) - 1)
                    s = view if len(colors) == views else min(item, len(colors) - 1)
                    begin, end = base[view * count + g], base[view * count + g + 1]
                    d_mx, d_my = 0.0, 0.0
                    if begin < end:
                        d_mean[:] = 0
                        d_color[:] = 0
                        opacity = float(record[(view * count + g) * LANES + OPACITY])
                        d_logit, d_mx, d_my = _pull_back(
                            partial, begin, end, means[i], g, axes[k], g, opacity, cameras[view], width, height,
                            d_axes[k], d_mean, d_color,
                        )  # fmt: skip
                        d_logits[o, g] += d_logit
                        for axis in range(3):
                            d_means[i, g, axis] += d_mean[axis]
                            d_colors[s, g, axis] += d_color[axis]
                    if len(screen):
                        screen[view, g] = math.hypot(d_mx * width / 2, d_my * height / 2)
                for k in range(sets):
                    i, j = min(k, len(quats) - 1), min(k, len(log_scales) - 1)
                    _axes_backward(quats[i], g, log_scales[j], g, d_axes[k], d_quats[i, g], d_scales[j, g])
    return d_means, d_quats, d_scales, d_logits, d_colors
