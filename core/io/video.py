"""Driving videos from folders of pictures, films, animated pictures and tensors: read, cut out, cropped once for the clip."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..cameras import Crop
from ..files import InputError
from ..video import DrivingVideo, continued, resampled, straight
from .background import check_method, estimate_masks, lost_parts
from .clip import ANIMATIONS, PICTURES, Clip, Part, Percent, pick_frames, read_clip, read_picture, read_tensors, share, silent

__all__ = [
    "ANIMATIONS",
    "PICTURES",
    "Clip",
    "Part",
    "Reading",
    "load_video",
    "pick_frames",
    "prepare",
    "read_clip",
    "read_picture",
    "read_tensors",
]

log = logging.getLogger(__name__)

#: Frames that are cropped and resampled together.
CHUNK = 16
#: Alpha from which a pixel counts towards the crop.
VISIBLE = 0.1
#: Pixels of one side of the picture that the object covers where it touches it.
TOUCHING = 2
#: An object that touches the border and shows less than this share of its largest area is leaving.
LEFT = 0.5
#: Alpha from which a pixel whose mask was estimated is the object's own colour.
CORE = 0.95


@dataclass(frozen=True)
class Reading:
    """What of a video's file is taken and how the object is found in it; arguments as of :func:`load_video`."""

    mask: str | os.PathLike[str] | None = None
    start: float = 0.0
    end: float | None = None
    every: int = 1
    background: str = "auto"


def load_video(
    source: str | os.PathLike[str] | Tensor,  # a path, or (T, H, W, 3 | 4) in [0, 1]
    mask: Tensor | str | os.PathLike[str] | None = None,  # (T, H, W) in [0, 1], or a path
    *,
    fps: float | None = None,
    frames: int | None = None,
    start: float = 0.0,
    end: float | None = None,
    every: int = 1,
    resolution: int = 512,
    fill: float = 0.85,
    background: str = "auto",
    upsample: bool = False,
    download: bool = False,
    progress: Percent | None = None,
) -> DrivingVideo:
    """A driving video from a folder of pictures, a film, an animated picture, or tensors.

    Args:
        source: folder, file, or straight-colour frames.
        mask: 1 = object; used where the frames bring no alpha of their own. As a path: a film, an animated picture or a folder
            with a mask for each frame, or one picture for all.
        fps: frames a second; the film's own where None, else 12.
        frames: number of frames to keep, see :func:`pick_frames`; all where None. The clip keeps its duration.
        start, end: the part to take, seconds; to the end where None.
        every: take every N-th frame only.
        resolution: largest side of the result, pixels; never larger than the crop itself unless ``upsample``.
        fill: share of the crop's side that the object's longer side takes, over the whole clip.
        background: how to find the object where there is neither alpha nor mask: "auto", "key", "rembg", or the backdrop's
            colour (:func:`anchor4d.core.io.background.estimate_masks`).
        upsample: enlarge a crop that is smaller than ``resolution``.
        download: fetch the background-removal model if it is missing.
        progress: called often with the percentage done.

    Raises:
        InputError: for a missing, empty, unreadable, one-frame, uneven or oversized video, or one without a foreground.
    """
    part = Part(fps, frames, start, end, every)
    check_method(background, source="image batch" if isinstance(source, Tensor) else str(source))
    if not isinstance(source, Tensor):
        clip = read_clip(source, mask, **asdict(part), progress=progress and share(progress, 0, 50))
    elif mask is None or isinstance(mask, Tensor):
        clip = read_tensors(source, mask, **asdict(part))
    else:
        raise InputError(f"{os.fspath(mask)}: masks of frames in memory are given in memory, load the file first")
    return prepare(
        clip,
        resolution=resolution,
        fill=fill,
        background=background,
        upsample=upsample,
        download=download,
        progress=progress and share(progress, 50, 100),
    )


