"""Studies of the program, which are in :mod:`.studying`; and a user study: one offline page of blind pairs and ratings made of
results, and the count of the votes it saves.

    python -m anchor4d study run NAME ... | study list
    python -m anchor4d study make --of ours=DIR --of theirs=DIR [--ratings] --out study.html
    python -m anchor4d study count study.key.json VOTES [VOTES ...] [--out DIR]

See docs/study.md and docs/user-study.md. The page knows its films by random names alone; which system made one stands in the
key, a file beside the page that stays with whoever runs the study. Each visitor sees the pairs in an order, and on sides, of
their own.
"""

from __future__ import annotations

import argparse
import base64
import html
import itertools
import json
import math
import random
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..console import Console
from ..core.files import InputError, atomic_path
from . import studying

QUESTIONS = (
    "Which object looks better?",
    "Whose motion looks more natural?",
    "Which stays closer to the driving video?",
    "Which do you prefer overall?",
)
SCALE = 5
#: Bootstrap samples, and the share of them inside an interval.
SAMPLES, LEVEL = 2000, 0.95
#: Standard normal quantile of :data:`LEVEL`.
Z = 1.959963984540054
#: Most bytes of a page's films together, and of a file of votes.
LARGEST_PAGE, LARGEST_VOTES = 400 << 20, 8 << 20
PAGE = Path(__file__).parents[1] / "web" / "study" / "page.html"
TYPES = {".mp4": "video/mp4", ".webm": "video/webm"}

Vote = dict[str, Any]


def add_options(made: argparse.ArgumentParser) -> None:
    """Options of the command."""
    steps = made.add_subparsers(metavar="STEP", required=True)
    studying.add_options(steps)
    make = steps.add_parser("make", help="a user study: make the page and its key", description="Make the page and its key.")
    make.set_defaults(step=make_study)
    make.add_argument(
        "--of", action="append", required=True, metavar="NAME=DIR",
        help="a system's results, a folder for each case: those of bench or batch; give it for each system",
    )  # fmt: skip
    make.add_argument(
        "--film", default="preview.mp4", metavar="FILE", help="the film in each case's folder (default: %(default)s)"
    )
    make.add_argument("--question", action="append", metavar="TEXT", help="asked of each pair, again for each (default: four)")
    make.add_argument("--ratings", action="store_true", help=f"also ask for a rating of each film, 1 to {SCALE}")
    make.add_argument("--repeat", type=int, default=0, metavar="N", help="show N pairs twice, which tells how steady votes are")
    make.add_argument("--pairs", type=int, metavar="N", help="pairs that each visitor sees, drawn anew (default: all)")
    make.add_argument("--title", default="Which one is better?", help="heading of the page (default: %(default)s)")
    make.add_argument("--out", type=Path, default=Path("study.html"), metavar="FILE", help="the page (default: %(default)s)")
    count = steps.add_parser("count", help="a user study: count the votes", description="Count the votes.")
    count.set_defaults(step=count_study)
    count.add_argument("key", type=Path, metavar="KEY", help="the key that was made with the page")
    count.add_argument("votes", type=Path, nargs="+", metavar="VOTES", help="files that the page saved, or folders of them")
    count.add_argument("--out", type=Path, metavar="DIR", help="also leave study.json and study.md there")
    for step in (make, count):
        step.add_argument("--verbose", action="store_true", help=argparse.SUPPRESS)


def study(args: argparse.Namespace, console: Console) -> int:
    """The command."""
    return args.step(args, console)


# The page


