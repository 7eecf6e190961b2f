"""Many runs: rows read and refused, processes that break or are interrupted, a cluster that loses a node, copies."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from anchor4d import cli
from anchor4d.bench.batch import fit_row, read_jobs
from anchor4d.core.files import Busy, InputError
from anchor4d.core.runs import batch as batch_module
from anchor4d.core.runs.batch import Job, Report, finished, run_batch, run_job, summary, table

#: A package with a method that takes no fit: it counts to 12, a checkpoint each, and says so in a file. A prompt that ends
#: in "dies" kills its process at 6, the first time it gets there; one that ends in "slow" takes its time.
PLUGIN = """
import os, signal, time
from dataclasses import dataclass
from pathlib import Path
import torch
import anchor4d as a4d
from anchor4d.core.cameras import Crop, FrontCamera
from anchor4d.core.deformation import ControlNodes
from anchor4d.core.fit.loop import Schedule
from anchor4d.core.gaussians import from_points
from anchor4d.core.methods.stages import Config, MotionConfig, StaticConfig

@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    frames: int = 2
    fps: float = 6.0

def settings(choice):
    once = Schedule(steps=1, resolutions=((1.0, 16),))
    return Settings(name=choice.preset, static=StaticConfig(8, once, ()), motion=MotionConfig("control-nodes", once, ()))

def say(word):
    with open(os.environ["ANCHOR4D_TEST_SAID"], "a") as said:
        said.write(word + "\\n")

@a4d.method("count", title="Count", source="a test", settings=settings, summary="counts", follows="text", needs_object=False)
def plan(run):
    kept = run.folder / "count.txt"
    first = int(kept.read_text()) if kept.exists() else 0
    node = os.environ.get("RAY_NODE_ID", "")
    if "RAY_JOB_ID" in os.environ or node:
        import ray
        node = ray.get_runtime_context().get_node_id()
    say(f"start|{run.prompt}|{first}|{node}|{os.getpid()}")
    for step in range(first, 12):
        kept.write_text(str(step))
        if run.prompt.endswith("dies") and step == 6 and first < 6:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.5 if run.prompt.endswith("slow") else 0.02)
        run.clock("count", step, 12, {"count": 1.0}, lambda: torch.ones(4, 4, 3))
    run.clock("count", 12, 12, {}, lambda: torch.ones(4, 4, 3))
    gaussians = from_points(0.5 * torch.eye(3), torch.rand(3, 3), opacity=0.7)
    front = FrontCamera(fovy=40.0, distance=2.0, width=16, height=16, cx=8.0, cy=8.0)
    field = ControlNodes.on_surface(gaussians, 2, nodes=3)
    scene = a4d.Scene4D(gaussians, field, frames=2, fps=6.0, front=front, crop=Crop(0, 0, 16, 16, 16))
    say(f"done|{run.prompt}|{os.getpid()}|{node}")
    return scene
"""
COMMON = ["method=count", "renderer=torch", "device=cpu"]


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The method, installed as a package; what its runs say."""
    site = tmp_path / "site"
    (site / "count_plugin-1.0.dist-info").mkdir(parents=True)
    (site / "count_plugin.py").write_text(PLUGIN)
    (site / "count_plugin-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: count-plugin\nVersion: 1.0\n")
    (site / "count_plugin-1.0.dist-info" / "entry_points.txt").write_text("[anchor4d]\ncount = count_plugin\n")
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("ANCHOR4D_TEST_SAID", str(tmp_path / "said.txt"))
    (tmp_path / "said.txt").touch()
    return tmp_path / "said.txt"


def lines(said: Path, word: str) -> list[list[str]]:
    return [line.split("|")[1:] for line in said.read_text().splitlines() if line.startswith(f"{word}|")]


