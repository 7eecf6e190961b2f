"""Pages of runs: one file that loads and runs nothing, with its film, curves and numbers; runs side by side; baselines."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_cli import tiny

from anchor4d import cli
from anchor4d.core.files import InputError
from anchor4d.core.runs.compare import FROZEN, PER_FRAME, baselines, compare, truth_of
from anchor4d.core.runs.page import chart, difference, loss_curves, settings_table, table, verdict_line
from anchor4d.core.runs.sample import sample_scene, write_sample
from anchor4d.core.runs.session import Settings, run_in_folder

FRAMES, SIZE = 3, 48


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("cases") / "a <case>", FRAMES, SIZE)


@pytest.fixture(scope="module")
def runs(case: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("first", 0), ("sec&ond", 1)):
        settings = Settings(preset="draft", seed=seed, yaw=0.0, prior="none")
        run_in_folder(case / "front", case / "mesh.glb", folder / name, settings, config=tiny(12))
    return [folder / "first", folder / "sec&ond"]


def safe(text: str) -> None:
    """Nothing in a page runs, and nothing is loaded."""
    assert re.search(r'http-equiv="Content-Security-Policy" content="default-src \'none\'; [^"]*"', text)
    assert "script-src" not in text and "<script" not in text and not re.search(r"\son\w+=", text)
    assert not re.search(r'(src|href)="(?!data:)', text) and "@import" not in text and "url(" not in text


def films(text: str) -> list[bytes]:
    return [base64.b64decode(found) for found in re.findall(r'<video src="data:video/webm;base64,([^"]+)"', text)]


def test_a_run_leaves_a_page_that_stands_alone(runs: list[Path]) -> None:
    import av

    page = runs[0] / "report.html"
    text = page.read_text(encoding="utf-8")
    safe(text)
    assert page.stat().st_size < 400_000
    (film,) = films(text)
    (page.parent / "film.webm").write_bytes(film)
    with av.open(page.parent / "film.webm") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == FRAMES and frames[0].shape[1] > 5 * frames[0].shape[0] * 0.6
    assert re.search(r'class="verdict (good|doubtful|wrong)"', text)
    for word in (
        "reference view",
        "rigidity",
        "<svg",
        "total",
        "memory, at most",
        "Gaussians",
        "seed",
        "pla4d",
        "Robust alignment",
    ):
        assert word in text, word
    assert "a &lt;case&gt;" in text and "a <case>" not in text


def test_pages_of_several_runs_have_every_view_and_both_baselines(case: Path, runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "compare.html"
    assert cli.main(["compare", *map(str, runs), "--case", str(case), "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    safe(text)
    assert len(films(text)) == 5
    assert "sec&amp;ond" in text and "sec&ond" not in text
    rows = {row[0]: row[1:] for row in re.findall(r"<tr><td>([^<]+)</td>" + r'<td class="number">([^<]*)</td>' * 5, text)}
    assert set(rows) == {"first", "sec&amp;ond", FROZEN, PER_FRAME}
    assert float(rows[FROZEN][1]) == 0.0 and float(rows[FROZEN][2]) == 0.0  # gain and motion of standing still
    alone = compare(runs[:1], tmp_path / "alone.html")
    text = alone.read_text(encoding="utf-8")
    safe(text)
    assert len(films(text)) == 4 and "from 270 degrees" in text
    with pytest.raises(InputError, match=r"no scene\.safetensors here, give the folder of a finished run"):
        compare([tmp_path], tmp_path / "none.html")


@pytest.mark.parametrize("elevation", [0.0, 25.0])
def test_a_frame_by_itself_covers_its_own_picture(tmp_path: Path, elevation: float) -> None:
    case, scene = write_sample(tmp_path / "case", 2, 160), sample_scene(100, 2)
    assert scene.front is not None
    front = replace(scene.front, width=160, height=160, cx=92.0, cy=74.0, elevation=elevation)
    scene, truth = replace(scene, front=front), truth_of(case)
    found = baselines(truth, truth["0"], scene, list(truth))
    assert torch.equal(found[FROZEN]["15"][1], truth["15"][0])
    ours, theirs = found[PER_FRAME]["0"][..., 3] > 0.5, truth["0"][..., 3] > 0.5
    overlap = (ours & theirs).sum((1, 2)) / (ours | theirs).sum((1, 2))
    assert float(overlap.min()) > 0.97
    assert found[PER_FRAME]["105"].shape == truth["105"].shape
    opaque = torch.cat([truth["0"][..., :3], torch.ones_like(truth["0"][..., 3:])], -1)
    assert PER_FRAME not in baselines(truth, opaque, scene, list(truth))


def test_a_difference_is_red() -> None:
    a = torch.ones(2, 4, 4, 4)
    b = a.clone()
    b[1, ..., :3] = 0.75
    apart = difference(a, b)
    assert apart[0].eq(1).all() and torch.allclose(apart[1, 0, 0], torch.tensor([0.75, 0.0, 0.0]))
    hidden = b.clone()
    hidden[..., 3] = 0  # nothing is there, whatever its colour: white like the paper
    assert difference(a, hidden).eq(1).all()


def test_charts_hold_what_they_are_given() -> None:
    logs = chart({"a": [1.0, 10.0, 1000.0], "b": [None, float("nan"), 5.0]}, "t <1>", "x")
    assert "t &lt;1&gt;" in logs and logs.count("<polyline") == 2 and ">1e+03<" in logs and "nan" not in logs
    assert ">2<" in chart({"": [1.0, 3.0]}, "few") and "no values" in chart({"": [None]}, "none")
    placed = chart({"": [3.0, 1.0, 2.0]}, "search", "degrees", [-180.0, 0.0, 170.0], 0.0)
    assert ">-180<" in placed and "stroke-dasharray" in placed and ">degrees<" in placed
    flat = chart({"": [2.0, 2.0]}, "flat")
    assert "nan" not in flat and "inf" not in flat
    several = "".join(loss_curves({"one": {"fit": {"mesh": [2.0, 1.0]}}, "two": {"fit": {"mesh": [3.0, 1.0]}}}))
    assert several.count("<svg") == 1 and "fit: mesh" in several
    assert "there already" in "".join(loss_curves({"": {}}))


def test_tables_say_what_matters() -> None:
    assert table(["", "n"], [["<a>", "1"]]) == (
        '<table><tr><th></th><th class="number">n</th></tr><tr><td>&lt;a&gt;</td><td class="number">1</td></tr></table>'
    )
    shown = settings_table({"settings": {"seed": 0, "prior": "none", "closed": False, "without": ["oda", "ao"], "fps": None}})
    assert "<td>seed</td><td>0</td>" in shown and "oda, ao" in shown and "prior" not in shown and "closed" not in shown
    assert "no verdict" in verdict_line(None)
    assert "put a &lt;mesh&gt;" in verdict_line({"word": "wrong", "reasons": ["put a <mesh>"]})
