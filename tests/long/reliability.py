"""Kills runs and exports at random moments, resumes them, and compares with what nobody killed.

    python tests/long/reliability.py --kills 200 --seed 0 [--jobs 8] [--only pla4d export-ply ...] [--device cuda] [--out FILE]

A job is a method at a tiny size from files to files, or the export of its scene in a format. Each trial starts it, kills it
(SIGKILL) after a random part of the time that it takes, goes on from what it left, sometimes kills it again, and holds when

- the scene of a run has the same bytes as the uninterrupted one's, and its folder holds nothing else than that one's;
- an export's path held nothing, the old file or the whole new one after every kill, and holds the new one alone in the end.

Jobs run in forks of one process on the CPU, with one thread: a start costs next to nothing, so that kills fall on work. On a
card, where a process cannot be forked, each is a process of its own, and the clock runs from the moment at which its packages
are imported. ``--jobs`` trials run side by side, of the jobs that were killed least; trial N of a seed draws the same shares of
its job's time everywhere. Nothing is asked of a network, and of packages only those that the methods need: a job whose packages
are not here is left out, and named. The last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
if importlib.util.find_spec("anchor4d") is None:  # not installed: the checkout, whatever its folder is called
    _spec = importlib.util.spec_from_file_location("anchor4d", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert _spec is not None and _spec.loader is not None
    sys.modules["anchor4d"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["anchor4d"])

import torch

from anchor4d.core.fit import loop
from anchor4d.core.io.export import Shot, export_scene
from anchor4d.core.methods import ayg, dg4d, pla4d, stag4d
from anchor4d.core.methods.stages import MethodConfig
from anchor4d.core.packages import problem
from anchor4d.core.priors.load import load_prior
from anchor4d.core.runs.sample import write_sample
from anchor4d.core.runs.session import Settings, run_in_folder
from anchor4d.core.scene.scene import Scene4D

SCENE = "scene.safetensors"
#: What a run leaves that says when or how it was made, or is encoded on threads.
TOLD = ("report.json", "report.html", "preview.mp4")
METHODS = ("pla4d", "pla4d-v4", "align4d", "dg4d", "stag4d", "stag4d-code", "ayg")
#: Methods that ask no prior at the sizes here.
ALONE = ("pla4d", "pla4d-v4")
#: Packages without which a job's models cannot be made.
NEEDS = {"ayg": ("diffusers", "transformers")}
#: Every format, and a sequence in a .zip, with what the path ends with.
EXPORTS = {
    "ply": "", "zip": ".zip", "compressed-ply": "", "spz": ".spz", "sog": ".sog", "splat": ".splat", "glb": ".glb",
    "glb-splats": ".glb", "glb-spz": ".glb", "usd": ".usdc", "4dgs": ".4dgs", "tsog": ".tsog", "ftgs": ".ply", "html": ".html",
    "a4d": ".a4d", "scene": ".safetensors", "mp4": ".mp4", "webm": ".webm", "gif": ".gif", "webp": ".webp", "apng": ".apng",
    "png": "",
}  # fmt: skip
FILMS = ("mp4", "webm", "gif", "webp", "apng", "png")
#: Seconds between checkpoints, a hundredth of a tiny run, and how often a resumed run is killed once more.
CHECKPOINT_SECONDS, AGAIN = 0.02, 0.6

Job = Callable[[Path, bool], None]


def silent(*_: Any) -> None:
    """Progress as a command takes it, so that the estimate is part of the run."""


def shortened(config: MethodConfig) -> MethodConfig:
    """A method of a few small steps."""
    small = ((1.0, 32),)
    static, motion = config.static, config.motion
    static = replace(static, gaussians=200, schedule=replace(static.schedule, steps=4, resolutions=small))
    motion = replace(motion, schedule=replace(motion.schedule, steps=8, resolutions=small))
    return replace(config, resolution=64, static=static, motion=motion)


def tiny_stag4d(config: MethodConfig) -> MethodConfig:
    """STAG4D at a size that takes seconds."""
    static, motion = config.static, config.motion
    assert config.anchors is not None and motion.density is not None
    schedule = replace(motion.schedule, steps=8, frames=2, resolutions=((1.0, 32),))
    density = replace(motion.density, every=2, start=2)
    fields = {"hexplane": {**motion.fields["hexplane"], "resolution": 4, "channels": 2}}
    return replace(
        config,
        resolution=32,
        with_object=None,
        anchors=replace(config.anchors, steps=2),
        static=replace(static, gaussians=150, schedule=replace(static.schedule, steps=4, resolutions=((1.0, 32),))),
        motion=replace(motion, schedule=schedule, density=density, fields=fields),
    )


def jobs_of(names: list[str], folder: Path, device: str) -> dict[str, Job]:
    """Each job as a function of where it writes and whether it resumes; the inputs are those of :func:`prepare`."""
    from tests.test_cli import tiny as tiny_pla4d

    case = folder / "case"
    smaller = folder / "zero123"  # than the one that comes with the pack, where the packages to make it are here
    prior = None
    if any(name in METHODS and name not in ALONE for name in names):
        prior = load_prior(smaller if smaller.exists() else "tiny", device=device)
    made: dict[str, Job] = {}

    def from_video(method: str, out: Path, resume: bool) -> None:
        if method in ALONE:
            config = pla4d.v4(tiny_pla4d(16)) if method == "pla4d-v4" else tiny_pla4d(16)
        elif method == "align4d":
            from tests.test_align4d import tiny as tiny_align4d

            config = shortened(tiny_align4d(prior))
        elif method == "dg4d":
            config = shortened(dg4d.preset("draft", prior))
        else:
            config = tiny_stag4d(stag4d.preset("draft", prior, prior, method=method))
        item = None if method.startswith("stag4d") else case / "mesh.glb"
        settings = Settings(method, "draft", yaw=0.0, device=device, prior="tiny")
        run_in_folder(case / "front", item, out, settings, config=config, resume=resume, progress=silent)

    def from_text(out: Path, resume: bool) -> None:
        settings = Settings("ayg", "draft", then=("",), device=device)
        run_in_folder(None, None, out, settings, prompt="a dog", config=text, resume=resume, progress=silent)

    for name in names:
        if name == "ayg":
            from tests.test_ayg import config_of as tiny_ayg

            loaded = {n: load_prior(folder / n, device=device) for n in ("views", "images", "modelscope")}
            models = {n: p.with_settings(resolution=(16, 16)) for n, p in loaded.items()}
            text: ayg.TextConfig = tiny_ayg(models | {"modelscope": models["modelscope"].with_settings(pictures=5)})
            made[name] = from_text
        elif name in METHODS:
            made[name] = partial(from_video, name)
        else:
            made[name] = partial(export, folder / "exported.safetensors", name.removeprefix("export-"))
    return made


def prepare(names: list[str], folder: Path, out: Path, resume: bool) -> None:
    """The jobs' inputs. A job too: the process that forks must not have drawn or computed on threads, which forks lack."""
    write_sample(folder / "case", 3, 64)
    if any(name in METHODS and name not in ALONE for name in names) and not any(map(problem, NEEDS["ayg"])):
        import tiny_models

        tiny_models.write_zero123(folder / "zero123")
    if "ayg" in names:
        import tiny_models
        import tiny_videos
        from test_mvdream import TINY, write_folder

        write_folder(folder / "views", TINY)
        tiny_models.write_stable_diffusion(folder / "images")
        tiny_videos.write_modelscope(folder / "modelscope")
    jobs_of(["pla4d"], folder, "cpu")["pla4d"](folder / "first-pla4d", False)
    shutil.copy(folder / "first-pla4d" / SCENE, folder / "exported.safetensors")


