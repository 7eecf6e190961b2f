"""What names a run: canonical JSON of its settings, and a hash of the content of what it is given."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import singledispatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@singledispatch
def canonical(value: Any) -> Any:
    """A value as JSON: the same for equal settings in every process, different for different ones.

    Dataclasses are their class's name and the fields that they are compared by, tensors a hash of their content. Other types
    register what they are (``@canonical.register``).

    Raises:
        TypeError: for a value of a type that did not.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **{f.name: canonical(getattr(value, f.name)) for f in fields(value) if f.compare}}
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(canonical(item) for item in value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (Path, Enum, torch.dtype, torch.device)):
        return str(value)
    raise TypeError(f"settings hold a {type(value).__name__}, which has no canonical form; register one")


@canonical.register
def _(value: Tensor) -> Any:
    array = value.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tuple(array.shape)}{array.dtype}".encode())
    if array.numel():
        digest.update(array.view(torch.uint8).numpy().data)
    return {"tensor": digest.hexdigest()}


def canonical_json(value: Any) -> str:
    """:func:`canonical` as one line, keys sorted."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(*parts: Any) -> str:
    """A short hash of settings and inputs: names the run, or the checkpoint, that belongs to exactly these."""
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()[:20]


def file_identity(path: str | os.PathLike[str]) -> str:
    """A hash of a file's bytes, or of the names and bytes of a folder's files, whatever it is called itself."""
    path, digest = Path(path), hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:20]
