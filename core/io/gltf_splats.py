"""glTF with KHR_gaussian_splatting: Gaussians as points that carry their shape, still or frame by frame.

Source: the ratified extension, KhronosGroup/glTF, extensions/2.0/Khronos/KHR_gaussian_splatting. glTF is Y-up as we are; its
harmonics have the order and signs of 3DGS. Scales are linear, opacities in [0, 1], quaternions xyzw of unit length. The
extension knows no motion: frames are nodes of their own, shown in turn by animating their scale between 1 and 0, which the core
specification (3.5.2) names as the way to hide a node.

KHR_gaussian_splatting_compression_spz_2 (a draft) keeps a .spz in place of the arrays, of SPZ's release 2 and so of version 3,
whose own axes (x right, y up, z back) are glTF's (x left, y up, z forward) turned about Y. Files without the base extension's
kernel and colour space, as Cesium's first tilers wrote them, keep their numbers as they are, which then are glTF's.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import InputError
from ..gaussians import Gaussians
from ..mesh import srgb_to_linear
from ..scene.scene import Scene4D, frame_times
from ..scene.views import FrameProgress
from . import spz
from .gltf import FLOAT, VERTICES, Entry, Glb, Gltf
from .ply import sound

log = logging.getLogger(__name__)

EXTENSION = "KHR_gaussian_splatting"
SPZ = "KHR_gaussian_splatting_compression_spz_2"


def write_splat_glb(
    path: str | os.PathLike[str], gaussians: Gaussians, *, name: str = "splats", compressed: bool = False
) -> None:
    """Write one set of Gaussians (N, ...).

    Points with colours are what a reader without the extension shows.

    Args:
        compressed: as SPZ, a tenth of the size, which readers must know.

    Raises:
        InputError: for an empty set, a batch or values that are not numbers.
    """
    glb = Glb()
    mesh = (_packed if compressed else _mesh)(glb, _checked(path, gaussians), name, {})
    glb.add("nodes", {"name": name, "mesh": mesh})
    _finish(glb, [0])
    glb.write(path)


def write_splat_glb_frames(
    path: str | os.PathLike[str],
    scene: Scene4D,
    frames: int | None = None,
    *,
    name: str = "splats",
    compressed: bool = False,
    progress: FrameProgress | None = None,
) -> None:
    """Write a clip: a node a frame under one node, the first shown, the others in turn by an animation of steps.

    What does not change from frame to frame is stored once. A reader that plays no animation shows the first frame.

    Args:
        frames: the clip is spread over so many, its own where None.
        compressed: each frame as SPZ.
        progress: called with the frames done and all of them.

    Raises:
        InputError: for an empty scene or values that are not numbers.
    """
    count = scene.frames if frames is None else frames
    fps = scene.fps * count / scene.frames
    glb, stored = Glb(), {}
    for index, tau in enumerate(frame_times(count, scene.loop)):
        with torch.no_grad():
            gaussians = _checked(path, scene.at(tau))
        mesh = (_packed if compressed else _mesh)(glb, gaussians, f"{name}{index:04}", stored)
        glb.add("nodes", {"name": f"{name}{index:04}", "mesh": mesh} | ({"scale": [0.0, 0.0, 0.0]} if index else {}))
        if progress is not None:
            progress(index + 1, count)
    root = glb.add("nodes", {"name": name, "children": list(range(count))})
    if count > 1:
        glb.add("animations", _shown_in_turn(glb, count, fps))
    _finish(glb, [root], {"fps": fps, "loop": scene.loop, "frames": count})
    glb.write(path)


def read_splat_glb(path: str | os.PathLike[str]) -> Gaussians:
    """Read the Gaussians of a glTF file that are shown at its start, (N, ...), nodes' transforms applied.

    Raises:
        InputError: for a missing, damaged or foreign file, another kernel or colour space, or values that are not numbers.
    """
    gltf = Gltf(path)
    found = []
    for _, node, matrix in gltf.placed():
        primitives = gltf.item("meshes", node.whole("mesh")).entries("primitives") if "mesh" in node else []
        for primitive in primitives:
            if EXTENSION not in primitive.extensions:
                log.warning("%s: %s is no set of Gaussians, it is left out", path, primitive.place)
            elif abs(np.linalg.det(matrix[:3, :3])) > 1e-18:  # hidden by its scale otherwise
                found.append(_placed(gltf, _read_primitive(gltf, primitive), node, matrix))
    if not found:
        raise InputError(f"{path}: a glTF file, but without {EXTENSION}; a mesh is opened as an object")
    widest = max(gaussians.sh.shape[-2] for gaussians in found)
    return Gaussians.cat([_padded(gaussians, widest) for gaussians in found])


def _checked(path: str | os.PathLike[str], gaussians: Gaussians) -> Gaussians:
    if gaussians.means.dim() != 2:
        raise InputError(f"{path}: one set of Gaussians goes into a node, not a batch {tuple(gaussians.means.shape[:-2])}")
    if not len(gaussians):
        raise InputError(f"{path}: the scene has no Gaussians, nothing to write")
    gaussians = gaussians.detach().to("cpu", torch.float32)
    if any(bool(t.isnan().any()) for t in gaussians.tensors().values()) or not bool(gaussians.means.isfinite().all()):
        raise InputError(f"{path}: the scene holds values that are not numbers (NaN or infinite), fit it again")
    return gaussians


def _mesh(glb: Glb, gaussians: Gaussians, name: str, stored: dict[str, tuple[Tensor, int]]) -> int:
    """A mesh of one primitive; arrays equal to the ones stored last are shared."""

    def shared(key: str, source: Tensor, array: Callable[[], int]) -> int:
        if key not in stored or not torch.equal(stored[key][0], source):
            stored[key] = source, array()
        return stored[key][1]

    def floats(key: str, values: Tensor, bounds: bool = False) -> int:
        return shared(key, values, lambda: glb.array(values.numpy(), VERTICES, bounds=bounds))

    degree = math.isqrt(gaussians.sh.shape[-2]) - 1
    if degree > 3:
        raise InputError(f"{name}: harmonics of degree {degree}, glTF holds up to 3; reduce them")
    opacities = gaussians.opacities
    rgba = torch.cat([srgb_to_linear(gaussians.colors.clamp(0, 1)), opacities[:, None]], -1)
    quats = torch.nn.functional.normalize(gaussians.quats, dim=-1)
    quats[quats.norm(dim=-1) < 0.5] = quats.new_tensor([1.0, 0.0, 0.0, 0.0])
    attributes = {
        "POSITION": floats("means", gaussians.means, True),
        "COLOR_0": shared("rgba", rgba, lambda: glb.array(_shorts(rgba), VERTICES, normalized=True)),
        f"{EXTENSION}:ROTATION": floats("quats", quats[:, [1, 2, 3, 0]].contiguous()),
        f"{EXTENSION}:SCALE": floats("scales", gaussians.scales.clamp_max(1e30)),
        f"{EXTENSION}:OPACITY": floats("opacities", opacities),
    }
    for order in range(degree + 1):
        for coefficient in range(2 * order + 1):
            key = f"{EXTENSION}:SH_DEGREE_{order}_COEF_{coefficient}"
            attributes[key] = floats(key, gaussians.sh[:, order**2 + coefficient].contiguous())
    settings = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    primitive = {"mode": 0, "attributes": attributes, "extensions": {EXTENSION: settings}, "material": 0}
    return glb.add("meshes", {"name": name, "primitives": [primitive]})


def _packed(glb: Glb, gaussians: Gaussians, name: str, stored: dict[str, tuple[Tensor, int]]) -> int:
    """A mesh of one primitive whose attributes are in a .spz; accessors say their kind and number alone."""
    count, degree = len(gaussians), math.isqrt(gaussians.sh.shape[-2]) - 1
    if degree > 3:
        raise InputError(f"{name}: harmonics of degree {degree}, glTF holds up to 3; reduce them")
    view = glb.view(spz.encode(_about_y(gaussians), version=3, axes="rub"))

    def promised(kind: str, **bounds: list[float]) -> int:
        return glb.add("accessors", {"componentType": FLOAT, "count": count, "type": kind, **bounds})

    low, high = gaussians.means.amin(0).tolist(), gaussians.means.amax(0).tolist()
    attributes = {"POSITION": promised("VEC3", min=low, max=high), "COLOR_0": promised("VEC4")}
    attributes |= {f"{EXTENSION}:ROTATION": promised("VEC4"), f"{EXTENSION}:SCALE": promised("VEC3")}
    attributes[f"{EXTENSION}:OPACITY"] = promised("SCALAR")
    for order in range(degree + 1):
        for coefficient in range(2 * order + 1):
            attributes[f"{EXTENSION}:SH_DEGREE_{order}_COEF_{coefficient}"] = promised("VEC3")
    settings = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display", "extensions": {SPZ: {"bufferView": view}}}
    primitive = {"mode": 0, "attributes": attributes, "extensions": {EXTENSION: settings}, "material": 0}
    glb.use(SPZ)
    glb.header["extensionsRequired"] = [EXTENSION, SPZ]
    return glb.add("meshes", {"name": name, "primitives": [primitive]})


def _about_y(gaussians: Gaussians) -> Gaussians:
    """Half a turn about Y, glTF's axes to SPZ's and back."""
    return gaussians.transformed(torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0])))


def _shorts(values: Tensor) -> np.ndarray:
    return (values.clamp(0, 1) * 65535).round().to(torch.int32).numpy().astype("<u2")


def _shown_in_turn(glb: Glb, count: int, fps: float) -> dict[str, Any]:
    """An animation that gives each of the first ``count`` nodes scale 1 in its own frame and 0 in all others."""
    animation: dict[str, Any] = {"name": "frames", "samplers": [], "channels": []}
    for index in range(count):
        times = sorted({0, index, index + 1} - ({count} if index < count - 1 else set()))
        scale = np.array([[float(t == index or (t == count and index == count - 1))] * 3 for t in times], np.float32)
        sampler = {
            "input": glb.array(np.array(times, np.float32) / np.float32(fps), bounds=True),
            "output": glb.array(scale),
            "interpolation": "STEP",
        }
        animation["samplers"].append(sampler)
        animation["channels"].append({"sampler": index, "target": {"node": index, "path": "scale"}})
    return animation


def _finish(glb: Glb, roots: list[int], extras: dict[str, Any] | None = None) -> None:
    """What both kinds of file end with: the scene, and the material of readers that see mere points."""
    glb.use(EXTENSION)
    glb.use("KHR_materials_unlit")
    flat = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    glb.add("materials", {"name": "points", "pbrMetallicRoughness": flat, "extensions": {"KHR_materials_unlit": {}}})
    glb.add("scenes", {"nodes": roots} | ({"extras": extras} if extras else {}))
    glb.header["scene"] = 0


def _placed(gltf: Gltf, gaussians: Gaussians, node: Entry, matrix: np.ndarray) -> Gaussians:  # (4, 4)
    try:
        return gaussians.transformed(torch.from_numpy(matrix).float())
    except ValueError:
        raise InputError(
            f"{gltf.path}: {node.place} shears, mirrors or scales Gaussians unevenly; apply its transform and export it again"
        ) from None


def _read_primitive(gltf: Gltf, primitive: Entry) -> Gaussians:
    settings, attributes = primitive.entry("extensions").entry(EXTENSION), primitive.entry("attributes")
    # Compressed by a draft of the extension that had neither: these are the only ones then.
    packed, older = SPZ in settings.extensions, not {"kernel", "colorSpace"} & settings.value.keys()
    kernel, space = ("ellipse", "srgb_rec709_display") if packed and older else map(settings.text, ("kernel", "colorSpace"))
    if kernel != "ellipse" or settings.extensions - {SPZ}:
        kind = ", ".join(sorted(settings.extensions - {SPZ})) or kernel
        raise InputError(f"{gltf.path}: its splats are of another kind or compressed ({kind}), export plain ones")
    if space != "srgb_rec709_display":
        raise InputError(f"{gltf.path}: its colours are in {space}, only srgb_rec709_display is read; export it again as sRGB")
    if packed:
        data = bytes(gltf.view(settings.entry("extensions").entry(SPZ).whole("bufferView")))
        found = sound(spz.decode(data, str(gltf.path), axes="rub"), str(gltf.path))
        return found if older else _about_y(found)
    count = gltf.count(attributes.whole("POSITION"))
    if count > gltf.limits.elements:
        raise InputError(f"{gltf.path}: {count:,} Gaussians, more than {gltf.limits.elements:,}, reduce them")

    def read(key: str, kind: str = "VEC3") -> Tensor:
        values = gltf.floats(attributes.whole(key), kind)
        if len(values) != count:
            raise gltf.damaged(f"{attributes.place}.{key} has {len(values):,} rows where POSITION has {count:,}")
        return torch.from_numpy(values)

    sh = [read(f"{EXTENSION}:SH_DEGREE_0_COEF_0")]
    for degree in range(1, 4):
        if f"{EXTENSION}:SH_DEGREE_{degree}_COEF_0" in attributes:
            sh += [read(f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{k}") for k in range(2 * degree + 1)]
    gaussians = Gaussians(
        means=read("POSITION"),
        quats=read(f"{EXTENSION}:ROTATION", "VEC4")[:, [3, 0, 1, 2]],
        log_scales=read(f"{EXTENSION}:SCALE").clamp_min(1e-12).log(),
        opacity_logits=read(f"{EXTENSION}:OPACITY", "SCALAR")[:, 0].clamp(1e-6, 1 - 1e-6).logit(),
        sh=torch.stack(sh, 1),
    )
    for name, value in gaussians.tensors().items():
        if not bool(value.isfinite().all()):
            raise InputError(f"{gltf.path}: holds NaN or infinite {name}, repair or export it again")
    return gaussians


def _padded(gaussians: Gaussians, coefficients: int) -> Gaussians:
    rest = gaussians.sh.new_zeros(len(gaussians), coefficients - gaussians.sh.shape[-2], 3)
    return replace(gaussians, sh=torch.cat([gaussians.sh, rest], 1))
