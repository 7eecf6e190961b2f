"""Object-distance alignment: what is told to priors, VAOD on synthetic scenes, MAOD with a prior whose distance is known."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anchor4d.core.align import FocalAlignment, Target
from anchor4d.core.align.distance import (
    DISTANCES,
    LENS,
    Meaning,
    ObjectDistance,
    align_distance,
    align_model_distance,
    fixed_camera,
    literal_distance,
    model_minimum,
    visual_distance,
)
from anchor4d.core.cameras import Crop, FrontCamera
from anchor4d.core.files import InputError
from anchor4d.core.io.meshes import load_mesh
from anchor4d.core.io.video import load_video
from anchor4d.core.mesh import Mesh
from anchor4d.core.methods import stages
from anchor4d.core.methods.stages import gaussians_on_mesh
from anchor4d.core.priors.base import Viewpoints
from anchor4d.core.priors.exact import ExactPrior
from anchor4d.core.priors.zero123 import Zero123
from anchor4d.core.runs.sample import sample_meshes
from anchor4d.core.scene.object3d import Object3D, SplatObject, render_object
from anchor4d.core.video import DrivingVideo

WHITE = torch.ones(3)
#: Video's distance and prior's resolution of the searches with an exact prior.
VISUAL, SIDE = 1.8, 48


@pytest.fixture(scope="module")
def character() -> Mesh:
    return sample_meshes(1)[0]


def filmed(item: Object3D, front: FrontCamera, crop: Crop | None = None) -> DrivingVideo:
    """One frame of the object as its driving video would show it."""
    crop = crop or Crop(0, 0, front.width, front.width, front.height)
    render = render_object(item, front.cropped(crop, round(crop.size)), supersample=4)
    color = render.color / render.alpha[..., None].clamp_min(1e-6)
    return DrivingVideo(frames=color.clamp(0, 1), masks=render.alpha, fps=12.0, crop=crop, source="synthetic")


def opinionated(item: Object3D, distance: float, pictures: int = 1) -> ExactPrior:
    """A prior that sees the object at its own distance, whatever it is told."""

    def truth(views: Viewpoints, taus: Tensor) -> Tensor:
        azimuth, elevation = views.azimuth.flatten(), views.elevation.flatten()
        cameras = ObjectDistance(distance, distance).cameras(azimuth, elevation, SIDE)
        return render_object(item, cameras, WHITE).color.reshape(*views.azimuth.shape, SIDE, SIDE, 3)

    prior = ExactPrior(truth, SIDE)
    prior.pictures = pictures
    return prior


def aligned(mesh: Object3D, elevation: float = 0.0) -> FocalAlignment:
    return FocalAlignment(FrontCamera(LENS, VISUAL, SIDE, SIDE, elevation=elevation), mesh, 0.0, [], 0.0)


# --- what is told -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meaning", "fourth", "rendered"),
    [("delta", -0.2, 1.3), ("literal", 1.3, 1.5), ("zero", 0.0, 1.5), ("implicit", 0.0, 1.3)],
)
def test_what_zero123_is_told(meaning: Meaning, fourth: float, rendered: float) -> None:
    distance = ObjectDistance(visual=1.5, model=1.3, meaning=meaning)
    assert distance.rendered == rendered
    views = distance.viewpoints(torch.tensor([90.0, -30.0]), torch.tensor([30.0, 10.0]), 0.0, 10.0)
    expected = [[-math.pi / 9, 1, 0, fourth], [0, -0.5, 0.75**0.5, fourth]]
    zero123 = Zero123.__new__(Zero123)  # its camera needs no networks
    assert torch.allclose(zero123.camera(views), torch.tensor(expected), atol=1e-6)
    cameras = distance.cameras(views.azimuth.flatten(), views.elevation.flatten(), 64)
    assert torch.allclose(cameras.positions.norm(dim=-1), torch.tensor(rendered))
    assert (cameras.width, cameras.height) == (64, 64)
    assert float(cameras.K[0, 1, 1]) == pytest.approx(32 / math.tan(math.radians(49.1) / 2))


def test_samples_of_several_pictures_are_told_of_each() -> None:
    views = ObjectDistance(1.5, 1.3).viewpoints(torch.tensor([[0.0, 90.0], [45.0, 135.0]]), 5.0, torch.tensor([[0.0], [45.0]]))
    assert views.azimuth.tolist() == [[0, 90], [45, 135]]
    assert views.distance.shape == views.elevation.shape == (2, 2)
    assert views.reference is not None
    assert views.reference.azimuth.tolist() == [[0], [45]]
    assert views.reference.distance.tolist() == [[1.5], [1.5]]


def test_the_videos_distance_is_that_of_its_crop() -> None:
    front = FrontCamera(LENS, 2.0, 320, 240)
    assert visual_distance(front, Crop(40, 0, 240, 320, 240)) == pytest.approx(2.0)
    assert visual_distance(front, Crop(100, 60, 120, 320, 240)) == pytest.approx(1.0)
    other = FrontCamera(36.0, 2.0 * math.tan(math.radians(LENS) / 2) / math.tan(math.radians(18)), 320, 240)
    assert visual_distance(other, Crop(40, 0, 240, 320, 240)) == pytest.approx(2.0)


# --- VAOD ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mesh", "splats"])
def test_the_distance_of_a_synthetic_object_is_found(character: Mesh, kind: str) -> None:
    item = character if kind == "mesh" else SplatObject.of(gaussians_on_mesh(character, 4000)[0]).normalized()[0]
    video = filmed(item, FrontCamera(LENS, 1.31, 256, 256))
    literal = align_distance(item, video, mode="literal", yaw=0.0)
    assert literal.front.distance == pytest.approx(1.30001)
    assert literal.report["visual_distance"] == pytest.approx(1.30001)
    assert literal.curves[-1].chosen == literal.front.distance
    robust = align_distance(item, video, yaw=0.0)
    assert robust.report["visual_distance"] == pytest.approx(1.31, abs=0.005)
    curve = robust.curves[-1]
    assert curve.chosen == robust.report["visual_distance"]
    # Drawn with one sample a pixel, which makes Gaussians a little wider: within two of its fine steps.
    assert float(curve.x[curve.y.argmin()]) == pytest.approx(1.31, abs=0.01)


def test_another_lens_and_place_in_the_picture_count_by_size(character: Mesh) -> None:
    front, crop = FrontCamera(38.0, 2.2, 400, 300, cx=180.0, cy=160.0), Crop(60.0, 40.0, 240.0, 400, 300)
    found = align_distance(character.turned(30), filmed(character, front, crop))
    assert (found.yaw + 30 + 180) % 360 - 180 == pytest.approx(0, abs=1.5)
    assert found.report["visual_distance"] == pytest.approx(visual_distance(front, crop), rel=3e-3)
    assert [curve.name for curve in found.curves][-1] == "Object distance (VAOD)"


def test_candidates_inside_the_object_are_left_out(character: Mesh) -> None:
    target = Target.of(filmed(character, FrontCamera(LENS, 1.31, 64, 64)))
    assert float(literal_distance(character, target)[1].x[0]) == pytest.approx(0.30001)
    long = character.turned(0).transformed(torch.diag(torch.tensor([0.2, 0.2, 5.0, 1.0]))).normalized()[0]
    half = float(long.vertices[:, 2].max())
    x = literal_distance(long, target)[1].x
    assert half < float(x[0]) <= half + 0.05
    assert torch.equal(x, DISTANCES[-len(x) :])


def test_the_fixed_camera_tries_every_degree(character: Mesh) -> None:
    video = filmed(character, FrontCamera(LENS, 1.5, 64, 64))
    found = fixed_camera(character.turned(-40), video)
    assert found.yaw == 40
    assert (found.front.fovy, found.front.distance) == (LENS, 1.5)
    assert found.curves[0].x.tolist() == list(range(-179, 181))
    assert fixed_camera(character, video, distance=2.0, yaw=0.0).front.distance == 2.0


def test_an_aligned_object_is_aligned_anew(character: Mesh) -> None:
    """A wrong turn before is undone, turns are counted from the object as it was, and it stays normalised."""
    video = filmed(character.turned(20.0).normalized()[0], FrontCamera(LENS, 2.2, 64, 64))
    wrong = fixed_camera(character, video, yaw=110.0)
    given = stages.realign(video, wrong, mode="literal", yaw=20.0)
    kept = stages.realign(video, fixed_camera(character, video, yaw=20.0), mode="literal")
    for found in (given, kept):
        assert found.yaw == found.report["yaw"] == pytest.approx(20.0)
        assert found.front.distance == pytest.approx(2.2, abs=0.05)
        assert torch.allclose(found.mesh.vertices, character.turned(20.0).normalized()[0].vertices, atol=1e-5)
    assert wrong.front.distance == 1.5


def test_colours_taken_through_a_wrong_camera_are_taken_anew(character: Mesh) -> None:
    video = filmed(character, FrontCamera(LENS, 2.2, 64, 64))
    bare = Mesh(vertices=character.vertices, faces=character.faces, name="bare")
    assert not bare.has_color
    wrong = stages.colored(fixed_camera(bare, video, yaw=0.0), video)
    found = stages.realign(video, wrong, mode="literal")
    right = stages.align(video, bare, camera="distance-literal", yaw=0.0)
    assert found.front == right.front
    seen = [render_object(item.mesh, item.front.cropped(video.crop, 64), WHITE).color for item in (found, right, wrong)]
    assert (seen[0] - seen[1]).abs().mean() < 0.2 * (seen[2] - seen[1]).abs().mean()


def test_no_foreground_is_an_input_error(character: Mesh) -> None:
    video = filmed(character, FrontCamera(LENS, 50.0, 64, 64))
    with pytest.raises(InputError, match="no foreground"):
        align_distance(character, video, mode="literal")


# --- MAOD ---------------------------------------------------------------------------------------------------------------


def dip(x: Tensor, at: float, depth: float = 1.0) -> Tensor:
    return -depth * (-(((x - at) / 0.15) ** 2)).exp()


def test_the_rule_takes_the_nearest_minimum_below_the_videos_distance() -> None:
    x = DISTANCES[6:]
    falling = 3 - x / 2
    assert model_minimum(x, falling, 1.8)[0] is None
    assert model_minimum(x, falling, 1.82)[1].endswith("least at 1.80")
    assert model_minimum(x, x, 1.8)[1].endswith("least at 0.30")
    two = falling + dip(x, 0.8) + dip(x, 1.4, 0.5)
    assert model_minimum(x, two, 1.8)[0] == pytest.approx(1.4, abs=0.03)
    assert model_minimum(x, two, 1.2)[0] == pytest.approx(0.8, abs=0.03)
    beyond = 2 + dip(x, 1.37) + dip(x, 2.5, 1.9)
    assert model_minimum(x, beyond, 1.8)[0] == pytest.approx(1.37, abs=0.005)
    assert model_minimum(x, falling + dip(x, 2.5), 1.8)[0] is None


def test_the_rule_ignores_ripples() -> None:
    x = DISTANCES[6:]
    ripple = 1 + 0.02 * torch.rand(len(x), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert model_minimum(x, ripple, 1.8)[0] is None
    assert model_minimum(x, ripple + dip(x, 1.2, 0.3), 1.8)[0] == pytest.approx(1.2, abs=0.05)


@pytest.mark.parametrize("preferred", [1.1, 1.3, 1.52])
def test_a_prior_with_a_distance_of_its_own_gives_it(character: Mesh, preferred: float) -> None:
    found = align_model_distance(
        aligned(character), filmed(character, aligned(character).front), opinionated(character, preferred)
    )
    assert not found.fallback
    assert found.distance.model == pytest.approx(preferred, abs=0.05)
    assert found.distance.visual == pytest.approx(VISUAL)
    assert found.curve.chosen == found.distance.model
    assert found.distance.rendered == found.distance.model


def test_a_prior_of_four_pictures_is_searched_by_what_it_draws(character: Mesh) -> None:
    alignment = aligned(character, elevation=10.0)
    video = filmed(character, alignment.front)
    found = align_model_distance(alignment, video, opinionated(character, 1.4, pictures=4), meaning="delta")
    assert found.distance.meaning == "implicit"
    assert found.distance.model == pytest.approx(1.4, abs=0.05)


def test_a_prior_without_one_leaves_the_videos_and_says_so(character: Mesh, caplog: pytest.LogCaptureFixture) -> None:
    alignment = aligned(character)
    video = filmed(character, alignment.front)
    found = align_model_distance(alignment, video, opinionated(character, 2.3))
    assert found.fallback
    assert found.distance.model == found.distance.visual
    assert "no local minimum" in caplog.text
    assert json.loads(json.dumps(found.report))["fallback"] is True
    again = align_model_distance(alignment, video, opinionated(character, 2.3))
    assert torch.equal(found.curve.y, again.curve.y)


def test_the_search_tells_its_progress_and_may_be_interrupted(character: Mesh) -> None:
    told: list[float] = []

    def interrupt(fraction: float, picture: Tensor | None) -> None:
        told.append(fraction)
        assert picture is not None
        assert picture.shape == (SIDE, 4 * SIDE, 3)
        if len(told) == 3:
            raise KeyboardInterrupt

    alignment = aligned(character)
    with pytest.raises(KeyboardInterrupt):
        align_model_distance(alignment, filmed(character, alignment.front), opinionated(character, 1.3), progress=interrupt)
    assert 0 < told[0] < told[1] < told[2] < 1


def test_a_prior_that_takes_no_picture_is_refused(character: Mesh) -> None:
    prior = opinionated(character, 1.3).with_settings(conditions=frozenset({"text", "cameras"}))
    alignment = aligned(character)
    with pytest.raises(InputError, match="prior exact is not conditioned on a picture"):
        align_model_distance(alignment, filmed(character, alignment.front), prior)


# --- benchmark cases ----------------------------------------------------------------------------------------------------


def _cases() -> list[Path]:
    root = os.environ.get("ANCHOR4D_BENCH")
    return sorted(p.parent for p in Path(root).glob("*/case.json")) if root else []


@pytest.mark.skipif(not _cases(), reason="ANCHOR4D_BENCH names no folder of benchmark cases")
@pytest.mark.parametrize("folder", _cases(), ids=lambda p: p.name)
def test_benchmark_sizes_are_found(folder: Path) -> None:
    truth = json.loads((folder / "case.json").read_text())["camera"]
    video = load_video(folder / "front")
    true = visual_distance(FrontCamera(truth["fovy_degrees"], truth["distance"], 256, 256), video.crop)
    found = align_distance(load_mesh(folder / "mesh.glb"), video)
    assert found.report["visual_distance"] == pytest.approx(true, rel=3e-3)
