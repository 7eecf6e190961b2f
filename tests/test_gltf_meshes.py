"""Meshes in glTF as programs write them: every kind of array, mode, material and extension; and as attackers do."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gltf_files import CORNERS, POINTS, UVS, GltfFile, halves

from anchor4d.core.files import InputError
from anchor4d.core.gaussians import from_points
from anchor4d.core.io.gltf_splats import write_splat_glb
from anchor4d.core.io.meshes import load_mesh
from anchor4d.core.io.objects import load_object
from anchor4d.core.mesh import Mesh, surface_color
from anchor4d.core.scene.object3d import SplatObject

RED, GREEN = [200 / 255, 0, 0], [0, 200 / 255, 0]


def sides(mesh: Mesh) -> tuple[list[float], list[float]]:
    """Mean colours of the faces left and right of the middle."""
    count = len(mesh.faces)
    colors = surface_color(mesh, torch.arange(count), torch.full((count, 3), 1 / 3))[:, :3]
    x = mesh.vertices[mesh.faces].mean(1)[:, 0]
    return colors[x < x.mean()].mean(0).tolist(), colors[x > x.mean()].mean(0).tolist()


def is_the_square(mesh: Mesh) -> None:
    assert len(mesh.faces) == 4
    assert mesh.vertices.amin(0).tolist() == pytest.approx([-1, -1, 0], abs=1e-4)
    assert mesh.vertices.amax(0).tolist() == pytest.approx([1, 1, 0], abs=1e-4)
    left, right = sides(mesh)
    assert left == pytest.approx(RED, abs=2e-2) and right == pytest.approx(GREEN, abs=2e-2)
    assert bool((mesh.face_normals()[:, 2] > 0.99).all())  # none inside out


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_object(path).normalized()
    message = str(caught.value)
    assert "\n" not in message and str(path.parent) in message
    for word in words:
        assert word in message


def one(tmp_path: Path, file: GltfFile, name: str = "a.glb") -> Mesh:
    return load_mesh(file.write(tmp_path / name))


@pytest.mark.parametrize("name", ["a.glb", "a.gltf"])
def test_the_plain_square(tmp_path: Path, name: str) -> None:
    file = GltfFile()
    file.node([file.square()])
    is_the_square(one(tmp_path, file, name))


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("kind", ["i1", "u1", "<i2", "<u2"])
def test_quantised_positions(tmp_path: Path, kind: str, normalized: bool) -> None:
    top = np.iinfo(kind).max if normalized else 100
    signed = kind[-2] == "i"
    stored = np.round(POINTS * top if signed else (POINTS + 1) / 2 * top).astype(kind)
    span = top / (top if normalized else 1) / (1 if signed else 2)  # what one unit of the square is in the file
    place = {"scale": [1 / span] * 3, "translation": [0.0] * 3 if signed else [-1.0, -1, -1]}
    file = GltfFile()
    file.header["extensionsRequired"] = ["KHR_mesh_quantization"]
    position = file.accessor(stored, **({"normalized": True} if normalized else {}))
    file.node([file.square(attributes={"POSITION": position})], **place)
    mesh = one(tmp_path, file)
    mesh = Mesh(mesh.vertices * torch.tensor([1, 1, 0]), mesh.faces, uvs=mesh.uvs, textures=mesh.textures)
    is_the_square(mesh)


@pytest.mark.parametrize("kind", ["u1", "<u2"])
def test_normalised_texture_coordinates(tmp_path: Path, kind: str) -> None:
    uvs = np.round(UVS * np.iinfo(kind).max).astype(kind)
    file = GltfFile()
    file.node([file.square(attributes={"TEXCOORD_0": file.accessor(uvs, normalized=True)})])
    is_the_square(one(tmp_path, file))


@pytest.mark.parametrize("kind", ["u1", "<u2", "<u4", None])
def test_indices(tmp_path: Path, kind: str | None) -> None:
    file = GltfFile()
    if kind is None:
        attributes = {"POSITION": file.accessor(POINTS[CORNERS]), "TEXCOORD_0": file.accessor(UVS[CORNERS])}
        primitive = file.square(attributes=attributes)
        del primitive["indices"]
    else:
        primitive = file.square(indices=file.accessor(CORNERS.astype(kind)))
    file.node([primitive])
    is_the_square(one(tmp_path, file))


@pytest.mark.parametrize("mode", [5, 6])
def test_strips_and_fans(tmp_path: Path, mode: int) -> None:
    order = ([0, 1, 3, 2], [4, 5, 7, 6]) if mode == 5 else ([0, 1, 2, 3], [4, 5, 6, 7])
    file = GltfFile()
    whole = file.square()
    file.node([whole | {"mode": mode, "indices": file.accessor(np.array(corners, "<u2"))} for corners in order])
    is_the_square(one(tmp_path, file))


def test_points_lines_and_incomplete_triangles_are_left_out_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = GltfFile()
    whole = file.square()
    file.node([whole, *(whole | {"mode": mode} for mode in (0, 1, 3))])
    with caplog.at_level(logging.WARNING):
        is_the_square(one(tmp_path, file))
    assert "left out 3 primitives of points or lines" in caplog.text
    file = GltfFile()
    file.node([file.square(indices=file.accessor(np.append(CORNERS, [0, 1]).astype("<u2")))])
    with caplog.at_level(logging.WARNING):
        is_the_square(one(tmp_path, file))
    assert "incomplete triangle" in caplog.text


@pytest.mark.parametrize("based", [True, False])
def test_sparse_positions(tmp_path: Path, based: bool) -> None:
    file = GltfFile()
    moved = np.array([[1, -1, 0], [1, 1, 0]], "<f4") if based else POINTS
    rows = np.array([5, 6] if based else range(8), "<u2")
    start = POINTS.copy()
    start[5:7] = 99
    sparse = {
        "count": len(rows),
        "indices": {"bufferView": file.view(rows.tobytes()), "componentType": 5123},
        "values": {"bufferView": file.view(moved.tobytes())},
    }
    position = file.accessor(start, sparse=sparse)
    if not based:
        del file.header["accessors"][position]["bufferView"]
    file.node([file.square(attributes={"POSITION": position})])
    is_the_square(one(tmp_path, file))
    sparse["indices"]["componentType"] = 5121  # 16-bit rows read as bytes still lie inside; a row beyond does not
    rows = np.array([200] * len(rows), "u1")
    sparse["indices"]["bufferView"] = file.view(rows.tobytes())
    refused(file.write(tmp_path / "b.glb"), "element 200 of 8")


def test_interleaved_arrays_and_a_stride_of_zero(tmp_path: Path) -> None:
    file = GltfFile()
    rows = np.concatenate([POINTS, UVS], -1).astype("<f4")
    view = file.view(rows.tobytes(), byteStride=20)
    position = file.add("accessors", bufferView=view, componentType=5126, count=8, type="VEC3")
    uv = file.add("accessors", bufferView=view, byteOffset=12, componentType=5126, count=8, type="VEC2")
    file.node([file.square(attributes={"POSITION": position, "TEXCOORD_0": uv})])
    is_the_square(one(tmp_path, file))
    file = GltfFile()
    primitive = file.square()
    for view in file.header["bufferViews"]:
        view["byteStride"] = 0  # as glTF 1.0 says "tightly packed"
    file.node([primitive])
    is_the_square(one(tmp_path, file))
    file.header["bufferViews"][0]["byteStride"] = 4
    refused(file.write(tmp_path / "b.glb"), "byteStride")


@pytest.mark.parametrize(("wrap", "shift"), [(33071, 0.5), (33648, 2.0), (33648, 1.0), (10497, 1.0), (10497, -3.0)])
def test_wrapping_of_textures(tmp_path: Path, wrap: int, shift: float) -> None:
    """A texture's two halves seen through uvs outside of [0, 1]."""
    uvs = UVS + np.array([shift, 0])
    file = GltfFile()
    sampler = file.add("samplers", wrapS=wrap, wrapT=33071)
    texture = file.texture(sampler=sampler)
    file.node([file.square(attributes={"TEXCOORD_0": file.accessor(uvs.astype("<f4"))}, material=file.material(texture))])
    left, right = sides(one(tmp_path, file))
    expected = {  # by the definitions of 3.8.4.5
        33071: (GREEN, GREEN),  # from 0.6 to 1.4: the right half and its edge
        33648: (RED, GREEN) if shift == 2 else (GREEN, RED),
        10497: (RED, GREEN),
    }[wrap]
    assert left == pytest.approx(expected[0], abs=1e-3) and right == pytest.approx(expected[1], abs=1e-3)


