"""5 View and export: pictures of a scene, scene files, and splats for other programs."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import InputImpl, Types, io
from comfy_execution.graph_utils import ExecutionBlocker
from einops import rearrange
from torch import Tensor

from ..core.cameras import CameraInfo, Cameras, camera_infos, from_camera_info, orbit_poses, to_camera_info
from ..core.gaussians import Gaussians, half_turn
from ..core.io import SPLAT_SUFFIXES, write_ply_sequence
from ..core.io.sequence import open_scene
from ..core.mesh import Mesh, mesh_to_arrays
from ..core.scene.object3d import SplatObject
from ..core.scene.scene import Scene4D, frame_times
from ..core.scene.surface import extract_surface, surface_at
from ..core.scene.trajectory import Trajectory
from ..core.scene.views import DEFAULT_FRONT, depth_film, object_cameras, render_maps, renders, scene_cameras, straight_alpha
from . import host, widgets

CATEGORY = "Anchor4D/5 View and export"
BACKGROUNDS = {"white": 1.0, "black": 0.0, "grey": 0.5}
#: Frames a second of a film in which time stands still.
STILL_FPS = 24.0
#: The error where depth or normals are connected and maps is off.
NO_MAPS = "Render Scene: switch on maps (under the advanced inputs) to get depth and normals"


def _azimuth() -> io.Input:
    return widgets.real(
        "azimuth",
        0.0,
        (-360.0, 360.0),
        "Side to look from, in degrees: 0 = as the driving video, positive = counter-clockwise seen from above.",
        step=1.0,
    )


def _sweep() -> io.Input:
    return widgets.real("sweep", 360.0, (-3600.0, 3600.0), "How far the camera goes round, in degrees. 360 = once.", step=5.0)


def _repeats(default: int) -> io.Input:
    return widgets.whole("repeats", default, (1, 100), "How often the clip plays.")


def _frames() -> io.Input:
    return widgets.whole(
        "frames",
        0,
        (0, 2000),
        "Frames of the clip. More than it has = slow motion in between. 0 = as many as the driving video.",
        words=widgets.SCENES_OWN,
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
                widgets.scene(),
                io.DynamicCombo.Input(
                    "shot",
                    options=[
                        io.DynamicCombo.Option("moving", [_azimuth(), _sweep(), _repeats(4), _frames()]),
                        io.DynamicCombo.Option("fixed", [_azimuth(), _repeats(1), _frames()]),
                        io.DynamicCombo.Option(
                            "orbit",
                            [
                                widgets.real("time", 0.0, (0.0, 1.0), "The frozen moment: 0 = start, 1 = end.", step=0.01),
                                _azimuth(),
                                _sweep(),
                                widgets.whole("frames", 48, (1, 2000), "Frames of the film."),
                            ],
                        ),
                        io.DynamicCombo.Option(
                            "sides",
                            [
                                widgets.whole("sides", 4, (1, 36), "How many sides, evenly spread around the object."),
                                widgets.whole("columns", 0, (0, 36), "Pictures next to each other. 0 = about as many as rows."),
                                _azimuth(),
                                _repeats(1),
                                _frames(),
                            ],
                        ),
                    ],
                    tooltip="moving = time and camera move. fixed = time runs, the camera stands. orbit = time stands, the "
                    "camera goes round. sides = time runs, seen from several sides in one picture.",
                ),
                widgets.choice(
                    "framing",
                    ["object", "video"],
                    "object = a square picture of the whole object. video = the driving video's own framing.",
                ),
                widgets.whole("size", 512, (32, 2048), "Longer side of the picture, in pixels.", step=16),
                widgets.choice(
                    "background", list(BACKGROUNDS), "Colour behind the object. The mask comes beside it.", default="white"
                ),
                widgets.real(
                    "elevation",
                    0.0,
                    (-89.0, 89.0),
                    "How much higher than the driving video's camera to stand, in degrees: positive = from above.",
                    step=1.0,
                ),
                io.Load3DCamera.Input(
                    "camera_info",
                    optional=True,
                    tooltip="Look from this camera instead (Create Camera Info, Load 3D). The object is 1 unit long and "
                    "centred; azimuth and sweep still turn it. A batch of cameras (Create Camera Orbit, Batch Cameras) gives "
                    "one picture each, spread over the clip or all of the frozen moment; sides shows them side by side.",
                ),
                *widgets.drawing(),
                host.Trajectory.Input(
                    "trajectory",
                    optional=True,
                    tooltip="Follow this camera path instead (Orbit, Spiral, Keyframe Trajectory, Play Scene). It is spread "
                    "over the frames of the shot; where its keys name moments of the clip, these are shown.",
                ),
                widgets.switch(
                    "maps", False, "Also draw the depth and normals outputs. Takes about three times as long.", folded=True
                ),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The frames."),
                io.Mask.Output("masks", tooltip="Where the object is, 1 = object."),
                io.Video.Output("video", tooltip="The film, for Save Video."),
                io.Float.Output("fps", tooltip="Frames a second."),
                io.Image.Output(
                    "depth",
                    tooltip="Needs maps. Inverse depth as ControlNet takes it: nearest white, farthest dark, nothing black, on "
                    "one scale for the whole film.",
                ),
                io.Image.Output(
                    "normals",
                    tooltip="Needs maps. Normals in the camera's frame as ControlNet takes them (OpenGL): red = right, green = "
                    "up, blue = to the viewer, nothing black.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        scene: Any,
        shot: dict[str, Any],
        framing: str,
        size: int,
        background: str,
        elevation: float,
        device: str = "auto",
        renderer: str = "auto",
        camera_info: CameraInfo | None = None,
        trajectory: Trajectory | None = None,
        maps: bool = False,
    ) -> io.NodeOutput:
        with host.work(cls):
            scene = host.scene_of(scene)
            batch = [] if camera_info is None or trajectory is not None else camera_infos(camera_info)
            if len(batch) > 1 and shot["shot"] != "sides":
                shot = shot | {"frames": len(batch), "repeats": 1}
            taus, fps = _times(scene, shot)
            if len(batch) > 1:
                cameras = _batch(batch, _azimuths(shot | {"sides": 1}, len(taus)), size, shot["shot"] == "sides")
            elif trajectory is None:
                cameras = _cameras(scene, _azimuths(shot, len(taus)), framing, size, elevation, batch)
            else:
                cameras = trajectory.cameras(len(taus), *trajectory.size(size)).reshape(-1, 1)
                own = trajectory.taus(len(taus))
                taus = taus if own is None else own
            scene = scene.to(host.device_for(device, renderer))
            report, behind = host.Report(), BACKGROUNDS[background]
            columns = shot.get("columns") or math.ceil(math.sqrt(cameras.batch[-1]))
            images, masks, depths, normals = [], [], [], []
            also = render_maps(scene, cameras, taus, backend=renderer) if maps else itertools.repeat((None, None))
            for drawn, (depth, normal) in zip(renders(scene, cameras, taus, backend=renderer), also):
                rgba = _sheet(straight_alpha(drawn).cpu(), columns)
                images.append(rgba[..., :3] * rgba[..., 3:] + behind * (1 - rgba[..., 3:]))
                masks.append(rgba[..., 3])
                if depth is not None and normal is not None:
                    depths.append(_sheet(depth[..., None].cpu(), columns)[..., 0])
                    normals.append(_sheet((normal.cpu() + 1) / 2, columns) * rgba[..., 3:])
                report.show(len(images), len(taus), lambda: images[-1])
            pictures, seen, rate = torch.stack(images), torch.stack(masks), Fraction(fps).limit_denominator(1000)
            video = InputImpl.VideoFromComponents(Types.VideoComponents(images=pictures, frame_rate=rate))
            shaded: list[Any] = [ExecutionBlocker(NO_MAPS)] * 2
            if maps:
                shaded = [depth_film(torch.stack(depths), seen)[..., None].repeat(1, 1, 1, 3), torch.stack(normals)]
            return io.NodeOutput(pictures, seen, video, fps, *shaded, ui=host.film(pictures, fps))


def _times(scene: Scene4D, shot: dict[str, Any]) -> tuple[Tensor, float]:
    """Times of the film's frames, and its frame rate."""
    if shot["shot"] == "orbit":
        return torch.full((shot["frames"],), float(shot["time"])), STILL_FPS
    count = shot["frames"] or scene.frames
    return frame_times(count, scene.loop).repeat(shot["repeats"]), scene.fps * count / scene.frames


