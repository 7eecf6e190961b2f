"""Multi-view distillation: every frame's object, seen from random sides, must suit the picture that conditions a prior.

One objective over questions: DreamGaussian4D asks about the frame, Align4D's motion-geometry joint alignment about the frame
and the static object, STAG4D about the frame or the nearest anchor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, Self

import torch
from einops import rearrange
from torch import Tensor

from ..align.distance import ObjectDistance, visual_distance
from ..cameras import Cameras
from ..files import InputError
from ..priors.base import Condition, Prior, Viewpoints
from ..priors.distill import Distillation, Question
from ..render import rasterize
from ..scene.anchors import Anchors
from ..schedules import Weight
from ..schedules import constant as always
from ..transfer import constant, sent
from .base import OBJECTIVES, FitStep, Objective
from .novel_view import FrameConditions
from .reference import require_image

#: Within so many degrees of the front, STAG4D always shows the prior the video's frame.
FRONTAL = 30.0

#: Cells of Zero123's latents: a weight of 1 is the papers', whose losses are sums over these, for priors of any size.
CELLS = 4 * 32 * 32


@dataclass(frozen=True)
class Views:
    """The views of a step, B samples of V pictures.

    Args:
        step, distillation: that ask.
        distance: how far the object is seen from, and what the prior is given as it.
        azimuth, elevation: degrees, (B, V).
        frames: of each sample, (B,) int64.
        late: t / T of the t-th of T frames, from 1, (B,); None where all questions count alike.
        background: the prior's, (3,).
        conditions, anchored: what the prior made of the frames and of anchors, kept by the objective.
        drawn: what a question's :meth:`Ask.draw` gave.
    """

    step: FitStep
    distillation: Distillation
    distance: ObjectDistance
    azimuth: Tensor
    elevation: Tensor
    frames: Tensor
    late: Tensor | None
    background: Tensor
    conditions: FrameConditions
    anchored: dict[str, Condition]
    drawn: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def prior(self) -> Prior:
        return self.distillation.prior

    def of_frames(self) -> tuple[Condition, Viewpoints]:
        """The condition of every frame of the video, and the views as seen from the front."""
        front = self.step.fronts[0]
        seen = self.distance.cameras(0.0, front.elevation, self.prior.resolution[0], self.distance.visual)
        viewpoints = self.distance.viewpoints(self.azimuth, self.elevation, 0.0, front.elevation)
        return self.conditions(self.step, self.distillation, seen, self.background), viewpoints


class Ask(Protocol):
    """What a prior is asked about views."""

    def draw(self, views: Views) -> dict[str, Tensor]:
        """What it draws at random and chooses by it, tensors on the CPU, of views that are there."""
        ...

    def questions(self, views: Views) -> list[Question]:
        """The questions, of what was drawn."""
        ...

    def lens(self) -> ObjectDistance | None:
        """Where it needs the views' lens to stand; None where it does not matter."""
        ...

    def with_anchors(self, anchors: Anchors) -> Ask: ...


@dataclass(frozen=True)
class AboutFrame:
    """Given that time's frame and the relative pose: motion (Align4D Eq. 7, DreamGaussian4D). Counts more in late frames."""

    def draw(self, views: Views) -> dict[str, Tensor]:
        return {}

    def questions(self, views: Views) -> list[Question]:
        shown, viewpoints = views.of_frames()
        return [Question(shown[sent(views.frames, views.prior.device)], viewpoints, views.late)]

    def lens(self) -> ObjectDistance | None:
        return None

    def with_anchors(self, anchors: Anchors) -> Ask:
        return self


@dataclass(frozen=True)
class AboutStatic:
    """Given the static object from the same camera, no relative pose: geometry (Align4D Eq. 8). Counts more in early frames."""

    def draw(self, views: Views) -> dict[str, Tensor]:
        distance = views.distance
        cameras = distance.cameras(views.azimuth[:, 0], views.elevation[:, 0], views.prior.resolution[0], distance.visual)
        return {"pose": cameras.world_to_camera, "K": cameras.K}

    def questions(self, views: Views) -> list[Question]:
        step, size = views.step, views.prior.resolution[0]
        with torch.no_grad():
            same = Cameras(views.drawn["pose"], views.drawn["K"], size, size)
            still = rasterize(step.still, same, views.background, backend=step.backend).color
        condition = views.distillation.condition(still.clamp(0, 1))
        viewpoints = views.distance.viewpoints(
            views.azimuth, views.elevation, views.azimuth[:, :1], views.elevation[:, :1]
        )  # fmt: skip
        return [Question(condition, viewpoints, None if views.late is None else 1 - views.late)]

    def lens(self) -> ObjectDistance | None:
        return None

    def with_anchors(self, anchors: Anchors) -> Ask:
        return self


