"""The mesh of a scene: kept, saved, found, and carried along."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anchor4d.core.cameras import orbit
from anchor4d.core.deformation import ControlNodes, DeformationMLP, FrameField, HexPlane
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import Gaussians, from_points, random_gaussians
from anchor4d.core.io.meshes import load_mesh
from anchor4d.core.io.video import load_video
from anchor4d.core.mesh import Mesh
from anchor4d.core.methods import pla4d, stages
from anchor4d.core.methods.stages import gaussians_on_mesh
from anchor4d.core.render import rasterize
from anchor4d.core.runs.sample import CAMERA, sample_meshes, sample_scene, write_sample
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.surface import carry, extract_surface, scene_surface, surface_at, vertex_colors, vertex_normals


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


def test_fits_keep_the_mesh(tmp_path: Path) -> None:
    case = write_sample(tmp_path / "case", 3, 64)
    video, mesh = load_video(case / "front", resolution=64), load_mesh(case / "mesh.glb")
    config = pla4d.preset("draft")
    still = stages.fit_static(video, mesh, CAMERA, replace(config.static, gaussians=200, objectives=()))
    assert still.surface is mesh
    motion = replace(config.motion, objectives=(), fields={"control-nodes": {"nodes": 10}})
    assert stages.fit_motion(video, still, motion, mesh=mesh).surface is mesh
    older = replace(still, surface=None)
    assert stages.fit_motion(video, older, motion, mesh=mesh).surface is mesh
    assert stages.fit_motion(video, older, motion).surface is None


def ball(radius: float, count: int = 3000) -> Gaussians:
    """Small opaque Gaussians on a sphere, red above and blue below."""
    step = torch.arange(count) + 0.5
    y, around = 1 - 2 * step / count, step * math.pi * (3 - math.sqrt(5))
    level = (1 - y**2).sqrt()
    points = radius * torch.stack([level * around.sin(), y, level * around.cos()], -1)
    colors = torch.where(y[:, None] > 0, torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]))
    return from_points(points, colors, scales=torch.full((count, 3), 0.03 * radius), opacity=0.95)


def enclosed(mesh: Mesh) -> float:
    """Volume, positive where faces are counter-clockwise seen from outside."""
    a, b, c = mesh.vertices[mesh.faces].double().unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


def test_a_shell_of_gaussians_becomes_one_closed_surface() -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    radius, centre = 2.0, torch.tensor([5.0, -3.0, 1.0])
    speck = replace(random_gaussians(4, torch.Generator().manual_seed(0), 0.02), opacity_logits=torch.full((4,), 3.0))
    speck = replace(speck, means=speck.means + torch.tensor([2.6, 0.0, 0.0]))
    gaussians = Gaussians.cat([ball(radius), speck])
    mesh = extract_surface(replace(gaussians, means=gaussians.means + centre), resolution=40)
    distance = (mesh.vertices - centre).norm(dim=-1)
    cell = 2 * radius / 40
    # No inner wall, and at most two standard deviations outside; the speck is left out.
    assert radius - cell < float(distance.min())
    assert float(distance.max()) < radius + cell + 2 * 0.03 * radius
    assert enclosed(replace(mesh, vertices=mesh.vertices - centre)) == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.2)
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]).sort(-1).values
    assert (edges.unique(dim=0, return_counts=True)[1] == 2).all()
    assert mesh.vertex_colors is not None
    height = mesh.vertices[:, 1] - centre[1]
    assert (mesh.vertex_colors[height > 0.3, 0] > 0.9).all()
    assert (mesh.vertex_colors[height < -0.3, 2] > 0.9).all()


def test_the_mesh_of_a_moment_lies_where_the_motion_takes_it(meshes: list[Mesh]) -> None:
    scene = sample_scene(600, 5)
    assert scene.surface is not None
    lit = replace(scene, surface=replace(scene.surface, normals=vertex_normals(scene.surface)))
    moved = surface_at(lit, 0.5)
    torch.testing.assert_close(moved.vertices, carry(scene, scene.surface.vertices, torch.tensor([0.5]))[0])
    assert float((moved.vertices - scene.surface.vertices).norm(dim=-1).max()) > 0.05
    assert moved.normals is not None and lit.surface is not None and lit.surface.normals is not None
    assert float((moved.normals - lit.surface.normals).norm(dim=-1).max()) > 0.05
    torch.testing.assert_close(moved.normals, vertex_normals(scene.surface, moved.vertices))
    assert surface_at(scene, 0.5).normals is None and torch.equal(moved.faces, scene.surface.faces)


def test_what_has_no_surface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "skimage.measure", None)
        with pytest.raises(InputError, match="pip install scikit-image"):
            scene_surface(Scene4D(ball(1.0)))
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    faint = replace(ball(1.0, 30), log_scales=torch.full((30, 3), -9.0))
    with pytest.raises(InputError, match="too thin or too transparent"):
        scene_surface(Scene4D(faint), resolution=24)


def test_a_mesh_without_colours_takes_the_fitted_ones(meshes: list[Mesh]) -> None:
    mesh = meshes[0]
    gaussians, _ = gaussians_on_mesh(mesh, 4000)
    bare = replace(mesh, uvs=None, textures=(), face_texture=None)
    found = scene_surface(Scene4D(gaussians, surface=bare))
    assert found.vertex_colors is not None
    assert torch.equal(found.vertex_colors, vertex_colors(gaussians, bare.vertices))
    near = torch.cdist(mesh.vertices, gaussians.means).argmin(1)
    assert (found.vertex_colors[:, :3] - gaussians.colors[near]).abs().mean() < 0.05
    assert scene_surface(Scene4D(gaussians, surface=mesh)) is mesh


@pytest.fixture(scope="module")
def moving() -> tuple[Scene4D, torch.Tensor]:
    """The sample with its true motion, and where its mesh's vertices truly go."""
    scene = sample_scene(4000, 6)
    assert scene.field is not None
    scene.field.requires_grad_(False)
    return scene, torch.stack([mesh.vertices for mesh in sample_meshes(6)])


