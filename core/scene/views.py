"""Pictures of a scene over time, from cameras that stand or move."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras, FrontCamera, quaternion_to_matrix
from ..gaussians import SH_C0, Gaussians, neighbours
from ..progress import pulse
from ..render import Render, rasterize
from ..render.torch_backend import NEAR
from ..video import DrivingVideo, moving_fronts
from .scene import Scene4D

#: Where a scene without an aligned camera is seen from.
DEFAULT_FRONT = FrontCamera(fovy=49.1, distance=2.0, width=512, height=512)

#: How many frames are drawn at once: at most so many, of at most so many pixels together.
CHUNK_FRAMES, CHUNK_PIXELS = 8, 2**22

#: Share of a film's longer side that the object takes at least in the driving video's framing, and that it gets elsewhere.
SHOWN, FILM_FILL = 0.5, 0.8
#: Times at which an object is looked at to frame it.
FILM_TIMES = 9

#: Gaussians whose shortest axis is typically so many times shorter than the next are flat.
FLAT = 2.0
#: By how many powers of e the nearest counts more than the farthest in a map of depth.
SHARPNESS = 12.0
#: The grey of the farthest point in a picture of depth, so that it stands out from the black of nothing.
FARTHEST = 0.1

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
    cameras = _placed(front.cameras(azimuths, elevation), *placement(scene))
    if size is None:
        return cameras
    scale = size / max(cameras.width, cameras.height)
    return cameras.resized(max(1, round(cameras.width * scale)), max(1, round(cameras.height * scale)))


@torch.no_grad()
def film_cameras(
    scene: Scene4D,
    azimuths: Tensor | float | Sequence[float] = 0.0,  # (C,) degrees
    elevation: float | None = None,
    size: int | None = None,
) -> Cameras:
    """:func:`scene_cameras` for films to look at: the object is whole and large enough, over its whole motion.

    The driving video's framing is kept where the object takes at least :data:`SHOWN` of a side of every picture and lies inside
    all of them. Elsewhere the pictures are enlarged, all alike, and centred so that it takes :data:`FILM_FILL`; the cameras
    stand where they stood.
    """
    cameras = scene_cameras(scene, azimuths, elevation, size)
    moved = scene.at(torch.linspace(0, 1, FILM_TIMES) if scene.field is not None else torch.zeros(1))
    opaque = moved.opacities > 0.1
    step = max(1, int(opaque.sum()) // 2**14)
    points, scales = (values[opaque][::step].float().cpu() for values in (moved.means, moved.scales))
    if not len(points):
        return cameras
    local = torch.einsum("cij,nj->cni", cameras.world_to_camera[:, :3, :3], points) + cameras.world_to_camera[:, None, :3, 3]
    if bool((local[..., 2] < NEAR).any()):
        return cameras
    pixels = torch.einsum("cij,cnj->cni", cameras.K, local)
    pixels = pixels[..., :2] / pixels[..., 2:]
    # A Gaussian is seen for about one and a half standard deviations.
    reach = 1.5 * scales.amax(-1)[None, :, None] * cameras.K[:, None, [0, 1], [0, 1]] / local[..., 2:]
    low, high = (pixels - reach).quantile(0.002, 1), (pixels + reach).quantile(0.998, 1)  # (C, 2)
    picture = torch.tensor([cameras.width, cameras.height], dtype=low.dtype)
    shares = ((high - low) / picture).amax(1)
    if bool((shares >= SHOWN).all() and (low >= 0).all() and (high <= picture).all()):
        return cameras
    zoom = FILM_FILL / float(shares.amax())
    K = cameras.K.clone()
    K[:, :2] *= zoom
    K[:, :2, 2] += picture / 2 - zoom * (low + high) / 2
    return replace(cameras, K=K)


def driving_cameras(video: DrivingVideo, front: FrontCamera) -> Cameras:  # (1,), or (T, 1) where the frames were moved
    """What a driving video's frames are seen by, at its resolution."""
    cameras = Cameras.cat([each.cropped(video.crop, video.resolution) for each in moving_fronts(video, front)])
    return cameras if len(cameras) == 1 else cameras.reshape(len(cameras), 1)


def object_cameras(
    scene: Scene4D,
    size: int,
    azimuths: Tensor | float | Sequence[float] = 0.0,  # (C,) degrees
    elevation: float | None = None,
) -> Cameras:
    """Square pictures of the whole object in the front camera's perspective; arguments as of :func:`scene_cameras`."""
    return _placed((scene.front or DEFAULT_FRONT).centred(size, azimuths, elevation), *placement(scene))


