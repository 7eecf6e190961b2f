"""A run of any method from its inputs to a scene: what the command line, the demo, the benchmarks and Python call."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ... import __version__
from ..align import FocalAlignment
from ..files import InputError
from ..identity import canonical, file_identity, fingerprint
from ..io import side_by_side
from ..io.clip import natural
from ..io.meshes import SUFFIXES
from ..io.objects import load_object
from ..io.signals import SignalFiles, read_signals
from ..io.video import Percent, Reading, load_video
from ..methods.plan import Clock, MethodRun, check_objects
from ..methods.registry import DEPTH_MOTION, METHODS, Choice, Method, ModelRole
from ..methods.verdict import judge
from ..priors.base import Prior
from ..priors.models import COMMAND, find, model_named
from ..progress import Progress
from ..render import resolve_backend, slow_renderer
from ..scene.anchors import Anchors
from ..scene.object3d import Object3D
from ..scene.scene import Scene4D
from ..scene.views import driving_cameras, object_cameras, render_frames, turning_cameras
from ..signals import Signals
from ..transfer import on
from ..video import DrivingVideo
from .folder import REPORT, SCENE, into_folder, started_with
from .page import run_page
from .report import made_by, read_json, report_of

log = logging.getLogger(__name__)

#: What is said where the bundled prior has to invent an object.
TOYS = (
    "prior tiny: it knows toys of a few shapes and blurs the sides of anything else. For real pictures get a published one "
    "(python -m anchor4d models get zero123-xl, a GPU), or use method pla4d, which inflates the first frame"
)


@dataclass(frozen=True)
class Settings:
    """What a run's result depends on, its inputs aside.

    Args:
        method: of :data:`~..methods.registry.METHODS`.
        preset: of :data:`~..methods.registry.PRESETS`.
        seed: of every random choice.
        yaw: degrees to turn the object about +Y so that its front faces +Z, or "auto" to detect them, where a video shows it.
        up: the axis of the object's file that points up, see :func:`~..io.meshes.load_mesh`.
        frames: frames of the video to keep, all where None; without a video, of a clip.
        fps: frames a second, where no video says.
        device: "auto", "cpu", "cuda", "cuda:1" (a card by its number) or "mps".
        prior_device: where priors compute, which changes no result: the same names; see :func:`prior_device`.
        renderer: see :func:`anchor4d.core.render.rasterize`.
        prior, anchors, video, images, views: the models of the method's roles, each "tiny" (it comes with the pack), a
            folder, a name or Hub id of ``models list``, "none", or "auto": see :class:`~..methods.registry.ModelRole`.
        without, plus: parts of the method to leave out, and parts of others to add.
        then: a text for each further clip; "" = the first one's.
        closed: the motion returns to its first frame.
    """

    method: str = "pla4d"
    preset: str = "standard"
    seed: int = 0
    yaw: Literal["auto"] | float = "auto"
    frames: int | None = None
    device: str = "auto"
    prior_device: str = "auto"
    renderer: str = "auto"
    prior: str = "auto"
    without: tuple[str, ...] = ()
    plus: tuple[str, ...] = ()
    anchors: str = "auto"
    fps: float | None = None
    then: tuple[str, ...] = ()
    closed: bool = False
    video: str = "auto"
    images: str = "auto"
    views: str = "auto"
    up: str = "y"

    @property
    def of(self) -> Method:
        """The method."""
        return METHODS.named(self.method)

    def resolved(self, has_object: bool = False, models: bool = True) -> Settings:
        """The same with the device, renderer and models that "auto" means on this machine.

        Args:
            has_object: an object is given, so that models which only make one are not needed.
            models: look for the models too.

        Raises:
            InputError: for an unknown name, a device or renderer that is not there, or models that are not, in one line.
        """
        method = self.of
        method.check(self.choice({}))
        if self.fps is not None and not self.fps > 0:
            raise InputError(f"fps {self.fps:g}: choose more than 0")
        if (self.then or self.closed) and not method.prolongs:
            prolonging = " or ".join(name for name, other in METHODS.items() if other.prolongs)
            word = "then" if self.then else "loop"
            raise InputError(f"{word}: prolongs motions of method {prolonging}, not of {self.method}")
        roles = {role.name: role for role in method.roles}
        if self.anchors not in ("auto", "none") and "anchors" not in roles:
            having = " or ".join(name for name, other in METHODS.items() if any(r.name == "anchors" for r in other.roles))
            raise InputError(f"anchors {self.anchors!r}: {having} has anchors, {self.method} has none")
        device = resolve_device(self.device)
        if self.prior_device != "auto":
            resolve_device(self.prior_device)
        made = replace(self, device=device, renderer=resolve_backend(self.renderer, device))
        if note := slow_renderer(made.renderer, device):
            log.warning("%s", note)
        if not models:
            return made
        absent: list[str] = []
        for name in ROLES:
            role = None if made.preset == "preview" else roles.get(name)
            if role is None or role.unless in self.without or (role.unless == "object" and has_object):
                made = replace(made, **{name: "none"})
            else:
                made = replace(made, **{name: _chosen(made, role, device, absent)})
        if absent:
            raise _missing(self.method, absent)
        return made

    def choice(self, models: Any = None, prompt: str = "") -> Choice:
        """What the settings choose of the method; by default with all the models that they name."""
        named = [name for name in ROLES if getattr(self, name) != "none"] if models is None else models
        return Choice(self.preset, self.without, self.plus, prompt, frozenset(named))

    def of_guessed_depth(self) -> Settings:
        """The same for an object whose depth is a guess: nothing moves in depth, where the preset can leave that out."""
        if DEPTH_MOTION not in self.of.without:
            return self
        flat = replace(self, without=(*self.without, DEPTH_MOTION))
        if fingerprint(flat.plain()) == fingerprint(self.plain()):  # left out already, or never there
            return self
        log.info("the object's depth is a guess: nothing moves in depth; give it by --object for its motion in depth as well")
        return flat

    def plain(self, prompt: str = "") -> Any:
        """The method's own settings as plain data, its models named by their roles; of resolved settings."""
        config: Any = self.of.settings(self.choice(prompt=prompt))
        if self.of.follows == "text":
            config = replace(config, frames=self.frames or config.frames, fps=self.fps or config.fps)
        return config

    def models(self) -> dict[str, Prior]:
        """The models of resolved settings by their roles, loaded.

        Raises:
            InputError: for a model that is not here or does not fit.
        """
        from ..priors.load import load_prior

        loaded: dict[str, Prior] = {}
        for name in {getattr(self, role.name) for role in self.of.roles} - {"none"}:
            where = prior_device(self.device, self.prior_device, small=name == "tiny", what=f"prior {name}")
            loaded[name] = load_prior(name, device=where)
        return {role.name: loaded[name] for role in self.of.roles if (name := getattr(self, role.name)) in loaded}

    def config(self, prompt: str = "") -> Any:
        """The method's own settings with the models in their places."""
        settings = self.resolved()
        return settings.plain(prompt).bound(settings.models())


