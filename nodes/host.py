"""What all nodes share: socket types, ordinary tensors and named errors, progress, previews, device and checkpoints."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy.cli_args import args
from comfy_api.latest import Types, io, ui
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..core.files import InputError, keep_last_used
from ..core.gaussians import Gaussians
from ..core.identity import fingerprint
from ..core.io.film import to_uint8, write_film, write_webp
from ..core.priors.models import models_folders, set_models_folder
from ..core.progress import pulsing
from ..core.render import available_backends
from ..core.scene import sequence
from ..core.scene.scene import Scene4D
from . import paths

log = logging.getLogger(__name__)
set_models_folder(folder_paths.models_dir)

Video = io.Custom("A4D_VIDEO")  # core.video.DrivingVideo
Mesh = io.Custom("A4D_MESH")  # core.object3d.Object3D: a mesh or Gaussians
Alignment = io.Custom("A4D_ALIGNMENT")  # core.align.FocalAlignment
Cameras = io.Custom("A4D_CAMERAS")  # list of core.cameras.FrontCamera, one a frame
Distance = io.Custom("A4D_DISTANCE")  # core.align.distance.ObjectDistance
Objectives = io.Custom("A4D_OBJECTIVES")  # tuple of objectives
Prior = io.Custom("A4D_PRIOR")  # core.priors.Prior
Scene = io.Custom("A4D_SCENE")  # core.scene.Scene4D
Trajectory = io.Custom("A4D_TRAJECTORY")  # core.trajectory.Trajectory
Turns = io.Custom("A4D_TURNS")  # tuple of two ints, core.fit.loop.Schedule.turns

#: Of a list of files: nothing chosen.
NONE = "none"
#: Seconds between live previews, and bytes of checkpoints that are kept of runs nobody took up again, the last used first.
PREVIEW_EVERY, CHECKPOINT_BYTES = 0.5, 4 * 2**30
#: Seconds after which a node that says nothing says that it is at work.
SILENCE = 2.0


def scene_of(value: Scene4D | Types.SPLAT, fps: float = sequence.FPS) -> Scene4D:
    """What came in through :func:`widgets.scene`; a batch of splats is one frame each. Call it inside :func:`work`."""
    if isinstance(value, Scene4D):
        return value
    return sequence.scene_from_gaussians(sets_of(value), fps=fps)


def sets_of(value: Types.SPLAT) -> list[Gaussians]:
    """The items of a batch of splats, in our frame."""
    arrays = (value.positions, value.scales, value.rotations, value.opacities, value.sh)
    return sequence.sets_from_arrays(*(array.clone() for array in arrays), counts=value.counts)


@contextmanager
def work(node: type[io.ComfyNode], gradients: bool = False) -> Iterator[None]:
    """What every node works in: ordinary tensors in place of the host's inference tensors, and errors that name the node.

    The user's interrupt ends the work at the next :func:`~..core.progress.pulse`, and a node that was silent for
    :data:`SILENCE` seconds says for how long it has been at work. Values on our own sockets are always made in here, so they
    never hold inference tensors; the host's must be cloned.
    """
    threads, check = torch.get_num_threads(), comfy.model_management.throw_exception_if_processing_interrupted
    with torch.inference_mode(False), torch.set_grad_enabled(gradients), _beating(), pulsing(check):
        try:
            # PyTorch's threads spin while they wait for each other: where the page's drawing holds one of them up, a fit or a
            # search with a prior takes twenty times as long on two cores. Half the cores cost next to nothing.
            torch.set_num_threads(max(1, threads // 2))
            yield
        except (ValueError, FloatingPointError, OSError) as error:  # OSError: a disk that is full or cannot be read
            raise ValueError(f"{node.define_schema().display_name}: {' '.join(str(error).split())}") from error
        finally:
            torch.set_num_threads(threads)


def owned(tensor: Tensor | None) -> Tensor | None:
    """The node's own copy of a host tensor; no inference tensor when called inside :func:`work`."""
    return None if tensor is None else tensor.detach().clone()


