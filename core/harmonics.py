"""Real spherical harmonics of degree 0 to 3, as splat files and gsplat order and sign them."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

#: Value of the constant spherical harmonic: colour = SH_C0 * dc + 0.5.
SH_C0 = 0.28209479177387814


def basis(directions: Tensor, count: int) -> Tensor:  # (..., 3) unit -> (..., K)
    """The first ``count`` (1, 4, 9 or 16) harmonics at unit vectors from the camera to the Gaussian."""
    x, y, z = directions.unbind(-1)
    values = [torch.full_like(x, SH_C0)]
    if count > 1:
        values += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if count > 4:
        xx, yy, zz = x * x, y * y, z * z
        values += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
        ]
        if count > 9:
            values += [
                -0.5900435899266435 * y * (3 * xx - yy),
                2.890611442640554 * x * y * z,
                -0.4570457994644658 * y * (4 * zz - xx - yy),
                0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
                -0.4570457994644658 * x * (4 * zz - xx - yy),
                1.445305721320277 * z * (xx - yy),
                -0.5900435899266435 * x * (xx - 3 * yy),
            ]
    return torch.stack(values, -1)


def rotated(sh: Tensor, rotation: Tensor) -> Tensor:  # (..., N, K, 3), (..., 3, 3) -> (..., N, K, 3)
    """Coefficients of the same colours on Gaussians that turned: c'(d) = c(R^T d).

    Each degree's harmonics span a space that rotations map to itself; the map is solved for at fixed directions, in float64.

    Raises:
        ValueError: for a degree above 3.
    """
    count = sh.shape[-2]
    if count == 1:
        return sh
    if count > 16:
        raise ValueError(f"{count} SH coefficients: view-dependent colour above degree 3 cannot be turned, keep the first 16")
    directions, inverses = _probes(count)
    turned = basis(directions @ rotation.detach().cpu().double(), count)  # rows R^T d
    maps = torch.zeros(*rotation.shape[:-2], count, count, dtype=torch.float64)
    for degree, inverse in enumerate(inverses):
        own = slice(degree**2, (degree + 1) ** 2)
        maps[..., own, own] = inverse @ turned[..., own]
    return maps.to(sh)[..., None, :, :] @ sh


@lru_cache(maxsize=4)
def _probes(count: int) -> tuple[Tensor, list[Tensor]]:
    """Directions (D, 3) spread over the sphere, and of each degree's harmonics there the pseudo-inverse (2 l + 1, D)."""
    i = torch.arange(64, dtype=torch.float64)
    z, around = 1 - 2 * (i + 0.5) / 64, i * math.pi * (3 - 5**0.5)
    level = (1 - z**2).sqrt()
    directions = torch.stack([level * around.cos(), level * around.sin(), z], -1)
    values = basis(directions, count)
    return directions, [torch.linalg.pinv(values[:, d**2 : (d + 1) ** 2]) for d in range(math.isqrt(count))]
