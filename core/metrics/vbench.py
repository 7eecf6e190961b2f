"""The dimensions of VBench (Huang et al., CVPR 2024) that Align4D reports, measured by its public package.

The package fetches what it lacks by itself, with a program it starts. Here it is asked only by name, and only where all that a
dimension needs lies in its folder already: nothing is fetched that was not asked for. It pins old versions of numpy and
transformers, so it is installed in an environment of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ..files import InputError
from ..io import write_mp4
from .base import Footage, metric

#: What each dimension reads below the package's folder, and where its makers publish it.
NEEDED = {
    "subject_consistency": ("dino_model/dino_vitbase16_pretrain.pth", "dino_model/facebookresearch_dino_main/hubconf.py"),
    "background_consistency": ("clip_model/ViT-B-32.pt",),
    "aesthetic_quality": ("clip_model/ViT-L-14.pt", "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"),
    "imaging_quality": ("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",),
}


def vbench_folder() -> Path:
    """Where the package keeps its networks: VBENCH_CACHE_DIR, else its folder in the user's cache."""
    return Path(os.environ.get("VBENCH_CACHE_DIR") or Path.home() / ".cache" / "vbench")


def _measured(footage: Footage, dimension: str) -> dict[str, float]:
    absent = [str(vbench_folder() / name) for name in NEEDED[dimension] if not (vbench_folder() / name).is_file()]
    if absent:
        raise InputError(f"vbench {dimension}: put {' and '.join(absent)} there, see VBench's page; nothing is fetched here")
    package = importlib.import_module("vbench")

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, images) in enumerate(footage.views.items()):
            film = Path(folder) / f"{number}.mp4"
            write_mp4(film, images[..., :3], footage.fps, quality=1)
            bench = package.VBench(footage.device, "", folder)
            bench.evaluate(str(film), str(number), dimension_list=[dimension], local=True, mode="custom_input")
            found[name] = _result(Path(folder) / f"{number}_eval_results.json", dimension)
    return found


def _result(path: Path, dimension: str) -> float:
    return float(json.loads(path.read_text(encoding="utf-8"))[dimension][0])


FACTS: dict[str, Any] = {"better": "higher", "packages": ("vbench",), "by_name": True}


@metric("vbench-subject", text="VBench's subject consistency: DINO features over time", frames=2, **FACTS)
def _subject(footage: Footage) -> dict[str, float]:
    return _measured(footage, "subject_consistency")


@metric("vbench-background", text="VBench's background consistency: CLIP over time", frames=2, **FACTS)
def _background(footage: Footage) -> dict[str, float]:
    return _measured(footage, "background_consistency")


@metric("vbench-aesthetic", text="VBench's aesthetic quality: LAION's predictor", **FACTS)
def _aesthetic(footage: Footage) -> dict[str, float]:
    return _measured(footage, "aesthetic_quality")


@metric("vbench-imaging", text="VBench's imaging quality: MUSIQ", **FACTS)
def _imaging(footage: Footage) -> dict[str, float]:
    return _measured(footage, "imaging_quality")
