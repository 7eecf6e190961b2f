"""Drawing pictures from any prior, without randomness after the first noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..cameras import orbit
from ..files import InputError
from ..priors.base import Condition, NoiseSchedule, Prior, Viewpoints
from ..priors.checkpoints import Precision

#: Called after each step with the number done, the number of all, and a function that gives the pictures so far, (V, H, W, 3);
#: it may raise to interrupt.
StepProgress = Callable[[int, int, Callable[[], Tensor | None]], None]

Spacing = Literal["leading", "trailing"]


def step_times(schedule: NoiseSchedule, steps: int, spacing: Spacing | None = None, shift: float = 1.0) -> Tensor:
    """The times of a sampler's steps, from noisy to clean, ``(steps + 1,)`` in [0, 1]; the last is 0.

    Args:
        spacing: of the discrete steps. "leading" is Stable Diffusion's and begins one spacing below pure noise, "trailing"
            begins with it; by default leading for models that predict the noise and trailing for v. Flow models have one: from
            1 to 0.
        shift: of flow models, s t / (1 + (s - 1) t): more steps near the noise, for large pictures.

    Raises:
        InputError: for fewer steps than 1 or more than the schedule has.
    """
    if not 1 <= steps <= schedule.steps:
        raise InputError(f"steps {steps}: choose 1 to {schedule.steps}")
    if schedule.kind == "flow":
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return (shift * times / (1 + (shift - 1) * times)).float()
    if (spacing or ("leading" if schedule.kind == "epsilon" else "trailing")) == "leading":
        # Published with an offset of one, so that the last step does not begin at the schedule's first.
        discrete = (torch.arange(steps) * (schedule.steps // steps)).flip(0) + min(1, schedule.steps - 1)
    else:
        discrete = (schedule.steps * (1 - torch.arange(steps, dtype=torch.float64) / steps)).round() - 1
    return torch.cat([discrete.double() / schedule.steps, torch.zeros(1, dtype=torch.float64)]).float()


@torch.no_grad()
def sample(
    prior: Prior,
    condition: Condition,
    views: Viewpoints | None = None,  # (B, V)
    *,
    steps: int = 30,
    guidance: float | None = None,
    seed: int = 0,
    spacing: Spacing | None = None,
    shift: float = 1.0,
    noise: Tensor | None = None,  # (B, F, c, h, w)
    progress: StepProgress | None = None,
) -> Tensor:  # (B, V, H, W, 3)
    """Pictures by deterministic DDIM (Song et al., arXiv 2010.02502, eta = 0), or Euler steps for flow models.

    The first noise is drawn on the CPU: the same seed begins alike on every device.

    Args:
        condition: of B samples, or of one.
        views: where the pictures are seen from, for priors that know cameras; their order is the pictures' order.
        guidance: classifier-free; the prior's own where None, 1 leaves the unconditional prediction out.
        spacing, shift: see :func:`step_times`.
        noise: in place of the one drawn from ``seed``.

    Raises:
        InputError: for a number of steps the schedule has not, or what :meth:`Prior.predict` refuses.
    """
    guidance = prior.guidance if guidance is None else guidance
    rows = max(len(v) for part in (condition.positive, condition.negative or {}) for v in part.values())
    count = rows if views is None else len(views)
    frames, *cell = prior.latent_shape()
    if views is not None:
        views = views.map(lambda v: v.to(prior.device))
        frames = views.azimuth.shape[1] if frames == prior.pictures else frames
    times = step_times(prior.schedule, steps, spacing, shift)
    generator = torch.Generator().manual_seed(seed)
    if noise is None:
        noise = torch.stack([torch.randn(frames, *cell, generator=generator) for _ in range(count)])
    latents = noise.to(prior.device)
    for step in range(steps):
        now, then = (times[i].expand(count).to(prior.device) for i in (step, step + 1))
        prediction = prior.predict(latents, now, condition, views, unconditional=guidance != 1).guided(guidance)
        clean = prior.schedule.clean(prediction, latents, now)
        if prior.schedule.kind == "flow":
            latents = latents + float(times[step + 1] - times[step]) * prediction
        else:
            latents = prior.schedule.add_noise(clean, prediction, then)
        if progress is not None:
            progress(step + 1, steps, lambda clean=clean: prior.decode(clean[:1])[0])
    return prior.decode(latents)


def text_to_views(
    source: str | Path | Prior,
    text: str,
    *,
    negative: str = "",
    azimuths: Sequence[float] = (0.0, 90.0, 180.0, 270.0),
    elevation: float = 0.0,
    seed: int = 0,
    steps: int = 50,
    guidance: float = 7.5,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    progress: StepProgress | None = None,
) -> Tensor:  # (V, 256, 256, 3)
    """Views of an object from a text, by MVDream: at ``azimuths`` (degrees, 0 = front) and one ``elevation``.

    Args:
        source: a checkpoint as :func:`anchor4d.core.priors.load.load_prior` takes it, or the loaded prior.

    Raises:
        InputError: for another kind of prior, or a checkpoint that is not here.
    """
    prior = _prior(source, {"text", "cameras"}, "MVDream", device, precision)
    condition = prior.condition(text=text, negative=negative)
    views = Viewpoints.of(orbit(azimuths, elevation)[None])
    return sample(prior, condition, views, steps=steps, guidance=guidance, seed=seed, progress=progress)[0]


def image_to_views(
    source: str | Path | Prior,
    image: Tensor,  # (H, W, 3)
    *,
    text: str = "",
    negative: str = "",
    azimuths: Sequence[float] = (0.0, 90.0, 180.0, 270.0),
    elevation: float = 0.0,
    seed: int = 0,
    steps: int = 30,
    guidance: float = 5.0,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    progress: StepProgress | None = None,
) -> Tensor:  # (V, 256, 256, 3)
    """Views of an object from one picture of it on white, by ImageDream; as :func:`text_to_views`. The picture is azimuth 0.

    Raises:
        InputError: for another kind of prior, or a checkpoint that is not here.
    """
    prior = _prior(source, {"image", "text", "cameras"}, "ImageDream", device, precision)
    condition = prior.condition(image=image[None], text=text, negative=negative)
    views = Viewpoints.of(orbit(azimuths, elevation)[None])
    return sample(prior, condition, views, steps=steps, guidance=guidance, seed=seed, progress=progress)[0]


def _prior(
    source: str | Path | Prior, conditions: set[str], kind: str, device: str | torch.device, precision: Precision
) -> Prior:
    from ..priors.load import load_prior

    prior = source if isinstance(source, Prior) else load_prior(source, device=device, precision=precision)
    if prior.conditions != conditions:
        raise InputError(f"prior {prior.name}: knows {', '.join(sorted(prior.conditions))}, but {kind} is needed here")
    return prior
