"""A whole run of a method that no video drives, from a text, perhaps with an object, to a scene."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ... import __version__
from ..files import InputError
from ..fit.estimate import FitEstimate
from ..identity import fingerprint
from ..io import side_by_side
from ..io.objects import load_object
from ..methods import ayg, stages
from ..methods.ayg import Models, TextConfig
from ..priors.base import Prior
from ..priors.models import COMMAND, find, model_named
from ..progress import Progress
from ..render import resolve_backend
from ..scene.object3d import Object3D
from ..scene.scene import Scene4D
from ..scene.views import object_cameras, render_frames, turning_cameras
from .run import PRESETS, Clock, circumstances, into_folder, memory_peak_mb, object_size, prior_device, resolve_device

log = logging.getLogger(__name__)

#: What stands in for the paper's closed text-to-video model: the first of these that is here.
VIDEO_MODELS = ("modelscope", "zeroscope", "ltx-video", "wan-1.3b")
IMAGE_MODELS = ("sd21-base", "sd15")
VIEWS_MODEL = "mvdream"


@dataclass(frozen=True)
class TextSettings:
    """What a run's result depends on, its inputs aside.

    Args:
        preset: of :data:`.run.PRESETS`.
        seed: of every random choice.
        frames: of a clip; the preset's where None.
        fps: frames a second; the preset's where None.
        yaw: degrees to turn a given object about +Y so that its front faces +Z.
        then: a text for each further clip; "" = the first one's.
        closed: the motion returns to its first frame.
        device, renderer: as of :class:`.run.Settings`.
        video, images, views: the models, each a folder or a name or Hub id of ``models list``; "auto" = the first of those
            named here that is on this machine; images may be "none".
        without: parts of the method to leave out, of :data:`.ayg.PARTS`.
    """

    preset: str = "standard"
    seed: int = 0
    frames: int | None = None
    fps: float | None = None
    yaw: float = 0.0
    then: tuple[str, ...] = ()
    closed: bool = False
    device: str = "auto"
    renderer: str = "auto"
    video: str = "auto"
    images: str = "auto"
    views: str = "auto"
    without: tuple[str, ...] = ()

    def resolved(self, has_object: bool = False, models: bool = True) -> TextSettings:
        """The same with the device, renderer and models that "auto" means on this machine; models that are not asked: "none".

        Args:
            has_object: the object is given, so that no model of several views is needed.
            models: look for the models too.

        Raises:
            InputError: for an unknown name, or models that are not here, all of them in one line.
        """
        if self.preset not in PRESETS:
            raise InputError(f"preset {self.preset!r}: unknown, choose one of {', '.join(PRESETS)}")
        ayg.check_parts(self.without)
        if self.fps is not None and not self.fps > 0:
            raise InputError(f"fps {self.fps:g}: choose more than 0")
        device = resolve_device(self.device)
        renderer = resolve_backend(self.renderer, device)
        if not models:
            return replace(self, device=device, renderer=renderer)
        absent: list[str] = []

        def chosen(name: str, known: Sequence[str]) -> str:
            wanted = known if name == "auto" else [name]
            for candidate in wanted:
                if Path(candidate).exists() or find(candidate) is not None:
                    return candidate
            absent.append(wanted[0])
            return wanted[0]

        video = chosen(self.video, VIDEO_MODELS)
        images = "none" if self.images == "none" or "image" in self.without else chosen(self.images, IMAGE_MODELS)
        views = "none" if has_object else chosen(self.views, (VIEWS_MODEL,))
        if absent:
            known = [name for name in absent if model_named(name) is not None]
            unknown = [name for name in absent if name not in known]
            told = [f"get {'it' if len(absent) == 1 else 'them'} with: " + "; ".join(f"{COMMAND} get {m}" for m in known)]
            told += [f"{name}: no such folder, and no model of that name" for name in unknown]
            raise InputError(
                f"method ayg: needs {', '.join(absent)}, not on this machine; {'; '.join(told if known else told[1:])}"
            )
        return replace(self, device=device, renderer=renderer, video=video, images=images, views=views)

    def models(self) -> Models:
        """The models of resolved settings, loaded."""
        from ..priors.load import load_prior

        def loaded(name: str) -> Prior | None:
            return None if name == "none" else load_prior(name, device=prior_device(self.device))

        return Models(loaded(self.video), loaded(self.images), loaded(self.views))


@dataclass(frozen=True)
class TextRun:
    """A finished run: the scene and its report, JSON-serialisable."""

    scene: Scene4D
    report: dict[str, Any] = field(default_factory=dict)


def run_text(
    prompt: str,
    settings: TextSettings,
    *,
    item: Object3D | None = None,
    config: TextConfig | None = None,
    progress: Progress | None = None,
    checkpoints: str | os.PathLike[str] | None = None,
) -> TextRun:
    """Text to 4D with a named preset, or a given object to 4D by a text.

    Args:
        item: the object, of any size and place.
        config: in place of the preset's.
        progress: called in every stage; interrupts by raising.
        checkpoints: folder to keep checkpoints in, and to resume from.

    Raises:
        InputError: for settings that do not fit, or models that are not here.
    """
    settings = settings.resolved(item is not None, models=config is None)
    config = _config(prompt, settings) if config is None else config
    clock = Clock(progress)
    if item is not None:
        item = item.normalized()[0].turned(settings.yaw)
    folder = None if checkpoints is None else Path(checkpoints)
    foreseen = None
    if progress is not None and (folder is None or not any(folder.glob("*.safetensors"))):
        foreseen = _foresee(config, item, settings, clock)
        log.info("estimate: %s", foreseen)
        clock.stop("estimate")
    scene = ayg.run(
        config,
        item=item,
        then=settings.then,
        closed=settings.closed,
        seed=settings.seed,
        device=settings.device,
        backend=settings.renderer,
        progress=clock,
        checkpoints=folder,
    ).to("cpu")
    made = {
        "method": "ayg",
        "without": list(settings.without),
        "preset": settings.preset,
        "seed": settings.seed,
        "prompt": prompt,
        "then": list(settings.then),
    }
    scene.meta.update(made, program=f"anchor4d {__version__}")
    report = {
        **made,
        **circumstances(settings, config),
        "object": None if item is None else {"name": item.name, **object_size(item)},
        "gaussians": len(scene.gaussians),
        "frames": scene.frames,
        "loops": scene.loop,
        "seconds": {name: round(value, 3) for name, value in clock.seconds.items()},
        "memory_peak_mb": memory_peak_mb(settings.device),
        "estimate": None if foreseen is None else asdict(foreseen),
        "losses": scene.meta.get("losses", {}),
    }
    return TextRun(scene, report)


def run_text_in_folder(
    prompt: str,
    out: str | os.PathLike[str],
    settings: TextSettings,
    *,
    item: str | os.PathLike[str] | None = None,
    config: TextConfig | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> TextRun | None:
    """:func:`run_text` into a folder, as :func:`.run.run_in_folder` does it.

    Args:
        item: a mesh or splat file.

    Returns:
        the run, or None where ``resume`` finds it finished.

    Raises:
        InputError: for unreadable inputs, models that are not here, or checkpoints of another run.
    """
    started = time.perf_counter()
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, choose a folder to write to")
    if not prompt.strip():
        raise InputError("prompt: empty, say what the object is and does")
    given = None if item is None else load_object(item)
    settings = settings.resolved(given is not None, models=config is None)
    config = _config(prompt, settings) if config is None else config
    shape = None if given is None else given.vertices
    key = fingerprint(prompt, *([] if shape is None else [shape]), repr(config), repr(settings), __version__)
    return into_folder(
        out,
        key,
        {"prompt": prompt, "settings": asdict(settings), "config": repr(config)},
        lambda folder: run_text(prompt, settings, item=given, config=config, progress=progress, checkpoints=folder),
        lambda result: preview_film(result.scene, settings.renderer),
        resume=resume,
        started=started,
    )


def preview_film(scene: Scene4D, backend: str = "auto", *, height: int = 256, turns: int = 2) -> Any:  # (T, H, W, 3) uint8
    """The object from the front and the right, and from a camera that circles it, on white."""
    backend = "auto" if backend == "gsplat" else backend  # the scene is on the CPU by now
    front, side = render_frames(scene, object_cameras(scene, height, [0.0, 90.0]), backend=backend)
    around = render_frames(scene, *turning_cameras(scene, height, turns), backend=backend)[0]
    panels = {"front": front, "right": side}
    return side_by_side(
        {name: view.repeat(turns, 1, 1, 1) for name, view in panels.items()} | {"all around": around}, height=height
    )


def _foresee(config: TextConfig, item: Object3D | None, settings: TextSettings, progress: Progress) -> FitEstimate:
    """The cost of all stages, from a few steps of the object's and of the motion's on Gaussians as they start."""
    static = config.static if item is None else config.given
    start = stages.fit_static(
        None, item, config.front, replace(static, objectives=()), seed=settings.seed, device=settings.device
    )
    start = replace(start, frames=config.frames)
    found = stages.estimate(None, start, static, mesh=item, backend=settings.renderer, progress=progress)
    if item is None and config.detail is not None:
        found += stages.estimate(None, start, config.detail, backend=settings.renderer, progress=progress)
    motion = stages.estimate(None, start, config.motion, backend=settings.renderer, progress=progress)
    steps, more = config.motion.schedule.steps, len(settings.then) or int(settings.closed)
    return found + replace(motion, seconds=motion.seconds * (1 + more * config.further.steps / steps))


def _config(prompt: str, settings: TextSettings) -> TextConfig:
    config = ayg.preset(settings.preset, prompt, settings.models(), settings.without)
    return replace(config, frames=settings.frames or config.frames, fps=settings.fps or config.fps)
