"""What every numba kernel needs around it: a guarded import, a number of threads, one lock, a cache that can be written."""

from __future__ import annotations

import functools
import hashlib
import importlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

log = logging.getLogger(__name__)

#: Held while a kernel runs: numba's portable threading layer aborts the process when two threads enter it at once.
LOCK = threading.RLock()


@functools.cache
def load(module: str) -> ModuleType | str:
    """A module of kernels by its full name, or the reason why it cannot be imported, in a few words.

    Anything may be raised on the way: numba refuses numpy versions newer than itself, broken installations exit.
    """
    try:
        numba = importlib.import_module("numba")
        before = numba.config.CACHE_DIR
        # Compiled code keeps its package's name, and one copy on disk may be imported under several (a host's custom node and
        # the command line): each name has a cache of its own.
        name = hashlib.sha256(module.encode()).hexdigest()[:8]
        places = (Path(before or Path(__file__).parent / "__pycache__"), Path(tempfile.gettempdir()) / "anchor4d-numba")
        for place in places:
            numba.config.CACHE_DIR = str(place / name)
            try:
                return importlib.import_module(module)
            except RuntimeError as error:  # the folder cannot be written
                if "cache" not in str(error) or place == places[-1]:
                    raise
            finally:
                numba.config.CACHE_DIR = before
        raise AssertionError
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except BaseException as error:
        log.warning("numba cannot be used, slower code takes its place: %s", error)
        return f"numba cannot be imported ({' '.join(str(error).split())[:120] or type(error).__name__})"


def default_threads() -> int:
    """All cores up to two, else one less, so that the machine stays usable."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if cores <= 2 else cores - 1


@contextmanager
def running() -> Iterator[int]:
    """The lock, and numba's threads set to the default, around kernel calls; yields the number of threads."""
    numba = importlib.import_module("numba")
    with LOCK:
        before = numba.get_num_threads()
        threads = min(default_threads(), numba.config.NUMBA_NUM_THREADS)
        numba.set_num_threads(threads)
        try:
            yield threads
        finally:
            numba.set_num_threads(before)
