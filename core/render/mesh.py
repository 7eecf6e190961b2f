"""Rendering textured meshes: colour, alpha, depth and normal of a batch of cameras in one call, unlit, antialiased.

A z-buffer finds the face under each sample, then only what is visible is shaded. A pixel has ``supersample``² samples on a
regular grid; the covered ones are averaged in linear light, as a camera would. Three backends compute the same: PyTorch, on
any device and the reference, numba on the CPU, and our own kernels on graphics cards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras
from ..files import InputError
from ..mesh import Mesh, decoded, linear_to_srgb, surface_light, surface_normal, texture_atlas
from ..progress import pulse
from . import numba_support
from .nvrtc import mesh_backend as nvrtc

#: Nearer surface is not drawn, world units.
NEAR = 0.01
#: Candidate samples (a face's bounding rectangle each) that the PyTorch backend holds at a time.
_CHUNK = 1 << 22


#: Meshes that have been looked at.
_finite: WeakSet[Mesh] = WeakSet()


@dataclass(frozen=True)
class MeshRender:
    """Pictures of a mesh.

    Args:
        color: sRGB; premultiplied with alpha where no background was given, else composited.
        alpha: covered fraction of the pixel.
        depth: mean distance along the viewing axis of the pixel's covered samples, world units, 0 where empty.
        normal: mean world normal of the covered samples on the camera's side, unit, or 0 where empty.
    """

    color: Tensor  # (C, H, W, 3)
    alpha: Tensor  # (C, H, W)
    depth: Tensor  # (C, H, W)
    normal: Tensor  # (C, H, W, 3)


_card: ContextVar[torch.device | None] = ContextVar("card that draws meshes of the CPU", default=None)
_copies: WeakKeyDictionary[Mesh, Mesh] = WeakKeyDictionary()


@contextmanager
def drawing_on(device: torch.device | str) -> Iterator[None]:
    """Within it, meshes on the CPU are drawn by a graphics card's own kernels, where it has them; the pictures come back."""
    device = torch.device(device)
    token = _card.set(device if nvrtc.available(device) else None)
    try:
        yield
    finally:
        _card.reset(token)


@torch.no_grad()
def render_mesh(
    mesh: Mesh,
    cameras: Cameras,  # (C)
    background: Tensor | None = None,  # (3,) or (C, 3)
    *,
    supersample: int = 2,
    mipmaps: bool = True,
    backend: str = "auto",
    near: float = NEAR,
) -> MeshRender:
    """Draws ``mesh`` from each camera, both sides of its faces, on the mesh's device.

    ``supersample``: samples per pixel side; 1 leaves hard edges. ``mipmaps``: textures finer than the samples are averaged
    (nearer to the true picture at any number of samples) instead of hit at points. ``backend``: "auto", "nvrtc", "numba" or
    "torch".

    Raises:
        InputError: for an unknown backend, or one that cannot run.
        ValueError: for cameras that are not one batch dimension, no samples, or values that are not finite.
    """
    if mesh.vertices.device.type != "cuda":  # there it may be recorded, and takes little
        pulse()
    if len(cameras.batch) != 1:
        raise ValueError(f"render_mesh: cameras need one batch dimension, not {cameras.batch}")
    if supersample < 1:
        raise ValueError(f"render_mesh: supersample must be at least 1, not {supersample}")
    device, card = mesh.vertices.device, _card.get()
    if card is not None and device.type == "cpu" and backend == "auto":
        if mesh not in _copies:
            _copies[mesh] = mesh.to(card)
        behind = None if background is None else background.to(card)
        there = render_mesh(_copies[mesh], cameras.to(card), behind, supersample=supersample, mipmaps=mipmaps, near=near)
        return MeshRender(there.color.cpu(), there.alpha.cpu(), there.depth.cpu(), there.normal.cpu())
    if device.type != "cuda" or mesh not in _finite:  # of a mesh on a card once, so that nobody waits for the card
        cameras = cameras.to(device, torch.float32)
        finite = [x.isfinite().all() for x in (cameras.world_to_camera, cameras.K, mesh.vertices)]
        if not torch.stack(finite).all():
            raise ValueError("render_mesh: cameras and vertices must be finite numbers")
        _finite.add(mesh)
    cameras = cameras.to(device).to(torch.float32)
    if background is not None:
        background = background.to(device, torch.float32).expand(len(cameras), 3)
    backend = resolve_backend(backend, device)
    if backend == "nvrtc":
        return MeshRender(*nvrtc.render(mesh, cameras, background, supersample, mipmaps, near, _face_texels))
    if backend == "numba":
        return _render_numba(mesh, cameras, background, supersample, mipmaps, near)
    images = [_render_torch(mesh, cameras[i : i + 1], supersample, mipmaps, near) for i in range(len(cameras))]
    color, alpha, depth, normal = (torch.stack(x) for x in zip(*images))
    if background is not None:
        color = color + (1 - alpha[..., None]) * background[:, None, None]
    return MeshRender(color, alpha, depth, normal)


