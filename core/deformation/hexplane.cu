// Features of six planes at several scales: what core/deformation/hexplane.py says in PyTorch, as one product a scale.
//
// Gradients by the planes and the places are added as integers, whose sums are the same in any order: the same bits every time.

struct Sample {
    int first, across, along;  // texel, and the steps to the next column and row
    float right, down;         // shares of those
    float across_scale, along_scale;  // texels a unit of the place; 0 where it is held at the border
};

__device__ inline void side(float place, int size, int* low, float* share, int* step, float* scale) {
    float at = (place + 1) / 2 * (size - 1), top = (float)(size - 1);
    *scale = at > 0 && at < top ? top / 2 : 0;
    at = fminf(fmaxf(at, 0.0f), top);
    int most = size > 2 ? size - 2 : 0;
    int floor = (int)at;
    *low = floor < most ? floor : most;
    *share = at - *low;
    *step = size > 1 ? 1 : 0;
}

__device__ inline Sample place_of(float x, float y, int width, int height) {
    Sample s;
    int column, row, step;
    side(x, width, &column, &s.right, &s.across, &s.across_scale);
    side(y, height, &row, &s.down, &step, &s.along_scale);
    s.along = step * width;
    s.first = row * width + column;
    return s;
}

// The planes of a scale in the order xy, xz, xt, yz, yt, zt.
__device__ inline Sample sample_of(const float* points, float time, int n, int plane, const int* sizes) {
    const int first[6] = {0, 0, 0, 1, 1, 2}, second[6] = {1, 2, 3, 2, 3, 3};
    float place[4] = {points[3 * n], points[3 * n + 1], points[3 * n + 2], time};
    return place_of(place[first[plane]], place[second[plane]], sizes[first[plane]], sizes[second[plane]]);
}

__device__ inline float value_of(const float* texels, Sample s) {
    float a = texels[s.first], b = texels[s.first + s.across], c = texels[s.first + s.along];
    float d = texels[s.first + s.along + s.across];
    float upper = a + s.right * (b - a), lower = c + s.right * (d - c);
    return upper + s.down * (lower - upper);
}

// A thread for each frame, point, scale and channel. `begins`: where each plane starts, (scales, 6); `sizes`: texels along x, y, z
// and time, (scales, 4).
extern "C" __global__ void planes_forward(
    const float* planes, const int* begins, const int* sizes, const float* points, const float* times, int frames, int count,
    int scales, int channels, float* features) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (long long)frames * count * scales * channels) return;
    int c = i % channels, s = i / channels % scales, n = i / ((long long)channels * scales) % count;
    int b = i / ((long long)channels * scales * count);
    float product = 1;
    const int* own = sizes + 4 * s;
    const int first[6] = {0, 0, 0, 1, 1, 2}, second[6] = {1, 2, 3, 2, 3, 3};
    for (int p = 0; p < 6; ++p) {
        int texels = own[first[p]] * own[second[p]];
        product *= value_of(planes + begins[6 * s + p] + (long long)c * texels, sample_of(points, times[b], n, p, own));
    }
    features[i] = product;
}

__device__ inline void add(unsigned long long* at, float value, float scale) {
    atomicAdd(at, (unsigned long long)(long long)rintf(value * scale));
}

// `bound[0]`: the largest size of a gradient, `bound[1]` of a texel: what is added is at most bound[0] bound[1]^5, and counts in
// units of 2^-36 of that. Nothing is added, and all results are no numbers, where that is none.
__device__ inline float unit_of(const float* bound) {
    float texel = fmaxf(bound[1], 1.0f), most = bound[0] * texel * texel * texel * texel * texel;
    return most > 0 && most < 3e38f ? 68719476736.0f / most : 0;
}

extern "C" __global__ void planes_backward(
    const float* planes, const int* begins, const int* sizes, const float* points, const float* times, const float* gradient,
    const float* bound, int frames, int count, int scales, int channels, unsigned long long* d_planes,
    unsigned long long* d_points) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (long long)frames * count * scales * channels) return;
    int c = i % channels, s = i / channels % scales, n = i / ((long long)channels * scales) % count;
    int b = i / ((long long)channels * scales * count);
    const int* own = sizes + 4 * s;
    const int first[6] = {0, 0, 0, 1, 1, 2}, second[6] = {1, 2, 3, 2, 3, 3};
    float unit = unit_of(bound), g = gradient[i], values[6];
    if (unit == 0) return;
    for (int p = 0; p < 6; ++p) {
        int texels = own[first[p]] * own[second[p]];
        values[p] = value_of(planes + begins[6 * s + p] + (long long)c * texels, sample_of(points, times[b], n, p, own));
    }
    float pulled[3] = {0, 0, 0};
    for (int p = 0; p < 6; ++p) {
        float others = g;
        for (int q = 0; q < 6; ++q)
            if (q != p) others *= values[q];
        Sample at = sample_of(points, times[b], n, p, own);
        long long begin = begins[6 * s + p] + (long long)c * own[first[p]] * own[second[p]] + at.first;
        unsigned long long* texel = d_planes + begin;
        add(texel, others * (1 - at.right) * (1 - at.down), unit);
        if (at.right != 0) add(texel + at.across, others * at.right * (1 - at.down), unit);
        if (at.down != 0) add(texel + at.along, others * (1 - at.right) * at.down, unit);
        if (at.right != 0 && at.down != 0) add(texel + at.along + at.across, others * at.right * at.down, unit);
        if (d_points) {
            const float* t = planes + begin;
            float a = t[0], e = t[at.across], f = t[at.along], h = t[at.along + at.across];
            float across = (e - a) + at.down * ((h - f) - (e - a)), along = (f - a) + at.right * ((h - e) - (f - a));
            pulled[first[p]] += others * across * at.across_scale;
            if (second[p] < 3) pulled[second[p]] += others * along * at.along_scale;
        }
    }
    // A place moves over many texels a unit: its own unit is coarser by their number.
    if (d_points) {
        float coarse = unit / (4.0f * (float)(own[0] + own[1] + own[2]));
        for (int k = 0; k < 3; ++k) add(d_points + ((long long)s * count + n) * 3 + k, pulled[k], coarse);
    }
}

extern "C" __global__ void planes_finish(
    const unsigned long long* d_planes, const unsigned long long* d_points, const int* sizes, const float* bound,
    long long texels, int count, int scales, float* out_planes, float* out_points) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    float unit = unit_of(bound), nothing = bound[0] == 0 ? 0.0f : nanf("");
    if (i < texels) out_planes[i] = unit > 0 ? (float)(long long)d_planes[i] / unit : nothing;
    if (d_points && i < 3LL * count) {
        float sum = unit > 0 ? 0 : nothing;
        for (int s = 0; s < scales; ++s) {
            const int* own = sizes + 4 * s;
            float coarse = unit / (4.0f * (float)(own[0] + own[1] + own[2]));
            if (unit > 0) sum += (float)(long long)d_points[(long long)s * 3 * count + i] / coarse;
        }
        out_points[i] = sum;
    }
}
