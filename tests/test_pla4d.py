"""PLA4D from end to end at a tiny size: it animates, repeats itself exactly, and resumes exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anchor4d.core.cameras import FrontCamera
from anchor4d.core.files import InputError
from anchor4d.core.fit.density import DensityControl
from anchor4d.core.fit.loop import Schedule, tracking_order
from anchor4d.core.io.meshes import load_mesh
from anchor4d.core.io.video import load_video
from anchor4d.core.mesh import Mesh
from anchor4d.core.methods import pla4d, stages
from anchor4d.core.methods.stages import MethodConfig, MotionConfig, StaticConfig
from anchor4d.core.metrics import motion, on_white
from anchor4d.core.objectives.base import FitStep
from anchor4d.core.objectives.first_frame import FirstFrame
from anchor4d.core.objectives.front import ReferenceViewLoss
from anchor4d.core.objectives.mesh import MeshMatch
from anchor4d.core.objectives.rigidity import Rigidity, Smoothness
from anchor4d.core.runs.sample import write_sample
from anchor4d.core.runs.session import Run, Settings, run, run_in_folder
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.views import render_frames, scene_cameras
from anchor4d.core.schedules import constant
from anchor4d.core.video import DrivingVideo

FRAMES, SIZE = 4, 128

TINY = MethodConfig(
    name="tiny",
    camera="focal",
    resolution=SIZE,
    static=StaticConfig(
        gaussians=1500,
        schedule=Schedule(steps=24, resolutions=((0.5, 48), (1.0, 96))),
        objectives=(
            ReferenceViewLoss(weight=constant(1e4), perceptual=0.0),
            MeshMatch(weight=constant(1e4), views=2, perceptual=0.0),
        ),
        density=DensityControl(every=8, start=8, budget=1600, threshold=0.0),
    ),
    motion=MotionConfig(
        field="control-nodes",
        fields={"control-nodes": {"nodes": 40}},
        tracking=Schedule(steps=1, one_by_one=8, resolutions=((1.0, 64),), background="random"),
        schedule=Schedule(steps=20, resolutions=((1.0, 96),), frames=3, background="random"),
        objectives=(
            ReferenceViewLoss(weight=constant(1.0), mask=3.0, perceptual=0.0, levels=3),
            Rigidity(weight=constant(1.0)),
            Smoothness(weight=constant(10.0)),
        ),
    ),
)

Preview = Callable[[], Tensor]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    case = write_sample(tmp_path_factory.mktemp("sample") / "case", 12, SIZE)
    for picture in sorted((case / "front").iterdir())[FRAMES:]:
        picture.unlink()
    return case


@pytest.fixture(scope="module")
def inputs(sample: Path) -> tuple[DrivingVideo, Mesh]:
    return load_video(sample / "front", resolution=SIZE), load_mesh(sample / "mesh.glb")


@pytest.fixture(scope="module")
def whole(inputs: tuple[DrivingVideo, Mesh]) -> Run:
    """A run without interruption."""
    return run(*inputs, Settings(seed=3, yaw=0.0), config=TINY)


def assert_same(a: Scene4D, b: Scene4D, folder: Path) -> None:
    """Bit by bit, as files."""
    a.save(folder / "a")
    b.save(folder / "b")
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


def test_the_object_follows_the_video(whole: Run, inputs: tuple[DrivingVideo, Mesh]) -> None:
    video, _ = inputs
    scene = whole.scene
    assert (scene.frames, scene.fps) == (FRAMES, 12.0)
    assert scene.front == whole.alignment.front
    rendered = render_frames(scene, whole.alignment.front.cropped(video.crop, video.resolution))[0]
    truth = on_white(torch.cat([video.frames, video.masks[..., None]], -1))[..., :3]
    assert motion(on_white(rendered)[..., :3], truth) > 0.2


def test_the_report_tells_what_happened(whole: Run) -> None:
    report = json.loads(json.dumps(whole.report))
    assert report["method"] == "pla4d"
    assert report["seed"] == 3
    assert report["perceptual"] == "not used by this preset"
    assert report["versions"]["torch"] == torch.__version__
    assert set(report["seconds"]) == {
        "align camera", "frame to 3D", "follow frame by frame", "3D to 4D", "close the surface",
    }  # fmt: skip
    assert set(report["losses"]["3D to 4D"]) == {"reference view", "rigidity", "smoothness"}
    assert len(report["losses"]["frame to 3D"]["reference view"]) == 4  # steps 1, 11, 21 and the last
    assert report["camera"]["fovy"] == whole.alignment.front.fovy
    assert report["alignment"]["curves"][0]["name"]
    assert report["gaussians"] == len(whole.scene.gaussians) > 1500


def test_the_same_seed_gives_the_same_scene_and_another_seed_another(
    whole: Run, inputs: tuple[DrivingVideo, Mesh], tmp_path: Path
) -> None:
    again = run(*inputs, Settings(seed=3, yaw=0.0), config=TINY)
    assert_same(whole.scene, again.scene, tmp_path)
    other = run(*inputs, Settings(seed=4, yaw=0.0), config=TINY)
    assert not torch.equal(other.scene.gaussians.means[:100], whole.scene.gaussians.means[:100])


class Stop(Exception):
    """Stands for a user who interrupts."""


@pytest.mark.parametrize(
    ("stage", "step"),
    [("align camera", 60), ("frame to 3D", 7), ("frame to 3D", 12), ("follow frame by frame", 8), ("3D to 4D", 4)],
)
def test_an_interrupted_run_resumes_to_the_same_scene(
    whole: Run, inputs: tuple[DrivingVideo, Mesh], tmp_path: Path, stage: str, step: int
) -> None:
    done: list[tuple[str, int]] = []

    def interrupt(at: str, index: int, total: int, losses: dict[str, float], preview: Preview) -> None:
        if at == stage and index >= step:
            raise Stop

    def watch(at: str, index: int, total: int, losses: dict[str, float], preview: Preview) -> None:
        done.append((at, index))

    settings = Settings(seed=3, yaw=0.0)
    with pytest.raises(Stop):
        run(*inputs, settings, config=TINY, progress=interrupt, checkpoints=tmp_path)
    resumed = run(*inputs, settings, config=TINY, progress=watch, checkpoints=tmp_path)
    assert_same(whole.scene, resumed.scene, tmp_path)
    if stage != "align camera":
        assert (stage, step) not in done  # it went on from there instead of beginning again
        assert ("frame to 3D", 1) not in done


def test_a_step_cut_short_goes_back_to_the_last_checkpoint(
    whole: Run, inputs: tuple[DrivingVideo, Mesh], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption inside a step, such as running out of memory, must not leave half a step in the checkpoint."""
    calls = 0
    real = ReferenceViewLoss.weighted

    def failing(self: ReferenceViewLoss, step: FitStep, weight: float) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise MemoryError
        return real(self, step, weight)

    settings = Settings(seed=3, yaw=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(ReferenceViewLoss, "weighted", failing)
        with pytest.raises(MemoryError):
            run(*inputs, settings, config=TINY, checkpoints=tmp_path)
    assert_same(whole.scene, run(*inputs, settings, config=TINY, checkpoints=tmp_path).scene, tmp_path)


def test_checkpoints_of_other_inputs_are_not_taken_up(inputs: tuple[DrivingVideo, Mesh], tmp_path: Path) -> None:
    video, mesh = inputs
    short = replace(TINY, static=replace(TINY.static, schedule=replace(TINY.static.schedule, steps=2)))
    front = FrontCamera(38.0, 2.35, SIZE, SIZE)
    first = stages.fit_static(video, mesh, front, short.static, seed=0, checkpoint=tmp_path / "static.safetensors")
    steps: list[int] = []

    def count(stage: str, step: int, total: int, losses: dict[str, float], preview: Preview) -> None:
        steps.append(step)

    second = stages.fit_static(
        video, mesh, front, short.static, seed=1, progress=count, checkpoint=tmp_path / "static.safetensors"
    )
    assert steps == [1, 2]
    assert not torch.equal(first.gaussians.means[:50], second.gaussians.means[:50])


@pytest.mark.parametrize("field", ["hexplane", "mlp"])
def test_the_other_fields_fit_too(inputs: tuple[DrivingVideo, Mesh], whole: Run, field: str) -> None:
    video, _ = inputs
    still = replace(whole.scene, field=None)
    config = MotionConfig(
        field=field,  # pyright: ignore[reportArgumentType]
        fields={field: {"opacity": True}},
        schedule=Schedule(steps=6, resolutions=((1.0, 32),)),
        objectives=(ReferenceViewLoss(weight=constant(1e4), perceptual=0.0), FirstFrame(weight=constant(1e4))),
    )
    moving = stages.fit_motion(video, still, config, seed=0)
    losses = moving.meta["losses"]["3D to 4D"]["reference view"]
    assert losses[-1] < losses[0]
    assert moving.field is not None
    assert moving.field.name == field


def test_the_paper_preset_is_the_papers() -> None:
    paper = pla4d.preset("paper")
    assert (paper.camera, paper.resolution) == ("focal-literal", 512)
    assert (paper.static.schedule.steps, paper.motion.schedule.steps) == (1000, 65)
    assert (paper.motion.field, paper.motion.fields["mlp"]) == ("mlp", {"opacity": True})
    names = [objective.name for objective in paper.motion.objectives]
    assert names == ["reference view", "first_frame"]  # none of our regularisers
    assert [paper.static.schedule.resolution(rho) for rho in (0.0, 0.6, 0.9)] == [128, 256, 512]
    with pytest.raises(ValueError, match="unknown, choose paper, standard, draft or preview"):
        pla4d.preset("fast")


def test_frames_are_tracked_from_their_neighbours() -> None:
    assert tracking_order(4, False) == [(1, 0, 0), (2, 1, 0), (3, 2, 1)]
    looped = tracking_order(6, True)
    assert sorted(frame for frame, _, _ in looped) == [1, 2, 3, 4, 5]
    seen = {0}
    for frame, source, before in looped:
        assert source in seen
        assert before in seen
        assert (frame - source) % 6 in (1, 5)
        seen.add(frame)


# In a folder


def test_a_run_in_a_folder_leaves_its_files_and_nothing_else(sample: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    done = run_in_folder(sample / "front", sample / "mesh.glb", out, Settings(yaw=0.0), config=TINY)
    assert done is not None
    assert {p.name for p in out.iterdir()} == {"mine.txt", "scene.safetensors", "report.json", "report.html", "preview.mp4"}
    assert json.loads((out / "report.json").read_text())["resumed"] is False
    loaded = Scene4D.load(out / "scene.safetensors")
    assert loaded.meta["preset"] == "standard"
    shown = render_frames(loaded, scene_cameras(loaded, [0.0, 90.0]))
    assert shown.shape == (2, FRAMES, SIZE, SIZE, 4)
    assert float(shown[0, :, ..., 3].amax()) > 0.9
    # Finished: nothing is done again, unless something is different.
    assert run_in_folder(sample / "front", sample / "mesh.glb", out, Settings(yaw=0.0), config=TINY, resume=True) is None
    assert run_in_folder(sample / "front", sample / "mesh.glb", out, Settings(yaw=0.0, seed=1), config=TINY, resume=True)


def test_an_interrupted_folder_refuses_other_settings(sample: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, step: int, total: int, losses: dict[str, float], preview: Preview) -> None:
        if stage == "frame to 3D":
            raise Stop

    out = tmp_path / "out"
    with pytest.raises(Stop):
        run_in_folder(sample / "front", sample / "mesh.glb", out, Settings(yaw=0.0), config=TINY, progress=interrupt)
    assert {p.name for p in out.iterdir()} == {"checkpoints"}
    with pytest.raises(InputError, match="other inputs or settings"):
        run_in_folder(sample / "front", sample / "mesh.glb", out, Settings(yaw=0.0, seed=1), config=TINY, resume=True)
    done = run_in_folder(sample / "front", sample / "mesh.glb", out, Settings(yaw=0.0), config=TINY, resume=True)
    assert done is not None
    assert done.report["resumed"] is True
    assert not (out / "checkpoints").exists()


def test_unknown_settings_are_refused() -> None:
    for settings in (Settings(method="magic"), Settings(preset="best"), Settings(device="abacus"), Settings(renderer="crayon")):
        with pytest.raises(InputError, match=r"unknown, choose one of"):
            settings.resolved()
    with pytest.raises(InputError, match="CUDA and ROCm devices only"):
        Settings(device="cpu", renderer="nvrtc").resolved()
