"""Score distillation: a prior's opinion of renders as a gradient on them.

SDS (DreamFusion): ``dL/dz = w(t) (eps_hat - eps)`` with ``eps_hat = u + s (c - u)``, for flow models ``w(t) (v_hat - v)``. CSD
(classifier score distillation; Align Your Gaussians): only ``w(t) s (c - u)``, where u may be a negative prompt's prediction.
The networks are frozen: the gradient reaches the pictures through the encoder alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from ..files import InputError
from ..schedules import Weight, constant, linear
from ..transfer import on, sent
from .base import Condition, Prior, Role, Viewpoints
from .graphs import give_way

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Share of a card's free memory that a batch may take; what a sample takes relative to its encoder's activations; and the most
#: samples in a batch, all questions counted: more are no faster.
SHARE, TRANSIENT, MOST = 0.6, 2.0, 128
MEGABYTE = 2**20


class TimePolicy(Protocol):
    """Diffusion times of a step."""

    def __call__(self, rho: float, count: int, generator: torch.Generator) -> Tensor:
        """Times in [0, 1], ``(count,)``, at progress ``rho``."""
        ...


@dataclass(frozen=True)
class Annealed:
    """The same time for all, falling evenly (DreamGaussian4D: 1 to 0 kept within 0.02 to 0.98; PLA4D: 0.5 to 0.02)."""

    start: float = 0.98
    end: float = 0.02

    def __call__(self, rho: float, count: int, generator: torch.Generator) -> Tensor:
        return torch.full((count,), min(max(self.start + (self.end - self.start) * rho, 0.02), 0.98))


@dataclass(frozen=True)
class UniformWindow:
    """Each sample's own time, uniform between two ramps (threestudio: 0.7 to 0.3 and 0.98 to 0.8; STAG4D)."""

    low: Weight = constant(0.02)  # noqa: RUF009
    high: Weight = linear(0.98, 0.5)  # noqa: RUF009

    def __call__(self, rho: float, count: int, generator: torch.Generator) -> Tensor:
        low, high = self.low(rho), self.high(rho)
        return low + (high - low) * torch.rand(count, generator=generator)


@dataclass(frozen=True)
class Question:
    """What a prior is asked about a batch of samples.

    Args:
        condition: of every sample.
        views: ``(B, V)``, where the prior wants them.
        share: how much the answer counts for each sample, ``(B,)``; 1 where None.
    """

    condition: Condition
    views: Viewpoints | None = None
    share: Tensor | None = None

    def __getitem__(self, rows: slice) -> Question:
        views = None if self.views is None else self.views.map(lambda v: v[rows])
        return Question(self.condition[rows], views, None if self.share is None else self.share[rows])


