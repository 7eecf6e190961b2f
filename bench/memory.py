"""Memory of score distillation: python -m anchor4d.bench.memory [--check] [--device cpu|cuda] [--only NAME ...].

Without --check: the peak of every published prior at its published configuration, by accounting (no weights, no GPU), as it is
and at the first setting that fits a card of 8 GB. With it: estimates beside what a step of priors with random weights really
takes here, on a CPU of middle-sized networks (the process's highest resident memory), on a GPU of the published ones.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..core.priors.base import Condition, NoiseSchedule, Prior
from ..core.priors.distill import Distillation
from ..core.priors.estimate import GIB, account, estimate_distillation, fitting, peak
from ..core.priors.estimate import _views as views_of

#: What a card of 8 GB has, 10^9 bytes each, which leaves half a GiB for the screen and the scene.
CARD = 8 * 10**9
Make = Callable[[type[nn.Module], Any], nn.Module]


@dataclass(frozen=True)
class Case:
    """A published prior, or a middle-sized one.

    Args:
        name: as the registry has it.
        build: makes the prior, from a function that makes a network of a class and keyword arguments (or a config object).
        batch: samples a step.
        text: tokens and channels of a text's encoding; None where the prior takes no text.
    """

    name: str
    build: Callable[[Make], Prior]
    batch: int
    text: tuple[int, int] | None = None


def _vae(make: Make, width: int = 128) -> nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return make(AutoencoderKL, dict(block_out_channels=(width, 2 * width, 4 * width, 4 * width), layers_per_block=2, **blocks))


def _unet(make: Make, **settings: Any) -> nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return make(UNet2DConditionModel, settings)


def _tower(make: Make, cls: type[nn.Module], width: int, layers: int, projection: int) -> nn.Module:
    from transformers import CLIPVisionConfig

    return make(
        cls,
        CLIPVisionConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=16,
            image_size=224, patch_size=14, projection_dim=projection,
        ),
    )  # fmt: skip


def _text(make: Make, width: int = 1024, layers: int = 23) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=width // 64
    )
    return make(CLIPTextModel, config)


SD2 = dict(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)


def _zero123(make: Make, wide: bool = True) -> Prior:
    from transformers import CLIPVisionModelWithProjection

    from ..core.priors.zero123 import CameraProjection, Zero123

    channels = (320, 640, 1280, 1280) if wide else (64, 128, 256, 256)
    inputs = dict(sample_size=32, in_channels=8, cross_attention_dim=768)
    unet = _unet(make, **inputs, attention_head_dim=8, block_out_channels=channels)
    vae = _vae(make, 128 if wide else 32)
    tower = _tower(make, CLIPVisionModelWithProjection, *((1024, 24, 768) if wide else (256, 6, 768)))
    projection = make(CameraProjection, dict(embedding=768, token=768))
    return Zero123("zero123", unet, vae, tower, projection, NoiseSchedule.scaled_linear())


def _zero123plus(make: Make) -> Prior:
    from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
    from transformers import CLIPVisionModelWithProjection

    from ..core.priors.zero123plus import Zero123Plus

    modules = {
        "unet": _unet(make, **SD2),
        "vae": _vae(make),
        "vision_encoder": _tower(make, CLIPVisionModelWithProjection, 1280, 32, 1024),
    }
    scheduler = EulerAncestralDiscreteScheduler(beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction")
    picture = {"size": {"shortest_edge": 512}, "image_mean": 0.5, "image_std": 0.8}
    return Zero123Plus("zero123plus", modules, scheduler, torch.zeros(77), torch.zeros(1, 77, 1024), picture, {})


def _multiview(make: Make, image: bool = False) -> Prior:
    from transformers import CLIPVisionModel

    from ..core.priors.multiview_unet import MultiViewUNet
    from ..core.priors.mvdream import ImageDream, MVDream

    modules = {"unet": make(MultiViewUNet, {"ip_dim": 16} if image else {}), "vae": _vae(make), "text_encoder": _text(make)}
    if not image:
        return MVDream("mvdream", modules, None, NoiseSchedule.scaled_linear())
    modules["image_encoder"] = _tower(make, CLIPVisionModel, 1280, 32, 1024)
    return ImageDream("imagedream", modules, None, NoiseSchedule.scaled_linear(), {})


def _diffusion(make: Make, size: str) -> Prior:
    """Text encoders rest on the CPU."""
    from ..core.priors.stable_diffusion import StableDiffusion, StableDiffusionXL

    settings: dict[str, Any] = {
        "sd15": dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        "sd21-base": dict(sample_size=64, **SD2),
        "sdxl": dict(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        ),
        "middle": dict(
            sample_size=32, cross_attention_dim=256, attention_head_dim=8, block_out_channels=(96, 192, 384, 384)
        ),
    }  # fmt: skip
    cls = StableDiffusionXL if size == "sdxl" else StableDiffusion
    modules = {"unet": _unet(make, **settings[size]), "vae": _vae(make, 32 if size == "middle" else 128)}
    return cls(size, modules, (), NoiseSchedule.scaled_linear())


def _clips(make: Make, pictures: int, resolution: tuple[int, int]) -> Prior:
    from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel

    from ..core.priors.text_to_video import TextToVideoPrior

    parts = (make(UNet3DConditionModel, {}), _vae(make), _text(make))
    prior = TextToVideoPrior("text-to-video", *parts, None, NoiseSchedule.scaled_linear(), resolution)
    return prior.with_settings(pictures=pictures)


def _wan(make: Make, **transformer: int) -> Prior:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    from ..core.priors.flow_video import WanPrior

    modules = {"transformer": make(WanTransformer3DModel, transformer), "vae": make(AutoencoderKLWan, {})}
    return WanPrior("wan", modules, Path(), torch.bfloat16, NoiseSchedule("flow"))  # pyright: ignore[reportArgumentType]


def _ltx(make: Make) -> Prior:
    from diffusers.models.autoencoders.autoencoder_kl_ltx import AutoencoderKLLTXVideo
    from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel

    from ..core.priors.flow_video import LTXPrior

    modules: dict[str, Any] = {"transformer": make(LTXVideoTransformer3DModel, {}), "vae": make(AutoencoderKLLTXVideo, {})}
    modules["vae"].enable_gradient_checkpointing()
    return LTXPrior("ltx", modules, Path(), torch.bfloat16, NoiseSchedule("flow"))  # pyright: ignore[reportArgumentType]


PUBLISHED = (
    Case("zero123-xl", _zero123, 6),
    Case("zero123plus-v1.2", _zero123plus, 1),
    Case("mvdream", _multiview, 1, (77, 1024)),
    Case("imagedream", lambda make: _multiview(make, image=True), 1, (77, 1024)),
    Case("sd15", lambda make: _diffusion(make, "sd15"), 4, (77, 768)),
    Case("sd21-base", lambda make: _diffusion(make, "sd21-base"), 4, (77, 1024)),
    Case("sdxl", lambda make: _diffusion(make, "sdxl"), 1, (77, 2048)),
    Case("modelscope", lambda make: _clips(make, 16, (256, 256)), 1, (77, 1024)),
    Case("zeroscope", lambda make: _clips(make, 24, (320, 576)), 1, (77, 1024)),
    Case("wan2.1-1.3b", lambda make: _wan(make, num_attention_heads=12, ffn_dim=8960, num_layers=30), 1, (512, 4096)),
    Case("wan2.1-14b", lambda make: _wan(make, num_attention_heads=40, ffn_dim=13824, num_layers=40), 1, (512, 4096)),
    Case("ltx-video", _ltx, 1, (128, 4096)),
)
#: Methods that ask several priors in one step, one after the other.
TOGETHER = (
    ("AYG, static object", ("mvdream", "sd21-base")),
    ("AYG, motion", ("modelscope", "sd21-base")),
    ("AYG, motion, larger clips", ("zeroscope", "sd21-base")),
    ("AYG, motion, with the frame rate", ("ltx-video", "sd21-base")),
)
MIDDLE = (
    (Case("zero123, middle", lambda make: _zero123(make, wide=False), 4), {}),
    (Case("zero123, middle", lambda make: _zero123(make, wide=False), 4), {"micro_batch": 1}),
    (Case("zero123, middle", lambda make: _zero123(make, wide=False), 4), {"micro_batch": 2, "encode_batch": 1}),
    (Case("stable diffusion, middle", lambda make: _diffusion(make, "middle"), 2, (77, 256)), {}),
    (Case("stable diffusion, middle", lambda make: _diffusion(make, "middle"), 2, (77, 256)), {"micro_batch": 1}),
    (Case("zero123-xl, published size", _zero123, 1), {}),
)


def condition_of(case: Case, prior: Prior) -> Condition:
    """A condition of the right shapes, of no picture and no text in particular."""
    count = case.batch
    inputs: dict[str, Tensor] = {}
    if case.text is not None:
        inputs["text"] = torch.zeros(1, *case.text)
    channels, height, width = prior.latent_shape()[1:]
    match case.name.split(",")[0]:
        case "zero123-xl" | "zero123":
            inputs = {"clip": torch.zeros(count, 768), "latent": torch.zeros(count, channels, height, width)}
            inputs["known"] = torch.ones(count, 1)
        case "zero123plus-v1.2":
            inputs = {"tokens": torch.zeros(1, 77, 1024), "reference": torch.zeros(1, 4, 64, 64), "fusion": torch.zeros(1)}
            inputs["seed"] = torch.zeros(1, dtype=torch.long)
        case "imagedream":
            inputs |= {"tokens": torch.zeros(count, 16, 1024), "latent": torch.zeros(count, channels, height, width)}
        case "sdxl":
            inputs["pooled"] = torch.zeros(1, 1280)
        case "ltx-video":
            inputs |= {"mask": torch.ones(1, 128), "fps": torch.full((1,), 25.0)}
    return Condition(inputs, inputs)


def networks(device: str, half: torch.dtype, vae: torch.dtype) -> Make:
    """Makes frozen networks on a device, the VAE in a type of its own; of fake tensors where the device is "none"."""
    from ..core.priors.zero123 import PROJECTIONS

    where = FakeTensorMode(allow_non_fake_inputs=True) if device == "none" else torch.device(device)

    def make(cls: Any, settings: Any) -> nn.Module:
        # As the loaders have it: projections stay in float32. Fake modules cannot be moved, so they are made in their type.
        kept = cls in PROJECTIONS.values()
        torch.set_default_dtype(vae if "Autoencoder" in cls.__name__ else torch.float32 if kept else half)
        try:
            with where:
                module: nn.Module = cls(**settings) if isinstance(settings, dict) else cls(settings)
        finally:
            torch.set_default_dtype(torch.float32)
        return module.requires_grad_(False).eval()

    return make


def small_encoder(make: Make) -> nn.Module:
    """TAESD."""
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    return make(AutoencoderTiny, {})


def fake(case: Case, small: bool = False) -> tuple[Distillation, Condition]:
    """A published prior without weights: float16, the VAE in bfloat16."""
    make = networks("none", torch.float16, torch.bfloat16)
    prior = case.build(make)
    if small:
        prior = prior.with_settings(small_encoder=small_encoder(make))
    return Distillation(prior), condition_of(case, prior)


def lightest(case: Case, limit: int) -> tuple[str, Mapping[str, int]] | None:
    """The first setting that fits, in words, and what takes memory then; a small encoder is the last resort."""
    for small in (False, True):
        if small and case.name.startswith(("wan", "ltx")):
            continue
        distillation, condition = fake(case, small)
        found = fitting(distillation, case.batch, limit, condition=condition, device="cuda")
        if found is not None:
            return ("small encoder, " if small else "") + found[0], found[2].parts
    return None


def table(only: list[str]) -> None:
    """The published priors' memory, and that of the methods that use several at once, as Markdown."""
    write("| prior | pictures | batch | weights | as it is | on a card of 8 GB | setting |", "|" + "---|" * 7)
    weights: dict[str, int] = {}
    for case in PUBLISHED:
        if only and case.name not in only:
            continue
        distillation, condition = fake(case)
        parts = account(distillation, case.batch, condition, "cuda")
        weights[case.name] = parts["weights"]
        found = lightest(case, CARD)
        words, memory = ("does not fit", "-") if found is None else (found[0], f"{peak(found[1]) / GIB:.1f}")
        prior, (height, width) = distillation.prior, distillation.prior.resolution
        write(
            f"| {case.name} | {prior.pictures} x {width}x{height} | {case.batch} | {parts['weights'] / GIB:.1f} "
            f"| {peak(parts) / GIB:.1f} | {memory} | {words} |"
        )
    cases = {case.name: case for case in PUBLISHED}
    write("", "| several at once | weights | on a card of 8 GB | settings |", "|" + "---|" * 4)
    for stage, names in TOGETHER:
        if not set(names) <= set(weights):
            continue
        rest = sum(weights[name] for name in names)
        settings, highest = [], 0
        for name in names:
            others = rest - weights[name]
            found = lightest(cases[name], CARD - others)
            settings.append(f"{name}: {'does not fit' if found is None else found[0]}")
            highest = max(highest, others + peak(found[1])) if found is not None else sys.maxsize
        memory = "does not fit" if highest == sys.maxsize else f"{highest / GIB:.1f}"
        write(f"| {stage} | {rest / GIB:.1f} | {memory} | {'; '.join(settings)} |")


