"""The bundled tiny prior: a Zero123 of 64 x 64 pictures, trained on generated objects.

``python -m anchor4d.training.tiny_prior --out FOLDER`` trains the VAE, then UNet, image tower and camera projection together,
and writes Zero123's folder layout. The recipe, the numbers reached and the machine are in docs/tiny-prior.md.

Conditioning is Zero123's: one token, a linear map of [image embedding; T], T = :func:`~..core.cameras.zero123_vector` whose
slot 4 is the target's distance minus the condition's; the condition picture's unscaled latent mode beside the noisy latent;
both zero for the unconditional half.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.cameras import Cameras, orbit, zero123_vector
from ..core.priors.zero123 import attend_to_one_token
from .objects import Objects, generate_many
from .render import render

log = logging.getLogger(__name__)

FOVY = 49.1
SIZE = 64
DISTANCES = (1.0, 2.4)
ELEVATIONS = (-30.0, 60.0)
#: Seeds from here on are never trained on.
HELD_OUT = 10_000_000
SCALING = 0.5  # latents of the VAE have standard deviation 2
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


# --- networks ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """Widths of the networks; the defaults are the bundled prior's (7.7 million parameters)."""

    vae: tuple[int, ...] = (32, 64, 64)
    unet: tuple[int, ...] = (96, 96)
    unet_layers: int = 2
    embedding: int = 128
    tower_width: int = 128
    tower_layers: int = 5


class CameraProjection(nn.Module):
    """Zero123's ``clip_camera_projection``: one linear map of [image embedding; T] to the token."""

    def __init__(self, embedding_dim: int, additional_embeddings: int = 4) -> None:
        super().__init__()
        self.proj = nn.Linear(embedding_dim + additional_embeddings, embedding_dim)

    def forward(self, embedding: Tensor, camera: Tensor) -> Tensor:  # (B, D), (B, 4) -> (B, 1, D)
        return self.proj(torch.cat([embedding, camera], -1))[:, None]


