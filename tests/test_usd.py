"""OpenUSD files, read with usd-core itself."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anchor4d.core.cameras import quaternion_to_matrix
from anchor4d.core.deformation import FrameField
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import Gaussians
from anchor4d.core.io.usd import write_usd
from anchor4d.core.runs.sample import sample_scene
from anchor4d.core.scene.scene import Scene4D

FRAMES = 5
SPLATS = "/Object/Splats"


@pytest.fixture(scope="module")
def usd() -> Any:
    pytest.importorskip("pxr", reason="usd-core is not installed")
    from pxr import Usd, UsdVol

    if not hasattr(UsdVol, "ParticleField3DGaussianSplat"):
        pytest.skip("this usd-core is older than 26.3 and knows no Gaussians")
    return Usd


@pytest.fixture(scope="module")
def scene() -> Scene4D:
    scene = sample_scene(200, FRAMES)
    assert scene.field is not None
    scene.field.requires_grad_(False)
    return scene


def one_gaussian(**changes: Tensor) -> Gaussians:
    half = math.sqrt(0.5)
    gaussians = Gaussians(
        means=torch.tensor([[0.1, 0.2, 0.3]]),
        quats=torch.tensor([[3 * half, 0.0, 3 * half, 0.0]]),  # a quarter turn about Y, Z to X, not normalised
        log_scales=torch.tensor([[0.5, 1.0, 2.0]]).log(),
        opacity_logits=torch.tensor([math.log(3.0)]),
        sh=torch.tensor([[[0.4, 0.0, -0.4]]]),
    )
    return replace(gaussians, **changes)


def values(usd: Any, path: Path, name: str, time: float | None = None) -> Any:
    stage = usd.Stage.Open(str(path))
    attribute = stage.GetPrimAtPath(SPLATS).GetAttribute(name)
    value = attribute.Get() if time is None else attribute.Get(time)
    return np.array(value) if not isinstance(value, (int, str)) else value


def quaternions(usd: Any, path: Path, time: float) -> Tensor:  # (N, 4) wxyz
    """By the values' own accessors, not by their memory."""
    stage = usd.Stage.Open(str(path))
    found = stage.GetPrimAtPath(SPLATS).GetAttribute("orientations").Get(time)
    return torch.tensor([[q.GetReal(), *q.GetImaginary()] for q in found])


def test_a_gaussian_stands_upright(tmp_path: Path, usd: Any) -> None:
    """Golden values: what is up (+Y) comes out up (+Z), the front (+Z) comes out at -Y."""
    write_usd(tmp_path / "z.usda", Scene4D(one_gaussian()))
    stage = usd.Stage.Open(str(tmp_path / "z.usda"))
    assert stage.GetMetadata("upAxis") == "Z"
    assert stage.GetMetadata("metersPerUnit") == 1.0
    assert stage.GetDefaultPrim().GetPath() == "/Object"
    prim = stage.GetPrimAtPath(SPLATS)
    assert prim.GetTypeName() == "ParticleField3DGaussianSplat"
    assert values(usd, tmp_path / "z.usda", "positions")[0] == pytest.approx([0.1, -0.3, 0.2])
    assert values(usd, tmp_path / "z.usda", "scales")[0] == pytest.approx([0.5, 1, 2])
    assert values(usd, tmp_path / "z.usda", "opacities") == pytest.approx([0.75])
    assert values(usd, tmp_path / "z.usda", "radiance:sphericalHarmonicsDegree") == 0
    assert values(usd, tmp_path / "z.usda", "radiance:sphericalHarmonicsCoefficients")[0] == pytest.approx([0.4, 0, -0.4])
    # The longest axis, the Gaussian's third, points along X in our frame, so along X there; the middle one along our Y, up.
    turn = quaternion_to_matrix(quaternions(usd, tmp_path / "z.usda", 0))[0]
    assert turn[:, 2].tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    assert turn[:, 1].tolist() == pytest.approx([0, 0, 1], abs=1e-6)
    assert values(usd, tmp_path / "z.usda", "extent") == pytest.approx(
        np.array([[0.1 - 6, -0.3 - 1.5, 0.2 - 3], [0.1 + 6, -0.3 + 1.5, 0.2 + 3]]), abs=1e-5
    )


