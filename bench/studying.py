"""Runs a study's variants on cases of known truth, through the batch, and says what came out: tables, drawings, a page.

    python -m anchor4d study run NAME [NAME ...] [--cases DIR] [--preset draft] [--out DIR]
    python -m anchor4d study list

What is varied is declared in :mod:`.studies`. See docs/study.md.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..console import Console
from ..core.files import InputError, atomic_path
from ..core.packages import constant_of
from ..core.runs.batch import Job, Report

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.methods.stages import MethodConfig
    from ..core.progress import Progress
    from ..core.runs.session import Run, Settings
    from .studies import Inputs, Study, Variant

SCORES, CURVES, SIDE, TRUTH = "scores.json", "curves.json", "side", "truth"
#: Least pixels of a fit's pictures.
SMALLEST = 16
#: Folder of the cases that a study makes itself, and seed of the first of its objects: none that the tiny prior was trained on.
MADE, FIRST_OBJECT = "cases", 5000


@dataclass(frozen=True)
class Options:
    """What all runs of a study share.

    Args:
        size: largest picture of the fits, pixels; 0 = the preset's.
        gaussians: at most; 0 = the preset's. A study of them has its own.
        steps: share of the preset's steps.
        frames: of the cases' clips, all where None.
        prompt: of studies that follow a text.

    The others are those of :class:`~..core.runs.session.Settings`.
    """

    preset: str = "draft"
    size: int = 0
    gaussians: int = 0
    steps: float = 1.0
    frames: int | None = None
    prior: str = "auto"
    anchors: str = "auto"
    seed: int = 0
    yaw: Literal["auto"] | float = "auto"
    device: str = "auto"
    renderer: str = "auto"
    prompt: str = ""


# A run


def study_row(arguments: Sequence[str], report: Report) -> None:
    """One variant of one case, in the process that the batch gives it: a run's folder and its scores."""
    from .batch import run_console
    from .studies import STUDIES

    said, *flags = arguments
    asked = json.loads(said)
    out = Path(next(flag for flag in flags if flag.startswith("--out=")).removeprefix("--out="))
    study, options = STUDIES.named(asked["study"]), Options(**asked["options"])
    with run_console(report) as console:
        run_variant(
            study, study.variant(asked["variant"]), asked["case"], out, options, "--resume" in flags, console.watch(out)
        )


def run_variant(
    study: Study, variant: Variant, case: str, out: Path, options: Options, resume: bool, progress: Progress | None
) -> dict[str, float]:
    """Run, score, leave ``scores.json``, pictures of a side (of the first variant the true ones too) and curves measured.

    Args:
        case: folder of a case; "" for studies that have a ``run`` of their own.

    Returns:
        the numbers by the names of :data:`~.studies.NUMBERS`.
    """
    from ..core.identity import fingerprint
    from ..core.io import write_frames
    from ..core.runs.folder import into_folder
    from ..core.runs.page import run_page
    from ..core.runs.report import read_json, write_json
    from ..core.runs.session import preview_film
    from ..core.scene.scene import Scene4D

    label = {"study": study.name, "variant": variant.name, "case": case, "options": asdict(options)}
    key = fingerprint(label)
    truth: Mapping[str, Tensor] = {}
    every, backend, device = 1, "auto", "cpu"
    if study.run is not None:

        def make(checkpoints: Path) -> Run:
            assert study.run is not None
            made, numbers = study.run(variant, options, out, checkpoints, key, progress)
            made.report["numbers"] = numbers
            return made
    else:
        prepared = _prepared(study, variant, case, out, options, progress)
        truth, every, settings = prepared.inputs.truth, prepared.inputs.every, prepared.settings
        backend, device = settings.renderer, settings.device
        write_json(out / CURVES, prepared.curves)

        def make(checkpoints: Path) -> Run:
            return prepared.run(checkpoints, key, progress)

    done = into_folder(
        out, key, label, make, lambda run: preview_film(run, backend, device=device),
        page=lambda path, run: run_page(path, run, backend, device),
        resume=resume,
    )  # fmt: skip
    scene = Scene4D.load(out / "scene.safetensors") if done is None else done.scene
    report = read_json(out / "report.json")
    found = numbers_of(report, described(case) if case else {}) | report.get("numbers", {})
    scored, seen, side = _scores(scene.to(device), truth, every, backend)
    found |= scored
    write_frames(out / SIDE, seen[side])
    if truth and variant is study.variants[0]:
        write_frames(out / TRUTH, truth[side][: len(seen[side])])
    write_json(out / SCORES, found)
    return found


