"""5 View and export: a scene as files for other programs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import Types, io
from comfy_execution.graph_utils import ExecutionBlocker

from ..core.io.export import FORMATS, Shot, export_scene
from ..core.scene.scene import Scene4D
from . import host, widgets
from .player import film_of
from .view import CATEGORY

log = logging.getLogger(__name__)

#: Inputs by the options that they are.
_INPUTS = {"film": "the video", "compare": "the scene to compare", "shot": "the trajectory"}
#: What the host's own 3D nodes open.
FILES_3D = {"glb", "usdz", "ply", "spz", "splat"}


def _moment() -> list[io.Input]:
    return [
        widgets.real("time", 0.0, (0.0, 1.0), "The moment: 0 = start, 1 = end.", step=0.01),
    ]


def _options(name: str) -> list[io.Input]:
    """What a format asks."""
    form = FORMATS[name]
    if form.kind == "film":
        return [
            widgets.real(
                "azimuth",
                0.0,
                (-360.0, 360.0),
                "Side to look from, in degrees: 0 = as the driving video. A trajectory wins over it.",
                step=1.0,
            ),
            widgets.whole("size", 512, (32, 4096), "Longer side of the picture, in pixels.", step=16),
            io.Combo.Input("background", options=list(form.backgrounds), tooltip="none = transparent."),
            widgets.whole("repeats", 1, (1, 100), "How often the clip plays."),
        ]
    if form.kind == "splats" and form.moment and "" in form.suffixes:
        sequence = [io.DynamicCombo.Option(choice, []) for choice in ("zip", "folder")]
        return [
            io.DynamicCombo.Input(
                "what",
                options=[*sequence, io.DynamicCombo.Option("one moment", _moment())],
                tooltip="All frames, one file each, in one .zip or in a folder; or one moment as a single file.",
            )
        ]
    if form.moment:
        return [
            io.DynamicCombo.Input(
                "what",
                options=[io.DynamicCombo.Option("all frames", []), io.DynamicCombo.Option("one moment", _moment())],
                tooltip="All frames, one after the other, or one moment.",
            )
        ]
    return []


class Anchor4DExportScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DExportScene",
            display_name="Export Scene",
            category=CATEGORY,
            description="Writes a moving scene for other programs: splats, a mesh that moves, a page with the player, films.",
            search_aliases=[
                "save splats", "ply sequence", "spz", "glb", "animated mesh", "blender", "usd", "html", "webm", "gif", "alpha",
                "supersplat", "unity", "4dgs", "4d",
            ],
            inputs=[
                widgets.scene(tooltip="The scene to export, or a batch of splats, one a frame."),
                io.DynamicCombo.Input(
                    "format",
                    options=[io.DynamicCombo.Option(name, _options(name)) for name in FORMATS if name != "scene"],
                    tooltip="\n".join(f"{name}: {form.text}." for name, form in FORMATS.items() if name != "scene"),
                ),
                widgets.whole(
                    "frames", 0, (0, 2000), "Frames that the clip is spread over. 0 = the scene's own.",
                    words=widgets.SCENES_OWN,
                ),
                widgets.prefix(),
                io.MultiType.Input(
                    "video",
                    types=[host.Video, io.Image],
                    optional=True,
                    tooltip="html, a4d: the driving video beside the object.",
                ),
                widgets.scene("compare", "html: a second scene, in a split view.", optional=True),
                host.Trajectory.Input(
                    "trajectory", optional=True, tooltip="Films: the way of the camera, in place of azimuth."
                ),
                *widgets.drawing(),
            ],
            outputs=[
                io.String.Output("path", tooltip="Where the file or folder is."),
                io.File3DAny.Output("model_3d", tooltip="The file for ComfyUI's 3D nodes: glb, or one moment of splats."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        scene: Any,
        format: dict[str, Any],
        frames: int,
        filename_prefix: str,
        video: Any = None,
        compare: Any = None,
        trajectory: Any = None,
        device: str = "auto",
        renderer: str = "auto",
    ) -> io.NodeOutput:
        with host.work(cls):
            name = format["format"]
            what = format.get("what") or {}
            folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(
                filename_prefix, folder_paths.get_output_directory()
            )
            target = Path(folder) / f"{stem}_{counter:05}_{_ending(name, what.get('what', ''))}"
            moving: Scene4D = host.scene_of(scene)
            shot, takes = None, FORMATS[name].takes
            for option, value in (("film", video), ("compare", compare), ("shot", trajectory)):
                if value is not None and option not in takes:
                    log.warning("Export Scene: %s is not used in the format %s", _INPUTS[option], name)
            if FORMATS[name].kind == "film":
                moving = moving.to(host.device_for(device, renderer))
                shot = Shot(
                    azimuths=(format["azimuth"],),
                    size=format["size"],
                    background=format["background"],
                    loops=format["repeats"],
                    trajectory=trajectory,
                )
            report = host.Report()
            export_scene(
                moving,
                target,
                name,
                frames=frames or None if "time" not in what else None,
                moment=what.get("time"),
                shot=shot,
                film=film_of(video) if "film" in takes else None,
                compare=host.scene_of(compare) if compare is not None and "compare" in takes else None,
                title=stem,
                backend=renderer,
                progress=report.count,
            )
            host.say(f"{Path(subfolder) / target.name}: {_size(target) / 2**20:.1f} MB")
            kind = target.suffix[1:]
            if kind in FILES_3D:
                return io.NodeOutput(str(target), Types.File3D(str(target), kind))
            return io.NodeOutput(str(target), ExecutionBlocker(f"Export Scene: {name} is not a file that 3D nodes open"))


def _ending(name: str, what: str) -> str:
    """What follows the number in a target's name."""
    suffixes = FORMATS[name].suffixes
    if what == "zip":
        return f"{name}.zip"
    if "" in suffixes and (what == "folder" or suffixes == ("",)):
        return name.replace("-", "_")
    return next(s for s in suffixes if s not in ("", ".zip"))


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


NODES = [Anchor4DExportScene]
