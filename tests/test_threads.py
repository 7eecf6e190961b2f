"""The same input gives the same bits on any number of threads, and a run goes on with another number of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anchor4d.core.align import align_camera
from anchor4d.core.deformation.control_nodes import ControlNodes
from anchor4d.core.deformation.time_gated import TimeGatedMLP
from anchor4d.core.gaussians import from_points
from anchor4d.core.identity import fingerprint
from anchor4d.core.io.objects import load_object
from anchor4d.core.io.video import load_video
from anchor4d.core.methods.stages import MethodConfig
from anchor4d.core.optimiser import one_thread
from anchor4d.core.runs.sample import write_sample
from anchor4d.core.runs.session import Settings, run_in_folder
from tests.test_cli import tiny

#: More than any machine of ours has cores: PyTorch shares the work among so many all the same.
THREADS = (1, 3, 8)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("threads") / "case", 3, 224)


def test_one_thread_is_one_and_comes_to_an_end() -> None:
    with threads(3):
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3


def test_videos_meshes_and_cameras(case: Path) -> None:
    """Pictures of more numbers than PyTorch sums on one thread."""

    def found() -> str:
        video, mesh = load_video(case / "front", fps=12.0), load_object(case / "mesh.glb")
        aligned = align_camera(mesh, video, yaw=0.0)
        return fingerprint(video.frames, video.masks, mesh, aligned.front, aligned.mesh, aligned.error)

    made = set()
    for count in THREADS:
        with threads(count):
            made.add(found())
    assert len(made) == 1


def test_control_nodes_smooth_their_steps_alike() -> None:
    """The inverse of a large matrix, which LAPACK computes in another order on other threads."""
    points = torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    field = ControlNodes.on_surface(from_points(points, torch.ones(2000, 3)), 4, nodes=600)
    gradient = torch.randn(field.translations.shape, generator=torch.Generator().manual_seed(1))
    made = set()
    for count in THREADS:
        with threads(count), torch.no_grad():
            (group,) = (g for g in field.parameter_groups() if g.name == "translations")
            assert group.smooth is not None
            made.add(fingerprint(group.smooth(gradient)))
    assert len(made) == 1


def test_gradients_of_norms() -> None:
    """Sums over all Gaussians and frames, which PyTorch shares out by threads for the weights of its own LayerNorm."""
    gaussians = from_points(torch.rand(3000, 3, generator=torch.Generator().manual_seed(0)) - 0.5, torch.ones(3000, 3))
    norm = next(layer for layer in TimeGatedMLP.around(gaussians).layers if isinstance(layer, torch.nn.LayerNorm))
    x, pulls = torch.randn(2, 27_000, *norm.normalized_shape, generator=torch.Generator().manual_seed(1))
    made = set()
    for count in THREADS:
        with threads(count):
            norm.zero_grad()
            (norm(x) * pulls).sum().backward()
            made.add(fingerprint(norm.weight.grad, norm.bias.grad))
    assert len(made) == 1
    torch.testing.assert_close(norm(x), torch.nn.functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias))


class Stop(Exception):
    """Stands for a user who interrupts."""


def test_a_run_goes_on_with_another_number_of_threads(case: Path, tmp_path: Path) -> None:
    config: MethodConfig = replace(tiny(8), resolution=224)
    config = replace(config, static=replace(config.static, gaussians=1500))
    config = replace(config, motion=replace(config.motion, fields={"control-nodes": {"nodes": 300}}))
    config = replace(config, motion=replace(config.motion, schedule=replace(config.motion.schedule, resolutions=((1.0, 192),))))

    def fit(out: Path, resume: bool = False, stop: int = 0) -> bytes:
        def progress(stage: str, step: int, *_: object) -> None:
            if stage == "3D to 4D" and step == stop:
                raise Stop

        settings = Settings(yaw=0.0, prior="none")
        run_in_folder(
            case / "front", case / "mesh.glb", out, settings, fps=12.0, config=config, resume=resume, progress=progress
        )
        return (out / "scene.safetensors").read_bytes()

    with threads(1):
        whole = fit(tmp_path / "one")
    with threads(3):
        assert fit(tmp_path / "three") == whole
    with threads(3), pytest.raises(Stop):
        fit(tmp_path / "cut", stop=4)
    with threads(1):
        assert fit(tmp_path / "cut", resume=True) == whole