@dataclass(frozen=True)
class _Prepared:
    """A run that may begin."""

    settings: Settings
    config: Any
    video: Any
    item: Any
    alignment: Any
    curves: dict[str, Any]
    inputs: Inputs

    def run(self, checkpoints: Path, key: str, progress: Progress | None) -> Run:
        from ..core.runs.session import run

        return run(
            self.video, self.item, self.settings, config=self.config, alignment=self.alignment, progress=progress,
            checkpoints=checkpoints, identity=key,
        )  # fmt: skip


def _prepared(study: Study, variant: Variant, case: str, out: Path, options: Options, progress: Progress | None) -> _Prepared:
    from ..core.io.objects import load_object
    from ..core.io.video import load_video
    from ..core.methods import stages
    from ..core.render.mesh import drawing_on
    from ..core.runs.session import prior_device

    inputs = inputs_of(study, variant, Path(case), out, options)
    settings = settings_of(study, variant, options, inputs.object is not None)
    config = plain_config(study, variant, options, settings)
    models = settings.models()
    config = config.bound(models)
    inputs = replace(inputs, device=prior_device(settings.device))
    if variant.inputs is not None:
        inputs = variant.inputs(inputs)
    video = replace(load_video(inputs.frames, fps=inputs.fps, resolution=config.resolution), source=str(Path(case) / "front"))
    item = None if inputs.object is None else load_object(inputs.object)
    alignment, curves = None, {}
    if item is not None and (variant.camera or variant.distance or variant.curves):
        with drawing_on(settings.device):
            alignment = stages.align(video, item, camera=config.camera, yaw=settings.yaw)
            if variant.curves is not None:
                curves = variant.curves(video, alignment, models)
        if variant.distance is not None:
            from ..core.align.distance import visual_distance

            given = variant.distance(visual_distance(alignment.front, video.crop))
            config = replace(config.changed(lambda o: o.with_distance(given)), model_distance=None)
        if variant.camera is not None:
            alignment = variant.camera(alignment)
    return _Prepared(settings, config, video, item, alignment, curves, inputs)


def inputs_of(study: Study, variant: Variant, case: Path, out: Path, options: Options) -> Inputs:
    """What a case gives, before the variant changes it."""
    from ..core.io.clip import pick_frames
    from ..core.runs.compare import truth_of
    from .studies import Inputs

    truth = truth_of(case)
    kept = pick_frames(len(truth["0"]), options.frames)
    truth = {azimuth: pictures[kept] for azimuth, pictures in truth.items()}
    fps = float(described(case).get("fps") or 12.0) * len(kept) / len(kept if options.frames is None else truth["0"])
    out.mkdir(parents=True, exist_ok=True)
    return Inputs(truth["0"], fps, case / "mesh.glb" if study.with_object else None, truth, work=out, seed=options.seed)


def settings_of(study: Study, variant: Variant, options: Options, has_object: bool) -> Settings:
    """The run's settings, resolved on this machine."""
    from ..core.runs.session import Settings

    made = Settings(
        method=study.method, preset=options.preset, seed=options.seed, device=options.device, renderer=options.renderer,
        prior=options.prior, yaw=options.yaw,
    )  # fmt: skip
    made = replace(made, **study.settings) if study.settings else made
    made = replace(made, **variant.settings) if variant.settings else made
    if any(role.name == "anchors" for role in made.of.roles):
        made = replace(made, anchors=options.anchors)
    return made.resolved(has_object)


