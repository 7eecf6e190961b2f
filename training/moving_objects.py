"""Generated moving objects for the motion prior: what the list of animated models lacks, each kind with parts of its own.

An object is surface points (P, 3) that follow bones by weights (P, J), and the bones' matrices (F, J, 3, 4) over time. +Y is
up, +Z ahead; lengths are about 1. The same seed gives the same object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: Weights (n, J) of points (n, 3).
Weights = Callable[[np.ndarray], np.ndarray]
#: Frames of an object, at 20 frames a second.
FRAMES, RATE = 64, 20
POINTS = 1536
#: The most bones that an object has.
BONES = 48


@dataclass
class Moving:
    """A moving object; see the module."""

    kind: str
    points: np.ndarray
    normals: np.ndarray
    weights: np.ndarray
    matrices: np.ndarray


def turns(vectors: np.ndarray) -> np.ndarray:  # (F, 3) radians -> (F, 3, 3)
    """Rotation matrices of rotation vectors."""
    angle = np.linalg.norm(vectors, axis=-1)[:, None, None]
    axis = vectors / np.maximum(angle[:, :, 0], 1e-9)
    k = np.zeros((len(vectors), 3, 3))
    k[:, 0, 1], k[:, 0, 2], k[:, 1, 2] = -axis[:, 2], axis[:, 1], -axis[:, 0]
    k = k - k.swapaxes(1, 2)
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * (k @ k)


class Builder:
    """An object under construction: bones with their motion about a rest pose, and surfaces that follow them."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.time = np.arange(FRAMES) / RATE
        self.matrices: list[np.ndarray] = []
        self.surfaces: list[
            tuple[Callable[[int], tuple[np.ndarray, np.ndarray]], float, Callable[[np.ndarray], np.ndarray]]
        ] = []
        self.speed = np.exp(random.uniform(np.log(0.4), np.log(2.2)))
        self.phase = random.uniform(0, 2 * np.pi)

    # Signals

    def wave(self, phase: float = 0.0, harmonic: float = 1.0) -> np.ndarray:
        """A sine of the object's own speed, (F,)."""
        return np.sin(2 * np.pi * self.speed * harmonic * self.time + phase + self.phase)

    def wander(self) -> np.ndarray:
        """A smooth random signal of about unit size, (F,)."""
        kind = self.random.integers(3)
        if kind == 0:
            f, p = self.random.uniform(0.15, 1.2, 3), self.random.uniform(0, 2 * np.pi, 3)
            return (np.sin(2 * np.pi * f[:, None] * self.time + p[:, None]) / np.array([[1], [1.5], [2]])).sum(0) / 1.3
        if kind == 1:  # from pose to pose
            count = self.random.integers(2, 6)
            values, at = self.random.uniform(-1, 1, count), np.sort(self.random.uniform(0, self.time[-1], count - 1))
            width = self.random.uniform(0.15, 0.6)
            result = np.full(FRAMES, values[0])
            for k, start in enumerate(at):
                f = ((self.time - start) / width).clip(0, 1)
                result += (values[k + 1] - values[k]) * f**3 * (10 - 15 * f + 6 * f**2)
            return result
        return self.wave(self.random.uniform(0, 2 * np.pi))

    # Bones

    def bone(
        self, parent: int, at: np.ndarray, turn: np.ndarray | None = None, shift: np.ndarray | None = None,
        scale: np.ndarray | None = None,
    ) -> int:  # fmt: skip
        """A bone that turns (F, 3), is scaled (F, 3) about a place and shifted (F, 3), all in its parent's rest frame."""
        linear = np.tile(np.eye(3), (FRAMES, 1, 1)) if turn is None else turns(turn)
        if scale is not None:
            linear = linear * scale[:, None, :]
        at = np.asarray(at, float)
        moved = at - linear @ at + (0 if shift is None else shift)
        own = np.concatenate([linear, moved[..., None]], -1)
        if parent >= 0:
            above = self.matrices[parent]
            own = np.concatenate([above[..., :3] @ linear, (above[..., :3] @ moved[..., None]) + above[..., 3:]], -1)
        self.matrices.append(own)
        return len(self.matrices) - 1

    # Surfaces

    def _add(self, sample: Callable[[int], tuple[np.ndarray, np.ndarray]], area: float, follow: int | Weights) -> None:
        if isinstance(follow, int):
            self.surfaces.append((sample, area, lambda points: self.only(follow, len(points))))
        else:
            self.surfaces.append((sample, area, follow))

    def only(self, bone: int, count: int) -> np.ndarray:
        weights = np.zeros((count, BONES))
        weights[:, bone] = 1
        return weights

    def ellipsoid(self, centre: np.ndarray, axes: np.ndarray, follow: int | Weights) -> None:
        """Axes (3, 3): rows are half axes."""
        radii = np.linalg.norm(axes, axis=-1)

        def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
            unit = self.random.normal(size=(count, 3))
            unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
            normal = unit / radii @ (axes / radii[:, None])
            return centre + unit @ axes, normal

        a, b, c = radii
        area = 4 * np.pi * (((a * b) ** 1.6 + (a * c) ** 1.6 + (b * c) ** 1.6) / 3) ** (1 / 1.6)
        self._add(sample, area, follow)

    def box(self, centre: np.ndarray, axes: np.ndarray, follow: int | Weights) -> None:
        """Axes (3, 3): rows are half edges."""
        size = np.linalg.norm(axes, axis=-1)
        areas = np.array([size[1] * size[2], size[0] * size[2], size[0] * size[1]]) * 4

        def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
            side = self.random.choice(3, count, p=areas / areas.sum())
            at = self.random.uniform(-1, 1, (count, 3))
            sign = np.sign(self.random.uniform(-1, 1, count))
            at[np.arange(count), side] = sign
            return centre + at @ axes, sign[:, None] * axes[side] / size[side, None]

        self._add(sample, 2 * areas.sum(), follow)

    def limb(self, start: np.ndarray, end: np.ndarray, radius: float, follow: int | Weights, flat: float = 1.0) -> None:
        """An ellipsoid or a box from one place to another."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        along = (end - start) / 2 * 1.08
        side = np.cross(along, [0.31, 0.95, 0.05] if abs(along[1]) < 0.9 * np.linalg.norm(along) else [1.0, 0, 0])
        side /= np.linalg.norm(side)
        third = np.cross(along / np.linalg.norm(along), side)
        axes = np.stack([along, side * radius, third * radius * flat])
        (self.box if self.boxy else self.ellipsoid)((start + end) / 2, axes, follow)

    boxy = False

    def chain(
        self, parent: int, start: np.ndarray, steps: np.ndarray, radius: float, turn: Callable[[int], np.ndarray],
        taper: float = 0.8, flat: float = 1.0,
    ) -> list[int]:  # fmt: skip
        """Bones end to end, (S, 3) steps, each with a limb that is blended where they meet."""
        place, bones = np.asarray(start, float), []
        for k, step in enumerate(steps):
            bone = self.bone(parent, place, turn(k))
            self.limb(place, place + step, radius, self.blended(parent, bone, place, step), flat)
            bones.append(bone)
            parent, place, radius = bone, place + step, radius * taper
        return bones

    def blended(self, parent: int, bone: int, place: np.ndarray, step: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """What is near a joint follows both bones."""
        reach = np.linalg.norm(step) * (0.02 if self.boxy else 0.25)

        def weights(points: np.ndarray) -> np.ndarray:
            along = (points - place) @ step / np.linalg.norm(step)
            f = (along / (2 * reach) + 0.5).clip(0, 1)
            result = np.zeros((len(points), BONES))
            result[:, bone] = f
            if parent >= 0:
                result[:, parent] += 1 - f
            else:
                result[:, bone] = 1
            return result

        return weights

    def finished(self, kind: str) -> Moving:
        areas = np.array([area for _, area, _ in self.surfaces])
        counts = np.floor(areas / areas.sum() * POINTS * 0.8 + 0.2 * POINTS / len(areas)).astype(int)
        counts[counts.argmax()] += POINTS - counts.sum()
        made = [(*sample(count), follow) for (sample, _, follow), count in zip(self.surfaces, counts, strict=True)]
        points, normals = np.concatenate([m[0] for m in made]), np.concatenate([m[1] for m in made])
        weights = np.concatenate([m[2](m[0]) for m in made])
        matrices = np.zeros((FRAMES, BONES, 3, 4))
        matrices[:, : len(self.matrices)] = np.stack(self.matrices, 1)
        normals = normals / np.linalg.norm(normals, axis=-1, keepdims=True).clip(1e-9)
        return Moving(kind, points, normals, weights / weights.sum(-1, keepdims=True), matrices)


X, Y, Z = np.eye(3)


def _root(b: Builder, bob: float = 0.03) -> int:
    r = b.random
    shift = bob * r.uniform(0, 1) * b.wave(r.uniform(0, 6), 2)[:, None] * Y
    turn = r.uniform(0, 0.12) * b.wave(r.uniform(0, 6))[:, None] * r.normal(size=3)
    return b.bone(-1, np.zeros(3), turn, shift)


def walker(b: Builder) -> None:
    """Two, four, six or eight legs in a gait; arms, neck, head and tail."""
    r = b.random
    legs = int(r.choice([1, 2, 3, 4], p=[0.3, 0.4, 0.15, 0.15]))
    b.boxy = r.random() < 0.25
    root = _root(b)
    upright = legs == 1
    length, width, height = (r.uniform(0.1, 0.25), r.uniform(0.12, 0.25), r.uniform(0.2, 0.35)) if upright else (
        r.uniform(0.25, 0.5), r.uniform(0.08, 0.22), r.uniform(0.08, 0.2)
    )  # fmt: skip
    b.ellipsoid(np.zeros(3), np.diag([width / 2, height / 2, length / 2]) * 1.1, root)
    gait = r.choice(["trot", "pace", "bound", "wave"])
    swing, knee, lift = r.uniform(0.25, 0.9), r.uniform(0.2, 1.1), r.uniform(0, 0.5)
    reach, splay = r.uniform(0.3, 0.6), (0.0 if legs < 3 and r.random() < 0.8 else r.uniform(0.3, 1.1))
    segments = int(r.integers(2, 4))
    thick = r.uniform(0.02, 0.07)
    backward = r.random() < 0.5
    for i in range(legs):
        z = 0.0 if upright else length * 0.42 * (1 - 2 * i / max(legs - 1, 1))
        for side in (-1, 1):
            phase = {
                "trot": np.pi * (i + (side > 0)), "pace": np.pi * (side > 0) + 0.3 * i, "bound": np.pi * i + 0.2 * side,
                "wave": 2 * np.pi * i / legs + np.pi * (side > 0),
            }[gait]  # fmt: skip
            if upright:
                phase = np.pi * (side > 0)
            out = np.array([side * np.sin(splay), -np.cos(splay), 0.0])
            start = np.array([side * width * 0.45, -height * 0.3, z])
            bend = -1.0 if (upright or (i == 0) == backward) else 1.0

            def turn(k: int, phase: float = phase, side: int = side, bend: float = bend) -> np.ndarray:
                if k == 0:
                    fore = swing * b.wave(phase)[:, None] * (X if splay < 0.6 else Y * side)
                    return fore + side * lift * np.maximum(b.wave(phase + np.pi / 2), 0)[:, None] * Z
                return bend * -(knee / k) * np.maximum(b.wave(phase + 0.9 - 0.3 * k) + 0.3, 0)[:, None] * X

            steps = np.tile(out * reach / segments, (segments, 1))
            if splay:
                steps[1:] = np.array([0.3 * out[0], -0.95, 0]) * reach / segments
            b.chain(root, start, steps, thick, turn)
    if upright:
        arms, raised = r.uniform(0.2, 0.9), r.uniform(0, 1.2)
        for side in (-1, 1):
            b.chain(
                root, np.array([side * width * 0.6, height * 0.4, 0]), np.tile([side * 0.03, -0.14, 0.02], (2, 1)), thick * 0.8,
                lambda k, side=side: (arms * b.wave(np.pi * (side < 0))[:, None] * X if k == 0
                                      else -(raised + 0.3 * b.wave(np.pi * (side < 0)))[:, None] * X),
            )  # fmt: skip
    neck = b.chain(
        root, np.array([0, height * 0.4, 0 if upright else length * 0.45]),
        np.array([[0, 0.1, 0.0 if upright else 0.08]]), 0.05,
        lambda k: 0.25 * b.wander()[:, None] * (X if r.random() < 0.6 else Y),
    )  # fmt: skip
    head = r.uniform(0.06, 0.14)
    b.ellipsoid(
        np.array([0, height * 0.4 + 0.12, 0.05 if upright else length * 0.45 + 0.12]),
        np.diag([head * 0.8, head, head * 1.2]),
        neck[-1],
    )
    if not upright and r.random() < 0.7:
        lag, axis, size = r.uniform(0, 1), X if r.random() < 0.4 else Y, r.uniform(0.1, 0.5)
        b.chain(root, np.array([0, 0, -length / 2]), np.tile([0, r.uniform(-0.03, 0.04), -0.09], (4, 1)), 0.035,
                lambda k: size * b.wave(-lag * k)[:, None] * axis)  # fmt: skip


def flyer(b: Builder) -> None:
    """A body with one or two pairs of wings of one to three segments, in phase."""
    r = b.random
    root = b.bone(-1, np.zeros(3), r.uniform(0, 0.2) * b.wave(1.0)[:, None] * X, -r.uniform(0, 0.06) * b.wave(0.4)[:, None] * Y)
    length = r.uniform(0.2, 0.5)
    b.ellipsoid(np.zeros(3), np.diag([r.uniform(0.03, 0.09), r.uniform(0.03, 0.09), length / 2]), root)
    b.ellipsoid(np.array([0, 0.03, length / 2]), np.eye(3) * r.uniform(0.03, 0.08), root)
    b.boxy = True
    for pair in range(1 if r.random() < 0.7 else 2):
        segments, span, chord = int(r.integers(1, 4)), r.uniform(0.3, 0.6), r.uniform(0.08, 0.22)
        flap, lag, rest, twist = r.uniform(0.3, 1.1), r.uniform(0.2, 1.2), r.uniform(-0.3, 0.5), r.uniform(0, 0.4)
        upright = r.random() < 0.15  # butterflies
        for side in (-1, 1):
            place, parent = np.array([side * 0.03, 0.02, length * (0.1 - 0.25 * pair)]), root
            for k in range(segments):
                step = np.array([side * span / segments, 0, -0.04 * k])
                beat = side * (rest * (k == 0) + flap / (1 + 0.4 * k) * b.wave(-lag * k + pair))
                turn = beat[:, None] * (Z if not upright else Y) + twist * b.wave(1.6 - lag * k)[:, None] * X
                bone = b.bone(parent, place, turn)
                b.box(place + step / 2, np.stack([step / 2, 0.008 * Y, chord / 2 * (1 - 0.2 * k) * Z]), bone)
                parent, place = bone, place + step
    b.boxy = False
    b.chain(
        root,
        np.array([0, 0, -length / 2]),
        np.tile([0, 0, -0.08], (2, 1)),
        0.04,
        lambda k: 0.2 * b.wander()[:, None] * X,
        flat=0.3,
    )


def snake(b: Builder) -> None:
    """A chain with a travelling wave, sideways or up and down."""
    r = b.random
    count = int(r.integers(7, 13))
    axis = Y if r.random() < 0.6 else X
    size, lag = r.uniform(0.15, 0.6), r.uniform(0.4, 1.3)
    root = _root(b, 0.01)
    curl = r.uniform(-0.3, 0.3)
    heading = np.array([0, r.uniform(-0.2, 0.2), -1.0])
    if r.random() < 0.25:
        heading = np.array([0, -1.0, r.uniform(-0.3, 0.3)])
        axis = X if r.random() < 0.5 else Z
    b.ellipsoid(-0.05 * heading, np.eye(3) * 0.07, root)
    b.chain(root, np.zeros(3), np.tile(heading / count, (count, 1)), r.uniform(0.03, 0.08),
            lambda k: (curl / count + size * (0.3 + 0.7 * k / count) * b.wave(-lag * k))[:, None] * axis, 0.95)  # fmt: skip


def fish(b: Builder) -> None:
    """A body that bends more and more towards its tail; fins."""
    r = b.random
    count = int(r.integers(4, 7))
    axis = Y if r.random() < 0.8 else X
    size, lag, tall = r.uniform(0.1, 0.35), r.uniform(0.3, 0.9), r.uniform(0.6, 2.5)
    root = b.bone(-1, np.zeros(3), 0.1 * b.wave(2.0)[:, None] * axis, None)
    width = r.uniform(0.05, 0.12)
    b.ellipsoid(np.array([0, 0, 0.12]), np.diag([width, width * tall, 0.22]), root)
    parent, place = root, np.array([0, 0, -0.02])
    for k in range(count):
        shrink = 1 - 0.7 * k / count
        bone = b.bone(parent, place, (size * (0.5 + k / count) * b.wave(-lag * k))[:, None] * axis)
        step = np.array([0, 0, -0.5 / count])
        b.ellipsoid(
            place + step / 2,
            np.diag([width * shrink * 0.8, width * tall * shrink, 0.36 / count]),
            b.blended(parent, bone, place, step),
        )
        parent, place = bone, place + step
    flat = np.stack([0.006 * X, r.uniform(0.08, 0.2) * Y, 0.08 * Z]) if axis is Y else np.stack([0.18 * X, 0.006 * Y, 0.08 * Z])
    tail = b.bone(parent, place, (1.5 * size * b.wave(-lag * count))[:, None] * axis)
    b.box(place - 0.07 * Z, flat, tail)
    paddle = r.uniform(0.1, 0.7)
    for side in (-1, 1):
        at = np.array([side * width, -0.02, 0.12])
        fin = b.bone(root, at, paddle * b.wave(1.0)[:, None] * (side * Z) + 0.3 * b.wave(0.2)[:, None] * X)
        b.box(at + np.array([side * 0.07, 0, -0.03]), np.diag([0.07, 0.006, 0.05]), fin)
    if r.random() < 0.6:
        b.box(np.array([0, width * tall + 0.04, 0.08]), np.diag([0.006, 0.05, 0.1]), root)


def hand(b: Builder) -> None:
    """A palm and fingers that curl."""
    r = b.random
    root = b.bone(-1, np.array([0, -0.2, 0]), 0.5 * b.wander()[:, None] * r.normal(size=3) * 0.5)
    b.boxy = r.random() < 0.3
    b.box(np.zeros(3), np.diag([0.16, 0.18, 0.045]), root)
    if r.random() < 0.5:
        b.limb(np.array([0, -0.45, 0]), np.array([0, -0.15, 0]), 0.08, root)
    curl, lag = r.uniform(0.4, 1.3), r.uniform(0, 1.2)
    own = r.random() < 0.4
    for i in range(4):
        signal = b.wander() if own else 0.5 + 0.5 * b.wave(lag * i)
        length = 0.09 * (1.1, 1.2, 1.1, 0.9)[i]
        b.chain(root, np.array([-0.13 + 0.085 * i, 0.18, 0]), np.tile([0, length, 0.005], (3, 1)), 0.032,
                lambda k, signal=signal: (curl * signal)[:, None] * X, 0.92)  # fmt: skip
    thumb = 0.5 + 0.5 * b.wave(lag * 4)
    b.chain(root, np.array([-0.16, -0.05, 0.01]), np.tile([-0.06, 0.06, 0.01], (3, 1)), 0.034,
            lambda k: (0.7 * curl * thumb)[:, None] * np.array([0.5, 0.9, -0.2]), 0.92)  # fmt: skip


def cloth(b: Builder) -> None:
    """A sheet, held along one side or at a corner, with waves that run through it; a flag, a cape, a carpet."""
    r = b.random
    nu, nv = int(r.integers(5, 8)), int(r.integers(4, 7))
    nu, nv = min(nu, BONES // nv), nv
    width, height = r.uniform(0.5, 1.0), r.uniform(0.3, 0.9)
    frame = np.stack([X, Y, Z]) if r.random() < 0.6 else np.stack([X, Z, Y])
    k = r.uniform(2, 8, 2) * r.choice([-1, 1], 2)
    size, held = r.uniform(0.04, 0.16), r.choice(["edge", "corner", "free"], p=[0.6, 0.2, 0.2])
    second = r.uniform(0, 0.5)
    grid = np.stack(np.meshgrid(np.linspace(0, 1, nu), np.linspace(0, 1, nv), indexing="ij"), -1).reshape(-1, 2)
    rest_shift = np.zeros(3)
    for u, v in grid:
        slack = {"edge": u, "corner": (u + v) / 2, "free": 1.0}[str(held)]
        phase = -k[0] * u - k[1] * v * 0.5
        depth = size * slack * (b.wave(phase) + second * b.wave(1.7 * phase + 1, 1.6))
        along = -0.3 * size * slack * (1 + b.wave(2 * phase, 2))
        b.bone(-1, rest_shift, None, depth[:, None] * frame[2] + along[:, None] * frame[0])

    def follow(points: np.ndarray) -> np.ndarray:
        local = points @ frame.T
        u, v = (local[:, 0] / width + 0.5) * (nu - 1), (local[:, 1] / height + 0.5) * (nv - 1)
        weights = np.zeros((len(points), BONES))
        i, j = np.floor(u).clip(0, nu - 2).astype(int), np.floor(v).clip(0, nv - 2).astype(int)
        f, g = (u - i).clip(0, 1), (v - j).clip(0, 1)
        rows = np.arange(len(points))
        for di, dj, share in ((0, 0, (1 - f) * (1 - g)), (1, 0, f * (1 - g)), (0, 1, (1 - f) * g), (1, 1, f * g)):
            weights[rows, (i + di) * nv + j + dj] += share
        return weights

    b.box(np.zeros(3), np.stack([frame[0] * width / 2, frame[1] * height / 2, frame[2] * 0.008]), follow)
    if held == "edge" and r.random() < 0.6 and len(b.matrices) < BONES:
        pole = b.bone(-1, np.zeros(3))
        b.box(-frame[0] * width / 2 - frame[1] * 0.2, np.stack([frame[0] * 0.02, frame[1] * 0.7, frame[2] * 0.02]), pole)


def rotor(b: Builder) -> None:
    """Rigid parts that turn about hubs: turbines, fans, wheels of a cart, propellers, gears."""
    r = b.random
    base = b.bone(-1, np.zeros(3), None, None)
    spin = 2 * np.pi * r.uniform(0.08, 0.8) * r.choice([-1, 1]) * b.time
    if r.random() < 0.15:
        spin = spin * (1 + 0.5 * b.wander())
    if r.random() < 0.6:  # a tower
        tall = r.uniform(0.2, 0.7)
        axis = np.array([r.uniform(-0.3, 0.3), r.uniform(-0.2, 0.2), 1.0]) if r.random() < 0.7 else Y
        axis = axis / np.linalg.norm(axis)
        yaw = b.bone(base, np.zeros(3), (r.uniform(0, 0.5) * b.wander() if r.random() < 0.3 else 0 * spin)[:, None] * Y)
        b.box(np.array([0, -tall / 2, 0]), np.diag([r.uniform(0.02, 0.1), tall / 2, r.uniform(0.02, 0.1)]), base)
        if r.random() < 0.5:
            b.box(np.array([0, -tall, 0]), np.diag([r.uniform(0.1, 0.25), 0.03, r.uniform(0.1, 0.25)]), base)
        hub = axis * r.uniform(0.05, 0.15)
        b.limb(-0.1 * axis, hub, 0.05, yaw)
        wheel = b.bone(yaw, hub, spin[:, None] * axis)
        blades, length = int(r.integers(2, 7)), r.uniform(0.2, 0.5)
        side = np.cross(axis, [0.2, 0.3, 0.9] if abs(axis[2]) < 0.8 else [0, 1.0, 0])
        side /= np.linalg.norm(side)
        for i in range(blades):
            direction = turns((2 * np.pi * i / blades * axis)[None])[0] @ side
            flat = np.cross(axis, direction)
            tilt = flat * np.cos(0.5) + axis * np.sin(0.5)
            b.box(
                hub + direction * length / 2,
                np.stack([direction * length / 2, tilt * r.uniform(0.02, 0.07), np.cross(direction, tilt) * 0.01]),
                wheel,
            )
        if r.random() < 0.3:
            b.limb(hub - 0.05 * axis, hub + 0.05 * axis, 0.08, wheel)
        return
    long, wide = r.uniform(0.3, 0.5), r.uniform(0.12, 0.3)  # a cart
    shake = b.bone(base, np.zeros(3), 0.02 * b.wave(0, 3)[:, None] * X, 0.01 * b.wave(0.5, 3)[:, None] * Y)
    b.box(np.zeros(3), np.diag([wide, r.uniform(0.05, 0.15), long]), shake)
    if r.random() < 0.6:
        b.box(np.array([0, 0.15, -0.1 * r.random()]), np.diag([wide * 0.8, 0.1, long * 0.5]), shake)
    radius, pairs = r.uniform(0.08, 0.16), int(r.integers(2, 4))
    for i in range(pairs):
        for side in (-1, 1):
            hub = np.array([side * (wide + 0.03), -0.1, long * 0.75 * (1 - 2 * i / (pairs - 1))])
            wheel = b.bone(base, hub, spin[:, None] * X)
            b.ellipsoid(hub, np.diag([0.03, radius, radius]), wheel)
            b.box(hub + side * 0.02 * X, np.diag([0.02, 0.02, radius]), wheel)
    if r.random() < 0.4:
        turret = b.bone(shake, np.array([0, 0.2, 0]), (r.uniform(0.3, 1) * b.wander())[:, None] * Y)
        b.box(np.array([0, 0.25, 0]), np.diag([0.1, 0.06, 0.12]), turret)
        b.limb(np.array([0, 0.25, 0.1]), np.array([0, 0.27, 0.5]), 0.03, turret)


def arm(b: Builder) -> None:
    """A robot's arm on its base, or a crane, rigid parts on hinges."""
    r = b.random
    b.boxy = r.random() < 0.7
    base = b.bone(-1, np.zeros(3))
    b.box(np.array([0, -0.05, 0]), np.diag([r.uniform(0.1, 0.22), 0.06, r.uniform(0.1, 0.22)]), base)
    turntable = b.bone(base, np.zeros(3), (r.uniform(0, 1.4) * b.wander())[:, None] * Y)
    count = int(r.integers(2, 5))
    lean = r.uniform(-0.6, 0.8)
    bend = [r.uniform(0.2, 0.9) for _ in range(count)]
    steps = np.stack([[0, np.cos(lean * k) * 0.7 / count, np.sin(lean * k) * 0.7 / count] for k in range(count)])
    bones = b.chain(turntable, np.zeros(3), steps, r.uniform(0.03, 0.07), lambda k: (bend[k] * b.wander())[:, None] * X, 0.85)
    tip = steps.sum(0)
    grip = 0.3 + 0.3 * b.wander()
    for side in (-1, 1):
        finger = b.bone(bones[-1], tip + side * 0.03 * X, grip[:, None] * side * Z)
        b.box(tip + np.array([side * 0.04, 0.05, 0]), np.diag([0.012, 0.06, 0.02]), finger)


