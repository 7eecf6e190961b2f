"""5 View and export: pictures of a scene, scene files, and splats for other programs."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import InputImpl, Types, io
from torch import Tensor

from ..core.cameras import Cameras, from_camera_info, orbit_poses, to_camera_info
from ..core.formats import write_ply_sequence
from ..core.formats.ply import half_turn
from ..core.gaussians import Gaussians
from ..core.scene import Scene4D, frame_times
from ..core.views import DEFAULT_FRONT, render_frames, scene_cameras
from . import host

CATEGORY = "Anchor4D/5 View and export"
BACKGROUNDS = {"white": 1.0, "black": 0.0, "grey": 0.5}
#: Frames a second of a film in which time stands still.
STILL_FPS = 24.0


def _azimuth() -> io.Input:
    return io.Float.Input(
        "azimuth",
        default=0.0,
        min=-360.0,
        max=360.0,
        step=1.0,
        tooltip="Side to look from, in degrees: 0 = as the driving video, positive = counter-clockwise seen from above.",
    )


def _sweep() -> io.Input:
    return io.Float.Input(
        "sweep",
        default=360.0,
        min=-3600.0,
        max=3600.0,
        step=5.0,
        tooltip="How far the camera goes round, in degrees. 360 = once.",
    )


def _repeats(default: int) -> io.Input:
    return io.Int.Input("repeats", default=default, min=1, max=100, tooltip="How often the clip plays.")


def _frames() -> io.Input:
    return io.Int.Input(
        "frames",
        default=0,
        min=0,
        max=2000,
        tooltip="Frames of the clip. More than it has = slow motion in between. 0 = as many as the driving video.",
    )


class Anchor4DRenderScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DRenderScene",
            display_name="Render Scene",
            category=CATEGORY,
            description="Films a moving scene: from one side, while going round it, or round a frozen moment.",
            search_aliases=["turntable", "orbit", "novel view", "bullet time", "view 4d", "preview scene", "4dgs", "4d"],
            inputs=[
                host.Scene.Input("scene", tooltip="A still or moving scene."),
                io.DynamicCombo.Input(
                    "shot",
                    options=[
                        io.DynamicCombo.Option("moving", [_azimuth(), _sweep(), _repeats(4), _frames()]),
                        io.DynamicCombo.Option("fixed", [_azimuth(), _repeats(1), _frames()]),
                        io.DynamicCombo.Option(
                            "orbit",
                            [
                                io.Float.Input(
                                    "time",
                                    default=0.0,
                                    min=0.0,
                                    max=1.0,
                                    step=0.01,
                                    tooltip="The frozen moment: 0 = start, 1 = end.",
                                ),
                                _azimuth(),
                                _sweep(),
                                io.Int.Input("frames", default=48, min=1, max=2000, tooltip="Frames of the film."),
                            ],
                        ),
                    ],
                    tooltip="moving = time and camera move. fixed = time runs, the camera stands. orbit = time stands, the "
                    "camera goes round.",
                ),
                io.Combo.Input(
                    "framing",
                    options=["object", "video"],
                    default="object",
                    tooltip="object = a square picture of the whole object. video = the driving video's own framing.",
                ),
                io.Int.Input("size", default=512, min=32, max=2048, step=16, tooltip="Longer side of the picture, in pixels."),
                io.Combo.Input(
                    "background",
                    options=list(BACKGROUNDS),
                    default="white",
                    tooltip="Colour behind the object. The mask comes beside it.",
                ),
                io.Float.Input(
                    "elevation",
                    default=0.0,
                    min=-89.0,
                    max=89.0,
                    step=1.0,
                    tooltip="How much higher than the driving video's camera to stand, in degrees: positive = from above.",
                ),
                io.Load3DCamera.Input(
                    "camera_info",
                    optional=True,
                    tooltip="Look from this camera instead (Create Camera Info, Load 3D). The object is 1 unit long and "
                    "centred; azimuth and sweep still turn it.",
                ),
                *host.device_inputs(),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The frames."),
                io.Mask.Output("masks", tooltip="Where the object is, 1 = object."),
                io.Video.Output("video", tooltip="The film, for Save Video."),
                io.Float.Output("fps", tooltip="Frames a second."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        scene: Scene4D,
        shot: dict[str, Any],
        framing: str,
        size: int,
        background: str,
        elevation: float,
        device: str = "auto",
        renderer: str = "auto",
        camera_info: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        with host.work(cls):
            taus, fps = _times(scene, shot)
            azimuths = shot["azimuth"] + shot.get("sweep", 0.0) * torch.arange(len(taus)) / len(taus)
            cameras = _cameras(scene, azimuths, framing, size, elevation, camera_info)
            scene = scene.to(host.device_for(device, renderer))
            report, behind = host.Report(), BACKGROUNDS[background]
            images, masks = [], []
            for t in range(len(taus)):
                rgba = render_frames(scene, cameras[t : t + 1], taus[t : t + 1], backend=renderer)[0, 0]
                images.append(rgba[..., :3] * rgba[..., 3:] + behind * (1 - rgba[..., 3:]))
                masks.append(rgba[..., 3])
                report.show(t + 1, len(taus), lambda: images[-1])
            pictures, rate = torch.stack(images), Fraction(fps).limit_denominator(1000)
            video = InputImpl.VideoFromComponents(Types.VideoComponents(images=pictures, frame_rate=rate))
            return io.NodeOutput(pictures, torch.stack(masks), video, fps, ui=host.film(pictures, fps))


def _times(scene: Scene4D, shot: dict[str, Any]) -> tuple[Tensor, float]:
    """Times of the film's frames, and its frame rate."""
    if shot["shot"] == "orbit":
        return torch.full((shot["frames"],), float(shot["time"])), STILL_FPS
    count = shot["frames"] or scene.frames
    return frame_times(count, scene.loop).repeat(shot["repeats"]), scene.fps * count / scene.frames


