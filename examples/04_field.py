"""A plug-in deformation field: the whole object goes one path, straight from frame to frame."""

import torch
from torch import Tensor, nn

import anchor4d as a4d
from anchor4d.core.deformation.base import apply_deltas
from anchor4d.core.optimiser import Group


@a4d.register_field
class Path(a4d.DeformationField):
    """One place for each of ``keys`` evenly spaced times, world units, relative to the object at rest."""

    name = "path"
    anywhere = True  # it moves any point, so that meshes and other points can be carried along

    def __init__(self, keys: int, lr: float = 1e-3) -> None:
        super().__init__()
        self.arguments = {"keys": keys, "lr": lr}
        self.places = nn.Parameter(torch.zeros(keys, 3))

    @classmethod
    def build(cls, scene, mesh=None, **settings) -> "Path":
        return cls(keys=max(scene.frames, 2), **settings).to(scene.gaussians.device)

    def forward(self, gaussians: a4d.Gaussians, tau: Tensor) -> a4d.Gaussians:  # (N, ...), (B,) -> (B, N, ...)
        at = tau * (len(self.places) - 1)
        left = at.floor().long().clamp(0, len(self.places) - 2)
        moved = torch.lerp(self.places[left], self.places[left + 1], (at - left)[:, None])
        return apply_deltas(gaussians, means=moved[:, None].expand(-1, len(gaussians), -1))

    def parameter_groups(self, whole_clip: bool = True, smoothing: float = 1.0) -> list[Group]:
        return [Group("places", self.places, self.arguments["lr"])]