@dataclass(frozen=True)
class Distillation:
    """How one prior is distilled.

    Args:
        prior: the model, or its role until :meth:`bound` puts one there.
        weight: factor on the gradient, as a function of progress.
        time: diffusion times, as a function of progress.
        form: "sds", or "csd": the classifier term alone.
        guidance: guidance scale s; None = the prior's usual.
        weighting: w(t): "sigma2" is ``sigma_t ** 2`` (1 - abar), "uniform" is 1.
        amplification: omega_ma of Align Your Gaussians over a sample's pictures: the classifier term's deviation from its mean
            over the clip is multiplied by it; 1 = off.
        normalise: scale the latent gradient of each step to unit RMS (before ``weight`` and amplification), so that priors of
            different size and noise can be weighed against each other.
        micro_batch: samples that the network takes at once, 0 = all; on a card at least so many, as its free memory allows.
            Changes memory, not results.
        encode_batch: pictures encoded at once, their activations made again when gradients are taken; 0 = all, kept.
            Changes memory, not results.
    """

    prior: Prior
    weight: Weight = constant(1.0)  # noqa: RUF009
    time: TimePolicy = Annealed()
    form: Literal["sds", "csd"] = "sds"
    guidance: float | None = None
    weighting: Literal["sigma2", "uniform"] = "sigma2"
    amplification: float = 1.0
    normalise: bool = False
    micro_batch: int = 0
    encode_batch: int = 0

    def bound(self, models: Mapping[str, Prior]) -> Distillation | None:
        """With the model of its prior's role, where it has one; None where no model has that role."""
        if not isinstance(self.prior, Role):
            return self
        return replace(self, prior=models[self.prior.name]) if self.prior.name in models else None

    def __call__(
        self,
        images: Tensor,  # (B, V, H, W, 3) in [0, 1], on the prior's background
        condition: Condition,
        rho: float,
        generator: torch.Generator,
        views: Viewpoints | None = None,  # (B, V)
    ) -> Tensor:
        """A scalar whose gradient by the latents of ``images`` is ``weight(rho)`` times the distillation gradient, summed.

        The images may have any size: they are resampled to the prior's resolution. Times and noise are drawn from
        ``generator`` for the whole batch at once, on the CPU, so that neither batching nor the device changes them.

        Raises:
            InputError: for latents or predictions that are not finite.
        """
        return self.joint(images, [Question(condition, views)], rho, generator)

    def joint(
        self, images: Tensor, questions: Sequence[Question], rho: float, generator: torch.Generator
    ) -> Tensor:  # (B, V, H, W, 3) in [0, 1]
        """As a call, with several questions about the same noisy pictures in one batch: their gradients add up by shares.

        Pictures are encoded once, and times and noise are the same for all questions (Align4D's motion and geometry terms).
        """
        return self.judged(images, questions, self.draws(rho, len(images), generator))

    def draws(self, rho: float, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """What a step draws, on the CPU: times "t" (count,), "noise" (count, F, c, h, w), the gradient's factor "strength"."""
        t = self.time(rho, count, generator)
        noise = torch.randn(count, *self.prior.latent_shape(), generator=generator)
        return {"t": t, "noise": noise, "strength": torch.tensor(self.weight(rho))}

    def judged(self, images: Tensor, questions: Sequence[Question], drawn: Mapping[str, Tensor]) -> Tensor:
        """As :meth:`joint`, of what :meth:`draws` gave, wherever that is.

        Where the prior is on another card than the pictures, these go there at its resolution, and their gradients come back:
        nothing else moves, and nobody waits.
        """
        with on(self.prior.device):
            return self._judged(images, questions, drawn)

    def _judged(self, images: Tensor, questions: Sequence[Question], drawn: Mapping[str, Tensor]) -> Tensor:
        prior, count = self.prior, len(images)
        t, noise, strength = (sent(drawn[name], prior.device) for name in ("t", "noise", "strength"))
        gradient, squares, cells = torch.zeros_like(images), 0.0, noise.numel()

        def distil(rows: slice) -> Tensor:
            picture = images[rows].detach().requires_grad_(True)
            with torch.enable_grad():
                latents = self._encode(resampled(picture, prior.resolution))
            pull = self._answer(latents.detach(), noise[rows], t[rows], [q[rows] for q in questions])
            (gradient[rows],) = torch.autograd.grad(latents, picture, pull)
            # What amplification adds is not normalised away again.
            plain = amplified(pull, 1 / self.amplification) if self.amplification > 0 else pull
            return (plain if self.normalise else pull).square().sum()

        size = self._batch(images, len(questions))
        key = ("asked", len(questions), prior.resolution, prior.pictures)
        for square in in_batches(distil, count, size, f"prior {prior.name}", prior.room, key):
            squares = squares + square
        squares = torch.as_tensor(squares)
        ones = torch.ones((), device=squares.device)
        scale = strength.to(squares) * (1 / (squares / cells).sqrt().clamp_min(1e-12) if self.normalise else ones)
        gradient = gradient * scale.to(gradient)
        value = (0.5 * scale * squares).to(images)
        # The value is half the squared latent gradient, as of the usual surrogate; the gradient is the one computed above.
        return _WithGradient.apply(images, gradient, value)  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def condition(self, pictures: Tensor) -> Condition:  # (B, H, W, 3)
        """What the prior makes of pictures, as many at once as it is asked about."""
        with on(self.prior.device):
            size = self._batch(pictures[:, None], 0)
            ask = self.prior.condition
            room, what = self.prior.room, self.prior.name
            parts = list(in_batches(lambda rows: ask(image=pictures[rows]), len(pictures), size, what, room, "condition"))
        return parts[0] if len(parts) == 1 else Condition.cat(parts)

    def _batch(self, images: Tensor, questions: int) -> int:  # (B, V, H, W, 3)
        """Samples that the network takes at once: ``micro_batch``, on a card as many more, twofold, as its free memory holds.

        What a sample takes is measured once: by encoding one with gradient, by far the most of it.
        """
        prior, count = self.prior, len(images)
        rows = min(self.micro_batch or count, count)
        if rows == count or prior.device.type != "cuda" or prior.hosted:
            return rows
        key = (prior.device, prior.resolution, prior.pictures)
        if key not in prior.room:
            picture = torch.zeros(1, prior.pictures, *prior.resolution, 3, device=prior.device).requires_grad_(True)
            before = torch.cuda.memory_allocated(prior.device)
            with torch.enable_grad():
                latents = self._encoded(picture)  # not a captured pass, which holds its memory already
            taken = torch.cuda.memory_allocated(prior.device) - before
            del latents
            free = torch.cuda.mem_get_info(prior.device)[0] + torch.cuda.memory_reserved(prior.device)
            free -= torch.cuda.memory_allocated(prior.device)
            prior.room[key] = int(SHARE * free / max(TRANSIENT * taken, MEGABYTE))
        while 2 * rows <= min(prior.room[key], MOST // max(questions, 1)) and rows < count:
            rows *= 2
        return min(rows, count)

    def _answer(self, latents: Tensor, noise: Tensor, t: Tensor, questions: Sequence[Question]) -> Tensor:
        """The questions' latent gradients, added by their shares."""
        count, rows = len(questions), len(latents)
        views = [q.views.map(lambda v: sent(v, noise.device)) for q in questions if q.views is not None]
        conditions = [q.condition.map(lambda v: v.expand(rows, *v.shape[1:])) for q in questions]
        pulls = self.latent_gradient(
            latents.repeat(count, 1, 1, 1, 1), noise.repeat(count, 1, 1, 1, 1), t.repeat(count),
            questions[0].condition if count == 1 else Condition.cat(conditions),
            Viewpoints.cat(views) if views else None,
        ).unflatten(0, (count, rows))  # fmt: skip
        shares = [1.0 if q.share is None else sent(q.share, noise.device).to(noise).reshape(-1, 1, 1, 1, 1) for q in questions]
        return torch.stack([share * pulls[i] for i, share in enumerate(shares)]).sum(0)

    def latent_gradient(
        self,
        latents: Tensor,  # (B, F, c, h, w) clean
        noise: Tensor,  # (B, F, c, h, w)
        t: Tensor,  # (B,)
        condition: Condition,
        views: Viewpoints | None = None,
    ) -> Tensor:  # (B, F, c, h, w)
        """``w(t) (eps_hat - eps)``, or the CSD form of it."""
        schedule, scale = self.prior.schedule, self.prior.guidance if self.guidance is None else self.guidance
        noisy = schedule.add_noise(latents, noise, t)
        needed = self.form == "csd" or scale != 1 or self.amplification != 1
        predicted = self.prior.predict(noisy, t, condition, views, unconditional=needed)
        if predicted.unconditional is None:
            if self.form == "csd":
                raise InputError(
                    f"prior {self.prior.name}: CSD needs a prediction without the condition, give a negative prompt"
                )
            residual = predicted.conditional - schedule.target(latents, noise)
        else:
            classifier = amplified(predicted.conditional - predicted.unconditional, self.amplification)
            residual = scale * classifier
            if self.form == "sds":
                residual = residual + (predicted.unconditional - schedule.target(latents, noise))
        self.prior.require_finite(residual, "its prediction is not finite; load it with precision fp32")
        if self.weighting == "uniform":
            return residual
        sigma = schedule.coefficients(t)[1]
        return sigma.square().to(residual).reshape(-1, 1, 1, 1, 1) * residual

    def _encode(self, pictures: Tensor) -> Tensor:
        if pictures.device == self.prior.device and pictures.is_cuda:
            module = self.prior.small_encoder or self.prior.modules.get("vae")
            if module is not None and pictures.requires_grad and not self.encode_batch and self.prior.encodes_apart:
                return self.prior.graphs.differentiable(module, self._encoded, pictures)
        return self._encoded(pictures)

    def _encoded(self, pictures: Tensor) -> Tensor:
        prior, size = self.prior, self.encode_batch
        if not size or not prior.encodes_apart or pictures.shape[0] * pictures.shape[1] <= size:
            return _encode_in_one_order(prior, pictures)
        flat = rearrange(pictures, "b v h w c -> (b v) 1 h w c").split(size)
        latents = torch.cat(
            [torch.as_tensor(checkpoint(_encode_in_one_order, prior, part, use_reentrant=False)) for part in flat]
        )
        return rearrange(latents, "(b v) 1 c h w -> b v c h w", b=len(pictures))


def _encode_in_one_order(prior: Prior, pictures: Tensor) -> Tensor:
    """On a card, of the ways to attend the one whose gradients are summed in a fixed order; an encoder has one such layer."""
    if not pictures.is_cuda:
        return prior.encode(pictures)
    with sdpa_kernel(SDPBackend.MATH):
        return prior.encode(pictures)


def in_batches(function: Callable[[slice], T], count: int, size: int, what: str, room: dict[Any, int], key: Any) -> Iterator[T]:
    """A function of each batch of rows; where a card's memory does not hold one, halves of it, and so on to the end.

    Args:
        room: rows that memory held, by ``key``, where it once did not hold more: later calls begin with as many.
    """
    start, size = 0, min(size, room.get(key, size))
    while start < count:
        try:
            result = function(slice(start, start + size))
        except torch.cuda.OutOfMemoryError as error:
            full = error.with_traceback(None)  # which keeps what the batch had made
        else:
            yield result
            start += size
            continue
        if size == 1:
            raise full
        size = room[key] = -(-size // 2)
        give_way()
        log.warning("%s: the card's memory does not hold the batch, going on with %d at once", what, size)


class _WithGradient(torch.autograd.Function):
    """A value with a gradient that was computed beforehand."""

    @staticmethod
    def forward(ctx, images: Tensor, gradient: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.saved_tensors[0] * grads[0], None, None


def amplified(classifier: Tensor, factor: float) -> Tensor:  # (B, F, ...) -> (B, F, ...)
    """Motion amplification: ``<d> + omega_ma (d - <d>)``, <.> the mean over a clip's frames (Align Your Gaussians).

    With factor 1 nothing changes; the mean over frames never does.
    """
    if factor == 1:
        return classifier
    mean = classifier.mean(1, keepdim=True)
    return mean + factor * (classifier - mean)


def resampled(images: Tensor, size: tuple[int, int]) -> Tensor:  # (B, V, H, W, 3) -> (B, V, h, w, 3)
    """Pictures at another (height, width), antialiased, with gradient."""
    if images.shape[2:4] == size:
        return images
    if images.is_cuda:  # the same as two products: their gradients are summed in one order, and faster
        rows, columns = (_resampling(a, b, images.device) for a, b in zip(images.shape[2:4], size, strict=True))
        return torch.einsum("ph,bvhqc->bvpqc", rows, torch.einsum("qw,bvhwc->bvhqc", columns, images))
    flat = rearrange(images, "b v h w c -> (b v) c h w")
    flat = F.interpolate(flat, size=size, mode="bilinear", antialias=True, align_corners=False)
    return rearrange(flat, "(b v) c h w -> b v h w c", b=len(images))


@lru_cache(maxsize=16)
def _resampling(old: int, new: int, device: torch.device) -> Tensor:  # (new, old)
    """The weights of antialiased resampling along one side."""
    eye = torch.eye(old)[None, None]
    weights = F.interpolate(eye, size=(new, old), mode="bilinear", antialias=True, align_corners=False)
    return weights[0, 0].to(device)


def central(images: Tensor, size: tuple[int, int]) -> Tensor:  # (B, V, H, W, 3) -> (B, V, h, w, 3)
    """The largest window in the middle of pictures that has the proportions of (height, width)."""
    height, width = images.shape[2:4]
    scale = min(height / size[0], width / size[1])
    h, w = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - h) // 2, (width - w) // 2
    return images[:, :, top : top + h, left : left + w]


@dataclass(frozen=True)
class Term:
    """One prior's part in :func:`composed`.

    Args:
        distillation: prior and settings; ``normalise`` makes its weight a share.
        condition: of every sample it is shown.
        views: ``(B, V)``, where the prior wants them.
        subset: pictures of each clip that this prior sees, drawn at random and each a sample of its own, its middle where the
            prior's pictures have other proportions; 0 = all as they are.
    """

    distillation: Distillation
    condition: Condition
    views: Viewpoints | None = None
    subset: int = 0


def composed(images: Tensor, terms: Sequence[Term], rho: float, generator: torch.Generator) -> Tensor:
    """The sum of several priors' distillation losses on the same pictures ``(B, V, H, W, 3)`` (Align Your Gaussians).

    Its gradient is ``sum_k weight_k g_k``: the reverse KL divergence to the product of the priors' distributions.
    """
    losses = []
    for term in terms:
        shown, views, condition = images, term.views, term.condition
        if term.subset:
            pick = torch.rand(images.shape[:2], generator=generator).argsort(1)[:, : term.subset]
            rows = torch.arange(len(images))[:, None].expand_as(pick).reshape(-1)
            shown = central(images[rows, pick.reshape(-1)][:, None], term.distillation.prior.resolution)
            condition = condition[rows]
            views = None if views is None else views.map(lambda v: v[rows, pick.reshape(-1) % v.shape[1]][:, None])  # noqa: B023
        losses.append(term.distillation(shown, condition, rho, generator, views))
    return torch.stack([loss.to(images.device) for loss in losses]).sum()
