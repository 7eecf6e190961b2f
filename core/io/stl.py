"""STL, binary and text. Binary files may carry colours of faces, in the manner of VisCAM or of Magics."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np

from ..files import InputError
from ..reading import VARIABLES, limits, read_bytes
from .parts import Part

_TRIANGLE = np.dtype([("normal", "<f4", 3), ("vertices", "<f4", (3, 3)), ("attribute", "<u2")])
_VERTEX = re.compile(rb"vertex\s+(\S+)\s+(\S+)\s+(\S+)", re.IGNORECASE)


def stl_parts(path: Path) -> list[Part]:
    """The triangles of an STL file, each with vertices of its own. Bytes behind the last triangle are ignored.

    Raises:
        InputError: for a damaged, cut or oversized file.
    """
    data = read_bytes(path, "mesh")
    count = struct.unpack_from("<I", data, 80)[0] if len(data) >= 84 else 0
    text = data[:5].lower() == b"solid" and b"facet" in data[:4096].lower()
    if text and 84 + 50 * count != len(data):
        return _text_parts(path, data)
    if len(data) < 84:
        raise InputError(f"{path}: damaged, {len(data)} bytes are less than an STL header; export it again")
    if 84 + 50 * count > len(data):
        raise InputError(f"{path}: cut short, {(len(data) - 84) // 50:,} of {count:,} triangles; export it again")
    _bounded(path, count)
    rows = np.frombuffer(data, _TRIANGLE, count, 84)
    color = _colors(rows["attribute"], data[:80])
    return [Part(rows["vertices"].reshape(-1, 3).astype(np.float64), np.arange(3 * count).reshape(-1, 3), face_color=color)]


def _bounded(path: Path, count: int) -> None:
    most = limits().elements // 3
    if count > most:
        raise InputError(
            f"{path}: {count:,} triangles, more than {most:,}, reduce the mesh or raise {VARIABLES['elements'][0]}"
        )


def _text_parts(path: Path, data: bytes) -> list[Part]:
    _bounded(path, data.lower().count(b"vertex") // 3)
    try:
        points = np.array([match.groups() for match in _VERTEX.finditer(data)], dtype="S32").astype(np.float64)
    except ValueError as error:
        raise InputError(f"{path}: damaged, {' '.join(str(error).split())[:60]}; export it again") from None
    if not len(points) or len(points) % 3:
        raise InputError(f"{path}: damaged, {len(points):,} vertices are no whole triangles; export it again")
    return [Part(points.reshape(-1, 3), np.arange(len(points)).reshape(-1, 3))]


def _colors(attribute: np.ndarray, header: bytes) -> np.ndarray | None:  # (F,) -> (F, 4)
    """Colours of 5 bits a channel. VisCAM: blue lowest, bit 15 where there is one. Magics, known by "COLOR=" in the header: red
    lowest, bit 15 where the object's colour, which stands in the header, holds."""
    levels = np.stack([attribute >> shift & 31 for shift in (0, 5, 10)], -1) / 31
    magics = header.find(b"COLOR=")
    if 0 <= magics <= 70:
        whole = np.frombuffer(header, np.uint8, 4, magics + 6) / 255
        rgb = np.where((attribute & 0x8000 > 0)[:, None], whole[:3], levels)
    elif (attribute & 0x8000).any() and len(attribute) and bool((attribute & 0x8000 > 0).mean() > 0.5):
        rgb = np.where((attribute & 0x8000 > 0)[:, None], levels[:, ::-1], 1.0)
    else:
        return None
    return np.concatenate([rgb, np.ones((len(rgb), 1))], -1)
