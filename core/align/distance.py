"""Object-distance alignment (Align4D, arXiv 2607.02516): how far a fixed lens stands from the object, by the driving video
(VAOD), and by a multi-view prior that has a distance of its own (MAOD)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..cameras import Cameras, Crop, FrontCamera, orbit
from ..files import InputError
from ..priors.base import Prior, Viewpoints
from ..scene.object3d import Object3D, bounding_points, render_object
from ..scene.views import reframed
from ..video import DrivingVideo
from .curve import AlignmentCurve
from .focal import FocalAlignment, Progress, align_by, robust_search
from .solve import Target, turned_centre

log = logging.getLogger(__name__)

#: Vertical field of view, degrees, of Zero123's training cameras, and the fixed lens of Align4D and DreamGaussian4D.
LENS = 49.1

#: The paper's candidates: from 0.00001 to 3.00001 by 0.05.
STEP = 0.05
DISTANCES = 0.00001 + STEP * torch.arange(61, dtype=torch.float64)

#: Nearer candidates are left out.
NEAREST = 0.3

#: MAOD's candidates show at least this share of what of the object is in the pictures at the video's distance: nearer ones are
#: close-ups, which priors have never seen.
SEEN = 0.8

#: A dip of MAOD's curve less deep than this, in parts of the score, is the noise's.
RIPPLE = 0.02

#: Steps of a curve near its minimum.
FINE = 0.005

#: MAOD's views: azimuths of one-picture priors, degrees.
SIDES = (-90.0, 0.0, 90.0, 180.0)

#: Pictures are compared at this width at most, and so many are drawn at a time.
PIXELS, CHUNK = 256, 16

#: What a prior is given as the distance, see :class:`ObjectDistance`.
Meaning = Literal["delta", "literal", "zero", "implicit"]


@dataclass(frozen=True)
class ObjectDistance:
    """Where a fixed lens stands: as the driving video shows the object, and as a multi-view prior draws it best.

    Distances are in units of the object's longest side. A camera of another field of view that shows the object at the same
    size counts by its size: the half height of the picture at the object is ``distance * tan(fovy / 2)``.

    What a model is given as the distance, and from where its views are drawn in a fit, is open in the paper:

    ========  ==============  =====================================================================================
    meaning   views drawn at  given
    ========  ==============  =====================================================================================
    delta     ``model``       ``model - visual``, as Zero123 was trained: the picture's camera stands at ``visual``
    literal   ``visual``      ``model`` itself, most probably what the authors ran
    zero      ``visual``      0 (DreamGaussian4D)
    implicit  ``model``       0: models that know no distance, such as ImageDream
    ========  ==============  =====================================================================================

    Args:
        visual: d_VA, the video's distance.
        model: d_MA, the prior's.
        meaning: of the distance to the prior.
        fovy: of the lens, degrees.
    """

    visual: float
    model: float
    meaning: Meaning = "delta"
    fovy: float = LENS

    @property
    def rendered(self) -> float:
        """From how far novel views are drawn in a fit."""
        return self.model if self.meaning in ("delta", "implicit") else self.visual

    def cameras(
        self,
        azimuth: Tensor | float,  # (C,) degrees
        elevation: Tensor | float,  # (C,) degrees
        resolution: int,
        distance: float | None = None,
    ) -> Cameras:
        """The lens around the origin, square pictures, ``(C,)``; as far as :attr:`rendered` where no distance is given."""
        return orbit(azimuth, elevation, self.rendered if distance is None else distance, self.fovy, resolution, resolution)

    def viewpoints(
        self,
        azimuth: Tensor | float,  # (B,) or (B, V) degrees
        elevation: Tensor | float,  # (B,) or (B, V) degrees
        seen_azimuth: Tensor | float = 0.0,  # (B,) or (B, 1) degrees
        seen_elevation: Tensor | float = 0.0,  # (B,) or (B, 1) degrees
    ) -> Viewpoints:
        """What a prior is given for views, ``(B, V)``, whose condition pictures were seen from ``seen_azimuth`` and elevation.

        Zero123's fourth number is the difference of the two distances: with "literal" it is the distance itself, as the
        picture's is given as 0.
        """
        distances = {"delta": (self.model, self.visual), "literal": (self.model, 0.0)}
        distance, reference = distances.get(self.meaning, (self.visual, self.visual))
        device = next((x.device for x in (azimuth, elevation) if isinstance(x, Tensor)), torch.device("cpu"))
        columns = [
            x.float() if isinstance(x, Tensor) else torch.full((), float(x), device=device)
            for x in (azimuth, elevation, seen_azimuth, seen_elevation)
        ]
        columns = [x if x.ndim > 1 else x.reshape(-1, 1) for x in columns]
        a, e = torch.broadcast_tensors(*columns[:2])
        seen_a, seen_e = (x.expand(len(a), 1) for x in columns[2:])
        seen = Viewpoints(seen_a, seen_e, torch.full_like(seen_a, reference))
        return Viewpoints(a, e, torch.full_like(a, distance), seen)


def visual_distance(front: FrontCamera, crop: Crop, fovy: float = LENS) -> float:
    """d_VA of an aligned camera: from how far a lens of ``fovy`` shows as much of the object as the video's crop does.

    Half the crop's height at the origin, over tan(fovy / 2).
    """
    return front.extent * crop.size / crop.height / math.tan(math.radians(fovy) / 2)


@dataclass(frozen=True)
class ModelDistance:
    """MAOD's answer.

    Args:
        distance: both distances.
        curve: the score of every candidate; its chosen point is d_MA.
        fallback: whether there was no local minimum nearer than d_VA, so that d_MA is d_VA.
        report: numbers for a report, JSON-serialisable.
    """

    distance: ObjectDistance
    curve: AlignmentCurve
    fallback: bool
    report: dict[str, Any] = field(default_factory=dict)


def align_distance(
    mesh: Object3D,
    video: DrivingVideo,
    *,
    mode: Literal["robust", "literal"] = "robust",
    yaw: Literal["auto"] | float = "auto",
    elevation: float = 0.0,
    solve_elevation: bool = False,
    fovy: float = LENS,
    progress: Progress | None = None,
) -> FocalAlignment:
    """VAOD: the object distance at which the first frame shows the object, and the camera there.

    Args:
        mesh: a mesh or Gaussians, any size, place and turn about +Y; +Y up. One without colours is aligned by its mask.
        video: driving video.
        mode: ``literal`` is the paper's search, the distance of the fixed lens alone, by colours on white; ``robust`` solves
            field of view and shift as well, by colours and masks (:func:`~anchor4d.core.align.focal.robust_search`).
        yaw: degrees to turn the mesh about +Y so that its front faces +Z, or ``auto`` to detect them.
        elevation: of the camera, degrees, positive = from above.
        solve_elevation: let the robust search change the elevation.
        fovy: of the fixed lens, degrees.
        progress: called between stages.

    Returns:
        The alignment; its report has ``visual_distance``, d_VA, and its last curve is the error by distance.

    Raises:
        InputError: where the first frame has no foreground.
    """

    def search(mesh: Object3D, target: Target) -> tuple[FrontCamera, list[AlignmentCurve], float]:
        if mode == "literal":
            front, curve, error = literal_distance(mesh, target, fovy=fovy, elevation=elevation)
            return front, [curve], error
        front, curve, error = robust_search(
            mesh, target, elevation=elevation, solve_elevation=solve_elevation, progress=progress
        )
        return front, [curve, distance_curve(mesh, target, front, fovy=fovy)], error

    found = align_by(search, mesh, video, mode=f"{mode} distance", yaw=yaw, elevation=elevation, progress=progress)
    return _with_distance(found, video, fovy)


def fixed_camera(
    mesh: Object3D,
    video: DrivingVideo,
    *,
    distance: float = 1.5,
    fovy: float = LENS,
    elevation: float = 0.0,
    yaw: Literal["auto"] | float = "auto",
    progress: Progress | None = None,
) -> FocalAlignment:
    """DreamGaussian4D's camera: a fixed distance whatever the picture shows, and the turn of the mesh that then suits it best.

    Args:
        distance: in units of the mesh's longest side.
        fovy, elevation: of the camera, degrees.
        yaw: degrees to turn the mesh about +Y; ``auto`` tries every degree and takes the least squared difference on white.
        progress: called between stages.

    Raises:
        InputError: where the first frame has no foreground.
    """

    def front_of(target: Target) -> FrontCamera:
        return FrontCamera(fovy, distance, target.crop.width, target.crop.height, elevation=elevation)

    def detect(mesh: Object3D, target: Target, **_: Any) -> tuple[float, AlignmentCurve]:
        turns = torch.arange(-179, 181, dtype=torch.float64)  # cameras at azimuths 179 to -180
        goal = _goal(target)
        cameras = front_of(target).cropped(target.crop, len(goal), -turns)
        pose = cameras.world_to_camera  # each around where the mesh's centre will be once it is turned
        pose[:, :3, 3] -= (pose[:, :3, :3] @ turned_centre(mesh, -turns.deg2rad())[..., None])[..., 0]
        errors = _errors(mesh, cameras, goal, target.color)
        chosen = float(turns[errors.argmin()])
        return chosen, AlignmentCurve("Front by every degree", "turn about +Y (degrees)", turns, errors, chosen)

    def search(mesh: Object3D, target: Target) -> tuple[FrontCamera, list[AlignmentCurve], float]:
        front, goal = front_of(target), _goal(target)
        return front, [], float(_errors(mesh, front.cropped(target.crop, len(goal)), goal, target.color))

    found = align_by(search, mesh, video, mode="fixed", yaw=yaw, elevation=elevation, detect=detect, progress=progress)
    return _with_distance(found, video, fovy)


def literal_distance(
    mesh: Object3D, target: Target, *, fovy: float = LENS, elevation: float = 0.0
) -> tuple[FrontCamera, AlignmentCurve, float]:
    """VAOD as the paper has it: of :data:`DISTANCES`, that with the least mean squared difference on white, over all.

    Cameras inside the object's bounding box, or nearer than :data:`NEAREST`, are left out (methods note A12: the paper's range
    begins at 0.00001, where there is nothing to compare).

    Args:
        mesh: facing +Z, longest side 1, centred on the origin.
    """
    crop, goal = target.crop, _goal(target)
    fronts = [FrontCamera(fovy, float(d), crop.width, crop.height, elevation=elevation) for d in DISTANCES]
    cameras = Cameras.cat([front.cropped(crop, len(goal)) for front in fronts])
    usable = _usable(mesh, cameras)
    x, y = DISTANCES[usable], _errors(mesh, cameras[usable], goal, target.color)
    best = int(y.argmin())
    if best in (0, len(x) - 1):
        log.warning("object distance: the least error is at the end of the range, %.2f; try the robust search", x[best])
    front = replace(fronts[0], distance=float(x[best]))
    return front, AlignmentCurve("Object distance (VAOD, literal)", "object distance", x, y, front.distance), float(y[best])


def distance_curve(mesh: Object3D, target: Target, front: FrontCamera, *, fovy: float = LENS) -> AlignmentCurve:
    """Error of colours and masks, on white, while an aligned camera moves to and fro: the paper's distances, and every
    :data:`FINE` within :data:`STEP` of the aligned one.

    Args:
        fovy: of the lens whose distances these are, degrees; the camera keeps its own.
    """
    goal, visual = _goal(target), visual_distance(front, target.crop, fovy)
    count = round(STEP / FINE)
    near = visual + FINE * torch.arange(-count, count + 1, dtype=torch.float64)
    x = torch.cat([DISTANCES, near]).sort().values
    x = x[x > 0]
    moved = [replace(front, distance=front.distance * float(d) / visual) for d in x]
    cameras = Cameras.cat([f.cropped(target.crop, len(goal)) for f in moved])
    usable = _usable(mesh, cameras)
    y = _errors(mesh, cameras[usable], goal, target.color, mask=True)
    return AlignmentCurve("Object distance (VAOD)", "object distance", x[usable], y, visual)


@torch.no_grad()
def align_model_distance(
    alignment: FocalAlignment,
    video: DrivingVideo,
    prior: Prior,
    *,
    meaning: Meaning = "delta",
    fovy: float = LENS,
    times: Sequence[float] = (0.7, 0.8, 0.9),
    seed: int = 0,
    progress: Progress | None = None,
) -> ModelDistance:
    """MAOD: the distance at which a multi-view prior that is given the first frame finds the object's other views likeliest.

    The object is drawn from four sides at each of :data:`DISTANCES`, one noise is added to all pictures at the same late times,
    and the squared errors of the prior's predictions, with the condition alone, are averaged with weight 1 - abar. d_MA is the
    nearest local minimum below d_VA (:func:`model_minimum`), close-ups left out, or d_VA where there is none.

    Args:
        alignment: of the mesh with the video's first frame; the mesh needs colours.
        prior: an image-conditioned one with cameras. Of several pictures a sample (ImageDream, Eq. 11), a sample's views stand
            evenly around the object, those of its front half count, and the meaning is "implicit".
        meaning: of the distance to the prior.
        fovy: of the lens, degrees.
        times: diffusion times; the paper's are 700, 800 and 900 of 1000.
        seed: of the noise.
        progress: called after each distance with the pictures the prior has judged; it may raise to interrupt.

    Raises:
        InputError: for a prior that takes no picture or no cameras.
    """
    if not {"image", "cameras"} <= prior.conditions:
        raise InputError(
            f"object distance: prior {prior.name} is not conditioned on a picture and cameras; choose one that is "
            "(tiny, Zero123, ImageDream)"
        )
    started = time.perf_counter()
    front, mesh, count, size = alignment.front, alignment.mesh, prior.pictures, prior.resolution[0]
    if count > 1:
        meaning = "implicit"
    azimuths = torch.tensor(SIDES) if count == 1 else torch.arange(count) * (360 / count) - 90  # (A,)
    scored = (azimuths.abs() <= 90).to(prior.device) if count > 1 else slice(None)
    visual = visual_distance(front, video.crop, fovy)
    lens = ObjectDistance(visual, visual, meaning, fovy)
    background = torch.tensor(prior.background)
    first = replace(video, frames=video.frames[:1].cpu(), masks=video.masks[:1].cpu())
    condition = prior.condition(image=reframed(first, [front], lens.cameras(0.0, front.elevation, size), background))

    usable = torch.stack([_usable(mesh, lens.cameras(azimuths, front.elevation, size, float(d))).all() for d in DISTANCES])
    x = DISTANCES[usable]
    scores, areas = torch.empty(2, len(x), dtype=torch.float64)  # areas of the object at its distance, as far as pictures go
    noise = torch.randn(prior.latent_shape()[1:], generator=torch.Generator().manual_seed(seed)).to(prior.device)
    samples = len(azimuths) // count
    t = torch.tensor(times, device=prior.device).repeat_interleave(samples)
    weight = prior.schedule.coefficients(t)[1].square()  # 1 - abar
    for k, d in enumerate(x.tolist()):
        drawn = render_object(mesh, lens.cameras(azimuths, front.elevation, size, d), background)
        pictures, areas[k] = drawn.color, drawn.alpha.sum() * d**2
        latents = prior.encode(rearrange(pictures, "(s v) h w c -> s v h w c", v=count)).repeat(len(times), 1, 1, 1, 1)
        viewpoints = replace(lens, model=d).viewpoints(azimuths.reshape(samples, count), front.elevation, 0.0, front.elevation)
        viewpoints = viewpoints.map(lambda v: v.repeat(len(times), 1).to(prior.device))
        noisy = prior.schedule.add_noise(latents, noise.expand_as(latents), t)
        guess = prior.predict(noisy, t, condition, viewpoints, unconditional=False).conditional
        square = (guess - prior.schedule.target(latents, noise)).square().mean((2, 3, 4))  # (samples times, views)
        scores[k] = float((weight[:, None] * square)[:, scored].mean())
        if progress:
            progress((k + 1) / len(x), rearrange(pictures, "v h w c -> h (v w) c"))

    whole = (x >= visual) | (areas >= SEEN * areas[(x - visual).abs().argmin()])
    found, reason = model_minimum(x[whole], scores[whole], visual)
    distance = replace(lens, model=visual if found is None else found)
    if reason:
        log.warning("model distance: %s; the video's distance %.3f is taken", reason, visual)
    report = {
        "visual_distance": visual,
        "model_distance": distance.model,
        "meaning": meaning,
        "lens": fovy,
        "fallback": found is None,
        "reason": reason,
        "seconds": time.perf_counter() - started,
    }
    log.info("object distance: video %.3f, prior %.3f (%s)", visual, distance.model, meaning)
    curve = AlignmentCurve(f"Model distance (MAOD, {meaning})", "object distance", x, scores, distance.model)
    return ModelDistance(distance, curve, found is None, report)


def model_minimum(
    x: Tensor,  # (M,) rising
    y: Tensor,  # (M,)
    visual: float,
) -> tuple[float | None, str]:
    """MAOD's rule: of the local minima below ``visual``, the nearest to it; None, and why, where there is none.

    Scores are averaged over three neighbours first. A minimum has both neighbours higher, is at least :data:`RIPPLE` lower than
    the curve gets on either side of it, up to ``visual``, and lies at the vertex of the parabola through the three. The global
    minimum is of no interest: it often lies beyond ``visual``, where the object is lost in white.
    """
    near = int((x < visual).sum())
    if near < 2:
        return None, "no candidates nearer than the video's distance"
    padded = torch.cat([y[:1], y, y[-1:]])
    smooth = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    for k in range(min(near, len(x) - 1) - 1, 0, -1):
        left, middle, right = (float(v) for v in smooth[k - 1 : k + 2])
        ridge = float(min(smooth[:k].max(), smooth[k + 1 : near + 1].max()))
        if left > middle < right and middle < (1 - RIPPLE) * ridge:
            vertex = float(x[k]) + 0.5 * (left - right) / (left - 2 * middle + right) * float(x[k + 1] - x[k])
            return min(vertex, visual), ""
    least = float(x[smooth[:near].argmin()])
    return None, f"no local minimum nearer than the video's distance, the score up to there is least at {least:.2f}"


def _with_distance(found: FocalAlignment, video: DrivingVideo, fovy: float) -> FocalAlignment:
    """The alignment with d_VA in its report."""
    distance = visual_distance(found.front, video.crop, fovy)
    return replace(found, report=found.report | {"visual_distance": distance, "lens": fovy})


def _goal(target: Target) -> Tensor:  # (S, S, 4)
    """The frame, premultiplied, at most :data:`PIXELS` wide."""
    image = target.image
    if len(image) > PIXELS:
        small = F.interpolate(image.movedim(-1, 0)[None], (PIXELS, PIXELS), mode="bilinear", antialias=True)
        image = small[0].movedim(0, -1)
    return image


def _errors(mesh: Object3D, cameras: Cameras, goal: Tensor, color: bool, mask: bool = False) -> Tensor:  # (C,)
    """Mean squared differences on white, of masks where the mesh has no colours; ``mask``: of both, added."""
    white = goal[..., :3] + 1 - goal[..., 3:]
    values = []
    for start in range(0, len(cameras), CHUNK):
        drawn = render_object(mesh, cameras[start : start + CHUNK], torch.ones(3), supersample=1)
        errors = (drawn.color - white).square().mean((1, 2, 3)) if color else 0.0
        if mask or not color:
            errors = errors + (drawn.alpha - goal[..., 3]).square().mean((1, 2))
        values.append(errors)
    return torch.cat(values)


def _usable(mesh: Object3D, cameras: Cameras) -> Tensor:  # (C,) bool
    """Which cameras stand outside the object's bounding box and not nearer than :data:`NEAREST`."""
    points, at = bounding_points(mesh), cameras.positions
    inside = ((at >= points.amin(0)) & (at <= points.amax(0))).all(-1)
    return ~inside & (at.norm(dim=-1) >= NEAREST)
