"""Align Your Gaussians: text to 4D by composed scores. Ling et al., arXiv 2312.13763, CVPR 2024. First open implementation.

A text becomes a static object by the scores of a multi-view and a text-to-image model (4.1), or the object is given. A
deformation field is then fitted to the scores of a text-to-video and a text-to-image model (4.2), with regularisers and motion
amplification (4.3), and prolonged clip by clip (4.4). The stages are those of :mod:`.stages` with the settings here.

The paper's supplement, which holds most numbers, is not public: what is open is marked, and its value is ours.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from ..cameras import FrontCamera
from ..deformation import ClipChain
from ..files import InputError
from ..fit.density import DensityControl
from ..fit.loop import Schedule
from ..objectives.base import Objective
from ..objectives.displacement import LocalRigidity, PositionRegulariser, Seam
from ..objectives.mesh import MeshMatch
from ..objectives.scores import ClipScores, ViewScores
from ..priors.base import Prior
from ..priors.distill import Distillation, UniformWindow
from ..progress import Progress
from ..scene.object3d import Object3D
from ..scene.scene import Scene4D
from ..scene.views import DEFAULT_FRONT
from ..schedules import Switch, constant, linear
from . import stages
from .plan import MethodRun
from .registry import Choice, ModelRole, method
from .stages import Change, Config, MotionConfig, StaticConfig

#: Parts that can be left out, as in the paper's ablations.
PARTS = ("image", "view-guidance", "jsd", "rigidity", "amplification")
#: Weights of the models' gradients, each of unit size: the one that gives the structure, and text-to-image in either stage.
IMAGE_STATIC, IMAGE_MOTION = 0.3, 0.2
#: Of the clip scores, so that rigidity's weight of 1000 leaves limbs free to turn: as 50 to 100 is usual for such scores.
CLIP_WEIGHT = 100.0
#: omega_ma and the progress after which it holds.
AMPLIFICATION, AMPLIFIED_FROM = 2.0, 0.3
#: The divergence's weight, measured (docs/ayg.md). Preset "paper" scales it once, at a step, so that for an object that slid by
#: 2 % of its size its gradient is so many times all others'.
STAY_WEIGHT, STAY_SHARE, STAY_STEP = 30.0, 3.0, 100
#: Diffusion times: all, then up to a half.
TIMES = UniformWindow(constant(0.02), linear(0.98, 0.5))
#: Pictures encoded at once with gradient: a whole clip of full size would hold tens of gigabytes (docs/memory.md).
ENCODE_BATCH = 1
#: Solid colours behind renders, so that no model paints its background onto the object.
AROUND: dict[str, Any] = {"resolutions": ((1.0, 256),), "background": "random"}
#: Which screen gradients of scores are large is open: a tenth of the set, the strongest, grows each time.
GROWTH = DensityControl(every=100, start=100, stop=0.7, threshold=0.0, share=0.1, budget=50_000, min_opacity=0.02)
#: Steps of the static object, its finer second stage, the motion, and each further clip.
STEPS = {"paper": (10_000, 2000, 10_000, 10_000), "standard": (3000, 0, 4000, 3000), "draft": (600, 0, 800, 600)}


@dataclass(frozen=True)
class Models:
    """The models whose scores are composed.

    Args:
        video: text-to-video; None where nothing is to move.
        images: text-to-image; None = without.
        views: several views of a text (MVDream); None where the object is given.
    """

    video: Prior | None = None
    images: Prior | None = None
    views: Prior | None = None


@dataclass(frozen=True, kw_only=True)
class TextConfig(Config):
    """The whole method; :func:`preset` gives the named ones. Its static fit is text to 3D, its motion 3D to 4D.

    Args:
        detail: a second pass over it with the text-to-image model alone, or None.
        given: a given object to still Gaussians.
        further: schedule of each further clip.
        seam: weight of the seam between clips.
        frames: of a clip.
        fps: frames a second.
        front: where the object is seen from by default.
    """

    detail: StaticConfig | None
    given: StaticConfig
    further: Schedule
    seam: float = 1000.0
    frames: int = 16
    fps: float = 8.0
    front: FrontCamera = DEFAULT_FRONT

    def changed(self, change: Change) -> Self:
        made = super().changed(change)
        return replace(made, detail=None if self.detail is None else self.detail.changed(change))


def settings(choice: Choice) -> TextConfig:
    """A preset as plain data."""
    models = Models(choice.role("video"), choice.role("images"), choice.role("views"))
    return preset(choice.preset, choice.prompt, models, choice.without)


@method(
    "ayg", title="Align Your Gaussians", source="arXiv 2312.13763", settings=settings, follows="text", needs_object=False,
    without=PARTS, prolongs=True, summary="from a text alone: models' scores make the object and its motion",
    roles=(
        # The paper's own text-to-video model is closed.
        ModelRole("video", own=("modelscope", "zeroscope", "ltx-video", "wan-1.3b"), optional=False),
        ModelRole("images", own=("sd21-base", "sd15"), unless="image"),
        ModelRole("views", own=("mvdream",), unless="object"),
    ),
)  # fmt: skip
def plan(run: MethodRun) -> Scene4D:
    """Align Your Gaussians' stages."""
    config: TextConfig = run.config
    item = run.objects[0].normalized()[0].turned(0.0 if run.yaw == "auto" else run.yaw) if run.objects else None
    texts = run.then or (("",) if run.closed else ())
    if run.foresees:
        _foresee(run, config, item, len(texts))
    scene = text_to_3d(config, item=item, device=run.device, checkpoint=run.checkpoint("object"), **run.fitting)  # 4.1
    scene = stages.fit_motion(None, scene, config.motion, checkpoint=run.checkpoint("motion"), **run.fitting)  # 4.2, 4.3
    for index, text in enumerate(texts):  # 4.4
        terms = tuple(o.with_prompt(text) if text else o for o in config.motion.objectives)
        motion = replace(config.motion, objectives=terms, schedule=config.further)
        closed, kept = run.closed and index == len(texts) - 1, run.checkpoint(f"clip{index + 2}")
        scene = extend(scene, motion, seam=config.seam, closed=closed, checkpoint=kept, **run.fitting)
    return scene


