"""3 Fit: objectives, the terms that a fit minimises. They travel over sockets: unplug one, and its term is gone."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.align.distance import ObjectDistance
from ..core.methods import align4d, dg4d, pla4d
from ..core.methods.registry import DEPTH_MOTION, METHODS, method_config
from ..core.objectives.base import Objective
from ..core.objectives.first_frame import FirstFrame
from ..core.objectives.front import ReferenceViewLoss
from ..core.objectives.mesh import MeshMatch
from ..core.objectives.motion_prior import MotionPriorPull
from ..core.objectives.multiview import AboutFrame, AboutStatic, MultiViewDistillation
from ..core.objectives.novel_view import NovelView
from ..core.objectives.reference import ReferenceRefinement, require_image
from ..core.objectives.rigidity import Rigidity, Smoothness
from ..core.priors.base import Prior
from ..core.priors.distill import Annealed, Distillation
from . import host, widgets

CATEGORY = "Anchor4D/3 Fit/Objectives"
Terms = tuple[Objective, ...]


def _picture_inputs(mask: float, levels: int) -> list[io.Input]:
    return [
        widgets.real(
            "mask",
            mask,
            (0.0, 100.0),
            "How much the outline counts against the colours. Higher = outlines first. 0 = colours only.",
            step=0.1,
        ),
        widgets.real(
            "perceptual",
            0.0,
            (0.0, 1e6),
            "Weight of the perceptual distance (LPIPS, or SSIM where its network is not on this computer). Higher = "
            "crisper texture, much slower. 0 = off.",
            step=0.1,
            folded=True,
        ),
        widgets.whole(
            "levels",
            levels,
            (1, 6),
            "Compare also at half, quarter, ... size, this many sizes in all. More = limbs far from their place are found.",
            folded=True,
        ),
    ]


class Anchor4DFrontMatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DFrontMatch",
            display_name="Reference View Loss",
            category=CATEGORY,
            description="Objective: from the front, the object must look like the driving video (PLA4D's texture alignment, "
            "Eq. 5-8 and 10).",
            search_aliases=["texture alignment", "pixel loss", "mse", "lpips", "objective", "loss", "pla4d"],
            inputs=[widgets.objectives(), *widgets.weight(1.0, "closer to the video"), *_picture_inputs(1.0, 4)],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(
        cls,
        weight: float,
        mask: float,
        end_weight: float = -1.0,
        perceptual: float = 0.0,
        levels: int = 4,
        objectives: Terms = (),
    ) -> io.NodeOutput:
        return io.NodeOutput(
            (*objectives, ReferenceViewLoss(widgets.ramp(weight, end_weight), mask=mask, perceptual=perceptual, levels=levels))
        )


class Anchor4DMeshMatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DMeshMatch",
            display_name="Mesh Match",
            category=CATEGORY,
            description="Objective: from random sides, the Gaussians must look like the mesh (PLA4D's GS-Mesh contrastive "
            "learning, Eq. 9).",
            search_aliases=["geometry alignment", "contrastive", "gs-mesh", "objective", "loss", "pla4d"],
            inputs=[
                widgets.objectives(),
                *widgets.weight(1.0, "closer to the mesh"),
                widgets.views(4),
                *_picture_inputs(0.3, 1),
                widgets.real(
                    "lowest", -60.0, (-90.0, 90.0), "Lowest camera, degrees; negative = from below.", step=1.0, folded=True
                ),
                widgets.real(
                    "highest", 60.0, (-90.0, 90.0), "Highest camera, degrees; positive = from above.", step=1.0, folded=True
                ),
                *(
                    widgets.real(
                        part,
                        0.0,
                        (0.0, 100.0),
                        f"How much the mesh's {part} count against its colours. Raise it for a mesh without texture "
                        "of its own. 0 = off.",
                        step=0.1,
                        folded=True,
                    )
                    for part in ("depth", "normals")
                ),
            ],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(
        cls, weight: float, views: int, mask: float, end_weight: float = -1.0, perceptual: float = 0.0, levels: int = 1,
        lowest: float = -60.0, highest: float = 60.0, depth: float = 0.0, normals: float = 0.0, objectives: Terms = (),
    ) -> io.NodeOutput:  # fmt: skip
        with host.work(cls):
            if lowest > highest:
                raise ValueError(f"lowest camera {lowest:g} is above the highest {highest:g}, swap them")
            term = MeshMatch(
                widgets.ramp(weight, end_weight),
                views=views,
                elevation=(lowest, highest),
                mask=mask,
                perceptual=perceptual,
                levels=levels,
                depth=depth,
                normals=normals,
            )
            return io.NodeOutput((*objectives, term))


class Anchor4DFirstFrame(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DFirstFrame",
            display_name="First Frame",
            category=CATEGORY,
            description="Objective for motion: at the first frame, the moving object must equal the static one from every "
            "side (PLA4D Eq. 10).",
            search_aliases=["anchor", "static", "objective", "loss", "pla4d"],
            inputs=[
                widgets.objectives(),
                *widgets.weight(1.0, "the first frame stays as it was"),
                widgets.views(1),
            ],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(cls, weight: float, views: int, end_weight: float = -1.0, objectives: Terms = ()) -> io.NodeOutput:
        return io.NodeOutput((*objectives, FirstFrame(widgets.ramp(weight, end_weight), views=views)))


class Anchor4DRigidity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DRigidity",
            display_name="Rigidity",
            category=CATEGORY,
            description="Objective for motion: neighbouring parts keep their distances (as rigid as possible), which "
            "carries the motion to sides that the video never shows. Not part of the PLA4D paper.",
            search_aliases=["arap", "as rigid as possible", "regulariser", "objective", "loss"],
            inputs=[
                widgets.objectives(),
                *widgets.weight(1.0, "stiffer; lower = softer, cloth-like"),
                widgets.real(
                    "joints",
                    0.01,
                    (0.0, 10.0),
                    "Small = bending gathers in joints and limbs stay stiff. Large = it spreads. 0 = it spreads evenly.",
                    step=0.001,
                ),
                widgets.real(
                    "rotation", 0.05, (0.0, 10.0), "How much neighbours must also turn alike.", step=0.01, folded=True
                ),
            ],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(
        cls, weight: float, joints: float, rotation: float = 0.05, end_weight: float = -1.0, objectives: Terms = ()
    ) -> io.NodeOutput:
        return io.NodeOutput((*objectives, Rigidity(widgets.ramp(weight, end_weight), rotation=rotation, joints=joints)))


def _depth() -> io.Input:
    """Whether the object moves in depth."""
    return widgets.switch(
        "depth",
        True,
        "The object moves in depth too, as the motion prior expects. Off = it moves in the picture alone: for an object whose "
        "depth is a guess, from Inflate Object.",
        optional=True,
    )


class Anchor4DMotionPrior(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DMotionPrior",
            display_name="Motion Prior",
            category=CATEGORY,
            description="Objective for motion: a small network that comes with the pack, trained on animated models, says how "
            "what the video shows moves in depth, and how the sides that it hides move. It starts the motion, and its weight "
            "falls in every pass; what it doubts it leaves alone. Not part of the PLA4D paper.",
            search_aliases=["depth of motion", "learned motion", "unseen sides", "objective", "loss"],
            inputs=[
                widgets.objectives(),
                *widgets.weight(60.0, "it is followed more", end=20.0),
                widgets.real(
                    "trust",
                    0.5,
                    (0.001, 10.0),
                    "The doubt, in lengths of the object, at which it is followed half as much. Higher = bold guesses count.",
                    step=0.001,
                    folded=True,
                ),
                widgets.whole(
                    "every",
                    100,
                    (1, 100_000),
                    "Steps after which it is asked again. Fewer = it follows the fit more closely.",
                    folded=True,
                ),
                _depth(),
            ],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(
        cls,
        weight: float,
        end_weight: float = 20.0,
        trust: float = 0.5,
        every: int = 100,
        objectives: Terms = (),
        depth: bool = True,
    ) -> io.NodeOutput:
        pull = MotionPriorPull(widgets.ramp(weight, end_weight), every=every, trust=trust, flat=not depth)
        return io.NodeOutput((*objectives, pull))


class Anchor4DSmoothness(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DSmoothness",
            display_name="Smoothness",
            category=CATEGORY,
            description="Objective for motion: no jerks between successive frames. Not part of the PLA4D paper.",
            search_aliases=["temporal", "acceleration", "jitter", "regulariser", "objective", "loss"],
            inputs=[widgets.objectives(), *widgets.weight(20.0, "calmer; lower = quick motion is followed better")],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(cls, weight: float, end_weight: float = -1.0, objectives: Terms = ()) -> io.NodeOutput:
        return io.NodeOutput((*objectives, Smoothness(widgets.ramp(weight, end_weight))))


def _distillation_inputs(
    weight: float,
    end: float = 0.0,
    views: int = 6,
    per: str = "every step",
    times: tuple[float, float] = (0.6, 0.4),
    micro_batch: int = 0,
) -> list[io.Input]:
    """What every objective that asks a prior takes."""
    return [
        host.Prior.Input("prior", tooltip="An image-conditioned diffusion model: from Load Prior or Prior from Model."),
        widgets.objectives(),
        # With an end weight of 0, the video alone counts in the last steps.
        *widgets.weight(weight, "closer to the prior; lower = closer to the video", 0.01, end),
        widgets.whole("views", views, (1, 64), f"Pictures that the prior sees in {per}. More = steadier, slower."),
        widgets.guidance("Guidance scale. Higher = closer to the condition, more contrast. 0 = the prior's usual.", 200.0),
        *(
            widgets.real(
                f"{end}_time",
                default,
                (0.02, 0.98),
                f"Share of noise {when}. Higher = larger changes are suggested, lower = only details.",
                step=0.01,
                folded=True,
            )
            for end, default, when in (("first", times[0], "at the first step"), ("last", times[1], "at the last step"))
        ),
        widgets.whole(
            "micro_batch",
            micro_batch,
            (0, 64),
            "Pictures in the prior at once. Lower = less memory, slower, the same result. 0 = all.",
            words=widgets.reads(0, "all"),
            folded=True,
        ),
    ]


def _distillation(prior: Prior, guidance: float, first_time: float, last_time: float, micro_batch: int) -> Distillation:
    return Distillation(
        prior,
        time=Annealed(first_time, last_time),
        guidance=guidance or None,
        micro_batch=micro_batch,
        encode_batch=micro_batch,
    )


class Anchor4DReferenceRefinement(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DReferenceRefinement",
            display_name="Reference Refinement",
            category=CATEGORY,
            description="Objective for motion: a diffusion prior that sees the static object from the same side closes "
            "tearing artefacts and "
            "holes where the video does not look (PLA4D Eq. 11).",
            search_aliases=["sds", "score distillation", "zero123", "prior", "refine", "objective", "loss", "pla4d"],
            inputs=[
                *_distillation_inputs(pla4d.REFINEMENT_WEIGHT),
                widgets.real(
                    "away",
                    60.0,
                    (0.0, 170.0),
                    "Smallest angle between views and front, degrees: there the video knows better. 0 = all around.",
                    step=5.0,
                    folded=True,
                ),
            ],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(
        cls, prior: Prior, weight: float, views: int, end_weight: float = 0.0, guidance: float = 0.0,
        first_time: float = 0.6, last_time: float = 0.4, micro_batch: int = 0, away: float = 60.0, objectives: Terms = (),
    ) -> io.NodeOutput:  # fmt: skip
        with host.work(cls):
            require_image(prior, "it")
            distillation = _distillation(prior, guidance, first_time, last_time, micro_batch)
            return io.NodeOutput(
                (*objectives, ReferenceRefinement(distillation, widgets.ramp(weight, end_weight), views, away=away))
            )


class Anchor4DNovelViews(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DNovelViews",
            display_name="Novel Views",
            category=CATEGORY,
            description="Objective: a diffusion prior that sees each frame of the driving video predicts how the object looks "
            "from "
            "other sides at that time (time-multiview refinement of PLA4D's later version; DreamGaussian4D's distillation).",
            search_aliases=["sds", "score distillation", "zero123", "t-mv", "prior", "objective", "loss", "pla4d-v4", "dg4d"],
            inputs=_distillation_inputs(pla4d.NOVEL_VIEW_WEIGHT),
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(
        cls, prior: Prior, weight: float, views: int, end_weight: float = 0.0, guidance: float = 0.0,
        first_time: float = 0.6, last_time: float = 0.4, micro_batch: int = 0, objectives: Terms = (),
    ) -> io.NodeOutput:  # fmt: skip
        with host.work(cls):
            require_image(prior, "it")
            distillation = _distillation(prior, guidance, first_time, last_time, micro_batch)
            return io.NodeOutput((*objectives, NovelView(distillation, widgets.ramp(weight, end_weight), views)))


def _distance_input() -> io.Input:
    return host.Distance.Input(
        "distance",
        optional=True,
        tooltip="From Model Distance: from how far the prior's views are drawn, and which distance it gets. Nothing connected "
        "= "
        "as far as the video shows the object, and the prior gets no distance.",
    )


#: Which of its two questions Motion and Geometry asks.
QUESTIONS = {
    "motion and geometry": (AboutFrame(), AboutStatic()),
    "motion": (AboutFrame(),),
    "geometry": (AboutStatic(),),
}


class Anchor4DMotionGeometry(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DMotionGeometry",
            display_name="Motion and Geometry",
            category=CATEGORY,
            description="Objective for motion: every frame's object, seen from random sides, must suit the video's frame of "
            "that time and the static object, as a diffusion prior judges (Align4D's joint alignment, Eq. 7-9).",
            search_aliases=["mgja", "joint alignment", "sds", "score distillation", "zero123", "objective", "align4d", "dg4d"],
            inputs=[
                *_distillation_inputs(align4d.LAMBDA, -1.0, 2, "every step, of each frame", (0.98, 0.02), dg4d.MICRO_BATCH),
                widgets.choice(
                    "ask",
                    list(QUESTIONS),
                    "What the prior sees. motion = the video's frame of that time. geometry = the static object "
                    "from the same side. motion alone = DreamGaussian4D's distillation.",
                    default="motion and geometry",
                ),
                widgets.switch(
                    "temporal",
                    True,
                    "Early frames obey the static object, late ones the video (Eq. 9). Off = both count alike in every frame.",
                    folded=True,
                ),
                _distance_input(),
            ],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(
        cls, prior: Prior, weight: float, views: int, ask: str, end_weight: float = -1.0, guidance: float = 0.0,
        first_time: float = 0.98, last_time: float = 0.02, micro_batch: int = dg4d.MICRO_BATCH, temporal: bool = True,
        distance: ObjectDistance | None = None, objectives: Terms = (),
    ) -> io.NodeOutput:  # fmt: skip
        with host.work(cls):
            require_image(prior, "it")
            term = MultiViewDistillation(
                _distillation(prior, guidance, first_time, last_time, micro_batch),
                widgets.ramp(weight, end_weight),
                views,
                QUESTIONS[ask],
                temporal=temporal,
                distance=distance,
            )
            # In the place of another in the chain: bypassing this node then leaves that one, an ablation of Align4D's.
            others = tuple(o for o in objectives if o.name != term.name)
            if len(others) < len(objectives):
                host.say("in place of the one in the chain")
            return io.NodeOutput((*others, term))


def _preset() -> io.Input:
    return widgets.preset(
        "standard and draft = PLA4D with what we found to help. paper = the losses of the paper, as published."
    )


def chain(chosen: Terms, objectives: Terms) -> io.NodeOutput:
    """A node's output: a chain with a set of objectives added, whose weights the node says."""
    host.say("\n".join(describe(term) for term in chosen))
    return io.NodeOutput((*objectives, *chosen))


