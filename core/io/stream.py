"""The play stream: a moving scene packed for the player, its first frame first.

An ``.a4d`` file is 7 bytes of magic and one of version, the header's length (uint32), a JSON header, then blocks without gaps.
Version 2, which is written where there are pictures of the driving video, has these first, so that the video plays before there
are Gaussians; then comes, and in version 1 first, what never changes, and one block a frame in order. (Version 1 with pictures
has them behind the frames.) All numbers are little-endian. A block is a few planes of 16- or 32-bit words, N times so many
words each:

====================  =====================================================================================================
static                ``shape`` 4 x 32: log scales and opacity (16 bit each), colour 11 + 11 + 10, ranges of change 4 x 8
frame, pose           4 x 16: position in the clip's box, the low half of the rotation
frame, extra          1 x 16: the high half of a 32-bit rotation (2 + 3 x 10), where only positions and rotations change;
                      else 1 x 32: the rest of a 26-bit rotation (2 + 3 x 8), log scales 3 x 5 and opacity 7 within the
                      Gaussian's own range of change
frame, colour         1 x 32: 11 + 11 + 10, only where colours change
====================  =====================================================================================================

Colours that depend on the view, where they do not change over time, are one more block behind all others: 3, 8 or 15 words of
32 bits a Gaussian, a harmonic each, 10 bits a channel of [-reach, reach]; the constant part is then not cut off at 0 before.

So a frame takes 10 bytes a Gaussian, 12 where scales or opacities change, 16 where colours change too. Frames after the first
are stored as differences to the frame before (word by word, modulo the word's size); a block's bytes are sorted by significance
(all first bytes of the records, then all second ones, ...) and deflated where that is smaller. Rotations are "smallest three".
"""

from __future__ import annotations

import io
import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..cameras import to_camera_info
from ..files import InputError, atomic_path
from ..gaussians import SH_C0, Gaussians
from ..scene.scene import Scene4D, frame_times
from ..scene.views import FrameProgress, placement, scene_cameras

log = logging.getLogger(__name__)

MAGIC = b"A4DPLAY"
VERSIONS = (1, 2)
MAX_HEADER = 1 << 22  # bytes
MAX_RECORDS = 1 << 26  # Gaussians times frames
#: Log scales beyond are as good as flat or endless; some files hold infinities.
LOG_SCALE_LIMIT = 16.0
#: Changes below are left out: half a step of the static opacities would still show them.
STILL_SCALE, STILL_OPACITY, STILL_COLOR = 1e-4, 1e-4, 1e-3
_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
_COLOR_STEPS = np.array([2047, 2047, 1023])
#: Numbers of harmonics above degree 0.
_WAVES = (3, 8, 15)
_BATCH = 1 << 19  # records evaluated at once
_JPEG_QUALITY = 85

Plane = tuple[str, int, int]  # name, words a record, bits a word
STATIC: tuple[Plane, ...] = (("shape", 4, 32),)


@dataclass(frozen=True)
class PlayStream:
    """A play stream read back.

    Args:
        header: the JSON header; ``errors`` in it are the largest ones measured when it was written.
        frames: the object at each frame, as far as the stream's precision goes.
        pictures: encoded pictures of the driving video, one a frame or none.
    """

    header: dict[str, Any]
    frames: list[Gaussians]
    pictures: list[bytes]


@dataclass(frozen=True)
class _Ranges:
    """What the clip spans: over all, and for each Gaussian its own lows and highs."""

    low: np.ndarray  # (3,) world units
    high: np.ndarray  # (3,)
    scales: tuple[np.ndarray, np.ndarray]  # (N, 3) natural logarithms
    opacities: tuple[np.ndarray, np.ndarray]  # (N,)
    colors: tuple[np.ndarray, np.ndarray]  # (N, 3)


