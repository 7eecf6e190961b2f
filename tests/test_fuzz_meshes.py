"""Every mesh reader with files that were damaged at random: read, or refused in one line, in time and within the budget.

ANCHOR4D_FUZZ=1000 reads a thousand of each instead of the usual few.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import COUNT, survives
from gltf_files import CORNERS, POINTS, UVS, GltfFile, halves
from test_mesh_files import FACES, PAINTED, SQUARE, obj, stl

from anchor4d.core.gaussians import from_points
from anchor4d.core.io.gltf_splats import write_splat_glb
from anchor4d.core.io.objects import load_object

#: What all files of a kind may add to the process, MB; the budget of one is 64.
GROWTH = 700


@pytest.fixture(autouse=True)
def _budget(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MEMORY_MB", 64), ("ELEMENTS", 300_000), ("PIXELS", 4_000_000), ("FILE_MB", 8), ("NODES", 5_000)):
        monkeypatch.setenv(f"ANCHOR4D_MAX_{name}", str(value))


def read(path: Path) -> None:
    load_object(path).normalized()


def peak() -> float:
    """Most memory that the process has held, MB."""
    if sys.platform == "win32":
        return 0.0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1 << 20)


def plain() -> GltfFile:
    """Textured, wrapped, morphed, skinned and instanced."""
    file = GltfFile()
    texture = file.texture(sampler=file.add("samplers", wrapS=33071, wrapT=33648))
    attributes = {
        "JOINTS_0": file.accessor(np.zeros((8, 4), "u1")),
        "WEIGHTS_0": file.accessor(np.full((8, 4), 64, "u1"), normalized=True),
        "COLOR_0": file.accessor(np.full((8, 4), 200, "u1"), normalized=True),
    }
    targets = [{"POSITION": file.accessor((POINTS * 0.1).astype("<f4"))}]
    sparse = {
        "count": 1,
        "indices": {"bufferView": file.view(b"\0"), "componentType": 5121},
        "values": {"bufferView": file.view(bytes(8))},
    }
    primitive = file.square(attributes=attributes, targets=targets, material=file.material(texture))
    file.header["accessors"][primitive["attributes"]["TEXCOORD_0"]]["sparse"] = sparse
    file.node([primitive], mesh_weights=[0.5], skin=0)
    file.add("skins", joints=[file.node()])
    places = {"TRANSLATION": file.accessor(np.arange(9, dtype="<f4").reshape(3, 3))}
    shown = file.node(extensions={"EXT_mesh_gpu_instancing": {"attributes": places}}, rotation=[0, 0, 0, 1])
    file.header["nodes"][shown]["mesh"] = 0
    return file


@pytest.mark.parametrize("name", ["a.glb", "a.gltf"])
def test_gltf(tmp_path: Path, name: str) -> None:
    path = plain().write(tmp_path / name)
    before = peak()
    done, refused = survives(read, path, path.read_bytes(), seed=1, count=2 * COUNT)
    assert done and refused
    assert peak() - before < GROWTH


@pytest.mark.parametrize("package", ["DracoPy", "meshopt"])
def test_compressed_gltf(tmp_path: Path, package: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"needs {package}")
    file = GltfFile()
    primitive = file.square()
    position, indices = primitive["attributes"]["POSITION"], primitive["indices"]
    if package == "DracoPy":
        import DracoPy

        data = DracoPy.encode(POINTS, CORNERS.reshape(-1, 3), tex_coord=UVS.astype(np.float64), preserve_order=True)
        wanted = {0: "POSITION", 3: "TEXCOORD_0"}
        ids = {wanted[a["attribute_type"]]: int(a["unique_id"]) for a in DracoPy.decode(data).attributes}
        primitive["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": file.view(data), "attributes": ids}}
    else:
        import meshopt

        for accessor, values, mode, stride in ((position, POINTS, "ATTRIBUTES", 12), (indices, CORNERS, "TRIANGLES", 2)):
            data = meshopt.encode_gltf_buffer(values, mode)
            stored = file.header["bufferViews"][file.view(data)]
            packed = {"buffer": 0, "byteOffset": stored["byteOffset"], "byteLength": len(data), "mode": mode}
            view = file.header["bufferViews"][file.header["accessors"][accessor]["bufferView"]]
            view["extensions"] = {"EXT_meshopt_compression": packed | {"byteStride": stride, "count": len(values)}}
    file.node([primitive])
    path = file.write(tmp_path / "a.glb")
    before = peak()
    assert all(survives(read, path, path.read_bytes(), seed=2))
    assert peak() - before < GROWTH


def test_splats_in_gltf(tmp_path: Path) -> None:
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "a.glb"
    write_splat_glb(path, from_points(points, points))
    assert all(survives(read, path, path.read_bytes(), seed=3))


def test_obj_and_its_materials(tmp_path: Path) -> None:
    text = "mtllib a.mtl\n" + SQUARE + "vn 0 0 1\nusemtl m\n" + FACES + "f 1//1 2//1 3//1\nusemtl n\nf -1 -2 -3\n"
    path = obj(tmp_path, text, a__mtl=PAINTED + "newmtl n\nKd .1 .2 .3\n", tex__png=halves())
    assert all(survives(read, path, path.read_bytes(), seed=4, count=2 * COUNT))
    library = tmp_path / "a.mtl"
    done, _ = survives(lambda _: read(path), library, library.read_bytes(), seed=5)
    assert done
    picture = tmp_path / "tex.png"
    assert all(survives(lambda _: read(path), picture, picture.read_bytes(), seed=6))


def test_stl(tmp_path: Path) -> None:
    text = "solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\nendsolid a\n"
    for name, data in (("a.stl", stl(3, [0x8001, 3, 0xFFFF])), ("b.stl", text.encode())):
        assert all(survives(read, tmp_path / name, data, seed=7))


def test_ply(tmp_path: Path) -> None:
    head = "ply\nformat {} 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    head += "property uchar red\nproperty uchar green\nproperty uchar blue\nelement face 2\n"
    head += "property list uchar int vertex_indices\nend_header\n"
    rows = [(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)]
    text = head.format("ascii") + "".join(f"{x} {y} {z} 255 0 9\n" for x, y, z in rows) + "3 0 1 2\n4 0 1 2 3\n"
    for name, kind, order in (("a.ply", "binary_little_endian", "<"), ("b.ply", "binary_big_endian", ">")):
        vertex = np.dtype([("p", order + "f4", 3), ("c", "u1", 3)])
        face = np.dtype([("n", "u1"), ("i", order + "i4", 3)])
        vertices = np.array([(row, (255, 0, 9)) for row in rows], vertex).tobytes()
        faces = np.array([(3, (0, 1, 2)), (3, (0, 2, 3))], face).tobytes()
        assert all(survives(read, tmp_path / name, head.format(kind).encode() + vertices + faces, seed=8))
    assert all(survives(read, tmp_path / "c.ply", text.encode(), seed=9))
