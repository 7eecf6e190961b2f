"""SSIM over 7 x 7 windows; on a graphics card in two launches: ``window_ssim.cu`` with its derivative."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..render.nvrtc.compiler import compiles, load

SOURCE = Path(__file__).with_name("window_ssim.cu")
#: Pixels along a window's side; windows along a block's side, as in the source.
WINDOW, _SIDE = 7, 16


def ssim(x: Tensor, y: Tensor) -> Tensor:  # (B, H, W, 3) in [0, 1], twice -> scalar
    """The mean structural similarity over windows and colours (Wang et al. 2004, uniform windows, K1 0.01, K2 0.03).

    Differentiable.
    """
    if compiles(SOURCE, x.device) and not y.requires_grad and x.dtype == torch.float32 and x.shape[-1] == 3:
        return fused_ssim(x, y)
    x, y = x.movedim(-1, 1), y.movedim(-1, 1)

    def pool(t: Tensor) -> Tensor:
        if t.is_cuda:  # columns, then rows, colour by colour: a third of the time there
            return F.avg_pool2d(F.avg_pool2d(t.contiguous(), (WINDOW, 1), 1), (1, WINDOW), 1)
        return F.avg_pool2d(t, WINDOW, 1)

    mx, my = pool(x), pool(y)
    vx, vy, cov = pool(x * x) - mx * mx, pool(y * y) - my * my, pool(x * y) - mx * my
    return ((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4))).mean()


def fused_ssim(x: Tensor, y: Tensor) -> Tensor:
    """:func:`ssim` by the kernels; differentiable in ``x`` alone."""
    return _SSIM.apply(x, y)  # pyright: ignore[reportReturnType]


class _SSIM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        x, y = x.contiguous(), y.contiguous()
        count, height, width = x.shape[:3]
        high, wide = height - WINDOW + 1, width - WINDOW + 1
        module, wanted = load(SOURCE, x.device), ctx.needs_input_grad[0]
        partial = x.new_empty(count * -(-high // _SIDE) * -(-wide // _SIDE))
        gradient = x.new_empty(3, count, high, wide, 3) if wanted else None
        module.launch("ssim", (len(partial),), (_SIDE * _SIDE,), (x, y, height, width, partial, gradient))
        if wanted:
            d_x, blocks = torch.empty_like(x), count * -(-height // _SIDE) * -(-width // _SIDE)
            module.launch("ssim_back", (blocks,), (_SIDE * _SIDE,), (x, y, gradient, count, height, width, d_x))
            ctx.save_for_backward(d_x)
        return partial.sum() / (count * high * wide * 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient * ctx.saved_tensors[0], None
