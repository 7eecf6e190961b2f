"""Surfaces that stretch stay closed: covariances follow the deformation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anchor4d.core.cameras import orbit, quaternion_to_matrix
from anchor4d.core.deformation import ControlNodes
from anchor4d.core.gaussians import Gaussians
from anchor4d.core.mesh import Mesh
from anchor4d.core.methods.stages import gaussians_on_mesh
from anchor4d.core.render import rasterize
from anchor4d.core.scene.scene import Scene4D


def covariances(gaussians: Gaussians) -> Tensor:
    axes = quaternion_to_matrix(F.normalize(gaussians.quats, dim=-1)) * gaussians.scales[..., None, :]
    return axes @ axes.mT


@pytest.fixture(scope="module")
def sheet() -> tuple[Mesh, Gaussians]:
    line = torch.linspace(-0.5, 0.5, 15)
    grid = torch.stack([*torch.meshgrid(line, line, indexing="ij"), torch.zeros(15, 15)], -1).reshape(-1, 3)
    corner = (torch.arange(14)[:, None] * 15 + torch.arange(14)).reshape(-1)
    faces = torch.cat([torch.stack([corner, corner + 15, corner + 16], 1), torch.stack([corner, corner + 16, corner + 1], 1)])
    mesh = Mesh(grid, faces)
    discs = gaussians_on_mesh(mesh, 3000)[0]
    generator = torch.Generator().manual_seed(3)
    # Ellipses in all directions, as a fit leaves them.
    uneven = discs.log_scales + 0.2 * torch.randn(3000, 3, generator=generator) * torch.tensor([1.0, 1.0, 0.1])
    return mesh, Gaussians(discs.means, discs.quats, uneven, discs.opacity_logits, discs.sh)


def moved_by(discs: Gaussians, mesh: Mesh, linear: Tensor, rotation: Tensor | None = None) -> ControlNodes:
    """Nodes that go where a linear map takes them, turned by a rotation vector, in the second of two frames."""
    field = ControlNodes.on_surface(discs, 2, mesh=mesh, nodes=80)
    with torch.no_grad():
        field.translations[1] = field.node_positions @ linear.T - field.node_positions
        if rotation is not None:
            field.rotations[1] = rotation
    return field


@pytest.mark.parametrize(
    "linear",
    [[[2.0, 0, 0], [0, 1, 0], [0, 0, 1]], [[1.5, 0.4, 0], [0.4, 1.2, 0], [0, 0, 1]], [[0.9, 0, 0], [0, 1.8, 0], [0, 0, 1]]],
    ids=["along", "aslant", "one way more"],
)
def test_covariances_follow_the_deformation(sheet: tuple[Mesh, Gaussians], linear: list[list[float]]) -> None:
    mesh, discs = sheet
    stretch = torch.tensor(linear)
    found = covariances(moved_by(discs, mesh, stretch).stretching()(discs, torch.ones(1)).map(lambda t: t[0].detach()))
    expected = stretch @ covariances(discs) @ stretch.T
    error = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert float(error.median()) < 0.03 and float(error.quantile(0.95)) < 0.1


def test_what_moves_rigidly_keeps_its_bits(sheet: tuple[Mesh, Gaussians]) -> None:
    mesh, discs = sheet
    vector = torch.tensor([0.4, -0.7, 0.3])
    angle = vector.norm()
    quat = torch.cat([(angle / 2).cos()[None], vector / angle * (angle / 2).sin()])
    field = moved_by(discs, mesh, quaternion_to_matrix(quat), vector)
    plain, following = (f(discs, torch.tensor([0.0, 1.0])) for f in (field, field.stretching()))
    for name, tensor in plain.tensors().items():
        assert torch.equal(tensor, following.tensors()[name]), name


def test_a_stretched_sheet_stays_closed(sheet: tuple[Mesh, Gaussians]) -> None:
    mesh, discs = sheet
    field = moved_by(discs, mesh, torch.diag(torch.tensor([2.0, 1.0, 1.0])))
    cameras = orbit(torch.tensor([0.0, 180.0]), 0.0, 2.0, 36.0, 256, 256)

    def alpha(field: ControlNodes, tau: float) -> float:
        """Well inside the sheet."""
        with torch.no_grad():
            return float(rasterize(Scene4D(discs, field, frames=2).at(tau), cameras).alpha[:, 64:192, 64:192].mean())

    rest, plain, following = alpha(field, 0.0), alpha(field, 1.0), alpha(field.stretching(), 1.0)
    assert plain < rest - 0.1 and following > rest - 0.01, (rest, plain, following)


def test_nothing_grows_without_end(sheet: tuple[Mesh, Gaussians]) -> None:
    mesh, discs = sheet
    for linear in (torch.diag(torch.tensor([40.0, 1.0, 1.0])), torch.zeros(3, 3), torch.diag(torch.tensor([-1.0, 1.0, 1.0]))):
        moved = moved_by(discs, mesh, linear).stretching()(discs, torch.ones(1))
        factor = (moved.log_scales[0] - discs.log_scales).exp()
        assert bool(moved.quats.isfinite().all()) and 0.74 < float(factor.min()) <= float(factor.max()) < 2.01


def test_gradients_are_those_of_the_moved_gaussians(sheet: tuple[Mesh, Gaussians]) -> None:
    mesh, discs = sheet
    field = moved_by(discs, mesh, torch.diag(torch.tensor([1.6, 1.0, 1.0])))
    following = field.stretching()
    results = []
    for f in (field, following):
        moved = f(discs, torch.ones(1))
        results.append(torch.autograd.grad((moved.means.square().sum() + moved.log_scales.sum()), list(f.parameters())))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_a_saved_scene_stretches(sheet: tuple[Mesh, Gaussians], tmp_path: Path) -> None:
    mesh, discs = sheet
    field = moved_by(discs, mesh, torch.diag(torch.tensor([1.6, 1.0, 1.0]))).stretching()
    scene = Scene4D(discs, field, frames=2, surface=mesh)
    scene.save(tmp_path / "scene.safetensors")
    again = Scene4D.load(tmp_path / "scene.safetensors")
    for a, b in zip(scene.at(0.7).tensors().values(), again.at(0.7).tensors().values()):
        assert torch.equal(a, b)
    half = field.select(torch.arange(0, 3000, 2))
    assert torch.equal(half(discs.map(lambda t: t[::2]), torch.ones(1)).log_scales, scene.at(1.0).log_scales[None, ::2])
