"""Benchmark cases of machines made here, in the layout of ``bench --cases``: rigid parts about hinges, and parts that rise.

python -m anchor4d.training.machine_cases --out FOLDER [--only NAME ...] [--size PIXELS]
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.mesh import Mesh
from .motion_cases import write_case

log = logging.getLogger(__name__)

FRAMES, SIZE, FOVY, FPS = 16, 256, 40.0, 12.0
X, Y, Z = np.eye(3)


def turn(axis: np.ndarray, degrees: float, at: np.ndarray) -> np.ndarray:  # (4, 4)
    """A turn about an axis through a place."""
    a = math.radians(degrees)
    k = np.cross(np.eye(3), axis)  # k v = axis x v
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3) + math.sin(a) * k + (1 - math.cos(a)) * (k @ k)
    matrix[:3, 3] = at - matrix[:3, :3] @ at
    return matrix


def shift(by: np.ndarray) -> np.ndarray:  # (4, 4)
    matrix = np.eye(4)
    matrix[:3, 3] = by
    return matrix


#: Where a part is at a share of the clip in [0, 1), as a matrix.
Path4 = Callable[[float], np.ndarray]


@dataclass
class Part:
    """A rigid part.

    Args:
        vertices, faces, colors: (V, 3), (F, 3), (V, 4) sRGB.
        moves: its motion.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray
    moves: Path4


