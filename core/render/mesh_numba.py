"""The numba kernel of the mesh renderer. All of it is in this one file, since numba's cache watches the file of a kernel only.

Two passes over each band of each camera, so that no two threads write to one place: faces are drawn into a buffer of 1 / z
and face indices, then the visible samples are shaded and averaged. A sample's ray d (depth 1 along the viewing axis) meets the
face a, a + e1, a + e2, seen from the camera's centre, at barycentrics d.(e2 x a) / d.n and d.(a x e1) / d.n and depth
a.n / d.n with n = e1 x e2. All are linear in the picture but for the division, hold for faces that reach behind the camera
too, and are set up once for a run of samples on one face.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int32, njit, prange, uintp

from .numba_support import cache_folder

# Not "nnan" and "ninf": comparisons with the projections of points at the camera's plane must stay false. Only what is called
# from Python is kept on disk, compiled whole, as of the rasteriser's kernels.
_JIT = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "arcp", "nsz", "afn"},
}
_SLACK = np.float32(2e-5)  # px: neighbours overlap by this, so that rounding opens no crack between them

#: sRGB encoding of the squares of evenly spaced numbers: the curve is smooth in them.
_ENCODED = np.linspace(0, 1, 2049, dtype=np.float32) ** 2
_ENCODED = np.where(_ENCODED <= 0.0031308, _ENCODED * 12.92, 1.055 * np.maximum(_ENCODED, 1e-3) ** (1 / 2.4) - 0.055)
_ENCODED = _ENCODED.astype(np.float32)


@njit(forceinline=True, **_JIT)
def _encode(x):
    s = np.sqrt(min(max(x, float32(0)), float32(1))) * float32(2048)
    i = min(int32(s), int32(2047))
    low = _ENCODED[uintp(i)]
    return low + (s - float32(i)) * (_ENCODED[uintp(i + 1)] - low)


@njit(forceinline=True, **_JIT)
def _cross(ax, ay, az, bx, by, bz):
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


@njit(forceinline=True, **_JIT)
def _dots(rays, x, y, z):
    return (
        rays[0, 0] * x + rays[0, 1] * y + rays[0, 2] * z,
        rays[1, 0] * x + rays[1, 1] * y + rays[1, 2] * z,
        rays[2, 0] * x + rays[2, 1] * y + rays[2, 2] * z,
    )


@njit(forceinline=True, **_JIT)
def _plane(vertices, faces, face, eye):
    """n, e2 x a, a x e1 and a.n of a face."""
    i, j, k = uintp(faces[face, 0]), uintp(faces[face, 1]), uintp(faces[face, 2])
    x, y, z = vertices[i, 0], vertices[i, 1], vertices[i, 2]
    e1x, e1y, e1z = vertices[j, 0] - x, vertices[j, 1] - y, vertices[j, 2] - z
    e2x, e2y, e2z = vertices[k, 0] - x, vertices[k, 1] - y, vertices[k, 2] - z
    ax, ay, az = x - eye[0], y - eye[1], z - eye[2]
    nx, ny, nz = _cross(e1x, e1y, e1z, e2x, e2y, e2z)
    ux, uy, uz = _cross(e2x, e2y, e2z, ax, ay, az)
    vx, vy, vz = _cross(ax, ay, az, e1x, e1y, e1z)
    return nx, ny, nz, ux, uy, uz, vx, vy, vz, ax * nx + ay * ny + az * nz


@njit(forceinline=True, **_JIT)
def _clamped(u, v):
    """Barycentrics of the second and third corner, moved into the triangle."""
    u, v = max(u, float32(0)), max(v, float32(0))
    total = u + v
    if total > float32(1):
        u, v = u / total, v / total
    return u, v


@njit(forceinline=True, **_JIT)
def _mix(values, column, i, j, k, u, v):
    """A vertex attribute at barycentrics."""
    first = values[i, column]
    return first + u * (values[j, column] - first) + v * (values[k, column] - first)


@njit(forceinline=True, **_JIT)
def _texel(texels, table, levels, texture, s, t, size):
    """Bilinear sample, linear light; ``size``: texels of the finest level that the sample covers."""
    level, last = uintp(0), uintp(levels[texture] - 1)
    while size >= float32(4) and level < last:
        size *= float32(0.25)
        level += uintp(1)
    start, height, width = uintp(table[texture, level, 0]), int32(table[texture, level, 1]), int32(table[texture, level, 2])
    x = (s - np.floor(s)) * float32(width) - float32(0.5)
    y = (t - np.floor(t)) * float32(height) - float32(0.5)
    x0, y0 = int32(np.floor(x)), int32(np.floor(y))
    fx, fy = x - float32(x0), y - float32(y0)
    x1, y1 = x0 + int32(1), y0 + int32(1)
    x0 = x0 + width if x0 < 0 else min(x0, width - int32(1))
    y0 = y0 + height if y0 < 0 else min(y0, height - int32(1))
    x1 = int32(0) if x1 >= width else x1
    y1 = int32(0) if y1 >= height else y1
    p, q = start + uintp(y0) * uintp(width), start + uintp(y1) * uintp(width)
    p0, p1, q0, q1 = p + uintp(x0), p + uintp(x1), q + uintp(x0), q + uintp(x1)
    w00, w01 = (float32(1) - fx) * (float32(1) - fy), fx * (float32(1) - fy)
    w10, w11 = (float32(1) - fx) * fy, fx * fy
    return (
        w00 * texels[p0, 0] + w01 * texels[p1, 0] + w10 * texels[q0, 0] + w11 * texels[q1, 0],
        w00 * texels[p0, 1] + w01 * texels[p1, 1] + w10 * texels[q0, 1] + w11 * texels[q1, 1],
        w00 * texels[p0, 2] + w01 * texels[p1, 2] + w10 * texels[q0, 2] + w11 * texels[q1, 2],
        w00 * texels[p0, 3] + w01 * texels[p1, 3] + w10 * texels[q0, 3] + w11 * texels[q1, 3],
    )


@njit(**_JIT)
def _is_solid(vertices, surface, face, x, y, eye, ray, focal, cutoff):
    """Whether the face's alpha leaves surface at the sample (x, y)."""
    faces, uvs, vertex_light, face_light, face_texture, face_texels, texels, table, levels = surface
    nx, ny, nz, ux, uy, uz, vx, vy, vz, an = _plane(vertices, faces, face, eye)
    dx = ray[0, 0] * x + ray[1, 0] * y + ray[2, 0]
    dy = ray[0, 1] * x + ray[1, 1] * y + ray[2, 1]
    dz = ray[0, 2] * x + ray[1, 2] * y + ray[2, 2]
    dn = dx * nx + dy * ny + dz * nz
    u, v = _clamped((dx * ux + dy * uy + dz * uz) / dn, (dx * vx + dy * vy + dz * vz) / dn)
    z = an / dn
    i, j, k = uintp(faces[face, 0]), uintp(faces[face, 1]), uintp(faces[face, 2])
    alpha = face_light[face, 3]
    if vertex_light.shape[0]:
        alpha *= _mix(vertex_light, 3, i, j, k, u, v)
    if face_texture[face] >= 0:
        s, t = _mix(uvs, 0, i, j, k, u, v), _mix(uvs, 1, i, j, k, u, v)
        size = face_texels[face] * z * z / (abs(dn) * focal)
        alpha *= _texel(texels, table, levels, uintp(face_texture[face]), s, t, size)[3]
    return alpha >= cutoff


