"""STAG4D: anchors and their features' fusion, what the prior is asked, regularisers, densification, whole runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from anchor4d import cli
from anchor4d.core.cameras import Crop, FrontCamera
from anchor4d.core.deformation import DeformationMLP, HexPlane
from anchor4d.core.files import InputError
from anchor4d.core.fit.density import DensityControl, DensityState, adaptive_threshold
from anchor4d.core.fit.loop import GAUSSIAN_LR, FitState, Inputs, Schedule, run_fit
from anchor4d.core.gaussians import Gaussians, random_gaussians
from anchor4d.core.generate.anchors import cut_out, sample_anchors
from anchor4d.core.mesh import Mesh
from anchor4d.core.methods import stag4d, stages
from anchor4d.core.methods.registry import method_config
from anchor4d.core.methods.stages import MethodConfig
from anchor4d.core.objectives.anchors import AnchorMatch
from anchor4d.core.objectives.base import FitStep, check_objectives
from anchor4d.core.objectives.front import ReferenceViewLoss
from anchor4d.core.objectives.multiview import AboutAnchor, AboutStatic, MultiViewDistillation
from anchor4d.core.objectives.planes import AnisotropyRegulariser, PlaneSmoothness
from anchor4d.core.optimiser import Adam, Group
from anchor4d.core.priors import Condition, Distillation, Prior
from anchor4d.core.priors.distill import Question
from anchor4d.core.priors.exact import ExactPrior
from anchor4d.core.priors.load import load_prior
from anchor4d.core.render import ScreenStatistics, rasterize
from anchor4d.core.runs.sample import sample_meshes
from anchor4d.core.runs.session import Run, Settings, run, run_in_folder
from anchor4d.core.scene.anchors import ELEVATIONS, LENS, Anchors
from anchor4d.core.scene.scene import frame_times
from anchor4d.core.schedules import Ramp, constant
from anchor4d.core.video import DrivingVideo

from .tiny_models import write_zero123

FRAMES, SIDE = 3, 16
WHITE = torch.ones(3)
FRONT = FrontCamera(LENS, 1.7, 32, 32)


@pytest.fixture(scope="module")
def character() -> Mesh:
    return sample_meshes(1)[0]


@pytest.fixture(scope="module")
def gaussians(character: Mesh) -> Gaussians:
    return stages.gaussians_on_mesh(character, 400)[0]


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Prior:
    return load_prior(write_zero123(tmp_path_factory.mktemp("zero123")))


@pytest.fixture(scope="module")
def video(gaussians: Gaussians) -> DrivingVideo:
    """The object as it slides along +X."""
    moved = gaussians.map(lambda t: t.expand(FRAMES, *t.shape))
    shift = torch.tensor([[0.0, 0, 0], [0.05, 0, 0], [0.1, 0, 0]])[:, None]
    drawn = rasterize(replace(moved, means=moved.means + shift), FRONT.cameras())
    color = drawn.color / drawn.alpha[..., None].clamp_min(1e-4)
    return DrivingVideo(color[:, 0].detach(), drawn.alpha[:, 0].detach(), 12.0, Crop(0, 0, 32, 32, 32))


def anchors_of(gaussians: Gaussians, frames: int = FRAMES) -> Anchors:
    blank = Anchors(torch.zeros(frames, 6, SIDE, SIDE, 4), ELEVATIONS, 1.7)
    drawn = rasterize(gaussians, blank.cameras())
    straight = torch.cat([drawn.color / drawn.alpha[..., None].clamp_min(1e-4), drawn.alpha[..., None]], -1).clamp(0, 1)
    return replace(blank, images=straight.detach().expand(frames, -1, -1, -1, -1).contiguous())


def step_of(gaussians: Gaussians, video: DrivingVideo, field: Any = None, index: int = 0, **changes: Any) -> FitStep:
    step = FitStep(
        index=index, total=11, canonical=gaussians, field=field, frames=torch.arange(FRAMES), taus=frame_times(FRAMES),
        driving=video, times=frame_times(FRAMES), fronts=[FRONT], resolution=32, background=WHITE,
        generator=torch.Generator().manual_seed(5), still=gaussians,
    )  # fmt: skip
    return replace(step, **changes)


# Anchors


@pytest.mark.parametrize(("azimuth", "index"), [(45.0, 0), (-45.0, 5), (179.0, 2), (-180.0, 3)])
def test_nearest_anchor_is_that_of_the_published_table(azimuth: float, index: int) -> None:
    anchors = Anchors(torch.zeros(1, 6, 4, 4, 4))
    assert anchors.azimuths == (30.0, 90.0, 150.0, 210.0, 270.0, 330.0)
    assert int(anchors.nearest(torch.tensor(azimuth))) == index


def test_anchors_file_keeps_everything(tmp_path: Path) -> None:
    torch.manual_seed(0)
    anchors = Anchors(torch.rand(2, 6, 5, 5, 4), (20.0, -10.0) * 3, 1.5, 30.0)
    anchors.save(tmp_path / "a.safetensors")
    again = Anchors.load(tmp_path / "a.safetensors")
    assert again.identity == anchors.identity
    assert torch.equal(again.images, anchors.images)
    assert (again.elevations, again.distance, again.fovy) == (anchors.elevations, 1.5, 30.0)
    (tmp_path / "b").write_bytes(b"no")
    with pytest.raises(InputError, match="sample them again"):
        Anchors.load(tmp_path / "b")


def test_tiles_are_scaled_to_the_height_of_the_render() -> None:
    images = torch.zeros(2, 6, 64, 64, 4)
    images[:, :, 16:48, 24:40] = 1.0  # 32 rows
    wanted = torch.zeros(6, 128, 128)
    wanted[:, 40:88, 50:78] = 1.0  # 48 of 128 rows: 24 of 64
    matched = Anchors(images).matched(wanted, 1)
    rows = (matched.images[..., 3] > 0.5).any(-1).sum(-1)
    assert ((rows - 24).abs() <= 1).all()
    assert (matched.images[..., 3] > 0.5).any(-2).sum(-1).sub(12).abs().max() <= 1


def test_a_view_without_an_object_takes_the_scale_of_the_others() -> None:
    images = torch.zeros(1, 6, 64, 64, 4)
    images[:, :5, 16:48, 24:40] = 1.0
    images[:, 5, 30:32, 30:32] = 1.0  # a speck: no view of an object
    wanted = torch.zeros(6, 64, 64)
    wanted[:, 20:44, 26:38] = 1.0
    assert Anchors(images).valid.tolist() == [[True] * 5 + [False]]
    rows = (Anchors(images).matched(wanted, 0).images[0, :5, ..., 3] > 0.5).any(-1).sum(-1)
    assert ((rows - 24).abs() <= 1).all()


def test_tiles_are_cut_off_a_gray_or_white_background() -> None:
    for background in (1.0, 127 / 255):
        tile = torch.full((2, 1, 40, 40, 3), background)
        tile[:, :, 10:30, 12:26] = torch.tensor([0.8, 0.1, 0.2])
        cut = cut_out(tile, (background,) * 3)
        inside = torch.zeros(40, 40, dtype=torch.bool)
        inside[10:30, 12:26] = True
        assert torch.equal(cut[..., 3] > 0.5, inside.expand(2, 1, 40, 40))
        assert torch.allclose(cut[0, 0, 20, 20, :3], torch.tensor([0.8, 0.1, 0.2]), atol=1e-6)


def test_gamma_0_is_the_plain_prior_bit_by_bit_and_the_first_frame_never_changes(prior: Any) -> None:
    torch.manual_seed(0)
    condition = prior.condition(image=torch.rand(2, 16, 16, 3))[torch.tensor([0, 0, 1, 1])]
    noise = torch.randn(2, *prior.latent_shape()).repeat(2, 1, 1, 1, 1)  # two poses of two frames
    angles = torch.tensor([30.0, 90.0] * 2)[:, None]
    flat = torch.zeros_like(angles)
    from anchor4d.core.priors import Viewpoints

    views = Viewpoints(angles, flat, flat + 1.7, Viewpoints(flat, flat, flat + 1.7))
    t = torch.full((4,), 0.6)
    plain = prior.predict(noise, t, condition, views)
    assert torch.equal(prior.predict(noise, t, prior.fused(condition, 0.0, 2), views).conditional, plain.conditional)
    mixed = prior.predict(noise, t, prior.fused(condition, 0.5, 2), views)
    assert torch.allclose(mixed.conditional[:2], plain.conditional[:2], atol=1e-6)
    assert (mixed.conditional[2:] - plain.conditional[2:]).abs().max() > 1e-4
    assert torch.equal(mixed.unconditional, plain.unconditional)
    # With all of the first frame's keys and values, each pose looks up what its own first frame has there.
    swapped = prior.fused(condition, 1.0, 2)
    own = prior.predict(noise[[0, 2]], t[:2], swapped[torch.tensor([0, 2])], views.map(lambda v: v[[0, 2]]))
    assert torch.allclose(own.conditional[1], prior.predict(noise, t, swapped, views).conditional[2], atol=1e-5)


def test_sampled_anchors_share_noise_and_keep_the_first_frame(prior: Prior, video: DrivingVideo) -> None:
    def sample(gamma: float, together: int, of: DrivingVideo = video) -> Tensor:
        made = sample_anchors(prior, of, FRONT, distance=1.7, fovy=LENS, gamma=gamma, steps=3, together=together)
        assert made.elevations == ELEVATIONS and made.distance == 1.7
        return made.images

    plain, mixed = sample(0.0, 2), sample(0.5, 2)
    assert plain.shape == (FRAMES, 6, 16, 16, 4)
    assert torch.allclose(mixed[0], plain[0], atol=1e-4)
    assert torch.allclose(sample(0.5, 1), mixed, atol=1e-4)
    still = replace(video, frames=video.frames[:1].expand(2, -1, -1, -1), masks=video.masks[:1].expand(2, -1, -1))
    first, second = sample(0.5, 1, still)
    assert torch.allclose(first, second, atol=1e-4)  # the same picture and noise: the same views


def test_priors_that_draw_no_views_or_share_nothing_are_refused(video: DrivingVideo) -> None:
    exact = ExactPrior(lambda views, taus: torch.ones(len(taus), 1, SIDE, SIDE, 3), SIDE)
    with pytest.raises(InputError, match="set gamma to 0"):
        sample_anchors(exact, video, FRONT, distance=1.7, fovy=LENS)
    with pytest.raises(InputError, match="gamma 2, choose 0 to 1"):
        sample_anchors(exact, video, FRONT, distance=1.7, fovy=LENS, gamma=2.0)
    several = exact.with_settings(pictures=4)
    with pytest.raises(InputError, match="choose a Zero123"):
        sample_anchors(several, video, FRONT, distance=1.7, fovy=LENS)


# What the prior is asked


class Asked(Distillation):
    """Keeps its questions."""

    def judged(self, images: Tensor, questions: Any, drawn: Any) -> Tensor:
        self.__dict__["kept"] = (images, list(questions))
        return images.sum() * 0


class Telling(ExactPrior):
    """A condition that is the picture's mean colour."""

    def __init__(self) -> None:
        super().__init__(lambda views, taus: torch.ones(len(taus), 1, SIDE, SIDE, 3), SIDE)

    def condition(self, image: Any = None, text: Any = None, negative: Any = None, fps: Any = None) -> Condition:
        return Condition({"mean": image.mean((1, 2))}, {"mean": torch.zeros(1, 3)})


