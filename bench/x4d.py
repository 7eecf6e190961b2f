"""Sets of aligned quadruplets (text, image, video, 3D) after Align4D's X4D, made by many runs and chosen by people.

    python -m anchor4d x4d build SOURCES [--set NAME=VALUE ...] [--captioner NAME] [--least iou=0.8 ...] [--out SET]
    python -m anchor4d x4d sheets SET
    python -m anchor4d x4d choose SET [CHOICE ...] [--drop ID ...] [--also ID ...] --out CHOSEN

See docs/x4d.md. The runs are those of :mod:`.batch`, the set :mod:`..core.runs.x4d`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..console import Console
from ..core.files import InputError
from ..core.runs.batch import Job, Report
from .batch import add_running, check_running, fit_row, read_jobs, run_rows

#: Files and folders of a set, which no quadruplet can be named after.
TAKEN = ("sheets", "manifest.jsonl", "rejected.jsonl", "credits.md")


def add_options(made: argparse.ArgumentParser) -> None:
    """Options of the command."""
    steps = made.add_subparsers(metavar="STEP", required=True)
    build = steps.add_parser("build", help="make a set", description="Make a set of quadruplets, a run for each.")
    add_running(build, "sources")
    build.set_defaults(step=build_set)
    build.add_argument("--out", type=Path, default=Path("anchor4d-x4d"), metavar="SET", help="folder (default: %(default)s)")
    build.add_argument(
        "--captioner", metavar="DIR|ID",
        help="what says the text of rows that have none: a captioner of transformers, a folder or a name of models list "
        "(default: the prompt, else the row's name)",
    )  # fmt: skip
    build.add_argument("--ask", metavar="TEXT", help="the question to a captioner that chats (default: what it is and does)")
    for option, which in (("least", "least"), ("most", "most")):
        build.add_argument(
            f"--{option}", nargs="+", default=[], metavar="NAME=VALUE",
            help=f"the {which} of a measure that a quadruplet of the set has, iou=0.8; none = whatever it has; docs/x4d.md has "
            "the defaults",
        )  # fmt: skip
    build.add_argument(
        "--verdict", nargs="+", choices=("good", "doubtful", "wrong"), metavar="WORD",
        help="verdicts that stay in the set (default: good doubtful)",
    )  # fmt: skip
    choose = steps.add_parser("choose", help="take what people chose", description="Copy what people chose of a set.")
    sheets = steps.add_parser("sheets", help="draw the contact sheets again", description="Draw a set's contact sheets again.")
    sheets.set_defaults(step=draw_sheets)
    sheets.add_argument("set", type=Path, metavar="SET", help="a set of x4d build, or of the node Save Quadruplet")
    choose.set_defaults(step=choose_set)
    choose.add_argument("set", type=Path, metavar="SET", help="the set that x4d build wrote")
    choose.add_argument(
        "choices", type=Path, nargs="*", metavar="CHOICE",
        help="files that the sheets' pages saved, or texts of ids to keep, one a line",
    )  # fmt: skip
    choose.add_argument("--drop", nargs="+", default=[], metavar="ID", help="leave these out")
    choose.add_argument("--also", nargs="+", default=[], metavar="ID", help="take these of what the filters left out")
    choose.add_argument("--out", type=Path, required=True, metavar="CHOSEN", help="folder for the chosen set, a new one")
    for step in (build, choose, sheets):
        step.add_argument("--verbose", action="store_true", help=argparse.SUPPRESS)


def x4d(args: argparse.Namespace, console: Console) -> int:
    """The command."""
    return args.step(args, console)


def build_set(args: argparse.Namespace, console: Console) -> int:
    """``x4d build``."""
    from .. import __version__
    from ..core.generate.caption import ASK, Captioner
    from ..core.identity import fingerprint
    from ..core.runs.session import resolve_device
    from ..core.runs.sheets import write_sheets
    from ..core.runs.x4d import MANIFEST, REJECTED, VERDICTS, Limits, Source, gather, summary

    check_running(args)
    limits = Limits(bounds_of(args.least, args.most), tuple(args.verdict or VERDICTS))
    limits.check()
    if args.ask is not None and args.captioner is None:
        raise InputError("--ask: is the question to a --captioner; give one, or leave it out")
    device = resolve_device("auto")
    captioner = None
    if args.captioner is not None:  # before any run: it may not be here
        captioner = Captioner(args.captioner, device, args.ask or ASK)
    console.doing = f"reading {args.jobs.name}"
    jobs = read_jobs(args.jobs, args.set)
    if taken := [job.name for job in jobs if job.name.lower() in TAKEN]:
        raise InputError(f"{args.jobs}: a run named {taken[0]!r}, as a file of the set; choose another name")
    # A fit without its quadruplet, as batch leaves it, is not finished here.
    jobs = [replace(of_one(job), key=job.key and fingerprint(job.key, "quadruplet", __version__)) for job in jobs]
    records = run_rows(args, jobs, args.out, quadruplet_row, console)
    sources = [
        Source(job.name, given_to(job), job.notes, "" if record["state"] == "done" else str(record.get("error", "not made")))
        for job, record in zip(jobs, records, strict=True)
    ]
    kept, rejected = gather(
        args.out, sources, limits, captioner=captioner, device=device, progress=console.counting("manifest")
    )
    pages = write_sheets(args.out, kept, rejected)
    console.result(summary(kept, rejected))
    console.result(f"manifest: {args.out / MANIFEST}\nleft out: {args.out / REJECTED}")
    for page in pages:
        console.result(f"sheet: {page}")
    if failed := [record["name"] for record in records if record["state"] != "done"]:
        raise InputError(
            f"{args.out}: {len(failed)} of {len(records)} runs failed ({', '.join(failed[:5])}); see {REJECTED} there"
        )
    if not kept:
        raise InputError(f"{args.out}: the filters left nothing; see {REJECTED} there, or choose other --least and --most")
    return 0


def draw_sheets(args: argparse.Namespace, console: Console) -> int:
    """``x4d sheets``."""
    from ..core.runs.sheets import write_sheets
    from ..core.runs.x4d import read_set

    for page in write_sheets(args.set, *read_set(args.set)):
        console.result(f"sheet: {page}")
    return 0


def choose_set(args: argparse.Namespace, console: Console) -> int:
    """``x4d choose``."""
    from ..core.runs.x4d import MANIFEST, choose

    entries = choose(args.set, args.out, args.choices, drop=args.drop, also=args.also)
    console.result(f"{len(entries)} quadruplets\nmanifest: {args.out / MANIFEST}")
    return 0


def bounds_of(least: Sequence[str], most: Sequence[str]) -> dict[str, tuple[float, float]]:
    """The defaults with what --least and --most say.

    Raises:
        InputError: for what is no NAME=VALUE.
    """
    from ..core.runs.x4d import LIMITS

    bounds = dict(LIMITS)
    for option, texts, side in (("least", least, 0), ("most", most, 1)):
        for text in texts:
            name, sign, value = text.partition("=")
            try:
                number = (-math.inf, math.inf)[side] if value.strip() == "none" else float(value)
            except ValueError:
                number = math.nan
            if not sign or not name or math.isnan(number):
                raise InputError(f"--{option} {text}: write NAME=VALUE, such as iou=0.8, or NAME=none")
            pair = list(bounds.get(name, (-math.inf, math.inf)))
            pair[side] = number
            bounds[name] = (pair[0], pair[1])
    return {name: pair for name, pair in bounds.items() if pair != (-math.inf, math.inf)}


def of_one(job: Job) -> Job:
    """The job, refused where it fits several objects."""
    if not job.arguments:
        return job
    args = _parsed([*job.arguments, "--out=x"])
    if args.masks is None and len(args.object or ()) <= 1:
        return job
    return replace(job, refused="several objects; a quadruplet is of one: give one object and no masks")


def given_to(job: Job) -> dict[str, str]:
    """The text and the paths that a run begins with."""
    if not job.arguments:
        return {}
    args = _parsed([*job.arguments, "--out=x"])
    given = {"prompt": args.prompt, "image": args.image, "video": args.video, "object": (args.object or [None])[0]}
    return {name: value for name, value in given.items() if value is not None}


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Arguments of ``fit``."""
    from ..cli import parser

    return parser().parse_args(["fit", *arguments])


def quadruplet_row(arguments: Sequence[str], report: Report) -> None:
    """One ``fit`` and the quadruplet of it, in the process that the batch gives it.

    Raises:
        InputError: as ``fit``.
        KeyboardInterrupt: where it is interrupted; its checkpoint is exact.
    """
    from ..core.io.video import Reading
    from ..core.runs.quadruplets import of_run

    fit_row(arguments, report)
    args = _parsed(arguments)
    video, item = None if args.video is None else Path(args.video), Path(args.object[0]) if args.object else None
    of_run(args.out, video, item, fps=args.fps, reading=Reading(args.mask, args.start, args.end, args.every, args.background))
