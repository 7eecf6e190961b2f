"""Meshes: reading every format with materials, refusing bad files, sampling, writing."""

from __future__ import annotations

import base64
import io
import json
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from trimesh.exchange.gltf import export_glb
from trimesh.exchange.ply import export_ply
from trimesh.exchange.stl import export_stl
from trimesh.transformations import translation_matrix
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from anchor4d.core import pictures
from anchor4d.core.files import InputError
from anchor4d.core.io.meshes import load_mesh, write_glb
from anchor4d.core.mesh import (
    Mesh,
    decoded,
    encoded,
    linear_to_srgb,
    mesh_from_arrays,
    mesh_to_arrays,
    sample_surface,
    srgb_to_linear,
    surface_color,
    texture_atlas,
)

QUAD = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
QUAD_FACES = np.array([[0, 1, 2], [0, 2, 3]])
QUAD_UV = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])  # trimesh and OBJ: v up


def quarters() -> Image.Image:
    """Red at the top left, green top right, blue bottom left, white bottom right."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16, :16, 0] = pixels[:16, 16:, 1] = pixels[16:, :16, 2] = 255
    pixels[16:, 16:] = 255
    return Image.fromarray(pixels)


def textured_quad(image: Image.Image | None = None, **material: Any) -> trimesh.Trimesh:
    visual = TextureVisuals(uv=QUAD_UV.copy(), material=PBRMaterial(baseColorTexture=image or quarters(), **material))
    return trimesh.Trimesh(QUAD.copy(), QUAD_FACES.copy(), visual=visual, process=False)


def color_at(mesh: Mesh, point: tuple[float, float, float]) -> list[float]:
    """Colour of the face whose plane and inside hold ``point``, RGBA."""
    p = torch.tensor(point, dtype=torch.float64)
    a, b, c = mesh.vertices[mesh.faces].double().unbind(1)
    basis = torch.stack([b - a, c - a, torch.linalg.cross(b - a, c - a)], -1)
    u, v, w = torch.linalg.solve(basis, (p - a)[..., None])[..., 0].unbind(-1)
    face = ((u >= -1e-9) & (v >= -1e-9) & (u + v <= 1 + 1e-9) & (w.abs() < 1e-4)).nonzero()[:1, 0]
    assert len(face)
    barycentric = torch.stack([1 - u - v, u, v], -1)[face].float()
    return surface_color(mesh, face, barycentric)[0].tolist()


def triangle_gltf(**changes: Any) -> dict[str, Any]:
    """A glTF header of one triangle with uvs and float colours, in a data URI; ``changes`` replace its entries."""
    positions = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "<f4")
    uvs = np.array([[0, 0], [1, 0], [0, 1]], "<f4")
    colors = np.array([[0.5, 0.01, 0.0], [0.5, 0.01, 1.0], [0.5, 0.01, 0.0]], "<f4")
    data = positions.tobytes() + uvs.tobytes() + colors.tobytes()
    uri = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    header = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "material": 0}]}],
        "materials": [{}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5126, "count": 3, "type": "VEC2"},
            {"bufferView": 2, "componentType": 5126, "count": 3, "type": "VEC3"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 36},
            {"buffer": 0, "byteOffset": 36, "byteLength": 24},
            {"buffer": 0, "byteOffset": 60, "byteLength": 36},
        ],
        "buffers": [{"uri": uri, "byteLength": len(data)}],
    }
    return header | changes


def write_gltf(path: Path, header: dict[str, Any]) -> Path:
    path.write_text(json.dumps(header))
    return path


def write_chunks(path: Path, header: dict[str, Any], binary: bytes) -> Path:
    """A GLB file."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
    return path


# --- reading ------------------------------------------------------------------------------------------------------------


