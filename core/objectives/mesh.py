"""Geometry alignment: from random sides the Gaussians must look like the mesh (PLA4D Eq. 9, GS-Mesh contrastive learning).

Where the object was given as Gaussians, these stand in for the mesh.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..cameras import Cameras, FrontCamera, quaternion_to_matrix, sample_orbit
from ..gaussians import SH_C0
from ..render import rasterize
from ..render.mesh import MeshRender
from ..render.nvrtc import mesh_backend
from ..scene.object3d import Object3D, SplatObject, render_object
from ..schedules import Weight, linear
from .base import OBJECTIVES, FitStep, Objective
from .front import image_loss
from .through import shown_through

#: Side of the window around the unit object that random cameras frame.
FRAMING = 1.3


@OBJECTIVES.register("mesh")
@dataclass(frozen=True)
class MeshMatch(Objective):
    """L_GA of PLA4D: lambda (MSE + mask) + gamma LPIPS between Gaussian and mesh renders at random cameras.

    lambda does not scale the perceptual term.

    Args:
        weight: lambda as a function of rho.
        views: cameras a step (PLA4D: 6).
        elevation: range of the random elevations, degrees.
        fovy_jitter: half-width of the random change of the field of view, degrees (PLA4D's df).
        mask, perceptual, network, levels: as in :class:`~.front.ReferenceViewLoss`.
        depth: squared error of depth (the object's longest side is 1) relative to the colour term; for meshes whose colours
            say little about their shape, as those coloured from one frame.
        normals: the same for surface normals, drawn from the Gaussians' thin axes.
        through: share of the light that comes from behind the surface (:func:`~.through.shown_through`), relative to the colour
            term. Without it a fit thins Gaussians out until the far side shines through the gaps.
    """

    name: ClassVar[str] = "mesh"
    needs: ClassVar[frozenset[str]] = frozenset({"mesh"})
    weight: Weight = linear(0.98, 0.02, 1e4)  # noqa: RUF009
    views: int = 6
    elevation: tuple[float, float] = (-60.0, 60.0)
    fovy_jitter: float = 2.0
    mask: float = 0.1
    perceptual: float = 1e3
    network: str = "auto"
    levels: int = 1
    depth: float = 0.0
    normals: float = 0.0
    through: float = 0.0

    def untextured(self) -> Self:
        return replace(self, depth=1.0, normals=0.3)

    def perceptual_network(self) -> str | None:
        return self.network if self.perceptual > 0 else None

    def draw(self, step: FitStep) -> dict[str, Tensor]:
        cameras = framing_cameras(step.fronts[0], self.views, step.resolution, step.generator, self.elevation, self.fovy_jitter)
        drawn = {"pose": cameras.world_to_camera, "K": cameras.K}
        if len(step.meshes) > 1:
            drawn["moment"] = torch.randint(len(step.frames), (self.views,), generator=step.generator)
        return drawn

    def weighted(self, step: FitStep, weight: float | Tensor) -> Tensor:
        device, drawn = step.canonical.device, step.given(self)
        seen = Cameras(drawn["pose"], drawn["K"], step.resolution, step.resolution)
        if len(step.meshes) == 1:
            # One mesh stands for one moment, the first frame.
            shown = step.canonical
            if step.field is not None:
                shown = step.field(shown, torch.zeros(1, device=device)).map(lambda t: t[0])
            truth = [_drawn(step.meshes[0], seen, step)]
        else:
            pick = drawn["moment"].long()
            shown = step.gaussians.map(lambda t: t[pick])
            truth = [_drawn(step.meshes[int(step.frames[p])], seen[i : i + 1], step) for i, p in enumerate(pick.tolist())]
            seen = seen.reshape(self.views, 1)
        color, alpha, depth, normal = (
            torch.cat([getattr(view, part) for view in truth]).to(device).unflatten(0, seen.batch)
            for part in ("color", "alpha", "depth", "normal")
        )
        render = step.render(shown, seen)
        loss = image_loss(
            render.color, render.alpha, color, alpha, weight=weight, mask_weight=self.mask,
            levels=self.levels, perceptual=self.perceptual, network=self.network,
        )  # fmt: skip
        if self.depth > 0:
            # Depth before or behind the object's centre: the outline's alpha would drown it otherwise.
            centre = step.fronts[0].distance
            difference = (render.depth - centre * render.alpha) - alpha * (depth - centre)
            loss = loss + weight * self.depth * difference.square().mean()
        if self.through > 0:
            behind = shown_through(shown, seen.reshape(self.views), depth.reshape(self.views, *depth.shape[-2:]),
                                   backend=step.backend)  # fmt: skip
            loss = loss + weight * self.through * behind.mean()
        if self.normals > 0 and not isinstance(step.meshes[0], SplatObject):
            # The thin axis of a Gaussian sampled on the surface starts as its outward normal and stays continuous.
            facing = quaternion_to_matrix(shown.quats)[..., 2] / 2
            as_color = replace(shown, sh=(facing / SH_C0)[..., None, :])
            drawn = rasterize(as_color, seen, backend=step.backend).color
            loss = loss + weight * self.normals * (drawn - alpha[..., None] * (normal + 1) / 2).square().mean()
        return loss


def _drawn(item: Object3D, cameras: Cameras, step: FitStep) -> MeshRender:
    """The target: Gaussians exactly as the fit draws its own; a mesh by the card's own kernels, or else on the CPU."""
    device = step.canonical.device
    if not isinstance(item, SplatObject) and not mesh_backend.available(device):
        return render_object(item, cameras.to("cpu"), step.background.cpu())
    key = "object", id(item)
    if key not in step.memo:
        step.memo[key] = item, item.to(device)  # the item too, so that its id stays its own
    kept = step.memo[key][1]
    if isinstance(item, SplatObject):
        return render_object(kept, cameras, step.background, supersample=1, backend=step.backend)
    return render_object(kept, cameras, step.background)


def framing_cameras(
    front: FrontCamera,
    count: int,
    resolution: int,
    generator: torch.Generator,
    elevation: tuple[float, float] = (-30.0, 30.0),
    fovy_jitter: float = 2.0,
    azimuth: tuple[float, float] = (-180.0, 180.0),
) -> Cameras:
    """Random cameras at the front camera's distance that frame the whole unit object, (count,)."""
    fovy = 2 * math.degrees(math.atan(0.5 * FRAMING / front.distance))
    return sample_orbit(
        count, generator, azimuth=azimuth, elevation=elevation, distance=front.distance, fovy=fovy, fovy_jitter=fovy_jitter,
        width=resolution, height=resolution,
    )  # fmt: skip
