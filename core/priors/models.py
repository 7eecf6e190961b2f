"""Optional models: which there are, what is on this machine, where each belongs, and fetching one on request.

The registry is models.toml beside this file. Models lie below a models folder: the one that ANCHOR4D_MODELS names, else
ComfyUI's, else one among the user's data. Several may hold models; the first is fetched into.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..files import InputError
from ..packages import problem

log = logging.getLogger(__name__)

COMMAND = "python -m anchor4d models"
PICKLES = (".bin", ".ckpt", ".pth", ".pt")


@dataclass(frozen=True)
class Model:
    """An entry of the registry; models.toml says what its fields mean."""

    name: str
    roles: tuple[str, ...]
    folder: str
    hub: str = ""
    url: str = ""
    md5: str = ""
    sha256: str = ""
    git: str = ""
    parts: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    size: float | None = None
    memory: float | None = None
    licence: str = ""
    warning: str = ""
    needs: tuple[str, ...] = ()
    brings: tuple[str, ...] = ()
    package: str = ""

    @property
    def purpose(self) -> str:
        """What it is for, in words."""
        return ", ".join(_registry()["roles"][role] for role in self.roles) or "a model of the Hub"

    @property
    def file(self) -> str:
        """Name of the single file that is fetched from ``url``; "" for a folder."""
        return unquote(urlsplit(self.url).path.rsplit("/", 1)[-1])

    @property
    def expected(self) -> Path:
        """Where it belongs: a folder, or a file if it is a single one from ``url``."""
        return self.places()[0]

    def places(self) -> list[Path]:
        """Where it is looked for, :attr:`expected` first."""
        if self.folder == "rembg":
            from ..io.background import rembg_folders

            return [folder / self.file for folder in rembg_folders()]
        places = [folder / self.folder for folder in models_folders()]
        if "perceptual" in self.roles:
            import torch

            places.append(Path(torch.hub.get_dir()) / "checkpoints" / self.file)  # where torchvision fetches its own to
        return places

    def found(self) -> Path | None:
        """Where it is on this machine; a folder counts if no part of it is missing."""
        if self.url:
            return next((place for place in self.places() if place.is_file()), None)
        return next((place for place in self.places() if place.is_dir() and not self.lacks(place)), None)

    def lacks(self, folder: Path) -> list[str]:
        """Parts and files that a folder would need to be this model."""
        empty = [part for part in self.parts if not (folder / part).is_dir() or not any((folder / part).iterdir())]
        return empty + [file for file in self.files if not (folder / file).is_file()]


# Where models lie

_host_folder: Path | None = None


def set_models_folder(folder: str | os.PathLike[str] | None) -> None:
    """Set where the host, ComfyUI, keeps its models."""
    global _host_folder
    _host_folder = Path(folder) if folder is not None else None


def models_folders() -> list[Path]:
    """Folders that hold models, the one to fetch into first."""
    own = os.environ.get("ANCHOR4D_MODELS")
    return [*([Path(own).expanduser()] if own else []), *([host] if (host := _host()) else []), _user_folder()]


def _host() -> Path | None:
    if _host_folder is not None:
        return _host_folder
    # The command line of a pack that lies in ComfyUI's custom_nodes. Not resolved: it may be a link.
    pack = Path(os.path.abspath(__file__)).parent.parent.parent
    models = pack.parent.parent / "models"
    return models if pack.parent.name == "custom_nodes" and models.is_dir() else None


def _user_folder() -> Path:
    if sys.platform == "win32":
        data = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        data = "~/Library/Application Support"
    else:
        data = os.environ.get("XDG_DATA_HOME", "~/.local/share")
    return Path(data).expanduser() / "anchor4d" / "models"


# The registry


@lru_cache(maxsize=1)
def _registry() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "models.toml").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def known_models() -> tuple[Model, ...]:
    """Every model of the registry."""

    def model(entry: dict[str, Any]) -> Model:
        lists: dict[str, Any] = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
        return Model(**entry | lists)

    return tuple(model(entry) for entry in _registry()["model"])


def model_named(name: str) -> Model | None:
    """The model of a name or Hub id; one that the registry lacks is made up for an id, owner/name."""
    for model in known_models():
        if name and name in (model.name, model.hub):
            return model
    if len(parts := name.split("/")) == 2 and all(part and part not in (".", "..") for part in parts) and "\\" not in name:
        return Model(name, (), f"diffusers/{name.replace('/', '--')}", hub=name)
    return None


def find(name: str) -> Path | None:
    """Where a model is on this machine.

    Args:
        name: in the registry, or a Hub id, or what :func:`folders_for` gives: a path below a models folder.

    Returns:
        Its folder, or its file if it is a single one from elsewhere than the Hub; None if it is not here. Never anything
        outside the models folders: an absolute path, or one that climbs out, is no name.
    """
    model = model_named(name)
    if model is not None and (found := model.found()):
        return found
    inside = (
        name and not Path(name).is_absolute() and not Path(name).drive and ".." not in Path(name).parts and "\0" not in name
    )
    places = [folder / name for folder in models_folders()] if inside else []
    return next((place for place in places if place.exists()), None)


def missing(name: str) -> InputError:
    """What to raise where :func:`find` finds nothing: which model, where it belongs, what gets it."""
    model = model_named(name)
    if model is None:
        return InputError(f"{name}: no such file or folder, and no model of that name; `{COMMAND} list` names those there are")
    size = f", {model.size:g} GB" if model.size else ""
    return InputError(
        f"{name}: this model ({model.purpose}{size}) is not on this machine; it belongs in {model.expected}, "
        f"get it with: {COMMAND} get {model.name}"
    )


def folders_for(role: str) -> list[str]:
    """Names of what is on this machine for a role, for a node's choice; :func:`find` takes them.

    First those of the registry, then other folders in diffusers' layout, as paths below the models folder.
    """
    named = [model for model in known_models() if role in model.roles and model.found()]
    taken = {model.found() for model in named}
    others = []
    for folder in models_folders():
        for index in sorted(folder.glob("diffusers/*/model_index.json")):
            if index.parent not in taken and role in _roles_of(index):
                others.append(index.parent.relative_to(folder).as_posix())
    return [model.name for model in named] + list(dict.fromkeys(others))


def _roles_of(index: Path) -> list[str]:
    try:
        named = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError, RecursionError):
        return []
    return _registry()["pipelines"].get(named, []) if isinstance(named, str) else []


# The command


def table() -> str:
    """All optional models and accelerators of this machine, as lines to print."""
    lines, width = [], max(len(model.name) for model in known_models())
    for model in known_models():
        found = model.found()
        size = f"{model.size:g} GB" if model.size else ""
        lines.append(f"{model.name:{width}}  {'present' if found else 'missing':8} {size:8} {model.purpose}")
        lines.append(f"{'':{width}}  {f'at {found}' if found else f'expected at {model.expected}'}")
        notes = [f"licence: {model.licence}" + (f": {model.warning}" if model.warning else "")]
        notes += [f"wants {model.memory:g} GB of GPU memory"] if model.memory else []
        notes += [f"works with {' and '.join(model.needs)}"] if model.needs else []
        if model.package and (reason := problem(model.package)):
            notes.append(f"also needs {model.package}, which {reason}: pip install {model.package}")
        if found and model.hub and (pickle := _pickle(found)):
            notes.append(f"{pickle.relative_to(found)} is a pickle: run {COMMAND} convert {found}")
        lines.append(f"{'':{width}}  {'; '.join(notes)}")
    import torch

    from ..render import available_backends

    renderers = available_backends("cpu") + (available_backends("cuda") if torch.cuda.is_available() else [])
    lines.append(f"\nmodels are fetched to {models_folders()[0]} (ANCHOR4D_MODELS chooses another folder)")
    lines.append(f"renderers here: {', '.join(dict.fromkeys(renderers))}")
    return "\n".join(lines)


def markdown_table() -> str:
    """The registry as docs/models.md shows it."""
    rows = ["| Name | For | GB | GPU memory, GB | Licence of the weights |", "|---|---|---|---|---|"]
    for model in known_models():
        source = f"[{model.name}](https://huggingface.co/{model.hub})" if model.hub else f"[{model.name}]({model.url})"
        licence = model.licence + (f": **{model.warning}**" if model.warning else "")
        numbers = " | ".join(f"{value:g}" if value else "" for value in (model.size, model.memory))
        rows.append(f"| {source} | {model.purpose} | {numbers} | {licence} |")
    return "\n".join(rows)


def download(name: str | None, progress: Callable[[int, int], None] | None = None) -> Path:
    """Fetch a model from where its makers publish it, check every file's hash, and return its place.

    What an interrupted call has fetched stays, and the next call goes on from there. A folder has its name only once it is
    whole; pickles in it are converted (:func:`convert`).

    Args:
        name: in the registry, or a Hub id.
        progress: called with megabytes done and to do; raises to stop.

    Raises:
        InputError: for an unknown name, too little space, no connection, or a file that is not the one its makers describe.
    """
    model = model_named(name or "")
    if model is None:
        names = ", ".join(model.name for model in known_models())
        raise InputError(f"models get {name or 'NAME'}: choose one of {names}, or the id of a model on the Hub, owner/name")
    for part in model.brings:
        download(part)
    if found := model.found():
        return found
    target = model.expected
    if model.hub and target.exists():
        raise InputError(f"{target}: has no {', '.join(model.lacks(target))}; move this folder away and run the command again")
    if reason := problem("huggingface_hub"):
        raise InputError(f"models get {model.name}: huggingface_hub {reason}; run: pip install huggingface_hub")
    from .downloads import RemoteFile, fetch, hub_files

    if model.hub:
        _, files = hub_files(model.hub, model.parts, model.files)
        folder = target.with_name(target.name + ".part")
    else:
        kinds = {"sha256": model.sha256, "md5": model.md5, "git": model.git}
        digest = next((kind, digits) for kind, digits in kinds.items() if digits)
        most = round(1.2e9 * model.size) + 10**6 if model.size else 1 << 40
        files, folder = [RemoteFile(model.url, model.file, None, digest, most)], target.parent
    total, done = sum(file.size or 0 for file in files) or round(1e9 * (model.size or 0)), 0
    _require_space(total - _fetched(folder), folder)
    log.info("%s: %.3g GB to %s", model.name, total / 1e9, target)

    def count(new: int) -> None:
        nonlocal done
        done += new
        if progress is not None:
            progress(-(-done // 10**6), -(-max(done, total) // 10**6))

    for file in files:
        fetch(file, folder, count, model.hub or model.name)
    total = done  # of a single file, only now known exactly
    count(0)
    if model.hub:
        os.replace(folder, target)
        if _pickle(target):
            convert(target)
    return target


def convert(path: str | os.PathLike[str] | None) -> Path:
    """Make safetensors of a pickled checkpoint, a file or a folder; see :func:`anchor4d.core.priors.convert.convert`."""
    if not path:
        raise InputError("models convert: name a file (.ckpt, .bin, .pth, .pt) or a folder that holds such")
    from .convert import convert as convert_pickles

    return convert_pickles(Path(path))


def _pickle(folder: Path) -> Path | None:
    """A pickle in a model's folder that has no safetensors beside it."""
    found = (file for file in sorted(folder.rglob("*")) if file.suffix in PICKLES)
    return next((file for file in found if not any(file.parent.glob("*.safetensors"))), None)


def _fetched(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.name.endswith(".part") else 0


def _require_space(needed: int, folder: Path) -> None:
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise InputError(
            f"{folder}: needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; make space, or name a folder on another "
            "disk in ANCHOR4D_MODELS"
        )
