"""Perceptual distance: LPIPS where its backbone is on this machine, else 1 - SSIM."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files import InputError
from ..packages import problems

log = logging.getLogger(__name__)

#: File names that torchvision gives its ImageNet backbones.
BACKBONES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}


class LPIPS(nn.Module):
    """LPIPS with the published linear weights over a local backbone (PLA4D Eq. 7; Zhang et al. 2018).

    Args:
        network: "vgg" or "alex".
        backbone: state dict of the torchvision backbone, or None for random weights (tests).

    Raises:
        InputError: where the ``lpips`` package cannot be imported.
    """

    def __init__(self, network: str = "vgg", backbone: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        lpips = _import_lpips()
        # pnet_rand keeps the package from fetching the backbone; its own linear weights come with it.
        with contextlib.redirect_stdout(io.StringIO()):
            self.net = lpips.LPIPS(net=network, pretrained=True, pnet_rand=True, verbose=False, eval_mode=True)
        if backbone is not None:
            self._load(backbone)
        self.requires_grad_(False)

    def _load(self, backbone: dict[str, Tensor]) -> None:
        # The package splits torchvision's "features" into slices but keeps each layer's number.
        wanted = self.net.net.state_dict()
        found = {key: backbone[f"features.{key.split('.', 1)[1]}"] for key in wanted}
        self.net.net.load_state_dict(found)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:  # (B, H, W, 3) in [0, 1], twice -> scalar
        return self.net(a.movedim(-1, 1), b.movedim(-1, 1), normalize=True).mean()


class SSIMDistance(nn.Module):
    """1 - SSIM over 7x7 windows, averaged over two scales: what stands in for LPIPS without a backbone."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:  # (B, H, W, 3) in [0, 1], twice -> scalar
        x, y = a.movedim(-1, 1), b.movedim(-1, 1)
        full = _ssim(x, y)
        return 1 - (full + _ssim(F.avg_pool2d(x, 2), F.avg_pool2d(y, 2))) / 2


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    def pool(t: Tensor) -> Tensor:
        return F.avg_pool2d(t, 7, 1)

    mx, my = pool(x), pool(y)
    vx, vy, cov = pool(x * x) - mx * mx, pool(y * y) - my * my, pool(x * y) - mx * my
    return ((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4))).mean()


def backbone_folders() -> list[Path]:
    """Where backbones are looked for: in ANCHOR4D_LPIPS, then in torch's own download folder."""
    own = os.environ.get("ANCHOR4D_LPIPS")
    return [*([Path(own)] if own else []), Path(torch.hub.get_dir()) / "checkpoints"]


def backbone_path(network: str) -> Path | None:
    """Where the backbone lies; None where it is in none of the folders."""
    files = [folder / BACKBONES[network] for folder in backbone_folders()]
    return next((file for file in files if file.is_file()), None)


@lru_cache(maxsize=4)
def perceptual_distance(network: str = "auto", device: str = "cpu") -> tuple[nn.Module, str]:
    """The distance to use and its name: LPIPS with VGG or Alex weights if the machine has them, else SSIM, said once.

    Args:
        network: "auto" (VGG on a GPU, Alex on a CPU, the other if only that is there), "vgg", "alex" or "ssim".
    """
    order = {"auto": ["vgg", "alex"] if device != "cpu" else ["alex", "vgg"], "ssim": []}.get(network, [network])
    reason = "SSIM was asked for"
    for name in order:
        path = backbone_path(name)
        if path is None:
            reason = f"no {BACKBONES[name]} in ANCHOR4D_LPIPS or {Path(torch.hub.get_dir()) / 'checkpoints'}"
            continue
        try:
            with torch.inference_mode(False):
                return LPIPS(name, torch.load(path, map_location="cpu", weights_only=True)).to(device), f"lpips-{name}"
        except InputError as error:
            reason = str(error)
    log.info("perceptual term: SSIM instead of LPIPS (%s)", reason)
    return SSIMDistance(), "ssim"


def _import_lpips() -> Any:
    if lacking := problems("lpips"):
        raise InputError(f"LPIPS: {lacking}")
    import lpips

    return lpips
