"""TSOG: SOG's pictures and, beside them, when each Gaussian is there and how fast it goes.

A .zip of WebP pictures with a ``meta.json`` of version 4. Two ways of time: *continuous*, a centre and a standard deviation a
Gaussian (16 bits each, linear between the least and the greatest) and a speed (16 bits an axis); *discrete*, the number of the
one frame that shows the Gaussian. A scene whose field has gaussian lives and even motion (:func:`..scene.timed.bake_timed`) is
written as the first, any other as the second, frame by frame. Rotations, sizes and colours do not change within a Gaussian's
life. Errors are SOG's, and of a continuous file a part in 65,535 of what times, durations and speeds span; a life without end
is one of eight clips.

Frame: the playback profile has +Y up, which is written and, where the profile is named, read; Xiaomi's own encoder takes
the numbers of a .ply, +Y down, and names no profile.

Sources: arXiv 2607.28049; TSOG-SPEC.md of OpsiClear-4DGS/ftgs-player, playback profile 1 (version 1.0.1), which says what
Xiaomi's encoder writes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..deformation.timed import TimedGaussians
from ..files import InputError
from ..gaussians import Gaussians
from ..mesh import up_matrix
from ..scene.scene import Scene4D, frame_times
from ..scene.timed import FAINTEST
from ..scene.validation import MAX_FPS, MAX_FRAMES, number
from ..scene.views import FrameProgress
from . import sog
from .compressed_ply import place_order
from .ply import MAX_GAUSSIANS, check_count, from_file, is_sound, sound, to_file

PROFILE = {"id": "org.opsiclear.tsog-playback", "version": 1}
#: Standard deviation, in clips, that stands for a life without end.
_ENDLESS = 8.0
#: What files that do not say are played as, by the profile.
_FRAMES, _FPS = 300, 30.0
_STEPS = 65535


@torch.no_grad()
def encode(scene: Scene4D, frames: int | None = None, *, progress: FrameProgress | None = None) -> bytes:
    """The content of a .tsog.

    Args:
        frames: of the clip; a continuous file keeps its motion and only says so.
        progress: called with the frames done and all of them.

    Raises:
        InputError: for values that are not finite, or too many Gaussians in all frames together.
    """
    count = scene.frames if frames is None else frames
    fps = scene.fps * count / scene.frames
    times: dict[str, np.ndarray] = {}
    extra: dict[str, Any] = {}
    if scene.field is None or count == 1:
        turned = to_file(scene.at(0.0), turn=False)
        turned = turned.select(place_order(turned.means))
        playback = {}
    elif is_continuous(scene):
        turned, times, extra = _continuous(scene)
        playback = {"fps": fps, "duration": (count - 1) / fps, "loop": scene.loop}
    else:
        turned, times, extra = _discrete(scene, count, progress)
        playback = {"fps": fps, "duration": count / fps, "loop": scene.loop}
    meta, pictures = sog.attributes(turned)
    width = sog.picture_width(len(turned))
    for name, steps in times.items():
        pictures[f"{name}_l"], pictures[f"{name}_u"] = sog.picture(steps & 255, width), sog.picture(steps >> 8, width)
    head = {"version": 4, "profile": PROFILE} | meta | extra
    return sog.archive(head | ({"fps": fps, "playback": playback} if playback else {}), pictures)


def is_continuous(scene: Scene4D) -> bool:
    """Whether a scene is written with speeds and lives, not frame by frame."""
    field = scene.field
    if not isinstance(field, TimedGaussians):
        return False
    turns = field.turning and bool(field.turn.any())
    return field.life == "gaussian" and not turns and not bool(field.motion[:, 1:].any())


def decode(
    data: bytes,
    name: str,
    *,
    fps: float | None = None,
    loop: bool | None = None,
    frames: int | None = None,
    up: str = "y",
) -> Scene4D:
    """The scene of a .tsog's content; ``name`` is for messages.

    Args:
        fps, loop: in place of the file's.
        frames: of the clip, which lasts as long as before; the file's where None.
        up: the axis that points up, see :func:`.splats.read_splats`.

    Raises:
        InputError: for a foreign or damaged file, or one of another version.
    """
    with sog.contents(data, name) as content, sog.damage(name):
        meta = sog.read_meta(content)
        profile = meta.get("profile", PROFILE)
        if meta.get("version") != 4 or any(profile.get(key) != value for key, value in PROFILE.items()):
            raise InputError(f"{name}: a TSOG of version {str(meta.get('version'))[:20]}, only 4 is read; export it as such")
        if others := set(meta.get("temporal", {})) - {"means"}:
            raise InputError(f"{name}: moving {', '.join(sorted(others))[:60]} are not read; export it with speeds alone")
        gaussians = from_file(name, *sog.read_attributes(content, meta, name), turn="profile" not in meta)
        count = len(gaussians)
        timeline, playback = meta.get("timeline"), meta.get("playback", {})
        rate = number(playback.get("fps", meta.get("fps", _FPS)), "fps", 0, MAX_FPS, above=True)
        looping = bool(playback.get("loop", True)) if loop is None else loop
        if timeline is None:
            return Scene4D(_turned(sound(gaussians, name), up), meta={"motion": "still"})

        def steps(part: dict[str, Any], axes: int) -> np.ndarray:  # (N, axes) in [0, 1]
            low = sog.read_pixels(content, part["files"][0], count, name)[:, :axes].astype(np.float64)
            if len(part["files"]) == 1:
                return low / 255
            return (low + 256.0 * sog.read_pixels(content, part["files"][1], count, name)[:, :axes]) / _STEPS

        motion = np.zeros((count, 1, 3))
        if timeline["type"] == 1:
            low, high = (np.array(timeline[end], np.float64).reshape(2) for end in ("mins", "maxs"))
            centre, spread = (low + (high - low) * steps(timeline, 2)).T
            if not spread.min() > 0:
                raise ValueError("a life of no length")
            life, precision = "gaussian", 1 / spread**2
            if "temporal" in meta:
                part = meta["temporal"]["means"]
                low, high = (np.array(part[end], np.float64).reshape(1, 3) for end in ("mins", "maxs"))
                motion = (low + (high - low) * steps(part, 3))[:, None]
            if "duration" in playback:
                duration = number(playback["duration"], "duration", 0, above=True)
                own = max(2, math.floor(duration * rate + 0.5) + 1)
            else:
                own = _FRAMES
        elif timeline["type"] == 0:
            own = timeline["N"]
            if not isinstance(own, int) or isinstance(own, bool) or not 1 <= own <= _STEPS + 1:
                raise ValueError("a number of frames that is none")
            if "duration" in playback:
                rate = own / number(playback["duration"], "duration", 0, above=True)
            index = np.floor(steps(timeline, 1)[:, 0] * _STEPS / (65536 // own)).clip(max=own - 1)
            span = own if looping else max(own - 1, 1)
            centre, life, precision = (index + 0.5) / span, "window", np.full(count, (2.0 * span) ** 2)
        else:
            raise ValueError(f"a timeline of type {str(timeline['type'])[:20]}")
        if not own <= MAX_FRAMES:
            raise ValueError(f"{own} frames")
    matrix = up_matrix(up) if "profile" in meta else up_matrix(up) @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    moved = torch.from_numpy(motion).float() @ matrix[:3, :3].T
    field = TimedGaussians.of(moved, torch.from_numpy(centre).float(), torch.from_numpy(precision).float(), life=life)
    whole = is_sound(gaussians) & field.bounded()
    if not bool(whole.any()):
        raise InputError(f"{name}: all its Gaussians hold NaN, infinite or far too large values, repair or export it again")
    total = own if frames is None else frames
    rate = fps if fps is not None else min(rate * total / own, MAX_FPS)
    scene = Scene4D(gaussians, field, total, rate, looping, meta={"motion": "timed"})
    if not bool(whole.all()):
        scene = replace(scene, gaussians=gaussians.select(whole), field=field.select(whole))
    return replace(scene, gaussians=_turned(scene.gaussians, up))


def _turned(gaussians: Gaussians, up: str) -> Gaussians:
    return gaussians if up == "y" else gaussians.transformed(up_matrix(up))


def _continuous(scene: Scene4D) -> tuple[Gaussians, dict[str, np.ndarray], dict[str, Any]]:
    field = scene.field
    assert isinstance(field, TimedGaussians)
    motion, centre = field.motion[:, 0].cpu(), field.centre.cpu()
    spread = field.precision.cpu().clamp_min(1 / _ENDLESS**2).rsqrt()
    # A life without end is centred on the clip, so that it is of one brightness throughout.
    moved = torch.where(spread >= _ENDLESS, 0.5, centre)
    gaussians = scene.gaussians.to("cpu")
    turned = to_file(replace(gaussians, means=gaussians.means + motion * (moved - centre)[:, None]), turn=False)
    order = place_order(turned.means)
    time, time_bounds = _scaled(torch.stack([moved, spread], 1)[order].numpy())
    speed, (least, most) = _scaled(motion[order].numpy())
    extra = {
        "timeline": {"type": 1, **dict(zip(("mins", "maxs"), time_bounds)), "files": ["timeline_l.webp", "timeline_u.webp"]},
        "temporal": {"means": {"mins": [least], "maxs": [most], "files": ["motion_l.webp", "motion_u.webp"]}},
    }
    return turned.select(order), {"timeline": time, "motion": speed}, extra


def _discrete(
    scene: Scene4D, count: int, progress: FrameProgress | None
) -> tuple[Gaussians, dict[str, np.ndarray], dict[str, Any]]:
    """All frames in one set; what is not seen in a frame is left out of it."""
    if not count <= _STEPS + 1:
        raise InputError(f"frames {count}: TSOG holds at most {_STEPS + 1}, choose fewer")
    sets: list[Gaussians] = []
    for index, tau in enumerate(frame_times(count, scene.loop)):
        shown = to_file(scene.at(float(tau)), turn=False)
        shown = shown.select(shown.opacities >= FAINTEST)
        sets.append(shown.select(place_order(shown.means)) if len(shown) else shown)
        if sum(map(len, sets)) > MAX_GAUSSIANS:
            raise InputError(f"scene: more than {MAX_GAUSSIANS} Gaussians in {count} frames; take fewer frames, or prune it")
        if progress is not None:
            progress(index + 1, count)
    turned = Gaussians.cat(sets)
    check_count("scene", len(turned))
    delta = 65536 // count
    index = np.repeat(np.arange(count), [len(s) for s in sets])
    steps = (index * delta + delta // 2).astype(np.uint16)[:, None].repeat(3, 1)
    timeline = {"type": 0, "N": count, "delta": delta, "files": ["timeline_l.webp", "timeline_u.webp"]}
    return turned, {"timeline": steps}, {"timeline": timeline}


def _scaled(values: np.ndarray) -> tuple[np.ndarray, tuple[list[float], list[float]]]:
    """(N, C) as 16 bits between the least and the greatest of each column, (N, 3), and these."""
    low, high = values.min(0).astype(np.float64), values.max(0).astype(np.float64)
    steps = np.rint((values - low) / np.maximum(high - low, 1e-30) * _STEPS).astype(np.uint16)
    return np.pad(steps, ((0, 0), (0, 3 - steps.shape[1]))), (low.tolist(), high.tolist())
