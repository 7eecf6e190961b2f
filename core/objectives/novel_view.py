"""Novel-view distillation: a prior tells how the driving video's frames look from other sides.

The time-multiview (T-MV) refinement of PLA4D's later version; with one frame, the image-to-3D distillation of DreamGaussian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from ..priors.base import Condition, Viewpoints
from ..priors.distill import Distillation
from .base import FitStep, Weight, constant
from .mesh import FRAMING, framing_cameras
from .reference import random_moments, require_image


@dataclass(frozen=True)
class NovelView:
    """Score distillation at random (time, view) pairs, conditioned on that time's frame of the driving video.

    Args:
        distillation: an image-conditioned prior with cameras, and how it is distilled.
        weight: of the loss, the mean over views and latent cells, as a function of rho.
        views: (time, view) pairs a step.
        elevation: range of the random elevations, degrees, relative to the driving video's.
    """

    name: ClassVar[str] = "novel view"
    generative: ClassVar[bool] = True
    distillation: Distillation
    weight: Weight = constant(1.0)  # noqa: RUF009
    views: int = 6
    elevation: tuple[float, float] = (-30.0, 30.0)
    _kept: dict[int, Condition] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, step: FitStep) -> Tensor:
        prior = self.distillation.prior
        require_image(prior, "Novel View")
        device, front = step.canonical.device, step.fronts[0]
        low, high = (front.elevation + e for e in self.elevation)
        cameras = framing_cameras(front, self.views, prior.resolution[0], step.generator, (low, high), 0.0).to(device)
        background = torch.tensor(prior.background, device=device)
        images, pick = random_moments(step, cameras, background)
        seen = front.centred(prior.resolution[0], 0.0, margin=FRAMING).to(device)
        condition = self._conditions(step, seen, background)[step.frames[pick]]
        loss = self.distillation(images, condition, step.rho, step.generator, Viewpoints.of(cameras, seen))
        return self.weight(step.rho) / (self.views * math.prod(prior.latent_shape())) * loss

    def _conditions(self, step: FitStep, camera: Cameras, background: Tensor) -> Condition:
        """The condition of every frame of the clip, made once a clip."""
        key = id(step.video)
        if key not in self._kept:
            self._kept.clear()
            with torch.no_grad():
                self._kept[key] = self.distillation.prior.condition(image=reframed(step, camera, background))
        return self._kept[key]


def reframed(step: FitStep, camera: Cameras, background: Tensor) -> Tensor:  # (T, H, W, 3)
    """The driving video's frames as ``camera`` (1,) frames them: from where they were filmed, so only shifted and scaled."""
    video = step.video
    rgba = torch.cat([video.frames * video.masks[..., None], video.masks[..., None]], -1).movedim(-1, 1)
    size = camera.width
    filmed = torch.cat([front.cropped(video.crop, video.resolution).K for front in step.fronts]).to(rgba)
    grid = torch.stack(torch.meshgrid(*[torch.arange(size, device=rgba.device) + 0.5] * 2, indexing="xy"), -1)
    wanted = camera.K.to(rgba)
    rays = (grid - wanted[:, None, :2, 2]) / wanted[0, 0, 0]  # (H, W, 2): x / z and y / z
    pixels = rays * filmed[:, None, None, 0, 0, None] + filmed[:, None, None, :2, 2]
    pixels = pixels.expand(len(rgba), size, size, 2) / video.resolution * 2 - 1
    # Pictures are made smaller here more often than larger: average first, as far as that goes evenly.
    shrink = max(1, int(float(filmed[0, 0, 0] / wanted[0, 0, 0])))
    shown = F.grid_sample(F.avg_pool2d(rgba, shrink), pixels, mode="bilinear", padding_mode="zeros", align_corners=False)
    shown = shown.movedim(1, -1)
    return shown[..., :3] + (1 - shown[..., 3:]) * background.to(shown)
