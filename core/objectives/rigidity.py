"""As-rigid-as-possible motion: neighbours on the surface keep their distances up to one rotation each.

What holds together the sides that no camera sees. Absent from PLA4D's text. Sources: Sorkine and Alexa 2007 on the control
nodes, the neighbour rigidity of Dynamic 3D Gaussians for other fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..cameras import quaternion_multiply, quaternion_to_matrix
from ..deformation import fused
from ..gaussians import neighbours
from ..schedules import Weight, constant
from .base import OBJECTIVES, FitStep, Objective


@OBJECTIVES.register("rigidity")
@dataclass(frozen=True)
class Rigidity(Objective):
    """Mean squared strain of the edges between neighbours, each seen from both ends' rotations.

    Args:
        weight: of the strain.
        rotation: weight of neighbours' difference in rotation, relative to the strain.
        joints: 0 spreads bending evenly; above 0, edges that strain throughout the clip are softened (weights
            1 / (strain + joints), renewed every 20 steps), so that bending gathers in joints and limbs stay rigid.
        k: neighbours of each Gaussian for fields without handles.
    """

    name: ClassVar[str] = "rigidity"
    needs: ClassVar[frozenset[str]] = frozenset({"field"})
    regularises: ClassVar[bool] = True
    weight: Weight = constant(1.0)  # noqa: RUF009
    rotation: float = 0.05
    joints: float = 0.01
    k: int = 6

    def loss(self, step: FitStep) -> Tensor:
        handles = step.moving.handles()
        if handles is not None:
            positions, quats = step.moving.motion_of_handles(step.taus)
            strain, bend = edge_strain(handles.positions, positions, quats, handles.pairs, handles.ends)
            if self.joints > 0 and len(step.taus) > 1 and step.due(20):
                step.memory["edge_weight"] = softened(strain, self.joints)
            edge_weight = step.memory.get("edge_weight", torch.ones_like(strain[0]))
        else:
            # A random part of the Gaussians stands for all of them.
            chosen = torch.randperm(len(step.canonical), generator=step.generator)[:2048].to(step.canonical.device)
            others = near(step, self.k)[chosen]
            pairs = torch.stack([chosen[:, None].expand_as(others), others], -1).flatten(0, 1)
            rotations = quaternion_multiply(
                step.gaussians.quats, step.canonical.quats * step.canonical.quats.new_tensor([1, -1, -1, -1])
            )
            strain, bend = edge_strain(step.canonical.means, step.gaussians.means, rotations, pairs)
            edge_weight = torch.ones_like(strain[0])
        return ((strain + self.rotation * bend) * edge_weight).mean()


def edge_strain(
    rest: Tensor,  # (M, 3)
    positions: Tensor,  # (B, M, 3)
    quats: Tensor,  # (B, M, 4) wxyz
    pairs: Tensor,  # (E, 2)
    ends: fused.Lists | None = None,
) -> tuple[Tensor, Tensor]:
    """Squared relative strain of each edge (B, E), averaged over its ends, and squared difference of their rotations.

    Args:
        ends: as :attr:`Handles.ends` has them; the graphics card's own kernel then does it.
    """
    if ends is not None:
        return fused.edge_strain(rest, positions, quats, pairs, ends)
    i, j = pairs.unbind(1)
    edge = rest[j] - rest[i]
    matrices = quaternion_to_matrix(quats)
    at_i, at_j = picked(matrices, i), picked(matrices, j)
    moved = picked(positions, j) - picked(positions, i)
    from_i = moved - (at_i @ edge[..., None])[..., 0]
    from_j = moved - (at_j @ edge[..., None])[..., 0]
    length = edge.square().sum(-1).clamp_min(1e-10)
    strain = (from_i.square().sum(-1) + from_j.square().sum(-1)) / (2 * length)
    return strain, (at_i - at_j).square().sum((-1, -2)) / 8


def picked(x: Tensor, index: Tensor) -> Tensor:  # (B, N, ...), (E,) int64 -> (B, E, ...)
    """``x[:, index]``, with gradients added in one order; on the CPU, indexing on several threads has none, and is slower."""
    if x.is_cuda:
        return x[:, index]
    flat = x.flatten(2).transpose(1, 2)
    return flat.gather(2, index.expand(*flat.shape[:2], -1)).transpose(1, 2).unflatten(2, x.shape[2:])


@torch.no_grad()
def softened(strain: Tensor, floor: float) -> Tensor:  # (B, E) -> (E,)
    """Edge weights: 1 / (mean strain over the clip + floor), mean 1, within [0.1, 5]."""
    weight = 1 / (strain.mean(0) + floor)
    return (weight / weight.mean()).clamp(0.1, 5.0)


def near(step: FitStep, k: int) -> Tensor:  # (N, k)
    """Nearest neighbours of the canonical Gaussians, kept as long as their number stays."""
    kept = step.memory.get("near")
    if kept is None or len(kept) != len(step.canonical):
        kept = step.memory["near"] = neighbours(step.canonical.means, k)
    return kept


@OBJECTIVES.register("smoothness")
@dataclass(frozen=True)
class Smoothness(Objective):
    """Mean squared acceleration between successive frames, relative to the object's size (its longest side is 1).

    Args:
        weight: of the acceleration.
    """

    name: ClassVar[str] = "smoothness"
    needs: ClassVar[frozenset[str]] = frozenset({"field"})
    regularises: ClassVar[bool] = True
    weight: Weight = constant(20.0)  # noqa: RUF009

    def loss(self, step: FitStep) -> Tensor:
        span = max(step.frame_count - (0 if step.loop else 1), 1)
        if step.tracked is not None:
            before, source, frame = (_positions(step, tau) for tau in step.tracked.flip(0).split(1))
            acceleration = frame - 2 * source.detach() + before.detach()
            return acceleration.square().sum(-1).mean()
        if len(step.taus) == step.frame_count:
            positions = _positions(step, step.taus)
            if step.loop:
                positions = torch.cat([positions[-1:], positions, positions[:1]])
        else:
            # A random run of three frames stands for the clip.
            last = step.frame_count - (0 if step.loop else 2)
            start = int(torch.randint(max(last, 1), (1,), generator=step.generator))
            positions = _positions(step, (start + torch.arange(3)) % step.frame_count / span)
        if len(positions) < 3:
            return positions.new_zeros(())
        acceleration = positions[2:] - 2 * positions[1:-1] + positions[:-2]
        return acceleration.square().sum(-1).mean()


def _positions(step: FitStep, taus: Tensor) -> Tensor:
    """Where handles (or Gaussians, for fields without handles) are at given times, (B, M, 3)."""
    taus = taus.to(step.canonical.device)
    if step.moving.handles() is not None:
        return step.moving.motion_of_handles(taus)[0]
    return step.gaussians.means if taus is step.taus else step.moving(step.canonical, taus).means
