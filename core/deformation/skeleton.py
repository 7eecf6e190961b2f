"""Rigid parts and joints of a moving surface: what animators call a skeleton.

Points that keep their distances throughout a clip belong to one part. Parts are found by merging neighbours from the bottom up,
each time the two whose union one rigid motion a frame explains best (Ward's criterion on the residual of rigid fits; the fits
by Kabsch 1976). A joint is the place that two neighbouring parts share with the least motion of one against the other (James
and Twigg 2005, Le and Deng 2014). Rotations at rest are the world's axes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import matrix_to_quaternion, quaternion_multiply, quaternion_to_matrix

#: Frames that parts are found from at most, spread over the clip.
FRAMES = 24
#: Parts at most.
PARTS = 24
#: Radius of the ball that a point counts as, in spacings of points: its turn decides only where places do not.
_BALL = 0.2


@dataclass(frozen=True)
class Skeleton:
    """A tree of joints, each the place about which its part turns against its parent's.

    Args:
        parents: of each joint, listed before it; -1 for the root, which comes first.
        places: of the joints at rest, world.
        axes: unit axes of hinges, zero for joints that turn any way; world, at rest.
        slides: whether a joint's part also moves along its parent's; the root always does.
        names: of the joints, each once.
    """

    parents: tuple[int, ...]
    places: Tensor  # (J, 3)
    axes: Tensor  # (J, 3)
    slides: tuple[bool, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.parents)

    def to(self, device: torch.device | str) -> Skeleton:
        """The same on a device."""
        return replace(self, places=self.places.to(device), axes=self.axes.to(device))

    def pose(
        self,
        turns: Tensor,  # (B, J, 4) unit quaternions wxyz
        shifts: Tensor,  # (B, J, 3)
    ) -> tuple[Tensor, Tensor]:
        """Forward kinematics: the parts' rotations (B, J, 4) and where the joints are (B, J, 3), world.

        A point x of part j goes to ``R_j (x - places_j) + p_j``.

        Args:
            turns: of each part against its parent's.
            shifts: of each joint from its place on the parent, in the parent's frame; the root's in the world's.
        """
        return posed(self.parents, self.places, turns, shifts)


def posed(
    parents: Sequence[int], places: Tensor, turns: Tensor, shifts: Tensor
) -> tuple[Tensor, Tensor]:  # -> (B, J, 4), (B, J, 3)
    """:meth:`Skeleton.pose` of joints at ``places`` (J, 3).

    All joints at once: each takes its ancestor's motion, then that of the ancestor twice as far, and so on up to the root.
    """
    quats = turns
    offsets = places + shifts - (quaternion_to_matrix(turns) @ places[:, :, None])[..., 0]  # x goes to R x + o
    for chosen, none in _ancestors(tuple(parents), places.device):
        above = chosen @ quats + none
        offsets = (quaternion_to_matrix(above) @ offsets[..., None])[..., 0] + chosen @ offsets
        quats = quaternion_multiply(above, quats)
    return quats, (quaternion_to_matrix(quats) @ places[:, :, None])[..., 0] + offsets


@lru_cache(maxsize=64)
def _ancestors(parents: tuple[int, ...], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """For 1, 2, 4, ... steps up the tree: which joint that is of each, (J, J), and no turn where there is none, (J, 4)."""
    found, above = [], list(parents)
    while any(ancestor >= 0 for ancestor in above):
        chosen, none = torch.zeros(len(above), len(above)), torch.zeros(len(above), 4)
        for joint, ancestor in enumerate(above):
            if ancestor < 0:
                none[joint, 0] = 1
            else:
                chosen[joint, ancestor] = 1
        found.append((chosen.to(device), none.to(device)))
        above = [-1 if ancestor < 0 else above[ancestor] for ancestor in above]
    return found


@dataclass(frozen=True)
class Motion:
    """A skeleton's motion over a clip.

    Args:
        skeleton: at rest.
        turns, shifts: at each frame, see :meth:`Skeleton.pose`.
        label: the joint whose part each of the points follows that it was found from.
        error: root mean square distance of those points from where the parts take them, in lengths of the object.
        shares: by which they follow the joints, where not one joint alone.
    """

    skeleton: Skeleton
    turns: Tensor  # (T, J, 4)
    shifts: Tensor  # (T, J, 3)
    label: Tensor  # (M,) int64
    error: float
    shares: Tensor | None = None  # (M, J)


@torch.no_grad()
def find_skeleton(
    rest: Tensor,  # (M, 3)
    positions: Tensor,  # (T, M, 3)
    pairs: Tensor,  # (E, 2)
    quats: Tensor | None = None,  # (T, M, 4) wxyz
    *,
    tolerance: float = 0.01,
    most: int = PARTS,
    groups: Tensor | None = None,  # (M,) int64
) -> Motion:
    """The skeleton that explains the motion of points on a surface, on the CPU.

    Args:
        rest: points, of which neighbours lie near each other.
        positions: the same at each frame.
        pairs: neighbours along the surface.
        quats: turns of the surface at the points; by their neighbours where None.
        tolerance: error of a point, in lengths of the object, that is not worth another part.
        most: parts.
        groups: points of one of these stay together, whatever their motion; such as the pieces that a mesh is made of.
    """
    points, moved = rest.detach().cpu().double().numpy(), positions.detach().cpu().double().numpy()
    edges = np.unique(np.sort(pairs.detach().cpu().numpy(), axis=1), axis=0)
    size = float(np.ptp(points, axis=0).max())
    turned = _surface_turns(points, moved, edges) if quats is None else _matrices(quats)
    chosen = np.unique(np.linspace(0, len(moved) - 1, min(len(moved), FRAMES)).round().astype(int))
    spacing = float(np.median(np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)))
    moments = _Moments.of(points, moved[chosen], turned[chosen], _BALL * spacing)
    worth = (tolerance * size) ** 2 * max(0.02 * len(points), 2.0)
    if groups is None:
        label = _settled(moments, _absorbed(moments, _merged(moments, edges, worth, most), worth), edges, spacing)
    else:
        piece = np.unique(groups.cpu().numpy(), return_inverse=True)[1]
        between = np.unique(np.sort(piece[edges], axis=1), axis=0)
        between = between[between[:, 0] != between[:, 1]]
        label = _merged(moments.summed(piece, int(piece.max()) + 1), between, worth, most)[piece]
    whole = _Moments.of(points, moved, turned, _BALL * spacing)
    return _jointed(points, moved, whole, label, edges, size)


# --- parts --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Moments:
    """Sums over sets of points that give the best rigid motion of a set at each frame, and what it leaves.

    A point counts as a small ball, so that how the surface turns there counts too.
    """

    count: np.ndarray  # (S,)
    rest: np.ndarray  # (S, 3)
    moved: np.ndarray  # (S, T, 3)
    product: np.ndarray  # (S, T, 3, 3): sum of moved rest^T
    squares: np.ndarray  # (S, T): of both

    @staticmethod
    def of(points: np.ndarray, moved: np.ndarray, turned: np.ndarray, radius: float) -> _Moments:
        """Of single points (M, 3) that move (T, M, 3) and turn (T, M, 3, 3), balls of a radius."""
        at = moved.swapaxes(0, 1)
        spread = radius**2 / 3
        product = at[..., :, None] * points[:, None, None, :] + spread * turned.swapaxes(0, 1)
        squares = (at**2).sum(-1) + (points**2).sum(-1)[:, None] + 6 * spread
        return _Moments(np.ones(len(points)), points, at, product, squares)

    def __getitem__(self, index: np.ndarray) -> _Moments:
        return _Moments(*(value[index] for value in vars(self).values()))

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))

    def summed(self, label: np.ndarray, count: int) -> _Moments:
        """Of sets of points by their labels."""
        sums = []
        for value in vars(self).values():
            total = np.zeros((count, *value.shape[1:]))
            np.add.at(total, label, value)
            sums.append(total)
        return _Moments(*sums)

    def rotations(self) -> tuple[np.ndarray, np.ndarray]:
        """The best rotations (S, T, 3, 3), and the squared error that they leave, summed over points, mean over frames (S,)."""
        n = np.maximum(self.count, 1)[:, None]
        covariance = self.product - self.moved[..., :, None] * self.rest[:, None, None, :] / n[..., None, None]
        u, s, vt = np.linalg.svd(covariance)
        sign = np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)
        around = (self.moved**2).sum(-1) / n + (self.rest**2).sum(-1)[:, None] / n
        error = self.squares - around - 2 * (s[..., 0] + s[..., 1] + sign * s[..., 2])
        u[..., 2] *= sign[..., None]
        return u @ vt, np.maximum(error, 0).mean(-1)

    def motions(self) -> tuple[np.ndarray, np.ndarray]:
        """Rotations (S, T, 3, 3) and offsets (S, T, 3): x goes to ``R x + o``."""
        rotations, _ = self.rotations()
        n = np.maximum(self.count, 1)
        centre = self.rest / n[:, None]
        return rotations, self.moved / n[:, None, None] - (rotations @ centre[:, None, :, None])[..., 0]


def _merged(moments: _Moments, edges: np.ndarray, worth: float, most: int) -> np.ndarray:  # (M,)
    """Labels of parts: neighbours are merged, cheapest first, until a merger costs more than ``worth``, and few are left."""
    count = len(moments.count)
    sets = {i: moments[np.array([i])] for i in range(count)}
    errors = dict(enumerate(moments.rotations()[1].tolist()))
    near: dict[int, set[int]] = {i: set() for i in sets}
    for a, b in edges.tolist():
        near[a].add(b)
        near[b].add(a)
    owner = np.arange(count)
    _, together = (moments[edges[:, 0]] + moments[edges[:, 1]]).rotations()
    queue = [(float(cost) - errors[int(a)] - errors[int(b)], int(a), int(b)) for cost, (a, b) in zip(together, edges)]
    heapq.heapify(queue)
    fresh = count
    while queue:
        cost, a, b = heapq.heappop(queue)
        if a not in sets or b not in sets:
            continue
        if cost > worth and len(sets) <= most:
            break
        merged = sets.pop(a) + sets.pop(b)
        around = (near.pop(a) | near.pop(b)) - {a, b}
        sets[fresh], near[fresh] = merged, around
        errors[fresh] = errors.pop(a) + errors.pop(b) + cost
        owner[(owner == a) | (owner == b)] = fresh
        if around:
            others = sorted(around)
            both = _Moments(*(np.concatenate(v) for v in zip(*(vars(sets[o]).values() for o in others))))
            joined = _Moments(*(x + y for x, y in zip(vars(merged).values(), vars(both).values())))
            _, left = joined.rotations()
            for other, total in zip(others, left):
                near[other] = (near[other] - {a, b}) | {fresh}
                heapq.heappush(queue, (float(total) - errors[fresh] - errors[other], fresh, other))
        fresh += 1
    return np.unique(owner, return_inverse=True)[1]


#: Shares of the points: fewer than the first are no part, fewer than the second may lie apart from what they move with.
_SCRAP, _SMALL = 0.01, 0.05


def _absorbed(moments: _Moments, label: np.ndarray, worth: float) -> np.ndarray:  # (M,)
    """Labels without scraps: small parts join whichever part, wherever it is, that moves as they do."""
    label = label.copy()
    while True:
        names, label = np.unique(label, return_inverse=True)
        count = len(names)
        sums, held = moments.summed(label, count), np.bincount(label)
        small = [part for part in np.argsort(held, kind="stable") if held[part] < _SMALL * len(label)]
        _, own = sums.rotations()
        for part in small if count > 1 else []:
            _, together = (sums[np.full(count, part)] + sums).rotations()
            cost = together - own - own[part]
            cost[part] = np.inf
            if cost.min() <= worth or held[part] < _SCRAP * len(label):
                label[label == part] = cost.argmin()
                break
        else:
            return label


def _settled(moments: _Moments, label: np.ndarray, edges: np.ndarray, spacing: float, rounds: int = 4) -> np.ndarray:  # (M,)
    """Labels in which a point at a border follows the neighbouring part that explains it best; borders stay short."""
    count = int(label.max()) + 1
    neighbours = [[] for _ in label]
    for a, b in edges.tolist():
        neighbours[a].append(b)
        neighbours[b].append(a)
    for _ in range(rounds):
        rotations, offsets = moments.summed(label, count).motions()
        predicted = np.einsum("stij,mj->smti", rotations, moments.rest) + offsets[:, None]
        error = ((predicted - moments.moved) ** 2).sum(-1).mean(-1)  # (S, M)
        fresh = label.copy()
        for point, around in enumerate(neighbours):
            own = label[around]
            if (own == label[point]).all():
                continue
            choices = np.unique(np.append(own, label[point]))
            votes = np.array([(own == c).mean() for c in choices])
            fresh[point] = choices[np.argmin(error[choices, point] + (0.1 * spacing) ** 2 * (1 - votes))]
        if (fresh == label).all():
            break
        label = fresh
    return np.unique(label, return_inverse=True)[1]


def _surface_turns(points: np.ndarray, moved: np.ndarray, edges: np.ndarray) -> np.ndarray:  # (T, M, 3, 3)
    """How the surface turns at each point, by its neighbours."""
    count, frames = len(points), len(moved)
    covariance = np.zeros((count, frames, 3, 3))
    a, b = edges.T
    rest, now = points[b] - points[a], (moved[:, b] - moved[:, a]).swapaxes(0, 1)
    length = np.linalg.norm(rest, axis=-1)
    stretch = np.abs(np.linalg.norm(now, axis=-1) - length[:, None]).max(-1) / np.maximum(length, 1e-12)
    share = np.exp(-((stretch / 0.2) ** 2))  # a neighbour that comes or goes is of another part
    both = share[:, None, None, None] * now[..., :, None] * rest[:, None, None, :]
    np.add.at(covariance, a, both)
    np.add.at(covariance, b, both)
    # Neighbours on one line or plane leave a turn open: a little of none decides.
    covariance += 1e-3 * np.trace(covariance, axis1=-2, axis2=-1).clip(1e-12)[..., None, None] * np.eye(3)
    u, _, vt = np.linalg.svd(covariance)
    u[..., 2] *= np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)[..., None]
    return (u @ vt).swapaxes(0, 1)


def _matrices(quats: Tensor) -> np.ndarray:  # (..., 4) -> (..., 3, 3)
    return quaternion_to_matrix(F.normalize(quats.detach().cpu().double(), dim=-1)).numpy()


# --- joints -------------------------------------------------------------------------------------------------------------

#: A joint that its two parts' motions pull apart further than this, in lengths of the object, slides.
_APART = 0.02
#: A joint that turns about other axes by less than this share of what it turns about its first is a hinge, if it turns at all.
_ASIDE, _TURNING = 0.2, math.radians(8)


def _jointed(
    points: np.ndarray, moved: np.ndarray, moments: _Moments, label: np.ndarray, edges: np.ndarray, size: float
) -> Motion:
    count = int(label.max()) + 1
    rotations, offsets = moments.summed(label, count).motions()
    borders = _borders(points, label, edges, count)
    joints = {pair: _joint(rotations, offsets, pair, place, size) for pair, place in borders.items()}
    moving = np.linalg.norm(moved - points, axis=-1).mean(0)
    held = np.bincount(label, minlength=count)
    still = np.bincount(label, moving, count) / held
    root = min(np.flatnonzero(held >= 0.5 * held.max()), key=lambda part: still[part])
    order, above = _tree(int(root), count, {pair: gap for pair, (_, gap) in joints.items()})
    rank = {part: joint for joint, part in enumerate(order)}
    centre = points[label == root].mean(0)
    places, axes, slides, parents = [centre], [np.zeros(3)], [True], [-1]
    for part in order[1:]:
        low, high = sorted((part, above[part]))
        place, gap = joints[low, high]
        places.append(place)
        axes.append(_hinge(rotations[above[part]].swapaxes(-1, -2) @ rotations[part]))
        slides.append(gap > _APART * size)
        parents.append(rank[above[part]])
    skeleton = Skeleton(
        tuple(parents), torch.tensor(np.array(places)).float(), torch.tensor(np.array(axes)).float(), tuple(slides),
        ("root", *(f"joint{joint:02}" for joint in range(1, count))),
    )  # fmt: skip
    turns, shifts = _local(skeleton, rotations[order], offsets[order])
    follows = torch.from_numpy(np.array([rank[part] for part in label]))
    quats, at = skeleton.pose(turns, shifts)
    there = moved_by(skeleton, quats, at, torch.from_numpy(points).float(), follows)
    error = float((there - torch.from_numpy(moved).float()).square().sum(-1).mean().sqrt()) / size
    return Motion(skeleton, turns, shifts, follows, error)


def moved_by(
    skeleton: Skeleton, quats: Tensor, at: Tensor, points: Tensor, label: Tensor
) -> Tensor:  # (B, J, 4), (B, J, 3), (M, 3), (M,) -> (B, M, 3)
    """Points where the parts that they follow take them."""
    offset = points - skeleton.places[label]
    return (quaternion_to_matrix(quats)[:, label] @ offset[:, :, None])[..., 0] + at[:, label]


def motions_of(quats: Tensor, at: Tensor, places: Tensor) -> Tensor:  # (B, J, 4), (B, J, 3), (J, 3) -> (B, J, 3, 4)
    """What joints do to points of the world: x goes to ``R x + o``.

    Args:
        quats, at: see :meth:`Skeleton.pose`.
        places: of the joints at rest.
    """
    matrices = quaternion_to_matrix(quats)
    return torch.cat([matrices, (at - (matrices @ places[:, :, None])[..., 0])[..., None]], -1)


def blended(motions: Tensor, weights: Tensor, points: Tensor) -> Tensor:  # (B, J, 3, 4), (M, J), (M, 3) -> (B, M, 3)
    """Points where the shares of several motions take them: linear blend skinning."""
    own = (weights @ motions.flatten(2)).unflatten(-1, (3, 4))
    return (own[..., :3] @ points[:, :, None])[..., 0] + own[..., 3]


def _borders(points: np.ndarray, label: np.ndarray, edges: np.ndarray, count: int) -> dict[tuple[int, int], np.ndarray]:
    """Where neighbouring parts meet; parts that nothing joins to the rest meet it where it is nearest."""
    meeting: dict[tuple[int, int], list[np.ndarray]] = {}
    for a, b in edges.tolist():
        if label[a] != label[b]:
            pair = (int(label[a]), int(label[b])) if label[a] < label[b] else (int(label[b]), int(label[a]))
            meeting.setdefault(pair, []).append((points[a] + points[b]) / 2)
    borders = {pair: np.mean(middles, 0) for pair, middles in meeting.items()}
    group = list(range(count))

    def top(part: int) -> int:
        while group[part] != part:
            part = group[part]
        return part

    for a, b in borders:
        group[top(a)] = top(b)
    while len({top(part) for part in range(count)}) > 1:
        inside = np.array([top(int(part)) == top(0) for part in label])
        gaps = np.linalg.norm(points[inside, None] - points[None, ~inside], axis=-1)
        i, j = np.unravel_index(gaps.argmin(), gaps.shape)
        first, second = np.flatnonzero(inside)[i], np.flatnonzero(~inside)[j]
        a, b = sorted((int(label[first]), int(label[second])))
        borders[a, b] = (points[first] + points[second]) / 2
        group[top(a)] = top(b)
    return borders


def _joint(
    rotations: np.ndarray, offsets: np.ndarray, pair: tuple[int, int], border: np.ndarray, size: float
) -> tuple[np.ndarray, float]:
    """The place at rest that both parts take to nearly the same places, near their border, and how far it misses."""
    a, b = pair
    between, apart = rotations[a] - rotations[b], offsets[a] - offsets[b]
    # What turns little leaves its joint open: the border then decides.
    pull = 0.002 * len(between)
    matrix = np.einsum("tji,tjk->ik", between, between) + pull * np.eye(3)
    place = np.linalg.solve(matrix, pull * border - np.einsum("tji,tj->i", between, apart))
    if np.linalg.norm(place - border) > 0.5 * size:
        place = border
    gap = between @ place + apart
    return place, float(np.sqrt((gap**2).sum(-1).mean()))


def _tree(root: int, count: int, gaps: dict[tuple[int, int], float]) -> tuple[list[int], dict[int, int]]:
    """Parts from the root on, each behind its parent, joined where the gaps are least (Prim)."""
    order, above = [root], {}
    while len(order) < count:
        _, part, parent = min(
            (gap, b if a in order else a, a if a in order else b)
            for (a, b), gap in gaps.items()
            if (a in order) != (b in order)
        )
        order.append(part)
        above[part] = parent
    return order, above


def _hinge(turns: np.ndarray) -> np.ndarray:  # (T, 3, 3) -> (3,)
    """The axis of turns that share one, zero of others."""
    vectors = matrix_to_rotation_vector(torch.from_numpy(turns)).numpy()
    values, axes = np.linalg.eigh(np.einsum("ti,tj->ij", vectors, vectors) / len(vectors))
    first, second = math.sqrt(max(values[2], 0)), math.sqrt(max(values[1], 0))
    if first < _TURNING or second > _ASIDE * first:
        return np.zeros(3)
    axis = axes[:, 2]
    return axis * (1.0 if axis[np.abs(axis).argmax()] > 0 else -1.0)


def _local(skeleton: Skeleton, rotations: np.ndarray, offsets: np.ndarray) -> tuple[Tensor, Tensor]:
    """Turns (T, J, 4) and shifts (T, J, 3) of joints whose parts have given motions (J, T, 3, 3) and (J, T, 3)."""
    rest = skeleton.places.double().numpy()
    places = (rotations @ rest[:, None, :, None])[..., 0] + offsets  # (J, T, 3)
    turns, shifts = [], []
    at: list[np.ndarray] = []  # where joints are, those that do not slide on their parents
    for joint, parent in enumerate(skeleton.parents):
        if parent < 0:
            turns.append(rotations[joint])
            shifts.append(places[joint] - rest[joint])
            at.append(places[joint])
            continue
        turns.append(rotations[parent].swapaxes(-1, -2) @ rotations[joint])
        offset = rest[joint] - rest[parent]
        shift = np.zeros_like(places[joint])
        if skeleton.slides[joint]:
            shift = (rotations[parent].swapaxes(-1, -2) @ (places[joint] - at[parent])[..., None])[..., 0] - offset
        shifts.append(shift)
        at.append(at[parent] + (rotations[parent] @ (offset + shift)[..., None])[..., 0])
    quats = matrices_to_quaternions(torch.from_numpy(np.stack(turns, 1)))
    return quats.float(), torch.from_numpy(np.stack(shifts, 1)).float()


def matrices_to_quaternions(matrices: Tensor) -> Tensor:  # (T, J, 3, 3) -> (T, J, 4) wxyz
    """Quaternions of the nearest sign to the frame before, so that they can be interpolated."""
    quats = matrix_to_quaternion(matrices)
    for t in range(1, len(quats)):
        quats[t] = torch.where((quats[t] * quats[t - 1]).sum(-1, keepdim=True) < 0, -quats[t], quats[t])
    return quats


def quaternion_to_rotation_vector(quats: Tensor) -> Tensor:  # (..., 4) wxyz -> (..., 3) radians
    """The logarithm of unit quaternions, of length at most pi."""
    quats = torch.where(quats[..., :1] < 0, -quats, quats)
    sine = quats[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, quats[..., :1])
    return torch.where(sine > 1e-9, quats[..., 1:] / sine.clamp_min(1e-9) * angle, 2 * quats[..., 1:])


def unwound(vectors: Tensor, axes: Tensor | None = None) -> Tensor:  # (T, J, 3), (J, 3) -> (T, J, 3)
    """Rotation vectors that go on from frame to frame where turns pass half a circle.

    Args:
        axes: unit axes of hinges, whose turns are along them; zero rows turn any way.
    """
    vectors = vectors.clone()
    hinged, axes = (torch.tensor(False), vectors[0]) if axes is None else (axes.norm(dim=-1, keepdim=True) > 0, axes)
    vectors = torch.where(hinged, (vectors * axes).sum(-1, keepdim=True) * axes, vectors)
    for t in range(1, len(vectors)):
        direction = torch.where(hinged, axes, F.normalize(vectors[t], dim=-1))
        ahead = ((vectors[t - 1] - vectors[t]) * direction).sum(-1, keepdim=True)
        vectors[t] += (ahead / (2 * math.pi)).round() * 2 * math.pi * direction
    return vectors


def matrix_to_rotation_vector(matrices: Tensor) -> Tensor:  # (..., 3, 3) -> (..., 3) radians
    """The logarithm of rotations, of length at most pi."""
    return quaternion_to_rotation_vector(matrix_to_quaternion(matrices))
