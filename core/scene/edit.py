"""Working with a scene: its timing, place, parts and colours. Every edit gives a new scene; the one given stays as it is.

A frame lasts 1 / fps, so a clip of T frames lasts T / fps seconds. The field stays continuous through every edit: what was
fitted can be sampled at any frame rate afterwards. ``scene.meta["edits"]`` lists what was done.

The front camera stays where it stands in the world, so pictures show an object that was moved as moved; the crop, which says
which part of the driving video the object fills, is dropped by edits after which the object no longer is where the video shows
it. The surface, a mesh in the frame of the canonical Gaussians, is moved with them, and dropped by edits that change its extent
or colours.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras, orbit, quaternion_multiply, quaternion_to_matrix
from ..deformation import ClosedLoop, DeformationField, Faded, Parts, Placed, TimeMap
from ..deformation.wrappers import place, scaled_opacity
from ..files import InputError
from ..gaussians import Gaussians
from ..harmonics import SH_C0
from ..render import rasterize
from .object3d import FAINT, substance
from .scene import Scene4D, frame_times
from .sequence import INVISIBLE, scene_from_gaussians
from .views import DEFAULT_FRONT, FrameProgress

log = logging.getLogger(__name__)

#: Curves of :func:`retime`: the moment shown at each share of the time.
EASES: dict[str, Callable[[float], float]] = {
    "steady": lambda u: u,
    "start slowly": lambda u: u * u,
    "end slowly": lambda u: u * (2 - u),
    "start and end slowly": lambda u: u * u * (3 - 2 * u),
}
#: Straight pieces that a curve is made of.
_PIECES = 64
#: Gaussians times views whose gradients are held at once, and the logit above which opacities have none to speak of.
_TOGETHER, _SATURATED = 1 << 21, 4.0
#: Rounds of pruning; neighbours that take over from a Gaussian that is left out, and how much: 1 = as much as it covered.
_ROUNDS, _NEIGHBOURS, _GROWTH = 4, 3, 0.7
Unit = Literal["frames", "seconds"]


def duration(scene: Scene4D) -> float:
    """Seconds that the clip lasts."""
    return scene.frames / scene.fps


# Timing


def retime(
    scene: Scene4D,
    *,
    frames: int | None = None,
    fps: float | None = None,
    speed: float | None = None,
    curve: str | Sequence[tuple[float, float]] = "steady",
) -> Scene4D:
    """Another number of frames, frame rate or speed, any two of which say the third.

    With one of them, the clip lasts as long as before (``frames``, ``fps``) or the frame rate stays (``speed``).

    Args:
        frames: of the new clip.
        fps: frames a second.
        speed: 2 plays twice as fast, 0.5 half as fast.
        curve: one of :data:`EASES`, or points (share of the time, moment of the clip), both in [0, 1], on straight lines.

    Raises:
        InputError: for all three, values of 0 or less, or a curve that is none.
    """
    for name, value in (("frames", frames), ("fps", fps), ("speed", speed)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name} {value:g}: choose more than 0")
    if frames is not None and fps is not None and speed is not None:
        raise InputError("frames, fps and speed: two of them give the third, leave one out")
    if frames is None:
        rate = scene.fps if fps is None else fps
        frames = 1 if scene.frames == 1 else max(2, round(scene.frames * rate / scene.fps / (speed or 1.0)))
        fps = rate
    elif fps is None:
        fps = scene.fps * frames / scene.frames * (speed or 1.0)
    done = _edited(scene, "retime", frames=frames, fps=fps)
    done = replace(done, frames=frames, fps=fps)
    if curve == "steady":
        return done
    if isinstance(curve, str):
        if curve not in EASES:
            raise InputError(f"curve {curve!r}: unknown, choose one of {', '.join(EASES)}")
        knots = [(i / _PIECES, EASES[curve](i / _PIECES)) for i in range(_PIECES + 1)]
    else:
        knots = [(float(time), float(moment)) for time, moment in curve]
        if not knots or any(a[0] > b[0] for a, b in pairwise(knots)):
            raise InputError("curve: give points (time, moment) in the order of their times")
    return replace(done, field=_timed(scene, knots))


def trim(scene: Scene4D, start: float = 0, end: float | None = None, unit: Unit = "frames") -> Scene4D:
    """The part of a clip from ``start`` to ``end``, at the same frame rate. It does not loop.

    Args:
        start, end: numbers of the first and the last frame, both kept; or seconds, rounded to frames. ``end`` None is the
            clip's end. In a loop the end may lie before the start: the part goes through the seam.

    Raises:
        InputError: for a part outside of the clip, or an empty one.
    """
    if unit == "seconds":
        first = round(start * scene.fps)
        last = scene.frames - 1 if end is None else round(end * scene.fps) - 1
    else:
        first, last = round(start), scene.frames - 1 if end is None else round(end)
    if scene.loop and last < first:
        last += scene.frames
    if not 0 <= first < scene.frames or not first <= last < scene.frames * (2 if scene.loop else 1):
        raise InputError(
            f"trim: frames {first} to {last} of a clip of {scene.frames} frames (0 to {scene.frames - 1}); "
            "choose a start and an end inside of it"
        )
    span = scene.frames if scene.loop else max(scene.frames - 1, 1)
    field = _timed(scene, [(0, first / span), (1, last / span)], "repeat" if scene.loop else "hold")
    done = _edited(scene, "trim", start=first, end=last)
    return replace(done, field=field, frames=last - first + 1, loop=False)


def reverse(scene: Scene4D) -> Scene4D:
    """The clip backwards."""
    field = _timed(scene, [(0, 1), (1, 0)], "repeat" if scene.loop else "hold")
    return replace(_edited(scene, "reverse"), field=field)


def ping_pong(scene: Scene4D) -> Scene4D:
    """A loop: the clip forwards, then backwards. The frames at which it turns are shown once."""
    if scene.frames == 1:
        return scene
    if scene.loop:
        field = _timed(scene, [(0, 0), (0.5, 1), (1, 0)], "repeat")
        return replace(_edited(scene, "ping-pong"), field=field, frames=2 * scene.frames)
    field = _timed(scene, [(0, 0), (0.5, 1), (1, 0)])
    return replace(_edited(scene, "ping-pong"), field=field, frames=2 * (scene.frames - 1), loop=True)


def close_loop(scene: Scene4D, overlap: int | None = None) -> Scene4D:
    """A loop: the clip's last frames fade into its first, positions, turns, sizes and opacities alike.

    The loop is ``overlap`` + 1 frames shorter than the clip and starts where the fade does; see :class:`ClosedLoop`. A loop is
    given back as it is.

    Args:
        overlap: frames that fade, at most half of the clip; a quarter of it where None. More is softer.

    Raises:
        InputError: for an overlap that does not fit, or a scene each of whose frames has Gaussians of its own.
    """
    if scene.loop or scene.frames == 1 or scene.field is None:
        return replace(scene, loop=True)
    if not scene.field.continuous:
        raise InputError(
            "close the loop: each frame of this scene has Gaussians of its own, which do not fade; choose ping-pong"
        )
    span = scene.frames - 1
    overlap = max(1, round(span / 4)) if overlap is None else overlap
    if not 1 <= overlap <= span / 2:
        raise InputError(f"overlap {overlap}: choose 1 to {span // 2} frames for a clip of {scene.frames}")
    done = _edited(scene, "close loop", overlap=overlap)
    return replace(done, field=ClosedLoop(scene.field, overlap / span), frames=span - overlap, loop=True)


def _timed(scene: Scene4D, knots: Sequence[tuple[float, float]], outside: str = "hold") -> DeformationField | None:
    return None if scene.field is None else TimeMap(scene.field, knots, outside)


# Place


@dataclass(frozen=True)
class Placement:
    """Where a scene is put: scaled, then turned, both about the origin, then moved.

    Args:
        translate: world units, +Y up, +Z towards the front.
        rotate: degrees about X, then Y, then Z, counter-clockwise seen from the axis' tip; or a quaternion wxyz.
        scale: 1 = as it is.
    """

    translate: Sequence[float] = (0.0, 0.0, 0.0)
    rotate: Sequence[float] = (0.0, 0.0, 0.0)
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise InputError(f"scale {self.scale:g}: choose more than 0")
        if len(self.translate) != 3 or not all(map(math.isfinite, self.translate)):
            raise InputError("translate: give three numbers, x, y and z")
        if len(self.rotate) not in (3, 4) or not all(map(math.isfinite, self.rotate)):
            raise InputError("rotate: give three angles in degrees or a quaternion w, x, y, z")
        if len(self.rotate) == 4 and not any(self.rotate):
            raise InputError("rotate: a quaternion of zeros is no rotation")

    @property
    def quaternion(self) -> Tensor:  # (4,) wxyz, float64
        """The rotation."""
        if len(self.rotate) == 4:
            return F.normalize(torch.tensor(self.rotate, dtype=torch.float64), dim=-1)
        turned = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
        for axis, degrees in enumerate(self.rotate):
            half = math.radians(degrees) / 2
            turn = torch.zeros(4, dtype=torch.float64)
            turn[0], turn[1 + axis] = math.cos(half), math.sin(half)
            turned = quaternion_multiply(turn, turned)
        return turned

    @property
    def matrix(self) -> Tensor:  # (4, 4), float64
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3] = self.scale * quaternion_to_matrix(self.quaternion)
        matrix[:3, 3] = torch.tensor(self.translate, dtype=torch.float64)
        return matrix

    def _pose(self) -> list[Any]:
        return [[float(x) for x in self.translate], self.quaternion.tolist(), float(self.scale)]

    def _apply(self, gaussians: Gaussians) -> Gaussians:
        pose = [torch.tensor(x, dtype=torch.float64)[None].to(gaussians.means) for x in self._pose()]
        return place(gaussians.map(lambda t: t[None]), *pose).map(lambda t: t[0])


def transform(scene: Scene4D, placement: Placement) -> Scene4D:
    """The whole scene scaled, turned and moved."""
    pose = placement._pose()
    field = None if scene.field is None else Placed(scene.field, [[0.0, *pose]], pose)
    done = _edited(scene, "transform", translate=pose[0], quaternion=pose[1], scale=pose[2])
    surface = None if scene.surface is None else scene.surface.transformed(placement.matrix.float().to(scene.gaussians.device))
    return replace(done, gaussians=placement._apply(scene.gaussians), field=field, crop=None, surface=surface)


def follow(scene: Scene4D, path: Sequence[tuple[float, Placement]]) -> Scene4D:
    """The scene carried along a path while its clip plays.

    Args:
        path: times in [0, 1] over the clip, rising, and the placement there; see :class:`Placed` for what lies in between. For
            a loop, end where it starts.

    Raises:
        InputError: for no placements, or times that do not rise.
    """
    if not path or any(a[0] > b[0] for a, b in pairwise(path)):
        raise InputError("path: give placements in the order of their times")
    start = path[0][1]
    field = Placed(scene.field, [[time, *placement._pose()] for time, placement in path], start._pose())
    surface = None if scene.surface is None else scene.surface.transformed(start.matrix.float().to(scene.gaussians.device))
    done = _edited(scene, "follow", keys=len(path))
    return replace(done, gaussians=start._apply(scene.gaussians), field=field, crop=None, surface=surface)


# Parts


def select(scene: Scene4D, index: Tensor) -> Scene4D:  # (N,) bool or (M,) int64
    """Some of a scene's Gaussians, with their motion."""
    field = None if scene.field is None else scene.field.select(index)
    return replace(scene, gaussians=scene.gaussians.select(index), field=field)


