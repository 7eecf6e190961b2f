"""Niantic's .spz: 20 bytes a Gaussian before compression, versions 1 to 4 read, 2, 3 and 4 written.

Positions are 24-bit fixed point, up to 16 of it fraction, log scales steps of 1/16 from -10, opacity a byte, colours bytes over
a little more than [0, 1], rotations three bytes (version 2) or the three smallest entries in 10 bits each (3 and 4), harmonics
above degree 0 a byte each in [-1, 1]. Largest errors: positions 2^-17, rotations 12 degrees (version 2; 1 on average) or 0.25,
log scales 1/32, opacity 1/510, colours 0.004, harmonics 1/256.

Versions 1 to 3 are one gzip stream, 4 is several zstd streams, which Python 3.14 or the package backports.zstd handles.
Readers: ComfyUI 0.33's own and Spark 2 read 1 to 3; three.js 0.187 and Niantic's library 1 to 4; splat-transform 3 and
SuperSplat 2 to 4; PlayCanvas's engine 4 alone. Hence 3 by default.

Frame: the specification says Y up (RUB), but what reads and writes these files mostly takes them as they are, in the .ply's
frame (RDF, Y down): Niantic's own converter, ComfyUI, Spark, three.js, SuperSplat. So that is what is written and, where a file
does not state its axes, read; some writers follow the specification (splat-transform 2.7), hence the readers' option ``up``.
Version 4 states them, for readers that look (Niantic's library built with extensions); versions 2 and 3 cannot without
confusing others. ``axes="rub"`` writes what the specification says.

Source: the specification and library at github.com/nianticlabs/spz.
"""

from __future__ import annotations

import gzip
import importlib
import logging
import struct
import zlib
from typing import Any

import numpy as np

from ..files import InputError
from ..gaussians import Gaussians
from ..packages import problem
from .ply import check_count, check_length, color_bytes, color_of, from_file, opacity_bytes, opacity_of, to_file

log = logging.getLogger(__name__)

VERSIONS = (2, 3, 4)
#: Coordinate systems and their numbers in the extension that states them: x right, y and z as named.
AXES = {"rub": 4, "rdf": 6}
_MAGIC = b"NGSP"
_HEADER = struct.Struct("<4sIIBBBB")
#: Version 4: number of streams in the header's last byte, then where their table lies.
_HEADER_4 = struct.Struct("<4sIIBBBBI12x")
#: The extension (Adobe's) that states the coordinate system, and the flag that there are extensions.
_AXES_EXTENSION, _HAS_EXTENSIONS = 0xADBE0003, 2
_COLOR_SCALE = 0.15
_FRACTION_BITS = 16
#: Nothing sound unpacks to more than this many times its size, a little file aside.
_RATIO, _LITTLE = 16, 1 << 20
#: Bytes of extensions that are looked at.
_EXTENSIONS = 1 << 12


def encode(gaussians: Gaussians, *, version: int = 3, axes: str = "rdf") -> bytes:
    """The content of a .spz of unbatched Gaussians (N, ...), of harmonics to degree 3.

    Args:
        version: 2, 3 or 4, see above.
        axes: "rdf", Y down as in a .ply, or "rub", Y up.

    Raises:
        InputError: for values that are not finite or too far away, and where zstd is missing for version 4.
        ValueError: for another version or axes.
    """
    if version not in VERSIONS or axes not in AXES:
        raise ValueError(f"spz: version {version} with axes {axes!r}, choose of {VERSIONS} and {', '.join(AXES)}")
    turned = to_file(gaussians, turn=axes == "rdf")
    means, quats = turned.means.numpy(), turned.quats.numpy()[:, [1, 2, 3, 0]]
    extent = float(np.abs(means).max(initial=0))
    fraction = next((bits for bits in range(_FRACTION_BITS, -1, -1) if extent * 2**bits < (1 << 23) - 1), None)
    if fraction is None:
        raise InputError(f"scene: Gaussians {extent:.0f} units away, farther than .spz holds; move or crop it, or choose .ply")
    fixed = np.rint(means.astype(np.float64) * 2**fraction).astype("<i4")
    rest = turned.sh[:, 1:16].reshape(len(means), -1).numpy()
    streams = [
        fixed.view(np.uint8).reshape(-1, 4)[:, :3].tobytes(),
        opacity_bytes(turned.opacity_logits.numpy()).tobytes(),
        color_bytes(turned.sh[:, 0].numpy(), _COLOR_SCALE).tobytes(),
        np.rint((turned.log_scales.numpy().clip(-10, 6) + 10) * 16).clip(0, 255).astype(np.uint8).tobytes(),
        (_first_three(quats) if version == 2 else _smallest_three(quats)).tobytes(),
        (np.rint(rest * 128) + 128).clip(0, 255).astype(np.uint8).tobytes(),
    ]
    degree = {0: 0, 9: 1, 24: 2, 45: 3}[rest.shape[1]]
    if version < 4:
        header = _HEADER.pack(_MAGIC, version, len(means), degree, fraction, 0, 0)
        return gzip.compress(header + b"".join(streams), 9, mtime=0)
    zstd = _zstd("version 4 of .spz")
    packed = [(zstd.compress(stream, 12), len(stream)) for stream in streams if stream]
    stated = struct.pack("<III", _AXES_EXTENSION, 4, AXES[axes]) if axes != "rub" else b""
    flags, table = _HAS_EXTENSIONS if stated else 0, _HEADER_4.size + len(stated)
    header = _HEADER_4.pack(_MAGIC, version, len(means), degree, fraction, flags, len(packed), table)
    sizes = b"".join(struct.pack("<QQ", len(stream), length) for stream, length in packed)
    return header + stated + sizes + b"".join(stream for stream, _ in packed)