def _azimuths(shot: dict[str, Any], count: int) -> Tensor:  # (F, C), or (1, C) where the cameras stand
    if shot["shot"] == "sides":
        return shot["azimuth"] + torch.arange(shot["sides"])[None] * (360 / shot["sides"])
    return shot["azimuth"] + shot.get("sweep", 0.0) * torch.arange(count)[:, None] / count


def _batch(infos: list[dict[str, Any]], azimuths: Tensor, size: int, sides: bool) -> Cameras:
    """A batch of the host's cameras, turned by ``azimuths`` (F or 1, 1): one a frame, (F, 1), or all in each frame, (C,)."""
    turn = orbit_poses(0.0, 0.0, 0.0).mT @ orbit_poses(azimuths[:, 0], 0.0, 0.0)
    width, height = _size(infos[0], size)
    cameras = from_camera_info(infos, width, height)
    cameras = Cameras(cameras.world_to_camera @ turn, cameras.K, width, height)
    return cameras if sides else cameras.reshape(-1, 1)


def _size(info: dict[str, Any], size: int) -> tuple[int, int]:
    """Width and height of a camera's picture whose longer side is ``size``."""
    aspect = float(info.get("aspect") or 1.0)
    return (size, max(1, round(size / aspect))) if aspect >= 1 else (max(1, round(size * aspect)), size)


