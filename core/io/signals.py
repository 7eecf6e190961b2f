"""Signals from files: depth maps as pictures, films or arrays, point tracks as arrays, films of other sides."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import InputError
from ..identity import file_identity, fingerprint
from ..pictures import open_picture, readable
from ..reading import VARIABLES, limits, read_bytes
from ..signals import FLOWS, DepthMaps, PointTracks, SideView, Signals
from ..video import DrivingVideo
from .archives import files_in
from .clip import PICTURES, Part, natural, pick_frames, read_clip
from .video import Reading, load_video

#: Names of the arrays in a file of tracks; the host's own come last.
POINTS, VISIBLE = ("points", "tracks", "track_path"), ("visible", "visibility", "track_visibility")


@dataclass(frozen=True)
class SignalFiles:
    """Signals as the command line names them.

    Args:
        depth: folder of pictures, film, or .npy or .npz of (T, H, W).
        depth_kind, depth_span: see :class:`~..signals.DepthMaps`.
        tracks: .npz, see :func:`read_tracks`.
        flow: "", or of :data:`~..signals.FLOWS`.
        views: "AZIMUTH=FILM", "AZIMUTH,ELEVATION=FILM", or with a ~ before the = to search near there.
    """

    depth: str | os.PathLike[str] | None = None
    depth_kind: str = "auto"
    depth_span: str = "clip"
    tracks: str | os.PathLike[str] | None = None
    flow: str = ""
    views: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.depth is not None or self.tracks is not None or self.flow or self.views)

    def check(self) -> None:
        """Refuse what is missing before anything is read.

        Raises:
            InputError: naming it.
        """
        for name, path in (
            ("depth", self.depth),
            ("tracks", self.tracks),
            *(("view", view_of(text)[3]) for text in self.views),
        ):
            if path is not None and not Path(path).exists():
                raise InputError(f"--{name} {path}: no such file or folder, check the path")
        if self.flow and self.flow not in FLOWS:
            raise InputError(f"--flow {self.flow}: unknown, choose one of {', '.join(FLOWS)}")


def read_signals(
    files: SignalFiles,
    video: DrivingVideo,
    *,
    fps: float | None = None,
    frames: int | None = None,
    reading: Reading = Reading(),
) -> Signals:
    """What the files hold, of the frames that the driving video has.

    Args:
        video: as it was read.
        fps, frames, reading: how; depth and other sides are read alike, their masks aside.

    Raises:
        InputError: for what is missing, unreadable, or does not fit the video.
    """
    files.check()
    part = Part(fps, frames, reading.start, reading.end, reading.every)
    depth = None
    if files.depth is not None:
        depth = read_depth(files.depth, len(video), part, kind=files.depth_kind, span=files.depth_span)
    tracks = () if files.tracks is None else (read_tracks(files.tracks),)
    views = tuple(read_view(text, part, video.resolution, reading.background) for text in files.views)
    return Signals(depth, tracks, "dis" if files.flow == "dis" else "", views)


def read_depth(
    path: str | os.PathLike[str], count: int, part: Part = Part(), *, kind: str = "auto", span: str = "clip"
) -> DepthMaps:
    """Depth maps of a clip of ``count`` frames, of as many pictures or of those of the same part of the film.

    Pictures keep 16 bits and floating point where they have them; of colours the mean counts.

    Raises:
        InputError: for a missing or unreadable file, or another number of frames.
    """
    path = Path(path)
    if path.is_dir():
        names = sorted((p for p in path.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")), key=natural)
        if not names:
            raise InputError(f"{path}: no depth maps in this folder, put one picture for each frame there")
        values = _pictures([names[i] for i in _picks(path, len(names), count, part)])
    elif path.suffix.lower() in (".npy", ".npz"):
        arrays = read_arrays(path)
        if len(arrays) != 1 and "depth" not in arrays:
            raise InputError(f"{path}: holds {', '.join(arrays)}, name the depth maps 'depth'")
        array = torch.from_numpy(arrays["depth"] if "depth" in arrays else next(iter(arrays.values())))
        array = array.squeeze(-1) if array.dim() == 4 and array.shape[-1] == 1 else array
        if array.dim() != 3:
            raise InputError(f"{path}: shape {tuple(array.shape)}, give depth maps as (frames, height, width)")
        values = array[_picks(path, len(array), count, part)].float()
    else:
        whole = read_clip(path, fps=part.fps, frames=part.frames, start=part.start, end=part.end, every=part.every)
        values = whole.frames[..., :3].float().mean(-1) / 255
    return DepthMaps(values, kind, span, source=str(path), identity=fingerprint(file_identity(path), len(values), part))


def _picks(path: Path, there: int, count: int, part: Part) -> list[int]:
    """Which of a source's maps are those of the driving video's frames."""
    if there == count:
        return list(range(count))
    span = range(0, there, part.every)
    if part.start == 0 and part.end is None and len(span) >= count and part.frames in (None, count):
        picked = [span[i] for i in pick_frames(len(span), part.frames)]
        if len(picked) == count:
            return picked
    raise InputError(f"{path}: {there} depth maps where the video has {count} frames, give one a frame")


def _pictures(names: list[Path]) -> Tensor:  # (T, H, W)
    maps: list[np.ndarray] = []
    for name in names:
        with readable(name), open_picture(name) as image:
            pixels = np.asarray(image if image.mode not in ("P", "1", "CMYK", "YCbCr") else image.convert("RGB"), np.float32)
        pixels = pixels if pixels.ndim == 2 else pixels[..., : 3 if pixels.shape[2] > 2 else 1].mean(-1)
        if maps and pixels.shape != maps[0].shape:
            raise InputError(
                f"{name}: {pixels.shape[1]}x{pixels.shape[0]} pixels where {names[0].name} has others, give one size"
            )
        if len(names) * pixels.size > limits().video:
            raise InputError(f"{name.parent}: too many pixels, make the depth maps smaller or raise {VARIABLES['video'][0]}")
        maps.append(pixels)
    return torch.from_numpy(np.stack(maps))


def read_tracks(path: str | os.PathLike[str]) -> PointTracks:
    """Point tracks of a .npz: ``points`` (T, N, 2), pixels of the driving video's picture, and ``visible`` (T, N), all where it
    is absent; also named as trackers and the host name them (:data:`POINTS`, :data:`VISIBLE`).

    Raises:
        InputError: for a missing, unreadable or foreign file.
    """
    arrays = read_arrays(path)
    points = next((arrays[name] for name in POINTS if name in arrays), None)
    if points is None:
        raise InputError(f"{path}: holds {', '.join(arrays) or 'nothing'}, give an array 'points' of (frames, points, 2)")
    seen = next((arrays[name] for name in VISIBLE if name in arrays), None)
    visible = torch.ones(points.shape[:2], dtype=torch.bool) if seen is None else torch.from_numpy(seen > 0.5)
    return PointTracks(torch.from_numpy(points.astype(np.float32)), visible, str(path), fingerprint(file_identity(path)))


def tracks_of(value: Mapping[str, Tensor], source: str = "tracks") -> PointTracks:
    """Point tracks of the host's TRACKS: ``track_path`` (T, N, 2) and ``track_visibility`` (T, N) or (T, 1)."""
    points = value["track_path"].detach().cpu().float().clone()
    visible = value["track_visibility"].detach().cpu().bool().clone()
    return PointTracks(points, visible.expand(points.shape[:2]) if visible.dim() == 2 else visible, source)


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The numeric arrays of a .npy or .npz; pickled objects are refused, and so is more than the memory budget.

    Raises:
        InputError: for a missing, unreadable or oversized file.
    """
    path, most = Path(path), limits().memory
    data = read_bytes(path, "file of arrays")
    too_large = InputError(f"{path}: unpacks to more than {most >> 20} MB, make it smaller or raise {VARIABLES['memory'][0]}")
    try:
        parts = {"": data}
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(BytesIO(data)) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > most:
                    raise too_large
                parts = {entry.filename: archive.read(entry) for entry in files_in(archive)}
        found = {name.removesuffix(".npy"): np.load(BytesIO(part), allow_pickle=False) for name, part in parts.items()}
    except InputError:
        raise
    except (
        ValueError,
        OSError,
        EOFError,
        KeyError,
        RuntimeError,
        NotImplementedError,
        zipfile.BadZipFile,
        MemoryError,
    ) as error:
        raise InputError(
            f"{path}: not a readable file of arrays ({' '.join(str(error).split())[:120]}); write it anew"
        ) from None
    for name, array in found.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            raise InputError(f"{path}: {name or 'the array'} holds no numbers; write numeric arrays alone")
    return found


def view_of(text: str) -> tuple[float, float | None, bool, str]:
    """Azimuth, elevation, whether to search near them, and file, of "90=side.mp4", "90,10=side.mp4" or "90~=side.mp4".

    Raises:
        InputError: for another form.
    """
    where, equals, path = text.partition("=")
    search = where.endswith("~")
    try:
        angles = [float(part) for part in where.removesuffix("~").split(",")]
    except ValueError:
        angles = []
    if not equals or not path or len(angles) not in (1, 2) or not all(math.isfinite(a) and abs(a) <= 360 for a in angles):
        raise InputError(
            f"--view {text[:80]}: give AZIMUTH=FILM, as 90=side.mp4, AZIMUTH,ELEVATION=FILM, or 90~=side.mp4 to search"
        )
    if len(angles) == 2 and abs(angles[1]) > 89:
        raise InputError(f"--view {text[:80]}: elevation {angles[1]:g}, choose degrees from -89 to 89")
    return angles[0], angles[1] if len(angles) == 2 else None, search, path


def read_view(text: str, part: Part = Part(), resolution: int = 256, background: str = "auto") -> SideView:
    """A film from another side, of the same part as the driving video, all of its frames.

    Raises:
        InputError: for another form of the text, or a film that :func:`~.video.load_video` refuses.
    """
    azimuth, elevation, search, path = view_of(text)
    how: dict[str, Any] = {"fps": part.fps, "start": part.start, "end": part.end, "every": part.every}
    video = load_video(path, resolution=resolution, background=background, **how)
    identity = fingerprint(file_identity(path), how, resolution, background)
    return SideView(replace(video, identity=identity), azimuth, elevation, search)
