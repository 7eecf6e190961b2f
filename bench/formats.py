"""Sizes and times of every file format: python -m anchor4d.bench.formats [--scene FILE] [--gaussians N] [--frames N].

Writes one scene in each format the program knows, from the bundled sample unless a scene is given, and prints the bytes, the
bytes a Gaussian and frame, and the seconds. A format whose optional package is missing says so in its row.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from ..core.files import InputError
from ..core.io.export import FORMATS, Shot, export_scene
from ..core.io.sequence import open_scene
from ..core.runs.sample import sample_scene


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m anchor4d.bench.formats", description=__doc__)
    parser.add_argument("--scene", type=Path, help="any scene; the bundled sample where none is given")
    parser.add_argument("--gaussians", type=int, default=20_000, help="of the sample")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--only", nargs="+", choices=tuple(FORMATS), default=tuple(FORMATS))
    parser.add_argument("--out", type=Path, help="keep the files in this folder")
    args = parser.parse_args()
    scene = sample_scene(args.gaussians, args.frames) if args.scene is None else open_scene(args.scene)
    if args.scene is None:  # the first picture compiles the renderer, the first glb imports its readers
        with tempfile.TemporaryDirectory() as folder:
            export_scene(sample_scene(500, 2), Path(folder) / "warm.mp4", "mp4", shot=Shot(size=32))
    print("| format | MB | bytes a Gaussian and frame | seconds |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            form = FORMATS[name]
            suffix = ".zip" if ".zip" in form.suffixes else form.suffixes[0]
            target = (args.out or Path(folder)) / f"{name}{suffix}"
            shot = Shot(size=512, background=form.backgrounds[0]) if form.kind == "film" else None
            began = time.perf_counter()
            try:
                export_scene(scene, target, name, frames=args.frames if "frames" in form.takes else None, shot=shot)
            except InputError as error:
                print(f"| {name} | {error} | | |", flush=True)
                continue
            seconds = time.perf_counter() - began
            size = sum(p.stat().st_size for p in (target.rglob("*") if target.is_dir() else [target]))
            each = "" if form.kind == "film" else f"{size / (len(scene.gaussians) * args.frames):.1f}"
            print(f"| {name} | {size / 1e6:.2f} | {each} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
