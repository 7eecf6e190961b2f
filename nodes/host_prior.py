"""Any model of the host as a prior: its own loading, offloading, LoRAs and wrappers make the prediction.

A prediction is a run of the host's guider with a sampler of one step, so everything that acts on sampling in a graph acts here.
The gradient of pictures goes through a copy of the host's VAE whose weights autograd may keep.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Literal

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import torch
from einops import rearrange
from torch import Tensor, nn

from ..core.cameras import zero123_vector
from ..core.files import InputError
from ..core.identity import fingerprint
from ..core.priors.base import Condition, NoiseSchedule, Prediction, Prior, Viewpoints
from ..core.priors.pictures import squared
from ..core.runs.session import resolve_device

#: Where Load Prior may put a model.
PLACES = ("auto", "cpu", "gpu:0", "gpu:1", "gpu:2", "gpu:3")
#: The host's CONDITIONING: pairs of a text's tokens and everything else that conditions the model.
Conditioning = Sequence[tuple[Tensor, dict[str, Any]]]


class HostPrior(Prior):
    """A MODEL and VAE of the host with the CONDITIONING it samples with: text to image, or anything else of pictures.

    Args:
        model: the host's MODEL (a ModelPatcher), LoRAs and all.
        vae: the host's VAE.
        positive, negative: the host's CONDITIONING; without a negative there is no unconditional prediction.
        size: side of the pictures, pixels; 0 = what the model was trained on.
        pictures: pictures in a sample; 0 = the model's usual.

    Raises:
        InputError: for a model that has no noise schedule in common with diffusion or rectified flow, or a size or number of
            pictures that the VAE cannot have.
    """

    hosted: ClassVar[bool] = True

    #: Latents with an axis of time, ``(B, c, F, h, w)`` in the host.
    clips: ClassVar[bool] = False
    usual_guidance: ClassVar[float] = 7.5

    def __init__(
        self,
        model: Any,
        vae: Any,
        positive: Conditioning | None = None,
        negative: Conditioning | None = None,
        size: int = 0,
        pictures: int = 0,
    ) -> None:
        self.model, self.vae, self.positive, self.negative = model, vae, positive, negative
        self.name = _name(model)
        self.modules = {"model": model.model, "vae": vae.first_stage_model}
        self.schedule = schedule_of(model.get_model_object("model_sampling"), self.name)
        self.guidance = self.usual_guidance
        self._vae_copy: dict[str, Any] = {}  # shared by the copies that with_settings makes
        self.latent_format = copy.copy(model.model.latent_format)
        for name, value in vars(self.latent_format).items():
            if isinstance(value, Tensor):  # an inference tensor, which autograd could not keep
                setattr(self.latent_format, name, value.clone())

        cell, side = int(vae.spacial_compression_encode()), size or self.usual_size()
        if side % cell:
            near = side // cell * cell or cell
            raise InputError(f"size {side}: this VAE's pictures are multiples of {cell} pixels, use {near}")
        self.resolution, self.cell = (side, side), cell
        count = pictures or self.usual_pictures()
        if self.frames(count)[1] != count:
            raise InputError(f"frames {count}: this VAE's clips have {self.frames(count)[1]} frames or one of its next lengths")
        self.pictures = count
        patches = {key: [patch[0] for patch in patches] for key, patches in model.patches.items()}
        source = None if model.cached_patcher_init is None else repr(model.cached_patcher_init[1])
        self.identity = fingerprint(source, patches, *map(_fixed, (positive, negative)))[:12]

    def usual_size(self) -> int:
        """Pixels a side that the model was trained on."""
        return 1024 if isinstance(self.model.model, comfy.model_base.SDXL) else 512

    def usual_pictures(self) -> int:
        """Pictures in a sample, where the user names no number."""
        return 1

    def frames(self, pictures: int) -> tuple[int, int]:
        """Latents of a clip of so many pictures, and how many pictures these latents make."""
        return pictures, pictures

    @property
    def device(self) -> torch.device:
        return self.model.load_device

    def to(self, device: str | torch.device) -> HostPrior:
        """Does nothing: the host decides where its models are."""
        return self

    # ------------------------------------------------------------------------------------------------ pictures and latents

    def encode(self, images: Tensor) -> Tensor:  # (B, V, H, W, 3) -> (B, F, c, h, w)
        """The host's own encoding, to its last bit, with gradient."""
        return self._ours(self.latent_format.process_in(self._unscaled(images)), len(images))

    def _unscaled(self, images: Tensor) -> Tensor:  # (B, V, H, W, 3) -> latents as the host shapes and leaves them
        own = self._own_vae()
        pixels = self.vae.vae_encode_crop_pixels(rearrange(images, "b v h w c -> (b v) h w c"))
        pixels = rearrange(pixels, "(b v) h w c -> b v c h w", b=len(images))
        if self.clips:
            pixels = rearrange(pixels, "b v c h w -> b c v h w")
        elif self.vae.latent_dim == 3:
            pixels = rearrange(pixels, "b v c h w -> (b v) c 1 h w")
        else:
            pixels = rearrange(pixels, "b v c h w -> (b v) c h w")
        # The host counts one picture without gradients; a gradient keeps about twice that of each.
        needed = 2 * len(pixels) * self.vae.memory_used_encode(pixels.shape, self.vae.vae_dtype)
        comfy.model_management.load_models_gpu([own], memory_required=needed)
        make_ordinary(own.model)  # making room for the model, in inference mode, the host may have moved it
        pixels = self.vae.process_input(pixels.to(own.load_device)).to(self.vae.vae_dtype)
        if getattr(own.model, "comfy_has_chunked_io", False):
            latents = own.model.encode(pixels, device=own.load_device)
        else:
            latents = own.model.encode(pixels)
        if self.vae.format_encoded is not None:
            latents = self.vae.format_encoded(latents)
        return latents.float()

    def _own_vae(self) -> Any:
        """A ModelPatcher around a copy of the VAE made of ordinary tensors; the host's own weights are inference tensors."""
        if "patcher" not in self._vae_copy:
            with torch.inference_mode(False):
                theirs = self.vae.patcher
                if theirs.cached_patcher_init is not None:
                    own = theirs.clone(disable_dynamic=True, force_deepcopy=True)  # weights that stay while gradients flow
                else:
                    twin = make_ordinary(copy.deepcopy(theirs.model))
                    own = comfy.model_patcher.ModelPatcher(twin, theirs.load_device, theirs.offload_device)
                own.model.to(self.vae.vae_dtype)  # where the host casts weights as they are used, they are as in the file
                own.parent = None  # the host would take its place for the original
                own.model.requires_grad_(False)
            self._vae_copy["patcher"] = own
        return self._vae_copy["patcher"]

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Lets go of the VAE's copy at the end; the host unloads the model itself when it needs the memory."""
        try:
            yield
        finally:
            self._vae_copy.clear()
            comfy.model_management.cleanup_models()
            comfy.model_management.soft_empty_cache()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:  # (B, F, c, h, w) -> (B, V, H, W, 3)
        with torch.inference_mode():
            pictures = self.vae.decode(self.latent_format.process_out(self._theirs(latents)))
        return pictures.reshape(len(latents), -1, *pictures.shape[-3:]).clone()

    def _theirs(self, latents: Tensor) -> Tensor:
        if self.clips:
            return rearrange(latents, "b f c h w -> b c f h w")
        flat = rearrange(latents, "b f c h w -> (b f) c h w")
        return flat[:, :, None] if self.vae.latent_dim == 3 else flat

    def _ours(self, latents: Tensor, count: int) -> Tensor:
        if self.clips:
            return rearrange(latents, "b c f h w -> b f c h w")
        return rearrange(latents if latents.ndim == 4 else latents[:, :, 0], "(b f) c h w -> b f c h w", b=count)

    def _latent_layout(self) -> tuple[int, int]:
        return self.cell, int(self.latent_format.latent_channels)

    def _latent_frames(self) -> int:
        return self.frames(self.pictures)[0]

    # ---------------------------------------------------------------------------------------------- conditions, predictions

    def condition(
        self,
        image: Tensor | None = None,
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        fps: float | None = None,
    ) -> Condition:
        """What is connected to the node: the texts are the host's CONDITIONING already."""
        if image is not None:
            raise InputError(
                f"prior {self.name}: is not conditioned on a picture; use an image-conditioned model, such as Stable Zero123"
            )
        if text is not None or negative is not None:
            raise InputError(f"prior {self.name}: its texts are the CONDITIONING of its node; connect them there")
        if self.positive is None:
            raise InputError(f"prior {self.name}: nothing is connected to positive; connect CLIP Text Encode")
        if fps is not None and "fps" not in self.conditions:
            raise InputError(f"prior {self.name}: knows nothing of frame rates, leave fps out")
        given = {"fps": torch.tensor([fps or 0.0])}
        return Condition(given, given if self.negative is not None else None)

    def conditionings(
        self,
        inputs: Mapping[str, Tensor],  # each (N, ...)
        views: Viewpoints | None,  # (N, V)
    ) -> tuple[Conditioning, Conditioning]:
        """The host's positive and negative CONDITIONING of one prediction."""
        fps = float(inputs["fps"][0])
        rate = {"frame_rate": fps} if fps else {}
        return [(c, more | rate) for c, more in self.positive or ()], [(c, more | rate) for c, more in self.negative or ()]

    @torch.no_grad()
    def predict(
        self,
        latents: Tensor,  # (B, F, c, h, w) noisy
        t: Tensor,  # (B,)
        condition: Condition,
        views: Viewpoints | None = None,
        *,
        unconditional: bool = True,
    ) -> Prediction:
        """As :meth:`Prior.predict`. The host turns its model's output into a clean latent x0 whatever the model predicts: the
        noise is ``(z_t - alpha x0) / sigma``, the velocity of flow models ``(z_t - x0) / t``."""
        self.check(latents, views)
        both = unconditional and condition.negative is not None
        # Picture models take the pictures of a clip as a batch, and some (AnimateDiff) their order in it as time.
        rows = len(latents) if self.clips or self.pictures == 1 else 1
        with torch.inference_mode():  # as the host runs its models, whose weights are inference tensors
            clean = [
                self._clean(latents[i : i + rows], t[i : i + rows], condition[i : i + rows],
                            None if views is None else views.map(lambda v, i=i: v[i : i + rows]), both)
                for i in range(0, len(latents), rows)
            ]  # fmt: skip
        alpha, sigma = (c.to(latents.device).reshape(-1, 1, 1, 1, 1) for c in self.schedule.coefficients(t))
        scale = 1.0 if self.schedule.kind == "flow" else alpha
        noise = [(latents - scale * torch.cat(part).to(latents)) / sigma for part in zip(*clean, strict=True)]
        return Prediction(noise[0].float(), noise[1].float() if both else None)

    def _clean(
        self, latents: Tensor, t: Tensor, condition: Condition, views: Viewpoints | None, both: bool
    ) -> list[Tensor]:  # of (B, F, c, h, w)
        alpha, sigma = self.schedule.coefficients(t.to(latents.device))
        noisy = self._theirs(latents)
        if self.schedule.kind != "flow":
            # The host's noisy latents are x + (sigma / alpha) n, ours alpha x + sigma n.
            sigma = sigma / alpha
            if not isinstance(self.model.get_model_object("model_sampling"), comfy.model_sampling.V_PREDICTION_DDPM):
                noisy = noisy / alpha.reshape(-1, *[1] * (noisy.ndim - 1)).repeat_interleave(len(noisy) // len(t), 0)
        sigma = sigma.repeat_interleave(len(noisy) // len(t))
        count = len(latents)
        inputs = {k: v.expand(count, *v.shape[1:]) for k, v in condition.positive.items()}
        positive, negative = self.conditionings(inputs, views)
        wanted = {"positive": positive} | ({"negative": negative} if both else {})
        runs = [wanted] if self.one_pass else [{name: part} for name, part in wanted.items()]
        outputs: dict[str, Tensor] = {}
        for run in runs:
            guider, step = comfy.samplers.CFGGuider(self.model), _OneStep(sigma)
            guider.inner_set_conds(run)
            ends = torch.stack([sigma.max(), torch.zeros_like(sigma[0])])
            guider.sample(noisy, torch.zeros_like(noisy), step, ends, disable_pbar=True, seed=0)
            outputs |= step.clean
        return [self._ours(outputs[name].float(), count) for name in wanted]

    def _denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor], views: Viewpoints | None) -> Tensor:
        raise NotImplementedError("the host's guider predicts, see predict")


