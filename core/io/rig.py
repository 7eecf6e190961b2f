"""A scene on a skeleton as files: a skinned, animated GLB, and BVH, the skeleton's motion alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import quaternion_multiply, quaternion_to_matrix
from ..deformation import Skeleton
from ..files import atomic_path
from ..mesh import Mesh
from ..scene.rig import Rig, rig_scene, strongest_of
from ..scene.scene import Scene4D
from ..scene.views import FrameProgress
from ..skin import Skin, rotations_of, unique
from .gltf import Glb
from .gltf_mesh import Materials, mesh_primitive

#: BVH has no unit and programs take centimetres: an object of longest side 1 is a metre.
BVH_SCALE = 100.0


def write_skinned_glb(
    path: str | os.PathLike[str], scene: Scene4D, *, frames: int | None = None, progress: FrameProgress | None = None
) -> Rig:
    """Write the scene's surface as a skin with its skeleton's motion, and return it.

    Joints are nodes, at rest without rotation; inverse bind matrices take the world to them. Joints of a rig that the object
    came with have its names and rotations at rest, and hang from a node ``rig`` that stands for what they hung from: the
    animation is then, channel for channel, one of the rig itself. It turns every joint, linearly from frame to frame, around to
    frame 0 where the clip loops, and moves the root and joints that slide.
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
    bones = _Bones.of(rig.skeleton, rig.skin)
    nodes, shown = _add_skinned(glb, rig.mesh, skeleton, bones, rig.joints, rig.weights)
    fps = scene.fps * count / scene.frames
    strays = {"joints": len(skeleton), "rms_error": rig.error, "max_error": rig.worst}
    extras = {"fps": fps, "loop": scene.loop, "frames": count, "skin": strays}
    glb.add("scenes", {"nodes": shown, "extras": extras})
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
            animate(joint, "rotation", bones.turned(rig.turns)[:, joint, [1, 2, 3, 0]])  # glTF: xyzw
            if skeleton.slides[joint]:
                animate(joint, "translation", bones.placed(_offsets(skeleton) + rig.shifts)[:, joint])
        glb.add("animations", {"name": "motion", "samplers": samplers, "channels": channels})
    glb.write(path)
    return rig


def write_rigged_mesh(path: str | os.PathLike[str], mesh: Mesh) -> None:
    """Write a mesh at rest with its rig, of four joints a vertex; colours are unlit.

    Raises:
        ValueError: for a mesh without a rig.
        InputError: beyond the size of a file.
    """
    if mesh.skin is None:
        raise ValueError("rig: the mesh has none")
    mesh, glb = mesh.to("cpu"), Glb()
    assert mesh.skin is not None
    skin = mesh.skin
    skeleton = Skeleton(skin.parents, skin.places, torch.zeros(len(skin), 3), (False,) * len(skin), skin.names)
    _, shown = _add_skinned(glb, mesh, skeleton, _Bones.of(skeleton, skin), *strongest_of(skin))
    glb.add("scenes", {"nodes": shown})
    glb.header["scene"] = 0
    glb.write(path)


@dataclass(frozen=True)
class _Bones:
    """How joints lie in a file at rest: each in its parent's frame, of rotations and one scale.

    Args:
        frame: of what the root hangs from, (4, 4).
        quats: of the joints in the world, (J, 4); above: of what each hangs from.
        scale: of the frame, and so of all.
        start: where the root's offset is counted from, (3,).
    """

    frame: Tensor
    quats: Tensor
    above: Tensor
    scale: float
    start: Tensor

    @staticmethod
    def of(skeleton: Skeleton, skin: Skin | None) -> _Bones:
        frame, quats = torch.eye(4), torch.tensor([1.0, 0, 0, 0]).expand(len(skeleton), 4)
        if skin is not None:
            quats, linear = skin.quats, skin.frame[:3, :3].double()
            scale = float(torch.linalg.det(linear).clamp_min(0)) ** (1 / 3)
            if scale > 0 and float((linear.T @ linear / scale**2 - torch.eye(3)).abs().max()) < 1e-3:  # else no rig hangs so
                frame = skin.frame
        linear = frame[:3, :3]
        parents = [quats[p] if p >= 0 else rotations_of(linear[None])[0] for p in skeleton.parents]
        return _Bones(frame, quats, torch.stack(parents), float(torch.linalg.det(linear)) ** (1 / 3), frame[:3, 3])

    def turned(self, turns: Tensor) -> Tensor:  # (..., J, 4) against the parents, in the world's axes -> in the parents'
        return quaternion_multiply(quaternion_multiply(self.above * torch.tensor([1.0, -1, -1, -1]), turns), self.quats)

    def placed(self, offsets: Tensor) -> Tensor:  # (..., J, 3) from the parents -> in the parents' frames
        offsets = torch.cat([offsets[..., :1, :] - self.start, offsets[..., 1:, :]], -2)
        return (quaternion_to_matrix(self.above).mT @ offsets[..., None])[..., 0] / self.scale

    def inverses(self, places: Tensor) -> np.ndarray:  # (J, 3) -> (J, 16), column by column
        back = quaternion_to_matrix(self.quats).mT / self.scale
        matrices = torch.eye(4).repeat(len(places), 1, 1)
        matrices[:, :3, :3], matrices[:, :3, 3] = back, -(back @ places[:, :, None])[..., 0]
        return matrices.mT.reshape(-1, 16).numpy().astype(np.float32)


