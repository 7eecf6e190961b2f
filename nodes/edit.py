"""5 View and export: scenes from splats, and edits of scenes: timing, place, parts, colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import Types, io

from ..core.files import InputError
from ..core.io import SPLAT_SUFFIXES
from ..core.io.sequence import open_scene
from ..core.scene import edit
from ..core.scene.edit import EASES, Placement
from ..core.scene.scene import Scene4D
from ..core.scene.sequence import scene_from_gaussians
from . import host, widgets
from .view import CATEGORY

#: Sockets for scenes and for splats that follow one another.
MOST = 50


def _motion() -> io.Input:
    return widgets.choice(
        "motion",
        ["auto", "smooth", "steps"],
        "What lies between two frames. smooth = the same splats on their way, for slow motion and new frame rates. "
        "steps = nothing, each frame has splats of its own. auto = found out from the splats.",
    )


def _number(name: str, default: float, low: float, high: float, step: float, tooltip: str, **more: Any) -> io.Input:
    return io.Float.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip, **more)


def _axes(name: str, reach: float, step: float, tooltip: str) -> list[io.Input]:
    return [_number(f"{name}_{axis}", 0.0, -reach, reach, step, tooltip.format(axis=axis.upper())) for axis in "xyz"]


def _output() -> io.Output:
    return host.Scene.Output("scene", tooltip="The edited scene. The one that came in stays as it is.")


def _told(scene: Scene4D, note: str = "") -> io.NodeOutput:
    """The scene, and a line about it in the node."""
    timing = f"{scene.frames} frames at {scene.fps:g} fps, {edit.duration(scene):.2f} s{', loops' if scene.loop else ''}"
    text = f"{len(scene.gaussians)} Gaussians, {'still' if scene.field is None else timing}"
    host.say(f"{text}\n{note}" if note else text)
    return io.NodeOutput(scene)


def _motion_note(scene: Scene4D) -> str:
    if scene.field is None:
        return ""
    return "motion: smooth" if scene.field.continuous else "motion: steps, each frame has splats of its own"


def _loop() -> io.Input:
    return widgets.switch("loop", False, "Whether the clip goes on from the last frame to the first.")


class Anchor4DSplatsToScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        splats = io.Splat.Input("splats", tooltip="Splats: one, or a batch with one a frame. The next socket's frames follow.")
        return io.Schema(
            node_id="Anchor4DSplatsToScene",
            display_name="Splats to Scene",
            category=CATEGORY,
            description="Makes a moving scene of ComfyUI's SPLAT: a batch with one splat a frame, or several splats one after "
            "the other.",
            search_aliases=[
                "splat batch to scene",
                "splat sequence",
                "splat to 4d",
                "animate splats",
                "frames to scene",
                "4dgs",
            ],
            inputs=[
                io.Autogrow.Input(
                    "splats",
                    template=io.Autogrow.TemplatePrefix(splats, prefix="splats_", min=1, max=MOST),
                    tooltip="Splats: one, or a batch with one a frame. What the next socket brings follows.",
                ),
                _number("fps", 12.0, 0.1, 240.0, 0.5, "Frames a second."),
                _loop(),
                _motion(),
            ],
            outputs=[host.Scene.Output("scene", tooltip="The scene.")],
        )

    @classmethod
    def execute(cls, splats: dict[str, Types.SPLAT], fps: float, loop: bool, motion: Any) -> io.NodeOutput:
        with host.work(cls):
            sets = [gaussians for batch in splats.values() if batch is not None for gaussians in host.sets_of(batch)]
            if not sets:
                raise InputError("splats: connect at least one")
            scene = scene_from_gaussians(sets, fps=fps, loop=loop, motion=motion)
            return _told(scene, _motion_note(scene))


class Anchor4DLoadSplats(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        output, given = Path(folder_paths.get_output_directory()), Path(folder_paths.get_input_directory())
        files = [f"{name} [output]" for name in splat_sources(output, output)] + splat_sources(given / "3d", given)
        return io.Schema(
            node_id="Anchor4DLoadSplats",
            display_name="Load Splats",
            category=CATEGORY,
            description="Loads splats of any program as a scene: one file, or a folder or .zip of numbered files, one a frame.",
            search_aliases=[
                "import ply",
                "ply sequence",
                "load splat",
                "load gaussian",
                "spz",
                "ksplat",
                "compressed ply",
                "4dgs",
            ],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[host.NONE, *files],
                    tooltip="A splat file (.ply, .spz, .splat, .ksplat, .sog), or a folder or .zip of them, in ComfyUI's "
                    "output folder or in input/3d. Press R after adding one.",
                ),
                io.String.Input(
                    "path",
                    default="",
                    tooltip="A splat file, folder or .zip anywhere on this computer. Used instead of the list above when not "
                    "empty." + host.TYPED_PATH,
                ),
                _number("fps", 0.0, 0.0, 240.0, 0.5, "Frames a second. 0 = what the sequence's manifest says, 12 without one."),
                widgets.choice(
                    "loop",
                    ["as saved", "yes", "no"],
                    "Whether the clip goes on from the last frame to the first. as saved = what the sequence's "
                    "manifest says, no without one.",
                ),
                _motion(),
                widgets.whole(
                    "frames",
                    0,
                    (0, 100000),
                    "Number of frames to keep, evenly spaced. 0 = all. Fewer = less memory: 100,000 splats with "
                    "plain colours take 6 MB a frame.",
                ),
                widgets.up(),
            ],
            outputs=[host.Scene.Output("scene", tooltip="The scene: still for one file.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None, path: str | None = None) -> bool | str:
        return host.valid_choice(file, path, "put splats into input/3d and choose them, or fill in path")

    @classmethod
    def fingerprint_inputs(cls, file: str, path: str, **others: Any) -> float:
        return host.changed(host.chosen_path(file, path))

    @classmethod
    def execute(
        cls,
        file: str,
        path: str = "",
        fps: float = 0.0,
        loop: str = "as saved",
        motion: Any = "auto",
        frames: int = 0,
        up: str = "y",
    ) -> io.NodeOutput:
        with host.work(cls):
            scene = open_scene(
                host.chosen_path(file, path),
                up=up,
                fps=fps or None,
                loop=None if loop == "as saved" else loop == "yes",
                motion=motion,
                frames=frames or None,
                progress=host.Report().count,
            )
            return _told(scene, _motion_note(scene))


def splat_sources(folder: Path, base: Path) -> list[str]:
    """Splat files, .zip files and folders with a manifest below a folder, as the host names them; not the latter's frames."""
    files = [Path(name) for name in host.listed(folder, [*SPLAT_SUFFIXES, ".zip"], base)]
    parents = [file.parent for file in files if file.suffix.lower() != ".zip"]
    sequences = {parent for parent in parents if (base / parent / "manifest.json").is_file()}
    return sorted({parent.as_posix() for parent in sequences} | {f.as_posix() for f in files if f.parent not in sequences})


