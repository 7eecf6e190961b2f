"""The Gaussian rasteriser on the graphics card: our own kernels (``rasterize.cu``) through the run-time compiler.

The same bits every time, no compiler to install, seven launches forward and backward. How many (tile, Gaussian) pairs there
are is known on the card first; the lists' capacity is what the last call like this one needed and some more, and the count
is read while the card draws already: where it was too small, the lists are made and drawn anew. In a CUDA graph nothing can
be read, so that :func:`overflowed` has to be asked now and then.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...cameras import Cameras, orbit
from ...files import InputError
from .. import torch_backend
from . import compiler

if TYPE_CHECKING:
    from ..rasterize import ScreenStatistics

log = logging.getLogger(__name__)

SOURCE = "rasterize.cu"
_TILE, _WARPS, _SORTERS, _SLOT = 8, 4, 128, 12  # as in the source
_COUNTERS = 12  # four-byte numbers before the tiles' counts; the source's five of eight bytes and some room
_MEANS, _QUATS, _SCALES, _LOGITS, _COLORS, _COLORS_OF_VIEWS, _COLORS_OF_HARMONICS = (1 << i for i in range(7))
#: List entries and gradient slots that calls of one kind get: (device, views, height, width) -> (entries, slots).
_capacities: dict[tuple[Any, ...], tuple[int, int]] = {}
_overflow: dict[torch.device, Tensor] = {}


def available(device: torch.device | str) -> bool:
    """Whether the kernels compile, run and compute what they should on a device."""
    return not why_not(torch.device(device))


def why_not(device: torch.device) -> str:
    """The reason why this backend cannot draw on a device, or nothing."""
    if device.type != "cuda":
        return compiler.why_not(device)
    return compiler.why_not(device) or _self_test(torch.cuda.current_device() if device.index is None else device.index)


def draw(
    means: Tensor,  # (B or 1, N, 3)
    quats: Tensor,  # (B or 1, N, 4) wxyz
    log_scales: Tensor,  # (B or 1, N, 3)
    opacity_logits: Tensor,  # (B or 1, N)
    colors: Tensor,  # (B or 1 or V, N, 3)
    cameras: Cameras,  # (V,), item-major
    items: int,  # B
    statistics: ScreenStatistics | None = None,
    *,
    harmonics: bool = False,
    background: Tensor | None = None,  # (3,) or (V, 3)
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`torch_backend.draw`; within a CUDA graph's capture, input is not checked.

    Attributes without a first dimension are those of all items: a view of them would cost a step of autograd each.

    Args:
        harmonics: colors are the coefficients of the constant spherical harmonic, ``(B or 1, N, 1, 3)``.
        background: composited behind the colour; not differentiated.
    """
    shared = 0
    for x, dims, bit in (
        (means, 2, _MEANS),
        (quats, 2, _QUATS),
        (log_scales, 2, _SCALES),
        (opacity_logits, 1, _LOGITS),
        (colors, 3 if harmonics else 2, _COLORS),
    ):
        if x.dim() == dims or len(x) == 1:
            shared |= bit
    if harmonics:
        shared |= _COLORS_OF_HARMONICS
    elif len(colors) == len(cameras) and colors.dim() == 3:
        shared |= _COLORS_OF_VIEWS
    arguments = (means, quats, log_scales, opacity_logits, colors, cameras, items, statistics, shared, background)
    if means.device.type == "cuda" and means.device.index != torch.cuda.current_device():
        with torch.cuda.device(means.device):
            return _Draw.apply(*arguments)  # pyright: ignore[reportReturnType]
    return _Draw.apply(*arguments)  # pyright: ignore[reportReturnType]


