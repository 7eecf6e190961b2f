"""Objects fitted alone to one clip, put into one scene: in the picture by their camera, in depth by what tells it.

A picture leaves an object's depth and size open together: scaled about the camera's centre, it looks the same. The scale of
each comes, in this order, from known sizes, from a common ground under their feet, or from equal depth; then whoever covers
another in the clip is put before it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras, Crop, FrontCamera
from ..files import InputError
from ..video import DrivingVideo
from .edit import Placement, follow, merge, transform
from .scene import Scene4D
from .views import renders

log = logging.getLogger(__name__)

Ground = Literal["auto", "yes", "no"]
#: Pixels across the clip's common window in which objects are compared, and how many of them say who covers whom in a frame.
SIZE, FEW = 160, 6
#: How much nearer what covers is than what it covers, as a share of its depth.
GAP = 0.02
#: A foot is as far below the camera as this share of its distance, and comes within the second of the object's height of the
#: ground in half of the frames; the objects' depths differ by no more than the third factor.
BELOW, STEADY, FARTHEST = 0.05, 0.1, 4.0
#: Opacity from which a Gaussian counts as a part of its object.
SOLID = 0.3


@dataclass(frozen=True)
class Composition:
    """Several objects in one scene.

    Args:
        scene: all of them; its front camera is the clip's, its crop the window that holds them all.
        report: what placed each object, JSON-serialisable.
    """

    scene: Scene4D
    report: dict[str, Any]


def compose(
    scenes: Sequence[Scene4D],
    videos: Sequence[DrivingVideo],
    *,
    ground: Ground = "auto",
    sizes: Sequence[float] | None = None,
    backend: str = "auto",
) -> Composition:
    """Scenes of one clip's objects as one scene, centred on the origin, its longest side 1 at the clip's start.

    Where the order changes during the clip, the object that is covered moves back for that time: the picture stays the same.

    Args:
        scenes: each fitted to its object with a camera that they share (:func:`~..align.align_together`).
        videos: each object's driving video, see :func:`~..io.tracks.load_objects`.
        ground: whether the objects stand on one ground; "auto" where their feet are steady below the camera and who covers
            whom agrees.
        sizes: longest side of each object, in any unit, in place of the ground.

    Raises:
        InputError: for scenes that share no camera, or as many sizes as there are no objects.
    """
    fronts = _shared_cameras(scenes)
    count = len(scenes)
    if len(videos) != count:
        raise InputError(f"compose: {len(videos)} driving videos for {count} scenes, give each object's")
    if sizes is not None and (len(sizes) != count or min(sizes) <= 0):
        raise InputError(f"sizes: give {count} numbers above 0, the longest side of each object")
    crop = common_crop([window for video in videos for window in _windows(video)])
    seen = [_seen(scene, front, video, crop, backend) for scene, front, video in zip(scenes, fronts, videos)]
    covers, changing = _believed({(a, b): _covers(seen[a], seen[b]) for a, b in permutations(range(count), 2)})
    standing = _on_ground(scenes, fronts, videos) if sizes is None and ground != "no" else None
    if ground == "yes" and sizes is None and standing is None:
        raise InputError("ground: an object's lowest point is not below the camera, so it tells no depth; choose ground no")
    level = [fronts[0].distance / front.distance for front in fronts]
    scales = list(sizes) if sizes is not None else level
    by = "sizes" if sizes is not None else "equal depth"
    if standing is not None and sizes is None:
        scales_, steady = standing
        doubt = _contradicted(scales_, covers) or ("" if steady else "a lowest point rises and falls")
        if ground == "yes" or not doubt:
            scales, by = scales_, "ground"
        else:
            log.info("ground: not used, %s", doubt)
    scales = [value / scales[0] for value in scales]
    logs = _ordered([math.log(value) for value in scales], covers, bool(changing), scenes[0].frames)
    for a, b in sorted({(min(pair), max(pair)) for pair in changing}):
        log.warning(
            "objects %d and %d: who is in front changes during the clip; the one behind is moved back for that time",
            a + 1,
            b + 1,
        )
    merged = _put_together(scenes, [_walking(front, video) for front, video in zip(fronts, videos)], logs)
    depths = [float(front.distance * values.exp().mean()) for front, values in zip(fronts, logs)]
    log.info("composed by %s: depths %s", by, ", ".join(f"{depth / depths[0]:.2f}" for depth in depths))
    order = [
        {"front": a + 1, "behind": b + 1, "frames": frames}
        for (a, b), ratios in covers.items()
        if (frames := (~ratios.isnan()).nonzero().flatten().tolist())
    ]
    report = {
        "by": by,
        "depths": [depth / depths[0] for depth in depths],
        "sizes": [float(values.exp().mean() / logs[0].exp().mean()) for values in logs],
        "covers": order,
    }
    merged = replace(merged, crop=crop, meta={**merged.meta, "composition": report})
    return Composition(merged, report)


def _windows(video: DrivingVideo) -> list[Crop]:
    """A video's crop in the clip's own pixels, at every frame."""
    if video.shifts is None:
        return [video.crop]
    crop = video.crop
    return [replace(crop, x=crop.x - right, y=crop.y - down) for right, down in video.shifts.tolist()]


def common_crop(crops: Sequence[Crop]) -> Crop:
    """The smallest square window that holds several of one picture."""
    left, top = min(c.x for c in crops), min(c.y for c in crops)
    right, bottom = max(c.x + c.size for c in crops), max(c.y + c.size for c in crops)
    size = max(right - left, bottom - top)
    first = crops[0]
    return Crop((left + right - size) / 2, (top + bottom - size) / 2, size, first.width, first.height)


def _shared_cameras(scenes: Sequence[Scene4D]) -> list[FrontCamera]:
    if not scenes:
        raise InputError("compose: no scenes, connect at least one")
    fronts = []
    for number, scene in enumerate(scenes, 1):
        front = scene.front
        if front is None or front.px is None or front.py is None:
            raise InputError(f"scene {number}: has no camera that objects share; split the clip and align its objects together")
        fronts.append(front)
    first = fronts[0]
    for number, (front, scene) in enumerate(zip(fronts, scenes), 1):
        same = (front.width, front.height, front.px, front.py) == (first.width, first.height, first.px, first.py)
        if not same or abs(front.fovy - first.fovy) > 0.01 or abs(front.elevation - first.elevation) > 0.01:
            raise InputError(
                f"scene {number}: its camera (field of view {front.fovy:.2f}) is not scene 1's ({first.fovy:.2f}); align the "
                "objects together, or give the first alignment to the others"
            )
        if scene.frames != scenes[0].frames:
            raise InputError(
                f"scene {number}: {scene.frames} frames where scene 1 has {scenes[0].frames}; fit them to one clip"
            )
    return fronts


# What tells the depth


@dataclass(frozen=True)
class _Seen:
    """An object through the common window: where the fit has it, how deep in its own units, and where the clip shows it."""

    alpha: Tensor  # (T, S, S)
    depth: Tensor  # (T, S, S)
    mask: Tensor  # (T, S, S)


def _seen(scene: Scene4D, front: FrontCamera, video: DrivingVideo, crop: Crop, backend: str) -> _Seen:
    # In the clip's own pixels, where the object is seen at another place in each frame.
    cameras = Cameras.cat([each.cropped(crop, SIZE) for each in _walking(front, video)])
    drawn = list(renders(scene, cameras.reshape(len(cameras), 1), backend=backend))
    alpha = torch.stack([render.alpha[0] for render in drawn]).cpu()
    depth = torch.stack([render.expected_depth[0] for render in drawn]).cpu()
    # The common window's pixels in the video's own.
    at = torch.arange(SIZE, dtype=torch.float32) + 0.5
    shifts = torch.zeros(len(video), 2) if video.shifts is None else video.shifts
    x = (crop.x + at * crop.size / SIZE + shifts[:, :1] - video.crop.x) / video.crop.size * 2 - 1  # (T, S)
    y = (crop.y + at * crop.size / SIZE + shifts[:, 1:] - video.crop.y) / video.crop.size * 2 - 1
    grid = torch.stack([x[:, None].expand(-1, SIZE, SIZE), y[:, :, None].expand(-1, SIZE, SIZE)], -1)
    masks = F.grid_sample(video.masks.float().cpu()[:, None], grid, padding_mode="zeros", align_corners=False)[:, 0]
    return _Seen(alpha, depth, masks)


def _walking(front: FrontCamera, video: DrivingVideo) -> list[FrontCamera]:
    """The clip's camera at each frame, around an object that is held in place."""
    if video.shifts is None:
        return [front] * len(video)
    cx = front.width / 2 if front.cx is None else front.cx
    cy = front.height / 2 if front.cy is None else front.cy
    return [replace(front, cx=cx - right, cy=cy - down) for right, down in video.shifts.tolist()]


def _covers(a: _Seen, b: _Seen) -> tuple[Tensor, Tensor]:  # (T,), (T,)
    """For each frame in which ``a`` covers ``b``: how many times deeper b's part must lie at least, in units of both; else NaN.

    And the pixels that say so.
    """
    both = (a.alpha > 0.5) & (b.alpha > 0.5)
    mine, theirs = both & (a.mask > 0.5) & (b.mask < 0.5), both & (b.mask > 0.5) & (a.mask < 0.5)
    ratios = torch.full((len(both),), math.nan)
    votes = mine.flatten(1).sum(1)
    for t in range(len(both)):
        if votes[t] >= FEW and votes[t] > theirs[t].sum():
            ratios[t] = (a.depth[t][mine[t]] / b.depth[t][mine[t]].clamp_min(1e-6)).quantile(0.95)
    return ratios, votes


def _on_ground(
    scenes: Sequence[Scene4D], fronts: Sequence[FrontCamera], videos: Sequence[DrivingVideo]
) -> tuple[list[float], bool] | None:
    """Scales that put the objects' lowest points on one ground, and whether these are steady; None where they tell nothing."""
    heights, steady = [], True
    for scene, front, video in zip(scenes, fronts, videos):
        eyes = Cameras.cat([each.cameras() for each in _walking(front, video)]).positions[:, 1].tolist()
        shown = (video.masks.flatten(1).amax(1) > 0.5).nonzero().flatten().tolist()
        lows, tall = [], []
        for t in shown:
            with torch.no_grad():
                moved = scene.at(float(scene.taus[t]))
            y = moved.means[moved.opacities > SOLID][:, 1].float().cpu()
            if len(y):
                low, high = y.quantile(0.002), y.quantile(0.998)
                lows.append(eyes[t] - float(low))
                tall.append(float(high - low))
        if not lows:
            return None
        below, size = torch.tensor(lows), sum(tall) / len(tall)
        lowest = below.quantile(0.9)
        # In the first frame the camera is known; later, what recedes and grows at once looks the same.
        height = float(below[0] if below[0] > lowest - STEADY * size else lowest)
        if height < BELOW * front.distance:
            return None
        steady = steady and int((below > lowest - STEADY * size).sum()) >= len(lows) / 2
        heights.append(height)
    scales = [heights[0] / height for height in heights]
    depths = [scale * front.distance for scale, front in zip(scales, fronts)]
    return scales, steady and max(depths) / min(depths) <= FARTHEST


