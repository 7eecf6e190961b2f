"""Pictures of a scene over time, from cameras that stand or move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .cameras import Cameras, FrontCamera
from .render import Render, rasterize
from .scene import Scene4D
from .video import DrivingVideo

#: Where a scene without an aligned camera is seen from.
DEFAULT_FRONT = FrontCamera(fovy=49.1, distance=2.0, width=512, height=512)

#: How many frames are drawn at once: at most so many, of at most so many pixels together.
CHUNK_FRAMES, CHUNK_PIXELS = 8, 2**22

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


def renders(
    scene: Scene4D,
    cameras: Cameras,  # (C,), or (F, C) to move with time
    taus: Tensor | None = None,  # (F,) in [0, 1]
    *,
    backend: str = "auto",
    progress: FrameProgress | None = None,
) -> Iterator[Render]:
    """A scene over time from every camera: one render (C, H, W) without a background for each time, on the scene's device.

    A few frames are drawn at once, which spares most of the field's time, but only as many as fit into little memory.

    Args:
        cameras: standing still, or a batch for each time.
        taus: times of the frames; the clip's own where None.

    Raises:
        ValueError: where cameras that move are more or fewer than the times.
    """
    times = scene.taus if taus is None else taus
    moving = len(cameras.batch) == 2
    if moving and len(cameras) != len(times):
        raise ValueError(f"cameras for {len(cameras)} frames, but {len(times)} times, give as many of both")
    pixels = cameras.batch[-1] * cameras.width * cameras.height
    chunk = max(1, min(CHUNK_FRAMES, CHUNK_PIXELS // max(pixels, 1)))
    for start, end in pairwise([*range(0, len(times), chunk), len(times)]):
        with torch.no_grad():
            drawn = rasterize(scene.at(times[start:end]), cameras[start:end] if moving else cameras, backend=backend)
        for index in range(end - start):
            if progress is not None:
                progress(start + index + 1, len(times))
            yield Render(drawn.color[index], drawn.alpha[index], drawn.depth[index])


def render_film(
    scene: Scene4D,
    cameras: Cameras,  # (F,), or (1,) to stand still
    taus: Tensor | None = None,  # (F,) in [0, 1]
    *,
    background: Tensor | None = None,  # (3,)
    backend: str = "auto",
    progress: FrameProgress | None = None,
) -> Iterator[Tensor]:  # (H, W, 4) or (H, W, 3)
    """The frames of a film, one after the other, on the CPU: a long one never lies in memory whole.

    Args:
        cameras: one for each frame.
        taus: the clip's moment in each frame; the clip's own times, repeated as often as the cameras last, where None.
        background: colour to draw over; straight-alpha RGBA where None.
    """
    if taus is None:
        taus = scene.taus if len(cameras) == 1 else repeated(scene, len(cameras))
    standing = len(cameras) == 1 != len(taus)
    for render in renders(scene, cameras if standing else cameras.reshape(-1, 1), taus, backend=backend, progress=progress):
        if background is None:
            yield straight_alpha(render)[0].cpu()
        else:
            yield (render.color + (1 - render.alpha[..., None]) * background.to(render.color))[0].clamp(0, 1).cpu()


def render_frames(
    scene: Scene4D,
    cameras: Cameras,  # (C,), or (F, C) to move with time
    taus: Tensor | None = None,  # (F,) in [0, 1]
    *,
    backend: str = "auto",
    progress: FrameProgress | None = None,
) -> Tensor:  # (C, F, H, W, 4)
    """All pictures of :func:`renders`, straight-alpha RGBA in [0, 1] on the CPU."""
    return torch.stack([straight_alpha(r).cpu() for r in renders(scene, cameras, taus, backend=backend, progress=progress)], 1)


def repeated(scene: Scene4D, count: int) -> Tensor:  # (count,)
    """Times of the clip played again and again, one frame of the clip a frame of the film."""
    return scene.taus.repeat(-(-count // scene.frames))[:count]


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
