"""The whole program in three functions, for scripts: fit, render and export."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import InputError
from ..io.export import FORMATS, Shot, export_scene
from ..io.objects import load_object
from ..io.video import load_video
from ..progress import Progress
from ..scene.object3d import Object3D
from ..scene.scene import Scene4D, frame_times
from ..scene.views import render_frames, scene_cameras
from ..video import DrivingVideo
from .session import Run, Settings, run, run_in_folder

Files = str | os.PathLike[str]


def fit(
    video: DrivingVideo | Files | None = None,
    object: Object3D | Files | None = None,
    *,
    prompt: str = "",
    out: Files | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """A moving object from a driving video and a 3D model, or from what the method takes.

    Args:
        video: a folder of pictures, a film, or a read one; None for methods that follow a text.
        object: a mesh or splat file, or a read one; None for methods that start without one.
        prompt: the text of methods that follow one.
        out: folder for the scene, its report, a preview and checkpoints; needs files as inputs.
        resume: go on from the checkpoints in ``out``.
        progress: called after every step; interrupts by raising.
        settings: see :class:`.session.Settings`: ``method="align4d"``, ``preset="draft"``, ``seed=1``, ...

    Raises:
        InputError: for inputs, settings or models that do not fit.
    """
    chosen = Settings(**settings)
    if out is not None:
        if isinstance(video, DrivingVideo) or isinstance(object, Object3D):
            raise InputError(f"{out}: a run in a folder reads its inputs, give their paths")
        done = run_in_folder(video, object, out, chosen, prompt=prompt, resume=resume, progress=progress)
        return Run(Scene4D.load(Path(out) / "scene.safetensors")) if done is None else done
    if video is not None and not isinstance(video, DrivingVideo):
        config = chosen.resolved(object is not None).plain(prompt)
        video = load_video(video, frames=chosen.frames, resolution=config.resolution)
    if object is not None and not isinstance(object, Object3D):
        object = load_object(object)
    return run(video, object, chosen, prompt=prompt, progress=progress)


def render(
    scene: Scene4D,
    azimuths: float | Sequence[float] = 0.0,
    *,
    elevation: float | None = None,
    size: int | None = None,
    frames: int | None = None,
    backend: str = "auto",
) -> Tensor:  # (A, T, H, W, 4)
    """Pictures of a scene from its front camera turned to each azimuth, straight alpha.

    Args:
        azimuths: degrees, 0 = the driving video's view, +90 = from +X.
        elevation: degrees, positive = from above; the camera's own where None.
        size: longer side, pixels; the driving video's where None.
        frames: the clip is spread over so many, its own where None.
    """
    taus = scene.taus if frames is None else frame_times(frames, scene.loop)
    sides = [azimuths] if isinstance(azimuths, (int, float)) else list(azimuths)
    return render_frames(scene, scene_cameras(scene, sides, elevation, size), taus, backend=backend)


def export(scene: Scene4D, path: Files, format: str | None = None, *, frames: int | None = None, **shot: Any) -> None:
    """Write a scene for other programs.

    Args:
        format: of :data:`~..io.export.FORMATS`; by the path's ending where None.
        frames: the clip is spread over so many, its own where None.
        shot: of films, see :class:`~..io.export.Shot`: ``azimuths=(0, 90)``, ``background="none"``, ...

    Raises:
        InputError: for a path that does not fit.
    """
    path = Path(path)
    fitting = [name for name, form in FORMATS.items() if path.suffix.lower() in form.suffixes and path.suffix]
    if format is None and not fitting:
        raise InputError(f"{path}: no format ends so, name one of {', '.join(FORMATS)}")
    export_scene(scene, path, format or fitting[0], frames=frames, shot=Shot(**shot) if shot else None)
