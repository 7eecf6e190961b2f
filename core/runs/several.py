"""Several objects of one clip: each fitted alone, with what the others hide unknown, then composed into one scene."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ... import __version__
from ..align import FocalAlignment, align_together
from ..files import InputError
from ..generate.chain import Links, Made, complete
from ..identity import canonical, file_identity, fingerprint
from ..io import write_png
from ..io.objects import load_object
from ..io.tracks import load_objects
from ..io.video import Percent, Reading
from ..methods.plan import Clock
from ..methods.stages import colored
from ..progress import Progress
from ..render.mesh import drawing_on
from ..scene.compose import Ground, compose
from ..scene.object3d import Object3D
from ..scene.scene import Scene4D
from ..video import DrivingVideo
from .folder import REPORT, SCENE, into_folder
from .page import run_page
from .report import read_json
from .session import Run, Settings, preview_film, prior_device, run

log = logging.getLogger(__name__)

#: Folder, in a run's, of the runs of its objects, by their numbers from 1.
OBJECTS = "objects"


@dataclass(frozen=True)
class Placing:
    """How objects are placed in depth, see :func:`~..scene.compose.compose`."""

    ground: Ground = "auto"
    sizes: tuple[float, ...] | None = None


def run_objects(
    video: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: Settings,
    *,
    masks: Sequence[str | os.PathLike[str]] = (),
    objects: Sequence[str | os.PathLike[str] | None] = (),
    placing: Placing = Placing(),
    links: Links = Links(),
    prompt: str = "",
    fps: float | None = None,
    resume: bool = False,
    reading: Reading = Reading(),
    progress: Progress | None = None,
    read: Percent | None = None,
) -> Run | None:
    """:func:`.session.run_in_folder` for several objects of one clip, seen by one camera.

    Leaves the composed scene, ``report.json``, ``report.html`` and ``preview.mp4`` in ``out``, and the run of each object in
    ``out/objects/1``, ``/2``, ... What is missing of an object is made of its part of the first frame.

    Args:
        masks: see :func:`~..io.tracks.load_objects`.
        objects: the object of each, in the order of the masks; None, or none at all, where it is to be made.
        placing: in depth.
        links: models that make missing objects.
        prompt: a text that these take.
        settings, fps, resume, reading, progress, read: as :func:`.session.run_in_folder` has them; ``reading.mask`` is none.

    Returns:
        the run of all, or None where ``resume`` finds it finished.

    Raises:
        InputError: for a method that follows a text, masks or objects that do not fit, or whatever each run refuses.
    """
    started = time.perf_counter()
    out = Path(out)
    if settings.of.follows != "video":
        raise InputError(
            f"method {settings.method}: follows a text; several objects of a clip are for methods that follow videos"
        )
    if settings.of.object_a_frame:
        raise InputError(f"method {settings.method}: takes one object, with a camera of its own for each frame; choose pla4d")
    settings = settings.resolved(True)
    plain = settings.plain()
    size: dict[str, Any] = {"fps": fps, "frames": settings.frames, "resolution": plain.resolution}
    part = {"start": reading.start, "end": reading.end, "every": reading.every, "background": reading.background}
    videos, whole = load_objects(video, masks, progress=read, **size, **part)
    if objects and len(objects) != len(videos):
        raise InputError(f"{video}: {len(videos)} objects by its masks and {len(objects)} given, give one each (auto = made)")
    identity = [file_identity(video), [file_identity(mask) for mask in masks], size, part]
    videos = [replace(each, identity=fingerprint(identity, k)) for k, each in enumerate(videos)]
    given, yaws, own = [], [], []
    for k, each in enumerate(videos):
        path, yaw, mine = (objects[k] if objects else None), settings.yaw, settings
        if path is None:
            made = _made(each, video, out / OBJECTS / str(k + 1), settings, links, prompt, resume, progress)
            path, yaw = made.object, 0.0
            mine = settings.of_guessed_depth() if made.inflated else settings
            assert path is not None
        given.append(load_object(path, settings.up if objects and objects[k] is not None else "y"))
        yaws.append(yaw)
        own.append(mine)
    models = settings.models()
    kept = [replace(mine, prior_device="auto") for mine in own]
    key = fingerprint(
        {"settings": kept, "config": plain, "models": models, "video": identity, "objects": given}, asdict(placing), __version__
    )
    clock = Clock(progress)

    def make(checkpoints: Path) -> Run:
        with drawing_on(settings.device):
            alignments = align_together(given, videos, yaws=yaws, progress=clock.aligning)
        alignments = [colored(aligned, each) for aligned, each in zip(alignments, videos)]
        clock.stop("align cameras")
        scenes, reports = [], []
        for k, (each, item, aligned, mine) in enumerate(zip(videos, given, alignments, own), 1):
            log.info("object %d of %d: %s", k, len(videos), item.name)
            scene, report = _one(
                out / OBJECTS / str(k),
                each,
                item,
                aligned,
                mine,
                mine.plain().bound(models),
                fingerprint(key, k),
                resume,
                _labelled(progress, k),
            )
            scenes.append(scene)
            reports.append(report)
        clock.stop("objects")
        with torch.no_grad():
            composed = compose(
                [scene.to(settings.device) for scene in scenes],
                videos,
                ground=placing.ground,
                sizes=placing.sizes,
                backend=settings.renderer,
            )
        clock.stop("compose")
        scene = composed.scene.to("cpu")
        scene.meta["program"] = f"anchor4d {__version__}"
        return Run(
            scene, _report(settings, plain, scene, whole, reports, composed.report, clock), whole, _seen(scene, alignments)
        )

    return into_folder(
        out,
        key,
        {"settings": asdict(settings), "plan": canonical(plain), "prompt": prompt},
        make,
        lambda result: preview_film(result, settings.renderer, device=settings.device),
        page=lambda path, result: run_page(path, result, settings.renderer, settings.device),
        resume=resume,
        started=started,
    )


def _made(
    part: DrivingVideo,
    video: str | os.PathLike[str],
    out: Path,
    settings: Settings,
    links: Links,
    prompt: str,
    resume: bool,
    progress: Progress | None,
) -> Made:
    """An object made of its part of the first frame."""
    picture = torch.cat([part.frames[0], part.masks[0][..., None]], -1)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "first.png"
    write_png(path, picture)
    return complete(
        out,
        prompt=prompt or None,
        image=path,
        video=video,
        links=links,
        seed=settings.seed,
        resume=resume,
        progress=progress,
        device=prior_device(settings.device, settings.prior_device, what="generators"),
    )


def _one(
    out: Path,
    video: DrivingVideo,
    item: Object3D,
    aligned: FocalAlignment,
    settings: Settings,
    config: Any,
    key: str,
    resume: bool,
    progress: Progress | None,
) -> tuple[Scene4D, dict[str, Any]]:
    """The run of one object, or what an earlier one left."""
    done = into_folder(
        out,
        key,
        {"settings": asdict(settings)},
        lambda checkpoints: run(
            video, item, settings, config=config, alignment=aligned, checkpoints=checkpoints, identity=key, progress=progress
        ),
        lambda result: preview_film(result, settings.renderer, device=settings.device),
        page=lambda path, result: run_page(path, result, settings.renderer, settings.device),
        resume=resume,
    )
    if done is None:
        return Scene4D.load(out / SCENE), read_json(out / REPORT)
    return done.scene, done.report


def _labelled(progress: Progress | None, number: int) -> Progress | None:
    if progress is None:
        return None

    def report(stage: str, step: int, steps: int, losses: dict[str, float], preview: Callable[[], Tensor]) -> None:
        progress(f"object {number}, {stage}", step, steps, losses, preview)

    return report


def _seen(scene: Scene4D, alignments: Sequence[FocalAlignment]) -> FocalAlignment:
    """The clip's camera around all objects."""
    assert scene.front is not None
    first = alignments[0]
    return replace(first, front=scene.front, curves=first.curves[-1:], report={"mode": "shared", "fovy": scene.front.fovy})


