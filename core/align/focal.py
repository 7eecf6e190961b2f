"""Focal alignment: the driving video's camera around a mesh (PLA4D Eq. 4, and a robust search of more unknowns)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..cameras import Cameras, FrontCamera
from ..scene.object3d import Object3D, render_object
from ..video import DrivingVideo
from .curve import AlignmentCurve
from .front import detect_yaw
from .solve import DISTANCE, DISTANCES, DOWN, ELEVATION, EXTENT, RIGHT, STAGES, Target, locate, pose_front, refine
from .up import better_up, silhouette_overlap

log = logging.getLogger(__name__)

#: Called between stages with the fraction done and a picture (H, W, 3) of the frame under the mesh; it may raise to interrupt.
Progress = Callable[[float, Tensor | None], None]

#: A search for the camera of a mesh that faces front: the camera, the curves it looked at, and its error.
Search = Callable[[Object3D, Target], tuple[FrontCamera, list[AlignmentCurve], float]]


@dataclass(frozen=True)
class FocalAlignment:
    """A mesh brought to front and the camera under which it looks like the driving video's frame.

    Args:
        front: the camera.
        mesh: the mesh turned by ``yaw`` about +Y, its longest side 1, centred on the origin.
        yaw: degrees that the given mesh was turned so that its front faces +Z.
        curves: what the searches looked at.
        error: robust error of the last search, or plain MSE for the literal one.
        report: numbers for a report, JSON-serialisable.
    """

    front: FrontCamera
    mesh: Object3D
    yaw: float
    curves: list[AlignmentCurve]
    error: float
    report: dict[str, Any] = field(default_factory=dict)


def align_camera(
    mesh: Object3D,
    video: DrivingVideo,
    *,
    yaw: Literal["auto"] | float = "auto",
    mode: Literal["robust", "literal"] = "robust",
    frame: int = 0,
    elevation: float = 0.0,
    solve_elevation: bool = False,
    distance: float = 2.0,
    fovy_range: tuple[float, float] = (20.0, 80.0),
    progress: Progress | None = None,
) -> FocalAlignment:
    """Normalise a mesh, turn it to face front and find the camera of a frame of the video.

    Args:
        mesh: a mesh or Gaussians (:class:`~..scene.object3d.SplatObject`), any size, place and turn about +Y; +Y up.
        video: driving video; its crop ties the result to the original picture.
        yaw: degrees to turn the mesh about +Y so that its front faces +Z, or ``auto`` to detect them.
        mode: ``robust`` solves field of view, distance and shift; ``literal`` is PLA4D Eq. 4, field of view alone.
        frame: the frame that shows the mesh.
        elevation: of the camera, degrees, positive = from above.
        solve_elevation: let the robust search change the elevation.
        distance: of the literal search, in units of the mesh's longest side.
        fovy_range: of the literal search, degrees.
        progress: called between stages.

    Raises:
        InputError: where the frame has no foreground.
    """

    def search(mesh: Object3D, target: Target) -> tuple[FrontCamera, list[AlignmentCurve], float]:
        if mode == "robust":
            front, curve, error = robust_search(
                mesh, target, elevation=elevation, solve_elevation=solve_elevation, progress=progress
            )
        else:
            front, curve, error = literal_search(mesh, target, distance=distance, fovy_range=fovy_range, elevation=elevation)
        return front, [curve], error

    return align_by(search, mesh, video, mode=mode, yaw=yaw, frame=frame, elevation=elevation, progress=progress)


def align_by(
    search: Search,
    mesh: Object3D,
    video: DrivingVideo,
    *,
    mode: str,
    yaw: Literal["auto"] | float = "auto",
    frame: int = 0,
    elevation: float = 0.0,
    detect: Callable[..., tuple[float, AlignmentCurve]] = detect_yaw,
    progress: Progress | None = None,
) -> FocalAlignment:
    """Normalise a mesh, turn it to face front, and find the camera by any search.

    Args:
        mode: what to call the search in the report.
        detect: finds the turn where ``yaw`` is ``auto``; takes what :func:`detect_yaw` does.

    Raises:
        InputError: where the frame has no foreground.
    """
    started = time.perf_counter()
    target = Target.of(video, frame, color=mesh.has_color)
    mesh = mesh.normalized()[0]
    curves: list[AlignmentCurve] = []
    tell = progress or (lambda fraction, picture: None)
    if yaw == "auto":
        yaw, curve = detect(mesh, target, elevation=elevation, progress=lambda f: tell(0.6 * f, None))
        curves.append(curve)
    if yaw:
        mesh = mesh.turned(yaw).normalized()[0]
    tell(0.6, None)
    front, found, error = search(mesh, target)
    curves += found
    overlap = silhouette_overlap(mesh, front, target)
    axis = better_up(mesh, target, overlap, elevation=elevation)
    if axis is not None:
        log.warning(
            "%s: its %s axis up fits the first frame far better than +Y up; read it with --up %s (Load Mesh: up = %s)",
            mesh.name, axis, axis, axis,
        )  # fmt: skip
    if progress:
        progress(1.0, overlay(mesh, front, target))
    report = {
        "mode": mode,
        "yaw": yaw,
        "fovy": front.fovy,
        "distance": front.distance,
        "extent": front.extent,
        "cx": front.cx,
        "cy": front.cy,
        "elevation": front.elevation,
        "error": error,
        "overlap": overlap,
        "better_up": axis,
        "seconds": time.perf_counter() - started,
    }
    log.info("camera: fovy %.2f, distance %.3f, turn %.1f, error %.4g", front.fovy, front.distance, yaw, error)
    return FocalAlignment(front, mesh, yaw, curves, error, report)


def robust_search(
    mesh: Object3D,
    target: Target,
    *,
    elevation: float = 0.0,
    solve_elevation: bool = False,
    candidates: int = 12,
    progress: Progress | None = None,
) -> tuple[FrontCamera, AlignmentCurve, float]:
    """Field of view, distance and principal point of a frame, and the elevation on request.

    For each of ``candidates`` distances, size and shift follow from the masks in closed form; from the best, all unknowns are
    solved together at rising resolution, by colours and masks. Perspective alone tells distance, so that its curve is shallow.

    Args:
        mesh: facing +Z, longest side 1, centred on the origin.
    """
    tell = progress or (lambda fraction, picture: None)
    poses = torch.zeros(candidates, 6, dtype=torch.float64)
    poses[:, DISTANCE] = torch.linspace(math.log(DISTANCES[0]), math.log(DISTANCES[1] * 0.75), candidates)
    poses[:, ELEVATION] = math.radians(elevation)
    poses, errors = locate(mesh, target, poses)
    pose = poses[int(errors.argmin())]
    free = (EXTENT, DISTANCE, RIGHT, DOWN, ELEVATION) if solve_elevation else (EXTENT, DISTANCE, RIGHT, DOWN)
    error = float(errors.min())
    for k, (resolution, scale, samples) in enumerate(STAGES):
        tell(0.65 + 0.1 * k, overlay(mesh, pose_front(pose, target.crop, target.shared), target) if progress else None)
        pose, error = refine(mesh, target, pose, free, resolution=resolution, scale=scale, supersample=samples)
    front = pose_front(pose, target.crop, target.shared)
    return front, AlignmentCurve("Robust alignment", "distance", poses[:, DISTANCE].exp(), errors, front.distance), error


def literal_search(
    mesh: Object3D,
    target: Target,
    *,
    distance: float = 2.0,
    fovy_range: tuple[float, float] = (20.0, 80.0),
    step: float = 0.5,
    refine_step: float = 0.05,
    elevation: float = 0.0,
) -> tuple[FrontCamera, AlignmentCurve, float]:
    """PLA4D Eq. 4: the field of view whose front render on white has the least mean squared difference to the frame on white.

    Range, steps and distance are not in the paper; the candidates are spaced by ``step`` degrees, then by ``refine_step``
    around the best.

    Args:
        mesh: facing +Z, longest side 1, centred on the origin.
    """
    crop, resolution = target.crop, target.image.shape[0]
    goal = target.image[..., :3] + 1 - target.image[..., 3:]

    def errors(fovy: Tensor) -> Tensor:
        values = []
        for part in fovy.split(16):
            views = [FrontCamera(float(f), distance, crop.width, crop.height, elevation=elevation) for f in part]
            cameras = Cameras.cat([view.cropped(crop, resolution) for view in views])
            values.append((render_object(mesh, cameras, torch.ones(3)).color - goal).square().mean((1, 2, 3)))
        return torch.cat(values)

    x = torch.arange(round((fovy_range[1] - fovy_range[0]) / step) + 1, dtype=torch.float64) * step + fovy_range[0]
    y = errors(x)
    best = float(x[y.argmin()])
    count = round(step / refine_step)
    near = best + torch.arange(-count, count + 1, dtype=torch.float64) * refine_step
    fine = errors(near)
    chosen = float(near[fine.argmin()])
    every, values = torch.cat([x, near]), torch.cat([y, fine])
    order = every.argsort()
    curve = AlignmentCurve("Focal alignment (PLA4D Eq. 4)", "field of view (degrees)", every[order], values[order], chosen)
    return FrontCamera(chosen, distance, crop.width, crop.height, elevation=elevation), curve, float(fine.min())


def overlay(mesh: Object3D, front: FrontCamera, target: Target) -> Tensor:  # (S, S, 3)
    """Half the frame, half the mesh as the camera sees it, on white."""
    render = render_object(mesh, front.cropped(target.crop, target.image.shape[0]), torch.ones(3))
    return ((target.image[..., :3] + 1 - target.image[..., 3:]) + render.color[0]) / 2
