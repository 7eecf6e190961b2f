"""Composed score distillation of Align Your Gaussians: what several models think of a text, on one object.

arXiv 2312.13763. Reverse KL divergence to the product of the models' distributions, of whose gradient only the classifier terms
are kept (CSD): ``sum_k omega_k [eps_k(z, text) - eps_k(z, negative text)]``. Each model's part has unit size before its omega.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..cameras import Cameras, orbit
from ..files import InputError
from ..priors.base import Condition, Prior, Viewpoints
from ..priors.distill import Distillation, Question, Term, composed
from ..schedules import Weight, constant
from .base import OBJECTIVES, FitStep, Objective

#: What a text is followed by for views from azimuths (degrees from the front) and elevations; threestudio's limits.
OVERHEAD, FRONT_HALF_WIDTH, BACK_HALF_WIDTH = 60.0, 45.0, 45.0


@dataclass(frozen=True)
class Lens:
    """Where a step's pictures are taken from: around the object, which they frame whole.

    Args:
        elevation: range, degrees, positive = from above.
        fovy: range of the vertical field of view, degrees; one for all pictures of a step.
        fill: range of the share of the picture's shorter side that the object's longest side takes.
        azimuth: range, degrees.
    """

    elevation: tuple[float, float] = (0.0, 30.0)
    fovy: tuple[float, float] = (40.0, 60.0)
    fill: tuple[float, float] = (0.6, 0.8)
    azimuth: tuple[float, float] = (-180.0, 180.0)

    def cameras(self, sets: int, around: int, size: tuple[int, int], generator: torch.Generator) -> Cameras:
        """Cameras (sets, around) for pictures of ``size`` (height, width); those of a set stand evenly around the object."""
        u = torch.rand(4, sets, 1, generator=generator)
        spans = (self.elevation, self.fovy, self.fill, self.azimuth)
        elevation, fovy, fill, azimuth = (low + (high - low) * u[i] for i, (low, high) in enumerate(spans))
        height, width = size
        azimuth = azimuth + torch.arange(around) * (360 / around)
        distance = max(1.0, height / width) / (2 * fill * torch.tan(torch.deg2rad(fovy) / 2))
        flat = [x.expand(sets, around).flatten() for x in (azimuth, elevation, distance, fovy)]
        return orbit(*flat, width=width, height=height).reshape(sets, around)


class Texts:
    """What priors make of texts, made once."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Condition] = {}

    def __call__(self, prior: Prior, text: str, negative: str | None = None, fps: float | None = None) -> Condition:
        """Of a text, or nothing of an empty one: the host's models have theirs from the graph."""
        key = (id(prior), prior.device, text, negative, fps)
        if key not in self._kept:
            texts: dict[str, Any] = {"text": text, "negative": negative} if text else {}
            self._kept[key] = prior.condition(**texts, fps=fps)
        return self._kept[key]


