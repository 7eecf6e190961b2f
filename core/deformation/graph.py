"""Distances along a surface: what separates a leg from the other leg beside it.

Control nodes are spread, bound and connected by geodesic distance, so that parts that only touch do not move together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import KDTree
from torch import Tensor

from ..mesh import Mesh
from ..progress import pulse

#: Crossing from one connected component to a touching one counts this many times its length.
BRIDGE_COST = 2.0
#: Points whose distances to all nodes are held at once.
_CHUNK = 1 << 14


@dataclass(frozen=True)
class SurfaceGraph:
    """Points on a surface, joined to their neighbours along it.

    Args:
        points: (V, 3).
        edges: symmetric sparse matrix (V, V) of lengths.
        component: connected component of each point before components were bridged, (V,).
    """

    points: np.ndarray
    edges: csr_matrix
    component: np.ndarray

    def spread(self, count: int) -> np.ndarray:
        """``count`` point indices spread evenly by farthest-point sampling along the surface, the same on every run."""
        centre = self.points.mean(0)
        chosen = [int(((self.points - centre) ** 2).sum(1).argmax())]
        distance = np.full(len(self.points), np.inf)
        while True:
            pulse()
            reach = distance.max()
            near = dijkstra(self.edges, indices=chosen[-1], limit=reach if np.isfinite(reach) else np.inf)
            distance = np.minimum(distance, near)
            if len(chosen) == min(count, len(self.points)):
                return np.array(chosen)
            chosen.append(int(distance.argmax()))

    def distances(self, sources: np.ndarray, limit: float) -> np.ndarray:
        """Geodesic distance from each source to each point, (S, V); infinite beyond ``limit``."""
        return dijkstra(self.edges, indices=sources, limit=limit)

    def nearest(self, points: np.ndarray, component: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Index of and distance to the graph point nearest to each of ``points``, of its own component where given."""
        tree: Any = KDTree(self.points)
        distance, index = tree.query(points, k=min(12, len(self.points)))
        if component is None:
            return index[:, 0], distance[:, 0]
        same = self.component[index] == component[:, None]
        first = np.where(same.any(1), same.argmax(1), 0)
        rows = np.arange(len(points))
        return index[rows, first], distance[rows, first]


def graph_from_mesh(mesh: Mesh, spacing: float = 0.02) -> tuple[SurfaceGraph, np.ndarray]:
    """The welded mesh with edges split below ``spacing`` (longest side 1), and the component of each original face."""
    import trimesh

    vertices, faces = mesh.vertices.cpu().numpy().astype(np.float64), mesh.faces.cpu().numpy()
    size = float(np.ptp(vertices, axis=0).max())
    _, first, weld = np.unique(
        np.round(vertices / (1e-5 * size)).astype(np.int64), axis=0, return_index=True, return_inverse=True
    )
    vertices, faces = vertices[first], weld.reshape(-1)[faces]
    welded = trimesh.Trimesh(vertices, faces, process=False)
    _, label = connected_components(_adjacency(len(vertices), welded.edges_unique, np.ones(len(welded.edges_unique))))
    face_component = label[faces[:, 0]]
    divided: Any = trimesh.remesh.subdivide_to_size(vertices, faces, spacing * size, max_iter=12, return_index=True)
    points, split, origin = divided
    edges = np.unique(np.sort(split[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1), axis=0)
    component = np.zeros(len(points), dtype=np.int64)
    component[split.reshape(-1)] = np.repeat(face_component[origin], 3)
    lengths = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)
    return _bridged(points, edges, lengths, component), face_component


def graph_from_points(points: Tensor, k: int = 8) -> SurfaceGraph:
    """A neighbour graph of points without a mesh, each joined to its k nearest."""
    array = points.detach().cpu().double().numpy()
    tree: Any = KDTree(array)
    distance, index = tree.query(array, k=min(k + 1, len(array)))
    edges = np.stack([np.repeat(index[:, :1], index.shape[1] - 1, 1), index[:, 1:]], -1).reshape(-1, 2)
    lengths = distance[:, 1:].reshape(-1)
    _, component = connected_components(_adjacency(len(array), edges, np.ones(len(edges))))
    return _bridged(array, edges, lengths, component)


def _adjacency(count: int, edges: np.ndarray, lengths: np.ndarray) -> csr_matrix:
    graph: Any = coo_matrix((lengths, (edges[:, 0], edges[:, 1])), shape=(count, count)).tocsr()
    return graph.maximum(graph.T)


