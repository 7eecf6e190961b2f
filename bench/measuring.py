"""The commands ``measure`` and ``compare``: their arguments, and what they call. Whatever is heavy is imported inside."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.files import InputError

if TYPE_CHECKING:
    from ..console import Console

MEASURE = "measure a result by itself, or against a reference, a text or a picture"
COMPARE = "put runs of one clip side by side on a page, with a frozen and a per-frame baseline"


def measure(args: argparse.Namespace, console: Console) -> int:
    """Run the command; returns its exit code."""
    from ..core.runs.measure import measure_files
    from ..core.runs.report import write_json
    from ..core.runs.session import resolve_device

    if args.metrics == []:
        from ..core.metrics.base import METRICS

        print("\n".join(f"{name:18} {each.text} ({each.better} = better)" for name, each in METRICS.items()))
        return 0
    if args.result is None:
        raise InputError("measure: give a result; --metrics alone lists what can be measured")
    found = measure_files(
        args.result,
        args.reference,
        args.metrics,
        text=args.text,
        image=args.image,
        azimuths=args.azimuths,
        up=args.up,
        device=resolve_device(args.device),
        progress=console.counting("measure"),
    )
    print(found.table())
    if args.out is not None:
        write_json(args.out, {"values": found.values, "left_out": found.left_out})
    return 0


def compare(args: argparse.Namespace, console: Console) -> int:
    """Run the command; returns its exit code."""
    from ..core.runs import compare

    print(compare.compare(args.runs, args.out, args.case, progress=console.counting("compare")))
    return 0


def add_measure(made: argparse.ArgumentParser) -> None:
    """Arguments of ``measure``, but for those that other commands share."""
    about = "scene, splats, a run's folder, a folder of views AZIMUTH/, a film"
    made.add_argument("result", nargs="?", type=Path, metavar="RESULT", help=about)
    made.add_argument("reference", nargs="?", type=Path, metavar="REFERENCE", help="a benchmark case, or any of these")
    made.add_argument(
        "--metrics", nargs="*", metavar="NAME", help="what to measure (default: all that can be); without names: list them"
    )
    made.add_argument("--text", default="", metavar="TEXT", help="what the object is and does")
    made.add_argument("--image", metavar="FILE", help="a picture of the object")
    made.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="of networks (default: auto)")
    made.add_argument("--out", type=Path, metavar="FILE", help="all values as JSON as well, by view")


def add_compare(made: argparse.ArgumentParser) -> None:
    """Arguments of ``compare``."""
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs, or scenes")
    made.add_argument(
        "--case", type=Path, metavar="DIR", help="benchmark case that they are of: its true views are shown and measured"
    )
    made.add_argument("--out", type=Path, default=Path("compare.html"), metavar="FILE", help="page (default: %(default)s)")
