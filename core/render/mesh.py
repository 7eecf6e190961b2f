"""Rendering textured meshes: colour, alpha, depth and normal of a batch of cameras in one call, unlit, antialiased.

A z-buffer finds the face under each sample, then only what is visible is shaded. ``supersample``² samples a pixel lie on a
regular grid and are averaged, colour premultiplied. Two backends compute the same: PyTorch, on any device and the
reference, and numba on the CPU (``mesh_numba``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import Cameras
from ..mesh import Mesh, surface_color, surface_normal, texture_atlas

#: Nearer surface is not drawn, world units.
NEAR = 0.01
#: Candidate samples (a face's bounding rectangle each) that the PyTorch backend holds at a time.
_CHUNK = 1 << 22


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


@torch.no_grad()
def render_mesh(
    mesh: Mesh,
    cameras: Cameras,  # (C)
    background: Tensor | None = None,  # (3,) or (C, 3)
    *,
    supersample: int = 2,
    backend: str = "auto",
    near: float = NEAR,
) -> MeshRender:
    """Draws ``mesh`` from each camera, both sides of its faces, on the mesh's device.

    ``supersample``: samples per pixel side; 1 leaves hard edges. ``backend``: "auto", "numba" or "torch".

    Raises:
        ValueError: for cameras that are not one batch dimension, an unknown backend, or numba where it cannot run.
    """
    if len(cameras.batch) != 1:
        raise ValueError(f"render_mesh: cameras need one batch dimension, not {cameras.batch}")
    if supersample < 1:
        raise ValueError(f"render_mesh: supersample must be at least 1, not {supersample}")
    device = mesh.vertices.device
    cameras = cameras.to(device)
    if backend not in ("auto", "torch"):
        raise ValueError(f"render_mesh: unknown backend {backend!r}, choose auto, numba or torch")
    images = [_render_torch(mesh, cameras[i : i + 1], supersample, near) for i in range(len(cameras))]
    color, alpha, depth, normal = (torch.stack(x) for x in zip(*images))
    if background is not None:
        background = background.to(color).reshape(-1, 1, 1, 3)
        color = color + (1 - alpha[..., None]) * background
    return MeshRender(color, alpha, depth, normal)


def _render_torch(mesh: Mesh, camera: Cameras, supersample: int, near: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colour premultiplied, alpha, depth and normal of one camera."""
    height, width = camera.height * supersample, camera.width * supersample
    camera = camera.resized(width, height)
    pose, K = camera.world_to_camera[0], camera.K[0]
    points = mesh.vertices @ pose[:3, :3].T + pose[:3, 3]  # (V, 3) OpenCV camera frame
    nearest = _visible_faces(mesh, points, K, width, height, near)  # (h * w,) face or -1
    covered = (nearest >= 0).nonzero()[:, 0]
    face = nearest[covered]
    rays = _rays(covered, K, width)
    barycentric, depth, determinant = _intersect(points[mesh.faces[face]], rays)
    color = surface_color(mesh, face, barycentric, _texture_level(mesh, face, depth, determinant, K))[:, :3]
    normal = surface_normal(mesh, face, barycentric) * -determinant.sign()[:, None]
    samples = torch.zeros(height * width, 8, device=points.device)
    samples[covered] = torch.cat([color, torch.ones_like(depth)[:, None], depth[:, None], normal], -1)
    pixels = samples.reshape(camera.height // supersample, supersample, -1, supersample, 8).mean((1, 3))
    color, alpha, depth, normal = pixels.split([3, 1, 1, 3], -1)
    return (
        color,
        alpha[..., 0],
        torch.where(alpha > 0, depth / alpha.clamp_min(1e-9), 0)[..., 0],
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


def _texture_level(mesh: Mesh, face: Tensor, depth: Tensor, determinant: Tensor, K: Tensor) -> Tensor | None:
    """Texture level whose texels are nearest to a sample's size on the surface, by area.

    A sample covers z^3 / (|n . p| fx fy) of a plane at distance n . p, where n . p = z n . ray; so it covers
    ``A z^2 / (|det| fx fy)`` texels, A being the face's parallelogram in texels and det that of :func:`_intersect`.
    """
    if mesh.uvs is None or not mesh.textures:
        return None
    atlas = texture_atlas(mesh.textures)
    a, b, c = mesh.uvs[mesh.faces[face]].unbind(1)
    (ux, uy), (vx, vy) = (b - a).unbind(-1), (c - a).unbind(-1)
    size = atlas.table[mesh.face_texture[face].clamp_min(0), 0, 1:].prod(-1)
    texels = (ux * vy - uy * vx).abs() * size * depth**2 / (determinant.abs() * (K[0, 0] * K[1, 1]).abs())
    return (0.5 * texels.clamp_min(1).log2()).round().long()


def _visible_faces(mesh: Mesh, points: Tensor, K: Tensor, width: int, height: int, near: float) -> Tensor:  # (h * w,)
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
    area = _cross(xy[:, 1] - xy[:, 0], xy[:, 2] - xy[:, 0])
    count = size.prod(-1) * (area != 0)
    ends = count.cumsum(0)
    # Nearest wins, then the smaller index: 1 / z as an integer of the same order, above the negated index.
    best = torch.full((height * width,), -1, dtype=torch.int64, device=points.device)
    start = 0
    while start < len(count):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(torch.searchsorted(ends, before + _CHUNK, right=True)), start + 1)
        triangle = torch.repeat_interleave(torch.arange(start, stop, device=points.device), count[start:stop])
        rank = torch.arange(len(triangle), device=points.device) + before - (ends - count)[triangle]
        x = rank % size[triangle, 0] + low[triangle, 0].long()
        y = torch.div(rank, size[triangle, 0], rounding_mode="floor") + low[triangle, 1].long()
        centre = torch.stack([x, y], -1) + 0.5
        p = xy[triangle] - centre[:, None]
        weight = torch.stack([_cross(p[:, i - 2], p[:, i - 1]) for i in range(3)], -1) * area[triangle, None].sign()
        inside = (weight >= 0).all(-1)
        triangle, weight, sample = triangle[inside], weight[inside], (y * width + x)[inside]
        nearness = (weight * inverse_z[triangle]).sum(-1) / weight.sum(-1)
        face = owner[triangle]
        solid = _solid(mesh, points, face, sample, K, width)
        face, sample, nearness = face[solid], sample[solid], nearness[solid]
        key = (nearness.view(torch.int32).long() << 32) | (0xFFFFFFFF - face)
        best.scatter_reduce_(0, sample, key, "amax")
        start = stop
    return torch.where(best >= 0, 0xFFFFFFFF - (best & 0xFFFFFFFF), -1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _solid(mesh: Mesh, points: Tensor, face: Tensor, sample: Tensor, K: Tensor, width: int) -> Tensor:
    """Where the faces' alpha leaves surface at the samples, as indices."""
    cutoff = mesh.face_alpha_cutoff[face]
    solid = torch.ones_like(face, dtype=torch.bool)
    masked = (cutoff > 0).nonzero()[:, 0]
    if len(masked):
        face = face[masked]
        barycentric, depth, determinant = _intersect(points[mesh.faces[face]], _rays(sample[masked], K, width))
        color = surface_color(mesh, face, barycentric, _texture_level(mesh, face, depth, determinant, K))
        solid[masked] = color[:, 3] >= cutoff[masked]
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
