"""Splat files of every kind, one moment a file, and sequences of them: numbered frames with a manifest.

Each format's own module says how it lays its Gaussians out and what it rounds; here they are chosen by name or by content.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from ..files import InputError, atomic_path
from ..gaussians import Gaussians
from ..scene import Scene4D, frame_times
from . import ply

#: What a file that holds splats may end in; a .ply may hold a mesh instead, see :func:`.ply.is_splat_ply`.
SPLAT_SUFFIXES = (".ply", ".spz", ".splat", ".ksplat")
#: Formats that are written, and the endings of their files.
FORMATS = {"ply": ".ply"}
#: Larger files are refused before they are read.
MAX_BYTES = 1 << 32


def read_splats(path: str | os.PathLike[str]) -> Gaussians:
    """Gaussians (N, ...) of a .ply, compressed .ply, .spz, .splat or .ksplat, in our Y-up frame.

    Raises:
        InputError: for a missing, foreign, damaged or too large file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such splat file, check the path")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES >> 30} GiB, thin it out in a splat editor first")
    return decode_splats(path.read_bytes(), str(path))


def decode_splats(data: bytes, name: str) -> Gaussians:
    """:func:`read_splats` of a file's content; ``name`` is for messages, and its suffix tells what the content does not."""
    return ply.decode(data, name)


def write_splats(path: str | os.PathLike[str], gaussians: Gaussians, *, format: str | None = None) -> None:
    """Write unbatched Gaussians (N, ...) in one of :data:`FORMATS`; None chooses by the ending of ``path``.

    Raises:
        InputError: for an unknown format or ending.
    """
    data = encode_splats(gaussians, format or format_of(path))
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def encode_splats(gaussians: Gaussians, format: str) -> bytes:
    """The content of a file in one of :data:`FORMATS`.

    Raises:
        InputError: for an unknown format.
    """
    return ply.encode(gaussians)


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
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write a moving scene as numbered files in constant order with ``manifest.json``: a folder, or one file if it ends in .zip.

    The manifest carries what a player needs: fps, loop, and the pattern, start and count of the frames (version 1 of the 4DGS
    web player's manifest). A number of ``frames`` other than the scene's own resamples it over the same duration.

    Args:
        format: one of :data:`FORMATS`.
        progress: called with the number of frames done and of all; it may raise to interrupt, which leaves nothing behind.

    Returns:
        The files' paths, in order; the archive's path alone for a .zip.
    """
    target = Path(target)
    suffix = FORMATS[format]
    count = scene.frames if frames is None else frames
    zipped = target.suffix.lower() == ".zip"
    names = [f"{name}{i:04}{suffix}" for i in range(count)]
    manifest = {
        "version": 1,
        "title": title or target.stem,
        "fps": scene.fps * count / scene.frames,
        "loop": scene.loop,
        "frames": {"pattern": f"{name}{{frame:04}}{suffix}", "start": 0, "count": count},
        "gaussians": len(scene.gaussians),
        "format": format,
    }
    with atomic_path(target) as temporary:
        if not zipped:
            temporary.mkdir()
        archive = zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) if zipped else None
        try:
            for i, tau in enumerate(frame_times(count, scene.loop)):
                content = encode_splats(scene.at(tau), format)
                if archive is None:
                    (temporary / names[i]).write_bytes(content)
                else:
                    archive.writestr(names[i], content)
                if progress is not None:
                    progress(i + 1, count)
            text = json.dumps(manifest, indent=2) + "\n"
            if archive is None:
                (temporary / "manifest.json").write_text(text, encoding="utf-8")
            else:
                archive.writestr("manifest.json", text)
        finally:
            if archive is not None:
                archive.close()
    return [target] if zipped else [target / file for file in names]