def resolve_backend(name: str, device: torch.device | str = "cpu") -> str:
    """The backend that draws meshes on a device: "auto" is nvrtc on a graphics card, numba on a CPU that has it, else torch.

    Raises:
        InputError: for an unknown name, or a backend that cannot run there.
    """
    if name not in ("auto", "nvrtc", "numba", "torch"):
        raise InputError(f"mesh renderer {name!r}: unknown, choose auto, nvrtc, numba or torch")
    device = torch.device(device)
    problems = {"nvrtc": lambda: nvrtc.why_not(device), "numba": lambda: _numba_problem(device), "torch": lambda: ""}
    if name == "auto":
        return next(x for x, problem in problems.items() if not problem())
    if problem := problems[name]():
        raise InputError(f"mesh renderer {name!r}: {problem}, choose auto")
    return name


def _numba_problem(device: torch.device) -> str:
    if device.type != "cpu":
        return "draws on the CPU only"
    kernels = numba_support.load(_KERNELS)
    return kernels if isinstance(kernels, str) else ""


# --- numba --------------------------------------------------------------------------------------------------------------

_KERNELS = __package__ + ".mesh_numba"  # type: ignore[operator]
_surfaces: WeakKeyDictionary[Mesh, tuple[Any, ...]] = WeakKeyDictionary()


def _surface(mesh: Mesh) -> tuple[Any, ...]:
    """What the kernel reads of a mesh beside its vertices, made once: normals, cutoffs and the material of its faces."""
    if mesh not in _surfaces:
        atlas = texture_atlas(mesh.textures)
        texture = mesh.face_texture if mesh.uvs is not None else torch.full_like(mesh.face_texture, -1)
        _surfaces[mesh] = (
            _array(mesh.normals, 3),
            _array(mesh.face_alpha_cutoff),
            (
                mesh.faces.int().numpy(),
                _array(mesh.uvs, 2),
                _array(None if mesh.vertex_colors is None else decoded(mesh.vertex_colors), 4),
                _array(decoded(mesh.face_color)),
                texture.int().numpy(),
                _array(_face_texels(mesh)),
                _array(atlas.texels),
                atlas.table.numpy(),
                atlas.levels.numpy(),
            ),
        )
    return _surfaces[mesh]


def _array(tensor: Tensor | None, width: int = 0) -> np.ndarray:
    return np.zeros((0, width), np.float32) if tensor is None else tensor.detach().float().contiguous().numpy()


