// Folding partial softmaxes: of a block's key warps through shared memory, and of a tile's splits through the workspace.
#pragma once

#include "attention.cuh"

// Softmax over some keys, of four columns of one row.
struct Folded {
    float maximum;
    float sum;
    float values[4];

    // Add what other keys gave. A part that saw nothing changes nothing.
    __device__ __forceinline__ void add(float other_maximum, float other_sum, const float (&other)[4]) {
        const float now = fmaxf(maximum, other_maximum);
        const float base = now == MINUS_INFINITY ? 0.0f : now;
        const float mine = exp2_fast(maximum - base), theirs = exp2_fast(other_maximum - base);
        maximum = now;
        sum = fmaf(other_sum, theirs, sum * mine);
#pragma unroll
        for (int i = 0; i < 4; ++i) values[i] = fmaf(other[i], theirs, values[i] * mine);
    }
};

__device__ __forceinline__ Folded nothing_folded() {
    return {MINUS_INFINITY, 0.0f, {0.0f, 0.0f, 0.0f, 0.0f}};
}

__device__ __forceinline__ void load4(float (&values)[4], const float* from) {
    const uint4 words = load16(from);
    values[0] = __uint_as_float(words.x);
    values[1] = __uint_as_float(words.y);
    values[2] = __uint_as_float(words.z);
    values[3] = __uint_as_float(words.w);
}

__device__ __forceinline__ void store4(float* to, const float (&values)[4]) {
    store16(to, {__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
                 __float_as_uint(values[3])});
}

template <class S>
struct AttentionFold {
    using T = typename S::T;

    const AttentionTile<S>& tile;
    float* merge;  // (KEY_WARPS, ROWS, MERGE_STRIDE) values, then (KEY_WARPS, ROWS, 2) maximum and sum
    unsigned* flag;

    __device__ __forceinline__ AttentionFold(const AttentionTile<S>& tile_, unsigned char* shared)
        : tile(tile_),
          merge(reinterpret_cast<float*>(shared + S::Q_BYTES)),
          flag(reinterpret_cast<unsigned*>(shared + S::Q_BYTES + S::WORK_BYTES)) {}

    __device__ __forceinline__ float* merge_stats(int key_warp, int row) const {
        return merge + S::KEY_WARPS * S::ROWS * S::MERGE_STRIDE + (key_warp * S::ROWS + row) * 2;
    }

    // Index of (slot, head) of a packed row in the workspace.
    __device__ __forceinline__ long long partial_row(int row, int split) const {
        const AttentionParams& params = tile.params;
        const int group = params.num_heads / params.num_kv_heads;
        const int packed = tile.task.first_row + row;
        const PlannedRequest& request = tile.task.request;
        const long long slot = static_cast<long long>(request.first_slot) + split * request.rows + packed / group;
        return slot * params.num_heads + tile.task.kv_head * group + packed % group;
    }

    __device__ __forceinline__ float* partial_stats(long long row) const {
        return tile.params.partial + tile.params.num_slots * tile.params.num_heads * S::D + row * 2;
    }

    __device__ __forceinline__ void write_output(int row, int column, const Folded& folded) const {
        const float inverse = folded.sum > 0.0f ? 1.0f / folded.sum : 0.0f;  // a row that sees no key is zero
        unsigned* to =
            reinterpret_cast<unsigned*>(static_cast<T*>(tile.params.out) + tile.out_offset(row) + column);
        to[0] = pack2<T>(folded.values[0] * inverse, folded.values[1] * inverse);
        to[1] = pack2<T>(folded.values[2] * inverse, folded.values[3] * inverse);
    }

    __device__ __forceinline__ void write_partial(int row, int column, const Folded& folded) const {
        const long long where = partial_row(row, tile.task.split);
        store4(tile.params.partial + where * S::D + column, folded.values);
        if (column != 0) return;
        float* stats = partial_stats(where);
        stats[0] = folded.maximum;
        stats[1] = folded.sum;
    }

