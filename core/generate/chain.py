"""Anything to the pair that a method needs, a driving video and a 3D object: what is missing is made from what is there.

After Align4D: a text becomes a picture (SDXL), a picture becomes a film (Stable Video Diffusion) and an object (LGM), an object
is drawn from its front and becomes a film, and the first frame of a film becomes an object. Every link is a model by name, and
another may take its place. What is made stays in a folder and is made again only where what it depends on has changed.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .. import packages
from ..align.front import detect_yaw
from ..align.solve import Target
from ..cameras import FrontCamera
from ..files import InputError, atomic_path, only_process
from ..identity import fingerprint
from ..io import write_frames, write_ply, write_png
from ..io.meshes import write_glb
from ..io.objects import load_object
from ..io.video import Reading, prepare, read_clip, read_picture
from ..priors.checkpoints import Checkpoint
from ..priors.models import COMMAND, find, known_models, missing, model_named
from ..progress import Progress
from ..scene.object3d import picture_of
from ..video import DrivingVideo
from .sampling import StepProgress

log = logging.getLogger(__name__)

#: Folder, below the one that is given, of what is made; and its list.
FOLDER, LIST = "made", "made.json"
#: Share of a picture's side that the object takes, as DreamGaussian4D has it, and the most pixels of that side.
FILL, SIDE = 0.8, 1024
#: The object link that needs no model, and what is said of it.
INFLATE = "inflate"
INFLATED = (
    "object: the outline of the first picture, inflated; its back and depth are a guess. A real image-to-3D model knows sides: "
    f"give its mesh as --object, or {COMMAND} get lgm && {COMMAND} get imagedream"
)
#: How an object is drawn for its film.
FRONT = FrontCamera(fovy=49.1, distance=1.5, width=768, height=768)

What = Literal["image", "video", "object"]


@dataclass(frozen=True)
class Links:
    """The models of the chain, each a name or Hub id that ``models list`` knows, or a folder.

    Args:
        image: text to image.
        video: image to video; or text to video, for which a text needs no image.
        object: LGM, or a Shap-E of either kind; "inflate" blows the outline up, without any model; "auto" is LGM where it and
            its ImageDream are here, else "inflate".
        views: the ImageDream that draws LGM's views.
    """

    image: str = "sdxl"
    video: str = "svd"
    object: str = "auto"
    views: str = "imagedream"


@dataclass(frozen=True)
class Step:
    """One thing that was made.

    Args:
        what: "image", "video" or "object".
        of: what it was made of: "prompt", "image", "video" (its first frame) or "object" (its front).
        by: names of the models, or "render".
        path: where it is.
        reused: whether it was there from an earlier run.
    """

    what: What
    of: str
    by: str
    path: Path
    reused: bool


@dataclass(frozen=True)
class Made:
    """A driving video and an object, given or made.

    Args:
        video, object: as :func:`~..io.video.load_video` and :func:`~..io.objects.load_object` take them; no
            object where none was asked for.
        fps: of a video that was made; None for a given one.
        yaw: degrees to turn the object about +Y, known where the video was made from a drawing of it.
        steps: what was made, in order.
        inflated: the object is an inflated outline, whose depth is a guess.
    """

    video: Path
    object: Path | None
    fps: float | None = None
    yaw: float | None = None
    steps: tuple[Step, ...] = ()
    inflated: bool = False


def complete(
    out: str | os.PathLike[str],
    *,
    prompt: str | None = None,
    image: str | os.PathLike[str] | None = None,
    video: str | os.PathLike[str] | None = None,
    object: str | os.PathLike[str] | None = None,
    links: Links = Links(),
    frames: int | None = None,
    fps: float | None = None,
    yaw: Literal["auto"] | float = "auto",
    up: str = "y",
    seed: int = 0,
    device: str | torch.device = "cpu",
    resume: bool = False,
    make_object: bool = True,
    reading: Reading = Reading(),
    options: Mapping[What, Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
) -> Made:
    """A driving video and an object from any of a text, a picture, a video and an object; what is given is used as it is.

    A missing video begins with the picture, else with a drawing of the object's front, else with a picture of the text. A
    missing object is made of the picture, else of the video's first frame. Pictures are cut out and centred on white first. A
    text that is given beside others goes to every generator that takes one.

    Args:
        out: what is made goes to its folder :data:`FOLDER`: image.png, video (frames without loss), object.ply or object.glb,
            and :data:`LIST`. Whatever was made there by the same model of the same inputs is used again.
        prompt, image, video, object: at least one; the text, and paths.
        frames, fps: of a video that is made; its model's own where None.
        yaw: degrees to turn a given object about +Y so that its front faces +Z; "auto" takes it to face there.
        up: the axis of a given object's file that points up.
        seed: of every generator.
        resume: refuse what was made there of other inputs, as a fit refuses such checkpoints; else it is replaced.
        make_object: whether a missing object is made; methods that start without one (stag4d) take none.
        reading: of a given video, of whose first frame an object is made.
        options: more arguments of the generators, by what they make: steps, guidance, precision, offload, height, ...
        progress: called after every step of every generator; interrupts by raising, and leaves whole files only.

    Raises:
        InputError: before any work, for inputs or models that are not here (with the commands that get them all) or models
            that cannot do their part; later, for a picture in which no object is found.
    """
    text = (prompt or "").strip()
    paths = {name: Path(path) for name, path in (("image", image), ("video", video), ("object", object)) if path is not None}
    if not text and not paths:
        raise InputError("nothing to start from; give at least one of a prompt, an image, a video and an object")
    for name, path in paths.items():
        if not path.exists():
            raise InputError(f"{path}: no such {name}, check the path")
    tasks = _plan({*paths, *(["prompt"] if text else [])}, links, make_object)
    if text and not any(task.takes_text for task in tasks):
        log.info("prompt: left aside, nothing that is made here takes a text")
    if not tasks:
        return Made(paths["video"], paths.get("object"))
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise InputError(f"{fps} frames a second, choose a rate above 0")
    if frames is not None and frames < 2:
        raise InputError(f"{frames} frames asked for, a moving object needs at least 2")
    drawn, turn = tasks[0].kind == "render", 0.0 if yaw == "auto" else float(yaw)
    settings: dict[What, dict[str, Any]] = {
        "image": {"yaw": turn, "up": up} if drawn else {"offload": "model"},
        "video": {"offload": "model", "frames": frames, "fps": fps},
        "object": {},
    }
    asked = {what: values | {"seed": seed} | dict((options or {}).get(what, {})) for what, values in settings.items()}
    folder = Path(out) / FOLDER

    def key(task: _Task, source: Path | None) -> str:
        models = [_identity(place) for place in task.places]
        text_used = text if task.takes_text else ""
        taken = [reading] if task.of == "video" and reading != Reading() else []
        return fingerprint(task.kind, models, text_used, source and _digest(source), asked[task.what], *taken)

    with only_process(out):
        listed, made, steps = read_list(folder), {}, []
        for task in tasks:
            source = folder / made[task.of]["file"] if task.of in made else paths.get(task.of)
            entry = listed.get(task.what)
            if entry is None or (source is None and task.of != "prompt"):
                continue
            if entry["key"] != key(task, source):
                if resume:
                    raise InputError(f"{folder}: was made of other inputs or models; give the same or drop --resume")
            elif (folder / entry["file"]).exists():
                made[task.what] = entry
        if made != listed:  # what is void is forgotten before work begins, so that --resume can go on
            _write_list(folder, made)
        for task in tasks:
            reused, source = task.what in made, paths.get(task.of)
            if not reused:
                report = _reporting(progress, f"{task.of} to {task.what}, {task.title}")
                done = _make(
                    task, source, text, drawn, folder, reading, asked[task.what] | {"device": device, "progress": report}
                )
                made[task.what] = {"key": key(task, source), "of": task.of, "by": task.by, **done}
                _write_list(folder, made)
                if torch.cuda.is_available():  # the next model needs the room
                    gc.collect()
                    torch.cuda.empty_cache()
            paths[task.what] = folder / made[task.what]["file"]
            log.info(
                "%s: made of the %s by %s%s", paths[task.what], task.of, task.title, " in an earlier run" if reused else ""
            )
            steps.append(Step(task.what, task.of, task.by, paths[task.what], reused))
            if task.kind == INFLATE:
                log.info(INFLATED)
    made_fps = made["video"]["fps"] if video is None else None
    inflated = any(task.kind == INFLATE for task in tasks)  # shows its front to +Z
    facing = turn if drawn else 0.0 if inflated else None
    return Made(paths["video"], paths.get("object"), made_fps, facing, tuple(steps), inflated)


# The plan


@dataclass
class _Task:
    """Something to make: the kind of generator, what of, and the models, each with its place or None where it is not here."""

    what: What
    kind: str
    of: str
    models: dict[str, Path | None] = field(default_factory=dict)
    takes_text: bool = False

    @property
    def by(self) -> str:
        return " and ".join(self.models) or self.kind

    @property
    def title(self) -> str:
        """As :attr:`by`, of folders only the last name."""
        return " and ".join(Path(name).name for name in self.models) or self.kind

    @property
    def places(self) -> list[Path]:
        return [place for place in self.models.values() if place is not None]


def _plan(given: set[str], links: Links, make_object: bool = True) -> list[_Task]:
    """What has to be made, in order.

    Raises:
        InputError: for models that are not here, all at once, or that cannot do their part.
    """
    if {"video", "object"} <= given or ("video" in given and not make_object):
        return []
    lacking = packages.problems("diffusers", "transformers", "accelerate")
    thing = links.object
    if thing == "auto":
        here = not lacking and find("lgm") is not None and find(links.views) is not None
        thing = "lgm" if here else INFLATE
    if lacking and ("video" not in given or thing != INFLATE):
        raise InputError(f"making what is missing: {lacking}")
    tasks: list[_Task] = []
    pictured = "image" in given
    if "video" not in given:
        model = _models("video", links.video)
        starts = _film_starts(links.video, model[links.video])
        if "image" not in starts and given != {"prompt"}:
            shown = "image" if pictured else "object"
            raise InputError(
                f"{links.video}: this video model starts from text, but the film has to show the {shown} that is given; "
                f"choose one that starts from a picture, such as {Links.video}"
            )
        if "image" not in starts:
            tasks.append(_Task("video", "text-to-video", "prompt", model, takes_text=True))
        else:
            if not pictured and "object" in given:
                tasks.append(_Task("image", "render", "object"))
            elif not pictured:
                tasks.append(_Task("image", "text-to-image", "prompt", _models("image", links.image), takes_text=True))
            pictured = True
            tasks.append(_Task("video", "image-to-video", "image", model, starts["image"]))
    if "object" not in given and make_object:
        model = {} if thing == INFLATE else _models("object", thing)
        kind = thing if thing == INFLATE else _object_kind(thing, model[thing])
        if kind == "text-to-mesh" and "prompt" not in given:
            raise InputError(f"{thing}: this object model starts from text; give a prompt too, or choose lgm")
        if kind == "image-to-gaussians":
            model |= _models("views", links.views)
        of = "prompt" if kind == "text-to-mesh" else "image" if pictured else "video"
        tasks.append(_Task("object", kind, of, model, takes_text=kind not in ("image-to-mesh", INFLATE)))
    if absent := [name for task in tasks for name, place in task.models.items() if place is None]:
        raise _all_missing(list(dict.fromkeys(absent)))
    for task in tasks:
        _check(task)
    return tasks


#: What the models of each link do, of the registry's roles.
_ROLES = {
    "image": ("text-to-image",),
    "video": ("image-to-video", "text-to-video"),
    "object": ("gaussians", "image-to-mesh", "text-to-mesh"),
    "views": ("multiview",),
}


def _models(link: str, name: str) -> dict[str, Path | None]:
    """A link's model by name, with its place.

    Raises:
        InputError: for a name that means nothing, or a model of the registry that does something else.
    """
    if Path(name).exists():
        return {name: Path(name)}
    model, place = model_named(name), find(name)
    if model is None and place is None:
        raise missing(name)
    if model is not None and model.roles and not set(model.roles) & set(_ROLES[link]):
        able = [known.name for known in known_models() if set(known.roles) & set(_ROLES[link])]
        raise InputError(f"{name}: this model makes {model.purpose}; as the {link} model choose one of {', '.join(able)}")
    return {name: place}


def _roles(name: str) -> tuple[str, ...]:
    model = model_named(name)
    return model.roles if model is not None else ()


def _film_starts(name: str, place: Path | None) -> dict[str, bool]:
    """What a video model starts from, "text" and "image", and whether it then takes a text."""
    if place is None:
        roles = {role.removesuffix("-to-video") for role in _roles(name)}
        return dict.fromkeys(roles or {"image"}, True)
    import diffusers

    from .video import family_of

    checkpoint, starts, problems = Checkpoint(place), {}, []
    for task in ("image", "text"):
        try:
            _, pipeline = family_of(checkpoint, task)
        except InputError as error:
            problems.append(error)
        else:
            starts[task] = "prompt" in inspect.signature(getattr(diffusers, pipeline).__call__).parameters
    if not starts:
        raise problems[0]
    return starts


def _object_kind(name: str, place: Path | None) -> str:
    if place is None:
        role = next((role for role in _roles(name) if role in _ROLES["object"]), "gaussians")
        return "image-to-gaussians" if role == "gaussians" else role
    named = Checkpoint(place).index.get("_class_name") if place.is_dir() else None
    meshes = {"ShapEPipeline": "text-to-mesh", "ShapEImg2ImgPipeline": "image-to-mesh"}
    if named in meshes:
        return meshes[named]
    if named is None and (place.suffix == ".safetensors" or any(place.glob("*.safetensors"))):
        return "image-to-gaussians"
    raise InputError(f"{place}: not a model that makes objects here; give lgm, shap-e or shap-e-img2img, or a folder of one")


def _check(task: _Task) -> None:
    """Whether the models of a task are of the kind it needs, as far as their folders tell."""
    if task.kind == "text-to-image":
        from .image import pipeline_of

        pipeline_of(Checkpoint(task.places[0]))
    if task.kind == "image-to-gaussians":
        from ..priors.mvdream import ImageDream

        views = Checkpoint(task.places[1])
        if not ImageDream.matches(views):
            raise InputError(f"{views.folder}: not an ImageDream, which LGM needs for its views; {views.found()}")


def _all_missing(names: list[str]) -> InputError:
    """What to raise for models that are known but not here."""
    if len(names) == 1:
        return missing(names[0])
    models = [model for name in names if (model := model_named(name)) is not None]
    asked = [f"{model.name} ({model.purpose}{f', {model.size:g} GB' if model.size else ''})" for model in models]
    gets = " && ".join(f"{COMMAND} get {model.name}" for model in models)
    return InputError(f"these models are needed and not on this machine: {', '.join(asked)}; get them with: {gets}")


# The work


def _make(
    task: _Task, source: Path | None, text: str, drawn: bool, folder: Path, reading: Reading, options: dict[str, Any]
) -> dict[str, Any]:
    """Makes one thing and returns what the list says of it: its file, and the frame rate of a video."""
    if task.what == "image":
        if source is not None:
            picture = _front(source, options["yaw"], options["up"])
        else:
            from .image import text_to_image

            picture = text_to_image(text, task.places[0], **options)
        write_png(folder / "image.png", picture)
        return {"file": "image.png"}
    if task.what == "video":
        from .video import image_to_video, text_to_video

        if source is None:
            film = text_to_video(task.places[0], text, **options)
        else:
            # A drawing is framed already.
            picture = read_picture(source).frames[0] / 255 if drawn else _rgba(_cut(source, task.of, reading))
            film = image_to_video(task.places[0], picture, text if task.takes_text else None, **options)
        write_frames(folder / "video", film.frames)
        return {"file": "video", "fps": film.fps}
    if task.kind == "image-to-gaussians":
        from .gaussians import image_to_gaussians

        assert source is not None
        lgm, views = task.places
        # Its world is ours: the picture shows +Z.
        made = image_to_gaussians(lgm, views, _rgba(_cut(source, task.of, reading)), text=text, **options)
        write_ply(folder / "object.ply", made.gaussians)
        return {"file": "object.ply"}
    if task.kind == INFLATE:
        from .inflate import inflate

        assert source is not None
        chosen = {name: options[name] for name in ("depth", "nearer", "cells") if name in options}
        write_glb(folder / "object.glb", inflate(_rgba(_cut(source, task.of, reading)), **chosen, name=source.name))
        return {"file": "object.glb"}
    from .mesh import image_to_mesh, text_to_mesh

    if source is None:
        mesh = text_to_mesh(task.places[0], text, **options)
    else:
        cut = _cut(source, task.of, reading)
        mesh = image_to_mesh(task.places[0], _rgba(cut), **options)
        # Shap-E's meshes face as its training data did, wherever the picture was taken from.
        mesh = mesh.turned(detect_yaw(mesh.normalized()[0], Target.of(cut))[0])
    write_glb(folder / "object.glb", mesh)
    return {"file": "object.glb"}


def _cut(path: Path, of: str, reading: Reading) -> DrivingVideo:
    """The object of a picture, or of a video's first frame, cut out and centred in a square."""
    if of == "image":
        return prepare(read_picture(path), resolution=SIDE, fill=FILL)
    clip = read_clip(path, reading.mask, frames=2, start=reading.start, end=reading.end)
    masks = None if clip.masks is None else clip.masks[:1]
    first = replace(clip, frames=clip.frames[:1], masks=masks)
    return prepare(first, resolution=SIDE, fill=FILL, background=reading.background)


