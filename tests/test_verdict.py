"""The verdict: the right object is good, a wrong one is not, and says what to try."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from anchor4d.core.cameras import Crop
from anchor4d.core.files import InputError
from anchor4d.core.mesh import Mesh
from anchor4d.core.methods import stages
from anchor4d.core.methods.verdict import judge
from anchor4d.core.runs.sample import sample_case, sample_scene
from anchor4d.core.runs.session import Settings, run
from anchor4d.core.video import DrivingVideo, continued

SIZE = 96


@pytest.fixture(scope="module")
def case() -> tuple[DrivingVideo, Mesh]:
    meshes, pictures = sample_case(4, SIZE)
    front = pictures["front"]
    crop = Crop(0, 0, SIZE, SIZE, SIZE)
    return DrivingVideo(continued(front[..., :3], front[..., 3]), front[..., 3], 12.0, crop, "sample"), meshes[0]


def about_x(mesh: Mesh, degrees: float) -> Mesh:
    turn = torch.eye(4)
    a = torch.deg2rad(torch.tensor(degrees))
    turn[1, 1] = turn[2, 2] = a.cos()
    turn[2, 1], turn[1, 2] = a.sin(), -a.sin()
    return mesh.transformed(turn)


def grey(mesh: Mesh) -> Mesh:
    return replace(mesh, textures=tuple(torch.cat([torch.full_like(t[..., :3], 0.5), t[..., 3:]], -1) for t in mesh.textures))


def test_the_right_object_is_good(case: tuple[DrivingVideo, Mesh]) -> None:
    video, mesh = case
    verdict = judge(video, stages.align(video, mesh, yaw=0.0))
    assert (verdict.word, verdict.reasons) == ("good", ())
    assert verdict.overlap > 0.95 and verdict.error < 0.006


@pytest.mark.parametrize("degrees", [90.0, 180.0])
def test_an_object_with_another_axis_up_is_not(case: tuple[DrivingVideo, Mesh], degrees: float) -> None:
    video, mesh = case
    verdict = judge(video, stages.align(video, about_x(mesh, degrees), yaw=0.0))
    assert verdict.word != "good" and "--up" in verdict.reasons[0] and "\n" not in verdict.line


def test_grey_textures_are_doubtful_for_their_colours_alone(case: tuple[DrivingVideo, Mesh]) -> None:
    video, mesh = case
    verdict = judge(video, stages.align(video, grey(mesh), yaw=0.0))
    assert verdict.word == "doubtful" and "without colours" in verdict.line and verdict.overlap > 0.9


def test_a_scene_that_does_not_follow_the_clip_is_not_good(case: tuple[DrivingVideo, Mesh]) -> None:
    video, mesh = case
    aligned = stages.align(video, mesh, yaw=0.0)
    moving = replace(sample_scene(3000, 4), front=aligned.front, crop=video.crop)
    followed = judge(video, aligned, moving)
    assert followed.word == "good" and followed.followed is not None and followed.followed > 0.75
    away = moving.gaussians.transformed(torch.tensor([[1, 0, 0, 0.3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    lost = judge(video, aligned, replace(moving, gaussians=away))
    assert lost.word == "wrong" and "shorter or slower clip" in lost.line


def test_strict_refuses_before_the_fit(case: tuple[DrivingVideo, Mesh]) -> None:
    video, mesh = case
    with pytest.raises(InputError, match=r"verdict: .*upright"):
        run(video, about_x(mesh, 180.0), Settings(preset="draft", prior="none", yaw=0.0), strict=True)
