"""Align4D, its ablations and DreamGaussian4D from the same Gaussians: the paper's Table III on cases of known truth.

    python -m anchor4d.bench.align4d [--cases DIR] [--objects 20] [--only VARIANT ...] [--workers N] [--out DIR]

Every variant of a case starts from the same Gaussians on the mesh, is fitted to the same few frames, and is scored from sides
that the video never shows. Generated objects are inside the tiny prior's domain, but none that it was trained on. A finished
row is kept in OUT and not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.cameras import FrontCamera
from ..core.files import atomic_path
from ..core.identity import fingerprint
from ..core.io.meshes import load_mesh
from ..core.io.video import load_video, pick_frames
from ..core.mesh import Mesh, turn_about_y
from ..core.methods import align4d, dg4d, stages
from ..core.methods.stages import MethodConfig
from ..core.metrics import mean_scores, on_white, read_case, score
from ..core.priors import Prior
from ..core.priors.load import load_prior
from ..core.runs.demo import comparison_sheet, read_pictures
from ..core.runs.report import write_json
from ..core.runs.session import prior_device
from ..core.scene.scene import Scene4D
from ..core.scene.views import render_frames, scene_cameras
from ..core.video import DrivingVideo
from ..training.objects import generate, meshes
from ..training.tiny_prior import HELD_OUT
from .refinement import render_all

#: Seeds that the prior's training never drew, behind those of its own evaluation and of the benchmark of refinement.
FIRST_SEED = HELD_OUT + 2000
AZIMUTHS = (-75.0, 15.0, 105.0, 195.0)
#: Each leaves parts of Align4D out; "dg4d" rows are DreamGaussian4D: with its own camera and search of the front, given the
#: front, and given Align4D's camera. The last row is Align4D with all its parts out but for the camera: "dg4d, aligned" at
#: Align4D's lambda.
VARIANTS: dict[str, tuple[str, ...] | None] = {
    "dg4d": None,
    "dg4d, given the front": None,
    "dg4d, aligned": None,
    "align4d": (),
    "no oda": ("oda",),
    "no mgja": ("mgja",),
    "no ao": ("ao",),
    "camera alone": ("maod", "mgja", "ao"),
}


@dataclass(frozen=True)
class Task:
    """One row: a variant of a case, by its folder, or of a generated object, by its number."""

    case: str
    variant: str
    preset: str
    frames: int
    prior: str
    out: Path
    seed: int = 0


@dataclass(frozen=True)
class Case:
    """A clip, its object at the first frame, and straight-alpha pictures of the truth by azimuth, each (T, H, W, 4)."""

    video: DrivingVideo
    mesh: Mesh
    truth: dict[float, Tensor]


def true_pictures(case: Path, frames: int) -> dict[float, Tensor]:
    """What a case of the benchmark shows in ``frames`` of its frames, by azimuth: 0 is the driving video."""
    azimuths = {0.0: "front"} | {float(a): f"views/{a}" for a in read_case(case)["test_azimuths"]}
    truth = {azimuth: read_pictures(case / name) for azimuth, name in azimuths.items()}
    picks = pick_frames(len(truth[0.0]), frames)
    return {azimuth: pictures[picks] for azimuth, pictures in truth.items()}


@lru_cache(maxsize=1)
def read(case: str, frames: int, resolution: int) -> Case:
    """A folder of the benchmark, or ``object N``: generated, filmed by a camera that depends on its number."""
    if case.startswith("object "):
        number = int(case.split()[1])
        moving = meshes(generate(FIRST_SEED + number), [t / frames for t in range(frames)])
        u, v = np.random.default_rng(number).random(2)
        # As the cases are: fields of view from 30 to 60 degrees, objects about as large as the fixed camera has them.
        fovy = 30 + 30 * u
        distance = (0.62 + 0.24 * v) / math.tan(math.radians(fovy) / 2)
        front = FrontCamera(fovy, distance, 128, 128)
        truth = {azimuth: render_all(moving, azimuth, front) for azimuth in (0.0, *AZIMUTHS)}
        return Case(load_video(truth[0.0], fps=12.0, resolution=resolution), moving[0], truth)
    folder = Path(case)
    truth = true_pictures(folder, frames)
    video = load_video(truth[0.0], fps=12.0, resolution=resolution)
    return Case(video, load_mesh(folder / "mesh.glb"), truth)


@lru_cache(maxsize=1)
def prior_named(name: str) -> Prior:
    """The prior, kept for the next row."""
    return load_prior(name, device=prior_device("cpu"))


def config_of(task: Task) -> MethodConfig:
    """The variant's settings."""
    prior, parts = prior_named(task.prior), VARIANTS[task.variant]
    if parts is None:
        config = dg4d.preset(task.preset, prior)
        return replace(config, camera="distance") if task.variant == "dg4d, aligned" else config
    return align4d.preset(task.preset, prior, parts)