def crop(
    scene: Scene4D,
    *,
    box: tuple[Sequence[float], Sequence[float]] | None = None,
    sphere: tuple[Sequence[float], float] | None = None,
    time: float | None = 0.0,
    keep: Literal["inside", "outside"] = "inside",
) -> Scene4D:
    """Only the Gaussians whose centres are in, or out of, a box or a ball.

    Args:
        box: lowest and highest corner, world units.
        sphere: centre and radius.
        time: the moment in [0, 1] at which that counts; None for at any frame of the clip. A scene each of whose frames has
            Gaussians of its own is cropped frame by frame.
        keep: which of them stay.

    Raises:
        InputError: where both or neither are given, or nothing is left.
    """
    if (box is None) == (sphere is None):
        raise InputError("crop: give a box or a sphere")

    def inside(means: Tensor) -> Tensor:  # (N, 3) -> (N,)
        if box is not None:
            low, high = (means.new_tensor([float(x) for x in corner]) for corner in box)
            return ((means >= low) & (means <= high)).all(-1)
        assert sphere is not None
        return (means - means.new_tensor([float(x) for x in sphere[0]])).norm(dim=-1) <= float(sphere[1])

    shape = "box" if box is not None else "sphere"
    if _stepped(scene):
        return _frame_by_frame(
            scene, lambda g: inside(g.means) == (keep == "inside"), "crop", f"lies {keep} the {shape}", keep=keep
        )
    with torch.no_grad():
        times = scene.taus.tolist() if time is None else [time]
        found = torch.stack([inside(scene.at(t).means) for t in times]).any(0)
    kept = found if keep == "inside" else ~found
    if not bool(kept.any()):
        raise InputError(f"crop: no Gaussian lies {keep} the {shape}, move or resize it")
    done = _edited(scene, "crop", keep=keep, count=int(kept.sum()))
    return replace(select(done, kept), surface=None)


