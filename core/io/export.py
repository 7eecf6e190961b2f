"""A scene as a file of any format: what the command line and the Export Scene node offer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..files import InputError
from ..gaussians import Gaussians
from ..render import Render
from ..scene.scene import Scene4D, frame_times
from ..scene.trajectory import Trajectory
from ..scene.views import DEFAULT_FRONT, FrameProgress, renders, scene_cameras, straight_alpha
from .film import contact_sheet, write_film


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Args:
        kind: what it holds.
        suffixes: how its path may end, the customary one first; "" is a folder.
        text: what it is for.
        moment: whether it can hold one moment instead of the clip.
        folder: what the files of its folder are called (a regular expression), so that no other folder is replaced.
    """

    kind: Literal["splats", "mesh", "page", "scene", "film"]
    suffixes: tuple[str, ...]
    text: str
    moment: bool = False
    folder: str = ""


FORMATS = {
    "ply": Format(
        "splats", ("", ".zip", ".ply"), "splats, one file a frame: SuperSplat, Blender, Unity", True,
        r"frame\d+\.ply|manifest\.json",
    ),
    "compressed-ply": Format(
        "splats", ("", ".zip", ".ply"), "the same in a quarter of the size: SuperSplat, PlayCanvas", True,
        r"frame\d+\.compressed\.ply|manifest\.json",
    ),
    "spz": Format(
        "splats", ("", ".zip", ".spz"), "splats, small, one file a frame: ComfyUI, SuperSplat, Spark, three.js", True,
        r"frame\d+\.spz|manifest\.json",
    ),
    "splat": Format(
        "splats", ("", ".zip", ".splat"), "splats, one file a frame: web viewers", True, r"frame\d+\.splat|manifest\.json"
    ),
    "glb": Format("mesh", (".glb",), "a mesh that moves (morph targets): Blender, game engines, any viewer"),
    "glb-splats": Format("splats", (".glb",), "glTF with KHR_gaussian_splatting: Cesium, Babylon, PlayCanvas", True),
    "usd": Format("splats", (".usdc", ".usda", ".usdz", ".usd"), "OpenUSD Gaussians with time samples: Houdini, Omniverse"),
    "4dgs": Format("splats", (".4dgs",), "one seekable file for the players of that format"),
    "html": Format("page", (".html", ""), "a page with the player, to send to anybody", False, r"index\.html|data.*"),
    "a4d": Format("page", (".a4d",), "what the page plays, for a site of your own"),
    "scene": Format("scene", (".safetensors",), "the whole scene, to go on with"),
    "mp4": Format("film", (".mp4",), "a film"),
    "webm": Format("film", (".webm",), "a film, with alpha if wanted"),
    "gif": Format("film", (".gif",), "a small film that plays anywhere, with on-or-off alpha"),
    "webp": Format("film", (".webp",), "a small film, with alpha"),
    "apng": Format("film", (".apng",), "an animated PNG: nothing lost, with alpha"),
    "png": Format("film", ("",), "pictures with alpha", False, r"\d+\.png"),
}  # fmt: skip


#: Endings that say what a path is; anything else may be part of a folder's name.
_SUFFIXES = {suffix for form in FORMATS.values() for suffix in form.suffixes} - {""}


@dataclass(frozen=True)
class Shot:
    """How a film is taken.

    Args:
        azimuths: degrees, 0 = the driving video's view; several are shown side by side.
        elevation: degrees, positive = from above; the front camera's own where None.
        size: longer side, pixels; the driving video's where None.
        background: "none" keeps alpha.
        loops: how often the clip plays.
        trajectory: a moving camera, in place of azimuths and elevation.
    """

    azimuths: Sequence[float] = (0.0,)
    elevation: float | None = None
    size: int | None = None
    background: Literal["none", "white", "black"] = "white"
    loops: int = 1
    trajectory: Trajectory | None = None


def checked_path(path: Path, name: str) -> Path:
    """The path, where its ending fits the format.

    Raises:
        InputError: for another ending, or a folder where a file should come.
    """
    suffixes = FORMATS[name].suffixes
    if path.suffix.lower() not in suffixes and (path.suffix in _SUFFIXES or "" not in suffixes):
        files = " or ".join(s for s in suffixes if s)
        folder = "give a folder" if "" in suffixes else ""
        wanted = " or ".join(filter(None, [folder, files and f"give a name that ends in {files}"]))
        raise InputError(f"{path}: does not fit the format {name}, {wanted}")
    if path.is_dir() and path.suffix.lower() in _SUFFIXES:
        raise InputError(f"{path}: is a folder, choose another name for the file")
    return path


