"""Folders of real video models at tiny random sizes, in the published layouts; for the tests of video priors and generators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MotionAdapter,
    StableDiffusionPipeline,
    StableVideoDiffusionPipeline,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from tiny_models import perturbed, scheduler, unet, vae, vision_tower
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]


def t5_tokenizer(length: int = 16) -> T5Tokenizer:
    """One token a letter."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in [*LETTERS, "&", ","])]
    return T5Tokenizer(vocab=pieces, extra_ids=0, additional_special_tokens=[], model_max_length=length)


def clip_tokenizer(length: int = 77) -> CLIPTokenizer:
    """One token a letter, and one for a letter that ends a word."""
    words = [*LETTERS, *(f"{c}</w>" for c in LETTERS), ",</w>", "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=length)


def clip_text(seed: int = 0, length: int = 77, **settings: Any) -> CLIPTextModel:
    defaults: dict[str, Any] = dict(
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(clip_tokenizer()),
        max_position_embeddings=length,
        bos_token_id=53,
        eos_token_id=54,
        projection_dim=12,
    )
    return perturbed(CLIPTextModel(CLIPTextConfig(**(defaults | settings))), seed)


def t5_encoder(seed: int = 0, multilingual: bool = False) -> Any:
    config, model = (UMT5Config, UMT5EncoderModel) if multilingual else (T5Config, T5EncoderModel)
    sizes: dict[str, Any] = dict(
        d_model=12, d_ff=16, d_kv=6, num_heads=2, num_layers=2, vocab_size=len(t5_tokenizer()), feed_forward_proj="gated-gelu"
    )
    return perturbed(model(config(**sizes)), seed)


def unet3d(seed: int = 0) -> UNet3DConditionModel:
    return perturbed(
        UNet3DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=12,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        seed,
    )


def write_modelscope(folder: Path) -> Path:
    """ModelScope's and Zeroscope's layout."""
    TextToVideoSDPipeline(
        vae=vae(1), text_encoder=clip_text(2), tokenizer=clip_tokenizer(), unet=unet3d(), scheduler=scheduler()
    ).save_pretrained(folder)
    return folder


def wan_transformer(seed: int = 0, **settings: Any) -> WanTransformer3DModel:
    defaults: dict[str, Any] = dict(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=16,
        num_layers=2,
        rope_max_seq_len=32,
    )
    return perturbed(WanTransformer3DModel(**(defaults | settings)), seed)


def wan_vae(seed: int = 0, **settings: Any) -> AutoencoderKLWan:
    """A cell of 4 pixels, 4 pictures a latent frame."""
    defaults: dict[str, Any] = dict(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 0.8, 1.2, 0.9],
        scale_factor_spatial=4,
    )
    return perturbed(AutoencoderKLWan(**(defaults | settings)), seed)


def wan_scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def write_wan(folder: Path, vae_settings: dict[str, Any] | None = None, two: bool = False, **settings: Any) -> Path:
    """Wan's text-to-video layout."""
    autoencoder = wan_vae(1, **(vae_settings or {}))
    channels = {"in_channels": autoencoder.config.z_dim, "out_channels": autoencoder.config.z_dim}
    WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(2, multilingual=True),
        vae=autoencoder,
        scheduler=wan_scheduler(),
        transformer=wan_transformer(3, **channels),
        transformer_2=wan_transformer(4, **channels) if two else None,
        boundary_ratio=0.5 if two else None,
        **settings,
    ).save_pretrained(folder)
    return folder


def ltx_vae(seed: int = 0) -> AutoencoderKLLTXVideo:
    """A cell of 4 pixels, 2 pictures a latent frame."""
    model = perturbed(
        AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            spatio_temporal_scaling=(True, False),
            decoder_spatio_temporal_scaling=(True, False),
            decoder_inject_noise=(False, False, False),
            down_block_types=("LTXVideoDownBlock3D",) * 2,
            downsample_type=("conv", "conv"),
            upsample_residual=(False, False),
            upsample_factor=(1, 1),
            patch_size=2,
            patch_size_t=1,
            scaling_factor=0.9,
        ),
        seed,
    )
    model.latents_mean += 0.1
    model.latents_std *= 0.7
    return model


def ltx_transformer(seed: int = 0) -> LTXVideoTransformer3DModel:
    return perturbed(
        LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            num_layers=1,
            caption_channels=12,
        ),
        seed,
    )


