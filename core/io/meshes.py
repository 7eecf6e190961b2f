"""Mesh files: GLB, GLTF, OBJ, PLY and STL in, GLB out."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import re
import struct
import urllib.parse
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files import InputError, atomic_path
from ..mesh import Mesh, cleaned_mesh, decoded, encoded, encoded_array, rgba_array
from ..pictures import PictureBudget, decode_texture

log = logging.getLogger(__name__)

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl")
#: Bounds on what one file may ask for, so that a hostile one is refused before its memory is taken.
MAX_FILE_BYTES = 2**30
MAX_ELEMENTS = 20_000_000  # vertices, and faces after instancing
#: glTF extensions that change only what an unlit render does not show, or that are read here.
_GLTF_EXTENSIONS = {
    "KHR_texture_transform", "KHR_materials_unlit", "KHR_materials_pbrSpecularGlossiness", "EXT_texture_webp",
    "KHR_mesh_quantization", "KHR_lights_punctual", "KHR_materials_clearcoat", "KHR_materials_emissive_strength",
    "KHR_materials_ior", "KHR_materials_iridescence", "KHR_materials_sheen", "KHR_materials_specular",
    "KHR_materials_transmission", "KHR_materials_variants", "KHR_materials_volume", "KHR_materials_anisotropy",
}  # fmt: skip
_GLTF_COMPONENT_BYTES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
_GLTF_COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}


def load_mesh(path: str | os.PathLike[str]) -> Mesh:
    """A mesh file (GLB, GLTF, OBJ, PLY, STL) with all its parts joined, as its world frame has it.

    Node transforms are applied, faces without area and unused vertices dropped. A glTF material of alpha mode BLEND is cut at
    0.5, as there is no order to blend in.

    Raises:
        InputError: for a missing, foreign, damaged, empty or oversized file, values that are not numbers, a missing texture.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: not a mesh format that is read here, convert it to one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file, check the path of the mesh")
    limit = MAX_FILE_BYTES // 4 if path.suffix.lower() == ".obj" else MAX_FILE_BYTES  # text takes many times its size to read
    if path.stat().st_size > limit:
        raise InputError(f"{path}: larger than {limit >> 20} MB, reduce the mesh")
    files = _Folder(path)
    try:
        if path.suffix.lower() in (".glb", ".gltf"):
            parts = list(_gltf_parts(path, files))
        else:
            parts = list(_plain_parts(path, files))
        return _joined(parts, path)
    except InputError:
        raise
    except Exception as error:  # readers of damaged files raise anything
        log.debug("reading %s", path, exc_info=True)
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: damaged or not a {path.suffix[1:].upper()} file ({reason}), export it again") from error


@dataclass(frozen=True)
class _Part:
    """One piece of a file as numpy arrays, in the world frame."""

    vertices: np.ndarray  # (V, 3)
    faces: np.ndarray  # (F, 3)
    normals: np.ndarray | None = None  # (V, 3)
    uvs: np.ndarray | None = None  # (V, 2) v down
    vertex_colors: np.ndarray | None = None  # (V, 4) sRGB
    face_color: np.ndarray | None = None  # (4,) or (F, 4) sRGB
    image: Image.Image | None = None
    alpha_cutoff: float = 0.0


