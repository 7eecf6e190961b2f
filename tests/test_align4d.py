"""Align4D and DreamGaussian4D: what the prior is asked, who trains when, the papers' numbers, and whole runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anchor4d import cli
from anchor4d.core.align.distance import ObjectDistance, visual_distance
from anchor4d.core.cameras import Crop, FrontCamera, orbit
from anchor4d.core.deformation import HexPlane
from anchor4d.core.files import InputError
from anchor4d.core.fit.loop import GAUSSIAN_LR, FitState, Inputs, Schedule, run_fit
from anchor4d.core.gaussians import Gaussians
from anchor4d.core.identity import canonical_json
from anchor4d.core.io.video import load_video
from anchor4d.core.mesh import Mesh
from anchor4d.core.methods import align4d, dg4d
from anchor4d.core.methods.registry import method_config
from anchor4d.core.methods.stages import MethodConfig, gaussians_on_mesh
from anchor4d.core.objectives.base import FitStep, check_objectives
from anchor4d.core.objectives.front import ReferenceViewLoss
from anchor4d.core.objectives.multiview import CELLS, AboutFrame, AboutStatic
from anchor4d.core.objectives.multiview import MultiViewDistillation as MultiView
from anchor4d.core.priors import Condition, Distillation, Prior, Viewpoints
from anchor4d.core.priors.distill import Annealed, Question
from anchor4d.core.priors.exact import ExactPrior
from anchor4d.core.priors.load import load_prior
from anchor4d.core.render import rasterize
from anchor4d.core.runs.sample import sample_meshes
from anchor4d.core.runs.session import Run, Settings, run
from anchor4d.core.scene.scene import frame_times
from anchor4d.core.schedules import constant
from anchor4d.core.video import DrivingVideo

WHITE = torch.ones(3)
FRAMES, SIDE = 3, 32
FRONT = FrontCamera(fovy=40.0, distance=2.0, width=64, height=64)
Preview = Callable[[], Tensor]


class Watching(ExactPrior):
    """Knows the object at its times, and keeps what it is shown and asked."""

    def __init__(self, gaussians: Gaussians, field: HexPlane | None = None) -> None:
        self.shown: list[Tensor] = []
        self.asked: list[tuple[Viewpoints, Tensor]] = []

        def truth(views: Viewpoints, taus: Tensor) -> Tensor:
            self.asked.append((views, taus))
            angles = views.azimuth.flatten(), views.elevation.flatten()
            cameras = orbit(*angles, views.distance.flatten(), 49.1, SIDE, SIDE).reshape(len(taus), 1)
            moved = gaussians.map(lambda t: t.expand(len(taus), *t.shape)) if field is None else field(gaussians, taus[:, 0])
            return rasterize(moved, cameras, WHITE).color

        super().__init__(truth, SIDE)

    def condition(
        self,
        image: Tensor | None = None,
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        fps: float | None = None,
    ) -> Condition:
        """A clip's frames are at their times; renders of the static object, of which there are more, are at 0."""
        assert image is not None
        self.shown.append(image)
        return self.at(frame_times(FRAMES)[:, None] if len(image) == FRAMES else torch.zeros(len(image), 1))


@pytest.fixture(scope="module")
def character() -> Mesh:
    return sample_meshes(1)[0]


@pytest.fixture(scope="module")
def gaussians(character: Mesh) -> Gaussians:
    return gaussians_on_mesh(character, 500)[0]


@pytest.fixture(scope="module")
def field() -> HexPlane:
    torch.manual_seed(0)
    made = HexPlane(resolution=8, time_resolution=4, channels=4, width=8, opacity=False)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "heads" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return made.requires_grad_(False)


def video_of(gaussians: Gaussians, field: HexPlane | None = None) -> DrivingVideo:
    moved = gaussians.map(lambda t: t.expand(FRAMES, *t.shape)) if field is None else field(gaussians, frame_times(FRAMES))
    drawn = rasterize(moved, FRONT.cameras())
    color = drawn.color / drawn.alpha[..., None].clamp_min(1e-4)
    return DrivingVideo(color[:, 0].detach(), drawn.alpha[:, 0].detach(), 12.0, Crop(0, 0, 64, 64, 64))


