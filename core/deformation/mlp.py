"""The deformation MLP of Deformable 3D Gaussians: encoded position and time in, deltas out."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..gaussians import Gaussians
from ..mesh import Mesh
from ..optimiser import Group
from .base import DeformationField, StaticScene, apply_deltas, register_field, zero_linear


@register_field
class DeformationMLP(DeformationField):
    """Depth 8, width 256, skip at layer 4, sin/cos encodings, zero-initialised heads. Source: Deformable-3DGS.

    Args:
        depth, width, skip: of the trunk; the encoded input is concatenated again after layer ``skip``.
        position_bands, time_bands: frequencies 2^0 ... 2^(bands - 1) of the encodings.
        opacity: whether opacity moves too (PLA4D).
        lr: learning rate.
    """

    name = "mlp"
    anywhere = True
    layered = frozenset({"depth"})

    def __init__(
        self,
        depth: int = 8,
        width: int = 256,
        skip: int = 4,
        position_bands: int = 10,
        time_bands: int = 6,
        opacity: bool = True,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = dict(
            depth=depth, width=width, skip=skip, position_bands=position_bands, time_bands=time_bands, opacity=opacity, lr=lr
        )
        self.skip, self.position_bands, self.time_bands, self.lr = skip, position_bands, time_bands, lr
        inputs = 3 * (1 + 2 * position_bands) + 1 + 2 * time_bands
        sizes = [inputs] + [width + (inputs if i == skip else 0) for i in range(depth - 1)]
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in sizes)
        outputs = {"means": 3, "log_scales": 3, "quats": 4} | ({"opacity_logits": 1} if opacity else {})
        self.heads = nn.ModuleDict({name: zero_linear(width, size) for name, size in outputs.items()})

    @classmethod
    def build(cls, scene: StaticScene, mesh: Mesh | None = None, **settings: Any) -> Self:
        """As everywhere; without other settings with opacity at rest."""
        return super().build(scene, mesh, **{"opacity": False, **settings})

    @property
    def changes(self) -> frozenset[str]:
        return frozenset(self.heads)

    def forward(self, gaussians: Gaussians, tau: Tensor) -> Gaussians:
        points = _encode(gaussians.means, self.position_bands)
        times = _encode(tau[:, None], self.time_bands)
        inputs = torch.cat([points.expand(len(tau), -1, -1), times[:, None].expand(-1, points.shape[0], -1)], -1)
        hidden = inputs
        for index, layer in enumerate(self.layers):
            hidden = F.relu(layer(hidden))
            if index == self.skip:
                hidden = torch.cat([inputs, hidden], -1)
        deltas = {name: head(hidden) for name, head in self.heads.items()}
        if "opacity_logits" in deltas:
            deltas["opacity_logits"] = deltas["opacity_logits"][..., 0]
        return apply_deltas(gaussians, **deltas)

    def parameter_groups(self, whole_clip: bool = True, smoothing: float = 1.0) -> list[Group]:
        return [Group(name, parameter, self.lr) for name, parameter in self.named_parameters()]


def _encode(x: Tensor, bands: int) -> Tensor:  # (..., D) -> (..., D (1 + 2 bands))
    """x with sin and cos of 2^k pi x."""
    frequencies = math.pi * 2.0 ** torch.arange(bands, dtype=x.dtype, device=x.device)
    angles = (x[..., None] * frequencies).flatten(-2)
    return torch.cat([x, angles.sin(), angles.cos()], -1)
