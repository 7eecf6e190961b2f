"""How fast fits, priors and the rasteriser are on a device, beside what its memory and its arithmetic allow.

    python -m anchor4d bench --speed CASE [--device cuda] [--only ROW ...] [--out DIR]
    python -m anchor4d.bench.speed CASE ...

Prints a Markdown table for docs/benchmarks.md and leaves it as ``speed.md`` and ``speed.json``. The case is a folder as
``bench --cases`` has many of. Networks of published size have random weights: their speed is the same.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.util
import logging
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..core.cameras import orbit
from ..core.files import InputError, atomic_path
from ..core.fit.replay import in_one_order
from ..core.io.objects import load_object
from ..core.io.video import load_video
from ..core.methods.plan import Clock, MethodRun
from ..core.methods.registry import METHODS, method_config
from ..core.priors.base import Prior
from ..core.priors.distill import Distillation
from ..core.priors.estimate import _views
from ..core.priors.graphs import Graphs
from ..core.render import available_backends
from ..core.runs.report import write_json
from ..core.scene.object3d import Object3D
from ..core.scene.scene import Scene4D
from ..core.video import DrivingVideo
from .rasterize import bumpy_sphere, measure

log = logging.getLogger(__name__)

#: Steps that are taken of a fit that is too long to be taken whole.
TAKEN = 12
#: What a view costs in memory traffic, bytes, arithmetic of the notes on rasterisation: records and gradients of a Gaussian,
#: what is gathered and sorted of an intersection with a tile, of which a Gaussian has about three, and pictures.
PER_GAUSSIAN, PER_INTERSECTION, INTERSECTIONS, PER_PIXEL = 192, 200, 3, 80


@dataclass(frozen=True)
class Row:
    """A measurement.

    Args:
        name: what was measured.
        value, unit: the result; None where it was skipped.
        target: what was aimed at, in the same unit, on an H200.
        floor: what the device's bandwidth and matrix rate allow, in the same unit.
        note: stages, or why it was skipped.
    """

    name: str
    value: float | None
    unit: str = "s"
    target: float | None = None
    floor: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Machine:
    """A device's measured rates: bytes a second, and operations a second in float32 and float16."""

    device: str
    bandwidth: float
    single: float
    half: float


def wait(device: str) -> None:
    """Until the device has done all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def seconds(function: Callable[[], Any], device: str, repeat: int = 5) -> float:
    """The median time of a call, after two more."""
    taken = []
    for _ in range(repeat + 2):
        wait(device)
        begin = time.perf_counter()
        function()
        wait(device)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[2:])


def measured_machine(device: str) -> Machine:
    """Its copy bandwidth, and the rate of large matrix products."""
    large = device != "cpu"
    pair = torch.empty(2, (1 << 28) if large else (1 << 24), device=device)
    bandwidth = pair.numel() * 4 / seconds(lambda: pair[0].copy_(pair[1]), device)
    rates = []
    for kind in (torch.float32, torch.float16 if large else torch.float32):
        side = (16384 if kind == torch.float16 else 8192) if large else 1024
        a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
        rates.append(2 * side**3 / seconds(lambda a=a, b=b: a @ b, device, 3))
    return Machine(device, bandwidth, *rates)


def traffic(views: int, gaussians: int, pixels: int) -> float:
    """Bytes that drawing views and their gradients moves at least."""
    return views * (gaussians * (PER_GAUSSIAN + INTERSECTIONS * PER_INTERSECTION) + pixels**2 * PER_PIXEL)


def random_zero123(device: str) -> Prior:
    """Zero123 at its published size with random weights, its networks laid out as they are made."""
    from .memory import _zero123, networks

    half = torch.float16 if device != "cpu" else torch.float32
    torch.manual_seed(0)
    return _zero123(networks(device, half, torch.bfloat16 if device != "cpu" else torch.float32))


@cache
def published_zero123(device: str) -> Prior:
    """The same, laid out as a prior that is loaded."""
    return random_zero123(device).arrange()


@cache
def tiny(device: str) -> Prior:
    """The prior that comes with the pack."""
    from ..core.priors.load import load_prior

    return load_prior("tiny", device=device)


class Watch(Clock):
    """A run's clock that also notes when each step of each stage ended, and the memory that each stage held."""

    def __init__(self, device: str) -> None:
        super().__init__(None)
        self.device, self.stage = device, ""
        self.ends: dict[str, list[float]] = {}
        self.peaks: dict[str, float] = {}

    def __call__(self, stage: str, step: int, steps: int, losses: dict[str, float], preview: Callable[[], Tensor]) -> None:
        super().__call__(stage, step, steps, losses, preview)
        if stage != self.stage and self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        self.stage = stage
        self.ends.setdefault(stage, []).append(time.perf_counter())
        if self.device != "cpu" and step == steps:
            self.peaks[stage] = torch.cuda.max_memory_allocated() / 2**30

    def step_seconds(self, stage: str) -> float:
        """Of a step behind the first few, the mean, by the last one's end: several are under way at once."""
        ends = self.ends[stage]
        first = min(4, len(ends) - 2)
        return (ends[-1] - ends[first]) / (len(ends) - 1 - first)


