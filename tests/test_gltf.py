"""glTF files: splats and moving meshes, read back by ourselves, by hand and by readers that are not ours."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anchor4d.core.cameras import quaternion_to_matrix
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import Gaussians, random_gaussians
from anchor4d.core.io.gltf import Glb
from anchor4d.core.io.gltf_mesh import write_mesh_glb
from anchor4d.core.io.gltf_splats import EXTENSION, SPZ, read_splat_glb, write_splat_glb, write_splat_glb_frames
from anchor4d.core.io.meshes import load_mesh
from anchor4d.core.mesh import Mesh, srgb_to_linear
from anchor4d.core.runs.sample import sample_scene
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.surface import carry

FRAMES = 6


@pytest.fixture(scope="module")
def scene() -> Scene4D:
    scene = sample_scene(300, FRAMES)
    assert scene.field is not None
    scene.field.requires_grad_(False)
    return scene


def parsed(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and binary part, straight from the bytes."""
    data = path.read_bytes()
    magic, version, length, size, kind = struct.unpack_from("<4sIIII", data)
    assert (magic, version, length, kind) == (b"glTF", 2, len(data), 0x4E4F534A)
    rest, kind = struct.unpack_from("<II", data, 20 + size)
    assert (20 + size + 8 + rest, kind) == (len(data), 0x004E4942)
    return json.loads(data[20 : 20 + size]), data[28 + size :]


def array(path: Path, index: int) -> np.ndarray:
    """Values of an accessor as they are stored."""
    header, binary = parsed(path)
    accessor = header["accessors"][index]
    view = header["bufferViews"][accessor["bufferView"]]
    kind = {5126: "<f4", 5123: "<u2", 5125: "<u4", 5121: "u1"}[accessor["componentType"]]
    width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[accessor["type"]]
    return np.frombuffer(binary, kind, accessor["count"] * width, view["byteOffset"]).reshape(-1, width)


def validated(path: Path) -> list[dict[str, Any]]:
    """The Khronos validator's errors and warnings; skipped where npm's gltf-validator is not on NODE_PATH."""
    program = (
        "const v = require('gltf-validator'), fs = require('fs');"
        "v.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1])))"
        ".then(r => console.log(JSON.stringify(r.issues.messages)))"
    )
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node")
    run = subprocess.run([node, "-e", program, str(path)], capture_output=True, text=True, check=False)
    if "Cannot find module" in run.stderr:
        pytest.skip("npm's gltf-validator is not on NODE_PATH")
    assert run.returncode == 0, run.stderr
    return [message for message in json.loads(run.stdout) if message["severity"] < 2]


def poses(path: Path, times: list[float]) -> list[np.ndarray]:
    """Vertices of the whole file's primitives at given seconds, by the rules of glTF."""
    header, _ = parsed(path)
    animation = header["animations"][0]
    (channel,), (sampler,) = animation["channels"], animation["samplers"]
    assert channel["target"] == {"node": header["scenes"][0]["nodes"][0], "path": "weights"}
    keys, weights = (
        array(path, sampler["input"])[:, 0],
        array(path, sampler["output"]).reshape(len(array(path, sampler["input"])), -1),
    )
    found = []
    for time in times:
        now = np.array([np.interp(time, keys, column) for column in weights.T])
        parts = []
        for primitive in header["meshes"][0]["primitives"]:
            base = array(path, primitive["attributes"]["POSITION"])
            deltas = [array(path, target["POSITION"]) for target in primitive["targets"]]
            parts.append(base + np.einsum("t,tvc->vc", now, np.stack(deltas)))
        found.append(np.concatenate(parts))
    return found


def covariances(gaussians: Gaussians) -> Tensor:  # (N, 3, 3)
    axes = quaternion_to_matrix(torch.nn.functional.normalize(gaussians.quats, dim=-1)) * gaussians.scales[..., None, :]
    return axes @ axes.mT