class Anchor4DRetimeScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DRetimeScene",
            display_name="Retime Scene",
            category=CATEGORY,
            description="Changes the speed, frame rate or number of frames of a moving scene. In-between frames are computed "
            "from its motion, not blended from pictures.",
            search_aliases=["slow motion", "speed ramp", "frame rate", "fps", "interpolate frames", "time remap", "4d"],
            inputs=[
                widgets.scene(),
                _number("speed", 1.0, 0.01, 100.0, 0.05, "2 = twice as fast, 0.5 = half as fast. The frame rate stays."),
                _number("fps", 0.0, 0.0, 240.0, 0.5, "New frames a second. 0 = as before. The clip lasts as long."),
                widgets.whole(
                    "frames",
                    0,
                    (0, 10000),
                    "New number of frames. 0 = what speed and fps make. More frames in the same time, unless fps is set, too.",
                ),
                widgets.choice("curve", list(EASES), "How the motion gathers and loses speed over the clip.", default="steady"),
                io.String.Input(
                    "points",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip='A curve of your own in place of the one above: "time moment" pairs, 0 = start, 1 = end. '
                    '"0 0, 0.4 0.5, 0.6 0.5, 1 1" freezes the middle; "0 0, 0.5 1, 1 0" goes there and back.',
                ),
            ],
            outputs=[_output()],
        )

    @classmethod
    def execute(
        cls, scene: Scene4D | Types.SPLAT, speed: float, fps: float, frames: int, curve: str, points: str = ""
    ) -> io.NodeOutput:
        with host.work(cls):
            return _told(
                edit.retime(
                    host.scene_of(scene),
                    frames=frames or None,
                    fps=fps or None,
                    speed=None if speed == 1 else speed,
                    curve=_pairs(points) if points.strip() else curve,
                )
            )


