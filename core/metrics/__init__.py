"""How close rendered views are to the truth: psnr, ssim, iou, motion, frozen.

Pictures are compared on white, as (T, H, W, 4) arrays: colour composited on white, then the mask (:func:`on_white`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..files import InputError
from ..pictures import open_picture, readable

#: A frame's PSNR counts at most this much, dB: nothing is gained by being nearly perfect on one frame.
PSNR_CAP = 40.0
#: RGB pictures without alpha: a pixel is object where a channel lies below this on white.
WHITE = 0.98
SCORES = ("psnr", "ssim", "iou", "motion", "frozen")


def psnr(images: np.ndarray, truth: np.ndarray) -> np.ndarray:  # (T, H, W, 3), (T, H, W, 3) -> (T,)
    """Peak signal-to-noise ratio of each frame, dB, at most 40."""
    error = np.square(images - truth).mean((1, 2, 3))
    return np.minimum(PSNR_CAP, -10 * np.log10(error + 1e-12))


def ssim(images: np.ndarray, truth: np.ndarray) -> np.ndarray:  # (T, H, W, C), (T, H, W, C) -> (T,)
    """Structural similarity of each frame (Wang et al. 2004), averaged over channels.

    Uniform 7x7 windows inside the picture, sample covariance, K = (0.01, 0.03), values in [0, 1]: scikit-image's
    ``structural_similarity``, which a fit need not have for its report.

    Raises:
        ValueError: for pictures smaller than the window.
    """
    from scipy.ndimage import uniform_filter

    if min(images.shape[1:3]) < 7:
        raise ValueError(f"ssim needs pictures of at least 7x7 pixels, not {images.shape[2]}x{images.shape[1]}")

    def mean(x: np.ndarray) -> np.ndarray:
        return uniform_filter(x, 7, axes=(0, 1))[3:-3, 3:-3]

    sample = 49 / 48
    scores = []
    for x, y in zip(images, truth):
        ux, uy = mean(x), mean(y)
        vx, vy, vxy = sample * (mean(x * x) - ux * ux), sample * (mean(y * y) - uy * uy), sample * (mean(x * y) - ux * uy)
        c1, c2 = 0.01**2, 0.03**2
        scores.append(((2 * ux * uy + c1) * (2 * vxy + c2) / ((ux**2 + uy**2 + c1) * (vx + vy + c2))).mean())
    return np.array(scores)


def iou(masks: np.ndarray, truth: np.ndarray) -> np.ndarray:  # (T, H, W), (T, H, W) -> (T,)
    """Intersection over union of each frame's masks at alpha 0.5; 0 where both are empty."""
    a, b = masks > 0.5, truth > 0.5
    return (a & b).sum((1, 2)) / np.maximum(1, (a | b).sum((1, 2)))


def motion(images: np.ndarray, truth: np.ndarray) -> float:  # (T, H, W, 3), (T, H, W, 3)
    """Share of the true change since frame 0 that is explained: 1 is perfect, a frozen object scores 0."""
    moved, true = images - images[:1], truth - truth[:1]
    return float(1 - np.square(moved - true).sum() / max(1e-12, np.square(true).sum()))


def frozen(truth: np.ndarray) -> float:  # (T, H, W, 3)
    """PSNR of the truth's own first frame held still, mean over frames 1 to the last: what standing still earns."""
    return float(psnr(np.broadcast_to(truth[:1], truth[1:].shape), truth[1:]).mean())


def on_white(images: Tensor | np.ndarray) -> np.ndarray:  # (T, H, W, 3) or straight (T, H, W, 4) -> (T, H, W, 4) float64
    """Pictures as they are compared: on white, with their mask; RGB is taken as already on white."""
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
    array = array / 255.0 if array.dtype == np.uint8 else array.astype(np.float64)
    if array.shape[-1] == 4:
        alpha = array[..., 3:]
        return np.concatenate([array[..., :3] * alpha + 1 - alpha, alpha], -1)
    return np.concatenate([array, (array.min(-1, keepdims=True) < WHITE).astype(np.float64)], -1)


