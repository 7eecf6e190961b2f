"""The surface that a glTF 2.0 file shows: its scene in the resting pose, every primitive of triangles in the world frame.

Read here: triangles, strips and fans; skins of any number of joints a vertex, whose joints are kept (:mod:`.gltf_rig`); morph
targets at their default weights; instances (EXT_mesh_gpu_instancing); quantised, sparse and normalised arrays; Draco and
meshopt, with their packages; base colour textures with their sampler's wrapping and KHR_texture_transform, factors and vertex
colours. What an unlit picture does not show (KHR_materials_*, lights, VRM, physics, names, sounds) is left aside. What is left
out of the surface is logged.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..files import InputError
from ..mesh import encoded_array
from ..reading import VARIABLES
from .gltf import Entry, Gltf, decoder, trs_matrices, unit
from .gltf_rig import JointNodes, joint_nodes
from .parts import CLAMP, MIRROR, REPEAT, Part

log = logging.getLogger(__name__)

SPLATS = "KHR_gaussian_splatting"
_DRACO = "KHR_draco_mesh_compression"
_INSTANCES = "EXT_mesh_gpu_instancing"
_WRAPS = {10497: REPEAT, 33071: CLAMP, 33648: MIRROR}
#: Extensions read here, of objects that say where surface lies and what colour it has.
_READ = {
    _DRACO, _INSTANCES, "KHR_mesh_quantization", "EXT_meshopt_compression", "KHR_meshopt_compression", "KHR_texture_transform",
    "EXT_texture_webp", "EXT_texture_avif", "MSFT_texture_dds", "KHR_texture_basisu",
}  # fmt: skip
#: Those of primitives that leave their triangles as they are.
_HARMLESS = {"KHR_materials_variants", "EXT_mesh_features", "EXT_structural_metadata", "CESIUM_primitive_outline"}
#: Vertices moved by their joints at a time.
_CHUNK = 1 << 18


def has_splats(gltf: Gltf) -> bool:
    """Whether a mesh of the file is made of Gaussians (KHR_gaussian_splatting)."""
    return any(SPLATS in primitive.extensions for mesh in gltf.all("meshes") for primitive in mesh.entries("primitives"))


def gltf_parts(gltf: Gltf) -> list[Part]:
    """The parts of the scene, a part for each copy of a primitive.

    Raises:
        InputError: for what is damaged or beyond the budget, or geometry and textures whose compression is not read here.
    """
    placed = list(gltf.placed())
    matrices = {index: matrix for index, _, matrix in placed}
    rig = joint_nodes(gltf, placed)
    shown: dict[tuple[int, tuple[float, ...]], list[tuple[int, Entry, np.ndarray]]] = {}
    for index, node, matrix in placed:
        if "mesh" in node:
            mesh = node.whole("mesh")
            weights = tuple(node.number_list("weights") or gltf.item("meshes", mesh).number_list("weights"))
            shown.setdefault((mesh, weights), []).append((index, node, matrix))
    parts: list[Part] = []
    left_out: Counter[str] = Counter()
    totals = {"vertices": 0, "faces": 0}
    for (mesh, weights), nodes in shown.items():
        copies = [(index, node, _copies(gltf, node, matrix)) for index, node, matrix in nodes]
        count = sum(len(m) for _, _, m in copies)
        if count > gltf.limits.nodes:
            most = f"{gltf.limits.nodes:,}, reduce them or raise {VARIABLES['nodes'][0]}"
            raise InputError(f"{gltf.path}: {count:,} copies of a part, more than {most}")
        for primitive in gltf.item("meshes", mesh).entries("primitives"):
            if why := _not_a_surface(gltf, primitive):
                left_out[why] += 1
                continue
            shape = _read_primitive(gltf, primitive, weights, count, totals)
            if not len(shape.faces):
                left_out["primitives without a triangle"] += 1
                continue
            rigid = []
            for index, node, placing in copies:
                if "skin" in node and shape.joints is not None:
                    parts.append(_skinned(gltf, shape, node.whole("skin"), matrices, rig))
                else:
                    rigid.append((index, placing))
            if rigid:
                parts.append(_moved(shape, rigid, rig))
    for what, count in left_out.items():
        log.warning("%s: left out %d %s", gltf.path, count, what)
    return parts


def _not_a_surface(gltf: Gltf, primitive: Entry) -> str:
    """Why a primitive is left out, empty where it is read."""
    if SPLATS in primitive.extensions:
        return "primitives of Gaussians, beside the mesh"
    if primitive.whole("mode", 4, high=6) < 4:
        return "primitives of points or lines"
    unknown = (primitive.extensions & gltf.required) - _READ - _HARMLESS
    if unknown:
        raise InputError(f"{gltf.path}: {primitive.place} needs {min(unknown)}, which is not read here; export it without that")
    return "" if "POSITION" in primitive.entry("attributes") else "primitives without positions"


@dataclass(frozen=True)
class _Shape:
    """A primitive in its mesh's frame, with its material."""

    vertices: np.ndarray  # (V, 3) float64
    faces: np.ndarray  # (F, 3)
    normals: np.ndarray | None  # (V, 3)
    joints: np.ndarray | None  # (V, J)
    weights: np.ndarray | None  # (V, J)
    look: dict[str, Any]  # the other members of Part


