"""Driving videos from folders of pictures, films, animated pictures and tensors: read, cut out, cropped once for the clip."""

from __future__ import annotations

import logging
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cameras import Crop
from ..files import InputError
from ..pictures import open_picture
from ..video import DrivingVideo, continued, resampled, straight
from .background import estimate_masks

log = logging.getLogger(__name__)

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
#: Pictures that may hold a whole animation, read with Pillow; every other single file goes to PyAV.
ANIMATIONS = PICTURES | {".gif", ".apng"}
#: Frames times pixels read at once: 64 frames of 1920x1080, about 2 GiB while they are cut out.
MAX_PIXELS = 2**27
#: Frame rate of a folder of pictures or of tensors where none is given; that of Scene4D.
DEFAULT_FPS = 12.0
#: Frames that are cropped and resampled together.
CHUNK = 16
#: The EXIF tag of a picture's orientation; values of 5 and more lie on their side.
ORIENTATION = 0x0112
#: Alpha from which a pixel counts towards the crop.
VISIBLE = 0.1
#: Alpha from which a pixel whose mask was estimated is the object's own colour.
CORE = 0.95


@dataclass(frozen=True)
class Clip:
    """A video as it was read: whole pictures, before any cutting out.

    Args:
        frames: straight colour, with alpha where the source has one; uint8, or float32 in [0, 1].
        fps: frames a second.
        masks: alpha in [0, 1] given beside the frames, 1 = object.
        source: what to call it in messages.
    """

    frames: Tensor  # (T, H, W, 3 | 4)
    fps: float = DEFAULT_FPS
    masks: Tensor | None = None  # (T, H, W)
    source: str = "video"


def load_video(
    source: str | os.PathLike[str] | Tensor,  # a path, or (T, H, W, 3 | 4) in [0, 1]
    mask: Tensor | None = None,  # (T, H, W) in [0, 1]
    *,
    fps: float | None = None,
    frames: int | None = None,
    resolution: int = 512,
    fill: float = 0.85,
    background: str = "auto",
    upsample: bool = False,
    download: bool = False,
) -> DrivingVideo:
    """A driving video from a folder of pictures, a film, an animated picture, or tensors.

    Args:
        source: folder, file, or straight-colour frames.
        mask: 1 = object; used where the frames bring no alpha of their own.
        fps: frames a second; the film's own where None, else 12.
        frames: number of frames to keep, see :func:`pick_frames`; all where None. The clip keeps its duration.
        resolution: largest side of the result, pixels; never larger than the crop itself unless ``upsample``.
        fill: share of the crop's side that the object's longer side takes, over the whole clip.
        background: how to find the object where there is neither alpha nor mask: "auto", "key" or "rembg"
            (:func:`anchor4d.core.io.background.estimate_masks`).
        upsample: enlarge a crop that is smaller than ``resolution``.
        download: fetch the background-removal model if it is missing.

    Raises:
        InputError: for a missing, empty, unreadable, one-frame, uneven or oversized video, or one without a foreground.
    """
    read = read_tensors if isinstance(source, Tensor) else read_clip
    clip = read(source, mask, fps=fps, frames=frames)  # pyright: ignore[reportArgumentType]
    return prepare(clip, resolution=resolution, fill=fill, background=background, upsample=upsample, download=download)


