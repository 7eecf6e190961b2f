"""The demo's own sample: a small walking, waving creature made of simple parts, and its benchmark case.

Everything is computed here, so that the demo needs no files. The creature is rigid parts on joints with one procedural texture
atlas.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..cameras import FrontCamera, matrix_to_quaternion
from ..deformation import ControlNodes
from ..files import atomic_path
from ..io.meshes import write_glb
from ..mesh import Mesh
from ..render.mesh import render_mesh
from ..scene.scene import Scene4D

FRAMES = 14
FPS = 12.0
TEST_AZIMUTHS = (-75, 15, 105, 195)

#: The camera of the sample's driving video: no parameter is a default of the alignment.
CAMERA = FrontCamera(fovy=38.0, distance=2.35, width=256, height=256, cx=121.0, cy=133.5)

Color = tuple[float, float, float]
Shape = tuple[np.ndarray, np.ndarray, np.ndarray]  # vertices (V, 3), faces (F, 3), uvs (V, 2)
Texture = Callable[[np.ndarray, np.ndarray], np.ndarray]  # u, v in [0, 1] -> RGB; u = 0.5 is the front, v = 0 the top

_TILE, _MARGIN, _COLUMNS = 128, 8, 4


@dataclass(frozen=True)
class _Part:
    bone: str
    vertices: np.ndarray  # (V, 3) in the bone's frame
    faces: np.ndarray  # (F, 3)
    uvs: np.ndarray  # (V, 2) in the part's own tile
    texture: str


def sample_meshes(frames: int = FRAMES) -> list[Mesh]:
    """The creature at each frame of one walk cycle; frame ``frames`` would be frame 0 again.

    All share topology and texture. Frame 0 has longest side 1 and is centred on the origin; it faces +Z.
    """
    parts = _parts()
    names = sorted(_TEXTURES)
    atlas = torch.from_numpy(_atlas(names)).float()
    faces, uvs, offset = [], [], 0
    for part in parts:
        faces.append(part.faces + offset)
        uvs.append(_place(part.uvs, names.index(part.texture), atlas.shape))
        offset += len(part.vertices)
    faces = torch.from_numpy(np.concatenate(faces)).long()
    base = Mesh(
        vertices=torch.zeros(offset, 3),
        faces=faces,
        normals=None,
        uvs=torch.from_numpy(np.concatenate(uvs)).float(),
        vertex_colors=None,
        textures=(atlas,),
        face_texture=torch.zeros(len(faces), dtype=torch.long),
        face_color=torch.ones(len(faces), 4),
        face_alpha_cutoff=torch.zeros(len(faces)),
        name="sample",
    )
    posed = []
    for t in range(frames):
        bones = _bones(t / frames)
        points = [part.vertices @ bones[part.bone][:3, :3].T + bones[part.bone][:3, 3] for part in parts]
        posed.append(torch.from_numpy(np.concatenate(points)).float())
    _, matrix = replace(base, vertices=posed[0]).normalized()
    return [replace(base, vertices=vertices).transformed(matrix) for vertices in posed]


def sample_case(frames: int = FRAMES, size: int = 256, camera: FrontCamera = CAMERA) -> tuple[list[Mesh], dict[str, Tensor]]:
    """The meshes and their pictures, straight-alpha RGBA ``(T, size, size, 4)``: ``front`` and each test azimuth by its number.

    ``camera`` is scaled to ``size``.
    """
    meshes = sample_meshes(frames)
    azimuths = (0, *TEST_AZIMUTHS)
    cameras = camera.cameras(torch.tensor(azimuths, dtype=torch.float32)).resized(size, size)
    pictures = torch.empty(len(azimuths), frames, size, size, 4)
    for mesh, out in zip(meshes, pictures.unbind(1), strict=True):
        render = render_mesh(mesh, cameras, supersample=3)
        out[..., :3] = (render.color / render.alpha[..., None].clamp_min(1e-6)).clamp_(0, 1)
        out[..., 3] = render.alpha.clamp(0, 1)
    return meshes, {"front" if a == 0 else str(a): pictures[k] for k, a in enumerate(azimuths)}


def sample_scene(count: int = 8000, frames: int = FRAMES) -> Scene4D:
    """The walking creature as a scene without any fit: Gaussians on its surface, carried by its true motion."""
    from ..methods.stages import gaussians_on_mesh

    meshes = sample_meshes(frames)
    gaussians, faces = gaussians_on_mesh(meshes[0], count)
    field = ControlNodes.on_surface(gaussians, frames, mesh=meshes[0], faces=faces, loop=True)
    nearest = torch.cdist(field.node_positions, meshes[0].vertices).argmin(1)
    # The frame of a face at each node turns with its part.
    touching = torch.zeros(len(meshes[0].vertices), dtype=torch.long)
    touching[meshes[0].faces.flatten()] = torch.arange(len(meshes[0].faces)).repeat_interleave(3)
    corners = torch.stack([mesh.vertices[mesh.faces[touching[nearest]]] for mesh in meshes])  # (T, M, 3, 3)
    along = torch.nn.functional.normalize(corners[..., 1, :] - corners[..., 0, :], dim=-1)
    across = torch.nn.functional.normalize(torch.linalg.cross(along, corners[..., 2, :] - corners[..., 0, :]), dim=-1)
    pose = torch.stack([along, across, torch.linalg.cross(along, across)], -1)
    turn = pose @ pose[:1].mT
    quats = matrix_to_quaternion(turn)
    axis = quats[..., 1:]
    angle = 2 * torch.atan2(axis.norm(dim=-1, keepdim=True), quats[..., :1])
    place = torch.stack([mesh.vertices[nearest] for mesh in meshes])
    moved = place + (turn @ (field.node_positions - place[0])[..., None])[..., 0]
    with torch.no_grad():
        field.rotations.copy_(torch.nn.functional.normalize(axis, dim=-1) * angle)
        field.translations.copy_(moved - field.node_positions)
    return Scene4D(gaussians, field, frames=frames, fps=FPS, loop=True, front=CAMERA, surface=meshes[0])


def write_sample(folder: str | os.PathLike[str], frames: int = FRAMES, size: int = 256) -> Path:
    """Write the sample as a benchmark case: ``case.json``, ``front/NNN.png``, ``mesh.glb``, ``views/AZ/NNN.png``."""
    from PIL import Image

    meshes, pictures = sample_case(frames, size)
    scale = size / CAMERA.height
    case = {
        "name": "sample",
        "frames": frames,
        "fps": FPS,
        "image_size": size,
        "image": "straight-alpha RGBA, unlit base colour, sRGB",
        "world": "right-handed, +Y up, front +Z; camera at azimuth a: (d sin a, 0, d cos a), looking at the origin",
        "mesh": "object at frame 0, longest bounding-box side 1, centred on the origin",
        "camera": {
            "fovy_degrees": CAMERA.fovy,
            "distance": CAMERA.distance,
            "elevation": 0,
            "azimuth": 0,
            "cx": (CAMERA.cx or 0) * scale,
            "cy": (CAMERA.cy or 0) * scale,
        },
        "test_azimuths": list(TEST_AZIMUTHS),
        "loop": True,
        "licence": "Apache-2.0",
        "credit": "Anchor4D, generated",
    }
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        (temporary / "case.json").write_text(json.dumps(case, indent=1))
        write_glb(temporary / "mesh.glb", meshes[0])
        for name, frames_rgba in pictures.items():
            target = temporary / "front" if name == "front" else temporary / "views" / name
            target.mkdir(parents=True)
            for t, picture in enumerate((frames_rgba * 255).round().to(torch.uint8).numpy()):
                Image.fromarray(picture, "RGBA").save(target / f"{t:03d}.png")
    return Path(folder)


# Shapes. Units: the creature is about 1 high, feet at y = 0, facing +Z; its right hand is at -X.


def _lathe(radius: np.ndarray, height: np.ndarray, segments: int, depth: float = 1.0) -> Shape:
    """A surface of revolution about Y from top to bottom, z scaled by ``depth``; the texture's seam is at the back."""
    u = np.linspace(0, 1, segments + 1)
    angle = 2 * math.pi * (u - 0.5)
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(radius), np.diff(height)))])
    v = length / length[-1]
    x, z = radius[:, None] * np.sin(angle), depth * radius[:, None] * np.cos(angle)
    points = np.stack([x, np.broadcast_to(height[:, None], x.shape), z], -1).reshape(-1, 3)
    uv = np.stack(np.broadcast_arrays(u[None], v[:, None]), -1)
    i = np.arange(len(v) - 1)[:, None] * len(u) + np.arange(segments)
    a, b, c, d = i, i + 1, i + len(u), i + len(u) + 1
    quads = np.stack([np.stack([a, c, b], -1), np.stack([b, c, d], -1)], 2).reshape(-1, 3)
    corner, second, third = points[quads].transpose(1, 0, 2)
    area = np.linalg.norm(np.cross(second - corner, third - corner), axis=1)
    return points, quads[area > 1e-12], uv.reshape(-1, 2)


