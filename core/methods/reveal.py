"""Colours of what the first frame hides, from the later frames that show it.

An object without colours of its own is given the first frame's, continued on the sides that it does not see. Once the motion is
known, the clip shows some of those sides: there the guess is replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras, FrontCamera, quaternion_to_matrix
from ..gaussians import SH_C0, Gaussians
from ..render import rasterize
from ..scene.scene import Scene4D
from ..video import DrivingVideo

log = logging.getLogger(__name__)

#: Cosine between the surface's normal and the direction to the camera, above which a frame shows a Gaussian's colour.
FACING = 0.35
#: ... and above which the first frame has shown it, so that its colour stays.
SHOWN = 0.1
#: How far behind the picture's mean depth a Gaussian still counts as on the surface, in lengths of the object.
DEPTH = 0.02
#: Frames that have to show a Gaussian, and how far the colours may spread (standard deviation), to be believed.
FRAMES, SPREAD = 2, 0.15


@torch.no_grad()
def revealed(scene: Scene4D, video: DrivingVideo, fronts: Sequence[FrontCamera], backend: str = "auto") -> Scene4D:
    """The scene whose Gaussians that the first frame hides have the colours in which later frames show them.

    A colour is the mean over the frames that show the Gaussian, weighted by how squarely. What the first frame shows, and what
    no frame or only one does, stays as it is.

    Args:
        video: the driving video, on the scene's device.
        fronts: its camera, or one a frame.
    """
    first, size = scene.gaussians, video.resolution
    low, high = first.means.aminmax(dim=0)
    margin = DEPTH * float((high - low).amax())
    # A pixel at an outline is half of what lies behind it.
    inside = 1 - F.max_pool2d(1 - video.masks[:, None], 3, 1, 1)[:, 0]
    total, square, weight = (
        first.means.new_zeros(len(first), 3),
        first.means.new_zeros(len(first), 3),
        first.means.new_zeros(len(first)),
    )
    count = torch.zeros(len(first), dtype=torch.long, device=first.device)
    hidden = torch.ones(len(first), dtype=torch.bool, device=first.device)
    for t in range(scene.frames):
        camera = fronts[t if len(fronts) > 1 else 0].cropped(video.crop, size).to(first.means)
        moved = scene.at(float(scene.taus[t]))
        facing, pixel, on_top = _looked_at(moved, camera, margin, backend)
        if t == 0:
            hidden = ~(on_top & (facing > SHOWN))
            continue
        grid = (pixel / size * 2 - 1)[None, None]
        both = torch.cat([video.frames[t], inside[t, ..., None]], -1).movedim(-1, 0)[None]
        sampled = F.grid_sample(both, grid, align_corners=False)[0, :, 0].T  # (N, 4)
        seen = hidden & on_top & (facing > FACING) & (sampled[:, 3] > 0.99)
        share = facing * seen
        total, square = total + share[:, None] * sampled[:, :3], square + share[:, None] * sampled[:, :3].square()
        weight, count = weight + share, count + seen
    mean = total / weight.clamp_min(1e-6)[:, None]
    spread = (square / weight.clamp_min(1e-6)[:, None] - mean.square()).clamp_min(0).amax(-1).sqrt()
    known = (count >= FRAMES) & (spread < SPREAD)
    sh = first.sh.clone()
    sh[known, 0] = (mean[known] - 0.5) / SH_C0
    log.info("colours of %d Gaussians that the first frame hides are taken from later frames", int(known.sum()))
    return replace(scene, gaussians=replace(first, sh=sh))


def _looked_at(moved: Gaussians, camera: Cameras, margin: float, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """How squarely each Gaussian faces the camera on the side that it sees, its pixel (N, 2), and whether nothing hides it."""
    drawn = rasterize(moved, camera, backend=backend)
    alpha, depth = (x.reshape(x.shape[-2:]) for x in (drawn.alpha, drawn.expected_depth))
    pose, K = camera.world_to_camera[0], camera.K[0]
    points = moved.means @ pose[:3, :3].T + pose[:3, 3]
    axes = pose[:3, :3] @ quaternion_to_matrix(F.normalize(moved.quats, dim=-1))
    thin = moved.log_scales.argmin(-1)
    normal = axes.gather(-1, thin[:, None, None].expand(-1, 3, 1))[..., 0]
    facing = (F.normalize(points, dim=-1) * normal).sum(-1).abs()
    z = points[:, 2].clamp_min(1e-6)
    pixel = torch.stack([points[:, i] / z * K[i, i] + K[i, 2] for i in (0, 1)], -1)
    height, width = depth.shape
    column, row = pixel.floor().long().unbind(-1)
    within = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    at = row.clamp(0, height - 1), column.clamp(0, width - 1)
    farthest = F.max_pool2d(depth[None, None], 3, 1, 1)[0, 0]  # a surface that slants is as deep as its next pixel
    return facing, pixel, within & (alpha[at] > 0.5) & (z < farthest[at] + margin)
