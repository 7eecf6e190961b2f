// SSIM over 7 x 7 windows on the graphics card, and its derivative: what core/metrics/perceptual.py defines.
//
//   ssim        a block takes SIDE x SIDE windows of one picture, colour by colour: sums along rows, then along columns
//   ssim_back   a block takes SIDE x SIDE pixels: each gathers what the windows that it lies in have to say
//
// Every sum is taken in one order: the same input gives the same bits.

#define SIDE 16
#define REACH 7
#define HALO (SIDE + REACH - 1)
#define AREA ((float)(REACH * REACH))

// Pictures (N, H, W, 3); windows (N, H - 6, W - 6), of which each is named by its upper left pixel.
extern "C" __global__ void __launch_bounds__(SIDE * SIDE) ssim(
    const float* picture, const float* other, int height, int width,
    float* partial,     // of each block, the sum of its windows' values
    float* gradient) {  // (3, N, H - 6, W - 6, 3) by the means of x, x x and x y, or none
    __shared__ float a[HALO * HALO], b[HALO * HALO], rows[5][HALO * SIDE], sums[SIDE * SIDE];
    int high = height - REACH + 1, wide = width - REACH + 1;
    int across = (wide + SIDE - 1) / SIDE, down = (high + SIDE - 1) / SIDE;
    int tile = blockIdx.x % (across * down), which = blockIdx.x / (across * down);
    int left = tile % across * SIDE, top = tile / across * SIDE;
    int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE, row = top + y, column = left + x;
    long long first = (long long)which * height * width;
    long long window = (((long long)which * high + row) * wide + column) * 3;
    long long part = (long long)(gridDim.x / (across * down)) * high * wide * 3;
    float total = 0;
    for (int c = 0; c < 3; ++c) {
        __syncthreads();
        for (int i = threadIdx.x; i < HALO * HALO; i += SIDE * SIDE) {
            int v = top + i / HALO, u = left + i % HALO;
            bool inside = v < height && u < width;
            long long at = (first + (long long)v * width + u) * 3 + c;
            a[i] = inside ? picture[at] : 0;
            b[i] = inside ? other[at] : 0;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < HALO * SIDE; i += SIDE * SIDE) {
            int begin = i / SIDE * HALO + i % SIDE;
            float sum[5] = {0, 0, 0, 0, 0};
            for (int k = begin; k < begin + REACH; ++k) {
                sum[0] += a[k], sum[1] += b[k], sum[2] += a[k] * a[k], sum[3] += b[k] * b[k], sum[4] += a[k] * b[k];
            }
            for (int s = 0; s < 5; ++s) rows[s][i] = sum[s];
        }
        __syncthreads();
        if (row < high && column < wide) {
            float mean[5] = {0, 0, 0, 0, 0};
            for (int k = 0; k < REACH; ++k)
                for (int s = 0; s < 5; ++s) mean[s] += rows[s][(y + k) * SIDE + x];
            for (int s = 0; s < 5; ++s) mean[s] /= AREA;
            float mx = mean[0], my = mean[1];
            float a1 = 2 * mx * my + 1e-4f, a2 = 2 * (mean[4] - mx * my) + 9e-4f;
            float b1 = mx * mx + my * my + 1e-4f, b2 = (mean[2] - mx * mx) + (mean[3] - my * my) + 9e-4f;
            float value = a1 * a2 / (b1 * b2);
            total += value;
            if (gradient) {
                gradient[window + c] = 2 * my * (a2 - a1) / (b1 * b2) + 2 * mx * value * (1 / b2 - 1 / b1);
                gradient[part + window + c] = -value / b2;
                gradient[2 * part + window + c] = 2 * a1 / (b1 * b2);
            }
        }
    }
    sums[threadIdx.x] = total;
    for (int half = SIDE * SIDE / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) partial[blockIdx.x] = sums[0];
}

extern "C" __global__ void __launch_bounds__(SIDE * SIDE) ssim_back(
    const float* picture, const float* other, const float* gradient, int pictures, int height, int width,
    float* d_picture) {  // (N, H, W, 3), of the mean over windows and colours
    __shared__ float cells[3][HALO * HALO], rows[3][HALO * SIDE];
    int high = height - REACH + 1, wide = width - REACH + 1;
    int across = (width + SIDE - 1) / SIDE, down = (height + SIDE - 1) / SIDE;
    int tile = blockIdx.x % (across * down), which = blockIdx.x / (across * down);
    int left = tile % across * SIDE, top = tile / across * SIDE;
    int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE, row = top + y, column = left + x;
    long long part = (long long)pictures * high * wide * 3;
    long long at = (((long long)which * height + row) * width + column) * 3;
    float factor = 1 / (AREA * part);
    for (int c = 0; c < 3; ++c) {
        __syncthreads();
        for (int i = threadIdx.x; i < HALO * HALO; i += SIDE * SIDE) {
            int v = top - REACH + 1 + i / HALO, u = left - REACH + 1 + i % HALO;
            bool inside = v >= 0 && u >= 0 && v < high && u < wide;
            long long window = (((long long)which * high + v) * wide + u) * 3 + c;
            for (int s = 0; s < 3; ++s) cells[s][i] = inside ? gradient[s * part + window] : 0;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < HALO * SIDE; i += SIDE * SIDE) {
            int begin = i / SIDE * HALO + i % SIDE;
            for (int s = 0; s < 3; ++s) {
                float sum = 0;
                for (int k = begin; k < begin + REACH; ++k) sum += cells[s][k];
                rows[s][i] = sum;
            }
        }
        __syncthreads();
        if (row < height && column < width) {
            float sum[3] = {0, 0, 0};
            for (int k = 0; k < REACH; ++k)
                for (int s = 0; s < 3; ++s) sum[s] += rows[s][(y + k) * SIDE + x];
            d_picture[at + c] = factor * (sum[0] + 2 * picture[at + c] * sum[1] + other[at + c] * sum[2]);
        }
    }
}
