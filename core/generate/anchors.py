"""Temporally consistent anchors (STAG4D): six views of every frame, drawn so that they show one object in motion.

Every frame is sampled from the same first noise, and in the half of the prediction that knows the picture, the keys and values
of each self-attention are mixed with those that the first frame has there: ``gamma K_0 + (1 - gamma) K_t`` (Eq. 5). The first
frame is sampled again beside the others, in the same batch, so that nothing has to be stored.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..cameras import FrontCamera, orbit
from ..files import InputError
from ..io.background import key_masks, plain_border, remove_specks, steady
from ..priors.base import Prior, Viewpoints
from ..scene.anchors import ELEVATIONS, Anchors
from ..scene.views import reframed
from ..video import DrivingVideo
from .sampling import StepProgress, sample

log = logging.getLogger(__name__)

#: Share of the first frame's features (the paper's gamma).
GAMMA = 0.5
#: Share of the picture's side that the object takes in what Zero123++ is shown.
FILL = 0.8


def sample_anchors(
    prior: Prior,
    video: DrivingVideo,
    front: FrontCamera,
    *,
    distance: float,
    fovy: float,
    gamma: float = GAMMA,
    steps: int = 30,
    guidance: float | None = None,
    seed: int = 0,
    together: int = 1,
    progress: StepProgress | None = None,
) -> Anchors:
    """Six views of every frame of a driving video.

    Args:
        prior: Zero123++, or a prior of one picture that is given cameras (Zero123, the tiny one).
        front: the video's camera.
        distance, fovy: of the lens that the anchors are for: world units, degrees. Zero123++ frames objects in its own way; its
            tiles are brought to the lens's scale.
        gamma: share of the first frame's features; 0 is the plain prior.
        steps: of the sampler; the paper has 75 for Zero123++.
        guidance: classifier-free; the prior's own where None.
        together: frames sampled in a batch, the first, which is always there, aside.

    Raises:
        InputError: for a prior that cannot draw such views, or cannot share features where gamma is above 0.
    """
    if prior.pictures == 6 and hasattr(prior, "cameras"):
        draw = _plus_views
    elif {"image", "cameras"} <= prior.conditions and prior.pictures == 1:
        draw = _single_views
    else:
        raise InputError(f"anchors: prior {prior.name} draws no six views of a picture; choose a Zero123++, a Zero123 or tiny")
    if not 0 <= gamma <= 1:
        raise InputError(f"anchors: gamma {gamma:g}, choose 0 to 1")
    if gamma and not hasattr(prior, "fused"):
        raise InputError(f"anchors: prior {prior.name} cannot share features between frames, set gamma to 0")
    settings = {"gamma": gamma, "steps": steps, "guidance": prior.guidance if guidance is None else guidance, "seed": seed}
    groups = [[0, *range(first, min(first + together, len(video)))] for first in range(1, len(video), together)] or [[0]]
    parts: list[Tensor] = []
    for index, group in enumerate(groups):

        def tell(step: int, count: int, picture: Any, done: int = index) -> None:
            if progress is not None:
                progress(done * count + step, len(groups) * count, picture)

        pictures = draw(prior, video, group, front, distance, fovy, tell, **settings)
        parts.append(pictures.cpu() if index == 0 else pictures[1:].cpu())
    pictures = torch.cat(parts)
    images = cut_out(pictures, prior.background)
    if draw is _single_views:
        return Anchors(images, ELEVATIONS, distance, fovy)
    plus: Any = prior
    own = plus.cameras(fill=FILL)
    # Half the world height that each camera's picture spans at the origin.
    spans = [float(c.height / 2 / c.K[0, 1, 1] * c.positions[0].norm()) for c in (own, orbit(0.0, 0.0, distance, fovy))]
    return Anchors(images, tuple(plus.elevations), distance, fovy).scaled(torch.full((6,), spans[0] / spans[1]))


def cut_out(pictures: Tensor, background: tuple[float, float, float]) -> Tensor:  # (T, A, S, S, 3) -> (T, A, S, S, 4)
    """The object of each tile, off the prior's plain background; masks are steadied in time, view by view."""
    views = []
    for view in pictures.unbind(1):
        shown = (view * 255).round().to(torch.uint8).numpy()
        behind = plain_border(shown)
        colour = torch.tensor(background).expand(len(shown), 3).numpy() if behind is None else behind
        masks = steady(shown, key_masks(shown, colour))
        for mask in masks:
            remove_specks(mask)
        alpha, back = torch.from_numpy(masks)[..., None], torch.from_numpy(colour.copy())[:, None, None]
        straight = ((view - (1 - alpha) * back) / alpha.clamp_min(0.05)).clamp(0, 1)
        views.append(torch.cat([torch.where(alpha > 0.05, straight, view), alpha], -1))
    return torch.stack(views, 1)


def _single_views(
    prior: Any,
    video: DrivingVideo,
    frames: list[int],
    front: FrontCamera,
    distance: float,
    fovy: float,
    progress: StepProgress,
    *,
    gamma: float,
    steps: int,
    guidance: float,
    seed: int,
) -> Tensor:  # (F, 6, S, S, 3)
    """By a prior of one picture: each frame's six poses are samples of one batch."""
    count, views = len(frames), len(ELEVATIONS)
    seen = orbit(0.0, front.elevation, distance, fovy, prior.resolution[1], prior.resolution[0])
    condition = prior.condition(image=_shown(video, frames, front, seen, prior.background))
    condition = condition[torch.arange(count).repeat_interleave(views).to(prior.device)]
    if gamma:
        condition = prior.fused(condition, gamma, every=views)
    azimuth = torch.tensor([(a + 0.5) * 360 / views for a in range(views)]).repeat(count)[:, None]
    elevation = torch.tensor(ELEVATIONS).repeat(count)[:, None]
    like = torch.ones_like(azimuth)
    viewpoints = Viewpoints(azimuth, elevation, distance * like, Viewpoints(0 * like, front.elevation * like, distance * like))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(views, *prior.latent_shape(), generator=generator).repeat(count, 1, 1, 1, 1)
    pictures = sample(prior, condition, viewpoints, steps=steps, guidance=guidance, noise=noise, progress=progress)
    return rearrange(pictures, "(f a) 1 h w c -> f a h w c", f=count)


def _plus_views(
    prior: Any,
    video: DrivingVideo,
    frames: list[int],
    front: FrontCamera,
    distance: float,
    fovy: float,
    progress: StepProgress,
    *,
    gamma: float,
    steps: int,
    guidance: float,
    seed: int,
) -> Tensor:  # (F, 6, S, S, 3)
    """By Zero123++: six views are one sample."""
    from .multiview import sample_views

    own = prior.cameras(fill=FILL)
    # v1.2 finds its own scale; v1.1 keeps the picture's, that of its own cameras.
    near = float(own.positions[0].norm()) if prior.version == "1.1" else 0.5 / FILL * 2 * float(own.K[0, 1, 1] / own.height)
    lens = 2 * float(torch.rad2deg(torch.atan(own.height / 2 / own.K[0, 1, 1])))
    seen = orbit(0.0, front.elevation, near, lens, own.width, own.height)
    condition = prior.condition(image=_shown(video, frames, front, seen, prior.background))
    return sample_views(
        prior, prior.fused(condition, gamma), steps=steps, guidance=guidance, seed=seed, progress=progress
    )  # fmt: skip


def _shown(video: DrivingVideo, frames: list[int], front: FrontCamera, seen: Any, background: Any) -> Tensor:  # (F, S, S, 3)
    return reframed(video, [front], seen, torch.tensor(background))[frames]
