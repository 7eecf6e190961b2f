"""Agreement of depth up to scale and shift, as monocular estimates are compared (Eigen et al. 2014, Ranftl et al. 2020)."""

from __future__ import annotations

import numpy as np

from ..files import InputError
from .base import Footage, metric


def fitted(depth: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (T, H, W), twice -> (N,), (N,)
    """Depth and the truth where both are, the depth with the scale and shift, one each for the clip, that bring it nearest.

    Raises:
        InputError: where nothing is in both.
    """
    both = (depth > 0) & (truth > 0)
    if both.sum() < 2:
        raise InputError("depth: result and reference have no pixel in common, look at their scale and their zeros")
    x, y = depth[both].astype(np.float64), truth[both].astype(np.float64)
    spread = x - x.mean()
    scale = (spread * (y - y.mean())).sum() / max(np.square(spread).sum(), 1e-12)
    return scale * spread + y.mean(), y


def _each(footage: Footage) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {name: fitted(footage.depth[name], true) for name, true in footage.true_depth.items() if name in footage.depth}


@metric("depth-error", text="mean |d - d*| / d* after scale and shift (AbsRel)", better="lower", needs=["depth"], ideal=0.0)
def _error(footage: Footage) -> dict[str, float]:
    return {name: float((np.abs(x - y) / y).mean()) for name, (x, y) in _each(footage).items()}


@metric(
    "depth-within", text="share of pixels within 5 % of the true depth after scale and shift", better="higher", needs=["depth"],
    ideal=1.0,
)  # fmt: skip
def _within(footage: Footage) -> dict[str, float]:
    return {name: float((np.abs(x - y) < 0.05 * y).mean()) for name, (x, y) in _each(footage).items()}
