"""MVDream and ImageDream: views of one object, all at once, from a text or from a picture and a text.

Sources: Shi et al., MVDream (arXiv 2308.16512); Wang and Shi, ImageDream (arXiv 2312.02201); checkpoints in the layout of
ashawkey/mvdream-sd2.1-diffusers and ashawkey/imagedream-ipmv-diffusers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..files import InputError
from .base import PRIORS, Condition, NoiseSchedule, Prior, Viewpoints
from .checkpoints import Checkpoint, Precision, precision_dtypes
from .multiview_unet import MultiViewUNet
from .pictures import clip_pixels, resized, squared


@PRIORS.register("mvdream")
class MVDream(Prior):
    """Text to four views 256 pixels wide, usually a quarter turn apart; any number and any viewpoints may be asked for.

    The model knows where a camera stands but not how far: its objects have a longest side of 1 in pictures that span 0.8 to 1
    at the object. Sampling wants a guidance of about 7.5.

    Args:
        modules: "unet", "vae" and "text_encoder".
        tokenizer: of the text encoder.
    """

    conditions: ClassVar[frozenset[str]] = frozenset({"text", "cameras"})
    pictures = 4
    guidance = 50.0

    def __init__(self, name: str, modules: dict[str, nn.Module], tokenizer: Any, schedule: NoiseSchedule) -> None:
        self.name, self.modules, self.tokenizer, self.schedule = name, modules, tokenizer, schedule
        self.resolution = (256, 256)

    @classmethod
    def matches(cls, checkpoint: Checkpoint) -> bool:
        """Whether a folder is an MVDream."""
        return _image_tokens(checkpoint) == 0

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str | torch.device, precision: Precision) -> MVDream:
        """From a folder in the published layout.

        Raises:
            InputError: where something is missing or not what the configurations describe.
        """
        return cls(checkpoint.name, *_parts(checkpoint, device, precision, "MVDream"))

    @torch.no_grad()
    def condition(
        self,
        image: Tensor | None = None,
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        fps: float | None = None,
    ) -> Condition:
        """Of a text, as ``"..., 3d asset"`` in training; without it: ``negative``, or the empty text."""
        if image is not None or fps is not None:
            raise InputError(f"prior {self.name}: knows texts alone, give no picture and no frame rate (ImageDream takes one)")
        if text is None:
            raise InputError(f"prior {self.name}: needs a text that says what the object is")
        return Condition({"text": self._tokens(text)}, {"text": self._tokens(negative or "")})

    def _tokens(self, text: str | Sequence[str]) -> Tensor:  # (B, L, d)
        encoder: Any = self.modules["text_encoder"]
        ids = self.tokenizer(
            [text] if isinstance(text, str) else list(text),
            padding="max_length",
            max_length=encoder.config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return encoder(ids.to(self.device))[0].float()

    def _denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor], views: Viewpoints | None) -> Tensor:
        assert views is not None
        unet = self.modules["unet"]
        return self.graphs(unet, unet, latents, time, camera_matrices(views).to(latents.device), inputs["text"])


@PRIORS.register("imagedream")
class ImageDream(MVDream):
    """A picture (and a text, which may be empty) to four views 256 pixels wide.

    The picture shows azimuth 0, or ``views.reference``'s azimuth; elevations are the world's. The model sees the picture twice:
    as image tokens, and as a clean latent in one more view whose camera is all zeros and whose output is dropped ("pixel
    controller"). Without the condition, the tokens are those of zeros and the latent is zero.

    Args:
        modules: as :class:`MVDream`, and "image_encoder".
        pixels: how a picture is prepared for the image encoder (preprocessor_config.json).
    """

    conditions: ClassVar[frozenset[str]] = frozenset({"image", "text", "cameras"})
    guidance = 5.0

    def __init__(
        self,
        name: str,
        modules: dict[str, nn.Module],
        tokenizer: Any,
        schedule: NoiseSchedule,
        pixels: dict[str, Any],
    ) -> None:
        super().__init__(name, modules, tokenizer, schedule)
        self.pixels = pixels

    @classmethod
    def matches(cls, checkpoint: Checkpoint) -> bool:
        """Whether a folder is an ImageDream."""
        return _image_tokens(checkpoint) > 0

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str | torch.device, precision: Precision) -> ImageDream:
        """From a folder in the published layout.

        Raises:
            InputError: where something is missing or not what the configurations describe.
        """
        from transformers import CLIPVisionModel

        checkpoint.require(("image_encoder", "feature_extractor"), "ImageDream")
        modules, tokenizer, schedule = _parts(checkpoint, device, precision, "ImageDream")
        dtype = precision_dtypes(precision, device, torch.float16)[0]
        modules["image_encoder"] = checkpoint.load(CLIPVisionModel, "image_encoder", dtype=dtype, device=device)
        return cls(checkpoint.name, modules, tokenizer, schedule, checkpoint.config("feature_extractor"))

    @torch.no_grad()
    def condition(
        self,
        image: Tensor | None = None,  # (B, H, W, 3 or 4), any size
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        fps: float | None = None,
    ) -> Condition:
        """Of a picture of the object, centred on white and about 80 % of a square, and a text."""
        if image is None:
            raise InputError(f"prior {self.name}: needs a picture of the object")
        if fps is not None:
            raise InputError(f"prior {self.name}: knows pictures and texts, give no frame rate")
        unet: Any = self.modules["unet"]
        encoder: Any = self.modules["image_encoder"]
        square = squared(image.to(self.device, torch.float32), max(image.shape[1:3]), self.background)
        pixels = clip_pixels(square, encoder.config.image_size, self.pixels).to(encoder.dtype)
        hidden = encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2].to(unet.dtype)
        tokens = unet.image_embed(torch.cat([hidden, torch.zeros_like(hidden[:1])])).float()
        small = resized(square, self.resolution[0], "bilinear")
        latent = self.with_settings(small_encoder=None).encode(small[:, None])[:, 0]
        return Condition(
            {"text": self._tokens(text or ""), "tokens": tokens[:-1], "latent": latent},
            {"text": self._tokens(negative or ""), "tokens": tokens[-1:], "latent": torch.zeros_like(latent[:1])},
        )

    def _denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor], views: Viewpoints | None) -> Tensor:
        assert views is not None
        latents = torch.cat([latents, inputs["latent"][:, None].to(latents)], 1)
        cameras = F.pad(camera_matrices(views).to(latents.device), (0, 0, 0, 1))
        unet = self.modules["unet"]
        return self.graphs(unet, unet, latents, time, cameras, inputs["text"], inputs["tokens"])[:, :-1]


def camera_matrices(views: Viewpoints) -> Tensor:  # (B, V, 16)
    """The models' cameras: camera-to-world matrices, row by row, on the unit sphere of a world with Z up.

    Columns are right, up, back and position. The front, our azimuth 0, is the models' +X (azimuth 90 of their own orbits, which
    begin at -Y and turn as ours). With a reference, azimuths count from the reference's.
    """
    front = 0.0 if views.reference is None else views.reference.azimuth
    azimuth, elevation = torch.deg2rad(views.azimuth - front), torch.deg2rad(views.elevation)
    sa, ca, se, ce = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
    zero, one = torch.zeros_like(sa), torch.ones_like(sa)
    rows = [
        -sa, -se * ca, ce * ca, ce * ca,
        ca, -se * sa, ce * sa, ce * sa,
        zero, ce, se, se,
        zero, zero, zero, one,
    ]  # fmt: skip
    return torch.stack(rows, -1)


def _image_tokens(checkpoint: Checkpoint) -> int:
    """Image tokens of a multi-view UNet, -1 for anything else."""
    if not (checkpoint.folder / "unet" / "config.json").is_file():
        return -1
    config = checkpoint.config("unet")
    return int(config.get("ip_dim", 0)) if {"camera_dim", "model_channels"} <= config.keys() else -1


def _parts(
    checkpoint: Checkpoint, device: str | torch.device, precision: Precision, kind: str
) -> tuple[dict[str, nn.Module], Any, NoiseSchedule]:
    """What both have. On a GPU the network runs in float16 by default, as it is published."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers import CLIPTextModel

    checkpoint.require(("unet", "vae", "text_encoder", "tokenizer", "scheduler"), kind)
    if (_image_tokens(checkpoint) > 0) != (kind == "ImageDream"):
        raise InputError(f"{checkpoint.folder}: its unet/config.json does not describe an {kind}; load it with kind auto")
    dtype, vae_dtype = precision_dtypes(precision, device, torch.float16)
    modules: dict[str, nn.Module] = {
        "unet": checkpoint.load(MultiViewUNet, "unet", dtype=dtype, device=device),
        "vae": checkpoint.load(AutoencoderKL, "vae", dtype=vae_dtype, device=device),
        "text_encoder": checkpoint.load(CLIPTextModel, "text_encoder", dtype=dtype, device=device),
    }
    return modules, checkpoint.tokenizer(), NoiseSchedule.of(checkpoint.scheduler())
