"""A set of aligned quadruplets (text, image, video, 3D) after Align4D's X4D: its manifest, its filters, and what people choose.

A set is a folder with ``manifest.jsonl``, a line for each quadruplet: its text, the paths of its files below the folder with
their hashes, where it comes from and under which licence, how it was made, and what was measured on it. ``rejected.jsonl`` has
the same of what was left out, with the reasons.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from ... import __version__
from ..cameras import Cameras
from ..files import InputError, atomic_path, only_process
from ..generate.chain import FOLDER, read_list
from ..metrics import on_white
from ..metrics.base import MEAN, METRICS, Footage, measure
from ..priors.models import model_named
from ..scene.object3d import Object3D
from ..scene.scene import Scene4D
from ..scene.views import render_frames
from ..video import DrivingVideo
from .folder import REPORT, SCENE
from .quadruplets import CLIP, FACTS, FILES, MEASURED, QUADRUPLET, write_quadruplet
from .report import read_json, write_json

#: Files of a set.
MANIFEST, REJECTED, CREDITS, SHEETS = "manifest.jsonl", "rejected.jsonl", "CREDITS.md", "sheets"
#: The number grows when older programs could no longer read a manifest.
VERSION = 1
#: Measures that a quadruplet has beside those of :data:`~.quadruplets.MEASURED`: of the clip's framing, and of the object in
#: its first frame, as the verdict has them.
OWN = ("size", "pixels", "border", "overlap", "error")
#: What is kept where nothing else is asked: least and most of each measure, and the verdicts.
LIMITS: Mapping[str, tuple[float, float]] = {
    "iou": (0.7, math.inf),
    "motion": (0.0, math.inf),
    "frozen": (0.0, 35.0),
    "size": (0.005, 0.9),
    "pixels": (24.0, math.inf),
    "border": (0.0, 0.02),
}
VERDICTS = ("good", "doubtful")
#: Most bytes of a manifest, and of a file that a person's choice is read from.
LARGEST, LARGEST_CHOICE = 1 << 30, 64 << 20
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}")

Entry = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """What a quadruplet was to be made of.

    Args:
        name: its id, and its run's folder.
        given: of "prompt", "image", "video" and "object", the text and the paths.
        notes: "caption", "licence", "credit", "source" and whatever else its row says beside the run's options.
        failed: why there is no run, where there is none.
    """

    name: str
    given: Mapping[str, str]
    notes: Mapping[str, str] = field(default_factory=dict)
    failed: str = ""


@dataclass(frozen=True)
class Limits:
    """What a quadruplet has to be to stay in a set.

    Args:
        bounds: least and most of measures, by name; a measure that a quadruplet cannot have (there is no video, ...) bounds
            nothing.
        verdicts: that are kept; a run without one is kept.
    """

    bounds: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(LIMITS))
    verdicts: tuple[str, ...] = VERDICTS

    @property
    def further(self) -> list[str]:
        """Metrics that are not measured with every quadruplet."""
        return [name for name in self.bounds if name not in (*MEASURED, *OWN)]

    def check(self) -> None:
        """Refuse what could not be measured here, before any work.

        Raises:
            InputError: for a name that is no measure, or a metric whose network or package is absent.
        """
        for name in self.bounds:
            if name not in OWN and name not in METRICS:
                raise InputError(f"limit {name!r}: no measure of this name; choose of {', '.join((*OWN, *METRICS))}")
        for name in self.further:
            # Whatever it may need of a footage is there: a lack is the machine's.
            picture = torch.zeros(16, 8, 8, 4).numpy()
            footage = Footage({"0": picture}, {"0": picture}, "text", picture[0])
            lack = METRICS.named(name).lacks(footage)
            if lack:
                raise InputError(f"limit {name!r}: {lack}")

    def reasons(self, entry: Entry) -> list[str]:
        """Why a quadruplet is left out; none where it stays."""
        found: list[str] = []
        if entry.get("verdict") is not None and entry["verdict"] not in self.verdicts:
            found.append(f"verdict {entry['verdict']}")
        for name, (least, most) in self.bounds.items():
            value = entry["measures"].get(name)
            if value is not None and not least <= value <= most:
                found.append(f"{name} {value:.4g} {f'below {least:g}' if value < least else f'above {most:g}'}")
        return found


# Building


def gather(
    out: Path,
    sources: Sequence[Source],
    limits: Limits = Limits(),
    *,
    captioner: Callable[[torch.Tensor], str] | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Entry], list[Entry]]:
    """Write the manifest of the finished runs below a folder; returns what is kept and what is left out.

    A text is, in this order, the row's caption, its prompt, what the captioner says of the clip, the row's name. Captions and
    metrics that ask a network are kept beside each quadruplet and made again only where the clip, or who makes them, changed.

    Args:
        out: with a folder for each run, and in it the quadruplet of :func:`~.quadruplets.of_run`.
        captioner: a :class:`~..generate.caption.Captioner`.
        device: where metrics' networks run.
        progress: called with the quadruplets done and all of them; may raise to interrupt.
    """
    kept: list[Entry] = []
    rejected: list[Entry] = []
    networks: dict[str, Any] = {}
    for number, source in enumerate(sources):
        if progress is not None:
            progress(number, len(sources))
        if source.failed:
            rejected.append(_origin(source) | {"reasons": [source.failed]})
            continue
        try:
            entry = _entry(out, source, limits, captioner, device, networks)
        except (InputError, OSError) as error:
            rejected.append(_origin(source) | {"reasons": [" ".join(str(error).split())]})
            continue
        reasons = limits.reasons(entry)
        if reasons:
            rejected.append(entry | {"reasons": reasons})
        else:
            kept.append(entry)
    with only_process(out):
        write_lines(out / REJECTED, rejected)
        write_lines(out / MANIFEST, kept)
    return kept, rejected


def _entry(
    out: Path,
    source: Source,
    limits: Limits,
    captioner: Callable[[torch.Tensor], str] | None,
    device: str,
    networks: dict[str, Any],
) -> Entry:
    run, folder = out / source.name, out / source.name / QUADRUPLET
    report, facts = read_json(run / REPORT), read_json(folder / FACTS)
    if not report or not facts:
        raise InputError(f"{folder}: no quadruplet there; build it again")
    places = {what: run / SCENE if what == "scene" else folder / name for what, name in FILES.items()}
    files = {what: described(place, out) for what, place in places.items()}
    text, by = _text(source, folder, files["clip"]["sha256"], captioner)
    measures = dict(facts["measures"])
    if limits.further:
        measures |= _further(run, folder, limits.further, text, device, networks, files)
    models = _models(run, report)
    if licence := getattr(captioner, "licence", "") if by == getattr(captioner, "name", "") else "":
        models.append({"of": "text", "name": by, "licence": licence})
    return _complete(source, text, by, report, models, facts | {"measures": measures}, files)


def _origin(source: Source) -> Entry:
    """What is known of a quadruplet before it is made."""
    given = [what for what in ("prompt", "image", "video", "object") if what in source.given]
    kinds = {"prompt": "text", "object": "3d"}
    # A text beside others says what they show.
    started = [kinds.get(what, what) for what in given if what != "prompt" or given == ["prompt"]]
    notes = {name: source.notes.get(name, "") for name in ("licence", "credit", "source")}
    other = {name: value for name, value in source.notes.items() if name not in (*notes, "caption")}
    return {"version": VERSION, "id": source.name, "from": "+".join(started), **notes, "notes": other}


def _text(source: Source, folder: Path, clip: str, captioner: Any) -> tuple[str, str]:
    """The text of a quadruplet, and who says it: "caption", "prompt", a captioner's name, or "name"."""
    for kind, text in (("caption", source.notes.get("caption", "")), ("prompt", source.given.get("prompt", ""))):
        if text.strip():
            return text.strip(), kind
    if captioner is None:
        return re.sub(r"[_.-]+", " ", source.name).strip(), "name"
    kept, path = read_json(folder / "caption.json"), folder / "caption.json"
    if (kept.get("by"), kept.get("clip")) != (captioner.identity, clip):
        frames = read_clip_tensors(folder / CLIP)["frames"]
        kept = {"by": captioner.identity, "clip": clip, "text": captioner(torch.from_numpy(on_white(frames)[..., :3]))}
        write_json(path, kept)
    return kept["text"], captioner.name


