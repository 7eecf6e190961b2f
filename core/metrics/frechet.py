"""Fréchet distances of videos: FVD of clips and of sets, FVD-16, FID-VID.

The papers of this field measure a video against a video, one sample against one. There is no covariance of one sample:
Consistent4D's script, which they share, takes the variance over the 400 logits in its place. :func:`clip_distance` is that
number, :func:`frechet_distance` the distance of sets, exact for any number of samples; of fewer samples than features the
covariance is degenerate, and the number falls with more samples: it compares only with numbers of as many.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .base import ALL, Footage, metric
from .i3d import FEWEST, load_i3d
from .inception import load_inception

#: Frames of the windows of FVD-16, clips or frames that a network sees at once.
WINDOW, BATCH = 16, 8


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:  # (N, D), (M, D)
    """Fréchet distance of the normal distributions with the means and covariances of two sets (Dowson and Landau 1982).

    |m_a - m_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^1/2). With S = X^T X of centred, scaled samples, the last trace is the sum of the
    singular values of X_a X_b^T: exact, and defined for any number of samples (S = 0 for one).
    """
    means, roots = [], []
    for samples in (np.asarray(a, np.float64), np.asarray(b, np.float64)):
        means.append(samples.mean(0))
        centred = (samples - means[-1]) / np.sqrt(max(1, len(samples) - 1))
        roots.append(np.linalg.qr(centred, mode="r"))  # as much as X, of at most D rows
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    traces = sum(np.square(root).sum() for root in roots)
    return float(max(0.0, np.square(means[0] - means[1]).sum() + traces - 2 * cross))


def clip_distance(a: np.ndarray, b: np.ndarray) -> float:  # (D,), (D,)
    """FVD of one clip against one, as Consistent4D's script gives it: |a - b|^2 + (s_a - s_b)^2.

    s is the standard deviation over the D logits, what numpy below 2.2 returns for the covariance of a single sample (later
    versions return no number).
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.square(a - b).sum() + (a.std(ddof=1) - b.std(ddof=1)) ** 2)


def _features(network: Callable[[torch.Tensor], torch.Tensor], pictures: np.ndarray, device: str) -> np.ndarray:
    """A network's features of pictures or clips, a few at once: (N, ..., 4) -> (N, D)."""
    found = []
    for start in range(0, len(pictures), BATCH):
        batch = torch.from_numpy(np.ascontiguousarray(pictures[start : start + BATCH, ..., :3])).float().to(device)
        with torch.no_grad():
            found.append(network(batch).cpu().double().numpy())
    return np.concatenate(found)


def _windows(clip: np.ndarray) -> np.ndarray:  # (T, ...) -> (N, 16, ...)
    """Windows of 16 frames, one after another from the first; what is left at the end is the last 16."""
    starts = list(range(0, len(clip) - WINDOW + 1, WINDOW))
    if starts[-1] + WINDOW < len(clip):
        starts.append(len(clip) - WINDOW)
    return np.stack([clip[start : start + WINDOW] for start in starts])


@metric(
    "fvd",
    text="Fréchet video distance (Unterthiner et al. 2018) of clip against clip as Consistent4D has it, I3D of Kinetics-400",
    better="lower",
    needs=["truth"],
    models=("i3d-k400",),
    frames=FEWEST,
    ideal=0.0,
)
def _fvd(footage: Footage) -> dict[str, float]:
    i3d = footage.network("i3d-k400", load_i3d)
    return {
        name: clip_distance(*(_features(i3d, clip[None], footage.device)[0] for clip in (images, truth)))
        for name, images, truth in footage.pairs()
    }


@metric(
    "fvd-16",
    text="fvd of windows of 16 frames, their mean",
    better="lower",
    needs=["truth"],
    models=("i3d-k400",),
    frames=WINDOW,
    ideal=0.0,
)
def _fvd16(footage: Footage) -> dict[str, float]:
    i3d = footage.network("i3d-k400", load_i3d)
    found = {}
    for name, images, truth in footage.pairs():
        ours, theirs = (_features(i3d, _windows(clip), footage.device) for clip in (images, truth))
        found[name] = float(np.mean([clip_distance(a, b) for a, b in zip(ours, theirs)]))
    return found


@metric(
    "fvd-set",
    text="Fréchet video distance of all views' windows of 16 frames as two sets; degenerate below 401 windows",
    better="lower",
    needs=["truth"],
    models=("i3d-k400",),
    frames=WINDOW,
    ideal=0.0,
)
def _fvd_set(footage: Footage) -> dict[str, float]:
    i3d = footage.network("i3d-k400", load_i3d)
    pairs = footage.pairs()
    ours = np.concatenate([_windows(images) for _, images, _ in pairs])
    theirs = np.concatenate([_windows(truth) for _, _, truth in pairs])
    return {ALL: frechet_distance(*(_features(i3d, clips, footage.device) for clips in (ours, theirs)))}


@metric(
    "fid-vid",
    text="Fréchet distance of a view's frames as two sets, as STAG4D has it, Inception of FID; degenerate below 2049 frames",
    better="lower",
    needs=["truth"],
    models=("inception-fid",),
    frames=2,
    ideal=0.0,
)
def _fid_vid(footage: Footage) -> dict[str, float]:
    inception = footage.network("inception-fid", load_inception)
    return {
        name: frechet_distance(*(_features(inception, clip, footage.device) for clip in (images, truth)))
        for name, images, truth in footage.pairs()
    }
