"""Group norms of channels-last activations and the layout around them: on the CPU through the host shim, and on a card."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anchor4d.core.priors import norms
from anchor4d.core.render.nvrtc import compiler

shim = pytest.importorskip("kernel_shim")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
#: Of one rounding to a type, relative.
UNIT = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@pytest.fixture(params=[pytest.param("cpu", marks=shim.needs_compiler), pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The card, or the CPU with the kernels compiled for it."""
    if request.param == "cpu":
        monkeypatch.setattr(norms, "load", shim.load)
        monkeypatch.setattr(norms, "available", lambda device, dtype: dtype in norms.KINDS)
    elif not torch.cuda.is_available():
        pytest.skip("no CUDA or ROCm device")
    else:
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # layouts are compared in float32
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    return request.param


@pytest.fixture
def launches(place: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are launched, as they are."""
    names: list[str] = []
    load = norms.load

    class Counted:
        def __init__(self, module: Any) -> None:
            self.module = module

        def launch(self, kernel: str, *args: Any) -> None:
            names.append(kernel)
            self.module.launch(kernel, *args)

    monkeypatch.setattr(norms, "load", lambda *args: Counted(load(*args)))
    return names


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_norm(groups: int, channels: int, dtype: torch.dtype = torch.float32) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, channels, eps=1e-6).requires_grad_(False)
    norm.weight.copy_(1 + 0.3 * normal(channels, seed=1))
    norm.bias.copy_(0.3 * normal(channels, seed=2))
    return norm.to(dtype)


def definition(x: Tensor, norm: nn.GroupNorm, silu: bool, shift: Tensor | None) -> Tensor:
    """In double precision."""
    x = x.double() if shift is None else x.double() + shift.double()[..., None, None]
    y = F.group_norm(x, norm.num_groups, norm.weight.double(), norm.bias.double(), norm.eps)
    return F.silu(y) if silu else y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("groups", "shape", "silu", "shifted"),
    [
        (32, (2, 64, 12, 11), True, True),  # two channels a group: a vector holds several
        (32, (1, 32, 5, 7), False, False),  # one
        (8, (3, 40, 9, 4), True, False),  # five: vectors cross groups
        (32, (2, 512, 4, 5), True, True),
        (4, (2, 12, 13, 3), True, True),  # no vectors of 16 bits
        (32, (1, 2560, 2, 2), False, True),  # more channels than a block takes of float32
        (8, (1, 32, 40, 33), True, False),  # many chunks
    ],
)
def test_norms_are_the_definitions(
    place: str, launches: list[str], dtype: torch.dtype, groups: int, shape: tuple[int, ...], silu: bool, shifted: bool
) -> None:
    norm = random_norm(groups, shape[1], dtype)
    x = (0.5 + normal(*shape)).to(dtype).requires_grad_()
    shift = normal(shape[0], shape[1], seed=4).to(dtype) if shifted else None
    wanted = normal(*shape, seed=5).to(dtype)
    expected = definition(x, norm, silu, shift)
    (expected_gradient,) = torch.autograd.grad(expected, x, wanted.double())

    there = x.detach().to(place, memory_format=torch.channels_last).requires_grad_()
    norm = norm.to(place)
    found = norms.group_norm(there, norm, silu=silu, shift=None if shift is None else shift.to(place))
    (gradient,) = torch.autograd.grad(found, there, wanted.to(place))
    found, expected = found.detach(), expected.detach()
    assert launches == ["norm_sums", "norm_apply", "norm_backward_sums", "norm_backward_apply"]
    for result, right in ((found, expected), (gradient, expected_gradient)):
        assert result.dtype == dtype and result.is_contiguous(memory_format=torch.channels_last)
        error = (result.cpu().double() - right).abs()
        assert bool((error <= UNIT[dtype] * right.abs() + 4e-6 * float(right.abs().max())).all())
    again = norms.group_norm(there, norm, silu=silu, shift=None if shift is None else shift.to(place))
    assert torch.equal(again, found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bits_are_read_and_rounded_as_pytorch_does(place: str, dtype: torch.dtype) -> None:
    every = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype)
    x = torch.stack([every, every.roll(12345), every.roll(1)]).reshape(3, 65536, 1, 1)
    x, y = x[:2].to(place), x[1:].to(place)
    found = norms.residual_sum(x, y, torch.zeros(65536, dtype=dtype, device=place)).cpu()
    expected = (x.float() + y.float()).to(dtype).cpu()
    numbers = ~expected.isnan()
    assert torch.equal(found[numbers], expected[numbers])
    assert bool(found[~numbers].isnan().all())


def test_a_large_mean_beside_a_small_variance_costs_no_more_than_pytorch(place: str) -> None:
    x = (300 + 0.05 * normal(2, 32, 24, 20)).float()
    norm = random_norm(8, 32)
    expected = definition(x, norm, False, None)
    usual = (F.group_norm(x, 8, norm.weight, norm.bias, norm.eps) - expected).abs().max()
    there = x.to(place, memory_format=torch.channels_last)
    error = (norms.group_norm(there, norm.to(place)).cpu() - expected).abs().max()
    assert float(error) <= 1.5 * max(float(usual), 300 * 2.0**-24 / 0.05)


def test_a_samples_norm_does_not_depend_on_its_batch(place: str) -> None:
    x = normal(5, 64, 20, 20).float().to(place, memory_format=torch.channels_last)
    norm = random_norm(32, 64).to(place)
    whole = norms.group_norm(x, norm, silu=True)
    assert torch.equal(whole[3:4], norms.group_norm(x[3:4], norm, silu=True))


def test_tokens_are_normalised_where_they_lie(place: str, launches: list[str]) -> None:
    tokens, norm = normal(2, 30, 32).float(), random_norm(8, 32)
    expected = F.group_norm(tokens.transpose(1, 2), 8, norm.weight, norm.bias, norm.eps)
    found = norms.group_norm(tokens.to(place).transpose(1, 2), norm.to(place))
    assert launches and found.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)])
def test_gradients_beside_a_norm_are_added(place: str, launches: list[str], used: tuple[bool, bool]) -> None:
    norm, x = random_norm(8, 24), normal(2, 24, 6, 5).float().requires_grad_()
    wanted = [normal(2, 24, 6, 5, seed=s).float() for s in (5, 6)]
    outputs = [F.silu(F.group_norm(x, 8, norm.weight, norm.bias, norm.eps)), x * 1]
    expected = sum(torch.autograd.grad(o, x, w)[0] for o, w, u in zip(outputs, wanted, used) if u)
    there = x.detach().to(place, memory_format=torch.channels_last).requires_grad_()
    outputs = norms.group_norm_beside(there, norm.to(place), silu=True)
    chosen = [(o, w.to(place)) for o, w, u in zip(outputs, wanted, used) if u]
    (found,) = torch.autograd.grad([o for o, _ in chosen], there, [w for _, w in chosen])
    assert launches.count("norm_backward_apply") == used[0]
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_residuals_add_up(place: str, launches: list[str], scale: float) -> None:
    x, y = (normal(2, 24, 5, 3, seed=s).float().to(place, memory_format=torch.channels_last).requires_grad_() for s in (0, 1))
    bias = normal(24, seed=2).float().to(place)
    found = norms.residual_sum(x, y, bias, scale)
    torch.testing.assert_close(found, (x + y + bias[:, None, None]) * scale)
    assert launches == ["residual_sum"] and found.is_contiguous(memory_format=torch.channels_last)
    wanted = normal(2, 24, 5, 3, seed=3).float().to(place)
    for gradient in torch.autograd.grad(found, (x, y), wanted):
        torch.testing.assert_close(gradient, scale * wanted)


def test_what_does_not_fit_goes_through_pytorch(place: str, launches: list[str]) -> None:
    norm, x = random_norm(4, 16).to(place), normal(2, 16, 6, 6).float().to(place)
    rows, pixels = x, x.to(memory_format=torch.channels_last)
    expected = F.silu(F.group_norm(x, 4, norm.weight, norm.bias, norm.eps))
    assert torch.equal(norms.group_norm(rows, norm, silu=True), expected)
    many = random_norm(256, 512).to(place)
    wide = normal(1, 512, 2, 2).float().to(place, memory_format=torch.channels_last)
    torch.testing.assert_close(norms.group_norm(wide, many), F.group_norm(wide, 256, many.weight, many.bias, many.eps))
    norm.requires_grad_()
    leaves = [pixels.requires_grad_(), *norm.parameters()]
    found = norms.group_norm(pixels, norm, silu=True)
    torch.testing.assert_close(found, expected)
    usual = F.silu(F.group_norm(leaves[0].contiguous(), 4, *leaves[1:], norm.eps))
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (found, usual)), strict=True):
        torch.testing.assert_close(a, b)
    assert not launches
    with pytest.raises(RuntimeError, match="16"):
        norms.group_norm(normal(1, 8, 2, 2).float().to(place, memory_format=torch.channels_last), norm.requires_grad_(False))


# --- networks -----------------------------------------------------------------------------------------------------------


def usual_unet(**settings: Any) -> Any:
    import tiny_models

    return tiny_models.unet(**settings).requires_grad_(False)


def ran(module: Any, function: Any, *inputs: Tensor) -> list[Tensor]:
    """A network's output and its gradient by the first input."""
    first = inputs[0].clone().requires_grad_()
    output = function(module, first, *inputs[1:])
    wanted = normal(*output.shape, seed=9).to(output)
    return [output.detach(), *torch.autograd.grad(output, first, wanted)]


@pytest.mark.parametrize("linear", [False, True])
def test_a_unet_laid_out_channels_last_computes_the_same(place: str, launches: list[str], linear: bool) -> None:
    from anchor4d.core.priors.layout import exchange_layers

    def predicted(unet: Any, noisy: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        return unet(noisy, time, encoder_hidden_states=tokens).sample

    unet = usual_unet(use_linear_projection=linear).to(place)
    inputs = [x.float().to(place) for x in (normal(2, 4, 8, 8), normal(2).abs(), normal(2, 1, 12, seed=3))]
    expected, names = ran(unet, predicted, *inputs), list(unet.state_dict())
    assert not launches
    exchange_layers(unet)
    found = ran(unet, predicted, *inputs)
    counts = {name: launches.count(name) for name in set(launches)}
    assert list(unet.state_dict()) == names
    blocks = sum(type(part).__name__ == "Residual" for part in unet.modules())
    others = sum(type(part).__name__ in ("Norm", "NormSiLU") for part in unet.modules())
    assert counts["residual_sum"] == blocks > 0
    assert counts["norm_apply"] == counts["norm_backward_apply"] == others > 2 * blocks
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5 * float(b.abs().max()))
    exchange_layers(unet)
    assert torch.equal(ran(unet, predicted, *inputs)[0], found[0])


def test_an_encoder_laid_out_channels_last_computes_the_same(place: str, launches: list[str]) -> None:
    import tiny_models

    from anchor4d.core.priors.layout import exchange_layers

    def encoded(vae: Any, pixels: Tensor) -> Tensor:
        return vae.decode(vae.encode(pixels).latent_dist.mode()).sample

    vae = tiny_models.vae().requires_grad_(False).to(place)
    pixels = normal(2, 3, 16, 16).float().to(place)
    expected = ran(vae, encoded, pixels)
    exchange_layers(vae)
    found = ran(vae, encoded, pixels)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5 * float(b.abs().max()))
    assert launches.count("norm_apply") == sum(isinstance(part, nn.GroupNorm) for part in vae.modules())


