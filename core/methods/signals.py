"""Signals that a user gives become objectives of a method's motion, weighted against its reference view loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from ..align import FocalAlignment
from ..align.depth import place_depth
from ..align.flow import dis_flow, tracks_by_flow
from ..align.side import place_view
from ..objectives.base import Objective
from ..objectives.depth import DepthMatch
from ..objectives.front import ReferenceViewLoss
from ..objectives.side_view import SideViewLoss
from ..objectives.tracks import TrackMatch
from ..schedules import scaled
from ..signals import Signals
from ..video import DrivingVideo
from .stages import MethodConfig, MotionConfig, StaticConfig

#: Weights relative to the reference view loss's (docs/signals.md).
DEPTH, TRACKS, SIDE = 20.0, 20.0, 1.0

Fit = TypeVar("Fit", StaticConfig, MotionConfig)


def with_signals(
    config: MethodConfig, signals: Signals, video: DrivingVideo, aligned: FocalAlignment
) -> tuple[MethodConfig, dict[str, Any]]:
    """The configuration whose motion follows the signals too, and what a report says of them.

    Films from other sides count where the object is made of the video alone, too: they show what it does not.

    Args:
        video: the driving video, on the CPU.
        aligned: the camera, and the object as it sees it.

    Raises:
        InputError: for signals that do not fit the video or the object.
    """
    item = None if aligned.report.get("mode") == "none" else aligned.mesh
    front, report = aligned.front, dict[str, Any]()
    terms: list[Objective] = []
    views: list[Objective] = []
    loss = next((o for o in config.motion.objectives if isinstance(o, ReferenceViewLoss)), ReferenceViewLoss())
    if signals.depth is not None:
        depth = place_depth(signals.depth, video, front, item)
        terms.append(DepthMatch(scaled(loss.weight, DEPTH * depth.trust), depth.maps, depth.inverse, depth.affine))
        report["depth"] = {"source": signals.depth.source, **depth.report}
    frame = len(video) // 2 if config.static.frame == "middle" else 0
    tracks = [tracks.on_object(video, frame) for tracks in signals.tracks]
    if signals.flow:
        tracks.append(tracks_by_flow(video, dis_flow(), frame=frame).on_object(video, frame))
    for each in tracks:
        terms.append(TrackMatch(scaled(loss.weight, TRACKS), each, frame))
        seen = float(each.visible.float().mean())
        report.setdefault("tracks", []).append({"source": each.source, "points": each.points.shape[1], "visible": seen})
    for view in signals.views:
        placed = place_view(view, video, front, item)
        views.append(SideViewLoss(scaled(loss.weight, SIDE), placed.view, loss.mask, max(loss.levels, 4)))
        report.setdefault("views", []).append({"source": view.video.source, **placed.report})
    motion = _with(config.motion, [*terms, *views])
    static = _with(config.static, views) if item is None else config.static
    return replace(config, motion=motion, static=static), report


def _with(fit: Fit, terms: list[Objective]) -> Fit:
    return replace(fit, objectives=(*fit.objectives, *terms))
