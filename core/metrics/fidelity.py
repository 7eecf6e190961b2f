"""How close pictures are to the true ones, pixel by pixel: psnr, ssim, ms-ssim, iou, motion, frozen, gain."""

from __future__ import annotations

import numpy as np
import torch

from ..files import InputError
from . import frozen, iou, motion, psnr, ssim
from .base import Footage, metric


def _psnr_of(images: np.ndarray, truth: np.ndarray) -> float:  # (T, H, W, 4), twice
    later = slice(1, None) if len(truth) > 1 else slice(None)
    return float(psnr(images[later, ..., :3], truth[later, ..., :3]).mean())


@metric("psnr", text="likeness of pixels, dB, at most 40; first frame aside", better="higher", needs=["truth"], ideal=40.0)
def _psnr(footage: Footage) -> dict[str, float]:
    return {name: _psnr_of(images, truth) for name, images, truth in footage.pairs()}


@metric("ssim", text="likeness of structure (Wang et al. 2004), 7x7 windows", better="higher", needs=["truth"], ideal=1.0)
def _ssim(footage: Footage) -> dict[str, float]:
    return {name: float(ssim(images[..., :3], truth[..., :3]).mean()) for name, images, truth in footage.pairs()}


@metric(
    "ms-ssim",
    text="ssim over five scales (Wang et al. 2003), by torchmetrics; pictures of 161 pixels and more",
    better="higher",
    needs=["truth"],
    packages=("torchmetrics",),
    ideal=1.0,
)
def _ms_ssim(footage: Footage) -> dict[str, float]:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    found = {}
    for name, images, truth in footage.pairs():
        if min(truth.shape[1:3]) <= 160:
            raise InputError(
                f"view {name}: {truth.shape[2]}x{truth.shape[1]} pixels are too few for five scales, more than 160"
            )
        a, b = (torch.from_numpy(x[..., :3]).float().movedim(-1, 1) for x in (images, truth))
        found[name] = float(multiscale_structural_similarity_index_measure(a, b, data_range=1.0))
    return found


@metric("iou", text="overlap of the masks", better="higher", needs=["truth"], ideal=1.0)
def _iou(footage: Footage) -> dict[str, float]:
    return {name: float(iou(images[..., 3], truth[..., 3]).mean()) for name, images, truth in footage.pairs()}


@metric(
    "motion",
    text="share of the true change since frame 0 that is explained: standing still has 0",
    better="higher",
    needs=["truth"],
    frames=2,
    ideal=1.0,
)
def _motion(footage: Footage) -> dict[str, float]:
    return {name: motion(images[..., :3], truth[..., :3]) for name, images, truth in footage.pairs()}


@metric(
    "frozen",
    text="psnr of the truth's first frame held still, dB: of the reference alone, what a result has to beat",
    better="lower",
    needs=["truth"],
    frames=2,
)
def _frozen(footage: Footage) -> dict[str, float]:
    return {name: frozen(truth[..., :3]) for name, _, truth in footage.pairs()}


@metric("gain", text="psnr above that of the truth's first frame held still, dB", better="higher", needs=["truth"], frames=2)
def _gain(footage: Footage) -> dict[str, float]:
    return {name: _psnr_of(images, truth) - frozen(truth[..., :3]) for name, images, truth in footage.pairs()}
