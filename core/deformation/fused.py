"""Fields on a card in a few launches: the kernels of ``control_nodes.cu`` and ``hexplane.cu`` with their derivatives.

What they compute is what :mod:`.control_nodes`, :mod:`.hexplane` and :mod:`..objectives.rigidity` say in PyTorch, which stays
the definition, the CPU's way, and the way on a card without the run-time compiler. The same input gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..gaussians import Gaussians
from ..render.nvrtc.compiler import compiles, load
from ..transfer import sent

SOURCE, PLANES = (Path(__file__).with_name(name) for name in ("control_nodes.cu", "hexplane.cu"))
THREADS = 128
LANES = 64  # as in the source

#: Starts (M + 1,) and entries, int32: the places where each index occurs in a table, in the table's order.
Lists = tuple[Tensor, Tensor]


def available(device: torch.device, source: Path = SOURCE) -> bool:
    """Whether the kernels of a source run on a device."""
    return compiles(source, device)


def places(table: Tensor, count: int) -> Lists:
    """Where each of ``count`` indices occurs in an integer table of any shape: the transpose of a gather, in one order."""
    flat = table.reshape(-1)
    ordered, entries = flat.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(count + 1, device=flat.device, dtype=flat.dtype))
    return starts.int(), entries.int()


def node_motion(
    tau: Tensor,  # (B,)
    rest: Tensor,  # (M, 3)
    translations: Tensor,  # (keys, M, 3)
    rotations: Tensor,  # (keys, M, 3)
    log_scales: Tensor,  # (keys, M, 3)
    opacity_logits: Tensor | None,  # (keys, M)
    loop: bool,
    anchored: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Positions (B, M, 3), rotations wxyz (B, M, 4), log scales (B, M, 3) and opacity logits (B, M) of nodes at times."""
    arguments = tau.detach(), rest, translations, rotations, log_scales, opacity_logits, loop, anchored
    return _NodeMotion.apply(*arguments)  # pyright: ignore[reportReturnType]


def deform(
    gaussians: Gaussians,
    index: Tensor,  # (N, K)
    weight: Tensor,  # (N, K)
    bound: Lists,
    rest: Tensor,  # (M, 3)
    motion: tuple[Tensor, Tensor, Tensor, Tensor | None],
) -> Gaussians:
    """Gaussians moved by the nodes that they are bound to, (B, N, ...): ``bound`` is :func:`places` of the index."""
    batch = len(motion[0])
    means, quats, scales, logits = _Deform.apply(
        gaussians.means, gaussians.quats, gaussians.log_scales, gaussians.opacity_logits, index, weight, *bound, rest, *motion
    )  # pyright: ignore[reportGeneralTypeIssues]
    if logits is None:
        logits = gaussians.opacity_logits.expand(batch, -1)
    return Gaussians(means, quats, scales, logits, gaussians.sh.expand(batch, *gaussians.sh.shape))


def edge_strain(
    rest: Tensor,  # (M, 3)
    positions: Tensor,  # (B, M, 3)
    quats: Tensor,  # (B, M, 4)
    pairs: Tensor,  # (E, 2)
    ends: Lists,
) -> tuple[Tensor, Tensor]:
    """Strain and bend (B, E) as :func:`~..objectives.rigidity.edge_strain` has them; ``ends``: :func:`places` of the pairs."""
    return _Strain.apply(rest, positions, quats, pairs, *ends)  # pyright: ignore[reportReturnType]


def plane_features(
    planes: Sequence[Tensor],  # each (1, C, h, w), six a scale
    points: Tensor,  # (N, 3) in [-1, 1]
    times: Tensor,  # (B,) in [-1, 1]
) -> Tensor:  # (B, N, scales C)
    """Products of bilinear samples of six planes a scale: xy, xz, xt, yz, yt, zt. Differentiable in all but the times."""
    scales = len(planes) // 6
    sizes = [
        [planes[6 * s].shape[3], planes[6 * s].shape[2], planes[6 * s + 1].shape[2], planes[6 * s + 2].shape[2]]
        for s in range(scales)
    ]
    return _Planes.apply(points, times.detach(), sizes, *planes)  # pyright: ignore[reportReturnType]


