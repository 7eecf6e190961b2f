"""PlayCanvas's and SuperSplat's compressed .ply: 16 bytes a Gaussian, in chunks of 256 with the bounds of each.

Positions and log scales take 11, 10 and 11 bits between the chunk's bounds, colours 8 a channel likewise, opacity 8 bits,
rotations the largest entry's index and the other three in 10 bits each, harmonics above degree 0 a byte each in [-4, 4].
Largest errors: positions 1/2046 of the chunk's extent, rotations 0.25 degrees, log scales 1/2046 of the chunk's range, opacity
and colour 1/510 (of the chunk's range of colours), harmonics 1/64. Frame: +Y down, as the plain .ply.

Source: the splat-transform tool's writer and reader, and files checked with it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..files import InputError
from ..gaussians import SH_C0, Gaussians
from .ply import check_count, from_file, opacity_bytes, opacity_of, parse_header, read_element, to_file

#: Gaussians that share their bounds.
CHUNK = 256
_BOUNDED = [*"xyz", *(f"scale_{axis}" for axis in "xyz"), *"rgb"]
_BOUNDS = [f"{end}_{name}" for part in range(3) for end in ("min", "max") for name in _BOUNDED[3 * part : 3 * part + 3]]
_PACKED = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]
#: Bits and shifts of three values in one word.
_THIRDS = ((11, 21), (10, 11), (11, 0))


def encode(gaussians: Gaussians, *, order: Tensor | None = None) -> bytes:
    """The content of a compressed .ply of unbatched Gaussians (N, ...), of harmonics to degree 3.

    Args:
        order: indices ``(N,)`` of the Gaussians as they are to lie in the file; None sorts them by place, since neighbours in
            one chunk are rounded the least. Frames of a sequence need the same order: the first frame's :func:`place_order`.

    Raises:
        InputError: for values that are not finite.
    """
    turned = to_file(gaussians)
    turned = turned.select(place_order(turned.means) if order is None else order.cpu())
    count = len(turned)
    # The last chunk is filled up with its last Gaussian, which leaves its bounds as they are.
    full = np.minimum(np.arange(-(-count // CHUNK) * CHUNK), count - 1)
    color = turned.sh[:, 0] * SH_C0 + 0.5
    values = torch.cat([turned.means, turned.log_scales.clamp(-20, 20), color], 1).numpy()[full].reshape(-1, CHUNK, 9)
    low, high = values.min(1), values.max(1)
    part = ((values - low[:, None]) / np.maximum(high - low, 1e-30)[:, None]).reshape(-1, 9)[:count]
    words = np.empty((count, 4), "<u4")
    words[:, 0] = _pack(part[:, :3])
    words[:, 1] = _pack_rotations(turned.quats.numpy())
    words[:, 2] = _pack(part[:, 3:6])
    shade = np.rint(part[:, 6:] * 255).astype(np.uint32)
    words[:, 3] = shade[:, 0] << 24 | shade[:, 1] << 16 | shade[:, 2] << 8 | opacity_bytes(turned.opacity_logits.numpy())
    bounds = np.stack([low.reshape(-1, 3, 3), high.reshape(-1, 3, 3)], 2)  # (C, attribute, end, axis)
    rest = turned.sh[:, 1:16].transpose(1, 2).reshape(count, -1).numpy()
    header = ["ply", "format binary_little_endian 1.0", f"element chunk {len(bounds)}"]
    header += [*(f"property float {name}" for name in _BOUNDS), f"element vertex {count}"]
    header += [f"property uint {name}" for name in _PACKED]
    if rest.shape[1]:
        header += [f"element sh {count}", *(f"property uchar f_rest_{i}" for i in range(rest.shape[1]))]
    content = [bounds.astype("<f4").tobytes(), words.tobytes()]
    content.append(((rest / 8 + 0.5) * 256).clip(0, 255).astype(np.uint8).tobytes())
    return "\n".join([*header, "end_header", ""]).encode("ascii") + b"".join(content)


def decode(data: bytes, name: str) -> Gaussians:
    """Gaussians (N, ...) of a compressed .ply's content, in our frame; ``name`` is for messages.

    Raises:
        InputError: for a foreign, truncated or damaged file.
    """
    header = parse_header(data, name)
    tables = {element.name: read_element(data, name, header, element) for element in header.elements}
    chunk, vertex = (tables.get(key, np.empty(0)) for key in ("chunk", "vertex"))
    bounds = _BOUNDS if "min_r" in (chunk.dtype.names or ()) else _BOUNDS[:12]
    if not {*bounds} <= {*(chunk.dtype.names or ())} or not {*_PACKED} <= {*(vertex.dtype.names or ())}:
        raise InputError(f"{name}: a compressed ply of a kind that is not known, save it uncompressed")
    count = len(vertex)
    check_count(name, count)
    if any(vertex.dtype[key].kind + str(vertex.dtype[key].itemsize) != "u4" for key in _PACKED) or len(chunk) * CHUNK < count:
        raise InputError(f"{name}: its chunks do not fit its Gaussians, it is damaged; export it again")
    ends = np.stack([chunk[key].astype(np.float32) for key in bounds], 1).reshape(len(chunk), -1, 2, 3)
    mine = np.arange(count) // CHUNK

    def between(part: np.ndarray, attribute: int) -> np.ndarray:  # (N, 3) in [0, 1]
        low, high = ends[mine, attribute, 0], ends[mine, attribute, 1]
        return low * (1 - part) + high * part

    with np.errstate(over="ignore", invalid="ignore"):  # absurd bounds become infinite, and are left out
        word = vertex["packed_color"]
        color = np.stack([word >> 24 & 255, word >> 16 & 255, word >> 8 & 255], 1) / np.float32(255)
        color = between(color, 2) if len(bounds) == 18 else color
        sh = ((color - 0.5) / SH_C0)[:, None]
        if "sh" in tables:
            sh = np.concatenate([sh, _harmonics(tables["sh"], count, name)], 1)
        return from_file(
            name,
            between(_unpack(vertex["packed_position"]), 0),
            _unpack_rotations(vertex["packed_rotation"]),
            between(_unpack(vertex["packed_scale"]), 1),
            opacity_of((word & 255).astype(np.uint8)),
            sh,
        )


def place_order(means: Tensor) -> Tensor:  # (N, 3) -> (N)
    """Indices that put neighbours next to each other: along the Z-order curve through their box, 1024 cells an axis."""
    low, high = means.amin(0), means.amax(0)
    cells = ((means - low) / (high - low).clamp_min(1e-30) * 1023).long()
    code = torch.zeros_like(cells[:, 0])
    for bit in range(10):
        for axis in range(3):
            code |= (cells[:, axis] >> bit & 1) << (3 * bit + axis)
    return code.argsort(stable=True)


def _pack(part: np.ndarray) -> np.ndarray:  # (N, 3) in [0, 1] -> (N) uint32
    columns = [np.rint(part[:, i] * ((1 << bits) - 1)).astype(np.uint32) << shift for i, (bits, shift) in enumerate(_THIRDS)]
    return columns[0] | columns[1] | columns[2]


def _unpack(word: np.ndarray) -> np.ndarray:  # (N) uint32 -> (N, 3) in [0, 1]
    return np.stack([(word >> shift & (1 << bits) - 1) / np.float32((1 << bits) - 1) for bits, shift in _THIRDS], 1)


def _pack_rotations(quats: np.ndarray) -> np.ndarray:  # (N, 4) wxyz, unit -> (N) uint32
    largest = np.abs(quats).argmax(1)
    rows = np.arange(len(quats))
    signed = quats * np.where(quats[rows, largest] < 0, -1, 1)[:, None]
    others = _others(largest)
    steps = np.rint((np.take_along_axis(signed, others, 1) * 0.5**0.5 + 0.5).clip(0, 1) * 1023).astype(np.uint32)
    return largest.astype(np.uint32) << 30 | steps[:, 0] << 20 | steps[:, 1] << 10 | steps[:, 2]


def _unpack_rotations(word: np.ndarray) -> np.ndarray:  # (N) uint32 -> (N, 4) wxyz
    largest = (word >> 30).astype(np.int64)
    three = (np.stack([word >> 20 & 1023, word >> 10 & 1023, word & 1023], 1) / np.float32(1023) - 0.5) * np.float32(2**0.5)
    quats = np.empty((len(word), 4), np.float32)
    np.put_along_axis(quats, _others(largest), three.astype(np.float32), 1)
    quats[np.arange(len(word)), largest] = np.sqrt((1 - (three**2).sum(1)).clip(0))
    return quats


def _others(index: np.ndarray) -> np.ndarray:  # (N) -> (N, 3)
    """The other three of 0 to 3, ascending."""
    return np.array([[j for j in range(4) if j != i] for i in range(4)])[index]


def _harmonics(table: np.ndarray, count: int, name: str) -> np.ndarray:  # (N) records -> (N, K, 3)
    names = [f"f_rest_{i}" for i in range(len(table.dtype.names or ()))]
    if {*names} != {*(table.dtype.names or ())} or len(names) not in (9, 24, 45) or len(table) != count:
        raise InputError(f"{name}: its harmonics do not fit its Gaussians, it is damaged; export it again")
    values = np.stack([table[key].astype(np.float32) for key in names], 1)
    # Each byte stands for the middle of its 1/32, but the outermost for the ends.
    values = np.where(values == 0, 0, np.where(values == 255, 1, (values + 0.5) / 256)) * 8 - 4
    return values.reshape(count, 3, -1).swapaxes(1, 2)
