"""Whether an object is parts on joints, found or its own rig's: a rival of the free motion, between which the video chooses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..cameras import FrontCamera
from ..deformation.articulated import Articulated
from ..deformation.control_nodes import NodeField
from ..deformation.rigged import rig_motion, shares_on_surface
from ..deformation.skeleton import find_skeleton
from ..fit.loop import FitState
from ..mesh import Mesh
from ..scene.scene import Scene4D
from ..video import DrivingVideo
from .backing import driving_error
from .caution import certainty

log = logging.getLogger(__name__)

#: Error, in lengths of the object, that is not worth another part: tracking bends what is rigid by about as much.
TOLERANCE = 0.015
#: How much of the error that a free motion leaves in the driving view parts on joints may leave and be kept.
WITHIN = 1.1
#: Learning rate of a rig's turns, radians: where joints are is known, so that they may turn faster than found ones.
RIG_LR = 3e-2
#: Pixels that rivals are compared at.
SIZE = 128


def articulated(state: FitState, taus: Tensor) -> FitState | None:
    """The state with what has been tracked so far moving as rigid parts on joints; None for fields without nodes.

    Args:
        state: behind the passes that follow the object.
        taus: of the frames, (T,), at each of which the field has a key.
    """
    field = state.field
    if not isinstance(field, NodeField) or isinstance(field, Articulated) or field.keys != len(taus):
        return None
    with torch.no_grad():
        positions, quats = field.motion_of_handles(taus.to(field.node_positions.device))
    motion = find_skeleton(field.node_positions, positions, field.pairs, quats, tolerance=TOLERANCE)
    log.debug("structure: %d joints, error %.3g", len(motion.skeleton), motion.error)
    return _rival(state, Articulated.of(field, motion))


def rigged(
    state: FitState, scene: Scene4D, mesh: Mesh, video: DrivingVideo, fronts: Sequence[FrontCamera], backend: str = "auto"
) -> FitState | None:
    """The state with what has been tracked so far moving as the rig that the object came with; None for fields without nodes.

    Args:
        state: behind the passes that follow the object.
        scene: the object at rest, with its camera.
        mesh: the object, with its rig, in the scene's frame.
        video: on the scene's device.
        fronts: the driving video's camera, or one a frame.
    """
    field = state.field
    if mesh.skin is None or not isinstance(field, NodeField) or isinstance(field, Articulated) or field.keys != scene.frames:
        return None
    sure = certainty(replace(scene, gaussians=state.gaussians, field=field), video, fronts, None, backend)
    with torch.no_grad():
        positions, quats = field.motion_of_handles(scene.taus.to(field.node_positions.device))
        shares = shares_on_surface(mesh, field.node_positions)
    motion = rig_motion(mesh.skin, shares, field.node_positions, positions, quats, None if sure is None else sure.seen)
    assert motion.shares is not None
    log.info(
        "structure: %d of the rig's %d joints move parts of their own, which stray from what was tracked by %.2g of the "
        "object's size; the others keep to their parents",
        int((motion.shares > 0).any(0).sum()), len(motion.skeleton), motion.error,
    )  # fmt: skip
    return _rival(state, Articulated.of(field, motion, given=True, lr=RIG_LR))


def _rival(state: FitState, field: Articulated) -> FitState:
    # A rival's memory is not touched by another's pass.
    memory = {id: {k: v.clone() for k, v in kept.items()} for id, kept in state.memory.items()}
    return FitState(state.gaussians, field, {}, memory)


@torch.no_grad()
def chosen(
    free: FitState, rival: FitState, scene: Scene4D, video: DrivingVideo, fronts: Sequence[FrontCamera], within: float,
    backend: str = "auto",
) -> FitState:  # fmt: skip
    """The parts on joints, where they follow the video nearly as well as the free motion, which bends; else that one.

    A motion with so much fewer unknowns that explains the same view is the likelier one of the sides unseen (docs/pla4d.md).

    Args:
        scene: the object at rest, with its camera.
        video: on the scene's device.
        fronts: the driving video's camera, or one a frame.
        within: how many times the free motion's squared error of the driving view they may leave.
    """
    small = video.resized(min(SIZE, video.resolution))

    def error(state: FitState) -> float:
        return driving_error(replace(scene, gaussians=state.gaussians, field=state.field), small, fronts, backend)

    still, own, bent = error(FitState(rival.gaussians)), error(rival), error(free)
    given = isinstance(rival.field, Articulated) and rival.field.given
    what = "its rig" if given else "rigid parts on joints"
    kept = own <= within * bent
    log.info(
        "structure: %s leave%s %.0f %% of the driving view's error at rest, a free motion %.0f %%; %s kept",
        what, "s" if given else "", 100 * own / max(still, 1e-12), 100 * bent / max(still, 1e-12),
        f"{what} {'is' if given else 'are'}" if kept else "the free motion is",
    )  # fmt: skip
    return rival if kept else free