def _read_primitive(gltf: Gltf, primitive: Entry, weights: Sequence[float], copies: int, totals: dict[str, int]) -> _Shape:
    packed = primitive.extension(_DRACO)
    unpacked = None if packed is None else _draco(gltf, primitive, packed)
    arrays = _Attributes(gltf, primitive, weights, unpacked)
    count = arrays.count
    positions = gltf.item("accessors", arrays.index("POSITION"))
    if unpacked is None and not {"bufferView", "sparse"} & set(positions.value):
        raise gltf.damaged(f"the positions of {primitive.place} have no data")
    if unpacked is not None:
        corners = unpacked.faces.reshape(-1)
    elif "indices" in primitive:
        corners = gltf.integers(primitive.whole("indices"), "SCALAR")[:, 0]
    else:
        corners = np.arange(count)
    totals["vertices"] += count * copies
    totals["faces"] += len(corners) * copies // (3 if primitive.whole("mode", 4) == 4 else 1)
    for what, total in totals.items():
        if total > gltf.limits.elements:
            name = VARIABLES["elements"][0]
            raise InputError(
                f"{gltf.path}: {total:,} {what}, more than {gltf.limits.elements:,}, reduce the mesh or raise {name}"
            )
    gltf.take(copies * (count * 100 + len(corners) * 16), primitive.place)
    if len(corners) and int(corners.max()) >= count:
        raise gltf.damaged(f"{primitive.place} refers to vertex {int(corners.max()):,} of {count:,}")
    faces = _triangles(gltf, primitive, corners)
    joints = [arrays.joints(k) for k in range(_sets(primitive, "JOINTS_"))]
    shares = [arrays.floats(f"WEIGHTS_{k}", "VEC4") for k in range(_sets(primitive, "WEIGHTS_"))]
    skinned = bool(joints) and len(joints) == len(shares)
    return _Shape(
        vertices=arrays.floats("POSITION", "VEC3").astype(np.float64),
        faces=faces,
        normals=arrays.floats("NORMAL", "VEC3") if "NORMAL" in arrays else None,
        joints=np.concatenate(joints, -1) if skinned else None,
        weights=np.concatenate(shares, -1) if skinned else None,
        look=_look(gltf, primitive, arrays),
    )


def _sets(primitive: Entry, name: str) -> int:
    attributes, count = primitive.entry("attributes"), 0
    while f"{name}{count}" in attributes:
        count += 1
    return count


