"""What this machine uses for what, and what would make it faster or better: one screen."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

import torch

from ..fit.estimate import process_memory_mb
from ..metrics.window_ssim import SOURCE
from ..packages import problem
from ..priors.models import COMMAND, find, known_models, models_folders
from ..render import available_backends, resolve_backend
from ..render import mesh as meshes
from ..render.gsplat_backend import why_not as why_not_gsplat
from ..render.numba_backend import why_not as why_not_numba
from ..render.nvrtc.backend import why_not as why_not_nvrtc
from ..render.nvrtc.compiler import cache_folder, compiles
from .report import device_name, versions
from .session import prior_device, resolve_device

#: Optional packages: what to install, and what each opens.
OPTIONAL = {
    "numba": ("numba", "Gaussians drawn 20 times faster on the CPU"),
    "rembg": ('"rembg[cpu]"', "backgrounds of any kind removed; without it those of one colour"),
    "cv2": ("opencv-python-headless", "optical flow for --flow dis"),
    "DracoPy": ("DracoPy", "models with Draco's compression"),
    "meshopt": ("meshopt", "models with meshopt's compression"),
    "pxr": ("usd-core", "USD and USDZ in and out"),
    "collada": ("pycollada", "DAE models"),
    "skimage": ("scikit-image", "triangles around splats, and metrics"),
    "torchmetrics": ("torchmetrics", "metrics"),
}


def lines() -> list[str]:
    """What to print, a line each: the machine, what computes what, and what would help."""
    device = resolve_device("auto")
    place = torch.device(device)
    found = versions()
    rows = [
        ("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} processor cores, {_memory()}"),
        ("programs", f"Anchor4D {found['anchor4d']}, Python {found['python']}, PyTorch {found['torch']}"),
        ("graphics card", _card()),
        ("fits", f"on the CPU, {torch.get_num_threads()} threads" if device == "cpu" else f"on {device_name(device)}"),
        ("Gaussians", _drawn(place)),
        ("meshes", f"drawn by {meshes.resolve_backend('auto', place)}"),
        ("kernels", _kernels(place)),
        ("priors", f"on {prior_device(device)}; small ones on {prior_device(device, small=True)}"),
        ("models", _models()),
        ("packages", _packages()),
    ]
    helps = advice(device)
    width = max(len(name) for name, _ in rows)
    said = [f"{name:{width}}  {text}" for name, text in rows]
    return [*said, "", *(helps or ["nothing known would make it faster"])]


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30  # pyright: ignore[reportAttributeAccessIssue]
    except (AttributeError, ValueError, OSError):  # Windows
        return f"this process holds {process_memory_mb(torch.device('cpu')) / 1024:.1f} GB"
    return f"{total:.0f} GB of memory"


def _card() -> str:
    if not torch.cuda.is_available():
        return "Apple's, by MPS" if torch.backends.mps.is_available() else "none that this PyTorch can use"
    found = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        found.append(f"{torch.cuda.get_device_name(i)}, {total / 2**30:.0f} GB of which {free / 2**30:.0f} are free")
    return "; ".join(found)


def _drawn(place: torch.device) -> str:
    on_a_card = {"nvrtc": why_not_nvrtc, "gsplat": why_not_gsplat}
    reasons = {"numba": why_not_numba} if place.type == "cpu" else on_a_card
    found = available_backends(place)
    others = [f"{name}: {why(place)}" for name, why in reasons.items() if name not in found]
    return f"drawn by {resolve_backend('auto', place)}; not by {'; '.join(others)}" if others else f"drawn by {found[0]}"


def _kernels(place: torch.device) -> str:
    folder = cache_folder()
    kept = f"kept in {folder}" if folder is not None else "compiled anew in each process: no folder of this user's own"
    own = "our own for image losses, motion and norms, " if compiles(SOURCE, place) else "PyTorch's for losses and motion, "
    return own + kept


def _models() -> str:
    there, all_ = [model.name for model in known_models() if model.found()], known_models()
    return f"the bundled ones, and of {len(all_)} in {COMMAND} list: {', '.join(there) or 'none'} ({models_folders()[0]})"


def _packages() -> str:
    missing = [name for name in OPTIONAL if problem(name)]
    there = [name for name in OPTIONAL if name not in missing]
    return f"{', '.join(there) or 'none'} of the optional ones" + (f"; not {', '.join(missing)}" if missing else "")


def advice(device: str) -> list[str]:
    """What would make fits on a device faster or better, each with the command or the place."""
    pip = f'"{sys.executable}" -m pip install'
    said = []
    if device == "cpu" and _driver():
        said.append(
            "faster: an NVIDIA driver is here, but this PyTorch is built for the CPU; choose a CUDA build on pytorch.org"
        )
    if device != "cpu" and resolve_backend("auto", device) == "torch":
        said.append(f"faster: our kernels do not run on this card: {why_not_nvrtc(torch.device(device))}")
    for name, (package, what) in OPTIONAL.items():
        if (name != "numba" or device == "cpu") and (reason := problem(name)):
            kind = "faster" if name == "numba" else "better"
            said.append(f"{kind}: {what}: {pip} {package}" + ("" if reason == "is not installed" else f" ({name} {reason})"))
    if cache_folder() is None:
        said.append("faster: make the user's cache folder writable for this user alone, so that compiled kernels are kept")
    if device != "cpu" and find("zero123-xl") is None:
        said.append(f"better: a prior for unseen sides: {COMMAND} get zero123-xl")
    return said


def _driver() -> bool:
    """Whether NVIDIA's driver is on this machine, whatever PyTorch was built for."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