def questions(step: FitStep, anchors: Anchors, **settings: Any) -> tuple[Tensor, list[Question]]:
    asked = Asked(Telling())
    about = AboutAnchor(anchors, **{key: settings.pop(key) for key in ("share", "both") if key in settings})
    MultiViewDistillation(asked, asks=(about,), temporal=False, **settings)(step)
    return asked.__dict__["kept"]


def test_far_views_are_given_their_anchor_near_ones_the_frame(gaussians: Gaussians, video: DrivingVideo) -> None:
    anchors = anchors_of(gaussians)
    # Every tile is told apart by its colour.
    images = anchors.images.clone()
    images[..., 3] = 0.5
    images[..., :3] = (torch.arange(FRAMES * 6).reshape(FRAMES, 6) / 40)[..., None, None, None]
    anchors = replace(anchors, images=images)
    _, (question,) = questions(step_of(gaussians, video), anchors, views=40, share=1.0)
    views, told = question.views, question.condition.positive["mean"]
    assert views is not None and views.reference is not None
    at = torch.arange(FRAMES).repeat_interleave(40)
    for i in range(len(told)):
        azimuth = float(views.azimuth[i, 0])
        if abs(azimuth) < 30:
            assert float(views.reference.azimuth[i, 0]) == 0 == float(views.reference.elevation[i, 0])
            continue
        nearest = int((azimuth % 360) // 60)
        assert float(views.reference.azimuth[i, 0]) == 30 + 60 * nearest
        assert float(views.reference.elevation[i, 0]) == ELEVATIONS[nearest]
        expected = 0.5 * float(images[at[i], nearest, 0, 0, 0]) + 0.5
        assert float(told[i, 0]) == pytest.approx(expected, abs=1e-5)
    assert (views.distance == 1.7).all() and (views.reference.distance == 1.7).all()


def test_the_share_of_anchored_views_is_the_published_one(gaussians: Gaussians, video: DrivingVideo) -> None:
    _, (question,) = questions(step_of(gaussians, video), anchors_of(gaussians), views=600)
    views = question.views
    assert views is not None and views.reference is not None
    far = views.azimuth.abs() >= 30
    share = float((views.reference.azimuth[far] != 0).float().mean())
    assert share == pytest.approx(0.4, abs=0.05)
    assert (views.reference.azimuth[~far] == 0).all()


def test_equation_6_asks_about_frame_and_anchor_at_once(gaussians: Gaussians, video: DrivingVideo) -> None:
    _, (frame, anchor) = questions(step_of(gaussians, video), anchors_of(gaussians), views=20, both=True, share=0.5)
    assert frame.views is not None and anchor.views is not None and frame.share is not None and anchor.share is not None
    assert frame.views.reference is not None and (frame.views.reference.azimuth == 0).all()
    far = (frame.views.azimuth.abs() >= 30)[:, 0]
    assert torch.equal(anchor.share, torch.where(far, 0.5, 0.0))
    assert torch.equal(frame.share + anchor.share, torch.ones(len(far)))


def test_dark_views_and_anchors_of_another_clip(gaussians: Gaussians, video: DrivingVideo) -> None:
    shown, _ = questions(step_of(gaussians, video), anchors_of(gaussians), views=20, dark=0.5)
    corner = shown[:, 0, 0, 0].mean(-1)
    assert 0.2 < float((corner < 0.5).float().mean()) < 0.8
    shown, _ = questions(step_of(gaussians, video), anchors_of(gaussians), views=20)
    assert (shown[:, 0, 0, 0] > 0.9).all()
    with pytest.raises(InputError, match="anchors: of 2 frames where the video has 3"):
        questions(step_of(gaussians, video), anchors_of(gaussians, 2))


def test_anchors_are_matched_and_empty_tiles_ignored(gaussians: Gaussians, video: DrivingVideo) -> None:
    anchors = anchors_of(gaussians)
    term = AnchorMatch(constant(1.0), anchors, views=6)
    assert float(term(step_of(gaussians, video))) < 1e-4
    away = replace(gaussians, means=gaussians.means + 0.1)
    assert float(term(step_of(away, video))) > 1e-3
    empty = replace(anchors, images=torch.zeros_like(anchors.images))
    assert float(AnchorMatch(constant(1.0), empty, views=6)(step_of(away, video))) == 0
    assert float(AnchorMatch(constant(1.0))(step_of(away, video))) == 0


# Regularisers


def test_smoothness_of_planes_on_known_planes(gaussians: Gaussians, video: DrivingVideo) -> None:
    field = HexPlane(resolution=4, time_resolution=5, channels=2, width=4, multiscale=(1, 2), opacity=False)
    with torch.no_grad():
        for plane in field.planes:
            plane.fill_(1.0)
    term = PlaneSmoothness(constant(2.0))
    assert term(step_of(gaussians, video, field)).item() == 0
    with torch.no_grad():
        field.planes[2][:] = 1 + torch.tensor([0.0, 1, 4, 9, 16])[:, None]  # x and t: second differences 2, mean distance 6
        field.planes[0][:] = torch.tensor([0.0, 1, 4, 9])[:, None]  # x and y: second differences 2, not held to 1
    assert float(term(step_of(gaussians, video, field))) == pytest.approx(2 * (5 * 4 + 0.05 * 6 + 0.05 * 4), rel=1e-5)
    with pytest.raises(InputError, match="'planes' needs a field with planes, and a mlp field has none"):
        check_objectives("motion", [term], video=video, field=DeformationMLP(depth=2, width=8, skip=1), meshes=[])


def test_needles_are_judged_by_their_scales_and_in_the_released_code_by_logarithms(video: DrivingVideo) -> None:
    plain = random_gaussians(4, torch.Generator().manual_seed(0))
    scales = torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.1, 0.01], [0.2, 0.1, 0.01], [0.1, 0.05, 0.02]])
    step = step_of(replace(plain, log_scales=scales.log()), video)
    assert float(AnisotropyRegulariser(constant(1.0))(step)) == pytest.approx((2.5 + 12.5) / 4, rel=1e-5)
    assert float(AnisotropyRegulariser(constant(1.0), logarithmic=True)(step)) == 0  # quotients of logarithms are below 1
    large = step_of(replace(plain, log_scales=torch.tensor([[3.0, 1, 0.1]]).expand(4, 3)), video)
    assert float(AnisotropyRegulariser(constant(1.0), logarithmic=True)(large)) == pytest.approx(4 * (30 - 7.5), rel=1e-5)


