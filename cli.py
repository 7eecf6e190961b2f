"""The command line: python -m anchor4d COMMAND.

Exit codes: 0 done, 2 bad input (one line on stderr), 130 interrupted (checkpoints kept). Whatever is heavy is imported inside
the commands, so that help is instant.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .bench import batch, fitting, measuring, study, x4d
from .console import Console, ConsoleLog
from .core.files import InputError
from .core.packages import constant_of, problem
from .core.progress import pulsing

#: Exit code.
INTERRUPTED = 130


#: Packages that every command needs, see requirements.txt.
REQUIRED = ("numpy", "torch", "PIL", "safetensors", "scipy", "einops", "trimesh", "av", "rich")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal has no letters for
    console = Console()
    handler = ConsoleLog(console)
    log = logging.getLogger(__package__)
    log.addHandler(handler)
    try:
        with console.interruptible():
            return _run(argv, console, log)
    except (InputError, OSError) as error:
        return _refuse(console, " ".join(str(error).split()))
    finally:
        log.removeHandler(handler)


def program() -> int:
    """:func:`main` as a process: once it is interrupted, it ends without another word, and at once.

    Nothing is left to do then; the end of the interpreter, which gives back every tensor and module, takes up to two seconds.
    A Ctrl-C during that end comes too late: the exit code is that of what was done.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = lambda raised: None if raised.exc_type is KeyboardInterrupt else hook(raised)
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if code == INTERRUPTED:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # a pipe that nobody reads any more
                stream.flush()
        os._exit(code)
    return code


def _run(argv: Sequence[str] | None, console: Console, log: logging.Logger) -> int:
    args = argparse.Namespace()
    try:
        with console.beating(), pulsing(console.check):  # imports take seconds, those of the arguments' choices too
            parser().parse_args(argv, args)
            log.setLevel(logging.DEBUG if args.verbose else logging.INFO)
            if broken := [f"{name} {reason}" for name in REQUIRED if (reason := problem(name))]:
                install = f'python -m pip install -e "{Path(__file__).parent}[torch,cpu]"'
                return _refuse(console, f"the Python package {'; '.join(broken)}; run: {install}")
            return args.run(args, console)
    except BaseException as error:
        # What an interruption meets may turn it into another error: an import, a callback of a library.
        if not isinstance(error, KeyboardInterrupt) and not console.interrupted:
            raise
        console.interrupted = True
        console.line("interrupted" + (f"; {args.again}" if hasattr(args, "again") else ""))
        return INTERRUPTED


def _refuse(console: Console, message: str) -> int:
    console.notes.clear()
    console.line(f"error: {message}")
    return 2


# Commands

#: What the demo's table says, and where to go from there.
NEXT = """psnr: how close to the truth, in dB, more = closer; frozen: what a perfect object earns standing still, to be beaten;
motion: share of the true motion, 1 = all, a frozen object has 0; unseen: mean of the views that the video never shows
next, with your own video (and a model of what it shows, if you have one):
  {python} -m anchor4d fit --video clip.mp4 --out clip
  {python} -m anchor4d fit --video clip.mp4 --object model.glb --out clip
  {python} -m anchor4d export {out}/scene.safetensors --format html --out demo.html"""


def demo(args: argparse.Namespace, console: Console) -> int:
    from .core.runs.demo import make_demo

    made = make_demo(args.out, seed=args.seed, progress=console.watch(args.out))
    console.table(made.table)
    console.result(NEXT.format(out=args.out, python=sys.executable))
    console.result(f"film: {args.out / 'demo.mp4'}\nsheet: {args.out / 'sheet.png'}\nscene: {args.out / 'scene.safetensors'}")
    return 0


