"""Weights of networks that metrics ask."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from ..files import InputError
from ..priors.models import find, missing

Network = TypeVar("Network", bound=nn.Module)


def located(name: str) -> Path:
    """Where a model lies.

    Raises:
        InputError: where it is not on this machine, with what gets it.
    """
    path = find(name)
    if path is None:
        raise missing(name)
    return path


def loaded(network: Network, state: dict[str, Tensor], path: Path, ignored: tuple[str, ...] = ()) -> Network:
    """A network with a file's weights.

    Args:
        ignored: beginnings of keys that the network has no use for.

    Raises:
        InputError: for weights that are missing, unknown or of another shape.
    """
    wanted = {key: tuple(v.shape) for key, v in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    found = {k: tuple(v.shape) for k, v in state.items() if not k.startswith(ignored) and not k.endswith("num_batches_tracked")}
    if wrong := sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k)):
        raise InputError(
            f"{path}: not the weights of {type(network).__name__} ({len(wrong)} tensors differ, the first is {wrong[0]}: "
            f"{found.get(wrong[0])}, expected {wanted.get(wrong[0])}); get it again"
        )
    network.load_state_dict({key: state[key] for key in wanted}, strict=False)
    return network
