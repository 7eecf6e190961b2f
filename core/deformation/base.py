"""The interface of a deformation field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from ..gaussians import Gaussians
from ..identity import canonical
from ..mesh import Mesh
from ..optimiser import Group
from ..registry import Registry

#: Deformation fields by name.
FIELDS: Registry[type[DeformationField]] = Registry("deformation field")
_Field = TypeVar("_Field", bound="type[DeformationField]")


class StaticScene(Protocol):
    """What a field is built for: canonical Gaussians (N, ...), and the frames of the clip."""

    @property
    def gaussians(self) -> Gaussians: ...

    @property
    def frames(self) -> int: ...

    @property
    def loop(self) -> bool: ...


@dataclass(frozen=True)
class Handles:
    """Points on the object, fewer than its Gaussians, whose motion is the field's.

    Args:
        positions: at rest, (M, 3).
        pairs: neighbours among them, (E, 2) int64.
        ends: where each handle occurs in the pairs, see :func:`~.fused.places`; None where no kernel wants it.
    """

    positions: Tensor
    pairs: Tensor
    ends: tuple[Tensor, Tensor] | None = None


class DeformationField(nn.Module):
    """Moves canonical Gaussians to given times. A new field moves nothing: its outputs start at zero.

    A subclass keeps its constructor arguments in ``self.arguments`` (JSON values) so that a saved scene can rebuild it, and is
    registered by its name (:func:`register_field`). What it can is said by its attributes.

    Attributes:
        name: unique in :data:`FIELDS`.
        buildable: :meth:`build` makes one for a scene, so that a fit can choose it.
        fixed_count: it moves the Gaussians that it was built for, none more or fewer, so that density control is refused.
        tracks_frames: it has a pose at each frame, so that frames can be tracked one by one: :meth:`continue_motion`.
        anywhere: it moves any point by where the point is, so that it carries other points than Gaussians.
        offers: what objectives may need of it: "handles" (:meth:`handles`), "planes" (:meth:`feature_planes`), "seam"
            (:meth:`seam`).
    """

    name: ClassVar[str]
    buildable: bool = True
    fixed_count: bool = False
    tracks_frames: bool = False
    anywhere: bool = False
    offers: frozenset[str] = frozenset()
    #: Constructor arguments that say how many layers, hence tensors, are built: checked against a file's before anything is.
    layered: ClassVar[frozenset[str]] = frozenset()
    #: Names of tensors that files of older versions hold and that are read past.
    former: ClassVar[frozenset[str]] = frozenset()
    arguments: dict[str, Any]

    @classmethod
    def build(cls, scene: StaticScene, mesh: Mesh | None = None, **settings: Any) -> Self:
        """A field at rest for a scene, on the device of its Gaussians. Here: the constructor's with the settings.

        Args:
            mesh: the object's surface, where there is one.
            settings: of the field, by name.
        """
        return cls(**settings).to(scene.gaussians.device)

    def handles(self) -> Handles | None:
        """The field's handles; None for fields that move each Gaussian by itself."""
        return None

    def motion_of_handles(self, tau: Tensor) -> tuple[Tensor, Tensor]:  # (B,) -> (B, M, 3), (B, M, 4)
        """Moved positions and rotations (unit quaternions wxyz) of the handles at times in [0, 1]."""
        raise NotImplementedError

    def feature_planes(self) -> Sequence[tuple[Tensor, bool]]:
        """Feature planes (1, C, b, a), each with whether its axis b is time."""
        return ()

    def seam(self, gaussians: Gaussians, tau: Tensor) -> Tensor:
        """How far what is blended into the last clip of a motion differs from it, a scalar."""
        raise NotImplementedError

    @property
    def changes(self) -> frozenset[str]:
        """Names of the attributes that are not the canonical ones at every time."""
        return frozenset({"means", "quats", "log_scales"})

    @property
    def continuous(self) -> bool:
        """Whether what lies between frames is in between; False where each is a set of its own, shown until the next."""
        return True

    def forward(self, gaussians: Gaussians, tau: Tensor) -> Gaussians:
        """The Gaussians ``(N, ...)`` at times ``tau`` (B,) in [0, 1], as a batch ``(B, N, ...)``."""
        raise NotImplementedError

    def parameter_groups(self, whole_clip: bool = True, smoothing: float = 1.0) -> list[Group]:
        """Parameters with their learning rates; ``whole_clip`` is False while frames are tracked one by one.

        ``smoothing`` scales how far fields that spread their steps over neighbours and time do so.
        """
        raise NotImplementedError

    def continue_motion(self, frame: int, source: int, before: int, momentum: float) -> None:
        """Sets a frame's pose to its tracked neighbour's plus ``momentum`` times that one's own last move.

        Raises:
            ValueError: for fields that have no pose of their own at each frame.
        """
        raise ValueError(
            f"the {self.name} field cannot be tracked frame by frame; choose control nodes or set tracking to 0 steps"
        )

    def select(self, index: Tensor) -> DeformationField:
        """The field of a subset of its Gaussians, chosen as by :meth:`Gaussians.select`.

        Fields that ask where a Gaussian is, not which one it is, are their own.
        """
        return self

    def recolored(self, function: Callable[[Tensor], Tensor]) -> DeformationField:
        """The field with ``function`` applied to the harmonics (..., N, K, 3) that it keeps in place of the canonical ones."""
        return self

    def widened(self, amount: Tensor) -> DeformationField:  # (N,)
        """The field with ``amount`` added to the log scales that it keeps in place of the canonical ones."""
        return self

    def stretching(self) -> DeformationField:
        """The field whose covariances follow the surface where it stretches. Here: itself, of fields that learn them."""
        return self

    def carrier(
        self,
        gaussians: Gaussians,
        points: Tensor,  # (V, 3)
        mesh: Mesh | None = None,
    ) -> Callable[[Tensor], Tensor] | None:
        """A function from times (B,) to ``points`` of the canonical object where the field moves them, (B, V, 3).

        None for fields that only know where their own Gaussians go. Here: of fields that move any point by where it is.

        Args:
            gaussians: the canonical set.
            mesh: the surface that the field was built on, where there was one.
        """
        return evaluated_at(self, points) if self.anywhere else None

    def check(self, count: int) -> None:
        """Refuses tensors that came from a file and do not belong to ``count`` Gaussians, or whose indices lead astray.

        Shapes are those of the arguments and values finite where this is called, see :func:`loaded_field`.

        Raises:
            ValueError: if so.
        """

    def config(self) -> dict[str, Any]:
        """What :func:`field_from_config` needs to build the same field."""
        return {"type": self.name, **self.arguments}


