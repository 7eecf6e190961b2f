"""What the command line's fit takes of several objects of one clip. Imports nothing heavy: help is instant."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.files import InputError


def _size(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1e-6 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: choose a size from 1e-06 to 1e+06")
    return value


def add_objects(made: argparse.ArgumentParser) -> None:
    """The options about several objects."""
    made.add_argument(
        "--masks",
        nargs="*",
        metavar="DIR|FILE",
        help="several objects, fitted apart and composed: a mask for each, or label pictures with a colour for each; without a "
        "path: the foreground's separate parts, from the left",
    )
    made.add_argument(
        "--ground",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether the objects of --masks stand on one ground, which tells their depths (default: auto)",
    )
    made.add_argument(
        "--sizes",
        nargs="+",
        type=_size,
        metavar="N",
        help="longest sides of the objects of --masks beside each other, which tell their depths in place of the ground",
    )


def check_objects(args: argparse.Namespace, several: bool, follows: str) -> None:
    """Refuse what several objects of a clip do not take, and words about them where there is one."""
    if not several:
        for name, default in (("ground", "auto"), ("sizes", None)):
            if getattr(args, name) != default:
                raise InputError(f"--{name}: places several objects of a clip; give --masks, or leave it out")
        return
    if follows == "text" or args.video is None:
        raise InputError("--masks: several objects are those of one clip; give --video, and a method that follows it")
    for name in ("mask", "image", "depth", "tracks", "flow", "view"):
        if getattr(args, name):
            raise InputError(f"--{name}: is of a clip with one object; leave it out where there are several (--masks)")
    for name in args.masks or ():
        if not Path(name).exists():
            raise InputError(f"--masks {name}: no such film, folder or picture, check the path")


def fit_objects(
    args: argparse.Namespace, objects: Sequence[str], settings: Any, links: Mapping[str, str], reading: Any, console: Any
) -> Any:
    """The run of all objects, None where it was finished before."""
    from ..core.generate.chain import Links
    from ..core.runs.several import Placing, run_objects

    return run_objects(
        args.video,
        args.out,
        settings,
        masks=args.masks or (),
        objects=[None if name == "auto" else name for name in objects],
        placing=Placing(args.ground, None if args.sizes is None else tuple(args.sizes)),
        links=Links(**links),
        prompt=args.prompt or "",
        fps=args.fps,
        resume=args.resume,
        reading=reading,
        progress=console.watch(args.out),
        read=console.reading(Path(args.video)),
    )
