"""Perceptual distance: LPIPS where its weights are on this machine, else 1 - SSIM."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files import InputError
from ..priors.convert import read_pickle
from ..priors.models import find, missing
from .window_ssim import ssim

log = logging.getLogger(__name__)

#: Convolutions of VGG16 ("M": a pool of 2), and AlexNet's as (channels, kernel, stride, padding) ("M": a pool of 3 by 2).
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
ALEXNET = ((64, 11, 4, 2), "M", (192, 5, 1, 2), "M", (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
#: Which layers LPIPS compares, counted as torchvision does, and their channels.
TAPS = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}
CHANNELS = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}
NETWORKS = tuple(TAPS)
#: Mean and deviation of the pictures that LPIPS was trained on, in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def features(network: str) -> nn.Sequential:
    """The convolutional part of torchvision's VGG16 or AlexNet, layer by layer under its numbers there."""
    layers: list[nn.Module] = []
    channels = 3
    for layer in VGG16 if network == "vgg" else ALEXNET:
        if layer == "M":
            layers.append(nn.MaxPool2d(2) if network == "vgg" else nn.MaxPool2d(3, 2))
            continue
        out, kernel, stride, padding = layer if isinstance(layer, tuple) else (layer, 3, 1, 1)
        layers += [nn.Conv2d(channels, int(out), kernel, stride, padding), nn.ReLU()]
        channels = int(out)
    return nn.Sequential(*layers)


class LPIPS(nn.Module):
    """Learned perceptual distance of pictures (Zhang et al. 2018, version 0.1; PLA4D Eq. 7).

    Features of five layers, unit length along channels, squared differences weighted by channel, mean over places, summed.

    Args:
        network: "vgg" or "alex".
        backbone: torchvision's state dict of the network; random weights where None.
        linear: the published weights by channel, ``lin0.model.1.weight`` (1, C, 1, 1) and so on; all 1 where None.

    Raises:
        InputError: for weights of another network.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, network: str = "vgg", backbone: dict[str, Tensor] | None = None, linear: dict[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.features, self.taps = features(network), TAPS[network]
        self.weights = nn.ParameterList(torch.ones(1, channels, 1, 1) for channels in CHANNELS[network])
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        if backbone is not None:
            wanted = {f"features.{key}": value for key, value in self.features.state_dict().items()}
            _fill(wanted, backbone, network)
        if linear is not None:
            _fill({f"lin{i}.model.1.weight": value for i, value in enumerate(self.weights)}, linear, network)
        self.requires_grad_(False)
        self.eval()

    def layers(self, images: Tensor) -> list[Tensor]:  # (B, H, W, 3) in [0, 1] -> 5 of (B, C, h, w), unit length along C
        x = (2 * images.movedim(-1, 1) - 1 - self.shift) / self.scale
        found = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                found.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10))
        return found

    def each(self, a: Tensor, b: Tensor) -> Tensor:  # (B, H, W, 3) in [0, 1], twice -> (B,)
        """The distance of each pair."""
        pairs = zip(self.layers(a), self.layers(b), self.weights)
        return torch.stack([((x - y).square() * weight).sum(1).mean((1, 2)) for x, y, weight in pairs]).sum(0)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:  # (B, H, W, 3) in [0, 1], twice -> scalar
        return self.each(a, b).mean()


def _fill(wanted: dict[str, Tensor], given: dict[str, Tensor], network: str) -> None:
    for key, value in wanted.items():
        if key not in given or given[key].shape != value.shape:
            found = tuple(given[key].shape) if key in given else "missing"
            raise InputError(f"LPIPS {network}: {key} is {found}, expected {tuple(value.shape)}; get lpips-{network} again")
        value.data.copy_(given[key])


class SSIMDistance(nn.Module):
    """1 - SSIM over 7x7 windows, averaged over two scales: what stands in for LPIPS without its weights."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:  # (B, H, W, 3) in [0, 1], twice -> scalar
        return 1 - (ssim(a, b) + ssim(_halved(a), _halved(b))) / 2


def _halved(pictures: Tensor) -> Tensor:  # (B, H, W, 3) -> (B, H // 2, W // 2, 3)
    return F.avg_pool2d(pictures.movedim(-1, 1), 2).movedim(1, -1)


def load_lpips(network: str) -> LPIPS:
    """LPIPS with its published weights.

    Raises:
        InputError: where they are not on this machine, or not what they should be.
    """
    parts = []
    for name in (f"lpips-{network}", f"lpips-{network}-linear"):
        path = find(name)
        if path is None:
            raise missing(name)
        parts.append(read_pickle(path))
    with torch.inference_mode(False):
        return LPIPS(network, *parts)


@lru_cache(maxsize=8)
def perceptual_distance(network: str = "auto", device: str = "cpu") -> tuple[nn.Module, str]:
    """The distance to use and its name: LPIPS with VGG or Alex weights if the machine has them, else SSIM, said once.

    Args:
        network: "auto" (VGG on a GPU, Alex on a CPU, the other if only that is there), "vgg", "alex" or "ssim".
        device: where its network is, of several cards with the number: "cuda:1".
    """
    order = {"auto": ["vgg", "alex"] if device != "cpu" else ["alex", "vgg"], "ssim": []}.get(network, [network])
    reason = "SSIM was asked for"
    for name in order:
        try:
            return load_lpips(name).to(device), f"lpips-{name}"
        except InputError as error:
            reason = str(error)
    log.info("perceptual term: SSIM instead of LPIPS (%s)", reason)
    return SSIMDistance(), "ssim"
