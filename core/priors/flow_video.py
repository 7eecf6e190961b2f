"""Text-to-video with rectified-flow transformers: Wan 2.1 and 2.2, and LTX-Video, which takes the frame rate.

Both mix ``z = (1 - t) x + t n``, predict the velocity ``n - x`` and count time in thousandths. Their VAEs shorten time: 1 + k n
pictures make 1 + n latent frames (k = 4 for Wan, 8 for LTX), so a clip is encoded whole. Latents are normalised by channel.
"""

from __future__ import annotations

import html
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from ..files import InputError
from .base import PRIORS, Condition, NoiseSchedule, Prior, Viewpoints
from .checkpoints import Checkpoint, Precision, precision_dtypes
from .text_to_video import prompts

#: Frames a second that LTX-Video is given where nobody says: its pipeline's default.
LTX_FPS = 25.0


class FlowVideoPrior(Prior):
    """What Wan and LTX share.

    The text encoder (about 5 billion parameters) is loaded for texts not seen before and dropped again; it runs beside the
    networks where the card has room, else on the CPU.

    Attributes:
        recompute: make the VAE encoder's activations again when gradients are taken, instead of keeping those of a whole clip.
        tile: encode in square tiles of so many pixels, blended where they overlap by a quarter; 0 = the picture as a whole.
            Less memory, and seen from each tile alone, so slightly other latents; the gradient is exactly theirs.
    """

    conditions = frozenset({"text"})
    encodes_apart: ClassVar[bool] = False
    recompute: bool = True
    tile: int = 0
    # No publication distils these two: between the 5 (Wan) and 3 (LTX) of sampling and the tens that SDS is used with.
    guidance = 20.0
    pictures = 17

    #: Longest text in tokens, and the transformers class that encodes it.
    text_length: int
    text_class: ClassVar[str]

    def __init__(
        self, name: str, modules: dict[str, nn.Module], source: Checkpoint, text_dtype: torch.dtype, schedule: NoiseSchedule
    ) -> None:
        self.name, self.modules, self.schedule = name, modules, schedule
        self._source, self._text_dtype = source, text_dtype
        self._texts: dict[str, dict[str, Tensor]] = {}

    # --- encoding -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def _factors(self) -> tuple[int, int, int]:
        """Pictures a latent frame, pixels a latent cell, latent cells a token (each way)."""

    @abstractmethod
    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of raw latents, ``(c, 1, 1, 1)``."""

    @abstractmethod
    def _raw_latents(self, pixels: Tensor) -> Tensor:  # (B, 3, V, H, W) in [-1, 1] -> (B, c, F, h, w)
        """The VAE's posterior mode, before normalisation."""

    @abstractmethod
    def _raw_decode(self, latents: Tensor) -> Tensor:  # (1, c, F, h, w) -> (1, 3, V, H, W) in [-1, 1]
        """The VAE's pictures of raw latents."""

    def _latent_layout(self) -> tuple[int, int]:
        return self._factors()[1], len(self._statistics()[0])

    def _latent_frames(self) -> int:
        return 1 + (self.pictures - 1) // self._factors()[0]

    def latent_shape(self) -> tuple[int, int, int, int]:
        time, cell, patch = self._factors()
        height, width = self.resolution
        if (self.pictures - 1) % time:
            raise InputError(f"prior {self.name}: {self.pictures} pictures a clip, it takes 1 + {time} k: 1, {1 + time}, ...")
        if height % (cell * patch) or width % (cell * patch):
            raise InputError(f"prior {self.name}: pictures of {width}x{height}, give multiples of {cell * patch} pixels")
        return super().latent_shape()

    def encode(self, images: Tensor) -> Tensor:
        if self.small_encoder is not None:
            raise InputError(f"prior {self.name}: a small picture encoder cannot stand in for a video VAE; leave it out")
        if images.shape[1:4] != (self.pictures, *self.resolution):
            raise InputError(
                f"prior {self.name}: clips of shape {tuple(images.shape[1:4])} (frames, height, width), expected "
                f"{(self.pictures, *self.resolution)}; set pictures and resolution to what is rendered"
            )
        self.latent_shape()
        vae: Any = self.modules["vae"]
        pixels = rearrange(images, "b v h w c -> b c v h w").to(self.device, vae.dtype) * 2 - 1
        if self.tile and self.tile < max(self.resolution):
            raw = _tiled(self._raw_latents, pixels, self.tile, self._factors()[1])
        else:
            raw = self._raw_latents(pixels)
        mean, std = self._statistics()
        return rearrange((raw.float() - mean) / std, "b c f h w -> b f c h w")

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae: Any = self.modules["vae"]
        mean, std = self._statistics()
        raw = (rearrange(latents.to(self.device), "b f c h w -> b c f h w") * std + mean).to(vae.dtype)
        pixels = torch.cat([self._raw_decode(clip) for clip in raw.split(1)])
        return rearrange(pixels.float().clamp(-1, 1) / 2 + 0.5, "b c v h w -> b v h w c")

    # --- texts ----------------------------------------------------------------------------------------------------------

    @abstractmethod
    def _text_states(self, encoder: Any, tokens: Any) -> dict[str, Tensor]:
        """What the transformer takes of one tokenised text, each ``(L, ...)``."""

    def _encoded(self, texts: list[str]) -> dict[str, Tensor]:  # each (B, L, ...)
        """Texts as the transformer takes them, from the cache or through the text encoder."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            import transformers

            tokenizer = self._source.tokenizer()
            encoder: Any = self._source.load(getattr(transformers, self.text_class), "text_encoder", dtype=self._text_dtype)
            size = sum(p.numel() * p.element_size() for p in encoder.parameters())
            if self.device.type == "cuda" and torch.cuda.mem_get_info(self.device)[0] > 1.2 * size:
                encoder = encoder.to(self.device)
            for text in new:
                # As the pipelines clean it: html entities resolved (twice, some are escaped twice), white space made one.
                cleaned = " ".join(html.unescape(html.unescape(text)).split())
                tokens = tokenizer(
                    cleaned,
                    padding="max_length",
                    max_length=self.text_length,
                    truncation=True,
                    return_attention_mask=True,
                    return_tensors="pt",
                ).to(encoder.device)
                with torch.no_grad():
                    self._texts[text] = {k: v.cpu() for k, v in self._text_states(encoder, tokens).items()}
        return {k: torch.stack([self._texts[text][k] for text in texts]) for k in self._texts[texts[0]]}

    def condition(
        self,
        image: Tensor | None = None,
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        fps: float | None = None,
    ) -> Condition:
        """Of texts; ``negative`` defaults to :data:`~.text_to_video.MOTIONLESS`."""
        positive, against = prompts(self, image, text, negative, fps)
        states = self._encoded([*positive, *against])
        return Condition({k: v[: len(positive)] for k, v in states.items()}, {k: v[len(positive) :] for k, v in states.items()})


def _tiled(encode: Callable[[Tensor], Tensor], pixels: Tensor, tile: int, cell: int) -> Tensor:
    """Latents of overlapping tiles, blended by ramps; the activations of only one tile at a time are held for gradients."""
    side, overlap = max(1, tile // cell), max(1, tile // cell // 4)  # latent cells
    height, width = (size // cell for size in pixels.shape[-2:])

    def spans(size: int) -> list[tuple[int, int]]:
        starts = range(0, max(1, size - overlap), max(1, side - overlap))
        return sorted({(max(0, min(a, size - side)), min(size, max(0, min(a, size - side)) + side)) for a in starts})

    def ramp(count: int) -> Tensor:
        x = torch.arange(1, count + 1, device=pixels.device, dtype=torch.float32)
        return torch.minimum(x, x.flip(0)).clamp(max=overlap)

    total: Tensor | float = 0.0
    weights: Tensor | float = 0.0
    for top, bottom in spans(height):
        for left, right in spans(width):
            part = pixels[..., top * cell : bottom * cell, left * cell : right * cell]
            latents = torch.as_tensor(recomputed(encode, part, use_reentrant=False)).float()
            weight = ramp(bottom - top)[:, None] * ramp(right - left)
            place = (left, width - right, top, height - bottom)
            total = total + F.pad(latents * weight, place)
            weights = weights + F.pad(weight, place)
    return torch.as_tensor(total / weights)


# --- Wan ------------------------------------------------------------------------------------------------------------------


@PRIORS.register("wan")
class WanPrior(FlowVideoPrior):
    """Wan 2.1 T2V (Wan-AI/Wan2.1-T2V-1.3B-Diffusers, -14B-), Wan 2.2 T2V-A14B (two experts) and TI2V-5B.

    Published at 480x832 and 81 frames; here 480x480 and 17 unless set otherwise, as objects fill a square.
    """

    resolution = (480, 480)
    text_length = 512
    text_class = "UMT5EncoderModel"
    #: Share of the schedule above which the first of two experts predicts (Wan 2.2 A14B); None = one transformer.
    boundary: float | None = None
    #: Whether the transformer takes a time a token (Wan 2.2 5B).
    token_times: bool = False

    @classmethod
    def matches(cls, checkpoint: Checkpoint) -> bool:
        """Whether the folder's transformer is a WanTransformer3DModel."""
        return checkpoint.has("transformer") and checkpoint.config("transformer").get("_class_name") == "WanTransformer3DModel"

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str | torch.device, precision: Precision) -> WanPrior:
        """From a folder in the layout of WanPipeline."""
        from diffusers import AutoencoderKLWan, WanTransformer3DModel

        checkpoint.require(("transformer", "vae", "text_encoder", "tokenizer", "scheduler"), "a Wan text-to-video model")
        channels, wanted = checkpoint.config("transformer").get("in_channels", 16), checkpoint.config("vae").get("z_dim", 16)
        if channels != wanted:
            raise InputError(
                f"{checkpoint.folder}: an image-to-video Wan (its transformer takes {channels} channels, not {wanted}); give a "
                "text-to-video one, such as Wan2.1-T2V-1.3B-Diffusers"
            )
        network, vae = precision_dtypes(precision, device)
        modules: dict[str, nn.Module] = {
            "transformer": checkpoint.load(WanTransformer3DModel, "transformer", dtype=network, device=device),
            "vae": checkpoint.load(AutoencoderKLWan, "vae", dtype=vae, device=device),
        }
        index = checkpoint.index
        if index.get("boundary_ratio") is not None and checkpoint.has("transformer_2"):
            modules["transformer_2"] = checkpoint.load(WanTransformer3DModel, "transformer_2", dtype=network, device=device)
        text_dtype = torch.float32 if network == torch.float32 else torch.bfloat16
        prior = cls(checkpoint.name, modules, checkpoint, text_dtype, NoiseSchedule.of(checkpoint.scheduler()))
        prior.boundary = index["boundary_ratio"] if "transformer_2" in modules else None
        prior.token_times = bool(index.get("expand_timesteps", False))
        return prior

    def _factors(self) -> tuple[int, int, int]:
        vae: Any = self.modules["vae"].config
        transformer: Any = self.modules["transformer"].config
        return vae.scale_factor_temporal, vae.scale_factor_spatial, transformer.patch_size[1]

    def _statistics(self) -> tuple[Tensor, Tensor]:
        config: Any = self.modules["vae"].config
        both = torch.tensor([config.latents_mean, config.latents_std], device=self.device)[..., None, None, None]
        return both[0], both[1]

    def _raw_latents(self, pixels: Tensor) -> Tensor:
        vae: Any = self.modules["vae"]
        if vae.config.patch_size is not None:
            patch = vae.config.patch_size
            pixels = rearrange(pixels, "b c v (h p) (w q) -> b (c q p) v h w", p=patch, q=patch)
        convolutions = vae._cached_conv_counts["encoder"]

        def step(chunk: Tensor, *before: Tensor) -> tuple[Tensor, ...]:
            """One latent frame, and what the causal convolutions remember of the pictures so far."""
            memory: list[Any] = [*before, *[None] * (convolutions - len(before))]
            count = [0]
            latents = vae.encoder(chunk, feat_cache=memory, feat_idx=count)
            return latents, *memory[: count[0]]

        chunks = [pixels[:, :, :1], *(pixels[:, :, 1:].split(self._factors()[0], 2) if pixels.shape[2] > 1 else ())]
        frames, memory = [], []
        for chunk in chunks:
            run = recomputed(step, chunk, *memory, use_reentrant=False) if self.recompute else step(chunk, *memory)
            latents, *memory = run  # pyright: ignore[reportGeneralTypeIssues]
            frames.append(latents)
        return vae.quant_conv(torch.cat(frames, 2)).chunk(2, 1)[0]

    def _raw_decode(self, latents: Tensor) -> Tensor:
        vae: Any = self.modules["vae"]
        return vae.decode(latents).sample

    def _text_states(self, encoder: Any, tokens: Any) -> dict[str, Tensor]:
        states = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state[0]
        return {"text": states * tokens.attention_mask[0, :, None].to(states.dtype)}  # zeros behind the text's end

    def _denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor], views: Viewpoints | None) -> Tensor:
        text = inputs["text"].to(latents.device)
        if self.boundary is None:
            return self._velocity(self.modules["transformer"], latents, time, text)
        output, first = torch.empty_like(latents), time >= self.boundary * self.schedule.steps
        for name, rows in (("transformer", first), ("transformer_2", ~first)):
            if rows.any():
                output[rows] = self._velocity(self.modules[name], latents[rows], time[rows], text[rows])
        return output

    def _velocity(self, network: Any, latents: Tensor, time: Tensor, text: Tensor) -> Tensor:
        if self.token_times:
            tokens = latents.shape[1] * latents.shape[3] * latents.shape[4] // self._factors()[2] ** 2
            time = time[:, None].expand(-1, tokens)
        output = network(
            hidden_states=rearrange(latents, "b f c h w -> b c f h w").to(network.dtype),
            timestep=time,
            encoder_hidden_states=text.to(network.dtype),
        ).sample
        return rearrange(output, "b c f h w -> b f c h w").to(latents.dtype)


