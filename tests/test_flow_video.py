"""Wan and LTX priors: against their own pipelines and schedulers, and against their networks called by hand."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_models as models
import tiny_videos as tiny

from anchor4d.core.files import InputError
from anchor4d.core.priors import Distillation, Prior, load_prior
from anchor4d.core.priors.checkpoints import Checkpoint
from anchor4d.core.priors.distill import UniformWindow
from anchor4d.core.priors.flow_video import LTXPrior, WanPrior
from anchor4d.core.priors.text_to_video import MOTIONLESS

SIDE, PICTURES = 16, 9
PROMPT, AGAINST = "a walking  bear", "no motion"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from diffusers import LTXConditionPipeline

    base = tmp_path_factory.mktemp("video")
    return {
        "wan": tiny.write_wan(base / "Wan2.1-T2V-tiny"),
        "experts": tiny.write_wan(base / "Wan2.2-T2V-tiny", two=True),
        "tokens": tiny.write_wan(
            base / "Wan2.2-TI2V-tiny",
            # As the 5B's: pixels folded into channels first, residual downsampling, a time a token.
            dict(is_residual=True, patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=8),
            expand_timesteps=True,
        ),
        "ltx": tiny.write_ltx(base / "LTX-Video-tiny"),
        "causal": tiny.write_ltx(base / "LTX-Video-0.9.7-tiny", LTXConditionPipeline),
    }


@pytest.fixture(scope="module")
def priors(folders: dict[str, Path]) -> dict[str, Prior]:
    return {name: load_prior(path).with_settings(resolution=(SIDE, SIDE), pictures=PICTURES) for name, path in folders.items()}


ALL = ["wan", "experts", "tokens", "ltx", "causal"]
PIPELINES = {"wan": "WanPipeline", "experts": "WanPipeline", "tokens": "WanPipeline", "ltx": "LTXPipeline"}


def clips(count: int, seed: int = 0, side: int = SIDE) -> Tensor:
    return torch.rand(count, PICTURES, side, side, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ALL)
def test_prediction_is_what_the_pipeline_asks_its_network(name, folders, priors):
    """The pipeline's own calls, at its own times, are reproduced: text, time, frame rate, packing and order."""
    import diffusers

    pipeline = getattr(diffusers, PIPELINES.get(name, "LTXConditionPipeline")).from_pretrained(folders[name])
    pipeline.set_progress_bar_config(disable=True)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def record(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        seen.append((kwargs["hidden_states"], kwargs["timestep"], output[0]))

    for network in filter(None, (pipeline.transformer, getattr(pipeline, "transformer_2", None))):
        network.register_forward_hook(record, with_kwargs=True)
    side = 32  # the least that LTX's pipelines accept
    ltx, prior = isinstance(priors[name], LTXPrior), priors[name].with_settings(resolution=(side, side))
    told: dict[str, Any] = {"frame_rate": 8} if ltx else {}
    told |= dict(height=side, width=side, num_frames=PICTURES, num_inference_steps=4, output_type="latent")
    pipeline(prompt=PROMPT, negative_prompt=AGAINST, **told)
    condition = prior.condition(text=PROMPT, negative=AGAINST, fps=8 if ltx else None)
    frames, channels, height, width = prior.latent_shape()

    def unpacked(x: Tensor) -> Tensor:
        if not ltx:
            return x.movedim(1, 2)
        return x.reshape(len(x), frames, height, width, channels).permute(0, 1, 4, 2, 3)

    if ltx:  # one call of two rows, the first without the condition
        calls = [(z[1:], t[1:], out[1:], out[:1]) for z, t, out in seen]
    else:
        calls = [(*seen[i], seen[i + 1][2]) for i in range(0, len(seen), 2)]
    assert len(calls) == 4
    for latents, time, positive, negative in calls:
        predicted = prior.predict(unpacked(latents), time.reshape(-1)[:1] / 1000, condition)
        assert torch.allclose(predicted.conditional, unpacked(positive), atol=1e-5)
        assert torch.allclose(predicted.unconditional, unpacked(negative), atol=1e-5)
        assert (positive - negative).abs().max() > 1e-5


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_velocity_points_from_the_clip_to_the_noise(name, folders, priors):
    """The model's own scheduler, told the velocity n - x throughout, turns the noise n into the clip x."""
    scheduler, schedule = Checkpoint(folders[name]).scheduler(), priors[name].schedule
    assert (schedule.kind, schedule.steps) == ("flow", 1000)
    clean, noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(6, **({"mu": 1.0} if name == "ltx" else {}))
    assert torch.allclose(schedule.model_time(scheduler.sigmas[:-1]), scheduler.timesteps.float(), atol=1.0)
    sample = schedule.add_noise(clean, noise, scheduler.sigmas[:1])
    for time in scheduler.timesteps:
        sample = scheduler.step(schedule.target(clean, noise), time, sample).prev_sample
    assert torch.allclose(sample, clean, atol=1e-4)
    middle = torch.tensor([0.4])
    assert torch.allclose(schedule.clean(noise - clean, schedule.add_noise(clean, noise, middle), middle), clean, atol=1e-6)


def test_wan_by_hand(folders, priors):
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5EncoderModel

    folder, prior = folders["wan"], priors["wan"]
    vae = AutoencoderKLWan.from_pretrained(folder / "vae")
    mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    images = clips(2)
    with torch.no_grad():
        moments = vae.encode(images[1:].permute(0, 4, 1, 2, 3) * 2 - 1).latent_dist.mean
    latents = (moments - mean.reshape(1, -1, 1, 1, 1)) / std.reshape(1, -1, 1, 1, 1)
    assert torch.allclose(prior.encode(images)[1], latents[0].movedim(0, 1), atol=1e-5)
    assert prior.decode(prior.encode(images)).shape == images.shape

    # Letters are tokens from 4 on, a space before each word is 3, the end is 1; nothing after the end.
    ids = [i for word in PROMPT.split() for i in (3, *(ord(c) - 93 for c in word))] + [1]
    text = torch.zeros(1, 512, 12)
    with torch.no_grad():
        text[0, : len(ids)] = UMT5EncoderModel.from_pretrained(folder / "text_encoder")(torch.tensor([ids])).last_hidden_state[
            0
        ]
        network = WanTransformer3DModel.from_pretrained(folder / "transformer")
        noisy = torch.randn(1, *prior.latent_shape(), generator=torch.Generator().manual_seed(2))
        expected = network(noisy.movedim(1, 2), torch.tensor([370.0]), text).sample.movedim(2, 1)
    predicted = prior.predict(noisy, torch.tensor([0.37]), prior.condition(text=PROMPT), unconditional=False)
    assert torch.allclose(predicted.conditional, expected, atol=1e-5)


def test_ltx_by_hand(folders, priors):
    from diffusers import AutoencoderKLLTXVideo

    vae, prior, images = AutoencoderKLLTXVideo.from_pretrained(folders["ltx"] / "vae"), priors["ltx"], clips(1)
    with torch.no_grad():
        mode = vae.encode(images.permute(0, 4, 1, 2, 3) * 2 - 1).latent_dist.mode()
    # tiny_videos sets the statistics of every channel to 0.1 and 0.7, and the scaling factor to 0.9.
    assert torch.allclose(prior.encode(images), ((mode - 0.1) / 0.7 * 0.9).movedim(2, 1), atol=1e-5)
    with torch.no_grad():
        decoded = vae.decode(mode).sample.permute(0, 2, 3, 4, 1) / 2 + 0.5
    assert torch.allclose(prior.decode(prior.encode(images)), decoded.clamp(0, 1), atol=1e-5)


def test_frame_rate_is_a_condition_of_ltx_alone(priors):
    noisy, time = torch.randn(2, *priors["ltx"].latent_shape()), torch.tensor([0.5, 0.5])
    for name in ("ltx", "causal"):
        prior = priors[name]
        slow, fast = (prior.condition(text=PROMPT, fps=f) for f in (4, 24))
        apart = [prior.predict(noisy[:1], time[:1], c).conditional for c in (slow, fast)]
        assert (apart[0] - apart[1]).abs().max() > 1e-4
        # A batch of clips may have a rate each.
        both = slow.cat([slow, fast])
        together = prior.predict(noisy[:1].expand(2, -1, -1, -1, -1), time, both).conditional
        assert torch.allclose(together, torch.cat(apart), atol=1e-5)
        assert torch.equal(prior.condition(text=PROMPT).positive["fps"], torch.tensor([25.0]))
    with pytest.raises(InputError, match="takes no frame rate"):
        priors["wan"].condition(text=PROMPT, fps=8)
    with pytest.raises(InputError, match="above 0"):
        priors["ltx"].condition(text=PROMPT, fps=0)


def test_experts_share_the_schedule(priors):
    """Wan 2.2's first transformer predicts from the boundary up, the second below it, whatever is in one batch."""
    prior, wan = priors["experts"], priors["wan"]
    assert isinstance(prior, WanPrior) and prior.boundary == 0.5
    noisy = torch.randn(4, *prior.latent_shape(), generator=torch.Generator().manual_seed(0))
    times, condition = torch.tensor([0.9, 0.1, 0.5, 0.49]), prior.condition(text=PROMPT)
    found = prior.predict(noisy, times, condition).conditional
    for name, rows in (("transformer", [0, 2]), ("transformer_2", [1, 3])):
        alone = wan.with_settings(modules={**wan.modules, "transformer": prior.modules[name]})
        assert torch.allclose(found[rows], alone.predict(noisy[rows], times[rows], condition).conditional, atol=1e-5)


def gradient_of(prior: Prior, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.clone().requires_grad_(True)
    latents = prior.encode(images)
    (latents * torch.linspace(-1, 1, latents.numel()).reshape(latents.shape)).sum().backward()
    assert images.grad is not None
    return latents.detach(), images.grad


@pytest.mark.parametrize("name", ALL)
def test_recomputing_changes_no_latent_and_no_gradient(name, priors):
    images = clips(1)
    kept, made_again = (gradient_of(priors[name].with_settings(recompute=r), images) for r in (False, True))
    assert torch.allclose(kept[0], made_again[0], atol=1e-6)
    assert (kept[1] - made_again[1]).abs().max() <= 1e-5 * kept[1].abs().max()
    assert kept[1].abs().amax((0, 2, 3, 4)).min() > 0  # every picture of the clip counts


@pytest.mark.parametrize("name", ["wan", "tokens", "ltx"])
def test_tiles_are_blended_and_their_gradient_is_their_own(name, priors):
    prior, side = priors[name].with_settings(resolution=(48, 48)), 48
    images = clips(1, side=side)
    whole, tiled = gradient_of(prior, images), gradient_of(prior.with_settings(tile=32), images)
    assert torch.equal(gradient_of(prior.with_settings(tile=side), images)[0], whole[0])
    assert tiled[0].shape == whole[0].shape
    assert 0 < (tiled[0] - whole[0]).square().mean() < 0.1 * whole[0].square().mean()
    # Along its own signs the gradient is the slope of the tiled encoder.
    weights, step = torch.linspace(-1, 1, tiled[0].numel()).reshape(tiled[0].shape), 5e-3
    with torch.no_grad():
        ahead, behind = (prior.with_settings(tile=32).encode(images + s * tiled[1].sign()) for s in (step, -step))
    slope = ((ahead.double() - behind) * weights).sum() / (2 * step)
    assert torch.isclose(tiled[1].abs().sum().double(), slope, rtol=1e-2)


def test_text_encoders_are_not_kept(folders, tmp_path):
    """The encoder is loaded for new texts only: a folder that loses it still knows the texts it was asked for."""
    folder = tmp_path / "wan"
    folder.mkdir()
    for part in folders["wan"].iterdir():
        (folder / part.name).symlink_to(part)
    prior = load_prior(folder)
    assert set(prior.modules) == {"transformer", "vae"}
    first = prior.condition(text=PROMPT)
    (folder / "text_encoder").unlink()
    again = prior.condition(text=[PROMPT, MOTIONLESS], negative=PROMPT)
    assert torch.equal(again.positive["text"][:1], first.positive["text"])
    assert again.negative is not None and torch.equal(again.negative["text"], first.positive["text"])
    with pytest.raises(InputError, match="text_encoder"):
        prior.condition(text="another")


def test_tokenizer_of_a_sentencepiece_file(folders, tmp_path, monkeypatch):
    """LTX-Video publishes its tokenizer as spiece.model alone: the same pieces, and the end."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    folder = tmp_path / "ltx" / "tokenizer"
    folder.mkdir(parents=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a bear walks slowly", "the quick brown fox jumps over the lazy dog"] * 20), model_writer=model,
        vocab_size=32, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    models.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "extra_ids": 2})
    expected = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).encode("the bear walks")
    assert Checkpoint(folder.parent).tokenizer()("the bear walks").input_ids == [*expected, 1]
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match="pip install sentencepiece protobuf"):
        Checkpoint(folder.parent).tokenizer()


def test_distillation_gradient_is_the_flow_form(priors):
    """w(t) (v_hat - v) on the latents, and its pull on every picture of the clip."""
    prior = priors["ltx"]
    condition, schedule = prior.condition(text=PROMPT, fps=8), prior.schedule
    latents, noise = torch.randn(2, 2, *prior.latent_shape(), generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0.2, 0.7])
    predicted = prior.predict(schedule.add_noise(latents, noise, times), times, condition)
    guided = predicted.unconditional + 7 * (predicted.conditional - predicted.unconditional)
    expected = times.reshape(2, 1, 1, 1, 1) ** 2 * (guided - (noise - latents))
    found = Distillation(prior, guidance=7.0).latent_gradient(latents, noise, times, condition)
    assert torch.allclose(found, expected, atol=1e-5)
    images = clips(2).requires_grad_(True)
    gradients = []
    for micro in (0, 1):
        distillation = Distillation(prior, time=UniformWindow(), micro_batch=micro)
        loss = distillation(images, condition, 0.5, torch.Generator().manual_seed(3))
        gradients.append(torch.autograd.grad(loss, images)[0])
    assert gradients[0].abs().amax((0, 2, 3, 4)).min() > 0
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5 * gradients[0].abs().max()


def test_clips_of_another_form_are_refused(priors):
    wan, ltx = priors["wan"], priors["ltx"]
    with pytest.raises(InputError, match=r"16 pictures a clip, it takes 1 \+ 4 k"):
        wan.with_settings(pictures=16).latent_shape()
    with pytest.raises(InputError, match="20x16, give multiples of 8"):
        wan.with_settings(resolution=(16, 20)).latent_shape()
    with pytest.raises(InputError, match=r"expected \(9, 16, 16\)"):
        ltx.encode(clips(1, side=32))
    with pytest.raises(InputError, match="small picture encoder"):
        ltx.with_settings(small_encoder=models.small_encoder()).encode(clips(1))
    with pytest.raises(InputError, match="takes no picture"):
        wan.condition(image=clips(1)[0], text=PROMPT)
    with pytest.raises(InputError, match="needs a text"):
        ltx.condition(fps=8)


def test_image_to_video_wan_is_refused(folders, tmp_path):
    folder = tmp_path / "Wan2.1-I2V"
    folder.mkdir()
    for part in folders["wan"].iterdir():
        if part.name != "transformer":
            (folder / part.name).symlink_to(part)
    tiny.wan_transformer(in_channels=12).save_pretrained(folder / "transformer")
    with pytest.raises(InputError, match="image-to-video Wan"):
        load_prior(folder)


def published(make: Callable[[], torch.nn.Module]) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in make().state_dict().items()}


def total(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def test_published_networks():
    """Names, shapes and sizes at the published configurations."""
    from diffusers import AutoencoderKLLTXVideo, AutoencoderKLWan, LTXVideoTransformer3DModel, WanTransformer3DModel

    wan = published(lambda: WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30))  # T2V-1.3B
    assert (len(wan), total(wan)) == (825, 1_418_996_800)
    named = {
        "patch_embedding.weight": (1536, 16, 1, 2, 2),
        "condition_embedder.time_embedder.linear_1.weight": (1536, 256),
        "condition_embedder.text_embedder.linear_1.weight": (1536, 4096),
        "blocks.29.attn2.norm_k.weight": (1536,),
        "blocks.5.ffn.net.0.proj.weight": (8960, 1536),
        "proj_out.weight": (64, 1536),
    }
    assert {name: wan[name] for name in named} == named
    vae = published(AutoencoderKLWan)
    assert (len(vae), total(vae)) == (194, 126_892_531)
    assert vae["encoder.conv_in.weight"] == (96, 3, 3, 3, 3) and vae["quant_conv.weight"] == (32, 32, 1, 1, 1)
    ltx = published(LTXVideoTransformer3DModel)
    assert (len(ltx), total(ltx)) == (715, 1_923_385_472)
    named = {
        "proj_in.weight": (2048, 128),
        "caption_projection.linear_1.weight": (2048, 4096),
        "transformer_blocks.27.attn1.norm_q.weight": (2048,),
        "scale_shift_table": (2, 2048),
    }
    assert {name: ltx[name] for name in named} == named
    vae = published(AutoencoderKLLTXVideo)
    assert (len(vae), total(vae)) == (190, 419_193_905)
    assert vae["latents_mean"] == (128,) and vae["encoder.conv_in.conv.weight"] == (128, 48, 3, 3, 3)
