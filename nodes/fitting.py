"""What the nodes that fit share: what they say before they start, and what leaves them."""

from __future__ import annotations

import logging
from typing import Any

from ..core.align import FocalAlignment
from ..core.methods import stages
from ..core.methods.verdict import judge
from ..core.render import resolve_backend, slow_renderer
from ..core.scene.scene import Scene4D
from ..core.video import DrivingVideo
from . import host
from .objectives import Terms, describe


def say_objectives(objectives: Terms, standing: str) -> None:
    """The objectives in the log; in the node, that there are none and what then happens."""
    if objectives:
        host.log.info("objectives: %s", "; ".join(map(describe, objectives)))
    else:
        host.log.warning("no objectives connected: %s", standing)
        host.say(f"No objectives connected: {standing}")


def estimate(*fit: Any, **inputs: Any) -> str:
    """What a fit costs on this machine (:func:`core.methods.stages.estimate`): in the log, in the node, and for its report."""
    cost = f"estimate: {stages.estimate(*fit, progress=host.Report().fit, **inputs)}"
    host.log.info(cost)
    device = fit[0].frames.device if fit[0] is not None else "cpu"
    slow = slow_renderer(resolve_backend(inputs.get("backend", "auto"), device), device)
    host.say(f"{cost}\n{slow}" if slow else cost)
    return cost


def verdict(video: DrivingVideo, alignment: FocalAlignment | None, scene: Scene4D | None = None) -> str:
    """Whether the result can be good, with what to try where not: in the log, and as a line for the node.

    "" where no object was aligned.

    Args:
        scene: the moving object; None before the motion is fitted.
    """
    if alignment is None or alignment.report.get("mode") == "none":
        return ""
    found = judge(video, alignment, scene)
    host.log.log(logging.INFO if found.word == "good" else logging.WARNING, "%s", found.line)
    return found.line


def finished(scene: Scene4D) -> Scene4D:
    """What leaves a fit: on the CPU, as the host keeps values, and nothing asks for gradients."""
    if scene.field is not None:
        scene.field.requires_grad_(False)
    return scene.to("cpu")
