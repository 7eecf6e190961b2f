"""The bundled motion prior: trained on animated models and generated objects.

    python -m anchor4d.training.motion_prior --clips clips.npz --out FOLDER [--minutes 8]

``clips.npz`` is what training/motion_clips.py makes. Objects are moved, filmed by random cameras and hidden by a depth buffer
of points on the device itself; what the network gets has the errors of tracking. Recipe and results are in
docs/motion-prior.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.priors.motion import MotionPrior, MotionTransformer, save_motion_prior
from .moving_objects import RATE, Moving, generate

log = logging.getLogger(__name__)

#: Families of animated models that are never trained on.
HELD_FAMILIES = ("f05", "f13", "f15", "f18", "f21", "f22", "f44", "f45", "f49", "f55", "f59", "f69")
#: Seeds of generated objects from here on are never trained on.
HELD_SEEDS = 10_000_000
#: Bones that a model has room for.
BONES = 96
#: Frames and points of a batch, each as often.
SHAPES = ((16, 256), (16, 256), (16, 192), (16, 128), (16, 384), (13, 256), (13, 192), (10, 256), (10, 192))


@dataclass
class Bank:
    """Everything that moves, on the device.

    Args:
        points, normals: (K, P, 3).
        weights: (K, P, J).
        matrices: of all frames of all clips, (R, J * 12).
        model, start, length: of each clip, (C,).
        loops: whether its first frame follows its last, (C,).
        share: how often it is drawn, (C,).
        group: what it counts as in the results, an index of ``names``, (C,).
        held: never trained on, (C,).
    """

    points: Tensor
    normals: Tensor
    weights: Tensor
    matrices: Tensor
    model: Tensor
    start: Tensor
    length: Tensor
    loops: Tensor
    share: Tensor
    group: Tensor
    held: Tensor
    names: list[str]


def build_bank(clips: Path | None, objects: int, held_objects: int, device: torch.device, generated_share: float) -> Bank:
    """All clips of a file, and generated objects."""
    points, normals, weights, matrices = [], [], [], []
    rows: list[dict[str, Any]] = []
    count = 0
    if clips is not None:
        data = np.load(clips)
        about = json.loads(bytes(data["about"]))
        per_family: dict[str, int] = {}
        for entry in about:
            per_family[entry["family"]] = per_family.get(entry["family"], 0) + 1
        for i, entry in enumerate(about):
            at = data[f"{i}.points"].astype(np.float32) / 32000
            dense = np.zeros((len(at), BONES), np.float32)
            for k in range(4):
                np.add.at(dense, (np.arange(len(at)), data[f"{i}.follows"][:, k]), data[f"{i}.shares"][:, k] / 255)
            dense /= dense.sum(-1, keepdims=True)
            lengths, ends = data[f"{i}.lengths"], np.cumsum(data[f"{i}.lengths"])
            whole = data[f"{i}.matrices"]
            own = []
            for length, end in zip(lengths, ends, strict=True):
                frames = np.cumsum(whole[end - length : end], 0, dtype=np.int16).astype(np.float32) / float(
                    data[f"{i}.quantum"]
                )
                bones = frames.shape[1] // 12
                padded = np.zeros((length, BONES * 12), np.float32)
                padded[:, : bones * 12] = frames
                own.append(padded)
            # A clip's motion: how far points go; and whether it returns.
            spread, back, usual = [], [], []
            for frames in own:
                chosen = frames[:: max(len(frames) // 8, 1)].reshape(-1, BONES, 3, 4)
                ends_ = frames[[0, -1]].reshape(2, BONES, 3, 4)
                some = slice(None, None, 12)
                where = [moved(dense[some], m, at[some]) for m in (chosen, ends_)]
                sizes = np.ptp(where[0], axis=1).max(-1)
                far = np.linalg.norm(where[0] - where[0][:1], axis=-1).max()
                usual.append(float(sizes.min() > 0.4 * sizes.max() and far < 1.5 * sizes.max()))
                spread.append(float(np.linalg.norm(where[0] - where[0][:1], axis=-1).max(0).mean()))
                back.append(float(np.linalg.norm(where[1][0] - where[1][1], axis=-1).mean()))
            amount = [a * math.sqrt(len(f)) * min(1.0, s / 0.1 + 0.1) for a, f, s in zip(usual, own, spread, strict=True)]
            if not any(amount):
                amount = [1e-6] * len(own)
            for frames, s, b, a in zip(own, spread, back, amount, strict=True):
                share = a / sum(amount) / per_family[entry["family"]]
                rows.append({"model": len(points), "start": count, "length": len(frames), "loops": b < 0.35 * s,
                             "share": share, "group": entry["category"], "held": entry["family"] in HELD_FAMILIES})  # fmt: skip
                matrices.append(frames)
                count += len(frames)
            points.append(at)
            side = data[f"{i}.normals"].astype(np.float32)
            normals.append(side)
            weights.append(dense)
    families = sum(row["share"] for row in rows if not row["held"])
    seeds = [*range(objects), *range(HELD_SEEDS, HELD_SEEDS + held_objects)]
    share = (families * generated_share / (1 - generated_share) if families else 1.0) / max(objects, 1)
    with multiprocessing.get_context("fork").Pool(min(os.cpu_count() or 1, 16)) as pool:
        for seed, made in zip(seeds, pool.imap(_generated, seeds, chunksize=16), strict=True):
            kind, at, side, dense, frames = made
            rows.append({"model": len(points), "start": count, "length": len(frames), "loops": False, "share": share,
                         "group": f"generated {kind}", "held": seed >= HELD_SEEDS})  # fmt: skip
            count += len(frames)
            points.append(at)
            normals.append(side)
            weights.append(np.pad(dense, ((0, 0), (0, BONES - dense.shape[1]))))
            matrices.append(np.pad(frames, ((0, 0), (0, BONES * 12 - frames.shape[1]))))
    names = sorted({row["group"] for row in rows})

    def column(key: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor([row[key] for row in rows], dtype=dtype, device=device)

    return Bank(
        points=torch.from_numpy(np.stack(points)).to(device),
        normals=torch.from_numpy(np.stack(normals)).to(device),
        weights=torch.from_numpy(np.stack(weights).astype(np.float16)).to(device),
        matrices=torch.from_numpy(np.concatenate(matrices)).to(device),
        model=column("model", torch.int64),
        start=column("start", torch.int64),
        length=column("length", torch.int64),
        loops=column("loops", torch.bool),
        share=column("share", torch.float32),
        group=torch.tensor([names.index(row["group"]) for row in rows], device=device),
        held=column("held", torch.bool),
        names=names,
    )


def moved(weights: np.ndarray, matrices: np.ndarray, points: np.ndarray) -> np.ndarray:  # (P, J), (F, J, 3, 4), (P, 3)
    """Where points go, (F, P, 3)."""
    frames, bones = matrices.shape[:2]
    blend = (weights @ matrices.swapaxes(0, 1).reshape(bones, -1)).reshape(len(points), frames, 3, 4).swapaxes(0, 1)
    return (blend[..., :3] @ points[None, :, :, None])[..., 0] + blend[..., 3]


def _generated(seed: int) -> tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    m: Moving = generate(seed)
    return (
        m.kind, m.points.astype(np.float32), m.normals.astype(np.float32), m.weights.astype(np.float16),
        m.matrices.reshape(len(m.matrices), -1).astype(np.float32),
    )  # fmt: skip


@dataclass
class Batch:
    """What the network gets, see :class:`MotionTransformer`, and the truth: ``truth`` (B, T, N, 3), ``visible`` (B, T, N)."""

    rest: Tensor
    offsets: Tensor
    seen: Tensor
    times: Tensor
    distance: Tensor
    truth: Tensor
    visible: Tensor


def rotation(axis: int, angle: Tensor) -> Tensor:  # (B, ...) -> (B, ..., 3, 3)
    """About an axis by radians."""
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = {
        0: [one, zero, zero, zero, c, -s, zero, s, c],
        1: [c, zero, s, zero, one, zero, -s, zero, c],
        2: [c, -s, zero, s, c, zero, zero, zero, one],
    }[axis]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


@torch.no_grad()
def draw(bank: Bank, which: Tensor, frames: int, count: int, generator: torch.Generator, noisy: bool = True) -> Batch:
    """Clips filmed by random cameras: ``count`` points in ``frames`` frames."""
    device, batch = bank.points.device, len(which)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device, generator=generator)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    def chance(p: float) -> Tensor:
        return rand(batch) < p

    # When: the first frame, and the others behind it, perhaps after a gap.
    pace = RATE * torch.exp(math.log(1 / 36) + rand(batch) * math.log(36 / 8)) * torch.where(chance(0.12), -1.0, 1.0)
    gap = torch.where(chance(0.25), (rand(batch) * 30).floor(), 0.0)
    times = torch.arange(frames, device=device) + torch.where(torch.arange(frames, device=device) > 0, gap[:, None], 0.0)
    length = bank.length[which].float()[:, None]
    at = rand(batch)[:, None] * length + pace[:, None] * times
    fold = (at % (2 * length - 2) - (length - 1)).abs()
    at = torch.where(bank.loops[which][:, None], at % length, (length - 1 - fold)).clamp_min(0)
    low = torch.minimum(at.floor(), length - 1)
    high = torch.where(bank.loops[which][:, None], (low + 1) % length, torch.minimum(low + 1, length - 1))
    f = (at - low)[..., None]
    start = bank.start[which][:, None]
    matrices = bank.matrices[start + low.long()] * (1 - f) + bank.matrices[start + high.long()] * f  # (B, T, J 12)
    model = bank.model[which]
    points, normals, weights = bank.points[model], bank.normals[model], bank.weights[model].float()
    flat = matrices.unflatten(-1, (-1, 12)).transpose(1, 2).flatten(2)  # (B, J, T 12)
    blend = (weights @ flat).unflatten(-1, (frames, 3, 4)).transpose(1, 2)  # (B, T, P, 3, 4)
    places = (blend[..., :3] * points[:, None, :, None]).sum(-1) + blend[..., 3]
    sides = F.normalize((blend[..., :3] * normals[:, None, :, None]).sum(-1), dim=-1)

    # Where: the object turned and stretched, on its way, its first frame centred with longest side 1.
    stretch = torch.exp(0.13 * randn(batch, 3))[:, None, None]
    turn = rotation(1, 2 * math.pi * rand(batch))
    places = (places * stretch) @ turn.mT[:, None]
    sides = F.normalize(sides / stretch, dim=-1) @ turn.mT[:, None]
    low_, high_ = places[:, 0].amin(1), places[:, 0].amax(1)
    places = (places - ((low_ + high_) / 2)[:, None, None]) / (high_ - low_).amax(-1).clamp_min(1e-6)[:, None, None, None]
    outward = (sides[:, 0] * places[:, 0]).sum(-1).mean(-1)
    sides = sides * torch.where(outward < 0, -1.0, 1.0)[:, None, None, None]
    since = (times / times[:, -1:])[..., None]
    spin = torch.where(chance(0.1), randn(batch), 0.0)[:, None] * since[..., 0]
    spun = rotation(1, spin)
    places, sides = places @ spun.mT, sides @ spun.mT
    heading = randn(batch, 3) * torch.tensor([0.3, 0.06, 0.35], device=device) * chance(0.15)[:, None]
    places = places + (heading[:, None] * since)[:, :, None]

    # The camera.
    elevation = torch.where(chance(0.65), 0.1 * randn(batch), -0.3 + 1.2 * rand(batch))
    roll = 0.03 * randn(batch)
    pose = rotation(2, roll) @ rotation(0, elevation)
    distance = 1.2 + 1.8 * rand(batch) ** 1.5
    seen_from = places @ pose.mT[:, None]
    flip = torch.tensor([1.0, -1.0, -1.0], device=device)
    mirror = torch.where(chance(0.5), -1.0, 1.0)[:, None] * torch.tensor([1.0, 0, 0], device=device) + torch.tensor(
        [0, 1.0, 1.0], device=device
    )
    sign = (flip * mirror)[:, None, None]
    camera = seen_from * sign
    sides = (sides @ pose.mT[:, None]) * sign
    depth = (camera[..., 2] + distance[:, None, None]).clamp_min(0.25)
    d = distance[:, None, None]
    x, y = d * camera[..., 0] / depth, d * camera[..., 1] / depth

    # What hides what: a depth buffer of the points, on two grids.
    view = F.normalize(torch.stack([camera[..., 0], camera[..., 1], depth], -1), dim=-1)
    facing = -(view * sides).sum(-1)
    visible = facing > -0.05
    tolerance = (0.03 + 0.04 * rand(batch))[:, None, None] + 0.03 * (1 - facing.clamp(0, 1))
    cell = 1 / 28
    for shift in (0.0, 0.5):
        i = ((x + 1.5) / cell + shift).long().clamp(0, 89)
        j = ((y + 1.5) / cell + shift).long().clamp(0, 89)
        index = (i * 90 + j).flatten(0, 1)
        buffer = torch.full((batch * frames, 8100), 1e9, device=device)
        buffer.scatter_reduce_(1, index, depth.flatten(0, 1), "amin")
        visible &= (depth - buffer.gather(1, index).view_as(depth)) < tolerance

    chosen = torch.rand(batch, points.shape[1], device=device, generator=generator).argsort(-1)[:, :count]

    def pick(t: Tensor) -> Tensor:  # (B, T, P) -> (B, T, N)
        return t.gather(2, chosen[:, None].expand(-1, frames, -1))

    x, y, depth, visible = pick(x), pick(y), pick(depth), pick(visible)
    whole = torch.stack([x, y, depth - d], -1)
    rest, truth = whole[:, 0], whole - whole[:, :1]
    offsets, seen = truth[..., :2], visible.float()
    if noisy:
        offsets, seen = tracked(rest, offsets, visible, times, generator)
    offsets = torch.where(torch.arange(frames, device=device)[:, None, None] > 0, offsets, 0.0)
    return Batch(rest, offsets * seen[..., None], seen, times, distance, truth, visible)


def tracked(rest: Tensor, offsets: Tensor, visible: Tensor, times: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Offsets (B, T, N, 2) and what counts as seen (B, T, N), with the errors that following a surface makes."""
    device = rest.device
    batch, frames, count, _ = offsets.shape

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device, generator=generator)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    def gate(p: float) -> Tensor:
        return (rand(batch) < p).float()[:, None, None, None]

    # Neighbours hold together: the motion of a part leaks into what lies beside it.
    near = torch.cdist(rest, rest).topk(5, largest=False).indices  # (B, N, 5)
    rows = torch.arange(batch, device=device)[:, None, None]
    around = offsets.transpose(1, 2)[rows, near].mean(2).transpose(1, 2)
    offsets = offsets + gate(0.5) * 0.7 * rand(batch)[:, None, None, None] * (around - offsets)
    # Motion is smoothed over time and lags.
    before, after = offsets.roll(1, 1), offsets.roll(-1, 1)
    before[:, 0], after[:, -1] = offsets[:, 0], offsets[:, -1]
    blurred = (before + offsets + after) / 3
    offsets = offsets + gate(0.4) * rand(batch)[:, None, None, None] * (blurred - offsets)
    field = torch.einsum("bnc,bck->bnk", rest, 5 * randn(batch, 3, 6)) + 6.28 * rand(batch, 1, 6)  # smooth over the surface
    waves = field.cos()
    lost = (waves[..., :2].mean(-1) - 0.3).clamp_min(0)
    offsets = offsets * (1 - gate(0.4) * 0.8 * rand(batch)[:, None, None, None] * lost[:, None, :, None])
    # Drift that grows, smooth over the surface, and jitter.
    walk = randn(batch, frames, 6, 2).cumsum(1) / math.sqrt(frames)
    drift = torch.einsum("bnk,btkc->btnc", waves, walk) / 1.5
    size = torch.exp(math.log(0.012) + 0.8 * randn(batch))[:, None, None, None]
    moving = 0.3 + 3 * offsets.norm(dim=-1, keepdim=True).clamp_max(0.4)
    offsets = offsets + size * (0.4 + moving) * drift + 0.3 * size * randn(batch, frames, count, 2)
    # Beside what comes and goes, points jump; some slide for good.
    changing = (visible != visible.roll(1, 1)) | (visible != visible.roll(-1, 1))
    offsets = offsets + 0.025 * randn(batch, frames, count, 2) * (changing & (rand(batch, frames, count) < 0.5))[..., None]
    sliding = (rand(batch, 1, count) < 0.03 * rand(batch)[:, None, None]).float()[..., None]
    offsets = offsets + sliding * 0.08 * randn(batch, 1, count, 2) * (times / times[:, -1:])[:, :, None, None]
    # What is seen is misjudged: at random, in patches, and hidden points that follow their neighbours count as seen.
    wrong = rand(batch, frames, count) < (0.06 * rand(batch))[:, None, None]
    taken = visible & ~wrong
    patch = (waves[..., 3] > 0.9) & (rand(batch) < 0.2)[:, None]
    taken &= ~patch[:, None]
    ghost = ~visible & (rand(batch, frames, count) < (0.12 * rand(batch) ** 2)[:, None, None])
    beside = (offsets * visible[..., None]).transpose(1, 2)[rows, near].sum(2).transpose(1, 2)
    seen_near = visible.float().transpose(1, 2)[rows, near].sum(2).transpose(1, 2)[..., None]
    offsets = torch.where(ghost[..., None], beside / seen_near.clamp_min(1), offsets)
    return offsets, (taken | ghost).float()


