"""The command line's console: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anchor4d import console as module
from anchor4d.console import Console

#: A run of three stages' worth of output: a note, progress with a loss, a warning, silence, a table, an error.
SCRIPT = """
import logging, sys, time
from anchor4d import cli, console as module
module.BAR_SECONDS, module.LINE_SECONDS = 0.2, 0.1
console = module.Console()
with console.beating():
    console.note("prior: tiny [bold]")
    for step in range(1, 6):
        console.step("3D to 4D", step, 5, "  loss 0.5")
        time.sleep(0.05)
    console.line("warning: [red] caf\\u00e9")
    time.sleep(0.6)
    console.table("view  psnr\\n   0  12.5\\n  15   9.1")
print("after", file=sys.stderr)
"""


def on_a_terminal(script: str, **place: str) -> str:
    """What a script writes to a terminal, standard output and error together."""
    pty = pytest.importorskip("pty", reason="no pseudo-terminals here")
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"} | place
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=theirs, stderr=theirs, stdin=theirs, env=environment
    ) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                block = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not block:
                break
            written += block
    os.close(ours)
    assert process.returncode == 0, written.decode()
    return written.decode()


def test_a_terminal_has_a_bar_colours_and_a_table() -> None:
    written = on_a_terminal(SCRIPT)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    assert "prior: tiny [bold]" in plain and "3D to 4D  5/5  loss 0.5\r\n" in plain
    assert "\x1b[1;33mwarning:" in written and "[red] café" in plain
    assert "━" in plain and "│ 0    │ 12.5 │" in plain
    assert re.search(r"writing ━+ +0:00:00", plain)  # where nothing is said, what goes on and for how long
    assert written.rstrip().endswith("after")
    assert "\x1b[?25h" in written.rsplit("after", 1)[0]  # the cursor is there again


def test_no_color_and_a_locale_of_ascii_are_obeyed() -> None:
    place = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:backslashreplace"}
    written = on_a_terminal(SCRIPT, NO_COLOR="1", **place)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m|\x1b\[38", written)
    assert written.isascii() and "caf\\xe9" in written and "12.5" in written


def test_elsewhere_plain_lines_never_more_than_three_seconds_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert module.BAR_SECONDS < module.LINE_SECONDS < module.BEAT_SECONDS < 3
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(module, "LINE_SECONDS", 0.1)
    console = Console()
    with console.beating():
        time.sleep(0.4)
        assert capsys.readouterr().err == ""  # bad input is answered by its error alone
        console.note("prior: tiny")
        console.step("estimate", 1, 4)
        console.step("estimate", 2, 4)  # too soon for a line
        time.sleep(0.5)
        silent = capsys.readouterr().err.splitlines()
        console.step("estimate", 3, 4)
        console.step("estimate", 4, 4)
        console.table("view  psnr\n   0  12.5")
    assert silent[:2] == ["prior: tiny", "reading  (0:00)"] and len(silent) in (2, 3)
    written = capsys.readouterr()
    assert [re.sub(r"  \d:\d\d left", " LEFT", line) for line in written.err.splitlines()] == [
        "estimate  3/4 LEFT",
        "estimate  4/4",
    ]
    assert written.out == "view  psnr\n   0  12.5\n"


def test_a_terminal_without_rich_has_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    Console().line("error: no rich")
    assert stream.getvalue() == "error: no rich\n"


def test_results_go_to_standard_output_alone(tmp_path: Path) -> None:
    script = "from anchor4d.console import Console\nc = Console()\nc.step('a', 1, 2)\nc.result('path')\nc.step('a', 2, 2)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert (done.stdout, done.stderr) == ("path\n", "a  2/2\n")
