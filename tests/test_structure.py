"""A machine as rigid parts on joints: found from what was tracked, kept where the video allows it, resumed exactly."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from anchor4d.core.cameras import Crop, FrontCamera, matrix_to_quaternion
from anchor4d.core.deformation import Articulated, ControlNodes
from anchor4d.core.deformation.skeleton import quaternion_to_rotation_vector
from anchor4d.core.fit.loop import FitState, Schedule
from anchor4d.core.methods import stages, structure
from anchor4d.core.methods.registry import method_config
from anchor4d.core.methods.stages import MotionConfig
from anchor4d.core.objectives.front import ReferenceViewLoss
from anchor4d.core.objectives.rigidity import Rigidity, Smoothness
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.views import render_frames
from anchor4d.core.schedules import constant
from anchor4d.core.video import DrivingVideo
from anchor4d.training.machine_cases import posed

FRAMES, SIZE = 4, 48
FRONT = FrontCamera(fovy=40.0, distance=2.2, width=SIZE, height=SIZE)


@pytest.fixture(scope="module")
def chest() -> tuple[Scene4D, ControlNodes, DrivingVideo]:
    """A chest at rest, control nodes that open it as it truly opens, and the film of that."""
    meshes, part = posed("chest_lid", FRAMES)
    gaussians, faces = stages.gaussians_on_mesh(meshes[0], 500)
    field = ControlNodes.on_surface(gaussians, FRAMES, mesh=meshes[0], faces=faces, nodes=60)
    rest = meshes[0].vertices.double().numpy()
    own = part[cdist(field.node_positions.numpy(), rest).argmin(1)]
    with torch.no_grad():
        for body in np.unique(own):
            rows = np.concatenate([rest[part == body], np.ones(((part == body).sum(), 1))], 1)
            for frame, mesh in enumerate(meshes):
                there = mesh.vertices.double().numpy()[part == body]
                motion = torch.from_numpy(np.linalg.lstsq(rows, there, rcond=None)[0]).float()
                at = field.node_positions[own == body]
                field.translations[frame, own == body] = at @ motion[:3] + motion[3] - at
                field.rotations[frame, own == body] = quaternion_to_rotation_vector(matrix_to_quaternion(motion[:3].T))
    still = Scene4D(gaussians, frames=FRAMES, front=FRONT, surface=meshes[0])
    film = render_frames(replace(still, field=field), FRONT.cropped(Crop(0, 0, SIZE, SIZE, SIZE), SIZE))[0]
    video = DrivingVideo(film[..., :3], film[..., 3], 12.0, Crop(0, 0, SIZE, SIZE, SIZE))
    return still, field, video


def test_the_parts_of_a_tracked_motion_explain_the_video(chest: Any) -> None:
    """Tracking errs from node to node; parts found from it average that, and are kept. An exact motion is not given up."""
    still, field, video = chest
    exact = FitState(still.gaussians, field)
    rival = structure.articulated(exact, still.taus)
    assert rival is not None and isinstance(rival.field, Articulated)
    assert len(rival.field.skeleton) == 2 and bool(rival.field.hinged[1])
    assert structure.chosen(exact, rival, still, video, [FRONT], structure.WITHIN) is exact
    tracked = copy.deepcopy(field)
    with torch.no_grad():
        tracked.translations[1:] += 0.005 * torch.randn(
            tracked.translations[1:].shape, generator=torch.Generator().manual_seed(0)
        )
    free = FitState(still.gaussians, tracked)
    rival = structure.articulated(free, still.taus)
    assert rival is not None and isinstance(rival.field, Articulated)
    assert structure.chosen(free, rival, still, video, [FRONT], structure.WITHIN) is rival


def test_parts_that_do_not_follow_the_video_are_not_kept(chest: Any) -> None:
    still, field, video = chest
    free = FitState(still.gaussians, field)
    rival = structure.articulated(free, still.taus)
    assert rival is not None and isinstance(rival.field, Articulated)
    with torch.no_grad():
        rival.field.turns.zero_()
        rival.field.shifts.zero_()
    assert structure.chosen(free, rival, still, video, [FRONT], structure.WITHIN) is free


def test_fields_without_nodes_have_no_rival(chest: Any) -> None:
    still, field, _ = chest
    rival = structure.articulated(FitState(still.gaussians, field), still.taus)
    assert rival is not None
    assert structure.articulated(rival, still.taus) is None
    assert structure.articulated(FitState(still.gaussians), still.taus) is None


def fitted(chest: Any, joints: float, **more: Any) -> Scene4D:
    still, _, video = chest
    config = MotionConfig(
        field="control-nodes",
        fields={"control-nodes": {"nodes": 40}},
        tracking=Schedule(steps=1, one_by_one=4, resolutions=((1.0, 32),)),
        schedule=Schedule(steps=5, resolutions=((1.0, 32),)),
        fine=Schedule(steps=3, resolutions=((1.0, 32),)),
        objectives=(
            ReferenceViewLoss(weight=constant(3.0), mask=0.33, perceptual=0.0, levels=3), Rigidity(constant(1.0)), Smoothness(),
        ),
        joints=joints,
    )  # fmt: skip
    return stages.fit_motion(video, still, config, mesh=still.surface, **more)


def test_a_fit_of_a_machine_ends_on_joints_and_resumes(chest: Any, tmp_path: Path) -> None:
    whole = fitted(chest, 10.0, checkpoint=tmp_path / "motion.safetensors")
    assert isinstance(whole.field, Articulated)
    assert {"3D to 4D", "3D to 4D, fine"} <= set(whole.meta["losses"])
    (tmp_path / "motion-3D-to-4D-fine.safetensors").unlink()
    again = fitted(chest, 10.0, checkpoint=tmp_path / "motion.safetensors")
    assert torch.equal(whole.at(0.6).means, again.at(0.6).means)
    Scene4D.load(_saved(whole, tmp_path / "scene.safetensors"))


def test_a_rival_that_is_refused_changes_nothing(chest: Any) -> None:
    refused, alone = fitted(chest, 1e-9), fitted(chest, 0.0)
    assert isinstance(refused.field, ControlNodes)
    assert torch.equal(refused.at(0.6).means, alone.at(0.6).means)


def test_the_part_is_added_by_name() -> None:
    assert method_config("pla4d", "standard").motion.joints == 0
    assert method_config("pla4d", "standard", plus=("joints",)).motion.joints > 0


def _saved(scene: Scene4D, path: Path) -> Path:
    scene.save(path)
    return path