def fit(args: argparse.Namespace, console: Console) -> int:
    from .core.methods.registry import METHODS

    method = METHODS.named(args.method)
    several = args.masks is not None or len(args.object or ()) > 1
    fitting.check_objects(args, several, method.follows)
    objects, args.object = args.object or [], None if not args.object else args.object[0]
    if args.up != "y" and args.object is None:
        raise InputError(f"--up {args.up}: turns the object of --object, give one or leave it out")
    _check_unused(args, method.follows)
    if method.follows == "text":
        _check_text(args)
    elif all(getattr(args, name) is None for name in ("prompt", "image", "video", "object")):
        raise InputError("fit: nothing to start from; give at least one of --prompt, --image, --video and --object")
    for name, default in (("start", 0.0), ("end", None), ("every", 1), ("mask", None), ("background", "auto")):
        if args.video is None and getattr(args, name) != default:
            raise InputError(f"--{name}: says how a video is read; give --video, or leave it out")
    if args.mask is not None and not Path(args.mask).exists():
        raise InputError(f"--mask {args.mask}: no such film, folder or picture, check the path")
    _check_signals(args, method.follows)
    from .core.io.background import check_method
    from .core.io.signals import SignalFiles
    from .core.io.video import Part, Reading
    from .core.runs.session import prior_device, run_in_folder

    reading = Reading(args.mask, args.start, args.end, args.every, args.background)
    Part(args.fps, args.frames, args.start, args.end, args.every).checked(args.video or "fit")
    check_method(args.background, source=args.video or "fit")
    signals = SignalFiles(args.depth, args.depth_kind, args.depth_span, args.tracks, args.flow or "", tuple(args.view))
    signals.check()
    if args.preset is None:
        args.preset = _usual_preset(args, method.needs_object and not several, console)
    settings, watch = _settings(args), console.watch(args.out)
    video, item, fps = args.video, args.object, args.fps
    links = {link: name for link in ("image", "video", "object", "views") if (name := getattr(args, f"{link}_model"))}
    if several:
        return _fitted(args, console, fitting.fit_objects(args, objects, settings, links, reading, console))
    if method.follows == "video":
        from .core.generate.chain import Links, complete
        from .core.generate.pipelines import located

        settings = settings.resolved()
        for name in {getattr(settings, role.name) for role in method.roles} - {"tiny", "none"}:
            located(name)  # what is made may take long: a prior that is not here is named before
        made = complete(
            args.out,
            prompt=args.prompt,
            image=args.image,
            video=args.video,
            object=args.object,
            links=Links(**links),
            frames=args.frames,
            fps=args.fps,
            yaw=settings.yaw,
            up=settings.up,
            seed=args.seed,
            device=prior_device(settings.device, settings.prior_device, what="generators"),
            resume=args.resume,
            make_object=method.needs_object,
            reading=reading,
            progress=watch,
        )
        settings = settings if made.yaw is None else replace(settings, yaw=made.yaw)
        settings = settings.of_guessed_depth() if made.inflated else settings
        video, item, fps = made.video, made.object, made.fps if fps is None else fps
    done = run_in_folder(
        video,
        item,
        args.out,
        settings,
        prompt=args.prompt if method.follows == "text" else "",
        fps=fps,
        resume=args.resume,
        reading=reading,
        strict=args.strict,
        signals=signals,
        progress=watch,
        read=None if video is None else console.reading(Path(video)),
    )
    return _fitted(args, console, done)


def _fitted(args: argparse.Namespace, console: Console, done: Any) -> int:
    """What is said of a run, None where it was finished before."""
    if done is None:
        console.line("already finished with these inputs and settings")
    console.result(args.out / "scene.safetensors")
    verdict = None if done is None else done.report.get("verdict")
    if args.strict and verdict is not None and verdict["word"] != "good":
        raise InputError(f"{args.out}: the result is {verdict['word']}: {'; '.join(verdict['reasons'])}")
    return 0


