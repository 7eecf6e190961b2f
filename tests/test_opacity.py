"""Surfaces hide their far side: even sampling, and the measure itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import trimesh

from anchor4d.bench.opacity import opacity
from anchor4d.core.cameras import Crop, FrontCamera, orbit
from anchor4d.core.deformation import ControlNodes
from anchor4d.core.gaussians import Gaussians, neighbour_distances
from anchor4d.core.mesh import Mesh, sample_evenly, sample_surface
from anchor4d.core.methods.backing import (
    MOST,
    STAGE,
    STEPS,
    backed,
    bare,
    closed,
    driving_error,
    seconds_to_close,
    share_through,
)  # fmt: skip
from anchor4d.core.methods.stages import gaussians_on_mesh
from anchor4d.core.objectives.through import shown_through
from anchor4d.core.render.mesh import render_mesh
from anchor4d.core.runs.sample import sample_meshes
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.video import DrivingVideo


@pytest.fixture(scope="module")
def character() -> Mesh:
    return sample_meshes(1)[0]


def test_even_samples_keep_their_distance(character: Mesh) -> None:
    even, drawn = (sample(character, 2000, torch.Generator().manual_seed(0)) for sample in (sample_evenly, sample_surface))
    assert len(even.points) == len(drawn.points) == 2000
    assert bool((even.face[1:] >= even.face[:-1]).all())

    def closeness(points: torch.Tensor) -> float:
        nearest = neighbour_distances(points, 1)[:, 0]
        return float(nearest.quantile(0.05) / nearest.median())

    assert closeness(even.points) > 0.6 > 0.4 > closeness(drawn.points)
    again = sample_evenly(character, 2000, torch.Generator().manual_seed(0))
    assert torch.equal(even.points, again.points)


@pytest.fixture(scope="module")
def skin(character: Mesh) -> Gaussians:
    return gaussians_on_mesh(character, 8000)[0]


def test_little_of_the_far_side_shows_through(character: Mesh, skin: Gaussians) -> None:
    bare = Scene4D(skin, surface=character)
    before, after = (opacity(scene, [0.0]) for scene in (bare, backed(bare)))
    assert before["through"] > 0.02  # points drawn at random: 0.04
    assert after["alpha"] > 0.98 and after["through"] < 0.01


def test_a_second_layer_moves_with_the_first_and_hides_what_stretches(character: Mesh, skin: Gaussians) -> None:
    field = ControlNodes.on_surface(skin, 3, mesh=character, nodes=100)
    with torch.no_grad():  # the last frame is a quarter longer from left to right
        field.translations[2] = field.node_positions * torch.tensor([0.25, 0.0, 0.0])
    bare = Scene4D(skin, field, frames=3, surface=character)
    made = backed(bare)
    assert len(bare.gaussians) < len(made.gaussians) <= 2 * len(bare.gaussians)
    assert torch.equal(made.at(1.0).means[: len(skin)], bare.at(1.0).means)
    before, after = (opacity(scene, [0.0, 1.0]) for scene in (bare, made))
    assert before["through"] > 0.02 and after["alpha"] > 0.98 and after["through"] < 0.01


def test_what_of_a_second_layer_would_show_is_left_out(character: Mesh) -> None:
    """Few and wide discs stick out at the outline: those go, the driving view stays, and the surface is closed all the same."""
    size = 96
    front, crop = FrontCamera(fovy=36.0, distance=2.0, width=size, height=size), Crop(0, 0, size, size, size)
    filmed = render_mesh(character, front.cropped(crop, size))
    video = DrivingVideo(filmed.color, filmed.alpha, 8.0, crop)
    plain = Scene4D(gaussians_on_mesh(character, 3000)[0], surface=character)
    whole, made = backed(plain), backed(plain, video, [front])
    before, with_all, after = (driving_error(scene, video, [front], "auto") for scene in (plain, whole, made))
    assert with_all > 1.1 * before and after <= before
    assert len(plain.gaussians) < len(made.gaussians) < len(whole.gaussians)
    assert share_through(plain) > 0.03 and share_through(made) < MOST


def test_motion_starts_from_the_first_layer_alone(character: Mesh, skin: Gaussians) -> None:
    still = Scene4D(skin, surface=character, meta={"losses": {}})
    made = backed(still)
    assert len(made.gaussians) > len(skin) and torch.equal(bare(made).gaussians.means, skin.means)
    assert bare(made).meta == still.meta and bare(still) is still
    pruned = replace(made, gaussians=made.gaussians.map(lambda t: t[5:]))
    assert bare(pruned) is pruned  # its layers can no longer be told apart


def test_closing_is_a_stage_with_progress(character: Mesh, skin: Gaussians) -> None:
    steps = []

    def progress(stage: str, step: int, total: int, losses: dict[str, float], preview: Callable[[], torch.Tensor]) -> None:
        steps.append((stage, step, total))
        assert preview().shape == (128, 128, 3)

    closed(Scene4D(skin, surface=character), progress=progress)
    assert steps == [(STAGE, 1, STEPS), (STAGE, 2, STEPS)]
    assert seconds_to_close(Scene4D(skin, surface=character)) > 0 == seconds_to_close(Scene4D(skin))


@pytest.mark.parametrize("mirrored", [False, True], ids=["outward", "inward"])
def test_the_second_layer_lies_inside(mirrored: bool) -> None:
    """Also where a mesh's faces are wound the wrong way."""
    solid: Any = trimesh.creation.icosphere(4, 0.5)
    faces = torch.from_numpy(solid.faces[:, ::-1].copy() if mirrored else solid.faces.copy()).long()
    ball = Mesh(torch.from_numpy(solid.vertices.copy()).float(), faces)
    skin, _ = gaussians_on_mesh(ball, 1500)
    added = backed(Scene4D(skin, surface=ball)).gaussians.means[1500:]
    assert len(added) > 1000 and float(added.norm(dim=-1).max()) < 0.499


