"""Fused kernels against what they fuse: on the CPU through the host shim, and on a card."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anchor4d.core.deformation import ControlNodes, HexPlane, fused
from anchor4d.core.gaussians import Gaussians, random_gaussians
from anchor4d.core.metrics import window_ssim as windows
from anchor4d.core.objectives import fused as images
from anchor4d.core.objectives.front import image_loss
from anchor4d.core.objectives.rigidity import edge_strain

shim = pytest.importorskip("kernel_shim")


@pytest.fixture(params=[pytest.param("cpu", marks=shim.needs_compiler), pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cpu":
        monkeypatch.setattr(fused, "load", shim.load)
        monkeypatch.setattr(images, "load", shim.load)
        monkeypatch.setattr(windows, "load", shim.load)
    elif not torch.cuda.is_available():
        pytest.skip("no CUDA or ROCm device")
    return request.param


def moving_nodes(gaussians: Gaussians, keys: int, loop: bool, anchored: bool, opacity: bool) -> ControlNodes:
    field = ControlNodes.on_surface(gaussians, keys, nodes=14, loop=loop, anchored=anchored, opacity=opacity)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        field.rotations[:, 0] = 0.0  # the exponential map at rest
    return field


def gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    wanted = [torch.randn(x.shape, generator=generator).to(x) for x in outputs]
    return list(torch.autograd.grad(outputs, inputs, wanted))


def motion(field: ControlNodes, taus: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    return fused.node_motion(
        taus, field.node_positions, field.translations, field.rotations, field.log_scales, field.opacity_logits, field.loop,
        field.anchored,
    )  # fmt: skip


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=2e-5, atol=2e-6 * max(float(b.abs().max()), 1.0))


@pytest.mark.parametrize(
    ("keys", "loop", "anchored", "opacity"), [(6, False, True, True), (5, True, False, False), (1, False, False, True)]
)
def test_gaussians_move_as_the_definition_says(place: str, keys: int, loop: bool, anchored: bool, opacity: bool) -> None:
    gaussians = random_gaussians(150, torch.Generator().manual_seed(0)).map(lambda t: t.requires_grad_())
    field = moving_nodes(gaussians.detach(), keys, loop, anchored, opacity)
    taus = torch.tensor([0.0, 0.2, 0.43, 0.97, 1.0])
    leaves = [gaussians.means, gaussians.quats, gaussians.log_scales, gaussians.opacity_logits, *field.parameters()]
    moved = field(gaussians, taus)
    outputs = [moved.means, moved.quats, moved.log_scales, moved.opacity_logits]
    expected = gradients(outputs, leaves)

    there, again = gaussians.detach().to(place).map(lambda t: t.requires_grad_()), field.to(place)
    bound = fused.places(again.bind_index, len(again.node_positions))
    drawn = fused.deform(there, again.bind_index, again.bind_weight, bound, again.node_positions, motion(again, taus.to(place)))
    found = [drawn.means, drawn.quats, drawn.log_scales, drawn.opacity_logits]
    leaves = [there.means, there.quats, there.log_scales, there.opacity_logits, *again.parameters()]
    assert_close(found, outputs)
    assert_close(gradients(found, leaves), expected)


def test_colours_and_stretch_are_the_definitions(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gaussians = random_gaussians(150, torch.Generator().manual_seed(0)).map(lambda t: t.requires_grad_())
    field = ControlNodes.on_surface(gaussians.detach(), 4, nodes=14, opacity=True, color=True, stretch=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    taus = torch.tensor([0.0, 0.43, 1.0])
    leaves = [*gaussians.tensors().values(), *field.parameters()]
    outputs = [*field(gaussians, taus).tensors().values()]
    expected = gradients(outputs, leaves)

    there, again = gaussians.detach().to(place).map(lambda t: t.requires_grad_()), field.to(place)
    monkeypatch.setattr(fused, "available", lambda device: True)
    found = [*again(there, taus.to(place)).tensors().values()]
    assert_close([x.detach() for x in found], [x.detach() for x in outputs])
    assert_close(gradients(found, [*there.tensors().values(), *again.parameters()]), expected)


def test_nodes_and_edges_strain_as_the_definition_says(place: str) -> None:
    gaussians = random_gaussians(150, torch.Generator().manual_seed(0))
    field = moving_nodes(gaussians, 6, False, True, False)
    taus = torch.tensor([0.0, 0.3, 0.9])
    leaves = [field.translations, field.rotations]
    strain = edge_strain(field.node_positions, *field.motion_of_handles(taus), field.pairs)
    expected = gradients(list(strain), leaves)
    outputs = [x.detach() for x in strain]

    again = field.to(place)
    ends = fused.places(again.pairs, len(again.node_positions))
    positions, quats = motion(again, taus.to(place))[:2]
    found = list(fused.edge_strain(again.node_positions, positions, quats, again.pairs, ends))
    assert_close(found, outputs)
    assert_close(gradients(found, [again.translations, again.rotations]), expected)


@pytest.mark.parametrize(("size", "levels"), [((40, 40), 4), ((37, 50), 5), ((16, 7), 3), ((5, 5), 1)])
def test_image_losses_are_the_definitions(place: str, size: tuple[int, int], levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    color, target = torch.rand(2, 3, *size, 3, generator=generator)
    alpha, mask = torch.rand(2, 3, *size, generator=generator)
    leaves = [color.requires_grad_(), alpha.requires_grad_()]
    loss = image_loss(color, alpha, target, mask, weight=1.0, mask_weight=0.3, levels=levels)
    expected = torch.autograd.grad(loss, leaves, torch.tensor(2.5))
    there = [x.detach().to(place) for x in (color, alpha, target, mask)]
    leaves = [there[0].requires_grad_(), there[1].requires_grad_()]
    found = images.pyramid_loss(*there, 0.3, levels)
    assert_close([found], [loss.detach()])
    found = torch.autograd.grad(found, leaves, torch.tensor(2.5, device=place))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("size", [(40, 33), (7, 22), (64, 16)])
def test_ssim_is_the_definitions(place: str, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 2, *size, 3, generator=generator)
    y = 0.6 * x + 0.4 * y
    exact = x.double().requires_grad_()
    loss = windows.ssim(exact, y.double())
    (expected,) = torch.autograd.grad(loss, exact, torch.tensor(2.5).double())
    there = x.to(place).requires_grad_()
    found = windows.fused_ssim(there, y.to(place))
    torch.testing.assert_close(found.detach().cpu().double(), loss.detach(), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(found, there, torch.tensor(2.5, device=place))
    torch.testing.assert_close(gradient.cpu().double(), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(windows.fused_ssim(x.to(place), y.to(place)), found)  # without a gradient


def test_places_are_the_transpose_of_a_gather() -> None:
    table = torch.tensor([[2, 0], [0, 2], [3, 2]])
    starts, entries = fused.places(table, 5)
    assert starts.tolist() == [0, 2, 2, 5, 6, 6]
    assert entries.tolist() == [1, 2, 0, 3, 5, 4]


@pytest.mark.parametrize("multiscale", [(1,), (1, 2)])
def test_planes_are_sampled_as_the_definition_says(place: str, multiscale: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    field = HexPlane(resolution=5, time_resolution=3, channels=3, width=8, multiscale=multiscale, bounds=1.2)
    with torch.no_grad():
        for plane in field.planes:
            plane.add_(0.3 * torch.randn(plane.shape))
    points = (3 * torch.rand(30, 3) - 1.5).requires_grad_()  # some outside
    taus = torch.tensor([0.0, 0.35, 1.0])
    features = field.features(points, taus)
    expected = gradients([features], [points, *field.planes])
    there, again = points.detach().to(place).requires_grad_(), field.to(place)
    found = fused.plane_features(list(again.planes), there / again.bounds, 2 * taus.to(place) - 1)
    assert_close([found], [features.detach()])
    results = gradients([found], [there, *again.planes])
    assert_close(results, expected)
    once_more = gradients(
        [found_again := fused.plane_features(list(again.planes), there / again.bounds, 2 * taus.to(place) - 1)],
        [there, *again.planes],
    )
    assert torch.equal(found_again, found) and all(torch.equal(a, b) for a, b in zip(results, once_more, strict=True))


@pytest.mark.parametrize("size", [0.0, float("nan"), float("inf")])
def test_gradients_of_planes_are_nothing_or_no_numbers_where_the_loss_is(place: str, size: float) -> None:
    torch.manual_seed(0)
    field = HexPlane(resolution=4, time_resolution=3, channels=2, width=8).to(place)
    features = fused.plane_features(list(field.planes), torch.rand(5, 3, device=place), torch.zeros(2, device=place))
    for gradient in torch.autograd.grad(features, list(field.planes), torch.full_like(features, size)):
        assert bool((gradient == 0).all()) if size == 0 else bool(gradient.isnan().all())
