"""Density control: Gaussians are cloned or split where the picture pulls hardest, and removed where they do nothing."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..cameras import quaternion_to_matrix
from ..gaussians import Gaussians
from ..optimiser import Adam
from ..render import ScreenStatistics

log = logging.getLogger(__name__)


@dataclass
class DensityState:
    """What density control has seen since it last changed the set.

    Args:
        gradient: sum of the screen gradients of each Gaussian, (N,); empty where none was seen.
        seen: how often each was visible, (N,).
    """

    gradient: Tensor = field(default_factory=lambda: torch.zeros(0))
    seen: Tensor = field(default_factory=lambda: torch.zeros(0))

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a checkpoint."""
        return {"gradient": self.gradient, "seen": self.seen}


@dataclass(frozen=True)
class DensityControl:
    """Clone, split and prune, up to a fixed budget. Works with every renderer, from its screen gradients.

    Source: 3D Gaussian Splatting's rule (clone small, split large by 1.6, prune the transparent) with a budget: of those above
    the threshold the strongest come first until the budget is full.

    Args:
        every, start, stop: steps between changes, first step, and the progress rho after which nothing changes.
        threshold: mean screen gradient (half-picture units, for a loss summed over a view) above which a Gaussian grows.
        large: standard deviation above which it splits instead of being cloned, world units.
        min_opacity: below it a Gaussian is removed.
        budget: most Gaussians there may be.
        share: at most this part of the set grows at a time.
        top: in place of the threshold, grow the strongest: those at least as strong as the one of rank ``floor(top n)``, from
            0, of the n with any gradient (STAG4D's adaptive densification: 0.025).
        largest, smallest: Gaussians whose longest standard deviation lies outside are removed, world units, but for those that
            split.
    """

    every: int = 100
    start: int = 100
    stop: float = 0.7
    threshold: float = 2e-4
    large: float = 0.01
    min_opacity: float = 0.01
    budget: int = 100_000
    share: float = 0.1
    top: float = 0.0
    largest: float = math.inf
    smallest: float = 0.0

    def update(
        self,
        state: DensityState,
        index: int,
        total: int,
        gaussians: Gaussians,
        optimiser: Adam,
        statistics: list[ScreenStatistics],
        generator: torch.Generator,
    ) -> Gaussians:
        """Adds this step's statistics and, when it is time, returns a changed set, the optimiser's state to match."""
        for seen_by in statistics:
            if seen_by.gradient is None or seen_by.visible is None:
                continue
            gradient, seen = seen_by.gradient.sum(0), seen_by.visible.sum(0).to(torch.float32)
            if len(state.gradient) != len(gradient):
                state.gradient, state.seen = torch.zeros_like(gradient), torch.zeros_like(seen)
            state.gradient, state.seen = state.gradient + gradient, state.seen + seen
        step = index + 1
        if step < self.start or step % self.every or step > self.stop * total or not len(state.gradient):
            return gaussians
        mean = state.gradient / state.seen.clamp_min(1)
        state.gradient, state.seen = state.gradient.new_zeros(0), state.seen.new_zeros(0)
        with torch.no_grad():
            return self._change(gaussians.detach(), mean, optimiser, generator)

    def _change(self, old: Gaussians, gradient: Tensor, optimiser: Adam, generator: torch.Generator) -> Gaussians:
        longest = old.scales.amax(-1)
        opaque = old.opacities > self.min_opacity
        keep = opaque & (longest >= self.smallest) & (longest <= self.largest)
        room = min(self.budget - int(keep.sum()), math.floor(self.share * len(old)))
        threshold = adaptive_threshold(gradient, self.top) if self.top else self.threshold
        log.debug("density: %d Gaussians, threshold %.3g", len(old), threshold)
        strong = gradient >= threshold if self.top else gradient > threshold
        strength = torch.where(opaque & (longest >= self.smallest) & strong, gradient, torch.zeros_like(gradient))
        order = strength.argsort(descending=True, stable=True)[: max(room, 0)]
        grow = torch.zeros_like(keep)
        grow[order[strength[order] > 0]] = True
        split = grow & (longest > self.large)
        parents = old.select(split)
        noise = torch.randn(2, len(parents), 3, generator=generator).to(old.device) * parents.scales
        offset = (quaternion_to_matrix(parents.quats) @ noise[..., None])[..., 0]
        smaller = parents.log_scales - math.log(1.6)
        children = [
            Gaussians(parents.means + offset[i], parents.quats, smaller, parents.opacity_logits, parents.sh) for i in range(2)
        ]
        fits = smaller.exp().amax(-1) <= self.largest
        stay = keep & ~split
        clones = old.select(grow & keep & ~split)
        new = Gaussians.cat([old.select(stay), clones, *(child.select(fits) for child in children)])
        kept = stay.nonzero()[:, 0]
        for group in optimiser.groups:
            tensor = new.tensors()[group.name].clone().requires_grad_(True)
            group.parameter = tensor
            for state in (optimiser.first, optimiser.second):
                fresh = torch.zeros_like(tensor)
                fresh[: len(kept)] = state[group.name][kept]
                state[group.name] = fresh
            new = Gaussians(**(new.tensors() | {group.name: tensor}))
        return new


def adaptive_threshold(gradient: Tensor, top: float) -> float:  # (N,)
    """The gradient of rank ``floor(top n)``, from 0, among the n positive ones in falling order; infinity where there is none.

    Source: STAG4D's released code, which ranks the logarithms; thresholds that suit one scene differ by e^1.3 from another's.
    """
    positive = gradient[gradient > 0].sort(descending=True).values
    return float(positive[math.floor(top * len(positive))]) if len(positive) else math.inf