def test_glb_of_several_parts_textures_and_transforms(tmp_path: Path) -> None:
    scene, move = trimesh.Scene(), translation_matrix
    scene.add_geometry(textured_quad(), node_name="a", transform=move([3, 0, 0]))
    red = TextureVisuals(material=PBRMaterial(baseColorFactor=[255, 0, 0, 255]))
    flat = trimesh.Trimesh(QUAD, QUAD_FACES, process=False, visual=red)
    scene.add_geometry(flat, node_name="b", parent_node_name="a", transform=move([0, 5, 0]))
    grey = Image.new("RGB", (8, 4), (51, 102, 204))
    mirror = np.diag([-2.0, 1, 1, 1])
    mirror[2, 3] = 4
    scene.add_geometry(textured_quad(grey), node_name="c", transform=mirror)
    path = tmp_path / "parts.glb"
    path.write_bytes(export_glb(scene))
    mesh = load_mesh(path)
    assert (len(mesh.vertices), len(mesh.faces), len(mesh.textures)) == (12, 6, 2)
    assert mesh.has_color
    assert color_at(mesh, (2.5, 0.5, 0)) == pytest.approx([1, 0, 0, 1], abs=1e-5)
    assert color_at(mesh, (3.5, 0.5, 0)) == pytest.approx([0, 1, 0, 1], abs=1e-5)
    assert color_at(mesh, (2.5, -0.5, 0)) == pytest.approx([0, 0, 1, 1], abs=1e-5)
    assert color_at(mesh, (3.5, -0.5, 0)) == pytest.approx([1, 1, 1, 1], abs=1e-5)
    assert color_at(mesh, (3.2, 5.3, 0)) == pytest.approx([1, 0, 0, 1], abs=1e-5)
    assert color_at(mesh, (1.5, 0.5, 4)) == pytest.approx([0.2, 0.4, 0.8, 1], abs=1e-5)
    torch.testing.assert_close(mesh.face_normals(), torch.tensor([[0.0, 0, 1]]).expand(6, 3))  # none inside out


def test_gltf_factors_and_vertex_colours_are_linear(tmp_path: Path) -> None:
    header = triangle_gltf(materials=[{"pbrMetallicRoughness": {"baseColorFactor": [0.002, 0.5, 1.0, 1.0]}}])
    header["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"] = 2
    mesh = load_mesh(write_gltf(tmp_path / "a.gltf", header))
    mid = surface_color(mesh, torch.tensor([0]), torch.tensor([[0.5, 0.5, 0.0]]))[0]
    expected = linear_to_srgb(torch.tensor([0.002 * 0.5, 0.5 * 0.01, 0.5]))
    torch.testing.assert_close(mid, torch.cat([expected, torch.ones(1)]), atol=1e-5, rtol=0)
    del header["meshes"][0]["primitives"][0]["material"]  # colours without a material
    mesh = load_mesh(write_gltf(tmp_path / "b.gltf", header))
    corner = surface_color(mesh, torch.tensor([0]), torch.tensor([[1.0, 0.0, 0.0]]))[0, :3]
    torch.testing.assert_close(corner, linear_to_srgb(torch.tensor([0.5, 0.01, 0.0])), atol=1e-5, rtol=0)


def test_gltf_texture_times_factor_multiplies_light(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (188, 188, 188)).save(buffer, "PNG")
    header = triangle_gltf(
        materials=[{"pbrMetallicRoughness": {"baseColorFactor": [0.5, 0.25, 1, 1], "baseColorTexture": {"index": 0}}}],
        textures=[{"source": 0}],
        images=[{"uri": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()}],
    )
    mesh = load_mesh(write_gltf(tmp_path / "a.gltf", header))
    light = srgb_to_linear(torch.tensor(188 / 255)) * torch.tensor([0.5, 0.25, 1])
    found = surface_color(mesh, torch.tensor([0]), torch.tensor([[0.3, 0.3, 0.4]]))[0, :3]
    torch.testing.assert_close(found, linear_to_srgb(light), atol=1e-5, rtol=0)


