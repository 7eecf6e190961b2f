"""Several objects of one clip: their masks, and for each object the driving video in which the others are unknown.

Masks come as a film or folder for each object, as label pictures in which each object has a colour of its own, or from the
clip's own foreground, whose separate parts are followed through time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import InputError
from ..video import DrivingVideo
from .background import estimate_masks
from .clip import Clip, Part, Percent, read_clip, share
from .video import prepare, ranges, unit

log = logging.getLogger(__name__)

#: Most objects of one clip, and the share of the picture that a colour of label pictures takes in some frame to be one's.
MOST, LABEL = 8, 0.001
#: How far apart the colours of labels are where a film has blurred them, and how much one varies beside itself, of 255.
APART, FLAT = 70.0, 40.0
#: Share of the largest part of the first frame's foreground from which a part is an object, and of an object's area that a part
#: beside it may have without being another object.
PART, LOOSE = 0.05, 0.25
#: Share of an object's area beside what may hide it, from which its centroid is not taken as known.
CUT = 0.02
#: Around another object's mask, pixels of this share of the picture's longer side are unknown too: edges mix both.
BORDER = 1 / 256


def load_objects(
    source: str | os.PathLike[str],
    masks: Sequence[str | os.PathLike[str]] = (),
    *,
    fps: float | None = None,
    frames: int | None = None,
    start: float = 0.0,
    end: float | None = None,
    every: int = 1,
    resolution: int = 512,
    fill: float = 0.85,
    background: str = "auto",
    progress: Percent | None = None,
) -> tuple[list[DrivingVideo], DrivingVideo]:
    """Each object's driving video of one clip, and the video of all of them.

    Args:
        source: a video that :func:`~.video.load_video` reads.
        masks: a film, folder or picture for each object, white on black or opaque; or one of label pictures: a colour, or a
            grey, for each object, in the order of first appearance from the left. None: the foreground's separate parts.
        fps, frames, start, end, every, resolution, fill, background: as :func:`~.video.load_video` takes them.

    Raises:
        InputError: for masks that do not fit, objects that touch where none are given (with the frames), or an object that is
            not seen in the first frame.
    """
    part = Part(fps, frames, start, end, every)
    clip = read_clip(source, tracks=masks, **asdict(part), progress=progress and share(progress, 0, 50))
    return objects_of(clip, None, resolution=resolution, fill=fill, background=background)


def objects_of(
    clip: Clip,
    tracks: Tensor | None = None,  # (K, T, H, W) in [0, 1]
    *,
    resolution: int = 512,
    fill: float = 0.85,
    background: str = "auto",
    download: bool = False,
) -> tuple[list[DrivingVideo], DrivingVideo]:
    """As :func:`load_objects`, of a clip that was read; ``tracks`` in place of the clip's own."""
    alpha = clip.frames[..., 3:]
    solid = None if not alpha.numel() else unit(alpha[..., 0])
    if solid is not None and not bool((solid < 1).any()):
        solid = None
    if tracks is None and clip.tracks:
        tracks = masks_of(clip.tracks, clip.source)
    if tracks is None:
        found = clip.masks if solid is None else solid
        if found is None:
            found, _ = estimate_masks(clip.frames[..., :3], background, source=clip.source, download=download)
        tracks = parts_of(found, clip.source)
    elif solid is not None:
        tracks = _softened(tracks, solid)
    if len(tracks) > MOST:
        raise InputError(f"{clip.source}: {len(tracks)} objects, at most {MOST} are fitted together; leave some masks out")
    plain = replace(clip, frames=clip.frames[..., :3], tracks=())
    settings = {"resolution": resolution, "fill": fill}
    every = prepare(replace(plain, masks=tracks.amax(0)), **settings)
    videos = []
    for k, mask in enumerate(tracks):
        others = torch.cat([tracks[:k], tracks[k + 1 :]]).amax(0) if len(tracks) > 1 else torch.zeros_like(mask)
        named = replace(plain, masks=mask, source=f"{clip.source}, object {k + 1}")
        hidden = bordered(others)
        shifts = walk(mask, hidden)
        margin = max(mask.shape[1:]) // 4
        named = replace(named, frames=moved(named.frames, shifts, margin), masks=moved(mask, shifts, margin))
        # Beyond the picture's border nothing is known either.
        made = prepare(named, hidden=1 - moved(1 - hidden, shifts, margin), **settings)
        height, width = mask.shape[1:]
        crop = replace(made.crop, x=made.crop.x - margin, y=made.crop.y - margin, width=width, height=height)
        videos.append(replace(made, crop=crop, shifts=shifts))
    return videos, every


