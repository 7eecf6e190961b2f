"""Parts of a glTF 2.0 binary file (.glb): arrays become accessors, pictures become images."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

import numpy as np

from ... import __version__
from ..files import InputError, atomic_path

FLOAT, BYTE, SHORT, INT = 5126, 5121, 5123, 5125
#: What a buffer view is for.
VERTICES, INDICES = 34962, 34963

_COMPONENT = {"f": FLOAT, "B": BYTE, "H": SHORT, "I": INT}
_TYPE = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}


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
        """An accessor of (N,) or (N, C) float32, uint32, uint16 or uint8, in a view of its own.

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
