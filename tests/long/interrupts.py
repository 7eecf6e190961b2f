"""How long commands and nodes are silent, and how soon an interrupt ends them, on moderately large inputs.

    python tests/long/interrupts.py [--only fit-pla4d LoadMesh ...] [--seed 0] [--scale 1.0] [--comfyui DIR] [--out FILE]

Each case runs at least twice. The first run measures its silences: the spans between one sign of life and the next, from its
start to its end. A sign of life is what a command writes to its terminal, and a node's progress bar or line of text. The next
is interrupted at a random moment, a command by Ctrl-C (SIGINT), a node by the host's own flag, and what is measured is how long
it takes to end; one that ended before is run again. Of nodes, which look at that flag now and then, the longest span between
two looks in the first run is measured as well: no interrupt takes longer. Spans are counted in wall time and in processor time
of the process; the lesser of the two bounds what an idle machine would take. A silence may last 3 seconds, a reaction 2. Of
what lasts longer, the Python stack is in the results. Prints one line a case, then one of JSON; exit code 1 where a case falls
short.

Commands are processes of their own. Nodes run one after the other in a process as the host runs them, without its server: in
inference mode, by the interpreter of a ComfyUI. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: Seconds: of silence, and until an interrupt has ended a case.
SILENCE, REACTION = 3.0, 2.0
#: Runs of a case until an interrupt finds it at work: later ones are shorter than the first, which compiles kernels.
TRIES = 5
#: Nodes that only hold settings or turn them into others.
INSTANT = frozenset(
    f"Anchor4D{name}"
    for name in (
        "TextTo3DScores", "TextTo4DScores", "StayInPlace", "Togetherness", "FrontMatch", "MeshMatch", "FirstFrame", "Rigidity",
        "Smoothness", "ReferenceRefinement", "NovelViews", "MotionGeometry", "MotionPrior", "PLA4DObjectives3D",
        "PLA4DObjectives4D", "Align4DObjectives", "STAG4DObjectives", "AsynchronousOptimisation", "OrbitTrajectory",
        "SpiralTrajectory", "DollyZoomTrajectory", "KeyframeTrajectory",
    )
)  # fmt: skip
#: Nodes that need a model: their loops are those of the fits and samplers, tried by the tests of tests/host.
WITH_MODELS = frozenset(
    f"Anchor4D{name}"
    for name in (
        "TextToGaussians", "TextMotion", "ExtendMotion", "TextToImage", "TextToVideo", "ImageToVideo", "TextToMesh",
        "ImageToMesh", "MultiViewImages", "ImageToGaussians", "PriorFromModel",
    )
)  # fmt: skip


def commands(folder: Path) -> dict[str, list[str]]:
    """Command lines by the names of their cases."""
    clip, mesh, scene = str(folder / "case" / "front"), str(folder / "big.glb"), str(folder / "scene.safetensors")
    item, film = str(folder / "case" / "mesh.glb"), str(folder / "film.gif")
    made: dict[str, list[str]] = {"demo": ["demo"], "models-list": ["models", "list"], "doctor": ["doctor"]}
    for method in ("pla4d", "align4d", "dg4d"):
        made[f"fit-{method}"] = ["fit", "--method", method, "--preset", "draft", "--video", clip, "--object", item]
    made["fit-stag4d"] = ["fit", "--method", "stag4d", "--preset", "draft", "--video", clip]
    made["fit-large"] = ["fit", "--video", film, "--background", "key", "--object", mesh]
    made["fit-alone"] = ["fit", "--preset", "draft", "--video", film, "--background", "key"]
    made["fit-object-alone"] = ["fit", "--preset", "draft", "--object", item]
    made["render"] = ["render", scene, "--azimuths", "0", "90", "--size", "512"]
    for name, ending in EXPORTS.items():
        own = str(folder / "smooth.safetensors") if name in SMOOTH else scene
        made[f"export-{name}"] = ["export", own, "--format", name, "--out", str(folder / "out" / f"clip{ending}")]
    made["measure"] = ["measure", scene, str(folder / "case")]
    made["compare"] = ["compare", scene, scene]
    made["batch"] = ["batch", str(folder / "cases"), "--set", "preset=draft"]
    made["x4d-build"] = ["x4d", "build", str(folder / "cases"), "--set", "preset=draft"]
    systems = [part for name in ("a", "b") for part in ("--of", f"{name}={folder / 'study' / name}")]
    made["study-make"] = ["study", "make", *systems]
    made["study-run"] = ["study", "run", "pla4d-modules", "--cases", str(folder / "cases")]
    made["bench"] = ["bench", "--cases", str(folder / "cases"), "--preset", "draft"]
    for name, argv in made.items():
        if argv[0] not in ("models", "export"):
            ending = {"compare": ".html", "measure": ".json", "study-make": ".html"}.get(name, "")
            argv += ["--out", str(folder / "out" / f"{name}{ending}")]
    return made


#: Every format, with what its path ends with.
EXPORTS = {
    "ply": ".zip", "compressed-ply": ".zip", "spz": ".zip", "sog": ".zip", "splat": ".zip", "glb": ".glb",
    "glb-splats": ".glb", "glb-spz": ".glb", "glb-skinned": ".glb", "bvh": ".bvh", "tsog": ".tsog", "ftgs": ".ply",
    "usd": ".usdc", "4dgs": ".4dgs", "html": ".html", "a4d": ".a4d", "scene": ".safetensors",
    "mp4": ".mp4", "webm": ".webm", "gif": ".gif", "webp": ".webp", "apng": ".apng", "png": "",
}  # fmt: skip


#: Formats that want a scene whose field knows every moment.
SMOOTH = ("tsog", "ftgs")


def prepare(folder: Path, scale: float) -> None:
    """The inputs: a clip, films, a large mesh in several formats, splats, a scene."""
    import torch
    from PIL import Image

    from anchor4d.core.deformation import FIELDS
    from anchor4d.core.io import write_mp4, write_splat_sequence
    from anchor4d.core.io.meshes import write_glb
    from anchor4d.core.mesh import Mesh
    from anchor4d.core.runs.sample import sample_scene, write_sample
    from anchor4d.core.runs.x4d import add
    from anchor4d.core.scene.scene import Scene4D

    frames, size = max(round(24 * scale), 4), max(round(384 * scale), 64)
    write_sample(folder / "case", frames, size)
    write_sample(folder / "cases" / "one", frames, max(size // 2, 64))
    pictures = [Image.open(path).convert("RGBA") for path in sorted((folder / "case" / "front").glob("*.png"))]
    white = [Image.alpha_composite(Image.new("RGBA", p.size, "white"), p).convert("RGB") for p in pictures]
    film = [white[k % frames] for k in range(round(200 * scale))]
    film[0].save(folder / "film.gif", save_all=True, append_images=film[1:], duration=40, loop=0)
    import numpy as np

    write_mp4(folder / "film.mp4", np.stack([np.asarray(p) for p in film]), 25)
    for name in ("a", "b"):
        (folder / "study" / name / "one").mkdir(parents=True)
        shutil.copy(folder / "film.mp4", folder / "study" / name / "one" / "preview.mp4")
    walk = sample_scene(max(round(60_000 * scale), 200), frames)
    walk.save(folder / "scene.safetensors")
    add(folder / "set", "walk", walk, text="a walk")
    smooth = FIELDS["hexplane"].build(walk)  # formats of Gaussians with lives and speeds want a field that knows every moment
    Scene4D(walk.gaussians, smooth, frames=frames, fps=walk.fps).save(folder / "smooth.safetensors")
    write_splat_sequence(folder / "splats", sample_scene(max(round(80_000 * scale), 200), frames))
    n = max(round(400 * scale**0.5), 20)  # a bumpy ball of 2 n^2 faces, textured
    u, v = (x.flatten() for x in torch.meshgrid(torch.arange(n + 1) / n, torch.arange(n + 1) / n, indexing="ij"))
    angle, height = 2 * torch.pi * u, torch.pi * v
    radius = 0.4 + 0.05 * (7 * angle).sin() * (5 * height).sin()
    points = torch.stack([angle.sin() * height.sin(), height.cos(), angle.cos() * height.sin()], 1) * radius[:, None]
    i = (torch.arange(n)[:, None] * (n + 1) + torch.arange(n)).flatten()
    faces = torch.cat([torch.stack([i, i + 1, i + n + 1], 1), torch.stack([i + 1, i + n + 2, i + n + 1], 1)])
    texture = torch.rand(1024, 1024, 4, generator=torch.Generator().manual_seed(0))
    texture[..., 3] = 1
    write_glb(folder / "big.glb", Mesh(points.float(), faces, uvs=torch.stack([u, v], 1).float(), textures=(texture,)))
    import trimesh

    for ending in ("obj", "stl", "ply"):
        trimesh.Trimesh(points.numpy(), faces.numpy(), process=False).export(folder / f"big.{ending}")


# Nodes, in the host's process


def node_cases(pack: Any, folder: Path) -> dict[str, Callable[[], Any]]:
    """Every node that takes time, by its class's name; called, it prepares its inputs and returns what is to be measured."""
    import numpy as np
    import torch
    from PIL import Image

    nodes = {node.__name__: node for node in pack}
    clip_settings = {"frames": 0, "fps": 0.0, "resolution": 512, "background": "auto"}

    def run(name: str, /, **inputs: Any) -> Any:
        """A node's outputs; widgets that are not given stand as the graph shows them."""
        node = nodes[f"Anchor4D{name}"]
        shown = {
            widget.id: widget.default for widget in node.define_schema().inputs if getattr(widget, "default", None) is not None
        }
        return node.execute(**shown | inputs).args

    def clip(resolution: int = 256) -> Any:
        settings = clip_settings | {"resolution": resolution}
        return run("LoadVideo", video="", path=str(folder / "case" / "front"), **settings)[0]

    def mesh(name: str = "case/mesh.glb") -> Any:
        return run("LoadMesh", mesh="none", path=str(folder / name))[0]

    def scene(name: str = "scene") -> Any:
        return run("LoadScene", file="none", path=str(folder / f"{name}.safetensors"))[0]

    def splats() -> Any:
        return run("SceneToSplats", scene=scene(), frames=4)[0]

    def pictures() -> Any:
        paths = sorted((folder / "case" / "front").glob("*.png"))
        return torch.stack([torch.from_numpy(np.asarray(Image.open(p).convert("RGBA"), dtype=np.float32) / 255) for p in paths])

    front = {"front": "degrees", "yaw": 0.0}

    def aligned(video: Any) -> Any:
        return run("FocalAlignment", driving_video=video, mesh=mesh(), method="robust", front=front)[0]

    cases: dict[str, Callable[[], Any]] = {}

    def case(name: str, node: str, make: Callable[[], dict[str, Any]]) -> None:
        def prepared() -> Callable[[], Any]:
            inputs = make()
            return lambda: run(node, **inputs)

        cases[name] = prepared

    def with_clip(make: Callable[[Any], dict[str, Any]], resolution: int = 256) -> Callable[[], dict[str, Any]]:
        return lambda: make(clip(resolution))

    for ending in ("gif", "mp4"):
        case(
            f"LoadVideo-{ending}", "LoadVideo",
            lambda ending=ending: {"video": "", "path": str(folder / f"film.{ending}"), **clip_settings},
        )  # fmt: skip
    case("PrepareVideo", "PrepareVideo", lambda: {"source": pictures()[..., :3], "mask": pictures()[..., 3], **clip_settings})
    for ending in ("glb", "obj", "stl", "ply"):
        name = f"big.{ending}"
        case(f"LoadMesh-{ending}", "LoadMesh", lambda name=name: {"mesh": "none", "path": str(folder / name)})
    case("ConvertMesh", "ConvertMesh", lambda: {"mesh": _file3d(folder / "big.glb")})
    case("ConvertSplats", "ConvertSplats", lambda: {"splat": splats()})
    view = {"azimuth": 30.0, "elevation": 10.0, "distance": 2.0, "field_of_view": 40.0, "size": 1024}
    case("RenderObject", "RenderObject", lambda: {"mesh": mesh("big.glb"), **view})
    case("Sample", "Sample", lambda: {"frames": 32, "size": 512})
    for name in ("glb", "stl"):
        case(
            f"FocalAlignment-{name}", "FocalAlignment",
            with_clip(lambda c, n=name: {"driving_video": c, "mesh": mesh(f"big.{n}"), "method": "robust",
                      "front": {"front": "auto"}}, 512),
        )  # fmt: skip
    case(
        "FocalAlignment-literal", "FocalAlignment",
        with_clip(lambda c: {"driving_video": c, "mesh": mesh("big.glb"), "method": "literal", "front": front}, 512),
    )  # fmt: skip
    case("FocalPerFrame", "FocalPerFrame", with_clip(lambda c: {"driving_video": c, "alignment": aligned(c)}, 512))
    lens = {"distance": 2.0, "field_of_view": 40.0, "elevation": 0.0}
    case(
        "FixedCamera", "FixedCamera",
        with_clip(lambda c: {"driving_video": c, "mesh": mesh("big.glb"), **lens, "front": {"front": "auto"}}, 512),
    )  # fmt: skip
    case(
        "ObjectDistance", "ObjectDistance",
        with_clip(lambda c: {"driving_video": c, "alignment": aligned(c), "method": "robust", "front": {"front": "auto"}}),
    )  # fmt: skip
    prior = {"prior": "tiny", "path": "", "precision": "auto", "low_memory": False}
    case("LoadPrior", "LoadPrior", lambda: prior)
    case(
        "ModelDistance", "ModelDistance",
        with_clip(lambda c: {"driving_video": c, "alignment": aligned(c), "prior": run("LoadPrior", **prior)[0],
                  "meaning": "delta", "seed": 0}),
    )  # fmt: skip

    def fitted(video: Any) -> Any:
        terms = run("PLA4DObjectives3D", preset="draft")[0]
        return {"driving_video": video, "alignment": aligned(video), "preset": "draft", "seed": 0, "objectives": terms}

    case(
        "DepthSignal", "DepthSignal",
        with_clip(lambda c: {"depth": pictures()[..., 3:].expand(-1, -1, -1, 3), "driving_video": c, "alignment": aligned(c),
                  "weight": 1.0, "kind": "auto", "span": "frame"}, 512),
    )  # fmt: skip
    case("TrackSignal", "TrackSignal", with_clip(lambda c: {"driving_video": c, "weight": 1.0}, 512))  # needs OpenCV
    side = {"azimuth": 30.0, "search": True, "weight": 1.0}
    case(
        "SideView", "SideView",
        with_clip(lambda c: {"driving_video": c, "side_video": c, "alignment": aligned(c), **side}),
    )  # fmt: skip
    case("FitGaussians", "FitGaussians", with_clip(fitted, 512))

    def moved(video: Any) -> Any:
        still = run("FitGaussians", **fitted(video) | {"steps": 1})[0]
        terms = run("PLA4DObjectives4D", preset="draft", prior=run("LoadPrior", **prior)[0])[0]
        more = {"preset": "draft", "field": "preset", "seed": 0, "objectives": terms}
        return {"driving_video": video, "scene": still, **more}

    case("MotionAlignment", "MotionAlignment", with_clip(moved, 512))
    case("MotionPreview", "MotionPreview", with_clip(lambda c: {"driving_video": c, "alignment": aligned(c)}, 512))
    case("StartWithoutObject", "StartWithoutObject", with_clip(lambda c: {"driving_video": c, "points": 50_000}))
    case("InflateObject", "InflateObject", with_clip(lambda c: {"driving_video": c}, 512))
    case("Measure", "Measure", lambda: {"images": pictures()[..., :3], "truth": pictures()[..., :3]})
    case("Score", "Score", lambda: {"images": pictures()[..., :3], "truth": pictures()[..., :3]})
    shown = {"frames": 0, "size": 512, "background": "as shown"}
    case("PlayScene", "PlayScene", lambda: {"scene": scene(), **shown, "video": pictures()[..., :3]})
    shot = {"shot": {"shot": "moving", "azimuth": 0.0, "sweep": 360.0, "repeats": 1, "frames": 0}, "framing": "object"}
    drawn = {**shot, "size": 768, "background": "white", "elevation": 0.0, "maps": True}
    case("RenderScene", "RenderScene", lambda: {"scene": scene(), **drawn})
    quadruplet = {"text": "a walk", "set_folder": str(folder / "saved"), "name": "walk", "licence": ""}
    case("SaveQuadruplet", "SaveQuadruplet", lambda: {"scene": scene(), **quadruplet})
    case("LoadQuadruplet", "LoadQuadruplet", lambda: {"set_folder": str(folder / "set"), "index": 0, "id": ""})
    case("SaveScene", "SaveScene", lambda: {"scene": scene(), "filename_prefix": "s"})
    case("LoadScene", "LoadScene", lambda: {"file": "none", "path": str(folder / "scene.safetensors")})
    case("SceneAtTime", "SceneAtTime", lambda: {"scene": scene(), "time": 0.5})
    case("SceneToMesh", "SceneToMesh", lambda: {"scene": scene(), "time": 0.5})

    def halves() -> dict[str, Any]:
        masks = pictures()[..., 3]
        left = torch.arange(masks.shape[-1]) < masks.shape[-1] // 2
        return {"a": masks * left, "b": masks * ~left}

    case("SplitObjects", "SplitObjects", lambda: {"source": pictures()[..., :3], "masks": halves()})

    def composed() -> dict[str, Any]:
        videos = run("SplitObjects", source=pictures()[..., :3], masks=halves())[:2]
        first = run("FocalAlignment", driving_video=videos[0], mesh=mesh(), method="robust", front=front)[0]
        settings = {"mesh": mesh(), "method": "robust", "front": front, "same_camera": first}
        both = [first, run("FocalAlignment", driving_video=videos[1], **settings)[0]]
        scenes = [
            run("FitGaussians", driving_video=video, alignment=seen, preset="draft", seed=0, steps=1,
                objectives=run("PLA4DObjectives3D", preset="draft")[0])[0]
            for video, seen in zip(videos, both, strict=True)
        ]  # fmt: skip
        return {"scenes": dict(zip("ab", scenes)), "driving_videos": dict(zip("ab", videos))}

    case("ComposeObjects", "ComposeObjects", composed)
    case("SceneToSplats", "SceneToSplats", lambda: {"scene": scene(), "frames": 60})
    case("ExportPLY", "ExportPLY", lambda: {"scene": scene(), "filename_prefix": "e", "frames": 60})
    for name in EXPORTS:
        options: dict[str, Any] = {"format": name, "azimuth": 0.0, "size": 512, "background": "white", "repeats": 1}
        options |= {"what": {"what": "zip"}} if EXPORTS[name] == ".zip" else {}
        if name != "scene":
            own = "smooth" if name in SMOOTH else "scene"
            asked = {"format": options, "frames": 0, "filename_prefix": "e"}
            case(f"ExportScene-{name}", "ExportScene", lambda own=own, asked=asked: {"scene": scene(own), **asked})
    loaded = {"file": "none", "path": str(folder / "splats")}
    case("LoadSplats", "LoadSplats", lambda: loaded)
    case("SplatsToScene", "SplatsToScene", lambda: {"splats": {"a": splats()}, "fps": 12.0, "loop": False, "motion": "auto"})
    retimed = {"speed": 0.5, "fps": 0.0, "frames": 0, "curve": "steady"}
    case("RetimeScene", "RetimeScene", lambda: {"scene": scene(), **retimed})
    case("TrimScene", "TrimScene", lambda: {"scene": scene(), "unit": {"unit": "seconds", "start": 0.0, "end": 0.5}})
    case("LoopScene", "LoopScene", lambda: {"scene": scene(), "mode": {"mode": "ping-pong"}})
    axes = {f"{name}_{axis}": 0.0 for name in ("translate", "rotate") for axis in "xyz"}
    led = {"moving": "to", "to_scale": 2.0, **{f"to_{name}": 0.1 for name in axes}}
    case("TransformScene", "TransformScene", lambda: {"scene": scene(), **axes, "scale": 1.0, "moving": led})
    ball = {"shape": "ball", "radius": 0.3, **{f"centre_{axis}": 0.0 for axis in "xyz"}}
    cropped = {"shape": ball, "keep": "inside", "when": "at any frame", "time": 0.0}
    case("CropScene", "CropScene", lambda: {"scene": scene(), **cropped})
    merged = {"shorter": "repeat", "fps": 0.0, "frames": 0}
    case("MergeScenes", "MergeScenes", lambda: {"scenes": {"a": scene(), "b": scene()}, **merged})
    colour = {"brightness": 1.1, "contrast": 1.0, "saturation": 0.5, "hue": 0.0, "gamma": 1.0, "tint": "#ffffff"}
    case("ColorOpacity", "ColorOpacity", lambda: {"scene": scene(), **colour, "opacity": 0.5, "remove_below": 0.0})
    pruned = {"keep": {"keep": "count", "count": 20_000}, "cover": True}
    case("PruneScene", "PruneScene", lambda: {"scene": scene(), **pruned})

    def anchors(video: Any) -> dict[str, Any]:
        start = run("StartWithoutObject", driving_video=video, points=2000)[0]
        model = run("LoadPrior", **prior)[0]
        return {"driving_video": video, "alignment": start, "prior": model, "steps": 10, "guidance": 0.0, "seed": 0}

    case("TemporalAnchors", "TemporalAnchors", with_clip(anchors))
    return cases


