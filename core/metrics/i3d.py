"""I3D (Carreira and Zisserman, CVPR 2017) as FVD asks it: logits of Kinetics-400 for a clip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..priors.convert import read_pickle
from .weights import loaded, located

#: Inception blocks: channels in, and out of the branches 1x1, 3x3 (reduced, out), 3x3 (reduced, out), pool.
BLOCKS = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
#: Pools before a block: kernel and stride over time, height and width.
POOLS = {"Mixed_3b": ((1, 3, 3), (1, 2, 2)), "Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}
#: Frames below which the last pool, two steps of time wide, sees none.
FEWEST = 9


def _padded(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zeros around a clip as TensorFlow's SAME padding has them: the odd one behind."""
    pads: list[int] = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride))):
        total = max(k - (size % s or s), 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def _pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(_padded(x, kernel, stride), kernel, stride)  # pyright: ignore[reportArgumentType]


class _Unit(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, plain: bool = False) -> None:
        super().__init__()
        self.kernel, self.stride, self.plain = (kernel,) * 3, (stride,) * 3, plain
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=plain)
        if not plain:
            self.bn = nn.BatchNorm3d(outputs, eps=1e-5)  # as the checkpoint's own code has it

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(_padded(x, self.kernel, self.stride))
        return x if self.plain else F.relu(self.bn(x))


class _Block(nn.Module):
    def __init__(self, inputs: int, out: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = _Unit(inputs, out[0])
        self.b1a, self.b1b = _Unit(inputs, out[1]), _Unit(out[1], out[2], 3)
        self.b2a, self.b2b = _Unit(inputs, out[3]), _Unit(out[3], out[4], 3)
        self.b3b = _Unit(inputs, out[5])

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.b3b(_pool(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), pooled], 1)


class I3D(nn.Module):
    """Logits of clips, the mean over time.

    Args:
        classes: of actions.
        thinner: divides all inner widths, for tests.
        size: pixels of a side that clips are drawn at.
    """

    def __init__(self, classes: int = 400, *, thinner: int = 1, size: int = 224) -> None:
        super().__init__()

        def width(channels: int) -> int:
            return max(1, channels // thinner)

        self.size = size
        self.Conv3d_1a_7x7 = _Unit(3, width(64), 7, 2)
        self.Conv3d_2b_1x1 = _Unit(width(64), width(64))
        self.Conv3d_2c_3x3 = _Unit(width(64), width(192), 3)
        channels = width(192)
        for name, (_, out) in BLOCKS.items():
            block = tuple(width(c) for c in out)
            self.add_module(name, _Block(channels, block))
            channels = block[0] + block[2] + block[4] + block[5]
        self.logits = _Unit(channels, classes, plain=True)
        self.eval().requires_grad_(False)

    def forward(self, clips: Tensor) -> Tensor:  # (B, T, H, W, 3) in [0, 1] -> (B, classes)
        count, frames = clips.shape[:2]
        x = rearrange(clips, "b t h w c -> (b t) c h w")
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        x = self.features(rearrange(2 * x - 1, "(b t) c h w -> b c t h w", b=count, t=frames))
        x = F.avg_pool3d(x, (min(2, x.shape[2]), *x.shape[3:]), 1)
        return self.logits(x).mean((2, 3, 4))

    def features(self, x: Tensor) -> Tensor:  # (B, 3, T, H, W) in [-1, 1] -> (B, C, t, h, w)
        """What the last block gives."""
        x = _pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        for name in BLOCKS:
            x = getattr(self, name)(_pool(x, *POOLS[name]) if name in POOLS else x)
        return x


def load_i3d(name: str, device: str) -> I3D:
    """The I3D of a model's name, with its weights.

    Raises:
        InputError: where they are not on this machine, or are another network's.
    """
    path = located(name)
    return loaded(I3D(), read_pickle(path), path).to(device)
