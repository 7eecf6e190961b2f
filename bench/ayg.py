"""Align Your Gaussians without a text-to-video model: what its dynamic stage does under scores that are known exactly.

    python -m anchor4d.bench.ayg [--only recovery place amplification composition] [--quick] [--out DIR]

The exact score of the walking sample's clips takes the model's place. *recovery*: the motion is found again. *place*: the score
is blind to where in the picture the object is; without the divergence it drifts. *amplification*: against the same rigidity,
motion grows with omega. *composition*: a motion of three clips that loops, and a second object on a path of its own clock, in
one scene that is saved, exported and read again.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..core.cameras import FrontCamera, orbit
from ..core.deformation import TimeGatedMLP
from ..core.fit.loop import Schedule
from ..core.io import contact_sheet
from ..core.io.export import export_scene
from ..core.methods import ayg, stages
from ..core.methods.stages import MotionConfig
from ..core.metrics import motion, on_white
from ..core.objectives.displacement import LocalRigidity, PositionRegulariser
from ..core.objectives.scores import ClipScores, Lens
from ..core.priors import Distillation, UniformWindow, Viewpoints
from ..core.priors.exact import ExactClip
from ..core.render import rasterize
from ..core.runs.report import write_json
from ..core.runs.sample import FRAMES as CYCLE
from ..core.runs.sample import sample_scene
from ..core.scene.edit import Placement, follow, merge, retime
from ..core.scene.scene import Scene4D, frame_times
from ..core.scene.views import render_frames
from ..core.schedules import constant, linear

FOVY = 40.0
LENS = Lens(elevation=(0.0, 30.0), fovy=(FOVY, FOVY), fill=(0.7, 0.7))
FRONT = FrontCamera(fovy=FOVY, distance=2.0, width=128, height=128)
#: Of the sample's walk cycle, what a clip shows: its first frame to its last.
SPAN = (CYCLE - 1) / CYCLE
WHITE = torch.ones(3)


@dataclass(frozen=True)
class Trial:
    """The walking sample, and a fit of its motion to the exact score of its clips.

    Args:
        gaussians: of the sample.
        size: side of the pictures, pixels.
        frames: of a clip.
        steps, clips: of the fit, and clips a step.
        lr, lr_final: learning rate, and the factor to which it falls.
        times: largest diffusion time at the first and the last step; the smallest is 0.02.
        form: "csd", as the method has it, or "sds".
        rigidity: weight; the method's 1000 stands against clip scores of 100, so 1 here is 100 there.
        blind: the score does not see where in the picture the object is.
        stay: weight of the divergence, and its share of the gradient where above 0.
        omega: motion amplification.
        seed: of the field and the fit.
    """

    gaussians: int = 1500
    size: int = 64
    frames: int = CYCLE
    steps: int = 400
    clips: int = 8
    lr: float = 2e-3
    lr_final: float = 0.1
    times: tuple[float, float] = (0.98, 0.5)
    form: str = "csd"
    rigidity: float = 0.3
    blind: bool = False
    stay: float = 0.0
    share: float = 0.0
    omega: float = 1.0
    seed: int = 0

    def prior(self, truth: Scene4D) -> ExactClip:
        """The score of clips that show the truth from its first frame to its last."""

        def draw(views: Viewpoints, taus: Tensor) -> Tensor:
            flat = views.map(lambda v: v.flatten())
            cameras = orbit(flat.azimuth, flat.elevation, flat.distance, FOVY, self.size, self.size)
            moved = truth.at(SPAN * taus.flatten())
            pictures = rasterize(moved, cameras.reshape(-1, 1), WHITE).color
            return pictures.reshape(*taus.shape, self.size, self.size, 3)

        return ExactClip(draw, self.size, pictures=self.frames, blind=self.blind)

    def config(self, truth: Scene4D) -> MotionConfig:
        """The dynamic stage's settings."""
        scores = Distillation(
            self.prior(truth), time=UniformWindow(constant(0.02), linear(*self.times)), form=self.form, guidance=1.0,  # pyright: ignore[reportArgumentType]
            normalise=True,
        )  # fmt: skip
        clip = ClipScores(
            scores, prompt="a walking creature", amplification=constant(self.omega), clips=self.clips, spans=(1.0,), lens=LENS
        )
        kept = (LocalRigidity(constant(self.rigidity), k=10),)
        if self.stay > 0 or self.share > 0:
            kept += (PositionRegulariser(constant(self.stay or 1.0), share=self.share, share_step=10),)
        schedule = Schedule(self.steps, resolutions=((1.0, self.size),), lr_final=self.lr_final)
        return MotionConfig(field="time-gated-mlp", schedule=schedule, objectives=(clip, *kept))

    def start(self) -> tuple[Scene4D, Scene4D]:
        """The walking sample, and the same object at rest."""
        truth = sample_scene(self.gaussians)
        return truth, Scene4D(truth.gaussians, None, frames=self.frames, front=FRONT)

    def __call__(self) -> dict[str, float]:
        """Fits, and measures: see :func:`measure`; ``seconds`` on this machine."""
        truth, still = self.start()
        began = time.perf_counter()
        torch.manual_seed(self.seed)
        field = TimeGatedMLP.around(truth.gaussians, lr=self.lr)
        scene = stages.fit_motion(None, still, self.config(truth), field=field, seed=self.seed)
        return measure(truth, scene) | {"seconds": time.perf_counter() - began}