def _ellipsoid(rx: float, ry: float, rz: float, rings: int = 12, segments: int = 18) -> Shape:
    angle = np.linspace(0, math.pi, rings + 1)
    return _lathe(rx * np.sin(angle), ry * np.cos(angle), segments, rz / rx)


def _limb(top: float, bottom: float, length: float, segments: int = 14) -> Shape:
    """A tapered capsule that hangs from the origin down to y = -length."""
    angle = np.linspace(0, math.pi / 2, 5)
    radius = np.concatenate([top * np.sin(angle), bottom * np.cos(angle)])
    height = np.concatenate([top * np.cos(angle), -length - bottom * np.sin(angle)])
    return _lathe(radius, height, segments)


def _box(rx: float, ry: float, rz: float) -> Shape:
    """A rounded box: an ellipsoid in the fourth power norm."""
    points, faces, uvs = _ellipsoid(1, 1, 1, 12, 20)
    points = points / (np.abs(points) ** 4).sum(1, keepdims=True) ** 0.25
    return points * [rx, ry, rz], faces, uvs


def _parts() -> list[_Part]:
    made: list[_Part] = []

    def add(bone: str, texture: str, shape: Shape, at: tuple[float, float, float] = (0, 0, 0)) -> None:
        made.append(_Part(bone, shape[0] + at, shape[1], shape[2], texture))

    angle = np.linspace(0, math.pi, 15)
    body = 0.105 * np.sin(angle) * (1 + 0.28 * (1 - np.cos(angle)) / 2) + 0.035 * np.sin(angle) ** 4
    add("chest", "shirt", _lathe(body, 0.155 * np.cos(angle), 22, 0.88), (0, 0.115, 0))
    add("chest", "pack", _box(0.085, 0.095, 0.05), (0, 0.125, -0.125))
    add("head", "face", _ellipsoid(0.205, 0.175, 0.18, 18, 28), (0, 0.155, 0.01))
    add("head", "nose", _ellipsoid(0.024, 0.018, 0.018, 6, 10), (0, 0.118, 0.196))
    for side, s in (("right", -1), ("left", 1)):
        add(f"{side} ear", "ear", _ellipsoid(0.068, 0.075, 0.034, 10, 14), (0, 0.035, 0))
        add(f"{side} arm", "sleeve", _limb(0.045, 0.04, 0.105))
        add(f"{side} forearm", "fur", _limb(0.037, 0.034, 0.085))
        add(f"{side} forearm", "mitten", _ellipsoid(0.048, 0.054, 0.046, 10, 14), (0, -0.115, 0))
        add(f"{side} forearm", "mitten", _ellipsoid(0.018, 0.03, 0.018, 6, 8), (-s * 0.038, -0.098, 0.02))
        add(f"{side} thigh", "shorts", _limb(0.064, 0.055, 0.11))
        add(f"{side} shin", "fur", _limb(0.042, 0.038, 0.09))
        add(f"{side} shin", "boot", _ellipsoid(0.056, 0.046, 0.085, 10, 16), (0, -0.112, 0.028))
    add("tail", "tail", _limb(0.03, 0.045, 0.14))
    return made


