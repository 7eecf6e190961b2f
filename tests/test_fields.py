"""Deformation fields."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from anchor4d.core.cameras import quaternion_to_matrix
from anchor4d.core.deformation import ControlNodes, DeformationField, DeformationMLP, HexPlane, field_from_config
from anchor4d.core.deformation.hexplane import gathered, sampled
from anchor4d.core.gaussians import Gaussians, from_points, random_gaussians
from anchor4d.core.mesh import Mesh
from anchor4d.core.runs.sample import sample_meshes

FRAMES = 6


@pytest.fixture
def gaussians() -> Gaussians:
    return random_gaussians(60, torch.Generator().manual_seed(0))


def make(name: str, gaussians: Gaussians) -> DeformationField:
    torch.manual_seed(0)
    if name == "control-nodes":
        return ControlNodes.on_surface(gaussians, FRAMES, nodes=12, opacity=True)
    if name == "hexplane":
        return HexPlane(resolution=8, time_resolution=5, channels=4, width=16, opacity=True)
    return DeformationMLP(depth=4, width=32, skip=1)


FIELDS = ["control-nodes", "hexplane", "mlp"]


@pytest.mark.parametrize("name", FIELDS)
def test_a_new_field_moves_nothing(gaussians: Gaussians, name: str) -> None:
    moved = make(name, gaussians)(gaussians, torch.linspace(0, 1, 4))
    assert moved.means.shape == (4, 60, 3)
    for key, tensor in gaussians.tensors().items():
        expected = F.normalize(tensor, dim=-1) if key == "quats" else tensor
        torch.testing.assert_close(moved.tensors()[key], expected.expand(4, *tensor.shape), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", FIELDS)
def test_a_new_field_learns_every_attribute(gaussians: Gaussians, name: str) -> None:
    field = make(name, gaussians)
    moved = field(gaussians, torch.tensor([0.4, 1.0]))
    generator = torch.Generator().manual_seed(3)
    for key in ("means", "quats", "log_scales", "opacity_logits"):
        tensor = getattr(moved, key)
        (tensor * torch.randn(tensor.shape, generator=generator)).sum().backward(retain_graph=True)
        gradients = [g.parameter.grad for g in field.parameter_groups()]
        assert any(g is not None and bool(g.abs().max() > 0) for g in gradients), key
        assert all(g is None or bool(g.isfinite().all()) for g in gradients), key
        field.zero_grad()


@pytest.mark.parametrize("name", FIELDS)
def test_parameter_groups_hold_every_parameter_once(gaussians: Gaussians, name: str) -> None:
    field = make(name, gaussians)
    groups = field.parameter_groups()
    assert len({g.name for g in groups}) == len(groups)
    assert {id(g.parameter) for g in groups} == {id(p) for p in field.parameters()}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_rebuilt_from_its_description(gaussians: Gaussians, name: str) -> None:
    field = make(name, gaussians)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    twin = field_from_config(field.config())
    twin.load_state_dict(field.state_dict())
    times = torch.tensor([0.0, 0.37, 1.0])
    for a, b in zip(field(gaussians, times).tensors().values(), twin(gaussians, times).tensors().values()):
        assert torch.equal(a, b)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown deformation field 'wings'"):
        field_from_config({"type": "wings"})


def test_control_nodes_move_gaussians_rigidly_with_them(gaussians: Gaussians) -> None:
    field = make("control-nodes", gaussians)
    assert isinstance(field, ControlNodes)
    axis = torch.tensor([0.3, -0.8, 0.5])
    rotation = 1.1 * axis / axis.norm()
    matrix = torch.matrix_exp(
        torch.tensor([[0, -rotation[2], rotation[1]], [rotation[2], 0, -rotation[0]], [-rotation[1], rotation[0], 0]])
    )
    shift = torch.tensor([0.2, 0.1, -0.3])
    with torch.no_grad():
        field.rotations[2] = rotation
        field.translations[2] = field.node_positions @ matrix.T + shift - field.node_positions
    moved = field(gaussians, torch.tensor([2 / (FRAMES - 1)])).map(lambda t: t[0])
    torch.testing.assert_close(moved.means, gaussians.means @ matrix.T + shift, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        quaternion_to_matrix(moved.quats), matrix @ quaternion_to_matrix(gaussians.quats), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(moved.log_scales, gaussians.log_scales)


@pytest.mark.parametrize("loop", [False, True])
def test_keys_are_met_exactly_and_blended_smoothly_between(gaussians: Gaussians, loop: bool) -> None:
    field = ControlNodes.on_surface(gaussians, FRAMES, nodes=6, loop=loop)
    span = FRAMES if loop else FRAMES - 1
    at_keys = field.key_weights(torch.arange(FRAMES) / span)
    torch.testing.assert_close(at_keys, torch.eye(FRAMES), atol=1e-5, rtol=0)
    between = field.key_weights(torch.linspace(0, 1, 41))
    torch.testing.assert_close(between.sum(1), torch.ones(41))
    assert float((between[1:] - between[:-1]).abs().max()) < 0.3
    # Linear motion stays linear inside the clip.
    inside = torch.linspace(1 / span, (FRAMES - 2) / span, 9)
    torch.testing.assert_close(field.key_weights(inside) @ torch.arange(FRAMES).float(), inside * span, atol=1e-4, rtol=0)
    if loop:
        torch.testing.assert_close(field.key_weights(torch.tensor([1.0])), field.key_weights(torch.tensor([0.0])))


def test_the_first_frame_is_the_canonical_object_whatever_is_learnt(gaussians: Gaussians) -> None:
    field = make("control-nodes", gaussians)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.normal_()
    torch.testing.assert_close(field(gaussians, torch.zeros(1)).means[0], gaussians.means, atol=1e-6, rtol=0)


def test_tracking_goes_on_from_the_neighbour_with_momentum(gaussians: Gaussians) -> None:
    field = make("control-nodes", gaussians)
    assert isinstance(field, ControlNodes)
    with torch.no_grad():
        field.translations[1] = 0.1
        field.translations[2] = 0.3
        field.log_scales[1], field.log_scales[2] = 0.1, -0.4
    field.continue_motion(3, 2, 1, 0.5)
    torch.testing.assert_close(field.translations[3], torch.full_like(field.translations[3], 0.4))
    # Sizes go on too, towards rest and without momentum, so that frames after frames that shrink do not end in dots.
    torch.testing.assert_close(field.log_scales[3], torch.full_like(field.log_scales[3], -0.32))
    with pytest.raises(ValueError, match="cannot be tracked frame by frame"):
        make("mlp", gaussians).continue_motion(3, 2, 1, 0.5)


def test_control_nodes_refuse_another_number_of_gaussians(gaussians: Gaussians) -> None:
    field = make("control-nodes", gaussians)
    with pytest.raises(ValueError, match="were bound to 60 Gaussians, not 10"):
        field(gaussians.select(torch.arange(10)), torch.zeros(1))


def test_the_same_field_serves_moved_gaussians(gaussians: Gaussians) -> None:
    """The binding is folded into matrices that are kept: they must follow the Gaussians they are used on."""
    field = make("control-nodes", gaussians)
    assert isinstance(field, ControlNodes)
    with torch.no_grad():
        field.rotations.normal_()
    first = field(gaussians, torch.tensor([0.5])).means
    other = Gaussians(**(gaussians.tensors() | {"means": gaussians.means + 0.1}))
    second = field(other, torch.tensor([0.5])).means
    assert not torch.allclose(first, second, atol=1e-3)
    trained = Gaussians(**(gaussians.tensors() | {"means": (gaussians.means + 0.1).requires_grad_(True)}))
    torch.testing.assert_close(field(trained, torch.tensor([0.5])).means, second, atol=1e-5, rtol=1e-5)


def tuning_fork() -> Mesh:
    """One surface with two prongs a hair apart, joined at the top: legs that must not move together."""
    x, y, z = (-0.1, -0.0025, 0.0025, 0.1), (-0.5, 0.5, 0.6), (-0.05, 0.05)
    cells = {(0, 0), (2, 0), (0, 1), (1, 1), (2, 1)}
    vertices: list[tuple[float, float, float]] = []
    faces: list[tuple[int, int, int]] = []

    def quad(*corners: tuple[float, float, float]) -> None:
        first = len(vertices)
        vertices.extend(corners)
        faces.extend([(first, first + 1, first + 2), (first, first + 2, first + 3)])

    for i, j in cells:
        low, high = (x[i], y[j]), (x[i + 1], y[j + 1])
        for depth in z:
            quad((low[0], low[1], depth), (high[0], low[1], depth), (high[0], high[1], depth), (low[0], high[1], depth))
        for step, at in ((-1, low[0]), (1, high[0])):
            if (i + step, j) not in cells:
                quad((at, low[1], z[0]), (at, high[1], z[0]), (at, high[1], z[1]), (at, low[1], z[1]))
        for step, at in ((-1, low[1]), (1, high[1])):
            if (i, j + step) not in cells:
                quad((low[0], at, z[0]), (high[0], at, z[0]), (high[0], at, z[1]), (low[0], at, z[1]))
    return Mesh(torch.tensor(vertices), torch.tensor(faces))


def test_legs_side_by_side_are_bound_apart() -> None:
    mesh = tuning_fork()
    y = torch.linspace(-0.45, -0.2, 30)
    legs = [torch.stack([torch.full_like(y, side * 0.01), y, torch.full_like(y, 0.05)], -1) for side in (-1, 1)]
    points = torch.cat(legs)
    gaussians = from_points(points, torch.full_like(points, 0.5))
    field = ControlNodes.on_surface(gaussians, 2, mesh=mesh, nodes=40)
    side = field.node_positions[:, 0].sign()
    low = field.node_positions[:, 1] < -0.15
    share = (field.bind_weight * (low[field.bind_index] & (side[field.bind_index] != points[:, :1].sign()))).sum(1)
    assert float(share.mean()) < 0.05
    torch.testing.assert_close(field.bind_weight.sum(1), torch.ones(len(points)))


def test_nodes_cover_the_object_evenly() -> None:
    mesh = sample_meshes(1)[0]
    points = mesh.vertices[::7]
    field = ControlNodes.on_surface(from_points(points, torch.full_like(points, 0.5)), 3, mesh=mesh, nodes=80)
    gaps = torch.cdist(points, field.node_positions).amin(1)
    assert len(field.node_positions) == 80
    assert float(gaps.max()) < 0.15
    spacing = torch.cdist(field.node_positions, field.node_positions).fill_diagonal_(math.inf).amin(1)
    assert float(spacing.min()) > 0.2 * float(spacing.median())


@pytest.mark.parametrize("shape", [(5, 7), (1, 3), (2, 1)])
def test_planes_are_sampled_alike_by_gathers(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(1, 3, *shape, generator=generator, requires_grad=True)
    x, y = (2.6 * torch.rand(2, 2, 40, generator=generator) - 1.3).requires_grad_()
    wanted = torch.randn(2, 40, 3, generator=generator)
    found = [
        (value, *torch.autograd.grad(value, [plane, x, y], wanted)) for value in (sampled(plane, x, y), gathered(plane, x, y))
    ]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