@torch.no_grad()
def measure(truth: Scene4D, scene: Scene4D, size: int = 128) -> dict[str, float]:
    """The motion metric, a mean over four sides, and how the Gaussians move, in units of the object's size.

    ``moved``: root mean square of their displacement about the centre's; ``centre``: largest displacement of the centre, and
    ``path``: the length of its path; each beside the truth's.
    """
    cameras = orbit([-75.0, 15.0, 105.0, 195.0], 0.0, 2.0, FOVY, size, size)
    pairs = zip(render_frames(scene, cameras), render_frames(truth, cameras, SPAN * scene.taus))
    found = {"motion": sum(motion(on_white(a)[..., :3], on_white(b)[..., :3]) for a, b in pairs) / len(cameras)}
    for name, moved in (("", scene.at(scene.taus).means), (" of truth", truth.at(SPAN * scene.taus).means)):
        delta = moved - moved[:1]
        centre = delta.mean(1)
        found[f"moved{name}"] = float((delta - centre[:, None]).square().sum(-1).mean().sqrt())
        found[f"centre{name}"] = float(centre.norm(dim=-1).max())
        found[f"path{name}"] = float((centre[1:] - centre[:-1]).norm(dim=-1).sum())
    return found


def two_objects(first: Scene4D, second: Scene4D) -> Scene4D:
    """Two moving objects in one scene: one turned aside, the other, on its own clock, walking around it."""
    stands = follow(first, [(0.0, Placement((0.0, 0.0, 0.0), (0.0, 20.0, 0.0), 1.0))])
    corners = [(0.0, 0.0), (0.5, 90.0), (1.0, 180.0)]
    path = [
        (t, Placement((0.9 * math.cos(math.radians(a)), -0.2, 0.9 * math.sin(math.radians(a))), (0.0, -a, 0.0), 0.5))
        for t, a in corners
    ]
    return merge([stands, follow(retime(second, fps=2 * first.fps, frames=second.frames), path)])


