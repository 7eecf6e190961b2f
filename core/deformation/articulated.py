"""Rigid parts on joints: a field whose parameters are the joints' turns, of machines and other objects that do not bend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..optimiser import Group
from .base import register_field
from .control_nodes import NodeField, rotation_vector_to_quaternion
from .skeleton import Motion, Skeleton, blended, motions_of, posed, quaternion_to_rotation_vector, unwound


@register_field
class Articulated(NodeField):
    """Nodes that follow the rigid parts of a skeleton: its joints' turns at each key time move everything.

    Hinges turn about one axis, other joints any way; the root, and joints that slide, are shifted too. Where joints are, and
    the axes of hinges, are parameters as well: the video corrects what tracking found. Those of a rig that the object came with
    stay where they are, and a joint of it that no node follows keeps to its parent. A node may follow several joints, by linear
    blend skinning. Key 0 is the object at rest.

    Use :meth:`of`; the constructor only makes an unplaced field of given sizes.

    Args:
        nodes, points, edges, keys, neighbours, loop, spacing: see :class:`~.control_nodes.ControlNodes`.
        parents: of each joint, listed before it; -1 for the root, which comes first.
        names: of the joints.
        lr: learning rate of turns, radians; shifts take a fifth of it in world units, places and axes a tenth.
        smooth_time: how far a step spreads over time, see :class:`Group`.
        given: the joints are those of a rig that the object came with.
        stretch: covariances follow the surface where it stretches, as it does between joints.

    Raises:
        ValueError: for parents that are no tree.
    """

    name = "articulated"
    buildable = False
    joint_weights: Tensor  # (M, J)
    hinged: Tensor  # (J, 1) bool: turns about one axis
    sliding: Tensor  # (J, 1) bool: is shifted too

    def __init__(
        self,
        nodes: int,
        points: int,
        edges: int,
        keys: int,
        parents: Sequence[int],
        names: Sequence[str],
        neighbours: int = 4,
        loop: bool = False,
        spacing: float = 0.05,
        lr: float = 1e-2,
        smooth_time: float = 1.0,
        given: bool = False,
        stretch: bool = False,
    ) -> None:
        super().__init__()
        joints = len(parents)
        tree = joints > 0 and all(-1 <= parent < joint and (parent < 0) == (joint == 0) for joint, parent in enumerate(parents))
        if not tree or len(names) != joints:
            raise ValueError("articulated: joints whose parents are no tree, or not as many names")
        self.arguments: dict[str, Any] = dict(
            nodes=nodes, points=points, edges=edges, keys=keys, parents=[int(p) for p in parents],
            names=[str(n) for n in names], neighbours=neighbours, loop=loop, spacing=spacing, lr=lr, smooth_time=smooth_time,
            given=given, stretch=stretch,
        )  # fmt: skip
        self.keys, self.loop, self.anchored, self.spacing = keys, loop, True, spacing
        self.lr, self.smooth_time, self.given, self.stretch = lr, smooth_time, given, stretch
        self.turns = nn.Parameter(torch.zeros(keys, joints, 3))  # rotation vectors against the parent, radians
        self.shifts = nn.Parameter(torch.zeros(keys, joints, 3))  # in the parent's frame
        self.places = nn.Parameter(torch.zeros(joints, 3))  # of the joints at rest
        self.axes = nn.Parameter(torch.zeros(joints, 3))  # of hinges at rest
        self.register_buffer("joint_weights", torch.zeros(nodes, joints))
        self.register_buffer("hinged", torch.zeros(joints, 1, dtype=torch.bool))
        self.register_buffer("sliding", torch.zeros(joints, 1, dtype=torch.bool))
        self._bind(nodes, points, edges, neighbours)

    @staticmethod
    @torch.no_grad()
    def of(field: NodeField, motion: Motion, **settings: Any) -> Articulated:
        """The nodes of another field on a skeleton that moves as they do at the field's key times.

        Args:
            settings: of the constructor.
        """
        skeleton, device = motion.skeleton, field.node_positions.device
        made = Articulated(
            nodes=len(field.node_positions), points=len(field.bind_index), edges=len(field.pairs), keys=field.keys,
            parents=skeleton.parents, names=skeleton.names, neighbours=field.bind_index.shape[1], loop=field.loop, **settings,
        )  # fmt: skip
        for name in ("node_positions", "bind_index", "bind_weight", "pairs"):
            getattr(made, name).copy_(getattr(field, name))
        made.joint_weights.copy_(F.one_hot(motion.label, len(skeleton)) if motion.shares is None else motion.shares)
        made.places.copy_(skeleton.places)
        made.axes.copy_(skeleton.axes)
        made.hinged.copy_(skeleton.axes.norm(dim=-1, keepdim=True) > 0)
        made.sliding.copy_(torch.tensor(skeleton.slides)[:, None])
        turns = unwound(quaternion_to_rotation_vector(motion.turns), skeleton.axes)
        made.turns.copy_(turns - turns[:1])
        made.shifts.copy_(motion.shifts - motion.shifts[:1])
        return made.to(device)

    @property
    def skeleton(self) -> Skeleton:
        """The joints at rest."""
        axes = torch.where(self.hinged, F.normalize(self.axes.detach(), dim=-1), 0.0)
        given = self.arguments
        slides = tuple(self.sliding[:, 0].tolist())
        return Skeleton(tuple(given["parents"]), self.places.detach(), axes, slides, tuple(given["names"]))

    def joints(self, tau: Tensor) -> tuple[Tensor, Tensor]:  # (B,) -> (B, J, 4), (B, J, 3)
        """The joints' turns against their parents' (unit quaternions wxyz) and shifts at times in [0, 1]."""
        weights = self.key_weights(tau)
        turns, shifts = self._keyed(self.turns, weights), self._keyed(self.shifts, weights)
        axis = F.normalize(self.axes, dim=-1)
        about = (turns * axis).sum(-1, keepdim=True) * axis
        turns = torch.where(self.hinged, about, turns)
        if self.given:
            followed = (self.joint_weights > 0).any(0)
            followed[0] = True
            turns = torch.where(followed[:, None], turns, 0.0)
        return rotation_vector_to_quaternion(turns), torch.where(self.sliding, shifts, 0.0)

    def node_motion(self, tau: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        rotations, at = posed(self.arguments["parents"], self.places, *self.joints(tau))
        weights = self.joint_weights
        positions = blended(motions_of(rotations, at, self.places), weights, self.node_positions)
        # A turn has two quaternions: those that are blended take the sign of the joint's that a node follows most.
        first = rotations[:, weights.argmax(-1)].detach()
        signs = torch.where(first @ rotations.detach().mT < 0, -weights, weights)  # (B, M, J)
        return positions, F.normalize(signs @ rotations, dim=-1), torch.zeros_like(positions), None

    def stretching(self) -> NodeField:
        return super().stretching() if self.given else self  # rigid parts do not stretch

    def check(self, count: int) -> None:
        super().check(count)
        if bool((self.joint_weights < 0).any()) or bool((self.joint_weights.sum(-1) - 1).abs().max() > 1e-3):
            raise ValueError("articulated: weights of joints that are no shares")

    def parameter_groups(self, whole_clip: bool = True, smoothing: float = 1.0) -> list[Group]:
        time = self._time_smoothing(smoothing * self.smooth_time)

        def smooth(x: Tensor) -> Tensor:  # (keys, J, 3)
            return torch.einsum("st,tm...->sm...", time, x) if whole_clip else x

        groups = [Group("turns", self.turns, self.lr, smooth), Group("shifts", self.shifts, self.lr / 5, smooth)]
        if whole_clip and not self.given:
            groups += [Group("places", self.places, self.lr / 10), Group("axes", self.axes, self.lr / 10)]
        return groups
