"""The mesh of a scene: kept, saved, found, and carried along."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anchor4d.core.files import InputError
from anchor4d.core.gaussians import random_gaussians
from anchor4d.core.mesh import Mesh
from anchor4d.core.sample import sample_meshes
from anchor4d.core.scene import Scene4D


@pytest.fixture(scope="module")
def meshes() -> list[Mesh]:
    return sample_meshes(5)


def two_materials(mesh: Mesh) -> Mesh:
    """Half of the faces painted, cut out where transparent, with vertex colours and normals."""
    half = len(mesh.faces) // 2
    texture, color, cutoff = mesh.face_texture.clone(), mesh.face_color.clone(), mesh.face_alpha_cutoff.clone()
    texture[:half], color[:half], cutoff[half:] = -1, torch.tensor([0.2, 0.4, 0.6, 1.0]), 0.5
    clear = mesh.textures[0].clone()
    clear[:8, :8, 3] = 0
    count = len(mesh.vertices)
    return replace(
        mesh, textures=(clear,), face_texture=texture, face_color=color, face_alpha_cutoff=cutoff,
        normals=torch.nn.functional.normalize(mesh.vertices, dim=-1),
        vertex_colors=torch.rand(count, 4, generator=torch.Generator().manual_seed(0)),
    )  # fmt: skip


@pytest.mark.parametrize(
    "change", [lambda mesh: mesh, two_materials, lambda mesh: replace(mesh, uvs=None, textures=(), face_texture=None)]
)
def test_a_scene_keeps_its_mesh(tmp_path: Path, meshes: list[Mesh], change: Callable[[Mesh], Mesh]) -> None:
    mesh = change(meshes[0])
    gaussians = random_gaussians(10, torch.Generator().manual_seed(0))
    scene = Scene4D(gaussians, surface=replace(mesh, name="somewhere/of mine/fox.glb"))
    scene.save(tmp_path / "scene.safetensors")
    found = Scene4D.load(tmp_path / "scene.safetensors").surface
    assert found is not None
    assert found.name == "fox.glb"
    for name in ("vertices", "faces", "normals", "uvs", "vertex_colors", "face_texture", "face_color", "face_alpha_cutoff"):
        before, after = getattr(mesh, name), getattr(found, name)
        assert torch.equal(before, after) if before is not None and after is not None else before is after, name
    for before, after in zip(mesh.textures, found.textures, strict=True):
        assert (before - after).abs().max() <= 0.5 / 255 + 1e-6
    moved = scene.to("cpu").surface
    assert moved is not None
    kept = {t.data_ptr() for t in scene._comfy_cache_tensors()}
    assert {moved.vertices.data_ptr(), *(t.data_ptr() for t in moved.textures)} <= kept


def test_files_without_a_mesh_load(tmp_path: Path) -> None:
    path = tmp_path / "scene.safetensors"
    Scene4D(random_gaussians(10, torch.Generator().manual_seed(0))).save(path)
    tensors, raw = load_file(path), path.read_bytes()
    header = json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["anchor4d"])
    del header["surface"]
    save_file(tensors, path, metadata={"anchor4d": json.dumps(header)})
    assert Scene4D.load(path).surface is None


@pytest.mark.parametrize("key", ["vertices", "faces", "materials", "texture0", "uvs"])
def test_a_garbled_mesh_is_refused(tmp_path: Path, meshes: list[Mesh], key: str) -> None:
    path = tmp_path / "scene.safetensors"
    Scene4D(random_gaussians(10, torch.Generator().manual_seed(0)), surface=meshes[0]).save(path)
    tensors, raw = load_file(path), path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    tensor = tensors[f"surface.{key}"]
    tensors[f"surface.{key}"] = torch.full(tensor.shape, torch.inf).to(tensor.dtype)
    save_file(tensors, path, metadata=header)
    with pytest.raises(InputError):
        Scene4D.load(path)
