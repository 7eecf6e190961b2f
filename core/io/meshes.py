"""Mesh files: GLB, GLTF, OBJ, PLY, STL, DAE and USD in, GLB out."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from ..files import InputError, atomic_path
from ..mesh import Mesh, decoded, encoded, rgba_array, up_matrix
from ..pictures import PictureBudget
from ..reading import VARIABLES, beside, limits, read_bytes, regular_size
from .dae import dae_parts
from .gltf import Gltf
from .gltf_parts import gltf_parts
from .obj import obj_parts
from .parts import Part, joined
from .stl import stl_parts
from .usd import SUFFIXES as USD_SUFFIXES
from .usd_mesh import usd_parts

log = logging.getLogger(__name__)

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".dae", *USD_SUFFIXES)
#: What opens files of other kinds and saves one of ours.
_CONVERTERS = {
    ".fbx": "Blender: File, Import, FBX; then File, Export, glTF",
    ".blend": "Blender: File, Open",
    ".3ds": "Blender: File, Import",
    ".abc": "Blender: File, Import, Alembic",
    ".x3d": "Blender: File, Import, X3D",
    ".3mf": "a slicer: export as STL",
    ".step": "a CAD program: export as STL",
    ".stp": "a CAD program: export as STL",
}


def load_mesh(path: str | os.PathLike[str], up: str = "y") -> Mesh:
    """A mesh file of one of :data:`SUFFIXES` with all its parts joined, as its world frame has it.

    .dae takes the package pycollada, USD usd-core. Node transforms are applied, faces without area and unused vertices
    dropped. A glTF file's rig is kept (:attr:`.Mesh.skin`), its clips are not. A glTF material of alpha mode BLEND is cut at
    0.5, as there is no order to blend in. A mesh that lies far from the origin (surveys) is moved there.

    Args:
        up: the file's axis that points up: "y", "z", "x", or one of these with a minus. Blender's and most CAD programs' is
            "z", and their front -Y faces +Z here. "y" is for .dae and USD the axis that the file names.

    Raises:
        InputError: for a missing, foreign, damaged, empty or oversized file, values that are not numbers, a missing texture, a
            reference out of the file's folder, or compression whose package is not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    up_matrix(up)
    if suffix not in SUFFIXES:
        way = f" ({_CONVERTERS[suffix]})" if suffix in _CONVERTERS else ""
        raise InputError(f"{path}: not a mesh format that is read here, convert it to one of {', '.join(SUFFIXES)}{way}")
    try:
        named = "y"
        with np.errstate(all="ignore"):  # what is beyond numbers is refused once the parts are joined
            if suffix in (".glb", ".gltf"):
                parts = gltf_parts(Gltf(path))
            elif suffix == ".obj":
                parts = obj_parts(path)
            elif suffix == ".stl":
                parts = stl_parts(path)
            elif suffix == ".dae":
                parts, named = dae_parts(path)
            elif suffix in USD_SUFFIXES:
                parts, named = usd_parts(path)
            else:
                parts = _ply_parts(path)
            mesh = joined(parts, path)
    except MemoryError:
        raise InputError(f"{path}: takes more memory than there is, reduce the mesh") from None
    axis = named if up == "y" else up
    return mesh if axis == "y" else mesh.transformed(up_matrix(axis))


class _Beside:
    """The texture beside a PLY file, as its reader asks for it; keeps the first refusal, since that reader swallows it."""

    def __init__(self, path: Path) -> None:
        self.path, self.pictures = path, PictureBudget()
        self.refusal: InputError | None = None

    def get(self, key: str) -> bytes:
        try:
            found = beside(self.path, key.strip())
            if found is None:
                raise InputError(f"{self.path}: {key} is missing, put it beside the mesh or remove the reference to it")
            data = read_bytes(found, "texture")
            self.pictures.open(data, found.name, str(self.path))
        except InputError as error:
            self.refusal = self.refusal or error
            raise
        return data

    __getitem__ = get


def _ply_parts(path: Path) -> list[Part]:
    """Parts of a PLY file, by trimesh. Its colours are sRGB as they stand."""
    _check_ply(path)
    try:
        import trimesh
    except ImportError as error:
        raise InputError(
            f"{path}: PLY is read by the package trimesh, which cannot be imported ({error}); pip install trimesh"
        ) from None
    files = _Beside(path)
    parts = []
    try:
        with path.open("rb") as file:
            scene = trimesh.load_scene(file, file_type="ply", resolver=cast(Any, files), process=False)
        for geometry in scene.geometry.values():
            if files.refusal is None and isinstance(geometry, trimesh.Trimesh) and len(geometry.faces):
                parts.append(_ply_part(path, geometry))
    except InputError:
        raise
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # of a damaged file it raises anything
        log.debug("reading %s", path, exc_info=True)
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise files.refusal or InputError(f"{path}: damaged or not a PLY file ({reason}), export it again") from None
    if files.refusal is not None:
        raise files.refusal
    return parts


def _ply_part(path: Path, geometry: Any) -> Part:
    visual = geometry.visual
    part: dict[str, Any] = {"vertices": np.asarray(geometry.vertices, np.float64), "faces": np.asarray(geometry.faces)}
    if "vertex_normals" in geometry._cache:  # given, not computed
        part["normals"] = np.asarray(geometry.vertex_normals)
    if visual.kind == "texture":
        image = getattr(visual.material, "image", None) or getattr(visual.material, "baseColorTexture", None)
        if image is not None and visual.uv is not None:
            part |= {"uvs": np.asarray(visual.uv, np.float64) * [1, -1] + [0, 1], "image": image}
        color = visual.vertex_attributes.get("color")
        if color is not None:
            part["vertex_colors"] = rgba_array(color)
    elif visual.kind == "vertex":
        part["vertex_colors"] = rgba_array(visual.vertex_colors)
    elif visual.kind == "face":
        colors = rgba_array(visual.face_colors)
        if len(colors) != len(geometry.faces):
            raise InputError(f"{path}: has colours of faces with more than three corners, triangulate it")
        part["face_color"] = colors
    return Part(**part)


def _check_ply(path: Path) -> None:
    """Refuses a PLY whose header promises more elements than its bytes can hold."""
    size, bounds = regular_size(path, "mesh"), limits()
    if size > bounds.file_bytes:
        raise InputError(
            f"{path}: larger than {bounds.file_bytes >> 20} MB, reduce the mesh or raise {VARIABLES['file_bytes'][0]}"
        )
    with path.open("rb") as file:
        header = file.read(1 << 16).split(b"end_header")[0]
    if not header.startswith(b"ply"):
        raise InputError(f"{path}: damaged or not a PLY file, export it again")
    for kind, digits in re.findall(rb"element\s+(\w+)\s+(\d+)", header):
        count = int(digits[:20])
        if count > min(size, bounds.elements):
            raise InputError(
                f"{path}: announces {count:,} of {kind.decode('ascii', 'replace')}, more than it can hold, export it again"
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
