"""Colours and opacities over time, and colours that the video reveals later."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import trimesh
from torch import Tensor

from anchor4d.core.cameras import Crop, FrontCamera
from anchor4d.core.deformation import ControlNodes
from anchor4d.core.fit.loop import FitState, Inputs, Schedule, run_fit
from anchor4d.core.gaussians import Gaussians
from anchor4d.core.mesh import Mesh
from anchor4d.core.methods.registry import method_config
from anchor4d.core.methods.reveal import revealed
from anchor4d.core.methods.stages import gaussians_on_mesh
from anchor4d.core.objectives.front import ReferenceViewLoss
from anchor4d.core.render import rasterize
from anchor4d.core.render.mesh import render_mesh
from anchor4d.core.scene.scene import Scene4D, frame_times
from anchor4d.core.schedules import constant
from anchor4d.core.video import DrivingVideo

FRAMES, SIZE = 5, 48
FRONT = FrontCamera(fovy=40.0, distance=2.0, width=SIZE, height=SIZE)
CROP = Crop(0, 0, SIZE, SIZE, SIZE)
RED, BLUE = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.2, 0.9])


def painted(mesh: Mesh, colors: Tensor) -> Mesh:  # (V, 3) or (3,)
    colors = colors.expand(len(mesh.vertices), 3)
    return replace(mesh, vertex_colors=torch.cat([colors, torch.ones_like(colors[:, :1])], 1))


@pytest.fixture(scope="module")
def ball() -> Mesh:
    solid: Any = trimesh.creation.icosphere(3, 0.4)
    vertices = torch.from_numpy(solid.vertices.copy()).float()
    return painted(Mesh(vertices, torch.from_numpy(solid.faces.copy()).long()), RED)


def filmed(meshes: list[Mesh], size: int = SIZE) -> DrivingVideo:
    drawn = [render_mesh(mesh, FRONT.cropped(CROP, size)) for mesh in meshes]
    frames, masks = torch.cat([d.color for d in drawn]), torch.cat([d.alpha for d in drawn])
    return DrivingVideo(frames, masks, 8.0, CROP)


def followed(ball: Mesh, skin: Gaussians, video: DrivingVideo, **options: Any) -> Scene4D:
    field = ControlNodes.on_surface(skin, FRAMES, mesh=ball, nodes=60, **options)
    terms = [ReferenceViewLoss(weight=constant(3.0), mask=0.33, perceptual=0.0)]
    inputs = Inputs(video=video, taus=frame_times(FRAMES), fronts=[FRONT])
    schedule = Schedule(steps=80, resolutions=((1.0, SIZE),), background="random", smoothing=0.02, lr=5.0, lr_final=0.05)
    state = run_fit("motion", FitState(skin, field), terms, schedule, inputs)
    return Scene4D(state.gaussians, state.field, frames=FRAMES, surface=ball)


def seen(scene: Scene4D, tau: float) -> Tensor:
    with torch.no_grad():
        drawn = rasterize(scene.at(tau), FRONT.cropped(CROP, SIZE), torch.ones(3))
    return torch.cat([drawn.color.reshape(SIZE, SIZE, 3), drawn.alpha.reshape(SIZE, SIZE, 1)], -1)


def test_colours_change_over_time_where_asked(ball: Mesh) -> None:
    skin = gaussians_on_mesh(ball, 600)[0]
    shares = torch.linspace(0, 1, FRAMES)
    video = filmed([painted(ball, torch.lerp(RED, BLUE, t)) for t in shares])
    with_it, without = (followed(ball, skin, video, color=color) for color in (True, False))
    middle = slice(SIZE // 2 - 4, SIZE // 2 + 4)

    def colour(scene: Scene4D, tau: float) -> Tensor:
        return seen(scene, tau)[middle, middle, :3].mean((0, 1))

    assert float((colour(with_it, 1.0) - BLUE).abs().max()) < 0.1 < 0.5 < float((colour(without, 1.0) - BLUE).abs().max())
    assert torch.equal(with_it.at(0.0).sh, skin.sh) and "sh" in with_it.field.changes  # pyright: ignore[reportOptionalMemberAccess]
    assert torch.equal(without.at(1.0).sh, skin.sh)


def test_parts_vanish_where_asked(ball: Mesh) -> None:
    skin = gaussians_on_mesh(ball, 600)[0]
    video = filmed([ball] * FRAMES)
    masks = video.masks.clone()
    masks[2:, :, : SIZE // 2] = 0  # the left half is gone in the last three frames
    scene = followed(ball, skin, replace(video, masks=masks), opacity=True)
    left, right = slice(13, 17), slice(29, 35)
    rows = slice(SIZE // 2 - 4, SIZE // 2 + 4)
    alpha = seen(scene, 1.0)[..., 3]
    assert float(alpha[rows, left].mean()) < 0.3 and float(alpha[rows, right].mean()) > 0.9
    assert float(seen(scene, 0.0)[rows, left, 3].mean()) > 0.9


def turned(mesh: Mesh, degrees: float) -> Mesh:
    a = math.radians(degrees)
    turn = torch.tensor([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    return replace(mesh, vertices=mesh.vertices @ turn.T)


def test_later_frames_reveal_what_the_first_hides(ball: Mesh) -> None:
    """A ball, red in front and blue behind, turns by 120 degrees; all of it was taken for red."""
    behind = ball.vertices[:, 2] < 0
    true = painted(ball, torch.where(behind[:, None], BLUE, RED))
    angles = torch.linspace(0, 120, FRAMES)
    video = filmed([turned(true, float(a)) for a in angles], 128)
    skin = gaussians_on_mesh(ball, 1500)[0]
    field = ControlNodes.on_surface(skin, FRAMES, mesh=ball, nodes=80)
    with torch.no_grad():
        for t, a in enumerate(angles):
            field.rotations[t, :, 1] = math.radians(float(a))
            field.translations[t] = turned(Mesh(field.node_positions, ball.faces), float(a)).vertices - field.node_positions
    scene = Scene4D(skin, field, frames=FRAMES)
    made = revealed(scene, video, [FRONT])
    # How squarely each part faces the camera in each frame.
    places = torch.stack([turned(Mesh(skin.means, ball.faces), float(a)).vertices for a in angles])
    facing = (F.normalize(places, dim=-1) * F.normalize(torch.tensor([0.0, 0.0, 2.0]) - places, dim=-1)).sum(-1)
    often = (facing[1:] > 0.5).sum(0)
    came, front, never = (
        (facing[0] < 0) & (often >= 2) & (skin.means[:, 2].abs() > 0.08),
        facing[0] > 0.2,
        (facing[1:] < 0.3).all(0) & (facing[0] < 0),
    )
    true_colors = torch.where(skin.means[:, 2:] < 0, BLUE, RED)
    error = (made.gaussians.colors - true_colors).abs().amax(-1)
    assert int(came.sum()) > 60 and float((error[came] < 0.1).float().mean()) > 0.95
    for kept in (front, never):
        assert int(kept.sum()) > 100 and torch.equal(made.gaussians.sh[kept], skin.sh[kept])
    assert torch.equal(made.gaussians.means, skin.means)


def test_pla4d_takes_them_as_parts() -> None:
    plain, both = (method_config("pla4d", "draft", plus=plus) for plus in ((), ("appearance", "presence")))
    assert both.motion.fields["control-nodes"] == {**plain.motion.fields["control-nodes"], "color": True, "opacity": True}
    assert plain.motion.fields["control-nodes"].keys().isdisjoint({"color", "opacity"})
