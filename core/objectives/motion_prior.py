"""The motion prior as an objective: it says how things move where one view tells nothing, and lets go as a pass goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..priors.motion import MotionPrior
from ..schedules import Weight, linear
from .base import OBJECTIVES, FitStep, Objective


@OBJECTIVES.register("motion prior")
@dataclass(frozen=True)
class MotionPriorPull(Objective):
    """Points of the object are drawn in depth, and those that are not seen altogether, to where the motion prior expects them.

    What the fit so far makes of the video, the points' motion in the picture, is the prior's question; see
    :class:`~..priors.motion.MotionPrior`. Its answer is kept until it is asked again. Each point is drawn by
    ``e^2 / (1 + (doubt / trust)^2)``, e in lengths of the object: what the prior doubts it leaves alone. The points are the
    field's handles; of a field without any, some of the Gaussians.

    Args:
        weight: of the mean over points and frames.
        prior: the network.
        every: steps between questions.
        trust: the doubt at which the pull is half of its full strength, in lengths of the object.
        hold: pull of seen points to where they were in the picture when the prior was asked, relative to depth's; it stands
            in for the video in a pass that does not look at it.
        flat: nothing moves in depth, whatever the prior says: where the object's shape is a guess, so is what it says.
    """

    name: ClassVar[str] = "motion prior"
    needs: ClassVar[frozenset[str]] = frozenset({"field", "video"})
    starts: ClassVar[bool] = True
    weight: Weight = linear(60.0, 20.0)  # noqa: RUF009
    prior: MotionPrior = field(default_factory=MotionPrior)
    every: int = 100
    trust: float = 0.5
    hold: float = 1.0
    flat: bool = False

    def loss(self, step: FitStep) -> Tensor:
        whole = len(step.taus) == len(step.times)
        rest, positions = followed(step, step.taus)
        size = extent(rest)
        if step.due(self.every) or "expected" not in step.memory:
            step.memory["expected"], step.memory["pull"] = self._ask(step)
        expected, pull = step.memory["expected"], step.memory["pull"]
        if not whole:
            rows = step.frames.to(expected.device) if step.rows is None else step.rows
            expected, pull = expected[rows], pull[rows]
        error = (in_picture(step, positions, whole) - expected) / size
        return (error.square() * pull).sum(-1).mean()

    @torch.no_grad()
    def _ask(self, step: FitStep) -> tuple[Tensor, Tensor]:
        """Where points are expected, in the picture and in depth (T, M, 3), and how strongly they are drawn there (T, M, 3)."""
        step = step.whole_clip()  # with pictures of its own, made without gradients
        rest, positions = followed(step, step.times)
        size = extent(rest)
        where = in_picture(step, positions, whole=True)
        rest = in_picture(step, rest[None], whole=True)[0] / size
        offsets = where[..., :2] / size - rest[:, :2]
        seen = visible(step, where)
        moved, doubt = self.prior(rest, offsets, seen.float(), step.fronts[0].distance / size)
        sure = 1 / (1 + (doubt / self.trust).square())
        if self.flat:
            moved[..., 2], sure[..., 1] = 0.0, 1.0
        held = seen[..., None]
        expected = torch.cat([torch.where(held, offsets, moved[..., :2]), moved[..., 2:]], -1) + rest
        pull = torch.cat([torch.where(held, self.hold, sure[..., :1]).expand(-1, -1, 2), sure[..., 1:]], -1)
        return expected * size, pull


#: Gaussians that stand for all of a field without handles.
POINTS = 512


def followed(step: FitStep, taus: Tensor) -> tuple[Tensor, Tensor]:
    """The points that the prior is asked about, at rest (M, 3) and at times (B, M, 3): handles, or some of the Gaussians."""
    handles = step.moving.handles()
    if handles is not None:
        return handles.positions, step.moving.motion_of_handles(taus)[0]
    count = len(step.canonical)
    chosen = torch.arange(0, count, max(count // POINTS, 1), device=step.canonical.device)
    return step.canonical.means.detach()[chosen], step.gaussians.means[:, chosen]


def extent(rest: Tensor) -> Tensor:  # (M, 3)
    """The object's longest side, a scalar."""
    return (rest.amax(0) - rest.amin(0)).amax()


def in_picture(step: FitStep, positions: Tensor, whole: bool) -> Tensor:  # (B, M, 3) -> (B, M, 3)
    """World positions in the motion prior's coordinates: ``d X / Z``, ``d Y / Z`` and ``Z - d`` before the front camera.

    Args:
        whole: of all frames of the clip; else of this step's.
    """
    poses = _poses(step, whole)  # (B or 1, 4, 4)
    camera = positions @ poses[:, :3, :3].mT + poses[:, None, :3, 3]
    d = step.fronts[0].distance
    depth = camera[..., 2:].clamp_min(0.05 * d)
    return torch.cat([d * camera[..., :2] / depth, depth - d], -1)


def _poses(step: FitStep, whole: bool) -> Tensor:
    if len(step.fronts) == 1:
        return step.front_cameras.world_to_camera[:1, 0]
    key = "front poses"
    if key not in step.memo:
        video = step.video
        each = [front.cropped(video.crop, step.resolution).world_to_camera[0] for front in step.fronts]
        step.memo[key] = torch.stack(each).to(step.canonical.device)
    poses: Tensor = step.memo[key]
    return poses if whole else poses[step.frames.to(poses.device) if step.rows is None else step.rows]


def visible(step: FitStep, where: Tensor, tolerance: float = 0.04) -> Tensor:  # (B, M, 3) -> (B, M) bool
    """Which points the front camera sees at each of the step's frames: those not behind what the object's own picture shows.

    Args:
        where: see :func:`in_picture`.
        tolerance: how far behind the surface's mean depth a point still counts as on it, world units.
    """
    cameras, drawn, d = step.front_cameras, step.front, step.fronts[0].distance
    height, width = drawn.alpha.shape[-2:]
    K = cameras.K[:, 0]  # (T, 3, 3)
    pixel = where[..., :2] / d * K[:, None, (0, 1), (0, 1)] + K[:, None, :2, 2]
    column, row = pixel[..., 0].floor().long(), pixel[..., 1].floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    alpha = drawn.alpha[:, 0].flatten(1).gather(1, index)
    depth = drawn.expected_depth[:, 0].flatten(1).gather(1, index)
    return inside & (alpha > 0.5) & (where[..., 2] + d < depth + tolerance)
