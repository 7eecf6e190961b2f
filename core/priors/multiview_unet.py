"""The multi-view UNet of MVDream and ImageDream, which diffusers has not.

Stable Diffusion 2.1's UNet with three additions: self-attention runs over the tokens of all views of a sample at once, an MLP
of each view's camera is added to the time embedding, and (ImageDream) every cross-attention also attends to image tokens.
Parameter names and shapes are those of the published checkpoints, which keep the latent-diffusion code base's layout.

Sources: MVDream (arXiv 2308.16512), ImageDream (arXiv 2312.02201); state-dict layout of ashawkey/mvdream-sd2.1-diffusers and
ashawkey/imagedream-ipmv-diffusers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..files import InputError


class MultiViewUNet(nn.Module):
    """Predicts the noise of V latents of one object, seen by V cameras.

    Args:
        in_channels, out_channels: of the latents.
        model_channels: channels of the finest level; ``channel_mult`` has the levels' multiples of it.
        num_res_blocks: residual blocks a level on the way down (one more on the way up).
        attention_resolutions: downsampling rates whose levels have attention; the middle always has.
        num_head_channels: channels of an attention head.
        transformer_depth: transformer blocks at each place with attention.
        context_dim: channels of the text tokens.
        camera_dim: numbers of a camera.
        ip_dim: image tokens, 0 for a model without.
        ip_weight: weight of the attention to image tokens.
        image_dim: channels of the image encoder's hidden states.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        model_channels: int = 320,
        channel_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (4, 2, 1),
        num_head_channels: int = 64,
        transformer_depth: int = 1,
        context_dim: int = 1024,
        camera_dim: int = 16,
        ip_dim: int = 0,
        ip_weight: float = 1.0,
        image_dim: int = 1280,
    ) -> None:
        super().__init__()
        self.in_channels, self.model_channels, self.context_dim = in_channels, model_channels, context_dim
        self.camera_dim, self.ip_dim, self.image_dim = camera_dim, ip_dim, image_dim
        time_dim = 4 * model_channels

        def mlp(width: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(width, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))

        def attention(channels: int) -> SpatialTransformer:
            return SpatialTransformer(channels, num_head_channels, context_dim, transformer_depth, ip_dim > 0, ip_weight)

        if ip_dim > 0:
            self.image_embed = Resampler(image_dim, context_dim, ip_dim)
        self.time_embed, self.camera_embed = mlp(model_channels), mlp(camera_dim)

        channels, rate = model_channels, 1
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(in_channels, channels, 3, padding=1)])])
        skips = [channels]
        for level, multiple in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [ResBlock(channels, multiple * model_channels, time_dim)]
                channels = multiple * model_channels
                if rate in attention_resolutions:
                    layers.append(attention(channels))
                self.input_blocks.append(nn.ModuleList(layers))
                skips.append(channels)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(nn.ModuleList([Downsample(channels)]))
                skips.append(channels)
                rate *= 2

        self.middle_block = nn.ModuleList(
            [ResBlock(channels, channels, time_dim), attention(channels), ResBlock(channels, channels, time_dim)]
        )

        self.output_blocks = nn.ModuleList()
        for level, multiple in reversed(list(enumerate(channel_mult))):
            for block in range(num_res_blocks + 1):
                layers = [ResBlock(channels + skips.pop(), multiple * model_channels, time_dim)]
                channels = multiple * model_channels
                if rate in attention_resolutions:
                    layers.append(attention(channels))
                if level > 0 and block == num_res_blocks:
                    layers.append(Upsample(channels))
                    rate //= 2
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MultiViewUNet:
        """From a checkpoint's ``unet/config.json``; keys that say nothing about the architecture are passed over.

        Raises:
            InputError: for a configuration of another network.
        """
        known = [name for name in inspect.signature(cls).parameters if name in config]
        needed = {"model_channels", "channel_mult", "context_dim", "camera_dim"} - set(known)
        if needed:
            raise InputError(
                f"unet/config.json: {', '.join(sorted(needed))} missing, not a multi-view UNet (expected MultiViewUNetModel)"
            )
        return cls(**{name: config[name] for name in known})

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(
        self,
        latents: Tensor,  # (B, V, c, h, w)
        time: Tensor,  # (B,) discrete steps
        cameras: Tensor,  # (B, V, camera_dim)
        text: Tensor,  # (B, L, context_dim)
        image_tokens: Tensor | None = None,  # (B, ip_dim, context_dim), of image_embed
    ) -> Tensor:  # (B, V, c, h, w)
        """The predicted noise, in the network's precision. All views of a sample have the same time and text."""
        views = latents.shape[1]
        dtype = self.dtype
        embedding = self.time_embed(sinusoids(time, self.model_channels).to(dtype))[:, None]
        embedding = rearrange(embedding + self.camera_embed(cameras.to(dtype)), "b v c -> (b v) c")
        text = text.to(dtype)
        image_tokens = None if image_tokens is None else image_tokens.to(dtype)

        def run(block: nn.ModuleList | nn.Module, x: Tensor) -> Tensor:
            for layer in block:  # type: ignore[union-attr]
                if isinstance(layer, ResBlock):
                    x = layer(x, embedding)
                elif isinstance(layer, SpatialTransformer):
                    x = layer(x, text, image_tokens, views)
                else:
                    x = layer(x)
            return x

        x = rearrange(latents.to(dtype), "b v c h w -> (b v) c h w")
        skips = []
        for block in self.input_blocks:
            x = run(block, x)
            skips.append(x)
        x = run(self.middle_block, x)
        for block in self.output_blocks:
            x = run(block, torch.cat([x, skips.pop()], 1))
        return rearrange(self.out(x), "(b v) c h w -> b v c h w", v=views)


