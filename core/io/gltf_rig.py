"""The joints of a glTF file's skins as one tree, at rest. Its animations are not looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..skin import JointTree
from .gltf import Entry, Gltf


@dataclass(frozen=True)
class JointNodes:
    """The joints that the shown skins name, and where they are in the file.

    Args:
        tree: of all of them.
        number: in the tree, by node.
        nearest: the joint that each node of the scene is or hangs from, the tree's first where there is none.
    """

    tree: JointTree
    number: dict[int, int]
    nearest: dict[int, int]


def joint_nodes(gltf: Gltf, placed: Sequence[tuple[int, Entry, np.ndarray]]) -> JointNodes | None:
    """The joints of all skins that something shown wears, in one tree; None where there are none.

    Several roots hang from the nearest node that they share, or from one at the origin.

    Args:
        placed: the scene's nodes, parents first, with their world matrices, see :meth:`.gltf.Gltf.placed`.
    """
    worn = dict.fromkeys(node.whole("skin") for _, node, _ in placed if "mesh" in node and "skin" in node)
    joints = {joint for skin in worn for joint in gltf.item("skins", skin).indices("joints")}
    matrices = {index: matrix for index, _, matrix in placed}
    order = [index for index in matrices if index in joints]
    if not order:
        return None
    parents = {child: index for index, node, _ in placed for child in node.indices("children")}
    names = {index: node.text("name") for index, node, _ in placed}
    nearest: dict[int, int] = {}
    for index in matrices:
        nearest[index] = index if index in joints else nearest.get(parents.get(index, -1), -1)
    roots = [joint for joint in order if nearest.get(parents.get(joint, -1), -1) < 0]
    if len(roots) > 1:
        order.insert(0, _shared(roots, parents))
        names.setdefault(-1, "root")
        matrices.setdefault(-1, np.eye(4))
    number = {joint: i for i, joint in enumerate(order)}
    tree = JointTree(
        names=[names[joint] for joint in order],
        parents=[number.get(nearest.get(parents.get(joint, -1), -1), 0) if i else -1 for i, joint in enumerate(order)],
        matrices=np.stack([matrices[joint] for joint in order]),
        above=np.stack([matrices.get(parents.get(joint, -2), np.eye(4)) for joint in order]),
    )
    return JointNodes(tree, number, {node: number.get(joint, 0) for node, joint in nearest.items()})


def _shared(nodes: Sequence[int], parents: dict[int, int]) -> int:
    """The nearest node that some nodes hang from, -1 where there is none."""
    line, seen, highest = [], set[int](), 0
    node = nodes[0]
    while (node := parents.get(node, -1)) >= 0:
        line.append(node)
    rank = {node: i for i, node in enumerate(line)}
    for node in nodes[1:]:
        while (node := parents.get(node, -1)) >= 0 and node not in rank and node not in seen:
            seen.add(node)
        if node not in seen:
            highest = max(highest, rank.get(node, len(line)))
    return line[highest] if highest < len(line) else -1
