"""The rasteriser through gsplat's CUDA kernels, where a prebuilt extension is installed.

gsplat compiles its kernels on first use where it finds none, which takes minutes to hours and needs a toolkit. So it is
never imported before its compiled extension has been seen on disk.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..cameras import Cameras
from .torch_backend import ALPHA_MIN, project

if TYPE_CHECKING:
    from .rasterize import ScreenStatistics


_TILE = 16


@cache
def extension() -> Path | None:
    """gsplat's compiled extension on disk, found without importing gsplat."""
    try:
        spec = importlib.util.find_spec("gsplat")
    except (ImportError, ValueError):
        return None
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = (path for folder in folders for suffix in ("so", "pyd") for path in Path(folder).glob(f"csrc*.{suffix}"))
    return next(found, None)


def available() -> bool:
    """Whether gsplat can draw without compiling anything."""
    return torch.cuda.is_available() and extension() is not None


def why_not(device: torch.device) -> str:
    """The reason why this backend cannot draw on a device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return "draws on CUDA devices only"
    return "no prebuilt gsplat extension is installed (the plain gsplat package brings none, see the README)"


def draw(
    means: Tensor,  # (B or 1, N, 3)
    quats: Tensor,  # (B or 1, N, 4) wxyz
    log_scales: Tensor,  # (B or 1, N, 3)
    opacity_logits: Tensor,  # (B or 1, N)
    colors: Tensor,  # (B or 1 or V, N, 3)
    cameras: Cameras,  # (V,)
    items: int,  # B
    statistics: ScreenStatistics | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`torch_backend.draw`."""
    from gsplat import isect_offset_encode, isect_tiles, rasterize_to_pixels  # pyright: ignore[reportMissingImports]

    views, count, (height, width) = len(cameras), means.shape[1], (cameras.height, cameras.width)
    if count == 0:
        empty = means.new_zeros(views, height, width)
        if statistics is not None:
            statistics.radii = means.new_zeros(views, 0)
            statistics.visible = statistics.radii.bool()
        return means.new_zeros(views, height, width, 3), empty, empty

    def spread(x: Tensor) -> Tensor:  # (B or 1 or V, N, ...) -> (V, N, ...)
        return x if len(x) == views else x[:, None].expand(-1, views // len(x), *x.shape[1:]).flatten(0, 1)

    # gsplat's own projection loses needles' short side to cancellation, and with it the turn's gradient; in double precision
    # nothing is lost on the way to the conics.
    double = cameras.__class__(cameras.world_to_camera.double(), cameras.K.double(), width, height)
    centers, depths, covariances, determinant, inside = project(
        spread(means).double(), spread(quats).double(), spread(log_scales).double(), double
    )
    a, b, c = covariances.unbind(-1)
    conics = (torch.stack([c, -b, a], -1) / determinant[..., None]).to(means.dtype)
    centers, depths = centers.to(means.dtype), depths.to(means.dtype)
    opacities = spread(opacity_logits).sigmoid()
    with torch.no_grad():
        reach = (2 * (opacities / ALPHA_MIN).log()).clamp_min(0).sqrt()
        extents = (reach[..., None] * torch.stack([a, c], -1).sqrt()).to(means.dtype)
        size = means.new_tensor([width, height])
        inside = inside & (opacities >= ALPHA_MIN) & ((centers + extents > 0) & (centers - extents < size)).all(-1)
        radii = torch.where(inside[..., None], extents.ceil().clamp_max(1e9), 0).int()
        tiles = -(-width // _TILE), -(-height // _TILE)
        _, ids, members = isect_tiles(centers.contiguous(), radii, depths.contiguous(), _TILE, *tiles)
        starts = isect_offset_encode(ids, views, *tiles)
    if statistics is not None:
        statistics.visible, statistics.radii = inside, radii.amax(-1).to(means.dtype)
        if centers.requires_grad:
            centers.register_hook(lambda grad: setattr(statistics, "gradient", (grad * (size / 2)).norm(dim=-1)))
    features = torch.cat([spread(colors).expand(views, -1, -1), depths[..., None]], -1)
    picture, alpha = rasterize_to_pixels(
        centers.contiguous(), conics.contiguous(), features, opacities.expand(views, -1).contiguous(), width, height, _TILE,
        starts, members,
    )  # fmt: skip
    return picture[..., :3], alpha[..., 0], picture[..., 3]