def test_the_multiview_network_laid_out_channels_last_computes_the_same(place: str, launches: list[str]) -> None:
    from anchor4d.core.priors.layout import Layers, exchange_layers

    block = nn.Sequential(nn.GroupNorm(4, 16), nn.SiLU(), nn.Identity(), nn.Conv2d(16, 8, 3, padding=1), nn.SiLU())
    block = block.requires_grad_(False).to(place)
    x = normal(2, 16, 6, 5).float().to(place)
    expected = block(x)
    exchange_layers(block)
    assert type(block) is Layers
    found = block(x.to(memory_format=torch.channels_last))
    assert launches == ["norm_sums", "norm_apply"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_large_batches_are_upsampled_where_they_lie(place: str) -> None:
    from diffusers.models.upsampling import Upsample2D

    from anchor4d.core.priors.layout import exchange_layers

    layer = nn.Sequential(Upsample2D(4, use_conv=True)).requires_grad_(False).to(place)
    x = normal(64, 4, 3, 5).float().to(place)
    expected, seen = layer(x), []
    exchange_layers(layer)
    layer[0].conv.register_forward_pre_hook(lambda module, inputs: seen.append(norms.channels_last(inputs[0])))  # pyright: ignore[reportAttributeAccessIssue]
    for count in (64, 2):
        torch.testing.assert_close(layer(x[:count].to(memory_format=torch.channels_last)), expected[:count])
    assert seen == [True, True]


def test_on_the_cpu_layers_compute_what_they_did_bit_for_bit() -> None:
    from anchor4d.core.priors.layout import Norm, arrange, exchange_layers

    unet = usual_unet()
    inputs = normal(2, 4, 8, 8).float(), torch.tensor([3.0, 700.0]), normal(2, 1, 12, seed=3).float()
    expected, weights = unet(*inputs).sample, {k: v.clone() for k, v in unet.state_dict().items()}
    arrange(unet)
    assert not any(isinstance(part, Norm) for part in unet.modules())
    exchange_layers(unet)
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    copied = copy.deepcopy(unet)
    for network in (unet, copied):
        arrange(network)  # as a prior does that comes back from a card
        assert network.conv_in.weight.is_contiguous()
        assert torch.equal(network(*inputs).sample, expected)
        state = network.state_dict()
        assert list(state) == list(weights) and all(torch.equal(state[k], v) for k, v in weights.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card")
def test_a_prior_on_a_card_computes_the_same_and_comes_back_as_it_was() -> None:
    from anchor4d.core.priors.layout import Norm
    from anchor4d.core.priors.load import load_prior

    plain, prior = load_prior("tiny", precision="fp16"), load_prior("tiny", device="cuda", precision="fp16")
    arranged = torch.version.hip is None and torch.cuda.get_device_capability() >= (7, 0)
    assert any(isinstance(part, Norm) for part in prior.modules["unet"].modules()) == arranged
    pictures = torch.rand(2, 1, *prior.resolution, 3, generator=torch.Generator().manual_seed(0))
    expected = plain.encode(pictures)
    torch.testing.assert_close(prior.encode(pictures.cuda()).cpu(), expected, rtol=0.0, atol=0.06)
    assert torch.equal(prior.to("cpu").encode(pictures), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_norms_are_captured_in_graphs(dtype: torch.dtype) -> None:
    norm = random_norm(32, 128, dtype).cuda()
    x = normal(2, 128, 32, 32).to("cuda", dtype).to(memory_format=torch.channels_last)
    expected = norms.group_norm(x, norm, silu=True)
    graph, held = torch.cuda.CUDAGraph(), torch.zeros_like(x)
    with torch.cuda.graph(graph):
        found = norms.group_norm(held, norm, silu=True)
    held.copy_(x)
    graph.replay()
    assert torch.equal(found, expected)


def has_nvrtc() -> bool:
    try:
        return torch.version.hip is None and compiler.compiler_version() > (0, 0)
    except compiler.CompilerError:
        return False


@pytest.mark.skipif(not has_nvrtc(), reason="no NVRTC, install nvidia-cuda-nvrtc")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vectors_of_every_type_compile_for_old_and_new_architectures(dtype: torch.dtype) -> None:
    options = norms._options(dtype, norms.VECTOR // dtype.itemsize)
    for target in [f"sm_{x}" for x in (75, 90) if x in compiler._supported()]:
        assert compiler.compile_source(norms.SOURCE, target, options)[:4] == b"\x7fELF"
