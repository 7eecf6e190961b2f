"""Triangle meshes: reading through trimesh, colours of the surface, sampling.

Colours are what an unlit viewer shows: sRGB. Texture, vertex colour and base colour factor multiply in linear light, as glTF
defines it; vertex colours and factors are stored sRGB-encoded here, like every other colour of the program.
"""

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
from dataclasses import dataclass, fields, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .files import InputError, atomic_path

log = logging.getLogger(__name__)

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl")

#: Bounds on what one file may ask for, so that a hostile one is refused before its memory is taken.
MAX_FILE_BYTES = 2**30
MAX_ELEMENTS = 20_000_000  # vertices, and faces after instancing
MAX_TEXTURE_PIXELS = 2**26  # all base colour textures together, as stored in the file
MAX_TEXTURE_SIDE = 4096  # larger textures are reduced at reading

#: glTF extensions that change only what an unlit render does not show, or that are read here.
_GLTF_EXTENSIONS = {
    "KHR_texture_transform", "KHR_materials_unlit", "KHR_materials_pbrSpecularGlossiness", "EXT_texture_webp",
    "KHR_mesh_quantization", "KHR_lights_punctual", "KHR_materials_clearcoat", "KHR_materials_emissive_strength",
    "KHR_materials_ior", "KHR_materials_iridescence", "KHR_materials_sheen", "KHR_materials_specular",
    "KHR_materials_transmission", "KHR_materials_variants", "KHR_materials_volume", "KHR_materials_anisotropy",
}  # fmt: skip
_GLTF_COMPONENT_BYTES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
_GLTF_COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh, all parts joined, in the world frame (+Y up).

    Args:
        vertices: positions.
        faces: vertex indices.
        normals: unit vertex normals; a zero row means "use the face's". None where the file had none.
        uvs: texture coordinates with v DOWN from the texture's top row: row = v * height. They repeat outside [0, 1].
        vertex_colors: RGBA, sRGB-encoded, straight alpha; interpolated in linear light.
        textures: sRGB RGBA pictures, straight alpha, any sizes.
        face_texture: index into ``textures``, -1 where the face has none.
        face_color: base colour factor RGBA, sRGB-encoded.
        face_alpha_cutoff: surface points of smaller alpha are holes; 0 ignores alpha.
        name: for messages.
    """

    vertices: Tensor  # (V, 3) float32
    faces: Tensor  # (F, 3) int64
    normals: Tensor | None = None  # (V, 3)
    uvs: Tensor | None = None  # (V, 2)
    vertex_colors: Tensor | None = None  # (V, 4)
    textures: tuple[Tensor, ...] = ()  # (h, w, 4)
    face_texture: Tensor = None  # type: ignore[assignment]  # (F,) int64; texture 0 where there is one
    face_color: Tensor = None  # type: ignore[assignment]  # (F, 4); white
    face_alpha_cutoff: Tensor = None  # type: ignore[assignment]  # (F,); 0
    name: str = "mesh"

    def __post_init__(self) -> None:
        count, device = len(self.faces), self.vertices.device
        if self.face_texture is None:
            index = 0 if self.textures and self.uvs is not None else -1
            object.__setattr__(self, "face_texture", torch.full((count,), index, dtype=torch.int64, device=device))
        if self.face_color is None:
            object.__setattr__(self, "face_color", torch.ones(count, 4, device=device))
        if self.face_alpha_cutoff is None:
            object.__setattr__(self, "face_alpha_cutoff", torch.zeros(count, device=device))
        vertices = len(self.vertices)
        shapes = {
            "vertices": (vertices, 3), "faces": (count, 3), "normals": (vertices, 3), "uvs": (vertices, 2),
            "vertex_colors": (vertices, 4), "face_texture": (count,), "face_color": (count, 4), "face_alpha_cutoff": (count,),
        }  # fmt: skip
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"mesh: {name} has shape {tuple(value.shape)}, expected {shape}")

    @property
    def has_color(self) -> bool:
        """Whether the surface carries colour: a texture, vertex colours, or factors other than one grey."""
        if bool((self.face_texture >= 0).any()) or self.vertex_colors is not None:
            return True
        rgb = self.face_color[:, :3]
        return bool((rgb - rgb[:1, :1]).abs().max() > 0.5 / 255) if len(rgb) else False

    def to(self, device: torch.device | str) -> Mesh:
        """The mesh with its tensors on ``device``."""
        moved = {f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **moved, textures=tuple(t.to(device) for t in self.textures))

    def transformed(self, matrix: Tensor) -> Mesh:  # (4, 4)
        """Moved by an affine map; a mirroring one also turns the faces' winding."""
        matrix = matrix.to(self.vertices)
        linear = matrix[:3, :3]
        normals = self.normals
        if normals is not None:
            turned = normals @ torch.linalg.inv(linear)  # inverse transpose, applied to rows
            normals = torch.nn.functional.normalize(turned, dim=-1)
        mirrored = bool(torch.linalg.det(linear) < 0)
        return replace(
            self,
            vertices=self.vertices @ linear.T + matrix[:3, 3],
            normals=normals,
            faces=self.faces.flip(-1) if mirrored else self.faces,
        )

    def normalized(self) -> tuple[Mesh, Tensor]:
        """The mesh centred on the origin with longest bounding-box side 1, and the matrix ``(4, 4)`` that did it.

        Raises:
            InputError: for a mesh of no extent.
        """
        matrix = centring(self.vertices[self.faces.reshape(-1)], self.name)
        return self.transformed(matrix.float()), matrix.to(self.vertices)

    def turned(self, degrees_about_y: float) -> Mesh:
        """Turned about +Y, counter-clockwise seen from above: at +90 what faced +Z faces +X."""
        return self.transformed(turn_about_y(degrees_about_y))

    def face_normals(self) -> Tensor:  # (F, 3)
        """Unit normals by the faces' winding (counter-clockwise seen from outside)."""
        a, b, c = self.vertices[self.faces].unbind(1)
        return torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1)


