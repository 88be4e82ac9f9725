// Blocks of one cluster: their barrier, and stores to each other's shared memory (sm_90 and newer). Below sm_90 every
// block is a cluster of its own.
#pragma once

#include "async_copy.cuh"
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

// The two halves of a barrier of all threads of a cluster, which orders nothing: it says that all have come so far.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// An address in the shared memory of a block of the cluster, which must have started and not ended.
struct PeerPointer {
    unsigned address;

    __device__ __forceinline__ PeerPointer operator+(int bytes) const {
        return {address + static_cast<unsigned>(bytes)};
    }
};

// Where `shared` lies in the block `rank`; below sm_90 that is this one.
__device__ __forceinline__ PeerPointer peer_pointer(void* shared, unsigned rank) {
    unsigned address = shared_address(shared);
#if __CUDA_ARCH__ >= 900
    asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(rank));
#endif
    return {address};
}

// Store, in no order with other stores, and count 8 bytes at a barrier of the same block, which then says that they are
// there. 8-byte aligned.
__device__ __forceinline__ void store_peer8(PeerPointer to, PeerPointer barrier, float2 value) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to.address),
        "f"(value.x), "f"(value.y), "r"(barrier.address)
        : "memory");
#else
    asm volatile("trap;");
#endif
}

// Copy `bytes`, a multiple of 16, and count them at a barrier of the same block. The source was written before a
// bulk_copy_fence and a barrier.
__device__ __forceinline__ void copy_peer_bulk(PeerPointer to, const void* shared, unsigned bytes, PeerPointer barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     to.address),
                 "r"(shared_address(shared)), "r"(bytes), "r"(barrier.address)
                 : "memory");
#else
    asm volatile("trap;");
#endif
}
