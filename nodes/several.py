"""Several objects of one clip: split it into a driving video each, and compose what was fitted to them."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import Input, io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..core.files import InputError
from ..core.io.clip import read_tensors
from ..core.io.tracks import masks_of, objects_of
from ..core.scene import compose
from ..core.scene.scene import Scene4D
from ..core.video import DrivingVideo
from . import host, prepare, widgets

#: Sockets for objects.
MOST = 4


class Anchor4DSplitObjects(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DSplitObjects",
            display_name="Split Objects",
            category=prepare.CATEGORY,
            description="Makes a driving video of each of several objects in one clip. What another object hides counts as "
            "unknown. Fit each alone, then put them together with Compose Objects.",
            search_aliases=[
                "several objects",
                "multiple objects",
                "segment",
                "label masks",
                "sam2 tracks",
                "two objects",
                "4d",
            ],
            inputs=[
                io.MultiType.Input(
                    "source",
                    types=[io.Image, io.Video],
                    tooltip="The clip: images or a video with several objects, filmed with a still camera.",
                ),
                io.Autogrow.Input(
                    "masks",
                    template=io.Autogrow.TemplatePrefix(
                        io.Mask.Input("mask", tooltip="One object, 1 = object: a mask for each frame, as a tracker gives it."),
                        prefix="mask_",
                        min=0,
                        max=MOST,
                    ),
                    tooltip="A mask for each object.",
                ),
                io.Image.Input(
                    "labels",
                    optional=True,
                    tooltip="Instead of masks: pictures in which each object has a colour of its own, on black. Without "
                    "either, the objects are the separate parts of what stands before the backdrop, from the left.",
                ),
                *prepare.clip_inputs("frames", "fps", "resolution", "background", "fill", "download_model"),
            ],
            outputs=[
                host.Video.Output(f"object_{k}", tooltip=f"The driving video of object {k}, as far as there is one.")
                for k in range(1, MOST + 1)
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        source: Tensor | Input.Video,
        masks: dict[str, Tensor] | None = None,
        labels: Tensor | None = None,
        frames: int = 0,
        fps: float = 0.0,
        resolution: int = 512,
        background: str = "auto",
        fill: float = 0.85,
        download_model: bool = False,
    ) -> io.NodeOutput:
        with host.work(cls):
            alpha = None
            if not isinstance(source, Tensor):
                clip = source.get_components()
                fps = fps or float(clip.frame_rate)
                alpha = getattr(clip, "alpha", None)
                source = clip.images
            images = host.owned(source)
            assert images is not None
            if alpha is not None and images.shape[-1] == 3:
                images = torch.cat([images, alpha.reshape(*alpha.shape[:3], 1).to(images)], -1)
            part: dict[str, Any] = {"fps": fps or None, "frames": frames or None}
            read = read_tensors(images, **part)
            given = [mask for mask in (masks or {}).values() if mask is not None]
            tracks = None
            if len(given) == 1:
                raise InputError("masks: one object; connect a mask for each of several, or use Prepare Driving Video")
            if given:
                each = [read_tensors(images, host.owned(mask), **part).masks for mask in given]
                tracks = torch.stack([mask for mask in each if mask is not None])
            elif labels is not None:
                shown = host.owned(labels)
                assert shown is not None
                picked = read_tensors(shown.expand(len(images), -1, -1, -1) if len(shown) == 1 else shown, **part).frames
                tracks = masks_of([(picked * 255).round().to(torch.uint8)], "labels")
            videos, _ = objects_of(
                read, tracks, resolution=resolution, fill=fill, background=background, download=download_model
            )
            if len(videos) > MOST:
                raise InputError(f"labels: {len(videos)} objects, and this node has {MOST} outputs; leave some out")
            lines = [
                f"object {k}: {video.resolution} px, hidden or unknown {unknown(video):.0%}"
                for k, video in enumerate(videos, 1)
            ]
            host.say("\n".join(lines))
            side = min(192, min(v.resolution for v in videos))
            shown = torch.cat([v.resized(side).composited() for v in videos], 2)
            missing = [
                ExecutionBlocker(f"Split Objects: the clip has {len(videos)} objects") for _ in range(MOST - len(videos))
            ]
            return io.NodeOutput(*videos, *missing, ui=host.film(shown, read.fps))


def unknown(video: DrivingVideo) -> float:
    """The share of a driving video that says nothing of its object."""
    return 0.0 if video.known is None else 1 - float(video.known.float().mean())


class Anchor4DComposeObjects(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DComposeObjects",
            display_name="Compose Objects",
            category="Anchor4D/3 Fit",
            description="Puts the fitted objects of one clip into one scene: where the clip shows them, as large, and one "
            "before the other. Align them with one camera: Focal Alignment's same_camera.",
            search_aliases=["several objects", "multiple objects", "combine scenes", "depth order", "merge objects", "4d"],
            inputs=[
                io.Autogrow.Input(
                    "scenes",
                    template=io.Autogrow.TemplatePrefix(
                        host.Scene.Input("scene", tooltip="One object's moving scene, from Motion Alignment."),
                        prefix="scene_",
                        min=2,
                        max=MOST,
                    ),
                    tooltip="The fitted objects, in the order of the driving videos.",
                ),
                io.Autogrow.Input(
                    "driving_videos",
                    template=io.Autogrow.TemplatePrefix(
                        host.Video.Input("driving_video", tooltip="That object's driving video, from Split Objects."),
                        prefix="driving_video_",
                        min=2,
                        max=MOST,
                    ),
                    tooltip="The driving video that each scene was fitted to.",
                ),
                widgets.choice(
                    "ground",
                    ["auto", "yes", "no"],
                    "Whether the objects stand on one ground, which tells how far each is. auto = where their feet are "
                    "steady and who covers whom agrees. no = equally far, but for who covers whom.",
                ),
                io.String.Input(
                    "sizes",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Longest sides of the objects beside each other, such as 1 0.5, which tell how far each is. "
                    "Empty = by the ground.",
                ),
            ],
            outputs=[host.Scene.Output("scene", tooltip="All objects in one scene, seen by the clip's camera.")],
        )

    @classmethod
    def execute(
        cls, scenes: dict[str, Scene4D], driving_videos: dict[str, DrivingVideo], ground: Any = "auto", sizes: str = ""
    ) -> io.NodeOutput:
        with host.work(cls):
            try:
                numbers = [float(word) for word in sizes.replace(",", " ").split()]
            except ValueError:
                raise InputError(f"sizes {sizes[:40]!r}: give a number for each object, such as 1 0.5") from None
            made = compose.compose(
                [scene for scene in scenes.values() if scene is not None],
                [video for video in driving_videos.values() if video is not None],
                ground=ground,
                sizes=numbers or None,
            )
            depths = ", ".join(f"{depth:.2f}" for depth in made.report["depths"])
            host.say(f"placed by {made.report['by']}: depths {depths}")
            return io.NodeOutput(made.scene)


NODES = [Anchor4DSplitObjects, Anchor4DComposeObjects]
