// Control nodes on the graphics card: what core/deformation/control_nodes.py and core/objectives/rigidity.py say in PyTorch.
//
// Every sum runs in a fixed order: over frames and neighbours in a thread's own loop, over the Gaussians of a node and the edges
// of a node along lists that are sorted once. No atomics, so the same input gives the same bits.

struct Vector {
    float x, y, z;
};

__device__ inline Vector vec(const float* p) {
    Vector v = {p[0], p[1], p[2]};
    return v;
}
__device__ inline float4 quat(const float* p) { return make_float4(p[0], p[1], p[2], p[3]); }

struct Matrix {
    float m[9];
};

// Of a quaternion wxyz, normalised here; `unit` receives it, `scale` one over its norm.
__device__ inline Matrix matrix_of(float4 q, float4* unit, float* scale) {
    float s = 1.0f / fmaxf(sqrtf(q.x * q.x + q.y * q.y + q.z * q.z + q.w * q.w), 1e-12f);
    float w = q.x * s, x = q.y * s, y = q.z * s, z = q.w * s;
    *unit = make_float4(w, x, y, z);
    *scale = s;
    Matrix r = {{
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    }};
    return r;
}

// The gradient by a quaternion of one by its matrix.
__device__ inline float4 quaternion_gradient(const float* a, float4 unit, float scale) {
    float w = unit.x, x = unit.y, y = unit.z, z = unit.w;
    float dw = 2 * (z * (a[3] - a[1]) + y * (a[2] - a[6]) + x * (a[7] - a[5]));
    float dx = 2 * (y * (a[1] + a[3]) + z * (a[2] + a[6]) + w * (a[7] - a[5]) - 2 * x * (a[4] + a[8]));
    float dy = 2 * (x * (a[1] + a[3]) + z * (a[5] + a[7]) + w * (a[2] - a[6]) - 2 * y * (a[0] + a[8]));
    float dz = 2 * (x * (a[2] + a[6]) + y * (a[5] + a[7]) + w * (a[3] - a[1]) - 2 * z * (a[0] + a[4]));
    float along = w * dw + x * dx + y * dy + z * dz;
    return make_float4((dw - w * along) * scale, (dx - x * along) * scale, (dy - y * along) * scale, (dz - z * along) * scale);
}

__device__ inline Vector turned(const float* m, Vector v) {
    Vector r = {m[0] * v.x + m[1] * v.y + m[2] * v.z, m[3] * v.x + m[4] * v.y + m[5] * v.z,
                m[6] * v.x + m[7] * v.y + m[8] * v.z};
    return r;
}

__device__ inline float4 product(float4 a, float4 b) {
    return make_float4(a.x * b.x - a.y * b.y - a.z * b.z - a.w * b.w, a.x * b.y + a.y * b.x + a.z * b.w - a.w * b.z,
                       a.x * b.z - a.y * b.w + a.z * b.x + a.w * b.y, a.x * b.w + a.y * b.z - a.z * b.y + a.w * b.x);
}

__device__ inline float4 conjugate(float4 q) { return make_float4(q.x, -q.y, -q.z, -q.w); }

// Catmull-Rom: the four keys around a time and their weights; an anchored key 0 weighs nothing.
__device__ inline void taps(float tau, int keys, int loop, int anchored, int* index, float* weight) {
    int span = loop ? keys : (keys > 1 ? keys - 1 : 1);
    float u = tau * span, left = floorf(u);
    if (!loop && left > span - 1) left = (float)(span - 1);
    float f = u - left, f2 = f * f, f3 = f2 * f;
    weight[0] = (-f + 2 * f2 - f3) / 2;
    weight[1] = (2 - 5 * f2 + 3 * f3) / 2;
    weight[2] = (f + 4 * f2 - 3 * f3) / 2;
    weight[3] = (f3 - f2) / 2;
    for (int i = 0; i < 4; ++i) {
        int k = (int)left + i - 1;
        k = loop ? ((k % keys) + keys) % keys : (k < 0 ? 0 : (k > keys - 1 ? keys - 1 : k));
        index[i] = k;
        if (anchored && k == 0) weight[i] = 0;
    }
}

__device__ inline Vector keyed(const float* values, int nodes, int node, const int* index, const float* weight) {
    Vector sum = {0, 0, 0};
    for (int i = 0; i < 4; ++i) {
        if (weight[i] == 0) continue;
        const float* p = values + 3 * ((long long)index[i] * nodes + node);
        sum.x += weight[i] * p[0];
        sum.y += weight[i] * p[1];
        sum.z += weight[i] * p[2];
    }
    return sum;
}

