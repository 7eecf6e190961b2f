"""Camera trajectories: keys that a smooth path goes through, orbits, spirals and dolly zooms.

A key is a camera as the host's LOAD3D_CAMERA value at a moment of the film. Between keys the direction of view, the field of
view, the distance and what is looked at change smoothly; whatever travels less, the cameras or their targets, leads, so that a
camera goes round an object instead of through it, and a camera that only turns stays where it stands.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cameras import (
    Cameras,
    FrontCamera,
    from_camera_info,
    from_opengl,
    intrinsics,
    matrix_to_quaternion,
    quaternion_multiply,
    quaternion_to_matrix,
    to_camera_info,
    to_opengl,
)
from ..files import InputError

#: The JSON format; the number grows when older programs could no longer read it.
VERSION = 1
INTERPOLATIONS = ("smooth", "linear")
EASINGS = ("none", "in", "out", "in-out")
MAX_KEYS, MAX_BYTES = 10_000, 2**24
#: Degrees between the keys of an orbit, and keys of one wave of a spiral.
KEY_STEP, KEYS_A_WAVE = 45.0, 24
#: How far the horizon may lean, as the sine of the angle, and still count as level.
LEVEL = 0.01


@dataclass(frozen=True)
class Key:
    """A camera at a moment of the film.

    Args:
        time: in [0, 1] of the film.
        camera: the host's LOAD3D_CAMERA value, ``fov`` vertical in degrees; where the player adds ``principal``, that is the
            principal point in shares of the picture.
        scene_time: the moment of the clip to show; 0 to 1 is the clip, more plays it again. None: the film decides.
    """

    time: float
    camera: dict[str, Any]
    scene_time: float | None = None


@dataclass(frozen=True)
class Trajectory:
    """A path of the camera through keys.

    Args:
        keys: in order of time, no two at once.
        loop: whether the path closes: after the last key it goes on to the first.
        interpolation: "smooth" = without corners, "linear" = straight from key to key at even speed.
        easing: "in" starts slowly, "out" ends slowly, "in-out" both.

    Raises:
        InputError: naming the key that cannot be used.
    """

    keys: tuple[Key, ...]
    loop: bool = False
    interpolation: str = "smooth"
    easing: str = "none"

    def __post_init__(self) -> None:
        if not 1 <= len(self.keys) <= MAX_KEYS:
            raise InputError(f"trajectory: {len(self.keys)} keys, give 1 to {MAX_KEYS}")
        for name, value, choices in (
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("easing", self.easing, EASINGS),
        ):
            if value not in choices:
                raise InputError(f"trajectory: {name} {value!r}, choose one of {', '.join(choices)}")
        before = -1.0
        for number, key in enumerate(self.keys, 1):
            if not 0 <= key.time <= 1:
                raise InputError(f"trajectory: key {number}: time {key.time:g}, choose 0 (start of the film) to 1 (its end)")
            if key.time <= before:
                raise InputError(
                    f"trajectory: key {number}: time {key.time:g} is not after the key before it, move one of them"
                )
            if key.scene_time is not None and not 0 <= key.scene_time < math.inf:
                raise InputError(f"trajectory: key {number}: scene_time {key.scene_time:g}, choose 0 or more, or null")
            before = key.time
            _checked_camera(key.camera, f"trajectory: key {number}")
        if self.loop and self.keys[-1].time - self.keys[0].time >= 1 and len(self.keys) > 1:
            raise InputError(
                f"trajectory: key {len(self.keys)}: at time 1 a path that loops is at its first key again, leave the key out"
            )

    @property
    def aspect(self) -> float:
        """Width by height of the picture that the first key was made for."""
        return float(self.keys[0].camera.get("aspect") or 1.0)

    def size(self, longer: int) -> tuple[int, int]:
        """Width and height of a picture of :attr:`aspect` whose longer side has ``longer`` pixels."""
        return max(1, round(longer * min(1.0, self.aspect))), max(1, round(longer / max(1.0, self.aspect)))

    def cameras(self, count: int, width: int, height: int) -> Cameras:  # (count,)
        """The cameras of a film of ``count`` frames."""
        return self.cameras_at(self.times(count), width, height)

    def taus(self, count: int) -> Tensor | None:  # (count,) in [0, 1]
        """The clip's moment in each frame of a film of ``count``, where keys carry scene times, else None.

        Between keys that carry one it runs evenly; where the path loops, the clip goes on to its end and starts again, unless
        time stands still in all of them.
        """
        given = [(key.time, key.scene_time) for key in self.keys if key.scene_time is not None]
        if not given:
            return None
        if self.loop and len({value for _, value in given}) > 1:
            first, last = given[0], given[-1]
            ahead = first[1] + max(math.ceil(last[1] - first[1] - 1e-9), 0)
            behind = last[1] - (ahead - first[1])
            given = [(last[0] - 1, behind), *given, (first[0] + 1, ahead)]
        knots, values = torch.tensor(given, dtype=torch.float64).T.contiguous()
        times = self._eased(self.times(count)).clamp(knots[0], knots[-1])
        after = torch.searchsorted(knots, times).clamp(1, max(len(knots) - 1, 1))
        if len(knots) == 1:
            moments = values.expand(count)
        else:
            u = (times - knots[after - 1]) / (knots[after] - knots[after - 1])
            moments = values[after - 1] + u * (values[after] - values[after - 1])
        moments = torch.where(moments < 0, moments + (-moments).ceil(), moments)
        return torch.where(moments > 1, moments - moments.ceil() + 1, moments).float()

    def times(self, count: int) -> Tensor:  # (count,) float64
        """Times of the frames of a film: 0 to 1, or up to one frame before 1 where the path loops."""
        return torch.arange(count, dtype=torch.float64) / max(count if self.loop else count - 1, 1)

    def cameras_at(self, times: Tensor, width: int, height: int) -> Cameras:  # (F,) -> (F,)
        """The cameras at ``times`` in [0, 1] of the film."""
        pose, _, lens = self._sampled(times)
        fovy = torch.rad2deg(2 * torch.atan(lens[:, 0]))
        K = intrinsics(fovy, width, height).to(torch.float64)
        K[:, :2, 2] = lens[:, 1:] * lens.new_tensor([width, height])
        return from_opengl(pose, K, width, height).to(torch.float32)

    def camera_info(self, time: float) -> dict[str, Any]:
        """The host's LOAD3D_CAMERA value of one moment of the film."""
        moment = torch.tensor([time], dtype=torch.float64)
        info = to_camera_info(self.cameras_at(moment, *self.size(1024)))
        _, target, lens = self._sampled(moment)
        info |= {"target": dict(zip("xyz", target[0].tolist())), "aspect": self.aspect}
        return info | ({"principal": lens[0, 1:].tolist()} if any("principal" in key.camera for key in self.keys) else {})

    def placed(self, scale: float, centre: Tensor) -> Trajectory:  # (3,)
        """The path made for a unit object at the origin as it goes round one of this size at this place."""
        if scale == 1 and not centre.any():
            return self
        middle = dict(zip("xyz", centre.tolist()))

        def moved(info: dict[str, Any]) -> dict[str, Any]:
            points = {name: info[name] for name in ("position", "target") if info.get(name)}
            return info | {
                name: {axis: scale * float(point.get(axis, 0.0)) + middle[axis] for axis in "xyz"}
                for name, point in points.items()
            }

        return replace(self, keys=tuple(replace(key, camera=moved(key.camera)) for key in self.keys))

    @staticmethod
    def from_camera_infos(
        infos: Sequence[dict[str, Any]],
        times: Sequence[float] | None = None,
        scene_times: Sequence[float | None] | None = None,
        *,
        loop: bool = False,
        interpolation: str = "smooth",
        easing: str = "none",
    ) -> Trajectory:
        """A path through LOAD3D_CAMERA values, evenly spread over the film where no ``times`` are given.

        Raises:
            InputError: naming the key that cannot be used, or for lists of different lengths.
        """
        count = len(infos)
        moments = [i / max(count if loop else count - 1, 1) for i in range(count)] if times is None else times
        clip = [None] * count if scene_times is None else scene_times
        if not count == len(moments) == len(clip):
            raise InputError(
                f"trajectory: {count} cameras, {len(moments)} times and {len(clip)} scene times, give as many of each"
            )
        keys = [Key(float(t), info, s) for t, info, s in zip(moments, infos, clip)]
        return Trajectory(tuple(sorted(keys, key=lambda key: key.time)), loop, interpolation, easing)

    def to_json(self) -> str:
        """The path as text, which :meth:`from_json` and the player read."""
        keys = [{"time": key.time, "scene_time": key.scene_time, "camera": key.camera} for key in self.keys]
        head = {"version": VERSION, "loop": self.loop, "interpolation": self.interpolation, "easing": self.easing}
        return json.dumps(head | {"keys": keys})

    @staticmethod
    def from_json(text: str) -> Trajectory:
        """The path that :meth:`to_json` or the player's recorder wrote.

        Raises:
            InputError: for text that is no trajectory, or a newer one, naming the key that cannot be used.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"trajectory: not readable as JSON ({error}), copy it again from where it was made") from None
        if not isinstance(data, dict) or not isinstance(data.get("keys"), list):
            raise InputError('trajectory: JSON without a list "keys", copy it again from where it was made')
        if not isinstance(data.get("version"), int) or data["version"] > VERSION:
            raise InputError(
                f"trajectory: version {data.get('version')!r} is not one this program reads, it reads up to {VERSION}"
            )
        keys = []
        for number, key in enumerate(data["keys"], 1):
            if not isinstance(key, dict) or not _is_number(key.get("time")) or not isinstance(key.get("camera"), dict):
                raise InputError(f'trajectory: key {number}: give "time" (a number) and "camera" (a LOAD3D_CAMERA value)')
            scene_time = key.get("scene_time")
            if scene_time is not None and not _is_number(scene_time):
                raise InputError(f"trajectory: key {number}: scene_time {scene_time!r}, give a number or null")
            keys.append(Key(float(key["time"]), key["camera"], None if scene_time is None else float(scene_time)))
        keys.sort(key=lambda key: key.time)
        return Trajectory(
            tuple(keys), bool(data.get("loop", False)), data.get("interpolation", "smooth"), data.get("easing", "none")
        )

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Trajectory:
        """:meth:`from_json` of a file.

        Raises:
            InputError: naming the file, where it cannot be read or holds no trajectory.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file, give the JSON of a trajectory")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: {path.stat().st_size / 2**20:.0f} MB is no trajectory, give the JSON of one")
        try:
            return Trajectory.from_json(path.read_text(encoding="utf-8"))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except UnicodeDecodeError:
            raise InputError(f"{path}: not text, give the JSON of a trajectory") from None

    def _eased(self, times: Tensor) -> Tensor:
        t = times.to(torch.float64)
        return {"none": t, "in": t * t, "out": t * (2 - t), "in-out": t * t * (3 - 2 * t)}[self.easing]

    def _sampled(self, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (F, 4, 4), (F, 3), (F, 3)
        """OpenGL camera-to-world poses, targets, and tangents of half the vertical field of view beside principal points."""
        keyed = Cameras.cat([from_camera_info(key.camera, 2, 2) for key in self.keys])
        poses = to_opengl(keyed).double()
        zoom = keyed.K[:, 1, 1].double().log()
        rotations, positions = poses[:, :3, :3], poses[:, :3, 3]
        distances = torch.tensor([_target_distance(k.camera, p) for k, p in zip(self.keys, poses)], dtype=torch.float64)
        targets = positions - rotations[:, :, 2] * distances[:, None]

        curve = _Curve(
            torch.tensor([key.time for key in self.keys], dtype=torch.float64),
            self._eased(times),
            closed=self.loop,
            smooth=self.interpolation == "smooth",
        )
        right, up, back = rotations.unbind(-1)
        if (right[:, 1].abs() < LEVEL).all() and (up[:, 1] > -LEVEL).all():
            # A level horizon stays level: turn and tilt are interpolated, not the rotation.
            azimuth = curve.angles(torch.atan2(-right[:, 2], right[:, 0]))
            elevation = curve.vectors(torch.atan2(back[:, 1], up[:, 1])[:, None])[:, 0]
            rotation = _level_rotation(azimuth, elevation)
        else:
            rotation = quaternion_to_matrix(curve.rotations(matrix_to_quaternion(rotations)))
        distance = curve.vectors(distances.log()[:, None]).exp()
        if curve.length(targets) <= curve.length(positions):
            target = curve.vectors(targets)
            position = target + rotation[:, :, 2] * distance
        else:
            position = curve.vectors(positions)
            target = position - rotation[:, :, 2] * distance
        pose = torch.eye(4, dtype=torch.float64).repeat(len(position), 1, 1)
        pose[:, :3, :3], pose[:, :3, 3] = rotation, position
        principal = curve.vectors(torch.tensor([_principal(key.camera) for key in self.keys], dtype=torch.float64))
        return pose, target, torch.cat([(-curve.vectors(zoom[:, None])).exp(), principal], 1)


class _Curve:
    """Hermite curves through keys at given times, whose speeds are the slopes of the parabolas through three neighbours.

    Speeds are limited to three times the slower of the two neighbouring segments (the bound of Fritsch and Carlson 1980), so
    that nothing moves between two equal keys. Rotations: the Hermite quaternion curve of Kim, Kim and Shin 1995, with the same
    speeds.
    """

    def __init__(self, knots: Tensor, times: Tensor, *, closed: bool, smooth: bool) -> None:  # (K,), (F,)
        self.closed, self.smooth = closed or len(knots) == 1, smooth
        ends = torch.cat([knots, knots[:1] + 1]) if self.closed else knots
        self.spans = ends.diff()  # (S,)
        times = torch.where(times < knots[0], times + 1, times) if self.closed else times.clamp(knots[0], knots[-1])
        self.segment = (torch.searchsorted(ends, times, right=True) - 1).clamp(0, len(self.spans) - 1)
        self.after = (self.segment + 1) % len(knots)
        self.u = ((times - ends[self.segment]) / self.spans[self.segment])[:, None]

    def length(self, points: Tensor) -> float:  # (K, D)
        """Length of the path straight from key to key."""
        return float(self._chords(points).norm(dim=-1).sum())

    def vectors(self, values: Tensor) -> Tensor:  # (K, D) -> (F, D)
        return values[self.segment] + sum(self._steps(self._chords(values)))

    def angles(self, values: Tensor) -> Tensor:  # (K,) radians -> (F,)
        """Each the shorter way to the next; of two equally long ways, the counter-clockwise."""
        longest = math.pi + 1e-4  # so that rounding decides nothing
        chords = longest - (longest - self._chords(values[:, None])).remainder(2 * math.pi)
        return (values[self.segment][:, None] + sum(self._steps(chords)))[:, 0]

    def rotations(self, quats: Tensor) -> Tensor:  # (K, 4) wxyz -> (F, 4)
        following = quats.roll(-1, 0) if self.closed else quats[1:]
        start = quats if self.closed else quats[:-1]
        chords = _log(quaternion_multiply(_conjugate(start), following))
        if not self.smooth:
            return quaternion_multiply(quats[self.segment], _exp(self._steps(chords)[0]))
        first, last = self._ends(chords)
        middle = quaternion_multiply(_exp(-first), quaternion_multiply(_exp(chords)[self.segment], _exp(-last)))
        out = quats[self.segment]
        for turn, weight in zip((first, _log(middle), last), self._weights()):
            out = quaternion_multiply(out, _exp(turn * weight))
        return out

    def _chords(self, values: Tensor) -> Tensor:  # (K, D) -> (S, D)
        return values.roll(-1, 0) - values if self.closed else values.diff(dim=0)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """The cumulative Bernstein polynomials of degree three."""
        u = self.u
        return 1 - (1 - u) ** 3, u * u * (3 - 2 * u), u**3

    def _steps(self, chords: Tensor) -> tuple[Tensor, ...]:  # (S, D) -> (F, D) each
        """What is to be added to the key before."""
        if not self.smooth:
            return (chords[self.segment] * self.u,)
        first, last = self._ends(chords)
        middle = chords[self.segment] - first - last
        return tuple(step * weight for step, weight in zip((first, middle, last), self._weights()))

    def _ends(self, chords: Tensor) -> tuple[Tensor, Tensor]:  # (S, D) -> (F, D), (F, D)
        """A third of the way that the speeds at both ends of each segment would go in its time."""
        slopes, spans = chords / self.spans[:, None], self.spans[:, None]
        if self.closed:
            left, right, before, after = slopes.roll(1, 0), slopes, spans.roll(1, 0), spans
        else:
            left, right, before, after = slopes[:-1], slopes[1:], spans[:-1], spans[1:]
        speeds = (after * left + before * right) / (before + after)
        if not self.closed:
            # Without curvature at the free ends.
            ends = (
                [(3 * slope - speed) / 2 for slope, speed in zip(slopes[[0, -1]], speeds[[0, -1]])]
                if len(speeds)
                else slopes[[0, 0]]
            )
            speeds = torch.cat([ends[0][None], speeds, ends[1][None]])
            left, right = torch.cat([slopes[:1], slopes]), torch.cat([slopes, slopes[-1:]])
        limit = 3 * torch.minimum(left.norm(dim=-1, keepdim=True), right.norm(dim=-1, keepdim=True))
        size = speeds.norm(dim=-1, keepdim=True)
        speeds = speeds * (limit / size.clamp_min(1e-300)).clamp_max(1)
        third = spans[self.segment] / 3
        return speeds[self.segment] * third, speeds[self.after] * third


def orbit(
    front: FrontCamera,
    *,
    azimuth: float = 0.0,
    sweep: float = 360.0,
    elevation: float = 0.0,
    distance: float = 1.0,
    easing: str = "none",
) -> Trajectory:
    """Round the object at one height. The whole object is in the picture, which is square.

    Args:
        front: the scene's camera: its elevation, distance and perspective are where the path starts from.
        azimuth: degrees, where it begins; 0 = the front, positive = counter-clockwise seen from above.
        sweep: degrees that the camera goes round; the path loops where these are whole turns.
        elevation: degrees above the front camera.
        distance: in distances of the front camera; farther = the object is smaller in the picture.
    """
    count = max(1, math.ceil(abs(sweep) / KEY_STEP))
    return _around(
        front,
        azimuth=[azimuth + sweep * i / count for i in range(count + 1)],
        elevation=[elevation] * (count + 1),
        distance=[distance] * (count + 1),
        loop=_whole(sweep / 360) and sweep != 0,
        easing=easing,
    )


def spiral(
    front: FrontCamera,
    *,
    azimuth: float = 0.0,
    sweep: float = 720.0,
    elevation: tuple[float, float] = (-20.0, 50.0),
    distance: tuple[float, float] = (1.0, 1.0),
    waves: float = 1.0,
    easing: str = "none",
) -> Trajectory:
    """Round the object while height and distance swing between two values.

    Args:
        elevation: degrees above the front camera: at the start, and half a wave later.
        distance: in distances of the front camera, likewise.
        waves: how often they swing there and back; 0.5 = only there. The path loops where waves and turns are whole.

    The other arguments are those of :func:`orbit`.
    """
    count = max(2, math.ceil(abs(sweep) / KEY_STEP), math.ceil(abs(waves) * KEYS_A_WAVE))
    swing = [(1 - math.cos(2 * math.pi * waves * i / count)) / 2 for i in range(count + 1)]
    return _around(
        front,
        azimuth=[azimuth + sweep * i / count for i in range(count + 1)],
        elevation=[elevation[0] + (elevation[1] - elevation[0]) * s for s in swing],
        distance=[distance[0] * (distance[1] / distance[0]) ** s for s in swing],
        loop=_whole(sweep / 360) and _whole(waves) and (sweep, waves) != (0, 0),
        easing=easing,
    )


def dolly_zoom(
    front: FrontCamera,
    *,
    azimuth: float = 0.0,
    elevation: float = 0.0,
    distance: tuple[float, float] = (0.6, 3.0),
    easing: str = "in-out",
) -> Trajectory:
    """Nearer or farther while the field of view makes up for it: the object keeps its size, its perspective changes.

    Args:
        distance: at the start and at the end, in distances of the front camera.

    The other arguments are those of :func:`orbit`.
    """
    infos = []
    for factor in distance:
        _check_distance(front, factor)
        moved = FrontCamera(front.fovy, front.distance * factor, front.width, front.height, elevation=front.elevation)
        infos.append(to_camera_info(moved.centred(1024, azimuth, front.elevation + elevation)))
    return Trajectory.from_camera_infos(infos, easing=easing)


def _around(
    front: FrontCamera,
    *,
    azimuth: Sequence[float],
    elevation: Sequence[float],
    distance: Sequence[float],
    loop: bool,
    easing: str,
) -> Trajectory:
    """A path through places around the origin, in the perspective of the front camera."""
    centred = front.centred(1024)
    infos = []
    for a, e, d in list(zip(azimuth, elevation, distance))[: -1 if loop else None]:
        _check_distance(front, d)
        if not abs(front.elevation + e) <= 90:
            raise InputError(
                f"trajectory: elevation {e:g} puts the camera at {front.elevation + e:g} degrees, choose within -90 to 90"
            )
        moved = FrontCamera(front.fovy, front.distance * d, 1024, 1024, elevation=front.elevation + e).cameras(a)
        infos.append(to_camera_info(Cameras(moved.world_to_camera, centred.K, 1024, 1024)))
    return Trajectory.from_camera_infos(infos, loop=loop, easing=easing)


def _check_distance(front: FrontCamera, factor: float) -> None:
    if not 0.01 < front.distance * factor < 1e4:
        raise InputError(
            f"trajectory: distance {factor:g} is {front.distance * factor:g} units from the object, choose 0.1 to 100"
        )


def _whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-9


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _checked_camera(info: dict[str, Any], name: str) -> None:
    """Raises InputError for a LOAD3D_CAMERA value that shows nothing."""
    try:
        camera = from_camera_info(info, 2, 2)
        turn = info.get("quaternion") or {"w": 1.0}
        whole = (
            all(math.isfinite(share) for share in _principal(info))
            and 0 < float(info.get("aspect") or 1.0) < math.inf
            and math.hypot(*(float(turn.get(axis, 0.0)) for axis in "xyzw")) > 1e-6
            and all(math.isfinite(float((info.get("target") or {}).get(axis, 0.0))) for axis in "xyz")
        )
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{name}: the camera lacks or garbles a part ({error}), record it again") from None
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    upright = torch.linalg.det(camera.world_to_camera[0, :3, :3])
    tangent = float(1 / camera.K[0, 1, 1])
    if not (whole and camera.world_to_camera.isfinite().all() and 1e-4 < tangent < 1e4 and abs(float(upright) - 1) < 1e-3):
        raise InputError(f"{name}: the camera's position, quaternion, fov or zoom is no usable number, record it again")


def _principal(info: dict[str, Any]) -> tuple[float, float]:
    x, y = info.get("principal") or (0.5, 0.5)
    return float(x), float(y)


def _target_distance(info: dict[str, Any], pose: Tensor) -> float:
    """How far the camera's target lies along its view; without one ahead, the point nearest to the origin, else 1 unit."""
    position, back = pose[:3, 3], pose[:3, 2]
    target = torch.tensor([float((info.get("target") or {}).get(k, 0.0)) for k in "xyz"], dtype=pose.dtype)
    ahead = float((position - target) @ back), float(position @ back)
    return next((distance for distance in ahead if distance > 1e-3), 1.0)


def _level_rotation(azimuth: Tensor, elevation: Tensor) -> Tensor:  # (F,), (F,) radians -> (F, 3, 3)
    """OpenGL camera-to-world rotations (columns right, up, back), as :func:`core.cameras.orbit_poses` has them."""
    sa, ca, se, ce = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
    right = torch.stack([ca, torch.zeros_like(ca), -sa], -1)
    up = torch.stack([-se * sa, ce, -se * ca], -1)
    back = torch.stack([ce * sa, se, ce * ca], -1)
    return torch.stack([right, up, back], -1)


def _conjugate(quats: Tensor) -> Tensor:  # (..., 4) wxyz
    return torch.cat([quats[..., :1], -quats[..., 1:]], -1)


def _log(quats: Tensor) -> Tensor:  # (..., 4) wxyz -> (..., 3)
    """Rotation vectors, radians, the shorter way."""
    quats = torch.where(quats[..., :1] < 0, -quats, quats)
    sine = quats[..., 1:].norm(dim=-1, keepdim=True)
    return quats[..., 1:] * (2 * torch.atan2(sine, quats[..., :1]) / sine.clamp_min(1e-12))


def _exp(vectors: Tensor) -> Tensor:  # (..., 3) -> (..., 4) wxyz
    angle = vectors.norm(dim=-1, keepdim=True)
    return torch.cat([(angle / 2).cos(), vectors * torch.sinc(angle / (2 * math.pi)) / 2], -1)
