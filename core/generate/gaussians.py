"""Gaussians from a picture or a text: views by ImageDream or MVDream, then LGM turns four views into Gaussians.

Source: Tang et al., "LGM: Large Multi-View Gaussian Model for High-Resolution 3D Content Creation" (arXiv 2402.05054); weights
in the layout of ashawkey/LGM (``model_fp16_fixrot.safetensors``). Its world is ours: +Y up, front = +Z, +X at azimuth 90.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..cameras import Cameras, FrontCamera, orbit
from ..files import InputError
from ..gaussians import SH_C0, Gaussians
from ..io.background import estimate_masks
from ..io.video import Clip, prepare
from ..priors.base import Prior
from ..priors.checkpoints import Precision, precision_dtypes
from .sampling import StepProgress, image_to_views, text_to_views

#: The camera of LGM's training pictures. The object lies in [-1, 1]^3; the picture's half height spans 0.685 at its middle.
FRONT = FrontCamera(fovy=49.1, distance=1.5, width=512, height=512)
#: Azimuths of the four views, degrees.
AZIMUTHS = (0.0, 90.0, 180.0, 270.0)
#: Side of LGM's input pictures, pixels.
RESOLUTION = 256
#: Share of the picture's side that the object takes.
FILL = 0.8
#: Gaussians less opaque than this are left out.
FAINT = 0.005
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHTS = "model_fp16_fixrot.safetensors"


@dataclass(frozen=True)
class Reconstruction:
    """Gaussians and what they were made from.

    Args:
        gaussians: in our world; as large as LGM makes them, within [-1, 1]^3.
        front: the camera that sees them as the first view does.
        views: the four pictures on white, at :data:`AZIMUTHS`.
    """

    gaussians: Gaussians
    front: FrontCamera
    views: Tensor  # (4, 256, 256, 3)


def image_to_gaussians(
    lgm: str | Path | LGM,
    imagedream: str | Path | Prior,
    image: Tensor,  # (H, W, 3 | 4) in [0, 1], alpha straight
    *,
    text: str = "",
    seed: int = 0,
    steps: int = 30,
    guidance: float = 5.0,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    progress: StepProgress | None = None,
) -> Reconstruction:
    """Gaussians of the object in one picture, seen level from its front.

    Args:
        lgm: file or folder of the weights, a name that ``models list`` knows, or the loaded network.
        imagedream: as :func:`anchor4d.core.priors.load.load_prior` takes it, or the loaded prior.
        image: the object is found by alpha or :func:`anchor4d.core.io.background.estimate_masks`, and centred.

    Raises:
        InputError: for a picture without an object, or models that are not here or of another kind.
    """
    if image.ndim != 3 or image.shape[-1] not in (3, 4) or not image.isfinite().all():
        raise InputError(f"picture: give finite numbers (height, width, 3 or 4), not {tuple(image.shape)}")
    network = lgm if isinstance(lgm, LGM) else load_lgm(lgm, device=device, precision=precision)
    clip = Clip(image[None].detach().cpu().float(), source="picture")
    cut = prepare(clip, resolution=2 * RESOLUTION, fill=FILL, upsample=True).composited(1.0)[0]
    views = image_to_views(
        imagedream, cut, text=text, azimuths=AZIMUTHS, seed=seed, steps=steps, guidance=guidance,
        device=device, precision=precision, progress=progress,
    )  # fmt: skip
    return Reconstruction(views_to_gaussians(network, views), FRONT, views.cpu())


def text_to_gaussians(
    lgm: str | Path | LGM,
    mvdream: str | Path | Prior,
    text: str,
    *,
    negative: str = "",
    seed: int = 0,
    steps: int = 30,
    guidance: float = 7.5,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    progress: StepProgress | None = None,
) -> Reconstruction:
    """Gaussians of what a text describes; arguments as :func:`image_to_gaussians`.

    Each of MVDream's views is cut out, centred and put on white, as LGM's authors do.

    Raises:
        InputError: for a view in which no object is found, or models that are not here or of another kind.
    """
    network = lgm if isinstance(lgm, LGM) else load_lgm(lgm, device=device, precision=precision)
    drawn = text_to_views(
        mvdream, text, negative=negative, azimuths=AZIMUTHS, seed=seed, steps=steps, guidance=guidance,
        device=device, precision=precision, progress=progress,
    )  # fmt: skip
    views = torch.stack([_centred(view.cpu(), f"view {index} of {text!r}") for index, view in enumerate(drawn)])
    return Reconstruction(views_to_gaussians(network, views), FRONT, views)


def _centred(view: Tensor, source: str) -> Tensor:  # (H, W, 3) -> (256, 256, 3)
    masks, _ = estimate_masks(view[None], source=source)
    clip = Clip(view[None], masks=masks, source=source)
    return prepare(clip, resolution=RESOLUTION, fill=FILL, upsample=True).composited(1.0)[0]


@torch.no_grad()
def views_to_gaussians(network: LGM, views: Tensor) -> Gaussians:  # (4, H, W, 3) in [0, 1]
    """Gaussians from views on white at :data:`AZIMUTHS`, level, seen by :data:`FRONT`; the faint ones are left out.

    Raises:
        InputError: for another number of views, or where nothing remains.
    """
    if views.ndim != 4 or len(views) != len(AZIMUTHS) or views.shape[-1] != 3:
        raise InputError(f"LGM takes 4 views (4, H, W, 3) at azimuths 0, 90, 180 and 270, not {tuple(views.shape)}")
    device = next(network.parameters()).device
    pictures = rearrange(views.to(device, torch.float32), "v h w c -> v c h w")
    pictures = F.interpolate(pictures, (RESOLUTION, RESOLUTION), mode="bilinear", align_corners=False)
    mean, deviation = (torch.tensor(x, device=device)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    cameras = orbit(AZIMUTHS, 0.0, FRONT.distance, FRONT.fovy, RESOLUTION, RESOLUTION).to(device)
    rays = rearrange(pluecker_rays(cameras), "v h w c -> v c h w")
    gaussians = activated(network(torch.cat([(pictures - mean) / deviation, rays], 1)[None])[0].float())
    kept = gaussians.select(gaussians.opacities >= FAINT)
    if len(kept) == 0:
        raise InputError("LGM: every Gaussian is transparent; are the views those of one object on white?")
    return kept


def pluecker_rays(cameras: Cameras) -> Tensor:  # (V,) -> (V, H, W, 6)
    """Each pixel's ray through its centre as ``(o x d, d)``, of the camera centre o and the unit direction d."""
    rows, columns = (torch.arange(n, device=cameras.K.device) + 0.5 for n in (cameras.height, cameras.width))
    x, y = torch.meshgrid(columns, rows, indexing="xy")
    pixels = torch.stack([x, y, torch.ones_like(x)], -1)
    rotation = cameras.world_to_camera[:, :3, :3]
    directions = F.normalize(torch.einsum("vji,vjk,hwk->vhwi", rotation, torch.linalg.inv(cameras.K), pixels), dim=-1)
    origins = cameras.positions[:, None, None].expand_as(directions)
    return torch.cat([torch.linalg.cross(origins, directions), directions], -1)


