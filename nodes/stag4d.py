"""3 Fit: STAG4D, video to 4D by temporally consistent anchors; its fits are those of the other methods."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.align import FocalAlignment
from ..core.methods import stag4d, stages
from ..core.methods.registry import METHODS, method_config
from ..core.priors.base import Prior
from ..core.scene.anchors import LENS, Anchors
from ..core.video import DrivingVideo
from . import host, host_prior, widgets
from .objectives import CATEGORY as OBJECTIVES
from .objectives import Terms, chain

AnchorsType = io.Custom("A4D_ANCHORS")  # core.anchors.Anchors


class Anchor4DStartWithoutObject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DStartWithoutObject",
            display_name="Start without Object",
            category="Anchor4D/2 Align",
            description="For STAG4D, which needs no 3D model: a point-cloud initialisation, and a camera under which the "
            "video's "
            "object is about one unit large.",
            search_aliases=["random points", "ball", "no mesh", "video to 4d", "stag4d"],
            inputs=[
                host.Video.Input("driving_video", tooltip="From Load Driving Video."),
                widgets.whole("points", 4000, (100, 200_000), "Points of the initialisation. More = finer, slower.", step=100),
                widgets.seed(),
            ],
            outputs=[host.Alignment.Output("alignment", tooltip="In place of the alignment of a 3D model.")],
        )

    @classmethod
    def execute(cls, driving_video: DrivingVideo, points: int, seed: int) -> io.NodeOutput:
        with host.work(cls):
            made = stages.without_object(driving_video, distance=stag4d.DISTANCE, points=points, seed=seed)
            return io.NodeOutput(made)


class Anchor4DTemporalAnchors(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DTemporalAnchors",
            display_name="Temporal Anchors",
            category="Anchor4D/4 Priors",
            description="Draws six views around the object for every frame of the video, which share features with the first "
            "frame's so that they show one object in motion (STAG4D).",
            search_aliases=["zero123++", "multi-view", "six views", "consistent", "attention", "stag4d"],
            inputs=[
                host.Video.Input("driving_video", tooltip="The clip that will be fitted."),
                host.Alignment.Input("alignment", tooltip="Its camera: from Start without Object, or of a 3D model."),
                host.Prior.Input("prior", tooltip="A Zero123++ (zero123plus-v1.1), a Zero123 or tiny, from Load Prior."),
                widgets.real(
                    "gamma",
                    0.5,
                    (0.0, 1.0),
                    "Share of the first frame's features. Higher = steadier views, less motion. 0 = each frame alone.",
                    step=0.05,
                ),
                widgets.whole("steps", 30, (1, 200), "Steps of the sampler; the paper takes 75."),
                widgets.seed(),
                widgets.guidance("Guidance scale. Higher = closer to the frame, more contrast. 0 = the prior's usual.", 20.0),
                widgets.whole(
                    "together",
                    2,
                    (1, 64),
                    "Frames drawn at once, besides the first. Lower = less memory, slower, the same result.",
                    folded=True,
                ),
                widgets.device("Where the prior computes. auto = where ComfyUI does."),
            ],
            outputs=[
                AnchorsType.Output("anchors", tooltip="For STAG4D Objectives."),
                io.Image.Output("images", tooltip="The views on white: the six of the first frame, of the second, ..."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls, driving_video: DrivingVideo, alignment: FocalAlignment, prior: Prior, gamma: float, steps: int, seed: int,
        guidance: float = 0.0, together: int = 2, device: str = "auto",
    ) -> io.NodeOutput:  # fmt: skip
        with host.work(cls), host_prior.loaded([prior], device):
            from ..core.generate.anchors import sample_anchors

            report = host.Report()

            def tell(step: int, count: int, picture: Any) -> None:
                report.show(step, count, lambda: _row(picture()), f"anchors: step {step} of {count}")

            anchors = sample_anchors(
                prior, driving_video, alignment.front, distance=stag4d.DISTANCE, fovy=LENS, gamma=gamma, steps=steps,
                guidance=guidance or None, seed=seed, together=together, progress=tell,
            )  # fmt: skip
            images = anchors.composited(torch.ones(3)).flatten(0, 1)
            return io.NodeOutput(anchors, images, ui=host.stills(images[: 6 * min(len(anchors), 4)]))


def _row(pictures: Tensor | None) -> Tensor | None:  # (V, H, W, 3) -> (H, V W, 3)
    return None if pictures is None else torch.cat(list(pictures.cpu()), 1)


#: Methods that draw anchors of every frame.
METHODS_ANCHORED = [name for name, method in METHODS.items() if "anchors" in method.motion_objectives()]


class Anchor4DSTAG4DObjectives(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DSTAG4DObjectives",
            display_name="STAG4D Objectives",
            category=OBJECTIVES,
            description="STAG4D's objectives with a preset's weights: Reference View Loss, multi-view distillation and "
            "an anisotropy regulariser; for the motion, smooth planes too. A given 3D model is only where the canonical "
            "stage starts.",
            search_aliases=["losses", "preset", "anchors", "canonical", "dynamic", "stag4d"],
            inputs=[
                widgets.choice(
                    "stage",
                    ["canonical", "motion"],
                    "canonical = for Fit Gaussians to Mesh and Frame. motion = for Motion Alignment.",
                ),
                widgets.choice(
                    "method",
                    METHODS_ANCHORED,
                    "With preset paper: the paper's text, or its released code where the two differ.",
                ),
                widgets.preset(
                    "standard and draft = ours, for any computer: the anchors are targets too. paper = as published."
                ),
                widgets.switch(
                    "from_object",
                    False,
                    "Whether a 3D model was aligned. Then the canonical stage is fitted to it and the first frame, and "
                    "the anchors only condition the prior (draft, standard); paper: it is where that stage starts.",
                ),
                widgets.objectives(),
                host.Prior.Input(
                    "prior", optional=True, tooltip="A Zero123 or tiny, from Load Prior. Nothing connected = no distillation."
                ),
                AnchorsType.Input(
                    "anchors", optional=True, tooltip="From Temporal Anchors. Nothing connected = only the video's frames."
                ),
                widgets.switch(
                    "geometry",
                    False,
                    "Ask the prior about the static object too (Align4D's joint alignment). Motion, with a 3D model.",
                    optional=True,
                ),
            ],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(
        cls, stage: str, method: str, preset: str, from_object: bool, objectives: Terms = (), prior: Prior | None = None,
        anchors: Anchors | None = None, geometry: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        with host.work(cls):
            models = {} if prior is None else {"prior": prior}
            config = method_config(method, preset, models, plus=("mgja",) if geometry else ())
            if from_object and config.with_object is not None:
                config = config.with_object
            if anchors is not None:
                config = stages.with_anchors(config, anchors)
            terms = (config.static if stage == "canonical" else config.motion).objectives
            # As Motion and Geometry does, the distillation takes the place of another in the chain.
            distilled = {term.name for term in terms if term.priors()}
            return chain(terms, tuple(o for o in objectives if o.name not in distilled))


NODES = [Anchor4DStartWithoutObject, Anchor4DTemporalAnchors, Anchor4DSTAG4DObjectives]
