"""The motion prior: the network, its file, and the objective that asks it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from anchor4d.core.cameras import Crop, FrontCamera
from anchor4d.core.deformation import ControlNodes, DeformationField, DeformationMLP
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import Gaussians, from_points
from anchor4d.core.methods import pla4d
from anchor4d.core.methods.registry import method_config
from anchor4d.core.methods.stages import motion_passes
from anchor4d.core.objectives.base import FitStep
from anchor4d.core.objectives.front import ReferenceViewLoss
from anchor4d.core.objectives.motion_prior import MotionPriorPull, extent, followed, in_picture, visible
from anchor4d.core.priors.motion import BUNDLED, MotionPrior, MotionTransformer, save_motion_prior
from anchor4d.core.scene.scene import Scene4D, frame_times
from anchor4d.core.schedules import constant
from anchor4d.core.video import DrivingVideo

FRAMES, SIZE = 5, 32
FRONT = FrontCamera(fovy=40.0, distance=2.0, width=SIZE, height=SIZE)
CROP = Crop(0, 0, SIZE, SIZE, SIZE)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network whose answers are not zero."""
    torch.manual_seed(0)
    network = MotionTransformer(32, 1)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    path = tmp_path_factory.mktemp("prior") / "small.safetensors"
    save_motion_prior(network, path)
    return path


