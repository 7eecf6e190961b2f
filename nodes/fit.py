"""3 Fit: Gaussians to the mesh and the first frame, then a deformation field to the clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..core import deformation
from ..core.align import FocalAlignment
from ..core.cameras import FrontCamera
from ..core.files import InputError
from ..core.fit.loop import Schedule, Train
from ..core.io import side_by_side
from ..core.methods import stages
from ..core.methods.caution import certainty_line
from ..core.methods.registry import METHODS, method_config
from ..core.methods.structure import WITHIN
from ..core.scene.scene import Scene4D
from ..core.scene.views import DEFAULT_FRONT, driving_cameras, render_frames
from ..core.video import DrivingVideo
from . import fitting, host, host_prior, widgets
from .objectives import Terms

CATEGORY = "Anchor4D/3 Fit"
#: Fields that a fit can start from.
FIELDS = [name for name, kind in deformation.FIELDS.items() if kind.buildable]
#: Methods that follow a video, as the combos offer them.
VIDEO_METHODS = [name for name, method in METHODS.items() if method.follows == "video"]
#: What of a scene Motion Alignment changes, as the node says it.
TRAINED: dict[str, Train] = {"deformation": "field", "both": "both"}


def _objectives(standing: str) -> io.Input:
    return host.Objectives.Input(
        "objectives",
        optional=True,
        tooltip="What to minimise: PLA4D's set, or single objectives in a chain. "
        f"Nothing connected = no objectives: {standing}.",
    )


def _preset(what: str) -> io.Input:
    return widgets.preset(
        f"{what} preview = seconds, by tracking alone, no objectives (pla4d). draft = fast, coarse. standard = good on any "
        "computer. paper = as published, needs a GPU. The objectives' own preset is chosen in their node."
    )


def _method(what: str) -> io.Input:
    return widgets.choice(
        "method",
        VIDEO_METHODS,
        f"Whose {what} the preset means: {'; '.join(f'{name} = {METHODS[name].title}' for name in VIDEO_METHODS)}.",
        default="pla4d",
        optional=True,
    )


def _changed(schedule: Schedule | None, steps: int, factor: float = 1.0) -> Schedule | None:
    """A schedule with the user's number of steps (below 0: its own, 0: left out) and its pictures larger by a factor."""
    if schedule is None or steps == 0:
        return None
    sizes = tuple((until, max(8, round(pixels * factor))) for until, pixels in schedule.resolutions)
    schedule = replace(schedule, resolutions=sizes)
    if steps > 0:
        schedule = replace(schedule, one_by_one=steps) if schedule.one_by_one else replace(schedule, steps=steps)
    return schedule


def _refine(schedule: Schedule | None, whole: Schedule, steps: int, factor: float) -> Schedule | None:
    """The last pass: the preset's own, or with the user's number of steps, of which 0 leaves it and the priors out."""
    if steps < 0:
        return _changed(schedule, -1, factor)
    return replace(schedule or whole, steps=steps, one_by_one=0)


def _factor(resolution: int, *schedules: Schedule | None) -> float:
    """By how much the schedules' pictures grow when the largest is to have ``resolution`` pixels; 0 keeps them."""
    largest = max(pixels for schedule in schedules if schedule is not None for _, pixels in schedule.resolutions)
    return resolution / largest if resolution else 1.0


def _in_turns(schedule: Schedule | None, turns: tuple[int, int]) -> Schedule | None:
    """A schedule with the turns of the node that gives them; without it there are none, whatever the preset has."""
    return None if schedule is None else replace(schedule, turns=turns)


def _with_nodes(fields: Mapping[str, Mapping[str, Any]], nodes: int) -> dict[str, Mapping[str, Any]]:
    """Settings of fields with the user's number of control nodes, where it is not 0."""
    return {**fields, "control-nodes": {**fields.get("control-nodes", {}), "nodes": nodes}} if nodes else dict(fields)