@njit(forceinline=True, **_JIT)
def _fill(x0, y0, w0, x1, y1, w1, x2, y2, w2, face, buffer, indices, left, top, cutoff, vertices, surface, eye, ray, focal):
    """Draws one projected triangle, corners in samples with 1 / z, into a window of the picture."""
    rows, columns = buffer.shape
    low_x = np.ceil(max(min(x0, x1, x2) - float32(0.5), float32(left)))
    high_x = np.floor(min(max(x0, x1, x2) - float32(0.5), float32(left + columns - 1)))
    if not low_x <= high_x:
        return
    low_y = np.ceil(max(min(y0, y1, y2) - float32(0.5), float32(top)))
    high_y = np.floor(min(max(y0, y1, y2) - float32(0.5), float32(top + rows - 1)))
    if not low_y <= high_y:
        return
    ax, ay, bx, by = x1 - x0, y1 - y0, x2 - x0, y2 - y0
    area = ax * by - ay * bx
    if not abs(area) > float32(0):
        return
    inverse = float32(1) / area
    # Barycentrics of the second and third corner and 1 / z are linear: value at the first corner plus gradients.
    ux, uy, vx, vy = by * inverse, -bx * inverse, -ay * inverse, ax * inverse
    wx, wy = (w1 - w0) * ux + (w2 - w0) * vx, (w1 - w0) * uy + (w2 - w0) * vy
    slack_u, slack_v = _SLACK * (abs(ux) + abs(uy)), _SLACK * (abs(vx) + abs(vy))
    slack_w = _SLACK * (abs(ux + vx) + abs(uy + vy))
    y_start, y_stop, x_start, x_stop = int32(low_y), int32(high_y), int32(low_x), int32(high_x)
    for y in range(y_start, y_stop + 1):
        dy = float32(y) + float32(0.5) - y0
        row = uintp(y - top)
        for x in range(x_start, x_stop + 1):
            dx = float32(x) + float32(0.5) - x0
            u, v = dx * ux + dy * uy, dx * vx + dy * vy
            if u >= -slack_u and v >= -slack_v and u + v <= float32(1) + slack_w:
                nearness = w0 + dx * wx + dy * wy
                column = uintp(x - left)
                if nearness > buffer[row, column]:
                    if cutoff > float32(0) and not _is_solid(
                        vertices, surface, face, float32(x) + float32(0.5), float32(y) + float32(0.5), eye, ray, focal, cutoff
                    ):
                        continue
                    buffer[row, column] = nearness
                    indices[row, column] = face