def walk(mask: Tensor, hidden: Tensor) -> Tensor:  # (T, H, W), (T, H, W) -> (T, 2) whole pixels
    """Shifts that hold an object in place: by its mask's centroid; where others may hide a part of it, in between."""
    seen = (mask > 0.5).float()
    area = seen.flatten(1).sum(1)
    u, v = torch.arange(mask.shape[2], dtype=torch.float32), torch.arange(mask.shape[1], dtype=torch.float32)
    middle = torch.stack([(seen.sum(1) * u).sum(1), (seen.sum(2) * v).sum(1)], 1) / area.clamp_min(1)[:, None]
    touched = F.max_pool2d(hidden[:, None], 3, 1, 1)[:, 0]
    whole = (area > 0) & ((seen * touched).flatten(1).sum(1) < CUT * area)
    if not bool(whole.any()):
        return torch.zeros(len(mask), 2)
    at = np.arange(len(mask))
    known = whole.numpy()
    path = np.stack([np.interp(at, at[known], middle[whole, axis].numpy()) for axis in (0, 1)], 1)
    return -torch.from_numpy(path - path[0]).float().round()


def moved(frames: Tensor, shifts: Tensor, margin: int) -> Tensor:  # (T, H, W, ...), (T, 2) -> (T, H + 2 m, W + 2 m, ...)
    """Each frame moved right and down by whole pixels, in a picture with a margin around it; what was not filmed is 0."""
    count, height, width = frames.shape[:3]
    out = frames.new_zeros(count, height + 2 * margin, width + 2 * margin, *frames.shape[3:])
    for t, (right, down) in enumerate(shifts.int().tolist()):
        top, left = down + margin, right + margin
        y0, y1, x0, x1 = max(top, 0), min(top + height, out.shape[1]), max(left, 0), min(left + width, out.shape[2])
        out[t, y0:y1, x0:x1] = frames[t, y0 - top : y1 - top, x0 - left : x1 - left]
    return out


def bordered(masks: Tensor) -> Tensor:  # (T, H, W) -> (T, H, W)
    """1 where masks are, and around them as far as edges mix."""
    reach = max(1, round(BORDER * max(masks.shape[1:])))
    return F.max_pool2d((masks > 0.02).float()[:, None], 2 * reach + 1, 1, reach)[:, 0]


def masks_of(tracks: Sequence[Tensor], source: str) -> Tensor:  # each (T, H, W, 3 | 4) uint8 -> (K, T, H, W)
    """Masks of several objects: of a picture each, or of one whose colours are labels.

    Raises:
        InputError: where label pictures show fewer than two objects.
    """
    if len(tracks) > 1:
        masks = []
        for picture in tracks:
            alpha = picture[..., 3:]
            clear = bool((alpha < 255).any())
            masks.append(unit(alpha[..., 0]) if clear else picture[..., :3].float().mean(-1) / 255)
        return torch.stack(masks)
    picture = tracks[0].to(torch.int64)
    codes = (picture[..., 0] * 256 + picture[..., 1]) * 256 + picture[..., 2]
    if picture.shape[-1] == 4:
        codes = torch.where(picture[..., 3] < 128, 0, codes)
    if len(codes.unique()) > 256:  # a film with loss
        codes = _main_colors(codes)
    values = codes.unique().tolist()
    pixels = codes.shape[1] * codes.shape[2]
    labels = [v for v in values if v and float((codes == v).flatten(1).sum(1).max()) >= LABEL * pixels]
    if len(labels) < 2:
        raise InputError(
            f"{source}: its label pictures show {len(labels)} object; give each a colour of its own on black, or a mask each"
        )
    masks = torch.stack([(codes == value).float() for value in labels])
    return masks[_from_the_left(masks)]


