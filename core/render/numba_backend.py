"""The rasteriser in numba: multi-threaded on the CPU, float32, hand-written backward pass, the same bits every time.

This file is torch's side of it: the kernels are in ``numba_kernels``, which alone imports numba.
"""

from __future__ import annotations

import math
import time
import weakref
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras
from ..files import InputError
from . import numba_support
from .torch_backend import require_finite

if TYPE_CHECKING:
    from .rasterize import ScreenStatistics

INTERSECTIONS = 1 << 16  # drawn backward at once: their gradients, 64 bytes each, stay in the processor's cache
GAUSSIANS = 1 << 15  # drawn at once by a thread: so do their records of 64 bytes
_KERNELS = f"{__package__}.numba_kernels"


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
        pictures = torch.empty(views, height, width, 3), torch.empty(views, height, width), torch.empty(views, height, width)
        radii = torch.zeros((views, count) if statistics is not None else (0, 0))
        own = _Buffers()
        record, base = own.array("record", np.float32, views * count * 16), own.array("base", np.int64, views * count + 1)
        base.fill(0)
        bad = np.zeros(1, np.int64)
        arrays = [x.detach().numpy() for x in tensors]
        with numba_support.LOCK:
            _run("project", 1, *arrays, rows, items, width, height, record, base, radii.numpy(), bad)
            if bad[0]:
                require_finite(means=means, quats=quats, log_scales=log_scales, opacity_logits=opacity_logits, colors=colors)
                raise InputError("gaussians: log_scales or means overflow, lower the learning rate or check the input")
            base.cumsum(out=base)
            if base[-1] > 2**31 - 1:
                raise InputError("gaussians: too large and too many for one call, draw fewer views at once or check the scales")
            tiles = -(-width // 8) * -(-height // 32)
            stop, needed = own.array("stop", np.int64, views * count), own.array("needed", np.int64, views, tiles)
            tile_start = own.array("tile_start", np.int64, views, tiles + 1)
            tile_of, span_of, members, slots, spans = own.array("lists", np.int32, 5, int(base[-1]))
            step = _threads() * max(1, GAUSSIANS // max(count, 1))
            groups = np.array([*range(0, views, step), views], np.int64)
            _run(
                "draw", 3 * len(groups) - 3, count, width, height, *_lanes(), groups, record, base, stop, tile_of, span_of,
                tile_start, needed, members, slots, spans, *(x.numpy() for x in pictures),
            )  # fmt: skip
        if statistics is not None:
            statistics.radii, statistics.visible = radii, radii > 0
        ctx.save_for_backward(*tensors, *pictures)
        ctx.rest = rows, items, width, height, (record, base, stop, tile_start, needed, members, slots, spans), own, statistics
        ctx.set_materialize_grads(False)
        return pictures

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        rows, items, width, height, saved, own, statistics = ctx.rest
        *tensors, color, alpha, depth = ctx.saved_tensors
        pictures = [x.numpy() for x in (color, alpha, depth)]
        incoming = [p[:0] if g is None else g.contiguous().numpy() for p, g in zip(pictures, grads, strict=True)]
        means, quats, scales, opacities, _, colors = (x.numpy() for x in tensors)
        views, count = len(rows), colors.shape[1]
        # By PyTorch, whose memory begins at multiples of 64 bytes: elsewhere MKL's products have other last bits.
        result = [torch.zeros_like(x) for x in (*tensors[:4], tensors[5])]
        screen = torch.zeros((views, count) if statistics is not None else (0, 0))
        groups, most = _groups(saved[1][:: max(count, 1)])
        partial = own.array("partial", np.float32, most * 16)
        with numba_support.LOCK:
            _run(
                "backward", 2 * len(groups) - 2, means, quats, scales, opacities, rows, items, width, height, *_lanes(), groups,
                *saved, *pictures, *incoming, partial, *(x.numpy() for x in result), screen.numpy(),
            )  # fmt: skip
        if statistics is not None:
            statistics.gradient = screen
        d_means, d_quats, d_scales, d_logits, d_colors = result
        by_attribute = (x[..., :count].transpose(1, 2) for x in (d_means, d_quats, d_scales))
        return (*by_attribute, d_logits[:, :count], d_colors, None, None, None)


class _Buffers:
    """The large arrays of one drawing; when autograd lets go of it they serve the next: fresh pages are slow."""

    idle: ClassVar[list[dict[str, np.ndarray]]] = []

    def __init__(self) -> None:
        self.held = self.idle.pop() if self.idle else {}
        weakref.finalize(self, self.give_back, self.held).atexit = False

    def array(self, name: str, kind: type, *shape: int) -> np.ndarray:
        """An array of any content, valid as long as this object lives."""
        size = math.prod(shape)
        if name not in self.held or self.held[name].size < size:
            self.held[name] = np.empty(size + size // 4, kind)
        return self.held[name][:size].reshape(shape)

    @classmethod
    def give_back(cls, held: dict[str, np.ndarray]) -> None:
        if len(cls.idle) < 2:
            cls.idle.append(held)


def _run(name: str, phases: int, *arguments: Any) -> None:
    """Run a kernel on all our threads until all its phases are done.

    This thread would do it all alone; helpers only take work from it. So nothing waits for a helper that comes late, and no
    threading layer of numba's is used: those fight with torch's idle threads, or abort when two packages use them at once.
    """
    kernel = getattr(numba_support.load(_KERNELS), name)
    queues = np.zeros((phases, 2), np.int64)

    def work() -> None:
        phase = 0
        while (phase := kernel(queues, phase, *arguments)) < phases:
            time.sleep(0)  # others take long over their last work

    helping = [_helpers().submit(work) for _ in range(_threads() - 1)]
    try:
        work()
    except BaseException:
        queues[:] = 1 << 40  # nothing left to take or to wait for
        wait(helping)
        raise


@cache
def _threads() -> int:
    return numba_support.default_threads()


@cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(_threads() - 1, 1), "anchor4d-rasterize")


def _lanes() -> tuple[np.ndarray, np.ndarray]:
    kernels: Any = numba_support.load(_KERNELS)
    return kernels.LANE_X, kernels.LANE_Y


def _groups(edges: np.ndarray) -> tuple[np.ndarray, int]:
    """Runs of views of at most INTERSECTIONS, or one view, from each view's first: their edges, and the largest size."""
    first, most = [0], 0
    for view in range(1, len(edges)):
        if view - 1 > first[-1] and edges[view] - edges[first[-1]] > INTERSECTIONS:
            first.append(view - 1)
        most = max(most, int(edges[view] - edges[first[-1]]))
    return np.array([*first, len(edges) - 1], np.int64), most
