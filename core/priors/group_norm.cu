// Group norm of channels-last activations, with SiLU behind it or without, and its gradient by the input; a residual's sum.
//
// Activations are rows: pixels of a sample, each with its channels side by side. A block takes a chunk of a sample's pixels and
// a slab of its channels, which no group crosses; a thread keeps to WIDTH channels. A first launch leaves two sums of each chunk
// and group, a second one adds them up and reads the activations again. Everything adds up in one order, in float32; variances
// are squared distances from a value of the channel itself, put together by the means (Chan, Golub, LeVeque 1979).
//
// Compiled with KIND, of the elements: 0 float32, 1 float16, 2 bfloat16, and WIDTH, elements a load: 1, or 16 bytes of them.

#include "portable.cuh"

#ifndef KIND
#define KIND 0
#endif
#ifndef WIDTH
#define WIDTH 1
#endif
#define THREADS 512  // a block has at most so many
#define GROUPS 128   // an activation has at most so many

// --- elements -------------------------------------------------------------------------------------------------------------

#if KIND == 0
typedef float Element;
#else
typedef unsigned short Element;
#endif

static __device__ __forceinline__ float widened(Element x) {
#if KIND == 0
    return x;
#elif KIND == 2
    return __int_as_float((int)((unsigned)x << 16));
#elif defined(__CUDACC_RTC__) && !defined(__HIPCC_RTC__)
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
#else
    _Float16 y;
    __builtin_memcpy(&y, &x, 2);
    return (float)y;
#endif
}

static __device__ __forceinline__ Element rounded(float x) {  // to nearest, ties to even
#if KIND == 0
    return x;
#elif KIND == 2
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    Element y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
#else
    unsigned bits = (unsigned)__float_as_int(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (Element)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
#elif defined(__CUDACC_RTC__) && !defined(__HIPCC_RTC__)
    Element y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
#else
    _Float16 y = (_Float16)x;
    Element held;
    __builtin_memcpy(&held, &y, 2);
    return held;
#endif
}

struct alignas(16) Words { unsigned at[4]; };

static __device__ __forceinline__ void load(const Element* from, float* to) {
#if WIDTH == 1
    to[0] = widened(*from);
#else
    const Words words = *(const Words*)from;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#if KIND == 0
        to[i] = __int_as_float((int)words.at[i]);
#else
        to[2 * i] = widened((Element)(words.at[i] & 0xffffu));
        to[2 * i + 1] = widened((Element)(words.at[i] >> 16));
#endif
    }
#endif
}

static __device__ __forceinline__ void store(Element* to, const float* from) {
#if WIDTH == 1
    *to = rounded(from[0]);
#else
    Words words;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#if KIND == 0
        words.at[i] = (unsigned)__float_as_int(from[i]);
#else
        words.at[i] = (unsigned)rounded(from[2 * i]) | (unsigned)rounded(from[2 * i + 1]) << 16;
#endif
    }
    *(Words*)to = words;
#endif
}

static __device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + power_of_two(-1.44269504f * x)); }

// --- where a thread works -------------------------------------------------------------------------------------------------

struct Place {
    int vectors, row, channel, begin, length;  // length: pixels of the chunk
    bool works;
    long long first;  // element of the sample's first pixel at the thread's first channel
};

static __device__ __forceinline__ Place place(int pixels, int channels, int slab, int rows, int size) {
    Place at;
    at.vectors = slab / WIDTH;
    at.row = threadIdx.x / at.vectors;
    at.channel = blockIdx.y * slab + threadIdx.x % at.vectors * WIDTH;
    at.begin = blockIdx.x * size;
    at.length = min(size, pixels - at.begin);
    at.works = at.row < rows;
    at.first = (long long)blockIdx.z * pixels * channels + at.channel;
    return at;
}

// Pixels of a chunk that a row of threads takes.
static __device__ __forceinline__ int taken(int length, int row, int rows) { return (length - row + rows - 1) / rows; }