def write_rows(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Rows


def test_rows_become_options_of_fit(tmp_path: Path) -> None:
    (tmp_path / "fox.mp4").write_bytes(b"film")
    (tmp_path / "rows.csv").write_text(
        "name,video,seed,without,strict,start\nfox,fox.mp4,3,oda;ao,yes,0.5\n,fox.mp4,,,no,\n", encoding="utf-8-sig"
    )
    fox, second = read_jobs(tmp_path / "rows.csv", ["preset=draft", "seed=7"])
    args = cli.parser().parse_args(["fit", *fox.arguments, "--out=x"])
    assert (args.video, args.seed, args.without, args.strict) == (str(tmp_path / "fox.mp4"), 3, ["oda", "ao"], True)
    assert (args.start, args.preset) == (0.5, "draft")
    other = cli.parser().parse_args(["fit", *second.arguments, "--out=x"])
    assert (second.name, other.seed, other.without, other.strict, other.start) == ("002", 7, [], False, 0.0)
    listed = write_rows(tmp_path / "rows.jsonl", [{"name": "fox", "video": "fox.mp4", "seed": 3, "without": ["oda", "ao"]}])
    (again,) = read_jobs(listed, ["preset=draft", "strict=true", "start=0.5"])
    assert again.key == fox.key  # however it is written
    (tmp_path / "fox.mp4").write_bytes(b"another film")
    assert read_jobs(tmp_path / "rows.csv", ["preset=draft", "seed=7"])[0].key not in ("", fox.key)


def test_cases_are_runs(tmp_path: Path) -> None:
    (tmp_path / "fox" / "front").mkdir(parents=True)
    (tmp_path / "fox" / "front" / "000.png").write_bytes(b"")
    (tmp_path / "fox" / "mesh.glb").write_bytes(b"")
    (tmp_path / "fox" / "case.json").write_text('{"fps": 8}')
    (tmp_path / "horse").mkdir()
    (tmp_path / "horse" / "prompt.txt").write_text("a horse\n")
    (tmp_path / "nothing").mkdir()
    fox, horse = read_jobs(tmp_path)
    assert set(fox.arguments) == {f"--video={tmp_path}/fox/front", f"--object={tmp_path}/fox/mesh.glb", "--fps=8"}
    assert (horse.name, horse.arguments) == ("horse", ("--prompt=a horse",))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "name,vidoe\nfox,a.mp4\n", "'vidoe' is no option of fit; choose of name, method"),
        ("a.csv", "name,out\nfox,x\n", "'out' is no option of fit"),
        ("a.csv", "prompt\na fox, red\n", "run 1: more cells than the header names"),
        ("a.csv", "name,prompt\n../x,a fox\n", "run 1: name '../x': choose letters"),
        ("a.csv", "name,prompt\nFox,a\nfox,b\n", "run 2: is named 'fox' like run 1"),
        ("a.csv", "name,prompt\n", "no runs in it"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2: is no JSON"),
        ("a.jsonl", "[1]\n", "line 1: is no JSON object"),
        ("a.xlsx", "", "choose a .csv"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(words)):
        read_jobs(tmp_path / name)


def test_a_row_that_is_wrong_says_why_and_stops_no_other(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "seed": "x"},
        {"prompt": ["a"]},
        {"prompt": "a", "colour": 1},
        {"prompt": "a", "loop": "perhaps"},
        {"prompt": "a"},
    ]
    refused = [job.refused for job in read_jobs(write_rows(tmp_path / "a.jsonl", rows))]
    assert "--seed: 'x': choose a whole number" in refused[0]
    assert 'prompt: ["a"]: choose a text or a number' in refused[1]
    assert "'colour' is no option of fit" in refused[2]
    assert "'perhaps': choose yes or no" in refused[3]
    assert refused[4] == ""


def test_the_table_says_how_runs_ended() -> None:
    rows = [
        {"name": "a", "state": "done", "seconds": 2.0, "processor_seconds": 3.0},
        {"name": "b", "state": "done", "seconds": 4.0, "processor_seconds": 5.0},
        {"name": "c", "state": "failed", "error": "a|b"},
    ]
    assert table(rows).splitlines()[0] == "| run | state | s | processor s | error |"
    assert table(rows).splitlines()[-1] == "| c | failed |  |  | a\\|b |"
    assert summary(rows) == "3 runs: 2 done, 1 failed; a finished run took 3.0 s, of processors 4.0 s"


# What is tried again