def export(scene: Path, name: str, out: Path, resume: bool) -> None:
    form = "ply" if name == "zip" else name
    shot = Shot(size=48, background="white") if name in FILMS else None
    export_scene(Scene4D.load(scene), out / f"clip{EXPORTS[name]}", form, shot=shot)


def contents(folder: Path) -> dict[str, bytes]:
    """Files below a folder; of those that say when or how they were made, only that they are there."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()] if folder.is_dir() else []
    return {p.relative_to(folder).as_posix(): b"" if p.name in TOLD else p.read_bytes() for p in files}


class Child:
    """A job in a process of its own."""

    def __init__(self, name: str, job: Job | None, out: Path, resume: bool, command: list[str] | None) -> None:
        self.log = out.with_suffix(".log")
        if command is not None:
            started = out.with_suffix(".started")
            started.unlink(missing_ok=True)
            with open(self.log, "wb") as log:
                argv = [*command, "--job", name, str(out), *(["--resume"] if resume else [])]
                child = subprocess.Popen(argv, stdout=log, stderr=log)
            self.pid, began = child.pid, time.monotonic()
            while not started.exists() and child.poll() is None and time.monotonic() - began < 600:
                time.sleep(0.001)
            self.ended = child.returncode
            return
        self.ended = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                assert job is not None
                job(out, resume)
                code = 0
            except BaseException:
                logging.exception("%s failed", name)
            finally:
                os._exit(code)

    def wait(self, seconds: float) -> int | None:
        """The exit status, or None where it still runs after so long."""
        deadline = time.monotonic() + seconds
        while self.ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                return None
            time.sleep(0.001)
        return self.ended

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def finish(self) -> str:
        """Runs to its end; why it failed, or nothing."""
        code = self.wait(600)
        if code is None:
            self.kill()
            return "did not end within 600 s"
        return "" if code == 0 else f"ended with {code}: {self.log.read_text(errors='replace').strip()[-300:]}"


def trial(
    name: str, start: Callable[[bool], Child], out: Path, whole: dict[str, bytes], seconds: float, draw: random.Random
) -> tuple[int, str]:
    """Kills of one trial that found the job at work, and what did not hold."""
    kills, resume = 0, False
    before = {} if draw.random() < 0.5 or not name.startswith("export-") else whole
    for path, data in before.items():  # an export over an older one
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(data + b" ")
    old = contents(out)
    while True:
        child = start(resume)
        if child.wait(draw.random() * seconds) is not None:
            break
        child.kill()
        kills, resume = kills + 1, True
        if name.startswith("export-"):
            found = {path: data for path, data in contents(out).items() if not path.startswith(".")}
            between = bool(old) and not found and any(p.name.endswith(".old") for p in out.iterdir())
            if found not in (old, whole) and not between:
                return kills, f"half an export: {sorted(found)}"
        if draw.random() > AGAIN:
            break
    if failed := start(True).finish():
        return kills, failed
    found = contents(out)
    if found.keys() != whole.keys():
        return kills, f"left {sorted(found.keys() ^ whole.keys())}"
    different = [path for path in whole if found[path] != whole[path]]
    return kills, f"{different[0]} differs" if different else ""


def result(rows: dict[str, dict[str, Any]], failures: list[str], args: argparse.Namespace) -> dict[str, Any]:
    jobs = {job: {key: value for key, value in row.items() if key != "whole"} for job, row in rows.items()}
    kills = sum(row["kills"] for row in rows.values())
    return {"kills": kills, "seed": args.seed, "device": args.device, "jobs": jobs, "failures": failures}


class Trials:
    """Trials side by side: each of the processes takes the next number until enough kills have found a job at work."""

    def __init__(self, rows: dict[str, dict[str, Any]], starts: dict[str, Any], folder: Path, args: argparse.Namespace) -> None:
        self.rows, self.starts, self.folder, self.args = rows, starts, folder, args
        forks = multiprocessing.get_context("fork")
        self.number, self.kills, self.found = forks.Value("i", 0), forks.Array("i", len(rows)), forks.SimpleQueue()
        self.process = forks.Process

    def work(self) -> None:
        try:
            while sum(self.kills) < self.args.kills:
                with self.number.get_lock():
                    number, self.number.value = self.number.value, self.number.value + 1
                # Of the jobs that were killed least, one after the other: short ones are often done before their moment.
                least = [k for k, kills in enumerate(self.kills) if kills == min(self.kills)]
                index = least[number % len(least)]
                job = list(self.rows)[index]
                row, out = self.rows[job], self.folder / f"trial-{number}"
                draw = random.Random(f"{self.args.seed} {number}")
                kills, failed = trial(job, partial(self.starts[job], out), out, row["whole"], row["seconds"], draw)
                with self.kills.get_lock():
                    self.kills[index] += kills
                self.found.put((number, job, kills, failed))
                shutil.rmtree(out, ignore_errors=True)
        finally:
            self.found.put(None)

    def run(self, failures: list[str]) -> None:
        workers = [self.process(target=self.work) for _ in range(self.args.jobs)]
        for worker in workers:
            worker.start()
        running = len(workers)
        while running:
            if (told := self.found.get()) is None:
                running -= 1
                continue
            number, job, kills, failed = told
            row = self.rows[job]
            row["kills"], row["trials"], row["failures"] = (
                row["kills"] + kills, row["trials"] + 1, row["failures"] + bool(failed),
            )  # fmt: skip
            if failed:
                failures.append(f"trial {number}, {job}: {failed}")
                print(failures[-1], flush=True)
            if self.args.out:  # what is known so far, should this be stopped
                self.args.out.write_text(json.dumps(result(self.rows, failures, self.args)) + "\n", encoding="utf-8")
        for worker in workers:
            worker.join()
            if worker.exitcode:
                failures.append(f"a process of trials ended with {worker.exitcode}")


def main(argv: list[str] | None = None) -> int:
    everything = [*METHODS, *(f"export-{name}" for name in EXPORTS)]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="that find a job at work (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials side by side (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=everything, default=everything, metavar="JOB", help="default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="results as JSON, kept up to date")
    parser.add_argument("--job", nargs=2, metavar=("JOB", "DIR"), help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    loop.run_fit.__kwdefaults__["checkpoint_seconds"] = CHECKPOINT_SECONDS
    if args.job:
        name, out = args.job[0], Path(args.job[1])
        job = jobs_of([name], args.folder, args.device)[name]
        out.with_suffix(".started").touch()
        job(out, args.resume)
        return 0
    absent = {job: [name for name in needed if problem(name)] for job, needed in NEEDS.items() if job in args.only}
    absent = {job: names for job, names in absent.items() if names}
    names, failures, began = [job for job in args.only if job not in absent], list[str](), time.monotonic()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="anchor4d-reliability-") as temporary:
        folder = Path(temporary)
        if failed := Child("prepare", partial(prepare, names, folder), folder / "inputs", False, None).finish():
            print(f"inputs: {failed}")
            return 1
        command, jobs = None, dict[str, Job]()
        if args.device == "cpu":
            jobs = jobs_of(names, folder, args.device)
        else:  # this process leaves the card alone
            command = [sys.executable, __file__, "--device", args.device, "--folder", str(folder)]
        starts = {job: partial(started, job, jobs.get(job), command) for job in names}
        for job in names:  # twice: the first compiles kernels, and both must be the same
            made = []
            for run in ("first", "second"):
                out = folder / f"{run}-{job}"
                if args.device == "cpu" and run == "first" and job == "pla4d":  # as prepared
                    made.append(contents(out))
                    continue
                if run == "first":
                    shutil.rmtree(out, ignore_errors=True)
                child = starts[job](out, False)
                since = time.monotonic()
                if (failed := child.finish()) and job.startswith("export-") and "InputError" in failed:
                    absent[job] = [failed.rpartition("InputError: ")[2]]  # a package that is not here
                    break
                if failed:
                    print(f"{job}: {failed}")
                    return 1
                rows[job] = {"kills": 0, "trials": 0, "failures": 0, "seconds": round(time.monotonic() - since, 2)}
                made.append(contents(out))
            if job in absent:
                continue
            rows[job]["whole"] = made[0]
            if made[0] != made[1]:
                failures.append(f"{job}: two runs that nobody killed differ")
                print(failures[-1], flush=True)
        Trials(rows, starts, folder, args).run(failures)
    found = result(rows, failures, args) | {"left out": absent, "minutes": round((time.monotonic() - began) / 60, 1)}
    for job, row in found["jobs"].items():
        print(
            f"{job:22} {row['kills']:4} kills in {row['trials']:4} trials, {row['failures']} failed  (a run {row['seconds']} s)"
        )
    if args.out:
        args.out.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(json.dumps(found))
    return 1 if failures else 0


def started(name: str, job: Job | None, command: list[str] | None, out: Path, resume: bool) -> Child:
    return Child(name, job, out, resume, command)


if __name__ == "__main__":
    raise SystemExit(main())
