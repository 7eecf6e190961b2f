"""A frozen network's passes as CUDA graphs: hundreds of launches become one, where a batch is too small to hide them.

A pass is captured at its second call of a shape and replayed from then on, with the same kernels in the same order. What cannot
be captured goes on as it was.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

#: Samples a batch up to which launches, not arithmetic, bound a pass: of a network of published size, and of a small one, which
#: has fewer parameters than these.
SMALL, SMALL_OF_SMALL, FEW = 32, 512, 50_000_000
#: Bytes of a card, as far as this process may use it, that can spare what a captured pass of a network of published size keeps.
ROOMY = 20 * 2**30
#: Shapes that are kept captured, each with the memory of its activations.
KEPT = 8


class _Pass:
    """One captured call: buffers for its inputs, the graph, and its output."""

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
        self.inputs = tuple(x.clone() for x in inputs)
        device = inputs[0].device
        stream = torch.cuda.Stream(device)  # PyTorch's own for captures is of the card that was current at the first one
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            function(*self.inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            self.output = function(*self.inputs)

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        torch._foreach_copy_(self.inputs, inputs)
        self.graph.replay()
        return self.output.clone()


class Graphs:
    """Captured passes of one network by the shapes of their inputs.

    Attributes:
        scarce: memory ran out: networks of published size are no longer captured.
    """

    def __init__(self) -> None:
        self.passes: dict[Any, Any] = {}
        self.scarce = False
        self._sizes: dict[int, int] = {}
        _every.add(self)

    def small(self, module: nn.Module) -> bool:
        """Whether a network has so few parameters that launches bound it."""
        if id(module) not in self._sizes:
            self._sizes[id(module)] = sum(p.numel() for p in module.parameters())
        return self._sizes[id(module)] < FEW

    def wanted(self, module: nn.Module, count: int) -> bool:
        """Whether a pass of ``count`` samples is worth capturing."""
        device = next(module.parameters()).device
        if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return False
        if self.small(module):
            return count <= SMALL_OF_SMALL
        return count <= SMALL and not self.scarce and usable_memory(device) > ROOMY

    @torch.no_grad()
    def __call__(self, module: nn.Module, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``function(*inputs)``, which runs ``module`` and reads nothing else that changes; no gradient."""
        if not self.wanted(module, len(inputs[0])):
            return function(*inputs)
        first = next(module.parameters())
        key = (first.data_ptr(), getattr(function, "__qualname__", ""), *((x.shape, x.dtype, x.device) for x in inputs))
        if key not in self.passes:
            if len(self.passes) >= KEPT:
                self.passes.clear()
            self.passes[key] = None
            return function(*inputs)  # libraries choose their kernels now, and shapes of one call are not captured
        found = self.passes[key]
        if found is None:
            try:
                found = self.passes[key] = _Pass(function, inputs)
            except RuntimeError as error:
                log.info("a pass of %s is not captured: %s", type(module).__name__, str(error).splitlines()[0])
                self.passes[key] = found = _Plain(function)
        return found(inputs)

    def differentiable(self, module: nn.Module, function: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
        """``function(pictures)`` with its gradient, both captured; what it returns holds until the next call of this shape."""
        own = torch.cuda.graph.default_capture_stream
        elsewhere = own is not None and own.device != pictures.device
        if elsewhere or not self.wanted(module, pictures.shape[0] * pictures.shape[1]):
            return function(pictures)
        key = (next(module.parameters()).data_ptr(), "differentiable", pictures.shape, pictures.dtype)
        if key not in self.passes:
            if len(self.passes) >= KEPT:
                self.passes.clear()
            self.passes[key] = None
            return function(pictures)
        if self.passes[key] is None:
            try:
                sample = pictures.detach().clone().requires_grad_(True)
                self.passes[key] = torch.cuda.make_graphed_callables(function, (sample,))
            except RuntimeError as error:
                log.info("a pass of %s is not captured: %s", type(module).__name__, str(error).splitlines()[0])
                self.passes[key] = function
        return self.passes[key](pictures)


_every: WeakSet[Graphs] = WeakSet()


def give_way() -> None:
    """Gives back what captured passes keep, and all memory that is held without use: where a card's does not suffice."""
    for graphs in _every:
        graphs.passes.clear()
        graphs.scarce = True
    gc.collect()
    torch.cuda.empty_cache()


def usable_memory(device: torch.device) -> float:
    """Bytes of a card that this process may use."""
    share = getattr(torch.cuda, "get_per_process_memory_fraction", None)  # PyTorch 2.8
    return torch.cuda.get_device_properties(device).total_memory * (1.0 if share is None else share(device))


class _Plain(_Pass):
    """A pass that is called as it is."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return self.function(*inputs)
