// The Gaussian rasteriser, forward and backward. Semantics: see rasterize.py.
//
// A tile is 8 x 8 pixels and belongs to one warp: each lane has two pixels, and nothing waits for another warp. In order:
//
//   project     one thread a (view, Gaussian): its record, its number of gradient slots, how many Gaussians each tile gets
//   allocate    one thread a tile: where its list begins
//   emit        one thread a (view, Gaussian): its key (depth, index) into the list of each tile that it may touch
//   sort_tiles  one block a tile: its list, nearest first
//   draw        one warp a tile; where long lists are cut into segments it leaves its pixels' state
//   draw_back   one warp a segment: the gradient of each list entry by centre, conic, opacity, colour and depth into its slot
//   pull_back   one thread a Gaussian and share of the views: sums its slots and pulls them back through the projection
//
// Integer atomics decide where lists and slots lie, which differs from run to run; no sum depends on it. Keys are unique, so that
// lists are in one order, and every float is the sum of the same terms in the same order: same input, same bits.
//
// The backward pass walks front to back, too: with R the gradient's dot product with what is still to be composited,
// dL/dalpha = T v - R / (1 - alpha), v the gradient's dot product with the Gaussian's colour, depth and 1.
#include "portable.cuh"

#define TILE 8
#define NEAR 0.01f
#define EPS2D 0.3f
#define ALPHA_MAX 0.999f
#define ALPHA_MIN (1.0f / 255.0f)
#define TRANSMITTANCE_MIN 1e-4f
#define MAX_VARIANCE 1e15f
#define SH_C0 0.28209479177387814f
#define UNIT 0.84932180028801904f   // sqrt(log2(e) / 2): records hold factors times this, so that alpha = opacity 2^-t
#define MANY 32                     // tiles in a Gaussian's rectangle from which on its warp walks them together
#define SLOT 12                     // floats a slot: h, hw, hww, hu, hwu, huu, red, green, blue, depth, 0, 0
#define SORTED 2048                 // keys sorted in shared memory
#define SORTERS 128
#define WARPS 4                     // of a block that draws
#define GROUP 8                     // threads that share a Gaussian's views

// Bits of `shared`: attributes that all items have in common; then how colours come.
#define MEANS 1
#define QUATS 2
#define SCALES 4
#define LOGITS 8
#define COLORS 16
#define COLORS_OF_VIEWS 32
#define COLORS_OF_HARMONICS 64      // colours are the constant spherical harmonic's coefficients

struct Lens {
    float r[12];  // rows of world-to-camera
    float fx, fy, cx, cy;
    float left, right, top, bottom;  // limits of x / z and y / z in the Jacobian
};

static __device__ Lens lens_of(const float* poses, const float* Ks, int view, int width, int height) {
    Lens lens;
    const float* pose = poses + view * 16;
    const float* K = Ks + view * 9;
    for (int i = 0; i < 12; i++) lens.r[i] = pose[i];
    lens.fx = K[0], lens.fy = K[4], lens.cx = K[2], lens.cy = K[5];
    float mx = 0.15f * width / lens.fx, my = 0.15f * height / lens.fy;
    lens.left = -lens.cx / lens.fx - mx, lens.right = (width - lens.cx) / lens.fx + mx;
    lens.top = -lens.cy / lens.fy - my, lens.bottom = (height - lens.cy) / lens.fy + my;
    return lens;
}

// Projection of one Gaussian, and what its derivative needs.
struct Splat {
    float x, y, z, inverse;       // camera frame, 1 / z
    float u, v, uc, vc;           // x / z, y / z, and within the Jacobian's limits
    float qw, qx, qy, qz, norm;   // unit quaternion, 1 / length of the given one
    float s[3];                   // scales
    float m[9];                   // rotation times scales
    float p[3], q[3];             // rows of Jacobian times world-to-camera's rotation
    float t[3], w[3];             // rows of that times m: axes in pixels
    float k[3];                   // t x w
    float a, b, c, determinant;   // covariance with EPS2D
    bool near;
};

static __device__ void project_splat(
    Splat& o, const Lens& lens, const float* mean, const float* quat, const float* log_scale
) {
    const float* r = lens.r;
    float X = mean[0], Y = mean[1], Z = mean[2];
    o.x = r[0] * X + r[1] * Y + r[2] * Z + r[3];
    o.y = r[4] * X + r[5] * Y + r[6] * Z + r[7];
    o.z = r[8] * X + r[9] * Y + r[10] * Z + r[11];
    o.near = o.z >= NEAR;
    if (!o.near) o.z = 1;
    o.inverse = 1 / o.z;
    float qw = quat[0], qx = quat[1], qy = quat[2], qz = quat[3];
    float norm = 1 / fmaxf(sqrtf(qw * qw + qx * qx + qy * qy + qz * qz), 1e-12f);
    qw *= norm, qx *= norm, qy *= norm, qz *= norm;
    o.qw = qw, o.qx = qx, o.qy = qy, o.qz = qz, o.norm = norm;
    for (int i = 0; i < 3; i++) o.s[i] = expf(log_scale[i]);
    o.m[0] = (1 - 2 * (qy * qy + qz * qz)) * o.s[0];
    o.m[1] = 2 * (qx * qy - qw * qz) * o.s[1];
    o.m[2] = 2 * (qx * qz + qw * qy) * o.s[2];
    o.m[3] = 2 * (qx * qy + qw * qz) * o.s[0];
    o.m[4] = (1 - 2 * (qx * qx + qz * qz)) * o.s[1];
    o.m[5] = 2 * (qy * qz - qw * qx) * o.s[2];
    o.m[6] = 2 * (qx * qz - qw * qy) * o.s[0];
    o.m[7] = 2 * (qy * qz + qw * qx) * o.s[1];
    o.m[8] = (1 - 2 * (qx * qx + qy * qy)) * o.s[2];
    o.u = o.x * o.inverse, o.v = o.y * o.inverse;
    o.uc = fminf(fmaxf(o.u, lens.left), lens.right);
    o.vc = fminf(fmaxf(o.v, lens.top), lens.bottom);
    float jx = lens.fx * o.inverse, jy = lens.fy * o.inverse;
    for (int i = 0; i < 3; i++) {
        o.p[i] = jx * (r[i] - o.uc * r[8 + i]);
        o.q[i] = jy * (r[4 + i] - o.vc * r[8 + i]);
    }
    for (int i = 0; i < 3; i++) {
        o.t[i] = o.p[0] * o.m[i] + o.p[1] * o.m[3 + i] + o.p[2] * o.m[6 + i];
        o.w[i] = o.q[0] * o.m[i] + o.q[1] * o.m[3 + i] + o.q[2] * o.m[6 + i];
    }
    o.a = o.t[0] * o.t[0] + o.t[1] * o.t[1] + o.t[2] * o.t[2];
    o.b = o.t[0] * o.w[0] + o.t[1] * o.w[1] + o.t[2] * o.w[2];
    o.c = o.w[0] * o.w[0] + o.w[1] * o.w[1] + o.w[2] * o.w[2];
    // The determinant of (t, w) (t, w)^T + EPS2D without the cancellation of a c - b^2.
    o.k[0] = o.t[1] * o.w[2] - o.t[2] * o.w[1];
    o.k[1] = o.t[2] * o.w[0] - o.t[0] * o.w[2];
    o.k[2] = o.t[0] * o.w[1] - o.t[1] * o.w[0];
    o.determinant = o.k[0] * o.k[0] + o.k[1] * o.k[1] + o.k[2] * o.k[2] + EPS2D * (o.a + o.c + EPS2D);
    o.a += EPS2D, o.c += EPS2D;
}

