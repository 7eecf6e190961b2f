"""Steps on a graphics card as CUDA graphs: hundreds of launches become one, where steps are alike.

A step is captured once the loop has taken it twice as usual. On the second time it is watched: whether an objective asks the
generator or the step's number, keeps something new, or waits for the card. Then, and where capturing fails, that kind of step
stays as it is. Objectives know nothing of this.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..objectives.base import FitStep

log = logging.getLogger(__name__)

#: Of a step, what differs from step to step on the host, so that an objective that asks for it cannot be captured.
VARYING = frozenset({"index", "total", "rho", "generator", "leave_uncaptured"})
#: Numbers that there is room for at first, and steps that may be under way with numbers of their own.
NUMBERS, UNDER_WAY = 1 << 14, 32


class Numbers:
    """A step's numbers on their way to the card: one copy through pinned memory, always to the same place.

    Args:
        device: where the fit is.
        moved: called where the place has to be larger, and so becomes another.
    """

    def __init__(self, device: torch.device, moved: Callable[[], None]) -> None:
        self.device, self.moved = device, moved
        self._place(NUMBERS)

    def _place(self, count: int) -> None:
        self._there = torch.zeros(count, device=self.device)
        self._ring = torch.zeros(UNDER_WAY, count, pin_memory=self.device.type == "cuda")
        self._next = 0

    def send(self, values: Sequence[float], tensors: Sequence[Tensor] = ()) -> Tensor:
        """The numbers and then the tensors', (n,) float32 where the fit is; they stay until the next ones are sent."""
        count = len(values) + sum(tensor.numel() for tensor in tensors)
        if count > len(self._there):
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # the old place is read, and filled, until then
            self.moved()
            self._place(count)
        held = self._ring[self._next]
        held[: len(values)] = torch.tensor(values)
        start = len(values)
        for tensor in tensors:
            held[start : start + tensor.numel()] = tensor.reshape(-1)
            start += tensor.numel()
        self._next = (self._next + 1) % UNDER_WAY
        self._there[:count].copy_(held[:count], non_blocking=True)
        return self._there[:count]


def unpacked(drawn: Mapping[str, Mapping[str, Tensor]], sent: Tensor) -> dict[str, dict[str, Tensor]]:
    """Tensors that were put at the end of the numbers sent, as they were: by owner and name, integers as float32."""
    sizes = [tensor.numel() for tensors in drawn.values() for tensor in tensors.values()]
    parts = iter(sent[len(sent) - sum(sizes) :].split(sizes))
    return {id: {name: next(parts).reshape(tensor.shape) for name, tensor in given.items()} for id, given in drawn.items()}


