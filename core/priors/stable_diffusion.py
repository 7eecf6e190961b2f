"""Stable Diffusion 1.x, 2.x and XL text-to-image.

Published as diffusers folders: ``unet``, ``vae``, ``scheduler``, ``text_encoder``, ``tokenizer``, of XL two text encoders and
tokenizers. Noise or v prediction, as the scheduler's configuration says.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from ..files import InputError
from .base import PRIORS, Condition, NoiseSchedule, Prior, Viewpoints, dtype_of
from .checkpoints import Checkpoint, Precision, precision_dtypes

log = logging.getLogger(__name__)


@PRIORS.register("stable-diffusion")
class StableDiffusion(Prior):
    """Text-to-image with one text encoder: Stable Diffusion 1.x (4 x 64 x 64 latents) and 2.x.

    The encodings of texts are kept by the text itself: after :meth:`condition` the text encoders may leave the device
    (:meth:`rest_text_encoders`).
    """

    conditions = frozenset({"text"})
    guidance = 100.0  # DreamFusion

    #: Text encoders, each with a tokenizer of the same number.
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    layout: ClassVar[str] = "a Stable Diffusion text-to-image model"

    def __init__(self, name: str, modules: dict[str, nn.Module], tokenizers: Sequence[Any], schedule: NoiseSchedule) -> None:
        """``modules``: "unet", "vae" and the text encoders, frozen; ``tokenizers``: theirs, in order."""
        self.name, self.modules, self.tokenizers, self.schedule = name, modules, tuple(tokenizers), schedule
        side = int(self._unet.config.sample_size) * self._latent_layout()[0]
        self.resolution = (side, side)
        self._texts: dict[str, dict[str, Tensor]] = {}

    @classmethod
    def matches(cls, checkpoint: Checkpoint) -> bool:
        """Whether a folder has this layout and no picture among its inputs."""
        needed = ("unet", "vae", *cls.encoders)
        if not all(checkpoint.has(sub) for sub in needed) or checkpoint.has("text_encoder_2") != ("text_encoder_2" in needed):
            return False
        unet = checkpoint.config("unet")
        pictures = checkpoint.has("image_encoder") or checkpoint.has("vision_encoder")
        return unet.get("_class_name") == "UNet2DConditionModel" and unet.get("in_channels") == 4 and not pictures

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str | torch.device = "cpu", precision: Precision = "auto") -> StableDiffusion:
        """From a checkpoint folder.

        Raises:
            InputError: for another layout, or a model that wants more than text (inpainting, depth, a picture).
        """
        tokens = [sub.replace("text_encoder", "tokenizer") for sub in cls.encoders]
        checkpoint.require(("unet", "vae", "scheduler", *cls.encoders, *tokens), cls.layout)
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        channels = (checkpoint.config("unet").get("in_channels"), int(checkpoint.config("vae").get("latent_channels", 4)))
        if channels[0] != channels[1]:
            raise InputError(
                f"{checkpoint.folder / 'unet'}: takes {channels[0]} channels, {cls.layout} takes {channels[1]}; "
                "this one wants a picture, a mask or a depth map beside the text"
            )
        network, vae_dtype = precision_dtypes(precision, device, torch.float16)
        modules: dict[str, nn.Module] = {
            "unet": checkpoint.load(UNet2DConditionModel, "unet", dtype=network, device=device),
            "vae": checkpoint.load(AutoencoderKL, "vae", dtype=vae_dtype, device=device),
        }
        for sub in cls.encoders:
            kind = CLIPTextModelWithProjection if sub == "text_encoder_2" else CLIPTextModel
            modules[sub] = checkpoint.load(kind, sub, dtype=network, device=device)
        schedule = NoiseSchedule.of(checkpoint.scheduler())
        prior = cls(checkpoint.name, modules, [checkpoint.tokenizer(sub) for sub in tokens], schedule)
        prior._configure(checkpoint)
        return prior

    def _configure(self, checkpoint: Checkpoint) -> None:
        """What model_index.json says of a kind."""

    @property
    def _unet(self) -> Any:
        return self.modules["unet"]

    def rest_text_encoders(self) -> None:
        """Moves the text encoders to the CPU. Texts can still be encoded, slower; those known already are not again."""
        for name in self.encoders:
            self.modules[name].to("cpu")

    @torch.no_grad()
    def condition(
        self,
        image: Tensor | None = None,
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        fps: float | None = None,
    ) -> Condition:
        """Encodings of the text(s); without a negative text, the empty one's."""
        if text is None:
            raise InputError(f"prior {self.name}: needs a text (prompt)")
        if image is not None or fps is not None:
            raise InputError(
                f"prior {self.name}: is conditioned on text alone; for a condition picture choose an image-conditioned prior "
                "(tiny, Zero123, ImageDream)"
            )
        texts = [text] if isinstance(text, str) else list(text)
        negatives = [negative] if isinstance(negative, str) else None if negative is None else list(negative)
        if negatives is not None and len(negatives) not in (1, len(texts)):
            raise InputError(f"prior {self.name}: {len(negatives)} negative texts for {len(texts)} texts; give one, or as many")
        return Condition(self._encodings(texts), self._unconditional(negatives))

    def _unconditional(self, negatives: list[str] | None) -> dict[str, Tensor]:
        return self._encodings(negatives or [""])

    def _encodings(self, texts: list[str]) -> dict[str, Tensor]:
        for text in texts:
            if text not in self._texts:
                self._texts[text] = {k: v.cpu() for k, v in self._encode_text(text).items()}
        known = [self._texts[text] for text in texts]
        return {k: torch.cat([entry[k] for entry in known]).to(self.device) for k in known[0]}

    def _tokens(self, text: str, number: int) -> Tensor:  # (1, L)
        tokenizer, encoder = self.tokenizers[number], self.modules[self.encoders[number]]
        length = int(tokenizer.model_max_length)
        if len(tokenizer(text).input_ids) > length:
            log.warning("prior %s: the text is longer than %d tokens, its end is not seen: %r", self.name, length, text)
        ids = tokenizer([text], padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        return ids.to(next(encoder.parameters()).device)

    def _encode_text(self, text: str) -> dict[str, Tensor]:
        """Last hidden states, ``(1, L, C)``."""
        return {"text": self.modules["text_encoder"](self._tokens(text, 0)).last_hidden_state.float()}

    def _denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor], views: Viewpoints | None) -> Tensor:
        unet, more = self._unet, self._more(inputs)

        def plain(latents: Tensor, time: Tensor, text: Tensor) -> Tensor:
            return unet(latents, time, encoder_hidden_states=text, **more).sample

        noisy, text = latents[:, 0].to(dtype_of(unet)), inputs["text"].to(dtype_of(unet))
        output = plain(noisy, time, text) if more else self.graphs(unet, plain, noisy, time, text)
        return rearrange(output, "b c h w -> b 1 c h w")

    def _more(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """Further arguments of the UNet."""
        return {}


@PRIORS.register("stable-diffusion-xl")
class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL: two text encoders' penultimate states side by side, the second's pooled embedding, and the size.

    The size ids are (height, width) before cropping, the crop's corner and the target (height, width): the resolution's own.
    """

    encoders = ("text_encoder", "text_encoder_2")
    layout = "a Stable Diffusion XL text-to-image model"

    #: XL base was trained with zeros, not the empty text's encoding, in place of a dropped text.
    zero_unconditional: bool = True

    def _configure(self, checkpoint: Checkpoint) -> None:
        self.zero_unconditional = bool(checkpoint.index.get("force_zeros_for_empty_prompt", True))

    def _unconditional(self, negatives: list[str] | None) -> dict[str, Tensor]:
        encodings = super()._unconditional(negatives)
        if negatives is None and self.zero_unconditional:
            return {k: torch.zeros_like(v) for k, v in encodings.items()}
        return encodings

    def _encode_text(self, text: str) -> dict[str, Tensor]:
        outputs = [
            self.modules[name](self._tokens(text, number), output_hidden_states=True)
            for number, name in enumerate(self.encoders)
        ]
        states = [output.hidden_states[-2].float().cpu() for output in outputs]
        return {"text": torch.cat(states, -1), "pooled": outputs[-1].text_embeds.float()}

    def _more(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        dtype, pooled = dtype_of(self._unet), inputs["pooled"]
        ids = torch.tensor([*self.resolution, 0, 0, *self.resolution], dtype=dtype, device=pooled.device)
        return {"added_cond_kwargs": {"text_embeds": pooled.to(dtype), "time_ids": ids.expand(len(pooled), 6)}}
