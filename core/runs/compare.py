"""Runs side by side: films in step from the driving side and from sides it never shows, numbers, curves, and two baselines.

The baselines need no run: *frozen* is the truth's first frame held still (the first run's without a truth); *per frame* is the
outline of every frame of the driving video inflated by itself, which knows nothing of the frames before and after.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cameras import Cameras
from ..files import InputError
from ..generate.inflate import inflate
from ..metrics import mean_scores, on_white, read_case, score
from ..scene.object3d import render_object
from ..scene.scene import Scene4D
from ..scene.views import render_frames, scene_cameras
from .demo import common_window, read_pictures
from .folder import REPORT, SCENE
from .page import figure, film_of, loss_curves, table, verdict_line, write_page
from .report import read_json

#: Views of runs without a case.
SIDES = ("0", "90", "180", "270")
#: Names of the panels that are no runs, and pixels that a panel is high.
TRUTH, FROZEN, PER_FRAME, HEIGHT = "truth", "frozen", "per frame", 168
#: Columns of the table: heading, key in the scores of the unseen views, format.
COLUMNS = (
    ("unseen, dB", "psnr", "{:.2f}"),
    ("gain", "gain", "{:+.2f}"),
    ("motion", "motion", "{:.3f}"),
    ("ssim", "ssim", "{:.3f}"),
    ("iou", "iou", "{:.3f}"),
)


@dataclass(frozen=True)
class Entry:
    """A run to compare: its name, its report and its pictures by view, each (T, H, W, 4) straight."""

    name: str
    report: Mapping[str, Any]
    views: Mapping[str, Tensor]


def compare(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    case: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a page of several runs of one clip.

    Args:
        runs: their folders, or scene files.
        case: a benchmark case: its true views are shown and measured.
        progress: called with runs drawn and their number; it may raise to interrupt.

    Raises:
        InputError: for a folder without a run, or a case that does not fit.
    """
    azimuths = SIDES if case is None else ("0", *map(str, read_case(case)["test_azimuths"]))
    truth = {} if case is None else truth_of(Path(case))
    entries, names = [], _names([Path(run) for run in runs])
    scene = None
    for done, (name, run) in enumerate(zip(names, map(Path, runs))):
        if progress is not None:
            progress(done, len(names))
        path = run / SCENE if run.is_dir() else run
        if not path.is_file():
            raise InputError(f"{run}: no {SCENE} here, give the folder of a finished run")
        scene = Scene4D.load(path)
        size = None if not truth else max(truth["0"].shape[1:3])
        drawn = render_frames(scene, scene_cameras(scene, [float(a) for a in azimuths], size=size))
        entries.append(Entry(name, read_json(path.with_name(REPORT)), dict(zip(azimuths, drawn))))
    assert scene is not None
    driving = truth.get("0")
    if driving is None and entries[0].views:
        source = entries[0].report.get("video", {}).get("source", "")
        driving = read_pictures(source) if source and Path(source).exists() else None
    others = baselines(truth or {view: entries[0].views[view] for view in azimuths}, driving, scene, azimuths)
    title = f"{len(entries)} runs side by side" + (f": {Path(case).name}" if case is not None else "")
    write_page(out, title, comparison(title, entries, truth, others, scene.fps))
    return Path(out)


def truth_of(case: Path) -> dict[str, Tensor]:
    """A case's true pictures by view."""
    azimuths = [str(a) for a in read_case(case)["test_azimuths"]]
    return {"0": read_pictures(case / "front")} | {a: read_pictures(case / "views" / a) for a in azimuths}


def baselines(
    views: Mapping[str, Tensor], driving: Tensor | None, scene: Scene4D, azimuths: Sequence[str]
) -> dict[str, dict[str, Tensor]]:
    """The two baselines by view: *frozen* from the first frames of ``views``, *per frame* from the driving video's pictures.

    Args:
        driving: (T, H, W, 4) in the driving video's framing; without it, or without a mask in it, there is no *per frame*.
        scene: whose aligned camera is taken.
    """
    found = {FROZEN: {view: pictures[:1].expand_as(pictures) for view, pictures in views.items()}}
    if driving is not None and scene.front is not None and bool((driving[..., 3].amin((1, 2)) < 0.5).all()):
        size = max(next(iter(views.values())).shape[1:3])
        cameras = scene_cameras(scene, [float(a) for a in azimuths], size=size)
        front = scene_cameras(scene, 0.0, size=max(driving.shape[1:3]))
        drawn = [per_frame(picture, front, cameras) for picture in driving]
        found[PER_FRAME] = {a: torch.stack([frame[i] for frame in drawn]) for i, a in enumerate(azimuths)}
    return found


