"""Tensors on their way to a graphics card, without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device. From the CPU to a card it goes through pinned memory, so that nobody waits for the card's queue."""
    device = torch.device(device)
    if tensor.device.type != "cpu" or device.type != "cuda":
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)  # pinning keeps an expanded tensor's overlaps


class Flag:
    """A truth value that a card works out, read without waiting once it is there."""

    def __init__(self, value: Tensor) -> None:  # () bool
        self._held: Tensor = value
        self._event: torch.cuda.Event | None = None
        if value.device.type == "cuda":
            self._held = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._held.copy_(value, non_blocking=True)
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
