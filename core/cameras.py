"""Camera batches, orbits, samplers and conversions.

World: right-handed, +Y up, front = +Z. A camera at azimuth ``a`` and elevation ``e`` stands at
``d (cos e sin a, sin e, cos e cos a)``: azimuth 0 is the driving video's view, +90 is +X, positive elevation is above.
Cameras are OpenCV world-to-camera (x right, y down, z forward) with pixel intrinsics; the centre of pixel (row i, column j)
lies at (j + 0.5, i + 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .transfer import sent

#: OpenGL (x right, y up, z back) to OpenCV (x right, y down, z forward), and back.
GL_TO_CV = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))


@dataclass(frozen=True)
class Cameras:
    """A batch of pinhole cameras that share one picture size.

    Args:
        world_to_camera: OpenCV world-to-camera, ``(..., 4, 4)``.
        K: intrinsics in pixels, ``(..., 3, 3)``.
        width: picture width in pixels.
        height: picture height in pixels.
    """

    world_to_camera: Tensor  # (..., 4, 4)
    K: Tensor  # (..., 3, 3)
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.world_to_camera.shape[-2:] != (4, 4) or self.K.shape[-2:] != (3, 3):
            raise ValueError(
                f"cameras need world_to_camera (..., 4, 4) and K (..., 3, 3), not "
                f"{tuple(self.world_to_camera.shape)} and {tuple(self.K.shape)}"
            )
        if self.world_to_camera.shape[:-2] != self.K.shape[:-2]:
            raise ValueError(
                f"world_to_camera has batch {tuple(self.world_to_camera.shape[:-2])} but K has {tuple(self.K.shape[:-2])}"
            )

    @property
    def batch(self) -> tuple[int, ...]:
        """Leading dimensions."""
        return tuple(self.world_to_camera.shape[:-2])

    def __len__(self) -> int:
        return self.world_to_camera.shape[0]

    def __getitem__(self, index: Any) -> Cameras:
        return replace(self, world_to_camera=self.world_to_camera[index], K=self.K[index])

    @property
    def positions(self) -> Tensor:
        """Camera centres in the world, ``(..., 3)``."""
        rotation, translation = self.world_to_camera[..., :3, :3], self.world_to_camera[..., :3, 3]
        return -(rotation.transpose(-1, -2) @ translation[..., None])[..., 0]

    def to(self, *args: Any, **kwargs: Any) -> Cameras:
        """Tensors moved as by ``Tensor.to``."""
        where = args[0] if args else None
        if len(args) == 1 and not kwargs and isinstance(where, (str, torch.device)):
            return replace(self, world_to_camera=sent(self.world_to_camera, where), K=sent(self.K, where))
        return replace(self, world_to_camera=self.world_to_camera.to(*args, **kwargs), K=self.K.to(*args, **kwargs))

    def reshape(self, *batch: int) -> Cameras:
        """The same cameras with other leading dimensions."""
        return replace(self, world_to_camera=self.world_to_camera.reshape(*batch, 4, 4), K=self.K.reshape(*batch, 3, 3))

    def resized(self, width: int, height: int) -> Cameras:
        """The same view drawn at another size."""
        scale = torch.tensor([[width / self.width], [height / self.height], [1.0]], dtype=self.K.dtype, device=self.K.device)
        return replace(self, K=self.K * scale, width=width, height=height)

    @staticmethod
    def cat(cameras: Sequence[Cameras]) -> Cameras:
        """Several one-dimensional batches of one picture size as one."""
        first = cameras[0]
        if any((c.width, c.height) != (first.width, first.height) for c in cameras):
            raise ValueError("cameras of different picture sizes cannot be joined")
        return replace(
            first,
            world_to_camera=torch.cat([c.world_to_camera for c in cameras]),
            K=torch.cat([c.K for c in cameras]),
        )


def intrinsics(
    fovy: Tensor | float,  # (...) degrees
    width: int,
    height: int,
    cx: float | None = None,
    cy: float | None = None,
) -> Tensor:  # (..., 3, 3)
    """Pixel intrinsics with square pixels from a vertical field of view in degrees.

    ``f = (height / 2) / tan(fovy / 2)``; the principal point defaults to the picture's centre.
    """
    fovy = torch.as_tensor(fovy, dtype=torch.float32)
    focal = height / 2 / torch.tan(torch.deg2rad(fovy) / 2)
    K = torch.zeros(*fovy.shape, 3, 3, dtype=fovy.dtype, device=fovy.device)
    K[..., 0, 0] = K[..., 1, 1] = focal
    K[..., 0, 2] = width / 2 if cx is None else cx
    K[..., 1, 2] = height / 2 if cy is None else cy
    K[..., 2, 2] = 1
    return K


def orbit_poses(
    azimuth: Tensor | float,  # (...) degrees
    elevation: Tensor | float,  # (...) degrees
    distance: Tensor | float,  # (...)
    target: Sequence[float] = (0.0, 0.0, 0.0),
) -> Tensor:  # (..., 4, 4)
    """OpenCV world-to-camera poses on a sphere around ``target``, looking at it, +Y up.

    Angles are in degrees; arguments broadcast. At elevation +-90 the camera's up is the limit along the azimuth.
    """
    a, e, radius = torch.broadcast_tensors(*(torch.as_tensor(x, dtype=torch.float32) for x in (azimuth, elevation, distance)))
    a, e = torch.deg2rad(a), torch.deg2rad(e)
    sa, ca, se, ce, zero = a.sin(), a.cos(), e.sin(), e.cos(), torch.zeros_like(a)
    right = torch.stack([ca, zero, -sa], -1)
    down = torch.stack([se * sa, -ce, se * ca], -1)
    forward = torch.stack([-ce * sa, -se, -ce * ca], -1)
    rotation = torch.stack([right, down, forward], -2)
    centre = torch.as_tensor(target, dtype=a.dtype, device=a.device) - forward * radius[..., None]
    pose = torch.zeros(*a.shape, 4, 4, dtype=a.dtype, device=a.device)
    pose[..., :3, :3] = rotation
    pose[..., :3, 3] = -(rotation @ centre[..., None])[..., 0]
    pose[..., 3, 3] = 1
    return pose


def orbit(
    azimuth: Tensor | float | Sequence[float],  # (C,) degrees
    elevation: Tensor | float | Sequence[float] = 0.0,
    distance: Tensor | float = 2.0,
    fovy: Tensor | float = 49.1,
    width: int = 256,
    height: int = 256,
    cx: float | None = None,
    cy: float | None = None,
) -> Cameras:
    """Cameras (C) around the origin; angles and ``fovy`` in degrees, arguments broadcast to one dimension."""
    parts = [torch.as_tensor(x, dtype=torch.float32).reshape(-1) for x in (azimuth, elevation, distance, fovy)]
    a, e, radius, angle = torch.broadcast_tensors(*parts)
    return Cameras(orbit_poses(a, e, radius), intrinsics(angle, width, height, cx, cy), width, height)


def sample_orbit(
    count: int,
    generator: torch.Generator,
    *,
    azimuth: tuple[float, float] = (-180.0, 180.0),
    elevation: tuple[float, float] = (-30.0, 30.0),
    distance: float = 2.0,
    fovy: float = 49.1,
    fovy_jitter: float = 0.0,
    width: int = 256,
    height: int = 256,
) -> Cameras:
    """``count`` cameras with azimuth, elevation and field of view drawn uniformly (degrees), all aimed at the origin."""
    u = torch.rand(3, count, generator=generator)
    return orbit(
        azimuth[0] + (azimuth[1] - azimuth[0]) * u[0],
        elevation[0] + (elevation[1] - elevation[0]) * u[1],
        distance,
        fovy + fovy_jitter * (2 * u[2] - 1),
        width,
        height,
    )


@dataclass(frozen=True)
class Crop:
    """A square window of a picture, in the picture's pixels; it may reach beyond the picture.

    Args:
        x, y: left and top edge.
        size: side.
        width, height: the whole picture's size.
    """

    x: float
    y: float
    size: float
    width: int
    height: int


@dataclass(frozen=True)
class FrontCamera:
    """The camera of the driving video: what alignment finds.

    The picture is the video's original framing; the object is centred on the origin, so an object off the picture's centre
    shows as a shifted principal point. Where several objects share the camera, each stands off its axis instead: the principal
    point is the lens's own, the same for all, and the origin is seen at (cx, cy).

    Args:
        fovy: vertical field of view of a picture of ``height`` pixels, degrees.
        distance: from the origin, world units (the object's longest side is 1).
        width, height: the driving video's picture size, pixels.
        cx, cy: pixel at which the origin is seen; the picture's centre where None.
        elevation: degrees, positive = from above.
        px, py: principal point, pixels; (cx, cy) where None.
    """

    fovy: float
    distance: float
    width: int
    height: int
    cx: float | None = None
    cy: float | None = None
    elevation: float = 0.0
    px: float | None = None
    py: float | None = None

    @property
    def focal(self) -> float:
        """Focal length, pixels."""
        return self.height / 2 / math.tan(math.radians(self.fovy) / 2)

    @property
    def off_axis(self) -> tuple[float, float]:
        """How far right and down of the camera's axis the origin is, world units."""
        cx = self.width / 2 if self.cx is None else self.cx
        cy = self.height / 2 if self.cy is None else self.cy
        right = 0.0 if self.px is None else cx - self.px
        down = 0.0 if self.py is None else cy - self.py
        return self.distance * right / self.focal, self.distance * down / self.focal

    @property
    def extent(self) -> float:
        """tan(fovy / 2) times distance: half the world height that the picture spans at the origin."""
        return math.tan(math.radians(self.fovy) / 2) * self.distance

    def cameras(self, azimuth: Tensor | float | Sequence[float] = 0.0, elevation: Tensor | float | None = None) -> Cameras:
        """This camera turned around the object to each azimuth (degrees), ``(C,)``."""
        elevation = self.elevation if elevation is None else elevation
        cx, cy = (self.cx if self.px is None else self.px), (self.cy if self.py is None else self.py)
        cameras = orbit(azimuth, elevation, self.distance, self.fovy, self.width, self.height, cx, cy)
        if any(self.off_axis):
            cameras.world_to_camera[:, :2, 3] += torch.tensor(self.off_axis)
        return cameras

    def cropped(
        self,
        crop: Crop,
        resolution: int,
        azimuth: Tensor | float | Sequence[float] = 0.0,
        elevation: Tensor | float | None = None,
    ) -> Cameras:
        """As :meth:`cameras`, seen through a square ``crop`` of the picture drawn at ``resolution`` pixels."""
        cameras = self.cameras(azimuth, elevation)
        scale = resolution / crop.size
        K = cameras.K.clone()
        K[..., 0, 2] -= crop.x
        K[..., 1, 2] -= crop.y
        K[..., :2, :] *= scale
        return replace(cameras, K=K, width=resolution, height=resolution)

    def centred(
        self,
        resolution: int,
        azimuth: Tensor | float | Sequence[float] = 0.0,
        elevation: Tensor | float | None = None,
        margin: float = 1.25,
    ) -> Cameras:
        """Square views that keep this camera's perspective and frame a unit object with ``margin`` around its longest side."""
        fovy = 2 * math.degrees(math.atan(0.5 * margin / self.distance))
        elevation = self.elevation if elevation is None else elevation
        return orbit(azimuth, elevation, self.distance, fovy, resolution, resolution)


def spherical(cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:  # each (...)
    """Azimuth and elevation in degrees and distance from the origin of each camera's centre: :func:`orbit_poses` undone."""
    x, y, z = cameras.positions.unbind(-1)
    azimuth = torch.rad2deg(torch.atan2(x, z))
    elevation = torch.rad2deg(torch.atan2(y, torch.hypot(x, z)))
    return azimuth, elevation, cameras.positions.norm(dim=-1)


def from_opengl(camera_to_world: Tensor, K: Tensor, width: int, height: int) -> Cameras:
    """Cameras from OpenGL camera-to-world poses ``(..., 4, 4)`` (columns right, up, back)."""
    flip = GL_TO_CV.to(camera_to_world)
    return Cameras(flip @ torch.linalg.inv(camera_to_world), K, width, height)


def to_opengl(cameras: Cameras) -> Tensor:
    """OpenGL camera-to-world poses ``(..., 4, 4)``."""
    return torch.linalg.inv(GL_TO_CV.to(cameras.world_to_camera) @ cameras.world_to_camera)


def from_dreamgaussian(elevation: float, azimuth: float, radius: float, fovy: float, width: int, height: int) -> Cameras:
    """One camera from the DreamGaussian family's orbit, whose elevation is positive from BELOW."""
    return orbit(azimuth, -elevation, radius, fovy, width, height)


def zero123_vector(
    elevation: Tensor | float,  # (...) degrees, target
    azimuth: Tensor | float,  # (...) degrees, target minus condition
    radius_offset: Tensor | float = 0.0,
    *,
    condition_elevation: Tensor | float = 0.0,
) -> Tensor:  # (..., 4)
    """Zero123's relative camera ``[d_theta, sin d_phi, cos d_phi, d_r]``.

    ``d_theta`` is the difference of polar angles in radians, positive when the target is LOWER; azimuth is counter-clockwise
    from above, as ours. Source: Zero-1-to-3's training data loader.
    """
    e, a, radius = torch.broadcast_tensors(
        *(torch.as_tensor(x, dtype=torch.float32) for x in (elevation, azimuth, radius_offset))
    )
    phi = torch.deg2rad(a)
    return torch.stack([torch.deg2rad(condition_elevation - e), phi.sin(), phi.cos(), radius], -1)


#: The host's LOAD3D_CAMERA value: one camera, or since ComfyUI 0.46 a list of them, one a picture.
CameraInfo = dict[str, Any] | Sequence[dict[str, Any]]


def camera_infos(info: CameraInfo) -> list[dict[str, Any]]:
    """The cameras of a LOAD3D_CAMERA value, one or more.

    Raises:
        ValueError: for an empty list, or what is no camera.
    """
    infos = [info] if isinstance(info, dict) else list(info)
    if not infos or not all(isinstance(each, dict) for each in infos):
        raise ValueError(f"camera: {len(infos)} cameras, of which some are none; connect Create Camera Info or a batch of them")
    return infos


def from_camera_info(info: CameraInfo, width: int, height: int) -> Cameras:  # (C,)
    """Cameras from the host's LOAD3D_CAMERA value (three.js: right-handed, Y up, looks along its own -Z), mostly one.

    ``fov`` is vertical, in degrees, 35 where absent. A quaternion, where given, wins over the target.

    Raises:
        ValueError: for an orthographic camera or one that stands on its target.
    """
    return Cameras.cat([_from_camera_info(each, width, height) for each in camera_infos(info)])


def _from_camera_info(info: dict[str, Any], width: int, height: int) -> Cameras:  # (1,)
    if info.get("cameraType", "perspective") != "perspective":
        raise ValueError("camera: orthographic cameras are not supported, switch the viewer to perspective")
    position = torch.tensor([float(info["position"][k]) for k in "xyz"])
    quaternion = info.get("quaternion")
    pose = torch.eye(4)
    if quaternion:
        x, y, z, w = (float(quaternion[k]) for k in "xyzw")
        pose[:3, :3] = quaternion_to_matrix(torch.tensor([w, x, y, z]))
    else:
        target = torch.tensor([float((info.get("target") or {}).get(k, 0.0)) for k in "xyz"])
        back = position - target
        if back.norm() < 1e-9:
            raise ValueError("camera: position and target coincide, move the camera away from its target")
        back = back / back.norm()
        up = torch.tensor([0.0, 1.0, 0.0])
        if torch.linalg.cross(up, back).norm() < 1e-6:
            up = torch.tensor([0.0, 0.0, -1.0])
        right = torch.linalg.cross(up, back)
        right = right / right.norm()
        pose[:3, :3] = torch.stack([right, torch.linalg.cross(back, right), back], -1)
    pose[:3, 3] = position
    fov = float(info.get("fov") or 35.0)
    zoom = float(info.get("zoom") or 1.0)
    fov = 2 * math.degrees(math.atan(math.tan(math.radians(fov) / 2) / zoom))
    return from_opengl(pose[None], intrinsics(torch.tensor([fov]), width, height), width, height)


def to_camera_info(camera: Cameras) -> dict[str, Any]:
    """The host's LOAD3D_CAMERA value of the first camera of a one-dimensional batch; its target: nearest to the origin."""
    pose = to_opengl(camera)[0].cpu()
    position, back = pose[:3, 3], pose[:3, 2]
    target = position - back * max(float(position @ back), 1e-3)
    w, x, y, z = matrix_to_quaternion(pose[:3, :3]).tolist()
    fov = 2 * math.degrees(math.atan(camera.height / 2 / float(camera.K[0, 1, 1])))
    xyz = dict(zip("xyz", position.tolist()))
    return {
        "position": xyz,
        "target": dict(zip("xyz", target.tolist())),
        "quaternion": {"x": x, "y": y, "z": z, "w": w},
        "zoom": 1.0,
        "cameraType": "perspective",
        "fov": fov,
        "aspect": camera.width / camera.height,
        "near": 0.01,
        "far": 100.0,
    }


def to_camera_infos(cameras: Cameras) -> list[dict[str, Any]]:  # (C,)
    """The host's LOAD3D_CAMERA value of a batch, see :func:`to_camera_info`."""
    return [to_camera_info(cameras[i : i + 1]) for i in range(len(cameras.world_to_camera))]


def quaternion_to_matrix(quats: Tensor) -> Tensor:  # (..., 4) wxyz -> (..., 3, 3)
    """Rotation matrices of quaternions wxyz, normalised here."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def nearest_rotation(linear: Tensor) -> Tensor:  # (..., 3, 3) -> (..., 3, 3)
    """The rotation nearest to a linear map; of a covariance, the best rigid fit's (Kabsch 1976)."""
    u, _, vt = torch.linalg.svd(linear)
    sign = torch.where(torch.linalg.det(u @ vt) < 0, -1.0, 1.0).to(u)
    return torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], -1) @ vt


