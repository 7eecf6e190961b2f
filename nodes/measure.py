"""6 Measure: how close pictures come to the truth."""

from __future__ import annotations

import json

import numpy as np
from comfy_api.latest import io, ui
from torch import Tensor

from ..core.files import InputError
from ..core.metrics import SCORES, on_white, score
from ..core.metrics.base import Footage, measure
from ..core.runs.session import resolve_device
from . import host


class Anchor4DScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DScore",
            display_name="Score Against Ground Truth",
            category="Anchor4D/6 Measure",
            description="Compares rendered frames with true ones of the same camera: sharpness of match, structure, outline "
            "and motion.",
            search_aliases=["metrics", "psnr", "ssim", "iou", "evaluate", "compare", "benchmark"],
            inputs=[
                io.Image.Input("images", tooltip="Rendered frames on white."),
                io.Image.Input("truth", tooltip="The true frames on white: as many, of the same size."),
                io.Mask.Input(
                    "masks", optional=True, tooltip="Where the rendered object is. Without it, whatever is not white."
                ),
                io.Mask.Input(
                    "truth_masks", optional=True, tooltip="Where the true object is. Without it, whatever is not white."
                ),
            ],
            outputs=[
                io.Float.Output(
                    "psnr",
                    tooltip="Likeness of the pictures in decibels, first frame aside. Higher = better; 30 and more is close.",
                ),
                io.Float.Output("ssim", tooltip="Likeness of structure, 0 to 1. Higher = better."),
                io.Float.Output("iou", tooltip="Overlap of the outlines, 0 to 1. Higher = better."),
                io.Float.Output(
                    "motion",
                    tooltip="Share of the true motion that is explained: 1 = all of it, 0 = as good as standing still.",
                ),
                io.Float.Output(
                    "frozen", tooltip="The psnr that standing still would get: a moving result should be above it."
                ),
                io.String.Output("report", tooltip="All numbers as text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, images: Tensor, truth: Tensor, masks: Tensor | None = None, truth_masks: Tensor | None = None
    ) -> io.NodeOutput:
        with host.work(cls):
            found = score(_pictures(truth, truth_masks), _pictures(images, masks))
            report = "\n".join(f"{name} {found[name]:.3f}" for name in SCORES)
            host.say(report)
            return io.NodeOutput(*(found[name] for name in SCORES), report, ui=ui.PreviewText(report))


def _pictures(images: Tensor, masks: Tensor | None) -> np.ndarray:  # (T, H, W, 3), (T, H, W) -> (T, H, W, 4)
    pictures = on_white(images[..., :3])
    if masks is not None:
        pictures[..., 3] = masks.cpu().numpy()
    return pictures


class Anchor4DMeasure(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DMeasure",
            display_name="Measure",
            category="Anchor4D/6 Measure",
            description="Measures frames by themselves, or against true frames, a text or a picture: every metric that can be "
            "measured with what is plugged in and the networks on this computer. What is left out is said, and what to get.",
            search_aliases=[
                "metrics",
                "lpips",
                "clip",
                "fvd",
                "fid",
                "ssim",
                "jitter",
                "flow",
                "consistency",
                "evaluate",
                "4d",
            ],
            inputs=[
                io.Image.Input("images", tooltip="Rendered frames on white; of several views, one view after another."),
                io.Image.Input(
                    "truth", optional=True, tooltip="The true frames on white, in the same order: as many, of the same size."
                ),
                io.Mask.Input("masks", optional=True, tooltip="Where the object is. Without it, whatever is not white."),
                io.Mask.Input(
                    "truth_masks", optional=True, tooltip="Where the true object is. Without it, whatever is not white."
                ),
                io.Image.Input("picture", optional=True, tooltip="A picture of the object on white, for clip-image."),
                io.String.Input("text", default="", multiline=True, tooltip="What the object is and does, for clip-text."),
                io.Int.Input("views", default=1, min=1, max=64, tooltip="How many views lie one after another in the frames."),
                io.String.Input(
                    "metrics",
                    default="",
                    tooltip="Names of what to measure, with spaces between: psnr lpips clip-f. Empty = all that can be.",
                ),
            ],
            outputs=[
                io.String.Output("report", tooltip="Every metric's mean over views, and what was left out and why."),
                io.String.Output("json", tooltip="All values by metric and view as JSON."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, images: Tensor, text: str, views: int, metrics: str, truth: Tensor | None = None, masks: Tensor | None = None,
        truth_masks: Tensor | None = None, picture: Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        with host.work(cls):
            footage = Footage(
                _views(_pictures(images, masks), views),
                {} if truth is None else _views(_pictures(truth, truth_masks), views),
                text,
                None if picture is None else on_white(picture[:1, ..., :3])[0],
                driving="",
                device=resolve_device("auto"),
            )
            names = metrics.replace(",", " ").split()
            found = measure(footage, names or None)
            report = found.table()
            host.say(report)
            return io.NodeOutput(report, json.dumps(found.values), ui=ui.PreviewText(report))


def _views(pictures: np.ndarray, count: int) -> dict[str, np.ndarray]:  # (V T, H, W, 4) -> V of (T, H, W, 4)
    if len(pictures) % count:
        raise InputError(f"views {count}: {len(pictures)} frames are no {count} views of one length, give the number of views")
    return {str(view): part for view, part in enumerate(np.split(pictures, count))}


NODES = [Anchor4DScore, Anchor4DMeasure]
