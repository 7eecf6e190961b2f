"""Files of the 3D that a method starts from."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ..mesh import up_matrix
from ..scene.object3d import Object3D, SplatObject
from .gltf import Gltf
from .gltf_parts import has_splats
from .gltf_splats import read_splat_glb
from .meshes import SUFFIXES as MESH_SUFFIXES
from .meshes import load_mesh
from .ply import is_splat_ply
from .splats import SPLAT_SUFFIXES, read_splats, turned

log = logging.getLogger(__name__)

#: What a file of an object may end in.
SUFFIXES = (*MESH_SUFFIXES, *(suffix for suffix in SPLAT_SUFFIXES if suffix not in MESH_SUFFIXES))


def load_object(path: str | os.PathLike[str], up: str = "y") -> Object3D:
    """A mesh file, or 3D Gaussians: .spz, .splat, .ksplat, .sog, or a .ply or .glb, which its content says.

    Args:
        up: the axis that points up in the frame that files of the kind usually have: "y" as it should be, "z" for what
            lies on its back, "-y" for what stands on its head, also "-z", "x", "-x"; see :func:`~.meshes.load_mesh`.

    Raises:
        InputError: for a missing, damaged or foreign file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    up_matrix(up)
    if suffix in SPLAT_SUFFIXES and (suffix != ".ply" or (path.is_file() and is_splat_ply(path))):
        gaussians = read_splats(path, up=up)
    elif suffix in (".glb", ".gltf") and has_splats(Gltf(path)):
        gaussians = turned(read_splat_glb(path), up)
    else:
        return load_mesh(path, up)
    return SplatObject.of(gaussians, str(path))
