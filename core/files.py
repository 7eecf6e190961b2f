"""Input errors and writing files without ever leaving half of one behind."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: What a system says where a place takes no more, or no such, files: for each the remedy.
_REFUSALS = {
    errno.ENOSPC: "free space or choose another disk",
    errno.EDQUOT: "free space or choose another disk",
    errno.EFBIG: "choose a disk that holds larger files, or write less",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "choose a place that can be written",
    errno.EPERM: "choose a place that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "choose a folder",
    errno.EIO: "the disk may be damaged, choose another one",
}


class InputError(ValueError):
    """Bad input: one line that names it and says what to do. The command line prints it and exits with 2."""


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path`` to write a file or folder to; renamed to ``path`` on success, removed on failure.

    The temporary name keeps the suffix, since writers choose the format by it. What was written is on the disk before it gets
    its name, so that a machine that stops leaves the old content or the new. An existing file is replaced in one step; an
    existing folder is moved aside for the moment of the exchange, and back if that fails.

    Raises:
        InputError: where the place takes no file, or no more: a full or read-only disk, a quota.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        if temporary.is_dir() and path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.replace(path, old)
            try:
                os.replace(temporary, path)
            except BaseException:
                os.replace(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, path)
        _flush_names(path.parent)
    except BaseException as error:
        with suppress(OSError):
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _REFUSALS:
            reason = os.strerror(error.errno).lower()
            raise InputError(f"{path}: cannot be written ({reason}), {_REFUSALS[error.errno]}") from error
        raise


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, through a temporary name.

    Raises:
        InputError: as :func:`atomic_path`.
    """
    from safetensors.torch import save

    owned = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        # Not save_file: it leaves the file readable by its owner alone, and a full disk is no OSError there.
        temporary.write_bytes(save(owned, metadata=metadata))


def _flush(path: Path) -> None:
    """Everything written to a file, or to the files of a folder, is on the disk."""
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file():
            handle = os.open(file, os.O_RDWR | getattr(os, "O_BINARY", 0))
            try:
                _synchronise(handle)
            finally:
                os.close(handle)
    if path.is_dir():
        _flush_names(path)


def _flush_names(folder: Path) -> None:
    """The names in a folder are on the disk, where the system has a way to ask for that."""
    with suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            _synchronise(handle)
        finally:
            os.close(handle)


def _synchronise(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # file systems without it
            raise
