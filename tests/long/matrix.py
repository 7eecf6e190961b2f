"""Which versions work together: each cell of Python, PyTorch and NumPy in an environment of its own, on the CPU.

    python tests/long/matrix.py [--cells 3.12/2.5.1/1.26 ...] [--out DIR] [--tests FILE ...] [--keep]

A cell "PYTHON/TORCH/NUMPY", or with "/DIFFUSERS" or "/DIFFUSERS/TRANSFORMERS" behind it, names versions, each as exact as it
is given. It makes a virtual environment, installs them with the pack's requirements, imports every module, and runs a small fit
and a core of the tests. A cell whose wheels are not to be had is reported as such. Results: ``results.json`` and
``results.md`` in OUT, and a log a cell.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CELLS = ("3.11/2.5/1.26/0.36/4", "3.11/2/2", "3.12/2.5/1.26/0.36/4", "3.12/2/2", "3.13/2.6/2", "3.13/2/2")
#: A core of the tests: the vocabulary, rasterisers, fields, objectives, fits, readers and writers, priors of each library.
TESTS = (
    *(
        f"tests/test_{name}.py"
        for name in (
            "cameras", "rasterize", "fields", "objectives", "scene", "validation", "checkpoints", "mesh_files", "splat_files",
            "video", "formats", "tiny_prior", "zero123", "stable_diffusion", "text_to_video", "convert", "packages",
        )
    ),
    "tests/test_cli.py::test_fit_leaves_what_it_promises",
    "tests/test_cli.py::test_render_writes_straight_alpha_at_the_videos_framing",
)  # fmt: skip
IMPORTS = """
import importlib, json, pkgutil, platform
import anchor4d
for module in pkgutil.walk_packages(anchor4d.__path__, "anchor4d."):
    if module.name.split(".")[1] in ("core", "cli", "bench"):
        importlib.import_module(module.name)
import importlib.metadata
from anchor4d.core.render import available_backends
versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "diffusers", "transformers", "numba")}
print(json.dumps({"python": platform.python_version(), **versions, "renderers": available_backends("cpu")}))
"""


def interpreter(version: str) -> str | None:
    """An interpreter of a version: on the path, or among pyenv's."""
    name = "python" if os.name == "nt" else f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for candidate in (*sorted(pyenv.glob(f"{version}.*/bin/{name}"), reverse=True), shutil.which(name)):
        if candidate is None:
            continue
        asked = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False)
        if asked.returncode == 0 and asked.stdout.startswith(f"Python {version}"):
            return str(candidate)
    return None


def requirement(package: str, version: str) -> str:
    """``torch==2.5.1`` for a whole version, ``torch~=2.5.0`` for a part of one, the newest ``2.x`` for a major one."""
    parts = version.split(".")
    return f"{package}=={version}" if len(parts) > 2 else f"{package}=={version}.*"


def try_cell(cell: str, folder: Path, tests: list[str], keep: bool) -> dict[str, Any]:
    """One cell's row: versions as installed, and what came of it."""
    row: dict[str, Any] = {"cell": cell, "result": "", "seconds": 0.0}
    began = time.monotonic()
    python, torch, numpy, *libraries = cell.split("/")
    environment, log = folder / cell.replace("/", "-"), folder / f"{cell.replace('/', '-')}.log"

    def step(name: str, *argv: str | os.PathLike[str]) -> str | None:
        with open(log, "a", encoding="utf-8") as out:
            out.write(f"\n$ {' '.join(map(str, argv))}\n")
            out.flush()
            done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd=folder)
            out.write(done.stdout)
        if done.returncode:
            last = done.stdout.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            row["result"] = f"{name}: {last[0][:160]}"
            return None
        return done.stdout

    try:
        log.unlink(missing_ok=True)
        if (found := interpreter(python)) is None:
            row["result"] = f"no Python {python} on this machine"
            return row
        own = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        there = own.is_file() and keep
        if not there and step("environment", found, "-m", "venv", "--clear", environment) is None:
            return row
        wanted = [
            requirement("torch", torch),
            requirement("numpy", numpy),
            *map(requirement, ("diffusers", "transformers"), libraries),
            "numba>=0.61",
            "pytest",
            "-r",
            str(ROOT / "requirements.txt"),
        ]
        if not there and step("no wheels", own, "-m", "pip", "install", "-q", "--only-binary", ":all:", *wanted) is None:
            return row
        if not there and step("install", own, "-m", "pip", "install", "-q", "--no-deps", "-e", ROOT) is None:
            return row
        if (printed := step("imports", own, "-c", IMPORTS)) is None:
            return row
        row |= json.loads(printed.strip().splitlines()[-1])
        paths = [str(ROOT / test) for test in tests]
        printed = step(
            "tests", own, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml", *paths
        )
        if printed is not None:
            summary = re.search(r"\d+ passed.*?(?= in )", printed)
            row["result"] = summary[0] if summary else "no tests ran"
        return row
    finally:
        row["seconds"] = round(time.monotonic() - began)
        if not keep:
            shutil.rmtree(environment, ignore_errors=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as markdown."""
    lines = ["| Asked | Python | PyTorch | NumPy | diffusers | transformers | Renderers | Result |", f"|{8 * '---|'}"]
    for row in rows:
        facts = [row.get(name, "") for name in ("python", "torch", "numpy", "diffusers", "transformers")]
        lines.append(f"| {row['cell']} | {' | '.join(facts)} | {', '.join(row.get('renderers', []))} | {row['result']} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--cells",
        nargs="+",
        default=list(CELLS),
        metavar="PYTHON/TORCH/NUMPY[/DIFFUSERS[/TRANSFORMERS]]",
        help="default: %(default)s",
    )
    parser.add_argument("--tests", nargs="+", default=list(TESTS), metavar="FILE", help="tests of each cell (default: a part)")
    parser.add_argument("--out", type=Path, default=Path("anchor4d-matrix"), help="folder (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the environments, and take those that are there")
    args = parser.parse_args(argv)
    for cell in args.cells:
        if not re.fullmatch(r"\d+\.\d+(/\d+(\.\d+){0,2}){2,4}", cell):
            raise SystemExit(f"error: cell {cell!r}: not PYTHON/TORCH/NUMPY, such as 3.12/2.5.1/1.26")
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for cell in args.cells:
        rows.append(try_cell(cell, args.out.absolute(), args.tests, args.keep))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
        (args.out / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        (args.out / "results.md").write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