def prepare(
    clip: Clip,
    *,
    resolution: int = 512,
    fill: float = 0.85,
    background: str = "auto",
    upsample: bool = False,
    download: bool = False,
    hidden: Tensor | None = None,  # (T, H, W)
    progress: Percent | None = None,
) -> DrivingVideo:
    """Cut the object out of a clip and crop it once for all frames; arguments as :func:`load_video`.

    The crop is the square around the union of the masks over time, with whole-pixel bounds. At its own size the pictures are
    copied exactly; smaller, they are area-averaged in premultiplied alpha. What looks wrong is logged, and is the value's
    ``warnings``: an object that touches the picture's border, or white parts that were taken for the backdrop.

    Args:
        hidden: 1 where another object may be in front, see :class:`DrivingVideo`; in frames that have some, but for the first,
            the object may be hidden whole.

    Raises:
        InputError: where a frame has no foreground, or none can be found.
    """
    if not 0 < fill <= 1:
        raise InputError(f"{clip.source}: fill {fill}, the object's share of the crop must be above 0 and at most 1")
    if resolution < 8:
        raise InputError(f"{clip.source}: resolution {resolution}, choose at least 8 pixels")
    tell = progress or silent
    colors, alpha = clip.frames[..., :3], clip.frames[..., 3:]
    opaque = 255 if alpha.dtype == torch.uint8 else 1.0
    doubts = []
    if alpha.numel() and bool((alpha < opaque).any()):
        masks, masked_by = unit(alpha[..., 0]), "alpha"
        if clip.masks is not None:
            doubts.append("the frames have alpha of their own, the mask that was given is left aside")
    elif clip.masks is not None:
        masks, masked_by = clip.masks, "mask"
    else:
        masks, masked_by = estimate_masks(
            colors, background, source=clip.source, download=download, progress=share(tell, 0, 70)
        )
    empty = (masks.flatten(1).amax(1) <= 0.5).nonzero().flatten().tolist()
    if hidden is not None and (0 not in empty or not bool((hidden[0] > 0.5).any())):
        covered = hidden.flatten(1).amax(1) > 0.5
        empty = [frame for frame in empty if not covered[frame]]
    if empty:
        which = "any frame" if len(empty) == len(masks) else "frame" + "s" * (len(empty) > 1) + f" {ranges(empty)}"
        remedy = {
            "alpha": "the alpha channel is empty there, leave those frames out",
            "mask": "the mask is empty there, it must be 1 on the object (invert it if it is the other way round)",
        }.get(masked_by, "give frames with alpha or a mask, or leave those frames out")
        raise InputError(f"{clip.source}: no foreground in {which} (counted from 0); {remedy}")
    if masked_by == "key" and (lost := lost_parts(colors, masks)):
        doubts.append(lost)
    if touching := _touching(masks):
        doubts.append(touching)
    for doubt in doubts:
        log.warning("%s: %s", clip.source, doubt)
    crop = _crop_around(masks, fill)
    target = resolution if upsample else min(resolution, int(crop.size))
    # A few frames at a time: whole pictures in floating point would take most of the memory.
    parts = []
    for i in range(0, len(masks), CHUNK):
        tell(70 + 30 * i // len(masks), 100)
        frames = slice(i, i + CHUNK)
        parts.append(_cut(colors[frames], masks[frames], crop, target, decontaminate=masked_by in ("key", "rembg")))
    unknown = None
    if hidden is not None:
        box = slice(None), *crop_slices(crop)
        unknown = torch.zeros(len(masks), int(crop.size), int(crop.size))
        y0, x0 = max(int(crop.y), 0) - int(crop.y), max(int(crop.x), 0) - int(crop.x)
        part = hidden[box].float()
        unknown[:, y0 : y0 + part.shape[1], x0 : x0 + part.shape[2]] = part
        if target != int(crop.size):
            unknown = resampled(unknown[..., None].expand(*unknown.shape, 4), target)[..., 0]
    log.info(
        "%s: %d frames of %dx%d, foreground by %s, crop of %d px at (%d, %d) drawn at %d px",
        clip.source, len(masks), crop.width, crop.height, masked_by, crop.size, crop.x, crop.y, target,
    )  # fmt: skip
    cut, alphas = (torch.cat(part) for part in zip(*parts))
    tell(100, 100)
    return DrivingVideo(cut, alphas, float(clip.fps), crop, clip.source, masked_by, tuple(doubts), hidden=unknown)


def crop_slices(crop: Crop) -> tuple[slice, slice]:
    """Rows and columns of the picture that lie in a crop."""
    x, y, size = int(crop.x), int(crop.y), int(crop.size)
    return slice(max(y, 0), min(y + size, crop.height)), slice(max(x, 0), min(x + size, crop.width))


def _touching(masks: Tensor) -> str:  # (T, H, W)
    """What is wrong where the object touches the picture's border, "" where it does not."""
    seen = masks > 0.5
    sides = {"top": seen[:, 0], "bottom": seen[:, -1], "left": seen[:, :, 0], "right": seen[:, :, -1]}
    counts = {side: pixels.sum(1) >= TOUCHING for side, pixels in sides.items()}
    touched = [side for side, frames in counts.items() if bool(frames.any())]
    if not touched:
        return ""
    at_border = torch.stack(list(counts.values())).any(0)
    area = seen.flatten(1).sum(1).float()
    leaves = at_border & (area < LEFT * area.amax())
    frames = (leaves if bool(leaves.any()) else at_border).nonzero().flatten().tolist()
    does = f"{'leaves' if bool(leaves.any()) else 'touches the border of'} the picture ({', '.join(touched)})"
    return (
        f"the object {does} in frame{'s' * (len(frames) > 1)} {ranges(frames)}, counted from 0: what lies beyond is missing; "
        "film it whole, or leave those frames out (start, end)"
    )


def unit(tensor: Tensor) -> Tensor:
    """float32 in [0, 1] from uint8 or float."""
    return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()


def ranges(numbers: list[int]) -> str:
    """1-3, 7 for [1, 2, 3, 7]."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def _crop_around(masks: Tensor, fill: float) -> Crop:
    """The square around everything visible at any time, of an even number of pixels, with its centre on the object's."""
    union = masks.amax(0) > VISIBLE
    rows, columns = union.any(1).nonzero().flatten(), union.any(0).nonzero().flatten()
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    size = 2 * math.ceil(max(bottom - top, right - left) / fill / 2)
    height, width = masks.shape[1:]
    return Crop((left + right - size) // 2, (top + bottom - size) // 2, size, width, height)


def _cut(
    colors: Tensor,  # (T, H, W, 3)
    masks: Tensor,  # (T, H, W)
    crop: Crop,
    target: int,
    decontaminate: bool,
) -> tuple[Tensor, Tensor]:  # (T, target, target, 3), (T, target, target)
    """Colours and masks through the crop."""
    x, y, size = int(crop.x), int(crop.y), int(crop.size)
    rgba = torch.zeros(len(masks), size, size, 4)
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + size, crop.width), min(y + size, crop.height)
    rgba[:, y0 - y : y1 - y, x0 - x : x1 - x, :3] = unit(colors[:, y0:y1, x0:x1])
    rgba[:, y0 - y : y1 - y, x0 - x : x1 - x, 3] = masks[:, y0:y1, x0:x1]
    if decontaminate:
        # Edge pixels mix object and background: they take the colour of the object beside them.
        rgba[..., :3] = continued(rgba[..., :3], torch.where(rgba[..., 3] >= CORE, rgba[..., 3], 0.0))
    if target == size:
        colors, masks = rgba[..., :3].contiguous(), rgba[..., 3].contiguous()
    else:
        rgba[..., :3] *= rgba[..., 3:]
        colors, masks = straight(resampled(rgba, target))
    return continued(colors, masks), masks
