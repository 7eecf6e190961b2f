"""3D Gaussian Splatting's .ply: binary, float32, raw attributes, one file a moment.

Splat files keep the frame of the photogrammetry that 3DGS started from, Y down and Z forward. Ours is Y up: the two differ by
half a turn about X, (x, y, z) -> (x, -y, -z), done here on positions, rotations and spherical harmonics.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..cameras import quaternion_multiply
from ..files import InputError, atomic_path
from ..gaussians import Gaussians
from ..scene import Scene4D, frame_times

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2", "ushort": "<u2", "uint16": "<u2",
    "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4", "float": "<f4", "float32": "<f4", "double": "<f8",
    "float64": "<f8",
}  # fmt: skip
#: A header longer than this is not one.
_HEADER_BYTES = 1 << 16
_SHAPE = ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
_REQUIRED = [*"xyz", *(f"f_dc_{i}" for i in range(3)), *_SHAPE]


def half_turn(gaussians: Gaussians) -> Gaussians:
    """Gaussians turned by 180 degrees about X: our frame to the splat files' and back.

    Under (y, z) -> (-y, -z) each real spherical harmonic of degree l and order m keeps itself up to the sign
    (-1)^(l + m), negated for the sine orders m < 0.
    """
    flip = torch.tensor([1.0, -1.0, -1.0], dtype=gaussians.means.dtype, device=gaussians.device)
    turn = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=gaussians.quats.dtype, device=gaussians.device)
    degree = math.isqrt(gaussians.sh.shape[-2]) - 1
    signs = [(-1) ** (order + abs(m)) * (-1 if m < 0 else 1) for order in range(degree + 1) for m in range(-order, order + 1)]
    return Gaussians(
        means=gaussians.means * flip,
        quats=quaternion_multiply(turn.expand_as(gaussians.quats), gaussians.quats),
        log_scales=gaussians.log_scales,
        opacity_logits=gaussians.opacity_logits,
        sh=gaussians.sh * torch.tensor(signs, dtype=gaussians.sh.dtype, device=gaussians.device)[:, None],
    )


def write_ply(path: str | os.PathLike[str], gaussians: Gaussians) -> None:
    """Write unbatched Gaussians (N, ...): log scales, logit opacities, quaternions wxyz, harmonics channel by channel."""
    data = encode(gaussians)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def encode(gaussians: Gaussians) -> bytes:
    """What :func:`write_ply` writes."""
    if gaussians.means.dim() != 2:
        raise ValueError(f"a splat file takes one set of Gaussians, not a batch of shape {tuple(gaussians.means.shape[:-2])}")
    turned = half_turn(gaussians.detach().to("cpu", torch.float32))
    rest = turned.sh[:, 1:].transpose(1, 2).reshape(len(turned), 3 * (turned.sh.shape[1] - 1))
    columns = [
        turned.means, torch.zeros_like(turned.means), turned.sh[:, 0], rest, turned.opacity_logits[:, None], turned.log_scales,
        torch.nn.functional.normalize(turned.quats, dim=-1),
    ]  # fmt: skip
    names = [*"xyz", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)), *(f"f_rest_{i}" for i in range(rest.shape[1]))]
    names += _SHAPE
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(turned)}"]
    header += [f"property float {name}" for name in names] + ["end_header", ""]
    return "\n".join(header).encode("ascii") + torch.cat(columns, 1).numpy().astype("<f4").tobytes()


def is_splat_ply(path: str | os.PathLike[str]) -> bool:
    """Whether a ply file holds 3D Gaussians, compressed ones included, and not a mesh or plain points."""
    with open(path, "rb") as file:
        head = file.read(_HEADER_BYTES).partition(b"end_header")[0]
    names = {line.split()[-1] for line in head.splitlines() if line.startswith(b"property")}
    return {b"opacity", b"scale_0"} <= names or b"packed_position" in names


def read_ply(path: str | os.PathLike[str]) -> Gaussians:
    """Read Gaussians (N, ...) into our Y-up frame. No more memory is taken than the file is long.

    Raises:
        InputError: for a missing, truncated or foreign file, or non-finite values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such ply file, check the path")
    return decode(path.read_bytes(), str(path))


