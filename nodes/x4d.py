"""5 View and export: aligned quadruplets (text, image, video, 3D), saved to a set and loaded from one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..core.align import FocalAlignment
from ..core.files import InputError
from ..core.runs.x4d import MANIFEST, add, read_manifest
from ..core.runs.x4d_set import X4D
from ..core.video import DrivingVideo
from . import host, widgets
from .view import CATEGORY


class Anchor4DSaveQuadruplet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DSaveQuadruplet",
            display_name="Save Quadruplet",
            category=CATEGORY,
            description="Adds an aligned quadruplet, text, image, video and 3D with its 4D, to a set with a manifest, for "
            "training and for study (as Align4D's X4D). The text may come from any captioner.",
            search_aliases=["x4d", "dataset", "caption", "quadruplet", "training data", "export", "4d"],
            inputs=[
                io.String.Input(
                    "text", default="", multiline=True, tooltip="What the object is and does. Plug in any captioner's text."
                ),
                widgets.scene(tooltip="The fitted scene."),
                host.Video.Input(
                    "driving_video",
                    optional=True,
                    tooltip="The video that the scene was fitted to. Without it the scene's own front is drawn.",
                ),
                host.Alignment.Input(
                    "alignment", optional=True, tooltip="Brings the 3D. Without it the 3D is the scene at its beginning."
                ),
                io.String.Input(
                    "set_folder", default="x4d", tooltip="Folder of the set, below ComfyUI's output folder." + host.TYPED_PATH
                ),
                io.String.Input("name", default="object", tooltip="Begins the quadruplet's name; a number follows."),
                io.String.Input("licence", default="", tooltip="Under which licence the inputs are, for the manifest."),
                io.String.Input("credit", default="", optional=True, tooltip="Who made the inputs, for the manifest."),
                io.String.Input("source", default="", optional=True, tooltip="Where the inputs come from, for the manifest."),
                *widgets.drawing(),
            ],
            outputs=[
                io.String.Output("folder", tooltip="The set's folder, for Load Quadruplet and the command line."),
                io.String.Output("id", tooltip="The quadruplet's name in the set."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        text: str,
        scene: Any,
        set_folder: str,
        name: str,
        licence: str,
        driving_video: DrivingVideo | None = None,
        alignment: FocalAlignment | None = None,
        credit: str = "",
        source: str = "",
        device: str = "auto",
        renderer: str = "auto",
    ) -> io.NodeOutput:
        with host.work(cls):
            folder = _folder(set_folder)
            taken = {entry["id"] for entry in read_manifest(folder / MANIFEST)} if (folder / MANIFEST).is_file() else set()
            stem = re.sub(r"[^\w.-]+", "_", name.strip(), flags=re.ASCII).strip("._-")[:90] or "object"
            number = next(n for n in range(1, len(taken) + 2) if f"{stem}_{n:05}" not in taken)
            notes = {"licence": licence.strip(), "credit": credit.strip(), "source": source.strip()}
            entry = add(
                folder,
                f"{stem}_{number:05}",
                host.scene_of(scene).to(host.device_for(device, renderer)),
                None if driving_video is None else driving_video.to("cpu"),
                None if alignment is None else alignment.mesh.to("cpu"),
                text=text,
                notes=notes,
                backend=renderer,
            )
            measures = ", ".join(f"{key} {value:.3g}" for key, value in entry["measures"].items() if key in ("iou", "psnr"))
            host.say(f"{entry['id']}: {entry['text'][:60]}" + (f"\n{measures}" if measures else ""))
            return io.NodeOutput(str(folder), entry["id"])


class Anchor4DLoadQuadruplet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DLoadQuadruplet",
            display_name="Load Quadruplet",
            category=CATEGORY,
            description="Loads an aligned quadruplet of a set that Save Quadruplet or the command line (x4d build, x4d choose) "
            "wrote: its text, its video, its 3D and its 4D.",
            search_aliases=["x4d", "dataset", "quadruplet", "import", "4d"],
            inputs=[
                io.String.Input(
                    "set_folder",
                    default="x4d",
                    tooltip="Folder of the set, with manifest.jsonl; below ComfyUI's output folder unless the path is a whole "
                    "one." + host.TYPED_PATH,
                ),
                io.Int.Input(
                    "index", default=0, min=0, max=10_000_000, control_after_generate=True,
                    tooltip="Which one, counted from 0 in the manifest's order.",
                ),
                io.String.Input("id", default="", tooltip="Its name in the set. Used instead of the index when not empty."),
            ],
            outputs=[
                io.String.Output("text", tooltip="What the object is and does."),
                host.Video.Output("driving_video", tooltip="The clip for Focal Alignment and the fits."),
                host.Mesh.Output("mesh", tooltip="The 3D, facing front."),
                host.Scene.Output("scene", tooltip="The 4D."),
                io.Image.Output("images", tooltip="The clip on white."),
                io.Mask.Output("masks", tooltip="Where the object is in the clip."),
                io.String.Output("id", tooltip="The quadruplet's name in the set."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, set_folder: str | None, index: int | None, id: str | None) -> Any:
        if not set_folder:  # it comes over a link and is known later
            return [index, id]
        manifest = _folder(set_folder) / MANIFEST
        return [index, id, manifest.stat().st_mtime if manifest.is_file() else 0.0]

    @classmethod
    def execute(cls, set_folder: str, index: int, id: str = "") -> io.NodeOutput:
        with host.work(cls):
            found = X4D(_folder(set_folder))
            at = found.index(id.strip()) if id.strip() else index
            if not 0 <= at < len(found):
                raise InputError(f"index {at}: {found.folder} has {len(found)} quadruplets, choose 0 to {len(found) - 1}")
            video, entry = found.driving_video(at), found.entries[at]
            host.say(f"{entry['id']}, {at + 1} of {len(found)}: {entry['text'][:80]}")
            return io.NodeOutput(
                entry["text"], video, found.object(at), found.scene(at), video.composited(), video.masks, entry["id"]
            )


def _folder(text: str) -> Path:
    if not text.strip():
        raise InputError("set_folder: empty, name the folder of a set")
    return host.typed_path(text, Path(folder_paths.get_output_directory()))


NODES = [Anchor4DSaveQuadruplet, Anchor4DLoadQuadruplet]
