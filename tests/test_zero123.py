"""Zero123 against a straightforward implementation of its equations on the same networks, and distillation through it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_models as tiny

from anchor4d.core.cameras import orbit
from anchor4d.core.files import InputError
from anchor4d.core.priors import Condition, Distillation, Viewpoints, load_prior
from anchor4d.core.priors.distill import UniformWindow
from anchor4d.core.priors.pictures import recentred
from anchor4d.core.priors.zero123 import StableZero123, Zero123

SIDE = tiny.FACTOR * tiny.CELLS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_zero123(tmp_path_factory.mktemp("priors") / "zero123-tiny")


@pytest.fixture(scope="module")
def prior(folder: Path) -> Zero123:
    loaded = load_prior(folder)
    assert type(loaded) is Zero123
    return loaded


def pictures(count: int, size: int = SIDE, channels: int = 3, seed: int = 0) -> Tensor:
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (size, size), mode="bilinear").movedim(1, -1)


def views(count: int) -> Viewpoints:
    azimuth = torch.linspace(-170, 100, count)
    cameras = orbit(azimuth, torch.linspace(-20, 40, count), torch.linspace(1.5, 2.2, count))
    return Viewpoints.of(cameras, orbit(15.0, 10.0, 1.8))


def by_hand(folder: Path, image: Tensor, noisy: Tensor, step: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    """Noise with and without the condition, from Zero-1-to-3's description, one sample at a time."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import load_file
    from transformers import CLIPVisionModelWithProjection

    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    tower = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")
    layer = load_file(folder / "clip_camera_projection" / "diffusion_pytorch_model.safetensors")
    mean, std = torch.tensor([0.5, 0.45, 0.4]), torch.tensor([0.3, 0.25, 0.2])
    outputs: list[list[Tensor]] = [[], []]
    with torch.no_grad():
        for i in range(len(noisy)):
            picture = image[i % len(image)]
            moments = vae.quant_conv(vae.encoder((picture * 2 - 1).permute(2, 0, 1)[None]))
            latent = moments[:, :4]
            large = F.interpolate(picture.permute(2, 0, 1)[None], (28, 28), mode="bicubic", antialias=True).clamp(0, 1)
            clip = (large - mean[:, None, None]) / std[:, None, None]
            embedding = tower.visual_projection(tower.vision_model(clip).pooler_output)[0]
            token = layer["proj.weight"] @ torch.cat([embedding, T[i]]) + layer["proj.bias"]
            for known, out in ((1.0, outputs[0]), (0.0, outputs[1])):
                entry = torch.cat([noisy[i], known * latent], 1)
                out.append(unet(entry, step[i], encoder_hidden_states=known * token[None, None]).sample)
    return torch.stack(outputs[0]), torch.stack(outputs[1])


