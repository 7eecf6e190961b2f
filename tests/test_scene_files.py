"""COLLADA and USD meshes, written by other libraries: the same mesh as glTF gives."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import survives
from gltf_files import CORNERS, POINTS, UVS, GltfFile, halves

from anchor4d.core.cameras import orbit
from anchor4d.core.files import InputError
from anchor4d.core.io.meshes import load_mesh
from anchor4d.core.mesh import Mesh
from anchor4d.core.render.mesh import render_mesh

#: From the frame of a file with Z up to one with Y up: -Y becomes +Z.
UPRIGHT = {"Y_UP": np.eye(3), "Z_UP": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])}


def seen(mesh: Mesh) -> torch.Tensor:
    """From the front and from above."""
    return render_mesh(mesh, orbit([20.0, -30.0], 20.0, 4.0, 40.0, 48, 48), torch.ones(3), supersample=2).color


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    file = GltfFile()
    file.node([file.square()], translation=[0.2, 0.3, 0])
    return seen(load_mesh(file.write(tmp_path_factory.mktemp("gltf") / "a.glb")))


def collada_file(path: Path, up: str = "Y_UP", texture: str = "halves.png", color: Any = None) -> Path:
    """The square of gltf_files by pycollada, its two quads as polygons, moved by a node."""
    collada = pytest.importorskip("collada", reason="pycollada is not installed")
    from collada import geometry, material, scene, source

    document = collada.Collada()
    document.assetInfo.upaxis = up
    diffuse: Any = color
    parameters = []
    if color is None:
        picture = material.CImage("picture", texture)
        document.images.append(picture)
        surface = material.Surface("surface", picture)
        sampler = material.Sampler2D("sampler", surface)
        parameters, diffuse = [surface, sampler], material.Map(sampler, "UV")
    effect = material.Effect("effect", parameters, "lambert", diffuse=diffuse)
    look = material.Material("material", "material", effect)
    document.effects.append(effect)
    document.materials.append(look)
    points = POINTS @ UPRIGHT[up].astype("f4")  # the inverse turn
    sources = [
        source.FloatSource("points", points.reshape(-1), ("X", "Y", "Z")),
        source.FloatSource("uvs", (UVS * [1, -1] + [0, 1]).astype("f4").reshape(-1), ("S", "T")),
    ]
    shape = geometry.Geometry(document, "square", "square", sources)
    inputs = source.InputList()
    inputs.addInput(0, "VERTEX", "#points")
    inputs.addInput(1, "TEXCOORD", "#uvs", set="0")
    rows = np.repeat(np.arange(8), 2)
    shape.primitives.append(shape.createPolylist(rows, np.array([4, 4]), inputs, "look"))
    document.geometries.append(shape)
    bound = scene.GeometryNode(shape, [scene.MaterialNode("look", look, [("UV", "TEXCOORD", "0")])])
    moved = UPRIGHT[up].T @ [0.2, 0.3, 0]
    node = scene.Node("node", children=[bound], transforms=[scene.TranslateTransform(*moved)])
    document.scenes.append(scene.Scene("scene", [node]))
    document.scene = document.scenes[0]
    document.write(str(path))
    return path


def modules(*names: str) -> list[Any]:
    return [pytest.importorskip(f"pxr.{name}", reason="usd-core is not installed") for name in names]


def usd_file(path: Path, up: str = "Y_UP") -> Path:
    """The square by usd-core: two quads, texture coordinates of corners, a texture through a UsdPreviewSurface."""
    Gf, Sdf, Usd, UsdGeom, UsdShade, UsdUtils = modules("Gf", "Sdf", "Usd", "UsdGeom", "UsdShade", "UsdUtils")
    inner = path.with_suffix(".usda") if path.suffix == ".usdz" else path
    stage = Usd.Stage.CreateNew(str(inner))
    UsdGeom.SetStageUpAxis(stage, up[0])
    root = UsdGeom.Xform.Define(stage, "/Root")
    stage.SetDefaultPrim(root.GetPrim())
    root.AddTranslateOp().Set(Gf.Vec3d(*map(float, UPRIGHT[up].T @ [0.2, 0.3, 0])))
    mesh = UsdGeom.Mesh.Define(stage, "/Root/Square")
    mesh.CreatePointsAttr((POINTS @ UPRIGHT[up]).tolist())
    mesh.CreateFaceVertexCountsAttr([4, 4])
    mesh.CreateFaceVertexIndicesAttr(list(range(8)))
    uvs = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar("map", Sdf.ValueTypeNames.TexCoord2fArray, "faceVarying")
    uvs.Set((UVS * [1, -1] + [0, 1]).tolist())
    hidden = UsdGeom.Sphere.Define(stage, "/Root/Hidden")
    hidden.MakeInvisible()
    look = UsdShade.Material.Define(stage, "/Root/Look")
    surface = UsdShade.Shader.Define(stage, "/Root/Look/Surface")
    surface.CreateIdAttr("UsdPreviewSurface")
    texture = UsdShade.Shader.Define(stage, "/Root/Look/Texture")
    texture.CreateIdAttr("UsdUVTexture")
    texture.CreateInput("file", Sdf.ValueTypeNames.Asset).Set("./halves.png")
    places = UsdShade.Shader.Define(stage, "/Root/Look/Places")
    places.CreateIdAttr("UsdPrimvarReader_float2")
    places.CreateInput("varname", Sdf.ValueTypeNames.String).Set("map")
    texture.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(
        places.CreateOutput("result", Sdf.ValueTypeNames.Float2)
    )
    surface.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f).ConnectToSource(
        texture.CreateOutput("rgb", Sdf.ValueTypeNames.Float3)
    )
    look.CreateSurfaceOutput().ConnectToSource(surface.CreateOutput("surface", Sdf.ValueTypeNames.Token))
    UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(look)
    stage.Save()
    if path.suffix == ".usdz":
        assert UsdUtils.CreateNewUsdzPackage(str(inner), str(path))
        inner.unlink()
    return path


@pytest.mark.parametrize("up", list(UPRIGHT))
def test_collada_is_the_mesh_that_gltf_gives(tmp_path: Path, wanted: torch.Tensor, up: str) -> None:
    (tmp_path / "halves.png").write_bytes(halves())
    mesh = load_mesh(collada_file(tmp_path / "a.dae", up))
    assert len(mesh.faces) == 4 and len(mesh.textures) == 1
    torch.testing.assert_close(seen(mesh), wanted, atol=1e-4, rtol=0)


def test_collada_colours_and_textures(tmp_path: Path) -> None:
    mesh = load_mesh(collada_file(tmp_path / "a.dae", color=(1.0, 0.5, 0.0, 1.0)))
    assert mesh.face_color.tolist() == [[1.0, 0.5, 0.0, 1.0]] * 4 and mesh.has_color
    with pytest.raises(InputError, match=r"halves\.png is missing"):
        load_mesh(collada_file(tmp_path / "a.dae"))
    with pytest.raises(InputError, match=r"halves\.png is missing"):
        load_mesh(collada_file(tmp_path / "a.dae", texture="../secret/halves.png"))


def test_damaged_collada_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "halves.png").write_bytes(halves())
    path = collada_file(tmp_path / "a.dae")
    whole = path.read_bytes()
    entity = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]>'
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.dae", whole)
    for data in (
        b"",
        b"x",
        whole[: len(whole) // 2],
        entity + whole[38:],
        packed.getvalue(),
        whole.replace(b"7 7</p>", b"99 7</p>"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            load_mesh(path)
        assert "a.dae" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("up", list(UPRIGHT))
@pytest.mark.parametrize("suffix", [".usdz", ".usda", ".usdc"])
def test_usd_is_the_mesh_that_gltf_gives(tmp_path: Path, wanted: torch.Tensor, suffix: str, up: str) -> None:
    (tmp_path / "halves.png").write_bytes(halves())
    path = usd_file(tmp_path / f"a{suffix}", up)
    if suffix == ".usdz":
        (tmp_path / "halves.png").unlink()  # it is in the package
    mesh = load_mesh(path)
    assert len(mesh.faces) == 4 and len(mesh.textures) == 1
    torch.testing.assert_close(seen(mesh), wanted, atol=1e-4, rtol=0)


def test_usd_colours_of_vertices_are_linear(tmp_path: Path) -> None:
    Usd, UsdGeom = modules("Usd", "UsdGeom")
    stage = Usd.Stage.CreateNew(str(tmp_path / "a.usda"))
    mesh = UsdGeom.Mesh.Define(stage, "/Square")
    mesh.CreatePointsAttr(POINTS.tolist())
    mesh.CreateFaceVertexCountsAttr([3] * 4)
    mesh.CreateFaceVertexIndicesAttr(CORNERS.tolist())
    mesh.CreateDisplayColorAttr([(0.5, 0.0, 1.0)])
    stage.Save()
    colors = load_mesh(tmp_path / "a.usda").vertex_colors
    assert colors is not None
    assert colors[0].tolist() == pytest.approx([0.7354, 0, 1, 1], abs=1e-3)  # sRGB of 0.5


def test_usd_stays_in_its_folder_and_damage_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "halves.png").write_bytes(halves())
    usd_file(tmp_path / "outside.usda")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "a.usda").write_text("#usda 1.0\n(subLayers = [@../outside.usda@])\n")
    with pytest.raises(InputError, match="outside its folder"):
        load_mesh(inside / "a.usda")
    whole = usd_file(tmp_path / "a.usdz").read_bytes()
    for name, data in (("b.usdz", whole[:300]), ("b.usdz", b""), ("b.usda", b"x"), ("b.usdc", b"PXR-USDC" + bytes(90))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError) as caught:
            load_mesh(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


USD_MESH = """#usda 1.0
def Mesh "m" {
    int[] faceVertexCounts = %s
    int[] faceVertexIndices = [0, 1, 2]
    point3f[] points = [(0, 0, 0), (1, 0, 0), (0, 1, 0)]
    %s
}
"""


@pytest.mark.parametrize(
    ("counts", "more", "message"),
    [
        ("[6, -3]", "", "vertices that do not exist"),
        (
            "[3]",
            'color3f[] primvars:displayColor = [(1, 0, 0)] (interpolation = "faceVarying")\n'
            "int[] primvars:displayColor:indices = [0, 5, -9]",
            "too few",
        ),
        (
            "[3]",
            'def GeomSubset "s" {\nuniform token elementType = "face"\nuniform token familyName = "materialBind"\n'
            "int[] indices = [99, -5]\n}",
            "faces that do not exist",
        ),
    ],
)
def test_usd_meshes_that_refer_to_what_is_not_there(tmp_path: Path, counts: str, more: str, message: str) -> None:
    modules("Usd")
    (tmp_path / "a.usda").write_text(USD_MESH % (counts, more))
    with pytest.raises(InputError, match=message):
        load_mesh(tmp_path / "a.usda")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes among files")
@pytest.mark.parametrize("way", ["(subLayers = [@./pipe.usda@])", 'def "a" (payload = @./pipe.usda@) {\n}'])
def test_usd_opens_no_pipe(tmp_path: Path, way: str) -> None:
    modules("Usd")
    os.mkfifo(tmp_path / "pipe.usda")
    (tmp_path / "a.usda").write_text(f"#usda 1.0\n{way}\n")
    with pytest.raises(InputError, match="not a regular file"):
        load_mesh(tmp_path / "a.usda")


@pytest.mark.parametrize("suffix", [".usda", ".usdc", ".usdz", ".dae"])
def test_spoilt_scenes_are_read_or_refused_in_one_line(tmp_path: Path, suffix: str) -> None:
    if suffix != ".dae":
        modules("Usd")
    (tmp_path / "halves.png").write_bytes(halves())
    whole = collada_file(tmp_path / "whole.dae") if suffix == ".dae" else usd_file(tmp_path / f"whole{suffix}")
    survives(load_mesh, tmp_path / f"spoilt{suffix}", whole.read_bytes(), seed=7)


def test_a_crate_that_promises_more_than_it_holds_is_refused_before_usd_makes_room(tmp_path: Path) -> None:
    """Numbers of entries of each section, one after the other."""
    modules("Usd")
    (tmp_path / "halves.png").write_bytes(halves())
    whole = usd_file(tmp_path / "whole.usdc").read_bytes()
    (table,) = struct.unpack_from("<Q", whole, 16)
    (sections,) = struct.unpack_from("<Q", whole, table)
    for number in range(sections):
        name, start, _ = struct.unpack_from("<16sQQ", whole, table + 8 + 32 * number)
        data = bytearray(whole)
        struct.pack_into("<Q", data, start, 1 << 33)
        (tmp_path / "spoilt.usdc").write_bytes(data)
        with pytest.raises(InputError, match="damaged or not a USD file") as caught:
            load_mesh(tmp_path / "spoilt.usdc")
        assert "fit" in str(caught.value.__cause__), name
