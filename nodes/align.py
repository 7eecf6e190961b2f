"""2 Align: the camera of the driving video around the mesh."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import Types, io

from ..core.align import FocalAlignment, Target, draw_curve, overlay
from ..core.align.clip import focal_per_frame
from ..core.cameras import to_camera_info
from ..core.methods import stages
from ..core.methods.stages import Camera
from ..core.object3d import Object3D
from ..core.video import DrivingVideo
from . import host
from .prepare import OBJECT_TYPES, convert_object

#: What the node's methods are called in :func:`core.methods.stages.align`.
SEARCHES: dict[str, Camera] = {"robust": "focal", "literal": "focal-literal"}


class Anchor4DFocalAlignment(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DFocalAlignment",
            display_name="Focal Alignment",
            category="Anchor4D/2 Align",
            description="Finds the camera that filmed the object: turns and scales the mesh, and solves field of view, "
            "distance and position so that the mesh lies exactly on the video's first frame.",
            search_aliases=["camera pose", "focal search", "field of view", "match camera", "pla4d", "4d"],
            inputs=[
                host.Video.Input(
                    "driving_video", tooltip="From Prepare or Load Driving Video. Its first frame must show the mesh's pose."
                ),
                io.MultiType.Input(
                    "mesh",
                    types=OBJECT_TYPES,
                    tooltip="The object as a mesh or as splats: from Load Mesh, or a MESH, SPLAT or 3D file of any other node.",
                ),
                io.Combo.Input(
                    "method",
                    options=["robust", "literal"],
                    default="robust",
                    tooltip="robust = solve field of view, distance and position together. "
                    "literal = the paper's search: field of view alone, by colour difference.",
                ),
                io.DynamicCombo.Input(
                    "front",
                    options=[
                        io.DynamicCombo.Option("auto", []),
                        io.DynamicCombo.Option(
                            "degrees",
                            [
                                io.Float.Input(
                                    "yaw",
                                    default=0.0,
                                    min=-360.0,
                                    max=360.0,
                                    step=1.0,
                                    tooltip="Degrees to turn the mesh, counter-clockwise seen from above, so that the side "
                                    "that the video shows faces the camera. 0 = the mesh already faces it (+Z).",
                                )
                            ],
                        ),
                    ],
                    tooltip="Which side of the mesh the video shows. auto = find it. degrees = you tell.",
                ),
            ],
            outputs=[
                host.Alignment.Output(
                    "alignment", tooltip="The camera and the mesh turned to face it: what the fitting steps take."
                ),
                io.Image.Output(
                    "overlay",
                    tooltip="The first frame and the aligned mesh, half and half. Sharp = well aligned, ghosts = not.",
                ),
                io.Image.Output("curve", tooltip="The error of every candidate of each search, with the chosen one marked."),
                io.Load3DCamera.Output(
                    "camera_info", tooltip="The camera for ComfyUI's own 3D nodes (without the picture's off-centre shift)."
                ),
                host.Mesh.Output(
                    "mesh",
                    tooltip="The mesh, longest side 1, centred, facing front, coloured from the frame if it had no colour.",
                ),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        driving_video: DrivingVideo,
        mesh: Object3D | Types.MESH | Types.SPLAT | Types.File3D,
        method: str,
        front: dict[str, Any],
    ) -> io.NodeOutput:
        with host.work(cls):
            yaw = front["yaw"] if front["front"] == "degrees" else "auto"
            found = stages.align(
                driving_video, convert_object(mesh), camera=SEARCHES[method], yaw=yaw, progress=host.Report().align
            )
            camera = found.front
            host.say(
                f"field of view {camera.fovy:.1f}°, distance {camera.distance:.2f} × the object's size, "
                f"mesh turned by {found.yaw:.0f}°, error {found.error:.4g}"
            )
            picture = overlay(found.mesh, camera, Target.of(driving_video, color=found.mesh.has_color))[None]
            curves = torch.stack([draw_curve(curve) for curve in found.curves])
            return io.NodeOutput(
                found,
                picture,
                curves,
                to_camera_info(camera.cameras()),
                found.mesh,
                ui=host.stills(_beside(picture, curves[-1:])),
            )


class Anchor4DFocalPerFrame(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DFocalPerFrame",
            display_name="Focal per Frame",
            category="Anchor4D/2 Align",
            description="For clips whose camera zooms or comes nearer: a field of view for every frame, smoothed over time "
            "(variant PLA4D v4).",
            search_aliases=["zoom", "dolly", "camera per frame", "focal length", "pla4d v4", "4d"],
            inputs=[
                host.Video.Input("driving_video", tooltip="The same clip that was aligned."),
                host.Alignment.Input("alignment", tooltip="From Focal Alignment: the camera of the first frame."),
            ],
            outputs=[
                host.Cameras.Output("cameras", tooltip="One camera a frame, for Motion Alignment."),
                io.Image.Output("curve", tooltip="The field of view over the frames."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, driving_video: DrivingVideo, alignment: FocalAlignment) -> io.NodeOutput:
        with host.work(cls):
            fronts, curve = focal_per_frame(driving_video, [alignment.mesh], alignment.front)
            angles = [front.fovy for front in fronts]
            host.say(f"field of view {min(angles):.1f}° to {max(angles):.1f}°")
            picture = draw_curve(curve)[None]
            return io.NodeOutput(fronts, picture, ui=host.stills(picture))


def _beside(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # (1, H, W, 3), (1, H', W', 3) -> (1, H', W' + H', 3)
    """The square overlay left of the curve, at the curve's height."""
    small = torch.nn.functional.interpolate(a.movedim(-1, 1), (b.shape[1], b.shape[1]), mode="bilinear", antialias=True)
    return torch.cat([small.movedim(1, -1).clamp(0, 1), b], 2)


NODES = [Anchor4DFocalAlignment, Anchor4DFocalPerFrame]
