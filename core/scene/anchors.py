"""Anchors: views around the object at every frame of a clip, which a prior drew beside the driving video (STAG4D)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..cameras import Cameras, orbit
from ..files import InputError, read_tensors, write_tensors
from ..identity import canonical, fingerprint

#: Zero123++ v1.1's six views, which STAG4D's anchors are: degrees above the horizon.
ELEVATIONS = (30.0, -20.0) * 3
#: Zero123's lens: a vertical field of view, degrees.
LENS = 49.1
#: A tile whose object takes a smaller or larger share of it than this is no view of the object.
LEAST, MOST = 0.003, 0.9
#: By how much tiles are scaled at most, to or fro.
SCALING = 1.5


@dataclass(frozen=True, eq=False)
class Anchors:
    """Views of every frame from a lens that stands around the origin.

    View a is at azimuth ``(a + 0.5) 360 / A`` from the driving video's: of six, 30, 90, ..., 330 degrees.

    Args:
        images: ``(T, A, S, S, 4)`` in [0, 1], straight alpha.
        elevations: of the A views, degrees above the horizon.
        distance: of the lens from the origin, world units.
        fovy: of the lens, degrees.
    """

    images: Tensor  # (T, A, S, S, 4)
    elevations: tuple[float, ...] = ELEVATIONS
    distance: float = 2.0
    fovy: float = LENS

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if len(shape) != 5 or shape[1] != len(self.elevations) or shape[2] != shape[3] or shape[4] != 4:
            raise InputError(
                f"anchors: pictures of shape {shape}, give (frames, {len(self.elevations)}, size, size, 4) with alpha"
            )

    def __repr__(self) -> str:
        frames, views, size = self.images.shape[:3]
        return f"Anchors({views} views of {frames} frames, {size} px, {self.identity})"

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def identity(self) -> str:
        """Identity of the anchors, for the fingerprints of runs."""
        return fingerprint(self.images, self.elevations, self.distance, self.fovy)

    @property
    def azimuths(self) -> tuple[float, ...]:
        """Of the views, degrees from the driving video's."""
        count = len(self.elevations)
        return tuple((a + 0.5) * 360 / count for a in range(count))

    @cached_property
    def valid(self) -> Tensor:  # (T, A) bool
        """Which tiles show an object at all."""
        share = self.images[..., 3].mean((2, 3))
        return (share > LEAST) & (share < MOST)

    def cameras(self, size: int | None = None) -> Cameras:  # (A,)
        """Of the views, drawn at ``size`` pixels, by default their own."""
        side = size or self.images.shape[2]
        return orbit(list(self.azimuths), list(self.elevations), self.distance, self.fovy, side, side)

    def nearest(self, azimuth: Tensor) -> Tensor:  # (...) degrees -> (...) int64
        """The view in whose sector of 360 / A degrees an azimuth lies."""
        count = len(self.elevations)
        return ((azimuth % 360) / (360 / count)).floor().long().clamp(0, count - 1)

    def composited(self, background: Tensor) -> Tensor:  # (3,) -> (T, A, S, S, 3)
        """The pictures on a colour."""
        alpha = self.images[..., 3:]
        return self.images[..., :3] * alpha + (1 - alpha) * background.to(self.images)

    def to(self, device: torch.device | str) -> Anchors:
        """On a device."""
        return replace(self, images=self.images.to(device))

    def scaled(self, factors: Tensor) -> Anchors:  # (A,)
        """Each view's pictures made larger by its factor, around their centre."""
        frames, size = len(self), self.images.shape[2]
        rgba = torch.cat([self.images[..., :3] * self.images[..., 3:], self.images[..., 3:]], -1)
        flat = rearrange(rgba, "t a h w c -> (t a) c h w")
        scale = factors.to(flat).repeat(frames)
        theta = torch.zeros(len(flat), 2, 3, dtype=flat.dtype, device=flat.device)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
        grid = F.affine_grid(theta, [len(flat), 4, size, size], align_corners=False)
        drawn = F.grid_sample(flat, grid, padding_mode="zeros", align_corners=False)
        drawn = rearrange(drawn, "(t a) c h w -> t a h w c", t=frames)
        color = (drawn[..., :3] / drawn[..., 3:].clamp_min(1e-4)).clamp(0, 1)
        return replace(self, images=torch.cat([color, drawn[..., 3:].clamp(0, 1)], -1))

    def matched(self, alpha: Tensor, frame: int) -> Anchors:  # (A, H, W)
        """Scaled so that each view's object at ``frame`` is as high as in renders of it from the same cameras.

        A prior that frames every object anew draws it larger or smaller than the video's lens shows it. Views in which either
        is not to be seen take the mean of the others.
        """
        wanted = _heights(alpha.cpu()) / alpha.shape[-1]
        drawn = _heights(self.images[frame, ..., 3].cpu()) / self.images.shape[2]
        known = (wanted > 0) & (drawn > 0) & self.valid[frame].cpu()
        if not bool(known.any()):
            return self
        ratio = (wanted / drawn.clamp_min(1e-6)).clamp(1 / SCALING, SCALING)
        return self.scaled(torch.where(known, ratio, ratio[known].mean()))

    def _comfy_cache_tensors(self) -> list[Tensor]:
        """The tensors this value holds, for the host's cache accounting."""
        return [self.images]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file."""
        header = {"elevations": self.elevations, "distance": self.distance, "fovy": self.fovy}
        write_tensors(path, {"images": self.images}, {"anchor4d-anchors": json.dumps(header)})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Anchors:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: for a missing, damaged or foreign file.
        """
        from safetensors import SafetensorError

        try:
            tensors, metadata = read_tensors(path)
            header = json.loads(metadata["anchor4d-anchors"])
            return Anchors(tensors["images"], tuple(header["elevations"]), float(header["distance"]), float(header["fovy"]))
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{Path(path)}: not a readable file of anchors ({error}); sample them again") from None


def _heights(alpha: Tensor) -> Tensor:  # (A, H, W) -> (A,)
    """Rows that the object takes."""
    rows = (alpha > 0.5).any(-1)
    index = torch.arange(alpha.shape[1], dtype=torch.float32)
    first = torch.where(rows, index, torch.inf).amin(-1)
    last = torch.where(rows, index, -torch.inf).amax(-1)
    return (last - first + 1).clamp_min(0)


@canonical.register
def _(value: Anchors) -> Any:
    return {"anchors": value.identity}
