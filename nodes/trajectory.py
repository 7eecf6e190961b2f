"""5 View and export: paths of the camera for Render Scene and Export Scene."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

from ..core.cameras import CameraInfo, FrontCamera, camera_infos, to_camera_infos
from ..core.files import InputError
from ..core.scene.trajectory import EASINGS, INTERPOLATIONS, Trajectory, dolly_zoom, orbit, spiral
from ..core.scene.views import DEFAULT_FRONT, placement
from . import host, widgets
from .view import CATEGORY

#: Sockets for cameras of the Keyframe Trajectory node.
MOST_CAMERAS = 50


def _scene() -> io.Input:
    return widgets.scene(
        tooltip="The scene to go round: its own camera says from how far and with which perspective. Without one, an object 1 "
        "unit long.",
        optional=True,
    )


def _degrees(name: str, default: float, reach: float, tooltip: str) -> io.Input:
    return widgets.real(name, default, (-reach, reach), tooltip, step=1.0)


def _elevation(name: str = "elevation", default: float = 0.0, when: str = "") -> io.Input:
    moment = f" {when}" if when else ""
    return _degrees(
        name,
        default,
        180.0,
        f"How much higher than the scene's own camera to stand{moment}, in degrees: positive = from above.",
    )


def _distance(name: str, default: float, tooltip: str) -> io.Input:
    return widgets.real(name, default, (0.1, 20.0), tooltip, step=0.05)


def _azimuth() -> io.Input:
    return _degrees(
        "azimuth", 0.0, 360.0, "Where the path begins, in degrees: 0 = the front, positive = counter-clockwise seen from above."
    )


def _sweep(default: float) -> io.Input:
    return _degrees("sweep", default, 36000.0, "How far the camera goes round, in degrees. 360 = once. Negative = clockwise.")


def _easing(default: str = "none") -> io.Input:
    return widgets.choice(
        "easing",
        list(EASINGS),
        "in = starts slowly. out = ends slowly. in-out = both. none = even speed, for films that loop.",
        default=default,
    )


def _time() -> io.Input:
    return widgets.real(
        "time", 0.0, (0.0, 1.0), "The moment of the path that camera_info is of: 0 = start, 1 = end.", step=0.01, folded=True
    )


def _batch() -> io.Input:
    return widgets.whole(
        "batch",
        1,
        (1, 50),
        "Cameras that camera_info holds: 1 = the one at the moment above. More = so many along the path, for nodes of ComfyUI "
        "0.46 and newer that draw one picture a camera.",
        folded=True,
    )


def _outputs() -> list[io.Output]:
    return [
        host.Trajectory.Output("trajectory", tooltip="The path, for Render Scene and Export Scene."),
        io.Load3DCamera.Output(
            "camera_info", tooltip="The camera at one moment of the path, or a batch along it, for the 3D nodes of ComfyUI."
        ),
        io.String.Output("json", tooltip="The path as text, for Keyframe Trajectory and the command line's --camera-path."),
    ]


def _given(trajectory: Trajectory, time: float, batch: int) -> io.NodeOutput:
    if batch > 1:
        info: CameraInfo = to_camera_infos(trajectory.cameras(batch, *trajectory.size(1024)))
    else:
        info = trajectory.camera_info(time)
    return io.NodeOutput(trajectory, info, trajectory.to_json())


def _around(scene: Any, path: Callable[[FrontCamera], Trajectory]) -> Trajectory:
    """A path made for the scene's own camera, or for a scene like ours where there is none."""
    if scene is None:
        return path(DEFAULT_FRONT)
    scene = host.scene_of(scene)
    return path(scene.front or DEFAULT_FRONT).placed(*placement(scene))