def _believed(
    found: dict[tuple[int, int], tuple[Tensor, Tensor]],
) -> tuple[dict[tuple[int, int], Tensor], list[tuple[int, int]]]:
    """Who covers whom, by the ratios of :func:`_covers`, and the pairs whose order changes.

    Where one of a pair is in front all the time, or nearly, the other's few frames are mistakes: where masks meet, edges mix.
    """
    changing = [(a, b) for a, b in found if _clear(found[a, b]) and _clear(found[b, a])]
    kept = {}
    for (a, b), (ratios, _) in found.items():
        if _weight(found[a, b]) > ((a, b) not in changing) * _weight(found[b, a]):
            kept[a, b] = ratios
    return kept, changing


def _contradicted(scales: Sequence[float], covers: dict[tuple[int, int], Tensor]) -> str:
    """Why depths by the ground do not go with who covers whom; "" where they do."""
    for (a, b), ratios in covers.items():
        if scales[b] / scales[a] < float(ratios[~ratios.isnan()].median()) * (1 - 3 * GAP):
            return f"object {a + 1} covers object {b + 1}, which would be nearer"
    return ""


def _ordered(
    logs: list[float], covers: dict[tuple[int, int], Tensor], changing: bool, frames: int
) -> list[Tensor]:  # each (T,)
    """Log scales at every frame with which whoever covers is nearer."""
    start = torch.tensor(logs, dtype=torch.float64)
    if not changing:
        least = {pair: math.log(float(ratios[~ratios.isnan()].max()) * (1 + GAP)) for pair, ratios in covers.items()}
        return [value.expand(frames) for value in _pushed(start, least)]
    every = []
    for t in range(frames):
        least = {pair: math.log(float(r[t]) * (1 + GAP)) for pair, r in covers.items() if not bool(r[t].isnan())}
        every.append(_pushed(start, least))
    known = torch.stack([~ratios.isnan() for ratios in covers.values()]).any(0)
    return [_between(values, known) for values in torch.stack(every, 1)]


