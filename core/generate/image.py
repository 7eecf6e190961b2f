"""Pictures from a text, by the text-to-image models that diffusers has: Stable Diffusion 1 to 3 and XL, Flux, Sana, PixArt.

A folder's model_index.json says which it is; steps, guidance and size that are left out are those of its pipeline. The defaults
ask for what the other generators want: one whole object from the front, on a plain background.
"""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import InputError
from ..priors.checkpoints import Checkpoint, Precision, precision_dtypes
from .pipelines import Offload, false_colors, load_pipeline, located, run_pipeline
from .sampling import StepProgress

#: Added to every prompt unless asked otherwise: what makes an object easy to cut out and to see from other sides.
OBJECT_SUFFIX = "a single whole object, front view, plain white background"
#: Negative prompt where none is given.
NEGATIVE = "cropped, cut off, several objects, cluttered background, shadow, text, watermark, blurry"
#: diffusers' classes that draw from a text alone.
PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "SanaPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
)
#: What a folder may name and yet leave out.
SPARE = ("safety_checker", "feature_extractor", "image_encoder", "text_encoder_3", "tokenizer_3")


def text_to_image(
    prompt: str,
    source: str | Path,
    *,
    negative: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    size: int | None = None,
    suffix: str = OBJECT_SUFFIX,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    offload: Offload = "none",
    progress: StepProgress | None = None,
) -> Tensor:  # (size, size, 3) in [0, 1]
    """A square picture of a text, on the CPU.

    Args:
        source: folder, or a name that ``models list`` knows.
        negative: what should not be in it; :data:`NEGATIVE` where None, "" for nothing.
        steps, guidance, size: the model's own where None; size in pixels.
        seed: the same seed gives the same picture on one machine.
        suffix: added to the prompt.
        offload: where networks wait for their turn, see :data:`~.pipelines.Offload`.
        progress: called after each step, with false colours of the latents; it may raise to interrupt.

    Raises:
        InputError: for another kind of model, no prompt, or a size that it cannot make.
    """
    checkpoint = located(source)
    cls = pipeline_of(checkpoint)
    if not prompt.strip():
        raise InputError("prompt: say what the picture shows")
    if size is not None and (size < 16 or size % 16):
        raise InputError(f"size {size}: choose a multiple of 16 pixels")
    accepted = inspect.signature(cls.__call__).parameters
    # Flux was distilled for guidance: the scale is given to the network, and there is no negative prompt.
    heeds = "true_cfg_scale" not in accepted
    if negative and not heeds:
        raise InputError(f"{checkpoint.folder}: {cls.__name__} heeds no negative prompt, leave it empty")
    call: dict[str, Any] = {
        "negative_prompt": NEGATIVE if negative is None and heeds else negative or None,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "height": size,
        "width": size,
    }
    # Without them: the size that was asked for, not the nearest of a list, and the prompt as it was written.
    own = {"use_resolution_binning": False, "clean_caption": False}
    pipe = load_pipeline(
        cls,
        checkpoint,
        dtype=precision_dtypes(precision, device)[0],
        device=device,
        offload=offload,
        parts={name: None for name in inspect.signature(cls).parameters if name in SPARE and not checkpoint.has(name)},
    )
    call = {name: value for name, value in call.items() if value is not None} | own | {
        "prompt": ", ".join(filter(None, (prompt.strip(), suffix))),
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "np",
    }  # fmt: skip
    try:
        made = run_pipeline(pipe, call, progress, _preview).images[0]
    except torch.OutOfMemoryError:
        raise InputError(f"{checkpoint.folder}: does not fit on {device}; choose offload or a smaller size") from None
    picture = torch.from_numpy(made).float()
    if not picture.isfinite().all():
        raise InputError(f"{checkpoint.folder}: the picture holds NaN; choose precision bf16 or fp32")
    return picture.clamp(0, 1).contiguous()


def pipeline_of(checkpoint: Checkpoint) -> Any:
    """diffusers' class for a folder, one of :data:`PIPELINES`.

    Raises:
        InputError: for a folder of another kind.
    """
    import diffusers

    named = checkpoint.index.get("_class_name")
    if named not in PIPELINES:
        raise InputError(
            f"{checkpoint.folder}: not a text-to-image model that is known here "
            f"({', '.join(name.removesuffix('Pipeline') for name in PIPELINES)}); {checkpoint.found()}"
        )
    return getattr(diffusers, named)


def _preview(latents: Tensor) -> Tensor:  # (1, c, h, w), or Flux's (1, h w, c)
    if latents.ndim == 4:
        return false_colors(latents[:, :, None], "b c f h w")
    side = math.isqrt(latents.shape[1])
    return false_colors(latents, "b (f h w) c", h=side, w=side)
