"""The package as it is installed and shipped."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

import anchor4d

ROOT = Path(__file__).parent.parent
SOURCES = [p for folder in ("core", "nodes", "bench", "training") for p in (ROOT / folder).rglob("*.py")] + [
    ROOT / "cli.py",
    ROOT / "console.py",
]


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_importing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys, anchor4d, anchor4d.cli; print([m for m in ('torch', 'numpy', 'PIL', 'comfy_api') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_core_knows_nothing_of_the_host() -> None:
    for path in SOURCES:
        text = path.read_text()
        if path.parent.name != "nodes":
            assert not re.search(r"^\s*(from|import) (comfy|folder_paths|nodes|server)\b", text, re.M), path
        # In ComfyUI the folder has any name: only relative imports find the package.
        assert not re.search(r"^\s*(from|import) anchor4d\b", text, re.M), path


def test_versions_agree(project: dict[str, dict[str, object]]) -> None:
    assert project["project"]["version"] == anchor4d.__version__
    assert anchor4d.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_requirements_mirror_the_project(project: dict[str, dict[str, list[str]]]) -> None:
    listed = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert listed == project["project"]["dependencies"]
    names = {re.split(r"[^A-Za-z0-9_-]", line)[0].lower() for line in listed}
    # The host owns these: a pack that installs its own breaks it. numba pins numpy, gsplat compiles, rembg is large.
    assert not names & {"torch", "torchvision", "torchaudio", "numpy", "numba", "gsplat", "rembg"}


def test_every_folder_of_modules_is_installed(project: dict[str, dict[str, dict[str, list[str]]]]) -> None:
    found = {"anchor4d." + ".".join(p.parent.relative_to(ROOT).parts) for p in SOURCES if p.name == "__init__.py"}
    assert set(project["tool"]["setuptools"]["packages"]) == found | {"anchor4d"}


def test_files_that_the_program_reads_are_installed(project: dict[str, dict[str, dict[str, dict[str, list[str]]]]]) -> None:
    packed = project["tool"]["setuptools"]["package-data"]
    folders = {name: ROOT.joinpath(*name.split(".")[1:]) for name in packed}
    found = {path for name, globs in packed.items() for glob in globs for path in folders[name].glob(glob)}
    assert {ROOT / "core" / "priors" / "models.toml", ROOT / "core" / "priors" / "tiny" / "model_index.json"} <= found
    assert {ROOT / "web" / "player" / name for name in ("page.html", "player.mjs", "renderer.mjs")} <= found


def test_the_registry_finds_what_it_needs(project: dict[str, dict[str, object]]) -> None:
    comfy = project["tool"]["comfy"]
    assert isinstance(comfy, dict)
    assert {"PublisherId", "DisplayName", "requires-comfyui"} <= set(comfy)
    assert project["project"]["requires-python"] == ">=3.11,<3.14"
    urls = project["project"]["urls"]
    assert isinstance(urls, dict) and {"Repository", "Documentation", "Bug Tracker"} <= set(urls)
    # Its pages show a square of at most 400 pixels, and a banner of 21:9.
    for key, share, most in (("Icon", 1, 400), ("Banner", 21 / 9, 2520)):
        place = str(comfy[key])
        assert place.startswith(
            f"{str(urls['Repository']).replace('github.com', 'raw.githubusercontent.com')}/main/docs/images/"
        )
        with Image.open(ROOT / "docs" / "images" / place.rpartition("/")[2]) as picture:
            assert picture.format in ("PNG", "JPEG") and picture.width <= most
            assert picture.width / picture.height == pytest.approx(share, rel=0.01)
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_nothing_runs_text_as_code_or_installs_packages() -> None:
    """What ComfyUI's registry refuses."""
    for path in SOURCES:
        text = path.read_text()
        assert not re.search(r"(?<![\w.])(eval|exec)\(", text), path
        assert not re.search(r"subprocess|os\.system|pickle\.load", text), path


def test_messages_and_texts_name_no_place_of_one_machine() -> None:
    for path in [*SOURCES, *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "web").rglob("*.md")]:
        assert not re.search(r"(?<![\w.])/(root|work|home|Users)/", path.read_text()), path


def test_readme_commands_are_those_that_ci_runs() -> None:
    """.ci/run takes its command from the README: there must be exactly one that tests."""
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if "-m pytest" in line and "Scripts" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("python3 -m venv ")
    assert '-e ".[torch,cpu,test]"' in lines[0]