class Machine:
    """A machine under construction."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.parts: list[Part] = []

    def _add(self, mesh: Any, color: tuple[float, float, float], moves: Path4) -> None:
        vertices, faces = np.asarray(mesh.vertices)[np.asarray(mesh.faces).reshape(-1)], None
        faces = np.arange(len(vertices)).reshape(-1, 3)
        shade = self.random.uniform(0.6, 1.15, (len(faces), 1)).repeat(3, 0).reshape(-1, 1)
        tint = np.clip(np.array(color) * shade + self.random.normal(0, 0.03, (len(faces), 3)).repeat(3, 0), 0, 1)
        self.parts.append(Part(vertices, faces, np.concatenate([tint, np.ones((len(vertices), 1))], 1), moves))

    def box(
        self, centre: Any, size: Any, color: tuple[float, float, float], moves: Path4, turned: np.ndarray | None = None
    ) -> None:  # fmt: skip
        import trimesh

        mesh: Any = trimesh.creation.box(size).subdivide().subdivide()
        mesh.apply_transform(np.eye(4) if turned is None else turned)
        mesh.apply_translation(centre)
        self._add(mesh, color, moves)

    def rod(self, start: Any, end: Any, radius: float, color: tuple[float, float, float], moves: Path4) -> None:
        import trimesh

        mesh: Any = trimesh.creation.cylinder(radius, segment=[start, end], sections=16).subdivide()
        self._add(mesh, color, moves)


def still(share: float) -> np.ndarray:
    return np.eye(4)


def turbine(m: Machine) -> None:
    """Three blades about a hub on a tower."""
    hub = np.array([0, 0.35, 0.12])
    m.rod([0, -0.5, 0], [0, 0.33, 0], 0.03, (0.85, 0.85, 0.9), still)
    m.box([0, 0.35, 0.02], [0.08, 0.08, 0.18], (0.9, 0.4, 0.2), still)

    def spin(share: float) -> np.ndarray:
        return turn(Z, 120 * share, hub)

    m.rod(hub - 0.02 * Z, hub + 0.04 * Z, 0.04, (0.8, 0.2, 0.2), spin)
    for k, color in enumerate([(0.9, 0.9, 0.3), (0.3, 0.7, 0.9), (0.4, 0.9, 0.4)]):
        about = turn(Z, 120 * k + 20, np.zeros(3))
        m.box(hub + about[:3, :3] @ (0.21 * Y), [0.07, 0.38, 0.015], color, spin, about)


def chest(m: Machine) -> None:
    """A lid about the back edge of a box."""
    m.box([0, -0.15, 0], [0.8, 0.3, 0.5], (0.6, 0.4, 0.2), still)
    hinge = np.array([0, 0.0, -0.25])
    m.box([0, 0.07, 0], [0.8, 0.12, 0.5], (0.8, 0.6, 0.2), lambda s: turn(X, -45 * (1 - math.cos(2 * math.pi * s)), hinge))
    m.box([0, 0.05, 0.27], [0.08, 0.08, 0.03], (0.9, 0.9, 0.5), lambda s: turn(X, -45 * (1 - math.cos(2 * math.pi * s)), hinge))


def gate(m: Machine) -> None:
    """Two wings about upright hinges in a frame."""
    m.box([-0.47, 0, 0], [0.06, 0.8, 0.08], (0.4, 0.4, 0.45), still)
    m.box([0.47, 0, 0], [0.06, 0.8, 0.08], (0.4, 0.4, 0.45), still)
    m.box([0, 0.43, 0], [1.0, 0.06, 0.08], (0.5, 0.4, 0.4), still)
    for side, color in ((-1, (0.2, 0.5, 0.8)), (1, (0.8, 0.5, 0.2))):
        hinge = np.array([0.44 * side, 0, 0])

        def swing(s: float, side: int = side, hinge: np.ndarray = hinge) -> np.ndarray:
            return turn(Y, side * 35 * (1 - math.cos(2 * math.pi * s)), hinge)

        m.box([0.22 * side, -0.0, 0], [0.42, 0.74, 0.03], color, swing)


def digger(m: Machine) -> None:
    """A turning body with an arm of two links and a bucket."""
    m.box([0, -0.3, 0], [0.5, 0.12, 0.36], (0.25, 0.25, 0.28), still)

    def body(s: float) -> np.ndarray:
        return turn(Y, 35 * math.sin(2 * math.pi * s), np.zeros(3))

    def boom(s: float) -> np.ndarray:
        return body(s) @ turn(Z, 14 * math.sin(2 * math.pi * s), np.array([0.14, -0.1, 0]))

    def stick(s: float) -> np.ndarray:
        return boom(s) @ turn(Z, 22 * (1 - math.cos(2 * math.pi * s)), np.array([0.45, 0.28, 0]))

    m.box([-0.02, -0.14, 0], [0.36, 0.2, 0.3], (0.9, 0.7, 0.1), body)
    angle = math.degrees(math.atan2(0.38, 0.31))
    m.box([0.295, 0.09, 0], [0.5, 0.08, 0.08], (0.9, 0.55, 0.1), boom, turn(Z, angle, np.zeros(3)))
    m.box([0.52, 0.1, 0], [0.07, 0.4, 0.07], (0.8, 0.3, 0.1), stick, turn(Z, 20, np.zeros(3)))
    m.box([0.6, -0.12, 0], [0.14, 0.1, 0.16], (0.5, 0.5, 0.5), stick)


def crane(m: Machine) -> None:
    """A jib that turns about an upright mast."""
    m.box([0, -0.47, 0], [0.3, 0.06, 0.3], (0.5, 0.5, 0.5), still)
    m.rod([0, -0.45, 0], [0, 0.3, 0], 0.035, (0.9, 0.7, 0.1), still)

    def slew(s: float) -> np.ndarray:
        return turn(Y, 55 * math.sin(2 * math.pi * s), np.zeros(3))

    m.box([0.15, 0.34, 0], [0.8, 0.06, 0.06], (0.9, 0.3, 0.1), slew)
    m.box([-0.2, 0.3, 0], [0.1, 0.12, 0.12], (0.4, 0.4, 0.45), slew)
    m.rod([0.45, 0.32, 0], [0.45, 0.05, 0], 0.012, (0.2, 0.2, 0.2), slew)
    m.box([0.45, 0.02, 0], [0.1, 0.08, 0.1], (0.2, 0.4, 0.8), slew)


def columns(m: Machine) -> None:
    """Columns that rise out of a base."""
    m.box([0, -0.25, 0], [0.9, 0.4, 0.5], (0.5, 0.45, 0.4), still)
    for k in range(4):

        def rise(s: float, k: int = k) -> np.ndarray:
            return shift(0.15 * (1 - math.cos(2 * math.pi * s + 0.5 * k) - (1 - math.cos(0.5 * k))) * Y)

        color = tuple(np.roll([0.9, 0.5, 0.2], k)) if k < 3 else (0.7, 0.3, 0.8)
        m.box([-0.33 + 0.22 * k, -0.14 + 0.03 * k, 0.06 * (-1) ** k], [0.14, 0.5, 0.14], color, rise)  # type: ignore[arg-type]


#: By name: what builds it, and degrees that it is turned from the camera.
MACHINES: dict[str, tuple[Callable[[Machine], None], float]] = {
    "turbine_spin": (turbine, 35), "chest_lid": (chest, 30), "gate_swing": (gate, -20), "digger_dig": (digger, 15),
    "crane_slew": (crane, 25), "columns_rise": (columns, 20),
}  # fmt: skip


def posed(name: str, frames: int = FRAMES) -> tuple[list[Mesh], np.ndarray]:
    """The machine at each frame, longest side 1 in the first, and the part of each vertex (V,)."""
    build, degrees = MACHINES[name]
    machine = Machine(list(MACHINES).index(name))
    build(machine)
    counts = [len(part.vertices) for part in machine.parts]
    faces = np.concatenate([part.faces + start for part, start in zip(machine.parts, np.cumsum([0, *counts[:-1]]))])
    colors = torch.from_numpy(np.concatenate([part.colors for part in machine.parts])).float()
    meshes = []
    for frame in range(frames):
        matrices = [part.moves(frame / frames) for part in machine.parts]
        places = [p.vertices @ a[:3, :3].T + a[:3, 3] for p, a in zip(machine.parts, matrices)]
        points = torch.from_numpy(np.concatenate(places)).float()
        meshes.append(Mesh(points, torch.from_numpy(faces), vertex_colors=colors, name=name).turned(degrees))
    matrix = meshes[0].normalized()[1].float()
    moving = [np.concatenate([part.moves(f / frames).reshape(-1) for f in range(frames)]) for part in machine.parts]
    _, body = np.unique(np.round(moving, 6), axis=0, return_inverse=True)  # parts that move as one are one
    return [mesh.transformed(matrix) for mesh in meshes], np.repeat(body.reshape(-1), counts)


def make(name: str, out: Path, size: int = SIZE) -> None:
    """Films and mesh of a machine in ``out/name``."""
    meshes, _ = posed(name)
    meshes[0] = replace(meshes[0], name=name)
    write_case(out / name, meshes, fps=FPS, size=size, fovy=FOVY, source="generated", licence="CC0-1.0")
    log.info("%s: %d triangles", name, len(meshes[0].faces))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(MACHINES), choices=list(MACHINES))
    parser.add_argument("--size", type=int, default=SIZE)
    options = parser.parse_args()
    for name in options.only:
        make(name, options.out, options.size)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
