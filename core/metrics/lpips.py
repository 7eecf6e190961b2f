"""LPIPS of frames with the true ones, with both published networks."""

from __future__ import annotations

import numpy as np
import torch

from .base import Footage, metric
from .perceptual import load_lpips


def _measured(footage: Footage, network: str) -> dict[str, float]:
    distance = footage.network(f"lpips-{network}", lambda name, device: load_lpips(network).to(device))
    found = {}
    for name, images, truth in footage.pairs():
        pairs = (torch.from_numpy(np.stack(pair)[..., :3]).float().to(footage.device) for pair in zip(images, truth))
        with torch.no_grad():
            found[name] = float(np.mean([float(distance(pair[:1], pair[1:])) for pair in pairs]))
    return found


@metric(
    "lpips",
    text="learned perceptual distance (Zhang et al. 2018) by VGG16, what papers report",
    better="lower",
    needs=["truth"],
    models=("lpips-vgg",),
    ideal=0.0,
)
def _vgg(footage: Footage) -> dict[str, float]:
    return _measured(footage, "vgg")


@metric(
    "lpips-alex",
    text="the same by AlexNet, ten times as fast",
    better="lower",
    needs=["truth"],
    models=("lpips-alex",),
    ideal=0.0,
)
def _alex(footage: Footage) -> dict[str, float]:
    return _measured(footage, "alex")