def test_a_clamped_texture_beyond_its_border_has_the_edges_colour(tmp_path: Path) -> None:
    file = GltfFile()
    texture = file.texture(sampler=file.add("samplers", wrapS=33071, wrapT=33071))
    uvs = UVS.copy()
    uvs[:4, 0] -= 7  # far outside: the left edge
    uvs[4:, 0] += 0.45  # 1.05 to 1.35: the right edge
    file.node([file.square(attributes={"TEXCOORD_0": file.accessor(uvs)}, material=file.material(texture))])
    is_the_square(one(tmp_path, file))


def test_a_texture_without_coordinates_leaves_the_factor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = GltfFile()
    primitive = file.square(material=file.material(file.texture(), baseColorFactor=[1, 1, 1, 1]))
    del primitive["attributes"]["TEXCOORD_0"]
    file.node([primitive])
    mesh = one(tmp_path, file)
    assert len(mesh.faces) == 4 and not mesh.has_color
    assert "no TEXCOORD_0" in caplog.text
    file = GltfFile()
    primitive = file.square()
    del primitive["material"]  # coordinates without a material
    file.node([primitive])
    assert not one(tmp_path, file).has_color


@pytest.mark.parametrize("of_node", [False, True])
def test_morph_targets_stand_at_their_default_weights(tmp_path: Path, of_node: bool) -> None:
    delta = np.zeros_like(POINTS)
    delta[6:, 2] = 5
    file = GltfFile()
    targets = [{"POSITION": file.accessor(delta)}, {"POSITION": file.accessor(-9 * delta)}]
    weights = {"mesh_weights": [0.5, 0.0]} if not of_node else {"mesh_weights": [1.0, 1.0], "weights": [0.5, 0.0]}
    file.node([file.square(targets=targets)], **weights)
    assert one(tmp_path, file).vertices.amax(0).tolist() == pytest.approx([1, 1, 2.5])