def _check_unused(args: argparse.Namespace, follows: str) -> None:
    """Refuse what would do nothing beside what else is given."""
    unused: list[tuple[str, str]] = []
    if follows == "video":
        unused += [(f"{made}_model", made) for made in ("image", "video", "object") if getattr(args, made) is not None]
        if args.video is not None and args.object is not None:
            unused += [("image", "video"), ("image_model", "video")]
    else:
        unused += [("object_model", "method")]
    if args.object is not None:
        unused += [("views_model", "object")]
    for name, given in unused:
        if getattr(args, name) is not None:
            raise InputError(f"--{name.replace('_', '-')}: is not asked, since --{given} is given; leave one of them out")
    if follows == "text" and args.video_model is not None and args.prior != "auto":
        raise InputError(f"--prior: of method {args.method} the same as --video-model; leave one of them out")


def _check_signals(args: argparse.Namespace, follows: str) -> None:
    """Refuse signals about a video where none is followed, and words about depth where none is given."""
    for name in ("depth", "tracks", "flow", "view"):
        if follows == "text" and getattr(args, name):
            raise InputError(f"--{name}: says more of a video, and method {args.method} follows a text; leave it out")
        if name != "flow" and args.video is None and getattr(args, name):
            raise InputError(f"--{name}: says more of a video; give --video, or leave it out")
    for name, default in (("depth_kind", "auto"), ("depth_span", "clip")):
        if args.depth is None and getattr(args, name) != default:
            raise InputError(f"--{name.replace('_', '-')}: says what --depth holds; give --depth, or leave it out")


def _check_text(args: argparse.Namespace) -> None:
    """Refuse what a method that follows a text does not take."""
    for name in ("video", "image"):
        if getattr(args, name) is not None:
            raise InputError(f"--{name}: method {args.method} follows a text alone; leave it out, or choose another method")
    if args.prompt is None:
        raise InputError(f"--prompt: method {args.method} needs a text that says what the object is and does")
    if args.prior in ("tiny", "none"):
        raise InputError(
            f"--prior {args.prior}: method {args.method} needs a text-to-video model, such as modelscope or ltx-video"
        )


def render(args: argparse.Namespace, console: Console) -> int:
    from .core.io import write_frames
    from .core.io.export import composited
    from .core.io.sequence import open_scene
    from .core.scene.scene import frame_times
    from .core.scene.views import render_frames, scene_cameras

    scene = open_scene(args.scene, up=args.up)
    for text in args.azimuths:
        _our_folder(args.out / text, r"\d+\.png")
    taus = scene.taus if args.frames is None else frame_times(args.frames, scene.loop)
    # One azimuth at a time bounds memory: a long clip at full size is gigabytes.
    for text in args.azimuths:
        pictures = render_frames(
            scene,
            scene_cameras(scene, float(text), args.elevation, args.size),
            taus,
            backend=args.renderer,
            progress=console.counting(f"azimuth {text}"),
        )[0]
        write_frames(args.out / text, composited(pictures, args.background))
    console.result(args.out)
    return 0


def export(args: argparse.Namespace, console: Console) -> int:
    from .core.io.export import FORMATS, Option, Shot, check_export, export_scene
    from .core.io.sequence import open_scene
    from .core.scene.trajectory import Trajectory

    out, form = args.out, FORMATS[args.format]
    if args.camera_path is not None and form.kind != "film":
        raise InputError(f"--camera-path: {args.format} is no film; leave it out")
    for name, value in (("azimuths", args.azimuths), ("elevation", args.elevation)):
        if value is not None and args.camera_path is not None:
            raise InputError(f"--{name}: the camera follows --camera-path; leave one of them out")
    if args.time is not None and args.frames is not None:
        raise InputError("--frames: one moment is written, as --time asks; leave one of them out")
    asked = (args.azimuths, args.elevation, args.size, args.background, args.loops, args.camera_path)
    shot = None
    if form.kind == "film" or any(value is not None for value in asked):
        shot = Shot(
            azimuths=[float(text) for text in args.azimuths or ["0"]],
            elevation=args.elevation,
            size=args.size,
            background=args.background or form.backgrounds[0],
            loops=1 if args.loops is None else args.loops,
            trajectory=None if args.camera_path is None else Trajectory.load(args.camera_path),
        )
    given: dict[Option, object] = {
        "frames": args.frames, "moment": args.time, "shot": shot, "film": args.video, "compare": args.compare,
    }  # fmt: skip
    check_export(out, args.format, given)
    if args.renderer != "auto" and form.kind != "film":
        raise InputError(f"--renderer {args.renderer}: nothing is drawn for the format {args.format}; leave it out")
    if form.folder and not out.suffix:
        _our_folder(out, form.folder)
    film = None
    if args.video is not None:
        from .core.io.video import read_clip

        film = read_clip(args.video, progress=console.reading(Path(args.video))).frames
    export_scene(
        open_scene(args.scene, up=args.up),
        out,
        args.format,
        frames=args.frames,
        moment=args.time,
        shot=shot,
        film=film,
        compare=None if args.compare is None else open_scene(args.compare),
        title=out.stem,
        backend=args.renderer,
        progress=console.counting(args.format),
    )
    console.result(out)
    return 0


