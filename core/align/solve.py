"""The camera that makes a mesh look like a frame: closed-form placement, then robust Gauss-Newton on rendered pictures.

A pose is six numbers: log extent, log distance, shift right and down of the object (principal point) in picture heights, elevation
and azimuth in radians. Extent, tan(fovy / 2) times distance, is the half height of the picture at the object: it fixes the object's
size in the picture, so that distance at fixed extent is perspective alone and the two can be solved side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import Cameras, Crop, FrontCamera, orbit_poses
from ..files import InputError
from ..mesh import Mesh
from ..render.mesh import render_mesh
from ..video import DrivingVideo

EXTENT, DISTANCE, RIGHT, DOWN, ELEVATION, AZIMUTH = range(6)

#: Nearest and farthest camera considered, for an object whose longest side is 1 (half its diagonal is at most 0.87).
DISTANCES = (0.9, 8.0)

#: Residual (premultiplied RGBA in [0, 1]) beyond which a pixel counts as not explained, per stage, coarse to fine.
STAGES = ((64, 0.4), (128, 0.2), (256, 0.1))


@dataclass(frozen=True)
class Target:
    """One frame to align with.

    Args:
        image: the crop, premultiplied RGBA, (S, S, 4).
        crop: the window of the original picture that it shows.
        color: whether colours are compared, not only masks.
    """

    image: Tensor  # (S, S, 4)
    crop: Crop
    color: bool = True

    @staticmethod
    def of(video: DrivingVideo, frame: int = 0, color: bool = True) -> Target:
        """A frame of the video.

        Raises:
            InputError: where the frame has no foreground.
        """
        mask = video.masks[frame].float()
        if float(mask.mean()) < 1e-4:
            raise InputError(f"{video.source}: frame {frame} has no foreground to align with, check the mask or remove the background")
        return Target(torch.cat([video.frames[frame].float() * mask[..., None], mask[..., None]], -1), video.crop, color)

    def at(self, resolution: int) -> Tensor:  # (R, R, 4)
        """The picture at another size, blurred as :func:`draw` blurs."""
        image = self.image.permute(2, 0, 1)[None]
        if image.shape[-1] != resolution:
            image = torch.nn.functional.interpolate(
                image, (resolution, resolution), mode="bilinear", antialias=resolution < image.shape[-1]
            )
        return _blur(image)[0].permute(1, 2, 0)


def pose_cameras(pose: Tensor, crop: Crop, resolution: int) -> Cameras:
    """Cameras (B) of poses (B, 6), seen through ``crop`` drawn at ``resolution``."""
    distance, scale = pose[:, DISTANCE].exp(), resolution / crop.size
    K = torch.zeros(len(pose), 3, 3)
    K[:, 0, 0] = K[:, 1, 1] = scale * crop.height / 2 * distance / pose[:, EXTENT].exp()
    K[:, 0, 2] = scale * (crop.width / 2 + pose[:, RIGHT] * crop.height - crop.x)
    K[:, 1, 2] = scale * (crop.height / 2 + pose[:, DOWN] * crop.height - crop.y)
    K[:, 2, 2] = 1
    return Cameras(orbit_poses(pose[:, AZIMUTH].rad2deg(), pose[:, ELEVATION].rad2deg(), distance), K, resolution, resolution)


def pose_front(pose: Tensor, crop: Crop) -> FrontCamera:  # (6,)
    """A pose as the driving video's camera; its azimuth is left to the mesh."""
    extent, distance = math.exp(pose[EXTENT]), math.exp(pose[DISTANCE])
    return FrontCamera(
        fovy=2 * math.degrees(math.atan(extent / distance)),
        distance=distance,
        width=crop.width,
        height=crop.height,
        cx=crop.width / 2 + float(pose[RIGHT]) * crop.height,
        cy=crop.height / 2 + float(pose[DOWN]) * crop.height,
        elevation=math.degrees(pose[ELEVATION]),
    )


def front_pose(front: FrontCamera) -> Tensor:  # (6,)
    """The pose of a driving video's camera, azimuth 0."""
    right = 0.0 if front.cx is None else front.cx / front.height - front.width / front.height / 2
    down = 0.0 if front.cy is None else front.cy / front.height - 0.5
    return torch.tensor(
        [math.log(front.extent), math.log(front.distance), right, down, math.radians(front.elevation), 0.0], dtype=torch.float64
    )


