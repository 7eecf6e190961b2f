"""A scene on a skeleton as files: a skinned, animated GLB, and BVH, the skeleton's motion alone."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cameras import quaternion_to_matrix
from ..files import atomic_path
from ..scene.rig import Rig, rig_scene
from ..scene.scene import Scene4D
from ..scene.views import FrameProgress
from .gltf import Glb
from .gltf_mesh import Materials, mesh_primitive

#: BVH has no unit and programs take centimetres: an object of longest side 1 is a metre.
BVH_SCALE = 100.0


def write_skinned_glb(
    path: str | os.PathLike[str], scene: Scene4D, *, frames: int | None = None, progress: FrameProgress | None = None
) -> Rig:
    """Write the scene's surface as a skin with its skeleton's motion, and return it.

    Joints are nodes, at rest without rotation; inverse bind matrices take the world to them. One animation turns every joint,
    linearly from frame to frame, around to frame 0 where the clip loops, and moves the root and joints that slide.
    ``scenes[0].extras.skin`` says how far the skin strays from the scene's own motion, in lengths of the object.

    Args:
        frames: the clip is spread over so many, its own where None.
        progress: called with the frames done and all of them.

    Raises:
        InputError: as :func:`~..scene.rig.rig_scene` does, and beyond the size of a file.
    """
    rig = rig_scene(scene, frames=frames, progress=progress)
    skeleton, count = rig.skeleton, len(rig.turns)
    glb = Glb()
    used = Materials(glb, rig.mesh, True)
    kind = np.uint8 if len(skeleton) <= 256 else np.uint16
    follows = {"JOINTS_0": _joints(rig).astype(kind), "WEIGHTS_0": rig.weights.numpy().astype(np.float32)}
    primitives = [mesh_primitive(glb, rig.mesh, part, used, rig.mesh.vertices[None], more=follows) for part in used.parts()]
    body = glb.add("meshes", {"name": "surface", "primitives": primitives})
    offsets = _offsets(rig)
    nodes = [glb.add("nodes", {"name": skeleton.names[j], "translation": offsets[j].tolist()}) for j in range(len(skeleton))]
    for joint, parent in enumerate(skeleton.parents):
        if parent >= 0:
            glb.header["nodes"][nodes[parent]].setdefault("children", []).append(nodes[joint])
    inverse = np.tile(np.eye(4, dtype=np.float32).reshape(-1), (len(skeleton), 1))
    inverse[:, 12:15] = -skeleton.places.numpy()
    skin = glb.add("skins", {"inverseBindMatrices": glb.array(inverse), "joints": nodes, "skeleton": nodes[0]})
    skinned = glb.add("nodes", {"name": "object", "mesh": body, "skin": skin})
    fps = scene.fps * count / scene.frames
    strays = {"joints": len(skeleton), "rms_error": rig.error, "max_error": rig.worst}
    extras = {"fps": fps, "loop": scene.loop, "frames": count, "skin": strays}
    glb.add("scenes", {"nodes": [skinned, nodes[0]], "extras": extras})
    glb.header["scene"] = 0
    if count > 1:
        around = [*range(count), *([0] if scene.loop else [])]
        times = glb.array(np.arange(len(around), dtype=np.float32) / np.float32(fps), bounds=True)
        samplers: list[dict[str, Any]] = []
        channels: list[dict[str, Any]] = []

        def animate(joint: int, path: str, values: Tensor) -> None:
            output = glb.array(values[around].float().numpy())
            samplers.append({"input": times, "output": output, "interpolation": "LINEAR"})
            channels.append({"sampler": len(samplers) - 1, "target": {"node": nodes[joint], "path": path}})

        for joint in range(len(skeleton)):
            animate(joint, "rotation", rig.turns[:, joint, [1, 2, 3, 0]])  # glTF: xyzw
            if skeleton.slides[joint]:
                animate(joint, "translation", offsets[joint] + rig.shifts[:, joint])
        glb.add("animations", {"name": "motion", "samplers": samplers, "channels": channels})
    glb.write(path)
    return rig


def write_bvh(
    path: str | os.PathLike[str], scene: Scene4D, *, frames: int | None = None, progress: FrameProgress | None = None
) -> Rig:
    """Write the skeleton and its motion as BVH (Biovision hierarchy), and return the rig that it is of.

    +Y up, +Z to the front, :data:`BVH_SCALE` units to the object's world unit. Rotations are degrees in the order
    ``Zrotation Xrotation Yrotation``, the matrix of a joint being ``Rz Rx Ry``. The root and joints that slide have positions,
    which take the offset's place.

    Args:
        frames: the clip is spread over so many, its own where None.
        progress: called with the frames done and all of them.

    Raises:
        InputError: as :func:`~..scene.rig.rig_scene` does.
    """
    rig = rig_scene(scene, frames=frames, progress=progress)
    skeleton, count = rig.skeleton, len(rig.turns)
    offsets, ends = BVH_SCALE * _offsets(rig), BVH_SCALE * _ends(rig)
    children: list[list[int]] = [[] for _ in skeleton.parents]
    for joint, parent in enumerate(skeleton.parents):
        if parent >= 0:
            children[parent].append(joint)
    lines = ["HIERARCHY"]
    order: list[int] = []

    def describe(joint: int, depth: int) -> None:
        order.append(joint)
        tab = "\t" * depth
        lines.extend([f"{tab}{'JOINT' if depth else 'ROOT'} {skeleton.names[joint]}", f"{tab}{{"])
        lines.append(f"{tab}\tOFFSET {_row(offsets[joint])}")
        turns = "Zrotation Xrotation Yrotation"
        moves = f"6 Xposition Yposition Zposition {turns}" if skeleton.slides[joint] else f"3 {turns}"
        lines.append(f"{tab}\tCHANNELS {moves}")
        for child in children[joint]:
            describe(child, depth + 1)
        if not children[joint]:
            lines.extend([f"{tab}\tEnd Site", f"{tab}\t{{", f"{tab}\t\tOFFSET {_row(ends[joint])}", f"{tab}\t}}"])
        lines.append(f"{tab}}}")

    describe(0, 0)
    fps = scene.fps * count / scene.frames
    lines += ["MOTION", f"Frames: {count}", f"Frame Time: {1 / fps:.6f}"]
    angles = euler_zxy(quaternion_to_matrix(rig.turns))
    at = offsets + BVH_SCALE * rig.shifts
    columns = [x for joint in order for x in ([at[:, joint]] if skeleton.slides[joint] else []) + [angles[:, joint]]]
    lines += [_row(row) for row in torch.cat(columns, -1)]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="ascii")
    return rig


def euler_zxy(matrices: Tensor) -> Tensor:  # (T, ..., 3, 3) -> (T, ..., 3) degrees
    """Angles z, x, y of ``Rz Rx Ry``, each going on from frame to frame without a jump of a full turn."""
    x = matrices[..., 2, 1].clamp(-1, 1).asin()
    y = torch.atan2(-matrices[..., 2, 0], matrices[..., 2, 2])
    z = torch.atan2(-matrices[..., 0, 1], matrices[..., 1, 1])
    return torch.from_numpy(np.degrees(np.unwrap(torch.stack([z, x, y], -1).double().numpy(), axis=0)))


def _joints(rig: Rig) -> np.ndarray:  # (V, 4)
    """Joints by vertex; 0 where the weight is 0, as validators want it."""
    return torch.where(rig.weights > 0, rig.joints, 0).numpy()


def _offsets(rig: Rig) -> Tensor:  # (J, 3)
    """Of joints from their parents at rest; the root's from the origin."""
    places, parents = rig.skeleton.places, rig.skeleton.parents
    return torch.stack([places[j] - (places[p] if p >= 0 else 0) for j, p in enumerate(parents)])


def _ends(rig: Rig) -> Tensor:  # (J, 3)
    """From each joint to the far end of its part: through the part's middle, twice as far."""
    strongest = rig.joints.gather(1, rig.weights.argmax(-1, keepdim=True))[:, 0]
    count = len(rig.skeleton)
    total = torch.zeros(count, 3).index_add_(0, strongest, rig.mesh.vertices)
    held = torch.bincount(strongest, minlength=count)[:, None]
    return torch.where(held > 0, 2 * (total / held.clamp_min(1) - rig.skeleton.places), 0.0)


def _row(values: Tensor) -> str:
    return " ".join(f"{value:.6f}" for value in values.tolist())
