"""An object without any model: the outline of a picture inflated to a closed mesh.

Two sheets over the mask are sewn together along the outline. Their height solves a Poisson equation over the mask (Igarashi et
al., "Teddy", 1999, take it from the medial axis; Dvorožňák et al., "Monster Mash", 2020, inflate so), its square root being a
sphere over a disc and a round tube over a strip. The front shows the picture. The back is a guess: it continues the colours
that the picture has along its outline, so that eyes and mouths are not repeated there.

People draw and film animals and vehicles from three quarters of their front (Palmer, Rosch and Chase, "Canonical perspective",
1981). So what is wider than tall and rises to one side is taken for one, whose higher end, the head, comes nearer.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import InputError
from ..io.background import remove_specks
from ..mesh import Mesh
from ..video import continued

#: Distance of the picture's camera from an object whose longest side is 1: where alignment puts it when perspective is unknown.
DISTANCE = 2.0
#: Cells of the mesh along the outline's longer side; most pixels of a texture's longer side.
CELLS, TEXELS = 128, 1024
#: Half the thickness of a disc relative to its radius. Below 1, since most things are flatter than wide where they face us.
DEPTH = 0.8
#: Width of the band along the outline whose colours the back continues, relative to the object's longer side.
BAND = 0.02
#: How far an end comes nearer, relative to the way there across the picture. It grows from nothing between these ratios of
#: width to height and these slopes of the line through the mask, its box scaled to a square.
NEARER, WIDE, RISING = 0.7, (1.05, 1.2), (0.1, 0.18)
#: Nearer to a cell's corner than this share of its side, the outline counts as this far from it.
_NEAREST = 0.05
#: Opaque enough to be inside, and to show the object's own colour.
_INSIDE, _SURE = 0.5, 0.9

#: Which end of the object is nearer to the camera.
Nearer = Literal["auto", "neither", "left", "right"]


def inflate(
    picture: Tensor,  # (H, W, 4) straight RGBA in [0, 1]
    *,
    depth: float = DEPTH,
    nearer: Nearer = "auto",
    distance: float = DISTANCE,
    cells: int = CELLS,
    name: str = "inflated object",
) -> Mesh:
    """A closed mesh that looks like the picture from its front, +Z, and is a plausible, opaque thing from every other side.

    Its longest side is about 1. Seen from ``distance`` by a camera whose axis goes through the middle of the outline, it covers
    the mask to a fraction of a pixel. The same picture gives the same mesh.

    Args:
        depth: half the thickness of a disc relative to its radius; higher = rounder.
        nearer: which end of the picture shows the nearer part; "auto" guesses, see :func:`nearer_end`.
        distance: of the picture's camera.
        cells: of the mesh along the outline's longer side; more = finer.

    Raises:
        InputError: where the picture shows no object.
    """
    if not 0.05 <= depth <= 3:
        raise InputError(f"depth {depth:g}: choose 0.05 to 3; 1 = a disc becomes a ball")
    rgba = picture.detach().float().cpu()
    alpha = rgba[..., 3].numpy().copy()
    remove_specks(alpha)
    inside = alpha > _INSIDE
    if inside.sum() < 16:
        raise InputError(f"{name}: nothing to inflate, the picture's mask is empty or smaller than 16 pixels")
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    longest = max(bottom - top, right - left)
    pixels = max(longest / cells, 1.0)  # of the picture, a side of a cell
    margin = int(np.ceil(3 * pixels))
    window = _window(torch.cat([rgba[..., :3], torch.from_numpy(alpha)[..., None]], -1), top, bottom, left, right, margin)
    size = tuple(max(4, round(n / pixels)) for n in window.shape[:2])
    premultiplied = torch.cat([window[..., :3] * window[..., 3:], window[..., 3:]], -1)
    grid = _resized(premultiplied, size).numpy()
    mask = grid[..., 3]
    mask[[0, -1]], mask[:, [0, -1]] = 0, 0
    if not (mask > _INSIDE).any():
        raise InputError(f"{name}: too thin to inflate, its parts are narrower than {pixels:.1f} pixels; give a larger picture")
    system = _Laplacian(mask > _INSIDE, mask)
    height = depth * np.sqrt(np.maximum(system.solve(np.full(system.count, 4.0)), 0)) * pixels / longest

    slope = nearer_end(inside) if nearer == "auto" else NEARER * {"neither": 0, "left": -1, "right": 1}[nearer]
    # Places in the picture's plane: pixels from the middle of the outline, right and up, relative to its longer side.
    points, index = _outline(mask, system)
    scale = np.array([window.shape[1] / size[1], window.shape[0] / size[0]])
    uv = (points + 0.5) * scale / [window.shape[1], window.shape[0]]
    middle = np.array([right - left, bottom - top]) / 2 + margin
    flat = ((points + 0.5) * scale - middle) / longest * [1, -1]
    thick = np.concatenate([height, np.zeros(len(points) - system.count)])
    z = np.concatenate([thick, -thick]) + slope * np.tile(flat[:, 0], 2)
    vertices = torch.from_numpy(_along_rays(np.tile(flat, (2, 1)), z, distance)).float()
    faces = np.concatenate([index, index[:, ::-1] + len(points)])

    texture = torch.cat([_front(window), _back(grid, system, longest / pixels, (window.shape[0], window.shape[1]))], 1)
    shrunk = TEXELS / max(texture.shape[0], texture.shape[1] / 2)
    if shrunk < 1:
        texture = _resized(texture, (round(texture.shape[0] * shrunk), 2 * round(texture.shape[1] / 2 * shrunk)))
    uvs = torch.from_numpy(np.concatenate([uv * [0.5, 1], uv * [0.5, 1] + [0.5, 0]])).float()
    opaque = torch.cat([texture.clamp(0, 1), torch.ones_like(texture[..., :1])], -1)
    return Mesh(vertices, torch.from_numpy(faces.copy()), uvs=uvs, textures=(opaque,), name=name)


def nearer_end(inside: np.ndarray) -> float:  # (H, W)
    """How much nearer each part of a mask is than the middle, per length to the right: positive = the right end is nearer.

    0 for what is taller than wide, or as high on the left as on the right.
    """
    row, column = np.nonzero(inside)
    width, height = np.ptp(column) + 1, np.ptp(row) + 1
    x, y = column / width, -row / height
    rise = ((x - x.mean()) * (y - y.mean())).mean() / (x - x.mean()).var()
    wide, rising = ((v - low) / (high - low) for v, (low, high) in ((width / height, WIDE), (abs(rise), RISING)))
    return float(NEARER * np.sign(rise) * np.clip(wide, 0, 1) * np.clip(rising, 0, 1))


def _along_rays(flat: np.ndarray, z: np.ndarray, distance: float) -> np.ndarray:  # (N, 2), (N,) -> (N, 3)
    """Points at depths z on the rays through places ``flat`` of the picture's plane, their box centred on the camera's axis.

    A camera looks at the origin, so the axis is moved in the picture until the box that results has its middle there.
    """
    z = z - (z.max() + z.min()) / 2
    axis, points = np.zeros(2), flat
    for _ in range(20):
        points = (flat - axis) * ((distance - z) / distance)[:, None]
        axis += (points.max(0) + points.min(0)) / 2
    return np.column_stack([points, z])


def _window(rgba: Tensor, top: int, bottom: int, left: int, right: int, margin: int) -> Tensor:
    """The picture around the outline with ``margin`` pixels on every side, empty beyond the picture."""
    padded = F.pad(rgba, (0, 0, margin, margin, margin, margin))
    return padded[top : bottom + 2 * margin, left : right + 2 * margin]


def _resized(picture: Tensor, size: tuple[int, ...]) -> Tensor:  # (H, W, C) -> (*size, C)
    if tuple(picture.shape[:2]) == tuple(size):
        return picture
    scaled = F.interpolate(picture.movedim(-1, 0)[None], size, mode="bilinear", align_corners=False, antialias=True)
    return scaled[0].movedim(0, -1)


class _Laplacian:
    """The five-point Laplacian over a grid's inside, negated, with values held at 0 where the outline crosses an edge.

    A neighbour beyond the outline lies a share theta of a cell away, where the mask passes one half; it weighs 1 / theta, which
    keeps the matrix symmetric (the ghost fluid method: Gibou et al. 2002).
    """

    def __init__(self, inside: np.ndarray, mask: np.ndarray) -> None:
        from scipy.sparse import coo_matrix, diags

        self.inside, self.count = inside, int(inside.sum())
        self.index = np.full(inside.shape, -1)
        self.index[inside] = np.arange(self.count)
        diagonal, rows, columns = np.zeros(self.count), [], []
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            other = np.roll(self.index, -step, axis)[inside]
            beyond = np.roll(mask, -step, axis)[inside]
            share = np.clip((mask[inside] - _INSIDE) / np.maximum(mask[inside] - beyond, 1e-9), _NEAREST, 1)
            diagonal += np.where(other >= 0, 1.0, 1 / share)
            rows.append(np.flatnonzero(other >= 0))
            columns.append(other[other >= 0])
        i, j = np.concatenate(rows), np.concatenate(columns)
        self.neighbours = coo_matrix((np.ones(len(i)), (i, j)), shape=(self.count, self.count)).tocsr()
        self.matrix = diags(diagonal) - self.neighbours

    def solve(self, right: np.ndarray) -> np.ndarray:  # (N,)
        from scipy.sparse.linalg import splu

        return splu(self.matrix.tocsc()).solve(right)

    def filled(self, values: np.ndarray, weight: np.ndarray) -> np.ndarray:  # (N, C), (N,) -> (N, C)
        """The smoothest values over the inside that are near the given ones where they weigh; the outline is left free."""
        from scipy.sparse import diags
        from scipy.sparse.linalg import splu

        degree = np.asarray(self.neighbours.sum(1)).ravel()
        return splu((diags(degree + weight + 1e-9) - self.neighbours).tocsc()).solve(weight[:, None] * values)


def _outline(mask: np.ndarray, system: _Laplacian) -> tuple[np.ndarray, np.ndarray]:  # (P, 2) column and row, (F, 3)
    """The inside as triangles: the grid's nodes that are inside, then the outline's crossings with the grid (marching squares).

    Faces are counter-clockwise where the row counts downwards.
    """
    nodes = np.argwhere(system.inside)[:, ::-1].astype(np.float64)
    points, crossing = [nodes], {}
    total = system.count
    for axis in (0, 1):  # the edge from a node to the next one down, or to the right
        a, b = (mask[:-1], mask[1:]) if axis == 0 else (mask[:, :-1], mask[:, 1:])
        cut = (a > _INSIDE) != (b > _INSIDE)
        share = np.clip(((a - _INSIDE) / np.where(cut, a - b, 1.0))[cut], _NEAREST, 1 - _NEAREST)
        at = np.argwhere(cut)[:, ::-1].astype(np.float64)
        at[:, 1 - axis] += share
        number = np.full(cut.shape, -1)
        number[cut] = total + np.arange(cut.sum())
        crossing[axis], total = number, total + int(cut.sum())
        points.append(at)
    index, down, along = system.index, crossing[0], crossing[1]
    # Around a cell, clockwise from its upper left corner as pictures lie: corner, edge, corner, ...
    ring = np.stack(
        [
            index[:-1, :-1], along[:-1], index[:-1, 1:], down[:, 1:], index[1:, 1:], along[1:], index[1:, :-1], down[:, :-1],
        ],
        -1,
    ).reshape(-1, 8)  # fmt: skip
    present = ring >= 0
    faces = []
    for code in np.unique(np.packbits(present, axis=1, bitorder="little")):
        slots = [k for k in range(8) if code >> k & 1]
        corners = ring[np.packbits(present, axis=1, bitorder="little")[:, 0] == code][:, slots]
        faces += [corners[:, [0, k + 1, k]] for k in range(1, len(slots) - 1)]
    return np.concatenate(points), np.concatenate(faces)


def _front(window: Tensor) -> Tensor:  # (H, W, 4) -> (H, W, 3)
    """The picture's colours, those of its sure inside continued over its edge, which a background may have stained."""
    from scipy.ndimage import binary_erosion

    alpha = window[..., 3]
    sure = torch.from_numpy(binary_erosion((alpha > _SURE).numpy()))
    # Thin parts have no sure inside: there the edge is all there is.
    kept = torch.where(sure, alpha, torch.where(alpha > _INSIDE, 1e-3 * alpha, 0.0))
    return continued(torch.where(kept[..., None] > 0, window[..., :3], 0.0)[None], kept[None])[0]


def _back(grid: np.ndarray, system: _Laplacian, longest: float, size: tuple[int, int]) -> Tensor:  # (*size, 3)
    """Colours for the back: those along the outline, filled in smoothly between."""
    from scipy.ndimage import distance_transform_edt

    inside = system.inside
    away = np.asarray(distance_transform_edt(inside))[inside]
    colors = (grid[..., :3] / np.maximum(grid[..., 3:], 1e-3))[inside].clip(0, 1)
    band = max(2.0, BAND * longest)
    # The outermost nodes may be stained by the background, deep ones show what the back need not have.
    weight = np.where(away <= band, np.where(away < 1.5, 0.05, 1.0), 0.0)
    filled = np.zeros((*inside.shape, 3), np.float32)
    filled[inside] = system.filled(colors, weight).clip(0, 1)
    covered = torch.from_numpy(inside.astype(np.float32))
    return _resized(continued(torch.from_numpy(filled)[None], covered[None])[0], size)
