"""Studies: what each declares, that each of them runs, and the numbers, tables and drawings made of them."""

from __future__ import annotations

import json
import math
import shutil
import xml.etree.ElementTree as xml
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from anchor4d import cli
from anchor4d.bench import study_page, studying
from anchor4d.bench.studies import NUMBERS, STUDIES, Inputs, Study, Variant, alignment, inputs
from anchor4d.bench.study_page import Result
from anchor4d.bench.studying import Options, jobs_of, plain_config, run_variant, settings_of, slug
from anchor4d.core.files import InputError
from anchor4d.core.identity import canonical_json
from anchor4d.core.io.meshes import load_mesh
from anchor4d.core.io.video import load_video
from anchor4d.core.methods import stages
from anchor4d.core.priors.exact import ExactPrior
from anchor4d.core.runs import page
from anchor4d.core.runs.sample import write_sample

#: Whole runs in a second or two.
TINY = Options(size=24, gaussians=800, steps=0.01, frames=4, prior="none", yaw=0.0, device="cpu")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("cases") / "sample", 4, 48)


def options_for(study: Study) -> Options:
    """A method that takes no step without a prior gets the bundled one."""
    return replace(TINY, prior="tiny") if study.method == "stag4d" else TINY


# What is declared


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_says_what_it_asks_and_what_each_row_changes(name: str) -> None:
    study = STUDIES[name]
    assert study.question.endswith("?") and study.paper and study.limits
    assert {*study.numbers, *study.drawn} <= set(NUMBERS) and {*study.drawn} <= {*study.numbers, "frozen"}
    slugs = [slug(v.name) for v in study.variants]
    assert len(set(slugs)) == len(slugs) and all(slugs)
    assert bool(study.axis) == (sum(v.x is not None for v in study.variants) > 1)
    if study.run is not None:
        assert all(v.trial or v.needs for v in study.variants[1:])
        return
    seen = set()
    for variant in study.variants:
        options = replace(TINY, prior="tiny")
        settings = settings_of(study, variant, options, study.with_object)
        hooks = [bool(getattr(variant, hook)) for hook in ("inputs", "camera", "distance", "curves")]
        seen.add(canonical_json([asdict(settings), plain_config(study, variant, options, settings)]) + repr(any(hooks)))
        seen.add(variant.name) if any(hooks) else None
    assert len(seen) >= len(study.variants)  # no two rows are the same run


def test_every_module_of_the_papers_has_a_row() -> None:
    parts = {part for study in STUDIES.values() for v in study.variants for part in v.settings.get("without", ())}
    assert {"focal", "gs-mesh", "motion", "refinement", "oda", "maod", "mgja", "ao"} <= parts
    assert {"anchors", "fusion", "densification", "jsd", "rigidity", "amplification", "image", "view-guidance"} <= parts


def test_the_list_is_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(STUDIES)


def test_a_share_of_the_steps_densifies_as_often() -> None:
    study = STUDIES["stag4d-modules"]
    whole, less = (
        plain_config(study, study.variants[0], options, settings_of(study, study.variants[0], options, False)).motion
        for options in (replace(TINY, prior="tiny", steps=1.0), replace(TINY, prior="tiny", steps=0.1))
    )
    counts = [
        sum(
            step >= m.density.start and not step % m.density.every and step <= m.density.stop * m.schedule.steps
            for step in range(m.schedule.steps)
        )
        for m in (whole, less)
    ]
    assert less.schedule.steps == whole.schedule.steps // 10
    assert counts[0] > 5 and abs(counts[1] - counts[0]) <= 1


# Runs


#: Rows that are run, where the last one that needs no model is not the cheapest.
ROWS = {"duration": "8 frames", "video-quality": "every 2nd frame", "stag4d-plus": "STAG4D from the mesh"}


@pytest.mark.parametrize("name", [name for name, study in STUDIES.items() if study.run is None])
def test_every_study_runs(name: str, case: Path, tmp_path: Path) -> None:
    """A row of it, with numbers for all its columns, a table, its drawings and a page."""
    study = STUDIES[name]
    variant = study.variant(ROWS.get(name, [v.name for v in study.variants if not v.needs][-1]))
    options, out = options_for(study), tmp_path / "run"
    numbers = run_variant(study, variant, str(case), out, options, False, None)
    assert json.loads((out / "scores.json").read_text()).keys() == numbers.keys()
    assert all(math.isfinite(value) for value in numbers.values())
    assert {*study.numbers} - {*numbers} <= {"card", "model", "processors"}  # the batch says the last
    assert (out / "report.html").is_file() and list((out / "side").glob("*.png"))
    result = Result("sample", variant.name, out, "done", "", numbers)
    table = study_page.write_study(study, tmp_path / "study", [result], options)
    assert table.splitlines()[2].startswith(f"| {variant.name} ")
    for key in study.drawn:
        if variant.x is None:  # a curve takes two
            assert xml.parse(tmp_path / "study" / f"{key}.svg")
    said = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [row["variant"] for row in said["rows"]] == [variant.name]
    assert bool(study.losses) == bool(list((tmp_path / "study").glob("loss-*.svg")))