def plain_config(study: Study, variant: Variant, options: Options, settings: Settings) -> Any:
    """The method's settings as plain data, as the variant has them, of the size and share of steps that were asked for."""
    config = smaller(settings.plain(), options.size, options.steps, options.gaussians)
    return config if variant.config is None else variant.config(config)


def smaller(config: MethodConfig, size: int, share: float, gaussians: int = 0) -> MethodConfig:
    """The settings of at most ``size`` pixels, at most so many Gaussians (0 = as they are), a share of the steps."""

    def schedule(of: Any) -> Any:
        if of is None:
            return None
        sizes = tuple((until, min(pixels, size or pixels)) for until, pixels in of.resolutions)
        one = of.one_by_one and max(1, round(share * of.one_by_one))
        return replace(of, steps=max(1, round(share * of.steps)), one_by_one=one, resolutions=sizes)

    def densified(of: Any) -> Any:  # unscaled, a short run would end before its first change
        return of and replace(of, every=max(1, round(share * of.every)), start=round(share * of.start))

    static, motion = config.static, config.motion
    passes = {name: schedule(getattr(motion, name)) for name in ("schedule", "tracking", "lift", "fine", "refine")}
    given, anchors = config.with_object, config.anchors
    if anchors is not None:
        anchors = replace(
            anchors, steps=max(1, round(share * anchors.steps)), plus_steps=max(1, round(share * anchors.plus_steps))
        )  # fmt: skip
    changed = replace(
        config, motion=replace(motion, **passes, density=densified(motion.density)),
        static=replace(
            static, schedule=schedule(static.schedule), density=densified(static.density),
            gaussians=min(static.gaussians, gaussians or static.gaussians),
        ),
        resolution=min(config.resolution, size or config.resolution), anchors=anchors,
    )  # fmt: skip
    return changed if given is None else replace(changed, with_object=smaller(given, size, share, gaussians))


def described(case: str | Path) -> dict[str, Any]:
    """A case's ``case.json``."""
    from ..core.metrics import read_case

    return read_case(case)


def numbers_of(report: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, float]:
    """What a run's report says, by the names of :data:`~.studies.NUMBERS`."""
    found: dict[str, float] = {"gaussians": report["gaussians"], "memory": report["memory_peak_mb"]["host"]}
    if "cuda" in report["memory_peak_mb"]:
        found["card"] = report["memory_peak_mb"]["cuda"]
    if not report["resumed"]:  # else its times are those of the last part alone
        seconds = {k: v for k, v in report["seconds"].items() if k not in ("read", "write", "total", "estimate")}
        static = [name for name in seconds if name.startswith(("frame to 3D", "to 3D"))]
        found |= {
            "seconds": sum(seconds.values()),
            "align": seconds.get("align camera", 0.0),
            "object": sum(seconds[name] for name in static),
            "moving": sum(v for k, v in seconds.items() if k not in ("align camera", "sample anchors", *static)),
        }
    camera, truth = report.get("camera"), case.get("camera")
    if camera:
        found["distance"] = camera["distance"]
    if camera and truth:
        size, true = (
            math.tan(math.radians(fovy) / 2) * distance
            for fovy, distance in (
                (camera["fovy"], camera["distance"]),
                (truth["fovy_degrees"], truth["distance"]),
            )
        )
        found["size"] = 100 * (size / true - 1)
    if report.get("distance"):
        found["model"] = report["distance"]["model_distance"]
    if report.get("verdict"):
        found["overlap"] = report["verdict"]["overlap"]
    return found


