"""Inception V3 (Szegedy et al. 2016) as FID asks it: TensorFlow's network of 2015, its last pooled features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..priors.convert import read_pickle
from .weights import loaded, located

Kernel = int | tuple[int, int]


class _Unit(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: Kernel = 1, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if padded and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Branches side by side: chains of units ``<branch>_1``, ..., whose last may be two beside each other, and a pool.

    Args:
        branches: the units of each chain as (outputs, kernel, stride); a chain of one has no number in its name.
        forks: of the chains that end in units ``a`` and ``b``, their kernels: (1, 3) and (3, 1).
        pool: "average", "max", each before a unit of ``pooled`` outputs, or "halve": a max pool of stride 2 alone.
    """

    def __init__(
        self,
        inputs: int,
        branches: Mapping[str, Sequence[tuple[int, Kernel, int]]],
        pool: str,
        pooled: int = 0,
        forks: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.pool, self.chains = pool, []
        for branch, units in branches.items():
            channels, chain = inputs, []
            for number, (outputs, kernel, stride) in enumerate(units, 1):
                name = branch if len(units) == 1 and branch not in forks else f"{branch}_{number}"
                self.add_module(name, _Unit(channels, outputs, kernel, stride))
                chain.append((name,))
                channels = outputs
            if branch in forks:
                fork = tuple(f"{branch}_{len(units) + 1}{end}" for end in "ab")
                for name, kernel in zip(fork, ((1, 3), (3, 1))):
                    self.add_module(name, _Unit(channels, channels, kernel))
                chain.append(fork)
            self.chains.append(chain)
        if pooled:
            self.branch_pool = _Unit(inputs, pooled)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for chain in self.chains:
            y = x
            for names in chain:
                y = torch.cat([getattr(self, name)(y) for name in names], 1)
            found.append(y)
        if self.pool == "halve":
            return torch.cat([*found, F.max_pool2d(x, 3, 2)], 1)
        # TensorFlow's mean leaves the padding out; the last block of 2015 pools by the maximum.
        pool = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) if self.pool == "average" else F.max_pool2d(x, 3, 1, 1)
        return torch.cat([*found, self.branch_pool(pool)], 1)


def _a(inputs: int, pooled: int) -> _Mixed:
    double = [(64, 1, 1), (96, 3, 1), (96, 3, 1)]
    chains = {"branch1x1": [(64, 1, 1)], "branch5x5": [(48, 1, 1), (64, 5, 1)], "branch3x3dbl": double}
    return _Mixed(inputs, chains, "average", pooled)


def _c(width: int) -> _Mixed:
    across, down = (1, 7), (7, 1)
    chains: dict[str, list[tuple[int, Kernel, int]]] = {
        "branch1x1": [(192, 1, 1)],
        "branch7x7": [(width, 1, 1), (width, across, 1), (192, down, 1)],
        "branch7x7dbl": [(width, 1, 1), (width, down, 1), (width, across, 1), (width, down, 1), (192, across, 1)],
    }
    return _Mixed(768, chains, "average", 192)


def _e(inputs: int, pool: str) -> _Mixed:
    chains = {"branch1x1": [(320, 1, 1)], "branch3x3": [(384, 1, 1)], "branch3x3dbl": [(448, 1, 1), (384, 3, 1)]}
    return _Mixed(inputs, chains, pool, 192, forks=("branch3x3", "branch3x3dbl"))


class InceptionV3(nn.Module):
    """2048 features of pictures.

    Args:
        size: pixels of a side that pictures are drawn at; 299 as published.
    """

    def __init__(self, size: int = 299) -> None:
        super().__init__()
        self.size = size
        self.Conv2d_1a_3x3 = _Unit(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _Unit(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = _Unit(32, 64, 3)
        self.Conv2d_3b_1x1 = _Unit(64, 80)
        self.Conv2d_4a_3x3 = _Unit(80, 192, 3, padded=False)
        double = [(64, 1, 1), (96, 3, 1), (96, 3, 2)]
        across: list[tuple[int, Kernel, int]] = [(192, 1, 1), (192, (1, 7), 1), (192, (7, 1), 1), (192, 3, 2)]
        self.mixed = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
        blocks = (
            _a(192, 32), _a(256, 64), _a(288, 64),
            _Mixed(288, {"branch3x3": [(384, 3, 2)], "branch3x3dbl": double}, "halve"),
            _c(128), _c(160), _c(160), _c(192),
            _Mixed(768, {"branch3x3": [(192, 1, 1), (320, 3, 2)], "branch7x7x3": across}, "halve"),
            _e(1280, "average"), _e(2048, "max"),
        )  # fmt: skip
        for name, block in zip(self.mixed, blocks):
            self.add_module(f"Mixed_{name}", block)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:  # (B, H, W, 3) in [0, 1] -> (B, 2048)
        x = images.movedim(-1, 1)
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(2 * x - 1)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name in self.mixed:
            x = getattr(self, f"Mixed_{name}")(x)
        return x.mean((2, 3))


def load_inception(name: str, device: str) -> InceptionV3:
    """The Inception of a model's name, with its weights.

    Raises:
        InputError: where they are not on this machine, or are another network's.
    """
    path = located(name)
    return loaded(InceptionV3(), read_pickle(path), path, ignored=("fc.",)).to(device)