@dataclass(frozen=True)
class AboutAnchor:
    """Given that time's frame or, of views more than 30 degrees from the front, the nearest anchor (STAG4D Eq. 6 and its code).

    Args:
        anchors: views of every frame; without them, only the frames.
        share: which share of the views off the front are given their anchor (STAG4D's code: 0.4).
        both: those are all given the frame and the anchor, weighed ``1 - share`` and ``share`` (STAG4D Eq. 6).
    """

    anchors: Anchors | None = None
    share: float = 0.4
    both: bool = False

    def lens(self) -> ObjectDistance | None:
        lens = self.anchors
        return None if lens is None else ObjectDistance(lens.distance, lens.distance, "zero", lens.fovy)

    def with_anchors(self, anchors: Anchors) -> Ask:
        return replace(self, anchors=anchors)

    def draw(self, views: Views) -> dict[str, Tensor]:
        anchors, prior, step, at = self.anchors, views.prior, views.step, views.frames
        if anchors is None:
            return {}
        if prior.pictures > 1:
            raise InputError(f"anchors: prior {prior.name} draws several pictures at once, choose one of single pictures")
        if len(anchors) != step.frame_count:
            raise InputError(f"anchors: of {len(anchors)} frames where the video has {step.frame_count}; sample them again")
        viewpoints = views.distance.viewpoints(views.azimuth, views.elevation, 0.0, step.fronts[0].elevation)
        assert viewpoints.reference is not None
        azimuth = (viewpoints.azimuth[:, 0] + 180) % 360 - 180
        nearest = anchors.nearest(azimuth)
        off = ~(azimuth.abs() < FRONTAL) & anchors.valid.cpu()[at, nearest]
        chance = torch.rand(len(azimuth), generator=step.generator)
        shown = off if self.both else off & (chance < self.share)
        azimuths, elevations = torch.tensor(anchors.azimuths), torch.tensor(anchors.elevations)
        seen = viewpoints.reference
        return {
            # Rows of the frames, then of the anchors, frame by frame.
            "row": torch.where(shown, step.frame_count + at * len(anchors.elevations) + nearest, at),
            "azimuth": torch.where(shown[:, None], azimuths[nearest][:, None], seen.azimuth),
            "elevation": torch.where(shown[:, None], elevations[nearest][:, None], seen.elevation),
            "share": torch.where(off, self.share, 0.0),
        }

    def questions(self, views: Views) -> list[Question]:
        anchors, drawn, late = self.anchors, views.drawn, views.late
        frames, viewpoints = views.of_frames()
        device, seen = views.prior.device, viewpoints.reference
        assert seen is not None
        of_frame = Question(frames[sent(views.frames, device)], viewpoints, late)
        if anchors is None:
            return [of_frame]
        if anchors.identity not in views.anchored:
            behind = torch.tensor(views.prior.background)
            views.anchored[anchors.identity] = views.distillation.condition(anchors.composited(behind).flatten(0, 1))
        shown = Condition.cat([frames, views.anchored[anchors.identity]])[sent(drawn["row"].long(), device)]
        reference = Viewpoints(drawn["azimuth"], drawn["elevation"], seen.distance)
        view = Viewpoints(viewpoints.azimuth, viewpoints.elevation, viewpoints.distance, reference)
        if not self.both:
            return [Question(shown, view, late)]
        share = drawn["share"]
        shares = [1 - share, share] if late is None else [late * (1 - share), late * share]
        return [replace(of_frame, share=shares[0]), Question(shown, view, shares[1])]


