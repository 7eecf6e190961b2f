"""Consistency over time: jitter, and what optical flow finds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from einops import reduce

from .base import Footage, metric

#: By how much flow there and back may miss, squared, of the way and in pixels: beyond, a pixel is hidden in one of the frames
#: (Sundaram et al. 2010).
MISS, SLACK = 0.01, 0.5
#: Pixels of a side that flow is estimated at, at most: larger pictures are averaged to a whole part of their size.
SIDE = 160


def jitter(images: np.ndarray) -> float:  # (T, H, W, 4)
    """Root mean square of x(t-1) - 2 x(t) + x(t+1) over what the object ever covers, in [0, 4]: flicker and jerks."""
    ever = images[..., 3].max(0) > 0.5
    if not ever.any():
        return 0.0
    colors = images[:, ever, :3]
    return float(np.sqrt(np.square(colors[:-2] - 2 * colors[1:-1] + colors[2:]).mean()))


def jitter_error(images: np.ndarray, truth: np.ndarray) -> float:  # (T, H, W, 4), twice
    """The same of the difference to the truth: jerks that the truth has count only where they are missing."""
    ever = (images[..., 3].max(0) > 0.5) | (truth[..., 3].max(0) > 0.5)
    if not ever.any():
        return 0.0
    error = images[:, ever, :3] - truth[:, ever, :3]
    return float(np.sqrt(np.square(error[:-2] - 2 * error[1:-1] + error[2:]).mean()))


def flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # (H, W, 3), twice -> (2, H, W)
    """Rows and columns that each pixel of ``a`` moves by to its place in ``b`` (iterative Lucas-Kanade, by scikit-image)."""
    from skimage.registration import optical_flow_ilk

    return optical_flow_ilk(a.mean(-1), b.mean(-1), radius=5, num_warp=5)


def smaller(images: np.ndarray) -> tuple[np.ndarray, int]:  # (T, H, W, C) -> (T, H / k, W / k, C), k
    """Pictures of at most :data:`SIDE` pixels a side, each pixel the mean of k x k; what is left over at the end is cut off."""
    k = -(-max(images.shape[1:3]) // SIDE)
    height, width = (side // k * k for side in images.shape[1:3])
    return reduce(images[:, :height, :width], "t (h a) (w b) c -> t h w c", "mean", a=k, b=k), k


def carried(picture: np.ndarray, motion: np.ndarray) -> np.ndarray:  # (H, W, C), (2, H, W) -> (H, W, C)
    """What lies where each pixel moves to: ``picture`` at its place plus ``motion``."""
    from scipy.ndimage import map_coordinates

    places = np.indices(motion.shape[1:]) + motion
    return np.stack([map_coordinates(c, places, order=1, mode="nearest") for c in np.moveaxis(picture, -1, 0)], -1)


def visible(there: np.ndarray, back: np.ndarray) -> np.ndarray:  # (2, H, W), (2, H, W) -> (H, W) bool
    """Where the way there and back ends at its start: the pixel is to be seen in both frames."""
    returned = carried(np.moveaxis(back, 0, -1), there)
    miss = np.square(there + np.moveaxis(returned, -1, 0)).sum(0)
    return miss < MISS * (np.square(there).sum(0) + np.square(returned).sum(-1)) + SLACK


def warp_error(images: np.ndarray) -> float:  # (T, H, W, 4)
    """Mean squared difference of each frame to the next one carried back by optical flow, over what both show of the object.

    Lai et al., ECCV 2018, E_warp. 0 where no pixel of the object is to be seen in two frames.
    """
    total, count = 0.0, 0
    for a, b in pairwise(smaller(images)[0]):
        there, back = flow(a[..., :3], b[..., :3]), flow(b[..., :3], a[..., :3])
        seen = visible(there, back) & (a[..., 3] > 0.5)
        error = np.square(a[..., :3] - carried(b[..., :3], there)).mean(-1)
        total, count = total + float(error[seen].sum()), count + int(seen.sum())
    return total / max(1, count)


def flow_error(images: np.ndarray, truth: np.ndarray) -> float:  # (T, H, W, 4), twice
    """Mean distance of the result's optical flow to the truth's, pixels, over the true object (end-point error)."""
    total, count = 0.0, 0
    (images, factor), (truth, _) = smaller(images), smaller(truth)
    for t in range(len(truth) - 1):
        inside = truth[t, ..., 3] > 0.5
        miss = flow(images[t, ..., :3], images[t + 1, ..., :3]) - flow(truth[t, ..., :3], truth[t + 1, ..., :3])
        total, count = total + factor * float(np.sqrt(np.square(miss).sum(0))[inside].sum()), count + int(inside.sum())
    return total / max(1, count)


@metric("jitter", text="root mean square of frames' second differences: flicker and jerks", better="lower", frames=3)
def _jitter(footage: Footage) -> dict[str, float]:
    return {name: jitter(images) for name, images in footage.views.items()}


@metric(
    "jitter-error",
    text="the same of the difference to the truth",
    better="lower",
    needs=["truth"],
    frames=3,
    ideal=0.0,
)
def _jitter_error(footage: Footage) -> dict[str, float]:
    return {name: jitter_error(images, truth) for name, images, truth in footage.pairs()}


@metric(
    "warp-error",
    text="frames against the next, carried back by optical flow (Lai et al. 2018): flow consistency, no truth needed",
    better="lower",
    packages=("skimage",),
    frames=2,
)
def _warp_error(footage: Footage) -> dict[str, float]:
    return {name: warp_error(images) for name, images in footage.views.items()}


@metric(
    "flow-error",
    text="distance of the optical flow to the truth's, pixels",
    better="lower",
    needs=["truth"],
    packages=("skimage",),
    frames=2,
    ideal=0.0,
)
def _flow_error(footage: Footage) -> dict[str, float]:
    return {name: flow_error(images, truth) for name, images, truth in footage.pairs()}