def say(text: str) -> None:
    """A line of text in the running node."""
    _spoken.set(text)
    _send(get_executing_context(), text)


def _send(context: Any, text: str) -> None:
    server = getattr(PromptServer, "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id)


class _Spoken:
    """What the running node said last, and when it last gave a sign of life."""

    def __init__(self) -> None:
        self.text, self.at = "", time.monotonic()

    def set(self, text: str | None = None) -> None:
        self.text, self.at = self.text if text is None else text, time.monotonic()


_spoken = _Spoken()


@contextmanager
def _beating() -> Iterator[None]:
    """Repeats in a node that is silent what it said last, and for how long it has been at work, from a thread of its own."""
    began, ended, beaten, context = time.monotonic(), threading.Event(), threading.Event(), get_executing_context()
    _spoken.set("")

    def beat() -> None:
        while not ended.wait(0.5):
            if time.monotonic() - _spoken.at > SILENCE:
                beaten.set()
                waited = f"at work for {time.monotonic() - began:.0f} s"
                _spoken.set()
                _send(context, f"{_spoken.text}\n{waited}" if _spoken.text else waited)

    thread = threading.Thread(target=beat, name="anchor4d node", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if beaten.is_set():  # the line would stay, as if the node were still at work
            _send(context, _spoken.text or f"took {time.monotonic() - began:.0f} s")


class Report:
    """A core loop's progress as the host's bar with a live preview; raises when the user interrupts."""

    def __init__(self, total: int = 100, note: str = "") -> None:
        self.bar, self.shown, self.note = comfy.utils.ProgressBar(total), 0.0, note

    def show(self, step: int, total: int, picture: Callable[[], Tensor | None] | None = None, text: str = "") -> bool:
        """Moves the bar, and where the last preview is long enough ago, draws ``picture`` (H, W, 3)."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        due = time.monotonic() - self.shown > PREVIEW_EVERY or step == total
        drawn = picture() if due and picture is not None else None
        preview = None if drawn is None else ("JPEG", Image.fromarray(to_uint8(drawn)), 512)
        self.bar.update_absolute(step, total, preview)
        _spoken.set()
        if due:
            self.shown = time.monotonic()
            if text:
                say(f"{self.note}\n{text}" if self.note else text)
        return due

    def count(self, step: int, total: int) -> None:
        """Progress of something without pictures."""
        self.show(step, total)

    def fit(self, stage: str, step: int, steps: int, losses: dict[str, float], preview: Callable[[], Tensor]) -> None:
        """:class:`core.fit.loop.Progress`."""
        terms = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        self.show(step, steps, preview, f"{stage}: step {step} of {steps}\n{terms}")

    def align(self, fraction: float, picture: Tensor | None) -> None:
        """:data:`core.align.focal.Progress`."""
        self.show(round(100 * fraction), 100, None if picture is None else lambda: picture)


#: Names the pictures that nodes show.
PREVIEW_PREFIX = "anchor4d_preview"


def stills(images: Tensor) -> dict[str, Any]:  # (T, H, W, 3)
    """Pictures shown in the node."""
    return {"images": ui.ImageSaveHelper.save_images(images, PREVIEW_PREFIX, io.FolderType.temp, None, 1)}


def film(frames: Tensor | np.ndarray, fps: float, suffix: str = ".webp") -> dict[str, Any]:  # (T, H, W, 3)
    """A film that plays in the node.

    Args:
        suffix: .webp, or .webm for a node with an upload button for videos, which shows everything in a video element.
    """
    height, width = frames.shape[1:3]
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        PREVIEW_PREFIX, folder_paths.get_temp_directory(), width, height
    )
    file = f"{name}_{counter:05}_{suffix}"
    if suffix == ".webp":
        write_webp(Path(folder) / file, frames, fps, quality=85, effort=0)
    else:
        write_film(Path(folder) / file, frames, fps)
    return {"images": [ui.SavedResult(file, subfolder, io.FolderType.temp)], "animated": (True,)}


def device_for(choice: str, renderer: str) -> torch.device:
    """The device that the two advanced inputs mean."""
    host = comfy.model_management.get_torch_device()
    if choice == "gpu" or renderer in ("nvrtc", "gsplat"):
        return host
    if choice == "cpu" or renderer == "numba":
        return torch.device("cpu")
    if renderer == "torch" or host.type == "cuda":
        return host
    return torch.device("cpu") if "numba" in available_backends("cpu") else host


@contextmanager
def checkpoint(stage: str, *inputs: Any) -> Iterator[Path]:
    """Where a fit of these inputs keeps its checkpoint: it stays when the fit is interrupted, so that the next run goes on."""
    folder = Path(folder_paths.get_user_directory()) / "anchor4d" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{stage}-{fingerprint(*inputs)}"
    keep_last_used(folder, CHECKPOINT_BYTES, but=name)
    yield folder / f"{name}.safetensors"
    for done in folder.glob(f"{name}*.safetensors"):
        done.unlink(missing_ok=True)


def listed(folder: Path, suffixes: Sequence[str], base: Path) -> list[str]:
    """Files below a folder with one of the suffixes, named as the host names them: from ``base``, with forward slashes."""
    if not folder.is_dir():
        return []
    return sorted(p.relative_to(base).as_posix() for p in folder.rglob("*") if p.suffix.lower() in suffixes)


def valid_choice(name: str | None, path: str | None, remedy: str) -> bool | str:
    """The host's validation of :func:`chosen_path`'s inputs; None is a value that comes over a link and is known later."""
    if path or path is None or name is None:
        return True
    if name in ("", NONE):
        return remedy
    return folder_paths.exists_annotated_filepath(name) or f"{name}: not there any more, {remedy}"


#: What the tooltip of every typed path ends with.
TYPED_PATH = " Where others share this ComfyUI (--listen): only in its input, output, temp and models folders."


def chosen_path(name: str, path: str) -> Path:
    """The file or folder that a list of files and a text field name; the text field wins, relative to the input folder.

    Raises:
        InputError: for a typed path that :func:`typed_path` refuses.
    """
    return typed_path(path, Path(folder_paths.get_input_directory())) if path.strip() else _listed_path(name)


def _listed_path(name: str) -> Path:
    return Path(folder_paths.get_annotated_filepath(name))


def typed_path(text: str, base: Path) -> Path:
    """The path that a text field names, relative to ``base``: the one place that decides where such a path may lead.

    In a host that listens to this machine alone it may lead anywhere, as in any program on it. In one that others reach, it
    stays in the input, output, temp and models folders and those that ANCHOR4D_ALLOWED_PATHS names.

    Raises:
        InputError: for a path that leads elsewhere.
    """
    path = base / Path(text.strip().strip('"')).expanduser()
    if paths.is_shared(args.listen):
        own = [folder_paths.get_input_directory(), folder_paths.get_output_directory(), folder_paths.get_temp_directory()]
        allowed = [*map(Path, own), Path(folder_paths.models_dir), *models_folders(), *paths.named_folders()]
        if not paths.is_within(path, allowed):
            raise InputError(
                f"{text.strip()}: this ComfyUI is open to other machines, so paths stay in its input, output, temp and models "
                f"folders; put the file there, or name its folder in {paths.VARIABLE} and start ComfyUI again"
            )
    return path


def model_source(choice: str, path: str) -> str:
    """What the two inputs of a model name; the text field wins: a folder, also below the models folder, or a model's name.

    Raises:
        InputError: for a typed path that :func:`typed_path` refuses.
    """
    text = path.strip().strip('"')
    if not text:
        return choice
    inside = typed_path(text, Path(folder_paths.models_dir))
    if inside.exists():
        return str(inside)
    if Path(text).exists():
        typed_path(text, Path.cwd())
    return text


def changed(path: Path) -> float:
    """Modification time of a file, or of the newest file of a folder."""
    return max(
        [path.stat().st_mtime, *(p.stat().st_mtime for p in path.iterdir())] if path.is_dir() else [path.stat().st_mtime]
    )