def overflowed(device: torch.device | str) -> bool:
    """Whether, since the last time this was asked, a replayed CUDA graph had more Gaussians in its tiles than there was room.

    Its pictures lack some then: draw once outside of a graph, which makes room, and capture it anew. Waits for the device.
    """
    device = torch.device(device)
    if device.index is None:
        device = torch.device(device.type, torch.cuda.current_device())
    flag = _overflow.get(device)
    if flag is None or not bool(flag.any()):
        return False
    flag.zero_()
    return True


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
        shared: int,
        background: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        views, count, width, height = len(cameras), means.shape[-2], cameras.width, cameras.height
        inputs = [x.contiguous() for x in (means, quats, log_scales, opacity_logits, colors)]
        lens = cameras.world_to_camera.contiguous(), cameras.K.contiguous()
        size = (shared, count, items, views // items, width, height)
        tiles, splats = views * -(-width // _TILE) * -(-height // _TILE), views * count
        # By the shape alone: how sums are cut decides their last bits.
        segment = 64 if views * width * height <= 1 << 21 else 128
        device = means.device
        module = compiler.load(SOURCE, device)
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()

        counters = torch.zeros(_COUNTERS + tiles, dtype=torch.int32, device=device)
        work = torch.empty(20 * splats + 4 * tiles, dtype=torch.int32, device=device)
        record, shapes, begin, end, needed, more = _addresses(work, 12 * splats, 8 * splats, tiles, tiles, tiles, tiles)
        radii = visible = None
        if statistics is not None:
            radii = torch.empty(views, count, dtype=torch.float32, device=device)
            visible = torch.empty(views, count, dtype=torch.bool, device=device)
        each, counts = (-(-count // 256), views), counters.data_ptr()
        arguments = (*inputs, *lens, shared, count, views // items, width, height)
        arguments = (*arguments, record, shapes, counts + 4 * _COUNTERS, counts, radii, visible)
        module.launch("project", each, (256,), arguments)
        arguments = (counts + 4 * _COUNTERS, tiles, segment, begin, end, more, counts)
        module.launch("allocate", (-(-tiles // 256),), (256,), arguments)
        counted = None if capturing else _Counted(counters)

        kind = (device, views, height, width)
        capacity = _capacities.get(kind)
        if capacity is None:
            if counted is None:
                raise InputError(
                    "rasterize: the first drawing of this size cannot be captured in a CUDA graph, draw once before"
                )
            capacity = _room(kind, *counted.wait()[:2])
        color = torch.empty(views, height, width, 3, dtype=torch.float32, device=device)
        alpha = torch.empty(views, height, width, dtype=torch.float32, device=device)
        depth = torch.empty(views, height, width, dtype=torch.float32, device=device)
        stride = 3 if background is not None and background.dim() > 1 else 0
        while True:
            most = capacity[0] // segment
            keys = torch.empty(capacity[0], dtype=torch.int64, device=device)
            lists = torch.empty(321 * most + capacity[0], dtype=torch.int32, device=device)
            state, members, owner = _addresses(lists, 320 * most, capacity[0], most)
            module.launch("emit", each, (256,), (record, shapes, count, width, height, end, keys, capacity[0], counts))
            module.launch("sort_tiles", (tiles,), (_SORTERS,), (keys, begin, end, capacity[0], members))
            arguments = (record, members, begin, end, tiles, count, width, height, capacity[0])
            arguments = (*arguments, background, stride, color, alpha, depth, needed, segment, more, most, owner, state)
            module.launch("draw", (-(-tiles // _WARPS),), (32 * _WARPS,), arguments)
            if counted is None:
                _overflow[device].bitwise_or_(counters[6:8])
                break
            entries, slots, bad = counted.wait()
            if bad or max(entries, slots) > 2**31 - 1:
                torch_backend.require_finite(
                    means=means, quats=quats, log_scales=log_scales, opacity_logits=opacity_logits, colors=colors
                )
                raise InputError("gaussians: too large and too many for one call, draw fewer views at once or check the scales")
            if entries <= capacity[0]:
                most = entries // segment
                if slots > capacity[1] or 3 * (entries + 4096) < capacity[0]:
                    capacity = capacity[0], _room(kind, entries, slots)[1]
                break
            capacity = _room(kind, entries, slots)
            work[20 * splats + tiles : 20 * splats + 2 * tiles] = work[20 * splats : 20 * splats + tiles]  # begin to end
            counters[6:8].zero_()
        if statistics is not None:
            statistics.radii, statistics.visible = radii, visible
        ctx.save_for_backward(*inputs, *lens, work, lists, counters, color, alpha, depth, background)
        ctx.rest = size, tiles, capacity, segment, most, (members, owner, state), stride, statistics
        ctx.set_materialize_grads(False)
        return color, alpha, depth

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        size, tiles, (capacity, slots), segment, most, (members, owner, state), stride, statistics = ctx.rest
        shared, count, items, views_an_item, width, height = size
        *inputs, poses, K, work, _, counters, color, alpha, depth, background = ctx.saved_tensors
        views, device = items * views_an_item, work.device
        splats = views * count
        record, shapes, begin, end, needed, more = _addresses(work, 12 * splats, 8 * splats, tiles, tiles, tiles, tiles)
        incoming = [None if g is None else g.contiguous() for g in grads]
        module = compiler.load(SOURCE, device)
        partial = torch.empty(slots * _SLOT, dtype=torch.float32, device=device)
        arguments = (record, members, begin, end, needed, tiles, count, width, height, capacity)
        arguments = (*arguments, background, stride, color, alpha, depth, *incoming, partial, slots, counters)
        arguments = (*arguments, segment, more, most, owner, state)
        module.launch("draw_back", (-(-(tiles + most) // _WARPS),), (32 * _WARPS,), arguments)
        results = [torch.empty_like(x) for x in inputs]
        screen = None if statistics is None else torch.empty(views, count, dtype=torch.float32, device=device)
        arguments = (*inputs, poses, K, shared, count, items, views_an_item, width, height, record, shapes, partial, slots)
        module.launch("pull_back", (-(-count // 32),), (256,), (*arguments, *results, screen))
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            _overflow[device].bitwise_or_(counters[6:8])
        if statistics is not None:
            statistics.gradient = screen
        return (*results, None, None, None, None, None)


def _addresses(buffer: Tensor, *sizes: int) -> list[int]:
    """Where arrays of four-byte numbers begin that lie in a buffer one after the other."""
    return [buffer.data_ptr() + 4 * x for x in accumulate(sizes[:-1], initial=0)]


class _Counted:
    """The card's counters on their way to the host."""

    idle: ClassVar[list[Tensor]] = []

    def __init__(self, counters: Tensor) -> None:
        self.held, self.found, self.event = counters, None, None
        if counters.device.type == "cuda":
            if counters.device not in _overflow:
                _overflow[counters.device] = torch.zeros(2, dtype=torch.int32, device=counters.device)
            self.held = (
                self.idle.pop() if self.idle else torch.empty(_COUNTERS, dtype=torch.int32, device="cpu", pin_memory=True)
            )
            self.held.copy_(counters[:_COUNTERS], non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def wait(self) -> tuple[int, int, int]:
        """List entries, slots and the bits of attributes that are not finite."""
        if self.found is None:
            if self.event is not None:
                self.event.synchronize()
            slots, entries, bad = self.held[:6].view(torch.int64).tolist()
            self.found = entries, slots, bad
            if self.event is not None:
                self.idle.append(self.held)
        return self.found


def _room(kind: tuple[Any, ...], entries: int, slots: int) -> tuple[int, int]:
    most = 2**31 - 1
    _capacities[kind] = min(entries + entries // 4 + 4096, most), min(slots + slots // 4 + 4096, most)
    return _capacities[kind]


# --- the first use on a machine -----------------------------------------------------------------------------------------


def tested(source: str, device: torch.device, test: Callable[[torch.device], str]) -> str:
    """What is wrong with a source's kernels on a device by a test of them, or nothing.

    A success is remembered for the driver, the device's architecture and the source.
    """
    try:
        parts = (compiler.source_key(source, compiler.architecture(device)), compiler.driver_version(), torch.__version__)
        key = "self-test-" + hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()
        if compiler.remembered(key) is not None:
            return ""
        problem = test(device)
        if not problem:
            compiler.remember(key, b"passed")
    except (compiler.CompilerError, InputError, OSError, RuntimeError) as error:
        problem = " ".join(str(error).split())[:300]
    if problem:
        log.warning("%s: %s; another renderer takes its place", torch.cuda.get_device_name(device), problem)
    return problem


@cache
def _self_test(index: int) -> str:
    return tested(SOURCE, torch.device("cuda", index), self_test)


@torch.inference_mode(False)
@torch.enable_grad()
def self_test(device: torch.device) -> str:
    """Compare pictures and gradients of a small scene with the PyTorch reference: what differs, or nothing."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    count, views = 80, 3
    scene = {
        "means": 0.4 * normal(1, count, 3),
        "quats": normal(1, count, 4),
        "log_scales": 0.7 * normal(1, count, 3) - 2.8,
        "opacity_logits": 2.5 * normal(1, count),
        "colors": normal(1, count, 3).abs(),
    }
    cameras = orbit([10.0, 130.0, 250.0], 15.0, 2.0, 49.1, 45, 38).to(torch.float64)
    weights = [normal(views, 38, 45, 3), normal(views, 38, 45), normal(views, 38, 45)]

    def results(module: Any, where: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        leaves = {name: x.to(where, dtype).requires_grad_() for name, x in scene.items()}
        pictures = module.draw(*leaves.values(), cameras.to(where, dtype), 1)
        loss = torch.stack([(p * w.to(p)).sum() for p, w in zip(pictures, weights, strict=True)]).sum()
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        found = dict(zip(("color", "alpha", "depth"), pictures, strict=True))
        found |= {f"gradient of {name}": slope for name, slope in zip(leaves, slopes, strict=True)}
        return {name: x.detach().cpu().double() for name, x in found.items()}

    expected = results(torch_backend, torch.device("cpu"), torch.float64)
    for name, x in results(sys.modules[__name__], device, torch.float32).items():
        error = float((x - expected[name]).norm() / expected[name].norm())
        if not error < 1e-4:
            return f"the kernels fail their self-test here ({name} is off by {error:.1e})"
    return ""
