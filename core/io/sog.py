"""PlayCanvas's SOG: WebP pictures whose pixels are Gaussians, in a .sog archive or a folder with ``meta.json``.

Positions are 16 bits an axis on a logarithmic scale between the set's bounds, rotations the largest entry's index and the other
three a byte each, log scales and colours a byte an entry of 256 values chosen for the set, opacity a byte, harmonics above
degree 0 an index into a palette of at most 65,536. Largest errors: positions 8e-6 of the span of log(1 + |x|), times 1 + |x|,
rotations 0.8 degrees, opacity 1/510; the rest depends on the set. Version 2 is written, 1 (linear bounds in place of chosen
values) and 2 read.

Frame: the specification has Y up, but its own programs take the numbers as a .ply's, +Y down, and so do we.

Source: the format's specification at developer.playcanvas.com, and files checked with the splat-transform tool.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..files import InputError
from ..gaussians import Gaussians
from ..pictures import PictureBudget
from ..progress import pulse
from ..reading import beside, read_bytes
from .archives import member, opened_zip
from .compressed_ply import place_order
from .ply import check_count, from_file, opacity_bytes, opacity_of, to_file

META = "meta.json"
#: Entries of a row of the palette's picture; harmonics above degree 0 by degree.
_ROW, _COEFFICIENTS = 64, (0, 3, 8, 15)
_PALETTE = 1 << 16
_META_BYTES = 1 << 20
#: A member's bytes by its name.
Content = Callable[[str], bytes]
_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])


def encode(gaussians: Gaussians, *, order: Tensor | None = None) -> bytes:
    """The content of a .sog of unbatched Gaussians (N, ...), of harmonics to degree 3.

    Args:
        order: indices ``(N,)`` of the Gaussians as they are to lie in the file; None sorts them by place, since neighbours pack
            better. Frames of a sequence need the same order.

    Raises:
        InputError: for values that are not finite.
    """
    turned = to_file(gaussians)
    meta, pictures = attributes(turned.select(place_order(turned.means) if order is None else order.cpu()))
    return archive({"version": 2, **meta}, pictures)


def attributes(turned: Gaussians) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What ``meta.json`` says of Gaussians (N, ...) as they are to lie in the file, and the pictures by name."""
    count = len(turned)
    width = picture_width(count)
    means = turned.means.numpy().astype(np.float64)
    logs = np.sign(means) * np.log1p(np.abs(means))
    low, high = logs.min(0), logs.max(0)
    steps = np.rint((logs - low) / np.maximum(high - low, 1e-30) * 65535).astype(np.uint16)
    scales, scale_index = _chosen(turned.log_scales.numpy().clip(-20, 20))
    colors, color_index = _chosen(turned.sh[:, 0].numpy())
    alpha = opacity_bytes(turned.opacity_logits.numpy())[:, None]
    pictures = {
        "means_l": picture(steps & 255, width),
        "means_u": picture(steps >> 8, width),
        "scales": picture(scale_index, width),
        "quats": picture(_packed(turned.quats.numpy()), width),
        "sh0": picture(np.concatenate([color_index, alpha], 1), width),
    }
    meta: dict[str, Any] = {
        "asset": {"generator": "Anchor4D"},
        "count": count,
        "means": {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": scales.tolist(), "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": colors.tolist(), "files": ["sh0.webp"]},
    }
    rest = turned.sh[:, 1:16].numpy()
    if rest.shape[1]:
        palette, label = _palette(rest.reshape(count, -1))
        values, index = _chosen(palette)
        each = rest.shape[1]
        meta["shN"] = {
            "count": len(palette),
            "bands": _COEFFICIENTS.index(each),
            "codebook": values.tolist(),
            "files": ["shN_centroids.webp", "shN_labels.webp"],
        }
        pictures["shN_centroids"] = picture(index.reshape(-1, 3), _ROW * each)
        pictures["shN_labels"] = picture(np.stack([label & 255, label >> 8, 0 * label], 1), width)
    return meta, pictures


def archive(meta: dict[str, Any], pictures: dict[str, bytes]) -> bytes:
    """A .zip of ``meta.json`` and pictures, the same bytes for the same content."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in pictures.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.webp"), content)
        archive.writestr(zipfile.ZipInfo(META), json.dumps(meta))
    return file.getvalue()


def picture_width(count: int) -> int:
    """Pixels of a row of the pictures of so many Gaussians."""
    return -(-int(np.ceil(np.sqrt(count))) // 4) * 4


def decode(data: bytes, name: str) -> Gaussians:
    """Gaussians (N, ...) of a .sog's content, in our frame; ``name`` is for messages.

    Raises:
        InputError: for a foreign or damaged file.
    """
    with contents(data, name) as content:
        return _decoded(content, name)


@contextmanager
def contents(data: bytes, name: str) -> Iterator[Content]:
    """Members of an archive beside its ``meta.json``, by name.

    Raises:
        InputError: for what is no such archive.
    """
    with opened_zip(io.BytesIO(data), name, "SOG pictures") as archive:
        members = {info.filename: info for info in archive.infolist()}
        # Some programs pack the folder, not what is in it.
        at = min((entry for entry in members if entry.rsplit("/", 1)[-1] == META), key=len, default=None)
        if at is None:
            raise InputError(f"{name}: a .zip without {META}, no SOG; export it again")
        folder = at[: -len(META)]

        def content(entry: str) -> bytes:
            if folder + entry not in members:
                raise InputError(f"{name}: lacks {entry[:80]}, which {META} names; copy or export it again")
            return member(archive, members[folder + entry], name)

        yield content


def read_folder(path: Path) -> Gaussians:
    """Gaussians (N, ...) of a folder that holds a ``meta.json`` and the pictures it names, see :func:`decode`.

    Raises:
        InputError: for a foreign or damaged one, or pictures outside the folder.
    """

    def content(entry: str) -> bytes:
        found = beside(path / META, entry)
        if found is None:
            raise InputError(f"{path}: lacks {entry[:80]}, which {META} names; copy or export it again")
        return read_bytes(found, "picture")

    return _decoded(content, str(path))


def is_folder(path: Path) -> bool:
    """Whether a folder holds an unpacked SOG."""
    meta = path / META
    return meta.is_file() and meta.stat().st_size <= _META_BYTES and b'"means"' in meta.read_bytes()


def _decoded(content: Content, name: str) -> Gaussians:
    with damage(name):
        meta = read_meta(content)
        first = meta.get("version") is None
        if not first and meta["version"] != 2:
            raise InputError(f"{name}: version {str(meta['version'])[:20]} of SOG, where 1 and 2 are read; save it as .ply")
        return from_file(name, *read_attributes(content, meta, name, first=first))


@contextmanager
def damage(name: str) -> Iterator[None]:
    """What goes wrong with values of a file in one line."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{name}: a damaged SOG ({reason}), copy or export it again") from None


