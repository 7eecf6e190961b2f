// The mesh renderer. What it computes: see mesh.py; the formulas: see mesh_numba.py, of which this is the parallel form.
//
//   project_vertices  one thread a (camera, vertex)
//   fill              one thread a (camera, face), large faces by their warp or block: the nearest face of each sample;
//                     of a few faces only some a block, so that all of the card draws them
//   shade             one thread a pixel: its visible samples are shaded and averaged
//
// A sample's key is the bits of 1 / z above the face's inverted index, so that the largest key is the nearest face and, among
// equals, the first: the order in which threads arrive changes nothing.
#include "portable.cuh"

#define FILLERS 256
#define SMALL 32     // samples in a face's rectangle up to which its own thread draws it
#define LARGE 2048   // beyond, the whole block
#define SLACK 2e-5f  // samples: neighbours overlap by this, so that rounding opens no crack between them

struct View {
    float r[12];                          // rows of world-to-camera
    float fx, skew, cx, fy, cy;           // in samples
    float eye[3];
    float right[3], down[3], corner[3];   // ray of sample (x, y): x right + y down + corner, world frame, depth 1
};

static __device__ View view_of(const float* poses, const float* Ks, int camera, int samples) {
    View v;
    for (int i = 0; i < 12; i++) v.r[i] = poses[camera * 16 + i];
    const float* K = Ks + camera * 9;
    v.fx = K[0] * samples, v.skew = K[1] * samples, v.cx = K[2] * samples, v.fy = K[4] * samples, v.cy = K[5] * samples;
    for (int i = 0; i < 3; i++) {
        v.eye[i] = -(v.r[i] * v.r[3] + v.r[4 + i] * v.r[7] + v.r[8 + i] * v.r[11]);
        v.right[i] = v.r[i] / v.fx;
        v.down[i] = (v.r[4 + i] - v.r[i] * v.skew / v.fx) / v.fy;
        v.corner[i] = v.r[8 + i] - v.cx * v.right[i] - v.cy * v.down[i];
    }
    return v;
}

struct Surface {
    const float* vertices;      // (V, 3)
    const int* faces;           // (F, 3)
    const float* normals;       // (V, 3) or none
    const float* uvs;           // (V, 2) or none
    const float* vertex_light;  // (V, 4) linear or none
    const float* face_light;    // (F, 4) linear
    const int* face_texture;    // (F), -1 where none
    const float* face_texels;   // (F) texels that a face's edges span
    const float* texels;        // (P, 4) linear
    const long long* table;     // (T, L, 3) start, height, width
    const long long* levels;    // (T)
    int depth;                  // L
};

// n, e2 x a, a x e1 and a.n of a face a, a + e1, a + e2 seen from the camera's centre: a ray d meets it at barycentrics
// d.(e2 x a) / d.n and d.(a x e1) / d.n and depth a.n / d.n.
struct Plane {
    int i, j, k;
    float n[3], u[3], v[3], an;
};

static __device__ void cross(float* out, const float* a, const float* b) {
    out[0] = a[1] * b[2] - a[2] * b[1], out[1] = a[2] * b[0] - a[0] * b[2], out[2] = a[0] * b[1] - a[1] * b[0];
}