def _pairs(text: str) -> list[tuple[float, float]]:
    """Pairs of numbers, "0 0, 0.5 1"."""
    try:
        pairs = [tuple(float(word) for word in part.split()) for part in text.split(",") if part.strip()]
        return [(time, moment) for time, moment in pairs]
    except ValueError:
        raise InputError(f'points {text!r}: write pairs of numbers, as in "0 0, 0.5 0.2, 1 1"') from None


class Anchor4DTrimScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DTrimScene",
            display_name="Trim Scene",
            category=CATEGORY,
            description="Keeps a part of a moving scene's clip, from one frame or second to another.",
            search_aliases=["cut clip", "shorten", "time range", "in and out point", "4d"],
            inputs=[
                widgets.scene(),
                io.DynamicCombo.Input(
                    "unit",
                    options=[
                        io.DynamicCombo.Option(
                            "frames",
                            [
                                widgets.whole("start", 0, (0, 100000), "First frame to keep, from 0."),
                                widgets.whole(
                                    "end",
                                    -1,
                                    (-1, 100000),
                                    "Last frame to keep. -1 = the clip's last. In a loop it may lie before the start.",
                                ),
                            ],
                        ),
                        io.DynamicCombo.Option(
                            "seconds",
                            [
                                _number("start", 0.0, 0.0, 10000.0, 0.05, "Where the part begins, in seconds."),
                                _number("end", 0.0, 0.0, 10000.0, 0.05, "Where it ends, in seconds. 0 = the clip's end."),
                            ],
                        ),
                    ],
                    tooltip="What start and end are given in. Seconds are rounded to frames.",
                ),
            ],
            outputs=[_output()],
        )

    @classmethod
    def execute(cls, scene: Scene4D | Types.SPLAT, unit: dict[str, Any]) -> io.NodeOutput:
        with host.work(cls):
            open_end = unit["end"] < 0 if unit["unit"] == "frames" else unit["end"] == 0
            end = None if open_end else unit["end"]
            return _told(edit.trim(host.scene_of(scene), unit["start"], end, unit["unit"]))


class Anchor4DLoopScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DLoopScene",
            display_name="Loop Scene",
            category=CATEGORY,
            description="Makes a clip loop without a jump, by fading its end into its start or by playing it there and back. "
            "Or plays it backwards.",
            search_aliases=["seamless loop", "ping pong", "boomerang", "reverse", "play backwards", "4d"],
            inputs=[
                widgets.scene(),
                io.DynamicCombo.Input(
                    "mode",
                    options=[
                        io.DynamicCombo.Option(
                            "close the loop",
                            [
                                widgets.whole(
                                    "overlap",
                                    0,
                                    (0, 10000),
                                    "Frames at the end that fade into those at the start. The loop is that much "
                                    "shorter. More = softer. 0 = a quarter of the clip.",
                                )
                            ],
                        ),
                        io.DynamicCombo.Option("ping-pong", []),
                        io.DynamicCombo.Option("reverse", []),
                    ],
                    tooltip="close the loop = the end fades into the start, for motion that nearly repeats (walking). "
                    "ping-pong = forwards, then backwards. reverse = backwards only.",
                ),
            ],
            outputs=[_output()],
        )

    @classmethod
    def execute(cls, scene: Scene4D | Types.SPLAT, mode: dict[str, Any]) -> io.NodeOutput:
        with host.work(cls):
            given = host.scene_of(scene)
            if mode["mode"] == "close the loop":
                return _told(edit.close_loop(given, mode["overlap"] or None), "it looped already" if given.loop else "")
            return _told(edit.ping_pong(given) if mode["mode"] == "ping-pong" else edit.reverse(given))


