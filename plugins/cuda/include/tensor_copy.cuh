// Copies of boxes of a matrix in global memory to swizzled tiles in shared memory, as wgmma.cuh's products take them, by the
// tensor copy engine: sm_90 and newer.
#pragma once

#include "async_copy.cuh"

// What plugins/cuda/tensor_map.py makes: a matrix of 2-byte elements and the size of a box of it.
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
