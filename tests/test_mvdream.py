"""MVDream and ImageDream: published layout, cameras, and the network against a plain implementation, view by view."""

from __future__ import annotations

import collections
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_models as tiny
from safetensors.torch import load_file, save_file
from tiny_videos import clip_text, clip_tokenizer
from transformers import CLIPVisionConfig, CLIPVisionModel

from anchor4d.core.cameras import orbit, to_opengl
from anchor4d.core.files import InputError
from anchor4d.core.priors.base import Viewpoints
from anchor4d.core.priors.distill import Distillation
from anchor4d.core.priors.load import load_prior
from anchor4d.core.priors.multiview_unet import MultiViewUNet
from anchor4d.core.priors.mvdream import ImageDream, MVDream, camera_matrices

# unet/config.json of ashawkey/mvdream-sd2.1-diffusers; imagedream-ipmv-diffusers adds ip_dim 16.
PUBLISHED: dict[str, Any] = {
    "_class_name": "MultiViewUNetModel", "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320,
    "attention_resolutions": [4, 2, 1], "num_res_blocks": 2, "channel_mult": [1, 2, 4, 4], "num_head_channels": 64,
    "transformer_depth": 1, "context_dim": 1024, "use_checkpoint": False, "camera_dim": 16,
}  # fmt: skip
TINY = PUBLISHED | {
    "model_channels": 32, "attention_resolutions": [2, 1], "num_res_blocks": 1, "channel_mult": [1, 2],
    "num_head_channels": 16, "context_dim": 12,
}  # fmt: skip
TINY_IMAGE = TINY | {"ip_dim": 3, "ip_weight": 0.7, "image_dim": 8}


