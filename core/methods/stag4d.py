"""STAG4D: spatial-temporal anchored Gaussians, video to 4D. Zeng et al., arXiv 2403.14939.

From the parts that the other methods share:

- anchors, six temporally consistent views of every frame: :mod:`..generate.anchors`;
- a canonical stage on the middle frame, from points in a ball, then a HexPlane at four scales with the Gaussians, all by
  distillation that shows the prior the frame or the nearest anchor: :class:`~..objectives.multiview.MultiViewDistillation`;
- regularisers of planes and scales: :mod:`..objectives.planes`; adaptive densification: :mod:`..fit.density`.

``paper`` is the paper's text, the variant ``stag4d-code`` its released code. ``draft`` and ``standard`` are ours: there the
anchors are targets as well. Neither paper nor code starts from an object. Where one is given, the canonical stage starts from
it in place of the ball, and at the first frame, which it shows; in ours it is fitted to the object's own sides and that frame,
and the anchors, which know less of the object than it holds itself, only condition the prior.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from ..fit.density import DensityControl
from ..fit.loop import Schedule
from ..generate.anchors import GAMMA
from ..objectives.anchors import AnchorMatch
from ..objectives.base import Objective
from ..objectives.front import ReferenceViewLoss
from ..objectives.mesh import MeshMatch
from ..objectives.multiview import AboutAnchor, AboutStatic, MultiViewDistillation
from ..objectives.planes import AnisotropyRegulariser, PlaneSmoothness
from ..priors.base import Prior
from ..priors.distill import Distillation, UniformWindow
from ..scene.scene import Scene4D
from ..schedules import Ramp, constant
from . import align4d
from .plan import MethodRun
from .registry import Choice, ModelRole, method
from .stages import AnchorConfig, MethodConfig, MotionConfig, StaticConfig

#: Parts of Align4D that can be added, as in its Table III.
PARTS = ("oda", "mgja", "ao")
#: Parts that can be left out, as in the paper's ablations: the anchors; their features shared over time (each frame's views are
#: drawn by themselves, the paper's "spatial only"); adaptive densification.
LESS = ("anchors", "fusion", "densification")
#: Pictures a step; losses are summed over them.
BATCH = 4
#: Steps over which the video's weight rises, and over which the window of diffusion times falls.
RAMP, WINDOW = 2000, 3000
#: Where the lens of the anchors and of distillation stands: the paper's distance 2, in whose world objects are about 1.2 long.
DISTANCE = 1.7
#: Samplers' steps and guidance for Zero123++ (the paper's), steps for other priors.
PLUS_STEPS, PLUS_GUIDANCE, STEPS = 75, 4.0, 30


@dataclass(frozen=True)
class _Published:
    """Where the paper's text and its released code differ."""

    colour: float  # weight of the reference's colours and masks
    mask: float
    still: int  # steps of the canonical stage
    whole: int  # steps in all
    fall: float  # factor of the field's rates at the end
    both: bool  # one prior call asks about frame and anchor, or either is drawn
    anchored: float
    dark: float
    logarithmic: bool  # the scale term's quotient is that of logarithms
    at_rest: bool  # heads start at zero
    time_resolution: int  # cells in time that are used


PUBLISHED = {
    # The field's rates fall from 1.6e-4 to 1.6e-6. Of Eq. 6 the two weights are open: even. Open, too: heads, backgrounds, and
    # how 25 cells cover the clip.
    "stag4d": _Published(4e4, 1e4, 1000, 8000, 0.01, True, 0.5, 0.0, False, True, 25),
    # Times run from 0 to 1 on an axis from -1 to 1, so that 13 of 25 cells are used.
    "stag4d-code": _Published(2e4, 5e3, 700, 8000, 0.1, False, 0.4, 0.5, True, False, 13),
}


def settings(choice: Choice) -> MethodConfig:
    """A preset as plain data."""
    return preset(
        choice.preset, choice.role("prior"), choice.role("anchors"), plus=choice.plus, without=choice.without
    )  # fmt: skip


def settings_code(choice: Choice) -> MethodConfig:
    """A preset of the released code as plain data."""
    return preset(
        choice.preset, choice.role("prior"), choice.role("anchors"), method="stag4d-code", plus=choice.plus,
        without=choice.without,
    )  # fmt: skip


ROLES = (
    ModelRole("prior", own=("zero123-xl",), fallback="tiny"),
    ModelRole("anchors", own=("zero123plus-v1.1",), fallback="prior", unless="anchors"),
)


