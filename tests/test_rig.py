"""Skeletons: parts and joints found from motion, the articulated field, and files of skinned meshes and BVH."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from anchor4d.core.cameras import quaternion_to_matrix
from anchor4d.core.deformation import Articulated, ControlNodes, FrameField, Skeleton, find_skeleton
from anchor4d.core.deformation.graph import graph_from_mesh, spaced_binding
from anchor4d.core.gaussians import from_points
from anchor4d.core.io.rig import BVH_SCALE, euler_zxy, write_bvh, write_skinned_glb
from anchor4d.core.mesh import Mesh
from anchor4d.core.runs.sample import sample_scene
from anchor4d.core.scene.rig import INFLUENCES, rig_scene
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.surface import carry
from anchor4d.training.machine_cases import posed

FRAMES = 6


def tracks(name: str, points: int = 240) -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    """Points spread over a machine at rest and at each frame, their neighbours, and the true part of each."""
    meshes, part = posed(name, 8)
    graph, _ = graph_from_mesh(meshes[0])
    nodes = graph.spread(points)
    rest = graph.points[nodes]
    vertices = [mesh.vertices.double().numpy() for mesh in meshes]
    own = part[cdist(rest, vertices[0]).argmin(1)]
    moved = np.empty((len(meshes), len(rest), 3))
    for body in np.unique(own):
        inside, at = part == body, own == body
        rows = np.concatenate([vertices[0][inside], np.ones((inside.sum(), 1))], 1)
        for frame, there in enumerate(vertices):
            motion = np.linalg.lstsq(rows, there[inside], rcond=None)[0]
            moved[frame, at] = rest[at] @ motion[:3] + motion[3]
    pairs = spaced_binding(graph, nodes, meshes[0].vertices[:1])[2]
    return torch.from_numpy(rest), torch.from_numpy(moved), pairs, own


@pytest.fixture(scope="module")
def scene() -> Scene4D:
    made = sample_scene(300, FRAMES)
    assert made.field is not None
    made.field.requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def articulated(scene: Scene4D) -> Scene4D:
    field = scene.field
    assert isinstance(field, ControlNodes)
    positions, quats = field.motion_of_handles(scene.taus)
    found = find_skeleton(field.node_positions, positions, field.pairs, quats)
    return replace(scene, field=Articulated.of(field, found).requires_grad_(False))


# Parts and joints


@pytest.mark.parametrize(("name", "parts"), [("chest_lid", 2), ("gate_swing", 3), ("crane_slew", 2), ("turbine_spin", 2)])
def test_a_machine_s_parts_are_found(name: str, parts: int) -> None:
    rest, moved, pairs, truth = tracks(name)
    found = find_skeleton(rest, moved, pairs)
    assert len(found.skeleton) == parts and found.error < 5e-3
    label = found.label.numpy()
    for part in range(parts):
        members = np.bincount(truth[label == part])
        assert members.max() >= 0.97 * members.sum()


def test_a_hinge_is_where_it_is() -> None:
    rest, moved, pairs, _ = tracks("chest_lid")
    skeleton = find_skeleton(rest, moved, pairs).skeleton
    # The lid turns about X, the case about +Y by 30 degrees; the hinge is the back edge of the box.
    axis = torch.tensor([math.cos(math.radians(30)), 0.0, -math.sin(math.radians(30))])
    assert float((skeleton.axes[1] @ axis).abs()) > 0.9999
    meshes, part = posed("chest_lid", 8)
    lid = part == part[-1]
    rows = torch.cat([meshes[0].vertices[lid], torch.ones(int(lid.sum()), 1)], 1)
    for mesh in meshes:  # the case stands still: the lid leaves the joint where it is
        motion = torch.linalg.lstsq(rows, mesh.vertices[lid]).solution
        stays = skeleton.places[1] @ motion[:3] + motion[3]
        assert float((stays - skeleton.places[1]).norm()) < 2e-3
    assert skeleton.slides == (True, False)


def test_columns_slide() -> None:
    rest, moved, pairs, truth = tracks("columns_rise", 400)
    skeleton = find_skeleton(rest, moved, pairs).skeleton
    assert len(skeleton) == len(np.unique(truth)) and all(skeleton.slides)


def test_a_still_object_is_one_part() -> None:
    rest, moved, pairs, _ = tracks("chest_lid")
    found = find_skeleton(rest, moved[:1].expand(4, -1, -1), pairs)
    assert len(found.skeleton) == 1 and found.error < 1e-6 and found.skeleton.parents == (-1,)


def test_pieces_stay_together_and_few_parts_are_kept_to() -> None:
    rest, moved, pairs, truth = tracks("digger_dig")
    found = find_skeleton(rest, moved, pairs, groups=torch.from_numpy(truth))
    for part in np.unique(truth):
        assert len(found.label[torch.from_numpy(truth == part)].unique()) == 1
    assert len(find_skeleton(rest, moved, pairs, most=2).skeleton) == 2


def test_forward_kinematics_by_hand() -> None:
    """An arm along +X: the shoulder turns 90 degrees about +Z, the elbow at x = 1 another 90 about +Z."""
    half = math.sqrt(0.5)
    skeleton = Skeleton((-1, 0), torch.tensor([[0.0, 0, 0], [1.0, 0, 0]]), torch.zeros(2, 3), (True, False), ("root", "elbow"))
    turns = torch.tensor([[[half, 0, 0, half], [half, 0, 0, half]]])
    quats, at = skeleton.pose(turns, torch.zeros(1, 2, 3))
    torch.testing.assert_close(at[0], torch.tensor([[0.0, 0, 0], [0, 1.0, 0]]), atol=1e-6, rtol=0)
    tip = quaternion_to_matrix(quats)[0, 1] @ torch.tensor([1.0, 0, 0]) + at[0, 1]
    torch.testing.assert_close(tip, torch.tensor([-1.0, 1.0, 0]), atol=1e-6, rtol=0)


# The field


def test_an_articulated_field_moves_as_what_it_was_made_of(scene: Scene4D, articulated: Scene4D) -> None:
    there, ours = scene.at(scene.taus).means, articulated.at(scene.taus).means
    assert float((there - ours).square().sum(-1).mean().sqrt()) < 0.012
    torch.testing.assert_close(articulated.at(0.0).means, scene.gaussians.means, atol=1e-5, rtol=0)


def test_its_parts_are_rigid(articulated: Scene4D) -> None:
    field = articulated.field
    assert isinstance(field, Articulated)
    with torch.no_grad():
        positions, _ = field.motion_of_handles(torch.tensor([0.3, 0.7]))
    part = field.joint_weights.argmax(-1)
    for joint in range(field.joint_weights.shape[1]):
        own = part == joint
        kept, now = (
            torch.cdist(field.node_positions[own], field.node_positions[own]),
            torch.cdist(positions[:, own], positions[:, own]),
        )
        torch.testing.assert_close(now, kept.expand_as(now), atol=2e-3, rtol=0)


def test_it_is_saved_and_learns(articulated: Scene4D, tmp_path: Path) -> None:
    articulated.save(tmp_path / "scene.safetensors")
    again = Scene4D.load(tmp_path / "scene.safetensors")
    assert isinstance(again.field, Articulated) and again.field.skeleton.names[0] == "root"
    assert torch.equal(again.at(0.37).means, articulated.at(0.37).means)
    field = again.field.requires_grad_(True)
    groups = field.parameter_groups()
    assert {id(g.parameter) for g in groups} == {id(p) for p in field.parameters()}
    (field(again.gaussians, torch.tensor([0.4])).means * torch.randn(300, 3)).sum().backward()
    assert all(g.parameter.grad is not None and bool(g.parameter.grad.isfinite().all()) for g in groups)
    assert float(field.turns.grad.abs().max()) > 0 and float(field.places.grad.abs().max()) > 0  # pyright: ignore[reportOptionalMemberAccess]


def test_parents_that_are_no_tree_are_refused(articulated: Scene4D, tmp_path: Path) -> None:
    field = articulated.field
    assert isinstance(field, Articulated)
    for parents in ([0, -1], [-1, -1], [-1, 1], []):
        with pytest.raises(ValueError, match="no tree"):
            Articulated(4, 4, 4, 4, parents, ["a"] * len(parents))


# Files


def rigid(axis: int, degrees: float) -> Scene4D:
    """A box-like cloud on a tetrahedron that turns about an axis through the origin from the first frame to the second."""
    mesh = Mesh(
        torch.tensor([[0.5, 0.5, 0.5], [-0.5, -0.5, 0.5], [-0.5, 0.5, -0.5], [0.5, -0.5, -0.5]]),
        torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]), vertex_colors=torch.rand(4, 4),
    )  # fmt: skip
    points = mesh.vertices[mesh.faces].mean(1).repeat(4, 1) + 0.1 * torch.randn(
        16, 3, generator=torch.Generator().manual_seed(0)
    )
    gaussians = from_points(points, torch.full((16, 3), 0.5), scales=torch.full((16, 3), 0.05))
    vector = torch.zeros(3)
    vector[axis] = math.radians(degrees)
    field = ControlNodes.on_surface(gaussians, 2, mesh=mesh, nodes=8)
    with torch.no_grad():
        field.rotations[1] = vector
        half = torch.cat([vector.norm().div(2).cos()[None], vector / vector.norm() * (vector.norm() / 2).sin()])
        turned = field.node_positions @ quaternion_to_matrix(half).T
        field.translations[1] = turned - field.node_positions
    return Scene4D(gaussians, field.requires_grad_(False), frames=2, fps=10.0, surface=mesh)


@pytest.mark.parametrize("axis", range(3))
def test_conventions_by_one_turn(axis: int, tmp_path: Path) -> None:
    """90 degrees about X, Y or Z: glTF's quaternion is xyzw, BVH's columns are Z, X, Y in degrees."""
    scene = rigid(axis, 90.0)
    write_skinned_glb(tmp_path / "a.glb", scene)
    pygltflib = pytest.importorskip("pygltflib")
    gltf = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
    channel = next(c for c in gltf.animations[0].channels if c.target.path == "rotation")
    quaternion = accessor(gltf, gltf.animations[0].samplers[channel.sampler].output)[1]
    expected = np.zeros(4)
    expected[[axis, 3]] = math.sqrt(0.5)
    assert np.allclose(quaternion * np.sign(quaternion[3]), expected, atol=2e-3)
    write_bvh(tmp_path / "a.bvh", scene)
    bvh = pytest.importorskip("bvh").Bvh((tmp_path / "a.bvh").read_text())
    turns = [bvh.frame_joint_channel(1, "root", f"{c}rotation") for c in "XYZ"]
    expected = np.zeros(3)
    expected[axis] = 90.0
    # About X, ZXY is at its pole: Z and Y may share a turn that comes to nothing.
    assert turns[axis] == pytest.approx(90, abs=0.5)
    if axis != 0:
        assert np.allclose(turns, expected, atol=0.5)


def test_euler_angles_make_the_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = quaternion_to_matrix(torch.randn(5, 3, 4, generator=generator).double())
    z, x, y = torch.deg2rad(euler_zxy(matrices)).unbind(-1)

    def about(axis: int, angle: Tensor) -> Tensor:
        vector = torch.zeros(*angle.shape, 4, dtype=angle.dtype)
        vector[..., 0], vector[..., 1 + axis] = (angle / 2).cos(), (angle / 2).sin()
        return quaternion_to_matrix(vector)

    torch.testing.assert_close(about(2, z) @ about(0, x) @ about(1, y), matrices, atol=1e-9, rtol=0)


def accessor(gltf: object, index: int) -> np.ndarray:
    """Values of an accessor, as pygltflib has them."""
    entry = gltf.accessors[index]  # type: ignore[attr-defined]
    view = gltf.bufferViews[entry.bufferView]  # type: ignore[attr-defined]
    kind = {5126: "<f4", 5123: "<u2", 5125: "<u4", 5121: "u1"}[entry.componentType]
    width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}[entry.type]
    data = gltf.binary_blob()  # type: ignore[attr-defined]
    return np.frombuffer(data, kind, entry.count * width, (view.byteOffset or 0) + (entry.byteOffset or 0)).reshape(-1, width)


def skinned(gltf: object, frame: int) -> np.ndarray:
    """The first mesh's vertices at a key of the animation, by the glTF specification."""
    nodes = gltf.nodes  # type: ignore[attr-defined]
    local = [(np.array(node.translation or [0, 0, 0.0]), np.array(node.rotation or [0, 0, 0, 1.0])) for node in nodes]
    animation = gltf.animations[0]  # type: ignore[attr-defined]
    for channel in animation.channels:
        value = accessor(gltf, animation.samplers[channel.sampler].output)[frame]
        t, r = local[channel.target.node]
        local[channel.target.node] = (value, r) if channel.target.path == "translation" else (t, value)

    def matrix(node: int) -> np.ndarray:
        (t, (x, y, z, w)) = local[node]
        made = np.eye(4)
        made[:3, :3] = quaternion_to_matrix(torch.tensor([w, x, y, z], dtype=torch.float64)).numpy()
        made[:3, 3] = t
        above = next((k for k, other in enumerate(nodes) if node in (other.children or [])), None)
        return made if above is None else matrix(above) @ made

    skin = gltf.skins[0]  # type: ignore[attr-defined]
    inverse = accessor(gltf, skin.inverseBindMatrices).reshape(-1, 4, 4).swapaxes(1, 2)
    joints = np.stack([matrix(joint) @ bind for joint, bind in zip(skin.joints, inverse)])
    primitive = gltf.meshes[0].primitives[0]  # type: ignore[attr-defined]
    points = accessor(gltf, primitive.attributes.POSITION)
    follows, weights = accessor(gltf, primitive.attributes.JOINTS_0), accessor(gltf, primitive.attributes.WEIGHTS_0)
    assert np.allclose(weights.sum(-1), 1, atol=1e-5) and follows.max() < len(joints)
    moved = (joints[follows] * weights[..., None, None]).sum(1)
    return (moved[:, :3, :3] @ points[:, :, None])[..., 0] + moved[:, :3, 3]