def box(centre: tuple[float, float, float], half: tuple[float, float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    corners = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = torch.tensor([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    return corners * torch.tensor(half) + torch.tensor(centre), faces


def test_a_wire_is_as_thin_as_it_is_and_whole() -> None:
    """A body of 0.6 with an aerial a hundredth as thick, on which discs as wide as those of the body would be balls."""
    (body, faces), (aerial, others) = box((0, -0.2, 0), (0.3, 0.2, 0.2)), box((0, 0.25, 0), (0.004, 0.25, 0.004))
    made, on = gaussians_on_mesh(Mesh(torch.cat([body, aerial]), torch.cat([faces, others + len(body)])), 1500)
    scales, rod = made.log_scales.exp(), on >= len(faces)
    across = scales.sort(-1).values[:, 1]  # of the three, the middle one
    assert float(across[~rod].median()) > 0.015 > 0.006 > float(across[rod].median())
    # Of what is flat, discs are as they were.
    assert int((scales[~rod, 0] != scales[~rod, 1]).sum()) <= 0.01 * len(made)
    for azimuth in (0.0, 45.0, 90.0):
        alpha = rasterize(made, orbit(azimuth, 0.0, 2.0, 40.0, 256, 256)).alpha.reshape(256, 256)
        above = alpha[45:110]  # of the aerial, 1.4 pixels wide before a pixel's own blur; as discs it was 9
        assert 1.4 < float(above.sum(1).mean()) < 4.5
        assert float(above.amax(1).min()) > 0.8


def test_vertices_follow_the_true_motion(moving: tuple[Scene4D, torch.Tensor]) -> None:
    scene, true = moving
    travel = float((true - true[0]).norm(dim=-1).mean())
    # As many tools leave it: the rotations never move.
    frames = FrameField.of([replace(moved, quats=scene.gaussians.quats) for moved in scene.bake()], loop=True)
    ways = {"control nodes": scene, "without the mesh": replace(scene, surface=None), "frames": replace(scene, field=frames)}
    for name, way in ways.items():
        calls: list[tuple[int, int]] = []
        found = carry(way, true[0], way.taus, progress=lambda step, total: calls.append((step, total)))  # noqa: B023
        assert calls[-1] == (6, 6)
        assert torch.allclose(found[0], true[0], atol=1e-5), name
        error = (found - true).norm(dim=-1)
        assert float(error.mean()) < 0.06 * travel, name
        assert float(error.flatten().quantile(0.95)) < 0.4 * travel, name


@pytest.mark.parametrize("name", ["hexplane", "mlp"])
def test_fields_of_space_are_asked_where_the_points_are(name: str) -> None:
    torch.manual_seed(0)
    gaussians = random_gaussians(30, torch.Generator().manual_seed(0))
    field = HexPlane(resolution=4, time_resolution=4, channels=4, width=8) if name == "hexplane" else DeformationMLP(3, 16, 1)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    scene = Scene4D(gaussians, field, frames=3)
    points = random_gaussians(7, torch.Generator().manual_seed(1)).means
    moved = scene.at(scene.taus).means
    assert torch.allclose(carry(scene, gaussians.means, scene.taus), moved, atol=1e-6)
    assert (carry(scene, points, scene.taus)[1:] - points).abs().max() > 1e-3
    assert torch.allclose(carry(scene, points, scene.taus[1:2])[0], carry(scene, points, scene.taus)[1], atol=1e-6)


def test_control_nodes_carry_points_as_their_own_gaussians() -> None:
    gaussians = random_gaussians(200, torch.Generator().manual_seed(0))
    field = ControlNodes.on_surface(gaussians, 4, nodes=20)
    with torch.no_grad():
        field.translations.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        field.rotations.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
    scene = Scene4D(gaussians, field, frames=4)
    taus = torch.tensor([0.0, 0.4, 1.0])
    assert torch.allclose(carry(scene, gaussians.means, taus), scene.at(taus).means, atol=1e-5)


def test_parts_that_touch_go_their_own_ways() -> None:
    """Two plates side by side, one of which slides away along the other: no vertex of either is drawn along."""
    line = torch.linspace(-0.5, 0.5, 30)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    left, right = (torch.stack([torch.full_like(grid[:, 0], x), grid[:, 0], grid[:, 1]], -1) for x in (-0.02, 0.02))
    gaussians = from_points(torch.cat([left, right]), torch.full((1800, 3), 0.5), opacity=0.9)
    slid = replace(gaussians, means=torch.cat([left, right + torch.tensor([0.0, 0.4, 0.0])]))
    scene = Scene4D(gaussians, FrameField.of([gaussians, slid]), frames=2)
    points = torch.cat([left, right])[::7] + torch.tensor([0.0, 0.006, 0.004])
    moved = carry(scene, points, torch.tensor([1.0]))[0] - points
    true = torch.where(points[:, :1] > 0, torch.tensor([0.0, 0.4, 0.0]), torch.zeros(3))
    assert float((moved - true).norm(dim=-1).max()) < 1e-3


def test_a_still_scene_and_one_of_unrelated_frames() -> None:
    gaussians = random_gaussians(20, torch.Generator().manual_seed(0))
    points = torch.rand(5, 3)
    assert torch.equal(carry(Scene4D(gaussians), points, torch.tensor([0.0, 1.0])), points.expand(2, -1, -1))
    steps = FrameField.of([gaussians, random_gaussians(20, torch.Generator().manual_seed(1))], interpolation="hold")
    with pytest.raises(InputError, match="export it as splats"):
        carry(Scene4D(gaussians, steps, frames=2), points, torch.tensor([0.0]))


def test_normals_of_a_sphere_point_outwards_across_seams(meshes: list[Mesh]) -> None:
    head = meshes[0]
    normals = vertex_normals(head)
    assert torch.allclose(normals.norm(dim=-1)[head.faces.unique()], torch.ones(1), atol=1e-5)
    order = torch.unique(head.vertices, dim=0, return_inverse=True)[1]
    first = torch.zeros(int(order.max()) + 1, 3).index_copy_(0, order, normals)
    assert torch.equal(first[order], normals)  # vertices in one place agree
    assert float((normals[head.faces].mean(1) * head.face_normals()).sum(-1).mean()) > 0.9
