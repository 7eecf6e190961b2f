"""A scene as a file of any format: what the command line and the Export Scene node offer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..files import InputError, atomic_path
from ..gaussians import Gaussians
from ..registry import Registry
from ..render import Render
from ..scene.scene import Scene4D, frame_times
from ..scene.trajectory import Trajectory
from ..scene.validation import MAX_FRAMES
from ..scene.views import DEFAULT_FRONT, FrameProgress, film_cameras, renders, straight_alpha
from .film import contact_sheet, write_film

log = logging.getLogger(__name__)

#: Longer side of a film, pixels.
MAX_SIZE = 8192
Background = Literal["none", "white", "black"]
Kind = Literal["splats", "mesh", "page", "scene", "film"]
#: What an export may be asked for beyond the scene: :class:`Export` says what each is.
Option = Literal["frames", "moment", "shot", "film", "compare"]


@dataclass(frozen=True)
class Shot:
    """How a film is taken.

    Args:
        azimuths: degrees, 0 = the driving video's view; several stand side by side.
        elevation: degrees, positive = from above; the front camera's own where None.
        size: longer side, pixels; the driving video's where None.
        background: "none" keeps alpha.
        loops: how often the clip plays.
        trajectory: a moving camera, in place of azimuths and elevation.

    Raises:
        InputError: for values out of range.
    """

    azimuths: Sequence[float] = (0.0,)
    elevation: float | None = None
    size: int | None = None
    background: Background = "white"
    loops: int = 1
    trajectory: Trajectory | None = None

    def __post_init__(self) -> None:
        if not self.azimuths or not all(math.isfinite(azimuth) for azimuth in self.azimuths):
            raise InputError("azimuths: give at least one, in degrees")
        if self.elevation is not None and not abs(self.elevation) <= 90:
            raise InputError(f"elevation {self.elevation:g}: choose -90 (from below) to 90 degrees (from above)")
        if self.size is not None and not 1 <= self.size <= MAX_SIZE:
            raise InputError(f"size {self.size}: choose 1 to {MAX_SIZE} pixels")
        if not 1 <= self.loops <= 1000:
            raise InputError(f"loops {self.loops}: choose 1 to 1000")


@dataclass(frozen=True)
class Export:
    """What a writer is given beside the scene and the path.

    Args:
        frames: the clip is spread over so many, its own where None.
        moment: time in [0, 1] of a single set of Gaussians, for the formats that hold one; without it, and where the path is
            one file of a format that holds only one, time 0.
        shot: of films.
        film: the driving video beside the object in a page.
        compare: a second scene of a page, in a split view.
        title: of a page.
        backend: of the rasteriser, for films.
        progress: called with the frames done and all of them.
    """

    frames: int | None = None
    moment: float | None = None
    shot: Shot | None = None
    film: Tensor | None = None  # (T, H, W, 3 or 4)
    compare: Scene4D | None = None
    title: str | None = None
    backend: str = "auto"
    progress: FrameProgress | None = None


Writer = Callable[[Scene4D, Path, Export], None]


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Args:
        kind: what it holds.
        suffixes: how its path may end, the customary one first; "" is a folder.
        text: what it is for.
        write: its writer.
        takes: the options it has a use for; others are refused.
        folder: what the files of its folder are called (a regular expression), so that no other folder is replaced.
        opaque: a film's: whether it has no transparency.
    """

    kind: Kind
    suffixes: tuple[str, ...]
    text: str
    write: Writer
    takes: frozenset[Option]
    folder: str = ""
    opaque: bool = False

    @property
    def backgrounds(self) -> tuple[Background, ...]:
        """What can lie behind the object in its pictures, the customary one first."""
        return ("white", "black") if self.opaque else ("none", "white", "black")

    @property
    def moment(self) -> bool:
        """Whether it can hold one moment instead of the clip."""
        return "moment" in self.takes

    def single(self, path: Path) -> bool:
        """Whether a path is one file that holds one moment alone, of a format that otherwise takes a file a frame."""
        return self.kind == "splats" and "" in self.suffixes and path.suffix.lower() not in ("", ".zip")


