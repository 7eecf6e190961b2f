"""Weights as functions of progress: plain values, so that a run's settings can be written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

#: A weight as a function of rho = step / steps in [0, 1].
Weight = Callable[[float], float]


@dataclass(frozen=True)
class Ramp:
    """A weight that changes evenly. A value, not a function: its repr names a run's settings, in checkpoints and reports.

    Args:
        start, end: weights.
        until: progress at which the end is reached; it stays so.
    """

    start: float
    end: float
    until: float = 1.0

    def __call__(self, rho: float) -> float:
        return self.start + (self.end - self.start) * min(rho / self.until, 1.0)


@dataclass(frozen=True)
class Switch:
    """A weight that changes at once, at a progress ``at``."""

    start: float
    end: float
    at: float

    def __call__(self, rho: float) -> float:
        return self.start if rho < self.at else self.end


def constant(value: float) -> Weight:
    """The same weight throughout."""
    return Ramp(value, value)


def linear(start: float, end: float, scale: float = 1.0) -> Weight:
    """From ``scale * start`` at the first step to ``scale * end`` at the last (PLA4D's lambda: 0.98 to 0.02)."""
    return Ramp(scale * start, scale * end)


def scaled(weight: Weight, factor: float) -> Weight:
    """A weight times a factor.

    Raises:
        TypeError: for one that is no value of this module.
    """
    if isinstance(weight, Ramp | Switch):
        return replace(weight, start=factor * weight.start, end=factor * weight.end)
    raise TypeError(f"weight {weight!r}: cannot be scaled, give a Ramp or a Switch")
