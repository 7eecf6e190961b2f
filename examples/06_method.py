"""A plug-in method: the front view alone, on a HexPlane. Then: anchor4d fit --method front-only --video ... --object ..."""

from dataclasses import replace

import anchor4d as a4d
from anchor4d.core.fit.loop import Schedule
from anchor4d.core.methods import pla4d
from anchor4d.core.objectives.front import ReferenceViewLoss
from anchor4d.core.schedules import constant


def settings(choice):
    """Plain data: PLA4D's object, and a motion that nothing holds together."""
    base = pla4d.preset(choice.preset)
    front = ReferenceViewLoss(constant(1e4), mask=0.3, perceptual=0.0)
    steps = {"draft": 60, "standard": 300, "paper": 1000}[choice.preset]
    motion = replace(
        base.motion, field="hexplane", tracking=None, fine=None, refine=None, objectives=(front,),
        schedule=Schedule(steps=steps, resolutions=((1.0, 128),)),
    )  # fmt: skip
    return replace(base, motion=motion)


@a4d.method(
    "front-only", title="Front only", source="an example", settings=settings, summary="the front view alone moves the object"
)
def plan(run) -> a4d.Scene4D:
    """The stages in their order."""
    run.align()
    run.fit_object()
    run.fit_motion()
    return run.made
