"""6 Measure: how close pictures come to the truth."""

from __future__ import annotations

import numpy as np
from comfy_api.latest import io, ui
from torch import Tensor

from ..core.metrics import METRICS, on_white, score
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
            report = "\n".join(f"{name} {found[name]:.3f}" for name in METRICS)
            host.say(report)
            return io.NodeOutput(*(found[name] for name in METRICS), report, ui=ui.PreviewText(report))


def _pictures(images: Tensor, masks: Tensor | None) -> np.ndarray:  # (T, H, W, 3), (T, H, W) -> (T, H, W, 4)
    pictures = on_white(images[..., :3])
    if masks is not None:
        pictures[..., 3] = masks.cpu().numpy()
    return pictures


NODES = [Anchor4DScore]
