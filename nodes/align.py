"""2 Align: the camera of the driving video around the mesh."""

from __future__ import annotations

from typing import Any, Literal

import torch
from comfy_api.latest import Types, io

from ..core.align import FocalAlignment, Target, draw_curve, overlay
from ..core.align.clip import focal_per_frame
from ..core.align.distance import LENS, Meaning, align_model_distance, distance_curve, fixed_camera
from ..core.cameras import to_camera_info
from ..core.methods import stages
from ..core.methods.stages import Camera
from ..core.priors.base import Prior
from ..core.scene.object3d import Object3D
from ..core.video import DrivingVideo
from . import fitting, host, host_prior, widgets
from .prepare import OBJECT_TYPES, convert_object

#: What the node's methods are called in :func:`core.methods.stages.align`.
SEARCHES: dict[str, Camera] = {"robust": "focal", "literal": "focal-literal"}


def _mesh() -> io.Input:
    return io.MultiType.Input(
        "mesh",
        types=OBJECT_TYPES,
        tooltip="The object as a mesh or as splats: from Load Mesh, or a MESH, SPLAT or 3D file of any other node.",
    )


def _front(auto: str, *before: io.DynamicCombo.Option) -> io.Input:
    """Which side of the mesh the video shows: options of the node's own, to find it, or to set it."""
    yaw = widgets.real(
        "yaw",
        0.0,
        (-360.0, 360.0),
        "Degrees to turn the mesh, counter-clockwise seen from above, so that the side that the video shows faces the "
        "camera. 0 = the mesh already faces it (+Z).",
        step=1.0,
    )
    return io.DynamicCombo.Input(
        "front",
        options=[*before, io.DynamicCombo.Option("auto", []), io.DynamicCombo.Option("degrees", [yaw])],
        tooltip=f"Which side of the mesh the video shows. {auto} degrees = as you set it.",
    )