def _scores(
    scene: Any, truth: Mapping[str, Tensor], every: int, backend: str
) -> tuple[dict[str, float], dict[str, Tensor], str]:
    """Scores against the truth, at the truth's own times; the pictures by azimuth, and which side is shown."""
    import torch

    from ..core.metrics import mean_scores, on_white, score
    from ..core.metrics.temporal import jitter_error
    from ..core.scene.views import render_frames, scene_cameras

    sides = [a for a in truth if a != "0"]
    shown = sides[len(sides) // 2] if sides else "90"
    azimuths = [*truth] or ["0", shown]
    size = max(truth["0"].shape[1:3]) if truth else None
    times = scene.taus
    if truth:
        span = -(-len(truth["0"]) // every) - (0 if scene.loop else 1)
        times = torch.arange(len(truth["0"])) / every / span
        times = times[times <= 1 + 1e-6].clamp_max(1.0)
    drawn = render_frames(scene, scene_cameras(scene, [float(a) for a in azimuths], size=size), times, backend=backend)
    ours = dict(zip(azimuths, drawn))
    if not truth:
        return {}, ours, shown
    pairs = {a: (on_white(pictures[: len(times)]), on_white(ours[a])) for a, pictures in truth.items()}
    found = {"front": score(*pairs["0"])["psnr"]}
    if sides:
        mean = mean_scores([score(*pairs[a]) for a in sides])
        found |= {"unseen": mean["psnr"], "gain": mean["psnr"] - mean["frozen"]}
        found |= {name: mean[name] for name in ("motion", "iou", "ssim", "frozen")}
        if len(times) > 2:
            found["jitter"] = sum(jitter_error(b, a) for a, b in (pairs[side] for side in sides)) / len(sides)
    return found, ours, shown if shown in ours else "0"


# Jobs


def cases_of(folder: Path | None, only: Sequence[str], objects: int, out: Path) -> dict[str, Path]:
    """Cases by name: a folder's, so many generated objects, or without either the demo's creature.

    Raises:
        InputError: where there are none, or not those asked for.
    """
    found: dict[str, Path] = {}
    if folder is not None:
        found = {path.parent.name: path.parent.resolve() for path in sorted(folder.glob("*/case.json"))}
        if not found:
            raise InputError(f"--cases {folder}: no cases, a case is a folder with case.json, front, views and mesh.glb")
    found |= {f"object-{n}": made_case(out / MADE / f"object-{n}", n) for n in range(objects)}
    if not found:
        from ..core.runs.sample import write_sample

        path = out / MADE / "sample"
        found["sample"] = path if (path / "case.json").is_file() else write_sample(path)
    if missing := [name for name in only if name not in found]:
        raise InputError(f"--only {missing[0]}: no such case, choose of {', '.join(found)}")
    return {name: found[name] for name in only or found}


def made_case(folder: Path, number: int, frames: int = 16, size: int = 256) -> Path:
    """A generated object as a case: kept where it is there."""
    import torch

    from ..core.cameras import FrontCamera
    from ..core.io import write_frames
    from ..core.io.meshes import write_glb
    from ..core.render.mesh import render_mesh
    from ..core.runs.sample import TEST_AZIMUTHS
    from ..core.scene.anchors import LENS
    from ..training.objects import generate, meshes
    from ..training.tiny_prior import HELD_OUT

    if (folder / "case.json").is_file():
        return folder
    front = FrontCamera(LENS, 1.5, size, size)
    moving = meshes(generate(HELD_OUT + FIRST_OBJECT + number), [t / frames for t in range(frames)])
    cameras = front.cameras(torch.tensor([0.0, *TEST_AZIMUTHS]))
    views = [render_mesh(mesh, cameras) for mesh in moving]
    pictures = torch.stack(
        [torch.cat([v.color / v.alpha[..., None].clamp_min(1e-6), v.alpha[..., None]], -1).clamp(0, 1) for v in views], 1
    )
    case = {
        "name": folder.name,
        "frames": frames,
        "fps": 12,
        "camera": {"fovy_degrees": LENS, "distance": front.distance},
        "test_azimuths": list(TEST_AZIMUTHS),
        "licence": "Apache-2.0",
        "credit": "Anchor4D, generated",
    }
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        write_glb(temporary / "mesh.glb", moving[0])
        for name, view in zip(("front", *(f"views/{a}" for a in TEST_AZIMUTHS)), pictures):
            write_frames(temporary / name, view)
        (temporary / "case.json").write_text(json.dumps(case, indent=1))
    return folder


def slug(name: str) -> str:
    """A variant's name as a folder's."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-").lower()


def jobs_of(study: Study, cases: Mapping[str, Path], options: Options, only: Sequence[str] = ()) -> list[Job]:
    """A study's runs, the first variant first; those whose models are not here are refused with how to get them.

    Args:
        only: names of the variants to run.

    Raises:
        InputError: for a variant that there is not.
    """
    from .. import __version__
    from ..core.identity import canonical, file_identity, fingerprint

    if unknown := [name for name in only if name not in {v.name for v in study.variants}]:
        names = ", ".join(repr(v.name) for v in study.variants)
        raise InputError(f"--variants {unknown[0]!r}: not a variant of {study.name}, choose of {names}")
    wanted = [v for v in study.variants if not only or v.name in only]
    identities = {name: file_identity(path) for name, path in cases.items()} if study.run is None else {}
    jobs: list[Job] = []
    for variant in wanted:
        refused, plain = _absent(variant), None
        if study.run is None and not refused:
            try:
                settings = settings_of(study, variant, options, study.with_object)
                plain = canonical([asdict(settings), canonical(plain_config(study, variant, options, settings))])
            except InputError as error:
                refused = str(error)
        for case, path in ({"exact": Path()} if study.run is not None else cases).items():
            said = {
                "study": study.name, "variant": variant.name, "case": "" if study.run else str(path),
                "options": asdict(options),
            }  # fmt: skip
            content = {"content": identities.get(case, ""), "plain": plain, "trial": canonical(variant.trial)}
            key = fingerprint(__version__, said | content)
            name = f"{study.name}/{case}/{slug(variant.name)}"
            jobs.append(Job(name, () if refused else (json.dumps(said),), "" if refused else key, True, refused))
    return jobs


def _absent(variant: Variant) -> str:
    from ..core.priors.models import COMMAND, find

    absent = [name for name in variant.needs if find(name) is None]
    return f"needs {', '.join(absent)}; get with: " + "; ".join(f"{COMMAND} get {name}" for name in absent) if absent else ""


# The command


def add_options(steps: Any) -> None:
    """``study run`` and ``study list``."""
    text = "run studies: tables, drawings and a page of what modules, inputs and settings are worth"
    made = steps.add_parser("run", help=text, description=text[0].upper() + text[1:] + ".")
    made.set_defaults(step=run_studies, again="run the same command to go on")
    made.add_argument("names", nargs="+", metavar="NAME", help="studies, see study list; all = all of them")
    made.add_argument("--cases", type=Path, metavar="DIR", help="folder of cases (default: the demo's creature)")
    made.add_argument("--objects", type=_whole, default=0, metavar="N", help="generated objects as cases too")
    made.add_argument("--only", nargs="+", default=[], metavar="CASE", help="names of the cases to run (default: all)")
    presets = constant_of("core/methods/registry.py", "PRESETS")[1:]  # what follows without a fit is no study
    made.add_argument("--variants", nargs="+", default=[], metavar="NAME", help="rows to run (default: all)")
    made.add_argument("--preset", choices=presets, default="draft", help="(default: %(default)s)")
    made.add_argument(
        "--size", type=_whole, default=0, metavar="PX", help="largest picture of the fits (default: the preset's)"
    )
    made.add_argument("--gaussians", type=_whole, default=0, metavar="N", help="at most (default: as preset)")
    made.add_argument("--steps", type=_share, default=1.0, metavar="SHARE", help="share of the preset's steps (default: 1)")
    made.add_argument("--frames", type=_whole, metavar="N", help="frames of each clip (default: all)")
    for name, what in (("prior", "diffusion prior, as for fit"), ("anchors", "what draws STAG4D's anchors, as for fit")):
        made.add_argument(f"--{name}", default="auto", metavar="NAME", help=f"{what} (default: %(default)s)")
    made.add_argument("--prompt", default="", metavar="TEXT", help="ayg-modules with models: what the object is and does")
    made.add_argument("--seed", type=_whole, default=0, help="of every random choice (default: %(default)s)")
    made.add_argument("--yaw", type=_yaw, default="auto", metavar="auto|DEG", help="turn of the objects (default: searched)")
    made.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: %(default)s)")
    made.add_argument("--renderer", default="auto", help="what draws Gaussians, as for fit (default: %(default)s)")
    made.add_argument("--workers", type=_whole, metavar="N", help="runs at a time (default: one for each card, or a few)")
    made.add_argument("--threads", type=_whole, metavar="N", help="of each run (default: the machine's cores shared out)")
    made.add_argument("--retries", type=_whole, default=2, metavar="N", help="tries more for a run whose process breaks")
    made.add_argument("--out", type=Path, default=Path("anchor4d-study"), help="folder (default: %(default)s)")
    text = "the studies by name"
    listing = steps.add_parser("list", help=text, description=text[0].upper() + text[1:] + ".")
    listing.set_defaults(step=list_studies)
    for step in (made, listing):
        step.add_argument("--verbose", action="store_true", help=argparse.SUPPRESS)


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: choose a whole number from 0")
    return int(text)


def _yaw(text: str) -> float | str:
    try:
        value = 0.0 if text == "auto" else float(text)
    except ValueError:
        value = math.nan
    if not -360 <= value <= 360:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: choose auto, or degrees from -360 to 360")
    return text if text == "auto" else value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: choose a number above 0, at most 100")
    return value


def list_studies(args: argparse.Namespace, console: Console) -> int:
    """``study list``."""
    from .studies import STUDIES

    width = max(map(len, STUDIES))
    console.result("\n".join(f"{name:{width}}  {len(s.variants):2} rows  {s.question}" for name, s in STUDIES.items()))
    return 0


def run_studies(args: argparse.Namespace, console: Console) -> int:
    """``study run``."""
    import torch

    from ..core.runs.batch import Processes, local_plan, run_batch, summary
    from .studies import STUDIES
    from .study_page import results, write_study

    names = list(STUDIES) if args.names == ["all"] else list(dict.fromkeys(args.names))
    studies = [STUDIES.named(name) for name in names]
    if args.variants and len(studies) > 1:
        raise InputError("--variants: names rows of one study; give one, or leave it out")
    if args.frames is not None and args.frames < 2:
        raise InputError(f"--frames {args.frames}: motion needs at least 2")
    if args.workers == 0 or args.threads == 0:
        raise InputError("--workers, --threads: choose 1 or more")
    if 0 < args.size < SMALLEST:
        raise InputError(f"--size {args.size}: choose {SMALLEST} or more, or leave it out")
    options = Options(**{name: getattr(args, name) for name in Options.__dataclass_fields__})
    console.doing = "reading cases"
    cases = cases_of(args.cases, args.only, args.objects, args.out)
    jobs = [job for study in studies for job in jobs_of(study, cases, options, args.variants)]
    if all(job.refused for job in jobs):
        raise InputError(f"{', '.join(names)}: nothing to run, {jobs[0].refused}")
    workers, cards, threads = local_plan(args.workers, torch.cuda.device_count(), args.device)
    executor = Processes(study_row, args.out, workers, cards=cards, threads=args.threads or threads)
    records = run_batch(jobs, args.out, executor, console, retries=args.retries)
    for study in studies:
        found = results(study, args.out, cases, jobs, records)
        console.result(f"{study.name}: {study.question}")
        console.table(write_study(study, args.out / study.name, found, options))
        console.result(f"page: {args.out / study.name / 'study.html'}\n")
    refused = {job.name for job in jobs if job.refused}
    console.result(summary(records))
    if failed := [r["name"] for r in records if r["state"] != "done" and r["name"] not in refused]:
        raise InputError(
            f"{args.out}: {len(failed)} of {len(records)} runs failed ({', '.join(failed[:5])}); see batch.md there"
        )
    return 0
