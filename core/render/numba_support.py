"""What every numba kernel needs around it: a guarded import, a number of threads, one lock, a cache that can be written."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import packages
from ..files import private_cache_folder
from ..progress import pulse

log = logging.getLogger(__name__)

#: Held while a kernel runs: numba's portable threading layer aborts the process when two threads enter it at once.
LOCK = threading.RLock()


@functools.cache
def load(module: str) -> ModuleType | str:
    """A module, or a package, of kernels by its full name, or the reason why it cannot be imported, in a few words."""
    if reason := packages.problem("numba"):
        if reason != "is not installed":
            log.warning("numba %s, slower code takes its place", reason)
        return f"numba {reason}"
    settings = _settings()
    _pulse_between_passes()
    before = settings.CACHE_DIR
    # Compiled code keeps its package's name, and one copy on disk may be imported under several (a host's custom node and the
    # command line): each name has a cache of its own. Numba watches the file of a kernel only, not those of the kernels that it
    # calls: so has each state of a package's files.
    name = hashlib.sha256(module.encode())
    folder = cache_folder()
    try:
        spec = importlib.util.find_spec(module)
        for place in (spec and spec.submodule_search_locations) or ():
            for file in sorted(Path(place).glob("*.py")):
                name.update(hashlib.sha256(file.read_bytes()).digest())
        settings.CACHE_DIR = "" if folder is None else str(folder / name.hexdigest()[:8])
        kernels = importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # numba refuses numpy versions newer than itself only here
        log.warning("numba cannot be used, slower code takes its place: %s", error)
        return f"numba cannot be used ({' '.join(str(error).split())[:120] or type(error).__name__})"
    finally:
        settings.CACHE_DIR = before
    for kernel in vars(kernels).values():
        if (cache := getattr(kernel, "_cache", None)) is not None and hasattr(cache, "load_overload"):
            cache.load_overload = _forgiving(cache)
    return kernels


@functools.cache
def cache_folder() -> Path | None:
    """Where compiled kernels are kept: NUMBA_CACHE_DIR, else the user's cache; None, and compiled anew each time, without one.

    Numba keeps pickles: nobody else may write there.
    """
    named = _settings().CACHE_DIR
    return Path(named) if named else private_cache_folder("numba")


@functools.cache
def _pulse_between_passes() -> None:
    """Compiling a kernel takes seconds to a minute: it can be interrupted before each of the compiler's passes."""
    event = importlib.import_module("numba.core.event")

    class Pulse(event.Listener):
        def on_start(self, event: Any) -> None:
            pulse()

        def on_end(self, event: Any) -> None: ...

    event.register("numba:run_pass", Pulse())


def _settings() -> Any:
    """numba's settings, whose names it makes when it is imported."""
    import numba

    return numba.config


def _forgiving(cache: Any) -> Any:
    """A kernel's cache that reads what is damaged, as a power cut leaves it, as empty."""
    read = cache.load_overload

    def load_overload(signature: Any, target: Any) -> Any:
        try:
            return read(signature, target)
        except Exception as error:  # a damaged pickle may raise any
            log.debug("%s: damaged, compiled anew (%s)", cache.cache_path, error)
            cache.flush()
            return None

    return load_overload


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