class Anchor4DTransformScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DTransformScene",
            display_name="Transform Scene",
            category=CATEGORY,
            description="Moves, turns and scales a scene, or carries it from one place to another while its clip plays.",
            search_aliases=["move splat", "rotate splat", "scale splat", "upside down", "flip", "fly in", "path", "4d"],
            inputs=[
                widgets.scene(),
                *_axes("translate", 1000.0, 0.01, "Moves along {axis}. An object is 1 unit long, +Y is up, +Z the front."),
                *_axes("rotate", 360.0, 1.0, "Turns about {axis} in degrees, counter-clockwise seen from its tip: first X, "
                "then Y, then Z. 180 about X puts splats that stand on their head upright."),
                _number("scale", 1.0, 0.001, 1000.0, 0.01, "Size: 2 = twice as large, about the origin."),
                io.DynamicCombo.Input(
                    "moving",
                    options=[
                        io.DynamicCombo.Option("no", []),
                        io.DynamicCombo.Option(
                            "to",
                            [
                                *_axes("to_translate", 1000.0, 0.01, "Where it is at the end of the clip, along {axis}."),
                                *_axes("to_rotate", 360.0, 1.0, "How it is turned about {axis} at the end, in degrees."),
                                _number("to_scale", 1.0, 0.001, 1000.0, 0.01, "Its size at the end of the clip."),
                            ],
                        ),
                    ],
                    tooltip="no = it stays where it was put. to = while the clip plays, it goes from there to a second place, "
                    "straight and turning the shorter way.",
                ),
            ],
            outputs=[_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, scene: Scene4D | Types.SPLAT, scale: float, moving: dict[str, Any], **values: float) -> io.NodeOutput:
        with host.work(cls):
            start = Placement(_vector(values, "translate"), _vector(values, "rotate"), scale)
            if moving["moving"] == "no":
                return _told(edit.transform(host.scene_of(scene), start))
            end = Placement(_vector(moving, "to_translate"), _vector(moving, "to_rotate"), moving["to_scale"])
            return _told(edit.follow(host.scene_of(scene), [(0.0, start), (1.0, end)]))


def _vector(values: dict[str, Any], name: str) -> list[float]:
    return [float(values[f"{name}_{axis}"]) for axis in "xyz"]


