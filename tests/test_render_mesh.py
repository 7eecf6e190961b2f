"""The mesh renderer against closed forms and against a second renderer: a float64 ray caster that tries every face."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import kernel_shim
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor

from anchor4d.core.cameras import Cameras, orbit
from anchor4d.core.files import InputError
from anchor4d.core.io.meshes import load_mesh
from anchor4d.core.mesh import Mesh, linear_to_srgb
from anchor4d.core.render import mesh as core_render
from anchor4d.core.render import numba_support
from anchor4d.core.render.mesh import MeshRender, resolve_backend
from anchor4d.core.render.nvrtc import compiler, mesh_backend

numba_only = pytest.mark.skipif(resolve_backend("auto") != "numba", reason="no numba")
card_only = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card")]
BACKENDS = [
    "torch",
    pytest.param("numba", marks=numba_only),
    pytest.param("nvrtc", marks=card_only),
    # The kernels of the graphics card, compiled for the CPU.
    pytest.param("shim", marks=kernel_shim.needs_compiler),
]


def render_mesh(mesh: Mesh, cameras: Cameras, *args: Any, backend: str = "auto", **options: Any) -> MeshRender:
    """The renderer under test, on the device of the backend; the pictures on the CPU."""
    if backend == "shim":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiler, "load", kernel_shim.load)
            patch.setattr(mesh_backend, "why_not", lambda device: "")
            return core_render.render_mesh(mesh, cameras, *args, backend="nvrtc", **options)
    if backend == "nvrtc":
        mesh, cameras = mesh.to("cuda"), cameras.to("cuda")
        args = tuple(x.cuda() if isinstance(x, Tensor) else x for x in args)
    found = core_render.render_mesh(mesh, cameras, *args, backend=backend, **options)
    return MeshRender(found.color.cpu(), found.alpha.cpu(), found.depth.cpu(), found.normal.cpu())


def soup(faces: int, seed: int, spread: float = 0.4) -> Mesh:
    """Random triangles with random uvs reaching beyond [0, 1], two small random textures, vertex colours and factors."""
    g = torch.Generator().manual_seed(seed)
    centres = (torch.rand(faces, 1, 3, generator=g) - 0.5) * 0.8
    vertices = (centres + (torch.rand(faces, 3, 3, generator=g) - 0.5) * spread).reshape(-1, 3)
    textures = tuple(torch.rand(h, w, 4, generator=g) for h, w in ((7, 5), (4, 8)))
    return Mesh(
        vertices,
        torch.arange(3 * faces).reshape(-1, 3),
        normals=torch.nn.functional.normalize(torch.randn(3 * faces, 3, generator=g), dim=-1),
        uvs=torch.rand(3 * faces, 2, generator=g) * 3 - 1,
        vertex_colors=torch.rand(3 * faces, 4, generator=g),
        textures=textures,
        face_texture=torch.randint(-1, 2, (faces,), generator=g),
        face_color=torch.rand(faces, 4, generator=g) * 0.5 + 0.5,
        face_alpha_cutoff=torch.where(torch.rand(faces, generator=g) < 0.3, 0.15, 0.0),
    )


def decode(x: np.ndarray) -> np.ndarray:
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def encode(x: np.ndarray) -> np.ndarray:
    return np.where(x <= 0.0031308, x * 12.92, 1.055 * np.maximum(x, 1e-9) ** (1 / 2.4) - 0.055)


def bilinear(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    height, width = texture.shape[:2]
    total = np.zeros(4)
    x, y = uv[0] * width - 0.5, uv[1] * height - 0.5
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = math.floor(x) + dx, math.floor(y) + dy
            total += texture[row % height, column % width] * (1 - abs(x - column)) * (1 - abs(y - row))
    return total


def cast(mesh: Mesh, cameras: Cameras, samples: int, near: float = 0.01) -> tuple[np.ndarray, ...]:
    """Colour, alpha, depth, normal as MeshRender has them, and each sample's face (C, H s, W s), by Moller and Trumbore."""
    v = mesh.vertices.double().numpy()[mesh.faces.numpy()]
    linear = [np.concatenate([decode(t.double().numpy()[..., :3]), t.double().numpy()[..., 3:]], -1) for t in mesh.textures]
    factor = mesh.face_color.double().numpy()
    out = []
    for pose, K in zip(cameras.world_to_camera.double().numpy(), cameras.K.double().numpy()):
        rotation, eye = pose[:3, :3], -pose[:3, :3].T @ pose[:3, 3]
        size = (cameras.height * samples, cameras.width * samples)
        light, count, depth = np.zeros((*size, 3)), np.zeros(size), np.zeros(size)
        normal, face = np.zeros((*size, 3)), np.full(size, -1)
        for row in range(size[0]):
            for column in range(size[1]):
                p = np.array([(column + 0.5) / samples, (row + 0.5) / samples, 1])
                ray = rotation.T @ np.linalg.solve(K, p)
                e1, e2 = v[:, 1] - v[:, 0], v[:, 2] - v[:, 0]
                h = np.cross(ray, e2)
                a = (e1 * h).sum(-1)
                s = eye - v[:, 0]
                u = (s * h).sum(-1) / a
                q = np.cross(s, e1)
                w = (q @ ray) / a
                t = (e2 * q).sum(-1) / a
                hits = np.nonzero((u >= 0) & (w >= 0) & (u + w <= 1) & (t > near))[0]
                for f in hits[np.argsort(t[hits])]:
                    b = np.array([1 - u[f] - w[f], u[f], w[f]])
                    corners = mesh.faces[f].numpy()
                    color = np.concatenate([decode(factor[f, :3]), factor[f, 3:]])
                    if mesh.vertex_colors is not None:
                        own = mesh.vertex_colors[corners].double().numpy()
                        color = color * (b @ np.concatenate([decode(own[:, :3]), own[:, 3:]], -1))
                    if mesh.uvs is not None and mesh.face_texture[f] >= 0:
                        color = color * bilinear(linear[int(mesh.face_texture[f])], b @ mesh.uvs[corners].double().numpy())
                    if color[3] < mesh.face_alpha_cutoff[f]:
                        continue
                    n = np.cross(e1[f], e2[f])
                    n = -n if n @ ray > 0 else n
                    if mesh.normals is not None:
                        smooth = b @ mesh.normals[corners].double().numpy()
                        n = -smooth if smooth @ n < 0 else smooth
                    light[row, column], count[row, column], depth[row, column] = color[:3], 1, t[f]
                    normal[row, column], face[row, column] = n / np.linalg.norm(n), f
                    break

        def mean(x: np.ndarray) -> np.ndarray:
            blocks = x.reshape(cameras.height, samples, cameras.width, samples, -1)
            return blocks.mean((1, 3)).squeeze(-1) if x.ndim == 2 else blocks.mean((1, 3))

        alpha = mean(count)
        covered = np.maximum(alpha, 1e-9)
        mean_normal = mean(normal)
        mean_normal /= np.maximum(np.linalg.norm(mean_normal, axis=-1, keepdims=True), 1e-12)
        color = encode(mean(light) / covered[..., None]) * alpha[..., None]
        out.append((color, alpha, mean(depth) / covered, mean_normal, face))
    return tuple(np.stack(x) for x in zip(*out))