def per_frame(picture: Tensor, front: Cameras, cameras: Cameras) -> Tensor:  # (H, W, 4), (1,), (C,) -> (C, h, w, 4)
    """One frame of the driving video as an object of its own, its outline inflated, seen from every camera.

    Args:
        front: the camera that the frame was seen by, looking at the origin.
    """
    pose, K = front.world_to_camera[0], front.K[0]
    distance = float(pose[:3, 3].norm())
    rows, columns = ((picture[..., 3] > 0.5).any(dim).nonzero().flatten() for dim in (1, 0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    # The mesh is 1 along the outline's longer side and looks along +Z: it is scaled, turned to the camera, moved in its plane.
    unit = distance / float(K[0, 0])
    side = max(bottom - top, right - left) * unit
    mesh = inflate(picture, distance=distance / side, name="frame")
    middle = torch.tensor([(left + right) / 2 - float(K[0, 2]), (top + bottom) / 2 - float(K[1, 2])]) * unit
    turn = pose[:3, :3].mT @ torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    matrix = torch.eye(4)
    matrix[:3, :3], matrix[:3, 3] = side * turn, turn @ torch.stack([middle[0], -middle[1], torch.zeros(())])
    drawn = render_object(mesh.transformed(matrix), cameras)
    alpha = drawn.alpha[..., None]
    return torch.cat([(drawn.color / alpha.clamp_min(1e-6)).clamp(0, 1), alpha], -1)


def scores_of(views: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, float]:
    """The metrics of :func:`~..metrics.score`, and the gain over standing still, mean over the unseen views."""
    rows = [score(on_white(truth[view]), on_white(views[view])) for view in truth if view != "0"]
    mean = mean_scores(rows)
    return mean | {"gain": mean["psnr"] - mean["frozen"]}


def comparison(
    title: str, entries: Sequence[Entry], truth: Mapping[str, Tensor], others: Mapping[str, Mapping[str, Tensor]], fps: float
) -> list[str]:
    """The page's parts."""
    views = list(entries[0].views)
    films = []
    for view in views:
        panels = {TRUTH: truth[view]} if view in truth else {}
        panels |= {entry.name: entry.views[view] for entry in entries}
        panels |= {name: pictures[view] for name, pictures in others.items() if view in pictures}
        side = "from the driving video's side" if view == "0" else f"from {view} degrees, which the video never shows"
        films.append(figure(film_of(cut_alike(panels), fps, HEIGHT), side))
    losses = {entry.name: entry.report.get("losses", {}) for entry in entries}
    verdicts = [
        f"<p><b>{escape(entry.name)}</b></p>{verdict_line(entry.report['verdict'])}"
        for entry in entries
        if entry.report.get("verdict")
    ]
    return [
        f"<h1>{escape(title)}</h1>",
        '<div class="beside">',
        *films,
        "</div><h2>Numbers</h2>",
        numbers(entries, truth, others),
        *verdicts,
        "<h2>Terms</h2>",
        *loss_curves(losses),
    ]


def cut_alike(panels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Panels of one size cut to what is ever visible in any; others as they are."""
    if len({panel.shape[1:3] for panel in panels.values()}) > 1:
        return dict(panels)
    window = common_window([*panels.values()])
    return {name: panel[:, *window] for name, panel in panels.items()}


def numbers(entries: Sequence[Entry], truth: Mapping[str, Tensor], others: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Scores of runs and baselines where there is a truth, and what each run took."""
    heads = ["", *(COLUMNS[i][0] for i in range(len(COLUMNS)) if truth), "total", "memory", "method", "preset", "seed"]
    rows = []
    for entry in entries:
        r = entry.report
        row = [entry.name, *_scored(entry.views, truth)]
        row += (
            [f"{r['seconds']['total']:.0f} s", f"{max(r['memory_peak_mb'].values()):,.0f} MB"] if "seconds" in r else ["", ""]
        )
        rows.append([*row, *(str(r.get(key, "")) for key in ("method", "preset", "seed"))])
    for name, views in others.items():
        rows.append([name, *_scored(views, truth), *[""] * 5])
    return table(heads, rows)


def _scored(views: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> list[str]:
    if not truth:
        return []
    if any(view not in views or views[view].shape != true.shape for view, true in truth.items()):
        return [""] * len(COLUMNS)
    scores = scores_of(views, truth)
    return [text.format(scores[key]) for _, key, text in COLUMNS]


def _names(runs: Sequence[Path]) -> list[str]:
    """Short names: of the folders, with as many folders above as it takes to tell them apart."""
    parts = [run.absolute().parts for run in runs]
    for count in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {run.name}" for number, run in enumerate(runs, 1)]
