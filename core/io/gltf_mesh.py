"""A scene as a mesh that moves: one GLB file with a morph target a frame, which Blender, engines and web viewers play.

Frame 0 is the mesh itself; every other kept frame is a target of position deltas. One animation moves the targets' weights
linearly from frame to frame, around to frame 0 where the clip loops. The material is unlit, as the colours are those of a
video, light and all; readers that do not know KHR_materials_unlit shade it as a matt surface.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import InputError
from ..mesh import Mesh, decoded
from ..pictures import encode_picture
from ..scene.scene import Scene4D, frame_times
from ..scene.surface import carry, scene_surface, vertex_normals
from ..scene.views import FrameProgress
from .gltf import INDICES, VERTICES, Glb


def write_mesh_glb(
    path: str | os.PathLike[str],
    scene: Scene4D,
    *,
    frames: int | None = None,
    mesh: Mesh | None = None,
    tolerance: float = 5e-4,
    unlit: bool = True,
    progress: FrameProgress | None = None,
) -> None:
    """Write the scene's moving surface.

    Args:
        frames: the clip is spread over so many, its own where None.
        mesh: of the canonical object, in its frame; None takes :func:`scene_surface`.
        tolerance: a frame is left out where no vertex strays further than this, in parts of the object's longest side, from
            the straight line between the frames that are kept; 0 keeps all.
        unlit: colours as they are; False stores normals that move too, to be lit anew.
        progress: called with the frames done and all of them.

    Raises:
        InputError: for a scene without frames that belong together or without a surface, or values that are not numbers.
    """
    mesh = scene_surface(scene) if mesh is None else mesh
    count = scene.frames if frames is None else frames
    places = carry(scene, mesh.vertices, frame_times(count, scene.loop), progress=progress).cpu()  # (T, V, 3)
    if not bool(places.isfinite().all()):
        raise InputError(f"{path}: the scene moves its surface to places that are not numbers (NaN or infinite), fit it again")
    mesh = mesh.to("cpu")
    # Around the loop, frame 0 comes once more at the end.
    around = torch.cat([places, places[:1]]) if scene.loop and count > 1 else places
    size = float((places[0].amax(0) - places[0].amin(0)).max())
    kept = _kept(around, tolerance * size)
    targets = [frame for frame in kept if 0 < frame < count]
    normals = None if unlit else vertex_normals(mesh, places[[0, *targets]])
    glb = Glb()
    used = Materials(glb, mesh, unlit)
    primitives = [mesh_primitive(glb, mesh, part, used, places, targets, normals) for part in used.parts()]
    names = [f"frame{frame:04}" for frame in targets]
    body: dict[str, Any] = {"name": "surface", "primitives": primitives}
    if targets:
        body |= {"weights": [0.0] * len(targets), "extras": {"targetNames": names}}
    node = glb.add("nodes", {"name": "object", "mesh": glb.add("meshes", body)})
    fps = scene.fps * count / scene.frames
    glb.add("scenes", {"nodes": [node], "extras": {"fps": fps, "loop": scene.loop, "frames": count}})
    glb.header["scene"] = 0
    if targets:
        weights = np.zeros((len(kept), len(targets)), np.float32)
        for key, frame in enumerate(kept):
            if frame in targets:
                weights[key, targets.index(frame)] = 1
        times = np.array(kept, np.float32) / np.float32(fps)
        sampler = {
            "input": glb.array(times, bounds=True),
            "output": glb.array(weights.reshape(-1)),
            "interpolation": "LINEAR",
        }
        channel = {"sampler": 0, "target": {"node": node, "path": "weights"}}
        glb.add("animations", {"name": "motion", "samplers": [sampler], "channels": [channel]})
    glb.write(path)


def _kept(places: Tensor, tolerance: float) -> list[int]:  # (T, V, 3)
    """The frames that linear interpolation needs to stay within ``tolerance`` at every vertex (Douglas and Peucker 1973)."""
    last = len(places) - 1
    kept, open_spans = {0, last}, [(0, last)]
    while open_spans:
        first, end = open_spans.pop()
        if end - first < 2:
            continue
        share = torch.linspace(0, 1, end - first + 1)[1:-1, None, None]
        straight = torch.lerp(places[first], places[end], share)
        stray = (places[first + 1 : end] - straight).norm(dim=-1).amax(-1)
        worst = int(stray.argmax())
        if float(stray[worst]) > tolerance or tolerance <= 0:
            middle = first + 1 + worst
            kept.add(middle)
            open_spans += [(first, middle), (middle, end)]
    return sorted(kept)


class Materials:
    """The mesh's materials in the file, each once; faces of one are one primitive."""

    def __init__(self, glb: Glb, mesh: Mesh, unlit: bool) -> None:
        self.glb, self.mesh, self.unlit = glb, mesh, unlit
        self.textures: dict[int, int] = {}

    def parts(self) -> list[tuple[Tensor, int]]:
        """Faces (F, 3) and material index of each primitive."""
        mesh = self.mesh
        keys = torch.cat([mesh.face_texture[:, None].float(), mesh.face_color, mesh.face_alpha_cutoff[:, None]], -1)
        materials, member = keys.unique(dim=0, return_inverse=True)
        return [(mesh.faces[member == i], self._material(key)) for i, key in enumerate(materials)]

    def _material(self, key: Tensor) -> int:
        texture, color, cutoff = int(key[0]), decoded(key[1:5]), float(key[5])
        surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0, "baseColorFactor": color.tolist()}
        if texture >= 0 and self.mesh.uvs is not None:
            if texture not in self.textures:
                self.textures[texture] = self.glb.image(encode_picture(self.mesh.textures[texture]))
            surface["baseColorTexture"] = {"index": self.textures[texture]}
        material: dict[str, Any] = {"pbrMetallicRoughness": surface, "doubleSided": True}
        if cutoff > 0:
            material |= {"alphaMode": "MASK", "alphaCutoff": cutoff}
        if self.unlit:
            self.glb.use("KHR_materials_unlit")
            material["extensions"] = {"KHR_materials_unlit": {}}
        return self.glb.add("materials", material)


