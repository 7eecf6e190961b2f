"""Surfaces hide their far side: even sampling, and the measure itself."""

from __future__ import annotations

import pytest
import torch

from anchor4d.bench.opacity import opacity
from anchor4d.core.cameras import orbit
from anchor4d.core.gaussians import neighbour_distances
from anchor4d.core.mesh import Mesh, sample_evenly, sample_surface
from anchor4d.core.methods.stages import gaussians_on_mesh
from anchor4d.core.objectives.through import shown_through
from anchor4d.core.render.mesh import render_mesh
from anchor4d.core.runs.sample import sample_meshes
from anchor4d.core.scene.scene import Scene4D


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


def test_little_of_the_far_side_shows_through(character: Mesh) -> None:
    skin, _ = gaussians_on_mesh(character, 8000)
    found = opacity(Scene4D(skin, surface=character), [0.0], size=128)
    assert found["alpha"] > 0.98 and found["through"] < 0.02  # points drawn at random: 0.04


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
