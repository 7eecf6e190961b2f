"""4 Priors: diffusion models that a fit asks what the sides look like that the video does not show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
from comfy_api.latest import io

from ..core.priors import models
from ..core.priors.base import Prior
from ..core.priors.load import load_prior, precision_name
from . import host, host_prior, widgets

CATEGORY = "Anchor4D/4 Priors"
#: What a prior from disk may be for, in the order of the list.
ROLES = ("zero123", "multiview", "text-to-image", "text-to-video")
#: What the fourth number of Zero123's camera vector is, as the node says it.
CAMERAS = {"stable zero123": "polar", "zero123": "delta"}


def _output() -> io.Output:
    return host.Prior.Output("prior", tooltip="For the objectives that ask a prior, such as Reference Refinement.")


def _describe(prior: Prior) -> str:
    conditions = ", ".join(sorted(prior.conditions)) or "texts given with it"
    seen = f"{prior.pictures} pictures" if prior.pictures > 1 else "pictures"
    return f"{prior.name}: {seen} of {prior.resolution[0]} px, conditioned on {conditions}, guidance {prior.guidance:g}"


class Anchor4DLoadPrior(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DLoadPrior",
            display_name="Load Prior",
            category=CATEGORY,
            description="Loads a diffusion model that predicts how the object looks from sides that the video does not show: "
            "the "
            "bundled tiny one, or a Zero123, Zero123++, MVDream, ImageDream or Stable Diffusion folder.",
            search_aliases=["zero123", "mvdream", "imagedream", "diffusion", "sds", "score distillation", "novel view"],
            inputs=[
                widgets.choice(
                    "prior",
                    ["tiny", *dict.fromkeys(name for role in ROLES for name in models.folders_for(role))],
                    "tiny = comes with this pack: quick, 64 pixels, simple objects. The others are folders found in "
                    "ComfyUI's models/diffusers. Press R after adding one.",
                ),
                io.String.Input(
                    "path",
                    default="",
                    optional=True,
                    tooltip="A model's folder anywhere on this computer, or its name as models list shows it. Used instead of "
                    "the list above when not empty.",
                ),
                widgets.choice(
                    "precision",
                    ["auto", "fp32", "bf16", "fp16"],
                    "Numbers the network counts in. auto = half precision on a GPU, full on the CPU. fp32 = twice the "
                    "memory, for when a fit complains of infinite numbers.",
                    folded=True,
                ),
                widgets.switch(
                    "low_memory",
                    False,
                    "Ask the model with and without its condition one after the other: less memory, slower, the same result.",
                    folded=True,
                ),
                widgets.device(
                    "Where the model computes in fits. auto = where ComfyUI does, or the CPU where the fit is there. gpu:1 = "
                    "the second graphics card of several, which leaves the first one's memory to the fit.",
                    host_prior.PLACES,
                ),
            ],
            outputs=[_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, prior: str, path: str = "", **settings: Any) -> Any:
        source = host.model_source(prior, path)
        folder = models.find(source) or Path(source)
        return [source, host.changed(folder) if folder.exists() else 0.0]

    @classmethod
    def execute(
        cls, prior: str, path: str = "", precision: str = "auto", low_memory: bool = False, device: str = "auto"
    ) -> io.NodeOutput:
        with host.work(cls):
            place = host_prior.place(device)
            try:
                loaded = load_prior(
                    host.model_source(prior, path),
                    device=place or comfy.model_management.get_torch_device(),
                    precision=precision,  # pyright: ignore[reportArgumentType]
                )
            except ImportError as error:
                raise ValueError(
                    f"Python package {error.name} is not installed, install this pack's requirements.txt with ComfyUI's Python"
                ) from error
            # A fit takes it to the GPU and back, see host_prior.loaded.
            loaded = loaded.to("cpu").with_settings(one_pass=not low_memory, place=place)
            host.say(f"{_describe(loaded)}, {precision_name(loaded)}")
            return io.NodeOutput(loaded)


class Anchor4DPriorFromModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DPriorFromModel",
            display_name="Prior from Model",
            category=CATEGORY,
            description="Makes a prior of any diffusion model that ComfyUI loads, with its LoRAs and offloading: Stable "
            "Zero123, or a model that makes pictures or films from text.",
            search_aliases=["stable zero123", "sds", "score distillation", "sdxl", "wan", "ltx", "flux", "text to video"],
            inputs=[
                io.Model.Input("model", tooltip="From any of ComfyUI's loaders, LoRA nodes and all."),
                io.Vae.Input("vae", tooltip="The model's own VAE. Gradients go through it."),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="For Stable Zero123 and Zero123: the CLIP_VISION of Image Only Checkpoint Loader.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="For models with a text condition: CLIP Text Encode with what the object is.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="For models with a text condition: CLIP Text Encode with what it is not, or with nothing.",
                ),
                widgets.whole(
                    "size",
                    0,
                    (0, 2048),
                    "Side of the pictures that the model sees, in pixels. Lower = less memory, faster. 0 = the model's "
                    "usual: 256 for Zero123, 512 for most, 1024 for SDXL, 480 for films.",
                    step=8,
                    optional=True,
                ),
                widgets.whole(
                    "frames",
                    0,
                    (0, 257),
                    "Frames of a film that the model sees at once. 0 = the model's usual: 17 for video models, 1 for "
                    "others. 1 for picture models built like video models, such as Qwen-Image.",
                    optional=True,
                ),
                widgets.choice(
                    "camera",
                    list(CAMERAS),
                    "How a Zero123 model takes the camera. ComfyUI loads both kinds as Stable Zero123: choose "
                    "zero123 for Zero123 and Zero123-XL.",
                    default="stable zero123",
                    folded=True,
                ),
                widgets.switch(
                    "low_memory",
                    False,
                    "Ask the model with and without its condition one after the other: less memory, slower, the same result.",
                    folded=True,
                ),
            ],
            outputs=[_output()],
        )

    @classmethod
    def execute(
        cls, model: Any, vae: Any, clip_vision: Any = None, positive: Any = None, negative: Any = None, size: int = 0,
        frames: int = 0, camera: str = "stable zero123", low_memory: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        with host.work(cls):
            prior = host_prior.prior_of(
                model,
                vae,
                clip_vision,
                positive,
                negative,
                size,
                frames,
                CAMERAS[camera],  # pyright: ignore[reportArgumentType]
            ).with_settings(one_pass=not low_memory)
            host.say(_describe(prior))
            return io.NodeOutput(prior)


NODES = [Anchor4DLoadPrior, Anchor4DPriorFromModel]
