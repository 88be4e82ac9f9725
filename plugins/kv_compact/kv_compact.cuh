// Rows of the cache over other rows, in all layers at once, all read before any is written.
//
// Storage (2 L, rows, row bytes). Grid (row bytes / slice, 2 L): a block has the same few bytes of every row of one
// layer, so that no other block touches what it reads or writes, and a barrier between reading and writing is enough.
// The slices wait in shared memory, n * slice bytes. A pair of equal rows moves nothing and is skipped.
#pragma once

#include "element.cuh"
#include "grid.cuh"
#include "shared.cuh"

constexpr int COMPACT_WORD = 16;  // bytes

struct KvCompactParams {
    unsigned char* storage;
    const long long* source_rows;  // (n,)
    const long long* target_rows;
    long long layer_bytes;
    int row_bytes;  // a multiple of slice_bytes
    int slice_bytes;  // a multiple of COMPACT_WORD
    int count;  // n
    int unused;
};
static_assert(sizeof(KvCompactParams) == 4 * 8 + 4 * 4, "mirrored in cuda.py");

__device__ __forceinline__ void compact_slice(const KvCompactParams& params) {
    grid_dependency_launch();
    grid_dependency_wait();
    unsigned char* slice = params.storage + blockIdx.y * params.layer_bytes + blockIdx.x * params.slice_bytes;
    unsigned char* held = shared_memory();
    const int words = params.slice_bytes / COMPACT_WORD;
    for (int at = threadIdx.x; at < params.count * words; at += blockDim.x) {
        const int pair = at / words;
        const long long source = params.source_rows[pair];
        if (source != params.target_rows[pair])
            store16(held + at * COMPACT_WORD, load16(slice + source * params.row_bytes + at % words * COMPACT_WORD));
    }
    block_sync();
    for (int at = threadIdx.x; at < params.count * words; at += blockDim.x) {
        const int pair = at / words;
        const long long target = params.target_rows[pair];
        if (params.source_rows[pair] != target)
            store16(slice + target * params.row_bytes + at % words * COMPACT_WORD, load16(held + at * COMPACT_WORD));
    }
}
