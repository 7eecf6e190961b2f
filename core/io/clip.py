"""Clips as their source has them: folders of pictures, animated pictures, films, tensors; frames are picked by their times."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..files import InputError
from ..pictures import open_picture, readable, upright_pixels, upright_size
from ..reading import VARIABLES, limits, regular_size

PICTURES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".tga"}
#: Pictures that may hold a whole animation, read with Pillow; every other single file goes to PyAV.
ANIMATIONS = PICTURES | {".gif", ".apng", ".avifs"}
#: What PyAV may open: containers that hold their streams themselves. Playlists and session descriptions name other files.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,flv,asf,ogg,gif,apng,mjpeg,nut,mxf,dv,"
    "yuv4mpegpipe"
)
#: Frames that a source may count.
MAX_FRAMES = 2**20
#: Frame rate of a folder of pictures or of tensors where none is given; that of Scene4D.
DEFAULT_FPS = 12.0
#: Milliseconds below which a GIF's frame is shown longer, and how long: what every browser does.
GIF_SHORTEST, GIF_USUAL = 20, 100
#: A film is entered at a keyframe where the first wanted frame comes later than this many.
FAR = 64

#: Called with what is done of a hundred; interrupts by raising.
Percent: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Clip:
    """A video as it was read: whole pictures, before any cutting out.

    Args:
        frames: straight colour, with alpha where the source has one; uint8, or float32 in [0, 1].
        fps: frames a second.
        masks: alpha in [0, 1] given beside the frames, 1 = object.
        source: what to call it in messages.
        tracks: pictures beside the frames that say where several objects are, uint8, see :mod:`.tracks`.
    """

    frames: Tensor  # (T, H, W, 3 | 4)
    fps: float = DEFAULT_FPS
    masks: Tensor | None = None  # (T, H, W)
    source: str = "video"
    tracks: tuple[Tensor, ...] = ()  # each (T, H, W, 3 | 4)


@dataclass(frozen=True)
class Part:
    """What is taken of a video: the seconds from ``start`` to ``end``, of these every N-th frame, of these ``frames``.

    Args:
        fps: frames a second of the source; its own where None, else :data:`DEFAULT_FPS`.
        frames: evenly spread over the rest, see :func:`pick_frames`; all where None.
        start, end: seconds from the first frame; to its end where None.
        every: 2 takes every second frame.

    """

    fps: float | None = None
    frames: int | None = None
    start: float = 0.0
    end: float | None = None
    every: int = 1

    def checked(self, source: str | os.PathLike[str]) -> Part:
        """The same, of a ``source`` to name.

        Raises:
            InputError: for a rate that is none, fewer than two frames, a step below 1, or an end that is not after the start.
        """
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise InputError(f"{source}: {self.fps} frames a second, choose a rate above 0")
        if self.frames is not None and self.frames < 2:
            raise InputError(f"{source}: {self.frames} frames asked for, a moving object needs at least 2")
        if not (math.isfinite(self.start) and self.start >= 0):
            raise InputError(f"{source}: start {self.start}, choose seconds from the beginning, 0 or more")
        if self.end is not None and not (math.isfinite(self.end) and self.end > self.start):
            raise InputError(f"{source}: end {self.end}, choose more seconds than the start has, {self.start:g}")
        if self.every < 1:
            raise InputError(f"{source}: every {self.every}, choose 1 for all frames, 2 for every second one")
        return self


@dataclass(frozen=True)
class Timeline:
    """When the frames of a source are seen, on an even grid.

    Args:
        ticks: at which tick each frame appears; it stays until the next does.
        total: ticks in all.
        rate: ticks a second, where the source has one.
    """

    ticks: np.ndarray  # (N,) ascending from 0
    total: int
    rate: float | None = None

    @classmethod
    def even(cls, count: int, rate: float | None = None) -> Timeline:
        return cls(np.arange(count), count, rate)

    @classmethod
    def of(cls, times: np.ndarray, last: float, nominal: float | None = None) -> Timeline:  # (N,) seconds, ascending
        """From the frames' times, the seconds that the last one stays, and the rate that the file states.

        Frames that are less than half a frame from an even beat are on it, one a tick. Others are put on the grid of the
        shortest usual distance, so that long ones are seen for several ticks.
        """
        count = len(times)
        times = times - times[0] if count else times
        if count < 2 or times[-1] <= 0:
            return cls.even(count, nominal)
        mean = times[-1] / (count - 1)
        steady = np.abs(times - mean * np.arange(count)).max() < mean / 2
        steps = np.diff(times)
        step = mean if steady else float(np.quantile(steps[steps > 0], 0.1, method="lower"))
        if nominal and abs(nominal * step - 1) < 0.02:
            step = 1 / nominal
        ticks = np.arange(count) if steady else np.round(times / step).astype(np.int64)
        return cls(ticks, int(ticks[-1]) + max(1, round(last / step)), 1 / step)


def pick_frames(count: int, frames: int | None) -> list[int]:
    """Which of ``count`` source frames a clip of ``frames`` frames shows.

    The clip is cut into ``frames`` equal spans of time and each shows the source frame at its beginning, floor(i count /
    frames): the frame rate times ``frames / count`` keeps the duration, and a clip that loops still does.
    """
    return list(range(count)) if frames is None else [i * count // frames for i in range(frames)]


def read_clip(
    path: str | os.PathLike[str],
    mask: Tensor | str | os.PathLike[str] | None = None,  # (T, H, W), or a path
    *,
    fps: float | None = None,
    frames: int | None = None,
    start: float = 0.0,
    end: float | None = None,
    every: int = 1,
    tracks: Sequence[str | os.PathLike[str]] = (),
    progress: Percent | None = None,
) -> Clip:
    """Read a folder of pictures (in natural order), an animated picture, or a film with its turn, its aspect and its alpha.

    At the time t the clip shows what the source shows then: frames that stay long are repeated.

    Args:
        mask: for each frame of the source, or one for all: a tensor, or a film, an animated picture, a folder or a picture,
            white (or opaque, where it has alpha) on the object.
        fps, frames, start, end, every: see :class:`Part`.
        tracks: films, folders or pictures as a mask's, whose pictures are kept as they are.
        progress: called often with the percentage done.

    Raises:
        InputError: as :func:`~.video.load_video`.
    """
    path, part = Path(path), Part(fps, frames, start, end, every).checked(path)
    source, chosen, rate = _reader(path), [], 0.0

    def choose(timeline: Timeline, width: int, height: int) -> list[int]:
        nonlocal rate, chosen
        chosen, rate = _picks(path, timeline, part, width, height)
        return chosen

    for beside in [mask, *tracks] if isinstance(mask, (str, os.PathLike)) else tracks:
        _reader(Path(beside))  # refused before the video is read
    tell = progress or silent
    half = 50 if tracks or isinstance(mask, (str, os.PathLike)) else 100
    pictures, count = source(path, choose, share(tell, 0, half))
    height, width = pictures.shape[1:3]
    if isinstance(mask, (str, os.PathLike)):
        masks = _read_mask(Path(mask), path, chosen, count, (width, height), share(tell, half, 100))
    else:
        masks = _picked_mask(mask, str(path), chosen, count, (width, height))
    beside = tuple(_read_beside(Path(track), path, chosen, count, (width, height), share(tell, half, 100)) for track in tracks)
    return Clip(torch.from_numpy(pictures), rate, masks, str(path), beside)


def read_tensors(
    images: Tensor,  # (T, H, W, 3 | 4)
    mask: Tensor | None = None,  # (T, H, W), (1, H, W) or (H, W)
    *,
    fps: float | None = None,
    frames: int | None = None,
    start: float = 0.0,
    end: float | None = None,
    every: int = 1,
    source: str = "image batch",
) -> Clip:
    """A clip from straight-colour frames in [0, 1] and masks, 1 = object; one mask serves every frame.

    Args:
        fps, frames, start, end, every: see :class:`Part`.

    Raises:
        InputError: for wrong shapes, fewer than two frames, or non-finite values.
    """
    part = Part(fps, frames, start, end, every).checked(source)
    if images.dim() != 4 or images.shape[-1] not in (3, 4):
        raise InputError(f"{source}: shape {tuple(images.shape)}, give frames as (frames, height, width, 3 or 4)")
    count, height, width = images.shape[:3]
    picks, rate = _picks(source, Timeline.even(count), part, width, height)
    picked = images[picks].detach().to("cpu", torch.float32)
    if not picked.isfinite().all():
        raise InputError(f"{source}: holds NaN or infinite values, check what made it")
    return Clip(picked.clamp(0, 1), rate, _picked_mask(mask, source, picks, count, (width, height)), source)


def read_picture(path: str | os.PathLike[str]) -> Clip:
    """One picture as a clip of one frame, upright; the first of an animated one.

    Raises:
        InputError: for a missing or unreadable file.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such picture, check the path")
    with readable(path), open_picture(path) as image:
        return Clip(torch.from_numpy(upright_pixels(image).copy())[None], source=str(path))