@njit(**_JIT)
def _fill_clipped(vertices, surface, face, pose, K, near, buffer, indices, left, top, cutoff, eye, ray, focal):
    """Draws the part of a face beyond the near plane: a fan of the polygon that the plane leaves."""
    faces = surface[0]
    polygon = np.empty((4, 3), np.float32)
    count = 0
    for corner in range(3):
        a, b = vertices[uintp(faces[face, corner])], vertices[uintp(faces[face, (corner + 1) % 3])]
        za = pose[2, 0] * a[0] + pose[2, 1] * a[1] + pose[2, 2] * a[2] + pose[2, 3]
        zb = pose[2, 0] * b[0] + pose[2, 1] * b[1] + pose[2, 2] * b[2] + pose[2, 3]
        xa = pose[0, 0] * a[0] + pose[0, 1] * a[1] + pose[0, 2] * a[2] + pose[0, 3]
        xb = pose[0, 0] * b[0] + pose[0, 1] * b[1] + pose[0, 2] * b[2] + pose[0, 3]
        ya = pose[1, 0] * a[0] + pose[1, 1] * a[1] + pose[1, 2] * a[2] + pose[1, 3]
        yb = pose[1, 0] * b[0] + pose[1, 1] * b[1] + pose[1, 2] * b[2] + pose[1, 3]
        if za > near:
            polygon[count, 0], polygon[count, 1], polygon[count, 2] = xa, ya, za
            count += 1
        if (za > near) != (zb > near):
            t = (near - za) / (zb - za)
            polygon[count, 0], polygon[count, 1], polygon[count, 2] = xa + t * (xb - xa), ya + t * (yb - ya), near
            count += 1
    for i in range(count):
        w = float32(1) / polygon[i, 2]
        polygon[i, 0] = (K[0, 0] * polygon[i, 0] + K[0, 1] * polygon[i, 1]) * w + K[0, 2]
        polygon[i, 1] = K[1, 1] * polygon[i, 1] * w + K[1, 2]
        polygon[i, 2] = w
    for i in range(1, count - 1):
        p, q, r = polygon[0], polygon[i], polygon[i + 1]
        _fill(
            p[0], p[1], p[2], q[0], q[1], q[2], r[0], r[1], r[2],
            face, buffer, indices, left, top, cutoff, vertices, surface, eye, ray, focal,
        )  # fmt: skip


