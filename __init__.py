"""Anchor4D: moving objects made of Gaussians, as a ComfyUI node pack, a library and a command line.

Imports nothing heavy and works without a host: the nodes load only when ComfyUI asks for them.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.deformation import FIELDS as FIELDS
    from .core.deformation import DeformationField as DeformationField
    from .core.deformation import register_field as register_field
    from .core.gaussians import Gaussians as Gaussians
    from .core.io.export import FORMATS as FORMATS
    from .core.io.objects import load_object as load_object
    from .core.io.sequence import open_scene as open_scene
    from .core.io.video import load_video as load_video
    from .core.methods.registry import METHODS as METHODS
    from .core.methods.registry import method as method
    from .core.metrics.base import METRICS as METRICS
    from .core.objectives.base import OBJECTIVES as OBJECTIVES
    from .core.objectives.base import FitStep as FitStep
    from .core.objectives.base import Objective as Objective
    from .core.priors.load import load_prior as load_prior
    from .core.runs.measure import measure_files as measure_files
    from .core.runs.public import export as export
    from .core.runs.public import fit as fit
    from .core.runs.public import render as render
    from .core.runs.x4d_set import X4D as X4D
    from .core.scene.scene import Scene4D as Scene4D

__version__ = "0.1.0"

WEB_DIRECTORY = "./web"

# OpenMP threads that wait by spinning keep the cores from the threads they wait for: on a busy machine a fit then takes ten
# times as long. OpenMP reads this when PyTorch loads it, so in a host, where PyTorch is there already, nothing changes.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


#: The public surface: what each name is imported from when it is first asked for.
_PUBLIC = {
    "fit": "core.runs.public",
    "render": "core.runs.public",
    "export": "core.runs.public",
    "load_video": "core.io.video",
    "load_object": "core.io.objects",
    "open_scene": "core.io.sequence",
    "load_prior": "core.priors.load",
    "Scene4D": "core.scene.scene",
    "Gaussians": "core.gaussians",
    "Objective": "core.objectives.base",
    "FitStep": "core.objectives.base",
    "DeformationField": "core.deformation",
    "register_field": "core.deformation",
    "method": "core.methods.registry",
    "METHODS": "core.methods.registry",
    "OBJECTIVES": "core.objectives.base",
    "FIELDS": "core.deformation",
    "FORMATS": "core.io.export",
    "METRICS": "core.metrics.base",
    "measure_files": "core.runs.measure",
    "X4D": "core.runs.x4d_set",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


async def comfy_entrypoint() -> Any:
    """ComfyUI's V3 entry point."""
    from .nodes import Anchor4DExtension

    return Anchor4DExtension()