// The region alpha >= ALPHA_MIN of a projected Gaussian, and the rectangle of tiles around it.
struct Region {
    float mx, my, ex, ey;               // centre, half sides of its box
    float slope, spread, room, curve;   // b / c, determinant / c, 2 ln(255 opacity), 1 / c
    float turn, slack;                  // rows from the centre to its rightmost point; pixels that rounding may cost
    int x0, y0, x1, y1;                 // tiles, one past the last
};

// All roundings of these two are spelled out: kernels that walk a Gaussian's tiles have to agree on them.
static __device__ Region region_of(float4 head, const float4* shape, int width, int height) {
    Region g;
    g.mx = head.x, g.my = head.y;
    float4 first = shape[0], second = shape[1];
    g.ex = first.x, g.ey = first.y, g.slope = first.z, g.spread = first.w;
    g.room = second.x, g.curve = second.y, g.turn = second.z;
    g.slack = __fadd_rn(0.02f, __fmul_rn(1e-3f, fmaxf(g.ex, g.ey)));
    float left = ceilf(__fsub_rn(__fsub_rn(g.mx, g.ex), __fadd_rn(g.slack, 0.5f)));
    float right = floorf(__fadd_rn(__fadd_rn(g.mx, g.ex), __fsub_rn(g.slack, 0.5f)));
    float top = ceilf(__fsub_rn(__fsub_rn(g.my, g.ey), __fadd_rn(g.slack, 0.5f)));
    float bottom = floorf(__fadd_rn(__fadd_rn(g.my, g.ey), __fsub_rn(g.slack, 0.5f)));
    left = fmaxf(left, 0), top = fmaxf(top, 0);
    right = fminf(right, width - 1.0f), bottom = fminf(bottom, height - 1.0f);
    g.x0 = g.y0 = g.x1 = g.y1 = 0;
    if (second.w > 0 && left <= right && top <= bottom) {
        g.x0 = (int)left / TILE, g.x1 = (int)right / TILE + 1;
        g.y0 = (int)top / TILE, g.y1 = (int)bottom / TILE + 1;
    }
    return g;
}

// First tile column, and one past the last, that the region touches in a row of tiles.
static __device__ void span_of(const Region& g, int row, int height, int& first, int& last) {
    float low = __fsub_rn((float)(row * TILE) + 0.5f, g.my);
    float high = __fsub_rn(fminf((float)(row * TILE + TILE - 1), height - 1.0f) + 0.5f, g.my);
    float at = fminf(fmaxf(fminf(fmaxf(g.turn, low), high), -g.ey), g.ey);
    float half = __fsqrt_rn(fmaxf(__fmul_rn(g.spread, __fsub_rn(g.room, __fmul_rn(__fmul_rn(at, at), g.curve))), 0));
    float right = __fadd_rn(__fadd_rn(g.mx, __fadd_rn(__fmul_rn(g.slope, at), half)), __fsub_rn(g.slack, 0.5f));
    at = fminf(fmaxf(fminf(fmaxf(-g.turn, low), high), -g.ey), g.ey);
    half = __fsqrt_rn(fmaxf(__fmul_rn(g.spread, __fsub_rn(g.room, __fmul_rn(__fmul_rn(at, at), g.curve))), 0));
    float left = __fsub_rn(__fadd_rn(g.mx, __fsub_rn(__fmul_rn(g.slope, at), half)), __fadd_rn(g.slack, 0.5f));
    left = fmaxf(ceilf(left), (float)(g.x0 * TILE));
    right = fminf(floorf(right), (float)(g.x1 * TILE - 1));
    first = last = 0;
    if (left <= right) first = (int)left / TILE, last = (int)right / TILE + 1;
}

