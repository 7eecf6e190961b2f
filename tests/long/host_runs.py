"""Runs of the demo graph in one ComfyUI: what the process holds goes back to its level; two prompts queued; a widget changed.

    python tests/long/host_runs.py --runs 100 [--comfyui DIR] [--python FILE] [--out results.json]

The graph is 1_demo at sizes that take seconds. Every run has another seed; before every second one the host is asked to let go
of what it keeps, so that every node runs again. After each run the server process is measured: memory, threads and open files.
It holds where the medians of the last ten runs are not above those of the ten behind the warm-up by more than an allowance.
Two prompts are queued at once, and each must leave the scene that it leaves alone. Widgets are changed one by one, and exactly
the nodes that depend on them must run again. Prints one line of JSON; exit code 1 where something does not hold. Needs Linux,
whose /proc is read.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "host")]

from conftest import Host, running

from anchor4d.core.scene.scene import Scene4D

#: Below the tests' own sizes: what is tried is the host, not the fit.
SMALLER = {
    "Anchor4DSample": {"frames": 3, "size": 64},
    "Anchor4DFitGaussians": {"gaussians": 300, "steps": 2, "resolution": 32},
    "Anchor4DMotionAlignment": {
        "steps": 2, "tracking_steps": 1, "fine_steps": 1, "refine_steps": 0, "control_nodes": 20, "resolution": 32,
    },
    "Anchor4DPlayScene": {"size": 64},
    "Anchor4DFocalAlignment": {"front": "degrees", "front.yaw": 0.0},
    "Anchor4DRenderScene": {"size": 64},
}  # fmt: skip
#: Every so many runs the prior takes part.
WITH_PRIOR = 10
#: Runs until caches are warm, runs whose medians are compared, and what may be more: megabytes, threads, open files.
WARM, LEVEL = 10, 10
ALLOWED = {"megabytes": 40.0, "threads": 1.0, "files": 1.0}


@dataclass(frozen=True)
class Checkout:
    """A host and its interpreter."""

    path: Path
    python: Path


def demo(seed: int, prefix: str = "3d/run") -> dict[str, Any]:
    """The demo's graph at its smallest."""
    prompt = Host.workflow("1_demo")
    for node in prompt.values():
        node["inputs"] |= SMALLER.get(node["class_type"], {})
    Host.only(prompt, "Anchor4DFitGaussians")[1]["seed"] = seed
    Host.only(prompt, "Anchor4DSaveScene")[1]["filename_prefix"] = prefix
    return prompt


def held(process: int) -> dict[str, float]:
    """Resident megabytes, threads and open files of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line)
    return {
        "megabytes": int(status["VmRSS"].split()[0]) / 1024,
        "threads": int(status["Threads"]),
        "files": len(os.listdir(f"/proc/{process}/fd")),
    }


def errors_in(log: str) -> tuple[list[str], list[str]]:
    """The last lines of the tracebacks in a log: of those with a frame in this pack, and of the host's own."""
    ours, others = list[str](), list[str]()
    for text in re.split(r"^.*Traceback \(most recent call last\):\n", log, flags=re.MULTILINE)[1:]:
        stack, error = re.match(r"((?:\s.*\n)*)(.*)", text).groups()  # pyright: ignore[reportOptionalMemberAccess]
        (ours if "custom_nodes/anchor4d" in stack or str(ROOT) in stack else others).append(error)
    return ours, others


def dependents(prompt: dict[str, Any], changed: str) -> set[str]:
    """A node, and the nodes that what leaves it reaches."""
    found, before = {changed}, 0
    while len(found) > before:
        before = len(found)
        for key, node in prompt.items():
            if any(isinstance(value, list) and value[0] in found for value in node["inputs"].values()):
                found.add(key)
    return found


