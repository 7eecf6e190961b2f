"""Several objects seen by one camera: each aligned alone, then all by the field of view that suits them together."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ..cameras import FrontCamera
from ..files import InputError
from ..scene.object3d import Object3D
from ..video import DrivingVideo
from .curve import AlignmentCurve
from .focal import FocalAlignment, Progress, align_camera
from .solve import DISTANCE, DOWN, ELEVATION, EXTENT, RIGHT, STAGES, Target, pose_front, refine
from .up import silhouette_overlap

log = logging.getLogger(__name__)

#: Fields of view tried, degrees; tan(fovy / 2) of a usual lens, and how much it counts, as :data:`.solve.DISTANCE_PRIOR` does.
FOVY, CANDIDATES = (8.0, 75.0), 9
USUAL_LENS = (math.tan(math.radians(20.0)), 0.6)
#: What is solved for each object at a known field of view.
FREE = (EXTENT, RIGHT, DOWN)


def align_together(
    meshes: Sequence[Object3D],
    videos: Sequence[DrivingVideo],
    *,
    yaws: Sequence[Literal["auto"] | float] | None = None,
    camera: FrontCamera | None = None,
    elevation: float = 0.0,
    progress: Progress | None = None,
) -> list[FocalAlignment]:
    """The camera of several objects of one clip: one field of view, one principal point, the picture's centre.

    Each object is turned and aligned alone. Then the sum of the objects' log errors, each at its best size and place, is
    searched over the field of view: noise is another for each object, so the product of their likelihoods counts.

    Args:
        meshes: one an object.
        videos: each object's, of one clip, with what others hide (:attr:`DrivingVideo.hidden`).
        yaws: of each object, see :func:`align_camera`; "auto" where None.
        camera: that another object of the clip was aligned with, in place of the search.
        elevation: of the camera, degrees.
        progress: called between stages.

    Raises:
        InputError: where an object is not seen in its first frame, or videos are not of one clip.
    """
    first = videos[0].crop
    for number, video in enumerate(videos, 1):
        if video.hidden is None:
            raise InputError(f"object {number}: its video does not say what others hide; split one clip into its objects")
        if (video.crop.width, video.crop.height) != (first.width, first.height) or len(video) != len(videos[0]):
            raise InputError(f"object {number}: its video is of another clip than object 1's; split one clip into its objects")
    count = len(meshes)
    tell = progress or (lambda fraction, picture: None)
    found = []
    for k, (mesh, video) in enumerate(zip(meshes, videos, strict=True)):
        found.append(
            align_camera(
                mesh, video, yaw="auto" if yaws is None else yaws[k], elevation=elevation,
                progress=lambda f, picture, k=k: tell(0.7 * (k + f) / count, picture),
            )
        )  # fmt: skip
    if count == 1 and camera is None:
        return found
    targets = [Target.of(video, 0, color=item.mesh.has_color) for item, video in zip(found, videos)]
    poses = [_pose(item.front) for item in found]
    curve = None
    if camera is None:
        fovy, curve = _shared_fovy([item.mesh for item in found], targets, poses, tell)
    else:
        fovy = camera.fovy
    aligned = []
    for k, (item, target, pose) in enumerate(zip(found, targets, poses)):
        tell(0.9 + 0.1 * k / count, None)
        error = item.error
        for resolution, scale, samples in STAGES:
            pose, error = refine(
                item.mesh, target, pose, FREE, resolution=resolution, scale=scale, supersample=samples, fovy=fovy
            )
        front = replace(pose_front(pose, target.crop, True), fovy=fovy)
        numbers = {name: getattr(front, name) for name in ("fovy", "distance", "extent", "cx", "cy", "elevation")}
        overlap = silhouette_overlap(item.mesh, front, target)
        report = item.report | numbers | {"mode": "shared", "error": error, "overlap": overlap}
        curves = item.curves if curve is None else [*item.curves, curve]
        aligned.append(replace(item, front=front, error=error, curves=curves, report=report))
    log.info("camera of %d objects: fovy %.2f; alone %s", count, fovy, ", ".join(f"{item.front.fovy:.2f}" for item in found))
    return aligned


def _shared_fovy(
    meshes: Sequence[Object3D], targets: Sequence[Target], poses: Sequence[Tensor], tell: Progress
) -> tuple[float, AlignmentCurve]:
    usual, strength = USUAL_LENS

    def score(lens: float) -> float:
        fovy = 2 * math.degrees(math.atan(math.exp(lens)))
        total = strength * (lens - math.log(usual)) ** 2
        for mesh, target, pose in zip(meshes, targets, poses):
            resolution, scale, _ = STAGES[1]
            _, error = refine(
                mesh, target, pose, FREE, resolution=resolution, scale=scale, iterations=5, supersample=3, fovy=fovy
            )
            total += math.log(max(error, 1e-9))
        return total

    lenses = [math.log(math.tan(math.radians(fovy) / 2)) for fovy in FOVY]
    step = (lenses[1] - lenses[0]) / (CANDIDATES - 1)
    tried: dict[float, float] = {}
    for i in range(CANDIDATES):
        tell(0.7 + 0.15 * i / CANDIDATES, None)
        tried[lenses[0] + i * step] = score(lenses[0] + i * step)
    for _ in range(3):  # the best and its neighbours, at half the step
        best = min(tried, key=lambda lens: tried[lens])
        step /= 2
        for lens in (best - step, best + step):
            if lens not in tried:
                tried[lens] = score(lens)
    best = min(tried, key=lambda lens: tried[lens])
    order = sorted(tried)
    degrees = [2 * math.degrees(math.atan(math.exp(lens))) for lens in order]
    chosen = 2 * math.degrees(math.atan(math.exp(best)))
    curve = AlignmentCurve(
        "Shared camera", "field of view (degrees)", torch.tensor(degrees), torch.tensor([tried[lens] for lens in order]), chosen
    )
    return chosen, curve


def _pose(front: FrontCamera) -> Tensor:  # (6,)
    """A camera as :mod:`.solve` has it; the object's turn is 0."""
    pose = torch.zeros(6, dtype=torch.float64)
    pose[EXTENT], pose[DISTANCE] = math.log(front.extent), math.log(front.distance)
    pose[RIGHT] = 0.0 if front.cx is None else (front.cx - front.width / 2) / front.height
    pose[DOWN] = 0.0 if front.cy is None else (front.cy - front.height / 2) / front.height
    pose[ELEVATION] = math.radians(front.elevation)
    return pose
