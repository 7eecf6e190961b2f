"""Object-distance alignment (Align4D, arXiv 2607.02516): how far a fixed lens stands from the object, by the driving video
(VAOD), and by a multi-view prior that has a distance of its own (MAOD)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..cameras import Cameras, Crop, FrontCamera, orbit
from ..object3d import Object3D
from ..priors.base import Prior, Viewpoints
from ..video import DrivingVideo
from .curve import AlignmentCurve
from .focal import FocalAlignment, Progress

#: Vertical field of view, degrees, of Zero123's training cameras, and the fixed lens of Align4D and DreamGaussian4D.
LENS = 49.1

#: What a prior is told of the distance, see :class:`ObjectDistance`.
Meaning = Literal["delta", "literal", "zero", "implicit"]


@dataclass(frozen=True)
class ObjectDistance:
    """Where a fixed lens stands: as the driving video shows the object, and as a multi-view prior draws it best.

    Distances are in units of the object's longest side. A camera of another field of view that shows the object at the same
    size counts by its size: the half height of the picture at the object is ``distance * tan(fovy / 2)``.

    What a model is told of the distance, and from where its views are drawn in a fit, is open in the paper:

    ========  ==============  =====================================================================================
    meaning   views drawn at  told
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

    def told(
        self,
        azimuth: Tensor | float,  # (B,) degrees
        elevation: Tensor | float,  # (B,) degrees
        seen_azimuth: Tensor | float = 0.0,  # (B,) degrees
        seen_elevation: Tensor | float = 0.0,  # (B,) degrees
    ) -> Viewpoints:
        """What a prior is told of views, ``(B, 1)``, whose condition pictures were seen from ``seen_azimuth`` and elevation.

        Zero123's fourth number is the difference of the two distances: with "literal" it is the distance itself, as the
        picture's is given as 0.
        """
        distance, reference = {
            "delta": (self.model, self.visual),
            "literal": (self.model, 0.0),
        }.get(self.meaning, (self.visual, self.visual))
        angles = (torch.as_tensor(x, dtype=torch.float32).reshape(-1) for x in (azimuth, elevation, seen_azimuth, seen_elevation))
        a, e, seen_a, seen_e = (x[:, None] for x in torch.broadcast_tensors(*angles))
        seen = Viewpoints(seen_a, seen_e, torch.full_like(a, reference))
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
    """DreamGaussian4D's camera: a fixed distance, and the turn of the mesh that suits it best."""
    raise NotImplementedError


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
    """VAOD."""
    raise NotImplementedError


def align_model_distance(
    alignment: FocalAlignment,
    video: DrivingVideo,
    prior: Prior,
    *,
    meaning: Meaning = "delta",
    seed: int = 0,
    progress: Progress | None = None,
) -> ModelDistance:
    """MAOD."""
    raise NotImplementedError