def test_a_text_s_study_runs_by_the_exact_score(tmp_path: Path) -> None:
    study = STUDIES["ayg-modules"]
    options = replace(TINY, size=16, steps=0.02)
    whole, drift = (
        run_variant(study, study.variant(name), "", tmp_path / slug(name), options, False, None) for name in ("whole", "no JSD")
    )
    assert {*study.numbers} <= {*whole} and whole["path"] != drift["path"]
    again = run_variant(study, study.variants[0], "", tmp_path / "whole", options, True, None)  # killed before its scores
    assert again == whole
    with pytest.raises(InputError, match="give --prior modelscope"):
        run_variant(study, study.variant("no view guidance"), "", tmp_path / "x", options, False, None)


def test_the_score_by_distance_is_drawn_for_three_spans_of_times(case: Path, tmp_path: Path) -> None:
    video, mesh = load_video(case / "front", resolution=32), load_mesh(case / "mesh.glb")
    aligned = stages.align(video, mesh, camera="fixed", yaw=0.0)
    prior = ExactPrior(lambda views, _: torch.ones(*views.azimuth.shape, 8, 8, 3), 8)
    curves = alignment.score_curves(video, aligned, {"prior": prior})
    assert len(curves) == 3 and all(len(x) == len(y) > 20 for x, y in curves.values())
    assert alignment.score_curves(video, aligned, {}) == {}
    (tmp_path / "curves.json").write_text(json.dumps(curves))
    drawn = study_page.curves_of(STUDIES["model-distance"], [Result("sample", "searched", tmp_path, "done")])
    assert drawn["score by distance"].count("<polyline") == 3


def test_the_command_runs_the_batch_goes_on_and_leaves_out_what_has_no_model(
    case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = "--size 24 --steps 0.01 --frames 3 --gaussians 800 --yaw 0 --prior none --device cpu --workers 1 --threads 1"
    argv = ["study", "run", "generators", "--cases", str(case.parent), "--out", str(out), *options.split()]
    argv += ["--variants", "true film, true mesh", "svd, true mesh"]
    assert cli.main(argv) == 0
    said = capsys.readouterr()
    assert "| true film, true mesh |" in said.out and "svd-true-mesh: failed, needs svd; get with: " in said.err
    text = (out / "generators" / "study.html").read_text()
    assert "default-src 'none'" in text and "left out" in text and "data:image/jpeg" in text
    assert "true mesh" in (out / "generators" / "study.md").read_text()
    run = json.loads((out / "generators" / "study.json").read_text())["runs"][0]["numbers"]
    record = json.loads((out / "generators" / case.name / "true-film-true-mesh" / "job.json").read_text())
    assert run["processors"] == record["processor_seconds"] > 0
    assert cli.main(argv) == 0
    assert "1 of 2 finished before" in capsys.readouterr().err
    assert cli.main([*argv[:-2], "no such row"]) == 2
    assert "not a variant of generators" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["no-such-study"], "study 'no-such-study': unknown, choose one of align4d-modules"),
        (["seeds", "--cases", "no-such-folder"], "--cases no-such-folder: no cases"),
        (["seeds", "--only", "fox"], "--only fox: no such case, choose of sample"),
        (["seeds", "--renderer", "pencil"], "seeds: nothing to run, renderer 'pencil'"),
        (["seeds", "mask", "--variants", "seed 1"], "--variants: names rows of one study"),
        (["seeds", "--frames", "1"], "--frames 1: motion needs at least 2"),
        (["seeds", "--size", "3"], "--size 3: choose 16 or more"),
        (["seeds", "--steps", "0"], "'0': choose a number above 0"),
        (["seeds", "--yaw", "north"], "'north': choose auto, or degrees"),
    ],
)
def test_what_cannot_be_run_is_one_line(
    more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: Path
) -> None:
    shutil.copytree(case, tmp_path / "cases" / "sample")
    assert cli.main(["study", "run", *more, "--out", str(tmp_path)]) == 2
    assert said in (error := capsys.readouterr().err) and error.count("\n") == 1, error
    assert not list(tmp_path.glob("*/*/*/report.json"))