def _picks(source: str | Path, timeline: Timeline, part: Part, width: int, height: int) -> tuple[list[int], float]:
    """The source frames that a part of a video shows, and its frame rate, after the checks that every source shares."""
    if len(timeline.ticks) == 0:
        raise InputError(f"{source}: holds no frames, choose another video")
    if len(timeline.ticks) == 1:
        raise InputError(f"{source}: holds one frame, a moving object needs at least 2")
    rate = part.fps or timeline.rate or DEFAULT_FPS
    first = round(part.start * rate)
    after = timeline.total if part.end is None else min(timeline.total, round(part.end * rate))
    if first >= timeline.total:
        raise InputError(f"{source}: lasts {timeline.total / rate:.3g} seconds, start at {part.start:g} is past its end")
    span = range(first, after, part.every)
    if len(span) < 2:
        raise InputError(f"{source}: {len(span)} frames in the part that was asked for, a moving object needs at least 2")
    count = part.frames or len(span)
    budget = limits().video
    if count * width * height > budget:
        most = budget // (width * height)
        remedy = f"choose at most {most} frames" if most > 1 else "make the pictures smaller"
        raise InputError(
            f"{source}: {count} frames of {width}x{height} are too large to read at once, {remedy}, or raise "
            f"{VARIABLES['video'][0]}"
        )
    ticks = [span[i] for i in pick_frames(len(span), part.frames)]
    picks = np.searchsorted(timeline.ticks, ticks, side="right") - 1
    return picks.tolist(), float(rate / part.every * count / len(span))


