"""Depth of the frames as a target: what is nearer in a given relative depth must be nearer in the render."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..align.depth import WIDTH, comparable, fitted
from ..schedules import Weight, constant
from ..signals import DepthMaps
from .base import OBJECTIVES, FitStep, Objective

#: Alpha, of mask and render, from which a pixel's depth is the object's own.
SOLID = 0.9


@OBJECTIVES.register("depth")
@dataclass(frozen=True)
class DepthMatch(Objective):
    """Mean pseudo-Huber distance, over the pixels inside both mask and render, between rendered and given depth.

    Both are compared in world units at the object: z, or for inverse depth D^2 / z, D the camera's distance from the object,
    whose slope there is that of -z. The scale and shift that take the given values there are those of the first frame, by the
    aligned object, or each step's own least squares in closed form, reweighted against outliers (the alignment of Ranftl et
    al., MiDaS, 2020, with a robust norm).

    Args:
        weight: of the loss, as a function of rho.
        maps: through the driving video's crop, (T, S, S); None: the term is 0.
        inverse: whether the maps grow towards the camera.
        affine: scale and shift for all frames; None: found anew for each frame in each step. Computed from the inputs, so
            that it is not part of a run's identity.
    """

    name: ClassVar[str] = "depth"
    needs: ClassVar[frozenset[str]] = frozenset({"video", "field"})
    weight: Weight = constant(1.0)  # noqa: RUF009
    maps: DepthMaps | None = None
    inverse: bool = True
    affine: tuple[float, float] | None = dataclasses.field(default=None, compare=False)

    def loss(self, step: FitStep) -> Tensor:
        if self.maps is None:
            return step.canonical.means.new_zeros(())
        given, inside = self._at(step)
        render = step.front
        alpha = render.alpha[:, 0]
        shown = comparable(render.depth[:, 0] / alpha.clamp_min(0.1), step.fronts[0].distance, self.inverse)
        weight = inside * (alpha.detach() > SOLID)
        if self.affine is None:
            scale, shift = fitted(given, shown.detach(), weight)
            goal = scale[:, None, None] * given + shift[:, None, None]
        else:
            goal = self.affine[0] * given + self.affine[1]
        # Where alpha is small, depth over alpha means nothing, and its gradient is large: nothing of it is left.
        residual = torch.where(weight > 0, shown - goal, 0.0)
        distance = 2 * WIDTH**2 * ((1 + (residual / WIDTH).square()).sqrt() - 1)
        return (weight * distance).sum() / weight.sum().clamp_min(1.0)

    def _at(self, step: FitStep) -> tuple[Tensor, Tensor]:
        """The maps of the step's frames at its resolution, and where they are known and inside the mask, (B, H, W)."""
        assert self.maps is not None
        key = "depth", id(self.maps), step.resolution
        if key not in step.memo:
            step.memo[key] = resized(self.maps.values.to(step.canonical.device), step.resolution)
        value, known = step.memo[key]
        return value[step.at], known[step.at] * (step.target[1][:, 0] > SOLID)


def resized(values: Tensor, resolution: int) -> tuple[Tensor, Tensor]:  # (T, S, S) -> twice (T, R, R)
    """Values averaged at another resolution, and 1 where all of them are known."""
    known = values.isfinite()
    both = torch.stack([values.nan_to_num(0, 0, 0) * known, known.to(values)], 1)
    if resolution != values.shape[-1]:
        size = (resolution, resolution)
        both = F.interpolate(both, size=size, mode="bilinear", antialias=True, align_corners=False)
    value, share = both.unbind(1)
    return value / share.clamp_min(1e-3), (share > 0.99).to(values)