def _triangles(gltf: Gltf, primitive: Entry, corners: np.ndarray) -> np.ndarray:  # (N,) -> (F, 3)
    """Corners of triangles, a strip or a fan (3.7.2.1)."""
    mode = primitive.whole("mode", 4)
    if mode == 4:
        if len(corners) % 3:
            log.warning("%s: %s ends in an incomplete triangle, which is left out", gltf.path, primitive.place)
        return corners[: len(corners) // 3 * 3].reshape(-1, 3)
    i = np.arange(max(len(corners) - 2, 0))
    order = (i, i + 1 + i % 2, i + 2 - i % 2) if mode == 5 else (i + 1, i + 2, np.zeros_like(i))
    return corners[np.stack(order, -1)]


class _Attributes:
    """A primitive's vertex arrays, morph targets added at their weights."""

    def __init__(self, gltf: Gltf, primitive: Entry, weights: Sequence[float], unpacked: _Unpacked | None) -> None:
        self.gltf, self.primitive, self.unpacked = gltf, primitive, unpacked
        self.own, self.weights = primitive.entry("attributes"), weights
        self.targets = primitive.entries("targets")
        self.count = gltf.count(self.index("POSITION")) if unpacked is None else len(unpacked.attributes["POSITION"])

    def __contains__(self, name: str) -> bool:
        return name in self.own

    def index(self, name: str) -> int:
        return self.own.whole(name)

    def _checked(self, name: str, values: np.ndarray) -> np.ndarray:
        if len(values) != self.count:
            raise self.gltf.damaged(f"{self.own.place}.{name} has {len(values):,} rows where POSITION has {self.count:,}")
        return values

    def floats(self, name: str, *types: str, normalized: bool = False) -> np.ndarray:  # (V, C) float32
        index = self.index(name)
        if self.unpacked is not None and name in self.unpacked.attributes:
            values = self.unpacked.attributes[name]
            width = {"VEC2": 2, "VEC3": 3, "VEC4": 4}
            if values.shape[1] not in {width[kind] for kind in types}:
                raise self.gltf.damaged(f"{self.own.place}.{name} has {values.shape[1]} numbers a vertex")
            if values.dtype.kind == "f":
                values = values.astype(np.float32)
            elif normalized or self.gltf.item("accessors", index).flag("normalized"):
                values = unit(values)
        else:
            values = self.gltf.floats(index, *types, normalized=normalized)
        values = self._checked(name, values)
        for weight, target in zip(self.weights, self.targets):
            if weight and name in target:
                values = values + np.float32(weight) * self._checked(
                    name, self.gltf.floats(target.whole(name), *types, normalized=normalized)
                )
        return values

    def joints(self, k: int) -> np.ndarray:  # (V, 4)
        name = f"JOINTS_{k}"
        if self.unpacked is not None and name in self.unpacked.attributes:
            return self._checked(name, self.unpacked.attributes[name].astype(np.int64))
        return self._checked(name, self.gltf.integers(self.index(name), "VEC4"))


def _copies(gltf: Gltf, node: Entry, matrix: np.ndarray) -> np.ndarray:  # (4, 4) -> (K, 4, 4)
    """Where a node's mesh stands: once, or as EXT_mesh_gpu_instancing says."""
    instances = node.extension(_INSTANCES)
    if instances is None:
        return matrix[None]
    attributes = instances.entry("attributes")
    kinds = {"TRANSLATION": ("VEC3", [0.0, 0, 0]), "ROTATION": ("VEC4", [0.0, 0, 0, 1]), "SCALE": ("VEC3", [1.0, 1, 1])}
    given = [name for name in kinds if name in attributes]
    if not given:
        return matrix[None]
    counts = {gltf.count(attributes.whole(name)) for name in given}
    count = counts.pop()
    if counts or count > gltf.limits.nodes:
        raise InputError(
            f"{gltf.path}: {node.place} has {count:,} instances, of {len(given)} lengths or more than {gltf.limits.nodes:,}; "
            f"export it again, or raise {VARIABLES['nodes'][0]}"
        )
    gltf.take(count * 256, node.place)
    rows = [
        gltf.floats(attributes.whole(name), kind).astype(np.float64) if name in given else np.tile(default, (count, 1))
        for name, (kind, default) in kinds.items()
    ]
    return matrix @ trs_matrices(*rows)


def _moved(shape: _Shape, copies: list[tuple[int, np.ndarray]], rig: JointNodes | None) -> Part:  # (K, 4, 4) each
    """All copies of a primitive, by their nodes, as one part, which follows the joints of a rig that the nodes hang from."""
    matrices = np.concatenate([placing for _, placing in copies])
    linear, count = matrices[:, :3, :3], len(matrices)
    faces = shape.faces.astype(np.int64) + (np.arange(count) * len(shape.vertices))[:, None, None]
    mirrored = np.linalg.det(linear) < 0
    faces[mirrored] = faces[mirrored][..., ::-1]
    normals = None if shape.normals is None else (shape.normals @ _normals_by(linear)).reshape(-1, 3)
    rows: dict[str, Any] = {
        key: np.tile(value, (count, 1)) for key, value in shape.look.items() if key in ("uvs", "vertex_colors")
    }
    if rig is not None:
        joints = np.concatenate([np.full((len(m) * len(shape.vertices), 1), rig.nearest[node]) for node, m in copies])
        rows |= {"tree": rig.tree, "joints": joints, "weights": np.ones(joints.shape)}
    return Part(
        vertices=(shape.vertices @ linear.swapaxes(1, 2) + matrices[:, None, :3, 3]).reshape(-1, 3),
        faces=faces.reshape(-1, 3),
        normals=normals,
        **shape.look | rows,
    )


def _normals_by(linear: np.ndarray) -> np.ndarray:  # (..., 3, 3)
    """What rows of normals are multiplied by where points are by ``linear``: the inverse, times the determinant's size."""
    a, b, c = linear[..., 0, :], linear[..., 1, :], linear[..., 2, :]
    adjugate = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], -1)
    return adjugate * np.where(np.linalg.det(linear) < 0, -1.0, 1.0)[..., None, None]