def centring(points: Tensor, name: str) -> Tensor:  # (N, 3) -> (4, 4) float64
    """The matrix that centres points on the origin and makes their bounding box's longest side 1.

    Raises:
        InputError: for points of no extent.
    """
    points = points.cpu().double()
    low, high = points.amin(0), points.amax(0)
    side = float((high - low).max())
    if not side > 0:
        raise InputError(f"{name}: all its points coincide, choose an object with an extent")
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] /= side
    matrix[:3, 3] = -(low + high) / 2 / side
    return matrix


def turn_about_y(degrees: float) -> Tensor:  # (4, 4)
    """A turn about +Y, counter-clockwise seen from above."""
    a = math.radians(degrees)
    matrix = torch.eye(4)
    matrix[0, 0] = matrix[2, 2] = math.cos(a)
    matrix[0, 2], matrix[2, 0] = math.sin(a), -math.sin(a)
    return matrix


# --- colours of the surface -------------------------------------------------------------------------------------------


def srgb_to_linear(x: Tensor) -> Tensor:
    """The sRGB decoding curve, elementwise."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(x: Tensor) -> Tensor:
    """The sRGB encoding curve, elementwise."""
    return torch.where(x <= 0.0031308, x * 12.92, 1.055 * x.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)


def decoded(rgba: Tensor) -> Tensor:  # (..., 4)
    """sRGB colours with alpha in linear light."""
    return torch.cat([srgb_to_linear(rgba[..., :3]), rgba[..., 3:]], -1)


def encoded(rgba: Tensor) -> Tensor:  # (..., 4)
    """Linear colours with alpha as sRGB."""
    return torch.cat([linear_to_srgb(rgba[..., :3]), rgba[..., 3:]], -1)


@dataclass(frozen=True)
class TextureAtlas:
    """All textures with their halved levels in one flat buffer: what one gather, or one kernel, can sample.

    Args:
        texels: all levels of all textures, row-major, one after the other; RGB in linear light, so that filters average light.
        table: start, height and width of each level; unused levels repeat the last one.
        levels: number of levels of each texture.
    """

    texels: Tensor  # (P, 4) float32
    table: Tensor  # (T, L, 3) int64
    levels: Tensor  # (T,) int64


_atlases = WeakTensorKeyDictionary()


def texture_atlas(textures: Sequence[Tensor]) -> TextureAtlas:
    """The atlas of some textures, built once per set of tensors and kept as long as the first of them lives."""
    if not textures:
        return TextureAtlas(torch.zeros(1, 4), torch.tensor([[[0, 1, 1]]]), torch.ones(1, dtype=torch.int64))
    found = _atlases.get(textures[0])
    if found is not None and len(found[0]) == len(textures) - 1 and all(a is b for a, b in zip(found[0], textures[1:])):
        return found[1]
    chunks, rows, start = [], [], 0
    for texture in textures:
        level, table = decoded(texture.float()), []
        while True:
            height, width = level.shape[:2]
            table.append((start, height, width))
            chunks.append(level.reshape(-1, 4))
            start += height * width
            if height == width == 1:
                break
            size = (max(height // 2, 1), max(width // 2, 1))
            level = torch.nn.functional.interpolate(level.permute(2, 0, 1)[None], size=size, mode="area")[0].permute(1, 2, 0)
        rows.append(table)
    longest = max(map(len, rows))
    device = textures[0].device
    atlas = TextureAtlas(
        torch.cat(chunks),
        torch.tensor([r + [r[-1]] * (longest - len(r)) for r in rows], device=device),
        torch.tensor([len(r) for r in rows], device=device),
    )
    _atlases[textures[0]] = (tuple(textures[1:]), atlas)
    return atlas


def sample_atlas(
    atlas: TextureAtlas,
    texture: Tensor,  # (N,) int64
    uv: Tensor,  # (N, 2) v down
    level: Tensor | None = None,  # (N,) int64, clamped to what exists; 0 where None
) -> Tensor:  # (N, 4)
    """Bilinear samples with repeat, linear light; texel centres lie at (i + 0.5) / size."""
    level = torch.zeros_like(texture) if level is None else torch.minimum(level, atlas.levels[texture] - 1)
    start, height, width = atlas.table[texture, level].unbind(-1)
    x = (uv[:, 0] - uv[:, 0].floor()) * width - 0.5
    y = (uv[:, 1] - uv[:, 1].floor()) * height - 0.5
    x0, y0 = x.floor(), y.floor()
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    x0, y0 = x0.long() % width, y0.long() % height
    x1, y1 = (x0 + 1) % width, (y0 + 1) % height
    texels = atlas.texels
    top = torch.lerp(texels[start + y0 * width + x0], texels[start + y0 * width + x1], fx)
    bottom = torch.lerp(texels[start + y1 * width + x0], texels[start + y1 * width + x1], fx)
    return torch.lerp(top, bottom, fy)


def surface_light(
    mesh: Mesh,
    face: Tensor,  # (N,) int64
    barycentric: Tensor,  # (N, 3)
    level: Tensor | None = None,  # (N,) texture level, 0 where None
) -> Tensor:  # (N, 4) linear RGB, straight alpha
    """Unlit colour of surface points in linear light: texture times factor times vertex colour (glTF 2.0, 3.9.2)."""
    corners = mesh.faces[face]
    color = decoded(mesh.face_color[face])
    if mesh.vertex_colors is not None:
        color = color * (decoded(mesh.vertex_colors[corners]) * barycentric[..., None]).sum(1)
    texture = mesh.face_texture[face]
    which = (texture >= 0).nonzero()[:, 0]
    if mesh.uvs is not None and len(which):
        uv = (mesh.uvs[corners[which]] * barycentric[which, :, None]).sum(1)
        level = None if level is None else level[which]
        color[which] = color[which] * sample_atlas(texture_atlas(mesh.textures), texture[which], uv, level)
    return color


def surface_color(mesh: Mesh, face: Tensor, barycentric: Tensor) -> Tensor:  # (N,), (N, 3) -> (N, 4)
    """sRGB colour with straight alpha of surface points."""
    return encoded(surface_light(mesh, face, barycentric))


def surface_normal(mesh: Mesh, face: Tensor, barycentric: Tensor) -> Tensor:  # (N,), (N, 3) -> (N, 3)
    """Unit normals of surface points: interpolated vertex normals on the winding's side, else the face's own."""
    flat = mesh.face_normals()[face]
    if mesh.normals is None:
        return flat
    smooth = (mesh.normals[mesh.faces[face]] * barycentric[..., None]).sum(1)
    length = smooth.norm(dim=-1, keepdim=True)
    smooth = torch.where((smooth * flat).sum(-1, keepdim=True) < 0, -smooth, smooth)
    return torch.where(length > 1e-6, smooth / length.clamp_min(1e-6), flat)


# --- sampling -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SurfaceSamples:
    """Points of a mesh's surface with what is known there."""

    points: Tensor  # (N, 3)
    normals: Tensor  # (N, 3) unit
    colors: Tensor  # (N, 3) sRGB
    face: Tensor  # (N,) int64
    barycentric: Tensor  # (N, 3)


