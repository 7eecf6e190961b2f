"""A run of a method: its inputs, and the stages that methods' plans are made of.

A plan calls the stages in the paper's order; each leaves what it found for those behind it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..align import FocalAlignment, color_from_frame
from ..align.clip import focal_per_frame
from ..align.distance import ModelDistance
from ..cameras import FrontCamera
from ..files import InputError
from ..fit.estimate import FitEstimate
from ..mesh import Mesh
from ..progress import Progress
from ..render.mesh import drawing_on
from ..scene.anchors import Anchors
from ..scene.object3d import Object3D
from ..scene.scene import Scene4D
from ..signals import Signals
from ..video import DrivingVideo
from . import stages
from .signals import with_signals
from .stages import MotionConfig, StaticConfig
from .verdict import judge

log = logging.getLogger(__name__)


class Clock:
    """Hands progress on and takes each stage's time.

    Attributes:
        seconds: by stage.
    """

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.last = progress, time.perf_counter()
        self.seconds: dict[str, float] = {}

    def stop(self, stage: str) -> None:
        """The time since the last stop is the stage's."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.last = now

    def __call__(self, stage: str, step: int, steps: int, losses: dict[str, float], preview: Callable[[], Tensor]) -> None:
        self.stop(stage)
        if self.progress is not None:
            self.progress(stage, step, steps, losses, preview)

    def drawing(self, step: int, steps: int, picture: Callable[[], Tensor | None]) -> None:
        """Progress of drawing anchors."""

        def shown() -> Tensor:
            drawn = picture()
            return torch.ones(8, 8, 3) if drawn is None else torch.cat(list(drawn), 1).cpu()

        self("sample anchors", step, steps, {}, shown)

    def aligning(self, fraction: float, picture: Tensor | None) -> None:
        """Progress of a search for the camera."""
        if self.progress is not None:
            blank = torch.ones(8, 8, 3)
            self.progress("align camera", round(100 * fraction), 100, {}, lambda: blank if picture is None else picture)