static __device__ __forceinline__ float added(float x) {  // over a warp, the same for all of it
#pragma unroll
    for (int mask = 16; mask; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

// Where the threads of a block leave a number of one channel of the slab.
static __device__ __forceinline__ int slot(int channel, int row, int vectors) {
    return channel % WIDTH * THREADS + row * vectors + channel / WIDTH;
}

// --- forward --------------------------------------------------------------------------------------------------------------

// Mean and summed squared deviation of each chunk and group of input + shift.
extern "C" __global__ void __launch_bounds__(512) norm_sums(
    const void* input,  // (N, P, C)
    const void* shift,  // (N or 1, C), or none
    int shift_stride, int pixels, int channels, int groups, int slab, int rows, int size,
    float* partial) {  // (N, G, chunks, 2)
    __shared__ float means[THREADS * WIDTH], squares[THREADS * WIDTH];
    Place at = place(pixels, channels, slab, rows, size);
    float origin[WIDTH], sum[WIDTH], square[WIDTH];
    for (int i = 0; i < WIDTH; ++i) origin[i] = sum[i] = square[i] = 0;
    if (at.works && at.row < at.length) {
        const Element* from = (const Element*)input + at.first + (long long)at.begin * channels;
        load(from + (long long)at.row * channels, origin);
        int p = at.row;
        for (; p + 3 * rows < at.length; p += 4 * rows) {
            float x[4][WIDTH];
#pragma unroll
            for (int u = 0; u < 4; ++u) load(from + (long long)(p + u * rows) * channels, x[u]);
#pragma unroll
            for (int u = 0; u < 4; ++u)
#pragma unroll
                for (int i = 0; i < WIDTH; ++i) {
                    float d = x[u][i] - origin[i];
                    sum[i] += d;
                    square[i] += d * d;
                }
        }
        for (; p < at.length; p += rows) {
            float x[WIDTH];
            load(from + (long long)p * channels, x);
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) {
                float d = x[i] - origin[i];
                sum[i] += d;
                square[i] += d * d;
            }
        }
    }
    if (at.works) {
        float count = max(taken(at.length, at.row, rows), 1);
        for (int i = 0; i < WIDTH; ++i) {
            float more = shift ? widened(((const Element*)shift)[(long long)blockIdx.z * shift_stride + at.channel + i]) : 0.0f;
            means[i * THREADS + threadIdx.x] = origin[i] + sum[i] / count + more;
            squares[i * THREADS + threadIdx.x] = max(square[i] - sum[i] * (sum[i] / count), 0.0f);
        }
    }
    __syncthreads();
    int each = channels / groups, lane = threadIdx.x % 32;
    for (int g = threadIdx.x / 32; g < slab / each; g += blockDim.x / 32) {
        float sums = 0;
        for (int e = lane; e < rows * each; e += 32) {
            int row = e / each;
            sums += taken(at.length, row, rows) * means[slot(g * each + e % each, row, at.vectors)];
        }
        float mean = added(sums) / ((float)at.length * each), deviation = 0;
        for (int e = lane; e < rows * each; e += 32) {
            int row = e / each, s = slot(g * each + e % each, row, at.vectors);
            float d = means[s] - mean;
            deviation += squares[s] + taken(at.length, row, rows) * d * d;
        }
        deviation = added(deviation);
        if (lane == 0) {
            long long group = (long long)blockIdx.z * groups + blockIdx.y * (slab / each) + g;
            float* to = partial + 2 * (group * gridDim.x + blockIdx.x);
            to[0] = mean;
            to[1] = deviation;
        }
    }
}

// (input + shift) normalised, scaled and moved by the channel's parameters, and SiLU of it.
extern "C" __global__ void __launch_bounds__(512) norm_apply(
    const void* input, const void* shift, int shift_stride,
    const void* weight,    // (C,)
    const void* bias,      // (C,)
    const float* partial,  // (N, G, chunks, 2)
    int pixels, int channels, int groups, int slab, int rows, int size, float eps, int silu,
    float* moments,  // (N, G, 2): mean and 1 / standard deviation
    void* output) {  // (N, P, C)
    __shared__ float shared[2][GROUPS];
    int each = channels / groups, lane = threadIdx.x % 32, chunks = gridDim.x;
    for (int g = threadIdx.x / 32; g < slab / each; g += blockDim.x / 32) {
        long long group = (long long)blockIdx.z * groups + blockIdx.y * (slab / each) + g;
        const float* from = partial + 2 * group * chunks;
        float sums = 0, deviation = 0;
        for (int i = lane; i < chunks; i += 32) sums += (float)min(size, pixels - i * size) * from[2 * i];
        float mean = added(sums) / pixels;
        for (int i = lane; i < chunks; i += 32) {
            float d = from[2 * i] - mean;
            deviation += from[2 * i + 1] + (float)min(size, pixels - i * size) * each * d * d;
        }
        float variance = added(deviation) / ((float)pixels * each);
        if (lane == 0) {
            shared[0][g] = mean;
            shared[1][g] = 1 / sqrtf(variance + eps);
            if (blockIdx.x == 0) {
                moments[2 * group] = mean;
                moments[2 * group + 1] = shared[1][g];
            }
        }
    }
    __syncthreads();
    Place at = place(pixels, channels, slab, rows, size);
    if (!at.works) return;
    float centre[WIDTH], scale[WIDTH], offset[WIDTH];
    for (int i = 0; i < WIDTH; ++i) {
        int c = at.channel + i, g = (c - blockIdx.y * slab) / each;
        float more = shift ? widened(((const Element*)shift)[(long long)blockIdx.z * shift_stride + c]) : 0.0f;
        centre[i] = shared[0][g] - more;
        scale[i] = shared[1][g] * widened(((const Element*)weight)[c]);
        offset[i] = widened(((const Element*)bias)[c]);
    }
    long long begin = at.first + (long long)at.begin * channels;
#pragma unroll 4
    for (int p = at.row; p < at.length; p += rows) {
        float x[WIDTH];
        load((const Element*)input + begin + (long long)p * channels, x);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) x[i] = (x[i] - centre[i]) * scale[i] + offset[i];
        if (silu)
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) x[i] *= sigmoid(x[i]);
        store((Element*)output + begin + (long long)p * channels, x);
    }
}