static __device__ float dot(const float* a, const float* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

static __device__ Plane plane_of(const Surface& s, int face, const float* eye) {
    Plane p;
    p.i = s.faces[3 * face], p.j = s.faces[3 * face + 1], p.k = s.faces[3 * face + 2];
    float e1[3], e2[3], a[3];
    for (int c = 0; c < 3; c++) {
        float x = s.vertices[3 * p.i + c];
        e1[c] = s.vertices[3 * p.j + c] - x, e2[c] = s.vertices[3 * p.k + c] - x, a[c] = x - eye[c];
    }
    cross(p.n, e1, e2), cross(p.u, e2, a), cross(p.v, a, e1);
    p.an = dot(a, p.n);
    return p;
}

static __device__ float mixed(const float* values, int width, int column, const Plane& p, float u, float v) {
    float first = values[width * p.i + column];
    return first + u * (values[width * p.j + column] - first) + v * (values[width * p.k + column] - first);
}

// Bilinear sample in linear light; size: texels of the finest level that the sample covers.
static __device__ float4 texel_of(const Surface& surface, int texture, float s, float t, float size) {
    int level = 0, last = (int)surface.levels[texture] - 1;
    while (size >= 4 && level < last) size *= 0.25f, level++;
    const long long* row = surface.table + 3ll * (texture * surface.depth + level);
    int height = (int)row[1], width = (int)row[2];
    float x = (s - floorf(s)) * width - 0.5f, y = (t - floorf(t)) * height - 0.5f;
    int x0 = (int)floorf(x), y0 = (int)floorf(y);
    float fx = x - x0, fy = y - y0;
    int x1 = x0 + 1, y1 = y0 + 1;
    x0 = x0 < 0 ? x0 + width : min(x0, width - 1), y0 = y0 < 0 ? y0 + height : min(y0, height - 1);
    if (x1 >= width) x1 = 0;
    if (y1 >= height) y1 = 0;
    const float4* texels = (const float4*)surface.texels + row[0];
    float4 a = texels[(long long)y0 * width + x0], b = texels[(long long)y0 * width + x1];
    float4 c = texels[(long long)y1 * width + x0], d = texels[(long long)y1 * width + x1];
    float w00 = (1 - fx) * (1 - fy), w01 = fx * (1 - fy), w10 = (1 - fx) * fy, w11 = fx * fy;
    return make_float4(
        w00 * a.x + w01 * b.x + w10 * c.x + w11 * d.x, w00 * a.y + w01 * b.y + w10 * c.y + w11 * d.y,
        w00 * a.z + w01 * b.z + w10 * c.z + w11 * d.z, w00 * a.w + w01 * b.w + w10 * c.w + w11 * d.w
    );
}

// Where a ray meets a face: 1 / d.n, depth, and barycentrics moved into the triangle.
struct Hit {
    float dn, inverse, z, u, v;
};

static __device__ Hit hit_of(const Plane& p, const View& view, float x, float y) {
    float d[3];
    for (int i = 0; i < 3; i++) d[i] = view.right[i] * x + view.down[i] * y + view.corner[i];
    Hit h;
    h.dn = dot(d, p.n), h.inverse = 1 / h.dn, h.z = p.an * h.inverse;
    h.u = fmaxf(dot(d, p.u) * h.inverse, 0), h.v = fmaxf(dot(d, p.v) * h.inverse, 0);
    float total = h.u + h.v;
    if (total > 1) h.u /= total, h.v /= total;
    return h;
}

// Unlit colour in linear light and alpha at a hit.
static __device__ float4 light_of(const Surface& s, int face, const Plane& p, const Hit& h, float focal, bool mipmaps) {
    const float* own = s.face_light + 4 * face;
    float4 c = make_float4(own[0], own[1], own[2], own[3]);
    if (s.vertex_light) {
        c.x *= mixed(s.vertex_light, 4, 0, p, h.u, h.v), c.y *= mixed(s.vertex_light, 4, 1, p, h.u, h.v);
        c.z *= mixed(s.vertex_light, 4, 2, p, h.u, h.v), c.w *= mixed(s.vertex_light, 4, 3, p, h.u, h.v);
    }
    if (s.uvs && s.face_texture[face] >= 0) {
        float x = mixed(s.uvs, 2, 0, p, h.u, h.v), y = mixed(s.uvs, 2, 1, p, h.u, h.v);
        float size = mipmaps ? s.face_texels[face] * h.z * h.z / (fabsf(h.dn) * focal) : 0;
        float4 t = texel_of(s, s.face_texture[face], x, y, size);
        c.x *= t.x, c.y *= t.y, c.z *= t.z, c.w *= t.w;
    }
    return c;
}

extern "C" __global__ void __launch_bounds__(256) project_vertices(
    const float* vertices, int count, const float* poses, const float* Ks, int samples,
    float4* screen  // (C, V): x, y in samples, 1 / z, z
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, camera = blockIdx.y;
    if (i >= count) return;
    View v = view_of(poses, Ks, camera, samples);
    float X = vertices[3 * i], Y = vertices[3 * i + 1], Z = vertices[3 * i + 2];
    float z = v.r[8] * X + v.r[9] * Y + v.r[10] * Z + v.r[11], w = 1 / z;
    float x = (v.r[0] * X + v.r[1] * Y + v.r[2] * Z + v.r[3]) * w;
    float y = (v.r[4] * X + v.r[5] * Y + v.r[6] * Z + v.r[7]) * w;
    screen[(long long)camera * count + i] = make_float4(v.fx * x + v.skew * y + v.cx, v.fy * y + v.cy, w, z);
}

// A projected triangle, corners in samples with 1 / z, ready to be filled.
struct Triangle {
    float x0, y0, w0, ux, uy, vx, vy, wx, wy, slack_u, slack_v, slack_w;
    int left, top, wide, high;  // rectangle of samples
};

static __device__ Triangle triangle_of(float4 a, float4 b, float4 c, int width, int height) {
    Triangle t;
    t.wide = t.high = 0;
    float left = ceilf(fmaxf(fminf(a.x, fminf(b.x, c.x)) - 0.5f, 0)), top = ceilf(fmaxf(fminf(a.y, fminf(b.y, c.y)) - 0.5f, 0));
    float right = floorf(fminf(fmaxf(a.x, fmaxf(b.x, c.x)) - 0.5f, width - 1.0f));
    float bottom = floorf(fminf(fmaxf(a.y, fmaxf(b.y, c.y)) - 0.5f, height - 1.0f));
    float ax = b.x - a.x, ay = b.y - a.y, bx = c.x - a.x, by = c.y - a.y, area = ax * by - ay * bx;
    if (!(left <= right && top <= bottom && fabsf(area) > 0)) return t;
    // Barycentrics of the second and third corner and 1 / z are linear: value at the first corner plus gradients.
    float inverse = 1 / area;
    t.x0 = a.x, t.y0 = a.y, t.w0 = a.z;
    t.ux = by * inverse, t.uy = -bx * inverse, t.vx = -ay * inverse, t.vy = ax * inverse;
    t.wx = (b.z - a.z) * t.ux + (c.z - a.z) * t.vx, t.wy = (b.z - a.z) * t.uy + (c.z - a.z) * t.vy;
    t.slack_u = SLACK * (fabsf(t.ux) + fabsf(t.uy)), t.slack_v = SLACK * (fabsf(t.vx) + fabsf(t.vy));
    t.slack_w = SLACK * (fabsf(t.ux + t.vx) + fabsf(t.uy + t.vy));
    t.left = (int)left, t.top = (int)top, t.wide = (int)right - t.left + 1, t.high = (int)bottom - t.top + 1;
    return t;
}

// Triangle `part`, 0 or 1, of what the near plane leaves of a face; without samples where there is none.
static __device__ Triangle part_of(
    const Surface& s, const float4* screen, int face, int part, const View& view, float near, int width, int height
) {
    Triangle none;
    none.wide = none.high = 0;
    int at[3] = {s.faces[3 * face], s.faces[3 * face + 1], s.faces[3 * face + 2]};
    float4 corner[3] = {screen[at[0]], screen[at[1]], screen[at[2]]};
    int front = 0;
    for (int i = 0; i < 3; i++) front += corner[i].w > near;
    if (front == 0 || (front == 3 && part)) return none;
    if (front == 3) return triangle_of(corner[0], corner[1], corner[2], width, height);
    float4 polygon[4];
    int count = 0;
    for (int i = 0; i < 3; i++) {
        const float* a = s.vertices + 3 * at[i];
        const float* b = s.vertices + 3 * at[(i + 1) % 3];
        float p[3], q[3];
        for (int c = 0; c < 3; c++) {
            const float* r = view.r + 4 * c;
            p[c] = r[0] * a[0] + r[1] * a[1] + r[2] * a[2] + r[3], q[c] = r[0] * b[0] + r[1] * b[1] + r[2] * b[2] + r[3];
        }
        if (p[2] > near) polygon[count++] = make_float4(p[0], p[1], p[2], 0);
        if ((p[2] > near) != (q[2] > near)) {
            float t = (near - p[2]) / (q[2] - p[2]);
            polygon[count++] = make_float4(p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1]), near, 0);
        }
    }
    if (part + 3 > count) return none;
    for (int i = 0; i < count; i++) {
        float w = 1 / polygon[i].z, x = polygon[i].x, y = polygon[i].y;
        polygon[i] = make_float4((view.fx * x + view.skew * y) * w + view.cx, view.fy * y * w + view.cy, w, 0);
    }
    return triangle_of(polygon[0], polygon[part + 1], polygon[part + 2], width, height);
}