@dataclass
class MethodRun:
    """What a plan works with.

    Args:
        config: the method's settings, with its models in their places.
        name: of the method.
        clock: progress and times.
        video: on the CPU; None where none drives the object.
        objects: the object as it was given, or one of each frame; empty where none was.
        prompt: the text, where one is followed.
        then: a text for each further clip; "" = the first one's.
        closed: the motion returns to its first frame.
        yaw: degrees to turn the object so that its front faces +Z, or "auto".
        seed, device, backend: of the fits.
        folder: of checkpoints, or None.
        identity: of all inputs, names the checkpoints; "" takes their content.
        alignment: the camera, and the object as it sees it, once known.
        anchors: views of every frame, once known.
        distance: that the prior prefers, once found.
        fronts, moving: the camera and the object of each frame, for methods that have them.
        scene: as far as it is made.
        start: a moving scene of the same inputs whose motion the fit starts with, or None.
        foreseen: what the fits will cost.
        signals: what is given besides the video, which the motion follows too.
        signal_report: what a report says of them, once their places are known.
        strict: an object that the verdict on its alignment does not call good is refused before any fit.
    """

    config: Any
    name: str
    clock: Clock
    video: DrivingVideo | None = None
    objects: Sequence[Object3D] = ()
    prompt: str = ""
    then: tuple[str, ...] = ()
    closed: bool = False
    yaw: Any = "auto"
    seed: int = 0
    device: str = "cpu"
    backend: str = "auto"
    folder: Path | None = None
    identity: str = ""
    alignment: FocalAlignment | None = None
    anchors: Anchors | None = None
    distance: ModelDistance | None = None
    fronts: list[FrontCamera] = field(default_factory=list)
    moving: list[Object3D] = field(default_factory=list)
    scene: Scene4D | None = None
    start: Scene4D | None = None
    foreseen: FitEstimate | None = None
    strict: bool = False
    signals: Signals = field(default_factory=Signals)
    signal_report: dict[str, Any] = field(default_factory=dict)

    @property
    def clip(self) -> DrivingVideo:
        """The driving video of a method that follows one."""
        assert self.video is not None
        return self.video

    @property
    def aligned(self) -> FocalAlignment:
        """The camera, behind :meth:`align`."""
        assert self.alignment is not None
        return self.alignment

    @property
    def made(self) -> Scene4D:
        """The scene as far as it is made, behind :meth:`fit_object`."""
        assert self.scene is not None
        return self.scene

    @property
    def fitting(self) -> dict[str, Any]:
        """What every fit is given."""
        return {"seed": self.seed, "backend": self.backend, "progress": self.clock, "identity": self.identity}

    def checkpoint(self, name: str) -> Path | None:
        """The file of a stage's checkpoint."""
        return None if self.folder is None else self.folder / f"{name}.safetensors"

    def align(self) -> None:
        """The camera of the first frame, and the object turned to face it; without an object, points that stand in for one."""
        config, given = self.config, bool(self.objects)
        if not given:
            self.alignment = self.alignment or stages.without_object(
                self.clip, distance=config.distance, points=config.static.gaussians, seed=self.seed
            )
            self.objects = [self.alignment.mesh]
        elif config.with_object is not None:
            self.config = config = config.with_object
        if not self.objects[0].has_color:
            self.config = config = stages.untextured(config)
        if self.alignment is None:
            with drawing_on(self.device):
                self.alignment = stages.align(
                    self.clip, self.objects[0], camera=config.camera, yaw=self.yaw, progress=self.clock.aligning
                )
        if given and (early := judge(self.clip, self.alignment)).word != "good":
            if self.strict:
                raise InputError(f"{self.objects[0].name}: {early.line}")
            log.warning("%s", early.line)
        if self.signals:
            with drawing_on(self.device):
                self.config, self.signal_report = with_signals(self.config, self.signals, self.clip, self.aligned)
        self.clock.stop("align camera")

    def focal_per_frame(self) -> None:
        """A focal length for each frame; of objects that came one for each frame, the others placed like the first."""
        aligned = self.aligned
        self.moving = [aligned.mesh, *_placed_like(aligned, self.clip, self.objects)]
        with drawing_on(self.device):
            self.fronts, curve = focal_per_frame(self.clip, self.moving, aligned.front)
        aligned.curves.append(curve)
        self.clock.stop("align camera")

    def prefer_distance(self) -> None:
        """The distance that the prior prefers (Align4D's MAOD), where the settings ask for it."""
        with drawing_on(self.device):
            self.config, self.distance = stages.prefer_distance(
                self.config, self.clip, self.aligned, seed=self.seed, progress=self.clock.aligning
            )
        self.clock.stop("align camera")

    def draw_anchors(self) -> None:
        """The anchors (STAG4D), from the checkpoints of this run where it drew them before."""
        kept = self.checkpoint("anchors")
        if self.anchors is None and kept is not None and kept.is_file():
            self.anchors = Anchors.load(kept)
        elif self.anchors is None:
            front = self.aligned.front
            self.anchors = stages.draw_anchors(self.clip, front, self.config, seed=self.seed, progress=self.clock.drawing)
            if kept is not None and self.anchors is not None:
                self.anchors.save(kept)
        if self.anchors is not None:
            self.config = stages.with_anchors(self.config, self.anchors)

    def match_anchors(self) -> None:
        """Anchors of priors that frame every object in their own way, scaled to the object as the canonical stage has it."""
        drawn = self.config.anchors
        if self.anchors is None or drawn is None or drawn.prior.pictures == 1:
            return
        frame = len(self.clip) // 2 if self.config.static.frame == "middle" else 0
        self.anchors = stages.match_anchors(self.anchors, self.made.gaussians, frame, backend=self.backend)
        self.config = stages.with_anchors(self.config, self.anchors)

    def fit_object(self) -> None:
        """Gaussians to the object and a frame of the video."""
        config, aligned, video = self.config, self.aligned, self.clip.to(self.device)
        if self.foresees:
            start = stages.fit_static(video, aligned.mesh, aligned.front, replace(config.static, objectives=()), seed=self.seed)
            self.foresee(start, (config.static, 1.0), (config.motion, 1.0))
        self.scene = stages.fit_static(
            video, aligned.mesh, aligned.front, config.static, checkpoint=self.checkpoint("object"), **self.fitting
        )

    def fit_motion(self) -> None:
        """A deformation field to the video."""
        self.scene = stages.fit_motion(
            self.clip.to(self.device), self.made, self.config.motion, mesh=self.aligned.mesh, meshes=self.moving,
            fronts=self.fronts, start=self.start, checkpoint=self.checkpoint("motion"),
            reveal=bool(self.aligned.report.get("coloured")), **self.fitting,
        )  # fmt: skip

    @property
    def foresees(self) -> bool:
        """Whether somebody wants to know what the fits will cost: not of a run that is resumed, or fits nothing."""
        return (
            self.config.motion.following is None
            and self.clock.progress is not None
            and (self.folder is None or not any(self.folder.glob("object*.safetensors")))
        )

    def foresee(self, start: Scene4D, *fits: tuple[StaticConfig | MotionConfig, float], mesh: Object3D | None = None) -> None:
        """What fits will cost, each so many times, from a few of their steps on Gaussians as they start."""
        video = None if self.video is None else self.video.to(self.device)
        mesh = self.alignment.mesh if self.alignment is not None else mesh
        for config, times in fits:
            fronts = self.fronts if isinstance(config, MotionConfig) else []
            meshes = self.moving if isinstance(config, MotionConfig) else []
            cost = stages.estimate(
                video, start, config, mesh=mesh, meshes=meshes, fronts=fronts, backend=self.backend, progress=self.clock
            )
            cost = replace(cost, seconds=times * cost.seconds)
            self.foreseen = cost if self.foreseen is None else self.foreseen + cost
        log.info("estimate: %s", self.foreseen)
        self.clock.stop("estimate")


def check_objects(objects: Sequence[Object3D], video: DrivingVideo, *, one_a_frame: bool) -> None:
    """Refuse a number of objects that does not fit the method or the video.

    Raises:
        InputError: naming the first of them.
    """
    if len(objects) > 1 and not one_a_frame:
        raise InputError(f"{objects[0].name} and others: one mesh a frame is for the method pla4d-v4, give one mesh")
    if len(objects) not in (0, 1, len(video)):
        raise InputError(
            f"{objects[0].name} and others: {len(objects)} meshes for {len(video)} frames, give one, or one for each frame"
        )


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