def _cameras(
    scene: Scene4D, azimuths: Tensor, framing: str, size: int, elevation: float, camera_info: dict[str, Any] | None
) -> Cameras:  # (F,)
    front = scene.front or DEFAULT_FRONT
    if camera_info is not None:
        aspect = float(camera_info.get("aspect") or 1.0)
        width, height = (size, max(1, round(size / aspect))) if aspect >= 1 else (max(1, round(size * aspect)), size)
        camera = from_camera_info(camera_info, width, height)
        # orbit_poses at distance 0 is the turn of the camera alone, as seen from azimuth 0.
        turn = orbit_poses(0.0, 0.0, 0.0).mT @ orbit_poses(azimuths, 0.0, 0.0)
        return Cameras(camera.world_to_camera @ turn, camera.K.expand(len(azimuths), 3, 3), width, height)
    if framing == "video":
        return scene_cameras(scene, azimuths, front.elevation + elevation, size)
    return front.centred(size, azimuths, front.elevation + elevation)


class Anchor4DSaveScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DSaveScene",
            display_name="Save Scene",
            category=CATEGORY,
            description="Saves the whole scene, Gaussians, motion, timing and camera, as one file for Load Scene and the "
            "command line.",
            search_aliases=["export scene", "safetensors", "4dgs", "4d"],
            inputs=[
                host.Scene.Input("scene", tooltip="The scene to save."),
                io.String.Input(
                    "filename_prefix", default="3d/Anchor4D", tooltip="Folder and name below ComfyUI's output folder."
                ),
            ],
            outputs=[io.String.Output("path", tooltip="Where the file is.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, scene: Scene4D, filename_prefix: str) -> io.NodeOutput:
        with host.work(cls):
            folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
                filename_prefix, folder_paths.get_output_directory()
            )
            path = Path(folder) / f"{name}_{counter:05}_.safetensors"
            scene.save(path)
            host.say(f"{Path(subfolder) / path.name}: {len(scene.gaussians)} Gaussians, {path.stat().st_size / 2**20:.1f} MB")
            return io.NodeOutput(str(path))


class Anchor4DLoadScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        output, given = Path(folder_paths.get_output_directory()), Path(folder_paths.get_input_directory())
        files = [f"{name} [output]" for name in host.listed(output, [".safetensors"], output)] + host.listed(
            given / "3d", [".safetensors"], given
        )
        return io.Schema(
            node_id="Anchor4DLoadScene",
            display_name="Load Scene",
            category=CATEGORY,
            description="Loads a scene that Save Scene or the command line wrote.",
            search_aliases=["import scene", "safetensors", "4dgs", "4d"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[host.NONE, *files],
                    tooltip="A scene in ComfyUI's output folder or in input/3d. Press R after adding one.",
                ),
                io.String.Input(
                    "path",
                    default="",
                    tooltip="A scene file anywhere on this computer. Used instead of the list above when not empty.",
                ),
            ],
            outputs=[host.Scene.Output("scene", tooltip="The scene.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None, path: str | None = None) -> bool | str:
        return host.valid_choice(file, path, "save a scene and choose it, or fill in path")

    @classmethod
    def fingerprint_inputs(cls, file: str, path: str) -> float:
        return host.changed(host.chosen_path(file, path))

    @classmethod
    def execute(cls, file: str, path: str = "") -> io.NodeOutput:
        with host.work(cls):
            scene = Scene4D.load(host.chosen_path(file, path))
            motion = "still" if scene.field is None else f"moved by {scene.field.name}"
            host.say(f"{len(scene.gaussians)} Gaussians, {motion}, {scene.frames} frames at {scene.fps:g} fps")
            return io.NodeOutput(scene)


class Anchor4DSceneAtTime(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DSceneAtTime",
            display_name="Scene at Time to Splat",
            category=CATEGORY,
            description="One moment of a scene as ComfyUI's SPLAT, for its viewer, exporters and splat tools.",
            search_aliases=["freeze", "scene to splat", "gaussian splat", "ply", "spz", "4dgs"],
            inputs=[
                host.Scene.Input("scene", tooltip="A still or moving scene."),
                io.Float.Input("time", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="The moment: 0 = start, 1 = end."),
            ],
            outputs=[io.Splat.Output("splat", tooltip="One splat, for Create 3D File (from Splat), Render Splat, ...")],
        )

    @classmethod
    def execute(cls, scene: Scene4D, time: float) -> io.NodeOutput:
        with host.work(cls):
            return io.NodeOutput(splat_of([scene.at(time)]))


class Anchor4DSceneToSplats(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DSceneToSplats",
            display_name="Scene to Splat Batch",
            category=CATEGORY,
            description="Every frame of a scene as one batch of ComfyUI's SPLAT. Render Splat draws it as a film when given "
            "the camera.",
            search_aliases=["scene to splat", "splat sequence", "gaussian splat", "bake", "4dgs"],
            inputs=[
                host.Scene.Input("scene", tooltip="A still or moving scene."),
                io.Int.Input("frames", default=0, min=0, max=2000, tooltip="Number of moments. 0 = the scene's own frames."),
            ],
            outputs=[
                io.Splat.Output("splats", tooltip="One splat a frame, all with the same Gaussians in the same order."),
                io.Load3DCamera.Output(
                    "camera_info",
                    tooltip="A front camera that frames the object: connect it to Render Splat to keep it steady.",
                ),
                io.Float.Output("fps", tooltip="Frames a second."),
            ],
        )

    @classmethod
    def execute(cls, scene: Scene4D, frames: int) -> io.NodeOutput:
        with host.work(cls):
            count = frames or scene.frames
            front = (scene.front or DEFAULT_FRONT).centred(512)
            return io.NodeOutput(splat_of(scene.bake(count)), to_camera_info(front), scene.fps * count / scene.frames)


def splat_of(sets: list[Gaussians]) -> Types.SPLAT:
    """The host's SPLAT, one set a frame, all of one size: activated values, in the splat files' Y-down frame."""
    turned = [half_turn(gaussians.detach().to("cpu", torch.float32)) for gaussians in sets]
    batch = Gaussians(**{name: torch.stack([g.tensors()[name] for g in turned]) for name in turned[0].tensors()})
    return Types.SPLAT(
        batch.means, batch.scales, torch.nn.functional.normalize(batch.quats, dim=-1), batch.opacities[..., None], batch.sh
    )


class Anchor4DExportPLY(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DExportPLY",
            display_name="Export PLY Sequence",
            category=CATEGORY,
            description="Writes one splat .ply a frame and a manifest, for SuperSplat, Blender add-ons, Unity and other "
            "players.",
            search_aliases=["save ply", "splat sequence", "supersplat", "export 4d", "4dgs"],
            inputs=[
                host.Scene.Input("scene", tooltip="The scene to export."),
                io.String.Input(
                    "filename_prefix", default="3d/Anchor4D", tooltip="Folder and name below ComfyUI's output folder."
                ),
                io.Int.Input("frames", default=0, min=0, max=2000, tooltip="Number of files. 0 = the scene's own frames."),
            ],
            outputs=[io.String.Output("folder", tooltip="Where the files are.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, scene: Scene4D, filename_prefix: str, frames: int) -> io.NodeOutput:
        with host.work(cls):
            folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
                filename_prefix, folder_paths.get_output_directory()
            )
            target = Path(folder) / f"{name}_{counter:05}_ply"
            files = write_ply_sequence(target, scene, frames or None)
            size = sum(file.stat().st_size for file in files) / 2**20
            host.say(f"{Path(subfolder) / target.name}: {len(files)} files, {size:.0f} MB")
            return io.NodeOutput(str(target))


NODES = [
    Anchor4DRenderScene,
    Anchor4DSaveScene,
    Anchor4DLoadScene,
    Anchor4DSceneAtTime,
    Anchor4DSceneToSplats,
    Anchor4DExportPLY,
]
