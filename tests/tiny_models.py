"""Checkpoint folders of the real classes at tiny random sizes, in the published layouts; for the tests of priors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

#: VAE factor of the tiny models: 16 x 16 pixels are 8 x 8 latent cells.
FACTOR, CELLS = 2, 8


def perturbed(module: Any, seed: int = 0) -> Any:
    """Every parameter random, so that layers that start as zeros or ones count too."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.3 / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
        parameter.data = noise * scale + (1.0 if parameter.ndim == 1 and parameter.data.mean() > 0.5 else 0.0)
    return module.eval()


def vae(seed: int = 0, **settings: Any) -> AutoencoderKL:
    defaults: dict[str, Any] = dict(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=CELLS * FACTOR,
        scaling_factor=0.18215,
    )
    return perturbed(AutoencoderKL(**(defaults | settings)), seed)


def small_encoder(seed: int = 0, **settings: Any) -> AutoencoderTiny:
    defaults: dict[str, Any] = dict(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    return perturbed(AutoencoderTiny(**(defaults | settings)), seed)


def unet(seed: int = 0, **settings: Any) -> UNet2DConditionModel:
    defaults: dict[str, Any] = dict(
        sample_size=CELLS,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return perturbed(UNet2DConditionModel(**(defaults | settings)), seed)


def vision_tower(seed: int = 0, **settings: Any) -> CLIPVisionModelWithProjection:
    defaults: dict[str, Any] = dict(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=12,
    )
    return perturbed(CLIPVisionModelWithProjection(CLIPVisionConfig(**(defaults | settings))), seed)


def scheduler(prediction: str = "epsilon") -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )


def write_zero123(folder: Path, prediction: str = "epsilon", seed: int = 0, pipeline: str = "Zero123Pipeline") -> Path:
    """Zero123's layout, as the published conversions have it."""
    unet(seed, in_channels=8).save_pretrained(folder / "unet")
    vae(seed + 1).save_pretrained(folder / "vae")
    vision_tower(seed + 2).save_pretrained(folder / "image_encoder")
    scheduler(prediction).save_pretrained(folder / "scheduler")
    write_json(
        folder / "feature_extractor" / "preprocessor_config.json",
        {
            "image_mean": [0.5, 0.45, 0.4],
            "image_std": [0.3, 0.25, 0.2],
            "size": {"shortest_edge": 28},
            "crop_size": {"height": 28, "width": 28},
        },
    )
    write_json(
        folder / "clip_camera_projection" / "config.json",
        {"_class_name": "CLIPCameraProjection", "embedding_dim": 12, "additional_embeddings": 4},
    )
    generator = torch.Generator().manual_seed(seed + 3)
    save_file(
        {"proj.weight": torch.randn(12, 16, generator=generator) / 4, "proj.bias": torch.randn(12, generator=generator) / 4},
        folder / "clip_camera_projection" / "diffusion_pytorch_model.safetensors",
        {"format": "pt"},
    )
    write_json(folder / "model_index.json", {"_class_name": pipeline, "unet": ["diffusers", "UNet2DConditionModel"]})
    return folder


def write_tokenizer(folder: Path, length: int = 16) -> None:
    """CLIP's byte-pair tokenizer without merges: a token a letter, 54 in all."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {word: i for i, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = "<|endoftext|>"
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **special},
    )


def text_config(**settings: Any) -> CLIPTextConfig:
    defaults: dict[str, Any] = dict(
        vocab_size=54,
        bos_token_id=52,
        eos_token_id=53,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=10,
    )
    return CLIPTextConfig(**(defaults | settings))


def write_stable_diffusion(folder: Path, prediction: str = "epsilon", seed: int = 0, **unet_settings: Any) -> Path:
    """Stable Diffusion 1.x and 2.x."""
    unet(seed, **unet_settings).save_pretrained(folder / "unet")
    vae(seed + 1).save_pretrained(folder / "vae")
    perturbed(CLIPTextModel(text_config()), seed + 2).save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer")
    scheduler(prediction).save_pretrained(folder / "scheduler")
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    return folder


def write_stable_diffusion_xl(folder: Path, seed: int = 0, zeros: bool = True) -> Path:
    """Stable Diffusion XL: the second text encoder 20 wide with 10 pooled numbers."""
    unet(
        seed,
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=10 + 6 * 4,
        use_linear_projection=True,
    ).save_pretrained(folder / "unet")
    vae(seed + 1, scaling_factor=0.13025, force_upcast=True).save_pretrained(folder / "vae")
    perturbed(CLIPTextModel(text_config()), seed + 2).save_pretrained(folder / "text_encoder")
    second = CLIPTextModelWithProjection(text_config(hidden_size=20, num_attention_heads=4))
    perturbed(second, seed + 3).save_pretrained(folder / "text_encoder_2")
    write_tokenizer(folder / "tokenizer")
    write_tokenizer(folder / "tokenizer_2")
    scheduler().save_pretrained(folder / "scheduler")
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": zeros})
    return folder


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
