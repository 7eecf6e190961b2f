"""The backward pass: gradients of tiles' lists, added up for each Gaussian and pulled back through the projection."""

# The type checker does not know that numba's intrinsics drop their first parameter.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np

from .common import (
    AHEAD,
    ALPHA_MAX,
    AREA,
    BLUE,
    CHUNK,
    COLUMNS,
    DEPTH,
    EPS2D,
    GREEN,
    KU,
    KW,
    KX,
    MX,
    MY,
    OPACITY,
    PAIRS,
    RED,
    TMAX,
    TRANSMITTANCE_MIN,
    completed,
    entry,
    inner,
    row,
    take,
)
from .drawing import exp8, start_tile
from .projection import geometry
from .vectors import LANES, fold, load, minus_abs, prefetch, root, select, some, splat, spread, store


@inner
def _backward_tile(record, members, slots, spans, begin, end, x0, y0, lane_x, lane_y, buffer, origin, partial):
    """Gradients of a tile's list, one slot of 16 numbers each, intersection ``origin`` first.

    Buffer planes: transmittance, R (the package's docstring), then the loss gradients by red, green, blue, depth and alpha. A
    slot has, with h = alpha dL/dalpha, u = KU dy + KX dx and w = KW dx, summed over the tile's pixels: h, h w, h w^2, h u,
    h w u, h u^2, red, green, blue, depth.
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
                raw = opacity * exp8(t)
                alpha = select(seen, select(raw > alpha_max, alpha_max, raw), zero)
                weight = alpha * through
                behind = through - weight
                going = behind > stop
                store(buffer, k, select(going, behind, minus_abs(through)))
                weight = select(going, weight, zero)
                g_red, g_green = load(buffer, k + 2 * AREA), load(buffer, k + 3 * AREA)
                g_blue, g_depth = load(buffer, k + 4 * AREA), load(buffer, k + 5 * AREA)
                value = load(buffer, k + 6 * AREA) + g_red * red + g_green * green + g_blue * blue + g_depth * depth
                share = weight * value
                rest = load(buffer, k + AREA) - share
                store(buffer, k + AREA, rest)
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


@inner
def _accumulate(planes, at, x):
    store(planes, at, load(planes, at) + x)


@inner
def _pull_back(means, quats, scales, opacity, stride, g, camera, sums, d_means, d_quats, d_scales, d_logits, d_center):
    """Pull the gradients of 16 Gaussians in one view back through the projection, adding to the planes d_*.

    ``sums`` has the planes of the summed slots (see _backward_tile) and, last, 1 where the Gaussian was drawn; d_center is
    given the gradients by the centre in pixels, x then y.
    """
    local, angles, q, s, m, pq, tw, cross, covariance = geometry(means, quats, scales, stride, g, camera)
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


@inner
def _backward_views(
    queue, units, first_view, width, height, record, tile_start, members, slots, spans, needed, lane_x, lane_y,
    color, alpha, depth, g_color, g_alpha, g_depth, origin, partial,
):  # fmt: skip
    """Fill the slots in ``partial``, that of intersection ``origin`` first."""
    across, tiles = (width + COLUMNS - 1) // COLUMNS, tile_start.shape[1] - 1
    buffer = np.zeros(7 * AREA, np.float32)
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
        start_tile(buffer, x0, y0, width, height)
        for y in range(y0, min(y0 + 2 * PAIRS, height)):
            for x in range(x0, min(x0 + COLUMNS, width)):
                k = (y - y0) * COLUMNS + x - x0
                rest = np.float32(0)
                if len(g_color):
                    for channel in range(3):
                        g = g_color[view, y, x, channel]
                        buffer[k + (2 + channel) * AREA] = g
                        rest += g * color[view, y, x, channel]
                if len(g_depth):
                    buffer[k + 5 * AREA] = g_depth[view, y, x]
                    rest += g_depth[view, y, x] * depth[view, y, x]
                if len(g_alpha):
                    buffer[k + 6 * AREA] = g_alpha[view, y, x]
                    rest += g_alpha[view, y, x] * alpha[view, y, x]
                buffer[k + AREA] = rest
        last = needed[view, tile]
        _backward_tile(record, members, slots, spans, begin, last, x0, y0, lane_x, lane_y, buffer, origin, partial)
        for i in range(last, end):
            store(partial, (slots[i] - origin) * LANES, splat(0))
        take(queue, 1)


@inner
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
            d_color = d_colors[view] if len(d_colors) == views else row(d_colors, item)
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
                        row(means, item), row(quats, item), row(scales, item), row(opacity, item), padded,
                        block, cameras[view], sums, row(d_means, item), row(d_quats, item), row(d_scales, item),
                        row(d_logits, item), center,
                    )  # fmt: skip
                if len(screen):
                    for lane in range(inside):
                        if base[first + lane] < stop[first + lane]:
                            dx, dy = center[lane] * width / 2, center[LANES + lane] * height / 2
                            screen[view, block + lane] = math.sqrt(dx * dx + dy * dy)
        take(queue, 1)


@entry
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
        if not completed(queue, units):
            return p
    return 2 * len(groups) - 2