def test_needles_of_next_to_no_size_have_gradients(video: DrivingVideo) -> None:
    """A field shrinks Gaussians to 1e-38, whose square is 0."""
    logs = torch.tensor([[-86.0, -86.0, -82.0]]).repeat(4, 1).requires_grad_()
    step = step_of(replace(random_gaussians(4, torch.Generator().manual_seed(0)), log_scales=logs), video)
    loss = AnisotropyRegulariser(constant(1.0))(step)
    loss.backward()
    assert loss.item() == pytest.approx(math.exp(4) - 7.5, rel=1e-4)
    assert logs.grad is not None and logs.grad.abs().max() == pytest.approx(math.exp(4) / 4, rel=1e-4)


# Densification


def test_adaptive_threshold_passes_floor_of_a_fortieth_and_one() -> None:
    torch.manual_seed(0)
    for count in (1, 39, 40, 1000, 1234):
        gradient = torch.randperm(count).float() + 1
        assert int((gradient >= adaptive_threshold(gradient, 0.025)).sum()) == math.floor(0.025 * count) + 1
    gradient = torch.cat([torch.zeros(500), torch.arange(1, 101).float()])  # what was never seen has no logarithm
    assert int((gradient >= adaptive_threshold(gradient, 0.025)).sum()) == 3
    assert adaptive_threshold(torch.zeros(5), 0.025) == math.inf