def question(frames: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rest = torch.rand(count, 3, generator=generator) - 0.5
    offsets = 0.1 * torch.randn(frames, count, 2, generator=generator)
    offsets[0] = 0
    return rest, offsets, (torch.rand(frames, count, generator=generator) < 0.5).float()


@pytest.mark.parametrize("frames", [1, 2, 16, 17, 40, 100])
def test_any_number_of_frames_and_points_is_answered(small: Path, frames: int) -> None:
    moved, doubt = MotionPrior(small)(*question(frames, 400), 1.5)
    assert moved.shape == (frames, 400, 3) and doubt.shape == (frames, 400, 2)
    assert bool(moved.isfinite().all()) and bool((doubt >= 0.01).all())
    assert not bool(moved[0].any()), "the first frame is where the object is at rest"


def test_frames_between_are_interpolated(small: Path) -> None:
    rest, offsets, seen = question(31, 20)
    moved, _ = MotionPrior(small)(rest, offsets, seen, 1.5)
    asked = [*range(0, 30, 2), 30]
    slow, _ = MotionPrior(small)(rest, offsets[asked], seen[asked], 1.5)
    assert torch.allclose(moved[asked], slow, atol=1e-5)
    assert torch.allclose(moved[5], (slow[2] + slow[3]) / 2, atol=1e-5)


def test_what_is_not_seen_counts_nothing(small: Path) -> None:
    rest, offsets, seen = question(6, 20)
    other = torch.where(seen[..., None] > 0, offsets, 9.0)
    for a, b in zip(MotionPrior(small)(rest, offsets, seen, 1.5), MotionPrior(small)(rest, other, seen, 1.5)):
        assert torch.equal(a, b)


def test_the_order_of_points_is_of_no_matter(small: Path) -> None:
    rest, offsets, seen = question(6, 20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    moved, _ = MotionPrior(small)(rest, offsets, seen, 1.5)
    again, _ = MotionPrior(small)(rest[order], offsets[:, order], seen[:, order], 1.5)
    assert torch.allclose(moved[:, order], again, atol=1e-5)


def test_files_that_are_no_motion_prior_are_refused(tmp_path: Path, small: Path) -> None:
    with pytest.raises(InputError, match=r"none\.safetensors: no such file"):
        MotionPrior(tmp_path / "none.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(small.read_bytes()[:-7])
    tensors = load_file(small)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    with safe_open(str(small), "pt") as file:
        save_file(tensors, tmp_path / "nan.safetensors", file.metadata())
    with pytest.raises(InputError, match=r"nan\.safetensors: damaged"):
        MotionPrior(tmp_path / "nan.safetensors")(*question(3, 4), 1.5)
    with pytest.raises(InputError, match=r"cut\.safetensors: damaged"):
        MotionPrior(cut)(*question(3, 4), 1.5)


def test_its_identity_is_its_content(tmp_path: Path, small: Path) -> None:
    same, other = tmp_path / "same.safetensors", tmp_path / "other.safetensors"
    same.write_bytes(small.read_bytes())
    save_motion_prior(MotionTransformer(32, 1), other)
    assert MotionPrior(same).identity == MotionPrior(small).identity != MotionPrior(other).identity


# The objective


@pytest.fixture
def gaussians() -> Gaussians:
    """A near wall of 8 by 8 and a far one behind it, half as large in the picture."""
    line = torch.linspace(-0.5, 0.5, 12)
    wall = torch.cartesian_prod(line, line)
    near = torch.cat([wall, torch.full((len(wall), 1), 0.3)], -1)
    far = torch.cat([0.5 * wall, torch.full((len(wall), 1), -0.3)], -1)
    points = torch.cat([near, far])
    return from_points(points, torch.full((len(points), 3), 0.4), scales=torch.full((len(points), 3), 0.05), opacity=0.99)


def step_of(gaussians: Gaussians, field: DeformationField, index: int = 0) -> FitStep:
    video = DrivingVideo(torch.rand(FRAMES, SIZE, SIZE, 3), torch.ones(FRAMES, SIZE, SIZE), 12.0, CROP)
    return FitStep(
        index=index, total=11, canonical=gaussians, field=field, frames=torch.arange(FRAMES), taus=frame_times(FRAMES),
        driving=video, times=frame_times(FRAMES), fronts=[FRONT], resolution=SIZE, background=torch.ones(3),
        generator=torch.Generator(), still=gaussians, backend="torch",
    )  # fmt: skip


def nodes(gaussians: Gaussians) -> ControlNodes:
    return ControlNodes.build(Scene4D(gaussians, frames=FRAMES, front=FRONT), nodes=24)


def test_a_wall_hides_what_is_behind_it(gaussians: Gaussians) -> None:
    step = step_of(gaussians, DeformationMLP(2, 8, 0))
    rest, positions = followed(step, step.taus)
    assert torch.equal(rest, gaussians.means)
    seen = visible(step, in_picture(step, positions, whole=True))
    assert seen.shape == (FRAMES, 288)
    assert bool((~seen[:, 144:]).all())
    inner = (rest[:144, :2].abs() < 0.45).all(-1)
    assert bool(seen[:, :144][:, inner].all())


def test_picture_coordinates_are_those_of_the_first_camera(gaussians: Gaussians) -> None:
    step = step_of(gaussians, DeformationMLP(2, 8, 0))
    at = in_picture(step, torch.tensor([[[0.2, 0.3, 0.5]]]), whole=True)[0, 0]
    assert torch.allclose(at, torch.tensor([0.2 * 2 / 1.5, -0.3 * 2 / 1.5, -0.5]), atol=1e-5)


@pytest.mark.parametrize("kind", ["nodes", "mlp"])
def test_the_pull_ends_where_the_prior_expects_the_points(gaussians: Gaussians, small: Path, kind: str) -> None:
    field = nodes(gaussians) if kind == "nodes" else DeformationMLP(2, 16, 0)
    pull = MotionPriorPull(constant(1.0), prior=MotionPrior(small), trust=10.0)
    memory: dict[str, Tensor] = {}
    losses = []
    adam = torch.optim.Adam(field.parameters(), 0.02)
    for index in range(0, 60):
        step = step_of(gaussians, field, index)
        step.memory = memory
        loss = pull(step)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 1e-4
    assert losses[-1] < (0.05 if kind == "nodes" else 0.7) * losses[0]


def test_what_the_prior_doubts_is_left_alone(gaussians: Gaussians, small: Path) -> None:
    bold, shy = (MotionPriorPull(constant(1.0), prior=MotionPrior(small), trust=t, hold=0.0) for t in (10.0, 1e-4))
    field = nodes(gaussians)
    with torch.no_grad():
        field.translations[1:, :, 2] = 0.2
    assert float(shy(step_of(gaussians, field)).detach()) < 1e-4 * float(bold(step_of(gaussians, field)).detach())


def test_an_object_of_guessed_depth_stays_in_its_depth(gaussians: Gaussians, small: Path) -> None:
    field = nodes(gaussians)
    with torch.no_grad():
        field.translations[1:, :, 0] = 0.05
        field.translations[1:, :, 2] = 0.2
    pull = MotionPriorPull(constant(1.0), prior=MotionPrior(small), trust=1e-4, hold=0.0, flat=True)
    step = step_of(gaussians, field)
    moved = pull(step)
    (gradient,) = torch.autograd.grad(moved, field.translations)
    assert moved.item() == pytest.approx(0.2**2 * (FRAMES - 1) / FRAMES / float(extent(field.node_positions)) ** 2, rel=0.02)
    assert bool((gradient[1:, :, 2] > 0).all())


def test_asking_takes_nothing_from_the_others_gradients(gaussians: Gaussians, small: Path) -> None:
    field = nodes(gaussians)
    front, pull = ReferenceViewLoss(constant(1.0)), MotionPriorPull(prior=MotionPrior(small))
    gradients = []
    for first in (False, True):
        step = step_of(gaussians, field)
        torch.manual_seed(0)
        step = replace(
            step, driving=DrivingVideo(torch.rand(FRAMES, SIZE, SIZE, 3), torch.ones(FRAMES, SIZE, SIZE), 12.0, CROP)
        )
        if first:
            pull(step)
        gradients.append(torch.autograd.grad(front(step), field.translations)[0])
    assert bool(gradients[0].any()) and torch.equal(*gradients)


def test_it_lifts_the_motion_behind_following_and_fades_in_every_pass() -> None:
    config = method_config("pla4d", "standard").motion
    passes = dict(motion_passes(config, 16))
    assert list(passes) == ["follow frame by frame", "lift", "3D to 4D", "3D to 4D, fine"]
    names = {stage: [o.name for o in part.objectives] for stage, part in passes.items()}
    assert "motion prior" not in names["follow frame by frame"]
    assert names["lift"] == ["rigidity", "smoothness", "motion prior"]
    assert "motion prior" in names["3D to 4D"] and "motion prior" in names["3D to 4D, fine"]
    pull = next(o for o in config.objectives if isinstance(o, MotionPriorPull))
    assert pull.weight(0.0) == 3 * pull.weight(1.0) > 0
    without = method_config("pla4d", "standard", without=("motion-prior",)).motion
    assert "lift" not in dict(motion_passes(without, 16))
    flat = method_config("pla4d", "standard", without=("depth-motion",)).motion
    assert [o.flat for o in flat.objectives if isinstance(o, MotionPriorPull)] == [True]
    assert not any(isinstance(o, MotionPriorPull) for o in pla4d.preset("paper").motion.objectives)


def test_the_bundled_prior_is_small() -> None:
    assert BUNDLED.stat().st_size < 16e6