def loss_of(network: Any, batch: Batch) -> Tensor:
    """Negative log likelihood of Laplace distributions, of all frames but the first; neighbours' errors alike."""
    moved, doubt = network(batch.rest, batch.offsets, batch.seen, batch.times, batch.distance)
    error = (moved - batch.truth)[:, 1:]
    flat, deep = doubt[:, 1:].unbind(-1)
    picture = error[..., :2].abs().sum(-1)
    depth = error[..., 2].abs()
    likelihood = picture / flat + 2 * flat.log() + 2 * (depth / deep + deep.log())
    # Parts stay whole: differences to a shifted order of nearest points.
    near = torch.cdist(batch.rest, batch.rest).topk(3, largest=False).indices[..., 1:]
    rows = torch.arange(len(near), device=near.device)[:, None, None]
    beside = error.transpose(1, 2)[rows, near].mean(2).transpose(1, 2)
    apart = (error - beside).abs().sum(-1)
    return likelihood.mean() + 4 * apart.mean()


@torch.no_grad()
def held_out(network: Any, bank: Bank, *, each: int = 48, noisy: bool = True) -> dict[str, dict[str, float]]:
    """Of every group that is held out: what share of squared motion is explained, in depth and of unseen points."""
    results: dict[str, dict[str, float]] = {}
    device = bank.points.device
    for g, name in enumerate(bank.names):
        mask = bank.held & (bank.group == g)
        if not bool(mask.any()):
            continue
        generator = torch.Generator(device).manual_seed(1)
        which = torch.multinomial(torch.where(mask, bank.share, 0.0), each, replacement=True, generator=generator)
        b = draw(bank, which, 16, 256, generator, noisy)
        moved, doubt = network(b.rest, b.offsets, b.seen, b.times, b.distance)
        error, truth = (moved - b.truth)[:, 1:], b.truth[:, 1:]
        hidden = ~b.visible[:, 1:]
        sigma = doubt[:, 1:, :, 1]

        def share(e: Tensor, t: Tensor, w: Tensor) -> float:
            return float(1 - (e.square() * w).sum() / (t.square() * w).sum().clamp_min(1e-9))

        ones = torch.ones_like(error)
        sure = (sigma < 0.04).float()
        results[name] = {
            "depth": share(error[..., 2], truth[..., 2], ones[..., 2]),
            "depth seen": share(error[..., 2], truth[..., 2], (~hidden).float()),
            "depth unseen": share(error[..., 2], truth[..., 2], hidden.float()),
            "whole unseen": share(error, truth, ones * hidden[..., None]),
            "sure": float(sure.mean()),
            "depth sure": share(error[..., 2], truth[..., 2], sure),
            "calibration": float((error[..., 2].abs() / sigma).mean()),
            "size": float(truth[..., 2].square().mean().sqrt()),
        }
    mean = {k: float(np.mean([r[k] for r in results.values()])) for k in next(iter(results.values()))}
    return results | {"mean": mean}


