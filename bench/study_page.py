"""What a study found: its table, its drawings and its page."""

from __future__ import annotations

import base64
import io
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..core.files import atomic_path
from ..core.io import contact_sheet
from ..core.runs import page
from ..core.runs.batch import Job
from ..core.runs.report import read_json, versions, write_json
from .studies import NUMBERS, Study, Variant
from .studying import CURVES, SCORES, SIDE, TRUTH, Options, slug

#: What a study leaves in its folder.
RESULTS, TABLE, PAGE = "study.json", "study.md", "study.html"
#: Cases whose pictures the page has, moments of the clip, and pixels that they are high.
SHOWN, MOMENTS, HEIGHT = 3, 6, 96


@dataclass(frozen=True)
class Result:
    """One variant of one case.

    Args:
        state: "done", "failed" or "left out".
        note: why it has no numbers.
    """

    case: str
    variant: str
    folder: Path
    state: str
    note: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)


def results(
    study: Study, out: Path, cases: Mapping[str, Path], jobs: Sequence[Job], records: Sequence[Mapping[str, Any]]
) -> list[Result]:
    """What a batch's records and the runs' folders say of a study, a variant after the other."""
    states = {record["name"]: record for record in records}
    refused = {job.name: job.refused for job in jobs if job.refused}
    found: list[Result] = []
    for variant in study.variants:
        for case in ("exact",) if study.run is not None else cases:
            name = f"{study.name}/{case}/{slug(variant.name)}"
            if name not in states:
                continue
            done = states[name]["state"] == "done"
            note = refused.get(name) or states[name].get("error", "")
            numbers = read_json(out / name / SCORES) if done else {}
            if numbers and (processors := states[name].get("processor_seconds")) is not None:
                numbers["processors"] = processors
            state = "done" if done else "left out" if name in refused else "failed"
            found.append(Result(case, variant.name, out / name, state, note, numbers))
    return found


@dataclass(frozen=True)
class Row:
    """A variant's means over its cases, and how it compares with the first that has numbers, case by case."""

    variant: Variant
    cases: int
    means: Mapping[str, float]
    errors: Mapping[str, float]
    gain: float = math.nan
    gain_error: float = math.nan


def rows_of(study: Study, found: Sequence[Result]) -> list[Row]:
    """The table's rows, for those variants that have numbers; errors are standard errors of means."""
    by = {variant.name: {r.case: r for r in found if r.variant == variant.name and r.numbers} for variant in study.variants}
    first = next((mine for mine in by.values() if mine), {})  # of those that were run
    rows: list[Row] = []
    for variant in study.variants:
        mine = by[variant.name]
        if not mine:
            continue
        names = {name for r in mine.values() for name in r.numbers}
        values = {name: [r.numbers[name] for r in mine.values() if r.numbers.get(name) is not None] for name in names}
        values = {name: listed for name, listed in values.items() if listed}
        means = {name: float(np.mean(listed)) for name, listed in values.items()}
        errors = {name: _error(listed) for name, listed in values.items()}
        key = study.drawn[0]
        apart = [
            mine[c].numbers[key] - first[c].numbers[key]
            for c in mine
            if c in first and None not in (mine[c].numbers.get(key), first[c].numbers.get(key))
        ]
        gain = float(np.mean(apart)) if apart and mine is not first else math.nan
        rows.append(Row(variant, len(mine), means, errors, gain, _error(apart)))
    return rows