def _clear(covered: tuple[Tensor, Tensor]) -> bool:
    """Whether one covers the other for at least two frames that leave little doubt."""
    ratios, votes = covered
    return int(((~ratios.isnan()) & (votes >= 4 * FEW)).sum()) >= 2


def _weight(covered: tuple[Tensor, Tensor]) -> int:
    return int(covered[1][~covered[0].isnan()].sum())


def _pushed(logs: Tensor, least: dict[tuple[int, int], float]) -> Tensor:  # (K,) -> (K,)
    """Log scales in which b's exceeds a's by at least so much, what is behind pushed back."""
    logs = logs.clone()
    for _ in range(len(logs)):
        for (a, b), much in least.items():
            logs[b] = max(logs[b], logs[a] + much)
    return logs


def _between(values: Tensor, known: Tensor) -> Tensor:  # (T,), (T,) bool -> (T,)
    """Values where they are known, straight lines between."""
    at = known.nonzero().flatten().double()
    index = torch.arange(len(values), dtype=torch.float64)
    right = torch.searchsorted(at, index).clamp(1, max(len(at) - 1, 1)) if len(at) > 1 else None
    if right is None:
        return values[known].expand(len(values)) if len(at) else values
    left = right - 1
    share = ((index - at[left]) / (at[right] - at[left])).clamp(0, 1)
    kept = values[known]
    return kept[left] + share * (kept[right] - kept[left])


# Placing


def _put_together(scenes: Sequence[Scene4D], fronts: Sequence[Sequence[FrontCamera]], logs: Sequence[Tensor]) -> Scene4D:
    """The scenes scaled about the camera's centre and merged, with the camera that sees them; ``fronts`` at every frame."""
    first = fronts[0][0]
    turn = first.cameras().world_to_camera[0, :3, :3].double()
    # In the camera's frame, (T, 3) each.
    places = [torch.tensor([[*f.off_axis, f.distance] for f in each], dtype=torch.float64) for each in fronts]
    points = []
    for scene, place, scale in zip(scenes, places, logs):
        with torch.no_grad():
            start = scene.at(0.0)
        own = start.means[start.opacities > SOLID].double().cpu()
        points.append(float(scale[0].exp()) * (own + turn.T @ place[0]))
    every = torch.cat(points)[:: max(1, sum(map(len, points)) >> 20)]  # world axes, from the camera
    low, high = every.quantile(0.002, 0), every.quantile(0.998, 0)
    centre, unit = (low + high) / 2, 1 / float((high - low).max())
    placed = []
    for scene, place, values in zip(scenes, places, logs):
        keys = [
            Placement((unit * (math.exp(value) * (turn.T @ at) - centre)).tolist(), scale=unit * math.exp(value))
            for value, at in zip(values.tolist(), place)
        ]
        if float((values - values[0]).abs().max()) < 1e-9 and float((place - place[0]).abs().max()) < 1e-9:
            placed.append(transform(scene, keys[0]))
        else:
            placed.append(follow(scene, list(zip(scene.taus.tolist(), keys))))
    x, y, z = (turn @ centre).tolist()
    assert first.px is not None and first.py is not None
    front = replace(first, distance=unit * z, cx=first.px + first.focal * x / z, cy=first.py + first.focal * y / z)
    merged = merge(placed, frames=scenes[0].frames, fps=scenes[0].fps)
    return replace(merged, front=front)