extern "C" __global__ void nodes_forward(
    const float* tau, const float* rest, const float* translations, const float* rotations, const float* log_scales,
    const float* logits, int frames, int nodes, int keys, int loop, int anchored, float* positions, float* quats, float* scales,
    float* opacity) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= frames * nodes) return;
    int node = i % nodes, index[4];
    float weight[4];
    taps(tau[i / nodes], keys, loop, anchored, index, weight);
    Vector t = keyed(translations, nodes, node, index, weight), r = keyed(rotations, nodes, node, index, weight);
    positions[3 * i] = rest[3 * node] + t.x;
    positions[3 * i + 1] = rest[3 * node + 1] + t.y;
    positions[3 * i + 2] = rest[3 * node + 2] + t.z;
    float x = r.x / 2, y = r.y / 2, z = r.z / 2, angle = sqrtf(x * x + y * y + z * z + 1e-12f), s = sinf(angle) / angle;
    quats[4 * i] = cosf(angle);
    quats[4 * i + 1] = x * s;
    quats[4 * i + 2] = y * s;
    quats[4 * i + 3] = z * s;
    if (scales) {
        Vector l = keyed(log_scales, nodes, node, index, weight);
        scales[3 * i] = l.x;
        scales[3 * i + 1] = l.y;
        scales[3 * i + 2] = l.z;
    }
    if (opacity) {
        float sum = 0;
        for (int k = 0; k < 4; ++k)
            if (weight[k] != 0) sum += weight[k] * logits[(long long)index[k] * nodes + node];
        opacity[i] = sum;
    }
}

extern "C" __global__ void nodes_backward(
    const float* tau, const float* rotations, const float* g_positions, const float* g_quats, const float* g_scales,
    const float* g_opacity, int frames, int nodes, int keys, int loop, int anchored, float* d_translations, float* d_rotations,
    float* d_log_scales, float* d_logits) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= keys * nodes) return;
    int key = i / nodes, node = i % nodes;
    float dt[3] = {0, 0, 0}, dr[3] = {0, 0, 0}, ds[3] = {0, 0, 0}, dl = 0;
    for (int b = 0; b < frames; ++b) {
        int index[4];
        float weight[4], own = 0;
        taps(tau[b], keys, loop, anchored, index, weight);
        for (int k = 0; k < 4; ++k)
            if (index[k] == key) own += weight[k];
        if (own == 0) continue;
        long long at = (long long)b * nodes + node;
        if (g_positions)
            for (int c = 0; c < 3; ++c) dt[c] += own * g_positions[3 * at + c];
        if (g_scales)
            for (int c = 0; c < 3; ++c) ds[c] += own * g_scales[3 * at + c];
        if (g_opacity) dl += own * g_opacity[at];
        if (g_quats) {
            Vector r = keyed(rotations, nodes, node, index, weight);
            float h[3] = {r.x / 2, r.y / 2, r.z / 2};
            float angle = sqrtf(h[0] * h[0] + h[1] * h[1] + h[2] * h[2] + 1e-12f), s = sinf(angle) / angle;
            const float* g = g_quats + 4 * at;
            float along = g[1] * h[0] + g[2] * h[1] + g[3] * h[2];
            float inner = along * ((cosf(angle) - s) / (angle * angle)) - g[0] * s;
            for (int c = 0; c < 3; ++c) dr[c] += own * 0.5f * (s * g[1 + c] + inner * h[c]);
        }
    }
    for (int c = 0; c < 3; ++c) {
        d_translations[3 * i + c] = dt[c];
        d_rotations[3 * i + c] = dr[c];
        if (d_log_scales) d_log_scales[3 * i + c] = ds[c];
    }
    if (d_logits) d_logits[i] = dl;
}

