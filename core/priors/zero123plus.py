"""Zero123++ v1.1 and v1.2: six fixed views of an object from one picture, in one go.

Shi et al., "Zero123++: a Single Image to Consistent Multi-view Diffusion Base Model" (arXiv 2310.15110); checkpoints
sudo-ai/zero123plus-v1.1 and -v1.2 (weights CC-BY-NC 4.0). A Stable Diffusion 2 UNet draws the six views as one picture of three
rows and two columns. It knows the input picture in two ways: reference attention (the input's latent, noised to the same time,
goes through the same UNet first; every self-attention then also attends to the tokens it had there) and a CLIP embedding that a
learned ramp adds to the tokens of the empty prompt. Without the condition it has, as in the published sampler, the empty prompt
alone and a gray picture as reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

from ..cameras import Cameras, orbit
from ..files import InputError
from .base import PRIORS, Condition, NoiseSchedule, Prior, Viewpoints, dtype_of
from .checkpoints import Checkpoint, Precision, precision_dtypes
from .pictures import clip_pixels, resized, squared

AZIMUTHS = (30.0, 90.0, 150.0, 210.0, 270.0, 330.0)
#: Zero123's field of view (a 35 mm lens on a 32 mm sensor), which v1.1 keeps.
FOVY_1_1 = math.degrees(2 * math.atan(16 / 35))
#: The training pictures of the VAE's latents: ``(z - SHIFT) SCALE``, of pictures whose contrast is CONTRAST.
SHIFT, SCALE, CONTRAST = 0.22, 0.75, 0.5 / 0.8
COLUMNS = 2
#: How far asked viewpoints may be from the model's own, degrees.
TOLERANCE = 0.5


@dataclass
class Memory:
    """Self-attention tokens of the reference picture, by layer.

    Args:
        tokens: ``(B, N, c)``, written by the pass over the reference.
        fusion: ``(B, 1, 1)``, None while the reference is written. In the pass over the views each sample's own keys and values
            become ``fusion K_first + (1 - fusion) K``, of the batch's first sample and its own (STAG4D, Eq. 5).
    """

    tokens: dict[str, Tensor] = field(default_factory=dict)
    fusion: Tensor | None = None


class ReferenceAttention:
    """Attention processor: writes a layer's tokens into a :class:`Memory`, or attends to ``[own ; remembered]``.

    Cross-attention, and any call without a memory, is plain attention. The projections to keys and values are linear, so that
    mixing tokens mixes keys and values.
    """

    def __init__(self, layer: str) -> None:
        self.layer, self.attend = layer, AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        if memory is None or encoder_hidden_states is not None:
            return self.attend(attn, hidden_states, encoder_hidden_states, attention_mask)
        if memory.fusion is None:
            memory.tokens[self.layer] = hidden_states
            return self.attend(attn, hidden_states)
        own = hidden_states + memory.fusion.to(hidden_states) * (hidden_states[:1] - hidden_states)
        return self.attend(attn, hidden_states, torch.cat([own, memory.tokens.pop(self.layer)], 1))


@PRIORS.register("zero123plus")
class Zero123Plus(Prior):
    """Zero123++ as a prior over six pictures: latents are ``(B, 6, 4, 40, 40)``, one tile a view.

    Its viewpoints are fixed: azimuths 30, 90, ..., 330 from the input's, elevations of the world (:meth:`cameras`). The
    published sampler draws new noise for the reference at each step; here it is drawn from ``seed``, the diffusion step and
    nothing else, so that equal calls give equal answers and batching changes nothing.

    Attributes:
        seed: of the reference's noise.
        recompute: make the VAE encoder's activations again when gradients are taken, instead of keeping those of a picture
            of 640 x 960 pixels.

    Args:
        scheduler: the published one, of diffusers; kept for its configuration.
        ramp: the 77 factors of the CLIP embedding, from model_index.json.
        empty: text tokens of the empty prompt, ``(1, 77, d)``.
        picture, clip: how the input picture is prepared for the VAE and for CLIP (preprocessor_config.json).
        version: "1.1" or "1.2": other elevations, fields of view and distances.
    """

    precedence = 2

    conditions = frozenset({"image"})
    encodes_apart = False
    pictures = 6
    background = (127 / 255, 127 / 255, 127 / 255)
    guidance = 4.0
    seed: int = 0
    recompute: bool = True

    def __init__(
        self,
        name: str,
        modules: dict[str, nn.Module],
        scheduler: Any,
        ramp: Tensor,  # (77,)
        empty: Tensor,  # (1, 77, d)
        picture: dict[str, Any],
        clip: dict[str, Any],
        version: str = "1.2",
    ) -> None:
        self.name, self.modules, self.version = name, modules, version
        self.scheduler, self.schedule = scheduler, NoiseSchedule.of(scheduler)
        self.ramp, self.empty, self.picture, self.clip = ramp, empty, picture, clip
        self.resolution = (320, 320)
        vae: Any = modules["vae"]
        vae.enable_gradient_checkpointing()
        unet: Any = modules["unet"]
        unet.set_attn_processor({layer: ReferenceAttention(layer) for layer in unet.attn_processors})

    @classmethod
    def matches(cls, checkpoint: Checkpoint) -> bool:
        """Whether a folder is a Zero123++."""
        return "ramping_coefficients" in checkpoint.index

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str | torch.device, precision: Precision) -> Zero123Plus:
        """From a folder in the published layout.

        The text encoder is used once, for the empty prompt, and not kept. v1.1 and v1.2 are distinguished by their ramps, whose
        first coefficient is 0 in v1.1 alone.

        Raises:
            InputError: where something is missing or not what the configurations describe.
        """
        index = checkpoint.folder / "model_index.json"
        checkpoint.require(("unet", "vae", "vision_encoder", "text_encoder", "tokenizer", "scheduler"), "Zero123++")
        ramp = checkpoint.index.get("ramping_coefficients")
        if not ramp:
            raise InputError(f"{index}: no ramping_coefficients, which Zero123++ needs; get the checkpoint again")
        text = checkpoint.load(CLIPTextModel, "text_encoder")
        tokens = checkpoint.tokenizer()(
            "", padding="max_length", max_length=text.config.max_position_embeddings, return_tensors="pt"
        )
        with torch.no_grad():
            empty = text(tokens.input_ids)[0]
        if len(ramp) != empty.shape[1]:
            raise InputError(f"{index}: {len(ramp)} ramping_coefficients, expected {empty.shape[1]}, one a text token")
        dtype, vae_dtype = precision_dtypes(precision, device, torch.float16)
        return cls(
            checkpoint.name,
            {
                "unet": checkpoint.load(UNet2DConditionModel, "unet", dtype=dtype, device=device),
                "vae": checkpoint.load(AutoencoderKL, "vae", dtype=vae_dtype, device=device),
                "vision_encoder": checkpoint.load(CLIPVisionModelWithProjection, "vision_encoder", dtype=dtype, device=device),
            },
            checkpoint.scheduler(),
            torch.tensor(ramp),
            empty,
            checkpoint.config("feature_extractor_vae"),
            checkpoint.config("feature_extractor_clip"),
            "1.1" if ramp[0] == 0 else "1.2",
        )

    @property
    def elevations(self) -> tuple[float, ...]:
        """Of the six views, degrees above the horizon whatever the input's elevation."""
        return (30.0, -20.0) * 3 if self.version == "1.1" else (20.0, -10.0) * 3

    def cameras(self, azimuth: float = 0.0, fill: float = 0.8) -> Cameras:
        """The six views of an input seen from ``azimuth`` (degrees), ``(6,)``.

        v1.2 scales every object, whatever the input's framing, into a sphere of diameter 1 and sees it from 0.5 / tan(15
        degrees) = 1.866 with a field of view of 30 degrees. v1.1 keeps the input's framing: an object whose longest side is 1
        and takes the share ``fill`` of the input's side is seen from ``1 / (2 fill tan(fovy / 2))``.
        """
        if self.version == "1.1":
            fovy = FOVY_1_1
            distance = 0.5 / (fill * math.tan(math.radians(fovy) / 2))
        else:
            fovy, distance = 30.0, 0.5 / math.tan(math.radians(15.0))
        height, width = self.resolution
        return orbit([azimuth + a for a in AZIMUTHS], list(self.elevations), distance, fovy, width, height)

    def encode(self, images: Tensor) -> Tensor:  # (B, 6, H, W, 3) -> (B, 6, c, h, w)
        """Latents of the six pictures laid out as one, as the model was trained; see :meth:`Prior.encode`."""
        vae: Any = self.modules["vae"]
        vae.encoder.gradient_checkpointing = self.recompute
        tiled = rearrange(images, "b (r k) h w c -> b 1 (r h) (k w) c", k=COLUMNS)
        latents = super().encode(0.5 + (tiled - 0.5) * CONTRAST)
        return rearrange((latents - SHIFT) * SCALE, "b 1 c (r h) (k w) -> b (r k) c h w", k=COLUMNS, r=self.pictures // COLUMNS)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:  # (B, 6, c, h, w) -> (B, 6, H, W, 3)
        """The six pictures of a latent, in [0, 1]; no gradient."""
        tiled = rearrange(latents / SCALE + SHIFT, "b (r k) c h w -> b 1 c (r h) (k w)", k=COLUMNS)
        pictures = (0.5 + (super().decode(tiled) - 0.5) / CONTRAST).clamp(0, 1)
        return rearrange(pictures, "b 1 (r h) (k w) c -> b (r k) h w c", k=COLUMNS, r=self.pictures // COLUMNS)

    @torch.no_grad()
    def condition(
        self,
        image: Tensor | None = None,  # (B, H, W, 3 or 4), any size
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        fps: float | None = None,
    ) -> Condition:
        """Of the input picture: the object centred, about 80 % of a square, on the prior's gray."""
        if image is None:
            raise InputError(f"prior {self.name}: needs a picture of the object")
        if text is not None or negative is not None or fps is not None:
            raise InputError(f"prior {self.name}: knows pictures alone, give no text and no frame rate")
        vae: Any = self.modules["vae"]
        vision: Any = self.modules["vision_encoder"]
        square = squared(image.to(self.device).float(), max(image.shape[1:3]), self.background)
        small = resized(square, int(self.picture["size"]["shortest_edge"]), "bilinear")
        pixels = rearrange((small - self.picture["image_mean"]) / self.picture["image_std"], "b h w c -> b c h w")
        pixels = pixels.contiguous().to(dtype_of(vae))
        reference, gray = (vae.encode(p).latent_dist.mode().float() for p in (pixels, torch.zeros_like(pixels[:1])))
        tower = clip_pixels(square, int(vision.config.image_size), self.clip)
        embedding = vision(tower.contiguous().to(dtype_of(vision))).image_embeds.float()
        empty, ramp = self.empty.to(self.device), self.ramp.to(self.device)
        seed = torch.tensor([2 * self.seed, 2 * self.seed + 1], device=self.device)
        none = torch.zeros(1, device=self.device)
        return Condition(
            {"tokens": empty + ramp[:, None] * embedding[:, None], "reference": reference, "seed": seed[:1], "fusion": none},
            {"tokens": empty, "reference": gray, "seed": seed[1:], "fusion": none},
        )

    def fused(self, condition: Condition, gamma: float) -> Condition:
        """A condition under which the batch's samples share features with its first (STAG4D's temporal consistency).

        In the pass over the views, with the condition, every self-attention's own keys and values become
        ``gamma K_first + (1 - gamma) K``. 0 is plain Zero123++, and the first sample never changes. Features only correspond
        where all samples have the same noise.
        """
        fusion = torch.full_like(condition.positive["fusion"], gamma)
        return Condition({**condition.positive, "fusion": fusion}, condition.negative)

    def _denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor], views: Viewpoints | None) -> Tensor:
        self._require_own(views)
        unet: Any = self.modules["unet"]
        noise = [
            torch.randn(reference.shape, generator=torch.Generator().manual_seed(int(seed) * self.schedule.steps + int(step)))
            for reference, seed, step in zip(inputs["reference"], inputs["seed"], time)
        ]
        reference = self.schedule.add_noise(
            inputs["reference"], torch.stack(noise).to(latents.device), time / self.schedule.steps
        )
        tokens, memory = inputs["tokens"].to(dtype_of(unet)), Memory()
        unet(reference.to(dtype_of(unet)), time, tokens, cross_attention_kwargs={"memory": memory})
        memory.fusion = inputs["fusion"][:, None, None]
        tiled = rearrange(latents, "b (r k) c h w -> b c (r h) (k w)", k=COLUMNS)
        output = unet(tiled.to(dtype_of(unet)), time, tokens, cross_attention_kwargs={"memory": memory}).sample
        return rearrange(output, "b c (r h) (k w) -> b (r k) c h w", k=COLUMNS, r=self.pictures // COLUMNS)

    def _require_own(self, views: Viewpoints | None) -> None:
        if views is None:
            return
        front = 0 if views.reference is None else views.reference.azimuth
        turn = views.azimuth - front - torch.tensor(AZIMUTHS, device=views.azimuth.device)
        rise = views.elevation - torch.tensor(self.elevations, device=views.elevation.device)
        off = torch.maximum(((turn + 180) % 360 - 180).abs(), rise.abs())
        if off.max() > TOLERANCE:
            raise InputError(
                f"prior {self.name}: its six views are fixed, azimuths 30, 90, ..., 330 from the picture's and elevations "
                f"{self.elevations[0]:g} and {self.elevations[1]:g} in turn; render those (its cameras())"
            )
