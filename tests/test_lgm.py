"""LGM: published layout, rays, activations, where a Gaussian lands, and a picture to Gaussians with tiny random networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from anchor4d.core.cameras import orbit
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import Gaussians
from anchor4d.core.generate import gaussians as lgm
from anchor4d.core.generate.gaussians import FRONT, LGM, image_to_gaussians, load_lgm, text_to_gaussians, views_to_gaussians
from anchor4d.core.priors.base import Viewpoints
from anchor4d.core.priors.exact import ExactPrior
from anchor4d.core.render import rasterize

#: For whole pictures: no attention, 32 x 32 Gaussians a view.
SMALL: dict[str, Any] = dict(
    down=(32, 32, 32, 32), down_attention=(False,) * 4, mid_attention=False, up=(32,), up_attention=(False,), layers=1
)
# A level whose width repeats, levels with and without attention, and fewer levels up than down.
SIZES: dict[str, Any] = dict(
    down=(32, 32, 64), down_attention=(False, True, True), mid_attention=True, up=(64, 32), up_attention=(True, False), layers=2
)


def tiny_network(seed: int = 0, **sizes: Any) -> LGM:
    network, generator = LGM(**(SIZES | sizes)), torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        scale = 0.5 / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.2
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale + (parameter.ndim == 1) * 0.5
    return network.eval().requires_grad_(False)


# ---- layout


def test_published_layout(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = LGM()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    # The paper's 415 M parameters, 0.83 GB in float16.
    assert (len(shapes), sum(p.numel() for p in network.parameters())) == (376, 415_042_848)
    named = {
        "conv.weight": (14, 14, 1, 1),
        "unet.conv_in.weight": (64, 9, 3, 3),
        "unet.down_blocks.0.nets.1.conv2.weight": (64, 64, 3, 3),
        "unet.down_blocks.0.downsample.weight": (64, 64, 3, 3),
        "unet.down_blocks.3.attns.1.attn.qkv.weight": (1536, 512),
        "unet.down_blocks.5.attns.0.norm.bias": (1024,),
        "unet.mid_block.nets.1.norm1.weight": (1024,),
        "unet.mid_block.attns.0.attn.proj.bias": (1024,),
        "unet.up_blocks.0.nets.2.conv1.weight": (1024, 2048, 3, 3),
        "unet.up_blocks.1.nets.2.conv1.weight": (1024, 1536, 3, 3),
        "unet.up_blocks.2.attns.2.attn.qkv.weight": (1536, 512),
        "unet.up_blocks.4.nets.0.conv1.weight": (128, 384, 3, 3),
        "unet.up_blocks.4.nets.2.shortcut.weight": (128, 192, 1, 1),
        "unet.up_blocks.3.upsample.bias": (256,),
        "unet.norm_out.weight": (128,),
        "unet.conv_out.weight": (14, 128, 3, 3),
    }
    assert {key: shapes[key] for key in named} == named
    absent = (
        "down_blocks.5.downsample",
        "up_blocks.4.upsample",
        "down_blocks.2.attns",
        "up_blocks.3.attns",
        "mid_block.attns.1",
    )
    assert not [key for key in shapes if any(part in key for part in absent)]
    with torch.device("meta"):
        again = LGM.of_weights(network.state_dict())
    assert {key: tuple(value.shape) for key, value in again.state_dict().items()} == shapes


def test_load(tmp_path: Path) -> None:
    network = tiny_network()
    tensors = {key: value.half() for key, value in network.state_dict().items()}
    path = tmp_path / "lgm" / "model_fp16_fixrot.safetensors"
    path.parent.mkdir()
    save_file(tensors | {"lpips_loss.lin0.model.1.weight": torch.zeros(1)}, path)
    views = torch.rand(1, 4, 9, 16, 16)
    for source in (path, path.parent):
        loaded = load_lgm(source)
        assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
        torch.testing.assert_close(loaded(views), network(views), atol=0.02, rtol=0.02)
    for name, changed in (
        ("missing", {key: value for key, value in tensors.items() if key != "conv.bias"}),
        ("unknown", tensors | {"extra": torch.zeros(1)}),
        ("shape", tensors | {"unet.conv_out.bias": torch.zeros(13)}),
        ("foreign", {"weight": torch.zeros(3)}),
    ):
        other = tmp_path / f"{name}.safetensors"
        save_file(changed, other)
        with pytest.raises(InputError, match=rf"{name}\.safetensors: not the weights of LGM"):
            load_lgm(other)
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="not readable"):
        load_lgm(tmp_path / "cut.safetensors")
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_lgm(tmp_path / "model.pth")


# ---- the network, written again: one view at a time


def plain_unet(w: dict[str, Tensor], views: list[Tensor], ups: int, downs: int) -> list[Tensor]:
    def norm(name: str, x: Tensor) -> Tensor:
        grouped = x.reshape(32, -1)
        grouped = (grouped - grouped.mean(1, keepdim=True)) / (grouped.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return grouped.reshape(x.shape) * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = w[f"{name}.weight"]
        return F.conv2d(x[None], kernel, w[f"{name}.bias"], stride, kernel.shape[-1] // 2)[0]

    def residual(name: str, x: Tensor) -> Tensor:
        h = conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", x)))
        h = conv(f"{name}.conv2", F.silu(norm(f"{name}.norm2", h)))
        return (h + (conv(f"{name}.shortcut", x) if f"{name}.shortcut.weight" in w else x)) / math.sqrt(2)

    def attend(name: str, x: list[Tensor]) -> list[Tensor]:
        if f"{name}.attn.qkv.weight" not in w:
            return x
        tokens = torch.cat([norm(f"{name}.norm", v).flatten(1).T for v in x])
        q, k, v = (tokens @ w[f"{name}.attn.qkv.weight"].T).chunk(3, 1)
        parts = []
        for a, b, c in zip(q.chunk(16, 1), k.chunk(16, 1), v.chunk(16, 1)):
            weights = (a @ b.T / a.shape[1] ** 0.5).exp()
            parts.append(weights / weights.sum(1, keepdim=True) @ c)
        out = torch.cat(parts, 1) @ w[f"{name}.attn.proj.weight"].T + w[f"{name}.attn.proj.bias"]
        return [(v + o.T.reshape(v.shape)) / math.sqrt(2) for v, o in zip(x, out.chunk(len(x)))]

    x = [conv("conv_in", v) for v in views]
    kept = [x]
    for level in range(downs):
        name = f"down_blocks.{level}"
        for i in range(2):
            x = attend(f"{name}.attns.{i}", [residual(f"{name}.nets.{i}", v) for v in x])
            kept.append(x)
        if level < downs - 1:
            x = [conv(f"{name}.downsample", v, 2) for v in x]
            kept.append(x)
    x = attend("mid_block.attns.0", [residual("mid_block.nets.0", v) for v in x])
    x = [residual("mid_block.nets.1", v) for v in x]
    for level in range(ups):
        name = f"up_blocks.{level}"
        for i in range(3):
            x = [residual(f"{name}.nets.{i}", torch.cat([v, s])) for v, s in zip(x, kept.pop())]
            x = attend(f"{name}.attns.{i}", x)
        if level < ups - 1:
            x = [conv(f"{name}.upsample", v.repeat_interleave(2, 1).repeat_interleave(2, 2)) for v in x]
    return [conv("conv_out", F.silu(norm("norm_out", v))) for v in x]


def test_network_against_plain_implementation() -> None:
    network = tiny_network(1)
    inputs = torch.randn(2, 4, 9, 16, 16, generator=torch.Generator().manual_seed(2))
    found = network(inputs)
    assert found.shape == (2, 4 * 8 * 8, 14)
    w = {key.removeprefix("unet."): value for key, value in network.state_dict().items()}
    for row in range(2):
        maps = plain_unet(w, list(inputs[row]), ups=2, downs=3)
        numbers = [F.conv2d(m[None], w["conv.weight"], w["conv.bias"])[0] for m in maps]
        expected = torch.stack([n[:, y, x] for n in numbers for y in range(8) for x in range(8)])
        torch.testing.assert_close(found[row], expected, atol=2e-5, rtol=1e-4)
    assert found.std() > 0.1


# ---- rays and activations


def test_rays() -> None:
    rays = lgm.pluecker_rays(orbit([0.0, 90.0], 0.0, 1.5, 49.1, 4, 4))
    assert rays.shape == (2, 4, 4, 6)
    # Top right pixel of the front view: 1.5 half-pixels of a picture whose half is 2 pixels and tan(24.55 degrees) wide.
    edge = 0.75 * math.tan(math.radians(49.1 / 2))
    direction = torch.tensor([edge, edge, -1.0]) / math.sqrt(2 * edge**2 + 1)
    moment = torch.tensor([-1.5 * direction[1], 1.5 * direction[0], 0.0])  # (0, 0, 1.5) x d
    torch.testing.assert_close(rays[0, 0, 3], torch.cat([moment, direction]), atol=1e-6, rtol=1e-5)
    # From +X the picture's right is -Z.
    direction = torch.tensor([-1.0, edge, -edge]) / math.sqrt(2 * edge**2 + 1)
    moment = torch.tensor([0.0, -1.5 * direction[2], 1.5 * direction[1]])  # (1.5, 0, 0) x d
    torch.testing.assert_close(rays[1, 0, 3], torch.cat([moment, direction]), atol=1e-6, rtol=1e-5)


def test_activations() -> None:
    raw = torch.tensor([[0.3, -1.7, 2.0, 0.5, -3.0, 0.0, 2.0, 2.0, 0.0, 0.0, 2.0, -0.4, 0.0, 9.0]])
    found = lgm.activated(raw)
    torch.testing.assert_close(found.means, torch.tensor([[0.3, -1.0, 1.0]]))
    torch.testing.assert_close(found.opacities, torch.tensor([1 / (1 + math.exp(-0.5))]))
    scales = [0.1 * math.log(1 + math.exp(x)) for x in (-3.0, 0.0, 2.0)]
    torch.testing.assert_close(found.scales, torch.tensor([scales]))
    torch.testing.assert_close(found.quats, torch.tensor([[0.5**0.5, 0, 0, 0.5**0.5]]))
    torch.testing.assert_close(found.colors, torch.tensor([[0.5 - 0.5 * math.tanh(0.4), 0.5, 1.0]]))


# ---- where a Gaussian lands


def dictated(
    position: tuple[float, float, float], quats: tuple[float, ...] = (1.0, 0, 0, 0), opacity: float = 4.0
) -> Gaussians:
    """What LGM makes of any views when its last layer always says the same: a red rod along its own x axis."""
    network = tiny_network(3, **SMALL)
    raw = [*position, opacity, 0.0, -6.0, -6.0, *quats, 3.0, -3.0, -3.0]
    network.conv.weight.zero_()
    network.conv.bias.copy_(torch.tensor(raw))
    return views_to_gaussians(network, torch.rand(4, 16, 16, 3))


def blob(gaussians: Gaussians, azimuth: float) -> tuple[Tensor, Tensor, Tensor]:
    """Centre (x, y) and extent (x, y) in pixels of what a 64 pixel picture shows, and its colour there."""
    cameras = FRONT.cameras(azimuth).resized(64, 64)
    render = rasterize(gaussians, cameras)
    alpha = render.alpha[0]
    rows, columns = torch.meshgrid(*[torch.arange(64) + 0.5] * 2, indexing="ij")
    places = torch.stack([columns, rows], -1)
    centre = (places * alpha[..., None]).sum((0, 1)) / alpha.sum()
    extent = (((places - centre) ** 2 * alpha[..., None]).sum((0, 1)) / alpha.sum()).sqrt()
    return centre, extent, (render.color[0] / alpha[..., None].clamp_min(1e-8))[alpha > 0.5].mean(0)


def test_gaussians_land_where_the_world_says() -> None:
    x, y, z = 0.3, 0.2, 0.25
    gaussians = dictated((x, y, z))
    assert torch.equal(gaussians.means.unique(dim=0), torch.tensor([[x, y, z]]))
    focal = 32 / math.tan(math.radians(49.1 / 2))
    # Seen from the front (+Z): +X is right, +Y is up. From azimuth 90 (+X): +Z is left.
    for azimuth, right, depth in ((0.0, x, 1.5 - z), (90.0, -z, 1.5 - x), (180.0, -x, 1.5 + z), (270.0, z, 1.5 + x)):
        centre, extent, colour = blob(gaussians, azimuth)
        expected = torch.tensor([32 + focal * right / depth, 32 - focal * y / depth])
        torch.testing.assert_close(centre, expected, atol=0.25, rtol=0)
        assert colour[0] > 0.9 and colour[1:].max() < 0.1
        # The rod lies along the world's X.
        assert (extent[0] > 2 * extent[1]) == (azimuth in (0.0, 180.0))


def test_rotations_are_wxyz() -> None:
    half = math.radians(30) / 2
    # Thirty degrees about +Z, seen from the front: the rod's right end rises.
    gaussians = dictated((0.0, 0.0, 0.0), (math.cos(half), 0.0, 0.0, math.sin(half)))
    alpha = rasterize(gaussians, FRONT.cameras(0.0).resized(64, 64)).alpha[0]
    rows, columns = torch.meshgrid(*[torch.arange(64) - 31.5] * 2, indexing="ij")
    slope = (alpha * rows * columns).sum() / (alpha * columns**2).sum()
    assert slope.item() == pytest.approx(-math.tan(math.radians(30)), abs=0.08)


def test_faint_gaussians_are_left_out() -> None:
    assert len(dictated((0.0, 0.0, 0.0), opacity=math.log(0.006 / 0.994))) == 4 * 32 * 32
    with pytest.raises(InputError, match="every Gaussian is transparent"):
        dictated((0.0, 0.0, 0.0), opacity=math.log(0.004 / 0.996))
    with pytest.raises(InputError, match="4 views"):
        views_to_gaussians(tiny_network(), torch.rand(3, 16, 16, 3))


# ---- from a picture, from a text


def test_image_to_gaussians(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from test_mvdream import TINY_IMAGE, write_folder

    from anchor4d.core.priors.load import load_prior

    imagedream = load_prior(write_folder(tmp_path / "imagedream", TINY_IMAGE)).with_settings(resolution=(16, 16))
    network, picture = tiny_network(4, **SMALL), torch.zeros(40, 60, 4)
    picture[10:25, 5:35] = torch.tensor([0.2, 0.7, 0.1, 1.0])
    steps: list[tuple[int, int]] = []

    def watch(step: int, total: int, preview: Callable[[], Tensor | None]) -> None:
        steps.append((step, total))

    found = image_to_gaussians(network, imagedream, picture, seed=3, steps=3, progress=watch)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert found.front == FRONT and found.views.shape == (4, 16, 16, 3)
    assert 0 < len(found.gaussians) <= 4 * 32 * 32 and found.gaussians.opacities.min() >= 0.005
    assert found.gaussians.means.abs().max() <= 1
    again = image_to_gaussians(network, imagedream, picture, seed=3, steps=3)
    assert all(torch.equal(a, b) for a, b in zip(found.gaussians.tensors().values(), again.gaussians.tensors().values()))
    other = image_to_gaussians(network, imagedream, picture, seed=4, steps=3)
    assert not torch.equal(found.views, other.views)
    with pytest.raises(InputError, match="picture: no foreground"):
        image_to_gaussians(network, imagedream, torch.zeros(40, 60, 4), steps=1)
    for wrong in (picture[None], picture / 0):
        with pytest.raises(InputError, match="picture: give finite numbers"):
            image_to_gaussians(network, imagedream, wrong, steps=1)


class Discs(ExactPrior):
    """Knows one text: a disc off the centre of every view, its grey telling the azimuth."""

    conditions = frozenset({"text", "cameras"})

    def __init__(self) -> None:
        super().__init__(self.pictures_of, 48)

    def pictures_of(self, views: Viewpoints, taus: Tensor) -> Tensor:
        rows, columns = torch.meshgrid(*[torch.arange(48.0)] * 2, indexing="ij")
        inside = ((rows - 20) ** 2 + (columns - 28) ** 2 < 100).float()
        grey = (views.azimuth % 360 / 500)[..., None, None]
        return (1 - inside + inside * grey)[..., None].expand(*views.azimuth.shape, 48, 48, 3)


def test_text_to_gaussians() -> None:
    found = text_to_gaussians(tiny_network(4, **SMALL), Discs(), "a disc", steps=10, guidance=1.0)
    assert found.views.shape == (4, 256, 256, 3) and len(found.gaussians) > 0
    for view, azimuth in zip(found.views, (0, 90, 180, 270)):
        # Centred, four fifths of the picture, on white.
        dark = view.mean(-1) < 0.8
        rows, columns = (dark.any(dim).nonzero()[:, 0] for dim in (1, 0))
        assert rows[-1] - rows[0] == pytest.approx(0.8 * 256, abs=12) and rows[0] + rows[-1] == pytest.approx(255, abs=12)
        assert columns[-1] - columns[0] == pytest.approx(0.8 * 256, abs=12)
        assert view[128, 128].mean().item() == pytest.approx(azimuth / 500, abs=0.05)
        assert torch.equal(view[:4], torch.ones(4, 256, 3))