def test_a_key_knows_the_case_s_content_and_the_settings(case: Path) -> None:
    study = STUDIES["pla4d-modules"]
    first, *others = jobs_of(study, {"sample": case}, TINY)
    assert len({job.key for job in (first, *others)}) == len(study.variants)
    assert jobs_of(study, {"sample": case}, TINY)[0].key == first.key
    assert jobs_of(study, {"sample": case}, replace(TINY, steps=0.02))[0].key != first.key


def test_generated_objects_are_cases(tmp_path: Path) -> None:
    made = studying.made_case(tmp_path / "object-0", 0, frames=2, size=32)
    given = studying.inputs_of(STUDIES["seeds"], Variant("x"), made, tmp_path / "run", replace(TINY, frames=None))
    assert given.frames.shape == (2, 32, 32, 4) and given.object == made / "mesh.glb" and len(given.truth) == 5
    assert 0.02 < float(given.frames[..., 3].mean()) < 0.9


# What variants make of their inputs


@pytest.fixture
def given() -> Inputs:
    """A red square that moves right by 2 pixels a frame."""
    frames = torch.zeros(8, 40, 40, 4)
    frames[..., 0] = 1.0
    for t in range(8):
        frames[t, 12:28, 4 + 2 * t : 20 + 2 * t, 3] = 1.0
    return Inputs(frames, 8.0, None, {"0": frames, "90": frames})


def test_masks_grow_shrink_and_have_holes(given: Inputs) -> None:
    area = given.frames[..., 3].sum((1, 2))
    changed = {v.name: v.inputs(given).frames for v in STUDIES["bad-masks"].variants if v.inputs}
    grown, shrunk = changed["grown by 3.0% of the height"], changed["shrunk by 3.0% of the height"]
    assert torch.equal(grown[..., 3].sum((1, 2)), torch.full_like(area, 18.0**2))
    assert torch.equal(shrunk[..., 3].sum((1, 2)), torch.full_like(area, 14.0**2))
    assert torch.equal(grown[0, 11, 10, :3], torch.ones(3))  # white came along
    holes = changed["holes"][..., 3]
    assert bool((holes <= given.frames[..., 3]).all()) and bool((holes.sum((1, 2)) < area).all())
    assert not torch.equal(holes[0, :, 4:20], holes[1, :, 6:22])


def test_videos_are_degraded_by_as_much_as_the_row_says(given: Inputs) -> None:
    soft = inputs.blurred(given.frames, 0.05)
    inner = slice(2, 7)  # where three sigmas lie inside the picture
    assert float(soft[inner, ..., 3].sum()) == pytest.approx(float(given.frames[inner, ..., 3].sum()), rel=1e-4)
    assert float(soft[0, 12, 10, 3]) == pytest.approx(0.5 + 0.5 * 0.199, abs=0.02)  # an edge pixel, sigma 2
    assert torch.allclose(soft[0, 20, 12, :3], torch.tensor([1.0, 0.0, 0.0]), atol=1e-4)  # no white comes in
    grain = inputs.noisy(torch.full((4, 64, 64, 4), 0.5), 0.1, torch.Generator().manual_seed(0))
    assert float(grain[..., :3].std()) == pytest.approx(0.1, rel=0.03) and bool((grain[..., 3] == 0.5).all())
    errors = [
        float((inputs.compressed(given.frames, q)[..., :3] - inputs.white(given.frames)).square().mean()) for q in (90, 5)
    ]
    assert 0 < errors[0] < errors[1]
    rare = inputs.rarer(2)(given)
    assert torch.equal(rare.frames, given.frames[::2]) and (rare.fps, rare.every, len(rare.truth["0"])) == (4.0, 2, 8)


def test_clips_last_longer_and_stride(given: Inputs) -> None:
    longer = inputs.lasting(20)(given)
    assert len(longer.frames) == len(longer.truth["90"]) == 20 and torch.equal(longer.frames[9], given.frames[1])
    wide = inputs.striding(3)(given)
    assert torch.equal(wide.frames, given.frames[[0, 3, 6, 1]]) and wide.fps == pytest.approx(8 / 3)


