"""Six views of an object from one picture, by Zero123++."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from torch import Tensor

from ..cameras import Cameras
from ..files import InputError
from ..io.video import Clip, prepare
from ..priors.base import Condition
from ..priors.checkpoints import Precision
from ..priors.load import load_prior
from ..priors.zero123plus import Zero123Plus
from .sampling import StepProgress

#: Share of the input picture's side that the object takes.
FILL = 0.8
#: Side of the cut-out object on its way to the model, pixels.
SIDE = 512


def multiview_images(
    source: str | Path | Zero123Plus,
    image: Tensor,  # (H, W, 3 | 4) in [0, 1], alpha straight
    *,
    steps: int = 28,
    guidance: float = 4.0,
    seed: int = 0,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    progress: StepProgress | None = None,
) -> tuple[Tensor, Cameras]:  # (6, 320, 320, 3) in [0, 1], (6,)
    """Six views around an object, on the model's gray, and the cameras that see the object so (input seen from azimuth 0).

    Args:
        source: a Zero123++ folder, its name or Hub id, or one that is loaded.
        image: the object, cut out by its alpha, else off its plain background or by rembg; it is centred here.
        steps: 28 for most objects, 75 for fine detail such as faces.
        guidance: classifier-free guidance scale.

    Raises:
        InputError: for another kind of prior, or a picture without an object.
    """
    prior = source if isinstance(source, Zero123Plus) else load_prior(source, device=device, precision=precision)
    if not isinstance(prior, Zero123Plus):
        raise InputError(f"{source}: {prior.name} cannot draw six views at once, give a Zero123++ (zero123plus-v1.2)")
    if image.dim() != 3 or image.shape[-1] not in (3, 4) or not image.isfinite().all():
        raise InputError(f"image: shape {tuple(image.shape)}, give one picture (height, width, 3 or 4) of finite numbers")
    cut = prepare(Clip(image[None].cpu().float(), source="image"), resolution=SIDE, fill=FILL, upsample=True)
    condition = prior.condition(image=cut.composited(prior.background))
    pictures = sample_views(prior, condition, steps=steps, guidance=guidance, seed=seed, progress=progress)
    return pictures[0].cpu(), prior.cameras(fill=FILL)


@torch.no_grad()
def sample_views(
    prior: Zero123Plus,
    condition: Condition,  # of B input pictures
    *,
    steps: int = 28,
    guidance: float = 4.0,
    seed: int = 0,
    progress: StepProgress | None = None,
) -> Tensor:  # (B, 6, 320, 320, 3)
    """Six views of each input picture: Euler-ancestral sampling with trailing steps, as published.

    Every sample has the same noise throughout, so that pictures of one object in motion get matching views (STAG4D).
    """
    if steps < 1:
        raise InputError(f"steps {steps}: give at least 1")
    # Prior.predict gives noise whatever the network predicts.
    scheduler: Any = EulerAncestralDiscreteScheduler.from_config(
        prior.scheduler.config, prediction_type="epsilon", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    count = len(condition.positive["reference"])
    generators = [torch.Generator().manual_seed(seed) for _ in range(count)]
    noise = torch.stack([torch.randn(prior.latent_shape(), generator=g) for g in generators]).to(prior.device)
    sample = noise * scheduler.init_noise_sigma
    for index, time in enumerate(scheduler.timesteps):
        t = (time / prior.schedule.steps).expand(count)
        noisy = scheduler.scale_model_input(sample, time)
        predicted = prior.predict(noisy, t, condition, unconditional=guidance != 1).guided(guidance)
        step = scheduler.step(predicted, time, sample, generator=generators)
        sample, clean = step.prev_sample, step.pred_original_sample
        if progress is not None:
            progress(index + 1, steps, lambda: prior.decode(clean)[0])  # noqa: B023
    return prior.decode(sample)