def columns(b: Builder) -> None:
    """Pillars, spikes or pistons that rise out of a base and sink again."""
    r = b.random
    base = b.bone(-1, np.zeros(3))
    count = int(r.integers(1, 9))
    across = r.uniform(0.2, 0.45)
    b.box(np.zeros(3), np.diag([across, r.uniform(0.04, 0.15), across * r.uniform(0.4, 1)]), base)
    stretch = r.random() < 0.4
    together = r.random() < 0.4
    axis = Y if r.random() < 0.8 else r.normal(size=3)
    axis = axis / np.linalg.norm(axis)
    rising = np.cumsum(np.ones(FRAMES)) / FRAMES
    for _ in range(count):
        at = np.array([r.uniform(-0.8, 0.8) * across, 0, r.uniform(-0.4, 0.4) * across])
        height, wide = r.uniform(0.15, 0.7), r.uniform(0.02, 0.1)
        signal = 0.5 + 0.5 * b.wave(0 if together else r.uniform(0, 6)) if r.random() < 0.6 else rising ** r.uniform(0.5, 2)
        if stretch:
            scale = np.ones((FRAMES, 3)) + np.abs(axis) * (0.15 + 0.85 * signal - 1)[:, None]
            bone = b.bone(base, at, None, None, scale)
        else:
            bone = b.bone(base, at, None, ((signal - 0.5) * height)[:, None] * axis)
        side = np.cross(axis, [0.9, 0.1, 0.4])
        side /= np.linalg.norm(side)
        third = np.cross(axis, side)
        b.box(at + axis * height / 2, np.stack([axis * height / 2, side * wide, third * wide]), bone)


