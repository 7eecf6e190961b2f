"""The driving video: read from a folder, a film or tensors, cut out, cropped once for the whole clip."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .cameras import Crop
from .identity import canonical
from .optimiser import one_thread

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DrivingVideo:
    """The object of a driving video, cut out and seen through one square crop.

    Args:
        frames: straight colour in [0, 1], continued smoothly beyond the object.
        masks: alpha in [0, 1].
        fps: frames a second.
        crop: the window, in pixels of the original picture; it may reach beyond the picture, where the mask is 0.
        source: where the video came from.
        masked_by: where the masks came from: "alpha", "mask", "key" or "rembg".
        warnings: what looks wrong with the clip, with what to do, for reports.
        identity: of the files it was read from and how; "" where its content is its identity.
    """

    frames: Tensor  # (T, S, S, 3)
    masks: Tensor  # (T, S, S)
    fps: float
    crop: Crop
    source: str = ""
    masked_by: str = "alpha"
    warnings: tuple[str, ...] = ()
    identity: str = ""

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def resolution(self) -> int:
        """Side S of the frames, pixels."""
        return self.frames.shape[1]

    @property
    def picture_width(self) -> int:
        """Width of the original picture, pixels."""
        return self.crop.width

    @property
    def picture_height(self) -> int:
        """Height of the original picture, pixels."""
        return self.crop.height

    @property
    def premultiplied(self) -> Tensor:
        """Colours times masks, ``(T, S, S, 3)``."""
        return self.frames * self.masks[..., None]

    def composited(self, background: Tensor | Sequence[float] | float = 1.0) -> Tensor:  # (T, S, S, 3)
        """The object on a ``background`` colour: a grey value, RGB, or anything that broadcasts to the frames."""
        colour = torch.as_tensor(background, dtype=self.frames.dtype, device=self.frames.device)
        return self.premultiplied + (1 - self.masks[..., None]) * colour

    def resized(self, resolution: int) -> DrivingVideo:
        """The same crop drawn at another resolution: exact area average when smaller, bicubic when larger."""
        if resolution == self.resolution:
            return self
        rgba = torch.cat([self.premultiplied, self.masks[..., None]], -1)
        colors, masks = straight(resampled(rgba, resolution))
        return replace(self, frames=continued(colors, masks), masks=masks)

    def to(self, *args: Any, **kwargs: Any) -> DrivingVideo:
        """Tensors moved as by ``Tensor.to``."""
        return replace(self, frames=self.frames.to(*args, **kwargs), masks=self.masks.to(*args, **kwargs))

    def _comfy_cache_tensors(self) -> list[Tensor]:
        """The tensors this value holds, for the host's cache accounting."""
        return [self.frames, self.masks]


def looks_looping(video: DrivingVideo) -> bool:
    """Whether the clip is one turn of a loop: its last frame is about as far from its first as neighbours are from each other.

    Then frame t of T is at tau = t / T. A last frame that repeats the first is not such a loop: there tau = t / (T - 1).
    Distances are root mean squares on white at 32 pixels, where even quick motion changes pictures in proportion.
    """
    if len(video) < 4:
        return False
    small = video.resized(min(32, video.resolution)).composited().flatten(1)
    steps = (small[1:] - small[:-1]).square().mean(1).sqrt()
    wrap = (small[-1] - small[0]).square().mean().sqrt()
    return bool(wrap > 1e-4) and bool(0.2 * steps.median() <= wrap <= 1.1 * steps.quantile(0.75))


def resampled(rgba: Tensor, size: int) -> Tensor:  # premultiplied (T, S, S, 4) -> (T, size, size, 4)
    """Exact area average to fewer pixels, bicubic to more."""
    old = rgba.shape[1]
    if size > old:
        big = F.interpolate(rgba.permute(0, 3, 1, 2), (size, size), mode="bicubic", align_corners=False)
        big = big.permute(0, 2, 3, 1).clamp(0, 1)
        return torch.cat([torch.minimum(big[..., :3], big[..., 3:]), big[..., 3:]], -1)
    # Row i of the matrix holds the share of each old pixel in new pixel i: the overlap of [i, i + 1] s and [j, j + 1].
    edges = torch.arange(size + 1, dtype=torch.float64) * (old / size)
    j = torch.arange(old, dtype=torch.float64)
    overlap = (torch.minimum(edges[1:, None], j + 1) - torch.maximum(edges[:-1, None], j)).clamp_min(0)
    weights = (overlap * (size / old)).to(rgba)
    with one_thread():
        rows = torch.einsum("ij,tjkc->tikc", weights, rgba)
        return torch.einsum("ij,tkjc->tkic", weights, rows).clamp(0, 1)


def straight(rgba: Tensor) -> tuple[Tensor, Tensor]:
    """Straight colours and alpha from premultiplied; alpha too small to carry a colour becomes 0."""
    alpha = torch.where(rgba[..., 3] < 0.5 / 255, 0.0, rgba[..., 3])
    return (rgba[..., :3] / alpha.clamp_min(0.5 / 255)[..., None]).clamp(0, 1), alpha


def continued(colors: Tensor, masks: Tensor) -> Tensor:  # (T, S, S, 3), (T, S, S) -> (T, S, S, 3)
    """Colours continued where the mask is 0: a pyramid of averages, each gap filled at the finest level that sees colour."""
    level = torch.cat([colors * masks[..., None], masks[..., None]], -1).permute(0, 3, 1, 2)
    levels = []
    while max(level.shape[-2:]) > 1:
        levels.append(level)
        level = F.avg_pool2d(level, 2, ceil_mode=True)
    # Alpha is carried along: for fewer than four channels PyTorch chooses its way to interpolate, and with it the last bit, by
    # the number of threads.
    filled = level / level[:, 3:].clamp_min(1e-12)
    for level in reversed(levels[1:]):
        filled = torch.where(level[:, 3:] > 1e-4, level / level[:, 3:].clamp_min(1e-4), _doubled(filled, level))
    up = _doubled(filled, masks)[:, :3].permute(0, 2, 3, 1)
    return torch.where(masks[..., None] > 0, colors, up)


def _doubled(level: Tensor, like: Tensor) -> Tensor:  # (T, 4, h, w) -> (T, 4, H, W)
    """The next finer level of a pyramid, interpolated at the size of ``like``."""
    level = level.contiguous(memory_format=torch.channels_last)
    return F.interpolate(level, like.shape[-2:], mode="bilinear", align_corners=False)


@canonical.register
def _(value: DrivingVideo) -> Any:
    # Pixels are computed, and need not be the same to the last bit on another number of threads: files name what they show.
    content = value.identity or [canonical(value.frames), canonical(value.masks)]
    return {"video": content, "frames": len(value), "resolution": value.resolution, "fps": value.fps}


def __getattr__(name: str) -> Any:
    from .former import found

    return found("video", name)
