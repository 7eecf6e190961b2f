"""PLA4D: pixel-level alignment for video (or text) to 4D. Liang et al., arXiv 2405.19957. First open implementation.

The camera is aligned (Eq. 4), Gaussians are fitted to the mesh and the first frame (Eq. 5-9), and a deformation field is fitted
to the clip (Eq. 10; Eq. 11 needs a prior): the stages of :mod:`.stages` with the settings here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..fit.density import DensityControl
from ..fit.loop import Schedule
from ..objectives.base import Objective
from ..objectives.first_frame import FirstFrame
from ..objectives.front import ReferenceViewLoss
from ..objectives.mesh import MeshMatch
from ..objectives.motion_prior import MotionPriorPull
from ..objectives.novel_view import NovelView
from ..objectives.reference import ReferenceRefinement
from ..objectives.rigidity import Rigidity, Smoothness
from ..priors.base import Prior
from ..priors.distill import Annealed, Distillation
from ..priors.motion import MotionPrior
from ..scene.scene import Scene4D
from ..schedules import constant, linear
from .following import Following
from .plan import MethodRun
from .registry import DEPTH_MOTION, PRESETS, Choice, ModelRole, method
from .stages import MethodConfig, MotionConfig, StaticConfig
from .structure import WITHIN

PRIOR = ModelRole("prior", own=("zero123-xl",), fallback="tiny", unless="refinement")

#: First weight of an objective that asks a prior, against a reference view loss of weight 3; the paper does not give it. In our
#: presets it falls to zero, so that the front, which a prior's noise costs up to a decibel, is sharp again at the end
#: (docs/benchmarks.md).
REFINEMENT_WEIGHT = 0.6
NOVEL_VIEW_WEIGHT = 0.1
#: Diffusion times of our presets: below them a prior sharpens what is there, tearing artefacts included.
REFINEMENT_TIME = Annealed(0.6, 0.4)


#: Parts that can be left out: those of the paper's ablations (focal alignment, Eq. 4; the mesh's sides, Eq. 9; all that follows
#: the video's motion, Eq. 10; reference refinement, Eq. 11), and what our presets have for depth and unseen sides, of which
#: the motion in depth alone where the object's depth is a guess.
PARTS = ("focal", "gs-mesh", "motion", "refinement", "motion-prior", DEPTH_MOTION)
#: Parts that can be added: colours that change over time; opacities, so that parts appear and vanish; the object as rigid parts
#: on joints, where the video allows it.
MORE = ("appearance", "presence", "joints")


def settings(choice: Choice) -> MethodConfig:
    """A preset as plain data."""
    return _more(preset(choice.preset, choice.role("prior"), choice.without), choice.plus)


@method(
    "pla4d", title="PLA4D", source="arXiv 2405.19957", settings=settings, roles=(PRIOR,), without=PARTS, plus=MORE,
    presets=PRESETS,
    summary="the video's first frame and the object, then the motion, pixel by pixel; a prior for the sides unseen",
)  # fmt: skip
def plan(run: MethodRun) -> Scene4D:
    """PLA4D's stages."""
    run.align()  # 5.2: focal alignment, Eq. 4
    run.fit_object()  # 5.3: frame to 3D, Eq. 5-9
    run.fit_motion()  # 5.4 and 5.5: 3D to 4D, Eq. 10 and 11
    return run.made


def preset(name: str, prior: Prior | None = None, without: Collection[str] = ()) -> MethodConfig:
    """ "paper", "standard", "draft" or "preview", with reference refinement (Eq. 11) where a prior is given; ``without`` of
    :data:`PARTS`.

    ``paper`` is the paper's text; what it leaves open is marked. ``draft`` and ``standard`` were chosen by measurement
    (docs/benchmarks.md) and are iteration counts, never time budgets. ``preview`` fits nothing: Gaussians as sampled on the
    object, moved by tracking alone (:mod:`.following`).
    """
    if name == "preview":
        return _less(_preview(None if "motion-prior" in without else MotionPrior()), without)
    return _less(_whole(name, None if "refinement" in without else prior, "motion-prior" not in without), without)