def test_another_reader_plays_the_skin_as_the_scene_moves(scene: Scene4D, tmp_path: Path) -> None:
    pygltflib = pytest.importorskip("pygltflib")
    rig = write_skinned_glb(tmp_path / "a.glb", scene)
    gltf = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
    assert scene.surface is not None
    truth = carry(scene, scene.surface.vertices, scene.taus).numpy()
    strays = []
    points = accessor(gltf, gltf.meshes[0].primitives[0].attributes.POSITION)
    for frame in range(FRAMES):
        moved = skinned(gltf, frame)
        used = cdist(points, scene.surface.vertices.numpy()).argmin(1)
        strays.append(np.linalg.norm(moved - truth[frame, used], axis=-1))
    extras = gltf.scenes[0].extras
    assert extras["loop"] is True and extras["frames"] == FRAMES
    assert extras["skin"]["rms_error"] == pytest.approx(rig.error) and rig.error < 0.01
    assert np.sqrt(np.mean(np.square(strays))) < 1.5 * rig.error + 1e-3
    assert np.max(strays) < rig.worst + 1e-3
    # A clip that loops comes back to where it began.
    times = accessor(gltf, gltf.animations[0].samplers[0].input)[:, 0]
    assert len(times) == FRAMES + 1 and times[-1] == pytest.approx(FRAMES / scene.fps)
    assert np.allclose(skinned(gltf, FRAMES), skinned(gltf, 0), atol=1e-6)