def on_timeline(
    scene: Scene4D, frames: int, fps: float, loop: bool, timing: Literal["repeat", "hold", "stretch"] = "repeat"
) -> Scene4D:
    """A scene on another clip's frames, playing at its own speed.

    Args:
        timing: what happens when it is over: "repeat" from the start, "hold" the last frame; or "stretch" it to the whole
            clip instead, at another speed.
    """
    done = replace(scene, frames=frames, fps=fps, loop=loop)
    if scene.field is None or (timing == "stretch" and scene.loop == loop):
        return done
    # Seconds from frame 0 to tau = 1, here and there.
    whole = (frames if loop else max(frames - 1, 1)) / fps
    if timing == "stretch":
        # An open clip ends at its last frame: in a loop, that is one frame before the seam.
        knots = [(0.0, 0.0), (1 - 1 / frames, 1.0)] if loop else [(0.0, 0.0), (1.0, 1 - 1 / frames)]
        return replace(done, field=TimeMap(scene.field, knots))
    span, cycle = (scene.frames - 1) / scene.fps, duration(scene)
    if scene.loop and (timing == "repeat" or (loop and abs(cycle - whole) < 1e-6 * cycle)):
        return replace(done, field=TimeMap(scene.field, [(0, 0), (1, whole / cycle)], "repeat"))
    end = span / cycle if scene.loop else 1.0
    knots = []
    for i in range(math.ceil(whole / cycle + 1e-6) if timing == "repeat" else 1):
        # The last frame is shown as long as any, then it cuts to the first.
        knots += [(i * cycle / whole, 0.0), ((i * cycle + span) / whole, end), ((i + 1) * cycle / whole, end)]
    return replace(done, field=TimeMap(scene.field, knots))