#: Every format by name, in the order in which they are offered.
FORMATS: Registry[Format] = Registry("format")


def register_format(
    name: str,
    kind: Kind,
    suffixes: tuple[str, ...],
    text: str,
    *,
    takes: Sequence[Option] = (),
    folder: str = "",
    opaque: bool = False,
) -> Callable[[Writer], Writer]:
    """Decorator that makes a writer a format, which the command line, the nodes and the docs then offer.

    Args:
        kind, suffixes, text, takes, folder, opaque: see :class:`Format`.
    """

    def decorate(write: Writer) -> Writer:
        FORMATS.add(name, Format(kind, suffixes, text, write, frozenset(takes), folder, opaque))
        return write

    return decorate


def checked_path(path: Path, name: str) -> Path:
    """The path, where its ending fits the format.

    Raises:
        InputError: for another ending, or a folder where a file should come.
    """
    suffixes = FORMATS.named(name).suffixes
    # Endings that say what a path is; anything else may be part of a folder's name.
    known = {suffix for form in FORMATS.values() for suffix in form.suffixes} - {""}
    if path.suffix.lower() not in suffixes and (path.suffix in known or "" not in suffixes):
        files = " or ".join(s for s in suffixes if s)
        folder = "give a folder" if "" in suffixes else ""
        wanted = " or ".join(filter(None, [folder, files and f"give a name that ends in {files}"]))
        raise InputError(f"{path}: does not fit the format {name}, {wanted}")
    if path.is_dir() and path.suffix.lower() in known:
        raise InputError(f"{path}: is a folder, choose another name for the file")
    return path


def check_export(path: Path, name: str, given: dict[Option, object]) -> None:
    """Refuses what an export could not do, or would do nothing with, before anything is read or drawn.

    Args:
        given: the options, None where one was not given; of ``film`` and ``compare`` only whether counts.

    Raises:
        InputError: if so.
    """
    form = FORMATS.named(name)
    checked_path(path, name)
    for option in (key for key, value in given.items() if value is not None and key not in form.takes):
        others = ", ".join(other for other, entry in FORMATS.items() if option in entry.takes)
        raise InputError(f"{_CALLED.get(option, option)}: does nothing in the format {name}; leave it out, or choose {others}")
    frames, moment = given.get("frames"), given.get("moment")
    if isinstance(frames, int) and not 1 <= frames <= MAX_FRAMES:
        raise InputError(f"frames {frames}: choose 1 to {MAX_FRAMES}")
    if isinstance(moment, (int, float)) and not 0 <= moment <= 1:
        raise InputError(f"time {moment:g}: choose 0 (start of the clip) to 1 (its end)")
    if frames is not None and (moment is not None or form.single(path)):
        raise InputError(f"frames {frames}: {path.name} holds one moment; leave it out, or give a folder or .zip and no time")
    if moment is not None and "" in form.suffixes and not form.single(path):
        raise InputError(f"time {moment:g}: {path.name} holds the whole clip; leave it out, or give the name of one file")


