"""The motion prior: from how a surface moves in the picture, how it moves in depth, and how its unseen parts move.

A transformer over points and frames in turn, trained on animated models and generated objects (training/motion_prior.py;
docs/motion-prior.md). It knows no pictures: its input is where points of the object are at rest, where they go in the picture,
and in which frames they are seen, all in the first camera's frame. Its answer comes with its doubt, the scale of a Laplace
distribution, so that what uses it can leave alone what it does not know.

Coordinates: the camera's (OpenCV: x right, y down, z ahead), lengths with the object's longest side at rest as 1. A point at
(X, Y, Z) before a camera ``d`` from the object's centre has ``x = d X / Z``, ``y = d Y / Z`` (what the picture shows) and
``z = Z - d``.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files import InputError, read_tensors
from ..identity import canonical, file_identity

BUNDLED = Path(__file__).parent / "motion.safetensors"
#: Frames that are looked at together; longer clips are seen in windows of every second or third frame.
WINDOW = 16
#: The least doubt, in lengths of the object.
LEAST = 0.01
#: Features of a token: place, its waves, motion and its waves, whether seen, time and its waves, first frame, nearness.
_FEATURES = 3 + 24 + 2 + 8 + 1 + 11 + 1 + 1


class MotionTransformer(nn.Module):
    """The network.

    Args:
        width: of a token, a multiple of 32.
        layers: each attends over the points of a frame, then over the frames of a point.
    """

    def __init__(self, width: int = 192, layers: int = 6) -> None:
        super().__init__()
        self.arguments = {"width": width, "layers": layers}
        self.embed = nn.Linear(_FEATURES, width)
        self.layers = nn.ModuleList(_Layer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -3.0, -3.0]))

    def forward(
        self,
        rest: Tensor,  # (B, N, 3)
        offsets: Tensor,  # (B, T, N, 2)
        seen: Tensor,  # (B, T, N)
        times: Tensor,  # (B, T)
        distance: Tensor,  # (B,)
    ) -> tuple[Tensor, Tensor]:
        """Offsets from rest in x, y and z, (B, T, N, 3), and their doubts in the picture and in depth, (B, T, N, 2).

        Args:
            rest: x, y, z at rest.
            offsets: in x and y since the first frame; where a point is not seen they count nothing.
            seen: 1 or 0.
            times: in frames since the first one, which comes first and is 0.
            distance: of the camera.
        """
        shape = seen.shape
        dtype = self.embed.weight.dtype
        there = (offsets * seen[..., None]).float()
        places = rest.float()[:, None].expand(*shape, 3)
        waves = places[..., None] * (math.pi * 2.0 ** torch.arange(4, device=rest.device))
        beats = there[..., None] * torch.tensor([2 * math.pi, 8 * math.pi], device=rest.device)
        rhythm = times.float()[..., None] * (2 * math.pi / torch.tensor([4.0, 8.0, 16.0, 48.0, 96.0], device=rest.device))
        clock = torch.cat([times.float()[..., None] / 16, rhythm.sin(), rhythm.cos(), (times == 0)[..., None].float()], -1)
        nearness = (1 / distance.float())[:, None, None, None].expand(*shape, 1)
        waved = [x.flatten(-2) for x in (waves.sin(), waves.cos(), beats.sin(), beats.cos())]
        tokens = [
            places, *waved[:2], 4 * there, *waved[2:],
            seen.float()[..., None], clock[:, :, None].expand(*shape, 12), nearness,
        ]  # fmt: skip
        x = self.embed(torch.cat(tokens, -1).to(dtype))
        for layer in self.layers:
            x = layer(x)
        out = self.head(self.norm(x)).float()
        moved = torch.cat([there + out[..., :2], out[..., 2:3]], -1)
        return moved, LEAST + out[..., 3:].clamp(-8, 2).exp()


class _Layer(nn.Module):
    """Attention over points, attention over frames, and a perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.points, self.frames = _Attention(width), _Attention(width)
        self.norm = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, N, C)
        x = x + self.points(x)
        x = x + self.frames(x.transpose(1, 2)).transpose(1, 2)
        return x + self.narrow(F.gelu(self.widen(self.norm(x))))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 32
        self.norm = nn.LayerNorm(width)
        self.ask = nn.Linear(width, 3 * width)
        self.answer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, S, L, C): over L
        batch, rows, length, width = x.shape
        qkv = self.ask(self.norm(x)).reshape(batch * rows, length, 3, self.heads, 32).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if length > 32:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:  # kernels made for long rows waste themselves on short ones
            mixed = ((q @ k.transpose(-1, -2)) * 32**-0.5).softmax(-1) @ v
        return self.answer(mixed.transpose(1, 2).reshape(batch, rows, length, width))


