"""Animated models as training data of the motion prior: surface points, what they follow, and matrices over time.

    python -m anchor4d.training.motion_clips LIST --files DIR --out clips.npz

LIST is a JSON list of glTF files with ``repo``, ``path``, ``commit``, ``category``, ``family`` and, of twins, ``twin_of``; DIR
holds each repository as it is at that commit, in a folder named ``owner+name``. Files are read by our own glTF reader.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.files import InputError
from ..core.io import gltf_parts as parts
from ..core.io.gltf import Entry, Gltf, local_matrix, trs_matrices

log = logging.getLogger(__name__)

#: Frames a second of what is kept.
RATE = 20
#: Surface points of a model.
POINTS = 1536
#: Clips that go farther are left out; the object's longest side is 1.
FARTHEST = 30.0
#: The most that a model's bones may be, after those that move nothing are left out.
BONES = 96


@dataclass
class Model:
    """A model at rest.

    Args:
        points, normals: of its surface, (P, 3), in the frames of what they follow.
        follows: four bones of each point, (P, 4).
        shares: their weights, (P, 4).
        bones: for each, its node, and its inverse bind matrix.
    """

    points: np.ndarray
    normals: np.ndarray
    follows: np.ndarray
    shares: np.ndarray
    bones: list[tuple[int, np.ndarray]]


def read_model(gltf: Gltf, generator: np.random.Generator) -> Model:
    """Points spread over the surface by area."""
    bones: list[tuple[int, np.ndarray]] = []
    number: dict[tuple[int, int], int] = {}
    vertices, faces, joints, weights, rest = [], [], [], [], []
    placed = list(gltf.placed())
    world = {index: matrix for index, _, matrix in placed}
    count = 0
    totals = {"vertices": 0, "faces": 0}
    for index, node, _ in placed:
        if "mesh" not in node:
            continue
        for primitive in gltf.item("meshes", node.whole("mesh")).entries("primitives"):
            shape = read_shape(gltf, primitive, totals)
            if shape is None or not len(shape.faces):
                continue
            if "skin" in node and shape.joints is not None and shape.weights is not None:
                skin = gltf.item("skins", node.whole("skin"))
                nodes = skin.indices("joints")
                inverse = np.tile(np.eye(4), (len(nodes), 1, 1))
                if "inverseBindMatrices" in skin:
                    inverse = gltf.floats(skin.whole("inverseBindMatrices"), "MAT4").reshape(-1, 4, 4).swapaxes(1, 2)
                key = node.whole("skin")
                own = np.array([number.setdefault((key, j), len(number)) for j in range(len(nodes))])
                for j, target in enumerate(nodes):
                    if own[j] == len(bones):
                        bones.append((target, inverse[j].astype(np.float64)))
                order = np.argsort(-shape.weights, -1)[:, :4]
                share = np.take_along_axis(shape.weights, order, -1).astype(np.float64)
                share[:, 0] += share.sum(-1) == 0
                follow = own[np.take_along_axis(shape.joints, order, -1).clip(0, len(nodes) - 1)]
            else:
                bone = number.setdefault((-1, index), len(number))
                if bone == len(bones):
                    bones.append((index, np.eye(4)))
                follow = np.full((len(shape.vertices), 4), bone)
                share = np.tile([1.0, 0, 0, 0], (len(shape.vertices), 1))
            share = share / share.sum(-1, keepdims=True)
            matrices = np.stack([world[n] @ b for n, b in bones])
            moving = np.einsum("vk,vkij->vij", share, matrices[follow])
            rest.append(np.einsum("vij,vj->vi", moving[:, :3, :3], shape.vertices) + moving[:, :3, 3])
            vertices.append(shape.vertices)
            faces.append(shape.faces.astype(np.int64) + count)
            joints.append(follow)
            weights.append(share)
            count += len(shape.vertices)
    if not count:
        raise InputError(f"{gltf.path}: no surface")
    points, at, follow, share = (np.concatenate(x) for x in (vertices, rest, joints, weights))
    triangles = np.concatenate(faces)
    corners = at[triangles]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(cross, axis=-1)
    # Evenly: one in each stretch of the area laid end to end.
    cuts = (np.arange(POINTS) + generator.random(POINTS)) / POINTS * area.sum()
    face = np.searchsorted(np.cumsum(area), cuts).clip(max=len(area) - 1)
    u, v = generator.random((2, POINTS))
    over = u + v > 1
    u[over], v[over] = 1 - u[over], 1 - v[over]
    bary = np.stack([1 - u - v, u, v], -1)
    dense = np.zeros((POINTS, len(bones)))
    for k in range(3):
        corner = triangles[face, k]
        for j in range(4):
            np.add.at(dense, (np.arange(POINTS), follow[corner, j]), bary[:, k] * share[corner, j])
    order = np.argsort(-dense, -1)[:, :4]
    kept = np.take_along_axis(dense, order, -1)
    if order.shape[1] < 4:
        pad = 4 - order.shape[1]
        order, kept = np.pad(order, ((0, 0), (0, pad))), np.pad(kept, ((0, 0), (0, pad)))
    kept /= kept.sum(-1, keepdims=True)
    own = points[triangles[face]]
    return Model(
        points=(own * bary[..., None]).sum(1),
        normals=np.cross(own[:, 1] - own[:, 0], own[:, 2] - own[:, 0]),
        follows=order,
        shares=kept,
        bones=bones,
    )


def read_shape(gltf: Gltf, primitive: Entry, totals: dict[str, int]) -> Any:
    """A primitive's geometry; its textures, often not there, are not looked for. None for what is not a surface."""
    value = {key: item for key, item in primitive.value.items() if key != "material"}
    bare = Entry(primitive.path, value, primitive.place)
    return None if parts._not_a_surface(gltf, bare) else parts._read_primitive(gltf, bare, (), 1, totals)