def check_case(index: int, device: str) -> dict[str, float]:
    """Estimate and truth of one step of what :func:`checked` lists: bytes and seconds."""
    case, settings = checked(device)[index]
    half = torch.float32 if device == "cpu" else torch.float16
    before = _resident()
    prior = case.build(networks(device, half, torch.float32 if device == "cpu" else torch.bfloat16))
    distillation = replace(Distillation(prior), **settings)
    condition = condition_of(case, prior).map(lambda v: v.to(device))
    estimate = estimate_distillation(distillation, case.batch, condition=condition, probe=False)
    pictures = torch.rand(case.batch, prior.pictures, *prior.resolution, 3).to(device)
    views, generator = views_of(prior, case.batch), torch.Generator().manual_seed(0)

    def step() -> float:
        begin = time.perf_counter()
        distillation(pictures.requires_grad_(True), condition, 0.5, generator, views)
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    gc.collect()
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory counts from here
        step()
        measured = _resident("VmHWM") - before
    else:
        torch.cuda.reset_peak_memory_stats()
        step()
        free, total = torch.cuda.mem_get_info()
        measured = torch.cuda.max_memory_reserved() + total - free - torch.cuda.memory_reserved()
    # Between steps, so that other work on the machine slows both alike.
    seconds = step()
    probed = estimate_distillation(distillation, case.batch, condition=condition)
    seconds = min(seconds, step(), step())
    return {
        "memory": peak(estimate.parts), "measured memory": measured,
        "seconds": probed.seconds_per_step or 0.0, "measured seconds": seconds,
    }  # fmt: skip


