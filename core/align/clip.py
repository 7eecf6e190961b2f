"""A focal length for every frame of a clip, robustly smoothed (variant pla4d-v4; its details are ours)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras, Crop, FrontCamera
from ..scene.object3d import Object3D, render_object
from ..video import DrivingVideo
from .curve import AlignmentCurve


def focal_per_frame(
    video: DrivingVideo,
    meshes: Sequence[Object3D],
    front: FrontCamera,
    *,
    reach: float = 0.15,
    candidates: int = 31,
    resolution: int = 96,
    smoothness: float = 4.0,
) -> tuple[list[FrontCamera], AlignmentCurve]:
    """PLA4D's one-parameter search (Eq. 4) run on each frame, around the first frame's camera, then smoothed over time.

    The searched value is the relative change of tan(fovy / 2); distance and shift stay. With one mesh for the whole clip a
    pose change can look like a change of focal, so the result is worth having with one mesh a frame.

    Args:
        video: driving video of T frames.
        meshes: one aligned mesh, or T of them.
        front: the first frame's camera.
        reach: largest relative change looked at.
        candidates: values tried on each frame.
        resolution: of the renders, pixels.
        smoothness: weight of squared second differences against the frames' own values, which enter robustly (Huber).

    Returns:
        T cameras and the curve of the smoothed field of view (degrees) over frames; ``chosen`` is the first frame's.
    """
    small = video.resized(min(resolution, video.resolution))
    target = torch.cat([small.premultiplied, small.masks[..., None]], -1).cpu()  # (T, S, S, 4)
    best = np.empty(len(video))
    step = 2 * reach / (candidates - 1)
    for t in range(len(video)):
        mesh, wanted = meshes[min(t, len(meshes) - 1)], target[t]
        coarse = np.linspace(1 - reach, 1 + reach, candidates)
        middle = coarse[_errors(mesh, front, coarse, video.crop, wanted).argmin()]
        fine = np.linspace(middle - step, middle + step, 11)
        best[t] = _vertex(fine, _errors(mesh, front, fine, video.crop, wanted))
    smooth = robust_smooth(best / best[0], smoothness)
    fronts = [_scaled(front, float(s / smooth[0])) for s in smooth]
    fovy = torch.tensor([f.fovy for f in fronts])
    return fronts, AlignmentCurve(
        "field of view of each frame (degrees)", "frame", torch.arange(len(fronts)).float(), fovy, 0.0
    )


def robust_smooth(values: np.ndarray, smoothness: float, iterations: int = 20) -> np.ndarray:  # (T,) -> (T,)
    """Values with small second differences that outliers do not bend: least squares with Huber weights (IRLS)."""
    count = len(values)
    if count < 3:
        return np.full(count, float(np.median(values)))
    second = np.diff(np.eye(count), 2, axis=0)
    weight = np.ones(count)
    result = values
    for _ in range(iterations):
        result = np.linalg.solve(np.diag(weight) + smoothness * second.T @ second, weight * values)
        residual = np.abs(values - result)
        scale = 1.4826 * np.median(residual) + 1e-6
        weight = np.minimum(1.0, 1.5 * scale / np.maximum(residual, 1e-12))
    return result


def _scaled(front: FrontCamera, scale: float) -> FrontCamera:
    """The camera with tan(fovy / 2) times ``scale``."""
    return replace(front, fovy=2 * math.degrees(math.atan(scale * math.tan(math.radians(front.fovy) / 2))))


def _errors(mesh: Object3D, front: FrontCamera, scales: np.ndarray, crop: Crop, wanted: Tensor) -> np.ndarray:
    """Mean squared error of premultiplied colour and alpha against ``wanted`` (S, S, 4) for each scale."""
    cameras = Cameras.cat([_scaled(front, float(s)).cropped(crop, len(wanted)) for s in scales])
    view = render_object(mesh, cameras)
    return (torch.cat([view.color, view.alpha[..., None]], -1) - wanted).square().mean((1, 2, 3)).numpy()


def _vertex(x: np.ndarray, y: np.ndarray) -> float:
    """The minimum of a sampled curve, refined by a parabola through its neighbours."""
    i = int(y.argmin())
    if 0 < i < len(y) - 1:
        left, middle, right = y[i - 1 : i + 2]
        bend = left - 2 * middle + right
        if bend > 0:
            return float(x[i] + 0.5 * (left - right) / bend * (x[1] - x[0]))
    return float(x[i])