def write_stream(
    target: str | os.PathLike[str] | BinaryIO,
    scene: Scene4D,
    frames: int | None = None,
    *,
    film: Tensor | None = None,  # (T, H, W, 3) or straight (T, H, W, 4)
    progress: FrameProgress | None = None,
) -> dict[str, Any]:
    """Write a scene for the player.

    Args:
        target: a path, or a binary file.
        frames: resamples the clip over its duration; the clip's own number where None.
        film: pictures of the driving video, shown in step with the object: any number, spread over the clip.
        progress: called with frames done and their number; it may raise to interrupt.

    Returns:
        The header, with the measured errors: ``position`` in world units, ``rotation`` in degrees, ``log_scale``, ``opacity``,
        ``color``.

    Raises:
        InputError: for a scene that holds a NaN or is too large for a stream.
    """
    count, total = len(scene.gaussians), scene.frames if frames is None else frames
    if total < 1:
        raise InputError(f"frames {total}: a play stream needs at least one")
    if not 0 < count * total <= MAX_RECORDS:
        raise InputError(f"scene: {count} Gaussians x {total} frames do not fit a play stream, prune it or take fewer frames")
    waves = _waves(scene)
    taus = frame_times(total, scene.loop)
    coder = _Coder(_measure(scene, taus, waves is not None), waves)
    statics = _pack(coder.statics(), STATIC)
    blocks: list[bytes] = []
    errors: dict[str, float] = {}
    before: list[np.ndarray] | None = None
    for index, frame in enumerate(_evaluated(scene, taus)):
        planes = coder.encode(frame)
        for key, value in coder.errors(frame, planes).items():
            errors[key] = max(errors.get(key, 0.0), value)
        blocks.append(_pack(planes if before is None else [a - b for a, b in zip(planes, before)], coder.planes))
        before = planes
        if progress is not None:
            progress(index + 1, total)
    pictures, kind = ([], None) if film is None else _pictures(film, frame_times(total, scene.loop), scene.loop)

    places, offset = [], 0
    behind = [] if waves is None else [_pack([coder.wave_words()], coder.wave_layout)]
    for block in (*pictures, statics, *blocks, *behind):
        places.append([offset, len(block)])
        offset += len(block)
    films, places = places[: len(pictures)], places[len(pictures) :]
    version = VERSIONS[bool(pictures)]
    scale, center = placement(scene)
    header = {
        "format": "anchor4d-play",
        "version": version,
        "count": count,
        "frames": total,
        "fps": scene.fps * total / scene.frames,
        "loop": scene.loop,
        "continuous": scene.field is None or scene.field.continuous,
        "camera": to_camera_info(scene_cameras(scene)),
        "front": None if scene.front is None else asdict(scene.front),
        "placement": {"scale": scale, "center": center.tolist()},
        **coder.header(),
        "errors": {key: float(f"{value:.3g}") for key, value in errors.items()},
        "statics": places[0],
        "blocks": places[1 : total + 1],
        "pictures": films,
        "picture_type": kind,
        "bytes": offset,
    }
    if behind:
        header["harmonics"] = {"coefficients": coder.wave_layout[0][1], "reach": coder.reach, "place": places[-1]}
    text = json.dumps(header, separators=(",", ":")).encode()
    parts = [MAGIC, struct.pack("<BI", version, len(text)), text, *pictures, statics, *blocks, *behind]
    if isinstance(target, (str, os.PathLike)):
        with atomic_path(target) as temporary, open(temporary, "wb") as file:
            file.writelines(parts)
    else:
        target.writelines(parts)
    return header


