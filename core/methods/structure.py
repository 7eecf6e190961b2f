"""Whether an object is rigid parts on joints: hypotheses from the tracked motion, which the video then chooses among."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..deformation.articulated import Articulated
from ..deformation.control_nodes import NodeField
from ..deformation.graph import graph_from_mesh
from ..deformation.skeleton import Motion, find_skeleton
from ..mesh import Mesh

log = logging.getLogger(__name__)

#: Errors, in lengths of the object, that are not worth another part: tracking bends what is rigid by about as much.
TOLERANCES = (0.015, 0.04)
#: An object of more pieces than this is not made of rigid ones.
_PIECES = 40
#: An object whose tracked motion strays further than this from rigid parts, in lengths of the object, is soft.
SOFT = 0.03


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
