"""Inputs and outputs that nodes share: the same thing has the same name, range and words wherever it appears."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..core.mesh import UP_AXES
from ..core.methods.registry import PRESETS as METHOD_PRESETS
from ..core.render.rasterize import BACKENDS
from ..core.schedules import Ramp
from . import host

#: Presets as the nodes list them, the usual one first.
PRESETS = sorted(METHOD_PRESETS, key=lambda name: name != "standard")


def reads(value: int, word: str) -> dict[str, Any]:
    """For ``extra_dict`` of a number: the page shows a word in place of one value. The stored value stays."""
    return {"a4d_words": {str(value): word}}


#: Of numbers whose 0 is a preset's, a scene's, a model's.
PRESETS_OWN, SCENES_OWN, MODELS_OWN = reads(0, "preset"), reads(0, "scene's own"), reads(0, "model's own")


def whole(
    id: str, default: int, span: tuple[int, int], tooltip: str, *, step: int | None = None, words: dict[str, Any] | None = None,
    optional: bool = False, folded: bool = False,
) -> io.Input:  # fmt: skip
    """A whole number.

    Args:
        span: least and largest.
        words: of :func:`reads`.
        folded: among the advanced inputs, which may be left out.
    """
    return io.Int.Input(
        id, default=default, min=span[0], max=span[1], step=step, tooltip=tooltip, extra_dict=words, **_place(optional, folded)
    )


def real(
    id: str, default: float, span: tuple[float, float], tooltip: str, *, step: float | None = None,
    words: dict[str, Any] | None = None, optional: bool = False, folded: bool = False,
) -> io.Input:  # fmt: skip
    """A number with decimals; arguments as of :func:`whole`."""
    return io.Float.Input(
        id, default=default, min=span[0], max=span[1], step=step, tooltip=tooltip, extra_dict=words, **_place(optional, folded)
    )


def switch(id: str, default: bool, tooltip: str, *, optional: bool = False, folded: bool = False) -> io.Input:
    """Off or on."""
    return io.Boolean.Input(id, default=default, tooltip=tooltip, **_place(optional, folded))


def choice(
    id: str, options: Sequence[str], tooltip: str, *, default: str | None = None, optional: bool = False, folded: bool = False
) -> io.Input:
    """One of several; the first unless ``default`` says another."""
    return io.Combo.Input(id, options=list(options), default=default or options[0], tooltip=tooltip, **_place(optional, folded))


def _place(optional: bool, folded: bool) -> dict[str, bool | None]:
    return {"optional": optional or folded, "advanced": folded or None}


def scene(
    id: str = "scene", tooltip: str = "A still or moving scene, or splats: one, or one a frame.", optional: bool = False
) -> io.Input:
    """An input that takes an Anchor4D scene, or the host's SPLAT: :func:`host.scene_of` makes a scene of either."""
    return io.MultiType.Input(id, types=[host.Scene, io.Splat], optional=optional, tooltip=tooltip)


def up() -> io.Input:
    """The input of every node that reads splat files: which way their content stands."""
    return choice(
        "up",
        list(UP_AXES),
        "Splats: the axis that points up. y = as it should be, -y = for what stands on its head (some .spz), z = for what "
        "lies on "
        "its back.",
        folded=True,
    )


def preset(tooltip: str) -> io.Input:
    """The choice of a preset, which a Preset node sets in a whole graph."""
    return io.Combo.Input("preset", options=PRESETS, default="standard", tooltip=tooltip)


def seed(tooltip: str = "Same seed = same result.", *, renewed: bool = False) -> io.Input:
    """The number that fixes what is drawn at random.

    Args:
        renewed: whether the page offers to change it after each run, which for a fit would fit everything anew.
    """
    return io.Int.Input("seed", default=0, min=0, max=2**32 - 1, control_after_generate=renewed, tooltip=tooltip)


