"""The command line: python -m anchor4d COMMAND.

Exit codes: 0 done, 2 bad input (one line on stderr), 130 interrupted (checkpoints kept). Whatever is heavy is imported inside
the commands, so that help is instant.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .core.files import InputError

if TYPE_CHECKING:
    from torch import Tensor

#: Of core.export.FORMATS, which help does without: it is instant.
EXPORTS = (
    "ply", "compressed-ply", "spz", "splat", "glb", "glb-splats", "usd", "4dgs", "html", "a4d", "scene", "mp4", "webm", "gif",
    "webp", "apng", "png",
)  # fmt: skip
#: Seconds between preview pictures, and between progress lines where standard error is not a terminal.
PREVIEW_SECONDS, LINE_SECONDS = 10.0, 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    args = _parser().parse_args(argv)
    console = Console()
    handler = _ConsoleLog(console)
    log = logging.getLogger(__package__)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if args.verbose else logging.INFO)
    try:
        with console.interruptible():
            return args.run(args, console)
    except KeyboardInterrupt:
        console.line("interrupted" + (f"; {args.again}" if hasattr(args, "again") else ""))
        return 130
    except (InputError, OSError) as error:
        return _refuse(console, " ".join(str(error).split()))
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package == __package__:
            raise
        install = f'python -m pip install -e "{Path(__file__).parent}[torch,cpu]"'
        return _refuse(console, f"the Python package {package!r} is missing; run: {install}")
    finally:
        log.removeHandler(handler)


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
    print(made.table)
    print(NEXT.format(out=args.out, python=sys.executable))
    print(f"film: {args.out / 'demo.mp4'}\nsheet: {args.out / 'sheet.png'}\nscene: {args.out / 'scene.safetensors'}")
    return 0


def fit(args: argparse.Namespace, console: Console) -> int:
    if args.method == "ayg":
        return _fit_text(args, console)
    if args.then or args.loop:
        raise InputError(f"{'--then' if args.then else '--loop'}: prolongs motions of method ayg, not of {args.method}")
    if all(getattr(args, name) is None for name in ("prompt", "image", "video", "object")):
        raise InputError("fit: nothing to start from; give at least one of --prompt, --image, --video and --object")
    from .core.generate.chain import Links, complete
    from .core.generate.pipelines import located
    from .core.runs.run import OBJECT_FREE, prior_device, run_in_folder

    settings, watch = _settings(args).resolved(), console.watch(args.out)
    for prior in {settings.prior, settings.anchors} - {"tiny", "none"}:
        located(prior)  # what is made may take long: a prior that is not here is told before
    links = {link: name for link in ("image", "video", "object", "views") if (name := getattr(args, f"{link}_model"))}
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
        seed=args.seed,
        device=prior_device(settings.device),
        resume=args.resume,
        make_object=settings.method not in OBJECT_FREE,
        progress=watch,
    )
    settings = settings if made.yaw is None else replace(settings, yaw=made.yaw)
    fps = made.fps if args.fps is None else args.fps
    done = run_in_folder(
        made.video, made.object, args.out, settings, fps=fps, resume=args.resume, strict=args.strict, progress=watch
    )
    if done is None:
        console.line("already finished with these inputs and settings")
    print(args.out / "scene.safetensors")
    verdict = None if done is None else done.report.get("verdict")
    if args.strict and verdict is not None and verdict["word"] != "good":
        raise InputError(f"{args.out}: the result is {verdict['word']}: {'; '.join(verdict['reasons'])}")
    return 0


def _fit_text(args: argparse.Namespace, console: Console) -> int:
    for name in ("video", "image"):
        if getattr(args, name) is not None:
            raise InputError(f"--{name}: method ayg follows a text alone; leave it out, or choose another method")
    if args.prompt is None:
        raise InputError("--prompt: method ayg needs a text that says what the object is and does")
    from .core.runs.run_text import TextSettings, run_text_in_folder

    if args.frames is not None and args.frames < 2:
        raise InputError(f"--frames {args.frames}: a moving object needs at least 2")
    if args.prior in ("tiny", "none"):
        raise InputError(f"--prior {args.prior}: method ayg needs a text-to-video model, such as modelscope or ltx-video")
    settings = TextSettings(
        preset=args.preset,
        seed=args.seed,
        frames=args.frames,
        fps=args.fps,
        yaw=0.0 if args.yaw == "auto" else _number("--yaw", args.yaw),
        then=tuple(args.then),
        closed=args.loop,
        device=args.device,
        renderer=args.renderer,
        video=args.video_model or args.prior,
        images=args.image_model or "auto",
        views=args.views_model or "auto",
        without=tuple(args.without),
    )
    watch = console.watch(args.out)
    done = run_text_in_folder(args.prompt, args.out, settings, item=args.object, resume=args.resume, progress=watch)
    if done is None:
        console.line("already finished with these inputs and settings")
    print(args.out / "scene.safetensors")
    return 0


def render(args: argparse.Namespace, console: Console) -> int:
    azimuths = [_number("--azimuths", text) for text in args.azimuths]
    if args.frames is not None and args.frames < 1:
        raise InputError(f"--frames {args.frames}: choose at least 1")
    if args.size is not None and not 1 <= args.size <= 8192:
        raise InputError(f"--size {args.size}: choose 1 to 8192 pixels")
    from .core.io import write_frames
    from .core.io.export import composited
    from .core.io.sequence import open_scene
    from .core.scene.scene import frame_times
    from .core.scene.views import render_frames, scene_cameras

    scene = open_scene(args.scene)
    for text in args.azimuths:
        _our_folder(args.out / text, r"\d+\.png")
    taus = scene.taus if args.frames is None else frame_times(args.frames, scene.loop)
    # One azimuth at a time bounds memory: a long clip at full size is gigabytes.
    for text, azimuth in zip(args.azimuths, azimuths):
        pictures = render_frames(
            scene,
            scene_cameras(scene, azimuth, args.elevation, args.size),
            taus,
            backend=args.renderer,
            progress=console.counting(f"azimuth {text}"),
        )[0]
        write_frames(args.out / text, composited(pictures, args.background))
    print(args.out)
    return 0


def export(args: argparse.Namespace, console: Console) -> int:
    azimuths = [_number("--azimuths", text) for text in args.azimuths]
    from .core.io.export import FORMATS, Shot, checked_path, export_scene
    from .core.io.sequence import open_scene
    from .core.scene.trajectory import Trajectory

    out, form = checked_path(args.out, args.format), FORMATS[args.format]
    if form.folder and not out.suffix:
        _our_folder(out, form.folder)
    if args.background is not None and form.kind != "film":
        raise InputError(f"--background: {args.format} is no film; leave it out")
    shot = Shot(
        azimuths=azimuths,
        elevation=args.elevation,
        size=args.size,
        background=args.background or ("white" if args.format == "mp4" else "none"),
        loops=args.loops,
        trajectory=None if args.camera_path is None else Trajectory.load(args.camera_path),
    )
    film = None
    if args.video is not None:
        from .core.io.video import read_clip

        film = read_clip(args.video).frames
    export_scene(
        open_scene(args.scene),
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
    print(out)
    return 0


def bench(args: argparse.Namespace, console: Console) -> int:
    if args.method == "ayg":
        raise InputError("method 'ayg': follows a text, and the cases are videos; choose pla4d, align4d or dg4d")
    from .bench.cases import run_cases

    print(run_cases(args.cases, args.out, _settings(args), only=args.only, console=console, alone=args.video_alone))
    return 0


def models(args: argparse.Namespace, console: Console) -> int:
    from .core.priors.models import convert, download, model_named, table

    if args.action == "list":
        print(table())
    elif args.action == "convert":
        print(convert(args.name))
    else:
        model = model_named(args.name or "")
        if model is not None and model.warning:
            console.note(f"licence: {model.licence}: {model.warning}")
        print(download(args.name, progress=console.counting(f"download {args.name}, MB")))
    return 0


def _settings(args: argparse.Namespace) -> Any:
    from .core.runs.run import Settings

    if args.frames is not None and args.frames < 2:
        raise InputError(f"--frames {args.frames}: a moving object needs at least 2")
    yaw = args.yaw if args.yaw == "auto" else _number("--yaw", args.yaw)
    return Settings(
        method=args.method,
        preset=args.preset,
        seed=args.seed,
        yaw=yaw,
        frames=args.frames,
        device=args.device,
        renderer=args.renderer,
        prior=args.prior,
        without=tuple(args.without),
        plus=tuple(args.plus),
        anchors=args.anchors,
    )


def _number(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -1e6 < value < 1e6:
        raise InputError(f"{option} {text}: not a number of degrees")
    return value


def _our_folder(folder: Path, pattern: str) -> None:
    """A folder that is about to be replaced must hold nothing but what we write."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, choose a folder to write to")
    foreign = [p.name for p in folder.iterdir() if not re.fullmatch(pattern, p.name)] if folder.is_dir() else []
    if foreign:
        raise InputError(f"{folder}: holds other files ({foreign[0]}); choose a new folder")


