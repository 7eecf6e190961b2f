"""Small checkpoints with random weights that the host's own loaders take for the real ones. Run by the host's interpreter."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.ldm.hunyuan3d.vae
import comfy.ldm.triposplat.model
import comfy.ldm.triposplat.vae
import comfy.ldm.wan.vae2_2
import comfy.ops
import comfy.sd
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.ldm.hunyuan3d.model import Hunyuan3Dv2
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.wan.model import WanModel
from comfy.ldm.wan.vae import WanVAE
from safetensors.torch import save_file
from torch import Tensor, nn

#: A CLIP vision tower of the host's class with ViT-L's embedding; no loader of the host makes one this small.
CLIP_VISION = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
    "num_hidden_layers": 2, "num_channels": 3, "patch_size": 64, "image_size": 256, "projection_dim": 768,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
OPERATIONS = comfy.ops.disable_weight_init
SD_VAE = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


def weights(build: Any, prefix: str = "", seed: int = 0, device: str = "meta") -> dict[str, Tensor]:
    """Random half-precision weights of a module that is built without memory; every layer keeps the size of its input."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device(device):
        module: nn.Module = build()
    made = {}
    for name, like in module.state_dict().items():
        if like.ndim < 2 or name.endswith("gamma"):
            value = torch.ones(like.shape) if name.endswith(("weight", "gamma")) else torch.zeros(like.shape)
        else:
            value = torch.randn(like.shape, generator=generator) / math.sqrt(math.prod(like.shape[1:]))
        made[prefix + name] = value.half()
    return made


def unet(channels: int) -> UNetModel:
    """Stable Diffusion 1.5's UNet with one level of its four."""
    return UNetModel(
        image_size=32, in_channels=channels, model_channels=320, out_channels=4, num_res_blocks=[1], channel_mult=[1],
        transformer_depth=[1], transformer_depth_output=[1, 1], transformer_depth_middle=1, context_dim=768, num_heads=8,
        use_spatial_transformer=True, use_checkpoint=False, legacy=False, operations=OPERATIONS, dtype=torch.float32,
    )  # fmt: skip


def sd_vae() -> dict[str, Tensor]:
    """Weights of Stable Diffusion's VAE."""
    return weights(lambda: AutoencoderKL(ddconfig=SD_VAE, embed_dim=4), "first_stage_model.")


def zero123(path: Path) -> Path:
    """A checkpoint that the host detects as Stable Zero123; without a CLIP vision tower."""
    generator = torch.Generator().manual_seed(2)
    projection = {
        "cc_projection.weight": torch.randn(768, 772, generator=generator).half() * 0.03,
        "cc_projection.bias": torch.zeros(768).half(),
    }
    save_file(weights(lambda: unet(8), "model.diffusion_model.", 1) | projection | sd_vae(), path)
    return path


def picture_unet(path: Path) -> Path:
    """A diffusion model that the host detects as Stable Diffusion 1.5."""
    save_file(weights(lambda: unet(4), "model.diffusion_model.", 3), path)
    return path


def wan(path: Path, channels: int = 16) -> Path:
    """A diffusion model that the host detects as Wan 2.1, with 48 channels as Wan 2.2 5B: one block of 128 features."""
    settings = {"dim": 128, "ffn_dim": 64, "num_heads": 1, "num_layers": 1, "in_dim": channels, "out_dim": channels}
    save_file(weights(lambda: WanModel(**settings, operations=OPERATIONS), "", 4), path)
    return path


def wan_vae(path: Path) -> Path:
    """Its VAE, 8 channels wide."""
    save_file(
        weights(lambda: WanVAE(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], temperal_downsample=[False, True, True]), "", 5), path
    )
    return path


def clip_vision() -> ClipVisionModel:
    """What the host's loaders give as CLIP_VISION."""
    model = ClipVisionModel(CLIP_VISION)
    model.load_sd(weights(lambda: type(model.model)(CLIP_VISION, torch.float32, "meta", OPERATIONS), "", 6))
    return model


@contextmanager
def small(module: Any, name: str, **settings: Any) -> Iterator[Any]:
    """A class of the host with other defaults: its VAE loader makes some networks at their full size only."""
    whole = getattr(module, name)
    setattr(module, name, lambda **given: whole(**given | settings))
    try:
        yield functools.partial(whole, **settings)
    finally:
        setattr(module, name, whole)


TRIPOSPLAT = {
    "model_channels": 64, "num_blocks": 1, "num_refiner_blocks": 1, "cond_channels": CLIP_VISION["hidden_size"],
    "cond2_channels": 4,
}  # fmt: skip


def triposplat(path: Path) -> comfy.sd.ModelPatcher:
    """TripoSplat's flow model, one block of 64 features, told of pictures by CLIP_VISION and Stable Diffusion's VAE."""
    with small(comfy.ldm.triposplat.model, "LatentSeqMMFlowModel", **TRIPOSPLAT) as build:
        save_file(weights(lambda: build(operations=OPERATIONS), "", 10, "cpu"), path)
        return comfy.sd.load_diffusion_model(str(path))


def triposplat_decoder() -> comfy.sd.VAE:
    """Its decoder of Gaussians, one block of 64 features."""
    vae, sizes = comfy.ldm.triposplat.vae, {"model_channels": 64, "num_blocks": 1, "num_heads": 1}
    with small(vae, "OctreeProbabilityFixedlenDecoder", **sizes), small(vae, "ElasticGaussianFixedlenDecoder", **sizes):
        return comfy.sd.VAE(sd=weights(vae.OctreeGaussianDecoder, "", 11, "cpu"))


def wan22_vae() -> comfy.sd.VAE:
    """Wan 2.2's VAE, 8 channels wide."""
    layout = {"z_dim": 48, "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]}
    with small(comfy.ldm.wan.vae2_2, "WanVAE", dim=8, dec_dim=8) as build:
        return comfy.sd.VAE(sd=weights(lambda: build(**layout), "", 7))


def hunyuan3d(path: Path) -> Path:
    """A diffusion model that the host detects as Hunyuan3D 2: two blocks of 128 features, told of pictures by CLIP_VISION."""
    settings = {"hidden_size": 128, "depth": 1, "depth_single_blocks": 1, "context_in_dim": CLIP_VISION["hidden_size"]}
    save_file(weights(lambda: Hunyuan3Dv2(**settings, operations=OPERATIONS), "", 8), path)
    return path


def hunyuan3d_vae() -> comfy.sd.VAE:
    """Its VAE of shapes, 64 features wide."""
    with small(
        comfy.ldm.hunyuan3d.vae, "ShapeVAE", width=64, heads=4, num_decoder_layers=1, num_encoder_layers=1, num_freqs=1
    ) as build:
        return comfy.sd.VAE(sd=weights(build, "", 9))