@OBJECTIVES.register("multi-view")
@dataclass(frozen=True)
class MultiViewDistillation(Objective):
    """A prior's opinion of renders from random sides, by questions that are asked about the same noisy pictures in one batch.

    Of T frames, the t-th, from 1, weighs what is asked about the frame by t / T and about the static object by (T - t) / T
    (Align4D Eq. 9): early frames obey the 3D, late ones the video. A single question weighs 1.

    Args:
        distillation: an image-conditioned prior with cameras, and how it is distilled.
        weight: lambda, of the mean over pictures of the sum over Zero123's latent cells, as a function of rho.
        views: random cameras for each frame; of priors of several pictures a sample, rounded up to whole samples, whose
            pictures are spread evenly around the object.
        asks: the questions, in the order in which they draw random numbers.
        temporal: Eq. 9's coefficients; else all questions weigh 1.
        distance: how far the object is seen from and what the prior is given as it; None: where the anchors' lens stands, else
            as far as the video shows it, and nothing.
        elevation: range of the random elevations, degrees, relative to the driving video's.
        sizes: pairs (until rho, factor on the prior's resolution) of the renders.
        dark: share of the views drawn on black although the prior's condition is not (STAG4D's code: 0.5).
    """

    name: ClassVar[str] = "multi-view"
    needs: ClassVar[frozenset[str]] = frozenset({"video"})
    takes: ClassVar[frozenset[str]] = frozenset({"distance"})
    distillation: Distillation
    weight: Weight = always(1.0)  # noqa: RUF009
    views: int = 4
    asks: tuple[Ask, ...] = (AboutFrame(), AboutStatic())
    temporal: bool = True
    distance: ObjectDistance | None = None
    elevation: tuple[float, float] = (-30.0, 30.0)
    sizes: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    dark: float = 0.0
    _conditions: FrameConditions = field(default_factory=FrameConditions, init=False, repr=False, compare=False)
    _anchored: dict[str, Condition] = field(default_factory=dict, init=False, repr=False, compare=False)

    def priors(self) -> tuple[Prior, ...]:
        return (self.distillation.prior,)

    def check(self) -> None:
        require_image(self.distillation.prior, "multi-view distillation")

    def with_anchors(self, anchors: Anchors) -> Self:
        return replace(self, asks=tuple(ask.with_anchors(anchors) for ask in self.asks))

    @property
    def samples(self) -> int:
        """Samples of each frame, a prior's pictures each."""
        return math.ceil(self.views / self.distillation.prior.pictures)

    def scaled(self, step: FitStep, weight: float | Tensor) -> float | Tensor:
        return weight * CELLS / (len(step.taus) * self.samples * math.prod(self.distillation.prior.latent_shape()))

    def variant(self, step: FitStep) -> int:
        return self._size(step)

    def draw(self, step: FitStep) -> dict[str, Tensor]:
        prior, front, distance = self.distillation.prior, step.fronts[0], self._lens(step)
        frames, around, samples = len(step.frames), prior.pictures, self.samples
        azimuth, elevation = torch.rand(2, frames * samples, 1, generator=step.generator)
        azimuth = 360 * azimuth - 180 + torch.arange(around) * (360 / around)  # (B, V)
        low, high = self.elevation
        elevation = (front.elevation + low + (high - low) * elevation).expand_as(azimuth)
        size = self._size(step)
        cameras = distance.cameras(azimuth.flatten(), elevation.flatten(), size).reshape(frames, samples * around)
        drawn = {"azimuth": azimuth, "elevation": elevation, "pose": cameras.world_to_camera, "K": cameras.K}
        if self.dark:
            drawn["lit"] = (torch.rand(frames, samples, 1, 1, generator=step.generator) >= self.dark).float()
        at = step.frames.repeat_interleave(samples)
        drawn["frame"] = at
        if self.temporal and len(self.asks) > 1:
            drawn["late"] = (at + 1) / step.frame_count
        views = self._views(step, drawn, torch.tensor(prior.background))
        for number, ask in enumerate(self.asks):
            drawn |= {f"{number} {name}": tensor for name, tensor in ask.draw(views).items()}
        return drawn | self.distillation.draws(step.rho, len(azimuth), step.generator)

    def loss(self, step: FitStep) -> Tensor:
        prior, drawn, device = self.distillation.prior, step.given(self), step.canonical.device
        if not prior.small or prior.device != device:
            step.leave_uncaptured()
        frames, around, samples, size = len(step.taus), prior.pictures, self.samples, self._size(step)
        background = constant(tuple(prior.background), device)
        behind = background
        if self.dark:
            behind = (background * drawn["lit"]).expand(frames, samples, around, 3).reshape(frames, samples * around, 3)
        images = step.render(step.gaussians, Cameras(drawn["pose"], drawn["K"], size, size), behind).color
        images = rearrange(images, "t (s v) h w c -> (t s) v h w c", v=around)
        questions: list[Question] = []
        for number, ask in enumerate(self.asks):
            own = {name.removeprefix(f"{number} "): tensor for name, tensor in drawn.items() if name.startswith(f"{number} ")}
            questions += ask.questions(replace(self._views(step, drawn, background), drawn=own))
        return self.distillation.judged(images, questions, drawn)

    def _size(self, step: FitStep) -> int:
        """Pixels a side of the renders."""
        if len(self.sizes) == 1:  # so that steps may be captured
            return round(self.distillation.prior.resolution[0] * self.sizes[0][1])
        factor = next((factor for until, factor in self.sizes if step.rho < until), self.sizes[-1][1])
        return round(self.distillation.prior.resolution[0] * factor)

    def _lens(self, step: FitStep) -> ObjectDistance:
        """How far the object is seen from."""
        distance = self.distance or next((lens for ask in self.asks if (lens := ask.lens()) is not None), None)
        if distance is not None:
            return distance
        aligned = visual_distance(step.fronts[0], step.video.crop)
        return ObjectDistance(aligned, aligned, "zero")

    def _views(self, step: FitStep, drawn: Mapping[str, Tensor], background: Tensor) -> Views:
        return Views(
            step, self.distillation, self._lens(step), drawn["azimuth"], drawn["elevation"], drawn["frame"].long(),
            drawn.get("late"), background, self._conditions, self._anchored,
        )  # fmt: skip
