"""Input errors, writing files without ever leaving half of one behind, one process a folder, and a private cache."""

from __future__ import annotations

import errno
import glob
import logging
import os
import shutil
import stat
import sys
import tempfile
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

log = logging.getLogger(__name__)


class InputError(ValueError):
    """Bad input: one line that names it and says what to do. The command line prints it and exits with 2."""


class Busy(InputError):
    """Another run holds the folder: the same may be tried again once that has ended."""


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path`` to write a file or folder to; renamed to ``path`` on success, removed on failure.

    The temporary name keeps the suffix, since writers choose the format by it. What was written is on the disk before it gets
    its name, so that a machine that stops leaves the old content or the new. An existing file is replaced in one step; an
    existing folder is moved aside for the moment of the exchange, and back if that fails. What a killed process left of the
    same name is removed.

    Raises:
        InputError: where the place takes no file, or no more: a full or read-only disk, a quota.
    """
    path = Path(path)
    remove_leftovers(path, dead_only=True)
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


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file's tensors and metadata, in memory of their own.

    The file's own may begin anywhere: what PyTorch computes from there has other last bits than from where it puts memory
    itself, so that a run that goes on would differ from one that did not stop. And Windows replaces no file that is in use.

    Raises:
        SafetensorError: for a file that is damaged or something else.
        OSError: for one that cannot be read.
    """
    from safetensors import safe_open

    with safe_open(str(path), framework="pt", device="cpu") as handle:
        return {key: handle.get_tensor(key).clone() for key in handle.keys()}, handle.metadata() or {}


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


def remove_leftovers(path: str | os.PathLike[str], dead_only: bool = False) -> None:
    """Clear up what killed processes left of :func:`atomic_path` for ``path``; a folder that was moved aside comes back.

    Args:
        dead_only: leave alone what a process that still runs may be writing; on Windows, where that is not known, everything.
    """
    path = Path(path)
    parts, olds = f".{glob.escape(path.stem)}.*.part{glob.escape(path.suffix)}", f".{glob.escape(path.name)}.*.old"
    for left in [*path.parent.glob(parts), *path.parent.glob(olds)]:
        number = left.name.removesuffix(path.suffix).rsplit(".", 2)[-2] if left.match(parts) else left.name.rsplit(".", 2)[-2]
        if not number.isdigit() or (dead_only and _runs(int(number))):
            continue
        if left.suffix == ".old" and not path.exists():
            os.replace(left, path)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether there is a process of this number."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def keep_last_used(folder: Path, most: int, but: str = "") -> None:
    """Remove a folder's files, those that were written longest ago first, until they take at most so many bytes.

    The order of writing counts, not the clock: one that is set back or jumps ahead removes nothing.

    Args:
        but: files whose names begin so stay, and count.
    """
    files = [path for path in folder.iterdir() if path.is_file()]
    sizes = {path: path.stat().st_size for path in files}
    total = sum(sizes.values())
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns):
        if total <= most:
            return
        if not (but and path.name.startswith(but)):
            path.unlink(missing_ok=True)
            total -= sizes[path]


def private_cache_folder(name: str) -> Path | None:
    """A folder of the user's cache, ``anchor4d/<name>``, for what is run when it is read back: only this user may write to it.

    Returns:
        None where there is no such folder: it cannot be made or written, or others own it or may write to it (said once in the
        log).
    """
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        return None
    folder = Path(base).resolve() / "anchor4d"
    try:
        for place in (folder, folder / name):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if sys.platform != "win32" and not _private(place):  # there, a user's local application data is private
                log.warning("%s: others own it or may write to it, nothing is kept in it; move it away", place)
                return None
        tempfile.TemporaryFile(dir=folder / name).close()
    except OSError:
        return None
    return folder / name


def _private(folder: Path) -> bool:
    """A real folder of this user's that no other may write to, below none that others may replace it in."""
    facts = folder.lstat()
    above = [parent.stat().st_mode for parent in folder.parents]
    open_above = any(mode & stat.S_IWOTH and not mode & stat.S_ISVTX for mode in above)
    own = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return own and not open_above


@contextmanager
def only_process(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder against other runs: a lock on ``.lock`` in it, which the system drops when the process ends.

    A folder that was made for it and stayed empty is removed again.

    Raises:
        Busy: where another process, or another thread of this one, holds it.
    """
    path = Path(folder) / ".lock"
    made = not path.parent.is_dir()
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle)
            # Whoever held it before removes the file: a lock on a removed one keeps nobody out.
            if sys.platform == "win32" or (path.exists() and os.path.samestat(os.fstat(handle), path.stat())):
                break
        except BlockingIOError:
            os.close(handle)
            raise Busy(
                f"{Path(folder)}: another run is writing to this folder; wait for it, stop it, or choose another folder"
            ) from None
        os.close(handle)
    try:
        yield
    finally:
        if sys.platform != "win32":
            path.unlink(missing_ok=True)
            os.close(handle)
        else:
            os.close(handle)
            with suppress(OSError):  # another process has opened it by now
                path.unlink(missing_ok=True)
        if made:
            with suppress(OSError):  # what was written stays
                path.parent.rmdir()


def _lock(handle: int) -> None:
    """Lock an open file or raise BlockingIOError; where a file system has no locks there is nothing to lock."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            raise BlockingIOError from None
    else:
        import errno
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
