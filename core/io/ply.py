"""3D Gaussian Splatting's .ply: binary, float32, raw attributes, one file a moment. And what all splat files share.

Splat files keep the frame of the photogrammetry that 3DGS started from, Y down and Z forward. Ours is Y up: the two differ by
half a turn about X, (x, y, z) -> (x, -y, -z), done here on positions, rotations and spherical harmonics.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import InputError, atomic_path
from ..gaussians import SH_C0, Gaussians, half_turn

#: More Gaussians in one file are refused: nothing here could draw or fit them, and memory stays bounded.
MAX_GAUSSIANS = 1 << 24
_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2", "ushort": "<u2", "uint16": "<u2",
    "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4", "float": "<f4", "float32": "<f4", "double": "<f8",
    "float64": "<f8",
}  # fmt: skip
#: A header longer than this is not one.
_HEADER_BYTES = 1 << 16
_SHAPE = ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
_REQUIRED = [*"xyz", *(f"f_dc_{i}" for i in range(3)), *_SHAPE]


def to_file(gaussians: Gaussians, *, turn: bool = True) -> Gaussians:
    """Unbatched Gaussians (N, ...) as files hold them: float32 on the CPU, unit rotations, +Y down unless not to ``turn``.

    Raises:
        ValueError: for a batch.
        InputError: for values that are not finite; scales and opacities may be infinite.
    """
    if gaussians.means.dim() != 2:
        raise ValueError(f"a splat file takes one set of Gaussians, not a batch of shape {tuple(gaussians.means.shape[:-2])}")
    gaussians = gaussians.detach().to("cpu", torch.float32)
    _check_finite(gaussians, "scene", "fit it again")
    gaussians = replace(gaussians, quats=_normalized(gaussians.quats))
    return half_turn(gaussians) if turn else gaussians


def from_file(
    name: str,
    means: np.ndarray,  # (N, 3)
    quats: np.ndarray,  # (N, 4) wxyz
    log_scales: np.ndarray,  # (N, 3)
    opacity_logits: np.ndarray,  # (N)
    sh: np.ndarray,  # (N, K, 3)
    *,
    turn: bool = True,
) -> Gaussians:
    """Gaussians of a file's values, in our frame; harmonics beyond degree 3 are left out.

    Raises:
        InputError: for values that are not finite; scales and opacities may be infinite, as some writers store flat splats
            and full opacity.
    """
    columns = (means, quats, log_scales, opacity_logits, sh[:, :16])
    gaussians = Gaussians(*(torch.from_numpy(np.require(column, np.float32, ["C", "W"])) for column in columns))
    _check_finite(gaussians, name, "repair or export it again")
    gaussians = replace(
        gaussians,
        quats=_normalized(gaussians.quats),
        log_scales=gaussians.log_scales.clamp(-1e30, 1e30),
        opacity_logits=gaussians.opacity_logits.clamp(-1e30, 1e30),
    )
    return half_turn(gaussians) if turn else gaussians


def _check_finite(gaussians: Gaussians, name: str, remedy: str) -> None:
    for key, value in gaussians.tensors().items():
        if value.isnan().any() or (key in ("means", "quats", "sh") and value.isinf().any()):
            raise InputError(f"{name}: holds NaN or infinite {key}, {remedy}")


def _normalized(quats: Tensor) -> Tensor:  # (N, 4)
    """Unit quaternions; no rotation in place of zeros."""
    length = quats.abs().amax(-1, keepdim=True)
    identity = torch.tensor([1.0, 0.0, 0.0, 0.0])
    # Divided by the largest entry first: the squares of very large or small ones would leave float32.
    return torch.nn.functional.normalize(torch.where(length > 0, quats / length.clamp_min(1e-38), identity), dim=-1)


def check_count(name: str, count: int) -> None:
    """Refuses a file of no Gaussians, or of more than :data:`MAX_GAUSSIANS`.

    Raises:
        InputError: for either.
    """
    if count == 0:
        raise InputError(f"{name}: holds no Gaussians, export it again")
    if count > MAX_GAUSSIANS:
        raise InputError(f"{name}: holds {count} Gaussians, more than {MAX_GAUSSIANS}; thin it out in a splat editor first")


def check_length(name: str, expected: int, found: int) -> None:
    """Refuses a file that promises more bytes than it has.

    Raises:
        InputError: if so.
    """
    if expected > found:
        raise InputError(f"{name}: cut short by {expected - found} bytes, export or copy it again")


def color_bytes(sh: np.ndarray, scale: float = SH_C0) -> np.ndarray:  # (N, 3) -> (N, 3) uint8
    """Constant coefficients as bytes of ``scale * dc + 0.5``, clipped to [0, 1]."""
    return np.rint((sh * np.float32(scale) + np.float32(0.5)).clip(0, 1) * 255).astype(np.uint8)


def color_of(values: np.ndarray, scale: float = SH_C0) -> np.ndarray:  # (N, 3) uint8 -> (N, 3)
    """Constant coefficients from :func:`color_bytes`."""
    return (values / np.float32(255) - np.float32(0.5)) / np.float32(scale)


def opacity_bytes(logits: np.ndarray) -> np.ndarray:  # (N) -> (N) uint8
    """Opacities in [0, 1] as bytes."""
    return np.rint(255 / (1 + np.exp(-logits.clip(-30, 30)))).astype(np.uint8)


def opacity_of(values: np.ndarray) -> np.ndarray:  # (N) uint8 -> (N)
    """Logits from :func:`opacity_bytes`; 0 and 255 stand for a quarter of a step inside, where logits are finite."""
    opacity = values.astype(np.float32).clip(0.25, 254.75) / 255
    return np.log(opacity / (1 - opacity))


def write_ply(path: str | os.PathLike[str], gaussians: Gaussians) -> None:
    """Write unbatched Gaussians (N, ...): log scales, logit opacities, quaternions wxyz, harmonics channel by channel.

    Raises:
        InputError: for values that are not finite.
    """
    data = encode(gaussians)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def encode(gaussians: Gaussians) -> bytes:
    """What :func:`write_ply` writes."""
    turned = to_file(gaussians)
    rest = turned.sh[:, 1:].transpose(1, 2).reshape(len(turned), 3 * (turned.sh.shape[1] - 1))
    columns = [
        turned.means, torch.zeros_like(turned.means), turned.sh[:, 0], rest, turned.opacity_logits[:, None], turned.log_scales,
        turned.quats,
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
    """Read Gaussians (N, ...) into our Y-up frame.

    Raises:
        InputError: for a missing, truncated or foreign file, or non-finite values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such ply file, check the path")
    return decode(path.read_bytes(), str(path))