// --- backward -------------------------------------------------------------------------------------------------------------

// What turns a thread's channels into normalised values: x - centre, times scale, plus offset.
struct Channels {
    float centre[WIDTH], scale[WIDTH], offset[WIDTH];
};

static __device__ __forceinline__ Channels channels_of(
    const Place& at, const void* shift, int shift_stride, const void* weight, const void* bias, const float* moments,
    int groups, int each) {
    Channels found;
    for (int i = 0; i < WIDTH; ++i) {
        int c = at.channel + i;
        const float* moment = moments + 2 * ((long long)blockIdx.z * groups + c / each);
        float more = shift ? widened(((const Element*)shift)[(long long)blockIdx.z * shift_stride + c]) : 0.0f;
        found.centre[i] = moment[0] - more;
        found.scale[i] = moment[1] * widened(((const Element*)weight)[c]);
        found.offset[i] = widened(((const Element*)bias)[c]);
    }
    return found;
}

// The gradient by what SiLU is taken of.
static __device__ __forceinline__ float through_silu(float gradient, float x) {
    float s = sigmoid(x);
    return gradient * s * (1 + x * (1 - s));
}

// Sums of each chunk and group: of the gradient by the normalised values, and of it times these.
extern "C" __global__ void __launch_bounds__(512) norm_backward_sums(
    const void* input, const void* shift, int shift_stride, const void* weight, const void* bias, const float* moments,
    const void* gradient,  // (N, P, C)
    int pixels, int channels, int groups, int slab, int rows, int size, int silu,
    float* partial) {  // (N, G, chunks, 2)
    __shared__ float plain[THREADS * WIDTH], weighted[THREADS * WIDTH];
    int each = channels / groups, lane = threadIdx.x % 32;
    Place at = place(pixels, channels, slab, rows, size);
    if (at.works) {
        Channels of = channels_of(at, shift, shift_stride, weight, bias, moments, groups, each);
        float sum[WIDTH], product[WIDTH];
        for (int i = 0; i < WIDTH; ++i) sum[i] = product[i] = 0;
        long long begin = at.first + (long long)at.begin * channels;
#pragma unroll 2
        for (int p = at.row; p < at.length; p += rows) {
            float x[WIDTH], d[WIDTH];
            load((const Element*)input + begin + (long long)p * channels, x);
            load((const Element*)gradient + begin + (long long)p * channels, d);
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) x[i] -= of.centre[i];
            if (silu)
#pragma unroll
                for (int i = 0; i < WIDTH; ++i) d[i] = through_silu(d[i], x[i] * of.scale[i] + of.offset[i]);
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) {
                sum[i] += d[i];
                product[i] += d[i] * x[i];
            }
        }
        for (int i = 0; i < WIDTH; ++i) {
            int c = at.channel + i;
            plain[i * THREADS + threadIdx.x] = sum[i] * widened(((const Element*)weight)[c]);
            weighted[i * THREADS + threadIdx.x] = product[i] * of.scale[i];
        }
    }
    __syncthreads();
    for (int g = threadIdx.x / 32; g < slab / each; g += blockDim.x / 32) {
        float sums = 0, products = 0;
        for (int e = lane; e < rows * each; e += 32) {
            int s = slot(g * each + e % each, e / each, at.vectors);
            sums += plain[s];
            products += weighted[s];
        }
        sums = added(sums);
        products = added(products);
        if (lane == 0) {
            long long group = (long long)blockIdx.z * groups + blockIdx.y * (slab / each) + g;
            float* to = partial + 2 * (group * gridDim.x + blockIdx.x);
            to[0] = sums;
            to[1] = products;
        }
    }
}