class Anchor4DCropScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DCropScene",
            display_name="Crop Scene",
            category=CATEGORY,
            description="Keeps only the Gaussians inside or outside of a box or a ball: removes floaters, the floor, a part.",
            search_aliases=["cut splat", "remove floaters", "bounding box", "delete part", "clean up", "4d"],
            inputs=[
                widgets.scene(),
                io.DynamicCombo.Input(
                    "shape",
                    options=[
                        io.DynamicCombo.Option(
                            "box",
                            [
                                *_axes("centre", 1000.0, 0.01, "The centre along {axis}. An object is 1 unit long, +Y is up."),
                                *[
                                    _number(f"size_{axis}", 1.2, 0.0, 2000.0, 0.01, f"The size along {axis.upper()}, in units.")
                                    for axis in "xyz"
                                ],
                            ],
                        ),
                        io.DynamicCombo.Option(
                            "ball",
                            [
                                *_axes("centre", 1000.0, 0.01, "The centre along {axis}. An object is 1 unit long, +Y is up."),
                                _number("radius", 0.6, 0.001, 1000.0, 0.01, "The ball's radius, in units."),
                            ],
                        ),
                    ],
                    tooltip="What to cut with.",
                ),
                widgets.choice("keep", ["inside", "outside"], "Which Gaussians stay, by their centres."),
                widgets.choice("when", ["at one moment", "at any frame"], "at one moment = where they are at the time below "
                "counts. at any frame = whatever is inside at any "
                    "frame counts as inside."),
                _number("time", 0.0, 0.0, 1.0, 0.01, "The moment that counts: 0 = start, 1 = end."),
            ],
            outputs=[_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, scene: Scene4D | Types.SPLAT, shape: dict[str, Any], keep: Any, when: str, time: float) -> io.NodeOutput:
        with host.work(cls):
            given, centre = host.scene_of(scene), _vector(shape, "centre")
            moment = time if when == "at one moment" else None
            if shape["shape"] == "ball":
                done = edit.crop(given, sphere=(centre, shape["radius"]), time=moment, keep=keep)
            else:
                half = [size / 2 for size in _vector(shape, "size")]
                box = [c - h for c, h in zip(centre, half)], [c + h for c, h in zip(centre, half)]
                done = edit.crop(given, box=box, time=moment, keep=keep)
            return _told(done, f"{len(given.gaussians) - len(done.gaussians)} left out")


class Anchor4DMergeScenes(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DMergeScenes",
            display_name="Merge Scenes",
            category=CATEGORY,
            description="Puts several scenes into one, each moving as it does. Place them with Transform Scene first.",
            search_aliases=["combine splats", "join scenes", "compose 4d", "several objects", "union splat", "4d"],
            inputs=[
                io.Autogrow.Input(
                    "scenes",
                    template=io.Autogrow.TemplatePrefix(widgets.scene(), prefix="scene_", min=2, max=MOST),
                    tooltip="Still or moving scenes, or splats.",
                ),
                widgets.choice(
                    "shorter",
                    ["repeat", "hold", "stretch"],
                    "What shorter clips do until the longest is over. repeat = start again. hold = stay at the last "
                    "frame. stretch = play slower, to last as long.",
                ),
                _number("fps", 0.0, 0.0, 240.0, 0.5, "Frames a second. 0 = the highest of all."),
                widgets.whole("frames", 0, (0, 10000), "Number of frames. 0 = until the longest clip is over."),
            ],
            outputs=[host.Scene.Output("scene", tooltip="All in one. Its camera is the first scene's.")],
        )

    @classmethod
    def execute(cls, scenes: dict[str, Scene4D | Types.SPLAT], shorter: Any, fps: float, frames: int) -> io.NodeOutput:
        with host.work(cls):
            given = [host.scene_of(scene) for scene in scenes.values() if scene is not None]
            return _told(edit.merge(given, timing=shorter, frames=frames or None, fps=fps or None))


