"""The 3D that a method starts from: a mesh, or Gaussians that another program made of an object."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras, quaternion_to_matrix
from ..files import InputError
from ..gaussians import Gaussians, half_turn
from ..identity import canonical
from ..mesh import Mesh, centring, turn_about_y
from ..progress import pulse
from ..render import rasterize
from ..render.mesh import MeshRender, render_mesh

log = logging.getLogger(__name__)

#: Fainter Gaussians are never drawn (the rasteriser's threshold), and fainter ones than the second bound nothing.
FAINT, VISIBLE = 1 / 255, 0.1
#: Share of the object's substance at either end of an axis that may be floaters, and how far beyond the rest, in parts of its
#: longest side, a Gaussian may lie and still belong to the object.
TAIL, REACH = 0.01, 0.25
#: Samples drawn at a time.
_CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class SplatObject:
    """An object as Gaussians, in the world frame (+Y up), with what :class:`Mesh` offers to alignment and fits.

    Args:
        gaussians: unbatched, of spherical-harmonic degree 0.
        solid: which of them bound the object; the others are faint, or floaters.
        name: for messages.
    """

    gaussians: Gaussians  # (N)
    solid: Tensor  # (N,) bool
    name: str = "splats"

    has_color = True

    @staticmethod
    def of(gaussians: Gaussians, name: str = "splats") -> SplatObject:
        """Gaussians as an object: what is never seen is left out, view-dependent colours are reduced to their constant part.

        Raises:
            InputError: where nothing can be seen, or it has no extent.
        """
        seen = gaussians.opacities >= FAINT
        if not bool(seen.any()):
            raise InputError(f"{name}: all its Gaussians are transparent, choose another splat file")
        if gaussians.sh.shape[-2] > 1:
            log.info("%s: colours that depend on the view are reduced to their constant part", name)
        gaussians = replace(gaussians.detach().select(seen), sh=gaussians.sh.detach()[seen, :1])
        return SplatObject(gaussians, _solid(gaussians), name)

    @staticmethod
    def from_arrays(
        positions: Tensor,  # (N, 3)
        scales: Tensor,  # (N, 3) standard deviations
        rotations: Tensor,  # (N, 4) wxyz
        opacities: Tensor,  # (N) or (N, 1) in [0, 1]
        sh: Tensor,  # (N, K, 3)
        name: str = "splats",
    ) -> SplatObject:
        """One item of the host's SPLAT value: activated attributes in the splat files' frame, +Y down.

        Raises:
            InputError: for values that are not numbers, or nothing to see.
        """
        arrays = [array.detach().cpu().float() for array in (positions, scales, rotations, opacities.reshape(-1), sh)]
        if not all(bool(array.isfinite().all()) for array in arrays):
            raise InputError(f"{name}: holds values that are not numbers (NaN or infinite), make it again")
        positions, scales, rotations, opacities, sh = arrays
        logits = opacities.clamp(1e-6, 1 - 1e-6).logit()
        return SplatObject.of(half_turn(Gaussians(positions, rotations, scales.clamp_min(1e-9).log(), logits, sh)), name)

    @property
    def vertices(self) -> Tensor:  # (N, 3)
        """Centres."""
        return self.gaussians.means

    @cached_property
    def bounding(self) -> Tensor:  # (M, 3)
        """Points around the object, one standard deviation out from the centres of the Gaussians that bound it.

        For each of some hundred directions, the farthest point of all the ellipsoids: their bounding boxes are the object's.
        """
        means, scales = self.gaussians.means[self.solid], self.gaussians.scales[self.solid].clamp_max(1e3)
        axes = quaternion_to_matrix(self.gaussians.quats[self.solid]) * scales[:, None]  # (N, 3, 3)
        points = []
        for part in _directions().to(means).split(32):
            along = torch.einsum("nij,di->dnj", axes, part)
            out = along.norm(dim=-1).clamp_min(1e-12)  # (D, N) standard deviation in each direction
            best = (part @ means.T + out).argmax(-1)
            support = torch.einsum("dij,dj->di", axes[best], along.gather(1, best[:, None, None].expand(-1, 1, 3))[:, 0])
            points.append(means[best] + support / out.gather(1, best[:, None]))
        return torch.cat(points)

    def to(self, device: torch.device | str) -> SplatObject:
        """The object with its tensors on ``device``."""
        return replace(self, gaussians=self.gaussians.to(device), solid=self.solid.to(device))

    def transformed(self, matrix: Tensor) -> SplatObject:  # (4, 4)
        """Moved by a rotation, even scale and translation."""
        return replace(self, gaussians=self.gaussians.transformed(matrix.to(self.gaussians.means)))

    def normalized(self) -> tuple[SplatObject, Tensor]:
        """The object centred on the origin with longest side 1, floaters aside, and the matrix ``(4, 4)`` that did it.

        Raises:
            InputError: for Gaussians in one place.
        """
        matrix = centring(self.bounding, self.name)
        return self.transformed(matrix), matrix.to(self.vertices)

    def turned(self, degrees_about_y: float) -> SplatObject:
        """Turned about +Y, counter-clockwise seen from above: at +90 what faced +Z faces +X."""
        return self.transformed(turn_about_y(degrees_about_y))

    def thinned(self, count: int, seed: int = 0) -> Gaussians:
        """At most ``count`` of its Gaussians to start a fit from.

        Where there are more, the fainter are the likelier to be left out, and the rest grow until they cover as much.
        Flat and fully opaque ones, stored as infinities, become finite, since a fit could not change them otherwise.
        """
        gaussians = self.gaussians
        if len(gaussians) > count:
            generator = torch.Generator().manual_seed(seed)
            weight = gaussians.opacities.cpu().double()
            # Gumbel's trick: the largest keys are a draw without replacement by weight.
            key = weight.log() - torch.rand(len(weight), generator=generator, dtype=torch.float64).log().neg().log()
            kept = gaussians.select(key.topk(count).indices.sort().values.to(gaussians.device))
            growth = float(substance(gaussians).sum() / substance(kept).sum()) ** 0.5
            gaussians = replace(kept, log_scales=kept.log_scales + math.log(growth))
        return replace(
            gaussians,
            log_scales=gaussians.log_scales.clamp(math.log(1e-4), 0.0),
            opacity_logits=gaussians.opacity_logits.clamp(-6.0, 6.0),
        )


Object3D = Mesh | SplatObject


def bounding_points(item: Object3D) -> Tensor:  # (N, 3)
    """Points whose bounding box is the object's."""
    return item.bounding if isinstance(item, SplatObject) else item.vertices[item.faces.unique()]


