"""Text-to-video with a 3D UNet: ModelScope (damo-vilab/text-to-video-ms-1.7b) and Zeroscope (cerspense/zeroscope_v2_576w).

Stable Diffusion 2's parts (an AutoencoderKL a frame, a CLIP text tower of which the last layer is used) around a
UNet3DConditionModel that mixes frames. The layout is that of diffusers' TextToVideoSDPipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..files import InputError
from .base import PRIORS, Condition, NoiseSchedule, Prior, Viewpoints
from .checkpoints import Checkpoint, Precision, precision_dtypes

#: The negative prompt of Align Your Gaussians, which steers away from clips that hardly move.
MOTIONLESS = "low motion, static statue, not moving, no motion"


def prompts(
    prior: Prior,
    image: Tensor | None,
    text: str | Sequence[str] | None,
    negative: str | Sequence[str] | None,
    fps: float | None,
) -> tuple[list[str], list[str]]:
    """The texts and negative texts of a model that is given nothing but text, and perhaps the frame rate.

    Raises:
        InputError: for no text, a picture, a frame rate that the model knows nothing of, or counts that do not fit.
    """
    if image is not None:
        raise InputError(f"prior {prior.name}: a text-to-video model takes no picture; leave the image out")
    if fps is not None and "fps" not in prior.conditions:
        raise InputError(f"prior {prior.name}: takes no frame rate; leave fps out, or use LTX-Video")
    if text is None:
        raise InputError(f"prior {prior.name}: needs a text, say what the video shows")
    positive, against = ([t] if isinstance(t, str) else list(t) for t in (text, MOTIONLESS if negative is None else negative))
    if len(against) not in (1, len(positive)):
        raise InputError(f"prior {prior.name}: {len(against)} negative texts for {len(positive)} texts, give one or as many")
    return positive, against


@PRIORS.register("text-to-video")
class TextToVideoPrior(Prior):
    """ModelScope or Zeroscope.

    Latents are ``(B, V, 4, h, w)``: one a frame. ``with_settings(pictures=24, resolution=(320, 576))`` sets the clip;
    ModelScope was trained on 16 frames of 256x256, Zeroscope on 24 of 320x576.

    Guidance 100 is what 4D-fy and Comp4D distil this model with.
    """

    conditions = frozenset({"text"})
    guidance = 100.0
    pictures = 16

    def __init__(
        self,
        name: str,
        unet: nn.Module,  # UNet3DConditionModel
        vae: nn.Module,  # AutoencoderKL
        text_encoder: nn.Module,  # CLIPTextModel
        tokenizer: Any,
        schedule: NoiseSchedule,
        resolution: tuple[int, int] = (256, 256),
    ) -> None:
        self.name, self.schedule, self.resolution = name, schedule, resolution
        self.modules = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
        self.tokenizer = tokenizer
        self._texts: dict[str, Tensor] = {}

    @classmethod
    def matches(cls, checkpoint: Checkpoint) -> bool:
        """Whether the folder's unet is a UNet3DConditionModel."""
        return checkpoint.has("unet") and checkpoint.config("unet").get("_class_name") == "UNet3DConditionModel"

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str | torch.device, precision: Precision) -> TextToVideoPrior:
        """From a folder in the layout of TextToVideoSDPipeline."""
        from diffusers import AutoencoderKL, UNet3DConditionModel
        from transformers import CLIPTextModel

        checkpoint.require(("unet", "vae", "text_encoder", "tokenizer", "scheduler"), "a text-to-video model")
        network, vae = precision_dtypes(precision, device)
        unet: Any = checkpoint.load(UNet3DConditionModel, "unet", dtype=network, device=device)
        autoencoder: Any = checkpoint.load(AutoencoderKL, "vae", dtype=vae, device=device)
        side = (unet.config.sample_size or 32) * 2 ** (len(autoencoder.config.block_out_channels) - 1)
        # Both publish a sample size of 32; what Zeroscope 576w was trained on is only in its name.
        wide = "576w" in checkpoint.name
        prior = cls(
            checkpoint.name,
            unet,
            autoencoder,
            checkpoint.load(CLIPTextModel, "text_encoder", dtype=network, device=device),
            checkpoint.tokenizer(),
            NoiseSchedule.of(checkpoint.scheduler()),
            (320, 576) if wide else (side, side),
        )
        prior.pictures = 24 if wide else 16
        return prior

    def condition(
        self,
        image: Tensor | None = None,
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        fps: float | None = None,
    ) -> Condition:
        """Of texts; ``negative`` defaults to :data:`MOTIONLESS`."""
        positive, against = prompts(self, image, text, negative, fps)
        return Condition({"text": self._encoded(positive)}, {"text": self._encoded(against)})

    @torch.no_grad()
    def _encoded(self, texts: list[str]) -> Tensor:  # (B, 77, c)
        encoder: Any = self.modules["text_encoder"]
        for text in texts:
            if text not in self._texts:
                tokens = self.tokenizer(
                    text,
                    padding="max_length",
                    truncation=True,
                    max_length=encoder.config.max_position_embeddings,
                    return_tensors="pt",
                )
                self._texts[text] = encoder(tokens.input_ids.to(encoder.device)).last_hidden_state[0].cpu()
        return torch.stack([self._texts[text] for text in texts])

    def _denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor], views: Viewpoints | None) -> Tensor:
        unet: Any = self.modules["unet"]
        clips = rearrange(latents, "b f c h w -> b c f h w").to(unet.dtype)
        output = unet(clips, time, encoder_hidden_states=inputs["text"].to(unet.device, unet.dtype)).sample
        return rearrange(output, "b c f h w -> b f c h w")
