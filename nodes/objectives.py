"""3 Fit: objectives, the terms that a fit minimises. They travel over sockets: unplug one, and its term is gone."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.methods import pla4d
from ..core.objectives.base import Objective, Ramp
from ..core.objectives.first_frame import FirstFrame
from ..core.objectives.front import FrontMatch
from ..core.objectives.mesh import MeshMatch
from ..core.objectives.rigidity import Rigidity, Smoothness
from . import host

CATEGORY = "Anchor4D/3 Fit/Objectives"
Terms = tuple[Objective, ...]


def _more() -> io.Input:
    return host.Objectives.Input(
        "objectives", optional=True, tooltip="Objectives to add this one to. Chain as many as you like."
    )


def _output() -> io.Output:
    return host.Objectives.Output("objectives", tooltip="For a fitting step, or the next objective.")


def _weight(default: float, what: str) -> list[io.Input]:
    return [
        io.Float.Input(
            "weight",
            default=default,
            min=0.0,
            max=1e6,
            step=0.1,
            tooltip=f"How much this counts against the other objectives. Higher = {what}. 0 = off.",
        ),
        io.Float.Input(
            "end_weight",
            default=-1.0,
            min=-1.0,
            max=1e6,
            step=0.1,
            optional=True,
            advanced=True,
            tooltip="Weight at the last step; it changes evenly from first to last. -1 = it stays the same.",
        ),
    ]


def _ramp(weight: float, end_weight: float) -> Ramp:
    return Ramp(weight, weight if end_weight < 0 else end_weight)


def _picture_inputs(mask: float, levels: int) -> list[io.Input]:
    return [
        io.Float.Input(
            "mask",
            default=mask,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="How much the outline counts against the colours. Higher = outlines first. 0 = colours only.",
        ),
        io.Float.Input(
            "perceptual",
            default=0.0,
            min=0.0,
            max=1e6,
            step=0.1,
            optional=True,
            advanced=True,
            tooltip="Weight of the perceptual distance (LPIPS, or SSIM where its network is not on this computer). Higher = "
            "crisper texture, much slower. 0 = off.",
        ),
        io.Int.Input(
            "levels",
            default=levels,
            min=1,
            max=6,
            optional=True,
            advanced=True,
            tooltip="Compare also at half, quarter, ... size, this many sizes in all. More = limbs far from their place are "
            "found.",
        ),
    ]


class Anchor4DFrontMatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DFrontMatch",
            display_name="Front Match",
            category=CATEGORY,
            description="Objective: from the front, the object must look like the driving video (PLA4D's texture alignment, "
            "Eq. 5-8 and 10).",
            search_aliases=["texture alignment", "pixel loss", "mse", "lpips", "objective", "loss", "pla4d"],
            inputs=[_more(), *_weight(1.0, "closer to the video"), *_picture_inputs(1.0, 4)],
            outputs=[_output()],
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
            (*objectives, FrontMatch(_ramp(weight, end_weight), mask=mask, perceptual=perceptual, levels=levels))
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
                _more(),
                *_weight(1.0, "closer to the mesh"),
                io.Int.Input(
                    "views", default=4, min=1, max=32, tooltip="Sides compared in every step. More = steadier, slower."
                ),
                *_picture_inputs(0.3, 1),
                io.Float.Input(
                    "lowest",
                    default=-60.0,
                    min=-90.0,
                    max=90.0,
                    step=1.0,
                    optional=True,
                    advanced=True,
                    tooltip="Lowest camera, degrees; negative = from below.",
                ),
                io.Float.Input(
                    "highest",
                    default=60.0,
                    min=-90.0,
                    max=90.0,
                    step=1.0,
                    optional=True,
                    advanced=True,
                    tooltip="Highest camera, degrees; positive = from above.",
                ),
                *(
                    io.Float.Input(
                        part,
                        default=0.0,
                        min=0.0,
                        max=100.0,
                        step=0.1,
                        optional=True,
                        advanced=True,
                        tooltip=f"How much the mesh's {part} count against its colours. Raise it for a mesh without texture "
                        "of its own. 0 = off.",
                    )
                    for part in ("depth", "normals")
                ),
            ],
            outputs=[_output()],
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
                _ramp(weight, end_weight),
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
            description="Objective for motion: at the first frame, the moving object must equal the still one from every "
            "side (PLA4D Eq. 10).",
            search_aliases=["anchor", "static", "objective", "loss", "pla4d"],
            inputs=[
                _more(),
                *_weight(1.0, "the first frame stays as it was"),
                io.Int.Input(
                    "views", default=1, min=1, max=32, tooltip="Sides compared in every step. More = steadier, slower."
                ),
            ],
            outputs=[_output()],
        )

    @classmethod
    def execute(cls, weight: float, views: int, end_weight: float = -1.0, objectives: Terms = ()) -> io.NodeOutput:
        return io.NodeOutput((*objectives, FirstFrame(_ramp(weight, end_weight), views=views)))


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
                _more(),
                *_weight(1.0, "stiffer; lower = softer, cloth-like"),
                io.Float.Input(
                    "joints",
                    default=0.01,
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    tooltip="Small = bending gathers in joints and limbs stay stiff. Large = it spreads. 0 = it spreads "
                    "evenly.",
                ),
                io.Float.Input(
                    "rotation",
                    default=0.05,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="How much neighbours must also turn alike.",
                ),
            ],
            outputs=[_output()],
        )

    @classmethod
    def execute(
        cls, weight: float, joints: float, rotation: float = 0.05, end_weight: float = -1.0, objectives: Terms = ()
    ) -> io.NodeOutput:
        return io.NodeOutput((*objectives, Rigidity(_ramp(weight, end_weight), rotation=rotation, joints=joints)))


class Anchor4DSmoothness(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DSmoothness",
            display_name="Smoothness",
            category=CATEGORY,
            description="Objective for motion: no jerks between successive frames. Not part of the PLA4D paper.",
            search_aliases=["temporal", "acceleration", "jitter", "regulariser", "objective", "loss"],
            inputs=[_more(), *_weight(20.0, "calmer; lower = quick motion is followed better")],
            outputs=[_output()],
        )

    @classmethod
    def execute(cls, weight: float, end_weight: float = -1.0, objectives: Terms = ()) -> io.NodeOutput:
        return io.NodeOutput((*objectives, Smoothness(_ramp(weight, end_weight))))


def _preset_input() -> io.Input:
    return io.Combo.Input(
        "preset",
        options=host.PRESETS,
        default="standard",
        tooltip="standard and draft = PLA4D with what we found to help. paper = the losses of the paper, as published.",
    )


def _set_output(chosen: Terms, objectives: Terms) -> io.NodeOutput:
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
            description="PLA4D's objectives for the still object: Front Match and Mesh Match with a preset's weights.",
            search_aliases=["losses", "preset", "gs-mesh", "static", "pla4d"],
            inputs=[_preset_input(), _more()],
            outputs=[_output()],
        )

    @classmethod
    def execute(cls, preset: str, objectives: Terms = ()) -> io.NodeOutput:
        return _set_output(pla4d.preset(preset).static.objectives, objectives)


class Anchor4DPLA4DObjectives4D(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DPLA4DObjectives4D",
            display_name="PLA4D Objectives (3D to 4D)",
            category=CATEGORY,
            description="PLA4D's objectives for the motion with a preset's weights: Front Match, and First Frame (paper) or "
            "Rigidity and Smoothness (standard, draft).",
            search_aliases=["losses", "preset", "motion alignment", "dynamic", "pla4d"],
            inputs=[_preset_input(), _more()],
            outputs=[_output()],
        )

    @classmethod
    def execute(cls, preset: str, objectives: Terms = ()) -> io.NodeOutput:
        return _set_output(pla4d.preset(preset).motion.objectives, objectives)


NODES = [
    Anchor4DPLA4DObjectives3D,
    Anchor4DPLA4DObjectives4D,
    Anchor4DFrontMatch,
    Anchor4DMeshMatch,
    Anchor4DFirstFrame,
    Anchor4DRigidity,
    Anchor4DSmoothness,
]
