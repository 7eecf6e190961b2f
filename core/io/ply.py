"""3D Gaussian Splatting's .ply: raw attributes, one file a moment. And what all splat files share.

Written as binary float32. Read in every encoding, with elements and properties of other programs beside ours; 2DGS files, whose
Gaussians have two scales, and files with RGB in place of harmonics (Nerfstudio's) too.

Splat files keep the frame of the photogrammetry that 3DGS started from, Y down and Z forward. Ours is Y up: the two differ by
half a turn about X, (x, y, z) -> (x, -y, -z), done here on positions, rotations and spherical harmonics. A file that was made
otherwise says so by nothing: :func:`.splats.read_splats` can be asked to turn it.
"""

from __future__ import annotations

import logging
import math
import os
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import InputError, atomic_path
from ..gaussians import SH_C0, Gaussians, half_turn
from ..reading import read_bytes
from ..scene.validation import MAX_EXTENT

log = logging.getLogger(__name__)

#: Larger files are refused before they are read.
MAX_BYTES = 1 << 32
#: More Gaussians in one file are refused: nothing here could draw or fit them, and memory stays bounded.
MAX_GAUSSIANS = 1 << 24
_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
#: Records with lists before the Gaussians that are stepped over one by one.
_MAX_LISTS = 1 << 20
#: A 2D Gaussian's third deviation, as part of its smaller one.
_FLAT = 1e-3
#: What programs that keep motion in a .ply call its columns: Spacetime Gaussians, FreeTimeGS, 4DGS and their kin.
_MOTION = re.compile(
    r"motion_\d+|omega_\d+|trbf_\w+|velocity\w*|v[xyz]|v_[xyz]|t|t_scale|scale_t|scale_t_0|rot_r_\d|mu_t|time|times|duration|"
    r"durations|log_duration|tau_\w+"
)
#: A header longer than this is not one.
_HEADER_BYTES = 1 << 16
_SHAPE = ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
_COLORS, _RGB = [f"f_dc_{i}" for i in range(3)], ["red", "green", "blue"]


