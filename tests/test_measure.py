"""The registry of metrics: what every entry owes, the formulas by hand, and reference implementations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anchor4d.core.cameras import FrontCamera
from anchor4d.core.files import InputError
from anchor4d.core.metrics import base, frechet, temporal
from anchor4d.core.metrics.base import ALL, MEAN, METRICS, Footage, mean_of_views, measure
from anchor4d.core.metrics.clip import Clip, around
from anchor4d.core.metrics.depth import fitted
from anchor4d.core.metrics.i3d import I3D
from anchor4d.core.metrics.inception import InceptionV3
from anchor4d.core.metrics.multiview import supported
from anchor4d.core.metrics.perceptual import LPIPS
from anchor4d.core.metrics.weights import loaded
from anchor4d.core.priors import models

ROOT = Path(__file__).parent.parent
SIZE = 48


def ball(frames: int, size: int = SIZE, radius: float = 9.0, speed: float = 1.0, phase: float = 0.0) -> np.ndarray:
    """A textured disc that moves to the right on white, (T, H, W, 4)."""
    y, x = np.mgrid[:size, :size].astype(float)
    clip = np.ones((frames, size, size, 4))
    for t in range(frames):
        u, v = x - size / 3 - speed * t, y - size / 2
        inside = np.clip(radius + 0.5 - np.hypot(u, v), 0, 1)
        texture = np.stack([0.5 + 0.4 * np.sin(0.7 * u + i + phase) * np.cos(0.5 * v) for i in range(3)], -1)
        clip[t, ..., :3] = 1 - inside[..., None] * (1 - texture)
        clip[t, ..., 3] = inside
    return clip


class Tokens(dict):
    def to(self, device: str) -> Tokens:
        return self


def tiny_clip() -> Clip:
    transformers = pytest.importorskip("transformers")
    text = dict(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, eos_token_id=49
    )
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)

    def tokenizer(texts: list[str], **options: Any) -> Tokens:
        ids = torch.tensor([[ord(letter) % 48 for letter in texts[0][:10]] + [49]])
        return Tokens(input_ids=ids, attention_mask=torch.ones_like(ids))

    return Clip(transformers.CLIPModel(config).eval(), tokenizer)


def random_networks() -> dict[str, Any]:
    torch.manual_seed(0)
    networks: dict[str, Any] = {f"lpips-{network}": LPIPS(network) for network in ("vgg", "alex")}
    return networks | {
        "i3d-k400": I3D(7, thinner=16, size=32),
        "inception-fid": InceptionV3(size=80),
        "clip-vit-b32": tiny_clip(),
    }


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    return random_networks()


def footage(networks: dict[str, Any], result: np.ndarray, truth: np.ndarray) -> Footage:
    depth = np.where(truth[..., 3] > 0.5, 2 + truth[..., 0], 0)
    seen = np.where(result[..., 3] > 0.5, 2 + result[..., 0], 0)
    views = {"0": result, "90": result}
    cameras = {name: FrontCamera(40.0, 2.0, *result.shape[2:0:-1]).cameras(float(name)) for name in views}
    return Footage(
        views, {"0": truth, "90": truth}, "a ball", truth[0], {"90": seen}, {"90": depth}, cameras, networks=networks
    )


# What every metric owes


@pytest.mark.parametrize("name", list(METRICS))
def test_every_metric_says_what_it_is(name: str) -> None:
    each = METRICS[name]
    assert each.name == name and each.text and each.better in ("higher", "lower")
    assert each.needs <= {"truth", "text", "image", "views", "cameras", "depth"}
    assert set(each.models) <= {model.name for model in models.known_models()}


def test_the_documentation_shows_every_metric() -> None:
    assert base.markdown_table() in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name, each in METRICS.items() if not each.by_name])
def test_every_metric_prefers_the_truth(name: str, networks: dict[str, Any]) -> None:
    each, size = METRICS[name], 176 if name == "ms-ssim" else SIZE
    frames = max(3, each.frames)
    truth, worse = ball(frames, size), ball(frames, size, radius=7.0, speed=0.6, phase=1.0)
    worse[1::2, ..., :3] = 0.9 * worse[1::2, ..., :3]  # and it flickers
    if reason := each.lacks(footage(networks, truth, truth)):
        assert each.packages, reason
        pytest.skip(reason)
    right, wrong = (each.compute(footage(networks, clip, truth)) for clip in (truth, worse))
    assert right.keys() <= {"0", "90", ALL} and right.keys() == wrong.keys() and right
    assert all(np.isfinite([*right.values(), *wrong.values()]))
    if each.ideal is not None:
        assert [*right.values()] == pytest.approx([each.ideal] * len(right), abs=2e-4)
        sign = 1 if each.better == "higher" else -1
        assert all(sign * right[view] > sign * wrong[view] for view in right)


def test_what_cannot_be_measured_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models, "models_folders", lambda: [tmp_path])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    clip = ball(4, 32)
    found = measure(Footage({"0": clip}))
    assert {"jitter"} <= found.values.keys() and "psnr" not in found.values
    assert found.left_out["psnr"] == "needs true pictures of the same views, give a reference"
    assert "models get clip-vit-b32" in found.left_out["clip-f"]
    both = measure(Footage({"0": clip}, {"0": clip}))
    assert both.left_out["fvd"].startswith("needs at least 9 frames, there are 4")
    assert "models get inception-fid" in both.left_out["fid-vid"]
    assert "left out" in both.table() and "psnr" in both.table()
    assert not any(name.startswith("vbench") for name in (*both.values, *both.left_out))
    with pytest.raises(InputError, match=r"lpips: lpips-vgg: this model .* models get lpips-vgg"):
        measure(Footage({"0": clip}, {"0": clip}), ["lpips"])
    with pytest.raises(InputError, match="metric 'nothing': unknown, choose one of"):
        measure(Footage({"0": clip}), ["nothing"])
    with pytest.raises(InputError, match=r"view 0: renders of 4 frames at 32x32 where the truth has 3"):
        Footage({"0": clip}, {"0": clip[:3]})


def test_the_mean_leaves_the_driving_view_out() -> None:
    assert mean_of_views({"0": 40.0, "15": 20.0, "105": 30.0}) == 25.0
    assert mean_of_views({"0": 40.0}) == 40.0
    assert mean_of_views({ALL: 3.0}) == 3.0
    found = measure(Footage({"0": ball(4, 32), "90": ball(4, 32, speed=0.0)}, {"0": ball(4, 32), "90": ball(4, 32)}), ["psnr"])
    assert found.values["psnr"]["0"] == 40.0 and found.values["psnr"][MEAN] == found.values["psnr"]["90"] < 40


def test_views_stand_around_the_object() -> None:
    clip = ball(2, 8)
    assert around(Footage({"105": clip, "-75": clip, "0": clip, "15": clip})) == ["0", "15", "105", "-75"]
    assert around(Footage({"left": clip, "front": clip})) == ["left", "front"]


# Formulas


def test_the_frechet_distance_of_normals_is_closed_form() -> None:
    rng = np.random.default_rng(0)
    white = rng.normal(size=(500, 3))
    white = (white - white.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T  # covariance 1
    a, b = white * [1.0, 2.0, 3.0], white * [2.0, 2.0, 1.0] + [0.0, 3.0, 4.0]
    # |m|^2 + sum (s_a - s_b)^2 of commuting covariances
    assert frechet.frechet_distance(a, b) == pytest.approx(25 + 1 + 0 + 4, rel=1e-9)
    assert frechet.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_is_that_of_the_matrix_square_root_and_exact_where_it_is_degenerate() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(40, 6)), rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)) + 0.3
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca + cb - 2 * np.real(sqrtm(ca @ cb)))
    assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    # Three samples of six numbers each: the covariances have rank 2. By the eigenvalues of the product.
    few, other = a[:3], b[:3]
    ca, cb = np.cov(few, rowvar=False), np.cov(other, rowvar=False)
    roots = np.sqrt(np.abs(np.linalg.eigvals(ca @ cb)).astype(float)).sum()
    expected = np.square(few.mean(0) - other.mean(0)).sum() + np.trace(ca + cb) - 2 * roots
    assert frechet.frechet_distance(few, other) == pytest.approx(expected, rel=1e-6)
    assert frechet.frechet_distance(a[:1], b[:1]) == pytest.approx(np.square(a[0] - b[0]).sum())


def test_the_distance_of_single_clips_takes_the_variance_over_logits() -> None:
    a, b = np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 7.0])
    # Standard deviations 1 and sqrt(12).
    assert frechet.clip_distance(a, b) == pytest.approx(0 + 1 + 16 + (1 - 12**0.5) ** 2)


def test_windows_of_sixteen_cover_the_clip() -> None:
    clip = np.arange(40)
    assert frechet._windows(clip)[:, 0].tolist() == [0, 16, 24]  # pyright: ignore[reportPrivateUsage]
    assert frechet._windows(clip[:32])[:, 0].tolist() == [0, 16]  # pyright: ignore[reportPrivateUsage]
    assert frechet._windows(clip[:16])[:, 0].tolist() == [0]  # pyright: ignore[reportPrivateUsage]


def test_jitter_is_the_second_difference() -> None:
    clip = np.ones((4, 2, 2, 4))
    clip[..., :3] = (0.1 * np.arange(4) ** 2)[:, None, None, None]  # second difference 0.2 everywhere
    assert temporal.jitter(clip) == pytest.approx(0.2)
    steady = clip.copy()
    steady[..., :3] = (0.1 * np.arange(4))[:, None, None, None]
    assert temporal.jitter(steady) == pytest.approx(0, abs=1e-12)
    assert temporal.jitter_error(steady, clip) == pytest.approx(0.2)
    assert temporal.jitter_error(clip, clip) == 0.0


def test_flow_finds_the_motion_and_carries_pictures_back() -> None:
    pytest.importorskip("skimage")
    clip = ball(2, 64, radius=16.0)
    there = temporal.flow(clip[0, ..., :3], clip[1, ..., :3])
    inside = np.hypot(*(np.mgrid[:64, :64] - np.array([32, 64 / 3]).reshape(2, 1, 1))) < 10
    assert np.median(there[1][inside]) == pytest.approx(1.0, abs=0.15) and abs(np.median(there[0][inside])) < 0.1
    ramp = np.tile(np.arange(8.0)[None, :, None], (8, 1, 1))
    motion = np.stack([np.zeros((8, 8)), np.full((8, 8), 2.0)])
    assert temporal.carried(ramp, motion)[0, :, 0].tolist() == [2, 3, 4, 5, 6, 7, 7, 7]
    assert temporal.visible(motion, -motion)[:, :6].all() and not temporal.visible(motion, motion)[:, :6].any()
    flickering = ball(4, 48)
    flickering[1::2, ..., :3] *= 0.8
    assert temporal.warp_error(ball(4, 48)) < 0.2 * temporal.warp_error(flickering)


def test_depth_is_compared_after_scale_and_shift() -> None:
    truth = np.array([[[1.0, 2.0, 4.0, 0.0]]])
    x, y = fitted(3 * truth + np.where(truth > 0, 5, 0), truth)
    np.testing.assert_allclose(x, y)
    off = np.array([[[1.0, 2.0, 3.0, 9.0]]])
    x, y = fitted(off, truth)  # least squares of 1, 2, 4 over 1, 2, 3: 7/3 + 1.5 (d - 2)
    np.testing.assert_allclose(x, [7 / 3 - 1.5, 7 / 3, 7 / 3 + 1.5])
    with pytest.raises(InputError, match="no pixel in common"):
        fitted(0 * truth, truth)


def test_silhouettes_of_one_object_fit_together(tmp_path: Path) -> None:
    from anchor4d.core.runs.measure import measure_files
    from anchor4d.core.runs.sample import write_sample

    larger = write_sample(tmp_path / "case", 2, 128)
    found = measure_files(larger, larger, ["silhouettes"]).values["silhouettes"]
    assert list(found)[:-1] == ["0", "-75", "15", "105", "195"] and min(found.values()) > 0.99
    described = json.loads((larger / "case.json").read_text())
    described["camera"] |= {"cx": 64.0, "cy": 64.0}  # a camera that looks elsewhere
    (larger / "case.json").write_text(json.dumps(described))
    assert measure_files(larger, larger, ["silhouettes"]).values["silhouettes"][MEAN] < 0.9
    # Cameras that look at a ball at the origin, and the same with one picture moved up: the parts beyond do not fit.
    camera = FrontCamera(40.0, 2.0, SIZE, SIZE)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    masks = torch.from_numpy((np.hypot(x, y) < 10).astype(float)).expand(3, -1, -1).clone()
    around_it = camera.cameras([0.0, 90.0, 200.0])
    assert float(supported(masks, around_it).min()) == 1.0
    masks[1] = masks[1].roll(-10, 0)
    share = supported(masks, around_it)
    assert float(share.max()) < 0.7 and float(share.min()) > 0.3
    masks[1] = 0
    assert supported(masks, around_it).tolist() == [0.0, 1.0, 0.0]


def test_clip_s_similarities_are_cosines(networks: dict[str, Any]) -> None:
    clip: Clip = networks["clip-vit-b32"]
    a, b = ball(3, 40), ball(3, 40, radius=5.0)
    made = footage(networks, a, b)
    ours, theirs, text = clip.images(a), clip.images(b), clip.text("a ball")
    np.testing.assert_allclose([np.linalg.norm(x) for x in (ours[0], theirs[1], text)], 1)
    expected = {
        "clip": np.mean([ours[t] @ theirs[t] for t in range(3)]),
        "clip-image": np.mean([ours[t] @ theirs[0] for t in range(3)]),
        "clip-text": np.mean([ours[t] @ text for t in range(3)]),
        "clip-f": (ours[0] @ ours[1] + ours[1] @ ours[2]) / 2,
        "clip-views": 1.0,
    }
    assert {name: measure(made, [name]).values[name][MEAN] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert float(clip.text("a ball") @ clip.text("a cube")) < 0.9999


def test_a_picture_that_is_no_square_is_padded_and_not_cut(networks: dict[str, Any]) -> None:
    clip: Clip = networks["clip-vit-b32"]
    tall = np.ones((1, 60, 40, 3))
    tall[:, :4] = 0
    square = np.ones((1, 60, 60, 3))
    square[:, :4, 10:50] = 0
    np.testing.assert_allclose(clip.images(tall), clip.images(square), atol=1e-6)


# Networks


def test_i3d_pads_as_tensorflow_does() -> None:
    from anchor4d.core.metrics.i3d import _padded  # pyright: ignore[reportPrivateUsage]

    x = torch.ones(1, 1, 5, 6, 7)
    # Stride 2, kernel 7: 5 -> 6 of padding, 6 -> 5 (2 before, 3 behind), 7 -> 6.
    padded = _padded(x, (7, 7, 7), (2, 2, 2))
    assert padded.shape == (1, 1, 11, 11, 13)
    assert float(padded[..., 2, 2, 3]) == 0 and float(padded[..., 3, 2, 3]) == 1
    assert float(padded[..., 3, 8, 3]) == 0 and float(padded[..., 3, 7, 3]) == 1


def test_i3d_equals_the_reference() -> None:
    reference = pytest.importorskip("cdfvd.third_party.i3d.pytorch_i3d", reason="the package cd-fvd is not installed")
    torch.manual_seed(0)
    theirs = reference.InceptionI3d(400, in_channels=3).eval()
    randomised(theirs)
    ours = loaded(I3D(), theirs.state_dict(), Path("i3d"))
    clips = torch.rand(1, 10, 224, 224, 3)
    with torch.no_grad():
        expected = theirs(2 * clips.permute(0, 4, 1, 2, 3) - 1)
        torch.testing.assert_close(ours(clips), expected, rtol=1e-4, atol=1e-4)
    utils = pytest.importorskip("cdfvd.third_party.i3d.utils", exc_type=ImportError)
    a, b = torch.randn(30, 8), 2 * torch.randn(30, 8) + 1
    expected = float(utils.frechet_distance(a.double(), b.double()))
    assert frechet.frechet_distance(a.numpy(), b.numpy()) == pytest.approx(expected, rel=1e-4)


def test_inception_equals_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = pytest.importorskip("pytorch_fid.inception", reason="pytorch-fid is not installed", exc_type=ImportError)
    torch.manual_seed(0)
    made = []

    def keep(network: Any, state: Any) -> None:
        randomised(network)
        made.append(network)

    monkeypatch.setattr(reference, "load_state_dict_from_url", lambda *args, **options: None)
    monkeypatch.setattr(reference.torchvision.models.Inception3, "load_state_dict", keep)
    theirs = reference.InceptionV3().eval()
    state = dict(made[0].state_dict())
    ours = loaded(InceptionV3(), state, Path("inception"), ignored=("fc.",))
    images = torch.rand(2, 64, 80, 3)
    with torch.no_grad():
        expected = theirs(images.movedim(-1, 1))[0].flatten(1)
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-4)
        assert float(expected.std()) > 1e-3


def randomised(network: torch.nn.Module) -> None:
    """Weights that keep a signal's size, and statistics that normalisation does not undo."""
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            torch.nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            torch.nn.init.uniform_(module.weight, 0.9, 1.1)
            torch.nn.init.normal_(module.bias, 0, 0.1)


