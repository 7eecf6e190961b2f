"""3 Fit: Align Your Gaussians, from a text to a moving object, and motions longer than a clip."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import Types, io

from ..core.fit.loop import Schedule
from ..core.io import side_by_side
from ..core.methods import ayg, stages
from ..core.methods.ayg import Models
from ..core.methods.stages import MotionConfig, StaticConfig
from ..core.objectives.displacement import LocalRigidity, PositionRegulariser
from ..core.objectives.scores import ClipScores, ViewScores
from ..core.priors.base import Prior
from ..core.priors.text_to_video import MOTIONLESS
from ..core.scene.object3d import Object3D
from ..core.scene.scene import Scene4D
from ..core.scene.views import object_cameras, render_frames
from ..core.schedules import Switch, constant
from . import fitting, host, host_prior, widgets
from .fit import CATEGORY
from .objectives import CATEGORY as OBJECTIVES
from .objectives import Terms
from .prepare import OBJECT_TYPES, convert_object

NO_OBJECTIVES = "no objectives connected: connect Text to 3D Scores or Text to 4D Scores"


def _prompt(what: str) -> io.Input:
    return io.String.Input(
        "prompt",
        default="",
        multiline=True,
        dynamic_prompts=True,
        tooltip=f"{what} Leave it empty for priors made with Prior from Model: their text is connected there.",
    )


def _negative(default: str, what: str) -> io.Input:
    return io.String.Input(
        "negative_prompt",
        default=default,
        multiline=True,
        optional=True,
        advanced=True,
        tooltip=f"What to steer away from. {what}",
    )


def _images() -> io.Input:
    return host.Prior.Input(
        "image_prior",
        optional=True,
        tooltip="A text-to-image model, from Load Prior or Prior from Model: sharper looks. Nothing connected = without.",
    )


def _image_weight(default: float) -> io.Input:
    return widgets.real(
        "image_weight",
        default,
        (0.0, 100.0),
        "How much the text-to-image model counts against the other model, both brought to one size first. Higher = "
        "finer looks, 0 = off.",
        step=0.05,
    )


def _preset() -> io.Input:
    return widgets.preset(
        "How many steps. standard = a few thousand. draft = a few hundred, to try a text. paper = ten thousand. All ask large "
        "models in every step, so a GPU is needed."
    )


def _given(text: str) -> str | None:
    return text.strip() or None


class Anchor4DTextTo3DScores(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DTextTo3DScores",
            display_name="Text to 3D Scores",
            category=OBJECTIVES,
            description="Objective: an object must look from all sides as a text says. A multi-view model gives its shape, a "
            "text-to-image model its looks (Align Your Gaussians, first stage).",
            search_aliases=["text to 3d", "csd", "sds", "score distillation", "mvdream", "ayg", "align your gaussians"],
            inputs=[
                host.Prior.Input(
                    "views_prior",
                    optional=True,
                    tooltip="A multi-view model such as MVDream, from Load Prior. Without it, objects tend to have several "
                    "faces.",
                ),
                _images(),
                widgets.objectives(),
                _prompt("What the object is."),
                *widgets.weight(1.0, "closer to the text"),
                _image_weight(ayg.IMAGE_STATIC),
                widgets.real(
                    "view_guidance",
                    0.5,
                    (0.0, 10.0),
                    "How much the text-to-image model is held to the side that it sees, named in its text. Higher = "
                    "fewer faces at the back. 0 = off.",
                    step=0.1,
                    folded=True,
                ),
                widgets.whole(
                    "pictures",
                    4,
                    (1, 64),
                    "Pictures that the text-to-image model sees in every step. More = steadier, slower.",
                    folded=True,
                ),
                _negative("", "Empty = each model's own."),
            ],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(
        cls, prompt: str, weight: float, image_weight: float, end_weight: float = -1.0, view_guidance: float = 0.5,
        pictures: int = 4, negative_prompt: str = "", views_prior: Prior | None = None, image_prior: Prior | None = None,
        objectives: Terms = (),
    ) -> io.NodeOutput:  # fmt: skip
        with host.work(cls):
            images = image_prior if image_weight > 0 else None
            (made,) = ayg.static_objectives(Models(None, images, views_prior), prompt.strip())
            assert isinstance(made, ViewScores)
            looks = made.images if views_prior is None or made.images is None else _weighing(made.images, image_weight)
            term = replace(
                made,
                images=looks,
                weight=widgets.ramp(weight, end_weight),
                view_guidance=view_guidance,
                pictures=pictures,
                negative=_given(negative_prompt),
            )
            return io.NodeOutput((*objectives, term))


class Anchor4DTextTo4DScores(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DTextTo4DScores",
            display_name="Text to 4D Scores",
            category=OBJECTIVES,
            description="Objective for motion: films of the object must show what a text says. A text-to-video model judges "
            "the motion, a text-to-image model the looks of some frames (Align Your Gaussians, second stage).",
            search_aliases=["text to 4d", "csd", "sds", "score distillation", "text to video", "ayg", "align your gaussians"],
            inputs=[
                host.Prior.Input(
                    "video_prior", tooltip="A text-to-video model: ModelScope, Zeroscope, LTX-Video or Wan, from Load Prior."
                ),
                _images(),
                widgets.objectives(),
                _prompt("What the object is and does."),
                *widgets.weight(ayg.CLIP_WEIGHT, "livelier, less held together", 1.0),
                _image_weight(ayg.IMAGE_MOTION),
                widgets.real(
                    "amplification",
                    ayg.AMPLIFICATION,
                    (0.0, 10.0),
                    "Motion amplification: what the video model wants changed between frames counts so many times. "
                    "Higher = more motion. 1 = off.",
                    step=0.1,
                ),
                widgets.real(
                    "amplified_from",
                    ayg.AMPLIFIED_FROM,
                    (0.0, 1.0),
                    "When amplification sets in: 0 = at once, 0.3 = after 30 % of the steps.",
                    step=0.05,
                    folded=True,
                ),
                widgets.whole(
                    "clips",
                    1,
                    (1, 16),
                    "Films that the models see in every step, each from another side. More = steadier, slower.",
                    folded=True,
                ),
                widgets.whole(
                    "frames",
                    0,
                    (0, 129),
                    "Frames of a film. 0 = the model's usual. LTX-Video takes 1 + 8 k, Wan 1 + 4 k.",
                    words=widgets.MODELS_OWN,
                    folded=True,
                ),
                widgets.whole(
                    "size",
                    0,
                    (0, 1024),
                    "Side of the films in pixels. Lower = less memory. 0 = the model's usual size.",
                    step=32,
                    words=widgets.MODELS_OWN,
                    folded=True,
                ),
                widgets.whole(
                    "image_frames",
                    4,
                    (1, 32),
                    "Frames of each film that the text-to-image model sees, drawn at random.",
                    folded=True,
                ),
                _negative(MOTIONLESS, "Of the video model: the default steers away from films in which nothing moves."),
            ],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(
        cls, video_prior: Prior, prompt: str, weight: float, image_weight: float, amplification: float,
        end_weight: float = -1.0, amplified_from: float = ayg.AMPLIFIED_FROM, clips: int = 1, frames: int = 0, size: int = 0,
        image_frames: int = 4, negative_prompt: str = MOTIONLESS, image_prior: Prior | None = None, objectives: Terms = (),
    ) -> io.NodeOutput:  # fmt: skip
        with host.work(cls):
            changes: dict[str, Any] = {"pictures": frames} if frames else {}
            changes |= {"resolution": (size, size)} if size else {}
            video = video_prior.with_settings(**changes) if changes else video_prior
            images = image_prior if image_weight > 0 else None
            made = ayg.motion_objectives(Models(video, images), prompt.strip(), ("jsd", "rigidity"))[0]
            assert isinstance(made, ClipScores)
            term = replace(
                made,
                images=None if made.images is None else _weighing(made.images, image_weight),
                weight=widgets.ramp(weight, end_weight),
                amplification=Switch(1.0, amplification, amplified_from),
                clips=clips,
                subset=min(image_frames, video.pictures),
                negative=_given(negative_prompt) if prompt.strip() else None,
            )
            video.latent_shape()  # says what does not fit before a long fit
            return io.NodeOutput((*objectives, term))


def _weighing(distillation: Any, weight: float) -> Any:
    return replace(distillation, weight=constant(weight))


class Anchor4DStayInPlace(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DStayInPlace",
            display_name="Position Regulariser (JSD)",
            category=OBJECTIVES,
            description="Objective for motion: the object's centre and extent stay near those of the static object, so that it "
            "moves its limbs instead of sliding away (Align Your Gaussians' JSD term).",
            search_aliases=["jsd", "jensen-shannon", "drift", "regulariser", "objective", "loss", "ayg"],
            inputs=[
                widgets.objectives(),
                widgets.real(
                    "share",
                    0.0,
                    (0.0, 1000.0),
                    "Sets the weight by itself, once: an object that slid by 2 % of its size is pulled back so many "
                    "times as hard as everything else pulls together. 3 = the paper preset's. 0 = the weight counts as it is.",
                    step=0.1,
                ),
                *widgets.weight(ayg.STAY_WEIGHT, "stays more firmly"),
                widgets.whole(
                    "share_step",
                    ayg.STAY_STEP,
                    (0, 100_000),
                    "The step at which the share is set. Until then this objective does nothing.",
                    folded=True,
                ),
            ],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(
        cls, share: float, weight: float, end_weight: float = -1.0, share_step: int = ayg.STAY_STEP, objectives: Terms = ()
    ) -> io.NodeOutput:
        return io.NodeOutput(
            (*objectives, PositionRegulariser(widgets.ramp(weight, end_weight), share=share, share_step=share_step))
        )


class Anchor4DLocalRigidity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DTogetherness",
            display_name="Local Rigidity (kNN)",
            category=OBJECTIVES,
            description="Objective for motion: Gaussians that are near each other in the static object move alike (the "
            "rigidity "
            "of Align Your Gaussians, whose motion has no rotations).",
            search_aliases=["rigidity", "knn", "neighbours", "regulariser", "objective", "loss", "ayg"],
            inputs=[
                widgets.objectives(),
                *widgets.weight(1000.0, "stiffer; lower = livelier, but it may show tearing artefacts", 10.0),
                widgets.whole(
                    "neighbours",
                    40,
                    (1, 200),
                    "How many neighbours of each Gaussian count. More = stiffer over larger distances.",
                    folded=True,
                ),
            ],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(cls, weight: float, end_weight: float = -1.0, neighbours: int = 40, objectives: Terms = ()) -> io.NodeOutput:
        return io.NodeOutput((*objectives, LocalRigidity(widgets.ramp(weight, end_weight), k=neighbours)))


class Anchor4DTextToGaussians(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DTextToGaussians",
            display_name="Fit Gaussians to Text",
            category=CATEGORY,
            description="Text to 3D: grows a static object from a point-cloud initialisation of grey Gaussians until models "
            "find it to suit a text. "
            "With an object connected, takes that instead.",
            search_aliases=["text to 3d", "static", "gaussian splatting", "mvdream", "ayg", "align your gaussians", "train"],
            inputs=[
                host.Objectives.Input(
                    "objectives", optional=True, tooltip="Text to 3D Scores. Not needed where an object is connected."
                ),
                io.MultiType.Input(
                    "object",
                    types=OBJECT_TYPES,
                    optional=True,
                    tooltip="A mesh or splats to start from instead: the text is not asked, and this is only turned into "
                    "Gaussians.",
                ),
                _preset(),
                widgets.seed(),
                widgets.real(
                    "yaw",
                    0.0,
                    (-180.0, 180.0),
                    "Degrees to turn a connected object, counter-clockwise seen from above, until its front faces +Z.",
                    step=1.0,
                    folded=True,
                ),
                widgets.whole("frames", 16, (2, 500), "Frames of a clip of the motion that comes next.", folded=True),
                widgets.real("fps", 8.0, (1.0, 120.0), "Frames a second of it.", folded=True),
                widgets.steps(),
                *widgets.drawing(),
            ],
            outputs=[host.Scene.Output("scene", tooltip="The static object, for Fit Motion to Text.")],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        preset: str,
        seed: int,
        yaw: float = 0.0,
        frames: int = 16,
        fps: float = 8.0,
        steps: int = 0,
        device: str = "auto",
        renderer: str = "auto",
        objectives: Terms = (),
        object: Object3D | Types.MESH | Types.SPLAT | Types.File3D | None = None,
    ) -> io.NodeOutput:
        with host.work(cls, gradients=True):
            config = ayg.preset(preset)
            item = None if object is None else convert_object(object).normalized()[0].turned(yaw)
            if item is None:
                if not objectives:
                    raise ValueError(NO_OBJECTIVES)
                fitting.say_objectives(objectives, "")
                static = replace(config.static, objectives=tuple(objectives), schedule=_with(config.static, steps))
                if steps and static.density is not None:
                    every = max(20, steps // 60)
                    static = replace(static, density=replace(static.density, every=every, start=every))
                config = replace(config, static=static, detail=ayg.detail(preset, static.objectives))
            else:
                config = replace(config, given=replace(config.given, schedule=_with(config.given, steps)))
            config = replace(config, frames=frames, fps=fps)
            chosen = config.static if item is None else config.given
            where = host.device_for(device, renderer)
            inputs = item, chosen, config.detail, seed
            with host.checkpoint("text", *inputs) as path, host_prior.loaded(chosen.objectives, device, where):
                common: dict[str, Any] = {"seed": seed, "device": where, "backend": renderer}
                start = stages.fit_static(None, item, config.front, replace(chosen, objectives=()), **common)
                report = host.Report(note=fitting.estimate(None, start, chosen, mesh=item, backend=renderer))
                scene = ayg.text_to_3d(config, item=item, progress=report.fit, checkpoint=path, **common)
            scene = fitting.finished(scene)
            return io.NodeOutput(scene, ui=_look(scene))


class Anchor4DTextMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DTextMotion",
            display_name="Fit Motion to Text",
            category=CATEGORY,
            description="3D to 4D without a driving video: finds a motion of the static object that models find to suit a "
            "text.",
            search_aliases=["text to 4d", "animate", "deformation", "ayg", "align your gaussians", "4dgs", "train"],
            inputs=[
                widgets.scene(tooltip="The static object: from Fit Gaussians to Text, or any scene or splats, facing +Z."),
                host.Objectives.Input(
                    "objectives", tooltip="Text to 4D Scores, and in a chain Position Regulariser and Local Rigidity."
                ),
                _preset(),
                widgets.seed(),
                widgets.steps(),
                widgets.whole(
                    "frames",
                    0,
                    (0, 500),
                    "Frames of the clip. 0 = as the scene says, 16 for one that has a single frame.",
                    words=widgets.SCENES_OWN,
                    folded=True,
                ),
                *widgets.drawing(),
            ],
            outputs=[host.Scene.Output("scene", tooltip="The moving object.")],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        scene: Scene4D | Types.SPLAT,
        objectives: Terms,
        preset: str,
        seed: int,
        steps: int = 0,
        frames: int = 0,
        device: str = "auto",
        renderer: str = "auto",
    ) -> io.NodeOutput:
        with host.work(cls, gradients=True):
            given = host.scene_of(scene)
            config = ayg.preset(preset)
            count = frames or (given.frames if given.frames > 1 else config.frames)
            still = replace(
                given, field=None, frames=count, fps=given.fps if given.frames > 1 else config.fps, loop=False,
                front=given.front or config.front,
            ).to(host.device_for(device, renderer))  # fmt: skip
            motion = replace(config.motion, objectives=tuple(objectives), schedule=_with(config.motion, steps))
            fitting.say_objectives(motion.objectives, "the object stays still")
            where = still.gaussians.device
            with _kept("text-motion", still, motion, seed) as path, host_prior.loaded(motion.objectives, device, where):
                cost = fitting.estimate(None, still, motion, backend=renderer)
                moving = stages.fit_motion(
                    None, still, motion, seed=seed, backend=renderer, progress=host.Report(note=cost).fit, checkpoint=path
                )
            moving = fitting.finished(moving)
            return io.NodeOutput(moving, ui=_look(moving))


class Anchor4DExtendMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DExtendMotion",
            display_name="Extend Motion",
            category=CATEGORY,
            description="Prolongs a motion by half a clip: a new clip begins in the middle of the last one and is blended into "
            "it. The text may be another. Chain as many as you like; the last can close the loop.",
            search_aliases=["longer", "autoregressive", "continue", "loop", "next clip", "ayg", "align your gaussians"],
            inputs=[
                host.Scene.Input("scene", tooltip="A moving object that does not loop."),
                host.Objectives.Input(
                    "objectives", tooltip="Text to 4D Scores of the new clip, and what keeps the object in place and together."
                ),
                widgets.switch(
                    "close_loop",
                    False,
                    "The new clip ends where the motion began, so that it loops. Nothing can be added after that.",
                ),
                _preset(),
                widgets.seed(),
                widgets.real(
                    "seam",
                    1000.0,
                    (0.0, 1e6),
                    "How firmly the two clips must agree where one is blended into the other. Higher = the new clip "
                    "begins as the old one goes on.",
                    step=10.0,
                    folded=True,
                ),
                widgets.steps(),
                *widgets.drawing(),
            ],
            outputs=[host.Scene.Output("scene", tooltip="The longer motion. What came before the new clip is unchanged.")],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        scene: Scene4D,
        objectives: Terms,
        close_loop: bool,
        preset: str,
        seed: int,
        seam: float = 1000.0,
        steps: int = 0,
        device: str = "auto",
        renderer: str = "auto",
    ) -> io.NodeOutput:
        with host.work(cls, gradients=True):
            config = ayg.preset(preset)
            further = replace(config.further, steps=steps or config.further.steps)
            motion = replace(config.motion, objectives=tuple(objectives), schedule=further)
            fitting.say_objectives(motion.objectives, "the object stays where the motion left it")
            given = scene.to(host.device_for(device, renderer))
            label = f"extend-{'closed' if close_loop else 'open'}"
            where = given.gaussians.device
            with _kept(label, given, motion, seed, seam) as path, host_prior.loaded(motion.objectives, device, where):
                longer = ayg.extend(
                    given, motion, seam=seam, closed=close_loop, seed=seed, backend=renderer, progress=host.Report().fit,
                    checkpoint=path,
                )  # fmt: skip
            longer = fitting.finished(longer)
            return io.NodeOutput(longer, ui=_look(longer))


def _with(config: StaticConfig | MotionConfig, steps: int) -> Schedule:
    """A configuration's schedule, with the user's number of steps where it is not 0."""
    return replace(config.schedule, steps=steps) if steps else config.schedule


def _kept(label: str, scene: Scene4D, motion: MotionConfig, *more: Any) -> AbstractContextManager[Path]:
    """Where the fit of a scene keeps its checkpoints."""
    field = None if scene.field is None else [scene.field.config(), scene.field.state_dict()]
    return host.checkpoint(label, scene.gaussians.tensors(), scene.frames, field, motion, *more)


def _look(scene: Scene4D, size: int = 192) -> dict[str, object]:
    """The object from the front, a side and the back, as the node shows it."""
    with torch.no_grad():
        taus = scene.taus if scene.field is not None else scene.taus[:1]
        views = render_frames(scene, object_cameras(scene, size, [0.0, 90.0, 180.0]), taus)
        pictures = side_by_side(dict(zip(("front", "side", "back"), views)), height=size)
        return host.film(pictures, scene.fps) if len(taus) > 1 else host.stills(torch.from_numpy(pictures).float() / 255)


NODES = [
    Anchor4DTextTo3DScores,
    Anchor4DTextTo4DScores,
    Anchor4DStayInPlace,
    Anchor4DLocalRigidity,
    Anchor4DTextToGaussians,
    Anchor4DTextMotion,
    Anchor4DExtendMotion,
]