def make_study(args: argparse.Namespace, console: Console) -> int:
    """``study make``."""
    systems: dict[str, Path] = {}
    for text in args.of:
        name, sign, folder = text.partition("=")
        if not sign or not name.strip() or name in systems:
            raise InputError(f"--of {text}: write NAME=DIR, each system by a name of its own")
        if not Path(folder).is_dir():
            raise InputError(f"--of {text}: no such folder")
        systems[name] = Path(folder)
    if args.out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {args.out}: choose a name that ends in .html")
    key_path = args.out.with_suffix(".key.json")
    if key_path.exists():
        raise InputError(f"{key_path}: a study of this name is there; its votes need this key: choose another --out")
    films = find_films(systems, args.film)
    page, key = build(
        films, args.question or QUESTIONS, ratings=args.ratings, repeat=args.repeat, pairs=args.pairs, title=args.title
    )
    with atomic_path(key_path) as temporary:
        temporary.write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
    with atomic_path(args.out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    console.result(
        f"page: {args.out}\nkey, not for visitors: {key_path}\npairs: {len(key['pairs'])}, films: {len(key['films'])}"
    )
    return 0


def find_films(systems: Mapping[str, Path], film: str) -> dict[tuple[str, str], Path]:
    """Films by system and case, of the cases that at least two systems have.

    Raises:
        InputError: where there are none, or they are no films that browsers play.
    """
    if Path(film).suffix.lower() not in TYPES:
        raise InputError(f"--film {film}: choose an .mp4 or a .webm, which browsers play")
    found = {(name, path.parent.name): path for name, folder in systems.items() for path in sorted(folder.glob(f"*/{film}"))}
    cases = {case for _, case in found}
    shared = {case for case in cases if sum((name, case) in found for name in systems) > 1}
    if not shared:
        raise InputError(
            f"--of {', '.join(systems)}: no case with a {film} in two of them; folders of cases of the same names are compared"
        )
    return {place: path for place, path in found.items() if place[1] in shared}


def build(
    films: Mapping[tuple[str, str], Path],
    questions: Sequence[str],
    *,
    ratings: bool = False,
    repeat: int = 0,
    pairs: int | None = None,
    title: str = "",
) -> tuple[str, dict[str, Any]]:
    """The page, and the key that stays with whoever runs the study.

    Args:
        films: by system and case.
        repeat: how many pairs each visitor sees twice.
        pairs: how many each visitor sees, all where None.

    Raises:
        InputError: for films that are too large together, or numbers that do not fit.
    """
    if (size := sum(path.stat().st_size for path in films.values())) > LARGEST_PAGE:
        raise InputError(f"films of {size >> 20} MB: a page takes {LARGEST_PAGE >> 20} MB; choose fewer cases or smaller films")
    names = {place: secrets.token_hex(6) for place in films}
    cases: dict[str, list[str]] = {}
    for system, case in films:
        cases.setdefault(case, []).append(system)
    made = [[names[a, case], names[b, case]] for case, systems in cases.items() for a, b in itertools.combinations(systems, 2)]
    if pairs is not None and not 1 <= pairs <= len(made):
        raise InputError(f"--pairs {pairs}: choose from 1 to {len(made)}")
    if not 0 <= repeat <= (pairs or len(made)):
        raise InputError(f"--repeat {repeat}: choose from 0 to {pairs or len(made)}")
    identity = secrets.token_hex(8)
    key = {
        "study": identity,
        "questions": list(questions),
        "ratings": ratings,
        "films": {names[place]: {"system": place[0], "case": place[1]} for place in films},
        "pairs": made,
    }
    # Sorted by their random names: neither the films' order nor the pairs' says who made them.
    shown = {
        "study": identity,
        "questions": list(questions),
        "scale": SCALE if ratings else 0,
        "pairs": sorted(sorted(pair) for pair in made),
        "each": pairs or len(made),
        "repeat": repeat,
        "films": {
            names[place]: [TYPES[films[place].suffix.lower()], base64.b64encode(films[place].read_bytes()).decode()]
            for place in sorted(films, key=names.__getitem__)
        },
    }
    text = json.dumps(shown).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    parts = {"title": html.escape(title), "data": text}
    # One pass, so that a title that reads like a mark stays a title.
    return re.sub(r"\{(title|data)\}", lambda mark: parts[mark[1]], PAGE.read_text(encoding="utf-8")), key


# The count


def count_study(args: argparse.Namespace, console: Console) -> int:
    """``study count``."""
    key = _read(args.key, "key")
    if not all(isinstance(key.get(name), kind) for name, kind in (("films", dict), ("questions", list), ("study", str))):
        raise InputError(f"{args.key}: is no key of a study; it is made beside the page, as NAME.key.json")
    files = [file for path in args.votes for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    files = [file for file in files if file.resolve() != args.key.resolve()]
    if not files:
        raise InputError(f"{args.votes[0]}: no votes in it, the page saves them as votes-….json")
    visitors: dict[str, Vote] = {}
    for file in files:
        votes = read_votes(file, key)
        visitors[votes["visitor"]] = votes  # who saved twice counts once
    counted = count(key, list(visitors.values()))
    text = tables(counted)
    if args.out is not None:
        from ..core.runs.report import write_json

        write_json(args.out / "study.json", counted)
        with atomic_path(args.out / "study.md") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    console.result(text)
    return 0


def _read(path: Path, what: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_VOTES:
            raise InputError(f"{path}: more than {LARGEST_VOTES >> 20} MB, is no {what} of a study")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as the {what} of a study ({' '.join(str(error).split())[:100]})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: is no {what} of a study")
    return value


def read_votes(path: Path, key: Mapping[str, Any]) -> Vote:
    """One visitor's votes, checked against the key.

    Raises:
        InputError: for a file of another study, or one that the page did not write.
    """
    votes, films, questions = _read(path, "votes"), key["films"], key["questions"]
    if votes.get("study") != key["study"]:
        raise InputError(f"{path}: belongs to another study; leave it out, or give that study's key")
    pairs = {tuple(sorted(pair)) for pair in key["pairs"]}
    try:
        good = isinstance(votes["visitor"], str) and 1 <= len(votes["visitor"]) <= 64
        for vote in votes["pairs"]:
            good &= tuple(sorted(vote["pair"])) in pairs and isinstance(vote.get("repeat", False), bool)
            good &= len(vote["choice"]) == len(questions) and all(c is None or c in vote["pair"] for c in vote["choice"])
        for rating in votes["ratings"]:
            good &= rating["film"] in films and type(rating["rating"]) is int and 1 <= rating["rating"] <= SCALE
    except (KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise InputError(f"{path}: is not as the page saves votes; leave it out, or ask for the file again")
    return votes


def count(key: Mapping[str, Any], visitors: Sequence[Vote], seed: int = 0) -> dict[str, Any]:
    """Who is preferred to whom in each question, and the mean ratings, with 95 % intervals.

    A share is that of the votes for either side; votes for none are counted apart. Its Wilson interval takes votes as
    independent; the bootstrapped one draws whole visitors, whose votes are alike, and is the one to report for few visitors.
    Pairs shown again measure how steady a visitor is and count nowhere else.

    Returns:
        ``visitors``, ``pairs`` (rows by two systems and a question), ``ratings`` (rows by system), ``steady``: the share of
        repeated answers that were the same, and its number.
    """
    films, questions = key["films"], key["questions"]
    order = list(dict.fromkeys(film["system"] for film in films.values()))
    tallies: list[dict[tuple[str, str, int], list[int]]] = []
    ratings: list[dict[str, list[int]]] = []
    same = repeated = 0
    for votes in visitors:
        tally: dict[tuple[str, str, int], list[int]] = {}
        first: dict[tuple[str, ...], list[Any]] = {}
        for vote in votes["pairs"]:
            pair = tuple(sorted(vote["pair"]))
            if vote.get("repeat"):
                if pair in first:
                    repeated += len(questions)
                    same += sum(a == b for a, b in zip(first[pair], vote["choice"]))
                continue
            if pair in first:  # a pair counts once a visitor
                continue
            first[pair] = vote["choice"]
            by_system = sorted(pair, key=lambda film: order.index(films[film]["system"]))
            a, b = (films[film]["system"] for film in by_system)
            for number, choice in enumerate(vote["choice"]):
                row = tally.setdefault((a, b, number), [0, 0, 0])
                row[2 if choice is None else by_system.index(choice)] += 1
        tallies.append(tally)
        rated: dict[str, list[int]] = {}
        for film, rating in {rating["film"]: rating["rating"] for rating in votes["ratings"]}.items():
            rated.setdefault(films[film]["system"], []).append(rating)
        ratings.append(rated)
    rows = []
    for a, b in itertools.combinations(order, 2):
        for number, question in enumerate(questions):
            each = [tally.get((a, b, number), [0, 0, 0]) for tally in tallies]
            won, lost, none = (sum(row[i] for row in each) for i in range(3))
            if not won + lost + none:
                continue
            row = {"a": a, "b": b, "question": question, "for_a": won, "for_b": lost, "no_difference": none}
            if won + lost:
                row |= {"share": won / (won + lost), "wilson": wilson(won, won + lost)}
                row["bootstrap"] = bootstrap([(r[0], r[0] + r[1]) for r in each], seed)
            rows.append(row)
    rated_rows = []
    for system in order:
        sums = [(sum(rated.get(system, ())), len(rated.get(system, ()))) for rated in ratings]
        if number := sum(count for _, count in sums):
            mean = sum(total for total, _ in sums) / number
            rated_rows.append({"system": system, "ratings": number, "mean": mean, "bootstrap": bootstrap(sums, seed)})
    steady = {"answers": repeated, "same": same / repeated if repeated else None}
    return {"study": key["study"], "visitors": len(visitors), "pairs": rows, "ratings": rated_rows, "steady": steady}


def wilson(won: int, of: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927): (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    share, square = won / of, Z * Z
    middle = share + square / (2 * of)
    half = Z * math.sqrt(share * (1 - share) / of + square / (4 * of * of))
    low, high = ((middle + sign * half) / (1 + square / of) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def bootstrap(visitors: Sequence[tuple[float, int]], seed: int = 0) -> tuple[float, float] | None:
    """The 95 % percentile interval of a ratio of sums, drawn over visitors (Efron 1979); None for fewer than two that voted.

    Args:
        visitors: each one's sum and count.
    """
    voted = [visitor for visitor in visitors if visitor[1]]
    if len(voted) < 2:
        return None
    draw = random.Random(seed)
    ratios = []
    for _ in range(SAMPLES):
        drawn = draw.choices(voted, k=len(voted))
        ratios.append(sum(total for total, _ in drawn) / sum(number for _, number in drawn))
    ratios.sort()
    tail = (1 - LEVEL) / 2
    return ratios[math.floor(tail * (SAMPLES - 1))], ratios[math.ceil((1 - tail) * (SAMPLES - 1))]


def tables(counted: Mapping[str, Any]) -> str:
    """The count as Markdown tables."""

    def shown(interval: Sequence[float] | None, form: str) -> str:
        return "too few visitors" if interval is None else f"{format(interval[0], form)} to {format(interval[1], form)}"

    lines = [f"{counted['visitors']} visitors; intervals of 95 %", ""]
    if counted["pairs"]:
        lines += [
            "| A | B | question | for A | for B | none | A preferred | Wilson | by visitor |",
            "|---|---|---|--:|--:|--:|--:|---|---|",
        ]
    for row in counted["pairs"]:
        share = format(row["share"], ".1%") if "share" in row else ""
        intervals = [shown(row[name], ".1%") if "share" in row else "" for name in ("wilson", "bootstrap")]
        cells = [row["a"], row["b"], row["question"], row["for_a"], row["for_b"], row["no_difference"], share, *intervals]
        lines.append(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |")
    if counted["ratings"]:
        lines += ["", "| system | ratings | mean | by visitor |", "|---|--:|--:|---|"]
        lines += [
            f"| {row['system']} | {row['ratings']} | {row['mean']:.2f} | {shown(row['bootstrap'], '.2f')} |"
            for row in counted["ratings"]
        ]
    steady = counted["steady"]
    if steady["answers"]:
        lines += ["", f"Shown again, {steady['same']:.0%} of {steady['answers']} answers were the same."]
    return "\n".join(lines)
