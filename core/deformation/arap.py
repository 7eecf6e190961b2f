"""As-rigid-as-possible motion of control nodes: where they go when some are pulled and neighbours keep their distances.

Sorkine and Alexa 2007, "As-Rigid-As-Possible Surface Modeling": each node has a rotation, edges should be their rest vectors
turned by the rotations of their ends. Rotations (polar decompositions) and positions (a linear system that is factorised once)
are solved in turn. Many frames are solved at once.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import SuperLU, splu


class RigidGraph:
    """Nodes at rest and the edges that keep them together; float64, on the CPU.

    Args:
        rest: positions, (M, 3).
        pairs: neighbours, (E, 2) int64.
    """

    def __init__(self, rest: np.ndarray, pairs: np.ndarray) -> None:
        count, nodes = len(pairs), len(rest)
        self.rest, (self.i, self.j) = rest, pairs.T
        self.edges = rest[self.i] - rest[self.j]
        ends, each = np.concatenate([self.i, self.j]), np.tile(np.arange(count), 2)
        self.along = csr_matrix((np.repeat([1.0, -1.0], count), (each, ends)), shape=(count, nodes))
        self.at_ends = csr_matrix((np.ones(2 * count), (ends, each)), shape=(nodes, count))
        self.laplacian = self.along.T @ self.along

    def rotations(self, positions: np.ndarray) -> np.ndarray:  # (T, M, 3) -> (T, M, 3, 3)
        """The rotation of each node's rest edges that fits its edges best."""
        spread = np.stack(
            [self.at_ends @ ((self.along @ y)[:, :, None] * self.edges[:, None, :]).reshape(-1, 9) for y in positions]
        )
        u, _, v = np.linalg.svd(spread.reshape(*positions.shape, 3))
        u[..., :, 2] *= np.linalg.det(u @ v)[..., None]
        return u @ v

    def solve(
        self,
        positions: np.ndarray,  # (T, M, 3)
        goal: np.ndarray,  # (T, M, 3)
        pull: np.ndarray,  # (T, M)
        pull_ahead: np.ndarray,  # (T, M)
        rounds: int,
    ) -> np.ndarray:  # (T, M, 3)
        """Positions that least stretch and bend the edges, and least miss the goals.

        Args:
            positions: where the rounds start; T frames, each for itself.
            goal: where nodes are pulled.
            pull: how strongly along x and y, relative to one edge.
            pull_ahead: along z.
            rounds: of rotations and positions in turn.
        """
        flat, deep = ([self._factor(row) for row in pulls] for pulls in (pull, pull_ahead))
        weights = np.stack([pull, pull, pull_ahead], -1)
        for _ in range(rounds):
            turns, moved = self.rotations(positions), []
            for t, turn in enumerate(turns):
                turned = ((turn[self.i] + turn[self.j]) / 2) @ self.edges[:, :, None]
                right = self.along.T @ turned[..., 0] + weights[t] * goal[t]
                moved.append(np.concatenate([flat[t].solve(right[:, :2]), deep[t].solve(right[:, 2:])], 1))
            positions = np.stack(moved)
        return positions

    def _factor(self, pull: np.ndarray) -> SuperLU:  # (M,)
        """The system's matrix, factorised; it is symmetric and positive, so no pivots are looked for."""
        matrix = (self.laplacian + diags(pull)).tocsc()
        return splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
