"""Align Your Gaussians: what its modules give, under a score that is known exactly, or under models."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ...core.deformation import TimeGatedMLP
from ...core.files import InputError
from ...core.methods import stages
from ...core.progress import Progress
from ...core.runs.report import memory_peak_mb, versions
from ...core.runs.session import Run, Settings, run
from ..ayg import FRONT, Trial, measure
from . import Variant, study

#: Of the whole row: a score that does not see where the object is, at a rate that does not fall, so that it may drift;
#: rigidity a third of the method's, so that amplification matters.
WHOLE: dict[str, Any] = {"blind": True, "stay": 0.3, "rigidity": 3.0, "omega": 2.0, "clips": 2, "steps": 200, "lr_final": 1.0}
PROMPT = "a small creature walking"


def moving(
    variant: Variant, options: Any, out: Path, checkpoints: Path, key: str, progress: Progress | None
) -> tuple[Run, dict[str, float]]:
    """The walking sample at rest, which is to move: by its exact score, or by the text-to-video model that is named."""
    if options.prior in ("auto", "none", "tiny", "exact"):
        return _exact(variant, options, checkpoints, key, progress)
    settings = Settings(
        method="ayg", preset=options.preset, seed=options.seed, device=options.device, renderer=options.renderer,
        video=options.prior, frames=options.frames, **variant.settings,
    )  # fmt: skip
    made = run(None, None, settings, prompt=options.prompt or PROMPT, progress=progress, checkpoints=checkpoints, identity=key)
    return made, _ways(made)


def _exact(
    variant: Variant, options: Any, checkpoints: Path, key: str, progress: Progress | None
) -> tuple[Run, dict[str, float]]:
    if variant.needs:
        raise InputError(
            f"{variant.name}: {' and '.join(variant.needs)} have no exact score; give --prior modelscope or another"
        )
    trial = Trial(**{**WHOLE, **variant.trial, "seed": options.seed})
    if options.size:
        trial = replace(trial, size=options.size, gaussians=min(trial.gaussians, 12 * options.size))
    trial = replace(trial, steps=max(1, round(trial.steps * options.steps)), frames=options.frames or trial.frames)
    truth, still = trial.start()
    began = time.perf_counter()
    torch.manual_seed(trial.seed)
    field = TimeGatedMLP.around(truth.gaussians, lr=trial.lr)
    scene = stages.fit_motion(
        None, still, trial.config(truth), field=field, seed=trial.seed, progress=progress,
        checkpoint=checkpoints / "motion.safetensors", identity=key,
    )  # fmt: skip
    seconds = {"3D to 4D": round(time.perf_counter() - began, 3)}
    found = measure(truth, scene)
    report = {
        "method": "ayg", "preset": "exact", "seed": trial.seed, "prior": "exact", "settings": asdict(trial), "device": "cpu",
        "renderer": "auto", "threads": torch.get_num_threads(), "loops": scene.loop,
        "versions": versions(), "seconds": seconds, "memory_peak_mb": memory_peak_mb(), "gaussians": len(scene.gaussians),
        "frames": scene.frames, "losses": scene.meta["losses"],
    }  # fmt: skip
    names = ("motion", "moved", "centre", "path")
    return Run(replace(scene, front=FRONT), report), {name: found[name] for name in names}


def _ways(made: Run) -> dict[str, float]:
    with torch.no_grad():
        delta = made.scene.at(made.scene.taus).means
        delta = delta - delta[:1]
    centre = delta.mean(1)
    return {
        "moved": float((delta - centre[:, None]).square().sum(-1).mean().sqrt()),
        "centre": float(centre.norm(dim=-1).max()),
        "path": float((centre[1:] - centre[:-1]).norm(dim=-1).sum()),
    }


study(
    "ayg-modules",
    method="ayg",
    run=moving,
    question="What do the modules of Align Your Gaussians give?",
    paper="Align Your Gaussians, preferences with against without: JSD 45.8 to 13.3, motion amplification 50.0 to 16.7 (amount "
    "of motion 45.1 to 23.6), text-to-image model for the motion 48.3 to 13.3, view guidance 40.0 to 20.0 (3D appearance).",
    limits="No text-to-video model: the exact score of the walking sample's clips takes its place, blind to where the object "
    "is. It shows what the modules do to a motion, not how good a text's motion looks. Text-to-image model and view guidance "
    "shape looks, and have no exact score: their rows run where --prior names a text-to-video model.",
    numbers=("motion", "moved", "centre", "path", "seconds"),
    drawn=("motion", "moved", "centre"),
    variants=(
        Variant("whole"),
        Variant("no JSD", settings={"without": ("jsd",)}, trial={"stay": 0.0}),
        Variant("no rigidity", settings={"without": ("rigidity",)}, trial={"rigidity": 0.0}),
        Variant("no amplification", settings={"without": ("amplification",)}, trial={"omega": 1.0}),
        Variant("no text-to-image model", settings={"without": ("image",)}, needs=("sd21-base",)),
        Variant("no view guidance", settings={"without": ("view-guidance",)}, needs=("mvdream", "sd21-base")),
    ),
)
