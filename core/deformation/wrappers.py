"""Fields around a field: other timing, a closed loop, a path through the world, a fade; and several fields side by side.

Each keeps the field it goes round in its description, so that a saved scene brings all of them back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import harmonics
from ..cameras import quaternion_multiply, quaternion_to_matrix
from ..gaussians import Gaussians
from ..mesh import Mesh
from ..optimiser import Group
from .base import DeformationField, field_from_config, register_field
from .frames import blend

#: A field, its description, or None: nothing moves.
Inner = DeformationField | dict[str, Any] | None


class Wrapper(DeformationField):
    """A field around another one, ``inner``. Its own arguments are JSON values."""

    buildable = False
    inner: DeformationField | None

    def __init__(self, inner: Inner, **arguments: Any) -> None:
        super().__init__()
        self.inner = field_from_config(inner) if isinstance(inner, dict) else inner
        self.fixed_count = self.inner is not None and self.inner.fixed_count
        self.arguments = arguments

    def moved(self, gaussians: Gaussians, tau: Tensor) -> Gaussians:
        """What the inner field makes of the Gaussians."""
        return still(gaussians, tau) if self.inner is None else self.inner(gaussians, tau)

    @property
    def changes(self) -> frozenset[str]:
        return frozenset() if self.inner is None else self.inner.changes

    @property
    def continuous(self) -> bool:
        return self.inner is None or self.inner.continuous

    def parameter_groups(self, whole_clip: bool = True, smoothing: float = 1.0) -> list[Group]:
        groups = [] if self.inner is None else self.inner.parameter_groups(whole_clip, smoothing)
        return [replace(group, name=f"inner.{group.name}") for group in groups]

    def check(self, count: int) -> None:
        if self.inner is not None:
            self.inner.check(count)

    def select(self, index: Tensor) -> DeformationField:
        return type(self)(None if self.inner is None else self.inner.select(index), **self.arguments)

    def recolored(self, function: Callable[[Tensor], Tensor]) -> DeformationField:
        return type(self)(None if self.inner is None else self.inner.recolored(function), **self.arguments)

    def widened(self, amount: Tensor) -> DeformationField:
        return type(self)(None if self.inner is None else self.inner.widened(amount), **self.arguments)

    def carrier(self, gaussians: Gaussians, points: Tensor, mesh: Mesh | None = None) -> Callable[[Tensor], Tensor] | None:
        if self.inner is None:
            return lambda tau: points.expand(len(tau), -1, -1)
        return self.inner.carrier(gaussians, points, mesh)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "inner": None if self.inner is None else self.inner.config()}


@register_field
class TimeMap(Wrapper):
    """Plays another field's clip with other timing: at tau it shows the moment that a piecewise linear curve says.

    Args:
        knots: the curve's pairs (time, moment of the inner clip), times not falling; two at one time are a cut. (0, 0), (1, 1)
            changes nothing, (0, 1), (1, 0) plays backwards, (0, 0), (1, 3) with "repeat" plays three times.
        outside: what moments beyond [0, 1] show: "hold" the nearest end, "repeat" the clip again, "mirror" the clip backwards.
    """

    name = "time-map"

    def __init__(self, inner: Inner, knots: Sequence[Sequence[float]], outside: str = "hold") -> None:
        knots = [[float(time), float(moment)] for time, moment in knots]
        if outside not in ("hold", "repeat", "mirror"):
            raise ValueError(f"outside {outside!r}: unknown, choose hold, repeat or mirror")
        if not knots or any(a[0] > b[0] for a, b in pairwise(knots)):
            raise ValueError("time map: needs knots in the order of their times")
        super().__init__(inner, knots=knots, outside=outside)

    def moments(self, tau: Tensor) -> Tensor:  # (B,) -> (B,)
        """Times of the inner clip, in [0, 1]."""
        times, moments = torch.tensor(self.arguments["knots"], dtype=torch.float64).T.contiguous()
        at = tau.detach().cpu().double().contiguous()
        moment = _interpolated(times, moments[:, None], at)[:, 0]
        # A float32 time hits the end of the clip only nearly.
        moment = torch.where((moment - moment.round()).abs() < 1e-6, moment.round(), moment)
        if self.arguments["outside"] == "repeat":
            moment = moment % 1.0
        elif self.arguments["outside"] == "mirror":
            moment = 1 - (moment % 2.0 - 1).abs()
        return moment.clamp(0, 1).to(tau)

    def forward(self, gaussians: Gaussians, tau: Tensor) -> Gaussians:
        return self.moved(gaussians, self.moments(tau))

    def carrier(self, gaussians: Gaussians, points: Tensor, mesh: Mesh | None = None) -> Callable[[Tensor], Tensor] | None:
        carried = super().carrier(gaussians, points, mesh)
        return None if carried is None else lambda tau: carried(self.moments(tau))


@register_field
class ClosedLoop(Wrapper):
    """Another field's open clip as a loop: its last part fades into its first.

    The loop lasts as long as the clip less the overlap. It starts at the clip's moment 1 - overlap, fades to the beginning
    while that plays, and goes on to 1 - overlap: what it shows and how fast it moves is the same on both sides of the seam.

    Args:
        overlap: share of the clip that fades, in (0, 0.5].
    """

    name = "closed-loop"

    def __init__(self, inner: Inner, overlap: float) -> None:
        if not 0 < overlap <= 0.5:
            raise ValueError(f"closed loop: overlap {overlap:g}, choose more than 0 and at most half of the clip")
        super().__init__(inner, overlap=overlap)

    def moments(self, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (B,) -> (B,), (B,), (B,)
        """Times of the inner clip that are shown, and that fade out meanwhile, and the share of the former."""
        overlap = self.arguments["overlap"]
        moment = (tau.detach() % 1.0) * (1 - overlap)
        u = (moment / overlap).clamp(0, 1)
        return moment, (1 - overlap + moment).clamp_max(1), u * u * (3 - 2 * u)

    def forward(self, gaussians: Gaussians, tau: Tensor) -> Gaussians:
        moment, ending, share = self.moments(tau)
        fading = share < 1
        shown = self.moved(gaussians, torch.cat([moment, ending[fading]]))
        whole = shown.map(lambda t: t[: len(tau)])
        if not bool(fading.any()):
            return whole
        late = shown.map(lambda t: t[len(tau) :]).tensors()
        return blend(Gaussians(**{k: t.index_put((fading,), late[k]) for k, t in whole.tensors().items()}), whole, share)

    def carrier(self, gaussians: Gaussians, points: Tensor, mesh: Mesh | None = None) -> Callable[[Tensor], Tensor] | None:
        inner = super().carrier(gaussians, points, mesh)
        if inner is None:
            return None

        def carried(tau: Tensor) -> Tensor:
            moment, ending, share = self.moments(tau)
            return torch.lerp(inner(ending), inner(moment), share[:, None, None])

        return carried


@register_field
class Placed(Wrapper):
    """Another field's Gaussians placed in the world, still or along a path: x' = scale(t) R(t) x + position(t).

    Fields are bound to where their canonical Gaussians are. Where those were placed along with the scene, ``base`` says how:
    they are taken back before the inner field moves them.

    Args:
        keys: [time, position (3), quaternion wxyz (4), scale] each, in the order of their times in [0, 1]. Between two,
            positions and scales are interpolated linearly, rotations spherically the shorter way; the ends are held.
        base: position, quaternion and scale of the canonical Gaussians; None where they were left in their place.
    """

    name = "placed"

    def __init__(self, inner: Inner, keys: Sequence[Sequence[Any]], base: Sequence[Any] | None = None) -> None:
        keys = [[float(t), _floats(p, 3), _floats(q, 4), float(s)] for t, p, q, s in keys]
        base = None if base is None else [_floats(base[0], 3), _floats(base[1], 4), float(base[2])]
        if not keys or any(a[0] > b[0] for a, b in pairwise(keys)):
            raise ValueError("path: needs keys in the order of their times")
        if min(key[3] for key in keys) <= 0 or (base is not None and base[2] <= 0):
            raise ValueError("path: scales must be more than 0")
        super().__init__(inner, keys=keys, base=base)
        self._canonical: tuple[Any, Gaussians, Gaussians] | None = None

    @property
    def changes(self) -> frozenset[str]:
        keys, base = self.arguments["keys"], self.arguments["base"]
        poses = [key[1:] for key in keys] + [base or [[0.0] * 3, [1.0, 0.0, 0.0, 0.0], 1.0]]
        found = {"means"} if any(pose != poses[0] for pose in poses) else set()
        if any(pose[1] != poses[0][1] for pose in poses):
            found |= {"quats", "sh"}  # the harmonics of degree 1 and more
        if any(pose[2] != poses[0][2] for pose in poses):
            found |= {"log_scales"}
        return super().changes | found

    def pose(self, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (B,) -> (B, 3), (B, 4) wxyz, (B,)
        """Position, rotation and scale at given times."""
        keys = self.arguments["keys"]
        times = torch.tensor([key[0] for key in keys], dtype=torch.float64)
        at = tau.detach().cpu().double().contiguous()
        plain = torch.tensor([[*key[1], key[3]] for key in keys], dtype=torch.float64)
        values = _interpolated(times, plain, at)
        quats = F.normalize(torch.tensor([key[2] for key in keys], dtype=torch.float64), dim=-1)
        left, share = _segment(times, at)
        turned = slerp(quats[left], quats[(left + 1).clamp_max(len(keys) - 1)], share)
        return values[:, :3].to(tau), turned.to(tau), values[:, 3].to(tau)

    def forward(self, gaussians: Gaussians, tau: Tensor) -> Gaussians:
        return place(self.moved(self._taken_back(gaussians), tau), *self.pose(tau))

    def carrier(self, gaussians: Gaussians, points: Tensor, mesh: Mesh | None = None) -> Callable[[Tensor], Tensor] | None:
        matrix = torch.eye(4)
        if (pose := self._undoing()) is not None:
            position, quat, scale = pose
            matrix[:3, :3], matrix[:3, 3] = scale * quaternion_to_matrix(quat), position
        matrix = matrix.to(points)
        own = points @ matrix[:3, :3].T + matrix[:3, 3]
        inner = super().carrier(self._taken_back(gaussians), own, None if mesh is None else mesh.transformed(matrix))
        if inner is None:
            return None

        def carried(tau: Tensor) -> Tensor:
            position, quat, scale = self.pose(tau)
            return inner(tau) @ (scale[:, None, None] * quaternion_to_matrix(quat)).mT + position[:, None]

        return carried

    def _undoing(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Position, rotation and scale that take the canonical Gaussians back."""
        if self.arguments["base"] is None:
            return None
        position, quat, scale = (torch.tensor(x, dtype=torch.float64) for x in self.arguments["base"])
        inverse = F.normalize(quat, dim=-1) * quat.new_tensor([1.0, -1.0, -1.0, -1.0])
        return -(quaternion_to_matrix(inverse) @ position) / scale, inverse, 1 / scale

    def _taken_back(self, gaussians: Gaussians) -> Gaussians:
        pose = self._undoing()
        if pose is None:
            return gaussians
        # Fields keep what they derive of the canonical Gaussians by their address, so the same ones are handed on each time.
        key = [(t.data_ptr(), t._version, t.device) for t in gaussians.tensors().values()]
        if self._canonical is not None and self._canonical[0] == key:
            return self._canonical[2]
        poses = [x[None].to(gaussians.means) for x in pose]
        back = place(gaussians.map(lambda t: t[None]), *poses).map(lambda t: t[0])
        if not any(t.requires_grad for t in gaussians.tensors().values()):
            self._canonical = key, gaussians, back
        return back

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._canonical = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_canonical": None}  # known by the address of Gaussians that a copy does not have