def score(truth: np.ndarray, images: np.ndarray) -> dict[str, float]:  # (T, H, W, 4), (T, H, W, 4), both from on_white
    """All metrics of one view. psnr and frozen are means over frames 1 to the last, ssim and iou over all frames.

    Raises:
        InputError: for different shapes or fewer than two frames.
    """
    if truth.shape != images.shape:
        raise InputError(
            f"renders of {images.shape[0]} frames at {images.shape[2]}x{images.shape[1]} where the truth has "
            f"{truth.shape[0]} at {truth.shape[2]}x{truth.shape[1]}, render the same frames at the same size"
        )
    if len(truth) < 2:
        raise InputError("one frame to compare, motion needs at least 2")
    g, p = truth[..., :3], images[..., :3]
    return {
        "psnr": float(psnr(p[1:], g[1:]).mean()),
        "ssim": float(ssim(p, g).mean()),
        "iou": float(iou(images[..., 3], truth[..., 3]).mean()),
        "motion": motion(p, g),
        "frozen": frozen(g),
    }


def mean_scores(rows: list[dict[str, float]]) -> dict[str, float]:
    """Each metric's mean over several views or cases."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def load_frames(folder: str | os.PathLike[str]) -> np.ndarray:  # (T, H, W, 4) float64
    """The .png pictures of a folder in order of their names, as :func:`on_white` gives them.

    Raises:
        InputError: for a missing or empty folder, an unreadable picture or different sizes.
    """
    folder = Path(folder)
    names = sorted(p for p in folder.iterdir() if p.suffix == ".png") if folder.is_dir() else []
    if not names:
        raise InputError(f"{folder}: no .png pictures, render this view first")
    frames: list[np.ndarray] = []
    for name in names:
        with readable(name), open_picture(name) as image:
            frames.append(on_white(np.asarray(image.convert("RGBA" if "A" in image.getbands() else "RGB"))))
        if frames[-1].shape != frames[0].shape:
            raise InputError(f"{name}: its size differs from {names[0].name}, render all frames at one size")
    return np.stack(frames)


def read_case(case: str | os.PathLike[str]) -> dict[str, Any]:
    """A benchmark case's ``case.json``.

    Raises:
        InputError: where it is missing or garbled.
    """
    path = Path(case) / "case.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {**data, "test_azimuths": [*data["test_azimuths"]], "name": str(data["name"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a readable case description ({error}), choose a case folder") from None


def score_case(
    case: str | os.PathLike[str], renders: str | os.PathLike[str], frames: Sequence[int] | None = None
) -> dict[str, dict[str, float]]:
    """Scores of a case's rendered views.

    Args:
        case: folder with case.json, ``front/NNN.png`` and ``views/<azimuth>/NNN.png``.
        renders: folder with ``0/NNN.png`` for the driving view and ``<azimuth>/NNN.png`` for every test azimuth.
        frames: which of the case's frames the renders show; all where None.

    Returns:
        Metrics by view: "0", each test azimuth, and "mean of test views".

    Raises:
        InputError: naming the view that is missing or does not fit.
    """
    case, renders = Path(case), Path(renders)
    azimuths = [str(a) for a in read_case(case)["test_azimuths"]]
    rows: dict[str, dict[str, float]] = {}
    for view in ["0", *azimuths]:
        truth = load_frames(case / "front" if view == "0" else case / "views" / view)
        truth = truth if frames is None else truth[list(frames)]
        try:
            rows[view] = score(truth, load_frames(renders / view))
        except InputError as error:
            raise InputError(str(error) if str(renders) in str(error) else f"{renders / view}: {error}") from None
    rows["mean of test views"] = mean_scores([rows[a] for a in azimuths])
    return rows
