"""The run-time compiler and what the conformance suites do not reach: long lists, large splats, growing room, CUDA graphs."""

from __future__ import annotations

import threading
from pathlib import Path

import kernel_shim
import pytest
import torch
from torch import Tensor

import anchor4d.core
from anchor4d.core.cameras import Cameras, orbit
from anchor4d.core.gaussians import Gaussians
from anchor4d.core.render import ScreenStatistics, rasterize
from anchor4d.core.render.nvrtc import backend, compiler, mesh_backend

SOURCES = sorted(Path(anchor4d.core.__path__[0]).rglob("*.cu"))
no_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card")
DEVICES = [
    pytest.param("cpu", id="shim", marks=kernel_shim.needs_compiler),
    pytest.param("cuda", marks=[pytest.mark.gpu, no_card]),
]


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The card, or the CPU with the kernels compiled for it."""
    if request.param == "cpu":
        monkeypatch.setattr(compiler, "load", kernel_shim.load)
        monkeypatch.setattr(backend, "available", lambda device: True)
    monkeypatch.setattr(backend, "_capacities", {})
    return request.param


def on_card(test):
    """A test that needs a graphics card."""
    return pytest.mark.gpu(no_card(test))


every_device = pytest.mark.parametrize("device", DEVICES, indirect=True)


# --- compiler -----------------------------------------------------------------------------------------------------------


def _has_nvrtc() -> bool:
    try:
        return torch.version.hip is None and compiler.compiler_version() > (0, 0)
    except compiler.CompilerError:
        return False


@pytest.mark.skipif(not _has_nvrtc(), reason="no NVRTC, install nvidia-cuda-nvrtc")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_source_compiles_for_every_architecture(source: Path) -> None:
    targets = [f"sm_{x}" for x in (75, 80, 86, 89, 90, 100, 120) if x in compiler._supported()]
    assert targets
    for target in targets:
        assert compiler.compile_source(source, target)[:4] == b"\x7fELF"
    assert b".entry" in compiler.compile_source(source, "compute_75")


@pytest.mark.skipif(not _has_nvrtc(), reason="no NVRTC, install nvidia-cuda-nvrtc")
def test_a_source_with_a_mistake_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "wrong.cu").write_text('extern "C" __global__ void f(int n) {\n    m = n;\n}\n')
    with pytest.raises(compiler.CompilerError, match=r"wrong.cu\(2\)"):
        compiler.compile_source(tmp_path / "wrong.cu", "sm_90")


def test_signatures_are_read_from_the_source() -> None:
    text = """extern "C" __global__ void __launch_bounds__(64) f(
        const float* a,  // (N, 3)
        int n, float x, unsigned long long s) {}"""
    assert compiler.signatures(text) == {"f": ["*", "int", "float", "unsigned long long"]}
    with pytest.raises(compiler.CompilerError, match="double"):
        compiler.signatures('extern "C" __global__ void f(double x) {}')


def test_a_damaged_entry_of_the_cache_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "cache_folder", lambda: tmp_path)
    assert compiler.remembered("key") is None
    compiler.remember("key", b"binary")
    assert compiler.remembered("key") == b"binary"
    held = bytearray((tmp_path / "key").read_bytes())
    held[-1] ^= 1
    (tmp_path / "key").write_bytes(held)
    assert compiler.remembered("key") is None
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_without_a_folder_of_the_users_own_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "cache_folder", lambda: None)
    compiler.remember("key", b"binary")
    assert compiler.remembered("key") is None


@pytest.mark.skipif(not _has_nvrtc(), reason="no NVRTC, install nvidia-cuda-nvrtc")
def test_a_binary_is_kept_by_all_that_it_depends_on(tmp_path: Path) -> None:
    source, header = tmp_path / "a.cu", tmp_path / "a.cuh"
    source.write_text('#include "a.cuh"\n')
    header.write_text("#define A 1\n")
    keys = [compiler.source_key(source, "sm_80"), compiler.source_key(source, "sm_90")]
    keys.append(compiler.source_key(source, "sm_90", ["-DB=1"]))
    header.write_text("#define A 2\n")
    keys.append(compiler.source_key(source, "sm_90"))
    assert len(set(keys)) == 4
    assert compiler.source_key(source, "sm_90") == keys[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a graphics card")
def test_without_a_card_the_reason_is_said() -> None:
    assert not backend.available("cuda")
    assert "without CUDA" in backend.why_not(torch.device("cuda")) or "no graphics card" in backend.why_not(
        torch.device("cuda")
    )
    assert "CUDA and ROCm devices only" in mesh_backend.why_not(torch.device("cpu"))
    with pytest.raises(compiler.CompilerError):
        compiler.load("rasterize.cu", "cuda")


# --- the rasteriser -----------------------------------------------------------------------------------------------------


def cloud(count: int, seed: int = 0) -> Gaussians:
    """Small Gaussians around the origin, mostly clear; each fifth is there twice, in two colours."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scene = Gaussians(
        means=0.25 * normal(count, 3),
        quats=normal(count, 4),
        log_scales=-2.5 + 0.5 * normal(count, 3),
        opacity_logits=-3.5 + normal(count),
        sh=normal(count, 1, 3),
    )
    for name in ("means", "quats", "log_scales", "opacity_logits"):
        held = getattr(scene, name)
        held[1::5] = held[::5]
    return scene