def _file3d(path: Path) -> Any:
    from comfy_api.latest import Types

    return Types.File3D(str(path), path.suffix[1:])


def start_host(comfyui: Path, folder: Path) -> Any:
    """The host's modules without its server, and the pack's nodes."""
    import asyncio
    import importlib.util

    sys.path.insert(0, str(comfyui))
    for name in ("input/3d", "output", "temp", "user", "models"):
        (folder / "host" / name).mkdir(parents=True, exist_ok=True)
    sys.argv[1:] = ["--cpu", "--base-directory", str(folder / "host")]
    import comfy.options

    comfy.options.enable_args_parsing()
    import server  # noqa: F401  # before what needs it

    spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["pack"])

    async def nodes() -> Any:
        return await (await sys.modules["pack"].comfy_entrypoint()).get_node_list()

    return asyncio.run(nodes())


@dataclass
class Span:
    """Seconds of wall and of processor time, what was last said before, and the stack where it was long."""

    wall: float = 0.0
    cpu: float = 0.0
    after: str = ""
    stack: list[str] = field(default_factory=list)

    @property
    def least(self) -> float:
        return min(self.wall, self.cpu)


class Checks:
    """The spans between one call and the next, the longest with its stack; from a thread, since the main one may be busy."""

    def __init__(self, limit: float) -> None:
        self.limit, self.worst, self.stack, self.main = limit, Span(), list[str](), threading.main_thread().ident
        self.last, self.ended = (time.monotonic(), time.process_time()), threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self.ended.wait(0.1):
            if not self.stack and self._since().least > 0.8 * self.limit and self.main is not None:
                frame = sys._current_frames().get(self.main)
                self.stack = [line.strip() for line in traceback.format_stack(frame)[-8:]]

    def _since(self) -> Span:
        return Span(round(time.monotonic() - self.last[0], 2), round(time.process_time() - self.last[1], 2))

    def __call__(self, *_: Any, **__: Any) -> None:
        since = self._since()
        if since.least > self.worst.least:
            self.worst = Span(since.wall, since.cpu, stack=self.stack)
        self.last, self.stack = (time.monotonic(), time.process_time()), []

    def end(self) -> Span:
        self()
        self.ended.set()
        return self.worst


