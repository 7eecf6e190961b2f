"""The Gaussian rasteriser: one function, interchangeable backends.

Semantics, the same in every backend (3D Gaussian Splatting as gsplat's "classic" mode has it): perspective pinhole cameras,
near plane 0.01, 0.3 px^2 added to the projected covariance, alpha = min(0.999, opacity exp(-sigma)) dropped below 1/255, front
to back until the transmittance would fall to 1e-4. The centre of pixel (row i, column j) lies at (j + 0.5, i + 0.5).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import harmonics
from ..cameras import Cameras
from ..files import InputError
from ..gaussians import SH_C0, Gaussians
from . import gsplat_backend, numba_backend, torch_backend
from .nvrtc import backend as nvrtc_backend

BACKENDS = ("auto", "gsplat", "nvrtc", "numba", "torch")


@dataclass(frozen=True)
class Render:
    """Pictures of Gaussians.

    Args:
        color: premultiplied by alpha without a background, else composited over it, ``(..., C, H, W, 3)``.
        alpha: ``(..., C, H, W)`` in [0, 1).
        depth: alpha-weighted SUM of the z-depths of the centres (world units), ``(..., C, H, W)``.
    """

    color: Tensor  # (..., C, H, W, 3)
    alpha: Tensor  # (..., C, H, W)
    depth: Tensor  # (..., C, H, W)

    @property
    def expected_depth(self) -> Tensor:
        """Mean z-depth of what is seen, 0 where nothing is, ``(..., C, H, W)``."""
        return torch.where(self.alpha > 0, self.depth / self.alpha.clamp_min(1e-8), 0.0)


@dataclass
class ScreenStatistics:
    """What density control wants to know about each Gaussian in each view; V = all views of the call, flattened.

    ``radii`` and ``visible`` are there after the forward pass, ``gradient`` after the backward pass. The gradient is the norm
    of the loss gradient by the projected centre in units of half a picture, (W / 2, H / 2) times the gradient by pixels; a
    strategy whose thresholds assume one view a step multiplies by the number of views its loss averages over.
    """

    gradient: Tensor | None = None  # (V, N)
    radii: Tensor | None = None  # (V, N) pixels, 0 where not drawn
    visible: Tensor | None = None  # (V, N) bool


def available_backends(device: torch.device | str = "cpu") -> list[str]:
    """Names of the backends that can draw on a device, the one to prefer first: fast, then the same bits every time."""
    kind = torch.device(device).type
    found = ["nvrtc"] if nvrtc_backend.available(device) else []
    if kind == "cuda" and gsplat_backend.available():
        found.append("gsplat")
    if kind == "cpu" and numba_backend.available():
        found.append("numba")
    return [*found, "torch"]


def resolve_backend(name: str, device: torch.device | str = "cpu") -> str:
    """The backend that a name means on a device: "auto" is the first of :func:`available_backends`.

    Raises:
        InputError: for an unknown name or a backend that cannot draw there.
    """
    if name not in BACKENDS:
        raise InputError(f"renderer {name!r}: unknown, choose one of {', '.join(BACKENDS)}")
    found = available_backends(device)
    if name == "auto":
        return found[0]
    if name not in found:
        why = {"gsplat": gsplat_backend.why_not, "nvrtc": nvrtc_backend.why_not, "numba": numba_backend.why_not}[name]
        raise InputError(f"renderer {name!r}: {why(torch.device(device))}; choose auto or one of {', '.join(found)}")
    return name


def slow_renderer(name: str, device: torch.device | str = "cpu") -> str:
    """What to do where a resolved backend is the slow one on a CPU; empty where it is not."""
    if name != "torch" or torch.device(device).type != "cpu" or numba_backend.available():
        return ""
    return f'renderer torch: numba draws 20 times faster on a CPU: "{sys.executable}" -m pip install numba'


def rasterize(
    gaussians: Gaussians,
    cameras: Cameras,
    background: Tensor | None = None,  # (3,), or broadcastable to (..., C, 3)
    *,
    backend: str = "auto",
    statistics: ScreenStatistics | None = None,
) -> Render:
    """Draw Gaussians from a batch of cameras, differentiable in every Gaussian attribute.

    Gaussians (N) with cameras (C) give pictures (C, H, W); a batch (B, N), for instance one set a frame, with cameras (B, C)
    gives (B, C, H, W), and with cameras (C) the same cameras for every item. Attributes that all items share should be
    expanded, not copied. Only the torch backend differentiates in the cameras; "auto" takes it when they ask for gradients or
    when the Gaussians are float64. Colours are the spherical harmonics plus 0.5, not below 0.

    Args:
        gaussians: float32, or float64 for the torch backend.
        cameras: OpenCV, one picture size.
        background: colour to composite over; None leaves the colour premultiplied.
        backend: "auto", "gsplat", "nvrtc", "numba" or "torch".
        statistics: filled for density control.

    Raises:
        InputError: for tensors of unfit shapes, devices or types, non-finite Gaussians, or a backend that is not there.

    Source: 3D Gaussian Splatting (Kerbl et al. 2023), Eq. 2-6.
    """
    tensors = gaussians.tensors()
    batch = tuple(gaussians.means.shape[:-2])
    for name, tensor in tensors.items():
        own = tuple(tensor.shape[: tensor.dim() - {"opacity_logits": 1, "sh": 3}.get(name, 2)])
        if own != batch:
            raise InputError(f"gaussians: {name} has batch {own} but means {batch}, expand it to the same")
        if tensor.device != gaussians.device:
            raise InputError(f"gaussians: {name} is on {tensor.device} but means on {gaussians.device}, move both to one")
        if tensor.dtype != gaussians.means.dtype or tensor.dtype not in (torch.float32, torch.float64):
            raise InputError(f"gaussians: {name} is {tensor.dtype}, convert all attributes to torch.float32")
    if not cameras.batch:
        raise InputError("cameras: a single camera without a batch dimension, index it with [None]")
    if cameras.width < 1 or cameras.height < 1:
        raise InputError(f"cameras: picture size {cameras.width} x {cameras.height}, both must be at least 1")
    differentiable_cameras = torch.is_grad_enabled() and (cameras.world_to_camera.requires_grad or cameras.K.requires_grad)
    if backend == "auto" and (differentiable_cameras or gaussians.means.dtype == torch.float64):
        backend = "torch"
    backend = resolve_backend(backend, gaussians.device)
    if backend != "torch" and (differentiable_cameras or gaussians.means.dtype == torch.float64):
        what = "gradients of the cameras" if differentiable_cameras else "float64"
        raise InputError(f"renderer {backend!r}: does not offer {what}, choose torch")

    if cameras.K.device != gaussians.device or cameras.K.dtype != gaussians.means.dtype:
        cameras = cameras.to(gaussians.means)
    if batch and len(cameras.batch) == 1:
        views = batch + cameras.batch
        cameras = cameras.__class__(
            cameras.world_to_camera.expand(*views, 4, 4), cameras.K.expand(*views, 3, 3), cameras.width, cameras.height
        )
    elif batch and cameras.batch[:-1] != batch:
        raise InputError(f"cameras: batch {cameras.batch} fits no Gaussians of batch {batch}, pass (C,) or {(*batch, 'C')}")
    views = cameras.batch
    if len(views) > 1:
        cameras = cameras.reshape(-1)

    constant = gaussians.sh.shape[-2] == 1
    if batch or not (backend == "nvrtc" and constant):
        flat = {name: _flatten_batch(tensor, len(batch)) for name, tensor in tensors.items()}
    else:
        flat = tensors
    items, shape = math.prod(batch), (flat["means"], flat["quats"], flat["log_scales"], flat["opacity_logits"])
    if backend == "nvrtc":
        colors = flat["sh"] if constant else _colors(flat["sh"], flat["means"], cameras)
        behind = None
        if background is not None and not (torch.is_grad_enabled() and background.requires_grad):
            behind = background.detach().to(colors).expand(*views, 3).reshape(-1, 3) if background.dim() > 1 else background
            behind, background = behind.to(colors).contiguous(), None
        drawn = nvrtc_backend.draw(*shape, colors, cameras, items, statistics, harmonics=constant, background=behind)
    else:
        draw = {"gsplat": gsplat_backend.draw, "numba": numba_backend.draw, "torch": torch_backend.draw}[backend]
        drawn = draw(*shape, _colors(flat["sh"], flat["means"], cameras), cameras, items, statistics)
    color, alpha, depth = drawn if len(views) == 1 else (x.reshape(*views, *x.shape[1:]) for x in drawn)
    if background is not None:
        color = color + (1 - alpha)[..., None] * background.to(color)[..., None, None, :]
    return Render(color, alpha, depth)


def _flatten_batch(tensor: Tensor, dims: int) -> Tensor:  # (*batch, ...) -> (B, ...), or (1, ...) where all items share it
    if dims == 0:
        return tensor[None]
    if all(tensor.stride(i) == 0 or tensor.shape[i] == 1 for i in range(dims)):
        return tensor[(0,) * dims][None]
    return tensor.flatten(0, dims - 1)


def _colors(
    sh: Tensor,  # (B or 1, N, K, 3)
    means: Tensor,  # (B or 1, N, 3)
    cameras: Cameras,  # (V,)
) -> Tensor:  # (B or 1, N, 3); (V, N, 3) where they depend on the view
    """Colours of the Gaussians as seen from each camera."""
    count = sh.shape[-2]
    if count == 1:
        return (sh[..., 0, :] * SH_C0 + 0.5).clamp_min(0)
    if count > 16:
        raise InputError(f"gaussians: {count} SH coefficients, view-dependent colour goes up to degree 3 (16)")
    items = max(len(sh), len(means))
    centres = cameras.positions.reshape(items, -1, 1, 3)
    values = harmonics.basis(torch.nn.functional.normalize(means[:, None] - centres, dim=-1), count)
    color = torch.einsum("bcnk,bnkd->bcnd", values, sh.expand(items, *sh.shape[1:]))
    return (color + 0.5).clamp_min(0).flatten(0, 1)