def results(scene: Gaussians, cameras: Cameras, device: str, dtype: torch.dtype, name: str) -> dict[str, Tensor]:
    """Pictures, gradients of a fixed weighting of them and screen statistics, on the CPU."""
    scene = scene.map(lambda t: t.detach().to(device, dtype).requires_grad_())
    statistics = ScreenStatistics()
    render = rasterize(scene, cameras, torch.tensor([0.3, 0.6, 0.9], device=device), backend=name, statistics=statistics)
    generator, pictures = torch.Generator().manual_seed(1), (render.color, render.alpha, render.depth)
    weights = [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in pictures]
    leaves = scene.tensors()
    slopes = torch.autograd.grad(pictures, list(leaves.values()), weights)
    found = dict(zip(("color", "alpha", "depth"), pictures, strict=True)) | dict(zip(leaves, slopes, strict=True))
    found["screen"] = statistics.gradient  # pyright: ignore[reportArgumentType]
    return {name: x.detach().cpu().double() for name, x in found.items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, x in expected.items():
        assert float((found[name] - x).norm() / x.norm()) < tolerance, name


@every_device
@pytest.mark.parametrize("count", [400, 5000])
def test_long_lists_with_equal_depths(device: str, count: int) -> None:
    """More in a tile than one segment of the backward pass, and than what is sorted in shared memory."""
    scene, cameras = cloud(count), orbit([0.0, 70.0], 10.0, 2.0, 49.1, 12, 11)
    expected = results(scene, cameras, "cpu", torch.float64, "torch")
    assert_close(results(scene, cameras, device, torch.float32, "nvrtc"), expected, 1e-4)
    assert (1 - expected["alpha"]).min() < 0.2


@every_device
def test_splats_over_many_tiles(device: str) -> None:
    scene, cameras = cloud(60), orbit([0.0, 70.0], 10.0, 2.0, 49.1, 110, 90)
    scene.log_scales[:3] = torch.tensor([[-0.2, -4.0, -4.0], [0.3, -0.5, -4.0], [-1.5, -1.5, -1.5]], dtype=torch.float64)
    scene.opacity_logits[:3] = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    expected = results(scene, cameras, "cpu", torch.float64, "torch")
    assert_close(results(scene, cameras, device, torch.float32, "nvrtc"), expected, 2e-5)


@every_device
def test_room_grows_and_nothing_is_dropped(device: str) -> None:
    cameras = orbit([0.0], 10.0, 2.0, 49.1, 40, 40)
    many = cloud(3000).map(lambda t: t.clone())
    first = results(many, cameras, device, torch.float32, "nvrtc")
    backend._capacities.clear()
    results(cloud(10), cameras, device, torch.float32, "nvrtc")
    (before,) = backend._capacities.values()
    again = results(many, cameras, device, torch.float32, "nvrtc")
    (after,) = backend._capacities.values()
    assert before[0] < after[0]
    assert all(torch.equal(x, again[name]) for name, x in first.items())


@on_card
def test_a_cuda_graph_draws_the_same_and_says_when_it_has_no_room() -> None:
    cameras = orbit(torch.arange(3) * 120.0, 10.0, 2.0, 49.1, 64, 48).to("cuda")
    scene = cloud(500).map(lambda t: t.float().cuda().requires_grad_())
    leaves = list(scene.tensors().values())

    def step() -> list[Tensor]:
        render = rasterize(scene, cameras, backend="nvrtc")
        pictures = [render.color, render.alpha, render.depth]
        return [*pictures, *torch.autograd.grad(sum(p.square().sum() for p in pictures), leaves)]  # pyright: ignore

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = [x.clone() for x in step()]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    graph.replay()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert not backend.overflowed("cuda")
    with torch.no_grad():
        scene.log_scales.add_(2.0)
    graph.replay()
    assert backend.overflowed("cuda")
    assert not backend.overflowed("cuda")


@every_device
@pytest.mark.parametrize("left", [0, 1 << 29])
def test_without_room_nothing_is_read_that_nobody_wrote(device: str, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a CUDA graph draws: with the room there was when it was recorded, in memory that holds what others have left."""
    cameras = orbit(torch.arange(3) * 120.0, 10.0, 2.0, 49.1, 64, 48).to(device)
    small = cloud(3000).map(lambda t: t.float().to(device))
    rasterize(small, cameras, backend="nvrtc")
    large = Gaussians(**(small.tensors() | {"log_scales": small.log_scales + 2.0})).map(lambda t: t.requires_grad_())
    where = next(iter(backend._capacities))[0]
    monkeypatch.setattr(backend, "_Counted", lambda counters: None)
    monkeypatch.setattr(backend, "_overflow", {where: torch.zeros(2, dtype=torch.int32, device=where)})
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **kind: empty(*size, **kind).fill_(left))
    loss = rasterize(large, cameras, backend="nvrtc").color.sum()
    found = torch.autograd.grad(loss, list(large.tensors().values()))
    assert all(a.shape == b.shape for a, b in zip(found, large.tensors().values(), strict=True))
    assert bool(backend._overflow[where].any())


@on_card
def test_a_new_thread_may_draw() -> None:
    scene, cameras = cloud(100).map(lambda t: t.float().cuda()), orbit([0.0], width=32, height=32).to("cuda")
    expected, found = rasterize(scene, cameras, backend="nvrtc").color, []
    worker = threading.Thread(target=lambda: found.append(rasterize(scene, cameras, backend="nvrtc").color))
    worker.start()
    worker.join()
    assert torch.equal(found[0], expected)


@on_card
def test_the_self_tests_pass_and_auto_takes_the_kernels() -> None:
    from anchor4d.core.render import mesh, resolve_backend

    assert backend.self_test(torch.device("cuda", 0)) == ""
    assert mesh_backend.self_test(torch.device("cuda", 0)) == ""
    assert resolve_backend("auto", "cuda") == "nvrtc"
    assert mesh.resolve_backend("auto", "cuda") == "nvrtc"


@kernel_shim.needs_compiler
def test_a_self_test_finds_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiler, "load", kernel_shim.load)
    assert backend.self_test(torch.device("cpu")) == ""
    assert mesh_backend.self_test(torch.device("cpu")) == ""
    wrong = tmp_path / "wrong.cu"
    text = (compiler.FOLDER / "rasterize.cu").read_text().replace("#define EPS2D 0.3f", "#define EPS2D 0.4f")
    wrong.write_text(text)
    (tmp_path / "portable.cuh").write_text((compiler.FOLDER / "portable.cuh").read_text())
    monkeypatch.setattr(compiler, "load", lambda name, device: kernel_shim.host_module(wrong))
    assert "off by" in backend.self_test(torch.device("cpu"))