def placement(scene: Scene4D) -> tuple[float, Tensor]:  # (3,)
    """How many times larger than a unit object at the origin a scene is, and where its middle lies.

    Ours have the front camera that says where they stand, so they are 1 and (0, 0, 0), as is whatever else is like them; splats
    of other programs may lie anywhere.
    """
    if scene.front is not None:
        return 1.0, torch.zeros(3)
    with torch.no_grad():
        moved = scene.at(torch.tensor([0.0, 0.5, 1.0] if scene.field is not None else [0.0]))
    points = moved.means[moved.opacities > 0.1] if (moved.opacities > 0.1).any() else moved.means.flatten(0, 1)
    points = points[:: max(1, len(points) // 2**20)].float().cpu()
    low, high = points.quantile(0.005, 0), points.quantile(0.995, 0)
    side = float((high - low).max())
    if side < 1e-6 or (side > 0.5 and float(torch.maximum(-low, high).max()) < 0.6):
        return 1.0, torch.zeros(3)
    return side, (low + high) / 2


def _placed(cameras: Cameras, scale: float, centre: Tensor) -> Cameras:
    """Cameras that see a scene of this :func:`placement` as the given ones see a unit object at the origin."""
    if scale == 1 and not centre.any():
        return cameras
    poses = cameras.world_to_camera.clone()
    poses[..., :3, 3] = scale * poses[..., :3, 3] - (poses[..., :3, :3] @ centre.to(poses))
    return replace(cameras, world_to_camera=poses)


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
    done = 0
    for moved, seen in _chunks(scene, cameras, times):
        pulse()
        drawn = rasterize(moved, seen, backend=backend)
        for color, alpha, depth in zip(drawn.color, drawn.alpha, drawn.depth):
            done += 1
            if progress is not None:
                progress(done, len(times))
            yield Render(color, alpha, depth)


def render_maps(
    scene: Scene4D,
    cameras: Cameras,  # (C,), or (F, C) to move with time
    taus: Tensor | None = None,  # (F,) in [0, 1]
    *,
    backend: str = "auto",
) -> Iterator[tuple[Tensor, Tensor]]:  # (C, H, W), (C, H, W, 3)
    """Depth and normals of what :func:`renders` draws, both zero where nothing is.

    Depth is along the camera's axis, in world units, of the nearest surface: each Gaussian is drawn in the colour
    exp(-k (z - z0)) and the logarithm taken, so that what shines through from behind hardly counts. Normals are unit vectors in
    the camera's frame as OpenGL has it, x right, y up, z to the viewer; Gaussians are drawn in the colours of theirs, since
    their depth is too bumpy for slopes.
    """
    # Where each moment is a set of its own, a Gaussian's frame does not turn with the surface.
    steady = scene.field is None or scene.field.continuous
    own = None
    if steady:
        with torch.no_grad():
            own = surface_normals(scene.at(0.0).detach())[None]
    for moved, seen in _chunks(scene, cameras, scene.taus if taus is None else taus):
        pulse()
        across = own
        if across is None:
            across = torch.stack([surface_normals(moved.map(lambda t, i=i: t[i])) for i in range(len(moved.means))])
        items, views = len(moved.means), seen.batch[-1]
        seen = seen.to(moved.means)
        if len(seen.batch) == 1:
            poses, K = seen.world_to_camera.expand(items, views, 4, 4), seen.K.expand(items, views, 3, 3)
            seen = Cameras(poses, K, seen.width, seen.height)
        rotation = seen.world_to_camera[..., :3, :3].mT
        places = moved.means[:, None] @ rotation + seen.world_to_camera[..., None, :3, 3]  # (B, C, N, 3)
        normals = (quaternion_to_matrix(moved.quats) @ across[..., None])[:, None, ..., 0] @ rotation
        normals = torch.where((normals * places).sum(-1, keepdim=True) > 0, -normals, normals)
        z = places[..., 2].clamp_min(NEAR)
        step = max(1, z.shape[-1] // 2**20)
        near, far = z[..., ::step].quantile(z.new_tensor([0.005, 0.995]), -1)[..., None]  # (B, C, 1) each
        range_ = (far - near).clamp_min(1e-3 * far) / SHARPNESS
        nearness = torch.exp((near - z) / range_).clamp_max(2.0)
        shared = {k: v[:, None].expand(items, views, *v.shape[1:]) for k, v in moved.tensors().items()}
        # The third part of a normal follows from the others, since it looks to the viewer.
        colors = torch.stack([0.5 + 0.5 * normals[..., 0], 0.5 - 0.5 * normals[..., 1], nearness], -1)
        sh = ((colors - 0.5) / SH_C0)[..., None, :]
        drawn = rasterize(Gaussians(**shared | {"sh": sh}), seen.reshape(items, views, 1), backend=backend)
        color, alpha = drawn.color[:, :, 0], drawn.alpha[:, :, 0]  # (B, C, H, W, 3), (B, C, H, W)
        depth, maps = torch.zeros_like(alpha), torch.zeros_like(color)
        there = alpha > 1e-3
        mean = color[there] / alpha[there][:, None]
        xy = 2 * mean[:, :2] - 1
        maps[there] = torch.cat([xy, (1 - xy.square().sum(-1, keepdim=True)).clamp_min(0).sqrt()], -1)
        item, view = there.nonzero(as_tuple=True)[:2]
        depth[there] = near[item, view, 0] - range_[item, view, 0] * mean[:, 2].clamp_min(1e-6).log()
        yield from zip(depth, maps)


def surface_normals(gaussians: Gaussians) -> Tensor:  # (N, 3)
    """The direction across the surface in each Gaussian's own frame, of unknown sign.

    The shortest axis of flat Gaussians; where they are round, the one across the plane that fits a Gaussian's 16 neighbours.
    """
    scales = gaussians.log_scales.sort(dim=-1).values
    if float((scales[:, 1] - scales[:, 0]).median()) > math.log(FLAT) or len(gaussians) < 4:
        return F.one_hot(gaussians.log_scales.argmin(-1), 3).to(gaussians.means)
    near = gaussians.means[neighbours(gaussians.means, 16)]  # (N, 16, 3)
    near = near - near.mean(1, keepdim=True)
    across = torch.linalg.eigh(near.mT @ near).eigenvectors[..., 0]
    return (quaternion_to_matrix(gaussians.quats).mT @ across[..., None])[..., 0]


def depth_film(
    depth: Tensor,  # (F, H, W) world units
    alpha: Tensor,  # (F, H, W)
) -> Tensor:  # (F, H, W)
    """Pictures of depth as depth-guided models take them: inverse depth, the nearest white, the farthest dark, nothing black.

    One scale for the whole film, from the nearest to the farthest of what is seen, but for half a percent at either end.
    """
    inverse = 1 / depth.clamp_min(1e-6)
    seen = [frame[there] for frame, there in zip(inverse, alpha > 0.5) if there.any()]
    if not seen:
        return torch.zeros_like(depth)
    ends = torch.stack([s[:: max(1, len(s) // 2**20)].quantile(s.new_tensor([0.005, 0.995])) for s in seen])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    shade = ((inverse - low) / max(high - low, 1e-9)).clamp(0, 1)
    return (FARTHEST + (1 - FARTHEST) * shade) * alpha


def _chunks(scene: Scene4D, cameras: Cameras, times: Tensor) -> Iterator[tuple[Gaussians, Cameras]]:
    """A few moments of a scene at once, (B, N, ...), with their cameras, (C,) or (B, C)."""
    moving = len(cameras.batch) == 2
    if moving and len(cameras) != len(times):
        raise ValueError(f"cameras for {len(cameras)} frames, but {len(times)} times, give as many of both")
    pixels = cameras.batch[-1] * cameras.width * cameras.height
    chunk = max(1, min(CHUNK_FRAMES, CHUNK_PIXELS // max(pixels, 1)))
    for start, end in pairwise([*range(0, len(times), chunk), len(times)]):
        with torch.no_grad():
            moved = scene.at(times[start:end]).detach()
        yield moved, cameras[start:end] if moving else cameras


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
    return object_cameras(scene, resolution, azimuths).reshape(count, 1), scene.taus.repeat(turns)


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
    places = cameras.world_to_camera[:, :3, 3]
    origin = filmed[:, :2, 2] + filmed[:, [0, 1], [0, 1]] * places[:, :2] / places[:, 2:]  # where the frames show it
    # Pixels of the wanted picture a pixel of the frame, where the origin is.
    scale = wanted[:, 0, 0] / camera.world_to_camera[:, 2, 3].to(rgba) / filmed[:, 0, 0] * cameras.world_to_camera[:, 2, 3]
    pixels = (grid - wanted[:, None, :2, 2]) / scale[:, None, None, None] + origin[:, None, None]
    pixels = pixels.expand(len(rgba), size, size, 2) / video.resolution * 2 - 1
    # Pictures are made smaller here more often than larger: average first, as far as that goes evenly.
    shrink = max(1, int(1 / float(scale[0])))
    shown = F.grid_sample(F.avg_pool2d(rgba, shrink), pixels, mode="bilinear", padding_mode="zeros", align_corners=False)
    shown = shown.movedim(1, -1)
    return shown[..., :3] + (1 - shown[..., 3:]) * background.to(shown)
