"""Zero123, Zero123-XL, Stable Zero123 and the bundled tiny prior: novel views of one picture.

The UNet sees the noisy latent beside the condition picture's latent, and one token made of the picture's CLIP embedding and the
relative camera T. Published as folders of ``unet``, ``vae``, ``image_encoder``, ``scheduler``, ``feature_extractor`` and
``clip_camera_projection`` (or ``cc_projection``). Source: Zero-1-to-3 (Liu et al. 2023).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from einops import rearrange
from torch import Tensor, nn

from ..cameras import zero123_vector
from ..files import InputError
from .base import PRIORS, Condition, NoiseSchedule, Prior, Viewpoints, dtype_of
from .checkpoints import Checkpoint, Precision, precision_dtypes
from .pictures import clip_pixels, squared

#: What the fourth number of T says, see :class:`Zero123`.
Slot4 = Literal["delta", "polar", "zero", "absolute"]


class CameraProjection(nn.Module):
    """The published ``clip_camera_projection``: CLIP embedding and T to a token, one linear layer."""

    def __init__(self, embedding: int, token: int, numbers: int = 4) -> None:
        super().__init__()
        self.proj = nn.Linear(embedding + numbers, token)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CameraProjection:
        embedding = int(config.get("embedding_dim", 768))
        return cls(embedding, embedding, int(config.get("additional_embeddings", 4)))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.proj(inputs)


class CCProjection(nn.Module):
    """The same layer as other conversions of the checkpoints name it (folder ``cc_projection``)."""

    def __init__(self, inputs: int, token: int) -> None:
        super().__init__()
        self.projection = nn.Linear(inputs, token)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CCProjection:
        return cls(int(config.get("in_channel", 772)), int(config.get("out_channel", 768)))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.projection(inputs)


PROJECTIONS = {"clip_camera_projection": CameraProjection, "cc_projection": CCProjection}


class SharedAttention:
    """Self-attention in which each sample's keys and values may be mixed with those of another (STAG4D, Eq. 5).

    The projections to keys and values are linear, so that mixing tokens mixes keys and values.
    """

    def __init__(self) -> None:
        self.attend = AttnProcessor2_0()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        fusion: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """``fusion``: share of the other sample, ``(B,)``, and which one it is, ``(B,)``; None is plain attention."""
        if fusion is None:
            return self.attend(attn, hidden_states, encoder_hidden_states, attention_mask)
        share, source = fusion
        mixed = hidden_states + share[:, None, None].to(hidden_states) * (hidden_states[source] - hidden_states)
        return self.attend(attn, hidden_states, mixed)


class OneToken:
    """Cross-attention to a single token, exactly and without queries: the token's weight is 1 whatever asks."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, fusion: Any = None, **_: Any) -> Tensor:
        return attn.to_out[0](attn.to_v(encoder_hidden_states)).expand_as(hidden_states)


def attend_to_one_token(unet: Any) -> None:
    """Give a UNet whose condition is always a single token :class:`OneToken`, and :class:`SharedAttention`."""
    unet.set_attn_processor({name: OneToken() if "attn2" in name else SharedAttention() for name in unet.attn_processors})