def step_of(gaussians: Gaussians, field: HexPlane, index: int = 0, **changes: Any) -> FitStep:
    step = FitStep(
        index=index, total=11, canonical=gaussians, field=field, frames=torch.arange(FRAMES), taus=frame_times(FRAMES),
        driving=video_of(gaussians, field), times=frame_times(FRAMES), fronts=[FRONT], resolution=64, background=WHITE,
        generator=torch.Generator().manual_seed(5), still=gaussians,
    )  # fmt: skip
    return replace(step, **changes)


# What the prior is asked


def test_motion_asks_about_the_frame_and_geometry_about_the_still_object_from_the_same_camera(
    gaussians: Gaussians, field: HexPlane
) -> None:
    prior = Watching(gaussians, field)
    step = step_of(gaussians, field)
    MultiView(Distillation(prior), views=2)(step)
    (views, taus), count = prior.asked[0], 2 * FRAMES
    assert len(prior.asked) == 1  # one batch for both
    assert len(views) == 2 * count
    assert views.reference is not None
    # Motion: each frame's own time, seen from the front.
    assert taus[:count, 0].tolist() == frame_times(FRAMES).repeat_interleave(2).tolist()
    assert torch.equal(views.reference.azimuth[:count], torch.zeros(count, 1))
    # Geometry: the same cameras, and no relative pose.
    assert torch.equal(views.azimuth[:count], views.azimuth[count:])
    assert torch.equal(views.elevation[:count], views.elevation[count:])
    assert torch.equal(views.reference.azimuth[count:], views.azimuth[count:])
    assert torch.equal(views.reference.elevation[count:], views.elevation[count:])
    assert len(set(views.azimuth[:count].flatten().tolist())) == count
    frames, still = prior.shown
    aligned = visual_distance(FRONT, step.video.crop)
    same = orbit(views.azimuth[:count, 0], views.elevation[:count, 0], aligned, 49.1, SIDE, SIDE)
    torch.testing.assert_close(still, rasterize(gaussians, same, WHITE).color.clamp(0, 1), atol=1e-5, rtol=0)
    # The frames stand as large as the lens draws the object from the front.
    ours = rasterize(field(gaussians, frame_times(FRAMES)), orbit(0.0, 0.0, aligned, 49.1, SIDE, SIDE), WHITE)
    object_width, frame_width = ((1 - x).amax((1, 3)).gt(0.3).sum(-1).float().mean() for x in (ours.color[:, 0], frames))
    assert float(frame_width) == pytest.approx(float(object_width), rel=0.1)


def test_frames_are_shown_to_the_prior_once_for_a_camera(gaussians: Gaussians, field: HexPlane) -> None:
    prior = Watching(gaussians, field)
    objective, step = MultiView(Distillation(prior), asks=(AboutFrame(),)), step_of(gaussians, field)
    for _ in range(2):
        objective(replace(step))
    assert len(prior.shown) == 1
    objective(replace(step, fronts=[replace(FRONT, cx=40.0)]))  # the same video, aligned anew
    assert len(prior.shown) == 2
    assert not torch.equal(*prior.shown)


def test_early_frames_obey_the_3d_and_late_ones_the_video(gaussians: Gaussians, field: HexPlane) -> None:
    """Eq. 9: the gradient is that of both questions asked apart, times t / T and (T - t) / T with t = 1, 2, ..., T."""

    asked: list[Sequence[Question]] = []

    class Spy(Distillation):
        def judged(self, images: Tensor, questions: Sequence[Question], drawn: Mapping[str, Tensor]) -> Tensor:
            asked.append(questions)
            return super().judged(images, questions, drawn)

    MultiView(Spy(Watching(gaussians, field)), views=1)(step_of(gaussians, field))
    motion, geometry = asked[0]
    assert motion.share is not None and geometry.share is not None
    torch.testing.assert_close(motion.share, torch.tensor([1 / 3, 2 / 3, 1.0]))
    torch.testing.assert_close(geometry.share, torch.tensor([2 / 3, 1 / 3, 0.0]))
    MultiView(Spy(Watching(gaussians, field)), views=1, temporal=False)(step_of(gaussians, field))
    assert [q.share for q in asked[1]] == [None, None]


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_questions_asked_in_one_batch_add_up(gaussians: Gaussians, field: HexPlane, micro_batch: int) -> None:
    prior = Watching(gaussians, field)
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(3, 1, SIDE, SIDE, 3, generator=generator, requires_grad=True)
    views = ObjectDistance(1.5, 1.5).viewpoints(torch.tensor([10.0, 50.0, 90.0]), 0.0)
    shares = torch.tensor([0.2, 0.5, 1.0]), torch.tensor([0.8, 0.5, 0.0])
    conditions = prior.at(frame_times(3)[:, None]), prior.at(torch.zeros(1, 1))
    distillation = Distillation(prior, time=Annealed(0.5, 0.5), micro_batch=micro_batch)
    questions = [Question(c, views, s) for c, s in zip(conditions, shares)]
    distillation.joint(images, questions, 0.3, torch.Generator().manual_seed(9)).backward()
    apart = torch.zeros_like(images)
    for condition, share in zip(conditions, shares):
        copy = images.detach().requires_grad_(True)
        whole = Distillation(prior, time=Annealed(0.5, 0.5))
        whole(copy, condition, 0.3, torch.Generator().manual_seed(9), views).backward()
        assert copy.grad is not None
        apart += share[:, None, None, None, None] * copy.grad
    torch.testing.assert_close(images.grad, apart, atol=1e-6, rtol=1e-5)