def draw(mesh: Mesh, pose: Tensor, crop: Crop, resolution: int, supersample: int = 2) -> Tensor:  # (B, R, R, 4)
    """The mesh from poses (B, 6), premultiplied RGBA, slightly blurred so that differing resampling filters compare."""
    render = render_mesh(mesh, pose_cameras(pose, crop, resolution), supersample=supersample)
    return _blur(torch.cat([render.color, render.alpha[..., None]], -1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def residuals(images: Tensor, target: Tensor, color: bool) -> Tensor:  # (B, R, R, 4), (R, R, 4) -> (B, R, R, 4 or 1)
    """Differences in premultiplied colour and alpha; each channel of an image is first scaled by the gain (0.5 to 2) that explains
    the target best where both show the object, which absorbs exposure and white balance."""
    alpha = images[..., 3:] - target[..., 3:]
    if not color:
        return alpha
    overlap = images[..., 3:] * target[..., 3:]
    ridge = 0.02 * overlap.sum((1, 2)) + 1e-6
    cross, square = (overlap * images[..., :3] * target[..., :3]).sum((1, 2)), (overlap * images[..., :3] ** 2).sum((1, 2))
    gain = ((cross + ridge) / (square + ridge)).clamp(0.5, 2)
    return torch.cat([images[..., :3] * gain[:, None, None] - target[..., :3], alpha], -1)


def robust_error(residual: Tensor, target: Tensor, scale: float) -> Tensor:  # (B, R, R, K), (R, R, 4) -> (B,)
    """Cauchy loss of the pixels' residuals, a unit of the object's area; about the mean square residual for small ones."""
    loss = scale**2 * torch.log1p(residual.square().sum(-1) / scale**2)
    return loss.sum((1, 2)) / target[..., 3].sum()


def locate(mesh: Mesh, target: Target, pose: Tensor, *, resolution: int = 64, rounds: int = 3) -> tuple[Tensor, Tensor]:
    """Extent and shift in closed form, by the masks' centroid and spread, for each pose's distance, elevation and azimuth.

    Args:
        pose: candidates, (B, 6); their extent and shift are ignored.

    Returns:
        The poses, (B, 6), and their robust errors, (B,).
    """
    pose, crop, goal = pose.clone(), target.crop, target.at(resolution)
    scale = resolution / crop.size
    # First guess from bounding boxes, orthographic.
    view = orbit_poses(pose[:, AZIMUTH].rad2deg(), pose[:, ELEVATION].rad2deg(), 1.0)[:, :2, :3] @ mesh.vertices.float().T
    low, high = view.amin(-1), view.amax(-1)  # (B, 2)
    inside = goal[..., 3] > 0.5 * goal[..., 3].max()
    columns, rows = inside.any(0).nonzero()[:, 0], inside.any(1).nonzero()[:, 0]
    size = torch.stack([columns[-1] - columns[0], rows[-1] - rows[0]]) + 1.0
    middle = torch.stack([columns[-1] + columns[0], rows[-1] + rows[0]]) / 2 + 0.5
    per_unit = ((high - low) * size).sum(-1) / ((high - low) ** 2).sum(-1)  # pixels of the crop a world unit
    centre = middle - per_unit[:, None] * (low + high) / 2
    pose[:, EXTENT] = torch.log(crop.height * scale / 2 / per_unit)
    _set_centre(pose, centre, crop, scale)

    wanted, wanted_spread = _moments(goal[None, ..., 3])
    images = draw(mesh, pose, crop, resolution)
    for _ in range(rounds):
        mean, spread = _moments(images[..., 3])
        shrink = (spread / wanted_spread).clamp(0.5, 2)
        principal = scale * torch.stack(
            [
                crop.width / 2 + pose[:, RIGHT] * crop.height - crop.x,
                crop.height / 2 + pose[:, DOWN] * crop.height - crop.y,
            ],
            -1,
        )
        pose[:, EXTENT] += shrink.log()
        _set_centre(pose, wanted - (mean - principal) / shrink[:, None], crop, scale)
        images = draw(mesh, pose, crop, resolution)
    return pose, robust_error(residuals(images, goal, target.color), goal, STAGES[0][1])


def refine(
    mesh: Mesh,
    target: Target,
    pose: Tensor,  # (6,)
    free: tuple[int, ...],
    *,
    resolution: int,
    scale: float,
    iterations: int = 12,
    supersample: int = 2,
) -> tuple[Tensor, float]:
    """Levenberg-Marquardt over the ``free`` entries of a pose, derivatives by central differences of about half a pixel.

    All pictures of an iteration are one batch: the derivatives', then those of steps at four dampings, of which the best is taken.

    Returns:
        The pose, (6,) float64, and its robust error at ``scale``.
    """
    goal, crop, index = target.at(resolution), target.crop, list(free)
    pixel = 1 / resolution
    # Half a pixel at the object's rim; perspective moves the rim about a fifth as much as size does.
    step = torch.tensor(
        [1.5 * pixel, 8 * pixel, 0.5 * pixel * crop.size / crop.height, 0.5 * pixel * crop.size / crop.height, 3 * pixel, 3 * pixel],
        dtype=torch.float64,
    )
    offsets = torch.diag(step)[index]

    def errors(poses: Tensor) -> tuple[Tensor, Tensor]:
        residual = residuals(draw(mesh, poses, crop, resolution, supersample), goal, target.color)
        return residual, robust_error(residual, goal, scale)

    pose = pose.double()
    error = math.inf
    for _ in range(iterations):
        residual, values = errors(torch.cat([pose[None], pose + offsets, pose - offsets]))
        error = float(values[0])
        weight = 1 / (1 + residual[0].square().sum(-1, keepdim=True) / scale**2)
        n = len(index)
        jacobian = ((residual[1 : n + 1] - residual[n + 1 :]) / 2).flatten(1)  # a step of each parameter
        weighted = (weight * residual[0].new_ones(residual.shape[-1])).flatten()
        hessian = ((jacobian * weighted) @ jacobian.T).double()
        gradient = ((jacobian * weighted) @ residual[0].flatten()).double()
        damped = torch.stack([torch.diag(hessian.diagonal() * k + 1e-9) for k in (0.0, 0.1, 2.0, 30.0)])
        moves = -torch.linalg.solve(hessian + damped, gradient.expand(4, n))
        moves = moves * (12 / moves.abs().amax(-1, keepdim=True)).clamp(max=1)
        candidates = pose.repeat(4, 1)
        candidates[:, index] += moves * step[index]
        candidates[:, DISTANCE] = candidates[:, DISTANCE].clamp(math.log(DISTANCES[0]), math.log(DISTANCES[1]))
        candidates[:, ELEVATION] = candidates[:, ELEVATION].clamp(-1.4, 1.4)
        _, values = errors(candidates)
        best = int(values.argmin())
        if float(values[best]) >= error:
            break
        moved = float(moves[best].abs().max())
        pose, gained, error = candidates[best], error - float(values[best]), float(values[best])
        if moved < 0.01 or gained < 1e-5 * error:
            break
    return pose, error


def _set_centre(pose: Tensor, centre: Tensor, crop: Crop, scale: float) -> None:
    """Put the principal point at ``centre`` (B, 2), pixels of the crop at ``scale``."""
    pose[:, RIGHT] = (centre[:, 0] / scale + crop.x - crop.width / 2) / crop.height
    pose[:, DOWN] = (centre[:, 1] / scale + crop.y - crop.height / 2) / crop.height


def _moments(alpha: Tensor) -> tuple[Tensor, Tensor]:  # (B, R, R) -> (B, 2), (B,)
    """Centroid (x, y) in pixels and root mean square radius of masks."""
    at = torch.arange(alpha.shape[-1], dtype=alpha.dtype) + 0.5
    total = alpha.sum((1, 2)).clamp_min(1e-3)
    x, y = (alpha.sum(1) * at).sum(-1) / total, (alpha.sum(2) * at).sum(-1) / total
    xx, yy = (alpha.sum(1) * at**2).sum(-1) / total, (alpha.sum(2) * at**2).sum(-1) / total
    return torch.stack([x, y], -1), (xx - x**2 + yy - y**2).clamp_min(1e-6).sqrt()


def _blur(images: Tensor) -> Tensor:  # (B, K, R, R)
    """Gaussian of 0.8 pixels, five taps."""
    taps = torch.exp(-0.5 * (torch.arange(-2, 3, dtype=images.dtype) / 0.8) ** 2)
    taps = (taps / taps.sum()).tolist()
    for axis in (-1, -2):
        size = images.shape[axis]
        padded = torch.nn.functional.pad(images, (2, 2, 0, 0) if axis == -1 else (0, 0, 2, 2))
        images = sum((padded.narrow(axis, k, size) * w for k, w in enumerate(taps)), torch.zeros_like(images))
    return images