@njit(**_JIT)
def _project(vertices, start, stop, m, K, near, screen, bounds):
    """Pictures of some vertices: x, y in samples, 1 / z and z; and the rectangle that holds them."""
    low_x, low_y, high_x, high_y = float32(1e9), float32(1e9), float32(-1e9), float32(-1e9)
    for i in range(uintp(start), uintp(stop)):
        vx, vy, vz = vertices[i, 0], vertices[i, 1], vertices[i, 2]
        z = m[2, 0] * vx + m[2, 1] * vy + m[2, 2] * vz + m[2, 3]
        w = float32(1) / z
        x = (m[0, 0] * vx + m[0, 1] * vy + m[0, 2] * vz + m[0, 3]) * w
        y = (m[1, 0] * vx + m[1, 1] * vy + m[1, 2] * vz + m[1, 3]) * w
        x, y = K[0, 0] * x + K[0, 1] * y + K[0, 2], K[1, 1] * y + K[1, 2]
        if not z > near:  # what crosses the near plane may reach anywhere
            x_low = y_low = float32(-1e9)
            x_high = y_high = float32(1e9)
        else:
            x_low, x_high, y_low, y_high = x, x, y, y
        low_x, high_x = min(low_x, x_low), max(high_x, x_high)
        low_y, high_y = min(low_y, y_low), max(high_y, y_high)
        screen[i, 0], screen[i, 1], screen[i, 2], screen[i, 3] = x, y, w, z
    bounds[0], bounds[1], bounds[2], bounds[3] = low_x, low_y, high_x, high_y


