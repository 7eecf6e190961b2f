"""Projection of Gaussians into views, 16 at a time."""

# The type checker does not know that numba's intrinsics drop their first parameter.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math

import numpy as np

from .common import (
    BLUE,
    CHUNK,
    DEPTH,
    EPS2D,
    EX,
    EY,
    GREEN,
    KU,
    KW,
    KX,
    MX,
    MY,
    OPACITY,
    RED,
    ROOT,
    SLOPE,
    TMAX,
    XTOP,
    completed,
    entry,
    inner,
    row,
    take,
)
from .lists import bound_tiles
from .vectors import LANES, load, root, select, some, splat, spread, store

NEAR = 0.01
MAX_VARIANCE = 1e15


@inner
def geometry(means, quats, scales, stride, g, camera):
    """Projection of 16 Gaussians from ``g`` on, and what its derivative needs.

    Args:
        means, quats, scales: planes (3 or 4, stride) of the item's Gaussians.
        camera: three rows of world-to-camera, fx, fy, cx, cy, and the limits of x/z and y/z in the Jacobian.
    """
    one, two = splat(1), splat(2)
    r00, r01, r02, r03 = spread(camera, 0), spread(camera, 1), spread(camera, 2), spread(camera, 3)
    r10, r11, r12, r13 = spread(camera, 4), spread(camera, 5), spread(camera, 6), spread(camera, 7)
    r20, r21, r22, r23 = spread(camera, 8), spread(camera, 9), spread(camera, 10), spread(camera, 11)
    X, Y, Z = load(means, g), load(means, g + stride), load(means, g + 2 * stride)
    x = r00 * X + r01 * Y + r02 * Z + r03
    y = r10 * X + r11 * Y + r12 * Z + r13
    z = r20 * X + r21 * Y + r22 * Z + r23
    near = splat(NEAR) <= z
    z = select(near, z, one)
    inverse = one / z
    qw, qx = load(quats, g), load(quats, g + stride)
    qy, qz = load(quats, g + 2 * stride), load(quats, g + 3 * stride)
    norm = root(qw * qw + qx * qx + qy * qy + qz * qz)
    norm = one / select(norm > splat(1e-12), norm, splat(1e-12))
    qw, qx, qy, qz = qw * norm, qx * norm, qy * norm, qz * norm
    s0, s1, s2 = load(scales, g), load(scales, g + stride), load(scales, g + 2 * stride)
    # Rotation times scales: the standard deviations along the Gaussian's axes.
    m00, m01, m02 = (one - two * (qy * qy + qz * qz)) * s0, two * (qx * qy - qw * qz) * s1, two * (qx * qz + qw * qy) * s2
    m10, m11, m12 = two * (qx * qy + qw * qz) * s0, (one - two * (qx * qx + qz * qz)) * s1, two * (qy * qz - qw * qx) * s2
    m20, m21, m22 = two * (qx * qz - qw * qy) * s0, two * (qy * qz + qw * qx) * s1, (one - two * (qx * qx + qy * qy)) * s2
    u, v = x * inverse, y * inverse
    uc = select(u > spread(camera, 17), spread(camera, 17), select(u > spread(camera, 16), u, spread(camera, 16)))
    vc = select(v > spread(camera, 19), spread(camera, 19), select(v > spread(camera, 18), v, spread(camera, 18)))
    jx, jy = spread(camera, 12) * inverse, spread(camera, 13) * inverse
    # Rows of Jacobian times world-to-camera, then of that times rotation times scales, in pixels.
    p0, p1, p2 = jx * (r00 - uc * r20), jx * (r01 - uc * r21), jx * (r02 - uc * r22)
    q0, q1, q2 = jy * (r10 - vc * r20), jy * (r11 - vc * r21), jy * (r12 - vc * r22)
    t0, t1, t2 = p0 * m00 + p1 * m10 + p2 * m20, p0 * m01 + p1 * m11 + p2 * m21, p0 * m02 + p1 * m12 + p2 * m22
    w0, w1, w2 = q0 * m00 + q1 * m10 + q2 * m20, q0 * m01 + q1 * m11 + q2 * m21, q0 * m02 + q1 * m12 + q2 * m22
    eps = splat(EPS2D)
    a, b, c = t0 * t0 + t1 * t1 + t2 * t2, t0 * w0 + t1 * w1 + t2 * w2, w0 * w0 + w1 * w1 + w2 * w2
    # The determinant of (t, w) (t, w)^T + eps without the cancellation of a c - b^2.
    k0, k1, k2 = t1 * w2 - t2 * w1, t2 * w0 - t0 * w2, t0 * w1 - t1 * w0
    determinant = k0 * k0 + k1 * k1 + k2 * k2 + eps * (a + c + eps)
    a, c = a + eps, c + eps
    return (
        (x, y, z, near, inverse),
        (u, v, uc, vc),
        (qw, qx, qy, qz, norm),
        (s0, s1, s2),
        (m00, m01, m02, m10, m11, m12, m20, m21, m22),
        (p0, p1, p2, q0, q1, q2),
        (t0, t1, t2, w0, w1, w2),
        (k0, k1, k2),
        (a, b, c, determinant),
    )


