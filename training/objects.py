"""Articulated, textured, moving objects without end, each from a seed.

An object is up to :data:`SOLIDS` convex solids (ellipsoids, boxes, tapered cylinders) on up to :data:`PARTS` joints, painted by
formulas. The arrays of :class:`Objects` describe any number of them at once, so that a GPU draws them by casting rays
(:mod:`.render`); :func:`meshes` gives the same object as triangles. Frame: +Y up, front +Z, longest side 1 at tau = 0, centred
on the origin. Colours are sRGB, unlit.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.mesh import Mesh

PARTS, SOLIDS, DECALS = 16, 26, 12
ELLIPSOID, BOX, FRUSTUM = 0, 1, 2
WAVES, PRODUCT, SPOTS, LINEAR = 0, 1, 2, 3

#: Columns of ``Objects.paint``, one row a part. With q = (point - centre) / reach, the second colour covers the first by
#: clamp(0.5 + sharp (g(q) - level), 0, 1), where g is a mean of three waves, a product of three waves, spots or a ramp.
PAINT = {
    "first": slice(0, 3), "second": slice(3, 6), "wave": slice(6, 15), "phase": slice(15, 18), "amount": slice(18, 21),
    "kind": 21, "sharp": 22, "level": 23, "shade": 24, "centre": slice(25, 28), "reach": slice(28, 31),
}  # fmt: skip
PAINT_COLUMNS = 31


@dataclass(frozen=True)
class Objects:
    """Any number of objects; unused solids have kind -1, unused decals part -1.

    Joints: part p's frame is its parent's frame times a move by ``offset + slide sin(tau' + phase_0)`` times ``turn`` times a
    rotation about ``axis`` by ``swing_0 sin(tau' + phase_0) + swing_1 sin(2 tau' + phase_1) + spin tau'``, tau' = 2 pi tau.
    So the motion loops over tau in [0, 1].

    Args:
        parent: index of the parent part, smaller than the part's own, or :data:`PARTS` for the world.
        solid_kind: :data:`ELLIPSOID`, :data:`BOX` or :data:`FRUSTUM` (axis y).
        solid_part, solid_centre: part and centre in its frame.
        solid_radius: half extents; of a frustum at half height.
        solid_taper: a frustum's radius at height y is radius (1 + taper y / radius_y).
        paint: texture of each part, columns :data:`PAINT`.
        decal_part, decal_centre, decal_radius, decal_color: ellipsoids, in the part's q, that colour the surface inside them; a
            later one lies over an earlier one.
    """

    parent: Tensor  # (..., PARTS) int64
    offset: Tensor  # (..., PARTS, 3)
    turn: Tensor  # (..., PARTS, 3, 3)
    axis: Tensor  # (..., PARTS, 3)
    swing: Tensor  # (..., PARTS, 2) radians
    phase: Tensor  # (..., PARTS, 2) radians
    spin: Tensor  # (..., PARTS) whole turns
    slide: Tensor  # (..., PARTS, 3)
    solid_kind: Tensor  # (..., SOLIDS) int64
    solid_part: Tensor  # (..., SOLIDS) int64
    solid_centre: Tensor  # (..., SOLIDS, 3)
    solid_radius: Tensor  # (..., SOLIDS, 3)
    solid_taper: Tensor  # (..., SOLIDS)
    paint: Tensor  # (..., PARTS, PAINT_COLUMNS)
    decal_part: Tensor  # (..., DECALS) int64
    decal_centre: Tensor  # (..., DECALS, 3)
    decal_radius: Tensor  # (..., DECALS, 3)
    decal_color: Tensor  # (..., DECALS, 3)

    def __len__(self) -> int:
        return len(self.parent)

    def __getitem__(self, index: Any) -> Objects:
        return self.map(lambda t: t[index])

    def map(self, function: Callable[[Tensor], Tensor]) -> Objects:
        """The objects with ``function`` applied to every array."""
        return Objects(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device | str) -> Objects:
        """The objects on a device."""
        return self.map(lambda t: t.to(device))

    @staticmethod
    def cat(many: Sequence[Objects]) -> Objects:
        """Several batches as one."""
        return Objects(**{f.name: torch.cat([getattr(x, f.name) for x in many]) for f in fields(Objects)})

    def pose(self, tau: Tensor | float) -> tuple[Tensor, Tensor]:
        """Rotations ``(..., PARTS, 3, 3)`` and positions ``(..., PARTS, 3)`` of the parts' frames at ``tau`` (...)."""
        turn = 2 * math.pi * torch.as_tensor(tau, dtype=self.offset.dtype, device=self.offset.device)[..., None]
        first, second = (turn + self.phase[..., 0]).sin(), (2 * turn + self.phase[..., 1]).sin()
        angle = self.swing[..., 0] * first + self.swing[..., 1] * second + self.spin * turn
        rotation = self.turn @ _rotation(self.axis, angle)
        position = self.offset + self.slide * first[..., None]
        batch = torch.broadcast_shapes(rotation.shape[:-3], self.parent.shape[:-1])
        local = torch.zeros(*batch, PARTS + 1, 4, 4, dtype=rotation.dtype, device=rotation.device)
        local[..., :PARTS, :3, :3], local[..., :PARTS, :3, 3] = rotation, position
        local[..., PARTS, :3, :3], local[..., 3, 3] = torch.eye(3, device=rotation.device), 1
        parent = torch.cat([self.parent, torch.full_like(self.parent[..., :1], PARTS)], -1).expand(*batch, PARTS + 1)
        for _ in range(3):  # pointer doubling: chains of up to eight joints
            local = local.gather(-3, parent[..., None, None].expand(*batch, PARTS + 1, 4, 4)) @ local
            parent = parent.gather(-1, parent)
        return local[..., :PARTS, :3, :3], local[..., :PARTS, :3, 3]


def surface_color(
    paint: Tensor,  # (..., PAINT_COLUMNS) of the point's part
    point: Tensor,  # (..., 3) in the part's frame
    part: Tensor,  # (...)
    decals: tuple[Tensor, Tensor, Tensor, Tensor],  # part (..., D), centre (..., D, 3), radius (..., D, 3), colour (..., D, 3)
) -> Tensor:  # (..., 3)
    """sRGB colour of surface points; both faces of an object, rays and triangles, are painted by this."""
    q = (point - paint[..., PAINT["centre"]]) / paint[..., PAINT["reach"]]
    wave = paint[..., PAINT["wave"]].unflatten(-1, (3, 3))
    turns = (wave * q[..., None, :]).sum(-1) + paint[..., PAINT["phase"]]
    waves = (2 * math.pi * turns).sin()
    kind = paint[..., PAINT["kind"]]
    lattice = 0.5 - (turns - turns.floor() - 0.5).norm(dim=-1)
    g = torch.where(
        kind == WAVES,
        (waves * paint[..., PAINT["amount"]]).sum(-1),
        torch.where(kind == PRODUCT, waves.prod(-1), torch.where(kind == SPOTS, lattice, turns[..., 0])),
    )
    cover = (0.5 + paint[..., PAINT["sharp"]] * (g - paint[..., PAINT["level"]])).clamp(0, 1)[..., None]
    color = torch.lerp(paint[..., PAINT["first"]], paint[..., PAINT["second"]], cover)
    low = (0.5 - 0.5 * q[..., 1:2]).clamp(0, 1)
    color = color * (1 - paint[..., PAINT["shade"], None] * low)
    owner, centre, radius, tint = decals
    for k in range(DECALS):
        inside = (owner[..., k] == part) & ((((q - centre[..., k, :]) / radius[..., k, :]) ** 2).sum(-1) < 1)
        color = torch.where(inside[..., None], tint[..., k, :], color)
    return color


def _rotation(axis: Tensor, angle: Tensor) -> Tensor:  # (..., 3) unit, (...) -> (..., 3, 3)
    s, c = angle.sin()[..., None], angle.cos()[..., None]
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    outer = axis[..., :, None] * axis[..., None, :]
    return c[..., None] * torch.eye(3, device=axis.device) + s[..., None] * cross + (1 - c[..., None]) * outer


# --- triangles --------------------------------------------------------------------------------------------------------------

_TILE, _MARGIN = 96, 4
Patch = tuple[np.ndarray, np.ndarray]  # u, v in [0, 1]: the surface's parameters


def meshes(objects: Objects, times: Iterable[float]) -> list[Mesh]:
    """One object (no batch dimension) as a mesh at each tau; all share faces, texture coordinates and one texture."""
    patches = [
        (s, corner, patch)
        for s in (objects.solid_kind >= 0).nonzero()[:, 0].tolist()
        for corner, patch in enumerate(_PATCHES[int(objects.solid_kind[s])])
    ]
    columns = math.ceil(math.sqrt(len(patches)))
    cell = _TILE + 2 * _MARGIN
    atlas = torch.ones(-(-len(patches) // columns) * cell, columns * cell, 4)
    texel = ((np.arange(cell) - _MARGIN + 0.5) / _TILE).clip(0, 1)
    decals = (objects.decal_part, objects.decal_centre, objects.decal_radius, objects.decal_color)
    points, parts, faces, uvs, count = [], [], [], [], 0
    for k, (s, _, (surface, rows, segments)) in enumerate(patches):
        part = objects.solid_part[s]
        row, column = divmod(k, columns)

        def place(u: np.ndarray, v: np.ndarray, surface: Any = surface, s: int = s) -> Tensor:
            unit = surface(u, v, float(objects.solid_taper[s]))
            return torch.from_numpy(unit).float() * objects.solid_radius[s] + objects.solid_centre[s]

        tile = surface_color(objects.paint[part], place(*np.meshgrid(texel, texel)), part, decals)
        atlas[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell, :3] = tile
        u, v = np.meshgrid(np.linspace(0, 1, segments + 1), np.linspace(0, 1, rows + 1))
        points.append(place(u, v).reshape(-1, 3))
        parts.append(part.expand(u.size))
        uv = np.stack([u, v], -1).reshape(-1, 2) * _TILE + _MARGIN + np.array([column, row]) * cell
        uvs.append(torch.from_numpy(uv / [atlas.shape[1], atlas.shape[0]]).float())
        i = np.arange(rows)[:, None] * (segments + 1) + np.arange(segments)
        a, b, c, d = i, i + 1, i + segments + 1, i + segments + 2
        quads = np.concatenate([np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)])
        corners = points[-1].double().numpy()[quads]
        area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
        faces.append(torch.from_numpy(quads[area > 1e-12]) + count)
        count += u.size
    local, part, face = torch.cat(points), torch.cat(parts), torch.cat(faces)
    base = Mesh(local, face, uvs=torch.cat(uvs), textures=(atlas,), name="generated")
    result = []
    for tau in times:
        rotation, position = objects.pose(tau)
        moved = (rotation[part] @ local[..., None])[..., 0] + position[part]
        result.append(
            Mesh(
                moved, face, uvs=base.uvs, textures=base.textures, face_texture=base.face_texture, face_color=base.face_color,
                face_alpha_cutoff=base.face_alpha_cutoff, name="generated",
            )
        )  # fmt: skip
    return result


def _globe(u: np.ndarray, v: np.ndarray, taper: float) -> np.ndarray:
    a, b = 2 * math.pi * (u - 0.5), math.pi * v
    return np.stack([np.sin(b) * np.sin(a), np.cos(b), np.sin(b) * np.cos(a)], -1)


def _mantle(u: np.ndarray, v: np.ndarray, taper: float) -> np.ndarray:
    a, y = 2 * math.pi * (u - 0.5), 1 - 2 * v
    return np.stack([(1 + taper * y) * np.sin(a), y, (1 + taper * y) * np.cos(a)], -1)


def _cap(side: float) -> Callable[[np.ndarray, np.ndarray, float], np.ndarray]:
    def cap(u: np.ndarray, v: np.ndarray, taper: float) -> np.ndarray:
        a, r = side * 2 * math.pi * (u - 0.5), v * (1 + taper * side)
        return np.stack([r * np.sin(a), np.full_like(r, side), r * np.cos(a)], -1)

    return cap


def _wall(axis: int, side: float) -> Callable[[np.ndarray, np.ndarray, float], np.ndarray]:
    def wall(u: np.ndarray, v: np.ndarray, taper: float) -> np.ndarray:
        point = np.empty((*u.shape, 3))
        point[..., axis], point[..., (axis + 1) % 3], point[..., (axis + 2) % 3] = side, side * (2 * u - 1), 1 - 2 * v
        return point

    return wall


_PATCHES: dict[int, list[tuple[Any, int, int]]] = {
    ELLIPSOID: [(_globe, 14, 24)],
    FRUSTUM: [(_mantle, 4, 28), (_cap(1.0), 1, 28), (_cap(-1.0), 1, 28)],
    BOX: [(_wall(axis, side), 1, 1) for axis in range(3) for side in (1.0, -1.0)],
}


Vector = Sequence[float] | np.ndarray  # (3,)

# --- from a seed --------------------------------------------------------------------------------------------------------------


def generate(seed: int) -> Objects:
    """The object of a seed, without batch dimension: the same wherever NumPy draws the same numbers."""
    return _tensors({k: v[0] for k, v in _arrays([seed]).items()})


def generate_many(seeds: Sequence[int], workers: int = 1) -> Objects:
    """The objects of several seeds, one batch dimension, made by ``workers`` processes."""
    if workers == 1:
        return _tensors(_arrays(seeds))
    step = -(-len(seeds) // (4 * workers))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        made = list(pool.map(_arrays, [seeds[k : k + step] for k in range(0, len(seeds), step)]))
    return _tensors({k: np.concatenate([m[k] for m in made]) for k in made[0]})


def _tensors(arrays: dict[str, np.ndarray]) -> Objects:
    return Objects(**{k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()})


def _arrays(seeds: Sequence[int]) -> dict[str, np.ndarray]:
    made = [_object(seed) for seed in seeds]
    return {k: np.stack([m[k] for m in made]) for k in made[0]}


def _object(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, 20571])
    while True:
        maker = _Maker(rng)
        names = list(_PLANS)
        weights = np.array([_PLANS[n][1] for n in names], float)
        _PLANS[names[rng.choice(len(names), p=weights / weights.sum())]][0](maker)
        if maker.solids:
            return maker.arrays()


@dataclass
class _Joint:
    parent: int
    offset: np.ndarray
    turn: np.ndarray
    axis: np.ndarray
    swing: tuple[float, float]
    phase: tuple[float, float]
    spin: float
    slide: np.ndarray


class _Maker:
    """An object under construction: joints, solids, paints and decals as lists. Lengths are arbitrary until :meth:`arrays`."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.joints: list[_Joint] = []
        self.solids: list[tuple[int, int, np.ndarray, np.ndarray, float]] = []
        self.paints: dict[int, dict[str, Any]] = {}
        self.decals: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
        self.lively = float(rng.choice([0.5, 1.0, 1.5]))
        hue = rng.random()
        spread = rng.choice([0.08, 0.5, 1.0], p=[0.3, 0.3, 0.4])
        self.palette = [self._color((hue + spread * (rng.random() - 0.5)) % 1) for _ in range(rng.integers(2, 6))]

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def _color(self, hue: float) -> np.ndarray:
        style = self.rng.random()
        if style < 0.12:  # dark
            hsv = hue, self.uniform(0, 0.6), self.uniform(0.03, 0.3)
        elif style < 0.24:  # pale
            hsv = hue, self.uniform(0, 0.25), self.uniform(0.8, 1.0)
        elif style < 0.32:  # grey
            hsv = hue, self.uniform(0, 0.1), self.uniform(0.25, 0.8)
        else:
            hsv = hue, self.uniform(0.35, 1.0), self.uniform(0.4, 1.0)
        return np.array(colorsys.hsv_to_rgb(*hsv))

    def color(self) -> np.ndarray:
        if self.chance(0.12):
            return self._color(self.rng.random())
        return self.palette[self.rng.integers(len(self.palette))]

    def joint(
        self,
        parent: int = PARTS,
        at: Vector = (0, 0, 0),
        turn: np.ndarray | None = None,
        axis: Vector | None = None,
        swing: float = 0.0,  # degrees
        phase: float | None = None,
        spin: float = 0.0,
        slide: Vector = (0, 0, 0),
    ) -> int:
        direction = self.rng.normal(size=3) if axis is None else np.asarray(axis, float)
        phases = (self.uniform(0, 2 * math.pi) if phase is None else phase, self.uniform(0, 2 * math.pi))
        amount = math.radians(swing) * self.lively
        self.joints.append(
            _Joint(
                parent, np.asarray(at, float), np.eye(3) if turn is None else turn, direction / np.linalg.norm(direction),
                (amount, amount * self.uniform(0, 0.4)), phases, spin, np.asarray(slide, float) * self.lively,
            )
        )  # fmt: skip
        return len(self.joints) - 1

    def solid(self, part: int, kind: int, radius: Vector | float, at: Vector = (0, 0, 0), taper: float = 0.0) -> None:
        half = np.maximum(np.broadcast_to(np.asarray(radius, float), (3,)), 1e-3)
        if len(self.solids) < SOLIDS:
            self.solids.append((part, kind, np.asarray(at, float), half, taper))

    def limb(self, part: int, top: float, bottom: float, length: float, squareness: bool = False) -> None:
        """Hangs from the joint down its -y; a box, or a tapered cylinder that ends in a ball."""
        if squareness:
            self.solid(part, BOX, (top, length / 2, top), (0, -length / 2, 0))
            return
        middle = (top + bottom) / 2
        self.solid(part, FRUSTUM, (middle, length / 2, middle), (0, -length / 2, 0), (top - bottom) / (top + bottom))
        self.solid(part, ELLIPSOID, bottom, (0, -length, 0))

    def paint(self, *parts: int, plain: float = 0.4, shade: float | None = None, like: int | None = None) -> None:
        """The same random texture for all ``parts``, or that of part ``like``."""
        made = dict(self.paints[like]) if like is not None else self._texture(plain, shade)
        for part in parts:
            self.paints[part] = dict(made)

    def _texture(self, plain: float, shade: float | None) -> dict[str, Any]:
        rng = self.rng
        first, second = self.color(), self.color()
        if np.abs(first - second).max() < 0.15:
            second = self._color(rng.random())
        wave, phase, amount = np.zeros((3, 3)), rng.random(3), np.array([1.0, 0, 0])
        kind, sharp, level = LINEAR, 0.0, 0.0
        axes = np.eye(3)
        style = "plain" if self.chance(plain) else rng.choice(["stripes", "checks", "spots", "gradient", "two tone", "noise"])
        if style == "plain":
            second = first
        elif style == "stripes":
            direction = axes[rng.integers(3)] if self.chance(0.7) else rng.normal(size=3)
            wave[0] = direction / np.linalg.norm(direction) * self.uniform(0.7, 3.2)
            kind, sharp, level = WAVES, self.uniform(1, 8), self.uniform(-0.6, 0.6)
        elif style == "checks":
            wave = np.diag(rng.uniform(0.5, 2.0, 3))
            if self.chance(0.5):
                axis = rng.integers(3)
                wave[axis], phase[axis] = 0, 0.25
            kind, sharp = PRODUCT, 12.0
        elif style == "spots":
            wave = np.diag(np.full(3, self.uniform(0.8, 2.4))) @ _turn("y", self.uniform(0, 90))
            kind, sharp, level = SPOTS, 14.0, self.uniform(0.08, 0.28)
        elif style == "gradient":
            direction = axes[1] if self.chance(0.6) else rng.normal(size=3)
            wave[0], phase[0] = direction / np.linalg.norm(direction), 0
            kind, sharp = LINEAR, 0.5
        elif style == "two tone":
            direction = axes[rng.integers(3)] if self.chance(0.6) else rng.normal(size=3)
            wave[0] = direction / np.linalg.norm(direction) * rng.choice([-1, 1])
            phase[0], kind, sharp, level = 0, LINEAR, self.uniform(3, 20), self.uniform(-0.7, 0.7)
        else:
            wave = rng.normal(size=(3, 3)) * self.uniform(0.4, 1.1)
            amount = np.full(3, 1 / 3)
            kind, sharp, level = WAVES, rng.choice([1.0, 3.0, 10.0]), self.uniform(-0.25, 0.25)
        shade = (0.0 if self.chance(0.3) else self.uniform(0, 0.35)) if shade is None else shade
        return {
            "first": first, "second": second, "wave": wave.reshape(-1), "phase": phase, "amount": amount, "kind": kind,
            "sharp": sharp, "level": level, "shade": shade,
        }  # fmt: skip

    def decal(self, part: int, centre: Vector, radius: Vector | float, color: np.ndarray) -> None:
        if len(self.decals) < DECALS:
            half = np.broadcast_to(np.asarray(radius, float), (3,))
            self.decals.append((part, np.asarray(centre, float), half, np.asarray(color, float)))

    def arrays(self) -> dict[str, np.ndarray]:
        """Fixed-size arrays, scaled and moved so that the object at tau = 0 has longest side 1 around the origin."""
        f = np.float32
        out: dict[str, np.ndarray] = {
            "parent": np.full(PARTS, PARTS), "offset": np.zeros((PARTS, 3)), "turn": np.tile(np.eye(3), (PARTS, 1, 1)),
            "axis": np.tile([0.0, 1.0, 0.0], (PARTS, 1)), "swing": np.zeros((PARTS, 2)), "phase": np.zeros((PARTS, 2)),
            "spin": np.zeros(PARTS), "slide": np.zeros((PARTS, 3)), "solid_kind": np.full(SOLIDS, -1),
            "solid_part": np.zeros(SOLIDS, int), "solid_centre": np.zeros((SOLIDS, 3)), "solid_radius": np.ones((SOLIDS, 3)),
            "solid_taper": np.zeros(SOLIDS), "paint": np.zeros((PARTS, PAINT_COLUMNS)), "decal_part": np.full(DECALS, -1),
            "decal_centre": np.zeros((DECALS, 3)), "decal_radius": np.ones((DECALS, 3)), "decal_color": np.zeros((DECALS, 3)),
        }  # fmt: skip
        for p, joint in enumerate(self.joints):
            for name in ("parent", "offset", "turn", "axis", "swing", "phase", "spin", "slide"):
                out[name][p] = getattr(joint, name)
        for s, (part, kind, centre, radius, taper) in enumerate(self.solids):
            out["solid_part"][s], out["solid_kind"][s], out["solid_centre"][s] = part, kind, centre
            out["solid_radius"][s], out["solid_taper"][s] = radius, taper
        out["paint"][:, PAINT["reach"]] = 1
        for p in range(len(self.joints)):
            mine = [x for x in self.solids if x[0] == p]
            if not mine:
                continue
            for name, value in self.paints[p].items():
                out["paint"][p, PAINT[name]] = value
            low = np.min([x[2] - x[3] for x in mine], 0)
            high = np.max([x[2] + x[3] for x in mine], 0)
            out["paint"][p, PAINT["centre"]], out["paint"][p, PAINT["reach"]] = (low + high) / 2, (high - low) / 2
        for d, (part, centre, radius, color) in enumerate(self.decals):
            out["decal_part"][d], out["decal_centre"][d], out["decal_radius"][d], out["decal_color"][d] = (
                part,
                centre,
                radius,
                color,
            )
        low, high = _box(out)
        scale = 1 / float((high - low).max())
        for name in ("offset", "slide", "solid_centre", "solid_radius"):
            out[name] = out[name] * scale
        out["paint"][:, PAINT["centre"]] *= scale
        out["paint"][:, PAINT["reach"]] *= scale
        roots = out["parent"] == PARTS
        out["offset"][roots] -= (low + high) / 2 * scale
        return {k: v.astype(np.int64 if v.dtype.kind == "i" else f) for k, v in out.items()}


def _box(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Bounding box of the object at tau = 0, exact: the support of each solid along the world's axes."""
    frames: list[tuple[np.ndarray, np.ndarray]] = []
    for p in range(PARTS):
        angle = float(arrays["swing"][p] @ np.sin(arrays["phase"][p]))
        x, y, z = arrays["axis"][p]
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        rotation = arrays["turn"][p] @ (np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross)
        position = arrays["offset"][p] + arrays["slide"][p] * math.sin(arrays["phase"][p, 0])
        parent = int(arrays["parent"][p])
        if parent < PARTS:
            outer, origin = frames[parent]
            rotation, position = outer @ rotation, outer @ position + origin
        frames.append((rotation, position))
    lows, highs = [], []
    for s in np.flatnonzero(arrays["solid_kind"] >= 0):
        rotation, position = frames[arrays["solid_part"][s]]
        centre = rotation @ arrays["solid_centre"][s] + position
        spread = rotation * arrays["solid_radius"][s]
        if arrays["solid_kind"][s] == ELLIPSOID:
            reach = np.linalg.norm(spread, axis=1)
        elif arrays["solid_kind"][s] == BOX:
            reach = np.abs(spread).sum(1)
        else:
            taper, disc = arrays["solid_taper"][s], np.hypot(spread[:, 0], spread[:, 2])
            ends = [side * spread[:, 1] + disc * (1 + taper * side) for side in (1, -1)]
            other = [-side * spread[:, 1] + disc * (1 + taper * side) for side in (1, -1)]
            highs.append(centre + np.maximum(*ends))
            lows.append(centre - np.maximum(*other))
            continue
        lows.append(centre - reach)
        highs.append(centre + reach)
    return np.min(lows, 0), np.max(highs, 0)


def _turn(axis: str, degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return matrix


# --- body plans: lengths relative, feet down, face to +Z ----------------------------------------------------------------------


def _face(m: _Maker, head: int, forward: float = 1.0) -> None:
    """Eyes, mouth and cheeks on the front of a head, in its unit coordinates; ``forward`` is how far the front reaches."""
    x, y, r = m.uniform(0.25, 0.5), m.uniform(-0.1, 0.35), m.uniform(0.12, 0.26)
    depth = forward * math.sqrt(max(0.05, 1 - x * x - y * y))
    white = m.chance(0.6)
    dark, light = np.array([0.08, 0.07, 0.09]) + m.uniform(0, 0.1), np.array([0.97, 0.97, 0.95])
    iris = m.color() if m.chance(0.3) else dark
    if m.chance(0.35):  # muzzle
        m.decal(head, (0, y - 0.45, forward), (m.uniform(0.3, 0.5), m.uniform(0.25, 0.4), 0.7), m.color())
    if m.chance(0.3):
        m.decal(head, (0, y - m.uniform(0.5, 0.7), forward), (m.uniform(0.15, 0.35), m.uniform(0.05, 0.12), 0.7), dark)
    cheeks = m._color(m.uniform(0.95, 1.05) % 1) if m.chance(0.25) else None
    for s in (-1, 1):
        if white:
            m.decal(head, (s * x, y, depth), (r, r * 1.2, 0.5), light)
        m.decal(head, (s * x * 0.97, y, depth), (r * 0.65, r * 0.9, 0.5), iris)
        if cheeks is not None:
            m.decal(head, (s * (x + 0.15), y - 0.4, depth * 0.8), (0.14, 0.12, 0.5), cheeks)


def _ears(m: _Maker, head: int, middle: Vector, rx: float, ry: float) -> None:
    style = m.rng.choice(["none", "round", "cone", "long", "horn"], p=[0.15, 0.35, 0.2, 0.2, 0.1])
    if style == "none":
        return
    size, spread = rx * m.uniform(0.25, 0.5), m.uniform(15, 50)
    first = None
    for s in (-1, 1):
        lean = _turn("z", -s * spread)
        at = np.asarray(middle) + lean @ np.array([0, ry * 0.95, 0])
        ear = m.joint(head, at, lean, (0, 0, 1), 14, phase=s * 1.5)
        if style == "round":
            m.solid(ear, ELLIPSOID, (size, size, size * 0.5), (0, size * 0.5, 0))
        elif style == "cone":
            m.solid(ear, FRUSTUM, (size * 0.6, size, size * 0.5), (0, size * 0.7, 0), -0.9)
        elif style == "long":
            m.solid(ear, ELLIPSOID, (size * 0.5, size * 1.8, size * 0.35), (0, size * 1.3, 0))
        else:
            m.solid(ear, FRUSTUM, (size * 0.22, size * 1.1, size * 0.22), (0, size * 0.9, 0), -0.8)
        m.paint(ear, plain=0.6, like=first)
        if first is None and style != "horn" and m.chance(0.5):
            m.decal(ear, (0, 0, 1), (0.5, 0.55, 0.8), m.color())
        first = ear


def _biped(m: _Maker) -> None:
    square = m.chance(0.2)
    wide, tall, deep = m.uniform(0.09, 0.2), m.uniform(0.12, 0.22), m.uniform(0.08, 0.16)
    leg = m.uniform(0.08, 0.3)
    root = m.joint(at=(0, leg + tall, 0), axis=(0, 1, 0), swing=8, slide=(0, m.uniform(0, 0.025), 0))
    if square:
        m.solid(root, BOX, (wide, tall, deep))
    elif m.chance(0.5):
        m.solid(root, ELLIPSOID, (wide, tall, deep))
    else:
        m.solid(root, FRUSTUM, (wide, tall, deep), taper=m.uniform(-0.35, 0.1))
    m.paint(root, plain=0.3)
    if m.chance(0.35):
        m.decal(root, (0, m.uniform(-0.4, 0.2), 1), (m.uniform(0.35, 0.7), m.uniform(0.35, 0.8), 0.9), m.color())
    if m.chance(0.15):
        pack = m.joint(root, (0, 0.01, -deep), axis=(1, 0, 0), swing=3)
        m.solid(pack, BOX if m.chance(0.6) else ELLIPSOID, (wide * 0.7, tall * 0.7, deep * m.uniform(0.3, 0.7)))
        m.paint(pack, plain=0.3)
    rx = m.uniform(0.09, 0.23)
    ry, rz = rx * m.uniform(0.75, 1.1), rx * m.uniform(0.75, 1.05)
    neck = m.uniform(0, 0.05)
    head = m.joint(root, (0, tall * 0.92 + neck, 0), axis=m.rng.normal(size=3) * [1, 1.5, 1], swing=12)
    m.solid(head, BOX if square and m.chance(0.7) else ELLIPSOID, (rx, ry, rz), (0, ry * 0.85, 0))
    m.paint(head, plain=0.5)
    _face(m, head)
    nose = m.joint(head, (0, ry * 0.7, rz * 0.95), swing=0)
    if m.chance(0.6):
        size = rx * m.uniform(0.1, 0.35)
        m.solid(nose, ELLIPSOID, (size, size * 0.8, size * m.uniform(0.6, 1.4)))
    m.paint(nose, plain=0.8)
    hat = m.chance(0.15)
    if hat:
        top = m.joint(head, (0, ry * 1.75, 0), _turn("x", m.uniform(-12, 12)), swing=0)
        m.solid(top, FRUSTUM, (rx * 0.6, ry * m.uniform(0.3, 0.7), rx * 0.6), (0, ry * 0.3, 0), -m.uniform(0, 0.95))
        m.paint(top, plain=0.3)
    else:
        _ears(m, head, (0, ry * 0.85, 0), rx, ry)
    arm, thick = m.uniform(0.1, 0.3), m.uniform(0.02, 0.055)
    bent, raised = m.chance(0.75), m.chance(0.35)
    walking = m.uniform(0, 2 * math.pi)
    first = second = None
    for s in (-1, 1):
        out = m.uniform(95, 150) if raised and s == (1 if m.chance(0.5) else -1) else m.uniform(5, 60)
        shoulder = m.joint(
            root, (s * wide * 0.92, tall * 0.75, 0), _turn("z", s * out) @ _turn("x", m.uniform(-40, 20)),
            (1, 0, 0) if out < 80 else (0, 0, 1), 28, walking + (math.pi if s > 0 else 0),
        )  # fmt: skip
        m.limb(shoulder, thick, thick * 0.85, arm / 2 if bent else arm, square)
        m.paint(shoulder, plain=0.45, like=first)
        first = shoulder
        if bent:
            elbow = m.joint(shoulder, (0, -arm / 2, 0), _turn("x", -m.uniform(0, 70)), (1, 0, 0), 18)
            m.limb(elbow, thick * 0.85, thick * m.uniform(0.7, 1.4), arm / 2, square)
            m.paint(elbow, plain=0.5, like=second)
            second = elbow
    foot, knee = m.chance(0.6), leg > 0.16
    thick = min(m.uniform(0.03, 0.075), wide * 0.6)
    first = second = None
    for s in (-1, 1):
        phase = walking + (0 if s > 0 else math.pi)
        hip = m.joint(root, (s * wide * 0.5, -tall * 0.8, 0), _turn("z", s * m.uniform(0, 8)), (1, 0, 0), 26, phase)
        length = leg + tall * 0.1
        lower = length * 0.55 if knee else 0.0
        m.limb(hip, thick, thick * 0.85, length - lower, square)
        m.paint(hip, plain=0.45, like=first)
        first = end = hip
        if knee:
            end = m.joint(hip, (0, lower - length, 0), _turn("x", m.uniform(0, 30)), (1, 0, 0), 14, phase + 1)
            m.limb(end, thick * 0.85, thick * 0.75, lower, square)
            m.paint(end, plain=0.5, like=second)
            second = end
        if foot:
            m.solid(end, ELLIPSOID, (thick * 1.1, thick * 0.7, thick * 1.7), (0, -(lower or length), thick * 0.6))
    if m.chance(0.4):
        _tail(m, root, (0, -tall * 0.6, -deep * 0.85))


def _tail(m: _Maker, root: int, at: Vector) -> None:
    tail = m.joint(root, at, _turn("x", m.uniform(40, 150)), (0, 0, 1), 22)
    thick = m.uniform(0.012, 0.04)
    m.limb(tail, thick, thick * m.uniform(0.5, 1.6), m.uniform(0.06, 0.28))
    m.paint(tail, plain=0.4)


def _quadruped(m: _Maker) -> None:
    wide, tall, long = m.uniform(0.08, 0.18), m.uniform(0.08, 0.18), m.uniform(0.16, 0.34)
    leg, thick = m.uniform(0.08, 0.34), m.uniform(0.025, 0.06)
    square = m.chance(0.15)
    root = m.joint(at=(0, leg + tall, 0), axis=(1, 0, 0), swing=4, slide=(0, m.uniform(0, 0.02), 0))
    m.solid(root, BOX if square else ELLIPSOID, (wide, tall, long))
    m.paint(root, plain=0.25)
    high, forward = m.uniform(0, 0.25), m.uniform(0.6, 1.0)
    rx = m.uniform(0.07, 0.16)
    ry, rz = rx * m.uniform(0.75, 1.05), rx * m.uniform(0.8, 1.2)
    if high > 0.1:
        neck = m.joint(root, (0, tall * 0.4, long * 0.75), _turn("x", m.uniform(10, 50)), (1, 0, 0), 10)
        m.solid(neck, FRUSTUM, (rx * 0.5, high / 2 + 0.04, rx * 0.5), (0, high / 2, 0), -m.uniform(0, 0.3))
        m.paint(neck, plain=0.4, like=root if m.chance(0.6) else None)
        head = m.joint(neck, (0, high, 0), _turn("x", -m.uniform(0, 50)), swing=12)
    else:
        head = m.joint(root, (0, tall * m.uniform(0.3, 1.0), long * forward), swing=12)
    m.solid(head, BOX if square else ELLIPSOID, (rx, ry, rz), (0, ry * 0.4, rz * 0.5))
    m.paint(head, plain=0.5, like=root if m.chance(0.3) else None)
    _face(m, head)
    if m.chance(0.6):
        snout = m.joint(head, (0, ry * 0.1, rz * 1.35), axis=(1, 0, 0), swing=3)
        m.solid(snout, ELLIPSOID, (rx * 0.5, ry * 0.4, rz * m.uniform(0.4, 0.9)))
        m.paint(snout, plain=0.6)
        m.decal(snout, (0, 0.4, 1), (0.6, 0.6, 0.7), m.color())
    _ears(m, head, (0, ry * 0.4, rz * 0.4), rx, ry)
    walking, first = m.uniform(0, 2 * math.pi), None
    for k, (s, z) in enumerate(((-1, 1), (1, 1), (1, -1), (-1, -1))):
        at = (s * (wide - thick) * 0.9, -tall * 0.5, z * (long - thick) * 0.7)
        hip = m.joint(root, at, None, (1, 0, 0), 24, walking + math.pi * (k % 2))
        m.limb(hip, thick, thick * m.uniform(0.7, 1.1), leg + tall * 0.5 - thick * 0.8, square)
        m.paint(hip, plain=0.45, like=first)
        first = hip
    if m.chance(0.8):
        _tail(m, root, (0, tall * 0.3, -long * 0.9))


def _bird(m: _Maker) -> None:
    wide, tall, long = m.uniform(0.1, 0.2), m.uniform(0.1, 0.2), m.uniform(0.12, 0.26)
    root = m.joint(turn=_turn("x", m.uniform(-50, 10)), axis=(1, 0, 0), swing=6, slide=(0, m.uniform(0, 0.05), 0))
    m.solid(root, ELLIPSOID, (wide, tall, long))
    m.paint(root, plain=0.25)
    r = m.uniform(0.07, 0.15)
    head = m.joint(root, (0, tall * 0.7, long * 0.7), _turn("x", m.uniform(0, 40)), swing=12)
    m.solid(head, ELLIPSOID, r, (0, r * 0.5, 0))
    m.paint(head, plain=0.5)
    _face(m, head)
    beak = m.joint(head, (0, r * 0.4, r * 0.8), _turn("x", 90 + m.uniform(-10, 25)), (1, 0, 0), 5)
    length = m.uniform(0.03, 0.1)
    m.solid(beak, FRUSTUM, (r * 0.3, length, r * 0.25), (0, length, 0), -0.95)
    m.paint(beak, plain=0.9)
    span, first = m.uniform(0.1, 0.35), None
    spread = m.uniform(-30, 80)
    kind = ELLIPSOID if m.chance(0.7) else BOX
    for s in (-1, 1):
        wing = m.joint(root, (s * wide * 0.85, tall * 0.2, 0), _turn("z", s * (spread - 45)), (0, 0, s), 30, phase=1.0)
        m.solid(wing, kind, (span / 2, m.uniform(0.012, 0.03), span * 0.3 + 0.03), (s * span / 2, 0, 0))
        m.paint(wing, plain=0.3, like=first)
        first = wing
    tail = m.joint(root, (0, 0, -long * 0.9), _turn("x", m.uniform(-20, 30)), (1, 0, 0), 12)
    size = m.uniform(0.05, 0.15)
    m.solid(tail, BOX if m.chance(0.5) else ELLIPSOID, (size * 0.6, 0.015, size), (0, 0, -size * 0.8))
    m.paint(tail, plain=0.4)
    first = None
    if m.chance(0.6):
        for s in (-1, 1):
            leg = m.joint(root, (s * wide * 0.4, -tall * 0.8, 0), None, (1, 0, 0), 20, phase=s * 1.5)
            m.limb(leg, 0.015, 0.02, m.uniform(0.06, 0.16))
            m.paint(leg, plain=0.8, like=first)
            first = leg


def _fish(m: _Maker) -> None:
    wide, tall, long = m.uniform(0.05, 0.16), m.uniform(0.08, 0.22), m.uniform(0.18, 0.32)
    root = m.joint(axis=(0, 1, 0), swing=8, slide=(m.uniform(0, 0.03), 0, 0))
    m.solid(root, ELLIPSOID, (wide, tall, long))
    m.paint(root, plain=0.15)
    eye, light, dark = m.uniform(0.1, 0.2), np.array([0.95, 0.95, 0.92]), np.array([0.06, 0.06, 0.08])
    for s in (-1, 1):
        m.decal(root, (s * 0.65, 0.2, 0.7), (0.4, eye * 1.4, eye), light)
        m.decal(root, (s * 0.65, 0.2, 0.72), (0.4, eye * 0.8, eye * 0.6), dark)
    tail = m.joint(root, (0, 0, -long * 0.9), None, (0, 1, 0), 26)
    size = m.uniform(0.06, 0.18)
    m.solid(tail, FRUSTUM, (0.02, size, size), (0, 0, -size * 0.6), m.uniform(-0.5, 0.5))
    m.paint(tail, plain=0.3)
    fin = m.joint(root, (0, tall * 0.85, -long * m.uniform(-0.3, 0.4)), None, (0, 0, 1), 10)
    m.solid(fin, BOX if m.chance(0.5) else ELLIPSOID, (0.012, m.uniform(0.03, 0.1), long * 0.35))
    m.paint(fin, plain=0.4)
    first = None
    for s in (-1, 1):
        side = m.joint(root, (s * wide * 0.9, -tall * 0.2, long * 0.3), _turn("z", s * -35), (0, 1, 0), 25, phase=0.5 * s)
        m.solid(side, ELLIPSOID, (0.07, 0.014, 0.05), (s * 0.05, 0, -0.02))
        m.paint(side, plain=0.5, like=first)
        first = side


def _vehicle(m: _Maker) -> None:
    wide, tall, long = m.uniform(0.12, 0.24), m.uniform(0.05, 0.14), m.uniform(0.25, 0.45)
    wheel, rounded = m.uniform(0.05, 0.12), m.chance(0.25)
    root = m.joint(at=(0, wheel + tall * 0.7, 0), axis=(1, 0, 0), swing=2, slide=(0, m.uniform(0, 0.02), 0))
    m.solid(root, ELLIPSOID if rounded else BOX, (wide, tall * (1.4 if rounded else 1), long))
    m.paint(root, plain=0.4)
    for s in (-1, 1):
        m.decal(root, (s * 0.65, 0.1, 1), (0.2, 0.35, 0.4), np.array([1.0, 0.95, m.uniform(0.5, 0.9)]))
        m.decal(root, (s * 0.7, 0.1, -1), (0.18, 0.3, 0.4), np.array([m.uniform(0.6, 0.95), 0.1, 0.08]))
    cabin = m.joint(root, (0, tall * 0.9, long * m.uniform(-0.4, 0.5)), swing=0)
    high, deep = m.uniform(0.06, 0.16), long * m.uniform(0.25, 0.6)
    if m.chance(0.6):
        m.solid(cabin, BOX, (wide * 0.88, high, deep), (0, high * 0.8, 0))
    else:
        m.solid(cabin, ELLIPSOID if m.chance(0.5) else FRUSTUM, (wide * 0.8, high, deep), (0, high * 0.6, 0), -0.2)
    m.paint(cabin, plain=0.5)
    glass = np.array([0.15, 0.2, 0.28]) if m.chance(0.5) else np.array([0.65, 0.82, 0.92])
    m.decal(cabin, (0, 0.2, 1), (0.8, 0.55, 0.3), glass)
    for s in (-1, 1):
        m.decal(cabin, (s, 0.2, 0), (0.3, 0.55, 0.7), glass)
    if m.chance(0.4):
        load = m.joint(root, (0, tall, -long * 0.55), None, (1, 0, 0), 6)
        size = m.uniform(0.05, 0.14)
        m.solid(load, int(m.rng.integers(3)), (wide * 0.8, size, long * 0.35), (0, size * 0.9, 0))
        m.paint(load, plain=0.3)
    first = None
    turns = float(m.rng.choice([-1, 1, 2]))
    for s, z in ((-1, 1), (1, 1), (1, -1), (-1, -1)):
        at = (s * wide * 0.95, -tall * 0.7, z * long * m.uniform(0.55, 0.7))
        hub = m.joint(root, at, None, (1, 0, 0), spin=turns)
        disc = m.joint(hub, turn=_turn("z", 90), swing=0)
        m.solid(disc, FRUSTUM, (wheel, m.uniform(0.02, 0.05), wheel))
        m.paint(disc, plain=0.4, like=first)
        if first is None:
            m.paints[disc]["first"] = np.full(3, m.uniform(0.05, 0.3))
        first = disc


def _plane(m: _Maker) -> None:
    r, long = m.uniform(0.05, 0.12), m.uniform(0.25, 0.45)
    root = m.joint(axis=(0, 0, 1), swing=12, slide=(0, m.uniform(0, 0.04), 0))
    m.solid(root, ELLIPSOID, (r, r * m.uniform(0.9, 1.3), long))
    m.paint(root, plain=0.3)
    m.decal(root, (0, 0.75, 0.6), (0.6, 0.5, 0.2), np.array([0.2, 0.3, 0.42]))
    span, chord = m.uniform(0.3, 0.6), m.uniform(0.05, 0.12)
    wing = m.joint(root, (0, m.uniform(-0.5, 0.8) * r, m.uniform(-0.1, 0.3) * long), swing=0)
    m.solid(wing, BOX if m.chance(0.6) else ELLIPSOID, (span, 0.014, chord))
    m.paint(wing, plain=0.35)
    fin = m.joint(root, (0, r * 0.6, -long * 0.85), swing=0)
    m.solid(fin, BOX, (0.012, m.uniform(0.06, 0.14), 0.05), (0, 0.06, 0))
    m.paint(fin, plain=0.5)
    rear = m.joint(root, (0, r * 0.3, -long * 0.85), None, (1, 0, 0), 8)
    m.solid(rear, BOX, (span * 0.35, 0.012, 0.045))
    m.paint(rear, plain=0.5, like=wing if m.chance(0.5) else None)
    screw = m.joint(root, (0, 0, long), None, (0, 0, 1), spin=1.0)
    m.solid(screw, BOX, (m.uniform(0.08, 0.16), 0.012, 0.01))
    m.solid(screw, ELLIPSOID, 0.025)
    m.paint(screw, plain=0.6)


def _furniture(m: _Maker) -> None:
    wide, deep, leg, thick = m.uniform(0.2, 0.4), m.uniform(0.15, 0.35), m.uniform(0.15, 0.5), m.uniform(0.015, 0.04)
    root = m.joint(at=(0, leg, 0), axis=(0, 1, 0), swing=5)
    round_top = m.chance(0.3)
    m.solid(root, FRUSTUM if round_top else BOX, (wide, m.uniform(0.015, 0.06), wide if round_top else deep))
    m.paint(root, plain=0.3)
    first, r = None, 0.65 if round_top else 0.88
    for sx in (-1, 1):
        for sz in (-1, 1):
            foot = m.joint(root, (sx * wide * r, 0, sz * (wide if round_top else deep) * r), swing=3)
            if m.chance(0.5):
                m.solid(foot, BOX, (thick, leg / 2, thick), (0, -leg / 2, 0))
            else:
                m.solid(foot, FRUSTUM, (thick, leg / 2, thick), (0, -leg / 2, 0), m.uniform(0, 0.5))
            m.paint(foot, plain=0.6, like=first)
            first = foot
    if m.chance(0.5):  # a chair's back
        back = m.joint(root, (0, 0.02, -deep * 0.92), None, (1, 0, 0), 7)
        high = m.uniform(0.12, 0.35)
        m.solid(back, BOX if m.chance(0.7) else ELLIPSOID, (wide * 0.95, high, 0.025), (0, high, 0))
        m.paint(back, plain=0.3)
    for _ in range(int(m.rng.integers(0, 4))):
        thing = m.joint(root, (m.uniform(-0.6, 0.6) * wide, 0.03, m.uniform(-0.6, 0.6) * deep), swing=10, slide=(0, 0.03, 0))
        size = m.rng.uniform(0.03, 0.12, 3)
        m.solid(thing, int(m.rng.integers(3)), size, (0, size[1], 0), m.uniform(-0.4, 0.4))
        m.paint(thing, plain=0.3)


def _pot(m: _Maker) -> None:
    root = m.joint(axis=(0, 0, 1), swing=6)
    height, radius = 0.0, m.uniform(0.1, 0.3)
    for k in range(int(m.rng.integers(1, 5))):
        part = root if k == 0 else m.joint(root, (0, height, 0), axis=(0, 1, 0), swing=6)
        half = m.uniform(0.04, 0.2)
        other = float(np.clip(radius * m.uniform(0.5, 1.7), 0.04, 0.35))
        if m.chance(0.3):
            m.solid(part, ELLIPSOID, (max(radius, other), half * 1.15, max(radius, other)), (0, half, 0))
        else:
            middle = (radius + other) / 2
            m.solid(part, FRUSTUM, (middle, half, middle), (0, half, 0), (other - radius) / (radius + other))
        m.paint(part, plain=0.25)
        height, radius = height + 2 * half, other
    wide = max(float(s[3][0]) for s in m.solids)
    if m.chance(0.5):
        handle = m.joint(root, (0, height * 0.5, 0), axis=(1, 0, 0), swing=4)
        m.solid(handle, ELLIPSOID, (wide * 0.45, 0.03, 0.03), (wide * 1.1, height * 0.15, 0))
        m.solid(handle, ELLIPSOID, (0.03, height * 0.2, 0.03), (wide * 1.4, 0, 0))
        m.paint(handle, plain=0.7)
    if m.chance(0.4):
        spout = m.joint(root, (-wide * 0.7, height * 0.4, 0), _turn("z", m.uniform(30, 70)), swing=0)
        m.solid(spout, FRUSTUM, (0.04, 0.12, 0.04), (0, 0.1, 0), -0.4)
        m.paint(spout, plain=0.6)
    if m.chance(0.5):
        lid = m.joint(root, (0, height, 0), slide=(0, 0.03, 0), axis=(0, 0, 1), swing=5)
        m.solid(lid, int(m.rng.choice([ELLIPSOID, FRUSTUM])), (radius * 1.05, 0.04, radius * 1.05), taper=-0.4)
        m.solid(lid, ELLIPSOID, m.uniform(0.02, 0.06), (0, 0.06, 0))
        m.paint(lid, plain=0.5)


def _plant(m: _Maker) -> None:
    root = m.joint(axis=(0, 1, 0), swing=4)
    r, high = m.uniform(0.03, 0.09), m.uniform(0.1, 0.25)
    m.solid(root, FRUSTUM, (r, high, r), (0, high, 0), -m.uniform(0, 0.5))
    m.paint(root, plain=0.4)
    top, first = root, None
    sway = m.uniform(2, 9)
    for _ in range(int(m.rng.integers(1, 7))):
        spread = m.uniform(0.05, 0.25)
        angle = m.uniform(0, 360)
        at = (spread * math.sin(angle), 2 * high + m.uniform(-0.08, 0.25), spread * math.cos(angle))
        leaf = m.joint(top, at, None, (1, 0, 0), sway)
        size = m.rng.uniform(0.07, 0.2, 3)
        if m.chance(0.75):
            m.solid(leaf, ELLIPSOID, size)
        else:
            m.solid(leaf, FRUSTUM, (size[0], size[1], size[0]), taper=-0.95)
        m.paint(leaf, plain=0.3, like=first if m.chance(0.4) else None)
        first = leaf
    if m.chance(0.3):
        base = m.joint(swing=0)
        m.solid(base, FRUSTUM if m.chance(0.6) else BOX, (m.uniform(0.08, 0.2), 0.07, m.uniform(0.08, 0.2)))
        m.paint(base, plain=0.3)


def _heap(m: _Maker) -> None:
    count = int(m.rng.integers(2, 12))
    spread = m.uniform(0.6, 1.1)
    for k in range(count):
        size = m.rng.uniform(0.05, 0.24, 3) * (1.3 if k == 0 else 1)
        if m.chance(0.2):
            size[:] = size[0]
        if k == 0:
            part = m.joint(turn=_random_turn(m) if m.chance(0.5) else None, swing=8)
        else:
            host = int(m.rng.integers(len(m.joints)))
            reach = next(s[3] for s in m.solids if s[0] == host)
            direction = m.rng.normal(size=3)
            at = direction / np.linalg.norm(direction) * reach * spread
            part = m.joint(host, at, _random_turn(m) if m.chance(0.6) else None, swing=18, slide=m.rng.normal(size=3) * 0.01)
            size *= 0.9
        m.solid(part, int(m.rng.integers(3)), size, taper=m.uniform(-0.8, 0.8))
        m.paint(part, plain=0.3)
        if m.chance(0.3):
            direction = m.rng.normal(size=3)
            m.decal(part, direction / np.linalg.norm(direction), m.uniform(0.3, 0.7), m.color())


def _single(m: _Maker) -> None:
    part = m.joint(turn=_random_turn(m) if m.chance(0.5) else None, axis=(0, 1, 0), swing=25)
    size = m.rng.uniform(0.15, 0.5, 3)
    if m.chance(0.3):
        size[:] = size[0]
    m.solid(part, int(m.rng.integers(3)), size, taper=m.uniform(-0.9, 0.9))
    m.paint(part, plain=0.1)
    for _ in range(int(m.rng.integers(0, 7))):
        direction = m.rng.normal(size=3)
        m.decal(part, direction / np.linalg.norm(direction), m.rng.uniform(0.15, 0.6, 3), m.color())


def _random_turn(m: _Maker) -> np.ndarray:
    q, r = np.linalg.qr(m.rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


_PLANS: dict[str, tuple[Callable[[_Maker], None], float]] = {
    "biped": (_biped, 0.34), "quadruped": (_quadruped, 0.16), "bird": (_bird, 0.06), "fish": (_fish, 0.04),
    "vehicle": (_vehicle, 0.08), "plane": (_plane, 0.04), "furniture": (_furniture, 0.06), "pot": (_pot, 0.06),
    "plant": (_plant, 0.04), "heap": (_heap, 0.08), "single": (_single, 0.04),
}  # fmt: skip
