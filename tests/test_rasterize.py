"""One conformance suite for every backend of the Gaussian rasteriser that this machine has."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import kernel_shim
import pytest
import torch
from torch import Tensor

from anchor4d.core.cameras import Cameras, intrinsics, orbit, orbit_poses
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import SH_C0, Gaussians, from_points
from anchor4d.core.render import Render, ScreenStatistics, available_backends, rasterize, resolve_backend
from anchor4d.core.render.nvrtc import backend as nvrtc_backend
from anchor4d.core.render.nvrtc import compiler

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SETUPS = [(backend, device, torch.float32) for device in DEVICES for backend in available_backends(device)]
SETUPS += [("torch", device, torch.float64) for device in DEVICES]
MARKS = {"cuda": pytest.mark.gpu, "cpu": ()}
PARAMETERS = [pytest.param((b, d, t), id=f"{b}-{d}-{str(t)[6:]}", marks=MARKS[d]) for b, d, t in SETUPS]
#: The kernels of the graphics card, compiled for the CPU.
SHIM = pytest.param(("nvrtc", "cpu", torch.float32), id="nvrtc-shim-float32", marks=kernel_shim.needs_compiler)
every_backend = pytest.mark.parametrize("setup", [*PARAMETERS, SHIM])
NAMES = ("means", "quats", "log_scales", "opacity_logits", "sh")


@pytest.fixture(autouse=True)
def _shim(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels run on the CPU where a test asks for them there."""
    if "setup" in request.fixturenames and request.getfixturevalue("setup")[:2] == ("nvrtc", "cpu"):
        monkeypatch.setattr(compiler, "load", kernel_shim.load)
        monkeypatch.setattr(nvrtc_backend, "available", lambda device: True)


def random_scene(count: int = 70, seed: int = 0) -> Gaussians:
    """Anisotropic Gaussians around the origin, from nearly clear to clamped at 0.999, float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Gaussians(
        means=0.4 * normal(count, 3),
        quats=normal(count, 4),
        log_scales=-2.8 + 0.7 * normal(count, 3),
        opacity_logits=2.5 * normal(count),
        sh=1.2 * normal(count, 1, 3),
    )


def uneven_cameras() -> Cameras:
    """Three views of 45 x 38 pixels, which no tile size divides; the last has its principal point outside the picture."""
    poses = orbit_poses([10.0, 130.0, 250.0], [0.0, 30.0, -20.0], [1.6, 2.0, 1.8]).double()
    K = intrinsics(torch.tensor([50.0, 40.0, 60.0]), 45, 38).double()
    K[1, 0, 0] *= 1.3
    K[2, 0, 2], K[2, 1, 2] = -6.0, 25.0
    return Cameras(poses, K, 45, 38)


def close_cameras() -> Cameras:
    """A view from inside the object: Gaussians behind the camera, at the picture's rim and very near."""
    return Cameras(orbit_poses([0.0, 90.0], 0.0, 0.3).double(), intrinsics(torch.tensor([70.0, 70.0]), 45, 38).double(), 45, 38)


def with_huge_splat() -> Gaussians:
    """A needle and a disc that reach far beyond the picture, among others."""
    scene = random_scene(40, seed=3)
    scene.log_scales[0] = torch.tensor([1.5, -4.0, -4.0])
    scene.log_scales[1] = torch.tensor([2.0, 2.0, -3.0])
    scene.opacity_logits[:2] = torch.tensor([0.5, -2.0])
    return scene


CASES = {
    "plain": (random_scene, uneven_cameras),
    "close": (random_scene, close_cameras),
    "huge": (with_huge_splat, uneven_cameras),
    "single": (lambda: random_scene(1, seed=5), uneven_cameras),
}