def test_gltf_files_beside_it_and_texture_transform(tmp_path: Path) -> None:
    quarters().save(tmp_path / "my picture.png")
    texture = {"index": 0, "extensions": {"KHR_texture_transform": {"offset": [0.5, 0], "scale": [0.5, 0.5]}}}
    header = triangle_gltf(
        materials=[{"pbrMetallicRoughness": {"baseColorTexture": texture}, "alphaMode": "MASK", "alphaCutoff": 0.3}],
        textures=[{"source": 0}],
        images=[{"uri": "my%20picture.png"}],
        extensionsUsed=["KHR_texture_transform"],
    )
    data = base64.b64decode(header["buffers"][0].pop("uri").split(",")[1])
    header["buffers"][0]["uri"] = "data.bin"
    (tmp_path / "data.bin").write_bytes(data)
    mesh = load_mesh(write_gltf(tmp_path / "a.gltf", header))
    assert surface_color(mesh, torch.tensor([0]), torch.tensor([[0.4, 0.3, 0.3]]))[0].tolist() == pytest.approx([0, 1, 0, 1])
    assert mesh.face_alpha_cutoff.tolist() == pytest.approx([0.3])
    assert mesh.uvs is not None
    torch.testing.assert_close(mesh.uvs, torch.tensor([[0.5, 0], [1, 0], [0.5, 0.5]]))


def test_gltf_skins_stand_in_their_resting_pose(tmp_path: Path) -> None:
    header = triangle_gltf()
    data = base64.b64decode(header["buffers"][0]["uri"].split(",")[1])
    inverse = np.stack([np.eye(4), translation_matrix([-1, 0, 0])]).swapaxes(1, 2).astype("<f4")
    weights = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0]], "<f4")
    data += np.array([[0, 1, 0, 0]] * 3, np.uint8).tobytes() + weights.tobytes() + inverse.tobytes()
    header["buffers"] = [{"uri": "data:;base64," + base64.b64encode(data).decode(), "byteLength": len(data)}]
    header["bufferViews"] += [
        {"buffer": 0, "byteOffset": 96, "byteLength": 12},
        {"buffer": 0, "byteOffset": 108, "byteLength": 48},
        {"buffer": 0, "byteOffset": 156, "byteLength": 128},
    ]
    header["accessors"] += [
        {"bufferView": 3, "componentType": 5121, "count": 3, "type": "VEC4"},
        {"bufferView": 4, "componentType": 5126, "count": 3, "type": "VEC4"},
        {"bufferView": 5, "componentType": 5126, "count": 2, "type": "MAT4"},
    ]
    header["meshes"][0]["primitives"][0]["attributes"] |= {"JOINTS_0": 3, "WEIGHTS_0": 4}
    header["skins"] = [{"joints": [1, 2], "inverseBindMatrices": 5}]
    # The skinned node's own place does not count, the joints' places do.
    header["nodes"] = [
        {"mesh": 0, "skin": 0, "translation": [50, 0, 0], "name": "body"},
        {"translation": [0, 0, 2], "children": [2], "name": "body"},
        {"translation": [1, 0, 0], "scale": [1, 1, 3]},
    ]
    header["scenes"] = [{"nodes": [0, 1]}]
    mesh = load_mesh(write_gltf(tmp_path / "a.gltf", header))
    torch.testing.assert_close(mesh.vertices, torch.tensor([[0.0, 0, 2], [1, 0, 2], [0, 1, 2]]))


@pytest.mark.parametrize(("mode", "cutoff"), [("OPAQUE", 0.0), ("MASK", 0.5), ("BLEND", 0.5)])
def test_gltf_alpha_modes(tmp_path: Path, mode: str, cutoff: float) -> None:
    mesh = load_mesh(write_gltf(tmp_path / "a.gltf", triangle_gltf(materials=[{"alphaMode": mode}])))
    assert mesh.face_alpha_cutoff.tolist() == [cutoff]


