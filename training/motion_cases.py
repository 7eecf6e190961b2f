"""Benchmark cases of animated models whose families the motion prior never saw, in the layout of ``bench --cases``.

python -m anchor4d.training.motion_cases LIST --files DIR --out FOLDER [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.cameras import orbit
from ..core.files import InputError
from ..core.io import write_frames
from ..core.io.gltf import Gltf
from ..core.io.gltf_parts import gltf_parts
from ..core.io.meshes import write_glb
from ..core.io.parts import joined
from ..core.io.rig import write_rigged_mesh
from ..core.mesh import Mesh
from ..core.render.mesh import render_mesh
from .motion_clips import checked_out, pose
from .motion_prior import HELD_FAMILIES

log = logging.getLogger(__name__)

AZIMUTHS = (-75, 15, 105, 195)
FRAMES, SIZE, FOVY = 16, 256, 45.0


@dataclass(frozen=True)
class Shot:
    """A clip of a model, filmed: part of the file's path, words of the clip's name, degrees that the model is turned."""

    path: str
    clip: str
    turn: float = 0.0


SHOTS = {
    "rat_run": Shot("Rat.glb", "run", 35),
    "dragon_fly": Shot("dragonevolved.glb", "fly", 20),
    "bee_fly": Shot("Bee.glb", "fly", 60),
    "tank_drive": Shot("tank_pack/Tank.glb", "", 40),
    "walker_walk": Shot("Enemy_2Legs.glb", "walk", 30),
    "knight_run": Shot("KnightCharacter.glb", "run", 0),
    "demon_walk": Shot("Enemies/Demon.gltf", "walk", 25),
    "gnome_walk": Shot("gnome_n64", "walk", 0),
    "hedgehog_walk": Shot("Hedgehog.gltf", "walk", 80),
    "mannequin_run": Shot("mannequiny-0.3.0.glb", "run", 20),
    "chest_open": Shot("Chest.glb", "open", 30),
}


def posed(gltf: Gltf, index: int, times: np.ndarray) -> list[Mesh]:
    """The model at given seconds of an animation."""
    meshes = []
    for time in times:
        pose(gltf, index, float(time))
        meshes.append(joined(gltf_parts(gltf), gltf.path))
    return meshes


def span(gltf: Gltf, index: int) -> tuple[float, float]:
    """The first and the last second of an animation."""
    samplers = gltf.all("animations")[index].entries("samplers")
    keys = [gltf.floats(s.whole("input"), "SCALAR")[:, 0] for s in samplers]
    return min(float(k[0]) for k in keys), max(float(k[-1]) for k in keys)


def write_case(folder: Path, meshes: Sequence[Mesh], *, fps: float, size: int, fovy: float = FOVY, **about: str) -> None:
    """A case from an object's meshes, one a frame: films from all sides, the first mesh with its rig, what they are.

    Args:
        folder: its name is the case's.
        size: of the pictures.
        fovy: degrees.
        about: what else ``case.json`` says.
    """
    reach = max(float(mesh.vertices.norm(dim=-1).max()) for mesh in meshes)
    distance = reach / math.sin(math.radians(fovy / 2)) * 1.03
    cameras = orbit([0.0, *AZIMUTHS], 0.0, distance, fovy, size, size)
    films: list[list[torch.Tensor]] = [[] for _ in range(len(AZIMUTHS) + 1)]
    depths = []
    for mesh in meshes:
        drawn = render_mesh(mesh, cameras, torch.zeros(3))
        color = drawn.color / drawn.alpha[..., None].clamp_min(1e-4)
        for film, picture in zip(films, torch.cat([color.clamp(0, 1), drawn.alpha[..., None]], -1), strict=True):
            film.append(picture)
        depths.append(torch.where(drawn.depth[0] > 0, 1 / drawn.depth[0].clamp_min(1e-6), torch.nan).half().numpy())
    folder.mkdir(parents=True, exist_ok=True)
    for view, film in zip(("front", *(f"views/{a}" for a in AZIMUTHS)), films, strict=True):
        (folder / view).parent.mkdir(parents=True, exist_ok=True)
        write_frames(folder / view, film)
    np.savez_compressed(folder / "depth.npz", allow_pickle=False, depth=np.stack(depths))
    (write_glb if meshes[0].skin is None else write_rigged_mesh)(folder / "mesh.glb", meshes[0])
    described = {
        "name": folder.name, "frames": len(meshes), "fps": fps, "image_size": size, "test_azimuths": list(AZIMUTHS),
        "camera": {"fovy_degrees": fovy, "distance": distance, "elevation": 0, "azimuth": 0}, **about,
    }  # fmt: skip
    (folder / "case.json").write_text(json.dumps(described, indent=1))


def make(name: str, shot: Shot, entries: list[dict[str, Any]], files: Path, out: Path) -> None:
    entry = next(e for e in entries if shot.path in e["path"] and not e.get("twin_of"))
    if entry["family"] not in HELD_FAMILIES:
        raise InputError(f"{name}: its family {entry['family']} was trained on; choose another")
    gltf = Gltf(checked_out(files, entry))
    names = [animation.text("name").lower() for animation in gltf.all("animations")]
    fitting = [i for i, text in enumerate(names) if shot.clip in text] or list(range(len(names)))
    index = fitting[0]
    first, last = span(gltf, index)
    length = min(last - first, 2.0)
    loops = length == last - first
    times = first + length * np.arange(FRAMES) / (FRAMES if loops else FRAMES - 1)
    meshes = [mesh.turned(shot.turn) for mesh in posed(gltf, index, times)]
    matrix = meshes[0].normalized()[1].float()
    meshes = [mesh.transformed(matrix) for mesh in meshes]
    write_case(
        out / name, meshes, fps=FRAMES / length, size=SIZE, clip=names[index], source=f"{entry['repo']} {entry['path']}",
        licence=entry["licence"], credit=entry.get("credit", ""),
    )  # fmt: skip
    log.info("%s: %s, %.2f s, %d triangles", name, names[index], length, len(meshes[0].faces))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("list", type=Path)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(SHOTS))
    options = parser.parse_args()
    entries = json.loads(options.list.read_text())
    for name in options.only:
        make(name, SHOTS[name], entries, options.files, options.out)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