def merge(
    scenes: Sequence[Scene4D],
    *,
    timing: Literal["repeat", "hold", "stretch"] = "repeat",
    frames: int | None = None,
    fps: float | None = None,
) -> Scene4D:
    """Several scenes as one, each moving as it does.

    The clip lasts as long as the longest, at the highest frame rate. It loops if all of them do and end together in it. The
    front camera is the first one's that there is.

    Args:
        timing: of the shorter ones, see :func:`on_timeline`.
        frames, fps: of the merged clip, in place of those.

    Raises:
        InputError: for no scenes.
    """
    if not scenes:
        raise InputError("merge: no scenes, connect at least one")
    moving = [scene for scene in scenes if scene.field is not None and scene.frames > 1] or list(scenes)
    rate = fps or max(scene.fps for scene in moving)
    length = max(duration(scene) for scene in moving)
    count = frames or max(1, round(length * rate))
    cycles = [count / rate / duration(scene) for scene in moving]
    together = timing == "stretch" or all(abs(c - round(c)) < 1e-3 and (timing == "repeat" or round(c) == 1) for c in cycles)
    loop = all(scene.loop for scene in moving) and together
    device = scenes[0].gaussians.device
    placed = [on_timeline(scene.to(device), count, rate, loop, timing) for scene in scenes]
    harmonics = max(scene.gaussians.sh.shape[-2] for scene in scenes)

    def padded(sh: Tensor) -> Tensor:  # (..., K, 3)
        return F.pad(sh, (0, 0, 0, harmonics - sh.shape[-2]))

    sets = [replace(scene.gaussians, sh=padded(scene.gaussians.sh)) for scene in placed]
    fields = [None if scene.field is None else scene.field.recolored(padded) for scene in placed]
    return Scene4D(
        Gaussians.cat(sets),
        Parts([len(s) for s in sets], fields) if any(field is not None for field in fields) else None,
        frames=count,
        fps=rate,
        loop=loop,
        front=next((scene.front for scene in scenes if scene.front is not None), None),
        meta={"edits": [{"edit": "merge", "timing": timing, "scenes": [scene.meta for scene in scenes]}]},
    )


