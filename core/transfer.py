"""Tensors on their way to a graphics card, without waiting for it."""

from __future__ import annotations

import contextlib
from functools import lru_cache

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device. From the CPU to a card it goes through pinned memory, so that nobody waits for the card's queue.

    Raises:
        RuntimeError: within a capture, whose replays would read memory that is no longer the tensor's.
    """
    device = torch.device(device)
    if tensor.device.type != "cpu" or device.type != "cuda":
        return tensor.to(device)
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("a tensor is sent to the card within a captured step")
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)  # pinning keeps an expanded tensor's overlaps


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Within it, streams, events and captures are of this card, whichever is current around it; of no card, nothing changes."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@lru_cache(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers (n,) on a device, sent once. Not to be changed."""
    return torch.tensor(values, dtype=dtype).to(device)


class Flag:
    """A truth value that a card works out, read without waiting once it is there."""

    def __init__(self, value: Tensor) -> None:  # () bool
        self._held: Tensor = value
        self._event: torch.cuda.Event | None = None
        if value.device.type == "cuda":
            self._held = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._held.copy_(value, non_blocking=True)
            with on(value.device):
                self._event = torch.cuda.Event()
                self._event.record()

    @property
    def known(self) -> bool:
        """Whether reading it waits for nothing."""
        return self._event is None or self._event.query()

    def __bool__(self) -> bool:
        if self._event is not None:
            self._event.synchronize()
        return bool(self._held)
