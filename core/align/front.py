"""Which way a mesh faces: the turn about +Y under which its front view looks most like the frame."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..scene.object3d import Object3D
from .curve import AlignmentCurve
from .solve import AZIMUTH, DISTANCE, DOWN, ELEVATION, EXTENT, RIGHT, STAGES, Target, locate, refine

#: A turn must explain the frame this much better than no turn: a mesh that faces front already is left alone.
MARGIN = 0.5

#: Distances tried for each of the best turns.
DISTANCES = (1.1, 1.5, 2.0, 2.8, 4.0)

#: Degrees within which a found turn counts as none.
NEAR = 1.0


def detect_yaw(
    mesh: Object3D,
    target: Target,
    *,
    step: float = 12.0,
    keep: int = 4,
    distance: float = 2.0,
    elevation: float = 0.0,
    progress: Callable[[float], None] | None = None,
) -> tuple[float, AlignmentCurve]:
    """The turn about +Y, in degrees (-180, 180], that makes a mesh face +Z as the target shows it.

    Every ``step`` degrees the mesh is drawn, sized and placed by its mask's moments, and compared in mask and colour. The
    ``keep`` best turns, none beside a better one, are solved with turn, size, distance and shift free; the two best of these
    go on to higher resolution. 0 wins unless another turn leaves less than :data:`MARGIN` of its error.

    Args:
        mesh: longest side about 1, centred on the origin.
        distance, elevation: of the cameras tried first; elevation (degrees) is kept.
    """
    count = round(360 / step)
    yaws = (torch.arange(count, dtype=torch.float64) - count // 2) * (360 / count)  # 0 is one of them
    poses = torch.zeros(count, 6, dtype=torch.float64)
    poses[:, DISTANCE], poses[:, ELEVATION], poses[:, AZIMUTH] = math.log(distance), math.radians(elevation), -yaws.deg2rad()
    poses, errors = locate(mesh, target, poses)
    best = [i for i in errors.argsort().tolist() if errors[i] <= errors[i - 1] and errors[i] <= errors[(i + 1) % count]][:keep]
    free = (EXTENT, DISTANCE, RIGHT, DOWN, AZIMUTH)

    held, held_error = poses[count // 2], math.inf
    # Perspective changes the outline as a turn does: each of the best starts from the distance that suits it.
    trials = poses[best].repeat_interleave(len(DISTANCES), 0)
    trials[:, DISTANCE] = torch.tensor(DISTANCES, dtype=torch.float64).log().repeat(len(best))
    trials, errors_there = locate(mesh, target, trials)
    nearest = errors_there.reshape(len(best), -1).argmin(1)
    turned, error = list(trials.reshape(len(best), -1, 6)[torch.arange(len(best)), nearest]), math.inf
    for k, (resolution, scale, _) in enumerate(STAGES[:2]):
        if progress:
            progress((k + 1) / 3)
        held, held_error = refine(mesh, target, held, free[:4], resolution=resolution, scale=scale, iterations=8)
        solved = [refine(mesh, target, pose, free, resolution=resolution, scale=scale, iterations=8) for pose in turned]
        solved = sorted(solved, key=lambda item: item[1])[:2]
        turned, error = [pose for pose, _ in solved], solved[0][1]
        if abs(_degrees(turned[0])) < NEAR:
            break
    chosen = 0.0
    if error < MARGIN * held_error and abs(_degrees(turned[0])) >= NEAR:
        pose, _ = refine(mesh, target, turned[0], free, resolution=STAGES[2][0], scale=STAGES[2][1], supersample=3)
        chosen = _degrees(pose)
    return chosen, AlignmentCurve("Front detection", "turn about +Y (degrees)", yaws, errors, chosen)


def _degrees(pose: Tensor) -> float:
    """The turn that a pose's azimuth undoes, in (-180, 180]."""
    return 180 - (math.degrees(pose[AZIMUTH]) + 180) % 360