def to_file(gaussians: Gaussians, *, turn: bool = True) -> Gaussians:
    """Unbatched Gaussians (N, ...) as files hold them: float32 on the CPU, unit rotations, +Y down unless not to ``turn``.

    Raises:
        ValueError: for a batch.
        InputError: for values that are not finite; scales and opacities may be infinite.
    """
    if gaussians.means.dim() != 2:
        raise ValueError(f"a splat file takes one set of Gaussians, not a batch of shape {tuple(gaussians.means.shape[:-2])}")
    gaussians = gaussians.detach().to("cpu", torch.float32)
    for key, value in gaussians.tensors().items():
        if value.isnan().any() or (key in ("means", "quats", "sh") and value.isinf().any()):
            raise InputError(f"scene: holds NaN or infinite {key}, fit it again")
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

    Scales and opacities may be infinite, as some writers store flat splats and full opacity. Other values that are no finite
    numbers stay as they are: :func:`sound` leaves their Gaussians out.

    Args:
        turn: the file is +Y down, as nearly all are.
    """
    columns = (means, quats, log_scales, opacity_logits, sh[:, :16])
    gaussians = Gaussians(*(torch.from_numpy(np.require(column, np.float32, ["C", "W"])) for column in columns))
    gaussians = replace(
        gaussians,
        quats=_normalized(gaussians.quats),
        log_scales=gaussians.log_scales.clamp(-1e30, 1e30),
        opacity_logits=gaussians.opacity_logits.clamp(-1e30, 1e30),
    )
    return half_turn(gaussians) if turn else gaussians


def sound(gaussians: Gaussians, name: str) -> Gaussians:
    """The Gaussians (N, ...) whose values are all finite numbers; how many are left out is logged.

    Raises:
        InputError: where none is left.
    """
    whole = is_sound(gaussians)
    if bool(whole.all()):
        return gaussians
    left, count = int(whole.sum()), len(whole)
    if not left:
        raise InputError(f"{name}: all its Gaussians hold NaN, infinite or far too large values, repair or export it again")
    log.warning("%s: %d of %d Gaussians hold NaN, infinite or far too large values and are left out", name, count - left, count)
    return gaussians.select(whole)


def is_sound(gaussians: Gaussians) -> Tensor:  # (N) bool
    """Which of the Gaussians (N, ...) hold finite numbers alone, at places and of colours that arithmetic can bear."""
    rows = []
    for key, value in gaussians.tensors().items():
        most = MAX_EXTENT if key in ("means", "sh") else 3e38
        rows.append((value.reshape(len(gaussians), -1).abs() <= most).all(1))  # NaN is not
    return torch.stack(rows).all(0)


def _normalized(quats: Tensor) -> Tensor:  # (N, 4)
    """Unit quaternions; no rotation in place of zeros."""
    length = quats.abs().amax(-1, keepdim=True)
    identity = torch.tensor([1.0, 0.0, 0.0, 0.0])
    # Divided by the largest entry first: the squares of very large or small ones would leave float32.
    return torch.nn.functional.normalize(torch.where(length == 0, identity, quats / length.clamp_min(1e-38)), dim=-1)


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
    """Whether a ply file holds Gaussians, compressed ones included, and not a mesh or plain points."""
    with open(path, "rb") as file:
        head = file.read(_HEADER_BYTES).partition(b"end_header")[0]
    names = {line.split()[-1] for line in head.splitlines() if line.startswith(b"property")}
    return {b"opacity", b"scale_0"} <= names or b"packed_position" in names


def read_ply(path: str | os.PathLike[str]) -> Gaussians:
    """Read Gaussians (N, ...) into our Y-up frame; those that hold NaN are left out, with a note in the log.

    Raises:
        InputError: for a missing, truncated or foreign file.
    """
    data = read_bytes(path, "splat .ply", MAX_BYTES)
    return sound(decode(data, str(Path(path))), str(Path(path)))


def decode(data: bytes, name: str) -> Gaussians:
    """:func:`read_ply` of a file's content, with Gaussians that hold NaN; ``name`` is for messages."""
    columns = read_columns(data, name)
    if moving := sorted(n for n in columns if _MOTION.fullmatch(n)):
        shown = ", ".join(moving[:4]) + (", ..." if len(moving) > 4 else "")
        log.warning("%s: %d columns of motion (%s) are not read, it opens as it stands in the file", name, len(moving), shown)
    return gaussians_of(columns, name)


def read_columns(data: bytes, name: str) -> dict[str, np.ndarray]:
    """The columns (N,) of a splat file's vertices by name, of the types they are stored in.

    Raises:
        InputError: for a compressed, truncated or foreign file.
    """
    header = parse_header(data, name)
    foreign = f"{name}: a ply file, but not of 3D Gaussians"
    if header.is_compressed:
        raise InputError(f"{foreign} in the plain form: it is compressed, save it uncompressed")
    vertex = header.element("vertex")
    if vertex is None:
        raise InputError(f"{foreign}: it has no vertices; choose a splat .ply (a mesh is opened as an object)")
    _check_names({entry.name for entry in vertex.properties}, name)
    table = read_element(data, name, header, vertex)
    check_count(name, vertex.count)
    return {entry.name: table[entry.name] for entry in vertex.properties}


def _check_names(names: set[str], name: str) -> tuple[list[str], bool]:
    """Which columns are colours, and whether Gaussians are flat.

    Raises:
        InputError: where columns are missing.
    """
    colors = _RGB if {*_RGB} <= names and not {*_COLORS} & names else _COLORS
    flat = "scale_1" in names and "scale_2" not in names
    turned = {n.replace("rot_l_", "rot_") for n in names}  # 4DGS, whose rotations are pairs
    lacking = [n for n in [*"xyz", *colors, *_SHAPE] if n not in turned and not (flat and n == "scale_2")]
    if lacking:
        raise InputError(
            f"{name}: a ply file, but not of 3D Gaussians: it has no {', '.join(lacking[:4])}; choose a splat .ply (a mesh is "
            "opened as an object)"
        )
    return colors, flat


