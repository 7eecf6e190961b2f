"""Modules of version 0.1 by their former names, so that scripts which import them go on working, with a warning."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

#: Former module of this package, and where its names are now.
MOVED = {
    "anchors": ("scene.anchors",),
    "background": ("io.background",),
    "demo": ("runs.demo",),
    "edit": ("scene.edit",),
    "export": ("io.export",),
    "formats": ("io",),
    "models": ("priors.models",),
    "object3d": ("scene.object3d", "io.objects"),
    "sample": ("runs.sample",),
    "sequence": ("io.sequence", "scene.sequence"),
    "surface": ("scene.surface",),
    "trajectory": ("scene.trajectory",),
    "views": ("scene.views",),
}
#: Modules that are still there, and where names that they had are now.
PARTLY_MOVED = {"mesh": ("io.meshes",), "video": ("io.video", "io.clip")}


def found(module: str, name: str) -> Any:
    """A name that a module of version 0.1 had, from where it is now.

    Raises:
        AttributeError: for a name that is in none of the places.
    """
    places = () if name.startswith("__") else (MOVED | PARTLY_MOVED)[module]  # what importers ask of any module
    for place in places:
        there = import_module(f".{place}", __package__)
        if hasattr(there, name):
            warnings.warn(f"{__package__}.{module}.{name} is now in {there.__name__}", DeprecationWarning, stacklevel=3)
            return getattr(there, name)
    raise AttributeError(f"module {__package__}.{module} has no attribute {name!r}")


class FormerModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds :data:`MOVED`, as modules that look their names up in the new places."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        return importlib.machinery.ModuleSpec(fullname, self) if parent == __package__ and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = lambda name: found(module.__name__.rpartition(".")[2], name)


def install() -> None:
    """Let former names be found, after every real module."""
    sys.meta_path.append(FormerModules())
