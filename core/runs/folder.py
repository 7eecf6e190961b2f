"""A run's folder: what it leaves, its checkpoints, and when it is finished."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..files import InputError, only_process, remove_leftovers
from ..io import write_mp4
from ..scene.scene import Scene4D
from .report import read_json, write_json

#: What a run leaves in its folder.
SCENE, REPORT, FILM, PAGE, CHECKPOINTS = "scene.safetensors", "report.json", "preview.mp4", "report.html", "checkpoints"
#: Among the checkpoints: the scene that the run started with.
START = "start.safetensors"


class Finished(Protocol):
    """A finished run: a scene and its report."""

    @property
    def scene(self) -> Scene4D: ...

    @property
    def report(self) -> dict[str, Any]: ...


Result = TypeVar("Result", bound=Finished)


def into_folder(
    out: Path,
    key: str,
    label: dict[str, Any],
    make: Callable[[Path], Result],
    film: Callable[[Result], Any],
    *,
    page: Callable[[Path, Result], None] | None = None,
    resume: bool = False,
    started: float | None = None,
    start: Path | None = None,
) -> Result | None:
    """A run into a folder, or from its checkpoints there; None where ``resume`` finds it finished.

    Args:
        key: of the inputs and settings.
        label: what describes them.
        make: the run, given the folder of its checkpoints.
        film: its preview (T, H, W, 3) uint8.
        page: writes the page of a run whose report is whole.
        started: when reading the inputs began, as of ``time.perf_counter``.
        start: a scene that the run starts with; kept with the checkpoints, since it may be the one that the run replaces.
    """
    checkpoints, path = out / CHECKPOINTS, out / CHECKPOINTS / "run.json"
    with only_process(out):
        for name in (SCENE, REPORT, FILM, PAGE):
            remove_leftovers(out / name)
        if resume and _finished(out, key):
            shutil.rmtree(checkpoints, ignore_errors=True)  # what a run left that was killed while it cleaned up
            return None
        if resume and path.is_file() and read_json(path).get("key") != key:
            raise InputError(f"{checkpoints}: belongs to a run of other inputs or settings; give the same or drop --resume")
        resumed = resume and path.is_file()
        if not resumed:
            shutil.rmtree(checkpoints, ignore_errors=True)
        checkpoints.mkdir(parents=True, exist_ok=True)
        if start is not None and not resumed:
            shutil.copyfile(start, checkpoints / START)
        write_json(path, {"key": key, **label})
        read = 0.0 if started is None else time.perf_counter() - started
        result = make(checkpoints)
        started = time.perf_counter()
        result.scene.save(out / SCENE)
        write_mp4(out / FILM, film(result), result.scene.fps)
        seconds = {"read": round(read, 3)} | result.report["seconds"] | {"write": round(time.perf_counter() - started, 3)}
        result.report.update(label, key=key, resumed=resumed, seconds=seconds | {"total": round(sum(seconds.values()), 3)})
        if page is not None:
            page(out / PAGE, result)
        write_json(out / REPORT, result.report)
        shutil.rmtree(checkpoints)
    return result


def started_with(checkpoints: Path) -> Scene4D | None:
    """The scene that a run with these checkpoints started with."""
    path = checkpoints / START
    return Scene4D.load(path) if path.is_file() else None


def _finished(out: Path, key: str) -> bool:
    return (out / SCENE).is_file() and (out / REPORT).is_file() and read_json(out / REPORT).get("key") == key
