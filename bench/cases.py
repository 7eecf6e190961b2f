"""The benchmark: every case of a folder through a method, scored from sides that its video never shows.

    python -m anchor4d bench --cases DIR [--preset standard] [--only NAME ...] [--video-alone] [--out DIR]

A case is a folder with ``case.json``, ``front/NNN.png``, ``mesh.glb`` and ``views/<azimuth>/NNN.png``. The method sees the
video and the mesh; the true camera in ``case.json`` only measures what alignment found. A finished case is skipped, an
interrupted one resumes. With ``--video-alone`` the method sees no mesh; one that needs an object inflates the first frame.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from html import escape
from pathlib import Path
from typing import Any, Protocol

from .. import __version__
from ..core.files import InputError, atomic_path
from ..core.generate.chain import INFLATE, Links, complete
from ..core.identity import canonical, fingerprint
from ..core.io import write_frames
from ..core.io.clip import pick_frames
from ..core.methods.registry import METHODS
from ..core.metrics import read_case, score_case
from ..core.progress import Progress
from ..core.runs.compare import PER_FRAME, TRUTH, baselines, cut_alike, scores_of
from ..core.runs.demo import comparison_sheet, read_pictures
from ..core.runs.folder import PAGE, REPORT, SCENE
from ..core.runs.page import address, figure, loss_curves, verdict_line, write_page, write_panels
from ..core.runs.page import table as html_table
from ..core.runs.report import read_json, write_json
from ..core.runs.session import Settings, run_in_folder
from ..core.scene.scene import Scene4D
from ..core.scene.views import render_frames, scene_cameras

SCORES, FILM = "scores.json", "unseen.webm"
#: What the page's table says.
SAYS = (
    "<p>PSNR in dB, frames 1 to the last, mean over unseen views. Frozen: the truth's first frame held still. Per frame: the "
    "outline of every frame of the video inflated by itself. Motion: share of the true change that is explained.</p>"
)
#: Columns of the table: heading, key, format.
COLUMNS = (
    ("front", "front_psnr", "{:.2f}"),
    ("unseen", "psnr", "{:.2f}"),
    ("frozen", "frozen", "{:.2f}"),
    ("gain", "gain", "{:+.2f}"),
    ("per frame", "per_frame", "{:.2f}"),
    ("motion", "motion", "{:.3f}"),
    ("ssim", "ssim", "{:.3f}"),
    ("iou", "iou", "{:.3f}"),
    ("size %", "size_error", "{:+.2f}"),
    ("distance %", "distance_error", "{:+.2f}"),
    ("align s", "align_seconds", "{:.1f}"),
    ("total s", "seconds", "{:.0f}"),
    ("MB", "memory_mb", "{:.0f}"),
)


class Output(Protocol):
    """Where progress goes: the command line's console."""

    def line(self, text: str) -> None: ...

    def watch(self, out: Path, label: str = "") -> Progress: ...

    def counting(self, stage: str) -> Callable[[int, int], None]: ...


def run_cases(
    cases: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: Settings,
    *,
    console: Output,
    only: Sequence[str] | None = None,
    alone: bool = False,
) -> str:
    """Fit and score each case in ``out/<case>``; returns the table, also left as ``results.md`` and ``results.json``.

    Args:
        alone: the cases' meshes are left aside.

    Raises:
        InputError: where there are no cases, or not those asked for.
    """
    folders = {path.parent.name: path.parent for path in sorted(Path(cases).glob("*/case.json"))}
    if not folders:
        raise InputError(f"{cases}: no cases, a case is a folder with case.json, front, views and mesh.glb")
    missing = [name for name in only or () if name not in folders]
    if missing:
        raise InputError(f"{cases}: no case {missing[0]!r}, choose of {', '.join(folders)}")
    settings = settings.resolved()
    rows, text = [], ""
    for name in only or folders:
        rows.append(run_case(folders[name], Path(out) / name, settings, console, alone))
        text = table(rows)
        results = {"program": __version__, "settings": asdict(settings), "cases": rows, "mean": mean_row(rows)}
        write_json(Path(out) / "results.json", results)
        with atomic_path(Path(out) / "results.md") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    write_page(Path(out) / PAGE, f"Benchmark: {settings.method} {settings.preset}", _page(Path(out), rows, settings))
    return text


def _page(out: Path, rows: Sequence[dict[str, Any]], settings: Settings) -> list[str]:
    """The page's parts: the table, a film and the verdict of every case, and its terms."""
    shown = [*rows, mean_row(rows)] if len(rows) > 1 else rows
    cells = [[r["case"], *("" if r.get(key) is None else text.format(r[key]) for _, key, text in COLUMNS)] for r in shown]
    parts = [f"<h1>Benchmark: {settings.method} {settings.preset}, seed {settings.seed}</h1>", SAYS]
    parts.append(html_table(["case", *(heading for heading, _, _ in COLUMNS)], cells))
    for row in rows:
        folder = out / row["case"]
        parts.append(f"<h2>{escape(row['case'])}</h2>{verdict_line(row.get('verdict'))}")
        if (folder / FILM).is_file():
            parts.append(figure(address(folder / FILM), f"from {row['side']} degrees, which the video never shows"))
        terms = loss_curves({"": read_json(folder / REPORT).get("losses", {})})
        parts += ["<details><summary>terms</summary>", *terms, "</details>"]
    return parts