def reference(scene: Gaussians, cameras: Cameras, shift: Tensor | None = None) -> Render:
    """The definition, without tiles: each Gaussian over the whole picture, nearest first. ``shift`` (V, N, 2) moves centres."""
    pictures = []
    for view in range(len(cameras)):
        pose, K = cameras.world_to_camera[view], cameras.K[view]
        rows, columns = torch.meshgrid(torch.arange(cameras.height) + 0.5, torch.arange(cameras.width) + 0.5, indexing="ij")
        through = torch.ones(cameras.height, cameras.width, dtype=torch.float64)
        going = torch.ones_like(through, dtype=torch.bool)
        color, depth = torch.zeros(*through.shape, 3, dtype=torch.float64), torch.zeros_like(through)
        local = scene.means @ pose[:3, :3].T + pose[:3, 3]
        for i in local[:, 2].argsort().tolist():
            x, y, z = local[i]
            if z < 0.01:
                continue
            quat = scene.quats[i] / scene.quats[i].norm()
            axes = torch.eye(3, dtype=torch.float64)
            turn = quat[1:].expand(3, 3)
            once = torch.linalg.cross(turn, axes)
            axes = axes + 2 * quat[0] * once + 2 * torch.linalg.cross(turn, once)
            covariance = axes.T @ torch.diag((2 * scene.log_scales[i]).exp()) @ axes
            u, v = x / z, y / z
            center = torch.stack([K[0, 0] * u + K[0, 2], K[1, 1] * v + K[1, 2]])
            if shift is not None:
                center = center + shift[view, i]
            u = u.clamp((-0.15 * cameras.width - K[0, 2]) / K[0, 0], (1.15 * cameras.width - K[0, 2]) / K[0, 0])
            v = v.clamp((-0.15 * cameras.height - K[1, 2]) / K[1, 1], (1.15 * cameras.height - K[1, 2]) / K[1, 1])
            zero = torch.zeros_like(z)
            lens = torch.stack([K[0, 0] / z, zero, -K[0, 0] * u / z, zero, K[1, 1] / z, -K[1, 1] * v / z]).reshape(2, 3)
            lens = lens @ pose[:3, :3]
            conic = torch.linalg.inv(lens @ covariance @ lens.T + 0.3 * torch.eye(2, dtype=torch.float64))
            delta = torch.stack([columns, rows], -1) - center
            alpha = (scene.opacities[i] * torch.exp(-0.5 * (delta @ conic * delta).sum(-1))).clamp_max(0.999)
            alpha = torch.where(alpha >= 1 / 255, alpha, 0)
            going = going & ((alpha == 0) | (through * (1 - alpha) > 1e-4))
            weight = torch.where(going, alpha * through, 0)
            color = color + weight[..., None] * (scene.sh[i, 0] * SH_C0 + 0.5).clamp_min(0)
            depth = depth + weight * z
            through = through - weight
        pictures.append((color, 1 - through, depth))
    return Render(*(torch.stack(x) for x in zip(*pictures, strict=True)))


def loss(render: Render) -> Tensor:
    """A fixed random weighting of every output pixel."""
    generator = torch.Generator().manual_seed(7)
    total = torch.zeros((), dtype=torch.float64)
    for picture in (render.color, render.alpha, render.depth):
        weights = torch.randn(picture.shape, generator=generator, dtype=torch.float64)
        total = total + (picture.cpu().double() * weights).sum()
    return total


def gradients(render: Render, scene: Gaussians) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss(render), [getattr(scene, n) for n in NAMES])
    return {n: g.cpu().double() for n, g in zip(NAMES, found, strict=True)}


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().cpu().double() - expected.detach()).norm() / expected.detach().norm().clamp_min(1e-12))


def prepared(scene: Gaussians, device: str, dtype: torch.dtype) -> Gaussians:
    return scene.map(lambda t: t.detach().to(device, dtype).requires_grad_())


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[Render, dict[str, Tensor], Tensor]]:
    """The definition's pictures, gradients and gradients by the projected centres of every case."""
    found = {}
    for name, (make_scene, make_cameras) in CASES.items():
        scene, cameras = prepared(make_scene(), "cpu", torch.float64), make_cameras()
        shift = torch.zeros(len(cameras), len(scene), 2, dtype=torch.float64, requires_grad=True)
        render = reference(scene, cameras, shift)
        (by_center,) = torch.autograd.grad(loss(render), shift, retain_graph=True)
        found[name] = render, gradients(render, scene), by_center
    return found


@every_backend
@pytest.mark.parametrize("case", CASES)
def test_pictures_and_gradients_match_the_definition(setup, case, expected):
    backend, device, dtype = setup
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    truth, slopes, by_center = expected[case]
    scene, cameras = prepared(CASES[case][0](), device, dtype), CASES[case][1]()
    statistics = ScreenStatistics()
    render = rasterize(scene, cameras, backend=backend, statistics=statistics)
    for name in ("color", "alpha", "depth"):
        assert getattr(render, name).dtype == dtype
        assert relative(getattr(render, name), getattr(truth, name)) < tolerance, name
    for name, slope in gradients(render, scene).items():
        assert relative(slope, slopes[name]) < tolerance, name
    assert statistics.gradient is not None
    assert statistics.visible is not None
    assert statistics.radii is not None
    half = torch.tensor([cameras.width / 2, cameras.height / 2], dtype=torch.float64)
    assert relative(statistics.gradient, (by_center * half).norm(dim=-1)) < tolerance
    drawn = by_center.abs().sum(-1) > 0
    assert (statistics.visible.cpu() | ~drawn).all()
    assert torch.equal(statistics.visible, statistics.radii > 0)