def composition(trial: Trial, out: Path, further: int = 100) -> dict[str, float | str]:
    """A motion of three clips that loops and a second object, as one scene: played, saved, exported, read again."""
    truth, still = trial.start()
    config = trial.config(truth)
    began = time.perf_counter()
    scene = stages.fit_motion(None, still, config)
    for last in (False, True):
        schedule = replace(config.schedule, steps=further)
        scene = ayg.extend(scene, replace(config, schedule=schedule), seam=10.0, closed=last)
    seconds = time.perf_counter() - began
    both = two_objects(scene, replace(truth, front=FRONT))
    out.mkdir(parents=True, exist_ok=True)
    both.save(out / "scene.safetensors")
    again = Scene4D.load(out / "scene.safetensors")
    taus = frame_times(3 * both.frames + 1)
    same = all(bool((getattr(both.at(taus), k) == getattr(again.at(taus), k)).all()) for k in both.gaussians.tensors())
    files = {"ply": "frames", "glb-splats": "scene.glb", "html": "scene.html", "mp4": "scene.mp4"}
    sizes = {}
    for name, path in files.items():
        export_scene(both, out / path, name)
        exported = out / path
        sizes[f"{name}, MB"] = sum(f.stat().st_size for f in ([exported] if exported.is_file() else exported.iterdir())) / 1e6
    with torch.no_grad():
        moved = scene.at(taus).means
    jumps = (moved[1:] - moved[:-1]).norm(dim=-1).mean(1)
    moments = frame_times(8)
    pictures = render_frames(both, orbit([0.0, 40.0], 20.0, 4.0, FOVY, 192, 192), moments)
    sheet = contact_sheet(
        [list(view) for view in pictures], ["front", "side"], columns=[f"{t:.2f}" for t in moments.tolist()], height=192
    )
    sheet.save(out / "sheet.png")
    return {
        "frames": both.frames,
        "gaussians": len(both.gaussians),
        "loops": str(scene.loop),
        "reloaded": "same bits" if same else "changed",
        "largest jump / mean": float(jumps.max() / jumps.mean()),
        "seconds": seconds,
        **sizes,
    }


def table(rows: dict[str, dict[str, float]], columns: Sequence[str]) -> str:
    """Rows of numbers."""
    lines = [f"{'':34}" + "".join(f"{name:>18}" for name in columns)]
    lines += [f"{name:34}" + "".join(f"{row[column]:18.3f}" for column in columns) for name, row in rows.items()]
    return "\n".join(lines)


MOTION = ("motion", "moved", "moved of truth", "seconds")
PLACE = ("centre", "path", "centre of truth", "path of truth", "motion", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description="Align Your Gaussians under scores that are known exactly.")
    parser.add_argument("--only", nargs="+", choices=("recovery", "place", "amplification", "composition"))
    parser.add_argument("--quick", action="store_true", help="small pictures, few steps")
    parser.add_argument("--out", type=Path, default=Path("anchor4d-ayg"), help="folder (default: %(default)s)")
    args = parser.parse_args()
    wanted = args.only or ("recovery", "place", "amplification", "composition")
    whole = Trial(gaussians=400, size=32, frames=5, steps=150, times=(0.3, 0.1)) if args.quick else Trial()
    short = replace(whole, steps=whole.steps // 2, clips=4)
    # A score with no opinion of where leaves that to chance: at a rate that does not fall, it adds up.
    adrift = replace(short, blind=True, clips=2, times=(0.98, 0.5), lr_final=1.0)
    groups: dict[str, tuple[Sequence[str], dict[str, Trial]]] = {
        "recovery": (
            MOTION,
            {"CSD": whole, "SDS": replace(whole, form="sds"), "CSD, one clip a step": replace(whole, clips=1)},
        ),
        "place": (
            PLACE,
            {
                f"{name}, seed {seed}": replace(adrift, seed=seed, **settings)
                for name, settings in (
                    ("alone", {}),
                    ("divergence, 0.3", {"stay": 0.3}),
                    ("divergence, share 3", {"share": 3.0}),
                )
                for seed in range(3)
            },
        ),
        "amplification": (MOTION, {f"omega {w:g}": replace(short, rigidity=10.0, omega=w) for w in (1.0, 2.0, 4.0)}),
    }
    results: dict[str, object] = {}
    for name, (columns, trials) in groups.items():
        if name in wanted:
            rows = {label: trial() for label, trial in trials.items()}
            print(f"{name}\n{table(rows, columns)}\n", flush=True)
            results[name] = rows
    if "composition" in wanted:
        row = composition(replace(short, frames=8 if args.quick else CYCLE), args.out)
        print("composition\n" + "\n".join(f"{k:34}{v if isinstance(v, str) else round(v, 3):>18}" for k, v in row.items()))
        results["composition"] = row
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "ayg.json", results)


if __name__ == "__main__":
    main()
