"""The loop on every device there is: the same seed gives the same bits, and a resumed fit equals an uninterrupted one."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from anchor4d.core.cameras import Crop, FrontCamera
from anchor4d.core.deformation import ControlNodes, DeformationMLP
from anchor4d.core.deformation.wrappers import Placed
from anchor4d.core.fit.checkpoint import load_checkpoint
from anchor4d.core.fit.density import DensityControl
from anchor4d.core.fit.loop import FitState, Inputs, Schedule, Train, _Fit, run_fit
from anchor4d.core.fit.replay import Replays
from anchor4d.core.gaussians import Gaussians, random_gaussians
from anchor4d.core.objectives.anchors import AnchorMatch
from anchor4d.core.objectives.base import FitStep, Objective
from anchor4d.core.objectives.front import ReferenceViewLoss
from anchor4d.core.objectives.multiview import AboutAnchor, AboutStatic, MultiViewDistillation
from anchor4d.core.objectives.rigidity import Rigidity, Smoothness
from anchor4d.core.priors.distill import Distillation, UniformWindow
from anchor4d.core.priors.load import load_prior
from anchor4d.core.render import rasterize
from anchor4d.core.scene.anchors import Anchors
from anchor4d.core.scene.scene import Scene4D, frame_times
from anchor4d.core.schedules import Weight, constant
from anchor4d.core.video import DrivingVideo

FRAMES, SIZE = 4, 32
FRONT = FrontCamera(40.0, 2.0, SIZE, SIZE)
CROP = Crop(0, 0, SIZE, SIZE, SIZE)


class Stop(Exception):
    """Stands for a user who interrupts."""


def ball(count: int = 200, seed: int = 0) -> Gaussians:
    gaussians = random_gaussians(count, torch.Generator().manual_seed(seed))
    return Gaussians(**(gaussians.tensors() | {"opacity_logits": gaussians.opacity_logits + 4}))


def moving_video(device: str) -> DrivingVideo:
    """The ball drifting to the right."""
    frames, masks = [], []
    for t in range(FRAMES):
        gaussians = ball()
        gaussians = Gaussians(**(gaussians.tensors() | {"means": gaussians.means + torch.tensor([0.04 * t, 0.0, 0.0])}))
        drawn = rasterize(gaussians, FRONT.cropped(CROP, SIZE), torch.ones(3), backend="torch")
        frames.append(drawn.color[0])
        masks.append(drawn.alpha[0])
    return DrivingVideo(torch.stack(frames).to(device), torch.stack(masks).to(device), 12.0, CROP)


def fit(
    device: str,
    train: Train,
    schedule: Schedule,
    objectives: tuple[Objective, ...],
    density: DensityControl | None = None,
    *,
    path: Path | None = None,
    stop: int | None = None,
) -> dict[str, torch.Tensor]:
    """Tensors of a fitted tiny scene."""
    gaussians = ball(seed=1 if train == "gaussians" else 0).to(device)
    field = None if train == "gaussians" else ControlNodes.on_surface(gaussians, FRAMES, nodes=12)
    taus = frame_times(FRAMES) if field is not None else torch.zeros(1)

    def progress(stage: str, step: int, steps: int, losses: object, preview: Callable[[], Tensor]) -> None:
        assert preview().shape[-1] == 3
        if step == stop:
            raise Stop

    state = run_fit(
        "fit", FitState(gaussians, field), objectives, schedule, Inputs(moving_video(device), taus, [FRONT]), train=train,
        seed=3, density=density, progress=progress, checkpoint=path,
    )  # fmt: skip
    return state.gaussians.tensors() | ({} if state.field is None else state.field.state_dict())


MATCH = ReferenceViewLoss(weight=constant(10.0), perceptual=0.0, levels=3)
MOTION = (MATCH, Rigidity(weight=constant(1.0)), Smoothness(weight=constant(10.0)))
CASES = {
    "static": ("gaussians", Schedule(12, resolutions=((0.5, 16), (1.0, 32)), background="random"), (MATCH,), True),
    "tracking": ("field", Schedule(15, one_by_one=5, resolutions=((1.0, 32),), background="random"), MOTION, False),
    "all frames": ("field", Schedule(25, resolutions=((0.5, 16), (1.0, 32)), background="random"), MOTION, False),
    "some frames": ("both", Schedule(12, resolutions=((1.0, 32),), frames=2, turns=(3, 2)), MOTION, False),
}


@pytest.mark.parametrize("name", CASES)
def test_repeated_and_resumed_fits_are_the_same_bits(device: str, name: str, tmp_path: Path) -> None:
    train, schedule, objectives, dense = CASES[name]

    def density() -> DensityControl | None:
        return DensityControl(every=4, start=4, threshold=0.0, budget=230) if dense else None

    whole = fit(device, train, schedule, objectives, density())
    again = fit(device, train, schedule, objectives, density())
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    for stop in (3, 9):
        path = tmp_path / f"{stop}.safetensors"
        with pytest.raises(Stop):
            fit(device, train, schedule, objectives, density(), path=path, stop=stop)
        resumed = fit(device, train, schedule, objectives, density(), path=path)
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_field_that_has_moved_gaussians_is_copied_and_moved(device: str) -> None:
    gaussians = ball().to(device)
    inner = ControlNodes.on_surface(gaussians, FRAMES, nodes=12)
    field = Placed(inner, [[0.0, [0.0] * 3, [1.0, 0, 0, 0], 1.0]], [[0.0, 0.0, 0.1], [1.0, 0, 0, 0], 1.0])
    taus = frame_times(FRAMES).to(device)
    before = field(gaussians, taus)
    twin = copy.deepcopy(field)
    assert torch.equal(twin(gaussians, taus).means, before.means)
    scene = Scene4D(gaussians, field, FRAMES).to("cpu")
    assert scene.at(0.5).device.type == "cpu"
    assert {p.device.type for p in field.parameters()} == {device}


def asking_a_prior() -> tuple[Train, Schedule, tuple[Objective, ...], bool]:
    """All frames' steps that ask the bundled prior about frames, anchors and the static object, at two picture sizes."""
    distillation = Distillation(load_prior("tiny", device="cuda"), time=UniformWindow(), normalise=True)
    anchors = Anchors(torch.rand(FRAMES, 6, 32, 32, 4, generator=torch.Generator().manual_seed(0)))
    asks = (AboutAnchor(anchors, both=True), AboutStatic())
    prior = MultiViewDistillation(distillation, views=2, asks=asks, dark=0.5)
    objectives = (MATCH, AnchorMatch(anchors=anchors), prior)
    return "field", Schedule(25, resolutions=((0.5, 16), (1.0, 32)), background="random"), objectives, False


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device")
@pytest.mark.parametrize("name", ["tracking", "all frames", "prior"])
def test_captured_steps_are_the_plain_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train, schedule, objectives, _ = CASES[name] if name in CASES else asking_a_prior()
    graphs: list[Any] = []
    capture = Replays._capture

    def captured(self: Replays, kind: Any, *rest: Any) -> None:
        capture(self, kind, *rest)
        graphs.append(kind.graph)

    monkeypatch.setattr(Replays, "_capture", captured)
    found = fit("cuda", train, schedule, objectives)
    assert graphs and all(graph is not None for graph in graphs)

    def plain(self: Replays, key: Any, index: int, make: Any, take: Any, memory: Any) -> Any:
        return take(make(FitStep))

    monkeypatch.setattr(Replays, "run", plain)
    expected = fit("cuda", train, schedule, objectives)
    assert all(torch.equal(found[key], expected[key]) for key in found)


