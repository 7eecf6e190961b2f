"""The rig that an object comes with: read as it stands, followed by what was tracked, exported under its own names."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gltf_files import GltfFile

from anchor4d.core.cameras import Crop, FrontCamera, quaternion_to_matrix
from anchor4d.core.deformation import Articulated, ControlNodes
from anchor4d.core.deformation.rigged import rig_motion, shares_on_surface
from anchor4d.core.deformation.skeleton import quaternion_to_rotation_vector
from anchor4d.core.files import InputError
from anchor4d.core.fit.loop import FitState, Schedule
from anchor4d.core.io.meshes import load_mesh
from anchor4d.core.io.rig import write_bvh, write_rigged_mesh, write_skinned_glb
from anchor4d.core.mesh import Mesh
from anchor4d.core.methods import stages, structure
from anchor4d.core.methods.stages import MotionConfig
from anchor4d.core.objectives.front import ReferenceViewLoss
from anchor4d.core.objectives.rigidity import Rigidity, Smoothness
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.views import render_frames
from anchor4d.core.schedules import constant
from anchor4d.core.video import DrivingVideo

HALF = math.sqrt(0.5)
FRAMES, SIZE = 7, 64
FRONT = FrontCamera(fovy=40.0, distance=2.0, width=SIZE, height=SIZE)
RINGS, AROUND = 25, 12


def tube() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A closed tube from y = 0 to 2 of radius 0.25, its triangles, and by how much vertices follow the upper half."""
    angle = np.arange(AROUND) * 2 * np.pi / AROUND
    ring = np.stack([0.25 * np.cos(angle), np.zeros(AROUND), 0.25 * np.sin(angle)], -1)
    heights = np.linspace(0, 2, RINGS)
    points = np.concatenate([*(ring + np.array([0, y, 0]) for y in heights), [[0, 0, 0]], [[0, 2.0, 0]]])
    faces = []
    for k in range(AROUND):
        n = (k + 1) % AROUND
        for r in range(RINGS - 1):
            a, b, c, d = r * AROUND + k, r * AROUND + n, (r + 1) * AROUND + k, (r + 1) * AROUND + n
            faces += [[a, c, b], [b, c, d]]
        faces += [[k, n, RINGS * AROUND], [(RINGS - 1) * AROUND + n, (RINGS - 1) * AROUND + k, RINGS * AROUND + 1]]
    upper = np.clip((points[:, 1] - 0.85) / 0.3, 0, 1)
    return points, np.array(faces), upper


def arm(more: bool = True, **skin: Any) -> GltfFile:
    """The tube on two bones that hang from an armature, turned and twice as large, as an animator's program writes it.

    Nodes: 0 the body, 1 the armature, 2 "upper arm.L" at y = 0, 3 "forearm.L" at y = 1, and with ``more`` 4 a tip without
    vertices, 5 a target of inverse kinematics, 6 a helper between the two, 7 "Root" above all, 8 a sword on the forearm.
    """
    points, faces, upper = tube()
    colors = np.stack([points[:, 1] / 2, 0.5 + points[:, 0], 0.5 + points[:, 2], np.ones(len(points))], -1)
    file = GltfFile()
    weights = np.zeros((len(points), 4), "<f4")
    weights[:, 0], weights[:, 1] = 1 - upper, upper
    own = np.zeros((len(points), 4), "u1")
    own[:, 1] = 1
    primitive = {
        "attributes": {
            "POSITION": file.accessor(points.astype("<f4")), "COLOR_0": file.accessor(colors.astype("<f4")),
            "JOINTS_0": file.accessor(own), "WEIGHTS_0": file.accessor(weights),
        },
        "indices": file.accessor(faces.reshape(-1).astype("<u2")),
    }  # fmt: skip
    file.node([primitive], skin=0, translation=[7.0, 0, 0], name="body")
    # The armature takes Z up to Y up and is twice as large; the bones lie along their own Y, which is the armature's Z.
    file.node(name="Armature", rotation=[-HALF, 0, 0, HALF], scale=[2.0, 2, 2], children=[7 if more else 2])
    file.node(name="upper arm.L", rotation=[HALF, 0, 0, HALF], children=[6 if more else 3])
    file.node(name="forearm.L", translation=[0.0, 0.2 if more else 0.5, 0], children=[4, 8] if more else [])
    world = np.eye(4)[None].repeat(2, 0)
    world[:, :3, :3] *= 2
    world[1, 1, 3] = 1
    bones = [2, 3]
    if more:
        file.node(name="tip", translation=[0.0, 0.5, 0])
        file.node(name="target", translation=[0.0, 0, 3])
        file.node(name="helper", translation=[0.0, 0.3, 0], children=[3])
        file.node(name="Root", children=[2])
        blade = {
            "attributes": {"POSITION": file.accessor(np.array([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0]], "<f4"))},
            "indices": file.accessor(np.array([0, 1, 2], "<u2")),
        }
        file.node([blade], name="sword", translation=[0.0, 0.25, 0])
        bones += [4, 5, 6, 7]
        world = np.concatenate([world, np.eye(4)[None].repeat(4, 0)])
    inverse = np.linalg.inv(world).swapaxes(1, 2).astype("<f4")
    file.add("skins", **{"joints": bones, "inverseBindMatrices": file.accessor(inverse)} | skin)
    file.header["scenes"] = [{"nodes": [0, 1, 5] if more else [0, 1]}]
    return file