def _further(
    run: Path, folder: Path, names: Sequence[str], text: str, device: str, networks: dict[str, Any], files: Mapping[str, Any]
) -> dict[str, float]:
    """Metrics of the scene's front against the clip, the text and the picture, beyond :data:`~.quadruplets.MEASURED`."""
    kept, path = read_json(folder / "measures.json"), folder / "measures.json"
    key = [files["clip"]["sha256"], files["scene"]["sha256"], text]
    values = kept.get("values", {}) if kept.get("of") == key else {}
    lacking = [name for name in names if name not in values]
    if lacking:
        scene, tensors = Scene4D.load(run / SCENE, device), read_clip_tensors(folder / CLIP)
        clip = on_white(tensors["frames"])
        height, width = tensors["frames"].shape[1:3]
        camera = Cameras(tensors["world_to_camera"][None], tensors["K"][None], width, height)
        drawn = on_white(render_frames(scene, camera, scene.taus)[0])
        found = measure(Footage({"0": drawn}, {"0": clip}, text, clip[0], device=device, networks=networks), lacking)
        values |= {name: value[MEAN] for name, value in found.values.items()}
        write_json(path, {"of": key, "values": values})
    return {name: values[name] for name in names if name in values}


def _models(run: Path, report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The models that a quadruplet was made with, and their licences where the registry knows them."""
    used = [(what, name) for what, entry in read_list(run / FOLDER).items() for name in str(entry.get("by", "")).split(" and ")]
    used += [("4d", name) for name in str(report.get("prior") or "").split(", ")]
    found: list[dict[str, str]] = []
    for what, name in used:
        if name not in ("", "none", "render", "inflate"):
            model = model_named(name)
            found.append({"of": what, "name": Path(name).name, "licence": "" if model is None else model.licence})
    return found


def described(path: Path, root: Path) -> dict[str, Any]:
    """What a manifest says of a file: its path below the set, its SHA-256 and its bytes."""
    if not path.is_file():
        raise InputError(f"{path}: is not there; build it again")
    return {"path": path.relative_to(root).as_posix(), "sha256": digest(path), "bytes": path.stat().st_size}


def digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, that of a line ``name sha256`` for each of its files, sorted by name."""
    if path.is_dir():
        names = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
        return hashlib.sha256("".join(f"{name} {digest(file)}\n" for name, file in names).encode()).hexdigest()
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def summary(kept: Sequence[Entry], rejected: Sequence[Entry]) -> str:
    """How many are kept and left out, and why."""
    why: dict[str, int] = {}
    for entry in rejected:
        for reason in entry["reasons"]:
            word = reason.split()[0] if "measures" in entry else "not made"
            why[word] = why.get(word, 0) + 1
    lines = [f"{len(kept)} quadruplets, {len(rejected)} left out"]
    if why:
        lines[0] += f" ({', '.join(f'{word}: {count}' for word, count in sorted(why.items(), key=lambda item: -item[1]))})"
    if unknown := sum(not entry["licence"] for entry in kept):
        lines.append(f"{unknown} without a licence: give it as licence, in the rows or by --set licence=...")
    return "\n".join(lines)


def add(
    folder: Path,
    name: str,
    scene: Scene4D,
    video: DrivingVideo | None = None,
    item: Object3D | None = None,
    *,
    text: str,
    notes: Mapping[str, str] | None = None,
    backend: str = "auto",
) -> Entry:
    """Add one quadruplet to a set, or replace the one of its name; what has been measured on it bounds nothing here.

    Args:
        folder: of the set; a new one is begun.
        name: its id, letters, digits, "_", "-" and ".".
        scene, video, item, backend: see :func:`~.quadruplets.write_quadruplet`.
        text: what the object is and does.
        notes: "licence", "credit", "source".

    Raises:
        InputError: without a text, or for a name that is none.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"name {name[:60]!r}: choose letters, digits, '_', '-' and '.', at most 100")
    if not text.strip():
        raise InputError(f"{name}: no text, say what the object is and does")
    given = {what: "" for what, value in (("video", video), ("object", item)) if value is not None} or {"prompt": text}
    with only_process(folder):
        entries = read_manifest(folder / MANIFEST) if (folder / MANIFEST).is_file() else []
        place = folder / name
        facts = write_quadruplet(place, scene, video, item, backend)
        scene.save(place / SCENE)
        files = {what: described(place / file, folder) for what, file in FILES.items()}
        source, models = Source(name, given, notes or {}), _models(place, scene.meta)
        entry = _complete(source, " ".join(text.split()), "given", scene.meta, models, facts, files)
        write_lines(folder / MANIFEST, [*(other for other in entries if other["id"] != name), entry])
    return entry


def _complete(
    source: Source,
    text: str,
    by: str,
    made: Mapping[str, Any],
    models: Sequence[Mapping[str, str]],
    facts: Mapping[str, Any],
    files: Mapping[str, Any],
) -> Entry:
    """A line of the manifest."""
    return {
        **_origin(source),
        "text": text,
        "text_by": by,
        "made": {name: made.get(name) for name in ("method", "preset", "seed", "without", "plus")} | {"program": __version__},
        "models": list(models),
        "inputs": {
            what: {"name": Path(path).name, "sha256": digest(Path(path))}
            for what, path in source.given.items()
            if what != "prompt" and path
        },
        **{name: facts[name] for name in ("frames", "fps", "loops", "size", "camera", "crop", "object", "gaussians")},
        "files": dict(files),
        "measures": {name: round(value, 6) for name, value in facts["measures"].items()},
        "verdict": facts.get("verdict"),
    }


# Manifests


def write_lines(path: Path, entries: Iterable[Entry]) -> None:
    """Write JSON lines in one step."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for entry in entries:
            file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")


def read_manifest(path: Path) -> list[Entry]:
    """The entries of a manifest, checked: ids are names, files lie below the set.

    Args:
        path: of :data:`MANIFEST` or :data:`REJECTED`.

    Raises:
        InputError: for a missing, foreign, garbled or newer file, with its line.
    """
    if not path.is_file():
        raise InputError(f"{path}: no manifest; give the folder that x4d build or x4d choose wrote")
    if path.stat().st_size > LARGEST:
        raise InputError(f"{path}: more than {LARGEST >> 20} MB")
    entries: list[Entry] = []
    taken: set[str] = set()
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                entry = json.loads(line)
                _check_entry(entry)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                reason = " ".join(str(error).split())[:120]
                raise InputError(f"{where}: is not as x4d writes it ({reason}); build the set again") from None
            if entry["id"] in taken:
                raise InputError(f"{where}: a second {entry['id']}; build the set again")
            taken.add(entry["id"])
            entries.append(entry)
    return entries


def read_set(folder: Path) -> tuple[list[Entry], list[Entry]]:
    """What a set keeps, and what of those that were made its filters left out.

    Raises:
        InputError: as :func:`read_manifest`.
    """
    left = read_manifest(folder / REJECTED) if (folder / REJECTED).is_file() else []
    return read_manifest(folder / MANIFEST), [entry for entry in left if "files" in entry]


def _check_entry(entry: Any) -> None:
    if entry["version"] > VERSION:
        raise ValueError(f"version {entry['version']} is newer than this program reads, update Anchor4D")
    if not _NAME.fullmatch(entry["id"]):
        raise ValueError(f"id {entry['id'][:40]!r}")
    for file in entry.get("files", {}).values():
        path = PurePosixPath(file["path"])
        if path.is_absolute() or ".." in path.parts or "\\" in file["path"] or ":" in file["path"] or not path.parts:
            raise ValueError(f"path {file['path'][:60]!r} leaves the set")
        if not re.fullmatch(r"[0-9a-f]{64}", file["sha256"]):
            raise ValueError(f"sha256 of {file['path'][:60]!r}")


def read_clip_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a quadruplet's ``clip.safetensors``, see :func:`~.quadruplets.write_quadruplet`.

    Raises:
        InputError: for a file that is damaged or another.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({' '.join(str(error).split())[:100]})") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    frames = shapes.get("frames", ())
    wanted = {"taus": frames[:1], "world_to_camera": (4, 4), "K": (3, 3)}
    good = len(frames) == 4 and frames[3] == 4 and frames[0] >= 1 and tensors["frames"].dtype == torch.uint8
    if not good or any(shapes.get(name) != shape for name, shape in wanted.items()):
        raise InputError(f"{path}: not the clip of a quadruplet; build it again")
    return tensors


# Choosing


def read_choice(path: Path) -> tuple[set[str], set[str]]:
    """What a person saw and what of it stays: a file that a sheet's page saved, or a text of ids, one a line.

    Returns:
        The ids that were seen (of a text: none, all others are left out), and those to keep.

    Raises:
        InputError: for a file that is neither.
    """
    try:
        if path.stat().st_size > LARGEST_CHOICE:
            raise InputError(f"{path}: more than {LARGEST_CHOICE >> 20} MB")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a choice ({' '.join(str(error).split())[:100]})") from None
    if path.suffix.lower() != ".json":
        return set(), {line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")}
    try:
        value = json.loads(text)
        seen, keep = value["seen"], value["keep"]
        if not all(isinstance(name, str) for name in (*seen, *keep)) or not set(keep) <= set(seen):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{path}: is no choice that a sheet's page saved; save it again, or give a text of ids") from None
    return set(seen), set(keep)


def choose(
    folder: Path, out: Path, choices: Sequence[Path] = (), *, drop: Iterable[str] = (), also: Iterable[str] = ()
) -> list[Entry]:
    """A set of what people chose of another: its files copied, each checked against its hash, and a manifest.

    What nobody saw stays as the filters left it; what several saw stays where all of them keep it. What the filters had left
    out is taken where a person keeps it; its reasons stay in the manifest.

    Args:
        folder: of the set that was built.
        out: a new folder, or one of an earlier choice, which is replaced.
        choices: files, see :func:`read_choice`.
        drop, also: ids to leave out, and to take of those that the filters left out.

    Raises:
        InputError: for ids that the set does not have, files that are not those of the manifest, or an ``out`` that is no
            chosen set.
    """
    kept, left = read_set(folder)
    known = {entry["id"]: entry for entry in (*kept, *left)}
    chosen, drop, also = {entry["id"] for entry in kept}, set(drop), set(also)
    wanted, refused = set(also), set(drop)
    for path in choices:
        seen, keep = read_choice(path)
        if unknown := sorted((seen | keep) - known.keys()):
            raise InputError(f"{path}: names {unknown[0]!r}, which {folder} does not have; is it of another set?")
        wanted |= keep
        refused |= (seen or known.keys()) - keep
    if unknown := sorted((drop | also) - known.keys()):
        raise InputError(f"{unknown[0]!r}: no quadruplet of this id in {folder}; see {MANIFEST} and {REJECTED}")
    chosen = (chosen | wanted) - refused
    if not chosen:
        raise InputError(f"{folder}: nothing is left to keep")
    if out.resolve() == folder.resolve():
        raise InputError(f"--out {out}: is the set itself, choose another folder")
    earlier = (out / MANIFEST).is_file() and (out / CREDITS).is_file() and not (out / REJECTED).exists()
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not earlier)):
        raise InputError(f"--out {out}: is there and no chosen set, choose another folder")
    entries: list[Entry] = []
    with atomic_path(out) as temporary:
        for name in (name for name in known if name in chosen):
            files = {}
            for what, file in known[name]["files"].items():
                target = PurePosixPath(name) / PurePosixPath(file["path"]).name
                place = checked_file(folder, file)
                (temporary / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(place, temporary / target)
                files[what] = file | {"path": target.as_posix()}
            entries.append(known[name] | {"files": files, "chosen": bool(choices) or name in also})
        write_lines(temporary / MANIFEST, entries)
        (temporary / CREDITS).write_text(credits(entries), encoding="utf-8")
    return entries


def credits(entries: Sequence[Entry]) -> str:
    """Who made what under which licence, as Markdown."""
    lines = ["# Credits", "", "| id | licence | credit | source | models |", "|---|---|---|---|---|"]
    for entry in entries:
        models = ", ".join(f"{m['name']} ({m['licence'] or 'licence not known'})" for m in entry.get("models", []))
        cells = [entry["id"], entry["licence"] or "not given", entry["credit"], entry["source"], models]
        lines.append(f"| {' | '.join(' '.join(str(cell).split()).replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def checked_file(folder: Path, file: Mapping[str, Any], *, whole: bool = True) -> Path:
    """A file of a set.

    Args:
        whole: also compare its hash.

    Raises:
        InputError: where it is missing or another.
    """
    path = folder / file["path"]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{path}: leads out of the set")
    if not path.is_file():
        raise InputError(f"{path}: is missing; get or build it again")
    if whole and digest(path) != file["sha256"]:
        raise InputError(f"{path}: is not the file of the manifest; get or build it again")
    return path
