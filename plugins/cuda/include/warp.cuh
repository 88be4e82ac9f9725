// Collectives of a warp (all 32 lanes take part, always) and barriers of a block.
#pragma once

#include "shared.cuh"

constexpr unsigned WARP_SIZE = 32;      // lanes
constexpr unsigned ALL_LANES = 0xffffffffu;

// For blocks of one dimension, which every kernel here uses.
__device__ __forceinline__ unsigned lane_id() {
    return threadIdx.x % WARP_SIZE;
}

__device__ __forceinline__ unsigned warp_id() {
    return threadIdx.x / WARP_SIZE;
}

// The value of lane (own lane ^ lane_mask). T: a 4- or 8-byte arithmetic type.
template <class T>
__device__ __forceinline__ T shfl_xor(T value, int lane_mask) {
    return __shfl_xor_sync(ALL_LANES, value, lane_mask);
}

// The value of the named lane.
template <class T>
__device__ __forceinline__ T shfl(T value, int lane) {
    return __shfl_sync(ALL_LANES, value, lane);
}

// The value of lane (own lane - delta); lanes below delta keep their own.
template <class T>
__device__ __forceinline__ T shfl_up(T value, unsigned delta) {
    return __shfl_up_sync(ALL_LANES, value, delta);
}

// Bit i: lane i's predicate. (nvcc has a `ballot` of its own, of the past.)
__device__ __forceinline__ unsigned warp_ballot(bool predicate) {
    return __ballot_sync(ALL_LANES, predicate);
}

__device__ __forceinline__ void warp_sync() {
    __syncwarp();
}

// Every lane gets the sum; a butterfly, so the order of additions is fixed and the lanes agree bit for bit.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value += shfl_xor(value, mask);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value = fmaxf(value, shfl_xor(value, mask));
    return value;
}

// Of unsigned values, in one instruction.
__device__ __forceinline__ unsigned warp_max(unsigned value) {
    return __reduce_max_sync(ALL_LANES, value);
}

__device__ __forceinline__ unsigned warp_min(unsigned value) {
    return __reduce_min_sync(ALL_LANES, value);
}

__device__ __forceinline__ void block_sync() {
    __syncthreads();
}

// A barrier of `threads` threads (whole warps) of the block; id 1 to 15, since 0 is block_sync's.
__device__ __forceinline__ void named_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Count at a named barrier without waiting: the producer's half of named_sync.
__device__ __forceinline__ void named_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
