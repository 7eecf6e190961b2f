"""The bundled tiny prior: its files, that it has learnt, and that its trainer learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from safetensors import safe_open

from anchor4d.bench.tiny_prior import BUNDLED, baselines, held_out, predict, psnr
from anchor4d.core.cameras import spherical, zero123_vector
from anchor4d.core.priors.base import Viewpoints
from anchor4d.core.priors.load import load_prior
from anchor4d.core.priors.zero123 import attend_to_one_token
from anchor4d.training.objects import generate_many
from anchor4d.training.tiny_prior import (
    DISTANCES,
    ELEVATIONS,
    SCALING,
    CameraProjection,
    Data,
    Ema,
    Journal,
    Networks,
    Recipe,
    Sizes,
    _standardise,
    degrade,
    draw_pairs,
    train_diffusion,
    train_vae,
)


@pytest.fixture(scope="module")
def bundled() -> Networks:
    return Networks.load(BUNDLED).to("cpu")


def test_the_folder_has_the_published_layout_and_is_small(bundled: Networks) -> None:
    files = [p for p in BUNDLED.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 16_000_000
    assert {p.suffix for p in files} == {".safetensors", ".json"}
    fresh = Networks.fresh().modules()
    for name, module in fresh.items():
        file = "model.safetensors" if name == "image_encoder" else "diffusion_pytorch_model.safetensors"
        with safe_open(BUNDLED / name / file, "pt") as stored:
            shapes = {k: tuple(stored.get_slice(k).get_shape()) for k in stored.keys()}
            assert {stored.get_slice(k).get_dtype() for k in stored.keys()} == {"F16"}
        expected = {k: tuple(v.shape) for k, v in module.state_dict().items() if v.is_floating_point()}
        assert shapes == expected
    assert bundled.unet.config.in_channels == 8
    assert bundled.unet.config.cross_attention_dim == bundled.tower.config.projection_dim
    assert bundled.vae.config.scaling_factor == SCALING
    for part in ("scheduler/scheduler_config.json", "feature_extractor/preprocessor_config.json", "model_index.json"):
        assert (BUNDLED / part).is_file()


def test_it_beats_the_condition_picture_and_its_mean_colour(bundled: Networks) -> None:
    trial = held_out(6)
    guess = float(psnr(predict(bundled, trial, steps=10).mean(0), trial.target).mean())
    others = {name: float(psnr(p, trial.target).mean()) for name, p in baselines(trial).items()}
    assert guess > others["condition picture"] + 1
    assert guess > others["its mean colour in its own mask"] + 1


def test_the_adapter_asks_the_same_question(bundled: Networks) -> None:
    prior = load_prior("tiny")
    trial = held_out(2)
    views = Viewpoints.of(trial.pairs.cameras(1), trial.pairs.cameras(0))
    T = trial.pairs.camera_vectors
    assert torch.allclose(prior.camera(views), T, atol=1e-4)  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(0)
    noisy, t = torch.randn(2, 4, 16, 16, generator=generator), torch.tensor([0.3, 0.7])
    with torch.no_grad():
        token, latent = bundled.condition(trial.condition, T)
        steps = (t * 1000).round().long()
        expected = bundled.unet(torch.cat([noisy, latent], 1), steps, encoder_hidden_states=token).sample
        blind = torch.cat([noisy, torch.zeros_like(latent)], 1)
        free = bundled.unet(blind, steps, encoder_hidden_states=torch.zeros_like(token)).sample
        answer = prior.predict(noisy[:, None], t, prior.condition(trial.condition), views)
    assert answer.unconditional is not None
    for ours, theirs in ((expected, answer.conditional), (free, answer.unconditional)):
        # The adapter resamples nothing at 64 pixels; what differs is the order of float32 operations.
        assert float((theirs[:, 0] - ours).abs().max()) < 2e-3


def test_pairs_follow_zero123() -> None:
    pairs = draw_pairs(4000, torch.Generator().manual_seed(0))
    for which in (0, 1):
        azimuth, elevation, distance = spherical(pairs.cameras(which))
        assert torch.allclose(elevation, pairs.views[:, which, 1], atol=1e-2)
        assert ELEVATIONS[0] - 0.01 <= float(elevation.min()) and float(elevation.max()) <= ELEVATIONS[1] + 0.01
        assert DISTANCES[0] - 0.2 <= float(distance.min()) and float(distance.max()) <= DISTANCES[1] + 0.2
        assert float(azimuth.std()) > 90
    (az, el, r), (az2, el2, r2) = pairs.views[7].tolist()
    expected = zero123_vector(el2, az2 - az, r2 - r, condition_elevation=el)
    assert torch.allclose(pairs.camera_vectors[7], expected, atol=1e-5)
    same = (pairs.views[:, 0] == pairs.views[:, 1]).all(1)
    moved = pairs.tau[:, 0] != pairs.tau[:, 1]
    assert 0.2 < float(same.float().mean()) < 0.3
    assert 0.4 < float(moved[same].float().mean()) < 0.6
    assert float(moved[~same].float().mean()) < 0.2
    free = draw_pairs(500, torch.Generator().manual_seed(0), free=True)
    assert torch.equal(free.tau[:, 0], free.tau[:, 1])


def test_pairs_are_used_in_both_directions_and_degraded_pictures_stay_pictures() -> None:
    data = Data(generate_many(range(4)), torch.Generator().manual_seed(0))
    condition, target, camera = data.pairs(4)
    assert torch.equal(condition[:2], target[2:])
    assert torch.equal(condition[2:], target[:2])
    assert torch.allclose(camera[:2, [0, 1, 3]], -camera[2:, [0, 1, 3]], atol=1e-5)
    assert torch.allclose(camera[:2, 2], camera[2:, 2], atol=1e-5)
    worse = degrade(condition, torch.Generator().manual_seed(1))
    assert worse.shape == condition.shape
    assert float(worse.min()) >= 0 and float(worse.max()) <= 1
    assert float((worse - condition).abs().mean()) > 1e-4


def test_latents_are_standardised_without_changing_the_pictures() -> None:
    torch.manual_seed(0)
    networks = Networks.fresh(Sizes((8, 16, 16), (16, 16), 1, 16, 16, 1)).to("cpu")
    pictures = Data(generate_many(range(3)), torch.Generator().manual_seed(0)).pictures(4)
    images = pictures.permute(0, 3, 1, 2) * 2 - 1
    with torch.no_grad():
        before = networks.vae.decode(networks.vae.encode(images).latent_dist.mode()).sample
        spread = networks.vae.encode(images).latent_dist.std
        raw = networks.vae.encode(images).latent_dist.mode().std((0, 2, 3))
        _standardise(networks.vae, pictures)
        posterior = networks.vae.encode(images).latent_dist
        after = networks.vae.decode(posterior.mode()).sample
    assert torch.allclose(posterior.mode().mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(posterior.mode().std((0, 2, 3)), torch.full((4,), 1 / SCALING), rtol=1e-3)
    assert torch.allclose(posterior.std / spread, (1 / (SCALING * raw))[:, None, None].expand_as(spread), rtol=1e-3)
    assert torch.allclose(before, after, atol=1e-4)


def test_one_token_attention_is_exact() -> None:
    torch.manual_seed(0)
    unet = Networks.fresh(Sizes((8, 16, 16), (16, 16), 1, 16, 16, 1)).unet.eval()
    x, t, token = torch.randn(2, 8, 16, 16), torch.tensor([10, 700]), torch.randn(2, 1, 16)
    with torch.no_grad():
        usual = unet(x, t, token).sample
        attend_to_one_token(unet)
        assert torch.allclose(unet(x, t, token).sample, usual, atol=1e-5)


def test_training_lowers_the_loss_and_its_weights_load_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = Data(generate_many(range(6)), torch.Generator().manual_seed(0))
    networks = Networks.fresh(Sizes((8, 16, 16), (16, 16), 1, 16, 16, 1)).to("cpu")
    recipe = Recipe(vae_steps=24, vae_batch=2, vae_rate=3e-3, steps=24, batch=4, rate=3e-3, warmup=3, ema=0.8)
    journal = Journal(tmp_path, every=6, minutes=1e9)
    pictures = train_vae(networks, data, recipe, journal)
    assert pictures[-1] < 0.7 * pictures[0]
    noise = train_diffusion(networks, data, recipe, journal)
    assert noise[-1] < 0.7 * noise[0]
    networks.save(tmp_path / "weights")
    again = Networks.load(tmp_path / "weights")
    for name, module in networks.modules().items():
        for key, value in again.modules()[name].state_dict().items():
            assert torch.allclose(value, module.state_dict()[key], rtol=1e-3, atol=1e-6), key
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 8


def test_the_mean_of_weights_can_be_swapped_in_and_out() -> None:
    layer = CameraProjection(4)
    ema = Ema([layer], 0.5)
    start = layer.proj.weight.detach().clone()
    with torch.no_grad():
        layer.proj.weight += 1
    ema.update()  # the first update weighs the new value by 1 - 2/11
    ema.swap()
    assert torch.allclose(layer.proj.weight, start + 9 / 11 if 2 / 11 < 0.5 else start + 0.5, atol=1e-6)
    ema.swap()
    assert torch.allclose(layer.proj.weight, start + 1)