def decode(data: bytes, path: str) -> Gaussians:
    """:func:`read_ply` of a file's content; ``path`` is for messages."""
    end = data.find(b"end_header", 0, _HEADER_BYTES)
    newline = data.find(b"\n", end, _HEADER_BYTES)
    if not data.startswith(b"ply") or end < 0 or newline < 0:
        raise InputError(f"{path}: not a ply file, choose a 3D Gaussian splat .ply")
    count, layout = _parse_header(path, data[:end])
    missing = count * layout.itemsize - (len(data) - newline - 1)
    if missing > 0:
        raise InputError(f"{path}: cut short by {missing} bytes, export or copy it again")
    table = np.frombuffer(data, layout, count, newline + 1)
    rest = sorted((n for n in layout.names or () if re.fullmatch(r"f_rest_\d+", n)), key=lambda n: int(n[7:]))
    coefficients = 1 + len(rest) // 3
    if len(rest) % 3 or math.isqrt(coefficients) ** 2 != coefficients:
        raise InputError(f"{path}: {len(rest)} f_rest properties, which fit no degree of spherical harmonics; export it again")

    def columns(names: list[str]) -> Tensor:
        return torch.from_numpy(np.stack([table[n].astype(np.float32) for n in names], 1))

    sh = columns(["f_dc_0", "f_dc_1", "f_dc_2"])[:, None]
    if rest:
        sh = torch.cat([sh, columns(rest).reshape(count, 3, coefficients - 1).transpose(1, 2)], 1)
    gaussians = Gaussians(
        means=columns([*"xyz"]),
        quats=columns([f"rot_{i}" for i in range(4)]),
        log_scales=columns([f"scale_{i}" for i in range(3)]),
        opacity_logits=columns(["opacity"])[:, 0],
        sh=sh,
    )
    for name, value in gaussians.tensors().items():
        # Some writers store full opacity and flat splats as infinities.
        if value.isnan().any() or (name in ("means", "quats", "sh") and not value.isfinite().all()):
            raise InputError(f"{path}: holds NaN or infinite {name}, repair or export it again")
    return half_turn(gaussians.map(lambda t: t.clamp(-1e30, 1e30).contiguous()))


def _parse_header(path: str, head: bytes) -> tuple[int, np.dtype]:
    """Number and record layout of the vertices."""
    foreign = f"{path}: a ply file, but not of 3D Gaussians"
    elements: list[tuple[str, int]] = []
    fields: list[tuple[str, str]] = []
    for line in head.decode("ascii", "replace").splitlines()[1:]:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format" and words[1:] != ["binary_little_endian", "1.0"]:
            raise InputError(f"{path}: format {' '.join(words[1:])} is not read, save it as binary little-endian ply")
        if words[0] == "element" and len(words) == 3 and words[2].isdigit():
            elements.append((words[1], int(words[2])))
        elif words[0] == "property" and elements and elements[0][0] == "vertex":
            if len(elements) > 1:
                continue
            if len(words) != 3 or words[1] not in _TYPES or words[2] in dict(fields):
                raise InputError(f"{path}: garbled header line {line.strip()!r}, export it again")
            fields.append((words[2], _TYPES[words[1]]))
    names = {name for name, _ in fields}
    if "chunk" in dict(elements) or "packed_position" in names:
        raise InputError(f"{foreign} in the plain form: it is compressed, save it uncompressed (SuperSplat: .ply)")
    lacking = [n for n in _REQUIRED if n not in names]
    if lacking:
        raise InputError(f"{foreign}: it has no {', '.join(lacking[:4])}; choose a splat .ply (a mesh is opened as an object)")
    if elements[0][1] == 0:
        raise InputError(f"{path}: holds no Gaussians, export it again")
    return elements[0][1], np.dtype(fields)


def write_ply_sequence(
    folder: str | os.PathLike[str], scene: Scene4D, frames: int | None = None, *, name: str = "frame", title: str | None = None
) -> list[Path]:
    """Write a moving scene as a folder of numbered files, frame0000.ply and so on, in constant order, with ``manifest.json``.

    The manifest carries what a player needs: fps, loop, and the pattern, start and count of the frames (version 1 of the 4DGS
    web player's manifest). A number of ``frames`` other than the scene's own resamples it over the same duration.

    Returns:
        The files' paths, in order.
    """
    folder = Path(folder)
    count = scene.frames if frames is None else frames
    names = [f"{name}{i:04}.ply" for i in range(count)]
    manifest = {
        "version": 1,
        "title": title or folder.name,
        "fps": scene.fps * count / scene.frames,
        "loop": scene.loop,
        "frames": {"pattern": f"{name}{{frame:04}}.ply", "start": 0, "count": count},
        "gaussians": len(scene.gaussians),
    }
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for file, tau in zip(names, frame_times(count, scene.loop)):
            with torch.no_grad():
                write_ply(temporary / file, scene.at(tau))
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return [folder / file for file in names]
