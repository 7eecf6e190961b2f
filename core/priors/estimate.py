"""What distilling a prior will cost on this machine, before a fit starts: memory by accounting, time by a probe.

Memory: one micro-batch of the very code that will run is run on tensors that have shapes and no data (PyTorch's fake tensors),
with every storage that comes and goes counted. So any prior, published or not, is accounted without its weights and in seconds.
Time: the same micro-batch is run for real, a few times.
"""

from __future__ import annotations

import copy
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .base import Condition, Prior, Viewpoints
from .distill import Distillation

GIB = 2**30
#: Beside tensors: on a GPU the driver's context and the libraries' kernels and workspaces, on a CPU the libraries' own.
CONTEXT = {"cuda": int(0.6 * GIB), "cpu": int(0.2 * GIB)}
#: What allocators lose to rounding and fragments, as a share of the peak.
ROUNDING = 0.1
#: A probe is run so many times, but not again once it has taken so many seconds.
PROBES, PATIENCE = 3, 20.0
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten._index_put_impl_.default)


@dataclass(frozen=True)
class Estimate:
    """Cost of a distillation step.

    Args:
        seconds_per_step: None where nothing was run.
        memory_bytes: highest use of the prior's device, its networks included; without the scene and its renderer. None where
            a host manages the memory.
        parts: bytes of each network and of all ("weights"); what a "step" and preparing a "condition" picture hold at their
            peaks beside those; and the "reserve".
    """

    seconds_per_step: float | None
    memory_bytes: int | None
    parts: Mapping[str, int]

    def __str__(self) -> str:
        memory = [] if self.memory_bytes is None else [f"{self.memory_bytes / GIB:.1f} GB"]
        return ", ".join(memory + ([] if self.seconds_per_step is None else [f"{self.seconds_per_step:.3g} s a step"]))


def estimate_distillation(
    distillation: Distillation, batch: int, *, condition: Condition | None = None, probe: bool = True
) -> Estimate:
    """Memory and time of a step that distils ``batch`` samples.

    Args:
        condition: as the fit will have it; a gray picture or the empty text where None.
        probe: run a micro-batch to time it. It is not run where it would not fit the device.

    Raises:
        InputError: as the distillation itself would.
    """
    prior = distillation.prior
    if condition is None:
        condition = _blank_condition(prior)
    parts = {} if prior.hosted else account(distillation, batch, condition)
    memory = peak(parts) if parts else None
    if memory is not None and prior.device.type == "cuda":
        probe = probe and memory - parts["weights"] < torch.cuda.mem_get_info(prior.device)[0]
    return Estimate(_timed(distillation, batch, condition) if probe else None, memory, parts)


def account(distillation: Distillation, batch: int, condition: Condition, device: str | None = None) -> dict[str, int]:
    """Bytes by what they are for: the ``parts`` of an :class:`Estimate`.

    Args:
        distillation: its networks may themselves be of fake tensors, of any size.
        device: type of device to reserve for, "cpu" or "cuda"; the prior's where None.
    """
    prior = distillation.prior
    sizes = {name: _bytes(module) for name, module in prior.modules.items() if _place(module) == prior.device}
    if prior.small_encoder is not None:
        sizes["small_encoder"] = _bytes(prior.small_encoder)
    rows = min(batch, distillation.micro_batch or batch)
    first = next(next(iter(prior.modules.values())).parameters())
    mode = getattr(first, "fake_mode", None) or FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        ghost = _ghost(prior)
        run = replace(distillation, prior=ghost, micro_batch=0)
        known = condition.map(lambda v: torch.empty(v.shape if len(v) == 1 else (rows, *v.shape[1:]), dtype=v.dtype))
        views = _views(prior, rows)
        shape = (rows, prior.pictures, *prior.resolution, 3)

        def step() -> None:
            run(torch.rand(shape, requires_grad=True), known, 0.5, torch.Generator(), views)

        peaks = {"step": live_peak(step)}
        if "image" in prior.conditions and "text" not in prior.conditions:
            peaks["condition"] = live_peak(lambda: ghost.condition(image=torch.rand(rows, *prior.resolution, 3)))
    # Pictures and gradients of the micro-batches that wait for their turn.
    peaks["step"] += (batch - rows) * 2 * 4 * math.prod(shape[1:])
    reserve = CONTEXT.get(device or prior.device.type, CONTEXT["cuda"]) + int(ROUNDING * max(peaks.values()))
    return {**sizes, "weights": sum(sizes.values()), **peaks, "reserve": reserve}


def peak(parts: Mapping[str, int]) -> int:
    """Highest use of the device by what :func:`account` found."""
    return parts["weights"] + max(parts["step"], parts.get("condition", 0)) + parts["reserve"]


