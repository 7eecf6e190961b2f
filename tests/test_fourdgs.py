"""The .4dgs container, read back with its own library."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anchor4d.core.cameras import quaternion_to_matrix
from anchor4d.core.deformation import FrameField
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import random_gaussians
from anchor4d.core.io.fourdgs import write_4dgs
from anchor4d.core.runs.sample import sample_scene
from anchor4d.core.scene.scene import Scene4D

FRAMES = 4


@pytest.fixture(scope="module")
def fourdgs() -> Any:
    return pytest.importorskip("fourdgs", reason="fourdgs is not installed")


@pytest.fixture(scope="module")
def scene() -> Scene4D:
    scene = sample_scene(250, FRAMES)
    assert scene.field is not None
    scene.field.requires_grad_(False)
    return scene


def nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each of ``others``, which are in another order, the index of its point."""
    return np.linalg.norm(points[None] - others[:, None], axis=-1).argmin(1)


@pytest.mark.parametrize("loop", [True, False])
def test_frames_come_back_within_what_is_stated(tmp_path: Path, fourdgs: Any, scene: Scene4D, loop: bool) -> None:
    scene, calls = replace(scene, loop=loop), []
    write_4dgs(tmp_path / "scene.4dgs", scene, progress=lambda step, total: calls.append((step, total)))
    assert calls == [(i + 1, FRAMES) for i in range(FRAMES)]
    read = fourdgs.read(str(tmp_path / "scene.4dgs"))
    assert read.header.attributes["coordinate_system"] == "y-up-right-handed"
    assert read.duration_sec == pytest.approx(FRAMES / scene.fps)
    found, bound = read.gaussians, 0.02 * float(scene.gaussians.scales.median())
    places = torch.stack([gaussians.means for gaussians in scene.bake()])
    after = torch.cat([places[1:], places[:1] if loop else places[-1:]])
    speeds = ((after - places).norm(dim=-1) * scene.fps).numpy()
    for frame in range(FRAMES):
        true = scene.at(scene.taus[frame])
        # A moment after the frame begins, within which nothing moves far.
        state = found.state_at(frame / scene.fps + 1e-6)
        order = nearest(true.means.numpy(), state["centers"])
        assert sorted(order) == list(range(len(true)))
        late = speeds[frame, order, None] * 0.0005
        assert (np.abs(state["centers"] - true.means.numpy()[order]) < bound + late + 1e-5).all()
        index = state["indices"]
        assert np.abs(np.log(found.scales[index]) - true.log_scales.numpy()[order]).max() < 0.0051
        colors = torch.cat([true.colors.clamp(0, 1), true.opacities[:, None]], -1).numpy()[order]
        assert np.abs(found.colors[index] - colors).max() < 1.01 / 510
        turned = quaternion_to_matrix(torch.tensor(found.rotations[index])[:, [3, 0, 1, 2]].double())
        axes = quaternion_to_matrix(torch.nn.functional.normalize(true.quats, dim=-1).double())[order]
        assert (turned - axes).abs().max() < 4 * 0.0005 * 3**0.5
    ends = found.state_at((FRAMES - 1e-4) / scene.fps)["centers"]
    last = after[-1].numpy()
    order = nearest(last, ends)
    # Place and travel each within the bound.
    assert (np.abs(ends - last[order]) < 2 * bound + speeds[-1, order, None] * 0.0006 + 1e-5).all()


def test_unrelated_frames_do_not_travel(tmp_path: Path, fourdgs: Any) -> None:
    sets = [random_gaussians(20, torch.Generator().manual_seed(seed)) for seed in range(3)]
    scene = Scene4D(sets[0], FrameField.of(sets, interpolation="hold"), frames=3, fps=3.0)
    write_4dgs(tmp_path / "scene.4dgs", scene)
    state = fourdgs.read(str(tmp_path / "scene.4dgs")).gaussians.state_at(0.6)
    true = sets[1].means.numpy()
    assert np.linalg.norm(state["centers"] - true[nearest(true, state["centers"])], axis=-1).max() < 0.01


def test_the_front_camera_goes_along(tmp_path: Path, fourdgs: Any, scene: Scene4D) -> None:
    assert scene.front is not None
    write_4dgs(tmp_path / "scene.4dgs", scene)
    camera = fourdgs.read(str(tmp_path / "scene.4dgs")).camera
    assert camera.fov_y_deg == pytest.approx(scene.front.fovy)
    assert camera.position == pytest.approx((0, 0, scene.front.distance))


def test_what_cannot_be_written_is_refused(tmp_path: Path, fourdgs: Any, scene: Scene4D) -> None:
    broken = replace(scene, gaussians=replace(scene.gaussians, means=scene.gaussians.means * torch.nan), field=None)
    with pytest.raises(InputError, match="cannot hold this scene"):
        write_4dgs(tmp_path / "scene.4dgs", broken)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path: Path, scene: Scene4D, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fourdgs", None)
    with pytest.raises(InputError, match="pip install fourdgs"):
        write_4dgs(tmp_path / "scene.4dgs", scene)
