"""Which axis of an object points up: another one than +Y where the first frame's silhouette fits far better under it."""

from __future__ import annotations

import math

import torch

from ..cameras import FrontCamera
from ..mesh import UP_AXES, up_matrix
from ..scene.object3d import Object3D, render_object
from .solve import AZIMUTH, DISTANCE, ELEVATION, Target, locate

#: A silhouette that overlaps the frame's by this share (intersection over union) leaves no doubt.
GOOD = 0.85
#: Another axis must leave at most this part of what is not overlapped.
BETTER = 0.6


def silhouette_overlap(mesh: Object3D, front: FrontCamera, target: Target, resolution: int = 128) -> float:
    """Intersection over union of the object's silhouette under a camera and the frame's, over the video's crop."""
    alpha = render_object(mesh, front.cropped(target.crop, resolution)).alpha[0]
    image = target.image[..., 3][None, None]
    goal = torch.nn.functional.interpolate(image, (resolution, resolution), mode="bilinear", antialias=True)[0, 0]
    if target.known is not None:
        size = (resolution, resolution)
        reach = torch.nn.functional.interpolate(1 - target.known[None, None], size, mode="bilinear", antialias=True)
        known = (reach[0, 0] < 1e-6).float()
        alpha, goal = alpha * known, goal * known
    return float(torch.minimum(alpha, goal).sum() / torch.maximum(alpha, goal).sum().clamp_min(1e-9))


def better_up(
    mesh: Object3D, target: Target, overlap: float, *, step: float = 30.0, distance: float = 2.0, elevation: float = 0.0
) -> str | None:
    """The axis of the object that fits the frame far better as the one that points up, if there is one.

    Args:
        mesh: as aligned, longest side about 1, centred on the origin.
        overlap: of its silhouette under the camera that was found, see :func:`silhouette_overlap`.
        step: degrees between the turns about +Y that are tried for each axis.
        distance, elevation: of the cameras tried, in units of the object's longest side and degrees.

    Returns:
        one of "-y", "z", "-z", "x", "-x", or None.
    """
    if overlap >= GOOD:
        return None
    count = round(360 / step)
    poses = torch.zeros(count, 6, dtype=torch.float64)
    poses[:, DISTANCE], poses[:, ELEVATION] = math.log(distance), math.radians(elevation)
    poses[:, AZIMUTH] = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    view = target.at(64)
    goal = view.image[..., 3]
    found = {}
    for axis in UP_AXES:
        turned = mesh.transformed(up_matrix(axis)).normalized()[0]
        placed, _ = locate(turned, target, poses)
        alpha = view.seen(view.draw(turned, placed))[..., 3]
        shares = torch.minimum(alpha, goal).sum((1, 2)) / torch.maximum(alpha, goal).sum((1, 2)).clamp_min(1e-9)
        found[axis] = float(shares.max())
    best = max(found, key=lambda axis: found[axis])
    kept = max(found["y"], overlap)
    return best if best != "y" and 1 - found[best] < BETTER * (1 - kept) else None
