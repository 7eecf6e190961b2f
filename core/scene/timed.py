"""Any scene as Gaussians with a time of their own: its motion cut into pieces, each a Gaussian that lives as long as it lasts.

What moves evenly stays one Gaussian; what turns a corner becomes several, one after the other; what cannot be seen for a while
is left out meanwhile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..deformation.timed import TimedGaussians
from ..files import InputError
from ..gaussians import Gaussians
from .scene import Scene4D, frame_times

#: Opacities below are not drawn: a step of eight bits.
FAINTEST = 1 / 255
#: How far windows reach beyond the clip's ends, so that these are in them.
_BEYOND = 1e-3
#: Standard deviation of a gaussian life, as part of the distance to the next: the sum of all is then steady to 0.2 %.
_SIGMA = 0.6


@dataclass(frozen=True)
class Tolerance:
    """Up to where one piece serves: largest errors at the clip's frames.

    Args:
        position: part of the object's longest side.
        rotation: degrees.
        log_scale, opacity, color: natural logarithm, [0, 1], [0, 1].
    """

    position: float = 1e-3
    rotation: float = 2.0
    log_scale: float = 0.05
    opacity: float = 0.02
    color: float = 0.02


@dataclass(frozen=True)
class Baked:
    """What :func:`bake_timed` made.

    Args:
        scene: the clip as before, of timed Gaussians.
        source: which of the given scene's Gaussians each one is a piece of, (P,) int64.
        errors: the largest ones, measured at the frames and half-way between them on Gaussians that are seen there: of
            "position" in world units, "rotation" in degrees, "log_scale", "opacity".
    """

    scene: Scene4D
    source: Tensor
    errors: dict[str, float]


@torch.no_grad()
def bake_timed(
    scene: Scene4D,
    *,
    tolerance: Tolerance | None = None,
    order: int = 1,
    turning: bool = True,
    life: str = "window",
) -> Baked:
    """A scene whose field is a :class:`TimedGaussians`. What is smaller than the tolerance between frames is averaged.

    Windows show one piece of a Gaussian at a time, so that the errors are those of its path alone, and pieces are as long as
    the tolerance allows. Gaussian lives, which FreeTimeGS and TSOG files hold, fade into each other: pieces are of one length
    for each Gaussian, their opacities such that the mean of what they cover together is what one covered.

    Args:
        order: of each piece's polynomial in time.
        turning: whether rotations change within a piece.
        life: "window" or "gaussian".

    Raises:
        InputError: for a gaussian life where each frame has Gaussians of its own, which no fade leads to one another.
    """
    tolerance, continuous = tolerance or Tolerance(), scene.field is None or scene.field.continuous
    if life == "gaussian" and not continuous:
        raise InputError("scene: each frame has Gaussians of its own, which do not fade into each other; choose windows")
    path = _Path.of(scene, continuous, order, turning, tolerance)
    everything = torch.arange(len(scene.gaussians), device=scene.gaussians.device)
    pieces: list[_Piece] = []
    if life == "window":
        _windows(path, 0, len(path.edges) - 1, everything, pieces)
    else:
        _fades(path, everything, pieces)
    if not pieces:
        raise InputError("scene: no Gaussian is ever seen, nothing to bake")
    gaussians = Gaussians.cat([piece.gaussians for piece in pieces])
    motion, centre, precision, turn = (
        torch.cat([getattr(piece, name) for piece in pieces]) for name in ("motion", "centre", "precision", "turn")
    )
    field = TimedGaussians.of(motion, centre, precision, turn if turning else None, life).to(gaussians.device)
    baked = replace(scene, gaussians=gaussians, field=field, surface=None)
    source = torch.cat([piece.source for piece in pieces])
    return Baked(baked, source, _errors(scene, baked, source))


@dataclass(frozen=True)
class _Piece:
    """Gaussians that live around moments of their own; ``turn`` is 0 where rotations do not change."""

    source: Tensor  # (P,)
    gaussians: Gaussians
    motion: Tensor  # (P, order, 3)
    turn: Tensor  # (P, 4)
    centre: Tensor  # (P,)
    precision: Tensor  # (P,)


@dataclass(frozen=True)
class _Path:
    """A clip's Gaussians at M + 1 borders of M intervals, or, where they are held, in each of the M intervals."""

    frames: Gaussians  # (S, N, ...), rotations unit and without jumps of sign
    times: Tensor  # (S,)
    edges: list[float]  # (M + 1)
    held: bool
    order: int
    turning: bool
    tolerance: Tolerance
    size: float

    @staticmethod
    def of(scene: Scene4D, continuous: bool, order: int, turning: bool, tolerance: Tolerance) -> _Path:
        times = frame_times(scene.frames, scene.loop).to(scene.gaussians.device)
        if continuous and (scene.loop or scene.frames == 1):
            times = torch.cat([times, torch.ones_like(times[:1])])
        sets = [scene.at(t) for t in times]
        if continuous and scene.loop:
            sets[-1] = sets[0]
        frames = Gaussians(**{k: torch.stack([s.tensors()[k] for s in sets]) for k in sets[0].tensors()})
        quats = F.normalize(frames.quats, dim=-1)
        flips = torch.where((quats[1:] * quats[:-1]).sum(-1, keepdim=True) < 0, -1.0, 1.0).cumprod(0)
        frames = replace(frames, quats=torch.cat([quats[:1], quats[1:] * flips]))
        edges = times.tolist()
        if not continuous:
            edges.append(max(edges[-1] + (edges[1] if len(edges) > 1 else 1.0), 1.0))
        edges[0], edges[-1] = -_BEYOND, max(edges[-1], 1.0) + _BEYOND
        size = float((frames.means.amax((0, 1)) - frames.means.amin((0, 1))).max())
        return _Path(frames, times, edges, not continuous, order, turning, tolerance, size)

    def fitted(self, first: int, last: int, index: Tensor, centre: float) -> tuple[_Piece, Tensor, Tensor]:
        """One piece of the Gaussians ``index`` from border ``first`` to ``last``: whether it serves, and whether it is seen."""
        end = last if self.held else last + 1
        part = self.frames.map(lambda t: t[first:end, index])
        d = self.times[first:end] - centre
        count = len(d)
        powers = torch.stack([d**k for k in range(min(self.order, count - 1) + 1)], 1).double()  # (S, K)
        solve = torch.linalg.pinv(powers).to(part.means)  # (K, S)
        powers = powers.to(part.means)
        paths = torch.einsum("ks,snc->nkc", solve, part.means)
        motion = paths.new_zeros(len(index), self.order, 3)
        motion[:, : paths.shape[1] - 1] = paths[:, 1:]
        turns = min(count - 1, 1) if self.turning else 0
        straight = torch.linalg.pinv(powers[:, : turns + 1].double()).to(part.means)
        quats = torch.einsum("ks,snc->nkc", straight, part.quats)
        length = quats[:, :1].norm(dim=-1, keepdim=True).clamp_min(1e-9)
        quats = quats / length
        turn = quats[:, 1] if turns else torch.zeros_like(quats[:, 0])
        opacity = part.opacities.mean(0)
        gaussians = Gaussians(
            paths[:, 0], quats[:, 0], part.log_scales.mean(0), opacity.clamp(1e-6, 1 - 1e-6).logit(), part.sh.mean(0)
        )
        moved = torch.einsum("sk,nkc->snc", powers, paths)
        turned = F.normalize(quats[:, 0] + d[:, None, None] * turn, dim=-1)
        within = self.tolerance
        serves = (moved - part.means).norm(dim=-1).amax(0) <= within.position * self.size
        serves &= _angle(turned, part.quats).amax(0) <= within.rotation
        serves &= (gaussians.log_scales - part.log_scales).abs().amax((0, 2)) <= within.log_scale
        serves &= (opacity - part.opacities).abs().amax(0) <= within.opacity
        serves &= (gaussians.colors - part.colors).abs().amax((0, 2)) <= within.color
        seen = part.opacities.amax(0) >= FAINTEST
        row = torch.ones_like(opacity)
        return _Piece(index, gaussians, motion, turn, centre * row, 0 * row), serves, seen