def show(results: dict[str, dict[str, float]]) -> str:
    keys = list(results["mean"])
    lines = [f"{'':24s}" + "".join(f"{k:>14s}" for k in keys)]
    return "\n".join(lines + [f"{name:24s}" + "".join(f"{row[k]:14.3f}" for k in keys) for name, row in results.items()])


def train(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    began = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    bank = build_bank(options.clips, options.objects, max(options.objects // 20, 40), device, options.generated)
    log.info("bank: %d clips, %d frames, %.0f s", len(bank.model), len(bank.matrices), time.monotonic() - began)
    network = MotionTransformer(options.width, options.layers).to(device)
    if options.start is not None:
        network.load_state_dict({k: v.float() for k, v in MotionPrior(options.start).network.state_dict().items()})
    log.info("%.2f million parameters", sum(p.numel() for p in network.parameters()) / 1e6)
    half = torch.bfloat16 if device.type == "cuda" else torch.float32
    # Steps are taken in float32; what computes is a copy in half precision.
    swift = copy.deepcopy(network).to(half)
    average = copy.deepcopy(network)
    if options.compile:  # layers are compiled anew for every shape of a batch
        swift.layers = torch.nn.ModuleList(torch.compile(layer, dynamic=False) for layer in swift.layers)  # pyright: ignore
        torch._dynamo.config.cache_size_limit = 64  # pyright: ignore
    master: list[Tensor] = list(network.parameters())
    fast, kept = list[Tensor](swift.parameters()), list[Tensor](average.parameters())
    decayed = [p for p in master if p.ndim > 1]
    rest = [p for p in master if p.ndim <= 1]
    adam = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": rest, "weight_decay": 0.0}], lr=options.lr, betas=(0.9, 0.98),
        fused=device.type == "cuda",
    )  # fmt: skip
    generator = torch.Generator(device).manual_seed(options.seed)
    shares = torch.where(bank.held, 0.0, bank.share)
    random = np.random.default_rng(options.seed)
    history: list[dict[str, Any]] = []
    start, saved, step, running = time.monotonic(), time.monotonic(), 0, 0.0
    budget = options.minutes * 60 - (time.monotonic() - began)
    while (spent := time.monotonic() - start) < budget:
        progress = spent / budget
        rate = min(1.0, (step + 1) / 400) * (0.5 + 0.5 * math.cos(math.pi * progress)) * 0.98 + 0.005
        for group in adam.param_groups:
            group["lr"] = options.lr * rate
        frames, count = SHAPES[int(random.integers(len(SHAPES)))]
        size = max(int(options.batch * 16 * 256 / (frames * count)), 1)
        which = torch.multinomial(shares, size, replacement=True, generator=generator)
        loss = loss_of(swift, draw(bank, which, frames, count, generator))
        loss.backward()
        with torch.no_grad():
            for p, q in zip(master, fast, strict=True):
                p.grad = None if q.grad is None else q.grad.float()
                q.grad = None
        torch.nn.utils.clip_grad_norm_(master, 1.0)
        adam.step()
        with torch.no_grad():
            torch._foreach_copy_(fast, master)
            decay = min(0.999, (step + 1) / (step + 20))
            torch._foreach_lerp_(kept, master, 1 - decay)
        step += 1
        if step % 50 == 0:
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"step {step}: the loss is not finite")
            running = value if running == 0 else 0.8 * running + 0.2 * value
        if step % options.every == 0:
            history.append({"step": step, "seconds": spent, "loss": running})
            log.info("step %d, %.0f s, %.1f steps/s, loss %.4f", step, spent, step / max(spent, 1e-6), running)
        if time.monotonic() - saved > 60:
            saved = time.monotonic()
            results = held_out(average, bank, each=min(options.each, 16))
            history[-1:] = [*history[-1:], {"step": step, "seconds": spent, "held out": results["mean"]}]
            log.info("held out: %s", {k: round(v, 3) for k, v in results["mean"].items()})
            save_motion_prior(average, options.out / "motion.safetensors")
            (options.out / "history.json").write_text(json.dumps(history))
    save_motion_prior(average, options.out / "motion.safetensors")
    results = held_out(average, bank, each=options.each)
    exact = held_out(average, bank, each=options.each, noisy=False)
    log.info("%d steps\n%s\nwithout errors of tracking\n%s", step, show(results), show(exact))
    report = {
        "steps": step,
        "held out": results,
        "exact": exact,
        "history": history,
        "options": {k: str(v) for k, v in vars(options).items()},
    }
    (options.out / "results.json").write_text(json.dumps(report, indent=1))
    examples(average, bank, options.out / "examples.npz")


@torch.no_grad()
def examples(network: Any, bank: Bank, path: Path) -> None:
    """A few held-out clips, their truth and the answers, for pictures."""
    generator = torch.Generator(bank.points.device).manual_seed(3)
    which = torch.multinomial(torch.where(bank.held, bank.share, 0.0), 12, replacement=True, generator=generator)
    b = draw(bank, which, 16, 384, generator)
    moved, doubt = network(b.rest, b.offsets, b.seen, b.times, b.distance)
    arrays = {"rest": b.rest, "truth": b.truth, "moved": moved, "doubt": doubt, "seen": b.seen, "distance": b.distance}
    names = np.array([bank.names[int(g)] for g in bank.group[which]])
    np.savez_compressed(path, names=names, **{k: v.cpu().numpy().astype(np.float16) for k, v in arrays.items()})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="weights to go on from")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--objects", type=int, default=3000)
    parser.add_argument("--generated", type=float, default=0.4, help="share of generated objects")
    parser.add_argument("--batch", type=int, default=64, help="clips of 16 frames and 256 points a step")
    parser.add_argument("--compile", action="store_true", help="layers by torch.compile: half as fast again, a minute to start")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--each", type=int, default=48, help="clips of each group that is held out")
    parser.add_argument("--every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