def compare(found: MeshRender, expected: tuple[np.ndarray, ...], tolerance: float) -> None:
    color, alpha, depth, normal = expected[:4]
    np.testing.assert_allclose(found.alpha, alpha, atol=1e-6)
    np.testing.assert_allclose(found.depth, depth, atol=tolerance)
    np.testing.assert_allclose(found.color, color, atol=tolerance)
    np.testing.assert_allclose(found.normal, normal, atol=10 * tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("supersample", [1, 2])
def test_agrees_with_a_brute_force_ray_caster(backend: str, supersample: int) -> None:
    mesh, cameras = soup(60, 0), orbit([20.0, 200.0], [10.0, -40.0], 1.6, 40.0, 24, 20, cx=10.7, cy=11.3)
    found = render_mesh(mesh, cameras, supersample=supersample, mipmaps=False, backend=backend)
    expected = cast(mesh, cameras, supersample)
    assert 0.2 < expected[1].mean() < 0.95
    compare(found, expected, 2e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_right_face_is_in_front(backend: str) -> None:
    mesh, cameras = soup(80, 3), orbit([70.0], 5.0, 1.5, 40.0, 32, 32)
    identity = (torch.arange(80).float()[:, None] + 0.5) / 80
    plain = Mesh(mesh.vertices, mesh.faces, face_color=identity.expand(-1, 4))
    color = render_mesh(plain, cameras, supersample=1, backend=backend)
    face = cast(plain, cameras, 1)[4]
    seen = torch.where(color.alpha > 0, (color.color[..., 0] * 80).floor(), -1.0)
    assert len(np.unique(face)) > 20
    np.testing.assert_array_equal(seen.numpy(), face)


@pytest.mark.parametrize("backend", BACKENDS)
def test_faces_crossing_the_near_plane_and_behind_the_camera(backend: str) -> None:
    # The camera stands inside: many faces cross its plane, some with one corner in front, some with two.
    mesh, cameras = soup(40, 5, spread=1.6), orbit([0.0, 90.0], 0.0, 0.15, 70.0, 20, 20)
    z = (mesh.vertices @ cameras.world_to_camera[0, :3, :3].T + cameras.world_to_camera[0, :3, 3])[:, 2]
    front = (z[mesh.faces] > 0.05).sum(-1)
    assert {1, 2} <= set(front.tolist())
    found = render_mesh(mesh, cameras, supersample=1, mipmaps=False, near=0.05, backend=backend)
    compare(found, cast(mesh, cameras, 1, near=0.05), 5e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sphere_against_its_closed_form(backend: str) -> None:
    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.4)
    vertices = torch.from_numpy(np.array(ball.vertices)).float()
    mesh = Mesh(vertices, torch.from_numpy(np.array(ball.faces)), normals=torch.nn.functional.normalize(vertices, dim=-1))
    distance, fovy, size = 1.5, 45.0, 96
    cameras = orbit([0.0, 130.0], [0.0, 35.0], distance, fovy, size, size)
    found = render_mesh(mesh, cameras, supersample=3, backend=backend)
    focal = size / 2 / math.tan(math.radians(fovy) / 2)
    # A centred sphere shows as a disc of radius f r / sqrt(d^2 - r^2).
    radius = focal * 0.4 / math.sqrt(distance**2 - 0.16)
    assert found.alpha.sum((1, 2)).tolist() == pytest.approx([math.pi * radius**2] * 2, rel=2e-3)
    y, x = torch.meshgrid(torch.arange(size) + 0.5 - size / 2, torch.arange(size) + 0.5 - size / 2, indexing="ij")
    inside = x.hypot(y) < radius - 3
    rays = torch.stack([x / focal, y / focal, torch.ones_like(x)], -1)
    b, a = distance, (rays**2).sum(-1)  # |z ray - (0, 0, d)|^2 = r^2
    depth = (b - (b**2 - a * (distance**2 - 0.16)).clamp_min(0).sqrt()) / a
    points = rays * depth[..., None] - torch.tensor([0, 0, distance])
    for camera in range(2):
        assert (found.depth[camera] - depth)[inside].abs().max() < 3e-3
        assert (found.depth[camera] - depth)[inside].abs().mean() < 3e-4
        normals = torch.nn.functional.normalize(points, dim=-1) @ cameras.world_to_camera[camera, :3, :3]
        assert (normals * found.normal[camera]).sum(-1)[inside].min() > 0.999
    assert (found.depth[found.alpha == 0] == 0).all()
    assert (found.normal[found.alpha == 0] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_backends_agree_on_a_textured_mesh_with_levels(backend: str) -> None:
    mesh, cameras = soup(300, 7, spread=0.15), orbit([0.0, 100.0, 250.0], 20.0, 1.5, 45.0, 48, 40)
    generator = torch.Generator().manual_seed(1)
    mesh = replace(mesh, textures=(torch.rand(128, 96, 4, generator=generator), torch.rand(33, 70, 4, generator=generator)))
    background = torch.tensor([0.2, 0.5, 0.9])
    a, b = (render_mesh(mesh, cameras, background, backend=name) for name in ("torch", backend))
    np.testing.assert_allclose(a.alpha, b.alpha, atol=1e-6)
    np.testing.assert_allclose(a.depth, b.depth, atol=1e-4)
    # A sample whose texel count lies at a power of four may take either level.
    assert ((a.color - b.color).abs() > 1e-3).float().mean() < 1e-3
    assert ((a.normal - b.normal).abs() > 1e-3).float().mean() < 1e-3
    again = render_mesh(mesh, cameras, background, backend=backend)
    assert all(torch.equal(getattr(b, name), getattr(again, name)) for name in ("color", "alpha", "depth", "normal"))


def box(centre: tuple[float, float, float], size: float, color: tuple[float, float, float]) -> Mesh:
    shape = trimesh.creation.box(extents=[size] * 3)
    vertices = torch.from_numpy(np.array(shape.vertices)).float() + torch.tensor(centre)
    faces = torch.from_numpy(np.array(shape.faces))
    return Mesh(vertices, faces, face_color=torch.tensor([*color, 1.0]).expand(len(faces), 4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_camera_conventions(backend: str) -> None:
    def place(centre: tuple[float, float, float], azimuth: float, elevation: float = 0.0) -> tuple[float, float]:
        """Row and column of a red box's picture, 0 to 1."""
        found = render_mesh(box(centre, 0.1, (1, 0, 0)), orbit(azimuth, elevation, 2.0, 40.0, 64, 64), backend=backend)
        assert found.color[0, ..., 0].sum() > 4
        assert found.color[0, ..., 1:].sum() == 0
        rows, columns = (found.alpha[0] > 0).nonzero().float().mean(0).tolist()
        return (rows + 0.5) / 64, (columns + 0.5) / 64

    assert place((0.4, 0, 0), 0)[1] > 0.6  # +X is on the right at the front
    assert place((0, 0.4, 0), 0)[0] < 0.4  # +Y is up
    assert place((0, 0, -0.4), 90)[1] > 0.6  # the camera at azimuth 90 stands on +X: -Z is on its right
    assert place((0.4, 0, 0), 90) == pytest.approx((0.5, 0.5), abs=0.02)
    assert place((0, 0, 0.4), 0, 40)[0] > 0.6  # seen from above, what is nearer is lower
    near = render_mesh(box((0.4, 0, 0), 0.1, (1, 0, 0)), orbit(90.0, 0.0, 2.0, 40.0, 64, 64), backend=backend)
    assert near.depth[0, 32, 32] == pytest.approx(1.55, abs=1e-3)
    assert near.normal[0, 32, 32].tolist() == pytest.approx([1, 0, 0], abs=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_background_and_premultiplied_colour(backend: str) -> None:
    mesh, cameras = box((0, 0, 0), 0.5, (0.2, 0.6, 0.4)), orbit([15.0, 50.0], 20.0, 2.0, 40.0, 33, 31)
    plain = render_mesh(mesh, cameras, backend=backend)
    backgrounds = torch.tensor([[1.0, 1.0, 1.0], [0.1, 0.0, 0.7]])
    over = render_mesh(mesh, cameras, backgrounds, backend=backend)
    expected = plain.color + (1 - plain.alpha[..., None]) * backgrounds[:, None, None]
    torch.testing.assert_close(over.color, expected, atol=1e-6, rtol=0)
    # Edges carry fractions of a quarter, and the box's colour throughout.
    assert set(plain.alpha.unique().tolist()) == {0.0, 0.25, 0.5, 0.75, 1.0}
    straight = plain.color[plain.alpha > 0] / plain.alpha[plain.alpha > 0][:, None]
    torch.testing.assert_close(straight, torch.tensor([0.2, 0.6, 0.4]).expand_as(straight), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_sides_and_nothing_in_view(backend: str) -> None:
    quad = Mesh(torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]), torch.tensor([[0, 1, 2], [0, 2, 3]]))
    found = render_mesh(quad, orbit([0.0, 180.0], 0.0, 2.0, 30.0, 8, 8), backend=backend)
    assert (found.alpha == 1).all()
    assert found.normal[0, 4, 4].tolist() == pytest.approx([0, 0, 1], abs=1e-6)
    assert found.normal[1, 4, 4].tolist() == pytest.approx([0, 0, -1], abs=1e-6)
    away = orbit(0.0, 0.0, 2.0, 30.0, 8, 8)
    away.K[:, 0, 2] += 1000
    empty = render_mesh(quad, away, torch.ones(3), backend=backend)
    assert (empty.alpha == 0).all()
    assert (empty.color == 1).all()
    assert (empty.depth == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_alpha_mask_cuts_holes(backend: str) -> None:
    texture = torch.ones(16, 16, 4)
    texture[..., :3] = 0.0
    texture[:, 8:, 3] = 0.0  # the right half is transparent
    corners = torch.tensor([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]])
    uvs = torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    behind = Mesh(torch.cat([corners, corners - torch.tensor([0, 0, 0.3])]), torch.cat([faces, faces + 4]))
    mesh = replace(
        behind,
        uvs=torch.cat([uvs, uvs]),
        textures=(texture,),
        face_texture=torch.tensor([0, 0, -1, -1]),
        face_color=torch.tensor([[1.0, 1, 1, 1]] * 2 + [[1.0, 0, 0, 1]] * 2),
        face_alpha_cutoff=torch.tensor([0.5, 0.5, 0, 0]),
    )
    found = render_mesh(mesh, orbit(0.0, 0.0, 2.0, 40.0, 32, 32), backend=backend)
    assert found.color[0, 16, 10].tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert found.color[0, 16, 20].tolist() == pytest.approx([1, 0, 0], abs=1e-5)
    assert found.depth[0, 16, 20] == pytest.approx(2.3, abs=1e-3)
    opaque = render_mesh(replace(mesh, face_alpha_cutoff=torch.zeros(4)), orbit(0.0, 0.0, 2.0, 40.0, 32, 32), backend=backend)
    assert opaque.depth[0, 16, 20] == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fine_pattern_seen_from_afar_is_its_mean_light(backend: str) -> None:
    texture = torch.ones(256, 256, 4)
    texture[..., :3] = ((torch.arange(256)[:, None] + torch.arange(256)) % 2)[..., None].float()
    quad = Mesh(
        torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]),
        torch.tensor([[0, 1, 2], [0, 2, 3]]),
        uvs=torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 0]]),
        textures=(texture,),
    )
    cameras = orbit(0.0, 0.0, 4.0, 2 * math.degrees(math.atan(0.25)), 20, 20)  # 12.8 texels a pixel
    found = render_mesh(quad, cameras, backend=backend)
    grey = float(linear_to_srgb(torch.tensor(0.5)))
    torch.testing.assert_close(found.color, torch.full_like(found.color, grey), atol=1e-3, rtol=0)
    assert render_mesh(quad, cameras, mipmaps=False, supersample=1, backend=backend).color.std() > 0.05


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_no_cracks_between_neighbours(backend: str) -> None:
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.5)
    vertices = torch.from_numpy(np.array(ball.vertices)).float()
    front = vertices[torch.from_numpy(np.array(ball.faces))].mean(1)[:, 2] > -0.1
    mesh = Mesh(vertices, torch.from_numpy(np.array(ball.faces))[front])
    found = render_mesh(mesh, orbit(0.0, 0.0, 2.0, 30.0, 300, 300), backend=backend)
    covered = found.alpha[0, 60:240, 60:240]
    assert (covered == 1).all()