@OBJECTIVES.register("view scores")
@dataclass(frozen=True)
class ViewScores(Objective):
    """A static object that suits a text: a model of several views gives its shape, a text-to-image model its looks.

    Args:
        views: a multi-view model (MVDream), its distillation; None = without.
        images: a text-to-image model, which looks from other sides; None = without.
        prompt: the text; empty for models that have theirs from elsewhere.
        negative: text to steer away from; None = each model's own.
        weight: of the loss, the mean over latent cells, as a function of rho.
        sets: sets of views a step.
        pictures: pictures that the text-to-image model sees a step, K.
        view_guidance: omega_vg, relative to the text-to-image model's: the further classifier term of the text followed by
            the view's name against the text alone.
        shape: what the multi-view model's text ends in.
        lens: cameras.
    """

    name: ClassVar[str] = "view scores"
    views: Distillation | None
    images: Distillation | None
    prompt: str = ""
    negative: str | None = None
    weight: Weight = constant(1.0)  # noqa: RUF009
    sets: int = 1
    pictures: int = 4
    view_guidance: float = 0.5
    shape: str = ", 3d asset"
    lens: Lens = Lens()
    _texts: Texts = field(default_factory=Texts, init=False, repr=False, compare=False)

    def priors(self) -> tuple[Prior, ...]:
        return tuple(asked.prior for asked in (self.views, self.images) if asked is not None)

    def check(self) -> None:
        if not self.priors():
            raise InputError("view scores: no model is asked; connect a multi-view or a text-to-image prior")

    def detailed(self) -> Self | None:
        return None if self.images is None else replace(self, views=None)

    def loss(self, step: FitStep) -> Tensor:
        losses = []
        if self.views is not None:
            prior = self.views.prior
            images, views = self._look(step, prior, self.sets, prior.pictures)
            condition = self._texts(prior, self.prompt + self.shape if self.prompt else "", self.negative)
            loss = self.views.joint(images, [Question(condition, views)], step.rho, step.generator)
            losses.append(loss / (len(images) * math.prod(prior.latent_shape())))
        if self.images is not None:
            prior = self.images.prior
            images, views = self._look(step, prior, self.pictures, 1)
            plain = self._texts(prior, self.prompt, self.negative)
            viewpoints = views if "cameras" in prior.conditions else None
            questions = [Question(plain, viewpoints)]
            if self.prompt and self.view_guidance > 0:
                named = [
                    self._texts(prior, f"{self.prompt}, {view_name(float(a), float(e))} view", self.negative).positive
                    for a, e in zip(views.azimuth[:, 0], views.elevation[:, 0])
                ]
                rows = {key: torch.cat([row[key] for row in named]) for key in named[0]}
                share = torch.full((self.pictures,), self.view_guidance)
                questions.append(Question(Condition(rows, plain.positive), viewpoints, share))
            loss = self.images.joint(images, questions, step.rho, step.generator)
            losses.append(loss / (len(images) * math.prod(prior.latent_shape())))
        return torch.stack([loss.to(step.canonical.device) for loss in losses]).sum()

    def _look(self, step: FitStep, prior: Prior, sets: int, around: int) -> tuple[Tensor, Viewpoints]:
        cameras = self.lens.cameras(sets, around, prior.resolution, step.generator)
        shown = step.canonical
        if step.field is not None:
            shown = step.field(shown, torch.zeros(1, device=shown.device)).map(lambda t: t[0])
        flat = cameras.to(shown.device).reshape(sets * around)
        return step.render(shown, flat).color.unflatten(0, (sets, around)), Viewpoints.of(cameras)


def view_name(azimuth: float, elevation: float) -> str:
    """ "front", "side", "back" or "overhead": what a text-to-image model is given for a view, degrees."""
    if abs(elevation) > OVERHEAD:
        return "overhead" if elevation > 0 else "bottom"
    away = abs((azimuth + 180) % 360 - 180)
    return "front" if away < FRONT_HALF_WIDTH else "back" if away > 180 - BACK_HALF_WIDTH else "side"


