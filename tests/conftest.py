"""Settings of every test run, and where a ComfyUI is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# As the package does for its own processes, before any test imports PyTorch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


from anchor4d.core.packages import NEIGHBOURS, problem

# A package that is there but broken, such as a torchvision that does not fit PyTorch, must not stop the collection.
for _name in NEIGHBOURS:
    problem(_name)


ROOT = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--host", action="store_true", help="also run the tests that start a ComfyUI (or set ANCHOR4D_HOST)")


@dataclass(frozen=True)
class ComfyUI:
    """A checkout of the host and the interpreter that runs it."""

    path: Path
    python: Path


@pytest.fixture(scope="session")
def comfyui_source() -> Path:
    """COMFYUI_PATH or comfy-cli's default place."""
    path = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    if not (path / "main.py").is_file():
        pytest.skip(f"no ComfyUI at {path}, set COMFYUI_PATH")
    return path


@pytest.fixture(scope="session")
def nodes(comfyui_source: Path) -> dict[str, dict[str, Any]]:
    """This pack's nodes as the host describes them to its page, by id. ComfyUI's own packages may be absent."""
    command = [sys.executable, Path(__file__).parent / "describe_nodes.py", comfyui_source, ROOT]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=comfyui_source, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def comfyui(comfyui_source: Path) -> ComfyUI:
    """A ComfyUI that can be started: with COMFYUI_PYTHON, or the checkout's own virtual environment."""
    path = comfyui_source
    inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    python = Path(os.environ.get("COMFYUI_PYTHON") or path / ".venv" / inside)
    if not python.is_file():
        pytest.skip(f"no interpreter at {python}, set COMFYUI_PYTHON")
    wanted = "import torch, av, einops, PIL, safetensors, scipy, trimesh"
    found = subprocess.run([python, "-c", wanted], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"ComfyUI's Python lacks a requirement of the pack: {found.stderr.strip().splitlines()[-1]}")
    return ComfyUI(path, python)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """The CPU, and the graphics card where there is one."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA or ROCm device")
    return request.param
