"""Moving Gaussians in one .ply: splats with columns that say when each is there and where it goes.

=====================  ================================================================================================
FreeTimeGS             ``time``, ``log_duration`` (of the standard deviation), ``velocity_0`` to ``_2``; comments give the
``.ftgs.ply``          number of frames and the least duration
Spacetime Gaussians    ``trbf_center``, ``trbf_scale`` (opacity times exp(-(d / exp(scale))^2)), ``motion_0`` to ``_8`` (three
                       orders, each x y z), ``omega_0`` to ``_3`` (change of the rotation); colours are RGB, what a network
                       would add to them is not in the file
4DGS                   ``t`` (``mu_t``), ``scale_t`` (``t_scale``) and a second rotation ``rot_r_0`` to ``_3``: Gaussians in
                       four dimensions, cut at a time; without that rotation exp(scale_t) is the variance in time
TSOG's source          ``t``, ``t_scale`` (standard deviation), ``motion_0`` to ``_2``
windows                ``vx`` ``vy`` ``vz``, ``time``, ``duration``: there from time to time + duration
=====================  ================================================================================================

Sources: FORMAT.md of OpsiClear-4DGS/ftgs-player (version 1); the model and renderer of oppo-us-research/SpacetimeGaussians; the
model of fudan-zvg/4d-gaussian-splatting (arXiv 2310.10642, equations 5 to 9), whose matrices of rotation run backwards over the
axes so that time comes last; the columns that OpsiClear-4DGS hands to TSOG's encoder; raiscui's exporter of FreeTimeGS.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..cameras import matrix_to_quaternion, quaternion_multiply
from ..deformation.timed import TimedGaussians
from ..files import InputError
from ..gaussians import SH_C0
from ..mesh import up_matrix
from ..scene.scene import Scene4D
from ..scene.validation import MAX_FRAMES
from .ply import gaussians_of, is_sound, parse_header, read_columns

log = logging.getLogger(__name__)

#: What files that do not say are played as, as their own programs do.
FRAMES, FPS = 60, 30.0
#: Least and greatest standard deviation in time, in clips.
_BRIEFEST = 1e-6
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Timed:
    """What a layout's columns say, in the file's frame and, where ``span`` is given, its own unit of time."""

    centre: np.ndarray  # (N,)
    precision: np.ndarray  # (N,)
    motion: np.ndarray  # (N, order, 3)
    turn: np.ndarray | None = None  # (N, 4) change of the rotation as it is stored
    life: str = "gaussian"
    frames: int | None = None
    span: tuple[float, float] | None = None
    changed: Columns | None = None  # columns in place of the file's


def is_moving(data: bytes, name: str) -> bool:
    """Whether a .ply holds moving Gaussians of a layout that is known."""
    return _layout(_names(data, name)) is not None


def decode(
    data: bytes,
    name: str,
    *,
    fps: float | None = None,
    loop: bool | None = None,
    frames: int | None = None,
    up: str = "y",
    span: tuple[float, float] | None = None,
) -> Scene4D:
    """The scene of a file's content, +Y down as splat files are; ``name`` is for messages.

    Args:
        fps: frames a second; 30 where None.
        loop: whether frame ``frames`` is frame 0 again; not where None.
        frames: of the clip, which lasts as long as before; the file's, or 60, where None.
        up: the axis that points up, see :func:`.splats.read_splats`.
        span: when the clip begins and ends in the unit of a 4DGS file, which does not say so; guessed where None.

    Raises:
        InputError: for a file of no such layout, or a damaged one.
    """
    columns = read_columns(data, name)
    layout = _layout(set(columns))
    if layout is None:
        raise InputError(f"{name}: no columns of motion that are known, open it as a still splat file")
    try:
        with np.errstate(all="ignore"):  # what is absurd becomes infinite, and is left out
            timed = layout(columns, _comments(data))
        gaussians = gaussians_of(_static(columns | (timed.changed or {}), name), name)
    except KeyError as missing:
        raise InputError(f"{name}: moving Gaussians, but without the column {missing}; export it again") from None
    matrix = up_matrix(up) @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    if up != "y":
        gaussians = gaussians.transformed(up_matrix(up))
    centre, precision, motion = (torch.from_numpy(a).float() for a in (timed.centre, timed.precision, timed.motion))
    turn = None
    if timed.turn is not None:
        stored = np.stack([columns[f"rot_{i}"] for i in range(4)], 1)
        length = np.linalg.norm(stored, axis=1, keepdims=True).clip(1e-12)
        turn = torch.from_numpy(timed.turn / length).float().nan_to_num(0, 0, 0)
        turn = quaternion_multiply(matrix_to_quaternion(matrix[:3, :3]).expand_as(turn), turn)
    motion = motion @ matrix[:3, :3].T
    if timed.span is not None:
        begin, end = span or timed.span
        if not begin < end:
            raise InputError(f"span {begin:g} to {end:g}: give the clip's beginning and its end after it")
        if span is None:
            log.info("%s: does not say when it begins and ends, taken from %g to %g", name, begin, end)
        length = end - begin
        centre, precision = (centre - begin) / length, precision * length**2
        motion = motion * length ** torch.arange(1.0, motion.shape[1] + 1)[:, None]
    field = TimedGaussians.of(motion, centre, precision, turn, timed.life)
    whole = is_sound(gaussians) & field.bounded()
    left, every = int(whole.sum()), len(whole)
    if not left:
        raise InputError(f"{name}: all its Gaussians hold NaN, infinite or far too large values, repair or export it again")
    if left < every:
        log.warning("%s: %d of %d Gaussians hold NaN, infinite or far too large values and are left out",
                    name, every - left, every)  # fmt: skip
    count, own = frames or timed.frames or FRAMES, timed.frames or FRAMES
    if not 1 <= count <= MAX_FRAMES:
        raise InputError(f"{name}: {count} frames, choose 1 to {MAX_FRAMES}")
    rate = fps if fps is not None else FPS * count / own
    return Scene4D(gaussians.select(whole), field.select(whole), count, rate, bool(loop), meta={"motion": "timed"})


def encode_ftgs(scene: Scene4D, frames: int | None = None) -> bytes:
    """A ``.ftgs.ply`` of a scene whose field is of gaussian lives with an even motion, see :func:`..scene.timed.bake_timed`.

    Opacities and shapes are the canonical ones; changes of rotation are left out, as the format has none.

    Raises:
        InputError: for another field.
    """
    from .ply import encode

    field = scene.field
    if not isinstance(field, TimedGaussians) or field.life != "gaussian" or field.order != 1:
        raise InputError("scene: .ftgs.ply holds Gaussians with an even motion and a gaussian life; bake it so first")
    data = encode(scene.gaussians)
    head, _, body = data.partition(b"end_header\n")
    # An endless life: so long that float32 opacities do not change.
    spread = field.precision.detach().clamp_min(1e-8).rsqrt()
    flip = torch.tensor([1.0, -1.0, -1.0])
    columns = [field.centre.detach()[:, None], spread.log()[:, None], field.motion.detach()[:, 0] * flip]
    added = ["time", "log_duration", *(f"velocity_{i}" for i in range(3))]
    degree = math.isqrt(scene.gaussians.sh.shape[-2]) - 1
    notes = {"ftgs_version": 1, "time_units": "normalized", "sh_degree": degree, "use_velocity": 1}
    notes |= {"min_duration": f"{float(spread.min()) * 0.999:.6g}", "opacity_floor": 0, "n_frames": frames or scene.frames}
    lines = head.decode("ascii").splitlines()
    lines[2:2] = [f"comment {key} {value}" for key, value in notes.items()]
    lines += [f"property float {key}" for key in added] + ["end_header", ""]
    table = np.frombuffer(body, "<f4").reshape(len(scene.gaussians), -1)
    table = np.concatenate([table, torch.cat(columns, 1).cpu().numpy().astype("<f4")], 1)
    return "\n".join(lines).encode("ascii") + table.tobytes()


# Layouts


def _ftgs(columns: Columns, comments: dict[str, str]) -> _Timed:
    least = max(_float(comments.get("min_duration"), 0.02), _BRIEFEST)
    spread = np.exp(columns["log_duration"].astype(np.float64)).clip(least)
    moves = 0.0 if comments.get("use_velocity") == "0" else 1.0
    motion = _stack(columns, [f"velocity_{i}" for i in range(3)])[:, None] * moves
    frames = comments.get("n_frames", "")
    count = int(frames) if frames.isascii() and frames.isdigit() and 0 < len(frames) < 7 else None
    return _Timed(_column(columns, "time"), 1 / spread**2, motion, frames=count or None)


def _spacetime(columns: Columns, comments: dict[str, str]) -> _Timed:
    orders = [k for k in range(3) if f"motion_{3 * k + 2}" in columns]
    motion = np.stack([_stack(columns, [f"motion_{3 * k + i}" for i in range(3)]) for k in orders], 1)
    turn = _stack(columns, [f"omega_{i}" for i in range(4)]) if "omega_3" in columns else None
    # exp(-(d / s)^2) = exp(-d^2 p / 2) with p = 2 / s^2
    precision = 2 / np.exp(_column(columns, "trbf_scale")).clip(_BRIEFEST) ** 2
    changed = None
    if not any(n.startswith("f_rest_") for n in columns):
        changed = {f"f_dc_{i}": (_column(columns, f"f_dc_{i}") - 0.5) / SH_C0 for i in range(3)}
    return _Timed(_column(columns, "trbf_center"), precision, motion, turn, changed=changed)


def _rotor(columns: Columns, comments: dict[str, str]) -> _Timed:
    """Cut at a time: the conditional Gaussian, its mean moving by Cov(x, t) / Var(t) (arXiv 2310.10642)."""
    time = next(n for n in ("t", "mu_t") if n in columns)
    spread = next(n for n in ("scale_t", "scale_t_0", "t_scale") if n in columns)
    centre = _column(columns, time)
    if not {f"rot_r_{i}" for i in range(4)} <= columns.keys():
        variance = np.exp(_column(columns, spread)).clip(_BRIEFEST**2)
        return _Timed(centre, 1 / variance, np.zeros((len(centre), 1, 3)), span=_span(centre))
    first = "rot_" if "rot_0" in columns else "rot_l_"
    left, right = (_unit(_stack(columns, [f"{n}{i}" for i in range(4)])) for n in (first, "rot_r_"))
    scales = np.exp(_stack(columns, ["scale_0", "scale_1", "scale_2", spread]))
    factor = _rotation(left, right) * scales[:, None]
    covariance: np.ndarray = factor @ factor.swapaxes(1, 2)
    across, variance = covariance[:, :3, 3], covariance[:, 3, 3].clip(_BRIEFEST**2)
    space = covariance[:, :3, :3] - across[:, :, None] * across[:, None] / variance[:, None, None]
    finite = np.logical_and.reduce(np.isfinite(space), (1, 2), keepdims=True)
    space = np.where(finite, space, np.eye(3))
    values, axes = np.linalg.eigh(space)
    axes = np.concatenate([axes[:, :, :1] * np.linalg.det(axes)[:, None, None], axes[:, :, 1:]], 2)
    quats = matrix_to_quaternion(torch.from_numpy(axes)).numpy()
    logs = 0.5 * np.log(values.clip(1e-18))
    changed = {f"scale_{i}": logs[:, i] for i in range(3)} | {f"rot_{i}": quats[:, i] for i in range(4)}
    return _Timed(centre, 1 / variance, (across / variance[:, None])[:, None], span=_span(centre), changed=changed)


def _source(columns: Columns, comments: dict[str, str]) -> _Timed:
    motion = _stack(columns, [f"motion_{i}" for i in range(3)])[:, None]
    return _Timed(_column(columns, "t"), 1 / _column(columns, "t_scale").clip(_BRIEFEST) ** 2, motion)


def _window(columns: Columns, comments: dict[str, str]) -> _Timed:
    half = _column(columns, "duration").clip(2 * _BRIEFEST) / 2
    velocity = _stack(columns, ["vx", "vy", "vz"])
    # Positions are those at the window's beginning.
    changed = {key: _column(columns, key) + velocity[:, i] * half for i, key in enumerate("xyz")}
    return _Timed(_column(columns, "time") + half, 1 / half**2, velocity[:, None], life="window", changed=changed)


_Layout = Callable[[Columns, dict[str, str]], _Timed]
#: Columns that tell layouts apart, the most particular first.
_LAYOUTS: tuple[tuple[frozenset[str], _Layout], ...] = (
    (frozenset({"time", "log_duration", "velocity_0", "velocity_1", "velocity_2"}), _ftgs),
    (frozenset({"trbf_center", "trbf_scale", "motion_0", "motion_1", "motion_2"}), _spacetime),
    *(
        (frozenset({t, s, *extra}), _rotor)
        for extra in ([f"rot_r_{i}" for i in range(4)], [])
        for t in ("t", "mu_t")
        for s in (("scale_t", "scale_t_0", "t_scale") if extra else ("scale_t", "scale_t_0"))
    ),
    (frozenset({"t", "t_scale", "motion_0", "motion_1", "motion_2"}), _source),
    (frozenset({"vx", "vy", "vz", "time", "duration"}), _window),
)


def _layout(names: set[str]) -> _Layout | None:
    return next((layout for wanted, layout in _LAYOUTS if wanted <= names), None)


def _names(data: bytes, name: str) -> set[str]:
    vertex = parse_header(data, name).element("vertex")
    return set() if vertex is None else {entry.name for entry in vertex.properties}


def _comments(data: bytes) -> dict[str, str]:
    """``comment KEY VALUE`` lines of the header."""
    head = data[: data.index(b"end_header")].decode("latin-1")
    found = re.findall(r"^comment (\w+) (\S+)\s*$", head, re.MULTILINE)
    return dict(found)


def _static(columns: Columns, name: str) -> Columns:
    """Columns without those harmonics that are waves in time, or whose order is unknown."""
    rest = [n for n in columns if re.fullmatch(r"f_rest_\d{1,4}", n)]
    each = len(rest) // 3 + 1
    if math.isqrt(each) ** 2 == each:
        return columns
    kept = 15 if each in (32, 48, 64) else 0
    log.warning("%s: colours that change with time are not read, %d of %d harmonics are", name, kept, each - 1)
    left = {n: v for n, v in columns.items() if n not in rest}
    return left | {f"f_rest_{c * kept + k}": columns[f"f_rest_{c * (each - 1) + k}"] for c in range(3) for k in range(kept)}


def _span(centre: np.ndarray) -> tuple[float, float]:
    """When a clip begins and ends that does not say so: [0, 1] or [-0.5, 0.5] where most centres lie so, else their range."""
    finite = centre[np.isfinite(centre)]
    low, high = np.quantile(finite, [0.02, 0.98]) if len(finite) else (0.0, 1.0)
    for begin in (0.0, -0.5):
        if begin - 0.15 <= low and high <= begin + 1.15:
            return begin, begin + 1.0
    return float(low), float(max(high, low + 1e-6))


def _rotation(left: np.ndarray, right: np.ndarray) -> np.ndarray:  # (N, 4), (N, 4) -> (N, 4, 4)
    """v -> left v conj(right) of quaternions, over the axes x y z t, of which t is the quaternion's real part."""
    a, b, c, d = left.T
    p, q, r, s = right.T
    one = np.stack([a, -b, -c, -d, b, a, -d, c, c, d, a, -b, d, -c, b, a], 1).reshape(-1, 4, 4)
    two = np.stack([p, q, r, s, -q, p, -s, r, -r, s, p, -q, -s, -r, q, p], 1).reshape(-1, 4, 4)
    return (one @ two)[:, ::-1, ::-1]


def _column(columns: Columns, name: str) -> np.ndarray:
    return columns[name].astype(np.float64)


def _stack(columns: Columns, names: list[str]) -> np.ndarray:
    return np.stack([_column(columns, n) for n in names], 1)


def _unit(quats: np.ndarray) -> np.ndarray:
    return quats / np.linalg.norm(quats, axis=1, keepdims=True).clip(1e-12)


def _float(text: Any, default: float) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return default
    return value if math.isfinite(value) else default