def read_stream(source: str | os.PathLike[str] | BinaryIO) -> PlayStream:
    """Read a play stream back, for tests and tools; the player's own reader is web/player/stream.mjs.

    Raises:
        InputError: for a missing, foreign, newer, truncated, damaged or oversized file.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _read(source, "play stream")
    if not Path(source).is_file():
        raise InputError(f"{source}: no such play stream, check the path")
    with open(source, "rb") as file:
        return _read(file, str(source))


def _read(file: BinaryIO, name: str) -> PlayStream:
    header = _header(file, name)
    start = file.tell()
    available = file.seek(0, io.SEEK_END) - start
    try:
        coder = _Coder.from_header(header)
        count, places = coder.count, [header["statics"], *header["blocks"], *header["pictures"]]
        if coder.waved:
            places.append(header["harmonics"]["place"])
        if any(o < 0 or n < 0 or o + n > available for o, n in places):
            raise InputError(f"{name}: cut short or damaged, export it again")

        def stored(place: Sequence[int]) -> bytes:
            file.seek(start + place[0])
            return file.read(place[1])

        coder.restore(_unpack(stored(header["statics"]), count, STATIC))
        if coder.waved:
            coder.restore_waves(_unpack(stored(header["harmonics"]["place"]), count, coder.wave_layout)[0])
        frames: list[Gaussians] = []
        before: list[np.ndarray] | None = None
        for place in header["blocks"]:
            planes = _unpack(stored(place), count, coder.planes)
            before = planes if before is None else [a + b for a, b in zip(planes, before)]
            frames.append(coder.decode(before))
        return PlayStream(header, frames, [stored(place) for place in header["pictures"]])
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: a damaged play stream ({error}), export it again") from None


def _header(file: BinaryIO, name: str) -> dict[str, Any]:
    """The checked JSON header; the file stands at the first block after it."""
    head = file.read(12)
    if len(head) < 12 or head[:7] != MAGIC:
        raise InputError(f"{name}: not a play stream, choose an .a4d file")
    length = struct.unpack("<I", head[8:])[0]
    if head[7] not in VERSIONS:
        raise InputError(
            f"{name}: play stream version {head[7]}, this program reads {VERSIONS[0]} to {VERSIONS[-1]}; update Anchor4D"
        )
    if length > MAX_HEADER:
        raise InputError(f"{name}: a header of {length} bytes, the file is damaged; export it again")
    try:
        header = json.loads(file.read(length))
        count, frames = header["count"], header["frames"]
        if not all(isinstance(n, int) and n > 0 for n in (count, frames)) or len(header["blocks"]) != frames:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{name}: the play stream's header is damaged, export it again") from None
    if count * frames > MAX_RECORDS:
        raise InputError(f"{name}: {count} Gaussians x {frames} frames are more than a play stream may hold ({MAX_RECORDS})")
    return header


class _Coder:
    """Records of one clip: packing, unpacking, and what the header says of them."""

    #: Harmonics above degree 0, (N, K - 1, 3), their number, and the greatest value that their words stand for.
    waves: Tensor | None = None
    waved: int = 0
    reach: float = 1.0

    def __init__(self, ranges: _Ranges, waves: Tensor | None = None) -> None:
        if waves is not None:
            self.waves, self.waved, self.reach = waves, waves.shape[1], max(float(waves.abs().max()), 1e-6)
        self.count = len(ranges.opacities[0])
        self.low = ranges.low
        self.step = np.maximum(ranges.high - ranges.low, 1e-9) / 65535
        self.changes_shape = bool(
            ((ranges.scales[1] - ranges.scales[0]) > STILL_SCALE).any()
            or ((ranges.opacities[1] - ranges.opacities[0]) > STILL_OPACITY).any()
        )
        self.changes_color = bool(((ranges.colors[1] - ranges.colors[0]) > STILL_COLOR).any())
        low, high = ranges.scales
        self.scale_low = float(low.min())
        self.scale_step = max(float(high.max()) - self.scale_low, 1e-6) / 65535
        self.color_low = ranges.colors[0].min(0)
        self.color_step = np.maximum(ranges.colors[1].max(0) - self.color_low, 1e-6) / _COLOR_STEPS
        values = np.concatenate([(low - self.scale_low) / self.scale_step, ranges.opacities[0][:, None] * 65535], 1)
        reach = np.concatenate([(high - self.scale_low) / self.scale_step, ranges.opacities[1][:, None] * 65535], 1)
        if self.changes_shape:
            base = np.floor(values)
            needed = reach - base
            # The widest range in 255 steps; each Gaussian's own rounded up, so that it covers its values.
            self.range_step = np.array([needed[:, :3].max(), needed[:, 3].max()]) / 255
            spans = np.ceil(needed / np.maximum(np.repeat(self.range_step, [3, 1]), 1e-12) - 1e-9)
        else:
            base = np.round((values + reach) / 2)
            self.range_step, spans = np.zeros(2), np.zeros_like(base)
        self.base = np.clip(base, 0, 65535)  # (N, 4) in steps
        self.spans = np.clip(spans, 0, 255)  # (N, 4) in range steps
        self.color_base = self._color_words((ranges.colors[0] + ranges.colors[1]) / 2)

    @property
    def planes(self) -> tuple[Plane, ...]:
        """Planes of a frame's block."""
        extra = ("extra", 1, 32 if self.changes_shape else 16)
        return (("pose", 4, 16), extra, ("color", 1, 32))[: 3 if self.changes_color else 2]

    @property
    def wave_layout(self) -> tuple[Plane, ...]:
        return (("harmonics", self.waved, 32),)

    def wave_words(self) -> np.ndarray:  # (N, K - 1) uint32
        assert self.waves is not None
        q = np.clip(np.round(self.waves.numpy() / self.reach * 511) + 511, 0, 1022).astype(np.uint32)
        return q[..., 0] << 20 | q[..., 1] << 10 | q[..., 2]

    def restore_waves(self, words: np.ndarray) -> None:
        q = np.stack([words >> 20 & 1023, words >> 10 & 1023, words & 1023], -1).astype(np.float64)
        self.waves = torch.from_numpy((q - 511) / 511 * self.reach).float()

    def header(self) -> dict[str, Any]:
        return {
            "box": {"low": self.low.tolist(), "high": (self.low + self.step * 65535).tolist()},
            "scales": {"low": self.scale_low, "step": self.scale_step},
            "ranges": {"scale": float(self.range_step[0] * self.scale_step), "opacity": float(self.range_step[1] / 65535)},
            "colors": {"low": self.color_low.tolist(), "step": self.color_step.tolist()},
            "layout": [list(plane) for plane in self.planes],
        }

    @staticmethod
    def from_header(header: dict[str, Any]) -> _Coder:
        coder = object.__new__(_Coder)
        coder.count = header["count"]
        names = [tuple(plane) for plane in header["layout"]]
        coder.changes_shape, coder.changes_color = names[1][2] == 32, len(names) == 3
        if names != list(coder.planes):
            raise ValueError("unknown layout")
        coder.low = np.array(header["box"]["low"], np.float64)
        coder.step = (np.array(header["box"]["high"], np.float64) - coder.low) / 65535
        coder.scale_low, coder.scale_step = float(header["scales"]["low"]), float(header["scales"]["step"])
        coder.color_low, coder.color_step = (np.array(header["colors"][key], np.float64) for key in ("low", "step"))
        if (waves := header.get("harmonics")) is not None:
            coder.waved, coder.reach = waves["coefficients"], float(waves["reach"])
            if coder.waved not in _WAVES or coder.count * coder.waved > MAX_RECORDS or not 0 < coder.reach < 1e6:
                raise ValueError("harmonics that are none")
        ranges = header["ranges"]
        coder.range_step = np.array([float(ranges["scale"]) / coder.scale_step, float(ranges["opacity"]) * 65535])
        numbers = (coder.low, coder.step, coder.color_low, coder.color_step)
        if any(x.shape != (3,) for x in numbers) or not np.isfinite([*numbers, [coder.scale_low, *coder.range_step]]).all():
            raise ValueError("box, colours or scales that are no numbers")
        if max(np.abs(x).max() for x in numbers) * 65535 > 3e38 or abs(coder.scale_low) + 65535 * abs(coder.scale_step) > 1e30:
            raise ValueError("a box, colours or scales beyond what can be computed with")
        return coder

    def statics(self) -> list[np.ndarray]:
        base, spans = self.base.astype(np.uint32), self.spans.astype(np.uint32)
        words = [
            base[:, 0] | base[:, 1] << 16,
            base[:, 2] | base[:, 3] << 16,
            self.color_base,
            spans[:, 0] | spans[:, 1] << 8 | spans[:, 2] << 16 | spans[:, 3] << 24,
        ]
        return [np.stack(words, 1)]

    def restore(self, planes: list[np.ndarray]) -> None:
        a, b, self.color_base, d = planes[0].T
        self.base = np.stack([a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16], 1).astype(np.float64)
        self.spans = np.stack([d & 0xFF, d >> 8 & 0xFF, d >> 16 & 0xFF, d >> 24], 1).astype(np.float64)

    def encode(self, frame: Gaussians) -> list[np.ndarray]:
        """Planes of one frame (N, ...)."""
        position = np.clip(np.round((frame.means.numpy() - self.low) / self.step), 0, 65535).astype(np.uint16)
        rotation = _pack_rotation(frame.quats.numpy(), 8 if self.changes_shape else 10)
        extra = (rotation >> 16).astype(np.uint16)
        if self.changes_shape:
            wanted = self._steps(frame) - self.base
            width = self.spans * np.repeat(self.range_step, [3, 1])
            levels = np.array([31, 31, 31, 127])
            part = np.clip(np.round(np.divide(wanted * levels, width, out=np.zeros_like(width), where=width > 0)), 0, levels)
            k = part.astype(np.uint32)
            extra = rotation >> 16 | k[:, 0] << 10 | k[:, 1] << 15 | k[:, 2] << 20 | k[:, 3] << 25
        pose = np.concatenate([position, (rotation & 0xFFFF).astype(np.uint16)[:, None]], 1)
        colors = [self._color_words(_colors(frame, bool(self.waved)).numpy())[:, None]] if self.changes_color else []
        return [pose, extra[:, None], *colors]

    def decode(self, planes: list[np.ndarray]) -> Gaussians:
        """The Gaussians (N, ...) of one frame."""
        pose, extra = planes[0], planes[1][:, 0].astype(np.uint32)
        steps = self.base
        if self.changes_shape:
            part = np.stack([extra >> 10 & 31, extra >> 15 & 31, extra >> 20 & 31, extra >> 25], 1) / [31, 31, 31, 127]
            steps = steps + part * self.spans * np.repeat(self.range_step, [3, 1])
            extra = extra & 0x3FF
        words = planes[2][:, 0] if self.changes_color else self.color_base
        color = np.stack([words >> 21, words >> 10 & 2047, words & 1023], 1) * self.color_step + self.color_low
        opacity = torch.from_numpy(steps[:, 3] / 65535).clamp(1e-7, 1 - 1e-7)
        sh = torch.from_numpy((color - 0.5) / SH_C0).float()[:, None]
        return Gaussians(
            means=torch.from_numpy(self.low + pose[:, :3] * self.step).float(),
            quats=torch.from_numpy(_unpack_rotation(pose[:, 3] | extra << 16, 8 if self.changes_shape else 10)).float(),
            log_scales=torch.from_numpy(self.scale_low + steps[:, :3] * self.scale_step).float(),
            opacity_logits=opacity.logit().float(),
            sh=sh if self.waves is None else torch.cat([sh, self.waves], 1),
        )

    def errors(self, frame: Gaussians, planes: list[np.ndarray]) -> dict[str, float]:
        """Largest errors of one frame: world units, degrees, natural logarithms, fractions."""
        found = self.decode(planes)
        quats = torch.nn.functional.normalize(frame.quats.double(), dim=-1)
        # The sine of half the angle from the difference: the cosine is too close to 1 for small ones.
        off = torch.minimum((quats - found.quats).norm(dim=-1), (quats + found.quats).norm(dim=-1))
        return {
            "position": float((found.means - frame.means).abs().max()),
            "rotation": float(torch.rad2deg(4 * (off / 2).clamp(max=1).asin()).max()),
            "log_scale": float((found.log_scales - _log_scales(frame)).abs().max()),
            "opacity": float((found.opacities - frame.opacities).abs().max()),
            "color": float((found.colors - _colors(frame, bool(self.waved))).abs().max()),
        }

    def _steps(self, frame: Gaussians) -> np.ndarray:  # (N, 4) static units
        scales = (_log_scales(frame).numpy() - self.scale_low) / self.scale_step
        return np.concatenate([scales, frame.opacities.numpy()[:, None] * 65535], 1)

    def _color_words(self, colors: np.ndarray) -> np.ndarray:  # (N, 3) -> (N,) uint32
        q = np.clip(np.round((colors - self.color_low) / self.color_step), 0, _COLOR_STEPS).astype(np.uint32)
        return q[:, 0] << 21 | q[:, 1] << 10 | q[:, 2]


