"""The surface of a scene, and points of it carried through time by the scene's motion."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cameras import orbit
from ..files import InputError
from ..gaussians import Gaussians
from ..mesh import Mesh
from ..packages import problem
from ..progress import pulse
from ..render import rasterize
from .object3d import SplatObject
from .scene import Scene4D
from .views import FrameProgress

#: Views that an extracted surface is fused from, their size in pixels, and how far they stand off a unit object.
_VIEWS, _PIXELS, _DISTANCE = 48, 320, 3.0
#: Fewer views that look at or past a place do not make it outside.
_AGREEING = 3
#: Fainter Gaussians make no surface.
_SOLID = 0.3
#: Neighbours that carry a point; fainter Gaussians carry nothing.
_NEIGHBOURS, _FAINT = 16, 0.05
#: Vertices times times that are carried at once.
_CHUNK = 1 << 18


@torch.no_grad()
def scene_surface(scene: Scene4D, *, resolution: int = 128, backend: str = "auto") -> Mesh:
    """The canonical object's mesh with colours: the one the scene keeps, else one made from its Gaussians.

    A kept mesh without colours takes those of the Gaussians as vertex colours.

    Args:
        resolution: cells of a made mesh along the object's longest side.
        backend: rasteriser, for making one.

    Raises:
        InputError: where a mesh must be made, but scikit-image is missing or the Gaussians have no surface.
    """
    if scene.surface is None:
        return extract_surface(scene.gaussians, resolution=resolution, backend=backend)
    mesh = scene.surface
    return mesh if mesh.has_color else replace(mesh, vertex_colors=vertex_colors(scene.gaussians, mesh.vertices))


@torch.no_grad()
def surface_at(scene: Scene4D, tau: float, *, resolution: int = 128, backend: str = "auto") -> Mesh:
    """The scene's mesh at a moment: :func:`scene_surface` carried there, normals anew where it has its own.

    Args:
        tau: the moment in [0, 1].
        resolution: cells of a made mesh along the object's longest side.
        backend: rasteriser, for making one.

    Raises:
        InputError: as :func:`scene_surface` and :func:`carry` do.
    """
    mesh = scene_surface(scene, resolution=resolution, backend=backend)
    vertices = carry(scene, mesh.vertices, torch.tensor([tau]))[0].to(mesh.vertices)
    normals = None if mesh.normals is None else vertex_normals(mesh, vertices)
    return replace(mesh, vertices=vertices, normals=normals)


@torch.no_grad()
def extract_surface(gaussians: Gaussians, *, resolution: int = 128, backend: str = "auto") -> Mesh:
    """A closed mesh with vertex colours around Gaussians (N, ...).

    Depth maps all around are fused into a truncated signed distance (Curless and Levoy 1996): what no view sees is inside, so
    that a thin shell of Gaussians becomes one surface, not two. Small islands and cavities are left out.

    Args:
        resolution: cells along the object's longest side; more = finer and larger.

    Raises:
        InputError: without scikit-image, or where there is no surface.
    """
    if reason := problem("skimage.measure"):
        raise InputError(
            f"surface: this scene has no mesh of its own, and making one takes scikit-image, which {reason}; "
            "run: pip install scikit-image"
        )
    from scipy.ndimage import gaussian_filter
    from skimage.measure import marching_cubes

    item, matrix = SplatObject.of(gaussians.detach().to("cpu", torch.float32), "scene").normalized()
    low, high = item.bounding.amin(0), item.bounding.amax(0)
    cell = 1 / resolution
    counts = ((high - low) / cell).ceil().long() + 7
    axes = [low[k] + cell * (torch.arange(int(counts[k])) - 3) for k in range(3)]
    volume = gaussian_filter(_distances(item.gaussians, axes, 3 * cell, backend).numpy(), 0.6)
    if not (volume < 0).any() or not (volume > 0).any():
        raise InputError("surface: these Gaussians are too thin or too transparent for a mesh; export them as splats instead")
    pulse()
    found: Any = marching_cubes(volume, 0.0, gradient_direction="descent")  # by the right-hand rule
    faces = _islands(found[0], found[1].astype(np.int64))
    pulse()
    used, faces = np.unique(faces, return_inverse=True)
    points = torch.stack([axis[0] for axis in axes]) + cell * torch.from_numpy(found[0][used].copy())
    colors = vertex_colors(item.gaussians, points)
    mesh = Mesh(points, torch.from_numpy(faces.reshape(-1, 3)), vertex_colors=colors, name="surface")
    return mesh.transformed(torch.linalg.inv(matrix.double()).float())


@torch.no_grad()
def vertex_colors(gaussians: Gaussians, points: Tensor, k: int = 8) -> Tensor:  # (V, 3) -> (V, 4) sRGB
    """Colours at points: those of the nearest Gaussians, weighted by how dense and opaque each is there."""
    from scipy.spatial import KDTree

    seen = gaussians.select(gaussians.opacities >= min(_FAINT, float(gaussians.opacities.max())))
    tree: Any = KDTree(seen.means.cpu().numpy())
    distance, index = tree.query(points.cpu().numpy(), k=min(k, len(seen)))
    index = torch.from_numpy(index.reshape(len(points), -1)).to(points.device)
    distance = torch.from_numpy(distance.reshape(len(points), -1)).to(points)
    width = seen.scales[index].mean(-1).clamp_min(1e-9)
    weight = seen.opacities[index] * (-0.5 * (distance / width).square()).clamp_min(-30).exp()
    color = (seen.colors[index] * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
    return torch.cat([color.clamp(0, 1), torch.ones_like(color[:, :1])], -1)


def vertex_normals(mesh: Mesh, vertices: Tensor | None = None) -> Tensor:  # (..., V, 3) -> (..., V, 3)
    """Unit normals, faces weighted by area; vertices that lie in one place share theirs.

    Args:
        vertices: other places of the mesh's vertices, such as a batch of poses.
    """
    vertices = mesh.vertices if vertices is None else vertices
    _, weld = torch.unique(mesh.vertices, dim=0, return_inverse=True)
    a, b, c = vertices[..., mesh.faces, :].unbind(-2)
    away = torch.linalg.cross(b - a, c - a)
    total = vertices.new_zeros(vertices.shape)
    for corner in range(3):
        total.index_add_(-2, weld[mesh.faces[:, corner]], away)
    return torch.nn.functional.normalize(total, dim=-1)[..., weld, :]


@torch.no_grad()
def carry(
    scene: Scene4D,
    points: Tensor,  # (V, 3)
    taus: Tensor,  # (T,) in [0, 1]
    *,
    progress: FrameProgress | None = None,
) -> Tensor:  # (T, V, 3)
    """Points of the canonical object where the scene's motion takes them.

    A field that can be asked at any place is; else each point follows the Gaussians around it: the rigid motion that fits
    theirs best, nearer ones counting more, and only those that keep their distances to the nearest, so that a leg is not drawn
    along by the other one. Their own rotations, which not every field moves, are not used.

    Args:
        progress: called with the times done and all of them.

    Raises:
        InputError: where each frame is a set of Gaussians of its own.
    """
    points = points.to(scene.gaussians.means)
    if scene.field is None:
        return points.expand(len(taus), -1, -1)
    if not scene.field.continuous:
        raise InputError(
            "surface: this scene's frames are unrelated sets, which no mesh can follow; export it as splats instead"
        )
    move = scene.field.carrier(scene.gaussians, points, scene.surface) or _rigid_carrier(scene, points)
    chunk = max(1, _CHUNK // max(len(points), len(scene.gaussians)))
    parts = []
    for start in range(0, len(taus), chunk):
        parts.append(move(taus[start : start + chunk].to(points)))
        if progress is not None:
            progress(min(start + chunk, len(taus)), len(taus))
    return torch.cat(parts)


def _rigid_carrier(scene: Scene4D, points: Tensor) -> Callable[[Tensor], Tensor]:
    """Each point with the rigid motion of its neighbours (moving least squares; Schaefer et al. 2006, in space)."""
    from scipy.spatial import KDTree

    solid = scene.gaussians.opacities >= min(_FAINT, float(scene.gaussians.opacities.max()))
    means = scene.gaussians.means[solid]
    tree: Any = KDTree(means.cpu().numpy())
    k = min(_NEIGHBOURS + 1, len(means))
    distance, index = tree.query(points.cpu().numpy(), k=k)
    index = torch.from_numpy(index.reshape(len(points), k)).to(points.device)
    distance = torch.from_numpy(distance.reshape(len(points), k)).to(points)
    # Falls to zero at the first neighbour left out.
    weight = (1 - (distance / distance[:, -1:].clamp_min(1e-12)).square()).clamp_min(1e-6).square()
    spacing = (means[index] - means[index[:, :1]]).norm(dim=-1)  # (V, K)
    unit = spacing[:, 1 : 1 + k // 2].mean(-1, keepdim=True).clamp_min(1e-12)
    change = torch.zeros_like(spacing)
    for tau in scene.taus:
        moved = scene.at(tau).means[solid][index]
        change = change.maximum(((moved - moved[:, :1]).norm(dim=-1) - spacing).abs())
    weight = weight * (-(change / (0.5 * unit)).square()).exp()
    weight = (weight / weight.sum(-1, keepdim=True))[..., None]
    near = means[index]
    centre = (weight * near).sum(1)
    offsets = weight * (near - centre[:, None])
    eye = 1e-4 * unit[..., None].square() * torch.eye(3).to(points)  # at rest where the neighbours leave a turn open

    def carried(taus: Tensor) -> Tensor:  # (B,) -> (B, V, 3)
        moved = scene.at(taus).means[:, solid][:, index]  # (B, V, K, 3)
        centres = (weight * moved).sum(2)
        u, _, v = torch.linalg.svd((moved - centres[:, :, None]).mT @ offsets + eye)
        turn = torch.ones_like(u[..., 0])
        turn[..., 2] = torch.linalg.det(u @ v)
        return ((u * turn[..., None, :]) @ v @ (points - centre)[:, :, None])[..., 0] + centres

    return carried


def _distances(gaussians: Gaussians, axes: list[Tensor], reach: float, backend: str) -> Tensor:  # (X, Y, Z)
    """Mean truncated signed distance at a grid around a unit object: positive outside, -1 where too few views look."""
    step = torch.arange(_VIEWS) + 0.5
    up = torch.rad2deg(torch.asin(1 - 2 * step / _VIEWS))
    around = step * 180 * (3 - math.sqrt(5))
    radius = max(float(axis.abs().max()) for axis in axes) * math.sqrt(3)
    fovy = 2 * math.degrees(math.asin(min(0.9, radius / _DISTANCE)))
    cameras = orbit(around, up, _DISTANCE, fovy, _PIXELS, _PIXELS)
    # Opaque and a little larger: what shows through between Gaussians would dent the surface.
    solid = gaussians.select(gaussians.opacities >= min(_SOLID, float(gaussians.opacities.max())))
    solid = replace(solid, opacity_logits=solid.opacity_logits.clamp_min(5.0), log_scales=solid.log_scales + 0.25)
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    total, count = torch.zeros(len(grid)), torch.zeros(len(grid))
    for camera in range(_VIEWS):
        pulse()
        drawn = rasterize(solid, cameras[camera : camera + 1], backend=backend)
        depth = _opened(torch.where(drawn.alpha < 0.5, 2 * _DISTANCE, drawn.expected_depth))[0].reshape(-1)
        view, K = cameras.world_to_camera[camera], cameras.K[camera]
        x, y, z = (grid @ view[:3, :3].T + view[:3, 3]).unbind(-1)
        column = (K[0, 0] * x / z + K[0, 2]).long().clamp(0, _PIXELS - 1)
        row = (K[1, 1] * y / z + K[1, 2]).long().clamp(0, _PIXELS - 1)
        pixel = row * _PIXELS + column
        distance = (depth[pixel] - z) / reach
        looks = distance > -1
        total += torch.where(looks, distance.clamp_max(1.0), 0.0)
        count += looks
    volume = torch.where(count >= _AGREEING, total / count.clamp_min(1), -1.0)
    return volume.reshape([len(axis) for axis in axes])


def _opened(depth: Tensor, size: int = 5) -> Tensor:  # (C, H, W)
    """Depth maps without far spots smaller than ``size`` pixels: what shows through between Gaussians."""
    pool = torch.nn.functional.max_pool2d
    return pool(-pool(-depth, size, 1, size // 2), size, 1, size // 2)


def _islands(points: np.ndarray, faces: np.ndarray, share: float = 0.005) -> np.ndarray:  # (F', 3)
    """The faces of pieces that enclose at least a share of what the largest does; cavities enclose less than nothing."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    pairs = np.concatenate([faces[:, :2], faces[:, 1:]])
    adjacency = coo_matrix((np.ones(len(pairs)), pairs.T), shape=(len(points),) * 2)
    piece = connected_components(adjacency, directed=False)[1][faces[:, 0]]
    a, b, c = (points[faces[:, k]].astype(np.float64) for k in range(3))
    volume = np.bincount(piece, (a * np.cross(b, c)).sum(1) / 6)
    return faces[volume[piece] >= share * volume.max()]
