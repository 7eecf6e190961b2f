"""Novel-view distillation: a prior says how the driving video's frames look from other sides.

The time-multiview (T-MV) refinement of PLA4D's later version; with one frame, the image-to-3D distillation of DreamGaussian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..cameras import Cameras, FrontCamera
from ..priors.base import Condition, Prior, Viewpoints
from ..priors.distill import Distillation
from ..scene.views import reframed
from ..schedules import Weight, constant
from ..video import DrivingVideo
from .base import OBJECTIVES, FitStep, Objective
from .mesh import FRAMING, framing_cameras
from .reference import random_moments, require_image


class FrameConditions:
    """The condition of every frame of the driving video, made once for a video and its cameras."""

    def __init__(self) -> None:
        self._kept: tuple[DrivingVideo, list[FrontCamera], Condition] | None = None

    def __call__(self, step: FitStep, distillation: Distillation, camera: Cameras, background: Tensor) -> Condition:
        """The frames as ``camera`` (1,) shows them, which the step's front cameras and the objective's settings determine."""
        kept = self._kept
        if kept is None or kept[0] is not step.video or kept[1] != step.fronts:
            condition = distillation.condition(reframed(step.video, step.fronts, camera, background))
            self._kept = kept = step.video, list(step.fronts), condition
        return kept[2]


@OBJECTIVES.register("novel view")
@dataclass(frozen=True)
class NovelView(Objective):
    """Score distillation at random (time, view) pairs, conditioned on that time's frame of the driving video.

    Args:
        distillation: an image-conditioned prior with cameras, and how it is distilled.
        weight: of the loss, the mean over views and latent cells, as a function of rho.
        views: (time, view) pairs a step.
        elevation: range of the random elevations, degrees, relative to the driving video's.
    """

    name: ClassVar[str] = "novel view"
    needs: ClassVar[frozenset[str]] = frozenset({"video"})
    distillation: Distillation
    weight: Weight = constant(1.0)  # noqa: RUF009
    views: int = 6
    elevation: tuple[float, float] = (-30.0, 30.0)
    _conditions: FrameConditions = field(default_factory=FrameConditions, init=False, repr=False, compare=False)

    def priors(self) -> tuple[Prior, ...]:
        return (self.distillation.prior,)

    def check(self) -> None:
        require_image(self.distillation.prior, "Novel View")

    def scaled(self, step: FitStep, weight: float | Tensor) -> float | Tensor:
        return weight / (self.views * math.prod(self.distillation.prior.latent_shape()))

    def loss(self, step: FitStep) -> Tensor:
        prior = self.distillation.prior
        device, front = step.canonical.device, step.fronts[0]
        low, high = (front.elevation + e for e in self.elevation)
        cameras = framing_cameras(front, self.views, prior.resolution[0], step.generator, (low, high), 0.0).to(device)
        background = torch.tensor(prior.background, device=device)
        images, pick = random_moments(step, cameras, background)
        seen = front.centred(prior.resolution[0], 0.0, margin=FRAMING).to(device)
        condition = self._conditions(step, self.distillation, seen, background)[step.frames[pick]]
        return self.distillation(images, condition, step.rho, step.generator, Viewpoints.of(cameras, seen))