extern "C" __global__ void deform_forward(
    const float* means, const float* quats, const float* log_scales, const float* logits, const long long* bound,
    const float* share, const float* rest, const float* node_positions, const float* node_quats, const float* node_scales,
    const float* node_opacity, int frames, int count, int nodes, int neighbours, float* out_means, float* out_quats,
    float* out_scales, float* out_logits) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= frames * count) return;
    int n = i % count, b = i / count;
    Vector x = vec(means + 3 * n), moved = {0, 0, 0}, grown = {0, 0, 0};
    float4 blend = make_float4(0, 0, 0, 0);
    float fade = 0;
    for (int k = 0; k < neighbours; ++k) {
        int node = (int)bound[(long long)n * neighbours + k];
        float w = share[(long long)n * neighbours + k], scale;
        long long at = (long long)b * nodes + node;
        float4 q = quat(node_quats + 4 * at), unit;
        Matrix r = matrix_of(q, &unit, &scale);
        const float* origin = rest + 3 * node;
        Vector from_node = {x.x - origin[0], x.y - origin[1], x.z - origin[2]};
        Vector v = turned(r.m, from_node);
        const float* p = node_positions + 3 * at;
        moved.x += w * (v.x + p[0]);
        moved.y += w * (v.y + p[1]);
        moved.z += w * (v.z + p[2]);
        blend.x += w * q.x;
        blend.y += w * q.y;
        blend.z += w * q.z;
        blend.w += w * q.w;
        const float* s = node_scales + 3 * at;
        grown.x += w * s[0];
        grown.y += w * s[1];
        grown.z += w * s[2];
        if (node_opacity) fade += w * node_opacity[at];
    }
    float norm = 1.0f / fmaxf(sqrtf(blend.x * blend.x + blend.y * blend.y + blend.z * blend.z + blend.w * blend.w), 1e-12f);
    float4 q = product(make_float4(blend.x * norm, blend.y * norm, blend.z * norm, blend.w * norm), quat(quats + 4 * n));
    out_means[3 * i] = moved.x;
    out_means[3 * i + 1] = moved.y;
    out_means[3 * i + 2] = moved.z;
    out_quats[4 * i] = q.x;
    out_quats[4 * i + 1] = q.y;
    out_quats[4 * i + 2] = q.z;
    out_quats[4 * i + 3] = q.w;
    out_scales[3 * i] = log_scales[3 * n] + grown.x;
    out_scales[3 * i + 1] = log_scales[3 * n + 1] + grown.y;
    out_scales[3 * i + 2] = log_scales[3 * n + 2] + grown.z;
    if (out_logits) out_logits[i] = logits[n] + fade;
}

// The blended quaternion of a Gaussian, its unit, and one over its norm.
__device__ inline float4 blended(const float* node_quats, const long long* bound, const float* share, int n, int b, int nodes,
                                 int neighbours, float* scale) {
    float4 sum = make_float4(0, 0, 0, 0);
    for (int k = 0; k < neighbours; ++k) {
        float w = share[(long long)n * neighbours + k];
        const float* q = node_quats + 4 * ((long long)b * nodes + bound[(long long)n * neighbours + k]);
        sum.x += w * q[0];
        sum.y += w * q[1];
        sum.z += w * q[2];
        sum.w += w * q[3];
    }
    float s = 1.0f / fmaxf(sqrtf(sum.x * sum.x + sum.y * sum.y + sum.z * sum.z + sum.w * sum.w), 1e-12f);
    *scale = s;
    return make_float4(sum.x * s, sum.y * s, sum.z * s, sum.w * s);
}

// Gradient by each Gaussian's blended quaternion.
extern "C" __global__ void deform_backward_blend(
    const float* quats, const long long* bound, const float* share, const float* node_quats, const float* g_quats, int frames,
    int count, int nodes, int neighbours, float* d_blend) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= frames * count) return;
    int n = i % count;
    float scale;
    float4 unit = blended(node_quats, bound, share, n, i / count, nodes, neighbours, &scale);
    float4 d = product(quat(g_quats + 4 * (long long)i), conjugate(quat(quats + 4 * n)));
    float along = unit.x * d.x + unit.y * d.y + unit.z * d.z + unit.w * d.w;
    d_blend[4 * i] = (d.x - unit.x * along) * scale;
    d_blend[4 * i + 1] = (d.y - unit.y * along) * scale;
    d_blend[4 * i + 2] = (d.z - unit.z * along) * scale;
    d_blend[4 * i + 3] = (d.w - unit.w * along) * scale;
}

#define LANES 64
#define SUMS 20