def test_a_skin_with_more_than_four_joints_a_vertex(tmp_path: Path) -> None:
    """Eight joints, each shifted by its own amount along Z, weighed equally."""
    file = GltfFile()
    attributes: dict[str, int] = {}
    for k in range(2):
        attributes[f"JOINTS_{k}"] = file.accessor(np.tile(np.arange(4 * k, 4 * k + 4, dtype="u1"), (8, 1)))
        attributes[f"WEIGHTS_{k}"] = file.accessor(np.full((8, 4), 32, "u1"), normalized=True)
    file.node([file.square(attributes=attributes)], skin=0, translation=[50.0, 0, 0])
    joints = [file.node(translation=[0.0, 0, float(k)]) for k in range(8)]
    file.add("skins", joints=joints)
    mesh = one(tmp_path, file)
    assert mesh.vertices[:, 2].tolist() == pytest.approx([3.5] * 8)
    assert mesh.vertices[:, 0].abs().max() == pytest.approx(1)
    file.header["skins"][0]["joints"] = joints[:5]
    refused(file.write(tmp_path / "b.glb"), "joint 7 of 5")


def test_instances(tmp_path: Path) -> None:
    file = GltfFile()
    half = math.sqrt(0.5)
    given = {
        "TRANSLATION": file.accessor(np.array([[-5, 0, 0], [5, 0, 0]], "<f4")),
        "ROTATION": file.accessor(np.array([[0, 0, 0, 1], [0, half, 0, half]], "<f4")),
        "SCALE": file.accessor(np.array([[1, 1, 1], [2, 2, 2]], "<f4")),
    }
    file.node([file.square()], extensions={"EXT_mesh_gpu_instancing": {"attributes": given}}, translation=[0.0, 10, 0])
    mesh = one(tmp_path, file)
    assert len(mesh.faces) == 8
    assert mesh.vertices.amin(0).tolist() == pytest.approx([-6, 8, -2], abs=1e-5)  # the second is turned a quarter about Y
    assert mesh.vertices.amax(0).tolist() == pytest.approx([5, 12, 2], abs=1e-5)
    given["SCALE"] = file.accessor(np.ones((3, 3), "<f4"))
    refused(file.write(tmp_path / "b.glb"), "instances")


