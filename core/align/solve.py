"""The camera that makes an object look like a frame: closed-form placement, then robust Gauss-Newton on rendered pictures.

A pose is six numbers: log extent, log distance, shift right and down of the object (principal point) in picture heights,
elevation and azimuth in radians. Extent, tan(fovy / 2) times distance, is the half height of the picture at the object: it
fixes the object's size in the picture, so that distance at fixed extent is perspective alone and both can be solved together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..cameras import Cameras, Crop, FrontCamera, orbit_poses
from ..files import InputError
from ..optimiser import one_thread
from ..scene.object3d import Object3D, bounding_points, render_object
from ..video import DrivingVideo

EXTENT, DISTANCE, RIGHT, DOWN, ELEVATION, AZIMUTH = range(6)

#: Nearest and farthest camera considered, for an object whose longest side is 1 (half its diagonal is at most 0.87).
DISTANCES = (0.9, 8.0)

#: Where perspective says little, because the mesh is not quite the frame's object, the distance stays near the first number: a
#: factor of e away must lower the log error by the second. With an exact mesh the error's dip is far deeper than that.
DISTANCE_PRIOR = (2.0, 0.6)

#: Coarse to fine: pixels across the object's window, the residual (premultiplied RGBA in [0, 1]) beyond which a pixel counts
#: as not explained, and samples on a pixel's side.
STAGES = ((64, 0.5, 2), (128, 0.3, 2), (256, 0.1, 3))

#: Of the Gauss-Newton steps tried side by side, relative to the diagonal.
DAMPINGS = (0.0, 1.0, 20.0)

#: Digits behind the point of a camera's degrees, pixels and distance.
DIGITS = 7

#: Room around the foreground in which a pose may go wrong visibly, in parts of its longer side.
MARGIN = 0.1


@dataclass(frozen=True)
class Target:
    """One frame to align with.

    Args:
        image: the video's crop, premultiplied RGBA, (S, S, 4).
        crop: the window of the original picture that it shows.
        color: whether colours are compared, not only masks.
        known: where it says something of the object, (S, S); None = everywhere.
        shared: the camera is several objects': the lens's principal point is the picture's centre, and the object stands off
            its axis; else the principal point is shifted to where the object is seen.
    """

    image: Tensor  # (S, S, 4)
    crop: Crop
    color: bool = True
    known: Tensor | None = None  # (S, S) float
    shared: bool = False

    @staticmethod
    def of(video: DrivingVideo, frame: int = 0, color: bool = True) -> Target:
        """A frame of the video.

        Raises:
            InputError: where the frame has no foreground.
        """
        mask = video.masks[frame].float().cpu()
        if float((mask > 0.5).float().mean()) < 1e-4:
            raise InputError(f"{video.source}: frame {frame} has no foreground to align with, check its mask")
        rgba = torch.cat([video.frames[frame].float().cpu() * mask[..., None], mask[..., None]], -1)
        known = None if video.known is None else video.known[frame].float().cpu()
        return Target(rgba, video.crop, color, known, video.hidden is not None)

    @cached_property
    def window(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the foreground with :data:`MARGIN` around, pixels of ``image``."""
        inside = self.image[..., 3] > 0.5
        columns, rows = inside.any(0).nonzero()[:, 0].tolist(), inside.any(1).nonzero()[:, 0].tolist()
        left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        margin = round(MARGIN * max(right - left, bottom - top)) + 2
        size = self.image.shape[0]
        return max(left - margin, 0), max(top - margin, 0), min(right + margin, size), min(bottom + margin, size)

    def at(self, resolution: int) -> View:
        """The foreground's window drawn so that its longer side has at most ``resolution`` pixels."""
        left, top, right, bottom = self.window
        width, height = right - left, bottom - top
        image = self.image[top:bottom, left:right]
        known = None if self.known is None else self.known[top:bottom, left:right]
        pixel = self.crop.size / self.image.shape[0]
        scale = resolution / max(width, height)
        if scale < 1:
            size = (max(round(height * scale), 8), max(round(width * scale), 8))
            image = torch.nn.functional.interpolate(image.permute(2, 0, 1)[None], size, mode="bilinear", antialias=True)
            image = image[0].permute(1, 2, 0)
            if known is not None:  # what reaches a pixel makes it unknown
                reach = torch.nn.functional.interpolate(1 - known[None, None], size, mode="bilinear", antialias=True)
                known = (reach[0, 0] < 1e-6).float()
        rows, columns = image.shape[:2]
        return View(
            image.contiguous(),
            self.crop,
            (self.crop.x + left * pixel, self.crop.y + top * pixel),
            (columns / width / pixel, rows / height / pixel),
            known,
            self.shared,
        )


