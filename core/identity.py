"""What names a run: a hash of its settings and of its inputs' content."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor


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
