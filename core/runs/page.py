"""A run's page, ``report.html``: one file, offline, with a film, curves and numbers; and the same of many runs side by side.

Nothing in a page runs or is loaded: no script, pictures and films inside it, and a policy that says so to the browser.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import atomic_path
from ..io import side_by_side, write_film
from ..scene.scene import Scene4D
from ..scene.views import driving_cameras, object_cameras, render_frames

#: Pixels that a film's panels are high, and by how much a difference is enlarged until it is red.
HEIGHT, DIFFERENCE = 192, 4.0
#: What a page may hold: its own styles, pictures and films.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto; max-width: 76rem;
padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 0 .2rem } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem } .quiet { color: #666 }
video, img { max-width: 100%; border: 1px solid #ddd; border-radius: 4px; background: #fff }
table { border-collapse: collapse } td, th { padding: .15rem .9rem .15rem 0; text-align: left; vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums } tr + tr td { border-top: 1px solid #eee }
.verdict { display: inline-block; padding: .1rem .7rem; border-radius: 1rem; color: #fff; background: #777 }
.good { background: #2c7a3f } .doubtful { background: #b06f00 } .wrong { background: #b3261e }
.beside { display: flex; flex-wrap: wrap; gap: 1rem 1.6rem; align-items: flex-start } .best { font-weight: 600 }
figure { margin: 0 0 1rem } .beside figure { max-width: 100% }
.chart { width: 380px } figcaption { color: #555; font-size: .85rem }
details { margin: .3rem 0 } pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1b1b1b } .quiet, figcaption { color: #aaa }
tr + tr td { border-color: #333 } svg { filter: invert(.88) hue-rotate(180deg) } }
"""
#: Colours of curves.
_INKS = ("#1f6fb4", "#c8511b", "#2c8a4b", "#8d4bab", "#a07d00", "#c2387a", "#3a8f98", "#666666")

Curve = Sequence[float | None]


def run_page(path: str | os.PathLike[str], run: Any, backend: str = "auto", device: str = "cpu") -> None:
    """Write the page of a finished run.

    Args:
        run: a :class:`.session.Run`, its report whole.
    """
    report, scene = run.report, run.scene.to(device)
    film = film_of(run_panels(scene, run.video, run.alignment, backend), scene.fps)
    of = report.get("prompt") or "/".join(Path(str(report.get("video", {}).get("source", ""))).parts[-2:])
    title = " ".join(part for part in (report["method"], report["preset"], of) if part)
    parts = [
        f"<h1>{_text(title)}</h1>",
        verdict_line(report.get("verdict")),
        figure(film, "driving video, the result from its camera, their difference (red), the object's other sides in step"
               if run.video is not None else "the object's four sides in step"),
        *certainty_table(report.get("certainty")),
        "<h2>Terms</h2>", *loss_curves({"": report.get("losses", {})}),
        '<h2>Where the time went</h2><div class="beside">', seconds_table(report["seconds"]), facts_table(report), "</div>",
        *alignment_curves(report),
        "<h2>Settings</h2>", settings_table(report),
        "<details><summary>the method's own settings</summary><pre>", _text(_json(report.get("config"))), "</pre></details>",
    ]  # fmt: skip
    write_page(path, title, parts)


def run_panels(scene: Scene4D, video: Any, alignment: Any, backend: str = "auto") -> dict[str, Tensor]:
    """A run's film by panel, each (T, H, W, 4) or (T, H, W, 3): the video, the result, their difference, the other sides."""
    panels: dict[str, Tensor] = {}
    azimuths = {"0°": 0.0, "90°": 90.0, "180°": 180.0, "270°": 270.0}
    size = HEIGHT
    if video is not None and alignment is not None:
        video = video.resized(min(HEIGHT, video.resolution))
        size = video.resolution
        front = render_frames(scene, driving_cameras(video, alignment.front), backend=backend)[0]
        panels["driving video"] = torch.cat([video.frames, video.masks[..., None]], -1)
        panels["same camera"] = front
        panels["difference"] = difference(panels["driving video"], front)
        del azimuths["0°"]
    sides = render_frames(scene, object_cameras(scene, size, list(azimuths.values())), backend=backend)
    return panels | dict(zip(azimuths, sides))


def difference(a: Tensor, b: Tensor) -> Tensor:  # (T, H, W, 4) straight, twice -> (T, H, W, 3)
    """How far two films are apart, both on white: white = the same, red = a quarter of full scale and more."""
    count = min(len(a), len(b))
    over = [x[:count, ..., :3] * x[:count, ..., 3:] + 1 - x[:count, ..., 3:] for x in (a, b)]
    apart = (DIFFERENCE * (over[0] - over[1]).abs().mean(-1)).clamp(0, 1)
    return torch.stack([1 - 0.25 * apart, 1 - apart, 1 - apart], -1)


