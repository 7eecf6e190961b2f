"""Measuring files against files: scenes, folders of views, films and benchmark cases."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras, FrontCamera
from ..files import InputError
from ..io.clip import read_clip, read_picture
from ..io.sequence import open_scene
from ..metrics import on_white, read_case
from ..metrics.base import Footage, Measured, measure
from ..pictures import open_picture, readable
from ..scene.scene import Scene4D, frame_times
from ..scene.views import render_frames, render_maps, scene_cameras
from .folder import SCENE

Views = dict[str, np.ndarray]
#: A folder of a view is named after its azimuth in degrees.
_AZIMUTH = re.compile(r"-?\d+(\.\d+)?")


def measure_files(
    result: str | os.PathLike[str],
    reference: str | os.PathLike[str] | None = None,
    names: Iterable[str] | None = None,
    *,
    text: str = "",
    image: str | os.PathLike[str] | None = None,
    azimuths: Sequence[str] = (),
    up: str = "y",
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Metrics of a result, by itself or against a reference.

    Args:
        result: a scene or splat file, a run's folder with ``scene.safetensors``, a folder of views ``<azimuth>/`` (or of
            ``renders/``), or one view: a film or a folder of pictures.
        reference: a benchmark case, or any of these.
        names: of :data:`~..metrics.base.METRICS`; all that can be measured where None.
        text: what the object is and does.
        image: a picture of the object.
        azimuths: views of a scene where no reference says which, degrees; "0" where there are none.
        up: axis of splat files that points up.
        device: where networks run.

    Raises:
        InputError: for what cannot be read or does not fit, or where nothing of what is named can be measured.
    """
    scene = _scene(Path(result), up)
    truth: Views = {}
    truths: Views = {}
    if reference is not None and (other := _scene(Path(reference), up)) is not None:
        views = list(azimuths) or ["0"]
        truth, truths = rendered(other, views), depths(other, views)
    elif reference is not None:
        truth, truths = read_views(Path(reference))
    if scene is not None:
        views = list(truth) or list(azimuths) or ["0"]
        size = max(max(view.shape[1:3]) for view in truth.values()) if truth else None
        frames = len(next(iter(truth.values()))) if truth else None
        ours = rendered(scene, views, size=size, frames=frames)
        depth = depths(scene, [view for view in truths if view in views], size=size, frames=frames) if truths else {}
    else:
        ours, depth = read_views(Path(result))
        if truth and len(truth) == len(ours) == 1:
            truth = {next(iter(ours)): next(iter(truth.values()))}  # a film against a film, whatever they are called
        elif len(ours) == 1 and next(iter(ours)) in truth:
            truth = {view: truth[view] for view in ours}  # a film against a case
        if truth and (lacking := [view for view in truth if view not in ours]):
            raise InputError(f"{result}: has no view {lacking[0]}, which {reference} has; render it")
    picture = None
    if image is not None:
        picture = on_white(read_picture(image).frames.numpy())[0]
    cameras = cameras_of(ours, scene, reference if scene is None else None)
    fps = 12.0 if scene is None else scene.fps
    footage = Footage(ours, truth, text, picture, depth, truths, cameras, fps=fps, device=device)
    return measure(footage, names, progress)


def cameras_of(views: Views, scene: Scene4D | None, case: str | os.PathLike[str] | None) -> dict[str, Cameras]:
    """The cameras of views that a scene was drawn from, or that a case describes; none where neither says."""
    height, width = next(iter(views.values())).shape[1:3]
    if scene is not None:
        return {view: scene_cameras(scene, float(view), size=max(height, width)) for view in views}
    described = read_case(case).get("camera") if case is not None and (Path(case) / "case.json").is_file() else None
    if described is None:
        return {}
    place = (described.get("cx"), described.get("cy"))
    front = FrontCamera(described["fovy_degrees"], described["distance"], width, height, *place)
    return {view: front.cameras(float(view), float(described.get("elevation", 0.0))) for view in views}


def rendered(scene: Scene4D, views: Sequence[str], *, size: int | None = None, frames: int | None = None) -> Views:
    """A scene's pictures on white from its front camera turned to each azimuth, (T, H, W, 4)."""
    taus = scene.taus if frames is None else frame_times(frames, scene.loop)
    cameras = scene_cameras(scene, [float(view) for view in views], size=size)
    return {view: on_white(pictures) for view, pictures in zip(views, render_frames(scene, cameras, taus))}


def depths(scene: Scene4D, views: Sequence[str], *, size: int | None = None, frames: int | None = None) -> Views:
    """A scene's z-depth from the same cameras, world units, 0 where nothing is, (T, H, W)."""
    taus = scene.taus if frames is None else frame_times(frames, scene.loop)
    cameras = scene_cameras(scene, [float(view) for view in views], size=size)
    with torch.no_grad():
        maps = torch.stack([depth for depth, _ in render_maps(scene, cameras, taus)], 1)  # (C, T, H, W)
    return {view: depth.cpu().numpy() for view, depth in zip(views, maps)}


def read_views(path: Path) -> tuple[Views, Views]:
    """Pictures on white and depth by view, of a benchmark case, a folder of views, or one view.

    Depth lies in ``depth/<azimuth>/`` as grey pictures of 8 or 16 bits, larger = farther, 0 = nothing.

    Raises:
        InputError: for a path that is none of these, or pictures that cannot be read.
    """
    if (path / "case.json").is_file():
        folders = {"0": path / "front"} | {str(a): path / "views" / str(a) for a in read_case(path)["test_azimuths"]}
    else:
        top = path / "renders" if (path / "renders").is_dir() else path
        named = sorted(p for p in top.iterdir() if p.is_dir() and _AZIMUTH.fullmatch(p.name)) if top.is_dir() else []
        folders = {p.name: p for p in named} or {"0": path}
    deep = path / "depth"
    found = sorted(p for p in deep.iterdir() if p.is_dir() and p.name in folders) if deep.is_dir() else []
    return {view: _pictures(folder) for view, folder in folders.items()}, {p.name: _depth(p) for p in found}


def _pictures(path: Path) -> np.ndarray:  # (T, H, W, 4)
    frames = read_clip(path).frames
    return on_white(frames.numpy() if isinstance(frames, Tensor) else frames)


def _depth(folder: Path) -> np.ndarray:  # (T, H, W)
    found = []
    for path in sorted(folder.glob("*.png")):
        with readable(path), open_picture(path) as picture:
            pixels: Any = np.asarray(picture)
        if pixels.ndim != 2:
            raise InputError(f"{path}: depth is a grey picture, this one has {pixels.shape[-1]} channels")
        found.append(pixels.astype(np.float64))
    if not found or any(pixels.shape != found[0].shape for pixels in found):
        raise InputError(f"{folder}: no .png pictures of depth of one size, write one a frame or remove the folder")
    return np.stack(found)


def _scene(path: Path, up: str) -> Scene4D | None:
    """The scene that a file or a run's folder holds; None where there are pictures."""
    if (path / SCENE).is_file() and not (path / "case.json").is_file():
        return open_scene(path / SCENE)
    if path.is_file() and path.suffix.lower() in (".safetensors", ".ply", ".spz", ".splat", ".ksplat", ".sog", ".zip"):
        return open_scene(path, up=up)
    return None