def start(task: Task, case: Case, config: MethodConfig) -> Scene4D:
    """The still Gaussians of a case, the same for every variant: made once, of the mesh as it faces the true camera."""
    path = task.out / Path(task.case).name / "start.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        front = FrontCamera(49.1, 1.5, case.video.crop.width, case.video.crop.height)
        stages.fit_static(case.video, case.mesh.normalized()[0], front, config.static, seed=task.seed).save(path)
    return Scene4D.load(path)


def run_task(task: Task) -> dict[str, Any]:
    """Fit and score; leaves ``OUT/<case>/<variant>.json`` and a sheet of pictures."""
    torch.manual_seed(0)
    name = Path(task.case).name
    path = task.out / name / f"{task.variant.replace(', ', '-').replace(' ', '-')}.json"
    config = config_of(task)
    key = fingerprint(config, task.frames, task.seed)
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.get("key") == key:
            return kept
    case = read(task.case, task.frames, config.resolution)
    still = start(task, case, config)
    started = time.perf_counter()
    yaw = 0.0 if task.variant == "dg4d, given the front" else "auto"
    alignment = stages.align(case.video, case.mesh, camera=config.camera, yaw=yaw)
    config, found = stages.prefer_distance(config, case.video, alignment, seed=task.seed)
    turned = case.mesh.normalized()[0].turned(alignment.yaw)
    matrix = turned.normalized()[1] @ turn_about_y(alignment.yaw)
    still = replace(still, gaussians=still.gaussians.transformed(matrix), front=alignment.front)
    scene = stages.fit_motion(case.video, still, config.motion, mesh=alignment.mesh, seed=task.seed)
    seconds = time.perf_counter() - started
    size = case.truth[0.0].shape[2]
    ours, held = (
        dict(zip(case.truth, render_frames(drawn, scene_cameras(drawn, [*case.truth], size=size), drawn.taus)))
        for drawn in (scene, still)
    )
    rows = {a: score(on_white(case.truth[a]), on_white(ours[a])) for a in case.truth}
    standing = mean_scores([score(on_white(case.truth[a]), on_white(held[a])) for a in case.truth if a])
    row = {
        "case": name, "variant": task.variant, "front": rows[0.0]["psnr"],
        **mean_scores([rows[a] for a in case.truth if a]), "still": standing["psnr"], "seconds": seconds,
        "yaw": alignment.yaw, "camera": asdict(alignment.front),
        "distance": None if found is None else asdict(found.distance) | {"fallback": found.fallback},
        "losses": scene.meta["losses"]["3D to 4D"], "key": key,
    }  # fmt: skip
    truth, ours = ({f"{a:g}": pictures for a, pictures in views.items()} for views in (case.truth, ours))
    with atomic_path(path.with_suffix(".png")) as temporary:
        comparison_sheet(truth, ours, columns=4).save(temporary)
    write_json(path, row)
    return json.loads(path.read_text(encoding="utf-8"))


COLUMNS = ("front", "psnr", "still", "motion", "iou", "ssim", "seconds")


def table(rows: list[dict[str, Any]]) -> str:
    """Each variant's means, unseen views but for ``front``; ``still`` is the PSNR of its object before it moves."""
    lines = [f"| {'variant':20} | cases |" + "".join(f" {c:>7} |" for c in COLUMNS), "|---|---:|" + "---:|" * len(COLUMNS)]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == variant]
        mean = mean_scores([{c: row[c] for c in COLUMNS} for row in mine])
        cells = "".join(f" {mean[c]:7.3f} |" if c in ("motion", "iou", "ssim") else f" {mean[c]:7.2f} |" for c in COLUMNS)
        lines.append(f"| {variant:20} | {len(mine):5} |{cells}")
    return "\n".join(lines)


def run_all(tasks: list[Task], workers: int) -> Iterator[dict[str, Any]]:
    """The rows as they are done, by as many processes."""
    if workers < 2:
        yield from map(run_task, tasks)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(run_task, tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description="Align4D, its ablations and DreamGaussian4D on cases of known truth.")
    parser.add_argument("--cases", type=Path, metavar="DIR", help="folder of benchmark cases")
    parser.add_argument("--objects", type=int, default=0, help="generated objects")
    parser.add_argument("--skip", type=int, default=0, help="objects to pass over, to share the work")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--preset", default="draft")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--prior", default="tiny")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("anchor4d-align4d"), help="folder (default: %(default)s)")
    args = parser.parse_args()
    cases = [str(p.parent) for p in sorted(args.cases.glob("*/case.json"))] if args.cases else []
    objects = [f"object {n}" for n in range(args.skip, args.skip + args.objects)]
    rows: list[dict[str, Any]] = []
    for title, names in (("benchmark cases", cases), ("generated objects", objects)):
        tasks = [Task(n, v, args.preset, args.frames, args.prior, args.out) for n in names for v in args.only]
        if not tasks:
            continue
        made = []
        for row in run_all(tasks, args.workers):
            print(f"{row['case']:16} {row['variant']:20} " + " ".join(f"{c} {row[c]:.3f}" for c in COLUMNS), flush=True)
            made.append(row)
        print(f"\n{title}\n\n{table(made)}\n", flush=True)
        rows += made
    write_json(args.out / "align4d.json", rows)


if __name__ == "__main__":
    main()
