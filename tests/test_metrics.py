from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anchor4d.core.files import InputError
from anchor4d.core.io import write_frames
from anchor4d.core.metrics import frozen, iou, load_frames, motion, on_white, psnr, score, score_case, ssim


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def test_psnr_of_a_constant_error_is_closed_form_and_capped_per_frame() -> None:
    truth = np.full((2, 8, 8, 3), 0.5)
    shifted = truth + np.array([0.1, 1e-4])[:, None, None, None]
    assert psnr(shifted, truth) == pytest.approx([20.0, 40.0])


def test_ssim_of_flat_pictures_is_the_luminance_term() -> None:
    a, b = np.full((1, 16, 16, 3), 0.2), np.full((1, 16, 16, 3), 0.6)
    assert ssim(a, b) == pytest.approx([(2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)])
    assert ssim(a, a) == pytest.approx([1.0])


def test_ssim_equals_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a, b = noise(3, 33, 21, 3), noise(3, 33, 21, 3, seed=1)
    b = 0.7 * a + 0.3 * b
    expected = [metrics.structural_similarity(x, y, channel_axis=-1, data_range=1.0) for x, y in zip(a, b)]
    np.testing.assert_allclose(ssim(a, b), expected, atol=1e-12)


def test_iou_counts_pixels_above_half() -> None:
    a, b = np.zeros((2, 4, 4)), np.zeros((2, 4, 4))
    a[0, :2], b[0, 1:3] = 0.51, 1.0
    b[0, 3] = 0.5
    assert iou(a, b).tolist() == [pytest.approx(4 / 12), 0.0]


def test_motion_is_one_for_the_truth_zero_for_stillness_and_blind_to_a_constant_offset() -> None:
    truth = noise(4, 8, 8, 3)
    assert motion(truth + 0.3, truth) == pytest.approx(1.0)
    assert motion(np.repeat(truth[:1], 4, 0), truth) == pytest.approx(0.0)
    half = truth[:1] + 0.5 * (truth - truth[:1])
    assert motion(half, truth) == pytest.approx(0.75)


def test_frozen_is_the_psnr_of_the_first_frame() -> None:
    truth = noise(3, 8, 8, 3)
    assert frozen(truth) == pytest.approx(psnr(np.stack([truth[0]] * 2), truth[1:]).mean())


def test_on_white_composites_straight_alpha_and_finds_rgb_masks() -> None:
    rgba = np.array([[[[0.2, 0.4, 1.0, 0.5]]]])
    np.testing.assert_allclose(on_white(rgba)[0, 0, 0], [0.6, 0.7, 1.0, 0.5])
    rgb = np.array([[[[1.0, 1.0, 0.97], [1.0, 0.99, 0.98]]]])
    assert on_white(rgb)[0, 0, :, 3].tolist() == [1.0, 0.0]


def make_case(folder: Path, size: int = 16) -> tuple[Path, Path]:
    case, renders = folder / "case", folder / "renders"
    for view, seed in [("front", 1), ("views/15", 2), ("views/105", 3)]:
        rgba = noise(3, size, size, 4, seed=seed)
        write_frames(case / view, rgba)
        write_frames(renders / view.split("/")[-1].replace("front", "0"), (rgba + 0.1 * noise(3, size, size, 4)).clip(0, 1))
    (case / "case.json").write_text(json.dumps({"name": "made", "test_azimuths": [15, 105]}))
    return case, renders


def test_score_case_takes_the_mean_over_test_views_only(tmp_path: Path) -> None:
    case, renders = make_case(tmp_path)
    rows = score_case(case, renders)
    assert list(rows) == ["0", "15", "105", "mean of test views"]
    assert rows["mean of test views"]["psnr"] == pytest.approx((rows["15"]["psnr"] + rows["105"]["psnr"]) / 2)
    direct = score(load_frames(case / "front"), load_frames(renders / "0"))
    assert rows["0"] == direct


def test_score_case_compares_the_frames_that_were_kept(tmp_path: Path) -> None:
    case, renders = make_case(tmp_path)
    for view in ("0", "15", "105"):
        (renders / view / "001.png").unlink()
    truth, ours = load_frames(case / "front"), load_frames(renders / "0")
    assert score_case(case, renders, [0, 2])["0"] == score(truth[[0, 2]], ours)


def test_score_case_names_what_is_missing_or_does_not_fit(tmp_path: Path) -> None:
    case, renders = make_case(tmp_path)
    write_frames(renders / "105", np.zeros((2, 16, 16, 4)))
    with pytest.raises(InputError, match=r"105.*2 frames"):
        score_case(case, renders)
    with pytest.raises(InputError, match=r"case\.json"):
        score_case(renders, renders)
    (renders / "15" / "001.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"001\.png"):
        score_case(case, renders)
    with pytest.raises(InputError, match="nowhere"):
        score_case(case, tmp_path / "nowhere")


def test_scores_equal_the_benchmarks_own_tool(tmp_path: Path) -> None:
    bench = os.environ.get("ANCHOR4D_BENCH")
    tool = Path(bench or ".").parent / "tools" / "evaluate.py"
    if not bench or not tool.is_file():
        pytest.skip("ANCHOR4D_BENCH is not set to benchmark cases with their tools/evaluate.py beside them")
    pytest.importorskip("skimage")
    case = next(p for p in sorted(Path(bench).iterdir()) if (p / "case.json").is_file())
    azimuths = [str(a) for a in json.loads((case / "case.json").read_text())["test_azimuths"]]
    for view in ["0", *azimuths]:
        frames = load_frames(case / "front" if view == "0" else case / "views" / view)
        frames[..., :3] += 0.1 * (noise(*frames.shape[:3], 3) - 0.5) * frames[..., 3:]
        shifted = np.roll(frames, 2, 2)
        write_frames(tmp_path / view, shifted if view != "15" else shifted[..., :3])  # RGB on white for one of them
    theirs = tmp_path / "theirs.json"
    subprocess.run(
        [sys.executable, str(tool), str(case), str(tmp_path), "--json", str(theirs)], check=True, capture_output=True
    )
    expected = json.loads(theirs.read_text())["views"]
    ours = score_case(case, tmp_path)
    assert ours.keys() == expected.keys()
    for view, row in expected.items():
        assert ours[view] == pytest.approx(row, abs=1e-9)
