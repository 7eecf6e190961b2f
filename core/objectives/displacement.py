"""Regularisers of where a deformation takes the Gaussians (Align Your Gaussians, arXiv 2312.13763)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..schedules import Weight, constant
from .base import OBJECTIVES, FitStep, Objective
from .rigidity import near, picked


@OBJECTIVES.register("position")
@dataclass(frozen=True)
class PositionRegulariser(Objective):
    """The object's centre and extent stay near those of the static object: the Jensen-Shannon term, its mean over times.

    A text-to-video model takes an object that slides for one that moves; without this term sliding is what it gets.

    Args:
        weight: of the divergence.
        share: above 0, the weight is scaled once, at ``share_step``, so that for an object that slid by ``slide`` the term's
            gradient would be this share of the others'. Its gradient then and there may be anything: it is 0 for an object in
            its place.
        share_step: when.
        slide: world units.
    """

    name: ClassVar[str] = "position"
    needs: ClassVar[frozenset[str]] = frozenset({"field"})
    regularises: ClassVar[bool] = True
    weight: Weight = constant(1.0)  # noqa: RUF009
    share: float = 0.0
    share_step: int = 100
    slide: float = 0.02

    def loss(self, step: FitStep) -> Tensor:
        return divergence(step.canonical.means, step.gaussians.means).mean()

    def probe(self, step: FitStep) -> Tensor:
        """The term for the static object slid along x, with the gradient that it has on the field."""
        means = step.gaussians.means
        slid = step.canonical.means + means.new_tensor([self.slide, 0, 0])
        return self.weight_at(step) * divergence(step.canonical.means, means + (slid - means).detach()).mean()


def divergence(rest: Tensor, moved: Tensor) -> Tensor:  # (N, 3), (B, N, 3) -> (B,)
    """Jensen-Shannon divergence of two sets' positions, each taken as a Gaussian with a diagonal covariance.

    The mixture is replaced by the Gaussian of mean centre and mean variance, which makes it a closed form: 0 where centre and
    variances agree; unlike variances alone, or unlike centres, make it positive.
    """
    centre, centres = rest.mean(0), moved.mean(1)
    variance, variances = (x.var(-2, unbiased=False).clamp_min(1e-8) for x in (rest, moved))
    both = variance + variances
    logs = 0.5 * both.log() - 0.25 * variance.log() - 0.25 * variances.log() - 0.5 * math.log(2)
    return (logs + 0.25 * (centres - centre).square() / both).sum(-1)


@OBJECTIVES.register("local rigidity")
@dataclass(frozen=True)
class LocalRigidity(Objective):
    """Neighbours in the static object are displaced alike: ``mean_i sum_j |Delta_i - Delta_j|^2`` over i's k nearest j.

    The paper's own formula is not public; this is Comp4D's, a follower's. It says nothing of rotations, which positions alone
    do not have: turning costs as bending does. The Gaussians of each step are a random part.

    Args:
        weight: of the mean over Gaussians and times.
        k: neighbours.
        sample: Gaussians i a step; 0 = all.
    """

    name: ClassVar[str] = "local rigidity"
    needs: ClassVar[frozenset[str]] = frozenset({"field"})
    regularises: ClassVar[bool] = True
    weight: Weight = constant(1000.0)  # noqa: RUF009
    k: int = 40
    sample: int = 2048

    def scaled(self, step: FitStep, weight: float | Tensor) -> float | Tensor:
        return weight * near(step, self.k).shape[1]

    def loss(self, step: FitStep) -> Tensor:
        count = len(step.canonical)
        chosen = torch.randperm(count, generator=step.generator)[: self.sample or count].to(step.canonical.device)
        delta = step.gaussians.means - step.canonical.means
        others = near(step, self.k)[chosen]
        apart = picked(delta, chosen.repeat_interleave(others.shape[1])) - picked(delta, others.flatten())  # (B, n k, 3)
        return apart.square().sum(-1).mean()


@OBJECTIVES.register("seam")
@dataclass(frozen=True)
class Seam(Objective):
    """Two clips of a chain agree where one is blended into the other (L_interpol): see :class:`~..deformation.ClipChain`.

    Args:
        weight: of the mean squared difference between the clip before and the blend.
    """

    name: ClassVar[str] = "seam"
    needs: ClassVar[frozenset[str]] = frozenset({"field", "seam"})
    weight: Weight = constant(1000.0)  # noqa: RUF009

    def loss(self, step: FitStep) -> Tensor:
        return step.moving.seam(step.canonical, step.taus)
