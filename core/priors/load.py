"""Every prior there is, behind one function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .. import packages
from ..files import InputError
from .base import PRIORS, Prior
from .checkpoints import Checkpoint, Precision, precision_dtypes, readable

TINY = Path(__file__).parent / "tiny"
#: Without guidance, at half the cost: more of it saturates colours and repairs no better (docs/benchmarks.md).
TINY_GUIDANCE = 1.0


def load_prior(
    source: str | Path,
    *,
    kind: str = "auto",
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    small_encoder: str | Path | None = None,
) -> Prior:
    """A prior from disk; nothing is ever fetched.

    Args:
        source: "tiny" (the one that comes with the pack), a checkpoint folder, or a name or Hub id that ``models list`` knows.
        kind: of :data:`~.base.PRIORS`; "auto" finds out from the folder.
        precision: of the network; the VAE's follows, see :func:`precision_dtypes`.
        small_encoder: folder (or name) of an AutoencoderTiny (TAESD) that encodes in the VAE's stead where gradients are taken.

    Raises:
        InputError: for a source that is not here (with the command that gets it), or is not what it should be; for packages
            that are not installed.
    """
    if lacking := packages.problems("diffusers", "transformers", "accelerate"):
        raise InputError(f"prior {source}: {lacking}")
    checkpoint = Checkpoint(_locate(source))
    if kind != "auto":
        adapter = PRIORS.named(kind)
    else:
        fitting = [adapter for adapter in PRIORS.values() if adapter.matches(checkpoint)]
        adapter = max(fitting, key=lambda adapter: adapter.precedence, default=None)
    if adapter is None:
        raise InputError(
            f"{checkpoint.folder}: not a kind of prior that is known here ({', '.join(PRIORS)}); {checkpoint.found()}"
        )
    with readable(checkpoint.folder, "a prior of its kind"):
        prior = adapter.load(checkpoint, device, precision).arrange()
    if checkpoint.folder == TINY:
        prior.guidance = TINY_GUIDANCE
    prior.identity = f"{checkpoint.identity} {precision_name(prior)}"
    if small_encoder is not None:
        prior.small_encoder = _small_encoder(small_encoder, prior, device, precision)
        prior.identity += f", encoder {Checkpoint(_locate(small_encoder)).identity}"
    return prior


def precision_name(prior: Prior) -> str:
    """float32, bfloat16 or float16, of the prior's first network."""
    return str(next(next(iter(prior.modules.values())).parameters()).dtype).removeprefix("torch.")


def _locate(source: str | Path) -> Path:
    if source == "tiny":
        return TINY
    if Path(source).exists():
        return Path(source)
    from .models import find, missing

    found = find(str(source))
    if found is None:
        raise missing(str(source))
    return found


def _small_encoder(source: str | Path, prior: Prior, device: str | torch.device, precision: Precision) -> torch.nn.Module:
    from diffusers import AutoencoderTiny

    checkpoint = Checkpoint(_locate(source))
    encoder = checkpoint.load(AutoencoderTiny, "", dtype=precision_dtypes(precision, device)[1], device=device)
    config: Any = encoder.config
    channels, factor = int(config.latent_channels), 2 ** (len(config.encoder_block_out_channels) - 1)
    wanted = (prior.latent_shape()[1], prior.resolution[0] // prior.latent_shape()[2])
    if (channels, factor) != wanted:
        raise InputError(
            f"{checkpoint.folder}: a small encoder with {channels} channels and {factor} pixels a cell cannot stand in for "
            f"the VAE of {prior.name}, which has {wanted[0]} and {wanted[1]}"
        )
    return encoder