@inner
def _project(means, quats, scales, opacity, reach, stride, g, camera, width, height, out):
    """Project 16 Gaussians into the planes of ``out``, in the order of a record; RED holds 1 where one may be seen, else 0.

    Returns False where a Gaussian is not finite. One whose covariance overflows is not drawn.
    """
    local, angles, q, s, _, _, _, _, covariance = geometry(means, quats, scales, stride, g, camera)
    x, y, z, near, _ = local
    u, v, _, _ = angles
    a, b, c, determinant = covariance
    zero, one, big = splat(0), splat(1), splat(1e38)
    room = load(reach, g)
    check = x + y + z + s[0] + s[1] + s[2] + room
    check = check + q[0] + q[1] + q[2] + q[3]
    finite = (check <= big) & (zero - big <= check)
    ex, ey = root(room * a), root(room * c)
    mx, my = spread(camera, 12) * u + spread(camera, 14), spread(camera, 13) * v + spread(camera, 15)
    seen = near & finite & (zero <= room) & (a <= splat(MAX_VARIANCE)) & (c <= splat(MAX_VARIANCE))
    seen = seen & (mx + ex > zero) & (splat(width) > mx - ex)
    seen = seen & (my + ey > zero) & (splat(height) > my - ey)
    slope, ku = b / a, root(a / determinant) * splat(0.25)
    n = LANES
    store(out, MX * n, mx)
    store(out, MY * n, my)
    store(out, KW * n, splat(0.25) / root(a))
    store(out, KU * n, ku)
    store(out, KX * n, zero - ku * slope)
    store(out, OPACITY * n, load(opacity, g))
    store(out, RED * n, select(seen, one, zero))
    store(out, DEPTH * n, z)
    store(out, TMAX * n, room * splat(1 / 16))
    store(out, EX * n, ex)
    store(out, EY * n, ey)
    store(out, XTOP * n, b / c * ey)
    store(out, SLOPE * n, slope)
    store(out, ROOT * n, root(determinant) / a)
    return not some(select(finite, zero, one) > zero)


@inner
def _project_views(
    queue, units, means, quats, scales, opacity, reach, colors, cameras, items, width, height, radii, record, base, bad
):  # fmt: skip
    """Fill record, radii and, at one past the Gaussian, base."""
    views, count, padded = len(cameras), colors.shape[1], means.shape[2]
    chunks = (count + CHUNK - 1) // CHUNK
    out = np.zeros(LANES * LANES, np.float32)
    while True:
        unit = take(queue, 0)
        if unit >= units:
            return
        view, chunk = unit // chunks, unit % chunks
        item = view // (views // items)
        color = colors[view] if len(colors) == views else row(colors, item)
        for block in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, count), LANES):
            if not _project(
                row(means, item), row(quats, item), row(scales, item), row(opacity, item), row(reach, item),
                padded, block, cameras[view], width, height, out,
            ):  # fmt: skip
                bad[0] = 1
            for lane in range(min(LANES, count - block)):
                seen = out[RED * LANES + lane] > 0
                g = view * count + block + lane
                r = g * LANES
                if seen:
                    for field in range(LANES):
                        record[r + field] = out[field * LANES + lane]
                    for channel in range(3):
                        record[r + RED + channel] = color[block + lane, channel]
                    if not math.isfinite(record[r + RED] + record[r + GREEN] + record[r + BLUE]):
                        bad[0] = 1
                    base[g + 1] = bound_tiles(record, r, width, height)
                if len(radii):
                    radii[view, block + lane] = math.ceil(max(record[r + EX], record[r + EY])) if seen else 0.0
        take(queue, 1)


@entry
def project(
    queues, phase, means, quats, scales, opacity, reach, colors, cameras, items, width, height, record, base, radii, bad
):  # fmt: skip
    """Project the Gaussians of B items into V views, V / B each. One phase; see :func:`draw` for the first two arguments.

    Args:
        means, quats, scales: planes (B or 1, 3 or 4, P), float32, P >= N a multiple of 16.
        opacity, reach: (B or 1, P), reach = 2 ln(255 opacity), negative where there is no Gaussian.
        colors: (B or 1 or V, N, 3).
        cameras: (V, 20), see geometry.
        record: (V N 16,), filled with the projected Gaussians.
        base: (V N + 1,) of zeros, filled at one past each Gaussian with a bound of its intersections.
        radii: (V, N), filled, or (0, 0).
        bad: (1,), set to 1 for input that is not finite.
    """
    units = len(cameras) * ((colors.shape[1] + CHUNK - 1) // CHUNK)
    if phase == 0:
        _project_views(
            queues[0], units, means, quats, scales, opacity, reach, colors, cameras, items, width, height,
            radii, record, base, bad,
        )  # fmt: skip
    return 1 if completed(queues[0], units) else 0
