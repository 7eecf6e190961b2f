"""OBJ, STL and PLY as programs write them, the up axis, and what opens pictures."""

from __future__ import annotations

import logging
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gltf_files import GltfFile, halves
from PIL import Image

import anchor4d
from anchor4d import cli
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import from_points
from anchor4d.core.io.gltf_splats import write_splat_glb
from anchor4d.core.io.meshes import load_mesh
from anchor4d.core.io.objects import load_object
from anchor4d.core.io.video import read_picture
from anchor4d.core.mesh import UP_AXES, Mesh, surface_color, up_matrix
from anchor4d.core.pictures import FORMATS, open_picture
from anchor4d.core.scene.object3d import SplatObject

ROOT = Path(anchor4d.__file__).parent
#: Two quads in the plane Z = 0 whose left and right half see the halves of a texture.
SQUARE = """v -1 -1 0
v 0 -1 0
v 0 1 0
v -1 1 0
v 1 -1 0
v 1 1 0
vt .1 .1
vt .4 .1
vt .4 .9
vt .1 .9
vt .6 .1
vt .9 .1
vt .9 .9
vt .6 .9
"""
FACES = "f 1/1 2/2 3/3 4/4\nf 2/5 5/6 6/7 3/8\n"
PAINTED = "newmtl m\nKd 1 1 1\nmap_Kd tex.png\n"


def obj(folder: Path, text: str, **others: str | bytes) -> Path:
    for name, data in others.items():
        file = folder / name.replace("__", ".")
        file.write_bytes(data.encode() if isinstance(data, str) else data)
    (folder / "a.obj").write_text(text)
    return folder / "a.obj"


def colors(mesh: Mesh) -> list[list[float]]:
    """Of the faces' middles, sRGB in bytes, left to right."""
    count = len(mesh.faces)
    found = surface_color(mesh, torch.arange(count), torch.full((count, 3), 1 / 3))[:, :3] * 255
    return found[mesh.vertices[mesh.faces].mean(1)[:, 0].argsort()].round().tolist()


def is_painted(mesh: Mesh) -> None:
    assert len(mesh.faces) == 4 and mesh.has_color
    assert colors(mesh) == [[200, 0, 0]] * 2 + [[0, 200, 0]] * 2


def test_obj_with_a_texture_however_it_is_named(tmp_path: Path) -> None:
    whole = "mtllib a.mtl\n" + SQUARE + "usemtl m\n" + FACES
    names = (
        "tex.png",
        "TEX.PNG",
        "C:\\work\\textures\\tex.png",
        "/home/someone/tex.png",
        "-s 1 1 1 -mm 0 1 tex.png",
        "./tex.png",
    )
    for name in names:
        is_painted(load_mesh(obj(tmp_path, whole, a__mtl=PAINTED.replace("tex.png", name), tex__png=halves())))
    (tmp_path / "tex.png").rename(tmp_path / "Te X.png")
    is_painted(load_mesh(obj(tmp_path, whole, a__mtl=PAINTED.replace("tex.png", "te x.png"))))
    is_painted(load_mesh(obj(tmp_path, whole.replace("a.mtl", "A.MTL").replace("\n", "\r\n"))))


def test_obj_texture_options_move_and_clamp(tmp_path: Path) -> None:
    whole = "mtllib a.mtl\n" + SQUARE + "usemtl m\n" + FACES
    for options, expected in (("-o 0.5 0 0", [[0, 200, 0], [200, 0, 0]]), ("-clamp on -o 0.5", [[0, 200, 0], [0, 200, 0]])):
        text = PAINTED.replace("tex.png", f"{options} tex.png")
        found = colors(load_mesh(obj(tmp_path, whole, a__mtl=text, tex__png=halves())))
        assert [found[0], found[-1]] == expected


