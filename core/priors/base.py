"""What a diffusion prior is: one question, answered alike by every model.

Given noisy latents, a diffusion time, conditions and viewpoints: what noise, with the condition and without it? Everything that
uses a prior (score distillation, distance search, sampling) goes through :class:`Prior`.

A *sample* is what the model sees at once: one picture (Zero123, Stable Diffusion), a set of views (MVDream) or a clip. Pictures
are ``(B, V, H, W, 3)`` and latents ``(B, F, c, h, w)``: V pictures a sample, F of them in latent space (F < V where a video VAE
shortens time).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from ..cameras import Cameras, spherical
from ..files import InputError
from ..identity import canonical
from ..registry import Registry
from ..transfer import Flag, sent
from .graphs import Graphs

if TYPE_CHECKING:
    from .checkpoints import Checkpoint, Precision

#: Answers of the card that may be outstanding.
UNREAD = 8


@dataclass(frozen=True)
class NoiseSchedule:
    """How a model mixes a clean latent x with noise n, ``z_t = alpha_t x + sigma_t n``, and what it predicts of them.

    A diffusion time ``t`` is a fraction of the schedule in [0, 1]: 0 is clean, 1 is noise.

    Args:
        kind: "epsilon" predicts n; "v" predicts ``alpha n - sigma x``; "flow" (rectified flow) predicts ``n - x`` and has
            ``alpha = 1 - t, sigma = t``.
        alphas_cumprod: abar of each discrete step, ``(S,)``, alpha = sqrt(abar); None for "flow".
        steps: number S of discrete steps, also what a flow model's time is counted in.
    """

    kind: Literal["epsilon", "v", "flow"]
    alphas_cumprod: Tensor | None = None  # (S,)
    steps: int = 1000

    @classmethod
    def scaled_linear(
        cls, kind: Literal["epsilon", "v"] = "epsilon", start: float = 0.00085, end: float = 0.012
    ) -> NoiseSchedule:
        """Stable Diffusion's schedule: 1000 steps, the square roots of the betas evenly spaced."""
        betas = torch.linspace(start**0.5, end**0.5, 1000, dtype=torch.float64) ** 2
        return cls(kind, torch.cumprod(1 - betas, 0).float())

    @classmethod
    def of(cls, scheduler: Any) -> NoiseSchedule:
        """The schedule of a diffusers scheduler: by its ``alphas_cumprod`` and ``prediction_type``, or flow matching.

        Raises:
            InputError: for a prediction type that is neither epsilon, v nor flow.
        """
        config = scheduler.config
        steps = int(config.num_train_timesteps)
        kind = config.get("prediction_type", "epsilon")
        if "flow" in type(scheduler).__name__.lower() or kind == "flow_prediction":
            return cls("flow", None, steps)
        kinds: dict[str, Literal["epsilon", "v"]] = {"epsilon": "epsilon", "v_prediction": "v"}
        if kind not in kinds:
            raise InputError(f"scheduler: prediction type {kind!r} is not supported, expected epsilon, v_prediction or flow")
        return cls(kinds[kind], scheduler.alphas_cumprod.detach().clone().float(), steps)

    def index(self, t: Tensor) -> Tensor:
        """Discrete step of each time, int64: ``round(t S)`` kept within the schedule."""
        return (t * self.steps).round().long().clamp(0, self.steps - 1)

    def model_time(self, t: Tensor) -> Tensor:
        """The time as the model takes it: the discrete step, or for flow models ``t S``, float32."""
        return t.float() * self.steps if self.alphas_cumprod is None else self.index(t)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times ``t`` of any shape, float32."""
        if self.alphas_cumprod is None:
            return 1 - t.float(), t.float()
        if t.device not in self._placed:
            self._placed[t.device] = self.alphas_cumprod.to(t.device)
        abar = self._placed[t.device][self.index(t)]
        return abar.sqrt(), (1 - abar).sqrt()

    @cached_property
    def _placed(self) -> dict[torch.device, Tensor]:
        """``alphas_cumprod`` by device."""
        return {}

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:  # (B, ...), (B, ...), (B,) -> (B, ...)
        """``alpha x + sigma n``."""
        alpha, sigma = (_spread(c, latents) for c in self.coefficients(t))
        return alpha * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor) -> Tensor:
        """What a perfect prediction would be, as :meth:`Prior.predict` returns it: n, or ``n - x`` for flow models."""
        return noise - latents if self.kind == "flow" else noise

    def as_prediction(self, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The model's output as noise (epsilon and v models) or velocity (flow models)."""
        if self.kind != "v":
            return output
        alpha, sigma = (_spread(c, noisy) for c in self.coefficients(t))
        return alpha * output + sigma * noisy

    def clean(self, prediction: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The clean latent that a prediction of :meth:`Prior.predict` implies."""
        alpha, sigma = (_spread(c, noisy) for c in self.coefficients(t))
        return noisy - sigma * prediction if self.kind == "flow" else (noisy - sigma * prediction) / alpha


@dataclass(frozen=True)
class Viewpoints:
    """Where the pictures of a batch of samples are seen from, in our world (degrees, elevation positive = from above).

    Args:
        azimuth, elevation: ``(B, V)`` degrees.
        distance: ``(B, V)`` from the origin, in units of the object's longest side.
        reference: of the condition pictures, ``(B, 1)``; None where the model is conditioned on no picture.
    """

    azimuth: Tensor
    elevation: Tensor
    distance: Tensor
    reference: Viewpoints | None = None

    @classmethod
    def of(cls, cameras: Cameras, reference: Cameras | None = None) -> Viewpoints:
        """Of cameras ``(B, V)``, or ``(B,)`` for one picture a sample, aimed at the origin; ``reference``: ``(B,)`` or (1,)."""

        def parts(c: Cameras) -> list[Tensor]:
            return [x if x.ndim > 1 else x[:, None] for x in spherical(c)]

        azimuth, elevation, distance = parts(cameras)
        seen = None
        if reference is not None:
            a, e, d = (x.expand(len(azimuth), 1) for x in parts(reference))
            seen = cls(a, e, d)
        return cls(azimuth, elevation, distance, seen)

    def __len__(self) -> int:
        return len(self.azimuth)

    def map(self, function: Any) -> Viewpoints:
        """A function applied to every tensor."""
        return Viewpoints(
            function(self.azimuth),
            function(self.elevation),
            function(self.distance),
            None if self.reference is None else self.reference.map(function),
        )

    @staticmethod
    def cat(views: Sequence[Viewpoints]) -> Viewpoints:
        """Several batches as one."""
        seen = [v.reference for v in views if v.reference is not None]
        azimuth, elevation, distance = (torch.cat([getattr(v, n) for v in views]) for n in ("azimuth", "elevation", "distance"))
        return Viewpoints(azimuth, elevation, distance, Viewpoints.cat(seen) if len(seen) == len(views) else None)


@dataclass(frozen=True)
class Condition:
    """What a prior made of pictures, texts and numbers, once; used for as many predictions as wanted.

    Args:
        positive: the model's own inputs with the condition, each ``(B, ...)``, or ``(1, ...)`` for any batch.
        negative: the same without it, or with the negative prompt; None where no unconditional prediction is wanted.
    """

    positive: Mapping[str, Tensor]
    negative: Mapping[str, Tensor] | None = None

    def map(self, function: Any) -> Condition:
        """A function applied to every tensor."""
        parts = [None if part is None else {k: function(v) for k, v in part.items()} for part in (self.positive, self.negative)]
        assert parts[0] is not None
        return Condition(parts[0], parts[1])

    def __getitem__(self, index: Any) -> Condition:
        """Rows of the batch; what is there once for any batch stays."""
        return self.map(lambda v: v[index] if len(v) > 1 else v)

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Several batches as one."""

        def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
            rows = [{k: v.expand(n, *v.shape[1:]) for k, v in part.items()} for part, n in zip(parts, counts)]
            return {k: torch.cat([row[k] for row in rows]) for k in rows[0]}

        counts = [max(len(v) for v in c.positive.values()) for c in conditions]
        negatives = [c.negative for c in conditions if c.negative is not None]
        positive = joined([c.positive for c in conditions])
        return Condition(positive, joined(negatives) if len(negatives) == len(conditions) else None)


@dataclass(frozen=True)
class Prediction:
    """Predicted noise (velocity for flow models), ``(B, F, c, h, w)`` float32, with the condition and without it."""

    conditional: Tensor
    unconditional: Tensor | None

    def guided(self, scale: float) -> Tensor:
        """Classifier-free guidance: ``u + scale (c - u)``."""
        if self.unconditional is None:
            return self.conditional
        return self.unconditional + scale * (self.conditional - self.unconditional)


#: Kinds of priors by name, each a class that knows its own checkpoints.
PRIORS: Registry[type[Prior]] = Registry("prior kind", __package__)


class Prior(ABC):
    """A diffusion model as this project uses it. Subclasses say what conditions it and run its network.

    One that is loaded from checkpoints is registered, ``@PRIORS.register("name")``, and says which are its own.

    Attributes:
        name: for users, and kept in checkpoints' fingerprints.
        identity: of the weights, where several have one name, in fingerprints.
        conditions: what it can be given: a subset of {"image", "text", "cameras", "fps"}.
        resolution: picture (height, width) in pixels.
        pictures: pictures in one sample, V.
        background: RGB behind its training objects.
        guidance: usual guidance scale for distillation.
        schedule: its noise schedule.
        modules: its frozen networks, by name ("unet" or "transformer", "vae", ...).
        small_encoder: optional distilled encoder (TAESD's layout) that stands in for the VAE's when gradients are taken.
        precedence: of kinds whose checkpoints look alike, the one with the highest takes them.
        one_pass: predict with and without the condition in one batch (faster) or one after the other (less memory).
        place: where a host that moves priors has it compute; None = where the host does.
    """

    conditions: ClassVar[frozenset[str]] = frozenset()
    precedence: ClassVar[int] = 0

    name: str
    identity: str = ""
    resolution: tuple[int, int]
    pictures: int = 1
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    guidance: float = 5.0
    schedule: NoiseSchedule
    modules: dict[str, nn.Module]
    small_encoder: nn.Module | None = None
    one_pass: bool = True
    place: torch.device | None = None

    @classmethod
    def matches(cls, checkpoint: Checkpoint) -> bool:
        """Whether a folder is a checkpoint of this kind."""
        return False

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str | torch.device, precision: Precision) -> Prior:
        """The prior of a folder that :meth:`matches`.

        Raises:
            InputError: for files that are not what they should be.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(filter(None, (repr(self.name), self.identity)))})"

    @property
    def device(self) -> torch.device:
        """Where its networks are."""
        return next(next(iter(self.modules.values())).parameters()).device

    def to(self, device: str | torch.device) -> Prior:
        """Moves the networks; returns itself."""
        for module in (*self.modules.values(), *([self.small_encoder] if self.small_encoder is not None else [])):
            module.to(device)
        return self.arrange()

    def arrange(self) -> Prior:
        """Lays the networks out in memory as their device prefers, see :mod:`.layout`; returns itself."""
        for module in self.modules.values():
            if not self.hosted and any(isinstance(part, nn.GroupNorm) for part in module.modules()):
                from .layout import arrange  # needs diffusers

                arrange(module)
        self.graphs.passes.clear()
        return self

    @property
    def small(self) -> bool:
        """Whether launches, not arithmetic, bound its passes, so that whole steps that ask it are worth capturing."""
        network = next(iter(self.modules.values()), None)
        return network is not None and not self.hosted and self.graphs.small(network)

    @cached_property
    def graphs(self) -> Graphs:
        """Captured passes of its network, shared by its copies with other settings."""
        return Graphs()

    #: Whether a host places and moves the networks as it sees fit, so that their memory is its concern.
    hosted: ClassVar[bool] = False

    #: Whether each picture's latent depends on that picture alone, so that pictures may be encoded a few at a time.
    encodes_apart: ClassVar[bool] = True

    def encode(self, images: Tensor) -> Tensor:  # (B, V, H, W, 3) in [0, 1] -> (B, F, c, h, w)
        """Scaled latents of pictures at the prior's resolution, float32, with gradient where the pictures have one.

        Here: an AutoencoderKL's posterior mode (or the small encoder's latent) of each picture times its scaling factor.
        """
        encoder: Any = self.small_encoder or self.modules["vae"]
        pixels = rearrange(images, "b v h w c -> (b v) c h w").to(self.device, dtype_of(encoder)) * 2 - 1
        if self.small_encoder is not None:
            latents = encoder.encode(pixels).latents * encoder.config.scaling_factor
        else:
            latents = encoder.encode(pixels).latent_dist.mode() * encoder.config.scaling_factor
        return rearrange(latents.float(), "(b v) c h w -> b v c h w", v=images.shape[1])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:  # (B, F, c, h, w) -> (B, V, H, W, 3)
        """Pictures of scaled latents, in [0, 1]; no gradient."""
        vae: Any = self.modules["vae"]
        scaled = rearrange(latents, "b v c h w -> (b v) c h w").to(self.device, dtype_of(vae)) / vae.config.scaling_factor
        pixels = vae.decode(scaled).sample.float().clamp(-1, 1) / 2 + 0.5
        return rearrange(pixels, "(b v) c h w -> b v h w c", v=latents.shape[1])

    @abstractmethod
    def condition(
        self,
        image: Tensor | None = None,  # (B, H, W, 3), any size
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        fps: float | None = None,
    ) -> Condition:
        """What the model makes of its conditions; to be kept and used again. No gradient.

        Raises:
            InputError: where one that the model needs is missing, or it knows nothing of one that is given.
        """

    @abstractmethod
    def _denoise(
        self,
        latents: Tensor,  # (B, F, c, h, w)
        time: Tensor,  # (B,)
        inputs: dict[str, Tensor],  # each (B, ...)
        views: Viewpoints | None,  # (B, V)
    ) -> Tensor:  # (B, F, c, h, w)
        """The network's raw output."""

    def latent_shape(self) -> tuple[int, int, int, int]:
        """(F, c, h, w) of one sample, without running the encoder."""
        height, width = self.resolution
        factor, channels = self._latent_layout()
        return self._latent_frames(), channels, height // factor, width // factor

    def _latent_layout(self) -> tuple[int, int]:
        """Pixels a latent cell, and channels; of an AutoencoderKL."""
        config: Any = self.modules["vae"].config
        return 2 ** (len(config.block_out_channels) - 1), int(config.latent_channels)

    def _latent_frames(self) -> int:
        return self.pictures

    @torch.no_grad()
    def predict(
        self,
        latents: Tensor,  # (B, F, c, h, w) noisy
        t: Tensor,  # (B,) in [0, 1]
        condition: Condition,
        views: Viewpoints | None = None,
        *,
        unconditional: bool = True,
    ) -> Prediction:
        """Predicted noise (velocity for flow models) with the condition and, on request, without it.

        Raises:
            InputError: for latents that are not finite, or missing viewpoints.
        """
        self.check(latents, views)
        count, time = len(latents), sent(self.schedule.model_time(t), latents.device)

        def rows(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {k: v.expand(count, *v.shape[1:]) for k, v in inputs.items()}

        positive = rows(condition.positive)
        negative = rows(condition.negative) if unconditional and condition.negative is not None else None
        if negative is None:
            outputs = [self._denoise(latents, time, positive, views)]
        elif self.one_pass:
            both = {k: torch.cat([positive[k], negative[k]]) for k in positive}
            twice = None if views is None else views.map(lambda v: torch.cat([v, v]))
            outputs = list(self._denoise(torch.cat([latents, latents]), torch.cat([time, time]), both, twice).chunk(2))
        else:
            outputs = [self._denoise(latents, time, inputs, views) for inputs in (positive, negative)]
        predictions = [self.schedule.as_prediction(output.float(), latents, t) for output in outputs]
        return Prediction(predictions[0], predictions[1] if len(predictions) > 1 else None)

    def check(self, latents: Tensor, views: Viewpoints | None) -> None:
        """Refuse what :meth:`predict` cannot take.

        Raises:
            InputError: for latents that are not finite, or missing viewpoints.
        """
        if "cameras" in self.conditions and views is None:
            raise InputError(f"prior {self.name}: needs viewpoints, give the cameras of the pictures")
        self.require_finite(
            latents, "the latents hold NaN or infinite numbers; lower the learning rate, or load the prior with precision fp32"
        )

    def require_finite(self, tensor: Tensor, what: str) -> None:
        """Refuse a tensor that is not finite. On a card this is said as soon as it is known, not later than a step or so.

        Raises:
            InputError: with the prior's name.
        """
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return
        self.finite.append((Flag(torch.isfinite(tensor).all()), what))
        while self.finite and (self.finite[0][0].known or len(self.finite) > UNREAD):
            flag, known = self.finite.pop(0)
            if not flag:
                self.finite.clear()
                raise InputError(f"prior {self.name}: {known}")

    @cached_property
    def room(self) -> dict[Any, int]:
        """Samples that a card's free memory holds, by what is done with them, shared by its copies with other settings."""
        return {}

    @cached_property
    def finite(self) -> list[tuple[Flag, str]]:
        """What is asked of the card and not yet read, shared by its copies with other settings."""
        return []

    def with_settings(self, **settings: Any) -> Prior:
        """The same networks with other plain attributes (resolution, guidance, one_pass, ...)."""
        assert None not in (self.graphs, self.room, self.finite)  # made before they are shared
        changed = copy.copy(self)
        for name, value in settings.items():
            setattr(changed, name, value)
        return changed


def dtype_of(module: nn.Module) -> torch.dtype:
    """Of a network's parameters; diffusers' own property looks through all modules each time, which takes milliseconds."""
    return next(module.parameters()).dtype


def _spread(values: Tensor, like: Tensor) -> Tensor:
    return sent(values, like.device).reshape(-1, *[1] * (like.ndim - 1))


class Role(Prior):
    """Stands for a model in a method's settings, which are plain data, until the run puts the model there.

    Args:
        name: what the model is to the method: "prior", "views", "video", "images".
    """

    def __init__(self, name: str) -> None:
        self.name, self.modules = name, {}

    def condition(self, *given: Any, **more: Any) -> Condition:
        raise InputError(f"prior {self.name}: only its place is here; put a model there")

    def _denoise(self, *given: Any, **more: Any) -> Tensor:
        raise InputError(f"prior {self.name}: only its place is here; put a model there")


@canonical.register
def _(value: Prior) -> Any:
    return {"prior": value.name, "identity": value.identity}


@canonical.register
def _(value: Role) -> Any:
    return {"role": value.name}