class Speed:
    """The rows of the table, each a method; all take from a few seconds to a minute on a graphics card."""

    def __init__(self, case: Path, device: str) -> None:
        if not (case / "front").is_dir() or not (case / "mesh.glb").is_file():
            raise InputError(f"{case}: no case, expected a folder with front and mesh.glb")
        self.case, self.device = case, device
        self.machine = measured_machine(device)

    def fit(
        self, name: str, method: str, preset: str, prior: Prior | None, target: float | None, *, sample: bool = False
    ) -> list[Row]:
        """A whole run; with ``sample`` the motion's time is that of a few of its steps, times their number."""
        config = method_config(method, preset, {} if prior is None else {"prior": prior})
        steps = config.motion.schedule.steps
        if sample:
            schedule = replace(config.motion.schedule, steps=TAKEN)
            config = replace(config, motion=replace(config.motion, schedule=schedule))
        total, watch, video, scene = self._run(config, method, load_object(self.case / "mesh.glb"))
        parts = dict(watch.seconds)
        if sample:
            each = watch.step_seconds("3D to 4D")
            total += each * steps - parts["3D to 4D"]
            parts["3D to 4D"] = each * steps
        floor = self._floor(config, len(video), len(scene.gaussians), steps, prior)
        note = ", ".join(f"{k} {v:.2f}" for k, v in parts.items()) + (f"; {TAKEN} of {steps} steps taken" if sample else "")
        rows = [Row(name, total, "s", target, floor, note)]
        if preset == "paper" and method == "pla4d" and prior is None and watch.peaks:
            memory = watch.peaks.get("3D to 4D")
            rows.append(
                Row("memory, PLA4D's motion stage, paper", memory, "GB", 6.0, None, f"{len(scene.gaussians)} Gaussians")
            )
        return rows

    def _run(self, config: Any, method: str, item: Object3D | None) -> tuple[float, Watch, DrivingVideo, Scene4D]:
        """Seconds of a run from its inputs to its scene, without an estimate of them beforehand."""
        video = load_video(self.case / "front", resolution=config.resolution)
        if self.device != "cpu":
            torch.cuda.empty_cache()
        watch, begin = Watch(self.device), time.perf_counter()
        objects = [] if item is None else [item]
        work = MethodRun(config, method, watch, video, objects, device=self.device)
        scene = METHODS.named(method).plan(work)
        wait(self.device)
        return time.perf_counter() - begin, watch, video, scene

    def _floor(self, config: Any, frames: int, gaussians: int, motion_steps: int, prior: Prior | None) -> float:
        """Seconds of memory traffic by the rasteriser, and of a prior's arithmetic, at the measured rates."""
        moved = 0.0
        static = config.static
        views = 1 + sum(getattr(o, "views", 0) for o in static.objectives)
        for steps, pixels in _sizes(static.schedule, static.schedule.steps):
            moved += steps * traffic(views, gaussians, pixels)
        motion = config.motion
        tracking = motion.tracking
        if tracking is not None and tracking.one_by_one:
            moved += tracking.one_by_one * (frames - 1) * traffic(1, gaussians, tracking.resolutions[-1][1])
        for schedule, count in ((motion.schedule, motion_steps), (motion.fine, None)):
            if schedule is not None:
                for steps, pixels in _sizes(schedule, schedule.steps if count is None else count):
                    moved += steps * traffic(schedule.frames or frames, gaussians, pixels)
        work = 0.0
        for objective in motion.objectives:
            for asked in objective.priors():
                if asked.name not in ("zero123", "tiny"):
                    continue
                pictures = frames * objective.views if hasattr(objective, "geometry") else getattr(objective, "views", 1)
                questions = 2 if getattr(objective, "geometry", False) else 1
                work += motion_steps * pictures * distillation_operations(asked, questions)
        return moved / self.machine.bandwidth + work / self.machine.half

    def draft(self) -> list[Row]:
        """PLA4D draft, no prior."""
        return self.fit("PLA4D draft, no prior", "pla4d", "draft", None, 2.5)

    def standard(self) -> list[Row]:
        """PLA4D standard, no prior."""
        return self.fit("PLA4D standard, no prior", "pla4d", "standard", None, 6.0)

    def paper(self) -> list[Row]:
        """PLA4D paper, no prior."""
        return self.fit("PLA4D paper, no prior", "pla4d", "paper", None, 12.0)

    def paper_zero123(self) -> list[Row]:
        """PLA4D paper with Zero123 at its published size."""
        return self.fit("PLA4D paper, Zero123 at its size", "pla4d", "paper", published_zero123(self.device), 30.0)

    def align4d_zero123(self) -> list[Row]:
        """Align4D paper with the same."""
        prior = published_zero123(self.device)
        return self.fit("Align4D paper, Zero123 at its size", "align4d", "paper", prior, 180.0, sample=True)

    def align4d_tiny(self) -> list[Row]:
        """Align4D draft with the tiny prior."""
        return self.fit("Align4D draft, tiny prior", "align4d", "draft", tiny(self.device), 8.0)

    def stag4d_tiny(self) -> list[Row]:
        """STAG4D draft with the tiny prior."""
        config = method_config("stag4d", "draft", {"prior": tiny(self.device), "anchors": tiny(self.device)})
        total, watch, _, _ = self._run(config, "stag4d", None)
        note = ", ".join(f"{k} {v:.2f}" for k, v in watch.seconds.items())
        return [Row("STAG4D draft, tiny prior", total, "s", 8.0, None, note)]

    def sds(self) -> list[Row]:
        """A distillation step of eight pictures."""
        prior = published_zero123(self.device)
        from .memory import PUBLISHED, condition_of

        case = next(case for case in PUBLISHED if case.name.startswith("zero123-xl"))
        condition = condition_of(replace(case, batch=8), prior).map(lambda v: v.to(self.device))
        pictures = torch.rand(8, 1, *prior.resolution, 3, device=self.device).requires_grad_(True)
        views, generator = _views(prior, 8), torch.Generator().manual_seed(0)
        distillation = Distillation(prior)

        def step() -> None:
            torch.autograd.grad(distillation(pictures, condition, 0.5, generator, views), pictures)

        floor = 8 * distillation_operations(prior, 1) / self.machine.half
        name = "SDS step of 8 pictures, Zero123 at its size"
        rows = [Row(name, 1e3 * seconds(step, self.device, 10), "ms", 36.0, 1e3 * floor)]
        plain = random_zero123(self.device)
        return rows + [row for layout in LAYOUTS for row in self._parts(plain, layout)] + self._norms()

    def _parts(self, prior: Prior, layout: str) -> list[Row]:
        """Of a distillation step: the network for 16 samples and the encoder there and back for 8, launched and as graphs."""
        dtype = next(prior.modules["unet"].parameters()).dtype
        LAYOUTS[layout](prior)
        unet: Any = prior.modules["unet"]
        noisy = torch.randn(16, 8, 32, 32, device=self.device, dtype=dtype)
        time_, token = torch.full((16,), 500.0, device=self.device), torch.randn(16, 1, 768, device=self.device, dtype=dtype)
        pictures = torch.rand(8, 1, *prior.resolution, 3, device=self.device).requires_grad_(True)
        graphs = Graphs()

        def network(noisy: Tensor, time_: Tensor, token: Tensor) -> Tensor:
            return unet(noisy, time_, encoder_hidden_states=token).sample

        def there_and_back(encode: Callable[[Tensor], Tensor]) -> None:
            latents = encode(pictures)
            torch.autograd.grad(latents, pictures, torch.ones_like(latents))

        with torch.no_grad():
            launched = seconds(lambda: network(noisy, time_, token), self.device)
            captured = seconds(lambda: graphs(unet, network, noisy, time_, token), self.device)
        back = seconds(lambda: there_and_back(prior.encode), self.device)
        whole = seconds(
            lambda: there_and_back(lambda x: graphs.differentiable(prior.modules["vae"], prior.encode, x)), self.device
        )
        # As within a fit, whose convolutions add in one order.
        with torch.no_grad(), in_one_order():
            ordered = seconds(lambda: network(noisy, time_, token), self.device)
        with in_one_order():
            ordered_back = seconds(lambda: there_and_back(prior.encode), self.device)
        found = {
            "UNet of 16, launched": launched, "UNet of 16, one order": ordered, "UNet of 16, graph": captured,
            "encoder of 8 and back, launched": back, "encoder of 8, one order": ordered_back, "encoder of 8, graph": whole,
        }  # fmt: skip
        return [Row(f"{name}, {layout}", 1e3 * x, "ms") for name, x in found.items()]

    def _norms(self) -> list[Row]:
        """Group norm with SiLU and its gradient, by PyTorch in both layouts and by our kernels; floor: all moved once."""
        from ..core.priors.norms import group_norm

        def there_and_back(function: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> None:
            torch.autograd.grad(function(x), x, gradient)

        rows = []
        for shape in ((8, 128, 256, 256), (8, 512, 32, 32), (16, 320, 32, 32), (16, 1280, 8, 8)):
            norm = torch.nn.GroupNorm(32, shape[1], device=self.device, dtype=torch.bfloat16).requires_grad_(False)
            plain = lambda x, norm=norm: torch.nn.functional.silu(norm(x))  # noqa: E731
            own = lambda x, norm=norm: group_norm(x, norm, silu=True)  # noqa: E731
            for name, function, layout in (
                ("PyTorch, rows of channels", plain, torch.contiguous_format),
                ("PyTorch, channels last", plain, torch.channels_last),
                ("own", own, torch.channels_last),
            ):
                x, gradient = torch.randn(2, *shape, device=self.device, dtype=torch.bfloat16)
                x, gradient = (t.to(memory_format=layout) for t in (x, gradient))
                taken = seconds(lambda: there_and_back(function, x.requires_grad_(), gradient), self.device, 10)  # noqa: B023
                floor = 5 * x.nbytes / self.machine.bandwidth
                rows.append(
                    Row(f"norm of {' x '.join(map(str, shape))} and back, {name}", 1e3 * taken, "ms", None, 1e3 * floor)
                )
        return rows

    def rasterise(self) -> list[Row]:
        """Drawing and its gradients, all backends."""
        rows = []
        for count, views, size in (
            (20000, 7, 128),
            (20000, 7, 256),
            (20000, 7, 512),
            (100000, 7, 256),
            (20000, 1, 256),
            (20000, 32, 256),
        ):
            cameras = orbit(torch.arange(views) * 360 / views, 15.0, 2.0, 49.1, size, size).to(self.device)
            gaussians = bumpy_sphere(count).to(self.device)
            floor = 1e3 * traffic(views, count, size) / self.machine.bandwidth
            for backend in available_backends(self.device):
                if backend == "torch" and self.device != "cpu":
                    continue  # the reference; seconds
                taken = statistics.median(measure(gaussians, cameras, backend, 10)[1])
                name = f"rasteriser {backend}, {count:,} Gaussians, {views} x {size}"
                rows.append(Row(name, 1e3 * taken, "ms", None, floor))
        return rows


def _formatted(prior: Prior, layout: torch.memory_format) -> None:
    for part in ("unet", "vae"):
        prior.modules[part].to(memory_format=layout)  # pyright: ignore[reportCallIssue]


#: How networks may lie in memory, each made of the one before.
LAYOUTS: dict[str, Callable[[Prior], Any]] = {
    "rows of channels": lambda prior: _formatted(prior, torch.contiguous_format),
    "channels last": lambda prior: _formatted(prior, torch.channels_last),
    "channels last, own norms": lambda prior: prior.arrange(),
}

#: Rows by the name that ``--only`` takes, quickest first.
ROWS = (
    "draft", "standard", "paper", "rasterise", "sds", "paper_zero123", "align4d_tiny", "stag4d_tiny", "align4d_zero123",
)  # fmt: skip


def _sizes(schedule: Any, steps: int) -> list[tuple[float, int]]:
    """Steps at each picture size."""
    begin, found = 0.0, []
    for until, pixels in schedule.resolutions:
        found.append(((min(until, 1.0) - begin) * steps, pixels))
        begin = until
    return found


@cache
def distillation_operations(prior: Prior, questions: int) -> float:
    """Operations of a picture's distillation step: the network with and without the condition, the encoder there and back."""
    from torch.utils.flop_counter import FlopCounterMode

    from .memory import PUBLISHED, condition_of

    case = replace(next(case for case in PUBLISHED if case.name.startswith("zero123-xl")), batch=1)
    condition = condition_of(case, prior) if prior.name == "zero123" else None
    if condition is None:
        condition = prior.condition(image=torch.full((1, *prior.resolution, 3), 0.5))
    condition = condition.map(lambda v: v.to(prior.device))
    pictures = torch.rand(1, prior.pictures, *prior.resolution, 3, device=prior.device).requires_grad_(True)
    with FlopCounterMode(display=False) as once:
        Distillation(prior)(pictures, condition, 0.5, torch.Generator(), _views(prior, 1))
    with FlopCounterMode(display=False) as encoding:
        prior.encode(pictures)
    network = once.get_total_flops() - 2 * encoding.get_total_flops()
    return questions * network + 2 * encoding.get_total_flops()


def run_speed(case: Path, device: str, only: Sequence[str] | None = None, out: Path | None = None) -> str:
    """Measures rows and returns the table; what cannot be measured here says why.

    Raises:
        InputError: for no case, or an unknown row.
    """
    unknown = [name for name in only or () if name not in ROWS]
    if unknown:
        raise InputError(f"--only {unknown[0]!r}: no such row, choose of {', '.join(ROWS)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda': not available to this PyTorch; choose cpu")
    speed = Speed(case, device)
    machine = speed.machine
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    facts = {
        "device": name, "torch": torch.__version__, "anchor4d": __version__, "date": datetime.date.today().isoformat(),
        "bandwidth GB/s": machine.bandwidth / 1e9, "float32 TF/s": machine.single / 1e12, "float16 TF/s": machine.half / 1e12,
        "rasterisers": available_backends(device),
    }  # fmt: skip
    rows: list[Row] = []
    for which in only or ROWS:
        method: Callable[[], list[Row]] = getattr(speed, which)
        what = (method.__doc__ or which).strip().rstrip(".")
        if "prior" in which or "tiny" in which or "zero123" in which or which == "sds":
            absent = [p for p in ("diffusers", "transformers") if importlib.util.find_spec(p) is None]
            if absent:
                rows.append(Row(what, None, note=f"skipped: {absent[0]} is not installed"))
                continue
            if device == "cpu" and "tiny" not in which:
                rows.append(Row(what, None, note="skipped: minutes a step on a CPU"))
                continue
        try:
            rows += method()
        except (RuntimeError, InputError) as error:
            rows.append(Row(what, None, note=f"skipped: {str(error).splitlines()[0]}"))
        log.info("%s", "; ".join(f"{row.name}: {row.value}" for row in rows[-1:]))
        gc.collect()
        if out is not None:
            write_json(out / "speed.json", {"facts": facts, "rows": [asdict(row) for row in rows]})
    text = table(facts, rows)
    if out is not None:
        with atomic_path(out / "speed.md") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return text


def table(facts: dict[str, Any], rows: Sequence[Row]) -> str:
    """As Markdown."""
    described = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())
    lines = [described, "", "| what | measured | target | of target | floor | notes |", "|---|---:|---:|---:|---:|---|"]
    for row in rows:
        measured = "-" if row.value is None else f"{row.value:.3g} {row.unit}"
        target = "" if row.target is None else f"{row.target:g} {row.unit}"
        ratio = "" if row.target is None or row.value is None else f"{row.value / row.target:.2f}"
        floor = "" if row.floor is None else f"{row.floor:.2g} {row.unit}"
        lines.append(f"| {row.name} | {measured} | {target} | {ratio} | {floor} | {row.note} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--out", type=Path, default=Path("anchor4d-speed"))
    arguments = parser.parse_args()
    sys.stdout.write(run_speed(arguments.case, arguments.device, arguments.only, arguments.out) + "\n")


if __name__ == "__main__":
    main()