def grown(control: DensityControl, gaussians: Gaussians, gradient: Tensor) -> Gaussians:
    tensors = {k: v.clone().requires_grad_(True) for k, v in gaussians.tensors().items()}
    adam = Adam([Group(k, v, 1e-3) for k, v in tensors.items()])
    seen = ScreenStatistics(gradient=gradient[None], visible=torch.ones_like(gradient[None], dtype=torch.bool))
    return control.update(DensityState(), 0, 10, Gaussians(**tensors), adam, [seen], torch.Generator().manual_seed(0))


def test_densification_clones_splits_and_prunes_as_published() -> None:
    count = 200
    gaussians = random_gaussians(count, torch.Generator().manual_seed(1))
    scales = torch.full((count, 3), 0.05)
    scales[0] = 0.15  # strong and large: split
    scales[1] = 0.15  # large alone: removed
    scales[2] = 5e-4  # small: removed
    gaussians = replace(gaussians, log_scales=scales.log())
    gaussians.opacity_logits[3] = -6.0  # transparent: removed
    gradient = torch.linspace(0.1, 0.2, count)
    gradient[0] = 9.0
    control = DensityControl(every=1, start=0, stop=1.0, top=0.025, large=0.1, largest=0.1, smallest=1e-3, share=1.0)
    made = grown(control, gaussians, gradient)
    # Six pass the threshold: one splits in two, five are cloned; three go.
    assert len(made) == count - 3 - 1 + 2 + 5
    assert torch.equal(made.means[-7:-2].detach(), gaussians.means[-5:])  # clones are exact copies
    assert torch.allclose(made.scales[-2:], torch.full((2, 3), 0.15 / 1.6))
    assert float(made.scales.amax()) <= 0.1
    fixed = replace(control, top=0.0, threshold=0.15)
    assert len(grown(fixed, gaussians, gradient)) > len(made) + 50  # an absolute threshold takes what it takes