def _foresee(run: MethodRun, config: TextConfig, item: Object3D | None, clips: int) -> None:
    static = config.static if item is None else config.given
    start = stages.fit_static(None, item, config.front, replace(static, objectives=()), seed=run.seed, device=run.device)
    details = [] if item is not None or config.detail is None else [(config.detail, 1.0)]
    motions = 1 + clips * config.further.steps / config.motion.schedule.steps
    run.foresee(replace(start, frames=config.frames), (static, 1.0), *details, (config.motion, motions), mesh=item)


def static_objectives(models: Models, prompt: str, without: Collection[str] = ()) -> tuple[Objective, ...]:
    """What makes an object suit a text.

    Raises:
        InputError: for neither a multi-view nor a text-to-image model.
    """
    images = None if "image" in without else models.images
    if models.views is None and images is None:
        raise InputError(
            "text to 3D: needs a multi-view model such as mvdream, a text-to-image model such as sd21-base, or both"
        )
    guided = 0.0 if "view-guidance" in without else 0.5  # open: half of the text-to-image model's weight
    return (
        ViewScores(
            None if models.views is None else _scores(models.views),
            None if images is None else _scores(images, IMAGE_STATIC if models.views is not None else 1.0),
            prompt,
            view_guidance=guided,
        ),
    )


def motion_objectives(
    models: Models, prompt: str, without: Collection[str] = (), *, scaled: bool = False
) -> tuple[Objective, ...]:
    """What makes an object move as a text says.

    Args:
        scaled: the divergence is scaled by the gradients there are instead of having a weight of its own.

    Raises:
        InputError: for no text-to-video model.
    """
    if models.video is None:
        raise InputError("3D to 4D: needs a text-to-video model, such as modelscope or ltx-video")
    images = None if "image" in without else models.images
    rise = 1.0 if "amplification" in without else AMPLIFICATION
    scores = ClipScores(
        _scores(models.video),
        None if images is None else _scores(images, IMAGE_MOTION),
        prompt,
        weight=constant(CLIP_WEIGHT),
        amplification=Switch(1.0, rise, AMPLIFIED_FROM),
        subset=4,  # "a subset" of the 16
        rates=(4.0, 8.0, 12.0),  # 4.2
    )
    kept: tuple[Objective, ...] = (scores,)
    if "jsd" not in without:
        kept += (PositionRegulariser(constant(STAY_WEIGHT), share=STAY_SHARE if scaled else 0.0, share_step=STAY_STEP),)
    if "rigidity" not in without:
        kept += (LocalRigidity(constant(1000.0), k=40),)
    return kept


def _scores(prior: Prior, weight: float = 1.0) -> Distillation:
    """Classifier score distillation (CSD), its gradient of unit size before its weight."""
    return Distillation(
        prior, weight=constant(weight), time=TIMES, form="csd", guidance=1.0, normalise=True, micro_batch=1,
        encode_batch=ENCODE_BATCH,
    )  # fmt: skip