class Anchor4DColorOpacity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        folded = {"optional": True, "advanced": True}
        return io.Schema(
            node_id="Anchor4DColorOpacity",
            display_name="Color and Opacity",
            category=CATEGORY,
            description="Corrects a scene's colours, fades it in or out over the clip, and removes faint Gaussians.",
            search_aliases=["brightness", "saturation", "hue", "tint", "color correct", "fade", "transparency", "4d"],
            inputs=[
                widgets.scene(),
                _number("brightness", 1.0, 0.0, 10.0, 0.01, "Factor on the colours. Higher = brighter, 0 = black."),
                _number("contrast", 1.0, 0.0, 10.0, 0.01, "Distance of the colours from mid-grey. Higher = more."),
                _number("saturation", 1.0, 0.0, 10.0, 0.01, "Strength of the colours. 0 = grey."),
                _number("hue", 0.0, -360.0, 360.0, 1.0, "Turns all colours around the colour wheel, in degrees."),
                _number("gamma", 1.0, 0.1, 10.0, 0.01, "Above 1 lifts the dark parts, below 1 lowers them."),
                io.Color.Input("tint", default="#ffffff", tooltip="Colour that all are multiplied with. White = none."),
                _number("opacity", 1.0, 0.0, 100.0, 0.01, "Factor on how opaque the Gaussians are. Below 1 = see-through."),
                _number(
                    "remove_below", 0.0, 0.0, 1.0, 0.005,
                    "Gaussians that are less opaque than this at every frame are removed. 0.02 cleans up fog. 0 = none.",
                ),
                _number("fade_in", 0.0, 0.0, 1000.0, 0.05, "Seconds in which it appears at the start.", **folded),
                _number("fade_out", 0.0, 0.0, 1000.0, 0.05, "Seconds in which it vanishes at the end.", **folded),
            ],
            outputs=[_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        scene: Scene4D | Types.SPLAT,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        gamma: float,
        tint: str,
        opacity: float,
        remove_below: float,
        fade_in: float = 0.0,
        fade_out: float = 0.0,
    ) -> io.NodeOutput:
        with host.work(cls):
            given = done = host.scene_of(scene)
            color = tuple(int(tint.lstrip("#")[i : i + 2], 16) / 255 for i in (0, 2, 4))
            settings = (brightness, contrast, saturation, hue, gamma, color)
            if settings != (1.0, 1.0, 1.0, 0.0, 1.0, (1.0, 1.0, 1.0)):
                done = edit.recolor(
                    done, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, gamma=gamma, tint=color
                )
            if opacity != 1 or remove_below or fade_in or fade_out:
                done = edit.opacity(done, edit.fade(done, opacity, fade_in, fade_out), threshold=remove_below)
            removed = len(given.gaussians) - len(done.gaussians)
            return _told(done, f"{removed} removed" if removed else "")


class Anchor4DPruneScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DPruneScene",
            display_name="Prune Scene",
            category=CATEGORY,
            description="Fewer Gaussians that look nearly the same: leaves out those that pictures from all around would miss "
            "least. Smaller files, faster play.",
            search_aliases=["reduce splats", "decimate", "simplify", "optimize splat", "smaller file", "compress", "4d"],
            inputs=[
                widgets.scene(),
                io.DynamicCombo.Input(
                    "keep",
                    options=[
                        io.DynamicCombo.Option(
                            "share", [_number("share", 0.5, 0.001, 1.0, 0.01, "Share of the Gaussians to keep: 0.5 = half.")]
                        ),
                        io.DynamicCombo.Option(
                            "count",
                            [widgets.whole("count", 10000, (1, 100_000_000), "Number of Gaussians to keep.")],
                        ),
                    ],
                    tooltip="How many Gaussians stay.",
                ),
                widgets.switch(
                    "cover", True, "Let those that stay grow over the gaps that the others leave. Off = they keep their size."
                ),
                *widgets.drawing(),
            ],
            outputs=[_output()],
        )

    @classmethod
    def execute(
        cls, scene: Scene4D | Types.SPLAT, keep: dict[str, Any], cover: bool, device: str = "auto", renderer: str = "auto"
    ) -> io.NodeOutput:
        with host.work(cls):
            given = host.scene_of(scene)
            done = edit.prune(
                given.to(host.device_for(device, renderer)),
                keep["count"] if keep["keep"] == "count" else None,
                fraction=keep["share"] if keep["keep"] == "share" else None,
                cover=cover,
                backend=renderer,
                progress=host.Report().count,
            ).to("cpu")
            return _told(done, f"of {len(given.gaussians)}")


NODES = [
    Anchor4DSplatsToScene,
    Anchor4DLoadSplats,
    Anchor4DRetimeScene,
    Anchor4DTrimScene,
    Anchor4DLoopScene,
    Anchor4DTransformScene,
    Anchor4DCropScene,
    Anchor4DMergeScenes,
    Anchor4DColorOpacity,
    Anchor4DPruneScene,
]
