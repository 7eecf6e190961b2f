"""What given depth means: depth or inverse depth, and the scale and shift that bring it into the object's world."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import FrontCamera
from ..files import InputError
from ..scene.object3d import Object3D, render_object
from ..signals import DepthMaps
from ..video import DrivingVideo

log = logging.getLogger(__name__)

#: Residual, in units of the object's longest side, beyond which a pixel's pull no longer grows.
WIDTH = 0.1
#: Residual that halves a pixel's pull on scale and shift, about: limbs move by less.
OUTLYING = 0.3
#: Rounds of reweighting of a scale and a shift.
ROUNDS = 5
#: Correlation below which a scale is taken back.
FAINT = 0.25
#: Error in the first frame, in units of the object's longest side, at which depth counts half. Only what stays over a sixteenth
#: of the picture counts as one: finer grain averages out.
BELIEVED, COARSE = 0.025, 16
#: Pixels that the first frame's depth and the object must have in common, and a correlation below which depth is doubtful.
SHARED, DOUBTFUL = 16, 0.3


@dataclass(frozen=True)
class PlacedDepth:
    """Depth maps as a fit compares them.

    Args:
        maps: through the driving video's crop.
        inverse: whether they grow towards the camera.
        affine: scale and shift for all frames, see :func:`comparable`; None where each frame has its own.
        trust: how much they count, 0 to 1, by how well they know the first frame, whose depth is known.
        report: what a report says of them.
    """

    maps: DepthMaps
    inverse: bool
    affine: tuple[float, float] | None
    trust: float
    report: dict[str, Any]


def place_depth(maps: DepthMaps, video: DrivingVideo, front: FrontCamera, item: Object3D | None) -> PlacedDepth:
    """Depth maps of a video by its first frame's aligned object, whose depth is known.

    Whether they hold depth or its inverse is found out by the sign of their correlation with the object's depth. One scale and
    shift of the whole clip are those of the first frame.

    Args:
        item: the aligned object, facing front; None where there is none: then maps of kind "auto" hold inverse depth, and each
            frame has its own scale and shift.

    Raises:
        InputError: for maps of other frames or another picture, that are unknown where the object is, that are flat, or that
            say the opposite of what they are said to hold.
    """
    maps = maps.through(video)
    masks = video.masks.cpu() > 0.9
    known = (maps.values.isfinite() & masks).flatten(1).sum(1)
    if int(known.min()) < SHARED:
        frame = int(known.argmin())
        raise InputError(f"{maps.source}: says nothing of the object in frame {frame}, give depth of the video's own pictures")
    if item is None:
        inverse = maps.kind != "depth"
        return PlacedDepth(maps, inverse, None, 1.0, {"inverse": inverse, "span": "frame", "correlation": None})
    drawn = render_object(item, front.cropped(video.crop, video.resolution))
    inside = (maps.values[0].isfinite() & masks[0] & (drawn.alpha[0] > 0.99)).float()
    if int(inside.sum()) < SHARED:
        raise InputError(f"{maps.source}: {int(inside.sum())} pixels in common with the object in the first frame; check both")
    given, depth = maps.values[0].nan_to_num(0), drawn.depth[0]
    correlation = _correlation(given, depth, inside)
    if correlation is None:
        raise InputError(f"{maps.source}: the same depth all over the object in the first frame; give depth maps of the video")
    inverse = correlation < 0 if maps.kind == "auto" else maps.kind == "inverse"
    if inverse != (correlation < 0):
        other = "depth" if inverse else "inverse"
        raise InputError(
            f"{maps.source}: grows {'away from' if inverse else 'towards'} the camera (correlation {correlation:.2f} with the "
            f"object's depth), so that it is not {maps.kind}; choose {other} or auto"
        )
    if abs(correlation) < DOUBTFUL:
        log.warning(
            "%s: correlates by only %.2f with the object's depth in the first frame; is it of this video?",
            maps.source,
            correlation,
        )
    goal = comparable(depth, front.distance, inverse)
    scale, shift = (float(x[0]) for x in fitted(given[None], goal[None], inside[None]))
    error = _coarse((scale * given + shift - goal) * inside, inside)
    trust = 1 / (1 + (error / BELIEVED) ** 2)
    affine = (scale, shift) if maps.span == "clip" else None
    log.info("%s: %s, correlation %.2f", maps.source, "inverse depth" if inverse else "depth", correlation)
    if trust < 0.5:
        log.info(
            "%s: off by %.2f of the object's length in the first frame, so it counts %.0f%%", maps.source, error, 100 * trust
        )
    found = {"inverse": inverse, "span": maps.span, "correlation": correlation, "error": error, "trust": trust}
    return PlacedDepth(maps, inverse, affine, trust, found)


def _coarse(residual: Tensor, inside: Tensor) -> float:  # (H, W) each
    """The root mean square of a residual, 0 outside, averaged over a sixteenth of the picture."""
    side = 2 * (residual.shape[-1] // (2 * COARSE)) + 1
    total, area = (F.avg_pool2d(x[None, None], side, 1, side // 2)[0, 0] for x in (residual, inside))
    return float(((total / area.clamp_min(1e-6)).square() * inside).sum().div(inside.sum()).sqrt())


def _correlation(a: Tensor, b: Tensor, weight: Tensor) -> float | None:  # (H, W) each
    """Pearson's, where the weight is 1; None where either is flat."""
    x, y = (v[weight > 0].double() for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    norm = float(x.norm() * y.norm())
    return None if norm < 1e-12 else float((x * y).sum()) / norm


def comparable(depth: Tensor, distance: float, inverse: bool) -> Tensor:
    """Depth (world units) as it is compared: itself, or D^2 / z."""
    return distance**2 / depth.clamp_min(0.05 * distance) if inverse else depth


def fitted(given: Tensor, shown: Tensor, weight: Tensor, width: float = OUTLYING) -> tuple[Tensor, Tensor]:
    """Scale and shift (B,) that take ``given`` (B, H, W) to ``shown``: least squares, reweighted against outliers
    (Geman and McClure).

    Once outliers are left out, ``given`` is regressed on ``shown`` and the line turned round: what is shown is free of noise,
    and noise in what is given would flatten a line fitted the other way. Scales are not below 0: a map that says the opposite
    says nothing, and one that hardly correlates (below :data:`FAINT`) little.
    """
    x, y, base = given.flatten(1), shown.flatten(1), weight.flatten(1)
    current = base
    scale, shift = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
    for turn in range(ROUNDS):
        total = current.sum(1).clamp_min(1e-6)
        mean_x, mean_y = (current * x).sum(1) / total, (current * y).sum(1) / total
        off_x, off_y = x - mean_x[:, None], y - mean_y[:, None]
        spread_x, spread_y = ((current * off.square()).sum(1).clamp_min(1e-12).sqrt() for off in (off_x, off_y))
        r = (current * off_x * off_y).sum(1) / (spread_x * spread_y)
        slope = r if turn < 2 else torch.where(r > FAINT, 1 / r.clamp_min(FAINT), r.clamp_min(0) / FAINT**2)
        scale = spread_y / spread_x * slope
        shift = mean_y - scale * mean_x
        residual = y - scale[:, None] * x - shift[:, None]
        current = base / (1 + (residual / width).square()).square()
    return scale, shift