def change_widgets(host: Host) -> list[str]:
    """What does not hold where one widget after another is changed."""
    wrong, prompt = [], demo(1)

    def run(name: str, wanted: set[str]) -> None:
        outcome = host.run(prompt)
        if outcome.ended != "execution_success" or set(outcome.ran) != wanted:
            kinds = sorted({prompt[key]["class_type"] for key in set(outcome.ran) ^ wanted})
            wrong.append(f"{name}: {outcome.ended}, {kinds}")

    host.post("/free", {"unload_models": True, "free_memory": True})
    run("first", set(prompt))
    run("unchanged", set())
    for kind, name, value in (
        ("Anchor4DMotionAlignment", "steps", 3),
        ("Anchor4DPlayScene", "size", 96),
        ("Anchor4DFocalAlignment", "front.yaw", 5.0),
        ("Anchor4DSample", "truth_azimuth", "105"),
    ):
        key, inputs = host.only(prompt, kind)
        inputs[name] = value
        run(f"{kind}.{name}", dependents(prompt, key))
    return wrong


def queue_two(host: Host) -> list[str]:
    """What does not hold where two prompts are queued at once; each alone comes behind."""
    ended: dict[str, str] = {}

    def follow(seed: int, name: str) -> None:
        ended[name] = host.run(demo(seed, f"3d/{name}")).ended

    threads = [threading.Thread(target=follow, args=(seed, f"queued{seed}")) for seed in (1001, 1002)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1001, 1002):
        host.post("/free", {"unload_models": True, "free_memory": True})
        follow(seed, f"alone{seed}")
    wrong = [f"{name}: {word}" for name, word in ended.items() if word != "execution_success"]
    if wrong:
        return wrong
    folder = host.folder / "output" / "3d"
    for seed in (1001, 1002):
        queued, alone = (Scene4D.load(next(folder.glob(f"{name}{seed}_*.safetensors"))) for name in ("queued", "alone"))
        for a, b in zip(queued.bake(), alone.bake(), strict=True):
            wrong += [f"{seed}: {name} differs" for name, value in a.tensors().items() if not value.equal(b.tensors()[name])]
    return wrong


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=100, help=f"more than {WARM + 2 * LEVEL} (default: %(default)s)")
    comfyui = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    parser.add_argument("--comfyui", type=Path, default=comfyui, help="its checkout (default: COMFYUI_PATH)")
    parser.add_argument("--python", type=Path, default=os.environ.get("COMFYUI_PYTHON"), help="its interpreter")
    parser.add_argument("--out", type=Path, help="every run's numbers as JSON")
    args = parser.parse_args(argv)
    if args.runs < WARM + 2 * LEVEL:
        parser.error(f"--runs {args.runs}: choose {WARM + 2 * LEVEL} or more")
    checkout = Checkout(args.comfyui, args.python or args.comfyui / ".venv" / "bin" / "python")
    began, rows, failures = time.monotonic(), [], list[str]()
    with tempfile.TemporaryDirectory(prefix="anchor4d-host-runs-") as name, running(checkout, Path(name), ()) as host:
        failures += change_widgets(host)
        failures += queue_two(host)
        print(*failures, sep="\n", file=sys.stderr, flush=True)
        for number in range(args.runs):
            if number % 2:
                host.post("/free", {"unload_models": True, "free_memory": True})
            prompt = demo(2000 + number)
            if number % WITH_PRIOR == 0:
                host.only(prompt, "Anchor4DMotionAlignment")[1]["refine_steps"] = 1
            outcome = host.run(prompt)
            if outcome.ended != "execution_success":
                failures.append(f"run {number}: {outcome.ended}: {outcome.detail.get('exception_message', '')}")
            rows.append(held(host.process.pid))
            if args.out:
                args.out.write_text(json.dumps(rows) + "\n", encoding="utf-8")
        ours, others = errors_in(host.log)
        failures += [f"in the host's log: {error}" for error in ours]
    level = {}
    for key, allowed in ALLOWED.items():
        early, late = (statistics.median(row[key] for row in part) for part in (rows[WARM : WARM + LEVEL], rows[-LEVEL:]))
        level[key] = [round(early, 1), round(late, 1)]
        if late > early + allowed:
            failures.append(f"{key}: {early:.1f} after {WARM} runs, {late:.1f} in the end")
    seconds = round(time.monotonic() - began)
    print(json.dumps({"runs": args.runs, "level": level, "seconds": seconds, "host": others, "failures": failures}))
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