def _main_colors(codes: Tensor) -> Tensor:  # (T, H, W) 0xRRGGBB
    """Every pixel in the nearest of the few colours that fill areas, black among them."""
    colors = torch.stack([codes >> 16, codes >> 8 & 255, codes & 255], -1).float()
    coarse = ((colors + 8) / 16).floor().long().clamp(0, 15)
    bins = (coarse[..., 0] * 16 + coarse[..., 1]) * 16 + coarse[..., 2]
    planes = colors.movedim(-1, 1)
    spread = F.max_pool2d(planes, 3, 1, 1) + F.max_pool2d(-planes, 3, 1, 1)
    flat = spread.amax(1) < FLAT  # not where edges mix
    counts = torch.stack([frame[inside].bincount(minlength=4096) for frame, inside in zip(bins, flat)]).amax(0)
    kept, largest = [torch.zeros(3)], 0
    for index in counts.argsort(descending=True).tolist():
        color = torch.tensor([index // 256, index // 16 % 16, index % 16]).float() * 16
        if counts[index] < max(LABEL * codes[0].numel(), 0.05 * largest):
            break
        if min(float((color - other).norm()) for other in kept) > APART:
            kept.append(color)
            largest = max(largest, int(counts[index]))
    table = torch.stack(kept).clamp_max(255)
    nearest = torch.stack([torch.cdist(frame.flatten(0, 1), table).argmin(1).reshape(codes.shape[1:]) for frame in colors])
    packed = (table[:, 0].long() << 16) + (table[:, 1].long() << 8) + table[:, 2].long()
    return packed[nearest]


def _from_the_left(masks: Tensor) -> list[int]:  # (K, T, H, W)
    """Numbers of objects in the order of first appearance, of the same frame from the left."""
    seen = masks.flatten(2).amax(2) > 0.5
    keys = []
    for k, frames in enumerate(seen):
        first = int(frames.float().argmax())
        columns = (masks[k, first] > 0.5).sum(0).float()
        middle = float((columns * torch.arange(len(columns))).sum() / columns.sum().clamp_min(1))
        keys.append((first, middle, k))
    return [k for _, _, k in sorted(keys)]


def parts_of(masks: Tensor, source: str) -> Tensor:  # (T, H, W) -> (K, T, H, W)
    """The separate parts of a foreground, each followed from frame to frame by what overlaps, from the left.

    Smaller parts belong to the object beside them.

    Raises:
        InputError: where the first frame has one part, parts touch or cross (with the frames), or a new one appears.
    """
    from scipy import ndimage

    def parts(mask: Tensor) -> tuple[np.ndarray, int]:
        return ndimage.label((mask > 0.5).numpy(), np.ones((3, 3)))  # pyright: ignore[reportReturnType]

    labels, count = parts(masks[0])
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    large = [k + 1 for k in range(count) if areas[k] >= PART * areas.max()] if count else []
    if len(large) < 2:
        raise InputError(
            f"{source}: the foreground of frame 0 is in {len(large)} part; where objects touch, give masks: a film or a folder "
            "for each object, or label pictures"
        )
    where = np.stack([labels == k for k in large])
    middles = [float(np.nonzero(w)[1].mean()) for w in where]
    where = where[np.argsort(middles)]
    tracks, touching, appearing = [_with_loose(where, labels)], [], []
    for t in range(1, len(masks)):
        labels, count = parts(masks[t])
        areas = np.bincount(labels.ravel(), minlength=count + 1)
        shared = np.stack([np.bincount(labels[w], minlength=count + 1) for w in tracks[-1]])[:, 1:]  # (K, parts)
        sizes = np.maximum(tracks[-1].reshape(len(large), -1).sum(1), 1)
        claims = (shared > 0.1 * np.minimum(sizes[:, None], areas[None, 1:])).sum(0)
        apart = (areas[1:] >= PART * areas[1:].max(initial=1)).sum() >= len(large)
        if (claims > 1).any() or (touching[-1:] == [t - 1] and not apart):
            touching.append(t)
            tracks.append(tracks[-1])
            continue
        now = np.zeros_like(tracks[-1])
        for part in range(count):
            if shared[:, part].any():
                now[int(shared[:, part].argmax())] |= labels == part + 1
            elif areas[part + 1] > LOOSE * sizes.min():
                appearing.append(t)
        tracks.append(_with_loose(now, labels))
    if touching or appearing:
        frames, what = (touching, "objects touch or cross") if touching else (appearing, "a new object appears")
        raise InputError(
            f"{source}: {what} in frame{'s' * (len(frames) > 1)} {ranges(frames)}, counted from 0, where outlines alone do not "
            "say which is which; give masks: a film or a folder for each object, or label pictures"
        )
    return _softened(torch.from_numpy(np.stack(tracks, 1)).float(), masks)


def _softened(tracks: Tensor, masks: Tensor) -> Tensor:  # (K, T, H, W), (T, H, W) -> (K, T, H, W)
    """Hard masks with the soft edges of the foreground: these go to the object that they lie beside."""
    grown = F.max_pool2d(tracks.flatten(0, 1)[:, None], 5, 1, 2)[:, 0].unflatten(0, tracks.shape[:2])
    return masks * torch.where(tracks.amax(0) > 0, tracks, grown)


def _with_loose(where: np.ndarray, labels: np.ndarray) -> np.ndarray:  # (K, H, W), (H, W)
    """Parts that are no object's given to the nearest."""
    from scipy import ndimage

    loose = (labels > 0) & ~where.any(0)
    if not loose.any() or not where.any():
        return where
    far = np.full(where.shape[1:], np.inf)
    away = np.stack([np.asarray(ndimage.distance_transform_edt(~w)) if w.any() else far for w in where])
    for part in np.unique(labels[loose]):
        inside = labels == part
        where[int(away[:, inside].min(1).argmin())] |= inside
    return where
