"""The loop on every device there is: the same seed gives the same bits, and a resumed fit equals an uninterrupted one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from anchor4d.core.cameras import Crop, FrontCamera
from anchor4d.core.deformation import ControlNodes
from anchor4d.core.deformation.wrappers import Placed
from anchor4d.core.fit.density import DensityControl
from anchor4d.core.fit.loop import FitState, Inputs, Schedule, Train, run_fit
from anchor4d.core.gaussians import Gaussians, random_gaussians
from anchor4d.core.objectives.base import Objective
from anchor4d.core.objectives.front import ReferenceViewLoss
from anchor4d.core.objectives.rigidity import Rigidity, Smoothness
from anchor4d.core.render import rasterize
from anchor4d.core.scene.scene import Scene4D, frame_times
from anchor4d.core.schedules import constant
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

    def progress(stage: str, step: int, *_: object) -> None:
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
