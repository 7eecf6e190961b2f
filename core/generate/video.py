"""Films from a text or a picture, by the video models that diffusers has: Wan, LTX-Video, HunyuanVideo, CogVideoX, Kandinsky 5,
Stable Video Diffusion, AnimateDiff, and ModelScope with Zeroscope.

A folder's model_index.json says which it is. What comes out goes through :func:`~..io.video.load_video` like any other
film; the defaults ask for what that wants: one object, a still camera, a plain background.
"""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import InputError
from ..priors.checkpoints import Checkpoint, Precision, precision_dtypes
from ..priors.pictures import composited
from ..priors.text_to_video import MOTIONLESS
from .pipelines import Offload, false_colors, load_pipeline, located, run_pipeline
from .sampling import StepProgress

#: Added to every prompt unless asked otherwise: what makes an object easy to cut out and follow.
OBJECT_SUFFIX = "a single object, static camera, plain white background"
#: Negative prompt where none is given.
NEGATIVE = f"{MOTIONLESS}, camera movement, zoom, scene cut, cluttered background, cropped object"


@dataclass(frozen=True)
class GeneratedVideo:
    """A film.

    Args:
        frames: in [0, 1], on the CPU.
        fps: frames a second.
    """

    frames: Tensor  # (T, H, W, 3)
    fps: float


@dataclass(frozen=True)
class Family:
    """One kind of video model: diffusers' classes, and the settings its makers publish.

    Args:
        text, image: pipeline class for each task; None where the family has none.
        shared: the same weights do both, whichever class the folder names.
        height, width, frames, fps, steps, guidance: defaults.
        chunk: pictures a latent frame: a film has 1 + chunk n frames.
        multiple: what height and width are multiples of.
        negative: whether it heeds a negative prompt.
        free: whether it takes pictures of any shape; if not, they are padded to height x width.
        latents: layout of its latents, for previews ("" = no preview).
        vae32: whether its VAE is run in float32, as its makers do.
    """

    name: str
    text: str | None
    image: str | None
    height: int
    width: int
    frames: int
    fps: float
    steps: int
    guidance: float
    chunk: int = 4
    multiple: int = 16
    shared: bool = False
    negative: bool = True
    free: bool = True
    latents: str = "b c f h w"
    vae32: bool = False


#: Defaults are those of the pipelines' own signatures and of their model cards' examples.
FAMILIES = (
    Family("Wan", "WanPipeline", "WanImageToVideoPipeline", 480, 832, 81, 16.0, 50, 5.0, vae32=True),
    Family("LTX-Video", "LTXPipeline", "LTXImageToVideoPipeline", 512, 704, 121, 25.0, 50, 3.0,
           chunk=8, multiple=32, shared=True, latents="b (f h w) c"),
    Family("LTX-Video 0.9.5+", "LTXConditionPipeline", "LTXConditionPipeline", 512, 704, 121, 25.0, 50, 3.0,
           chunk=8, multiple=32, shared=True, latents="b (f h w) c"),
    # Distilled for guidance: the scale is given to the network, and there is no negative prompt.
    Family("HunyuanVideo", "HunyuanVideoPipeline", None, 320, 512, 61, 24.0, 30, 6.0, negative=False),
    Family("HunyuanVideo I2V", None, "HunyuanVideoImageToVideoPipeline", 720, 1280, 129, 24.0, 50, 1.0, negative=False),
    Family("HunyuanVideo 1.5", "HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline", 480, 848, 121, 24.0, 50, 6.0,
           latents=""),
    # Version 1 knows one size; sizes and frames are in the checkpoint's configuration.
    Family("CogVideoX", "CogVideoXPipeline", "CogVideoXImageToVideoPipeline", 480, 720, 49, 8.0, 50, 6.0,
           free=False, latents="b f c h w"),
    Family("Kandinsky 5", "Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline", 512, 768, 121, 24.0, 50, 5.0,
           latents="b f h w c"),
    Family("Stable Video Diffusion", None, "StableVideoDiffusionPipeline", 576, 1024, 14, 7.0, 25, 3.0,
           chunk=1, multiple=64, negative=False, free=False, latents="b f c h w"),
    Family("AnimateDiff", "AnimateDiffPipeline", None, 512, 512, 16, 8.0, 25, 7.5, chunk=1, multiple=8),
    Family("ModelScope", "TextToVideoSDPipeline", None, 256, 256, 16, 8.0, 50, 9.0, chunk=1, multiple=8),
)  # fmt: skip


def family_of(checkpoint: Checkpoint, task: str) -> tuple[Family, str]:
    """The family of a folder and the pipeline class for a task, "text" or "image".

    A Stable Diffusion 1.5 folder counts as AnimateDiff.

    Raises:
        InputError: for a folder of another kind, or one that does the other task only.
    """
    named = checkpoint.index.get("_class_name")
    if named == "StableDiffusionPipeline" and task == "text":
        named = "AnimateDiffPipeline"
    family = next((f for f in FAMILIES if named in (f.text, f.image)), None)
    if family is None:
        raise InputError(
            f"{checkpoint.folder}: not a video model that is known here ({', '.join(f.name for f in FAMILIES)}); "
            f"{checkpoint.found()}"
        )
    wanted = family.text if task == "text" else family.image
    both = family.shared or bool(checkpoint.index.get("expand_timesteps"))  # Wan 2.2's 5B does both
    if wanted is None or (named != wanted and not both):
        does = "starts from a picture: use image to video" if task == "text" else "takes text only: use text to video"
        raise InputError(f"{checkpoint.folder}: this {family.name} ({named}) {does}, or give another model")
    return family, wanted


