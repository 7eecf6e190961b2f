"""How sure the motion of each part is: what the video shows, what the motion prior knows, and what is a guess."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..cameras import FrontCamera
from ..priors.motion import MotionPrior
from ..render import rasterize
from ..scene.scene import Scene4D
from ..video import DrivingVideo

#: Doubt of the motion prior, as a share of the object's length, above which its answer is a guess.
GUESS = 0.05
#: Pixels of the picture that says what is seen, and how far behind its mean depth a point still counts as on the surface, in
#: lengths of the object.
_SIZE, _TOLERANCE = 128, 0.04
#: Heights and sides of the regions, in the driving view at rest.
_HEIGHTS, _SIDES = ("bottom", "middle", "top"), ("left", "right")


@dataclass(frozen=True)
class Certainty:
    """What is known of the motion of the field's handles (M) at the clip's frames (T).

    Args:
        rest: handles at rest before the driving camera, x right, y down, z away, (M, 3), world units.
        moved: at each frame, (T, M, 3).
        seen: by the driving camera, (T, M) bool.
        expected: change of depth that the motion prior expects, (T, M), world units.
        doubt: of that, the scale of a Laplace distribution, (T, M), world units.
        size: the object's longest side.
        cameras: from the world to each frame's camera, (T, 4, 4).
    """

    rest: Tensor
    moved: Tensor
    seen: Tensor
    expected: Tensor
    doubt: Tensor
    size: float
    cameras: Tensor


@torch.no_grad()
def certainty(
    scene: Scene4D, video: DrivingVideo, fronts: Sequence[FrontCamera], prior: MotionPrior, backend: str = "auto"
) -> Certainty | None:
    """Asks the motion prior about a fitted scene; None for fields without handles."""
    handles = None if scene.field is None else scene.field.handles()
    if handles is None:
        return None
    assert scene.field is not None
    device, size = scene.gaussians.device, min(_SIZE, video.resolution)
    positions = scene.field.motion_of_handles(scene.taus.to(device))[0]
    extent = float((handles.positions.amax(0) - handles.positions.amin(0)).amax())
    each = [fronts[t if len(fronts) > 1 else 0].cropped(video.crop, size).to(positions) for t in range(scene.frames)]
    poses = torch.stack([camera.world_to_camera[0] for camera in each])
    moved = positions @ poses[:, :3, :3].mT + poses[:, None, :3, 3]
    rest = handles.positions @ poses[0, :3, :3].T + poses[0, :3, 3]
    seen = []
    for t, camera in enumerate(each):
        drawn = rasterize(scene.at(float(scene.taus[t])), camera, backend=backend)
        alpha, depth = drawn.alpha.reshape(size, size), drawn.expected_depth.reshape(size, size)
        z, K = moved[t, :, 2].clamp_min(1e-6), camera.K[0]
        column, row = ((moved[t, :, i] / z * K[i, i] + K[i, 2]).floor().long() for i in (0, 1))
        inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
        at = row.clamp(0, size - 1), column.clamp(0, size - 1)
        seen.append(inside & (alpha[at] > 0.5) & (z < depth[at] + _TOLERANCE * extent))
    seen = torch.stack(seen)
    d = fronts[0].distance

    def pictured(x: Tensor) -> Tensor:  # as the prior has it
        z = x[..., 2:].clamp_min(0.05 * d)
        return torch.cat([d * x[..., :2] / z, z - d], -1) / extent

    origin, there = pictured(rest), pictured(moved)
    answer, doubt = prior(origin, there[..., :2] - origin[:, :2], seen.float(), d / extent)
    return Certainty(rest, moved, seen, answer[..., 2] * extent, doubt[..., 1] * extent, extent, poses)