def _less(config: MethodConfig, without: Collection[str]) -> MethodConfig:
    """Without focal alignment (a fixed camera in its place), the mesh's sides, all motion, or motion in depth."""
    dropped: tuple[type[Objective], ...] = ()
    if "gs-mesh" in without:
        dropped += (MeshMatch,)
    made = config.changed(lambda o: None if isinstance(o, dropped) else o)
    if "motion" in without:
        kept = made.motion.changed(lambda o: None if isinstance(o, (ReferenceViewLoss, MotionPriorPull)) else o)
        made = replace(made, motion=replace(kept, following=None))
    if DEPTH_MOTION in without:
        made = made.changed(lambda o: replace(o, flat=True) if isinstance(o, MotionPriorPull) else o)
    return replace(made, camera="fixed") if "focal" in without else made


def _whole(name: str, prior: Prior | None, pulled: bool) -> MethodConfig:
    """A preset with all its parts."""
    if name == "paper":
        refinement: tuple[Objective, ...] = ()
        if prior is not None:
            distillation = Distillation(prior, time=Annealed(0.5, 0.02))  # 5.5: lambda_t 0.5 -> 0.02
            # App. A: batch 6; the weight is open, this keeps our presets' proportion.
            refinement = (ReferenceRefinement(distillation, linear(0.5, 0.02, 1e4 / 3 * REFINEMENT_WEIGHT), views=6, away=0.0),)
        sizes = ((0.5, 128), (0.7, 256), (1.0, 512))  # App. A: 128 until 50 %, 256 until 70 %, then 512
        return MethodConfig(
            name="paper",
            camera="focal-literal",  # Eq. 4
            resolution=512,  # 5.1: videos of 512 x 512
            static=StaticConfig(
                gaussians=40_000,  # open in the paper; 30 to 50 thousand surface points
                schedule=Schedule(steps=1000, resolutions=sizes, lr_final=0.02),  # App. A: 1000 iterations; rates open
                objectives=(
                    ReferenceViewLoss(
                        weight=linear(0.98, 0.02, 1e4), mask=0.1, perceptual=1e3
                    ),  # Eq. 5-8; lambda 0.98 -> 0.02; gamma open
                    MeshMatch(
                        weight=linear(0.98, 0.02, 1e4), views=6, mask=0.1, perceptual=1e3, elevation=(-30.0, 30.0)
                    ),  # Eq. 9, N_c' = 6
                ),
                density=DensityControl(every=100, start=100, stop=0.7),  # open in the paper; DreamGaussian's rhythm
            ),
            motion=MotionConfig(
                field="mlp",  # 5.4: an MLP on time
                fields={name: {"opacity": True} for name in ("mlp", "hexplane", "control-nodes")},  # 5.4: opacity moves too
                schedule=Schedule(
                    steps=65, resolutions=sizes, lr_final=1.0
                ),  # App. A: 65 iterations; all frames a step is our reading of batch 6
                objectives=(
                    ReferenceViewLoss(weight=linear(0.5, 0.02, 1e4), mask=0.1, perceptual=1e3),  # Eq. 10; lambda_t 0.5 -> 0.02
                    FirstFrame(weight=constant(1e4), views=1),  # Eq. 10, second term
                    *refinement,  # Eq. 11
                ),
            ),
        )
    if name not in _OURS:
        raise ValueError(f"preset {name!r}: unknown, choose paper, standard, draft or preview")
    more: tuple[Objective, ...] = (MotionPriorPull(),) if pulled else ()
    if prior is not None:
        more = (*more, ReferenceRefinement(Distillation(prior, time=REFINEMENT_TIME), linear(REFINEMENT_WEIGHT, 0.0)))
    return _OURS[name](more)


def _standard(more: tuple[Objective, ...]) -> MethodConfig:
    return MethodConfig(
        name="standard",
        camera="focal",
        resolution=256,
        static=StaticConfig(
            gaussians=12_000,
            schedule=Schedule(steps=200, resolutions=((0.5, 128), (1.0, 256)), lr_final=0.1),
            objectives=(
                ReferenceViewLoss(weight=constant(1e4), mask=0.3, perceptual=0.0),
                MeshMatch(weight=constant(1e4), views=4, mask=0.3, perceptual=0.0, through=0.3),
            ),
        ),
        motion=MotionConfig(
            field="control-nodes",
            fields={"control-nodes": {"nodes": 600}},
            tracking=Schedule(steps=60, one_by_one=60, resolutions=((1.0, 96),), background="random"),
            lift=Schedule(steps=150, lr=4.0, resolutions=((1.0, 96),)),
            schedule=Schedule(steps=300, resolutions=((0.6, 96), (1.0, 128)), background="random"),
            fine=Schedule(steps=400, resolutions=((0.5, 192), (1.0, 256)), background="random", smoothing=0.125, stiffness=0.5),
            refine=Schedule(
                steps=100, resolutions=((1.0, 256),), background="random", smoothing=0.125, stiffness=0.5, lr=0.3, lr_final=0.3
            ),
            objectives=(
                ReferenceViewLoss(weight=constant(3.0), mask=0.33, perceptual=0.0, levels=4),
                Rigidity(weight=constant(1.0), joints=0.05),
                Smoothness(weight=constant(20.0)),
                *more,
            ),
        ),
    )


