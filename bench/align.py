"""Camera alignment on a folder of benchmark cases, against their true cameras.

    python -m anchor4d.bench.align --cases DIR [--turns 37 90 180 251]

One line a case: errors of the size in the picture, tan(fov / 2) times distance, and of the distance, in percent, with seconds,
of the robust search with the mesh as it is; of the same with front detection; of the literal search; of a mesh without its
texture, with the front PSNR after colouring it from the frame; then the error of front detection, in degrees, for the mesh
turned about +Y, resized and moved. The mesh renderer is compiled beforehand.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch

from ..core.align import align_camera, color_from_frame
from ..core.cameras import FrontCamera
from ..core.io.meshes import load_mesh
from ..core.io.video import load_video
from ..core.mesh import Mesh
from ..core.render.mesh import render_mesh


def placed(mesh: Mesh, turn: float) -> Mesh:
    """The mesh turned about +Y, resized and moved, as a file from elsewhere would be."""
    matrix = torch.diag(torch.tensor([3.7, 3.7, 3.7, 1.0]))
    matrix[:3, 3] = torch.tensor([0.8, -2.0, 5.0])
    return mesh.turned(turn).transformed(matrix)


def untextured(mesh: Mesh) -> Mesh:
    """The shape alone."""
    return Mesh(mesh.vertices, mesh.faces, name=mesh.name)


def measure(folder: Path, turns: list[float]) -> tuple[str, list[float]]:
    """One case's line and its errors of front detection, degrees."""
    truth = json.loads((folder / "case.json").read_text())["camera"]
    true = FrontCamera(truth["fovy_degrees"], truth["distance"], 256, 256)
    video, mesh = load_video(folder / "front"), load_mesh(folder / "mesh.glb")

    def errors(front: FrontCamera) -> str:
        return f"{100 * (front.extent / true.extent - 1):+7.3f} {100 * (front.distance / true.distance - 1):+6.2f}"

    robust, auto = align_camera(mesh, video, yaw=0.0), align_camera(mesh, video)
    literal = align_camera(mesh, video, yaw=0.0, mode="literal")
    bare = align_camera(untextured(mesh), video, yaw=0.0)
    assert isinstance(bare.mesh, Mesh)
    camera = bare.front.cropped(video.crop, video.resolution)
    colored = color_from_frame(bare.mesh, video.frames[0], video.masks[0], camera)
    picture = render_mesh(colored, camera, torch.ones(3)).color[0]
    psnr = -10 * math.log10(float((picture - video.composited()[0]).square().mean()))
    turned = [align_camera(placed(mesh, turn), video) for turn in turns]
    yaws = [(result.yaw + turn + 180) % 360 - 180 for result, turn in zip(turned, turns)]
    parts = [
        f"{folder.name:18s} {errors(robust.front)} {robust.report['seconds']:5.2f}",
        f"{errors(auto.front)} {auto.yaw:+5.1f} {auto.report['seconds']:5.2f}",
        f"{errors(literal.front)} {literal.report['seconds']:5.2f}",
        f"{errors(bare.front)} {psnr:5.1f}",
        "  ".join(f"{yaw:+6.2f} {result.report['seconds']:5.2f}" for yaw, result in zip(yaws, turned)),
    ]
    return " | ".join(parts), yaws


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m anchor4d.bench.align", description="Alignment against true cameras")
    parser.add_argument("--cases", type=Path, required=True, help="folder of cases")
    parser.add_argument("--turns", type=float, nargs="*", default=[], help="degrees to turn each mesh by for front detection")
    args = parser.parse_args(argv)
    folders = sorted(p.parent for p in args.cases.glob("*/case.json"))
    if not folders:
        parser.error(f"{args.cases}: no case.json in its folders")
    align_camera(load_mesh(folders[0] / "mesh.glb"), load_video(folders[0] / "front"))
    print(
        f"{'case':18s} {'size %':>7s} {'dist %':>6s} {'s':>5s} | {'auto: %':>7s} {'dist %':>6s} {'yaw':>5s} {'s':>5s} | "
        f"{'literal':>7s} {'dist %':>6s} {'s':>5s} | {'bare: %':>7s} {'dist %':>6s} {'dB':>5s} | yaw error, s a turn"
    )
    found: list[float] = []
    for folder in folders:
        line, yaws = measure(folder, args.turns)
        found += yaws
        print(line, flush=True)
    if found:
        one, two = (sum(abs(e) <= limit for e in found) for limit in (1, 2))
        print(f"front found within 1 degree: {one}, within 2: {two}, of {len(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
