""".splat: 32 bytes a Gaussian without a header, as antimatter15's web viewer reads them.

Position and standard deviations are float32, colour and opacity bytes, rotations a byte an entry, wxyz, as (b - 128) / 128;
harmonics above degree 0 are left out. Largest errors: rotations 0.9 degrees (twice that in readers that take b / 127.5 - 1),
opacity and colour 1/510; colours outside [0, 1] are clipped. Frame: +Y down, as the .ply. Some viewers draw what comes first in
the file while the rest loads, so others sort by size; here the order stays.
"""

from __future__ import annotations

import numpy as np

from ..files import InputError
from ..gaussians import Gaussians
from .ply import check_count, color_bytes, color_of, from_file, opacity_bytes, opacity_of, to_file

_RECORD = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 3), ("opacity", "u1"), ("quat", "u1", 4)])


def encode(gaussians: Gaussians) -> bytes:
    """The content of a .splat of unbatched Gaussians (N, ...).

    Raises:
        InputError: for values that are not finite.
    """
    turned = to_file(gaussians)
    records = np.empty(len(turned), _RECORD)
    records["mean"] = turned.means.numpy()
    records["scale"] = turned.log_scales.clamp(-80, 80).exp().numpy()
    records["color"] = color_bytes(turned.sh[:, 0].numpy())
    records["opacity"] = opacity_bytes(turned.opacity_logits.numpy())
    records["quat"] = np.rint(turned.quats.numpy() * 128 + 128).clip(0, 255)
    return records.tobytes()


def decode(data: bytes, name: str) -> Gaussians:
    """Gaussians (N, ...) of a .splat's content, in our frame; ``name`` is for messages.

    Raises:
        InputError: for a truncated or damaged file.
    """
    if len(data) % _RECORD.itemsize:
        raise InputError(f"{name}: not a whole number of 32-byte Gaussians, it is cut short or no .splat; export it again")
    check_count(name, len(data) // _RECORD.itemsize)
    records = np.frombuffer(data, _RECORD)
    with np.errstate(divide="ignore", invalid="ignore"):  # flat ones are read as such, negative scales left out
        log_scales = np.log(records["scale"])
    return from_file(
        name,
        records["mean"],
        (records["quat"].astype(np.float32) - 128) / 128,
        log_scales,
        opacity_of(records["opacity"]),
        color_of(records["color"])[:, None],
    )