class Inline:
    """An executor that makes runs in this process, one at a time; ``makes`` are what its runs do, in order."""

    def __init__(self, out: Path, *makes: Callable[[], None]) -> None:
        self.out, self.makes, self.left = out, iter(makes), []
        self.arguments: list[list[str]] = []

    def room(self) -> bool:
        return not self.left

    def start(self, job: Job, attempt: int) -> None:
        def run(arguments: Sequence[str], report: Report) -> None:
            self.arguments.append(list(arguments))
            next(self.makes)()

        self.left = [(job, run_job(job, self.out, run, attempt, lambda stage, step, steps: None))]

    def ended(self, seconds: float) -> list[tuple[Job, dict[str, Any]]]:
        found, self.left = self.left, []
        return found

    def doing(self) -> list[str]:
        return []

    def stop(self) -> None:
        pass


class Silent:
    def line(self, text: str) -> None:
        pass

    def step(self, stage: str, step: int, steps: int, note: str = "") -> None:
        pass


def raising(error: Exception) -> Callable[[], None]:
    def make() -> None:
        raise error

    return make


def test_a_folder_that_another_run_holds_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "BUSY_SECONDS", 0.0)
    here = Inline(tmp_path, *[raising(Busy("x: another run is writing"))] * 3, lambda: None)
    (record,) = run_batch([Job("a", key="k")], tmp_path, here, Silent())
    assert (record["state"], record["tries"]) == ("done", 1)
    # Not for ever.
    here = Inline(tmp_path, *[raising(Busy("x: another run is writing"))] * 99)
    (record,) = run_batch([Job("b", key="k")], tmp_path, here, Silent())
    assert record["state"] == "failed" and "another run is writing" in record["error"]
    assert len(here.arguments) == batch_module.BUSY_TRIES + 1


def test_a_run_that_breaks_is_tried_so_often_and_one_that_refuses_once(tmp_path: Path) -> None:
    jobs = [Job("a", key="k"), Job("b", key="k")]
    here = Inline(tmp_path, *[raising(RuntimeError("out of\nmemory"))] * 3, raising(InputError("b: no such video")))
    a, b = run_batch(jobs, tmp_path, here, Silent(), retries=2)
    assert (a["state"], a["tries"], a["error"]) == ("failed", 3, "RuntimeError: out of memory; see log.txt")
    assert (b["state"], b["tries"], b["error"]) == ("failed", 1, "b: no such video")
    assert ["--resume" in arguments for arguments in here.arguments] == [False, True, True, False]
    assert "Traceback" in (tmp_path / "a" / "log.txt").read_text()


def test_checkpoints_of_another_run_are_not_gone_on_from(tmp_path: Path) -> None:
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    here = Inline(tmp_path, raising(InputError("no")), raising(InputError("no")))
    for _ in range(2):  # refused before the folder was its own: the other run's checkpoints are still there
        run_batch([Job("a", key="k")], tmp_path, here, Silent())
    assert ["--resume" in arguments for arguments in here.arguments] == [False, False]


# Processes of this machine


@pytest.mark.skipif(os.name == "nt", reason="no process kills itself by a signal on Windows")
def test_a_broken_run_stops_no_other_and_one_that_dies_goes_on(
    tmp_path: Path, said: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"name": "good", "prompt": "a fox"},
        {"name": "bad", "video": "gone.mp4", "method": "pla4d"},
        {"name": "killed", "prompt": "a fox dies"},
    ]
    jobs, out, copies = write_rows(tmp_path / "a.jsonl", rows), tmp_path / "out", tmp_path / "copies"
    argv = ["batch", str(jobs), "--set", *COMMON, "--workers", "2", "--out", str(out), "--to", copies.as_uri()]
    assert cli.main(argv) == 2
    printed = capsys.readouterr()
    assert "1 of 3 runs failed (bad)" in printed.err
    records = {record["name"]: record for record in json.loads((out / "batch.json").read_text())["runs"]}
    assert [records[name]["state"] for name in ("good", "bad", "killed")] == ["done", "failed", "done"]
    assert "gone.mp4" in records["bad"]["error"] and "tries" in records["bad"] and records["bad"]["tries"] == 1
    assert records["killed"]["tries"] == 2 and records["good"]["method"] == "count"
    assert "| killed | done | count |" in (out / "batch.md").read_text()
    assert 'href="killed/report.html"' in (out / "batch.html").read_text()
    # From its checkpoint.
    assert [first for prompt, first, _, _ in lines(said, "start") if prompt == "a fox dies"] == ["0", "6"]
    assert "count  1" in (out / "good" / "log.txt").read_text()
    for name in ("good", "killed"):
        assert (copies / name / "scene.safetensors").read_bytes() == (out / name / "scene.safetensors").read_bytes()
        assert (copies / name / "job.json").read_bytes() == (out / name / "job.json").read_bytes()
    assert (copies / "batch.md").is_file() and not (copies / "bad").exists()
    # The same again: what is done stays, also where only the copy is left; what was refused is tried.
    before = len(lines(said, "start"))
    (out / "good" / "scene.safetensors").unlink()
    assert cli.main(argv) == 2
    assert "2 of 3 finished before" in capsys.readouterr().err
    assert len(lines(said, "start")) == before
    # Another seed is another run.
    assert finished(read_jobs(jobs, [*COMMON, "seed=1"])[0], out) is None


