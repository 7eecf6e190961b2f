"""The demo's generated sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anchor4d.core.io.meshes import load_mesh
from anchor4d.core.mesh import sample_surface
from anchor4d.core.render.mesh import render_mesh
from anchor4d.core.runs.sample import CAMERA, FRAMES, TEST_AZIMUTHS, sample_case, sample_meshes, sample_scene, write_sample


def test_the_motion_is_smooth_loops_and_shares_topology() -> None:
    meshes = sample_meshes()
    assert len(meshes) == FRAMES
    assert 2000 <= len(meshes[0].faces) <= 8000
    assert all(mesh.faces is meshes[0].faces and mesh.textures is meshes[0].textures for mesh in meshes)
    low, high = meshes[0].vertices.amin(0), meshes[0].vertices.amax(0)
    assert float((high - low).max()) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(low + high, torch.zeros(3), atol=1e-5)
    positions = torch.stack([mesh.vertices for mesh in meshes])
    steps = (positions - positions.roll(1, 0)).norm(dim=-1).amax(1)  # the last step closes the loop
    assert float(steps.max()) < 0.2
    assert float(steps.min()) > 0.01


def test_parts_are_closed_and_face_outwards() -> None:
    mesh = sample_meshes(1)[0]
    a, b, c = mesh.vertices[mesh.faces].double().unbind(1)
    assert float((a * torch.linalg.cross(b, c)).sum()) > 0  # signed volume
    render = render_mesh(mesh, CAMERA.cameras().resized(64, 64))
    towards = render.normal[0, ..., 2][render.alpha[0] > 0.99]
    assert float((towards > 0).float().mean()) > 0.99


def test_the_case_on_disk_equals_the_case_in_memory(tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "sample", frames=2, size=48)
    meshes, pictures = sample_case(2, 48)
    case = json.loads((folder / "case.json").read_text())
    assert case["frames"] == 2
    assert case["image_size"] == 48
    assert case["camera"]["fovy_degrees"] == CAMERA.fovy
    assert case["test_azimuths"] == list(TEST_AZIMUTHS)
    for name, frames in pictures.items():
        inside = folder / "front" if name == "front" else folder / "views" / name
        assert [p.name for p in sorted(inside.iterdir())] == ["000.png", "001.png"]
        written = np.asarray(Image.open(inside / "001.png"), np.float32) / 255
        assert np.abs(written - frames[1].numpy()).max() < 0.003
    loaded, camera = load_mesh(folder / "mesh.glb"), CAMERA.cameras().resized(48, 48)
    a, b = render_mesh(loaded, camera, torch.ones(3)).color, render_mesh(meshes[0], camera, torch.ones(3)).color
    assert float((a - b).abs().mean()) < 2e-3


def test_the_sample_is_a_scene_without_a_fit() -> None:
    scene = sample_scene(1500, frames=6)
    meshes = sample_meshes(6)
    with torch.no_grad():
        for t, tau in enumerate(scene.taus.tolist()):
            surface = sample_surface(meshes[t], 20_000, torch.Generator().manual_seed(0)).points
            assert torch.cdist(scene.at(tau).means, surface).amin(1).mean() < 0.01
        for t, tau in enumerate(scene.taus.tolist()):
            moved = (scene.at(tau).means - scene.gaussians.means).norm(dim=-1).max()
            assert float(moved) == pytest.approx(float((meshes[t].vertices - meshes[0].vertices).norm(dim=-1).max()), abs=0.02)