@dataclass(frozen=True)
class View:
    """A window of the frame at one resolution, and the cameras that draw it.

    Args:
        image: premultiplied RGBA, (H, W, 4).
        crop: of the video; gives the original picture's size.
        corner: left and top of the window, pixels of the original picture.
        scale: pixels of the view a pixel of the original picture, right and down.
        known, shared: see :class:`Target`.
    """

    image: Tensor  # (H, W, 4)
    crop: Crop
    corner: tuple[float, float]
    scale: tuple[float, float]
    known: Tensor | None = None  # (H, W)
    shared: bool = False

    def principal(self, pose: Tensor) -> Tensor:  # (B, 6) -> (B, 2)
        """Where poses show the object's centre, pixels of the view: their principal points, unless the camera is shared."""
        middle = pose.new_tensor([self.crop.width / 2, self.crop.height / 2])
        return (middle + pose[:, [RIGHT, DOWN]] * self.crop.height - pose.new_tensor(self.corner)) * pose.new_tensor(self.scale)

    def centred(self, pose: Tensor, principal: Tensor) -> Tensor:  # (B, 6), (B, 2) -> (B, 6)
        """Poses moved so that their principal points are these."""
        middle = pose.new_tensor([self.crop.width / 2, self.crop.height / 2])
        pose = pose.clone()
        place = principal / pose.new_tensor(self.scale) + pose.new_tensor(self.corner)
        pose[:, [RIGHT, DOWN]] = (place - middle) / self.crop.height
        return pose

    def cameras(self, pose: Tensor, mesh: Object3D) -> Cameras:  # (B, 6)
        """Cameras (B) of poses, each around the centre that the mesh has once it is turned to face that camera."""
        distance = pose[:, DISTANCE].exp()
        focal = self.crop.height / 2 * distance / pose[:, EXTENT].exp()
        K = torch.zeros(len(pose), 3, 3)
        K[:, 0, 0], K[:, 1, 1] = focal * self.scale[0], focal * self.scale[1]
        K[:, :2, 2] = self.principal(pose).float()
        K[:, 2, 2] = 1
        poses = orbit_poses(pose[:, AZIMUTH].rad2deg(), pose[:, ELEVATION].rad2deg(), distance)
        if self.shared:
            poses[:, :2, 3] += (distance * self.crop.height / focal)[:, None].float() * pose[:, [RIGHT, DOWN]].float()
            K[:, :2, 2] = self.principal(torch.zeros_like(pose)).float()
        if bool((pose[:, AZIMUTH] != 0).any()):
            poses[:, :3, 3] -= (poses[:, :3, :3] @ turned_centre(mesh, pose[:, AZIMUTH])[..., None])[..., 0]
        return Cameras(poses, K, self.image.shape[1], self.image.shape[0])

    def draw(self, mesh: Object3D, pose: Tensor, supersample: int = 2) -> Tensor:  # (B, 6) -> (B, H, W, 4)
        """The mesh from poses, premultiplied RGBA."""
        render = render_object(mesh, self.cameras(pose, mesh), supersample=supersample)
        return torch.cat([render.color, render.alpha[..., None]], -1)

    def residuals(self, images: Tensor, color: bool) -> Tensor:  # (B, H, W, 4) -> (B, H, W, 4 or 1)
        """Differences in premultiplied colour and alpha; each channel of an image is first scaled by the gain (0.5 to 2) that
        explains the frame best where that shows the object, which absorbs exposure and white balance."""
        goal = self.image
        if self.known is not None:
            images, goal = self.seen(images), self.seen(goal)
        if not color:
            return images[..., 3:] - goal[..., 3:]
        ridge = 0.02 * goal[..., 3].sum()
        with one_thread():
            cross = torch.einsum("bhwc,hwc->bc", images, goal)
            square = torch.einsum("bhwc,bhwc,hw->bc", images, images, goal[..., 3])
        gain = ((cross + ridge) / (square + ridge)).clamp(0.5, 2)
        gain[:, 3] = 1
        return torch.addcmul(-goal, images, gain[:, None, None])

    def seen(self, images: Tensor) -> Tensor:  # (..., H, W, C)
        """What is known of pictures; nothing, 0, elsewhere."""
        return images if self.known is None else images * self.known[..., None]

    def error(self, residual: Tensor, scale: float) -> Tensor:  # (B, H, W, K) -> (B,)
        """Cauchy loss of the pixels' residuals, a unit of the object's area; about the mean square residual where small."""
        square = residual.square().sum(-1)
        return (square / scale**2).log1p_().sum((1, 2)) * scale**2 / self.image[..., 3].sum()