def preset(name: str, prompt: str = "", models: Models = Models(), without: Collection[str] = ()) -> TextConfig:
    """ "paper", "standard" or "draft", which differ in steps and sizes; without models, no objectives ask any."""
    if name not in STEPS:
        raise ValueError(f"preset {name!r}: unknown, choose paper, standard or draft")
    static_steps, _, motion_steps, further_steps = STEPS[name]
    still: tuple[Objective, ...] = ()
    if models.views is not None or (models.images is not None and "image" not in without):
        still = static_objectives(models, prompt, without)
    moving = () if models.video is None else motion_objectives(models, prompt, without, scaled=name == "paper")
    every = max(20, static_steps // 60)
    static = StaticConfig(
        gaussians=2000,  # "spread across a sphere"; number and radius are open
        schedule=Schedule(static_steps, lr_final=0.1, **AROUND),
        objectives=still,
        density=replace(GROWTH, every=every, start=every),
    )
    return TextConfig(
        name=name,
        static=static,
        detail=detail(name, still),
        given=StaticConfig(
            gaussians={"paper": 40_000, "standard": 20_000, "draft": 8000}[name],
            schedule=Schedule(80 if name == "draft" else 200, resolutions=((0.5, 128), (1.0, 256)), lr_final=0.1),
            objectives=(MeshMatch(weight=constant(1e4), views=4, mask=0.3, perceptual=0.0),),
        ),
        motion=MotionConfig(
            field="time-gated-mlp",  # 4.2: only positions move; sizes after followers' code
            schedule=Schedule(motion_steps, lr_final=1.0, **AROUND),
            objectives=moving,
        ),
        further=Schedule(further_steps, lr_final=1.0, **AROUND),
    )


def detail(name: str, objectives: Sequence[Objective]) -> StaticConfig | None:
    """A preset's second pass over the static object; None where it has none, or no text-to-image model is among the objectives.

    "A further 3D fine-tune gives about 150 K Gaussians": its losses are open, the text-to-image model alone is ours.
    """
    looks = tuple(detailed for o in objectives if (detailed := o.detailed()) is not None)
    if not STEPS[name][1] or not any(o.priors() for o in looks):
        return None
    schedule = Schedule(STEPS[name][1], lr=0.3, lr_final=0.1, **AROUND)
    return StaticConfig(gaussians=0, schedule=schedule, objectives=looks, density=replace(GROWTH, budget=150_000))


def text_to_3d(
    config: TextConfig,
    *,
    item: Object3D | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    backend: str = "auto",
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
    identity: str = "",
) -> Scene4D:
    """The static object: of the text, or Gaussians of a given one (then facing +Z, centred, its longest side 1).

    Returns:
        a scene with the configuration's front camera and clip length, in which nothing moves.
    """
    static = config.static if item is None else config.given
    common = {"seed": seed, "device": device, "backend": backend, "progress": progress, "identity": identity}
    scene = stages.fit_static(None, item, config.front, static, checkpoint=checkpoint, **common)
    if item is None and config.detail is not None:
        again = None if checkpoint is None else Path(checkpoint).with_name(f"{Path(checkpoint).stem}-fine.safetensors")
        finer = stages.fit_static(None, None, config.front, config.detail, start=scene.gaussians, checkpoint=again, **common)
        scene = replace(finer, meta={"losses": scene.meta["losses"] | finer.meta["losses"]})
    return replace(scene, frames=config.frames, fps=config.fps)


def extend(
    scene: Scene4D,
    config: MotionConfig,
    *,
    seam: float = 1000.0,
    closed: bool = False,
    seed: int = 0,
    backend: str = "auto",
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
    identity: str = "",
) -> Scene4D:
    """A motion prolonged by half a clip: a new clip begins in the middle of the last one, into which it is blended (4.4).

    What plays before that middle stays as it is, bit by bit.

    Args:
        config: the objectives of the new clip, whose text may be another, and its schedule.
        seam: weight of the loss that makes the two clips agree.
        closed: the new clip ends where the first began, so that the motion loops.

    Raises:
        InputError: for a scene without motion, or one that loops.
    """
    if scene.field is None or scene.frames < 2:
        raise InputError("extend: this scene does not move; give it a motion first")
    if scene.loop:
        raise InputError("extend: this scene loops, there is no end to go on from; give one that does not")
    before = scene.field
    length = before.length if isinstance(before, ClipChain) else 1.0
    added = stages.build_field(replace(config, field="time-gated-mlp"), scene, seed=seed)
    chain = ClipChain.grown(before, added, closed=closed)
    clip_frames = round((scene.frames - 1) / length)  # from a clip's first to its last
    span = round(clip_frames * chain.length)
    longer = replace(scene, field=chain, frames=span if closed else span + 1, loop=closed)
    objectives = (*config.objectives, Seam(constant(seam))) if seam > 0 else config.objectives
    name = f"clip {len(chain.clips)}, "
    return stages.fit_motion(
        None, longer, replace(config, objectives=objectives), field=chain, window=chain.window, label=name, seed=seed,
        backend=backend, progress=progress, checkpoint=checkpoint, identity=identity,
    )  # fmt: skip
