"""5 View and export: the player, and what it shows as values."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.cameras import Cameras, from_camera_info, to_camera_info
from ..core.files import atomic_path
from ..core.identity import fingerprint
from ..core.io.stream import write_stream
from ..core.io.view import read_view
from ..core.scene.scene import Scene4D
from ..core.scene.trajectory import Trajectory
from ..core.scene.views import object_cameras, render_frames
from ..core.video import DrivingVideo
from . import host, widgets
from .view import BACKGROUNDS, CATEGORY

#: Longer side of the driving video's pictures in the player, in pixels.
FILM_SIZE = 512
AS_SHOWN = "as shown"


class Anchor4DPlayScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DPlayScene",
            display_name="Play Scene",
            category=CATEGORY,
            description="Plays a moving scene in the node: turn, zoom, scrub, compare, save pictures and films. What it shows "
            "comes out as camera and picture.",
            search_aliases=["player", "viewer", "preview 4d", "preview splat", "compare scenes", "camera path", "4dgs", "4d"],
            inputs=[
                widgets.scene(),
                widgets.scene(
                    "compare", "A second scene to compare: a border that you drag lies between the two.", optional=True
                ),
                io.MultiType.Input(
                    "video",
                    types=[host.Video, io.Image],
                    optional=True,
                    tooltip="Pictures to show beside the object, in step with it: the driving video, or any images.",
                ),
                widgets.whole(
                    "frames",
                    0,
                    (0, 2000),
                    "Frames that the player gets; between them it fills in. 0 = the scene's own frames.",
                    words=widgets.SCENES_OWN,
                ),
                widgets.whole("size", 512, (32, 2048), "Longer side of the picture that comes out, in pixels.", step=16),
                widgets.choice(
                    "background",
                    [AS_SHOWN, *BACKGROUNDS],
                    "Colour behind the object in the picture that comes out. as shown = the player's; where that is "
                    "transparent, white. The mask comes beside it.",
                ),
                io.String.Input(
                    "view",
                    default="",
                    optional=True,
                    socketless=True,
                    tooltip="What the player shows: camera, moment, background, camera path. The player fills it in.",
                ),
                *widgets.drawing(),
            ],
            outputs=[
                host.Scene.Output("scene", tooltip="The scene, unchanged."),
                io.Image.Output("image", tooltip="The picture that the player shows, drawn at the chosen size."),
                io.Mask.Output("mask", tooltip="Where the object is in it, 1 = object."),
                io.Load3DCamera.Output("camera_info", tooltip="The player's camera, for Render Scene and other nodes."),
                host.Trajectory.Output("trajectory", tooltip="The camera path recorded in the player, or its camera alone."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        scene: Any,
        frames: int,
        size: int,
        background: str,
        view: str = "",
        compare: Any = None,
        video: DrivingVideo | Tensor | None = None,
        device: str = "auto",
        renderer: str = "auto",
    ) -> io.NodeOutput:
        with host.work(cls):
            scene, shown = host.scene_of(scene), read_view(view)
            clips = [(scene, video)] if compare is None else [(scene, video), (host.scene_of(compare), None)]
            files = [_stream(clip, frames or None, film) for clip, film in clips]
            info = shown.get("camera") or to_camera_info(object_cameras(scene, size))
            camera = _camera(info, size)
            tau = torch.tensor([_number(shown.get("time"), 0.0, 1.0)])
            rgba = render_frames(scene.to(host.device_for(device, renderer)), camera, tau, backend=renderer)[0]
            behind = _colour(background, shown)
            image = rgba[..., :3] * rgba[..., 3:] + behind * (1 - rgba[..., 3:])
            widget = {"a4d_clips": files, "a4d_filmed": [_filmed(scene, video)]}
            return io.NodeOutput(scene, image, rgba[..., 3], info, _trajectory(shown, info), ui=widget)


def _number(value: Any, low: float, high: float) -> float:
    usable = isinstance(value, int | float) and math.isfinite(value)
    return min(max(float(value), low), high) if usable else low


def _stream(scene: Scene4D, frames: int | None, video: DrivingVideo | Tensor | None) -> dict[str, str]:
    """The scene as a play stream in the temporary folder, written once for each content."""
    film = film_of(video)
    field = None if scene.field is None else (scene.field.config(), scene.field.state_dict())
    front = (scene.frames, scene.fps, scene.loop, scene.front)
    name = f"{fingerprint(scene.gaussians.tensors(), field, front, frames, film)}.a4d"
    path = Path(folder_paths.get_temp_directory()) / "anchor4d" / name
    if not path.is_file():
        report = host.Report()
        with atomic_path(path) as temporary:
            write_stream(temporary, scene, frames, film=film, progress=report.count)
    return {"filename": name, "subfolder": "anchor4d", "type": "temp"}


def film_of(video: DrivingVideo | Tensor | None) -> Tensor | None:  # (T, H, W, 3 | 4)
    """Pictures for the player of what came in as video: small, with alpha where there is any."""
    if video is None:
        return None
    if isinstance(video, DrivingVideo):
        video = video.resized(min(video.resolution, FILM_SIZE))
        return torch.cat([video.frames, video.masks[..., None]], -1)
    images = host.owned(video)
    assert images is not None
    scale = FILM_SIZE / max(images.shape[1:3])
    if scale >= 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[1:3]]
    return torch.nn.functional.interpolate(images.movedim(-1, 1), size, mode="area").movedim(1, -1)


def _filmed(scene: Scene4D, video: DrivingVideo | Tensor | None) -> dict[str, Any] | None:
    """The camera that sees the object as the pictures beside it do, where that is known."""
    if scene.front is None:
        return None
    camera = scene.front.cropped(video.crop, video.resolution) if isinstance(video, DrivingVideo) else scene.front.cameras()
    principal = [float(camera.K[0, 0, 2]) / camera.width, float(camera.K[0, 1, 2]) / camera.height]
    return to_camera_info(camera) | {"principal": principal}


def _camera(info: dict[str, Any], size: int) -> Cameras:  # (1,)
    """The player's camera with its picture's shape; ``principal``: its principal point in shares of the picture."""
    aspect = _number(info.get("aspect", 1.0), 0.05, 20.0)
    width, height = max(1, round(size * min(1.0, aspect))), max(1, round(size / max(1.0, aspect)))
    camera = from_camera_info(info, width, height)
    x, y = info.get("principal") or (0.5, 0.5)
    camera.K[:, 0, 2], camera.K[:, 1, 2] = width * float(x), height * float(y)
    return camera


def _colour(background: str, view: dict[str, Any]) -> Tensor:  # (3,)
    if background != AS_SHOWN:
        return torch.full((3,), BACKGROUNDS[background])
    shown = str(view.get("background", ""))
    try:
        return torch.tensor(list(bytes.fromhex(shown.removeprefix("#")))[:3] if shown.startswith("#") else [255] * 3) / 255
    except ValueError:
        return torch.ones(3)


def _trajectory(view: dict[str, Any], info: dict[str, Any]) -> Trajectory:
    """The recorded path; the player's camera alone where there is none."""
    path = view.get("trajectory") or {}
    if not path.get("keys"):
        return Trajectory.from_camera_infos([info])
    if not view.get("moments"):
        path = path | {"keys": [key | {"scene_time": None} for key in path["keys"]]}
    return Trajectory.from_json(json.dumps(path))


NODES = [Anchor4DPlayScene]