def pose_front(pose: Tensor, crop: Crop, shared: bool = False) -> FrontCamera:  # (6,)
    """A pose as the driving video's camera; its azimuth is left to the mesh. For ``shared`` see :class:`Target`.

    To :data:`DIGITS` behind the point: the last bits that a linear solver gives depend on more than on what it is given.
    """
    extent, distance = math.exp(pose[EXTENT]), math.exp(pose[DISTANCE])
    return FrontCamera(
        fovy=round(2 * math.degrees(math.atan(extent / distance)), DIGITS),
        distance=round(distance, DIGITS),
        width=crop.width,
        height=crop.height,
        cx=round(crop.width / 2 + float(pose[RIGHT]) * crop.height, DIGITS),
        cy=round(crop.height / 2 + float(pose[DOWN]) * crop.height, DIGITS),
        elevation=round(math.degrees(pose[ELEVATION]), DIGITS),
        px=crop.width / 2 if shared else None,
        py=crop.height / 2 if shared else None,
    )


def locate(mesh: Object3D, target: Target, pose: Tensor, *, resolution: int = 64, rounds: int = 3) -> tuple[Tensor, Tensor]:
    """Extent and shift in closed form, by the masks' centroid and spread, for each pose's distance, elevation and azimuth.

    Args:
        pose: candidates, (B, 6); their extent and shift are ignored.

    Returns:
        The poses, (B, 6), and their scores, (B,): robust error, times the prior's factor.
    """
    goal = target.at(resolution)
    # First guess from bounding boxes, orthographic.
    turn = orbit_poses(pose[:, AZIMUTH].rad2deg(), pose[:, ELEVATION].rad2deg(), 1.0)[:, :2, :3]
    seen = turn @ bounding_points(mesh).T - turn @ turned_centre(mesh, pose[:, AZIMUTH])[..., None]
    low, high = seen.amin(-1), seen.amax(-1)  # (B, 2)
    inside = goal.image[..., 3] > 0.5
    columns, rows = inside.any(0).nonzero()[:, 0], inside.any(1).nonzero()[:, 0]
    size = torch.stack([columns[-1] - columns[0], rows[-1] - rows[0]]) + 1.0
    middle = torch.stack([columns[-1] + columns[0], rows[-1] + rows[0]]) / 2 + 0.5
    per_unit = ((high - low) * size).sum(-1) / ((high - low) ** 2).sum(-1)  # pixels a world unit
    pose = goal.centred(pose, (middle - per_unit[:, None] * (low + high) / 2).to(pose))
    pose[:, EXTENT] = torch.log(goal.crop.height * goal.scale[1] / 2 / per_unit)

    wanted, wanted_spread = _moments(goal.seen(goal.image[None])[..., 3])
    images = goal.draw(mesh, pose)
    for _ in range(rounds):
        mean, spread = _moments(goal.seen(images)[..., 3])
        shrink = (spread / wanted_spread).clamp(0.5, 2).to(pose)
        pose = goal.centred(pose, wanted - (mean - goal.principal(pose)) / shrink[:, None])
        pose[:, EXTENT] += shrink.log()
        images = goal.draw(mesh, pose)
    return pose, goal.error(goal.residuals(images, target.color), STAGES[0][1]) * prior(pose)


def turned_centre(mesh: Object3D, azimuth: Tensor) -> Tensor:  # (B,) radians -> (B, 3)
    """The point that becomes the bounding box's centre, seen from above, once the mesh is turned to face each azimuth's camera.

    A pose's distance and shift count from there, so that turning and centring the mesh afterwards changes neither.
    """
    s, c = azimuth.float().sin(), azimuth.float().cos()
    axes = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], 1)  # the camera's right and back, in x and z
    along = axes @ bounding_points(mesh)[:, [0, 2]].T
    x, z = ((along.amin(-1) + along.amax(-1)) / 2)[:, None].matmul(axes)[:, 0].unbind(-1)
    return torch.stack([x, torch.zeros_like(x), z], -1)


def prior(pose: Tensor) -> Tensor:  # (B, 6) -> (B,)
    """Factor on the error: with an unknown noise level, a prior on a parameter multiplies the sum of squares."""
    centre, strength = DISTANCE_PRIOR
    return (strength * (pose[:, DISTANCE] - math.log(centre)).square()).exp()