def bench(args: argparse.Namespace, console: Console) -> int:
    if args.speed is not None:
        from .bench.speed import run_speed
        from .core.runs.session import resolve_device

        console.result(run_speed(args.speed, resolve_device(args.device), args.only, args.out))
        return 0
    if args.cases is None:
        raise InputError("bench: give --cases, a folder of cases, or --speed, one case")
    from .bench.cases import run_cases
    from .core.methods.registry import METHODS

    if METHODS.named(args.method).follows != "video":
        others = ", ".join(name for name, method in METHODS.items() if method.follows == "video")
        raise InputError(f"method {args.method!r}: follows a text, and the cases are videos; choose one of {others}")

    console.table(run_cases(args.cases, args.out, _settings(args), only=args.only, console=console, alone=args.video_alone))
    return 0


def models(args: argparse.Namespace, console: Console) -> int:
    from .core.priors.models import convert, download, model_named, table

    if args.action == "list" and args.name is not None:
        raise InputError(f"models list {args.name}: the list takes no name; leave it out")
    if args.action == "list":
        console.result(table())
    elif args.action == "convert":
        console.result(convert(args.name))
    else:
        model = model_named(args.name or "")
        if model is not None and model.warning:
            console.note(f"licence: {model.licence}: {model.warning}")
        console.result(download(args.name, progress=console.counting(f"download {args.name}, MB")))
    return 0


def doctor(args: argparse.Namespace, console: Console) -> int:
    from .core.runs.doctor import lines

    console.result("\n".join(lines()))
    return 0


def _usual_preset(args: argparse.Namespace, needs_object: bool, console: Console) -> str:
    """ "standard", or a quick look where the object has to be guessed from a film and no graphics card helps."""
    from .core.runs.session import resolve_device

    if not needs_object or args.object is not None or args.video is None or resolve_device(args.device) != "cpu":
        return "standard"
    console.note("preset draft: the object is made of the first frame, without a graphics card; --preset standard is sharper")
    return "draft"


def _settings(args: argparse.Namespace) -> Any:
    from .core.runs.session import Settings

    return Settings(
        method=args.method,
        preset=args.preset,
        seed=args.seed,
        yaw=args.yaw,
        frames=args.frames,
        device=args.device,
        prior_device=args.prior_device,
        renderer=args.renderer,
        prior=args.prior,
        without=tuple(args.without),
        plus=tuple(dict.fromkeys([*args.plus, *(part for part in ("appearance", "presence") if getattr(args, part, False))])),
        anchors=args.anchors,
        fps=getattr(args, "fps", None),
        then=tuple(getattr(args, "then", ())),
        closed=getattr(args, "loop", False),
        video=getattr(args, "video_model", None) or args.prior,
        images=getattr(args, "image_model", None) or "auto",
        views=getattr(args, "views_model", None) or "auto",
        up=getattr(args, "up", "y"),
    )


