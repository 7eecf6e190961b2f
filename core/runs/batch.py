"""Many runs into one folder: what each is, its record, and the processes of this machine that make them.

A run lies in a folder of its own below the batch's, with ``job.json``, its record, beside what the run leaves. The record is
keyed by the run's options and the content of its input files: a batch that is started again leaves finished runs as they are
and goes on with those that were begun. Each run is a process of its own, so that one that breaks takes no other with it.

PyTorch is imported by functions alone: a run's process chooses its card and threads before.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from ... import __version__
from ..files import Busy, InputError, atomic_path, only_process

#: What a run leaves in its folder beside its results: its record, and what its console says.
RECORD, LOG = "job.json", "log.txt"
#: Files of the batch's own folder.
RESULTS, TABLE, PAGE = "batch.json", "batch.md", "batch.html"
#: Seconds between tries for a folder that another run holds, and how many there are.
BUSY_SECONDS, BUSY_TRIES = 5.0, 24
#: Seconds that an interrupted run has to end its step and keep a checkpoint.
STOP_SECONDS = 60.0
#: Columns of the table: heading, key of a record, format.
COLUMNS = (
    ("state", "state", "{}"), ("method", "method", "{}"), ("preset", "preset", "{}"), ("verdict", "verdict", "{}"),
    ("s", "seconds", "{:.1f}"),
    ("processor s", "processor_seconds", "{:.1f}"), ("MB", "memory_mb", "{:.0f}"), ("tries", "tries", "{}"), ("on", "on", "{}"),
    ("error", "error", "{}"),
)  # fmt: skip

Record = dict[str, Any]
#: Where a run is: stage, step, steps.
Report = Callable[[str, int, int], None]
#: A run from its options, among them the folder; a function that another process can import.
Run = Callable[[Sequence[str], Report], None]


@dataclass(frozen=True)
class Job:
    """One run of a batch.

    Args:
        name: of its folder.
        arguments: options of the command line's ``fit``, without ``--out`` and ``--resume``.
        key: of the options and the content of the input files; "" where these cannot be read.
        whole: whether the key covers all files; else the run itself finds out whether it is finished.
        refused: why it cannot be run, where that is known.
        notes: what its row says that changes nothing in the run: a caption, a licence, ...
    """

    name: str
    arguments: tuple[str, ...] = ()
    key: str = ""
    whole: bool = True
    refused: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)


class Output(Protocol):
    """Where progress goes: the command line's console."""

    def line(self, text: str) -> None: ...

    def step(self, stage: str, step: int, steps: int, note: str = "") -> None: ...


class Executor(Protocol):
    """What makes runs: processes of this machine, or a cluster."""

    def room(self) -> bool:
        """Whether another run may start."""
        ...

    def start(self, job: Job, attempt: int) -> None: ...

    def ended(self, seconds: float) -> list[tuple[Job, Record]]:
        """Runs that have ended since; waits so long for one."""
        ...

    def doing(self) -> list[str]:
        """What runs, in a few words each."""
        ...

    def stop(self) -> None:
        """End what still runs, its checkpoints kept."""
        ...


# A run