def write_folder(folder: Path, config: dict[str, Any]) -> Path:
    """A folder in the published layout with random weights; the CLIP towers' keys as they were published."""
    unet = tiny.perturbed(MultiViewUNet.from_config(config), 1)
    tiny.write_json(folder / "unet" / "config.json", config)
    save_file(unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.safetensors")
    tiny.vae(2).save_pretrained(folder / "vae")
    clip_text(3).save_pretrained(folder / "text_encoder")
    rename(folder / "text_encoder" / "model.safetensors", "text_model.")
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    tiny.scheduler().save_pretrained(folder / "scheduler")
    if config.get("ip_dim"):
        vision = CLIPVisionConfig(
            hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
        )
        tiny.perturbed(CLIPVisionModel(vision), 4).save_pretrained(folder / "image_encoder")
        rename(folder / "image_encoder" / "model.safetensors", "vision_model.")
        tiny.write_json(
            folder / "feature_extractor" / "preprocessor_config.json",
            {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "size": {"shortest_edge": 28}},
        )
    return folder


def rename(path: Path, prefix: str) -> None:
    """Keys as transformers 4 wrote them, with the buffer it kept."""
    tensors = {prefix + key.removeprefix(prefix): value for key, value in load_file(path).items()}
    tensors[f"{prefix}embeddings.position_ids"] = torch.arange(5)[None]
    save_file(tensors, path, {"format": "pt"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("multiview")
    return write_folder(root / "mvdream", TINY), write_folder(root / "imagedream", TINY_IMAGE)


def small(prior: Any) -> Any:
    """At 16 x 16 pixels, since the tiny VAE has two pixels a cell."""
    return prior.with_settings(resolution=(16, 16))


def views_of(azimuths: list[float], elevation: float = 10.0, rows: int = 1) -> Viewpoints:
    return Viewpoints.of(orbit(azimuths * rows, elevation).reshape(rows, len(azimuths)))


# ---- the network, written again from the papers: one sample, one view, one head at a time


def plain_unet(
    w: dict[str, Tensor], latents: Tensor, time: float, cameras: Tensor, text: Tensor, tokens: Tensor | None, heads: int
) -> Tensor:
    """One sample (V, c, h, w): which layer stands where is read off the keys alone."""
    width = w["time_embed.0.weight"].shape[1]
    angles = [time / 10000 ** (i / (width // 2)) for i in range(width // 2)]
    wave = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    embeddings = [mlp(w, "time_embed", wave) + mlp(w, "camera_embed", camera) for camera in cameras]

    def block(name: str, x: list[Tensor]) -> list[Tensor]:
        for index in range(3):
            x = layer(f"{name}.{index}", x)
        return x

    def layer(name: str, x: list[Tensor]) -> list[Tensor]:
        if f"{name}.in_layers.0.weight" in w:
            return [residual(w, name, v, e) for v, e in zip(x, embeddings)]
        if f"{name}.proj_in.weight" in w:
            return transformer(w, name, x, text, tokens, heads)
        if f"{name}.op.weight" in w:
            return [F.conv2d(v[None], w[f"{name}.op.weight"], w[f"{name}.op.bias"], 2, 1)[0] for v in x]
        if f"{name}.conv.weight" in w:
            return [conv(w, f"{name}.conv", v.repeat_interleave(2, 1).repeat_interleave(2, 2)) for v in x]
        return [conv(w, name, v) for v in x] if f"{name}.weight" in w else x

    x, kept = list(latents), []
    for index in range(len({key.split(".")[1] for key in w if key.startswith("input_blocks.")})):
        x = block(f"input_blocks.{index}", x)
        kept.append(x)
    x = block("middle_block", x)
    for index in range(len(kept)):
        x = block(f"output_blocks.{index}", [torch.cat([v, s]) for v, s in zip(x, kept.pop())])
    return torch.stack([conv(w, "out.2", F.silu(group_norm(w, "out.0", v))) for v in x])


def conv(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.conv2d(x[None], w[f"{name}.weight"], w[f"{name}.bias"], padding=w[f"{name}.weight"].shape[-1] // 2)[0]


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))


def mlp(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return linear(w, f"{name}.2", F.silu(linear(w, f"{name}.0", x)))


def group_norm(w: dict[str, Tensor], name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    grouped = x.reshape(32, -1)
    grouped = (grouped - grouped.mean(1, keepdim=True)) / (grouped.var(1, unbiased=False, keepdim=True) + eps).sqrt()
    return grouped.reshape(x.shape) * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def layer_norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def residual(w: dict[str, Tensor], name: str, x: Tensor, embedding: Tensor) -> Tensor:
    h = conv(w, f"{name}.in_layers.2", F.silu(group_norm(w, f"{name}.in_layers.0", x)))
    h = h + linear(w, f"{name}.emb_layers.1", F.silu(embedding))[:, None, None]
    h = conv(w, f"{name}.out_layers.3", F.silu(group_norm(w, f"{name}.out_layers.0", h)))
    return h + (conv(w, f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in w else x)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    parts = []
    for a, b, c in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1)):
        weights = (a @ b.T / a.shape[1] ** 0.5).exp()
        parts.append(weights / weights.sum(1, keepdim=True) @ c)
    return torch.cat(parts, 1)


def transformer(
    w: dict[str, Tensor], name: str, x: list[Tensor], text: Tensor, tokens: Tensor | None, head_channels: int
) -> list[Tensor]:
    heads = x[0].shape[0] // head_channels
    own = [linear(w, f"{name}.proj_in", group_norm(w, f"{name}.norm", v, 1e-6).flatten(1).T) for v in x]
    b = f"{name}.transformer_blocks.0"
    # Every view's cells attend to the cells of all views.
    normed = [layer_norm(w, f"{b}.norm1", t) for t in own]
    k, v = (linear(w, f"{b}.attn1.{n}", torch.cat(normed)) for n in ("to_k", "to_v"))
    own = [
        t + linear(w, f"{b}.attn1.to_out.0", softmax_attention(linear(w, f"{b}.attn1.to_q", n), k, v, heads))
        for t, n in zip(own, normed)
    ]
    for index, t in enumerate(own):
        q = linear(w, f"{b}.attn2.to_q", layer_norm(w, f"{b}.norm2", t))
        seen = softmax_attention(q, linear(w, f"{b}.attn2.to_k", text), linear(w, f"{b}.attn2.to_v", text), heads)
        if tokens is not None:
            k, v = (linear(w, f"{b}.attn2.{n}", tokens) for n in ("to_k_ip", "to_v_ip"))
            seen = seen + TINY_IMAGE["ip_weight"] * softmax_attention(q, k, v, heads)
        t = t + linear(w, f"{b}.attn2.to_out.0", seen)
        value, gate = linear(w, f"{b}.ff.net.0.proj", layer_norm(w, f"{b}.norm3", t)).chunk(2, 1)
        own[index] = t + linear(w, f"{b}.ff.net.2", value * F.gelu(gate))
    return [x_v + linear(w, f"{name}.proj_out", t).T.reshape(x_v.shape) for x_v, t in zip(x, own)]


def plain_resampler(w: dict[str, Tensor], hidden: Tensor) -> Tensor:  # (L, image_dim) -> (queries, d)
    w = {key.removeprefix("image_embed."): value for key, value in w.items() if key.startswith("image_embed.")}
    hidden, tokens = linear(w, "proj_in", hidden), w["latents"][0]
    for i in range(4):
        mine = layer_norm(w, f"layers.{i}.0.norm2", tokens)
        known = torch.cat([layer_norm(w, f"layers.{i}.0.norm1", hidden), mine])
        k, v = linear(w, f"layers.{i}.0.to_kv", known).chunk(2, 1)
        seen = softmax_attention(linear(w, f"layers.{i}.0.to_q", mine), k, v, 12)
        tokens = tokens + linear(w, f"layers.{i}.0.to_out", seen)
        inner = F.gelu(linear(w, f"layers.{i}.1.1", layer_norm(w, f"layers.{i}.1.0", tokens)))
        tokens = tokens + linear(w, f"layers.{i}.1.3", inner)
    return layer_norm(w, "norm_out", linear(w, "proj_out", tokens))


def weights(prior: Any) -> dict[str, Tensor]:
    return dict(prior.modules["unet"].state_dict())


# ---- layout


def test_published_layout() -> None:
    with torch.device("meta"):
        plain, image = MultiViewUNet.from_config(PUBLISHED), MultiViewUNet.from_config(PUBLISHED | {"ip_dim": 16})
    shapes = {key: tuple(value.shape) for key, value in plain.state_dict().items()}
    assert (len(shapes), sum(p.numel() for p in plain.parameters())) == (690, 867_572_164)
    attention = "transformer_blocks.0.attn2"
    named = {
        "time_embed.0.weight": (1280, 320),
        "camera_embed.0.weight": (1280, 16),
        "camera_embed.2.bias": (1280,),
        "input_blocks.0.0.weight": (320, 4, 3, 3),
        "input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        f"input_blocks.1.1.{attention}.to_k.weight": (320, 1024),
        "input_blocks.11.0.out_layers.3.bias": (1280,),
        "middle_block.1.proj_in.weight": (1280, 1280),
        "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
        "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.11.0.in_layers.2.weight": (320, 640, 3, 3),
        "out.2.weight": (4, 320, 3, 3),
    }
    assert {key: shapes[key] for key in named} == named

    more = {key: tuple(value.shape) for key, value in image.state_dict().items() if key not in shapes}
    assert (len(image.state_dict()), sum(p.numel() for p in image.parameters())) == (773, 941_672_900)
    named = {
        "image_embed.latents": (1, 16, 1024),
        "image_embed.proj_in.weight": (1024, 1280),
        "image_embed.layers.3.0.to_kv.weight": (1536, 1024),
        "image_embed.layers.3.1.1.weight": (4096, 1024),
        f"output_blocks.11.1.{attention}.to_v_ip.weight": (320, 1024),
    }
    assert {key: more[key] for key in named} == named
    assert sum(key.endswith("_ip.weight") for key in more) == 2 * 16


def test_is_stable_diffusion_2_with_cameras() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        ours = MultiViewUNet.from_config(PUBLISHED)
        heads: Any = (5, 10, 20, 20)
        theirs = UNet2DConditionModel(cross_attention_dim=1024, attention_head_dim=heads, use_linear_projection=True)
    shapes = collections.Counter(tuple(v.shape) for key, v in ours.state_dict().items() if "camera_embed" not in key)
    assert shapes == collections.Counter(tuple(v.shape) for v in theirs.state_dict().values())


# ---- cameras

FRONT = [[0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]  # the published helper's azimuth 90, elevation 0
TURNED = [  # its azimuth 130, elevation 20
    [-0.6428, -0.2620, 0.7198, 0.7198],
    [0.7660, -0.2198, 0.6040, 0.6040],
    [0, 0.9397, 0.3420, 0.3420],
    [0, 0, 0, 1],
]


def test_camera_golden_values() -> None:
    found = camera_matrices(Viewpoints(*(torch.tensor([x]) for x in ([0.0, 40.0], [0.0, 20.0], [1.5, 3.0]))))
    torch.testing.assert_close(found.reshape(2, 4, 4), torch.tensor([FRONT, TURNED]), atol=6e-5, rtol=0)


def test_cameras_are_poses_in_a_world_with_z_up() -> None:
    cameras = orbit([-70.0, 15.0, 200.0], [30.0, -20.0, 5.0], 2.0)
    pose = to_opengl(cameras)
    pose[:, :3, 3] /= 2
    ours_to_theirs = torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    found = camera_matrices(Viewpoints.of(cameras[None])).reshape(3, 4, 4)
    torch.testing.assert_close(found, ours_to_theirs @ pose, atol=1e-6, rtol=0)


def test_azimuths_count_from_the_picture() -> None:
    alone = camera_matrices(Viewpoints.of(orbit([30.0, 120.0], 10.0)[None]))
    seen = camera_matrices(Viewpoints.of(orbit([75.0, 165.0], 10.0)[None], orbit(45.0, 25.0)))
    torch.testing.assert_close(alone, seen, atol=1e-6, rtol=0)


# ---- against the plain implementation


@torch.no_grad()
def test_mvdream_against_plain_implementation(folders: tuple[Path, Path]) -> None:
    prior = small(load_prior(folders[0]))
    assert isinstance(prior, MVDream) and not isinstance(prior, ImageDream) and prior.pictures == 4
    assert prior.latent_shape() == (4, 4, 8, 8)
    condition = prior.condition(text=["a cat, 3d asset", "a dog"], negative="ugly")
    views = views_of([0.0, 90.0, 180.0, 270.0], rows=2)
    latents, t = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.71])
    predicted = prior.predict(latents, t, condition, views)

    encoder: Any = prior.modules["text_encoder"]
    for row, text in enumerate(["a cat, 3d asset", "a dog"]):
        for said, found in ((text, predicted.conditional), ("ugly", predicted.unconditional)):
            ids = clip_tokenizer()(said, padding="max_length", max_length=77, return_tensors="pt").input_ids
            tokens = encoder(ids).last_hidden_state[0]
            cameras = camera_matrices(views)[row]
            expected = plain_unet(weights(prior), latents[row], 1000 * float(t[row]), cameras, tokens, None, 16)
            torch.testing.assert_close(found[row], expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_imagedream_against_plain_implementation(folders: tuple[Path, Path]) -> None:
    prior = small(load_prior(folders[1]))
    assert isinstance(prior, ImageDream) and prior.latent_shape() == (4, 4, 8, 8)
    picture = torch.rand(1, 20, 20, 3, generator=torch.Generator().manual_seed(1))
    condition = prior.condition(image=picture, text="a cat")
    views = views_of([0.0, 90.0, 180.0, 270.0])
    latents = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    predicted = prior.predict(latents, torch.tensor([0.4]), condition, views)

    vision: Any = prior.modules["image_encoder"]
    vae: Any = prior.modules["vae"]
    text: Any = prior.modules["text_encoder"]
    chw = picture.permute(0, 3, 1, 2)
    clip = F.interpolate(chw, (28, 28), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = torch.tensor([0.48, 0.46, 0.41]), torch.tensor([0.27, 0.26, 0.28])
    hidden = vision((clip - mean[:, None, None]) / std[:, None, None], output_hidden_states=True).hidden_states[-2][0]
    sixteen = F.interpolate(chw, (16, 16), mode="bilinear", antialias=True)
    latent = vae.encode(sixteen * 2 - 1).latent_dist.mode()[0] * 0.18215
    cameras = torch.cat([camera_matrices(views)[0], torch.zeros(1, 16)])
    for said, seen, slot, found in (
        ("a cat", hidden, latent, predicted.conditional),
        ("", torch.zeros_like(hidden), torch.zeros_like(latent), predicted.unconditional),
    ):
        ids = clip_tokenizer()(said, padding="max_length", max_length=77, return_tensors="pt").input_ids
        tokens = plain_resampler(weights(prior), seen)
        slots = torch.cat([latents[0], slot[None]])
        expected = plain_unet(weights(prior), slots, 400.0, cameras, text(ids).last_hidden_state[0], tokens, 16)
        torch.testing.assert_close(found[0], expected[:4], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_views_come_in_the_order_asked_for(folders: tuple[Path, Path]) -> None:
    prior = small(load_prior(folders[1]))
    condition = prior.condition(image=torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(3)))
    latents = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    azimuths, order = [0.0, 90.0, 180.0, 270.0], [1, 2, 3, 0]
    straight = prior.predict(latents, torch.tensor([0.5]), condition, views_of(azimuths)).conditional
    turned = prior.predict(
        latents[:, order], torch.tensor([0.5]), condition, views_of([azimuths[i] for i in order])
    ).conditional
    torch.testing.assert_close(turned, straight[:, order], atol=1e-5, rtol=1e-4)
    assert (turned - straight).abs().max() > 1e-3


@torch.no_grad()
def test_small_encoder_does_not_see_the_condition(folders: tuple[Path, Path]) -> None:
    prior = small(load_prior(folders[1]))
    picture = torch.rand(2, 12, 24, 4, generator=torch.Generator().manual_seed(5))
    exact = prior.condition(image=picture)
    other = prior.with_settings(small_encoder=tiny.small_encoder(6)).condition(image=picture)
    assert exact.positive["latent"].shape == (2, 4, 8, 8) and exact.positive["tokens"].shape == (2, 3, 12)
    assert torch.equal(exact.positive["latent"], other.positive["latent"])
    assert exact.negative is not None and not exact.negative["latent"].any() and exact.negative["tokens"].any()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@torch.no_grad()
def test_half_precision(folders: tuple[Path, Path], precision: Any) -> None:
    whole, half = (small(load_prior(folders[1], precision=p)) for p in ("fp32", precision))
    assert half.modules["unet"].dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert half.modules["vae"].dtype == torch.bfloat16
    picture = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(7))
    latents = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    found, expected = (
        p.predict(latents, torch.tensor([0.6]), p.condition(image=picture), views_of([0.0, 90.0, 180.0, 270.0]))
        for p in (half, whole)
    )
    assert found.conditional.dtype == torch.float32
    assert (found.conditional - expected.conditional).std() < 0.03 * expected.conditional.std()


def test_distils(folders: tuple[Path, Path]) -> None:
    prior = small(load_prior(folders[0]))
    distillation = Distillation(prior, guidance=50.0)
    condition, views = prior.condition(text="a cat", negative="b"), views_of([0.0, 90.0, 180.0, 270.0], rows=2)
    images = torch.rand(2, 4, 16, 16, 3, generator=torch.Generator().manual_seed(9)).requires_grad_(True)
    distillation(images, condition, 0.5, torch.Generator().manual_seed(10), views).backward()

    generator = torch.Generator().manual_seed(10)
    t = distillation.time(0.5, 2, generator)
    noise = torch.randn(2, 4, 4, 8, 8, generator=generator)
    again = images.detach().clone().requires_grad_(True)
    latents = prior.encode(again)
    alpha, sigma = (c.reshape(2, 1, 1, 1, 1) for c in prior.schedule.coefficients(t))
    predicted = prior.predict((alpha * latents + sigma * noise).detach(), t, condition, views)
    assert predicted.unconditional is not None
    guided = predicted.unconditional + 50 * (predicted.conditional - predicted.unconditional)
    (latents * (sigma**2 * (guided - noise)).detach()).sum().backward()
    assert images.grad is not None and again.grad is not None
    torch.testing.assert_close(images.grad, again.grad, atol=1e-6, rtol=1e-4)
    assert (again.grad.abs().amax((2, 3, 4)) > 0).all()
    assert not any(p.requires_grad or p.grad is not None for m in prior.modules.values() for p in m.parameters())


@torch.no_grad()
def test_real_pictures(folders: tuple[Path, Path]) -> None:
    inputs = os.environ.get("ANCHOR4D_INPUTS")
    if not inputs:
        pytest.skip("set ANCHOR4D_INPUTS to a folder of *_rgba.png pictures")
    import numpy as np
    from PIL import Image

    prior = small(load_prior(folders[1]))
    seen = []
    for file in sorted(Path(inputs).glob("*_rgba.png")):
        rgba = torch.from_numpy(np.array(Image.open(file).convert("RGBA"))).float()[None] / 255
        condition = prior.condition(image=rgba)
        on_white = prior.condition(image=rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:])
        for key in ("tokens", "latent"):
            torch.testing.assert_close(condition.positive[key], on_white.positive[key])
        seen.append(torch.cat([condition.positive["tokens"].flatten(), condition.positive["latent"].flatten()]))
    assert len(seen) >= 4 and torch.stack(seen).isfinite().all() and torch.pdist(torch.stack(seen)).min() > 1e-2


# ---- refusals


def test_refusals(folders: tuple[Path, Path], tmp_path: Path) -> None:
    text, image = small(load_prior(folders[0])), small(load_prior(folders[1]))
    picture = torch.rand(1, 16, 16, 3)
    with pytest.raises(InputError, match="knows texts alone"):
        text.condition(image=picture, text="a cat")
    with pytest.raises(InputError, match="needs a text"):
        text.condition()
    with pytest.raises(InputError, match="needs a picture"):
        image.condition(text="a cat")
    with pytest.raises(InputError, match="no frame rate"):
        image.condition(image=picture, fps=8)
    with pytest.raises(InputError, match="viewpoints"):
        text.predict(torch.zeros(1, 4, 4, 8, 8), torch.tensor([0.5]), text.condition(text="a"))
    with pytest.raises(InputError, match="does not describe an MVDream"):
        load_prior(folders[1], kind="mvdream")
    with pytest.raises(InputError, match="image_encoder"):
        load_prior(folders[0], kind="imagedream")
    with pytest.raises(InputError, match=r"camera_dim.* missing"):
        MultiViewUNet.from_config({k: v for k, v in TINY.items() if k != "camera_dim"})

    broken = write_folder(tmp_path / "broken", TINY)
    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["camera_embed.2.bias"]
    save_file(tensors, path)
    with pytest.raises(InputError, match=r"camera_embed\.2\.bias"):
        load_prior(broken)