def _report(
    settings: Settings,
    plain: Any,
    scene: Scene4D,
    video: DrivingVideo,
    reports: Sequence[dict[str, Any]],
    composition: dict[str, Any],
    clock: Clock,
) -> dict[str, Any]:
    """What is said of all, and of each in short; the rest is in the reports of their own runs."""
    first = reports[0]
    words = [report.get("verdict", {}).get("word", "good") for report in reports]
    worst: Literal["good", "doubtful", "wrong"] = max(words, key=("good", "doubtful", "wrong").index)
    reasons = [f"object {k}: {reason}" for k, r in enumerate(reports, 1) for reason in r.get("verdict", {}).get("reasons", [])]
    shared = ("method", "preset", "seed", "versions", "device", "renderer", "threads", "perceptual", "config")
    return {name: first[name] for name in shared if name in first} | {
        "settings": asdict(settings),
        "objects": [
            {"object": r.get("object"), "gaussians": r.get("gaussians"), "camera": r.get("camera"), "verdict": r.get("verdict")}
            for r in reports
        ],
        "composition": composition,
        "gaussians": len(scene.gaussians),
        "frames": scene.frames,
        "loops": scene.loop,
        "video": {
            "source": video.source,
            "frames": len(video),
            "fps": video.fps,
            "picture": [video.picture_width, video.picture_height],
            "crop": asdict(video.crop),
            "resolution": video.resolution,
            "foreground": video.masked_by,
            "warnings": list(video.warnings),
            "loops": scene.loop,
        },
        "camera": None if scene.front is None else asdict(scene.front),
        "verdict": {"word": worst, "reasons": reasons},
        "memory_peak_mb": first.get("memory_peak_mb"),
        "losses": {
            f"object {k}, {stage}": values for k, r in enumerate(reports, 1) for stage, values in r.get("losses", {}).items()
        },
        "seconds": {name: round(value, 3) for name, value in clock.seconds.items()},
    }
