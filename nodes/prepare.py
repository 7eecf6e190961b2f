"""1 Prepare: the driving video, the mesh, and the demo's own sample of both."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import Input, Types, io
from torch import Tensor

from ..core import mesh as meshes
from ..core.cameras import orbit
from ..core.files import InputError
from ..core.generate.chain import FRONT
from ..core.io.objects import SUFFIXES, load_object
from ..core.io.video import ANIMATIONS, PICTURES, load_video
from ..core.mesh import UP_AXES
from ..core.runs.sample import FPS, FRAMES, TEST_AZIMUTHS, sample_case
from ..core.scene.object3d import Object3D, SplatObject, picture_of, render_object
from . import host, widgets

CATEGORY = "Anchor4D/1 Prepare"
#: What the host's own types and 3D files are called on a socket that also takes an Anchor4D object.
MESH_TYPES = [io.Mesh, io.File3DAny, io.File3DGLB, io.File3DGLTF, io.File3DOBJ, io.File3DPLY, io.File3DSTL]
#: ComfyUI 0.23 and 0.24 have no type for any splat file.
ANY_SPLAT = [io.File3DSplatAny] if hasattr(io, "File3DSplatAny") else []
SPLAT_TYPES = [io.Splat, *ANY_SPLAT, io.File3DSPZ, io.File3DSPLAT, io.File3DKSPLAT]
OBJECT_TYPES = [host.Mesh, *MESH_TYPES, *SPLAT_TYPES]


def clip_inputs(*only: str) -> list[io.Input]:
    """How a clip is cut out, cropped and sampled: all inputs, or those of these ids."""
    inputs: list[io.Input] = [
        widgets.whole(
            "frames",
            0,
            (0, 1000),
            "Number of frames to keep, evenly spaced. 0 = all. Fewer = faster; 12 to 32 suit most clips.",
            words=widgets.reads(0, "all"),
        ),
        widgets.real(
            "fps",
            0.0,
            (0.0, 240.0),
            "Frames a second of the source. 0 = the video's own, or 12 for images.",
            step=0.5,
            words=widgets.reads(0, "source's own"),
        ),
        widgets.whole(
            "resolution",
            512,
            (64, 2048),
            "Largest side of the cut-out, in pixels. Lower = faster, higher = finer. It is never enlarged.",
            step=16,
        ),
        widgets.choice(
            "background",
            ["auto", "key", "rembg"],
            "How to find the object when there is neither a mask nor transparency. key = the backdrop has one colour. "
            "rembg = a neural network (needs the rembg package). auto = key where the backdrop is plain, else rembg.",
        ),
        widgets.real(
            "fill",
            0.85,
            (0.3, 1.0),
            "Share of the picture that the object fills, over the whole clip. Lower = more room around it.",
            step=0.01,
            folded=True,
        ),
        widgets.switch(
            "download_model",
            False,
            "Allow rembg to download its network (176 MB) once when it is not on this computer yet.",
            folded=True,
        ),
        widgets.real("start", 0.0, (0.0, 86400.0), "Second of the source at which the clip begins.", step=0.1, folded=True),
        widgets.real(
            "end",
            0.0,
            (0.0, 86400.0),
            "Second of the source at which the clip ends. 0 = at its end.",
            step=0.1,
            words=widgets.reads(0, "its end"),
            folded=True,
        ),
        widgets.whole(
            "every", 1, (1, 1000), "Take every N-th frame. 1 = all. Higher = fewer frames, the clip lasts as long.", folded=True
        ),
        io.String.Input(
            "backdrop",
            default="",
            optional=True,
            advanced=True,
            tooltip="Colour of the backdrop, such as green or #00b140, where the border of the picture shows other things too. "
            "Empty = found by itself.",
        ),
    ]
    return [each for each in inputs if not only or each.id in only]


def _video_outputs() -> list[io.Output]:
    return [
        host.Video.Output("driving_video", tooltip="The object of the video, cut out and cropped: what the other steps take."),
        io.Image.Output("images", tooltip="The cut-out frames on white."),
        io.Mask.Output("masks", tooltip="Where the object is, 1 = object."),
        io.Float.Output("fps", tooltip="Frames a second of the prepared clip."),
    ]


def _prepared(
    source: Any,
    mask: Tensor | None,
    frames: int,
    fps: float,
    resolution: int,
    background: str,
    fill: float = 0.85,
    download_model: bool = False,
    start: float = 0.0,
    end: float = 0.0,
    every: int = 1,
    backdrop: str = "",
    mask_path: str = "",
    shown_as: str = ".webp",
) -> io.NodeOutput:
    video = load_video(
        source, host.chosen_path(host.NONE, mask_path) if mask_path.strip() else mask, fps=fps or None, frames=frames or None,
        start=start, end=end or None, every=every, resolution=resolution, fill=fill,
        background=backdrop.strip() or background, download=download_model, progress=host.Report().count,
    )  # fmt: skip
    on_white = video.composited()
    found = {"alpha": "transparency", "mask": "the mask", "key": "the plain backdrop", "rembg": "rembg"}[video.masked_by]
    facts = f"{len(video)} frames at {video.fps:g} fps, {video.resolution} px, object found by {found}"
    host.say("\n".join([facts, *(f"Warning: {warning}" for warning in video.warnings)]))
    return io.NodeOutput(video, on_white, video.masks.clone(), video.fps, ui=host.film(_small(on_white), video.fps, shown_as))


def _small(images: Tensor, side: int = 256) -> Tensor:  # (T, H, W, 3)
    step = max(1, images.shape[1] // side)
    return images[:, ::step, ::step]


class Anchor4DPrepareVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DPrepareVideo",
            display_name="Prepare Driving Video",
            category=CATEGORY,
            description="Cuts the moving object out of a video or image batch and crops all frames alike.",
            search_aliases=["driving video", "anchor video", "remove background", "crop video", "pla4d", "4d", "4dgs"],
            inputs=[
                io.MultiType.Input(
                    "source",
                    types=[io.Image, io.Video],
                    tooltip="The video to follow: images or a video, one object, filmed from one side with a still camera.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the object is, 1 = object: one mask a frame, or one for all. Invert it if it comes from "
                    "Load Image.",
                ),
                *clip_inputs(),
            ],
            outputs=_video_outputs(),
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls, source: Tensor | Input.Video, mask: Tensor | None = None, fps: float = 0.0, **settings: Any
    ) -> io.NodeOutput:
        with host.work(cls):
            if not isinstance(source, Tensor):
                clip = source.get_components()
                fps = fps or float(clip.frame_rate)
                alpha = getattr(clip, "alpha", None)
                if mask is None and alpha is not None:
                    mask = alpha.reshape(alpha.shape[:3])
                source = clip.images
            return _prepared(host.owned(source), host.owned(mask), fps=fps, **settings)


class Anchor4DLoadVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        base = Path(folder_paths.get_input_directory())
        files = [p.name for p in base.iterdir() if p.is_file()] if base.is_dir() else []
        films = set(folder_paths.filter_files_content_types(files, ["video"])) | {
            name for name in files if Path(name).suffix.lower() in ANIMATIONS - PICTURES | {".webp", ".avif"}
        }
        folders = {p.name for p in base.iterdir() if p.is_dir() and any(q.suffix.lower() in PICTURES for q in p.iterdir())}
        return io.Schema(
            node_id="Anchor4DLoadVideo",
            display_name="Load Driving Video",
            category=CATEGORY,
            description="Reads a video file, an animated picture or a folder of frames, cuts out the object and crops all "
            "frames alike.",
            search_aliases=["driving video", "frame folder", "png sequence", "image sequence", "load frames", "pla4d", "4d"],
            inputs=[
                io.Combo.Input(
                    "video",
                    options=["", *sorted(films | folders)],  # the page tries to play any other name
                    upload=io.UploadType.video,
                    tooltip="A video, or a folder of frames, in ComfyUI's input folder.",
                ),
                io.String.Input(
                    "path",
                    default="",
                    tooltip="A video file or folder of frames anywhere on this computer. Used instead of the list above "
                    "when not empty." + host.TYPED_PATH,
                ),
                *clip_inputs(),
                io.String.Input(
                    "mask_path",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Masks of the object, white on black: a video or folder with one for each frame, or one picture. "
                    "Used where the video has no transparency." + host.TYPED_PATH,
                ),
            ],
            outputs=_video_outputs(),
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, video: str | None = None, path: str | None = None) -> bool | str:
        return host.valid_choice(video, path, "choose a video in the list, upload one, or fill in path")

    @classmethod
    def fingerprint_inputs(cls, video: str, path: str, mask_path: str = "", **settings: Any) -> float:
        masks = host.changed(host.chosen_path(host.NONE, mask_path)) if mask_path.strip() else 0.0
        return host.changed(host.chosen_path(video, path)) + masks

    @classmethod
    def execute(cls, video: str, path: str = "", **settings: Any) -> io.NodeOutput:
        with host.work(cls):
            return _prepared(host.chosen_path(video, path), None, **settings, shown_as=".webm")


class Anchor4DLoadMesh(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        base = Path(folder_paths.get_input_directory())
        return io.Schema(
            node_id="Anchor4DLoadMesh",
            display_name="Load Mesh",
            category=CATEGORY,
            description="Reads a 3D model (GLB, GLTF, OBJ, PLY, STL, DAE or USDZ) with its textures, or Gaussian splats (PLY, "
            "SPZ, SPLAT, KSPLAT or GLB). Size, place and turn do not matter.",
            search_aliases=["load 3d model", "import glb", "import obj", "load splat", "object", "pla4d", "4d"],
            inputs=[
                io.Combo.Input(
                    "mesh",
                    options=[host.NONE, *host.listed(base / "3d", SUFFIXES, base)],
                    tooltip="A 3D model in ComfyUI's input/3d folder: upload one, or press R after adding one there.",
                    extra_dict={"a4d_suffixes": [*SUFFIXES, ".mtl", ".bin"]},
                ),
                io.String.Input(
                    "path",
                    default="",
                    tooltip="A 3D model anywhere on this computer. Used instead of the list above when not empty."
                    + host.TYPED_PATH,
                ),
                widgets.choice(
                    "up",
                    list(UP_AXES),
                    "Axis of the file that points up. z = for models in Blender's or a CAD program's axes, which "
                    "otherwise lie on their back.",
                    default="y",
                    optional=True,
                ),
            ],
            outputs=[host.Mesh.Output("mesh", tooltip="The model, as it is in the file.")],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, mesh: str | None = None, path: str | None = None) -> bool | str:
        return host.valid_choice(mesh, path, "put a model into input/3d and choose it, or fill in path")

    @classmethod
    def fingerprint_inputs(cls, mesh: str, path: str, up: str = "y") -> float:
        return host.changed(host.chosen_path(mesh, path))

    @classmethod
    def execute(cls, mesh: str, path: str = "", up: str = "y") -> io.NodeOutput:
        with host.work(cls):
            return mesh_output(load_object(host.chosen_path(mesh, path), up))


class Anchor4DConvertMesh(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DConvertMesh",
            display_name="Convert Mesh",
            category=CATEGORY,
            description="Takes a MESH or 3D file from ComfyUI's own nodes (Hunyuan3D, Trellis, Load 3D, Tripo, ...) into "
            "Anchor4D.",
            search_aliases=["mesh to anchor4d", "hunyuan3d", "trellis", "file3d", "glb", "pla4d", "4d"],
            inputs=[
                io.MultiType.Input(
                    "mesh", types=MESH_TYPES, tooltip="A mesh or a 3D file. It may have textures, vertex colours or neither."
                ),
                widgets.whole("index", 0, (0, 4095), "Which mesh of a batch.", folded=True),
            ],
            outputs=[host.Mesh.Output("mesh", tooltip="The mesh for Focal Alignment.")],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, mesh: Types.MESH | Types.File3D, index: int = 0) -> io.NodeOutput:
        with host.work(cls):
            return mesh_output(convert_object(mesh, index))


class Anchor4DConvertSplats(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DConvertSplats",
            display_name="Convert Splats",
            category=CATEGORY,
            description="Takes a SPLAT from ComfyUI's own nodes (TripoSplat, Get Splat, ...) into Anchor4D, where it does what "
            "a mesh does.",
            search_aliases=["splat to anchor4d", "triposplat", "gaussian splat", "object", "pla4d", "4d"],
            inputs=[
                io.Splat.Input("splat", tooltip="One object as Gaussians, the pose that the video's first frame shows."),
                widgets.whole("index", 0, (0, 4095), "Which splat of a batch.", folded=True),
            ],
            outputs=[host.Mesh.Output("object", tooltip="The splats for Focal Alignment, in place of a mesh.")],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, splat: Types.SPLAT, index: int = 0) -> io.NodeOutput:
        with host.work(cls):
            return mesh_output(convert_object(splat, index))


class Anchor4DRenderObject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DRenderObject",
            display_name="Render Object",
            category=CATEGORY,
            description="Takes a picture of a mesh or splat from one side: what Image to Video starts from when you have a 3D "
            "model and no video.",
            search_aliases=["render mesh", "render splat", "front view", "snapshot", "3d to image", "align4d", "4d"],
            inputs=[
                io.MultiType.Input(
                    "mesh",
                    types=OBJECT_TYPES,
                    tooltip="The object as a mesh or as splats: from Load Mesh, or a MESH, SPLAT or 3D file of any other node.",
                ),
                widgets.real(
                    "azimuth",
                    0.0,
                    (-360.0, 360.0),
                    "Side to look from, in degrees: 0 = the front (+Z), positive = counter-clockwise seen from above.",
                    step=1.0,
                ),
                widgets.real(
                    "elevation", 0.0, (-89.0, 89.0), "Of the camera, in degrees; positive = it looks down from above.", step=1.0
                ),
                widgets.real(
                    "distance",
                    FRONT.distance,
                    (0.3, 20.0),
                    "How far the camera stands from the object's middle, in units of the object's longest side. Higher "
                    "= the object looks smaller.",
                    step=0.05,
                ),
                widgets.real(
                    "field_of_view",
                    FRONT.fovy,
                    (5.0, 120.0),
                    "Of the camera, in degrees. Smaller, from further away = flatter.",
                    step=0.1,
                ),
                widgets.whole("size", FRONT.width, (32, 2048), "Side of the square picture, in pixels.", step=16),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The picture on white. An object without colours is shaded."),
                io.Mask.Output("mask", tooltip="Where the object is, 1 = object."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        mesh: Object3D | Types.MESH | Types.SPLAT | Types.File3D,
        azimuth: float,
        elevation: float,
        distance: float,
        field_of_view: float,
        size: int,
    ) -> io.NodeOutput:
        with host.work(cls):
            item = convert_object(mesh).normalized()[0]
            drawn = picture_of(item, orbit(azimuth, elevation, distance, field_of_view, size, size))
            image = (drawn[..., :3] * drawn[..., 3:] + 1 - drawn[..., 3:])[None]
            return io.NodeOutput(image, drawn[None, ..., 3].clone(), ui=host.stills(image))


def convert_object(value: Object3D | Types.MESH | Types.SPLAT | Types.File3D, index: int = 0) -> Object3D:
    """Our object from whatever an object's socket carries. Called inside :func:`host.work`."""
    if isinstance(value, Object3D):
        return value
    if isinstance(value, Types.File3D):
        if f".{value.format}" not in SUFFIXES:
            raise InputError(f"3D file: .{value.format} is not read, give one of {', '.join(SUFFIXES)}")
        source = value.get_source()
        if isinstance(source, str):
            return load_object(source)
        with tempfile.TemporaryDirectory() as folder:
            return load_object(value.save_to(str(Path(folder) / f"model.{value.format}")))
    if isinstance(value, Types.SPLAT):
        if index >= len(value.positions):
            raise InputError(f"splat: has {len(value.positions)} items, choose an index below that, not {index}")
        count = value.positions.shape[1] if value.counts is None else int(value.counts[index])
        parts = (value.positions, value.scales, value.rotations, value.opacities, value.sh)
        return SplatObject.from_arrays(*(part[index, :count] for part in parts), name="splat")
    return meshes.mesh_from_arrays(
        value.vertices, value.faces, uvs=value.uvs, vertex_colors=value.vertex_colors, texture=value.texture,
        normals=value.normals, vertex_counts=value.vertex_counts, face_counts=value.face_counts, index=index,
    )  # fmt: skip