def steps(what: str = "Steps.") -> io.Input:
    """How many steps a fit takes; 0 is the preset's number."""
    return io.Int.Input(
        "steps",
        default=0,
        min=0,
        max=100_000,
        optional=True,
        advanced=True,
        tooltip=f"{what} More = finer, slower. 0 = the preset's.",
        extra_dict=PRESETS_OWN,
    )


def resolution() -> io.Input:
    """The largest picture that a fit compares; 0 is the preset's."""
    return io.Int.Input(
        "resolution",
        default=0,
        min=0,
        max=1024,
        step=16,
        optional=True,
        advanced=True,
        tooltip="Largest picture compared, in pixels. Lower = faster, higher = finer. 0 = the preset's.",
        extra_dict=PRESETS_OWN,
    )


def device(tooltip: str, options: Sequence[str] = ("auto", "cpu", "gpu")) -> io.Input:
    """Where to compute: :func:`host.device_for`, or for priors alone :func:`host_prior.loaded`, reads it."""
    return io.Combo.Input("device", options=list(options), default="auto", optional=True, advanced=True, tooltip=tooltip)


def drawing() -> list[io.Input]:
    """Device and renderer, of every node that draws Gaussians."""
    return [
        device(
            "Where to compute. auto = an NVIDIA or AMD GPU where ComfyUI uses one, otherwise the CPU when numba is installed "
            "(fast), otherwise whatever ComfyUI uses."
        ),
        io.Combo.Input(
            "renderer",
            options=list(BACKENDS),
            default="auto",
            optional=True,
            advanced=True,
            tooltip="How Gaussians are drawn. auto = the fastest one here. nvrtc: NVIDIA or AMD GPU, nothing to install. "
            "gsplat: NVIDIA GPU, when installed. numba: CPU. torch: anywhere, slow.",
        ),
    ]


def objectives() -> io.Input:
    """The chain that an objective is added to."""
    return host.Objectives.Input(
        "objectives", optional=True, tooltip="Objectives to add this one to. Chain as many as you like."
    )


def objectives_output() -> io.Output:
    """The longer chain."""
    return host.Objectives.Output("objectives", tooltip="For a fitting step, or the next objective.")


def weight(default: float, what: str, step: float = 0.1, end: float = -1.0) -> list[io.Input]:
    """An objective's weight at the first step and at the last: :func:`ramp` reads both.

    Args:
        what: a higher weight means.
        end: default of the weight at the last step, below 0: as at the first.
    """
    return [
        io.Float.Input(
            "weight",
            default=default,
            min=0.0,
            max=1e6,
            step=step,
            tooltip=f"How much this counts against the other objectives. Higher = {what}. 0 = off.",
        ),
        io.Float.Input(
            "end_weight",
            default=end,
            min=-1.0,
            max=1e6,
            step=step,
            optional=True,
            advanced=True,
            tooltip="Weight at the last step; it changes evenly from first to last. -1 = it stays the same.",
            extra_dict=reads(-1, "same"),
        ),
    ]


def ramp(weight: float, end_weight: float) -> Ramp:
    """What the two inputs of :func:`weight` mean."""
    return Ramp(weight, weight if end_weight < 0 else end_weight)


def views(default: int, what: str = "Sides compared in every step.") -> io.Input:
    """How many random sides an objective looks from."""
    return io.Int.Input("views", default=default, min=1, max=32, tooltip=f"{what} More = steadier, slower.")


def guidance(tooltip: str, most: float) -> io.Input:
    """The guidance scale of a prior; 0 is the prior's usual."""
    return io.Float.Input(
        "guidance",
        default=0.0,
        min=0.0,
        max=most,
        step=0.5,
        optional=True,
        advanced=True,
        tooltip=tooltip,
        extra_dict=reads(0, "prior's usual"),
    )


def prefix(default: str = "3d/Anchor4D") -> io.Input:
    """Where a file is written."""
    return io.String.Input("filename_prefix", default=default, tooltip="Folder and name below ComfyUI's output folder.")