@method(
    "stag4d-code", title="STAG4D, released code", source="arXiv 2403.14939", settings=settings_code, roles=ROLES,
    needs_object=False, plus=PARTS, without=LESS, summary="stag4d, whose preset paper is the released code",
)  # fmt: skip
@method(
    "stag4d", title="STAG4D", source="arXiv 2403.14939", settings=settings, roles=ROLES, needs_object=False, plus=PARTS,
    without=LESS, summary="from a video alone: six consistent views of every frame anchor the object",
)  # fmt: skip
def plan(run: MethodRun) -> Scene4D:
    """STAG4D's stages."""
    run.align()  # of points that stand in for an object, or of one
    run.prefer_distance()  # Align4D's, where oda is added
    run.draw_anchors()
    run.fit_object()  # the canonical stage
    run.match_anchors()
    run.fit_motion()
    return run.made


def preset(
    name: str,
    prior: Prior | None = None,
    views: Prior | None = None,
    *,
    method: str = "stag4d",
    plus: Collection[str] = (),
    without: Collection[str] = (),
    gamma: float = GAMMA,
) -> MethodConfig:
    """ "paper", "standard" or "draft".

    Args:
        prior: distilled; without one, only the video and the anchors count.
        views: draws the anchors; none are drawn without one.
        method: "stag4d", or "stag4d-code", whose preset "paper" is the released code.
        plus: parts of Align4D to add: its camera and model distance, its geometry question, its turns.
        without: of :data:`LESS`.
        gamma: share of the first frame's features in the anchors'.
    """
    if name not in ("paper", "standard", "draft"):
        raise ValueError(f"preset {name!r}: unknown, choose paper, standard or draft")
    config = _published(PUBLISHED[method], prior) if name == "paper" else _ours(name, prior)
    config = _added(config, name, None if "anchors" in without else views, plus, 0.0 if "fusion" in without else gamma)
    if "densification" in without:
        config = replace(config, motion=replace(config.motion, density=None))
    static, motion = config.static, config.motion
    if name == "paper":
        started = replace(static, frame="first")
    else:
        known = MeshMatch(constant(1e4), views=4, mask=0.3, perceptual=0.0)
        front = ReferenceViewLoss(constant(FRONT_WEIGHT), mask=0.25, perceptual=0.0)
        started = replace(static, gaussians=2 * static.gaussians, objectives=(front, known), rates=None, frame="first")
        terms = tuple(o for o in motion.objectives if not isinstance(o, AnchorMatch))
        motion = replace(motion, objectives=terms)
    return replace(config, with_object=replace(config, static=started, motion=motion))


def _added(config: MethodConfig, name: str, views: Prior | None, plus: Collection[str], gamma: float) -> MethodConfig:
    """The configuration with its anchors, and with the parts of Align4D."""
    anchors = None
    if views is not None:
        draws = PLUS_STEPS if name == "paper" else STEPS
        anchors = AnchorConfig(views, gamma, STEPS, plus_steps=draws, plus_guidance=PLUS_GUIDANCE)
    paper, motion = name == "paper", config.motion
    if "mgja" in plus:
        weight = {} if paper else {"weight": constant(align4d.LAMBDA)}
        terms = (
            replace(o, asks=(*o.asks, AboutStatic()), **weight) if isinstance(o, MultiViewDistillation) else o
            for o in motion.objectives
        )
        motion = replace(motion, objectives=tuple(terms))
    if "ao" in plus:
        turns = align4d.PAPER_TURNS if paper else align4d.TURNS
        motion = replace(motion, schedule=replace(motion.schedule, turns=turns))
    meaning = align4d.PAPER_MEANING if paper else align4d.MEANING
    return replace(config, motion=motion, anchors=anchors, model_distance=meaning if "oda" in plus else None)