@pytest.mark.parametrize("suffix", ["usdc", "usda", "usdz", "usd"])
@pytest.mark.parametrize("up", ["Z", "Y"])
def test_every_frame_comes_back(tmp_path: Path, usd: Any, scene: Scene4D, suffix: str, up: Any) -> None:
    path, calls = tmp_path / f"scene.{suffix}", []
    write_usd(path, scene, up=up, progress=lambda step, total: calls.append((step, total)))
    assert calls == [(i + 1, FRAMES) for i in range(FRAMES)]
    stage = usd.Stage.Open(str(path))
    assert (stage.GetStartTimeCode(), stage.GetEndTimeCode()) == (0, FRAMES - 1)
    assert stage.GetTimeCodesPerSecond() == pytest.approx(scene.fps)
    turn = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]) if up == "Z" else torch.eye(3)
    for frame in range(FRAMES):
        true = scene.at(scene.taus[frame])
        assert values(usd, path, "positions", frame) == pytest.approx((true.means @ turn.T).numpy(), abs=1e-6)
        assert values(usd, path, "scales", frame) == pytest.approx(true.scales.numpy(), rel=1e-6)
        assert values(usd, path, "opacities", frame) == pytest.approx(true.opacities.numpy(), abs=1e-6)
        found = quaternions(usd, path, frame)
        assert found.norm(dim=-1) == pytest.approx(1, abs=1e-6)
        axes = quaternion_to_matrix(torch.nn.functional.normalize(true.quats, dim=-1))
        assert torch.allclose(quaternion_to_matrix(found), turn @ axes, atol=1e-5)
    # Only what changes is sampled.
    prim = stage.GetPrimAtPath(SPLATS)
    samples = {name: prim.GetAttribute(name).GetNumTimeSamples() for name in ("positions", "orientations", "extent")}
    assert set(samples.values()) == {FRAMES}
    for name in ("scales", "opacities", "radiance:sphericalHarmonicsCoefficients"):
        assert prim.GetAttribute(name).GetNumTimeSamples() == 0
        assert len(prim.GetAttribute(name).Get()) == len(scene.gaussians)


def test_a_late_change_starts_late(tmp_path: Path, usd: Any) -> None:
    sets = [one_gaussian(opacity_logits=torch.tensor([value])) for value in (0.0, 0.0, 0.0, 2.0)]
    scene = Scene4D(sets[0], FrameField.of(sets), frames=4)
    write_usd(tmp_path / "late.usdc", scene)
    seen = [float(values(usd, tmp_path / "late.usdc", "opacities", t)[0]) for t in (0, 1.5, 2, 3)]
    assert seen == pytest.approx([0.5, 0.5, 0.5, 1 / (1 + math.exp(-2))])


def test_unrelated_sets_are_not_blended(tmp_path: Path, usd: Any) -> None:
    sets = [one_gaussian(means=torch.full((1, 3), value)) for value in (0.0, 1.0, 2.0)]
    scene = Scene4D(sets[0], FrameField.of(sets, interpolation="hold"), frames=3)
    write_usd(tmp_path / "steps.usdc", scene, up="Y")
    seen = [float(values(usd, tmp_path / "steps.usdc", "positions", t)[0, 0]) for t in (0, 0.9, 1, 1.9, 2)]
    assert seen == [0, 0, 1, 1, 2]


def test_the_shorter_turn_is_stored(tmp_path: Path, usd: Any) -> None:
    quats = torch.tensor([[1.0, 0.0, 0.0, 0.0], [-0.99, -0.1, 0.0, 0.0]])
    sets = [one_gaussian(quats=q[None]) for q in quats]
    write_usd(tmp_path / "turn.usdc", Scene4D(sets[0], FrameField.of(sets), frames=2), up="Y")
    first, second = quaternions(usd, tmp_path / "turn.usdc", 0), quaternions(usd, tmp_path / "turn.usdc", 1)
    assert float((first * second).sum()) > 0.9


def test_view_dependent_colours_turn_too(tmp_path: Path, usd: Any) -> None:
    sh = torch.zeros(1, 4, 3)
    sh[0, 1] = 1.0  # varies along Y, up
    write_usd(tmp_path / "sh.usda", Scene4D(one_gaussian(sh=sh)))
    found = values(usd, tmp_path / "sh.usda", "radiance:sphericalHarmonicsCoefficients")
    assert values(usd, tmp_path / "sh.usda", "radiance:sphericalHarmonicsDegree") == 1
    # Degree 1 is ordered y, z, x with signs - + -: what varied along -y varies along -z.
    assert found == pytest.approx(np.array([[0] * 3, [0] * 3, [-1] * 3, [0] * 3]), abs=1e-6)