class _Folder:
    """Files beside a mesh, as its reader asks for them; keeps the first refusal, since readers swallow what is raised."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pictures = PictureBudget()
        self.refusal: InputError | None = None

    def refuse(self, message: str) -> InputError:
        self.refusal = self.refusal or InputError(f"{self.path}: {message}")
        return self.refusal

    def get(self, key: str) -> bytes:
        name = urllib.parse.unquote(key.strip().replace("\\", "/"))
        for candidate in (name, name.split()[-1], Path(name).name):  # options precede an MTL's name; exporters leave folders
            file = self.path.parent / candidate
            if file.is_file():
                if file.stat().st_size > MAX_FILE_BYTES:
                    raise self.refuse(f"{candidate} is larger than {MAX_FILE_BYTES >> 20} MB, reduce it")
                data = file.read_bytes()
                if file.suffix.lower() not in (".mtl", ".bin"):
                    self.open_image(data, candidate)
                return data
        raise self.refuse(f"{name} is missing, put it beside the mesh or remove the reference to it")

    def open_image(self, data: bytes, name: str) -> Image.Image:
        """The picture with only its header read; counts its pixels against the limit."""
        try:
            return self.pictures.open(data, name, str(self.path))
        except InputError as error:
            self.refusal = self.refusal or error
            raise self.refusal from None

    def __getitem__(self, key: str) -> bytes:
        return self.get(key)


def _read_scene(source: Any, file_type: str, files: Any) -> tuple[Any, list[tuple[str, Any]]]:
    """trimesh's scene, and the nodes that hold triangles with their geometry, the total size checked before any is copied."""
    import trimesh

    scene = trimesh.load_scene(source, file_type=file_type, resolver=files, process=False)
    if files.refusal is not None:
        raise files.refusal
    found = []
    for node in scene.graph.nodes_geometry:
        geometry = scene.geometry[scene.graph[node][1]]
        if isinstance(geometry, trimesh.Trimesh) and len(geometry.faces):
            found.append((node, geometry))
    for what in ("vertices", "faces"):
        total = sum(len(getattr(geometry, what)) for _, geometry in found)
        if total > MAX_ELEMENTS:
            raise InputError(f"{files.path}: {total:,} {what}, more than {MAX_ELEMENTS:,}, reduce the mesh")
    return scene, found


def _moved(geometry: Any, transform: np.ndarray) -> dict[str, Any]:  # (4, 4) or (V, 4, 4)
    """Vertices, faces and given normals of a trimesh in the world."""
    linear = transform[..., :3, :3]
    faces = np.asarray(geometry.faces)
    normals = np.asarray(geometry.vertex_normals) if "vertex_normals" in geometry._cache else None
    if normals is not None:
        normals = (normals[:, None] @ np.linalg.pinv(linear))[:, 0]
    return {
        "vertices": (linear @ np.asarray(geometry.vertices)[..., None])[..., 0] + transform[..., :3, 3],
        "faces": faces[:, ::-1] if np.linalg.det(linear).mean() < 0 else faces,
        "normals": normals,
    }


def _plain_parts(path: Path, files: _Folder) -> Iterator[_Part]:
    """Parts of OBJ, PLY and STL files, whose colours are sRGB as they stand."""
    if path.suffix.lower() == ".ply":
        _check_ply(path)
    with path.open("rb") as file:
        scene, found = _read_scene(file, path.suffix[1:].lower(), files)
        for node, geometry in found:
            part = _moved(geometry, scene.graph[node][0])
            visual = geometry.visual
            if visual.kind == "texture":
                material = visual.material
                image = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
                uvs = None if visual.uv is None else np.asarray(visual.uv, np.float64) * [1, -1] + [0, 1]
                if image is not None and uvs is not None:
                    part |= {"uvs": uvs, "image": image}
                else:
                    part["face_color"] = np.asarray(material.main_color) / 255
                color = visual.vertex_attributes.get("color")
                if color is not None:
                    part["vertex_colors"] = rgba_array(color)
            elif visual.kind == "vertex":
                part["vertex_colors"] = rgba_array(visual.vertex_colors)
            elif visual.kind == "face":
                part["face_color"] = rgba_array(visual.face_colors)
            yield _Part(**part)


def _check_ply(path: Path) -> None:
    """Refuses a PLY whose header promises more elements than its bytes can hold."""
    with path.open("rb") as file:
        header = file.read(1 << 16).split(b"end_header")[0]
    for kind, count in re.findall(rb"element\s+(\w+)\s+(\d+)", header):
        if int(count) > min(path.stat().st_size, MAX_ELEMENTS):
            raise InputError(f"{path}: announces {int(count):,} of {kind.decode()}, more than it can hold, export it again")


