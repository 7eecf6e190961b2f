"""A prior whose score is known: for tests, and for telling a fit's faults from a model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from .base import Condition, NoiseSchedule, Prior, Viewpoints


class ExactPrior(Prior):
    """The score of a Gaussian around the true render of a known, perhaps moving object.

    Pictures are their own latents, ``2 x - 1``. With the truth x* and a standard deviation s the noise of z_t is
    ``sigma (z_t - alpha x*) / (alpha^2 s^2 + sigma^2)``. The unconditional distribution is flat: its score is 0.

    Args:
        truth: true pictures ``(B, V, H, W, 3)`` of viewpoints ``(B, V)`` at clip times ``(B, V)``.
        resolution: side of the pictures, pixels.
        spread: s, in units of the latents.
    """

    conditions = frozenset({"cameras", "image"})
    guidance = 1.0

    def __init__(self, truth: Callable[[Viewpoints, Tensor], Tensor], resolution: int = 64, spread: float = 0.0) -> None:
        self.name = "exact"
        self.truth, self.spread = truth, spread
        self.resolution = (resolution, resolution)
        self.schedule = NoiseSchedule.scaled_linear()
        self.modules = {"none": nn.Linear(1, 1).requires_grad_(False)}

    def latent_shape(self) -> tuple[int, int, int, int]:
        return self.pictures, 3, *self.resolution

    def encode(self, images: Tensor) -> Tensor:
        return rearrange(images, "b v h w c -> b v c h w").float() * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return (rearrange(latents, "b v c h w -> b v h w c") / 2 + 0.5).clamp(0, 1)

    def condition(
        self,
        image: Tensor | None = None,
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        fps: float | None = None,
    ) -> Condition:
        """Of a clip's T pictures: their times, which is all that the truth needs. Without pictures: time 0."""
        count = 1 if image is None else len(image)
        return self.at(torch.linspace(0, 1, count)[:, None] if count > 1 else torch.zeros(1, 1))

    def at(self, taus: Tensor) -> Condition:
        """The condition of clip times ``(B, V)``."""
        return Condition({"tau": taus, "known": torch.ones(1)}, {"tau": taus, "known": torch.zeros(1)})

    def _denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor], views: Viewpoints | None) -> Tensor:
        assert views is not None
        alpha, sigma = (c.reshape(-1, 1, 1, 1, 1) for c in self.schedule.coefficients(time / self.schedule.steps))
        taus = inputs["tau"].expand(len(latents), latents.shape[1])
        true = self.encode(self.truth(views, taus).to(latents))
        score = sigma * (latents - alpha * true) / (alpha.square() * self.spread**2 + sigma.square())
        return inputs["known"].reshape(-1, 1, 1, 1, 1) * score