#: Settings that name models, by the roles of all methods; a role may take another's choice, which comes before it.
ROLES = ("prior", "anchors", "video", "images", "views")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        scene: the moving object.
        report: JSON-serialisable; see :func:`.report.report_of`.
        video: the driving video as it was fitted, where there is one.
        alignment: the camera and how it was found, where there is a video.
    """

    scene: Scene4D
    report: dict[str, Any] = field(default_factory=dict)
    video: DrivingVideo | None = None
    alignment: FocalAlignment | None = None


def resolve_device(name: str) -> str:
    """The device that a name means here. "auto" is the graphics card where there is one (CUDA or ROCm), else the CPU.

    Raises:
        InputError: for a device that this machine or this PyTorch lacks.
    """
    if re.fullmatch(r"cuda:[0-9]{1,4}", name):
        cards = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        if name not in cards:
            raise InputError(f"device {name!r}: no such card here; choose one of {', '.join(['auto', 'cpu', *cards])}")
        return name
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if name not in there:
        raise InputError(f"device {name!r}: unknown, choose one of auto, {', '.join(there)}")
    if not there[name]:
        raise InputError(f"device {name!r}: not available to this PyTorch ({torch.__version__}); choose auto or cpu")
    return name


def prior_device(device: str, wanted: str = "auto", *, small: bool = False, what: str = "prior") -> str:
    """Where a prior or a generator computes beside a fit on ``device``.

    A CUDA GPU where there is one, even if the fit itself stays on the CPU; Apple's for all but small networks. Of several, the
    one with the most free memory, another than the fit's where they have about as much; that is said in one line.

    Args:
        wanted: a device by name, in place of that choice.
        small: a network so small that steps are faster with it on the fit's own card.
        what: it is called in that line.

    Raises:
        InputError: for a device that is not there.
    """
    if wanted != "auto":
        return resolve_device(wanted)
    if not torch.cuda.is_available():
        return "mps" if torch.backends.mps.is_available() and not small else device
    cards, fitted = torch.cuda.device_count(), torch.device(device)
    if cards == 1 or (small and fitted.type == "cuda"):
        return device if fitted.type == "cuda" else "cuda"
    own = -1 if fitted.type != "cuda" else torch.cuda.current_device() if fitted.index is None else fitted.index
    free = [torch.cuda.mem_get_info(i)[0] for i in range(cards)]
    best = max(range(cards), key=lambda i: free[i] * (0.9 if i == own else 1.0))
    log.info("%s: on card cuda:%d, %.1f GB free; the fit is on %s", what, best, free[best] / 1e9, device)
    return device if best == own else f"cuda:{best}"


def _chosen(settings: Settings, role: ModelRole, device: str, absent: list[str]) -> str:
    """The model of a role on this machine; what is not here goes to ``absent``."""
    wanted = getattr(settings, role.name)
    if role.fallback is not None:
        if wanted != "auto":
            return wanted
        fallback = getattr(settings, role.fallback) if role.fallback in ROLES else role.fallback
        there = prior_device(device) != "cpu" and find(role.own[0]) is not None
        own = f" (the method's own, {role.own[0]}, needs a GPU and its files)"
        log.info("%s: %s%s", role.name, role.own[0] if there else fallback, "" if there else own)
        return role.own[0] if there else fallback
    if wanted == "none" and role.optional:
        return wanted
    candidates = role.own if wanted == "auto" else (wanted,)
    for candidate in candidates:
        if Path(candidate).exists() or find(candidate) is not None:
            return candidate
    absent.append(candidates[0])
    return candidates[0]


def _missing(method: str, absent: Sequence[str]) -> InputError:
    known = [name for name in absent if model_named(name) is not None]
    them = "it" if len(absent) == 1 else "them"
    how = [f"get {them} with: " + "; ".join(f"{COMMAND} get {m}" for m in known)] if known else []
    how += [f"{name}: no such folder, and no model of that name" for name in absent if name not in known]
    return InputError(f"method {method}: needs {', '.join(absent)}, not on this machine; {'; '.join(how)}")


def run(
    video: DrivingVideo | None,
    mesh: Object3D | Sequence[Object3D] | None,
    settings: Settings,
    *,
    prompt: str = "",
    config: Any = None,
    anchors: Anchors | None = None,
    alignment: FocalAlignment | None = None,
    progress: Progress | None = None,
    checkpoints: str | os.PathLike[str] | None = None,
    identity: str = "",
    strict: bool = False,
    signals: Signals = Signals(),
    start: Scene4D | None = None,
) -> Run:
    """One method with a named preset, from its inputs to a scene.

    Args:
        video: driving video on the CPU; None for methods that follow a text.
        mesh: the object as a mesh or as Gaussians, of any size, place and turn about +Y; or one for each frame, all placed
            alike, for methods that take them; None for methods that start without one.
        prompt: the text of methods that follow one.
        config: in place of the preset's, with models in their places.
        anchors: in place of those that the method would sample.
        alignment: the camera, and the object as it sees it, where they are known.
        progress: called in every stage; interrupts by raising.
        checkpoints: folder to keep checkpoints in, and to resume from where it holds some of the same run.
        identity: of all inputs, names the checkpoints; "" takes their content.
        strict: refuse an object that the verdict on its alignment does not call good, before any fit.
        signals: what is given besides the video, which the motion follows too.
        start: a moving scene of the same video and object, such as preset ``preview`` makes, whose motion the fit starts with.

    Raises:
        InputError: for settings, inputs or models that do not fit; with ``strict``, for an object that does not.
    """
    meshes = [] if mesh is None else [mesh] if isinstance(mesh, Object3D) else list(mesh)
    settings = settings.resolved(bool(meshes), models=config is None)
    method = settings.of
    if config is None:
        config = settings.plain(prompt).bound(settings.models())
    if method.follows == "video":
        _check_video_inputs(video, meshes, method, config, anchors)
    elif signals:
        raise InputError(f"signals: depth, tracks and other sides are of a video, and method {method.name} follows a text")
    if signals and config.motion.following is not None:
        log.warning("preset preview: follows the video alone; depth, tracks and other sides count from preset draft on")
    work = MethodRun(
        config, method.name, Clock(progress), video, meshes, prompt, settings.then, settings.closed, settings.yaw,
        settings.seed, settings.device, settings.renderer, None if checkpoints is None else Path(checkpoints), identity,
        alignment, anchors, strict=strict, signals=signals, start=start,
    )  # fmt: skip
    if not meshes and method.follows == "video" and "tiny" in {settings.prior, settings.anchors}:
        log.warning("%s", TOYS)
    with on(torch.device(settings.device)):
        scene = method.plan(work).to("cpu")
    terms = [*work.config.static.objectives, *work.config.motion.objectives]
    scene.meta.update(made_by(settings, work, terms), program=f"anchor4d {__version__}")
    item = work.objects[0] if work.objects else None
    report = report_of(work, scene, settings, config, item)
    if meshes and video is not None:
        verdict = judge(video, work.aligned, scene)
        report["verdict"] = verdict.report()
        log.log(logging.INFO if verdict.word == "good" else logging.WARNING, "%s", verdict.line)
    return Run(scene, report, video, work.alignment)


def _check_video_inputs(
    video: DrivingVideo | None, meshes: Sequence[Object3D], method: Method, config: Any, anchors: Anchors | None
) -> None:
    if video is None:
        raise InputError(f"video: method {method.name} follows one, give it")
    check_objects(meshes, video, one_a_frame=method.object_a_frame)
    if meshes:
        return
    if method.needs_object:
        raise InputError(f"object: method {method.name} needs one, give a mesh or Gaussians")
    if config.anchors is None and anchors is None and not any(o.priors() for o in config.motion.objectives):
        raise InputError(f"prior none: method {method.name} without an object needs a prior, choose tiny or another")
    if config.model_distance is not None:
        raise InputError("plus 'oda': the video's distance is that to an object, give one, or drop oda")


def run_in_folder(
    video: str | os.PathLike[str] | None,
    mesh: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    settings: Settings,
    *,
    prompt: str = "",
    fps: float | None = None,
    config: Any = None,
    resume: bool = False,
    reading: Reading = Reading(),
    strict: bool = False,
    signals: SignalFiles = SignalFiles(),
    progress: Progress | None = None,
    read: Percent | None = None,
) -> Run | None:
    """:func:`run` from files to files: leaves the scene, ``report.json``, ``report.html`` and ``preview.mp4`` in ``out``.

    Inputs are read before anything is written. Files of an earlier run in ``out`` are replaced once the new ones are whole;
    nothing else there is touched. Checkpoints are kept in ``out`` until the run is done.

    Args:
        video: a driving video that :func:`~..io.video.load_video` reads; None for methods that follow a text.
        mesh: a mesh or splat file, or a folder of one a frame in natural order, or None, see :func:`run`.
        fps: frames a second, where the video does not say or says wrong.
        config: in place of the preset's, with models in their places.
        resume: go on from the checkpoints in ``out``; to the same result, bit by bit on a CPU, as a run without interruption.
            Where ``out`` holds the ``preview`` of the same inputs, or what another preset made of it, its motion is the start.
        reading: the part of the video that is taken, and how the object is found in it.
        strict: see :func:`run`.
        signals: files of what is given besides the video.
        read: progress of reading the video.

    Returns:
        the run, or None where ``resume`` finds it finished.

    Raises:
        InputError: for unreadable inputs, models that are not here, or checkpoints of another run.
    """
    started = time.perf_counter()
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, choose a folder to write to")
    if settings.of.follows == "text" and not prompt.strip():
        raise InputError("prompt: empty, say what the object is and does")
    settings = settings.resolved(mesh is not None, models=config is None)
    plain = settings.plain(prompt) if config is None else config
    models = {} if config is not None else settings.models()
    clip = None
    if video is not None:
        size: dict[str, Any] = {"fps": fps, "frames": settings.frames, "resolution": plain.resolution}
        clip = load_video(video, progress=read, **size, **vars(reading))
        mask = None if reading.mask is None else file_identity(reading.mask)
        clip = replace(clip, identity=fingerprint(file_identity(video), size, replace(reading, mask=mask)))
    beside = Signals()
    if signals and clip is not None:
        beside = read_signals(signals, clip, fps=fps, frames=settings.frames, reading=reading)
    objects = [] if mesh is None else [load_object(path, settings.up) for path in _mesh_files(Path(mesh))]
    parts = {
        "settings": replace(settings, prior_device="auto"),
        "config": plain,
        "models": models,
        "prompt": prompt,
        "video": clip,
        "object": objects,
    }
    if signals:
        parts["signals"] = beside
    key = fingerprint(parts, __version__)
    label: dict[str, Any] = {"settings": asdict(settings), "plan": canonical(plain), "prompt": prompt}
    start = None
    if config is None and (preview := _preview_of(settings, prompt)) is not None:
        files = [None if path is None else file_identity(path) for path in (video, reading.mask)]
        of = fingerprint(preview, files, replace(reading, mask=None), fps, objects, beside, prompt, __version__)
        there = read_json(out / REPORT)
        if settings.preset == "preview":
            label["preview"] = of
        elif resume and there.get("preview") == of:
            # Finished before with this preset, or what is there is where this one starts.
            label["preview"], label["from"] = of, there.get("from")
            if there.get("key") != fingerprint(key, label["from"]):
                label["from"], start = there.get("key"), out / SCENE
            key = fingerprint(key, label["from"])
    given = {
        "prompt": prompt,
        "config": plain.bound(models) if config is None else config,
        "progress": progress,
        "strict": strict,
        "signals": beside,
    }
    return into_folder(
        out,
        key,
        label,
        lambda checkpoints: run(
            clip, objects or None, settings, checkpoints=checkpoints, identity=key, start=started_with(checkpoints), **given
        ),
        lambda result: preview_film(result, settings.renderer, device=settings.device),
        page=lambda path, result: run_page(path, result, settings.renderer, settings.device),
        resume=resume,
        started=started,
        start=start,
    )


def _preview_of(settings: Settings, prompt: str) -> Any:
    """What a preview of the same run is made with; None for methods that have none."""
    if "preview" not in settings.of.presets:
        return None
    preview = replace(settings, preset="preview", **dict.fromkeys(ROLES, "none"))
    return [preview, preview.plain(prompt)]


def preview_film(run: Run, backend: str = "auto", *, height: int = 256, device: str = "cpu") -> Any:  # (T, H, W, 3) uint8
    """The driving video beside the object from its camera, or its front and right; and a camera that circles it, on white."""
    scene, video = run.scene.to(device), run.video
    if video is not None and run.alignment is not None:
        video, turns = video.resized(min(height, video.resolution)), 4
        size = video.resolution
        front = render_frames(scene, driving_cameras(video, run.alignment.front), backend=backend)[0]
        panels = {"driving video": torch.cat([video.frames, video.masks[..., None]], -1), "same camera": front}
    else:
        size, turns = height, 2
        panels = dict(zip(("front", "right"), render_frames(scene, object_cameras(scene, size, [0.0, 90.0]), backend=backend)))
    around = render_frames(scene, *turning_cameras(scene, size, turns), backend=backend)[0]
    return side_by_side(
        {name: view.repeat(turns, 1, 1, 1) for name, view in panels.items()} | {"all around": around}, height=height
    )


def _mesh_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES]
    if not files:
        raise InputError(f"{path}: no meshes in this folder, choose a file or put one mesh for each frame there")
    return sorted(files, key=natural)