# Progress


class Console:
    """Standard error: one line that updates itself on a terminal, a plain line now and then elsewhere."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.shown = False
        self.stage, self.began, self.first, self.told = "", 0.0, 0, 0.0
        self.fitting = self.stopping = False
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """A line that waits until work begins: bad input is answered by its error alone."""
        self.notes.append(text)

    def line(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        self._tell_notes()
        print(text, file=sys.stderr, flush=True)

    def update(self, text: str, last: bool = False) -> None:
        """A line that the next one replaces, unless it is the ``last`` of its kind."""
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r" + text[:width].ljust(width), end="\n" if last else "", file=sys.stderr, flush=True)
            self.shown = not last
        elif last or time.monotonic() - self.told > LINE_SECONDS:
            self.told = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def _tell_notes(self) -> None:
        notes, self.notes = self.notes, []
        for note in notes:
            self.line(note)

    def _clear(self) -> None:
        if self.shown:
            print("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r", end="", file=sys.stderr)
            self.shown = False

    def step(self, stage: str, step: int, steps: int, note: str = "") -> None:
        """Progress of a stage, with the time left."""
        now = time.monotonic()
        self._tell_notes()
        if stage != self.stage:
            self.stage, self.began, self.first, self.told = stage, now, step, now
        done = step - self.first
        left = f"  {_clock((now - self.began) / done * (steps - step))} left" if done > 0 and step < steps else ""
        self.update(f"{stage}  {step}/{steps}{note}{left}", last=step >= steps)
        if step >= steps:
            self.stage = ""

    def counting(self, stage: str) -> Callable[[int, int], None]:
        """Progress of something without losses."""
        return lambda step, steps: self.step(stage, step, steps)

    def watch(self, out: Path, label: str = "") -> Callable[..., None]:
        """Progress of a fit: a line with the loss, ``preview.png`` in ``out`` now and then, and interruption between steps."""
        drawn = time.monotonic()

        def progress(stage: str, step: int, steps: int, losses: dict[str, float], preview: Callable[[], Tensor]) -> None:
            nonlocal drawn
            loss = sum(losses.values())
            self.step(label + stage, step, steps, f"  loss {loss:.4g}" if losses else "")
            self.fitting = bool(losses) and step < steps
            if time.monotonic() - drawn > PREVIEW_SECONDS:
                from .core.io import write_png

                write_png(out / "preview.png", preview())
                drawn = time.monotonic()
            if self.stopping:
                raise KeyboardInterrupt

        return progress

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end a fit between two steps, so that its checkpoint is exact; elsewhere, and again, at once."""

        def stop(number: int, frame: Any) -> None:
            if not self.fitting or self.stopping:
                raise KeyboardInterrupt
            self.stopping = True
            self.line("stopping after this step")

        try:
            before = [(number, signal.signal(number, stop)) for number in (signal.SIGINT, signal.SIGTERM)]
        except ValueError:  # not the main thread: whoever runs us handles signals
            before = []
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)


