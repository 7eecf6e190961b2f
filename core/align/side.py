"""The camera of a film from another side, by the aligned object: where the object looks like its first frame."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch

from ..cameras import Cameras, FrontCamera
from ..files import InputError
from ..scene.object3d import Object3D, render_object
from ..signals import PlacedView, SideView
from ..video import DrivingVideo
from .solve import AZIMUTH, DISTANCE, DOWN, ELEVATION, EXTENT, RIGHT, STAGES, Target, locate, refine

log = logging.getLogger(__name__)

#: Degrees around the given direction that a search looks at, and its steps.
AROUND, STEP, TILTS = 40.0, 10.0, (-15.0, 0.0, 15.0)
#: Directions that are refined.
BEST = 3
#: Intersection over union of outlines below which a film does not show this object from there.
LEAST = 0.4
#: By how much less the outlines may agree where the driving video's own camera, turned, is taken.
TURNED = 0.03


@dataclass(frozen=True)
class Placed:
    """A film's camera as it was found, and what a report says of it."""

    view: PlacedView
    report: dict[str, Any]


def place_view(view: SideView, driving: DrivingVideo, front: FrontCamera, item: Object3D | None) -> Placed:
    """The camera of a film from another side, whose first frame shows the object as the driving video's first does.

    The lens stands as far from the object as the driving video's; size and place in the picture follow from the object's
    outline and colours, and so does the direction where it is searched. Without an object, the film's outline is as high as the
    driving video's.

    Args:
        item: the aligned object, facing front; None where there is none.

    Raises:
        InputError: where the film's object has another outline from there, or is shorter than the driving video.
    """
    view = view.timed(driving)
    elevation = front.elevation if view.elevation is None else view.elevation
    name = view.video.source or "side view"
    if item is None:
        if view.search:
            raise InputError(f"{name}: its camera is searched for by an object, and there is none; give its azimuth exactly")
        cameras, overlap = _by_height(view, driving, front, elevation), None
        return Placed(PlacedView(view, cameras), {"azimuth": view.azimuth, "elevation": elevation, "overlap": overlap})
    target = Target.of(view.video, 0, color=item.has_color)
    azimuths, tilts = [0.0], [0.0]
    if view.search:
        azimuths, tilts = torch.arange(-AROUND, AROUND + 1, STEP).tolist(), list(TILTS)
    poses = torch.zeros(len(azimuths) * len(tilts), 6, dtype=torch.float64)
    poses[:, DISTANCE] = math.log(front.distance)
    turns = torch.tensor([(a, e) for a in azimuths for e in tilts], dtype=torch.float64)
    poses[:, AZIMUTH] = torch.deg2rad(view.azimuth + turns[:, 0])
    poses[:, ELEVATION] = torch.deg2rad((elevation + turns[:, 1]).clamp(-80, 80))
    poses, errors = locate(item, target, poses)
    free = (EXTENT, RIGHT, DOWN, *((AZIMUTH, ELEVATION) if view.search else ()))
    found = []
    for pose in poses[errors.argsort()[:BEST]]:
        found.append(refine(item, target, pose, free, resolution=STAGES[0][0], scale=STAGES[0][1]))
    pose, _ = min(found, key=lambda each: each[1])
    pose, error = refine(item, target, pose, free, resolution=STAGES[1][0], scale=STAGES[1][1])
    cameras = _through(target, pose, view.video, item)
    overlap = _overlap(item, cameras, view.video)
    crop = view.video.crop
    if not view.search and (crop.width, crop.height) == (front.width, front.height):
        # Pictures of one size are most probably of one camera that was turned, or of alike ones.
        turned = front.cropped(crop, view.video.resolution, view.azimuth, elevation)
        if (there := _overlap(item, turned, view.video)) > overlap - TURNED:
            cameras, overlap = turned, there
    azimuth, tilt = math.degrees(pose[AZIMUTH]), math.degrees(pose[ELEVATION])
    if overlap < LEAST:
        raise InputError(
            f"{name}: from azimuth {azimuth:.3g} the object's outline covers {100 * overlap:.0f} % of the film's; check the "
            "azimuth, search near it, or give a film of the same object"
        )
    log.info("%s: azimuth %.1f, elevation %.1f, outlines agree by %.2f", name, azimuth, tilt, overlap)
    report = {"azimuth": azimuth, "elevation": tilt, "overlap": overlap, "error": error}
    return Placed(PlacedView(view, cameras), report)


def _overlap(item: Object3D, cameras: Cameras, video: DrivingVideo) -> float:
    """Intersection over union of the object's outline and the first frame's."""
    seen, mask = render_object(item, cameras).alpha[0] > 0.5, video.masks[0].cpu() > 0.5
    return float((seen & mask).sum() / (seen | mask).sum().clamp_min(1))


def _through(target: Target, pose: torch.Tensor, video: DrivingVideo, item: Object3D) -> Cameras:
    """The camera of a pose, seen through the film's crop at its resolution, (1,)."""
    window, crop = target.at(STAGES[1][0]), video.crop
    cameras = window.cameras(pose[None], item)
    K, scale = cameras.K.double(), video.resolution / crop.size
    for axis in (0, 1):
        K[:, axis, axis] = K[:, axis, axis] / window.scale[axis] * scale
        K[:, axis, 2] = (K[:, axis, 2] / window.scale[axis] + window.corner[axis] - (crop.x, crop.y)[axis]) * scale
    return Cameras(cameras.world_to_camera.float(), K.float(), video.resolution, video.resolution)


def _by_height(view: SideView, driving: DrivingVideo, front: FrontCamera, elevation: float) -> Cameras:
    """The driving video's lens turned to the film's side, so that the outlines of both are equally high in the first frame."""
    cameras = front.cropped(driving.crop, driving.resolution, view.azimuth, elevation)
    (low, high), (top, bottom) = _rows(driving), _rows(view.video)
    focal = cameras.K[0, 1, 1] * (bottom - top) / (high - low)
    columns = (view.video.masks[0] > 0.5).any(0).nonzero()[:, 0].cpu()
    K = torch.eye(3)[None].repeat(1, 1, 1)
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, 0, 2] = (float(columns[0]) + float(columns[-1]) + 1) / 2
    # The origin lies as far from the outline's upper edge as in the driving video.
    K[:, 1, 2] = top + (float(cameras.K[0, 1, 2]) - low) * (bottom - top) / (high - low)
    size = view.video.resolution
    return Cameras(cameras.world_to_camera, K, size, size)


def _rows(video: DrivingVideo) -> tuple[float, float]:
    """First row and the one behind the last that the object takes in the first frame."""
    rows = (video.masks[0] > 0.5).any(1).nonzero()[:, 0].cpu()
    return float(rows[0]), float(rows[-1]) + 1