@pytest.mark.parametrize(("kind", "width"), [("u1", 3), ("u1", 4), ("<u2", 4), ("<f4", 3)])
def test_vertex_colours_of_every_kind_are_linear(tmp_path: Path, kind: str, width: int) -> None:
    top = 1 if kind == "<f4" else np.iinfo(kind).max
    light = np.tile(np.array([0.5, 0.25, 0, 1][:width]) * top, (8, 1))
    light = (light if kind == "<f4" else light.round()).astype(kind)
    file = GltfFile()
    color = file.accessor(light, **({} if kind == "<f4" else {"normalized": True}))
    file.node([file.square(attributes={"COLOR_0": color}, material=file.material())])
    assert sides(one(tmp_path, file))[0] == pytest.approx([0.7354, 0.5371, 0], abs=3e-3)  # sRGB of a half and a quarter


def test_extensions_that_change_no_surface_are_accepted_and_others_named(tmp_path: Path) -> None:
    file = GltfFile()
    file.header["extensionsRequired"] = ["KHR_materials_dispersion", "VRMC_vrm", "KHR_lights_punctual", "ACME_anything"]
    file.node([file.square()], extensions={"ACME_anything": {}})
    is_the_square(one(tmp_path, file))
    file = GltfFile()
    file.header["extensionsRequired"] = ["ACME_geometry"]
    file.node([file.square(extensions={"ACME_geometry": {}})])
    refused(file.write(tmp_path / "b.glb"), "ACME_geometry")


