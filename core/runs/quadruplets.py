"""Aligned quadruplets after Align4D's X4D: of a finished run its picture, its video, its 3D and its 4D, pixel by pixel, and
what can be measured on them. The text comes with the set, see :mod:`.x4d`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras, Crop
from ..files import InputError, atomic_path, write_tensors
from ..generate.chain import FOLDER, read_list
from ..io import contact_sheet, write_mp4, write_png
from ..io.clip import natural
from ..io.gltf_splats import write_splat_glb
from ..io.meshes import SUFFIXES, write_glb
from ..io.objects import load_object
from ..io.video import Reading, load_video
from ..mesh import Mesh
from ..metrics import on_white
from ..metrics.base import MEAN, Footage, measure
from ..scene.object3d import Object3D, SplatObject, picture_of
from ..scene.scene import Scene4D, frame_times
from ..scene.views import object_cameras, render_frames
from ..video import DrivingVideo
from .folder import REPORT, SCENE
from .report import read_json, write_json

#: The folder of a quadruplet in that of its run; its files by what they are, and what is kept beside them.
QUADRUPLET = "quadruplet"
IMAGE, VIDEO, OBJECT, CLIP, STRIP, FACTS = (
    "image.png", "video.mp4", "object.glb", "clip.safetensors", "strip.jpg", "facts.json",
)  # fmt: skip
FILES = {"image": IMAGE, "video": VIDEO, "object": OBJECT, "scene": SCENE, "clip": CLIP, "strip": STRIP}
#: Side of the pictures of a run without a video, pixels, and of a strip's.
SIDE, STRIP_SIDE = 256, 128
#: What is always measured, where there is a video: none of these asks a network.
MEASURED = ("psnr", "ssim", "iou", "motion", "frozen", "gain", "jitter")


def write_quadruplet(
    folder: Path, scene: Scene4D, video: DrivingVideo | None = None, item: Object3D | None = None, backend: str = "auto"
) -> dict[str, Any]:
    """Leave a quadruplet in a folder, but for its text and ``scene.safetensors``.

    ``image.png`` is the first frame of the clip with alpha and ``video.mp4`` the clip on white; ``object.glb`` is the 3D in the
    scene's frame, a mesh or Gaussians. ``clip.safetensors`` has the same clip without loss, ``frames`` (T, S, S, 4) uint8 of
    straight alpha, its times ``taus`` (T), and the camera that sees ``object.glb`` and the scene as the clip shows them:
    ``world_to_camera`` (4, 4), OpenCV, and ``K`` (3, 3), pixels. ``strip.jpg`` shows it all.

    Args:
        scene: fitted to the video; drawn on its device.
        video: as it was fitted, on the CPU; where None, the scene seen from its front.
        item: on the CPU, in the scene's frame (a :class:`~..align.FocalAlignment`'s mesh); where None, the scene at tau = 0.

    Returns:
        What a manifest says of it; also left as ``facts.json``, once the files are whole.

    Raises:
        InputError: for a video of more or fewer frames than the scene has, or a scene that no video was fitted to.
    """
    if video is not None and len(video) != scene.frames:
        raise InputError(f"video of {len(video)} frames, scene of {scene.frames}: give the video that the scene was fitted to")
    if video is not None and scene.front is None:
        raise InputError("scene: has no camera of the video; give the scene that was fitted to it, or leave the video out")
    camera = front_camera(scene, video)
    drawn = render_frames(scene, camera, scene.taus, backend=backend)[0].cpu()  # (T, S, S, 4)
    clip = drawn if video is None else torch.cat([video.frames, video.masks[..., None]], -1)
    clip = (clip.clamp(0, 1) * 255).round().byte()
    if item is None:
        item = SplatObject.of(scene.at(0.0).detach().to("cpu"), "object")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS).unlink(missing_ok=True)
    write_png(folder / IMAGE, clip[0].numpy())
    write_mp4(folder / VIDEO, _white(clip), scene.fps)
    if isinstance(item, Mesh):
        write_glb(folder / OBJECT, item)
    else:
        write_splat_glb(folder / OBJECT, item.gaussians)
    tensors = {"frames": clip, "taus": scene.taus, "world_to_camera": camera.world_to_camera[0], "K": camera.K[0]}
    write_tensors(folder / CLIP, {name: value.contiguous() for name, value in tensors.items()}, {"fps": str(scene.fps)})
    _write_strip(folder / STRIP, scene, clip, item, camera, backend)
    crop = scene.crop if video is None else video.crop
    measures = {} if video is None else measured(drawn.numpy(), clip.numpy())
    facts = {
        "frames": scene.frames,
        "fps": scene.fps,
        "loops": scene.loop,
        "size": camera.width,
        "camera": None if scene.front is None else asdict(scene.front),
        "crop": None if crop is None else asdict(crop),
        "object": "mesh" if isinstance(item, Mesh) else "gaussians",
        "gaussians": len(scene.gaussians),
        "measures": measures | framing(clip[..., 3] / 255, None if video is None else video.crop),
    }
    write_json(folder / FACTS, facts)
    return facts


def of_run(folder: Path, video: Path | None, object: Path | None, *, fps: float | None, reading: Reading) -> dict[str, Any]:
    """The quadruplet of a finished run, in its folder's :data:`QUADRUPLET`; its inputs are read once more.

    Args:
        folder: of the run.
        video, object: its inputs; where None, what it made of others (:mod:`..generate.chain`), if it did.
        fps, reading: of the video, as the run was given them.

    Raises:
        InputError: for a run that is not finished, or inputs that are not those it had.
    """
    report = read_json(folder / REPORT)
    if not report or not (folder / SCENE).is_file():
        raise InputError(f"{folder}: no finished run, it has no {REPORT} or {SCENE}")
    scene, settings = Scene4D.load(folder / SCENE), report["settings"]
    made = read_list(folder / FOLDER)
    if video is None and "video" in made and "video" in report:
        video, fps = folder / FOLDER / made["video"]["file"], fps or made["video"].get("fps")
    if object is None and "object" in made and report.get("camera"):
        object = folder / FOLDER / made["object"]["file"]
    clip = item = None
    if video is not None:
        seen = report["video"]
        clip = load_video(video, fps=fps, frames=settings["frames"], resolution=seen["resolution"], **vars(reading))
        if asdict(clip.crop) != seen["crop"] or len(clip) != seen["frames"]:
            raise InputError(f"{video}: is not the video that {folder} was made of; build it again")
    if object is not None and report.get("camera"):
        files = [path for path in object.iterdir() if path.suffix.lower() in SUFFIXES] if object.is_dir() else [object]
        item = load_object(min(files, key=natural), settings["up"]).normalized()[0]
        if yaw := report["camera"]["yaw"]:
            item = item.turned(yaw).normalized()[0]
    drawn_on, renderer = settings["device"], settings["renderer"]
    facts = write_quadruplet(folder / QUADRUPLET, scene.to(drawn_on), clip, item, renderer)
    verdict = report.get("verdict") or {}
    facts["measures"] |= {name: verdict[name] for name in ("overlap", "error") if verdict.get(name) is not None}
    facts["verdict"] = verdict.get("word")
    write_json(folder / QUADRUPLET / FACTS, facts)
    return facts


def front_camera(scene: Scene4D, video: DrivingVideo | None) -> Cameras:  # (1,)
    """The camera that sees a scene as the video shows it, at the video's resolution; without one, its front."""
    if video is not None and scene.front is not None:
        return scene.front.cropped(video.crop, video.resolution)
    return object_cameras(scene, SIDE)


