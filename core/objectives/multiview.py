"""Multi-view distillation: Align4D's motion-geometry joint alignment, and DreamGaussian4D's and STAG4D's, which ask less or
show the prior other pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from ..align.distance import ObjectDistance, visual_distance
from ..files import InputError
from ..priors.base import Condition, Prior, Viewpoints
from ..priors.distill import Distillation, Question
from ..render import rasterize
from ..scene.anchors import Anchors
from ..schedules import Weight, constant
from .base import OBJECTIVES, FitStep, Objective
from .novel_view import FrameConditions
from .reference import require_image

#: Within so many degrees of the front, STAG4D always shows the prior the video's frame.
FRONTAL = 30.0

#: Cells of Zero123's latents: a weight of 1 is the papers', whose losses are sums over these, for priors of any size.
CELLS = 4 * 32 * 32


@OBJECTIVES.register("motion and geometry")
@dataclass(frozen=True)
class MotionGeometry(Objective):
    """Unknown views of Align4D (Eq. 7-9): every frame's object, seen from random sides, must suit both video and 3D.

    A prior is asked twice about the same noisy renders, in one batch: given that time's frame and the relative pose (motion,
    Eq. 7), and given the still object from the same camera and no relative pose (geometry, Eq. 8). Of T frames, the t-th, from
    1, weighs motion by t / T and geometry by (T - t) / T (Eq. 9): early frames obey the 3D, late ones the video. Motion alone,
    with ``temporal`` off and no distance, is the distillation of DreamGaussian4D; with anchors, that of STAG4D: of the views
    more than 30 degrees from the front, some are asked about given the nearest anchor of that time instead of its frame.

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
        anchors: views of every frame; None: only the video's frames are shown.
        anchored: which share of the views off the front are given their anchor (STAG4D's code: 0.4).
        both: those are all given the frame and the anchor, weighed ``1 - anchored`` and ``anchored`` (STAG4D Eq. 6).
        dark: share of the views drawn on black although what the prior is shown is not (STAG4D's code: 0.5).
    """

    name: ClassVar[str] = "motion and geometry"
    needs: ClassVar[frozenset[str]] = frozenset({"video"})
    takes: ClassVar[frozenset[str]] = frozenset({"distance", "anchors"})
    distillation: Distillation
    weight: Weight = constant(1.0)  # noqa: RUF009
    views: int = 4
    motion: bool = True
    geometry: bool = True
    temporal: bool = True
    distance: ObjectDistance | None = None
    elevation: tuple[float, float] = (-30.0, 30.0)
    sizes: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    anchors: Anchors | None = None
    anchored: float = 0.4
    both: bool = False
    dark: float = 0.0
    _conditions: FrameConditions = field(default_factory=FrameConditions, init=False, repr=False, compare=False)
    _anchored: dict[str, Condition] = field(default_factory=dict, init=False, repr=False, compare=False)

    def priors(self) -> tuple[Prior, ...]:
        return (self.distillation.prior,)

    def check(self) -> None:
        require_image(self.distillation.prior, "Motion and Geometry")

    def weighted(self, step: FitStep, weight: float | Tensor) -> Tensor:
        prior, front = self.distillation.prior, step.fronts[0]
        distance = self.distance
        if distance is None and self.anchors is not None:
            distance = ObjectDistance(self.anchors.distance, self.anchors.distance, "zero", self.anchors.fovy)
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
        behind = background
        if self.dark:
            lit = (torch.rand(frames, samples, 1, 1, generator=step.generator) >= self.dark).to(background)
            behind = (background * lit).expand(frames, samples, around, 3).reshape(frames, samples * around, 3)
        images = step.render(step.gaussians, cameras, behind).color
        images = rearrange(images, "t (s v) h w c -> (t s) v h w c", v=around)

        at = step.frames.repeat_interleave(samples)
        late = (at + 1) / step.frame_count if self.temporal and self.motion and self.geometry else None
        questions = []
        if self.motion:
            told = distance.told(azimuth, elevation, 0.0, front.elevation)
            seen = distance.cameras(0.0, front.elevation, prior.resolution[0], distance.visual)
            shown = self._conditions(step, self.distillation, seen, background)
            if self.anchors is None:
                questions.append(Question(shown[at.to(prior.device)], told, late))
            else:
                questions += self._of_anchors(step, shown, told, at, late)
        if self.geometry:
            with torch.no_grad():
                same = distance.cameras(azimuth[:, 0], elevation[:, 0], prior.resolution[0], distance.visual).to(device)
                still = rasterize(step.still, same, background, backend=step.backend).color
            condition = self.distillation.condition(still.clamp(0, 1))
            told = distance.told(azimuth, elevation, azimuth[:, :1], elevation[:, :1])
            questions.append(Question(condition, told, None if late is None else 1 - late))
        loss = self.distillation.joint(images, questions, step.rho, step.generator)
        return weight * CELLS / (len(images) * math.prod(prior.latent_shape())) * loss

    def _of_anchors(
        self,
        step: FitStep,
        frames: Condition,  # of T frames
        told: Viewpoints,  # (B, 1), seen from the front
        at: Tensor,  # (B,)
        late: Tensor | None,  # (B,)
    ) -> list[Question]:
        """The motion question where anchors stand beside the frames (STAG4D, Eq. 6, and its released code)."""
        anchors, prior = self.anchors, self.distillation.prior
        assert anchors is not None and told.reference is not None
        if prior.pictures > 1:
            raise InputError(f"anchors: prior {prior.name} draws several pictures at once, choose one of single pictures")
        if len(anchors) != step.frame_count:
            raise InputError(f"anchors: of {len(anchors)} frames where the video has {step.frame_count}; sample them again")
        count = len(anchors.elevations)
        azimuth = (told.azimuth[:, 0] + 180) % 360 - 180
        nearest = anchors.nearest(azimuth)
        off = ~(azimuth.abs() < FRONTAL) & anchors.valid.cpu()[at, nearest]
        chance = torch.rand(len(azimuth), generator=step.generator)
        if anchors.identity not in self._anchored:
            behind = torch.tensor(prior.background)
            self._anchored[anchors.identity] = self.distillation.condition(anchors.composited(behind).flatten(0, 1))
        views = self._anchored[anchors.identity]
        azimuths, elevations = torch.tensor(anchors.azimuths), torch.tensor(anchors.elevations)
        seen = Viewpoints(azimuths[nearest][:, None], elevations[nearest][:, None], told.reference.distance)

        def question(by_anchor: Tensor, share: Tensor | None) -> Question:
            # Rows of the frames, then of the anchors, frame by frame.
            rows = torch.where(by_anchor, step.frame_count + at * count + nearest, at).to(prior.device)
            reference = _chosen(by_anchor[:, None], seen, told.reference)
            view = Viewpoints(told.azimuth, told.elevation, told.distance, reference)
            return Question(Condition.cat([frames, views])[rows], view, share)

        if not self.both:
            return [question(off & (chance < self.anchored), late)]
        weight = torch.where(off, self.anchored, 0.0)
        weights = [1 - weight, weight] if late is None else [late * (1 - weight), late * weight]
        return [question(torch.zeros_like(off), weights[0]), question(off, weights[1])]


def _chosen(which: Tensor, yes: Viewpoints, no: Viewpoints | None) -> Viewpoints:  # (B, 1) each
    """Of two batches of viewpoints, sample by sample."""
    assert no is not None
    azimuth, elevation, distance = (
        torch.where(which, getattr(yes, n), getattr(no, n)) for n in ("azimuth", "elevation", "distance")
    )
    return Viewpoints(azimuth, elevation, distance)