def describe(term: Any) -> str:
    """An objective's name and weight, as a user reads it."""
    weight = term.weight
    span = f"{weight.start:g}" if weight.start == weight.end else f"{weight.start:g} to {weight.end:g}"
    return f"{term.name.replace('_', ' ')}: weight {span}"


class Anchor4DPLA4DObjectives3D(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DPLA4DObjectives3D",
            display_name="PLA4D Objectives (Frame to 3D)",
            category=CATEGORY,
            description="PLA4D's objectives for the static object: Reference View Loss and Mesh Match with a preset's weights.",
            search_aliases=["losses", "preset", "gs-mesh", "static", "pla4d"],
            inputs=[_preset(), widgets.objectives()],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(cls, preset: str, objectives: Terms = ()) -> io.NodeOutput:
        return chain(pla4d.preset(preset).static.objectives, objectives)


class Anchor4DPLA4DObjectives4D(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DPLA4DObjectives4D",
            display_name="PLA4D Objectives (3D to 4D)",
            category=CATEGORY,
            description="PLA4D's objectives for the motion with a preset's weights: Reference View Loss, and First Frame "
            "(paper) or Rigidity, Smoothness and Motion Prior (standard, draft); with a prior, Reference Refinement.",
            search_aliases=["losses", "preset", "motion alignment", "dynamic", "pla4d"],
            inputs=[
                _preset(),
                widgets.objectives(),
                host.Prior.Input(
                    "prior",
                    optional=True,
                    tooltip="An image-conditioned diffusion model, from Load Prior: adds Reference Refinement, which "
                    "closes tearing artefacts on the sides that the video does not show. Nothing connected = none.",
                ),
                _depth(),
            ],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(cls, preset: str, objectives: Terms = (), prior: Prior | None = None, depth: bool = True) -> io.NodeOutput:
        without = () if depth else (DEPTH_MOTION,)
        return chain(pla4d.preset(preset, prior, without).motion.objectives, objectives)


#: Methods that distil views of every frame without drawing anchors of them.
METHODS_JOINT = [
    name for name, method in METHODS.items() if "multi-view" in (asked := method.motion_objectives()) and "anchors" not in asked
]


class Anchor4DAlign4DObjectives(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DAlign4DObjectives",
            display_name="Align4D Objectives",
            category=CATEGORY,
            description="The objectives of Align4D, or of DreamGaussian4D, for the motion with a preset's weights: Reference "
            "View "
            "Loss, and with a prior Motion and Geometry.",
            search_aliases=["losses", "preset", "mgja", "dynamic", "align4d", "dreamgaussian4d", "dg4d"],
            inputs=[
                widgets.choice(
                    "method",
                    METHODS_JOINT,
                    "align4d = the prior is asked about motion and geometry. dg4d = DreamGaussian4D: motion alone.",
                ),
                widgets.preset("standard and draft = fewer views, for any computer. paper = as published, needs a GPU."),
                widgets.objectives(),
                host.Prior.Input(
                    "prior",
                    optional=True,
                    tooltip="An image-conditioned diffusion model with cameras, from Load Prior or Prior from Model. Nothing "
                    "connected = only the video counts.",
                ),
                _distance_input(),
            ],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(
        cls,
        method: str,
        preset: str,
        objectives: Terms = (),
        prior: Prior | None = None,
        distance: ObjectDistance | None = None,
    ) -> io.NodeOutput:
        with host.work(cls):
            if prior is not None:
                require_image(prior, "they")
            terms = method_config(method, preset, {} if prior is None else {"prior": prior}).motion.objectives
            return chain(terms if distance is None else tuple(o.with_distance(distance) for o in terms), objectives)


NODES = [
    Anchor4DPLA4DObjectives3D,
    Anchor4DPLA4DObjectives4D,
    Anchor4DFrontMatch,
    Anchor4DMeshMatch,
    Anchor4DFirstFrame,
    Anchor4DRigidity,
    Anchor4DSmoothness,
    Anchor4DMotionPrior,
    Anchor4DReferenceRefinement,
    Anchor4DNovelViews,
    Anchor4DMotionGeometry,
    Anchor4DAlign4DObjectives,
]
