"""What a metric is, what it is measured on, and measuring with all that can be: :data:`METRICS` is what there is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

from ..cameras import Cameras
from ..files import InputError
from ..packages import problems
from ..priors.models import find, missing
from ..registry import Registry

Network = TypeVar("Network")
#: What a metric may need beside pictures of the result.
Need = Literal["truth", "text", "image", "views", "cameras", "depth"]
#: The key of a value that belongs to all views together, and of the mean over views.
ALL, MEAN = "all", "mean"

_LACKING: dict[Need, str] = {
    "truth": "needs true pictures of the same views, give a reference",
    "text": "needs a text that says what the object is and does",
    "image": "needs a picture of the object",
    "views": "needs two views and more",
    "cameras": "needs the cameras of two views and more: a scene, or a case that says its camera",
    "depth": "needs depth of the result and of the reference",
}


@dataclass(frozen=True)
class Footage:
    """Pictures of one object over time from one or several sides, and what they are compared with.

    Args:
        views: the result by view, each (T, H, W, 4) as :func:`anchor4d.core.metrics.on_white` gives it; a view's name is its
            azimuth in degrees where it has one.
        truth: the true pictures of those views that have some, of the same shape.
        text: what the object is and does.
        image: a picture of the object, (H, W, 4) on white.
        depth, true_depth: z-depth by view, (T, H, W) in any unit, 0 where nothing is.
        cameras: of the views, (1,) each.
        driving: name of the view that the method saw; means leave it out where there are others.
        fps: frames a second.
        device: where networks run.
        networks: used in place of those on this machine, by the model's name.
    """

    views: Mapping[str, np.ndarray]
    truth: Mapping[str, np.ndarray] = field(default_factory=dict)
    text: str = ""
    image: np.ndarray | None = None
    depth: Mapping[str, np.ndarray] = field(default_factory=dict)
    true_depth: Mapping[str, np.ndarray] = field(default_factory=dict)
    cameras: Mapping[str, Cameras] = field(default_factory=dict)
    driving: str = "0"
    fps: float = 12.0
    device: str = "cpu"
    networks: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, true in self.truth.items():
            seen = self.views.get(name)
            if seen is None:
                raise InputError(f"view {name}: the reference has it and the result has not, render it")
            if seen.shape != true.shape:
                raise InputError(
                    f"view {name}: renders of {seen.shape[0]} frames at {seen.shape[2]}x{seen.shape[1]} where the truth has "
                    f"{true.shape[0]} at {true.shape[2]}x{true.shape[1]}, render the same frames at the same size"
                )

    def pairs(self) -> list[tuple[str, np.ndarray, np.ndarray]]:  # name, (T, H, W, 4), (T, H, W, 4)
        """Result and truth of every view that has both."""
        return [(name, self.views[name], true) for name, true in self.truth.items()]

    def has(self, need: Need) -> bool:
        """Whether there is what a metric may need."""
        return {
            "truth": bool(self.truth),
            "text": bool(self.text.strip()),
            "image": self.image is not None,
            "views": len(self.views) > 1,
            "cameras": len(self.views.keys() & self.cameras.keys()) > 1,
            "depth": bool(self.depth.keys() & self.true_depth.keys()),
        }[need]

    def network(self, name: str, load: Callable[[str, str], Network]) -> Network:
        """A model's network, read once.

        Args:
            name: of the registry of models.
            load: from the model's name and the device.
        """
        if name not in self.networks:
            self.networks[name] = load(name, self.device)
        return self.networks[name]


@dataclass(frozen=True)
class Metric:
    """An entry of :data:`METRICS`.

    Args:
        name: as it is chosen.
        text: what it says, and by which definition.
        better: which way.
        compute: values by view, or one under :data:`ALL`.
        needs: what the footage must have.
        models: names of ``models list`` whose weights it asks.
        packages: Python packages beyond the pack's own.
        frames: how many each view must have.
        ideal: the value of a result that equals its reference; None where that depends on the pictures.
        by_name: whether it is measured only where it is named.
    """

    name: str
    text: str
    better: Literal["higher", "lower"]
    compute: Callable[[Footage], dict[str, float]] = field(repr=False)
    needs: frozenset[Need] = frozenset()
    models: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    frames: int = 1
    ideal: float | None = None
    by_name: bool = False

    def lacks(self, footage: Footage) -> str:
        """Why it cannot be measured here, in a few words; "" where it can."""
        if lacking := [_LACKING[need] for need in sorted(self.needs) if not footage.has(need)]:
            return "; ".join(lacking)
        if (fewest := min(len(view) for view in footage.views.values())) < self.frames:
            return f"needs at least {self.frames} frames, there are {fewest}"
        if reason := problems(*self.packages) if self.packages else "":
            return reason
        absent = [name for name in self.models if name not in footage.networks and find(name) is None]
        return "; ".join(str(missing(name)) for name in absent)


METRICS: Registry[Metric] = Registry("metric", __package__)


def metric(
    name: str, *, text: str, better: Literal["higher", "lower"], needs: Collection[Need] = (), **facts: Any
) -> Callable[[Callable[[Footage], dict[str, float]]], Callable[[Footage], dict[str, float]]]:
    """Decorator that registers a function of a footage as a metric; arguments as :class:`Metric`."""

    def decorate(compute: Callable[[Footage], dict[str, float]]) -> Callable[[Footage], dict[str, float]]:
        METRICS.add(name, Metric(name, text, better, compute, frozenset(needs), **facts))
        return compute

    return decorate


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Args:
        values: by metric, then by view; under "mean" the mean over views without the driving one, or the one value.
        left_out: what could not be, and why.
    """

    values: dict[str, dict[str, float]]
    left_out: dict[str, str]

    def table(self) -> str:
        """Means, and what was left out, as lines to print."""
        width = max((len(name) for name in (*self.values, *self.left_out)), default=0)
        arrows = {"higher": "higher = better", "lower": "lower = better"}
        lines = [f"{name:{width}}  {v[MEAN]:10.4f}  {arrows[METRICS[name].better]}" for name, v in self.values.items()]
        return "\n".join(lines + [f"{name:{width}}  left out: {reason}" for name, reason in self.left_out.items()])


