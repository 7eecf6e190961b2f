"""What mesh files are read into: parts as numpy arrays, joined into one mesh."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files import InputError
from ..mesh import Mesh, cleaned_mesh
from ..pictures import decode_texture
from ..reading import beside
from ..skin import JointTree

log = logging.getLogger(__name__)

#: Ways a texture goes on outside of [0, 1].
REPEAT, CLAMP, MIRROR = "repeat", "clamp", "mirror"
#: A mesh farther from the origin than so many of its sizes is moved there, as float32 would round its shape away.
_FAR = 16
#: Widths of a clamped texture, on either side, that are drawn into the picture.
_BORDER = 1.0
#: What uvs may stray outside of [0, 1] by rounding.
_SLACK = 1e-3


@dataclass(frozen=True)
class Part:
    """One piece of a file, in the world frame."""

    vertices: np.ndarray  # (V, 3) float64
    faces: np.ndarray  # (F, 3)
    normals: np.ndarray | None = None  # (V, 3)
    uvs: np.ndarray | None = None  # (V, 2) v down
    vertex_colors: np.ndarray | None = None  # (V, 4) sRGB
    face_color: np.ndarray | None = None  # (4,) or (F, 4) sRGB
    image: Image.Image | None = None
    wrap: tuple[str, str] = (REPEAT, REPEAT)  # along u and v
    alpha_cutoff: float = 0.0
    tree: JointTree | None = None  # the same of all parts of a file
    joints: np.ndarray | None = None  # (V, K) of the tree, where there is one
    weights: np.ndarray | None = None  # (V, K) that sum to 1


def joined(parts: Sequence[Part], path: Path) -> Mesh:
    """The parts as one mesh, checked and cleaned. One that lies far from the origin is moved there, which is logged.

    Raises:
        InputError: for no faces, indices out of range, values that are not numbers, damaged textures.
    """
    parts = [part for part in parts if len(part.faces)]
    if not parts:
        raise InputError(f"{path}: has no faces, choose a surface mesh (point clouds and splats are not meshes)")
    offsets = np.cumsum([0] + [len(p.vertices) for p in parts])

    def vertex_rows(name: str, width: int, filling: float) -> np.ndarray | None:
        if all(getattr(p, name) is None for p in parts):
            return None
        rows = [getattr(p, name) for p in parts]
        return np.concatenate([np.full((len(p.vertices), width), filling) if r is None else r for p, r in zip(parts, rows)])

    arrays: dict[str, np.ndarray | None] = {
        "vertices": np.concatenate([p.vertices for p in parts]),
        "normals": vertex_rows("normals", 3, 0),
        "uvs": vertex_rows("uvs", 2, 0),
        "vertex_colors": vertex_rows("vertex_colors", 4, 1),
    }
    faces = np.concatenate([p.faces.astype(np.int64) + offset for p, offset in zip(parts, offsets)])
    arrays["vertices"], moved = _brought_near(arrays["vertices"], faces, path)
    textures: dict[tuple[int, str, str], Tensor] = {}
    kinds = [(id(p.image), *p.wrap) for p in parts]
    for kind, part in zip(kinds, parts):
        if part.image is not None and kind not in textures:
            own = [slice(a, b) for a, b, k in zip(offsets, offsets[1:], kinds) if k == kind]
            picture, uvs = decode_texture(part.image, str(path)), arrays["uvs"]
            assert uvs is not None
            for axis in (0, 1):
                picture = _unwrapped(picture, uvs, own, axis, part.wrap[axis], path)
            textures[kind] = picture
    order = list(textures)
    lengths = [len(p.faces) for p in parts]
    texture = [-1 if p.image is None else order.index(kind) for p, kind in zip(parts, kinds)]
    color = [np.ones(4) if p.face_color is None else p.face_color for p in parts]
    return cleaned_mesh(
        arrays,
        faces,
        np.repeat(texture, lengths),
        np.concatenate([np.broadcast_to(c, (n, 4)) for c, n in zip(color, lengths)]),
        np.repeat([p.alpha_cutoff for p in parts], lengths),
        tuple(textures.values()),
        str(path),
        _follows(parts, moved),
    )


def _follows(parts: Sequence[Part], moved: np.ndarray) -> tuple[JointTree, np.ndarray, np.ndarray] | None:
    """The joints of a file, and which of them its vertices follow, (V, K), by which shares."""
    tree = parts[0].tree
    if tree is None:
        return None
    most = max(part.joints.shape[1] for part in parts if part.joints is not None)

    def wide(values: np.ndarray | None) -> np.ndarray:
        assert values is not None
        return np.pad(values, ((0, 0), (0, most - values.shape[1])))

    return tree.moved(moved), np.concatenate([wide(p.joints) for p in parts]), np.concatenate([wide(p.weights) for p in parts])


def _brought_near(
    vertices: np.ndarray | None, faces: np.ndarray, path: Path
) -> tuple[np.ndarray, np.ndarray]:  # (V, 3), (F, 3) -> (V, 3), (3,)
    """Vertices, and what they were moved by: to the origin from where float32 would round them, as surveys lie."""
    assert vertices is not None
    if not len(vertices) or not np.isfinite(vertices).all() or faces.min() < 0 or faces.max() >= len(vertices):
        return vertices, np.zeros(3)  # refused, or without consequence, when the mesh is cleaned
    used = np.zeros(len(vertices), bool)
    used[faces] = True
    low, high = vertices[used].min(0), vertices[used].max(0)
    middle, side = (low + high) / 2, float((high - low).max())
    if not np.abs(middle).max() > _FAR * side or side == 0:
        return vertices, np.zeros(3)
    log.info("%s: lies %.6g from the origin, %.3g across; moved to the origin", path, float(np.linalg.norm(middle)), side)
    return vertices - middle, -middle


def _unwrapped(picture: Tensor, uvs: np.ndarray, own: list[slice], axis: int, wrap: str, path: Path) -> Tensor:
    """A texture (h, w, 4) that repeats in place of one that is clamped or mirrored along an axis, and its uvs (changed here).

    A mirrored texture and its mirror image repeat. A clamped one gets borders of its edges, as wide as the uvs need: what lies
    beyond them has no colour but the edge's, so that uvs end there.
    """
    values = np.concatenate([uvs[rows, axis] for rows in own])
    if wrap == REPEAT or not len(values) or not np.isfinite(values).all():
        return picture
    dim = 1 - axis  # u runs along columns
    texels = picture.shape[dim]
    low, high = float(values.min()), float(values.max())
    if low >= -_SLACK and high <= 1 + _SLACK:
        for rows in own:
            uvs[rows, axis] = uvs[rows, axis].clip(0, 1)
        return picture
    if wrap == MIRROR:
        for rows in own:
            uvs[rows, axis] /= 2
        return torch.cat([picture, picture.flip(dim)], dim)
    if low < -_BORDER or high > 1 + _BORDER:
        log.warning(
            "%s: a clamped texture is used from %.3g to %.3g; faces that cross more than its neighbourhood may look stretched",
            path, low, high,
        )  # fmt: skip
    before = round(min(max(-low, 0), _BORDER) * texels) + 1
    after = round(min(max(high - 1, 0), _BORDER) * texels) + 1
    first, last = picture.narrow(dim, 0, 1), picture.narrow(dim, texels - 1, 1)
    shape = [1, 1, 1]
    shape[dim] = before
    left = first.repeat(shape)
    shape[dim] = after
    whole = torch.cat([left, picture, last.repeat(shape)], dim)
    length = before + texels + after
    for rows in own:
        uvs[rows, axis] = ((uvs[rows, axis] * texels + before) / length).clip(0.5 / length, 1 - 0.5 / length)
    return whole


def welded(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (C, 3) -> (V, 3), (C,)
    """The different rows, and which of them each is."""
    inverse = keys[:, 0]
    for column in (1, 2):
        if keys[:, column].any():
            inverse = np.unique(inverse * (int(keys[:, column].max()) + 1) + keys[:, column], return_inverse=True)[1]
    _, first, inverse = np.unique(inverse, return_index=True, return_inverse=True)
    return keys[first], inverse


def lying_beside(path: Path, name: str) -> Path | None:
    """A file that the mesh names: as it says, or by its last part where it names a folder of another machine."""
    try:
        found = beside(path, name)
    except InputError:
        found = None
    return found or beside(path, name.replace("\\", "/").rstrip("/").split("/")[-1])
