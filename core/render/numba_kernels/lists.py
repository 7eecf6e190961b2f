"""The Gaussians of each tile, nearest first."""

# The type checker does not know that numba's intrinsics drop their first parameter.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np

from .common import CHUNK, COLUMNS, DEPTH, EX, EY, MX, MY, PAIRS, ROOT, SLOPE, XTOP, inner, take
from .vectors import LANES

_SLACK = 0.01  # pixels: rounding of the row spans


@inner
def _column_range(record, r, width):
    """First and one past the last tile column whose pixel centres the Gaussian may touch."""
    mx, ex = float(record[r + MX]), float(record[r + EX]) + _SLACK
    first = max(math.ceil(mx - ex - 0.5), 0.0)
    last = min(math.floor(mx + ex - 0.5), width - 1.0)
    if first > last:
        return 0, 0
    return int(first) // COLUMNS, int(last) // COLUMNS + 1


@inner
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


@inner
def _row_range(record, r, height):
    """First and one past the last tile row that the Gaussian may touch."""
    my, ey = float(record[r + MY]), float(record[r + EY]) + _SLACK
    first = max(math.ceil(my - ey - 0.5), 0.0)
    last = min(math.floor(my + ey - 0.5), height - 1.0)
    if first > last:
        return 0, 0
    return int(first) // (2 * PAIRS), int(last) // (2 * PAIRS) + 1


@inner
def bound_tiles(record, r, width, height):
    """Number of tiles that the bounding box of a Gaussian touches."""
    first, last = _column_range(record, r, width)
    top, bottom = _row_range(record, r, height)
    return (last - first) * (bottom - top)


@inner
def _emit_tiles(record, r, width, height, slot, tile_of, span_of):
    """Writes the tile and the span of row pairs, first | last << 8, of each intersection of one Gaussian, from ``slot`` on.

    Returns one past the last slot written, at most bound_tiles later.
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


@inner
def emit_views(queue, units, first_view, count, width, height, record, base, stop, tile_of, span_of):
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


@inner
def sort_views(queue, units, first_view, count, record, base, stop, tile_of, span_of, tile_start, members, slots, spans):
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