def test_the_weight_counts_alike_for_priors_of_any_size(gaussians: Gaussians, field: HexPlane) -> None:
    """1 is the sum over Zero123's cells, mean over pictures: ours has 3 x 32 x 32."""
    prior = Watching(gaussians)
    step = step_of(gaussians, field)
    one = MultiView(Distillation(prior), constant(2.0), views=1, asks=(AboutFrame(),))(step)
    camera = prior.asked[0][0]
    rasters = rasterize(
        field(gaussians, frame_times(FRAMES)),
        orbit(camera.azimuth[:, 0], camera.elevation[:, 0], camera.distance[:, 0], 49.1, SIDE, SIDE).reshape(FRAMES, 1),
        WHITE,
    ).color  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    torch.rand(2, FRAMES, 1, generator=generator)  # the cameras
    summed = Distillation(prior)(rasters, prior.at(frame_times(FRAMES)[:, None]), step.rho, generator, camera)
    assert float(one) == pytest.approx(2.0 * CELLS / (3 * 32 * 32) / FRAMES * float(summed), rel=1e-4)


def test_a_moving_object_that_is_right_is_left_alone(gaussians: Gaussians, field: HexPlane) -> None:
    right = MultiView(Distillation(Watching(gaussians, field)), asks=(AboutFrame(),))(step_of(gaussians, field))
    wrong = MultiView(Distillation(Watching(gaussians)), asks=(AboutFrame(),))(step_of(gaussians, field))
    assert float(right) < 1e-5 * float(wrong)


def test_views_are_drawn_and_told_as_the_distance_means(gaussians: Gaussians, field: HexPlane) -> None:
    prior = Watching(gaussians, field)
    distance = ObjectDistance(visual=1.6, model=1.4, meaning="delta")
    loss = MultiView(Distillation(prior), views=1, asks=(AboutFrame(),), distance=distance)(step_of(gaussians, field))
    views = prior.asked[0][0]
    assert views.reference is not None
    torch.testing.assert_close(views.distance, torch.full_like(views.distance, 1.4))
    torch.testing.assert_close(views.reference.distance, torch.full_like(views.distance, 1.6))
    # It is drawn from as far as it is told: an object that is right at 1.4 has nothing to mend.
    literal = replace(distance, meaning="literal")  # drawn at 1.6, told 1.4
    other = MultiView(Distillation(prior), views=1, asks=(AboutFrame(),), distance=literal)(step_of(gaussians, field))
    assert float(loss) < 1e-4 * float(other)


def test_samples_of_several_pictures_stand_around_the_object(gaussians: Gaussians, field: HexPlane) -> None:
    seen: list[Viewpoints] = []

    def truth(views: Viewpoints, taus: Tensor) -> Tensor:
        seen.append(views)
        return torch.full((*views.azimuth.shape, SIDE, SIDE, 3), 0.5)

    prior = ExactPrior(truth, SIDE)
    prior.pictures = 4
    loss = MultiView(Distillation(prior), views=3)(step_of(gaussians, field))
    views = seen[0]
    assert views.azimuth.shape == (2 * FRAMES, 4)
    torch.testing.assert_close(views.azimuth[:, 1:] - views.azimuth[:, :-1], torch.full((2 * FRAMES, 3), 90.0))
    assert views.reference is not None
    assert torch.equal(views.reference.azimuth[FRAMES:], views.azimuth[FRAMES:, :1])
    assert math.isfinite(float(loss))