def lighter(distillation: Distillation, batch: int) -> Iterator[tuple[str, Distillation]]:
    """The same distillation with less and less memory and more and more time: settings in words, and the distillation.

    Nothing here changes results, except tiles, which change the latents of video VAEs slightly.
    """
    words: list[str] = []
    yield "as it is", distillation

    def with_prior(**settings: Any) -> Distillation:
        return replace(distillation, prior=distillation.prior.with_settings(**settings))

    if batch > 1 and distillation.micro_batch != 1:
        words.append("micro_batch 1")
        distillation = replace(distillation, micro_batch=1)
        yield ", ".join(words), distillation
    if distillation.prior.encodes_apart and distillation.prior.pictures > 1 and distillation.encode_batch != 1:
        words.append("encode_batch 1")
        distillation = replace(distillation, encode_batch=1)
        yield ", ".join(words), distillation
    if distillation.prior.one_pass:
        words.append("one_pass off")
        distillation = with_prior(one_pass=False)
        yield ", ".join(words), distillation
    if getattr(distillation.prior, "recompute", None) is False:
        words.append("recompute on")
        distillation = with_prior(recompute=True)
        yield ", ".join(words), distillation
    if getattr(distillation.prior, "tile", None) == 0:
        words.append("tile 256")
        distillation = with_prior(tile=256)
        yield ", ".join(words), distillation


def fitting(
    distillation: Distillation, batch: int, limit: int, *, condition: Condition | None = None, device: str | None = None
) -> tuple[str, Distillation, Estimate] | None:
    """The first of :func:`lighter` settings whose peak is at most ``limit`` bytes: in words, itself, its cost; None if none."""
    if condition is None:
        condition = _blank_condition(distillation.prior)
    for words, setting in lighter(distillation, batch):
        parts = account(setting, batch, condition, device)
        if peak(parts) <= limit:
            return words, setting, Estimate(None, peak(parts), parts)
    return None


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that are made while it is active and still alive; ``peak`` is the most there were.

    What operators allocate and free inside their kernels is not seen. Questions about data (``bool(tensor)``), which fake
    tensors cannot answer, are answered with yes and 1, and masks of rows with every row; random generators, which they have no
    use for, are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if "generator" in kwargs:
            kwargs["generator"] = None
        if func in INDEXING:
            args = (args[0], [_all_rows(index) for index in args[1]], *args[2:])
        self._see(args, kwargs, made=False)
        try:
            out = func(*args, **kwargs)
        except DataDependentOutputException:
            return {torch.bool: True}.get(args[0].dtype, 1)
        self._see(out, made=True)
        return out

    def _see(self, *values: Any, made: bool) -> None:
        for tensor in tree_leaves(values):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._known:
                continue
            size = storage.nbytes() if made else 0

            def gone(_: Any, key: int = key, size: int = size) -> None:
                self.live -= size
                del self._known[key]

            self._known[key] = weakref.ref(storage, gone)
            self.live += size
            self.peak = max(self.peak, self.live)


def _all_rows(index: Tensor | None) -> Tensor | None:
    if index is None or index.dtype != torch.bool:
        return index
    return torch.arange(len(index), device=index.device)


def live_peak(function: Callable[[], Any]) -> int:
    """Most bytes of tensors that a call holds at once beyond those that were there before."""
    with LiveBytes() as counted:
        function()
    return counted.peak


def _ghost(prior: Prior) -> Prior:
    """The same prior with networks of fake tensors on the CPU; to be called under the fake mode."""

    def fake(module: nn.Module) -> nn.Module:
        memo: dict[int, Any] = {}
        for tensor in (*module.parameters(), *module.buffers()):
            empty = torch.empty_like(tensor, device="cpu")
            memo[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
        return copy.deepcopy(module, memo)

    ghost = copy.copy(prior)
    ghost.modules = {name: fake(module) for name, module in prior.modules.items()}
    if prior.small_encoder is not None:
        ghost.small_encoder = fake(prior.small_encoder)
    return ghost


def _blank_condition(prior: Prior) -> Condition:
    image = torch.full((1, *prior.resolution, 3), 0.5) if "image" in prior.conditions else None
    return prior.condition(image=image, text="" if "text" in prior.conditions else None)


def _views(prior: Prior, rows: int) -> Viewpoints | None:
    if "cameras" not in prior.conditions:
        return None
    turn = torch.arange(prior.pictures).float().expand(rows, -1) * (360 / prior.pictures)
    seen = Viewpoints(torch.zeros(rows, 1), torch.zeros(rows, 1), torch.ones(rows, 1))
    return Viewpoints(turn, torch.zeros_like(turn), torch.ones_like(turn), seen if "image" in prior.conditions else None)


def _timed(distillation: Distillation, batch: int, condition: Condition) -> float:
    """Seconds a step: of a micro-batch, the fastest of a few runs, since the first warms up and other work comes and goes."""
    prior = distillation.prior
    rows = min(batch, distillation.micro_batch or batch)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(rows, prior.pictures, *prior.resolution, 3, generator=generator).to(prior.device)
    views = _views(prior, rows)

    def run() -> float:
        begin = time.perf_counter()
        distillation(pictures.requires_grad_(True), condition[:rows], 0.5, generator, views)
        if prior.device.type == "cuda":
            torch.cuda.synchronize(prior.device)
        return time.perf_counter() - begin

    seconds = [run()]
    while len(seconds) < PROBES and sum(seconds) < PATIENCE:
        seconds.append(run())
    return min(seconds) * math.ceil(batch / rows)


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def _place(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
