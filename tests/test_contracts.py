"""What every objective, field and registry owes the rest: new entries are tested the day they appear."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from anchor4d import cli
from anchor4d.core.cameras import Crop, FrontCamera
from anchor4d.core.deformation import FIELDS, ControlNodes, DeformationField, DeformationMLP, HexPlane, field_from_config
from anchor4d.core.files import InputError
from anchor4d.core.fit.density import DensityControl
from anchor4d.core.fit.loop import FitState, Inputs, Schedule, run_fit
from anchor4d.core.gaussians import Gaussians, random_gaussians
from anchor4d.core.identity import canonical_json, file_identity, fingerprint
from anchor4d.core.io.export import FORMATS
from anchor4d.core.io.meshes import load_mesh, write_glb
from anchor4d.core.mesh import UP_AXES
from anchor4d.core.methods.registry import METHODS, PRESETS, Choice, method_config
from anchor4d.core.objectives.base import OBJECTIVES, FitStep, Objective, identified
from anchor4d.core.objectives.rigidity import Rigidity
from anchor4d.core.packages import constant_of
from anchor4d.core.priors.base import PRIORS, Prior, Role
from anchor4d.core.priors.exact import ExactPrior
from anchor4d.core.registry import Registry
from anchor4d.core.render.rasterize import BACKENDS
from anchor4d.core.runs.sample import sample_meshes, write_sample
from anchor4d.core.runs.session import Settings, run_in_folder
from anchor4d.core.scene.object3d import SplatObject
from anchor4d.core.scene.scene import Scene4D, frame_times
from anchor4d.core.schedules import Weight, constant, linear
from anchor4d.core.video import DrivingVideo

FRAMES = 4
FRONT = FrontCamera(fovy=40.0, distance=2.0, width=16, height=16)


@dataclass(frozen=True)
class Pull(Objective):
    """Pulls all Gaussians along an axis."""

    name: ClassVar[str] = "pull"
    needs: ClassVar[frozenset[str]] = frozenset({"field"})
    weight: Weight = constant(1.0)  # noqa: RUF009
    axis: int = 0

    def loss(self, step: FitStep) -> Tensor:
        return -step.gaussians.means[..., self.axis].mean()


@pytest.fixture
def scene() -> Scene4D:
    return Scene4D(random_gaussians(30, torch.Generator().manual_seed(0)), frames=FRAMES, front=FRONT)


def inputs_of(video: DrivingVideo | None = None) -> Inputs:
    return Inputs(video, frame_times(FRAMES), [FRONT])


def fitted(scene: Scene4D, field: DeformationField, *objectives: Objective, steps: int = 3, **settings: Any) -> FitState:
    state, schedule = FitState(scene.gaussians, field), Schedule(steps, resolutions=((1.0, 8),))
    return run_fit("motion", state, objectives, schedule, inputs_of(), **settings)


# Objectives


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_objective_says_what_it_is(name: str) -> None:
    kind = OBJECTIVES[name]
    assert issubclass(kind, Objective) and kind.name == name and kind.__doc__
    # One or the other: a weight that leaves a part of the loss as it is, or one that multiplies all of it, scaled or not.
    whole, partly = kind.loss is not Objective.loss, kind.weighted is not Objective.weighted
    assert whole != partly and not (partly and kind.scaled is not Objective.scaled)
    assert not partly or "perceptual" in kind.__dataclass_fields__  # pyright: ignore[reportAttributeAccessIssue]
    settings = set(kind.__dataclass_fields__)  # pyright: ignore[reportAttributeAccessIssue]
    assert "weight" in settings and kind.takes <= settings
    offered = frozenset().union(*(field.offers for field in FIELDS.values()))
    assert kind.needs <= {"video", "field", "mesh"} | offered


def test_two_objectives_of_one_class_both_count(scene: Scene4D) -> None:
    both = Pull(axis=0), Pull(constant(2.0), axis=1)
    assert list(identified(both)) == ["pull", "pull 2"]
    done = fitted(scene, DeformationMLP(2, 8, 0), *both)
    moved = done.field(done.gaussians, torch.ones(1)).means[0] - scene.gaussians.means  # pyright: ignore[reportOptionalCall]
    assert bool((moved.mean(0)[:2] > 0).all())
    assert set(done.losses) == {"pull", "pull 2"}


def test_the_loop_applies_the_weight_and_the_stiffness(scene: Scene4D) -> None:
    field = ControlNodes.build(scene, nodes=6)
    step = FitStep(
        index=5, total=11, canonical=scene.gaussians, field=field, frames=torch.arange(FRAMES), taus=frame_times(FRAMES),
        driving=None, times=frame_times(FRAMES), fronts=[FRONT], resolution=8, background=torch.ones(3),
        generator=torch.Generator(), still=scene.gaussians, stiffness=0.5,
    )  # fmt: skip
    assert Pull(linear(0.0, 4.0)).weight_at(step) == 2.0
    with torch.no_grad():
        field.translations.normal_()
    rigid = Rigidity(linear(0.0, 4.0), joints=0.0)
    assert rigid.weight_at(step) == 1.0
    assert torch.equal(rigid(step), rigid.loss(step))


def test_what_an_objective_remembers_is_its_own_and_resumes(scene: Scene4D, tmp_path: Path) -> None:
    def stop_at(stop: int) -> Any:
        def progress(stage: str, step: int, *more: Any) -> None:
            if step == stop:
                raise KeyboardInterrupt

        return progress

    def of(name: str, stop: int = 0) -> FitState:
        terms = Pull(axis=1), Rigidity(constant(1e-3), joints=0.05), Rigidity(constant(1e-3), joints=0.2)
        return fitted(
            scene, ControlNodes.build(scene, nodes=6), *terms, steps=30, checkpoint=tmp_path / name, progress=stop_at(stop)
        )

    whole = of("whole")
    assert not torch.equal(whole.memory["rigidity"]["edge_weight"], whole.memory["rigidity 2"]["edge_weight"])
    with pytest.raises(KeyboardInterrupt):
        of("cut", 25)  # behind the renewal of the weights at step 20
    resumed = of("cut")
    for a, b in zip(whole.field.parameters(), resumed.field.parameters()):  # pyright: ignore[reportOptionalMemberAccess]
        assert torch.equal(a, b)


def test_needs_are_checked_before_the_first_step(scene: Scene4D) -> None:
    with pytest.raises(InputError, match="motion: objective 'reference view' needs a driving video, and this fit has none"):
        fitted(scene, DeformationMLP(2, 8, 0), OBJECTIVES["reference view"]())


# Fields


def built(name: str, scene: Scene4D) -> DeformationField:
    torch.manual_seed(0)
    return FIELDS[name].build(scene, **({"nodes": 6} if name == "control-nodes" else {}))


FITTED = [name for name, kind in FIELDS.items() if kind.buildable]


@pytest.mark.parametrize("name", FITTED)
def test_every_field_starts_at_rest_and_says_what_it_can(name: str, scene: Scene4D) -> None:
    field = built(name, scene)
    moved = field(scene.gaussians, torch.linspace(0, 1, 3))
    torch.testing.assert_close(moved.means, scene.gaussians.means.expand(3, -1, -1), atol=1e-6, rtol=0)
    json.dumps(field.config())
    twin = field_from_config(field.config())
    twin.load_state_dict(field.state_dict())
    if field.anywhere:
        carried = field.carrier(scene.gaussians, torch.rand(5, 3))
        assert carried is not None and carried(torch.zeros(2)).shape == (2, 5, 3)
    fewer = scene.gaussians.select(torch.arange(10))
    if field.fixed_count:
        with pytest.raises(ValueError, match="not 10"):
            field(fewer, torch.zeros(1))
    else:
        assert field(fewer, torch.zeros(1)).means.shape == (1, 10, 3)
    handles = field.handles()
    assert ("handles" in field.offers) == (handles is not None)
    if handles is not None:
        positions, quats = field.motion_of_handles(torch.zeros(2))
        assert positions.shape == (2, len(handles.positions), 3) and quats.shape == (2, len(handles.positions), 4)
        assert int(handles.pairs.max()) < len(handles.positions)
    assert ("planes" in field.offers) == bool(field.feature_planes())
    if field.tracks_frames:
        field.continue_motion(2, 1, 0, 0.5)
    else:
        with pytest.raises(ValueError, match="cannot be tracked"):
            field.continue_motion(2, 1, 0, 0.5)


def test_density_control_is_refused_by_what_a_field_can(scene: Scene4D) -> None:
    class Bound(HexPlane):
        name = "bound"
        fixed_count = True

    with pytest.raises(InputError, match="motion: a bound field moves a fixed number of Gaussians"):
        fitted(scene, Bound(4, 3, 2, 4), Pull(), train="both", density=DensityControl())


def test_a_scene_of_version_0_1_loads(scene: Scene4D, tmp_path: Path) -> None:
    """There, control nodes kept the weights that rigidity gave their pairs."""
    field = ControlNodes.build(scene, nodes=6)
    field.register_buffer("pair_weight", torch.full((len(field.pairs),), 0.5))
    replace(scene, field=field).save(tmp_path / "old.safetensors")
    again = Scene4D.load(tmp_path / "old.safetensors")
    assert isinstance(again.field, ControlNodes) and torch.equal(again.field.pairs, field.pairs)
    assert "pair_weight" not in again.field.state_dict()


# Methods


def priors_in(value: Any) -> list[Prior]:
    if isinstance(value, Prior):
        return [value]
    parts = vars(value).values() if is_dataclass(value) else value.values() if isinstance(value, dict) else ()
    return [p for part in (value if isinstance(value, (list, tuple)) else parts) for p in priors_in(part)]


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_s_settings_are_plain_data_and_its_words_are_told(name: str) -> None:
    method = METHODS[name]
    roles = frozenset(role.name for role in method.roles)
    keys, changed = set(), set()
    for preset in method.presets:
        whole = canonical_json(method.settings(Choice(preset, prompt="a dog", models=roles)))
        for without in [(), *((part,) for part in method.without)]:
            settings = method.settings(Choice(preset, without=without, prompt="a dog", models=roles))
            assert all(isinstance(prior, Role) and prior.name in roles for prior in priors_in(settings))
            keys.add(key := canonical_json(settings))
            changed |= {*without} if key != whole else set()
            assert settings.motion.field in FIELDS
            for fit in (settings.static, settings.motion):
                for objective in fit.objectives:
                    assert OBJECTIVES[objective.name] is type(objective)
    assert changed == {*method.without} and len(keys) >= len(method.presets)  # every part changes something
    for part in method.plus:
        more = method.settings(Choice("draft", plus=(part,), models=roles))
        assert canonical_json(more) not in keys
    assert cli.method_summaries()[name] == method.summary
    text = (Path(__file__).parent.parent / "docs" / "command-line.md").read_text()
    assert all(f"`{word}`" in text for word in (name, *method.without, *method.plus))


def test_models_are_put_in_the_places_of_their_roles() -> None:
    prior = ExactPrior(lambda views, taus: torch.zeros(len(taus), 1, 8, 8, 3), 8)
    bound = method_config("stag4d", "draft", {"prior": prior})
    assert {p.name for o in bound.motion.objectives for p in o.priors()} == {"exact"}
    assert bound.anchors is None and bound.with_object is not None
    with pytest.raises(InputError, match="method 'stag5d': unknown, choose one of align4d, ayg, dg4d, pla4d"):
        method_config("stag5d")


# What names a run


def test_colours_and_textures_are_part_of_an_object_s_identity() -> None:
    mesh = sample_meshes(1)[0]
    assert fingerprint(mesh) == fingerprint(replace(mesh, name="elsewhere"))
    repainted = replace(mesh, textures=(1 - mesh.textures[0],))
    assert fingerprint(mesh) != fingerprint(repainted)
    splats = SplatObject.of(random_gaussians(5, torch.Generator().manual_seed(0)))
    other = replace(splats, gaussians=replace(splats.gaussians, sh=-splats.gaussians.sh - 0.1))
    assert fingerprint(splats) != fingerprint(other)


def test_a_repainted_object_or_another_rate_is_another_run(tmp_path: Path) -> None:
    from test_cli import tiny

    case = write_sample(tmp_path / "case", 3, 32)
    settings, config = Settings(seed=1, yaw=0.0, prior="none"), tiny()

    def again(**changes: Any) -> Any:
        return run_in_folder(
            case / "front", case / "mesh.glb", tmp_path / "out", settings, config=config, resume=True, **changes
        )

    assert again() is not None
    assert again() is None
    assert again(fps=30.0) is not None
    mesh = load_mesh(case / "mesh.glb")
    write_glb(case / "mesh.glb", replace(mesh, textures=(1 - mesh.textures[0],)))
    assert again(fps=30.0) is not None


def test_a_video_s_identity_is_that_of_its_files_whatever_its_pixels(tmp_path: Path) -> None:
    case = write_sample(tmp_path / "case", 2, 16)
    name = file_identity(case / "front")
    assert name == file_identity(case.rename(tmp_path / "moved") / "front")
    video = DrivingVideo(torch.zeros(2, 8, 8, 3), torch.ones(2, 8, 8), 12.0, Crop(0, 0, 8, 8, 8), identity=name)
    assert fingerprint(video) == fingerprint(replace(video, frames=video.frames + 1e-7))
    assert fingerprint(video) != fingerprint(replace(video, identity=""))
    with pytest.raises(TypeError, match="settings hold a function"):
        fingerprint(lambda rho: rho)


# Priors and formats


def test_every_kind_of_prior_knows_its_own_checkpoints(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    for name, kind in PRIORS.items():
        assert issubclass(kind, Prior) and kind.__doc__, name
        assert kind.load.__func__ is not Prior.load.__func__ and kind.conditions, name
    assert PRIORS["stable-zero123"].precedence > PRIORS["zero123"].precedence


def test_every_format_says_what_it_is_for() -> None:
    text = (Path(__file__).parent.parent / "docs" / "formats.md").read_text()
    for name, form in FORMATS.items():
        assert form.suffixes and form.text and form.kind, name
        assert f"`{name}`" in text, name


# Registries


def test_a_registry_names_what_there_is() -> None:
    things: Registry[type] = Registry("thing")

    @things.register("a")
    class A: ...

    assert next(iter(things)) == "a" and things["a"] is A and things.named("a") is A
    with pytest.raises(InputError, match="thing 'b': unknown, choose one of a"):
        things.named("b")
    with pytest.raises(ValueError, match="registered twice"):
        things.add("a", Gaussians)


ROOT = Path(__file__).parent.parent
CHOOSERS = [ROOT / "cli.py", *(ROOT / "nodes").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]


@pytest.mark.parametrize("path", CHOOSERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_choices_are_read_from_their_registry(path: Path) -> None:
    """No list of names is written out where an option or a node's input offers them: a new entry would be missing there."""
    known = [set(names) for names in (METHODS, FORMATS, FIELDS, OBJECTIVES, PRIORS, PRESETS, BACKENDS, UP_AXES)]
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call) or ast.unparse(call.func).split(".")[-1] not in ("choice", "Input", "add_argument"):
            continue
        for given in (*call.args, *(word.value for word in call.keywords if word.arg in ("options", "choices"))):
            if isinstance(given, ast.List | ast.Tuple | ast.Set):
                names = {part.value for part in given.elts if isinstance(part, ast.Constant)}
                assert len(names) < 2 or not any(names <= entries for entries in known), f"{path}:{call.lineno}: {names}"


def test_constants_that_help_reads_are_those_of_their_modules() -> None:
    read = constant_of
    assert read("core/methods/registry.py", "PRESETS") == PRESETS and read("core/render/rasterize.py", "BACKENDS") == BACKENDS
    assert list(read("core/mesh.py", "UP_AXES")) == list(UP_AXES)
    with pytest.raises(LookupError, match=r"core/mesh\.py: no constant NONE"):
        read("core/mesh.py", "NONE")


def test_a_broken_plug_in_is_left_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from importlib import metadata

    from anchor4d.core import registry

    point = metadata.EntryPoint("broken", "anchor4d_no_such_module", registry.GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])
    monkeypatch.setattr(registry, "_plugins_loaded", False)
    assert "mesh" in list(OBJECTIVES)
    assert "plug-in broken (anchor4d_no_such_module): left out, ModuleNotFoundError" in caplog.text