def _draft(more: tuple[Objective, ...]) -> MethodConfig:
    standard = _standard(more)
    static, motion = standard.static, standard.motion
    assert motion.tracking is not None and motion.fine is not None and motion.refine is not None
    return replace(
        standard,
        name="draft",
        static=replace(static, gaussians=8000, schedule=replace(static.schedule, steps=80)),
        motion=replace(
            motion,
            tracking=replace(motion.tracking, one_by_one=15),
            schedule=replace(motion.schedule, steps=80, resolutions=((1.0, 96),)),
            fine=replace(motion.fine, steps=60, resolutions=((1.0, 160),)),
            refine=replace(motion.refine, steps=50, resolutions=((1.0, 160),)),
        ),
    )


def _preview(prior: MotionPrior | None) -> MethodConfig:
    nothing = Schedule(steps=0)
    return MethodConfig(
        name="preview",
        camera="focal",
        resolution=256,
        static=StaticConfig(gaussians=20_000, schedule=nothing, objectives=()),
        motion=MotionConfig(
            field="control-nodes",
            fields={"control-nodes": {"nodes": 600}},
            following=Following(prior),
            schedule=nothing,
            objectives=(),
        ),
    )


def _more(config: MethodConfig, plus: Collection[str]) -> MethodConfig:
    """The configuration with parts of :data:`MORE`; colours and opacities change over time at control nodes."""
    if "joints" in plus:
        config = replace(config, motion=replace(config.motion, joints=WITHIN))
    added = {name: True for name, part in (("color", "appearance"), ("opacity", "presence")) if part in plus}
    if not added:
        return config
    fields = {**config.motion.fields, "control-nodes": {**config.motion.fields.get("control-nodes", {}), **added}}
    return replace(config, motion=replace(config.motion, field="control-nodes", fields=fields))


_OURS = {"standard": _standard, "draft": _draft}


def settings_v4(choice: Choice) -> MethodConfig:
    """The variant's preset as plain data."""
    prior = None if "refinement" in choice.without else choice.role("prior")
    return _more(
        _less(v4(_whole(choice.preset, prior, "motion-prior" not in choice.without), prior), choice.without), choice.plus
    )


@method(
    "pla4d-v4", title="PLA4D, later version", source="arXiv 2405.19957", settings=settings_v4, roles=(PRIOR,), without=PARTS,
    plus=MORE, object_a_frame=True, summary="pla4d with a focal length, and perhaps an object, for each frame",
)  # fmt: skip
def plan_v4(run: MethodRun) -> Scene4D:
    """PLA4D's stages with a focal length for each frame."""
    run.align()
    run.focal_per_frame()
    run.fit_object()
    run.fit_motion()
    return run.made


def v4(config: MethodConfig, prior: Prior | None = None) -> MethodConfig:
    """The variant ``pla4d-v4`` of a preset, after a summary of the later paper; the details are ours.

    A focal length for each frame (:func:`~anchor4d.core.align.clip.focal_per_frame`), and GS-Mesh losses (Eq. 9) on the 4D
    Gaussians at each frame's time, against that frame's mesh where there is one a frame, else against the first frame's. With a
    prior, time-multiview refinement: distillation at random (time, view) pairs, conditioned on that time's frame.
    """
    front = next((o for o in config.motion.objectives if isinstance(o, ReferenceViewLoss)), ReferenceViewLoss())
    match = MeshMatch(weight=front.weight, views=4, mask=front.mask, perceptual=front.perceptual, levels=front.levels)
    views: tuple[Objective, ...] = ()
    if prior is not None:
        views = (NovelView(Distillation(prior, time=REFINEMENT_TIME), linear(NOVEL_VIEW_WEIGHT, 0.0)),)
    return replace(
        config,
        name=f"{config.name}-v4",
        motion=replace(config.motion, objectives=(*config.motion.objectives, match, *views)),
    )