def test_rates_fall_within_their_part_of_the_fit() -> None:
    tensor = torch.zeros(1, requires_grad=True)
    adam = Adam([Group("x", tensor, 1.0, final=0.01, until=0.5)])
    moves = []
    for rho in (0.0, 0.25, 0.5, 1.0):
        before = tensor.detach().clone()
        tensor.grad = torch.ones(1)
        adam.step(1.0, rho=rho)
        moves.append(float(before - tensor.detach()))
    assert moves == pytest.approx([1.0, 0.1, 0.01, 0.01], rel=1e-3)
    assert [Ramp(1.0, 3.0, 0.5)(rho) for rho in (0.0, 0.25, 0.5, 1.0)] == [1.0, 2.0, 3.0, 3.0]


def test_a_field_and_its_gaussians_grow_together(gaussians: Gaussians, video: DrivingVideo) -> None:
    torch.manual_seed(0)
    field = HexPlane(resolution=4, time_resolution=3, channels=2, width=4, opacity=False)
    control = DensityControl(every=2, start=2, stop=1.0, top=0.025, share=1.0)
    inputs = Inputs(video=video, taus=frame_times(FRAMES), fronts=[FRONT])
    terms = (ReferenceViewLoss(constant(1e3), perceptual=0.0),)
    state = FitState(gaussians, field)
    done = run_fit("motion", state, terms, Schedule(steps=6, resolutions=((1.0, 32),)), inputs, train="both", density=control)
    assert len(gaussians) < len(done.gaussians) <= len(gaussians) * 1.03**3 + 3