# Motion: each bone's frame in the world.


def _bones(phase: float) -> dict[str, np.ndarray]:
    """Bone frames (4, 4) at ``phase`` in [0, 1) of the loop: one stride, two waves of the right hand."""
    w = 2 * math.pi * phase
    stride, bounce = math.sin(w), math.cos(2 * w)
    root = _move(0, 0.305 + 0.012 * bounce, 0) @ _turn("y", 5 * stride) @ _turn("z", 2.5 * math.cos(w))
    chest = root @ _move(0, 0.0, 0) @ _turn("x", 3) @ _turn("y", -9 * stride) @ _turn("z", -3.5 * math.cos(w))
    head = chest @ _move(0, 0.265, 0) @ _turn("y", 7 * stride) @ _turn("z", 6 * math.sin(w + 0.6)) @ _turn("x", 3 * bounce)
    bones = {"root": root, "chest": chest, "head": head}
    for side, s in (("right", -1), ("left", 1)):
        swing = s * stride
        lift = max(0.0, math.cos(w) * s)  # the knee bends while its leg comes forward
        ear = head @ _move(s * 0.135, 0.285, 0) @ _turn("z", -s * (24 + 5 * math.sin(2 * w + 0.8)))
        thigh = root @ _move(s * 0.072, 0.0, 0) @ _turn("x", -30 * swing - 8 * lift) @ _turn("z", s * 3)
        shin = thigh @ _move(0, -0.115, 0) @ _turn("x", 12 + 38 * lift)
        bones |= {f"{side} ear": ear, f"{side} thigh": thigh, f"{side} shin": shin}
    left = chest @ _move(0.118, 0.205, 0) @ _turn("z", 24) @ _turn("x", 34 * stride)
    bones |= {"left arm": left, "left forearm": left @ _move(0, -0.115, 0) @ _turn("x", -28 - 14 * stride)}
    right = chest @ _move(-0.118, 0.205, 0.01) @ _turn("z", -112 + 5 * math.sin(2 * w)) @ _turn("x", -14)
    bones |= {"right arm": right, "right forearm": right @ _move(0, -0.115, 0) @ _turn("z", -36 + 26 * math.sin(2 * w))}
    bones["tail"] = root @ _move(0, 0.02, -0.095) @ _turn("y", 22 * math.sin(w + 0.4)) @ _turn("x", 118)
    return bones