def test_prediction_is_the_equation(folder: Path, prior: Zero123) -> None:
    seen = views(3)
    image, noisy, t = (
        pictures(1),
        torch.randn(3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
        torch.tensor([0.1, 0.5, 0.9]),
    )
    predicted = prior.predict(noisy, t, prior.condition(image), seen)
    T = torch.stack(
        [
            torch.tensor(
                [
                    math.radians(10.0 - float(e)),
                    math.sin(math.radians(float(a) - 15.0)),
                    math.cos(math.radians(float(a) - 15.0)),
                    float(d) - 1.8,
                ]
            )
            for a, e, d in zip(seen.azimuth[:, 0], seen.elevation[:, 0], seen.distance[:, 0])
        ]
    )
    conditional, unconditional = by_hand(folder, image, noisy, torch.tensor([100, 500, 900]), T)
    torch.testing.assert_close(predicted.conditional, conditional, rtol=1e-4, atol=1e-5)
    assert predicted.unconditional is not None
    torch.testing.assert_close(predicted.unconditional, unconditional, rtol=1e-4, atol=1e-5)
    assert (conditional - unconditional).abs().max() > 1e-2 * conditional.abs().max()
    apart = prior.with_settings(one_pass=False).predict(noisy, t, prior.condition(image), seen)
    torch.testing.assert_close(apart.conditional, predicted.conditional, rtol=1e-5, atol=1e-6)


def test_camera_vector(folder: Path, prior: Zero123) -> None:
    same = Viewpoints.of(orbit(30.0, 20.0, 1.7), orbit(30.0, 20.0, 1.7))
    torch.testing.assert_close(prior.camera(same), torch.tensor([[0.0, 0.0, 1.0, 0.0]]), atol=1e-6, rtol=0)
    # From the front to the right and 30 degrees lower, 0.2 nearer: polar angle +30 degrees.
    moved = Viewpoints.of(orbit(90.0, -30.0, 1.6), orbit(0.0, 0.0, 1.8))
    torch.testing.assert_close(prior.camera(moved), torch.tensor([[math.pi / 6, 1.0, 0.0, -0.2]]), atol=1e-5, rtol=0)
    for slot4, value in (("zero", 0.0), ("absolute", 1.6), ("polar", math.pi / 2)):
        assert float(prior.with_settings(slot4=slot4).camera(moved)[0, 3]) == pytest.approx(value, abs=1e-5)  # pyright: ignore[reportAttributeAccessIssue]
    above = Viewpoints.of(orbit(0.0, 0.0, 1.6), orbit(0.0, 25.0, 1.8))
    stable = load_prior(folder, kind="stable-zero123")
    assert isinstance(stable, StableZero123) and stable.slot4 == "polar"
    assert float(stable.camera(above)[0, 3]) == pytest.approx(math.radians(65), abs=1e-5)


def test_stable_zero123_is_told_by_its_name(tmp_path: Path) -> None:
    assert type(load_prior(tiny.write_zero123(tmp_path / "a", pipeline="StableZero123Pipeline"))) is StableZero123
    named = tiny.write_zero123(tmp_path / "stable-zero123-diffusers")
    assert type(load_prior(named)) is StableZero123
    assert type(load_prior(named, kind="zero123")) is Zero123
    hub = tmp_path / "models--someone--stable-zero123" / "snapshots" / "0123abc"
    assert load_prior(tiny.write_zero123(hub)).name == "stable-zero123"
    # The published Zero123 pipelines' own class has "Stable" in its name.
    plain = tiny.write_zero123(tmp_path / "weights", pipeline="Zero1to3StableDiffusionPipeline")
    assert type(load_prior(plain)) is Zero123


def test_condition_needs_a_picture_and_takes_no_text(prior: Zero123) -> None:
    with pytest.raises(InputError, match="needs a condition picture"):
        prior.condition()
    with pytest.raises(InputError, match="not on text"):
        prior.condition(pictures(1), text="a dog")
    with pytest.raises(InputError, match="condition picture"):
        prior.condition(pictures(1)[0])
    noisy = torch.zeros(1, *prior.latent_shape())
    with pytest.raises(InputError, match="viewpoints"):
        prior.predict(noisy, torch.tensor([0.5]), prior.condition(pictures(1)))
    with pytest.raises(InputError, match="viewpoint of the condition picture"):
        prior.predict(noisy, torch.tensor([0.5]), prior.condition(pictures(1)), Viewpoints.of(orbit(0.0)))
    with pytest.raises(InputError, match="NaN"):
        prior.predict(noisy / 0, torch.tensor([0.5]), prior.condition(pictures(1)), views(1))


def test_condition_pads_and_composites(prior: Zero123) -> None:
    """A wide RGBA picture is the same as its composite on white in the middle of a white square."""
    wide = pictures(1, 2 * SIDE, 4)[:, : SIDE + 4]
    alpha = wide[..., 3:]
    square = torch.ones(1, 2 * SIDE, 2 * SIDE, 3)
    top = (SIDE - 4) // 2
    square[:, top : top + SIDE + 4] = wide[..., :3] * alpha + 1 - alpha
    given, wanted = prior.condition(wide), prior.condition(square)
    for key in given.positive:
        torch.testing.assert_close(given.positive[key], wanted.positive[key])


def test_resolution(prior: Zero123) -> None:
    """The UNet's cells times the VAE's factor, 256 at most."""
    assert prior.resolution == (16, 16) and prior.latent_shape() == (1, 4, 8, 8)
    parts = prior.modules
    for cells, side in ((16, 32), (32, 64), (256, 256)):
        net = tiny.unet(in_channels=8, sample_size=cells)
        made = Zero123("sized", net, parts["vae"], parts["image_encoder"], parts["projection"], prior.schedule)
        assert made.resolution == (side, side)


def test_conditions_of_several_batches_join(prior: Zero123) -> None:
    """The unconditional part, kept once for any batch, gets a row for each."""
    parts = [prior.condition(pictures(count, seed=count)) for count in (2, 3)]
    both = Condition.cat(parts)
    noisy, t, seen = torch.randn(5, 1, 4, 8, 8), torch.full((5,), 0.4), views(5)
    whole = prior.predict(noisy, t, both, seen)
    rows = [slice(0, 2), slice(2, 5)]
    apart = [prior.predict(noisy[r], t[r], c, seen.map(lambda v, r=r: v[r] if len(v) > 1 else v)) for r, c in zip(rows, parts)]
    torch.testing.assert_close(whole.conditional, torch.cat([p.conditional for p in apart]), rtol=1e-4, atol=1e-5)
    assert whole.unconditional is not None and all(p.unconditional is not None for p in apart)
    torch.testing.assert_close(
        whole.unconditional, torch.cat([p.unconditional for p in apart if p.unconditional is not None]), rtol=1e-4, atol=1e-5
    )


def test_recentred() -> None:
    image = torch.zeros(40, 60, 4)
    image[5:15, 50:58] = torch.tensor([0.2, 0.5, 0.9, 1.0])
    result = recentred(image)
    assert result.shape == (60, 60, 4)
    rows, columns = ((result[..., 3] > 0.5).any(dim).nonzero()[:, 0] for dim in (1, 0))
    assert len(rows) == 48 and len(columns) in (38, 39)
    assert abs(float(rows.float().mean()) - 29.5) <= 0.5 and abs(float(columns.float().mean()) - 29.5) <= 0.5
    solid = result[result[..., 3] > 0.1]
    torch.testing.assert_close(solid[:, :3], torch.tensor([0.2, 0.5, 0.9]).expand(len(solid), 3), atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="alpha is empty"):
        recentred(torch.zeros(4, 4, 4))
    with pytest.raises(InputError, match="RGBA"):
        recentred(torch.zeros(4, 4, 3))


def distilled(distillation: Distillation, images: Tensor, condition: Condition, seen: Viewpoints) -> Tensor:
    images = images.clone().requires_grad_(True)
    loss = distillation(images, condition, 0.3, torch.Generator().manual_seed(5), seen)
    loss.backward()
    assert images.grad is not None
    return images.grad


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_distillation_gradient(tmp_path: Path, prediction: str) -> None:
    """w(t) (eps_hat - eps) dz/dx by autograd through the VAE, whole, micro-batched, and encoded a few at a time."""
    prior = load_prior(tiny.write_zero123(tmp_path / "zero123", prediction))
    images, seen, condition = pictures(3, seed=2)[:, None], views(3), prior.condition(pictures(1, seed=3))
    policy = UniformWindow()
    whole = Distillation(prior, time=policy, guidance=3.0, weight=lambda rho: 2.0)
    generator = torch.Generator().manual_seed(5)
    t = policy(0.3, 3, generator)
    noise = torch.randn(3, 1, 4, 8, 8, generator=generator)

    vae: Any = prior.modules["vae"]
    schedule = tiny.scheduler(prediction)
    abar = schedule.alphas_cumprod[(t * 1000).round().long()].reshape(3, 1, 1, 1, 1)
    pixels = images.clone().requires_grad_(True)
    moments = vae.quant_conv(vae.encoder(pixels[:, 0].permute(0, 3, 1, 2) * 2 - 1))
    latents = moments[:, None, :4] * 0.18215
    noisy = (abar.sqrt() * latents + (1 - abar).sqrt() * noise).detach()
    T = prior.camera(seen)  # pyright: ignore[reportAttributeAccessIssue]
    outputs = by_hand(tmp_path / "zero123", pictures(1, seed=3), noisy, (t * 1000).round().long(), T)
    conditional, unconditional = (
        abar.sqrt() * output + (1 - abar).sqrt() * noisy if prediction == "v_prediction" else output for output in outputs
    )
    estimate = unconditional + 3.0 * (conditional - unconditional)
    (expected,) = torch.autograd.grad(latents, pixels, 2.0 * (1 - abar) * (estimate - noise))

    assert expected.abs().max() > 1e-4
    scale = float(expected.abs().max())
    gradient = distilled(whole, images, condition, seen)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * scale)
    for settings in ({"micro_batch": 1}, {"micro_batch": 2}, {"encode_batch": 1}, {"micro_batch": 2, "encode_batch": 1}):
        apart = Distillation(prior, time=policy, guidance=3.0, weight=lambda rho: 2.0, **settings)
        torch.testing.assert_close(distilled(apart, images, condition, seen), expected, rtol=1e-4, atol=1e-5 * scale)
    parameters = [p for module in prior.modules.values() for p in module.parameters()]
    assert len(parameters) > 100
    assert not any(p.requires_grad or p.grad is not None for p in parameters)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_changes_the_gradient_little(folder: Path, prior: Zero123, precision: Any) -> None:
    half = load_prior(folder, precision=precision)
    assert next(half.modules["vae"].parameters()).dtype == torch.bfloat16
    images, seen = pictures(2)[:, None], views(2)
    full, less = (distilled(Distillation(p), images, p.condition(pictures(1)), seen) for p in (prior, half))
    assert torch.cosine_similarity(full.flatten(), less.flatten(), 0) > 0.999


