"""Scenes from files: folders and archives of splat files, one a frame, and any single file that holds one."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..files import InputError
from ..gaussians import Gaussians
from ..mesh import up_matrix
from ..reading import read_bytes
from ..scene.scene import Scene4D
from ..scene.sequence import FPS, Motion, scene_from_gaussians
from ..scene.validation import MAX_FPS, MAX_FRAMES
from ..scene.views import FrameProgress
from . import moving_ply, tsog
from .archives import files_in, member, opened_zip
from .gltf_splats import read_splat_glb
from .ply import MAX_BYTES, is_sound, sound
from .sog import META, is_folder
from .splats import SPLAT_SUFFIXES, decode_raw, decode_splats, read_splats, turned

log = logging.getLogger(__name__)

#: A sequence whose frames take more memory, in bytes, is refused at once; while it is loaded it takes twice as much.
MEMORY = 1 << 32
_MANIFEST_BYTES = 1 << 20


def read_sequence(
    path: str | os.PathLike[str],
    *,
    fps: float | None = None,
    loop: bool | None = None,
    motion: Motion = "auto",
    frames: int | None = None,
    up: str = "y",
    progress: FrameProgress | None = None,
) -> Scene4D:
    """A folder or .zip of splat files, one a frame, as a scene.

    A ``manifest.json`` (version 1 of the 4DGS web player's, which :func:`write_splat_sequence` writes) gives the frames' names,
    fps and loop. Without one, the files of the most frequent splat format are taken in the order of the numbers in their names.

    Args:
        fps, loop: in place of the manifest's; 12 and False where neither says.
        motion: see :func:`scene_from_gaussians`.
        frames: keep so many, evenly spaced over the same duration; all where None.
        up: the axis that points up, see :func:`read_splats`.
        progress: called with the number of files read and of all; it may raise to interrupt.

    Raises:
        InputError: for a folder or archive that is missing, damaged or too large, or whose frames are.
    """
    path = Path(path)
    _check_times(fps, frames)
    up_matrix(up)
    if path.is_dir():
        sizes = {file.name: file.stat().st_size for file in path.iterdir() if file.is_file()}
        return _read_sequence(path, sizes, lambda name: (path / name).read_bytes(), fps, loop, motion, frames, up, progress)
    if not path.is_file():
        raise InputError(f"{path}: no such folder or .zip, check the path")
    with opened_zip(path, str(path), "splat files") as archive:
        members = {info.filename: info for info in files_in(archive)}
        sizes = {name: info.file_size for name, info in members.items()}
        settings = (fps, loop, motion, frames, up, progress)
        return _read_sequence(path, sizes, lambda name: member(archive, members[name], str(path)), *settings)


def _read_sequence(
    path: Path,
    sizes: dict[str, int],
    read: Callable[[str], bytes],
    fps: float | None,
    loop: bool | None,
    motion: Motion,
    frames: int | None,
    up: str,
    progress: FrameProgress | None,
) -> Scene4D:
    manifest, names = _frame_names(path, sizes, read)
    total, looping = len(names), bool(manifest.get("loop")) if loop is None else loop
    if frames is not None and frames < total:
        # As the times of a clip of so many frames fall.
        steps = torch.arange(frames, dtype=torch.float64)
        last = total / frames if looping else (total - 1) / max(frames - 1, 1)
        names = [names[int(i)] for i in (steps * last).round()]
    wrong = next((name for name in names if sizes[name] > MAX_BYTES), None)
    if wrong is not None:
        raise InputError(f"{path}: {wrong} is larger than {MAX_BYTES >> 30} GiB, thin it out in a splat editor first")
    sets: list[Gaussians] = []
    for i, name in enumerate(names):
        sets.append(decode_raw(read(name), str(path / name)))
        # Float32 in memory is at least as large as any file.
        needed = len(names) * max(len(s) * _bytes_each(s) for s in sets)
        if needed > MEMORY:
            raise InputError(
                f"{path}: {len(names)} frames of {len(sets[-1])} Gaussians take {needed / 2**30:.0f} GiB of memory, at most "
                f"{MEMORY >> 30} are allowed; choose fewer frames or thin the files out"
            )
        if progress is not None:
            progress(i + 1, len(names))
    sets = [turned(s, up) for s in _sound(sets, str(path))]
    rate = fps if fps is not None else float(manifest.get("fps") or FPS) * len(names) / total
    scene = scene_from_gaussians(sets, fps=rate, loop=looping, motion=motion)
    return replace(scene, meta={**scene.meta, "source": path.name})


def _sound(sets: list[Gaussians], name: str) -> list[Gaussians]:
    """Frames without the Gaussians that hold NaN: of frames of equal numbers in all of them, so that each stays itself."""
    if len({len(s) for s in sets}) > 1:
        return [sound(s, f"{name}: frame {i}") for i, s in enumerate(sets)]
    whole = torch.stack([is_sound(s) for s in sets]).all(0)
    if bool(whole.all()):
        return sets
    if not bool(whole.any()):
        raise InputError(
            f"{name}: every Gaussian holds NaN, infinite or far too large values in some frame, repair or export it again"
        )
    log.warning(
        "%s: %d of %d Gaussians hold NaN, infinite or far too large values and are left out",
        name,
        int((~whole).sum()),
        len(whole),
    )
    return [s.select(whole) for s in sets]


def _check_times(fps: float | None, frames: int | None) -> None:
    if fps is not None and not 0 < fps <= MAX_FPS:
        raise InputError(f"fps {fps:g}: choose more than 0 and at most {MAX_FPS:g} frames a second")
    if frames is not None and not 0 < frames <= MAX_FRAMES:
        raise InputError(f"frames {frames}: choose 1 to {MAX_FRAMES}")


def _bytes_each(gaussians: Gaussians) -> int:
    """Memory of a Gaussian, in bytes."""
    return sum(t.element_size() * t.numel() for t in gaussians.tensors().values()) // len(gaussians)


def _frame_names(path: Path, sizes: dict[str, int], read: Callable[[str], bytes]) -> tuple[dict[str, Any], list[str]]:
    """The manifest, {} where there is none, and the names of the frames in order."""
    at = min((name for name in sizes if Path(name).name == "manifest.json"), key=len, default=None)
    if at is not None and sizes[at] <= _MANIFEST_BYTES:
        try:
            manifest = json.loads(read(at))
            listed = manifest["frames"]
            start, count, pattern = int(listed["start"]), int(listed["count"]), str(listed["pattern"])
            manifest["fps"] = float(manifest.get("fps") or FPS)
            if not (0 < count <= MAX_FRAMES and 0 < manifest["fps"] <= MAX_FPS and 0 <= start < 2**31):
                raise ValueError(f"{count} frames from {start} at {manifest['fps']} fps")
            folder = at[: -len("manifest.json")]
            names = [folder + _numbered(pattern, start + i) for i in range(count)]
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            reason = str(error)[:120]
            raise InputError(f"{path}: manifest.json is garbled ({reason}), export the sequence again or delete it") from None
        gone = next((name for name in names if name not in sizes), None)
        if gone is not None:
            raise InputError(f"{path}: {gone} is missing, which manifest.json lists; copy the whole sequence")
        return manifest, names
    splats = [n for n in sizes if Path(n).suffix.lower() in SPLAT_SUFFIXES and not Path(n).name.startswith(".")]
    splats = [n for n in splats if not n.startswith("__MACOSX/")]
    if not splats:
        raise InputError(f"{path}: holds no splat files ({', '.join(SPLAT_SUFFIXES)}), choose the folder that holds the frames")
    suffixes = [Path(n).suffix.lower() for n in splats]
    common = max(SPLAT_SUFFIXES, key=suffixes.count)
    splats = [n for n, suffix in zip(splats, suffixes) if suffix == common]
    if len(splats) > MAX_FRAMES:
        raise InputError(f"{path}: {len(splats)} splat files, at most {MAX_FRAMES} make a sequence")
    return {}, sorted(splats, key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"([0-9]+)", name)])


def _numbered(pattern: str, frame: int) -> str:
    """``pattern`` with {frame}, or {frame:04} for leading zeros, filled in."""
    found = re.fullmatch(r"([^{}]*)\{frame(?::0?(\d{1,2})d?)?\}([^{}]*)", pattern)
    if found is None:
        raise ValueError(f"pattern {pattern!r}")
    return f"{found[1]}{frame:0{int(found[2] or 0)}d}{found[3]}"


def open_scene(
    path: str | os.PathLike[str],
    *,
    fps: float | None = None,
    loop: bool | None = None,
    motion: Motion = "auto",
    frames: int | None = None,
    up: str = "y",
    progress: FrameProgress | None = None,
) -> Scene4D:
    """A scene from anything that holds one: our scene file, a splat file (still), or a folder or .zip of splat files.

    A folder that a fit wrote opens as its ``scene.safetensors``; one that 3DGS's own training wrote
    (``point_cloud/iteration_N``) as its last iteration's ``point_cloud.ply``. A .ply with columns of motion moves, see
    :mod:`.moving_ply`.

    Args:
        fps, loop, motion, frames, progress: of sequences, see :func:`read_sequence`; fps, loop and frames of moving files too.
        up: of splats, the axis that points up: "y" as it should be, "-y" for what stands on its head, "z" for what lies on its
            back, also "-z", "x", "-x".

    Raises:
        InputError: for a missing, damaged or foreign file.
    """
    _check_times(fps, frames)
    up_matrix(up)
    sequence = {"fps": fps, "loop": loop, "motion": motion, "frames": frames, "up": up, "progress": progress}
    path = Path(path)
    if path.name == META:
        path = path.parent
    path = _trained(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        fitted = path / "scene.safetensors"
        if fitted.is_file():
            return Scene4D.load(fitted)
        if is_folder(path):
            return Scene4D(read_splats(path, up=up), meta={"source": path.name})
        return read_sequence(path, **sequence)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder, check the path")
    if suffix == ".safetensors":
        if up != "y":
            raise InputError(f"{path}: up {up} is for splats of other programs; turn a scene with Transform Scene")
        return Scene4D.load(path)
    if suffix == ".zip":
        return read_sequence(path, **sequence)
    if suffix == ".ply":
        data = read_bytes(path, "splat .ply", MAX_BYTES)
        if moving_ply.is_moving(data, str(path)):
            scene = moving_ply.decode(data, str(path), fps=fps, loop=loop, frames=frames, up=up)
            return replace(scene, meta={**scene.meta, "source": path.name})
        return Scene4D(decode_splats(data, str(path), up=up), meta={"source": path.name})
    if suffix == ".tsog":
        data = read_bytes(path, "TSOG file", MAX_BYTES)
        scene = tsog.decode(data, str(path), fps=fps, loop=loop, frames=frames, up=up)
        return replace(scene, meta={**scene.meta, "source": path.name})
    if suffix in (*SPLAT_SUFFIXES, ".glb"):
        gaussians = turned(read_splat_glb(path), up) if suffix == ".glb" else read_splats(path, up=up)
        return Scene4D(gaussians, meta={"source": path.name})
    raise InputError(
        f"{path}: no scene; choose a scene.safetensors, a splat file ({', '.join(SPLAT_SUFFIXES)}, .tsog, .glb), or a folder "
        "or .zip of splat files"
    )


def _trained(path: Path) -> Path:
    """Of a folder that 3DGS's own training wrote, or one inside it, the splats of its last iteration; else the path itself."""
    if not path.is_dir():
        return path
    found = [*path.glob("point_cloud/iteration_*/point_cloud.ply"), *path.glob("iteration_*/point_cloud.ply")]
    if re.fullmatch(r"iteration_\d+", path.name):
        found += path.glob("point_cloud.ply")
    numbered = [(int(m[1]), file) for file in found if (m := re.fullmatch(r"iteration_(\d+)", file.parent.name))]
    if not numbered:
        return path
    number, file = max(numbered)
    log.info("%s: iteration %d of a training", path, number)
    if (file.parent / "deformation.pth").is_file():
        log.warning("%s: its motion is a network in deformation.pth, which is not read; it opens as it stands", file)
    return file
