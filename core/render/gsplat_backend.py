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
from .torch_backend import EPS2D, NEAR

if TYPE_CHECKING:
    from .rasterize import ScreenStatistics


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
    from gsplat import rasterization  # pyright: ignore[reportMissingImports]

    views, (height, width) = len(cameras), (cameras.height, cameras.width)
    if means.shape[1] == 0:
        empty = means.new_zeros(views, height, width)
        if statistics is not None:
            statistics.radii = means.new_zeros(views, 0)
            statistics.visible = statistics.radii.bool()
        return means.new_zeros(views, height, width, 3), empty, empty

    def spread(x: Tensor) -> Tensor:
        return x.expand(items, *x.shape[1:]).contiguous()

    by_view = len(colors) not in (1, items)
    picture, alpha, meta = rasterization(
        spread(means),
        spread(quats),
        spread(log_scales).exp(),
        spread(opacity_logits).sigmoid(),
        colors.unflatten(0, (items, -1)) if by_view else spread(colors),
        cameras.world_to_camera.unflatten(0, (items, -1)),
        cameras.K.unflatten(0, (items, -1)),
        width,
        height,
        near_plane=NEAR,
        eps2d=EPS2D,
        packed=False,
        render_mode="RGB+D",
    )
    if statistics is not None:
        radii = meta["radii"].reshape(views, means.shape[1], -1)
        visible = (radii > 0).all(-1)
        statistics.visible, statistics.radii = visible, torch.where(visible, radii.amax(-1), 0).to(means.dtype)
        half = means.new_tensor([width / 2, height / 2])
        if meta["means2d"].requires_grad:
            meta["means2d"].register_hook(
                lambda grad: setattr(statistics, "gradient", (grad.reshape(views, -1, 2) * half).norm(dim=-1))
            )
    picture = picture.flatten(0, 1)
    return picture[..., :3], alpha.flatten(0, 1)[..., 0], picture[..., 3]