def decode(data: bytes, name: str, *, axes: str | None = None) -> Gaussians:
    """Gaussians (N, ...) of a .spz's content, in our frame; ``name`` is for messages. Where no axes are stated, a note says so.

    Args:
        axes: of :data:`AXES`, of a file that does not state its own; as a .ply's where None.

    Raises:
        InputError: for a foreign, truncated or damaged file, or one that unpacks to far more than it should.
    """
    if data[:2] == b"\x1f\x8b":
        version, count, degree, fraction, streams, extensions = _unpack_gzip(data, name)
    elif data[:4] == _MAGIC:
        version, count, degree, fraction, streams, extensions = _unpack_zstd(data, name)
    else:
        raise InputError(f"{name}: not a .spz file, check what it is and name it so")
    means, opacity, color, scale, quats, rest = streams
    if version == 1:
        places = means.view("<f2").astype(np.float32).reshape(-1, 3)
    else:
        words = np.zeros((3 * count, 4), np.uint8)
        words[:, 1:] = means.reshape(-1, 3)
        # In the upper three bytes the sign is where it belongs.
        places = (words.view("<i4").reshape(-1, 3) >> 8) * np.float32(2.0**-fraction)
    dc = color_of(color.reshape(-1, 3), _COLOR_SCALE)[:, None]
    harmonics = (rest.reshape(count, -1, 3).astype(np.float32) - 128) / 128
    system = _stated_axes(extensions, name)
    if system and system not in AXES.values():
        raise InputError(f"{name}: stored in coordinate system {system}, which is not read; save it as .ply")
    if not system and axes is not None:
        system = AXES[axes]
    if not system:
        # What is written, by whom, is half the one and half the other: nothing in the file can tell.
        log.info("%s: .spz does not say which way is up, read as a .ply; if it stands on its head, ask for up -y", name)
    log.debug("%s: spz version %d, %d Gaussians of degree %d, coordinate system %d", name, version, count, degree, system)
    return from_file(
        name,
        places,
        _from_first_three(quats.reshape(-1, 3)) if version < 3 else _from_smallest_three(quats.view("<u4")),
        scale.reshape(-1, 3).astype(np.float32) / 16 - 10,
        opacity_of(opacity),
        np.concatenate([dc, harmonics], 1),
        turn=system != AXES["rub"],
    )


_Unpacked = tuple[int, int, int, int, list[np.ndarray], bytes]


def _unpack_gzip(data: bytes, name: str) -> _Unpacked:
    inflate = zlib.decompressobj(31)
    try:
        head = inflate.decompress(data, _HEADER.size)
        if len(head) < _HEADER.size or head[:4] != _MAGIC:
            raise InputError(f"{name}: gzip, but not of a .spz; check what it is and name it so")
        _, version, count, degree, fraction, flags, _ = _HEADER.unpack(head)
        sizes = _stream_sizes(name, version, (1, 2, 3), count, degree, fraction, len(data))
        content = inflate.decompress(inflate.unconsumed_tail, sum(sizes) + _EXTENSIONS)
    except zlib.error:
        raise InputError(f"{name}: damaged, export or copy it again") from None
    check_length(name, sum(sizes), len(content))
    ends = np.cumsum(sizes)
    streams = np.split(np.frombuffer(content, np.uint8, int(ends[-1])), ends[:-1])
    return version, count, degree, fraction, streams, content[ends[-1] :] if flags & _HAS_EXTENSIONS else b""