def test_small_encoder_stands_in(tmp_path: Path) -> None:
    """Its latents are the UNet's as they come; pictures go in as the VAE's would."""
    folder = tiny.write_zero123(tmp_path / "zero123")
    tiny.small_encoder().save_pretrained(tmp_path / "small")
    prior = load_prior(folder, small_encoder=tmp_path / "small")
    small: Any = prior.small_encoder
    images = pictures(2)[:, None].requires_grad_(True)
    latents = prior.encode(images)
    # TAESD's own convention: pictures in [0, 1] through its layers, nothing scaled.
    expected = small.encoder.layers(images.detach()[:, 0].permute(0, 3, 1, 2))
    torch.testing.assert_close(latents[:, 0], expected)
    (gradient,) = torch.autograd.grad(latents.square().sum(), images)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
    assert not any(p.requires_grad for p in small.parameters())
    assert prior.latent_shape() == (1, 4, 8, 8)
    assert "encoder" in repr(prior) and repr(prior) != repr(load_prior(folder))
    # The condition keeps the VAE's latent, which is not scaled.
    plain, with_small = load_prior(folder).condition(pictures(1)), prior.condition(pictures(1))
    torch.testing.assert_close(plain.positive["latent"], with_small.positive["latent"])
    tiny.small_encoder(latent_channels=8).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="8 channels"):
        load_prior(folder, small_encoder=tmp_path / "other")


