"""Where a path that is typed into a node may lead. Knows nothing of the host, so that it is tested without one."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

#: Names further folders that typed paths may lead into where others share the host, as PATH lists its own.
VARIABLE = "ANCHOR4D_ALLOWED_PATHS"


def is_shared(listen: str) -> bool:
    """Whether a host that listens at these addresses, separated by commas, can be reached from other machines."""
    return not all(_is_loopback(address.strip()) for address in (listen or "127.0.0.1").split(","))


def _is_loopback(address: str) -> bool:
    try:
        return address == "localhost" or ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:  # the name of a machine
        return False


def named_folders() -> list[Path]:
    """The folders that :data:`VARIABLE` names."""
    return [Path(part).expanduser() for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part.strip()]


def is_within(path: Path, folders: Iterable[Path]) -> bool:
    """Whether a path, links followed, lies in one of the folders or is one."""
    real = path.resolve()
    return any(real.is_relative_to(folder.resolve()) for folder in folders)