def blob(b: Builder) -> None:
    """A soft body that is squashed, stretched, bent or twisted; perhaps it jumps."""
    r = b.random
    root = b.bone(-1, np.array([0, -0.4, 0]), None, r.uniform(0, 0.4) * np.maximum(b.wave(0), 0)[:, None] * Y)
    size = r.uniform(0.05, 0.35)
    squash = size * b.wave(r.uniform(0, 6))
    scale = np.stack([1 - squash / 2, 1 + squash, 1 - squash / 2], -1)
    soft = b.bone(root, np.array([0, -0.4, 0]), None, None, scale)
    levels = int(r.integers(4, 8))
    bend, twist = r.uniform(0, 0.25) * (r.random() < 0.7), r.uniform(0, 0.3) * (r.random() < 0.4)
    axis = r.normal(size=3) * [1, 0, 1]
    axis /= np.linalg.norm(axis)
    parent, bones, heights = soft, [], np.linspace(-0.4, 0.4, levels)
    for k, y in enumerate(heights):
        parent = b.bone(
            parent, np.array([0, y, 0]), bend * b.wave(-0.3 * k)[:, None] * axis + twist * b.wave(1 - 0.2 * k)[:, None] * Y
        )
        bones.append(parent)

    def follow(points: np.ndarray) -> np.ndarray:
        level = ((points[:, 1] + 0.4) / 0.8 * (levels - 1)).clip(0, levels - 1.001)
        i, weights = np.floor(level).astype(int), np.zeros((len(points), BONES))
        rows, own = np.arange(len(points)), np.array(bones)
        weights[rows, own[i]] = 1 - (level - i)
        weights[rows, own[i + 1]] = level - i
        return weights

    shape = np.diag([r.uniform(0.12, 0.4), 0.4, r.uniform(0.12, 0.4)])
    (b.box if r.random() < 0.2 else b.ellipsoid)(np.zeros(3), shape, follow)
    for side in (-1, 1):
        b.ellipsoid(np.array([side * 0.1, 0.2, shape[2, 2] * 0.8]), np.eye(3) * 0.05, bones[-2])