def test_real_pictures(prior: Zero123) -> None:
    """The four pictures of ANCHOR4D_INPUTS through the encoders."""
    inputs = os.environ.get("ANCHOR4D_INPUTS")
    if not inputs:
        pytest.skip("set ANCHOR4D_INPUTS to a folder of *_rgba.png pictures")
    import numpy as np
    from PIL import Image

    files = sorted(Path(inputs).glob("*_rgba.png"))
    assert len(files) >= 4
    conditions = []
    for file in files:
        rgba = torch.from_numpy(np.array(Image.open(file).convert("RGBA"))).float()[None] / 255
        condition = prior.condition(rgba)
        on_white = prior.condition(rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:])
        on_black = prior.condition(rgba[..., :3] * rgba[..., 3:])
        assert condition.positive["clip"].shape == (1, 12) and condition.positive["latent"].shape == (1, 4, 8, 8)
        for key in ("clip", "latent"):
            assert torch.isfinite(condition.positive[key]).all()
            torch.testing.assert_close(condition.positive[key], on_white.positive[key])
        assert (condition.positive["latent"] - on_black.positive["latent"]).abs().max() > 1e-2
        conditions.append(condition)
        centred = prior.condition(recentred(rgba[0])[None])
        assert torch.isfinite(centred.positive["clip"]).all()
    for i, a in enumerate(conditions):
        for b in conditions[:i]:
            for key in ("clip", "latent"):
                assert (a.positive[key] - b.positive[key]).abs().max() > 1e-3


def test_the_published_layout_is_accounted_for() -> None:
    """At the public configuration: keys, shapes and counts that the public checkpoints have."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from anchor4d.core.priors.zero123 import CameraProjection, CCProjection

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=32, in_channels=8, cross_attention_dim=768, attention_head_dim=8)
        tower = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                image_size=224, patch_size=14, projection_dim=768,
            )
        )  # fmt: skip
        projection = CameraProjection.from_config({"embedding_dim": 768, "additional_embeddings": 4})
        other = CCProjection.from_config({})
    state = unet.state_dict()
    # Stable Diffusion 1's 859,520,964 parameters and four more input channels of conv_in.
    assert sum(v.numel() for v in state.values()) == 859_520_964 + 4 * 320 * 9 and len(state) == 686
    assert state["conv_in.weight"].shape == (320, 8, 3, 3)
    assert state["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape == (320, 768)
    keys = tower.state_dict()
    assert keys["visual_projection.weight"].shape == (768, 1024)
    assert keys["vision_model.embeddings.position_embedding.weight"].shape == (257, 1024)
    assert sum(v.numel() for v in keys.values()) == 303_966_208
    assert {k: tuple(v.shape) for k, v in projection.state_dict().items()} == {"proj.weight": (768, 772), "proj.bias": (768,)}
    assert {k: tuple(v.shape) for k, v in other.state_dict().items()} == {
        "projection.weight": (768, 772),
        "projection.bias": (768,),
    }
