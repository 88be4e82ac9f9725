// The accepted path's keys and values to where a chain's would lie, in all layers at once. The contract:
// plugins/kv_compact/__init__.py.
//
// Storage (2 L, blocks, N_kv, block_size, row bytes). Grid (row bytes / slice, 2 L, E): a block has the same few bytes of
// every token that one request moves in one layer, so that no other block touches what it reads or writes, and a barrier
// between reading and writing is enough. The slices wait in shared memory, K * N_kv * slice bytes.
#pragma once

#include "element.cuh"
#include "grid.cuh"
#include "shared.cuh"

constexpr int COMPACT_WORD = 16;  // bytes

struct KvCompactParams {
    unsigned char* storage;
    const long long* block_tables;  // (E, max_blocks)
    const long long* roots;         // (E,)
    const long long* nodes;         // (E, levels)
    const long long* counts;        // (E,)
    long long layer_bytes;
    int row_bytes;    // a multiple of slice_bytes
    int slice_bytes;  // a multiple of COMPACT_WORD
    int levels;       // K + 1
    int max_blocks;
    int num_kv_heads;
    int block_size;
};
static_assert(sizeof(KvCompactParams) == 6 * 8 + 6 * 4, "mirrored in cuda.py");

// Where one head's row of a request's token lies, in bytes from the layer's first.
__device__ __forceinline__ long long row_offset(
    const KvCompactParams& params, const long long* blocks, long long position, int head) {
    const long long block = blocks[position / params.block_size];
    return ((block * params.num_kv_heads + head) * params.block_size + position % params.block_size) * params.row_bytes;
}

__device__ __forceinline__ void compact_path(const KvCompactParams& params) {
    grid_dependency_launch();
    grid_dependency_wait();
    const int request = blockIdx.z;
    const int moved = int(params.counts[request]) - 1;  // the root lies where it belongs
    if (moved <= 0) return;
    unsigned char* slice = params.storage + blockIdx.y * params.layer_bytes + blockIdx.x * params.slice_bytes;
    unsigned char* held = shared_memory();
    const long long* blocks = params.block_tables + (long long)request * params.max_blocks;
    const long long* nodes = params.nodes + (long long)request * params.levels;
    const long long root = params.roots[request];
    const int words = params.slice_bytes / COMPACT_WORD, level_words = params.num_kv_heads * words;
    for (int at = threadIdx.x; at < moved * level_words; at += blockDim.x) {
        const int level = 1 + at / level_words, head = at % level_words / words, word = at % words;
        const long long from = row_offset(params, blocks, root + nodes[level], head);
        store16(held + at * COMPACT_WORD, load16(slice + from + word * COMPACT_WORD));
    }
    block_sync();
    for (int at = threadIdx.x; at < moved * level_words; at += blockDim.x) {
        const int level = 1 + at / level_words, head = at % level_words / words, word = at % words;
        const long long to = row_offset(params, blocks, root + level, head);
        store16(slice + to + word * COMPACT_WORD, load16(held + at * COMPACT_WORD));
    }
}
