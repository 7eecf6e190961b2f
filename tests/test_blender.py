"""The add-on for Blender reads our sequences; with ``ANCHOR4D_BLENDER`` Blender itself shows them, and the moving mesh.

The variable names Blender's executable or a Python that has the ``bpy`` wheel.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from anchor4d.core.cameras import quaternion_to_matrix
from anchor4d.core.gaussians import Gaussians
from anchor4d.core.io import write_ply_sequence
from anchor4d.core.io.gltf_mesh import write_mesh_glb
from anchor4d.core.mesh import srgb_to_linear
from anchor4d.core.runs.sample import sample_scene
from anchor4d.core.scene.surface import surface_at

#: Our world in Blender's: +Z up, our front (+Z) towards -Y.
UP = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])


@pytest.fixture(scope="module")
def addon() -> ModuleType:
    path = Path(__file__).parents[1] / "extras" / "blender_ply_sequence.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def covariance(rotation: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    axes = quaternion_to_matrix(rotation) * scale[..., None, :]
    return axes @ axes.mT


def turned(gaussians: Gaussians) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and covariances in Blender's frame."""
    return gaussians.means @ UP.T, UP @ covariance(gaussians.quats, gaussians.scales) @ UP.T


@torch.no_grad()
def test_the_add_on_reads_what_we_write(tmp_path: Path, addon: ModuleType) -> None:
    scene = sample_scene(300, 4)
    write_ply_sequence(tmp_path, scene)
    files = addon.frame_files(tmp_path)
    assert len(files) == 4 and addon.frame_rate(tmp_path) == pytest.approx(scene.fps)
    for file, gaussians in zip(files, scene.bake()):
        found = {name: torch.from_numpy(np.ascontiguousarray(v)).float() for name, v in addon.read_splats(file).items()}
        means, spread = turned(gaussians)
        torch.testing.assert_close(found["position"], means, atol=1e-6, rtol=0)
        torch.testing.assert_close(covariance(found["rotation"], found["scale"]), spread, atol=1e-7, rtol=1e-3)
        torch.testing.assert_close(found["opacity"], gaussians.opacities, atol=1e-5, rtol=0)
        torch.testing.assert_close(found["color"], srgb_to_linear(gaussians.colors.clamp(0, 1)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"ply\nformat ascii 1.0\nelement vertex 0\nend_header\n", "no binary little-endian"),
        (b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty float x\nend_header\n0000", "opacity.* missing"),
        (b"ply\nformat binary_little_endian 1.0\nelement chunk 1\nend_header\n", "another element"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, addon: ModuleType, text: bytes, wanted: str) -> None:
    (tmp_path / "a.ply").write_bytes(text)
    with pytest.raises(ValueError, match=rf"a\.ply: .*{wanted}"):
        addon.read_splats(tmp_path / "a.ply")
    with pytest.raises(ValueError, match=r"holds no \.ply"):
        addon.frame_files(tmp_path / "none")


@torch.no_grad()
def test_blender_shows_the_sequence_and_the_mesh(tmp_path: Path) -> None:
    program = os.environ.get("ANCHOR4D_BLENDER")
    if not program:
        pytest.skip("set ANCHOR4D_BLENDER to Blender, or to a Python that has bpy")
    scene = replace(sample_scene(300, 4), fps=8.0)
    write_ply_sequence(tmp_path / "ply", scene)
    write_mesh_glb(tmp_path / "mesh.glb", scene, tolerance=0)
    script = Path(__file__).parent / "in_blender.py"
    first = [] if "python" in Path(program).name else ["--background", "--factory-startup", "--python"]
    command = [program, *first, str(script), *(["--"] if first else []), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (tmp_path / "found.npz").is_file(), done.stderr[-3000:] + done.stdout[-2000:]
    found = np.load(tmp_path / "found.npz")
    assert found["span"].tolist() == pytest.approx([1, 4, 8])
    frames = scene.bake()
    solid = frames[0].opacities >= 0.05
    for number, index in ((1, 0), (3, 2), (5, 0)):  # the fifth is the first again
        matrices = torch.from_numpy(found[f"ply{number}"]).float()
        means, spread = turned(frames[index].select(solid))
        assert len(matrices) == len(means)
        torch.testing.assert_close(matrices[:, :3, 3], means, atol=1e-5, rtol=0)
        torch.testing.assert_close(matrices[:, :3, :3] @ matrices[:, :3, :3].mT, spread, atol=1e-6, rtol=1e-2)
    color = srgb_to_linear(frames[0].select(solid).colors.clamp(0, 1))
    torch.testing.assert_close(torch.from_numpy(found["color"]).float(), color, atol=1e-5, rtol=0)
    for index in range(4):
        places = torch.from_numpy(found[f"glb{index}"]).float()
        wanted = surface_at(scene, index / 4).vertices @ UP.T
        apart = torch.cdist(wanted, places, compute_mode="donot_use_mm_for_euclid_dist")
        assert float(apart.amin(1).max()) < 1e-4, index
