"""How long work says where it is, and how it is interrupted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Progress(Protocol):
    """Called after every step; interrupts the fit by raising.

    ``preview()`` draws a small picture (H, W, 3) of the present state and costs a render, so call it only now and then.
    """

    def __call__(self, stage: str, step: int, steps: int, losses: dict[str, float], preview: Callable[[], Tensor]) -> None: ...
