"""What an objective is: a weight schedule and a scalar of the step's renders."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras, Crop, FrontCamera
from ..files import InputError
from ..gaussians import Gaussians
from ..render import Render, ScreenStatistics, rasterize
from ..scene.object3d import Object3D
from ..video import DrivingVideo

if TYPE_CHECKING:
    from ..deformation import DeformationField


class Objective(Protocol):
    """One term of a fit. Implementations are small dataclasses; their fields are their settings.

    One with a field ``share`` above 0 is left out until step ``share_step``, and scaled there so that its gradient on what is
    trained is that share of all other terms'; or that of ``probe(step)``, for a term whose gradient there and then says little
    of how strong it is.
    """

    name: ClassVar[str]

    def __call__(self, step: FitStep) -> Tensor:
        """The weighted loss at this step, a scalar."""
        ...


@dataclass(eq=False)
class FitStep:
    """What a step shows its objectives. Renders are made when first asked for and shared between objectives.

    Args:
        index, total: this step and the number of steps.
        canonical: the canonical Gaussians.
        field: the deformation field; None in the static stage.
        frames: the clip's frames of this step, (B,).
        taus: their times, (B,).
        driving: the driving video; None where no video drives the object.
        times: of all frames of the fit, (T,).
        fronts: the aligned front camera of each frame of the clip; one for all where its length is 1.
        resolution: of this step's front renders, pixels.
        background: colour behind this step's renders and targets, (3,).
        generator: source of every random choice.
        still: the Gaussians as the fit found them, not changed by it.
        meshes: the object as it was given, or one of each frame of the clip; empty where there is none.
        loop: whether the clip's last frame is followed by its first.
        tracking: while frames are tracked one by one: this frame, its tracked neighbour, and the one before that.
        stiffness: factor that regularisers put on their weights.
        backend: renderer.
        statistics: one is added by every render of the step, for density control; None where nobody asks.
    """

    index: int
    total: int
    canonical: Gaussians
    field: DeformationField | None
    frames: Tensor
    taus: Tensor
    driving: DrivingVideo | None
    times: Tensor
    fronts: list[FrontCamera]
    resolution: int
    background: Tensor
    generator: torch.Generator
    still: Gaussians
    meshes: list[Object3D] = dataclasses.field(default_factory=list)
    loop: bool = False
    tracking: tuple[int, int, int] | None = None
    stiffness: float = 1.0
    backend: str = "auto"
    statistics: list[ScreenStatistics] | None = None

    @property
    def rho(self) -> float:
        """Progress in [0, 1]: 0 at the first step, 1 at the last."""
        return self.index / max(self.total - 1, 1)

    @property
    def video(self) -> DrivingVideo:
        """The driving video.

        Raises:
            InputError: where there is none, so that an objective that asks for it has no place in this fit.
        """
        if self.driving is None:
            raise InputError("objectives: one of them compares with a driving video, and this fit has none; unplug it")
        return self.driving

    @property
    def frame_count(self) -> int:
        """Frames of the whole clip."""
        return len(self.times) if self.driving is None else len(self.driving)

    @cached_property
    def gaussians(self) -> Gaussians:
        """The object at this step's frames, (B, N, ...)."""
        if self.field is None:
            return self.canonical.map(lambda t: t.expand(len(self.taus), *t.shape))
        return self.field(self.canonical, self.taus)

    @cached_property
    def front_cameras(self) -> Cameras:
        """The front camera of each of this step's frames, (B, 1); of a fit without a video, a square of its picture."""
        front = self.fronts[0]
        side = max(front.width, front.height)
        whole = Crop((front.width - side) / 2, (front.height - side) / 2, side, front.width, front.height)
        if len(self.fronts) == 1:
            camera = front.cropped(whole if self.driving is None else self.driving.crop, self.resolution)
            cameras = Cameras(
                camera.world_to_camera.expand(len(self.frames), 4, 4),
                camera.K.expand(len(self.frames), 3, 3),
                camera.width,
                camera.height,
            )
        else:
            cameras = Cameras.cat([self.fronts[int(t)].cropped(self.video.crop, self.resolution) for t in self.frames])
        return cameras.to(self.canonical.device).reshape(len(self.frames), 1)

    def render(self, gaussians: Gaussians, cameras: Cameras, background: Tensor | None = None) -> Render:
        """:func:`rasterize` with this step's renderer and statistics, on its background or another."""
        statistics = None
        if self.statistics is not None:
            statistics = ScreenStatistics()
            self.statistics.append(statistics)
        behind = self.background if background is None else background
        return rasterize(gaussians, cameras, behind, backend=self.backend, statistics=statistics)

    @cached_property
    def front(self) -> Render:
        """The object seen by the front camera at each of this step's frames, (B, 1, H, W, ...)."""
        return self.render(self.gaussians, self.front_cameras)

    @cached_property
    def target(self) -> tuple[Tensor, Tensor]:
        """The driving video on this step's background and its masks, (B, 1, H, W, 3) and (B, 1, H, W)."""
        color, mask = video_pyramid(self.video, self.resolution)
        color, mask = color[self.frames][:, None], mask[self.frames][:, None]
        return color + (1 - mask[..., None]) * self.background, mask


def video_pyramid(video: DrivingVideo, resolution: int) -> tuple[Tensor, Tensor]:
    """The video's premultiplied colours (T, R, R, 3) and masks (T, R, R) at a resolution, kept for next time."""
    cache: dict[int, tuple[Tensor, Tensor]] = video.__dict__.setdefault("_pyramid", {})
    if resolution not in cache:
        rgba = torch.cat([video.frames * video.masks[..., None], video.masks[..., None]], -1).movedim(-1, 1)
        if resolution != video.resolution:
            rgba = F.interpolate(rgba, size=(resolution, resolution), mode="bilinear", antialias=True, align_corners=False)
        rgba = rgba.movedim(1, -1).contiguous()
        cache[resolution] = rgba[..., :3].contiguous(), rgba[..., 3].contiguous()
    return cache[resolution]
