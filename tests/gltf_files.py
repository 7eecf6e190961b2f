"""glTF files for tests, put together number by number, without the code under test."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COMPONENT = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
TYPE = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
#: A square of two quads in the plane Z = 0, from (-1, -1) to (1, 1), left and right with vertices of their own.
POINTS = np.array(
    [[-1, -1, 0], [0, -1, 0], [0, 1, 0], [-1, 1, 0], [0, -1, 0], [1, -1, 0], [1, 1, 0], [0, 1, 0]], "<f4"
)  # fmt: skip
CORNERS = np.array([0, 1, 2, 0, 2, 3, 4, 5, 6, 4, 6, 7], "<u2")
#: The left quad sees the left half of a texture, the right one the right half. v points down.
UVS = np.array([[0.1, 0.9], [0.4, 0.9], [0.4, 0.1], [0.1, 0.1], [0.6, 0.9], [0.9, 0.9], [0.9, 0.1], [0.6, 0.1]], "<f4")


def halves(kind: str = "PNG") -> bytes:
    """A picture whose left half is (200, 0, 0) and whose right half is (0, 200, 0)."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8, 0] = pixels[:, 8:, 1] = 200
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


class GltfFile:
    """A file under construction."""

    def __init__(self) -> None:
        self.header: dict[str, Any] = {"asset": {"version": "2.0"}}
        self.data = b""

    def add(self, kind: str, **entry: Any) -> int:
        self.header.setdefault(kind, []).append(entry)
        return len(self.header[kind]) - 1

    def view(self, data: bytes, **entry: Any) -> int:
        self.data += bytes(-len(self.data) % 4)
        index = self.add("bufferViews", buffer=0, byteOffset=len(self.data), byteLength=len(data), **entry)
        self.data += data
        return index

    def accessor(self, values: Any, **entry: Any) -> int:
        values = np.asarray(values)
        width = 1 if values.ndim == 1 else int(np.prod(values.shape[1:]))
        kind = {"componentType": COMPONENT[values.dtype.str[1:]], "count": len(values), "type": TYPE[width]}
        return self.add("accessors", **{"bufferView": self.view(values.tobytes())} | kind | entry)

    def texture(self, picture: bytes | None = None, kind: str = "image/png", **entry: Any) -> int:
        image = self.add("images", bufferView=self.view(halves() if picture is None else picture), mimeType=kind)
        return self.add("textures", **{"source": image} | entry)

    def material(self, texture: int | None = None, **pbr: Any) -> int:
        return self.add(
            "materials", pbrMetallicRoughness=pbr if texture is None else {"baseColorTexture": {"index": texture}, **pbr}
        )

    def node(self, mesh: list[dict[str, Any]] | None = None, **entry: Any) -> int:
        """A node of the scene, with a mesh of these primitives."""
        mesh_only = {"weights": entry.pop("mesh_weights")} if "mesh_weights" in entry else {}
        if mesh is not None:
            entry["mesh"] = self.add("meshes", primitives=mesh, **mesh_only)
        index = self.add("nodes", **entry)
        self.header.setdefault("scenes", [{"nodes": []}])[0]["nodes"].append(index)
        return index

    def square(self, **primitive: Any) -> dict[str, Any]:
        """The primitive of :data:`POINTS` and :data:`UVS` with a texture of two halves; members replace its own."""
        attributes = {"POSITION": self.accessor(POINTS), "TEXCOORD_0": self.accessor(UVS)} | primitive.pop("attributes", {})
        own = {"attributes": attributes, "indices": self.accessor(CORNERS)}
        if "material" not in primitive:
            own["material"] = self.material(self.texture())
        return own | primitive

    def write(self, path: Path) -> Path:
        """As .glb, or as .gltf with the bytes in a file beside it."""
        if path.suffix == ".gltf":
            path.with_suffix(".bin").write_bytes(self.data)
            self.header["buffers"] = [{"byteLength": len(self.data), "uri": path.stem + ".bin"}]
            path.write_text(json.dumps(self.header))
            return path
        self.header.setdefault("buffers", [{"byteLength": len(self.data)}])
        text = json.dumps(self.header).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        if self.data:
            binary = self.data + bytes(-len(self.data) % 4)
            chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
        return path
