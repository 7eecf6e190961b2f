"""STAG4D on objects of known truth, with the six true views as anchors and adaptive or fixed thresholds of densification, and
on the benchmark's cases, with anchors that the tiny prior draws, beside the other methods.

    python -m anchor4d.bench.stag4d [--objects 5] [--cases DIR] [--only VARIANT ...] [--workers N] [--out DIR]

Generated objects are inside the tiny prior's domain, but none that it was trained on. What is scored are sides that neither the
video nor the anchors show. A finished row is kept in OUT and not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.cameras import FrontCamera
from ..core.files import atomic_path
from ..core.identity import fingerprint
from ..core.io.objects import load_object
from ..core.io.video import load_video
from ..core.methods import stag4d, stages
from ..core.methods.registry import method_config
from ..core.methods.stages import MethodConfig
from ..core.metrics import mean_scores, on_white, score
from ..core.priors import Prior
from ..core.priors.load import load_prior
from ..core.render.mesh import render_mesh
from ..core.runs.demo import comparison_sheet
from ..core.runs.report import write_json
from ..core.runs.session import Settings, prior_device, run
from ..core.scene.anchors import ELEVATIONS, LENS, Anchors
from ..core.scene.views import render_frames, scene_cameras
from ..core.video import DrivingVideo
from ..training.objects import generate, meshes
from ..training.tiny_prior import HELD_OUT
from .align4d import Task, true_pictures
from .refinement import render_all

#: Seeds that the prior's training never drew, behind those of the other benchmarks.
FIRST_SEED = HELD_OUT + 3000
SIZE, AZIMUTHS = 128, (-75.0, 15.0, 105.0, 195.0)
FRONT = FrontCamera(LENS, stag4d.DISTANCE, SIZE, SIZE)


def _density(config: MethodConfig, **changes: Any) -> MethodConfig:
    motion = config.motion
    return replace(config, motion=replace(motion, density=motion.density and replace(motion.density, **changes)))


#: What each row of the objects changes. Thresholds: the median over objects of the adaptive ones, a third and three times it.
OBJECT_VARIANTS: dict[str, Callable[[MethodConfig], MethodConfig]] = {
    "adaptive": lambda c: c,
    "none": lambda c: replace(c, motion=replace(c.motion, density=None)),
    "fixed, low": lambda c: _density(c, top=0.0, threshold=0.08),
    "fixed": lambda c: _density(c, top=0.0, threshold=0.25),
    "fixed, high": lambda c: _density(c, top=0.0, threshold=0.75),
}
#: Methods of the cases' rows: name, whether they are given the mesh, parts added.
CASE_VARIANTS: dict[str, tuple[str, bool, tuple[str, ...]]] = {
    "pla4d": ("pla4d", True, ()),
    "align4d": ("align4d", True, ()),
    "dg4d": ("dg4d", True, ()),
    "stag4d": ("stag4d", False, ()),
    "stag4d, gamma 0": ("stag4d", False, ()),
    "stag4d, no anchors": ("stag4d", False, ()),
    "stag4d from the mesh": ("stag4d", True, ()),
    "stag4d from the mesh + oda": ("stag4d", True, ("oda",)),
    "stag4d from the mesh + oda, mgja": ("stag4d", True, ("oda", "mgja")),
    "stag4d from the mesh + oda, mgja, ao": ("stag4d", True, ("oda", "mgja", "ao")),
}


@dataclass(frozen=True)
class Case:
    """A clip, straight-alpha pictures of the truth by azimuth, each (T, H, W, 4), and of an object its true anchors."""

    video: DrivingVideo
    truth: dict[float, Tensor]
    anchors: Anchors | None = None


@lru_cache(maxsize=1)
def read(case: str, frames: int, resolution: int) -> Case:
    """A folder of the benchmark, or ``object N``."""
    if case.startswith("object "):
        moving = meshes(generate(FIRST_SEED + int(case.split()[1])), [t / frames for t in range(frames)])
        truth = {azimuth: render_all(moving, azimuth, FRONT) for azimuth in (0.0, *AZIMUTHS)}
        blank = Anchors(torch.zeros(frames, 6, SIZE, SIZE, 4), ELEVATIONS, stag4d.DISTANCE, LENS)
        drawn = [render_mesh(mesh, blank.cameras()) for mesh in moving]
        color, alpha = (torch.stack([getattr(view, part) for view in drawn]) for part in ("color", "alpha"))
        straight = torch.cat([color / alpha[..., None].clamp_min(1e-6), alpha[..., None]], -1).clamp(0, 1)
        return Case(load_video(truth[0.0], fps=12.0, resolution=resolution), truth, replace(blank, images=straight))
    truth = true_pictures(Path(case), frames)
    return Case(load_video(truth[0.0], fps=12.0, resolution=resolution), truth)


@lru_cache(maxsize=1)
def prior_named(name: str) -> Prior | None:
    """The prior, kept for the next row."""
    return None if name == "none" else load_prior(name, device=prior_device("cpu"))


def settings_of(task: Task) -> tuple[Settings, MethodConfig]:
    """The variant's settings and configuration."""
    prior = prior_named(task.prior)
    name, _, plus = CASE_VARIANTS.get(task.variant, ("stag4d", False, ()))
    settings = Settings(name, task.preset, task.seed, device="cpu", prior=task.prior, plus=plus)
    models = {} if prior is None else {"prior": prior, "anchors": prior}
    config = method_config(name, task.preset, models, plus=plus)
    if task.variant == "stag4d, gamma 0":
        config = stag4d.preset(task.preset, prior, prior, gamma=0.0)
    if task.variant == "stag4d, no anchors":
        config = stag4d.preset(task.preset, prior)
    if task.variant in OBJECT_VARIANTS:
        config = OBJECT_VARIANTS[task.variant](config)
    return settings, config


