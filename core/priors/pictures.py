"""Condition pictures as image-conditioned priors want them: on a plain background, square, at their size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..files import InputError
from ..transfer import constant

# OpenAI's CLIP, for checkpoints that do not repeat it.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def composited(images: Tensor, background: Sequence[float]) -> Tensor:  # (B, H, W, 3 or 4) straight alpha -> (B, H, W, 3)
    """Pictures on a background RGB; those without alpha as they are.

    Raises:
        InputError: for another shape.
    """
    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise InputError(f"condition picture: expected (B, H, W, 3) or (B, H, W, 4), not {tuple(images.shape)}")
    if images.shape[-1] == 3:
        return images
    alpha = images[..., 3:]
    return images[..., :3] * alpha + constant(tuple(background), images.device, images.dtype) * (1 - alpha)


def squared(images: Tensor, size: int, background: Sequence[float]) -> Tensor:  # (B, H, W, 3 or 4) -> (B, size, size, 3)
    """Pictures on a background, padded evenly to a square (the centre stays the centre), antialiased to ``size`` pixels."""
    images = composited(images, background)
    height, width = images.shape[1:3]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    if height != width:
        square = constant(tuple(background), images.device, images.dtype).expand(len(images), side, side, 3).clone()
        square[:, top : top + height, left : left + width] = images
        images = square
    return resized(images, size, "bilinear")


def resized(images: Tensor, size: int, mode: str) -> Tensor:  # (B, H, W, C) -> (B, size, size, C) in [0, 1]
    """Square pictures at another size, antialiased; "bilinear" or "bicubic"."""
    if images.shape[1:3] == (size, size):
        return images
    flat = F.interpolate(rearrange(images, "b h w c -> b c h w"), (size, size), mode=mode, antialias=True)
    return rearrange(flat, "b c h w -> b h w c").clamp(0, 1)


def clip_pixels(images: Tensor, size: int, extractor: dict[str, Any]) -> Tensor:  # (B, S, S, 3) -> (B, 3, size, size)
    """Square pictures in [0, 1] as a CLIP vision tower takes them: bicubic to its size, mean and deviation removed.

    Args:
        extractor: the checkpoint's preprocessor configuration; ``image_mean`` and ``image_std`` are read.
    """
    numbers = (tuple(extractor.get(k, d)) for k, d in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)))
    mean, std = (constant(n, images.device, images.dtype) for n in numbers)
    return rearrange((resized(images, size, "bicubic") - mean) / std, "b h w c -> b c h w")


def recentred(image: Tensor, ratio: float = 0.8, size: int | None = None) -> Tensor:  # (H, W, 4) straight -> (S, S, 4)
    """A free picture as the Zero123 family was trained: square, the object centred, its longest side ``ratio`` of the side.

    Not for pictures of known cameras, whose framing is part of the geometry. ``size``: side, default the picture's longest.

    Raises:
        InputError: for a picture without alpha or without anything in it.
    """
    if image.ndim != 3 or image.shape[-1] != 4:
        raise InputError(f"picture: recentring needs RGBA (H, W, 4), not {tuple(image.shape)}; remove its background first")
    rows, columns = ((image[..., 3] > 0.02).any(dim).nonzero()[:, 0] for dim in (1, 0))
    if not len(rows):
        raise InputError("picture: its alpha is empty, there is no object to centre")
    window = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    size = size or max(image.shape[:2])
    height, width = window.shape[:2]
    scale = ratio * size / max(height, width)
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    premultiplied = torch.cat([window[..., :3] * window[..., 3:], window[..., 3:]], -1)
    flat = rearrange(premultiplied, "h w c -> 1 c h w")
    flat = F.interpolate(flat, (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)
    result = image.new_zeros(size, size, 4)
    top, left = (size - height) // 2, (size - width) // 2
    result[top : top + height, left : left + width] = rearrange(flat, "c h w -> h w c")
    result[..., :3] /= result[..., 3:].clamp_min(1e-6)
    return result
