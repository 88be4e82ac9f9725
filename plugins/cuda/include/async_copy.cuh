// Copies from global to shared memory that run beside the arithmetic: cp.async groups (sm_80 and newer), and bulk copies
// that complete an mbarrier (sm_90 and newer). Addresses and sizes are multiples of 16 bytes.
#pragma once

#include "shared.cuh"

// Whether copy_bulk, mbarrier_arrive_expect and prefetch_l2_bulk's bulk form exist; where they do not, calling the first two traps.
#if __CUDA_ARCH__ >= 900
constexpr bool HAS_BULK_COPY = true;
#else
constexpr bool HAS_BULK_COPY = false;
#endif

// 16 bytes, past L1.
__device__ __forceinline__ void copy_async16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global)
                 : "memory");
}

// 16 bytes, or 16 zero bytes where `valid` is false; `global` is not read then.
__device__ __forceinline__ void copy_async16_or_zero(void* shared, const void* global, bool valid) {
    const unsigned bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(bytes)
                 : "memory");
}

// Close the group of this thread's copies since the last commit.
__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Wait until at most N of this thread's latest groups are still under way. Other threads see the data after a barrier.
template <int N>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// In shared memory, 8-byte aligned. A phase ends when all expected arrivals and bytes have come; phases alternate parity 0, 1, 0 ...
struct Mbarrier {
    unsigned long long state;
};

// By one thread, followed by a block barrier before any other thread uses it.
__device__ __forceinline__ void mbarrier_init(Mbarrier* barrier, unsigned count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ __forceinline__ void mbarrier_arrive(Mbarrier* barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(barrier))
                 : "memory");
}

// Arrive, and add `bytes` to what this phase waits for.
__device__ __forceinline__ void mbarrier_arrive_expect(Mbarrier* barrier, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
#else
    asm volatile("trap;");
#endif
}

// Whether the phase of that parity has ended (a phase that has not begun counts as not ended).
__device__ __forceinline__ bool mbarrier_test(Mbarrier* barrier, unsigned parity) {
    unsigned done;
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
#else
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
#endif
    return done != 0;
}

// Wait until the phase of that parity has ended.
__device__ __forceinline__ void mbarrier_wait(Mbarrier* barrier, unsigned parity) {
    while (!mbarrier_test(barrier, parity)) {
    }
}

// This thread arrives once its earlier copy_async16 have landed; the arrival is one of the barrier's count.
__device__ __forceinline__ void copy_async_arrive(Mbarrier* barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// One thread copies `bytes`; they count towards the barrier's expected bytes.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, unsigned bytes, Mbarrier* barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
#else
    asm volatile("trap;");
#endif
}

// copy_bulk of data that is read once: L2 evicts it first.
__device__ __forceinline__ void copy_bulk_stream(void* shared, const void* global, unsigned bytes, Mbarrier* barrier) {
#if __CUDA_ARCH__ >= 900
    unsigned long long policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
            shared_address(shared)),
        "l"(global), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
        : "memory");
#else
    asm volatile("trap;");
#endif
}

// Order this thread's earlier ordinary accesses of shared memory before later bulk copies to it.
__device__ __forceinline__ void bulk_copy_fence() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Bring the line that holds `global` into L2.
__device__ __forceinline__ void prefetch_l2(const void* global) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

// Bring `bytes` into L2, by one thread.
__device__ __forceinline__ void prefetch_l2_bulk(const void* global, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
#else
    for (unsigned offset = 0; offset < bytes; offset += 128) {
        prefetch_l2(static_cast<const char*>(global) + offset);
    }
#endif
}