class HostClips(HostPrior):
    """A video model of the host, its latents ``(B, c, F, h, w)``."""

    clips = True
    encodes_apart = False

    def usual_size(self) -> int:
        return 480

    def usual_pictures(self) -> int:
        return self.frames(17)[1]

    def frames(self, pictures: int) -> tuple[int, int]:
        latents = int(self.vae.downscale_ratio[0](pictures))
        return latents, int(self.vae.upscale_ratio[0](latents))


class HostTimedClips(HostClips):
    """A video model of the host with the frame rate as a condition: LTX."""

    conditions = frozenset({"fps"})


class HostZero123(HostPrior):
    """Stable Zero123, or Zero123 in the same layout, as the host loads it: conditioned on a picture and a turn of the camera.

    Args:
        clip_vision: the host's CLIP_VISION that came with the model.
        slot4: what the camera vector's fourth number is, see :class:`..core.priors.zero123.Zero123`.
    """

    conditions = frozenset({"image", "cameras"})
    usual_guidance = 5.0

    def __init__(
        self, model: Any, vae: Any, clip_vision: Any, slot4: Literal["polar", "delta"] = "polar", size: int = 0
    ) -> None:
        super().__init__(model, vae, size=size)
        self.clip_vision, self.slot4 = clip_vision, slot4
        self.identity += f" slot4={slot4}"

    def usual_size(self) -> int:
        return 256

    @torch.no_grad()
    def condition(
        self,
        image: Tensor | None = None,
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        fps: float | None = None,
    ) -> Condition:
        """The picture's CLIP embedding ``(B, 768)`` and its unscaled latent ``(B, 4, h, w)``; without it both are zero."""
        if image is None:
            raise InputError(f"prior {self.name}: needs a picture of the object, give a reference image")
        if text is not None or negative is not None or fps is not None:
            raise InputError(f"prior {self.name}: knows neither texts nor frame rates, leave them out")
        picture = squared(image.float(), self.resolution[0], self.background)
        with torch.inference_mode():
            embedding = self.clip_vision.encode_image(picture).image_embeds
        given = {
            "embedding": embedding.clone().float().to(self.device),
            "latent": self._unscaled(picture[:, None]).to(self.device),
        }
        return Condition(given, {name: torch.zeros_like(value) for name, value in given.items()})

    def conditionings(self, inputs: Mapping[str, Tensor], views: Viewpoints | None) -> tuple[Conditioning, Conditioning]:
        if views is None or views.reference is None:
            raise InputError(f"prior {self.name}: needs the reference picture's viewpoint beside those of the renders")
        embedding, latent = inputs["embedding"], inputs["latent"]
        seen = views.reference
        fourth = views.distance - seen.distance if self.slot4 == "delta" else torch.deg2rad(90 - seen.elevation)
        camera = zero123_vector(
            views.elevation, views.azimuth - seen.azimuth, fourth, condition_elevation=seen.elevation
        )  # (N, 1, 4)
        token = torch.cat([embedding[:, None], camera.to(embedding)], -1)
        # The model projects tokens of 772 numbers and takes those of 768 as they are.
        return [(token, {"concat_latent_image": latent})], [
            (torch.zeros_like(embedding)[:, None], {"concat_latent_image": torch.zeros_like(latent)})
        ]