def loaded(tmp_path: Path, file: GltfFile) -> Mesh:
    return load_mesh(file.write(tmp_path / "arm.glb"))


def rigged(mesh: Mesh) -> Any:
    assert mesh.skin is not None
    return mesh.skin


# Reading


def test_a_rig_is_read_as_it_stands(tmp_path: Path) -> None:
    mesh = loaded(tmp_path, arm())
    skin = rigged(mesh)
    assert skin.names == ("upper arm.L", "helper", "forearm.L") and skin.parents == (-1, 0, 1)
    torch.testing.assert_close(skin.places, torch.tensor([[0.0, 0, 0], [0, 0.6, 0], [0, 1.0, 0]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(skin.quats, torch.tensor([[1.0, 0, 0, 0]]).expand(3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(skin.frame[:3, :3] / 2, torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]), atol=1e-5, rtol=0)
    dense = skin.shares(torch.arange(len(mesh.vertices))[:, None].expand(-1, 3), torch.tensor([[1.0, 0, 0]]))
    wanted = ((mesh.vertices[:-3, 1] - 0.85) / 0.3).clamp(0, 1)
    torch.testing.assert_close(dense[:-3, 2], wanted, atol=1e-5, rtol=0)
    assert bool((dense[-3:, 2] == 1).all())  # the sword hangs from the forearm
    torch.testing.assert_close(mesh.vertices[-3:, 1].amin(), torch.tensor(1.5))


def test_it_goes_where_the_mesh_goes(tmp_path: Path) -> None:
    mesh = loaded(tmp_path, arm(more=False))
    moved, matrix = mesh.normalized()
    skin = rigged(moved.turned(90.0))
    assert float(matrix[0, 0]) == pytest.approx(0.5)
    torch.testing.assert_close(skin.places, torch.tensor([[0.0, -0.5, 0], [0.0, 0.0, 0]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(skin.quats, torch.tensor([[HALF, 0, HALF, 0]]).expand(2, 4), atol=1e-5, rtol=0)
    upright = load_mesh(tmp_path / "arm.glb", up="z")
    torch.testing.assert_close(rigged(upright).places, torch.tensor([[0.0, 0, 0], [0, 0, -1.0]]), atol=1e-5, rtol=0)
    far = arm(more=False)
    far.header["nodes"][1]["translation"] = [1000.0, 0, 0]
    mesh = load_mesh(far.write(tmp_path / "far.glb"))  # brought to the origin, with its rig
    torch.testing.assert_close(rigged(mesh).places, torch.tensor([[0.0, -1, 0], [0.0, 0, 0]]), atol=1e-4, rtol=0)


def test_it_is_saved_with_a_scene_and_names_a_run(tmp_path: Path) -> None:
    from anchor4d.core.identity import fingerprint

    mesh = loaded(tmp_path, arm())
    gaussians, _ = stages.gaussians_on_mesh(mesh, 50)
    Scene4D(gaussians, surface=mesh).save(tmp_path / "scene.safetensors")
    again = Scene4D.load(tmp_path / "scene.safetensors").surface
    assert again is not None
    a, b = rigged(mesh), rigged(again)
    assert a.names == b.names and a.parents == b.parents
    for name in ("places", "quats", "frame", "joints", "weights"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    bare = replace(mesh, skin=None)
    assert fingerprint(mesh) == fingerprint(again) != fingerprint(bare)
    other = replace(mesh, skin=replace(a, names=("a", "b", "c")))
    assert fingerprint(other) != fingerprint(mesh)


def test_several_skins_and_roots_become_one_tree(tmp_path: Path) -> None:
    file = arm(more=False)
    for x in (3.0, -3.0):
        joint = file.node(name="post", translation=[x, 0, 0])
        copy = {**file.header["meshes"][0]["primitives"][0]}
        copy["attributes"] = {**copy["attributes"], "JOINTS_0": file.accessor(np.zeros((RINGS * AROUND + 2, 4), "u1"))}
        file.node([copy], skin=file.add("skins", joints=[joint]))
    skin = rigged(loaded(tmp_path, file))
    assert skin.names == ("root", "upper arm.L", "forearm.L", "post", "post_2") and skin.parents == (-1, 0, 1, 0, 0)
    torch.testing.assert_close(skin.places[3:], torch.tensor([[3.0, 0, 0], [-3.0, 0, 0]]))
    # Under a node of their own, that node is the root.
    file.node(name="pair", children=[1, *file.header["scenes"][0]["nodes"][2::2]])
    nodes = file.header["scenes"][0]["nodes"]
    file.header["scenes"][0]["nodes"] = [0, *nodes[3::2][:2], nodes[-1]]
    assert rigged(loaded(tmp_path, file)).names[0] == "pair"


def test_a_part_without_a_joint_follows_the_root(tmp_path: Path) -> None:
    file = arm(more=False)
    stone = {"attributes": {"POSITION": file.accessor(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "<f4"))}}
    file.node([stone], name="stone", translation=[2.0, 0, 0])
    skin = rigged(loaded(tmp_path, file))
    assert skin.joints[-3:, 0].tolist() == [0, 0, 0] and skin.weights[-3:, 0].tolist() == [1, 1, 1]


def test_weights_of_any_kind_become_shares(tmp_path: Path) -> None:
    file = arm(more=False)
    odd = np.zeros((RINGS * AROUND + 2, 4), "<f4")
    odd[:, :3] = [3.0, 1.0, -2.0]
    odd[0], odd[1, 0] = 0, np.nan
    file.header["meshes"][0]["primitives"][0]["attributes"]["WEIGHTS_0"] = file.accessor(odd)
    skin = rigged(loaded(tmp_path, file))
    torch.testing.assert_close(skin.weights.sum(-1), torch.ones(len(skin.weights)))
    assert skin.weights[5, :2].tolist() == pytest.approx([0.75, 0.25])
    assert skin.joints[0, 0] == 0 and skin.weights[0, 0] == 1  # nothing said: the first joint
    assert skin.joints[1, 0] == 1 and skin.weights[1, 0] == 1


def test_uneven_scales_morph_targets_and_many_joints(tmp_path: Path) -> None:
    file = arm(more=False)
    file.header["nodes"][1]["scale"] = [2.0, 1.0, 3.0]
    delta = np.zeros((RINGS * AROUND + 2, 3), "<f4")
    file.header["meshes"][0]["primitives"][0]["targets"] = [{"POSITION": file.accessor(delta)}]
    file.header["meshes"][0]["weights"] = [0.5]
    chain = [file.node(name=f"bone {i}", translation=[0.0, 0.01, 0], children=[i + 5] if i < 199 else []) for i in range(200)]
    file.header["scenes"] = [{"nodes": [0, 1]}]
    file.header["nodes"][3]["children"] = [chain[0]]
    bones = [2, 3, *chain]
    file.header["skins"] = [{"joints": bones}]
    file.header["nodes"][chain[-1]].pop("children")
    own = np.zeros((RINGS * AROUND + 2, 4), "u1")
    own[:, 1] = np.arange(len(own)) % len(bones)
    file.header["meshes"][0]["primitives"][0]["attributes"]["JOINTS_0"] = file.accessor(own)
    file.header["meshes"][0]["primitives"][0]["attributes"]["WEIGHTS_0"] = file.accessor(np.full((len(own), 4), 0.25, "<f4"))
    mesh = loaded(tmp_path, file)
    skin = rigged(mesh)
    assert len(skin) == 202 and bool(skin.places.isfinite().all())
    torch.testing.assert_close(skin.quats.norm(dim=-1), torch.ones(202))
    assert float(skin.places[1, 1]) == pytest.approx(1.5)  # along the armature's Z, three times as long
    write_rigged_mesh(tmp_path / "again.glb", mesh)
    again = load_mesh(tmp_path / "again.glb")
    assert len(rigged(again)) == 202
    torch.testing.assert_close(again.vertices.amax(0), mesh.vertices.amax(0), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: f.header["skins"][0].update(joints=[2]), "joint 1 of 1"),
        (lambda f: f.header["skins"][0].update(joints=[2, 9]), "joint 9, which is not in the scene"),
        (lambda f: f.header["skins"][0].update(joints=[]), "no joints"),
        (lambda f: f.header["skins"][0].pop("joints"), "joints"),
        (lambda f: f.header["nodes"][2].update(children=[]), "not in the scene"),
        (lambda f: f.header["nodes"][0].update(skin=3), "skins[3]"),
        (lambda f: f.header["accessors"][f.header["skins"][0]["inverseBindMatrices"]].update(count=1), "1 inverseBindMatrices"),
        (lambda f: f.header["nodes"][3].update(children=[2]), "in the scene twice"),
    ],
)
def test_a_damaged_rig_is_refused_in_a_line(tmp_path: Path, damage: Any, words: str) -> None:
    file = arm(more=False)
    damage(file)
    with pytest.raises(InputError) as error:
        loaded(tmp_path, file)
    assert "\n" not in str(error.value) and "arm.glb" in str(error.value) and words in str(error.value)


def test_a_damaged_rig_in_a_scene_file_is_refused(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    mesh = loaded(tmp_path, arm())
    gaussians, _ = stages.gaussians_on_mesh(mesh, 50)
    Scene4D(gaussians, surface=mesh).save(tmp_path / "good.safetensors")
    with safe_open(str(tmp_path / "good.safetensors"), framework="pt") as handle:
        meta = handle.metadata()
        good = {key: handle.get_tensor(key) for key in handle.keys()}
    tree = torch.frombuffer(
        bytearray(json.dumps({"names": ["a", "b", "c"], "parents": [1, 2, -1]}).encode()), dtype=torch.uint8
    )
    for key, value in {
        "skin.joints": good["surface.skin.joints"] + 50, "skin.weights": good["surface.skin.weights"] * 2, "skin.tree": tree,
        "skin.places": good["surface.skin.places"] * math.nan, "skin.quats": good["surface.skin.quats"] * 0,
        "skin.frame": torch.eye(3),
    }.items():  # fmt: skip
        save_file({**good, f"surface.{key}": value}, str(tmp_path / "bad.safetensors"), metadata=meta)
        with pytest.raises(InputError, match=r"bad\.safetensors"):
            Scene4D.load(tmp_path / "bad.safetensors")


# Its motion


def bent(mesh: Mesh, degrees: float, lean: float = 0.0) -> Mesh:
    """The arm with its forearm turned about +Z, and all of it about +X, as linear blend skinning has it."""
    skin = rigged(mesh)
    turns = torch.tensor([1.0, 0, 0, 0]).repeat(1, len(skin), 1)
    a, b = math.radians(degrees) / 2, math.radians(lean) / 2
    turns[0, -1] = torch.tensor([math.cos(a), 0, 0, math.sin(a)])
    turns[0, 0] = torch.tensor([math.cos(b), math.sin(b), 0, 0])
    matrices, offsets = [], []
    for joint, parent in enumerate(skin.parents):
        own = quaternion_to_matrix(turns[0, joint])
        above, start = (matrices[parent], offsets[parent]) if parent >= 0 else (torch.eye(3), torch.zeros(3))
        matrices.append(above @ own)
        offsets.append(above @ (skin.places[joint] - own @ skin.places[joint]) + start)
    motion = torch.cat([torch.stack(matrices), torch.stack(offsets)[..., None]], -1)
    blend = (motion[skin.joints] * skin.weights[..., None, None]).sum(1)
    return replace(mesh, vertices=(blend[..., :3] @ mesh.vertices[:, :, None])[..., 0] + blend[..., 3], normals=None)


def test_turns_come_back_from_tracked_points(tmp_path: Path) -> None:
    mesh = loaded(tmp_path, arm()).normalized()[0]
    skin, rows = rigged(mesh), torch.arange(0, len(mesh.vertices) - 3, 3)
    angles = [(0.0, 0.0), (20.0, 5.0), (45.0, 10.0), (70.0, 0.0)]
    places = torch.stack([bent(mesh, *angle).vertices[rows] for angle in angles])
    shares = shares_on_surface(mesh, mesh.vertices[rows])
    dense = skin.shares(rows[:, None].expand(-1, 3), torch.tensor([[1.0, 0, 0]]))
    torch.testing.assert_close(shares, dense, atol=1e-5, rtol=0)
    still = torch.tensor([1.0, 0, 0, 0]).expand(*places.shape[:2], 4)
    found = rig_motion(skin, shares, mesh.vertices[rows], places, still)
    turned = quaternion_to_rotation_vector(found.turns).rad2deg()
    for frame, (bend, lean) in enumerate(angles):
        torch.testing.assert_close(turned[frame, 2], torch.tensor([0.0, 0, bend]), atol=1.0, rtol=0)
        torch.testing.assert_close(turned[frame, 0], torch.tensor([lean, 0.0, 0]), atol=1.0, rtol=0)
    assert float(turned[:, 1].abs().max()) < 1e-3  # the helper, which nothing follows, keeps to its parent
    assert found.error < 2e-3 and found.skeleton.slides == (True, False, False)


def test_a_joint_of_few_points_keeps_to_its_parent(tmp_path: Path) -> None:
    mesh = loaded(tmp_path, arm(more=False)).normalized()[0]
    rows = torch.cat([torch.arange(0, 12 * AROUND, 4), torch.tensor([RINGS * AROUND + 1])])  # one point above the elbow
    places = torch.stack([bent(mesh, angle).vertices[rows] for angle in (0.0, 60.0)])
    still = torch.tensor([1.0, 0, 0, 0]).expand(*places.shape[:2], 4)
    found = rig_motion(rigged(mesh), shares_on_surface(mesh, mesh.vertices[rows]), mesh.vertices[rows], places, still)
    assert found.shares is not None and float(found.shares[:, 1].abs().max()) == 0
    assert float(found.turns[:, 1, 1:].abs().max()) < 1e-6


def test_what_hangs_from_a_bare_root_is_shifted_too(tmp_path: Path) -> None:
    """A foot that inverse kinematics moves hangs from the root beside the body."""
    file = arm(more=False)
    file.header["nodes"][1]["children"] = [2, 3]
    file.header["nodes"][2]["children"] = []
    file.header["nodes"][3] |= {"translation": [0.0, 0, 0.5], "rotation": [HALF, 0, 0, HALF]}
    mesh = loaded(tmp_path, file).normalized()[0]
    skin = rigged(mesh)
    assert skin.names == ("Armature", "upper arm.L", "forearm.L") and skin.parents == (-1, 0, 0)
    rows = torch.arange(0, len(mesh.vertices), 2)
    shares = shares_on_surface(mesh, mesh.vertices[rows])
    upper = shares[:, 2:]
    places = torch.stack([mesh.vertices[rows], mesh.vertices[rows] + upper * torch.tensor([0.1, 0.05, 0])])
    still = torch.tensor([1.0, 0, 0, 0]).expand(*places.shape[:2], 4)
    found = rig_motion(skin, shares, mesh.vertices[rows], places, still)
    assert found.skeleton.slides == (True, True, True)
    at = found.skeleton.pose(found.turns, found.shifts)[1][1] - skin.places
    torch.testing.assert_close(at[1:], torch.tensor([[0.0, 0, 0], [0.1, 0.05, 0]]), atol=8e-3, rtol=0)


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene4D, DrivingVideo]:
    """The arm at rest, and a film in which its forearm bends by 30 degrees in the picture."""
    mesh = load_mesh(arm().write(tmp_path_factory.mktemp("arm") / "arm.glb"))
    mesh = mesh.normalized()[0]
    gaussians, _ = stages.gaussians_on_mesh(mesh, 1500)
    still = Scene4D(gaussians, frames=FRAMES, front=FRONT, surface=mesh)
    camera = FRONT.cropped(Crop(0, 0, SIZE, SIZE, SIZE), SIZE)
    # What is filmed is made anew of the bent mesh, without the field under test.
    there = [stages.gaussians_on_mesh(bent(mesh, 5.0 * frame), 1500)[0] for frame in range(FRAMES)]
    film = torch.cat([render_frames(Scene4D(one), camera)[0] for one in there])
    return still, DrivingVideo(film[..., :3], film[..., 3], 12.0, Crop(0, 0, SIZE, SIZE, SIZE))


@pytest.fixture(scope="module")
def fitted(filmed: tuple[Scene4D, DrivingVideo]) -> Scene4D:
    still, video = filmed
    config = MotionConfig(
        field="control-nodes",
        fields={"control-nodes": {"nodes": 60}},
        tracking=Schedule(steps=1, one_by_one=20, resolutions=((1.0, SIZE),)),
        schedule=Schedule(steps=60, resolutions=((1.0, SIZE),)),
        objectives=(
            ReferenceViewLoss(weight=constant(3.0), mask=0.33, perceptual=0.0, levels=3), Rigidity(constant(1.0)), Smoothness(),
        ),
        joints=0.5,
    )  # fmt: skip
    return stages.fit_motion(video, still, config, mesh=still.surface)


def test_a_filmed_turn_comes_back_in_degrees(fitted: Scene4D) -> None:
    assert isinstance(fitted.field, Articulated) and fitted.field.given
    with torch.no_grad():
        turned = quaternion_to_rotation_vector(fitted.field.joints(fitted.taus)[0]).rad2deg()
    for frame in range(FRAMES):
        torch.testing.assert_close(turned[frame, 2, 2], torch.tensor(5.0 * frame), atol=4.0, rtol=0)
    assert float(turned[:, 0, 2].abs().max()) < 4 and float(turned[:, 1].abs().max()) == 0
    assert fitted.surface is not None
    assert torch.equal(fitted.field.places, rigged(fitted.surface).places)  # the animator's joints stay where they are


def test_a_rig_that_does_not_follow_the_video_is_not_kept(
    filmed: tuple[Scene4D, DrivingVideo], fitted: Scene4D, caplog: pytest.LogCaptureFixture
) -> None:
    still, video = filmed
    bare = FitState(still.gaussians, ControlNodes.on_surface(still.gaussians, FRAMES, mesh=still.surface, nodes=60))
    rival = structure.rigged(bare, still, _surface(still), video, [FRONT])  # tracked at rest: it stays there
    assert rival is not None and isinstance(rival.field, Articulated) and float(rival.field.turns.detach().abs().max()) < 1e-4
    caplog.set_level("INFO")
    assert (
        structure.chosen(FitState(fitted.gaussians, fitted.field), rival, still, video, [FRONT], structure.WITHIN) is not rival
    )
    assert "its rig leaves 100 %" in caplog.text and "the free motion is kept" in caplog.text
    kept = FitState(fitted.gaussians, fitted.field)
    assert structure.chosen(bare, kept, still, video, [FRONT], structure.WITHIN) is kept


def _surface(scene: Scene4D) -> Mesh:
    assert scene.surface is not None
    return scene.surface


def test_it_is_saved_with_its_joints(fitted: Scene4D, tmp_path: Path) -> None:
    fitted.save(tmp_path / "scene.safetensors")
    again = Scene4D.load(tmp_path / "scene.safetensors")
    assert isinstance(again.field, Articulated) and again.field.skeleton.names == ("upper arm.L", "helper", "forearm.L")
    assert torch.equal(again.at(0.6).means, fitted.at(0.6).means)


# Files


def animation(path: Path) -> tuple[dict[str, Any], dict[tuple[str, str], np.ndarray]]:
    """A GLB's header, and its channels by node and path."""
    data = path.read_bytes()
    size = struct.unpack("<I", data[12:16])[0]
    header, binary = json.loads(data[20 : 20 + size]), data[28 + size :]
    found = {}
    for channel in header["animations"][0]["channels"]:
        accessor = header["accessors"][header["animations"][0]["samplers"][channel["sampler"]]["output"]]
        view = header["bufferViews"][accessor["bufferView"]]
        width = {"VEC3": 3, "VEC4": 4}[accessor["type"]]
        values = np.frombuffer(binary, "<f4", accessor["count"] * width, view.get("byteOffset", 0)).reshape(-1, width)
        found[header["nodes"][channel["target"]["node"]]["name"], channel["target"]["path"]] = values
    return header, found


def test_the_animation_is_one_of_the_rig_itself(fitted: Scene4D, tmp_path: Path) -> None:
    """Put on the file that the object came from, channel for channel by name, it moves it as the scene moves."""
    rig = write_skinned_glb(tmp_path / "a.glb", fitted)
    header, channels = animation(tmp_path / "a.glb")
    assert [n["name"] for n in header["nodes"] if n["name"] not in ("object", "rig")] == ["upper arm.L", "helper", "forearm.L"]
    assert set(channels) == {(n, "rotation") for n in rig.skeleton.names} | {("upper arm.L", "translation")}
    again = load_mesh(tmp_path / "a.glb")
    assert rigged(again).names == rig.skeleton.names
    torch.testing.assert_close(rigged(again).places, rig.skeleton.places, atol=1e-5, rtol=0)
    torch.testing.assert_close(rigged(again).frame, rigged(rig.mesh).frame, atol=1e-5, rtol=0)
    original = arm()
    for (name, kind), values in channels.items():
        node = next(n for n in original.header["nodes"] if n.get("name") == name)
        node[kind] = values[FRAMES - 1].astype(float).tolist()
    posed = loaded(tmp_path, original)
    matrix = load_mesh(arm().write(tmp_path / "rest.glb")).normalized()[1].float()
    torch.testing.assert_close(posed.transformed(matrix).vertices, rig.moved()[FRAMES - 1], atol=1e-4, rtol=0)
    assert rig.error < 0.02


def test_bvh_has_the_rig_s_names_without_spaces(fitted: Scene4D, tmp_path: Path) -> None:
    assert isinstance(fitted.field, Articulated)
    write_bvh(tmp_path / "a.bvh", fitted)
    text = (tmp_path / "a.bvh").read_text()
    assert "ROOT upper_arm.L" in text and "JOINT helper" in text and "JOINT forearm.L" in text


def test_a_mesh_is_written_with_its_rig(tmp_path: Path) -> None:
    mesh = loaded(tmp_path, arm()).normalized()[0].turned(30.0)
    write_rigged_mesh(tmp_path / "again.glb", mesh)
    again = load_mesh(tmp_path / "again.glb")
    a, b = rigged(mesh), rigged(again)
    assert a.names == b.names and a.parents == b.parents
    for name in ("places", "quats", "frame"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-5, rtol=0)
    there = torch.cdist(mesh.vertices.double(), again.vertices.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert float(there.amin(1).max()) < 1e-5
    with pytest.raises(ValueError, match="has none"):
        write_rigged_mesh(tmp_path / "none.glb", replace(mesh, skin=None))


def test_blended_turns_take_the_nearer_way() -> None:
    """Two joints whose turns are alike up to their quaternions' sign: what is between them turns as they do."""
    field = Articulated(1, 1, 1, 2, [-1, 0], ["a", "b"], given=True)
    with torch.no_grad():
        field.joint_weights.fill_(0.5)
        field.turns[1, 0] = torch.tensor([0.0, 0, math.radians(350)])
        field.turns[1, 1] = torch.tensor([0.0, 0, math.radians(20)])
        quats = field.node_motion(torch.ones(1))[1][0, 0]
    # Turned by 350 degrees and by 370: between the two, by 360.
    torch.testing.assert_close(quats.abs(), torch.tensor([1.0, 0, 0, 0]), atol=1e-3, rtol=0)


def test_fields_of_found_parts_are_as_before() -> None:
    field = Articulated(4, 4, 4, 3, [-1, 0], ["root", "joint01"])
    assert not field.given and {g.name for g in field.parameter_groups()} == {"turns", "shifts", "places", "axes"}
    assert {g.name for g in Articulated(4, 4, 4, 3, [-1], ["root"], given=True).parameter_groups()} == {"turns", "shifts"}
    assert field.stretching() is field
    assert Articulated(4, 4, 4, 3, [-1], ["root"], given=True).stretching().stretch