def test_obj_without_a_material_has_no_colours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for head in ("", "mtllib gone.mtl\nusemtl m\n", "mtllib a.mtl\nusemtl other\n"):
        mesh = load_mesh(obj(tmp_path, head + SQUARE + FACES, a__mtl=PAINTED, tex__png=halves()))
        assert len(mesh.faces) == 4 and not mesh.has_color and mesh.uvs is None
    assert "gone.mtl is missing" in caplog.text and "no material other" in caplog.text


def test_obj_of_faces_with_and_without_texture_coordinates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "mtllib a.mtl\n" + SQUARE + "v 3 -1 0\nv 3 1 0\nusemtl m\n" + FACES + "f 5 7 8 6\nf 5// 7// 8//\n"
    mesh = load_mesh(obj(tmp_path, text, a__mtl=PAINTED.replace("1 1 1", "0 0 1"), tex__png=halves()))
    assert len(mesh.faces) == 7
    assert colors(mesh) == [[200, 0, 0]] * 2 + [[0, 200, 0]] * 2 + [[0, 0, 255]] * 3
    assert "3 faces of material m have no texture coordinates" in caplog.text


def test_obj_with_tabs_continued_lines_relative_indices_and_polygons(tmp_path: Path) -> None:
    plain = load_mesh(obj(tmp_path, SQUARE + "f 1 2 3 4\nf 2 5 6 3\n"))
    texts = [
        (SQUARE + "f 1 2 3 4\nf 2 5 6 3\n").replace(" ", "\t"),
        (SQUARE + "f 1 2 3 4\nf 2 5 6 3\n").replace(" ", "   ") + "\n# end",
        SQUARE + "f 1 2 \\\n3 4\nf 2 5 6 3\n",
        SQUARE + "f -6 -5 -4 -3\nv 9 9 9\nf -6 -3 -2 -5\n",  # relative to what stands above, not to the file's end
        SQUARE + "f 1/ 2/ 3/ 4/\nf 2/-4/ 5/-3/ 6/-2/ 3/-1/\n",
    ]
    for text in texts:
        mesh = load_mesh(obj(tmp_path, text))
        torch.testing.assert_close(mesh.vertices[mesh.faces], plain.vertices[plain.faces])
    mesh = load_mesh(obj(tmp_path, "v 0 0 0\nv 1 0 0\nv 2 1 0\nv 1 2 0\nv 0 2 0\nf 1 2 3 4 5\n"))
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 3, 4]]


def test_obj_with_colours_of_vertices_and_normals(tmp_path: Path) -> None:
    rows = ["v 0 0 0 1 0 0", "v 1 0 0 0 1 0", "v 0 1 0 0 0 1", "vn 0 0 1", "f 1//1 2//1 3//1"]
    mesh = load_mesh(obj(tmp_path, "\n".join(rows)))
    assert mesh.vertex_colors is not None and mesh.normals is not None
    assert mesh.vertex_colors.tolist() == [[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]]
    assert mesh.normals.tolist() == [[0, 0, 1]] * 3
    mesh = load_mesh(obj(tmp_path, "\n".join(rows).replace(" 1 0 0\n", " 255 0 0\n", 1).replace("0 1 0\nv", "0 128 0\nv", 1)))
    assert mesh.vertex_colors is not None
    assert mesh.vertex_colors[:2].tolist() == [[1, 0, 0, 1], [0, pytest.approx(128 / 255), 0, 1]]


BAD_LINES = (
    "f 1 2 9", "f 0 1 2", "f 1 2 x", "f 1/9 2/1 3/1", "v 1 x 0\nf 1 2 3", "v 1\nf 1 2 3", "f 1 2 -9",
    "f 1 2 99999999999999999999",
)  # fmt: skip


@pytest.mark.parametrize("line", BAD_LINES)
def test_obj_that_is_damaged(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match="export it again"):
        load_mesh(obj(tmp_path, SQUARE + line))


