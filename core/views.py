"""Pictures of a scene over time, from cameras that stand or move."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .cameras import Cameras, FrontCamera
from .render import Render, rasterize
from .scene import Scene4D
from .video import DrivingVideo

#: Where a scene without an aligned camera is seen from.
DEFAULT_FRONT = FrontCamera(fovy=49.1, distance=2.0, width=512, height=512)

#: Called after each frame with the number done and the number of all; it may raise to interrupt.
FrameProgress = Callable[[int, int], None]


def scene_cameras(
    scene: Scene4D,
    azimuths: Tensor | float | Sequence[float] = 0.0,  # (C,) degrees
    elevation: float | None = None,
    size: int | None = None,
) -> Cameras:
    """The scene's front camera turned to each azimuth, with the driving video's framing and, by default, its size.

    Args:
        azimuths: degrees, 0 = the driving video's view, positive = counter-clockwise seen from above.
        elevation: degrees, positive = from above; the front camera's own where None.
        size: longer side of the pictures, pixels.
    """
    front = scene.front or DEFAULT_FRONT
    cameras = front.cameras(azimuths, elevation)
    if size is None:
        return cameras
    scale = size / max(cameras.width, cameras.height)
    return cameras.resized(max(1, round(cameras.width * scale)), max(1, round(cameras.height * scale)))


def render_frames(
    scene: Scene4D,
    cameras: Cameras,  # (C,), or (F, C) to move with time
    taus: Tensor | None = None,  # (F,) in [0, 1]
    *,
    backend: str = "auto",
    progress: FrameProgress | None = None,
) -> Tensor:  # (C, F, H, W, 4)
    """A scene over time from every camera, straight-alpha RGBA in [0, 1] on the CPU.

    Args:
        cameras: standing still, or a batch for each time.
        taus: times of the frames; the clip's own where None.
    """
    times: list[float] = (scene.taus if taus is None else taus).tolist()
    pictures = []
    for index, tau in enumerate(times):
        with torch.no_grad():
            render = rasterize(scene.at(tau), cameras[index] if len(cameras.batch) == 2 else cameras, backend=backend)
        pictures.append(straight_alpha(render).cpu())
        if progress is not None:
            progress(index + 1, len(times))
    return torch.stack(pictures, 1)


def turning_cameras(scene: Scene4D, resolution: int, turns: int = 4) -> tuple[Cameras, Tensor]:
    """A camera that frames the whole object and circles it once while the clip plays ``turns`` times.

    Returns:
        cameras (turns * frames, 1) and times (turns * frames,) for :func:`render_frames`.
    """
    count = turns * scene.frames
    azimuths = torch.arange(count, dtype=torch.float32) * (360 / count)
    return (scene.front or DEFAULT_FRONT).centred(resolution, azimuths).reshape(count, 1), scene.taus.repeat(turns)


def straight_alpha(render: Render) -> Tensor:  # (..., H, W, 4)
    """RGBA with straight colours in [0, 1] of a render without a background."""
    alpha = render.alpha[..., None]
    return torch.cat([(render.color / alpha.clamp_min(1e-8)).clamp(0, 1), alpha], -1)


def reframed(
    video: DrivingVideo,
    fronts: Sequence[FrontCamera],
    camera: Cameras,  # (1,) square
    background: Tensor,  # (3,)
) -> Tensor:  # (T, S, S, 3)
    """The video's frames as a camera that looks along the filming ones shows them: only shifted and scaled.

    At the origin's depth the pictures agree; a camera at another distance would see other perspective around it, which no
    frame shows.

    Args:
        fronts: the aligned camera of each frame; one for all where there is one.
    """
    rgba = torch.cat([video.frames * video.masks[..., None], video.masks[..., None]], -1).movedim(-1, 1)
    size = camera.width
    cameras = Cameras.cat([front.cropped(video.crop, video.resolution) for front in fronts]).to(rgba)
    filmed, wanted = cameras.K, camera.K.to(rgba)
    grid = torch.stack(torch.meshgrid(*[torch.arange(size, device=rgba.device) + 0.5] * 2, indexing="xy"), -1)
    # Pixels of the wanted picture a pixel of the frame, where the origin is.
    scale = wanted[:, 0, 0] / camera.world_to_camera[:, 2, 3].to(rgba) / filmed[:, 0, 0] * cameras.world_to_camera[:, 2, 3]
    pixels = (grid - wanted[:, None, :2, 2]) / scale[:, None, None, None] + filmed[:, None, None, :2, 2]
    pixels = pixels.expand(len(rgba), size, size, 2) / video.resolution * 2 - 1
    # Pictures are made smaller here more often than larger: average first, as far as that goes evenly.
    shrink = max(1, int(1 / float(scale[0])))
    shown = F.grid_sample(F.avg_pool2d(rgba, shrink), pixels, mode="bilinear", padding_mode="zeros", align_corners=False)
    shown = shown.movedim(1, -1)
    return shown[..., :3] + (1 - shown[..., 3:]) * background.to(shown)


def turning(scene: Scene4D, resolution: int, turns: int = 4) -> tuple[Scene4D, Cameras]:
    """A scene whose clip repeats ``turns`` times while a camera that frames the whole object circles it once.

    Returns:
        what :func:`render_frames` takes: the scene is repeated by the cameras, (turns * frames, 1).
    """
    count = turns * scene.frames
    azimuths = torch.arange(count, dtype=torch.float32) * (360 / count)
    return scene, (scene.front or DEFAULT_FRONT).centred(resolution, azimuths).reshape(count, 1)