def test_obj_with_its_materials(tmp_path: Path) -> None:
    quarters().save(tmp_path / "tex.png")
    (tmp_path / "m.mtl").write_text("newmtl painted\nKd 0 0 0\nmap_Kd -s 1 1 1 tex.png\nnewmtl plain\nKd 0.2 0.4 0.6\n")
    lines = ["mtllib m.mtl", *(f"v {x} {y} {z}" for x, y, z in QUAD), *(f"vt {u} {v}" for u, v in QUAD_UV)]
    lines += ["v 5 0 0", "v 6 0 0", "v 5 1 0", "usemtl painted", "f 1/1 2/2 3/3", "f 1/1 3/3 4/4"]
    lines += ["usemtl plain", "f 5/1 6/2 7/3"]
    path = tmp_path / "a.obj"
    path.write_text("\n".join(lines))
    mesh = load_mesh(path)
    assert color_at(mesh, (-0.5, 0.5, 0)) == pytest.approx([1, 0, 0, 1], abs=1e-5)
    assert color_at(mesh, (-0.5, -0.5, 0)) == pytest.approx([0, 0, 1, 1], abs=1e-5)
    assert color_at(mesh, (5.2, 0.2, 0)) == pytest.approx([0.2, 0.4, 0.6, 1], abs=0.5 / 255)


def test_ply_and_stl(tmp_path: Path) -> None:
    colors = np.array([[255, 0, 0, 255], [0, 128, 0, 255], [0, 0, 64, 255], [9, 9, 9, 255]], np.uint8)
    shape = trimesh.Trimesh(QUAD, QUAD_FACES, vertex_colors=colors, process=False)
    for name, kind in (("a.ply", "binary"), ("b.ply", "ascii")):
        (tmp_path / name).write_bytes(export_ply(shape, encoding=kind))
        mesh = load_mesh(tmp_path / name)
        assert mesh.vertex_colors is not None
        torch.testing.assert_close(mesh.vertex_colors * 255, torch.from_numpy(colors).float(), atol=1e-3, rtol=0)
        assert color_at(mesh, (1, -1, 0)) == pytest.approx([0, 128 / 255, 0, 1], abs=1e-5)
    (tmp_path / "a.stl").write_bytes(export_stl(shape))
    mesh = load_mesh(tmp_path / "a.stl")
    assert len(mesh.faces) == 2
    assert not mesh.has_color


def test_a_grey_mesh_has_no_colour_and_a_red_one_has(tmp_path: Path) -> None:
    for factor, expected in (([0.22, 0.22, 0.22, 1], False), ([0.5, 0.1, 0.1, 1], True)):
        header = triangle_gltf(materials=[{"pbrMetallicRoughness": {"baseColorFactor": factor}}])
        assert load_mesh(write_gltf(tmp_path / "a.gltf", header)).has_color is expected


def test_vertices_lie_where_pytorch_puts_memory(tmp_path: Path) -> None:
    """At multiples of 64 bytes: MKL's products of what lies elsewhere have other last bits, from process to process."""
    for count in range(3, 40):
        corners = torch.rand(count, 3, generator=torch.Generator().manual_seed(count))
        faces = torch.stack([torch.arange(count - 2), torch.arange(1, count - 1), torch.arange(2, count)], 1)
        write_glb(tmp_path / "strip.glb", Mesh(corners, faces))
        assert load_mesh(tmp_path / "strip.glb").vertices.data_ptr() % 64 == 0, count


def test_degenerate_faces_and_unused_vertices_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.obj"
    path.write_text("v 9 9 9\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 2 0 0\nf 2 3 4\nf 2 2 3\nf 2 3 5\n")
    mesh = load_mesh(path)
    assert mesh.faces.tolist() == [[0, 1, 2]]
    assert mesh.vertices.max() == 1
    box, matrix = mesh.normalized()
    assert box.vertices.amax(0).tolist() == pytest.approx([0.5, 0.5, 0])
    assert matrix[:3, 3].tolist() == pytest.approx([-0.5, -0.5, 0])