static __device__ void fill_samples(
    const Triangle& t, const Surface& s, const View& view, int face, float cutoff, bool mipmaps, int first, int step,
    int width, u64* keys
) {
    Plane plane;
    if (cutoff > 0) plane = plane_of(s, face, view.eye);
    for (int i = first; i < t.wide * t.high; i += step) {
        int x = t.left + i % t.wide, y = t.top + i / t.wide;
        float dx = x + 0.5f - t.x0, dy = y + 0.5f - t.y0;
        float u = dx * t.ux + dy * t.uy, v = dx * t.vx + dy * t.vy;
        if (!(u >= -t.slack_u && v >= -t.slack_v && u + v <= 1 + t.slack_w)) continue;
        float nearness = t.w0 + dx * t.wx + dy * t.wy;
        if (!(nearness > 0)) continue;
        u64 key = (u64)(unsigned)__float_as_int(nearness) << 32 | (0xffffffffu - (unsigned)face);
        u64* place = keys + (long long)y * width + x;
        if (key <= *(volatile u64*)place) continue;
        if (cutoff > 0) {
            Hit hit = hit_of(plane, view, x + 0.5f, y + 0.5f);
            if (!(light_of(s, face, plane, hit, fabsf(view.fx * view.fy), mipmaps).w >= cutoff)) continue;
        }
        atomicMax(place, key);
    }
}

