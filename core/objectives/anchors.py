"""Anchors as targets: from the anchors' cameras the object must look like them, as the front must look like the video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..cameras import Cameras
from ..files import InputError
from ..scene.anchors import Anchors
from ..schedules import Weight, constant
from .base import OBJECTIVES, FitStep, Objective
from .front import image_loss


@OBJECTIVES.register("anchors")
@dataclass(frozen=True)
class AnchorMatch(Objective):
    """Squared error of colours and masks between renders and the anchors of the same time. Not part of the STAG4D paper, whose
    anchors only condition the prior.

    Args:
        weight: of the mean over pictures, as a function of rho.
        anchors: None, until they are sampled: then the term is 0.
        views: anchors compared at each frame, drawn at random.
        mask: mask term relative to the colour term.
        levels: pyramid levels, see :func:`~.front.image_loss`.
    """

    name: ClassVar[str] = "anchors"
    needs: ClassVar[frozenset[str]] = frozenset({"video"})
    takes: ClassVar[frozenset[str]] = frozenset({"anchors"})
    weight: Weight = constant(1.0)  # noqa: RUF009
    anchors: Anchors | None = None
    views: int = 2
    mask: float = 0.25
    levels: int = 1

    def draw(self, step: FitStep) -> dict[str, Tensor]:
        anchors = self.anchors
        if anchors is None:
            return {}
        if len(anchors) != step.frame_count:
            raise InputError(f"anchors: of {len(anchors)} frames where the video has {step.frame_count}; sample them again")
        count = len(anchors.elevations)
        pick = torch.rand(len(step.frames), count, generator=step.generator).argsort(1)[:, : self.views]  # (B, V)
        lens = anchors.cameras()
        return {"pick": pick, "pose": lens.world_to_camera[pick], "K": lens.K[pick]}

    def loss(self, step: FitStep) -> Tensor:
        anchors, device = self.anchors, step.canonical.device
        if anchors is None:
            return step.canonical.means.new_zeros(())
        drawn, size = step.given(self), anchors.images.shape[2]
        key = "anchors", anchors.identity
        if key not in step.memo:
            step.memo[key] = anchors.images.to(device), anchors.valid.to(device)
        images, valid = step.memo[key]
        at, pick = step.at[:, None], drawn["pick"].long()
        shown = images[at, pick]
        alpha = shown[..., 3]
        target = shown[..., :3] * alpha[..., None] + (1 - alpha[..., None]) * step.background
        render = step.render(step.gaussians, Cameras(drawn["pose"], drawn["K"], size, size))
        good = valid[at, pick]
        # A tile without an object says nothing: its render is its own target.
        color = torch.where(good[..., None, None, None], render.color, target)
        opacity = torch.where(good[..., None, None], render.alpha, alpha)
        return image_loss(color, opacity, target, alpha, weight=1.0, mask_weight=self.mask, levels=self.levels)