class Anchor4DFitGaussians(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        standing = "the Gaussians stay as they were sampled on the mesh"
        return io.Schema(
            node_id="Anchor4DFitGaussians",
            display_name="Fit Gaussians to Mesh and Frame",
            category=CATEGORY,
            description="Frame to 3D: covers the aligned mesh with Gaussians and fits them to the video's first frame and "
            "to the mesh.",
            search_aliases=["frame to 3d", "image to 3d", "static", "gaussian splatting", "gs-mesh", "pla4d", "4dgs", "train"],
            inputs=[
                host.Video.Input("driving_video", tooltip="The same clip that was aligned."),
                host.Alignment.Input("alignment", tooltip="From Focal Alignment."),
                _objectives(standing),
                _preset("How many Gaussians and steps."),
                widgets.seed(),
                widgets.whole(
                    "gaussians",
                    0,
                    (0, 500_000),
                    "Number of Gaussians. More = finer, slower, larger files. 0 = the preset's.",
                    step=1000,
                    words=widgets.PRESETS_OWN,
                    folded=True,
                ),
                widgets.steps(),
                widgets.resolution(),
                *widgets.drawing(),
                _method("steps and number of Gaussians"),
            ],
            outputs=[host.Scene.Output("scene", tooltip="The static object, with the clip's timing and camera.")],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        driving_video: DrivingVideo,
        alignment: FocalAlignment,
        preset: str,
        seed: int,
        gaussians: int = 0,
        steps: int = 0,
        resolution: int = 0,
        device: str = "auto",
        renderer: str = "auto",
        method: str = "pla4d",
        objectives: Terms = (),
    ) -> io.NodeOutput:
        with host.work(cls, gradients=True):
            whole = method_config(method, preset)
            if alignment.report.get("mode") == "none":
                if any("mesh" in o.needs for o in objectives):
                    raise InputError("objectives: there is no 3D model to match; switch from_object off, or unplug Mesh Match")
            elif whole.with_object is not None:
                whole = whole.with_object
            config = replace(
                whole.static,
                gaussians=gaussians or whole.static.gaussians,
                schedule=_changed(whole.static.schedule, steps or -1, _factor(resolution, whole.static.schedule)),
                objectives=tuple(objectives),
            )
            if preset != "preview":
                fitting.say_objectives(config.objectives, "Gaussians as sampled on the mesh, unfitted")
            video = driving_video.to(host.device_for(device, renderer))
            inputs, where = (video, alignment.mesh, alignment.front, config, seed), video.frames.device
            with host.checkpoint("object", *inputs) as path, host_prior.loaded(config.objectives, device, where):
                start = stages.fit_static(video, alignment.mesh, alignment.front, replace(config, objectives=()), seed=seed)
                cost = fitting.estimate(video, start, config, mesh=alignment.mesh, backend=renderer)
                scene = stages.fit_static(
                    video, alignment.mesh, alignment.front, config, close=True, seed=seed, backend=renderer,
                    progress=host.Report(note=cost).fit, checkpoint=path,
                )  # fmt: skip
            scene = fitting.finished(scene)
            if line := fitting.verdict(driving_video, alignment):
                host.say(f"{cost}\n{line}")
            return io.NodeOutput(scene, ui=_look(scene, driving_video, scene.taus[:1]))


class Anchor4DMotionAlignment(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        standing = "the object stays still"
        return io.Schema(
            node_id="Anchor4DMotionAlignment",
            display_name="Motion Alignment",
            category=CATEGORY,
            description="3D to 4D: fits a deformation field that makes the object follow the driving video.",
            search_aliases=["3d to 4d", "video to 4d", "animate", "deformation", "pla4d", "align4d", "dg4d", "4dgs", "train"],
            inputs=[
                host.Video.Input("driving_video", tooltip="The same clip that the scene was fitted to."),
                host.Scene.Input(
                    "scene",
                    tooltip="The static object, from Fit Gaussians to Mesh and Frame; or one that moves already, as Motion "
                    "Preview makes it: the fit starts with its motion.",
                ),
                host.Alignment.Input(
                    "alignment",
                    optional=True,
                    tooltip="From Focal Alignment: by its mesh control nodes know which parts belong together. Recommended.",
                ),
                host.Cameras.Input(
                    "cameras", optional=True, tooltip="From Focal per Frame, when the video's camera zooms. Else leave it open."
                ),
                _objectives(standing),
                _preset("How long and how fine."),
                widgets.choice(
                    "field",
                    ["preset", *FIELDS],
                    "How motion is stored. control-nodes = a skeleton of a few hundred points, fast, keeps limbs "
                    "stiff. hexplane = a grid over space and time. mlp = a neural network, as in the paper. preset = the "
                    "preset's.",
                ),
                widgets.seed(),
                widgets.steps("Steps over the whole clip."),
                widgets.whole(
                    "tracking_steps",
                    -1,
                    (-1, 10_000),
                    "Steps on each frame while the object is first followed frame by frame (control nodes only). "
                    "More = quick motion is followed better, slower. 0 = off. -1 = the preset's.",
                    words=widgets.reads(-1, "preset"),
                    folded=True,
                ),
                widgets.whole(
                    "fine_steps",
                    -1,
                    (-1, 100_000),
                    "Steps of a last pass at full size that sharpens the motion. More = finer, slower. "
                    "0 = off. -1 = the preset's.",
                    words=widgets.reads(-1, "preset"),
                    folded=True,
                ),
                widgets.whole(
                    "control_nodes",
                    0,
                    (0, 5000),
                    "Number of control nodes. More = finer motion, less of it where the video does not look. 0 = the preset's.",
                    words=widgets.PRESETS_OWN,
                    folded=True,
                ),
                widgets.resolution(),
                *widgets.drawing(),
                widgets.whole(
                    "refine_steps",
                    -1,
                    (-1, 100_000),
                    "Steps of the last pass, in which a prior is asked (with Reference Refinement or Novel Views "
                    "among the objectives only). More = tearing artefacts close further, slower. 0 = off. -1 = the preset's.",
                    words=widgets.reads(-1, "preset"),
                    folded=True,
                ),
                _method("steps, field and training"),
                widgets.choice(
                    "train",
                    ["preset", *TRAINED],
                    "deformation = the motion alone, the static object stays as it is. both = the static object's "
                    "Gaussians too. preset = the method's: deformation for pla4d, both for align4d and dg4d.",
                    optional=True,
                ),
                host.Turns.Input(
                    "turns",
                    optional=True,
                    tooltip="From Asynchronous Optimisation: where both are trained, motion and Gaussians take turns. Nothing "
                    "connected = both at once.",
                ),
                widgets.switch(
                    "joints",
                    False,
                    "On = the motion is also tried as rigid parts on joints, of a rigged model as its own joints, and kept so "
                    "where the video allows it: machines, doors, rigged characters. Takes longer; control nodes only.",
                    optional=True,
                    folded=True,
                ),
            ],
            outputs=[host.Scene.Output("scene", tooltip="The moving object.")],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        driving_video: DrivingVideo,
        scene: Scene4D,
        preset: str,
        field: str,
        seed: int,
        steps: int = 0,
        tracking_steps: int = -1,
        fine_steps: int = -1,
        control_nodes: int = 0,
        resolution: int = 0,
        device: str = "auto",
        renderer: str = "auto",
        refine_steps: int = -1,
        method: str = "pla4d",
        train: str = "preset",
        turns: tuple[int, int] = (0, 0),
        joints: bool = False,
        alignment: FocalAlignment | None = None,
        cameras: Sequence[FrontCamera] = (),
        objectives: Terms = (),
    ) -> io.NodeOutput:
        with host.work(cls, gradients=True):
            config = method_config(method, preset).motion
            config = replace(config, train=TRAINED.get(train, config.train))
            if any(turns) and config.train != "both":
                raise ValueError("turns are taken where both are trained, set train to both or disconnect turns")
            chosen = config.field if field == "preset" else field
            factor = _factor(resolution, config.schedule, config.fine)
            passes = {
                "tracking": _changed(
                    config.tracking, tracking_steps if deformation.FIELDS[chosen].tracks_frames else 0, min(factor, 1.0)
                ),
                "schedule": _changed(config.schedule, steps or -1, factor),
                "fine": _changed(config.fine, fine_steps, factor),
                "refine": _refine(config.refine, config.schedule, refine_steps, factor),
            }
            config = replace(
                config,
                **{name: _in_turns(schedule, turns) for name, schedule in passes.items()},
                field=chosen,
                density=None if deformation.FIELDS[chosen].fixed_count else config.density,
                fields=_with_nodes(config.fields, control_nodes),
                objectives=tuple(objectives),
                joints=WITHIN if joints else config.joints,
            )
            if config.following is None:
                fitting.say_objectives(config.objectives, "the object stays still")
            where = host.device_for(device, renderer)
            video, still = driving_video.to(where), scene.to(where)
            mesh = None if alignment is None else alignment.mesh
            inputs = video, still.gaussians.tensors(), still.field, list(cameras), config, mesh, seed
            with host.checkpoint("motion", *inputs) as path, host_prior.loaded(config.objectives, device, where):
                cost = ""
                if config.following is None:
                    cost = fitting.estimate(video, still, config, mesh=mesh, fronts=cameras, backend=renderer)
                moving = stages.fit_motion(
                    video, still, config, mesh=mesh, fronts=cameras, seed=seed, backend=renderer,
                    reveal=alignment is not None and bool(alignment.report.get("coloured")),
                    progress=host.Report(note=cost).fit, checkpoint=path,
                )  # fmt: skip
            moving = fitting.finished(moving)
            lines = [cost, fitting.verdict(driving_video, alignment, moving)]
            if "certainty" in moving.meta:
                lines.append(certainty_line(moving.meta["certainty"]))
            if any(lines[1:]):
                host.say("\n".join(filter(None, lines)))
            return io.NodeOutput(moving, ui=_look(moving, driving_video, moving.taus))


class Anchor4DMotionPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DMotionPreview",
            display_name="Motion Preview",
            category=CATEGORY,
            description="Moves the aligned object as the driving video shows it by tracking alone: seconds, not minutes, and "
            "coarser than a fit. Motion Alignment goes on from its scene.",
            search_aliases=["fast", "quick", "feed-forward", "optical flow", "tracking", "animate", "3d to 4d", "4dgs"],
            inputs=[
                host.Video.Input("driving_video", tooltip="The same clip that was aligned."),
                host.Alignment.Input("alignment", tooltip="From Focal Alignment: the camera, and the 3D model that moves."),
                host.Scene.Input(
                    "scene",
                    optional=True,
                    tooltip="The static object, from Fit Gaussians to Mesh and Frame. Nothing connected = Gaussians as sampled "
                    "on the 3D model.",
                ),
                widgets.switch(
                    "motion_prior",
                    True,
                    "on = the bundled motion prior says how the motion goes in depth and how unseen parts move. off = both "
                    "follow from rigidity alone.",
                ),
                widgets.whole(
                    "gaussians",
                    0,
                    (0, 500_000),
                    "Number of Gaussians sampled on the 3D model. More = finer, larger files. 0 = the preset's, 20,000.",
                    step=1000,
                    words=widgets.PRESETS_OWN,
                    folded=True,
                ),
                *widgets.drawing(),
            ],
            outputs=[host.Scene.Output("scene", tooltip="The moving object: to look at, and for Motion Alignment to refine.")],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        driving_video: DrivingVideo,
        alignment: FocalAlignment,
        motion_prior: bool = True,
        gaussians: int = 0,
        device: str = "auto",
        renderer: str = "auto",
        scene: Scene4D | None = None,
    ) -> io.NodeOutput:
        with host.work(cls):
            if scene is None and alignment.report.get("mode") == "none":
                raise InputError(
                    "alignment: there is no object to move; connect a 3D model, or Inflate Object, to its alignment"
                )
            config = method_config("pla4d", "preview", without=() if motion_prior else ("motion-prior",))
            static = replace(config.static, gaussians=gaussians or config.static.gaussians)
            video = driving_video.to(host.device_for(device, renderer))
            with host_prior.loaded((), device, video.frames.device):
                still = scene or stages.fit_static(video, alignment.mesh, alignment.front, static)
                moving = stages.fit_motion(
                    video, replace(still, field=None).to(video.frames.device), config.motion, mesh=alignment.mesh,
                    backend=renderer, progress=host.Report().fit,
                )  # fmt: skip
            moving = fitting.finished(moving)
            if line := fitting.verdict(driving_video, alignment, moving):
                host.say(line)
            return io.NodeOutput(moving, ui=_look(moving, driving_video, moving.taus))


class Anchor4DAsynchronousOptimisation(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DAsynchronousOptimisation",
            display_name="Asynchronous Optimisation",
            category=CATEGORY,
            description="Where a fit trains both, motion and Gaussians take turns, so that neither chases the other's errors "
            "(Align4D). Bypass it, and both are trained at once.",
            search_aliases=["alternate", "alternating", "turns", "ao", "asynchronous optimization", "align4d", "train"],
            inputs=[
                widgets.whole(
                    "field_steps",
                    8,
                    (1, 10_000),
                    "Steps of the motion before the Gaussians' turn. More = the motion explains more of the video.",
                ),
                widgets.whole(
                    "gaussian_steps",
                    2,
                    (1, 10_000),
                    "Steps of the Gaussians, their colours and shapes, before the motion's turn again. More = the "
                    "object changes more.",
                ),
            ],
            outputs=[host.Turns.Output("turns", tooltip="For Motion Alignment, with method align4d, or train both.")],
        )

    @classmethod
    def execute(cls, field_steps: int, gaussian_steps: int) -> io.NodeOutput:
        return io.NodeOutput((field_steps, gaussian_steps))


def _look(scene: Scene4D, video: DrivingVideo, taus: Tensor, size: int = 192) -> dict[str, object]:
    """The driving video beside the object from the front, a side and the back, as the node shows it."""
    with torch.no_grad():
        front = scene.front or DEFAULT_FRONT
        cameras = driving_cameras(video, front).resized(size, size)
        seen = render_frames(scene, cameras[: len(taus)] if len(cameras.batch) == 2 else cameras, taus)
        around = render_frames(scene, front.centred(size, [90.0, 180.0]), taus)
        panels = {"video": video.composited()[: len(taus)], "front": seen[0], "side": around[0], "back": around[1]}
        pictures = side_by_side(panels, height=size)
        return host.film(pictures, scene.fps) if len(taus) > 1 else host.stills(torch.from_numpy(pictures).float() / 255)


NODES = [Anchor4DFitGaussians, Anchor4DMotionAlignment, Anchor4DMotionPreview, Anchor4DAsynchronousOptimisation]
