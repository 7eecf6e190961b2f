"""Files of the 3D that a method starts from."""

from __future__ import annotations

import os
from pathlib import Path

from ..scene.object3d import Object3D, SplatObject
from .meshes import SUFFIXES as MESH_SUFFIXES
from .meshes import load_mesh
from .ply import is_splat_ply
from .splats import SPLAT_SUFFIXES, read_splats

#: What a file of an object may end in.
SUFFIXES = (*MESH_SUFFIXES, *(suffix for suffix in SPLAT_SUFFIXES if suffix not in MESH_SUFFIXES))


def load_object(path: str | os.PathLike[str]) -> Object3D:
    """A mesh file, or 3D Gaussians: .spz, .splat, .ksplat, .sog or a .ply, which is told from a mesh by its properties.

    Raises:
        InputError: for a missing, damaged or foreign file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in SPLAT_SUFFIXES and (suffix != ".ply" or (path.is_file() and is_splat_ply(path))):
        return SplatObject.of(read_splats(path), str(path))
    return load_mesh(path)
