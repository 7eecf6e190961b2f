"""How far a surface stretches where each Gaussian lies on it, and the Gaussian that covers as much of it as before.

A Gaussian that is moved rigidly keeps its size, so that a surface that grows longer falls apart into dots. Here its
covariance follows the deformation gradient F, in the plane of its two longer axes: ``Sigma' = R U Sigma U R^T`` with the
blended rotation R and the right stretch U of ``F = R U``. F is the least-squares gradient of the nodes that the Gaussian is
bound to; in directions that they do not span, as across a surface, it is rigid. What the field's own scales have grown already
is not added again. Source: the polar decomposition; for Gaussians, Sigma' = F Sigma F^T of PhysGaussian, arXiv 2311.12198.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import quaternion_to_matrix
from ..gaussians import Gaussians

#: The largest and the smallest factor on a standard deviation: what tears is not smeared over the gap.
LARGEST, SMALLEST = 2.0, 0.75
#: A metric this close to that at rest is that of a rigid motion, and exactly no stretch.
RIGID = 2e-3
#: Share of the nodes' mean square distance below which they do not span a direction.
SPANNED = 0.005
#: Added to each weight of the binding: next to a node the others weigh nothing, but say how the surface stretches.
FLOOR = 0.1


@dataclass(frozen=True)
class Planes:
    """The plane of each Gaussian's longer axes, and what the nodes' positions make of it: ``F a_j = sum_k c_kj p'_k``.

    Args:
        index: nodes that the Gaussian is bound to, (N, K) int64.
        share: c_kj, of node k in the image of axis j, (N, K, 2); those of an axis add up to 0.
        metric: of the images at rest, its entries 00, 01 and 11, (3, 1, N): the identity but for
            directions that are not spanned.
        variances: along the axes, (2, N).
        across_is: whether the axis across is x, y or z, (3, N), 1 or 0; the others follow it in cyclic order.
    """

    index: Tensor
    share: Tensor
    metric: Tensor
    variances: Tensor
    across_is: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        gaussians: Gaussians,  # (N, ...)
        index: Tensor,  # (N, K)
        weight: Tensor,  # (N, K)
        nodes: Tensor,  # (M, 3)
    ) -> Planes:
        """Of canonical Gaussians bound to nodes at rest."""
        weight = weight[..., None] + FLOOR
        weight = weight / weight.sum(1, keepdim=True)
        places = nodes[index]
        offset = places - (weight * places).sum(1, keepdim=True)  # (N, K, 3)
        spread = (weight * offset).mT @ offset
        size = spread.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        inverse = torch.linalg.inv(spread + (SPANNED * size + 1e-12) * torch.eye(3).to(spread))
        across = gaussians.log_scales.argmin(-1)
        pair = torch.stack([(across + 1) % 3, (across + 2) % 3], -1)
        axes = quaternion_to_matrix(F.normalize(gaussians.quats, dim=-1)).gather(-1, pair[:, None].expand(-1, 3, -1))
        variances = (2 * gaussians.log_scales.gather(-1, pair)).exp().T.contiguous()
        planes = cls(index, weight * offset @ inverse @ axes, offset, variances, F.one_hot(across, 3).T.to(spread))
        return replace(planes, metric=planes.metric_of(nodes[None]))

    def metric_of(self, nodes: Tensor) -> Tensor:  # (B, M, 3) -> (3, B, N)
        """Of the axes' images, where the nodes are moved: its entries 00, 01 and 11."""
        places = nodes.permute(2, 0, 1).contiguous()  # coordinates first: sums over the last of three are slow
        first = places[:, :, self.index[:, 0]]  # as the origin, which loses fewer digits
        a, b = torch.zeros_like(first), torch.zeros_like(first)
        for k in range(1, self.index.shape[1]):
            edge = places[:, :, self.index[:, k]] - first
            a.addcmul_(self.share[:, k, 0], edge)
            b.addcmul_(self.share[:, k, 1], edge)
        return torch.stack([_dot(a, a), _dot(a, b), _dot(b, b)])


def _dot(a: Tensor, b: Tensor) -> Tensor:  # (3, ...), (3, ...)
    return torch.addcmul(torch.addcmul(a[0] * b[0], a[1], b[1]), a[2], b[2])


@torch.no_grad()
def stretch(planes: Planes, nodes: Tensor) -> tuple[Tensor, Tensor]:  # (B, M, 3) -> (B, N), (2, B, N)
    """How each Gaussian's axes turn in their plane, at most 45 degrees, in radians; and the logarithms of the factors on them.

    Args:
        nodes: where they are moved.
    """
    change = planes.metric_of(nodes) - planes.metric
    p, q, r = change.unbind()
    rigid = torch.maximum(torch.maximum(p.abs(), q.abs()), r.abs()) < RIGID
    p, r = p + 1, r + 1
    # The root of U^2 = (p q; q r), by Cayley and Hamilton.
    det = (p * r - q * q).clamp_min(SMALLEST**4).sqrt()
    scale = (p + r + 2 * det).clamp_min(SMALLEST**2).rsqrt()
    a, b, d = (p + det) * scale, q * scale, (r + det) * scale
    s, t = planes.variances
    # U diag(s, t) U and its axes: those nearer to the old ones keep their places.
    x, y, z = a * a * s + b * b * t, b * (a * s + d * t), b * b * s + d * d * t
    sign = torch.where(x < z, -1.0, 1.0)
    angle = sign * torch.atan2(2 * y, (x - z).abs()) / 2
    half, reach = (x + z) / 2, sign * ((x - z).square() / 4 + y * y).sqrt()
    factors = torch.stack([(half + reach) / s, (half - reach) / t])
    grown = factors.clamp(SMALLEST**2, LARGEST**2).log() / 2
    return angle.masked_fill(rigid, 0.0), grown.masked_fill(rigid, 0.0)


def stretched(
    quats: Tensor,  # (N, 4) or (B, N, 4) wxyz
    own: Tensor,  # (B, N, 3), what the field adds to the log scales
    planes: Planes,
    nodes: Tensor,  # (B, M, 3)
) -> tuple[Tensor, Tensor]:  # (B, N, 4), (B, N, 3)
    """Rotations turned in their planes, and what is added to the log scales, so that covariances follow the surface.

    The stretch has no gradient of its own.
    """
    angle, grown = stretch(planes, nodes.detach())
    own = own.detach()
    cos, sin = (angle / 2).cos(), (angle / 2).sin()
    w, x, y, z = quats.unbind(-1)
    # The product with (cos, sin e) where e is one of the axes.
    a, b, c = planes.across_is  # (N,) each
    turned = torch.stack(
        [
            w * cos - (x * a + y * b + z * c) * sin, x * cos + (w * a + y * c - z * b) * sin,
            y * cos + (w * b + z * a - x * c) * sin, z * cos + (w * c + x * b - y * a) * sin,
        ],
        -1,
    )  # fmt: skip
    # The axis after the one across comes first.
    wanted = torch.stack([c * grown[0] + b * grown[1], a * grown[0] + c * grown[1], b * grown[0] + a * grown[1]], -1)
    more = torch.where(wanted > 0, (wanted - own.clamp_min(0)).clamp_min(0), (wanted - own.clamp_max(0)).clamp_max(0))
    return turned, more
