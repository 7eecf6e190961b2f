// A host's stand-in for the device side of CUDA C++: the same kernels compiled by the system's C++ compiler and run on one core.
//
// Each thread of a block is a fiber. Fibers take turns at barriers and warp operations only, which wait until all of the block,
// or all of the warp's 32, have come; blocks run one after the other.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__

using std::max;
using std::min;

struct dim3 { unsigned x, y, z; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct int2 { int x, y; };
struct int4 { int x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }

namespace shim {

const int MOST = 1024;
const size_t STACK = 96 << 10;

struct Barrier {
    int members = 0, arrived = 0;
    unsigned long turn = 0;
};

struct Fiber {
    ucontext_t start;
    jmp_buf state;
    bool begun, done;
    dim3 thread;
    int lane, parity;
    Barrier* warp;
    uint64_t (*slots)[32];  // of the warp, [2][32]
};

static Fiber fibers[MOST];
static Barrier block_barrier, warp_barriers[MOST / 32];
static uint64_t warp_slots[MOST / 32][2][32];
static Fiber* current;
static int running;
static dim3 block_index, block_size, grid_size;
static jmp_buf scheduler;
static void (*body)();
static std::vector<char> stacks;

static void yield() {
    Fiber* self = current;
    if (!_setjmp(self->state)) _longjmp(scheduler, 1);
}

static void leave(Barrier& barrier) {  // a thread that returns no longer counts
    barrier.members--;
    if (barrier.members > 0 && barrier.arrived == barrier.members) barrier.arrived = 0, barrier.turn++;
}

static void wait(Barrier& barrier) {
    unsigned long turn = barrier.turn;
    if (++barrier.arrived == barrier.members) barrier.arrived = 0, barrier.turn++;
    while (barrier.turn == turn) yield();
}

static void enter() {
    body();
    current->done = true;
    running--;
    leave(block_barrier);
    leave(*current->warp);
    _longjmp(scheduler, 1);
}

template <class T> static uint64_t bits(T x) {
    uint64_t held = 0;
    memcpy(&held, &x, sizeof(T));
    return held;
}

template <class T> static T unbits(uint64_t held) {
    T x;
    memcpy(&x, &held, sizeof(T));
    return x;
}

// Every lane's value, valid until the second exchange from here.
static uint64_t* exchange(uint64_t x) {
    uint64_t* slots = current->slots[current->parity];
    current->parity ^= 1;
    slots[current->lane] = x;
    wait(*current->warp);
    return slots;
}

static void run_block(int threads) {
    stacks.resize(STACK * MOST);
    block_barrier = Barrier{threads, 0, 0};
    for (int i = 0; i < threads; i++) {
        Fiber& f = fibers[i];
        f.begun = f.done = false;
        f.thread = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
        f.lane = i % 32, f.parity = 0;
        f.warp = &warp_barriers[i / 32], f.slots = warp_slots[i / 32];
        if (f.lane == 0) *f.warp = Barrier{min(32, threads - i), 0, 0};
    }
    running = threads;
    while (running)
        for (int i = 0; i < threads; i++) {
            current = &fibers[i];
            if (current->done || _setjmp(scheduler)) continue;
            if (current->begun) _longjmp(current->state, 1);
            current->begun = true;
            getcontext(&current->start);
            current->start.uc_stack.ss_sp = &stacks[i * STACK];
            current->start.uc_stack.ss_size = STACK;
            current->start.uc_link = nullptr;
            makecontext(&current->start, enter, 0);
            setcontext(&current->start);
        }
}

static void run(dim3 grid, dim3 block, void (*kernel)()) {
    grid_size = grid, block_size = block, body = kernel;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                block_index = {x, y, z};
                run_block(block.x * block.y * block.z);
            }
}

}  // namespace shim

#define threadIdx (shim::current->thread)
#define blockIdx shim::block_index
#define blockDim shim::block_size
#define gridDim shim::grid_size

static inline void __syncthreads() { shim::wait(shim::block_barrier); }
static inline void __syncwarp(unsigned = ~0u) { shim::wait(*shim::current->warp); }
static inline unsigned __ballot_sync(unsigned, bool p) {
    uint64_t* all = shim::exchange(p);
    unsigned found = 0;
    for (int i = 0; i < 32; i++) found |= (unsigned)(all[i] & 1) << i;
    return found;
}
static inline bool __any_sync(unsigned mask, bool p) { return __ballot_sync(mask, p) != 0; }
static inline bool __all_sync(unsigned mask, bool p) { return __ballot_sync(mask, p) == ~0u; }
template <class T> static inline T __shfl_sync(unsigned, T x, int lane) {
    return shim::unbits<T>(shim::exchange(shim::bits(x))[lane & 31]);
}
template <class T> static inline T __shfl_xor_sync(unsigned, T x, int mask) {
    int lane = shim::current->lane ^ mask;
    return shim::unbits<T>(shim::exchange(shim::bits(x))[lane]);
}
template <class T> static inline T __shfl_up_sync(unsigned, T x, int by) {
    int lane = shim::current->lane;
    return shim::unbits<T>(shim::exchange(shim::bits(x))[lane >= by ? lane - by : lane]);
}
template <class T> static inline T __shfl_down_sync(unsigned, T x, int by) {
    int lane = shim::current->lane;
    return shim::unbits<T>(shim::exchange(shim::bits(x))[lane + by < 32 ? lane + by : lane]);
}
template <class T, class U> static inline T atomicAdd(T* at, U x) { T old = *at; *at = old + (T)x; return old; }
template <class T, class U> static inline T atomicOr(T* at, U x) { T old = *at; *at = old | (T)x; return old; }
template <class T, class U> static inline T atomicMin(T* at, U x) { T old = *at; *at = min(old, (T)x); return old; }
template <class T, class U> static inline T atomicMax(T* at, U x) { T old = *at; *at = max(old, (T)x); return old; }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fsub_rn(float x, float y) { return x - y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline int __float_as_int(float x) { return shim::unbits<int>(shim::bits(x)); }
static inline float __int_as_float(int x) { return shim::unbits<float>(shim::bits(x)); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
template <class T> static inline T __ldg(const T* at) { return *at; }