@dataclass(frozen=True)
class Growth(Objective):
    """Larger Gaussians, step by step, so that each takes more tiles."""

    name: ClassVar[str] = "growth"
    weight: Weight = constant(1.0)  # noqa: RUF009

    def loss(self, step: FitStep) -> Tensor:
        return (1 - step.front.alpha).mean() - step.canonical.log_scales.mean()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device")
def test_a_captured_step_without_room_is_taken_again_and_the_fit_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    small = ball(20_000).to("cuda")
    small = Gaussians(**(small.tensors() | {"log_scales": torch.full_like(small.log_scales, -7.0)}))
    returns, restore = [], _Fit.restore
    monkeypatch.setattr(_Fit, "restore", lambda self, *state: (returns.append(self.done), restore(self, *state))[1])
    rates = {"means": 0.0, "sh": 0.0, "opacity_logits": 0.0, "log_scales": 0.15, "quats": 0.0}
    inputs = Inputs(moving_video("cuda"), torch.zeros(1), [FRONT])
    schedule = Schedule(40, resolutions=((1.0, 256),), lr_final=1.0)

    def progress(*_: object) -> None:
        assert len(returns) < 10, "the fit goes back for ever"

    state = run_fit(
        "fit", FitState(small), [Growth()], schedule, inputs, train="gaussians", gaussian_lr=rates, progress=progress
    )  # fmt: skip
    assert returns  # there was too little room, or this says nothing
    assert float(state.gaussians.log_scales.mean()) > -2.0


