"""Whether an object is rigid parts on joints: hypotheses from the tracked motion, which the video then chooses among."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from ..deformation.articulated import Articulated
from ..deformation.control_nodes import ControlNodes, NodeField
from ..deformation.graph import graph_from_mesh
from ..deformation.skeleton import Motion, find_skeleton, quaternion_to_rotation_vector, unwound
from ..fit.loop import FitState
from ..mesh import Mesh
from ..objectives.front import ReferenceViewLoss
from ..scene.object3d import Object3D

log = logging.getLogger(__name__)

#: Errors, in lengths of the object, that are not worth another part: tracking bends what is rigid by about as much.
TOLERANCES = (0.015, 0.04)
#: An object of more pieces than this is not made of rigid ones.
_PIECES = 40
#: Readings of the losses at the end of a pass that count.
_READINGS = 3


@torch.no_grad()
def hypotheses(field: NodeField, taus: Tensor, mesh: Mesh | None = None) -> dict[str, Articulated]:
    """Articulated fields that a tracked motion may really be, by a name: parts by their motion, and by the mesh's own pieces.

    Args:
        field: control nodes as they follow the video, a key for each frame.
        taus: of its keys, (keys,).
        mesh: the surface, where there is one.
    """
    positions, quats = field.motion_of_handles(taus.to(field.node_positions.device))
    rest, pairs = field.node_positions, field.pairs
    found: dict[str, Motion] = {}
    for tolerance in TOLERANCES:
        found[f"parts {tolerance:g}"] = find_skeleton(rest, positions, pairs, quats, tolerance=tolerance)
    if mesh is not None:
        graph, _ = graph_from_mesh(mesh.to("cpu"))
        pieces = torch.from_numpy(graph.component[graph.nearest(rest.cpu().double().numpy())[0]])
        if 1 < len(pieces.unique()) <= _PIECES:
            found["pieces"] = find_skeleton(rest, positions, pairs, quats, tolerance=TOLERANCES[0], groups=pieces)
    for name, motion in found.items():
        log.debug("%s: %d joints, error %.3g", name, len(motion.skeleton), motion.error)
    return {name: Articulated.of(field, motion) for name, motion in found.items()}


@torch.no_grad()
def loosened(field: Articulated, like: ControlNodes, taus: Tensor) -> ControlNodes:
    """Control nodes that move as an articulated field has them: where the video asks, they may then bend.

    Args:
        like: the control nodes that the parts were found from, in whatever state.
        taus: of the keys, (keys,).
    """
    made = copy.deepcopy(like)
    positions, quats = field.motion_of_handles(taus.to(field.node_positions.device))
    made.translations.copy_(positions - field.node_positions)
    made.rotations.copy_(unwound(quaternion_to_rotation_vector(quats)))
    made.log_scales.zero_()
    return made


def rivals(state: FitState, taus: Tensor, mesh: Object3D | None) -> dict[str, FitState]:
    """States in which what has been tracked so far moves as rigid parts on joints; none where it is too soft for that.

    Args:
        state: behind the passes that follow the object; its field has a key for each of ``taus``.
        mesh: the object.
    """
    field = state.field
    if not isinstance(field, NodeField) or isinstance(field, Articulated) or field.keys != len(taus):
        return {}
    surface = mesh if isinstance(mesh, Mesh) else None
    made = hypotheses(field, taus, surface)

    def own(name: str) -> FitState:  # a rival's memory is not touched by another's pass
        memory = {id: {k: v.clone() for k, v in kept.items()} for id, kept in state.memory.items()}
        return FitState(state.gaussians, made[name], {}, memory)

    return {name: own(name) for name in made}


def chosen(free: FitState, tried: Mapping[str, FitState], margin: float) -> FitState:
    """The rival that follows the video best, if at most by the margin, a share, worse than the free motion; else that one."""
    best = min(tried, key=lambda name: followed(tried[name]))
    kept = followed(tried[best]) <= (1 + margin) * followed(free)
    verdicts = ", ".join(f"{name} {followed(state):.4g}" for name, state in tried.items())
    log.info("structure: %s; as it likes %.4g, %s; %s", "rigid parts" if kept else "soft", followed(free), verdicts, best)
    return tried[best] if kept else free


def followed(state: FitState) -> float:
    """How far a pass ended from the video: its reference view loss, mean of the last readings."""
    values = state.losses[ReferenceViewLoss.name]
    return sum(values[-_READINGS:]) / len(values[-_READINGS:])
