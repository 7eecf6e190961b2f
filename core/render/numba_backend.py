"""The rasteriser in numba: multi-threaded on the CPU, float32, hand-written backward pass, the same bits every time.

This file is torch's side of it: the kernels are in ``_kernels.py``, which alone imports numba.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras
from ..files import InputError
from . import numba_support
from .torch_backend import require_finite

if TYPE_CHECKING:
    from .rasterize import ScreenStatistics

GROUP = 1 << 16  # intersections whose gradients, 64 bytes each, are kept at once
_scratch = np.empty(0, np.float32)
_KERNELS = f"{__package__}._kernels"


def available() -> bool:
    """Whether numba works here."""
    return not isinstance(numba_support.load(_KERNELS), str)


def why_not(device: torch.device) -> str:
    """The reason why this backend cannot draw on a device."""
    return "draws on the CPU only" if device.type != "cpu" else str(numba_support.load(_KERNELS))


def draw(
    means: Tensor,  # (B or 1, N, 3)
    quats: Tensor,  # (B or 1, N, 4) wxyz
    log_scales: Tensor,  # (B or 1, N, 3)
    opacity_logits: Tensor,  # (B or 1, N)
    colors: Tensor,  # (B or 1 or V, N, 3)
    cameras: Cameras,  # (V,), item-major
    items: int,  # B
    statistics: ScreenStatistics | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`torch_backend.draw`."""
    return _Draw.apply(means, quats, log_scales, opacity_logits, colors, cameras, items, statistics)  # pyright: ignore


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        log_scales: Tensor,
        opacity_logits: Tensor,
        colors: Tensor,
        cameras: Cameras,
        items: int,
        statistics: ScreenStatistics | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        views, count = len(cameras), means.shape[1]
        padded = -(-count // 16) * 16

        def planes(x: Tensor) -> Tensor:  # (B, N, k) -> (B, k, padded)
            return torch.nn.functional.pad(x.transpose(1, 2), (0, padded - count)).contiguous()

        opacities = opacity_logits.sigmoid()
        reach = torch.nn.functional.pad(2 * (opacities * 255).log() + 0 * opacity_logits, (0, padded - count), value=-1.0)
        opacities = torch.nn.functional.pad(opacities, (0, padded - count))
        tensors = [planes(means), planes(quats), planes(log_scales.exp()), opacities, reach, colors.contiguous()]
        fx, fy, cx, cy = (cameras.K[:, i, j].double() for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
        mx, my = 0.15 * cameras.width / fx, 0.15 * cameras.height / fy
        limits = [-cx / fx - mx, (cameras.width - cx) / fx + mx, -cy / fy - my, (cameras.height - cy) / fy + my]
        lens = torch.stack([fx, fy, cx, cy, *limits], 1).float()
        rows = torch.cat([cameras.world_to_camera[:, :3].flatten(1), lens], 1).detach().numpy()
        width, height = cameras.width, cameras.height
        # What the kernel fills, see there.
        tiles = -(-width // 8) * -(-height // 32)
        record, base = np.empty(views * count * 16, np.float32), np.zeros(views * count + 1, np.int64)
        stop, needed = np.empty(views * count, np.int64), np.empty(views * tiles, np.int64)
        projected = record, base, stop, np.empty((views, tiles + 1), np.int64), needed
        pictures = torch.empty(views, height, width, 3), torch.empty(views, height, width), torch.empty(views, height, width)
        radii = torch.zeros((views, count) if statistics is not None else (0, 0))
        bad = np.zeros(1, np.int64)
        kernels: Any = numba_support.load(_KERNELS)
        with numba_support.running() as threads:
            lists = kernels.forward(
                *(x.detach().numpy() for x in tensors), rows, items, width, height, threads, kernels.LANE_X, kernels.LANE_Y,
                *projected, *(x.numpy() for x in (*pictures, radii)), bad,
            )  # fmt: skip
        if bad[0] == 1:
            require_finite(means=means, quats=quats, log_scales=log_scales, opacity_logits=opacity_logits, colors=colors)
            raise InputError("gaussians: log_scales or means overflow, lower the learning rate or check the input")
        if bad[0] == 2:
            raise InputError("gaussians: too large and too many for one call, draw fewer views at once or check the scales")
        if statistics is not None:
            statistics.radii, statistics.visible = radii, radii > 0
        ctx.save_for_backward(*tensors, *pictures)
        ctx.rest = rows, items, width, height, (*projected, *lists), statistics
        ctx.set_materialize_grads(False)
        return pictures

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        global _scratch
        rows, items, width, height, saved, statistics = ctx.rest
        *tensors, color, alpha, depth = ctx.saved_tensors
        pictures = [x.numpy() for x in (color, alpha, depth)]
        incoming = [p[:0] if g is None else g.contiguous().numpy() for p, g in zip(pictures, grads, strict=True)]
        means, quats, scales, opacities, _, colors = (x.numpy() for x in tensors)
        views, count = len(rows), colors.shape[1]
        result = [np.zeros_like(x) for x in (means, quats, scales, opacities, colors)]
        screen = np.zeros((views, count) if statistics is not None else (0, 0), np.float32)
        groups, most = _groups(saved[1][:: max(count, 1)])
        kernels: Any = numba_support.load(_KERNELS)
        with numba_support.running() as threads:
            # One slot of 16 numbers an intersection, kept for the next call: fresh pages cost more than the arithmetic.
            if len(_scratch) < most * 16:
                _scratch = np.empty(most * 16, np.float32)
            kernels.backward(
                means, quats, scales, opacities, rows, items, width, height, threads, kernels.LANE_X, kernels.LANE_Y,
                *saved, *pictures, *incoming, groups, _scratch, *result, screen,
            )  # fmt: skip
        if statistics is not None:
            statistics.gradient = torch.from_numpy(screen)
        d_means, d_quats, d_scales, d_logits, d_colors = map(torch.from_numpy, result)
        by_attribute = (x[..., :count].transpose(1, 2) for x in (d_means, d_quats, d_scales))
        return (*by_attribute, d_logits[:, :count], d_colors, None, None, None)


def _groups(edges: np.ndarray) -> tuple[np.ndarray, int]:
    """Runs of views of at most GROUP intersections, or one view, from each view's first: their edges, and the largest size."""
    first, most = [0], 0
    for view in range(1, len(edges)):
        if view - 1 > first[-1] and edges[view] - edges[first[-1]] > GROUP:
            first.append(view - 1)
        most = max(most, int(edges[view] - edges[first[-1]]))
    return np.array([*first, len(edges) - 1], np.int64), most
