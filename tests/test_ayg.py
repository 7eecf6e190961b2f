"""Align Your Gaussians: its formulas' values, its method whole with tiny models, and its motion under an exact score."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_models
import tiny_videos
from test_distill import SIZE, Linears
from test_mvdream import TINY, write_folder

from anchor4d import cli
from anchor4d.bench.ayg import LENS, Trial, measure, two_objects
from anchor4d.core.cameras import FrontCamera
from anchor4d.core.deformation import ClipChain, TimeGatedMLP, field_from_config
from anchor4d.core.files import InputError
from anchor4d.core.fit.checkpoint import load_checkpoint
from anchor4d.core.fit.loop import FitState, Inputs, Schedule, run_fit
from anchor4d.core.gaussians import Gaussians, from_points, random_gaussians
from anchor4d.core.io.export import export_scene
from anchor4d.core.methods import ayg, stages
from anchor4d.core.methods.registry import method_config
from anchor4d.core.objectives.base import FitStep, Objective, check_objectives
from anchor4d.core.objectives.displacement import LocalRigidity, PositionRegulariser, Seam, divergence
from anchor4d.core.objectives.front import ReferenceViewLoss
from anchor4d.core.objectives.scores import ClipScores, Lens, ViewScores, view_name
from anchor4d.core.priors import Condition, Distillation, NoiseSchedule, Prior, Viewpoints
from anchor4d.core.priors.distill import amplified, central
from anchor4d.core.priors.exact import best_shift, shifted
from anchor4d.core.priors.load import load_prior
from anchor4d.core.runs.sample import sample_scene
from anchor4d.core.runs.session import Settings, run_in_folder
from anchor4d.core.scene.scene import Scene4D, frame_times
from anchor4d.core.schedules import Switch, Weight, constant

FRONT = FrontCamera(fovy=40.0, distance=2.0, width=32, height=32)


def ball(count: int = 40) -> Gaussians:
    return random_gaussians(count, torch.Generator().manual_seed(0))


def moving(gaussians: Gaussians, seed: int = 0, size: float = 0.1) -> TimeGatedMLP:
    torch.manual_seed(seed)
    field = TimeGatedMLP.around(gaussians)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return field.requires_grad_(False)


def step_of(gaussians: Gaussians, field: Any, frames: int = 4, **changes: Any) -> FitStep:
    times = frame_times(frames)
    step = FitStep(
        index=0, total=10, canonical=gaussians, field=field, frames=torch.arange(frames), taus=times, driving=None, times=times,
        fronts=[FRONT], resolution=SIZE, background=torch.ones(3), generator=torch.Generator().manual_seed(1), still=gaussians,
    )  # fmt: skip
    return replace(step, **changes)


# The field


def test_the_field_is_at_rest_where_it_should_be_and_moves_positions_alone() -> None:
    gaussians, times = ball(), torch.tensor([0.0, 0.1, 0.5, 1.0])
    fresh = TimeGatedMLP.around(gaussians)
    assert torch.equal(fresh(gaussians, times).means, gaussians.means.expand(4, -1, -1))
    # 32 encoded inputs, five linear layers 128 wide with a LayerNorm behind each, and one to three numbers.
    linear = 32 * 128 + 128 + 4 * (128 * 128 + 128) + 128 * 3 + 3
    assert sum(p.numel() for p in fresh.parameters()) == linear + 5 * 2 * 128
    field = moving(gaussians, size=1.0)
    moved = field(gaussians, times)
    delta = moved.means - gaussians.means
    assert float(delta[0].abs().max()) == 0
    assert 0.05 < float(delta[3].abs().max()) <= 0.5
    for name in ("quats", "log_scales", "opacity_logits", "sh"):
        assert torch.equal(getattr(moved, name), getattr(gaussians, name).expand(4, *getattr(gaussians, name).shape))
    # The gate, 0.447 at 0.1 and 0.785 at 0.5, on the limit of 0.5 that a large output comes to.
    with torch.no_grad():
        fresh.layers[-1].bias.fill_(100.0)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue, reportArgumentType]
        far = (fresh(gaussians, times).means - gaussians.means).amax((1, 2))
    torch.testing.assert_close(far, 0.5 * torch.tensor([0.0, 0.44668, 0.78458, 1.0]), rtol=1e-4, atol=0)


def test_the_field_is_saved_with_its_scene(tmp_path: Path) -> None:
    scene = Scene4D(ball(), moving(ball()), frames=4, front=FRONT)
    scene.save(tmp_path / "scene.safetensors")
    again = Scene4D.load(tmp_path / "scene.safetensors")
    assert isinstance(again.field, TimeGatedMLP)
    assert torch.equal(again.at(scene.taus).means, scene.at(scene.taus).means)


# Regularisers


def set_of(variance: float, centre: float = 0.0) -> Tensor:
    """Eight corners of a box: variance on every axis, and its centre on x."""
    corners = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=torch.float32)
    return corners * variance**0.5 + torch.tensor([centre, 0, 0])


def test_the_divergence_has_its_known_values() -> None:
    rest = set_of(0.1)
    moved = torch.stack([set_of(0.1), set_of(0.1, 0.1), set_of(0.2)])
    torch.testing.assert_close(divergence(rest, moved), torch.tensor([0.0, 0.0125, 0.08834]), atol=2e-6, rtol=1e-4)
    # It knows centre and extent alone: what turns about the centre costs nothing where the extents agree.
    still = step_of(from_points(rest, torch.zeros(8, 3)), TimeGatedMLP())
    assert float(PositionRegulariser()(still).detach()) == pytest.approx(0, abs=1e-6)
    probe = PositionRegulariser(slide=0.1).probe(still)
    assert probe.requires_grad and float(probe.detach()) == pytest.approx(0.0125, rel=1e-3)
    turned = rest @ torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    assert float(divergence(rest, turned[None])) == pytest.approx(0, abs=1e-6)


def test_togetherness_is_the_mean_over_gaussians_of_the_sum_over_neighbours() -> None:
    gaussians = ball(12)
    field = moving(gaussians)
    step = step_of(gaussians, field)
    value = float(LocalRigidity(constant(2.0), k=3, sample=0)(step))
    delta = step.gaussians.means - gaussians.means
    near = torch.cdist(gaussians.means, gaussians.means).argsort(1)[:, 1:4]
    by_hand = sum(float((delta[t, i] - delta[t, j]).square().sum()) for t in range(4) for i in range(12) for j in near[i]) / 48
    assert value == pytest.approx(2 * by_hand, rel=1e-4)

    class Slides(TimeGatedMLP):
        def forward(self, gaussians: Gaussians, tau: Tensor) -> Gaussians:
            far = gaussians.map(lambda t: t.expand(len(tau), *t.shape))
            return replace(far, means=gaussians.means + tau[:, None, None])

    assert float(LocalRigidity(k=3)(step_of(gaussians, Slides()))) == pytest.approx(0, abs=1e-6)
    assert float(PositionRegulariser()(step_of(gaussians, Slides()))) > 0.1


@pytest.mark.parametrize(
    "term", [PositionRegulariser(), LocalRigidity(), ClipScores(Distillation(Linears(NoiseSchedule("flow"))))]
)
def test_motion_terms_say_where_they_belong(term: Any) -> None:
    with pytest.raises(InputError, match=f"to 3D: objective '{term.name}' needs a motion, and this fit is of the static"):
        check_objectives("to 3D", [term], video=None, field=None, meshes=[])


@dataclass(frozen=True)
class Slope(Objective):
    """Pulls all positions along one direction, as hard as it says."""

    name: str  # pyright: ignore[reportIncompatibleVariableOverride]
    weight: Weight
    share: float = 0.0
    share_step: int = 0

    def loss(self, step: FitStep) -> Tensor:
        return step.canonical.means.sum()


def test_a_term_is_scaled_to_its_share_of_the_gradient(tmp_path: Path) -> None:
    inputs, steps, path = Inputs(None, torch.zeros(1), [FRONT]), 6, tmp_path / "c.safetensors"
    objectives = [
        Slope("a", constant(3.0)), Slope("b", constant(7.0), share=0.25, share_step=2), Slope("still", constant(0.0), share=0.5)
    ]  # fmt: skip
    seen: list[dict[str, float]] = []

    def progress(stage: str, step: int, steps: int, losses: dict[str, float], preview: Any) -> None:
        assert preview().shape == (32, 64, 3)  # without a video: the first and the last moment
        seen.append(dict(losses))

    schedule = Schedule(steps, resolutions=((1.0, 32),))
    run_fit("3D", FitState(ball()), objectives, schedule, inputs, train="gaussians", progress=progress, checkpoint=path)
    factors = load_checkpoint(path)[1]["factors"]
    assert factors == {"b": pytest.approx(0.25 * 3 / 7)}  # what has no gradient gets no factor
    assert seen[0]["b"] == 0 and seen[0]["a"] != 0
    assert seen[-1]["b"] / seen[-1]["a"] == pytest.approx(0.25, rel=1e-4)


# Scores


class Told(Linears):
    """Each text shifts the prediction by its own amount."""

    shifts: ClassVar = {"a dog": 0.3, "a dog, front view": 0.9, "a dog, side view": -0.4, "a dog, back view": 0.1, None: -0.2}

    def condition(
        self,
        image: Tensor | None = None,
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        fps: float | None = None,
    ) -> Condition:
        assert isinstance(text, str)
        self.asked.append((text, fps))
        return Condition({"shift": torch.tensor([[self.shifts[text]]])}, {"shift": torch.tensor([[self.shifts[None]]])})

    asked: list[tuple[str, float | None]]

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.asked = []


def test_view_guidance_adds_what_the_views_name_changes() -> None:
    prior = Told(NoiseSchedule.scaled_linear())
    seen: list[tuple[Tensor, Tensor]] = []

    class Watched(Distillation):
        def joint(self, images: Tensor, questions: Any, rho: float, generator: torch.Generator) -> Tensor:
            noisy = torch.zeros(len(images), *prior.latent_shape())
            t = torch.full((len(images),), 0.4)
            seen.append((self._answer(noisy, noisy, t, questions), self._sides))
            return super().joint(images, questions, rho, generator)

        _sides: Any = None

    objective = ViewScores(
        None, Watched(prior, form="csd", guidance=1.0, weighting="uniform"), "a dog", pictures=6, view_guidance=0.5,
        lens=Lens(azimuth=(-180.0, 180.0)),
    )  # fmt: skip
    gaussians = ball()
    objective(step_of(gaussians, None))
    generator = torch.Generator().manual_seed(1)
    azimuth = -180 + 360 * torch.rand(4, 6, 1, generator=generator)[3, :, 0]
    names = [f"a dog, {view_name(float(a), 10.0)} view" for a in azimuth]
    assert len(set(names)) > 1
    wanted = [(0.3 + 0.2) + 0.5 * (Told.shifts[name] - 0.3) for name in names]
    torch.testing.assert_close(seen[0][0].mean((1, 2, 3, 4)), torch.tensor(wanted), rtol=1e-4, atol=1e-5)
    # A model that has its text from elsewhere is told none, and has no view guidance.
    assert view_name(0, 0) == "front" and view_name(-170, 0) == "back" and view_name(300, 0) == "side"
    assert view_name(0, 80) == "overhead"


@pytest.mark.parametrize("knows_rates", [True, False])
def test_rates_are_told_or_the_clip_spans_less_of_the_time(knows_rates: bool) -> None:
    prior = Told(NoiseSchedule.scaled_linear(), pictures=3)
    prior.conditions = frozenset({"text", "fps"}) if knows_rates else frozenset({"text"})  # pyright: ignore[reportAttributeAccessIssue]
    gaussians, spans = ball(), []

    class Field(TimeGatedMLP):
        def forward(self, gaussians: Gaussians, tau: Tensor) -> Gaussians:
            spans.append((float(tau[0]), float(tau[-1])))
            return super().forward(gaussians, tau)

    objective = ClipScores(Distillation(prior, form="csd"), prompt="a dog", lens=LENS)
    for seed in range(12):
        window = torch.linspace(0.5, 1.0, 5)  # of a clip that is not the whole motion
        objective(step_of(gaussians, Field(), generator=torch.Generator().manual_seed(seed), times=window, taus=window))
    lengths = {round((b - a) / 0.5, 4) for a, b in spans}
    assert all(a >= 0.5 - 1e-6 and b <= 1 + 1e-6 for a, b in spans)
    if knows_rates:
        assert {fps for _, fps in prior.asked} == {4.0, 8.0, 12.0} and lengths == {1.0}
    else:
        assert {fps for _, fps in prior.asked} == {None} and lengths == {1.0, 0.75, 0.5}


def test_amplification_stretches_a_normalised_gradient() -> None:
    """Otherwise normalising would take away what amplification adds."""
    prior = Linears(NoiseSchedule.scaled_linear(), pictures=4)
    prior.encode = lambda images: images.movedim(-1, 2) * 2 - 1  # pyright: ignore[reportAttributeAccessIssue]
    prior.latent_shape = lambda: (4, 3, SIZE, SIZE)  # pyright: ignore[reportAttributeAccessIssue]
    prior.net = torch.nn.Conv2d(3, 3, 1).requires_grad_(False)
    prior._denoise = lambda latents, time, inputs, views: latents * inputs["shift"].reshape(-1, 1, 1, 1, 1)  # pyright: ignore[reportAttributeAccessIssue]
    gradients = []
    for omega in (1.0, 3.0):
        images = torch.rand(1, 4, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        distillation = Distillation(prior, form="csd", normalise=True, amplification=omega)
        distillation(images, prior.condition(), 0.0, torch.Generator().manual_seed(1)).backward()
        assert images.grad is not None
        gradients.append(images.grad)
    torch.testing.assert_close(amplified(gradients[0], 3.0), gradients[1], rtol=1e-4, atol=1e-6)
    assert float(gradients[0].square().mean().sqrt()) == pytest.approx(2, rel=1e-3)  # unit size on latents, which are 2 x - 1


def test_pictures_of_other_proportions_are_cut_not_squeezed() -> None:
    images = torch.arange(24.0).reshape(1, 1, 4, 6, 1).expand(-1, -1, -1, -1, 3)
    assert torch.equal(central(images, (8, 8)), images[:, :, :, 1:5])
    assert central(images, (2, 6)).shape[2:4] == (2, 6)
    assert torch.equal(central(images, (4, 6)), images)


def test_the_lens_frames_the_object() -> None:
    cameras = Lens(fill=(0.5, 0.5)).cameras(3, 4, (20, 30), torch.Generator().manual_seed(0))
    assert cameras.batch == (3, 4) and (cameras.width, cameras.height) == (30, 20)
    views = Viewpoints.of(cameras)
    torch.testing.assert_close(
        (views.azimuth[:, 1:] - views.azimuth[:, :-1]) % 360, torch.full((3, 3), 90.0), atol=1e-3, rtol=0
    )
    # A unit object takes half of the 20 rows.
    torch.testing.assert_close(cameras.K[..., 1, 1] / views.distance, torch.full((3, 4), 10.0), rtol=1e-4, atol=0)
    assert float(views.elevation.min()) >= 0 and float(views.elevation.max()) <= 30


# Longer motions


def chain_of(gaussians: Gaussians, clips: int, closed: bool = False) -> ClipChain:
    return ClipChain([moving(gaussians, seed) for seed in range(clips)], closed=closed)


def test_a_chain_keeps_the_first_clip_and_is_smooth() -> None:
    gaussians = ball()
    chain = chain_of(gaussians, 3)
    assert chain.length == 2.0 and chain.window == (0.5, 1.0)
    early = torch.linspace(0, 0.25, 7)
    torch.testing.assert_close(chain(gaussians, early).means, chain.field(0)(gaussians, 2 * early).means)
    # Clip 3 starts from where clip 2 is then, and alone is seen at the end.
    end = chain(gaussians, torch.ones(1)).means - chain(gaussians, torch.tensor([0.5])).means
    torch.testing.assert_close(end, chain.field(2)(gaussians, torch.ones(1)).means - gaussians.means, atol=1e-5, rtol=0)
    taus = torch.linspace(0, 1, 1601)
    means = chain(gaussians, taus).means
    speed = (means[1:] - means[:-1]).norm(dim=-1).amax(1)
    assert float(speed[40:].max()) < 6 * float(speed[40:].mean())  # the first clip alone sets in at once
    again = field_from_config(json.loads(json.dumps(chain.config())))
    again.load_state_dict(chain.state_dict())
    assert torch.equal(again(gaussians, taus).means, means)


def test_a_closed_chain_ends_where_it_began() -> None:
    gaussians = ball()
    chain = chain_of(gaussians, 3, closed=True)
    means = chain(gaussians, torch.tensor([0.0, 1e-6, 0.7, 1.0])).means
    torch.testing.assert_close(means[0], gaussians.means)
    torch.testing.assert_close(means[3], gaussians.means, atol=1e-6, rtol=0)
    assert float((means[2] - gaussians.means).abs().max()) > 0.01


def test_the_seam_is_the_papers_loss() -> None:
    gaussians = ball()
    chain = chain_of(gaussians, 2)
    # Halfway through the overlap chi is a half: |Delta_1 - Delta_12|^2 = |Delta_1 - Delta_2|^2 / 4.
    tau = torch.tensor([0.5])
    one = chain.field(0)(gaussians, torch.tensor([0.75])).means
    two = chain.field(0)(gaussians, torch.tensor([0.5])).means + chain.field(1)(gaussians, torch.tensor([0.25])).means
    blended = chain(gaussians, tau).means
    torch.testing.assert_close(blended, (one + two - gaussians.means) / 2, atol=1e-5, rtol=0)
    expected = (one - blended).square().sum(-1).mean()
    torch.testing.assert_close(chain.seam(gaussians, tau), expected, rtol=1e-4, atol=1e-7)
    with pytest.raises(InputError, match="'seam' needs a field with seam, and a time-gated-mlp field has none"):
        check_objectives("motion", [Seam()], video=None, field=moving(gaussians), meshes=[])
    assert next(g.name.split(".")[:2] for g in chain.parameter_groups()) == ["clips", "1"]


# An exact score in the model's place


def test_shifts_are_found_and_undone() -> None:
    picture = torch.zeros(1, 2, 16, 16)
    picture[..., 5:9, 6:11] = torch.rand(1, 2, 4, 5, generator=torch.Generator().manual_seed(0)) + 0.5
    moved = shifted(picture, torch.tensor([2.0]), torch.tensor([-3.0]))
    torch.testing.assert_close(moved, picture.roll((2, -3), (-2, -1)), atol=1e-5, rtol=0)
    noisy = moved + 0.1 * torch.randn(moved.shape, generator=torch.Generator().manual_seed(1))
    down, right = best_shift(picture, noisy)
    assert float(down) == pytest.approx(2, abs=0.2) and float(right) == pytest.approx(-3, abs=0.2)


QUICK = Trial(gaussians=400, size=32, frames=5, steps=180, times=(0.3, 0.1))


def test_the_dynamic_stage_recovers_the_motion() -> None:
    assert QUICK()["motion"] >= 0.85


def test_an_object_drifts_under_a_score_that_does_not_see_where_it_is() -> None:
    """The drift is a random walk, which last bits turn elsewhere: means over four seeds."""
    adrift = replace(QUICK, steps=120, blind=True, clips=2, times=(0.98, 0.5), lr_final=1.0)
    runs = [(replace(adrift, seed=seed)(), replace(adrift, seed=seed, stay=0.6)()) for seed in range(4)]
    alone, held = ({key: sum(r[key] for r in side) / len(side) for key in side[0]} for side in zip(*runs, strict=True))
    assert alone["centre"] > 2.5 * alone["centre of truth"]
    assert held["centre"] < 0.3 * alone["centre"] and held["path"] < 0.3 * alone["path"]
    assert held["motion"] > alone["motion"] + 0.5


def test_motion_grows_with_amplification_against_the_same_rigidity() -> None:
    stiff = replace(QUICK, steps=40, clips=2, rigidity=10.0)
    moved = [replace(stiff, omega=omega)()["moved"] for omega in (1.0, 3.0)]
    assert moved[1] > 1.4 * moved[0]


# The method whole


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "views": write_folder(root / "mvdream", TINY),
        "images": tiny_models.write_stable_diffusion(root / "sd"),
        "modelscope": tiny_videos.write_modelscope(root / "modelscope"),
        "ltx": tiny_videos.write_ltx(root / "ltx"),
    }


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Prior]:
    small = {name: load_prior(folder).with_settings(resolution=(16, 16)) for name, folder in folders.items()}
    return small | {name: small[name].with_settings(pictures=5) for name in ("modelscope", "ltx")}


def config_of(models: dict[str, Prior], video: str = "modelscope") -> ayg.TextConfig:
    """The whole method in a few steps."""
    config = ayg.preset("paper", "a dog running", ayg.Models(models[video], models["images"], models["views"]))
    assert config.detail is not None
    short = replace(config.static.schedule, steps=4)
    moving = tuple(replace(o, share_step=2) if isinstance(o, PositionRegulariser) else o for o in config.motion.objectives)
    density = replace(config.static.density, every=2, start=2) if config.static.density is not None else None
    return replace(
        config,
        frames=5,
        static=replace(config.static, gaussians=100, schedule=short, density=density),
        detail=replace(config.detail, schedule=short),
        given=replace(config.given, gaussians=100, schedule=replace(short, resolutions=((1.0, 32),))),
        motion=replace(config.motion, objectives=moving, schedule=replace(config.motion.schedule, steps=5)),
        further=replace(config.further, steps=3),
    )


@pytest.mark.parametrize("video", ["modelscope", "ltx"])
def test_text_to_4d_with_tiny_models(models: dict[str, Prior], video: str, tmp_path: Path) -> None:
    settings = Settings("ayg", "paper", then=("a dog jumping", ""), closed=True)
    config = config_of(models, video)
    out = tmp_path / "run"
    done = run_in_folder(None, None, out, settings, prompt="a dog running", config=config)
    assert done is not None
    assert {p.name for p in out.iterdir()} == {"scene.safetensors", "report.json", "report.html", "preview.mp4"}
    report = json.loads((out / "report.json").read_text())
    assert {"to 3D", "to 3D, fine", "3D to 4D", "clip 2, 3D to 4D", "clip 3, 3D to 4D"} == set(report["losses"])
    assert report["prompt"] == "a dog running" and report["then"] == ["a dog jumping", ""]
    scene = Scene4D.load(out / "scene.safetensors")
    # Three clips of five frames, each from the middle of the one before: two clips long, and the last frame is the first.
    assert (scene.frames, scene.loop, scene.fps) == (8, True, 8.0)
    assert isinstance(scene.field, ClipChain) and len(scene.field.clips) == 3
    assert float((scene.at(0.4).means - scene.gaussians.means).abs().max()) > 0
    assert torch.equal(scene.at(1.0).means, scene.gaussians.means)
    assert run_in_folder(None, None, out, settings, prompt="a dog running", config=config, resume=True) is None


def test_interrupted_runs_resume_to_the_same_bits(models: dict[str, Prior], tmp_path: Path) -> None:
    settings, config = Settings("ayg", "paper", then=("",)), config_of(models)

    def stop_at(stage: str, index: int) -> Any:
        def progress(name: str, step: int, steps: int, losses: Any, preview: Any) -> None:
            if (name, step) == (stage, index):
                raise KeyboardInterrupt

        return progress

    whole = run_in_folder(None, None, tmp_path / "whole", settings, prompt="a dog", config=config)
    assert whole is not None
    for stage, index in (("to 3D", 3), ("3D to 4D", 3), ("clip 2, 3D to 4D", 2)):
        with pytest.raises(KeyboardInterrupt):
            run_in_folder(
                None,
                None,
                tmp_path / "cut",
                settings,
                prompt="a dog",
                config=config,
                resume=True,
                progress=stop_at(stage, index),
            )
        assert (tmp_path / "cut" / "checkpoints").is_dir()
    with pytest.raises(InputError, match="other inputs or settings"):
        run_in_folder(None, None, tmp_path / "cut", settings, prompt="a cat", config=config, resume=True)
    assert run_in_folder(None, None, tmp_path / "cut", settings, prompt="a dog", config=config, resume=True) is not None
    a, b = (Scene4D.load(tmp_path / name / "scene.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(getattr(a.gaussians, k), getattr(b.gaussians, k)) for k in a.gaussians.tensors())
    assert a.field is not None and b.field is not None
    assert all(torch.equal(x, y) for x, y in zip(a.field.parameters(), b.field.parameters()))


def test_a_given_object_skips_the_first_stage(models: dict[str, Prior], tmp_path: Path) -> None:
    from anchor4d.core.io.meshes import write_glb
    from anchor4d.core.runs.sample import sample_meshes

    write_glb(tmp_path / "object.glb", sample_meshes(1)[0].turned(30).transformed(torch.diag(torch.tensor([3.0, 3, 3, 1]))))
    config = config_of(models)
    done = run_in_folder(
        None, tmp_path / "object.glb", tmp_path / "run", Settings("ayg", "paper"), prompt="a dog", config=config
    )
    assert done is not None
    assert set(done.report["losses"]) == {"to 3D", "3D to 4D"} and len(done.scene.gaussians) == 100
    assert "mesh" in done.report["losses"]["to 3D"]
    assert float(done.scene.gaussians.means.abs().max()) < 0.6


def test_parts_can_be_left_out(models: dict[str, Prior]) -> None:
    config = ayg.preset(
        "paper", "a dog", ayg.Models(models["ltx"], models["images"], models["views"]), ("image", "jsd", "amplification")
    )
    (views,), terms = config.static.objectives, config.motion.objectives
    assert isinstance(views, ViewScores) and views.images is None and views.views is not None
    clip = terms[0]
    assert isinstance(clip, ClipScores) and clip.images is None and clip.amplification == Switch(1.0, 1.0, 0.3)
    assert [o.name for o in terms] == ["clip scores", "local rigidity"]
    with pytest.raises(InputError, match="'colour': not a part of ayg"):
        method_config("ayg", "paper", without=("colour",))


def test_a_term_that_needs_a_video_is_refused(models: dict[str, Prior]) -> None:
    config = config_of(models).motion
    scene = Scene4D(ball(), frames=5, front=FRONT)
    with pytest.raises(InputError, match="this fit has none"):
        stages.fit_motion(None, scene, replace(config, objectives=(ReferenceViewLoss(perceptual=0.0),)))


def test_extending_needs_a_motion_with_an_end(models: dict[str, Prior]) -> None:
    config = config_of(models).motion
    for scene, words in (
        (Scene4D(ball(), frames=5), "does not move"),
        (Scene4D(ball(), moving(ball()), frames=5, loop=True), "loops"),
    ):
        with pytest.raises(InputError, match=words):
            ayg.extend(scene, config)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--prompt", "a dog"], "needs modelscope, sd21-base, mvdream, not on this machine"),
        (["--prompt", "a dog", "--image-model", "none"], "needs modelscope, mvdream"),
        (["--prompt", "a dog", "--object", "OBJECT", "--without", "image"], "needs modelscope, not"),
        (["--prompt", "a dog", "--video-model", "nowhere"], "nowhere: no such folder"),
        ([], "--prompt: method ayg needs a text"),
        (["--prompt", "  "], "prompt: empty"),
        (["--prompt", "a dog", "--video", "film.mp4"], "--video: method ayg follows a text alone"),
        (["--prompt", "a dog", "--prior", "tiny"], "needs a text-to-video model"),
        (["--prompt", "a dog", "--without", "mgja"], "not a part of ayg"),
        (["--prompt", "a dog", "--frames", "1"], "choose a whole number from 2 to"),
    ],
)
def test_the_command_line_says_what_is_missing(
    argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANCHOR4D_MODELS", str(tmp_path / "no models"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "no data"))
    if "OBJECT" in argv:
        from anchor4d.core.io import write_ply

        write_ply(tmp_path / "object.ply", from_points(torch.rand(20, 3), torch.rand(20, 3), opacity=0.9))
        argv = [str(tmp_path / "object.ply") if a == "OBJECT" else a for a in argv]
    assert cli.main(["fit", "--method", "ayg", *argv, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and said.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_the_command_line_makes_a_scene(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ayg.STEPS, "draft", (2, 0, 2, 2))
    from anchor4d.core.io import write_ply

    write_ply(tmp_path / "object.ply", sample_scene(60, 2).gaussians)
    argv = ["fit", "--method", "ayg", "--preset", "draft", "--prompt", "a dog", "--object", tmp_path / "object.ply"]
    argv += ["--video-model", folders["modelscope"], "--image-model", folders["images"], "--frames", "3", "--loop"]
    argv += ["--out", tmp_path / "out"]
    assert cli.main([str(a) for a in argv]) == 0
    scene = Scene4D.load(tmp_path / "out" / "scene.safetensors")
    assert scene.loop and scene.frames == 3 and scene.meta["method"] == "ayg"
    assert os.path.getsize(tmp_path / "out" / "preview.mp4") > 0


def test_other_methods_are_not_prolonged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--video", "v", "--object", "o", "--loop", "--out", str(tmp_path / "x")]) == 2
    assert "loop: prolongs motions of method ayg, not of pla4d" in capsys.readouterr().err


# Composition


def test_two_objects_one_of_three_clips_are_one_scene(tmp_path: Path) -> None:
    truth = sample_scene(80, 5)
    first = Scene4D(truth.gaussians, chain_of(truth.gaussians, 3), frames=9, fps=8.0, front=FRONT)
    second = replace(truth, front=FRONT)
    both = two_objects(first, second)
    assert len(both.gaussians) == 160 and both.frames == 18 and both.fps == 16.0
    both.save(tmp_path / "scene.safetensors")
    again = Scene4D.load(tmp_path / "scene.safetensors")
    taus = frame_times(37)
    for name in both.gaussians.tensors():
        assert torch.equal(getattr(both.at(taus), name), getattr(again.at(taus), name))
    # Each object moves as it does alone: the first as its chain, the second at its own pace on its path.
    alone = first.at(frame_times(9)).means
    shown = both.at(frame_times(9) * (16 / 17)).means[:, :80]
    about = [(m - m.mean(1, keepdim=True)).norm(dim=-1).detach() for m in (alone, shown)]
    torch.testing.assert_close(about[0], about[1], atol=1e-3, rtol=0)
    # The second walks half around the first, and again from the beginning when its own clip is over.
    centres = both.at(taus).means[:, 80:].mean(1).detach()
    assert 1.5 < float(torch.cdist(centres, centres).max()) < 1.9
    cycle = second.frames / 16 / (17 / 16)
    torch.testing.assert_close(both.at(0.1).means[80:], both.at(0.1 + cycle).means[80:], atol=1e-4, rtol=0)
    for name, path in (("ply", "frames"), ("glb-splats", "scene.glb"), ("html", "scene.html")):
        export_scene(both, tmp_path / path, name)
        assert (tmp_path / path).exists()
    moved = measure(truth, Scene4D(truth.gaussians, None, frames=5))
    assert moved["motion"] == 0 and moved["moved"] == 0