# Settings


def test_paper_numbers() -> None:
    exact: Any = Telling()
    paper, code = (stag4d.preset("paper", exact, method=method) for method in ("stag4d", "stag4d-code"))
    assert (paper.static.schedule.steps, paper.motion.schedule.steps) == (1000, 7000)
    assert (code.static.schedule.steps, code.motion.schedule.steps) == (700, 7300)

    def weights(config: MethodConfig, of_batch: int = 4) -> tuple[float, ...]:
        """The front's at step 0, at the stages' border and at the end, of the mean over four pictures."""
        still, moving = (
            next(o for o in c.objectives if isinstance(o, ReferenceViewLoss)) for c in (config.static, config.motion)
        )
        return tuple(w / of_batch for w in (still.weight(0), still.weight(1), moving.weight(0), moving.weight(0.5)))

    assert weights(paper) == pytest.approx((0, 2e4, 2e4, 4e4))
    assert weights(code) == pytest.approx((0, 7e3, 7e3, 2e4))
    for config, steps, both in ((paper, 1000, True), (code, 700, False)):
        assert config.motion.fields["hexplane"]["multiscale"] == (1, 2, 4, 8) and config.static.frame == "middle"
        term = next(o for o in config.motion.objectives if isinstance(o, MultiViewDistillation))
        assert isinstance(term.asks[0], AboutAnchor) and term.asks[0].both is both and len(term.asks) == 1
        window: Any = term.distillation.time
        assert (window.low(1), window.high(1)) == pytest.approx((0.02, 0.5))
        still: Any = next(o for o in config.static.objectives if isinstance(o, MultiViewDistillation)).distillation.time
        assert (still.low(0), still.high(0), still.low(1)) == pytest.approx((0.5, 0.95, window.low(0)))
        density = config.motion.density
        assert density is not None and density.top == 0.025 and density.start + steps == 1200
        assert density.stop * config.motion.schedule.steps + steps == pytest.approx(6000)
        # Positions: 2e-3 to 2e-5 within 2000 steps.
        rates, schedule = config.motion.rates, config.motion.schedule
        assert rates is not None and rates["means"] * schedule.means_final == pytest.approx(2e-5)
        assert schedule.means_until * schedule.steps + steps == pytest.approx(2000)
    needles = [next(o for o in c.motion.objectives if isinstance(o, AnisotropyRegulariser)).logarithmic for c in (paper, code)]
    assert needles == [False, True]
    assert code.motion.fields["hexplane"]["at_rest"] is False and GAUSSIAN_LR["sh"] == 1e-2