def _bridged(points: np.ndarray, edges: np.ndarray, lengths: np.ndarray, component: np.ndarray) -> SurfaceGraph:
    """Joins the components: where they touch (within 2 % of the size), and in any case at the nearest pair."""
    size = float(np.ptp(points, axis=0).max())
    labels, inverse = np.unique(component, return_inverse=True)
    extra: list[np.ndarray] = []
    reached = {0}
    trees: list[Any] = [KDTree(points[inverse == c]) for c in range(len(labels))]
    members = [np.flatnonzero(inverse == c) for c in range(len(labels))]
    if len(labels) <= 200:
        nearest = np.full((len(labels), len(labels)), np.inf)
        pairs: dict[tuple[int, int], tuple[int, int]] = {}
        for a in range(len(labels)):
            pulse()
            for b in range(a + 1, len(labels)):
                distance, index = trees[b].query(points[members[a]])
                i = int(distance.argmin())
                nearest[a, b] = nearest[b, a] = distance[i]
                pairs[a, b] = int(members[a][i]), int(members[b][index[i]])
                touching = distance < 0.02 * size
                extra.append(np.stack([members[a][touching], members[b][index[touching]]], 1))
        while len(reached) < len(labels):
            rest = [c for c in range(len(labels)) if c not in reached]
            inside = sorted(reached)
            block = nearest[np.ix_(inside, rest)]
            i, j = np.unravel_index(block.argmin(), block.shape)
            a, b = sorted((inside[i], rest[j]))
            extra.append(np.array([pairs[a, b]]))
            reached.add(rest[j])
    else:
        # Very many loose pieces (polygon soup): neighbours in space stand in for the surface.
        tree: Any = KDTree(points)
        distance, index = tree.query(points, k=9)
        extra.append(np.stack([np.repeat(index[:, 0], 8), index[:, 1:].reshape(-1)], 1))
        graph = _adjacency(len(points), np.concatenate([edges, extra[-1]]), np.ones(len(edges) + len(extra[-1])))
        _, label = connected_components(graph)
        hub = np.array([np.flatnonzero(label == c)[0] for c in range(label.max() + 1)])
        extra.append(np.stack([np.repeat(hub[:1], len(hub) - 1), hub[1:]], 1))
    if extra:
        bridges = np.concatenate(extra)
        cost = BRIDGE_COST * np.linalg.norm(points[bridges[:, 0]] - points[bridges[:, 1]], axis=1)
        edges, lengths = np.concatenate([edges, bridges]), np.concatenate([lengths, cost])
    # A zero length would be no edge in a sparse matrix.
    return SurfaceGraph(points, _adjacency(len(points), edges, np.maximum(lengths, 1e-9 * size)), component)


def spaced_binding(
    graph: SurfaceGraph,
    nodes: np.ndarray,  # (M,) point indices
    points: Tensor,  # (N, 3)
    component: np.ndarray | None = None,  # (N,)
    k: int = 4,
    edges_per_node: int = 8,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Binds points to nodes and nodes to each other by distance along the surface.

    Returns:
        node index of each point (N, k), its weights (N, k) summing to 1, unique node pairs (E, 2), and the mean node spacing.
    """
    spacing = float(
        np.median(np.sort(np.linalg.norm(graph.points[nodes][:, None] - graph.points[nodes][None], axis=-1), 1)[:, 1])
    )
    limit = 6 * spacing
    distance = graph.distances(nodes, limit)  # (M, V)
    pulse()
    near, gap = graph.nearest(points.detach().cpu().double().numpy(), component)
    k = min(k, len(nodes) - 1)
    order, chosen = np.empty((len(near), k + 1), np.int64), np.empty((len(near), k + 1))
    for start in range(0, len(near), _CHUNK):
        pulse()
        part = slice(start, start + _CHUNK)
        # Rows whose nodes all lie beyond the limit fall back to straight distance, shifted behind every geodesic one.
        to_nodes = distance[:, near[part]].T + gap[part, None]  # (N, M)
        to_nodes = np.where(np.isfinite(to_nodes), to_nodes, limit + _straight(graph.points[near[part]], graph.points[nodes]))
        least = np.argpartition(to_nodes, k, axis=1)[:, : k + 1]
        lengths = np.take_along_axis(to_nodes, least, 1)
        rank = np.argsort(lengths, 1, kind="stable")
        order[part], chosen[part] = np.take_along_axis(least, rank, 1), np.take_along_axis(lengths, rank, 1)
    # Falls to zero at the first node left out, so that binding changes continuously over the surface.
    weight = np.maximum(1 - chosen[:, :k] / np.maximum(chosen[:, k:], 1e-12), 1e-4) ** 2
    weight /= weight.sum(1, keepdims=True)
    between = distance[:, nodes]
    between = np.where(np.isfinite(between), between, limit + _straight(graph.points[nodes], graph.points[nodes]))
    np.fill_diagonal(between, np.inf)
    partner = np.argsort(between, 1, kind="stable")[:, :edges_per_node]
    pairs = np.stack([np.repeat(np.arange(len(nodes))[:, None], partner.shape[1], 1), partner], -1).reshape(-1, 2)
    pairs = np.unique(np.sort(pairs, 1), axis=0)
    return torch.from_numpy(order[:, :k].copy()), torch.from_numpy(weight).float(), torch.from_numpy(pairs), spacing


def _straight(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # (A, 3), (B, 3) -> (A, B)
    x, y, z = (
        np.subtract.outer(a[:, i], b[:, i]) for i in range(3)
    )  # a plane a coordinate: far faster than a norm over triples
    return np.sqrt(x * x + y * y + z * z)