class _ConsoleLog(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno <= logging.INFO:
            self.console.note(record.getMessage())
        else:
            self.console.line(f"{record.levelname.lower()}: {record.getMessage()}")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"


# Arguments


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="anchor4d", description="Turn a driving video and a 3D model into a moving object made of Gaussians.")
    parser.add_argument("--version", action="version", version=f"anchor4d {__version__}")
    common = _Parser(add_help=False)
    common.add_argument("--verbose", action="store_true", help="also tell what matters only when something goes wrong")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace, Console], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common])
        made.set_defaults(run=run)
        return made

    renderers = ("auto", "gsplat", "nvrtc", "numba", "torch")
    made = command("demo", demo, "make the bundled sample, fit it with PLA4D and score it; no downloads")
    made.add_argument("--out", type=Path, default=Path("anchor4d-demo"), help="folder (default: %(default)s)")
    made.add_argument("--seed", type=int, default=0)

    made = command("fit", fit, "make a moving object from a video and a 3D model, or from a text, a picture or any of these")
    made.set_defaults(again="run the same command with --resume to go on")
    _method(made, renderers)
    made.add_argument("--video", metavar="DIR|FILE", help="driving video: a folder of pictures, a film or an animated picture")
    made.add_argument(
        "--object",
        "--mesh",
        metavar="FILE|DIR",
        help="mesh (.glb, .gltf, .obj, .ply, .stl) or splats (.ply, .spz, .splat, .ksplat); pla4d-v4: or a folder of them",
    )
    made.add_argument(
        "--image", metavar="FILE", help="picture of the object: a missing video begins with it, an object is made of it"
    )
    made.add_argument(
        "--prompt", metavar="TEXT", help="what the object is: a missing image is made of it, and other models are told"
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
    made.epilog = (
        "ayg follows --prompt alone, or gives --object its motion. It asks models' scores: --video-model (or --prior; default: "
        "modelscope, zeroscope, ltx-video or wan-1.3b, whichever is here), --image-model (sd21-base; none = without) and, "
        "without --object, --views-model (mvdream)."
    )
    made.add_argument(
        "--then",
        nargs="+",
        default=[],
        metavar="TEXT",
        help='ayg: prolong the motion by half a clip for each text, and as it says; "" = as --prompt says',
    )
    made.add_argument("--loop", action="store_true", help="ayg: the motion returns to its first frame")
    made.add_argument(
        "--strict", action="store_true", help="exit code 2 where the verdict on the object or the result is not good"
    )
    made.add_argument("--fps", type=float, help="frames a second (default: the video's own, else 12)")
    made.add_argument("--resume", action="store_true", help="go on where an interrupted run in OUT stopped, to the same result")
    made.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for scene.safetensors, report.json, preview.mp4, made/; what has these names is replaced, the rest kept",
    )

    made = command("render", render, "draw a scene with alpha from the driving video's camera, turned to each azimuth")
    scene = "scene.safetensors, a splat file, or a folder or .zip of splat files, one a frame"
    made.add_argument("scene", type=Path, metavar="SCENE", help=scene)
    made.add_argument(
        "--azimuths", nargs="+", required=True, metavar="A", help="degrees; 0 = the driving video's view, 90 = +X"
    )
    made.add_argument("--elevation", type=float, metavar="E", help="degrees, positive = from above (default: the camera's)")
    made.add_argument("--frames", type=int, metavar="N", help="spread the motion over N frames (default: the scene's own)")
    made.add_argument("--size", type=int, metavar="PX", help="longer side of the pictures (default: the driving video's size)")
    made.add_argument("--background", choices=("none", "white", "black"), default="none", help="none = transparent")
    made.add_argument("--renderer", choices=renderers, default="auto")
    made.add_argument("--out", type=Path, required=True, help="folder; pictures go to OUT/<azimuth>/NNN.png")

    made = command("export", export, "write a scene for other programs")
    made.add_argument("scene", type=Path, metavar="SCENE", help=scene)
    made.add_argument("--format", choices=EXPORTS, required=True, help="see docs/formats.md")
    made.add_argument("--frames", type=int, metavar="N", help="spread the motion over N frames (default: the scene's own)")
    made.add_argument(
        "--time", type=float, metavar="TAU", help="splats: one moment in a single file, 0 to 1, in place of the clip"
    )
    made.add_argument("--azimuths", nargs="+", default=["0"], metavar="A", help="films: degrees; several = side by side")
    made.add_argument("--elevation", type=float, metavar="E", help="films: degrees, positive = from above")
    made.add_argument("--size", type=int, metavar="PX", help="films: longer side of the pictures")
    made.add_argument("--background", choices=("none", "white", "black"), help="films: default white for mp4, else none")
    made.add_argument("--loops", type=int, default=1, help="films: how often the clip plays (default: 1)")
    made.add_argument(
        "--camera-path", type=Path, metavar="FILE", help="films: .json of camera keys, as the player records them"
    )
    made.add_argument("--video", metavar="DIR|FILE", help="html, a4d: the driving video, shown beside the object")
    made.add_argument("--compare", type=Path, metavar="SCENE", help="html: a second scene, behind a wiper")
    made.add_argument("--renderer", choices=renderers, default="auto")
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
    made.add_argument("--cases", type=Path, required=True, metavar="DIR", help="folder of cases")
    made.add_argument("--only", nargs="+", metavar="NAME", help="names of the cases to run (default: all)")
    made.add_argument(
        "--video-alone", action="store_true", help="leave the cases' meshes aside: the object is made of the video"
    )
    made.add_argument("--out", type=Path, default=Path("anchor4d-bench"), help="folder (default: %(default)s)")

    made = command("models", models, "optional models: what is here, where each is expected, and fetching one")
    made.set_defaults(again="run the same command to go on")
    made.add_argument("action", choices=("list", "get", "convert"))
    made.add_argument(
        "name", nargs="?", metavar="NAME|PATH", help="get: name in the list, or OWNER/NAME on the Hub; convert: file or folder"
    )
    return parser


def _method(made: argparse.ArgumentParser, renderers: Sequence[str]) -> None:
    methods = ("pla4d", "pla4d-v4", "align4d", "dg4d", "stag4d", "stag4d-code", "ayg")
    made.add_argument("--method", choices=methods, default="pla4d")
    made.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="PART",
        help="parts to leave out; align4d: of oda, maod, mgja, ao; ayg: of image, view-guidance, jsd, rigidity, amplification",
    )
    made.add_argument(
        "--plus", nargs="+", default=[], metavar="PART", help="stag4d: parts of align4d to add, of oda, mgja and ao"
    )
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
    made.add_argument("--preset", choices=("draft", "standard", "paper"), default="standard")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    made.add_argument("--renderer", choices=renderers, default="auto")
    made.add_argument("--frames", type=int, metavar="N", help="frames of the video to keep (default: all)")
    made.add_argument("--yaw", default="auto", metavar="auto|DEG", help="turn about +Y that brings the object's front to +Z")