def gaussians_of(table: dict[str, np.ndarray], name: str) -> Gaussians:
    """Gaussians (N, ...) of a file's columns, in our frame, those that hold NaN among them.

    Raises:
        InputError: for columns that make none.
    """
    colors, flat = _check_names(set(table), name)
    count = len(table["x"])
    rest = sorted((n for n in table if re.fullmatch(r"f_rest_\d{1,4}", n)), key=lambda n: int(n[7:]))
    coefficients = 1 + len(rest) // 3
    if len(rest) % 3 or math.isqrt(coefficients) ** 2 != coefficients:
        raise InputError(f"{name}: {len(rest)} f_rest properties, which fit no degree of spherical harmonics; export it again")

    def columns(names: list[str]) -> np.ndarray:
        return np.stack([table[n].astype(np.float32) for n in names], 1)

    with np.errstate(over="ignore", invalid="ignore"):  # doubles beyond float32 become infinite, and are left out
        sh = columns(colors)[:, None]
        if colors is _RGB:
            whole = table["red"].dtype.kind in "iu"
            sh = (sh / np.float32(np.iinfo(table["red"].dtype).max if whole else 1) - np.float32(0.5)) / np.float32(SH_C0)
        if rest:
            sh = np.concatenate([sh, columns(rest).reshape(count, 3, coefficients - 1).swapaxes(1, 2)], 1)
        scales = columns(["scale_0", "scale_1"] if flat else ["scale_0", "scale_1", "scale_2"])
        if flat:
            scales = np.concatenate([scales, scales.min(1, keepdims=True) + np.float32(math.log(_FLAT))], 1)
            log.info("%s: 2D Gaussians, read as flat ones", name)
        rotation = "rot_" if "rot_0" in table else "rot_l_"
        return from_file(
            name,
            columns([*"xyz"]),
            columns([f"{rotation}{i}" for i in range(4)]),
            scales,
            table["opacity"].astype(np.float32),
            sh,
        )


@dataclass(frozen=True)
class Property:
    """A property of a ply element: its type as NumPy writes it without the byte order, and that of a list's length."""

    name: str
    kind: str
    length: str = ""


@dataclass(frozen=True)
class Element:
    """An element of a ply file."""

    name: str
    count: int
    properties: tuple[Property, ...]


@dataclass(frozen=True)
class Header:
    """A ply file's elements, where their records start, and their byte order: "<", ">", or "" for text."""

    elements: tuple[Element, ...]
    start: int
    order: str

    def element(self, name: str) -> Element | None:
        return next((element for element in self.elements if element.name == name), None)

    @property
    def is_compressed(self) -> bool:
        """Whether it is that of a compressed .ply."""
        names = {entry.name for element in self.elements for entry in element.properties}
        return self.element("chunk") is not None or "packed_position" in names