def _our_folder(folder: Path, pattern: str) -> None:
    """A folder that is about to be replaced must hold nothing but what we write."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, choose a folder to write to")
    foreign = [p.name for p in folder.iterdir() if not re.fullmatch(pattern, p.name)] if folder.is_dir() else []
    if foreign:
        raise InputError(f"{folder}: holds other files ({foreign[0]}); choose a new folder")


# Arguments


class _Formats:
    """The names of the export table, which takes PyTorch: asked for only where a format is chosen or its help is read."""

    def __iter__(self) -> Iterator[str]:
        from .core.io.export import FORMATS

        return iter(FORMATS)

    def __contains__(self, name: str) -> bool:
        return name in iter(self)


class _Parser(argparse.ArgumentParser):
    #: Parsers of the commands, by name.
    commands: Mapping[str, argparse.ArgumentParser] = {}

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def _whole(low: int, high: int) -> Callable[[str], int]:
    """Whole numbers of a range."""

    def parse(text: str) -> int:
        # Digits alone: int() also takes underscores, and thousands of digits slowly.
        value = int(text) if re.fullmatch(r"\s*[+-]?[0-9]{1,30}\s*", text) else None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text[:40]!r}: choose a whole number from {low} to {high}")
        return value

    return parse


def _real(low: float, high: float, what: str = "a number") -> Callable[[str], float]:
    """Finite numbers of a range."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text[:40]!r}: choose {what} from {low:g} to {high:g}")
        return value

    return parse


_degrees = _real(-360, 360, "degrees")


def _azimuth(text: str) -> str:
    """Degrees as they are written: pictures go to a folder of this name."""
    _degrees(text)
    return text.strip()


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,4})?", text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: choose auto, cpu, cuda, cuda:1 (a card by its number) or mps")
    return text


def _yaw(text: str) -> float | str:
    return text if text == "auto" else _degrees(text)


SEED, SIZE, FRAMES = _whole(0, 2**63 - 1), _whole(1, 8192), _whole(1, 100_000)
ELEVATION = _real(-90, 90, "degrees")
RENDERER = "what draws Gaussians: the fastest that is here, or one by name (default: %(default)s)"


