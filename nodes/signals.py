"""3 Fit: signals besides the driving video, as objectives: depth of its frames, point tracks, films of other sides."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.align import FocalAlignment
from ..core.align.depth import place_depth
from ..core.align.flow import dis_flow, tracks_by_flow
from ..core.align.side import place_view
from ..core.io.signals import tracks_of
from ..core.methods.signals import DEPTH, TRACKS
from ..core.objectives.depth import DepthMatch
from ..core.objectives.side_view import SideViewLoss
from ..core.objectives.tracks import TrackMatch
from ..core.schedules import scaled
from ..core.signals import DEPTH_KINDS, DEPTH_SPANS, DepthMaps, SideView
from ..core.video import DrivingVideo
from . import host, widgets
from .objectives import CATEGORY, Terms

#: Weight of the reference view loss in PLA4D's standard objectives, against which these weights are.
FRONT = 3.0


def _object(alignment: FocalAlignment) -> Any:
    """The aligned object; None where points stand in for one."""
    return None if alignment.report.get("mode") == "none" else alignment.mesh


class Anchor4DDepthSignal(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DDepthSignal",
            display_name="Depth Signal",
            category=CATEGORY,
            description="Objective for motion: the object's depth from the front must follow depth maps of the driving "
            "video, from any depth node. Scale and shift are found by the aligned object.",
            search_aliases=["depth anything", "depth map", "midas", "monocular depth", "objective", "loss"],
            inputs=[
                io.Image.Input("depth", tooltip="One depth map for each frame of the driving video."),
                host.Video.Input("driving_video", tooltip="The clip that the depth is of."),
                host.Alignment.Input("alignment", tooltip="From Focal Alignment: says what depth the first frame has."),
                widgets.objectives(),
                *widgets.weight(DEPTH * FRONT, "closer to the depth maps; lower = closer to the video"),
                widgets.choice(
                    "kind",
                    list(DEPTH_KINDS),
                    "inverse = nearer is brighter, as most depth models draw it. depth = farther is brighter. auto = found out "
                    "by the object.",
                ),
                widgets.choice(
                    "span",
                    list(DEPTH_SPANS),
                    "clip = brightness means the same in all frames (video depth models). frame = each frame has a scale and "
                    "shift of its own (picture depth models).",
                ),
                widgets.switch(
                    "cropped",
                    False,
                    "On = the depth is of Prepare Driving Video's cropped images. Off = of the video's whole pictures.",
                    folded=True,
                ),
            ],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(
        cls, depth: Tensor, driving_video: DrivingVideo, alignment: FocalAlignment, weight: float, kind: str, span: str,
        end_weight: float = -1.0, cropped: bool = False, objectives: Terms = (),
    ) -> io.NodeOutput:  # fmt: skip
        with host.work(cls):
            maps = DepthMaps(depth.detach().cpu().float().mean(-1).clone(), kind, span, cropped, "depth")
            placed = place_depth(maps, driving_video, alignment.front, _object(alignment))
            about = placed.report["correlation"]
            seen = "" if about is None else f", correlation {abs(about):.2f} with the object in the first frame"
            counts = f", counts {placed.trust:.0%}" if placed.trust < 0.9 else ""
            host.say(f"{'inverse depth' if placed.inverse else 'depth'}{seen}{counts}")
            ramp = scaled(widgets.ramp(weight, end_weight), placed.trust)
            term = DepthMatch(ramp, placed.maps, placed.inverse, placed.affine)
            return io.NodeOutput((*objectives, term))


class Anchor4DTrackSignal(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DTrackSignal",
            display_name="Track Signal",
            category=CATEGORY,
            description="Objective for motion: points of the surface that the first frame shows must follow point tracks, or "
            "the driving video's optical flow.",
            search_aliases=["tracks", "optical flow", "cotracker", "tapir", "dis", "point tracking", "objective", "loss"],
            inputs=[
                host.Video.Input("driving_video", tooltip="The clip that the tracks are of."),
                io.Tracks.Input(
                    "tracks",
                    optional=True,
                    tooltip="Point tracks in pixels of the driving video's whole pictures, one place a frame. Nothing "
                    "connected = optical flow of the video (OpenCV's DIS; needs opencv-python-headless).",
                ),
                widgets.objectives(),
                *widgets.weight(TRACKS * FRONT, "closer to the tracks; lower = closer to the video's colours"),
                widgets.switch(
                    "middle",
                    False,
                    "On = the static object shows the clip's middle frame (STAG4D without a 3D model). Off = the first.",
                    folded=True,
                ),
            ],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(
        cls, driving_video: DrivingVideo, weight: float, end_weight: float = -1.0, middle: bool = False,
        tracks: dict[str, Tensor] | None = None, objectives: Terms = (),
    ) -> io.NodeOutput:  # fmt: skip
        with host.work(cls):
            frame = len(driving_video) // 2 if middle else 0
            if tracks is None:
                given = tracks_by_flow(driving_video, dis_flow(), frame=frame)
            else:
                given = tracks_of(tracks)
            given = given.on_object(driving_video, frame)
            host.say(f"{given.points.shape[1]} points on the object, {100 * float(given.visible.float().mean()):.0f} % visible")
            return io.NodeOutput((*objectives, TrackMatch(widgets.ramp(weight, end_weight), given, frame)))


class Anchor4DSideView(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DSideView",
            display_name="Side View",
            category=CATEGORY,
            description="Objective: from another side the object must look like a second video of the same motion. Its camera "
            "is known by its azimuth, or searched for near it; frames are matched by their times.",
            search_aliases=["second camera", "multi-view video", "sv4d", "mv-adapter", "side video", "objective", "loss"],
            inputs=[
                host.Video.Input(
                    "side_video", tooltip="The same motion from another side, from Load or Prepare Driving Video."
                ),
                host.Video.Input("driving_video", tooltip="The clip from the front."),
                host.Alignment.Input("alignment", tooltip="From Focal Alignment: its object says how the other camera stands."),
                widgets.real(
                    "azimuth", 90.0, (-360.0, 360.0), "Of the side's camera, degrees: 90 = from +X, 180 = from behind."
                ),
                widgets.objectives(),
                *widgets.weight(FRONT, "closer to the side video; lower = closer to the front"),
                widgets.real(
                    "elevation", 0.0, (-80.0, 80.0), "Of the side's camera, degrees, positive = from above.", folded=True
                ),
                widgets.switch(
                    "search",
                    False,
                    "Look for the camera's direction near the one given. Slower; off = it is exact.",
                    folded=True,
                ),
                widgets.real("mask", 0.33, (0.0, 100.0), "How much the outline counts against the colours.", folded=True),
            ],
            outputs=[widgets.objectives_output()],
        )

    @classmethod
    def execute(
        cls, side_video: DrivingVideo, driving_video: DrivingVideo, alignment: FocalAlignment, azimuth: float, weight: float,
        end_weight: float = -1.0, elevation: float = 0.0, search: bool = False, mask: float = 0.33, objectives: Terms = (),
    ) -> io.NodeOutput:  # fmt: skip
        with host.work(cls), torch.no_grad():
            view = SideView(side_video, azimuth, elevation, search)
            placed = place_view(view, driving_video, alignment.front, _object(alignment))
            found = placed.report
            over = "" if found["overlap"] is None else f", outlines agree by {100 * found['overlap']:.0f} %"
            host.say(f"azimuth {found['azimuth']:.1f}, elevation {found['elevation']:.1f}{over}")
            term = SideViewLoss(widgets.ramp(weight, end_weight), placed.view, mask=mask)
            return io.NodeOutput((*objectives, term))


NODES = [Anchor4DDepthSignal, Anchor4DTrackSignal, Anchor4DSideView]