def test_surveys_keep_their_shape(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Coordinates of millions, in metres, of an object a metre across: float32 alone would leave a staircase."""
    turns = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    ring = np.stack([np.cos(turns), np.sin(turns), turns * 0], -1) / 2 + [500000.25, 4649777.5, 100]
    text = "\n".join(f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in ring) + "\nf " + " ".join(map(str, range(1, 65)))
    with caplog.at_level(logging.INFO):
        mesh = load_mesh(obj(tmp_path, text))
    assert "moved to the origin" in caplog.text
    torch.testing.assert_close(mesh.normalized()[0].vertices.norm(dim=-1), torch.full((64,), 0.5), atol=1e-5, rtol=0)
    file = GltfFile()
    file.node([file.square()], translation=[4.6e6, 5e5, 100.0])
    assert load_mesh(file.write(tmp_path / "a.glb")).vertices.amax(0).tolist() == [1, 1, 0]
    near = load_mesh(obj(tmp_path, "v 10 0 0\nv 11 0 0\nv 10 1 0\nf 1 2 3"))
    assert near.vertices[0].tolist() == [10, 0, 0]  # as the file has it


def stl(count: int, attributes: list[int] | None = None, header: bytes = b"") -> bytes:
    triangles = [struct.pack("<12f", 0, 0, 1, k, 0, 0, k + 1, 0, 0, k, 1, 0) for k in range(count)]
    rows = [row + struct.pack("<H", value) for row, value in zip(triangles, attributes or [0] * count)]
    return header.ljust(80, b"\0") + struct.pack("<I", count) + b"".join(rows)


def test_stl_with_bytes_behind_it_and_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.stl"
    for data in (stl(2), stl(2) + b"made by a CAD program", stl(2, header=b"solid of a program that says so")):
        path.write_bytes(data)
        mesh = load_mesh(path)
        assert len(mesh.faces) == 2 and not mesh.has_color
    for data in (
        stl(2)[:-1],
        stl(0),
        b"solid a\nfacet\nvertex 1 2 x\nvertex 0 0 0\nvertex 0 0 1\n",
        b"solid a\nfacet\nvertex 1 2 3\n",
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"a\.stl"):
            load_mesh(path)
    text = "solid a\n facet normal 0 0 1\n  outer loop\n   vertex 0 0 0\n   VERTEX 1e0 0 0\n   vertex 0 1 0\n"
    path.write_text(text + "  endloop\n endfacet\nendsolid a\n")
    assert load_mesh(path).vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]


def test_stl_colours_of_faces(tmp_path: Path) -> None:
    path = tmp_path / "a.stl"
    path.write_bytes(stl(2, [0x8000 | 31 << 10, 0x8000 | 31]))  # VisCAM: red highest
    assert colors(load_mesh(path)) == [[255, 0, 0], [0, 0, 255]]
    path.write_bytes(stl(2, [31, 0x8000], b"COLOR=\x00\xff\x00\xff"))  # Magics: red lowest, bit 15 = the object's
    assert colors(load_mesh(path)) == [[255, 0, 0], [0, 255, 0]]


def test_ply_colours_of_faces(tmp_path: Path) -> None:
    head = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\nelement face 2\n"
    head += (
        "property list uchar int vertex_indices\nproperty uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
    )
    corners = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n"
    path = tmp_path / "a.ply"
    path.write_text(head + corners + "3 0 2 3 255 0 0\n3 0 1 2 0 255 0\n")
    assert colors(load_mesh(path)) == [[255, 0, 0], [0, 255, 0]]
    path.write_text(head + corners + "4 0 1 2 3 255 0 0\n3 0 2 3 0 255 0\n")
    with pytest.raises(InputError, match="triangulate"):
        load_mesh(path)


def test_a_missing_package_is_not_called_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.ply").write_text("ply\nformat ascii 1.0\nelement vertex 3\nend_header\n")
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(InputError, match="pip install trimesh"):
        load_mesh(tmp_path / "a.ply")
    file = GltfFile()
    file.node([file.square()])
    assert len(load_mesh(file.write(tmp_path / "a.glb")).faces) == 4  # takes no package


def test_files_of_other_programs_name_what_converts_them(tmp_path: Path) -> None:
    for suffix in (".fbx", ".blend"):
        (tmp_path / f"a{suffix}").write_bytes(b"x")
        with pytest.raises(InputError, match="Blender"):
            load_object(tmp_path / f"a{suffix}")


# --- the up axis --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("up", list(UP_AXES))
def test_the_up_axis_of_a_file_becomes_y(tmp_path: Path, up: str) -> None:
    axis = [0, 0, 0]
    axis["xyz".index(up[-1])] = -1 if up.startswith("-") else 1
    path = obj(tmp_path, f"v 0 0 0\nv {axis[0]} {axis[1]} {axis[2]}\nv .3 .4 .5\nf 1 2 3\n")
    mesh = load_mesh(path, up)
    assert mesh.vertices[1].tolist() == pytest.approx([0, 1, 0])
    assert float(torch.linalg.det(up_matrix(up))) == pytest.approx(1)  # a turn, not a mirror
    assert mesh.vertices.norm(dim=-1).tolist() == pytest.approx([0, 1, 0.5**0.5])
    with pytest.raises(InputError, match="choose one of y"):
        load_object(path, "w")


def test_front_of_blenders_axes_faces_us() -> None:
    assert (up_matrix("z")[:3, :3] @ torch.tensor([0.0, -1, 0])).tolist() == [0, 0, 1]


def test_up_on_the_command_line_wants_an_object(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["fit", "--video", "v.mp4", "--up", "z", "--out", str(tmp_path)]) == 2
    assert "--object" in capsys.readouterr().err


# --- pictures -----------------------------------------------------------------------------------------------------------


def test_postscript_is_never_opened(tmp_path: Path) -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n0 0 32 32 rectfill\nshowpage\n%%EOF"
    (tmp_path / "0.png").write_bytes(script)
    for read in (open_picture, read_picture):
        with pytest.raises(InputError, match="picture"):
            read(tmp_path / "0.png")
    whole = "mtllib a.mtl\n" + SQUARE + "usemtl m\n" + FACES
    with pytest.raises(InputError, match=r"tex\.png is not a picture"):
        load_mesh(obj(tmp_path, whole, a__mtl=PAINTED, tex__png=script))
    assert not {"EPS", "PSD", "MPEG", "HDF5", "GRIB", "BUFR", "WMF", "FPX", "MIC"} & set(FORMATS)


def test_pictures_are_opened_in_one_place() -> None:
    for path in [
        ROOT / "cli.py",
        ROOT / "console.py",
        *(p for room in ("core", "nodes", "bench", "training") for p in (ROOT / room).rglob("*.py")),
    ]:
        if path.relative_to(ROOT).as_posix() != "core/pictures.py":
            assert not re.search(r"\bImage\.open\(|\bimread\(", path.read_text()), path


def test_sixteen_bit_grey_keeps_its_shades(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "tex.png")
    mesh = load_mesh(obj(tmp_path, "mtllib a.mtl\n" + SQUARE + "usemtl m\n" + FACES, a__mtl=PAINTED))
    assert colors(mesh)[0] == [128, 128, 128]


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_objects_too_small_or_large_to_draw_are_refused_when_normalised(tmp_path: Path, size: float) -> None:
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) * size
    write_splat_glb(tmp_path / "a.glb", from_points(points, points.clamp(0, 1)))
    splats = [load_object(tmp_path / "a.glb")] if size > 1 else []  # small ones have Gaussians of a size that can be drawn
    for item in (*splats, Mesh(points, torch.arange(18).reshape(6, 3))):
        with pytest.raises(InputError, match="across"):
            item.normalized()
    near = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) * 1e14
    assert float(SplatObject.of(from_points(near, near.clamp(0, 1))).normalized()[0].vertices.abs().max()) < 1
