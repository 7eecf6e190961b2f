"""Meshes of OpenUSD files (.usdz, .usdc, .usda, .usd) by the package usd-core.

Source: the schemas UsdGeomMesh, UsdGeomSubset, UsdShadeMaterialBindingAPI and UsdPreviewSurface. Read at the earliest time
code: visible meshes of render purpose, instances too, a subdivision surface as its cage, a skin in the shape that it was bound
in; UsdPreviewSurface's diffuse colour or texture, and displayColor. The up axis is the stage's own.
"""

from __future__ import annotations

import logging
import struct
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ..files import InputError
from ..mesh import encoded_array
from ..packages import problem
from ..pictures import PictureBudget
from ..reading import VARIABLES, beside, limits, read_bytes, regular_size
from .archives import member, opened_zip
from .parts import CLAMP, MIRROR, REPEAT, Part, welded

log = logging.getLogger(__name__)

_WRAP = {"clamp": CLAMP, "black": CLAMP, "mirror": MIRROR}


def usd_parts(path: Path) -> tuple[list[Part], str]:
    """The parts of a USD file, and its axis that points up: "y" or "z".

    Raises:
        InputError: without usd-core, for a damaged or oversized file, or a reference out of the file's folder or package.
    """
    bounds = limits()
    if regular_size(path, "mesh") > bounds.file_bytes:
        raise InputError(
            f"{path}: larger than {bounds.file_bytes >> 20} MB, reduce the mesh or raise {VARIABLES['file_bytes'][0]}"
        )
    if reason := problem("pxr.UsdShade"):
        raise InputError(f"{path}: USD files are read by the package usd-core, which {reason}; pip install usd-core")
    pxr = _modules()

    try:
        _check_layers(path, pxr)
        stage = pxr.Usd.Stage.Open(str(path))
        found = _Reader(path, stage).parts(), pxr.UsdGeom.GetStageUpAxis(stage).lower()
        for layer in stage.GetUsedLayers():  # those of value clips too, which are opened as they are asked
            if not layer.anonymous:
                _check_place(path, layer.identifier, pxr)
        return found
    except InputError:
        raise
    except (
        pxr.Tf.ErrorException, RuntimeError, ValueError, TypeError, LookupError, AttributeError, OverflowError,
    ) as error:  # fmt: skip
        log.debug("reading %s", path, exc_info=True)
        raise InputError(f"{path}: damaged or not a USD file, export it again") from error


def _check_layers(path: Path, pxr: Any) -> None:
    """Refuses a layer that refers to one outside the file's folder, or to a pipe or device, before that one is opened."""
    seen, queue = set[str](), [str(path)]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        outer = _check_place(path, name, pxr)
        if not outer.exists():  # left out by USD, with a warning
            continue
        regular_size(outer, "USD layer")
        with open(outer, "rb") as file:
            if pxr.Ar.IsPackageRelativePath(name):
                with opened_zip(outer, str(path), "a USD scene") as archive:
                    inner = pxr.Ar.SplitPackageRelativePathInner(name)[1]
                    _check_crate(BytesIO(member(archive, archive.getinfo(inner), str(path))), path)
            else:
                _check_crate(file, path)
        if layer := pxr.Sdf.Layer.FindOrOpen(name):
            places = []
            layer.Traverse(pxr.Sdf.Path.absoluteRootPath, places.append)
            # USD ends the process where it follows a name to what is not there.
            if not all(layer.GetObjectAtPath(p) for p in places if not p.ContainsTargetPath()):
                raise ValueError("names of prims or properties that are not there")
            queue += [layer.ComputeAbsolutePath(other) for other in layer.GetCompositionAssetDependencies()]


#: Numbers that begin a section of a crate and say how many entries it has; chunks of packed integers follow, with their sizes.
_COUNTS = {b"FIELDS": 1, b"FIELDSETS": 1, b"PATHS": 2, b"SPECS": 1}
#: Packed integers take two bits and more, and LZ4 makes at most 255 bytes of one.
_LZ4, _ENTRIES_PER_BYTE, _ENTRY_BYTES = 255, 4 * 255, 16