def checked(device: str) -> tuple[tuple[Case, dict[str, int]], ...]:
    """What is measured on a device."""
    return MIDDLE if device == "cpu" else tuple((case, {}) for case in PUBLISHED)


def check(device: str, only: list[str]) -> None:
    """Estimates beside measurements, each in a process of its own."""
    write("| prior | settings | memory: estimate, measured (GB) | ratio | seconds: estimate, measured | ratio |")
    write("|" + "---|" * 6)
    for index, (case, settings) in enumerate(checked(device)):
        if only and case.name not in only:
            continue
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            found = process.submit(check_case, index, device).result()
        memory, seconds = (found["memory"], found["measured memory"]), (found["seconds"], found["measured seconds"])
        words = ", ".join(f"{k} {v}" for k, v in settings.items()) or "as it is"
        write(
            f"| {case.name} | {words} | {memory[0] / GIB:.2f}, {memory[1] / GIB:.2f} | {memory[0] / memory[1]:.2f} "
            f"| {seconds[0]:.3f}, {seconds[1]:.3f} | {seconds[0] / seconds[1]:.2f} |"
        )


def _resident(field: str = "VmRSS") -> int:
    """Bytes of this process that are in memory (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines() if sys.platform == "linux" else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def write(*lines: str) -> None:
    sys.stdout.write("".join(line + "\n" for line in lines))
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    if arguments.check:
        check(arguments.device, arguments.only)
    else:
        table(arguments.only)


if __name__ == "__main__":
    main()
