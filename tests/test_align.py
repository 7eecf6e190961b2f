"""Camera alignment on synthetic scenes with known cameras."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anchor4d.core.align import (
    AlignmentCurve,
    Target,
    align_camera,
    color_from_frame,
    draw_curve,
    literal_search,
    robust_search,
)
from anchor4d.core.align.up import better_up
from anchor4d.core.cameras import Crop, FrontCamera
from anchor4d.core.files import InputError
from anchor4d.core.io.meshes import load_mesh
from anchor4d.core.io.video import load_video
from anchor4d.core.mesh import Mesh, up_matrix
from anchor4d.core.render.mesh import render_mesh
from anchor4d.core.runs.sample import CAMERA, sample_meshes
from anchor4d.core.video import DrivingVideo

SIZE = 128


@pytest.fixture(scope="module")
def character() -> Mesh:
    return sample_meshes(1)[0]


def filmed(mesh: Mesh, front: FrontCamera, crop: Crop | None = None, resolution: int = SIZE) -> DrivingVideo:
    """One frame of the mesh as its driving video would show it."""
    crop = crop or Crop(0, 0, front.width, front.width, front.height)
    render = render_mesh(mesh, front.cropped(crop, resolution), supersample=4)
    color = render.color / render.alpha[..., None].clamp_min(1e-6)
    return DrivingVideo(frames=color.clamp(0, 1), masks=render.alpha, fps=12.0, crop=crop, source="synthetic")


def elsewhere(mesh: Mesh, turn: float) -> Mesh:
    """As a file from elsewhere: turned about +Y, another size, off the origin."""
    matrix = torch.diag(torch.tensor([0.2, 0.2, 0.2, 1.0]))
    matrix[:3, 3] = torch.tensor([-3.0, 1.0, 0.4])
    return mesh.turned(turn).transformed(matrix)


def bare(mesh: Mesh) -> Mesh:
    return Mesh(mesh.vertices, mesh.faces, name=mesh.name)


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(float((a - b).square().mean()))


@pytest.mark.parametrize(
    "front",
    [
        FrontCamera(fovy=33.0, distance=2.6, width=SIZE, height=SIZE, cx=58.0, cy=69.5),
        FrontCamera(fovy=62.0, distance=1.3, width=SIZE, height=SIZE, cx=64.0, cy=60.0),
    ],
)
def test_robust_search_finds_size_distance_and_shift(character: Mesh, front: FrontCamera) -> None:
    found, curve, _ = robust_search(character, Target.of(filmed(character, front)))
    assert found.extent == pytest.approx(front.extent, rel=3e-3)
    assert found.distance == pytest.approx(front.distance, rel=3e-2)
    assert (found.cx, found.cy) == (pytest.approx(front.cx, abs=0.3), pytest.approx(front.cy, abs=0.3))
    assert curve.chosen == found.distance
    assert len(curve.x) == len(curve.y) >= 8


def test_last_bits_of_a_linear_solver_change_no_camera(character: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target.of(filmed(character, FrontCamera(fovy=33.0, distance=2.6, width=SIZE, height=SIZE, cx=58.0, cy=69.5)))
    found = robust_search(character, target)[0]
    solve, generator = torch.linalg.solve, torch.Generator().manual_seed(0)

    def shaken(a: Tensor, b: Tensor) -> Tensor:
        x = solve(a, b)
        return x * (1 + 1e-12 * torch.randn(x.shape, generator=generator, dtype=x.dtype))

    monkeypatch.setattr(torch.linalg, "solve", shaken)
    assert robust_search(character, target)[0] == found


def test_a_resampled_crop_leads_to_the_same_camera(character: Mesh) -> None:
    front = FrontCamera(fovy=41.0, distance=2.0, width=320, height=240, cx=150.0, cy=131.0)
    video = filmed(character, front, Crop(61.0, 26.0, 190.0, 320, 240), resolution=112)
    found = align_camera(character, video, yaw=0.0).front
    assert found.extent == pytest.approx(front.extent, rel=3e-3)
    assert found.distance == pytest.approx(front.distance, rel=3e-2)
    assert (found.cx, found.cy) == (pytest.approx(front.cx, abs=0.5), pytest.approx(front.cy, abs=0.5))
    assert (found.width, found.height) == (320, 240)


def test_elevation_is_solved_on_request(character: Mesh) -> None:
    front = FrontCamera(fovy=45.0, distance=1.8, width=SIZE, height=SIZE, elevation=14.0)
    found = align_camera(character, filmed(character, front), yaw=0.0, solve_elevation=True).front
    assert found.elevation == pytest.approx(14.0, abs=1.0)
    assert found.extent == pytest.approx(front.extent, rel=5e-3)


def test_size_survives_a_frame_that_differs_from_the_mesh(character: Mesh) -> None:
    front = FrontCamera(fovy=40.0, distance=2.1, width=SIZE, height=SIZE)
    video = filmed(character, front)
    frames, masks = video.frames * torch.tensor([0.7, 0.8, 0.9]), video.masks.clone()
    masks[:, 70:86, 84:100] = 1  # something in the hand that the mesh lacks
    frames[:, 70:86, 84:100] = 0.2
    found = align_camera(character, replace(video, frames=frames, masks=masks), yaw=0.0).front
    assert found.extent == pytest.approx(front.extent, rel=1e-2)


@pytest.mark.parametrize("up", ["z", "-y"])
def test_another_axis_that_fits_the_frame_far_better_is_named(
    character: Mesh, up: str, caplog: pytest.LogCaptureFixture
) -> None:
    front = FrontCamera(fovy=36.0, distance=2.3, width=SIZE, height=SIZE)
    video = filmed(character, front)
    lying = replace(character.transformed(torch.linalg.inv(up_matrix(up))), name="a.obj")
    found = align_camera(lying, video, yaw=0.0)
    assert found.report["better_up"] == up
    assert f"a.obj: its {up} axis up" in caplog.text and f"--up {up}" in caplog.text
    caplog.clear()
    upright = align_camera(lying.transformed(up_matrix(up)), video, yaw=0.0)
    assert upright.report["better_up"] is None and upright.report["overlap"] > 0.95
    assert better_up(character, Target.of(video), 0.5) is None  # nothing fits better than what is right
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_mesh_without_colour_is_aligned_by_its_mask(character: Mesh) -> None:
    front = FrontCamera(fovy=36.0, distance=2.3, width=SIZE, height=SIZE, cx=60.0, cy=66.0)
    found = align_camera(bare(character), filmed(character, front), yaw=0.0).front
    assert found.extent == pytest.approx(front.extent, rel=3e-3)
    assert found.distance == pytest.approx(front.distance, rel=1e-1)


def test_literal_search_returns_the_field_of_view_at_the_true_distance(character: Mesh) -> None:
    front = FrontCamera(fovy=37.2, distance=2.0, width=SIZE, height=SIZE)
    found, curve, _ = literal_search(character, Target.of(filmed(character, front)))
    assert found.fovy == pytest.approx(37.2, abs=0.0501)
    assert found.distance == 2.0
    assert float(curve.x.min()) == 20.0
    assert float(curve.x.max()) == 80.0
    assert float(curve.x[curve.y.argmin()]) == curve.chosen


@pytest.mark.parametrize("turn", [37.0, 180.0, 251.0])
def test_a_turned_mesh_is_brought_to_front(character: Mesh, turn: float) -> None:
    front = FrontCamera(fovy=40.0, distance=2.1, width=SIZE, height=SIZE)
    result = align_camera(elsewhere(character, turn), filmed(character, front))
    assert (result.yaw + turn + 180) % 360 - 180 == pytest.approx(0, abs=1.5)
    assert [c.name for c in result.curves] == ["Front detection", "Robust alignment"]
    assert float((result.mesh.vertices.amax(0) - result.mesh.vertices.amin(0)).max()) == pytest.approx(1, abs=1e-4)
    picture = render_mesh(result.mesh, result.front.cameras(), torch.ones(3)).color[0]
    assert psnr(picture, filmed(character, front).composited()[0]) > 22


def test_a_mesh_that_faces_front_is_left_alone(character: Mesh) -> None:
    front = FrontCamera(fovy=40.0, distance=2.1, width=SIZE, height=SIZE)
    result = align_camera(character, filmed(character, front))
    assert result.yaw == 0.0
    assert result.front.extent == pytest.approx(front.extent, rel=3e-3)


def test_a_given_yaw_is_taken(character: Mesh) -> None:
    front = FrontCamera(fovy=40.0, distance=2.1, width=SIZE, height=SIZE)
    result = align_camera(character.turned(-90), filmed(character, front), yaw=90.0)
    assert result.yaw == 90.0
    assert result.front.extent == pytest.approx(front.extent, rel=3e-3)


def test_no_foreground_is_an_input_error(character: Mesh) -> None:
    video = filmed(character, CAMERA)
    with pytest.raises(InputError, match="synthetic: frame 0 has no foreground"):
        align_camera(character, replace(video, masks=torch.zeros_like(video.masks)))


def test_progress_tells_and_may_interrupt(character: Mesh) -> None:
    video = filmed(character, CAMERA)
    told: list[tuple[float, Tensor | None]] = []
    align_camera(character, video, yaw=0.0, progress=lambda fraction, picture: told.append((fraction, picture)))
    assert [f for f, _ in told] == sorted(f for f, _ in told)
    assert told[-1][0] == 1.0
    assert told[-1][1] is not None
    assert told[-1][1].shape == (SIZE, SIZE, 3)

    def interrupt(fraction: float, picture: Tensor | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        align_camera(character, video, yaw=0.0, progress=interrupt)


def test_draw_curve_marks_the_chosen_point() -> None:
    x = torch.linspace(20, 80, 121)
    picture = draw_curve(AlignmentCurve("Focal", "degrees", x, (x - 50).square(), 50.0), 320, 200)
    assert picture.shape == (200, 320, 3)
    assert 0 <= float(picture.min()) < float(picture.max()) <= 1
    red = (picture[..., 0] - picture[..., 2] > 0.4).nonzero()
    assert float(red[:, 1].float().median()) == pytest.approx(33 + (310 - 33) / 2, abs=25)


def test_colours_are_projected_and_unseen_sides_filled(character: Mesh) -> None:
    video = filmed(character, replace(CAMERA, width=SIZE, height=SIZE, cx=61.0, cy=66.0))
    camera = replace(CAMERA, width=SIZE, height=SIZE, cx=61.0, cy=66.0).cropped(video.crop, SIZE)
    colored = color_from_frame(bare(character), video.frames[0], video.masks[0], camera)
    assert colored.has_color
    assert colored.vertex_colors is not None
    front = render_mesh(colored, camera, torch.ones(3)).color[0]
    assert psnr(front, video.composited()[0]) > 24
    # The back has the object's own colours: no black, white or grey patches where nothing was seen.
    back = render_mesh(colored, CAMERA.cameras(180.0).resized(SIZE, SIZE))
    inside = back.alpha[0] > 0.99
    assert float(back.color[0][inside].std(0).mean()) > 0.05
    seen = video.frames[0][video.masks[0] > 0.99]
    assert torch.allclose(back.color[0][inside].mean(0), seen.mean(0), atol=0.2)


def _cases() -> list[Path]:
    root = os.environ.get("ANCHOR4D_BENCH")
    return sorted(p.parent for p in Path(root).glob("*/case.json")) if root else []


@pytest.mark.skipif(not _cases(), reason="ANCHOR4D_BENCH names no folder of benchmark cases")
@pytest.mark.parametrize("folder", _cases(), ids=lambda p: p.name)
def test_benchmark_cameras_are_found(folder: Path) -> None:
    import json

    truth = json.loads((folder / "case.json").read_text())["camera"]
    found = align_camera(load_mesh(folder / "mesh.glb"), load_video(folder / "front"))
    assert found.yaw == 0.0
    assert found.front.extent == pytest.approx(math.tan(math.radians(truth["fovy_degrees"]) / 2) * truth["distance"], rel=3e-3)
    assert found.front.distance == pytest.approx(truth["distance"], rel=3e-2)