def parser() -> _Parser:
    """The command line's parser."""
    parser = _Parser(prog="anchor4d", description="Turn a driving video and a 3D model into a moving object made of Gaussians.")
    parser.add_argument("--version", action="version", version=f"anchor4d {__version__}")
    common = _Parser(add_help=False)
    common.add_argument("--verbose", action="store_true", help="also print messages for finding faults")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    parser.commands = commands.choices

    def command(name: str, run: Callable[[argparse.Namespace, Console], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common])
        made.set_defaults(run=run)
        return made

    renderers, ups = constant_of("core/render/rasterize.py", "BACKENDS"), list(constant_of("core/mesh.py", "UP_AXES"))
    made = command("demo", demo, "make the bundled sample, fit it with PLA4D and score it; no downloads")
    made.add_argument("--out", type=Path, default=Path("anchor4d-demo"), help="folder (default: %(default)s)")
    made.add_argument("--seed", type=SEED, default=0, help="of every random choice (default: %(default)s)")

    made = command("fit", fit, "make a moving object from a video and a 3D model, or from a text, a picture or any of these")
    made.set_defaults(again="run the same command with --resume to go on")
    _method(made, renderers)
    made.set_defaults(preset=None)
    made.add_argument("--video", metavar="DIR|FILE", help="driving video: a folder of pictures, a film or an animated picture")
    made.add_argument(
        "--object",
        "--mesh",
        action="append",
        metavar="FILE|DIR",
        help="mesh (.glb, .gltf, .obj, .ply, .stl, .dae, .usdz) or splats (.ply, .spz, .splat, .ksplat, .sog, .glb); "
        "pla4d-v4: or a folder; several times: one for each object of --masks, auto = made",
    )
    made.add_argument(
        "--image", metavar="FILE", help="picture of the object: a missing video begins with it, an object is made of it"
    )
    made.add_argument(
        "--prompt", metavar="TEXT", help="what the object is: a missing image is made of it, and other models are given"
    )
    link = "folder, or name of models list, of the model that makes a missing"
    made.add_argument("--image-model", metavar="DIR|ID", help=f"{link} image of a text (default: sdxl)")
    made.add_argument("--video-model", metavar="DIR|ID", help=f"{link} video of an image, or of a text (default: svd)")
    made.add_argument(
        "--object-model",
        metavar="DIR|ID",
        help=f"{link} object: LGM or a Shap-E; inflate = the first picture's outline inflated, without any model "
        "(default: auto = lgm where it is here, else inflate)",
    )
    made.add_argument("--views-model", metavar="DIR|ID", help="the ImageDream that draws LGM's views (default: imagedream)")
    made.epilog = f"""{made.epilog}

ayg asks models' scores: --video-model (or --prior; default: modelscope, zeroscope, ltx-video or
wan-1.3b, whichever is here), --image-model (sd21-base; none = without) and, without --object,
--views-model (mvdream)."""
    made.add_argument(
        "--then",
        nargs="+",
        default=[],
        metavar="TEXT",
        help='ayg: prolong the motion by half a clip for each text, and as it says; "" = as --prompt says',
    )
    made.add_argument(
        "--up",
        choices=ups,
        default="y",
        help="axis of --object's file that points up (default: %(default)s; z = from Blender's or a CAD program's axes)",
    )
    made.add_argument("--loop", action="store_true", help="ayg: the motion returns to its first frame")
    made.add_argument(
        "--strict", action="store_true", help="exit code 2 where the verdict on the object or the result is not good"
    )
    made.add_argument(
        "--start", type=_real(0, 1e6), default=0.0, metavar="S", help="second at which the video begins (default: 0)"
    )
    made.add_argument("--end", type=_real(0, 1e6), metavar="S", help="second at which it ends (default: its own end)")
    made.add_argument(
        "--every", type=_whole(1, 100_000), default=1, metavar="N", help="take every N-th frame (default: 1, all)"
    )
    made.add_argument(
        "--mask",
        metavar="DIR|FILE",
        help="the object white on black: a film or folder like the video, or one picture for all",
    )
    fitting.add_objects(made)
    made.add_argument(
        "--background",
        default="auto",
        metavar="auto|key|rembg|COLOUR",
        help="how the object is found where there is neither alpha nor a mask: key = the backdrop has one colour, or this one "
        "(green, #00b140); rembg = a neural network; auto = key where the border is plain, else rembg",
    )
    made.add_argument("--fps", type=_real(0.01, 1000), help="frames a second (default: the video's own, else 12)")
    kinds, spans, flows = (constant_of("core/signals.py", name) for name in ("DEPTH_KINDS", "DEPTH_SPANS", "FLOWS"))
    depth = "relative depth of the video's frames: a folder of pictures, a film, .npy or .npz of (frames, height, width)"
    tracks = ".npz of points (frames, points, 2), pixels of the video's picture, and visible (frames, points)"
    side = "the same motion from another side, several times: 90=FILM from +X; 90,10=FILM with elevation; 90~=FILM near there"
    made.add_argument("--depth", metavar="DIR|FILE", help=depth)
    made.add_argument("--depth-kind", choices=kinds, default="auto", help="depth grows away from the camera (default: auto)")
    made.add_argument("--depth-span", choices=spans, default="clip", help="what has a scale and shift of its own")
    made.add_argument("--tracks", metavar="FILE", help=tracks)
    made.add_argument("--flow", choices=flows, help="tracks by optical flow: dis = OpenCV's (opencv-python-headless)")
    made.add_argument("--view", action="append", default=[], metavar="AZIMUTH=FILM", help=side)
    made.add_argument("--resume", action="store_true", help="go on where an interrupted run in OUT stopped, to the same result")
    made.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for scene.safetensors, report.json, preview.mp4, made/; what has these names is replaced, the rest kept",
    )

    made = command("render", render, "draw a scene with alpha from the driving video's camera, turned to each azimuth")
    scene = "scene.safetensors, a splat file, or a folder or .zip of splat files, one a frame"
    up = "splats: axis that points up (default: y; -y = what stands on its head)"
    made.add_argument("scene", type=Path, metavar="SCENE", help=scene)
    made.add_argument("--up", choices=ups, default="y", help=up)
    made.add_argument(
        "--azimuths",
        nargs="+",
        type=_azimuth,
        required=True,
        metavar="A",
        help="degrees; 0 = the driving video's view, 90 = +X",
    )
    made.add_argument("--elevation", type=ELEVATION, metavar="E", help="degrees, positive = from above (default: the camera's)")
    made.add_argument("--frames", type=FRAMES, metavar="N", help="spread the motion over N frames (default: the scene's own)")
    made.add_argument("--size", type=SIZE, metavar="PX", help="longer side of the pictures (default: the driving video's size)")
    made.add_argument("--background", choices=("none", "white", "black"), default="none", help="none = transparent")
    made.add_argument("--renderer", choices=renderers, default="auto", help=RENDERER)
    made.add_argument("--out", type=Path, required=True, help="folder; pictures go to OUT/<azimuth>/NNN.png")

    made = command("export", export, "write a scene for other programs")
    made.add_argument("scene", type=Path, metavar="SCENE", help=scene)
    made.add_argument("--up", choices=ups, default="y", help=up)
    made.add_argument("--format", choices=_Formats(), required=True, metavar="F", help="%(choices)s; see docs/formats.md")
    made.add_argument("--frames", type=FRAMES, metavar="N", help="spread the motion over N frames (default: the scene's own)")
    made.add_argument(
        "--time", type=_real(0, 1), metavar="TAU", help="splats: one moment in a single file, 0 to 1, in place of the clip"
    )
    made.add_argument(
        "--azimuths", nargs="+", type=_azimuth, metavar="A", help="films: degrees; several = side by side (default: 0)"
    )
    made.add_argument(
        "--elevation", type=ELEVATION, metavar="E", help="films: degrees, positive = from above (default: the camera's)"
    )
    made.add_argument(
        "--size", type=SIZE, metavar="PX", help="films: longer side of the pictures (default: the driving video's size)"
    )
    made.add_argument("--background", choices=("none", "white", "black"), help="films: default white for mp4, else none")
    made.add_argument("--loops", type=_whole(1, 1000), metavar="N", help="films: how often the clip plays (default: 1)")
    made.add_argument(
        "--camera-path", type=Path, metavar="FILE", help="films: .json of camera keys, as the player records them"
    )
    made.add_argument("--video", metavar="DIR|FILE", help="html, a4d: the driving video, played beside the object")
    made.add_argument("--compare", type=Path, metavar="SCENE", help="html: a second scene, in a split view")
    made.add_argument("--renderer", choices=renderers, default="auto", help=RENDERER)
    made.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="a file with the format's ending; splats: folder or .zip for one file a frame; html: or a folder; png: a folder",
    )

    made = command("bench", bench, "fit and score every case of a folder; goes on where it was stopped")
    made.set_defaults(again="run the same command to go on")
    _method(made, renderers)
    made.add_argument(
        "--video-alone", action="store_true", help="leave the cases' meshes aside: the object is made of the video"
    )
    made.add_argument("--cases", type=Path, metavar="DIR", help="folder of cases")
    made.add_argument(
        "--speed", type=Path, metavar="CASE", help="instead: how fast fits, priors and renderers are, of one case"
    )
    made.add_argument(
        "--only", nargs="+", metavar="NAME", help="names of the cases, or rows of the speed, to run (default: all)"
    )
    made.add_argument("--out", type=Path, default=Path("anchor4d-bench"), help="folder (default: %(default)s)")

    batch.add_options(
        command("batch", batch.batch, "many runs: rows of a table or a folder of cases, here or on a Ray cluster")
    )
    study.add_options(
        command(
            "study", study.study, "what modules, inputs and settings are worth; and user studies: blind pairs, votes counted"
        )
    )
    x4d.add_options(
        command("x4d", x4d.x4d, "a set of aligned quadruplets (text, image, video, 3D): many runs, filters, choice")
    )
    measuring.add_compare(command("compare", measuring.compare, measuring.COMPARE))
    made = command("measure", measuring.measure, measuring.MEASURE)
    made.add_argument("--up", choices=ups, default="y", help=up)
    made.add_argument(
        "--azimuths", nargs="+", type=_azimuth, default=[], metavar="A", help="views of a scene without a reference, degrees"
    )
    measuring.add_measure(made)

    made = command("models", models, "optional models: what is here, where each is expected, and fetching one")
    made.set_defaults(again="run the same command to go on")
    made.add_argument("action", choices=("list", "get", "convert"))
    made.add_argument(
        "name", nargs="?", metavar="NAME|PATH", help="get: name in the list, or OWNER/NAME on the Hub; convert: file or folder"
    )
    command("doctor", doctor, "what this machine uses for what, and what would make it faster or better")
    return parser