@every_backend
def test_batch_equals_items(setup):
    backend, device, dtype = setup
    cameras = uneven_cameras()
    items = [random_scene(60, seed) for seed in range(3)]
    batch = Gaussians(**{n: torch.stack([getattr(s, n) for s in items]) for n in NAMES})
    shared = replace(batch, sh=items[0].sh.expand_as(batch.sh), quats=items[0].quats.expand_as(batch.quats))
    own_cameras = Cameras(cameras.world_to_camera[:, None], cameras.K[:, None], cameras.width, cameras.height)
    for scenes, views in ((batch, cameras), (batch, own_cameras), (shared, own_cameras)):
        leaves = {n: getattr(scenes, n).to(device, dtype) for n in NAMES}
        roots = {n: (x[0] if x.stride(0) == 0 else x).clone().requires_grad_() for n, x in leaves.items()}
        joined = Gaussians(**{n: x.expand(3, *x.shape) if leaves[n].stride(0) == 0 else x * 1 for n, x in roots.items()})
        together = rasterize(joined, views, backend=backend)
        assert together.color.shape == (3, len(views) if views is cameras else 1, 38, 45, 3)
        found = torch.autograd.grad(loss(together), list(roots.values()))
        one_by_one = []
        for i in range(3):
            item = Gaussians(**{n: x if leaves[n].stride(0) == 0 else x[i] for n, x in roots.items()})
            one_by_one.append(rasterize(item, views if views is cameras else views[i], backend=backend))
        apart = Render(*(torch.stack([getattr(r, n) for r in one_by_one]) for n in ("color", "alpha", "depth")))
        for name in ("color", "alpha", "depth"):
            assert relative(getattr(together, name), getattr(apart, name).cpu().double()) < 1e-6, name
        for name, a, b in zip(roots, found, torch.autograd.grad(loss(apart), list(roots.values())), strict=True):
            assert relative(a, b.cpu().double()) < 2e-5, name


@every_backend
def test_one_set_from_cameras_of_two_dimensions(setup):
    backend, device, dtype = setup
    scene, cameras = random_scene(30).to(device, dtype), uneven_cameras()
    grid = Cameras(cameras.world_to_camera[None], cameras.K[None], cameras.width, cameras.height)
    flat, deep = rasterize(scene, cameras, backend=backend), rasterize(scene, grid, backend=backend)
    assert deep.color.shape == (1, 3, 38, 45, 3)
    assert torch.equal(deep.color[0], flat.color)


@every_backend
@pytest.mark.parametrize("what", ["behind", "aside", "clear", "none"])
def test_nothing_to_see(setup, what):
    backend, device, dtype = setup
    scene = random_scene(0 if what == "none" else 20)
    offset = {"behind": [0.0, 0.0, 50.0], "aside": [90.0, 0.0, 0.0]}.get(what, [0.0] * 3)
    scene = replace(scene, means=scene.means + torch.tensor(offset, dtype=torch.float64))
    if what == "clear":
        scene = replace(scene, opacity_logits=torch.full_like(scene.opacity_logits, -6.0))
    scene = prepared(scene, device, dtype)
    statistics = ScreenStatistics()
    render = rasterize(scene, orbit([0.0], 0.0, 2.0, 49.1, 40, 30), backend=backend, statistics=statistics)
    assert all((x == 0).all() for x in (render.color, render.alpha, render.depth))
    assert statistics.visible is not None
    assert not statistics.visible.any()
    if render.color.requires_grad:
        for name, slope in gradients(render, scene).items():
            assert (slope == 0).all(), name


