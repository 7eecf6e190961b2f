"""Adam on a graphics card: few launches for any number of tensors, and all that changes from step to step in one vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..optimiser import Adam, Group


@dataclass
class _Packed:
    """Groups that one map smooths, side by side: (rows, points, channels) of all.

    Args:
        groups: in their order.
        widths: channels of each.
        rates: place of each channel's rate among the numbers of a step.
        first, second: moments.
    """

    groups: list[Group]
    widths: list[int]
    rates: Tensor
    first: Tensor
    second: Tensor
    smooth: Callable[[Tensor], Tensor]


class DeviceAdam(Adam):
    """:class:`~..optimiser.Adam` in a few launches; :meth:`apply` may be captured in a CUDA graph.

    A step's numbers are its count and the rates: :meth:`advance` gives them on the host, :meth:`apply` reads them on the card.
    """

    def __init__(self, groups: list[Group], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-15) -> None:
        super().__init__(groups, betas, eps)
        self.schedules = list(dict.fromkeys((g.lr, g.final, g.until) for g in groups))
        self.packed: list[_Packed] = []
        smoothed = [g for g in groups if g.smooth is not None]
        for key in dict.fromkeys((id(g.smooth), g.parameter.shape[:2]) for g in smoothed):
            self.packed.append(self._pack([g for g in smoothed if (id(g.smooth), g.parameter.shape[:2]) == key]))

    def _pack(self, groups: list[Group]) -> _Packed:
        widths = [g.parameter[0, 0].numel() for g in groups]
        like = groups[0].parameter
        first, second = torch.zeros(2, *like.shape[:2], sum(widths), device=like.device).unbind()
        place = [1 + self._rate(g) for g, width in zip(groups, widths) for _ in range(width)]
        start = 0
        for group, width in zip(groups, widths):
            part = slice(start, start + width)
            self.first[group.name] = (
                first[..., part].view(group.parameter.shape) if group.parameter.dim() > 2 else first[..., start]
            )
            self.second[group.name] = (
                second[..., part].view_as(self.first[group.name]) if group.parameter.dim() > 2 else second[..., start]
            )
            start += width
        assert groups[0].smooth is not None
        return _Packed(groups, widths, torch.tensor(place, device=like.device), first, second, groups[0].smooth)

    def _rate(self, group: Group) -> int:
        return self.schedules.index((group.lr, group.final, group.until))

    def advance(self, factor: float = 1.0, rho: float = 0.0) -> list[float]:
        """Counts a step, and its numbers: how many there were, and the rates."""
        self.count += 1
        return [float(self.count), *(lr * factor * final ** min(rho / until, 1.0) for lr, final, until in self.schedules)]

    @torch.no_grad()
    def apply(self, numbers: Tensor, row: Tensor | None = None) -> None:
        """Moves the parameters by their gradients, which are dropped; with ``row`` (1,) only that leading index moves."""
        count, b1, b2 = numbers[0], *self.betas

        def adam(
            parameters: list[Tensor], gradients: list[Tensor], first: list[Tensor], second: list[Tensor], lr: Tensor
        ) -> None:
            torch._fused_adam_(
                parameters, gradients, first, second, [], [count] * len(parameters), lr=lr, beta1=b1, beta2=b2,
                weight_decay=0.0, eps=self.eps, amsgrad=False, maximize=False,
            )  # fmt: skip

        for rate in range(len(self.schedules)):
            groups = [g for g in self.groups if g.smooth is None and g.parameter.grad is not None and self._rate(g) == rate]
            if not groups:
                continue
            parameters = [g.parameter for g in groups]
            gradients = [p.grad for p in parameters if p.grad is not None]
            first, second = ([state[g.name] for g in groups] for state in (self.first, self.second))
            if row is None:
                adam(parameters, gradients, first, second, numbers[1 + rate])
                continue
            p, g, m, v = ([x.index_select(0, row) for x in tensors] for tensors in (parameters, gradients, first, second))
            adam(p, g, m, v, numbers[1 + rate])
            for whole, part in zip((parameters, first, second), (p, m, v)):
                for x, y in zip(whole, part):
                    x.index_copy_(0, row, y)
        one = torch.ones_like(count)
        for packed in self.packed:
            shape = packed.first.shape
            given = [g.parameter.grad for g in packed.groups]
            if all(g is None for g in given):
                continue
            parts = [
                torch.zeros(*shape[:2], width, device=count.device) if g is None else g.reshape(*shape[:2], width)
                for g, width in zip(given, packed.widths)
            ]
            gradient = packed.smooth(torch.cat(parts, -1) if row is None else torch.cat(parts, -1).index_select(0, row))
            gradient = gradient.contiguous()
            first, second = packed.first, packed.second
            if row is not None:
                first, second = first.index_select(0, row), second.index_select(0, row)
            change = torch.zeros_like(gradient)
            adam([change], [gradient], [first], [second], one)
            if row is not None:
                packed.first.index_copy_(0, row, first)
                packed.second.index_copy_(0, row, second)
            change = packed.smooth(change * numbers[packed.rates])
            for group, part in zip(packed.groups, change.split(packed.widths, -1)):
                part = part.reshape(-1, *group.parameter.shape[1:])
                if row is None:
                    group.parameter.add_(part)
                else:
                    group.parameter.index_add_(0, row, part)
        for group in self.groups:
            group.parameter.grad = None

    def step(self, factor: float = 1.0, rows: Tensor | None = None, rho: float = 0.0) -> None:
        device = self.groups[0].parameter.device
        numbers = torch.tensor(self.advance(factor, rho), device=device)
        self.apply(numbers, None if rows is None else rows.to(device))

    def load(self, state: dict[str, Tensor]) -> None:
        self.count = int(state["count"])
        for name in self.first:
            for held, key in ((self.first, "first"), (self.second, "second")):
                tensor = state[f"{key}.{name}"]
                if held[name].shape == tensor.shape:
                    held[name].copy_(tensor)
                else:
                    held[name] = tensor.to(held[name])
