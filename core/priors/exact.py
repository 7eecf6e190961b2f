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
        true = self._true(latents, views, taus)
        score = sigma * (latents - alpha * true) / (alpha.square() * self.spread**2 + sigma.square())
        return inputs["known"].reshape(-1, 1, 1, 1, 1) * score

    def _true(self, latents: Tensor, views: Viewpoints, taus: Tensor) -> Tensor:
        """The truth's latents."""
        return self.encode(self.truth(views, taus).to(latents))


class ExactClip(ExactPrior):
    """:class:`ExactPrior` in the place of a text-to-video model: of whole clips, given a text (which it does not read).

    Args:
        truth, resolution, spread: as there, the truth of V = ``pictures`` times evenly over the clip.
        pictures: frames of a clip.
        blind: judge each picture as if the object were where the picture shows it: a shift in the picture is no error. It is
            that of the strongest correlation, to a fraction of a pixel.
    """

    conditions = frozenset({"cameras", "text"})

    def __init__(
        self,
        truth: Callable[[Viewpoints, Tensor], Tensor],
        resolution: int = 64,
        spread: float = 0.0,
        *,
        pictures: int = 16,
        blind: bool = False,
    ) -> None:
        super().__init__(truth, resolution, spread)
        self.pictures, self.blind = pictures, blind

    def condition(
        self,
        image: Tensor | None = None,
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        fps: float | None = None,
    ) -> Condition:
        """The times of a whole clip."""
        return self.at(torch.linspace(0, 1, self.pictures)[None])

    def _true(self, latents: Tensor, views: Viewpoints, taus: Tensor) -> Tensor:
        true = super()._true(latents, views, taus)
        return shifted(true, *best_shift(true, latents)) if self.blind else true


def best_shift(pictures: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:  # (..., c, h, w), (..., c, h, w) -> (...), (...)
    """By how many pixels, down and right, pictures moved around their edges agree best with others, which may be noisy."""
    height, width = pictures.shape[-2:]
    spectra = [torch.fft.rfft2(x - x.mean((-1, -2), keepdim=True)) for x in (others, pictures)]
    score = torch.fft.irfft2((spectra[0] * spectra[1].conj()).sum(-3), s=(height, width))
    top = score.flatten(-2).argmax(-1)
    rows, columns = top // width, top % width

    def between(down: Tensor, right: Tensor) -> Tensor:
        """Where the parabola through the strongest and its two neighbours peaks."""
        before, at, after = (
            score.flatten(-2).gather(-1, ((rows + k * down) % height * width + (columns + k * right) % width)[..., None])[
                ..., 0
            ]
            for k in (-1, 0, 1)
        )
        return 0.5 * (before - after) / (before - 2 * at + after).clamp_max(-1e-12)

    one, zero = torch.ones_like(top), torch.zeros_like(top)
    down = (rows + height // 2) % height - height // 2 + between(one, zero)
    right = (columns + width // 2) % width - width // 2 + between(zero, one)
    return down, right


def shifted(pictures: Tensor, down: Tensor, right: Tensor) -> Tensor:  # (..., c, h, w), (...), (...)
    """Pictures moved by fractions of pixels around their edges."""
    height, width = pictures.shape[-2:]
    rows, columns = torch.fft.fftfreq(height).to(pictures), torch.fft.rfftfreq(width).to(pictures)
    turns = down[..., None, None] * rows[:, None] + right[..., None, None] * columns
    turned = torch.fft.rfft2(pictures) * torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)[..., None, :, :]
    return torch.fft.irfft2(turned, s=(height, width))