def test_refusals() -> None:
    mesh, cameras = soup(3, 0), orbit([0.0], width=8, height=8)
    with pytest.raises(InputError, match="unknown, choose"):
        render_mesh(mesh, cameras, backend="opengl")
    with pytest.raises(ValueError, match="one batch dimension"):
        render_mesh(mesh, cameras.reshape(1, 1))
    with pytest.raises(ValueError, match="supersample"):
        render_mesh(mesh, cameras, supersample=0)
    with pytest.raises(ValueError, match="finite"):
        render_mesh(replace(mesh, vertices=mesh.vertices * torch.nan), cameras)


def test_a_numba_that_cannot_be_imported_only_switches_itself_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels_that_exit.py").write_text("raise SystemExit('numpy is too new')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "numpy is too new" in numba_support.load("kernels_that_exit")
    monkeypatch.setattr(numba_support, "load", lambda module: "numba is not installed")
    mesh, cameras = soup(3, 0), orbit([0.0], width=8, height=8)
    assert resolve_backend("auto") == "torch"
    assert render_mesh(mesh, cameras).color.shape == (1, 8, 8, 3)
    with pytest.raises(InputError, match="numba is not installed"):
        render_mesh(mesh, cameras, backend="numba")


BENCH = os.environ.get("ANCHOR4D_BENCH", "")