class _OneStep(comfy.samplers.Sampler):
    """A sampler that asks once: the clean latents of each condition apart, before any guidance."""

    def __init__(self, sigma: Tensor) -> None:
        self.sigma = sigma
        self.clean: dict[str, Tensor] = {}

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor,
        latent_image: Tensor | None = None, denoise_mask: Tensor | None = None, disable_pbar: bool = False,
    ) -> Tensor:  # fmt: skip
        model, options, sigma = model_wrap.inner_model, extra_args["model_options"], self.sigma.to(noise)
        names = [name for name in ("positive", "negative") if name in model_wrap.conds]
        # By the place in this list patches know which of the two they see.
        conds = [model_wrap.conds.get("positive"), model_wrap.conds.get("negative")]
        if "sampler_calc_cond_batch_function" in options:
            args = {"conds": conds, "input": noise, "sigma": sigma, "model": model, "model_options": options}
            clean = options["sampler_calc_cond_batch_function"](args)
        else:
            clean = comfy.samplers.calc_cond_batch(model, conds, noise, sigma, options)
        self.clean = {name: clean[0 if name == "positive" else 1] for name in names}
        return noise


def schedule_of(sampling: Any, name: str) -> NoiseSchedule:
    """The noise schedule of a host model's ``model_sampling``: ``abar = 1 / (1 + sigma^2)`` of its sigmas, or flow.

    Raises:
        InputError: for models that neither denoise nor flow from noise to data.
    """
    kinds = comfy.model_sampling
    edits = isinstance(sampling, (kinds.IMG_TO_IMG, kinds.IMG_TO_IMG_FLOW)) or getattr(sampling, "noise_scale", 1.0) != 1
    if isinstance(sampling, kinds.CONST) and not edits:
        return NoiseSchedule("flow")
    if isinstance(sampling, (kinds.EPS, kinds.COSMOS_RFLOW, kinds.V_PREDICTION_DDPM)) and not edits:
        abar = 1 / (1 + sampling.sigmas.detach().clone().double().cpu() ** 2)
        return NoiseSchedule("epsilon", abar.float(), len(abar))
    raise InputError(f"model {name}: its noise schedule cannot be distilled; connect a diffusion or rectified flow model")


