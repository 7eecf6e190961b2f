"""Moving Gaussians in one .ply: each layout against its own program's formula, and what 3DGS's training leaves behind."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from test_splat_kinds import COUNT, columns, gaussians, ply

from anchor4d.core.cameras import quaternion_to_matrix
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import SH_C0, Gaussians
from anchor4d.core.io import moving_ply
from anchor4d.core.io.sequence import open_scene
from anchor4d.core.runs.sample import sample_scene
from anchor4d.core.scene.timed import bake_timed

FLIP = torch.tensor([1.0, -1.0, -1.0])


def random(shape: tuple[int, ...], seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("<f4")


def named(prefix: str, values: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{prefix}_{i}": values[:, i] for i in range(values.shape[1])}


def covariance(moved: Gaussians) -> torch.Tensor:
    factor = quaternion_to_matrix(moved.quats) * moved.scales[..., None, :]
    return factor @ factor.mT


def ftgs(extra: str = "") -> tuple[Gaussians, dict[str, np.ndarray], bytes]:
    static = gaussians(1)
    values = columns(static) | {"time": np.linspace(0, 1, COUNT, dtype="<f4"), "log_duration": np.full(COUNT, -2.0, "<f4")}
    values |= named("velocity", random((COUNT, 3)))
    notes = f"comment ftgs_version 1\ncomment min_duration 0.02\ncomment n_frames 24\n{extra}"
    return static, values, ply(values, before_header=notes)


def test_freetimegs_moves_and_fades_as_its_format_says(tmp_path: Path) -> None:
    static, values, data = ftgs()
    (tmp_path / "a.ftgs.ply").write_bytes(data)
    scene = open_scene(tmp_path / "a.ftgs.ply")
    assert (scene.frames, scene.fps, len(scene.gaussians)) == (24, 30.0, COUNT)
    for tau in (0.0, 0.4, 1.0):
        d = torch.from_numpy(tau - values["time"])[:, None]
        velocity = torch.from_numpy(np.stack([values[f"velocity_{i}"] for i in range(3)], 1))
        moved = scene.at(tau)
        torch.testing.assert_close(moved.means, static.means + velocity * FLIP * d)
        fade = torch.exp(-0.5 * (d[:, 0] / np.exp(-2.0)) ** 2)
        torch.testing.assert_close(moved.opacities, static.opacities * fade, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(moved.sh, static.sh, rtol=0, atol=1e-6)


def test_freetimegs_keeps_its_least_duration_and_may_stand_still() -> None:
    values = ftgs()[1] | {"log_duration": np.full(COUNT, -9.0, "<f4")}
    scene = moving_ply.decode(ply(values, before_header="comment min_duration 0.1\ncomment use_velocity 0\n"), "a.ply")
    torch.testing.assert_close(scene.field.precision, torch.full((COUNT,), 100.0))  # pyright: ignore
    assert not bool(scene.field.motion.any()) and scene.frames == 60  # pyright: ignore


def test_spacetime_gaussians_bend_turn_and_carry_rgb() -> None:
    static = gaussians()
    values = {k: v for k, v in columns(static).items() if not k.startswith("f_dc")}
    values |= named("f_dc", np.abs(random((COUNT, 3)))) | named("motion", random((COUNT, 9), 4))
    values |= named("omega", random((COUNT, 4), 5)) | {"trbf_center": random((COUNT,), 6), "trbf_scale": random((COUNT,), 7)}
    scene = moving_ply.decode(ply(values), "a.ply")
    tau = 0.7
    d = torch.from_numpy(tau - values["trbf_center"])
    m = torch.from_numpy(np.stack([values[f"motion_{i}"] for i in range(9)], 1))
    moved = scene.at(tau)
    path = m[:, :3] * d[:, None] + m[:, 3:6] * d[:, None] ** 2 + m[:, 6:] * d[:, None] ** 3
    torch.testing.assert_close(moved.means, static.means + path * FLIP, rtol=1e-4, atol=1e-4)
    faded = static.opacities * torch.exp(-((d / torch.from_numpy(values["trbf_scale"]).exp()) ** 2))
    torch.testing.assert_close(moved.opacities, faded, rtol=1e-3, atol=1e-6)
    stored = torch.from_numpy(np.stack([values[f"rot_{i}"] + d.numpy() * values[f"omega_{i}"] for i in range(4)], 1))
    turned = torch.diag(FLIP) @ quaternion_to_matrix(stored)
    torch.testing.assert_close(quaternion_to_matrix(moved.quats), turned, rtol=0, atol=1e-4)
    rgb = torch.from_numpy(np.stack([values[f"f_dc_{i}"] for i in range(3)], 1))
    torch.testing.assert_close(moved.colors, rgb, rtol=0, atol=1e-5)
    assert pytest.approx(0.28209479177387814) == SH_C0


@pytest.mark.parametrize("names", [("rot", "t", "scale_t"), ("rot", "t", "scale_t_0"), ("rot_l", "mu_t", "t_scale")])
def test_4dgs_is_cut_at_a_time(names: tuple[str, str, str]) -> None:
    """The density of the four-dimensional Gaussian at (x, t) is that of the cut one at x times its factor."""
    rot, time, spread = names
    values = {k: v for k, v in columns(gaussians()).items() if not k.startswith("rot")}
    left, right = random((COUNT, 4), 8), random((COUNT, 4), 9)
    values |= named(rot, left) | named("rot_r", right) | {time: random((COUNT,), 10) * 0.2 + 0.5}
    values |= {spread: random((COUNT,), 11) * 0.3 - 1.5}
    scene = moving_ply.decode(ply(values), "a.ply", span=(0.0, 2.0))
    point, when = torch.tensor([0.05, -0.1, 0.02]), 0.6
    logs = np.stack([values[k] for k in ("scale_0", "scale_1", "scale_2", spread)], 1)
    moved = scene.at(when / 2.0).detach()

    def product(q: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.concatenate([[q[0] * v[0] - q[1:] @ v[1:]], q[0] * v[1:] + v[0] * q[1:] + np.cross(q[1:], v[1:])])

    for i in range(COUNT):
        a, b = (q[i].astype(float) / np.linalg.norm(q[i]) for q in (left, right))
        rotation = np.zeros((4, 4))
        for axis in range(4):  # x y z t, whose real part is t and whose imaginary parts run backwards
            turned = product(product(a, np.eye(4)[3 - axis]), b * [1, -1, -1, -1])
            rotation[:, axis] = turned[::-1]
        four = rotation @ np.diag(np.exp(2 * logs[i].astype(float))) @ rotation.T
        centre = np.array([values[k][i] for k in ("x", "y", "z", time)], float)
        away = np.array([*(point * FLIP).tolist(), when]) - centre
        expected = -0.5 * away @ np.linalg.solve(four, away)
        factor = moved.opacities[i] / torch.sigmoid(torch.tensor(values["opacity"][i]))
        gone = (point - moved.means[i]).double()
        found = float(factor.detach().log()) - 0.5 * float(gone @ torch.linalg.solve(covariance(moved)[i].double(), gone))
        assert found == pytest.approx(expected, rel=2e-3, abs=1e-3)


def test_4dgs_without_a_second_rotation_fades_in_place(caplog: pytest.LogCaptureFixture) -> None:
    static = gaussians()
    values = columns(static) | {"t": np.linspace(-0.5, 0.5, COUNT, dtype="<f4"), "scale_t": np.full(COUNT, -3.0, "<f4")}
    caplog.set_level(logging.INFO)
    scene = moving_ply.decode(ply(values), "a.ply")
    assert "does not say when it begins and ends, taken from -0.5 to 0.5" in caplog.text
    moved = scene.at(0.25)
    torch.testing.assert_close(moved.means, static.means)
    fade = torch.exp(-0.5 * (-0.25 - torch.from_numpy(values["t"])) ** 2 / np.exp(-3.0))
    torch.testing.assert_close(moved.opacities, static.opacities * fade, rtol=1e-4, atol=1e-7)


def test_the_source_of_tsog_and_windows() -> None:
    static = gaussians()
    motion, time = random((COUNT, 3)), np.full(COUNT, 0.25, "<f4")
    source = columns(static) | {"t": time, "t_scale": np.full(COUNT, 0.5, "<f4")} | named("motion", motion)
    moved = moving_ply.decode(ply(source), "a.ply").at(0.75)
    torch.testing.assert_close(moved.means, static.means + torch.from_numpy(motion) * FLIP * 0.5)
    torch.testing.assert_close(moved.opacities, static.opacities * np.exp(-0.5), rtol=1e-5, atol=0)
    window = columns(static) | dict(zip(("vx", "vy", "vz"), motion.T)) | {"time": time, "duration": 2 * time}
    scene = moving_ply.decode(ply(window), "a.ply")
    torch.testing.assert_close(scene.at(0.5).means, static.means + torch.from_numpy(motion) * FLIP * 0.25)
    assert [bool((scene.at(t).opacities > 1e-6).any()) for t in (0.2, 0.26, 0.7, 0.8)] == [False, True, True, False]


def test_up_turns_motion_and_rotation_with_the_object() -> None:
    data = ftgs()[2]
    straight, turned = moving_ply.decode(data, "a.ply"), moving_ply.decode(data, "a.ply", up="z")
    for tau in (0.1, 0.9):
        a, b = straight.at(tau), turned.at(tau)
        torch.testing.assert_close(b.means, torch.stack([a.means[:, 0], a.means[:, 2], -a.means[:, 1]], -1))


def test_frames_spread_the_clip_over_its_duration_and_absurd_gaussians_go(caplog: pytest.LogCaptureFixture) -> None:
    values = {k: v.copy() for k, v in ftgs()[1].items()}
    values["velocity_1"][2] = np.nan
    scene = moving_ply.decode(ply(values, before_header="comment n_frames 24\n"), "a.ply", frames=12)
    assert (scene.frames, scene.fps, len(scene.gaussians)) == (12, 15.0, COUNT - 1)
    assert "1 of 8 Gaussians hold NaN" in caplog.text
    with pytest.raises(InputError, match="no columns of motion"):
        moving_ply.decode(ply(columns(gaussians())), "a.ply")


def test_colours_that_are_waves_in_time_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    static = gaussians(3)
    values = {k: v for k, v in columns(static).items() if not k.startswith("f_rest")}
    rest = np.zeros((COUNT, 3, 47), "<f4")
    rest[..., :15] = static.sh[:, 1:].transpose(1, 2).numpy() * 1.0
    values |= named("f_rest", rest.reshape(COUNT, -1)) | {"t": np.full(COUNT, 0.5, "<f4"), "scale_t": np.zeros(COUNT, "<f4")}
    assert moving_ply.decode(ply(values), "a.ply").gaussians.sh.shape == (COUNT, 16, 3)
    assert "15 of 47 harmonics" in caplog.text


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    scene = bake_timed(sample_scene(40, 6), life="gaussian", turning=False).scene
    (tmp_path / "a.ftgs.ply").write_bytes(moving_ply.encode_ftgs(scene))
    again = open_scene(tmp_path / "a.ftgs.ply")
    assert again.frames == scene.frames
    for tau in (0.0, 0.37, 1.0):
        for key in ("means", "opacities", "scales", "colors"):
            torch.testing.assert_close(getattr(again.at(tau), key), getattr(scene.at(tau), key), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="bake it so first"):
        moving_ply.encode_ftgs(sample_scene(40, 6))


@pytest.mark.parametrize("inside", ["", "point_cloud", "point_cloud/iteration_30000"])
def test_a_training_s_folder_opens_at_its_last_iteration(tmp_path: Path, inside: str, caplog: pytest.LogCaptureFixture) -> None:
    for number, count in ((7000, 4), (30000, COUNT)):
        folder = tmp_path / "point_cloud" / f"iteration_{number}"
        folder.mkdir(parents=True)
        (folder / "point_cloud.ply").write_bytes(ply(columns(gaussians(count=count))))
        (folder / "deformation.pth").write_bytes(b"never opened")
    scene = open_scene(tmp_path / inside)
    assert len(scene.gaussians) == COUNT and scene.frames == 1
    assert "deformation.pth, which is not read" in caplog.text