def write_ltx(folder: Path, pipeline: Any = LTXPipeline) -> Path:
    """LTX-Video's layout."""
    pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=pipeline is LTXPipeline),
        vae=ltx_vae(1),
        text_encoder=t5_encoder(2),
        tokenizer=t5_tokenizer(),
        transformer=ltx_transformer(3),
    ).save_pretrained(folder)
    return folder


def write_svd(folder: Path) -> Path:
    """Stable Video Diffusion's layout; a picture's 224 pixels are one patch of its CLIP tower."""
    blocks: dict[str, Any] = dict(
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 32),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=1,
        cross_attention_dim=12,
        num_attention_heads=(2, 2),
        num_frames=3,
        sample_size=8,
    )
    StableVideoDiffusionPipeline(
        vae=perturbed(
            AutoencoderKLTemporalDecoder(
                down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 32), latent_channels=4
            ),
            1,
        ),
        image_encoder=vision_tower(2, image_size=224, patch_size=224),
        unet=perturbed(UNetSpatioTemporalConditionModel(**blocks)),
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear", prediction_type="v_prediction", use_karras_sigmas=True, timestep_type="continuous",
            sigma_min=0.002, sigma_max=700.0, timestep_spacing="leading", steps_offset=1, interpolation_type="linear",
        ),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 224}),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def write_wan_image(folder: Path) -> Path:
    """Wan 2.1's image-to-video layout: noise, mask and the picture's latents, and CLIP's patches."""
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
        )
    )  # fmt: skip
    WanImageToVideoPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(2, multilingual=True),
        vae=wan_vae(1),
        scheduler=wan_scheduler(),
        transformer=wan_transformer(3, in_channels=4 + 4 + 4, image_dim=8, added_kv_proj_dim=24),
        image_encoder=perturbed(tower, 4),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
    ).save_pretrained(folder)
    return folder


def write_cogvideox(folder: Path, pipeline: Any = CogVideoXPipeline) -> Path:
    """CogVideoX's layout: 5 frames of 16x32 pixels."""
    pipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(2),
        vae=perturbed(
            AutoencoderKLCogVideoX(
                down_block_types=("CogVideoXDownBlock3D",) * 4,
                up_block_types=("CogVideoXUpBlock3D",) * 4,
                block_out_channels=(4, 4, 4, 4),
                latent_channels=4,
                layers_per_block=1,
                norm_num_groups=2,
            ),
            1,
        ),
        transformer=perturbed(
            CogVideoXTransformer3DModel(
                num_attention_heads=2,
                attention_head_dim=8,
                in_channels=4 if pipeline is CogVideoXPipeline else 8,
                out_channels=4,
                time_embed_dim=4,
                text_embed_dim=12,
                num_layers=1,
                sample_width=4,
                sample_height=2,
                sample_frames=5,
            )
        ),
        scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    ).save_pretrained(folder)
    return folder


def write_stable_diffusion(folder: Path) -> Path:
    StableDiffusionPipeline(
        vae=vae(1),
        text_encoder=clip_text(2),
        tokenizer=clip_tokenizer(),
        unet=unet(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def write_motion_adapter(folder: Path) -> Path:
    """AnimateDiff's motion, for :func:`write_stable_diffusion`."""
    adapter = MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_num_attention_heads=2, motion_norm_num_groups=4
    )
    perturbed(adapter).save_pretrained(folder)
    return folder


def write_hunyuan(folder: Path) -> Path:
    """HunyuanVideo's text-to-video layout."""
    sizes: dict[str, Any] = dict(
        hidden_size=12, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, vocab_size=len(t5_tokenizer())
    )
    HunyuanVideoPipeline(
        text_encoder=perturbed(LlamaModel(LlamaConfig(**sizes)), 1),
        tokenizer=t5_tokenizer(512),
        transformer=perturbed(
            HunyuanVideoTransformer3DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=10,
                num_layers=1,
                num_single_layers=1,
                num_refiner_layers=1,
                patch_size=1,
                text_embed_dim=12,
                pooled_projection_dim=12,
                rope_axes_dim=(2, 4, 4),
            )
        ),
        vae=perturbed(
            AutoencoderKLHunyuanVideo(
                latent_channels=4,
                down_block_types=("HunyuanVideoDownBlock3D",) * 4,
                up_block_types=("HunyuanVideoUpBlock3D",) * 4,
                block_out_channels=(4, 4, 4, 4),
                layers_per_block=1,
                norm_num_groups=2,
            ),
            2,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip_text(3),
        tokenizer_2=clip_tokenizer(),
    ).save_pretrained(folder)
    return folder