def run_nodes(names: list[str], folder: Path, comfyui: Path, seed: int) -> int:
    """Nodes in this process, each at least twice: a line of JSON each on standard output."""
    pack = start_host(comfyui, folder)
    import comfy.model_management as management
    import comfy.utils
    import torch
    from pack.nodes import host  # pyright: ignore[reportMissingImports]

    draw, check = random.Random(seed), management.throw_exception_if_processing_interrupted
    output, sys.stdout = sys.stdout, sys.stderr
    for name in names:
        row: dict[str, Any] = {"case": name, "failed": "", "reaction": None}
        with torch.inference_mode():
            try:
                work = node_cases(pack, folder)[name]()
                life, checks = Checks(SILENCE), Checks(REACTION)

                def checked(checks: Checks = checks) -> None:
                    checks()
                    check()

                comfy.utils.set_progress_bar_global_hook(life)
                host._send = life
                management.throw_exception_if_processing_interrupted = checked
                began = time.monotonic()
                work()
                row |= {"seconds": round(time.monotonic() - began, 2), "silence": asdict(life.end())}
                row |= {"unchecked": asdict(checks.end())}
                management.throw_exception_if_processing_interrupted = check
                seconds = row["seconds"]
                for _ in range(TRIES):
                    moment = draw.uniform(0.05, 0.95) * seconds
                    asked: list[tuple[float, float]] = []

                    def interrupt(asked: list[tuple[float, float]] = asked) -> None:
                        management.interrupt_current_processing(True)
                        asked.append((time.monotonic(), time.process_time()))

                    timer, began = threading.Timer(moment, interrupt), time.monotonic()
                    timer.start()
                    with contextlib.suppress(management.InterruptProcessingException):
                        work()
                    ended = (time.monotonic(), time.process_time())
                    timer.cancel()
                    timer.join()
                    management.interrupt_current_processing(False)
                    seconds = ended[0] - began
                    if asked and asked[0] < ended:
                        row["interrupted_at"] = round(moment, 2)
                        row["reaction"] = asdict(Span(*(round(max(e - a, 0), 2) for e, a in zip(ended, asked[0]))))
                        break
                else:
                    row["failed"] = "it ended before every interrupt"
            except Exception as error:
                row["failed"] = f"{type(error).__name__}: {error}"[:300]
            finally:
                management.throw_exception_if_processing_interrupted = check
                management.interrupt_current_processing(False)
        print(json.dumps(row), file=output, flush=True)
    return 0