def activated(raw: Tensor) -> Gaussians:  # (N, 14)
    """LGM's 14 numbers a Gaussian: position, opacity, scale (3), rotation wxyz, colour.

    Positions are clamped to [-1, 1]; opacity is a sigmoid; scale ``0.1 softplus``; colour ``0.5 tanh + 0.5``.
    """
    position, opacity, scale, rotation, colour = raw.split([3, 1, 3, 4, 3], -1)
    return Gaussians(
        means=position.clamp(-1, 1),
        quats=F.normalize(rotation, dim=-1),
        log_scales=(0.1 * F.softplus(scale) + 1e-8).log(),
        opacity_logits=opacity[:, 0],
        sh=(0.5 * colour.tanh() / SH_C0)[:, None],
    )


def load_lgm(source: str | Path, *, device: str | torch.device = "cpu", precision: Precision = "auto") -> LGM:
    """The published network, frozen; its size ("big", ...) is read off the weights.

    Args:
        source: a safetensors file, a folder that holds one, or a name that ``models list`` knows.

    Raises:
        InputError: for a file that is not here, not safetensors, or not LGM's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(source)
    if not path.exists():
        from ..priors.models import find, missing

        found = find(str(source))
        if found is None:
            raise missing(str(source))
        path = found
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        path = path / WEIGHTS if (path / WEIGHTS) in files or len(files) != 1 else files[0]
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: not a safetensors file; get {WEIGHTS} with: python -m anchor4d models get lgm")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: not readable as safetensors ({error}); get it with: python -m anchor4d models get lgm"
        ) from None
    # The perceptual loss of its training, which some files still hold.
    tensors = {key: value for key, value in tensors.items() if not key.startswith("lpips_loss.")}
    try:
        with torch.device("meta"):
            network = LGM.of_weights(tensors)
    except (KeyError, IndexError):
        raise InputError(f"{path}: not the weights of LGM, expected keys such as unet.conv_in.weight") from None
    expected = network.state_dict()
    wrong = sorted(set(tensors) ^ set(expected)) or [k for k, v in expected.items() if tensors[k].shape != v.shape]
    if wrong:
        raise InputError(
            f"{path}: not the weights of LGM, {len(wrong)} tensors missing, unknown or of wrong shape ({wrong[0]})"
        )
    dtype = precision_dtypes(precision, device, torch.float16)[0]
    network.load_state_dict({key: value.to(dtype) for key, value in tensors.items()}, assign=True)
    return network.requires_grad_(False).eval().to(device)


class LGM(nn.Module):
    """Four views with their rays to four maps of Gaussians, 14 numbers each.

    Args: as :class:`AsymmetricUNet`; the defaults are the published "big" model's.
    """

    def __init__(
        self,
        down: Sequence[int] = (64, 128, 256, 512, 1024, 1024),
        down_attention: Sequence[bool] = (False, False, False, True, True, True),
        mid_attention: bool = True,
        up: Sequence[int] = (1024, 1024, 512, 256, 128),
        up_attention: Sequence[bool] = (True, True, True, False, False),
        layers: int = 2,
    ) -> None:
        super().__init__()
        self.unet = AsymmetricUNet(9, 14, down, down_attention, mid_attention, up, up_attention, layers)
        self.conv = nn.Conv2d(14, 14, 1)

    @classmethod
    def of_weights(cls, tensors: Mapping[str, Tensor]) -> LGM:
        """The network whose weights these are: channels, layers and attention as their names and shapes tell."""

        channels: dict[str, list[int]] = {}
        attention: dict[str, list[bool]] = {}
        for side in ("down", "up"):
            levels = {int(key.split(".")[2]) for key in tensors if key.startswith(f"unet.{side}_blocks.")}
            names = [f"unet.{side}_blocks.{i}" for i in sorted(levels)]
            channels[side] = [len(tensors[f"{name}.nets.0.conv1.weight"]) for name in names]
            attention[side] = [f"{name}.attns.0.attn.qkv.weight" in tensors for name in names]
        layers = len({key.split(".")[4] for key in tensors if key.startswith("unet.down_blocks.0.nets.")})
        middle = "unet.mid_block.attns.0.attn.qkv.weight" in tensors
        return cls(channels["down"], attention["down"], middle, channels["up"], attention["up"], layers)

    def forward(self, inputs: Tensor) -> Tensor:  # (B, V, 9, H, W) -> (B, V h w, 14)
        views = inputs.shape[1]
        flat = rearrange(inputs, "b v c h w -> (b v) c h w").to(self.conv.weight.dtype)
        return rearrange(self.conv(self.unet(flat, views)), "(b v) c h w -> b (v h w) c", v=views)


class AsymmetricUNet(nn.Module):
    """A U-Net that ends at a coarser resolution than it begins; its attention joins the views of a sample.

    Args:
        down, up: channels of the levels, finest first on the way down and coarsest first on the way up.
        down_attention, mid_attention, up_attention: which levels have attention.
        layers: residual blocks a level on the way down, one more on the way up.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        down: Sequence[int],
        down_attention: Sequence[bool],
        mid_attention: bool,
        up: Sequence[int],
        up_attention: Sequence[bool],
        layers: int,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, down[0], 3, padding=1)
        channels, levels = down[0], []
        for index, width in enumerate(down):
            sizes = [(channels if i == 0 else width, width) for i in range(layers)]
            levels.append(Level(sizes, down_attention[index], "down" if index < len(down) - 1 else None))
            channels = width
        self.down_blocks = nn.ModuleList(levels)
        self.mid_block = Level([(channels, channels), (channels, channels)], mid_attention, last_attention=False)
        channels, levels = up[0], []
        for index, width in enumerate(up):
            # The last block of a level takes up what the next finer level, or the first convolution, handed down.
            skips = [width] * layers + [down[max(-2 - index, -len(down))]]
            sizes = [((channels if i == 0 else width) + skip, width) for i, skip in enumerate(skips)]
            levels.append(Level(sizes, up_attention[index], "up" if index < len(up) - 1 else None))
            channels = width
        self.up_blocks = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(32, channels)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, views: int) -> Tensor:  # (B V, c, H, W) -> (B V, out, h, w)
        x = self.conv_in(x)
        skips = [x]
        for level in self.down_blocks:
            assert isinstance(level, Level)
            for index in range(len(level.nets)):
                x = level(x, index, views)
                skips.append(x)
            if level.downsample is not None:
                x = level.downsample(x)
                skips.append(x)
        for index in range(2):
            x = self.mid_block(x, index, views)
        for level in self.up_blocks:
            assert isinstance(level, Level)
            for index in range(len(level.nets)):
                x = level(torch.cat([x, skips.pop()], 1), index, views)
            if level.upsample is not None:
                x = level.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where the level has it, and the way to the next level."""

    def __init__(
        self, sizes: Sequence[tuple[int, int]], attention: bool, scale: str | None = None, last_attention: bool = True
    ) -> None:
        super().__init__()
        width = sizes[-1][1]
        self.nets = nn.ModuleList([ResBlock(*size) for size in sizes])
        joined = len(sizes) - (not last_attention) if attention else 0
        self.attns = nn.ModuleList([ViewAttention(width) for _ in range(joined)])
        self.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1) if scale == "down" else None
        self.upsample = nn.Conv2d(width, width, 3, padding=1) if scale == "up" else None

    def forward(self, x: Tensor, index: int, views: int) -> Tensor:  # (B V, c, h, w)
        x = self.nets[index](x)
        return self.attns[index](x, views) if index < len(self.attns) else x


class ResBlock(nn.Module):
    """Two convolutions as a residual; branch and shortcut are each divided by sqrt 2, which keeps the variance."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, channels), nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(32, out_channels), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # (N, c, h, w)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (h + self.shortcut(x)) * 0.5**0.5


class ViewAttention(nn.Module):
    """Attention over the cells of all views of a sample, as a residual like :class:`ResBlock`'s."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.attn = nn.GroupNorm(32, channels), SelfAttention(channels)

    def forward(self, x: Tensor, views: int) -> Tensor:  # (B V, c, h, w)
        height, width = x.shape[-2:]
        tokens = self.attn(rearrange(self.norm(x), "(b v) c h w -> b (v h w) c", v=views))
        return (x + rearrange(tokens, "b (v h w) c -> (b v) c h w", v=views, h=height, w=width)) * 0.5**0.5


class SelfAttention(nn.Module):
    """Attention with 16 heads and one projection to queries, keys and values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(channels, 3 * channels, bias=False), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, c)
        q, k, v = rearrange(self.qkv(x), "b n (three h c) -> three b h n c", three=3, h=16)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n c -> b n (h c)"))