def export_scene(
    scene: Scene4D,
    path: Path,
    name: str,
    *,
    frames: int | None = None,
    moment: float | None = None,
    shot: Shot | None = None,
    film: Tensor | None = None,  # (T, H, W, 3 or 4)
    compare: Scene4D | None = None,
    title: str | None = None,
    backend: str = "auto",
    progress: FrameProgress | None = None,
) -> None:
    """Write a scene to ``path`` in the format ``name``.

    Args:
        frames: the clip is spread over so many, its own where None.
        moment: time in [0, 1] of a single set of Gaussians, for the formats that hold one; without it, and where the path is
            one file of a format that holds only one, time 0.
        shot: of films.
        film: the driving video, shown beside the object in a page.
        compare: a second scene of a page, behind a wiper.
        title: of a page.

    Raises:
        InputError: for a path that does not fit, or a package that the format needs and is not there.
    """
    path, kind = checked_path(path, name), FORMATS[name].kind
    if kind == "film":
        _write_film(scene, path, name, frames, shot or Shot(), backend, progress)
    elif name == "scene":
        scene.save(path)
    elif name == "html":
        from .html import write_html

        write_html(
            path,
            scene,
            frames=frames,
            film=film,
            compare=compare,
            title=title,
            view={"background": "#ffffff"},
            progress=progress,
        )
    elif name == "a4d":
        from .stream import write_stream

        write_stream(path, scene, frames, film=film, progress=progress)
    elif name == "usd":
        from .usd import write_usd

        write_usd(path, scene, frames, progress=progress)
    elif name == "4dgs":
        from .fourdgs import write_4dgs

        write_4dgs(path, scene, frames, progress=progress)
    elif name == "glb":
        from .gltf_mesh import write_mesh_glb

        write_mesh_glb(path, scene, frames=frames, progress=progress)
    elif name == "glb-splats":
        from .gltf_splats import write_splat_glb, write_splat_glb_frames

        if moment is None:
            write_splat_glb_frames(path, scene, frames, progress=progress)
        else:
            write_splat_glb(path, _at(scene, moment))
    else:
        from .splats import write_splat_sequence, write_splats

        if path.suffix.lower() in ("", ".zip"):
            write_splat_sequence(path, scene, frames, format=name, progress=progress)
        else:
            write_splats(path, _at(scene, moment or 0.0), format=name)


@torch.no_grad()
def _at(scene: Scene4D, moment: float) -> Gaussians:
    if not 0 <= moment <= 1:
        raise InputError(f"time {moment:g}: choose 0 (start of the clip) to 1 (its end)")
    return scene.at(moment)


def _write_film(
    scene: Scene4D, path: Path, name: str, frames: int | None, shot: Shot, backend: str, progress: FrameProgress | None
) -> None:
    if shot.background == "none" and name == "mp4":
        raise InputError("background none: an mp4 has no transparency; choose white or black, or webm, webp, gif or png")
    if shot.loops < 1:
        raise InputError(f"loops {shot.loops}: choose at least 1")
    count = scene.frames if frames is None else frames
    taus, fps, loops = frame_times(count, scene.loop), scene.fps * count / scene.frames, shot.loops
    if shot.trajectory is None:
        cameras = scene_cameras(scene, list(shot.azimuths), shot.elevation, shot.size)
        views = [f"{azimuth:g}" for azimuth in shot.azimuths]
    else:
        # The camera goes its way once while the clip plays as often as it is asked to.
        taus, loops, views = taus.repeat(loops), 1, [""]
        front = scene.front or DEFAULT_FRONT
        size = shot.size or max(front.width, front.height)
        cameras = shot.trajectory.cameras(len(taus), *shot.trajectory.size(size)).reshape(-1, 1)
        own = shot.trajectory.taus(len(taus))
        taus = taus if own is None else own
    drawn = renders(scene, cameras, taus, backend=backend, progress=progress)
    write_film(path, _pictures(drawn, shot.background, views), fps, loops=loops)


def _pictures(drawn: Iterator[Render], background: str, views: Sequence[str]) -> Iterator[Tensor | np.ndarray]:
    """Pictures of a film; several views stand labelled side by side on white."""
    for render in drawn:
        pictures = composited(straight_alpha(render).cpu(), background)
        yield pictures[0] if len(views) == 1 else np.asarray(contact_sheet([list(pictures)], columns=views))


def composited(pictures: Tensor, background: str) -> Tensor:  # straight (..., 4) -> (..., 3), or as it is for "none"
    """Straight-alpha pictures over "white" or "black"."""
    if background == "none":
        return pictures
    alpha = pictures[..., 3:]
    return pictures[..., :3] * alpha + (1 - alpha) * (1.0 if background == "white" else 0.0)