def _render_numba(
    mesh: Mesh, cameras: Cameras, background: Tensor | None, supersample: int, mipmaps: bool, near: float
) -> MeshRender:
    count, height, width = len(cameras), cameras.height, cameras.width
    normals, cutoffs, surface = _surface(mesh)
    if not mipmaps:
        surface = (*surface[:5], np.zeros_like(surface[5]), *surface[6:])
    cameras = cameras.resized(width * supersample, height * supersample)
    pose = cameras.world_to_camera
    rays = (pose[:, :3, :3].transpose(-1, -2) @ torch.linalg.inv(cameras.K)).transpose(-1, -2)
    color, alpha = torch.empty(count, height, width, 3), torch.empty(count, height, width)
    normal, depth = torch.empty_like(color), torch.empty_like(alpha)
    if background is None:
        background = torch.zeros(count, 3)
    with numba_support.running() as threads:
        bands = min(max(-(-2 * threads // count), 1) if threads > 1 else 1, height)
        sys.modules[_KERNELS].draw(
            _array(mesh.vertices), normals, cutoffs, surface,
            _array(pose[:, :3]), _array(cameras.K), _array(cameras.positions), _array(rays),
            np.float32(near), _array(background), supersample, bands,
            color.numpy(), alpha.numpy(), depth.numpy(), normal.numpy(),
        )  # fmt: skip
    return MeshRender(color, alpha, depth, normal)


# --- PyTorch ------------------------------------------------------------------------------------------------------------


def _render_torch(
    mesh: Mesh, camera: Cameras, supersample: int, mipmaps: bool, near: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colour premultiplied, alpha, depth and normal of one camera."""
    height, width = camera.height * supersample, camera.width * supersample
    camera = camera.resized(width, height)
    pose, K = camera.world_to_camera[0], camera.K[0]
    texels = _face_texels(mesh) if mipmaps else None
    points = mesh.vertices @ pose[:3, :3].T + pose[:3, 3]  # (V, 3) OpenCV camera frame
    nearest = _visible_faces(mesh, points, texels, K, width, height, near)  # (h * w,) face or -1
    covered = (nearest >= 0).nonzero()[:, 0]
    face = nearest[covered]
    rays = _rays(covered, K, width)
    barycentric, depth, determinant = _intersect(points[mesh.faces[face]], rays)
    light = surface_light(mesh, face, barycentric, _texture_level(texels, face, depth, determinant, K))[:, :3]
    normal = surface_normal(mesh, face, barycentric) * determinant.sign()[:, None]
    samples = torch.zeros(height * width, 8, device=points.device)
    samples[covered] = torch.cat([light, torch.ones_like(depth)[:, None], depth[:, None], normal], -1)
    pixels = samples.reshape(camera.height // supersample, supersample, -1, supersample, 8).mean((1, 3))
    light, alpha, depth, normal = pixels.split([3, 1, 1, 3], -1)
    covered = alpha.clamp_min(1e-9)
    return (
        linear_to_srgb(light / covered) * alpha,
        alpha[..., 0],
        (depth / covered)[..., 0],
        torch.nn.functional.normalize(normal, dim=-1),
    )


def _rays(sample: Tensor, K: Tensor, width: int) -> Tensor:  # (N,) flat index -> (N, 3), z = 1
    x, y = sample % width + 0.5, torch.div(sample, width, rounding_mode="floor") + 0.5
    v = (y - K[1, 2]) / K[1, 1]
    u = (x - K[0, 2] - K[0, 1] * v) / K[0, 0]
    return torch.stack([u, v, torch.ones_like(u)], -1)


def _intersect(corners: Tensor, rays: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (N, 3, 3), (N, 3)
    """Barycentric coordinates (N, 3), depth (N,) and -ray . (e1 x e2) (N,) of rays from the origin with their faces' planes."""
    a, b, c = corners.unbind(1)
    e1, e2 = b - a, c - a
    p = torch.linalg.cross(rays, e2)
    determinant = (e1 * p).sum(-1)
    inverse = 1 / determinant
    u = -(a * p).sum(-1) * inverse
    q = torch.linalg.cross(e1, a)
    v = (rays * q).sum(-1) * inverse
    depth = (e2 * q).sum(-1) * inverse
    # A sample on a rim may lie a rounding error outside of its face.
    barycentric = torch.stack([1 - u - v, u, v], -1).clamp(0, 1)
    return barycentric / barycentric.sum(-1, keepdim=True), depth, determinant


def _face_texels(mesh: Mesh) -> Tensor:  # (F,)
    """Area in texels of the parallelogram that a face's edges span in its texture, 0 where it has none."""
    if mesh.uvs is None or not mesh.textures:
        return torch.zeros_like(mesh.face_alpha_cutoff)
    a, b, c = mesh.uvs[mesh.faces].unbind(1)
    size = texture_atlas(mesh.textures).table[mesh.face_texture.clamp_min(0), 0, 1:].prod(-1)
    return _cross(b - a, c - a).abs() * size * (mesh.face_texture >= 0)


def _texture_level(texels: Tensor | None, face: Tensor, depth: Tensor, determinant: Tensor, K: Tensor) -> Tensor | None:
    """The finest texture level of which a sample covers less than four texels.

    A sample covers z^3 / (|n . p| fx fy) of a plane at distance n . p, where n . p = z n . ray; so it covers
    ``A z^2 / (|det| fx fy)`` texels, A being the face's parallelogram in texels and det that of :func:`_intersect`. Measured
    on textured models, a level coarser or finer than this one is further from the picture of many samples.
    """
    if texels is None:
        return None
    covered = texels[face] * depth**2 / (determinant.abs() * (K[0, 0] * K[1, 1]).abs())
    return (0.5 * covered.clamp_min(1).log2()).floor().long()


def _visible_faces(
    mesh: Mesh, points: Tensor, texels: Tensor | None, K: Tensor, width: int, height: int, near: float
) -> Tensor:  # (h * w,)
    """Index of the nearest face at each sample, -1 where there is none."""
    corners, owner = _clipped(points, mesh.faces, near)
    homogeneous = corners @ K.T
    xy = homogeneous[..., :2] / homogeneous[..., 2:]  # (T, 3, 2)
    inverse_z = 1 / corners[..., 2]
    # The rectangle of sample centres (i + 0.5) inside the face's bounds.
    limit = xy.new_tensor([width, height])
    low = torch.minimum((xy.amin(1) - 0.5).ceil().clamp_min(0), limit)
    high = torch.minimum((xy.amax(1) - 0.5).floor(), limit - 1)
    size = (high - low + 1).clamp_min(0).nan_to_num(0).long()
    a, b = xy[:, 1] - xy[:, 0], xy[:, 2] - xy[:, 0]
    area = _cross(a, b)
    count = size.prod(-1) * (area != 0)
    ends = count.cumsum(0)
    # Barycentrics of the second and third corner and 1 / z are linear: gradients, and values at the rectangle's first sample.
    gradient = torch.stack([b[:, 1], -b[:, 0], -a[:, 1], a[:, 0]], -1).unflatten(-1, (2, 2)) / area[:, None, None]
    steps = inverse_z[:, 1:] - inverse_z[:, :1]
    gradient = torch.cat([gradient, (steps[..., None] * gradient).sum(1, keepdim=True)], 1)  # (T, 3, 2)
    origin = ((low + 0.5 - xy[:, 0])[:, None] * gradient).sum(-1)
    origin[:, 2] += inverse_z[:, 0]
    linear = torch.cat([origin, gradient.flatten(1)], -1)  # (T, 9)
    # Nearest wins, then the smaller index: 1 / z as an integer of the same order, above the negated index.
    best = torch.full((height * width,), -1, dtype=torch.int64, device=points.device)
    start = 0
    while start < len(count):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(torch.searchsorted(ends, before + _CHUNK, right=True)), start + 1)
        triangle = torch.repeat_interleave(torch.arange(start, stop, device=points.device), count[start:stop])
        rank = torch.arange(before, before + len(triangle), device=points.device) - (ends - count)[triangle]
        row = torch.div(rank, size[triangle, 0], rounding_mode="floor")
        column = rank - row * size[triangle, 0]
        u, v, nearness, ux, uy, vx, vy, wx, wy = linear[triangle].unbind(-1)
        u, v = u + column * ux + row * uy, v + column * vx + row * vy
        inside = ((u >= 0) & (v >= 0) & (u + v <= 1)).nonzero()[:, 0]
        nearness = (nearness + column * wx + row * wy)[inside]
        triangle = triangle[inside]
        corner = low[triangle].long()
        sample = (row[inside] + corner[:, 1]) * width + column[inside] + corner[:, 0]
        face = owner[triangle]
        if bool((mesh.face_alpha_cutoff > 0).any()):
            solid = _solid(mesh, points, texels, face, sample, K, width)
            face, sample, nearness = face[solid], sample[solid], nearness[solid]
        key = (nearness.view(torch.int32).long() << 32) | (0xFFFFFFFF - face)
        best.scatter_reduce_(0, sample, key, "amax")
        start = stop
    return torch.where(best >= 0, 0xFFFFFFFF - (best & 0xFFFFFFFF), -1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _solid(
    mesh: Mesh, points: Tensor, texels: Tensor | None, face: Tensor, sample: Tensor, K: Tensor, width: int
) -> Tensor:  # (M,)
    """Where the faces' alpha leaves surface at the samples, as indices."""
    cutoff = mesh.face_alpha_cutoff[face]
    solid = torch.ones_like(face, dtype=torch.bool)
    masked = (cutoff > 0).nonzero()[:, 0]
    if len(masked):
        face = face[masked]
        barycentric, depth, determinant = _intersect(points[mesh.faces[face]], _rays(sample[masked], K, width))
        light = surface_light(mesh, face, barycentric, _texture_level(texels, face, depth, determinant, K))
        solid[masked] = light[:, 3] >= cutoff[masked]
    return solid


def _clipped(points: Tensor, faces: Tensor, near: float) -> tuple[Tensor, Tensor]:  # (T, 3, 3), (T,)
    """Corners of the faces' parts beyond the near plane, in the camera frame, and the face each belongs to."""
    corners = points[faces]
    front = corners[..., 2] > near
    count = front.sum(-1)
    whole = (count == 3).nonzero()[:, 0]
    pieces, owners = [corners[whole]], [whole]
    for kept in (1, 2):
        face = (count == kept).nonzero()[:, 0]
        if not len(face):
            continue
        # Turn the odd corner, alone on its side of the plane, to the first place.
        odd = (front[face] == (kept == 1)).long().argmax(-1)
        turn = (torch.arange(3, device=points.device) + odd[:, None]) % 3
        a, b, c = corners[face].gather(1, turn[..., None].expand(-1, -1, 3)).unbind(1)
        ab = a + (b - a) * ((near - a[:, 2]) / (b[:, 2] - a[:, 2]))[:, None]
        ac = a + (c - a) * ((near - a[:, 2]) / (c[:, 2] - a[:, 2]))[:, None]
        new = [(a, ab, ac)] if kept == 1 else [(ab, b, c), (ab, c, ac)]
        pieces += [torch.stack(t, 1) for t in new]
        owners += [face] * len(new)
    return torch.cat(pieces), torch.cat(owners)