def _add_skinned(
    glb: Glb, mesh: Mesh, skeleton: Skeleton, bones: _Bones, joints: Tensor, weights: Tensor
) -> tuple[list[int], list[int]]:
    """A mesh at rest on its joints; the joints' nodes, and those that the scene shows."""
    used = Materials(glb, mesh, True)
    kind = np.uint8 if len(skeleton) <= 256 else np.uint16
    follow = torch.where(weights > 0, joints, 0).numpy()  # validators want 0 where the weight is 0
    follows = {"JOINTS_0": follow.astype(kind), "WEIGHTS_0": weights.numpy().astype(np.float32)}
    primitives = [mesh_primitive(glb, mesh, part, used, mesh.vertices[None], more=follows) for part in used.parts()]
    body = glb.add("meshes", {"name": "surface", "primitives": primitives})
    still = bones.turned(torch.tensor([1.0, 0, 0, 0]).expand(len(skeleton), 4))[:, [1, 2, 3, 0]]
    nodes = []
    for name, place, turn in zip(skeleton.names, bones.placed(_offsets(skeleton)), still):
        node = {"name": name, "translation": place.tolist()}
        nodes.append(glb.add("nodes", node if float(turn[3]) == 1 else node | {"rotation": F.normalize(turn, dim=0).tolist()}))
    for joint, parent in enumerate(skeleton.parents):
        if parent >= 0:
            glb.header["nodes"][nodes[parent]].setdefault("children", []).append(nodes[joint])
    top = nodes[0]
    if not torch.equal(bones.frame, torch.eye(4)):
        top = glb.add("nodes", {"name": "rig", "matrix": bones.frame.T.reshape(-1).tolist(), "children": [nodes[0]]})
    inverse = glb.array(bones.inverses(skeleton.places))
    skin = glb.add("skins", {"inverseBindMatrices": inverse, "joints": nodes, "skeleton": nodes[0]})
    return nodes, [glb.add("nodes", {"name": "object", "mesh": body, "skin": skin}), top]


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

    Names have no spaces, as readers divide lines by them.

    Raises:
        InputError: as :func:`~..scene.rig.rig_scene` does.
    """
    rig = rig_scene(scene, frames=frames, progress=progress)
    names = unique(["_".join(name.split()) for name in rig.skeleton.names])
    skeleton, count = rig.skeleton, len(rig.turns)
    offsets, ends = BVH_SCALE * _offsets(skeleton), BVH_SCALE * _ends(rig)
    children: list[list[int]] = [[] for _ in skeleton.parents]
    for joint, parent in enumerate(skeleton.parents):
        if parent >= 0:
            children[parent].append(joint)
    lines = ["HIERARCHY"]
    order: list[int] = []

    def describe(joint: int, depth: int) -> None:
        order.append(joint)
        tab = "\t" * depth
        lines.extend([f"{tab}{'JOINT' if depth else 'ROOT'} {names[joint]}", f"{tab}{{"])
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
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return rig


def euler_zxy(matrices: Tensor) -> Tensor:  # (T, ..., 3, 3) -> (T, ..., 3) degrees
    """Angles z, x, y of ``Rz Rx Ry``, each going on from frame to frame without a jump of a full turn."""
    x = matrices[..., 2, 1].clamp(-1, 1).asin()
    y = torch.atan2(-matrices[..., 2, 0], matrices[..., 2, 2])
    z = torch.atan2(-matrices[..., 0, 1], matrices[..., 1, 1])
    return torch.from_numpy(np.degrees(np.unwrap(torch.stack([z, x, y], -1).double().numpy(), axis=0)))


def _offsets(skeleton: Skeleton) -> Tensor:  # (J, 3)
    """Of joints from their parents at rest; the root's from the origin."""
    places, parents = skeleton.places, skeleton.parents
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
