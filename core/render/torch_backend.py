"""The rasteriser in plain PyTorch: any device, any float type, autograd. It is the reference that the other backends meet.

The picture is cut into 8 x 8 tiles; tiles with lists of similar length are drawn together as dense tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..cameras import Cameras, quaternion_to_matrix
from ..files import InputError

if TYPE_CHECKING:
    from .rasterize import ScreenStatistics

NEAR = 0.01
EPS2D = 0.3
ALPHA_MAX = 0.999
ALPHA_MIN = 1 / 255
TRANSMITTANCE_MIN = 1e-4
MAX_VARIANCE = 1e15  # px^2; a larger Gaussian would overflow float32 and is left out
TILE = 8
CHUNK = 1 << 22  # tile x Gaussian x pixel elements drawn at once


def draw(
    means: Tensor,  # (B or 1, N, 3)
    quats: Tensor,  # (B or 1, N, 4) wxyz
    log_scales: Tensor,  # (B or 1, N, 3)
    opacity_logits: Tensor,  # (B or 1, N)
    colors: Tensor,  # (B or 1 or V, N, 3)
    cameras: Cameras,  # (V,), item-major: B items of V / B views
    items: int,  # B
    statistics: ScreenStatistics | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # (V, H, W, 3), (V, H, W), (V, H, W)
    """Premultiplied colour, alpha and alpha-weighted depth sum of every view."""
    require_finite(means=means, quats=quats, log_scales=log_scales, opacity_logits=opacity_logits, colors=colors)
    views, count = len(cameras), means.shape[1]
    per_view = (views, count)

    def spread(x: Tensor) -> Tensor:  # (B or 1 or V, N, ...) -> (V, N, ...)
        return x if len(x) == views else x[:, None].expand(-1, views // len(x), *x.shape[1:]).flatten(0, 1)

    opacities = spread(opacity_logits).sigmoid()
    means2d, depths, covariances, determinant, inside = project(spread(means), spread(quats), spread(log_scales), cameras)
    a, b, c = covariances.unbind(-1)
    # sigma = ((kw dx)^2 + (ku dy + kx dx)^2) / 2: no cancellation for needles.
    ku = (a / determinant).sqrt()
    factors = torch.stack([a.rsqrt(), ku, -ku * b / a], -1)
    with torch.no_grad():
        # Beyond this box alpha is below ALPHA_MIN.
        reach = (2 * (opacities / ALPHA_MIN).log()).clamp_min(0).sqrt()
        extents = reach[..., None] * torch.stack([a, c], -1).sqrt()
        size = means.new_tensor([cameras.width, cameras.height])
        inside = inside & (opacities >= ALPHA_MIN) & ((means2d + extents > 0) & (means2d - extents < size)).all(-1)
        if statistics is not None:
            statistics.radii = torch.where(inside, extents.amax(-1).ceil(), 0)
            statistics.visible = inside
    if statistics is not None and means2d.requires_grad:
        means2d.register_hook(lambda grad: setattr(statistics, "gradient", (grad * (size / 2)).norm(dim=-1)))
    features = torch.cat([spread(colors), depths[..., None], torch.ones_like(depths)[..., None]], -1)
    columns = [means2d, factors, opacities[..., None], features]
    gaussians = torch.cat([x.expand(*per_view, x.shape[-1]) for x in columns], -1).flatten(0, 1)  # (V N, 11)

    rows, cols = -(-cameras.height // TILE), -(-cameras.width // TILE)
    with torch.no_grad():
        members, starts, lengths = bin_tiles(means2d, extents, depths, inside, rows, cols)
        order = lengths.argsort(descending=True, stable=True)
        order = order[: int((lengths > 0).sum())]
        pieces = _pieces(lengths[order].tolist())
    canvas = means.new_zeros(views * rows * cols, TILE * TILE, 5)
    drawn = []
    for begin, end in pieces:
        tiles = order[begin:end]
        longest = int(lengths[tiles[0]])
        slots = torch.arange(longest, device=means.device)
        filled = slots < lengths[tiles, None]
        index = members[(starts[tiles, None] + slots).clamp_max(len(members) - 1)]
        origin = torch.stack([tiles % cols, tiles // cols % rows], -1).to(means) * TILE
        drawn.append(checkpoint(_draw_tiles, gaussians, index, filled, origin, use_reentrant=False))
    if drawn:
        canvas = canvas.index_put((order,), torch.cat(drawn))
    picture = canvas.reshape(views, rows, cols, TILE, TILE, 5).permute(0, 1, 3, 2, 4, 5)
    picture = picture.reshape(views, rows * TILE, cols * TILE, 5)[:, : cameras.height, : cameras.width]
    return picture[..., :3], picture[..., 4], picture[..., 3]


def project(
    means: Tensor,  # (V, N, 3)
    quats: Tensor,  # (V, N, 4)
    log_scales: Tensor,  # (V, N, 3)
    cameras: Cameras,  # (V,)
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Centres in pixels (V, N, 2), z-depths (V, N), covariances (xx, xy, yy) in px^2 with EPS2D added (V, N, 3), their
    determinants (V, N), and which Gaussians lie beyond the near plane and are smaller than MAX_VARIANCE (V, N).

    The affine approximation of EWA splatting; for its Jacobian the direction is held within the picture plus 15 % a side, as
    gsplat does.
    """
    rotation, translation = cameras.world_to_camera[:, None, :3, :3], cameras.world_to_camera[:, None, :3, 3]
    fx, fy, cx, cy = (cameras.K[:, None, i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    x, y, z = ((rotation @ means[..., None])[..., 0] + translation).unbind(-1)
    inside = z >= NEAR
    z = torch.where(inside, z, 1.0)
    u, v = x / z, y / z
    means2d = torch.stack([fx * u + cx, fy * v + cy], -1)
    margin_x, margin_y = 0.15 * cameras.width / fx, 0.15 * cameras.height / fy
    u = u.clamp(-cx / fx - margin_x, (cameras.width - cx) / fx + margin_x)
    v = v.clamp(-cy / fy - margin_y, (cameras.height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * u / z, zero, fy / z, -fy * v / z], -1).unflatten(-1, (2, 3))
    axes = jacobian @ rotation @ (quaternion_to_matrix(quats) * log_scales.exp()[..., None, :])  # (V, N, 2, 3)
    inside = inside & (axes.detach().square().sum(-1) <= MAX_VARIANCE).all(-1)
    axes = torch.where(inside[..., None, None], axes, 0.0)
    s, t = axes.unbind(-2)
    a, b, c = (s * s).sum(-1), (s * t).sum(-1), (t * t).sum(-1)
    determinant = torch.linalg.cross(s, t).square().sum(-1) + EPS2D * (a + c + EPS2D)  # not a c - b^2, which cancels
    return means2d, z, torch.stack([a + EPS2D, b, c + EPS2D], -1), determinant, inside


def bin_tiles(
    means2d: Tensor,  # (V, N, 2)
    extents: Tensor,  # (V, N, 2) half sides of the boxes, pixels
    depths: Tensor,  # (V, N)
    inside: Tensor,  # (V, N) bool
    rows: int,
    cols: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lists of the Gaussians in each tile, nearest first: members (M,) into V N, starts and lengths (V rows cols,)."""
    views, count = depths.shape
    limit = torch.tensor([cols, rows], device=depths.device)
    low = ((means2d - extents) / TILE).floor().clamp(min=0).minimum(limit.to(depths)).long()
    high = ((means2d + extents) / TILE).ceil().clamp(min=0).minimum(limit.to(depths)).long()
    spans = torch.where(inside[..., None], (high - low).clamp_min(0), 0)
    nearest = depths.argsort(dim=-1, stable=True) + torch.arange(views, device=depths.device)[:, None] * count
    nearest = nearest.flatten()
    low, spans = low.flatten(0, 1)[nearest], spans.flatten(0, 1)[nearest]
    areas = spans.prod(-1)
    owner = torch.repeat_interleave(torch.arange(len(areas), device=depths.device), areas)
    within = torch.arange(len(owner), device=depths.device) - (areas.cumsum(0) - areas)[owner]
    width = spans[owner, 0]
    row, col = low[owner, 1] + within // width.clamp_min(1), low[owner, 0] + within % width.clamp_min(1)
    members = nearest[owner]
    tile = (members // count * rows + row) * cols + col
    order = tile.argsort(stable=True)
    lengths = torch.bincount(tile, minlength=views * rows * cols)
    return members[order], lengths.cumsum(0) - lengths, lengths


def _pieces(lengths: list[int]) -> list[tuple[int, int]]:
    """Ranges of tiles, longest first, that fit CHUNK and whose lists are at least about half as long as the piece's longest."""
    pieces, begin = [], 0
    for end in range(1, len(lengths) + 1):
        full = end == len(lengths) or (end - begin + 1) * lengths[begin] * TILE * TILE > CHUNK
        if full or lengths[end] < lengths[begin] // 2:
            pieces.append((begin, end))
            begin = end
    return pieces


def _draw_tiles(
    gaussians: Tensor,  # (V N, 11): centre, kw, ku, kx, opacity, colour, depth, 1
    index: Tensor,  # (T, L) into V N
    filled: Tensor,  # (T, L) bool
    origin: Tensor,  # (T, 2) pixels
) -> Tensor:  # (T, TILE * TILE, 5)
    members = torch.nn.functional.embedding(index, gaussians)  # its backward is deterministic, that of indexing is not
    center, factors, opacity, features = members.split([2, 3, 1, 5], -1)
    steps = torch.arange(TILE, device=origin.device, dtype=origin.dtype) + 0.5
    dx = ((origin[:, None, :1] + steps) - center[..., :1])[:, :, None, :]  # (T, L, 1, 8)
    dy = ((origin[:, None, 1:] + steps) - center[..., 1:])[:, :, :, None]  # (T, L, 8, 1)
    kw, ku, kx = (x[..., None] for x in factors.split(1, -1))
    sigma = 0.5 * ((kw * dx).square() + (ku * dy + kx * dx).square()).flatten(2)
    alpha = (opacity * torch.exp(-sigma)).clamp_max(ALPHA_MAX)
    alpha = torch.where(filled[..., None] & (alpha >= ALPHA_MIN), alpha, 0.0)
    behind = (1 - alpha).cumprod(1)
    before = torch.cat([torch.ones_like(behind[:, :1]), behind[:, :-1]], 1)
    weights = torch.where(behind > TRANSMITTANCE_MIN, alpha * before, 0.0)  # (T, L, P)
    return weights.transpose(1, 2) @ features


def require_finite(**tensors: Tensor) -> None:
    """Raises InputError naming the first tensor with a NaN or an infinity; one pass where there is none."""
    if torch.stack([x.detach().abs().amax() if x.numel() else x.new_zeros(()) for x in tensors.values()]).isfinite().all():
        return
    name = next(k for k, x in tensors.items() if not x.isfinite().all())
    raise InputError(f"gaussians: {name} holds a NaN or an infinity, lower the learning rate or check the input")
