"""A second layer of Gaussians under the surface, where the far side would show through the gaps of the first.

Discs on a surface leave gaps, more so where motion stretches it. Wider discs close them but blur the picture; a layer beneath,
of the same colours, closes them and is hardly seen itself. How little then shows through is in docs/benchmarks.md.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras, FrontCamera, orbit, quaternion_to_matrix
from ..gaussians import Gaussians
from ..mesh import Mesh
from ..objectives.through import hidden_behind, shown_through
from ..progress import Progress
from ..render import rasterize
from ..render.mesh import render_mesh
from ..render.nvrtc import mesh_backend
from ..scene.scene import Scene4D
from ..scene.surface import carry
from ..video import DrivingVideo

log = logging.getLogger(__name__)

#: The most light, as a share, that may come from behind the surface.
MOST = 0.01
#: A disc of the second layer is wider than its own of the first by this factor ...
_WIDER = 1.3
#: ... and lies beneath it by this share of its width, but no deeper than this share of the way to the opposite side.
_BENEATH, _ACROSS = 0.9, 0.35
#: Where the opposite side is nearer than this many widths, a disc beneath would stick out: there is none.
_ROOM = 3.0
#: Logit of its least opacity.
_OPAQUE = 4.6
#: How often Gaussians are taken out of a layer that shows, and the share of it below which it is not worth having.
_ROUNDS, _LEFT = 4, 0.3
#: Moments of the clip, and views, that say how much shows through.
_MOMENTS, _VIEWS = 4, 6
#: Neighbours among which the opposite side is looked for.
_NEAR = 48
#: Gaussians of all frames that are drawn at once to compare the driving view.
_AT_ONCE = 400_000
#: Name of the stage in progress, its steps, and how often it draws the object at the moments above, for an estimate.
STAGE, STEPS, DRAWN = "close the surface", 2, 4


@torch.no_grad()
def closed(
    scene: Scene4D,
    video: DrivingVideo | None = None,
    fronts: Sequence[FrontCamera] = (),
    backend: str = "auto",
    progress: Progress | None = None,
) -> Scene4D:
    """:func:`backed`, with progress.

    Args:
        video: the driving video, on the scene's device; None = the driving view is not compared.
        fronts: its camera, or one a frame.
        progress: called at each of :data:`STEPS`; interrupts by raising.
    """

    def report(step: int) -> None:
        if progress is not None:
            progress(STAGE, step, STEPS, {}, lambda: _portrait(scene, backend))

    if not _has_surface(scene):
        return scene
    report(1)
    scene = backed(scene, video, fronts, backend)
    report(2)
    return scene


def bare(scene: Scene4D) -> Scene4D:
    """A static scene without the second layer that :func:`backed` put beneath it; others as they are."""
    first, total = scene.meta.get("backed", (0, 0))
    if scene.field is not None or not first or total != len(scene.gaussians):
        return scene
    meta = {name: value for name, value in scene.meta.items() if name != "backed"}
    return replace(scene, gaussians=scene.gaussians.map(lambda t: t[:first]), meta=meta)


@torch.no_grad()
def backed(
    scene: Scene4D, video: DrivingVideo | None = None, fronts: Sequence[FrontCamera] = (), backend: str = "auto"
) -> Scene4D:
    """The scene, with a second layer where more than :data:`MOST` of the light comes from behind the surface.

    The layer moves with the first; each of its Gaussians lies beneath one of the first, away from where that one is seen from,
    and has its colour. Without a mesh that says where the surface is, the scene as it is. Where the layer would show in the
    driving view, those of its Gaussians that do are left out: the view gets no worse.

    Args:
        video: the driving video, on the scene's device; None = the driving view is not compared.
        fronts: its camera, or one a frame.
    """
    if not _has_surface(scene):
        return scene
    assert scene.surface is not None
    share = share_through(scene, backend=backend)
    if share <= MOST:
        return scene
    first, surface = scene.gaussians, scene.surface
    inward, seen, sheet = _inward(first, surface)
    width, across = first.scales.sort(-1).values[:, 1:].mean(-1), _opposite(first.means, inward)
    depth = torch.where(sheet, 0.0, torch.minimum(_BENEATH * width, _ACROSS * across))
    index = (seen & (sheet | (across > _ROOM * width))).nonzero().flatten()
    own = first.select(index)
    flat = torch.arange(3, device=index.device) != own.log_scales.argmin(-1, keepdim=True)
    layer = replace(
        own,
        means=own.means + (inward * depth[:, None])[index],
        log_scales=own.log_scales + math.log(_WIDER) * flat,
        opacity_logits=own.opacity_logits.clamp_min(_OPAQUE),
    )
    made, count = _with_layer(scene, layer, index), len(first)
    every = torch.arange(len(made.gaussians), device=index.device)
    kept, shows = every[count:], False
    if video is not None:
        view = DrivingView(made, video, fronts, backend)
        worst = view.error(every[:count])
        for round in range(_ROUNDS + 1):
            excess = view.error(torch.cat([every[:count], kept])) - worst
            shows = excess > 0
            if not shows or round == _ROUNDS:
                break
            kept = view.inconspicuous(count, kept, excess)
    if not shows and len(kept) > _LEFT * len(index):
        log.info("the far side shows through by %.1f %%: %d Gaussians more beneath the surface", 100 * share, len(kept))
        return made if len(kept) == len(index) else _with_layer(scene, layer.select(kept - count), index[kept - count])
    log.info("the far side shows through by %.1f %%; more Gaussians would close the surface", 100 * share)
    return scene


def _with_layer(scene: Scene4D, layer: Gaussians, index: Tensor) -> Scene4D:
    """The scene with more Gaussians that move like those of it that ``index`` names."""
    first = scene.gaussians
    every = torch.cat([torch.arange(len(first), device=index.device), index])
    field = None if scene.field is None else scene.field.select(every)
    meta = {**scene.meta, "backed": [len(first), len(every)]}
    return replace(scene, gaussians=Gaussians.cat([first, layer]), field=field, meta=meta)


def _has_surface(scene: Scene4D) -> bool:
    """Whether a mesh says where the surface is, and the scene has one motion that both follow."""
    return scene.surface is not None and len(scene.surface.faces) > 0 and (scene.field is None or scene.field.continuous)


def seconds_to_close(scene: Scene4D, backend: str = "auto") -> float:
    """What :func:`closed` takes on this machine, from one drawing of the object; 0 without a surface."""
    if not _has_surface(scene):
        return 0.0
    moments = min(_MOMENTS, scene.frames)
    started = time.perf_counter()
    share_through(replace(scene, field=None, frames=1), backend=backend)
    return (time.perf_counter() - started) * moments * DRAWN


def _portrait(scene: Scene4D, backend: str) -> Tensor:
    """The object at the end of the clip, for a preview, (H, W, 3)."""
    low, high = scene.gaussians.means.aminmax(dim=0)
    camera = around((low + high).cpu() / 2, max(float((high - low).norm()), 1e-6), 128, 1)
    white = torch.ones(3, device=scene.gaussians.device)
    return rasterize(scene.at(1.0), camera.to(white), white, backend=backend).color[0].clamp(0, 1)


class DrivingView:
    """A scene seen by the driving view's camera at every frame, beside the video, whichever of its Gaussians are drawn.

    Args:
        scene: its Gaussians are moved once.
        video: the driving video, on the scene's device.
        fronts: its camera, or one a frame.
    """

    def __init__(self, scene: Scene4D, video: DrivingVideo, fronts: Sequence[FrontCamera], backend: str) -> None:
        self.backend = backend
        device = scene.gaussians.device
        masks = video.masks[..., None]
        truth = (video.frames * masks + 1 - masks).split(each := max(1, _AT_ONCE // max(len(scene.gaussians), 1)))
        cameras = Cameras.cat([front.cropped(video.crop, video.resolution) for front in fronts]).to(scene.gaussians.means)
        with torch.no_grad():
            moved = [scene.at(taus) for taus in scene.taus.to(device).split(each)]
        seen = [cameras[i * each : (i + 1) * each].reshape(-1, 1) if len(fronts) > 1 else cameras for i in range(len(moved))]
        self.parts = list(zip(moved, seen, truth, strict=True))

    def error(self, index: Tensor | None = None) -> float:
        """Mean squared error on white, summed over frames, of all Gaussians or of those that ``index`` names."""
        with torch.no_grad():
            return float(sum(self._errors(_those(part[0], index), part) for part in self.parts))

    def inconspicuous(self, first: int, kept: Tensor, excess: float) -> Tensor:
        """Which of the Gaussians ``kept`` can stay beside the first ones, so that the error falls by an excess; indices.

        Without one, the error falls by about dE / do with all of them half transparent: those that lie over each other cost
        together what none of them costs alone. Those that cost most are left out, at most half.
        """
        index = torch.cat([torch.arange(first, device=kept.device), kept])
        half = torch.zeros(len(kept), device=kept.device, requires_grad=True)
        for part in self.parts:
            drawn = _those(part[0], index)
            with torch.enable_grad():
                logits = torch.cat([drawn.opacity_logits[:, :first], half.expand(len(drawn.means), -1)], 1)
                self._errors(replace(drawn, opacity_logits=logits), part).backward()
        assert half.grad is not None
        cost = 4 * half.grad  # dE / dlogit = o (1 - o) dE / do
        order = cost.argsort(descending=True, stable=True)
        saved = cost[order].clamp_min(0).cumsum(0)
        drop = order[: min(int((saved < excess).sum()) + 1, len(order) // 2)]
        stays = torch.ones_like(cost, dtype=torch.bool)
        stays[drop] = False
        return kept[stays]

    def _errors(self, gaussians: Gaussians, part: tuple[Gaussians, Cameras, Tensor]) -> Tensor:
        _, cameras, truth = part
        white = torch.ones(3, device=truth.device)
        drawn = rasterize(gaussians, cameras, white, backend=self.backend).color
        return (drawn.reshape(truth.shape) - truth).square().flatten(1).mean(1).sum()


def _those(moved: Gaussians, index: Tensor | None) -> Gaussians:  # (B, N, ...) -> (B, M, ...)
    """Of moved Gaussians those that an index names; what all moments share stays shared."""
    if index is None:
        return moved
    return moved.map(lambda t: t[0][index].expand(len(t), *t[0][index].shape) if t.stride(0) == 0 else t[:, index])


def driving_error(scene: Scene4D, video: DrivingVideo, fronts: Sequence[FrontCamera], backend: str) -> float:
    """Mean squared error of the driving view, on white, summed over frames."""
    return DrivingView(scene, video, fronts, backend).error()


@torch.no_grad()
def surface_views(scene: Scene4D, size: int = 256) -> list[tuple[float, Cameras, Tensor]]:
    """Moments of the clip, cameras around the object there, and its surface's depth as they see it, (C, size, size)."""
    assert scene.surface is not None
    device = scene.gaussians.device
    surface = scene.surface.to(device if mesh_backend.available(device) else "cpu")
    moments = scene.taus[:: max(1, -(-scene.frames // _MOMENTS))]
    places = carry(scene, surface.vertices, moments.to(device)).to(surface.vertices)
    low, high = places.flatten(0, 1).aminmax(dim=0)
    reach = max(float((high - low).norm()), 1e-6)
    found = []
    for tau, vertices in zip(moments.tolist(), places, strict=True):
        cameras = around((vertices.amin(0) + vertices.amax(0)).cpu() / 2, reach, size)
        depth = render_mesh(replace(surface, vertices=vertices), cameras, supersample=1).depth
        found.append((tau, cameras, depth.to(device)))
    return found


@torch.no_grad()
def share_through(scene: Scene4D, *, backend: str = "auto") -> float:
    """The share of light from behind the surface, mean over moments of the clip, views and pixels of the object.

    Pixels at outlines do not count, see :func:`within`.
    """
    found = []
    for tau, cameras, depth in surface_views(scene):
        through = shown_through(scene.at(tau), cameras, depth, backend=backend)
        found.append(through[within(depth, 2)])
    every = torch.cat(found)
    return float(every.mean()) if len(every) else 0.0


def around(centre: Tensor, reach: float, size: int, views: int = _VIEWS) -> Cameras:  # (3,)
    """Cameras around a place that see ``reach`` units of it from above, level and below, (views,)."""
    elevations = torch.tensor([-30.0, 0.0, 30.0]).repeat(-(-views // 3))[:views]
    distance = 2 * reach
    cameras = orbit(
        torch.arange(views) * 360 / views + 22.5, elevations, distance, 2 * math.degrees(math.atan(0.25)), size, size
    )
    pose = cameras.world_to_camera.clone()
    pose[:, :3, 3] -= pose[:, :3, :3] @ centre.to(pose)
    return replace(cameras, world_to_camera=pose)


def within(depth: Tensor, edge: int, step: float = 0.03) -> Tensor:  # (C, H, W) -> (C, H, W) bool
    """Pixels of a surface more than ``edge`` from its outlines, against itself too: there a picture is half transparent.

    Args:
        depth: 0 where nothing is.
        step: of depth, that makes an outline of a part before another.
    """
    empty = (depth <= 0).to(depth)[:, None]

    def most(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2 * edge + 1, 1, edge)[:, 0]

    return (most(empty) < 0.5) & (most(depth[:, None]) + most(-depth[:, None]) < step)


def _inward(gaussians: Gaussians, surface: Mesh) -> tuple[Tensor, Tensor, Tensor]:  # (N, 3), (N,) bool, (N,) bool
    """Unit thin axes that point away from where each Gaussian is seen from; which are seen; which from both sides."""
    axis = gaussians.log_scales.argmin(-1)
    turns = quaternion_to_matrix(F.normalize(gaussians.quats, dim=-1))
    normal = turns.gather(-1, axis[:, None, None].expand(-1, 3, 1))[..., 0]
    mesh = surface.to(normal.device if mesh_backend.available(normal.device) else "cpu")
    low, high = mesh.vertices.aminmax(dim=0)
    reach = max(float((high - low).norm()), 1e-6)
    cameras = around((low + high).cpu() / 2, reach, 256, 18)
    depth = render_mesh(mesh, cameras, supersample=1).depth.to(normal)
    seen = ~hidden_behind(gaussians.means, cameras, depth, 0.01)  # (C, N)
    pose = cameras.world_to_camera.to(normal)
    eyes = -(pose[:, :3, :3].mT @ pose[:, :3, 3:])[..., 0]
    facing = (F.normalize(eyes[:, None] - gaussians.means, dim=-1) * normal).sum(-1)  # (C, N)
    front, back = ((seen & (sign * facing > 0.3)).sum(0) for sign in (1, -1))
    inward = normal * torch.where(front >= back, -1.0, 1.0)[:, None]
    return inward, front + back > 0, torch.minimum(front, back) > 0


def _opposite(points: Tensor, inward: Tensor) -> Tensor:  # (N, 3), (N, 3) -> (N,)
    """Distance to the nearest neighbour that faces the other way; infinite where none of the nearest does."""
    from scipy.spatial import KDTree

    places = points.cpu().double().numpy()
    tree: Any = KDTree(places)
    distance, index = tree.query(places, k=min(_NEAR, len(places)), workers=torch.get_num_threads())
    near = torch.from_numpy(np.reshape(index, (len(places), -1))).to(points.device)
    away = torch.from_numpy(np.reshape(distance, (len(places), -1))).to(points)
    faces = (inward[near] * inward[:, None]).sum(-1) < -0.3
    return torch.where(faces, away, torch.inf).amin(-1)