@every_backend
def test_camera_conventions(setup):
    """A dot at P lands where the DreamGaussian family's cameras put it (their elevation is positive from below)."""
    backend, device, dtype = setup
    point = torch.tensor([[0.2, 0.3, 0.1]], dtype=dtype)
    dot = from_points(point, torch.ones_like(point), scales=torch.full_like(point, 1e-3), opacity=0.9).to(device)
    placed = ((0, 0, 1.5), (-30, 90, 2), (20, -45, 1.5))
    cameras = Cameras.cat([orbit(azimuth, -elevation, distance, 49.1, 512, 512) for elevation, azimuth, distance in placed])
    alpha = rasterize(dot, cameras, backend=backend).alpha.cpu().double()
    steps = torch.arange(512) + 0.5
    total = alpha.sum((1, 2))
    found = torch.stack([(alpha.sum(1) * steps).sum(1) / total, (alpha.sum(2) * steps).sum(1) / total], -1)
    golden = torch.tensor([[336.06, 135.90], [222.58, 202.59], [327.23, 169.46]], dtype=torch.float64)
    assert (found - golden).abs().max() < 0.05


@every_backend
def test_background_is_composited_behind(setup):
    backend, device, dtype = setup
    scene, cameras = random_scene().to(device, dtype), uneven_cameras()
    plain = rasterize(scene, cameras, backend=backend)
    tint = torch.tensor([0.2, 0.5, 0.9], device=device, dtype=dtype)
    over = rasterize(scene, cameras, tint, backend=backend)
    torch.testing.assert_close(over.color, plain.color + (1 - plain.alpha)[..., None] * tint)
    each = rasterize(scene, cameras, torch.stack([tint, tint * 0, tint]), backend=backend)
    torch.testing.assert_close(each.color[0], over.color[0])
    torch.testing.assert_close(each.color[1], plain.color[1])


@every_backend
def test_expected_depth_of_one_dot_is_its_distance(setup):
    backend, device, dtype = setup
    dot = from_points(torch.zeros(1, 3), torch.ones(1, 3), scales=torch.full((1, 3), 0.1), opacity=0.7).to(device, dtype)
    render = rasterize(dot, orbit([0.0], 0.0, 1.7, 49.1, 32, 32), backend=backend)
    seen = render.alpha > 0
    assert seen.any()
    assert not seen.all()
    torch.testing.assert_close(render.expected_depth[seen], torch.full_like(render.alpha[seen], 1.7))
    assert (render.expected_depth[~seen] == 0).all()


@every_backend
def test_same_bits_every_time(setup):
    backend, device, dtype = setup
    if (backend, device) in (("gsplat", "cuda"), ("torch", "cuda")):
        pytest.skip(f"{backend} adds up in no fixed order on the card")
    count = 150 if setup is SHIM.values[0] else 800
    cameras = orbit(torch.arange(3) * 120.0, 10.0, 2.0, 49.1, 96, 80)

    def run() -> list[Tensor]:
        scene = prepared(random_scene(count), device, dtype)
        statistics = ScreenStatistics()
        render = rasterize(scene, cameras, backend=backend, statistics=statistics)
        return [render.color, render.alpha, render.depth, *gradients(render, scene).values(), statistics.gradient]  # pyright: ignore

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif("numba" not in available_backends("cpu"), reason="numba is not installed")
def test_gradients_lie_where_pytorch_puts_memory():
    """At multiples of 64 bytes: MKL's products of what lies elsewhere have other last bits, from process to process."""
    for count in range(31, 61):
        scene, statistics = prepared(random_scene(count), "cpu", torch.float32), ScreenStatistics()
        render = rasterize(scene, orbit([0.0, 90.0], width=32, height=32), backend="numba", statistics=statistics)
        grads = torch.autograd.grad(render.color.sum(), (scene.means, scene.opacity_logits, scene.sh))
        assert statistics.gradient is not None
        assert not [x for x in (*grads, statistics.gradient) if x.untyped_storage().data_ptr() % 64], count


def test_gradients_are_those_of_finite_differences():
    scene, cameras = prepared(random_scene(12, seed=2), "cpu", torch.float64), uneven_cameras()
    slopes = gradients(rasterize(scene, cameras, backend="torch"), scene)
    generator = torch.Generator().manual_seed(1)
    for name in NAMES:
        direction = torch.randn(getattr(scene, name).shape, generator=generator, dtype=torch.float64)
        step, sides = 1e-7, []
        for sign in (1, -1):
            moved = replace(scene, **{name: getattr(scene, name).detach() + sign * step * direction})
            sides.append(float(loss(rasterize(moved, cameras, backend="torch")).detach()))
        numeric = (sides[0] - sides[1]) / (2 * step)
        assert math.isclose(numeric, float((slopes[name] * direction).sum()), rel_tol=2e-5), name


