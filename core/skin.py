"""A mesh's own rig: the joints that it came with, and which of them each vertex follows.

What a skinned file holds of it, clips aside: a motion is found from a video, never taken from the file.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from .cameras import matrix_to_quaternion, nearest_rotation, quaternion_to_matrix

log = logging.getLogger(__name__)

#: Joints that a vertex follows at most.
INFLUENCES = 8
#: The largest weight of a joint that no vertex counts as following.
FAINT = 1e-3
#: The most joints that a rig is kept with.
MOST = 1024


@dataclass(frozen=True, eq=False)
class Skin:
    """Joints in a tree and the shares by which vertices follow them, in the frame of the mesh, at rest.

    Args:
        parents: of each joint, listed before it; -1 for the root, which comes first.
        names: of the joints, as the file has them, each once.
        places: of the joints, (J, 3).
        quats: their rotations, wxyz, (J, 4).
        frame: of the node that the root hangs from in the file, (4, 4).
        joints, weights: that each vertex follows, and by which shares, (V, K).
    """

    parents: tuple[int, ...]
    names: tuple[str, ...]
    places: Tensor
    quats: Tensor
    frame: Tensor
    joints: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        count = len(self.parents)
        tree = count > 0 and all(-1 <= p < j and (p < 0) == (j == 0) for j, p in enumerate(self.parents))
        if not tree or len(self.names) != count or len(set(self.names)) != count:
            raise ValueError("skin: joints whose parents are no tree, or not as many names, each once")
        shapes = {"places": (count, 3), "quats": (count, 4), "frame": (4, 4), "weights": tuple(self.joints.shape)}
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"skin: {name} has shape {tuple(getattr(self, name).shape)}, expected {shape}")

    def __len__(self) -> int:
        return len(self.parents)

    def to(self, device: torch.device | str) -> Skin:
        """The same on a device."""
        return replace(self, **{f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)})

    def transformed(self, matrix: Tensor) -> Skin:  # (4, 4)
        """Moved by an affine map, of which rotations take the rotation alone."""
        matrix = matrix.to(self.places)
        linear = matrix[:3, :3]
        return replace(
            self,
            places=self.places @ linear.T + matrix[:3, 3],
            quats=rotations_of(linear @ quaternion_to_matrix(self.quats)),
            frame=matrix @ self.frame,
        )

    def select(self, rows: Tensor) -> Skin:
        """Of some of the vertices, by indices or a mask."""
        return replace(self, joints=self.joints[rows], weights=self.weights[rows])

    def shares(self, corners: Tensor, barycentric: Tensor) -> Tensor:  # (N, 3), (N, 3) -> (N, J)
        """By which shares points of the surface follow the joints, from the vertices of their faces."""
        follow = (self.weights[corners] * barycentric[..., None]).flatten(1)
        return follow.new_zeros(len(corners), len(self)).scatter_add_(1, self.joints[corners].flatten(1), follow)


@dataclass(frozen=True)
class JointTree:
    """The joints of a file, before what moves nothing is left out.

    Args:
        names: of the nodes, perhaps empty or alike.
        parents: listed before their children; -1 for the root, which comes first.
        matrices: of the nodes, world, (J, 4, 4) float64.
        above: of the nodes that they hang from, world, (J, 4, 4) float64.
    """

    names: Sequence[str]
    parents: Sequence[int]
    matrices: np.ndarray
    above: np.ndarray

    def moved(self, offset: np.ndarray) -> JointTree:  # (3,)
        """Shifted."""
        shift = np.eye(4)
        shift[:3, 3] = offset
        return replace(self, matrices=shift @ self.matrices, above=shift @ self.above)

    def skin(self, joints: np.ndarray, weights: np.ndarray, name: str) -> Skin | None:  # (V, K), (V, K)
        """The rig of vertices that follow these joints; None, which is logged, where it is of no use.

        Left out are joints that neither a vertex nor a joint below them follows (end effectors, targets of inverse kinematics),
        and those above the first joint that is followed or branches; other joints without vertices stay in the tree.
        """
        order = np.argsort(-weights, axis=1, kind="stable")[:, :INFLUENCES]
        joints, weights = np.take_along_axis(joints, order, 1), np.take_along_axis(weights, order, 1)
        count, parents = len(self.parents), list(self.parents)
        most = np.zeros(count)
        np.maximum.at(most, joints, weights)
        kept = most > FAINT
        for joint in reversed(range(1, count)):
            kept[parents[joint]] |= kept[joint]
        below: dict[int, list[int]] = {}
        for joint in np.flatnonzero(kept).tolist():
            below.setdefault(parents[joint], []).append(joint)
        root = 0
        while not most[root] > FAINT and len(below.get(root, [])) == 1:
            kept[root], root = False, below[root][0]
        if kept.sum() > MOST:
            log.warning("%s: vertices follow %d joints, more than %d; its rig is left out", name, kept.sum(), MOST)
            return None
        # Who followed a joint that is left out follows the nearest one above that stays.
        number = np.full(count, -1)
        rank = np.cumsum(kept) - 1
        for joint in range(count):
            number[joint] = rank[joint] if kept[joint] else number[parents[joint]] if joint else -1
        stay = np.flatnonzero(kept).tolist()
        number = np.maximum(number, 0)
        matrices, above = self.matrices[stay], self.above[root]
        if not (np.isfinite(matrices).all() and np.isfinite(above).all() and np.abs(matrices).max() < 1e18):
            log.warning("%s: its joints lie at places that are not numbers; its rig is left out", name)
            return None
        weights = weights / weights.sum(1, keepdims=True)
        return Skin(
            parents=tuple(-1 if joint == root else int(rank[parents[joint]]) for joint in stay),
            names=unique([self.names[joint] for joint in stay]),
            # Copied, as :func:`.mesh.cleaned_mesh` does.
            places=torch.tensor(matrices[:, :3, 3], dtype=torch.float32),
            quats=rotations_of(torch.tensor(matrices[:, :3, :3])).float(),
            frame=torch.tensor(above, dtype=torch.float32),
            joints=torch.tensor(number[joints]),
            weights=torch.tensor(weights, dtype=torch.float32),
        )


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """Names of which each is there once: printable, of a hundred characters at most; ``joint07`` where there is none."""
    found: dict[str, None] = {}
    for number, name in enumerate(names):
        name = "".join(c if c.isprintable() else "_" for c in name[:100]).strip() or f"joint{number:02}"
        more, own = 2, name
        while own in found:
            own, more = f"{name}_{more}", more + 1
        found[own] = None
    return tuple(found)


def rotations_of(linear: Tensor) -> Tensor:  # (N, 3, 3) -> (N, 4) wxyz
    """The nearest rotations of linear maps, scales and shear left out."""
    return matrix_to_quaternion(nearest_rotation(linear))