// Calls visit(index, tile column, tile row) for each tile that Gaussian `index` of this thread touches. All threads of a warp
// come here together; one without a Gaussian passes a region of no tiles. `visit` may run on any lane of the warp.
template <class Visit>
static __device__ void each_tile(
    const Region& mine, int index, const float4* record, const float4* shapes, int width, int height, Visit visit
) {
    int lane = threadIdx.x & 31;
    int size = (mine.x1 - mine.x0) * (mine.y1 - mine.y0);
    if (size <= MANY) {
        for (int row = mine.y0; row < mine.y1; row++) {
            int first, last;
            span_of(mine, row, height, first, last);
            for (int column = first; column < last; column++) visit(index, column, row);
        }
    }
    unsigned large = ballot(size > MANY);
    while (large) {
        int source = __ffs(large) - 1;
        large &= large - 1;
        int other = shuffle(index, source);
        Region g = region_of(record[other * 3], shapes + other * 2, width, height);
        int across = g.x1 - g.x0, all = across * (g.y1 - g.y0);
        for (int i = lane; i < all; i += 32) {
            int row = g.y0 + i / across, column = g.x0 + i % across, first, last;
            span_of(g, row, height, first, last);
            if (first <= column && column < last) visit(other, column, row);
        }
    }
}

static __device__ bool finite3(const float* x) {
    return fabsf(x[0]) <= 3.4e38f && fabsf(x[1]) <= 3.4e38f && fabsf(x[2]) <= 3.4e38f;
}

// Sum over the threads before this one in the block, and the block's total; 256 threads at most.
static __device__ int scan_block(int x, int* total) {
    __shared__ int sums[8];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, sum = x;
    for (int step = 1; step < 32; step *= 2) {
        int before = shuffle_up(sum, step);
        if (lane >= step) sum += before;
    }
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    int before = 0, all = 0;
    for (int i = 0; i < (int)blockDim.x / 32; i++) {
        if (i < warp) before += sums[i];
        all += sums[i];
    }
    *total = all;
    return before + sum - x;
}

// counters: slots taken, list entries, bits of attributes that are not finite, whether entries or slots had no room, and
// segments beyond the first of their tiles.
extern "C" __global__ void __launch_bounds__(256) project(
    const float* means,        // (B or 1, N, 3)
    const float* quats,        // (B or 1, N, 4)
    const float* log_scales,   // (B or 1, N, 3)
    const float* logits,       // (B or 1, N)
    const float* colors,       // (B or 1 or V, N, 3)
    const float* poses,        // (V, 4, 4)
    const float* Ks,           // (V, 3, 3)
    int shared, int count, int views_an_item, int width, int height,
    float4* record,            // (V N, 3) mx, my, kw, ku; kx, opacity, red, green; blue, depth, slot of tile (0, 0), slots a row
    float4* shapes,            // (V N, 2) the rest of a Region; last 1 where drawn, else 0
    int* tile_count,           // (V tiles) of zeros
    u64* counters,             // (5) of zeros
    float* radii,              // (V, N) or none
    unsigned char* visible     // (V, N) or none
) {
    __shared__ u64 origin;
    int g = blockIdx.x * blockDim.x + threadIdx.x, view = blockIdx.y, item = view / views_an_item;
    int index = view * count + g, bad = 0, slots = 0;
    int columns = (width + TILE - 1) / TILE, rows = (height + TILE - 1) / TILE;
    float4 head, body, tail;
    Region region;
    region.x0 = region.x1 = region.y0 = region.y1 = 0;
    bool exists = g < count;
    if (exists) {
        const float* mean = means + 3 * (g + (shared & MEANS ? 0 : item * count));
        const float* quat = quats + 4 * (g + (shared & QUATS ? 0 : item * count));
        const float* log_scale = log_scales + 3 * (g + (shared & SCALES ? 0 : item * count));
        float logit = logits[g + (shared & LOGITS ? 0 : item * count)];
        const float* color = colors + 3 * (g + (shared & COLORS_OF_VIEWS ? view * count : shared & COLORS ? 0 : item * count));
        bad = (finite3(mean) ? 0 : 1) | (finite3(quat) && finite3(quat + 1) ? 0 : 2) | (finite3(log_scale) ? 0 : 4) |
              (fabsf(logit) <= 3.4e38f ? 0 : 8) | (finite3(color) ? 0 : 16);
        Lens lens = lens_of(poses, Ks, view, width, height);
        Splat o;
        project_splat(o, lens, mean, quat, log_scale);
        float opacity = 1 / (1 + expf(-logit));
        float room = 2 * logf(opacity / ALPHA_MIN);
        float ex = sqrtf(room * o.a), ey = sqrtf(room * o.c);
        float mx = lens.fx * o.u + lens.cx, my = lens.fy * o.v + lens.cy;
        bool drawn = o.near && opacity >= ALPHA_MIN && o.a <= MAX_VARIANCE && o.c <= MAX_VARIANCE && mx + ex > 0 &&
                     my + ey > 0 && mx - ex < width && my - ey < height;
        float kw = UNIT / sqrtf(o.a), ku = UNIT * sqrtf(o.a / o.determinant);
        float r = color[0], gr = color[1], b = color[2];
        if (shared & COLORS_OF_HARMONICS) {
            r = fmaxf(r * SH_C0 + 0.5f, 0), gr = fmaxf(gr * SH_C0 + 0.5f, 0), b = fmaxf(b * SH_C0 + 0.5f, 0);
        }
        head = make_float4(mx, my, kw, ku);
        body = make_float4(-ku * o.b / o.a, opacity, r, gr);
        tail = make_float4(b, o.z, 0, 0);
        float4 shape[2] = {
            make_float4(ex, ey, o.b / o.c, o.determinant / o.c),
            make_float4(room, 1 / o.c, o.b / o.a * ex, drawn ? 1.0f : 0.0f),
        };
        region = region_of(head, shape, width, height);
        shapes[index * 2] = shape[0], shapes[index * 2 + 1] = shape[1];
        record[index * 3] = head;
        slots = (region.x1 - region.x0) * (region.y1 - region.y0);
        if (radii) radii[index] = drawn ? ceilf(fmaxf(ex, ey)) : 0;
        if (visible) visible[index] = drawn;
    }
    int total, before = scan_block(slots, &total);
    if (threadIdx.x == 0) origin = total ? atomicAdd(&counters[0], (u64)total) : 0;
    __syncthreads();
    if (bad) atomicOr((int*)&counters[2], bad);
    if (exists) {
        int across = region.x1 - region.x0;
        int slot = (int)(origin + before) - region.y0 * across - region.x0;
        tail.z = __int_as_float(slot), tail.w = __int_as_float(across);
        record[index * 3 + 1] = body, record[index * 3 + 2] = tail;
    }
    sync_warp();
    each_tile(region, index, record, shapes, width, height, [&](int, int column, int row) {
        atomicAdd(&tile_count[(view * rows + row) * columns + column], 1);
    });
}