def _kept(piece: _Piece, rows: Tensor, precision: float) -> _Piece:
    chosen = {k: getattr(piece, k)[rows] for k in ("source", "motion", "turn", "centre")}
    gaussians = piece.gaussians.select(rows)
    return _Piece(gaussians=gaussians, precision=torch.full_like(gaussians.opacity_logits, precision), **chosen)


def _windows(path: _Path, first: int, last: int, index: Tensor, pieces: list[_Piece]) -> None:
    """Pieces of the Gaussians ``index`` from border ``first`` to ``last``, halved until they serve."""
    if not len(index):
        return
    low, high = path.edges[first], path.edges[last]
    piece, serves, seen = path.fitted(first, last, index, (low + high) / 2)
    serves |= last - first == 1
    whole = first == 0 and last == len(path.edges) - 1
    if bool((done := serves & seen).any()):
        pieces.append(_kept(piece, done, 0.0 if whole else 4 / (high - low) ** 2))
    middle = (first + last) // 2
    _windows(path, first, middle, index[~serves & seen], pieces)
    _windows(path, middle, last, index[~serves & seen], pieces)


def _fades(path: _Path, index: Tensor, pieces: list[_Piece]) -> None:
    """Pieces of one length for each Gaussian, halved until all of its own serve, that fade into each other."""
    intervals = len(path.edges) - 1
    count = 1
    while len(index):
        borders = [round(k * intervals / count) for k in range(count + 1)]
        centres = [(path.times[a] + path.times[b]).item() / 2 for a, b in pairwise(borders)]
        parts = [path.fitted(a, b, index, centre) for (a, b), centre in zip(pairwise(borders), centres)]
        serves = torch.stack([part[1] for part in parts]).all(0) | (count >= intervals)
        seen = torch.stack([part[2] for part in parts]).any(0)
        for number, (piece, _, visible) in enumerate(parts):
            if count == 1:
                pieces.append(_kept(piece, serves & seen, 0.0))
                continue
            own = _kept(piece, serves & visible, (count / _SIGMA) ** 2)
            own = replace(own, gaussians=replace(own.gaussians, opacity_logits=_peak(own.gaussians.opacities).logit()))
            pieces.append(own)
            for end, step in ((0, -1), (count - 1, 1)):  # beyond the clip's ends the path goes on
                if number == end:
                    pieces.append(_moved(own, step / count))
        index = index[~serves & seen]
        count *= 2
    pieces[:] = [piece for piece in pieces if len(piece.source)]


