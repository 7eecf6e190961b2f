"""Our splat files through the host's own reader, renderer and writer, and the host's files through ours."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anchor4d.core.cameras import orbit, quaternion_to_matrix, to_camera_info
from anchor4d.core.gaussians import SH_C0, Gaussians
from anchor4d.core.io import read_splats, write_splats

#: What the host's reader opens, and how it is written: 1 to 3 of .spz, no compressed .ply.
FILES: dict[str, dict[str, Any]] = {"a.ply": {}, "two.spz": {"version": 2}, "three.spz": {}, "a.splat": {}}
READ = """
import sys
sys.path.insert(0, sys.argv[1])
import json
arguments, sys.argv = sys.argv, [sys.argv[0], "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import numpy as np
from comfy_api.latest import Types
from comfy_extras.nodes_gaussian_splat import File3DToSplat, RenderSplat, SplatToFile3D
for name in arguments[4:]:
    path = f"{arguments[2]}/{name}"
    splat = File3DToSplat.execute(Types.File3D(path, name.split(".")[-1])).result[0]
    keys = ("positions", "scales", "rotations", "opacities", "sh")
    values = {key: getattr(splat, key)[0].numpy() for key in keys}
    picture = RenderSplat.execute(
        splat=splat, width=128, height=128, frames=1, splat_scale=1.0, sharpen=2.0, headlight_shading=0.0,
        opacity_threshold=0.0, render_style="color", background="#ffffff", camera_info=json.loads(arguments[3])
    ).result[0]
    np.savez(path + ".npz", picture=picture[0].numpy(), **values)
for kind in ("ply", "spz", "ksplat"):
    SplatToFile3D.execute(splat, kind).result[0].save_to(f"{arguments[2]}/host.{kind}")
"""


def landmarks() -> Gaussians:
    """Red above, blue to the right, and a green one that is long and leans, behind and below."""
    color = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])
    return Gaussians(
        means=torch.tensor([[0.0, 0.4, 0], [0.4, 0, 0], [-0.2, -0.3, -0.2]]),
        quats=torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0, 0], [0.9, 0.1, 0.2, 0.3], [0.8, 0.1, 0.1, 0.5]]), dim=-1),
        log_scales=torch.tensor([[0.06, 0.06, 0.06], [0.06, 0.05, 0.04], [0.2, 0.03, 0.02]]).log(),
        opacity_logits=torch.tensor([0.95, 0.9, 0.9]).logit(),
        sh=((color - 0.5) / SH_C0)[:, None],
    )


@pytest.fixture(scope="module")
def read(comfyui: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("splats")
    for name, options in FILES.items():
        write_splats(folder / name, landmarks(), **options)
    camera = json.dumps(to_camera_info(orbit(0.0, 0.0, 2.0, 40.0, 128, 128)))
    done = subprocess.run(
        [comfyui.python, "-c", READ, comfyui.path, folder, camera, *FILES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", FILES)
def test_the_hosts_reader_finds_what_was_written(read: Path, name: str) -> None:
    found, expected = np.load(read / f"{name}.npz"), landmarks()
    down = np.diag([1.0, -1, -1])
    np.testing.assert_allclose(found["positions"], expected.means.numpy() @ down, atol=1e-4)
    np.testing.assert_allclose(found["scales"], expected.scales.numpy(), rtol=0.04)
    np.testing.assert_allclose(found["opacities"][:, 0], expected.opacities.numpy(), atol=0.003)
    np.testing.assert_allclose(found["sh"][:, 0] * SH_C0 + 0.5, expected.colors.numpy(), atol=0.005)
    theirs, ours = (quaternion_to_matrix(q).numpy() for q in (torch.from_numpy(found["rotations"]), expected.quats))
    cosine = (np.einsum("nij,nij->n", theirs, down @ ours) - 1) / 2
    worst = math.degrees(math.acos(min(1.0, max(-1.0, float(cosine.min())))))
    assert worst < (6 if name == "two.spz" else 1)


@pytest.mark.parametrize("name", FILES)
def test_the_hosts_renderer_shows_it_upright(read: Path, name: str) -> None:
    picture = np.load(read / f"{name}.npz")["picture"]
    rows, columns = np.mgrid[:128, :128]
    centre = {}
    for channel, color in enumerate(("red", "green", "blue")):
        others = np.delete(picture[..., :3], channel, -1).max(-1)
        weight = (picture[..., channel] - others).clip(0.2) - 0.2
        assert weight.sum() > 10, color
        centre[color] = [float((at * weight).sum() / weight.sum()) for at in (columns, rows)]
    assert centre["red"] == pytest.approx([63.5, 28.3], abs=2)
    assert centre["blue"] == pytest.approx([98.7, 63.5], abs=2)
    assert centre["green"][0] < 60
    assert centre["green"][1] > 75


@pytest.mark.parametrize("kind", ["ply", "spz", "ksplat"])
def test_the_hosts_files_are_read(read: Path, kind: str) -> None:
    found, expected = read_splats(read / f"host.{kind}"), landmarks()
    torch.testing.assert_close(found.means, expected.means, rtol=0, atol=3e-4)
    torch.testing.assert_close(found.log_scales, expected.log_scales, rtol=0, atol=0.04)
    torch.testing.assert_close(found.colors, expected.colors, rtol=0, atol=0.006)
