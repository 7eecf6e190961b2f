"""What a valid scene is: the one description that scene files are checked against when they are read.

Values come from strangers. Types, shapes, ranges and finiteness are looked at before a module is built or anything native is
called; fields look at their own indices (:meth:`DeformationField.check`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..cameras import Crop, FrontCamera
from ..deformation import DeformationField
from ..gaussians import Gaussians

#: Frames of a clip, frames a second, pixels of a side, world units: beyond, a number is a mistake or an attack.
MAX_FRAMES, MAX_FPS, MAX_SIDE, MAX_EXTENT = 100_000, 10_000.0, 65_536, 1e9
#: Gaussians whose logarithmic scale or opacity logit is infinite are as good as this.
_ENDLESS = 1e30

#: Gaussians that a field is tried with.
_TRIED = 1000

_SHAPES = {"means": (3,), "quats": (4,), "log_scales": (3,), "opacity_logits": ()}
#: Tensors of a surface: shape after the first dimension, None = any, and whether they are numbers with a point.
_SURFACE = {
    "vertices": ((3,), True), "faces": ((3,), False), "materials": ((6,), True), "face_material": ((), False),
    "normals": ((3,), True), "uvs": ((2,), True), "vertex_colors": ((4,), True),
    "skin.tree": ((), False), "skin.places": ((3,), True), "skin.quats": ((4,), True), "skin.frame": ((4,), True),
    "skin.joints": ((None,), False), "skin.weights": ((None,), True),
}  # fmt: skip


def number(value: Any, name: str, low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> float:
    """A finite number in [low, high], or above ``low``.

    Raises:
        ValueError: for anything else, with ``name`` in it.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {_shown(value)}, expected a number")
    if not (low < value if above else low <= value) or not value <= high or not math.isfinite(value):
        raise ValueError(f"{name} is {value:g}, expected {'more than' if above else 'at least'} {low:g} and at most {high:g}")
    return float(value)


def integer(value: Any, name: str, low: int, high: int) -> int:
    """A whole number in [low, high].

    Raises:
        ValueError: for anything else, with ``name`` in it.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is {_shown(value)}, expected a whole number from {low} to {high}")
    return value


def front_camera(value: Any) -> FrontCamera:
    """The camera of a header.

    Raises:
        ValueError, TypeError, KeyError: for what is none.
    """
    front = FrontCamera(**value)
    number(front.fovy, "the camera's fovy", 0, 179, above=True)
    number(front.distance, "the camera's distance", 0, MAX_EXTENT, above=True)
    number(front.elevation, "the camera's elevation", -360, 360)
    for key in ("width", "height"):
        integer(getattr(front, key), f"the camera's {key}", 1, MAX_SIDE)
    for key in ("cx", "cy", "px", "py"):
        if getattr(front, key) is not None:
            number(getattr(front, key), f"the camera's {key}", -MAX_EXTENT, MAX_EXTENT)
    return front


def crop_window(value: Any) -> Crop:
    """The window of a header.

    Raises:
        ValueError, TypeError, KeyError: for what is none.
    """
    crop = Crop(**value)
    for key in ("x", "y"):
        number(getattr(crop, key), f"the crop's {key}", -MAX_EXTENT, MAX_EXTENT)
    number(crop.size, "the crop's size", 0, MAX_EXTENT, above=True)
    for key in ("width", "height"):
        integer(getattr(crop, key), f"the crop's {key}", 1, MAX_SIDE)
    return crop


def canonical(tensors: dict[str, Tensor]) -> Gaussians:
    """The Gaussians (N, ...) of a file's tensors, float32; infinite scales and opacities are made finite.

    Raises:
        ValueError, KeyError: for tensors that are no Gaussians, or NaN.
    """
    count = len(tensors["means"]) if tensors["means"].dim() else 0
    for name, shape in _SHAPES.items():
        _floats(tensors[name], name, (count, *shape))
    coefficients = tensors["sh"].shape[1] if tensors["sh"].dim() == 3 else 0
    if coefficients not in (1, 4, 9, 16):
        raise ValueError(f"sh has shape {tuple(tensors['sh'].shape)}, expected ({count}, 1, 4, 9 or 16, 3)")
    _floats(tensors["sh"], "sh", (count, coefficients, 3))
    if not count:
        raise ValueError("no Gaussians")
    gaussians = {key: tensors[key].float() for key in (*_SHAPES, "sh")}
    for key, tensor in gaussians.items():
        if key in ("log_scales", "opacity_logits") and not bool(tensor.isnan().any()):
            gaussians[key] = tensor.clamp(-_ENDLESS, _ENDLESS)
        elif not bool(tensor.isfinite().all()) or float(tensor.abs().max()) > MAX_EXTENT:
            raise ValueError(f"{key} holds NaN, infinite or far too large values")
    return Gaussians(**gaussians)


def surface_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a surface, of the types and shapes that :func:`core.mesh.mesh_from_tensors` expects.

    Raises:
        ValueError, KeyError: for other ones.
    """
    pictures = 0
    for name, tensor in tensors.items():
        if name.startswith("texture"):
            pictures += 1
            if str(tensor.dtype) != "torch.uint8" or tensor.dim() != 1:
                raise ValueError(f"the surface's {name} is no file of a picture")
        elif name not in _SURFACE:
            raise ValueError(f"the surface has {name}, which is not known")
        else:
            shape, point = _SURFACE[name]
            whole = not tensor.is_floating_point() and not tensor.is_complex()
            fits = tensor.dim() == 1 + len(shape) and all(n in (None, own) for n, own in zip(shape, tensor.shape[1:]))
            if not fits or whole is point:
                raise ValueError(f"the surface's {name} is {tensor.dtype} of shape {tuple(tensor.shape)}")
    if missing := [f"texture{i}" for i in range(pictures) if f"texture{i}" not in tensors]:
        raise ValueError(f"the surface lacks {missing[0]}")
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


@torch.no_grad()
def motion(field: DeformationField, gaussians: Gaussians) -> None:
    """Moves the Gaussians, or some of them where the field moves any: finite weights too may lead to infinity.

    Raises:
        ValueError: where it does.
    """
    some = gaussians if field.fixed_count else gaussians.map(lambda x: x[:: max(len(x) // _TRIED, 1)])
    moved = field(some, torch.tensor([0.0, 0.5, 1.0]))
    if wrong := [name for name, value in moved.tensors().items() if not bool(value.isfinite().all())]:
        raise ValueError(f"the {field.name} field moves {wrong[0]} to infinity or NaN")


def _floats(tensor: Tensor, name: str, shape: tuple[int, ...]) -> None:
    if not tensor.is_floating_point() or tuple(tensor.shape) != shape:
        found = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        raise ValueError(f"{name} is {found}, expected floating-point {shape}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"