def test_weights_of_another_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anchor4d.core.metrics.i3d import load_i3d

    monkeypatch.setattr(models, "models_folders", lambda: [tmp_path])
    with pytest.raises(InputError, match=r"i3d-k400: .* models get i3d-k400"):
        load_i3d("i3d-k400", "cpu")
    (tmp_path / "metrics").mkdir()
    torch.save({"logits.conv3d.weight": torch.zeros(3, 3)}, tmp_path / "metrics" / "i3d_pretrained_400.pt")
    with pytest.raises(InputError, match=r"i3d_pretrained_400\.pt: not the weights of I3D .*get it again"):
        load_i3d("i3d-k400", "cpu")
    assert base.METRICS["fvd"].models == ("i3d-k400",)


def test_clip_is_read_from_a_published_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    from anchor4d.core.metrics.clip import load_clip

    monkeypatch.setattr(models, "models_folders", lambda: [tmp_path])
    folder = tmp_path / "metrics" / "clip-vit-base-patch32"
    tiny = tiny_clip().model
    tiny.save_pretrained(folder)
    letters = {f"{letter}</w>": i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")} | {
        "<|startoftext|>": 48, "<|endoftext|>": 49,
    }  # fmt: skip
    transformers.CLIPTokenizer(vocab=letters, merges=[]).save_pretrained(folder)
    clip = load_clip("clip-vit-b32", "cpu")
    assert clip.text("a").shape == (12,)
    clip_text = clip.text("a " * 200)
    assert np.isfinite(clip_text).all()
    np.testing.assert_allclose(clip.images(ball(1, 32)), tiny_clip().images(ball(1, 32)), atol=1e-6)


