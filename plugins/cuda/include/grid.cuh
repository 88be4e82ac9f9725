// What blocks of one grid, and grids that follow each other, agree on through global memory.
#pragma once

#include "warp.cuh"

// Wait until the grid this one depends on has finished and its writes are visible (programmatic dependent launch).
// Before it, only read what no earlier kernel of the stream writes, such as weights. A no-op below sm_90.
__device__ __forceinline__ void grid_dependency_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The same, once `computed` is known, which is never INT_MAX: left alone, the assembler moves all that is not needed
// before the wait behind it, where it costs time.
__device__ __forceinline__ void grid_dependency_wait_after(int computed) {
#if __CUDA_ARCH__ >= 900
    if (computed == 0x7fffffff) asm volatile("trap;");
#endif
    grid_dependency_wait();
}

// Let the next grid of the stream start; it still waits in grid_dependency_wait. A no-op below sm_90.
__device__ __forceinline__ void grid_dependency_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// A load that is ordered before this thread's later accesses, at the scope of the GPU.
__device__ __forceinline__ unsigned load_acquire(const unsigned* global) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(global) : "memory");
    return value;
}

// Add after this thread's earlier accesses (and those a barrier ordered before it) are visible; returns the old value.
__device__ __forceinline__ unsigned add_release(unsigned* global, unsigned value) {
    unsigned old;
    asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;" : "=r"(old) : "l"(global), "r"(value) : "memory");
    return old;
}

// Add, ordered both ways: the last block to arrive reads what the others wrote before theirs.
__device__ __forceinline__ unsigned add_acquire_release(unsigned* global, unsigned value) {
    unsigned old;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(old) : "l"(global), "r"(value) : "memory");
    return old;
}

// A barrier of all `num_blocks` blocks of a cooperative launch, by all threads of each block.
// `counter` is zero before its first use and needs no reset: the first block's addend flips bit 31 once all have come,
// and the low bits return to zero.
__device__ __forceinline__ void grid_barrier(unsigned* counter, unsigned num_blocks) {
    block_sync();
    if (threadIdx.x == 0) {
        const unsigned addend = blockIdx.x + blockIdx.y + blockIdx.z == 0 ? 0x80000000u - (num_blocks - 1) : 1u;
        const unsigned old = add_release(counter, addend);
        while (((load_acquire(counter) ^ old) & 0x80000000u) == 0) {
        }
    }
    block_sync();
}
