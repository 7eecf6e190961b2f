"""Point tracks as targets: surface points that are seen at one frame must be seen where the tracks say at the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..cameras import Cameras
from ..gaussians import Gaussians
from ..render import rasterize
from ..schedules import Weight, constant
from ..signals import PointTracks
from ..transfer import constant as constant_on
from .base import OBJECTIVES, FitStep, Objective

#: Distance, in units of the object's longest side, beyond which a track's pull no longer grows.
WIDTH = 0.05
#: Pixels of the picture in which the tracks' surface points are found, and alpha below which there is no surface.
PIXELS, SOLID = 256, 0.5
#: Gaussians that carry a point.
CARRIERS = 8


@OBJECTIVES.register("tracks")
@dataclass(frozen=True)
class TrackMatch(Objective):
    """Mean pseudo-Huber distance between tracks and the projected surface points that they begin at, in world units.

    A point moves with the nearest Gaussians of the object as the fit found it; distances are those in the picture, at the
    point's depth.

    Args:
        weight: of the loss, as a function of rho.
        tracks: those that lie on the object at ``seed``; None: the term is 0.
        seed: the frame that the object as the fit found it shows.
    """

    name: ClassVar[str] = "tracks"
    needs: ClassVar[frozenset[str]] = frozenset({"video", "field"})
    weight: Weight = constant(1.0)  # noqa: RUF009
    tracks: PointTracks | None = None
    seed: int = 0

    def loss(self, step: FitStep) -> Tensor:
        if self.tracks is None:
            return step.canonical.means.new_zeros(())
        index, offset, on = self._carriers(step)
        key = "tracks", id(self.tracks)
        device, at = step.canonical.device, step.at
        if key not in step.memo:
            step.memo[key] = self.tracks.points.to(device), self.tracks.visible.to(device)
        points, visible = (x[at] for x in step.memo[key])
        cameras, crop = step.front_cameras, step.video.crop
        goal = (points - constant_on((crop.x, crop.y), device)) * (cameras.width / crop.size)  # (B, N, 2) pixels
        moved = _carried(step.gaussians.means, index) + offset
        pose, K = cameras.world_to_camera[:, 0], cameras.K[:, 0]
        seen = moved @ pose[:, :3, :3].mT + pose[:, None, :3, 3]
        z = seen[..., 2].clamp_min(0.05)
        focal, centre = K.diagonal(dim1=-2, dim2=-1)[:, None, :2], K[:, None, :2, 2]
        off = (seen[..., :2] / z[..., None] * focal + centre - goal) / focal * z.detach()[..., None]
        weight = (visible & on).to(off)
        distance = 2 * WIDTH**2 * ((1 + off.square().sum(-1) / WIDTH**2).sqrt() - 1)
        return (weight * distance).sum() / weight.sum().clamp_min(1.0)

    def _carriers(self, step: FitStep) -> tuple[Tensor, Tensor, Tensor]:
        """The Gaussians that carry each point (N, K), the point's offset from their mean (N, 3), and which have any (N,)."""
        kept = step.memory
        if "points" not in kept:
            kept["points"], kept["on"] = self._surface(step)
        if "index" not in kept or len(kept["of"]) != len(step.canonical):
            means = step.still.means if len(step.still) == len(step.canonical) else step.canonical.means
            index = torch.cdist(kept["points"], means.detach()).topk(min(CARRIERS, len(means)), largest=False).indices
            kept["index"], kept["offset"] = index, kept["points"] - means.detach()[index].mean(1)
            kept["of"] = means.new_zeros(len(step.canonical), 0)  # by its shape alone: reading a number waits for the card
        return kept["index"], kept["offset"], kept["on"]

    @torch.no_grad()
    def _surface(self, step: FitStep) -> tuple[Tensor, Tensor]:
        """Where on the object the tracks begin (N, 3), and which of them do, (N,) bool."""
        assert self.tracks is not None
        front = step.fronts[self.seed if len(step.fronts) > 1 else 0]
        cameras = front.cropped(step.video.crop, PIXELS).to(step.canonical.device)
        return surface_points(step.still, cameras, self.tracks.points[self.seed].to(step.canonical.device), step)


def surface_points(gaussians: Gaussians, cameras: Cameras, pixels: Tensor, step: FitStep) -> tuple[Tensor, Tensor]:
    """The points (N, 3) of a rendered surface under pixels (N, 2) of the whole picture, and where there is surface (N,)."""
    crop = step.video.crop
    at = (pixels - constant_on((crop.x, crop.y), pixels.device)) * (cameras.width / crop.size)
    drawn = rasterize(gaussians, cameras, backend=step.backend)
    column, row = at.floor().long().clamp(0, cameras.width - 1).unbind(-1)
    alpha, depth = drawn.alpha[0, row, column], drawn.expected_depth[0, row, column]
    pose, K = cameras.world_to_camera[0], cameras.K[0]
    flat = torch.cat([(at - K[:2, 2]) / K.diagonal()[:2] * depth[:, None], depth[:, None]], -1)
    return (flat - pose[:3, 3]) @ pose[:3, :3], alpha > SOLID


def _carried(means: Tensor, index: Tensor) -> Tensor:  # (B, M, 3), (N, K) -> (B, N, 3)
    """The mean place of each point's carriers; gathered so that gradients are added in one order on the CPU."""
    if means.is_cuda:
        return means[:, index].mean(2)
    count = index.shape[0]
    flat = means.transpose(1, 2).gather(2, index.flatten().expand(len(means), 3, -1))
    return flat.unflatten(2, (count, -1)).mean(-1).transpose(1, 2)