# --- bad input ----------------------------------------------------------------------------------------------------------


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_mesh(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    for word in words:
        assert word in message


def test_missing_foreign_and_damaged_files(tmp_path: Path) -> None:
    refused(tmp_path / "none.glb", "no such file")
    for name in ("a.fbx", "a.txt", "a"):
        (tmp_path / name).write_bytes(b"x")
        refused(tmp_path / name, "convert")
    for name in ("a.glb", "a.gltf", "a.obj", "a.ply", "a.stl"):
        (tmp_path / name).write_bytes(b"")
        refused(tmp_path / name)
        (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(3000))
        refused(tmp_path / name)
    good = export_glb(trimesh.Scene(textured_quad()))
    for length in (10, 100, len(good) // 2, len(good) - 1):
        (tmp_path / "cut.glb").write_bytes(good[:length])
        refused(tmp_path / "cut.glb", "export it again")


def test_files_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANCHOR4D_MAX_FILE_MB", "4")
    (tmp_path / "a.obj").write_bytes(b"#" * (2 << 20))
    refused(tmp_path / "a.obj", "1 MB")
    (tmp_path / "a.glb").write_bytes(b"#" * (5 << 20))
    refused(tmp_path / "a.glb", "4 MB")


def test_no_faces(tmp_path: Path) -> None:
    (tmp_path / "points.ply").write_bytes(export_ply(trimesh.PointCloud(QUAD)))
    refused(tmp_path / "points.ply", "faces")
    (tmp_path / "points.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    refused(tmp_path / "points.obj", "faces")
    (tmp_path / "line.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    refused(tmp_path / "line.obj", "no faces with an area")
    refused(write_gltf(tmp_path / "empty.gltf", {"asset": {"version": "2.0"}}), "faces")


def test_values_that_are_not_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n")
    refused(tmp_path / "a.obj", "vertex positions", "NaN")
    header = triangle_gltf()
    data = bytearray(base64.b64decode(header["buffers"][0]["uri"].split(",")[1]))
    data[40:44] = struct.pack("<f", math.inf)
    header["buffers"][0]["uri"] = "data:;base64," + base64.b64encode(bytes(data)).decode()
    header["materials"] = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]
    Image.new("RGB", (2, 2)).save(tmp_path / "t.png")
    header |= {"textures": [{"source": 0}], "images": [{"uri": "t.png"}]}
    refused(write_gltf(tmp_path / "a.gltf", header), "texture coordinates")


def test_missing_textures_are_named(tmp_path: Path) -> None:
    textured = {"materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}], "textures": [{"source": 0}]}
    refused(write_gltf(tmp_path / "a.gltf", triangle_gltf(**textured, images=[{"uri": "skin.png"}])), "skin.png is missing")
    (tmp_path / "skin.png").write_bytes(b"not a picture")
    refused(tmp_path / "a.gltf", "skin.png", "PNG")
    (tmp_path / "a.obj").write_text("mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nusemtl m\nf 1/1 2/1 3/1\n")
    (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd textures\\wood.jpg\n")
    refused(tmp_path / "a.obj", "wood.jpg is missing")
    ply = export_ply(trimesh.Trimesh(QUAD, QUAD_FACES), encoding="ascii")
    (tmp_path / "a.ply").write_bytes(ply.replace(b"element vertex", b"comment TextureFile bark.png\nelement vertex"))
    refused(tmp_path / "a.ply", "bark.png is missing")


def test_what_a_hostile_file_declares_is_checked_before_it_is_believed(tmp_path: Path) -> None:
    good = triangle_gltf()
    data = base64.b64decode(good["buffers"][0].pop("uri").split(",")[1])

    def changed(section: str, index: int, **values: Any) -> dict[str, Any]:
        entries = [dict(e) for e in good[section]]
        entries[index] |= values
        return good | {section: entries}

    assert len(load_mesh(write_chunks(tmp_path / "good.glb", good, data)).faces) == 1
    bombs = [
        changed("accessors", 0, count=2**31 - 1),
        changed("accessors", 0, count=1000),
        changed("accessors", 0, count=-5),
        changed("bufferViews", 0, byteLength=2**40),
        changed("bufferViews", 0, byteOffset=-4),
        changed("buffers", 0, byteLength=2**40),
        changed("buffers", 0, uri="elsewhere.bin"),
        good | {"accessors": [{"componentType": 5126, "count": 2**31 - 1, "type": "VEC3"}, *good["accessors"][1:]]},
        changed("accessors", 0, bufferView=77),
        good | {"asset": {"version": "1.0"}},
    ]
    for index, header in enumerate(bombs):
        refused(write_chunks(tmp_path / f"bomb{index}.glb", header, data))
    whole = (tmp_path / "good.glb").read_bytes()
    (tmp_path / "chunk.glb").write_bytes(whole[:12] + struct.pack("<I", 2**32 - 4) + whole[16:])
    refused(tmp_path / "chunk.glb", "chunk")
    lines = ["ply", "format binary_little_endian 1.0", "element vertex 4000000000", *(f"property float {c}" for c in "xyz")]
    lines += ["element face 1", "property list uchar int vertex_indices", "end_header", ""]
    (tmp_path / "bomb.ply").write_bytes("\n".join(lines).encode() + bytes(99))
    refused(tmp_path / "bomb.ply", "4,000,000,000")
    (tmp_path / "bomb.stl").write_bytes(bytes(80) + struct.pack("<I", 2**32 - 1) + bytes(500))
    refused(tmp_path / "bomb.stl")


def test_a_picture_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("1", (20000, 20000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 200_000
    textured = {"materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}], "textures": [{"source": 0}]}
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    refused(write_gltf(tmp_path / "a.gltf", triangle_gltf(**textured, images=[{"uri": uri}])), "million pixels")
    (tmp_path / "big.png").write_bytes(buffer.getvalue())
    (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd big.png\n")
    (tmp_path / "a.obj").write_text("mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nusemtl m\nf 1/1 2/1 3/1\n")
    refused(tmp_path / "a.obj", "big.png", "million pixels")


def test_instances_cannot_multiply_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANCHOR4D_MAX_ELEMENTS", "100")
    header = triangle_gltf(nodes=[{"mesh": 0, "translation": [i, 0, 0]} for i in range(40)])
    header["scenes"] = [{"nodes": list(range(40))}]
    refused(write_gltf(tmp_path / "a.gltf", header), "120 vertices")


def test_large_textures_are_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_TEXTURE_SIDE", 16)
    path = tmp_path / "a.glb"
    path.write_bytes(export_glb(trimesh.Scene(textured_quad())))
    mesh = load_mesh(path)
    assert mesh.textures[0].shape == (16, 16, 4)
    assert color_at(mesh, (-0.5, 0.5, 0)) == pytest.approx([1, 0, 0, 1], abs=1e-5)


# --- the type -----------------------------------------------------------------------------------------------------------


def test_turned_and_transformed() -> None:
    vertices, normals = torch.tensor([[0.0, 0, 1], [1, 0, 1], [0, 1, 1]]), torch.tensor([[0.0, 0, 1]] * 3)
    mesh = Mesh(vertices, torch.tensor([[0, 1, 2]]), normals=normals)
    turned = mesh.turned(90)
    assert turned.vertices[0].tolist() == pytest.approx([1, 0, 0], abs=1e-6)  # what faced +Z faces +X
    assert turned.normals is not None
    assert turned.normals[0].tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    diagonal = replace(mesh, normals=torch.full((3, 3), 3**-0.5))
    squeezed = diagonal.transformed(torch.diag(torch.tensor([2.0, 1, 1, 1])))
    assert squeezed.normals is not None
    assert squeezed.normals[0].tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3], abs=1e-6)
    mirrored = mesh.transformed(torch.diag(torch.tensor([-1.0, 1, 1, 1])))
    assert mirrored.face_normals()[0].tolist() == pytest.approx([0, 0, 1])
    with pytest.raises(ValueError, match="uvs has shape"):
        Mesh(mesh.vertices, mesh.faces, uvs=torch.zeros(2, 2))
    with pytest.raises(InputError, match="coincide"):
        replace(mesh, vertices=torch.ones(3, 3)).normalized()


def test_colour_curves() -> None:
    x = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(x)), x, atol=1e-6, rtol=0)
    assert float(srgb_to_linear(torch.tensor(0.5))) == pytest.approx(0.2140411, abs=1e-6)


def test_the_atlas_follows_its_textures() -> None:
    a, b, c = (torch.full((4, 2, 4), float(x)) for x in (0.2, 0.4, 0.6))
    first = texture_atlas((a, b))
    assert texture_atlas((a, b)) is first
    assert texture_atlas((a, c)) is not first
    assert texture_atlas((a,)).levels.tolist() == [3]
    assert first.table[1].tolist() == [[8 + 2 + 1, 4, 2], [8 + 2 + 1 + 8, 2, 1], [8 + 2 + 1 + 8 + 2, 1, 1]]
    assert float(texture_atlas((a, c)).texels[-1, 0]) == pytest.approx(float(srgb_to_linear(torch.tensor(0.6))))


def test_sampling_is_even_by_area_and_repeats_with_its_seed(tmp_path: Path) -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [10, 0, 0], [13, 0, 0], [10, 3, 0]])
    colors = torch.tensor([[1.0, 0, 0, 1]] * 3 + [[0.0, 0, 1, 1]] * 3)
    mesh = Mesh(vertices, torch.tensor([[0, 1, 2], [3, 4, 5]]), vertex_colors=colors)
    samples = sample_surface(mesh, 1000, torch.Generator().manual_seed(4))
    assert samples.face.bincount().tolist() == [100, 900]  # areas 1 : 9, stratified
    torch.testing.assert_close(samples.points, (vertices[mesh.faces[samples.face]] * samples.barycentric[..., None]).sum(1))
    assert (samples.barycentric >= 0).all()
    torch.testing.assert_close(samples.barycentric.sum(-1), torch.ones(1000))
    # The mean of points uniform in a triangle is its centroid.
    assert samples.points[samples.face == 1].mean(0).tolist() == pytest.approx([11, 1, 0], abs=0.1)
    torch.testing.assert_close(samples.colors, colors[:, :3][samples.face * 3], atol=1e-5, rtol=0)
    assert (samples.normals == torch.tensor([0.0, 0, 1])).all()
    again = sample_surface(mesh, 1000, torch.Generator().manual_seed(4))
    assert torch.equal(samples.points, again.points)
    assert not torch.equal(samples.points, sample_surface(mesh, 1000, torch.Generator().manual_seed(5)).points)


def test_sampling_leaves_out_holes() -> None:
    texture = torch.ones(64, 64, 4)
    texture[:, 16:, 3] = 0
    mesh = Mesh(
        torch.from_numpy(QUAD).float(),
        torch.from_numpy(QUAD_FACES),
        uvs=torch.from_numpy(QUAD_UV * [1, -1] + [0, 1]).float(),
        textures=(texture,),
        face_alpha_cutoff=torch.full((2,), 0.5),
    )
    samples = sample_surface(mesh, 500, torch.Generator().manual_seed(0))
    assert len(samples.points) == 500
    assert samples.points[:, 0].max() < -0.45
    assert samples.points[:, 0].mean() == pytest.approx(-0.75, abs=0.03)
    with pytest.raises(InputError, match="alpha"):
        sample_surface(replace(mesh, textures=(texture * 0,)), 10, torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="no area"):
        sample_surface(replace(mesh, vertices=mesh.vertices * 0), 10, torch.Generator().manual_seed(0))


def test_write_glb_reads_back(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    mesh = Mesh(
        torch.rand(12, 3, generator=g),
        torch.arange(12).reshape(4, 3),
        normals=torch.nn.functional.normalize(torch.randn(12, 3, generator=g), dim=-1),
        uvs=torch.rand(12, 2, generator=g),
        textures=(torch.rand(5, 6, 4, generator=g), torch.rand(3, 3, 4, generator=g)),
        face_texture=torch.tensor([0, 1, -1, 0]),
        face_color=torch.tensor([[1.0, 1, 1, 1], [0.5, 1, 0.2, 1], [0.1, 0.03, 0.9, 1], [1, 1, 1, 1]]),
        face_alpha_cutoff=torch.tensor([0.0, 0.25, 0, 0]),
    )
    write_glb(tmp_path / "deep" / "a.glb", mesh)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.glb"]
    back = load_mesh(tmp_path / "deep" / "a.glb")
    assert back.normals is not None
    assert mesh.normals is not None
    for face in range(4):
        corners = mesh.vertices[mesh.faces[face]]
        at = ((back.vertices[back.faces] - corners).abs().amax((1, 2)) < 1e-6).nonzero()[0]
        barycentric = torch.tensor([[0.2, 0.5, 0.3]])
        found, expected = surface_color(back, at, barycentric), surface_color(mesh, torch.tensor([face]), barycentric)
        alpha = slice(None) if face == 1 else slice(3)
        torch.testing.assert_close(found[:, alpha], expected[:, alpha], atol=4e-3, rtol=0)
        torch.testing.assert_close(back.normals[back.faces[at[0]]], mesh.normals[mesh.faces[face]], atol=1e-5, rtol=0)
        assert back.face_alpha_cutoff[at].item() == mesh.face_alpha_cutoff[face].item()


def test_write_glb_with_vertex_colours(tmp_path: Path) -> None:
    light = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    mesh = Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]), vertex_colors=encoded(light))
    write_glb(tmp_path / "a.glb", mesh)
    back = load_mesh(tmp_path / "a.glb")
    assert back.vertex_colors is not None
    torch.testing.assert_close(decoded(back.vertex_colors), light, atol=0.51 / 255, rtol=0)


# --- the host's mesh type -----------------------------------------------------------------------------------------------


def test_host_batch_items_are_cut_to_their_counts() -> None:
    vertices = torch.zeros(2, 5, 3)
    vertices[0, :3] = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    vertices[1] = torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2], [9, 9, 9]])
    faces = torch.tensor([[[0, 1, 2], [0, 0, 0]], [[0, 1, 2], [0, 1, 3]]])
    counts = {"vertex_counts": torch.tensor([3, 4]), "face_counts": torch.tensor([1, 2])}
    linear = torch.full((2, 5, 3), 0.25)
    first = mesh_from_arrays(vertices, faces, vertex_colors=linear, **counts)
    assert (len(first.vertices), len(first.faces)) == (3, 1)
    assert first.vertex_colors is not None
    assert first.vertex_colors[0].tolist() == pytest.approx([float(linear_to_srgb(torch.tensor(0.25)))] * 3 + [1])
    second = mesh_from_arrays(vertices, faces, index=1, **counts)
    assert (len(second.vertices), len(second.faces)) == (4, 2)
    assert not second.has_color
    with pytest.raises(InputError, match="2 items"):
        mesh_from_arrays(vertices, faces, index=2, **counts)
    with pytest.raises(InputError, match="no faces"):
        mesh_from_arrays(vertices, faces[:, :0])
    with pytest.raises(InputError, match="does not exist"):
        mesh_from_arrays(vertices, faces + 7)
    with pytest.raises(InputError, match="NaN"):
        mesh_from_arrays(vertices * torch.nan, faces)


