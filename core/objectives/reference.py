"""Reference refinement (PLA4D Eq. 11): a prior mends what the front view does not show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ..cameras import Cameras
from .base import FitStep, Weight, linear
from .mesh import framing_cameras


class ScoreDistillation(Protocol):
    """The part of a prior that this objective calls."""

    #: Picture size that the prior works at, pixels.
    resolution: int

    def distill(self, images: Tensor, reference: Tensor, cameras: Cameras, t: float, generator: torch.Generator) -> Tensor:
        """A scalar whose gradient by ``images`` (B, H, W, 3) is w(t) (eps_hat - eps) dz/dx.

        ``reference`` (B, H, W, 3) is the condition picture from the same camera, so the relative pose is zero; ``t`` is the
        diffusion time as a fraction of the schedule.
        """
        ...


@dataclass(frozen=True)
class ReferenceRefinement:
    """L_ref of PLA4D: score distillation of random (time, view) renders, conditioned on the STATIC render of the same view.

    Args:
        prior: an image-conditioned diffusion prior.
        weight: of the loss as a function of rho.
        time: diffusion time as a function of rho (PLA4D: 0.5 to 0.02).
        views: (time, view) pairs a step (PLA4D: batch 6).
    """

    name: ClassVar[str] = "reference"
    prior: ScoreDistillation
    weight: Weight = linear(1.0, 1.0)  # noqa: RUF009
    time: Weight = linear(0.5, 0.02)  # noqa: RUF009
    views: int = 6

    def __call__(self, step: FitStep) -> Tensor:
        device = step.canonical.device
        cameras = framing_cameras(step.fronts[0], self.views, self.prior.resolution, step.generator).to(device)
        pick = torch.randint(len(step.frames), (self.views,), generator=step.generator)
        moved = step.gaussians.map(lambda t: t[pick])
        images = step.render(moved, cameras.reshape(self.views, 1)).color[:, 0]
        with torch.no_grad():
            reference = step.render(step.canonical, cameras).color
        return self.weight(step.rho) * self.prior.distill(images, reference, cameras, self.time(step.rho), step.generator)