@njit(**_JIT)
def _draw_band(
    vertices, normals, cutoffs, surface, screen, bounds, pose, K, eye, ray, near, background, s, first, last,
    color, alpha, depth, normal,
):  # fmt: skip
    """Rows ``first`` to ``last`` of one camera's pictures."""
    faces, uvs, vertex_light, face_light, face_texture, face_texels, texels, table, levels = surface
    height, width = alpha.shape
    # The window of pixels that the mesh can touch.
    left = min(max(int32(np.floor(max(bounds[:, 0].min(), float32(0)) / s)), 0), width)
    right = max(min(int32(np.ceil(min(bounds[:, 2].max(), float32(width * s)) / s)), width), left)
    top = min(max(int32(np.floor(max(bounds[:, 1].min(), float32(0)) / s)), first), last)
    bottom = max(min(int32(np.ceil(min(bounds[:, 3].max(), float32(height * s)) / s)), last), top)
    buffer = np.zeros(((bottom - top) * s, (right - left) * s), np.float32)
    indices = np.empty(((bottom - top) * s, (right - left) * s), np.int32)
    focal = abs(K[0, 0] * K[1, 1])
    window_left, window_top = int32(left * s), int32(top * s)
    low, high = float32(top * s), float32(bottom * s)
    if buffer.size:
        for f in range(uintp(len(faces))):
            i, j, k = uintp(faces[f, 0]), uintp(faces[f, 1]), uintp(faces[f, 2])
            zi, zj, zk = screen[i, 3], screen[j, 3], screen[k, 3]
            if zi > near and zj > near and zk > near:
                y0, y1, y2 = screen[i, 1], screen[j, 1], screen[k, 1]
                if max(y0, y1, y2) < low or min(y0, y1, y2) > high:
                    continue
                _fill(
                    screen[i, 0], y0, screen[i, 2], screen[j, 0], y1, screen[j, 2], screen[k, 0], y2, screen[k, 2],
                    f, buffer, indices, window_left, window_top, cutoffs[f], vertices, surface, eye, ray, focal,
                )  # fmt: skip
            elif zi > near or zj > near or zk > near:
                _fill_clipped(
                    vertices, surface, f, pose, K, near,
                    buffer, indices, window_left, window_top, cutoffs[f], eye, ray, focal,
                )  # fmt: skip
    red, green, blue = background[0], background[1], background[2]
    face, texture, needs_uv = int32(-1), int32(-1), len(normals) > 0 or len(vertex_light) > 0
    kx = ky = kz = ux = uy = uz = vx = vy = vz = an = texels_share = float32(0)
    n0 = n1 = n2 = s0 = s1 = s2 = t0 = t1 = t2 = float32(0)
    fr = fg = fb = float32(0)
    i = j = k = uintp(0)
    for y in range(first, last):
        for x in range(width):
            count = 0
            sr = sg = sb = sz = mx = my = mz = float32(0)
            if top <= y < bottom and left <= x < right:
                for sample in range(s * s):
                    sy, sx = sample // s, sample % s
                    row, column = uintp((y - top) * s + sy), uintp((x - left) * s + sx)
                    if not buffer[row, column] > float32(0):
                        continue
                    if indices[row, column] != face:
                        # d.n, and texture coordinates times d.n, are linear in the sample's place: three numbers each.
                        face = indices[row, column]
                        f = uintp(face)
                        i, j, k = uintp(faces[f, 0]), uintp(faces[f, 1]), uintp(faces[f, 2])
                        kx, ky, kz, ux, uy, uz, vx, vy, vz, an = _plane(vertices, faces, f, eye)
                        n0, n1, n2 = _dots(ray, kx, ky, kz)
                        fr, fg, fb, texture = face_light[f, 0], face_light[f, 1], face_light[f, 2], face_texture[f]
                        if texture >= 0:
                            texels_share = face_texels[f] / focal
                            c0, c1, c2 = uvs[i, 0], uvs[j, 0] - uvs[i, 0], uvs[k, 0] - uvs[i, 0]
                            s0, s1, s2 = _dots(
                                ray, kx * c0 + ux * c1 + vx * c2, ky * c0 + uy * c1 + vy * c2, kz * c0 + uz * c1 + vz * c2
                            )
                            c0, c1, c2 = uvs[i, 1], uvs[j, 1] - uvs[i, 1], uvs[k, 1] - uvs[i, 1]
                            t0, t1, t2 = _dots(
                                ray, kx * c0 + ux * c1 + vx * c2, ky * c0 + uy * c1 + vy * c2, kz * c0 + uz * c1 + vz * c2
                            )
                        length = float32(1) / np.sqrt(kx * kx + ky * ky + kz * kz)
                        kx, ky, kz = kx * length, ky * length, kz * length
                    px, py = float32(x * s + sx) + float32(0.5), float32(y * s + sy) + float32(0.5)
                    dn = px * n0 + py * n1 + n2
                    inverse = float32(1) / dn
                    z = an * inverse
                    side = float32(-1) if dn > float32(0) else float32(1)
                    r, g, b, hx, hy, hz = fr, fg, fb, kx * side, ky * side, kz * side
                    if needs_uv:
                        dx = ray[0, 0] * px + ray[1, 0] * py + ray[2, 0]
                        dy = ray[0, 1] * px + ray[1, 1] * py + ray[2, 1]
                        dz = ray[0, 2] * px + ray[1, 2] * py + ray[2, 2]
                        u, v = _clamped((dx * ux + dy * uy + dz * uz) * inverse, (dx * vx + dy * vy + dz * vz) * inverse)
                        if len(vertex_light):
                            r *= _mix(vertex_light, 0, i, j, k, u, v)
                            g *= _mix(vertex_light, 1, i, j, k, u, v)
                            b *= _mix(vertex_light, 2, i, j, k, u, v)
                        if len(normals):
                            qx, qy = _mix(normals, 0, i, j, k, u, v), _mix(normals, 1, i, j, k, u, v)
                            qz = _mix(normals, 2, i, j, k, u, v)
                            size = np.sqrt(qx * qx + qy * qy + qz * qz)
                            if size > float32(1e-6):
                                size = (float32(-1) if qx * hx + qy * hy + qz * hz < float32(0) else float32(1)) / size
                                hx, hy, hz = qx * size, qy * size, qz * size
                    if texture >= 0:
                        tr, tg, tb, _ = _texel(
                            texels, table, levels, uintp(texture),
                            (px * s0 + py * s1 + s2) * inverse, (px * t0 + py * t1 + t2) * inverse,
                            texels_share * z * z * abs(inverse),
                        )  # fmt: skip
                        r, g, b = r * tr, g * tg, b * tb
                    count += 1
                    sr += r
                    sg += g
                    sb += b
                    sz += z
                    mx += hx
                    my += hy
                    mz += hz
            a = float32(count) / float32(s * s)
            share = float32(1) / float32(max(count, 1))
            b = float32(1) - a
            if count:
                color[y, x, 0] = _encode(sr * share) * a + red * b
                color[y, x, 1] = _encode(sg * share) * a + green * b
                color[y, x, 2] = _encode(sb * share) * a + blue * b
            else:
                color[y, x, 0], color[y, x, 1], color[y, x, 2] = red, green, blue
            alpha[y, x] = a
            depth[y, x] = sz * share
            size = np.sqrt(mx * mx + my * my + mz * mz)
            size = float32(1) / size if size > float32(1e-12) else float32(0)
            normal[y, x, 0], normal[y, x, 1], normal[y, x, 2] = mx * size, my * size, mz * size