def mesh_output(mesh: Object3D) -> io.NodeOutput:
    """An object as a node's output, with a description and pictures from four sides."""
    if isinstance(mesh, SplatObject):
        host.say(f"{len(mesh.gaussians)} Gaussians")
    else:
        color = "coloured" if mesh.has_color else "without colour: it will be coloured from the video's first frame"
        host.say(f"{len(mesh.vertices)} vertices, {len(mesh.faces)} faces, {color}")
    views = render_object(mesh.normalized()[0], orbit([0.0, 90.0, 180.0, 270.0], 10.0, 2.0, 45.0, 192, 192), torch.ones(3))
    picture = views.color if mesh.has_color else (views.normal + 1) / 2 * views.alpha[..., None] + 1 - views.alpha[..., None]
    return io.NodeOutput(mesh, ui=host.stills(torch.cat([*picture], 1)[None]))


class Anchor4DSample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DSample",
            display_name="Demo Sample",
            category=CATEGORY,
            description="A small walking creature made by the program: its video, its mesh, and how it really looks from "
            "another side.",
            search_aliases=["example", "test video", "test mesh", "ground truth", "pla4d", "4d"],
            inputs=[
                widgets.whole("frames", FRAMES, (2, 64), "Frames of one walk cycle."),
                widgets.whole("size", 256, (64, 1024), "Side of the pictures, in pixels.", step=16),
                widgets.choice(
                    "truth_azimuth",
                    [str(a) for a in TEST_AZIMUTHS],
                    "Side of the true pictures, in degrees from the video's view, counter-clockwise seen from above.",
                    default=str(TEST_AZIMUTHS[1]),
                ),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The driving video's frames."),
                io.Mask.Output("masks", tooltip="Where the creature is, 1 = object."),
                io.Float.Output("fps", tooltip="Frames a second."),
                host.Mesh.Output("mesh", tooltip="The creature at the first frame."),
                io.Image.Output("truth", tooltip="How the creature looks from the chosen side, on white: for scoring only."),
                io.Mask.Output("truth_masks", tooltip="Where the creature is from that side."),
                io.Float.Output("azimuth", tooltip="The chosen side as a number, for Render Scene."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, frames: int = FRAMES, size: int = 256, truth_azimuth: str = str(TEST_AZIMUTHS[1])) -> io.NodeOutput:
        with host.work(cls):
            posed, pictures = sample_case(frames, size)
            front, truth = pictures["front"], pictures[truth_azimuth]
            on_white = truth[..., :3] * truth[..., 3:] + 1 - truth[..., 3:]
            fps = FPS * frames / FRAMES
            return io.NodeOutput(
                front[..., :3].clone(), front[..., 3].clone(), fps, posed[0],
                on_white, truth[..., 3].clone(), float(truth_azimuth),
                ui=host.film(front[..., :3] * front[..., 3:] + 1 - front[..., 3:], fps),
            )  # fmt: skip


NODES = [
    Anchor4DLoadVideo,
    Anchor4DPrepareVideo,
    Anchor4DLoadMesh,
    Anchor4DConvertMesh,
    Anchor4DConvertSplats,
    Anchor4DRenderObject,
    Anchor4DSample,
]