#: Options by the names that users know.
_CALLED: dict[str, str] = {"moment": "time", "shot": "azimuths, elevation, size, background, loops and camera path"}
_CALLED |= {"film": "video"}


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
        frames, moment, shot, film, compare, title, backend, progress: see :class:`Export`.

    Raises:
        InputError: for a path that does not fit, an option that the format has no use for or whose value is out of range, a
            package that the format needs and is not there, or a disk that takes no more.
    """
    check_export(path, name, {"frames": frames, "moment": moment, "shot": shot, "film": film, "compare": compare})
    form = FORMATS[name]
    if form.single(path) and moment is None and scene.frames > 1 and scene.field is not None:
        log.warning("%s: one file holds one moment, the clip's first; give a folder or .zip for the motion", path)
    form.write(scene, path, Export(frames, moment, shot, film, compare, title, backend, progress))


# Splats, one file a frame


def _splats(name: str, text: str, suffix: str, folder: str) -> None:
    def write(scene: Scene4D, path: Path, export: Export) -> None:
        from .splats import write_splat_sequence, write_splats

        if FORMATS[name].single(path):
            write_splats(path, _at(scene, export.moment or 0.0), format=name)
        else:
            write_splat_sequence(path, scene, export.frames, format=name, progress=export.progress)

    register_format(name, "splats", ("", ".zip", suffix), text, takes=("frames", "moment"), folder=folder)(write)


_splats("ply", "splats, one file a frame: SuperSplat, Blender, Unity", ".ply", r"frame\d+\.ply|manifest\.json")
_splats(
    "compressed-ply", "the same in a quarter of the size: SuperSplat, PlayCanvas", ".ply",
    r"frame\d+\.compressed\.ply|manifest\.json",
)  # fmt: skip
_splats("spz", "splats, small, one file a frame: ComfyUI, SuperSplat, Spark, three.js", ".spz", r"frame\d+\.spz|manifest\.json")
_splats(
    "sog", "splats, small, one file a frame: SuperSplat, PlayCanvas, Babylon, Spark", ".sog", r"frame\d+\.sog|manifest\.json"
)
_splats("splat", "splats, one file a frame: web viewers", ".splat", r"frame\d+\.splat|manifest\.json")


# The clip in one file


@register_format(
    "glb", "mesh", (".glb",), "a mesh that moves (morph targets): Blender, game engines, any viewer", takes=["frames"]
)
def _glb(scene: Scene4D, path: Path, export: Export) -> None:
    from .gltf_mesh import write_mesh_glb

    write_mesh_glb(path, scene, frames=export.frames, progress=export.progress)


@register_format(
    "glb-skinned",
    "mesh",
    (".glb",),
    "a mesh on a skeleton, skinned and animated: Blender, Unity, Unreal, Godot, any viewer",
    takes=["frames"],
)
def _glb_skinned(scene: Scene4D, path: Path, export: Export) -> None:
    from .rig import write_skinned_glb

    write_skinned_glb(path, scene, frames=export.frames, progress=export.progress)


@register_format("bvh", "mesh", (".bvh",), "the skeleton and its motion alone: animation programs", takes=["frames"])
def _bvh(scene: Scene4D, path: Path, export: Export) -> None:
    from .rig import write_bvh

    write_bvh(path, scene, frames=export.frames, progress=export.progress)


@register_format(
    "glb-splats",
    "splats",
    (".glb",),
    "glTF with KHR_gaussian_splatting: Cesium, Babylon, PlayCanvas",
    takes=["frames", "moment"],
)
def _glb_splats(scene: Scene4D, path: Path, export: Export) -> None:
    from .gltf_splats import write_splat_glb, write_splat_glb_frames

    if export.moment is None:
        write_splat_glb_frames(path, scene, export.frames, progress=export.progress)
    else:
        write_splat_glb(path, _at(scene, export.moment))


@register_format(
    "glb-spz",
    "splats",
    (".glb",),
    "the same compressed (KHR_gaussian_splatting_compression_spz_2), a tenth of the size: Cesium",
    takes=["frames", "moment"],
)
def _glb_spz(scene: Scene4D, path: Path, export: Export) -> None:
    from .gltf_splats import write_splat_glb, write_splat_glb_frames

    if export.moment is None:
        write_splat_glb_frames(path, scene, export.frames, compressed=True, progress=export.progress)
    else:
        write_splat_glb(path, _at(scene, export.moment), compressed=True)


@register_format(
    "usd",
    "splats",
    (".usdc", ".usda", ".usdz", ".usd"),
    "OpenUSD Gaussians with time samples: Houdini, Omniverse",
    takes=["frames"],
)
def _usd(scene: Scene4D, path: Path, export: Export) -> None:
    from .usd import write_usd

    write_usd(path, scene, export.frames, progress=export.progress)


@register_format("4dgs", "splats", (".4dgs",), "one seekable file for the players of that format", takes=["frames"])
def _4dgs(scene: Scene4D, path: Path, export: Export) -> None:
    from .fourdgs import write_4dgs

    write_4dgs(path, scene, export.frames, progress=export.progress)


@register_format(
    "tsog", "splats", (".tsog",), "TSOG, one file: Gaussians with lives and speeds, or frame by frame", takes=["frames"]
)
def _tsog(scene: Scene4D, path: Path, export: Export) -> None:
    from .tsog import encode

    _write(path, encode(scene, export.frames, progress=export.progress))


@register_format(
    "ftgs", "splats", (".ply",), "FreeTimeGS, one file: Gaussians with lives and speeds, for the FTGS player", takes=["frames"]
)
def _ftgs(scene: Scene4D, path: Path, export: Export) -> None:
    from ..scene.timed import bake_timed
    from .moving_ply import encode_ftgs
    from .tsog import is_continuous

    if not is_continuous(scene):
        baked = bake_timed(scene, life="gaussian", turning=False)
        errors = ", ".join(f"{key} {value:.2g}" for key, value in baked.errors.items() if key != "opacity")
        log.info("%s: baked into %d Gaussians with lives, largest errors: %s", path, len(baked.source), errors)
        scene = baked.scene
    _write(path, encode_ftgs(scene, export.frames))


def _write(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@register_format(
    "html", "page", (".html", ""), "a page with the player, to send to anybody", takes=["frames", "film", "compare"],
    folder=r"index\.html|data.*",
)  # fmt: skip
def _html(scene: Scene4D, path: Path, export: Export) -> None:
    from .html import write_html

    write_html(
        path,
        scene,
        frames=export.frames,
        film=export.film,
        compare=export.compare,
        title=export.title,
        view={"background": "#ffffff"},
        progress=export.progress,
    )


@register_format("a4d", "page", (".a4d",), "what the page plays, for a site of your own", takes=["frames", "film"])
def _a4d(scene: Scene4D, path: Path, export: Export) -> None:
    from .stream import write_stream

    write_stream(path, scene, export.frames, film=export.film, progress=export.progress)


@register_format("scene", "scene", (".safetensors",), "the whole scene, to go on with")
def _scene(scene: Scene4D, path: Path, export: Export) -> None:
    scene.save(path)


# Films


def _film(name: str, text: str, suffix: str, folder: str = "", opaque: bool = False) -> None:
    def write(scene: Scene4D, path: Path, export: Export) -> None:
        _write_film(scene, path, name, export.frames, export.shot or Shot(), export.backend, export.progress)

    register_format(name, "film", (suffix,), text, takes=("frames", "shot"), folder=folder, opaque=opaque)(write)


_film("mp4", "a film", ".mp4", opaque=True)
_film("webm", "a film, with alpha if wanted", ".webm")
_film("gif", "a small film that plays anywhere, with on-or-off alpha", ".gif")
_film("webp", "a small film, with alpha", ".webp")
_film("apng", "an animated PNG: nothing lost, with alpha", ".apng")
_film("png", "pictures with alpha", "", r"\d+\.png")


@torch.no_grad()
def _at(scene: Scene4D, moment: float) -> Gaussians:
    return scene.at(moment)


def _write_film(
    scene: Scene4D, path: Path, name: str, frames: int | None, shot: Shot, backend: str, progress: FrameProgress | None
) -> None:
    if shot.background not in FORMATS[name].backgrounds:
        clear = ", ".join(other for other, form in FORMATS.items() if form.kind == "film" and not form.opaque)
        raise InputError(f"background {shot.background}: {name} has no transparency; choose white or black, or one of {clear}")
    count = scene.frames if frames is None else frames
    taus, fps, loops = frame_times(count, scene.loop), scene.fps * count / scene.frames, shot.loops
    if shot.trajectory is None:
        cameras = film_cameras(scene, list(shot.azimuths), shot.elevation, shot.size)
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