def parse_header(data: bytes, name: str) -> Header:
    """The header of a ply file.

    Raises:
        InputError: for a foreign or garbled one.
    """
    end = data.find(b"end_header", 0, _HEADER_BYTES)
    newline = data.find(b"\n", end, _HEADER_BYTES)
    if not data.startswith(b"ply") or end < 0 or newline < 0:
        raise InputError(f"{name}: not a ply file, choose a 3D Gaussian splat .ply")
    order, elements = "<", []
    for line in data[:end].decode("ascii", "replace").splitlines()[1:]:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        garbled = InputError(f"{name}: garbled header line {line.strip()[:80]!r}, export it again")
        if words[0] == "format":
            if len(words) != 3 or words[1] not in _ORDERS:
                raise InputError(f"{name}: format {' '.join(words[1:])[:40]!r} is not read, save it as binary or ASCII ply")
            order = _ORDERS[words[1]]
        elif words[0] == "element":
            if len(words) != 3 or not re.fullmatch("[0-9]{1,18}", words[2]):
                raise garbled
            elements.append((words[1], int(words[2]), []))
        elif words[0] == "property" and elements:
            properties = elements[-1][2]
            if words[1:2] == ["list"] and len(words) == 5 and {words[2], words[3]} <= _TYPES.keys():
                properties.append(Property(words[4], _TYPES[words[3]], _TYPES[words[2]]))
            elif len(words) == 3 and words[1] in _TYPES:
                properties.append(Property(words[2], _TYPES[words[1]]))
            else:
                raise garbled
            if len({entry.name for entry in properties}) < len(properties):
                raise garbled
    return Header(tuple(Element(n, c, tuple(p)) for n, c, p in elements), newline + 1, order)


def read_element(data: bytes, name: str, header: Header, wanted: Element) -> np.ndarray:
    """The records of an element as a structured array (N), those of the elements before it stepped over.

    Raises:
        InputError: for a file cut short, lists in the element, or too many before it.
    """
    if any(entry.length for entry in wanted.properties):
        raise InputError(f"{name}: its {wanted.name} properties hold lists, which is not read; export it again")
    before = header.elements[: header.elements.index(wanted)]
    if not header.order:
        return _read_text(data, name, header, wanted, before)
    start = header.start
    for element in before:
        start = _skipped(data, name, header, element, start)
    layout = _layout(wanted, header.order)
    check_length(name, start + wanted.count * layout.itemsize, len(data))
    return np.frombuffer(data, layout, wanted.count, start) if layout.itemsize else np.empty(0, layout)


def _layout(element: Element, order: str) -> np.dtype:
    return np.dtype([(entry.name, order + entry.kind) for entry in element.properties])


def _skipped(data: bytes, name: str, header: Header, element: Element, start: int) -> int:
    """Where the records after an element's begin."""
    if not any(entry.length for entry in element.properties):
        return start + element.count * _layout(element, header.order).itemsize
    if element.count > _MAX_LISTS:
        raise InputError(f"{name}: {element.count} records of {element.name} before its Gaussians; export it without them")
    for _ in range(element.count):
        for entry in element.properties:
            size = np.dtype(entry.kind).itemsize
            if entry.length:
                length = np.dtype(header.order + entry.length)
                check_length(name, start + length.itemsize, len(data))
                many = int(np.frombuffer(data, length, 1, start)[0])
                if length.kind == "f" or many < 0:
                    raise InputError(f"{name}: a list of garbled length in {element.name}, export it again")
                start += length.itemsize
                size *= many
            start += size
        check_length(name, start, len(data))
    return start


def _read_text(data: bytes, name: str, header: Header, wanted: Element, before: tuple[Element, ...]) -> np.ndarray:
    """Numbers of a text file, a record a line."""
    start = header.start
    for _ in range(min(sum(element.count for element in before), len(data))):
        start = data.find(b"\n", start) + 1
        if not start:
            raise InputError(f"{name}: cut short, export or copy it again")
    width = len(wanted.properties)
    # A number takes two bytes at least.
    check_length(name, start + 2 * wanted.count * width - 1, len(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # NumPy's word for text that is no number
            # All of them: of a count, it makes up those that are missing.
            values = np.fromstring(data[start:].decode("ascii"), np.float64, sep=" ")
    except (ValueError, DeprecationWarning):
        values = np.empty(0)
    if len(values) < wanted.count * width:
        raise InputError(f"{name}: its text is cut short or holds what is no number, export it again")
    table = np.empty(wanted.count, _layout(wanted, "<"))
    with np.errstate(over="ignore", invalid="ignore"):
        for column, entry in zip(values[: wanted.count * width].reshape(wanted.count, width).T, wanted.properties):
            table[entry.name] = column
    return table