@pytest.mark.parametrize(("name", "kind"), [("EXT_texture_webp", "WEBP"), ("EXT_texture_avif", "AVIF")])
def test_pictures_of_newer_kinds(tmp_path: Path, name: str, kind: str) -> None:
    file = GltfFile()
    try:
        picture = halves(kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {kind}")
    texture = file.texture(picture, f"image/{kind.lower()}")
    file.header["textures"][texture] = {"extensions": {name: {"source": 0}}}
    file.node([file.square(material=file.material(texture))])
    is_the_square(one(tmp_path, file))


def test_ktx2_takes_its_fallback_or_is_named(tmp_path: Path) -> None:
    file = GltfFile()
    ktx = file.add("images", bufferView=file.view(b"\xabKTX 20\xbb\r\n\x1a\n" + bytes(60)), mimeType="image/ktx2")
    texture = file.texture(extensions={"KHR_texture_basisu": {"source": ktx}})
    file.node([file.square(material=file.material(texture))])
    is_the_square(one(tmp_path, file))
    file.header["textures"][texture] = {"extensions": {"KHR_texture_basisu": {"source": ktx}}}
    refused(file.write(tmp_path / "b.glb"), "KHR_texture_basisu", "PNG")
    file.header["textures"][texture] = {"source": ktx}
    refused(file.write(tmp_path / "c.glb"), "KTX2", "PNG")


def test_hidden_nodes_are_left_out(tmp_path: Path) -> None:
    file = GltfFile()
    whole = file.square()
    file.node([whole])
    file.node([whole], translation=[9.0, 0, 0], extensions={"KHR_node_visibility": {"visible": False}})
    is_the_square(one(tmp_path, file))


def draco_square(file: GltfFile) -> dict[str, Any]:
    """The square with its arrays in Draco alone."""
    draco = pytest.importorskip("DracoPy", reason="needs DracoPy")
    data = draco.encode(
        POINTS, CORNERS.reshape(-1, 3), quantization_bits=14, tex_coord=UVS.astype(np.float64), preserve_order=True
    )
    primitive = file.square()
    for index in (*primitive["attributes"].values(), primitive["indices"]):
        del file.header["accessors"][index]["bufferView"]
    ids = {0: "POSITION", 3: "TEXCOORD_0"}
    attributes = {ids[a["attribute_type"]]: int(a["unique_id"]) for a in draco.decode(data).attributes}
    extension = {"bufferView": file.view(data), "attributes": attributes}
    return primitive | {"extensions": {"KHR_draco_mesh_compression": extension}}


def test_draco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = GltfFile()
    file.node([file.square(), draco_square(file)])
    path = file.write(tmp_path / "a.glb")
    mesh = load_mesh(path)
    assert len(mesh.faces) == 8
    left, right = sides(mesh)
    assert left == pytest.approx(RED, abs=2e-2) and right == pytest.approx(GREEN, abs=2e-2)
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    refused(path, "Draco", "pip install DracoPy")  # one part of two: nothing is dropped


def test_draco_with_plain_arrays_beside_it_needs_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = GltfFile()
    primitive = file.square()
    packed = {"bufferView": file.view(b"DRACO" + bytes(40)), "attributes": {"POSITION": 0}}
    file.node([primitive | {"extensions": {"KHR_draco_mesh_compression": packed}}])
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    is_the_square(one(tmp_path, file))


def test_draco_promises_are_checked_before_it_is_unpacked(tmp_path: Path) -> None:
    file = GltfFile()
    primitive = draco_square(file)
    file.node([primitive])
    view = primitive["extensions"]["KHR_draco_mesh_compression"]["bufferView"]
    at = file.header["bufferViews"][view]["byteOffset"]
    data = bytearray(file.data)
    data[at + 8] = 0  # sequential connectivity, faces first
    data[at + 11 : at + 16] = b"\xff\xff\xff\xff\x04"
    file.data = bytes(data)
    refused(file.write(tmp_path / "a.glb"), "Draco")


def test_meshopt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meshopt = pytest.importorskip("meshopt", reason="needs meshopt")
    file = GltfFile()
    primitive = file.square()
    for index, mode in ((primitive["attributes"]["POSITION"], "ATTRIBUTES"), (primitive["indices"], "TRIANGLES")):
        view = file.header["bufferViews"][file.header["accessors"][index]["bufferView"]]
        values = POINTS if mode == "ATTRIBUTES" else CORNERS
        data = meshopt.encode_gltf_buffer(values, mode)
        stored = file.header["bufferViews"][file.view(data)]
        packed = {"buffer": 0, "byteOffset": stored["byteOffset"], "byteLength": len(data), "mode": mode}
        packed |= {"byteStride": 12 if mode == "ATTRIBUTES" else 2, "count": len(values)}
        view |= {"buffer": 1, "byteOffset": 0, "extensions": {"EXT_meshopt_compression": packed}}
    file.node([primitive])
    fallback = {"byteLength": 200, "extensions": {"EXT_meshopt_compression": {"fallback": True}}}
    file.header["buffers"] = [{"byteLength": len(file.data)}, fallback]
    file.header["extensionsRequired"] = ["EXT_meshopt_compression"]
    path = file.write(tmp_path / "a.glb")
    is_the_square(load_mesh(path))
    monkeypatch.setitem(sys.modules, "meshopt", None)
    refused(path, "meshopt", "pip install meshopt")


def test_splats_in_glb_are_an_object_of_splats(tmp_path: Path) -> None:
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    write_splat_glb(tmp_path / "a.glb", from_points(points, points))
    splats = load_object(tmp_path / "a.glb")
    assert isinstance(splats, SplatObject) and len(splats.gaussians) == 20
    turned = load_object(tmp_path / "a.glb", "z")
    torch.testing.assert_close(turned.gaussians.means, points[:, [0, 2, 1]] * torch.tensor([1.0, 1, -1]), atol=1e-5, rtol=0)


# --- hostile files ------------------------------------------------------------------------------------------------------


OUTSIDE = (
    "/etc/hostname", "../outside.bin", "%2e%2e/outside.bin", "..\\outside.bin", "\\\\host\\share\\a", "file:///etc/hostname",
    "C:/a.bin", "https://example.org/a.bin",
)  # fmt: skip


@pytest.mark.parametrize("uri", OUTSIDE)
def test_nothing_outside_the_folder_is_read(tmp_path: Path, uri: str) -> None:
    (tmp_path / "outside.bin").write_bytes(bytes(1000))
    (tmp_path / "in").mkdir()
    file = GltfFile()
    file.node([file.square()])
    path = file.write(tmp_path / "in" / "a.gltf")
    header = json.loads(path.read_text())
    header["buffers"][0]["uri"] = uri
    path.write_text(json.dumps(header))
    refused(path)
    with pytest.raises(InputError, match=r"outside its folder|is not fetched"):
        load_mesh(path)


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")
def test_links_out_of_the_folder_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    file = GltfFile()
    file.node([file.square()])
    path = file.write(tmp_path / "in" / "a.gltf")
    kept = path.with_suffix(".bin")
    kept.rename(tmp_path / "a.bin")
    kept.symlink_to(tmp_path / "a.bin")
    refused(path, "outside its folder")
    kept.unlink()
    os.mkfifo(kept)
    refused(path, "not a regular file")
    os.mkfifo(tmp_path / "pipe.glb")
    (tmp_path / "zero.glb").symlink_to("/dev/zero")
    for name in ("pipe.glb", "zero.glb", "in"):
        for suffix in ("", ".obj", ".stl", ".ply"):
            special = tmp_path / (name + suffix)
            if suffix:
                special.symlink_to(tmp_path / name)
            refused(special)


def test_nodes_in_circles_and_diamonds_are_refused_and_long_chains_read(tmp_path: Path) -> None:
    file = GltfFile()
    first = file.node([file.square()], children=[1])
    file.add("nodes", children=[first])
    refused(file.write(tmp_path / "circle.glb"), "twice")
    file = GltfFile()
    file.node(children=[1, 2])
    file.add("nodes", children=[3])
    file.add("nodes", children=[3])
    file.add("nodes", mesh=file.add("meshes", primitives=[file.square()]))
    refused(file.write(tmp_path / "diamond.glb"), "twice")
    file = GltfFile()
    file.node(children=[1])
    for k in range(1, 3000):
        file.add("nodes", children=[k + 1])
    file.add("nodes", mesh=file.add("meshes", primitives=[file.square()]))
    is_the_square(load_mesh(file.write(tmp_path / "chain.glb")))


def test_many_instances_are_quick_and_too_many_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = GltfFile()
    file.node([file.square()])
    file.header["nodes"] += [{"mesh": 0, "translation": [3.0 * k, 0, 0]} for k in range(1, 5_000)]
    file.header["scenes"][0]["nodes"] = list(range(5_000))
    path = file.write(tmp_path / "a.glb")
    begun = time.process_time()
    assert len(load_mesh(path).faces) == 20_000
    assert time.process_time() - begun < 5
    monkeypatch.setenv("ANCHOR4D_MAX_ELEMENTS", "30000")
    refused(path, "vertices", "ANCHOR4D_MAX_ELEMENTS")
    monkeypatch.delenv("ANCHOR4D_MAX_ELEMENTS")
    monkeypatch.setenv("ANCHOR4D_MAX_NODES", "1000")
    refused(path, "nodes", "ANCHOR4D_MAX_NODES")
    monkeypatch.setenv("ANCHOR4D_MAX_NODES", "many")
    with pytest.raises(InputError, match="ANCHOR4D_MAX_NODES=many"):
        load_mesh(path)


def test_arrays_without_data_and_small_files_of_large_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = GltfFile()
    position = file.add("accessors", componentType=5126, count=15_000_000, type="VEC3")
    indices = file.add("accessors", componentType=5125, count=60_000_000, type="SCALAR")
    file.node([{"attributes": {"POSITION": position}, "indices": indices}])
    refused(file.write(tmp_path / "a.glb"), "have no data")
    plain = file.accessor(POINTS)
    file.header["meshes"][0]["primitives"] *= 4
    for primitive in file.header["meshes"][0]["primitives"]:
        primitive["attributes"]["POSITION"] = plain
    refused(file.write(tmp_path / "a.glb"), "ANCHOR4D_MAX")
    monkeypatch.setenv("ANCHOR4D_MAX_MEMORY_MB", "1")
    file = GltfFile()
    file.node([{"attributes": {"POSITION": file.accessor(np.zeros((3_000, 3), "<f4"))}} for _ in range(100)])
    refused(file.write(tmp_path / "b.glb"), "over 1 MB")


def test_a_header_of_deep_or_endless_json(tmp_path: Path) -> None:
    for name, text in (("deep", b"[" * 200_000 + b"]" * 200_000), ("wide", b"[" + b"[]," * 5_000_000 + b"0]"), ("list", b"[]")):
        path = tmp_path / f"{name}.gltf"
        path.write_bytes(text)
        refused(path)


WRONG = [None, True, -1, 1.5, 10**30, "x", [], {}, [None], ["x"], [{}], {"a": 1}, float("nan"), [1e308, 1e308, 1e308]]


def test_wrong_types_anywhere_in_the_header_end_in_one_line(tmp_path: Path) -> None:
    """Every member of a file with nearly everything in it is replaced by values of every other kind."""
    file = GltfFile()
    texture = file.texture(sampler=file.add("samplers", wrapS=33071))
    color = {"baseColorTexture": {"index": texture, "texCoord": 0}, "baseColorFactor": [1, 1, 1, 1]}
    material = file.add("materials", alphaMode="MASK", alphaCutoff=0.5, pbrMetallicRoughness=color)
    placing = {"KHR_texture_transform": {"offset": [0, 0], "rotation": 0, "scale": [1, 1], "texCoord": 0}}
    file.header["materials"][material]["pbrMetallicRoughness"]["baseColorTexture"]["extensions"] = placing
    attributes = {
        "JOINTS_0": file.accessor(np.zeros((8, 4), "u1")),
        "WEIGHTS_0": file.accessor(np.ones((8, 4), "<f4")),
        "NORMAL": file.accessor(np.tile(np.array([0, 0, 1], "<f4"), (8, 1))),
    }
    sparse = {
        "count": 1,
        "indices": {"bufferView": file.view(b"\0\0"), "componentType": 5123, "byteOffset": 0},
        "values": {"bufferView": file.view(bytes(12)), "byteOffset": 0},
    }
    target = {"POSITION": file.accessor(POINTS * 0, sparse=sparse, byteOffset=0)}
    primitive = file.square(attributes=attributes, material=material, mode=4, targets=[target])
    file.node([primitive], skin=0, weights=[0.5], mesh_weights=[1.0], children=[])
    joint = file.node(rotation=[0, 0, 0, 1], scale=[1, 1, 1], translation=[0, 0, 0])
    inverse = file.accessor(np.eye(4, dtype="<f4").reshape(1, 16))
    file.add("skins", joints=[joint], inverseBindMatrices=inverse)
    given = {"TRANSLATION": file.accessor(np.zeros((1, 3), "<f4"))}
    instanced = {"extensions": {"EXT_mesh_gpu_instancing": {"attributes": given}}, "matrix": np.eye(4).reshape(-1).tolist()}
    file.header["nodes"][file.node()] |= instanced | {"mesh": 0}
    file.header |= {"scene": 0, "extensionsUsed": ["KHR_texture_transform"], "extensionsRequired": ["KHR_texture_transform"]}
    path = file.write(tmp_path / "good.gltf")
    assert len(load_mesh(path).faces) == 8
    whole = path.read_text()

    def members(value: Any) -> list[list[Any]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [way for key, inner in items for way in ([key], *([key, *rest] for rest in members(inner)))]

    tried = 0
    for number, way in enumerate(members(json.loads(whole))):
        for wrong in (WRONG[(number + k) % len(WRONG)] for k in range(0, len(WRONG), 5)):
            header = json.loads(whole)
            holder = header
            for key in way[:-1]:
                holder = holder[key]
            holder[way[-1]] = wrong
            path.write_text(json.dumps(header))
            message = ""
            try:
                load_object(path).normalized()
            except InputError as error:
                message = str(error)
            assert "\n" not in message
            tried += 1
    assert tried > 400
