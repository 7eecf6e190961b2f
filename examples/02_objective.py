"""A plug-in objective: nothing sinks below the ground. It joins the others of a fit, which minimises their sum."""

from dataclasses import dataclass

from torch import Tensor

import anchor4d as a4d
from anchor4d.core.schedules import Weight, constant


@a4d.OBJECTIVES.register("ground")
@dataclass(frozen=True)
class Ground(a4d.Objective):
    """Mean squared depth of the moved Gaussians below a height.

    Args:
        weight: of the mean, as a function of the fit's progress in [0, 1].
        height: of the ground, world units; the object's longest side is 1.
    """

    name = "ground"
    needs = frozenset({"field"})
    weight: Weight = constant(1e3)  # noqa: RUF009
    height: float = -0.5

    def loss(self, step: a4d.FitStep) -> Tensor:
        return (self.height - step.gaussians.means[..., 1]).clamp_min(0).square().mean()