def _error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def cells_of(study: Study, rows: Sequence[Row]) -> list[list[str]]:
    """The table's header and rows; numbers that no run has are left out."""
    key, several = study.drawn[0], any(row.cases > 1 for row in rows)
    used = [name for name in study.numbers if any(name in row.means for row in rows)]
    cells = [["", *(["cases"] if several else []), *(NUMBERS[name].heading for name in used)]]
    compared = len(rows) > 1 and not study.spread
    if compared:
        cells[0].append(f"{NUMBERS[key].heading} against the first")
    for row in rows:
        line = [row.variant.name, *([str(row.cases)] if several else [])]
        line += [NUMBERS[name].form.format(row.means[name]) if name in row.means else "" for name in used]
        if compared:
            apart = "" if math.isnan(row.gain) else NUMBERS[key].form.replace("{:.", "{:+.").format(row.gain)
            error = (
                "" if not apart or math.isnan(row.gain_error) else f" ± {NUMBERS[key].form.format(row.gain_error).lstrip('+')}"
            )
            line.append(apart + error)
        cells.append(line)
    if study.spread and len(rows) > 1:
        deviations = {n: float(np.std([r.means[n] for r in rows if n in r.means], ddof=1)) for n in used}
        line = ["standard deviation", *([""] if several else [])]
        cells.append(line + [NUMBERS[n].form.format(deviations[n]).lstrip("+") for n in used])
    return cells


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Cells as an aligned Markdown table."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [list(line) for line in cells]
    lines.insert(1, ["-" * max(widths[0], 3), *("-" * max(width - 1, 2) + ":" for width in widths[1:])])
    for line in lines:
        line[:] = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def matrix(study: Study, rows: Sequence[Row], key: str) -> list[list[str]]:
    """A number by row and column, of a study of two things at once; empty for others."""
    placed = {row.variant.cell: row.means.get(key) for row in rows if row.variant.cell}
    if not placed:
        return []
    down, across = (list(dict.fromkeys(cell[i] for cell in placed if cell)) for i in (0, 1))
    cells = [[NUMBERS[key].heading, *across]]
    for name in down:
        line = [placed.get((name, other)) for other in across]
        cells.append([name, *("" if value is None else NUMBERS[key].form.format(value) for value in line)])
    return cells


