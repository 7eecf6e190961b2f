"""Reading published checkpoint folders: safetensors only, every key and every shape accounted for.

A folder holds one model a subfolder (``unet/config.json`` and its weights, ...) as diffusers writes them, and often a
``model_index.json`` that names their classes. Nothing here reaches for the network or opens a pickle.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from ..files import InputError
from ..packages import problem
from ..progress import pulse

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Module = TypeVar("Module", bound=nn.Module)

#: Weight files by whose names diffusers (first) and transformers save.
STEMS = ("diffusion_pytorch_model", "model")
PICKLES = (".bin", ".ckpt", ".pth", ".pt")
CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json", "tokenizer_config.json")

#: Largest number of a network's configuration, largest number of its layers, blocks and heads, and bytes of a json file.
LARGEST, DEEPEST, LARGEST_JSON = 1e7, 1000, 64 << 20
_DEPTH = re.compile("layers|blocks|depth|heads|num_(hidden|res)")

# Buffers that old versions of the libraries wrote and today's make themselves.
_HARMLESS = re.compile(r"(^|\.)(position_ids|num_batches_tracked)$")


class Checkpoint:
    """A checkpoint folder.

    Args:
        folder: with one model a subfolder.

    Raises:
        InputError: if it is no folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.is_file():
            raise InputError(
                f"{self.folder}: a prior is a folder with one model a subfolder (unet, vae, ...), not a single file; "
                f"for a .ckpt or .bin run: python -m anchor4d models convert {self.folder}"
            )
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: no such folder")

    @property
    def name(self) -> str:
        """The folder's own name; of a snapshot in the Hub's cache, the repository's."""
        folder = self.folder.absolute()
        if folder.parent.name == "snapshots":
            return folder.parents[1].name.rsplit("--", 1)[-1]
        return folder.name

    @property
    def index(self) -> dict[str, Any]:
        """model_index.json, or {} where there is none."""
        path = self.folder / "model_index.json"
        return _read_json(path) if path.is_file() else {}

    @property
    def identity(self) -> str:
        """Identity among checkpoints of one layout, not read whole: a hash over size and end of every weight file."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*.safetensors")):
            size = path.stat().st_size
            with open(path, "rb") as file:
                file.seek(max(0, size - 65536))
                digest.update(f"{path.relative_to(self.folder).as_posix()} {size} ".encode() + file.read())
        return digest.hexdigest()[:12]

    def has(self, sub: str) -> bool:
        """Whether there is such a subfolder."""
        return (self.folder / sub).is_dir()

    def require(self, subs: Iterable[str], kind: str) -> None:
        """Every one of the subfolders, of a checkpoint that is said to be a ``kind``.

        Raises:
            InputError: that names what is missing and what was found.
        """
        missing = [sub for sub in subs if not self.has(sub)]
        if missing:
            raise InputError(
                f"{self.folder}: {kind} needs the folders {', '.join(missing)}, which are not there; {self.found()}"
            )

    def found(self) -> str:
        """What the folder looks like, for messages."""
        subs = sorted(p.name for p in self.folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        named = self.index.get("_class_name")
        return (f"found a {named} with " if isinstance(named, str) else "found ") + (
            f"the folders {', '.join(subs)}" if subs else "no subfolders"
        )

    def config(self, sub: str) -> dict[str, Any]:
        """The json configuration in a subfolder.

        Raises:
            InputError: where there is none, or it is not json.
        """
        for name in CONFIGS:
            if (path := self.folder / sub / name).is_file():
                return _read_json(path)
        raise InputError(f"{self.folder / sub}: no {CONFIGS[0]} here, the checkpoint is incomplete; get it again")

    def scheduler(self, sub: str = "scheduler") -> Any:
        """The diffusers scheduler that a subfolder describes."""
        import diffusers

        config = self.numbers(sub)
        name = str(config.get("_class_name", "DDIMScheduler"))
        cls: Any = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
        if cls is None:
            raise InputError(f"{self.folder / sub}: scheduler class {name!r} is not known to diffusers")
        with readable(self.folder / sub, f"a {name}"):
            return cls.from_config(config)

    def numbers(self, sub: str) -> dict[str, Any]:
        """:meth:`config` of a network or scheduler, its numbers within what any published one has.

        Raises:
            InputError: for a number that would take memory or time without end, or that is none.
        """
        config = self.config(sub)
        for key, value in _flat(config):
            most = DEEPEST if _DEPTH.search(key) else LARGEST
            if isinstance(value, int | float) and not abs(value) <= most:
                raise InputError(
                    f"{self.folder / sub}: its config says {key} = {value:g}, at most {most:g} is read; get it again"
                )
        return config

    def tokenizer(self, sub: str = "tokenizer") -> Any:
        """The transformers tokenizer in a subfolder."""
        from transformers import AutoTokenizer

        if not self.has(sub):
            raise InputError(f"{self.folder}: no folder {sub}, the checkpoint is incomplete; get it again")
        lacking = [name for name in ("sentencepiece", "google.protobuf") if problem(name)]
        if lacking and (self.folder / sub / "spiece.model").is_file() and not (self.folder / sub / "tokenizer.json").is_file():
            raise InputError(f"{self.folder / sub / 'spiece.model'}: to read it, run: pip install sentencepiece protobuf")
        with quiet():
            with readable(self.folder / sub, "a tokenizer of transformers"):
                return AutoTokenizer.from_pretrained(self.folder / sub, local_files_only=True, trust_remote_code=False)

    def weights(self, sub: str) -> tuple[list[Path], str | None]:
        """A subfolder's weight files, each with an intact header, and their variant ("fp16", ...; None for the plain one).

        Raises:
            InputError: for no weights, pickles only, a missing shard or a file cut short.
        """
        folder = self.folder / sub
        if not folder.is_dir():
            raise InputError(f"{self.folder}: no folder {sub}; {self.found()}")
        for variant in (None, "fp16", "fp16_ema", "bf16"):
            mark = f".{variant}" if variant else ""
            for stem in STEMS:
                single = folder / f"{stem}{mark}.safetensors"
                index = folder / f"{stem}.safetensors.index{mark}.json"
                if single.is_file():
                    files = [single]
                elif index.is_file():
                    files = [folder / shard for shard in _shards(index)]
                    missing = [file.name for file in files if not file.is_file()]
                    if missing or not files:
                        names = ", ".join(missing) or "any shard"
                        raise InputError(f"{index}: it names {names}, not in this folder; get the checkpoint again")
                else:
                    continue
                for file in files:
                    _check_header(file)
                return files, variant
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        if pickles:
            raise InputError(
                f"{folder / pickles[0]}: a pickle, which can run code and is not opened here; convert it once with: "
                f"python -m anchor4d models convert {self.folder}"
            )
        raise InputError(f"{folder}: no weights, expected {STEMS[0]}.safetensors or {STEMS[1]}.safetensors")

    def load(
        self, cls: type[Module], sub: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Module:
        """One network, frozen, in evaluation mode.

        Args:
            cls: a diffusers or transformers model class, or an ``nn.Module`` with a classmethod ``from_config(dict)``.
            sub: its subfolder.

        Raises:
            InputError: where the weights are not exactly those that the class and the configuration call for.
        """
        pulse()
        files, variant = self.weights(sub)
        config, where, loader = self.numbers(sub), self.folder / sub, getattr(cls, "from_pretrained", None)
        architectures = config.get("architectures")
        named = str(
            config.get("_class_name")
            or (architectures[0] if isinstance(architectures, list) and architectures else cls.__name__)
        )
        if loader is None:
            model, missing, unexpected, mismatched = _load_own(cls, config, files, dtype, where)
        else:
            if "_class_name" in config and named != cls.__name__:
                raise InputError(f"{where}: holds a {named}, expected a {cls.__name__}")
            typed = {"torch_dtype": dtype} if cls.__module__.startswith("diffusers") else {"dtype": dtype}
            with quiet(), readable(where, f"a {cls.__name__}"):
                model, info = loader(
                    where,
                    variant=variant,
                    use_safetensors=True,
                    local_files_only=True,
                    low_cpu_mem_usage=True,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    **typed,
                )
            missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
            mismatched = {(str(key), tuple(found), tuple(wanted)) for key, found, wanted in info["mismatched_keys"]}
            missing -= {key for key, _, _ in mismatched}
        unexpected = {key for key in unexpected if not _HARMLESS.search(key)}
        problems = [
            f"{len(keys)} {what} ({', '.join(sorted(keys)[:2])}{', ...' if len(keys) > 2 else ''})"
            for keys, what in (
                (missing, "missing"),
                (unexpected, "not known"),
                ({f"{key} {found}, expected {wanted}" for key, found, wanted in mismatched}, "of wrong shape"),
            )
            if keys
        ]
        if problems:
            other = f" (its config names {named})" if named != cls.__name__ else ""
            raise InputError(f"{where}: not the weights of the {cls.__name__} it describes{other}: {'; '.join(problems)}")
        model.requires_grad_(False)
        return model.eval().to(device)


def precision_dtypes(
    precision: Precision, device: str | torch.device, half: torch.dtype | None = None
) -> tuple[torch.dtype, torch.dtype]:
    """Network and VAE dtypes.

    The VAE is never run in float16, where many overflow (``force_upcast`` in a VAE's configuration says so): it takes bfloat16
    where the device has it, else float32. "auto" is float32 on the CPU, else ``half``, by default bfloat16 where the device has
    it and float16 where not.

    Raises:
        InputError: for an unknown precision.
    """
    device = torch.device(device)
    if precision not in ("auto", "fp32", "bf16", "fp16"):
        raise InputError(f"precision {precision!r}: choose one of auto, fp32, bf16, fp16")
    if precision == "fp32" or (precision == "auto" and device.type == "cpu"):
        return torch.float32, torch.float32
    bfloat = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
    vae = torch.bfloat16 if bfloat else torch.float32
    chosen = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision) or half
    return chosen or (torch.bfloat16 if bfloat else torch.float16), vae


@contextmanager
def readable(where: str | Path, what: str) -> Iterator[None]:
    """Whatever a library raises over a file's odd values, as an InputError; lack of memory stays what it is.

    Args:
        where: names the file.
        what: it is read as.
    """
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(f"{where}: cannot be read as {what} ({_line(error)})") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and warnings of diffusers and transformers: what they would say is raised here."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    levels = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in (diffusers_log, transformers_log)]
    for log, _, _ in levels:
        log.set_verbosity(log.CRITICAL)
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, level, bars in levels:
            log.set_verbosity(level)
            if bars:
                log.enable_progress_bar()


def _load_own(
    cls: type[Module], config: dict[str, Any], files: list[Path], dtype: torch.dtype, where: Path
) -> tuple[Module, set[str], set[str], set[tuple[str, tuple[int, ...], tuple[int, ...]]]]:
    from safetensors.torch import load_file

    with readable(where, f"a {cls.__name__}, which its config should describe"), torch.device("meta"):
        model = cls.from_config(config)  # pyright: ignore[reportAttributeAccessIssue]
    expected = model.state_dict()
    loaded = {key: value for file in files for key, value in load_file(file).items()}
    unexpected, missing = set(loaded) - set(expected), set(expected) - set(loaded)
    mismatched = {
        (key, tuple(loaded[key].shape), tuple(value.shape))
        for key, value in expected.items()
        if key in loaded and loaded[key].shape != value.shape
    }
    if not missing and not mismatched:
        tensors = {
            key: loaded[key].to(dtype) if loaded[key].is_floating_point() else loaded[key].to(expected[key].dtype)
            for key in expected
        }
        model.load_state_dict(tensors, assign=True)
        if remaining := [name for name, buffer in model.named_buffers() if buffer.is_meta]:
            raise RuntimeError(f"{cls.__name__}: buffers {remaining} are made on the default device and not saved")
    return model, missing, unexpected, mismatched


def _check_header(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cut short or not a safetensors file ({_line(error)}); get it again") from None


def _shards(index: Path) -> list[str]:
    """Names of the files that an index spreads weights over, each beside it."""
    listed = _read_json(index).get("weight_map", {})
    shards = set(listed.values()) if isinstance(listed, dict) and all(isinstance(v, str) for v in listed.values()) else {""}
    for shard in shards:
        if not re.fullmatch(r"[^/\\\0:]+\.safetensors", shard):
            raise InputError(f"{index}: names {shard[:80]!r}, which is no safetensors file beside it; get the checkpoint again")
    return sorted(shards)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"{path.stat().st_size >> 20} MB")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as json ({_line(error)}); get it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a json object; get it again")
    return value


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested json with the name of its nearest object's key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, name)
    elif isinstance(value, list):
        yield key, len(value)
        for inner in value:
            yield from _flat(inner, key)
    else:
        yield key, value


def _line(error: BaseException) -> str:
    """An error's message as one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
