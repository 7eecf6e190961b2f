"""Camera alignment on a folder of benchmark cases, against their true cameras.

    python -m anchor4d.bench.align --cases DIR [--turns 37 90 180 251]

Prints, for each case, the errors of the robust and of the literal search, of front detection for meshes turned about +Y, resized and
moved, and the front PSNR after a mesh without its texture was coloured from the frame. The mesh renderer is compiled beforehand.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch

from ..core.align import align_camera, color_from_frame
from ..core.cameras import FrontCamera
from ..core.mesh import Mesh, load_mesh
from ..core.render.mesh import render_mesh
from ..core.video import load_video


def placed(mesh: Mesh, turn: float) -> Mesh:
    """The mesh turned about +Y, resized and moved, as a file from elsewhere would be."""
    matrix = torch.diag(torch.tensor([3.7, 3.7, 3.7, 1.0]))
    matrix[:3, 3] = torch.tensor([0.8, -2.0, 5.0])
    return mesh.turned(turn).transformed(matrix)


def untextured(mesh: Mesh) -> Mesh:
    """The shape alone."""
    return Mesh(mesh.vertices, mesh.faces, name=mesh.name)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m anchor4d.bench.align", description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--turns", type=float, nargs="*", default=[])
    args = parser.parse_args(argv)
    folders = sorted(p.parent for p in args.cases.glob("*/case.json"))
    print(f"{'case':18s} {'size %':>7s} {'dist %':>7s} {'s':>5s} | {'auto %':>7s} {'yaw':>5s} {'s':>5s} | {'literal %':>9s} {'s':>5s} "
          f"| {'mask %':>7s} {'dist %':>7s} {'dB':>5s} {'s':>5s} | turns: error, degrees (s)")  # fmt: skip
    warm = True
    found, tried = 0, 0
    for folder in folders:
        case = json.loads((folder / "case.json").read_text())
        truth = case["camera"]
        extent = math.tan(math.radians(truth["fovy_degrees"]) / 2) * truth["distance"]
        video, mesh = load_video(folder / "front"), load_mesh(folder / "mesh.glb")
        if warm:
            align_camera(mesh, video, yaw=0.0)
            warm = False

        def size(front: FrontCamera) -> float:
            return 100 * (front.extent / extent - 1)

        def far(front: FrontCamera) -> float:
            return 100 * (front.distance / truth["distance"] - 1)

        robust, s_robust = timed(lambda: align_camera(mesh, video, yaw=0.0))
        auto, s_auto = timed(lambda: align_camera(mesh, video))
        literal, s_literal = timed(lambda: align_camera(mesh, video, yaw=0.0, mode="literal"))
        bare, _ = timed(lambda: align_camera(untextured(mesh), video, yaw=0.0))
        camera = bare.front.cropped(video.crop, video.resolution)
        colored, s_color = timed(lambda: color_from_frame(bare.mesh, video.frames[0], video.masks[0], camera))
        front = render_mesh(colored, camera, torch.ones(3), supersample=2).color[0]
        psnr = -10 * math.log10(float((front - video.composited()[0]).square().mean()))
        turns = []
        for turn in args.turns:
            result, s = timed(lambda: align_camera(placed(mesh, turn), video))
            error = (result.yaw + turn + 180) % 360 - 180
            tried, found = tried + 1, found + (abs(error) <= 2)
            turns.append(f"{error:+.2f} ({s:.1f})")
        print(f"{case['name']:18s} {size(robust.front):+7.3f} {far(robust.front):+7.2f} {s_robust:5.2f} | {size(auto.front):+7.3f} "
              f"{auto.yaw:+5.1f} {s_auto:5.2f} | {size(literal.front):+9.2f} {s_literal:5.2f} | {size(bare.front):+7.3f} "
              f"{far(bare.front):+7.2f} {psnr:5.1f} {s_color:5.2f} | {'  '.join(turns)}", flush=True)  # fmt: skip
    if tried:
        print(f"front found within 2 degrees: {found} of {tried}")
    return 0


def timed(function):  # noqa: ANN001, ANN201
    start = time.perf_counter()
    return function(), time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
