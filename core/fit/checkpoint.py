"""Checkpoints: a running fit's tensors and settings in one safetensors file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import InputError, read_tensors, write_tensors

#: What every header says, and as what.
FIELDS = {"stage": str, "key": str, "step": int, "losses": dict}


def save_checkpoint(path: str | os.PathLike[str], tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write a checkpoint in one step: a reader sees the old file or the new one, whole."""
    write_tensors(path, tensors, {"anchor4d-checkpoint": json.dumps(header)})


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint.

    Raises:
        InputError: for a damaged or foreign file.
    """
    from safetensors import SafetensorError

    try:
        tensors, metadata = read_tensors(path)
        header = json.loads(metadata["anchor4d-checkpoint"])
        for name, kind in FIELDS.items():
            if not isinstance(header[name], kind):
                raise ValueError(f"{name} is a {type(header[name]).__name__}")
        if header["step"] < 0 or "generator" not in tensors:
            raise ValueError("incomplete")
        return tensors, header
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{Path(path)}: not a readable checkpoint ({error}); delete it to start afresh") from None