def _picked_mask(mask: Tensor | None, source: str, picks: list[int], count: int, size: tuple[int, int]) -> Tensor | None:
    """The masks of the picked frames, (T, H, W), of one for each of the source's or one for all."""
    if mask is None:
        return None
    mask = mask.detach().to("cpu", torch.float32)
    mask = mask[None] if mask.dim() == 2 else mask
    width, height = size
    if mask.dim() != 3 or mask.shape[0] not in (1, count) or mask.shape[1:] != (height, width):
        raise InputError(
            f"{source}: the mask has shape {tuple(mask.shape)} where the frames need ({count}, {height}, {width}), "
            "give one mask a frame at the frames' size"
        )
    return mask.expand(count, -1, -1)[picks].nan_to_num().clamp(0, 1)


# Readers: each returns the chosen frames as uint8 (T, H, W, 3 | 4) and how many the source has. ``choose`` answers a timeline
# and the frames' size with the frames to return.

_Choose: TypeAlias = Callable[[Timeline, int, int], list[int]]


def _reader(path: Path) -> Callable[[Path, _Choose, Percent], tuple[np.ndarray, int]]:
    if path.is_dir():
        return _read_folder
    if not path.exists():
        raise InputError(f"{path}: no such video or folder of frames, check the path")
    regular_size(path, "video")
    return _read_animation if path.suffix.lower() in ANIMATIONS else _read_film


def _read_mask(
    path: Path, video: Path, chosen: list[int], count: int, size: tuple[int, int], progress: Percent
) -> Tensor:  # (T, H, W)
    """The masks of the chosen frames of a video, from a film or folder of as many frames, or from one picture."""
    pictures = _read_beside(path, video, chosen, count, size, progress)
    alpha = pictures[..., 3:]
    given = alpha[..., 0].float() if bool((alpha < 255).any()) else pictures[..., :3].float().mean(-1)
    return given / 255


