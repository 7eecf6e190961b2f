"""Gaussians with a time of their own: the field, scenes baked into it, and training it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from anchor4d.core.deformation.timed import TimedGaussians
from anchor4d.core.files import InputError
from anchor4d.core.fit.loop import FitState, Inputs, Schedule, run_fit
from anchor4d.core.gaussians import Gaussians, random_gaussians
from anchor4d.core.runs.sample import sample_scene
from anchor4d.core.scene.scene import Scene4D, frame_times
from anchor4d.core.scene.sequence import INVISIBLE, scene_from_gaussians
from anchor4d.core.scene.timed import Tolerance, bake_timed


def gaussians(count: int = 12) -> Gaussians:
    g = torch.Generator().manual_seed(0)
    quats = F.normalize(torch.randn(count, 4, generator=g), dim=-1)
    return replace(random_gaussians(count, g), quats=quats, opacity_logits=torch.linspace(-1, 3, count))


def test_a_gaussian_moves_along_its_polynomial_and_lives_around_its_centre() -> None:
    canonical = gaussians(1)
    field = TimedGaussians.of(
        torch.tensor([[[1.0, 0, 0], [0, 2.0, 0], [0, 0, -4.0]]]), torch.tensor([0.25]), torch.tensor([1 / 0.2**2]),
        torch.tensor([[0.0, 1.0, 0, 0]]),
    )  # fmt: skip
    moved = field(canonical, torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(moved.means[:, 0] - canonical.means[0], torch.tensor([[0.0, 0, 0], [0.5, 0.5, -0.5]]))
    torch.testing.assert_close(moved.quats[1, 0], F.normalize(canonical.quats[0] + torch.tensor([0, 0.5, 0, 0]), dim=-1))
    factor = math.exp(-0.5 * (0.5 / 0.2) ** 2)
    torch.testing.assert_close(moved.opacities[:, 0], canonical.opacities * torch.tensor([1.0, factor]), rtol=1e-5, atol=0)


def test_a_window_ends_where_the_next_begins() -> None:
    canonical = gaussians(2)
    field = TimedGaussians.of(torch.zeros(2, 1, 3), torch.tensor([0.1, 0.3]), torch.full((2,), 100.0), life="window")
    shown = field(canonical, torch.tensor([0.0, 0.2, 0.3999, 0.4])).opacities > 1e-6
    assert shown.tolist() == [[True, False], [False, True], [False, True], [False, False]]


def test_at_rest_nothing_changes_to_the_bit() -> None:
    canonical = gaussians()
    moved = TimedGaussians.build(Scene4D(canonical, frames=4))(canonical, torch.linspace(0, 1, 5))
    assert torch.equal(moved.means, canonical.means.expand(5, -1, -1))
    assert torch.equal(moved.opacity_logits, canonical.opacity_logits.expand(5, -1))


def test_a_life_is_learnt_from_no_end_and_back() -> None:
    canonical = gaussians(3)
    field = TimedGaussians.build(Scene4D(canonical, frames=4))
    field(canonical, torch.tensor([0.0])).opacities.sum().backward()
    assert bool((field.precision.grad < 0).all())  # pyright: ignore[reportOptionalOperand]
    with torch.no_grad():
        field.precision.fill_(-1.0)
    field.zero_grad()
    moved = field(canonical, torch.tensor([0.0]))
    torch.testing.assert_close(moved.opacities[0], canonical.opacities)
    moved.opacities.sum().backward()
    assert bool((field.precision.grad < 0).all())  # pyright: ignore[reportOptionalOperand]


def test_it_is_fitted_saved_and_selected(tmp_path: Path) -> None:
    from test_contracts import FRAMES, FRONT, Pull

    canonical = gaussians()
    field = TimedGaussians.build(Scene4D(canonical, frames=FRAMES), order=2)
    inputs = Inputs(None, frame_times(FRAMES), [FRONT])
    done = run_fit("motion", FitState(canonical, field), (Pull(axis=1),), Schedule(4, resolutions=((1.0, 8),)), inputs)
    assert isinstance(done.field, TimedGaussians)
    assert bool(((done.field(canonical, torch.ones(1)).means[0] - canonical.means)[:, 1] > 0).all())
    scene = Scene4D(canonical, done.field, frames=FRAMES)
    scene.save(tmp_path / "scene.safetensors")
    again = Scene4D.load(tmp_path / "scene.safetensors")
    assert torch.equal(again.at(0.3).means, scene.at(0.3).means)
    few = torch.tensor([3, 1])
    assert torch.equal(done.field.select(few)(canonical.select(few), torch.ones(1)).means[0], scene.at(1.0).means[few])
    with pytest.raises(ValueError, match="of 12 Gaussians, where there are 3"):
        done.field.check(3)


def test_an_even_motion_bakes_into_one_gaussian_each_exactly() -> None:
    first = gaussians()
    sets = [replace(first, means=first.means + t * torch.tensor([0.1, 0, 0.02])) for t in range(5)]
    baked = bake_timed(scene_from_gaussians(sets, motion="smooth"))
    assert len(baked.scene.gaussians) == 12 and baked.errors["position"] < 1e-6
    assert bool((baked.scene.field.precision == 0).all())  # pyright: ignore[reportOptionalMemberAccess]


def test_what_cannot_be_seen_is_left_out_meanwhile() -> None:
    first = gaussians()
    hidden = first.opacity_logits.clone()
    hidden[:6] = INVISIBLE
    sets = [first, replace(first, opacity_logits=hidden), replace(first, opacity_logits=hidden), first]
    baked = bake_timed(scene_from_gaussians(sets, motion="steps"))
    assert sorted(baked.source.tolist()) == sorted([*range(12), *range(6)])
    seen = [int((baked.scene.at(t / 3).opacities > 0.01).sum()) for t in range(4)]
    assert seen == [12, 6, 6, 12] and max(baked.errors.values()) < 1e-4


@pytest.mark.parametrize("loop", [False, True])
def test_errors_of_a_bake_are_bounded_by_what_it_states(loop: bool) -> None:
    scene = replace(sample_scene(300, 8), loop=loop)
    coarse, fine = (bake_timed(scene, tolerance=Tolerance(position=p, rotation=r)) for p, r in ((0.03, 20.0), (1e-4, 0.5)))
    assert len(coarse.scene.gaussians) < len(fine.scene.gaussians)
    for baked in (coarse, fine):
        for tau in scene.taus.tolist():
            shown = baked.scene.at(tau).opacities > 1e-6
            assert sorted(baked.source[shown].tolist()) == list(range(300)), tau
            order = baked.source[shown].argsort()
            away = (baked.scene.at(tau).means[shown][order] - scene.at(tau).means).norm(dim=-1)
            assert float(away.detach().max()) <= baked.errors["position"] * (1 + 1e-5)
    assert fine.errors["position"] < coarse.errors["position"]


def test_cubics_take_fewer_pieces_than_lines() -> None:
    scene = sample_scene(200, 16)
    assert len(bake_timed(scene, order=3).scene.gaussians) < 0.6 * len(bake_timed(scene).scene.gaussians)


def test_fading_pieces_cover_what_one_covered() -> None:
    scene = sample_scene(200, 8)
    baked = bake_timed(scene, life="gaussian", turning=False)
    for tau in (0.0, 0.31, 1.0):
        covered = torch.zeros(200).scatter_add(0, baked.source, (1 - baked.scene.at(tau).opacities).log())
        torch.testing.assert_close(1 - covered.exp(), scene.at(tau).opacities, rtol=0, atol=0.1)
    first = gaussians()
    with pytest.raises(InputError, match="each frame has Gaussians of its own"):
        bake_timed(scene_from_gaussians([first, first.select(torch.arange(5))]), life="gaussian")