def _cameras(
    scene: Scene4D, azimuths: Tensor, framing: str, size: int, elevation: float, infos: list[dict[str, Any]]
) -> Cameras:  # (F, C), or (C,) where they stand
    flat, shape = azimuths.flatten(), azimuths.shape if len(azimuths) > 1 else azimuths.shape[1:]
    above = (scene.front or DEFAULT_FRONT).elevation + elevation
    if infos:
        width, height = _size(infos[0], size)
        camera = from_camera_info(infos, width, height)
        # orbit_poses at distance 0 is the turn of the camera alone, as seen from azimuth 0.
        turn = orbit_poses(0.0, 0.0, 0.0).mT @ orbit_poses(flat, 0.0, 0.0)
        cameras = Cameras(camera.world_to_camera @ turn, camera.K.expand(len(flat), 3, 3), width, height)
    elif framing == "video":
        cameras = scene_cameras(scene, flat, above, size)
    else:
        cameras = object_cameras(scene, size, flat, above)
    return cameras.reshape(*shape)


def _sheet(pictures: Tensor, columns: int) -> Tensor:  # (C, H, W, K) -> (H', W', K)
    """Pictures in rows, zeros where the last row is not full."""
    spare = -len(pictures) % columns
    if spare:
        pictures = torch.cat([pictures, torch.zeros_like(pictures[:1]).expand(spare, -1, -1, -1)])
    return rearrange(pictures, "(r c) h w k -> (r h) (c w) k", c=columns)


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
                widgets.scene(),
                widgets.prefix(),
            ],
            outputs=[io.String.Output("path", tooltip="Where the file is.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, scene: Any, filename_prefix: str) -> io.NodeOutput:
        with host.work(cls):
            scene = host.scene_of(scene)
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
        saved = host.listed(output, [".safetensors", ".zip", ".tsog"], output)
        saved.sort(key=lambda name: host.changed(output / name), reverse=True)
        files = [f"{name} [output]" for name in saved]
        files += host.listed(given / "3d", [".safetensors", ".zip", ".tsog", *SPLAT_SUFFIXES], given)
        return io.Schema(
            node_id="Anchor4DLoadScene",
            display_name="Load Scene",
            category=CATEGORY,
            description="Loads a scene that Save Scene or the command line wrote, or splats of any program: one file, or a "
            "sequence.",
            search_aliases=[
                "import scene",
                "safetensors",
                "ply sequence",
                "load splat",
                "spz",
                "tsog",
                "freetimegs",
                "4dgs",
                "4d",
            ],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[host.NONE, *files],
                    tooltip="A scene in ComfyUI's output folder, the newest first, or in input/3d: .safetensors, a .zip of "
                    "splat files, one a "
                    "frame, or, in input/3d, a splat file. Press R after adding one.",
                ),
                io.String.Input(
                    "path",
                    default="",
                    tooltip="A scene file, a splat file, or a folder or .zip of splat files anywhere on this computer. Used "
                    "instead of the list above when not empty." + host.TYPED_PATH,
                ),
                widgets.up(),
            ],
            outputs=[host.Scene.Output("scene", tooltip="The scene.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None, path: str | None = None) -> bool | str:
        return host.valid_choice(file, path, "save a scene and choose it, or fill in path")

    @classmethod
    def fingerprint_inputs(cls, file: str, path: str, **others: Any) -> float:
        return host.changed(host.chosen_path(file, path))

    @classmethod
    def execute(cls, file: str, path: str = "", up: str = "y") -> io.NodeOutput:
        with host.work(cls):
            scene = open_scene(host.chosen_path(file, path), up=up)
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
                widgets.scene(),
                widgets.real("time", 0.0, (0.0, 1.0), "The moment: 0 = start, 1 = end.", step=0.01),
            ],
            outputs=[io.Splat.Output("splat", tooltip="One splat, for Create 3D File (from Splat), Render Splat, ...")],
        )

    @classmethod
    def execute(cls, scene: Any, time: float) -> io.NodeOutput:
        with host.work(cls):
            scene = host.scene_of(scene)
            return io.NodeOutput(splat_of([scene.at(time)]))


class Anchor4DSceneToMesh(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DSceneToMesh",
            display_name="Scene at Time to Mesh",
            category=CATEGORY,
            description="One moment of a scene, or an object, as ComfyUI's MESH, for Render Mesh, Bake Texture From Views, "
            "Save GLB and other mesh tools.",
            search_aliases=["scene to mesh", "mesh", "glb", "render mesh", "bake texture", "unwrap", "decimate"],
            inputs=[
                io.MultiType.Input(
                    "scene",
                    types=[host.Scene, io.Splat, host.Mesh],
                    tooltip="A scene, splats, or an object from Load Mesh, Inflate Object, Image to Mesh, ...",
                ),
                widgets.real("time", 0.0, (0.0, 1.0), "The moment: 0 = start, 1 = end. An object has only one.", step=0.01),
                widgets.whole(
                    "resolution",
                    128,
                    (16, 512),
                    "Cells along the longest side of a mesh that is made from Gaussians. More = finer, slower. Not used where "
                    "the scene keeps the mesh that it was made from.",
                    folded=True,
                ),
            ],
            outputs=[
                io.Mesh.Output(
                    "mesh", tooltip="With its texture or vertex colours. +Y is up, as in glTF and ComfyUI's cameras."
                )
            ],
        )

    @classmethod
    def execute(cls, scene: Any, time: float, resolution: int = 128) -> io.NodeOutput:
        with host.work(cls):
            if isinstance(scene, SplatObject):
                mesh = extract_surface(scene.gaussians, resolution=resolution)
            elif isinstance(scene, Mesh):
                mesh = scene
            else:
                mesh = surface_at(host.scene_of(scene), time, resolution=resolution)
            host.say(f"{len(mesh.vertices)} vertices, {len(mesh.faces)} faces")
            return io.NodeOutput(Types.MESH(**mesh_to_arrays(mesh.to("cpu"))))


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
                widgets.scene(),
                widgets.whole(
                    "frames", 0, (0, 2000), "Number of moments. 0 = the scene's own frames.", words=widgets.SCENES_OWN
                ),
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
    def execute(cls, scene: Any, frames: int) -> io.NodeOutput:
        with host.work(cls):
            scene = host.scene_of(scene)
            count = frames or scene.frames
            front = to_camera_info(object_cameras(scene, 512))
            return io.NodeOutput(splat_of(scene.bake(count)), front, scene.fps * count / scene.frames)


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
                widgets.scene(),
                widgets.prefix(),
                widgets.whole("frames", 0, (0, 2000), "Number of files. 0 = the scene's own frames.", words=widgets.SCENES_OWN),
            ],
            outputs=[io.String.Output("folder", tooltip="Where the files are.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, scene: Any, filename_prefix: str, frames: int) -> io.NodeOutput:
        with host.work(cls):
            scene = host.scene_of(scene)
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
    Anchor4DSceneToMesh,
    Anchor4DSceneToSplats,
    Anchor4DExportPLY,
]