// A block for each node and frame: `entries` from `starts[node]` on are the node's places in the binding (count, neighbours).
extern "C" __global__ void deform_backward_nodes(
    const float* means, const int* starts, const int* entries, const float* share, const float* rest, const float* node_quats,
    const float* g_means, const float* g_scales, const float* g_logits, const float* d_blend, int count, int nodes,
    int neighbours, float* d_positions, float* d_quats, float* d_scales, float* d_opacity) {
    __shared__ float sums[SUMS][LANES];
    int node = blockIdx.x, b = blockIdx.y, lane = threadIdx.x;
    float sum[SUMS];
    for (int c = 0; c < SUMS; ++c) sum[c] = 0;
    const float* origin = rest + 3 * node;
    for (int e = starts[node] + lane; e < starts[node + 1]; e += LANES) {
        int entry = entries[e], n = entry / neighbours;
        float w = share[entry];
        long long at = (long long)b * count + n;
        if (g_means) {
            float g[3] = {w * g_means[3 * at], w * g_means[3 * at + 1], w * g_means[3 * at + 2]};
            float v[3] = {means[3 * n] - origin[0], means[3 * n + 1] - origin[1], means[3 * n + 2] - origin[2]};
            for (int r = 0; r < 3; ++r) {
                sum[r] += g[r];
                for (int c = 0; c < 3; ++c) sum[3 + 3 * r + c] += g[r] * v[c];
            }
        }
        if (d_blend)
            for (int c = 0; c < 4; ++c) sum[12 + c] += w * d_blend[4 * at + c];
        if (g_scales)
            for (int c = 0; c < 3; ++c) sum[16 + c] += w * g_scales[3 * at + c];
        if (g_logits) sum[19] += w * g_logits[at];
    }
    for (int c = 0; c < SUMS; ++c) sums[c][lane] = sum[c];
    for (int half = LANES / 2; half > 0; half /= 2) {
        __syncthreads();
        if (lane < half)
            for (int c = 0; c < SUMS; ++c) sums[c][lane] += sums[c][lane + half];
    }
    if (lane != 0) return;
    long long at = (long long)b * nodes + node;
    float4 unit;
    float scale, a[9];
    for (int c = 0; c < 9; ++c) a[c] = sums[3 + c][0];
    matrix_of(quat(node_quats + 4 * at), &unit, &scale);
    float4 d = quaternion_gradient(a, unit, scale);
    for (int c = 0; c < 3; ++c) {
        d_positions[3 * at + c] = sums[c][0];
        d_scales[3 * at + c] = sums[16 + c][0];
    }
    d_quats[4 * at] = d.x + sums[12][0];
    d_quats[4 * at + 1] = d.y + sums[13][0];
    d_quats[4 * at + 2] = d.z + sums[14][0];
    d_quats[4 * at + 3] = d.w + sums[15][0];
    if (d_opacity) d_opacity[at] = sums[19][0];
}

// Gradients by the canonical Gaussians, summed over the frames.
extern "C" __global__ void deform_backward_canonical(
    const long long* bound, const float* share, const float* node_quats, const float* g_means, const float* g_quats,
    const float* g_scales, const float* g_logits, int frames, int count, int nodes, int neighbours, float* d_means,
    float* d_quats, float* d_scales, float* d_logits) {
    int n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= count) return;
    float dm[3] = {0, 0, 0}, ds[3] = {0, 0, 0}, dl = 0;
    float4 dq = make_float4(0, 0, 0, 0);
    for (int b = 0; b < frames; ++b) {
        long long at = (long long)b * count + n;
        if (g_means) {
            const float* g = g_means + 3 * at;
            for (int k = 0; k < neighbours; ++k) {
                float w = share[(long long)n * neighbours + k], scale;
                float4 unit;
                long long node = bound[(long long)n * neighbours + k];
                Matrix r = matrix_of(quat(node_quats + 4 * ((long long)b * nodes + node)), &unit, &scale);
                for (int c = 0; c < 3; ++c) dm[c] += w * (r.m[c] * g[0] + r.m[3 + c] * g[1] + r.m[6 + c] * g[2]);
            }
        }
        if (g_quats) {
            float scale;
            float4 unit = blended(node_quats, bound, share, n, b, nodes, neighbours, &scale);
            float4 d = product(conjugate(unit), quat(g_quats + 4 * at));
            dq.x += d.x;
            dq.y += d.y;
            dq.z += d.z;
            dq.w += d.w;
        }
        if (g_scales)
            for (int c = 0; c < 3; ++c) ds[c] += g_scales[3 * at + c];
        if (g_logits) dl += g_logits[at];
    }
    for (int c = 0; c < 3; ++c) {
        d_means[3 * n + c] = dm[c];
        d_scales[3 * n + c] = ds[c];
    }
    d_quats[4 * n] = dq.x;
    d_quats[4 * n + 1] = dq.y;
    d_quats[4 * n + 2] = dq.z;
    d_quats[4 * n + 3] = dq.w;
    d_logits[n] = dl;
}