def sampled(gltf: Gltf, sampler: Entry, path: str, times: np.ndarray) -> np.ndarray:  # (F,) -> (F, C)
    """An animation's channel at given seconds."""
    keys = gltf.floats(sampler.whole("input"), "SCALAR")[:, 0].astype(np.float64)
    kind = "VEC4" if path == "rotation" else "VEC3"
    values = gltf.floats(sampler.whole("output"), kind, normalized=path == "rotation").astype(np.float64)
    mode = sampler.text("interpolation", "LINEAR")
    right = np.searchsorted(keys, times, side="right").clip(1, max(len(keys) - 1, 1))
    left = right - 1
    right = right.clip(max=len(keys) - 1)
    span = np.maximum(keys[right] - keys[left], 1e-9)
    f = ((times - keys[left]) / span).clip(0, 1)[:, None]
    if mode == "CUBICSPLINE":
        values = values.reshape(len(keys), 3, -1)
        a, b = values[left, 1], values[right, 1]
        out, into = values[left, 2] * span[:, None], values[right, 0] * span[:, None]
        result = (2 * f**3 - 3 * f**2 + 1) * a + (f**3 - 2 * f**2 + f) * out + (3 * f**2 - 2 * f**3) * b + (f**3 - f**2) * into
    elif mode == "STEP":
        result = np.where(f < 1, values[left], values[right])
    else:
        a, b = values[left], values[right]
        if path == "rotation":
            b = np.where((a * b).sum(-1, keepdims=True) < 0, -b, b)
        result = (1 - f) * a + f * b
    return result / np.linalg.norm(result, axis=-1, keepdims=True).clip(1e-9) if path == "rotation" else result


def clip_matrices(gltf: Gltf, animation: Entry, bones: list[tuple[int, np.ndarray]]) -> np.ndarray:  # -> (F, J, 3, 4)
    """Where an animation takes each bone."""
    channels: dict[int, dict[str, Entry]] = {}
    samplers = animation.entries("samplers")
    first, last = np.inf, 0.0
    for channel in animation.entries("channels"):
        target = channel.entry("target")
        path = target.text("path")
        if "node" not in target or path not in ("translation", "rotation", "scale"):
            continue
        sampler = samplers[channel.whole("sampler")]
        keys = gltf.floats(sampler.whole("input"), "SCALAR")[:, 0]
        first, last = min(first, float(keys[0])), max(last, float(keys[-1]))
        channels.setdefault(target.whole("node"), {})[path] = sampler
    frames = int((last - min(first, last)) * RATE) + 1
    times = min(first, last) + np.arange(frames) / RATE
    world: dict[int, np.ndarray] = {}
    stack = [(index, np.tile(np.eye(4), (frames, 1, 1))) for index in gltf.roots()]
    while stack:
        index, above = stack.pop()
        node = gltf.item("nodes", index)
        if index in channels:
            own = channels[index]
            parts = [
                sampled(gltf, own[path], path, times) if path in own else np.tile(node.numbers(path, rest), (frames, 1))
                for path, rest in (("translation", [0.0] * 3), ("rotation", [0.0, 0, 0, 1]), ("scale", [1.0] * 3))
            ]
            matrix = above @ trs_matrices(*parts)
        else:
            matrix = above @ local_matrix(node)
        world[index] = matrix
        stack += [(child, matrix) for child in node.indices("children")]
    return np.stack([world[node] @ inverse for node, inverse in bones], 1)[:, :, :3]


def pose(gltf: Gltf, index: int, time: float) -> None:
    """Puts the file's nodes where an animation has them at a time, seconds."""
    animation = gltf.all("animations")[index]
    samplers = animation.entries("samplers")
    for channel in animation.entries("channels"):
        target = channel.entry("target")
        path = target.text("path")
        if "node" in target and path in ("translation", "rotation", "scale"):
            values = sampled(gltf, samplers[channel.whole("sampler")], path, np.array([time]))
            value: dict[str, Any] = gltf.item("nodes", target.whole("node")).value
            value.pop("matrix", None)
            value[path] = [float(v) for v in values[0]]