def test_flow_of_large_pictures_is_estimated_smaller_and_counted_in_their_pixels() -> None:
    pytest.importorskip("skimage")
    clip = ball(3, 96, radius=20.0, speed=2.0)
    still = np.repeat(clip[:1], 3, 0)
    large = np.repeat(np.repeat(clip, 4, 1), 4, 2)
    reduced, factor = temporal.smaller(large)
    assert factor == 3 and reduced.shape == (3, 128, 128, 4)
    here, there = temporal.flow_error(still, clip), temporal.flow_error(np.repeat(large[:1], 3, 0), large)
    assert here == pytest.approx(2.0, abs=0.3) and there == pytest.approx(8.0, abs=1.2)


# Files


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from anchor4d.core.runs.sample import write_sample

    return write_sample(tmp_path_factory.mktemp("case"), 3, 32)


def test_a_result_in_files_has_the_benchmark_s_scores(case: Path, tmp_path: Path) -> None:
    from anchor4d.core.io import write_frames
    from anchor4d.core.metrics import mean_scores, score, score_case
    from anchor4d.core.runs.measure import measure_files, read_views

    views, _ = read_views(case)
    assert next(iter(views)) == "0" and len(views) == 5 and views["0"].shape == (3, 32, 32, 4)
    for name, pictures in views.items():
        moved = np.roll(pictures, 1, 2)
        write_frames(tmp_path / "renders" / name, np.concatenate([moved[..., :3], moved[..., 3:]], -1))
    names = ["psnr", "ssim", "iou", "motion", "frozen", "gain"]
    found = measure_files(tmp_path, case, names).values
    expected = score_case(case, tmp_path / "renders")
    for view, row in expected.items():
        for name in names[:-1]:
            assert found[name][MEAN if view == "mean of test views" else view] == pytest.approx(row[name], abs=1e-6)
    assert found["gain"][MEAN] == pytest.approx(found["psnr"][MEAN] - found["frozen"][MEAN])
    alone = measure_files(tmp_path / "renders" / "0", case, ["psnr"]).values["psnr"]
    assert alone[MEAN] == pytest.approx(expected["0"]["psnr"], abs=1e-6)
    assert mean_scores([score(views["0"], views["0"])])["psnr"] == 40.0
    (tmp_path / "renders" / "105").rename(tmp_path / "105")
    with pytest.raises(InputError, match=r"has no view 105, which .* has; render it"):
        measure_files(tmp_path / "renders", case, ["psnr"])


