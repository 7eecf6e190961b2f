"""Motion as it came from elsewhere: the Gaussians' attributes at every frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..gaussians import Gaussians
from ..optimiser import Group
from .base import DeformationField, register_field

#: Times this close to a frame, in frames, are the frame's own: float32 does not hit them exactly.
_NEAR = 1e-4


@register_field
class FrameField(DeformationField):
    """The attributes of each frame, interpolated or held; those that never change are the canonical ones.

    Memory: float32, so 12 bytes a Gaussian and frame for the means, 16 for the rotations, 12 for the scales, 4 for the opacity
    and 12 K for the harmonics, of which only what changes is kept: 100,000 Gaussians x 32 frames whose means and rotations
    change take 90 MB, with everything at degree 0 180 MB.

    Args:
        frames, points: numbers of frames and of Gaussians.
        attributes: names of the kept attributes.
        harmonics: SH coefficients a Gaussian, where kept.
        interpolation: "linear" blends neighbouring frames, rotations the shorter way; "hold" shows each until the next.
        loop: frame ``frames`` is frame 0 again.
    """

    name = "frames"
    composed = True
    fixed_count = True

    def __init__(
        self,
        frames: int,
        points: int,
        attributes: Sequence[str] = ("means", "quats", "log_scales", "opacity_logits"),
        harmonics: int = 1,
        interpolation: str = "linear",
        loop: bool = False,
    ) -> None:
        super().__init__()
        if interpolation not in ("linear", "hold"):
            raise ValueError(f"interpolation {interpolation!r}: unknown, choose linear or hold")
        self.arguments: dict[str, Any] = dict(
            frames=frames,
            points=points,
            attributes=list(attributes),
            harmonics=harmonics,
            interpolation=interpolation,
            loop=loop,
        )
        self.frames, self.points, self.interpolation, self.loop = frames, points, interpolation, loop
        ends = {"means": (3,), "quats": (4,), "log_scales": (3,), "opacity_logits": (), "sh": (harmonics, 3)}
        for key in attributes:
            self.register_buffer(key, torch.empty(frames, points, *ends[key]))

    @staticmethod
    def of(sets: Sequence[Gaussians], *, interpolation: str = "linear", loop: bool = False) -> FrameField:
        """The field that passes through unbatched sets of equal size, one a frame; the first is the canonical one."""
        first = sets[0]
        differs = {key: any(not torch.equal(t, s.tensors()[key]) for s in sets) for key, t in first.tensors().items()}
        changing = [key for key, differing in differs.items() if differing or key == "means"]
        field = FrameField(len(sets), len(first), changing, first.sh.shape[-2], interpolation, loop).to(first.device)
        for key, kept in field.kept.items():
            for t, gaussians in enumerate(sets):
                kept[t] = gaussians.tensors()[key].detach()
        return field

    @property
    def kept(self) -> dict[str, Tensor]:
        """What is kept of each frame, (frames, N, ...) by attribute."""
        return dict(self.named_buffers())

    @property
    def changes(self) -> frozenset[str]:
        return frozenset(self.kept)

    @property
    def continuous(self) -> bool:
        return self.interpolation == "linear"

    def forward(self, gaussians: Gaussians, tau: Tensor) -> Gaussians:
        if len(gaussians) != self.points:
            raise ValueError(f"the frames hold {self.points} Gaussians, not {len(gaussians)}; make the scene again")
        place = tau.detach() * (self.frames if self.loop else self.frames - 1)
        left = (place + _NEAR).floor()
        share = (place - left).clamp_min(0) if self.continuous else torch.zeros_like(place)
        share = torch.where(share < _NEAR, 0.0, share)
        first = left.long() % self.frames if self.loop else left.long().clamp(0, self.frames - 1)
        second = (first + 1) % self.frames if self.loop else (first + 1).clamp_max(self.frames - 1)
        moved = gaussians.map(lambda t: t.expand(len(tau), *t.shape)).tensors()
        a = Gaussians(**{**moved, **{key: kept[first] for key, kept in self.kept.items()}})
        if not bool(share.any()):
            return a
        return blend(a, Gaussians(**{**moved, **{key: kept[second] for key, kept in self.kept.items()}}), share)

    def parameter_groups(self, whole_clip: bool = True, smoothing: float = 1.0) -> list[Group]:
        return []

    def check(self, count: int) -> None:
        if self.points != count or self.frames < 1 or "means" not in self.kept:
            raise ValueError(f"{self.frames} frames of {self.points} Gaussians, where there are {count}")

    def select(self, index: Tensor) -> FrameField:
        return self._with({key: kept[:, index.to(kept.device)] for key, kept in self.kept.items()})

    def recolored(self, function: Callable[[Tensor], Tensor]) -> FrameField:
        return self._with({key: function(kept) if key == "sh" else kept for key, kept in self.kept.items()})

    def widened(self, amount: Tensor) -> FrameField:
        return self._with({key: kept + amount[:, None] if key == "log_scales" else kept for key, kept in self.kept.items()})

    def _with(self, kept: dict[str, Tensor]) -> FrameField:
        harmonics = kept["sh"].shape[-2] if "sh" in kept else self.arguments["harmonics"]
        field = FrameField(**{**self.arguments, "points": kept["means"].shape[1], "harmonics": harmonics})
        for key, tensor in kept.items():
            field.register_buffer(key, tensor)
        return field


def blend(a: Gaussians, b: Gaussians, share: Tensor) -> Gaussians:  # (B, N, ...), (B, N, ...), (B,)
    """Between two batches of sets, by the share of ``b``: lerp of all, and of the rotations nlerp the shorter way."""

    def lerp(x: Tensor, y: Tensor) -> Tensor:
        return torch.lerp(x, y, share.to(x).reshape(-1, *[1] * (x.dim() - 1)))

    p, q = F.normalize(a.quats, dim=-1), F.normalize(b.quats, dim=-1)
    q = torch.where((p * q).sum(-1, keepdim=True) < 0, -q, q)
    return Gaussians(
        means=lerp(a.means, b.means),
        quats=F.normalize(lerp(p, q), dim=-1),
        log_scales=lerp(a.log_scales, b.log_scales),
        opacity_logits=lerp(a.opacity_logits, b.opacity_logits),
        sh=lerp(a.sh, b.sh),
    )