extern "C" __global__ void __launch_bounds__(FILLERS) fill(
    const float* vertices, const int* faces, const float* normals, const float* uvs, const float* vertex_light,
    const float* face_light, const int* face_texture, const float* face_texels, const float* texels, const long long* table,
    const long long* levels, int depth, const float* cutoffs, int mipmaps,
    const float* poses, const float* Ks, int samples, float near, int count, int face_count,
    int width, int height,  // in samples
    int own_faces,          // of a block, at most one a thread
    const float4* screens,
    u64* keys               // (C, height, width) of zeros
) {
    __shared__ int queue[FILLERS * 2];
    __shared__ int queued;
    int camera = blockIdx.y, face = blockIdx.x * own_faces + threadIdx.x, lane = threadIdx.x & 31;
    bool drawn = threadIdx.x < own_faces && face < face_count;
    Surface s = {vertices, faces, normals, uvs, vertex_light, face_light, face_texture, face_texels, texels, table, levels, depth};
    View view = view_of(poses, Ks, camera, samples);
    const float4* screen = screens + (long long)camera * count;
    u64* own = keys + (long long)camera * width * height;
    if (threadIdx.x == 0) queued = 0;
    __syncthreads();
    for (int part = 0; part < 2; part++) {
        Triangle t;
        t.wide = t.high = 0;
        if (drawn) t = part_of(s, screen, face, part, view, near, width, height);
        int size = t.wide * t.high;
        if (size > 0 && size <= SMALL) fill_samples(t, s, view, face, cutoffs[face], mipmaps, 0, 1, width, own);
        if (size > LARGE) queue[atomicAdd(&queued, 1)] = 2 * face + part;
        unsigned medium = ballot(size > SMALL && size <= LARGE);
        while (medium) {
            int source = __ffs(medium) - 1, other = face - lane + source;
            medium &= medium - 1;
            Triangle shared = part_of(s, screen, other, part, view, near, width, height);
            fill_samples(shared, s, view, other, cutoffs[other], mipmaps, lane, 32, width, own);
        }
    }
    __syncthreads();
    for (int i = 0; i < queued; i++) {
        int other = queue[i] / 2;
        Triangle shared = part_of(s, screen, other, queue[i] % 2, view, near, width, height);
        fill_samples(shared, s, view, other, cutoffs[other], mipmaps, threadIdx.x, FILLERS, width, own);
    }
}

