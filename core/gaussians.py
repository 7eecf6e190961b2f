"""Gaussians: raw parameters, activations, and ways to make them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from . import harmonics
from .cameras import matrix_to_quaternion, quaternion_multiply
from .harmonics import SH_C0


@dataclass(frozen=True)
class Gaussians:
    """Raw parameters of a set of 3D Gaussians, in the world frame (+Y up).

    Every attribute may carry leading batch dimensions (one set a frame), all the same or none.

    Args:
        means: centres.
        quats: rotations wxyz, not necessarily normalised.
        log_scales: natural logarithms of the standard deviations.
        opacity_logits: logits of the opacities.
        sh: spherical-harmonic colour coefficients, K = (degree + 1)^2, the constant one first.
    """

    means: Tensor  # (..., N, 3)
    quats: Tensor  # (..., N, 4)
    log_scales: Tensor  # (..., N, 3)
    opacity_logits: Tensor  # (..., N)
    sh: Tensor  # (..., N, K, 3)

    def __post_init__(self) -> None:
        count = self.means.shape[-2]
        expected = {"means": (count, 3), "quats": (count, 4), "log_scales": (count, 3), "opacity_logits": (count,)}
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found[len(found) - len(shape) :] != shape:
                raise ValueError(f"gaussians: {name} has shape {found}, expected (..., {', '.join(map(str, shape))})")
        if self.sh.shape[-3:-2] != (count,) or self.sh.shape[-1] != 3:
            raise ValueError(f"gaussians: sh has shape {tuple(self.sh.shape)}, expected (..., {count}, K, 3)")
        if math.isqrt(self.sh.shape[-2]) ** 2 != self.sh.shape[-2]:
            raise ValueError(f"gaussians: {self.sh.shape[-2]} SH coefficients, expected a square number (degree + 1)^2")

    def __len__(self) -> int:
        return self.means.shape[-2]

    @property
    def scales(self) -> Tensor:
        """Standard deviations, ``(..., N, 3)``."""
        return self.log_scales.exp()

    @property
    def opacities(self) -> Tensor:
        """``(..., N)`` in [0, 1]."""
        return self.opacity_logits.sigmoid()

    @property
    def colors(self) -> Tensor:
        """View-independent colours from the constant coefficient, ``(..., N, 3)``, not clamped."""
        return self.sh[..., 0, :] * SH_C0 + 0.5

    @property
    def device(self) -> torch.device:
        return self.means.device

    def tensors(self) -> dict[str, Tensor]:
        """The raw parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def map(self, function: Any) -> Gaussians:
        """The Gaussians with ``function`` applied to every tensor."""
        return Gaussians(**{k: function(v) for k, v in self.tensors().items()})

    def to(self, *args: Any, **kwargs: Any) -> Gaussians:
        """Tensors moved as by ``Tensor.to``."""
        return self.map(lambda t: t.to(*args, **kwargs))

    def detach(self) -> Gaussians:
        return self.map(lambda t: t.detach())

    def clone(self) -> Gaussians:
        return self.map(lambda t: t.clone())

    def select(self, index: Tensor) -> Gaussians:
        """A subset of an unbatched set, by mask or indices."""
        return self.map(lambda t: t[index])

    @staticmethod
    def cat(sets: list[Gaussians]) -> Gaussians:
        """Several unbatched sets as one."""
        return Gaussians(**{k: torch.cat([getattr(s, k) for s in sets]) for k in sets[0].tensors()})

    def transformed(self, matrix: Tensor) -> Gaussians:
        """Moved by a similarity ``(4, 4)`` (rotation, uniform scale, translation), view-dependent colours with it.

        Raises:
            ValueError: for a matrix that shears, mirrors or scales unevenly.
        """
        linear = matrix[:3, :3]
        scale = float(torch.linalg.det(linear.double()).clamp_min(0) ** (1 / 3))
        rotation = linear / (scale or 1.0)
        eye = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
        if scale <= 0 or not torch.allclose(rotation @ rotation.T, eye, atol=1e-4):
            raise ValueError("transform: only rotations, even scales and translations keep Gaussians Gaussian")
        return replace(
            self,
            means=self.means @ linear.T + matrix[:3, 3],
            quats=quaternion_multiply(matrix_to_quaternion(rotation).expand_as(self.quats), self.quats),
            log_scales=self.log_scales + math.log(scale),
            sh=harmonics.rotated(self.sh, rotation),
        )


