"""Pictures of generated objects by casting rays, batched, on any device; nothing is differentiable here.

A solid is the intersection of a box with the inside of one quadric, ``q(x) = a . x^2 + b y + c <= 0`` in its own frame, and is
convex: ellipsoid ``|x / r|^2 - 1``, tapered cylinder ``(x / r_x)^2 + (z / r_z)^2 - (1 + k y)^2``, box ``-1``. A ray enters it
where it enters the box, if q <= 0 there, else at q's falling root.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.cameras import Cameras
from ..core.mesh import linear_to_srgb, srgb_to_linear
from .objects import BOX, ELLIPSOID, SOLIDS, Objects, surface_color

_FAR = 1e4


@torch.no_grad()
def render(
    objects: Objects,  # (B)
    tau: Tensor,  # (B)
    cameras: Cameras,  # (B) square pixels, no skew
    *,
    supersample: int = 2,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:  # (B, H, W, 3) sRGB on white, (B, H, W) covered fraction
    """One picture of each object at its time from its camera; samples are averaged in linear light as ``render_mesh`` does.

    ``compiled``: fuse the kernels with torch.compile, for a GPU.
    """
    rotation, position = objects.pose(tau)
    part = objects.solid_part[..., None]
    turn = rotation.gather(1, part[..., None].expand(-1, -1, 3, 3))  # (B, S, 3, 3) solid to world
    centre = position.gather(1, part.expand(-1, -1, 3)) + (turn @ objects.solid_centre[..., None])[..., 0]
    view, height, width = cameras.world_to_camera, cameras.height * supersample, cameras.width * supersample
    K = cameras.resized(width, height).K
    direction = turn.transpose(-1, -2) @ view[:, None, :3, :3].transpose(-1, -2)  # camera to solid
    origin = (turn.transpose(-1, -2) @ (cameras.positions[:, None] - centre)[..., None])[..., 0]  # (B, S, 3)
    pixel = torch.arange(height * width, device=view.device)
    u = (pixel % width + 0.5 - K[:, 0, 2:]) / K[:, 0, :1]  # (B, R)
    v = (pixel.div(width, rounding_mode="floor") + 0.5 - K[:, 1, 2:]) / K[:, 1, 1:2]
    half, quadric = _quadrics(objects)
    depth, best = torch.full_like(u, _FAR), torch.full_like(u, -1, dtype=torch.int32)
    enter, shade = (_compiled(_enter), _compiled(_shade)) if compiled else (_enter, _shade)
    number = torch.arange(SOLIDS, dtype=torch.int32, device=u.device)
    for s in range(SOLIDS):
        depth, best = enter(depth, best, number[s], u, v, direction[:, s], origin[:, s], half[:, s], quadric[:, s])
    surface = (
        direction, origin, objects.solid_centre, objects.solid_part, objects.paint,
        objects.decal_part, objects.decal_centre, objects.decal_radius, objects.decal_color,
    )  # fmt: skip
    if compiled:
        light = shade(best, depth, u, v, *surface)
    else:  # only where something was hit
        b, r = (best >= 0).nonzero(as_tuple=True)
        light = torch.zeros(*u.shape, 3, device=u.device)
        rays = (x[b, r][:, None] for x in (best, depth, u, v))
        light[b, r] = shade(*rays, *(x[b] for x in surface))[:, 0]
    covered = (best >= 0).float()
    pixels = torch.cat([light * covered[..., None], covered[..., None]], -1)
    pixels = pixels.unflatten(1, (cameras.height, supersample, cameras.width, supersample)).mean((2, 4))
    alpha = pixels[..., 3]
    color = linear_to_srgb(pixels[..., :3] / alpha[..., None].clamp_min(1e-9))
    return color * alpha[..., None] + (1 - alpha[..., None]), alpha


def _quadrics(objects: Objects) -> tuple[Tensor, Tensor]:
    """Half extents (B, S, 3) of the bounding boxes, and a_x, a_y, a_z, b, c of the quadrics (B, S, 5)."""
    kind, radius, taper = objects.solid_kind[..., None], objects.solid_radius, objects.solid_taper[..., None]
    x, y, z = (1 / radius**2).unbind(-1)
    k = (taper / radius[..., 1:2])[..., 0]
    one, zero = torch.ones_like(k), torch.zeros_like(k)
    ellipsoid = torch.stack([x, y, z, zero, -one], -1)
    frustum = torch.stack([x, -k * k, z, -2 * k, -one], -1)
    box = torch.stack([zero, zero, zero, zero, -one], -1)
    quadric = torch.where(kind == ELLIPSOID, ellipsoid, torch.where(kind == BOX, box, frustum))
    grow = 1 + taper.abs() * torch.tensor([1.0, 0.0, 1.0], device=taper.device)
    half = torch.where((kind == ELLIPSOID) | (kind == BOX), radius, radius * grow)
    return torch.where(kind >= 0, half, -1.0), quadric  # a negative extent is never entered


def _enter(
    depth: Tensor,  # (B, R) nearest so far
    best: Tensor,  # (B, R)
    solid: Tensor,  # ()
    u: Tensor,  # (B, R) ray (u, v, 1) in the camera's frame
    v: Tensor,
    direction: Tensor,  # (B, 3, 3)
    origin: Tensor,  # (B, 3)
    half: Tensor,  # (B, 3)
    quadric: Tensor,  # (B, 5)
) -> tuple[Tensor, Tensor]:
    near, far = torch.zeros_like(u), torch.full_like(u, _FAR)
    A, B, C = torch.zeros_like(u), torch.zeros_like(u), quadric[:, 4:5]
    for i in range(3):
        d = direction[:, i, 0:1] * u + direction[:, i, 1:2] * v + direction[:, i, 2:3]
        d = torch.where(d.abs() < 1e-9, 1e-9, d)
        o, h, a = origin[:, i : i + 1], half[:, i : i + 1], quadric[:, i : i + 1]
        first, second = (-h - o) / d, (h - o) / d
        crossing = h > 0
        near = torch.maximum(near, torch.where(crossing, torch.minimum(first, second), _FAR))
        far = torch.minimum(far, torch.where(crossing, torch.maximum(first, second), -_FAR))
        A, B, C = A + a * d * d, B + 2 * a * d * o, C + a * o * o
        if i == 1:
            B, C = B + quadric[:, 3:4] * d, C + quadric[:, 3:4] * o
    inside = (A * near + B) * near + C <= 0
    root = (B * B - 4 * A * C).clamp_min(0).sqrt()
    touches = B * B - 4 * A * C >= 0
    denominator = root - B
    falling = 2 * C / torch.where(denominator.abs() < 1e-9, 1e-9, denominator)  # (-B - root) / 2A without cancellation
    at = torch.where(inside, near, torch.where(touches & (falling >= near), falling, _FAR))
    hit = (at <= far) & (at < depth) & (near > 0)
    return torch.where(hit, at, depth), torch.where(hit, solid, best)


def _shade(
    best: Tensor,  # (B, R)
    depth: Tensor,
    u: Tensor,
    v: Tensor,
    direction: Tensor,  # (B, S, 3, 3)
    origin: Tensor,  # (B, S, 3)
    centre: Tensor,  # (B, S, 3)
    owner: Tensor,  # (B, S)
    paint: Tensor,  # (B, P, columns)
    *decals: Tensor,  # (B, D, ...)
) -> Tensor:  # (B, R, 3) linear light
    """Light of the samples; what was not hit gets the first solid's."""
    solid = best.clamp_min(0).long()
    rows = torch.arange(len(best), device=best.device)[:, None]
    turn = direction[rows, solid]
    ray = turn[..., 0] * u[..., None] + turn[..., 1] * v[..., None] + turn[..., 2]
    point = origin[rows, solid] + ray * depth[..., None] + centre[rows, solid]
    part = owner[rows, solid]
    decal_part, decal_centre, decal_radius, decal_color = (x[:, None] for x in decals)
    color = surface_color(paint[rows, part], point, part, (decal_part, decal_centre, decal_radius, decal_color))
    return srgb_to_linear(color)


_cache: dict[Any, Any] = {}


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    if function not in _cache:
        _cache[function] = torch.compile(function, dynamic=False)
    return _cache[function]