@njit(parallel=True, cache=cache_folder() is not None, **_JIT)
def draw(
    vertices,  # (V, 3)
    normals,  # (V, 3) or (0, 3)
    cutoffs,  # (F,)
    surface,  # faces (F, 3), uvs (V, 2), linear vertex colours (V, 4) and face colours (F, 4), texture of each face (F,),
    # texels that its edges span (F,), and the atlas: texels (P, 4), table (T, L, 3), levels (T,); (0, ...) where absent
    poses,  # (C, 3, 4) OpenCV world to camera
    Ks,  # (C, 3, 3) in samples
    eyes,  # (C, 3)
    rays,  # (C, 3, 3): ray of sample (x, y) = x ray[0] + y ray[1] + ray[2], world frame
    near,
    background,  # (C, 3)
    s,  # samples per pixel side
    bands,  # of rows, a camera
    color,  # (C, H, W, 3) out, and so on
    alpha,
    depth,
    normal,
):
    cameras, height = alpha.shape[:2]
    screen = np.empty((cameras, len(vertices), 4), np.float32)
    blocks = (len(vertices) + 2047) // 2048
    bounds = np.empty((cameras, blocks, 4), np.float32)
    for job in prange(cameras * blocks):
        c, block = job // blocks, job % blocks
        start, stop = block * 2048, min((block + 1) * 2048, len(vertices))
        _project(vertices, start, stop, poses[c], Ks[c], near, screen[c], bounds[c, block])
    for job in prange(cameras * bands):
        c, band = job // bands, job % bands
        first, last = height * band // bands, height * (band + 1) // bands
        _draw_band(
            vertices, normals, cutoffs, surface, screen[c], bounds[c], poses[c], Ks[c], eyes[c], rays[c], near, background[c],
            s, first, last, color[c], alpha[c], depth[c], normal[c],
        )  # fmt: skip