def test_cameras_are_differentiable_in_the_torch_backend():
    scene, cameras = random_scene(40, seed=4), uneven_cameras()
    poses = cameras.world_to_camera.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(rasterize(scene, replace(cameras, world_to_camera=poses))), poses)
    direction = torch.zeros_like(poses)
    direction[:, :3, 3] = torch.tensor([0.3, -0.5, 0.2], dtype=torch.float64)
    moved = [replace(cameras, world_to_camera=cameras.world_to_camera + s * 1e-7 * direction) for s in (1, -1)]
    values = [float(loss(rasterize(scene, x))) for x in moved]
    assert math.isclose((values[0] - values[1]) / 2e-7, float((slope * direction).sum()), rel_tol=2e-5)


def test_spherical_harmonics_are_orthonormal():
    """Colours seen from directions all around, one coefficient at a time: the basis is orthonormal on the sphere."""
    from anchor4d.core.render.rasterize import _colors

    count = 4000
    k = torch.arange(count, dtype=torch.float64) + 0.5
    elevation = torch.rad2deg(torch.asin(1 - 2 * k / count))
    azimuth = torch.rad2deg(k * math.pi * (1 + 5**0.5)) % 360
    cameras = orbit(azimuth.float(), elevation.float(), 2.0, width=8, height=8).to(torch.float64)
    sh = 0.1 * torch.eye(16, dtype=torch.float64)[:, :, None].expand(16, 16, 3)
    colors = _colors(sh[None], torch.zeros(1, 16, 3, dtype=torch.float64), cameras)
    basis = (colors[..., 0] - 0.5) / 0.1  # (V, 16)
    gram = 4 * math.pi * basis.T @ basis / count
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), atol=2e-3, rtol=0)
    front = _colors(sh[None], torch.zeros(1, 16, 3, dtype=torch.float64), orbit([0.0], width=8, height=8).to(torch.float64))
    # The ray runs along -Z: of degree 1 only the z term is left, negative.
    assert math.isclose(float((front[0, 2, 0] - 0.5) / 0.1), -math.sqrt(3 / (4 * math.pi)), rel_tol=1e-6)


@every_backend
def test_view_dependent_colours(setup):
    backend, device, dtype = setup
    scene, cameras = random_scene(40, seed=6), uneven_cameras()
    generator = torch.Generator().manual_seed(3)
    scene = replace(scene, sh=torch.cat([scene.sh, 0.3 * torch.randn(40, 15, 3, generator=generator, dtype=torch.float64)], 1))
    double = prepared(scene, "cpu", torch.float64)
    truth = rasterize(double, cameras, backend="torch")
    scene = prepared(scene, device, dtype)
    render = rasterize(scene, cameras, backend=backend)
    assert relative(render.color, truth.color) < 2e-5
    slopes = gradients(truth, double)
    for name, slope in gradients(render, scene).items():
        assert relative(slope, slopes[name]) < 2e-5, name
    for view in range(3):
        alone = rasterize(scene, cameras[view : view + 1], backend=backend)
        torch.testing.assert_close(alone.color[0], render.color[view])


@every_backend
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_input_is_named(setup, name, value):
    backend, device, dtype = setup
    if backend == "gsplat":
        pytest.skip("gsplat does not look at its input")
    scene = random_scene(30).to(device, dtype)
    getattr(scene, name).reshape(-1)[0] = value
    with pytest.raises(InputError, match=name if name != "sh" else "colors"):
        rasterize(scene, uneven_cameras(), backend=backend)


@every_backend
def test_a_gaussian_too_large_for_the_number_type_is_left_out(setup):
    backend, device, dtype = setup
    if backend == "gsplat":
        pytest.skip("gsplat does not look at its input")
    scene = random_scene(30)
    scene.log_scales[0] = 80.0 if dtype == torch.float32 else 600.0
    scene = prepared(scene, device, dtype)
    render = rasterize(scene, uneven_cameras(), backend=backend)
    others = rasterize(scene.detach().select(torch.arange(1, 30)), uneven_cameras(), backend=backend)
    torch.testing.assert_close(render.color, others.color)
    assert all(slope.isfinite().all() for slope in gradients(render, scene).values())