def test_a_prior_without_pictures_is_refused(gaussians: Gaussians, field: HexPlane) -> None:
    prior = Watching(gaussians)
    prior.conditions = frozenset({"text"})  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match="multi-view distillation: prior exact is not conditioned on a picture"):
        check_objectives("motion", [MultiView(Distillation(prior))], video=video_of(gaussians), field=field, meshes=[])


# Who trains when


def history(gaussians: Gaussians, schedule: Schedule) -> list[tuple[bool, bool]]:
    """Whether field and Gaussians changed in each step."""
    torch.manual_seed(1)
    state = FitState(gaussians, HexPlane(resolution=8, time_resolution=4, channels=4, width=8, opacity=False))
    target = replace(gaussians, means=gaussians.means + torch.tensor([0.05, 0.0, 0.0]))
    inputs = Inputs(video_of(target), frame_times(FRAMES), [FRONT])
    before: list[tuple[Tensor, ...]] = []

    class Front(ReferenceViewLoss):
        def weighted(self, step: FitStep, weight: float | Tensor) -> Tensor:
            assert step.field is not None
            tensors = [*step.field.parameters(), *step.canonical.tensors().values()]
            before.append(tuple(torch.cat([t.detach().flatten() for t in part]) for part in (tensors[:-5], tensors[-5:])))
            return super().weighted(step, weight)

    run_fit("turns", state, [Front(constant(1e3), perceptual=0.0)], schedule, inputs, train="both")
    return [(not torch.equal(a[0], b[0]), not torch.equal(a[1], b[1])) for a, b in pairwise(before)]


def test_field_and_gaussians_take_turns(gaussians: Gaussians) -> None:
    field_only, gaussians_only = (True, False), (False, True)
    schedule = Schedule(steps=8, resolutions=((1.0, 32),), turns=(2, 1))
    assert history(gaussians, schedule) == [field_only, field_only, gaussians_only] * 2 + [field_only]


def test_joint_optimisation_trains_both_in_every_step(gaussians: Gaussians) -> None:
    assert history(gaussians, Schedule(steps=3, resolutions=((1.0, 32),))) == [(True, True)] * 2


def test_the_resting_part_asks_for_no_gradient(gaussians: Gaussians) -> None:
    asking: list[tuple[bool, bool]] = []

    class Front(ReferenceViewLoss):
        def weighted(self, step: FitStep, weight: float | Tensor) -> Tensor:
            assert step.field is not None
            asking.append((next(step.field.parameters()).requires_grad, step.canonical.means.requires_grad))
            return super().weighted(step, weight)

    state = FitState(gaussians, HexPlane(resolution=8, time_resolution=4, channels=4, width=8, opacity=False))
    inputs = Inputs(video_of(gaussians), frame_times(FRAMES), [FRONT])
    schedule = Schedule(steps=2, resolutions=((1.0, 32),), turns=(1, 1))
    run_fit("turns", state, [Front(constant(1.0), perceptual=0.0)], schedule, inputs, train="both")
    assert asking == [(True, False), (False, True)]


# The papers' numbers


def test_dreamgaussian4ds_numbers() -> None:
    prior = load_prior("tiny")
    paper = dg4d.preset("paper", prior)
    front, views = paper.motion.objectives
    assert isinstance(front, ReferenceViewLoss) and isinstance(views, MultiView)
    schedule = paper.motion.schedule
    assert (paper.camera, paper.motion.field, paper.motion.train, paper.motion.fields) == ("fixed", "hexplane", "both", {})
    assert (schedule.steps, schedule.lr_final, schedule.turns) == (500, 1.0, (0, 0))
    assert GAUSSIAN_LR["means"] * schedule.means_final ** (100 / 500) == pytest.approx(4.57e-4, rel=1e-3)
    assert {k: v for k, v in GAUSSIAN_LR.items() if k != "means"} == {
        "sh": 0.01, "opacity_logits": 0.05, "log_scales": 0.005, "quats": 0.005
    }  # fmt: skip
    # 10000 rho and 1000 rho; diffusion times from 980 to 20, 500 half-way; four views of every frame.
    assert (front.weight(0.25), front.weight(0.25) * front.mask, front.perceptual) == (2500, 250, 0)
    times = [float(views.distillation.time(rho, 1, torch.Generator())) for rho in (0.0, 0.5, 1.0)]
    assert times == pytest.approx([0.98, 0.5, 0.02])
    assert (views.views, views.weight(0.7), views.asks) == (4, 1.0, (AboutFrame(),))
    assert views.elevation == (-30.0, 30.0)
    assert views.sizes == ((0.3, 0.5), (0.6, 1.0), (1.0, 2.0))


