"""Object-distance alignment against true cameras, and what a prior says of the distance.

    python -m anchor4d.bench.distance [--cases DIR] [--objects 20] [--prior tiny|none] [--out DIR]

One line a case: the true object distance in a lens of 49.1 degrees; errors of the size in the picture, in percent, of the
robust and of the literal search; the seconds of the first, and those of the literal search's candidates for the mesh and for
10,000 Gaussians on it, medians of five; then the prior's distance for each meaning of it and the least score's place: "-" where
there is no local minimum below the video's distance, "*" where the curve has the paper's shape: one, and less beyond it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.align import Target, draw_curve
from ..core.align.distance import (
    Meaning,
    ModelDistance,
    align_distance,
    align_model_distance,
    literal_distance,
    visual_distance,
)
from ..core.cameras import Crop, FrontCamera
from ..core.io import contact_sheet
from ..core.io.meshes import load_mesh
from ..core.io.video import load_video
from ..core.mesh import Mesh
from ..core.methods.stages import gaussians_on_mesh
from ..core.priors import Prior
from ..core.priors.load import load_prior
from ..core.render.mesh import render_mesh
from ..core.runs.report import write_json
from ..core.scene.object3d import SplatObject
from ..core.video import DrivingVideo
from ..training.objects import generate, meshes
from .refinement import FIRST_SEED, FRONT, SIZE

#: "zero" draws the same curve as "implicit": the prior is given nothing, and the object moves.
MEANINGS: tuple[Meaning, ...] = ("delta", "literal", "implicit")
GAUSSIANS = 10_000


@dataclass(frozen=True)
class Case:
    """A video, its object, and the camera that filmed it."""

    name: str
    video: DrivingVideo
    mesh: Mesh
    true: FrontCamera


def read_cases(folder: Path) -> Iterator[Case]:
    """The benchmark's cases."""
    for path in sorted(folder.glob("*/case.json")):
        camera = json.loads(path.read_text())["camera"]
        video, mesh = load_video(path.parent / "front"), load_mesh(path.parent / "mesh.glb")
        yield Case(path.parent.name, video, mesh, FrontCamera(camera["fovy_degrees"], camera["distance"], 256, 256))


def generated_cases(count: int) -> Iterator[Case]:
    """Objects such as the bundled prior was trained on, though none of those."""
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        mesh = meshes(generate(seed), [0.0])[0].normalized()[0]
        render = render_mesh(mesh, FRONT.cameras())
        color = (render.color / render.alpha[..., None].clamp_min(1e-6)).clamp(0, 1)
        video = DrivingVideo(color, render.alpha, 12.0, Crop(0, 0, SIZE, SIZE, SIZE))
        yield Case(f"object {seed - FIRST_SEED}", video, mesh, FRONT)


def seconds(call: Callable[[], object], repeat: int = 5) -> float:
    """Median time of a call, after one to warm up."""
    call()
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def shape(found: ModelDistance) -> bool:
    """Whether a curve is the paper's: a local minimum below the video's distance, and less somewhere beyond."""
    x, y = found.curve.x, found.curve.y
    return not found.fallback and bool(y[x > found.distance.visual].min() < y[x <= found.distance.visual].min())


def measure(case: Case, prior: Prior | None) -> tuple[dict[str, Any], list[ModelDistance]]:
    """A case's numbers and its curves, one a meaning."""
    true = visual_distance(case.true, case.video.crop)
    robust = align_distance(case.mesh, case.video, yaw=0.0)
    literal = align_distance(case.mesh, case.video, mode="literal", yaw=0.0)
    target, mesh = Target.of(case.video), robust.mesh
    assert isinstance(mesh, Mesh)
    splats = SplatObject.of(gaussians_on_mesh(mesh, GAUSSIANS)[0]).normalized()[0]
    row = {
        "name": case.name,
        "distance": true,
        "robust %": 100 * (robust.report["visual_distance"] / true - 1),
        "literal %": 100 * (literal.report["visual_distance"] / true - 1),
        "robust s": seconds(lambda: align_distance(case.mesh, case.video, yaw=0.0)),
        "literal s": seconds(lambda: literal_distance(mesh, target)),
        "splats s": seconds(lambda: literal_distance(splats, target)),
    }
    if prior is None:
        return row, []
    found = [align_model_distance(robust, case.video, prior, meaning=meaning) for meaning in MEANINGS]
    row["model"] = {
        f.distance.meaning: f.report | {"shape": shape(f), "least": float(f.curve.x[f.curve.y.argmin()])} for f in found
    }
    row["curves"] = {f.distance.meaning: [f.curve.x.tolist(), f.curve.y.tolist()] for f in found}
    return row, found


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    text = f"{row['name']:18s}{row['distance']:9.3f}{row['robust %']:+10.3f}{row['literal %']:+11.2f}"
    text += "".join(f"{row[k]:10.2f}" for k in ("robust s", "literal s", "splats s"))
    for model in row.get("model", {}).values():
        text += f"{'-' if model['fallback'] else format(model['model_distance'], '.3f'):>9}{'*' if model['shape'] else ' '}"
        text += f"{model['least']:6.2f}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Object distance, by the video and by a prior.")
    parser.add_argument("--cases", type=Path, metavar="DIR", help="folder of benchmark cases")
    parser.add_argument("--objects", type=int, default=0, help="generated objects (default: %(default)s)")
    parser.add_argument("--prior", default="tiny", help="whose distance to search; none = the video's alone")
    parser.add_argument("--out", type=Path, default=Path("anchor4d-distance"), help="folder (default: %(default)s)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    prior = None if args.prior == "none" else load_prior(args.prior)
    head = f"{'':18s}{'distance':>9}{'robust %':>10}{'literal %':>11}{'robust s':>10}{'literal s':>10}{'splats s':>10}"
    print(head + "".join(f"{meaning:>10}{'least':>6}" for meaning in MEANINGS if prior))
    rows, sheet = [], []
    for cases in (read_cases(args.cases) if args.cases else (), generated_cases(args.objects)):
        group = []
        for case in cases:
            row, found = measure(case, prior)
            print(line(row), flush=True)
            group.append(row)
            sheet.append([draw_curve(f.curve, 400, 250) for f in found])
        if group:
            worst = {k: max(abs(row[k]) for row in group) for k in ("robust %", "literal %", "literal s", "splats s")}
            print("largest: " + ", ".join(f"{k} {v:.3g}" for k, v in worst.items()))
        rows += group
    write_json(args.out / "distance.json", rows)
    if prior is not None:
        contact_sheet(sheet, [row["name"] for row in rows], columns=MEANINGS, height=250).quantize(64).save(
            args.out / "curves.png", optimize=True
        )


if __name__ == "__main__":
    main()