def matrix_to_quaternion(matrix: Tensor) -> Tensor:  # (..., 3, 3) -> (..., 4) wxyz
    """Quaternions wxyz with w >= 0 of rotation matrices, through the largest component for accuracy."""
    m = matrix
    trace = m.diagonal(dim1=-2, dim2=-1).sum(-1)
    diagonal = torch.cat([trace[..., None], m.diagonal(dim1=-2, dim2=-1)], -1)
    squares = torch.stack([1 + trace] + [1 + 2 * m[..., i, i] - trace for i in range(3)], -1).clamp_min(
        1e-12
    )  # 4 w^2, 4 x^2, ...
    yz, zx, xy = (m[..., 2, 1], m[..., 1, 2]), (m[..., 0, 2], m[..., 2, 0]), (m[..., 1, 0], m[..., 0, 1])
    wx, wy, wz = yz[0] - yz[1], zx[0] - zx[1], xy[0] - xy[1]
    sxy, sxz, syz = xy[0] + xy[1], zx[0] + zx[1], yz[0] + yz[1]
    candidates = torch.stack(
        [
            torch.stack([squares[..., 0], wx, wy, wz], -1),
            torch.stack([wx, squares[..., 1], sxy, sxz], -1),
            torch.stack([wy, sxy, squares[..., 2], syz], -1),
            torch.stack([wz, sxz, syz, squares[..., 3]], -1),
        ],
        -2,
    )
    best = diagonal.argmax(-1)[..., None, None].expand(*m.shape[:-2], 1, 4)
    quats = torch.nn.functional.normalize(candidates.gather(-2, best)[..., 0, :], dim=-1)
    return torch.where(quats[..., :1] < 0, -quats, quats)


def quaternion_multiply(a: Tensor, b: Tensor) -> Tensor:  # (..., 4), (..., 4) -> (..., 4)
    """Hamilton product of quaternions wxyz: the rotation b first, then a."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )
