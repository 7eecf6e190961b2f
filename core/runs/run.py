"""A whole method, from a driving video and an object to a scene: what the command line, the demo and the benchmark call."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from ... import __version__
from ..align import FocalAlignment, color_from_frame
from ..align.clip import focal_per_frame
from ..cameras import FrontCamera
from ..files import InputError, atomic_path
from ..fit.estimate import FitEstimate, process_memory_mb
from ..identity import fingerprint
from ..io import side_by_side, write_mp4
from ..io.meshes import SUFFIXES
from ..io.objects import load_object
from ..io.video import load_video
from ..mesh import Mesh
from ..methods import align4d, dg4d, pla4d, stag4d, stages
from ..methods.stages import MethodConfig
from ..metrics.perceptual import perceptual_distance
from ..priors.base import Prior
from ..priors.models import find
from ..progress import Progress
from ..render import available_backends, resolve_backend, slow_renderer
from ..scene.anchors import Anchors
from ..scene.object3d import Object3D, SplatObject
from ..scene.scene import Scene4D
from ..scene.views import render_frames, turning_cameras
from ..video import DrivingVideo
from .verdict import judge

log = logging.getLogger(__name__)

METHODS = ("pla4d", "pla4d-v4", "align4d", "dg4d", "stag4d", "stag4d-code")
PRESETS = ("draft", "standard", "paper")

#: The prior that each method's paper uses.
OWN_PRIOR = {"pla4d": "zero123-xl", "pla4d-v4": "zero123-xl", "align4d": "zero123-xl", "dg4d": "stable-zero123"}
OWN_PRIOR |= {"stag4d": "zero123-xl", "stag4d-code": "zero123-xl"}
#: What draws STAG4D's anchors.
ANCHOR_PRIOR = "zero123plus-v1.1"
#: Methods that start without an object.
OBJECT_FREE = ("stag4d", "stag4d-code")

#: What is said where the bundled prior has to invent an object.
TOYS = (
    "prior tiny: it knows toys of a few shapes and blurs the sides of anything else. For real pictures get a published one "
    "(python -m anchor4d models get zero123-xl, a GPU), or use method pla4d, which inflates the first frame"
)

#: What :func:`run_in_folder` leaves in its folder.
SCENE, REPORT, FILM, CHECKPOINTS = "scene.safetensors", "report.json", "preview.mp4", "checkpoints"


@dataclass(frozen=True)
class Settings:
    """What a run's result depends on, its inputs aside.

    Args:
        method: one of :data:`METHODS`.
        preset: one of :data:`PRESETS`.
        seed: of every random choice.
        yaw: degrees to turn the object about +Y so that its front faces +Z, or "auto" to detect them.
        frames: frames of the video to keep; all where None.
        device: "auto", "cpu", "cuda" or "mps".
        renderer: see :func:`anchor4d.core.render.rasterize`.
        prior: diffusion prior for reference refinement: "none", "tiny" (it comes with the pack), a checkpoint folder, a name
            or Hub id of ``models list``, or "auto": :data:`OWN_PRIOR` of the method where it is here and there is a GPU for
            it, else tiny.
        without: parts of the method to leave out, of :data:`align4d.PARTS`.
        plus: parts of Align4D to add to stag4d, of :data:`stag4d.PARTS`.
        anchors: what draws the anchors of stag4d: as ``prior``, or a Zero123++; "auto" is :data:`ANCHOR_PRIOR` where it is here
            and there is a GPU for it, else the prior itself.
    """

    method: str = "pla4d"
    preset: str = "standard"
    seed: int = 0
    yaw: Literal["auto"] | float = "auto"
    frames: int | None = None
    device: str = "auto"
    renderer: str = "auto"
    prior: str = "auto"
    without: tuple[str, ...] = ()
    plus: tuple[str, ...] = ()
    anchors: str = "auto"

    def resolved(self) -> Settings:
        """The same with the device, renderer and prior that "auto" means on this machine.

        Raises:
            InputError: for an unknown name, or a device or renderer that is not there.
        """
        for name, value, known in (("method", self.method, METHODS), ("preset", self.preset, PRESETS)):
            if value not in known:
                raise InputError(f"{name} {value!r}: unknown, choose one of {', '.join(known)}")
        if self.without and self.method != "align4d":
            raise InputError(f"without {self.without[0]!r}: parts are left out of align4d, not of {self.method}")
        align4d.check_parts(self.without)
        anchored = self.method in OBJECT_FREE
        if self.plus and not anchored:
            raise InputError(f"plus {self.plus[0]!r}: parts are added to stag4d, not to {self.method}")
        stag4d.check_parts(self.plus)
        if self.anchors not in ("auto", "none") and not anchored:
            raise InputError(f"anchors {self.anchors!r}: stag4d has anchors, {self.method} has none")
        device = resolve_device(self.device)
        prior = self.prior
        if prior == "auto":
            own = OWN_PRIOR[self.method]
            prior = own if prior_device(device) != "cpu" and find(own) is not None else "tiny"
            log.info("prior: %s%s", prior, "" if prior == own else f" (the method's own, {own}, needs a GPU and its files)")
        anchors = self.anchors if anchored else "none"
        if anchors == "auto":
            own = prior_device(device) != "cpu" and find(ANCHOR_PRIOR) is not None
            anchors = ANCHOR_PRIOR if own else prior
            log.info("anchors: %s%s", anchors, "" if own else f" (the method's own, {ANCHOR_PRIOR}, needs a GPU and its files)")
        renderer = resolve_backend(self.renderer, device)
        if note := slow_renderer(renderer, device):
            log.warning("%s", note)
        return replace(self, device=device, renderer=renderer, prior=prior, anchors=anchors)

    def config(self) -> MethodConfig:
        """The method's own settings, with its prior loaded.

        Raises:
            InputError: for a prior that is not here or does not fit.
        """
        from ..priors.load import load_prior

        resolved = self.resolved()
        device = prior_device(resolved.device)
        prior = None if resolved.prior == "none" else load_prior(resolved.prior, device=device)
        views = prior if resolved.anchors == resolved.prior else None
        if resolved.anchors not in ("none", resolved.prior):
            views = load_prior(resolved.anchors, device=device)
        return method_config(self.method, self.preset, prior, self.without, self.plus, views)


def method_config(
    method: str,
    preset: str,
    prior: Prior | None = None,
    without: Sequence[str] = (),
    plus: Sequence[str] = (),
    views: Prior | None = None,
) -> MethodConfig:
    """The settings of one of :data:`METHODS` with one of :data:`PRESETS`; ``views`` draws anchors."""
    if method in ("stag4d", "stag4d-code"):
        return stag4d.preset(preset, prior, views, method=method, plus=plus)
    if method == "align4d":
        return align4d.preset(preset, prior, without)
    if method == "dg4d":
        return dg4d.preset(preset, prior)
    config = pla4d.preset(preset, prior)
    return pla4d.v4(config, prior) if method == "pla4d-v4" else config


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        scene: the moving object.
        video: the driving video as it was fitted.
        alignment: the camera and how it was found.
        report: JSON-serialisable; see :func:`run`.
    """

    scene: Scene4D
    video: DrivingVideo
    alignment: FocalAlignment
    report: dict[str, Any] = field(default_factory=dict)