class FilmOptions(TypedDict, total=False):
    """What both generators take; whatever is left out or None is the model's own.

    Args:
        negative: what should not be in it; :data:`NEGATIVE` where None, "" for nothing.
        frames: of the film; what the model makes beyond that (some make 1 + 4 n or 1 + 8 n) is cut off.
        height, width: pixels.
        fps: given to models that ask for it (LTX, Stable Video Diffusion), else only how fast the film is to be played.
        steps, guidance: of the sampler.
        seed: the same seed gives the same film on one machine.
        suffix: added to the prompt, by default :data:`OBJECT_SUFFIX`.
        offload: where networks wait for their turn, see :data:`~.pipelines.Offload`.
        progress: called after each step, with a false-colour picture of the latents; it may raise to interrupt.
    """

    negative: str | None
    frames: int | None
    height: int | None
    width: int | None
    fps: float | None
    steps: int | None
    guidance: float | None
    seed: int
    suffix: str
    device: str | torch.device
    precision: Precision
    offload: Offload
    progress: StepProgress | None


def text_to_video(
    source: str | Path, prompt: str, *, motion_adapter: str | Path | None = None, **options: Unpack[FilmOptions]
) -> GeneratedVideo:
    """A film of a text.

    Args:
        source: folder, or a name that ``models list`` knows.
        motion_adapter: of AnimateDiff, where it is not a folder inside or beside ``source``.
        options: see :class:`FilmOptions`.

    Raises:
        InputError: for an image-to-video model, no prompt, or sizes that the model cannot make.
    """
    checkpoint = located(source)
    family, pipeline = family_of(checkpoint, "text")
    if not prompt.strip():
        raise InputError("prompt: say what the film shows")
    parts: dict[str, Any] = {}
    if family.name == "AnimateDiff":
        parts = _animatediff(checkpoint, motion_adapter, options.get("device", "cpu"), options.get("precision", "auto"))
    return _generate(checkpoint, family, pipeline, parts, prompt.strip(), None, **options)


def image_to_video(
    source: str | Path,
    image: Tensor,  # (H, W, 3 | 4) in [0, 1], alpha straight
    prompt: str | None = None,
    **options: Unpack[FilmOptions],
) -> GeneratedVideo:
    """A film that begins with a picture.

    The picture is put on white where it is transparent. The film takes its shape, at about as many pixels as the model was
    made for; models of one shape only get it padded in the colour of its border, never distorted.

    Args:
        source: folder, or a name that ``models list`` knows.
        options: see :class:`FilmOptions`.

    Raises:
        InputError: for a text-to-video model, a prompt that the model cannot take, or sizes that it cannot make.
    """
    checkpoint = located(source)
    family, pipeline = family_of(checkpoint, "image")
    if image.ndim != 3 or image.shape[-1] not in (3, 4) or not image.isfinite().all():
        raise InputError(f"image: shape {tuple(image.shape)}, give one picture (height, width, 3 or 4) of finite numbers")
    pixels = composited(image[None].detach().float().cpu(), (1.0, 1.0, 1.0))[0].clamp(0, 1)
    return _generate(checkpoint, family, pipeline, {}, (prompt or "").strip(), pixels, **options)