def run_job(job: Job, out: Path, run: Run, attempt: int, report: Report, to: str = "") -> Record:
    """Make one run in ``out/<name>``, or find it finished; returns its record, which is left there.

    Args:
        attempt: 1 for the first.
        to: fsspec URL of a folder that the run's folder is copied to once it is done.

    Raises:
        KeyboardInterrupt: where it is interrupted, with its checkpoint kept.
    """
    folder = out / job.name
    if (known := finished(job, out, to)) is not None:
        return known
    before = read_record(folder)
    again = bool(job.key) and before.get("key") == job.key and before.get("begun", False)
    record: Record = {"name": job.name, "key": job.key, "arguments": list(job.arguments), "program": __version__}
    record |= {"notes": dict(job.notes)} if job.notes else {}
    record |= {"state": "running", "begun": True, "tries": attempt, "on": socket.gethostname(), "process": os.getpid()}
    record["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    began, worked = time.monotonic(), time.process_time()

    def times() -> Record:
        """Of all attempts that ended: seconds by the clock, and of processors."""
        spent = {"seconds": time.monotonic() - began, "processor_seconds": time.process_time() - worked}
        return {name: round(value + (before.get(name, 0.0) if again else 0.0), 3) for name, value in spent.items()}

    folder.mkdir(parents=True, exist_ok=True)
    begun = _Begun(folder, record, report, again)
    try:
        with (folder / LOG).open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as log:
            with redirect_stdout(log), redirect_stderr(log):
                run([*job.arguments, f"--out={folder}", *(["--resume"] if again else [])], begun)
        record |= _facts(folder) | {"state": "done"}
    except Busy as error:
        return record | {"state": "busy", "error": _one_line(error)}
    except InputError as error:
        record |= {"state": "failed", "error": _one_line(error)}
    except KeyboardInterrupt:
        record |= {"state": "interrupted", "begun": begun.begun}
        write_record(folder, record | times())
        raise
    except Exception as error:
        with (folder / LOG).open("a", encoding="utf-8", errors="backslashreplace") as log:
            traceback.print_exc(file=log)
        record |= {"state": "crashed", "error": f"{type(error).__name__}: {_one_line(error)}; see {LOG}"}
    record |= {"begun": begun.begun} | times()
    write_record(folder, record)
    if to and record["state"] == "done":
        copy_folder(folder, to, job.name)
    return record


class _Begun:
    """Passes progress on. The run's record is written once the folder is its own: at once, or, where another run left
    checkpoints, with the first progress."""

    def __init__(self, folder: Path, record: Record, report: Report, again: bool) -> None:
        from ..generate.chain import FOLDER
        from .folder import CHECKPOINTS

        self.folder, self.record, self.report, self.begun = folder, dict(record), report, False
        if again or not any((folder / name).exists() for name in (CHECKPOINTS, FOLDER)):
            self.begin()

    def begin(self) -> None:
        write_record(self.folder, self.record)
        self.begun = True

    def __call__(self, stage: str, step: int, steps: int) -> None:
        if not self.begun:
            self.begin()
        self.report(stage, step, steps)


def finished(job: Job, out: Path, to: str = "") -> Record | None:
    """The record of a run that is done with the same options and inputs, here or where it was copied to."""
    from .folder import REPORT, SCENE

    if not job.whole:
        return None
    folder = out / job.name
    record = read_record(folder)
    there = all((folder / name).is_file() for name in (SCENE, REPORT))
    if to and not (there and record.get("state") == "done"):
        record, there = _copied_record(to, job.name), True
    elif to and _copied_record(to, job.name) != record:
        copy_folder(folder, to, job.name)  # what was killed while it copied
    same = bool(job.key) and (record.get("key"), record.get("program")) == (job.key, __version__)
    return record if there and same and record.get("state") == "done" else None


def read_record(folder: Path) -> Record:
    """A run's record; empty where there is none."""
    from .report import read_json

    return read_json(folder / RECORD)


def write_record(folder: Path, record: Record) -> None:
    """Leave a run's record in its folder."""
    from .report import write_json

    write_json(folder / RECORD, record)


def _facts(folder: Path) -> Record:
    """What the table says of a finished run."""
    from .folder import REPORT
    from .report import read_json

    report = read_json(folder / REPORT)
    facts = {name: report.get(name) for name in ("method", "preset", "seed", "device", "gaussians", "frames")}
    facts["memory_mb"] = (report.get("memory_peak_mb") or {}).get("host")
    return facts | {"verdict": (report.get("verdict") or {}).get("word")}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


# Copies elsewhere


def copy_folder(folder: Path, to: str, name: str) -> None:
    """Copy a run's folder to ``to/<name>`` by fsspec, its record last: a copy with a record is whole.

    Raises:
        InputError: where the place cannot be written, or nothing here writes to such places.
    """
    system, root = _place(to)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", RECORD)]
    with _naming(to):
        for path in [*sorted(files), folder / RECORD]:
            target = f"{root}/{name}/{path.relative_to(folder).as_posix()}"
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            system.put_file(str(path), target)


def _copied_record(to: str, name: str) -> Record:
    import json

    system, root = _place(to)
    try:
        return json.loads(system.cat_file(f"{root}/{name}/{RECORD}"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}


def _place(to: str) -> tuple[Any, str]:
    from ..packages import problem

    if reason := problem("fsspec"):
        raise InputError(f"--to {to}: the Python package fsspec {reason}; run: pip install fsspec, or leave --to out")
    import fsspec

    try:
        system, root = fsspec.url_to_fs(to)
    except (ValueError, ImportError) as error:
        raise InputError(f"--to {to}: {_one_line(error)}; choose a URL that fsspec and its packages here can write") from error
    return system, root.rstrip("/")


@contextmanager
def _naming(to: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"--to {to}: cannot be written ({_one_line(error)}); check the place and your rights there") from error


# Processes of this machine


class Processes:
    """Runs as processes of this machine, each new for its run.

    Args:
        out: the batch's folder.
        workers: how many run at a time.
        cards: names of the cards, as CUDA_VISIBLE_DEVICES takes them, a worker each in turn; none where runs take the CPU.
        threads: of each run on the CPU.
    """

    def __init__(self, run: Run, out: Path, workers: int, *, cards: Sequence[str] = (), threads: int = 1, to: str = "") -> None:
        self.make, self.out, self.to, self.threads = run, out, to, threads
        self.slots = deque(cards[slot % len(cards)] if cards else "" for slot in range(workers))
        self.running: dict[Any, tuple[Job, Any, str, int]] = {}
        self.where: dict[str, str] = {}
        self.context = get_context("spawn")

    def room(self) -> bool:
        return bool(self.slots)

    def start(self, job: Job, attempt: int) -> None:
        card = self.slots.popleft()
        place = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
        if card:
            place["CUDA_VISIBLE_DEVICES"] = card
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(
            target=_process, args=(theirs, self.make, job, str(self.out), attempt, place, self.to), daemon=True
        )
        process.start()
        theirs.close()  # so that its end is seen here
        self.running[ours] = (job, process, card, attempt)
        self.where[job.name] = "starts"

    def ended(self, seconds: float) -> list[tuple[Job, Record]]:
        found: list[tuple[Job, Record]] = []
        if not self.running:
            time.sleep(seconds)
        ready: list[Any] = wait(list(self.running), seconds)
        for pipe in ready:
            job, process, card, attempt = self.running[pipe]
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                process.join()
                message = _killed(job, self.out, attempt, process.exitcode)
            if isinstance(message, str):
                self.where[job.name] = message
                continue
            process.join()
            pipe.close()
            del self.running[pipe], self.where[job.name]
            self.slots.append(card)
            found.append((job, message))
        return found

    def doing(self) -> list[str]:
        return [f"{name}: {text}" for name, text in self.where.items()]

    def stop(self) -> None:
        processes = [process for _, process, _, _ in self.running.values()]
        for process in processes:
            process.terminate()
        end = time.monotonic() + STOP_SECONDS
        try:
            for process in processes:
                process.join(max(0.0, end - time.monotonic()))
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()


def _process(pipe: Any, run: Run, job: Job, out: str, attempt: int, place: Mapping[str, str], to: str) -> None:
    """A run in a process of its own; ends with its record in the pipe."""
    os.environ.update(place)  # before PyTorch reads it
    folder = Path(out) / job.name
    folder.mkdir(parents=True, exist_ok=True)
    # Libraries that write past Python, and the last words of a process that dies, go to the log as well.
    with (folder / LOG).open("ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    said = 0.0

    def report(stage: str, step: int, steps: int) -> None:
        nonlocal said
        if time.monotonic() - said > 0.5:
            said = time.monotonic()
            try:
                pipe.send(f"{stage} {step}/{steps}")
            except OSError:  # the batch is gone: keep a checkpoint and end
                raise KeyboardInterrupt from None

    try:
        record = run_job(job, Path(out), run, attempt, report, to)
    except KeyboardInterrupt:
        record = {"name": job.name, "state": "interrupted"}
    except InputError as error:  # of the copy, or of a full disk
        record = {"name": job.name, "key": job.key, "state": "failed", "tries": attempt, "error": _one_line(error)}
    with suppress(OSError):
        pipe.send(record)


def _killed(job: Job, out: Path, attempt: int, code: int | None) -> Record:
    """The record of a run whose process ended without one."""
    why = f"its process was killed (signal {-code}), which memory that runs out does" if code and code < 0 else f"exit {code}"
    record = {"name": job.name, "key": job.key, "tries": attempt, "on": socket.gethostname()}
    return record | {"state": "crashed", "error": f"{why}; see {LOG}, or choose fewer --workers"}


# The batch


def run_batch(
    jobs: Sequence[Job], out: Path, executor: Executor, console: Output, *, retries: int = 2, to: str = ""
) -> list[Record]:
    """Make all runs; returns their records in order, also left as ``batch.json`` and ``batch.md``.

    A run whose process breaks goes on from its checkpoints so many more times; one that refuses its inputs is not tried
    again. What was begun before comes first.

    Args:
        out: the batch's folder, held against other batches.
        to: fsspec URL of a folder for copies, see :func:`run_job`.

    Raises:
        KeyboardInterrupt: with the checkpoints and records of what had been begun.
    """
    records: dict[str, Record] = {job.name: {"name": job.name, "state": "waiting"} for job in jobs}
    tries: dict[str, int] = dict.fromkeys(records, 0)
    held: dict[str, int] = dict.fromkeys(records, 0)
    later: list[tuple[float, Job]] = []
    began, spoken = time.monotonic(), 0.0

    def settle(job: Job, record: Record) -> None:
        nonlocal spoken
        records[job.name] = record
        note = record.get("error") or record.get("verdict") or ""
        console.line(f"{job.name}: {record['state']}{f', {note}' if note else ''}")
        if time.monotonic() - spoken > 5:
            spoken = time.monotonic()
            write_results(jobs, records, out, time.monotonic() - began)

    with only_process(out):
        waiting: deque[Job] = deque()
        for job in jobs:
            if job.refused:
                settle(job, {"name": job.name, "state": "failed", "error": job.refused})
            elif (known := finished(job, out, to)) is not None:
                records[job.name] = known
            else:
                started = bool(job.key) and read_record(out / job.name).get("key") == job.key
                (waiting.appendleft if started else waiting.append)(job)
        if before := sum(record["state"] == "done" for record in records.values()):
            console.line(f"{before} of {len(jobs)} finished before")
        open_jobs = len(waiting)
        try:
            while open_jobs:
                now = time.monotonic()
                waiting.extend(job for due, job in later if due <= now)
                later = [(due, job) for due, job in later if due > now]
                while waiting and executor.room():
                    job = waiting.popleft()
                    tries[job.name] += 1
                    executor.start(job, tries[job.name])
                for job, record in executor.ended(0.5):
                    state, name = record["state"], job.name
                    if state == "busy" and held[name] < BUSY_TRIES:
                        held[name] += 1
                        tries[name] -= 1
                        later.append((time.monotonic() + BUSY_SECONDS, job))
                        continue
                    if state == "interrupted":
                        raise KeyboardInterrupt
                    if state == "crashed" and tries[name] <= retries:
                        console.line(f"{name}: {record['error']}; tried again")
                        waiting.appendleft(job)
                        continue
                    open_jobs -= 1
                    record["state"] = "done" if state == "done" else "failed"
                    if state == "crashed":
                        (out / name).mkdir(parents=True, exist_ok=True)
                        write_record(out / name, read_record(out / name) | record)
                    settle(job, record)
                done = len(jobs) - open_jobs
                if open_jobs:
                    console.step("batch", done, len(jobs), "".join(f"  {text}" for text in executor.doing()[:4]))
            console.step("batch", len(jobs), len(jobs))
        finally:
            executor.stop()
            write_results(jobs, records, out, time.monotonic() - began)
        if to:
            for name in (RESULTS, TABLE, PAGE):
                system, root = _place(to)
                with _naming(to):
                    system.put_file(str(out / name), f"{root}/{name}")
    return [records[job.name] for job in jobs]


def write_results(jobs: Sequence[Job], records: Mapping[str, Record], out: Path, wall: float) -> None:
    """Leave ``batch.json``, ``batch.md``, and ``batch.html``, which leads to the runs' own pages."""
    from html import escape

    from . import page
    from .folder import PAGE as RUN_PAGE
    from .report import versions, write_json

    rows = [records[job.name] for job in jobs]
    write_json(out / RESULTS, {"program": __version__, "versions": versions(), "wall_seconds": round(wall, 3), "runs": rows})
    with atomic_path(out / TABLE) as temporary:
        temporary.write_text(f"{table(rows)}\n\n{summary(rows)}\n", encoding="utf-8")
    heads, *cells = columns(rows)
    names = [row["name"] for row in rows if (out / row["name"] / RUN_PAGE).is_file()]
    links = " · ".join(f'<a href="{escape(name)}/{RUN_PAGE}">{escape(name)}</a>' for name in names)
    parts = [f"<h1>{len(rows)} runs</h1>", f"<p>{escape(summary(rows))}</p>", page.table(heads, cells, numbers=False)]
    page.write_page(out / PAGE, f"{len(rows)} runs", [*parts, f"<h2>Pages of the runs</h2><p>{links}</p>" if links else ""])


def columns(rows: Sequence[Record]) -> list[list[str]]:
    """The header and a row of cells for each run; columns that no run fills are left out."""
    used = [column for column in COLUMNS if any(row.get(column[1]) not in (None, "") for row in rows)]
    cells = [["run", *(heading for heading, _, _ in used)]]
    for row in rows:
        cells.append([row["name"], *("" if row.get(key) is None else form.format(row[key]) for _, key, form in used)])
    return cells


def table(rows: Sequence[Record]) -> str:
    """The runs as a Markdown table."""
    head, *cells = [[cell.replace("|", "\\|") for cell in row] for row in columns(rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *cells))


def summary(rows: Sequence[Record]) -> str:
    """How many runs ended how, and what a finished one took."""
    states = {state: sum(row["state"] == state for row in rows) for state in ("done", "failed", "waiting")}
    said = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    spent = [row["seconds"] for row in rows if row["state"] == "done" and row.get("seconds") is not None]
    worked = [row.get("processor_seconds", 0.0) for row in rows if row["state"] == "done"]
    each = ""
    if spent:
        each = f"; a finished run took {sum(spent) / len(spent):.1f} s, of processors {sum(worked) / len(worked):.1f} s"
    return f"{len(rows)} runs: {said}{each}"


def local_plan(workers: int | None, cards: int, device: str = "auto") -> tuple[int, list[str], int]:
    """How many runs at a time, on which cards, with how many threads each.

    Args:
        workers: as asked; None: one for each card, or a few on the CPU.
        cards: how many PyTorch sees.
        device: "cpu" leaves the cards alone.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = [] if device == "cpu" else (named or [str(card) for card in range(cards)])[:cards]
    workers = workers or len(names) or max(1, min(4, cores // 2))
    return workers, names, max(1, cores // workers)