def test_bad_calls_say_what_to_do():
    scene, cameras = random_scene(5).to(torch.float32), orbit([0.0, 10.0], width=16, height=16)
    with pytest.raises(InputError, match="convert all attributes"):
        rasterize(replace(scene, sh=scene.sh.double()), cameras)
    with pytest.raises(InputError, match="expand it"):
        rasterize(replace(scene, means=scene.means[None]), cameras)
    with pytest.raises(InputError, match=r"index it with \[None\]"):
        rasterize(scene, cameras[0])
    with pytest.raises(InputError, match="fits no Gaussians"):
        rasterize(scene.map(lambda t: t.expand(3, *t.shape)), cameras.reshape(2, 1))
    with pytest.raises(InputError, match="degree 3"):
        rasterize(replace(scene, sh=torch.zeros(5, 25, 3)), cameras)
    with pytest.raises(InputError, match="unknown"):
        resolve_backend("vulkan")
    with pytest.raises(InputError, match="CUDA and ROCm devices only"):
        rasterize(scene, cameras, backend="nvrtc")


def test_looking_for_gsplat_neither_imports_nor_compiles_it():
    found = available_backends("cuda")
    assert found[-1] == "torch"
    if "gsplat" not in found:
        assert "gsplat" not in sys.modules
        with pytest.raises(InputError, match=r"CUDA|prebuilt"):
            resolve_backend("gsplat", "cuda")


def test_auto_takes_what_the_input_needs():
    assert resolve_backend("auto", "cpu") == available_backends("cpu")[0]
    if "numba" in available_backends("cpu"):
        with pytest.raises(InputError, match="float64"):
            rasterize(random_scene(5), uneven_cameras(), backend="numba")
    assert rasterize(random_scene(5), uneven_cameras()).color.dtype == torch.float64


def test_a_broken_numba_only_switches_the_backend_off(tmp_path):
    """numba raises SystemExit, among others, when numpy does not suit it."""
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise SystemExit('numpy is too new')\n")
    program = (
        "from anchor4d.core.render import available_backends, rasterize\n"
        "from anchor4d.core.gaussians import random_gaussians\n"
        "from anchor4d.core.cameras import orbit\n"
        "import torch\n"
        "assert available_backends('cpu') == ['torch']\n"
        "print(float(rasterize(random_gaussians(20, torch.Generator()), orbit([0.0], width=16, height=16)).alpha.sum()) > 0)\n"
    )
    import anchor4d

    package = Path(next(iter(anchor4d.__path__)))
    parents = [p for p in sys.path if (Path(p) / "anchor4d").exists()] or [str(package.parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *parents])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"
    assert "numpy is too new" in done.stderr


@pytest.mark.skipif("numba" not in available_backends("cpu"), reason="numba is not installed")
def test_threads_may_draw_at_once():
    scene, cameras = random_scene(300).to(torch.float32), orbit(torch.arange(4) * 90.0, width=64, height=64)
    truth = rasterize(scene, cameras, backend="numba").color
    same: list[bool] = []

    def draw() -> None:
        own = prepared(scene, "cpu", torch.float32)
        for _ in range(5):
            render = rasterize(own, cameras, backend="numba")
            render.color.sum().backward()
            same.append(torch.equal(render.color, truth))

    workers = [threading.Thread(target=draw) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert same == [True] * 15


@pytest.mark.skipif("numba" not in available_backends("cpu"), reason="numba is not installed")
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_and_groups_of_views_change_nothing(monkeypatch, threads):
    from anchor4d.core.render import numba_backend

    cameras = orbit(torch.arange(5) * 72.0, 10.0, 2.0, 49.1, 90, 70)

    def run() -> list[Tensor]:
        scene = prepared(random_scene(400), "cpu", torch.float32)
        statistics = ScreenStatistics()
        render = rasterize(scene, cameras, backend="numba", statistics=statistics)
        return [render.color, render.alpha, render.depth, *gradients(render, scene).values(), statistics.gradient]  # pyright: ignore

    whole = run()
    monkeypatch.setattr(numba_backend, "INTERSECTIONS", 1000)
    monkeypatch.setattr(numba_backend, "GAUSSIANS", 1)
    monkeypatch.setattr(numba_backend, "_threads", lambda: threads)
    monkeypatch.setattr(numba_backend, "_helpers", functools.cache(lambda: ThreadPoolExecutor(max(threads - 1, 1))))
    for a, b in zip(whole, run(), strict=True):
        assert torch.equal(a, b)