class Finished(Protocol):
    """A finished run of any kind: a scene and its report."""

    @property
    def scene(self) -> Scene4D: ...

    @property
    def report(self) -> dict[str, Any]: ...


Result = TypeVar("Result", bound=Finished)


def resolve_device(name: str) -> str:
    """The device that a name means here. "auto" is CUDA where a renderer made for it is installed, else the CPU.

    Raises:
        InputError: for a device that this machine or this PyTorch lacks.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return "cuda" if there["cuda"] and available_backends("cuda")[0] != "torch" else "cpu"
    if name not in there:
        raise InputError(f"device {name!r}: unknown, choose one of auto, {', '.join(there)}")
    if not there[name]:
        raise InputError(f"device {name!r}: not available to this PyTorch ({torch.__version__}); choose auto or cpu")
    return name


def prior_device(device: str) -> str:
    """Where a prior runs beside a fit on ``device``: a CUDA GPU where there is one, even if the fit itself stays on the CPU."""
    return "cuda" if torch.cuda.is_available() else device


def run(
    video: DrivingVideo,
    mesh: Object3D | Sequence[Object3D] | None,
    settings: Settings,
    *,
    config: MethodConfig | None = None,
    anchors: Anchors | None = None,
    alignment: FocalAlignment | None = None,
    progress: Progress | None = None,
    checkpoints: str | os.PathLike[str] | None = None,
    strict: bool = False,
) -> Run:
    """Align, fit and animate: one method with a named preset.

    Args:
        video: driving video on the CPU.
        mesh: the object as a mesh or as Gaussians, of any size, place and turn about +Y; or one for each frame, all placed
            alike, for the method pla4d-v4; None for methods that start without one (stag4d).
        config: in place of the preset's.
        anchors: in place of those that the method would sample.
        alignment: the camera, and the object as it sees it, where they are known.
        progress: called in every stage; interrupts by raising.
        checkpoints: folder to keep checkpoints in, and to resume from where it holds some of the same run.
        strict: refuse an object that the verdict on its alignment does not call good, before any fit.

    Raises:
        InputError: for settings or a number of meshes that do not fit; with ``strict``, for an object that does not.

    Returns:
        the scene and a report: settings, versions, seconds a stage, camera, search curves, losses over time, peak memory.
    """
    settings = settings.resolved()
    config = settings.config() if config is None else config
    meshes = [] if mesh is None else [mesh] if isinstance(mesh, Object3D) else list(mesh)
    clock = Clock(progress)
    ball: Object3D | None = None
    if not meshes:
        if config.needs_object:
            raise InputError(f"object: method {settings.method} needs one, give a mesh or Gaussians")
        if config.anchors is None and anchors is None and _prior(config) == "none":
            raise InputError(f"prior none: method {settings.method} without an object needs a prior, choose tiny or another")
        if config.model_distance is not None:
            raise InputError("plus 'oda': the video's distance is that to an object, give one, or drop oda")
        alignment = alignment or stages.without_object(
            video, distance=config.distance, points=config.static.gaussians, seed=settings.seed
        )
        meshes = [alignment.mesh]
        ball = alignment.mesh
        if "tiny" in (_prior(config), getattr(getattr(config.anchors, "prior", None), "name", "")):
            log.warning("%s", TOYS)
    elif config.with_object is not None:
        config = config.with_object
    mesh = meshes[0]
    if not mesh.has_color:
        config = stages.untextured(config)
    if len(meshes) > 1 and not config.focal_per_frame:
        raise InputError(f"{mesh.name} and others: one mesh a frame is for the method pla4d-v4, give one mesh")
    if len(meshes) not in (1, len(video)):
        raise InputError(
            f"{mesh.name} and others: {len(meshes)} meshes for {len(video)} frames, give one, or one for each frame"
        )
    folder = None if checkpoints is None else Path(checkpoints)
    if alignment is None:
        alignment = stages.align(video, mesh, camera=config.camera, yaw=settings.yaw, progress=clock.aligning)
    if mesh is not ball:
        early = judge(video, alignment)
        if early.word != "good":
            if strict:
                raise InputError(f"{mesh.name}: {early.line}")
            log.warning("%s", early.line)
    tuned, distance = stages.prefer_distance(config, video, alignment, seed=settings.seed, progress=clock.aligning)
    fronts, moving = [], []
    if config.focal_per_frame:
        moving = [alignment.mesh, *_placed_like(alignment, video, meshes)]
        fronts, curve = focal_per_frame(video, moving, alignment.front)
        alignment.curves.append(curve)
    curves = [*alignment.curves, *([distance.curve] if distance is not None else [])]
    clock.stop("align camera")
    fresh = folder is None or not any(folder.glob("*.safetensors"))
    anchors = anchors or _anchors(video, alignment, tuned, settings, folder, clock)
    if anchors is not None:
        tuned = stages.with_anchors(tuned, anchors)
    on_device = video.to(settings.device)
    foreseen = None
    if progress is not None and fresh:
        foreseen = _foresee(on_device, alignment, tuned, moving, fronts, settings)
        log.info("estimate: %s", foreseen)
        clock.stop("estimate")
    still = stages.fit_static(
        on_device,
        alignment.mesh,
        alignment.front,
        tuned.static,
        seed=settings.seed,
        backend=settings.renderer,
        progress=clock,
        checkpoint=None if folder is None else folder / "object.safetensors",
    )
    if anchors is not None and tuned.anchors is not None and tuned.anchors.prior.pictures > 1:
        # The object as the canonical stage has it tells how large the anchors should show it.
        middle = len(video) // 2 if tuned.static.frame == "middle" else 0
        anchors = stages.match_anchors(anchors, still.gaussians, middle, backend=settings.renderer)
        tuned = stages.with_anchors(tuned, anchors)
    scene = stages.fit_motion(
        on_device,
        still,
        tuned.motion,
        mesh=alignment.mesh,
        meshes=moving,
        fronts=fronts,
        seed=settings.seed,
        backend=settings.renderer,
        progress=clock,
        checkpoint=None if folder is None else folder / "motion.safetensors",
    )
    scene = scene.to("cpu")
    made = {
        "method": settings.method,
        "without": list(settings.without),
        "plus": list(settings.plus),
        "preset": settings.preset,
        "seed": settings.seed,
        "prior": _prior(config),
    }
    scene.meta.update(made, program=f"anchor4d {__version__}")
    report = {
        **made,
        **circumstances(settings, config),
        "video": {
            "source": video.source,
            "frames": len(video),
            "fps": video.fps,
            "picture": [video.picture_width, video.picture_height],
            "crop": asdict(video.crop),
            "resolution": video.resolution,
            "foreground": video.masked_by,
            "loops": scene.loop,
        },
        "object": {"name": mesh.name, **object_size(mesh), "coloured": mesh.has_color},
        "camera": asdict(alignment.front) | {"yaw": alignment.yaw},
        "alignment": alignment.report | {"curves": [_curve(curve) for curve in curves]},
        "distance": None if distance is None else distance.report,
        "anchors": None if anchors is None else {"of": repr(anchors), "shown": float(anchors.valid.float().mean())},
        "gaussians": len(scene.gaussians),
        "perceptual": _perceptual(config, settings.device),
        "seconds": {name: round(value, 3) for name, value in clock.seconds.items()},
        "memory_peak_mb": memory_peak_mb(settings.device),
        "estimate": None if foreseen is None else asdict(foreseen),
        "losses": scene.meta.get("losses", {}),
    }
    if mesh is not ball:
        verdict = judge(video, alignment, scene)
        report["verdict"] = verdict.report()
        log.log(logging.INFO if verdict.word == "good" else logging.WARNING, "%s", verdict.line)
    return Run(scene, video, alignment, report)


def run_in_folder(
    video: str | os.PathLike[str],
    mesh: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    settings: Settings,
    *,
    fps: float | None = None,
    config: MethodConfig | None = None,
    resume: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
) -> Run | None:
    """:func:`run` from files to files: leaves the scene, ``report.json`` and ``preview.mp4`` in ``out``.

    Inputs are read before anything is written. Files of an earlier run in ``out`` are replaced once the new ones are whole;
    nothing else there is touched. Checkpoints are kept in ``out`` until the run is done.

    Args:
        mesh: a mesh or splat file, or a folder of one a frame in natural order, or None, see :func:`run`.
        fps: frames a second, where the video does not say or says wrong.
        config: in place of the preset's.
        resume: go on from the checkpoints in ``out``; to the same result, bit by bit on a CPU, as a run without interruption.
        strict: see :func:`run`.

    Returns:
        the run, or None where ``resume`` finds it finished.

    Raises:
        InputError: for unreadable inputs, or checkpoints of another run.
    """
    started = time.perf_counter()
    settings = settings.resolved()
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, choose a folder to write to")
    config = settings.config() if config is None else config
    clip = load_video(video, fps=fps, frames=settings.frames, resolution=config.resolution)
    models = [] if mesh is None else [load_object(path) for path in _mesh_files(Path(mesh))]
    shapes = [_identity(model) for model in models]
    key = fingerprint(clip.frames, clip.masks, shapes, repr(config), repr(settings), __version__)
    return into_folder(
        out,
        key,
        {"settings": asdict(settings), "config": repr(config)},
        lambda checkpoints: run(
            clip, models or None, settings, config=config, progress=progress, checkpoints=checkpoints, strict=strict
        ),
        lambda result: preview_film(result, settings.renderer),
        resume=resume,
        started=started,
    )


def into_folder(
    out: Path,
    key: str,
    label: dict[str, Any],
    make: Callable[[Path], Result],
    film: Callable[[Result], Any],
    *,
    resume: bool = False,
    started: float | None = None,
) -> Result | None:
    """The folder's part of :func:`run_in_folder`, for runs of any kind.

    Args:
        key: of the inputs and settings.
        label: what describes them.
        make: the run, given the folder of its checkpoints.
        film: its preview (T, H, W, 3) uint8.
        started: when reading the inputs began, as of ``time.perf_counter``.
    """
    checkpoints, path = out / CHECKPOINTS, out / CHECKPOINTS / "run.json"
    if resume and not path.is_file() and _finished(out, key):
        return None
    if resume and path.is_file() and _read_json(path).get("key") != key:
        raise InputError(f"{checkpoints}: belongs to a run of other inputs or settings; give the same or drop --resume")
    if not resume:
        shutil.rmtree(checkpoints, ignore_errors=True)
    resumed = path.is_file()
    checkpoints.mkdir(parents=True, exist_ok=True)
    write_json(path, {"key": key, **label})
    read = 0.0 if started is None else time.perf_counter() - started
    result = make(checkpoints)
    started = time.perf_counter()
    result.scene.save(out / SCENE)
    write_mp4(out / FILM, film(result), result.scene.fps)
    seconds = {"read": round(read, 3)} | result.report["seconds"] | {"write": round(time.perf_counter() - started, 3)}
    result.report.update(key=key, resumed=resumed, seconds=seconds | {"total": round(sum(seconds.values()), 3)})
    write_json(out / REPORT, result.report)
    shutil.rmtree(checkpoints)
    return result


def preview_film(run: Run, backend: str = "auto", *, height: int = 256, turns: int = 4) -> Any:  # (T, H, W, 3) uint8
    """The driving video beside the object from its front camera and from a camera that circles it, on white."""
    scene, video = run.scene, run.video
    backend = "auto" if backend == "gsplat" else backend  # the scene is on the CPU by now
    video = video.resized(min(height, video.resolution))
    size = video.resolution
    front = render_frames(scene, run.alignment.front.cropped(video.crop, size), backend=backend)[0]
    around = render_frames(scene, *turning_cameras(scene, size, turns), backend=backend)[0]
    driving = torch.cat([video.frames, video.masks[..., None]], -1)
    panels = {"driving video": driving, "same camera": front}
    return side_by_side(
        {name: view.repeat(turns, 1, 1, 1) for name, view in panels.items()} | {"all around": around}, height=height
    )


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON in one step; numbers that JSON lacks become null."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_plain(value), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def memory_peak_mb(device: str = "cpu") -> dict[str, float]:
    """The most memory that this process has held so far, megabytes, on the host and on a CUDA device."""
    places = {"host": "cpu"} | ({"cuda": "cuda"} if device == "cuda" else {})
    return {name: round(process_memory_mb(torch.device(place)), 1) for name, place in places.items()}


def _foresee(
    video: DrivingVideo,
    alignment: FocalAlignment,
    config: MethodConfig,
    meshes: Sequence[Object3D],
    fronts: Sequence[FrontCamera],
    settings: Settings,
) -> FitEstimate:
    """The cost of both fits; the Gaussians as they are sampled stand for the fitted ones."""
    start = stages.fit_static(video, alignment.mesh, alignment.front, replace(config.static, objectives=()), seed=settings.seed)
    common: dict[str, Any] = {"mesh": alignment.mesh, "backend": settings.renderer}
    static = stages.estimate(video, start, config.static, **common)
    return static + stages.estimate(video, start, config.motion, meshes=meshes, fronts=fronts, **common)


class Clock:
    """Hands progress on and takes each stage's time."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.seconds, self.last = progress, {}, time.perf_counter()

    def stop(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.last = now

    def __call__(self, stage: str, step: int, steps: int, losses: dict[str, float], preview: Callable[[], Tensor]) -> None:
        self.stop(stage)
        if self.progress is not None:
            self.progress(stage, step, steps, losses, preview)

    def drawing(self, step: int, steps: int, picture: Callable[[], Tensor | None]) -> None:
        self.stop("sample anchors")
        if self.progress is not None:

            def shown() -> Tensor:
                drawn = picture()
                return torch.ones(8, 8, 3) if drawn is None else torch.cat(list(drawn), 1).cpu()

            self.progress("sample anchors", step, steps, {}, shown)

    def aligning(self, fraction: float, picture: Tensor | None) -> None:
        if self.progress is not None:
            blank = torch.ones(8, 8, 3)
            self.progress("align camera", round(100 * fraction), 100, {}, lambda: blank if picture is None else picture)


def _anchors(
    video: DrivingVideo,
    alignment: FocalAlignment,
    config: MethodConfig,
    settings: Settings,
    folder: Path | None,
    clock: Clock,
) -> Anchors | None:
    """The anchors, from the checkpoints of this run where it drew them before."""
    kept = None if folder is None else folder / "anchors.safetensors"
    if kept is not None and kept.is_file():
        return Anchors.load(kept)
    drawn = stages.draw_anchors(video, alignment.front, config, seed=settings.seed, progress=clock.drawing)
    if kept is not None and drawn is not None:
        drawn.save(kept)
    return drawn


def _placed_like(alignment: FocalAlignment, video: DrivingVideo, meshes: Sequence[Object3D]) -> list[Object3D]:
    """The second and later meshes moved as alignment moved the first, and coloured from their frames where they are bare."""
    first, matrix = meshes[0].normalized()
    again = first.turned(alignment.yaw).normalized()[1] if alignment.yaw else torch.eye(4)
    camera = alignment.front.cropped(video.crop, video.resolution)
    placed = []
    for t, mesh in enumerate(meshes[1:], 1):
        mesh = mesh.transformed(matrix).turned(alignment.yaw).transformed(again)
        if isinstance(mesh, Mesh) and not mesh.has_color:
            mesh = color_from_frame(mesh, video.frames[t], video.masks[t], camera)
        placed.append(mesh)
    return placed


def object_size(item: Object3D) -> dict[str, int]:
    """What a report says of an object's size."""
    if isinstance(item, SplatObject):
        return {"gaussians": len(item.gaussians)}
    return {"vertices": len(item.vertices), "faces": len(item.faces)}


def _identity(item: Object3D) -> list[Tensor]:
    """What tells an object from another one."""
    return list(item.gaussians.tensors().values()) if isinstance(item, SplatObject) else [item.vertices, item.faces]


def _mesh_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES]
    if not files:
        raise InputError(f"{path}: no meshes in this folder, choose a file or put one mesh for each frame there")
    return sorted(files, key=lambda p: [(0, int(s), "") if s.isdigit() else (1, 0, s) for s in re.split(r"(\d+)", p.name) if s])