def make_ordinary(module: nn.Module) -> nn.Module:
    """The module, its inference tensors replaced by clones that autograd can keep; call it outside inference mode."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None and value.is_inference():
                part._parameters[name] = nn.Parameter(value.detach().clone(), requires_grad=False)
        for name, value in part._buffers.items():
            if value is not None and value.is_inference():
                part._buffers[name] = value.detach().clone()
    return module


def prior_of(
    model: Any,
    vae: Any,
    clip_vision: Any = None,
    positive: Conditioning | None = None,
    negative: Conditioning | None = None,
    size: int = 0,
    frames: int = 0,
    slot4: Literal["polar", "delta"] = "polar",
) -> HostPrior:
    """The prior that a host MODEL can be.

    Raises:
        InputError: where what the model is conditioned on is not connected, or it is no model of pictures.
    """
    base = model.model
    if isinstance(base, comfy.model_base.Stable_Zero123):
        if clip_vision is None:
            raise InputError("clip_vision: Stable Zero123 needs it; connect the loader's CLIP_VISION")
        return HostZero123(model, vae, clip_vision, slot4, size)
    if positive is None:
        raise InputError(f"positive: {_name(model)} needs it; connect CLIP Text Encode")
    dimensions = base.latent_format.latent_dimensions
    if dimensions not in (2, 3) or vae.latent_dim not in (2, 3):
        raise InputError(f"model: {_name(model)} makes neither pictures nor clips; connect a picture or video model")
    kind = HostPrior
    if dimensions == 3 and vae.latent_dim == 3 and not vae.not_video:
        timed = isinstance(base, (comfy.model_base.LTXV, comfy.model_base.LTXAV))
        kind = HostTimedClips if timed else HostClips
    return kind(model, vae, positive, negative, size, frames)


def priors_in(value: Any) -> Iterator[Prior]:
    """Every prior in objectives, which are dataclasses within tuples."""
    if isinstance(value, Prior):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from priors_in(getattr(value, field.name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from priors_in(item)


def place(choice: str) -> torch.device | None:
    """The device that a choice of :data:`PLACES` means; None for auto.

    Raises:
        InputError: for a card that is not there.
    """
    if choice == "auto":
        return None
    return torch.device(resolve_device(choice.replace("gpu", "cuda")))


#: Bytes of a card that a fit takes at most beside its priors; with less it moves its frames in slices (docs/memory.md).
FIT_BYTES = 4 << 30


@contextmanager
def loaded(objectives: Iterable[Any], device: str, fit: torch.device | None = None) -> Iterator[None]:
    """The priors of a fit's objectives where they compute while it runs: the host's own as it sees fit, ours moved and back.

    On a card the host's other models make room for the fit as well, and what the fit held is given back.

    Args:
        device: the node's own choice; only "cpu" keeps them there, since Gaussians drawn on the CPU are no reason to.
        fit: where a fit itself computes, if there is one.
    """
    where = torch.device("cpu") if device == "cpu" else comfy.model_management.get_torch_device()
    priors = {id(prior): prior for prior in priors_in(list(objectives))}
    card = fit if fit is not None and fit.type == "cuda" else None
    with ExitStack() as stack:
        if card is not None:
            stack.callback(comfy.model_management.soft_empty_cache)
        for prior in priors.values():
            if isinstance(prior, HostPrior):
                stack.enter_context(prior.loaded())
                continue
            size = sum(p.nbytes for module in prior.modules.values() for p in module.parameters())
            needed = size + comfy.model_management.minimum_inference_memory()
            own = prior.place or where
            comfy.model_management.free_memory(needed, own)
            stack.callback(prior.to, prior.device)
            prior.to(own)
        if card is not None:
            comfy.model_management.free_memory(FIT_BYTES, card)
        yield


def _name(model: Any) -> str:
    """What the host takes a model for: SD15, SDXL, WAN21_T2V, ..."""
    return type(model.model.model_config).__name__


def _fixed(conditioning: Conditioning | None) -> Any:
    """What of a CONDITIONING can be compared between runs: its tensors, numbers and texts."""
    kept = (Tensor, int, float, str)
    return [(c, {k: v for k, v in more.items() if isinstance(v, kept)}) for c, more in conditioning or ()]