extern "C" __global__ void __launch_bounds__(256) allocate(
    const int* tile_count, int tiles, int segment,
    int* begin, int* end,  // end is where emit goes on, from begin
    int* more,             // segments beyond the first come from here
    u64* counters
) {
    __shared__ u64 origin[2];
    int tile = blockIdx.x * blockDim.x + threadIdx.x;
    int own = tile < tiles ? tile_count[tile] : 0, total, before = scan_block(own, &total);
    __syncthreads();
    int extra = own > 0 ? (own - 1) / segment : 0, extras, before_extra = scan_block(extra, &extras);
    if (threadIdx.x == 0) {
        origin[0] = total ? atomicAdd(&counters[1], (u64)total) : 0;
        origin[1] = extras ? atomicAdd(&counters[4], (u64)extras) : 0;
    }
    __syncthreads();
    if (tile < tiles) begin[tile] = end[tile] = (int)(origin[0] + before), more[tile] = (int)(origin[1] + before_extra);
}

extern "C" __global__ void __launch_bounds__(256) emit(
    const float4* record, const float4* shapes, int count, int width, int height,
    int* end,
    u64* keys,  // (capacity)
    int capacity,
    u64* counters
) {
    int g = blockIdx.x * blockDim.x + threadIdx.x, view = blockIdx.y, index = view * count + g;
    int columns = (width + TILE - 1) / TILE, rows = (height + TILE - 1) / TILE;
    Region region;
    region.x0 = region.x1 = region.y0 = region.y1 = 0;
    if (g < count) region = region_of(record[index * 3], shapes + index * 2, width, height);
    each_tile(region, index, record, shapes, width, height, [&](int other, int column, int row) {
        int at = atomicAdd(&end[(view * rows + row) * columns + column], 1);
        u64 depth = (u64)(unsigned)__float_as_int(record[other * 3 + 2].y);  // positive, so its bits are in its order
        if ((unsigned)at < (unsigned)capacity) keys[at] = depth << 32 | (unsigned)(other - view * count);
        else counters[3] = 1;
    });
}

static __device__ void compare(u64* keys, int low, int high, int size) {
    if (high < size) {  // beyond, all are larger than any key
        u64 a = keys[low], b = keys[high];
        if (b < a) keys[low] = b, keys[high] = a;
    }
}

// Steps of a bitonic sort with all comparisons ascending, of distances from `distance` down to `last`, powers of two.
static __device__ void bitonic_steps(u64* keys, int size, int half, int distance, int last) {
    for (; distance >= last; distance /= 2) {
#pragma unroll 1
        for (int i = threadIdx.x; i < half; i += SORTERS) {
            int low = 2 * i - (i & (distance - 1));
            compare(keys, low, low + distance, size);
        }
        __syncthreads();
    }
}

