"""The demo: the bundled sample through PLA4D, a film and a contact sheet of it, and scores against the truth."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files import atomic_path
from ..io import contact_sheet, side_by_side, write_mp4
from ..metrics import mean_scores, on_white, score
from ..progress import Progress
from ..scene.views import render_frames, scene_cameras
from .report import write_json
from .sample import FPS, TEST_AZIMUTHS, write_sample
from .session import Run, Settings, run_in_folder

PRESET = "draft"
#: The three unseen sides of the film.
SIDES = ("-75", "105", "195")


@dataclass(frozen=True)
class Demo:
    """What the demo made: the run, its scores by view, and those as a table to print."""

    run: Run
    scores: dict[str, dict[str, float]]
    table: str


def make_demo(out: str | os.PathLike[str], *, seed: int = 0, preset: str = PRESET, progress: Progress | None = None) -> Demo:
    """Make the sample in ``out/sample``, fit it; leave the scene, its report, films, ``sheet.png`` and ``scores.json``."""
    out = Path(out)
    shutil.rmtree(out / "sample", ignore_errors=True)
    sample = write_sample(out / "sample")
    settings = Settings(preset=preset, seed=seed)
    run = run_in_folder(sample / "front", sample / "mesh.glb", out, settings, fps=FPS, progress=progress)
    assert run is not None
    views = ["0", *map(str, TEST_AZIMUTHS)]
    truth = {view: read_pictures(sample / ("front" if view == "0" else f"views/{view}")) for view in views}
    ours = dict(zip(views, render_frames(run.scene, scene_cameras(run.scene, [float(view) for view in views]))))
    scores = {view: score(on_white(truth[view]), on_white(ours[view])) for view in views}
    scores["unseen"] = mean_scores([scores[view] for view in views[1:]])
    write_json(out / "scores.json", scores)
    panels = {"driving video": truth["0"], "same camera": ours["0"]} | {f"{side}°": ours[side] for side in SIDES}
    window = common_window([*panels.values()])
    panels = {name: view[:, *window] for name, view in panels.items()}
    film = side_by_side(panels, height=288)
    write_mp4(out / "demo.mp4", film, FPS, loops=3)
    with atomic_path(out / "demo.webp") as temporary:
        first, *rest = (Image.fromarray(frame) for frame in film)
        first.save(temporary, save_all=True, append_images=rest, duration=round(1000 / FPS), loop=0, quality=82, method=5)
    with atomic_path(out / "sheet.png") as temporary:
        comparison_sheet(truth, ours).save(temporary)
    return Demo(run, scores, score_table(scores))


def comparison_sheet(truth: dict[str, Tensor], ours: dict[str, Tensor], *, columns: int = 7, height: int = 128) -> Image.Image:
    """Each view's true frames above ours, cut to the object, at ``columns`` moments of the clip.

    Args:
        truth, ours: pictures (T, H, W, 4) by azimuth; "0" is the driving video's view.
    """
    rows, labels = [], []
    frames = len(truth["0"])
    picks = np.linspace(0, frames, min(columns, frames), endpoint=False).astype(int).tolist()
    window = common_window([*truth.values(), *ours.values()])
    for view, pictures in truth.items():
        rows += [[pictures[t][window] for t in picks], [ours[view][t][window] for t in picks]]
        labels += ["video" if view == "0" else f"truth {view}°", "ours"]
    return contact_sheet(rows, labels, columns=[f"frame {t}" for t in picks], height=height)


def common_window(views: Sequence[Tensor], margin: int = 6) -> tuple[slice, slice]:  # each (T, H, W, 4)
    """Rows and columns around everything that is ever visible in any of the views."""
    seen = torch.stack([view[..., 3].amax(0) for view in views]).amax(0) > 0.1
    found = [seen.any(axis).nonzero().flatten() for axis in (1, 0)]
    if not len(found[0]):
        return slice(None), slice(None)
    rows, columns = (slice(max(int(index[0]) - margin, 0), int(index[-1]) + 1 + margin) for index in found)
    return rows, columns


def score_table(scores: dict[str, dict[str, float]]) -> str:
    """Scores by view as an aligned table."""
    lines = [f"{'view':>8}  {'psnr':>6}  {'frozen':>6}  {'ssim':>6}  {'iou':>6}  {'motion':>6}"]
    for view, s in scores.items():
        lines.append(f"{view:>8}  {s['psnr']:6.2f}  {s['frozen']:6.2f}  {s['ssim']:6.3f}  {s['iou']:6.3f}  {s['motion']:6.3f}")
    return "\n".join(lines)


def read_pictures(folder: str | os.PathLike[str]) -> Tensor:  # (T, H, W, 4)
    """A folder's pictures in order, whole, straight-alpha RGBA in [0, 1]."""
    from ..io.video import read_clip

    frames = read_clip(folder).frames
    frames = frames.float() / 255 if frames.dtype == torch.uint8 else frames
    return frames if frames.shape[-1] == 4 else torch.cat([frames, torch.ones_like(frames[..., :1])], -1)