def save_motion_prior(network: MotionTransformer, path: str | Path) -> None:
    """The network in float16, with its sizes."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, str(path), metadata={"motion prior": json.dumps(network.arguments)})


class MotionPrior:
    """The network on its file, as :class:`~..objectives.motion_prior.MotionPriorPull` asks it.

    Args:
        path: of a file that :func:`save_motion_prior` wrote; None: the one that comes with the pack.

    Raises:
        InputError: for a file that is missing or is not a motion prior; with the first question for one that is damaged.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = BUNDLED if path is None else Path(path)
        if not self.path.is_file():
            raise InputError(f"motion prior {self.path}: no such file; leave it out for the one that comes with the pack")

    @property
    def network(self) -> MotionTransformer:
        """The network, in float32 on the CPU, or where it was used last.

        Raises:
            InputError: for a damaged file.
        """
        return _network(self.path, self.path.stat().st_mtime_ns)

    @property
    def identity(self) -> str:
        """A hash of the file."""
        return _identity(self.path, self.path.stat().st_mtime_ns)

    @torch.no_grad()
    def __call__(
        self,
        rest: Tensor,  # (N, 3)
        offsets: Tensor,  # (T, N, 2)
        seen: Tensor,  # (T, N)
        distance: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Offsets from rest (T, N, 3) and their doubts in the picture and in depth (T, N, 2), see the module and the network.

        Any number of points and frames: points are asked in interleaved parts of at most 384; of clips longer than a window
        every second or third frame is looked at, in windows that each begin with the first frame, and those between are
        interpolated.
        """
        network = self.network.to(rest.device)
        frames, count = seen.shape
        stride = min(max(math.ceil((frames - 1) / (WINDOW - 1)), 1), 3)
        looked = [*range(0, frames - 1, stride), frames - 1] if frames > 1 else [0]
        windows = math.ceil(max(len(looked) - 1, 1) / (WINDOW - 1))
        parts = math.ceil(count / 384)
        away = torch.as_tensor(distance, device=rest.device, dtype=torch.float32).reshape(1)
        moved = torch.zeros(len(looked), count, 3, device=rest.device)
        doubt = torch.full((len(looked), count, 2), LEAST, device=rest.device)
        for w in range(windows):
            rows = list(range(1 + w * (len(looked) - 1) // windows, 1 + (w + 1) * (len(looked) - 1) // windows))
            at = [0, *(looked[r] for r in rows)]
            times = torch.tensor([[t / stride for t in at]], device=rest.device)
            for part in range(parts):
                own = slice(part, None, parts)
                answer = network(rest[None, own], offsets[at][None, :, own], seen[at][None, :, own], times, away)
                moved[rows, own], doubt[rows, own] = (a[0, 1:] for a in answer)
        if stride > 1:
            between = torch.arange(frames, device=rest.device) / stride
            below = between.floor().long().clamp(max=len(looked) - 1)
            above = (below + 1).clamp(max=len(looked) - 1)
            ends = torch.tensor(looked, device=rest.device)
            share = (torch.arange(frames, device=rest.device) - ends[below]) / (ends[above] - ends[below]).clamp_min(1)
            moved, doubt = (torch.lerp(x[below], x[above], share[:, None, None]) for x in (moved, doubt))
        return moved, doubt

    def __repr__(self) -> str:
        return f"MotionPrior({self.identity})"


@canonical.register
def _(value: MotionPrior) -> Any:
    return {"motion prior": value.identity}


@lru_cache(maxsize=4)
def _identity(path: Path, changed: int) -> str:
    return file_identity(path)


@lru_cache(maxsize=2)
def _network(path: Path, changed: int) -> MotionTransformer:
    """The network of a file, in float32.

    Raises:
        InputError: for one that is damaged or something else.
    """
    from safetensors import SafetensorError

    try:
        found, metadata = read_tensors(path)
        described = json.loads(metadata.get("motion prior", "null"))
        tensors = {name: tensor.float() for name, tensor in found.items()}
        width, layers = (described[key] for key in ("width", "layers"))
        if not (0 < width <= 1024 and width % 32 == 0 and 0 < layers <= 64):
            raise ValueError("sizes")
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise ValueError("numbers")
        with torch.device("meta"):
            network = MotionTransformer(width, layers)
        network.load_state_dict(tensors, assign=True)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise InputError(f"motion prior {path}: damaged, or something else; choose another file") from error
    return network.requires_grad_(False).eval()
