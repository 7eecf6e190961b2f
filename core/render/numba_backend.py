"""The rasteriser in numba: multi-threaded on the CPU, float32."""

from __future__ import annotations

import torch


def available() -> bool:
    return False


def why_not(device: torch.device) -> str:
    return "numba is not installed"


def draw(*args, **kwargs):
    raise NotImplementedError