def measured(drawn: np.ndarray, clip: np.ndarray) -> dict[str, float]:  # straight (T, S, S, 4), twice
    """How close the scene's front is to the clip: :data:`MEASURED`."""
    found = measure(Footage({"0": on_white(drawn)}, {"0": on_white(clip)}), MEASURED)
    return {name: values[MEAN] for name, values in found.values.items()}


def framing(masks: Tensor, crop: Crop | None) -> dict[str, float]:  # (T, S, S)
    """How large the object is in the original picture, and whether it leaves it.

    Returns:
        ``size``: its share of the picture, the mean over frames; ``pixels``: longer side of its box over the clip, pixels of
        the picture; ``border``: the largest share of the picture's border that it touches in any frame.
    """
    side = masks.shape[1]
    crop = Crop(0, 0, side, side, side) if crop is None else crop
    inside, unit = masks > 0.5, crop.size / side
    rows, columns = inside.any(0).any(1).nonzero()[:, 0], inside.any(0).any(0).nonzero()[:, 0]
    if not len(rows):
        return {"size": 0.0, "pixels": 0.0, "border": 0.0}
    longer = max(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1
    touched = torch.zeros(len(masks))
    for along, start, length in ((2, crop.x, crop.width), (1, crop.y, crop.height)):
        for edge, inward in ((0.5, 1), (length - 0.5, -1)):
            at = int((edge - start) // unit)
            # A pixel of the crop that the border cuts through is not covered whole: its neighbour inside counts too.
            lines = [index for index in (at, at + inward) if 0 <= index < masks.shape[along]]
            if 0 <= at < masks.shape[along]:
                touched += inside.index_select(along, torch.tensor(lines)).any(along).sum(1) * unit
    return {
        "size": float(inside.float().sum((1, 2)).mean()) * unit**2 / (crop.width * crop.height),
        "pixels": longer * unit,
        "border": float(touched.max()) / (2 * (crop.width + crop.height)),
    }


def _white(clip: Tensor) -> np.ndarray:  # straight (T, S, S, 4) uint8 -> (T, S, S, 3) uint8
    return (on_white(clip)[..., :3] * 255).round().astype(np.uint8)


def _write_strip(path: Path, scene: Scene4D, clip: Tensor, item: Object3D, camera: Cameras, backend: str) -> None:
    """The clip's first and middle frame, the 3D, and the 4D in the middle from the front, the side and behind."""
    middle = scene.frames // 2
    tau = frame_times(scene.frames, scene.loop)[middle : middle + 1]
    around = render_frames(scene, object_cameras(scene, STRIP_SIDE, [0.0, 90.0, 180.0]), tau, backend=backend)[:, 0].cpu()
    pictures = [clip[0], clip[middle], picture_of(item, camera.resized(STRIP_SIDE, STRIP_SIDE)), *around]
    columns = ("first frame", "middle", "3D", "4D, middle", "90°", "180°")
    with atomic_path(path) as temporary:
        contact_sheet([pictures], columns=columns, height=STRIP_SIDE).save(temporary, format="JPEG", quality=85)