# Colour and opacity


def recolor(
    scene: Scene4D,
    *,
    brightness: float = 1.0,
    contrast: float = 1.0,
    saturation: float = 1.0,
    hue: float = 0.0,
    gamma: float = 1.0,
    tint: Sequence[float] = (1.0, 1.0, 1.0),
) -> Scene4D:
    """Other colours, in this order: gamma, brightness, tint, contrast, saturation, hue.

    All but gamma are affine in the colour, so colours that depend on the view change exactly as a picture of them would. Gamma
    is applied to the constant colour; what depends on the view is scaled by its slope there.

    Args:
        brightness: factor on the colours.
        contrast: factor on their distance from mid-grey.
        saturation: factor on their distance from grey of the same luma; 0 is grey.
        hue: degrees around the grey axis, red to green to blue.
        gamma: exponent 1 / gamma; above 1 lifts the dark colours.
        tint: factors on red, green and blue.
    """
    if gamma <= 0 or brightness < 0 or contrast < 0 or saturation < 0:
        raise InputError("colour: gamma must be more than 0, and brightness, contrast and saturation at least 0")
    luma = torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64).expand(3, 3)
    eye, grey = torch.eye(3, dtype=torch.float64), torch.full((3, 3), 1 / 3, dtype=torch.float64)
    angle = math.radians(hue)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(3)
    turn = math.cos(angle) * eye + (1 - math.cos(angle)) * grey + math.sin(angle) * cross
    rest = turn @ (saturation * eye + (1 - saturation) * luma)
    matrix = rest @ (contrast * brightness * torch.diag(torch.tensor([float(x) for x in tint], dtype=torch.float64)))
    # Affine in the colour c = SH_C0 dc + 0.5 + ...: every coefficient turns by the matrix, the constant one takes the offset.
    offset = rest @ torch.full((3,), 0.5 * (1 - contrast), dtype=torch.float64)
    shift = (matrix.sum(1) * 0.5 + offset - 0.5) / SH_C0

    def changed(sh: Tensor) -> Tensor:  # (..., K, 3)
        if gamma != 1:
            color = (sh[..., :1, :] * SH_C0 + 0.5).clamp(1e-3, None)
            lifted = color ** (1 / gamma)
            sh = torch.cat([(lifted - 0.5) / SH_C0, sh[..., 1:, :] * (lifted / color / gamma)], -2)
        sh = sh @ matrix.T.to(sh)
        return torch.cat([sh[..., :1, :] + shift.to(sh), sh[..., 1:, :]], -2)

    gaussians = replace(scene.gaussians, sh=changed(scene.gaussians.sh))
    field = None if scene.field is None else scene.field.recolored(changed)
    done = _edited(
        scene, "recolor", brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, gamma=gamma, tint=list(tint)
    )
    return replace(done, gaussians=gaussians, field=field, surface=None)


