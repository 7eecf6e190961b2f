"""The container of glTF 2.0: arrays, pictures and nodes out (:class:`Glb`) and in (:class:`Gltf`).

Section numbers are those of the glTF 2.0 specification, Khronos Group.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image

from ... import __version__
from ..files import InputError, atomic_path
from ..pictures import PictureBudget
from ..reading import VARIABLES, Limits, beside, limits, read_bytes, regular_size

FLOAT, BYTE, SHORT, INT = 5126, 5121, 5123, 5125
#: What a buffer view is for.
VERTICES, INDICES = 34962, 34963

_COMPONENT = {"f": FLOAT, "B": BYTE, "H": SHORT, "I": INT}
_TYPE = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


class Glb:
    """A file under construction: ``header`` is the JSON, lists of it grow by the methods, which return the new item's index."""

    def __init__(self) -> None:
        self.header: dict[str, Any] = {"asset": {"version": "2.0", "generator": f"Anchor4D {__version__}"}}
        self.chunks: list[bytes] = []
        self.length = 0

    def add(self, kind: str, item: dict[str, Any]) -> int:
        """One more of ``kind`` ("nodes", "meshes", ...)."""
        self.header.setdefault(kind, []).append(item)
        return len(self.header[kind]) - 1

    def use(self, extension: str) -> None:
        """Names an extension that the file uses; readers without it still open the file."""
        if extension not in self.header.setdefault("extensionsUsed", []):
            self.header["extensionsUsed"].append(extension)

    def view(self, data: bytes, **members: Any) -> int:
        """Bytes of the binary part, aligned to four."""
        view = {"buffer": 0, "byteOffset": self.length, "byteLength": len(data), **members}
        self.chunks += [data, bytes(-len(data) % 4)]
        self.length += len(data) + -len(data) % 4
        return self.add("bufferViews", view)

    def array(self, values: np.ndarray, target: int | None = None, *, normalized: bool = False, bounds: bool = False) -> int:
        """An accessor of (N,) or (N, C) float32, uint32, uint16 or uint8, in a view of its own; 16 numbers are a matrix.

        Args:
            target: :data:`VERTICES` or :data:`INDICES`; None for animations.
            normalized: integers stand for [0, 1].
            bounds: say the least and greatest values, as positions and times need.
        """
        values = np.ascontiguousarray(values)
        accessor: dict[str, Any] = {
            "bufferView": self.view(values.tobytes(), **({} if target is None else {"target": target})),
            "componentType": _COMPONENT[values.dtype.char],
            "count": len(values),
            "type": _TYPE[1 if values.ndim == 1 else values.shape[1]],
        }
        if normalized:
            accessor["normalized"] = True
        if bounds:
            accessor |= {"min": values.min(0).reshape(-1).tolist(), "max": values.max(0).reshape(-1).tolist()}
        return self.add("accessors", accessor)

    def image(self, data: bytes) -> int:
        """A texture of a PNG or JPEG file's bytes, repeated and filtered, see :func:`core.mesh.encode_picture`."""
        kind = "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
        source = self.add("images", {"bufferView": self.view(data), "mimeType": kind})
        if "samplers" not in self.header:
            self.add("samplers", {"magFilter": 9729, "minFilter": 9987, "wrapS": 10497, "wrapT": 10497})
        return self.add("textures", {"source": source, "sampler": 0})

    def write(self, path: str | os.PathLike[str]) -> None:
        """The file, through a temporary name.

        Raises:
            InputError: beyond the 4 GB that a binary glTF file can hold.
        """
        if self.chunks:
            self.header["buffers"] = [{"byteLength": self.length}]
        text = json.dumps(self.header, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        size = 12 + 8 + len(text) + (8 + self.length if self.chunks else 0)
        if size >= 1 << 32:
            raise InputError(f"{path}: {size >> 30} GB, more than a .glb can hold; export fewer frames or Gaussians")
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            file.write(struct.pack("<4sIIII", b"glTF", 2, size, len(text), 0x4E4F534A) + text)
            if self.chunks:
                file.write(struct.pack("<II", self.length, 0x004E4942))
                file.writelines(self.chunks)


# --- reading ------------------------------------------------------------------------------------------------------------

#: Kinds of numbers by their code (3.6.2.2), and numbers in an element.
COMPONENTS = {
    code: np.dtype(name) for code, name in {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}.items()
}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")
#: Commas and brackets that a header may hold: Python takes about a hundred bytes for each value between them.
_MOST_VALUES = 8_000_000


class Entry:
    """A JSON object of the file, whose members are read by kind.

    Every method raises :class:`InputError`, with the member's place, for a value of another kind or out of range.
    """

    def __init__(self, path: Path, value: dict[str, Any], place: str) -> None:
        self.path, self.value, self.place = path, value, place

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def wrong(self, key: str, wanted: str) -> InputError:
        value = json.dumps(self.value.get(key))
        shown = value if len(value) <= 40 else value[:40] + "..."
        place = f"{self.place}.{key}".lstrip(".")
        return InputError(f"{self.path}: damaged, {place} is {shown}, not {wanted}; export it again")

    def whole(self, key: str, default: int | None = None, low: int = 0, high: int = 2**53) -> int:
        value = self.value.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(key, f"a whole number of at least {low}" if high == 2**53 else f"a whole number {low} to {high}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.value.get(key, default)
        if not _finite(value):
            raise self.wrong(key, "a finite number")
        return float(value)

    def numbers(self, key: str, default: list[float]) -> list[float]:
        """As many finite numbers as ``default`` has."""
        values = self.value.get(key, default)
        if not isinstance(values, list) or len(values) != len(default) or not all(map(_finite, values)):
            raise self.wrong(key, f"{len(default)} finite numbers")
        return [float(value) for value in values]

    def number_list(self, key: str) -> list[float]:
        values = self.value.get(key, [])
        if not isinstance(values, list) or not all(map(_finite, values)):
            raise self.wrong(key, "a list of finite numbers")
        return [float(value) for value in values]

    def indices(self, key: str) -> list[int]:
        values = self.value.get(key, [])
        if not isinstance(values, list) or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
            raise self.wrong(key, "a list of indices")
        return values

    def text(self, key: str, default: str = "") -> str:
        value = self.value.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.value.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def entry(self, key: str) -> Entry:
        """An object in this one, empty where it is missing."""
        value = self.value.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Entry(self.path, value, f"{self.place}.{key}".lstrip("."))

    def entries(self, key: str) -> list[Entry]:
        values = self.value.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise self.wrong(key, "a list of objects")
        place = f"{self.place}.{key}".lstrip(".")
        return [Entry(self.path, value, f"{place}[{index}]") for index, value in enumerate(values)]

    def extension(self, *names: str) -> Entry | None:
        """The first of these extensions that the object carries."""
        if "extensions" not in self.value:
            return None
        extensions = self.entry("extensions")
        return next((extensions.entry(name) for name in names if name in extensions), None)

    @property
    def extensions(self) -> set[str]:
        return set(self.entry("extensions").value)


def _finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond floating point
        return False


class Gltf:
    """A .glb or .gltf file: its header, and arrays, pictures and nodes by their indices.

    Nothing is believed: every index, length, stride and kind is checked where it is used, and every array is counted against
    the budget of :mod:`..reading` before it is made.

    Raises:
        InputError: from the constructor and every method, for a missing, damaged, oversized or foreign file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.limits: Limits = limits()
        self.pictures = PictureBudget()
        self.memory = 0
        data = read_bytes(self.path, "glTF file", self.limits.file_bytes)
        text, self._binary = _chunks(self.path, data) if data.startswith(b"glTF") else (data, b"")
        if not data.startswith(b"glTF") and self.path.suffix.lower() == ".glb":
            raise self.damaged("it does not begin as a binary glTF file")
        self.header = Entry(self.path, _json(self.path, text), "")
        version = self.header.entry("asset").value.get("version", "2.0")
        if not str(version).startswith("2"):
            raise InputError(f"{self.path}: glTF {str(version)[:10]}, only glTF 2.0 is read here, convert it")
        self.required = set(self._names("extensionsRequired"))
        self.lists: dict[str, list[Entry]] = {}
        self._buffers: dict[int, bytes | memoryview] = {}
        self._views: dict[int, bytes | memoryview] = {}
        self._images: dict[int, Image.Image] = {}

    def damaged(self, reason: str) -> InputError:
        return InputError(f"{self.path}: damaged, {reason}; export it again")

    def _names(self, key: str) -> list[str]:
        names = self.header.value.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.header.wrong(key, "a list of names")
        return names

    def all(self, kind: str) -> list[Entry]:
        """The file's "nodes", "meshes", "accessors", ..."""
        if kind not in self.lists:
            self.lists[kind] = self.header.entries(kind)
        return self.lists[kind]

    def item(self, kind: str, index: int) -> Entry:
        items = self.all(kind)
        if not 0 <= index < len(items):
            raise self.damaged(f"{kind}[{index}] is referred to and does not exist")
        return items[index]

    def take(self, size: int, place: str) -> None:
        """Counts bytes against the budget before they are allocated."""
        self.memory += size
        if self.memory > self.limits.memory:
            name = VARIABLES["memory"][0]
            raise InputError(
                f"{self.path}: takes over {self.limits.memory >> 20} MB of memory at {place}, reduce the mesh or raise {name}"
            )

    # Bytes

    def buffer(self, index: int) -> bytes | memoryview:
        if index not in self._buffers:
            entry = self.item("buffers", index)
            uri = entry.text("uri") if "uri" in entry else None
            content = self._binary if uri is None and index == 0 else b"" if uri is None else self._uri(entry, uri)
            length = entry.whole("byteLength", 0)
            if length > len(content):
                raise self.damaged(f"buffer {index} is cut short, {len(content):,} of {length:,} bytes")
            self._buffers[index] = content
        return self._buffers[index]

    def _uri(self, entry: Entry, uri: str) -> bytes:
        if uri.startswith("data:"):
            self.take(len(uri), entry.place)
            try:
                return base64.b64decode(uri.partition(",")[2])
            except (binascii.Error, ValueError):
                raise self.damaged(f"{entry.place}.uri is not base64") from None
        if "://" in uri:
            raise InputError(f"{self.path}: refers to {uri[:60]}, which is not fetched; put that file beside it")
        name = unquote(uri)
        found = beside(self.path, name)
        if found is None:
            raise InputError(f"{self.path}: {name[:80]} is missing, put it beside the mesh or remove the reference to it")
        self.take(regular_size(found), entry.place)
        return read_bytes(found, "file", self.limits.file_bytes)

    def view(self, index: int) -> bytes | memoryview:
        """The bytes of a buffer view, unpacked where they are compressed."""
        if index not in self._views:
            entry = self.item("bufferViews", index)
            packed = entry.extension(*_MESHOPT)
            if unknown := (entry.extensions & self.required) - set(_MESHOPT):
                raise InputError(
                    f"{self.path}: {entry.place} needs {min(unknown)}, which is not read here; export it without that"
                )
            if packed is not None:
                self._views[index] = self._meshopt(entry, packed)
            else:
                self._views[index] = self._slice(entry)
        return self._views[index]

    def _slice(self, entry: Entry) -> memoryview:
        data = self.buffer(entry.whole("buffer"))
        start, length = entry.whole("byteOffset", 0), entry.whole("byteLength")
        if start + length > len(data):
            raise self.damaged(f"{entry.place} reaches beyond its buffer")
        return memoryview(data)[start : start + length]

    def _meshopt(self, entry: Entry, packed: Entry) -> bytes | memoryview:
        """EXT_meshopt_compression, by the package meshopt."""
        count, stride = packed.whole("count"), packed.whole("byteStride", low=1, high=256)
        mode, filtering = packed.text("mode"), packed.text("filter", "NONE")
        data = bytes(self._slice(packed))
        self.take(count * stride, entry.place)
        module = decoder("meshopt", "meshopt")
        if isinstance(module, str):
            fallback = self.item("buffers", entry.whole("buffer")).extension(*_MESHOPT)
            if fallback is None:
                return self._slice(entry)
            raise InputError(f"{self.path}: compressed with meshopt ({packed.place.split('.')[-1]}), {module}")
        try:
            return module.decode_gltf_buffer(data, count, stride, mode, filtering).tobytes()
        except (ValueError, RuntimeError, TypeError, OverflowError) as error:
            raise self.damaged(f"{packed.place} cannot be unpacked by meshopt ({error})") from None

    # Arrays

    def count(self, index: int) -> int:
        """Elements of an accessor."""
        return self.item("accessors", index).whole("count", low=1, high=3 * self.limits.elements)

    def array(self, index: int, *types: str) -> np.ndarray:  # (N, C)
        """An accessor's numbers as they are stored, sparse ones put in place (3.6.2). Read-only where they lie in the file.

        Args:
            types: that make sense here: SCALAR, VEC2, VEC3, VEC4, MAT4.
        """
        entry = self.item("accessors", index)
        kind, code = entry.text("type"), entry.whole("componentType")
        if kind not in WIDTHS or (types and kind not in types):
            raise entry.wrong("type", " or ".join(types or WIDTHS))
        if code not in COMPONENTS:
            raise entry.wrong("componentType", "one of " + ", ".join(map(str, COMPONENTS)))
        count, dtype, width = self.count(index), COMPONENTS[code], WIDTHS[kind]
        if "bufferView" in entry:
            values = self._rows(entry, entry.whole("bufferView"), count, dtype, width)
        else:
            self.take(count * width * dtype.itemsize, entry.place)
            values = np.zeros((count, width), dtype)
        if "sparse" in entry:
            sparse = entry.entry("sparse")
            changed = sparse.whole("count", low=1, high=count)
            where, what = sparse.entry("indices"), sparse.entry("values")
            kinds = {code: COMPONENTS[code] for code in (BYTE, SHORT, INT)}
            if where.whole("componentType") not in kinds:
                raise where.wrong("componentType", "one of " + ", ".join(map(str, kinds)))
            rows = self._rows(where, where.whole("bufferView"), changed, kinds[where.whole("componentType")], 1)[:, 0]
            if int(rows.max()) >= count:
                raise self.damaged(f"{where.place} refers to element {int(rows.max())} of {count}")
            self.take(count * width * dtype.itemsize, entry.place)
            values = values.copy()
            values[rows] = self._rows(what, what.whole("bufferView"), changed, dtype, width)
        return values

    def _rows(self, entry: Entry, view: int, count: int, dtype: np.dtype, width: int) -> np.ndarray:  # (count, width)
        data, start = self.view(view), entry.whole("byteOffset", 0)
        size = width * dtype.itemsize
        holder = self.item("bufferViews", view)
        packed = holder.extension(*_MESHOPT)
        stride = (packed or holder).whole("byteStride", 0, high=256) or size
        if stride < size:
            raise self.damaged(f"{holder.place}.byteStride is {stride}, less than an element's {size} bytes")
        if start + (count - 1) * stride + size > len(data):
            raise self.damaged(f"{entry.place} reaches beyond its buffer view")
        return np.ndarray((count, width), dtype, data, start, (stride, dtype.itemsize))

    def floats(self, index: int, *types: str, normalized: bool = False) -> np.ndarray:  # (N, C) float32
        """An accessor as floating point, normalised integers divided (3.6.2.3).

        Args:
            normalized: divide integers even where the file does not say so, as colours only make sense that way.
        """
        entry, values = self.item("accessors", index), self.array(index, *types)
        self.take(values.size * 4, entry.place)
        if values.dtype.kind == "f":
            return values.astype(np.float32)
        return unit(values) if normalized or entry.flag("normalized") else values.astype(np.float32)

    def integers(self, index: int, *types: str) -> np.ndarray:  # (N, C)
        """An accessor of unsigned integers: indices, joints."""
        values = self.array(index, *types)
        if values.dtype.kind != "u":
            raise self.item("accessors", index).wrong("componentType", "one of unsigned integers (5121, 5123, 5125)")
        return values

    # Pictures

    def image(self, index: int) -> Image.Image:
        """A picture with only its header read, the same object each time."""
        if index not in self._images:
            entry = self.item("images", index)
            if "uri" in entry:
                uri = entry.text("uri")
                data = self._uri(entry, uri)
                name = uri[:40]
            else:
                data, name = bytes(self.view(entry.whole("bufferView"))), entry.text("mimeType")
                self.take(len(data), entry.place)
            name = entry.text("name") or name
            if data[:12] == b"\xabKTX 20\xbb\r\n\x1a\n":
                raise InputError(
                    f"{self.path}: texture {name} is KTX2 (KHR_texture_basisu), export it with PNG or JPEG textures"
                )
            self._images[index] = self.pictures.open(data, name, str(self.path))
        return self._images[index]

    # Nodes

    def roots(self) -> list[int]:
        """The nodes at the top of the scene that the file shows; of a file without scenes, those that are nobody's child."""
        if not self.all("scenes"):
            children = {child for node in self.all("nodes") for child in node.indices("children")}
            return [index for index in range(len(self.all("nodes"))) if index not in children]
        return self.item("scenes", self.header.whole("scene", 0)).indices("nodes")

    def placed(self) -> Iterator[tuple[int, Entry, np.ndarray]]:
        """The nodes of the scene, parents first, as index, entry and global matrix (4, 4) float64. Hidden ones are left out."""
        if len(self.all("nodes")) > self.limits.nodes:
            count = len(self.all("nodes"))
            raise InputError(
                f"{self.path}: {count:,} nodes, more than {self.limits.nodes:,}, reduce them or raise {VARIABLES['nodes'][0]}"
            )
        queue = [(index, np.eye(4)) for index in reversed(self.roots())]
        seen: set[int] = set()
        while queue:
            index, above = queue.pop()
            node = self.item("nodes", index)
            if index in seen:
                raise self.damaged(f"{node.place} is in the scene twice: nodes have one parent and never contain themselves")
            seen.add(index)
            visibility = node.extension("KHR_node_visibility")
            if visibility is not None and not visibility.flag("visible", True):
                continue
            matrix = above @ local_matrix(node)
            yield index, node, matrix
            queue += [(child, matrix) for child in reversed(node.indices("children"))]


def local_matrix(node: Entry) -> np.ndarray:  # (4, 4) float64
    """A node's place in its parent (3.5.2)."""
    if "matrix" in node:
        return np.array(node.numbers("matrix", [0.0] * 16)).reshape(4, 4).T
    x, y, z, w = node.numbers("rotation", [0.0, 0.0, 0.0, 1.0])
    square = x * x + y * y + z * z + w * w
    k = 2 / square if 0 < square < math.inf else 0.0
    a, b, c = node.numbers("scale", [1.0, 1.0, 1.0])
    t, u, v = node.numbers("translation", [0.0, 0.0, 0.0])
    return np.array(
        [
            [a * (1 - k * (y * y + z * z)), b * k * (x * y - z * w), c * k * (x * z + y * w), t],
            [a * k * (x * y + z * w), b * (1 - k * (x * x + z * z)), c * k * (y * z - x * w), u],
            [a * k * (x * z - y * w), b * k * (y * z + x * w), c * (1 - k * (x * x + y * y)), v],
            [0, 0, 0, 1],
        ]
    )


def trs_matrices(translation: np.ndarray, rotation: np.ndarray, scale: np.ndarray) -> np.ndarray:  # -> (N, 4, 4) float64
    """Matrices of translations (N, 3), quaternions xyzw (N, 4), normalised here, and scales (N, 3)."""
    length = np.linalg.norm(rotation, axis=-1, keepdims=True)
    x, y, z, w = (np.where(length > 0, rotation, [0, 0, 0, 1]) / np.where(length > 0, length, 1)).T
    matrices = np.zeros((len(translation), 4, 4))
    matrices[:, :3, :3] = np.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
            2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
            2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
        ],
        -1,
    ).reshape(-1, 3, 3) * scale[:, None]  # fmt: skip
    matrices[:, :3, 3], matrices[:, 3, 3] = translation, 1
    return matrices