def test_a_wobbling_film_begins_with_the_true_frame(given: Inputs) -> None:
    bent = inputs.on_frames(inputs.wobbling)(given).frames
    assert torch.allclose(bent[0, ..., 3], given.frames[0, ..., 3], atol=1e-5)
    apart = (bent[1:, ..., 3] - given.frames[1:, ..., 3]).abs().mean((1, 2))
    assert bool((apart > 1e-3).all()) and bool((apart < 0.05).all())
    assert torch.equal(bent, inputs.on_frames(inputs.wobbling)(given).frames)


def test_a_video_of_fewer_frames_is_scored_at_all_of_the_truth(case: Path, tmp_path: Path) -> None:
    study = STUDIES["video-quality"]
    run_variant(study, study.variant("every 2nd frame"), str(case), tmp_path, TINY, False, None)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["frames"] == 2
    # Of frames 0 to 3 the fit sees 0 and 2; frame 3 lies behind its end, but for a loop.
    assert len(list((tmp_path / "side").glob("*.png"))) == (4 if report["loops"] else 3)


# Numbers, tables, drawings


def found(case: str, variant: str, **numbers: float) -> Result:
    return Result(case, variant, Path(variant), "done", "", numbers)


def test_rows_are_compared_case_by_case() -> None:
    study = replace(STUDIES["pla4d-modules"], variants=(Variant("a"), Variant("b"), Variant("c")))
    got = [
        found("x", "a", unseen=10.0),
        found("y", "a", unseen=20.0),
        found("x", "b", unseen=11.0),
        found("y", "b", unseen=19.0),
    ]
    got.append(found("z", "c", unseen=30.0))
    a, b, c = study_page.rows_of(study, got)
    assert (a.means["unseen"], b.means["unseen"], b.gain, b.gain_error) == (15.0, 15.0, 0.0, 1.0)
    assert a.errors["unseen"] == pytest.approx(5.0) and math.isnan(a.gain) and math.isnan(c.gain)
    cells = study_page.cells_of(study, [a, b, c])
    assert cells[0] == ["", "cases", "unseen", "unseen against the first"] and cells[2] == ["b", "2", "15.00", "+0.00 ± 1.00"]


def test_rows_are_compared_with_the_first_that_was_run() -> None:
    study = replace(STUDIES["pla4d-modules"], variants=(Variant("a"), Variant("b"), Variant("c")))
    rows = study_page.rows_of(study, [found("x", "b", unseen=11.0), found("x", "c", unseen=12.5)])
    assert [row.variant.name for row in rows] == ["b", "c"]
    assert math.isnan(rows[0].gain) and rows[1].gain == 1.5
    assert study_page.cells_of(study, rows)[2] == ["c", "12.50", "+1.50"]


def test_repetitions_have_a_spread_and_two_factors_a_square() -> None:
    study = replace(STUDIES["seeds"], variants=tuple(Variant(f"seed {s}", cell=(f"r{s // 2}", f"c{s % 2}")) for s in range(4)))
    rows = study_page.rows_of(study, [found("x", f"seed {s}", unseen=float(s)) for s in range(4)])
    cells = study_page.cells_of(study, rows)
    assert cells[-1] == ["standard deviation", f"{(5 / 3) ** 0.5:.2f}"]
    square = study_page.matrix(study, rows, "unseen")
    assert square == [["unseen", "c0", "c1"], ["r0", "0.00", "1.00"], ["r1", "2.00", "3.00"]]
    assert study_page.markdown(square).splitlines()[1] == "| ------ | ---: | ---: |"


def test_bars_are_as_long_as_their_values() -> None:
    figure = page.bars({"a <b>": (2.0, 0.0), "c": (4.0, 0.5), "none": (math.nan, 0.0), "less": (-1.0, 0.0)}, "t & u")
    drawn = page.drawing(figure)
    root = xml.fromstring(drawn)
    space = "{http://www.w3.org/2000/svg}"
    widths = [float(r.get("width", "")) for r in root.iter(f"{space}rect")][1:]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01) and widths[2] == pytest.approx(widths[0] / 2, rel=0.01)
    texts = [t.text for t in root.iter(f"{space}text")]
    assert "a <b>" in texts and "4.00" in texts and root.findtext(f"{space}title") == "t & u"
    assert page.drawing(page.bars({"x": (math.nan, 0.0)}, "t")) == ""


def test_bars_of_near_values_begin_below_the_least() -> None:
    near = page.bars({"a": (20.0, 0.0), "b": (21.0, 0.0)}, "t")
    assert ">19.65<" in near and ">0.00<" not in near
