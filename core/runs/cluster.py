"""Runs of a batch on a Ray cluster: one that is there, or one of this machine.

A run is a Ray task placed by cards, memory and threads, in a worker process of its own. What a node that dies takes with it
is started again elsewhere, and goes on from its checkpoints where the batch's folder is shared. A run that had finished is
found finished by its record, so that a task which Ray or the batch starts twice makes nothing twice. The nodes have this
package, and its inputs under the same paths: no code is sent.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..files import InputError
from ..packages import problem
from .batch import LOG, Job, Record, Run, run_job


class Cluster:
    """Runs on Ray.

    Args:
        out: the batch's folder, the same on every node; or of each node, with copies by ``to``.
        address: of the cluster; "" takes RAY_ADDRESS, one that runs on this machine, or starts one.
        cards: a run's share of a card; None: a whole one where the cluster has cards, else none.
        memory: of a run, gigabytes; 0 counts none.
        threads: of a run.

    Raises:
        InputError: without Ray, or where no cluster answers.
    """

    def __init__(
        self,
        run: Run,
        out: Path,
        *,
        address: str = "",
        cards: float | None = None,
        memory: float = 0.0,
        threads: int = 1,
        to: str = "",
    ) -> None:
        if reason := problem("ray"):
            raise InputError(f"--on ray: the Python package ray {reason}; run: pip install ray, or leave --on out")
        import ray as library

        self.ray: Any = library
        ray = self.ray
        self.mine = not ray.is_initialized()
        if self.mine:
            try:
                ray.init(address=address or None, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                raise InputError(f"--address {address or 'of this machine'}: no Ray cluster answers ({reason})") from error
        resources = ray.cluster_resources()
        self.needs: dict[str, float] = {
            "CPU": threads,
            "GPU": (1.0 if resources.get("GPU") else 0.0) if cards is None else cards,
            "memory": memory * 1e9,
        }
        options = {"num_cpus": threads, "num_gpus": self.needs["GPU"], "max_retries": 0, "max_calls": 1}
        if memory:
            options["memory"] = int(self.needs["memory"])
        self.task = ray.remote(**options)(_task)
        self.make, self.out, self.to = run, out.resolve(), to
        self.running: dict[Any, tuple[Job, int]] = {}

    def fits(self) -> bool:
        """Whether a node of the cluster, as it is now, is large enough for a run."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return any(all(node.get(name, 0.0) >= need for name, need in self.needs.items()) for node in nodes)

    def room(self) -> bool:
        return True  # Ray queues

    def start(self, job: Job, attempt: int) -> None:
        task = self.task.options(name=f"anchor4d {job.name}")
        self.running[task.remote(self.make, job, str(self.out), attempt, self.to)] = (job, attempt)

    def ended(self, seconds: float) -> list[tuple[Job, Record]]:
        if not self.running:
            time.sleep(seconds)
            return []
        found: list[tuple[Job, Record]] = []
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        for task in ready:
            job, attempt = self.running.pop(task)
            try:
                record = self.ray.get(task)
            except (self.ray.exceptions.RayError, OSError, ValueError) as error:
                why = type(error).__name__
                record = {"name": job.name, "key": job.key, "state": "crashed", "tries": attempt}
                record["error"] = f"its node or process ended ({why}); see {LOG}, or choose more --memory"
            found.append((job, record))
        return found

    def doing(self) -> list[str]:
        nodes = sum(node["Alive"] for node in self.ray.nodes())
        return [f"{len(self.running)} left on {nodes} node{'s' if nodes != 1 else ''}"]

    def stop(self) -> None:
        for task in self.running:
            self.ray.cancel(task)  # interrupts: the run ends its step and keeps a checkpoint
        if self.running:
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=60)
        if self.mine:
            self.ray.shutdown()


def _task(run: Run, job: Job, out: str, attempt: int, to: str) -> Record:
    """A run in a worker of the cluster."""
    try:
        return run_job(job, Path(out), run, attempt, lambda stage, step, steps: None, to)
    except InputError as error:  # of the copy, or of a full disk
        return {"name": job.name, "key": job.key, "state": "failed", "tries": attempt, "error": " ".join(str(error).split())}