def refine(
    mesh: Object3D,
    target: Target,
    pose: Tensor,  # (6,)
    free: tuple[int, ...],
    *,
    resolution: int,
    scale: float,
    iterations: int = 12,
    supersample: int = 2,
    fovy: float | None = None,
) -> tuple[Tensor, float]:
    """Levenberg-Marquardt over the ``free`` entries of a pose, derivatives by central differences of about half a pixel.

    An iteration draws two batches: the derivatives', then steps at several dampings, of which the best is taken.

    Args:
        fovy: degrees, where it is known: the distance, not among the free, then follows from the extent.

    Returns:
        The pose, (6,) float64, and its score: robust error at ``scale``, times the prior's factor.
    """
    goal, index = target.at(resolution), list(free)
    # Steps of half a pixel at the object's rim; perspective moves the rim about a fifth as much as size does.
    across = max(goal.image.shape[:2])
    shift = 0.5 / goal.scale[1] / goal.crop.height
    step = torch.tensor([1.2 / across, 6 / across, shift, shift, 2.5 / across, 2.5 / across], dtype=torch.float64)
    n = len(index)

    def errors(poses: Tensor) -> tuple[Tensor, Tensor]:
        residual = goal.residuals(goal.draw(mesh, poses, supersample), target.color)
        return residual, goal.error(residual, scale) * (prior(poses) if fovy is None else 1.0)

    def tied(poses: Tensor) -> Tensor:
        if fovy is not None:
            poses[:, DISTANCE] = poses[:, EXTENT] - math.log(math.tan(math.radians(fovy) / 2))
        return poses

    pose, shrinks = tied(pose.double()[None].clone())[0], 0
    error = math.inf
    for _ in range(iterations):
        probes = torch.diag(step)[index]
        probes = tied(torch.cat([pose[None], pose + probes, pose - probes]))
        residual, values = errors(probes)
        error = float(values[0])
        weight = 1 / (1 + residual[0].square().sum(-1, keepdim=True) / scale**2)
        jacobian = ((residual[1 : n + 1] - residual[n + 1 :]) / 2).flatten(1)  # a step of each parameter
        weighted = jacobian * weight.expand_as(residual[0]).flatten()
        with one_thread():
            hessian, gradient = (weighted @ jacobian.T).double(), (weighted @ residual[0].flatten()).double()
        if DISTANCE in index:
            # The prior's factor as one more residual, at the present error.
            k, (centre, strength) = index.index(DISTANCE), DISTANCE_PRIOR
            pull = strength * float(goal.error(residual[:1], scale)) * float(goal.image[..., 3].sum()) * float(step[DISTANCE])
            hessian[k, k] += pull * float(step[DISTANCE])
            gradient[k] += pull * float(pose[DISTANCE] - math.log(centre))
        damped = torch.stack([torch.diag(hessian.diagonal() * k + 1e-9) for k in DAMPINGS])
        moves = -torch.linalg.solve(hessian + damped, gradient.expand(len(DAMPINGS), n))
        moves = moves * (12 / moves.abs().amax(-1, keepdim=True)).clamp(max=1)
        candidates = pose.repeat(len(DAMPINGS), 1)
        candidates[:, index] += moves * step[index]
        candidates[:, DISTANCE] = candidates[:, DISTANCE].clamp(math.log(DISTANCES[0]), math.log(DISTANCES[1]))
        candidates[:, ELEVATION] = candidates[:, ELEVATION].clamp(-1.4, 1.4)
        candidates = tied(candidates)
        # The pictures of the derivatives are candidates as well: where parts are as thin as a pixel, no step may be better.
        candidates, values = torch.cat([candidates, probes]), torch.cat([errors(candidates)[1], values])
        best = int(values.argmin())
        moved = float(((candidates[best] - pose) / step).abs().max())
        gained = error - float(values[best])
        pose, error = candidates[best], float(values[best])
        if gained <= 0:
            if shrinks == 2:
                break
            step, shrinks = step / 2, shrinks + 1
        elif moved < 0.03 or gained < 1e-4 * error:
            break
    return pose, error


def _moments(alpha: Tensor) -> tuple[Tensor, Tensor]:  # (B, H, W) -> (B, 2), (B,)
    """Centroid (x, y) in pixels and root mean square radius of masks, float64."""
    u, v = (torch.arange(n, dtype=torch.float64) + 0.5 for n in (alpha.shape[2], alpha.shape[1]))
    columns, rows = alpha.sum(1).double(), alpha.sum(2).double()
    total = rows.sum(-1).clamp_min(1e-3)
    with one_thread():
        x, y = (columns @ u) / total, (rows @ v) / total
        xx, yy = (columns @ u**2) / total, (rows @ v**2) / total
    return torch.stack([x, y], -1), (xx - x**2 + yy - y**2).clamp_min(1e-6).sqrt()
