"""Multi-view distillation at the aligned object distance: Align4D's motion-geometry joint alignment, and DreamGaussian4D's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from ..align.distance import ObjectDistance, visual_distance
from ..priors.distill import Distillation, Question
from ..render import rasterize
from .base import FitStep, Weight, constant
from .novel_view import FrameConditions
from .reference import require_image

#: Cells of Zero123's latents: a weight of 1 is the papers', whose losses are sums over these, for priors of any size.
CELLS = 4 * 32 * 32


@dataclass(frozen=True)
class MotionGeometry:
    """Unknown views of Align4D (Eq. 7-9): every frame's object, seen from random sides, must suit both video and 3D.

    A prior is asked twice about the same noisy renders, in one batch: given that time's frame and the relative pose (motion,
    Eq. 7), and given the still object from the same camera and no relative pose (geometry, Eq. 8). Of T frames, the t-th, from
    1, weighs motion by t / T and geometry by (T - t) / T (Eq. 9): early frames obey the 3D, late ones the video. Motion alone,
    with ``temporal`` off and no distance, is the distillation of DreamGaussian4D.

    Args:
        distillation: an image-conditioned prior with cameras, and how it is distilled.
        weight: lambda, of the mean over pictures of the sum over Zero123's latent cells, as a function of rho.
        views: random cameras for each frame; of priors of several pictures a sample, rounded up to whole samples, whose
            pictures are spread evenly around the object.
        motion, geometry: whether the prior is asked so.
        temporal: Eq. 9's coefficients; else both weigh 1, as either alone does.
        distance: how far the object is seen from and what the prior is told of it; None: as far as the video, and nothing.
        elevation: range of the random elevations, degrees, relative to the driving video's.
        sizes: pairs (until rho, factor on the prior's resolution) of the renders.
    """

    name: ClassVar[str] = "motion and geometry"
    generative: ClassVar[bool] = True
    distillation: Distillation
    weight: Weight = constant(1.0)  # noqa: RUF009
    views: int = 4
    motion: bool = True
    geometry: bool = True
    temporal: bool = True
    distance: ObjectDistance | None = None
    elevation: tuple[float, float] = (-30.0, 30.0)
    sizes: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    _conditions: FrameConditions = field(default_factory=FrameConditions, init=False, repr=False, compare=False)

    def __call__(self, step: FitStep) -> Tensor:
        prior, front = self.distillation.prior, step.fronts[0]
        require_image(prior, "Motion and Geometry")
        distance = self.distance
        if distance is None:
            aligned = visual_distance(front, step.video.crop)
            distance = ObjectDistance(aligned, aligned, "zero")
        device, frames, around = step.canonical.device, len(step.frames), prior.pictures
        samples = math.ceil(self.views / around)  # of each frame
        azimuth, elevation = torch.rand(2, frames * samples, 1, generator=step.generator)
        azimuth = 360 * azimuth - 180 + torch.arange(around) * (360 / around)  # (B, V)
        low, high = self.elevation
        elevation = (front.elevation + low + (high - low) * elevation).expand_as(azimuth)
        factor = next((factor for until, factor in self.sizes if step.rho < until), self.sizes[-1][1])
        size, background = round(prior.resolution[0] * factor), torch.tensor(prior.background, device=device)
        cameras = distance.cameras(azimuth.flatten(), elevation.flatten(), size).to(device).reshape(frames, samples * around)
        images = rasterize(step.gaussians, cameras, background, backend=step.backend).color
        images = rearrange(images, "t (s v) h w c -> (t s) v h w c", v=around)

        at = step.frames.repeat_interleave(samples)
        late = (at + 1) / step.frame_count if self.temporal and self.motion and self.geometry else None
        questions = []
        if self.motion:
            told = distance.told(azimuth, elevation, 0.0, front.elevation)
            seen = distance.cameras(0.0, front.elevation, prior.resolution[0], distance.visual)
            condition = self._conditions(step, self.distillation, seen, background)[at.to(prior.device)]
            questions.append(Question(condition, told, late))
        if self.geometry:
            with torch.no_grad():
                same = distance.cameras(azimuth[:, 0], elevation[:, 0], prior.resolution[0], distance.visual).to(device)
                still = rasterize(step.still, same, background, backend=step.backend).color
            condition = self.distillation.condition(still.clamp(0, 1))
            told = distance.told(azimuth, elevation, azimuth[:, :1], elevation[:, :1])
            questions.append(Question(condition, told, None if late is None else 1 - late))
        loss = self.distillation.joint(images, questions, step.rho, step.generator)
        return self.weight(step.rho) * CELLS / (len(images) * math.prod(prior.latent_shape())) * loss
