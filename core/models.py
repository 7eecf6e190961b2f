"""Optional models: what is on this machine, where each file is expected, and fetching one on request."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import torch

from .background import rembg_folders
from .files import InputError, atomic_path
from .objectives.perceptual import BACKBONES, backbone_folders


@dataclass(frozen=True)
class Model:
    """A file that a feature wants.

    Args:
        name: what ``models get`` calls it.
        purpose: what it is for.
        package: Python package that uses it.
        folders: where it is looked for; it is fetched into the first.
        url: where its makers publish it; the last part is the file's name.
        digest: "md5" or "sha256" and the hash, or as much of it as its makers name.
    """

    name: str
    purpose: str
    package: str
    folders: tuple[Path, ...]
    url: str
    digest: tuple[str, str]

    @property
    def file(self) -> str:
        return unquote(urlsplit(self.url).path.rsplit("/", 1)[-1])

    def found(self) -> Path | None:
        """The file, where it is on this machine."""
        return next((folder / self.file for folder in self.folders if (folder / self.file).is_file()), None)


def known_models() -> list[Model]:
    """Every optional model."""
    lpips = tuple(backbone_folders())
    torchvision = "https://download.pytorch.org/models/"
    rembg = "https://github.com/danielgatis/rembg/releases/download/v0.0.0/u2net.onnx"
    return [
        Model(
            "rembg",
            "cuts the object out of videos without alpha or a plain background",
            "rembg",
            tuple(rembg_folders()),
            rembg,
            ("md5", "60024c5c889badc19c04ad937298a77b"),
        ),
        # torchvision's file names end in the first digits of their SHA-256.
        *(
            Model(
                f"lpips-{net}",
                "the paper preset's perceptual term",
                "lpips",
                lpips,
                torchvision + file,
                ("sha256", file[-12:-4]),
            )
            for net, file in BACKBONES.items()
        ),
    ]


def table() -> str:
    """All optional models and accelerators of this machine, as lines to print."""
    lines = []
    for model in known_models():
        found = model.found()
        package = "" if importlib.util.find_spec(model.package) else f"; also needs: pip install {model.package}"
        where = str(found) if found else f"expected at {model.folders[0] / model.file}"
        lines.append(f"{model.name:12} {'present' if found else 'missing':8} {model.purpose}{package}\n{'':22}{where}")
    from .render import available_backends

    renderers = available_backends("cpu") + (available_backends("cuda") if torch.cuda.is_available() else [])
    lines.append(f"\nrenderers here: {', '.join(dict.fromkeys(renderers))}")
    return "\n".join(lines)


def download(name: str | None, progress: Callable[[int, int], None] | None = None) -> Path:
    """Fetch one model from where its makers publish it, check its hash, and return its path.

    Raises:
        InputError: for an unknown name, no connection, or a file that is not the one its makers describe.
    """
    models = {model.name: model for model in known_models()}
    if name not in models:
        raise InputError(f"models get {name or ''}: choose one of {', '.join(models)}")
    model = models[name]
    if found := model.found():
        return found
    target, (kind, expected) = model.folders[0] / model.file, model.digest
    digest = hashlib.new(kind, usedforsecurity=False)
    try:
        with urlopen(model.url, timeout=30) as source, atomic_path(target) as temporary:
            size, done = int(source.headers.get("Content-Length") or 0), 0
            with open(temporary, "wb") as file:
                while block := source.read(1 << 20):
                    file.write(block)
                    digest.update(block)
                    done += len(block)
                    if progress is not None and size:
                        progress(done >> 20, size >> 20)
            if not digest.hexdigest().startswith(expected):
                raise InputError(f"{model.url}: not the file its makers describe; try again, or put it at {target}")
    except (URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"{model.url}: cannot be fetched ({reason}); put the file at {target} yourself") from None
    return target