def prepared(model: Model, clips: list[np.ndarray]) -> tuple[dict[str, np.ndarray], list[np.ndarray]] | None:
    """The model without bones that carry no point, in its first frame's size, and the clips of it that move."""
    used = np.unique(model.follows[model.shares > 1e-3])
    if len(used) > BONES:
        heavy = np.zeros(len(model.bones))
        np.add.at(heavy, model.follows.ravel(), model.shares.ravel())
        used = np.sort(np.argsort(-heavy)[:BONES])
    place = np.zeros(len(model.bones), np.int64)
    place[used] = np.arange(len(used))
    shares = np.where(np.isin(model.follows, used), model.shares, 0)
    shares[:, 0] += shares.sum(-1) < 1e-6
    shares /= shares.sum(-1, keepdims=True)
    follows = np.where(shares > 0, place[model.follows], 0)
    kept = []
    extent = None
    for matrices in clips:
        matrices = matrices[:, used]
        if len(matrices) < 6 or not np.isfinite(matrices).all():
            continue
        blend = np.einsum("pk,fpkij->fpij", shares, matrices[:: max(len(matrices) // 12, 1)][:, follows])
        moved = np.einsum("fpij,pj->fpi", blend[..., :3], model.points) + blend[..., 3]
        if extent is None:
            low, high = moved[0].min(0), moved[0].max(0)
            extent = (low + high) / 2, float((high - low).max())
        size = extent[1]
        if size <= 0:
            return None
        if np.linalg.norm(moved - moved[:1], axis=-1).max() < 0.02 * size:
            continue
        kept.append(matrices)
    if not kept or extent is None:
        return None
    centre, size = extent
    # Points in bones' frames are scaled to about 1, so that matrices of all models are of a size.
    unit = np.abs(model.points).max()
    normals = model.normals / np.linalg.norm(model.normals, axis=-1, keepdims=True).clip(1e-12)
    shape = {"points": model.points / unit, "normals": normals, "follows": follows, "shares": shares}
    scaled = []
    for matrices in kept:
        matrices = matrices.copy()
        matrices[..., 3] = (matrices[..., 3] - centre) / size
        matrices[..., :3] *= unit / size
        scaled.append(matrices)
    return shape, scaled


def checked_out(folder: Path, entry: dict[str, Any]) -> Path:
    """Where a file is."""
    return folder / entry["repo"].replace("/", "+") / entry["path"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("list", type=Path)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    about: list[dict[str, Any]] = []
    entries = json.loads(options.list.read_text())
    for entry in entries:
        try:
            path = checked_out(options.files, entry)
            gltf, source = Gltf(path), Gltf(path)
            if entry.get("kind") != "clips_only":
                pose(source, 0, 0.0)  # some files' resting pose is not one that is ever shown
            else:
                source = Gltf(checked_out(options.files, {**entry, "path": entry["mesh_from"].split(" ")[1]}))
            model = read_model(source, generator)
            bones = model.bones
            if entry.get("kind") == "clips_only":
                names = {node.text("name"): index for index, node in enumerate(gltf.all("nodes"))}
                bones = [(names.get(source.item("nodes", n).text("name"), -1), b) for n, b in bones]
                hips = next(n for n, _ in bones if n >= 0)
                bones = [(hips if n < 0 else n, b) for n, b in bones]
            clips = [clip_matrices(gltf, animation, bones) for animation in gltf.all("animations")]
        except (InputError, LookupError, ValueError) as error:
            log.warning("%s %s: left out, %s", entry["repo"], entry["path"], error)
            continue
        made = prepared(model, clips)
        if made is None:
            log.warning("%s %s: nothing moves", entry["repo"], entry["path"])
            continue
        shape, kept = made
        i = len(about)
        arrays[f"{i}.points"] = np.round(shape["points"] * 32000).astype(np.int16)
        arrays[f"{i}.normals"] = np.round(shape["normals"] * 127).astype(np.int8)
        arrays[f"{i}.follows"] = shape["follows"].astype(np.uint8)
        arrays[f"{i}.shares"] = np.round(shape["shares"] * 255).astype(np.uint8)
        kept = [m for m in kept if np.abs(m).max() < FARTHEST]
        if not kept:
            log.warning("%s %s: moves too far", entry["repo"], entry["path"])
            continue
        quantum = 32000 / max(np.abs(m).max() for m in kept)
        quantised = [np.round(m.reshape(len(m), -1) * quantum) for m in kept]
        arrays[f"{i}.quantum"] = np.array(quantum)
        # Differences between frames, which compress.
        arrays[f"{i}.matrices"] = np.concatenate([np.diff(q.astype(np.int64), axis=0, prepend=0) for q in quantised]).astype(
            np.int16
        )
        arrays[f"{i}.lengths"] = np.array([len(q) for q in quantised])
        seconds = sum(len(q) for q in quantised) / RATE
        about.append({k: entry[k] for k in ("repo", "path", "category", "family", "licence")} | {"seconds": seconds})
        log.info("%s: %d bones, %d clips, %.0f s", entry["path"], len(model.bones), len(quantised), seconds)
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez_compressed(options.out, allow_pickle=False, **arrays)
    log.info("%d models, %.0f s, %.1f MB", len(about), sum(a["seconds"] for a in about), options.out.stat().st_size / 1e6)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
