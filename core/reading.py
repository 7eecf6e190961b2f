"""Reading what others made: how much one file may ask for, and which files it may bring with it.

One budget holds for every reader, and is checked before memory is taken. Each bound is an environment variable:

| variable | default | bounds |
|---|---|---|
| ``ANCHOR4D_MAX_FILE_MB`` | 1024 | bytes of one file, and of each file that it refers to |
| ``ANCHOR4D_MAX_ELEMENTS`` | 20000000 | vertices, and faces, of one mesh, instances counted |
| ``ANCHOR4D_MAX_MEMORY_MB`` | 2048 | bytes that the arrays of one file take once they are unpacked |
| ``ANCHOR4D_MAX_PIXELS`` | 67108864 | pixels of all textures of one file |
| ``ANCHOR4D_MAX_NODES`` | 200000 | nodes of one file, and copies of one part |
| ``ANCHOR4D_MAX_VIDEO_PIXELS`` | 134217728 | frames times pixels of a video that are kept: 64 of 1920x1080 |
| ``ANCHOR4D_MAX_DECODED_PIXELS`` | 17179869184 | those decoded on the way: 2 minutes of 1920x1080 at 60 frames a second |
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .files import InputError


@dataclass(frozen=True)
class Limits:
    """The budget of one file."""

    file_bytes: int = 1024 << 20
    elements: int = 20_000_000
    memory: int = 2048 << 20
    pixels: int = 1 << 26
    nodes: int = 200_000
    video: int = 1 << 27
    decoded: int = 1 << 34


#: Environment variable and unit of each bound.
VARIABLES = {
    "file_bytes": ("ANCHOR4D_MAX_FILE_MB", 1 << 20),
    "elements": ("ANCHOR4D_MAX_ELEMENTS", 1),
    "memory": ("ANCHOR4D_MAX_MEMORY_MB", 1 << 20),
    "pixels": ("ANCHOR4D_MAX_PIXELS", 1),
    "nodes": ("ANCHOR4D_MAX_NODES", 1),
    "video": ("ANCHOR4D_MAX_VIDEO_PIXELS", 1),
    "decoded": ("ANCHOR4D_MAX_DECODED_PIXELS", 1),
}


def limits() -> Limits:
    """The budget as the environment sets it now.

    Raises:
        InputError: for a variable that is no positive whole number.
    """
    given = {}
    for name, (variable, unit) in VARIABLES.items():
        if text := os.environ.get(variable):
            if not (text.isascii() and text.isdigit() and int(text) > 0):
                raise InputError(f"{variable}={text}: not a positive whole number, correct or unset it")
            given[name] = int(text) * unit
    return Limits(**given)


def regular_size(path: str | os.PathLike[str], what: str = "file") -> int:
    """Bytes of a regular file; pipes, devices and folders are refused before anything is read from them.

    Raises:
        InputError: for what is missing or no regular file.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        raise InputError(f"{path}: no such file, check the path of the {what}") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: not a regular file, give a {what}")
    return found.st_size


def read_bytes(path: str | os.PathLike[str], what: str = "file", limit: int | None = None) -> bytes:
    """A whole file, its size checked first.

    Args:
        limit: bytes, :attr:`Limits.file_bytes` where None.

    Raises:
        InputError: for a missing or oversized file, or what is no regular one.
    """
    limit = limits().file_bytes if limit is None else limit
    if regular_size(path, what) > limit:
        raise InputError(f"{path}: larger than {limit >> 20} MB, reduce the {what} or raise {VARIABLES['file_bytes'][0]}")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), check its permissions") from None


def beside(owner: Path, reference: str) -> Path | None:
    """The file that ``owner`` refers to by a relative path, upper and lower case ignored where the exact name is missing.

    Returns:
        the path, or None where there is no such file.

    Raises:
        InputError: for a reference that leaves the owner's folder: an absolute path, a drive, "..", a link to elsewhere.
    """
    name = reference.replace("\\", "/")
    outside = InputError(
        f"{owner}: refers to {reference[:80]!r}, outside its folder; copy that file beside it and name it there"
    )
    if name.startswith("/") or ":" in name.split("/")[0] or ".." in name.split("/") or "\0" in name:
        raise outside
    place = owner.parent
    for part in PurePosixPath(name).parts:
        exact = place / part
        if not os.path.lexists(exact):
            try:
                same = [entry for entry in os.listdir(place) if entry.casefold() == part.casefold()]
            except OSError:
                return None
            if not same:
                return None
            exact = place / min(same)
        place = exact
    try:
        real = place.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        return None
    if not real.is_relative_to(owner.parent.resolve()):
        raise outside
    return None if real.is_dir() else place