def run_command(argv: list[str]) -> int:
    from anchor4d import cli

    sys.argv[1:] = argv
    try:
        return cli.program()
    except KeyboardInterrupt:  # as __main__.py
        return cli.INTERRUPTED


# Measuring


@dataclass
class Watched:
    """What became of one run of a case."""

    code: int | None = None
    seconds: float = 0.0
    silence: Span = field(default_factory=Span)
    reaction: Span | None = None
    said: str = ""


def processor_seconds(process: int) -> float:
    """Of a process and its threads so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watch(argv: list[str], folder: Path, interrupt_at: float | None, limit: float) -> Watched:
    """One run of a command on a terminal of its own, interrupted so many seconds behind its start or not at all."""
    master, slave = pty.openpty()
    stacks = folder / "stacks"
    stacks.unlink(missing_ok=True)
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "ANCHOR4D_STACKS": str(stacks)}
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=slave, cwd=folder, env=environment, start_new_session=True)
    os.close(slave)
    heard: list[bytes] = []
    lock = threading.Lock()

    def listen() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(master, 4096):
                with lock:
                    heard.append(data)

    threading.Thread(target=listen, daemon=True).start()
    found, began, cpu, killed = Watched(), time.monotonic(), 0.0, False
    last, asked, said, stack = (began, 0.0), None, "", list[str]()
    while True:
        code, now = child.poll(), time.monotonic()
        with contextlib.suppress(OSError):  # it has ended by now
            cpu = processor_seconds(child.pid) if code is None else cpu
        with lock:
            data, heard[:] = b"".join(heard), []
        if data or code is not None:
            silent = Span(round(now - last[0], 2), round(cpu - last[1], 2), said, stack)
            if asked is None and not killed and silent.least > found.silence.least:
                found.silence = silent
            text = data.decode(errors="replace").replace("\r", "\n").strip().splitlines()
            last, said = (now, cpu), text[-1].strip()[:80] if text else said
            found.said = (found.said + "\n".join(text) + "\n")[-1500:]
            stack = [] if asked is None else stack
        if code is not None:
            found.code, found.seconds = code, round(now - began, 2)
            if asked:
                found.reaction = Span(round(now - asked[0], 2), round(cpu - asked[1], 2), said, stack)
            break
        since, allowed = (last, SILENCE) if asked is None else (asked, REACTION)
        if not stack and min(now - since[0], cpu - since[1]) > 0.8 * allowed:
            child.send_signal(signal.SIGUSR1)
            time.sleep(0.2)
            stack = stacks.read_text(errors="replace").strip().splitlines()[-14:] if stacks.exists() else []
        if asked is None and interrupt_at is not None and now - began >= interrupt_at:
            asked, stack = (now, cpu), []
            child.send_signal(signal.SIGINT)
        if not killed and (now - began > limit or (asked and now - asked[0] > 60)):
            killed = True  # long enough: what it was silent for is known
            os.killpg(child.pid, signal.SIGKILL)
        time.sleep(0.01)
    os.close(master)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="CASE", help="names, or beginnings of them (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the inputs (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that a case is watched (default: %(default)s)")
    comfyui = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    parser.add_argument("--comfyui", type=Path, default=comfyui, help="its checkout (default: COMFYUI_PATH)")
    parser.add_argument("--python", type=Path, default=os.environ.get("COMFYUI_PYTHON"), help="its interpreter")
    parser.add_argument("--no-nodes", action="store_true", help="commands alone")
    parser.add_argument("--out", type=Path, help="results as JSON")
    parser.add_argument("--inputs", type=Path, help="folder of the inputs, made where it is empty (default: a temporary one)")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--nodes", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if stacks := os.environ.get("ANCHOR4D_STACKS"):
        faulthandler.register(signal.SIGUSR1, file=open(stacks, "a"), all_threads=False)  # noqa: SIM115  # for good
    if args.command:
        sys.path[:0] = [str(ROOT)]
        return run_command(args.command)
    if args.nodes:
        return run_nodes(args.nodes, args.inputs, args.comfyui, args.seed)
    with tempfile.TemporaryDirectory(prefix="anchor4d-interrupts-") as name:
        folder = args.inputs or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        return measure(args, folder.absolute())


def measure(args: argparse.Namespace, folder: Path) -> int:
    python = args.python or args.comfyui / ".venv" / "bin" / "python"
    plain = commands(folder)
    known = list(plain)
    if not args.no_nodes:
        known += [f"node-{name}" for name in node_cases([], folder)]
    wanted = [name for name in known if args.only is None or any(name.startswith(part) for part in args.only)]
    if args.list:
        print("\n".join(wanted))
        return 0
    if not (folder / "scene.safetensors").exists():
        prepare(folder, args.scale)
    rows: dict[str, Any] = {}

    def keep(name: str, row: dict[str, Any]) -> None:
        spans = {key: row.get(key) or asdict(Span()) for key in ("silence", "reaction", "unchecked")}
        row["good"] = not row["failed"] and _least(spans["silence"]) <= SILENCE
        row["good"] = row["good"] and max(_least(spans["reaction"]), _least(spans["unchecked"])) <= REACTION
        rows[name] = row
        numbers = ", ".join(
            f"{key} {span['wall']:.2f} s ({span['cpu']:.2f} cpu)" for key, span in spans.items() if row.get(key)
        )
        print(
            f"{'ok ' if row['good'] else 'BAD'} {name:24} {row.get('seconds', 0):6.1f} s  {numbers}  {row['failed']}",
            flush=True,
        )
        if args.out:
            args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    draw = random.Random(args.seed)
    for name in (name for name in wanted if not name.startswith("node-")):
        argv = [sys.executable, __file__, "--command", *plain[name]]
        first = watch(argv, folder, None, args.limit)
        if first.code == 2 and any(text in first.said for text in ("which is not installed", "is not on this machine")):
            print(f"--  {name:24} left out: {first.said.strip().splitlines()[-1][-200:]}", flush=True)
            continue
        if name.startswith("study"):  # which keeps the votes' key of an earlier page
            shutil.rmtree(folder / "out", ignore_errors=True)
        seconds = first.seconds
        for _ in range(TRIES):
            moment = draw.uniform(0.05, 0.95) * min(seconds, args.limit)
            second = watch(argv, folder, moment, args.limit + 60)
            if second.reaction is not None:
                break
            seconds = second.seconds
        failed = "" if first.code in (0, -signal.SIGKILL) else f"ended with {first.code}: {first.said.strip()[-300:]}"
        if second.reaction is not None and second.code not in (0, 130):
            failed += f"interrupted, it ended with {second.code}: {second.said.strip()[-300:]}"
        failed += "" if second.reaction else "it ended before every interrupt"
        row = {"seconds": first.seconds, "silence": asdict(first.silence), "interrupted_at": round(moment, 2), "failed": failed}
        keep(name, row | {"reaction": None if second.reaction is None else asdict(second.reaction)})
    left = [name[5:] for name in wanted if name.startswith("node-")]
    while left:
        argv = [str(python), __file__, "--seed", str(args.seed), "--inputs", str(folder), "--comfyui", str(args.comfyui)]
        argv += ["--nodes", *left]
        with open(folder / "host.log", "ab") as log:
            child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder)
            assert child.stdout is not None
            before = len(left)
            for line in child.stdout:
                row = json.loads(line)
                left.remove(row["case"])
                if "which is not installed" in row["failed"]:
                    print(f"--  node-{row['case']:19} left out: {row['failed']}", flush=True)
                    continue
                keep(f"node-{row['case']}", row)
            if child.wait() and len(left) == before:
                raise SystemExit(f"the host's process ended with {child.returncode}, see {folder / 'host.log'}")
    bad = [name for name, row in rows.items() if not row["good"]]
    worst = {
        key: max(((_least(row[key]), name) for name, row in rows.items() if row.get(key)), default=None)
        for key in ("silence", "reaction", "unchecked")
    }
    print(json.dumps({"cases": len(rows), "seed": args.seed, "scale": args.scale, "worst": worst, "failures": bad}))
    return 1 if bad else 0


def _least(span: dict[str, Any]) -> float:
    return min(span["wall"], span["cpu"])


if __name__ == "__main__":
    raise SystemExit(main())