def test_parts_of_align4d_are_added_by_name() -> None:
    exact: Any = Telling()
    plain, more = stag4d.preset("draft", exact), stag4d.preset("draft", exact, plus=("oda", "mgja", "ao"))
    assert plain.model_distance is None and more.model_distance == "delta"
    assert plain.motion.schedule.turns == (0, 0) and more.motion.schedule.turns == (8, 2)
    asked = [next(o for o in c.motion.objectives if isinstance(o, MultiViewDistillation)).asks for c in (plain, more)]
    assert asked == [(AboutAnchor(),), (AboutAnchor(), AboutStatic())]
    with pytest.raises(InputError, match="plus 'vaod'"):
        method_config("stag4d", "draft", plus=("vaod",))


def test_camera_without_an_object_makes_it_one_large(video: DrivingVideo) -> None:
    placed = stages.without_object(video, distance=1.7, points=50)
    seen = placed.front.cropped(video.crop, 32)
    rows = (video.masks > 0.5).any(-1).sum(-1).max()
    columns = (video.masks > 0.5).any(-2).sum(-1).max()
    # What spans the outline's pixels at the origin's depth is 1 long.
    assert float(seen.K[0, 1, 1]) / 1.7 == pytest.approx(float(max(rows, columns)), rel=1e-4)
    assert float(seen.K[0, 0, 2]) == pytest.approx(16.0)
    assert len(placed.mesh.vertices) == 50


# Whole runs


def small(config: MethodConfig) -> MethodConfig:
    """A preset that takes seconds."""
    static, motion = config.static, config.motion
    assert config.anchors is not None and motion.density is not None
    return replace(
        config,
        resolution=32,
        with_object=None if config.with_object is None else small(config.with_object),
        anchors=replace(config.anchors, steps=2),
        static=replace(static, gaussians=150, schedule=replace(static.schedule, steps=4, resolutions=((1.0, 32),))),
        motion=replace(
            motion,
            schedule=replace(motion.schedule, steps=8, frames=2, resolutions=((1.0, 32),)),
            density=replace(motion.density, every=2, start=2),
            fields={"hexplane": {**motion.fields["hexplane"], "resolution": 4, "channels": 2}},
        ),
    )


SETTINGS = Settings("stag4d", "draft", device="cpu", prior="tiny")


