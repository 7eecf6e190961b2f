"""What STAG4D asks of a field and of Gaussians for themselves: smooth feature planes, and no needles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..schedules import Weight, constant
from .base import OBJECTIVES, FitStep, Objective


@OBJECTIVES.register("planes")
@dataclass(frozen=True)
class PlaneSmoothness(Objective):
    """Regularisers of a HexPlane's planes, summed over planes and scales.

    Of the planes of space and time: mean squared second difference over time, and mean distance from 1, which is no motion. Of
    those of space: mean squared second difference along their second axis.

    Args:
        weight: of the sum, as a function of rho.
        time, still, space: of its three terms.
    """

    name: ClassVar[str] = "planes"
    needs: ClassVar[frozenset[str]] = frozenset({"field", "planes"})
    weight: Weight = constant(1.0)  # noqa: RUF009
    time: float = 5.0
    still: float = 0.05
    space: float = 0.05

    def loss(self, step: FitStep) -> Tensor:
        loss = step.canonical.means.new_zeros(())
        for plane, of_time in step.moving.feature_planes():
            bend = plane.diff(n=2, dim=2).square().mean() if plane.shape[2] > 2 else plane.new_zeros(())
            loss = loss + (self.time * bend + self.still * (1 - plane).abs().mean() if of_time else self.space * bend)
        return loss


@OBJECTIVES.register("anisotropy")
@dataclass(frozen=True)
class AnisotropyRegulariser(Objective):
    """Gaussians may be ``ratio`` times as long as they are thin: mean of what is beyond (as PhysGaussian has it).

    Args:
        weight: of the mean, as a function of rho.
        ratio: longest over shortest standard deviation.
        logarithmic: as STAG4D's released code has it, the quotient of the scales' logarithms, which says nothing for small
            Gaussians, times their number.
    """

    name: ClassVar[str] = "anisotropy"
    weight: Weight = constant(1.0)  # noqa: RUF009
    ratio: float = 7.5
    logarithmic: bool = False

    def loss(self, step: FitStep) -> Tensor:
        logs = step.gaussians.log_scales
        longest, shortest = logs.amax(-1), logs.amin(-1)
        # Of the scales themselves, the quotient's gradient has no value where they are next to nothing.
        quotient = longest / shortest if self.logarithmic else (longest - shortest).exp()
        beyond = quotient.clamp_min(self.ratio).mean() - self.ratio
        return (logs.shape[-2] if self.logarithmic else 1) * beyond