def _finished(out: Path, key: str) -> bool:
    return (out / SCENE).is_file() and (out / REPORT).is_file() and _read_json(out / REPORT).get("key") == key


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def _curve(curve: Any) -> dict[str, Any]:
    return {
        "name": curve.name,
        "x_label": curve.x_label,
        "x": [round(v, 6) for v in curve.x.tolist()],
        "y": [round(v, 8) for v in curve.y.tolist()],
        "chosen": curve.chosen,
    }


def _prior(config: MethodConfig) -> str:
    """The prior that the objectives ask, by name."""
    asked = {o.distillation.prior.name for o in config.motion.objectives if getattr(o, "generative", False)}  # pyright: ignore[reportAttributeAccessIssue]
    return ", ".join(sorted(asked)) or "none"


def _perceptual(config: Any, device: str) -> str:
    """Which perceptual distance the objectives used on this machine."""
    used = {
        perceptual_distance(objective.network, device)[1]
        for objective in (*config.static.objectives, *config.motion.objectives)
        if getattr(objective, "perceptual", 0.0) > 0
    }
    return ", ".join(sorted(used)) or "not used by this preset"


def circumstances(settings: Any, config: Any) -> dict[str, Any]:
    """What every report says of a run beside its method: settings, versions and the machine's part.

    Args:
        settings: resolved, with ``device`` and ``renderer``.
    """
    return {
        "settings": asdict(settings),
        "config": repr(config),
        "versions": versions(),
        "device": device_name(settings.device),
        "renderer": settings.renderer,
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"anchor4d": __version__, "python": platform.python_version()}
    found["platform"] = platform.platform()
    for name in ("torch", "numpy", "numba", "gsplat", "lpips", "diffusers", "transformers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine() if device == "cpu" else device
