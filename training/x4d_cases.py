"""Generated moving objects as cases that ``batch`` and ``x4d build`` read: a film, the mesh of its first frame, what it is.

``python -m anchor4d.training.x4d_cases OUT --seeds 3 8 12``

An object is of :mod:`.objects`, seen from its front by a camera of 40 degrees at the distance where all of it stays in the
picture. Its caption says the kind that its seed drew and how it moves.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

from ..core.cameras import Cameras, orbit
from ..core.io import write_frames
from ..core.io.meshes import write_glb
from .objects import _PLANS, Objects, generate, meshes
from .render import render

FOVY = 40.0
#: What a kind is called in a caption, and what it does.
WORDS = {
    "biped": ("a toy figure on two legs", "swinging its limbs"),
    "quadruped": ("a toy animal on four legs", "swinging its legs"),
    "bird": ("a toy bird", "beating its wings"),
    "fish": ("a toy fish", "waving its body"),
    "vehicle": ("a toy vehicle", "rocking"),
    "plane": ("a toy plane", "tilting"),
    "furniture": ("a piece of toy furniture", "rocking"),
    "pot": ("a toy pot", "rocking"),
    "plant": ("a toy plant", "swaying"),
    "heap": ("a heap of toy shapes", "turning"),
    "single": ("a single toy shape", "turning"),
}


def kind_of(seed: int) -> str:
    """The kind that a seed draws first; see :func:`.objects.generate`."""
    from .objects import _Maker

    rng = np.random.default_rng([seed, 20571])
    _Maker(rng)
    weights = np.array([weight for _, weight in _PLANS.values()])
    return list(_PLANS)[rng.choice(len(_PLANS), p=weights / weights.sum())]


def write_case(out: Path, seed: int, frames: int, size: int) -> Path:
    """The case of a seed, in a folder of its own; returns it."""
    thing, taus = generate(seed), torch.arange(frames) / frames
    shapes = meshes(thing, taus.tolist())
    reach = max(float(mesh.vertices.norm(dim=-1).max()) for mesh in shapes)
    distance = 1.05 * reach / math.sin(math.radians(FOVY / 2))
    camera = orbit(0.0, 0.0, distance, FOVY, size, size)
    cameras = Cameras.cat([camera] * frames)
    color, covered = render(Objects.cat([thing[None]] * frames), taus, cameras, supersample=3)
    alpha = covered[..., None]
    # Straight colours of what was drawn on white.
    straight = ((color - (1 - alpha)) / alpha.clamp_min(1e-3)).clamp(0, 1)
    kind = kind_of(seed)
    folder = out / f"{kind}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    write_frames(folder / "front", torch.cat([straight, alpha], -1))
    write_glb(folder / "mesh.glb", shapes[0])
    described = {
        "name": folder.name, "fps": 8, "caption": f"{WORDS[kind][0]}, {WORDS[kind][1]}", "licence": "Apache-2.0",
        "credit": "Anchor4D", "source": f"training/objects.py, seed {seed}",
    }  # fmt: skip
    (folder / "case.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    for seed in args.seeds:
        print(write_case(args.out, seed, args.frames, args.size))


if __name__ == "__main__":
    main()
