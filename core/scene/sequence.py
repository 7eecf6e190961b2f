"""Scenes from sets of Gaussians, one a moment."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..deformation.frames import FrameField
from ..files import InputError
from ..gaussians import Gaussians, half_turn
from .scene import Scene4D

log = logging.getLogger(__name__)

Motion = Literal["auto", "smooth", "steps"]
#: Frames a second where nothing says otherwise.
FPS = 12.0
#: Opacity logit of the Gaussians that fill up the smaller frames: far below what the rasteriser draws.
INVISIBLE = -20.0
#: Frames correspond where a Gaussian's own step is at most this part of the way to any Gaussian of the next frame.
_ALIKE = 0.25


def scene_from_gaussians(
    sets: Sequence[Gaussians],  # T of (N_t, ...)
    *,
    fps: float = FPS,
    loop: bool = False,
    motion: Motion = "auto",
) -> Scene4D:
    """A scene that shows the given sets one after the other.

    Frames of unequal numbers of Gaussians are filled up with invisible ones, and follow each other as they are.
    Frames of equal numbers may be the same Gaussians moved: then what lies between two frames is interpolated.

    Args:
        sets: unbatched, in our frame (+Y up). One makes a still scene.
        loop: whether the first frame follows the last.
        motion: "smooth" interpolates, "steps" shows each frame until the next, "auto" finds out whether the frames correspond,
            see :func:`corresponding`; what it chose is logged and in ``scene.meta["motion"]``.

    Raises:
        InputError: for no frames, or "smooth" with frames of unequal numbers.
    """
    if not sets or not all(len(s) for s in sets):
        raise InputError(f"frame {next((i for i, s in enumerate(sets) if not len(s)), 0)}: no Gaussians, leave it out")
    if motion not in ("auto", "smooth", "steps"):
        raise InputError(f"motion {motion!r}: unknown, choose auto, smooth or steps")
    if fps <= 0:
        raise InputError(f"fps {fps:g}: choose more than 0 frames a second")
    sets = [gaussians.detach().to(torch.float32) for gaussians in sets]
    if len(sets) == 1:
        return Scene4D(sets[0], fps=fps)
    counts = [len(gaussians) for gaussians in sets]
    ragged = min(counts) != max(counts)
    if ragged and motion == "smooth":
        raise InputError(
            f"frames of {min(counts)} to {max(counts)} Gaussians: smooth motion needs one number in every frame; choose steps"
        )
    if motion == "auto":
        motion = "smooth" if not ragged and corresponding(sets) else "steps"
        why = "the frames have unequal numbers of Gaussians" if ragged else (
            "the same Gaussians move from frame to frame" if motion == "smooth" else "each frame has Gaussians of its own"
        )  # fmt: skip
        log.info("%d frames: motion %s, since %s", len(sets), motion, why)
    harmonics = max(gaussians.sh.shape[-2] for gaussians in sets)
    sets = [_filled(gaussians, max(counts), harmonics) for gaussians in sets]
    field = FrameField.of(sets, interpolation="linear" if motion == "smooth" else "hold", loop=loop)
    return Scene4D(sets[0], field, frames=len(sets), fps=fps, loop=loop, meta={"motion": motion})


def corresponding(sets: Sequence[Gaussians], samples: int = 2000, pairs: int = 8) -> bool:
    """Whether frames of equal numbers hold the same Gaussians in the same order.

    The median step of a Gaussian to its namesake in the next frame, beyond the step of the whole, is compared with the median
    step to a Gaussian drawn at random. Up to ``pairs`` pairs of neighbours are looked at; most must agree.
    """
    generator = torch.Generator().manual_seed(0)
    count = len(sets[0])
    chosen = torch.randperm(count, generator=generator)[:samples].to(sets[0].device)
    other = chosen[torch.randperm(len(chosen), generator=generator).to(chosen.device)]
    votes = []
    for i in torch.linspace(0, len(sets) - 2, min(pairs, len(sets) - 1)).round().int().tolist():
        here, there = sets[i].means, sets[i + 1].means
        own, strange = there[chosen] - here[chosen], there[other] - here[chosen]
        whole = own.median(0).values
        votes.append(bool((own - whole).norm(dim=-1).median() <= _ALIKE * (strange - whole).norm(dim=-1).median()))
    return sum(votes) * 2 > len(votes)


def sets_from_arrays(
    positions: Tensor,  # (B, N, 3)
    scales: Tensor,  # (B, N, 3) standard deviations
    rotations: Tensor,  # (B, N, 4) wxyz
    opacities: Tensor,  # (B, N) or (B, N, 1) in [0, 1]
    sh: Tensor,  # (B, N, K, 3)
    counts: Tensor | None = None,  # (B,)
    name: str = "splats",
) -> list[Gaussians]:
    """The host's SPLAT value, activated attributes in the splat files' frame (+Y down), as one set of Gaussians an item.

    Args:
        counts: how many Gaussians of each item are real; the others are padding.

    Raises:
        InputError: for values that are not numbers, or an item without Gaussians.
    """
    arrays = [a.detach().cpu().float() for a in (positions, scales, rotations, opacities.reshape(positions.shape[:2]), sh)]
    sizes = [positions.shape[1]] * len(positions) if counts is None else [int(c) for c in counts]
    sets = []
    for item, size in enumerate(sizes):
        place, scale, rotation, opacity, harmonics = (a[item, :size] for a in arrays)
        if not size:
            raise InputError(f"{name}: item {item} holds no Gaussians, leave it out")
        if not all(bool(a.isfinite().all()) for a in (place, scale, rotation, opacity, harmonics)):
            raise InputError(f"{name}: item {item} holds values that are not numbers (NaN or infinite), make it again")
        logits = opacity.clamp(1e-6, 1 - 1e-6).logit()
        sets.append(half_turn(Gaussians(place, rotation, scale.clamp_min(1e-9).log(), logits, harmonics)))
    return sets


def _filled(gaussians: Gaussians, count: int, harmonics: int) -> Gaussians:
    """Filled up with invisible Gaussians where the last one is, and with harmonics that are zero."""
    missing, extra = count - len(gaussians), harmonics - gaussians.sh.shape[-2]
    gaussians = replace(gaussians, sh=F.pad(gaussians.sh, (0, 0, 0, extra)))
    if not missing:
        return gaussians
    padding = gaussians.map(lambda t: t[-1:].expand(missing, *t.shape[1:]))
    return Gaussians.cat([gaussians, replace(padding, opacity_logits=padding.opacity_logits.new_full((missing,), INVISIBLE))])