def test_host_texture_has_its_first_row_at_v_zero() -> None:
    picture = torch.from_numpy(np.array(quarters())).float()[None] / 255
    uvs = torch.from_numpy(QUAD_UV * [1, -1] + [0, 1]).float()[None]
    vertices, faces = torch.from_numpy(QUAD).float()[None], torch.from_numpy(QUAD_FACES)[None]
    mesh = mesh_from_arrays(vertices, faces, uvs=uvs, texture=picture)
    assert color_at(mesh, (-0.5, 0.5, 0)) == pytest.approx([1, 0, 0, 1], abs=1e-5)
    arrays = mesh_to_arrays(mesh)
    assert set(arrays) == {"vertices", "faces", "uvs", "texture"}
    torch.testing.assert_close(arrays["uvs"], uvs)
    torch.testing.assert_close(arrays["texture"], picture)


def test_a_mesh_of_several_materials_goes_to_the_host_as_vertex_colours() -> None:
    colors = torch.tensor([[1.0, 0, 0, 1], [0, 0.5, 0, 1]])
    mesh = Mesh(torch.rand(4, 3), torch.tensor([[0, 1, 2], [0, 1, 3]]), face_color=colors)
    arrays = mesh_to_arrays(mesh)
    back = mesh_from_arrays(**arrays)
    for face in range(2):
        color = surface_color(back, torch.tensor([face]), torch.full((1, 3), 1 / 3))[0]
        torch.testing.assert_close(color, mesh.face_color[face], atol=1e-5, rtol=0)
    assert set(mesh_to_arrays(Mesh(mesh.vertices, mesh.faces))) == {"vertices", "faces"}