static __device__ float encoded(float x) {
    x = fminf(fmaxf(x, 0), 1);
    return x <= 0.0031308f ? 12.92f * x : 1.055f * powf(x, 1 / 2.4f) - 0.055f;
}

extern "C" __global__ void __launch_bounds__(256) shade(
    const float* vertices, const int* faces, const float* normals, const float* uvs, const float* vertex_light,
    const float* face_light, const int* face_texture, const float* face_texels, const float* texels, const long long* table,
    const long long* levels, int depth_levels, int mipmaps,
    const float* poses, const float* Ks, int samples, int width, int height,  // in pixels
    const u64* keys,
    const float* background,  // (C, 3) or none
    float* color, float* alpha, float* depth, float* normal
) {
    int pixel = blockIdx.x * blockDim.x + threadIdx.x, camera = blockIdx.y;
    if (pixel >= width * height) return;
    Surface s = {
        vertices, faces, normals, uvs, vertex_light, face_light, face_texture, face_texels, texels, table, levels, depth_levels
    };
    View view = view_of(poses, Ks, camera, samples);
    float focal = fabsf(view.fx * view.fy);
    int px = pixel % width, py = pixel / width, count = 0;
    const u64* own = keys + (long long)camera * width * height * samples * samples;
    float red = 0, green = 0, blue = 0, far = 0, sum[3] = {0, 0, 0};
    for (int i = 0; i < samples * samples; i++) {
        int x = px * samples + i % samples, y = py * samples + i / samples;
        u64 key = own[(long long)y * width * samples + x];
        if (key == 0) continue;
        int face = (int)(0xffffffffu - (unsigned)key);
        Plane p = plane_of(s, face, view.eye);
        Hit h = hit_of(p, view, x + 0.5f, y + 0.5f);
        float4 light = light_of(s, face, p, h, focal, mipmaps);
        float size = (h.dn > 0 ? -1 : 1) / sqrtf(dot(p.n, p.n)), n[3];
        for (int c = 0; c < 3; c++) n[c] = p.n[c] * size;
        if (s.normals) {
            float q[3];
            for (int c = 0; c < 3; c++) q[c] = mixed(s.normals, 3, c, p, h.u, h.v);
            size = sqrtf(dot(q, q));
            if (size > 1e-6f) {
                size = (dot(q, n) < 0 ? -1 : 1) / size;
                for (int c = 0; c < 3; c++) n[c] = q[c] * size;
            }
        }
        count++;
        red += light.x, green += light.y, blue += light.z, far += h.z;
        for (int c = 0; c < 3; c++) sum[c] += n[c];
    }
    float a = (float)count / (samples * samples), share = 1.0f / max(count, 1), behind[3] = {0, 0, 0};
    if (background)
        for (int c = 0; c < 3; c++) behind[c] = background[3 * camera + c] * (1 - a);
    long long at = (long long)camera * width * height + pixel;
    color[3 * at] = encoded(red * share) * a + behind[0];
    color[3 * at + 1] = encoded(green * share) * a + behind[1];
    color[3 * at + 2] = encoded(blue * share) * a + behind[2];
    alpha[at] = a;
    depth[at] = far * share;
    float length = sqrtf(dot(sum, sum));
    for (int c = 0; c < 3; c++) normal[3 * at + c] = length > 1e-12f ? sum[c] / length : 0;
}