def _turn(axis: str, degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(4)
    matrix[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return matrix


def _move(x: float, y: float, z: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = x, y, z
    return matrix


# Textures: functions on a tile. A slight darkening downwards stands in for light.

_FUR, _CREAM, _DARK, _ROSE = (0.93, 0.60, 0.28), (1.0, 0.90, 0.74), (0.16, 0.13, 0.17), (0.96, 0.55, 0.52)
_NAVY, _WHITE, _TEAL, _MINT = (0.16, 0.24, 0.46), (0.97, 0.96, 0.92), (0.10, 0.50, 0.52), (0.55, 0.83, 0.74)
_RED, _GOLD, _BROWN = (0.83, 0.22, 0.20), (0.98, 0.79, 0.25), (0.60, 0.33, 0.16)


def _fill(u: np.ndarray, color: Color) -> np.ndarray:
    return np.broadcast_to(np.array(color), (*u.shape, 3)).copy()


def _paint(image: np.ndarray, cover: np.ndarray, color: Color) -> np.ndarray:
    return image + cover[..., None] * (np.array(color) - image)


def _disc(u: np.ndarray, v: np.ndarray, cu: float, cv: float, ru: float, rv: float) -> np.ndarray:
    return (np.clip(1 - np.hypot((u - cu) / ru, (v - cv) / rv), 0, None) * min(ru, rv) * _TILE).clip(0, 1)


def _shade(image: np.ndarray, v: np.ndarray, amount: float = 0.26) -> np.ndarray:
    return image * (1.04 - amount * np.clip(v, 0, 1) ** 1.5)[..., None]


def _face(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _fill(u, _FUR)
    back = np.abs(u - 0.5) > 0.27 + 0.03 * np.cos(12 * math.pi * v)
    image = _paint(image, (back & (v < 0.8)).astype(float), _BROWN)
    image = _paint(image, _disc(u, v, 0.5, 0.17, 0.035, 0.16), _BROWN)
    image = _paint(image, _disc(u, v, 0.5, 0.635, 0.13, 0.15), _CREAM)
    for s in (-1, 1):
        image = _paint(image, _disc(u, v, 0.5 + s * 0.105, 0.475, 0.052, 0.098), _WHITE)
        image = _paint(image, _disc(u, v, 0.5 + s * 0.099, 0.485, 0.037, 0.074), _DARK)
        image = _paint(image, _disc(u, v, 0.5 + s * 0.099 + 0.014, 0.455, 0.013, 0.024), _WHITE)
        image = _paint(image, _disc(u, v, 0.5 + s * 0.185, 0.60, 0.04, 0.045), _ROSE)
        image = _paint(image, _disc(u, v, 0.5 + s * 0.105, 0.345, 0.042, 0.02), _BROWN)
    smile = np.clip(1.6 - np.abs(v - (0.705 - 14 * (u - 0.5) ** 2)) * _TILE, 0, 1) * (np.abs(u - 0.5) < 0.062)
    return _shade(_paint(image, smile, _DARK), v)


def _shirt(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    stripes = np.clip(0.5 + 5 * np.sin(2 * math.pi * 6 * v), 0, 1)
    image = _paint(_fill(u, _WHITE), stripes, _NAVY)
    image = _paint(image, _disc(u, v, 0.5, 0.42, 0.105, 0.15), _GOLD)
    angle, radius = np.arctan2((u - 0.5) * 1.4, 0.42 - v), np.hypot((u - 0.5) * 1.4, v - 0.42)
    star = radius < 0.075 * (1 + 0.38 * np.cos(5 * angle))
    image = _paint(image, star.astype(float), _RED)
    return _shade(_paint(image, (v > 0.8).astype(float), _TEAL), v)


def _checker(a: Color, b: Color, columns: int, rows: int) -> Texture:
    return lambda u, v: _shade(_paint(_fill(u, a), ((np.floor(u * columns) + np.floor(v * rows)) % 2), b), v)


def _bands(a: Color, b: Color, rows: float, start: float = 0.0, amount: float = 0.2) -> Texture:
    def texture(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        cover = np.clip(0.5 + 4 * np.sin(2 * math.pi * rows * v), 0, 1) * (v >= start)
        return _shade(_paint(_fill(u, a), cover, b), v, amount)

    return texture


def _ear(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _shade(_paint(_fill(u, _FUR), _disc(u, v, 0.5, 0.5, 0.17, 0.3), _ROSE), v, 0.15)


def _boot(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _paint(_fill(u, _RED), (np.abs(v - 0.3) < 0.05).astype(float), _GOLD)
    return _paint(_shade(image, v), (v > 0.68).astype(float), _WHITE)


def _pack(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    image = _checker(_TEAL, _MINT, 12, 8)(u, v)
    back = np.minimum(u, 1 - u)  # the seam is the pack's outer face
    return _paint(image, _disc(back, v, 0.0, 0.5, 0.11, 0.2), _GOLD)


_TEXTURES: dict[str, Texture] = {
    "face": _face,
    "shirt": _shirt,
    "pack": _pack,
    "nose": lambda u, v: _paint(_fill(u, _DARK), _disc(u, v, 0.45, 0.3, 0.1, 0.15), (0.5, 0.47, 0.5)),
    "ear": _ear,
    "sleeve": _bands(_WHITE, _NAVY, 3.5),
    "fur": _bands(_FUR, _BROWN, 3.0, 0.55),
    "mitten": lambda u, v: _shade(_paint(_fill(u, _RED), (v < 0.25).astype(float), _GOLD), v),
    "shorts": _checker(_TEAL, _MINT, 8, 5),
    "boot": _boot,
    "tail": _bands(_FUR, _CREAM, 2.5, 0.3, 0.1),
}


def _atlas(names: list[str]) -> np.ndarray:  # (H, W, 4)
    """All textures in one picture; each tile goes on beyond its edge by a margin, so that filtering never mixes tiles."""
    cell = _TILE + 2 * _MARGIN
    at = (np.arange(cell) - _MARGIN + 0.5) / _TILE
    u, v = np.meshgrid(at, at)
    rows = -(-len(names) // _COLUMNS)
    atlas = np.ones((rows * cell, _COLUMNS * cell, 4))
    for k, name in enumerate(names):
        r, c = divmod(k, _COLUMNS)
        atlas[r * cell : (r + 1) * cell, c * cell : (c + 1) * cell, :3] = _TEXTURES[name](u, v).clip(0, 1)
    return atlas


def _place(uvs: np.ndarray, index: int, shape: torch.Size) -> np.ndarray:  # (V, 2)
    """Coordinates of a tile in the atlas."""
    cell, (r, c) = _TILE + 2 * _MARGIN, divmod(index, _COLUMNS)
    return (uvs * _TILE + _MARGIN + np.array([c, r]) * cell) / [shape[1], shape[0]]
