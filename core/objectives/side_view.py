"""A film from another side as a target: from its camera the object must look like it, as from the front like the video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..schedules import Weight, constant
from ..signals import PlacedView
from .base import OBJECTIVES, FitStep, Objective, resized_video
from .front import image_loss


@OBJECTIVES.register("side view")
@dataclass(frozen=True)
class SideViewLoss(Objective):
    """What :class:`~.front.ReferenceViewLoss` is for the driving video, for a film from another side: colours and masks.

    Args:
        weight: of the squared errors' means, as a function of rho.
        view: with its camera; None: the term is 0.
        mask: mask term relative to the colour term.
        levels: pyramid levels, see :func:`~.front.image_loss`.
    """

    name: ClassVar[str] = "side view"
    needs: ClassVar[frozenset[str]] = frozenset({"video"})
    weight: Weight = constant(1.0)  # noqa: RUF009
    view: PlacedView | None = None
    mask: float = 0.33
    levels: int = 4

    def loss(self, step: FitStep) -> Tensor:
        if self.view is None:
            return step.canonical.means.new_zeros(())
        device, size = step.canonical.device, min(step.resolution, self.view.view.video.resolution)
        key = "side view", id(self.view), size
        if key not in step.memo:
            pictures = resized_video(self.view.view.video.to(device), size)
            step.memo[key] = *pictures, self.view.cameras.resized(size, size).to(device)
        color, mask, cameras = step.memo[key]
        color, mask = color[step.at][:, None], mask[step.at][:, None]
        render = step.render(step.gaussians, cameras)
        target = color + (1 - mask[..., None]) * step.background
        return image_loss(render.color, render.alpha, target, mask, weight=1.0, mask_weight=self.mask, levels=self.levels)