@torch.no_grad()
def render_object(
    item: Object3D,
    cameras: Cameras,  # (C)
    background: Tensor | None = None,  # (3,)
    *,
    supersample: int = 2,
    backend: str = "auto",
) -> MeshRender:
    """:func:`render_mesh` for any object, on the object's device.

    Gaussians are drawn by the rasteriser ``backend``, ``supersample`` times as large, and averaged; their normals are left 0.
    """
    if isinstance(item, Mesh):
        return render_mesh(item, cameras, background, supersample=supersample)
    height, width, gaussians = cameras.height, cameras.width, item.gaussians
    cameras = cameras.to(gaussians.device, torch.float32).resized(width * supersample, height * supersample)
    together = max(1, _CHUNK // (cameras.height * cameras.width))
    parts = []
    for start in range(0, len(cameras), together):
        if gaussians.device.type != "cuda":
            pulse()
        drawn = rasterize(gaussians, cameras[start : start + together], backend=backend)
        channels = torch.cat([drawn.color.movedim(-1, 1), drawn.alpha[:, None], drawn.depth[:, None]], 1)
        parts.append(F.avg_pool2d(channels, supersample))
    color, alpha, depth = torch.cat(parts).movedim(1, -1).split([3, 1, 1], -1)
    if background is not None:
        color = color + (1 - alpha) * background.to(color)
    depth = torch.where(alpha > 0, depth / alpha.clamp_min(1e-8), 0.0)
    return MeshRender(color.contiguous(), alpha[..., 0].contiguous(), depth[..., 0], torch.zeros_like(color))


@torch.no_grad()
def picture_of(item: Object3D, camera: Cameras) -> Tensor:  # (1,) -> (H, W, 4)
    """A picture with straight alpha. Without colours it is shaded by a light at the camera, or it would be a mere outline."""
    view = render_object(item, camera)
    alpha = view.alpha[0, ..., None]
    color = view.color[0] / alpha.clamp_min(1e-6)
    if not item.has_color:
        color = color * (0.25 + 0.6 * (view.normal[0] @ -camera.world_to_camera[0, 2, :3])[..., None].clamp(0, 1))
    return torch.cat([color.clamp(0, 1), alpha], -1)


@lru_cache(maxsize=1)
def _directions() -> Tensor:  # (D, 3)
    """Unit vectors: every 3 degrees around the horizon, up, down, and a spiral over the sphere."""
    turn = torch.arange(120, dtype=torch.float64) * (2 * math.pi / 120)
    horizon = torch.stack([turn.sin(), torch.zeros_like(turn), turn.cos()], -1)
    i = torch.arange(256, dtype=torch.float64)
    y, around = 1 - 2 * (i + 0.5) / 256, i * math.pi * (3 - 5**0.5)
    level = (1 - y**2).sqrt()
    spiral = torch.stack([level * around.cos(), y, level * around.sin()], -1)
    poles = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]], dtype=torch.float64)
    return torch.cat([horizon, poles, spiral])


def substance(gaussians: Gaussians) -> Tensor:  # (N,)
    """How much each Gaussian covers: opacity times the area across its two longer axes."""
    longest = gaussians.scales.sort(-1).values
    return (gaussians.opacities * longest[:, 1] * longest[:, 2]).clamp(1e-20, 1e20)


def _solid(gaussians: Gaussians) -> Tensor:  # (N,) bool
    """Which Gaussians bound the object: visible ones in, or a little beyond, the box that holds nearly all of the substance."""
    weight = substance(gaussians).cpu().double()
    weight = weight.clamp_max(float(weight.kthvalue(max(1, round(0.99 * len(weight)))).values))  # one huge one decides nothing
    points = gaussians.means.cpu().double()
    low, high = torch.empty(3, dtype=torch.float64), torch.empty(3, dtype=torch.float64)
    for axis in range(3):
        place, order = points[:, axis].sort()
        share = weight[order].cumsum(0)
        low[axis], high[axis] = place[
            torch.searchsorted(share, share[-1] * torch.tensor([TAIL, 1 - TAIL])).clamp_max(len(place) - 1)
        ]
    reach = REACH * float((high - low).max())
    inside = ((points >= low - reach) & (points <= high + reach)).all(-1)
    visible = inside & (gaussians.opacities.cpu() >= VISIBLE)
    return (visible if bool(visible.any()) else inside).to(gaussians.device)


@canonical.register
def _(value: SplatObject) -> Any:
    return canonical(value.gaussians.tensors())