def test_sheets_keep_both_sides() -> None:
    """What is seen from both sides has no inside: the second layer lies within the first."""
    flat = torch.tensor([[-0.5, -0.5, 0.0], [0.5, -0.5, 0.0], [0.5, 0.5, 0.0], [-0.5, 0.5, 0.0]])
    corners = torch.cat([flat, flat[:, [2, 1, 0]]])  # two sheets that cross
    cross = Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]]))
    skin, _ = gaussians_on_mesh(cross, 800)
    added = backed(Scene4D(skin, surface=cross)).gaussians.means[800:]
    assert len(added) > 400 and float(added[:, [0, 2]].abs().amin(-1).max()) < 1e-6


def test_what_hides_its_far_side_stays_as_it_is(character: Mesh) -> None:
    dense = Scene4D(gaussians_on_mesh(character, 60_000)[0], surface=character)
    assert backed(dense) is dense
    bare = Scene4D(dense.gaussians.map(lambda t: t[::10]))  # nothing says where its surface is
    assert backed(bare) is bare


def test_a_holey_surface_is_measured_as_such(character: Mesh) -> None:
    skin, _ = gaussians_on_mesh(character, 4000)
    thin = skin.map(lambda t: t[::4])
    assert opacity(Scene4D(thin, surface=character), [0.0], size=128)["through"] > 0.1


def test_what_shows_through_has_a_gradient(character: Mesh) -> None:
    skin = gaussians_on_mesh(character, 1500)[0].map(lambda t: t.requires_grad_())
    cameras = orbit(torch.tensor([0.0, 140.0]), 0.0, 2.0, 36.0, 48, 48)
    shown_through(skin, cameras, render_mesh(character, cameras).depth).mean().backward()
    # Fainter surfaces let more through.
    assert skin.opacity_logits.grad is not None and float((skin.opacity_logits.grad < 0).float().mean()) > 0.3
