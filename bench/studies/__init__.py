"""Studies: what is varied, over which values, and which numbers are drawn, one declaration each, found by lying here.

A study's runs, tables and pages are made by :mod:`..studying`. Another package adds one through the entry point group
``anchor4d``, see :mod:`...core.registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.align import FocalAlignment
from ...core.align.distance import ObjectDistance
from ...core.registry import Registry
from ...core.runs.session import Run
from ...core.video import DrivingVideo


@dataclass(frozen=True)
class Inputs:
    """What a run of a study begins with.

    Args:
        frames: of the driving video, straight alpha, (T, H, W, 4); or on a background, (T, H, W, 3).
        fps: frames a second.
        object: file of the object; None where there is none.
        truth: pictures (T', H, W, 4) by azimuth, "0" the driving video's side; without other sides there is no unseen score.
        every: the driving video has each ``every``-th of the truth's frames.
        work: folder for files that a variant makes.
        seed: of what a variant draws at random.
        device: of models that a variant asks.
    """

    frames: Tensor
    fps: float
    object: Path | None
    truth: Mapping[str, Tensor]
    every: int = 1
    work: Path = Path()
    seed: int = 0
    device: str = "cpu"


#: Curves by name: places and values.
Curves = dict[str, tuple[list[float], list[float]]]


@dataclass(frozen=True)
class Variant:
    """One value of what a study varies.

    Args:
        name: of its row.
        x: its place on the drawing's axis; None where values have no order.
        cell: row and column, of a study of two things at once.
        settings: of the run (:class:`~...core.runs.session.Settings`), in place of the study's.
        config: changes the method's settings, as plain data.
        inputs: changes what the run begins with.
        camera: changes the aligned camera.
        distance: of the video's distance, what the objectives take as both distances, in place of a search (MAOD).
        curves: measured beside the run, of the video, its alignment and the run's models by role.
        needs: names of models that it asks besides the method's own; without them it is left out, which says how to get them.
        trial: settings of a study's own ``run``.
    """

    name: str
    x: float | None = None
    cell: tuple[str, str] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: Callable[[Any], Any] | None = None
    inputs: Callable[[Inputs], Inputs] | None = None
    camera: Callable[[FocalAlignment], FocalAlignment] | None = None
    distance: Callable[[float], ObjectDistance] | None = None
    curves: Callable[[DrivingVideo, FocalAlignment, Mapping[str, Any]], Curves] | None = None
    needs: tuple[str, ...] = ()
    trial: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A question, and the runs that answer it.

    Args:
        name: of the command line.
        question: in a sentence.
        paper: what is published about it, and where.
        limits: what it does not show.
        variants: the first is what the others are compared with.
        method: of the runs.
        settings: of the runs.
        numbers: columns of the table, see :data:`NUMBERS`.
        drawn: the numbers that are drawn, the first of them compared with the first variant's.
        axis: label of ``x``.
        losses: stage whose terms are drawn by step, for each variant.
        spread: variants are repetitions: their standard deviation is a row.
        with_object: the cases' meshes are given.
        run: in place of the method: variant, options, checkpoints folder and progress to a run and its numbers; without cases.
    """

    name: str
    question: str
    paper: str
    limits: str
    variants: tuple[Variant, ...]
    method: str = "pla4d"
    settings: Mapping[str, Any] = field(default_factory=dict)
    numbers: tuple[str, ...] = ("front", "unseen", "gain", "motion", "iou", "ssim", "jitter", "seconds")
    drawn: tuple[str, ...] = ("unseen", "front", "motion")
    axis: str = ""
    losses: str = ""
    spread: bool = False
    with_object: bool = True
    run: Callable[..., tuple[Run, dict[str, float]]] | None = None

    def variant(self, name: str) -> Variant:
        """The variant of a name."""
        return next(v for v in self.variants if v.name == name)


@dataclass(frozen=True)
class Number:
    """A column: heading, format, what it says."""

    heading: str
    form: str
    says: str


#: What a run is measured by.
NUMBERS = {
    "front": Number("front", "{:.2f}", "PSNR from the driving video's side, dB"),
    "unseen": Number("unseen", "{:.2f}", "PSNR from sides the video does not show, frames 1 to the last, dB"),
    "gain": Number("gain", "{:+.2f}", "unseen less what the truth's first frame held still has, dB"),
    "motion": Number("motion", "{:.3f}", "share of the true change since the first frame, unseen sides"),
    "iou": Number("IoU", "{:.3f}", "of outlines, unseen sides"),
    "ssim": Number("SSIM", "{:.3f}", "unseen sides"),
    "jitter": Number("jitter", "{:.4f}", "second differences over time of the error, unseen sides; less is better"),
    "frozen": Number("frozen", "{:.2f}", "PSNR of the truth's first frame held still, unseen sides, dB: less = more motion"),
    "size": Number("size %", "{:+.2f}", "error of the object's size under the camera found"),
    "distance": Number("distance", "{:.3f}", "of the camera found"),
    "model": Number("MAOD", "{:.3f}", "distance that the prior prefers"),
    "gaussians": Number("Gaussians", "{:.0f}", "in the result"),
    "overlap": Number("overlap", "{:.3f}", "of the aligned object and the first frame's outline"),
    "align": Number("align s", "{:.2f}", "seconds of the camera and of both distances"),
    "object": Number("object s", "{:.2f}", "seconds of the static object"),
    "moving": Number("motion s", "{:.2f}", "seconds of all passes over the clip"),
    "seconds": Number("s", "{:.1f}", "seconds of the whole run, without its scores"),
    "processors": Number("CPU s", "{:.0f}", "seconds of processors, of the run and its scores"),
    "memory": Number("MB", "{:.0f}", "most memory of the process"),
    "card": Number("card MB", "{:.0f}", "most memory on the card"),
    "moved": Number("moved", "{:.4f}", "root mean square way about the centre, object sizes"),
    "centre": Number("centre", "{:.4f}", "how far the centre goes, object sizes"),
    "path": Number("path", "{:.4f}", "length of the centre's way, object sizes"),
}

#: Studies by name.
STUDIES: Registry[Study] = Registry("study", __package__)


def study(name: str, **facts: Any) -> Study:
    """Register a study; ``facts`` are those of :class:`Study`."""
    made = Study(name=name, **facts)
    STUDIES.add(name, made)
    return made
