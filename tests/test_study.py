"""A user study: what the page and its key hold, votes that are none, and the count against known intervals."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anchor4d import cli
from anchor4d.bench import study
from anchor4d.bench.player import chromium
from anchor4d.core.files import InputError
from anchor4d.core.io import write_mp4


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films of two systems on two cases each, and one case that one alone has."""
    folder = tmp_path_factory.mktemp("results")
    for value, place in enumerate(("ours/fox", "ours/horse", "ours/cat", "theirs/fox", "theirs/horse")):
        (folder / place).mkdir(parents=True)
        write_mp4(folder / place / "preview.mp4", np.full((2, 16, 16, 3), 40 * value, np.uint8), 4)
    return folder


@pytest.fixture
def made(results: Path, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A page, and its key."""
    page = tmp_path / "study.html"
    argv = ["study", "make", "--of", f"ours={results}/ours", "--of", f"theirs={results}/theirs"]
    argv += ["--ratings", "--repeat", "1", "--question", "Which?", "--title", "Films <1> {data}", "--out", str(page)]
    assert cli.main(argv) == 0
    return page, json.loads((tmp_path / "study.key.json").read_text())


def test_the_page_is_blind_and_loads_nothing(made: tuple[Path, dict[str, Any]]) -> None:
    page, key = made
    text = page.read_text()
    assert "default-src 'none'" in text and not re.search(r"(src|href)\s*=\s*[\"'](https?:)?//", text)
    assert "ours" not in text and "theirs" not in text and "fox" not in text
    assert "Films &lt;1&gt; {data}" in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])  # pyright: ignore[reportOptionalSubscript]
    assert set(data["films"]) == set(key["films"]) and len(key["films"]) == 4  # the cat has no rival
    assert sorted(map(sorted, key["pairs"])) == data["pairs"]
    for a, b in key["pairs"]:
        assert key["films"][a]["case"] == key["films"][b]["case"]
        assert {key["films"][a]["system"], key["films"][b]["system"]} == {"ours", "theirs"}


def test_a_key_is_never_replaced(made: tuple[Path, dict[str, Any]], results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["study", "make", "--of", f"a={results}/ours", "--of", f"b={results}/theirs", "--out", str(made[0])]
    assert cli.main(argv) == 2
    assert "its votes need this key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--of", "ours"], "write NAME=DIR"),
        (["--of", "ours=gone"], "no such folder"),
        (["--of", "ours={}/ours"], "no case with a preview.mp4 in two"),
        (["--of", "a={}/ours", "--of", "b={}/theirs", "--film", "report.json"], "choose an .mp4"),
        (["--of", "a={}/ours", "--of", "b={}/theirs", "--repeat", "3"], "--repeat 3: choose from 0 to 2"),
        (["--of", "a={}/ours", "--of", "b={}/theirs", "--pairs", "3"], "--pairs 3: choose from 1 to 2"),
    ],
)
def test_what_makes_no_study_is_refused(
    argv: list[str], words: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["study", "make", *(text.format(results) for text in argv), "--out", str(tmp_path / "s.html")]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# The count


KEY = {
    "study": "s",
    "questions": ["Which?"],
    "films": {f"{system}{case}": {"system": system, "case": case} for system in "ab" for case in ("1", "2", "3")},
    "pairs": [["a1", "b1"], ["a2", "b2"], ["a3", "b3"]],
}


def votes(
    visitor: str, *choices: str | None, ratings: dict[str, int] | None = None, repeat: str | None = None
) -> dict[str, Any]:
    pairs = [{"pair": [f"b{i}", f"a{i}"], "choice": [c and f"{c}{i}"], "repeat": False} for i, c in enumerate(choices, 1)]
    if repeat:
        pairs.append({"pair": ["a1", "b1"], "choice": [f"{repeat}1"], "repeat": True})
    rated = [{"film": film, "rating": rating} for film, rating in (ratings or {}).items()]
    return {"study": "s", "visitor": visitor, "pairs": pairs, "ratings": rated}


def test_votes_are_counted_by_system() -> None:
    given = [
        votes("u", "a", "a", "b", ratings={"a1": 5, "b1": 2}, repeat="a"),
        votes("v", "a", None, "a", ratings={"a1": 4, "b1": 3}, repeat="b"),
    ]
    counted = study.count(KEY, given)
    (row,) = counted["pairs"]
    assert (row["a"], row["b"], row["for_a"], row["for_b"], row["no_difference"]) == ("a", "b", 4, 1, 1)
    assert row["share"] == 0.8
    assert counted["ratings"][0]["mean"] == 4.5 and counted["ratings"][1]["mean"] == 2.5
    assert counted["steady"] == {"answers": 2, "same": 0.5}
    assert "| a | b | Which? | 4 | 1 | 1 | 80.0% |" in study.tables(counted)


def test_wilson_intervals_are_those_of_the_literature() -> None:
    """Newcombe 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    for won, of, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert study.wilson(won, of) == pytest.approx((low, high), abs=5e-5)


def test_the_bootstrap_draws_visitors() -> None:
    """Visitors who agree with themselves alone say as much as one vote each: the interval is that of four votes, not of 400."""
    low, high = study.bootstrap([(100, 100), (100, 100), (0, 100), (0, 100)]) or (0, 0)
    assert (low, high) == (0.0, 1.0)
    # Each with the same share: nothing is uncertain about it.
    assert study.bootstrap([(3, 4)] * 5) == (0.75, 0.75)
    # Its width is near that of the normal interval of a mean: 1.96 * 0.5 / sqrt(100).
    low, high = study.bootstrap([(i % 2, 1) for i in range(100)]) or (0, 0)
    assert (high - low) / 2 == pytest.approx(0.098, rel=0.15)
    assert study.bootstrap([(1, 2), (0, 0)]) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"study": "t"}, "belongs to another study"),
        ({"visitor": 3}, "is not as the page saves votes"),
        ({"pairs": [{"pair": ["a1", "b2"], "choice": ["a1"]}]}, "is not as the page saves votes"),
        ({"pairs": [{"pair": ["a1", "b1"], "choice": ["a2"]}]}, "is not as the page saves votes"),
        ({"pairs": [{"pair": ["a1", "b1"], "choice": ["a1", "a1"]}]}, "is not as the page saves votes"),
        ({"pairs": [{"pair": [["a1"], "b1"], "choice": ["a1"]}]}, "is not as the page saves votes"),
        ({"ratings": [{"film": "a1", "rating": 6}]}, "is not as the page saves votes"),
        ({"ratings": [{"film": "a1", "rating": True}]}, "is not as the page saves votes"),
        ({"pairs": 1}, "is not as the page saves votes"),
    ],
)
def test_votes_that_are_none_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "votes.json"
    path.write_text(json.dumps(votes("u", "a") | change))
    with pytest.raises(InputError, match=words):
        study.read_votes(path, KEY)


