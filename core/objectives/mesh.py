"""Geometry alignment: from random sides the Gaussians must look like the mesh (PLA4D Eq. 9, GS-Mesh contrastive learning)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..cameras import Cameras, FrontCamera, sample_orbit
from ..render.mesh import render_mesh
from .base import FitStep, Weight, linear
from .front import image_loss


@dataclass(frozen=True)
class MeshMatch:
    """L_GA of PLA4D: lambda (MSE + mask) + gamma LPIPS between Gaussian and mesh renders at random cameras.

    Args:
        weight: lambda as a function of rho.
        views: cameras a step (PLA4D: 6).
        elevation: range of the random elevations, degrees.
        fovy_jitter: half-width of the random change of the field of view, degrees (PLA4D's df).
        mask, perceptual, network, levels: as in :class:`FrontMatch`.
    """

    name: ClassVar[str] = "mesh"
    weight: Weight = linear(0.98, 0.02, 1e4)  # noqa: RUF009
    views: int = 6
    elevation: tuple[float, float] = (-60.0, 60.0)
    fovy_jitter: float = 2.0
    mask: float = 0.1
    perceptual: float = 1e3
    network: str = "auto"
    levels: int = 1

    def __call__(self, step: FitStep) -> Tensor:
        if not step.meshes:
            raise ValueError("mesh objective: the fit has no mesh; connect one or unplug this objective")
        cameras = framing_cameras(step.fronts[0], self.views, step.resolution, step.generator, self.elevation, self.fovy_jitter)
        if len(step.meshes) == 1:
            # One mesh stands for one moment, the first frame.
            still = step.canonical
            if step.field is not None:
                still = step.field(still, torch.zeros(1, device=still.device)).map(lambda t: t[0])
            render = step.render(still, cameras.to(still.device))
            truth = render_mesh(step.meshes[0], cameras, step.background.cpu())
            color, alpha = truth.color, truth.alpha
        else:
            pick = torch.randint(len(step.frames), (self.views,), generator=step.generator)
            moved = step.gaussians.map(lambda t: t[pick])
            render = step.render(moved, cameras.reshape(self.views, 1).to(step.canonical.device))
            parts = [
                render_mesh(step.meshes[int(step.frames[p])], cameras[i : i + 1], step.background.cpu())
                for i, p in enumerate(pick)
            ]
            color, alpha = torch.stack([p.color for p in parts]), torch.stack([p.alpha for p in parts])
        device = step.canonical.device
        return image_loss(
            render.color, render.alpha, color.to(device), alpha.to(device), weight=self.weight(step.rho),
            mask_weight=self.mask, levels=self.levels, perceptual=self.perceptual, network=self.network,
        )  # fmt: skip


def framing_cameras(
    front: FrontCamera,
    count: int,
    resolution: int,
    generator: torch.Generator,
    elevation: tuple[float, float] = (-30.0, 30.0),
    fovy_jitter: float = 2.0,
) -> Cameras:
    """Random cameras at the front camera's distance that frame the whole unit object, (count,)."""
    fovy = 2 * float(torch.rad2deg(torch.atan(torch.tensor(0.65 / front.distance))))
    return sample_orbit(
        count, generator, elevation=elevation, distance=front.distance, fovy=fovy, fovy_jitter=fovy_jitter,
        width=resolution, height=resolution,
    )  # fmt: skip