def _skinned(gltf: Gltf, shape: _Shape, index: int, matrices: dict[int, np.ndarray], rig: JointNodes | None) -> Part:
    """A skinned primitive in its resting pose: each vertex moved by the weighted mean of its joints' matrices (3.7.3.3)."""
    skin = gltf.item("skins", index)
    joints = skin.indices("joints")
    if absent := [joint for joint in joints if joint not in matrices]:
        raise gltf.damaged(f"{skin.place} has joint {absent[0]}, which is not in the scene")
    if rig is None or not joints:
        raise gltf.damaged(f"{skin.place} has no joints")
    world = np.stack([matrices[joint] for joint in joints])
    if "inverseBindMatrices" in skin:
        inverse = gltf.floats(skin.whole("inverseBindMatrices"), "MAT4").reshape(-1, 4, 4).swapaxes(1, 2)
        if len(inverse) < len(joints):
            raise gltf.damaged(f"{skin.place} has {len(inverse)} inverseBindMatrices for {len(joints)} joints")
        world = world @ inverse[: len(joints)]
    assert shape.joints is not None and shape.weights is not None
    gltf.take(shape.joints.size * 48, skin.place)
    numbers = np.array([rig.number[joint] for joint in joints], np.int64)
    follow, shares = np.empty(shape.joints.shape, np.int64), np.empty(shape.joints.shape)
    vertices, normals = np.empty_like(shape.vertices), None if shape.normals is None else np.empty_like(shape.normals)
    mirrored = 0
    for start in range(0, len(vertices), _CHUNK):
        rows = slice(start, start + _CHUNK)
        weights = np.maximum(np.nan_to_num(shape.weights[rows].astype(np.float64)), 0)
        total = weights.sum(-1, keepdims=True)
        weights[:, :1] += total == 0  # nothing said: the first joint moves it
        weights /= weights.sum(-1, keepdims=True)
        chosen = np.where(weights > 0, shape.joints[rows], 0)
        if int(chosen.max()) >= len(joints):
            raise gltf.damaged(f"a vertex follows joint {int(chosen.max())} of {len(joints)} in {skin.place}")
        follow[rows], shares[rows] = numbers[chosen], weights
        moving = np.zeros((len(weights), 4, 4))
        for k in range(weights.shape[1]):
            moving += weights[:, k, None, None] * world[chosen[:, k]]
        vertices[rows] = (moving[:, :3, :3] @ shape.vertices[rows, :, None])[..., 0] + moving[:, :3, 3]
        mirrored += int((np.linalg.det(moving[:, :3, :3]) < 0).sum())
        if normals is not None and shape.normals is not None:
            normals[rows] = (shape.normals[rows, None] @ _normals_by(moving[:, :3, :3]))[:, 0]
    faces = shape.faces[:, ::-1] if mirrored > len(vertices) / 2 else shape.faces
    return Part(
        vertices=vertices, faces=faces, normals=normals, **shape.look, tree=rig.tree, joints=follow, weights=shares,
    )  # fmt: skip


# --- the look -----------------------------------------------------------------------------------------------------------


def _look(gltf: Gltf, primitive: Entry, arrays: _Attributes) -> dict[str, Any]:
    """Colours and texture of a primitive."""
    material = (
        gltf.item("materials", primitive.whole("material")) if "material" in primitive else Entry(gltf.path, {}, "material")
    )
    factor, texture = _base_color(material)
    mode = material.text("alphaMode", "OPAQUE")
    look: dict[str, Any] = {
        "face_color": encoded_array(factor),
        "alpha_cutoff": {"MASK": material.number("alphaCutoff", 0.5), "BLEND": 0.5}.get(mode, 0.0),
    }
    if "COLOR_0" in arrays:
        colors = arrays.floats("COLOR_0", "VEC3", "VEC4", normalized=True)
        if colors.shape[1] == 3:
            colors = np.concatenate([colors, np.ones_like(colors[:, :1])], -1)
        look["vertex_colors"] = encoded_array(colors)
    if texture is None:
        return look
    placing = texture.extension("KHR_texture_transform")
    chosen = texture.whole("texCoord", 0)
    name = f"TEXCOORD_{chosen if placing is None else placing.whole('texCoord', chosen)}"
    if name not in arrays:
        log.warning("%s: %s has a texture and no %s, its texture is left out", gltf.path, primitive.place, name)
        return look
    uvs = arrays.floats(name, "VEC2").astype(np.float64)
    if placing is not None:
        angle = placing.number("rotation", 0.0)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])  # rows times R^T
        uvs = (uvs * placing.numbers("scale", [1.0, 1.0])) @ turn + placing.numbers("offset", [0.0, 0.0])
    entry = gltf.item("textures", texture.whole("index"))
    sampler = gltf.item("samplers", entry.whole("sampler")) if "sampler" in entry else Entry(gltf.path, {}, "sampler")
    wrap = tuple(_WRAPS.get(sampler.whole(key, 10497), "") for key in ("wrapS", "wrapT"))
    if "" in wrap:
        raise sampler.wrong("wrapS" if not wrap[0] else "wrapT", "10497, 33071 or 33648")
    return look | {"uvs": uvs, "image": gltf.image(_source(gltf, entry)), "wrap": wrap}


