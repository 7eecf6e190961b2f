"""Checkpoints: a running fit's tensors and settings in one safetensors file."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import InputError, atomic_path


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
            return {key: handle.get_tensor(key) for key in handle.keys()}, header
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{Path(path)}: not a readable checkpoint ({error}); delete it to start afresh") from None


def fingerprint(*parts: Any) -> str:
    """A short hash of settings and tensors: names the checkpoint that belongs to exactly these inputs."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            array = part.detach().cpu().contiguous()
            digest.update(f"{tuple(array.shape)}{array.dtype}".encode())
            digest.update(array.view(torch.uint8).numpy().tobytes() if array.numel() else b"")
        elif isinstance(part, dict):
            for key in sorted(part):
                digest.update(f"{key}:{fingerprint(part[key])};".encode())
        elif isinstance(part, (list, tuple)):
            digest.update("".join(fingerprint(item) for item in part).encode())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()[:20]
