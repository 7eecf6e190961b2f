"""Surfaces must hide what lies behind them: the share of the far side that shows through, by a marker colour."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from ..gaussians import SH_C0, Gaussians
from ..render import rasterize

#: Nearer to the surface than this, in units of the object's longest side, nothing counts as behind it.
MARGIN = 0.03


def hidden_behind(
    means: Tensor,  # (N, 3) or (C, N, 3)
    cameras: Cameras,  # (C,)
    depth: Tensor,  # (C, H, W) along the camera's axis, 0 where nothing is
    margin: float = MARGIN,
) -> Tensor:  # (C, N) bool
    """Which points lie behind a surface's depth map, more than ``margin`` beyond the farthest surface next to their pixel."""
    cameras = cameras.to(means)
    view, K = cameras.world_to_camera, cameras.K
    points = means.expand(len(view), *means.shape[-2:]) @ view[:, :3, :3].mT + view[:, None, :3, 3]
    z = points[..., 2].clamp_min(1e-6)
    column = (K[:, 0, 0, None] * points[..., 0] / z + K[:, 0, 2, None]).long()
    row = (K[:, 1, 1, None] * points[..., 1] / z + K[:, 1, 2, None]).long()
    height, width = depth.shape[1:]
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    farthest = F.max_pool2d(depth.to(means)[:, None], 3, 1, 1)[:, 0].flatten(1)
    surface = farthest.gather(1, (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)))
    return inside & (surface > 0) & (z > surface + margin)


def shown_through(
    gaussians: Gaussians,  # (N, ...) or (C, N, ...)
    cameras: Cameras,  # (C,)
    depth: Tensor,  # (C, H, W)
    *,
    margin: float = MARGIN,
    backend: str = "auto",
) -> Tensor:  # (C, H, W)
    """How much of each pixel's light comes from Gaussians behind the surface: they are drawn white, all others black.

    Differentiable in the Gaussians.
    """
    with torch.no_grad():
        behind = hidden_behind(gaussians.means, cameras, depth, margin)
    count = len(behind)
    every = gaussians if gaussians.means.ndim == 3 else gaussians.map(lambda t: t.expand(count, *t.shape))
    marker = (behind.to(every.means) - 0.5) / SH_C0
    marked = replace(every, sh=marker[..., None, None].expand(*marker.shape, 1, 3))
    return rasterize(marked, cameras.to(every.means).reshape(count, 1), backend=backend).color[:, 0, ..., 0]
