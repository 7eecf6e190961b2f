"""Clips one after the other: how Align Your Gaussians makes a motion longer than its video model's clips (arXiv 2312.13763)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..gaussians import Gaussians
from ..optimiser import Group
from .base import DeformationField, field_from_config, register_field
from .frames import blend
from .wrappers import still


@register_field
class ClipChain(DeformationField):
    """Fields of one clip each, of which every one begins before the last has ended, from where the object then is.

    A clip lasts 1, and clip k begins at ``(1 - overlap) k``. There the object is where clip k - 1 has it, to which clip k's
    field adds what it moves its Gaussians by. While two clips overlap, what both make of the object is blended, by a share chi
    of the later one that rises smoothly from 0 to 1: ``(1 - chi) Delta_1 + chi Delta_2``. The chain's own time is in [0, 1].
    Only the last field is trained.

    Args:
        fields: fields that move nothing at time 0, or their descriptions.
        overlap: part of a clip that it shares with the next, in (0, 0.5].
        closed: the last clip's end is blended the same way into the still object, where the first began.
    """

    name = "clip-chain"
    composed = True
    offers = frozenset({"seam"})

    def __init__(self, fields: Sequence[DeformationField | dict[str, Any]], overlap: float = 0.5, closed: bool = False) -> None:
        super().__init__()
        if not fields or not 0 < overlap <= 0.5:
            raise ValueError(f"clip chain: {len(fields)} clips with an overlap of {overlap:g}, give some, and 0 to 0.5")
        self.clips = nn.ModuleList([field_from_config(f) if isinstance(f, dict) else f for f in fields])
        self.overlap, self.closed = overlap, closed
        clips = [self.field(i) for i in range(len(self.clips))]
        self.anywhere, self.fixed_count = all(clip.anywhere for clip in clips), any(clip.fixed_count for clip in clips)
        for field in self.clips[:-1]:
            field.requires_grad_(False)

    @classmethod
    def grown(cls, before: DeformationField, clip: DeformationField, overlap: float = 0.5, closed: bool = False) -> ClipChain:
        """A chain with one clip more than a field that is one, or else is its first clip."""
        if isinstance(before, ClipChain):
            return cls([*before.clips, clip], before.overlap, closed)  # pyright: ignore[reportArgumentType]
        return cls([before, clip], overlap, closed)

    @property
    def length(self) -> float:
        """Of the chain, in clips."""
        return 1 + (len(self.clips) - 1) * (1 - self.overlap)

    @property
    def window(self) -> tuple[float, float]:
        """When the last clip begins and ends, of the chain's time."""
        return 1 - 1 / self.length, 1.0

    def field(self, index: int) -> DeformationField:
        found = self.clips[index]
        assert isinstance(found, DeformationField)
        return found

    def beginning(self, gaussians: Gaussians, index: int) -> Gaussians:
        """Where the object is when a clip begins, (1, N, ...)."""
        start = still(gaussians, gaussians.means.new_zeros(1))
        moment = gaussians.means.new_full((1,), 1 - self.overlap)
        for before in range(index):
            start = _added(start, gaussians, self.field(before)(gaussians, moment))
        return start

    def clip(self, gaussians: Gaussians, index: int, moments: Tensor) -> Gaussians:  # (B,) -> (B, N, ...)
        """What one clip makes of the object at its own times in [0, 1]."""
        return _added(self.beginning(gaussians, index), gaussians, self.field(index)(gaussians, moments.clamp(0, 1)))

    def moments(self, tau: Tensor) -> tuple[Tensor, Tensor]:  # (B,) -> (B,) int64, (B,)
        """The latest clip that plays at each time, and how long it has."""
        at, stride = tau * self.length, 1 - self.overlap
        # A time that falls short of a clip's beginning by rounding is the clip's.
        index = ((at + 1e-5) / stride).floor().long().clamp(0, len(self.clips) - 1)
        return index, at - index * stride

    def share(self, index: Tensor, since: Tensor) -> Tensor:  # (B,) int64, (B,) -> (B,)
        """chi: how much of what is shown is the latest clip's."""
        u = torch.where(index > 0, since / self.overlap, torch.ones_like(since)).clamp(0, 1)
        return u * u * (3 - 2 * u)

    def ending(self, tau: Tensor) -> Tensor:  # (B,) -> (B,)
        """How much of what is shown is the still object again: 0 where the chain is not closed."""
        u = ((tau * self.length - (self.length - self.overlap)) / self.overlap).clamp(0, 1) * self.closed
        return u * u * (3 - 2 * u)

    def forward(self, gaussians: Gaussians, tau: Tensor) -> Gaussians:
        index, since = self.moments(tau)
        parts, order = [], []
        for latest in index.unique().tolist():
            rows = (index == latest).nonzero()[:, 0]
            shown = self.clip(gaussians, latest, since[rows])
            share = self.share(index[rows], since[rows])
            fading = share < 1
            if bool(fading.any()):
                earlier = self.clip(gaussians, latest - 1, since[rows][fading] + 1 - self.overlap)
                both = blend(earlier, shown.map(lambda t: t[fading]), share[fading])  # noqa: B023
                shown = _placed(shown, fading, both)
            parts.append(shown)
            order.append(rows)
        inverse = torch.cat(order).argsort()
        moved = Gaussians(**{k: torch.cat([p.tensors()[k] for p in parts])[inverse] for k in gaussians.tensors()})
        if not self.closed:
            return moved
        ending = self.ending(tau)
        late = ending > 0
        if not bool(late.any()):
            return moved
        return _placed(moved, late, blend(moved.map(lambda t: t[late]), still(gaussians, tau[late]), ending[late]))

    def seam(self, gaussians: Gaussians, tau: Tensor) -> Tensor:
        """L_interpol, the mean over Gaussians and over the times at which the last clip is blended of |Delta_1 - Delta_12|^2.

        Delta_1 is the clip before; where the chain closes, the still object.
        """
        index, since = self.moments(tau)
        share, ending = self.share(index, since), self.ending(tau)
        blended = (index == len(self.clips) - 1) & (share < 1)
        losses = []
        if bool(blended.any()):
            earlier = self.clip(gaussians, len(self.clips) - 2, since[blended] + 1 - self.overlap).means
            later = self.clip(gaussians, len(self.clips) - 1, since[blended]).means
            losses.append((share[blended, None, None] * (earlier - later)).square())
        if bool((ending > 0).any()):
            late = ending > 0
            losses.append((self(gaussians, tau[late]).means - gaussians.means).square())
        return torch.cat(losses).sum(-1).mean() if losses else gaussians.means.new_zeros(())

    @property
    def changes(self) -> frozenset[str]:
        found = frozenset[str]().union(*(self.field(i).changes for i in range(len(self.clips))))
        return found | {"quats"} if found else found  # blending makes rotations unit

    def check(self, count: int) -> None:
        for i in range(len(self.clips)):
            self.field(i).check(count)

    def select(self, index: Tensor) -> ClipChain:
        return ClipChain([self.field(i).select(index) for i in range(len(self.clips))], self.overlap, self.closed)

    def recolored(self, function: Callable[[Tensor], Tensor]) -> ClipChain:
        fields = [self.field(i).recolored(function) for i in range(len(self.clips))]
        return ClipChain(fields, self.overlap, self.closed)

    def parameter_groups(self, whole_clip: bool = True, smoothing: float = 1.0) -> list[Group]:
        last = len(self.clips) - 1
        groups = self.field(last).parameter_groups(whole_clip, smoothing)
        return [replace(group, name=f"clips.{last}.{group.name}") for group in groups]

    def config(self) -> dict[str, Any]:
        fields = [self.field(i).config() for i in range(len(self.clips))]
        return {"type": self.name, "fields": fields, "overlap": self.overlap, "closed": self.closed}


def _added(start: Gaussians, rest: Gaussians, moved: Gaussians) -> Gaussians:
    """A start (1, N, ...) and what a field adds to the canonical Gaussians (N, ...) to make them (B, N, ...)."""
    tensors, canonical = start.tensors(), rest.tensors()
    return Gaussians(**{k: tensors[k] + (v - canonical[k]) for k, v in moved.tensors().items()})


def _placed(whole: Gaussians, rows: Tensor, part: Gaussians) -> Gaussians:
    """A batch with some of its sets replaced."""
    some = part.tensors()
    return Gaussians(**{k: t.index_put((rows,), some[k]) for k, t in whole.tensors().items()})
