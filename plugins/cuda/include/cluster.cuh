// Blocks of one cluster: their barrier, and stores to each other's shared memory (sm_90 and newer). Below sm_90 every
// block is a cluster of its own.
#pragma once

#include "warp.cuh"

#if __CUDA_ARCH__ >= 900
constexpr bool HAS_CLUSTERS = true;
#else
constexpr bool HAS_CLUSTERS = false;
#endif

// Blocks of this block's cluster; blocks with consecutive indices are in one.
__device__ __forceinline__ unsigned cluster_size() {
    unsigned size = 1;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
    return size;
}

// This block's index in its cluster.
__device__ __forceinline__ unsigned cluster_rank() {
    unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
}

// The two halves of a barrier of all threads of a cluster: what a thread wrote before it arrived, to its own shared
// memory or another block's, is seen by all after they have waited.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}

// Arrive with nothing to be seen: the barrier only says that all have come so far.
__device__ __forceinline__ void cluster_arrive_relaxed() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
    block_sync();
#endif
}

// Store to where `shared` lies in the block `rank` of the cluster, which must have started and not ended. 8-byte aligned.
__device__ __forceinline__ void store_peer8(void* shared, unsigned rank, float2 value) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{ .reg .u32 peer; mapa.shared::cluster.u32 peer, %0, %1; st.shared::cluster.v2.f32 [peer], {%2, %3}; }" ::"r"(
            shared_address(shared)),
        "r"(rank), "f"(value.x), "f"(value.y)
        : "memory");
#else
    *static_cast<float2*>(shared) = value;
#endif
}