def test_a_gaussian_is_written_as_the_extension_defines_it(tmp_path: Path) -> None:
    half = math.sqrt(0.5)
    gaussians = Gaussians(
        means=torch.tensor([[1.0, 2.0, 3.0]]),
        quats=torch.tensor([[2 * half, 2 * half, 0.0, 0.0]]),  # a quarter turn about X, not normalised
        log_scales=torch.tensor([[0.5, 1.0, 2.0]]).log(),
        opacity_logits=torch.tensor([math.log(3.0)]),
        sh=torch.tensor([[[0.4, 0.0, -0.4]]]),
    )
    path = tmp_path / "one.glb"
    write_splat_glb(path, gaussians)
    header, _ = parsed(path)
    assert EXTENSION in header["extensionsUsed"]
    assert "extensionsRequired" not in header
    primitive = header["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 0
    assert primitive["extensions"][EXTENSION] == {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    values = {key.removeprefix(f"{EXTENSION}:"): array(path, index)[0] for key, index in primitive["attributes"].items()}
    assert values["POSITION"].tolist() == [1, 2, 3]
    assert values["ROTATION"] == pytest.approx([half, 0, 0, half])  # x y z w
    assert values["SCALE"] == pytest.approx([0.5, 1, 2])
    assert values["OPACITY"] == pytest.approx([0.75])
    assert values["SH_DEGREE_0_COEF_0"] == pytest.approx([0.4, 0, -0.4])
    shown = torch.tensor([0.5 + 0.28209479 * 0.4, 0.5, 0.5 - 0.28209479 * 0.4])
    assert values["COLOR_0"] / 65535 == pytest.approx([*srgb_to_linear(shown).tolist(), 0.75], abs=1e-5)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_splats_come_back(tmp_path: Path, degree: int) -> None:
    generator = torch.Generator().manual_seed(degree)
    gaussians = random_gaussians(50, generator)
    gaussians = replace(
        gaussians,
        quats=torch.nn.functional.normalize(torch.randn(50, 4, generator=generator), dim=-1),
        sh=torch.randn(50, (degree + 1) ** 2, 3, generator=generator),
    )
    write_splat_glb(tmp_path / "splats.glb", gaussians)
    again = read_splat_glb(tmp_path / "splats.glb")
    for key, tensor in gaussians.tensors().items():
        assert torch.allclose(tensor, again.tensors()[key], atol=1e-5), key
    names = parsed(tmp_path / "splats.glb")[0]["meshes"][0]["primitives"][0]["attributes"]
    assert len([n for n in names if ":SH_" in n]) == (degree + 1) ** 2


def test_nodes_move_what_they_hold(tmp_path: Path, scene: Scene4D) -> None:
    path = tmp_path / "splats.glb"
    write_splat_glb(path, scene.at(0))
    header, binary = parsed(path)
    half = math.sqrt(0.5)
    header["nodes"] = [
        {"children": [1], "translation": [1, 0, 0]},
        {"mesh": 0, "scale": [2, 2, 2], "rotation": [0, half, 0, half]},
    ]
    glb = Glb()
    glb.header |= {k: v for k, v in header.items() if k != "buffers"}
    glb.chunks, glb.length = [binary], len(binary)
    glb.write(path)
    moved, first = read_splat_glb(path), scene.at(0)
    turn = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # a quarter turn about Y: Z to X
    assert torch.allclose(moved.means, 2 * first.means @ turn.T + torch.tensor([1.0, 0, 0]), atol=1e-6)
    assert torch.allclose(covariances(moved), 4 * turn @ covariances(first) @ turn.T, atol=1e-7)


def test_frames_are_shown_in_turn(tmp_path: Path, scene: Scene4D) -> None:
    path, calls = tmp_path / "frames.glb", []
    write_splat_glb_frames(path, scene, progress=lambda step, total: calls.append((step, total)))
    assert calls == [(i + 1, FRAMES) for i in range(FRAMES)]
    header, _ = parsed(path)
    positions = set()
    for index in range(FRAMES):
        attributes = header["meshes"][header["nodes"][index]["mesh"]]["primitives"][0]["attributes"]
        stored = torch.from_numpy(array(path, attributes["POSITION"]).copy())
        assert torch.equal(stored, scene.at(scene.taus[index]).means)
        positions.add(attributes["POSITION"])
        assert attributes[f"{EXTENSION}:OPACITY"] == header["meshes"][0]["primitives"][0]["attributes"][f"{EXTENSION}:OPACITY"]
    assert len(positions) == FRAMES
    # In the middle of each frame, and without any animation, exactly one node is not hidden.
    animation = header["animations"][0]
    for moment in range(FRAMES):
        visible = []
        for channel in animation["channels"]:
            sampler = animation["samplers"][channel["sampler"]]
            assert (sampler["interpolation"], channel["target"]["path"]) == ("STEP", "scale")
            times, values = array(path, sampler["input"])[:, 0], array(path, sampler["output"])
            key = np.searchsorted(times, (moment + 0.5) / scene.fps, side="right") - 1
            if values[key].all():
                visible.append(channel["target"]["node"])
        assert visible == [moment]
    shown = [i for i in range(FRAMES) if header["nodes"][i].get("scale", [1, 1, 1]) != [0, 0, 0]]
    assert shown == [0]
    ends = [array(path, s["input"])[-1, 0] for s in animation["samplers"]]
    assert max(ends) == pytest.approx(FRAMES / scene.fps)
    assert torch.equal(read_splat_glb(path).means, scene.at(0.0).means)


def test_splat_files_pass_the_validator(tmp_path: Path, scene: Scene4D) -> None:
    write_splat_glb(tmp_path / "still.glb", scene.at(0.5))
    write_splat_glb_frames(tmp_path / "frames.glb", scene, 3)
    write_splat_glb(tmp_path / "packed.glb", scene.at(0.5), compressed=True)
    for name in ("still.glb", "frames.glb", "packed.glb"):
        # The validator does not know the extension, so not the names that it gives to attributes either.
        left = [
            m for m in validated(tmp_path / name) if not (EXTENSION in m["pointer"] and m["code"].endswith("INVALID_ATTRIBUTE"))
        ]
        assert left == []


@pytest.mark.parametrize("degree", [0, 2])
def test_splats_come_back_through_spz(tmp_path: Path, scene: Scene4D, degree: int) -> None:
    gaussians = scene.at(0.5)
    sh = torch.rand(len(gaussians), (degree + 1) ** 2, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    gaussians, path = replace(gaussians, sh=sh), tmp_path / "a.glb"
    write_splat_glb(path, gaussians, compressed=True)
    again = read_splat_glb(path)
    for key, worst in (("means", 2e-5), ("log_scales", 0.032), ("opacities", 0.003), ("sh", 0.03)):
        torch.testing.assert_close(getattr(again, key), getattr(gaussians, key), rtol=0, atol=worst)
    turned = quaternion_to_matrix(again.quats) - quaternion_to_matrix(gaussians.quats)
    assert float(turned.abs().max()) < 0.01
    header, _ = parsed(path)
    assert header["extensionsRequired"] == [EXTENSION, SPZ] and "bufferView" not in header["accessors"][0]
    settings = header["meshes"][0]["primitives"][0]["extensions"][EXTENSION]
    assert settings["kernel"] == "ellipse" and settings["extensions"][SPZ] == {"bufferView": 0}
    write_splat_glb(tmp_path / "plain.glb", gaussians)
    assert path.stat().st_size < (tmp_path / "plain.glb").stat().st_size / 3


def test_frames_are_packed_too(tmp_path: Path, scene: Scene4D) -> None:
    write_splat_glb_frames(tmp_path / "a.glb", scene, 3, compressed=True)
    header, _ = parsed(tmp_path / "a.glb")
    assert len(header["meshes"]) == 3 and len(header["animations"][0]["channels"]) == 3
    torch.testing.assert_close(read_splat_glb(tmp_path / "a.glb").means, scene.at(0.0).means, rtol=0, atol=2e-5)


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    header, binary = parsed(path)
    change(header["meshes"][0]["primitives"][0]["extensions"][EXTENSION])
    glb = Glb()
    glb.header = {k: v for k, v in header.items() if k != "buffers"}
    glb.chunks, glb.length = [binary], len(binary)
    glb.write(path)


def test_the_first_tilers_kept_their_numbers(tmp_path: Path, scene: Scene4D) -> None:
    """Without kernel and colour space the .spz's numbers are glTF's as they are."""
    path, gaussians = tmp_path / "a.glb", scene.at(0.0)
    write_splat_glb(path, gaussians, compressed=True)
    rewritten(path, lambda settings: (settings.pop("kernel"), settings.pop("colorSpace")))
    turned = gaussians.means * torch.tensor([-1.0, 1.0, -1.0])
    torch.testing.assert_close(read_splat_glb(path).means, turned, rtol=0, atol=2e-5)
    write_splat_glb(path, gaussians, compressed=True)
    rewritten(path, lambda settings: settings.update(kernel="cube"))
    with pytest.raises(InputError, match=r"of another kind or compressed \(cube\)"):
        read_splat_glb(path)


def test_niantic_s_library_finds_the_same_in_a_packed_file(tmp_path: Path, scene: Scene4D) -> None:
    program = (
        "const fs = require('fs'), path = require('path'), keys = ['positions', 'scales', 'rotations', 'sh'];"
        "process.type = 'renderer';"  # it is built for browsers
        "import(path.join(path.dirname(require.resolve('@spz-loader/core')), 'index.js')).then(({ loadSpz }) => "
        "loadSpz(fs.readFileSync(process.argv[1]), { unpackOptions: { coordinateSystem: 'LUF' } })).then((cloud) => "
        "console.log(JSON.stringify(Object.fromEntries(keys.map((key) => [key, [...cloud[key]]])))))"
    )
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node")
    gaussians = scene.at(0.5)
    sh = torch.rand(len(gaussians), 9, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    gaussians = replace(gaussians, sh=sh)
    write_splat_glb(tmp_path / "a.glb", gaussians, compressed=True)
    header, binary = parsed(tmp_path / "a.glb")
    (tmp_path / "a.spz").write_bytes(binary[: header["bufferViews"][0]["byteLength"]])
    run = subprocess.run([node, "-e", program, str(tmp_path / "a.spz")], capture_output=True, text=True, check=False)
    if "Cannot find module" in run.stderr:
        pytest.skip("npm's @spz-loader/core is not on NODE_PATH")
    assert run.returncode == 0, run.stderr
    read = {key: torch.tensor(value) for key, value in json.loads(run.stdout).items()}
    torch.testing.assert_close(read["positions"].reshape(-1, 3), gaussians.means, rtol=0, atol=2e-5)
    # The library turns shapes by signs alone: an axis may point the other way, which is the same Gaussian.
    axes = quaternion_to_matrix(read["rotations"].reshape(-1, 4)[:, [3, 0, 1, 2]])
    alike = (axes * quaternion_to_matrix(gaussians.quats)).sum(1).abs()
    torch.testing.assert_close(alike, torch.ones_like(alike), rtol=0, atol=1e-4)
    torch.testing.assert_close(read["sh"].reshape(-1, 8, 3), gaussians.sh[:, 1:], rtol=0, atol=0.03)


def test_another_reader_sees_the_same_splats(tmp_path: Path, scene: Scene4D) -> None:
    fourdgs = pytest.importorskip("fourdgs", reason="fourdgs, a reader of the extension, is not installed")
    write_splat_glb(tmp_path / "splats.glb", scene.at(0.5))
    read, gaussians = fourdgs.from_gltf(str(tmp_path / "splats.glb")), scene.at(0.5)
    assert read.metadata["color_space"] == "srgb-rec709-display"
    assert read.metadata["coordinate_system"] == "y-up-right-handed"
    seen = read.gaussians
    again = replace(
        gaussians,
        means=torch.tensor(seen.positions),
        quats=torch.tensor(seen.rotations)[:, [3, 0, 1, 2]],
        log_scales=torch.tensor(seen.scales).log(),
    )
    assert torch.equal(again.means, gaussians.means)
    assert torch.allclose(covariances(again), covariances(gaussians), atol=1e-9)
    assert torch.allclose(torch.tensor(seen.colors)[:, :3], gaussians.colors.clamp(0, 1), atol=1e-6)
    assert torch.allclose(torch.tensor(seen.colors)[:, 3], gaussians.opacities, atol=1e-6)


@pytest.mark.parametrize("loop", [True, False])
def test_the_mesh_follows_the_scene(tmp_path: Path, scene: Scene4D, loop: bool) -> None:
    path, calls, mesh = tmp_path / "moving.glb", [], scene.surface
    assert mesh is not None
    scene = replace(scene, loop=loop)
    write_mesh_glb(path, scene, tolerance=0, progress=lambda step, total: calls.append((step, total)))
    assert calls[-1] == (FRAMES, FRAMES)
    header, _ = parsed(path)
    sampler = header["animations"][0]["samplers"][0]
    assert sampler["interpolation"] == "LINEAR"
    keys = array(path, sampler["input"])[:, 0]
    assert keys == pytest.approx(np.arange(FRAMES + loop) / scene.fps)
    true = carry(scene, mesh.vertices, scene.taus)[:, mesh.faces.unique()].numpy()
    for frame, found in enumerate(poses(path, [frame / scene.fps for frame in range(FRAMES)])):
        assert np.abs(found - true[frame]).max() < 1e-6
    half = poses(path, [2.5 / scene.fps])[0]
    assert np.abs(half - (true[2] + true[3]) / 2).max() < 1e-6
    if loop:
        assert np.abs(poses(path, [FRAMES / scene.fps])[0] - true[0]).max() < 1e-6
    names = header["meshes"][0]["extras"]["targetNames"]
    assert names == [f"frame{i:04}" for i in range(1, FRAMES)]


def test_the_mesh_keeps_its_texture(tmp_path: Path, scene: Scene4D) -> None:
    assert scene.surface is not None
    write_mesh_glb(tmp_path / "moving.glb", scene)
    read, own = load_mesh(tmp_path / "moving.glb"), scene.surface
    used = own.faces.unique()
    assert read.uvs is not None
    assert own.uvs is not None
    assert torch.allclose(read.vertices, own.vertices[used], atol=1e-6)
    assert torch.allclose(read.uvs, own.uvs[used], atol=1e-6)
    assert (read.textures[0] - own.textures[0]).abs().max() <= 0.5 / 255 + 1e-6
    material = parsed(tmp_path / "moving.glb")[0]["materials"][0]
    assert material["extensions"] == {"KHR_materials_unlit": {}}


def parts_of(mesh: Mesh) -> Mesh:
    """Half of the faces painted and see-through in places, all with vertex colours."""
    first = torch.arange(len(mesh.faces)) % 2 == 0
    color = torch.where(first[:, None], torch.ones(4), torch.tensor([0.25, 0.5, 0.75, 1.0]))
    vertex = torch.rand(len(mesh.vertices), 4, generator=torch.Generator().manual_seed(0))
    return replace(
        mesh, face_texture=torch.where(first, 0, -1), face_color=color, face_alpha_cutoff=torch.where(first, 0.5, 0.0),
        vertex_colors=torch.cat([vertex[:, :3], torch.ones(len(vertex), 1)], -1),
    )  # fmt: skip


def test_several_materials_move_together(tmp_path: Path, scene: Scene4D) -> None:
    assert scene.surface is not None
    mesh = parts_of(scene.surface)
    write_mesh_glb(tmp_path / "moving.glb", scene, mesh=mesh)
    header, _ = parsed(tmp_path / "moving.glb")
    primitives = header["meshes"][0]["primitives"]
    assert [len(p["targets"]) for p in primitives] == [FRAMES - 1] * 2
    assert sorted(m.get("alphaMode", "OPAQUE") for m in header["materials"]) == ["MASK", "OPAQUE"]
    plain = next(m["pbrMetallicRoughness"] for m in header["materials"] if "alphaMode" not in m)
    assert plain["baseColorFactor"] == pytest.approx([*srgb_to_linear(torch.tensor([0.25, 0.5, 0.75])).tolist(), 1])
    read = load_mesh(tmp_path / "moving.glb")
    assert read.vertex_colors is not None
    assert mesh.vertex_colors is not None
    # Colours at the corners of the faces, whichever order they come in.
    before = torch.cat([mesh.vertices[mesh.faces], mesh.vertex_colors[mesh.faces][..., :3]], -1).reshape(-1, 18)
    after = torch.cat([read.vertices[read.faces], read.vertex_colors[read.faces][..., :3]], -1).reshape(-1, 18)
    # 16 bits of linear light are at worst 1e-4 of sRGB, where it is steepest.
    apart = torch.cdist(after, before, compute_mode="donot_use_mm_for_euclid_dist")
    assert apart.amin(1).max() < 3e-4


def test_frames_on_a_straight_line_are_left_out(tmp_path: Path, scene: Scene4D) -> None:
    assert scene.surface is not None
    still = replace(scene, field=None)
    write_mesh_glb(tmp_path / "still.glb", still)
    header, _ = parsed(tmp_path / "still.glb")
    assert "animations" not in header
    assert "targets" not in header["meshes"][0]["primitives"][0]
    size = 1.0
    for tolerance in (0.002, 0.02):
        path = tmp_path / f"{tolerance}.glb"
        write_mesh_glb(path, scene, frames=24, tolerance=tolerance)
        times = torch.arange(24) / 24
        true = carry(scene, scene.surface.vertices, times)[:, scene.surface.faces.unique()].numpy()
        found = poses(path, [float(t) * FRAMES / scene.fps for t in times])
        worst = max(np.linalg.norm(a - b, axis=-1).max() for a, b in zip(found, true))
        assert worst <= tolerance * size + 1e-6
    count = [len(parsed(tmp_path / f"{t}.glb")[0]["meshes"][0]["extras"]["targetNames"]) for t in (0.002, 0.02)]
    assert count[1] < count[0] <= 23


def test_meshes_pass_the_validator(tmp_path: Path, scene: Scene4D) -> None:
    assert scene.surface is not None
    write_mesh_glb(tmp_path / "textured.glb", scene)
    write_mesh_glb(tmp_path / "lit.glb", scene, unlit=False, mesh=parts_of(scene.surface))
    write_mesh_glb(tmp_path / "still.glb", replace(scene, field=None))
    for name in ("textured.glb", "lit.glb", "still.glb"):
        assert validated(tmp_path / name) == []


def test_normals_turn_with_the_mesh(tmp_path: Path, scene: Scene4D) -> None:
    path = tmp_path / "lit.glb"
    write_mesh_glb(path, scene, unlit=False, tolerance=0)
    header, _ = parsed(path)
    assert "extensionsUsed" not in header
    primitive = header["meshes"][0]["primitives"][0]
    faces = array(path, primitive["indices"]).reshape(-1, 3)
    for frame in range(2):
        deltas = primitive["targets"][2]
        place = array(path, primitive["attributes"]["POSITION"]) + frame * array(path, deltas["POSITION"])
        normal = array(path, primitive["attributes"]["NORMAL"]) + frame * array(path, deltas["NORMAL"])
        assert np.linalg.norm(normal, axis=-1) == pytest.approx(1, abs=1e-4)
        corners = place[faces]
        away = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        away /= np.linalg.norm(away, axis=-1, keepdims=True)
        assert (away * normal[faces[:, 0]]).sum(-1).mean() > 0.9


def test_scenes_whose_frames_are_unrelated_have_no_mesh(tmp_path: Path, scene: Scene4D) -> None:
    from anchor4d.core.deformation import FrameField

    field = FrameField.of([scene.at(0.0), scene.at(0.5)], interpolation="hold")
    with pytest.raises(InputError, match="export it as splats"):
        write_mesh_glb(tmp_path / "a.glb", replace(scene, field=field, frames=2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.99])
def test_a_splat_file_cut_short_is_refused(tmp_path: Path, scene: Scene4D, share: float) -> None:
    path = tmp_path / "splats.glb"
    write_splat_glb(path, scene.at(0))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=r"splats\.glb"):
        read_splat_glb(path)


def test_other_gltf_files_are_refused(tmp_path: Path, scene: Scene4D) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_splat_glb(tmp_path / "gone.glb")
    glb = Glb()
    glb.add("nodes", {})
    glb.write(tmp_path / "empty.glb")
    with pytest.raises(InputError, match="without KHR_gaussian_splatting"):
        read_splat_glb(tmp_path / "empty.glb")
    for change in ({"kernel": "cube"}, {"colorSpace": "lin_rec709_display"}):
        path = tmp_path / "other.glb"
        write_splat_glb(path, scene.at(0))
        header, binary = parsed(path)
        header["meshes"][0]["primitives"][0]["extensions"][EXTENSION].update(change)
        glb = Glb()
        glb.header = {k: v for k, v in header.items() if k != "buffers"}
        glb.chunks, glb.length = [binary], len(binary)
        glb.write(path)
        with pytest.raises(InputError, match="export"):
            read_splat_glb(path)


def test_what_cannot_be_written_is_refused(tmp_path: Path, scene: Scene4D) -> None:
    bad = replace(scene.at(0), means=scene.at(0).means * torch.nan)
    for gaussians in (bad, scene.at(torch.tensor([0.0, 1.0])), scene.at(0).select(torch.zeros(300, dtype=torch.bool))):
        with pytest.raises(InputError, match=r"a\.glb"):
            write_splat_glb(tmp_path / "a.glb", gaussians)
    assert list(tmp_path.iterdir()) == []
