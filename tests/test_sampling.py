"""The shared sampler: against diffusers' schedulers, with an exact prior, and what it promises its callers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from anchor4d.core.cameras import orbit
from anchor4d.core.files import InputError
from anchor4d.core.generate.sampling import image_to_views, sample, step_times, text_to_views
from anchor4d.core.priors.base import Condition, NoiseSchedule, Prior, Viewpoints
from anchor4d.core.priors.exact import ExactPrior

SIDE = 6


class Curved(ExactPrior):
    """A network that is none: a smooth function of latents, time and condition, with any parametrisation."""

    conditions = frozenset()

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__(lambda views, taus: torch.zeros(1, 1, SIDE, SIDE, 3), SIDE)
        self.schedule, self.calls = schedule, 0

    def _denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor], views: Viewpoints | None) -> Tensor:
        self.calls += 1
        known = inputs["known"].reshape(-1, 1, 1, 1, 1)
        return raw(latents, float(time[0]) / self.schedule.steps, known)


def raw(latents: Tensor, t: float, known: Tensor | float) -> Tensor:
    return torch.sin(latents + t) + 0.3 * known * torch.cos(2 * latents)


def first_noise(seed: int, count: int = 1, frames: int = 1) -> Tensor:
    return torch.randn(count, frames, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def guided(latents: Tensor, t: float, scale: float) -> Tensor:
    without = raw(latents, t, 0.0)
    return without + scale * (raw(latents, t, 1.0) - without)


def drawn(latents: Tensor) -> Tensor:
    return (latents.permute(0, 1, 3, 4, 2) / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize(("kind", "spacing", "steps"), [("epsilon", "leading", 30), ("v_prediction", "trailing", 25)])
def test_matches_ddim_scheduler(kind: str, spacing: Any, steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=kind, timestep_spacing=spacing,
    )  # fmt: skip
    prior = Curved(NoiseSchedule.of(scheduler))
    found = sample(prior, prior.condition(), steps=steps, guidance=3.0, seed=5)

    scheduler.set_timesteps(steps)
    latents = first_noise(5)
    for t in scheduler.timesteps:
        latents = scheduler.step(guided(latents, int(t) / 1000, 3.0), t, latents, return_dict=False)[0]
    torch.testing.assert_close(found, drawn(latents), atol=2e-5, rtol=0)
    assert found.std() > 0.05


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_matches_flow_scheduler(shift: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    prior = Curved(NoiseSchedule("flow", None, 1000))
    found = sample(prior, prior.condition(), steps=8, guidance=2.0, seed=6, shift=shift)

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - i / 8 for i in range(8)])
    latents = first_noise(6)
    for t in scheduler.timesteps:
        latents = scheduler.step(guided(latents, float(t) / 1000, 2.0), t, latents, return_dict=False)[0]
    torch.testing.assert_close(found, drawn(latents), atol=1e-5, rtol=0)


def test_step_times() -> None:
    schedule = NoiseSchedule.scaled_linear()
    leading = [*range(959, 0, -33)][:30]
    assert schedule.index(step_times(schedule, 30)).tolist() == [t - 1 for t in leading] + [0]
    assert schedule.index(step_times(schedule, 4, "trailing")).tolist() == [999, 749, 499, 249, 0]
    assert step_times(NoiseSchedule("flow"), 4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    for steps in (0, 1001):
        with pytest.raises(InputError, match="choose 1 to 1000"):
            step_times(schedule, steps)


def gradient_pictures(views: Viewpoints, taus: Tensor) -> Tensor:
    """A picture that tells its azimuth."""
    grey = (views.azimuth % 360 / 400 + 0.05)[..., None, None, None]
    return grey.expand(*views.azimuth.shape, SIDE, SIDE, 3)


def test_exact_score_gives_the_truth_in_the_order_of_the_views() -> None:
    prior = ExactPrior(gradient_pictures, SIDE)
    views = Viewpoints.of(orbit([270.0, 0.0, 90.0])[None])
    found = sample(prior, prior.condition(), views, steps=12, guidance=1.0, seed=7)
    # With the exact score the noise is the same at every step, and the schedule's first step keeps a little of it.
    truth = prior.encode(gradient_pictures(views, torch.zeros(1, 1)))
    start, end = (prior.schedule.coefficients(step_times(prior.schedule, 12)[[i]]) for i in (0, -1))
    noise = (first_noise(7, 1, 3) - start[0] * truth) / start[1]
    torch.testing.assert_close(found, drawn(end[0] * truth + end[1] * noise), atol=1e-4, rtol=0)
    assert (found - gradient_pictures(views, torch.zeros(1, 1))).abs().mean() < 0.02


def test_seeds_and_samples() -> None:
    prior = Curved(NoiseSchedule.scaled_linear())
    one = sample(prior, prior.condition(), steps=3, seed=1)
    assert torch.equal(one, sample(prior, prior.condition(), steps=3, seed=1))
    assert not torch.equal(one, sample(prior, prior.condition(), steps=3, seed=2))
    two = sample(prior, Condition({"known": torch.tensor([1.0, 0.0])}, {"known": torch.zeros(1)}), steps=3, seed=1)
    assert two.shape == (2, 1, SIDE, SIDE, 3)
    torch.testing.assert_close(two[:1], one)
    assert not torch.equal(two[1], two[0])


def test_guidance_of_one_asks_once() -> None:
    prior = Curved(NoiseSchedule.scaled_linear()).with_settings(one_pass=False)
    assert isinstance(prior, Curved)
    sample(prior, prior.condition(), steps=4, guidance=1.0)
    once = prior.calls
    sample(prior, prior.condition(), steps=4, guidance=2.0)
    assert (once, prior.calls - once) == (4, 8)


class Stop(Exception):
    pass


def test_progress_previews_and_interrupts() -> None:
    prior = Curved(NoiseSchedule.scaled_linear())
    seen: list[tuple[int, int, Tensor | None]] = []

    def watch(step: int, total: int, preview: Callable[[], Tensor | None]) -> None:
        seen.append((step, total, preview()))
        if step == 3:
            raise Stop

    with pytest.raises(Stop):
        sample(prior, prior.condition(), steps=5, guidance=1.0, progress=watch)
    assert [(step, total) for step, total, _ in seen] == [(1, 5), (2, 5), (3, 5)] and prior.calls == 3
    pictures = [p for _, _, p in seen if p is not None]
    assert [p.shape for p in pictures] == [(1, SIDE, SIDE, 3)] * 3
    assert not torch.equal(pictures[0], pictures[2])


def test_wrong_kinds_of_prior() -> None:
    prior: Prior = ExactPrior(gradient_pictures, SIDE)
    with pytest.raises(InputError, match="MVDream is needed"):
        text_to_views(prior, "a cat")
    with pytest.raises(InputError, match="ImageDream is needed"):
        image_to_views(prior, torch.zeros(8, 8, 3))
    with pytest.raises(InputError, match="viewpoints"):
        sample(prior, prior.condition(image=None), steps=2)