def _generate(
    checkpoint: Checkpoint,
    family: Family,
    pipeline: str,
    parts: dict[str, Any],
    prompt: str,
    image: Tensor | None,  # (H, W, 3)
    *,
    negative: str | None = None,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    suffix: str = OBJECT_SUFFIX,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    offload: Offload = "none",
    progress: StepProgress | None = None,
) -> GeneratedVideo:
    import diffusers

    cls: Any = getattr(diffusers, pipeline, None)
    if cls is None:
        raise InputError(f"{family.name}: diffusers {diffusers.__version__} has no {pipeline}; run: pip install -U diffusers")
    # diffusers 0.42's Wan image-to-video repairs broken unicode with ftfy without looking whether that is installed.
    vars(sys.modules[cls.__module__]).setdefault("ftfy", SimpleNamespace(fix_text=str))
    accepted = inspect.signature(cls.__call__).parameters
    family = _published(checkpoint, family)
    count, rate, scale = frames or family.frames, fps or family.fps, guidance or family.guidance
    if count < 2:
        raise InputError(f"frames {count}: a film has at least 2")
    if "prompt" not in accepted and prompt:
        raise InputError(f"{checkpoint.folder}: {family.name} goes by the picture alone, leave the prompt empty")
    if negative and not family.negative:
        raise InputError(f"{checkpoint.folder}: {family.name} heeds no negative prompt, leave it empty")
    if "height" not in accepted and (height or width):
        raise InputError(f"{checkpoint.folder}: {family.name} takes its size from the picture, leave height and width at 0")
    height, width = _size(family, height, width, image)
    call: dict[str, Any] = {
        "prompt": ", ".join(filter(None, (prompt, suffix))),
        "negative_prompt": (NEGATIVE if negative is None else negative) if family.negative else None,
        "image": None if image is None else _picture(image, height, width),
        "height": height,
        "width": width,
        "num_frames": 1 + family.chunk * math.ceil((count - 1) / family.chunk),
        "frame_rate": rate,
        "fps": round(rate),
        "num_inference_steps": steps or family.steps,
        "max_guidance_scale" if "max_guidance_scale" in accepted else "guidance_scale": scale,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "np",
    }
    pipe = load_pipeline(
        cls,
        checkpoint,
        dtype=precision_dtypes(precision, device)[0],
        exceptions={"vae": torch.float32} if family.vae32 else None,
        device=device,
        offload=offload,
        parts=parts,
    )
    if hasattr(pipe, "guider"):
        pipe.guider.guidance_scale = scale
    cell = getattr(pipe, "vae_spatial_compression_ratio", 1)
    sides = {"h": height // cell, "w": width // cell} if "(f h w)" in family.latents else {}

    def picture(latents: Tensor) -> Tensor | None:
        return false_colors(latents, family.latents, **sides) if family.latents else None

    try:
        made = run_pipeline(pipe, call, progress, picture).frames[0]
    except torch.OutOfMemoryError:
        raise InputError(
            f"{checkpoint.folder}: {call['num_frames']} frames of {width}x{height} do not fit on {device}; "
            "choose offload, fewer frames or a smaller picture"
        ) from None
    film = torch.from_numpy(made).float()
    if not film.isfinite().all():
        raise InputError(f"{checkpoint.folder}: the film holds NaN; choose precision bf16 or fp32")
    return GeneratedVideo(film[:count].clamp(0, 1).contiguous(), float(rate))


def _published(checkpoint: Checkpoint, family: Family) -> Family:
    """The family's defaults as this checkpoint's configuration has them."""
    if family.name == "CogVideoX":
        config = checkpoint.config("transformer")
        sizes = {"height": config.get("sample_height", 60) * 8, "width": config.get("sample_width", 90) * 8}
        later = config.get("patch_size_t") is not None  # version 1.5: 16 frames a second, any shape
        return replace(family, **sizes, frames=config.get("sample_frames", 49), fps=16.0 if later else 8.0, free=later)
    if family.name == "Stable Video Diffusion":
        return replace(family, frames=checkpoint.config("unet").get("num_frames", 14))
    if family.name == "ModelScope" and "576w" in checkpoint.name:  # Zeroscope
        return replace(family, height=320, width=576, frames=24)
    return family


def _size(family: Family, height: int | None, width: int | None, image: Tensor | None) -> tuple[int, int]:
    """Height and width: as asked, or the family's own, in the picture's shape where it is free to take that."""
    if image is not None and family.free and not (height or width):
        side, aspect = math.sqrt(family.height * family.width) / family.multiple, math.sqrt(image.shape[0] / image.shape[1])
        height, width = (max(1, round(x)) * family.multiple for x in (side * aspect, side / aspect))
    height, width = height or family.height, width or family.width
    if height % family.multiple or width % family.multiple:
        raise InputError(f"size {width}x{height}: {family.name} makes multiples of {family.multiple} pixels")
    return height, width


def _picture(image: Tensor, height: int, width: int) -> Any:  # (H, W, 3)
    """The picture as PIL at the film's size, padded in its border's colour."""
    from PIL import Image

    scale = min(height / image.shape[0], width / image.shape[1])
    inner = [max(1, min(limit, round(side * scale))) for side, limit in zip(image.shape[:2], (height, width))]
    border = torch.cat([image[0], image[-1], image[:, 0], image[:, -1]]).median(0).values
    drawn = F.interpolate(image.movedim(-1, 0)[None], inner, mode="bicubic", antialias=True, align_corners=False)[0]
    canvas = border.expand(height, width, 3).clone()
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas[top : top + inner[0], left : left + inner[1]] = drawn.movedim(0, -1)
    return Image.fromarray((canvas.clamp(0, 1) * 255).round().byte().numpy())


def _animatediff(
    checkpoint: Checkpoint, adapter: str | Path | None, device: str | torch.device, precision: Precision
) -> dict[str, Any]:
    """The motion adapter of a text-to-image folder: the one named, inside it, beside it, or of the registry."""
    from diffusers import MotionAdapter

    if adapter is None and checkpoint.index.get("_class_name") == "AnimateDiffPipeline":
        return {}
    if adapter is not None:
        folder = located(adapter).folder
    else:
        beside = [checkpoint.folder / "motion_adapter", *sorted(checkpoint.folder.parent.glob("*motion-adapter*"))]
        folder = next((path for path in beside if (path / "config.json").is_file()), None) or located("animatediff").folder
    network: Any = Checkpoint(folder).load(MotionAdapter, "", dtype=precision_dtypes(precision, device)[0])
    return {"motion_adapter": network}