def opacity(scene: Scene4D, gain: float | Sequence[tuple[float, float]] = 1.0, *, threshold: float = 0.0) -> Scene4D:
    """More or less opaque Gaussians; the faint ones can be left out.

    Args:
        gain: factor on the opacities; or pairs (time, factor), linear in between, to fade in and out over the clip.
        threshold: Gaussians that are fainter than this at every frame are removed, 0 to 1.

    Raises:
        InputError: for a gain below 0, or a threshold that leaves nothing.
    """
    knots = [(0.0, float(gain))] if isinstance(gain, int | float) else [(float(t), float(g)) for t, g in gain]
    if not knots or min(g for _, g in knots) < 0 or any(a[0] > b[0] for a, b in pairwise(knots)):
        raise InputError("opacity: give a gain of 0 or more, or (time, gain) pairs in the order of their times")
    done = _edited(scene, "opacity", gain=[list(knot) for knot in knots], threshold=threshold)
    constant = all(g == knots[0][1] for _, g in knots)
    if constant and (scene.field is None or "opacity_logits" not in scene.field.changes):
        logits = scaled_opacity(scene.gaussians.opacity_logits, knots[0][1])
        done = replace(done, gaussians=replace(scene.gaussians, opacity_logits=logits))
    elif not constant or knots[0][1] != 1:
        done = replace(done, field=Faded(scene.field, knots))
    if threshold > 0 and _stepped(done):
        return _frame_by_frame(done, lambda g: g.opacities >= threshold, None, f"is as opaque as {threshold:g}")
    if threshold > 0:
        with torch.no_grad():
            peak = torch.stack([done.at(t).opacities for t in done.taus.tolist()]).amax(0)
        if not bool((peak >= threshold).any()):
            raise InputError(f"threshold {threshold:g}: every Gaussian is fainter, choose less than {float(peak.max()):.3f}")
        done = select(done, peak >= threshold)
    return done


def fade(
    scene: Scene4D, gain: float = 1.0, seconds_in: float = 0.0, seconds_out: float = 0.0
) -> float | list[tuple[float, float]]:
    """Gains for :func:`opacity`: from nothing at the start and to nothing at the end, over so many seconds.

    Raises:
        InputError: for fades that last longer than the clip.
    """
    if not seconds_in and not seconds_out:
        return gain
    length = (scene.frames if scene.loop else max(scene.frames - 1, 1)) / scene.fps
    if seconds_in + seconds_out > length + 1e-6:
        raise InputError(f"fade: {seconds_in + seconds_out:g} s in a clip of {length:.2f} s, make it shorter")
    rising = [(0.0, 0.0), (seconds_in / length, gain)] if seconds_in else [(0.0, gain)]
    return [*rising, (1 - seconds_out / length, gain), (1.0, 0.0)] if seconds_out else rising