def sample_surface(mesh: Mesh, count: int, generator: torch.Generator) -> SurfaceSamples:
    """``count`` points spread evenly by area: one drawn in each of ``count`` equal intervals of the faces' summed area.

    Points where the texture's alpha cuts a hole are drawn again. The order follows the faces.

    Raises:
        InputError: for a mesh that is transparent, or has no area, everywhere.
    """
    a, b, c = mesh.vertices[mesh.faces].cpu().double().unbind(1)
    total = torch.linalg.cross(b - a, c - a).norm(dim=-1).cumsum(0)
    if not float(total[-1]) > 0:
        raise InputError(f"{mesh.name}: its faces have no area, choose another mesh")
    device, tries = mesh.vertices.device, count
    for _ in range(6):
        u = torch.rand(tries, 3, generator=generator, device=generator.device).cpu().double()
        at = (torch.arange(tries) + u[:, 0]) / tries * total[-1]
        face = torch.searchsorted(total, at, right=True).clamp_max(len(total) - 1).to(device)
        root = u[:, 1].sqrt()  # uniform in the triangle
        barycentric = torch.stack([1 - root, root * (1 - u[:, 2]), root * u[:, 2]], -1).float().to(device)
        color = surface_color(mesh, face, barycentric)
        solid = (color[:, 3] >= mesh.face_alpha_cutoff[face]).nonzero()[:, 0]
        if len(solid) >= count:
            chosen = solid[torch.arange(count, device=device) * len(solid) // count]
            face, barycentric = face[chosen], barycentric[chosen]
            points = (mesh.vertices[mesh.faces[face]] * barycentric[..., None]).sum(1)
            return SurfaceSamples(points, surface_normal(mesh, face, barycentric), color[chosen, :3], face, barycentric)
        tries = min(int(tries * 1.1 * count / max(len(solid), 1)) + 8, 64 * count)
    raise InputError(f"{mesh.name}: its texture's alpha leaves almost nothing of the surface, choose an opaque material")


# --- reading ------------------------------------------------------------------------------------------------------------


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
        self.pixels = 0
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
            image = Image.open(BytesIO(data))
            self.pixels += image.width * image.height
            if self.pixels <= MAX_TEXTURE_PIXELS:
                return image
        except Image.DecompressionBombError:
            pass
        except (OSError, ValueError, SyntaxError):
            raise self.refuse(f"texture {name} is not a picture that can be read, convert it to PNG") from None
        raise self.refuse(f"texture {name} exceeds the {MAX_TEXTURE_PIXELS >> 20} million pixels a mesh may have, reduce it")

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
                    part["vertex_colors"] = _rgba(color)
            elif visual.kind == "vertex":
                part["vertex_colors"] = _rgba(visual.vertex_colors)
            elif visual.kind == "face":
                part["face_color"] = _rgba(visual.face_colors)
            yield _Part(**part)


def _check_ply(path: Path) -> None:
    """Refuses a PLY whose header promises more elements than its bytes can hold."""
    with path.open("rb") as file:
        header = file.read(1 << 16).split(b"end_header")[0]
    for kind, count in re.findall(rb"element\s+(\w+)\s+(\d+)", header):
        if int(count) > min(path.stat().st_size, MAX_ELEMENTS):
            raise InputError(f"{path}: announces {int(count):,} of {kind.decode()}, more than it can hold, export it again")


def _rgba(color: Any) -> np.ndarray:  # (N, 3 or 4) of any type -> (N, 4) float
    color = np.asarray(color)
    if np.issubdtype(color.dtype, np.integer):
        color = color / np.iinfo(color.dtype).max
    if color.shape[-1] == 3:
        color = np.concatenate([color, np.ones_like(color[..., :1])], -1)
    return color


def _encoded(rgba: Any) -> np.ndarray:
    """Linear RGBA as sRGB."""
    return encoded(torch.as_tensor(np.asarray(rgba, np.float64)).clamp(0, 1)).numpy()


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
        part["face_color"] = _encoded(factor)
        color = geometry.visual.vertex_attributes.get("color")
        if color is not None:
            part["vertex_colors"] = _encoded(_rgba(color))
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


def _texture(image: Image.Image, name: str) -> Tensor:  # (h, w, 4)
    shrink = -(-max(image.size) // MAX_TEXTURE_SIDE)
    try:
        image = image.convert("RGBA")
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{name}: a texture is damaged ({error}), export it again") from error
    if shrink > 1:
        log.info("%s: texture of %dx%d reduced %d times", name, *image.size, shrink)
        image = image.reduce(shrink)
    return torch.from_numpy(np.array(image)).float() / 255


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
            textures[id(part.image)] = _texture(part.image, str(path))
    order = list(textures)
    lengths = [len(p.faces) for p in parts]
    texture = [-1 if p.image is None else order.index(id(p.image)) for p in parts]
    color = [np.ones(4) if p.face_color is None else p.face_color for p in parts]
    return _cleaned(
        arrays,
        np.concatenate([p.faces + offset for p, offset in zip(parts, offsets)]),
        np.repeat(texture, lengths),
        np.concatenate([np.broadcast_to(c, (n, 4)) for c, n in zip(color, lengths)]),
        np.repeat([p.alpha_cutoff for p in parts], lengths),
        tuple(textures.values()),
        str(path),
    )


def _cleaned(
    arrays: dict[str, np.ndarray | None],
    faces: np.ndarray,  # (F, 3)
    face_texture: np.ndarray,  # (F,)
    face_color: np.ndarray,  # (F, 4)
    face_alpha_cutoff: np.ndarray,  # (F,)
    textures: tuple[Tensor, ...],
    name: str,
) -> Mesh:
    """A mesh without degenerate faces and unused vertices.

    Raises:
        InputError: for indices out of range, values that are not finite numbers, no faces left.
    """
    vertices = arrays["vertices"]
    assert vertices is not None
    if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
        raise InputError(f"{name}: a face refers to a vertex that does not exist, export it again")
    for key, what in (("vertices", "vertex positions"), ("uvs", "texture coordinates"), ("vertex_colors", "vertex colours")):
        values = arrays[key]
        if values is not None and not np.isfinite(values).all():
            raise InputError(f"{name}: some {what} are not numbers (NaN or infinite), repair the mesh")
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    solid = np.linalg.norm(np.cross(b - a, c - a), axis=-1) > 0
    if not solid.any():
        raise InputError(f"{name}: has no faces with an area, choose a surface mesh")
    faces = faces[solid]
    used, inverse = np.unique(faces, return_inverse=True)
    if arrays["normals"] is not None:
        length = np.linalg.norm(arrays["normals"], axis=-1, keepdims=True)
        arrays["normals"] = np.where(length > 1e-12, np.nan_to_num(arrays["normals"]) / np.maximum(length, 1e-12), 0)

    def tensor(values: np.ndarray | None) -> Tensor | None:
        return None if values is None else torch.from_numpy(np.ascontiguousarray(values[used], np.float32))

    return Mesh(
        **{k: tensor(v) for k, v in arrays.items()},  # type: ignore[arg-type]
        faces=torch.from_numpy(inverse.reshape(-1, 3).astype(np.int64)),
        textures=textures,
        face_texture=torch.from_numpy(face_texture[solid].astype(np.int64)),
        face_color=torch.from_numpy(face_color[solid].astype(np.float32)),
        face_alpha_cutoff=torch.from_numpy(face_alpha_cutoff[solid].astype(np.float32)),
        name=name,
    )


def mesh_from_arrays(
    vertices: Tensor,  # (V, 3) or (B, V, 3)
    faces: Tensor,  # (F, 3) or (B, F, 3)
    *,
    uvs: Tensor | None = None,  # (..., V, 2) v down
    vertex_colors: Tensor | None = None,  # (..., V, 3 or 4) linear, as glTF's and the host's are
    texture: Tensor | None = None,  # (..., H, W, 3 or 4) sRGB
    normals: Tensor | None = None,  # (..., V, 3)
    vertex_counts: Tensor | None = None,  # (B,)
    face_counts: Tensor | None = None,  # (B,)
    index: int = 0,
    name: str = "mesh",
) -> Mesh:
    """One item of the host's MESH value, whose conventions are glTF's: v down, linear vertex colours, sRGB texture.

    Batches are padded to a common length; the counts give the real ones.

    Raises:
        InputError: for an index beyond the batch, no faces, values that are not numbers.
    """
    if vertices.dim() == 3 and index >= len(vertices):
        raise InputError(f"{name}: has {len(vertices)} items, choose an index below that, not {index}")

    def item(value: Tensor, counts: Tensor | None = None, dims: int = 2) -> np.ndarray:
        value = value.detach().cpu()
        if value.dim() > dims:
            value = value[min(index, len(value) - 1)]
        return (value if counts is None else value[: int(counts[index])]).numpy()

    points, corners = item(vertices, vertex_counts), item(faces, face_counts)
    if not len(points) or not len(corners):
        raise InputError(f"{name}: has no faces, choose a surface mesh")
    textures: tuple[Tensor, ...] = ()
    if uvs is not None and texture is not None:
        textures = (torch.from_numpy(_rgba(item(texture, None, 3))).float().clamp(0, 1),)
    count = len(corners)
    return _cleaned(
        {
            "vertices": points,
            "normals": None if normals is None else item(normals, vertex_counts),
            "uvs": None if uvs is None else item(uvs, vertex_counts),
            "vertex_colors": None if vertex_colors is None else _encoded(_rgba(item(vertex_colors, vertex_counts))),
        },
        corners.astype(np.int64),
        np.full(count, 0 if textures else -1),
        np.ones((count, 4)),
        np.zeros(count),
        textures,
        name,
    )


def mesh_to_arrays(mesh: Mesh) -> dict[str, Tensor]:
    """The host's MESH members, a batch of one: vertices, faces and, where there is colour, uvs and texture or vertex_colors.

    That type holds one texture and no factors. A mesh of several materials gets three vertices of its own for each face and the
    surface's colours at them (linear, RGBA).
    """
    single = len(mesh.textures) == 1 and mesh.uvs is not None and bool((mesh.face_texture == 0).all())
    if single and mesh.vertex_colors is None and bool((mesh.face_color[:, :3] == 1).all()):
        assert mesh.uvs is not None
        arrays = {"vertices": mesh.vertices, "faces": mesh.faces, "uvs": mesh.uvs, "texture": mesh.textures[0][..., :3]}
    elif mesh.has_color:
        count = len(mesh.faces)
        corner = torch.eye(3, device=mesh.faces.device).repeat(count, 1)
        face = torch.arange(count, device=mesh.faces.device)
        arrays = {
            "vertices": mesh.vertices[mesh.faces.reshape(-1)],
            "faces": torch.arange(3 * count, device=mesh.faces.device).reshape(-1, 3),
            "vertex_colors": surface_light(mesh, face.repeat_interleave(3), corner),
        }
    else:
        arrays = {"vertices": mesh.vertices, "faces": mesh.faces}
    return {k: v[None] for k, v in arrays.items()}


def encode_picture(picture: Tensor) -> bytes:  # (h, w, 4) sRGB in [0, 1]
    """A texture as a PNG file, or as a JPEG file where it is opaque and larger than a megapixel."""
    pixels = (picture.clamp(0, 1) * 255).round().byte().cpu().numpy()
    image = Image.fromarray(pixels)
    opaque = bool((pixels[..., 3] == 255).all())
    file = BytesIO()
    if opaque and image.width * image.height > 1 << 20:
        image.convert("RGB").save(file, "JPEG", quality=95, subsampling=0)
    else:
        (image.convert("RGB") if opaque else image).save(file, "PNG")
    return file.getvalue()


def mesh_to_tensors(mesh: Mesh) -> dict[str, Tensor]:
    """A mesh as plain tensors, for a file: materials once each, textures as the bytes of PNG or JPEG files."""
    keys = torch.cat([mesh.face_texture[:, None].float(), mesh.face_color, mesh.face_alpha_cutoff[:, None]], -1)
    materials, member = keys.unique(dim=0, return_inverse=True)
    tensors = {"vertices": mesh.vertices, "faces": mesh.faces.int(), "materials": materials}
    if len(materials) > 1:
        tensors["face_material"] = member.int()
    optional = {"normals": mesh.normals, "uvs": mesh.uvs, "vertex_colors": mesh.vertex_colors}
    tensors |= {key: value for key, value in optional.items() if value is not None}
    files = {f"texture{i}": encode_picture(texture) for i, texture in enumerate(mesh.textures)}
    return tensors | {key: torch.frombuffer(bytearray(data), dtype=torch.uint8) for key, data in files.items()}


def mesh_from_tensors(tensors: dict[str, Tensor], name: str = "mesh") -> Mesh:
    """What :func:`mesh_to_tensors` made, checked.

    Raises:
        ValueError, KeyError: for tensors that are no mesh.
        InputError: for textures that cannot be read, or are too large.
    """
    vertices, faces, materials = tensors["vertices"], tensors["faces"].long(), tensors["materials"]
    files = _Folder(Path(name))
    pictures = [bytes(tensors[f"texture{i}"].numpy()) for i in range(sum(key.startswith("texture") for key in tensors))]
    textures = tuple(_texture(files.open_image(data, str(i)), name) for i, data in enumerate(pictures))
    if not len(faces) or not len(materials) or materials.shape[1:] != (6,):
        raise ValueError("a mesh without faces or materials")
    which = tensors.get("face_material", torch.zeros(len(faces), dtype=torch.int32)).long()
    for index, count in ((faces, len(vertices)), (which, len(materials)), (materials[:, 0].long() + 1, len(textures) + 1)):
        if int(index.min()) < 0 or int(index.max()) >= count:
            raise ValueError("a mesh whose indices are out of range")
    colors = tensors.get("vertex_colors")
    if not all(bool(t.isfinite().all()) for t in (vertices, materials, tensors.get("uvs"), colors) if t is not None):
        raise ValueError("a mesh with values that are not numbers")
    material = materials[which]
    return Mesh(
        vertices,
        faces,
        normals=tensors.get("normals"),
        uvs=tensors.get("uvs"),
        vertex_colors=colors,
        textures=textures,
        face_texture=material[:, 0].long(),
        face_color=material[:, 1:5].contiguous(),
        face_alpha_cutoff=material[:, 5].contiguous(),
        name=name,
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