def decode(data: bytes, name: str) -> Gaussians:
    """:func:`read_ply` of a file's content; ``name`` is for messages."""
    elements, start = parse_header(data, name)
    foreign = f"{name}: a ply file, but not of 3D Gaussians"
    if is_compressed(elements):
        raise InputError(f"{foreign} in the plain form: it is compressed, save it uncompressed")
    _, count, layout = elements[0] if elements else ("", 0, np.dtype([]))
    lacking = [n for n in _REQUIRED if n not in (layout.names or ())]
    if lacking or elements[0][0] != "vertex":
        raise InputError(f"{foreign}: it has no {', '.join(lacking[:4])}; choose a splat .ply (a mesh is opened as an object)")
    check_length(name, start + count * layout.itemsize, len(data))
    check_count(name, count)
    table = np.frombuffer(data, layout, count, start)
    rest = sorted((n for n in layout.names or () if re.fullmatch(r"f_rest_\d+", n)), key=lambda n: int(n[7:]))
    coefficients = 1 + len(rest) // 3
    if len(rest) % 3 or math.isqrt(coefficients) ** 2 != coefficients:
        raise InputError(f"{name}: {len(rest)} f_rest properties, which fit no degree of spherical harmonics; export it again")

    def columns(names: list[str]) -> np.ndarray:
        return np.stack([table[n].astype(np.float32) for n in names], 1)

    sh = columns(["f_dc_0", "f_dc_1", "f_dc_2"])[:, None]
    if rest:
        sh = np.concatenate([sh, columns(rest).reshape(count, 3, coefficients - 1).swapaxes(1, 2)], 1)
    with np.errstate(over="ignore"):  # doubles beyond float32 become infinite, and are refused
        return from_file(
            name,
            columns([*"xyz"]),
            columns([f"rot_{i}" for i in range(4)]),
            columns([f"scale_{i}" for i in range(3)]),
            table["opacity"].astype(np.float32),
            sh,
        )


def parse_header(data: bytes, name: str) -> tuple[list[tuple[str, int, np.dtype]], int]:
    """The elements of a ply file, each with its count and record layout, and where the records start.

    Elements from the first with lists on are left out: their records have no fixed size.

    Raises:
        InputError: for a foreign or garbled header.
    """
    end = data.find(b"end_header", 0, _HEADER_BYTES)
    newline = data.find(b"\n", end, _HEADER_BYTES)
    if not data.startswith(b"ply") or end < 0 or newline < 0:
        raise InputError(f"{name}: not a ply file, choose a 3D Gaussian splat .ply")
    elements: list[tuple[str, int, dict[str, str]]] = []
    for line in data[:end].decode("ascii", "replace").splitlines()[1:]:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format" and words[1:] != ["binary_little_endian", "1.0"]:
            raise InputError(f"{name}: format {' '.join(words[1:])} is not read, save it as binary little-endian ply")
        if words[0] == "element" and len(words) == 3 and re.fullmatch("[0-9]{1,18}", words[2]):
            elements.append((words[1], int(words[2]), {}))
        elif words[0] == "property" and elements:
            fields = elements[-1][2]
            if words[1:2] == ["list"] and len(elements) > 1:
                elements.pop()
                break
            if len(words) != 3 or words[1] not in _TYPES or words[2] in fields:
                raise InputError(f"{name}: garbled header line {line.strip()!r}, export it again")
            fields[words[2]] = _TYPES[words[1]]
    return [(element, count, np.dtype(list(fields.items()))) for element, count, fields in elements], newline + 1


def is_compressed(elements: list[tuple[str, int, np.dtype]]) -> bool:
    """Whether a header's elements are those of a compressed .ply."""
    return any(element == "chunk" or "packed_position" in (layout.names or ()) for element, _, layout in elements)