def _read_beside(
    path: Path, video: Path, chosen: list[int], count: int, size: tuple[int, int], progress: Percent
) -> Tensor:  # (T, H, W, 3 | 4) uint8
    """Pictures beside the chosen frames of a video, from a film or folder of as many frames, or from one picture."""

    def choose(timeline: Timeline, width: int, height: int) -> list[int]:
        found = len(timeline.ticks)
        if found not in (1, count):
            raise InputError(f"{path}: {found} masks where {video.name} has {count} frames, give one a frame, or one for all")
        if width * height != size[0] * size[1]:
            raise InputError(
                f"{path}: masks of {width}x{height} where {video.name} is {size[0]}x{size[1]}, give them at the frames' size"
            )
        return [0] if found == 1 else chosen

    pictures = torch.from_numpy(_reader(path)(path, choose, progress)[0])
    if pictures.shape[1:3] != (size[1], size[0]):
        raise InputError(f"{path}: the masks lie on their side where {video.name} does not, give them at the frames' size")
    return pictures.expand(len(chosen), -1, -1, -1)


def _read_folder(path: Path, choose: _Choose, progress: Percent) -> tuple[np.ndarray, int]:
    names = sorted((p for p in path.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")), key=natural)
    if not names:
        raise InputError(f"{path}: no frames in this folder, put png, jpg or webp pictures into it")
    if len(names) > MAX_FRAMES:
        raise InputError(f"{path}: {len(names)} pictures, more than {MAX_FRAMES} are not read; make a folder of fewer")
    size = (0, 0)
    for index, name in enumerate(names):
        progress(10 * index // len(names), 100)
        with readable(name), open_picture(name) as image:
            found = upright_size(image)
        size = size if index else found
        if found != size:
            odd, first = "x".join(map(str, found)), "x".join(map(str, size))
            raise InputError(f"{name}: {odd} pixels where {names[0].name} has {first}, give all frames one size")
    picks, pictures = choose(Timeline.even(len(names)), *size), []
    for index in picks:
        progress(10 + 90 * len(pictures) // len(picks), 100)
        with readable(names[index]), open_picture(names[index]) as image:
            pictures.append(upright_pixels(image))
    return _stack(pictures), len(names)


def _read_animation(path: Path, choose: _Choose, progress: Percent) -> tuple[np.ndarray, int]:
    size, seconds, pictures, kept, budget = (0, 0), [], {}, True, 4 * limits().video
    for index, (picture, milliseconds) in enumerate(_animation_frames(path)):
        progress(min(50, index), 100)  # how many there are only the end shows
        size = size if index else picture.shape[1::-1]
        if picture.shape[1::-1] != size:
            odd, first = "x".join(map(str, picture.shape[1::-1])), "x".join(map(str, size))
            raise InputError(f"{path}: frame {index} has {odd} pixels where frame 0 has {first}, give all frames one size")
        _check_decoded(path, index + 1, *size)
        seconds.append(milliseconds / 1000)
        kept = kept and (index + 1) * picture.size <= budget
        pictures[index] = picture if kept else None
    count, last = len(seconds), seconds[-1]
    timed = sum(seconds) > 0
    picks = choose(
        Timeline.of(np.cumsum([0.0, *seconds[:-1]]), last) if timed else Timeline.even(count),
        *size,
    )
    if not kept:
        wanted = set(picks)
        for index, (picture, _) in enumerate(_animation_frames(path)):
            progress(50 + 50 * index // count, 100)
            pictures[index] = picture if index in wanted else None
    return _stack([pictures[i] for i in picks]), count


def _animation_frames(path: Path) -> Iterator[tuple[np.ndarray, float]]:
    """The frames that are there, whatever the header claims, with the milliseconds that each is seen."""
    with readable(path), open_picture(path) as image:
        # An animated PNG may begin with a picture that is none of its frames; a JPEG's other pictures are none either.
        index = 1 if getattr(image, "default_image", False) else 0
        while True:
            try:
                image.seek(index)
            except EOFError:
                if index == 0:
                    raise
                return
            picture = upright_pixels(image)
            milliseconds = float(image.info.get("duration") or 0)
            if image.format == "GIF" and milliseconds < GIF_SHORTEST:
                milliseconds = GIF_USUAL
            yield picture, milliseconds
            if image.format in ("JPEG", "MPO"):
                return
            index += 1


def _check_decoded(path: Path, count: int, width: int, height: int) -> None:
    most = min(MAX_FRAMES, limits().decoded // (width * height))
    if count > most:
        raise InputError(
            f"{path}: more than {most} frames of {width}x{height} to go through, cut the part you need out of it, make it "
            f"smaller, or raise {VARIABLES['decoded'][0]}"
        )


def _read_film(path: Path, choose: _Choose, progress: Percent) -> tuple[np.ndarray, int]:
    with _film(path) as (container, stream):
        size = _display_size(path, stream)
        nominal = stream.guessed_rate or stream.average_rate
        nominal = float(nominal) if nominal else None
        stamps, last = _packet_stamps(path, container, stream, share(progress, 0, 10))
        unit = float(stream.time_base or 1)
    if len(stamps) > 1:  # one packet may hold several frames
        picks = choose(Timeline.of(np.array(stamps) * unit, last * unit, nominal), *size)
        first, final = min(picks), max(picks)
        wanted, rest = [stamps[i] for i in picks], share(progress, 10, 100)
        for enter in [True, False] if first > FAR else [False]:
            length = final + 1 - (first if enter else 0)
            _check_decoded(path, length, *size)
            pictures = _decoded(path, wanted, size, rest, length=length, enter=enter)
            if pictures is not None:
                return _stack(pictures), len(stamps)
    # The packets' times are not the frames': in raw streams there are none, and some packets hold no frame or half a one.
    shown: list[int | None] = []
    for stamp in _frame_stamps(path):
        progress(10 + min(40, len(shown) // 8), 100)
        shown.append(stamp)
        _check_decoded(path, len(shown), *size)
    timed = [stamp for stamp in shown if stamp is not None]
    if len(timed) == len(shown) > 1 and timed == sorted(set(timed)):
        timeline = Timeline.of(np.array(timed) * unit, (timed[-1] - timed[-2]) * unit, nominal)
    else:
        timeline = Timeline.even(len(shown), nominal)
    picks = choose(timeline, *size)
    pictures = _decoded(path, picks, size, share(progress, 50, 100), length=len(shown), numbered=True)
    if pictures is None:
        raise InputError(f"{path}: not a readable video, it differs from one reading to the next; convert it to mp4")
    return _stack(pictures), len(shown)


@contextmanager
def _film(path: Path) -> Iterator[tuple[Any, Any]]:
    """A film's container and its main video stream; whatever a decoder throws becomes one line that names the file."""
    import av
    from av.error import FFmpegError

    # Of the container alone: PyAV 14.2 crashes on streams that are found late (FLV) where it gives options to each.
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    # PyAV 19 keeps what is no text in metadata by itself, and no longer takes the argument.
    more: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
    try:
        with av.open(f"file:{path}", container_options=options, **more) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise InputError(f"{path}: holds no pictures, choose a video")
            decoder: Any = stream.codec_context
            if decoder is None or not (decoder.width and decoder.height):
                raise InputError(f"{path}: its pictures are of a kind that cannot be decoded here, convert it to mp4")
            # A header may say little and the stream then bring pictures of gigabytes.
            decoder.options = {"max_pixels": str(limits().video // 2)}
            yield container, stream
    except (FFmpegError, OSError) as error:
        raise InputError(f"{path}: not a readable video, it is damaged or of another kind ({_one_line(error)})") from None
    except (MemoryError, OverflowError):
        raise InputError(f"{path}: its frames are too large to read, make them smaller") from None


def _display_size(path: Path, stream: Any) -> tuple[int, int]:
    """Width and height with square pixels, before any turn: the side that the aspect of the pixels stretches grows."""
    width, height = stream.codec_context.width, stream.codec_context.height
    aspect = stream.sample_aspect_ratio
    if aspect and aspect > 0 and aspect != 1:
        if aspect > 1:
            width = round(width * aspect)
        else:
            height = round(height / aspect)
    if width * height > limits().video // 2:
        raise InputError(f"{path}: frames of {width}x{height} are too large to read, make them smaller")
    return width, height


def _packet_stamps(path: Path, container: Any, stream: Any, progress: Percent) -> tuple[list[int], int]:
    """The times of a film's frames by its packets, ascending, and how long the last stays, in the stream's time base.

    None are returned where packets have no times, or several the same.
    """
    stamps, after = [], 0
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        if packet.pts is None or len(stamps) >= MAX_FRAMES:
            return [], 0
        if packet.pos is not None and container.size:
            progress(min(100, 100 * packet.pos // container.size), 100)
        stamps.append(packet.pts)
        after = max(after, packet.pts + (packet.duration or 0)) if len(stamps) > 1 else packet.pts + (packet.duration or 0)
    stamps.sort()
    if len(set(stamps)) < len(stamps) or not stamps:
        return [], 0
    if stream.duration:  # where frames are stored out of order, durations are those of packets
        after = (stream.start_time if stream.start_time is not None else stamps[0]) + stream.duration
    return stamps, after - stamps[-1]


def _decoded(
    path: Path,
    wanted: list[int],
    size: tuple[int, int],
    progress: Percent,
    *,
    length: int,
    numbered: bool = False,
    enter: bool = False,
) -> list[np.ndarray] | None:
    """The frames of the wanted times, or numbers, upright and with square pixels; None where one does not come.

    Args:
        length: frames to go through, for the progress.
        enter: begin at the keyframe before the first.
    """
    found: dict[int, np.ndarray] = {}
    asked = set(wanted)
    for index, (name, picture) in enumerate(_pictures(path, asked, size, numbered, min(wanted) if enter else None)):
        progress(min(99, 100 * index // length), 100)
        if picture is None:
            continue
        found[name] = picture
        if len(found) == len(asked):
            return [found[name] for name in wanted]
    return None


def _pictures(
    path: Path, asked: set[int], size: tuple[int, int], numbered: bool, enter: int | None
) -> Iterator[tuple[int, np.ndarray | None]]:
    """Every frame's time, or number, with its picture where it is asked for."""
    with _film(path) as (container, stream):
        stored = stream.codec_context.width, stream.codec_context.height
        if enter is not None:
            container.seek(enter, stream=stream)
        for index, frame in enumerate(_frames(container, stream)):
            name = index if numbered else frame.pts
            if name in asked and (frame.width, frame.height) != stored:
                raise InputError(
                    f"{path}: a frame of {frame.width}x{frame.height} where the film is {stored[0]}x{stored[1]}, "
                    "give all frames one size"
                )
            yield name, _upright(frame, size) if name in asked else None


def _frame_stamps(path: Path) -> Iterator[int | None]:
    with _film(path) as (container, stream):
        for frame in _frames(container, stream):
            yield frame.pts


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """The frames of a stream. VP8 and VP9 keep their alpha where only libvpx finds it."""
    import av

    library = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    has_alpha = {key.lower(): value for key, value in stream.metadata.items()}.get("alpha_mode") == "1"
    if has_alpha and library in av.codecs_available:
        decoder: Any = av.CodecContext.create(library, "r")
        decoder.options = stream.codec_context.options
        for packet in container.demux(stream):
            yield from decoder.decode(packet if packet.size else None)
    else:
        stream.thread_type = "AUTO"
        yield from container.decode(stream)


def _upright(frame: Any, size: tuple[int, int]) -> np.ndarray:  # (H, W, 3 | 4) uint8
    """A frame's pixels, made square and turned as its display matrix says."""
    from PIL import Image

    alpha = any(component.is_alpha for component in frame.format.components)
    # 1 is BT.709. Older PyAV heeds it only where the target, meaningless for RGB, is another.
    matrix = "itu709" if frame.colorspace == 1 else None
    pixels = frame.reformat(format="rgba" if alpha else "rgb24", src_colorspace=matrix, dst_colorspace="itu601")
    array = pixels.to_ndarray()
    if array.shape[1::-1] != size:
        array = np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BICUBIC))
    side = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return array
    # ((a, b, u), (c, d, v), (x, y, w)): the point (x, y) of the picture is shown at (a x + c y, b x + d y), y down.
    a, b, _, c, d = np.frombuffer(bytes(side), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        array, a, d = array.swapaxes(0, 1), c, b
    return array[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _stack(pictures: list[np.ndarray]) -> np.ndarray:
    """One array; opaque alpha is added to pictures without any where others have it."""
    channels = max(p.shape[-1] for p in pictures)
    out = np.full((len(pictures), *pictures[0].shape[:2], channels), 255, np.uint8)
    for target, picture in zip(out, pictures):
        target[..., : picture.shape[-1]] = picture
    return out


def natural(path: Path) -> list[Any]:
    """Sort key that counts: frame 2 before frame 10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts if part]


def share(progress: Percent, low: int, high: int) -> Percent:
    """A share of a progress as a progress of its own."""
    return lambda done, of: progress(low + (high - low) * done // of, 100)


def silent(done: int, of: int) -> None:
    """Progress that nobody follows."""


def _one_line(error: Any) -> str:
    return " ".join(str(error.strerror or error).split()) or type(error).__name__
