from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from anchor4d.core.cameras import FrontCamera, from_camera_info, orbit_poses, spherical, to_camera_info, to_opengl
from anchor4d.core.files import InputError
from anchor4d.core.scene.trajectory import Key, Trajectory, dolly_zoom, orbit, spiral

FRONT = FrontCamera(fovy=40.0, distance=2.5, width=640, height=360, elevation=10.0)


#: As the camera stands by itself.
AHEAD = {"x": 0, "y": 0, "z": 0, "w": 1}


def look(position: tuple[float, ...], target: tuple[float, ...] = (0, 0, 0), **more: Any) -> dict[str, Any]:
    """What Create Camera Info gives."""
    return {"position": dict(zip("xyz", position)), "target": dict(zip("xyz", target)), "fov": 40.0, "zoom": 1.0} | more


def around(azimuth: float, elevation: float = 0.0, distance: float = 2.5) -> dict[str, Any]:
    a, e = math.radians(azimuth), math.radians(elevation)
    place = (math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a))
    return look(tuple(distance * x for x in place))


def test_an_orbit_is_an_exact_circle_at_even_speed() -> None:
    cameras = orbit(FRONT, azimuth=30, elevation=15).cameras(50, 320, 200)
    azimuth, elevation, distance = spherical(cameras)
    expected = orbit_poses(30 + 7.2 * torch.arange(50), torch.full((50,), 25.0), 2.5)
    torch.testing.assert_close(cameras.world_to_camera, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(distance, torch.full((50,), 2.5), rtol=0, atol=1e-5)
    torch.testing.assert_close(elevation, torch.full((50,), 25.0), rtol=0, atol=1e-3)
    torch.testing.assert_close(
        azimuth.deg2rad().diff().cos(), torch.full((49,), math.cos(math.radians(7.2))), rtol=0, atol=1e-5
    )
    # As the whole object's picture of Render Scene.
    framed = FRONT.centred(200, 30, 25)
    torch.testing.assert_close(cameras.K[0, 1, 1], framed.K[0, 1, 1])
    assert (cameras.K[0, 0, 2], cameras.K[0, 1, 2]) == (160, 100)


def test_opposite_cameras_are_joined_around_the_object() -> None:
    path = Trajectory.from_camera_infos([around(0), around(180, 20), around(60, -30, 4.0)])
    _, _, distance = spherical(path.cameras(101, 64, 64))
    assert distance.min() > 2.499
    assert distance.max() < 4.3
    circle = Trajectory.from_camera_infos([around(0), around(120), around(240)], loop=True).cameras(36, 64, 64)
    torch.testing.assert_close(circle.world_to_camera, orbit_poses(torch.arange(36) * 10.0, 0.0, 2.5), rtol=0, atol=2e-5)


@pytest.mark.parametrize("interpolation", ["smooth", "linear"])
def test_keys_are_passed_exactly_at_their_times(interpolation: str) -> None:
    rolled = to_camera_info(FRONT.centred(64, 100.0, 40.0))
    rolled["quaternion"] = dict(zip("xyzw", (0.1, 0.5, -0.3, 0.8)))
    infos = [around(0), look((1.0, 2.0, -1.0), (0.3, 0.1, 0.2), fov=25.0), rolled, look((0.0, 3.0, 0.0), zoom=2.0)]
    times = [0.0, 0.15, 0.7, 1.0]
    path = Trajectory.from_camera_infos(infos, times, interpolation=interpolation)
    cameras = path.cameras_at(torch.tensor(times), 120, 90)
    for index, info in enumerate(infos):
        expected = from_camera_info(info, 120, 90)
        torch.testing.assert_close(cameras.world_to_camera[index], expected.world_to_camera[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(cameras.K[index], expected.K[0], rtol=1e-5, atol=1e-4)
    again = from_camera_info(path.camera_info(0.15), 120, 90)
    torch.testing.assert_close(again.world_to_camera, cameras.world_to_camera[1:2], rtol=0, atol=1e-5)
    assert path.camera_info(0.15)["target"]["x"] == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize("level", [True, False])
def test_smooth_paths_have_no_corners_and_linear_ones_have(level: bool) -> None:
    infos = [around(0), around(50, 30), around(70, -10), around(160, 20, 3.5), around(200)]
    if not level:
        infos[2] = to_camera_info(FRONT.centred(64, 70.0, -10.0))
        infos[2]["quaternion"] = dict(zip("xyzw", (0.1, 0.5, 0.2, 0.8)))

    def bend(interpolation: str) -> float:
        """The largest jump of speed at a key, in the path's mean speed, of position and direction."""
        path = Trajectory.from_camera_infos(infos, [0.0, 0.2, 0.5, 0.65, 1.0], interpolation=interpolation)
        step = 1e-4
        poses = to_opengl(path.cameras_at(torch.tensor([t + d for t in (0.2, 0.5, 0.65) for d in (-step, 0, step)]), 8, 8))
        speeds = poses.reshape(3, 3, 4, 4).diff(dim=1) / step
        return float((speeds[:, 1] - speeds[:, 0]).norm(dim=(-1, -2)).max())

    assert bend("smooth") < 0.1
    assert bend("linear") > 1


def test_a_level_horizon_stays_level() -> None:
    path = Trajectory.from_camera_infos([around(0, -20), around(110, 60), around(170, 5), around(300, -45)])
    right = to_opengl(path.cameras(60, 8, 8))[:, :3, 0]
    assert right[:, 1].abs().max() < 1e-5


def test_a_camera_waits_between_two_equal_keys_and_passes_the_poles() -> None:
    infos = [around(0), around(90, 30), around(90, 30), around(180)]
    waiting = Trajectory.from_camera_infos(infos).cameras_at(torch.linspace(1 / 3, 2 / 3, 9), 8, 8).world_to_camera
    torch.testing.assert_close(waiting, waiting[:1].expand_as(waiting), rtol=0, atol=1e-5)
    over = Trajectory.from_camera_infos([around(40, 0), around(40, 89.9), around(40, 20)]).cameras(21, 8, 8)
    assert over.world_to_camera.isfinite().all()
    azimuth, elevation, _ = spherical(over[[3, 18]])
    torch.testing.assert_close(azimuth, torch.full((2,), 40.0), rtol=0, atol=0.1)
    assert 20 < elevation.min() < 90


def test_a_camera_that_only_turns_stays_and_one_that_tracks_goes_straight() -> None:
    turned = [look((1, 0, 1), (1 + 2 * math.sin(a), 0, 1 - 2 * math.cos(a))) for a in (0.0, 0.6, 1.5)]
    places = Trajectory.from_camera_infos(turned).cameras(17, 8, 8).positions
    torch.testing.assert_close(places, torch.tensor([1.0, 0, 1]).expand(17, 3), rtol=0, atol=1e-5)
    tracked = [look((x, 1.0, 3.0), (x, 0.5, 0.0)) for x in (-2.0, 0.0, 2.0)]
    places = Trajectory.from_camera_infos(tracked).cameras(17, 8, 8).positions
    expected = torch.stack([torch.linspace(-2, 2, 17), torch.full((17,), 1.0), torch.full((17,), 3.0)], -1)
    torch.testing.assert_close(places, expected, rtol=0, atol=1e-5)


def test_spiral_swings_and_loops() -> None:
    path = spiral(FRONT, sweep=720, elevation=(-20, 40), distance=(1.0, 0.8), waves=1)
    assert path.loop
    azimuth, elevation, distance = spherical(path.cameras(48, 8, 8))
    torch.testing.assert_close(elevation, 10 + 10 - 30 * torch.cos(torch.arange(48) * math.tau / 48), rtol=0, atol=0.1)
    assert distance[24].item() == pytest.approx(2.0, abs=1e-3)
    assert azimuth[12].item() == pytest.approx(180, abs=1e-2) or azimuth[12].item() == pytest.approx(-180, abs=1e-2)
    rising = spiral(FRONT, sweep=400, waves=0.5)
    assert not rising.loop
    assert spherical(rising.cameras(5, 8, 8))[1][[0, -1]].tolist() == pytest.approx([-10, 60], abs=1e-2)


def test_dolly_zoom_keeps_the_size_of_the_object() -> None:
    cameras = dolly_zoom(FRONT, azimuth=45, distance=(0.5, 4.0)).cameras(25, 100, 100)
    distance = cameras.positions.norm(dim=-1)
    assert distance[[0, -1]].tolist() == pytest.approx([1.25, 10.0], rel=1e-4)
    assert (distance.diff() > 0).all()
    torch.testing.assert_close(cameras.K[:, 1, 1] / distance, torch.full((25,), 80.0), rtol=1e-4, atol=0)


def test_easing_changes_the_pace_and_not_the_path() -> None:
    for easing, at in {"none": 45.0, "in": 22.5, "out": 67.5, "in-out": 45.0}.items():
        azimuth = spherical(orbit(FRONT, sweep=90, easing=easing).cameras(33, 8, 8))[0]
        assert azimuth[[0, 16, -1]].tolist() == pytest.approx([0, at, 90], abs=1e-3)
        assert (azimuth.diff() > 0).all()


def test_scene_times_run_hold_and_repeat() -> None:
    def taus(path: Trajectory, count: int) -> list[float]:
        times = path.taus(count)
        assert times is not None
        return times.tolist()

    infos = [around(0), around(40), around(80), around(120)]
    frozen = Trajectory.from_camera_infos(infos, scene_times=[0.0, 0.5, None, 0.5])
    assert taus(frozen, 7) == pytest.approx([0, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5])
    twice = Trajectory.from_camera_infos(infos[:2], scene_times=[0.0, 2.0])
    assert taus(twice, 9) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 0.25, 0.5, 0.75, 1])
    closed = Trajectory.from_camera_infos(infos, scene_times=[0.0, 0.25, 0.5, 0.75], loop=True)
    assert taus(closed, 8) == pytest.approx([i / 8 for i in range(8)])
    assert taus(Trajectory.from_camera_infos(infos, scene_times=[0.3] * 4, loop=True), 3) == pytest.approx([0.3] * 3)
    once = Trajectory.from_camera_infos(infos, scene_times=[None, 0.4, None, None])
    assert taus(once, 2) == pytest.approx([0.4, 0.4])
    assert Trajectory.from_camera_infos(infos).taus(5) is None


def test_the_player_s_principal_point_is_kept() -> None:
    path = Trajectory.from_camera_infos([around(0) | {"principal": [0.6, 0.4], "aspect": 1.6}, around(90)])
    assert path.size(320) == (320, 200)
    K = path.cameras(3, 320, 200).K
    torch.testing.assert_close(K[:, :2, 2], torch.tensor([[192.0, 80], [176, 90], [160, 100]]))
    assert path.camera_info(0.0)["principal"] == pytest.approx([0.6, 0.4])


def test_one_key_stands_still() -> None:
    cameras = Trajectory((Key(0.5, around(30)),)).cameras(4, 8, 8)
    torch.testing.assert_close(cameras.world_to_camera, orbit_poses(torch.full((4,), 30.0), 0.0, 2.5), rtol=0, atol=1e-5)


def test_placed_goes_round_a_scene_of_another_size_and_place() -> None:
    path, centre = orbit(FRONT), torch.tensor([10.0, -2.0, 3.0])
    moved, before = path.placed(4.0, centre).cameras(6, 8, 8), path.cameras(6, 8, 8)
    torch.testing.assert_close(moved.positions, 4 * before.positions + centre, rtol=0, atol=1e-4)
    torch.testing.assert_close(moved.world_to_camera[:, :3, :3], before.world_to_camera[:, :3, :3], rtol=0, atol=1e-5)


def test_json_round_trip(tmp_path: Path) -> None:
    path = spiral(FRONT, easing="in-out")
    assert Trajectory.from_json(path.to_json()) == path
    keyed = Trajectory.from_camera_infos([around(0), around(9)], [0.2, 0.9], [None, 0.5], interpolation="linear")
    (tmp_path / "path.json").write_text(keyed.to_json())
    assert Trajectory.load(tmp_path / "path.json") == keyed
    # As the player writes it: no more than the contract, keys in the order of their recording.
    keys = [{"time": t, "scene_time": None, "camera": around(a)} for t, a in ((0.8, 80), (0.0, 0))]
    read = Trajectory.from_json(json.dumps({"version": 1, "loop": False, "keys": keys}))
    assert [key.time for key in read.keys] == [0.0, 0.8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": 1.4}, "key 2: time 1.4"),
        ({"time": "soon"}, "key 2: give"),
        ({"time": 0.0}, "key 2: time 0 is not after"),
        ({"scene_time": -1}, "key 2: scene_time -1"),
        ({"scene_time": "x"}, "key 2: scene_time 'x'"),
        ({"camera": None}, "key 2: give"),
        ({"camera": {}}, "key 2: the camera lacks"),
        ({"camera": look((0, 0, 0))}, "key 2: .*coincide"),
        ({"camera": look((0, 0, math.nan))}, "key 2: "),
        ({"camera": look((0, 0, 1), quaternion={"x": 0, "y": 0, "z": 0, "w": 0})}, "key 2: the camera's"),
        ({"camera": look((0, 0, 1), fov=180.0)}, "key 2: the camera's"),
        ({"camera": look((0, 0, 1), cameraType="orthographic")}, "key 2: .*orthographic"),
        ({"camera": look((0, 0, 1), aspect=-1)}, "key 2: the camera's"),
        ({"camera": look((0, 0, 1), quaternion=AHEAD) | {"target": 5}}, "key 2: the camera lacks"),
        ({"camera": look((0, 0, 1), quaternion=AHEAD) | {"target": {"x": []}}}, "key 2: the camera lacks"),
        ({"camera": look((0, 0, 1), quaternion=AHEAD) | {"target": {"x": "y"}}}, "key 2: "),
    ],
)
def test_bad_keys_are_named(change: dict[str, Any], message: str) -> None:
    keys = [{"time": 0.0, "camera": around(0)}, {"time": 0.5, "camera": around(1)} | change]
    with pytest.raises(InputError, match=f"trajectory: {message}") as caught:
        Trajectory.from_json(json.dumps({"version": 1, "loop": False, "keys": keys}))
    assert "\n" not in str(caught.value)


def test_bad_trajectories_are_refused(tmp_path: Path) -> None:
    good = {"version": 1, "keys": [{"time": 0, "camera": around(0)}]}
    for text, message in [
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("[]", 'without a list "keys"'),
        (json.dumps(good | {"version": 2}), "version 2"),
        (json.dumps(good | {"keys": []}), "0 keys"),
        (json.dumps(good | {"easing": "bounce"}), "easing 'bounce'"),
        (json.dumps(good | {"keys": [{"time": 10**400, "camera": {}}]}), "key 1"),
    ]:
        with pytest.raises(InputError, match=message):
            Trajectory.from_json(text)
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"a\.json: not text"):
        Trajectory.load(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"b\.json: no such file"):
        Trajectory.load(tmp_path / "b.json")
    with pytest.raises(InputError, match="as many of each"):
        Trajectory.from_camera_infos([around(0)], [0.0, 1.0])
    with pytest.raises(InputError, match="at its first key again"):
        Trajectory.from_camera_infos([around(0), around(90)], [0.0, 1.0], loop=True)
    with pytest.raises(InputError, match="elevation 90 puts the camera at 100 degrees"):
        orbit(FRONT, elevation=90)