// What an edge's ends see of its strain: moved - R edge, from i and from j.
__device__ inline void seen_from_ends(const float* rest, const float* positions, const float* quats, const long long* pairs,
                                      long long frame, int e, float* edge, float* from_i, float* from_j, Matrix* at_i,
                                      Matrix* at_j, float* length) {
    long long i = pairs[2 * e], j = pairs[2 * e + 1];
    float moved[3], square = 0, scale;
    for (int c = 0; c < 3; ++c) {
        edge[c] = rest[3 * j + c] - rest[3 * i + c];
        moved[c] = positions[3 * (frame + j) + c] - positions[3 * (frame + i) + c];
        square += edge[c] * edge[c];
    }
    *length = fmaxf(square, 1e-10f);
    float4 unit;
    *at_i = matrix_of(quat(quats + 4 * (frame + i)), &unit, &scale);
    *at_j = matrix_of(quat(quats + 4 * (frame + j)), &unit, &scale);
    Vector v = turned(at_i->m, vec(edge)), u = turned(at_j->m, vec(edge));
    from_i[0] = moved[0] - v.x;
    from_i[1] = moved[1] - v.y;
    from_i[2] = moved[2] - v.z;
    from_j[0] = moved[0] - u.x;
    from_j[1] = moved[1] - u.y;
    from_j[2] = moved[2] - u.z;
}

extern "C" __global__ void strain_forward(
    const float* rest, const float* positions, const float* quats, const long long* pairs, int frames, int nodes, int edges,
    float* strain, float* bend) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= frames * edges) return;
    float edge[3], from_i[3], from_j[3], length, sum = 0, turn = 0;
    Matrix a, b;
    seen_from_ends(rest, positions, quats, pairs, (long long)(at / edges) * nodes, at % edges, edge, from_i, from_j, &a, &b,
                   &length);
    for (int c = 0; c < 3; ++c) sum += from_i[c] * from_i[c] + from_j[c] * from_j[c];
    for (int c = 0; c < 9; ++c) turn += (a.m[c] - b.m[c]) * (a.m[c] - b.m[c]);
    strain[at] = sum / (2 * length);
    bend[at] = turn / 8;
}

// A thread for each node and frame: `entries` from `starts[node]` on are the node's places in the pairs (edges, 2).
extern "C" __global__ void strain_backward(
    const float* rest, const float* positions, const float* quats, const long long* pairs, const int* starts,
    const int* entries, const float* g_strain, const float* g_bend, int frames, int nodes, int edges, float* d_positions,
    float* d_quats) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= frames * nodes) return;
    int node = at % nodes, b = at / nodes;
    float dp[3] = {0, 0, 0}, dm[9] = {0, 0, 0, 0, 0, 0, 0, 0, 0};
    for (int s = starts[node]; s < starts[node + 1]; ++s) {
        int e = entries[s] / 2, far_end = entries[s] % 2;  // 0: this node is i, 1: it is j
        float edge[3], from_i[3], from_j[3], length;
        Matrix a, c;
        seen_from_ends(rest, positions, quats, pairs, (long long)b * nodes, e, edge, from_i, from_j, &a, &c, &length);
        float g = g_strain ? g_strain[(long long)b * edges + e] / length : 0;
        float h = g_bend ? g_bend[(long long)b * edges + e] / 4 : 0;
        const float *own = far_end ? from_j : from_i, *mine = far_end ? c.m : a.m, *other = far_end ? a.m : c.m;
        for (int r = 0; r < 3; ++r) {
            float pull = g * (from_i[r] + from_j[r]);
            dp[r] += far_end ? pull : -pull;
            for (int k = 0; k < 3; ++k) dm[3 * r + k] += h * (mine[3 * r + k] - other[3 * r + k]) - g * own[r] * edge[k];
        }
    }
    float4 unit;
    float scale;
    matrix_of(quat(quats + 4 * (long long)at), &unit, &scale);
    float4 d = quaternion_gradient(dm, unit, scale);
    for (int r = 0; r < 3; ++r) d_positions[3 * at + r] = dp[r];
    d_quats[4 * at] = d.x;
    d_quats[4 * at + 1] = d.y;
    d_quats[4 * at + 2] = d.z;
    d_quats[4 * at + 3] = d.w;
}
