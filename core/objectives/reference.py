"""Reference refinement (PLA4D Eq. 11): a prior refines what the front view does not show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..cameras import Cameras
from ..files import InputError
from ..priors.base import Prior, Viewpoints
from ..priors.distill import Distillation
from ..render import rasterize
from ..schedules import Weight, constant
from .base import OBJECTIVES, FitStep, Objective
from .mesh import framing_cameras


@OBJECTIVES.register("reference")
@dataclass(frozen=True)
class ReferenceRefinement(Objective):
    """L_ref of PLA4D: score distillation of random (time, view) renders, conditioned on the STATIC render of the same view.

    The condition is seen by the very camera of the render, so the relative pose is zero.

    Args:
        distillation: an image-conditioned prior and how it is distilled (PLA4D: diffusion times 0.5 to 0.02).
        weight: of the loss, the mean over views and latent cells, as a function of rho.
        views: (time, view) pairs a step (PLA4D: batch 6).
        elevation: range of the random elevations, degrees.
        away: smallest angle between a random view's azimuth and the front, degrees: there the video knows better than the still
            object (PLA4D: 0).
    """

    name: ClassVar[str] = "reference"
    needs: ClassVar[frozenset[str]] = frozenset({"field"})
    distillation: Distillation
    weight: Weight = constant(1.0)  # noqa: RUF009
    views: int = 6
    elevation: tuple[float, float] = (-30.0, 30.0)
    away: float = 60.0

    def priors(self) -> tuple[Prior, ...]:
        return (self.distillation.prior,)

    def check(self) -> None:
        require_image(self.distillation.prior, "Reference Refinement")

    def scaled(self, step: FitStep, weight: float | Tensor) -> float | Tensor:
        return weight / (self.views * math.prod(self.distillation.prior.latent_shape()))

    def loss(self, step: FitStep) -> Tensor:
        prior = self.distillation.prior
        device = step.canonical.device
        cameras = framing_cameras(
            step.fronts[0], self.views, prior.resolution[0], step.generator, self.elevation,
            azimuth=(self.away, 360 - self.away),
        ).to(device)  # fmt: skip
        background = torch.tensor(prior.background, device=device)
        images, _ = random_moments(step, cameras, background)
        with torch.no_grad():
            reference = rasterize(step.canonical, cameras, background, backend=step.backend).color
            condition = self.distillation.condition(reference.clamp(0, 1))
        return self.distillation(images, condition, step.rho, step.generator, Viewpoints.of(cameras, cameras))


def random_moments(step: FitStep, cameras: Cameras, background: Tensor) -> tuple[Tensor, Tensor]:
    """The object seen by each camera (V,) at one of the step's times drawn at random: (V, 1, H, W, 3), and which times (V,)."""
    pick = torch.randint(len(step.frames), (len(cameras),), generator=step.generator)
    moved = step.gaussians.map(lambda t: t[pick])
    return rasterize(moved, cameras.reshape(len(cameras), 1), background, backend=step.backend).color, pick


def require_image(prior: Prior, who: str) -> None:
    """Refuse a prior that is not conditioned on a picture."""
    if "image" not in prior.conditions:
        raise InputError(
            f"{who}: prior {prior.name} is not conditioned on a picture; choose an image-conditioned one (tiny, Zero123, ...)"
        )
