"""The moving object must equal the static one at the first frame (second term of PLA4D Eq. 10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..cameras import Cameras
from ..schedules import Weight, constant
from .base import OBJECTIVES, FitStep, Objective
from .mesh import framing_cameras


@OBJECTIVES.register("first_frame")
@dataclass(frozen=True)
class FirstFrame(Objective):
    """MSE between the object at tau = 0 and the canonical object from random views.

    Args:
        weight: of the MSE.
        views: cameras a step.
    """

    name: ClassVar[str] = "first_frame"
    needs: ClassVar[frozenset[str]] = frozenset({"field"})
    weight: Weight = constant(1e4)  # noqa: RUF009
    views: int = 1

    def draw(self, step: FitStep) -> dict[str, Tensor]:
        cameras = framing_cameras(step.fronts[0], self.views, step.resolution, step.generator)
        return {"pose": cameras.world_to_camera, "K": cameras.K}

    def loss(self, step: FitStep) -> Tensor:
        device, drawn = step.canonical.device, step.given(self)
        cameras = Cameras(drawn["pose"], drawn["K"], step.resolution, step.resolution)
        moved = step.moving(step.canonical, torch.zeros(1, device=device))
        with torch.no_grad():
            still = step.render(step.canonical, cameras)
        return (step.render(moved, cameras).color[0] - still.color).square().mean()