def test_scenes_are_rendered_from_the_reference_s_views(case: Path, tmp_path: Path) -> None:
    from anchor4d.core.runs.measure import measure_files
    from anchor4d.core.runs.sample import sample_scene

    sample_scene(300, 3).save(tmp_path / "scene.safetensors")
    found = measure_files(tmp_path, case, ["psnr", "iou", "depth-error"])
    assert list(found.values["psnr"]) == ["0", "-75", "15", "105", "195", MEAN]
    assert found.values["iou"][MEAN] > 0.5 and "depth-error" in found.left_out
    same = measure_files(tmp_path, tmp_path / "scene.safetensors", ["psnr", "depth-error"], azimuths=["0", "90"])
    assert same.values["psnr"] == {"0": 40.0, "90": 40.0, MEAN: 40.0}
    assert same.values["depth-error"][MEAN] == pytest.approx(0, abs=1e-6)


def test_depth_is_read_from_grey_pictures(case: Path, tmp_path: Path) -> None:
    from PIL import Image

    from anchor4d.core.io import write_frames
    from anchor4d.core.runs.measure import measure_files

    for name, scale in (("a", 100), ("b", 200)):
        write_frames(tmp_path / name / "0", ball(2, 16, radius=3.0))
        folder = tmp_path / name / "depth" / "0"
        folder.mkdir(parents=True)
        for t in range(2):
            Image.fromarray((scale * np.arange(256).reshape(16, 16) + 7 * scale).astype(np.uint16)).save(folder / f"{t}.png")
    found = measure_files(tmp_path / "a", tmp_path / "b", ["depth-error", "depth-within"]).values
    assert found["depth-error"][MEAN] == pytest.approx(0, abs=1e-9) and found["depth-within"][MEAN] == 1.0
    Image.new("RGB", (16, 16)).save(tmp_path / "a" / "depth" / "0" / "1.png")
    with pytest.raises(InputError, match=r"1\.png: depth is a grey picture"):
        measure_files(tmp_path / "a", tmp_path / "b", ["depth-error"])


def test_the_command(case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from anchor4d import cli

    out = tmp_path / "values.json"
    assert cli.main(["measure", str(case / "front"), str(case), "--metrics", "psnr", "clip-text", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "psnr" in printed and "clip-text  left out: needs a text" in printed
    assert json.loads(out.read_text())["values"]["psnr"] == {"0": 40.0, "mean": 40.0}
    assert cli.main(["measure", "--metrics"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n{name} " in "\n" + listed for name in METRICS)
    assert cli.main(["measure", str(case / "front"), "--metrics", "psnr"]) == 2
    assert "psnr: needs true pictures" in capsys.readouterr().err
    assert cli.main(["measure"]) == 2