def _check_crate(file: BinaryIO, path: Path) -> None:
    """Refuses a binary layer (.usdc) that promises more than its bytes can hold: USD makes room for it before it reads on.

    The layout is that of Pixar's crateFile.h: a table of sections, each of which begins with its numbers of entries.
    """
    total = file.seek(0, 2)

    def numbers(at: int, count: int = 1) -> tuple[int, ...]:
        if not 0 <= at <= total - 8 * count:
            raise ValueError("an offset beyond the end")
        file.seek(at)
        return struct.unpack(f"<{count}Q", file.read(8 * count))

    file.seek(0)
    if file.read(8) != b"PXR-USDC":
        return
    version = tuple(file.read(3))
    (table,) = numbers(16)
    (sections,) = numbers(table)
    for number in range(min(sections, total // 32 + 1)):
        at = table + 8 + 32 * number
        start, size = numbers(at + 16, 2)
        file.seek(at)
        name = file.read(16).rstrip(b"\0")
        end = start + size
        if end > total:
            raise ValueError("a section beyond the end")
        if name == b"TOKENS" and version >= (0, 4):
            count, raw, packed = numbers(start, 3)
            if packed > size or raw > _LZ4 * packed or count > raw:
                raise ValueError("tokens that do not fit")
        elif name in _COUNTS and version >= (0, 4):
            counts, chunk = numbers(start, _COUNTS[name]), start + 8 * _COUNTS[name]
            if max(counts) > size * _ENTRIES_PER_BYTE:
                raise ValueError("entries that do not fit")
            if max(counts) * _ENTRY_BYTES > limits().memory:
                raise InputError(f"{path}: too many prims, reduce the mesh or raise {VARIABLES['memory'][0]}")
            while chunk < end:
                chunk += 8 + numbers(chunk)[0]
            if chunk != end:
                raise ValueError("integers that do not fit")
        elif size and numbers(start)[0] > size:
            raise ValueError("entries that do not fit")


def _check_place(path: Path, name: str, pxr: Any) -> Path:
    """The file that a layer is or lies in; raises InputError where that is outside the folder of the file that is read."""
    outer = Path(pxr.Ar.SplitPackageRelativePathOuter(name)[0])
    if not outer.resolve().is_relative_to(path.parent.resolve()):
        raise InputError(f"{path}: refers to {outer.name[:80]!r}, outside its folder; copy that file beside it")
    return outer


def _modules() -> Any:
    """The package pxr with the modules used here."""
    for name in ("Ar", "Sdf", "Tf", "Usd", "UsdGeom", "UsdShade"):
        import_module(f"pxr.{name}")
    return import_module("pxr")


class _Reader:
    def __init__(self, path: Path, stage: Any) -> None:
        self.path, self.stage, self.pxr = path, stage, _modules()
        self.time = self.pxr.Usd.TimeCode.EarliestTime()
        self.places = self.pxr.UsdGeom.XformCache(self.time)
        self.budget, self.images = PictureBudget(), dict[str, Image.Image]()

    def parts(self) -> list[Part]:
        found, corners, bounds = list[Part](), 0, limits()
        for prim in self.pxr.Usd.PrimRange(self.stage.GetPseudoRoot(), self.pxr.Usd.TraverseInstanceProxies()):
            mesh = self.pxr.UsdGeom.Mesh(prim)
            shown = self.pxr.UsdGeom.Imageable(prim)
            if not mesh or shown.ComputeVisibility(self.time) == "invisible" or shown.ComputePurpose() in ("proxy", "guide"):
                continue
            corners += len(mesh.GetFaceVertexIndicesAttr().Get(self.time) or ())
            if corners > 3 * bounds.elements or len(found) > bounds.nodes:
                raise InputError(f"{self.path}: too many faces, reduce the mesh or raise {VARIABLES['elements'][0]}")
            found += self._mesh(prim, mesh)
        return found

    def _mesh(self, prim: Any, mesh: Any) -> list[Part]:
        """One part for each material of the mesh."""

        points = np.array(mesh.GetPointsAttr().Get(self.time) or np.zeros((0, 3)), np.float64).reshape(-1, 3)
        counts = np.array(mesh.GetFaceVertexCountsAttr().Get(self.time) or [], np.int64)
        index = np.array(mesh.GetFaceVertexIndicesAttr().Get(self.time) or [], np.int64)
        if (
            (counts < 0).any()
            or counts.sum() != len(index)
            or (len(index) and not 0 <= index.min() <= index.max() < len(points))
        ):
            raise InputError(f"{self.path}: the faces of {prim.GetName()} refer to vertices that do not exist, export it again")
        if not len(index):
            return []
        matrix = np.array(self.places.GetLocalToWorldTransform(prim), np.float64)
        points = points @ matrix[:3, :3] + matrix[3, :3]  # USD multiplies rows
        fans = np.maximum(counts - 2, 0)
        first = np.repeat(counts.cumsum() - counts, fans)
        step = np.arange(fans.sum()) - np.repeat(fans.cumsum() - fans, fans)
        triangles = np.stack([first, first + step + 1, first + step + 2], -1)  # of corners
        if mesh.GetOrientationAttr().Get() == "leftHanded":
            triangles = triangles[:, ::-1]
        face = np.repeat(np.arange(len(counts)), fans)

        values = self.pxr.UsdGeom.PrimvarsAPI(prim)
        colors = self._values(prim, values.GetPrimvar("displayColor"), counts, index)
        subsets = self.pxr.UsdShade.MaterialBindingAPI(prim).GetMaterialBindSubsets()
        owner = np.full(len(counts), -1)
        for k, subset in enumerate(subsets):
            chosen = np.array(subset.GetIndicesAttr().Get(self.time) or [], np.int64)
            if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(counts):
                raise InputError(f"{self.path}: a part of {prim.GetName()} has faces that do not exist, export it again")
            owner[chosen] = k
        parts = []
        for k, bound in enumerate([prim, *(subset.GetPrim() for subset in subsets)], -1):
            own = triangles[owner[face] == k]
            if not len(own):
                continue
            look, name = self._look(bound)
            keys = np.zeros((own.size, 3), np.int64)
            keys[:, 0] = index[own.reshape(-1)]
            uvs = None
            if "image" in look:
                uvs = self._values(prim, values.GetPrimvar(name), counts, index)
                if uvs is None:
                    log.warning("%s: the texture of %s has no texture coordinates, it is left out", self.path, prim.GetName())
                    look = {}
                else:
                    keys[:, 1] = uvs[1][own.reshape(-1)]
            if not look and colors is not None:
                keys[:, 2] = colors[1][own.reshape(-1)]
            rows, inverse = welded(keys)
            if uvs is not None:
                look["uvs"] = uvs[0][rows[:, 1], :2] * [1, -1] + [0, 1]
            elif not look and colors is not None:
                linear = colors[0][rows[:, 2], :3]
                look["vertex_colors"] = encoded_array(np.concatenate([linear, np.ones((len(linear), 1))], -1))
            parts.append(Part(points[rows[:, 0]], inverse.reshape(-1, 3), **look))
        return parts

    def _values(self, prim: Any, primvar: Any, counts: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Values (V, C) of a primvar and which of them each corner has, or None where it has none."""
        if not primvar or not primvar.HasValue():
            return None
        values = np.array(primvar.ComputeFlattened(self.time) or [], np.float64)
        rows = {
            "constant": np.zeros_like(index),
            "uniform": np.repeat(np.arange(len(counts)), counts),
            "faceVarying": np.arange(len(index)),
        }.get(primvar.GetInterpolation(), index)
        if not len(values) or rows.max() >= len(values):
            raise InputError(
                f"{self.path}: {prim.GetName()} has {len(values)} of {primvar.GetPrimvarName()}, too few, export it again"
            )
        return values.reshape(len(values), -1), rows

    def _look(self, prim: Any) -> tuple[dict[str, Any], str]:
        """Colour or texture of the material that is bound to a prim, and the name of its texture coordinates."""

        material = self.pxr.UsdShade.MaterialBindingAPI(prim).ComputeBoundMaterial()[0]
        shader = material.ComputeSurfaceSource()[0] if material else None
        diffuse = shader.GetInput("diffuseColor") if shader else None
        if not diffuse:
            return {}, ""
        if not diffuse.HasConnectedSource():
            color = diffuse.Get(self.time)
            return ({} if color is None else {"face_color": encoded_array([*color, 1.0])}), ""
        texture = self.pxr.UsdShade.Shader(diffuse.GetConnectedSource()[0].GetPrim())
        if texture.GetIdAttr().Get() != "UsdUVTexture":
            log.warning("%s: the colours of %s are computed by a shader, they are left out", self.path, prim.GetName())
            return {}, ""
        wrap = [_WRAP.get(self._input(texture, name), REPEAT) for name in ("wrapS", "wrapT")]
        name, st = "st", texture.GetInput("st")
        if st and st.HasConnectedSource():
            reader = self.pxr.UsdShade.Shader(st.GetConnectedSource()[0].GetPrim())
            if reader.GetIdAttr().Get() == "UsdTransform2d":
                log.warning("%s: the transform of a texture's coordinates is left out", self.path)
                inner = reader.GetInput("in")
                reader = (
                    self.pxr.UsdShade.Shader(inner.GetConnectedSource()[0].GetPrim()) if inner.HasConnectedSource() else reader
                )
            name = str(self._input(reader, "varname") or name)
        asset = self._input(texture, "file")
        if asset is None:
            return {}, ""
        return {"image": self._picture(asset), "wrap": (wrap[0], wrap[1])}, name

    def _input(self, shader: Any, name: str) -> Any:
        """An input's value, through the interface of its material."""
        given = shader.GetInput(name)
        sources = given.GetValueProducingAttributes() if given else ()
        return sources[0].Get(self.time) if sources else None

    def _picture(self, asset: Any) -> Image.Image:
        key = asset.resolvedPath or asset.path
        if key not in self.images:
            name = asset.path
            if self.pxr.Ar.IsPackageRelativePath(key):
                with opened_zip(self.path, str(self.path), "a USD scene") as archive:
                    name = self.pxr.Ar.SplitPackageRelativePathInner(key)[1]
                    data = member(archive, archive.getinfo(name), str(self.path))
            else:
                file = beside(self.path, name.removeprefix("./"))
                if file is None:
                    raise InputError(f"{self.path}: {name[:80]} is missing, put it beside the mesh or remove the reference")
                data = read_bytes(file, "texture")
            self.images[key] = self.budget.open(data, name, str(self.path))
        return self.images[key]