class WatchedStep(FitStep):
    """A step that notes what is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        if "asked" in own and name != "asked":
            own["asked"].add(name)
        return object.__getattribute__(self, name)

    def watch(self) -> None:
        """From now on."""
        self.__dict__["periods"] = set()
        self.__dict__["asked"] = set()

    def due(self, every: int) -> bool:
        own = object.__getattribute__(self, "__dict__")
        own.get("periods", set()).add(every)
        return own["index"] % every == 0


class Kind:
    """Steps that are alike: how many were taken, what was found when one was watched, and the graph."""

    def __init__(self) -> None:
        self.taken = 0
        self.plain = False
        self.periods: frozenset[int] = frozenset()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: Any = None


class Replays:
    """The kinds of steps of a fit, and their graphs.

    Args:
        device: where the fit is; elsewhere than on a card, nothing is captured.
        varying: names of a step's attributes whose values differ from step to step in this fit besides :data:`VARYING`.
    """

    def __init__(self, device: torch.device, varying: frozenset[str] = frozenset()) -> None:
        self.device, self.varying = device, VARYING | varying
        self.wanted = device.type == "cuda"
        self._kinds: dict[Any, Kind] = {}
        self._pool: Any = None

    def forget(self) -> None:
        """Drops all graphs: what they were captured of is no longer there."""
        self._kinds.clear()
        self._pool = None

    def plain(self, key: Any) -> bool:
        """Whether steps of a kind are known not to be captured."""
        return key in self._kinds and self._kinds[key].plain

    def run(
        self, key: Any, index: int, make: Callable[[type[FitStep]], FitStep], take: Callable[[FitStep], Any], memory: Any
    ) -> Any:
        """One step, of a kind: ``take(make(...))``, or the graph that was captured of it.

        Args:
            key: what makes steps alike.
            index: the step's number.
            make: the step, of a class.
            take: all that a step does on the card; what it returns stays in its place from replay to replay.
            memory: what objectives keep, by id and name.
        """
        if not self.wanted:
            return take(make(FitStep))
        kind = self._kinds.setdefault(key, Kind())
        kind.taken += 1
        if kind.plain or kind.taken == 1 or any(index % every == 0 for every in kind.periods):
            return take(make(FitStep))
        if kind.graph is None and kind.taken > 2:
            self._capture(kind, make, take)
        if kind.graph is not None:
            kind.graph.replay()
            return kind.result
        if kind.plain:
            return take(make(FitStep))
        return self._watched(kind, index, make, take, memory)

    def _watched(
        self, kind: Kind, index: int, make: Callable[[type[FitStep]], FitStep], take: Callable[[FitStep], Any], memory: Any
    ) -> Any:
        step = make(WatchedStep)
        assert isinstance(step, WatchedStep)
        before = {(id, name): tensor for id, kept in memory.items() for name, tensor in kept.items()}
        with _waits() as waited:
            step.watch()
            result = take(step)
            asked, periods = step.__dict__.pop("asked"), step.__dict__.pop("periods")
        after = {(id, name): tensor for id, kept in memory.items() for name, tensor in kept.items()}
        kind.periods = frozenset(periods)
        renewed = after.keys() != before.keys() or any(after[k] is not before[k] for k in after)
        if any(index % every == 0 for every in periods):
            kind.taken -= 1  # what was renewed says nothing of the steps between
            renewed = False
        reason = sorted(asked & self.varying) or (["what an objective keeps"] if renewed else []) or waited[:1]
        if reason:
            kind.plain = True
            log.debug("steps are not captured: they depend on %s", ", ".join(reason))
        return result

    def _capture(self, kind: Kind, make: Callable[[type[FitStep]], FitStep], take: Callable[[FitStep], Any]) -> None:
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = take(make(FitStep))
            finally:
                graph.capture_end()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            kind.plain = True
            log.debug("steps are not captured: %s", str(error).splitlines()[0])
            return
        kind.graph, kind.result = graph, result


@contextlib.contextmanager
def _waits() -> Iterator[list[str]]:
    """Notes whether the host waits for the card."""
    found: list[str] = []
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    waited = (w for w in caught if "called a synchronizing" in str(w.message))
    found += [f"an answer of the card ({w.filename}:{w.lineno})" for w in waited]


def in_one_order() -> contextlib.AbstractContextManager[None]:
    """Convolutions that add in one order, so that a seed gives the same bits."""
    cudnn = torch.backends.cudnn  # what is not given to its flags is set to their defaults, under which it is off
    return cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32)


@contextlib.contextmanager
def undisturbed(device: torch.device, networks: bool = False) -> Iterator[None]:
    """On a card: a stream of its own, as captures need one, no garbage collection between launches, and convolutions whose sums
    are in one order.

    Args:
        networks: a network is fitted; its matrix products then run on the card's matrix units (TF32), several times as fast.
    """
    if device.type != "cuda":
        yield
        return
    collecting, products = gc.isenabled(), torch.backends.cuda.matmul
    precise = products.allow_tf32
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    gc.disable()
    products.allow_tf32 = networks or precise
    try:
        with torch.cuda.stream(stream), in_one_order():
            yield
    finally:
        products.allow_tf32 = precise
        if collecting:
            gc.enable()
        torch.cuda.current_stream(device).wait_stream(stream)
