"""Texture alignment: the front view must look like the driving video (PLA4D Eq. 5-8, and Eq. 10 over time)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..metrics.perceptual import LPIPS, perceptual_distance
from ..schedules import Weight, linear
from . import fused
from .base import OBJECTIVES, FitStep, Objective

#: Pixels of which a card holds a perceptual network's activations at once: four pictures of 512 x 512, some 2 GB.
PIXELS = 1 << 20


def image_loss(
    color: Tensor,  # (..., H, W, 3)
    alpha: Tensor,  # (..., H, W)
    target: Tensor,  # (..., H, W, 3)
    mask: Tensor,  # (..., H, W)
    *,
    weight: float | Tensor,
    mask_weight: float = 0.1,
    levels: int = 1,
    perceptual: float = 0.0,
    network: str = "auto",
) -> Tensor:
    """``weight (MSE + mask_weight MSE_mask) + perceptual distance``: PLA4D's three terms with means in place of its sums.

    With several ``levels`` the squared errors are summed over an image pyramid. Each level halves the picture and doubles its
    weight, up to 8: a coarse level pulls a limb that is still far from its place, where the fine picture has no gradient.
    """
    color, target = color.reshape(-1, *color.shape[-3:]), target.reshape(-1, *target.shape[-3:])
    alpha, mask = alpha.reshape(-1, *alpha.shape[-2:]), mask.reshape(-1, *mask.shape[-2:])
    if fused.available(color.device) and levels <= fused.LEVELS:
        loss = fused.pyramid_loss(color, alpha, target, mask, mask_weight, levels)
    else:
        difference = torch.cat([color - target, (alpha - mask)[..., None]], -1).movedim(-1, 1)
        loss = color.new_zeros(())
        for level in range(levels):
            if level:
                difference = F.avg_pool2d(difference, 2)
            square = difference.square().mean((0, 2, 3))
            loss = loss + min(2.0**level, 8.0) * (square[:3].mean() + mask_weight * square[3])
    loss = weight * loss
    if perceptual > 0:
        distance, _ = perceptual_distance(network, str(color.device))
        size = max(1, PIXELS // (color.shape[1] * color.shape[2]))
        if color.is_cuda and len(color) > size and isinstance(distance, LPIPS):
            loss = loss + perceptual * mean_over_slices(distance, color, target, size)
        else:
            loss = loss + perceptual * distance(color, target)
    return loss


def mean_over_slices(distance: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, size: int) -> Tensor:
    """A mean distance of two batches, a few pictures at once; the activations of each are made again for its gradients."""
    parts = [
        len(x) * torch.as_tensor(checkpoint(distance, x, y, use_reentrant=False, preserve_rng_state=False))
        for x, y in zip(a.split(size), b.split(size), strict=True)
    ]
    return torch.stack(parts).sum() / len(a)


@OBJECTIVES.register("reference view")
@dataclass(frozen=True)
class ReferenceViewLoss(Objective):
    """L_TA of PLA4D: lambda (MSE + mask) + gamma LPIPS between the front render and the driving video's frames.

    lambda does not scale the perceptual term.

    Args:
        weight: lambda as a function of rho.
        mask: mask term relative to the colour term.
        perceptual: gamma; 0 = off.
        network: see :func:`perceptual_distance`.
        levels: pyramid levels, see :func:`image_loss`.
    """

    name: ClassVar[str] = "reference view"
    needs: ClassVar[frozenset[str]] = frozenset({"video"})
    weight: Weight = linear(0.98, 0.02, 1e4)  # noqa: RUF009
    mask: float = 0.1
    perceptual: float = 1e3
    network: str = "auto"
    levels: int = 1

    def perceptual_network(self) -> str | None:
        return self.network if self.perceptual > 0 else None

    def weighted(self, step: FitStep, weight: float | Tensor) -> Tensor:
        target, mask = step.target
        color, alpha = step.front.color, step.front.alpha
        if step.known is not None:
            # Where another object may hide this one, the render is as right as anything: it differs by nothing there.
            color = torch.lerp(target, color, step.known[..., None])
            alpha = torch.lerp(mask, alpha, step.known)
        return image_loss(
            color, alpha, target, mask, weight=weight, mask_weight=self.mask,
            levels=self.levels, perceptual=self.perceptual, network=self.network,
        )  # fmt: skip
