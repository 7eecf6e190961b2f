"""A scene's moving surface as a skin on a skeleton: what animation programs work with.

Linear blend skinning: vertex v goes to ``sum_j w_vj (R_j (v - c_j) + p_j)``. The skeleton is the field's own where it is
articulated, with the weights of the rig where the object came with one. Else it is found from the motion
(:mod:`..deformation.skeleton`); weights and turns are then fitted to the surface as the scene moves it, in turns (after Le and
Deng 2012, with the joints held together).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import quaternion_multiply, quaternion_to_matrix
from ..deformation.articulated import Articulated
from ..deformation.control_nodes import rotation_vector_to_quaternion
from ..deformation.graph import graph_from_mesh, spaced_binding
from ..deformation.skeleton import PARTS, Skeleton, find_skeleton, motions_of, posed
from ..files import InputError
from ..mesh import Mesh
from ..progress import pulse
from ..skin import Skin
from .scene import Scene4D, frame_times
from .surface import carry, scene_surface
from .views import FrameProgress

log = logging.getLogger(__name__)

#: Joints that a vertex follows, as engines have it.
INFLUENCES = 4
#: Points that the skeleton is found from, and vertices times frames that its turns are fitted to.
_POINTS, _FITTED = 400, 24_000
_STEPS, _ROUNDS = 80, 2
#: Vertices times frames that are moved at once.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Rig:
    """A skinned surface and its motion, on the CPU.

    Args:
        mesh: at rest.
        skeleton: at rest.
        joints, weights: that each vertex follows, and by which shares.
        turns, shifts: of the joints at each frame, see :meth:`~..deformation.skeleton.Skeleton.pose`.
        error, worst: root mean square and largest distance of vertices over all frames from where the scene takes them, in
            lengths of the object.
        skin: the rig that the object came with, where the skeleton is its.
    """

    mesh: Mesh
    skeleton: Skeleton
    joints: Tensor  # (V, 4) int64
    weights: Tensor  # (V, 4)
    turns: Tensor  # (T, J, 4) wxyz
    shifts: Tensor  # (T, J, 3)
    error: float
    worst: float
    skin: Skin | None = None

    def moved(self, rows: slice = slice(None)) -> Tensor:  # (T, V, 3)
        """The vertices of some rows at each frame."""
        motions = _motions(self.skeleton, self.turns, self.shifts)
        joints, weights = self.joints[rows], self.weights[rows]
        blend = (motions[:, joints] * weights[..., None, None]).sum(2)
        return (blend[..., :3] @ self.mesh.vertices[rows, :, None])[..., 0] + blend[..., 3]


@torch.no_grad()
def rig_scene(scene: Scene4D, *, frames: int | None = None, parts: int = PARTS, progress: FrameProgress | None = None) -> Rig:
    """The scene's surface on a skeleton.

    Args:
        frames: the clip is spread over so many, its own where None.
        parts: joints at most, of a skeleton that is found.
        progress: called with the frames carried and all of them.

    Raises:
        InputError: for a scene without frames that belong together or without a surface, or values that are not numbers.
    """
    mesh = scene_surface(scene).to("cpu")
    count = scene.frames if frames is None else frames
    taus = frame_times(count, scene.loop)
    graph, _ = graph_from_mesh(mesh)
    own = isinstance(scene.field, Articulated)
    nodes = graph.nearest(scene.field.node_positions.cpu().double().numpy())[0] if own else graph.spread(_POINTS)  # type: ignore[union-attr]
    index, share, pairs, _ = spaced_binding(graph, nodes, mesh.vertices)
    chosen = torch.from_numpy(graph.points[nodes]).float()
    places = carry(scene, torch.cat([mesh.vertices, chosen]), taus, progress=progress).cpu()
    if not bool(places.isfinite().all()):
        raise InputError("surface: the scene moves it to places that are not numbers (NaN or infinite); fit it again")
    places, at_nodes = places[:, : len(mesh.vertices)], places[:, len(mesh.vertices) :]
    if isinstance(scene.field, Articulated):
        skeleton = scene.field.skeleton.to("cpu")
        turns, shifts = (x.cpu() for x in scene.field.joints(taus.to(scene.gaussians.device)))
        at_node = scene.field.joint_weights.cpu()
    else:
        found = find_skeleton(chosen, at_nodes, pairs, most=parts)
        skeleton, turns, shifts = found.skeleton, found.turns, found.shifts
        at_node = F.one_hot(found.label, len(skeleton)).float()
    skin = mesh.skin if own and mesh.skin is not None and mesh.skin.names == skeleton.names else None
    if skin is None:
        joints, weights = _strongest(torch.einsum("vk,vkj->vj", share, at_node[index]), skeleton)
    else:
        joints, weights = strongest_of(skin)
    rig = Rig(mesh, skeleton, joints, weights, turns, shifts, 0.0, 0.0, skin)
    if not own:
        for _ in range(_ROUNDS):
            rig = _turned(rig, places)
            rig = replace(rig, weights=_weighted(rig, places))
    error, worst = _errors(rig, places)
    log.info(
        "skeleton: %d joints; the skin strays from the scene's motion by %.2g of the object's size on average, %.2g at most",
        len(skeleton), error, worst,
    )  # fmt: skip
    return replace(rig, error=error, worst=worst)


def _motions(skeleton: Skeleton, turns: Tensor, shifts: Tensor) -> Tensor:  # (T, J, 3, 4)
    """What each joint does to points of the world."""
    return motions_of(*skeleton.pose(turns, shifts), skeleton.places)


def strongest_of(skin: Skin) -> tuple[Tensor, Tensor]:  # (V, 4), (V, 4)
    """The joints that each vertex follows most, by shares that sum to 1."""
    weights, order = F.pad(skin.weights, (0, INFLUENCES)).topk(INFLUENCES, dim=-1)
    return F.pad(skin.joints, (0, INFLUENCES)).gather(1, order), weights / weights.sum(-1, keepdim=True)


def _strongest(weights: Tensor, skeleton: Skeleton) -> tuple[Tensor, Tensor]:  # (V, J) -> (V, 4), (V, 4)
    """The joints that a vertex may follow: those of the nodes around it, then those next to them in the tree."""
    count = len(skeleton)
    beside = torch.zeros(count, count)
    for joint, parent in enumerate(skeleton.parents):
        if parent >= 0:
            beside[joint, parent] = beside[parent, joint] = 1
    score, joints = (weights + 1e-6 * weights @ beside).topk(min(INFLUENCES, count), dim=-1)
    kept = weights.gather(1, joints) * (score > 0)
    missing = INFLUENCES - joints.shape[1]
    joints, kept = F.pad(joints, (0, missing)), F.pad(kept, (0, missing))
    return joints, kept / kept.sum(-1, keepdim=True)


@torch.enable_grad()
def _turned(rig: Rig, places: Tensor) -> Rig:
    """Turns, shifts and places of the joints fitted to some of the vertices, all frames at once."""
    skeleton, frames, count = rig.skeleton, len(places), len(rig.skeleton)
    vertices = rig.mesh.vertices
    stride = max(1, len(vertices) * frames // _FITTED)
    rest, wanted = vertices[::stride], places[:, ::stride]
    weights = torch.zeros(len(rest), count).scatter_add_(1, rig.joints[::stride], rig.weights[::stride])
    size = float((vertices.amax(0) - vertices.amin(0)).max())
    turn = torch.zeros(frames, count, 3, requires_grad=True)
    shift = torch.zeros(frames, count, 3, requires_grad=True)
    place = torch.zeros(count, 3, requires_grad=True)
    free = torch.tensor(skeleton.slides)[:, None]

    def present() -> tuple[Tensor, Tensor, Tensor]:
        return (
            skeleton.places + size * place,
            quaternion_multiply(rig.turns, rotation_vector_to_quaternion(turn)),
            rig.shifts + torch.where(free, size * shift, 0.0),
        )

    adam = torch.optim.Adam([{"params": [turn], "lr": 1e-2}, {"params": [shift, place], "lr": 2e-3}])
    fall = torch.optim.lr_scheduler.ExponentialLR(adam, 0.05 ** (1 / _STEPS))
    for _ in range(_STEPS):
        pulse()
        at_rest, turns, shifts = present()
        quats, at = posed(skeleton.parents, at_rest, turns, shifts)
        matrices = quaternion_to_matrix(quats)
        offsets = at - (matrices @ at_rest[:, :, None])[..., 0]
        blend = (weights @ torch.cat([matrices, offsets[..., None]], -1).flatten(2)).unflatten(-1, (3, 4))
        error = (blend[..., :3] @ rest[:, :, None])[..., 0] + blend[..., 3] - wanted
        adam.zero_grad()
        (error / size).square().sum(-1).mean().mul(1e3).backward()
        adam.step()
        fall.step()
    at_rest, turns, shifts = (x.detach() for x in present())
    return replace(rig, skeleton=replace(skeleton, places=at_rest), turns=F.normalize(turns, dim=-1), shifts=shifts)


def _weighted(rig: Rig, places: Tensor, steps: int = 40) -> Tensor:  # (V, 4)
    """Weights of each vertex's joints that take it nearest to where it goes: least squares on the simplex, by projection."""
    motions = _motions(rig.skeleton, rig.turns, rig.shifts)
    found = []
    for start in range(0, len(rig.joints), rows := max(1, _CHUNK // len(places))):
        pulse()
        own = slice(start, start + rows)
        vertices, joints, weights = rig.mesh.vertices[own], rig.joints[own], rig.weights[own]
        each = (motions[:, joints][..., :3] @ vertices[:, None, :, None])[..., 0] + motions[:, joints][..., 3]  # (T, V, 4, 3)
        away = (each - places[:, own, None]).permute(1, 2, 0, 3).flatten(2)  # sums to what is missed, as weights sum to 1
        normal = away @ away.mT
        # What the joints do alike is left to where the vertex lies.
        ridge = 0.02 * normal.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(1e-12)[:, None, None]
        step = 1 / (normal.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None] + ridge[..., 0])
        present = weights
        for _ in range(steps):
            slope = (normal @ present[..., None])[..., 0] + ridge[..., 0] * (present - weights)
            present = _onto_simplex(present - step * slope)
        found.append(present)
    return torch.cat(found)


def _onto_simplex(x: Tensor) -> Tensor:  # (V, K)
    """The nearest shares that sum to 1 (Duchi et al. 2008)."""
    ranked = x.sort(-1, descending=True).values
    excess = (ranked.cumsum(-1) - 1) / torch.arange(1, x.shape[-1] + 1)
    last = (ranked > excess).sum(-1, keepdim=True) - 1
    return (x - excess.gather(-1, last)).clamp_min(0)


def _errors(rig: Rig, places: Tensor) -> tuple[float, float]:
    """Root mean square and largest distance of the skin from places (T, V, 3), in lengths of the object."""
    vertices = rig.mesh.vertices
    size = float((vertices.amax(0) - vertices.amin(0)).max())
    total, worst = 0.0, 0.0
    for start in range(0, len(vertices), rows := max(1, _CHUNK // len(places))):
        away = (rig.moved(slice(start, start + rows)) - places[:, start : start + rows]).square().sum(-1)
        total += float(away.double().sum())
        worst = max(worst, float(away.max()))
    return (total / places[..., 0].numel()) ** 0.5 / size, worst**0.5 / size
