"""diffusers' own pipelines as generators: loaded strictly from a folder, every step reported."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from ..files import InputError
from ..priors.checkpoints import Checkpoint, quiet
from .sampling import StepProgress

#: Where a pipeline's networks wait for their turn: all on the device, or in main memory ("model": one network at a time goes to
#: the device, "sequential": one layer at a time, slow, for the smallest cards).
Offload = Literal["none", "model", "sequential"]


def located(source: str | Path) -> Checkpoint:
    """A checkpoint folder, by path, or by the name or Hub id of a model that is on this machine.

    Raises:
        InputError: with the command that gets it, where it is not.
    """
    if Path(source).exists():
        return Checkpoint(source)
    from ..priors.models import find, missing

    found = find(str(source))
    if found is None:
        raise missing(str(source))
    return Checkpoint(found)


def load_pipeline(
    cls: Any,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    exceptions: dict[str, torch.dtype] | None = None,
    device: str | torch.device = "cpu",
    offload: Offload = "none",
    parts: dict[str, Any] | None = None,
) -> Any:
    """One of diffusers' pipelines from a folder, each of its networks accounted for key by key.

    Args:
        cls: the pipeline class; its networks are those that the folder's model_index.json names.
        dtype: of every network but the ``exceptions``, by name.
        parts: components from elsewhere, by name.

    Raises:
        InputError: for networks of other libraries (their code is not run), or weights that are not what they should be.
    """
    wanted = inspect.signature(cls.__init__).parameters
    parts = dict(parts or {})
    for name, entry in checkpoint.index.items():
        if name not in wanted or name in parts or not isinstance(entry, list) or entry[0] is None:
            continue
        kind = _class(checkpoint, name, *entry)
        if kind.__name__.endswith(("Tokenizer", "TokenizerFast", "TokenizersBackend")):
            parts[name] = checkpoint.tokenizer(name)
        elif issubclass(kind, nn.Module):
            parts[name] = checkpoint.load(kind, name, dtype=(exceptions or {}).get(name, dtype))
    with quiet():
        try:
            pipeline = cls.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False, **parts)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{checkpoint.folder}: cannot be read as a {cls.__name__} ({reason})") from None
    device = torch.device(device)
    if offload == "none" or device.type not in ("cuda", "xpu"):
        return pipeline.to(device)
    vae: Any = getattr(pipeline, "vae", None)
    if hasattr(vae, "use_tiling"):
        vae.enable_tiling()
    (pipeline.enable_model_cpu_offload if offload == "model" else pipeline.enable_sequential_cpu_offload)(device=device)
    return pipeline


def run_pipeline(
    pipeline: Any, call: dict[str, Any], progress: StepProgress | None, picture: Callable[[Tensor], Tensor | None]
) -> Any:
    """What a pipeline makes of those entries of ``call`` that it takes.

    Args:
        picture: draws the latents after a step, for ``progress``.
    """
    accepted = inspect.signature(type(pipeline).__call__).parameters
    latest: list[Tensor] = []

    def keep(*args: Any) -> dict[str, Any]:
        """Of both of diffusers' callbacks: (pipeline, step, time, {"latents": ...}) and the older (step, time, latents)."""
        latest[:] = [args[-1]["latents"] if isinstance(args[-1], dict) else args[-1]]
        return {}

    call = call | {"callback_on_step_end" if "callback_on_step_end" in accepted else "callback": keep}
    pipeline.progress_bar = StepBar(progress, lambda: picture(latest[0]) if latest else None)
    with torch.no_grad():
        return pipeline(**{name: value for name, value in call.items() if name in accepted})


@torch.no_grad()
def false_colors(latents: Tensor, layout: str, **sides: int) -> Tensor:  # (h, w, 3)
    """The middle latent frame of the first sample: its three strongest directions among the channels.

    Args:
        layout: of the latents in einops' words, with b, f, h, w and c, and ``sides`` of those that it joins.
    """
    video = rearrange(latents.detach().float().cpu(), f"{layout} -> b f h w c", **sides)[0]
    frame = video[len(video) // 2]
    flat = frame.reshape(-1, frame.shape[-1]) - frame.mean((0, 1))
    axes = torch.linalg.eigh(flat.T @ flat).eigenvectors[:, -3:].flip(1)
    axes = axes * torch.where(axes.sum(0) < 0, -1.0, 1.0)
    color = (flat @ axes).reshape(*frame.shape[:2], 3)
    return (color / (4 * color.std().clamp_min(1e-6)) + 0.5).clamp(0, 1)


def _class(checkpoint: Checkpoint, name: str, library: str, named: str) -> type:
    if library in ("diffusers", "transformers"):
        found = getattr(importlib.import_module(library), named, None)
    else:  # a pipeline's own network lies beside it
        found = getattr(getattr(importlib.import_module("diffusers.pipelines"), library, None), named, None)
    if not isinstance(found, type):
        raise InputError(
            f"{checkpoint.folder / 'model_index.json'}: {name} is a {named} of {library}, which is not part of diffusers or "
            "transformers as installed; code from checkpoints is not run"
        )
    return found


class StepBar:
    """Stands in for a pipeline's progress bar: passes each step on to ``progress``, which may raise to interrupt.

    Every pipeline has such a bar, also those without a callback.
    """

    def __init__(self, progress: StepProgress | None, picture: Callable[[], Tensor | None]) -> None:
        self.progress, self.picture = progress, picture
        self.done, self.total, self.items = 0, 0, iter(())

    def __call__(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> StepBar:
        items = list(iterable) if iterable is not None else []
        self.done, self.total, self.items = 0, total or len(items), iter(items)
        return self

    def __enter__(self) -> StepBar:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            yield item
            self.update()

    def update(self, count: int = 1) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total, self.picture)