def read_meta(content: Content) -> dict[str, Any]:
    """``meta.json``; call it, as what follows, within :func:`damage`."""
    text = content(META)
    if len(text) > _META_BYTES:
        raise ValueError(f"{META} of {len(text)} bytes")
    return json.loads(text)


def count_of(meta: dict[str, Any], name: str) -> int:
    """The number of Gaussians."""
    count = meta["count"] if "count" in meta else meta["means"]["shape"][0]
    if not isinstance(count, int) or isinstance(count, bool):
        raise ValueError("a count that is no whole number")
    check_count(name, count)
    return count


def read_pixels(content: Content, entry: Any, count: int, name: str) -> np.ndarray:  # (count, 4) uint8
    """The pixels of a picture that are Gaussians."""
    pixels = _pixels(content, entry, name).reshape(-1, 4)[:count]
    if len(pixels) < count:
        raise ValueError(f"pictures of fewer than {count} pixels")
    return pixels


def read_attributes(
    content: Content, meta: dict[str, Any], name: str, *, first: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Means, rotations, log scales, opacity logits and harmonics (N, ...) as :func:`.ply.from_file` takes them.

    Args:
        first: of version 1, which has linear bounds in place of chosen values.
    """
    count = count_of(meta, name)

    def pixels(part: str, index: int = 0) -> np.ndarray:  # (count, 4) uint8
        return read_pixels(content, meta[part]["files"][index], count, name)

    low, high = (np.array(meta["means"][end], np.float64).reshape(3) for end in ("mins", "maxs"))
    steps = pixels("means")[:, :3] | pixels("means", 1)[:, :3].astype(np.uint16) << 8
    with np.errstate(all="ignore"):  # absurd bounds become infinite, and are left out
        logs = low + (high - low) * (steps / 65535)
        means = np.sign(logs) * np.expm1(np.abs(logs))
        scales, sh0 = pixels("scales")[:, :3], pixels("sh0")
        if first:
            log_scales = _between(scales, meta["scales"], 3)
            colors = _between(sh0, meta["sh0"], 4)
            opacities = colors[:, 3]
            colors = colors[:, :3]
        else:
            log_scales, colors = _looked_up(scales, meta["scales"]), _looked_up(sh0[:, :3], meta["sh0"])
            opacities = opacity_of(sh0[:, 3])
        sh = colors[:, None]
        if meta.get("shN"):
            sh = np.concatenate([sh, _harmonics(content, meta["shN"], pixels, name)], 1)
    return means, _unpacked(pixels("quats")), log_scales, opacities, sh


def _pixels(content: Content, entry: Any, name: str) -> np.ndarray:  # (H, W, 4) uint8
    if not isinstance(entry, str):
        raise ValueError("a picture whose name is no text")
    image = PictureBudget().open(content(entry), entry[:80], name)
    try:
        return np.asarray(image.convert("RGBA"))
    except (OSError, ValueError, SyntaxError, EOFError):
        raise InputError(f"{name}: its picture {entry[:80]} is damaged, copy or export it again") from None


def _between(values: np.ndarray, part: dict[str, Any], width: int) -> np.ndarray:
    low, high = (np.array(part[end], np.float64).reshape(width) for end in ("mins", "maxs"))
    return low + (high - low) * (values / 255)


def _looked_up(index: np.ndarray, part: dict[str, Any]) -> np.ndarray:
    book = np.array(part["codebook"], np.float64)
    if book.ndim != 1 or not 1 <= len(book) <= 256:
        raise ValueError(f"a codebook of shape {book.shape}")
    return book[index]


def _harmonics(content: Content, part: dict[str, Any], pixels: Callable[..., np.ndarray], name: str) -> np.ndarray:  # (N, K, 3)
    centroids = _pixels(content, part["files"][0], name)
    each = centroids.shape[1] // _ROW
    if each not in _COEFFICIENTS[1:] or centroids.shape[1] != _ROW * each:
        raise ValueError(f"a palette {centroids.shape[1]} pixels wide")
    label = pixels("shN", 1)
    label = label[:, 0] | label[:, 1].astype(np.int64) << 8
    palette = centroids[..., :3].reshape(-1, each, 3)
    if "codebook" in part:
        values = _looked_up(palette, part)
    else:
        values = float(part["mins"]) + (float(part["maxs"]) - float(part["mins"])) * (palette / 255)
    return values[label]


def _unpacked(pixels: np.ndarray) -> np.ndarray:  # (N, 4) uint8 -> (N, 4) wxyz
    largest = pixels[:, 3].astype(np.int64) - 252
    three = (pixels[:, :3] / 255 - 0.5) * 2**0.5
    quats = np.zeros((len(pixels), 4))
    np.put_along_axis(quats, _OTHERS[largest.clip(0)], three, 1)
    np.put_along_axis(quats, largest.clip(0)[:, None], np.sqrt((1 - (three**2).sum(1)).clip(0))[:, None], 1)
    quats[largest < 0] = [1, 0, 0, 0]
    return quats


def _packed(quats: np.ndarray) -> np.ndarray:  # (N, 4) wxyz, unit -> (N, 4) uint8
    largest = np.abs(quats).argmax(1)
    signed = quats * np.where(np.take_along_axis(quats, largest[:, None], 1) < 0, -1, 1)
    three = np.take_along_axis(signed, _OTHERS[largest], 1)
    return np.concatenate([np.rint((three * 0.5**0.5 + 0.5) * 255), largest[:, None] + 252], 1).clip(0, 255).astype(np.uint8)


def picture(values: np.ndarray, width: int) -> bytes:  # (N, 3 or 4) -> a lossless WebP
    pulse()
    height = -(-len(values) // width)
    pixels = np.full((height * width, 4), 255, np.uint8)
    pixels[: len(values), : values.shape[1]] = values
    pixels[len(values) :, :3] = 0
    file = io.BytesIO()
    Image.fromarray(pixels.reshape(height, width, 4)).save(file, "WEBP", lossless=True, exact=True, method=4, quality=100)
    return file.getvalue()


def _chosen(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """256 values, ascending, near which all the given ones lie, and each one's index (uint8): Lloyd's algorithm on a line."""
    flat = np.sort(values.reshape(-1).astype(np.float64))
    sums = np.concatenate([[0.0], flat.cumsum()])
    # Half of the starts follow the density, half the span: neither the many nor the far are forgotten.
    book = np.sort(np.concatenate([np.quantile(flat, (np.arange(128) + 0.5) / 128), np.linspace(flat[0], flat[-1], 128)]))
    for _ in range(30):
        edges = np.concatenate([[0], np.searchsorted(flat, (book[1:] + book[:-1]) / 2), [len(flat)]])
        members = np.diff(edges)
        book = np.where(members > 0, np.diff(sums[edges]) / np.maximum(members, 1), book)
        book.sort()
    book = book.astype(np.float32).astype(np.float64)
    return book, np.searchsorted((book[1:] + book[:-1]) / 2, values).astype(np.uint8)


def _palette(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (N, C) -> (P, C), (N,)
    """At most 65,536 vectors that stand for all: cells are halved at the median of their widest axis until there are enough."""
    count = len(vectors)
    order, starts = np.arange(count), np.array([0])
    while len(starts) * 2 <= _PALETTE and len(starts) < count:
        pulse()
        sizes = np.diff(np.append(starts, count))
        part = vectors[order]
        mean = np.add.reduceat(part, starts) / sizes[:, None]
        spread = np.add.reduceat((part - mean.repeat(sizes, 0)) ** 2, starts)
        cell = np.arange(len(starts)).repeat(sizes)
        along = part[np.arange(count), spread.argmax(1)[cell]]
        order = order[np.lexsort((along, cell))]
        starts = np.unique(np.stack([starts, starts + sizes // 2]))
    sizes = np.diff(np.append(starts, count))
    label = np.empty(count, np.int64)
    label[order] = np.arange(len(starts)).repeat(sizes)
    return np.add.reduceat(vectors[order], starts) / sizes[:, None], label
