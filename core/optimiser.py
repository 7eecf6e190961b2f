"""Adam whose state is plain named tensors, with optional smoothing of its steps over nodes and time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it PyTorch computes on one thread: what LAPACK gives depends on how many share the work, and on some processors
    what BLAS gives where it sums over much. No fit's result may.

    What fits ask otherwise gives the same bits on any number of threads (``tests/test_threads.py``).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class Group:
    """One parameter tensor's settings.

    Args:
        name: unique in the optimiser; names the state in checkpoints.
        parameter: the leaf tensor.
        lr: learning rate at the start.
        smooth: symmetric linear map S. Adam then runs on u with parameter = S u, so that a gradient on one node moves its
            whole neighbourhood at once (the reparametrisation of "Large Steps in Inverse Rendering", Nicolet et al. 2021).
        final: factor to which the rate falls log-linearly over the fit, besides the schedule's.
        until: progress at which that factor is reached; it stays so.
    """

    name: str
    parameter: Tensor
    lr: float
    smooth: Callable[[Tensor], Tensor] | None = None
    final: float = 1.0
    until: float = 1.0


class Adam:
    """Adam over named tensors. Bit-identical on repetition; state in and out as a dict of tensors."""

    def __init__(self, groups: list[Group], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-15) -> None:
        self.groups, self.betas, self.eps = groups, betas, eps
        self.first = {g.name: torch.zeros_like(g.parameter) for g in groups}
        self.second = {g.name: torch.zeros_like(g.parameter) for g in groups}
        self.count = 0

    @torch.no_grad()
    def step(self, factor: float = 1.0, rows: Tensor | None = None, rho: float = 0.0) -> None:
        """One step at progress ``rho``, every rate times ``factor``; with ``rows`` only those leading indices move.

        Gradients are dropped afterwards.
        """
        self.count += 1
        b1, b2 = self.betas
        correction1, correction2 = 1 - b1**self.count, 1 - b2**self.count
        for group in self.groups:
            gradient = group.parameter.grad
            if gradient is None:
                continue
            if group.smooth is not None:
                gradient = group.smooth(gradient)
            first, second = self.first[group.name], self.second[group.name]
            if rows is not None:
                gradient, m, v = gradient[rows], first[rows], second[rows]
            else:
                m, v = first, second
            m = m.mul(b1).add_(gradient, alpha=1 - b1)
            v = v.mul(b2).addcmul_(gradient, gradient, value=1 - b2)
            rate = group.lr * factor * group.final ** min(rho / group.until, 1.0)
            change = (m / correction1) / ((v / correction2).sqrt_() + self.eps) * -rate
            if rows is not None:
                first[rows], second[rows] = m, v
                change = torch.zeros_like(group.parameter).index_copy_(0, rows.to(change.device), change)
            else:
                first.copy_(m)
                second.copy_(v)
            group.parameter.add_(change if group.smooth is None else group.smooth(change))
            group.parameter.grad = None

    def requires_grad(self, wanted: bool) -> None:
        """Whether its parameters take part in the next step."""
        for group in self.groups:
            group.parameter.requires_grad_(wanted)

    def reset(self) -> None:
        """Forgets the moments, for a new stage."""
        self.count = 0
        for state in (*self.first.values(), *self.second.values()):
            state.zero_()

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on, as tensors."""
        return (
            {f"first.{k}": v for k, v in self.first.items()}
            | {f"second.{k}": v for k, v in self.second.items()}
            | {"count": torch.tensor(self.count)}
        )

    def load(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state` gave."""
        self.count = int(state["count"])
        for name in self.first:
            self.first[name] = state[f"first.{name}"].to(self.first[name])
            self.second[name] = state[f"second.{name}"].to(self.second[name])