def mesh_primitive(
    glb: Glb,
    mesh: Mesh,
    part: tuple[Tensor, int],
    used: Materials,
    places: Tensor,  # (T, V, 3)
    targets: Sequence[int] = (),
    normals: Tensor | None = None,  # (1 + targets, V, 3)
    more: Mapping[str, np.ndarray] | None = None,  # each (V, C)
) -> dict[str, Any]:
    """Faces of one material with the vertices that they use: positions at frame 0, morph targets of others.

    Args:
        part: faces and material, of :meth:`Materials.parts`.
        targets: frames of ``places``.
        more: further attributes by name.
    """
    faces, material = part
    own, index = faces.unique(return_inverse=True)

    def vectors(values: Tensor, bounds: bool = False) -> int:
        return glb.array(values[own].float().numpy(), VERTICES, bounds=bounds)

    attributes = {"POSITION": vectors(places[0], True)}
    if normals is not None:
        attributes["NORMAL"] = vectors(normals[0])
    textured = "baseColorTexture" in glb.header["materials"][material]["pbrMetallicRoughness"]
    if mesh.uvs is not None and textured:
        attributes["TEXCOORD_0"] = vectors(mesh.uvs)
    if mesh.vertex_colors is not None:
        light = (decoded(mesh.vertex_colors[own]).clamp(0, 1) * 65535).round().to(torch.int32).numpy().astype("<u2")
        attributes["COLOR_0"] = glb.array(light, VERTICES, normalized=True)
    for name, values in (more or {}).items():
        attributes[name] = glb.array(values[own.numpy()], VERTICES)
    corners = index.reshape(-1).numpy().astype("<u2" if len(own) < 65535 else "<u4")
    primitive: dict[str, Any] = {"attributes": attributes, "indices": glb.array(corners, INDICES), "material": material}
    if targets:
        primitive["targets"] = [{"POSITION": vectors(places[frame] - places[0], True)} for frame in targets]
        if normals is not None:
            for target, moved in zip(primitive["targets"], normals[1:]):
                target["NORMAL"] = vectors(moved - normals[0])
    return primitive