@PRIORS.register("zero123")
class Zero123(Prior):
    """One picture of an object seen from one viewpoint, given another picture and the relative camera.

    ``T = (elevation_cond - elevation, sin, cos of azimuth - azimuth_cond, slot 4)`` in radians.

    Attributes:
        slot4: "delta": distance minus the condition's (Zero123, Zero123-XL); "polar": the condition view's polar angle,
            90 degrees minus its elevation, in radians (Stable Zero123, which knows no distance); "zero"; "absolute": the
            distance itself (Align4D read literally).
    """

    conditions = frozenset({"image", "cameras"})
    slot4: Slot4 = "delta"

    def __init__(
        self,
        name: str,
        unet: nn.Module,
        vae: nn.Module,
        image_encoder: nn.Module,
        projection: nn.Module,
        schedule: NoiseSchedule,
        extractor: dict[str, Any] | None = None,
    ) -> None:
        """The parts of a checkpoint, frozen; ``extractor``: its preprocessor configuration."""
        self.name = name
        self.modules = {"unet": unet, "vae": vae, "image_encoder": image_encoder, "projection": projection}
        self.schedule = schedule
        self.extractor = extractor or {}
        attend_to_one_token(unet)
        # All of them were trained at 256 pixels, also where a conversion kept the 64 cells of Stable Diffusion's configuration.
        side = min(256, int(self._config("unet").sample_size) * self._latent_layout()[0])
        self.resolution = (side, side)

    @classmethod
    def matches(cls, checkpoint: Checkpoint) -> bool:
        """Whether a folder has this layout."""
        return checkpoint.has("unet") and any(checkpoint.has(sub) for sub in PROJECTIONS)

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str | torch.device = "cpu", precision: Precision = "auto") -> Zero123:
        """From a checkpoint folder.

        Raises:
            InputError: for another layout, or parts that do not fit together.
        """
        sub = next((sub for sub in PROJECTIONS if checkpoint.has(sub)), "clip_camera_projection")
        checkpoint.require(("unet", "vae", "image_encoder", "scheduler", sub), "an image-conditioned Zero123")
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPVisionModelWithProjection

        config, channels = checkpoint.config("unet"), int(checkpoint.config("vae").get("latent_channels", 4))
        if config.get("in_channels") != 2 * channels:
            raise InputError(
                f"{checkpoint.folder / 'unet'}: takes {config.get('in_channels')} channels, Zero123's takes {2 * channels}, "
                "the noisy latent and the condition picture's; this is not an image-conditioned model"
            )
        network, vae_dtype = precision_dtypes(precision, device, torch.float16)
        projection = checkpoint.load(PROJECTIONS[sub], sub, device=device)
        unet = checkpoint.load(UNet2DConditionModel, "unet", dtype=network, device=device)
        encoder = checkpoint.load(CLIPVisionModelWithProjection, "image_encoder", dtype=network, device=device)
        layer: Any = next(projection.children())
        wanted = (int(encoder.config.projection_dim) + 4, int(config.get("cross_attention_dim", 0)))
        if (layer.in_features, layer.out_features) != wanted:
            raise InputError(
                f"{checkpoint.folder / sub}: maps {layer.in_features} numbers to {layer.out_features}, but this image_encoder "
                f"and unet want {wanted[0]} to {wanted[1]}; the folders are not of one checkpoint"
            )
        return cls(
            checkpoint.name,
            unet,
            checkpoint.load(AutoencoderKL, "vae", dtype=vae_dtype, device=device),
            encoder,
            projection,
            NoiseSchedule.of(checkpoint.scheduler()),
            checkpoint.config("feature_extractor") if checkpoint.has("feature_extractor") else None,
        )

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, slot4={self.slot4!r})"

    @torch.no_grad()
    def condition(
        self,
        image: Tensor | None = None,  # (B, H, W, 3), or 4 with straight alpha; any size
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        fps: float | None = None,
    ) -> Condition:
        """CLIP embedding and latent of each picture; the object is left where the picture has it."""
        if image is None:
            raise InputError(f"prior {self.name}: needs a condition picture")
        if text is not None or negative is not None or fps is not None:
            raise InputError(f"prior {self.name}: is conditioned on a picture, not on text or frame rates; leave them out")
        picture = squared(image.to(self.device).float(), self.resolution[0], self.background)
        vae: Any = self.modules["vae"]
        encoder: Any = self.modules["image_encoder"]
        pixels = rearrange(picture, "b h w c -> b c h w").to(dtype_of(vae)) * 2 - 1
        # The mode, not scaled: as the model was trained, unlike the noisy latent beside it.
        latent = self.graphs(vae, lambda pixels: vae.encode(pixels).latent_dist.mode(), pixels).float()
        clip = clip_pixels(picture, int(encoder.config.image_size), self.extractor)
        embedding = self.graphs(encoder, lambda clip: encoder(clip).image_embeds, clip.to(dtype_of(encoder))).float()
        positive = {"clip": embedding, "latent": latent, "known": embedding.new_ones(len(embedding), 1)}
        # Without the condition the token itself is zero, which no embedding makes the projection give.
        return Condition(positive, {k: torch.zeros_like(v[:1]) for k, v in positive.items()})

    def fused(self, condition: Condition, gamma: float, every: int = 1) -> Condition:
        """A condition under which each sample shares features with the batch's first of its pose.

        With the condition, every self-attention's keys and values become ``gamma K_source + (1 - gamma) K``, as STAG4D has it
        for Zero123++. 0 is the plain model, and the first samples never change. Features only correspond where a sample has the
        noise of its source.

        Args:
            every: poses; sample i's source is sample ``i % every``.
        """
        if gamma == 0:
            return condition
        like, negative = condition.positive["clip"], condition.negative
        assert negative is not None
        source = torch.arange(len(like), device=like.device) % every
        mixed = {"fusion": like.new_full((len(like),), gamma), "source": source}
        unmixed = {name: torch.zeros_like(value[:1]) for name, value in mixed.items()}
        return Condition({**condition.positive, **mixed}, {**negative, **unmixed})

    def camera(self, views: Viewpoints) -> Tensor:  # (B, 1) -> (B, 4)
        """T of each sample.

        Raises:
            InputError: where the condition pictures' viewpoints are not given.
        """
        seen = views.reference
        if seen is None:
            raise InputError(f"prior {self.name}: needs the viewpoint of the condition picture too (Viewpoints.reference)")
        fourth = {
            "delta": views.distance - seen.distance,
            "polar": torch.deg2rad(90 - seen.elevation).expand_as(views.distance),
            "zero": torch.zeros_like(views.distance),
            "absolute": views.distance,
        }[self.slot4]
        vector = zero123_vector(
            views.elevation, views.azimuth - seen.azimuth, fourth, condition_elevation=seen.elevation
        )  # (B, 1, 4)
        return vector[:, 0]

    def _denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor], views: Viewpoints | None) -> Tensor:
        assert views is not None
        unet: Any = self.modules["unet"]
        camera = self.camera(views).to(inputs["clip"])
        token = self.modules["projection"](torch.cat([inputs["clip"], camera], -1)) * inputs["known"]
        both = torch.cat([latents[:, 0], inputs["latent"]], 1).to(dtype_of(unet))
        tokens = rearrange(token, "b c -> b 1 c").to(dtype_of(unet))

        def plain(both: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
            return unet(both, time, encoder_hidden_states=tokens).sample

        def mixed(both: Tensor, time: Tensor, tokens: Tensor, share: Tensor, source: Tensor) -> Tensor:
            shared = {"fusion": (share, source)}
            return unet(both, time, encoder_hidden_states=tokens, cross_attention_kwargs=shared).sample

        if "fusion" in inputs:
            output = self.graphs(unet, mixed, both, time, tokens, inputs["fusion"], inputs["source"])
        else:
            output = self.graphs(unet, plain, both, time, tokens)
        return rearrange(output, "b c h w -> b 1 c h w")

    def _config(self, module: str) -> Any:
        return self.modules[module].config


@PRIORS.register("stable-zero123")
class StableZero123(Zero123):
    """Stable Zero123: the same network, given the condition view's polar angle instead of a distance."""

    precedence = 1

    slot4 = "polar"

    @classmethod
    def matches(cls, checkpoint: Checkpoint) -> bool:
        """By its name, since the layout is Zero123's."""
        names = (checkpoint.name, checkpoint.index.get("_class_name"), checkpoint.index.get("_name_or_path"))
        # Zero123's own class is named Zero1to3StableDiffusionPipeline.
        return super().matches(checkpoint) and any(re.search("stable[-_ ]?zero", str(name), re.IGNORECASE) for name in names)