def fitted(video: DrivingVideo, prior: Prior, mesh: Any = None, progress: Any = None, folder: Any = None, **more: Any) -> Run:
    config = small(stag4d.preset("draft", prior, prior, **more))
    return run(video, mesh, replace(SETTINGS, **more), config=config, progress=progress, checkpoints=folder)


def test_a_run_without_an_object_interrupted_and_resumed(video: DrivingVideo, prior: Prior, tmp_path: Path) -> None:
    whole = fitted(video, prior)
    assert whole.scene.frames == FRAMES and whole.scene.field is not None
    assert set(whole.report["losses"]["3D to 4D"]) == {
        "reference view",
        "anchors",
        "multi-view",
        "planes",
        "anisotropy",
    }
    assert whole.report["anchors"]["of"].startswith("Anchors(6 views of 3 frames")
    assert whole.report["object"]["name"] == "point cloud"
    again = fitted(video, prior)
    assert torch.equal(whole.scene.gaussians.means, again.scene.gaussians.means)

    def stop(stage: str, step: int, steps: int, losses: dict[str, float], preview: Callable[[], Tensor]) -> None:
        if stage == "3D to 4D" and step == 5:
            assert preview().shape[-1] == 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(video, prior, progress=stop, folder=tmp_path)
    kept = {path.name for path in tmp_path.iterdir()}
    assert {"anchors.safetensors", "object.safetensors"} <= kept
    resumed = fitted(video, prior, folder=tmp_path)
    for name, tensor in whole.scene.gaussians.tensors().items():
        assert torch.equal(tensor, resumed.scene.gaussians.tensors()[name]), name


def test_a_given_object_is_where_it_starts_and_parts_of_align4d_fit_in(
    video: DrivingVideo, prior: Prior, character: Mesh
) -> None:
    shown: list[str] = []

    def watch(stage: str, step: int, steps: int, losses: dict[str, float], preview: Callable[[], Tensor]) -> None:
        if stage not in shown:
            preview()
            shown.append(stage)

    done = fitted(video, prior, character, progress=watch, plus=("mgja", "ao"))
    assert shown == ["align camera", "sample anchors", "estimate", "frame to 3D", "3D to 4D", "close the surface"]
    assert done.report["object"]["name"] == character.name and done.report["plus"] == ["mgja", "ao"]
    assert done.report["estimate"]["seconds"] > 0


def test_what_cannot_be_is_refused(video: DrivingVideo, prior: Prior, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(InputError, match="plus 'oda'"):
        fitted(video, prior, plus=("oda",))
    with pytest.raises(InputError, match="method pla4d needs one"):
        run(video, None, Settings("pla4d", "draft", device="cpu", prior="none"))
    with pytest.raises(InputError, match="without an object needs a prior"):
        run(video, None, replace(SETTINGS, prior="none"))
    with pytest.raises(InputError, match="anchors 'tiny': stag4d or stag4d-code has anchors"):
        Settings("pla4d", anchors="tiny").resolved()
    out = ["--out", str(tmp_path / "out")]
    assert cli.main(["fit", "--method", "stag4d", "--plus", "vaod", "--video", str(tmp_path), *out]) == 2
    assert "choose of oda, mgja, ao" in capsys.readouterr().err


def test_from_files_without_an_object(video: DrivingVideo, prior: Prior, tmp_path: Path) -> None:
    from anchor4d.core.io import write_frames

    write_frames(tmp_path / "video", torch.cat([video.frames, video.masks[..., None]], -1))
    config = small(stag4d.preset("draft", prior, prior))
    done = run_in_folder(tmp_path / "video", None, tmp_path / "out", SETTINGS, config=config)
    assert done is not None
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["method"] == "stag4d" and report["anchors"]["shown"] >= 0
    assert {"sample anchors", "frame to 3D", "3D to 4D"} <= set(report["seconds"])
    assert run_in_folder(tmp_path / "video", None, tmp_path / "out", SETTINGS, config=config, resume=True) is None