// The gradient by the input: with xh normalised and d the gradient by it, (d - mean(d) - xh mean(d xh)) / standard deviation,
// and the gradient that comes beside the norm.
extern "C" __global__ void __launch_bounds__(512) norm_backward_apply(
    const void* input, const void* shift, int shift_stride, const void* weight, const void* bias, const float* moments,
    const void* gradient,
    const void* beside,  // (N, P, C), or none
    const float* partial, int pixels, int channels, int groups, int slab, int rows, int size, int silu, void* output) {
    __shared__ float shared[2][GROUPS];
    int each = channels / groups, lane = threadIdx.x % 32, chunks = gridDim.x;
    for (int g = threadIdx.x / 32; g < slab / each; g += blockDim.x / 32) {
        long long group = (long long)blockIdx.z * groups + blockIdx.y * (slab / each) + g;
        const float* from = partial + 2 * group * chunks;
        float sums = 0, products = 0;
        for (int i = lane; i < chunks; i += 32) {
            sums += from[2 * i];
            products += from[2 * i + 1];
        }
        sums = added(sums);
        products = added(products);
        if (lane == 0) {
            float reciprocal = moments[2 * group + 1], count = (float)pixels * each;
            shared[0][g] = reciprocal * (sums / count);
            shared[1][g] = reciprocal * reciprocal * (products / count);
        }
    }
    __syncthreads();
    Place at = place(pixels, channels, slab, rows, size);
    if (!at.works) return;
    Channels of = channels_of(at, shift, shift_stride, weight, bias, moments, groups, each);
    float level[WIDTH], slope[WIDTH];
    for (int i = 0; i < WIDTH; ++i) {
        int g = (at.channel + i - blockIdx.y * slab) / each;
        level[i] = shared[0][g];
        slope[i] = shared[1][g];
    }
    long long begin = at.first + (long long)at.begin * channels;
#pragma unroll 2
    for (int p = at.row; p < at.length; p += rows) {
        float x[WIDTH], d[WIDTH];
        load((const Element*)input + begin + (long long)p * channels, x);
        load((const Element*)gradient + begin + (long long)p * channels, d);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) x[i] -= of.centre[i];
        if (silu)
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) d[i] = through_silu(d[i], x[i] * of.scale[i] + of.offset[i]);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) d[i] = d[i] * of.scale[i] - (level[i] + x[i] * slope[i]);
        if (beside) {
            load((const Element*)beside + begin + (long long)p * channels, x);
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) d[i] += x[i];
        }
        store((Element*)output + begin + (long long)p * channels, d);
    }
}

// --- residuals ------------------------------------------------------------------------------------------------------------

// (a + b + bias) * scale, one thread a vector.
extern "C" __global__ void residual_sum(
    const void* a, const void* b, const void* bias, long long vectors, int channels, float scale, void* output) {
    long long v = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (v >= vectors) return;
    int channel = (int)(v * WIDTH % channels);
    float x[WIDTH], y[WIDTH];
    load((const Element*)a + v * WIDTH, x);
    load((const Element*)b + v * WIDTH, y);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) x[i] = (x[i] + y[i] + widened(((const Element*)bias)[channel + i])) * scale;
    store((Element*)output + v * WIDTH, x);
}