def _base_color(material: Entry) -> tuple[list[float], Entry | None]:
    """Linear factor RGBA and texture reference of a material."""
    pbr, white = material.entry("pbrMetallicRoughness"), [1.0] * 4
    glossy = material.extension("KHR_materials_pbrSpecularGlossiness")
    if glossy is not None and not pbr.value:
        return glossy.numbers("diffuseFactor", white), glossy.entry("diffuseTexture") if "diffuseTexture" in glossy else None
    return pbr.numbers("baseColorFactor", white), pbr.entry("baseColorTexture") if "baseColorTexture" in pbr else None


def _source(gltf: Gltf, texture: Entry) -> int:
    """The picture of a texture: the plain one, else one of a kind that is read here."""
    if "source" in texture:
        return texture.whole("source")
    other = texture.extension("EXT_texture_webp", "EXT_texture_avif", "MSFT_texture_dds")
    if other is not None:
        return other.whole("source")
    names = ", ".join(sorted(texture.extensions)) or "no picture"
    raise InputError(
        f"{gltf.path}: {texture.place} has {names} alone, which is not read here; export it with PNG or JPEG textures"
    )


# --- Draco --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Unpacked:
    faces: np.ndarray  # (F, 3)
    attributes: dict[str, np.ndarray]  # (V, C) by name


def _draco(gltf: Gltf, primitive: Entry, packed: Entry) -> _Unpacked | None:
    """A primitive's arrays by the package DracoPy; None where they are there uncompressed too and the package is not."""
    module = decoder("DracoPy", "DracoPy")
    data = bytes(gltf.view(packed.whole("bufferView")))
    position = primitive.entry("attributes").whole("POSITION")
    if isinstance(module, str):
        if "bufferView" in gltf.item("accessors", position):
            return None
        raise InputError(f"{gltf.path}: {primitive.place} is compressed with Draco, {module}")
    promised = _draco_size(data)
    if promised is None or promised[0] > gltf.limits.elements or promised[1] > gltf.limits.elements:
        raise gltf.damaged(f"the Draco data of {primitive.place} is none, or promises more than a mesh may have")
    gltf.take(promised[0] * 36 + promised[1] * 200, primitive.place)
    try:
        mesh = module.decode(data)
        faces, found = np.asarray(mesh.faces), {int(a["unique_id"]): np.asarray(a["data"]) for a in mesh.attributes}
    except Exception as error:  # the package's own kinds derive from nothing narrower
        raise gltf.damaged(f"the Draco data of {primitive.place} cannot be unpacked ({str(error)[:60]})") from None
    wanted = packed.entry("attributes")
    names = {name: wanted.whole(name) for name in wanted.value}
    if absent := [name for name, key in names.items() if key not in found]:
        raise gltf.damaged(f"the Draco data of {primitive.place} lacks {absent[0]}")
    attributes = {name: found[key].reshape(len(found[key]), -1) for name, key in names.items()}
    if "POSITION" not in attributes:
        raise gltf.damaged(f"the Draco data of {primitive.place} has no positions")
    return _Unpacked(faces.reshape(-1, 3), attributes)


def _draco_size(data: bytes) -> tuple[int, int] | None:
    """Faces and vertices that a Draco mesh promises (bitstream 2.2, headers of both connectivity encoders); None for others.

    Metadata, which glTF has no use for, is not read.
    """
    if len(data) < 16 or data[:5] != b"DRACO" or data[5:7] != b"\x02\x02" or data[7] != 1 or data[8] > 1 or data[10] & 0x80:
        return None
    at = 11 + data[8]  # edgebreaker: a byte names its traversal
    numbers = []
    for _ in range(2):
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                return None
            byte = data[at]
            value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
            if not byte & 0x80:
                break
        numbers.append(value)
    return (numbers[0], numbers[1]) if data[8] == 0 else (numbers[1], numbers[0])