def pick_frames(count: int, frames: int | None) -> list[int]:
    """Which of ``count`` source frames a clip of ``frames`` frames shows.

    The clip is cut into ``frames`` equal spans of time and each shows the source frame at its beginning, floor(i count /
    frames): the frame rate times ``frames / count`` keeps the duration, and a clip that loops still does.
    """
    return list(range(count)) if frames is None else [i * count // frames for i in range(frames)]


def read_clip(
    path: str | os.PathLike[str],
    mask: Tensor | None = None,  # (T, H, W)
    *,
    fps: float | None = None,
    frames: int | None = None,
) -> Clip:
    """Read a folder of pictures (in natural order), an animated picture, or a film with its rotation and alpha.

    Raises:
        InputError: as :func:`load_video`.
    """
    path = Path(path)
    if path.is_dir():
        pictures, count, rate = _read_folder(path, frames)
    elif not path.is_file():
        raise InputError(f"{path}: no such video or folder of frames, check the path")
    elif path.suffix.lower() in ANIMATIONS:
        pictures, count, rate = _read_animation(path, frames)
    else:
        pictures, count, rate = _read_film(path, frames)
    return _clip(torch.from_numpy(pictures), count, mask, fps or rate, frames, str(path))


def read_tensors(
    images: Tensor,  # (T, H, W, 3 | 4)
    mask: Tensor | None = None,  # (T, H, W), (1, H, W) or (H, W)
    *,
    fps: float | None = None,
    frames: int | None = None,
    source: str = "image batch",
) -> Clip:
    """A clip from straight-colour frames in [0, 1] and masks, 1 = object; one mask serves every frame.

    Raises:
        InputError: for wrong shapes, fewer than two frames, or non-finite values.
    """
    if images.dim() != 4 or images.shape[-1] not in (3, 4):
        raise InputError(f"{source}: shape {tuple(images.shape)}, give frames as (frames, height, width, 3 or 4)")
    count, height, width = images.shape[:3]
    picks = _picks(source, count, frames, width, height)
    picked = images[picks].detach().to("cpu", torch.float32)
    if not picked.isfinite().all():
        raise InputError(f"{source}: holds NaN or infinite values, check what made it")
    return _clip(picked.clamp(0, 1), count, mask, fps, frames, source)


def read_picture(path: str | os.PathLike[str]) -> Clip:
    """One picture as a clip of one frame, upright; the first of an animated one.

    Raises:
        InputError: for a missing or unreadable file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such picture, check the path")
    with _readable(path), open_picture(path) as image:
        return Clip(torch.from_numpy(_pixels(image).copy())[None], source=str(path))


def prepare(
    clip: Clip,
    *,
    resolution: int = 512,
    fill: float = 0.85,
    background: str = "auto",
    upsample: bool = False,
    download: bool = False,
) -> DrivingVideo:
    """Cut the object out of a clip and crop it once for all frames; arguments as :func:`load_video`.

    The crop is the square around the union of the masks over time, with whole-pixel bounds. At its own size the pictures are
    copied exactly; smaller, they are area-averaged in premultiplied alpha.

    Raises:
        InputError: where a frame has no foreground, or none can be found.
    """
    if not 0 < fill <= 1:
        raise InputError(f"{clip.source}: fill {fill}, the object's share of the crop must be above 0 and at most 1")
    if resolution < 8:
        raise InputError(f"{clip.source}: resolution {resolution}, choose at least 8 pixels")
    colors, alpha = clip.frames[..., :3], clip.frames[..., 3:]
    opaque = 255 if alpha.dtype == torch.uint8 else 1.0
    if alpha.numel() and bool((alpha < opaque).any()):
        masks, masked_by = _unit(alpha[..., 0]), "alpha"
    elif clip.masks is not None:
        masks, masked_by = clip.masks, "mask"
    else:
        masks, masked_by = estimate_masks(colors, background, source=clip.source, download=download)
    empty = (masks.flatten(1).amax(1) <= 0.5).nonzero().flatten().tolist()
    if empty:
        which = "any frame" if len(empty) == len(masks) else "frame" + "s" * (len(empty) > 1) + f" {_ranges(empty)}"
        remedy = {
            "alpha": "the alpha channel is empty there, leave those frames out",
            "mask": "the mask is empty there, it must be 1 on the object (invert it if it is the other way round)",
        }.get(masked_by, "give frames with alpha or a mask, or leave those frames out")
        raise InputError(f"{clip.source}: no foreground in {which} (counted from 0); {remedy}")
    crop = _crop_around(masks, fill)
    target = resolution if upsample else min(resolution, int(crop.size))
    # A few frames at a time: whole pictures in floating point would take most of the memory.
    parts = [
        _cut(colors[i : i + CHUNK], masks[i : i + CHUNK], crop, target, decontaminate=masked_by in ("key", "rembg"))
        for i in range(0, len(masks), CHUNK)
    ]
    log.info(
        "%s: %d frames of %dx%d, foreground by %s, crop of %d px at (%d, %d) drawn at %d px",
        clip.source, len(masks), crop.width, crop.height, masked_by, crop.size, crop.x, crop.y, target,
    )  # fmt: skip
    cut, alphas = (torch.cat(part) for part in zip(*parts))
    return DrivingVideo(cut, alphas, float(clip.fps), crop, clip.source, masked_by)


def _picks(source: str | Path, count: int, frames: int | None, width: int, height: int) -> list[int]:
    """:func:`pick_frames` after the checks that every source shares."""
    if count == 0:
        raise InputError(f"{source}: holds no frames, choose another video")
    if count == 1:
        raise InputError(f"{source}: holds one frame, a moving object needs at least 2")
    if frames is not None and frames < 2:
        raise InputError(f"{source}: {frames} frames asked for, a moving object needs at least 2")
    picks = pick_frames(count, frames)
    if len(picks) * width * height > MAX_PIXELS:
        most = MAX_PIXELS // (width * height)
        remedy = f"choose at most {most} frames" if most > 1 else "make the pictures smaller"
        raise InputError(f"{source}: {len(picks)} frames of {width}x{height} are too large to read at once, {remedy}")
    return picks


def _clip(pictures: Tensor, count: int, mask: Tensor | None, fps: float | None, frames: int | None, source: str) -> Clip:
    fps = DEFAULT_FPS if fps is None else fps
    if not (math.isfinite(fps) and fps > 0):
        raise InputError(f"{source}: {fps} frames a second, choose a rate above 0")
    if mask is not None:
        mask = mask.detach().to("cpu", torch.float32)
        mask = mask[None] if mask.dim() == 2 else mask
        height, width = pictures.shape[1:3]
        if mask.dim() != 3 or mask.shape[0] not in (1, count) or mask.shape[1:] != (height, width):
            raise InputError(
                f"{source}: the mask has shape {tuple(mask.shape)} where the frames need ({count}, {height}, {width}), "
                "give one mask a frame at the frames' size"
            )
        mask = mask.expand(count, -1, -1)[pick_frames(count, frames)].nan_to_num().clamp(0, 1)
    return Clip(pictures, fps * len(pictures) / count, mask, source)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever a decoder throws on a damaged or oversized picture, as one line that names it."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{path}: the picture is too large to read safely, make it smaller") from None
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a readable picture, it is damaged or of another kind ({_one_line(error)})") from None


def _read_folder(path: Path, frames: int | None) -> tuple[np.ndarray, int, float | None]:
    names = sorted((p for p in path.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")), key=_natural)
    if not names:
        raise InputError(f"{path}: no frames in this folder, put png, jpg or webp pictures into it")
    sizes: list[tuple[int, int]] = []
    for name in names:
        with _readable(name), open_picture(name) as image:
            width, height = image.size
            sizes.append((width, height) if image.getexif().get(ORIENTATION, 1) < 5 else (height, width))
        if sizes[-1] != sizes[0]:
            odd, first = "x".join(map(str, sizes[-1])), "x".join(map(str, sizes[0]))
            raise InputError(f"{name}: {odd} pixels where {names[0].name} has {first}, give all frames one size")
    pictures = []
    for index in _picks(path, len(names), frames, *sizes[0]):
        with _readable(names[index]), open_picture(names[index]) as image:
            pictures.append(_pixels(image))
    return _stack(pictures), len(names), None


def _read_animation(path: Path, frames: int | None) -> tuple[np.ndarray, int, float | None]:
    with _readable(path), open_picture(path) as image:
        count = getattr(image, "n_frames", 1)
        picks = _picks(path, count, frames, *image.size)
        pictures, milliseconds = {}, 0.0
        for index in range(count):
            image.seek(index)
            if index in picks:
                pictures[index] = _pixels(image)
            milliseconds += float(image.info.get("duration") or 0)
    rate = 1000 * count / milliseconds if milliseconds > 0 else None
    return _stack([pictures[i] for i in picks]), count, rate


def _read_film(path: Path, frames: int | None) -> tuple[np.ndarray, int, float | None]:
    import av
    from av.error import FFmpegError

    picks: list[int] = []
    pictures: dict[int, np.ndarray] = {}
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path}: holds no pictures, choose a video")
            stream = container.streams.video[0]
            count = sum(1 for packet in container.demux(stream) if packet.size)
            rate = stream.average_rate or stream.guessed_rate
            width, height = stream.width, stream.height
        # A packet is nearly always one frame; where it is not, the second turn knows the true number.
        for _ in range(2):
            picks = _picks(path, count, frames, width, height)
            pictures.clear()
            decoded = 0
            for frame in _decode(path):
                if decoded in picks and (frame.width, frame.height) != (width, height):
                    raise InputError(
                        f"{path}: frame {decoded} is {frame.width}x{frame.height} where the film is {width}x{height}, "
                        "give all frames one size"
                    )
                if decoded in picks:
                    alpha = any(component.is_alpha for component in frame.format.components)
                    # 1 is BT.709. Older PyAV heeds it only where the target, meaningless for RGB, is another.
                    matrix = "itu709" if frame.colorspace == 1 else None
                    pixels = frame.reformat(format="rgba" if alpha else "rgb24", src_colorspace=matrix, dst_colorspace="itu601")
                    array = pixels.to_ndarray()
                    # The display matrix turns in multiples of 90 degrees, counter-clockwise.
                    pictures[decoded] = np.rot90(array, round(frame.rotation / 90))
                decoded += 1
            if decoded == count:
                break
            count = decoded
    except (FFmpegError, OSError) as error:
        raise InputError(f"{path}: not a readable video, it is damaged or of another kind ({_one_line(error)})") from None
    return _stack([pictures[i] for i in picks]), count, float(rate) if rate else None


def _decode(path: Path) -> Iterator[Any]:
    """The frames of a film's first video stream. VP8 and VP9 keep their alpha where only libvpx finds it."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        library = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
        has_alpha = {key.lower(): value for key, value in stream.metadata.items()}.get("alpha_mode") == "1"
        if has_alpha and library in av.codecs_available:
            decoder: Any = av.CodecContext.create(library, "r")
            for packet in container.demux(stream):
                yield from decoder.decode(packet if packet.size else None)
        else:
            stream.thread_type = "AUTO"
            yield from container.decode(stream)


def _pixels(image: Any) -> np.ndarray:
    """uint8 RGB or RGBA of a Pillow image, upright."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    alpha = "A" in image.getbands() or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if alpha else "RGB"))


def _stack(pictures: list[np.ndarray]) -> np.ndarray:
    """One array; opaque alpha is added to pictures without any where others have it."""
    channels = max(p.shape[-1] for p in pictures)
    out = np.full((len(pictures), *pictures[0].shape[:2], channels), 255, np.uint8)
    for target, picture in zip(out, pictures):
        target[..., : picture.shape[-1]] = picture
    return out


def _natural(path: Path) -> list[Any]:
    """Sort key that counts: frame 2 before frame 10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in re.split(r"(\d+)", path.name) if part]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _unit(tensor: Tensor) -> Tensor:
    """float32 in [0, 1] from uint8 or float."""
    return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()


def _ranges(numbers: list[int]) -> str:
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
    rgba[:, y0 - y : y1 - y, x0 - x : x1 - x, :3] = _unit(colors[:, y0:y1, x0:x1])
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