def run_case(case: Path, out: Path, settings: Settings, console: Output, alone: bool = False) -> dict[str, Any]:
    """One case's row of the table; its scene, renders, ``scores.json`` and ``sheet.png`` are left in ``out``."""
    described = read_case(case)
    name, azimuths = described["name"], [str(azimuth) for azimuth in described["test_azimuths"]]
    if alone:
        settings = replace(settings, yaw=0.0).of_guessed_depth()
    config = settings.plain()
    models = {role: prior.identity for role, prior in settings.models().items()}
    key = fingerprint(__version__, settings, config, models, *(["video alone"] if alone else []))
    done = read_json(out / SCORES)
    if done.get("key") == key:
        console.line(f"{name}: finished before")
        return done["row"]
    item: Path | None = case / "mesh.glb"
    if alone:
        needs = METHODS.named(settings.method).needs_object
        item = complete(out, video=case / "front", links=Links(object=INFLATE), make_object=needs).object
    run_in_folder(
        case / "front",
        item,
        out,
        settings,
        fps=described.get("fps"),
        resume=_resumable(out, settings, config),
        progress=console.watch(out, f"{name}: "),
    )
    scene = Scene4D.load(out / SCENE)
    views = ["0", *azimuths]
    # The scene file is on the CPU; a GPU's renderer is chosen anew there.
    cameras = scene_cameras(scene, [float(view) for view in views])
    rendered = render_frames(scene, cameras, progress=console.counting(f"{name}: render"))
    ours = dict(zip(views, rendered))
    for view, pictures in ours.items():
        write_frames(out / "renders" / view, pictures)
    truth = {view: read_pictures(case / "front" if view == "0" else case / "views" / view) for view in views}
    kept = pick_frames(len(truth["0"]), settings.frames)
    scores = score_case(case, out / "renders", kept)
    truth = {view: pictures[kept] for view, pictures in truth.items()}
    with atomic_path(out / "sheet.png") as temporary:
        comparison_sheet(truth, ours).save(temporary)
    others = baselines(truth, truth["0"], scene, views)
    side = azimuths[len(azimuths) // 2]
    panels = {TRUTH: truth[side], "result": ours[side]} | {kind: pictures[side] for kind, pictures in others.items()}
    write_panels(out / FILM, cut_alike(panels), scene.fps)
    report = json.loads((out / REPORT).read_text(encoding="utf-8"))
    row = _row(name, scores, report, described.get("camera")) | {"side": side, "verdict": report.get("verdict")}
    if PER_FRAME in others:
        row["per_frame"] = scores_of(others[PER_FRAME], truth)["psnr"]
    write_json(out / SCORES, {"key": key, "row": row, "views": scores})
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows and their mean as a Markdown table."""
    shown = [*rows, mean_row(rows)] if len(rows) > 1 else rows
    cells = [["case", *(heading for heading, _, _ in COLUMNS)]]
    for row in shown:
        cells.append([row["case"], *("" if row.get(key) is None else text.format(row[key]) for _, key, text in COLUMNS)])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    cells.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    for line in cells:
        line[:] = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def mean_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over cases; of the alignment's errors, the means of their sizes, and of memory the peak."""
    mean: dict[str, Any] = {"case": "mean"}
    for _, key, _ in COLUMNS:
        values = [row[key] for row in rows if row.get(key) is not None]
        if key.endswith("_error"):
            values = [abs(value) for value in values]
        if values:
            mean[key] = max(values) if key == "memory_mb" else sum(values) / len(values)
    return mean


def _row(
    name: str, scores: dict[str, dict[str, float]], report: dict[str, Any], truth: dict[str, float] | None
) -> dict[str, Any]:
    unseen = scores["mean of test views"]
    row: dict[str, Any] = {"case": name, "front_psnr": scores["0"]["psnr"], **unseen, "gain": unseen["psnr"] - unseen["frozen"]}
    if truth:
        camera = report["camera"]
        size = math.tan(math.radians(camera["fovy"]) / 2) * camera["distance"]
        true_size = math.tan(math.radians(truth["fovy_degrees"]) / 2) * truth["distance"]
        row["size_error"] = 100 * (size / true_size - 1)
        row["distance_error"] = 100 * (camera["distance"] / truth["distance"] - 1)
    if not report["resumed"]:  # else its times are those of the last part only
        row |= {"align_seconds": report["alignment"]["seconds"], "seconds": report["seconds"]["total"]}
    return row | {"memory_mb": report["memory_peak_mb"]["host"]}


def _resumable(out: Path, settings: Settings, config: Any) -> bool:
    """Whether ``out`` holds checkpoints or a scene of the same settings; those of other settings are begun anew."""
    for path in (out / "checkpoints" / "run.json", out / REPORT):
        if path.is_file():
            there = read_json(path)
            ours = json.loads(json.dumps([asdict(settings), canonical(config)]))
            return [there.get("settings"), there.get("plan")] == ours
    return False