static __device__ void bitonic_flip(u64* keys, int size, int half, int width) {
#pragma unroll 1
    for (int i = threadIdx.x; i < half; i += SORTERS) {
        int offset = i & (width / 2 - 1), low = 2 * i - offset;
        compare(keys, low, low + width - 1 - 2 * offset, size);
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(SORTERS) sort_tiles(
    u64* keys, const int* begin, const int* end, int capacity,
    int* members  // (capacity) Gaussians of each list, nearest first
) {
    __shared__ u64 held[SORTED];
    int first = begin[blockIdx.x], last = end[blockIdx.x];
    if (first < 0 || last > capacity || first >= last) return;
    int size = last - first, power = 1;
    while (power < size) power *= 2;
    u64* list = keys + first;
    for (int chunk = 0; chunk < size; chunk += SORTED) {
        int part = min(SORTED, size - chunk), half = min(power, SORTED) / 2;
        for (int i = threadIdx.x; i < part; i += SORTERS) held[i] = list[chunk + i];
        __syncthreads();
        for (int width = 2; width <= 2 * half; width *= 2) {
            bitonic_flip(held, part, half, width);
            bitonic_steps(held, part, half, width / 4, 1);
        }
        if (size <= SORTED) {
            for (int i = threadIdx.x; i < part; i += SORTERS) members[first + i] = (int)held[i];
            return;
        }
        for (int i = threadIdx.x; i < part; i += SORTERS) list[chunk + i] = held[i];
        __syncthreads();
    }
    for (int width = 2 * SORTED; width <= power; width *= 2) {
        bitonic_flip(list, size, power / 2, width);
        bitonic_steps(list, size, power / 2, width / 4, SORTED);
        for (int chunk = 0; chunk < size; chunk += SORTED) {
            int part = min(SORTED, size - chunk);
            for (int i = threadIdx.x; i < part; i += SORTERS) held[i] = list[chunk + i];
            __syncthreads();
            bitonic_steps(held, part, SORTED / 2, SORTED / 2, 1);
            for (int i = threadIdx.x; i < part; i += SORTERS) list[chunk + i] = held[i];
            __syncthreads();
        }
    }
    for (int i = threadIdx.x; i < size; i += SORTERS) members[first + i] = (int)list[i];
}

// Two pixels of a lane, one above the other; a tile's rows 0 to 3 and 4 to 7.
struct Pixels {
    float x, y[2];
    int at[2];  // flat index in (V, H, W), -1 outside
};

static __device__ Pixels pixels_of(int tile, int width, int height) {
    int columns = (width + TILE - 1) / TILE, rows = (height + TILE - 1) / TILE, lane = threadIdx.x & 31;
    int x = tile % columns * TILE + lane % TILE, y = tile / columns % rows * TILE + lane / TILE;
    Pixels p;
    p.x = x + 0.5f;
    for (int i = 0; i < 2; i++, y += TILE / 2) {
        p.y[i] = y + 0.5f;
        p.at[i] = x < width && y < height ? (tile / (columns * rows) * height + y) * width + x : -1;
    }
    return p;
}

// Records of up to 32 members, one a lane, for all lanes of the warp to read.
static __device__ void gather(float4 (*batch)[32], const int* members, int first, int last, const float4* record) {
    int lane = threadIdx.x & 31;
    sync_warp();
    if (first + lane < last) {
        const float4* own = record + members[first + lane] * 3;
        for (int i = 0; i < 3; i++) batch[i][lane] = own[i];
    }
    sync_warp();
}

// w = kw dx, u = ku dy + kx dx and opacity 2^-(w^2 + u^2); the roundings are spelled out since both passes have to agree.
static __device__ __forceinline__ float alpha_of(float4 head, float4 body, float x, float y, float& w, float& u) {
    float dx = __fsub_rn(x, head.x), dy = __fsub_rn(y, head.y);
    w = __fmul_rn(head.z, dx);
    u = __fmaf_rn(head.w, dy, __fmul_rn(body.x, dx));
    return __fmul_rn(body.y, power_of_two(-__fmaf_rn(w, w, __fmul_rn(u, u))));
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) draw(
    const float4* record, const int* members, const int* begin, const int* end, int tiles, int count, int width, int height,
    int capacity,
    const float* background,  // (3) or (V, 3) or none
    int background_stride,    // 0 or 3
    float* color, float* alpha, float* depth,  // (V, H, W, 3), (V, H, W), (V, H, W)
    int* needed,              // one past the last member of each list that a pixel takes
    int segment, const int* more, int most,
    int* owner,               // (most) tile of each segment beyond its first
    float* state              // (most, 5, 64) transmittance (-1 where the pixel takes no more), colour and depth before it
) {
    __shared__ float4 batches[WARPS][3][32];
    int warp = threadIdx.x >> 5, tile = blockIdx.x * WARPS + warp;
    if (tile >= tiles) return;
    float4 (*batch)[32] = batches[warp];
    int view = tile / (((width + TILE - 1) / TILE) * ((height + TILE - 1) / TILE));
    const float4* own = record + (long long)view * count * 3;
    Pixels p = pixels_of(tile, width, height);
    int first = begin[tile], last = end[tile], used = first;
    if (first < 0 || last > capacity) last = first;
    float T[2] = {1, 1}, red[2] = {0, 0}, green[2] = {0, 0}, blue[2] = {0, 0}, far[2] = {0, 0};
    bool going[2] = {p.at[0] >= 0, p.at[1] >= 0};
    int lane = threadIdx.x & 31, extra = more[tile] - 1;
    for (int i = first + segment * (1 + lane); i < last; i += segment * 32) {
        int at = extra + (i - first) / segment;
        if (at < most) owner[at] = tile;
    }
    for (int start = first; start < last && any(going[0] || going[1]); start += 32) {
        if (start > first && (start - first) % segment == 0) {
            int at = extra + (start - first) / segment;
            for (int i = 0; i < 2 && at < most; i++) {
                float* to = state + (long long)at * 320 + 32 * i + lane;
                to[0] = going[i] ? T[i] : -1, to[64] = red[i], to[128] = green[i], to[192] = blue[i], to[256] = far[i];
            }
        }
        gather(batch, members, start, last, own);
        int part = min(32, last - start);
        for (int j = 0; j < part; j++) {
            float4 head = batch[0][j], body = batch[1][j], tail = batch[2][j];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float w, u, a = fminf(alpha_of(head, body, p.x, p.y[i], w, u), ALPHA_MAX);
                if (going[i] && a >= ALPHA_MIN) {
                    float next = __fmul_rn(T[i], 1 - a);
                    if (next <= TRANSMITTANCE_MIN) {
                        going[i] = false;
                    } else {
                        float weight = a * T[i];
                        red[i] += weight * body.z, green[i] += weight * body.w, blue[i] += weight * tail.x;
                        far[i] += weight * tail.y;
                        T[i] = next;
                        used = start + j + 1;
                    }
                }
            }
        }
    }
    for (int step = 16; step > 0; step /= 2) used = max(used, shuffle_xor(used, step));
    if (lane == 0) needed[tile] = used;
    for (int i = 0; i < 2; i++) {
        int at = p.at[i];
        if (at < 0) continue;
        float back[3] = {0, 0, 0};
        if (background)
            for (int c = 0; c < 3; c++) back[c] = background[view * background_stride + c];
        color[at * 3ll] = red[i] + T[i] * back[0];
        color[at * 3ll + 1] = green[i] + T[i] * back[1];
        color[at * 3ll + 2] = blue[i] + T[i] * back[2];
        alpha[at] = 1 - T[i];
        depth[at] = far[i];
    }
}

// Sums of ten values over the warp in twelve shuffles: each lane returns that of value field_of(lane), or nothing of use.
static __device__ __forceinline__ int field_of(int lane) {
    return (lane & 16 ? 1 : 0) | (lane & 8 ? 2 : 0) | (lane & 4 ? 4 : 0) | (lane & 2 ? 8 : 0);
}

static __device__ __forceinline__ float sum_warp(float* value) {
    int lane = threadIdx.x & 31;
    int have = 10;
#pragma unroll
    for (int bit = 16; bit > 1; bit /= 2) {
        bool upper = lane & bit;
        int pairs = (have + 1) / 2;
#pragma unroll
        for (int k = 0; k < 5; k++) {
            if (k < pairs) {
                float even = value[2 * k], odd = 2 * k + 1 < have ? value[2 * k + 1] : 0.0f;
                float sent = shuffle_xor(upper ? even : odd, bit);
                value[k] = (upper ? odd : even) + sent;
            }
        }
        have = pairs;
    }
    return value[0] + shuffle_xor(value[0], 1);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) draw_back(
    const float4* record, const int* members, const int* begin, const int* end, const int* needed,
    int tiles, int count, int width, int height, int capacity,
    const float* background, int background_stride,
    const float* color, const float* alpha, const float* depth,
    const float* g_color, const float* g_alpha, const float* g_depth,  // or none
    float* slots,  // (slot capacity, SLOT)
    int slot_capacity,
    u64* counters,
    int segment, const int* more, int most, const int* owner, const float* state
) {
    __shared__ float4 batches[WARPS][3][32];
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, tile = blockIdx.x * WARPS + warp, extra = tile - tiles, place = 0;
    if (extra >= 0) {
        if (extra >= most || extra >= (long long)counters[4]) return;
        tile = owner[extra];
        // A list without room has told its segments no owner: what stands there is anything.
        if ((unsigned)tile >= (unsigned)tiles) return;
        place = extra - more[tile] + 1;
        if (place < 1 || place > (end[tile] - begin[tile] - 1) / segment) return;
    }
    float4 (*batch)[32] = batches[warp];
    int columns = (width + TILE - 1) / TILE, rows = (height + TILE - 1) / TILE;
    int column = tile % columns, row = tile / columns % rows, view = tile / (columns * rows);
    const float4* own = record + (long long)view * count * 3;
    Pixels p = pixels_of(tile, width, height);
    int first = begin[tile], last = end[tile], stop = needed[tile];
    if (first < 0 || last > capacity) return;
    first += place * segment;
    last = min(last, first + segment);
    stop = min(stop, last);
    float T[2] = {1, 1}, rest[2] = {0, 0}, gr[2] = {0, 0}, gg[2] = {0, 0}, gb[2] = {0, 0}, gd[2] = {0, 0}, ga[2] = {0, 0};
    bool going[2] = {p.at[0] >= 0, p.at[1] >= 0};
    for (int i = 0; i < 2; i++) {
        long long at = p.at[i];
        if (at < 0) continue;
        if (g_alpha) ga[i] = g_alpha[at];
        if (g_depth) gd[i] = g_depth[at];
        if (g_color) {
            gr[i] = g_color[at * 3], gg[i] = g_color[at * 3 + 1], gb[i] = g_color[at * 3 + 2];
            rest[i] = gr[i] * color[at * 3] + gg[i] * color[at * 3 + 1] + gb[i] * color[at * 3 + 2];
            if (background) {
                const float* back = background + view * background_stride;
                float behind = gr[i] * back[0] + gg[i] * back[1] + gb[i] * back[2];
                ga[i] -= behind;
                rest[i] -= behind * (1 - alpha[at]);
            }
        }
        rest[i] += gd[i] * depth[at] + ga[i] * alpha[at];
        if (extra >= 0 && first < stop) {  // else nobody has left a state
            const float* from = state + extra * 320ll + 32 * i + lane;
            T[i] = from[0];
            going[i] = T[i] >= 0;
            rest[i] -= gr[i] * from[64] + gg[i] * from[128] + gb[i] * from[192] + gd[i] * from[256] + ga[i] * (1 - T[i]);
        }
    }
    int field = field_of(lane);
    for (int start = first; start < stop; start += 32) {
        gather(batch, members, start, stop, own);
        int part = min(32, stop - start);
        for (int j = 0; j < part; j++) {
            float4 head = batch[0][j], body = batch[1][j], tail = batch[2][j];
            float value[10] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
            bool touched = false;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float w, u, full = alpha_of(head, body, p.x, p.y[i], w, u), a = fminf(full, ALPHA_MAX);
                if (going[i] && a >= ALPHA_MIN) {
                    float next = __fmul_rn(T[i], 1 - a);
                    if (next <= TRANSMITTANCE_MIN) {
                        going[i] = false;
                    } else {
                        float weight = a * T[i];
                        float v = gr[i] * body.z + gg[i] * body.w + gb[i] * tail.x + gd[i] * tail.y + ga[i];
                        rest[i] -= weight * v;
                        float h = full <= ALPHA_MAX ? weight * v - a * rest[i] / (1 - a) : 0;  // - dL/dsigma
                        T[i] = next;
                        touched = true;
                        float hw = h * w, hu = h * u;
                        value[0] += h, value[1] += hw, value[2] += hw * w, value[3] += hu, value[4] += hw * u;
                        value[5] += hu * u;
                        value[6] += weight * gr[i], value[7] += weight * gg[i], value[8] += weight * gb[i];
                        value[9] += weight * gd[i];
                    }
                }
            }
            float sum = 0;
            if (any(touched)) sum = sum_warp(value);
            int slot = __float_as_int(tail.z) + row * __float_as_int(tail.w) + column;
            if ((unsigned)slot >= (unsigned)slot_capacity) counters[3] = 1;
            else if (!(lane & 1) && field < SLOT) slots[(long long)slot * SLOT + field] = field < 10 ? sum : 0;
        }
    }
    for (int i = max(first, stop) + lane; i < last; i += 32) {
        float4 tail = own[members[i] * 3 + 2];
        int slot = __float_as_int(tail.z) + row * __float_as_int(tail.w) + column;
        if ((unsigned)slot >= (unsigned)slot_capacity) {
            counters[3] = 1;
            continue;
        }
        float4* to = (float4*)(slots + (long long)slot * SLOT);
        to[0] = to[1] = to[2] = make_float4(0, 0, 0, 0);
    }
}

