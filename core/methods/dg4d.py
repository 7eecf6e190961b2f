"""DreamGaussian4D (Ren et al., arXiv 2312.17142): the baseline, from the same parts.

The object stands before a fixed camera (field of view 49.1 degrees, distance 1.5). A HexPlane and the Gaussians are fitted at
once to the driving video and, from random sides, to a prior that is given the frame of the same time. Numbers are those of the
released code; its LGM object and its mesh refinement are not part of this.
"""

from __future__ import annotations

from dataclasses import replace

from ..fit.loop import Schedule
from ..objectives.base import Objective
from ..objectives.front import ReferenceViewLoss
from ..objectives.mesh import MeshMatch
from ..objectives.multiview import AboutFrame, MultiViewDistillation
from ..priors.base import Prior
from ..priors.distill import Annealed, Distillation
from ..scene.scene import Scene4D
from ..schedules import constant, linear
from .plan import MethodRun
from .registry import Choice, ModelRole, method
from .stages import MethodConfig, MotionConfig, StaticConfig

#: 500 steps; the prior's views at 128 pixels, then 256, then 512 where the prior has 256.
PAPER = MotionConfig(
    field="hexplane",
    train="both",
    schedule=Schedule(steps=500, resolutions=((1.0, 256),), lr_final=1.0, means_final=0.02),
    objectives=(),
)
SIZES = ((0.3, 0.5), (0.6, 1.0), (1.0, 2.0))
#: Pictures that the prior sees at once: a step has 16 to 64 of them, which no card of 8 GB holds (docs/memory.md).
MICRO_BATCH = 4
#: What two processor cores carry: steps, views of each frame, pictures.
OURS = {
    "standard": (300, 2, ((0.5, 128), (1.0, 256))),
    "draft": (150, 2, ((1.0, 128),)),
}


def settings(choice: Choice) -> MethodConfig:
    """A preset as plain data."""
    return preset(choice.preset, choice.role("prior"))


@method(
    "dg4d", title="DreamGaussian4D", source="arXiv 2312.17142", settings=settings,
    roles=(ModelRole("prior", own=("stable-zero123",), fallback="tiny"),),
    summary="the baseline: video and prior at once, from a fixed camera",
)  # fmt: skip
def plan(run: MethodRun) -> Scene4D:
    """DreamGaussian4D's stages."""
    run.align()  # the fixed camera
    run.fit_object()
    run.fit_motion()
    return run.made


def preset(name: str, prior: Prior | None = None) -> MethodConfig:
    """ "paper" (the released code), or "standard" and "draft": fewer steps and views. Without a prior, only the video."""
    if name not in ("paper", *OURS):
        raise ValueError(f"preset {name!r}: unknown, choose paper, standard or draft")
    if name == "paper":
        motion, views, sizes = PAPER, 4, SIZES
    else:
        steps, views, resolutions = OURS[name]
        motion, sizes = replace(PAPER, schedule=replace(PAPER.schedule, steps=steps, resolutions=resolutions)), ((1.0, 1.0),)
    # The weights of both terms rise with progress; the prior's times fall from 0.98 to 0.02.
    objectives: tuple[Objective, ...] = (ReferenceViewLoss(linear(0.0, 1.0, 1e4), mask=0.1, perceptual=0.0),)
    if prior is not None:
        distillation = Distillation(prior, time=Annealed(1.0, 0.0), micro_batch=MICRO_BATCH)
        objectives += (MultiViewDistillation(distillation, views=views, asks=(AboutFrame(),), sizes=sizes),)
    return MethodConfig(
        name=name,
        camera="fixed",
        resolution=256,
        static=StaticConfig(
            gaussians=40_000 if name == "paper" else 12_000 if name == "standard" else 8000,
            # The object's own sides alone: the video's frame has no part in where the methods start.
            schedule=Schedule(steps=80 if name == "draft" else 200, resolutions=((0.5, 128), (1.0, 256)), lr_final=0.1),
            objectives=(MeshMatch(weight=constant(1e4), views=4, mask=0.3, perceptual=0.0),),
        ),
        motion=replace(motion, objectives=objectives),
    )
