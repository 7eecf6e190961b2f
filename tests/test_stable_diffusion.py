"""Stable Diffusion priors against the equations computed directly, and against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_models as tiny

from anchor4d.core.files import InputError
from anchor4d.core.priors import Distillation, load_prior
from anchor4d.core.priors.stable_diffusion import StableDiffusion, StableDiffusionXL

NOISY = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
TIMES = torch.tensor([0.2, 0.7])
STEPS = torch.tensor([200, 700])


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_stable_diffusion(tmp_path_factory.mktemp("sd") / "sd15")


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_stable_diffusion_xl(tmp_path_factory.mktemp("sd") / "sdxl")


def ids(text: str, length: int = 16) -> Tensor:
    """CLIP's tokens of lower-case words without merges: start, each letter (the last of a word marked), end, padding."""
    body = [ord(c) - 97 + 26 * (i == len(word) - 1) for word in text.split() for i, c in enumerate(word)]
    tokens = [52, *body[: length - 2], 53]
    return torch.tensor([tokens + [53] * (length - len(tokens))])


@torch.no_grad()
def test_epsilon_prediction_is_the_equation(sd: Path) -> None:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    prior = load_prior(sd)
    assert type(prior) is StableDiffusion and prior.resolution == (16, 16) and prior.conditions == {"text"}
    condition = prior.condition(text=["a cat", "red dog"], negative="ugly")
    predicted = prior.predict(NOISY, TIMES, condition)
    unet, encoder = UNet2DConditionModel.from_pretrained(sd / "unet"), CLIPTextModel.from_pretrained(sd / "text_encoder")
    states = torch.cat([encoder(ids(text)).last_hidden_state for text in ("a cat", "red dog", "ugly")])
    for part, hidden in ((predicted.conditional, states[:2]), (predicted.unconditional, states[2:].expand(2, -1, -1))):
        wanted = unet(NOISY[:, 0], STEPS, encoder_hidden_states=hidden).sample[:, None]
        torch.testing.assert_close(part, wanted, rtol=1e-4, atol=1e-5)
    # Without a negative text: the empty one.
    empty = prior.condition(text="a cat").negative
    assert empty is not None
    torch.testing.assert_close(empty["text"], encoder(ids("")).last_hidden_state, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_v_prediction_is_turned_into_noise(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    folder = tiny.write_stable_diffusion(tmp_path / "sd21", "v_prediction", use_linear_projection=True)
    prior = load_prior(folder)
    assert prior.schedule.kind == "v"
    predicted = prior.predict(NOISY, TIMES, prior.condition(text="a cat"), unconditional=False)
    assert predicted.unconditional is None
    hidden = CLIPTextModel.from_pretrained(folder / "text_encoder")(ids("a cat")).last_hidden_state
    v = UNet2DConditionModel.from_pretrained(folder / "unet")(
        NOISY[:, 0], STEPS, encoder_hidden_states=hidden.expand(2, -1, -1)
    ).sample[:, None]
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()
    abar = torch.cumprod(1 - betas, 0)[STEPS].reshape(2, 1, 1, 1, 1)
    torch.testing.assert_close(predicted.conditional, abar.sqrt() * v + (1 - abar).sqrt() * NOISY, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_xl_prediction_is_the_equation(xl: Path) -> None:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    prior = load_prior(xl)
    assert type(prior) is StableDiffusionXL
    predicted = prior.predict(NOISY, TIMES, prior.condition(text="a cat", negative=["ugly"]))
    first = CLIPTextModel.from_pretrained(xl / "text_encoder")
    second = CLIPTextModelWithProjection.from_pretrained(xl / "text_encoder_2")
    unet = UNet2DConditionModel.from_pretrained(xl / "unet")
    for part, text in ((predicted.conditional, "a cat"), (predicted.unconditional, "ugly")):
        a, b = (encoder(ids(text), output_hidden_states=True) for encoder in (first, second))
        hidden = torch.cat([a.hidden_states[-2], b.hidden_states[-2]], -1).expand(2, -1, -1)
        more = {
            "text_embeds": b.text_embeds.expand(2, -1),
            "time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]]).expand(2, -1),
        }
        wanted = unet(NOISY[:, 0], STEPS, encoder_hidden_states=hidden, added_cond_kwargs=more).sample[:, None]
        torch.testing.assert_close(part, wanted, rtol=1e-4, atol=1e-5)
    dropped = prior.condition(text="a cat").negative
    assert dropped is not None and not dropped["text"].any() and not dropped["pooled"].any()


@torch.no_grad()
def test_conditions_are_the_pipelines(sd: Path, xl: Path, tmp_path: Path) -> None:
    """diffusers' own pipelines make the same of texts, with XL's rule for an absent negative text."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    pipe: Any = StableDiffusionPipeline.from_pretrained(sd, safety_checker=None, **_parts(sd))
    positive, negative = pipe.encode_prompt("a red dog", "cpu", 1, True, "blue")
    condition = load_prior(sd).condition(text="a red dog", negative="blue")
    torch.testing.assert_close(condition.positive["text"], positive)
    assert condition.negative is not None
    torch.testing.assert_close(condition.negative["text"], negative)
    for folder in (xl, tiny.write_stable_diffusion_xl(tmp_path / "xl", zeros=False)):
        pipe = StableDiffusionXLPipeline.from_pretrained(folder, **_parts(folder))
        pipe.register_to_config(force_zeros_for_empty_prompt=folder == xl)
        made = pipe.encode_prompt("a red dog", device="cpu", do_classifier_free_guidance=True)
        condition = load_prior(folder).condition(text="a red dog")
        assert condition.negative is not None
        for wanted, given in zip(
            made,
            (
                condition.positive["text"],
                condition.negative["text"],
                condition.positive["pooled"],
                condition.negative["pooled"],
            ),
        ):
            torch.testing.assert_close(given, wanted)


def _parts(folder: Path) -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet"),
        "vae": AutoencoderKL.from_pretrained(folder / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "scheduler": tiny.scheduler(),
        "feature_extractor": None,
    }
    if (folder / "text_encoder_2").is_dir():
        parts["text_encoder_2"] = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
        parts["tokenizer_2"] = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
    return parts


def test_texts_are_encoded_once(sd: Path) -> None:
    """After a text was encoded its encoder is not asked again, wherever it is."""
    prior = load_prior(sd)
    assert isinstance(prior, StableDiffusion)
    calls: list[int] = []
    prior.modules["text_encoder"].register_forward_hook(lambda *_: calls.append(1))
    first = prior.condition(text="a cat", negative="ugly")
    prior.rest_text_encoders()
    again = prior.condition(text=["a cat", "a cat"], negative="ugly")
    assert len(calls) == 2
    torch.testing.assert_close(again.positive["text"], first.positive["text"].expand(2, -1, -1))
    prior.condition(text="a dog", negative="ugly")
    assert len(calls) == 3


def test_distillation_moves_the_picture_only(sd: Path) -> None:
    prior = load_prior(sd)
    images = torch.rand(2, 1, 20, 20, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    loss = Distillation(prior, form="csd")(images, prior.condition(text="a cat", negative="ugly"), 0.5, torch.Generator())
    loss.backward()
    assert images.grad is not None and torch.isfinite(images.grad).all() and images.grad.abs().max() > 0
    assert not any(p.requires_grad for module in prior.modules.values() for p in module.parameters())


def test_bad_input_is_named(sd: Path, xl: Path, tmp_path: Path) -> None:
    prior = load_prior(sd)
    with pytest.raises(InputError, match="needs a text"):
        prior.condition()
    with pytest.raises(InputError, match="image-conditioned prior"):
        prior.condition(torch.zeros(1, 16, 16, 3), "a cat")
    with pytest.raises(InputError, match="2 negative texts for 3 texts"):
        prior.condition(text=["a", "b", "c"], negative=["d", "e"])
    with pytest.raises(
        InputError, match=r"an image-conditioned Zero123 needs the folders image_encoder, clip_camera_projection"
    ):
        load_prior(sd, kind="zero123")
    with pytest.raises(InputError, match=r"needs the folders text_encoder_2, tokenizer_2"):
        load_prior(sd, kind="stable-diffusion-xl")
    inpainting = tiny.write_stable_diffusion(tmp_path / "inpainting", in_channels=9)
    with pytest.raises(InputError, match="takes 9 channels"):
        load_prior(inpainting, kind="stable-diffusion")
    with pytest.raises(InputError, match="not a kind of prior"):
        load_prior(inpainting)


def test_long_texts_are_cut_with_a_word(sd: Path, caplog: pytest.LogCaptureFixture) -> None:
    prior = load_prior(sd)
    with caplog.at_level("WARNING"):
        condition = prior.condition(text="a very long description of a cat")
    assert "longer than 16 tokens" in caplog.text
    assert condition.positive["text"].shape == (1, 16, 12)


def test_the_published_layouts_are_accounted_for() -> None:
    """At the public configurations: counts and shapes that the public checkpoints have."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    wide = {"block_out_channels": (320, 640, 1280, 1280)}
    with torch.device("meta"):
        first = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8, **wide)
        second = UNet2DConditionModel(
            sample_size=96, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True, **wide
        )
        third = UNet2DConditionModel(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            cross_attention_dim=2048,
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    for model, parameters, tensors in (
        (first, 859_520_964, 686),
        (second, 865_910_724, 686),
        (third, 2_567_463_684, 1680),
        (vae, 83_653_863, 248),
    ):
        state = model.state_dict()
        assert (sum(v.numel() for v in state.values()), len(state)) == (parameters, tensors)
    assert third.state_dict()["add_embedding.linear_1.weight"].shape == (1280, 2816)
    assert second.state_dict()["down_blocks.0.attentions.0.proj_in.weight"].shape == (320, 320)