def _gltf_parts(path: Path, files: _Folder) -> Iterator[_Part]:
    """Parts of a glTF 2.0 file. trimesh reads geometry and nodes; materials, linear and exact, and skins are read here."""
    header, buffers = _read_gltf(path, files)
    materials = [*header.get("materials", []), {}]
    for mesh in header.get("meshes", []):
        for primitive in mesh["primitives"]:
            index = primitive.setdefault("material", len(materials) - 1)
            attributes = primitive["attributes"]
            texture = _base_color(materials[index])[1]
            chosen = _placing(texture).get("texCoord", texture.get("texCoord", 0))
            if texture:
                attributes["TEXCOORD_0"] = attributes[f"TEXCOORD_{chosen}"]
            for name in ("JOINTS_0", "WEIGHTS_0"):  # trimesh hands names through that begin with an underscore
                if name in attributes:
                    attributes["_" + name] = attributes[name]
    slim = {k: header[k] for k in ("asset", "scene", "scenes", "meshes", "accessors", "bufferViews") if k in header}
    # Names say which node and which material a geometry came from.
    placed = ("children", "mesh", "matrix", "translation", "rotation", "scale")
    slim["nodes"] = [{k: n[k] for k in placed if k in n} | {"name": str(i)} for i, n in enumerate(header.get("nodes", []))]
    slim["materials"] = [{"name": str(i)} for i in range(len(materials))]
    slim["buffers"] = [{"uri": f"#{i}"} for i in range(len(buffers))]
    images: dict[int, Image.Image] = {}
    resolver = _Buffers(path, buffers)
    scene, found = _read_scene(BytesIO(json.dumps(slim).encode()), "gltf", resolver)
    for node, geometry in found:
        material = materials[int(geometry.visual.material.name)]
        skin = header["nodes"][int(node.split("_")[0])].get("skin")
        transform = scene.graph[node][0]
        if skin is not None and "_WEIGHTS_0" in geometry.vertex_attributes:
            transform = _skinning(geometry, header, buffers, scene, skin)
        part = _moved(geometry, transform)
        factor, texture = _base_color(material)
        part["face_color"] = encoded_array(factor)
        color = geometry.visual.vertex_attributes.get("color")
        if color is not None:
            part["vertex_colors"] = encoded_array(rgba_array(color))
        mode = material.get("alphaMode", "OPAQUE")
        part["alpha_cutoff"] = {"MASK": float(material.get("alphaCutoff", 0.5)), "BLEND": 0.5}.get(mode, 0.0)
        if texture and geometry.visual.uv is not None:
            part["uvs"] = np.asarray(geometry.visual.uv, np.float64) * [1, -1] + [0, 1]
            placing = _placing(texture)
            if placing:
                angle = placing.get("rotation", 0.0)
                turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])  # rows times R^T
                part["uvs"] = (part["uvs"] * placing.get("scale", [1, 1])) @ turn + placing.get("offset", [0, 0])
            source = header["textures"][texture["index"]]
            source = source.get("extensions", {}).get("EXT_texture_webp", source)["source"]
            if source not in images:
                images[source] = _gltf_image(header["images"][source], header, buffers, files)
            part["image"] = images[source]
        yield _Part(**part)


def _skinning(geometry: Any, header: dict[str, Any], buffers: list[bytes], scene: Any, index: int) -> np.ndarray:  # (V, 4, 4)
    """World transform of each vertex of a skinned geometry in its resting pose: the weighted mean of its joints' (3.7.3.3)."""
    skin = header["skins"][index]
    matrices = np.stack([scene.graph[str(joint)][0] for joint in skin["joints"]])
    if "inverseBindMatrices" in skin:
        accessor = header["accessors"][skin["inverseBindMatrices"]]
        view = header["bufferViews"][accessor["bufferView"]]
        start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
        inverse = np.frombuffer(buffers[view["buffer"]], "<f4", 16 * len(matrices), start)
        matrices = matrices @ inverse.reshape(-1, 4, 4).swapaxes(1, 2)  # stored by columns
    weights = geometry.vertex_attributes["_WEIGHTS_0"].astype(np.float64)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-12)
    return np.einsum("vj,vjab->vab", weights, matrices[geometry.vertex_attributes["_JOINTS_0"]])


def _base_color(material: dict[str, Any]) -> tuple[list[float], dict[str, Any]]:
    """Linear factor RGBA and texture reference (empty where there is none) of a glTF material."""
    pbr = material.get("pbrMetallicRoughness")
    glossy = material.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness")
    if glossy is not None and not pbr:
        return glossy.get("diffuseFactor", [1, 1, 1, 1]), glossy.get("diffuseTexture", {})
    pbr = pbr or {}
    return pbr.get("baseColorFactor", [1, 1, 1, 1]), pbr.get("baseColorTexture", {})


def _placing(texture: dict[str, Any]) -> dict[str, Any]:
    return texture.get("extensions", {}).get("KHR_texture_transform", {})