@register_field
class Faded(Wrapper):
    """Another field's Gaussians with their opacities multiplied by a factor that may change over time.

    Args:
        knots: pairs (time, factor), times not falling; linear in between, held at the ends.
    """

    name = "faded"

    def __init__(self, inner: Inner, knots: Sequence[Sequence[float]]) -> None:
        knots = [[float(time), float(factor)] for time, factor in knots]
        if not knots or any(a[0] > b[0] for a, b in pairwise(knots)) or min(factor for _, factor in knots) < 0:
            raise ValueError("fade: needs factors of 0 or more in the order of their times")
        super().__init__(inner, knots=knots)

    @property
    def changes(self) -> frozenset[str]:
        return super().changes | {"opacity_logits"}

    def forward(self, gaussians: Gaussians, tau: Tensor) -> Gaussians:
        times, factors = torch.tensor(self.arguments["knots"], dtype=torch.float64).T.contiguous()
        factor = _interpolated(times, factors[:, None], tau.detach().cpu().double().contiguous()).to(tau)  # (B, 1)
        moved = self.moved(gaussians, tau)
        return replace(moved, opacity_logits=scaled_opacity(moved.opacity_logits, factor))


@register_field
class Parts(DeformationField):
    """Several objects in one set of Gaussians, one after the other, each with a field of its own.

    An object's own clock is a :class:`TimeMap` around its field, its place or path a :class:`Placed`.

    Args:
        counts: number of Gaussians of each.
        fields: the field of each; None holds it still.
    """

    name = "parts"
    buildable = False
    fixed_count = True

    def __init__(self, counts: Sequence[int], fields: Sequence[Inner]) -> None:
        super().__init__()
        if len(counts) != len(fields):
            raise ValueError(f"parts: {len(counts)} counts for {len(fields)} fields")
        self.counts = [int(count) for count in counts]
        built = [field_from_config(field) if isinstance(field, dict) else field for field in fields]
        self.parts = nn.ModuleDict({str(i): field for i, field in enumerate(built) if field is not None})

    def part(self, index: int) -> DeformationField | None:
        """The field of one object."""
        found = dict(self.parts.named_children()).get(str(index))
        assert found is None or isinstance(found, DeformationField)
        return found

    @property
    def fields(self) -> list[DeformationField | None]:
        return [self.part(i) for i in range(len(self.counts))]

    @property
    def changes(self) -> frozenset[str]:
        return frozenset().union(*(field.changes for field in self.fields if field is not None))

    @property
    def continuous(self) -> bool:
        return all(field.continuous for field in self.fields if field is not None)

    def forward(self, gaussians: Gaussians, tau: Tensor) -> Gaussians:
        if len(gaussians) != sum(self.counts):
            raise ValueError(f"the parts hold {sum(self.counts)} Gaussians, not {len(gaussians)}; merge the scenes again")
        moved, start = [], 0
        for field, count in zip(self.fields, self.counts):
            own = gaussians.map(lambda t: t[start : start + count])  # noqa: B023
            moved.append(still(own, tau) if field is None else field(own, tau))
            start += count
        return Gaussians(**{k: torch.cat([m.tensors()[k] for m in moved], 1) for k in gaussians.tensors()})

    def parameter_groups(self, whole_clip: bool = True, smoothing: float = 1.0) -> list[Group]:
        return [
            replace(group, name=f"parts.{i}.{group.name}")
            for i, field in enumerate(self.fields)
            if field is not None
            for group in field.parameter_groups(whole_clip, smoothing)
        ]

    def check(self, count: int) -> None:
        if sum(self.counts) != count or min(self.counts, default=0) < 0:
            raise ValueError(f"parts of {sum(self.counts)} Gaussians, where there are {count}")
        for field, own in zip(self.fields, self.counts):
            if field is not None:
                field.check(own)

    def select(self, index: Tensor) -> Parts:
        """As everywhere; raises ValueError for an index that mixes the objects' order."""
        index = index.cpu()
        index = index.nonzero()[:, 0] if index.dtype == torch.bool else index % sum(self.counts)
        ends = torch.tensor(self.counts).cumsum(0)
        part = torch.searchsorted(ends, index, right=True)
        if bool((part[1:] < part[:-1]).any()):
            raise ValueError("parts: the Gaussians of merged scenes stay object by object, select them in that order")
        own = [index[part == i] - (int(ends[i]) - count) for i, count in enumerate(self.counts)]
        kept = [i for i, chosen in enumerate(own) if len(chosen)]
        fields = self.fields
        return Parts(
            [len(own[i]) for i in kept], [None if (field := fields[i]) is None else field.select(own[i]) for i in kept]
        )

    def recolored(self, function: Callable[[Tensor], Tensor]) -> Parts:
        return Parts(self.counts, [None if field is None else field.recolored(function) for field in self.fields])

    def widened(self, amount: Tensor) -> Parts:
        own = amount.split(self.counts)
        return Parts(self.counts, [None if field is None else field.widened(x) for field, x in zip(self.fields, own)])

    def config(self) -> dict[str, Any]:
        fields = [None if field is None else field.config() for field in self.fields]
        return {"type": self.name, "counts": self.counts, "fields": fields}


