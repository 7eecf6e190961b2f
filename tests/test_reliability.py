"""The short form of tests/long/reliability.py: a handful of kills of a run and of an export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="jobs run in forks")
def test_killed_runs_and_exports_end_as_if_nobody_had_killed_them(tmp_path: Path) -> None:
    script = Path(__file__).parent / "long" / "reliability.py"
    argv = [sys.executable, script, "--kills", "5", "--jobs", "2", "--only", "pla4d", "export-zip"]
    argv += ["--out", tmp_path / "found.json"]
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["kills"] >= 5 and found["failures"] == []
    assert all(job["kills"] > 0 for job in found["jobs"].values())
