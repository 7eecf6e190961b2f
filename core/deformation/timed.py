"""Gaussians with a time of their own: each moves along a polynomial around its own moment, and lives around it.

What FreeTimeGS (arXiv 2506.05348), Spacetime Gaussians (arXiv 2312.16812), 4D Gaussian Splatting sliced in time (arXiv
2310.10642) and TSOG (arXiv 2607.28049) have in common: things appear, part and vanish without a deformation of the whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..gaussians import Gaussians
from ..mesh import Mesh
from ..optimiser import Group
from .base import DeformationField, StaticScene, register_field
from .wrappers import scaled_opacity

#: Part of its half-width by which a window begins and ends early: a frame on the border of two belongs to the later one, and
#: float32 does not hit borders exactly.
_EARLY = 1e-4
MAX_ORDER = 8
#: Clips, and all other values, beyond which products would leave float32.
MAX_CENTRE, MAX_VALUE = 1e3, 1e12


@register_field
class TimedGaussians(DeformationField):
    """With d = tau - centre: ``mean = canonical + sum_k motion_k d^k``, ``quat = canonical + turn d``, opacity times g.

    The canonical set is each Gaussian at its own centre. g is ``exp(-p d^2 / 2)`` of a "gaussian" life with precision
    p = 1 / sigma^2, and 1 where ``p d^2 < 1``, else 0, of a "window" of half-width 1 / sqrt(p). p = 0 is a life without end.
    Files that hold logarithms, durations or radial functions are converted where they are read.

    Args:
        points: number of Gaussians.
        order: of the polynomial, 1 = an even speed, units of the world per clip^k.
        turning: rotations change at an even rate too, before they are normalised.
        life: "gaussian" or "window".
        lr, turn_lr, life_lr: learning rates of motion, turn, and centre and precision.
    """

    name = "timed"
    fixed_count = True

    def __init__(
        self,
        points: int,
        order: int = 1,
        turning: bool = True,
        life: str = "gaussian",
        lr: float = 2e-3,
        turn_lr: float = 5e-3,
        life_lr: float = 1e-2,
    ) -> None:
        super().__init__()
        if not 1 <= order <= MAX_ORDER or life not in ("gaussian", "window"):
            raise ValueError(f"timed: order {order} and life {life!r}, choose 1 to {MAX_ORDER}, and gaussian or window")
        self.arguments: dict[str, Any] = dict(
            points=points, order=order, turning=turning, life=life, lr=lr, turn_lr=turn_lr, life_lr=life_lr
        )
        self.points, self.order, self.turning, self.life = points, order, turning, life
        self.motion = nn.Parameter(torch.zeros(points, order, 3))
        self.centre = nn.Parameter(torch.full((points,), 0.5))
        self.precision = nn.Parameter(torch.zeros(points))
        if turning:
            self.turn = nn.Parameter(torch.zeros(points, 4))

    @classmethod
    def build(cls, scene: StaticScene, mesh: Mesh | None = None, **settings: Any) -> Self:
        """As everywhere; its Gaussians are the scene's."""
        return cls(len(scene.gaussians), **settings).to(scene.gaussians.device)

    @staticmethod
    def of(
        motion: Tensor,  # (N, order, 3)
        centre: Tensor,  # (N,)
        precision: Tensor,  # (N,)
        turn: Tensor | None = None,  # (N, 4)
        life: str = "gaussian",
    ) -> TimedGaussians:
        """The field of these values."""
        field = TimedGaussians(len(motion), motion.shape[1], turn is not None, life)
        given = {"motion": motion, "centre": centre, "precision": precision} | ({} if turn is None else {"turn": turn})
        for name, value in given.items():
            setattr(field, name, nn.Parameter(value.detach().clone()))
        return field

    @property
    def changes(self) -> frozenset[str]:
        return frozenset({"means", "opacity_logits"} | ({"quats"} if self.turning else set()))

    def presence(self, tau: Tensor) -> Tensor:  # (B,) -> (B, N)
        """The factor g of each opacity."""
        # Below 0 a precision counts as 0 and keeps its gradient, so that training can bring it back.
        precision = self.precision + (self.precision.clamp_min(0) - self.precision).detach()
        d = tau[:, None] - self.centre
        if self.life == "gaussian":
            return torch.exp(-0.5 * d * d * precision)
        place = d * precision.detach().sqrt()
        return ((place >= -1 - _EARLY) & (place < 1 - _EARLY)).to(d)

    def forward(self, gaussians: Gaussians, tau: Tensor) -> Gaussians:
        if len(gaussians) != self.points:
            raise ValueError(f"the timed field is of {self.points} Gaussians, not {len(gaussians)}; build it again")
        d = (tau[:, None] - self.centre)[..., None]  # (B, N, 1)
        offset = torch.zeros_like(d)
        for k in reversed(range(self.order)):  # Horner
            offset = (offset + self.motion[:, k]) * d
        moved = gaussians.map(lambda t: t.expand(len(tau), *t.shape))
        quats = F.normalize(F.normalize(gaussians.quats, dim=-1) + self.turn * d, dim=-1) if self.turning else moved.quats
        presence, logits = self.presence(tau), moved.opacity_logits
        learnt = (logits.sigmoid() * presence).clamp(1e-9, 1 - 1e-6).logit()
        # The value of scaled_opacity, which leaves whole presence untouched; the gradient does not stop there.
        logits = learnt + (scaled_opacity(logits, presence) - learnt).detach()
        return replace(moved, means=gaussians.means + offset, quats=quats, opacity_logits=logits)

    def parameter_groups(self, whole_clip: bool = True, smoothing: float = 1.0) -> list[Group]:
        rates = {"motion": "lr", "turn": "turn_lr", "centre": "life_lr", "precision": "life_lr"}
        return [Group(name, parameter, self.arguments[rates[name]]) for name, parameter in self.named_parameters()]

    def check(self, count: int) -> None:
        if self.points != count:
            raise ValueError(f"a timed field of {self.points} Gaussians, where there are {count}")
        if not bool(self.bounded().all()):
            raise ValueError("a timed field with centres, speeds or precisions too large to compute with")

    def bounded(self) -> Tensor:  # (N,) bool
        """Which Gaussians hold finite values that can be computed with."""
        rows = [self.motion.flatten(1), self.precision[:, None], *([self.turn] if self.turning else [])]
        return (torch.cat(rows, 1).abs() <= MAX_VALUE).all(1) & (self.centre.abs() <= MAX_CENTRE)  # NaN is not

    def select(self, index: Tensor) -> TimedGaussians:
        index = index.to(self.motion.device)
        turn = self.turn[index] if self.turning else None
        field = self.of(self.motion[index], self.centre[index], self.precision[index], turn, self.life)
        field.arguments = {**self.arguments, "points": field.points}
        return field