def unit(values: np.ndarray) -> np.ndarray:
    """Integers as the fractions that they stand for when normalised, float32."""
    return np.maximum(values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max), np.float32(-1))


def decoder(module: str, package: str) -> Any:
    """A module that unpacks compressed geometry, or how to get it, as text."""
    try:
        return import_module(module)
    except ImportError as error:
        why = "is not installed" if isinstance(error, ModuleNotFoundError) and error.name == module else f"is broken ({error})"
        return f"which takes the package {package}, and that {why}; pip install {package}, or export it without compression"


def _chunks(path: Path, data: bytes) -> tuple[bytes, bytes | memoryview]:
    """JSON and binary chunk of a .glb file (4.4)."""

    def damaged(reason: str) -> InputError:
        return InputError(f"{path}: damaged, {reason}; export it again")

    version, length = struct.unpack_from("<II", data, 4) if len(data) >= 20 else (0, 0)
    if version != 2:
        raise damaged("its header is not that of a glTF 2.0 binary file")
    if length > len(data):
        raise damaged(f"cut short, {len(data):,} of {length:,} bytes")
    chunks, at = [], 12
    while at + 8 <= length and len(chunks) < 2:
        size, kind = struct.unpack_from("<I4s", data, at)
        if at + 8 + size > length:
            raise damaged("a chunk is longer than the file")
        chunks.append((kind, memoryview(data)[at + 8 : at + 8 + size]))
        at += 8 + size
    if not chunks or chunks[0][0] != b"JSON":
        raise damaged("it has no header")
    return bytes(chunks[0][1]), chunks[1][1] if len(chunks) > 1 and chunks[1][0] == b"BIN\0" else b""


def _json(path: Path, text: bytes) -> dict[str, Any]:
    """The header. Its commas and brackets are counted first, as values take far more memory than their text."""
    values = sum(text.count(mark) for mark in (b",", b"[", b"{"))
    if values > _MOST_VALUES:
        raise InputError(f"{path}: a header of {values:,} values, more than {_MOST_VALUES:,}; export it as .glb")
    try:
        header = json.loads(text)
    except RecursionError:
        raise InputError(f"{path}: damaged, its header is nested too deep; export it again") from None
    except ValueError as error:
        raise InputError(f"{path}: damaged, its header is not JSON ({str(error)[:60]}); export it again") from None
    if not isinstance(header, dict):
        raise InputError(f"{path}: damaged, its header is no object; export it again")
    return header