def _unpack_zstd(data: bytes, name: str) -> _Unpacked:
    check_length(name, _HEADER_4.size, len(data))
    _, version, count, degree, fraction, flags, number, table = _HEADER_4.unpack_from(data)
    sizes = _stream_sizes(name, version, (4,), count, degree, fraction, len(data))
    start = table + 16 * number
    check_length(name, start, len(data))
    zstd = _zstd(name)
    streams, entries = [], list(struct.iter_unpack("<QQ", data[table:start]))
    for size in sizes:
        if not size:
            streams.append(np.empty(0, np.uint8))
            continue
        stored, unpacked = entries.pop(0) if entries else (0, 0)
        check_length(name, start + stored, len(data))
        try:
            # Bounded: a stream that holds more than it states is cut off.
            content = zstd.ZstdDecompressor().decompress(data[start : start + stored], size) if unpacked == size else b""
        except (zstd.ZstdError, ValueError, MemoryError):
            content = b""
        if len(content) != size:
            raise InputError(f"{name}: damaged, export or copy it again")
        streams.append(np.frombuffer(content, np.uint8))
        start += stored
    return version, count, degree, fraction, streams, data[_HEADER_4.size : table] if flags & _HAS_EXTENSIONS else b""


def _stream_sizes(
    name: str, version: int, versions: tuple[int, ...], count: int, degree: int, fraction: int, length: int
) -> list[int]:
    """Bytes of positions, opacities, colours, scales, rotations and harmonics; refuses what such a file cannot hold."""
    if version not in versions:
        raise InputError(f"{name}: version {version} of .spz, where 1 to 4 are read; save it as version 3, or as .ply")
    check_count(name, count)
    each = [6 if version == 1 else 9, 1, 3, 3, 3 if version < 3 else 4, 3 * ((degree + 1) ** 2 - 1)]
    if degree > 4 or fraction > 23 or count * sum(each) > _RATIO * length + _LITTLE:
        raise InputError(f"{name}: its header promises what {length} bytes cannot hold, it is damaged; export it again")
    return [count * size for size in each]


def _stated_axes(extensions: bytes, name: str) -> int:
    """The coordinate system's number among records of type, length and value; 0 where none is stated."""
    start = 0
    while start + 8 <= len(extensions):
        kind, length = struct.unpack_from("<II", extensions, start)
        if kind == _AXES_EXTENSION and length == 4 and start + 12 <= len(extensions):
            return struct.unpack_from("<I", extensions, start + 8)[0]
        start += 8 + length
    return 0


def _zstd(what: str) -> Any:
    for module in ("compression.zstd", "backports.zstd"):
        if not problem(module):
            return importlib.import_module(module)
    raise InputError(f"{what}: needs zstd, which Python 3.14 or `pip install backports.zstd` brings; or use version 3 of .spz")


def _first_three(quats: np.ndarray) -> np.ndarray:  # (N, 4) xyzw, unit -> (N, 3) uint8
    signed = quats[:, :3] * np.where(quats[:, 3:] < 0, -1, 1)
    return np.rint(signed * 127.5 + 127.5).clip(0, 255).astype(np.uint8)


def _from_first_three(steps: np.ndarray) -> np.ndarray:  # (N, 3) uint8 -> (N, 4) wxyz
    three = steps / np.float32(127.5) - 1
    return np.concatenate([np.sqrt((1 - (three**2).sum(1, keepdims=True)).clip(0)), three], 1)


#: The entries that are stored, by the index of the largest, in the order of their bits from above.
_STORED = np.array([[j for j in range(4) if j != i] for i in range(4)])


def _smallest_three(quats: np.ndarray) -> np.ndarray:  # (N, 4) xyzw, unit -> (N) uint32
    largest = np.abs(quats).argmax(1)
    signed = quats * np.where(quats[np.arange(len(quats)), largest] < 0, -1, 1)[:, None]
    three = np.take_along_axis(signed, _STORED[largest], 1)
    steps = np.rint(np.abs(three) * (511 * 2**0.5)).clip(0, 511).astype(np.uint32) | (three < 0).astype(np.uint32) << 9
    return (largest.astype(np.uint32) << 30 | steps[:, 0] << 20 | steps[:, 1] << 10 | steps[:, 2]).astype("<u4")


def _from_smallest_three(words: np.ndarray) -> np.ndarray:  # (N) uint32 -> (N, 4) wxyz
    largest = (words >> 30).astype(np.int64)
    parts = np.stack([words >> 20, words >> 10, words], 1) & 1023
    three = (parts & 511) * np.where(parts >> 9, -1, 1) * np.float32(0.5**0.5 / 511)
    quats = np.empty((len(words), 4), np.float32)
    np.put_along_axis(quats, _STORED[largest], three.astype(np.float32), 1)
    quats[np.arange(len(words)), largest] = np.sqrt((1 - (three**2).sum(1)).clip(0))
    return quats[:, [3, 0, 1, 2]]
