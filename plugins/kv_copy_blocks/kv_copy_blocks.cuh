// Whole blocks of the cache over others, in all layers at once: storage (2 L, num_blocks, block bytes).
//
// Grid (C, 2 L): a block of threads copies one block of one layer's K or V, 16 bytes a thread at a time. Any dtype.
#pragma once

#include "element.cuh"
#include "grid.cuh"

struct KvCopyBlocksParams {
    unsigned char* storage;
    const long long* src;  // (C,)
    const long long* dst;
    long long layer_bytes;
    long long block_bytes;  // a multiple of 16
};
static_assert(sizeof(KvCopyBlocksParams) == 5 * 8, "mirrored in cuda.py");

__device__ __forceinline__ void copy_block(const KvCopyBlocksParams& params) {
    grid_dependency_launch();
    grid_dependency_wait();
    unsigned char* layer = params.storage + blockIdx.y * params.layer_bytes;
    const unsigned char* source = layer + params.src[blockIdx.x] * params.block_bytes;
    unsigned char* target = layer + params.dst[blockIdx.x] * params.block_bytes;
    for (long long at = 16 * threadIdx.x; at < params.block_bytes; at += 16 * blockDim.x)
        store16(target + at, load16(source + at));
}
