"""ModelScope's and Zeroscope's prior: against its own pipeline, and against its networks called by hand."""

from __future__ import annotations

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
from anchor4d.core.priors.distill import UniformWindow
from anchor4d.core.priors.text_to_video import MOTIONLESS, TextToVideoPrior

FRAMES, SIDE = 3, 16
PROMPT = "a walking bear"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_modelscope(tmp_path_factory.mktemp("video") / "text-to-video-tiny")


@pytest.fixture(scope="module")
def prior(folder: Path) -> Prior:
    loaded = load_prior(folder)
    assert type(loaded) is TextToVideoPrior
    assert (loaded.pictures, loaded.resolution) == (16, (SIDE, SIDE))
    return loaded.with_settings(pictures=FRAMES)


def clips(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, FRAMES, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(seed))


def by_hand(folder: Path, text: str, noisy: Tensor, step: int) -> Tensor:  # (F, 4, h, w) -> (F, 4, h, w)
    """The noise in one clip, from the networks of the folder."""
    from diffusers import UNet3DConditionModel
    from transformers import CLIPTextModel

    unet = UNet3DConditionModel.from_pretrained(folder / "unet")
    tower = CLIPTextModel.from_pretrained(folder / "text_encoder")
    # The tiny vocabulary: 26 letters, 26 letters that end a word, the comma, start, end. Texts are padded with the end.
    ids = [53]
    for word in text.replace(",", " ,").split():
        ids += [52] if word == "," else [ord(c) - 97 for c in word[:-1]] + [ord(word[-1]) - 97 + 26]
    ids = (ids + [54] * 77)[:77]
    with torch.no_grad():
        states = tower(torch.tensor([ids])).last_hidden_state
        return unet(noisy.movedim(0, 1)[None], step, states).sample[0].movedim(0, 1)


def test_prediction_is_the_networks(folder, prior):
    noisy = torch.randn(2, *prior.latent_shape(), generator=torch.Generator().manual_seed(1))
    times = torch.tensor([0.3, 0.85])
    predicted = prior.predict(noisy, times, prior.condition(text=PROMPT))
    for i, step in enumerate((300, 850)):
        for found, text in ((predicted.conditional, PROMPT), (predicted.unconditional, MOTIONLESS)):
            assert torch.allclose(found[i], by_hand(folder, text, noisy[i], step), atol=1e-5)
    assert (predicted.conditional - predicted.unconditional).abs().max() > 1e-4
    alone = prior.with_settings(one_pass=False).predict(noisy, times, prior.condition(text=PROMPT))
    assert torch.allclose(alone.unconditional, predicted.unconditional, atol=1e-5)


def test_prediction_is_what_the_pipeline_asks_its_network(folder, prior):
    from diffusers import TextToVideoSDPipeline

    pipeline = TextToVideoSDPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    seen: list[tuple[Any, Any, Any]] = []
    pipeline.unet.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((args[0], args[1], output[0])), with_kwargs=True
    )
    pipeline(PROMPT, negative_prompt="no motion", num_frames=FRAMES, num_inference_steps=2, output_type="latent")
    condition = prior.condition(text=PROMPT, negative="no motion")
    for latents, step, output in seen:  # (2, 4, F, h, w), first without the condition
        predicted = prior.predict(latents[1:].movedim(1, 2), step[None] / prior.schedule.steps, condition)
        assert torch.allclose(predicted.unconditional[0], output[0].movedim(0, 1), atol=1e-5)
        assert torch.allclose(predicted.conditional[0], output[1].movedim(0, 1), atol=1e-5)


def test_latents_are_each_frames_scaled_mode(folder, prior):
    from diffusers import AutoencoderKL

    images, network = clips(2), AutoencoderKL.from_pretrained(folder / "vae")
    with torch.no_grad():
        frame = network.encode(images[1, 2].movedim(-1, 0)[None] * 2 - 1).latent_dist.mode()[0] * 0.18215
    assert torch.allclose(prior.encode(images)[1, 2], frame, atol=1e-6)
    assert prior.decode(prior.encode(images)).shape == images.shape
    assert torch.allclose(prior.schedule.alphas_cumprod, models.scheduler().alphas_cumprod)


def test_distillation_of_a_clip(prior):
    images = clips(2).requires_grad_(True)
    condition = prior.condition(text=PROMPT)
    gradients = []
    for settings in ({}, {"micro_batch": 1, "encode_batch": 2}):
        distillation = Distillation(prior, time=UniformWindow(), guidance=5.0, amplification=2.0, **settings)
        loss = distillation(images, condition, 0.5, torch.Generator().manual_seed(3))
        gradients.append(torch.autograd.grad(loss, images)[0])
    assert gradients[0].abs().amax((0, 2, 3, 4)).min() > 0  # every frame is pulled
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5 * gradients[0].abs().max()
    assert all(p.grad is None and not p.requires_grad for m in prior.modules.values() for p in m.parameters())


def test_texts_are_encoded_once(prior):
    prior.condition(text=PROMPT)  # and what it is compared with, where no other test was here before
    calls: list[int] = []
    handle = prior.modules["text_encoder"].register_forward_hook(lambda *_: calls.append(1))
    first = prior.condition(text="a new text")
    again = prior.condition(text=["a new text", PROMPT])
    handle.remove()
    assert len(calls) == 1  # of the new text
    assert torch.equal(first.positive["text"][0], again.positive["text"][0])
    assert again.positive["text"].shape[0] == 2 and again.negative["text"].shape[0] == 1


def test_what_it_cannot_be_told(prior, folder, tmp_path):
    with pytest.raises(InputError, match="takes no picture"):
        prior.condition(image=torch.rand(1, 8, 8, 3), text=PROMPT)
    with pytest.raises(InputError, match="takes no frame rate"):
        prior.condition(text=PROMPT, fps=8)
    with pytest.raises(InputError, match="needs a text"):
        prior.condition()
    with pytest.raises(InputError, match="2 negative texts for 3"):
        prior.condition(text=["a", "b", "c"], negative=["d", "e"])
    broken = tmp_path / "broken"
    broken.mkdir()
    for part in ("unet", "vae", "scheduler", "tokenizer"):
        (broken / part).symlink_to(folder / part)
    with pytest.raises(InputError, match="needs the folders text_encoder"):
        load_prior(broken)


def test_zeroscopes_size_is_known_by_its_name(folder, tmp_path):
    wide = tmp_path / "zeroscope_v2_576w"
    wide.mkdir()
    for part in folder.iterdir():
        (wide / part.name).symlink_to(part)
    prior = load_prior(wide)
    assert (prior.pictures, prior.resolution) == (24, (320, 576))
    assert prior.latent_shape() == (24, 4, 320 // models.FACTOR, 576 // models.FACTOR)


def test_published_unet_is_the_class_by_default():
    """ModelScope's and Zeroscope's configuration is the class's default: 1.41 billion numbers under these names."""
    from diffusers import UNet3DConditionModel

    with torch.device("meta"):
        tensors = UNet3DConditionModel().state_dict()
    assert len(tensors) == 1480
    assert sum(t.numel() for t in tensors.values()) == 1_411_233_860
    named = {
        "conv_in.weight": (320, 4, 3, 3),
        "transformer_in.transformer_blocks.0.attn1.to_q.weight": (512, 512),
        "down_blocks.0.temp_convs.0.conv1.2.weight": (320, 320, 3, 1, 1),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
        "mid_block.temp_attentions.0.proj_in.weight": (1280, 1280),
        "conv_out.bias": (4,),
    }
    assert {name: tuple(tensors[name].shape) for name in named} == named