def _rgba(cut: DrivingVideo) -> Tensor:  # (S, S, 4)
    return torch.cat([cut.frames[0], cut.masks[0, ..., None]], -1)


def _front(path: Path, yaw: float, up: str) -> Tensor:  # (H, W, 4)
    """An object seen from its front."""
    return picture_of(load_object(path, up).turned(yaw).normalized()[0], FRONT.cameras())


def _reporting(progress: Progress | None, stage: str) -> StepProgress | None:
    """A generator's progress as a stage of a fit's; views are shown side by side."""
    if progress is None:
        return None

    def report(step: int, steps: int, picture: Callable[[], Tensor | None]) -> None:
        def preview() -> Tensor:
            drawn = picture()
            drawn = torch.ones(8, 8, 3) if drawn is None else drawn.detach().float().cpu()
            return drawn if drawn.ndim == 3 else torch.cat([*drawn], 1)

        progress(stage, step, steps, {}, preview)

    return report


# The list of what was made


def read_list(folder: Path) -> dict[str, dict[str, Any]]:
    """What the list in a folder :data:`FOLDER` says of each thing that was made: its file, of what, by which models."""
    try:
        made = json.loads((folder / LIST).read_text(encoding="utf-8"))
        return {what: entry for what, entry in made.items() if {"key", "file"} <= entry.keys()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _write_list(folder: Path, made: dict[str, dict[str, Any]]) -> None:
    with atomic_path(folder / LIST) as temporary:
        temporary.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def _digest(path: Path) -> str:
    """Identity of an input: a hash of a file, or of all files of a folder with their names."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(f"{file.relative_to(path).as_posix()} {file.stat().st_size} ".encode())
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _identity(place: Path) -> str:
    """Identity of a model, without reading it whole."""
    return Checkpoint(place).identity if place.is_dir() else f"{place.stat().st_size} {place.stat().st_mtime_ns}"
