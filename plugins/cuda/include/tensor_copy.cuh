// Copies of boxes of a matrix in global memory to swizzled tiles in shared memory, as wgmma.cuh's products take them, by the
// tensor copy engine: sm_90 and newer.
#pragma once

#include "async_copy.cuh"

// What plugins/cuda/tensor_map.py makes: a tensor of 2-byte elements and the size of a box of it.
struct alignas(64) TensorMap {
    unsigned char bytes[128];
};

// One thread copies the box whose first element is (row, column) to 1024-byte-aligned rows of 128 bytes; the bytes count
// towards the barrier's expected bytes. `map` is in the kernel's parameters.
__device__ __forceinline__ void copy_box(void* shared, const TensorMap* map, int row, int column, Mbarrier* barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            shared_address(shared)),
        "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
        : "memory");
#else
    asm volatile("trap;");
#endif
}

// Where a box of a tensor of five dimensions begins, the innermost first.
struct BoxCorner {
    int at[5];
};

// How long L2 keeps what is copied.
struct CachePolicy {
    unsigned long long bits;
};

__device__ __forceinline__ CachePolicy evict_first() {
    CachePolicy policy = {0};
#if __CUDA_ARCH__ >= 900
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy.bits));
#endif
    return policy;
}

__device__ __forceinline__ CachePolicy evict_normal() {
    CachePolicy policy = {0};
#if __CUDA_ARCH__ >= 900
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy.bits));
#endif
    return policy;
}

// The same of such a tensor. What lies outside of it is zero, and its bytes count as well.
__device__ __forceinline__ void copy_box(
    void* shared, const TensorMap* map, const BoxCorner& first, Mbarrier* barrier, CachePolicy policy) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%2, %3, %4, %5, %6}], [%7], %8;" ::"r"(shared_address(shared)),
        "l"(map), "r"(first.at[0]), "r"(first.at[1]), "r"(first.at[2]), "r"(first.at[3]), "r"(first.at[4]),
        "r"(shared_address(barrier)), "l"(policy.bits)
        : "memory");
#else
    asm volatile("trap;");
#endif
}

// Bring the map itself near, so that its first copy does not wait for it.
__device__ __forceinline__ void prefetch_map(const TensorMap* map) {
#if __CUDA_ARCH__ >= 900
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}
