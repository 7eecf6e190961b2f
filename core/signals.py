"""Signals about the motion besides the driving video: depth of its frames, point tracks, films of other sides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .cameras import Cameras
from .files import InputError
from .identity import canonical, fingerprint
from .video import DrivingVideo

#: What depth maps hold: "depth" grows away from the camera, "inverse" towards it; "auto" is found out by the aligned object.
DEPTH_KINDS = ("auto", "inverse", "depth")
#: For what one scale and shift of depth maps hold: the whole clip, or each frame for itself.
DEPTH_SPANS = ("clip", "frame")
#: How optical flow of the driving video is found.
FLOWS = ("dis",)
#: Width over height of depth maps and of the driving video's picture may differ by this much: sizes are rounded by most models.
ASPECT = 0.03


@dataclass(frozen=True, eq=False)
class DepthMaps:
    """Relative depth of every frame of the driving video, up to scale and shift.

    Args:
        values: of the driving video's whole pictures at any size, or of its crop; NaN where unknown.
        kind: of :data:`DEPTH_KINDS`.
        span: of :data:`DEPTH_SPANS`.
        cropped: whether they show the driving video's square crop alone.
        source: what to call them in messages.
        identity: of the files they were read from; "" where their content is their identity.
    """

    values: Tensor  # (T, H, W)
    kind: str = "auto"
    span: str = "clip"
    cropped: bool = False
    source: str = "depth"
    identity: str = ""

    def __post_init__(self) -> None:
        for word, known in ((self.kind, DEPTH_KINDS), (self.span, DEPTH_SPANS)):
            if word not in known:
                raise InputError(f"{self.source}: {word!r} is unknown, choose one of {', '.join(known)}")
        if self.values.dim() != 3 or self.values.numel() == 0:
            raise InputError(f"{self.source}: shape {tuple(self.values.shape)}, give depth maps as (frames, height, width)")

    def through(self, video: DrivingVideo) -> DepthMaps:
        """The maps as the driving video's crop shows them, (T, S, S).

        Raises:
            InputError: for another number of frames, or pictures of another shape.
        """
        maps, crop = self.values.float(), video.crop
        if len(maps) != len(video):
            raise InputError(f"{self.source}: {len(maps)} depth maps where the video has {len(video)} frames, give one a frame")
        height, width = maps.shape[1:]
        size = (crop.size, crop.size) if self.cropped else (crop.width, crop.height)
        if abs(width * size[1] / (height * size[0]) - 1) > ASPECT:
            what = "crop" if self.cropped else "picture"
            raise InputError(
                f"{self.source}: {width}x{height} is not the shape of the video's {what}, {size[0]:g}x{size[1]:g}; give depth "
                f"of the whole {what}"
            )
        corner = (0.0, 0.0) if self.cropped else (crop.x, crop.y)
        at = (torch.arange(video.resolution) + 0.5) * crop.size / video.resolution
        x, y = ((at + c) / s * 2 - 1 for c, s in zip(corner, size))
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).expand(len(maps), -1, -1, -1)
        known = maps.isfinite()
        both = torch.stack([maps.nan_to_num(0, 0, 0) * known, known.float()], 1)
        value, share = F.grid_sample(both, grid, mode="bilinear", padding_mode="zeros", align_corners=False).unbind(1)
        shown = torch.where(share > 0.99, value / share.clamp_min(0.5), torch.nan)
        return replace(self, values=shown, cropped=True, identity=self.identity or fingerprint(self.values, crop))


@dataclass(frozen=True, eq=False)
class PointTracks:
    """Points followed through the driving video.

    Args:
        points: pixels (x right, y down) of the driving video's whole picture; the centre of the first pixel is (0.5, 0.5).
        visible: where a point is seen, and its place known.
        source: what to call them in messages.
        identity: of what they were read from or made of; "" where their content is their identity.
    """

    points: Tensor  # (T, N, 2)
    visible: Tensor  # (T, N) bool
    source: str = "tracks"
    identity: str = ""

    def __post_init__(self) -> None:
        points, visible = self.points, self.visible
        if points.dim() != 3 or points.shape[2] != 2 or points.numel() == 0:
            raise InputError(f"{self.source}: points of shape {tuple(points.shape)}, give (frames, points, 2)")
        if visible.shape != points.shape[:2]:
            raise InputError(
                f"{self.source}: visibility of shape {tuple(visible.shape)} where the points need {tuple(points.shape[:2])}"
            )

    def on_object(self, video: DrivingVideo, frame: int = 0) -> PointTracks:
        """The tracks that lie on the driving video's object at a frame; visible where they are finite.

        Raises:
            InputError: for another number of frames, or where there are none.
        """
        if len(self.points) != len(video):
            raise InputError(
                f"{self.source}: tracks of {len(self.points)} frames where the video has {len(video)}, give one place a frame"
            )
        known = self.visible.bool() & self.points.isfinite().all(-1)
        points = torch.where(known[..., None], self.points.float(), 0.0)
        crop, size = video.crop, video.resolution
        cell = ((points[frame] - points.new_tensor([crop.x, crop.y])) * size / crop.size).floor().long()
        inside = known[frame] & ((cell >= 0) & (cell < size)).all(-1)
        column, row = cell.clamp(0, size - 1).unbind(-1)
        inside &= video.masks[frame].cpu()[row, column] > 0.5
        if not bool(inside.any()):
            raise InputError(
                f"{self.source}: none of {len(inside)} points lies on the object in frame {frame}; give pixels (x, y) of the "
                f"video's {crop.width}x{crop.height} picture"
            )
        again = self.identity or fingerprint(self.points, self.visible)
        return replace(self, points=points[:, inside], visible=known[:, inside], identity=again)


@dataclass(frozen=True, eq=False)
class SideView:
    """A film of the same motion from another side, by a camera that stands still.

    Args:
        video: cut out; its frames are matched to the driving video's by their times.
        azimuth: of its camera, degrees from the driving video's, +90 = from +X.
        elevation: degrees, positive = from above; the driving video's where None.
        search: look for the camera's direction near the one given.
    """

    video: DrivingVideo
    azimuth: float
    elevation: float | None = None
    search: bool = False

    def timed(self, driving: DrivingVideo) -> SideView:
        """With one frame for each of the driving video: the one seen at its time; of as many frames, each.

        Raises:
            InputError: where the film ends before the driving video does.
        """
        video, count = self.video, len(driving)
        if len(video) == count:
            return self
        index = (torch.arange(count) * (video.fps / driving.fps)).round().long()
        if int(index[-1]) > len(video):  # one frame of tolerance: films of one length rarely end together
            raise InputError(
                f"{video.source}: lasts {len(video) / video.fps:.3g} s where the driving video lasts "
                f"{count / driving.fps:.3g} s; give as long a film, or one with as many frames"
            )
        index = index.clamp(max=len(video) - 1)
        identity = video.identity and fingerprint(video.identity, index)
        return replace(
            self, video=replace(video, frames=video.frames[index], masks=video.masks[index], fps=driving.fps, identity=identity)
        )


@dataclass(frozen=True, eq=False)
class PlacedView:
    """A film from another side and its camera.

    Args:
        view: with one frame for each of the driving video.
        cameras: of its crop at its resolution, (1,).
    """

    view: SideView
    cameras: Cameras


@dataclass(frozen=True, eq=False)
class Signals:
    """All that is given besides the driving video.

    Args:
        depth: depth of its frames.
        tracks: points followed through it, each set of its own.
        flow: "", or of :data:`FLOWS`: tracks found by optical flow.
        views: films from other sides.
    """

    depth: DepthMaps | None = None
    tracks: tuple[PointTracks, ...] = ()
    flow: Literal["", "dis"] = ""
    views: tuple[SideView, ...] = ()

    def __bool__(self) -> bool:
        return self.depth is not None or bool(self.tracks or self.flow or self.views)


@canonical.register
def _(value: DepthMaps) -> Any:
    return {"depth": value.identity or fingerprint(value.values), "kind": value.kind, "span": value.span, "cut": value.cropped}


@canonical.register
def _(value: PointTracks) -> Any:
    return {"tracks": value.identity or fingerprint(value.points, value.visible)}


@canonical.register
def _(value: PlacedView) -> Any:
    # The camera is computed, and follows from what is named.
    return canonical(value.view)
