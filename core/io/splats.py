"""Splat files of every kind, one moment a file, and sequences of them: numbered frames with a manifest.

Each format's own module says how it lays its Gaussians out and what it rounds; here they are chosen by name or by content.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..files import InputError, atomic_path
from ..gaussians import Gaussians, half_turn
from ..mesh import up_matrix
from ..reading import read_bytes
from ..scene.scene import Scene4D, frame_times
from ..scene.views import FrameProgress
from . import compressed_ply, ksplat, ply, sog, splat, spz

#: What a file that holds splats may end in; a .ply may hold a mesh instead, see :func:`.ply.is_splat_ply`.
SPLAT_SUFFIXES = (".ply", ".spz", ".splat", ".ksplat", ".sog")
#: Formats that are written, and the endings of their files.
FORMATS = {"ply": ".ply", "compressed-ply": ".compressed.ply", "spz": ".spz", "splat": ".splat", "sog": ".sog"}
_ENCODERS = {
    "ply": ply.encode, "compressed-ply": compressed_ply.encode, "spz": spz.encode, "splat": splat.encode, "sog": sog.encode,
}  # fmt: skip
#: Formats that sort their Gaussians by place, unless they are given an order.
_SORTED = ("compressed-ply", "sog")
#: Of .spz, .sog and .compressed.ply, deflating saves next to nothing.
_METHOD = {format: zipfile.ZIP_DEFLATED if format in ("ply", "splat") else zipfile.ZIP_STORED for format in FORMATS}


def read_splats(path: str | os.PathLike[str], *, up: str = "y") -> Gaussians:
    """Gaussians (N, ...) of a .ply, compressed .ply, .spz, .splat, .ksplat or .sog, or the folder of a SOG, in our Y-up frame.

    Gaussians that hold NaN or infinite values are left out, with a note in the log.

    Args:
        up: the axis that points up, with the frame that files of the kind usually have: "y" as it should be, "-y" for what
            stands on its head, "z" for what lies on its back, also "-z", "x", "-x".

    Raises:
        InputError: for a missing, foreign, damaged or too large file.
    """
    up_matrix(up)
    path = Path(path)
    if path.is_dir() and sog.is_folder(path):
        return turned(ply.sound(sog.read_folder(path), str(path)), up)
    return decode_splats(read_bytes(path, "splat file", ply.MAX_BYTES), str(path), up=up)


def turned(gaussians: Gaussians, up: str) -> Gaussians:
    """Gaussians (N, ...) whose axis ``up`` points up, turned so that +Y does.

    Raises:
        InputError: for what is no axis.
    """
    matrix = up_matrix(up)
    if up in ("y", "-y"):  # exactly
        return gaussians if up == "y" else half_turn(gaussians)
    return gaussians.transformed(matrix)


def decode_splats(data: bytes, name: str, *, up: str = "y") -> Gaussians:
    """:func:`read_splats` of a file's content, known by its first bytes, else by the ending of ``name``.

    Takes some 300 bytes of memory a Gaussian, 1.1 kB at degree 3, of which there are at most 2^24, and no more than the content
    can hold: in a .spz 16 bytes unpacked for each of its own.

    Raises:
        InputError: as there.
    """
    return turned(ply.sound(decode_raw(data, name), name), up)


def decode_raw(data: bytes, name: str) -> Gaussians:
    """:func:`decode_splats` with the Gaussians that hold NaN, see :func:`.ply.is_sound`, and not turned.

    Raises:
        InputError: as there.
    """
    suffix = Path(name).suffix.lower()
    if data[:2] == b"\x1f\x8b" or data[:4] == b"NGSP":
        return spz.decode(data, name)
    if data[:3] == b"ply" or suffix == ".ply":
        compressed = ply.parse_header(data, name).is_compressed
        return (compressed_ply if compressed else ply).decode(data, name)
    for module, ending in ((spz, ".spz"), (splat, ".splat"), (ksplat, ".ksplat"), (sog, ".sog")):
        if suffix == ending:
            return module.decode(data, name)
    raise InputError(f"{name}: not a splat file that is read, save it as {', '.join(SPLAT_SUFFIXES)}")


def write_splats(path: str | os.PathLike[str], gaussians: Gaussians, *, format: str | None = None, **options: Any) -> None:
    """Write unbatched Gaussians (N, ...) in one of :data:`FORMATS`; None chooses by the ending of ``path``.

    Args:
        options: the format's own, see its ``encode``: ``version`` and ``axes`` of spz.

    Raises:
        InputError: for an unknown format or ending.
    """
    data = encode_splats(gaussians, format or format_of(path), **options)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def encode_splats(gaussians: Gaussians, format: str, **options: Any) -> bytes:
    """The content of a file in one of :data:`FORMATS`.

    Raises:
        InputError: for an unknown format, or values that are not finite.
    """
    if format not in _ENCODERS:
        raise InputError(f"{format}: no splat format that is written, choose {', '.join(FORMATS)}")
    return _ENCODERS[format](gaussians, **options)


def format_of(path: str | os.PathLike[str]) -> str:
    """The format that is written to a file of this name.

    Raises:
        InputError: where none is.
    """
    name = Path(path).name.lower()
    for format, suffix in sorted(FORMATS.items(), key=lambda item: -len(item[1])):
        if name.endswith(suffix):
            return format
    raise InputError(f"{path}: no splat format that is written ends so, choose {', '.join(FORMATS.values())}")


@torch.no_grad()
def write_splat_sequence(
    target: str | os.PathLike[str],
    scene: Scene4D,
    frames: int | None = None,
    *,
    format: str = "ply",
    name: str = "frame",
    title: str | None = None,
    progress: FrameProgress | None = None,
    **options: Any,
) -> list[Path]:
    """Write a moving scene as numbered files in constant order with ``manifest.json``: a folder, or an archive named .zip.

    The manifest carries what a player needs: fps, loop, and the pattern, start and count of the frames (version 1 of the 4DGS
    web player's manifest, which plays compressed-ply). A number of ``frames`` other than the scene's own resamples it over the
    same duration. In compressed-ply and sog the Gaussians of all frames lie in the order of the first
    one's places.

    Args:
        format: one of :data:`FORMATS`.
        progress: called with the number of frames done and of all; it may raise to interrupt, which leaves nothing behind.
        options: the format's own, as for :func:`write_splats`.

    Returns:
        The files' paths, in order; the archive's path alone for a .zip.

    Raises:
        InputError: for an unknown format, or values that are not finite.
    """
    if format not in FORMATS:
        raise InputError(f"{format}: no splat format that is written, choose {', '.join(FORMATS)}")
    target = Path(target)
    suffix = FORMATS[format]
    count = scene.frames if frames is None else frames
    zipped = target.suffix.lower() == ".zip"
    names = [f"{name}{i:04}{suffix}" for i in range(count)]
    manifest = {
        "version": 1,
        "title": title or (target.stem if zipped else target.name),
        "fps": scene.fps * count / scene.frames,
        "loop": scene.loop,
        "frames": {"pattern": f"{name}{{frame:04}}{suffix}", "start": 0, "count": count},
        "gaussians": len(scene.gaussians),
        "format": format,
    }
    text = json.dumps(manifest, indent=2) + "\n"
    with atomic_path(target) as temporary:
        if zipped:
            with zipfile.ZipFile(temporary, "w") as archive:
                # Without the time of writing: the same scene gives the same bytes.
                for file, content in _frames(scene, names, format, progress, options):
                    archive.writestr(zipfile.ZipInfo(file), content, _METHOD[format])
                archive.writestr(zipfile.ZipInfo("manifest.json"), text, _METHOD[format])
        else:
            temporary.mkdir()
            for file, content in _frames(scene, names, format, progress, options):
                (temporary / file).write_bytes(content)
            (temporary / "manifest.json").write_text(text, encoding="utf-8")
    return [target] if zipped else [target / file for file in names]


def write_ply_sequence(
    folder: str | os.PathLike[str], scene: Scene4D, frames: int | None = None, *, name: str = "frame", title: str | None = None
) -> list[Path]:
    """:func:`write_splat_sequence` in the plain format, which most programs open."""
    return write_splat_sequence(folder, scene, frames, name=name, title=title)


def _frames(
    scene: Scene4D,
    names: list[str],
    format: str,
    progress: FrameProgress | None,
    options: dict[str, Any],
) -> Iterator[tuple[str, bytes]]:
    for i, tau in enumerate(frame_times(len(names), scene.loop)):
        gaussians = scene.at(tau)
        if i == 0 and format in _SORTED:
            options = {"order": compressed_ply.place_order(gaussians.means), **options}
        yield names[i], encode_splats(gaussians, format, **options)
        if progress is not None:
            progress(i + 1, len(names))