@lru_cache(maxsize=64)
def _layout(sizes: tuple[tuple[int, ...], ...], counts: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where planes of some sizes begin in one row of numbers, and the sizes, on a device."""
    begins = [sum(counts[:i]) for i in range(len(counts))]
    whole = torch.tensor([*begins, *(n for scale in sizes for n in scale)], dtype=torch.int32)
    there = sent(whole, device)
    return there[: len(begins)], there[len(begins) :]


class _Planes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, times: Tensor, sizes: list[list[int]], *planes: Tensor) -> Tensor:
        scales, channels = len(sizes), planes[0].shape[1]
        counts = tuple(plane.numel() for plane in planes)
        begins, extents = _layout(tuple(map(tuple, sizes)), counts, points.device)
        table = torch.cat([plane.reshape(-1) for plane in planes])
        shape = len(times), len(points), scales, channels
        features = points.new_empty(len(times), len(points), scales * channels)
        inputs = table, begins, extents, points.contiguous(), times.contiguous()
        load(PLANES, points.device).launch("planes_forward", _grid(features.numel()), (THREADS,), (*inputs, *shape, features))
        ctx.save_for_backward(*inputs)
        ctx.shape, ctx.counts, ctx.planes = shape, counts, [plane.shape for plane in planes]
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        table, begins, sizes, points, times = ctx.saved_tensors
        _, count, scales, _ = ctx.shape
        gradient = gradient.contiguous()
        bound = torch.stack([gradient.abs().amax(), table.abs().amax()])
        d_table = torch.zeros(len(table), dtype=torch.int64, device=points.device)
        moving = ctx.needs_input_grad[0]
        d_points = torch.zeros(scales, count, 3, dtype=torch.int64, device=points.device) if moving else None
        module = load(PLANES, points.device)
        given = table, begins, sizes, points, times, gradient, bound
        module.launch("planes_backward", _grid(gradient.numel()), (THREADS,), (*given, *ctx.shape, d_table, d_points))
        out, out_points = torch.empty_like(table), torch.empty_like(points) if moving else None
        threads = max(len(table), 3 * count)
        module.launch(
            "planes_finish", _grid(threads), (THREADS,),
            (d_table, d_points, sizes, bound, len(table), count, scales, out, out_points),
        )  # fmt: skip
        planes = [part.reshape(shape) for part, shape in zip(out.split(ctx.counts), ctx.planes, strict=True)]
        return out_points, None, None, *planes


def _grid(count: int) -> tuple[int]:
    return (-(-count // THREADS),)


def _whole(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


class _NodeMotion(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tau: Tensor, rest: Tensor, translations: Tensor, rotations: Tensor, log_scales: Tensor,
        opacity_logits: Tensor | None, loop: bool, anchored: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
        keys, nodes = translations.shape[:2]
        tau = tau.contiguous()
        positions, scales = torch.empty(2, len(tau), nodes, 3, device=tau.device)
        quats = positions.new_empty(len(tau), nodes, 4)
        opacity = None if opacity_logits is None else positions.new_empty(len(tau), nodes)
        sizes = len(tau), nodes, keys, int(loop), int(anchored)
        inputs = tau, rest, translations, rotations, log_scales, opacity_logits
        load(SOURCE, tau.device).launch(
            "nodes_forward", _grid(len(tau) * nodes), (THREADS,), (*inputs, *sizes, positions, quats, scales, opacity)
        )
        ctx.save_for_backward(tau, rotations)
        ctx.sizes, ctx.opacity = sizes, opacity is not None
        ctx.set_materialize_grads(False)
        return positions, quats, scales, opacity

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        tau, rotations = ctx.saved_tensors
        given = _whole(*gradients)
        results = [torch.empty_like(rotations) for _ in range(3)]
        logits = torch.empty_like(rotations[..., 0]) if ctx.opacity else None
        load(SOURCE, tau.device).launch(
            "nodes_backward", _grid(rotations.numel() // 3), (THREADS,), (tau, rotations, *given, *ctx.sizes, *results, logits)
        )
        return None, None, *results, logits, None, None


class _Deform(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, means: Tensor, quats: Tensor, log_scales: Tensor, logits: Tensor, index: Tensor, weight: Tensor,
        starts: Tensor, entries: Tensor, rest: Tensor, positions: Tensor, node_quats: Tensor, scales: Tensor,
        opacity: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
        sizes = len(positions), len(means), len(rest), index.shape[1]
        out_means, out_scales = means.new_empty(2, sizes[0], sizes[1], 3)
        out_quats = means.new_empty(sizes[0], sizes[1], 4)
        out_logits = None if opacity is None else means.new_empty(sizes[0], sizes[1])
        given = _whole(means, quats, log_scales, logits)
        nodes = _whole(positions, node_quats, scales, opacity)
        load(SOURCE, means.device).launch(
            "deform_forward", _grid(sizes[0] * sizes[1]), (THREADS,),
            (*given, index, weight, rest, *nodes, *sizes, out_means, out_quats, out_scales, out_logits),
        )  # fmt: skip
        ctx.save_for_backward(given[0], given[1], index, weight, starts, entries, rest, nodes[1])
        ctx.sizes, ctx.opacity = sizes, opacity is not None
        ctx.canonical = any(ctx.needs_input_grad[:4])
        ctx.set_materialize_grads(False)
        return out_means, out_quats, out_scales, out_logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        means, quats, index, weight, starts, entries, rest, node_quats = ctx.saved_tensors
        frames, count, nodes, neighbours = ctx.sizes
        g_means, g_quats, g_scales, g_logits = _whole(*gradients)
        module = load(SOURCE, means.device)
        blend = None
        if g_quats is not None:
            blend = torch.empty_like(g_quats)
            arguments = quats, index, weight, node_quats, g_quats, *ctx.sizes, blend
            module.launch("deform_backward_blend", _grid(frames * count), (THREADS,), arguments)
        d_positions, d_scales = means.new_empty(2, frames, nodes, 3)
        d_quats = means.new_empty(frames, nodes, 4)
        d_opacity = means.new_empty(frames, nodes) if ctx.opacity else None
        module.launch(
            "deform_backward_nodes", (nodes, frames), (LANES,),
            (means, starts, entries, weight, rest, node_quats, g_means, g_scales, g_logits if ctx.opacity else None, blend,
             count, nodes, neighbours, d_positions, d_quats, d_scales, d_opacity),
        )  # fmt: skip
        canonical: list[Tensor | None] = [None] * 4
        if ctx.canonical:
            canonical = [torch.empty_like(means), torch.empty_like(quats), torch.empty_like(means), means.new_empty(count)]
            module.launch(
                "deform_backward_canonical", _grid(count), (THREADS,),
                (index, weight, node_quats, g_means, g_quats, g_scales, g_logits, *ctx.sizes, *canonical),
            )  # fmt: skip
            if not ctx.opacity:
                canonical[3] = None  # the logits are passed on as they are
        return *canonical, None, None, None, None, None, d_positions, d_quats, d_scales, d_opacity


class _Strain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rest: Tensor, positions: Tensor, quats: Tensor, pairs: Tensor, starts: Tensor, entries: Tensor
    ) -> tuple[Tensor, Tensor]:
        sizes = len(positions), len(rest), len(pairs)
        strain, bend = rest.new_empty(2, sizes[0], sizes[2])
        inputs = _whole(rest, positions, quats, pairs)
        load(SOURCE, rest.device).launch(
            "strain_forward", _grid(sizes[0] * sizes[2]), (THREADS,), (*inputs, *sizes, strain, bend)
        )
        ctx.save_for_backward(*inputs, starts, entries)
        ctx.sizes = sizes
        ctx.set_materialize_grads(False)
        return strain, bend

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *inputs, starts, entries = ctx.saved_tensors
        d_positions, d_quats = torch.empty_like(inputs[1]), torch.empty_like(inputs[2])
        load(SOURCE, starts.device).launch(
            "strain_backward", _grid(ctx.sizes[0] * ctx.sizes[1]), (THREADS,),
            (*inputs, starts, entries, *_whole(*gradients), *ctx.sizes, d_positions, d_quats),
        )  # fmt: skip
        return None, d_positions, d_quats, None, None, None
