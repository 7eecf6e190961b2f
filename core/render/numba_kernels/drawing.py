"""Compositing of tiles, front to back."""

# The type checker does not know that numba's intrinsics drop their first parameter.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import numpy as np

from .common import (
    AHEAD,
    ALPHA_MAX,
    AREA,
    BLUE,
    CHUNK,
    COLUMNS,
    DEPTH,
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
    take,
)
from .lists import emit_views, sort_views
from .vectors import LANES, load, minus_abs, prefetch, select, some, splat, spread, store


@inner
def exp8(t):
    """exp(-8 t) for t in [0, 0.7], relative error 5e-7: a minimax polynomial to the eighth power."""
    e = splat(0.039704766170988254) + t * splat(-0.005811119279843886)
    e = splat(0.49986970907913036) + t * (splat(-0.16592801676753474) + t * e)
    e = splat(0.9999999315344229) + t * (splat(-0.9999913493878236) + t * e)
    e = e * e
    e = e * e
    return e * e


@inner
def start_tile(buffer, x0, y0, width, height):
    """Transmittance 1 inside the picture, -1 (finished) outside."""
    for k in range(AREA):
        inside = x0 + k % COLUMNS < width and y0 + k // COLUMNS < height
        buffer[k] = np.float32(1.0) if inside else np.float32(-1.0)


@inner
def _finished(buffer):
    zero = splat(0)
    most = load(buffer, 0)
    for pair in range(1, PAIRS):
        through = load(buffer, pair * LANES)
        most = select(through > most, through, most)
    return not some(most > zero)


@inner
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
                alpha = opacity * exp8(t)
                alpha = select(seen, select(alpha > alpha_max, alpha_max, alpha), zero)
                weight = alpha * through
                behind = through - weight
                going = behind > stop
                store(buffer, k, select(going, behind, minus_abs(through)))
                weight = select(going, weight, zero)
                store(buffer, k + AREA, load(buffer, k + AREA) + weight * red)
                store(buffer, k + 2 * AREA, load(buffer, k + 2 * AREA) + weight * green)
                store(buffer, k + 3 * AREA, load(buffer, k + 3 * AREA) + weight * blue)
                store(buffer, k + 4 * AREA, load(buffer, k + 4 * AREA) + weight * depth)
        if i & 15 == 15 and _finished(buffer):
            return i + 1
    return end


@inner
def _draw_views(
    queue, units, first_view, width, height, record, tile_start, members, spans, needed, lane_x, lane_y, color, alpha, depth
):  # fmt: skip
    """Fill the pictures and needed."""
    across, tiles = (width + COLUMNS - 1) // COLUMNS, tile_start.shape[1] - 1
    buffer = np.empty(5 * AREA, np.float32)
    while True:
        unit = take(queue, 0)
        if unit >= units:
            return
        view, tile = first_view + unit // tiles, unit % tiles
        x0, y0 = tile % across * COLUMNS, tile // across * 2 * PAIRS
        begin, end = tile_start[view, tile], tile_start[view, tile + 1]
        start_tile(buffer, x0, y0, width, height)
        for k in range(AREA, 5 * AREA):
            buffer[k] = 0
        needed[view, tile] = _forward_tile(record, members, spans, begin, end, x0, y0, lane_x, lane_y, buffer)
        for y in range(y0, min(y0 + 2 * PAIRS, height)):
            for x in range(x0, min(x0 + COLUMNS, width)):
                k = (y - y0) * COLUMNS + x - x0
                color[view, y, x, 0] = buffer[k + AREA]
                color[view, y, x, 1] = buffer[k + 2 * AREA]
                color[view, y, x, 2] = buffer[k + 3 * AREA]
                depth[view, y, x] = buffer[k + 4 * AREA]
                alpha[view, y, x] = np.float32(1) - abs(buffer[k])
        take(queue, 1)


@entry
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
            emit_views(queue, units, view, count, width, height, record, base, stop, tile_of, span_of)
        elif p % 3 == 1:
            sort_views(queue, units, view, count, record, base, stop, tile_of, span_of, tile_start, members, slots, spans)
        else:
            units = views * tiles
            _draw_views(
                queue, units, view, width, height, record, tile_start, members, spans, needed, lane_x, lane_y,
                color, alpha, depth,
            )  # fmt: skip
        if not completed(queue, units):
            return p
    return 3 * len(groups) - 3
