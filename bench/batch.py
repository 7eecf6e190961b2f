"""Many runs by one command: rows of a table, or a folder of cases, each a ``fit`` with its own inputs and settings.

    python -m anchor4d batch JOBS [--set NAME=VALUE ...] [--on ray] [--out DIR]

See docs/batch.md. The scheduling is :mod:`..core.runs.batch`, Ray :mod:`..core.runs.cluster`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..console import Console, ConsoleLog
from ..core.files import InputError
from ..core.progress import pulsing
from ..core.runs.batch import PAGE, RESULTS, TABLE, Job, Record, Report, Run, local_plan

#: Options of ``fit`` that the batch itself gives.
OURS = ("help", "verbose", "out", "resume")
#: Options that name files, which lie beside JOBS where their paths are relative; and those that may.
FILES, MODELS = (
    ("video", "object", "image", "mask"),
    ("prior", "anchors", "image_model", "video_model", "object_model", "views_model"),
)
#: Columns that describe a row and change nothing in its run: they go to its record, and to the manifest of ``x4d``.
NOTES = ("caption", "licence", "credit", "source", "kind")
#: A run's name: of a folder on any system, and no file of the batch's own.
NAME = re.compile(r"(?!batch\.)[A-Za-z0-9_][\w.-]{0,99}")
FILMS = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif", ".webp", ".apng")
OBJECTS = (".glb", ".gltf", ".obj", ".ply", ".stl", ".spz", ".splat", ".ksplat", ".sog")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
#: Objects whose file may name others, textures and buffers: whether they are the same, their run itself finds out.
REFERRING = (".gltf", ".obj")
#: The suite of prompts that comes with the package, and what JOBS calls it.
PROMPTS, SUITE = "prompts", Path(__file__).with_name("prompts.jsonl")
#: Most bytes of a JOBS file.
LARGEST = 64 << 20

Row = Mapping[str, Any]


def add_options(made: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_running(made, "jobs")
    made.add_argument(
        "--out", type=Path, default=Path("anchor4d-batch"), help="folder, a run in each of its folders (default: %(default)s)"
    )
    made.add_argument(
        "--to", default="", metavar="URL", help="copy each finished run there as well: any URL that fsspec writes"
    )


def add_running(made: argparse.ArgumentParser, rows: str) -> None:
    """The rows of a command that makes many runs, and where they run.

    Args:
        rows: what the command calls them.
    """
    made.set_defaults(again="run the same command to go on")
    made.add_argument(
        "jobs", type=Path, metavar=rows.upper(),
        help="rows of fit's options: .csv, .jsonl; a folder of cases (video or front, object or mesh, image, prompt.txt); "
        f"a folder of films, pictures and models; or {PROMPTS}, 58 texts that come with the package",
    )  # fmt: skip
    made.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="options of fit for every row that does not have its own"
    )
    made.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="runs at a time on this machine (default: one for each card, or a few on the CPU)",
    )
    made.add_argument(
        "--retries", type=int, default=2, metavar="N", help="tries more for a run whose process breaks (default: %(default)s)"
    )
    made.add_argument("--on", choices=("here", "ray"), default="here", help="ray: a Ray cluster (default: this machine)")
    made.add_argument(
        "--address", default="", help="ray: the cluster (default: RAY_ADDRESS, one of this machine, or a new one)"
    )
    made.add_argument(
        "--cards", type=float, metavar="SHARE", help="ray: a run's share of a card (default: 1 where there are cards)"
    )
    made.add_argument("--memory", type=float, default=0.0, metavar="GB", help="ray: a run's memory (default: not counted)")
    made.add_argument(
        "--threads", type=int, metavar="N", help="a run's threads (default: the machine's cores shared out; ray: 1)"
    )


def batch(args: argparse.Namespace, console: Console) -> int:
    """The command."""
    from ..core.runs.batch import summary, table

    check_running(args)
    console.doing = f"reading {args.jobs.name}"
    records = run_rows(args, read_jobs(args.jobs, args.set), args.out, fit_row, console, to=args.to)
    console.table(table(records))
    console.result(f"{summary(records)}\ntable: {args.out / TABLE}\npage: {args.out / PAGE}\nrecords: {args.out / RESULTS}")
    if failed := [record["name"] for record in records if record["state"] != "done"]:
        raise InputError(
            f"{args.out}: {len(failed)} of {len(records)} runs failed ({', '.join(failed[:5])}); see {TABLE} there"
        )
    return 0


def check_running(args: argparse.Namespace) -> None:
    """Refuse values of :func:`add_running`'s options that do not fit.

    Raises:
        InputError: if so.
    """
    for name, least in (("workers", 1), ("threads", 1), ("retries", 0), ("cards", 0), ("memory", 0)):
        value = getattr(args, name)
        if value is not None and not least <= value <= 1e6:
            raise InputError(f"--{name} {value:g}: choose {least} or more")
    asked = {"address": args.address or None, "cards": args.cards, "memory": args.memory or None}
    for name, value in asked.items() if args.on == "here" else [("workers", args.workers)]:
        if value is not None:
            raise InputError(f"--{name} {value}: is {'for --on ray' if args.on == 'here' else 'of this machine'}; leave it out")


def run_rows(
    args: argparse.Namespace, jobs: Sequence[Job], out: Path, run: Run, console: Console, *, to: str = ""
) -> list[Record]:
    """The runs of rows, where :func:`add_running`'s options say."""
    from ..core.runs.batch import Processes, run_batch

    if args.on == "ray":
        from ..core.runs.cluster import Cluster

        executor = Cluster(
            run, out, address=args.address, cards=args.cards, memory=args.memory, threads=args.threads or 1, to=to
        )
        if not executor.fits():
            needs = ", ".join(f"{need:g} {name}" for name, need in executor.needs.items() if need)
            console.line(f"warning: no node of the cluster has {needs} as yet; runs wait for one")
    else:
        import torch

        device = "cpu" if all("--device=cpu" in job.arguments for job in jobs) else "auto"
        workers, cards, threads = local_plan(args.workers, torch.cuda.device_count(), device)
        executor = Processes(run, out, workers, cards=cards, threads=args.threads or threads, to=to)
    return run_batch(jobs, out, executor, console, retries=args.retries, to=to)