def from_points(
    points: Tensor,  # (N, 3)
    colors: Tensor,  # (N, 3) in [0, 1]
    *,
    scales: Tensor | None = None,  # (N, 3)
    quats: Tensor | None = None,  # (N, 4) wxyz
    opacity: float = 0.1,
) -> Gaussians:
    """Gaussians at points: isotropic, as wide as the root mean squared distance to three neighbours, where no scales are given.

    Source: the initialisation of 3D Gaussian Splatting (methods of the DreamGaussian family).
    """
    if scales is None:
        spacing = neighbour_distances(points, 3).square().mean(-1).sqrt().clamp_min(1e-6)
        scales = spacing[:, None].expand(-1, 3)
    if quats is None:
        quats = torch.zeros(len(points), 4, dtype=points.dtype, device=points.device)
        quats[:, 0] = 1
    logit = math.log(opacity / (1 - opacity))
    return Gaussians(
        means=points.clone(),
        quats=quats.clone(),
        log_scales=scales.log().clone(),
        opacity_logits=torch.full_like(points[:, 0], logit),
        sh=((colors - 0.5) / SH_C0)[:, None, :].clone(),
    )


def random_gaussians(count: int, generator: torch.Generator, radius: float = 0.5) -> Gaussians:
    """Grey Gaussians uniform in a ball (cube-root radius law), opacity 0.1. Source: DreamGaussian's initialisation."""
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    points = direction * radius * torch.rand(count, 1, generator=generator) ** (1 / 3)
    return from_points(points, torch.full((count, 3), 0.5))


def neighbours(points: Tensor, k: int) -> Tensor:  # (N, 3) -> (N, k) int64
    """Indices of the k nearest other points, nearest first."""
    from scipy.spatial import KDTree

    array = points.detach().cpu().double().numpy()
    k = min(k, len(array) - 1)
    tree: Any = KDTree(array)
    _, index = tree.query(array, k + 1, workers=torch.get_num_threads())
    index = torch.from_numpy(index.reshape(len(array), k + 1))
    own = torch.arange(len(array))[:, None]
    # Coincident points may list themselves anywhere: drop self where it occurs, else the farthest.
    is_self = index == own
    is_self[:, -1] |= ~is_self.any(-1)
    return index[~is_self].reshape(len(array), k).to(points.device)


def neighbour_distances(points: Tensor, k: int) -> Tensor:  # (N, 3) -> (N, k)
    """Distances to the k nearest other points, nearest first."""
    return (points[neighbours(points, k)] - points[:, None]).norm(dim=-1)


def half_turn(gaussians: Gaussians) -> Gaussians:
    """Gaussians turned by 180 degrees about X: our frame to the splat files' and back.

    Under (y, z) -> (-y, -z) each real spherical harmonic of degree l and order m keeps itself up to the sign
    (-1)^(l + m), negated for the sine orders m < 0.
    """
    flip = torch.tensor([1.0, -1.0, -1.0], dtype=gaussians.means.dtype, device=gaussians.device)
    turn = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=gaussians.quats.dtype, device=gaussians.device)
    degree = math.isqrt(gaussians.sh.shape[-2]) - 1
    signs = [(-1) ** (order + abs(m)) * (-1 if m < 0 else 1) for order in range(degree + 1) for m in range(-order, order + 1)]
    return Gaussians(
        means=gaussians.means * flip,
        quats=quaternion_multiply(turn.expand_as(gaussians.quats), gaussians.quats),
        log_scales=gaussians.log_scales,
        opacity_logits=gaussians.opacity_logits,
        sh=gaussians.sh * torch.tensor(signs, dtype=gaussians.sh.dtype, device=gaussians.device)[:, None],
    )
