"""The image loss on the graphics card in two launches: ``images.cu`` with its derivative."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..render.nvrtc.compiler import compiles, load

SOURCE = Path(__file__).with_name("images.cu")
#: As in the source: pixels along a block's side, and levels of its pyramid.
SIDE, LEVELS = 16, 5


def available(device: torch.device) -> bool:
    """Whether the kernels run on a device."""
    return compiles(SOURCE, device)


def pyramid_loss(
    color: Tensor,  # (N, H, W, 3)
    alpha: Tensor,  # (N, H, W)
    target: Tensor,  # (N, H, W, 3)
    mask: Tensor,  # (N, H, W)
    mask_weight: float,
    levels: int,
) -> Tensor:
    """The squared errors of :func:`~.front.image_loss` without its weight: a scalar, differentiable in colour and alpha."""
    return _Pyramid.apply(color, alpha, target, mask, mask_weight, levels)  # pyright: ignore[reportReturnType]


class _Pyramid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, color: Tensor, alpha: Tensor, target: Tensor, mask: Tensor, mask_weight: float, levels: int
    ) -> Tensor:
        inputs = [x.contiguous() for x in (color, alpha, target, mask)]
        count, height, width = alpha.shape
        blocks = count * -(-height // SIDE) * -(-width // SIDE)
        partial, total = color.new_empty(blocks), color.new_empty(())
        d_color, d_alpha = torch.empty_like(inputs[0]), torch.empty_like(inputs[1])
        module = load(SOURCE, color.device)
        sizes = count, height, width, levels, mask_weight
        module.launch("pyramid_loss", (blocks,), (SIDE * SIDE,), (*inputs, *sizes, partial, d_color, d_alpha))
        module.launch("add_up", (1,), (256,), (partial, blocks, total))
        ctx.save_for_backward(d_color, d_alpha)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_color, d_alpha = ctx.saved_tensors
        return gradient * d_color, gradient * d_alpha, None, None, None, None
