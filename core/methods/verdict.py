"""Whether a run's result can be good: does the object fit the video's first frame, and does the fit follow the clip?

The numbers and where they lie for right and wrong objects are in docs/benchmarks.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from ..align import FocalAlignment
from ..align.solve import STAGES, Target, View
from ..scene.object3d import render_object
from ..scene.scene import Scene4D
from ..scene.views import driving_cameras, render_frames
from ..video import DrivingVideo

Word = Literal["good", "doubtful", "wrong"]

#: Robust error of the aligned object in the first frame, colours and mask together, a unit of the object's area: above the
#: first number doubtful, above the second wrong.
ERROR = (0.012, 0.03)
#: Intersection over union of its mask with the frame's: below the first doubtful, below the second wrong.
OVERLAP = (0.9, 0.75)
#: The same of the fitted scene over the whole clip, mean over frames.
FOLLOWED = (0.7, 0.5)
#: Pixels that the clip is compared at.
SIZE = 128


@dataclass(frozen=True)
class Verdict:
    """What to think of a result.

    Args:
        word: the worst that any of the numbers says.
        reasons: a line for each number that is not good, with what to try.
        error, overlap: of the aligned object in the first frame.
        followed: overlap of the scene with the clip, None before the fit.
    """

    word: Word
    reasons: tuple[str, ...]
    error: float
    overlap: float
    followed: float | None = None

    @property
    def line(self) -> str:
        """The verdict as one line."""
        return f"verdict: {self.word}" + (f"; {'; '.join(self.reasons)}" if self.reasons else "")

    def report(self) -> dict[str, Any]:
        """For report.json."""
        return asdict(self)


def fit_of_object(video: DrivingVideo, alignment: FocalAlignment) -> tuple[float, float]:
    """How far the aligned object is from the first frame: its robust error, and the overlap of the masks in [0, 1]."""
    target = Target.of(video, 0, color=alignment.mesh.has_color)
    crop, size = video.crop, video.resolution
    scale = (size / crop.size, size / crop.size)
    view = View(target.image, crop, (crop.x, crop.y), scale, target.known, target.shared)
    render = render_object(alignment.mesh, alignment.front.cropped(crop, size), supersample=2)
    drawn = torch.cat([render.color, render.alpha[..., None]], -1).cpu()
    error = float(view.error(view.residuals(drawn, target.color), STAGES[-1][1]))
    return error, _overlap(view.seen(drawn)[0, ..., 3], view.seen(target.image)[..., 3])


def judge(video: DrivingVideo, alignment: FocalAlignment, scene: Scene4D | None = None) -> Verdict:
    """The verdict on an alignment, and on the fit to the clip where there is one.

    Args:
        video: on the CPU.
        scene: the fitted scene, on the CPU.
    """
    error, overlap = fit_of_object(video, alignment)
    reasons: list[str] = []
    words: list[Word] = []

    def weigh(value: float, limits: tuple[float, float], reason: str) -> None:
        if value > limits[0]:
            words.append("wrong" if value > limits[1] else "doubtful")
            reasons.append(reason)

    apart = 1 - overlap, (1 - OVERLAP[0], 1 - OVERLAP[1])
    weigh(
        *apart,
        f"the object's outline and the first frame's agree by {overlap:.0%}; is it this object, in this pose, upright? "
        "Turn it (--up, --yaw), or leave it out and let the first frame be inflated",
    )
    if not words:
        weigh(
            error,
            ERROR,
            f"the outline fits but the colours do not (error {error:.3f}); a model without its texture is better given without "
            "colours, they are then taken from the frame",
        )
    followed = None
    if scene is not None:
        small = video.resized(min(SIZE, video.resolution))
        drawn = render_frames(scene, driving_cameras(small, alignment.front))[0]
        masks = drawn[..., 3], small.masks
        if small.known is not None:
            masks = masks[0] * small.known, masks[1] * small.known
        shared = [_overlap(a, b) for a, b in zip(*masks) if bool((b > 0.5).any())]
        followed = sum(shared) / max(len(shared), 1)
        weigh(
            1 - followed,
            (1 - FOLLOWED[0], 1 - FOLLOWED[1]),
            f"the result covers {followed:.0%} of the clip's outlines; take a shorter or slower clip, or preset standard",
        )
    word: Word = "wrong" if "wrong" in words else "doubtful" if words else "good"
    return Verdict(word, tuple(reasons), error, overlap, followed)


def _overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a > 0.5, b > 0.5
    return float((a & b).sum() / (a | b).sum().clamp_min(1))
