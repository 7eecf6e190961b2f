"""Members of .zip archives that others made, bounded before they are unpacked."""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from ..files import InputError

#: Nothing sound of this many bytes or more unpacks to more than this many times its size; deflate alone reaches a thousand.
_LARGE, _RATIO = 1 << 26, 100


@contextmanager
def opened_zip(source: str | os.PathLike[str] | BinaryIO, name: str, what: str) -> Iterator[zipfile.ZipFile]:
    """An archive to read; ``name`` and ``what`` it should hold are for messages.

    Raises:
        InputError: for what is no .zip.
    """
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{name}: not a readable .zip of {what} ({error}), copy or export it again") from None
    with archive:
        yield archive


def files_in(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Members that are files and have a name; some versions of Python cannot ask one without a name what it is."""
    return [info for info in archive.infolist() if info.filename and not info.is_dir()]


def member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> bytes:
    """The content of a member, no more than it declares.

    Raises:
        InputError: for a damaged or encrypted member, or one that unpacks to far more than it should.
    """
    if info.file_size >= _LARGE and info.file_size > _RATIO * info.compress_size:
        raise InputError(
            f"{name}: {info.filename} unpacks from {info.compress_size} to {info.file_size} bytes, no splats pack so well; "
            "unpack it yourself if you trust it"
        )
    try:
        with archive.open(info) as file:
            return file.read(info.file_size)
    except (
        zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError, OSError, ValueError,
        MemoryError,
    ) as error:  # fmt: skip
        # The reason may repeat what a damaged archive has for a name, however long.
        what, why = info.filename[:200], str(error)[:200]
        raise InputError(f"{name}: {what} cannot be unpacked ({why}), copy or export it again") from None
