"""What reference refinement repairs: tearing artefacts seen from behind, on generated objects and on the benchmark's cases.

    python -m anchor4d.bench.refinement [--objects 20] [--cases DIR] [--out DIR]

A generated object is animated from its front view alone, without rigidity (PLA4D's objectives, Eq. 10): the back tears. Those
that tear are then refined (Eq. 11) by the bundled prior, which has never seen them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.cameras import Crop, FrontCamera
from ..core.deformation import HexPlane
from ..core.fit.loop import FitState, Inputs, Schedule, run_fit
from ..core.io import contact_sheet
from ..core.mesh import Mesh
from ..core.methods import pla4d, stages
from ..core.metrics import mean_scores, on_white, score
from ..core.objectives.first_frame import FirstFrame
from ..core.objectives.front import ReferenceViewLoss
from ..core.objectives.reference import ReferenceRefinement
from ..core.priors import Distillation, Prior
from ..core.priors.load import load_prior
from ..core.render.mesh import render_mesh
from ..core.runs.demo import read_pictures
from ..core.runs.report import write_json
from ..core.runs.session import Settings, run_in_folder
from ..core.scene.scene import Scene4D
from ..core.scene.views import render_frames, scene_cameras
from ..core.schedules import constant, linear
from ..core.video import DrivingVideo
from ..training.objects import generate, meshes
from ..training.tiny_prior import HELD_OUT

#: Seeds that the prior's training never drew, behind those of its own evaluation.
FIRST_SEED = HELD_OUT + 1000
FRAMES, SIZE = 6, 128
FRONT = FrontCamera(fovy=36.0, distance=2.0, width=SIZE, height=SIZE)
#: Holes seen from behind, as a share of the true mask, from which on an object counts as torn.
TORN = 0.004
STATIC = replace(
    pla4d.preset("draft").static,
    gaussians=3000,
    schedule=Schedule(steps=80, resolutions=((1.0, SIZE),)),
)
#: PLA4D's objectives (Eq. 10) on a field that is free to tear: fine, with moving opacity, and nothing that keeps it rigid.
OBJECTIVES = (
    ReferenceViewLoss(weight=constant(3.0), mask=0.33, perceptual=0.0),
    FirstFrame(weight=constant(3.0), views=1),
)
MOTION = Schedule(steps=150, resolutions=((1.0, SIZE),), lr_final=0.3, background="random")
REFINE = Schedule(steps=160, resolutions=((1.0, SIZE),), lr=0.3, lr_final=0.3, background="random")


def free_field() -> HexPlane:
    """A HexPlane of cells a hundredth of the object wide."""
    torch.manual_seed(0)
    return HexPlane(
        resolution=32,
        time_resolution=FRAMES,
        channels=16,
        bounds=0.6,
        multiscale=(1, 8),
        opacity=True,
        grid_lr=4.5e-2,
        mlp_lr=1e-3,
    )


@dataclass(frozen=True)
class Torn:
    """An object before and after refinement: front PSNR, and mask IoU and holes from behind; pictures from behind."""

    name: str
    before: dict[str, float]
    after: dict[str, float]
    pictures: tuple[Tensor, Tensor, Tensor]  # truth, before, after, each (T, H, W, 4)


def holes(alpha: Tensor, mask: Tensor, reach: int = 5) -> float:  # (T, H, W), (T, H, W)
    """Share of the true mask, its outermost pixel aside, that is less than half covered although covered all around.

    All around: within ``reach`` pixels, by closing what is covered. So a limb in a wrong place does not count as a hole.
    """

    def grown(area: Tensor, pixels: int) -> Tensor:
        return F.max_pool2d(area.float()[:, None], 2 * pixels + 1, 1, pixels)[:, 0] > 0.5

    true, covered = mask > 0.5, alpha > 0.5
    inner, closed = ~grown(~true, 1), ~grown(~grown(covered, reach), reach)
    return float(((inner & closed & ~covered).sum((1, 2)) / true.sum((1, 2)).clamp_min(1)).mean())


def measure(front: Tensor, back: Tensor, true_front: Tensor, true_back: Tensor) -> dict[str, float]:  # each (T, H, W, 4)
    """Front PSNR on white, and IoU and holes from behind."""
    return {
        "front": score(on_white(true_front), on_white(front))["psnr"],
        "iou": score(on_white(true_back), on_white(back))["iou"],
        "holes": holes(back[..., 3], true_back[..., 3]),
    }


def torn_objects(prior: Prior, count: int, weight: float, skip: int = 0) -> Iterator[Torn]:
    """The first ``count`` generated objects that tear, refined; ``skip`` seeds are passed over."""
    seed, found = FIRST_SEED + skip, 0
    while found < count:
        moving = meshes(generate(seed), [t / FRAMES for t in range(FRAMES)])
        truth = [render_all(moving, azimuth) for azimuth in (0.0, 180.0)]
        name, seed = f"object {seed - FIRST_SEED}", seed + 1
        video = DrivingVideo(truth[0][..., :3], truth[0][..., 3], 12.0, Crop(0, 0, SIZE, SIZE, SIZE))
        still = replace(stages.fit_static(video, moving[0], FRONT, STATIC), loop=True)
        inputs = Inputs(video, still.taus, [FRONT], [moving[0]], loop=True)
        torn = run_fit("motion", FitState(still.gaussians, free_field()), OBJECTIVES, MOTION, inputs).field
        pictures = [seen(replace(still, field=torn), azimuth) for azimuth in (0.0, 180.0)]
        before = measure(*pictures, *truth)
        if before["holes"] < TORN:
            continue
        refinement = ReferenceRefinement(Distillation(prior, time=pla4d.REFINEMENT_TIME), linear(weight, 0.0))
        state = FitState(still.gaussians, torn)
        mended = run_fit("refine", state, (*OBJECTIVES, refinement), REFINE, inputs).field
        after = [seen(replace(still, field=mended), azimuth) for azimuth in (0.0, 180.0)]
        found += 1
        yield Torn(name, before, measure(*after, *truth), (truth[1], pictures[1], after[1]))


def render_all(models: Sequence[Mesh], azimuth: float, front: FrontCamera = FRONT) -> Tensor:  # (T, H, W, 4)
    """Straight-alpha pictures of the meshes of a clip."""
    drawn = [render_mesh(model, front.cameras(azimuth)) for model in models]
    color, alpha = (torch.cat([getattr(d, part) for d in drawn]) for part in ("color", "alpha"))
    return torch.cat([color / alpha[..., None].clamp_min(1e-6), alpha[..., None]], -1).clamp(0, 1)


def seen(scene: Scene4D, azimuth: float) -> Tensor:  # (T, H, W, 4)
    """Straight-alpha pictures of a scene at its frames."""
    return render_frames(scene, FRONT.cameras(azimuth), scene.taus)[0]


def case_scores(case: Path, out: Path, prior: str) -> dict[str, float]:
    """Front PSNR, and IoU and holes at azimuth 195, of a benchmark case in preset draft."""
    run = run_in_folder(case / "front", case / "mesh.glb", out / prior / case.name, Settings(preset="draft", prior=prior))
    assert run is not None
    pictures = render_frames(run.scene, scene_cameras(run.scene, [0.0, 195.0]))
    return measure(pictures[0], pictures[1], read_pictures(case / "front"), read_pictures(case / "views/195"))


def line(name: str, before: dict[str, float], after: dict[str, float]) -> str:
    """A row of the table."""
    cells = (f"{before['front']:.2f} -> {after['front']:.2f}", f"{before['iou']:.3f} -> {after['iou']:.3f}",
             f"{100 * before['holes']:.2f} -> {100 * after['holes']:.2f}")  # fmt: skip
    return f"{name:18}" + "".join(f"{cell:>20}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tearing artefacts seen from behind, before and after reference refinement.")
    parser.add_argument("--objects", type=int, default=20, help="generated objects that tear (default: %(default)s)")
    parser.add_argument("--skip", type=int, default=0, help="seeds to pass over, to share the work (default: %(default)s)")
    parser.add_argument("--cases", type=Path, metavar="DIR", help="folder of benchmark cases")
    parser.add_argument("--prior", default="tiny")
    parser.add_argument("--weight", type=float, default=pla4d.REFINEMENT_WEIGHT)
    parser.add_argument("--out", type=Path, default=Path("anchor4d-refinement"), help="folder (default: %(default)s)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{'':18}{'front dB':>20}{'back IoU':>20}{'holes %':>20}")
    rows, results = [], {}
    found = []
    for torn in torn_objects(load_prior(args.prior), args.objects, args.weight, args.skip):
        print(line(torn.name, torn.before, torn.after), flush=True)
        found.append(torn)
        rows += [list(view) for view in torn.pictures]
    if found:
        before, after = (mean_scores([getattr(torn, when) for torn in found]) for when in ("before", "after"))
        print(line("mean", before, after))
        results = {"mean": [before, after]} | {torn.name: [torn.before, torn.after] for torn in found}
        labels = [f"{torn.name}, {what}" for torn in found for what in ("truth", "before", "after")]
        contact_sheet(rows, labels, columns=[f"frame {t}" for t in range(FRAMES)], height=SIZE).save(args.out / "sheet.png")
    for case in sorted(args.cases.iterdir()) if args.cases else ():
        if (case / "case.json").is_file():
            scores = [case_scores(case, args.out, prior) for prior in ("none", args.prior)]
            print(line(case.name, *scores), flush=True)
            results[case.name] = scores
    write_json(args.out / "refinement.json", results)


if __name__ == "__main__":
    main()