def test_who_saves_twice_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.key.json").write_text(json.dumps(KEY))
    for name, given in (("1", votes("u", "a")), ("2", votes("u", "a")), ("3", votes("v", "b"))):
        (tmp_path / f"votes-{name}.json").write_text(json.dumps(given))
    out = tmp_path / "out"
    assert cli.main(["study", "count", str(tmp_path / "study.key.json"), str(tmp_path), "--out", str(out)]) == 0
    assert "2 visitors" in capsys.readouterr().out
    counted = json.loads((out / "study.json").read_text())
    assert (counted["pairs"][0]["for_a"], counted["pairs"][0]["for_b"]) == (1, 1)


# In a browser


@pytest.fixture
def browser() -> Iterator[Any]:
    try:
        with chromium() as found:
            yield found
    except InputError as error:
        pytest.skip(str(error))


def test_a_visitor_plays_films_votes_and_saves(made: tuple[Path, dict[str, Any]], browser: Any, tmp_path: Path) -> None:
    path, key = made
    page = browser.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.goto(path.as_uri())
    for task in range(2 + 1 + 4):  # pairs, one again, ratings
        films = page.locator("video")
        assert films.count() == (2 if task < 3 else 1)
        # Code 4: a browser without H.264. Films that the page's policy holds back are among the faults.
        ready = "[...document.querySelectorAll('video')].every(film => film.readyState > 1 || film.error?.code === 4)"
        end = time.monotonic() + 30
        while not page.evaluate(ready):
            assert time.monotonic() < end
            page.wait_for_timeout(50)
        assert page.get_by_role("button", name="Next").is_disabled()
        page.locator("label").first.click()
        page.get_by_role("button", name="Next").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save my votes").click()
    download.value.save_as(tmp_path / "votes.json")
    read = study.read_votes(tmp_path / "votes.json", key)
    assert faults == []
    assert [vote["choice"] for vote in read["pairs"]] == [[vote["pair"][0]] for vote in read["pairs"]]
    assert [vote["repeat"] for vote in read["pairs"]] == [False, False, True]
    assert sorted(rating["film"] for rating in read["ratings"]) == sorted(key["films"])
    assert study.count(key, [read])["visitors"] == 1