def film_of(panels: Mapping[str, Tensor | np.ndarray], fps: float, height: int = HEIGHT) -> str:
    """Panels in step as the address of a film that lies in the page: WebM, which every present browser plays."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.webm"
        write_panels(path, panels, fps, height)
        return address(path)


def write_panels(path: Path, panels: Mapping[str, Tensor | np.ndarray], fps: float, height: int = HEIGHT) -> None:
    """Panels in step as a film for a page."""
    write_film(path, side_by_side(panels, height=height), fps, quality=70)


def address(path: Path) -> str:
    """A .webm as an address that holds it."""
    return "data:video/webm;base64," + base64.b64encode(path.read_bytes()).decode()


def figure(film: str, caption: str) -> str:
    """A film with a caption."""
    film = f'<video src="{film}" controls loop autoplay muted playsinline></video>'
    return f"<figure>{film}<figcaption>{_text(caption)}</figcaption></figure>"


def verdict_line(verdict: Mapping[str, Any] | None) -> str:
    """The verdict and its reasons."""
    if not verdict:
        return '<p class="quiet">no verdict: there is no video and object to compare</p>'
    reasons = "; ".join(verdict["reasons"]) or "the object fits the first frame, and the result follows the clip"
    return f'<p><span class="verdict {_text(verdict["word"])}">{_text(verdict["word"])}</span> {_text(reasons)}</p>'


def loss_curves(runs: Mapping[str, Mapping[str, Mapping[str, Curve]]]) -> list[str]:
    """Charts of the terms: of one run by stage, of several by term with a line for each run."""
    terms = list(dict.fromkeys((stage, term) for losses in runs.values() for stage in losses for term in losses[stage]))
    if not terms:
        return ['<p class="quiet">none: the result was there already</p>']
    if len(runs) > 1:
        charts = [
            chart({name: run[stage][term] for name, run in runs.items() if term in run.get(stage, {})}, f"{stage}: {term}")
            for stage, term in terms
        ]
    else:
        (losses,) = runs.values()
        charts = [chart(losses[stage], stage) for stage in losses]
    return ['<div class="beside">', *charts, "</div>"]


def alignment_curves(report: Mapping[str, Any]) -> list[str]:
    """Charts of what alignment searched."""
    curves = (report.get("alignment") or {}).get("curves", [])
    charts = [chart({"": c["y"]}, c["name"], c["x_label"], c["x"], c["chosen"]) for c in curves]
    return ["<h2>Alignment</h2>", '<div class="beside">', *charts, "</div>"] if charts else []


def chart(
    lines: Mapping[str, Curve], title: str, x_label: str = "", x: Sequence[float] | None = None, chosen: float | None = None
) -> str:
    """Curves as a drawing (SVG): a logarithmic scale where values are positive and span more than ten times.

    Args:
        lines: values by name; what is not finite leaves a gap.
        x: places of the values, 0, 1, ... where None.
        chosen: a place to mark.
    """
    width, height, left, top, bottom = 380, 190, 52, 8, 30
    series = {name: np.array([np.nan if v is None else v for v in values], float) for name, values in lines.items()}
    flat = np.concatenate([*series.values(), np.empty(0)])
    flat = flat[np.isfinite(flat)]
    if not len(flat):
        return f"<figure><figcaption>{_text(title)}: no values</figcaption></figure>"
    positive = flat[flat > 0]
    logs = len(positive) > 0 and bool((flat >= 0).all()) and positive.max() > 10 * positive.min()
    floor = positive.min() if len(positive) else 1.0
    scaled: Callable[[np.ndarray], np.ndarray] = (lambda v: np.log10(np.maximum(v, floor))) if logs else (lambda v: v)
    low, high = float(scaled(flat).min()), float(scaled(flat).max())
    high = high if high > low else low + 1
    longest = max(len(values) for values in series.values())
    places = np.arange(longest) if x is None else np.asarray(x, float)
    first, last = float(places.min()), float(max(places.max(), places.min() + 1e-9))

    def across(v: float) -> float:
        return left + (v - first) / (last - first) * (width - left - 10)

    def down(v: float) -> float:
        return top + (high - v) / (high - low) * (height - top - bottom)

    drawn = []
    for mark in _ticks(low, high, logs):
        label = f"{10**mark:.3g}" if logs else f"{mark:.3g}"
        drawn.append(
            f'<line x1="{left}" x2="{width - 10}" y1="{down(mark):.1f}" y2="{down(mark):.1f}" stroke="#ddd"/>'
            f'<text x="{left - 6}" y="{down(mark) + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for place in (first, last):
        anchor = "start" if place == first else "end"
        value = place if x is not None else 10 * place
        drawn.append(f'<text x="{across(place):.1f}" y="{height - 14}" text-anchor="{anchor}">{value:.4g}</text>')
    label = _text("steps" if x is None else x_label)
    drawn.append(f'<text x="{(left + width) / 2:.0f}" y="{height - 2}" text-anchor="middle">{label}</text>')
    if chosen is not None and first <= chosen <= last:
        ends = f'x1="{across(chosen):.1f}" x2="{across(chosen):.1f}" y1="{top}" y2="{height - bottom}"'
        drawn.append(f'<line {ends} stroke="#c8511b" stroke-dasharray="4 3"/>')
    for number, values in enumerate(series.values()):
        points = [
            f"{across(float(places[i])):.1f},{down(float(scaled(values)[i])):.1f}"
            for i in range(len(values))
            if np.isfinite(values[i])
        ]
        if len(points) == 1:
            points *= 2
        ink = f'fill="none" stroke="{_INKS[number % len(_INKS)]}" stroke-width="1.6" stroke-linecap="round"'
        drawn.append(f'<polyline points="{" ".join(points)}" {ink}/>')
    keys = " ".join(
        f'<span style="color:{_INKS[number % len(_INKS)]}">&#9644;</span>&nbsp;{_text(name)}'
        for number, name in enumerate(series)
        if name
    )
    return (
        f'<figure class="chart"><figcaption><b>{_text(title)}</b> {keys}</figcaption><svg width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-size="11" fill="#444" role="img">{"".join(drawn)}</svg></figure>'
    )


def bars(values: Mapping[str, tuple[float, float]], title: str, form: str = "{:.2f}") -> str:
    """Values by name as horizontal bars (SVG), each with the length of its error to either side; what is not finite has no bar.

    They begin at 0, or where that would hide their differences, a little below the least of them, as the axis says.
    """
    finite = [v for v, _ in values.values() if np.isfinite(v)]
    if not finite:
        return f"<figure><figcaption>{_text(title)}: no values</figcaption></figure>"
    low, high = min(finite), max(finite)
    begin = 0.0 if low <= 0 or high - low > 0.35 * high else low - 0.35 * (high - low or abs(high) or 1.0)
    begin, end = min(begin, low), max(high, 0.0)
    room, line, width = max(8 + 6.4 * max(map(len, values)), 60), 18, 520
    scale = (width - room - 64) / (end - begin or 1.0)
    zero = room + (max(0.0, begin) - begin) * scale
    drawn = []
    for number, (name, (value, error)) in enumerate(values.items()):
        y = 6 + number * line
        drawn.append(f'<text x="{room - 6:.0f}" y="{y + 11}" text-anchor="end">{_text(name)}</text>')
        if not np.isfinite(value):
            continue
        at = room + (value - begin) * scale
        left, right = min(at, zero), max(at, zero)
        ink = _INKS[1] if number == 0 else _INKS[0]
        drawn.append(f'<rect x="{left:.1f}" y="{y}" width="{max(right - left, 0.5):.1f}" height="13" fill="{ink}"/>')
        if error > 0:
            ends = f'x1="{at - error * scale:.1f}" x2="{at + error * scale:.1f}" y1="{y + 6.5}" y2="{y + 6.5}"'
            drawn.append(f'<line {ends} stroke="#222" stroke-width="1.4"/>')
        drawn.append(f'<text x="{right + max(error * scale, 0) + 5:.1f}" y="{y + 11}">{_text(form.format(value))}</text>')
    height = 6 + line * len(values) + 16
    drawn.append(f'<text x="{zero:.0f}" y="{height - 4}" text-anchor="middle">{_text(form.format(max(begin, 0.0)))}</text>')
    drawn.append(f'<line x1="{zero:.0f}" x2="{zero:.0f}" y1="2" y2="{height - 15}" stroke="#bbb"/>')
    return (
        f'<figure><figcaption><b>{_text(title)}</b></figcaption><svg width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-size="11" fill="#444" role="img">{"".join(drawn)}</svg></figure>'
    )


def drawing(figure: str) -> str:
    """The drawing of a :func:`chart` or :func:`bars` as a file of its own (SVG); empty where there is none."""
    start, end = figure.find("<svg"), figure.find("</svg>")
    if start < 0:
        return ""
    fonts = 'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif"'
    title = figure[figure.find("<figcaption>") + len("<figcaption>") : figure.find("</figcaption>")]
    plain = html.unescape(re.sub(r"<[^>]*>", "", title).strip())
    box = re.search(r'width="(\d+)" height="(\d+)"', figure[start:])
    paper = "" if box is None else f'<rect width="{box[1]}" height="{box[2]}" fill="#fff"/>'
    head, _, rest = figure[start:end].partition(">")
    return f"{head.replace('<svg', f'<svg {fonts}', 1)}><title>{_text(plain)}</title>{paper}{rest}</svg>\n"


def _ticks(low: float, high: float, logs: bool) -> list[float]:
    """Three to six round values between two."""
    if logs and high - low >= 2:
        step = max(1, round((high - low) / 4))
        return [float(v) for v in range(int(np.ceil(low)), int(np.floor(high)) + 1, step)]
    if logs:
        round_ones = [d + float(np.log10(m)) for d in range(int(np.floor(low)), int(np.ceil(high)) + 1) for m in (1, 2, 5)]
        return [v for v in round_ones if low <= v <= high]
    step = 10.0 ** np.floor(np.log10((high - low) / 3))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 5)
    return [float(v) for v in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]


def certainty_table(found: Mapping[str, Any] | None) -> list[str]:
    """Where the motion is seen, known and guessed, by region."""
    if not found:
        return []
    heads = ("seen", "prior", "guess", "depth")
    rows = [(r["region"], *(f"{r[key]:.0%}" for key in heads)) for r in [{"region": "whole", **found}, *found["regions"]]]
    says = "Shares of the object and the clip. Depth: of what is seen, the part whose motion in depth the motion prior knows."
    if found.get("flat"):
        says += " The object's depth is a guess, so nothing was moved there."
    named = ["in the driving view", "seen", "known by the prior", "a guess", "depth known"]
    return ["<h2>Where the motion is a guess</h2>", f"<p>{says}</p>", table(named, rows)]


def seconds_table(seconds: Mapping[str, float]) -> str:
    """Seconds by stage."""
    rows = [(name, f"{value:.1f} s") for name, value in seconds.items()]
    return table(["stage", ""], rows)


def facts_table(report: Mapping[str, Any]) -> str:
    """What a run took and made."""
    item, camera, versions = report.get("object") or {}, report.get("camera") or {}, report.get("versions", {})
    size = ", ".join(f"{item[key]:,} {key}" for key in ("vertices", "faces", "gaussians") if key in item)
    rows = [
        ("memory, at most", ", ".join(f"{value:,.0f} MB ({name})" for name, value in report["memory_peak_mb"].items())),
        ("device, renderer", f"{report['device']}, {report['renderer']}, {report['threads']} threads"),
        ("Gaussians", f"{report['gaussians']:,}"),
        ("frames", f"{report['frames']}{', loops' if report['loops'] else ''}"),
        ("object", f"{Path(str(item['name'])).name}: {size}" if item else "none"),
        ("camera", f"{camera['fovy']:.1f}° high, {camera['distance']:.3f} away" if camera else "none"),
        ("program", ", ".join(f"{name} {versions[name]}" for name in ("anchor4d", "torch", "python") if versions.get(name))),
    ]
    warnings = (report.get("video") or {}).get("warnings", [])
    return table(["", ""], [*rows, *(("warning", text) for text in warnings)], numbers=False)


def settings_table(report: Mapping[str, Any]) -> str:
    """The settings that a run was asked for; what it left at nothing is left out."""
    rows = [(name, ", ".join(map(str, v)) if isinstance(v, (list, tuple)) else v) for name, v in report["settings"].items()]
    return table(
        ["", ""], [(name, str(v)) for name, v in rows if v not in (None, "", "none") and v is not False], numbers=False
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """Rows of cells; with ``numbers``, all but the first column are set to the right."""
    kind = ["", *(' class="number"' if numbers else "" for _ in heads[1:])]
    head = "".join(f"<th{k}>{_text(h)}</th>" for k, h in zip(kind, heads)) if any(heads) else ""
    lines = ["".join(f"<td{k}>{_text(cell)}</td>" for k, cell in zip(kind, row)) for row in rows]
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def write_page(path: str | os.PathLike[str], title: str, parts: Sequence[str]) -> None:
    """Write a page of parts that are HTML already."""
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{_text(title)}</title><style>{_STYLE}</style></head><body>'
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page + "\n".join(part for part in parts if part) + "</body></html>\n", encoding="utf-8")


def _text(value: object) -> str:
    return html.escape(str(value))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, default=str)
