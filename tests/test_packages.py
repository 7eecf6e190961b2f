"""Packages that are absent or broken: one line says which and why, and what does without them goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anchor4d.core import packages
from anchor4d.core.render import numba_support


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages are imported from; what was found out about them is forgotten."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(packages, "_broken", {})
    return tmp_path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise RuntimeError('operator nms\\n does not exist')", "cannot be imported (operator nms does not exist)"),
        ("raise SystemExit(3)", "cannot be imported (it exits with 3)"),
        ("import a4d_no_such_package", "cannot be imported (a4d_no_such_package is not installed)"),
        ("1 / 0", "cannot be imported (division by zero)"),
        ("assert False", "cannot be imported (AssertionError)"),
        ("from a4d_broken import part", "cannot be imported (cannot import name 'part' from partially initialized module"),
        ("", ""),
    ],
)
def test_broken_reads_like_absent(site: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str) -> None:
    (site / "a4d_broken.py").write_text(text)
    try:
        found = packages.problem("a4d_broken")
        assert found.startswith(reason) if reason else found == ""
        assert packages.problem("a4d_broken") == found  # asked again
        if reason:
            assert "\n" not in found
            with pytest.raises(ModuleNotFoundError):
                __import__("a4d_broken")
            assert packages.problems("a4d_broken") == f"a4d_broken {found}; run: pip install a4d_broken"
    finally:
        sys.modules.pop("a4d_broken", None)


def test_absent_packages(site: Path) -> None:
    assert packages.problem("a4d_absent") == "is not installed"
    assert packages.problem("a4d_absent.part") == "is not installed"
    assert packages.problem("json.no_such_part") == "is not installed"
    assert packages.problem("json.decoder") == ""
    assert "a4d_absent is not installed; json.x is not installed; run: pip install" in packages.problems("a4d_absent", "json.x")


def test_interruption_is_no_broken_package(site: Path) -> None:
    (site / "a4d_stopped.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        packages.problem("a4d_stopped")


BROKEN_TORCHVISION = """
import sys
from anchor4d.core.priors.load import load_prior
prior = load_prior("tiny")
assert sys.modules["torchvision"] is None
print(type(prior).__name__)
"""


def test_a_torchvision_that_does_not_fit_torch_leaves_the_default_prior(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])}
    argv = [sys.executable, "-c", BROKEN_TORCHVISION]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "StableZero123" or done.stdout.strip().startswith("Zero123")
    assert "Traceback" not in done.stderr


DRAW = """
import sys, torch
from anchor4d.core.gaussians import from_points
from anchor4d.core.cameras import orbit
from anchor4d.core.render import numba_support, rasterize
numba_support.log.warning = lambda *a: sys.exit(f"warned: {a}")
points = torch.linspace(-0.3, 0.3, 30).reshape(10, 3)
gaussians = from_points(points, torch.full((10, 3), 0.5))
out = rasterize(gaussians, orbit([0.0], width=16, height=16), torch.ones(3), backend="numba")
print(float(out.color.sum()), numba_support.cache_folder())
"""


def draw(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", DRAW], capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="the cache folder's place is set by a variable on Linux only")
def test_compiled_kernels_are_kept_where_only_the_user_writes_and_damage_is_compiled_anew(tmp_path: Path) -> None:
    """One damaged in every way, then a folder that anyone may write to: the same picture each time, no traceback."""
    if packages.problem("numba"):
        pytest.skip("numba is not installed")
    tmp_path.chmod(0o700)
    cache = tmp_path / "cache"
    first = draw(XDG_CACHE_HOME=str(cache), NUMBA_CACHE_DIR="")
    place = cache / "anchor4d" / "numba"
    assert first.endswith(str(place))
    assert place.stat().st_mode & 0o777 == 0o700
    for suffix, damage in ((".nbi", b"garbage"), (".nbc", b"")):
        files = list(place.rglob(f"*{suffix}"))
        assert files
        for file in files:
            file.write_bytes(damage)
        assert draw(XDG_CACHE_HOME=str(cache), NUMBA_CACHE_DIR="") == first
        assert all(file.read_bytes() != damage for file in place.rglob(f"*{suffix}"))


def test_kernels_are_compiled_anew_when_another_file_of_their_package_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kernel calls is compiled into it, also from another file. Kept code is taken again only where all are the same."""
    if packages.problem("numba"):
        pytest.skip("numba is not installed")
    folder = tmp_path / "a4d_kernels"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .outer import called\n")
    (folder / "outer.py").write_text(
        "from numba import njit\nfrom .inner import answer\n@njit(cache=True)\ndef called():\n    return answer()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(numba_support, "cache_folder", lambda: tmp_path / "cache")
    for answer, kept in ((7, 0), (123, 0), (7, 1)):
        (folder / "inner.py").write_text(f"from numba import njit\n@njit\ndef answer():\n    return {answer}\n")
        for name in [name for name in sys.modules if name.startswith("a4d_kernels")]:
            monkeypatch.delitem(sys.modules, name)
        kernels = numba_support.load.__wrapped__("a4d_kernels")
        assert kernels.called() == answer
        assert sum(kernels.called.stats.cache_hits.values()) == kept


def test_the_numba_that_is_absent_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert numba_support.load.__wrapped__("any.kernels") == "numba is not installed"
