"""The report of a run: its settings, circumstances and numbers, as JSON."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import __version__
from ..files import atomic_path
from ..fit.estimate import process_memory_mb
from ..identity import canonical
from ..methods.plan import MethodRun
from ..metrics.perceptual import perceptual_distance
from ..objectives.base import Objective
from ..scene.object3d import Object3D, SplatObject
from ..scene.scene import Scene4D


def report_of(run: MethodRun, scene: Scene4D, settings: Any, config: Any, item: Object3D | None) -> dict[str, Any]:
    """What a finished run's ``report.json`` says, but for what its folder adds.

    Args:
        settings: resolved, see :class:`.session.Settings`.
        config: the method's settings as they were asked for.
        item: the object as it was given, or what stood in for one.
    """
    terms = [*run.config.static.objectives, *run.config.motion.objectives]
    video, alignment = run.video, run.alignment
    report = {
        **made_by(settings, run, terms),
        "settings": asdict(settings),
        "config": canonical(config),
        "versions": versions(),
        "device": device_name(settings.device),
        "renderer": settings.renderer,
        "threads": torch.get_num_threads(),
        "object": None if item is None else {"name": item.name, **object_size(item), "coloured": item.has_color},
        "gaussians": len(scene.gaussians),
        "frames": scene.frames,
        "loops": scene.loop,
        "perceptual": perceptual(terms, settings.device),
        "seconds": {name: round(value, 3) for name, value in run.clock.seconds.items()},
        "memory_peak_mb": memory_peak_mb(settings.device),
        "estimate": None if run.foreseen is None else asdict(run.foreseen),
        "losses": scene.meta.get("losses", {}),
    }
    if video is not None:
        report["video"] = {
            "source": video.source,
            "frames": len(video),
            "fps": video.fps,
            "picture": [video.picture_width, video.picture_height],
            "crop": asdict(video.crop),
            "resolution": video.resolution,
            "foreground": video.masked_by,
            "warnings": list(video.warnings),
            "loops": scene.loop,
        }
    if "certainty" in scene.meta:
        report["certainty"] = scene.meta["certainty"]
    if run.signal_report:
        report["signals"] = run.signal_report
    if alignment is not None:
        curves = [*alignment.curves, *([run.distance.curve] if run.distance is not None else [])]
        report["camera"] = asdict(alignment.front) | {"yaw": alignment.yaw}
        report["alignment"] = alignment.report | {"curves": [_curve(curve) for curve in curves]}
        report["distance"] = None if run.distance is None else run.distance.report
        shown = run.anchors
        report["anchors"] = None if shown is None else {"of": repr(shown), "shown": float(shown.valid.float().mean())}
    return report


def made_by(settings: Any, run: MethodRun, terms: Iterable[Objective]) -> dict[str, Any]:
    """How a scene was made: kept in its file as well."""
    made = {
        "method": settings.method,
        "without": list(settings.without),
        "plus": list(settings.plus),
        "preset": settings.preset,
        "seed": settings.seed,
        "prior": ", ".join(sorted({prior.name for o in terms for prior in o.priors()})) or "none",
    }
    return made | ({"prompt": run.prompt, "then": list(run.then)} if run.prompt else {})


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON in one step; numbers that JSON lacks become null."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_plain(value), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def memory_peak_mb(device: str = "cpu") -> dict[str, float]:
    """The most memory that this process has held so far, megabytes, on the host and on a CUDA device."""
    places = {"host": "cpu"} | ({"cuda": device} if device.startswith("cuda") else {})
    return {name: round(process_memory_mb(torch.device(place)), 1) for name, place in places.items()}


def object_size(item: Object3D) -> dict[str, int]:
    """What a report says of an object's size."""
    if isinstance(item, SplatObject):
        return {"gaussians": len(item.gaussians)}
    return {"vertices": len(item.vertices), "faces": len(item.faces)}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def _curve(curve: Any) -> dict[str, Any]:
    return {
        "name": curve.name,
        "x_label": curve.x_label,
        "x": [round(v, 6) for v in curve.x.tolist()],
        "y": [round(v, 8) for v in curve.y.tolist()],
        "chosen": curve.chosen,
    }


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"anchor4d": __version__, "python": platform.python_version()}
    found["platform"] = platform.platform()
    for name in ("torch", "numpy", "numba", "gsplat", "diffusers", "transformers"):
        try:
            # PyTorch's own name of its version says which card's libraries it was built for.
            found[name] = torch.__version__ if name == "torch" else metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return platform.processor() or platform.machine() if device == "cpu" else device


def perceptual(terms: Iterable[Objective], device: str) -> str:
    """Which perceptual distance the objectives used on this machine."""
    networks = {o.perceptual_network() for o in terms}
    where = str(torch.empty(0, device=device).device)  # as the fit names it: cuda is cuda:0
    used = {perceptual_distance(network, where)[1] for network in networks if network is not None}
    return ", ".join(sorted(used)) or "not used by this preset"