def tentacles(b: Builder) -> None:
    """Chains about a body that wave: an octopus, a plant in the wind, hair."""
    r = b.random
    root = _root(b)
    down = -1 if r.random() < 0.4 else 1
    b.ellipsoid(np.zeros(3), np.diag(r.uniform(0.08, 0.22, 3)), root)
    count, segments = int(r.integers(3, 9)), int(r.integers(3, 6))
    count = min(count, (BONES - 2) // segments)
    size, lag, spread = r.uniform(0.1, 0.5), r.uniform(0.2, 1.0), r.uniform(0.2, 1.2)
    wind = r.normal(size=3) * [1, 0.2, 1]
    wind /= np.linalg.norm(wind)
    together = r.random() < 0.5
    for i in range(count):
        angle = 2 * np.pi * i / count
        out = np.array([np.cos(angle) * np.sin(spread), down * np.cos(spread), np.sin(angle) * np.sin(spread)])
        axis = wind if together else np.cross(out, Y)
        axis = axis / max(np.linalg.norm(axis), 1e-6)
        phase = 0.5 * i * r.uniform(0, 1) if together else r.uniform(0, 6) * (r.random() < 0.5)
        b.chain(root, out * 0.1, np.tile(out * r.uniform(0.3, 0.5) / segments, (segments, 1)), r.uniform(0.02, 0.05),
                lambda k, axis=axis, phase=phase: (size * b.wave(phase - lag * k))[:, None] * axis, 0.85)  # fmt: skip


def figure(b: Builder) -> None:
    """A person or an animal upright in free motion: it waves, bows, kicks, turns, dances."""
    r = b.random
    b.boxy = r.random() < 0.3
    hips = b.bone(-1, np.zeros(3), (r.uniform(0, 0.6) * b.wander())[:, None] * Y, r.uniform(0, 0.06) * b.wander()[:, None] * Y)
    b.limb(np.array([0, -0.06, 0]), np.array([0, 0.06, 0]), r.uniform(0.08, 0.13), hips)
    chest = b.chain(hips, np.array([0, 0.05, 0]), np.tile([0, r.uniform(0.09, 0.14), 0], (2, 1)), r.uniform(0.08, 0.14),
                    lambda k: r.uniform(0, 0.35) * b.wander()[:, None] * r.normal(size=3), 1.05)[-1]  # fmt: skip
    head = b.bone(chest, np.array([0, 0.3, 0]), 0.3 * b.wander()[:, None] * r.normal(size=3))
    size = r.uniform(0.07, 0.16)
    b.ellipsoid(np.array([0, 0.3 + size, 0.01]), np.diag([size, size * 1.15, size]), head)
    lively, step = r.uniform(0.2, 1.1), r.uniform(0, 0.7)
    for side in (-1, 1):
        raised = r.uniform(0, 1.5)
        swing = lively * b.wander()[:, None] * (r.normal(size=3) * [1, 0.3, 0.8])
        elbow = -(0.6 + 0.6 * b.wander()).clip(0, 2.2)[:, None] * (X if raised < 0.5 else -Y * side)
        out = np.array([side * np.sin(raised), -np.cos(raised), 0]) * r.uniform(0.13, 0.17)
        b.chain(
            chest, np.array([side * 0.14, 0.25, 0]), np.tile(out, (2, 1)), 0.04, lambda k, a=swing, e=elbow: a if k == 0 else e
        )
        thigh = (step * b.wander())[:, None] * X + 0.15 * b.wander()[:, None] * Z
        knee = (step * (0.5 + b.wander())).clip(0, 2)[:, None] * X
        b.chain(hips, np.array([side * 0.07, -0.05, 0]), np.tile([0, -r.uniform(0.17, 0.22), 0], (2, 1)), 0.055,
                lambda k, a=thigh, e=knee: a if k == 0 else e)  # fmt: skip


def doors(b: Builder) -> None:
    """Lids, doors, drawers, levers, pendulums: boxes on hinges and slides."""
    r = b.random
    base = b.bone(-1, np.zeros(3))
    half = r.uniform(0.12, 0.4, 3)
    b.box(np.zeros(3), np.diag(half), base)
    for _ in range(int(r.integers(1, 5))):
        axis, out = np.eye(3)[r.permutation(3)[:2]]
        sign = r.choice([-1, 1])
        size = r.uniform(0.03, 0.3, 3)
        at = out * sign * half + (np.eye(3)[0] + np.eye(3)[2]) * r.uniform(-0.5, 0.5) * half
        signal = b.wander() * r.uniform(0.3, 1.5)
        if r.random() < 0.65:
            bone = b.bone(base, at, signal[:, None] * axis)
        else:
            bone = b.bone(base, at, None, 0.25 * signal[:, None] * out)
        b.box(at + out * sign * size * 0.9, np.diag(size), bone)


KINDS: dict[str, Callable[[Builder], None]] = {
    f.__name__: f for f in (walker, flyer, snake, fish, hand, cloth, rotor, arm, columns, blob, tentacles, figure, doors)
}  # fmt: skip
#: How often each kind is drawn.
SHARES = {"walker": 3.0, "figure": 2.0, "flyer": 1.5, "rotor": 1.5}


def generate(seed: int) -> Moving:
    """The object of a seed."""
    random = np.random.default_rng(seed)
    names = list(KINDS)
    shares = np.array([SHARES.get(name, 1.0) for name in names])
    kind = names[random.choice(len(names), p=shares / shares.sum())]
    builder = Builder(random)
    KINDS[kind](builder)
    return builder.finished(kind)