class _RunConsole(Console):
    """The console of one run: its lines go to the run's log, where it is to the batch."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.report = report

    def step(self, stage: str, step: int, steps: int, note: str = "") -> None:
        super().step(stage, step, steps, note)
        self.report(stage, step, steps)


def fit_row(arguments: Sequence[str], report: Report) -> None:
    """One ``fit``, in the process that the batch gives it.

    Raises:
        InputError: as ``fit``.
        KeyboardInterrupt: where it is interrupted; its checkpoint is exact.
    """
    from ..cli import fit, parser

    args = parser().parse_args(["fit", *arguments])
    with run_console(report) as console:
        fit(args, console)


@contextmanager
def run_console(report: Report) -> Iterator[Console]:
    """The console of a run in its own process: its lines go to the run's log, where it is to the batch.

    Raises:
        KeyboardInterrupt: where the run is interrupted, whatever it raised.
    """
    console = _RunConsole(report)
    handler, log = ConsoleLog(console), logging.getLogger(__name__.rpartition(".bench.")[0])
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with console.interruptible(), pulsing(console.check):
            yield console
    except BaseException as error:
        if console.interrupted and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error  # what an interruption meets may turn it into another error
        raise
    finally:
        log.removeHandler(handler)


# Rows


def read_jobs(path: Path, common: Sequence[str] = ()) -> list[Job]:
    """The runs of a table or of a folder of cases; one that cannot be run says why, and stops no other.

    Args:
        common: ``NAME=VALUE`` options for every row that does not have its own.

    Raises:
        InputError: where there are no rows, for a column that is no option of ``fit``, or two rows of one name.
    """
    if str(path) == PROMPTS and not path.exists():
        path = SUITE
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a .csv, a .jsonl or a folder of cases")
    options = _options()
    shared: dict[str, Any] = {}
    for text in common:
        name, sign, value = text.partition("=")
        if not sign:
            raise InputError(f"--set {text}: write NAME=VALUE, such as preset=draft")
        shared[name if name in NOTES else _known(name, options, f"--set {text}")] = value
    rows = _cases(path) if path.is_dir() else _rows(path)
    if not rows:
        what = (
            "a case is a folder with a video, an object, an image or a prompt.txt" if path.is_dir() else "give a row for each"
        )
        raise InputError(f"{path}: no runs in it; {what}")
    width = max(3, len(str(len(rows))))
    names: dict[str, int] = {}
    jobs: list[Job] = []
    base = path if path.is_dir() else path.parent
    for number, row in enumerate(rows, 1):
        given = {str(key).strip().lstrip("-").replace("-", "_"): value for key, value in row.items()}
        name = str(given.pop("name", None) or f"{number:0{width}}").strip()
        where = f"{path.name}, run {number}"
        if not NAME.fullmatch(name) or name.endswith("."):
            raise InputError(f"{where}: name {name[:60]!r}: choose letters, digits, '_', '-' and '.', at most 100")
        if (other := names.setdefault(name.casefold(), number)) != number:
            raise InputError(f"{where}: is named {name!r} like run {other}; give each its own name")
        given = shared | {k: v for k, v in given.items() if v not in (None, "")}
        notes = {key: " ".join(str(given.pop(key)).split()) for key in NOTES if key in given}
        try:
            jobs.append(replace(_job(name, given, base, options, where), notes=notes))
        except (InputError, OSError) as error:
            jobs.append(Job(name, refused=" ".join(str(error).split()), notes=notes))
    return jobs


def _job(name: str, row: Row, base: Path, options: Mapping[str, argparse.Action], where: str) -> Job:
    from .. import __version__
    from ..cli import parser
    from ..core.identity import file_identity, fingerprint

    arguments: list[str] = []
    plain: dict[str, list[str]] = {}
    files: dict[str, str] = {}
    for key, value in row.items():
        key = _known(key, options, where)
        if key == "object" and isinstance(value, list):  # of several objects, "auto" is made of the video
            value = [item if item == "auto" else str((base / str(item)).resolve()) for item in value]
            arguments += [part for item in value for part in _arguments(options[key], item, f"{where}: {key}")]
            files |= {f"{key} {number}": item for number, item in enumerate(value) if item != "auto"}
            plain[key] = ["auto" if item == "auto" else "" for item in value]
            continue
        if key in FILES or (key in MODELS and (base / str(value)).is_dir()):
            value = str((base / str(value)).resolve())
        made = _arguments(options[key], value, f"{where}: {key}")
        if key in FILES:
            files[key] = value
        else:
            plain[key] = made
        arguments += made
    parser().parse_args(["fit", *arguments, "--out=x"])
    try:
        content = {key: file_identity(value) for key, value in files.items()}
    except OSError:
        return Job(name, tuple(arguments))  # fit says what is wrong with it
    whole = not any(Path(file).suffix.lower() in REFERRING for key, file in files.items() if key.startswith("object"))
    return Job(name, tuple(arguments), fingerprint(content, plain, __version__), whole)


def _arguments(option: argparse.Action, value: Any, where: str) -> list[str]:
    """A value of a row as arguments of the command line."""
    flag = option.option_strings[0]
    if option.nargs == 0:
        word = str(value).strip().lower()
        if word not in ("true", "yes", "1", "false", "no", "0"):
            raise InputError(f"{where}: {str(value)[:40]!r}: choose yes or no")
        return [flag] if word in ("true", "yes", "1") else []
    if option.nargs == "+":
        items = value if isinstance(value, list) else [item.strip() for item in str(value).split(";")]
        return [flag, *map(str, items)]
    if isinstance(value, (dict, list, bool)):
        raise InputError(f"{where}: {json.dumps(value)[:40]}: choose a text or a number")
    return [f"{flag}={value}"]


def _options() -> dict[str, argparse.Action]:
    from ..cli import parser

    return {action.dest: action for action in parser().commands["fit"]._actions if action.dest not in OURS}


def _known(name: str, options: Mapping[str, argparse.Action], where: str) -> str:
    name = name.strip().lstrip("-").replace("-", "_")
    name = "object" if name == "mesh" else name
    if name not in options:
        listed = ", ".join(option.replace("_", "-") for option in options)
        raise InputError(f"{where}: {name[:40]!r} is no option of fit; choose of name, {listed}")
    return name


def _rows(path: Path) -> Sequence[Row]:
    if path.stat().st_size > LARGEST:
        raise InputError(f"{path}: more than {LARGEST >> 20} MB, split it")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text, save it as such") from error
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text))
        try:
            rows = list(reader)
        except csv.Error as error:
            raise InputError(f"{path}: is no CSV ({error})") from error
        options = _options()
        for name in reader.fieldnames or ():
            if name.strip() not in ("name", *NOTES):
                _known(name, options, path.name)
        if extra := next((number for number, row in enumerate(rows, 1) if None in row), None):
            raise InputError(f"{path.name}, run {extra}: more cells than the header names; quote texts that hold commas")
        return rows
    if path.suffix.lower() not in (".jsonl", ".ndjson", ".json"):
        raise InputError(f"{path}: choose a .csv, a .jsonl (one JSON object a line) or a folder of cases")
    found: list[Row] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: is no JSON ({error}); one object a line") from error
        if not isinstance(row, dict):
            raise InputError(f'{path}, line {number}: is no JSON object; write one like {{"name": "fox", "video": "fox.mp4"}}')
        found.append(row)
    return found


def _cases(folder: Path) -> Sequence[Row]:
    """A row for each folder that holds what a run begins with; where there is none, for each film, picture and object."""
    rows: list[Row] = []
    for case in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        row: dict[str, Any] = {"name": case.name}
        for path in sorted(case.iterdir()):
            stem, suffix = path.stem.lower(), path.suffix.lower()
            if stem in ("front", "video") and (path.is_dir() or suffix in FILMS):
                row["video"] = f"{case.name}/{path.name}"
            elif stem in ("mesh", "object") and suffix in OBJECTS:
                row["object"] = f"{case.name}/{path.name}"
            elif stem == "image" and suffix in PICTURES:
                row["image"] = f"{case.name}/{path.name}"
            elif path.name == "prompt.txt":
                row["prompt"] = path.read_text(encoding="utf-8").strip()
        if len(row) > 1:
            rows.append(row | _beside(case / "case.json", "video" in row))
    return rows or _loose(folder)


def _loose(folder: Path) -> Sequence[Row]:
    """A row for each name among a folder's films, pictures and objects, described by a .json of that name."""
    rows: dict[str, dict[str, Any]] = {}
    described: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        suffix = path.suffix.lower()
        what = next((w for w, kinds in (("image", PICTURES), ("video", FILMS), ("object", OBJECTS)) if suffix in kinds), None)
        if what is not None:
            name = re.sub(r"[^\w.-]+", "_", path.stem, flags=re.ASCII)
            rows.setdefault(name, {"name": name})[what] = path.name
            described[name] = path.with_suffix(".json")
    return [row | _beside(described[name], "video" in row) for name, row in rows.items()]


def _beside(path: Path, video: bool) -> dict[str, Any]:
    """What a case's or file's .json says of it: notes, and the frame rate of a video."""
    from ..core.runs.report import read_json

    said = read_json(path)
    return {name: said[name] for name in (*NOTES, *(("fps",) if video else ())) if said.get(name) is not None}