def test_the_schema_is_met(tmp_path: Path, usd: Any, scene: Scene4D) -> None:
    validation: Any = pytest.importorskip("pxr.UsdValidation", reason="this usd-core has no validators")
    write_usd(tmp_path / "scene.usdz", scene)
    write_usd(tmp_path / "scene.usdc", scene)
    registry = validation.ValidationRegistry()
    for name in ("scene.usdz", "scene.usdc"):
        context = validation.ValidationContext(registry.GetOrLoadAllValidators())
        assert [e.GetErrorAsString() for e in context.Validate(usd.Stage.Open(str(tmp_path / name)))] == []


def test_another_reader_sees_the_same_splats(tmp_path: Path, usd: Any, scene: Scene4D) -> None:
    fourdgs = pytest.importorskip("fourdgs", reason="fourdgs, a reader of the schema, is not installed")
    write_usd(tmp_path / "scene.usdc", replace(scene, field=None, frames=1), up="Y")
    read = fourdgs.from_usd(str(tmp_path / "scene.usdc"))
    assert read.metadata["coordinate_system"] == "y-up-right-handed"
    true = scene.gaussians
    assert read.gaussians.positions == pytest.approx(true.means.numpy(), abs=1e-6)
    assert read.gaussians.colors[:, :3] == pytest.approx(true.colors.clamp(0, 1).numpy(), abs=1e-5)
    turned = quaternion_to_matrix(torch.tensor(read.gaussians.rotations)[:, [3, 0, 1, 2]])
    axes = quaternion_to_matrix(torch.nn.functional.normalize(true.quats, dim=-1))
    assert torch.allclose(turned, axes, atol=1e-5)


def test_nukes_masks_find_the_splats(tmp_path: Path, usd: Any, scene: Scene4D) -> None:
    """The recipes of docs/other-programs.md: SplatRender's mask names a type, OpenUSD's own in 17.1, another in 17.0, for which
    the text of a .usda is changed. The second keeps every attribute and sample."""
    volumes: Any = pytest.importorskip("pxr.UsdVol")
    write_usd(tmp_path / "walk.usda", scene)
    stage = usd.Stage.Open(str(tmp_path / "walk.usda"))
    of_type = [str(prim.GetPath()) for prim in stage.Traverse() if prim.IsA(volumes.ParticleField3DGaussianSplat)]
    assert of_type == [SPLATS]
    text = (tmp_path / "walk.usda").read_text("utf-8")
    assert text.count("ParticleField3DGaussianSplat") == 1
    (tmp_path / "old.usda").write_text(text.replace("ParticleField3DGaussianSplat", "ParticleField_3DGaussianSplat"), "utf-8")
    renamed = usd.Stage.Open(str(tmp_path / "old.usda"))
    assert [str(p.GetPath()) for p in renamed.Traverse() if p.GetTypeName() == "ParticleField_3DGaussianSplat"] == [SPLATS]
    assert renamed.GetTimeCodesPerSecond() == stage.GetTimeCodesPerSecond()
    ours, theirs = (each.GetPrimAtPath(SPLATS) for each in (stage, renamed))
    held = [each for each in ours.GetAttributes() if each.HasAuthoredValue()]
    names = {each.GetName() for each in held}
    assert {"positions", "orientations", "scales", "opacities", "radiance:sphericalHarmonicsCoefficients"} <= names
    for each in held:
        other = theirs.GetAttribute(each.GetName())
        assert other.GetTypeName() == each.GetTypeName() and other.GetTimeSamples() == each.GetTimeSamples(), each.GetName()
        for time in each.GetTimeSamples() or [usd.TimeCode.Default()]:
            assert other.Get(time) == each.Get(time), each.GetName()
    assert len(theirs.GetAttribute("positions").GetTimeSamples()) == FRAMES


def test_what_cannot_be_written_is_refused(tmp_path: Path, usd: Any, scene: Scene4D) -> None:
    with pytest.raises(InputError, match=r"ends in \.usdc"):
        write_usd(tmp_path / "scene.obj", scene)
    broken = Scene4D(one_gaussian(means=torch.full((1, 3), torch.nan)))
    with pytest.raises(InputError, match="not numbers"):
        write_usd(tmp_path / "scene.usdc", broken)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path: Path, scene: Scene4D, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pxr", None)
    with pytest.raises(InputError, match="pip install usd-core"):
        write_usd(tmp_path / "scene.usdc", scene)