@pytest.mark.skipif(os.name == "nt", reason="a console signal cannot be sent to one child alone on Windows")
def test_an_interrupted_batch_goes_on(tmp_path: Path, said: Path) -> None:
    jobs = write_rows(tmp_path / "a.jsonl", [{"name": "fox", "prompt": "a fox slow"}])
    command = [sys.executable, "-m", "anchor4d", "batch", str(jobs), "--set", *COMMON, "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "fox: count" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert rest.endswith("interrupted; run the same command to go on\n")
    assert json.loads((tmp_path / "out" / "fox" / "job.json").read_text())["state"] == "interrupted"
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (_, first, *_), (_, second, *_) = lines(said, "start")
    assert first == "0" and int(second) > 0
    assert len(lines(said, "done")) == 1


# Ray


class Killer:
    """A console that takes a node away once runs have begun on it."""

    def __init__(self, out: Path, said: Path, cluster: Any, node: Any) -> None:
        self.out, self.said, self.cluster, self.node, self.killed = out, said, cluster, node, False

    def line(self, text: str) -> None:
        pass

    def step(self, stage: str, step: int, steps: int, note: str = "") -> None:
        ended = [prompt for prompt, _, _ in lines(self.said, "done")]
        begun = [line for line in lines(self.said, "start") if line[2] == self.node.node_id and line[0] not in ended]
        counts = [self.out / f"run{prompt.split()[1]}" / "checkpoints" / "count.txt" for prompt, *_ in begun]
        if not self.killed and any(path.is_file() and int(path.read_text() or 0) >= 2 for path in counts):
            self.killed = True
            # A node that dies takes all its processes: Ray's own, and the run's.
            self.cluster.remove_node(self.node, allow_graceful=False)
            for _, _, _, process in begun:
                with suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)


@pytest.mark.skipif(os.name == "nt", reason="Ray's test clusters are for Linux and macOS")
def test_a_node_that_dies_loses_nothing_and_nothing_is_made_twice(tmp_path: Path, said: Path) -> None:
    pytest.importorskip("ray", reason="needs ray: pip install ray")
    from ray.cluster_utils import Cluster as Nodes

    from anchor4d.core.runs.cluster import Cluster

    rows: list[dict[str, object]] = [{"name": f"run{index}", "prompt": f"object {index} slow"} for index in range(4)]
    rows.append({"name": "bad", "method": "no-such-method", "prompt": "a fox"})
    jobs, out = read_jobs(write_rows(tmp_path / "a.jsonl", rows), COMMON), tmp_path / "out"
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        lost = nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        killer = Killer(out, said, nodes, lost)
        executor = Cluster(fit_row, out, address=nodes.address)
        assert executor.fits()
        records = run_batch(jobs, out, executor, killer)
    finally:
        nodes.shutdown()
    assert killer.killed
    assert [record["state"] for record in records] == ["done"] * 4 + ["failed"]
    assert "no-such-method" in records[-1]["error"]
    assert sorted(prompt for prompt, _, _ in lines(said, "done")) == [f"object {index} slow" for index in range(4)]
    again = [line for line in lines(said, "start") if [line[0] for line in lines(said, "start")].count(line[0]) > 1]
    assert len(again) == 2 and again[0][2] == lost.node_id != again[1][2]
    assert int(again[1][1]) >= 2  # from its checkpoint
    assert all(finished(job, out) is not None for job in jobs[:4])


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anchor4d.core.runs.cluster import Cluster

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="ray is not installed; run: pip install ray"):
        Cluster(fit_row, tmp_path)
    assert Job("a").refused == ""
