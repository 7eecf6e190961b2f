"""How long a fit will take on this machine and how much memory, from a few of its own steps."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..objectives.base import Objective
from ..progress import Progress
from .loop import FitState, Inputs, Schedule, Train, run_fit

#: Steps taken at each picture size; the first, which fills caches, is not counted. On a card the third is captured, so
#: that those behind it give the time of a step.
PROBE_STEPS = {"cpu": 3, "cuda": 8}


@dataclass(frozen=True)
class FitEstimate:
    """Seconds that a fit will take, and megabytes that the process will hold at most; of GPU memory where it fits there."""

    seconds: float
    memory_mb: float

    def __add__(self, other: FitEstimate) -> FitEstimate:
        return FitEstimate(self.seconds + other.seconds, max(self.memory_mb, other.memory_mb))

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds), 60)
        span = f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
        return f"about {span} and {self.memory_mb / 1024:.1f} GB of memory on this machine"


@dataclass(frozen=True)
class Pass:
    """One call of :func:`run_fit` to come."""

    objectives: Sequence[Objective]
    schedule: Schedule
    train: Train = "field"


def estimate_passes(
    passes: Sequence[Pass], state: FitState, inputs: Inputs, seed: int = 0, progress: Progress | None = None
) -> FitEstimate:
    """Take a few steps (:data:`PROBE_STEPS`) of every pass at every picture size, on a copy of the state.

    The state of the first pass stands for that of later ones, so density control, which changes the number of Gaussians, is
    not foreseen. ``progress`` is called after each of these steps, and interrupts by raising.
    """
    seconds, probes, most = 0.0, [], PROBE_STEPS.get(state.gaussians.device.type, 3)
    for p in passes:
        begin = 0.0
        for until, pixels in p.schedule.resolutions:
            steps = round((min(until, 1.0) - begin) * p.schedule.steps)
            begin = until
            if steps > 0:
                few = replace(p.schedule, steps=min(steps, most), resolutions=((1.0, pixels),))
                probes.append((p, few, steps))
    done, total = 0, sum(few.steps for _, few, _ in probes)
    for p, few, steps in probes:
        seconds += steps * _step_seconds(p, few, state, inputs, seed, _part_of(progress, done, total))
        done += few.steps
    return FitEstimate(seconds, process_memory_mb(state.gaussians.device))


def _part_of(progress: Progress | None, before: int, total: int) -> Progress:
    """Progress of steps that come after ``before`` others, of ``total``."""

    def report(stage: str, step: int, steps: int, losses: dict[str, float], preview: Callable[[], Tensor]) -> None:
        if progress is not None:
            progress(stage, before + step, total, {}, preview)

    return report


def _step_seconds(p: Pass, few: Schedule, state: FitState, inputs: Inputs, seed: int, report: Progress) -> float:
    device, times = state.gaussians.device, []

    def tick(stage: str, step: int, steps: int, losses: dict[str, float], preview: Callable[[], Tensor]) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())
        report(stage, step, steps, losses, preview)
        reported.append(time.perf_counter())

    reported = [time.perf_counter()]
    run_fit(
        "estimate", FitState(state.gaussians, copy.deepcopy(state.field)), p.objectives, few, inputs,
        train=p.train, seed=seed, progress=tick,
    )  # fmt: skip
    spans = [end - begin for begin, end in zip(reported, times)]
    return min(spans[1:] or spans)


def process_memory_mb(device: torch.device) -> float:
    """The most memory held so far, megabytes: of the GPU where ``device`` is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20  # pyright: ignore[reportAttributeAccessIssue]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