def _overlay() -> io.Output:
    return io.Image.Output(
        "overlay", tooltip="The first frame and the aligned mesh, half and half. Sharp = well aligned, ghosts = not."
    )


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
                _mesh(),
                widgets.choice(
                    "method",
                    ["robust", "literal"],
                    "robust = solve field of view, distance and position together. "
                    "literal = the paper's search: field of view alone, by colour difference.",
                ),
                _front("auto = find it."),
                host.Alignment.Input(
                    "same_camera",
                    optional=True,
                    tooltip="The alignment of another object of the clip (Split Objects), whose field of view this one takes.",
                ),
            ],
            outputs=[
                host.Alignment.Output(
                    "alignment", tooltip="The camera and the mesh turned to face it: what the fitting steps take."
                ),
                _overlay(),
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
        same_camera: FocalAlignment | None = None,
    ) -> io.NodeOutput:
        with host.work(cls):
            yaw = front["yaw"] if front["front"] == "degrees" else "auto"
            shared = None if same_camera is None else same_camera.front
            found = stages.align(
                driving_video, convert_object(mesh), camera=SEARCHES[method], yaw=yaw, same_camera=shared,
                progress=host.Report().align,
            )  # fmt: skip
            camera = found.front
            host.say(
                f"field of view {camera.fovy:.1f}°, distance {camera.distance:.2f} × the object's size, "
                f"mesh turned by {found.yaw:.0f}°, error {found.error:.4g}\n{fitting.verdict(driving_video, found)}"
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


class Anchor4DFixedCamera(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DFixedCamera",
            display_name="Fixed Camera",
            category="Anchor4D/2 Align",
            description="Puts the camera where you say, whatever the video shows, and turns the mesh to suit it best: "
            "DreamGaussian4D's camera, and what Object Distance starts from.",
            search_aliases=["camera pose", "dreamgaussian4d", "dg4d", "align4d", "baseline camera", "azimuth search", "4d"],
            inputs=[
                host.Video.Input("driving_video", tooltip="From Prepare or Load Driving Video."),
                _mesh(),
                widgets.real(
                    "distance",
                    1.5,
                    (0.3, 20.0),
                    "How far the camera stands from the object's middle, in units of the object's longest side. Higher "
                    "= the object looks smaller.",
                    step=0.05,
                ),
                widgets.real(
                    "field_of_view",
                    LENS,
                    (5.0, 120.0),
                    "Of the camera, from the picture's top to its bottom, in degrees. 49.1 = as the Zero123 models learnt.",
                    step=0.1,
                ),
                widgets.real(
                    "elevation", 0.0, (-80.0, 80.0), "Of the camera, in degrees; positive = it looks down from above.", step=1.0
                ),
                _front("auto = try every degree."),
            ],
            outputs=[
                host.Alignment.Output("alignment", tooltip="The camera and the turned mesh: for Object Distance or a fit."),
                _overlay(),
                io.Image.Output(
                    "curve",
                    tooltip="The error of every turn that was tried, and of every distance, with the chosen one marked.",
                ),
                host.Mesh.Output("mesh", tooltip="The mesh, longest side 1, centred and turned, coloured from the frame."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        driving_video: DrivingVideo,
        mesh: Object3D | Types.MESH | Types.SPLAT | Types.File3D,
        distance: float,
        field_of_view: float,
        elevation: float,
        front: dict[str, Any],
    ) -> io.NodeOutput:
        with host.work(cls):
            found = fixed_camera(
                convert_object(mesh),
                driving_video,
                distance=distance,
                fovy=field_of_view,
                elevation=elevation,
                yaw=front["yaw"] if front["front"] == "degrees" else "auto",
                progress=host.Report().align,
            )
            target = Target.of(driving_video, color=found.mesh.has_color)
            found.curves.append(distance_curve(found.mesh, target, found.front, fovy=field_of_view))
            return _distance_output(stages.colored(found, driving_video), driving_video)


class Anchor4DObjectDistance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DObjectDistance",
            display_name="Object Distance (VAOD)",
            category="Anchor4D/2 Align",
            description="Moves the camera to where the object looks as large as in the video's first frame (Align4D's "
            "video-aligned object distance). Bypass it, and the camera stays as it came.",
            search_aliases=["object distance", "vaod", "oda", "camera distance", "scale", "align4d", "4d"],
            inputs=[
                host.Video.Input("driving_video", tooltip="The same clip that was aligned."),
                host.Alignment.Input(
                    "alignment", tooltip="From Fixed Camera, or any other alignment: its mesh is aligned anew."
                ),
                widgets.choice(
                    "method",
                    ["robust", "literal"],
                    "robust = solve distance, field of view and position together. literal = the paper's search: "
                    "distance alone, by colour difference, the object in the picture's middle.",
                ),
                _front(
                    "keep = as the alignment has it. auto = find it anew.",
                    io.DynamicCombo.Option("keep", []),
                ),
                widgets.switch(
                    "solve_elevation",
                    False,
                    "Let the robust search also change the camera's height. For videos seen from above or below.",
                    folded=True,
                ),
            ],
            outputs=[
                host.Alignment.Output(
                    "alignment", tooltip="The camera at its distance, and the mesh: what the fitting steps take."
                ),
                _overlay(),
                io.Image.Output(
                    "curve", tooltip="The error of every distance, with the chosen one marked, after other searches."
                ),
                host.Mesh.Output("mesh", tooltip="The mesh, longest side 1, centred and turned, coloured from the frame."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        driving_video: DrivingVideo,
        alignment: FocalAlignment,
        method: Literal["robust", "literal"],
        front: dict[str, Any],
        solve_elevation: bool = False,
    ) -> io.NodeOutput:
        with host.work(cls):
            found = stages.realign(
                driving_video,
                alignment,
                mode=method,
                yaw=front["yaw"] if front["front"] == "degrees" else front["front"],
                solve_elevation=solve_elevation,
                progress=host.Report().align,
            )
            return _distance_output(found, driving_video)


class Anchor4DModelDistance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DModelDistance",
            display_name="Model Distance (MAOD)",
            category="Anchor4D/2 Align",
            description="Finds the distance from which a diffusion prior draws this object best (Align4D's model-aligned "
            "object distance), for the objectives that ask it.",
            search_aliases=["object distance", "maod", "oda", "prior distance", "zero123", "align4d", "4d"],
            inputs=[
                host.Video.Input("driving_video", tooltip="The same clip that was aligned."),
                host.Alignment.Input("alignment", tooltip="From Object Distance: the camera as the video has it."),
                host.Prior.Input("prior", tooltip="The prior that the objectives ask: one that takes a picture and cameras."),
                widgets.choice(
                    "meaning",
                    ["delta", "literal", "zero", "implicit"],
                    "Which distance the prior gets. delta = its views are drawn from the distance it prefers, and it "
                    "gets "
                    "by how much that differs from the video's, as Zero123 learnt it. literal = drawn from the video's "
                    "distance, given the preferred distance itself, as the paper has it. zero = drawn from the video's "
                    "distance, given none. implicit = drawn from the preferred distance, given none: for models that know "
                    "no distance.",
                ),
                widgets.seed("Of the noise. Same seed = same result."),
                widgets.device("Where the prior computes. auto = where ComfyUI's models do.", ["auto", "cpu"]),
            ],
            outputs=[
                host.Distance.Output(
                    "distance", tooltip="Both distances and what they mean, for Motion and Geometry and Align4D Objectives."
                ),
                io.Image.Output("curve", tooltip="The prior's error at every distance, with the chosen one marked."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        driving_video: DrivingVideo,
        alignment: FocalAlignment,
        prior: Prior,
        meaning: Meaning,
        seed: int,
        device: str = "auto",
    ) -> io.NodeOutput:
        with host.work(cls), host_prior.loaded([prior], device):
            found = align_model_distance(
                alignment, driving_video, prior, meaning=meaning, seed=seed, progress=host.Report().align
            )
            distance = found.distance
            found_text = f"video {distance.visual:.3f}, prior {distance.model:.3f} × the object's size ({distance.meaning})"
            if distance.meaning != meaning:
                found_text += f"\n{meaning} is not for this prior, which knows no distance"
            host.say(f"{found_text}\nThe video's distance is taken: {found.report['reason']}" if found.fallback else found_text)
            curve = draw_curve(found.curve)[None]
            return io.NodeOutput(distance, curve, ui=host.stills(curve))


def _distance_output(found: FocalAlignment, video: DrivingVideo) -> io.NodeOutput:
    """An alignment by distance as a node's output, said in words and shown."""
    camera, report = found.front, found.report
    host.say(
        f"object distance {report['visual_distance']:.3f} × the object's size (for a lens of {report['lens']:.1f}° on the "
        f"cut-out), camera at {camera.distance:.2f} with {camera.fovy:.1f}°, mesh turned by {found.yaw:.0f}°, "
        f"error {found.error:.4g}\n{fitting.verdict(video, found)}"
    )
    picture = overlay(found.mesh, found.front, Target.of(video, color=found.mesh.has_color))[None]
    curves = torch.stack([draw_curve(curve) for curve in found.curves])
    return io.NodeOutput(found, picture, curves, found.mesh, ui=host.stills(_beside(picture, curves[-1:])))


def _beside(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # (1, H, W, 3), (1, H', W', 3) -> (1, H', W' + H', 3)
    """The square overlay left of the curve, at the curve's height."""
    small = torch.nn.functional.interpolate(a.movedim(-1, 1), (b.shape[1], b.shape[1]), mode="bilinear", antialias=True)
    return torch.cat([small.movedim(1, -1).clamp(0, 1), b], 2)


NODES = [
    Anchor4DFocalAlignment,
    Anchor4DFocalPerFrame,
    Anchor4DFixedCamera,
    Anchor4DObjectDistance,
    Anchor4DModelDistance,
]