def still(gaussians: Gaussians, tau: Tensor) -> Gaussians:  # (N, ...), (B,) -> (B, N, ...)
    """The same Gaussians at every time."""
    return gaussians.map(lambda t: t.expand(len(tau), *t.shape))


def place(
    gaussians: Gaussians,  # (B, N, ...)
    position: Tensor,  # (B, 3)
    quat: Tensor,  # (B, 4) wxyz
    scale: Tensor,  # (B,)
) -> Gaussians:  # (B, N, ...)
    """x' = scale R x + position, with rotations, scales and view-dependent colours along."""
    rotation = quaternion_to_matrix(quat)
    return Gaussians(
        means=gaussians.means @ (scale[:, None, None] * rotation).mT + position[:, None],
        quats=quaternion_multiply(F.normalize(quat, dim=-1)[:, None].expand_as(gaussians.quats), gaussians.quats),
        log_scales=gaussians.log_scales + scale.log()[:, None, None],
        opacity_logits=gaussians.opacity_logits,
        sh=harmonics.rotated(gaussians.sh, rotation),
    )


def scaled_opacity(logits: Tensor, factor: Tensor | float) -> Tensor:
    """Logits of the opacities times a factor, at most 1 - 1e-6; a factor of 1 changes nothing."""
    factor = torch.as_tensor(factor, dtype=logits.dtype, device=logits.device)
    scaled = (logits.sigmoid() * factor).clamp(1e-9, 1 - 1e-6).logit()
    return torch.where(factor == 1, logits, scaled)


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:  # (..., 4), (..., 4), (...) -> (..., 4)
    """Between unit quaternions along the shorter arc, at an even speed."""
    cosine = (a * b).sum(-1)
    b = torch.where(cosine[..., None] < 0, -b, b)
    angle = cosine.abs().clamp_max(1.0).acos()
    sine = angle.sin()
    near = sine < 1e-6
    safe = torch.where(near, 1.0, sine)
    first = torch.where(near, 1 - share, ((1 - share) * angle).sin() / safe)
    second = torch.where(near, share, (share * angle).sin() / safe)
    return F.normalize(first[..., None] * a + second[..., None] * b, dim=-1)


def _segment(times: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:  # (K,), (B,) -> (B,) int64, (B,)
    """The last key at or before each time, and the share of the way to the next; of keys at one time the later one counts."""
    # Times come as float32, the keys' are exact: one that falls short of a key by rounding is the key's.
    left = (torch.searchsorted(times, at + 1e-6, right=True) - 1).clamp(0, len(times) - 1)
    right = (left + 1).clamp_max(len(times) - 1)
    span = times[right] - times[left]
    share = torch.where(span > 0, (at - times[left]) / torch.where(span > 0, span, 1.0), 0.0)
    return left, share.clamp(0, 1)


def _interpolated(times: Tensor, values: Tensor, at: Tensor) -> Tensor:  # (K,), (K, C), (B,) -> (B, C)
    left, share = _segment(times, at)
    return torch.lerp(values[left], values[(left + 1).clamp_max(len(times) - 1)], share[:, None])


def _floats(values: Sequence[float], count: int) -> list[float]:
    found = [float(value) for value in values]
    if len(found) != count:
        raise ValueError(f"path: {len(found)} numbers where {count} belong")
    return found