def _published(of: _Published, prior: Prior | None) -> MethodConfig:
    still, moving = of.still, of.whole - of.still
    needles = AnisotropyRegulariser(constant(1.0), logarithmic=of.logarithmic)
    asks = (AboutAnchor(share=of.anchored, both=of.both),)
    density = DensityControl(
        every=100, start=1200 - still, stop=(6000 - still) / moving, top=0.025, large=0.1, min_opacity=0.01, largest=0.1,
        smallest=0.001, share=1.0, budget=200_000,
    )  # fmt: skip
    rates = {"means": 2e-3, "sh": 5e-3, "opacity_logits": 2e-2, "log_scales": 1e-2, "quats": 2e-3}
    # Positions fall to a hundredth within RAMP steps.
    fallen = 0.01 ** (still / RAMP)

    def part(first: int, steps: int, sizes: tuple[tuple[float, float], ...], views: int) -> tuple[Objective, ...]:
        """The terms of steps from ``first`` on."""
        risen, until = first / RAMP, min((RAMP - first) / steps, 1.0)
        top = min(1.0, (first + steps) / RAMP)
        front = ReferenceViewLoss(Ramp(BATCH * of.colour * risen, BATCH * of.colour * top, until), of.mask / of.colour, 0.0)
        if prior is None:
            return (front,)
        early, late = first / WINDOW, min(1.0, (first + steps) / WINDOW)
        closes = min((WINDOW - first) / steps, 1.0)
        window = UniformWindow(
            Ramp(0.5 - 0.48 * early, 0.5 - 0.48 * late, closes), Ramp(0.95 - 0.45 * early, 0.95 - 0.45 * late, closes)
        )
        distillation = Distillation(prior, time=window, guidance=5.0, micro_batch=BATCH)
        return front, MultiViewDistillation(
            distillation, constant(BATCH), views, asks, temporal=False, sizes=sizes, dark=of.dark
        )  # fmt: skip

    # The prior's pictures have 128 pixels to step 600, 256 to step 1200, then 512, where the prior has 256.
    return MethodConfig(
        name="paper",
        camera="distance",
        resolution=512,
        distance=DISTANCE,
        static=StaticConfig(
            gaussians=10_000,
            schedule=Schedule(steps=still, resolutions=((1.0, 512),), lr_final=1.0, means_final=fallen),
            objectives=(*part(0, still, ((600 / still, 0.5), (1.0, 1.0)), BATCH), needles),
            rates=rates,
            frame="middle",
        ),
        motion=MotionConfig(
            field="hexplane",
            train="both",
            schedule=Schedule(
                steps=moving, frames=BATCH, resolutions=((1.0, 512),), lr_final=1.0, means_final=0.01 / fallen,
                means_until=(RAMP - still) / moving,
            ),
            objectives=(
                *part(still, moving, (((1200 - still) / moving, 1.0), (1.0, 2.0)), 1), PlaneSmoothness(constant(1.0)), needles,
            ),
            density=density,
            rates=rates | {"means": 2e-3 * fallen},
            fields={
                "hexplane": {
                    "resolution": 64, "time_resolution": of.time_resolution, "multiscale": (1, 2, 4, 8), "channels": 32,
                    "grid_lr": 1.6e-2, "mlp_lr": 1.6e-3, "lr_final": of.fall, "at_rest": of.at_rest,
                }
            },
        ),
    )  # fmt: skip


#: What two processor cores carry: Gaussians, steps of both stages, picture sizes of both.
OURS = {
    "standard": (4000, 300, 1200, ((0.5, 128), (1.0, 192)), ((0.4, 128), (1.0, 192))),
    "draft": (2500, 150, 400, ((1.0, 128),), ((1.0, 128),)),
}
#: Frames a step, of ours.
FRAMES = 8
#: Weights of ours, of means: the video's pictures, the anchors, distillation.
FRONT_WEIGHT, ANCHOR_WEIGHT, PRIOR_WEIGHT = 1e4, 1e4, 0.1


def _ours(name: str, prior: Prior | None) -> MethodConfig:
    count, still, moving, small, large = OURS[name]

    def part(views: int, early: float) -> tuple[Objective, ...]:
        # Masks count as in the released code; the video's share rises as there.
        terms: tuple[Objective, ...] = (
            ReferenceViewLoss(Ramp(0.3 * FRONT_WEIGHT, FRONT_WEIGHT, 0.3), 0.25, 0.0),
            AnchorMatch(constant(ANCHOR_WEIGHT), views=views),
        )
        if prior is not None:
            window = UniformWindow(Ramp(early, 0.02), Ramp(early + 0.4, 0.4))
            distillation = Distillation(prior, time=window, micro_batch=BATCH)
            terms += (
                MultiViewDistillation(
                    distillation, constant(PRIOR_WEIGHT), 2 if views > 2 else 1, (AboutAnchor(),), temporal=False
                ),
            )  # fmt: skip
        return terms

    density = DensityControl(
        every=max(10, moving // 20), start=moving // 8, stop=0.7, top=0.025, large=0.1, min_opacity=0.01, largest=0.1,
        smallest=0.001, share=1.0, budget=50_000,
    )  # fmt: skip
    return MethodConfig(
        name=name,
        camera="distance",
        resolution=256,
        distance=DISTANCE,
        static=StaticConfig(
            gaussians=count,
            schedule=Schedule(steps=still, resolutions=small, lr_final=0.3, background="random"),
            objectives=(*part(6, 0.4), AnisotropyRegulariser()),
            rates={"means": 4e-3, "log_scales": 1e-2},
            frame="middle",
        ),
        motion=MotionConfig(
            field="hexplane",
            train="both",
            schedule=Schedule(steps=moving, frames=FRAMES, resolutions=large, lr_final=0.1, background="random"),
            objectives=(*part(2, 0.2), PlaneSmoothness(constant(1.0)), AnisotropyRegulariser()),
            density=density,
            fields={
                "hexplane": {
                    "resolution": 16, "multiscale": (1, 2, 4, 8), "channels": 16, "bounds": 0.8,
                    "grid_lr": 1.6e-2, "mlp_lr": 1.6e-3,
                }
            },
        ),
    )  # fmt: skip
