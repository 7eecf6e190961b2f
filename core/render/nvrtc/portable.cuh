// What the kernels need beyond plain CUDA C++, the same for NVRTC, HIPRTC and the tests' host shim.
// A warp here is a group of 32 consecutive threads, on hardware with wavefronts of 64 as well.
#pragma once

#define FULL 0xffffffffu

#if defined(__HIPCC_RTC__) || defined(__HIP_PLATFORM_AMD__)
static __device__ __forceinline__ unsigned ballot(bool p) {
    return (unsigned)(__ballot(p) >> (__lane_id() & 32));
}
static __device__ __forceinline__ bool any(bool p) { return ballot(p) != 0; }
template <class T> static __device__ __forceinline__ T shuffle(T x, int lane) { return __shfl(x, lane, 32); }
template <class T> static __device__ __forceinline__ T shuffle_xor(T x, int mask) { return __shfl_xor(x, mask, 32); }
template <class T> static __device__ __forceinline__ T shuffle_up(T x, int by) { return __shfl_up(x, by, 32); }
static __device__ __forceinline__ void sync_warp() {
    __threadfence_block();
    __builtin_amdgcn_wave_barrier();
}
static __device__ __forceinline__ float power_of_two(float x) { return __builtin_amdgcn_exp2f(x); }
#else
static __device__ __forceinline__ unsigned ballot(bool p) { return __ballot_sync(FULL, p); }
static __device__ __forceinline__ bool any(bool p) { return __any_sync(FULL, p); }
template <class T> static __device__ __forceinline__ T shuffle(T x, int lane) { return __shfl_sync(FULL, x, lane); }
template <class T> static __device__ __forceinline__ T shuffle_xor(T x, int mask) { return __shfl_xor_sync(FULL, x, mask); }
template <class T> static __device__ __forceinline__ T shuffle_up(T x, int by) { return __shfl_up_sync(FULL, x, by); }
static __device__ __forceinline__ void sync_warp() { __syncwarp(); }
#if defined(__CUDACC_RTC__)
static __device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#else
static __device__ __forceinline__ float power_of_two(float x) { return exp2f(x); }
#endif
#endif

typedef unsigned long long u64;