    // One group of columns of this warp's rows.
    template <int COLUMN>
    __device__ __forceinline__ void share_columns() const {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = (tile.row_warp * S::ROW_TILES + m) * 16 + half * 8 + tile.lane / 4;
                float* to = merge + (tile.key_warp * S::ROWS + row) * S::MERGE_STRIDE + tile.lane % 4 * 2;
#pragma unroll
                for (int n = 0; n < S::MERGE_COLUMNS / 8; ++n) {
                    to[n * 8] = tile.acc[m][COLUMN / 8 + n][2 * half];
                    to[n * 8 + 1] = tile.acc[m][COLUMN / 8 + n][2 * half + 1];
                }
                if (COLUMN == 0 && tile.lane % 4 == 0) {
                    float* stats = merge_stats(tile.key_warp, row);
                    stats[0] = tile.row_max[m][half];
                    stats[1] = tile.row_sum[m][half];
                }
            }
        }
    }

    __device__ __forceinline__ void fold_columns(int first_column) const {
        constexpr int QUADS = S::MERGE_COLUMNS / 4;
        for (int index = threadIdx.x; index < tile.task.num_rows * QUADS; index += S::THREADS) {
            const int row = index / QUADS, column = index % QUADS * 4;
            Folded folded = nothing_folded();
#pragma unroll
            for (int key_warp = 0; key_warp < S::KEY_WARPS; ++key_warp) {
                float values[4];
                load4(values, merge + (key_warp * S::ROWS + row) * S::MERGE_STRIDE + column);
                const float* stats = merge_stats(key_warp, row);
                folded.add(stats[0], stats[1], values);
            }
            if (tile.task.request.num_splits == 1) {
                write_output(row, first_column + column, folded);
            } else {
                write_partial(row, first_column + column, folded);
            }
        }
    }

    template <int COLUMN>
    __device__ __forceinline__ void merge_from() const {
        if constexpr (COLUMN < S::D) {
            block_sync();  // the ring, or the columns before, have been read
            share_columns<COLUMN>();
            block_sync();
            fold_columns(COLUMN);
            merge_from<COLUMN + S::MERGE_COLUMNS>();
        }
    }

    // Whether this block is the last of its tile's splits to come here.
    __device__ __forceinline__ bool is_last() const {
        block_sync();
        if (threadIdx.x == 0) {
            const PlannedRequest& request = tile.task.request;
            unsigned* counter = tile.params.counters +
                                static_cast<long long>(request.first_tile + tile.task.tile) * tile.params.num_kv_heads +
                                tile.task.kv_head;
            const bool last = add_acquire_release(counter, 1) + 1 == static_cast<unsigned>(request.num_splits);
            if (last) *counter = 0;  // for the next layer
            *flag = last;
        }
        block_sync();
        return *flag != 0;
    }

    __device__ __forceinline__ void fold_splits() const {
        constexpr int QUADS = S::D / 4;
        constexpr int AHEAD = 8;  // splits whose loads are under way at once
        const int num_splits = tile.task.request.num_splits;
        for (int index = threadIdx.x; index < tile.task.num_rows * QUADS; index += S::THREADS) {
            const int row = index / QUADS, column = index % QUADS * 4;
            Folded folded = nothing_folded();
            for (int split = 0; split < num_splits; split += AHEAD) {
                float values[AHEAD][4], stats[AHEAD][2];
#pragma unroll
                for (int i = 0; i < AHEAD; ++i) {
                    const long long where = partial_row(row, min(split + i, num_splits - 1));
                    load4(values[i], tile.params.partial + where * S::D + column);
                    stats[i][0] = partial_stats(where)[0];
                    stats[i][1] = partial_stats(where)[1];
                }
#pragma unroll
                for (int i = 0; i < AHEAD; ++i) {
                    if (split + i < num_splits) folded.add(stats[i][0], stats[i][1], values[i]);
                }
            }
            write_output(row, column, folded);
        }
    }

    __device__ __forceinline__ void finish() const {
        merge_from<0>();
        if (tile.task.request.num_splits > 1 && is_last()) fold_splits();
        block_sync();  // before the next task fills shared memory
    }
};

// Do every stride-th (item, K/V head) of the short requests, from `block` on.
template <class S>
__device__ __forceinline__ void attend_short(const AttentionParams& params, int block, int stride,
                                             unsigned char* shared) {
    const int group = params.num_heads / params.num_kv_heads;
    const int* ends = params.plan + PLAN_HEADER + params.num_requests * PLAN_RECORD;
    const int num_items = params.plan[0], split_len = params.plan[2];
    for (int work = block; work < num_items * params.num_kv_heads; work += stride) {
        const int item = work / params.num_kv_heads;
        AttentionTask task;
        task.kv_head = work % params.num_kv_heads;
        task.request_index = find_request(ends, params.num_requests, item);
        task.request = load_request(params.plan, task.request_index);
        const PlannedRequest& request = task.request;
        const int num_tiles = (request.rows * group + S::ROWS - 1) / S::ROWS;
        task.split = (item - request.first_item) / num_tiles;
        task.tile = (item - request.first_item) % num_tiles;
        task.first_row = task.tile * S::ROWS;
        task.num_rows = min(request.rows * group - task.first_row, S::ROWS);
        const int first_key = (request.first_split + task.split) * split_len;
        task.key_begin = max(first_key, request.context - request.rows + 1 - params.window);
        task.key_end = min(first_key + split_len, request.context);
        AttentionTile<S> tile(params, task, shared);
        tile.template run<typename QueryFragments<S::Q_IN_REGISTERS, S>::Type>();
        AttentionFold<S>(tile, shared).finish();
    }
}

// The same for tiles of long requests, the last tiles of a request first: in a chain they see most.
template <class S>
__device__ __forceinline__ void attend_long(const AttentionParams& params, int block, int stride,
                                            unsigned char* shared) {
    const int group = params.num_heads / params.num_kv_heads;
    const int* ends = params.plan + PLAN_HEADER + params.num_requests * (PLAN_RECORD + 1);
    const int num_items = params.plan[1];
    for (int work = block; work < num_items * params.num_kv_heads; work += stride) {
        const int item = work / params.num_kv_heads;
        AttentionTask task;
        task.kv_head = work % params.num_kv_heads;
        task.request_index = find_request(ends, params.num_requests, item);
        task.request = load_request(params.plan, task.request_index);
        const PlannedRequest& request = task.request;
        const int num_tiles = (request.rows * group + S::ROWS - 1) / S::ROWS;
        task.split = 0;
        task.tile = num_tiles - 1 - (item - request.first_item);
        task.first_row = task.tile * S::ROWS;
        task.num_rows = min(request.rows * group - task.first_row, S::ROWS);
        const int root = request.context - request.rows;
        task.key_begin = max(root + task.first_row / group + 1 - params.window, 0);
        task.key_end = root + (task.first_row + task.num_rows - 1) / group + 1;
        AttentionTile<S> tile(params, task, shared);
        tile.template run<typename QueryFragments<S::Q_IN_REGISTERS, S>::Type>();
        tile.write_rows();
        block_sync();  // before the next task fills shared memory
    }
}
