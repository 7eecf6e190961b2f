"""Checkpoints: a running fit's tensors and settings in one safetensors file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import InputError, atomic_path

#: What every header says, and as what.
FIELDS = {"stage": str, "key": str, "step": int, "losses": dict}


def save_checkpoint(path: str | os.PathLike[str], tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write a checkpoint in one step: a reader sees the old file or the new one, whole."""
    from safetensors.torch import save_file

    owned = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(owned, temporary, metadata={"anchor4d-checkpoint": json.dumps(header)})


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint.

    Raises:
        InputError: for a damaged or foreign file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as handle:
            header = json.loads((handle.metadata() or {})["anchor4d-checkpoint"])
            for field, kind in FIELDS.items():
                if not isinstance(header[field], kind):
                    raise ValueError(f"its {field} is {type(header[field]).__name__}")
            return {key: handle.get_tensor(key) for key in handle.keys()}, header
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{Path(path)}: not a readable checkpoint ({error}); delete it to start afresh") from None