def machine(options: Options, found: Sequence[Result]) -> dict[str, Any]:
    """Where and when the numbers came about."""
    report = next((read_json(r.folder / "report.json") for r in found if r.state == "done"), {})
    return {
        "program": __version__,
        "versions": versions(),
        "device": report.get("device") or platform.machine(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "options": asdict(options),
    }


def write_study(study: Study, out: Path, found: Sequence[Result], options: Options) -> str:
    """Leave ``study.json``, ``study.md``, ``study.html`` and a drawing (SVG) of each number; returns the table."""
    rows = rows_of(study, found)
    cells = cells_of(study, rows) if rows else [["no run has numbers"]]
    table, where = markdown(cells), machine(options, found)
    squares = [square for key in study.drawn if (square := matrix(study, rows, key))]
    drawings = drawings_of(study, rows) | losses_of(study, found) | curves_of(study, found)
    for name, figure in drawings.items():
        if text := page.drawing(figure):
            with atomic_path(out / f"{slug(name)}.svg") as temporary:
                temporary.write_text(text, encoding="utf-8")
    write_json(
        out / RESULTS,
        {
            "study": study.name, "question": study.question, "paper": study.paper, "limits": study.limits, **where,
            "rows": [
                {"variant": r.variant.name, "x": r.variant.x, "cases": r.cases, "means": r.means, "errors": r.errors,
                 "against the first": r.gain, "error": r.gain_error}
                for r in rows
            ],
            "runs": [asdict(r) | {"folder": r.folder.name} for r in found],
        },
    )  # fmt: skip
    notes = [f"- {r.variant}, {r.case}: {r.state}, {r.note}" for r in found if r.state != "done"]
    said = f"{where['device']}, {where['date']}, anchor4d {__version__}; {_options(options)}"
    text = [f"# {study.name}", study.question, f"Published: {study.paper}", table, *map(markdown, squares)]
    text += ["\n".join(notes)] * bool(notes) + [f"Limits: {study.limits}", said]
    with atomic_path(out / TABLE) as temporary:
        temporary.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    heads, *lines = cells
    parts = [
        f"<h1>{escape(study.question)}</h1>", f'<p class="quiet">{escape(study.name)}: {escape(said)}</p>',
        f"<p><b>Published.</b> {escape(study.paper)}</p>", page.table(heads, lines),
        *(page.table(square[0], square[1:]) for square in squares),
        "".join(f'<p class="quiet">{escape(note[2:])}</p>' for note in notes),
        '<div class="beside" style="margin-top: 1.5rem">', *drawings.values(), "</div>",
        f"<p><b>What it does not show.</b> {escape(study.limits)}</p>", *_sheets(study, found), _words(study, rows),
    ]  # fmt: skip
    page.write_page(out / PAGE, f"Study: {study.name}", parts)
    return table


def _options(options: Options) -> str:
    plain = Options()
    return ", ".join(
        f"{name} {value}"
        for name, value in asdict(options).items()
        if name == "preset" or (value != getattr(plain, name) and value not in ("", None))
    )


def drawings_of(study: Study, rows: Sequence[Row]) -> dict[str, str]:
    """Each drawn number: by x where the variants have places, else as bars."""
    made: dict[str, str] = {}
    for key in study.drawn:
        number, have = NUMBERS[key], [row for row in rows if key in row.means]
        placed = sorted((row.variant.x, row.means[key]) for row in have if row.variant.x is not None)
        title = f"{number.heading}: {number.says}"
        if len(placed) > 1:
            x, values = zip(*placed)
            made[key] = page.chart({"": values}, title, study.axis, x)
        elif have:
            heights = {r.variant.name: (r.means[key], 0.0 if math.isnan(r.errors[key]) else r.errors[key]) for r in have}
            made[key] = page.bars(heights, title, number.form)
    return made


def losses_of(study: Study, found: Sequence[Result]) -> dict[str, str]:
    """The terms of a stage by step, a line for each variant, means over the cases."""
    terms: dict[str, dict[str, list[list[float]]]] = {}
    for result in found if study.losses else ():
        losses = read_json(result.folder / "report.json").get("losses", {}).get(study.losses, {})
        for term, values in losses.items():
            terms.setdefault(term, {}).setdefault(result.variant, []).append(values)
    made: dict[str, str] = {}
    for term, lines in terms.items():
        means = {name: np.mean([v[: min(map(len, runs))] for v in runs], 0).tolist() for name, runs in lines.items()}
        made[f"loss {term}"] = page.chart(means, f"{study.losses}: {term}")
    return made


def curves_of(study: Study, found: Sequence[Result]) -> dict[str, str]:
    """What a variant measured beside its run, of the first case that has it; each from 0 to 1."""
    for result in found:
        curves = read_json(result.folder / CURVES)
        if curves:
            x = next(iter(curves.values()))[0]
            lines = {}
            for name, (_, values) in curves.items():
                low, high = min(values), max(values)
                lines[name] = [(v - low) / (high - low or 1.0) for v in values]
            return {
                "score by distance": page.chart(lines, f"score by distance, each from 0 to 1 ({result.case})", "distance", x)
            }
    return {}


def _sheets(study: Study, found: Sequence[Result]) -> list[str]:
    """Pictures of the variants from a side that the video does not show, of the first cases, cut to the object."""
    from ..core.runs.demo import common_window, read_pictures

    parts: list[str] = []
    for case in list(dict.fromkeys(r.case for r in found))[:SHOWN]:
        mine = [r for r in found if r.case == case and r.state == "done"]
        films = dict([("truth", r.folder / TRUTH) for r in mine if (r.folder / TRUTH).is_dir()][:1])
        films |= {r.variant: r.folder / SIDE for r in mine}
        drawn = {name: read_pictures(folder) for name, folder in films.items()}
        if drawn:
            sizes = {pictures.shape[1:3] for pictures in drawn.values()}
            window = common_window([*drawn.values()]) if len(sizes) == 1 else (slice(None), slice(None))
            rows = []
            for pictures in drawn.values():
                moments = np.linspace(0, len(pictures), min(MOMENTS, len(pictures)), endpoint=False).astype(int)
                rows.append([pictures[t][window] for t in moments])
            labels = [*drawn]
            buffer = io.BytesIO()
            contact_sheet(rows, labels, height=HEIGHT).save(buffer, "JPEG", quality=85)
            data = base64.b64encode(buffer.getvalue()).decode()
            links = " · ".join(
                f'<a href="{escape(f"{r.case}/{r.folder.name}/report.html")}">{escape(r.variant)}</a>'
                for r in found
                if r.case == case and (r.folder / "report.html").is_file()
            )
            parts.append(
                f"<h2>{escape(case)}: from a side that the video does not show</h2>"
                f'<img src="data:image/jpeg;base64,{data}" alt="a side that the video does not show">'
                f"<p>{links}</p>"
            )
    return parts


def _words(study: Study, rows: Sequence[Row]) -> str:
    """What the columns say."""
    used = [name for name in study.numbers if any(name in row.means for row in rows)]
    return "<h2>Columns</h2>" + page.table(["", ""], [[NUMBERS[n].heading, NUMBERS[n].says] for n in used], numbers=False)