@dataclass
class Networks:
    """The parts of the prior: diffusers' AutoencoderKL and UNet2DConditionModel, transformers' CLIP tower, the projection."""

    vae: Any
    unet: Any
    tower: Any
    projection: CameraProjection

    @staticmethod
    def fresh(sizes: Sizes | None = None) -> Networks:
        """With random weights."""
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        sizes = sizes or Sizes()
        levels = len(sizes.vae)
        shape: dict[str, Any] = {
            "block_out_channels": sizes.vae,
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
        }
        groups = min(8, sizes.vae[0] // 4)
        vae = AutoencoderKL(
            in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, norm_num_groups=groups, sample_size=SIZE,
            scaling_factor=SCALING, **shape,
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=SIZE >> (levels - 1), in_channels=8, out_channels=4, block_out_channels=sizes.unet,
            down_block_types=("CrossAttnDownBlock2D",) * len(sizes.unet),
            up_block_types=("CrossAttnUpBlock2D",) * len(sizes.unet), layers_per_block=sizes.unet_layers,
            cross_attention_dim=sizes.embedding, attention_head_dim=4, norm_num_groups=min(32, sizes.unet[0] // 2),
        )  # fmt: skip
        tower = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=sizes.tower_width, intermediate_size=4 * sizes.tower_width, num_hidden_layers=sizes.tower_layers,
                num_attention_heads=4, image_size=SIZE, patch_size=8, projection_dim=sizes.embedding,
            )
        )  # fmt: skip
        return Networks(vae, unet, tower, CameraProjection(sizes.embedding))

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> Networks:
        """From Zero123's layout, float32."""
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from safetensors.torch import load_file
        from transformers import CLIPVisionModelWithProjection

        folder = Path(folder)
        settings = json.loads((folder / "clip_camera_projection" / "config.json").read_text())
        projection = CameraProjection(settings["embedding_dim"], settings["additional_embeddings"])
        projection.load_state_dict(load_file(folder / "clip_camera_projection" / "diffusion_pytorch_model.safetensors"))
        common: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
        return Networks(
            AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32, **common),
            UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32, **common),
            CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", dtype=torch.float32, **common),
            projection.float(),
        )

    def modules(self) -> dict[str, nn.Module]:
        """By the name of their folder."""
        return {
            "vae": self.vae, "unet": self.unet, "image_encoder": self.tower, "clip_camera_projection": self.projection
        }  # fmt: skip

    def to(self, device: torch.device | str) -> Networks:
        """In evaluation mode on a device."""
        for module in self.modules().values():
            module.to(device).eval()
        return self

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Zero123's layout, float16 safetensors."""
        from safetensors.torch import save_file
        from transformers import CLIPImageProcessor

        folder = Path(folder)
        for name, module in self.modules().items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            config: Any = getattr(module, "config", None)
            if hasattr(config, "to_dict"):  # transformers
                (folder / name / "config.json").write_text(config.to_json_string() + "\n")
            elif config is not None:  # diffusers
                settings = {"_class_name": type(module).__name__}
                settings |= {k: v for k, v in dict(config).items() if not k.startswith("_")}
                (folder / name / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
            file = "model.safetensors" if name == "image_encoder" else "diffusion_pytorch_model.safetensors"
            weights = {k: v.detach().half().cpu().contiguous() for k, v in module.state_dict().items() if v.is_floating_point()}
            save_file(weights, folder / name / file, metadata={"format": "pt"})
        width = self.projection.proj.out_features
        settings = {"_class_name": "CLIPCameraProjection", "embedding_dim": width, "additional_embeddings": 4}
        (folder / "clip_camera_projection" / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        scheduler().save_pretrained(folder / "scheduler")
        processor = CLIPImageProcessor(
            size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_mean=CLIP_MEAN, image_std=CLIP_STD
        )
        (folder / "feature_extractor").mkdir(exist_ok=True)
        (folder / "feature_extractor" / "preprocessor_config.json").write_text(processor.to_json_string() + "\n")
        index = {
            "_class_name": "Zero1to3StableDiffusionPipeline",
            "clip_camera_projection": ["pipeline_zero1to3", "CLIPCameraProjection"],
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")

    def condition(self, pictures: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
        """Token (B, 1, D) and unscaled latent (B, 4, h, w) of condition pictures (B, H, W, 3) and T (B, 4)."""
        images = pictures.permute(0, 3, 1, 2)
        mean, std = (torch.tensor(x, device=images.device)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
        embedding = self.tower(pixel_values=(images - mean) / std).image_embeds
        return self.projection(embedding, camera), self.vae.encode(images * 2 - 1).latent_dist.mode()


def scheduler() -> Any:
    """Stable Diffusion's noise schedule, as Zero123 uses it."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon",
    )  # fmt: skip


@torch.no_grad()
def sample_views(
    networks: Networks,
    condition: Tensor,  # (B, H, W, 3)
    camera: Tensor,  # (B, 4) Zero123's T
    generator: torch.Generator,
    *,
    samples: int = 4,
    steps: int = 50,
    guidance: float = 1.0,
) -> Tensor:  # (samples, B, H, W, 3)
    """New views by DDIM from pure noise."""
    token, latent = networks.condition(condition, camera)
    token, latent = token.repeat(samples, 1, 1), latent.repeat(samples, 1, 1, 1)
    x = torch.randn(latent.shape, generator=generator, device=generator.device).to(latent)
    ddim = scheduler()
    ddim.set_timesteps(steps, device=x.device)
    for t in ddim.timesteps:
        noise = networks.unet(torch.cat([x, latent], 1), t, encoder_hidden_states=token, return_dict=False)[0]
        if guidance != 1:
            free = torch.cat([x, torch.zeros_like(latent)], 1)
            blind = networks.unet(free, t, encoder_hidden_states=torch.zeros_like(token), return_dict=False)[0]
            noise = blind + guidance * (noise - blind)
        x = ddim.step(noise, t, x, return_dict=False)[0]
    pictures = networks.vae.decode(x / networks.vae.config.scaling_factor, return_dict=False)[0]
    return (pictures / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).unflatten(0, (samples, -1))


# --- data -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Views to draw: times (B, 2) and azimuth, elevation (degrees), distance (B, 2, 3) of condition and target."""

    tau: Tensor
    views: Tensor

    def cameras(self, which: int) -> Cameras:
        """Cameras (B) of the conditions (0) or the targets (1)."""
        azimuth, elevation, distance = self.views[:, which].unbind(-1)
        cameras = orbit(azimuth.cpu(), elevation.cpu(), distance.cpu(), FOVY, SIZE, SIZE)
        return cameras.to(self.views.device)

    @property
    def camera_vectors(self) -> Tensor:  # (B, 4)
        """Zero123's T, slot 4 = target's distance minus condition's."""
        c, t = self.views.unbind(1)
        return zero123_vector(t[:, 1], t[:, 0] - c[:, 0], t[:, 2] - c[:, 2], condition_elevation=c[:, 1])  # type: ignore[arg-type]


def draw_pairs(count: int, generator: torch.Generator, *, free: bool = False) -> Pairs:
    """Random (condition, target) views.

    ``free``: any two views of one moment, what the evaluation uses. Else, as in training, a quarter are from the very same
    camera and 15 % from a nearby one; in half of those, and in one of thirty others, the target shows another moment.
    """
    device = generator.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, device=device)

    def chance(p: float) -> Tensor:
        return torch.rand(count, generator=generator, device=device) < p

    def elevation() -> Tensor:
        level = 5 + 12 * torch.randn(count, generator=generator, device=device)
        return torch.where(chance(0.5), uniform(*ELEVATIONS), level.clamp(*ELEVATIONS))

    azimuth = uniform(-180, 180), uniform(-180, 180)
    high = elevation(), elevation()
    far = uniform(*DISTANCES), uniform(*DISTANCES)
    condition = torch.stack([azimuth[0], high[0], far[0]], -1)
    target = torch.stack([azimuth[1], high[1], torch.where(chance(0.6), far[0], far[1])], -1)
    tau = uniform(0, 1)[:, None].expand(-1, 2).clone()
    if not free:
        kind = uniform(0, 1)
        step = torch.stack([uniform(-30, 30), uniform(-12, 12), uniform(-0.2, 0.2) * chance(0.5)], -1)
        near = condition + step
        near[:, 1:] = near[:, 1:].clamp(
            torch.tensor([ELEVATIONS[0], DISTANCES[0]], device=device),
            torch.tensor([ELEVATIONS[1], DISTANCES[1]], device=device),
        )
        target = torch.where((kind < 0.25)[:, None], condition, torch.where((kind < 0.4)[:, None], near, target))
        moved = torch.where(kind < 0.4, chance(0.5), chance(1 / 30))
        tau[:, 1] = torch.where(moved, uniform(0, 1), tau[:, 1])
    return Pairs(tau, torch.stack([condition, target], 1))


def degrade(pictures: Tensor, generator: torch.Generator, share: float = 1.0) -> Tensor:  # (B, H, W, 3)
    """What renders of imperfect Gaussians look like, on a ``share`` of the pictures: blur, small holes, speckles, noise."""
    count, size, device = len(pictures), pictures.shape[1], pictures.device

    def rand(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=device)

    images = pictures.permute(0, 3, 1, 2)
    kernel = torch.tensor([1.0, 2.0, 1.0], device=device)
    kernel = (kernel[:, None] * kernel / 16).expand(3, 1, 3, 3).to(images)
    blurred = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    wide = F.conv2d(F.pad(blurred, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    which = rand(1, 1, 1)
    out = torch.where(which < 0.25, blurred, torch.where(which < 0.35, wide, images))
    for coarse, strength in ((size // 2, 0.3), (size // 5, 0.3), (size, 0.3)):
        field = F.interpolate(rand(1, coarse, coarse), size=(size, size), mode="bilinear", align_corners=False)
        spread = field > 1 - 0.3 * rand(1, 1, 1) * (rand(1, 1, 1) < strength)
        shift = int(torch.randint(1, 12, (1,), generator=generator, device=device))
        color = torch.where(rand(1, 1, 1) < 0.5, torch.ones_like(out), out.roll((shift, -shift), (2, 3)))
        color = torch.where(rand(1, 1, 1) < 0.2, rand(3, 1, 1).expand_as(out), color)
        near_object = F.max_pool2d((images < 0.98).any(1, keepdim=True).to(out.dtype), 5, 1, 2) > 0
        out = torch.where(spread & near_object, torch.lerp(out, color, rand(1, 1, 1).clamp_min(0.3)), out)
    noise = torch.randn(out.shape, generator=generator, device=device) * 0.05 * rand(1, 1, 1) * (rand(1, 1, 1) < 0.2)
    out = torch.where(rand(1, 1, 1) < share, (out + noise).clamp(0, 1), images)
    return out.permute(0, 2, 3, 1)


class Data:
    """Pictures of random views of a pool of objects, drawn where they are used."""

    def __init__(self, objects: Objects, generator: torch.Generator, *, compiled: bool = False, chunk: int = 1024) -> None:
        self.objects, self.generator, self.compiled, self.chunk = objects, generator, compiled, chunk

    def _pick(self, count: int) -> Tensor:
        return torch.randint(len(self.objects), (count,), generator=self.generator, device=self.generator.device)

    def _draw(self, pick: Tensor, tau: Tensor, cameras: Cameras) -> Tensor:
        parts = [slice(k, k + self.chunk) for k in range(0, len(pick), self.chunk)]
        made = [render(self.objects[pick[p]], tau[p], cameras[p], compiled=self.compiled)[0] for p in parts]
        return torch.cat(made)

    def pairs(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Conditions and targets (B, H, W, 3) and T (B, 4) of half as many pairs of views, each used in both directions."""
        pick, pairs = self._pick(count // 2), draw_pairs(count // 2, self.generator)
        cameras = Cameras.cat([pairs.cameras(0), pairs.cameras(1)])
        pictures = self._draw(pick.repeat(2), pairs.tau.T.reshape(-1), cameras)
        turned = replace(pairs, views=pairs.views.flip(1))
        return pictures, pictures.roll(count // 2, 0), torch.cat([pairs.camera_vectors, turned.camera_vectors])

    def pictures(self, count: int) -> Tensor:  # (B, H, W, 3)
        """Single views."""
        pairs = draw_pairs(count, self.generator, free=True)
        return self._draw(self._pick(count), pairs.tau[:, 0], pairs.cameras(0))


# --- training ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; the bundled weights took three shorter ones of these sizes (docs/tiny-prior.md).

    Args:
        objects: size of the pool, seeds 0 and up.
        vae_steps, vae_batch, vae_rate: of the autoencoder.
        steps, batch, rate: of UNet, tower and projection.
        decay: share of ``steps`` at the end over which the rate falls linearly to zero.
        minutes: the diffusion training ends after so many, the rate falling over the same share of them; 0: after ``steps``.
        drop: share of the pairs trained without condition.
        degraded: share of the condition pictures that are degraded.
    """

    objects: int = 200_000
    vae_steps: int = 5000
    vae_batch: int = 512
    vae_rate: float = 1e-3
    steps: int = 12_000
    batch: int = 1024
    rate: float = 1e-3
    warmup: int = 500
    decay: float = 0.4
    minutes: float = 0.0
    drop: float = 0.12
    degraded: float = 0.3
    ema: float = 0.9995
    seed: int = 0


class Ema:
    """A moving mean of parameters, in float32."""

    def __init__(self, modules: Sequence[nn.Module], decay: float) -> None:
        self.live: list[Tensor] = [p for m in modules for p in m.parameters()]
        self.mean = [p.detach().clone() for p in self.live]
        self.decay, self.count = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        self.count += 1
        rate = 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self.mean, self.live, rate)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the means with the live parameters; calling it again undoes it."""
        for mean, live in zip(self.mean, self.live):
            kept = live.detach().clone()
            live.copy_(mean)
            mean.copy_(kept)


def train_vae(networks: Networks, data: Data, recipe: Recipe, journal: Journal) -> list[float]:
    """Trains the autoencoder on views and degraded views, then makes its latents zero-mean with deviation 1 / scaling factor.

    Loss: L1 + 4 MSE + 0.5 L1 of the pictures' differences + 2e-5 KL, mean over elements. Returns the losses.
    """
    vae = networks.vae
    device = next(vae.parameters()).device
    vae.train()
    optimiser = torch.optim.AdamW(
        vae.parameters(), recipe.vae_rate, (0.9, 0.99), weight_decay=0.01, fused=device.type == "cuda"
    )
    ema = Ema([vae], 0.999)
    step_loss = torch.compile(_vae_loss) if data.compiled else _vae_loss
    losses: list[float] = []
    running = torch.zeros((), device=device)
    for step in range(recipe.vae_steps):
        rise = min(1.0, (step + 1) / max(1, min(200, recipe.vae_steps // 10)))
        fall = min(1.0, (recipe.vae_steps - step) / (0.4 * recipe.vae_steps))
        for group in optimiser.param_groups:
            group["lr"] = recipe.vae_rate * rise * fall
        images = degrade(data.pictures(recipe.vae_batch), data.generator, 0.4).permute(0, 3, 1, 2) * 2 - 1
        images = images.contiguous(memory_format=torch.channels_last)
        with _autocast(device):
            loss = step_loss(vae, images)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        ema.update()
        running += loss.detach()
        if (step + 1) % journal.every == 0 or step + 1 == recipe.vae_steps:
            losses.append(float(running) / (step % journal.every + 1))
            running.zero_()
            journal.note("vae", step + 1, losses[-1])
    ema.swap()
    vae.eval()
    _standardise(vae, torch.cat([data.pictures(recipe.vae_batch) for _ in range(8)]))
    return losses


def _vae_loss(vae: nn.Module, images: Tensor) -> Tensor:
    posterior = vae.encode(images).latent_dist  # type: ignore[operator]
    back = vae.decode(posterior.sample()).sample.float()  # type: ignore[operator]
    error = back - images
    across, down = error.diff(dim=-1), error.diff(dim=-2)
    kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return error.abs().mean() + 4 * (error**2).mean() + 0.5 * (across.abs().mean() + down.abs().mean()) + 2e-5 * kl


@torch.no_grad()
def _standardise(vae: Any, pictures: Tensor) -> None:
    """Folds an affine map per latent channel into the 1 x 1 convolutions on both sides of the latent."""
    latents = torch.cat([vae.encode(p.permute(0, 3, 1, 2) * 2 - 1).latent_dist.mode() for p in pictures.split(512)])
    mean, scale = latents.mean((0, 2, 3)), 1 / (vae.config.scaling_factor * latents.std((0, 2, 3)))
    into, out, n = vae.quant_conv, vae.post_quant_conv, len(mean)
    into.weight[:n] *= scale[:, None, None, None]
    into.bias[:n] = (into.bias[:n] - mean) * scale
    into.bias[n:] += 2 * scale.log()
    out.bias += (out.weight[:, :, 0, 0] * mean).sum(1)
    out.weight /= scale[None, :, None, None]


def train_diffusion(networks: Networks, data: Data, recipe: Recipe, journal: Journal) -> list[float]:
    """Trains UNet, image tower and camera projection together to predict the noise. Returns the losses.

    The squared error of the noise is weighted by min(1 + 1 / SNR, 20), which counts an error of the clean latent alike at all
    noise levels but the highest.
    """
    device = next(networks.unet.parameters()).device
    networks.vae.eval().requires_grad_(False)
    trained = [networks.unet, networks.tower, networks.projection]
    for module in trained:
        module.train().requires_grad_(True)
    parameters = [p for m in trained for p in m.parameters()]
    optimiser = torch.optim.AdamW(parameters, recipe.rate, (0.9, 0.99), weight_decay=0.01, fused=device.type == "cuda")
    ema = Ema(trained, recipe.ema)
    _precise(networks.unet.conv_in)
    _precise(networks.unet.conv_out)
    usual = networks.unet.attn_processors
    attend_to_one_token(networks.unet)
    abar = scheduler().alphas_cumprod.to(device)
    weight = (1 / abar).clamp_max(20)  # 1 + 1 / SNR
    encode, loss_of = _encode, _noise_loss
    if data.compiled:
        encode, loss_of = torch.compile(_encode), torch.compile(_noise_loss)
    losses: list[float] = []
    running, begin, step, progress = torch.zeros((), device=device), time.monotonic(), 0, 0.0
    while progress < 1:
        fall = min(1.0, (1 - progress) / recipe.decay)
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * min(1.0, (step + 1) / recipe.warmup) * max(fall, 1e-3)
        with torch.no_grad():
            condition, target, camera = data.pairs(recipe.batch)
            condition = degrade(condition, data.generator, recipe.degraded)
            with _autocast(device):
                latent, clean = encode(networks.vae, condition, target)
            latent, clean = latent.float(), clean.float() * SCALING
            keep = (torch.rand(recipe.batch, generator=data.generator, device=device) >= recipe.drop).float()
            t = torch.randint(1000, (recipe.batch,), generator=data.generator, device=device)
            noise = torch.randn(clean.shape, generator=data.generator, device=device)
            a = abar[t][:, None, None, None]
            noisy = torch.cat([a.sqrt() * clean + (1 - a).sqrt() * noise, latent * keep[:, None, None, None]], 1)
            mean, std = (torch.tensor(x, device=device)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
            pixels = (condition.permute(0, 3, 1, 2) - mean) / std
        with _autocast(device):
            loss = loss_of(networks, pixels, camera, keep, noisy, t, noise, weight[t])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        ema.update()
        running += loss.detach()
        step += 1
        progress = step / recipe.steps if not recipe.minutes else (time.monotonic() - begin) / 60 / recipe.minutes
        if step % journal.every == 0 or progress >= 1:
            losses.append(float(running) / ((step - 1) % journal.every + 1))
            running.zero_()
            journal.note("diffusion", step, losses[-1])
            if journal.due():
                ema.swap()
                journal.snapshot(networks, step)
                ema.swap()
    ema.swap()
    networks.unet.set_attn_processor(usual)
    return losses


def _encode(vae: nn.Module, condition: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Modes of the conditions and samples of the targets, unscaled."""
    images = torch.cat([condition, target]).permute(0, 3, 1, 2) * 2 - 1
    posterior = vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist  # type: ignore[operator]
    first, second = posterior.mean.float().chunk(2)
    return first, second + posterior.std.float().chunk(2)[1] * torch.randn_like(second)


def _noise_loss(
    networks: Networks, pixels: Tensor, camera: Tensor, keep: Tensor, noisy: Tensor, t: Tensor, noise: Tensor, weight: Tensor
) -> Tensor:
    token = networks.projection(networks.tower(pixel_values=pixels).image_embeds, camera) * keep[:, None, None]
    noisy = noisy.contiguous(memory_format=torch.channels_last)
    guess = networks.unet(noisy, t, encoder_hidden_states=token, return_dict=False)[0]
    return (((guess.float() - noise) ** 2).mean((1, 2, 3)) * weight).mean()


def _precise(convolution: nn.Conv2d) -> None:
    """Keeps the first and last convolution in float32 under autocast: at high noise, rounding is amplified tenfold."""

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float(), convolution.weight, convolution.bias, padding=1)

    convolution.forward = forward  # type: ignore[method-assign]


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


class Journal:
    """What a run writes: a line of log.jsonl every ``every`` steps, a snapshot of the weights every ``minutes``."""

    def __init__(self, folder: Path, every: int = 200, minutes: float = 4.0) -> None:
        self.folder, self.every, self.minutes = folder, every, minutes
        folder.mkdir(parents=True, exist_ok=True)
        self.begin = self.last = time.monotonic()

    def note(self, stage: str, step: int, loss: float, **more: Any) -> None:
        line = {
            "stage": stage,
            "step": step,
            "loss": round(loss, 6),
            "seconds": round(time.monotonic() - self.begin, 1),
            **more,
        }
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        log.info("%s", json.dumps(line))

    def due(self) -> bool:
        return time.monotonic() - self.last > 60 * self.minutes

    def snapshot(self, networks: Networks, step: int) -> None:
        self.last = time.monotonic()
        networks.save(self.folder / "weights")
        self.note("snapshot", step, 0.0, **validate(networks))


@torch.no_grad()
def validate(networks: Networks, count: int = 200, steps: int = 25) -> dict[str, float]:
    """Mean PSNR of the evaluation's prediction on held-out objects; the whole evaluation is bench/tiny_prior.py."""
    device = next(networks.unet.parameters()).device
    training = networks.unet.training
    networks.to(device)
    generator = torch.Generator().manual_seed(HELD_OUT)
    pairs = draw_pairs(count, generator, free=True)
    pairs = replace(pairs, tau=pairs.tau.to(device), views=pairs.views.to(device))
    objects = generate_many(range(HELD_OUT, HELD_OUT + count)).to(device)
    condition, target = (render(objects, pairs.tau[:, k], pairs.cameras(k), supersample=3)[0] for k in (0, 1))
    seeds = torch.Generator().manual_seed(0)
    guess = sample_views(networks, condition, pairs.camera_vectors, seeds, steps=steps).mean(0)
    back = networks.vae.decode(networks.vae.encode(target.permute(0, 3, 1, 2) * 2 - 1).latent_dist.mode()).sample
    if training:
        for module in (networks.unet, networks.tower, networks.projection):
            module.train()

    def psnr(a: Tensor) -> float:
        return round(float(-10 * ((a - target) ** 2).mean((1, 2, 3)).log10().mean()), 3)

    return {"psnr": psnr(guess), "condition": psnr(condition), "vae": psnr((back.permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1))}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the trainer."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights/ and log.jsonl")
    parser.add_argument("--resume", type=Path, help="weights to start from (their VAE is kept as it is)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--every", type=int, default=200, help="steps between lines of the log")
    parser.add_argument("--snapshot", type=float, default=4.0, help="minutes between snapshots")
    parser.add_argument("--no-compile", action="store_true")
    for name in (
        "objects",
        "vae_steps",
        "vae_batch",
        "vae_rate",
        "steps",
        "batch",
        "rate",
        "warmup",
        "decay",
        "minutes",
        "seed",
        "ema",
    ):
        value = getattr(defaults, name)
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    options = vars(parser.parse_args(arguments))
    recipe = Recipe(**{k: v for k, v in options.items() if k in Recipe.__dataclass_fields__})
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    device = torch.device(options["device"])
    compiled = device.type == "cuda" and not options["no_compile"]
    torch.manual_seed(recipe.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    journal = Journal(options["out"], options["every"], options["snapshot"])
    objects = generate_many(range(recipe.objects), max(1, (os.cpu_count() or 2) - 1)).to(device)
    journal.note("objects", len(objects), 0.0)
    data = Data(objects, torch.Generator(device).manual_seed(recipe.seed + 1), compiled=compiled)
    networks = Networks.load(options["resume"]) if options["resume"] else Networks.fresh()
    networks.to(device)
    for module in (networks.vae, networks.unet):
        module.to(memory_format=torch.channels_last)
    if not options["resume"]:
        train_vae(networks, data, recipe, journal)
        networks.save(journal.folder / "weights")
    train_diffusion(networks, data, recipe, journal)
    journal.snapshot(networks, -1)


if __name__ == "__main__":
    main()
