"""The estimate before a fit: the steps to come times what a few of them take."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from anchor4d.core.cameras import Crop, FrontCamera
from anchor4d.core.deformation import ControlNodes
from anchor4d.core.fit import estimate
from anchor4d.core.fit.estimate import FitEstimate, Pass, estimate_passes
from anchor4d.core.fit.loop import FitState, Inputs, Schedule
from anchor4d.core.gaussians import random_gaussians
from anchor4d.core.objectives.base import FitStep, Objective
from anchor4d.core.scene.scene import frame_times
from anchor4d.core.schedules import Weight, constant
from anchor4d.core.video import DrivingVideo


class Clock:
    """Time that passes as objectives say."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Costly(Objective):
    """An objective whose step takes as many seconds as its picture has pixels on a side, the first ten times as long."""

    name: ClassVar[str] = "costly"
    weight: Weight = constant(1.0)

    def __init__(self, clock: Clock) -> None:
        self.clock, self.asked = clock, []

    def loss(self, step: FitStep) -> Tensor:
        self.asked.append((step.resolution, step.index))
        self.clock.now += step.resolution * (10 if step.index == 0 else 1)
        return step.gaussians.means.square().sum()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(estimate, "time", made)
    return made


def test_it_counts_every_pass_at_every_size(clock: Clock) -> None:
    gaussians = random_gaussians(20, torch.Generator().manual_seed(0))
    field = ControlNodes.on_surface(gaussians, 3, nodes=5)
    rest = {k: v.clone() for k, v in field.state_dict().items()}
    video = DrivingVideo(torch.ones(3, 32, 32, 3), torch.ones(3, 32, 32), 12.0, Crop(0, 0, 32, 32, 32))
    inputs = Inputs(video, frame_times(3), [FrontCamera(40.0, 2.0, 32, 32)])
    term = Costly(clock)
    passes = [
        Pass([term], Schedule(40, resolutions=((0.5, 8), (1.0, 16)))),
        Pass([term], Schedule(20, resolutions=((1.0, 8),), one_by_one=10)),
        Pass([term], Schedule(1, resolutions=((1.0, 32),))),
    ]
    told: list[tuple[str, int, int]] = []

    def progress(stage: str, step: int, steps: int, losses: dict[str, float], preview: Callable[[], Tensor]) -> None:
        told.append((stage, step, steps))
        clock.now += 1000  # drawing a preview is no part of a step

    found = estimate_passes(passes, FitState(gaussians, field), inputs, progress=progress)
    assert told == [("estimate", step, 10) for step in range(1, 11)]
    assert found.seconds == 20 * 8 + 20 * 16 + 20 * 8 + 320
    assert max(index for _, index in term.asked) == 2
    # What is fitted later starts from where it was.
    assert all(torch.equal(v, rest[k]) for k, v in field.state_dict().items())
    assert found.memory_mb > 50


def test_an_estimate_is_interrupted_after_any_step(clock: Clock) -> None:
    gaussians = random_gaussians(20, torch.Generator().manual_seed(0))
    term = Costly(clock)

    def stop(stage: str, step: int, *_: object) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate_passes(
            [Pass([term], Schedule(9), "gaussians")],
            FitState(gaussians),
            Inputs(None, frame_times(1), [FrontCamera(40.0, 2.0, 8, 8)]),
            progress=stop,
        )
    assert len(term.asked) == 2


def test_estimates_add_up_and_read_well() -> None:
    total = FitEstimate(8.0, 2048.0) + FitEstimate(100.0, 1024.0)
    assert total == FitEstimate(108.0, 2048.0)
    assert str(total) == "about 1 min 48 s and 2.0 GB of memory on this machine"
