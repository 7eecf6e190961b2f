"""Which way a mesh faces: the turn about +Y under which its front view looks most like the frame."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..mesh import Mesh
from .curve import AlignmentCurve
from .solve import AZIMUTH, DISTANCE, DOWN, ELEVATION, EXTENT, RIGHT, STAGES, Target, locate, refine

#: A turn must explain the frame this much better than no turn: a mesh that faces front already is left alone.
MARGIN = 0.85


def detect_yaw(
    mesh: Mesh,
    target: Target,
    *,
    step: float = 12.0,
    keep: int = 5,
    distance: float = 2.0,
    elevation: float = 0.0,
    progress: Callable[[float], None] | None = None,
) -> tuple[float, AlignmentCurve]:
    """The turn about +Y, in degrees (-180, 180], that makes a mesh face +Z as the target shows it.

    Every ``step`` degrees the mesh is drawn, sized and placed by its mask's moments, and compared in mask and colour. The ``keep``
    best turns, none beside a better one, and 0 are solved with turn, size, distance and shift free; the best of these is
    refined at full resolution. 0 wins unless another turn leaves less than :data:`MARGIN` of its error.

    Args:
        mesh: longest side about 1, centred on the origin.
        distance, elevation: of the cameras tried first; elevation (degrees) is kept.
    """
    count = round(360 / step)
    yaws = torch.arange(count) * (360 / count) - 180 * (count // 2 * 2 / count)
    poses = torch.zeros(count, 6, dtype=torch.float64)
    poses[:, DISTANCE], poses[:, ELEVATION] = math.log(distance), math.radians(elevation)
    poses[:, AZIMUTH] = -yaws.double().deg2rad()
    poses, errors = locate(mesh, target, poses)
    if progress:
        progress(0.3)

    best = [i for i in errors.argsort().tolist() if errors[i] <= errors[i - 1] and errors[i] <= errors[(i + 1) % count]][:keep]
    zero = int(yaws.abs().argmin())
    free = (EXTENT, DISTANCE, RIGHT, DOWN, AZIMUTH)
    (resolution, scale), (fine, fine_scale) = STAGES[1], STAGES[2]
    held, held_error = refine(mesh, target, poses[zero], free[:4], resolution=resolution, scale=scale, iterations=8)
    solved: list[tuple[float, Tensor]] = []
    for k, i in enumerate(best):
        pose, _ = refine(mesh, target, poses[i], free, resolution=STAGES[0][0], scale=STAGES[0][1], iterations=8)
        pose, error = refine(mesh, target, pose, free, resolution=resolution, scale=scale, iterations=5)
        solved.append((error, pose))
        if progress:
            progress(0.3 + 0.5 * (k + 1) / len(best))
    error, pose = min(solved, key=lambda item: item[0])
    if error < MARGIN * held_error:
        pose, _ = refine(mesh, target, pose, free, resolution=fine, scale=fine_scale, iterations=5)
        chosen = -math.degrees(pose[AZIMUTH])
        chosen = (chosen + 180) % 360 - 180
    else:
        chosen = 0.0
    return chosen, AlignmentCurve("Front detection", "turn about +Y (degrees)", yaws, errors, chosen)