def run_task(task: Task) -> dict[str, Any]:
    """Fit and score; leaves ``OUT/<case>/<variant>.json`` and a sheet of pictures."""
    torch.manual_seed(0)
    name = Path(task.case).name
    path = task.out / name.replace(" ", "-") / f"{task.variant.replace(', ', '-').replace(' ', '-')}.json"
    settings, config = settings_of(task)
    key = fingerprint(config, task.frames, task.seed)
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.get("key") == key:
            return kept
    case = read(task.case, task.frames, config.resolution)
    started = time.perf_counter()
    mesh, alignment = None, None
    if case.anchors is not None:
        # The anchors' lens and the video's camera are of one world.
        ball = stages.without_object(case.video, distance=config.distance, points=config.static.gaussians, seed=task.seed)
        alignment = replace(ball, front=FRONT)
    elif CASE_VARIANTS[task.variant][1]:
        mesh = load_object(Path(task.case) / "mesh.glb")
    done = run(case.video, mesh, settings, config=config, anchors=case.anchors, alignment=alignment)
    seconds = time.perf_counter() - started
    size = case.truth[0.0].shape[2]
    scene = done.scene
    ours = dict(zip(case.truth, render_frames(scene, scene_cameras(scene, [*case.truth], size=size), scene.taus)))
    rows = {a: score(on_white(case.truth[a]), on_white(ours[a])) for a in case.truth}
    row = {
        "case": name, "variant": task.variant, "front": rows[0.0]["psnr"],
        **mean_scores([rows[a] for a in case.truth if a]), "gaussians": len(scene.gaussians), "seconds": seconds,
        "losses": done.report["losses"], "key": key,
    }  # fmt: skip
    truth, ours = ({f"{a:g}": pictures for a, pictures in views.items()} for views in (case.truth, ours))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path.with_suffix(".png")) as temporary:
        comparison_sheet(truth, ours, columns=4).save(temporary)
    write_json(path, row)
    return json.loads(path.read_text(encoding="utf-8"))


COLUMNS = ("front", "psnr", "frozen", "motion", "iou", "ssim", "gaussians", "seconds")


def table(rows: list[dict[str, Any]]) -> str:
    """Each variant's means, unseen views but for ``front``, and its worst case's PSNR."""
    head = f"| {'variant':38} | cases |" + "".join(f" {c:>9} |" for c in (*COLUMNS, "worst"))
    lines = [head, "|---|---:|" + "---:|" * (len(COLUMNS) + 1)]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == variant]
        mean = mean_scores([{c: row[c] for c in COLUMNS} for row in mine])
        cells = "".join(f" {mean[c]:9.3f} |" if c in ("motion", "iou", "ssim") else f" {mean[c]:9.2f} |" for c in COLUMNS)
        lines.append(f"| {variant:38} | {len(mine):5} |{cells} {min(row['psnr'] for row in mine):9.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="STAG4D on objects and cases of known truth.")
    parser.add_argument("--objects", type=int, default=0, help="generated objects, with their true anchors")
    parser.add_argument("--skip", type=int, default=0, help="objects to pass over")
    parser.add_argument("--cases", type=Path, metavar="DIR", help="folder of benchmark cases")
    parser.add_argument("--only", nargs="+", choices=[*OBJECT_VARIANTS, *CASE_VARIANTS], metavar="VARIANT")
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--prior", default="tiny")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("anchor4d-stag4d"), help="folder (default: %(default)s)")
    args = parser.parse_args()
    cases = [str(p.parent) for p in sorted(args.cases.glob("*/case.json"))] if args.cases else []
    objects = [f"object {n}" for n in range(args.skip, args.skip + args.objects)]
    groups = {
        title: [
            Task(n, v, args.preset, args.frames, args.prior, args.out)
            for n in names
            for v in variants
            if not args.only or v in args.only
        ]
        for title, names, variants in (
            ("generated objects, true anchors", objects, OBJECT_VARIANTS),
            ("benchmark cases", cases, CASE_VARIANTS),
        )
    }
    rows: dict[str, list[dict[str, Any]]] = {title: [] for title, tasks in groups.items() if tasks}
    context = get_context("spawn")
    with ProcessPoolExecutor(args.workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        # Everything is begun at once, so that no processor waits for the end of the first table.
        made = {title: pool.map(run_task, tasks) for title, tasks in groups.items() if tasks}
        for title, results in made.items():
            for row in results:
                print(f"{row['case']:16} {row['variant']:38} " + " ".join(f"{c} {row[c]:.3f}" for c in COLUMNS), flush=True)
                rows[title].append(row)
            print(f"\n{title}\n\n{table(rows[title])}\n", flush=True)
    write_json(args.out / "stag4d.json", rows)


if __name__ == "__main__":
    main()
