"""Every example runs, and what a package brings through entry points is found by everything that lists it."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PLUGINS = {
    "02_objective": "ground",
    "03_prior": "one-colour",
    "04_field": "path",
    "05_format": "xyz",
    "06_method": "front-only",
    "07_metric": "steady-size",
}


def run(*argv: object, path: Path | None = None, folder: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))
    argv = sys.executable, *map(str, argv)
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder of Python's path with the plug-ins as an installed package would bring them."""
    site = tmp_path / "site"
    info = site / "example_plugins-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example-plugins\nVersion: 1.0\n")
    names = [f"example_{name.split('_')[1]}" for name in PLUGINS]
    for name, file in zip(names, PLUGINS):
        (site / f"{name}.py").write_text((EXAMPLES / f"{file}.py").read_text())
    (info / "entry_points.txt").write_text("[anchor4d]\n" + "".join(f"{name} = {name}\n" for name in names))
    return site


def test_every_example_is_tested_and_short() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"01_fit", *PLUGINS}
    for name in PLUGINS:
        assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 40, name


def test_a_video_and_a_model_become_a_moving_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_cli import tiny

    from anchor4d.core.methods import pla4d

    monkeypatch.setitem(pla4d._OURS, "draft", lambda refinement: tiny())  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(sys, "argv", ["01_fit.py", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "01_fit.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "240 Gaussians, (2, 4, 64, 64, 4) pictures, ['object.glb', 'sample', 'scene.safetensors']" in said


USE = """
import json, sys, torch
from pathlib import Path
import anchor4d as a4d
from anchor4d.core.fit.loop import FitState, Inputs, Schedule, run_fit
from anchor4d.core.gaussians import random_gaussians
from anchor4d.core.priors.base import PRIORS
from anchor4d.core.priors.distill import Distillation

assert "ground" in a4d.OBJECTIVES and "path" in a4d.FIELDS and "xyz" in a4d.FORMATS
assert "steady-size" in a4d.METRICS
assert "one-colour" in PRIORS and a4d.METHODS["front-only"].title == "Front only"

scene = a4d.Scene4D(random_gaussians(20, torch.Generator().manual_seed(0)), frames=3)
from anchor4d.core.scene.views import DEFAULT_FRONT
field = a4d.FIELDS["path"].build(scene)
inputs = Inputs(None, scene.taus, [DEFAULT_FRONT])
done = run_fit("motion", FitState(scene.gaussians, field), [a4d.OBJECTIVES["ground"](height=0.0)], Schedule(20), inputs)
moved = field(done.gaussians, torch.ones(1)).means[0]
assert moved[:, 1].clamp_max(0).sum() > scene.gaussians.means[:, 1].clamp_max(0).sum()
scene = a4d.Scene4D(done.gaussians, field, frames=3)
scene.save("scene.safetensors")
again = a4d.Scene4D.load("scene.safetensors")
assert torch.equal(again.at(1.0).means, scene.at(1.0).means)
a4d.export(again, "points.xyz")
assert len(Path("points.xyz").read_text().splitlines()) == 20

Path("red").mkdir()
Path("red/colour.json").write_text("[1, 0, 0]")
prior = a4d.load_prior("red")
pictures = torch.full((2, 1, 16, 16, 3), 0.5, requires_grad=True)
Distillation(prior)(pictures, prior.condition(), 0.5, torch.Generator().manual_seed(0)).backward()
assert bool((pictures.grad[..., 0] < 0).all()) and bool((pictures.grad[..., 1:] > 0).all())
print("plug-ins work")
"""


def test_plug_ins_are_found_and_used_without_another_edit(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    assert "plug-ins work" in run("-c", USE, path=installed, folder=tmp_path)


def test_the_command_line_offers_a_package_s_method(installed: Path, tmp_path: Path) -> None:
    code = "from anchor4d.cli import main; import sys; sys.exit(main(sys.argv[1:]) - 2)"
    said = run("-c", code, "fit", "--method", "front-only", "--out", "out", path=installed, folder=tmp_path)
    assert said == "error: fit: nothing to start from; give at least one of --prompt, --image, --video and --object\n"
    said = run("-c", code, "fit", "--method", "back-only", "--out", "out", path=installed, folder=tmp_path)
    assert "method 'back-only': unknown, choose one of align4d, ayg, dg4d, front-only, pla4d" in said