@canonical.register
def _(value: DeformationField) -> Any:
    return {"field": value.config(), "tensors": canonical(dict(value.state_dict()))}


def register_field(cls: _Field) -> _Field:
    """Class decorator: makes a field loadable by its name."""
    FIELDS.add(cls.name, cls)
    return cls


def field_from_config(config: dict[str, Any]) -> DeformationField:
    """The field that :meth:`DeformationField.config` described, with fresh parameters.

    Raises:
        ValueError: for an unknown type.
    """
    arguments = dict(config)
    kind = arguments.pop("type", None)
    if kind not in FIELDS:
        raise ValueError(f"unknown deformation field {kind!r}, expected one of {', '.join(sorted(FIELDS))}")
    return FIELDS[kind](**arguments)


def loaded_field(config: dict[str, Any], tensors: dict[str, Tensor], count: int) -> DeformationField:
    """The field that a file describes, with the file's tensors, of ``count`` Gaussians.

    Its sizes take no memory before they are known to be those of the tensors that are really there.

    Raises:
        ValueError, TypeError, KeyError, RuntimeError, OverflowError: for a description or tensors that are no field.
    """
    former = frozenset[str]().union(*(kind.former for kind in FIELDS.values()))
    tensors = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] not in former}
    _check_description(config, len(tensors))
    with torch.device("meta"):  # shapes without storage
        field = field_from_config(config)
    expected = field.state_dict()
    if wrong := sorted(expected.keys() ^ tensors.keys()):
        raise ValueError(f"the {config['type']} field: {wrong[0]} is missing or unknown")
    given = {}
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape.shape or tensor.is_floating_point() != shape.is_floating_point():
            found, wanted = (f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (tensor, shape))
            raise ValueError(f"the {config['type']} field: {name} is {found}, expected {wanted}")
        if tensor.is_complex() or (tensor.dtype == torch.bool) != (shape.dtype == torch.bool):
            raise ValueError(f"the {config['type']} field: {name} is of type {tensor.dtype}")
        given[name] = tensor.to(shape.dtype)
        if shape.is_floating_point() and not bool((given[name].abs() <= _LARGEST).all()):
            raise ValueError(f"the {config['type']} field: {name} holds NaN, infinite or far too large values")
    field.load_state_dict(given, assign=True)
    field.check(count)
    return field


