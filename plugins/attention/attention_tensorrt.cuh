// Attention over dense requests, a linear cache and an explicit mask, as the ONNX node of that name has it: see onnx.py.
//
// One launch, no workspace: block (tile, K/V head, request) plans for itself. It looks through the mask of its rows for
// the first and the last key that any of them sees, and goes over the keys between, without splits. At most 48 KiB of
// shared memory, which needs no leave from the driver. A row that sees no key gives zeros.
#pragma once

#ifndef TREE_BLOCKS
#define TREE_BLOCKS 1
#endif
#include "attention_fold.cuh"

struct DenseAttention {
    const void* q;              // (B, N, S, D)
    const void* k_cache;        // (B, N_kv, cache_len, D)
    const void* v_cache;
    const unsigned char* mask;  // (B, 1, S, cache_len), 1 where a token sees a key
    void* context;              // (B, S, N D)
    int rows;                   // S
    int num_heads;
    int num_kv_heads;
    int cache_len;              // a multiple of 16
    float scale;
};

struct MaskedParams : AttentionParams {
    const unsigned char* mask;  // of the block's request
    int cache_len;
};

// What one packed row sees by its mask.
struct MaskedKeys {
    const unsigned char* row;
    int end;

    __device__ __forceinline__ MaskedKeys() {}
    __device__ __forceinline__ MaskedKeys(const AttentionParams& params, const AttentionTask& task, int index) {
        const MaskedParams& masked = static_cast<const MaskedParams&>(params);
        const long long token = token_of(task.first_row + index, params);
        row = masked.mask + token * masked.cache_len;
        end = index < task.num_rows ? task.item.key_end : 0;
    }

    __device__ __forceinline__ bool sees(int key, const AttentionParams&) const { return key < end && row[key] != 0; }
};

template <class Element, int HEAD_DIM_, int KEY_WARPS_, int ROW_WARPS_, int STAGES_>
struct MaskedConfig : AttentionConfig<Element, HEAD_DIM_, KEY_WARPS_, ROW_WARPS_, 16, 16, STAGES_> {
    using Keys = MaskedKeys;
};

constexpr int NO_PAGES = 24;  // block_shift that makes the cache of a request one page

// The first key that any row of the tile sees, and the end of the last: by all threads, through shared memory.
template <class S>
__device__ __forceinline__ int2 key_range(const MaskedParams& params, const AttentionTask& task, int* shared) {
    const int first_token = token_of(task.first_row, params);
    const int num_tokens = token_of(task.first_row + task.num_rows - 1, params) - first_token + 1;
    const int pieces = params.cache_len / 16;
    int begin = params.cache_len, end = 0;
    for (int index = threadIdx.x; index < num_tokens * pieces; index += S::THREADS) {
        const int piece = index % pieces;
        const long long row = first_token + index / pieces;
        const uint4 seen = load16(params.mask + row * params.cache_len + piece * 16);
        const unsigned words[4] = {seen.x, seen.y, seen.z, seen.w};
#pragma unroll
        for (int word = 0; word < 4; ++word) {
            if (words[word] == 0) continue;
            const int key = piece * 16 + word * 4;
            begin = min(begin, key + (__ffs(static_cast<int>(words[word])) - 1) / 8);
            end = max(end, key + 4 - __clz(static_cast<int>(words[word])) / 8);
        }
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        begin = min(begin, shfl_xor(begin, mask));
        end = max(end, shfl_xor(end, mask));
    }
    if (lane_id() == 0) {
        shared[warp_id() * 2] = begin;
        shared[warp_id() * 2 + 1] = end;
    }
    block_sync();
    for (int warp = 0; warp < S::THREADS / 32; ++warp) {
        begin = min(begin, shared[warp * 2]);
        end = max(end, shared[warp * 2 + 1]);
    }
    block_sync();  // before queries and chunks overwrite it
    return make_int2(begin, end);
}

// A view of the arguments in which the block's request and K/V head are the only ones.
template <class S>
__device__ __forceinline__ MaskedParams block_params(const DenseAttention& args) {
    using T = typename S::T;
    const int group = args.num_heads / args.num_kv_heads;
    const long long request = blockIdx.z, kv_head = blockIdx.y, rows = args.rows;
    const long long first_head = request * args.num_heads + kv_head * group;
    const long long cache = (request * args.num_kv_heads + kv_head) * args.cache_len * S::D;
    MaskedParams params = {};
    params.q = static_cast<const T*>(args.q) + first_head * rows * S::D;
    params.k_cache = static_cast<const T*>(args.k_cache) + cache;
    params.v_cache = static_cast<const T*>(args.v_cache) + cache;
    params.out = static_cast<T*>(args.context) + (request * rows * args.num_heads + kv_head * group) * S::D;
    params.mask = args.mask + request * rows * args.cache_len;
    params.cache_len = args.cache_len;
    params.q_token_stride = S::D;
    params.q_head_stride = rows * S::D;
    params.out_token_stride = static_cast<long long>(args.num_heads) * S::D;
    params.out_head_stride = S::D;
    params.group = group;
    params.group_inverse = ((1ull << 32) + group - 1) / group;
    params.num_heads = group;
    params.num_kv_heads = 1;
    params.block_shift = NO_PAGES;
    params.window = 0;  // nothing is visible to all rows without a look at the mask
    params.log2_scale = args.scale * 1.4426950408889634f;
    return params;
}

template <class S>
__device__ __forceinline__ void attend_dense(const DenseAttention& args, unsigned char* shared) {
    const MaskedParams params = block_params<S>(args);
    AttentionTask task = {};
    task.first_row = static_cast<int>(blockIdx.x) * S::ROWS;
    task.num_rows = min(args.rows * params.group - task.first_row, S::ROWS);
    if (task.num_rows <= 0) return;
    const int2 keys = key_range<S>(params, task, reinterpret_cast<int*>(shared));
    task.item.rows = args.rows;
    task.item.context = args.cache_len;
    task.item.tile = static_cast<int>(blockIdx.x);
    task.item.key_begin = min(keys.x, keys.y);
    task.item.key_end = keys.y;
    task.item.num_splits = 1;
    AttentionTile<S> tile(params, task, shared);
    tile.run();
    if constexpr (S::KEY_WARPS == 1) {
        tile.rows.write_rows(params, task);
    } else {
        AttentionFold<S>(tile, shared).finish();
    }
}
