"""Group norm, with SiLU behind it, of channels-last activations on a card: the kernels of ``group_norm.cu``.

Where they cannot run, and on the CPU, PyTorch's own functions do the same. PyTorch's group norm copies channels-last
activations to rows of channels and back; its SiLU, and the sums around a residual block, read and write them once more.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..render.nvrtc.compiler import compiles, load

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("group_norm.cu")
#: As in the source: elements by type; threads a block and groups of an activation, at most.
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
MOST_THREADS, MOST_GROUPS = 512, 128
#: Samples that one launch takes.
MOST_SAMPLES = 65535
#: Threads that a block should have, pixels that each should take, and chunks of a sample's pixels at most: of its size alone,
#: so that a sample's numbers do not depend on the others in its batch.
THREADS, STEPS, CHUNKS = 256, 8, 64
ADDING = 256  # threads a block of a residual's sum
#: Bytes of a vector load.
VECTOR = 16


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels run on a device for activations of a type."""
    return dtype in KINDS and compiles(SOURCE, device, _options(dtype, VECTOR // dtype.itemsize))


def group_norm(
    x: Tensor,  # (N, C, ...)
    norm: nn.GroupNorm,
    *,
    silu: bool = False,
    shift: Tensor | None = None,  # (N or 1, C)
) -> Tensor:  # (N, C, ...)
    """A module's group norm of ``x + shift``, and SiLU of it; in x's layout, differentiable in all of them.

    In float32 inside, whatever the type. The kernels take the input's gradient alone: where a parameter or the shift has one
    too, and for what is not :func:`fitting`, PyTorch's functions are called.
    """
    return group_norm_beside(x, norm, silu=silu, shift=shift)[0]


def group_norm_beside(
    x: Tensor,  # (N, C, ...)
    norm: nn.GroupNorm,
    *,
    silu: bool = False,
    shift: Tensor | None = None,  # (N or 1, C)
) -> tuple[Tensor, Tensor]:  # (N, C, ...), (N, C, ...)
    """:func:`group_norm` of x, and x for what else it goes to: the gradients of both are added where the norm's is made."""
    if fitting(x, norm) and (shift is None or (shift.dtype == x.dtype and not _wanted(shift))):
        return _GroupNorm.apply(x, norm.weight, norm.bias, shift, norm.num_groups, norm.eps, silu)  # pyright: ignore[reportReturnType]
    moved = x if shift is None else x + shift.reshape(*shift.shape, *[1] * (x.ndim - 2))
    y = F.group_norm(moved, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.silu(y) if silu else y, x


def fitting(x: Tensor, norm: nn.GroupNorm) -> bool:
    """Whether the kernels take an activation: channels-last on a card, in the parameters' type, and these are frozen."""
    weight, bias = norm.weight, norm.bias
    if not available(x.device, x.dtype) or weight is None or bias is None or x.ndim < 3 or not x.numel():
        return False
    if weight.dtype != x.dtype or bias.dtype != x.dtype or _wanted(weight) or _wanted(bias):
        return False
    if len(weight) != x.shape[1] or len(x) > MOST_SAMPLES:
        return False
    return channels_last(x) and _grid(x[0, 0].numel(), x.shape[1], norm.num_groups, _width(x.shape[1], x)) is not None


def channels_last(x: Tensor) -> bool:  # (N, C, ...)
    """Whether each pixel's channels lie side by side."""
    return x.movedim(1, -1).is_contiguous()


def residual_sum(x: Tensor, y: Tensor, bias: Tensor, scale: float = 1.0) -> Tensor:  # (N, C, h, w), (N, C, h, w), (C,)
    """``(x + y + bias) * scale``, in x's layout; differentiable in all."""
    alike = x.shape == y.shape and x.dtype == y.dtype == bias.dtype
    if alike and x.numel() and available(x.device, x.dtype) and channels_last(x) and channels_last(y) and not _wanted(bias):
        return _ResidualSum.apply(x, y, bias, scale)  # pyright: ignore[reportReturnType]
    return (x + (y + bias[:, None, None])) * scale


def _wanted(parameter: Tensor) -> bool:
    """Whether its gradient is."""
    return parameter.requires_grad and torch.is_grad_enabled()


def _options(dtype: torch.dtype, width: int) -> tuple[str, ...]:
    return f"-DKIND={KINDS[dtype]}", f"-DWIDTH={width}"


def _width(channels: int, *tensors: Tensor) -> int:
    """Elements that a thread loads at once: those of a vector where each pixel's channels, and all tensors, begin at one."""
    width = VECTOR // tensors[0].dtype.itemsize
    return width if channels % width == 0 and all(x.data_ptr() % VECTOR == 0 for x in tensors) else 1


def _aligned(x: Tensor, width: int) -> Tensor:
    return x.clone() if width > 1 and x.data_ptr() % VECTOR else x


@lru_cache(maxsize=256)
def _grid(pixels: int, channels: int, groups: int, width: int) -> tuple[int, int, int, int, int] | None:
    """Chunks of pixels, slabs of channels, threads a block, their rows, pixels a chunk; None where groups are too large."""
    each = channels // groups
    fits = (n for n in range(1, groups + 1) if groups % n == 0 and groups // n * each % width == 0)
    slabs = next((n for n in fits if channels // n <= MOST_THREADS * width), None)
    if slabs is None or groups > MOST_GROUPS:
        return None
    vectors = channels // slabs // width
    rows = max(1, THREADS // vectors)
    size = max(-(-pixels // CHUNKS), STEPS * rows)
    return -(-pixels // size), slabs, -(-rows * vectors // 32) * 32, rows, size


def _launch(kernel: str, width: int, like: Tensor, groups: int, before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    """A kernel over the chunks and slabs of activations ``like`` (N, ..., C), their sizes between its other arguments."""
    count, channels = like.shape[0], like.shape[-1]
    pixels = like.numel() // (count * channels)
    grid = _grid(pixels, channels, groups, width)
    assert grid is not None
    chunks, slabs, threads, rows, size = grid
    sizes = pixels, channels, groups, channels // slabs, rows, size
    module = load(SOURCE, like.device, _options(like.dtype, width))
    module.launch(kernel, (chunks, slabs, count), (threads,), (*before, *sizes, *after))


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, groups: int, eps: float, silu: bool
    ) -> tuple[Tensor, Tensor]:
        rows, output = x.movedim(1, -1), torch.empty_like(x)
        width = _width(x.shape[1], x)
        shift = None if shift is None else shift.contiguous()
        stride = 0 if shift is None or len(shift) == 1 else x.shape[1]
        weight, bias = weight.contiguous(), bias.contiguous()
        grid = _grid(rows[0, ..., 0].numel(), x.shape[1], groups, width)
        assert grid is not None
        partial = torch.empty(len(x), groups, grid[0], 2, device=x.device, dtype=torch.float32)
        moments = partial.new_empty(len(x), groups, 2)
        _launch("norm_sums", width, rows, groups, (rows, shift, stride), (partial,))
        given = rows, shift, stride, weight, bias, partial
        _launch("norm_apply", width, rows, groups, given, (eps, int(silu), moments, output.movedim(1, -1)))
        ctx.save_for_backward(x, weight, bias, shift, moments)
        ctx.groups, ctx.stride, ctx.silu, ctx.width, ctx.chunks = groups, stride, silu, width, grid[0]
        ctx.set_materialize_grads(False)
        return output, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias, shift, moments = ctx.saved_tensors
        rows, width = x.movedim(1, -1), ctx.width
        gradient, beside = (None if g is None else _aligned(g.movedim(1, -1).contiguous(), width) for g in gradients)
        if gradient is None:
            return gradients[1], None, None, None, None, None, None
        output = torch.empty_like(x)
        partial = moments.new_empty(*moments.shape[:2], ctx.chunks, 2)
        given = rows, shift, ctx.stride, weight, bias, moments, gradient
        _launch("norm_backward_sums", width, rows, ctx.groups, given, (int(ctx.silu), partial))
        after = int(ctx.silu), output.movedim(1, -1)
        _launch("norm_backward_apply", width, rows, ctx.groups, (*given, beside, partial), after)
        return output, None, None, None, None, None, None


class _ResidualSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, bias: Tensor, scale: float) -> Tensor:
        output, channels = torch.empty_like(x), x.shape[1]
        width = _width(channels, x, y)
        vectors = x.numel() // width
        rows = [t.movedim(1, -1) for t in (x, y, output)]
        module = load(SOURCE, x.device, _options(x.dtype, width))
        arguments = rows[0], rows[1], bias.contiguous(), vectors, channels, scale, rows[2]
        module.launch("residual_sum", (-(-vectors // ADDING),), (ADDING,), arguments)
        ctx.scale = scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.scale != 1:
            gradient = gradient * ctx.scale
        return gradient, gradient, None, None