def _moved(piece: _Piece, step: float) -> _Piece:
    """The same path around a centre ``step`` later."""
    order = piece.motion.shape[1]
    path = torch.cat([piece.gaussians.means[:, None], piece.motion], 1)  # coefficients of d^k
    shifted = [sum(math.comb(k, j) * step ** (k - j) * path[:, k] for k in range(j, order + 1)) for j in range(order + 1)]
    path = torch.stack([torch.as_tensor(part) for part in shifted], 1)
    quats = F.normalize(piece.gaussians.quats + step * piece.turn, dim=-1)
    gaussians = replace(piece.gaussians, means=path[:, 0], quats=quats)
    return replace(piece, gaussians=gaussians, motion=path[:, 1:], centre=piece.centre + step)


def _peak(opacity: Tensor) -> Tensor:  # (P,) -> (P,)
    """The opacity of each of many fading pieces that cover together, in the mean over time, what one opacity covered."""
    places = torch.arange(16, device=opacity.device) / 16
    steps = torch.arange(-4, 5, device=opacity.device)
    presence = torch.exp(-0.5 * ((places[:, None] - steps) / _SIGMA) ** 2)  # (places, pieces)
    low, high = torch.zeros_like(opacity), torch.ones_like(opacity)
    for _ in range(24):
        middle = (low + high) / 2
        covered = 1 - (1 - middle[:, None, None] * presence).prod(-1).mean(-1)
        low, high = torch.where(covered < opacity, middle, low), torch.where(covered < opacity, high, middle)
    return ((low + high) / 2).clamp(1e-6, 1 - 1e-6)


def _angle(a: Tensor, b: Tensor) -> Tensor:  # (..., 4), (..., 4) unit -> (...) degrees
    # By the sine: the cosine of small angles is rounded away.
    sine = torch.minimum((a - b).norm(dim=-1), (a + b).norm(dim=-1)) / 2
    return torch.rad2deg(4 * sine.clamp_max(1.0).asin())


def _errors(scene: Scene4D, baked: Scene4D, source: Tensor) -> dict[str, float]:
    field = baked.field
    assert isinstance(field, TimedGaussians)
    count = scene.frames if scene.loop else scene.frames - 1
    found = {"position": 0.0, "rotation": 0.0, "log_scale": 0.0, "opacity": 0.0}
    steady = scene.field is None or scene.field.continuous
    times = torch.arange(2 * count + 1) / max(2 * count, 1) if steady else frame_times(scene.frames, scene.loop)
    for tau in times:
        presence = field.presence(tau[None].to(source.device))[0]
        # Of the pieces of one Gaussian, the one that is most present.
        best = presence.new_full((len(scene.gaussians),), -1.0).scatter_reduce(0, source, presence, "amax")
        shown = (presence == best[source]) & (presence > 0.5)
        was, now = scene.at(tau).select(source[shown]), baked.at(tau).select(shown)
        seen = was.opacities >= FAINTEST
        if not bool(seen.any()):
            continue
        was, now = was.select(seen), now.select(seen)
        differences = {
            "position": (was.means - now.means).norm(dim=-1),
            "rotation": _angle(F.normalize(was.quats, dim=-1), F.normalize(now.quats, dim=-1)),
            "log_scale": (was.log_scales - now.log_scales).abs(),
        }
        if field.life == "window":  # lives that fade share what is covered
            differences["opacity"] = (was.opacities - now.opacities).abs()
        for key, value in differences.items():
            found[key] = max(found[key], float(value.max()))
    return found