def parts_of(config: MethodConfig) -> tuple[object, ...]:
    views = config.motion.objectives[1]
    assert isinstance(views, MultiView)
    return config.camera, config.model_distance, AboutStatic() in views.asks, config.motion.schedule.turns


def test_align4d_changes_four_things_and_each_can_be_left_out() -> None:
    prior = load_prior("tiny")
    paper = align4d.preset("paper", prior)
    assert parts_of(paper) == ("distance-literal", "literal", True, (10, 10))
    assert parts_of(align4d.preset("draft", prior)) == ("distance", "delta", True, (8, 2))
    assert parts_of(align4d.preset("draft", prior, ["oda"])) == ("fixed", None, True, (8, 2))
    assert parts_of(align4d.preset("draft", prior, ["maod"])) == ("distance", None, True, (8, 2))
    assert parts_of(align4d.preset("draft", prior, ["mgja"])) == ("distance", "delta", False, (8, 2))
    assert parts_of(align4d.preset("draft", prior, ["ao"])) == ("distance", "delta", True, (0, 0))
    # All else is DreamGaussian4D's.
    base = dg4d.preset("paper", prior)
    assert (paper.static, paper.resolution) == (base.static, base.resolution)
    views = replace(paper.motion.objectives[1], asks=(AboutFrame(),))  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert views.weight(0.5) == 1.0  # pyright: ignore[reportAttributeAccessIssue]
    restored = replace(paper.motion, objectives=base.motion.objectives, schedule=replace(paper.motion.schedule, turns=(0, 0)))
    assert restored == base.motion


def test_parts_and_methods_that_are_not() -> None:
    with pytest.raises(InputError, match="without 'oad': not a part of align4d, choose of oda, maod, mgja, ao"):
        method_config("align4d", "draft", without=("oad",))
    with pytest.raises(
        InputError, match="parts are left out of align4d or ayg or pla4d or pla4d-v4 or stag4d or stag4d-code, not of dg4d"
    ):
        Settings(method="dg4d", without=("ao",)).resolved()
    with pytest.raises(ValueError, match="preset 'fast': unknown"):
        method_config("dg4d", "fast")


# Whole runs


PRESET = align4d.preset


def tiny(prior: Prior | None, without: Sequence[str] = ("maod",)) -> MethodConfig:
    """Align4D at a size that takes a second; the search for the prior's distance takes seven."""
    config = PRESET("draft", prior, without)
    objectives = tuple(replace(o, views=1) if isinstance(o, MultiView) else o for o in config.motion.objectives)
    return replace(
        config,
        static=replace(config.static, gaussians=800, schedule=Schedule(steps=6, resolutions=((1.0, 48),))),
        motion=replace(
            config.motion,
            objectives=objectives,
            schedule=replace(config.motion.schedule, steps=12, resolutions=((1.0, 48),), turns=(3, 2)),
        ),
    )


@pytest.fixture(scope="module")
def clip() -> tuple[DrivingVideo, Mesh]:
    from anchor4d.core.runs.sample import sample_case

    meshes, pictures = sample_case(frames=FRAMES, size=96)
    return load_video(pictures["front"], resolution=96), meshes[0]


@pytest.fixture(scope="module")
def whole(clip: tuple[DrivingVideo, Mesh]) -> Run:
    return run(*clip, Settings(method="align4d", yaw=0.0), config=tiny(load_prior("tiny")))


def same(a: Run, b: Run) -> bool:
    assert a.scene.field is not None and b.scene.field is not None
    pairs = [*zip(a.scene.gaussians.tensors().values(), b.scene.gaussians.tensors().values())]
    pairs += zip(a.scene.field.state_dict().values(), b.scene.field.state_dict().values())
    return all(torch.equal(x, y) for x, y in pairs)


