"""Consistency over views without a network: whether silhouettes can be those of one object."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras
from .base import Footage, metric

#: Pixels of a side whose rays are followed, points on each, and how far the object reaches from the origin, world units.
PIXELS, POINTS, REACH = 64, 96, 0.9


def supported(masks: Tensor, cameras: Cameras) -> Tensor:  # (V, H, W), (V,) -> (V,)
    """Share of each mask's pixels whose ray passes a point that lies in the masks of all other views, to a pixel.

    1 for silhouettes of one object (the visual hull of Laurentini 1994 covers them all); less is what no object can look like.
    An empty mask counts as 1: there is nothing in it that would not fit.
    """
    views, height, width = masks.shape
    inside = torch.nn.functional.max_pool2d(masks[:, None].float(), 3, 1, 1)[:, 0] > 0.5
    step = max(1, -(-max(height, width) // PIXELS))
    shares = []
    for view in range(views):
        rows, columns = (masks[view, ::step, ::step] > 0.5).nonzero(as_tuple=True)
        if not len(rows):
            shares.append(masks.new_ones(()).float())
            continue
        pose, K = cameras.world_to_camera[view], cameras.K[view]
        pixels = torch.stack([columns * step + 0.5, rows * step + 0.5, torch.ones_like(rows)], -1).to(K)
        rays = pixels @ torch.linalg.inv(K).mT  # in the camera's frame, z = 1
        depths = float(pose[:3, 3].norm()) + torch.linspace(-REACH, REACH, POINTS).to(K)
        points = (rays[:, None] * depths[:, None] - pose[:3, 3]) @ pose[:3, :3]  # (P, D, 3), world
        fits = torch.ones(points.shape[:2], dtype=torch.bool)
        for other in range(views):
            if other == view:
                continue
            local = points @ cameras.world_to_camera[other, :3, :3].mT + cameras.world_to_camera[other, :3, 3]
            seen = local @ cameras.K[other].mT
            u, v = (torch.floor(seen[..., i] / seen[..., 2].clamp_min(1e-6)).long() for i in (0, 1))
            there = (u >= 0) & (u < width) & (v >= 0) & (v < height) & (local[..., 2] > 0)
            fits &= there & inside[other, v.clamp(0, height - 1), u.clamp(0, width - 1)]
        shares.append(fits.any(1).float().mean())
    return torch.stack(shares)


@metric(
    "silhouettes",
    text="share of masks' pixels that one object could fill by the rays of all views: consistency over views, no network",
    better="higher",
    needs=["views", "cameras"],
)
def _silhouettes(footage: Footage) -> dict[str, float]:
    names = [name for name in footage.views if name in footage.cameras]
    cameras = Cameras(
        torch.cat([footage.cameras[name].world_to_camera for name in names]),
        torch.cat([footage.cameras[name].K for name in names]),
        footage.views[names[0]].shape[2],
        footage.views[names[0]].shape[1],
    )
    moments = zip(*(footage.views[name][..., 3] for name in names))
    shares = torch.stack([supported(torch.from_numpy(np.stack(masks)), cameras) for masks in moments])
    return dict(zip(names, shares.mean(0).tolist()))
