"""Zero123++: reference attention, latent bookkeeping, views and sampling, with the real classes at tiny random sizes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anchor4d.core.cameras import spherical
from anchor4d.core.files import InputError
from anchor4d.core.priors.base import Viewpoints

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from anchor4d.core.generate.multiview import multiview_images, sample_views
from anchor4d.core.priors.distill import Distillation
from anchor4d.core.priors.load import load_prior
from anchor4d.core.priors.pictures import recentred
from anchor4d.core.priors.zero123plus import ReferenceAttention, Zero123Plus

WIDTH = 32
RAMP = [0.003, *(0.2 + 0.1 * i for i in range(1, 8))]
# As published (sudo-ai/zero123plus-v1.2), at the Stable Diffusion 2 size.
UNET: dict[str, Any] = {
    "act_fn": "silu", "attention_head_dim": [5, 10, 20, 20], "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1024, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "use_linear_projection": True,
}  # fmt: skip


def write_folder(folder: Path, ramp: list[float]) -> Path:
    """A folder in the published layout with random weights."""
    torch.manual_seed(0)
    UNet2DConditionModel(
        **{
            **UNET,
            "attention_head_dim": [2, 4],
            "block_out_channels": [32, 64],
            "cross_attention_dim": WIDTH,
            "layers_per_block": 1,
            "norm_num_groups": 16,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        }
    ).save_pretrained(folder / "unet")
    vae: dict[str, Any] = {"block_out_channels": (16, 16), "norm_num_groups": 8, "layers_per_block": 1}
    blocks: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(**vae, **blocks).save_pretrained(folder / "vae")
    text = CLIPTextConfig(
        vocab_size=4, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=len(ramp), projection_dim=8, eos_token_id=2, bos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        projection_dim=WIDTH,
    )  # fmt: skip
    CLIPVisionModelWithProjection(vision).save_pretrained(folder / "vision_encoder")
    EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear", prediction_type="v_prediction", steps_offset=1
    ).save_pretrained(folder / "scheduler")
    for name, side, mean, std, resample in (("vae", 24, 0.5, 0.8, 2), ("clip", 28, [0.48, 0.46, 0.41], [0.27, 0.26, 0.28], 3)):
        config = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}, "image_mean": mean}
        config |= {"image_std": std, "resample": resample, "image_processor_type": "CLIPImageProcessor"}
        sub = folder / f"feature_extractor_{name}"
        sub.mkdir(parents=True)
        (sub / "preprocessor_config.json").write_text(json.dumps(config))
    tokens = folder / "tokenizer"
    tokens.mkdir()
    vocabulary = {"!": 0, "<|startoftext|>": 1, "<|endoftext|>": 2, "a</w>": 3}
    (tokens / "vocab.json").write_text(json.dumps(vocabulary))
    (tokens / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "!"}
    (tokens / "tokenizer_config.json").write_text(
        json.dumps({**special, "model_max_length": len(ramp), "tokenizer_class": "CLIPTokenizer"})
    )
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Zero123PlusPipeline", "ramping_coefficients": ramp}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("zero123plus"), RAMP)


@pytest.fixture(scope="module")
def prior(folder: Path) -> Zero123Plus:
    loaded = load_prior(folder)
    assert isinstance(loaded, Zero123Plus)
    return loaded.with_settings(resolution=(16, 16))  # pyright: ignore[reportReturnType]


def picture(batch: int = 1, seed: int = 1, side: int = 40) -> Tensor:
    return torch.rand(batch, side, side, 3, generator=torch.Generator().manual_seed(seed))


def unet_by_hand(folder: Path, sample: Tensor, time: int, tokens: Tensor, reference: Tensor, fusion: float = 0.0) -> Tensor:
    """The published scheme on a fresh UNet with its own processors: hooks record and replace what self-attentions see."""
    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    layers = {n: m for n, m in unet.named_modules() if n.endswith("attn1")}
    stored: dict[str, Tensor] = {}

    def record(name: str):
        return lambda _, args, kwargs: stored.__setitem__(name, args[0])

    def extended(name: str):
        def run(module: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            x = args[0]
            seen = torch.cat([(1 - fusion) * x + fusion * x[:1].expand_as(x), stored[name]], 1)
            q, k, v = (
                t.unflatten(-1, (module.heads, -1)).transpose(1, 2)
                for t in (module.to_q(x), module.to_k(seen), module.to_v(seen))
            )
            weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
            return module.to_out[0]((weights @ v).transpose(1, 2).flatten(2))

        return run

    with torch.no_grad():
        hooks = [m.register_forward_pre_hook(record(n), with_kwargs=True) for n, m in layers.items()]
        unet(reference, time, tokens)
        for hook in hooks:
            hook.remove()
        assert len(stored) == len(layers) > 3
        for name, module in layers.items():
            module.register_forward_hook(extended(name), with_kwargs=True)
        return unet(sample, time, tokens).sample


def tile(latents: Tensor) -> Tensor:  # (B, 6, c, h, w) -> (B, c, 3 h, 2 w)
    rows = [torch.cat([latents[:, 2 * r], latents[:, 2 * r + 1]], -1) for r in range(3)]
    return torch.cat(rows, -2)


def untile(sheet: Tensor) -> Tensor:
    return torch.stack([part for row in sheet.chunk(3, -2) for part in row.chunk(2, -1)], 1)


def noised_reference(prior: Zero123Plus, clean: Tensor, step: int, seed: int) -> Tensor:
    noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(seed * 1000 + step))
    betas = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)[step].float()
    return abar.sqrt() * clean + (1 - abar).sqrt() * noise


def test_condition_is_the_ramped_embedding_and_the_unscaled_latent(prior: Zero123Plus, folder: Path) -> None:
    image = picture(2)
    condition = prior.condition(image=image)
    text = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    with torch.no_grad():
        empty = text(torch.tensor([[1, 2] + [0] * (len(RAMP) - 2)]))[0]
        nchw = image.permute(0, 3, 1, 2)
        small = F.interpolate(nchw, (28, 28), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(c).reshape(1, 3, 1, 1) for c in ([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]))
        vision: Any = CLIPVisionModelWithProjection.from_pretrained(folder / "vision_encoder").eval()
        embedding = vision((small - mean) / std).image_embeds
        vae: Any = AutoencoderKL.from_pretrained(folder / "vae").eval()
        pixels = ((F.interpolate(nchw, (24, 24), mode="bilinear", antialias=True) - 0.5) / 0.8).contiguous()
        latent = vae.encode(pixels).latent_dist.mean
        gray = vae.encode(torch.zeros(1, 3, 24, 24)).latent_dist.mean
    torch.testing.assert_close(condition.positive["tokens"], empty + torch.tensor(RAMP)[:, None] * embedding[:, None])
    torch.testing.assert_close(condition.positive["reference"], latent)
    assert condition.negative is not None
    torch.testing.assert_close(condition.negative["tokens"], empty)
    torch.testing.assert_close(condition.negative["reference"], gray)


@pytest.mark.parametrize("one_pass", [True, False])
def test_prediction_is_the_two_pass_scheme(prior: Zero123Plus, folder: Path, one_pass: bool) -> None:
    model: Any = prior.with_settings(one_pass=one_pass)
    condition = model.condition(image=picture(2))
    latents = torch.randn(2, *model.latent_shape(), generator=torch.Generator().manual_seed(3))
    step = 640
    prediction = model.predict(latents, torch.full((2,), step / 1000), condition)
    abar = torch.cumprod(1 - torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64), 0)[step].float()
    for seed, inputs, got in (
        (0, condition.positive, prediction.conditional),
        (1, condition.negative, prediction.unconditional),
    ):
        reference = noised_reference(model, inputs["reference"].expand(2, -1, -1, -1)[:1], step, seed)
        others = noised_reference(model, inputs["reference"].expand(2, -1, -1, -1)[1:], step, seed)
        output = unet_by_hand(folder, tile(latents), step, inputs["tokens"].expand(2, -1, -1), torch.cat([reference, others]))
        expected = abar.sqrt() * untile(output) + (1 - abar).sqrt() * latents
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_reference_matters_and_equal_calls_agree(prior: Zero123Plus) -> None:
    latents = torch.randn(1, *prior.latent_shape(), generator=torch.Generator().manual_seed(3))
    t = torch.tensor([0.5])
    first, again = (prior.predict(latents, t, prior.condition(image=picture())).conditional for _ in range(2))
    assert torch.equal(first, again)
    condition = prior.condition(image=picture())
    darker = type(condition)({**condition.positive, "reference": condition.positive["reference"] + 1}, condition.negative)
    assert (prior.predict(latents, t, darker).conditional - first).abs().max() > 1e-3
    reseeded: Any = prior.with_settings(seed=1)
    assert (reseeded.predict(latents, t, reseeded.condition(image=picture())).conditional - first).abs().max() > 1e-4


def test_batched_equals_one_by_one(prior: Zero123Plus) -> None:
    latents = torch.randn(3, *prior.latent_shape(), generator=torch.Generator().manual_seed(3))
    t, condition = torch.tensor([0.2, 0.5, 0.9]), prior.condition(image=picture(3))
    whole = prior.predict(latents, t, condition).guided(4.0)
    parts = [prior.predict(latents[i : i + 1], t[i : i + 1], condition[i : i + 1]).guided(4.0) for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-4, atol=1e-5)


def test_fusion_with_the_first_frame(prior: Zero123Plus, folder: Path) -> None:
    latents = torch.randn(1, *prior.latent_shape(), generator=torch.Generator().manual_seed(3)).expand(2, -1, -1, -1, -1)
    t, step = torch.full((2,), 0.4), 400
    condition = prior.condition(image=picture(2))
    plain = prior.predict(latents, t, condition)
    assert torch.equal(prior.predict(latents, t, prior.fused(condition, 0.0)).conditional, plain.conditional)
    both = prior.predict(latents, t, prior.fused(condition, 0.5))
    split: Any = prior.with_settings(one_pass=False)
    apart = split.predict(latents, t, prior.fused(condition, 0.5))
    torch.testing.assert_close(both.conditional, apart.conditional, rtol=1e-4, atol=1e-5)
    # The first frame against itself is unchanged, and so is everything without the condition.
    torch.testing.assert_close(both.conditional[0], plain.conditional[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.unconditional, plain.unconditional, rtol=1e-4, atol=1e-5)
    assert (both.conditional[1] - plain.conditional[1]).abs().max() > 1e-4
    reference = noised_reference(prior, condition.positive["reference"], step, 0)
    noise = torch.randn(reference.shape[1:], generator=torch.Generator().manual_seed(step))
    assert torch.allclose(reference[0] - reference[1], (reference - noise).diff(dim=0)[0].neg(), atol=1e-5)
    output = unet_by_hand(folder, tile(latents), step, condition.positive["tokens"], reference, fusion=0.5)
    abar = torch.cumprod(1 - torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64), 0)[step].float()
    torch.testing.assert_close(
        both.conditional, abar.sqrt() * untile(output) + (1 - abar).sqrt() * latents, rtol=1e-4, atol=1e-5
    )


def test_latent_bookkeeping_and_its_inverse(prior: Zero123Plus) -> None:
    vae: Any = prior.modules["vae"]
    images = torch.rand(1, 6, 16, 16, 3, generator=torch.Generator().manual_seed(2))
    sheet = tile(images.permute(0, 1, 4, 2, 3))
    with torch.no_grad():
        scaled = vae.encode((sheet - 0.5) / 0.8).latent_dist.mean * vae.config.scaling_factor
    latents = prior.encode(images)
    assert latents.shape[1:] == prior.latent_shape() == (6, 4, 8, 8)
    torch.testing.assert_close(tile(latents), (scaled - 0.22) * 0.75)
    with torch.no_grad():
        pixels = vae.decode((tile(latents) / 0.75 + 0.22) / vae.config.scaling_factor).sample
    expected = untile((pixels.clamp(-1, 1) / 0.5 * 0.8 / 2 + 0.5).clamp(0, 1)).permute(0, 1, 3, 4, 2)
    torch.testing.assert_close(prior.decode(latents), expected)


def test_distillation_reaches_the_pictures(prior: Zero123Plus) -> None:
    images = torch.rand(1, 6, 16, 16, 3, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    loss = Distillation(prior)(images, prior.condition(image=picture()), 0.5, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(loss, images)
    assert gradient.isfinite().all() and (gradient.flatten(2).abs().amax(2) > 0).all()
    assert all(p.grad is None for m in prior.modules.values() for p in m.parameters())


def test_views_are_the_published_ones(prior: Zero123Plus) -> None:
    assert prior.version == "1.2"
    azimuth, elevation, distance = spherical(prior.cameras(azimuth=10))
    torch.testing.assert_close(azimuth % 360, torch.tensor([40.0, 100, 160, 220, 280, 340]))
    torch.testing.assert_close(elevation, torch.tensor([20.0, -10] * 3))
    torch.testing.assert_close(distance, torch.full((6,), 0.5 / math.tan(math.pi / 12)))
    older: Any = prior.with_settings(version="1.1")
    _, elevation, distance = spherical(older.cameras(fill=0.8))
    torch.testing.assert_close(elevation, torch.tensor([30.0, -20] * 3))
    cameras = older.cameras(fill=0.8)
    # A unit length across the optical axis takes the share `fill` of the picture.
    torch.testing.assert_close(cameras.K[:, 0, 0] / distance / cameras.width, torch.full((6,), 0.8))
    assert math.isclose(2 * math.degrees(math.atan(0.5 * cameras.height / float(cameras.K[0, 1, 1]))), 49.134, abs_tol=1e-3)


def test_other_views_are_refused(prior: Zero123Plus) -> None:
    latents = torch.zeros(1, *prior.latent_shape())
    condition, t = prior.condition(image=picture()), torch.tensor([0.5])
    own = Viewpoints.of(prior.cameras(azimuth=77).reshape(1, 6), prior.cameras(azimuth=47)[:1])
    assert prior.predict(latents, t, condition, own).conditional.shape == latents.shape
    with pytest.raises(InputError, match="six views are fixed"):
        prior.predict(latents, t, condition, Viewpoints.of(prior.cameras(azimuth=1.5).reshape(1, 6)))
    with pytest.raises(InputError, match="no text"):
        prior.condition(image=picture(), text="a fox")


def sampled_by_hand(prior: Zero123Plus, condition: Any, steps: int, guidance: float, seed: int) -> Tensor:
    """Euler-ancestral sampling of a v-prediction model written out, in the variance-exploding frame."""
    generator = torch.Generator().manual_seed(seed)
    abar = torch.cumprod(1 - torch.linspace(0.00085, 0.012, 1000, dtype=torch.float32), 0)
    times = [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]
    sigmas = [*(float(((1 - abar[t]) / abar[t]) ** 0.5) for t in times), 0.0]
    x = torch.randn(1, *prior.latent_shape(), generator=generator) * sigmas[0]
    for index, time in enumerate(times):
        sigma, after = sigmas[index], sigmas[index + 1]
        z = x / math.sqrt(1 + sigma**2)
        eps = prior.predict(z, torch.tensor([time / 1000]), condition).guided(guidance)
        clean = x - sigma * eps
        up = math.sqrt(after**2 * (sigma**2 - after**2) / sigma**2)
        down = math.sqrt(after**2 - up**2)
        x = x + (x - clean) / sigma * (down - sigma) + up * torch.randn(x.shape, generator=generator)
    return prior.decode(x)


def test_sampling(prior: Zero123Plus) -> None:
    condition = prior.condition(image=picture())
    seen: list[tuple[int, int]] = []

    def progress(step: int, total: int, preview: Any) -> None:
        seen.append((step, total))
        assert preview().shape == (6, 16, 16, 3)

    got = sample_views(prior, condition, steps=4, guidance=4.0, seed=5, progress=progress)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    torch.testing.assert_close(got, sampled_by_hand(prior, condition, 4, 4.0, 5), rtol=1e-3, atol=1e-3)
    # Equal samples of a batch get equal pictures: the noise is shared.
    pair = sample_views(prior, prior.condition(image=picture().expand(2, -1, -1, -1)), steps=2, seed=5)
    torch.testing.assert_close(pair[0], pair[1], rtol=1e-4, atol=1e-5)


def test_generator_recentres_and_returns_cameras(folder: Path, prior: Zero123Plus) -> None:
    image = torch.zeros(60, 90, 4)
    image[10:30, 50:80] = torch.tensor([0.9, 0.2, 0.1, 1.0])
    pictures, cameras = multiview_images(prior, image, steps=2, seed=1)
    assert pictures.shape == (6, 16, 16, 3) and len(cameras) == 6
    moved = torch.roll(image, (20, -40), (0, 1))
    torch.testing.assert_close(multiview_images(prior, moved, steps=2, seed=1)[0], pictures)
    assert not torch.equal(multiview_images(prior, image, steps=2, seed=2)[0], pictures)

    def interrupt(step: int, total: int, preview: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        multiview_images(prior, image, steps=2, progress=interrupt)


def test_real_pictures_through_the_encoders(prior: Zero123Plus) -> None:
    """The four pictures of ANCHOR4D_INPUTS, recentred, through the VAE and the CLIP tower."""
    inputs = os.environ.get("ANCHOR4D_INPUTS")
    if not inputs:
        pytest.skip("set ANCHOR4D_INPUTS to a folder of *_rgba.png pictures")
    found = []
    for path in sorted(Path(inputs).glob("*_rgba.png")):
        image = torch.from_numpy(np.array(Image.open(path).convert("RGBA"))).float() / 255
        condition = prior.condition(image=recentred(image)[None])
        assert all(torch.isfinite(v).all() for v in condition.positive.values())
        found.append(condition.positive)
    assert len(found) == 4
    for i, a in enumerate(found):
        assert all((a[k] - b[k]).abs().max() > 1e-3 for b in found[:i] for k in ("tokens", "reference"))


def test_v1_1_is_told_by_its_ramp(tmp_path: Path) -> None:
    older = load_prior(write_folder(tmp_path / "any name", [0.0, *RAMP[1:]]))
    assert isinstance(older, Zero123Plus) and older.version == "1.1" and older.elevations[:2] == (30, -20)


def test_names_that_older_libraries_wrote(tmp_path: Path, prior: Zero123Plus) -> None:
    """v1.1 was saved by diffusers 0.17 and a transformers that kept position ids."""
    folder = write_folder(tmp_path / "old", RAMP)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for file, rename in (
        ("vae/diffusion_pytorch_model", lambda k: next((k.replace(n, o) for n, o in old.items() if n in k), k)),
        ("text_encoder/model", lambda k: k if k.startswith("text_model.") else f"text_model.{k}"),
    ):
        path = folder / f"{file}.safetensors"
        tensors = {rename(k): v for k, v in load_file(path).items()}
        if "text" in file:
            tensors["text_model.embeddings.position_ids"] = torch.arange(len(RAMP))[None]
        save_file(tensors, path)
    assert "encoder.mid_block.attentions.0.query.weight" in load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    loaded: Any = load_prior(folder)
    assert torch.equal(loaded.empty, prior.empty)
    for mine, theirs in zip(loaded.modules["vae"].parameters(), prior.modules["vae"].parameters()):
        assert torch.equal(mine, theirs)


def test_wrong_folders(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "short", RAMP[:-1])
    (folder / "model_index.json").write_text(json.dumps({"ramping_coefficients": RAMP}))
    with pytest.raises(InputError, match="8 ramping_coefficients, expected 7"):
        load_prior(folder)
    (folder / "model_index.json").write_text(json.dumps({"ramping_coefficients": RAMP[:-1]}))
    (folder / "vision_encoder" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="vision_encoder: no weights"):
        load_prior(folder)


def test_pictures_are_padded_with_the_background(prior: Zero123Plus) -> None:
    wide = torch.rand(1, 10, 24, 4, generator=torch.Generator().manual_seed(1))
    padded = torch.full((1, 24, 24, 3), 127 / 255)
    padded[:, 7:17] = wide[..., :3] * wide[..., 3:] + (1 - wide[..., 3:]) * 127 / 255
    got, expected = prior.condition(image=wide).positive, prior.condition(image=padded).positive
    torch.testing.assert_close(got["reference"], expected["reference"])
    torch.testing.assert_close(got["tokens"], expected["tokens"])


def test_published_shapes() -> None:
    """Parameter counts of the published networks, and keys with their shapes (model card and file listing of v1.2)."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
        vision = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14,
                image_size=224, projection_dim=1024, hidden_act="gelu",
            )
        )  # fmt: skip
        text = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, vocab_size=49408,
                hidden_act="gelu",
            )
        )  # fmt: skip
    counts = [sum(p.numel() for p in m.parameters()) for m in (unet, vision, text)]
    assert counts == [865_910_724, 632_076_800, 340_387_840]
    shapes = {k: tuple(v.shape) for k, v in unet.state_dict().items()}
    assert len(shapes) == 686
    assert shapes["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight"] == (320, 320)
    assert shapes["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"] == (320, 1024)
    assert shapes["mid_block.attentions.0.proj_in.weight"] == (1280, 1280)
    # The processors of our own add no keys.
    unet.set_attn_processor({name: ReferenceAttention(name) for name in unet.attn_processors})
    assert {k: tuple(v.shape) for k, v in unet.state_dict().items()} == shapes