class _Buffers(_Folder):
    """The buffers of a glTF file, already read, under the names #0, #1, ..."""

    def __init__(self, path: Path, buffers: list[bytes]) -> None:
        super().__init__(path)
        self.buffers = buffers

    def get(self, key: str) -> bytes:
        return self.buffers[int(key[1:])]


def read_gltf(path: Path, extensions: Set[str] = frozenset()) -> tuple[dict[str, Any], list[bytes]]:
    """Header and buffers of a .glb or .gltf file, every declared length and count checked against what is there.

    Args:
        extensions: that the file may require, those of meshes aside.

    Raises:
        InputError: for a missing, damaged, oversized or foreign file; damage may raise other errors too.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file, check the path")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MB, export fewer frames or a smaller object")
    return _read_gltf(path, _Folder(path), extensions)


def _read_gltf(path: Path, files: _Folder, extensions: Set[str] = frozenset()) -> tuple[dict[str, Any], list[bytes]]:
    def damaged(reason: str) -> InputError:
        return InputError(f"{path}: {reason}, export it again")

    data = path.read_bytes()
    binary = b""
    if path.suffix.lower() == ".glb":
        magic, version, length = struct.unpack_from("<4sII", data) if len(data) >= 20 else (b"", 0, 0)
        if magic != b"glTF" or version != 2:
            raise damaged("not a glTF 2.0 binary file")
        if length > len(data):
            raise damaged(f"cut short, {len(data):,} of {length:,} bytes")
        chunks, at = [], 12
        while at + 8 <= length:
            size, kind = struct.unpack_from("<I4s", data, at)
            if at + 8 + size > length:
                raise damaged("a chunk is longer than the file")
            chunks.append((kind, data[at + 8 : at + 8 + size]))
            at += 8 + size
        if not chunks or chunks[0][0] != b"JSON":
            raise damaged("has no header")
        header = json.loads(chunks[0][1])
        binary = next((chunk for kind, chunk in chunks if kind == b"BIN\0"), b"")
    else:
        header = json.loads(data)
    unknown = set(header.get("extensionsRequired", [])) - _GLTF_EXTENSIONS - extensions
    if unknown:
        raise InputError(f"{path}: needs {', '.join(sorted(unknown))}, which is not read here, export it without compression")
    if not str(header.get("asset", {}).get("version", "2.0")).startswith("2"):
        raise InputError(f"{path}: only glTF 2.0 is read here, convert it")
    buffers = []
    for index, buffer in enumerate(header.get("buffers", [])):
        content = _uri_bytes(buffer["uri"], files) if "uri" in buffer else binary
        if buffer.get("byteLength", 0) > len(content):
            raise damaged(f"buffer {index} is cut short, {len(content):,} of {buffer['byteLength']:,} bytes")
        buffers.append(content)
    views = header.get("bufferViews", [])
    for index, view in enumerate(views):
        if not 0 <= view.get("byteOffset", 0) <= view.get("byteOffset", 0) + view["byteLength"] <= len(buffers[view["buffer"]]):
            raise damaged(f"buffer view {index} reaches beyond its buffer")
    for index, accessor in enumerate(header.get("accessors", [])):
        count = accessor["count"]
        size = _GLTF_COMPONENT_BYTES[accessor["componentType"]] * _GLTF_COMPONENTS[accessor["type"]]
        if count > 3 * MAX_ELEMENTS:  # indices come in threes
            raise InputError(f"{path}: {count:,} elements in accessor {index}, reduce the mesh")
        if "bufferView" in accessor:
            view = views[accessor["bufferView"]]
            stride = view.get("byteStride", size)
            if accessor.get("byteOffset", 0) + (count - 1) * stride + size > view["byteLength"]:
                raise damaged(f"accessor {index} reaches beyond its buffer")
    return header, buffers


def _uri_bytes(uri: str, files: _Folder) -> bytes:
    if not uri.startswith("data:"):
        return files.get(uri)
    return base64.b64decode(uri.split(",", 1)[1])


def _gltf_image(image: dict[str, Any], header: dict[str, Any], buffers: list[bytes], files: _Folder) -> Image.Image:
    if "uri" in image:
        data = _uri_bytes(image["uri"], files)
    else:
        view = header["bufferViews"][image["bufferView"]]
        start = view.get("byteOffset", 0)
        data = buffers[view["buffer"]][start : start + view["byteLength"]]
    name = image.get("name") or image.get("uri", "")[:40] or image.get("mimeType", "")
    return files.open_image(data, name)


def _joined(parts: Sequence[_Part], path: Path) -> Mesh:
    """The parts as one mesh, checked and cleaned."""
    if not parts:
        raise InputError(f"{path}: has no faces, choose a surface mesh (point clouds and splats are not meshes)")
    offsets = np.cumsum([0] + [len(p.vertices) for p in parts])

    def vertex_rows(name: str, width: int, filling: float) -> np.ndarray | None:
        if all(getattr(p, name) is None for p in parts):
            return None
        rows = [getattr(p, name) for p in parts]
        return np.concatenate([np.full((len(p.vertices), width), filling) if r is None else r for p, r in zip(parts, rows)])

    arrays: dict[str, np.ndarray | None] = {
        "vertices": np.concatenate([p.vertices for p in parts]),
        "normals": vertex_rows("normals", 3, 0),
        "uvs": vertex_rows("uvs", 2, 0),
        "vertex_colors": vertex_rows("vertex_colors", 4, 1),
    }
    textures: dict[int, Tensor] = {}
    for part in parts:
        if part.image is not None and id(part.image) not in textures:
            textures[id(part.image)] = decode_texture(part.image, str(path))
    order = list(textures)
    lengths = [len(p.faces) for p in parts]
    texture = [-1 if p.image is None else order.index(id(p.image)) for p in parts]
    color = [np.ones(4) if p.face_color is None else p.face_color for p in parts]
    return cleaned_mesh(
        arrays,
        np.concatenate([p.faces + offset for p, offset in zip(parts, offsets)]),
        np.repeat(texture, lengths),
        np.concatenate([np.broadcast_to(c, (n, 4)) for c, n in zip(color, lengths)]),
        np.repeat([p.alpha_cutoff for p in parts], lengths),
        tuple(textures.values()),
        str(path),
    )


def write_glb(path: str | os.PathLike[str], mesh: Mesh) -> None:
    """Writes a GLB file, one part for each material, through a temporary name.

    Colour factors become part of the textures, as 8-bit factors in linear light would band; vertex colours are stored in 8 bits
    of linear light.
    """
    import trimesh
    from trimesh.exchange.gltf import export_glb
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    scene = trimesh.Scene()
    keys = torch.cat([mesh.face_texture[:, None].double(), mesh.face_color, mesh.face_alpha_cutoff[:, None]], -1)
    materials, member = keys.unique(dim=0, return_inverse=True)
    for index, key in enumerate(materials.tolist()):
        faces = mesh.faces[member == index]
        used, inverse = faces.unique(return_inverse=True)
        picture = decoded(mesh.textures[int(key[0])] if key[0] >= 0 else torch.ones(1, 1, 4))
        picture = encoded(picture * decoded(torch.tensor([key[1:5]]))[0].to(picture))
        image = Image.fromarray((picture.clamp(0, 1) * 255).round().byte().cpu().numpy())
        cutoff = key[5]
        if cutoff == 0:
            image = image.convert("RGB")
        uvs = torch.full((len(used), 2), 0.5) if mesh.uvs is None else mesh.uvs[used]
        visual = TextureVisuals(
            uv=(uvs.cpu().double() * torch.tensor([1.0, -1.0]) + torch.tensor([0.0, 1.0])).numpy(),
            material=PBRMaterial(
                name=f"material_{index}",
                baseColorTexture=image,
                baseColorFactor=[255, 255, 255, 255],
                metallicFactor=0.0,
                roughnessFactor=1.0,
                doubleSided=True,
                alphaMode="MASK" if cutoff > 0 else "OPAQUE",
                alphaCutoff=cutoff if cutoff > 0 else None,
            ),
        )
        if mesh.vertex_colors is not None:
            visual.vertex_attributes["color"] = (decoded(mesh.vertex_colors[used]) * 255).round().byte().cpu().numpy()
        part = trimesh.Trimesh(mesh.vertices[used].cpu().numpy(), inverse.cpu().numpy(), visual=visual, process=False)
        if mesh.normals is not None and bool((mesh.normals[used].norm(dim=-1) > 0.5).all()):
            part.vertex_normals = mesh.normals[used].cpu().numpy()
        scene.add_geometry(part, geom_name=f"part_{index}")
    with atomic_path(path) as temporary:
        temporary.write_bytes(export_glb(scene))
