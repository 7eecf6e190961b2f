"""The player with a scene in it, as one HTML file or a folder that plays offline from disk.

A page opened from disk may neither fetch nor import files: the player's modules are linked through Blob URLs, and the clip
comes as base64 in classic scripts, in pieces, so that the first frame shows before the rest has been read.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import InputError, atomic_path
from ..scene.scene import Scene4D
from ..scene.views import FrameProgress
from .stream import write_stream

PLAYER = Path(__file__).parents[2] / "web" / "player"
SUFFIXES = (".html", ".htm")
#: Bytes of the clip in one script; a multiple of three, so that base64 pieces join.
PIECE = 3 << 18
#: Nothing is loaded from anywhere: what a page holds, it may use.
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; worker-src blob:; "
    "base-uri 'none'; form-action 'none'"
)
_IMPORT = re.compile(r'^(?:import|export)\b[\w\s{},*]*"\./([\w.-]+)"', re.MULTILINE)


def write_html(
    path: str | os.PathLike[str],
    scene: Scene4D,
    *,
    frames: int | None = None,
    film: Tensor | None = None,  # (T, H, W, 3) or straight (T, H, W, 4)
    compare: Scene4D | None = None,
    labels: Sequence[str] = ("A", "B"),
    title: str | None = None,
    view: dict[str, Any] | None = None,
    progress: FrameProgress | None = None,
) -> Path:
    """Write a page that plays a scene: one file where ``path`` ends in .html, else a folder with an index.html.

    Args:
        frames: resamples the clip over its duration; the clip's own number where None.
        film: pictures of the driving video, shown beside the object.
        compare: a second scene, shown behind a border that can be dragged.
        labels: what the two scenes are called.
        title: the page's heading and its name in the browser.
        view: what is shown first, as the player's own JSON.
        progress: called with frames done and their number; it may raise to interrupt.

    Returns:
        The file to open.

    Raises:
        InputError: for a scene that no stream can hold, or a path that is something else.
    """
    path = Path(path)
    single = path.suffix.lower() in SUFFIXES
    if path.exists() and path.is_dir() == single:
        raise InputError(f"{path}: a {'folder' if single else 'file'} of this name is there, choose another name")
    if not single and path.is_dir() and any(path.iterdir()) and not (path / "index.html").is_file():
        raise InputError(f"{path}: a folder with other files in it, choose an empty or a new one")
    scenes = [scene] if compare is None else [scene, compare]
    counts = [each.frames if frames is None else frames for each in scenes]
    clips = []
    for index, each in enumerate(scenes):
        stream, before = io.BytesIO(), sum(counts[:index])

        def report(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, sum(counts))

        write_stream(stream, each, frames, film=film if index == 0 else None, progress=report)
        clips.append(stream.getvalue())
    settings = {
        "clips": len(clips),
        "labels": list(labels),
        "name": _file_name(title) or (path.stem if single else path.name),
        "view": view or {},
    }
    pieces = [
        (index, base64.b64encode(clip[start : start + PIECE]).decode())
        for index, clip in enumerate(clips)
        for start in range(0, len(clip), PIECE)
    ]
    pushes = [f'anchor4d.push({index}, "{text}");' for index, text in pieces]
    ends = "".join(f"anchor4d.push({index});" for index in range(len(clips)))
    start = f"anchor4d.start({_json(_modules())});"
    with atomic_path(path) as temporary:
        if single:
            scripts = [start, *pushes, ends]
            lines = "\n".join(f"<script>{script}</script>" for script in scripts)
            temporary.write_text(_page(title, settings, "'unsafe-inline' blob:", lines), encoding="utf-8")
        else:
            (temporary / "data").mkdir(parents=True)
            names = [f"data/{index:04}.js" for index in range(len(pushes))]
            for name, push in zip(names, pushes):
                (temporary / name).write_text(push, encoding="utf-8")
            (temporary / "player.js").write_text(start, encoding="utf-8")
            script = f"<script>anchor4d.read({_json(['player.js', *names])}).then(() => {{ {ends} }});</script>"
            page = _page(title, settings, "'self' file: 'unsafe-inline' blob:", script)
            (temporary / "index.html").write_text(page, encoding="utf-8")
    return path if single else path / "index.html"


def _page(title: str | None, settings: dict[str, Any], sources: str, scripts: str) -> str:
    parts = {
        "policy": _POLICY.format(scripts=sources),
        "title": html.escape(title or "Anchor4D"),
        "heading": html.escape(title or ""),
        "settings": _json(settings),
        "scripts": scripts,
    }
    template = (PLAYER / "page.html").read_text(encoding="utf-8")
    # One pass over the template's own marks, so that a title that reads like one stays a title.
    return re.sub(r"\{(policy|title|heading|settings|scripts)\}", lambda mark: parts[mark[1]], template)


def _modules() -> list[tuple[str, str]]:
    """Names and texts of the player's modules, each after those that it imports."""
    found: dict[str, str] = {}

    def visit(name: str) -> None:
        if name in found:
            return
        text = (PLAYER / name).read_text(encoding="utf-8")
        for needed in _IMPORT.findall(text):
            visit(needed)
        found[name] = text

    visit("page.mjs")
    return list(found.items())


def _json(value: Any) -> str:
    """JSON that may stand in a script: nothing in it ends the script or opens a comment."""
    return json.dumps(value).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _file_name(title: str | None) -> str:
    """A title as the name of what the player saves."""
    return re.sub(r"[^\w -]+", "", title or "").strip()[:60]