def measure(
    footage: Footage, names: Iterable[str] | None = None, progress: Callable[[int, int], None] | None = None
) -> Measured:
    """Measure what can be: a metric that lacks something is left out, and what it lacks is said.

    Args:
        names: of :data:`METRICS`; where None all but those that want to be named.
        progress: called with metrics done and their number; it may raise to interrupt.

    Raises:
        InputError: for an unknown name, or where nothing of what is named can be measured.
    """
    every = [name for name, each in METRICS.items() if not each.by_name]
    chosen = [METRICS.named(name) for name in (every if names is None else dict.fromkeys(names))]
    values: dict[str, dict[str, float]] = {}
    left_out: dict[str, str] = {}
    for done, each in enumerate(chosen):
        if progress is not None:
            progress(done, len(chosen))
        if reason := each.lacks(footage):
            left_out[each.name] = reason
            continue
        try:
            found = each.compute(footage)
        except InputError as error:
            left_out[each.name] = str(error)
            continue
        values[each.name] = {**found, MEAN: mean_of_views(found, footage.driving)}
    if names is not None and not values:
        raise InputError("; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "metrics: name at least one")
    return Measured(values, left_out)


def mean_of_views(found: Mapping[str, float], driving: str = "0") -> float:
    """The mean over views, without the driving one where there are others."""
    others = [value for view, value in found.items() if view != driving]
    return float(np.mean(others or list(found.values())))


def markdown_table() -> str:
    """The registry as docs/metrics.md shows it."""
    rows = ["| Metric | What it says | Better | Needs |", "|---|---|---|---|"]
    for name, each in METRICS.items():
        needs = [*sorted(each.needs), *each.models, *each.packages, *([f"{each.frames} frames"] if each.frames > 1 else [])]
        rows.append(f"| `{name}` | {each.text} | {each.better} | {', '.join(needs)} |")
    return "\n".join(rows)