def sinusoids(time: Tensor, width: int) -> Tensor:  # (B,) -> (B, width)
    """Time embedding, cosines first, wavelengths from 2 pi to 20000 pi; float32."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=time.device))
    angles = time.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


class ResBlock(nn.Module):
    """Two convolutions with the embedding of time and camera added between them."""

    def __init__(self, channels: int, out_channels: int, time_dim: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, out_channels))
        # The third is the training's dropout: it keeps the convolution's published name, out_layers.3.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels), nn.SiLU(), nn.Identity(), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # (N, c, h, w), (N, time_dim)
        h = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    """Halves the resolution by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Doubles the resolution: nearest cell, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the cells of all views of a sample, as a residual."""

    def __init__(
        self, channels: int, head_channels: int, context_dim: int, depth: int, image_tokens: bool, ip_weight: float
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(channels, head_channels, context_dim, image_tokens, ip_weight) for _ in range(depth)]
        )
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, text: Tensor, image_tokens: Tensor | None, views: int) -> Tensor:  # (B V, c, h, w)
        height, width = x.shape[-2:]
        tokens = self.proj_in(rearrange(self.norm(x), "(b v) c h w -> b (v h w) c", v=views))
        for block in self.transformer_blocks:
            tokens = block(tokens, text, image_tokens)
        return x + rearrange(self.proj_out(tokens), "b (v h w) c -> (b v) c h w", v=views, h=height, w=width)


class TransformerBlock(nn.Module):
    """Attention among all views' tokens, attention to text (and image) tokens, and a gated MLP."""

    def __init__(self, channels: int, head_channels: int, context_dim: int, image_tokens: bool, ip_weight: float) -> None:
        super().__init__()
        self.attn1 = Attention(channels, channels, head_channels)
        self.ff = FeedForward(channels)
        self.attn2 = Attention(channels, context_dim, head_channels, image_tokens, ip_weight)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x: Tensor, text: Tensor, image_tokens: Tensor | None) -> Tensor:  # (B, N, c)
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), text, image_tokens)
        return x + self.ff(self.norm3(x))


class Attention(nn.Module):
    """Multi-head attention; with image tokens, a second one with the same queries is added to it."""

    def __init__(
        self, channels: int, context_dim: int, head_channels: int, image_tokens: bool = False, ip_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.heads, self.ip_weight = channels // head_channels, ip_weight
        if image_tokens:
            self.to_k_ip = nn.Linear(context_dim, channels, bias=False)
            self.to_v_ip = nn.Linear(context_dim, channels, bias=False)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor, image_tokens: Tensor | None = None) -> Tensor:  # (B, N, c), (B, M, d)
        queries = self.to_q(x)
        out = attend(queries, self.to_k(context), self.to_v(context), self.heads)
        if image_tokens is not None:
            seen = attend(queries, self.to_k_ip(image_tokens), self.to_v_ip(image_tokens), self.heads)
            out = out + self.ip_weight * seen
        return self.to_out(out)


class FeedForward(nn.Module):
    """An MLP, four times as wide inside, gated by a GELU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The second is the training's dropout: it keeps the last layer's published name, net.2.
        self.net = nn.Sequential(GatedLinear(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class GatedLinear(nn.Module):
    """``a GELU(b)`` of two linear maps a, b."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class Resampler(nn.Module):
    """Image tokens from an image encoder's hidden states: learned queries attend to them, layer by layer.

    Sizes that no configuration file states: 4 layers, 12 heads of 64 channels, MLPs 4 times as wide.
    """

    def __init__(
        self, image_dim: int, dim: int, queries: int, depth: int = 4, heads: int = 12, head_channels: int = 64
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, queries, dim) / dim**0.5)
        self.proj_in = nn.Linear(image_dim, dim)
        self.proj_out = nn.Linear(dim, dim)
        self.norm_out = nn.LayerNorm(dim)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            mlp = [nn.LayerNorm(dim), nn.Linear(dim, 4 * dim, bias=False), nn.GELU(), nn.Linear(4 * dim, dim, bias=False)]
            self.layers.append(nn.ModuleList([ResamplerAttention(dim, heads, head_channels), nn.Sequential(*mlp)]))

    def forward(self, hidden: Tensor) -> Tensor:  # (B, L, image_dim) -> (B, queries, dim)
        hidden = self.proj_in(hidden)
        tokens = self.latents.expand(len(hidden), -1, -1)
        for attention, mlp in self.layers:  # type: ignore[misc]
            tokens = tokens + attention(hidden, tokens)
            tokens = tokens + mlp(tokens)
        return self.norm_out(self.proj_out(tokens))


class ResamplerAttention(nn.Module):
    """The queries attend to the picture's tokens and to themselves."""

    def __init__(self, dim: int, heads: int, head_channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * head_channels, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * head_channels, bias=False)
        self.to_out = nn.Linear(heads * head_channels, dim, bias=False)

    def forward(self, hidden: Tensor, tokens: Tensor) -> Tensor:  # (B, L, d), (B, q, d) -> (B, q, d)
        tokens = self.norm2(tokens)
        keys, values = self.to_kv(torch.cat([self.norm1(hidden), tokens], 1)).chunk(2, -1)
        return self.to_out(attend(self.to_q(tokens), keys, values, self.heads))


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:  # (B, N, c), (B, M, c), (B, M, c)
    """Multi-head softmax attention, ``(B, N, c)``."""
    q, k, v = (rearrange(x, "b n (h c) -> b h n c", h=heads) for x in (queries, keys, values))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n c -> b n (h c)")