@pytest.mark.skipif(not BENCH, reason="set ANCHOR4D_BENCH to a folder of benchmark cases")
def test_equals_the_benchmark_pictures() -> None:
    """The cases' pictures come from another renderer, with four samples a pixel and textures hit at points."""
    for case in sorted(Path(BENCH).glob("*/case.json")):
        camera = json.loads(case.read_text())["camera"]
        views = {0: case.parent / "front/000.png", **{a: case.parent / f"views/{a}/000.png" for a in (-75, 15, 105, 195)}}
        cameras = orbit(list(views), 0.0, camera["distance"], camera["fovy_degrees"])
        found = render_mesh(load_mesh(case.parent / "mesh.glb"), cameras, mipmaps=False)
        for index, path in enumerate(views.values()):
            truth = torch.from_numpy(np.array(Image.open(path))).float() / 255
            inside = (truth[..., 3] == 1) & (found.alpha[index] == 1)
            assert ((found.alpha[index] - truth[..., 3]).abs() > 0.01).sum() <= 1, path
            error = (found.color[index] - truth[..., :3])[inside].square().mean()
            assert -10 * math.log10(error) > 50, path


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card")
def test_a_card_draws_meshes_of_the_cpu() -> None:
    mesh, cameras = soup(40, 3), orbit([20.0, 200.0], [10.0, -40.0], 1.6, 40.0, 24, 20)
    expected = core_render.render_mesh(mesh, cameras, torch.ones(3), backend="torch")
    with core_render.drawing_on("cuda"):
        found = core_render.render_mesh(mesh, cameras, torch.ones(3))
    assert found.color.device.type == "cpu"
    assert float((found.color - expected.color).abs().mean()) < 1e-4
