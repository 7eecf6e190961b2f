"""Times of the mesh renderer, and its pictures against others': python -m anchor4d.bench.render_mesh [--cases DIR].

The scene: a bumpy ball of 20,000 triangles with a 1024 x 1024 texture, six views around it that it covers by about a third.
With ``--cases``, also the PSNR of each benchmark case's model, seen by the true camera, against the case's pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ..core.cameras import orbit
from ..core.io.meshes import load_mesh
from ..core.mesh import Mesh
from ..core.pictures import open_picture
from ..core.render.mesh import render_mesh, resolve_backend


def bumpy_ball(side: int = 100, texture: int = 1024) -> Mesh:
    """2 side^2 triangles, unwrapped by longitude and latitude, with a chequered, coloured texture."""
    turns, pitches = torch.linspace(0, 2 * math.pi, side + 1), torch.linspace(0, math.pi, side + 1)
    theta, phi = torch.meshgrid(pitches, turns, indexing="ij")
    radius = 0.4 + 0.1 * torch.sin(5 * phi) * torch.sin(theta) ** 2 + 0.05 * torch.cos(7 * theta)
    points = radius[..., None] * torch.stack([theta.sin() * phi.sin(), theta.cos(), theta.sin() * phi.cos()], -1)
    corner = (torch.arange(side)[:, None] * (side + 1) + torch.arange(side)).reshape(-1)
    below = corner + side + 1
    faces = torch.cat([torch.stack([corner, below, below + 1], -1), torch.stack([corner, below + 1, corner + 1], -1)])
    row, column = torch.meshgrid(torch.arange(texture), torch.arange(texture), indexing="ij")
    checks = (column // 32 + row // 32) % 2 * 0.6 + 0.2
    picture = torch.stack([checks, column / texture, row / texture, torch.ones_like(checks)], -1)
    uvs = torch.stack([phi / (2 * math.pi), theta / math.pi], -1)
    return Mesh(points.reshape(-1, 3), faces, uvs=uvs.reshape(-1, 2), textures=(picture,))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m anchor4d.bench.render_mesh", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--sizes", type=int, nargs="*", default=[128, 256, 512])
    parser.add_argument("--cases", type=Path)
    args = parser.parse_args(argv)
    mesh, backend = bumpy_ball().to(args.device), resolve_backend(args.backend, args.device)
    cameras = orbit([0.0, 60, 120, 180, 240, 300], 10.0, 2.0, 40.0).to(args.device)
    wait = torch.cuda.synchronize if mesh.vertices.device.type == "cuda" else lambda: None
    begin = time.perf_counter()
    cover = float((render_mesh(mesh, cameras, backend=backend).alpha > 0).float().mean())
    first = time.perf_counter() - begin
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    print(f"{backend}: {len(mesh.faces)} triangles, 6 views, covered {cover:.0%}; first call {first:.2f} s, load {load:.1f}")
    for size in args.sizes:
        for supersample in (1, 2):
            wall, processor = [], []
            for _ in range(args.repeat):
                begin, spent = time.perf_counter(), time.process_time()
                render_mesh(mesh, cameras.resized(size, size), supersample=supersample, backend=backend)
                wait()
                wall.append((time.perf_counter() - begin) * 1e3)
                processor.append((time.process_time() - spent) * 1e3)
            print(
                f"{size:4d} px, {supersample**2} samples a pixel: median {statistics.median(wall):6.2f} ms, "
                f"fastest {min(wall):6.2f} ms, least processor time of all threads {min(processor):6.1f} ms"
            )
    for case in sorted(args.cases.glob("*/case.json")) if args.cases else ():
        compare(case, backend)
    return 0


def compare(case: Path, backend: str) -> None:
    """Prints the PSNR inside the silhouette and the largest difference of alpha, over the first frames of all views."""
    camera = json.loads(case.read_text())["camera"]
    views = {0: case.parent / "front", **{int(p.name): p for p in (case.parent / "views").iterdir()}}
    truth = torch.stack([torch.from_numpy(np.array(open_picture(p / "000.png"))).float() / 255 for p in views.values()])
    cameras = orbit(list(views), camera["elevation"], camera["distance"], camera["fovy_degrees"], *truth.shape[2:0:-1])
    line = f"{case.parent.name:18s}"
    for mipmaps in (False, True):
        found = render_mesh(load_mesh(case.parent / "mesh.glb"), cameras, mipmaps=mipmaps, backend=backend)
        inside = (truth[..., 3] == 1) & (found.alpha == 1)
        error = (found.color - truth[..., :3])[inside].square().mean()
        wrong = int(((found.alpha - truth[..., 3]).abs() > 0.01).sum())
        line += f"  {'mipmaps' if mipmaps else 'points'} {-10 * math.log10(error):5.1f} dB"
    print(f"{line}  pixels of another alpha: {wrong}")


if __name__ == "__main__":
    sys.exit(main())