# --- LTX ------------------------------------------------------------------------------------------------------------------


@PRIORS.register("ltx")
class LTXPrior(FlowVideoPrior):
    """LTX-Video (Lightricks/LTX-Video, and 0.9.5 and later), given how many frames a second the clip shows.

    Low rates ask for much motion between frames, high ones for smooth and small motion: ``condition(text=..., fps=8)``.
    """

    conditions = frozenset({"text", "fps"})
    resolution = (512, 512)
    text_class = "T5EncoderModel"
    text_length = 128
    #: Version 0.9.5 or later: a latent frame's time is that of its first picture, not a multiple of its index; the text encoder
    #: is run with a mask, on longer texts.
    since_095: bool = False

    @classmethod
    def matches(cls, checkpoint: Checkpoint) -> bool:
        """Whether the folder's transformer is an LTXVideoTransformer3DModel."""
        named = checkpoint.config("transformer").get("_class_name") if checkpoint.has("transformer") else None
        return named == "LTXVideoTransformer3DModel"

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str | torch.device, precision: Precision) -> LTXPrior:
        """From a folder in the layout of LTXPipeline or LTXConditionPipeline."""
        from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

        checkpoint.require(("transformer", "vae", "text_encoder", "tokenizer", "scheduler"), "an LTX-Video model")
        network, vae = precision_dtypes(precision, device)
        modules: dict[str, nn.Module] = {
            "transformer": checkpoint.load(LTXVideoTransformer3DModel, "transformer", dtype=network, device=device),
            "vae": checkpoint.load(AutoencoderKLLTXVideo, "vae", dtype=vae, device=device),
        }
        modules["vae"].enable_gradient_checkpointing()  # pyright: ignore[reportCallIssue]
        text_dtype = torch.float32 if network == torch.float32 else torch.bfloat16
        prior = cls(checkpoint.name, modules, checkpoint, text_dtype, NoiseSchedule.of(checkpoint.scheduler()))
        if checkpoint.index.get("_class_name") == "LTXConditionPipeline":
            prior.since_095, prior.text_length = True, 256
        return prior

    def _factors(self) -> tuple[int, int, int]:
        vae: Any = self.modules["vae"]
        transformer: Any = self.modules["transformer"].config
        return vae.temporal_compression_ratio, vae.spatial_compression_ratio, transformer.patch_size

    def _statistics(self) -> tuple[Tensor, Tensor]:
        vae: Any = self.modules["vae"]
        mean, std = (v.float()[:, None, None, None] for v in (vae.latents_mean, vae.latents_std))
        return mean, std / vae.config.scaling_factor

    def _raw_latents(self, pixels: Tensor) -> Tensor:
        vae: Any = self.modules["vae"]
        vae.encoder.gradient_checkpointing = self.recompute
        return vae.encode(pixels).latent_dist.mode()

    def _raw_decode(self, latents: Tensor) -> Tensor:
        vae: Any = self.modules["vae"]
        # Later versions' decoders remove what noise is left at a time they are given: none.
        time = latents.new_zeros(len(latents)) if vae.config.timestep_conditioning else None
        return vae.decode(latents, time).sample

    def _text_states(self, encoder: Any, tokens: Any) -> dict[str, Tensor]:
        mask = tokens.attention_mask
        return {"text": encoder(tokens.input_ids, mask if self.since_095 else None)[0][0], "mask": mask[0].float()}

    def condition(
        self,
        image: Tensor | None = None,
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        fps: float | None = None,
    ) -> Condition:
        """Of texts and a frame rate; ``negative`` defaults to :data:`~.text_to_video.MOTIONLESS`, ``fps`` to 25."""
        if fps is not None and not fps > 0:
            raise InputError(f"prior {self.name}: {fps} frames a second, give a rate above 0")
        both = super().condition(image, text, negative, fps)
        rate = {"fps": torch.tensor([LTX_FPS if fps is None else float(fps)])}
        return Condition({**both.positive, **rate}, {**(both.negative or {}), **rate})

    def _denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor], views: Viewpoints | None) -> Tensor:
        network: Any = self.modules["transformer"]
        frames, _, height, width = latents.shape[1:]
        (pictures, cell, patch), steps = self._factors(), network.config.patch_size_t
        fps = inputs["fps"].to(latents.device)
        size = {"t": steps, "p": patch, "q": patch}
        tokens = rearrange(latents, "b (f t) c (h p) (w q) -> b (f h w) (c t p q)", **size)
        place: dict[str, Any]
        if self.since_095:
            grid = torch.meshgrid(
                (torch.arange(0, frames, steps) * pictures + 1 - pictures).clamp_min(0),
                torch.arange(0, height, patch) * cell,
                torch.arange(0, width, patch) * cell,
                indexing="ij",
            )
            where = torch.stack(grid).reshape(1, 3, -1).float().to(latents.device).repeat(len(latents), 1, 1)
            where[:, 0] /= fps[:, None]
            place = {"video_coords": where}
        else:
            seconds = (pictures / fps).reshape(-1, 1, 1, 1, 1)
            place = {
                "num_frames": frames // steps,
                "height": height // patch,
                "width": width // patch,
                "rope_interpolation_scale": (seconds, cell, cell),
            }
        output = network(
            hidden_states=tokens.to(network.dtype),
            encoder_hidden_states=inputs["text"].to(latents.device, network.dtype),
            timestep=time,
            encoder_attention_mask=inputs["mask"].to(latents.device),
            **place,
        ).sample
        shape = {"f": frames // steps, "h": height // patch, "w": width // patch}
        return rearrange(output, "b (f h w) (c t p q) -> b (f t) c (h p) (w q)", **size, **shape)
