"""Contact sheets of a set, for people to choose from: pages of pictures with ids, to look at, and to tick in a browser."""

from __future__ import annotations

import base64
import hashlib
import html
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..files import atomic_path
from ..pictures import open_picture, readable
from .x4d import SHEETS

#: Quadruplets on a page.
ROWS = 24
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 1rem auto; max-width: 70rem; padding: 0 1rem 5rem; color: #222;
background: #fff }
h1 { font-size: 1.3rem } label { display: block; border-top: 1px solid #ddd; padding: .5rem 0 }
input { width: 1.3rem; height: 1.3rem; vertical-align: middle; margin-right: .6rem }
img { display: block; max-width: 100%; margin-top: .3rem; background: #fff }
.left { color: #b3261e } .quiet { color: #666 } input:not(:checked) ~ img { opacity: .35 }
footer { position: fixed; bottom: 0; left: 0; right: 0; background: #f3f3f3; border-top: 1px solid #ccc; padding: .6rem 1rem }
button { font: inherit; padding: .35rem 1.2rem }
"""
_SCRIPT = """
"use strict";
const boxes = [...document.querySelectorAll("input")], said = document.getElementById("said");
const count = () => { said.textContent = `${boxes.filter((box) => box.checked).length} of ${boxes.length} kept `; };
for (const box of boxes) box.addEventListener("change", count);
count();
document.getElementById("save").addEventListener("click", () => {
  const choice = { seen: boxes.map((b) => b.name), keep: boxes.filter((b) => b.checked).map((b) => b.name) };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(choice, null, 1)], { type: "application/json" }));
  link.download = document.body.dataset.name + ".json";
  link.click();
});
"""


def write_sheets(folder: Path, kept: Sequence[dict[str, Any]], rejected: Sequence[dict[str, Any]]) -> list[Path]:
    """Write ``sheets/001.jpg`` and ``sheets/001.html``, ...: what is kept, then what the filters left out, with the reasons.

    The page is one file that loads nothing and sends nothing. What is kept is ticked; its button saves ``choice-001.json``,
    which :func:`.x4d.choose` takes.

    Returns:
        The pages; earlier sheets are replaced.
    """
    rows = [*kept, *(entry for entry in rejected if "files" in entry)]
    pages: list[Path] = []
    with atomic_path(folder / SHEETS) as temporary:
        temporary.mkdir()
        for number, start in enumerate(range(0, len(rows), ROWS), 1):
            part = rows[start : start + ROWS]
            _picture(folder, part).save(temporary / f"{number:03}.jpg", format="JPEG", quality=85)
            (temporary / f"{number:03}.html").write_text(_page(folder, part, number), encoding="utf-8")
            pages.append(folder / SHEETS / f"{number:03}.html")
    if not pages:
        shutil.rmtree(folder / SHEETS)
    return pages


def _strip(folder: Path, entry: dict[str, Any]) -> Path:
    return folder / entry["files"]["strip"]["path"]


def _words(entry: dict[str, Any]) -> str:
    """The line under an id."""
    found = entry["measures"]
    numbers = ", ".join(f"{name} {found[name]:.3g}" for name in ("iou", "psnr", "gain") if name in found)
    return f"from {entry['from']}, {entry['frames']} frames{f', {numbers}' if numbers else ''}"


def _picture(folder: Path, rows: Sequence[dict[str, Any]]) -> Image.Image:
    """A page of strips under their ids, texts and reasons."""
    font, line = ImageFont.load_default(14), 20
    strips = []
    for entry in rows:
        path = _strip(folder, entry)
        with readable(str(path)), open_picture(path) as opened:
            strips.append(opened.convert("RGB"))
    width = max(500, *(strip.width for strip in strips)) + 16
    sheet = Image.new("RGB", (width, sum(strip.height + 2 * line + 14 for strip in strips) + 8), "white")
    draw, y = ImageDraw.Draw(sheet), 8
    for entry, strip in zip(rows, strips):
        reasons = "; ".join(entry.get("reasons", ()))
        draw.text((8, y), _fitting(f"{entry['id']}: {entry['text']}", font, width - 16), fill="black", font=font)
        below, ink = (f"left out: {reasons}", (179, 38, 30)) if reasons else (_words(entry), (100, 100, 100))
        draw.text((8, y + line), _fitting(below, font, width - 16), fill=ink, font=font)
        sheet.paste(strip, (8, y + 2 * line))
        y += strip.height + 2 * line + 14
    return sheet


def _fitting(text: str, font: Any, width: int) -> str:
    # What the font has no letters for is drawn as a box.
    while font.getlength(text) > width:
        text = text[:-2].rstrip("…") + "…"
    return text


def _page(folder: Path, rows: Sequence[dict[str, Any]], number: int) -> str:
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    parts = []
    for entry in rows:
        reasons = "; ".join(entry.get("reasons", ()))
        picture = base64.b64encode(_strip(folder, entry).read_bytes()).decode()
        parts.append(
            f'<label><input type="checkbox" name="{html.escape(entry["id"])}"{"" if reasons else " checked"}> '
            f"<b>{html.escape(entry['id'])}</b> {html.escape(entry['text'])} "
            f'<span class="quiet">{html.escape(_words(entry))}</span>'
            + (f' <span class="left">left out: {html.escape(reasons)}</span>' if reasons else "")
            + f'<img alt="" src="data:image/jpeg;base64,{picture}"></label>'
        )
    title = f"Sheet {number:03}: tick what to keep"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><style>{_STYLE}</style></head>
<body data-name="choice-{number:03}"><h1>{title}</h1>
{chr(10).join(parts)}
<footer><span id="said"></span><button id="save">Save my choice</button></footer>
<script>{_SCRIPT}</script></body></html>
"""