def method_summaries() -> dict[str, str]:
    """Our methods' summaries by name, read from their files: help imports nothing. Packages' own methods are found by a run."""
    found: dict[str, str] = {}
    for path in sorted((Path(__file__).parent / "core" / "methods").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "method":
                facts = {word.arg: word.value for word in node.keywords}
                if node.args and "summary" in facts:
                    found[ast.literal_eval(node.args[0])] = ast.literal_eval(facts["summary"])
    return found


def _method(made: argparse.ArgumentParser, renderers: Sequence[str]) -> None:
    methods = method_summaries()
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.epilog = "methods:\n" + "\n".join(f"  {name:12} {text}" for name, text in methods.items())
    made.add_argument("--method", default="pla4d", metavar="NAME", help="see below (default: %(default)s)")
    for option, what in (("without", "leave out, as in its paper's ablations"), ("plus", "add")):
        made.add_argument(
            f"--{option}", nargs="+", default=[], metavar="PART", help=f"parts of the method to {what}; a wrong name lists them"
        )
    for option, what in (
        ("appearance", "colours may change over time"),
        ("presence", "opacities may change over time, so that parts appear and vanish"),
    ):
        made.add_argument(f"--{option}", action="store_true", help=f"pla4d: {what} (--plus {option})")
    made.add_argument(
        "--anchors",
        default="auto",
        metavar="auto|tiny|DIR|ID|none",
        help="stag4d: what draws the anchors (default: zero123plus-v1.1 where it is here and there is a GPU, else the prior)",
    )
    made.add_argument(
        "--prior",
        default="auto",
        metavar="auto|tiny|DIR|ID|none",
        help="diffusion prior: tiny comes with the pack; a checkpoint folder, or a name of models list (default: the method's "
        "own where it is here and there is a GPU, else tiny)",
    )
    made.add_argument(
        "--preset",
        choices=constant_of("core/methods/registry.py", "PRESETS"),
        default="standard",
        help="preview: pla4d, seconds, by tracking alone; draft: a quick look; standard: the best results here; paper: the "
        "paper's own settings; with --resume a preview is where the next one starts; without a graphics card fit drafts what "
        "it makes of a video alone (default: standard)",
    )
    made.add_argument("--seed", type=SEED, default=0, help="of every random choice (default: %(default)s)")
    where = "auto|cpu|cuda|cuda:N|mps"
    made.add_argument(
        "--device", type=_device, default="auto", metavar=where, help="of several cards cuda:1 is the second (default: auto)"
    )
    made.add_argument(
        "--prior-device",
        type=_device,
        default="auto",
        metavar=where,
        help="where priors and generators compute (default: of several cards the one with the most free memory)",
    )
    made.add_argument("--renderer", choices=renderers, default="auto", help=RENDERER)
    made.add_argument("--frames", type=_whole(2, 100_000), metavar="N", help="frames of the video to keep (default: all)")
    made.add_argument(
        "--yaw",
        type=_yaw,
        default="auto",
        metavar="auto|DEG",
        help="turn about +Y that brings the object's front to +Z (default: %(default)s)",
    )