def _log_scales(gaussians: Gaussians) -> Tensor:
    return gaussians.log_scales.clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT)


def _colors(gaussians: Gaussians, waved: bool) -> Tensor:
    """As the rasteriser draws them: not below 0, above 1 possible. With harmonics it cuts off only what all give together."""
    return gaussians.colors if waved else gaussians.colors.clamp_min(0)


def _waves(scene: Scene4D) -> Tensor | None:  # (N, K - 1, 3)
    """Harmonics of degree 1 to 3 that hold for the whole clip; None where there are none."""
    waves = scene.gaussians.sh.detach()[:, 1:16].to("cpu", torch.float32)
    if not waves.shape[1] or not bool(waves.any()):
        return None
    if scene.field is not None and "sh" in scene.field.changes:
        log.info("view-dependent colours change over the clip: the play stream keeps their constant part")
        return None
    if len(waves) * waves.shape[1] > MAX_RECORDS:
        log.info("%d Gaussians of %d harmonics: the play stream keeps their constant part", len(waves), waves.shape[1])
        return None
    return waves


def _evaluated(scene: Scene4D, taus: Tensor) -> Iterator[Gaussians]:
    """The object at each time, on the CPU, a few frames at once."""
    size = max(1, _BATCH // len(scene.gaussians))
    for times in taus.split(size):
        with torch.no_grad():
            batch = scene.at(times.to(scene.gaussians.device)).to("cpu", torch.float32)
        for index in range(len(times)):
            yield batch.map(lambda t, i=index: t[i])


def _measure(scene: Scene4D, taus: Tensor, waved: bool) -> _Ranges:
    """First pass: what the clip spans."""
    spans: dict[str, tuple[Tensor, Tensor]] = {}
    for frame in _evaluated(scene, taus):
        for name, value in frame.tensors().items():
            if value.isnan().any() or (name in ("means", "quats", "sh") and not value.isfinite().all()):
                raise InputError(f"scene: holds NaN or infinite {name}, it cannot be played; fit or import it again")
        parts = {"means": frame.means, "scales": _log_scales(frame), "opacities": frame.opacities}
        parts["colors"] = _colors(frame, waved)
        for name, value in parts.items():
            low, high = spans.get(name, (value, value))
            spans[name] = torch.minimum(low, value), torch.maximum(high, value)
    low, high = spans["means"]
    other = {name: (a.double().numpy(), b.double().numpy()) for name, (a, b) in spans.items() if name != "means"}
    return _Ranges(low.amin(0).double().numpy(), high.amax(0).double().numpy(), **other)


def _pack_rotation(quats: np.ndarray, bits: int) -> np.ndarray:  # (N, 4) wxyz -> (N,) uint32
    """Which component is largest (2 bits), and the other three, each in ``bits`` bits with an exact zero."""
    quats = quats / np.maximum(np.linalg.norm(quats, axis=-1, keepdims=True), 1e-12)
    largest = np.abs(quats).argmax(-1)
    sign = np.where(np.take_along_axis(quats, largest[:, None], -1) < 0, -1.0, 1.0)
    middle = (1 << bits - 1) - 1
    others = np.take_along_axis(quats, _OTHERS[largest], -1) * sign * np.sqrt(2)
    q = np.clip(np.round(others * middle) + middle, 0, 2 * middle).astype(np.uint32)
    return largest.astype(np.uint32) << 3 * bits | q[:, 0] << 2 * bits | q[:, 1] << bits | q[:, 2]


def _unpack_rotation(words: np.ndarray, bits: int) -> np.ndarray:  # (N,) uint32 -> (N, 4) wxyz
    middle, mask = (1 << bits - 1) - 1, (1 << bits) - 1
    largest = (words >> 3 * bits & 3).astype(np.int64)
    others = np.stack([words >> 2 * bits & mask, words >> bits & mask, words & mask], 1).astype(np.float64)
    others = (others - middle) / middle / np.sqrt(2)
    quats = np.empty((len(words), 4))
    np.put_along_axis(quats, _OTHERS[largest], others, -1)
    np.put_along_axis(quats, largest[:, None], np.sqrt(np.maximum(1 - (others**2).sum(-1), 0))[:, None], -1)
    return quats


def _pack(planes: Sequence[np.ndarray], layout: Sequence[Plane]) -> bytes:
    """A block: bytes by significance, deflated where that is smaller."""
    raw = b"".join(
        np.ascontiguousarray(plane.astype(f"<u{bits // 8}")).view(np.uint8).reshape(len(plane), -1).T.tobytes()
        for plane, (_, _, bits) in zip(planes, layout)
    )
    packed = zlib.compress(raw, 6)
    return packed if len(packed) < len(raw) else raw


def _unpack(block: bytes, count: int, layout: Sequence[Plane]) -> list[np.ndarray]:
    """Planes (N, words) of a block; a block of full length was not deflated."""
    size = count * sum(words * bits // 8 for _, words, bits in layout)
    if len(block) != size:
        if len(block) * 1100 < size:  # deflate reaches 1032 : 1
            raise ValueError("a block too short for its frame")
        decoder = zlib.decompressobj()
        block = decoder.decompress(block, size + 1)
        if len(block) != size or not decoder.eof:
            raise ValueError("a block of a wrong length")
    planes, offset = [], 0
    for _, words, bits in layout:
        width = words * bits // 8
        part = np.frombuffer(block, np.uint8, count * width, offset).reshape(width, count).T
        planes.append(np.ascontiguousarray(part).view(f"<u{bits // 8}"))
        offset += count * width
    return planes


def _pictures(film: Tensor, taus: Tensor, loop: bool) -> tuple[list[bytes], str]:
    """The film's picture nearest to each time, encoded: JPEG, or WebP where they are see-through."""
    from PIL import Image

    from .film import to_uint8

    kind = "webp" if film.shape[-1] == 4 else "jpeg"
    encoded: dict[int, bytes] = {}
    times = frame_times(len(film), loop)
    shown = [int((times - tau).abs().argmin()) for tau in taus]
    for index in dict.fromkeys(shown):
        buffer = io.BytesIO()
        Image.fromarray(to_uint8(film[index])).save(buffer, kind, quality=_JPEG_QUALITY)
        encoded[index] = buffer.getvalue()
    return [encoded[index] for index in shown], f"image/{kind}"