static __device__ void add_slot(float* sums, const float* slots, int slot, int slot_capacity) {
    if ((unsigned)slot >= (unsigned)slot_capacity) return;
    const float4* from = (const float4*)(slots + (long long)slot * SLOT);
    float4 a = from[0], b = from[1], c = from[2];
    sums[0] += a.x, sums[1] += a.y, sums[2] += a.z, sums[3] += a.w;
    sums[4] += b.x, sums[5] += b.y, sums[6] += b.z, sums[7] += b.w;
    sums[8] += c.x, sums[9] += c.y;
}

// Where a Gaussian's gradient begins among 14 numbers: means 0, quats 3, log_scales 7, logits 10, colours 11.
extern "C" __global__ void __launch_bounds__(32 * GROUP) pull_back(
    const float* means, const float* quats, const float* log_scales, const float* logits, const float* colors,
    const float* poses, const float* Ks, int shared, int count, int items, int views_an_item, int width, int height,
    const float4* record, const float4* shapes, const float* slots, int slot_capacity,
    float* d_means, float* d_quats, float* d_log_scales, float* d_logits, float* d_colors,  // of the attributes' shapes
    float* screen  // (V, N) or none
) {
    __shared__ float parts[GROUP][14][33];
    int lane = threadIdx.x & 31, group = threadIdx.x >> 5, g = blockIdx.x * 32 + lane;
    bool exists = g < count;
    float total[14];
    for (int i = 0; i < 14; i++) total[i] = 0;
    // A thread has every GROUP-th item, or every GROUP-th view of the only one.
    int units = items > 1 ? items : views_an_item, views = items > 1 ? views_an_item : 1;
    int together = items > 1 ? shared : 31;
    for (int unit = group; unit < units; unit += GROUP) {
        float own[14];
        for (int i = 0; i < 14; i++) own[i] = 0;
        int item = items > 1 ? unit : 0;
        const float* mean = means + 3 * (g + (shared & MEANS ? 0 : item * count));
        const float* quat = quats + 4 * (g + (shared & QUATS ? 0 : item * count));
        const float* log_scale = log_scales + 3 * (g + (shared & SCALES ? 0 : item * count));
        for (int view = unit * views; view < unit * views + views; view++) {
            int index = view * count + g;
            float sums[10];
            for (int i = 0; i < 10; i++) sums[i] = 0;
            Region region;
            region.x0 = region.x1 = region.y0 = region.y1 = 0;
            float4 tail = make_float4(0, 0, 0, 0);
            float opacity = 0;
            bool drawn = false;
            if (exists) {
                region = region_of(record[index * 3], shapes + index * 2, width, height);
                opacity = record[index * 3 + 1].y;
                tail = record[index * 3 + 2];
                drawn = shapes[index * 2 + 1].w > 0;
            }
            int across = region.x1 - region.x0, size = across * (region.y1 - region.y0);
            if (size <= MANY) {
                for (int row = region.y0; row < region.y1; row++) {
                    int first, last;
                    span_of(region, row, height, first, last);
                    int slot = __float_as_int(tail.z) + row * across;
                    for (int column = first; column < last; column++) add_slot(sums, slots, slot + column, slot_capacity);
                }
            }
            unsigned large = ballot(size > MANY);
            while (large) {
                int source = __ffs(large) - 1;
                large &= large - 1;
                int other = shuffle(index, source);
                Region r = region_of(record[other * 3], shapes + other * 2, width, height);
                int base = __float_as_int(record[other * 3 + 2].z), wide = r.x1 - r.x0, all = wide * (r.y1 - r.y0);
                float found[10];
                for (int i = 0; i < 10; i++) found[i] = 0;
                for (int i = lane; i < all; i += 32) {
                    int row = r.y0 + i / wide, column = r.x0 + i % wide, first, last;
                    span_of(r, row, height, first, last);
                    if (first <= column && column < last) add_slot(found, slots, base + row * wide + column, slot_capacity);
                }
                for (int i = 0; i < 10; i++) {
                    for (int step = 16; step > 0; step /= 2) found[i] += shuffle_xor(found[i], step);
                    if (lane == source) sums[i] = found[i];
                }
            }
            if (!exists) continue;
            float d_mx = 0, d_my = 0;
            if (drawn) {
                Lens lens = lens_of(poses, Ks, view, width, height);
                Splat o;
                project_splat(o, lens, mean, quat, log_scale);
                const float* r = lens.r;
                float one = 1 / UNIT, two = one * one;  // records hold factors times UNIT
                float h = sums[0], hw = one * sums[1], hww = two * sums[2], hu = one * sums[3], hwu = two * sums[4];
                float huu = two * sums[5];
                float kw = 1 / sqrtf(o.a), ku = sqrtf(o.a / o.determinant), kx = -ku * o.b / o.a;
                // sigma = (u^2 + w^2) / 2 and h = -dL/dsigma.
                d_mx = kx * hu + kw * hw, d_my = ku * hu;
                // dL/dCov = L (huu, hwu; hwu, hww) L^T / 2, the conic being L L^T with L = (kx, kw; ku, 0); times 2 for
                // d(T T^t) = 2 dCov T. kx t + ku w = ku / a ((t x w) x t + eps w), which does not cancel for needles.
                float k = ku / o.a, dt[3], dw[3];
                float au[3] = {
                    k * (o.k[1] * o.t[2] - o.k[2] * o.t[1] + EPS2D * o.w[0]),
                    k * (o.k[2] * o.t[0] - o.k[0] * o.t[2] + EPS2D * o.w[1]),
                    k * (o.k[0] * o.t[1] - o.k[1] * o.t[0] + EPS2D * o.w[2]),
                };
                for (int i = 0; i < 3; i++) {
                    float aw = kw * o.t[i], fu = huu * au[i] + hwu * aw, fw = hwu * au[i] + hww * aw;
                    dt[i] = kx * fu + kw * fw, dw[i] = ku * fu;
                }
                float dp[3], dq[3];
                for (int i = 0; i < 3; i++) {
                    dp[i] = dt[0] * o.m[3 * i] + dt[1] * o.m[3 * i + 1] + dt[2] * o.m[3 * i + 2];
                    dq[i] = dw[0] * o.m[3 * i] + dw[1] * o.m[3 * i + 1] + dw[2] * o.m[3 * i + 2];
                }
                // J W has the rows fx / z (W0 - u W2) and fy / z (W1 - v W2); u and v are fixed where clamped.
                float d_u = -lens.fx * o.inverse * (dp[0] * r[8] + dp[1] * r[9] + dp[2] * r[10]);
                float d_v = -lens.fy * o.inverse * (dq[0] * r[8] + dq[1] * r[9] + dq[2] * r[10]);
                d_u = lens.fx * d_mx + (o.u == o.uc ? d_u : 0);
                d_v = lens.fy * d_my + (o.v == o.vc ? d_v : 0);
                float along = 0;
                for (int i = 0; i < 3; i++) along += dp[i] * o.p[i] + dq[i] * o.q[i];
                float d_z = sums[9] - o.inverse * (along + d_u * o.u + d_v * o.v);
                float d_x = d_u * o.inverse, d_y = d_v * o.inverse;
                for (int i = 0; i < 3; i++) own[i] += r[i] * d_x + r[4 + i] * d_y + r[8 + i] * d_z;
                own[10] += h * (1 - opacity);
                // By rotation times scales, then by the scales' logarithms and the rotation.
                float e[9];
                for (int i = 0; i < 3; i++)
                    for (int j = 0; j < 3; j++) e[3 * i + j] = o.p[i] * dt[j] + o.q[i] * dw[j];
                for (int j = 0; j < 3; j++) {
                    own[7 + j] += e[j] * o.m[j] + e[3 + j] * o.m[3 + j] + e[6 + j] * o.m[6 + j];
                    for (int i = 0; i < 3; i++) e[3 * i + j] *= o.s[j];
                }
                float qw = o.qw, qx = o.qx, qy = o.qy, qz = o.qz;
                float dqw = 2 * (qx * (e[7] - e[5]) + qy * (e[2] - e[6]) + qz * (e[3] - e[1]));
                float dqx = 2 * (qy * (e[1] + e[3]) + qz * (e[2] + e[6]) + qw * (e[7] - e[5]) - 2 * qx * (e[4] + e[8]));
                float dqy = 2 * (qx * (e[1] + e[3]) + qz * (e[5] + e[7]) + qw * (e[2] - e[6]) - 2 * qy * (e[0] + e[8]));
                float dqz = 2 * (qx * (e[2] + e[6]) + qy * (e[5] + e[7]) + qw * (e[3] - e[1]) - 2 * qz * (e[0] + e[4]));
                along = dqw * qw + dqx * qx + dqy * qy + dqz * qz;
                own[3] += (dqw - along * qw) * o.norm, own[4] += (dqx - along * qx) * o.norm;
                own[5] += (dqy - along * qy) * o.norm, own[6] += (dqz - along * qz) * o.norm;
            }
            if (screen) {
                float sx = d_mx * width * 0.5f, sy = d_my * height * 0.5f;
                screen[index] = sqrtf(sx * sx + sy * sy);
            }
            float gate[3] = {1, 1, 1};
            if (shared & COLORS_OF_HARMONICS) {
                const float* color =
                    colors + 3 * (g + (shared & COLORS_OF_VIEWS ? view * count : shared & COLORS ? 0 : item * count));
                for (int i = 0; i < 3; i++) gate[i] = color[i] * SH_C0 + 0.5f >= 0 ? SH_C0 : 0;
            }
            for (int i = 0; i < 3; i++) {
                float d = gate[i] * sums[6 + i];
                if (shared & COLORS_OF_VIEWS) d_colors[3 * index + i] = d;
                else own[11 + i] += d;
            }
        }
        if (!exists) continue;
        int at = item * count + g;
        if (!(together & MEANS)) for (int i = 0; i < 3; i++) d_means[3 * at + i] = own[i];
        if (!(together & QUATS)) for (int i = 0; i < 4; i++) d_quats[4 * at + i] = own[3 + i];
        if (!(together & SCALES)) for (int i = 0; i < 3; i++) d_log_scales[3 * at + i] = own[7 + i];
        if (!(together & LOGITS)) d_logits[at] = own[10];
        if (!(together & COLORS) && !(shared & COLORS_OF_VIEWS)) for (int i = 0; i < 3; i++) d_colors[3 * at + i] = own[11 + i];
        for (int i = 0; i < 14; i++) total[i] += own[i];
    }
    for (int i = 0; i < 14; i++) parts[group][i][lane] = total[i];
    __syncthreads();
    // The groups' shares in order; the 14 numbers are spread over the groups.
    if (!exists) return;
    for (int i = group; i < 14; i += GROUP) {
        float sum = 0;
        for (int other = 0; other < GROUP; other++) sum += parts[other][i][lane];
        if (i < 3) {
            if (together & MEANS) d_means[3 * g + i] = sum;
        } else if (i < 7) {
            if (together & QUATS) d_quats[4 * g + i - 3] = sum;
        } else if (i < 10) {
            if (together & SCALES) d_log_scales[3 * g + i - 7] = sum;
        } else if (i < 11) {
            if (together & LOGITS) d_logits[g] = sum;
        } else if (together & COLORS && !(shared & COLORS_OF_VIEWS)) {
            d_colors[3 * g + i - 11] = sum;
        }
    }
}