@OBJECTIVES.register("clip scores")
@dataclass(frozen=True)
class ClipScores(Objective):
    """A moving object that suits a text: a text-to-video model judges clips of it, a text-to-image model some of their frames.

    Of each clip the camera stands still. A video model that takes frame rates sees the whole clip at one of several: low ones
    ask for much motion, high ones for smooth motion. To others, the same is done with clips that span less of the time.

    Args:
        video: a text-to-video model, its distillation.
        images: a text-to-image model; None = without.
        prompt: the text; empty for models that have theirs from elsewhere.
        negative: text that the video model is steered away from; None = its own, against clips that hardly move.
        image_negative: the same for the text-to-image model.
        weight: of the loss, the mean over latent cells, as a function of rho.
        amplification: omega_ma as a function of rho: the video model's classifier term's deviation from its mean over the
            clip's frames is multiplied by it; 1 = off.
        subset: frames of a clip that the text-to-image model sees.
        clips: clips a step.
        rates: frames a second that a video model is given, one of them a step.
        spans: shares of the time that a clip covers, for video models that are given no rate, one of them a step.
        lens: cameras.
    """

    name: ClassVar[str] = "clip scores"
    needs: ClassVar[frozenset[str]] = frozenset({"field"})
    requires: ClassVar[frozenset[str]] = frozenset({"video"})
    takes: ClassVar[frozenset[str]] = frozenset({"prompt"})
    video: Distillation
    images: Distillation | None = None
    prompt: str = ""
    negative: str | None = None
    image_negative: str | None = None
    weight: Weight = constant(1.0)  # noqa: RUF009
    amplification: Weight = constant(1.0)  # noqa: RUF009
    subset: int = 4
    clips: int = 1
    rates: tuple[float, ...] = (4.0, 8.0, 12.0)
    spans: tuple[float, ...] = (1.0, 0.75, 0.5)
    lens: Lens = Lens()
    _texts: Texts = field(default_factory=Texts, init=False, repr=False, compare=False)

    def priors(self) -> tuple[Prior, ...]:
        return tuple(asked.prior for asked in (self.video, self.images) if asked is not None)

    def loss(self, step: FitStep) -> Tensor:
        prior, device = self.video.prior, step.canonical.device
        rate, span = None, 1.0
        if "fps" in prior.conditions:
            rate = _one_of(self.rates, step.generator)
        else:
            span = _one_of(self.spans, step.generator)
        begin = (1 - span) * torch.rand(self.clips, 1, generator=step.generator)
        along = begin + span * torch.linspace(0, 1, prior.pictures)  # (C, F), of the fit's own time
        taus = step.times[0] + (step.times[-1] - step.times[0]) * along.to(device)
        cameras = self.lens.cameras(self.clips, 1, prior.resolution, step.generator)
        if span == 1:  # the clips' times are the same, and perhaps the fit's own
            same = len(step.taus) == prior.pictures and torch.allclose(taus[0], step.taus)
            moved = step.gaussians if same else step.moving(step.canonical, taus[0])
            each = cameras.reshape(1, self.clips)[[0] * prior.pictures].to(device)
            images = step.render(moved, each).color.transpose(0, 1)
        else:
            moved = step.moving(step.canonical, taus.flatten())
            each = cameras[torch.arange(self.clips).repeat_interleave(prior.pictures)].to(device)
            images = step.render(moved, each).color.reshape(self.clips, prior.pictures, *prior.resolution, 3)

        views = Viewpoints.of(cameras).map(lambda v: v.expand(-1, prior.pictures))
        cells = self.clips * math.prod(prior.latent_shape())
        moving = replace(self.video, amplification=self.amplification(step.rho), weight=_scaled(self.video.weight, 1 / cells))
        terms = [_term(moving, self._texts(prior, self.prompt, self.negative, rate), views)]
        if self.images is not None:
            other = self.images.prior
            cells = self.clips * self.subset * math.prod(other.latent_shape())
            looks = replace(self.images, weight=_scaled(self.images.weight, 1 / cells))
            terms.append(_term(looks, self._texts(other, self.prompt, self.image_negative), views, self.subset))
        return composed(images, terms, step.rho, step.generator)


@dataclass(frozen=True)
class _Scaled:
    weight: Weight
    factor: float

    def __call__(self, rho: float) -> float:
        return self.factor * self.weight(rho)


def _scaled(weight: Weight, factor: float) -> Weight:
    return _Scaled(weight, factor)


def _term(distillation: Distillation, condition: Condition, views: Viewpoints, subset: int = 0) -> Term:
    return Term(distillation, condition, views if "cameras" in distillation.prior.conditions else None, subset)


def _one_of(choices: tuple[float, ...], generator: torch.Generator) -> float:
    return choices[int(torch.randint(len(choices), (1,), generator=generator))]
