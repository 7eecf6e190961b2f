"""How long work says where it is, and how it is interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Progress(Protocol):
    """Called after every step; interrupts the fit by raising.

    ``preview()`` draws a small picture (H, W, 3) of the present state and costs a render, so call it only now and then.
    """

    def __call__(self, stage: str, step: int, steps: int, losses: dict[str, float], preview: Callable[[], Tensor]) -> None: ...


_listener: ContextVar[Callable[[], None] | None] = ContextVar("listener", default=None)


@contextmanager
def pulsing(listener: Callable[[], None]) -> Iterator[None]:
    """Within it, in this thread, :func:`pulse` calls ``listener``, which interrupts the work by raising."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def pulse() -> None:
    """Work that takes seconds and reports no steps calls this several times a second, so that it can be interrupted."""
    if (listener := _listener.get()) is not None:
        listener()
