"""HexPlane deformation: six feature planes over pairs of (x, y, z, t), multiplied, and small residual heads.

Sources: K-Planes / HexPlane as used by 4D Gaussian Splatting; sizes and zero initialisation of DreamGaussian4D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..gaussians import Gaussians
from ..mesh import Mesh
from ..optimiser import Group
from . import fused
from .base import DeformationField, StaticScene, apply_deltas, register_field, zero_linear


class _Head(nn.Module):
    """``Linear(r + Linear(r))`` of r = ReLU(h), both layers zero at the start: no motion, yet gradients flow through r."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.residual, self.out = zero_linear(width, width), zero_linear(width, outputs)

    def forward(self, hidden: Tensor) -> Tensor:
        r = F.relu(hidden)
        return self.out(r + self.residual(r))


@register_field
class HexPlane(DeformationField):
    """DreamGaussian4D's field; PLA4D's with ``opacity=True``.

    Args:
        resolution: cells of the spatial axes at scale 1.
        time_resolution: cells of the time axis.
        channels: features a plane.
        width: hidden width of the heads.
        bounds: half-size of the box that the planes cover; points beyond it see its border.
        multiscale: factors on ``resolution``; the features of the scales are concatenated.
        opacity: whether opacity moves too.
        grid_lr, mlp_lr: learning rates of the planes and of the layers.
        lr_final: factor to which both fall log-linearly over a fit, besides the schedule's (STAG4D: 0.1).
        at_rest: the heads start at zero, so that nothing moves; else as STAG4D's released code starts them, at random.
    """

    name = "hexplane"
    anywhere = True
    offers = frozenset({"planes"})

    def __init__(
        self,
        resolution: int = 32,
        time_resolution: int = 12,
        channels: int = 32,
        width: int = 64,
        bounds: float = 1.6,
        multiscale: Sequence[int] = (1,),
        opacity: bool = True,
        grid_lr: float = 6.4e-3,
        mlp_lr: float = 6.4e-4,
        lr_final: float = 1.0,
        at_rest: bool = True,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = dict(
            resolution=resolution, time_resolution=time_resolution, channels=channels, width=width, bounds=bounds,
            multiscale=list(multiscale), opacity=opacity, grid_lr=grid_lr, mlp_lr=mlp_lr, lr_final=lr_final,
            at_rest=at_rest,
        )  # fmt: skip
        self.bounds, self.grid_lr, self.mlp_lr, self.lr_final = bounds, grid_lr, mlp_lr, lr_final
        self.planes = nn.ParameterList()
        for scale in multiscale:
            sizes = [resolution * scale] * 3 + [time_resolution]
            for a, b in combinations(range(4), 2):
                plane = torch.ones(1, channels, sizes[b], sizes[a])
                # Temporal planes start at one, so that the first features do not depend on time.
                self.planes.append(nn.Parameter(plane if b == 3 else plane.uniform_(0.1, 0.5)))
        self.trunk = nn.Linear(channels * len(multiscale), width)
        nn.init.xavier_uniform_(self.trunk.weight)
        self.heads = nn.ModuleDict({"means": _Head(width, 3), "log_scales": _Head(width, 3), "quats": _Head(width, 4)})
        if opacity:
            self.heads["opacity_logits"] = _Head(width, 1)
        if not at_rest:
            for layer in self.heads.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)

    @classmethod
    def build(cls, scene: StaticScene, mesh: Mesh | None = None, **settings: Any) -> Self:
        """As everywhere; without other settings with a cell of time for about each frame, and opacity at rest."""
        cells = max(2, math.ceil(0.85 * scene.frames))
        return super().build(scene, mesh, **{"time_resolution": cells, "opacity": False, **settings})

    def feature_planes(self) -> list[tuple[Tensor, bool]]:
        axes = [b for _, b in combinations(range(4), 2)]
        return [(plane, axes[index % 6] == 3) for index, plane in enumerate(self.planes)]

    @property
    def changes(self) -> frozenset[str]:
        return frozenset(self.heads)

    def check(self, count: int) -> None:
        if not self.bounds > 0:
            raise ValueError(f"hexplane: bounds {self.bounds:g}, a box needs more than 0")

    def features(self, points: Tensor, tau: Tensor) -> Tensor:  # (N, 3), (B,) -> (B, N, C)
        """Plane features at canonical points and times in [0, 1]."""
        space = points / self.bounds
        if fused.available(points.device, fused.PLANES) and points.dtype == torch.float32:
            return fused.plane_features(list(self.planes), space, 2 * tau - 1)
        time = (2 * tau - 1)[:, None].expand(-1, len(points))
        scales: list[Tensor] = []
        for first in range(0, len(self.planes), 6):
            spatial, temporal = None, None
            for plane, (a, b) in zip(self.planes[first : first + 6], combinations(range(4), 2)):
                if b < 3:
                    value = sampled(plane, space[:, a], space[:, b])  # (N, C)
                    spatial = value if spatial is None else spatial * value
                else:
                    value = sampled(plane, space[:, a].expand_as(time), time)  # (B, N, C)
                    temporal = value if temporal is None else temporal * value
            assert spatial is not None and temporal is not None
            scales.append(spatial * temporal)
        return torch.cat(scales, -1)

    def forward(self, gaussians: Gaussians, tau: Tensor) -> Gaussians:
        hidden = self.trunk(self.features(gaussians.means, tau))
        deltas = {name: head(hidden) for name, head in self.heads.items()}
        if "opacity_logits" in deltas:
            deltas["opacity_logits"] = deltas["opacity_logits"][..., 0]
        return apply_deltas(gaussians, **deltas)

    def parameter_groups(self, whole_clip: bool = True, smoothing: float = 1.0) -> list[Group]:
        final = self.lr_final
        planes = [Group(f"planes.{i}", plane, self.grid_lr, final=final) for i, plane in enumerate(self.planes)]
        layers = [(n, p) for n, p in self.named_parameters() if not n.startswith("planes.")]
        return planes + [Group(name, parameter, self.mlp_lr, final=final) for name, parameter in layers]


def sampled(plane: Tensor, x: Tensor, y: Tensor) -> Tensor:  # (1, C, h, w), (...), (...) -> (..., C)
    """Bilinear features of a plane at places in [-1, 1], the corners' centres at the ends; held outside.

    On a graphics card by gathers whose gradients are added in one order, which those of ``grid_sample`` there are not.
    """
    if not plane.is_cuda:
        grid = torch.stack([x, y], -1).reshape(1, -1, x.shape[-1], 2)
        value = F.grid_sample(plane, grid, align_corners=True, padding_mode="border")[0].movedim(0, -1)  # (B, N, C)
        return value if x.dim() > 1 else value[0]
    return gathered(plane, x, y)


def gathered(plane: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """:func:`sampled` by gathers."""
    height, width = plane.shape[2:]
    table = plane[0].flatten(1).T.contiguous()  # (h w, C)
    sides = []
    for place, size in ((x, width), (y, height)):
        at = ((place + 1) / 2 * (size - 1)).clamp(0, size - 1)
        low = at.detach().floor().clamp_max(max(size - 2, 0))
        sides.append((low.long(), (at - low)[..., None], min(1, size - 1)))
    (column, right, across), (row, down, along) = sides
    first = row * width + column

    def texel(step: int) -> Tensor:
        return F.embedding(first + step, table)

    upper = torch.lerp(texel(0), texel(across), right)
    lower = torch.lerp(texel(along * width), texel(along * width + across), right)
    return torch.lerp(upper, lower, down)