@torch.no_grad()
def importance(
    scene: Scene4D,
    *,
    views: int = 12,
    times: int = 4,
    size: int = 256,
    backend: str = "auto",
    progress: FrameProgress | None = None,
) -> Tensor:  # (N,)
    """How much pictures from all around would change without each Gaussian: the squared error, summed over their pixels.

    A pixel is linear in each opacity o_i, so without Gaussian i it changes by exactly o_i dC / do_i. The sum of its squares is
    estimated from one pass back a picture: with random signs on the pixels, the squared gradient of their sum has it as its
    mean (Hutchinson 1990). Opacities count up to 0.98, above which the gradient dies away.

    Args:
        views: cameras around, spread over the sphere.
        times: moments of the clip, evenly spread; 1 for a scene that stands still.
        size: side of the pictures, pixels.
        progress: called with the pictures done and all of them; it may raise to interrupt.
    """
    cameras = _around(scene, views, size)
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(len(scene.gaussians), device=scene.gaussians.device)
    moments = frame_times(1 if scene.field is None else min(times, scene.frames), scene.loop).tolist()
    together = max(1, _TOGETHER // len(total))
    for i, tau in enumerate(moments):
        gaussians = scene.at(tau)
        for start in range(0, views, together):
            some = cameras[start : start + together]
            batch = gaussians.map(lambda t: t.expand(len(some), *t.shape))  # noqa: B023
            backdrop = torch.rand(len(some), 1, 1, 1, 3, generator=generator).to(total)
            with torch.enable_grad():
                logits = batch.opacity_logits.clamp_max(_SATURATED).contiguous().requires_grad_()
                drawn = rasterize(replace(batch, opacity_logits=logits), some.reshape(len(some), 1), backend=backend)
                pictures = drawn.color + (1 - drawn.alpha)[..., None] * backdrop
                signs = torch.randint(0, 2, pictures.shape, generator=generator).to(pictures) * 2 - 1
                (gradient,) = torch.autograd.grad((pictures * signs).sum(), logits)
            # o dC/do = dC/dlogit / (1 - o)
            total += (gradient / (-logits).sigmoid()).square().sum(0)
            if progress is not None:
                progress(i * views + start + len(some), len(moments) * views)
    return total


@torch.no_grad()
def prune(
    scene: Scene4D,
    count: int | None = None,
    *,
    fraction: float | None = None,
    cover: bool = True,
    backend: str = "auto",
    scores: Tensor | None = None,  # (N,)
    progress: FrameProgress | None = None,
) -> Scene4D:
    """Fewer Gaussians, those that pictures of the scene would miss least left out.

    Those that stay keep their order and motion. They are chosen in :data:`_ROUNDS` rounds, since what one of two layers hides
    counts once the other is gone. A scene each of whose frames has Gaussians of its own is pruned frame by frame.

    Args:
        count: how many to keep, in each such frame.
        fraction: the share to keep, in place of a count.
        cover: let those that stay grow over the gaps that their neighbours leave.
        scores: a measure of your own, larger = kept, for a single round; :func:`importance` where None.
        progress: called with the steps done and all of them; it may raise to interrupt.

    Raises:
        InputError: where both or neither are given, or nothing would be left.
    """
    total = len(scene.gaussians)
    if (count is None) == (fraction is None):
        raise InputError("prune: give a count or a fraction to keep")
    if _stepped(scene) and scores is None:
        frames = [_visible(gaussians) for gaussians in scene.bake()]

        def pruned(index: int) -> Gaussians:
            def tell(step: int, steps: int) -> None:
                if progress is not None:
                    progress(index * steps + step, len(frames) * steps)

            still = Scene4D(frames[index], front=scene.front)
            return prune(still, count, fraction=fraction, cover=cover, backend=backend, progress=tell).gaussians

        return _of_frames(_edited(scene, "prune", count=count, fraction=fraction), [pruned(i) for i in range(len(frames))])
    wanted = round(total * fraction) if fraction is not None else count
    assert wanted is not None
    if wanted < 1:
        raise InputError(f"prune: {wanted} of {total} Gaussians would be left, keep at least 1")
    if wanted >= total:
        return scene
    done = _edited(scene, "prune", count=wanted)
    rounds = _ROUNDS if scores is None else 1
    for i in range(rounds):

        def tell(step: int, steps: int) -> None:
            if progress is not None:
                progress(i * steps + step, rounds * steps)  # noqa: B023

        ranks = importance(done, backend=backend, progress=tell) if scores is None else scores
        kept = ranks.topk(round(total * (wanted / total) ** ((i + 1) / rounds))).indices.sort().values
        fewer = select(done, kept)
        if cover and not _stepped(scene):
            growth = _growth(done.gaussians, kept)
            larger = replace(fewer.gaussians, log_scales=fewer.gaussians.log_scales + growth[:, None])
            fewer = replace(fewer, gaussians=larger, field=None if fewer.field is None else fewer.field.widened(growth))
        done = fewer
    return done


def _growth(gaussians: Gaussians, kept: Tensor) -> Tensor:  # (M,) int64 -> (M,)
    """What to add to the log scales of the kept Gaussians so that each also covers its share of what is left out around it."""
    from scipy.spatial import KDTree

    left = torch.ones(len(gaussians), dtype=torch.bool, device=kept.device)
    left[kept] = False
    tree: Any = KDTree(gaussians.means[kept].cpu().double().numpy())
    neighbours = min(_NEIGHBOURS, len(kept))
    _, nearest = tree.query(gaussians.means[left].cpu().double().numpy(), k=neighbours)
    nearest = torch.from_numpy(nearest.reshape(-1)).to(kept.device)
    cover = substance(gaussians)
    taken = cover[left].repeat_interleave(neighbours) / neighbours
    added = torch.zeros_like(cover[kept]).index_add_(0, nearest, taken)
    return (_GROWTH / 2 * (1 + added / cover[kept]).log()).clamp_max(math.log(2))


def _around(scene: Scene4D, views: int, size: int) -> Cameras:  # (V,)
    """Cameras spread over a sphere (a Fibonacci spiral), each of which sees the whole scene at every time."""
    radius, centre = _extent(scene)
    distance = 2 * radius * max((scene.front or DEFAULT_FRONT).distance, 2.0)
    i = torch.arange(views, dtype=torch.float32)
    elevations = torch.rad2deg(torch.asin(1 - 2 * (i + 0.5) / views))
    fovy = 2 * math.degrees(math.atan(1.1 * radius / distance))
    cameras = orbit(i * (180 * (3 - 5**0.5)), elevations, distance, fovy, size, size)
    poses = cameras.world_to_camera.clone()
    poses[:, :3, 3] -= poses[:, :3, :3] @ centre.cpu()
    return replace(cameras, world_to_camera=poses)


def _extent(scene: Scene4D) -> tuple[float, Tensor]:
    """Radius and centre (3,) of a ball around what can be seen over the clip."""
    means = []
    for tau in frame_times(1 if scene.field is None else min(scene.frames, 4), scene.loop).tolist():
        gaussians = scene.at(tau)
        seen = gaussians.opacities >= FAINT
        means.append(gaussians.means[seen] if bool(seen.any()) else gaussians.means)
    points = torch.cat(means)
    if len(points) > 1 << 20:  # quantiles take no more
        points = points[:: len(points) >> 20]
    centre = (points.quantile(0.005, 0) + points.quantile(0.995, 0)) / 2
    return max(float((points - centre).norm(dim=-1).quantile(0.99)), 1e-6), centre


def _stepped(scene: Scene4D) -> bool:
    """Whether each frame has Gaussians of its own."""
    return scene.field is not None and not scene.field.continuous


def _visible(gaussians: Gaussians) -> Gaussians:
    """Without those that fill a frame up; one at least."""
    seen = gaussians.opacities >= FAINT
    return gaussians.select(seen) if bool(seen.any()) else gaussians.map(lambda t: t[:1])


def _of_frames(scene: Scene4D, sets: list[Gaussians]) -> Scene4D:
    """The scene with other Gaussians at each frame."""
    made = scene_from_gaussians(sets, fps=scene.fps, loop=scene.loop, motion="steps")
    return replace(scene, gaussians=made.gaussians, field=made.field, surface=None)


@torch.no_grad()
def _frame_by_frame(
    scene: Scene4D, chosen: Callable[[Gaussians], Tensor], edit: str | None, what: str, **arguments: Any
) -> Scene4D:
    """Only the Gaussians that are chosen in each frame; a frame without any shows nothing."""
    sets = []
    for gaussians in scene.bake():
        kept = chosen(gaussians) & (gaussians.opacities >= FAINT)
        nothing = replace(gaussians, opacity_logits=torch.full_like(gaussians.opacity_logits, INVISIBLE))
        sets.append(gaussians.select(kept) if bool(kept.any()) else nothing.map(lambda t: t[:1]))
    if all(float(gaussians.opacities.max()) < FAINT for gaussians in sets):
        raise InputError(f"{edit or 'opacity'}: at no frame a Gaussian {what}, choose otherwise")
    return _of_frames(scene if edit is None else _edited(scene, edit, **arguments), sets)


def _edited(scene: Scene4D, edit: str, **arguments: Any) -> Scene4D:
    return replace(scene, meta={**scene.meta, "edits": [*scene.meta.get("edits", []), {"edit": edit, **arguments}]})