#: The largest number of a field: sums of a few are finite.
_LARGEST = 1e30
#: Fields within fields, and numbers in a description, that no scene of ours comes near.
_MAX_DEPTH, _MAX_NUMBER = 64, 2**31
#: What JSON makes of an argument, by its annotation.
_KINDS = {"bool": (bool,), "int": (int,), "float": (int, float), "str": (str,)}


def _check_description(config: Any, tensors: int) -> None:
    """Refuses descriptions that building would get lost in: fields within fields without end, more layers than tensors."""
    queue = [(config, 0)]
    while queue:
        value, depth = queue.pop()
        if depth > _MAX_DEPTH:
            raise ValueError("a description nested without end")
        if isinstance(value, dict):
            kind = value.get("type")
            cls = FIELDS.get(kind) if isinstance(kind, str) else None
            for name in cls.layered if cls is not None else ():
                if value.get(name, 0) > tensors:
                    raise ValueError(f"the {kind} field: {name} {value[name]}, but only {tensors} tensors")
            for name, argument in signature(cls).parameters.items() if cls is not None else ():
                kinds = _KINDS.get(argument.annotation)
                if kinds is not None and name in value and type(value[name]) not in kinds:
                    raise ValueError(f"the {kind} field: {name} is no {argument.annotation}")
            queue += [(member, depth + 1) for member in value.values()]
        elif isinstance(value, list):
            queue += [(member, depth + 1) for member in value]
        elif isinstance(value, (int, float)) and not -_MAX_NUMBER <= value <= _MAX_NUMBER:  # NaN too
            raise ValueError(f"a field described with the number {value}")


def apply_deltas(
    gaussians: Gaussians,
    means: Tensor,  # (B, N, 3)
    log_scales: Tensor | None = None,  # (B, N, 3)
    quats: Tensor | None = None,  # (B, N, 4)
    opacity_logits: Tensor | None = None,  # (B, N)
) -> Gaussians:
    """Canonical attributes plus deltas in raw space (PLA4D: S' = S + Delta); absent deltas are zero."""

    def add(base: Tensor, delta: Tensor | None) -> Tensor:
        return base.expand(len(means), *base.shape) if delta is None else base + delta

    return Gaussians(
        means=gaussians.means + means,
        quats=add(gaussians.quats, quats),
        log_scales=add(gaussians.log_scales, log_scales),
        opacity_logits=add(gaussians.opacity_logits, opacity_logits),
        sh=gaussians.sh.expand(len(means), *gaussians.sh.shape),
    )


def evaluated_at(field: DeformationField, points: Tensor) -> Callable[[Tensor], Tensor]:  # (V, 3)
    """The carrier of a field that asks where a Gaussian is and nothing else."""
    zeros = points.new_zeros(len(points), 4)
    there = Gaussians(points, zeros, zeros[:, :3], zeros[:, 0], zeros[:, None, :3])
    return lambda tau: field(there, tau).means


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts at zero."""
    layer = nn.Linear(inputs, outputs)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    return layer
