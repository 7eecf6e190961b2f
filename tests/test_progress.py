"""Long work lists pulses, so that it can be interrupted where it reports no steps."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from anchor4d import cli
from anchor4d.core.cameras import orbit
from anchor4d.core.fit.checkpoint import load_checkpoint
from anchor4d.core.fit.loop import FitState, Inputs, Schedule, run_fit
from anchor4d.core.gaussians import from_points
from anchor4d.core.io.export import FORMATS
from anchor4d.core.io.film import write_gif, write_webp
from anchor4d.core.mesh import sample_evenly
from anchor4d.core.objectives.base import FitStep, Objective
from anchor4d.core.progress import pulse, pulsing
from anchor4d.core.render import numba_support
from anchor4d.core.render.mesh import render_mesh
from anchor4d.core.runs.sample import sample_meshes, sample_scene
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.views import object_cameras, render_frames
from anchor4d.core.schedules import Weight, constant

ROOT = Path(__file__).parents[1]


class Stop(Exception):
    """Stands for a user who interrupts."""


class Counting:
    """A listener that interrupts at one of its calls."""

    def __init__(self, stop: int = 0) -> None:
        self.calls, self.stop = 0, stop

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.stop:
            raise Stop


def test_a_pulse_reaches_the_listener_of_its_own_thread_alone() -> None:
    pulse()
    outer, inner = Counting(), Counting()
    with pulsing(outer):
        pulse()
        with pulsing(inner):
            pulse()
        thread = threading.Thread(target=pulse)
        thread.start()
        thread.join()
        pulse()
    pulse()
    assert (outer.calls, inner.calls) == (2, 1)


def scene() -> Scene4D:
    return sample_scene(300, 6)


def draw_mesh() -> None:
    cameras = orbit(torch.tensor([0.0, 90.0]), torch.zeros(2), 2.0, 40.0, 16, 16)
    for _ in range(3):
        render_mesh(sample_meshes(2)[0], cameras)


WORK: dict[str, Callable[[Path], Any]] = {
    "meshes drawn": lambda folder: draw_mesh(),
    "frames drawn": lambda folder: render_frames(scene(), object_cameras(scene(), 16, [0.0])),
    "frames baked": lambda folder: scene().bake(4),
    "points thrown": lambda folder: sample_evenly(sample_meshes(2)[0], 50, torch.Generator().manual_seed(0)),
    "webp": lambda folder: write_webp(folder / "film.webp", torch.rand(4, 16, 16, 3), 8),
    "gif": lambda folder: write_gif(folder / "film.gif", torch.rand(4, 16, 16, 3), 8),
}


@pytest.mark.parametrize("name", WORK)
def test_work_is_interrupted_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    WORK[name](tmp_path / "before")  # kernels are compiled
    counting = Counting()
    with pulsing(counting):
        WORK[name](tmp_path / "whole")
    assert counting.calls >= 3
    with pulsing(Counting(stop=counting.calls)), pytest.raises(Stop):
        WORK[name](tmp_path / "cut")
    assert not (tmp_path / "cut").exists() or not list((tmp_path / "cut").iterdir())


def test_a_kernel_that_is_compiled_can_be_interrupted_and_is_compiled_later() -> None:
    numba = pytest.importorskip("numba")
    assert not isinstance(numba_support.load("anchor4d.core.render.mesh_numba"), str)

    @numba.njit
    def doubled(x: float) -> float:
        return 2 * x

    counting = Counting(stop=5)
    with pulsing(counting), pytest.raises(Stop):
        doubled(1.0)
    assert doubled(1.5) == 3.0


@dataclass(frozen=True)
class Pull(Objective):
    """Pulls all means to one place."""

    name = "pull"
    weight: Weight = constant(1.0)  # noqa: RUF009

    def loss(self, step: FitStep) -> torch.Tensor:
        return (step.canonical.means - 0.5).square().mean()


def test_a_fit_that_is_interrupted_within_a_step_keeps_what_was_sound(tmp_path: Path) -> None:
    start = from_points(torch.rand(20, 3, generator=torch.Generator().manual_seed(0)), torch.ones(20, 3))
    inputs = Inputs(None, torch.zeros(1), [])

    def fit(folder: Path) -> torch.Tensor:
        state = FitState(start, None)
        done = run_fit(
            "pull", state, [Pull()], Schedule(steps=25), inputs, train="gaussians", checkpoint=folder / "c.safetensors"
        )
        return done.gaussians.means

    whole = fit(tmp_path / "whole")
    counting = Counting(stop=2 * 14 + 1)  # two a step: before each objective, and before the gradients
    with pulsing(counting), pytest.raises(Stop):
        fit(tmp_path / "cut")
    assert load_checkpoint(tmp_path / "cut" / "c.safetensors")[1]["step"] == 11
    assert fit(tmp_path / "cut").equal(whole)


@pytest.fixture(scope="module")
def interrupts() -> Any:
    spec = importlib.util.spec_from_file_location("interrupts", ROOT / "tests" / "long" / "interrupts.py")
    assert spec is not None and spec.loader is not None
    sys.modules["interrupts"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_and_node_has_its_case(interrupts: Any, tmp_path: Path) -> None:
    """A new one is measured too: tests/long/interrupts.py."""
    tried = {name.split("-")[0] for name in interrupts.node_cases([], tmp_path)}
    nodes = {name.removeprefix("Anchor4D") for name in json.loads((ROOT / "tests" / "schemas.json").read_text())}
    left = {name.removeprefix("Anchor4D") for name in interrupts.INSTANT | interrupts.WITH_MODELS}
    assert tried | left == nodes and not tried & left
    assert {argv[0] for argv in interrupts.commands(tmp_path).values()} == set(cli.parser().commands)
    assert set(interrupts.EXPORTS) == set(FORMATS)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_interrupted_command_ends_within_two_seconds(interrupts: Any, tmp_path: Path) -> None:
    script = str(ROOT / "tests" / "long" / "interrupts.py")
    interrupts.prepare(tmp_path, 0.05)
    export = interrupts.commands(tmp_path)["export-mp4"]
    found = interrupts.watch([sys.executable, script, "--command", *export], tmp_path, 1.0, 120)
    assert found.code in (0, 130), found.said
    assert found.reaction is None or found.reaction.least < interrupts.REACTION
