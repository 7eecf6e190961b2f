"""COLLADA (.dae) by the package pycollada: triangles and polygons with their diffuse colours, as the scene places them.

Source: COLLADA 1.4.1 and 1.5. A skin keeps the shape that it was bound in, and is not posed. The up axis is the file's own.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image

from ..files import InputError
from ..packages import problem
from ..pictures import PictureBudget
from ..reading import VARIABLES, limits, read_bytes
from .parts import Part, lying_beside, welded

log = logging.getLogger(__name__)

#: XML takes many times its size to read.
_TEXT = 8
_UP = {"X_UP": "x", "Y_UP": "y", "Z_UP": "z"}


def dae_parts(path: Path) -> tuple[list[Part], str]:
    """The parts of a COLLADA file, and its axis that points up: "x", "y" or "z".

    Raises:
        InputError: without pycollada, for a damaged or oversized file, or a texture that is missing.
    """
    data = read_bytes(path, "mesh", limits().file_bytes // _TEXT)
    if not data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<") or b"\0" in data:
        raise InputError(f"{path}: damaged or not a COLLADA file, export it again")
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise InputError(f"{path}: defines entities, which COLLADA files have no use for; export it again")
    if reason := problem("collada"):
        raise InputError(f"{path}: COLLADA is read by the package pycollada, which {reason}; pip install pycollada")
    from collada import Collada
    from collada.common import DaeError

    try:
        document: Any = Collada(io.BytesIO(data), ignore=[DaeError])
        pieces = _pieces(path, document)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # of a damaged file it raises anything
        log.debug("reading %s", path, exc_info=True)
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise InputError(f"{path}: damaged or not a COLLADA file ({reason}), export it again") from None
    if document.errors:
        log.warning("%s: left out what cannot be read: %s", path, " ".join(str(document.errors[0]).split())[:100])
    return pieces, _UP.get(document.assetInfo.upaxis, "y")


def _pieces(path: Path, document: Any) -> list[Part]:
    if document.scene is None:
        return []
    budget, images, parts, faces = PictureBudget(), dict[str, Image.Image](), list[Part](), 0
    bounds, count, skipped = limits(), 0, set[str]()
    shapes = [*document.scene.objects("geometry")]
    for controller in document.scene.objects("controller"):
        if hasattr(controller, "geometry"):
            shapes.append(controller.geometry)
        else:
            skipped.add("morphs")
    for shape in shapes:
        for primitive in shape.primitives():
            count += 1
            triangles = primitive.triangleset() if hasattr(primitive, "triangleset") else primitive
            if not hasattr(triangles, "ntriangles"):
                skipped.add("lines")
                continue
            faces += triangles.ntriangles
            if count > bounds.nodes or faces > bounds.elements:
                raise InputError(f"{path}: {faces:,} faces so far, reduce the mesh or raise {VARIABLES['elements'][0]}")
            if triangles.ntriangles:
                parts.append(_part(path, triangles, budget, images))
    if skipped:
        log.warning("%s: %s are left out", path, " and ".join(sorted(skipped)))
    return parts


def _part(path: Path, bound: Any, budget: PictureBudget, images: dict[str, Image.Image]) -> Part:
    """One set of triangles in the scene; corners of the same vertex, texture coordinate and colour are one vertex."""
    given = bound.original
    if np.asarray(bound.vertex_index).min() < 0 or np.asarray(bound.vertex_index).max() >= len(bound.vertex):
        raise InputError(f"{path}: a face refers to a vertex that does not exist, export it again")
    keys = np.zeros((3 * bound.ntriangles, 3), np.int64)
    keys[:, 0] = np.asarray(bound.vertex_index).reshape(-1)
    look: dict[str, Any] = {}
    diffuse: Any = None if bound.material is None else bound.material.effect.diffuse
    uvs = None
    if hasattr(diffuse, "sampler"):
        sets = [source[3] for source in given.sources.get("TEXCOORD", ())]
        _, wanted = bound.inputmap.get(diffuse.texcoord, (None, None))
        chosen = sets.index(wanted) if wanted in sets else 0
        if chosen < len(bound.texcoordset):
            uvs = np.asarray(bound.texcoordset[chosen], np.float64)[:, :2]
            keys[:, 1] = np.asarray(bound.texcoord_indexset[chosen]).reshape(-1)
            look["image"] = _picture(path, diffuse.sampler.surface.image.path, budget, images)
        else:
            log.warning("%s: a texture without texture coordinates is left out", path)
    elif diffuse is not None:
        look["face_color"] = np.array([*diffuse[:3], 1.0])
    colors = next(iter(given.sources.get("COLOR", ())), None)
    if colors is not None:
        keys[:, 2] = np.asarray(given.index)[..., colors[0]].reshape(-1)
    rows, inverse = welded(keys)
    if colors is not None:
        rgb = np.asarray(colors[4].data, np.float64)[rows[:, 2], :3].clip(0, 1)
        look["vertex_colors"] = np.concatenate([rgb, np.ones((len(rgb), 1))], -1)
    if uvs is not None:
        look["uvs"] = uvs[rows[:, 1]] * [1, -1] + [0, 1]
    return Part(np.asarray(bound.vertex, np.float64)[rows[:, 0]], inverse.reshape(-1, 3), **look)


def _picture(path: Path, reference: str, budget: PictureBudget, images: dict[str, Image.Image]) -> Image.Image:
    if reference not in images:
        name = unquote(reference.removeprefix("file://")).removeprefix("./")
        file = lying_beside(path, name)
        if file is None:
            raise InputError(f"{path}: {name[:80]} is missing, put it beside the mesh or remove the reference to it")
        images[reference] = budget.open(read_bytes(file, "texture"), file.name, str(path))
    return images[reference]