@dataclass(frozen=True)
class Poison(Objective):
    """A loss, or where ``hidden`` its gradient alone, that is not finite at a step: the first time it comes by, or always."""

    name: ClassVar[str] = "poison"
    weight: Weight = constant(1.0)  # noqa: RUF009
    at: int = 14
    always: bool = False
    hidden: bool = False
    seen: list[int] = field(default_factory=list)

    def loss(self, step: FitStep) -> Tensor:
        nothing = 0 * step.gaussians.means.sum()
        if step.index != self.at or (self.seen and not self.always):
            return nothing
        self.seen.append(step.index)
        return nothing.abs().sqrt() if self.hidden else nothing / 0


@pytest.mark.parametrize("hidden", [False, True])
def test_a_fit_that_diverges_goes_back_once(
    device: str, hidden: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train, schedule, objectives, _ = CASES["all frames"]
    path = tmp_path / "fit.safetensors"
    with caplog.at_level(logging.WARNING):
        fitted = fit(device, train, schedule, (*objectives, Poison(hidden=hidden)), path=path)
    assert all(tensor.isfinite().all() for tensor in fitted.values() if tensor.is_floating_point())
    (message,) = (record.message for record in caplog.records if record.name.endswith("fit.loop"))
    assert message.startswith("fit: ") and "going back to step 11 with half the learning rates" in message
    assert load_checkpoint(path)[1]["calm"] == 0.5


@pytest.mark.parametrize("hidden", [False, True])
def test_a_fit_that_diverges_again_says_where_and_writes_nothing_of_it(device: str, hidden: bool, tmp_path: Path) -> None:
    train, schedule, objectives, _ = CASES["all frames"]
    path = tmp_path / "fit.safetensors"
    with pytest.raises(Stop):
        fit(device, train, schedule, objectives, path=path, stop=12)
    what = r"fit: (the loss .poison.|what is trained|gaussians: ).* at step (14|15|20), also with half"
    with pytest.raises(FloatingPointError, match=what):
        fit(device, train, schedule, (*objectives, Poison(always=True, hidden=hidden)), path=path)
    tensors, header = load_checkpoint(path)
    assert header["step"] == 12
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())


def test_an_interrupted_fit_that_is_not_sound_keeps_the_last_sound_state(device: str, tmp_path: Path) -> None:
    train, schedule, objectives, _ = CASES["all frames"]
    path = tmp_path / "fit.safetensors"
    with pytest.raises(Stop):
        fit(device, train, schedule, (*objectives, Poison(hidden=True)), path=path, stop=15)
    tensors, header = load_checkpoint(path)
    assert header["step"] == 11
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())


def test_frames_are_moved_in_slices_where_memory_runs_out(caplog: pytest.LogCaptureFixture) -> None:
    gaussians, taus = ball(), frame_times(FRAMES)
    torch.manual_seed(0)
    start = DeformationMLP(depth=3, width=16, skip=1)

    @dataclass(frozen=True)
    class Large(Objective):
        name: ClassVar[str] = "large"
        weight: Weight = constant(1.0)  # noqa: RUF009
        slices: list[int] = field(default_factory=list)

        def loss(self, step: FitStep) -> Tensor:
            self.slices.append(step.slice)
            if step.index == 3 and (step.slice or FRAMES) > 1:
                raise torch.cuda.OutOfMemoryError
            return (step.gaussians.means - 0.1).square().mean()

    def fitted(term: Objective) -> dict[str, Tensor]:
        state = run_fit(
            "fit", FitState(gaussians, copy.deepcopy(start)), (term,), Schedule(6), Inputs(None, taus, [FRONT]), seed=3
        )
        assert state.field is not None
        return state.field.state_dict()

    large = Large()
    with caplog.at_level(logging.WARNING):
        found = fitted(large)
    assert [r.message for r in caplog.records] == [
        "fit: the card's memory does not hold 4 frames, going on with 2 at once",
        "fit: the card's memory does not hold 2 frames, going on with 1 at once",
    ]
    assert large.slices == [0, 0, 0, 0, 2, 2, 2, 1, 1, 1, 1, 1]  # each time back to the last snapshot, behind step 0

    @dataclass(frozen=True)
    class Same(Objective):
        name: ClassVar[str] = "same"
        weight: Weight = constant(1.0)  # noqa: RUF009

        def loss(self, step: FitStep) -> Tensor:
            return (step.gaussians.means - 0.1).square().mean()

    expected = fitted(Same())
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-6)
