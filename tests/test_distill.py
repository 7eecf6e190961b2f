"""Score distillation: its gradient is the formula's, and with a prior that knows the truth it finds the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from anchor4d.core.cameras import Crop, FrontCamera, orbit, zero123_vector
from anchor4d.core.deformation import DeformationMLP
from anchor4d.core.files import InputError
from anchor4d.core.fit.loop import FitState, Inputs, Schedule, run_fit
from anchor4d.core.gaussians import Gaussians
from anchor4d.core.methods.stages import gaussians_on_mesh
from anchor4d.core.objectives.base import FitStep
from anchor4d.core.objectives.mesh import FRAMING
from anchor4d.core.objectives.novel_view import NovelView
from anchor4d.core.objectives.reference import ReferenceRefinement
from anchor4d.core.priors import (
    Annealed,
    Condition,
    Distillation,
    NoiseSchedule,
    Prior,
    Term,
    UniformWindow,
    Viewpoints,
    composed,
)
from anchor4d.core.priors.distill import _resampling, amplified, in_batches, resampled
from anchor4d.core.priors.exact import ExactPrior
from anchor4d.core.render import rasterize
from anchor4d.core.runs.sample import CAMERA, sample_case, sample_meshes
from anchor4d.core.scene.scene import frame_times
from anchor4d.core.scene.views import reframed
from anchor4d.core.schedules import constant, linear
from anchor4d.core.video import DrivingVideo

WHITE = torch.ones(3)
SIZE = 8


class Linears(Prior):
    """A small prior of linear networks: everything about it can be worked out by hand."""

    conditions = frozenset({"text"})
    guidance = 3.0

    def __init__(self, schedule: NoiseSchedule, pictures: int = 1) -> None:
        self.name, self.schedule, self.pictures = "linears", schedule, pictures
        self.resolution = (SIZE, SIZE)
        torch.manual_seed(0)
        self.encoder = nn.Conv2d(3, 4, 2, 2).requires_grad_(False)
        self.net = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.modules = {"net": self.net, "vae": self.encoder}
        self.batches: list[int] = []

    def latent_shape(self) -> tuple[int, int, int, int]:
        return self.pictures, 4, SIZE // 2, SIZE // 2

    def encode(self, images: Tensor) -> Tensor:
        self.batches.append(images.shape[0] * images.shape[1])
        return self.encoder(images.flatten(0, 1).movedim(-1, 1)).unflatten(0, images.shape[:2])

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def condition(
        self,
        image: Tensor | None = None,
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        fps: float | None = None,
    ) -> Condition:
        return Condition({"shift": torch.tensor([[0.7]])}, {"shift": torch.tensor([[-0.2]])})

    def _denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor], views: Viewpoints | None) -> Tensor:
        noise = self.net(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
        return noise * (1 + time.reshape(-1, 1, 1, 1, 1) / 1000) + inputs["shift"].reshape(-1, 1, 1, 1, 1)


SCHEDULES = [NoiseSchedule.scaled_linear(), NoiseSchedule.scaled_linear("v"), NoiseSchedule("flow")]


@pytest.mark.parametrize("form", ["sds", "csd"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_the_gradient_is_the_formula(schedule: NoiseSchedule, form: str) -> None:
    prior = Linears(schedule)
    images = torch.rand(3, 1, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    distillation = Distillation(prior, time=UniformWindow(constant(0.2), constant(0.9)), form=form)  # pyright: ignore[reportArgumentType]
    distillation(images, prior.condition(), 0.0, torch.Generator().manual_seed(2)).backward()

    # By hand, from the same draws.
    generator = torch.Generator().manual_seed(2)
    t = 0.2 + 0.7 * torch.rand(3, generator=generator)
    noise = torch.randn(3, 1, 4, SIZE // 2, SIZE // 2, generator=generator)
    pictures = images.detach().clone().requires_grad_()
    latents = prior.encode(pictures)
    x = latents.detach()
    if schedule.kind == "flow":
        alpha, sigma, time = 1 - t, t, t * 1000
    else:
        step = (t * 1000).round().long()
        assert schedule.alphas_cumprod is not None
        alpha, sigma, time = schedule.alphas_cumprod[step].sqrt(), (1 - schedule.alphas_cumprod[step]).sqrt(), step
    alpha, sigma, time = (v.reshape(3, 1, 1, 1, 1) for v in (alpha, sigma, time))
    noisy = alpha * x + sigma * noise
    raw = prior.net(noisy[:, 0])[:, None] * (1 + time / 1000)
    answers = [raw + shift for shift in (0.7, -0.2)]
    if schedule.kind == "v":
        answers = [alpha * v + sigma * noisy for v in answers]
    conditional, unconditional = answers
    target = noise - x if schedule.kind == "flow" else noise
    classifier = 3.0 * (conditional - unconditional)
    wanted = sigma**2 * (classifier if form == "csd" else unconditional + classifier - target)
    (expected,) = torch.autograd.grad(latents, pictures, wanted)
    assert images.grad is not None
    torch.testing.assert_close(images.grad, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("normalise", [False, True])
def test_batches_change_memory_and_nothing_else(normalise: bool) -> None:
    prior = Linears(NoiseSchedule.scaled_linear(), pictures=2)
    start = torch.rand(5, 2, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(1))
    condition = Condition(
        {"shift": torch.linspace(0, 1, 5)[:, None]}, {"shift": torch.zeros(1, 1)}
    )  # one that differs, one for all

    def gradient(**batches: int) -> tuple[float, Tensor]:
        images = start.clone().requires_grad_()
        prior.batches.clear()
        loss = Distillation(prior, normalise=normalise, **batches)(images, condition, 0.3, torch.Generator().manual_seed(4))
        loss.backward()
        assert images.grad is not None
        return loss.item(), images.grad

    value, whole = gradient()
    assert prior.batches == [10]
    for batches, largest in (({"micro_batch": 2}, 4), ({"encode_batch": 3}, 3), ({"micro_batch": 1, "encode_batch": 1}, 1)):
        other, parts = gradient(**batches)
        assert max(prior.batches) == largest
        assert other == pytest.approx(value, rel=1e-5)
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_frozen_networks_get_no_gradient_and_the_loss_scales_with_its_weight() -> None:
    prior = Linears(NoiseSchedule.scaled_linear())
    gradients = []
    for weight in (1.0, 2.5):
        images = torch.full((1, 1, SIZE, SIZE, 3), 0.3).requires_grad_()
        loss = Distillation(prior, weight=constant(weight))(images, prior.condition(), 0.5, torch.Generator().manual_seed(0))
        (2 * loss).backward()
        assert images.grad is not None
        gradients.append(images.grad)
    torch.testing.assert_close(gradients[1], 2.5 * gradients[0])
    assert all(p.grad is None and not p.requires_grad for m in prior.modules.values() for p in m.parameters())


def test_a_normalised_gradient_has_unit_size() -> None:
    prior = Linears(NoiseSchedule.scaled_linear())
    prior.encoder = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    prior.latent_shape = lambda: (1, 3, SIZE, SIZE)  # pyright: ignore[reportAttributeAccessIssue]
    prior.net = nn.Conv2d(3, 3, 1).requires_grad_(False)
    images = torch.rand(4, 1, SIZE, SIZE, 3).requires_grad_()
    Distillation(prior, normalise=True)(images, prior.condition(), 0.5, torch.Generator().manual_seed(0)).backward()
    assert images.grad is not None
    assert float(images.grad.square().mean().sqrt()) == pytest.approx(1, rel=1e-4)


def test_motion_amplification_keeps_the_mean_over_the_clip() -> None:
    delta = torch.randn(2, 6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(amplified(delta, 1.0), delta)
    more = amplified(delta, 2.5)
    torch.testing.assert_close(more.mean(1), delta.mean(1))
    torch.testing.assert_close(more - more.mean(1, keepdim=True), 2.5 * (delta - delta.mean(1, keepdim=True)))
    # In use it acts on the classifier term only.
    prior = Linears(NoiseSchedule.scaled_linear(), pictures=3)
    images, t = torch.rand(1, 3, SIZE, SIZE, 3), torch.tensor([0.4])
    latents, noise = prior.encode(images), torch.randn(1, 3, 4, SIZE // 2, SIZE // 2)
    # The condition shifts every frame alike, so that there is nothing to amplify.
    plain, much = (
        Distillation(prior, amplification=factor).latent_gradient(latents, noise, t, prior.condition()) for factor in (1.0, 9.0)
    )
    torch.testing.assert_close(plain, much, rtol=1e-5, atol=1e-5)


def test_composed_gradients_are_the_weighted_sum() -> None:
    clip, picture = Linears(NoiseSchedule.scaled_linear(), pictures=4), Linears(NoiseSchedule("flow"))
    start = torch.rand(2, 4, SIZE, SIZE, 3)
    first = Distillation(clip, weight=constant(0.5), form="csd")
    second = Distillation(picture, weight=linear(2.0, 4.0), normalise=True)
    images = start.clone().requires_grad_()
    generator = torch.Generator().manual_seed(3)
    terms = [Term(first, clip.condition()), Term(second, picture.condition(), subset=2)]
    composed(images, terms, 0.5, generator).backward()
    assert images.grad is not None

    alone = start.clone().requires_grad_()
    generator = torch.Generator().manual_seed(3)
    first(alone, clip.condition(), 0.5, generator).backward()
    assert alone.grad is not None
    rest = images.grad - alone.grad
    # The second prior saw two pictures of each clip, as samples of their own.
    touched = rest.abs().amax((2, 3, 4)) > 1e-7
    assert touched.sum(1).tolist() == [2, 2]
    assert picture.batches == [4]
    rows = torch.rand(2, 4, generator=generator).argsort(1)[:, :2]
    assert torch.equal(rows.sort(1).values, touched.nonzero()[:, 1].reshape(2, 2))


def test_times_follow_their_policies() -> None:
    generator = torch.Generator().manual_seed(0)
    assert Annealed(0.5, 0.02)(0.5, 3, generator).tolist() == pytest.approx([0.26] * 3)
    assert Annealed(1.0, 0.0)(0.0, 1, generator).item() == pytest.approx(0.98)
    drawn = UniformWindow(linear(0.7, 0.3), linear(0.98, 0.8))(0.5, 4000, generator)
    assert 0.5 <= float(drawn.min()) < 0.501
    assert 0.889 < float(drawn.max()) <= 0.89
    assert float(drawn.mean()) == pytest.approx(0.695, abs=0.005)


def test_stable_diffusion_noise_has_its_known_values() -> None:
    schedule = NoiseSchedule.scaled_linear()
    assert schedule.alphas_cumprod is not None
    # The first and last of Stable Diffusion's published alphas_cumprod.
    assert float(schedule.alphas_cumprod[0]) == pytest.approx(0.99915, abs=1e-5)
    assert float(schedule.alphas_cumprod[-1]) == pytest.approx(0.00466, abs=1e-5)
    assert schedule.model_time(torch.tensor([0.02, 0.5, 1.0])).tolist() == [20, 500, 999]
    x, n, t = torch.randn(2, 1, 4, 3, 3), torch.randn(2, 1, 4, 3, 3), torch.tensor([0.3, 0.8])
    for kind in SCHEDULES:
        noisy = kind.add_noise(x, n, t)
        torch.testing.assert_close(kind.clean(kind.target(x, n), noisy, t), x, rtol=1e-4, atol=1e-4)


def test_latents_that_are_not_finite_are_refused() -> None:
    prior = Linears(NoiseSchedule.scaled_linear())
    images = torch.full((1, 1, SIZE, SIZE, 3), float("nan"))
    with pytest.raises(InputError, match="linears: the latents hold NaN"):
        Distillation(prior)(images, prior.condition(), 0.0, torch.Generator())


def test_csd_needs_something_to_compare_with() -> None:
    prior = Linears(NoiseSchedule.scaled_linear())
    with pytest.raises(InputError, match="negative prompt"):
        Distillation(prior, form="csd")(
            torch.zeros(1, 1, SIZE, SIZE, 3), Condition(prior.condition().positive), 0.0, torch.Generator()
        )


# With a prior that knows the truth

FRONT = FrontCamera(fovy=40.0, distance=2.0, width=64, height=64)


def truth_of(gaussians: Gaussians, field: DeformationMLP | None = None, size: int = 64) -> ExactPrior:
    """The exact prior of an object, framed as random cameras frame it."""
    fovy = 2 * math.degrees(math.atan(0.5 * FRAMING / FRONT.distance))

    def draw(views: Viewpoints, taus: Tensor) -> Tensor:
        cameras = orbit(views.azimuth.flatten(), views.elevation.flatten(), views.distance.flatten(), fovy, size, size)
        shown = gaussians if field is None else field(gaussians, taus.flatten())
        if field is None:
            return rasterize(shown, cameras, WHITE).color[:, None]
        return rasterize(shown, cameras.reshape(len(cameras), 1), WHITE).color

    return ExactPrior(draw, size)


def still_video(frames: int = 1, size: int = 64) -> DrivingVideo:
    return DrivingVideo(torch.ones(frames, size, size, 3), torch.ones(frames, size, size), 12.0, Crop(0, 0, size, size, size))


def test_viewpoints_are_where_the_cameras_stand() -> None:
    cameras = orbit([0.0, 90.0, -170.0], [20.0, -10.0, 0.0], [2.0, 1.5, 1.0])
    views = Viewpoints.of(cameras, cameras)
    torch.testing.assert_close(views.azimuth[:, 0], torch.tensor([0.0, 90.0, -170.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(views.elevation[:, 0], torch.tensor([20.0, -10.0, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(views.distance[:, 0], torch.tensor([2.0, 1.5, 1.0]))
    assert views.reference is not None
    relative = zero123_vector(views.elevation, views.azimuth - views.reference.azimuth, 0.0)
    assert torch.equal(relative[:, 0, 1:3], torch.tensor([[0.0, 1.0]]).expand(3, 2))


def test_distillation_brings_a_wrong_object_back_to_the_truth() -> None:
    """Wrong colours and a displacement of a tenth of the size; unseen views reach 35 dB."""
    true, _ = gaussians_on_mesh(sample_meshes(1)[0], 2000, 0)
    generator = torch.Generator().manual_seed(3)
    start = replace(
        true, means=true.means + torch.tensor([0.1, 0.0, 0.0]), sh=0.5 * torch.randn(true.sh.shape, generator=generator)
    )
    prior = truth_of(true)
    distillation = Distillation(prior, time=Annealed(0.5, 0.02))
    rates = {"means": 6e-3, "sh": 5e-2, "log_scales": 5e-3, "quats": 5e-3, "opacity_logits": 1e-2}
    done = run_fit(
        "exact prior", FitState(start), [NovelView(distillation, views=8)], Schedule(800, lr_final=0.001),
        Inputs(still_video(), torch.zeros(1), [FRONT]), train="gaussians", gaussian_lr=rates,
    ).gaussians  # fmt: skip
    unseen = orbit([15.0, 105.0, -75.0, 195.0], 10.0, 2.0, 36.0, 64, 64)
    pictures = [rasterize(g, unseen, WHITE).color.clamp(0, 1) for g in (true, start, done)]
    before, after = (-10 * (p - pictures[0]).square().mean((1, 2, 3)).log10() for p in pictures[1:])
    assert float(before.max()) < 20
    assert float(after.min()) >= 35


def moving_step(field: DeformationMLP, gaussians: Gaussians, frames: int = 5) -> FitStep:
    return FitStep(
        index=0, total=10, canonical=gaussians, field=field, frames=torch.arange(frames), taus=frame_times(frames),
        driving=still_video(frames), times=frame_times(frames), fronts=[FRONT], resolution=64, background=WHITE,
        generator=torch.Generator().manual_seed(5), still=gaussians,
    )  # fmt: skip


@pytest.fixture
def moving() -> tuple[DeformationMLP, Gaussians]:
    gaussians, _ = gaussians_on_mesh(sample_meshes(1)[0], 400, 0)
    torch.manual_seed(0)
    field = DeformationMLP()
    with torch.no_grad():  # A field at rest moves nothing: give it some motion.
        for parameter in field.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return field.requires_grad_(False), gaussians


def test_a_moving_object_that_is_right_is_left_alone(moving: tuple[DeformationMLP, Gaussians]) -> None:
    field, gaussians = moving
    assert float((field(gaussians, torch.tensor([0.8])).means - field(gaussians, torch.tensor([0.2])).means).abs().max()) > 0.01
    novel = NovelView(Distillation(truth_of(gaussians, field)))
    right = novel(moving_step(field, gaussians))
    wrong = NovelView(Distillation(truth_of(gaussians)))(moving_step(field, gaussians))
    assert float(right) < 1e-6 * float(wrong)


def test_reference_refinement_is_conditioned_on_the_static_render_of_the_same_view(
    moving: tuple[DeformationMLP, Gaussians],
) -> None:
    field, gaussians = moving

    class Watching(ExactPrior):
        seen: Tensor

        def condition(
            self,
            image: Tensor | None = None,
            text: str | Sequence[str] | None = None,
            negative: str | Sequence[str] | None = None,
            fps: float | None = None,
        ) -> Condition:
            assert image is not None
            self.seen = image
            return self.at(torch.zeros(1, 1))

    asked: list[Viewpoints] = []

    def draw(views: Viewpoints, taus: Tensor) -> Tensor:
        asked.append(views)
        return torch.full((len(views), 1, 64, 64, 3), 0.5)

    prior = Watching(draw, 64)
    loss = ReferenceRefinement(Distillation(prior), views=3)(moving_step(field, gaussians))
    assert float(loss) > 0
    views = asked[0]
    assert views.reference is not None
    assert torch.equal(views.azimuth, views.reference.azimuth)
    # Its camera's window spans 1.3, and its field of view jitters by two degrees.
    front = orbit(views.azimuth[:, 0], views.elevation[:, 0], views.distance[:, 0], 36.0, 64, 64)
    alike = rasterize(gaussians, front, WHITE).color
    assert float((alike - prior.seen).square().mean()) < 0.3 * float((alike.roll(1, 0) - prior.seen).square().mean())


def test_a_prior_without_pictures_cannot_refine() -> None:
    with pytest.raises(InputError, match="not conditioned on a picture"):
        ReferenceRefinement(Distillation(Linears(NoiseSchedule.scaled_linear()))).check()


def test_frames_are_reframed_for_the_prior_as_its_camera_sees_them() -> None:
    meshes, pictures = sample_case(frames=1, size=128)
    rgba = pictures["front"]
    front = replace(
        CAMERA, width=128, height=128, cx=CAMERA.cx and CAMERA.cx / 2, cy=CAMERA.cy and CAMERA.cy / 2
    )  # half the sample's size
    crop = Crop(8, 8, 112, 128, 128)
    frames = rgba[:, 8:120, 8:120]
    video = DrivingVideo(frames[..., :3], frames[..., 3], 12.0, crop)
    camera = front.centred(64, 0.0, margin=FRAMING)
    from anchor4d.core.render.mesh import render_mesh

    truth = render_mesh(meshes[0], camera, WHITE).color[0]
    shown = reframed(video, [front], camera, WHITE)[0]
    assert float(-10 * (shown - truth).square().mean().log10()) > 30


def test_batches_are_halved_where_memory_does_not_hold_them(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[slice] = []

    def sums(rows: slice) -> int:
        asked.append(rows)
        if rows.stop - rows.start > 2:
            raise torch.cuda.OutOfMemoryError
        return sum(range(7)[rows])

    room: dict[str, int] = {}
    assert sum(in_batches(sums, 7, 7, "prior", room, "asked")) == sum(range(7))
    assert [(rows.start, rows.stop) for rows in asked] == [(0, 7), (0, 4), (0, 2), (2, 4), (4, 6), (6, 8)]
    assert [record.message.rpartition(" with ")[2] for record in caplog.records] == ["4 at once", "2 at once"]
    # What memory held is known from then on, of what was done with it.
    asked.clear()
    assert sum(in_batches(sums, 7, 7, "prior", room, "asked")) == sum(range(7)) and room == {"asked": 2}
    assert [(rows.start, rows.stop) for rows in asked] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        list(in_batches(lambda rows: sums(slice(0, 3)), 1, 1, "prior", room, "condition"))


def test_resampling_by_products_is_resampling() -> None:
    pictures = torch.rand(2, 1, 12, 20, 3, generator=torch.Generator().manual_seed(0))
    rows, columns = _resampling(12, 7, torch.device("cpu")), _resampling(20, 33, torch.device("cpu"))
    found = torch.einsum("ph,qw,bvhwc->bvpqc", rows, columns, pictures)
    torch.testing.assert_close(found, resampled(pictures, (7, 33)), rtol=1e-5, atol=1e-6)
