// The image loss of core/objectives/front.py on the graphics card: squared errors over an image pyramid and their gradient.
//
// A block takes a tile of SIDE x SIDE pixels of one picture with all levels of its pyramid, so no level is ever written out.
// Partial sums are added in the order of the blocks: the same input gives the same bits.

#define SIDE 16
#define LEVELS 5

extern "C" __global__ void pyramid_loss(
    const float* color, const float* alpha, const float* target, const float* mask, int pictures, int height, int width,
    int levels, float mask_weight, float* partial, float* d_color, float* d_alpha) {
    __shared__ float cells[4][2 * SIDE * SIDE];  // level by level, each a quarter of the one before
    __shared__ float sums[SIDE * SIDE];
    int across = (width + SIDE - 1) / SIDE, down = (height + SIDE - 1) / SIDE;
    int tile = blockIdx.x % (across * down), picture = blockIdx.x / (across * down);
    int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    int column = tile % across * SIDE + x, row = tile / across * SIDE + y;
    bool inside = column < width && row < height;
    long long pixel = ((long long)picture * height + row) * width + column;
    float difference[4] = {0, 0, 0, 0};
    if (inside) {
        for (int c = 0; c < 3; ++c) difference[c] = color[3 * pixel + c] - target[3 * pixel + c];
        difference[3] = alpha[pixel] - mask[pixel];
    }
    for (int c = 0; c < 4; ++c) cells[c][threadIdx.x] = difference[c];
    float sum = 0, gradient[4] = {0, 0, 0, 0}, doubled = 1, area = 1;
    int begin = 0, side = SIDE, high = height, wide = width;
    for (int level = 0; level < levels; ++level) {
        __syncthreads();
        float factor = fminf(doubled, 8.0f) / ((float)pictures * high * wide);
        int i = y >> level, j = x >> level;
        bool whole = (row >> level) < high && (column >> level) < wide;  // what is left over at the edge has no cell
        if (whole) {
            float square = 0;
            bool counts = (y & ((1 << level) - 1)) == 0 && (x & ((1 << level) - 1)) == 0;
            for (int c = 0; c < 4; ++c) {
                float value = cells[c][begin + i * side + j], weight = factor * (c < 3 ? 1.0f / 3.0f : mask_weight);
                square += weight * value * value;
                gradient[c] += 2 * weight * value * area;
            }
            if (counts) sum += square;
        }
        int next = begin + side * side, half = side / 2;
        if (level + 1 < levels && threadIdx.x < half * half) {
            int p = threadIdx.x / half, q = threadIdx.x % half, first = begin + 2 * p * side + 2 * q;
            for (int c = 0; c < 4; ++c)
                cells[c][next + threadIdx.x] = 0.25f * (cells[c][first] + cells[c][first + 1] + cells[c][first + side] +
                                                        cells[c][first + side + 1]);
        }
        begin = next;
        side = half;
        high /= 2;
        wide /= 2;
        doubled *= 2;
        area *= 0.25f;
    }
    if (inside) {
        for (int c = 0; c < 3; ++c) d_color[3 * pixel + c] = gradient[c];
        d_alpha[pixel] = gradient[3];
    }
    sums[threadIdx.x] = sum;
    for (int half = SIDE * SIDE / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) partial[blockIdx.x] = sums[0];
}

// One block.
extern "C" __global__ void add_up(const float* partial, int count, float* total) {
    __shared__ float sums[256];
    float sum = 0;
    for (int i = threadIdx.x; i < count; i += 256) sum += partial[i];
    sums[threadIdx.x] = sum;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) total[0] = sums[0];
}
