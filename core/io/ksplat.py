""".ksplat of mkkellogg's GaussianSplats3D, version 0.1, read only: levels 0 (float32), 1 (half) and 2 (half, bytes).

A header of 4096 bytes, one of 1024 a section, then the sections: where level is 1 or 2, positions are 16-bit offsets from the
centre of the Gaussian's bucket. Harmonics lie band by band, each channel by channel. Frame: +Y down, as the .ply.
"""

from __future__ import annotations

import numpy as np

from ..files import InputError
from ..gaussians import Gaussians
from .ply import check_count, check_length, color_of, from_file, opacity_of

_HEADER, _SECTION = 4096, 1024
_FILE = np.dtype(
    {
        "names": ["major", "minor", "sections", "count", "level", "low", "high"],
        "formats": ["u1", "u1", "<u4", "<u4", "<u2", "<f4", "<f4"],
        "offsets": [0, 1, 4, 16, 20, 36, 40],
        "itemsize": _HEADER,
    }
)
_PART = np.dtype(
    {
        "names": ["count", "room", "bucket", "buckets", "block", "stored", "range", "full", "partial", "degree"],
        "formats": ["<u4", "<u4", "<u4", "<u4", "<f4", "<u2", "<u4", "<u4", "<u4", "<u2"],
        "offsets": [0, 4, 8, 12, 16, 20, 24, 32, 36, 40],
        "itemsize": _SECTION,
    }
)
#: By level: types of positions, scales and rotations, and harmonics; and what positions are divided by unless stated.
_LEVELS = {0: ("<f4", "<f4", "<f4", 1), 1: ("<u2", "<f2", "<f2", 32767), 2: ("<u2", "<f2", "u1", 32767)}


def decode(data: bytes, name: str) -> Gaussians:
    """Gaussians (N, ...) of a .ksplat's content, in our frame; ``name`` is for messages.

    Raises:
        InputError: for a foreign, truncated or damaged file.
    """
    check_length(name, _HEADER, len(data))
    head = np.frombuffer(data, _FILE, 1)[0]
    level = int(head["level"])
    if head["major"] != 0 or head["minor"] < 1 or level not in _LEVELS:
        raise InputError(f"{name}: not a .ksplat of version 0.1 and level 0, 1 or 2; save it as .ply or .spz")
    base = _HEADER + _SECTION * int(head["sections"])
    check_length(name, base, len(data))
    # Files whose header leaves the range out hold harmonics in [-1.5, 1.5].
    span = (float(head["low"]) or -1.5, float(head["high"]) or 1.5)
    parts, total = [], 0
    for header in np.frombuffer(data, _PART, int(head["sections"]), _HEADER):
        section = {key: header[key].item() for key in _PART.names or ()}
        start = base + 4 * section["partial"] + section["stored"] * section["buckets"]
        if section["degree"] > 3 or section["count"] > section["room"]:
            raise InputError(f"{name}: garbled section, it is damaged; export it again")
        record = _record(level, section["degree"])
        check_length(name, start + record.itemsize * section["room"], len(data))
        total += section["count"]
        if section["count"]:
            parts.append(_section(data, name, base, start, record, level, section, span))
        base = start + record.itemsize * section["room"]
    check_count(name, total)
    coefficients = max(part[4].shape[1] for part in parts)
    for part in parts:
        part[4] = np.pad(part[4], ((0, 0), (0, coefficients - part[4].shape[1]), (0, 0)))
    means, quats, log_scales, opacity_logits, sh = (np.concatenate([part[i] for part in parts]) for i in range(5))
    return from_file(name, means, quats, log_scales, opacity_logits, sh)


def _record(level: int, degree: int) -> np.dtype:
    place, other, harmonic, _ = _LEVELS[level]
    fields = [("mean", place, 3), ("scale", other, 3), ("quat", other, 4), ("color", "u1", 3), ("opacity", "u1")]
    return np.dtype([*fields, ("sh", harmonic, 3 * ((degree + 1) ** 2 - 1))])


def _section(
    data: bytes, name: str, base: int, start: int, record: np.dtype, level: int, section: dict, span: tuple[float, float]
) -> list[np.ndarray]:
    count, degree = section["count"], section["degree"]
    table = np.frombuffer(data, record, count, start)
    means = table["mean"].astype(np.float32)
    with np.errstate(all="ignore"):  # what is not finite is left out, flat Gaussians aside
        if level:
            steps = section["range"] or _LEVELS[level][3]
            means = (means - steps) * np.float32(section["block"] / 2 / steps) + _centres(data, name, base, section)
        log_scales = np.log(table["scale"].astype(np.float32))
        values = table["sh"].astype(np.float32)
        if level == 2:
            values = values / 255 * (span[1] - span[0]) + span[0]
    bands = [values[:, 3 * (band**2 - 1) : 3 * ((band + 1) ** 2 - 1)] for band in range(1, degree + 1)]
    rest = [band.reshape(count, 3, -1).swapaxes(1, 2) for band in bands]
    sh = np.concatenate([color_of(table["color"])[:, None], *rest], 1)
    return [means, table["quat"].astype(np.float32), log_scales, opacity_of(table["opacity"]), sh]


def _centres(data: bytes, name: str, base: int, section: dict) -> np.ndarray:  # (count, 3)
    """Each Gaussian's bucket's centre: full buckets first, then partly filled ones, whose lengths are listed before them."""
    if section["stored"] < 12:
        raise InputError(f"{name}: garbled buckets, it is damaged; export it again")
    lengths = np.frombuffer(data, "<u4", section["partial"], base).astype(np.int64)
    stored = np.dtype({"names": ["centre"], "formats": [("<f4", 3)], "offsets": [0], "itemsize": section["stored"]})
    centres = np.frombuffer(data, stored, section["buckets"], base + 4 * section["partial"])["centre"]
    rows = np.arange(section["count"])
    full = section["full"] * section["bucket"]
    index = np.where(
        rows < full,
        rows // max(section["bucket"], 1),
        section["full"] + np.searchsorted(lengths.cumsum(), rows - full, side="right"),
    )
    if index.max() >= len(centres):
        raise InputError(f"{name}: Gaussians outside its buckets, it is damaged; export it again")
    return centres[index]