def test_the_object_moves_and_its_gaussians_learn(whole: Run) -> None:
    report = json.loads(json.dumps(whole.report))
    assert (report["method"], report["prior"], report["distance"]) == ("align4d", "tiny", None)
    assert set(report["losses"]["3D to 4D"]) == {"reference view", "multi-view"}
    assert isinstance(whole.scene.field, HexPlane)
    with torch.no_grad():
        assert float((whole.scene.at(1.0).means - whole.scene.at(0.0).means).abs().max()) > 1e-4


def test_the_priors_distance_reaches_the_objective_and_the_report(
    clip: tuple[DrivingVideo, Mesh], monkeypatch: pytest.MonkeyPatch
) -> None:
    from anchor4d.core.align import distance as module

    monkeypatch.setattr(module, "DISTANCES", module.DISTANCES[::8])
    config = tiny(load_prior("tiny"), ())
    one = replace(config.motion.schedule, steps=1)
    config = replace(config, motion=replace(config.motion, schedule=one), static=replace(config.static, objectives=()))
    stages_seen: list[str] = []

    def watch(stage: str, step: int, steps: int, losses: dict[str, float], preview: Preview) -> None:
        stages_seen.append(stage)

    done = run(*clip, Settings(method="align4d", yaw=0.0), config=config, progress=watch)
    report = json.loads(json.dumps(done.report))
    assert report["distance"]["visual_distance"] == pytest.approx(visual_distance(done.alignment.front, clip[0].crop))
    assert (report["distance"]["meaning"], report["distance"]["fallback"]) == ("delta", True)
    assert report["alignment"]["curves"][-1]["name"] == "Model distance (MAOD, delta)"
    assert report["config"] == json.loads(canonical_json(config))  # as asked, so that a finished run is known again
    assert stages_seen.count("align camera") > 8


def test_the_same_seed_gives_the_same_scene(whole: Run, clip: tuple[DrivingVideo, Mesh]) -> None:
    prior = load_prior("tiny")
    assert same(whole, run(*clip, Settings(method="align4d", yaw=0.0), config=tiny(prior)))
    assert not same(whole, run(*clip, Settings(method="align4d", yaw=0.0), config=tiny(prior, ["maod", "mgja"])))


class Stop(Exception):
    """Stands for a user who interrupts."""


@pytest.mark.parametrize("last", [2, 4, 7])
def test_an_interrupted_run_resumes_to_the_same_scene(
    whole: Run, clip: tuple[DrivingVideo, Mesh], tmp_path: Path, last: int
) -> None:
    """In the field's turn, in the Gaussians', and in the next."""
    done: list[tuple[str, int]] = []

    def interrupt(stage: str, step: int, steps: int, losses: dict[str, float], preview: Preview) -> None:
        if stage == "3D to 4D" and steps == 12 and step >= last:
            raise Stop

    def watch(stage: str, step: int, steps: int, losses: dict[str, float], preview: Preview) -> None:
        done.append((stage, step))

    settings, config = Settings(method="align4d", yaw=0.0), tiny(load_prior("tiny"))
    with pytest.raises(Stop):
        run(*clip, settings, config=config, progress=interrupt, checkpoints=tmp_path)
    assert same(whole, run(*clip, settings, config=config, progress=watch, checkpoints=tmp_path))
    assert ("3D to 4D", last) not in done


def test_the_command_line_runs_the_methods(
    clip: tuple[DrivingVideo, Mesh], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from anchor4d.core.runs.sample import write_sample

    case = write_sample(tmp_path / "case", 4, 96)
    monkeypatch.setattr(align4d, "preset", lambda name, prior, without: tiny(prior, without))
    arguments = [
        "fit",
        "--method",
        "align4d",
        "--without",
        "maod",
        "ao",
        "--video",
        case / "front",
        "--object",
        case / "mesh.glb",
    ]
    assert cli.main([*map(str, arguments), "--yaw", "0", "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert (report["method"], report["without"], report["distance"]) == ("align4d", ["maod", "ao"], None)
    assert (tmp_path / "out" / "scene.safetensors").is_file()
    capsys.readouterr()
    assert cli.main(["fit", "--method", "align4d", "--without", "x", "--prompt", "a fox", "--out", str(tmp_path / "no")]) == 2
    assert "error: without 'x'" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
