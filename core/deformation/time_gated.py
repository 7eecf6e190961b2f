"""The deformation MLP of Align Your Gaussians: positions alone move, and a gate in time holds the first moment still.

arXiv 2312.13763. Sizes and squashing are those of Comp4D and tc4d, whose authors take them from this paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..gaussians import Gaussians
from ..mesh import Mesh
from ..optimiser import Group
from .base import DeformationField, StaticScene, apply_deltas, register_field, zero_linear


@register_field
class TimeGatedMLP(DeformationField):
    """``Delta(x, tau) = tau^gate * limit * tanh(d(x, tau) / limit)``, with d from an MLP whose last layer starts at zero.

    Position and time are encoded as sin and cos of ``2^k pi``; the trunk has LayerNorm and ReLU between its linear layers.

    Args:
        centre, extent: of the box, world units, whose sides become -1 and 1 before encoding; extent: half its longest side.
        bands: frequencies k = 0 ... bands - 1: four make 32 inputs.
        depth, width: linear layers of the trunk, and their outputs.
        limit: no Gaussian moves further along an axis, world units.
        gate: exponent of the time gate; its steep start lets motion set in at once.
        lr: learning rate.
    """

    name = "time-gated-mlp"
    anywhere = True
    layered = frozenset({"depth"})

    def __init__(
        self,
        centre: Sequence[float] = (0.0, 0.0, 0.0),
        extent: float = 0.5,
        bands: int = 4,
        depth: int = 5,
        width: int = 128,
        limit: float = 0.5,
        gate: float = 0.35,
        lr: float = 2e-4,
    ) -> None:
        super().__init__()
        x, y, z = map(float, centre)
        self.arguments: dict[str, Any] = dict(
            centre=[x, y, z],
            extent=extent,
            bands=bands,
            depth=depth,
            width=width,
            limit=limit,
            gate=gate,
            lr=lr,
        )
        self.centre, self.extent, self.bands, self.limit, self.gate, self.lr = (x, y, z), extent, bands, limit, gate, lr
        layers: list[nn.Module] = [nn.Linear(4 * 2 * bands, width)]
        for _ in range(depth - 1):
            layers += [_Norm(width), nn.ReLU(), nn.Linear(width, width)]
        self.layers = nn.Sequential(*layers, _Norm(width), nn.ReLU(), zero_linear(width, 3))

    @classmethod
    def build(cls, scene: StaticScene, mesh: Mesh | None = None, **settings: Any) -> Self:
        """As everywhere; its box is that of the Gaussians."""
        return cls.around(scene.gaussians, **settings)

    @classmethod
    def around(cls, gaussians: Gaussians, **settings: Any) -> Self:
        """A field at rest whose box is that of Gaussians ``(N, ...)``."""
        low, high = gaussians.means.detach().amin(0), gaussians.means.detach().amax(0)
        extent = max(float((high - low).amax()) / 2, 1e-6)
        return cls(((low + high) / 2).tolist(), extent, **settings).to(gaussians.device)

    @property
    def changes(self) -> frozenset[str]:
        return frozenset({"means"})

    def check(self, count: int) -> None:
        if not (self.extent > 0 and self.limit > 0 and self.gate >= 0):
            raise ValueError(f"time-gated MLP: extent {self.extent:g}, limit {self.limit:g}, gate {self.gate:g}")

    def forward(self, gaussians: Gaussians, tau: Tensor) -> Gaussians:
        places = (gaussians.means - gaussians.means.new_tensor(self.centre)) / self.extent
        inputs = torch.cat(
            [
                _encoded(places, self.bands).expand(len(tau), -1, -1),
                _encoded(tau[:, None, None], self.bands).expand(-1, len(places), -1),
            ],
            -1,
        )
        moved = self.limit * torch.tanh(self.layers(inputs) / self.limit)
        return apply_deltas(gaussians, means=moved * tau[:, None, None].clamp_min(0) ** self.gate)

    def parameter_groups(self, whole_clip: bool = True, smoothing: float = 1.0) -> list[Group]:
        return [Group(name, parameter, self.lr) for name, parameter in self.named_parameters()]


class _Norm(nn.LayerNorm):
    """LayerNorm whose gradients are the same on any number of threads, which those of its weights on a CPU are not."""

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda:
            return super().forward(input)
        return torch.addcmul(self.bias, F.layer_norm(input, self.normalized_shape, eps=self.eps), self.weight)


def _encoded(x: Tensor, bands: int) -> Tensor:  # (..., D) -> (..., 2 D bands)
    """Sin and cos of 2^k pi x."""
    angles = (x[..., None] * (math.pi * 2.0 ** torch.arange(bands, dtype=x.dtype, device=x.device))).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], -1)