class Anchor4DOrbitTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DOrbitTrajectory",
            display_name="Orbit Trajectory",
            category=CATEGORY,
            description="A camera path round the object at one height, for Render Scene.",
            search_aliases=["camera path", "turntable", "camera trajectory", "360", "arc shot"],
            inputs=[
                _scene(),
                _azimuth(),
                _sweep(360.0),
                _elevation(),
                _distance("distance", 1.0, "How far away, in distances of the scene's own camera. Farther = smaller object."),
                _easing(),
                _time(),
                _batch(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        azimuth: float,
        sweep: float,
        elevation: float,
        distance: float,
        easing: str,
        scene: Any = None,
        time: float = 0.0,
        batch: int = 1,
    ) -> io.NodeOutput:
        with host.work(cls):
            settings = {"azimuth": azimuth, "sweep": sweep, "elevation": elevation, "distance": distance, "easing": easing}
            return _given(_around(scene, lambda front: orbit(front, **settings)), time, batch)


class Anchor4DSpiralTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DSpiralTrajectory",
            display_name="Spiral Trajectory",
            category=CATEGORY,
            description="A camera path round the object that rises and sinks, comes nearer and goes away, for Render Scene.",
            search_aliases=["camera path", "helix", "camera trajectory", "crane shot", "all around"],
            inputs=[
                _scene(),
                _azimuth(),
                _sweep(720.0),
                _elevation("elevation_start", -15.0, "at the start"),
                _elevation("elevation_end", 45.0, "half a wave later"),
                _distance("distance_start", 1.0, "How far away at the start, in distances of the scene's own camera."),
                _distance("distance_end", 1.0, "How far away half a wave later, in distances of the scene's own camera."),
                widgets.real(
                    "waves",
                    1.0,
                    (0.0, 100.0),
                    "How often height and distance go there and back. 0.5 = only there. The film loops when waves and "
                    "turns are whole.",
                    step=0.5,
                ),
                _easing(),
                _time(),
                _batch(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        azimuth: float,
        sweep: float,
        elevation_start: float,
        elevation_end: float,
        distance_start: float,
        distance_end: float,
        waves: float,
        easing: str,
        scene: Any = None,
        time: float = 0.0,
        batch: int = 1,
    ) -> io.NodeOutput:
        def path(front: FrontCamera) -> Trajectory:
            return spiral(
                front,
                azimuth=azimuth,
                sweep=sweep,
                elevation=(elevation_start, elevation_end),
                distance=(distance_start, distance_end),
                waves=waves,
                easing=easing,
            )

        with host.work(cls):
            return _given(_around(scene, path), time, batch)


class Anchor4DDollyZoomTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DDollyZoomTrajectory",
            display_name="Dolly Zoom Trajectory",
            category=CATEGORY,
            description="A camera path that goes away while it zooms in, or the reverse: the object keeps its size, its "
            "perspective changes.",
            search_aliases=["camera path", "vertigo", "zolly", "hitchcock zoom", "camera trajectory"],
            inputs=[
                _scene(),
                _azimuth(),
                _elevation(),
                _distance("distance_start", 0.6, "How far away at the start, in distances of the scene's own camera."),
                _distance("distance_end", 3.0, "How far away at the end, in distances of the scene's own camera."),
                _easing("in-out"),
                _time(),
                _batch(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        azimuth: float,
        elevation: float,
        distance_start: float,
        distance_end: float,
        easing: str,
        scene: Any = None,
        time: float = 0.0,
        batch: int = 1,
    ) -> io.NodeOutput:
        def path(front: FrontCamera) -> Trajectory:
            return dolly_zoom(
                front, azimuth=azimuth, elevation=elevation, distance=(distance_start, distance_end), easing=easing
            )

        with host.work(cls):
            return _given(_around(scene, path), time, batch)


class Anchor4DKeyframeTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        camera = io.Load3DCamera.Input(
            "camera", optional=True, tooltip="A camera to pass: Create Camera Info, Load 3D, Play Scene; or a batch of them."
        )
        return io.Schema(
            node_id="Anchor4DKeyframeTrajectory",
            display_name="Keyframe Trajectory",
            category=CATEGORY,
            description="A smooth camera path through cameras of your choice, or through the keys recorded in Play Scene.",
            search_aliases=["camera path", "camera keyframes", "camera animation", "camera trajectory", "fly through"],
            inputs=[
                io.Autogrow.Input(
                    "cameras",
                    template=io.Autogrow.TemplatePrefix(camera, prefix="camera_", min=0, max=MOST_CAMERAS),
                    tooltip="Cameras to pass, in this order.",
                ),
                widgets.choice(
                    "interpolation",
                    list(INTERPOLATIONS),
                    "smooth = without corners. linear = straight from camera to camera.",
                    default="smooth",
                ),
                _easing("in-out"),
                widgets.switch("loop", False, "Go on from the last camera to the first, for films that loop."),
                io.String.Input(
                    "times",
                    default="",
                    optional=True,
                    tooltip='When each camera is passed, as "0, 0.3, 1": 0 = start of the film, 1 = end. Empty = evenly.',
                ),
                io.String.Input(
                    "scene_times",
                    default="",
                    optional=True,
                    tooltip='The moment of the clip at each camera, as "0, 0.5, 0.5, 1": the same moment twice freezes it in '
                    "between, 2 = the end of its second play. Empty = the clip plays as the film's shot says.",
                ),
                io.String.Input(
                    "path",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="A path as text, from Play Scene or the json output: used when no camera is connected, with its "
                    "own times, interpolation, easing and loop.",
                ),
                _time(),
                _batch(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        cameras: dict[str, Any],
        interpolation: str,
        easing: str,
        loop: bool,
        times: str = "",
        scene_times: str = "",
        path: str = "",
        time: float = 0.0,
        batch: int = 1,
    ) -> io.NodeOutput:
        with host.work(cls):
            infos = [each for info in cameras.values() if info is not None for each in camera_infos(info)]
            if infos:
                moments, clip = (_numbers(text, name) for text, name in ((times, "times"), (scene_times, "scene_times")))
                made = Trajectory.from_camera_infos(infos, moments, clip, loop=loop, interpolation=interpolation, easing=easing)
            elif path.strip():
                made = Trajectory.from_json(path)
            else:
                raise InputError("no camera is connected, connect one or more, or fill in path")
            return _given(made, time, batch)


def _numbers(text: str, name: str) -> list[float] | None:
    parts = text.replace(",", " ").split()
    try:
        return [float(part) for part in parts] or None
    except ValueError:
        raise InputError(f"{name}: {text!r} is no list of numbers, write them as 0, 0.5, 1") from None


NODES = [Anchor4DOrbitTrajectory, Anchor4DSpiralTrajectory, Anchor4DDollyZoomTrajectory, Anchor4DKeyframeTrajectory]