def test_a_skin_of_an_articulated_scene_is_its_own(articulated: Scene4D) -> None:
    rig = rig_scene(articulated)
    field = articulated.field
    assert isinstance(field, Articulated)
    assert rig.skeleton.parents == tuple(field.arguments["parents"]) and rig.error < 1e-3
    assert rig.joints.shape[1] == INFLUENCES


def test_trimesh_opens_it(scene: Scene4D, tmp_path: Path) -> None:
    import trimesh

    write_skinned_glb(tmp_path / "a.glb", scene)
    loaded = trimesh.load(tmp_path / "a.glb", force="mesh")
    assert scene.surface is not None and len(loaded.faces) == len(scene.surface.faces)  # pyright: ignore[reportAttributeAccessIssue]


def test_bvh_is_the_same_motion(scene: Scene4D, tmp_path: Path) -> None:
    """The joints where another reader's channels put them are those of the skeleton."""
    bvh = pytest.importorskip("bvh")
    rig = write_bvh(tmp_path / "a.bvh", scene)
    file = bvh.Bvh((tmp_path / "a.bvh").read_text())
    assert file.nframes == FRAMES and file.frame_time == pytest.approx(1 / scene.fps, abs=1e-6)
    names = list(rig.skeleton.names)
    assert sorted(file.get_joints_names()) == sorted(names)
    _, at = rig.skeleton.pose(rig.turns, rig.shifts)
    frame = FRAMES // 2
    placed: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, parent in zip(names, rig.skeleton.parents):
        channels = file.joint_channels(name)
        values = {c: file.frame_joint_channel(frame, name, c) for c in channels}
        assert [c for c in channels if "rotation" in c] == ["Zrotation", "Xrotation", "Yrotation"]
        offset = np.array([values[f"{c}position"] for c in "XYZ"] if "Xposition" in values else file.joint_offset(name))
        turn = np.eye(3)
        for c in channels:
            if "rotation" in c:
                angle, axis = math.radians(values[c]) / 2, "XYZ".index(c[0])
                quat = torch.zeros(4, dtype=torch.float64)
                quat[0], quat[1 + axis] = math.cos(angle), math.sin(angle)
                turn = turn @ quaternion_to_matrix(quat).numpy()
        above, place = placed[names[parent]] if parent >= 0 else (np.eye(3), np.zeros(3))
        placed[name] = above @ turn, place + above @ offset
        assert np.allclose(placed[name][1] / BVH_SCALE, at[frame, names.index(name)].numpy(), atol=1e-4)


def test_frames_that_do_not_belong_together_are_refused(scene: Scene4D, tmp_path: Path) -> None:
    sets = [scene.at(0.0), scene.at(0.5)]
    loose = replace(scene, field=FrameField.of(sets, interpolation="hold"), frames=2)
    with pytest.raises(ValueError, match="unrelated sets"):
        write_skinned_glb(tmp_path / "a.glb", loose)
    assert not list(tmp_path.iterdir())
