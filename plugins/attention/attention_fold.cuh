// Folding partial softmaxes: of a block's key warps through shared memory, and of a tile's splits through the workspace.
#pragma once

#include "attention_tile.cuh"

// Softmax over some keys, of four columns of one row.
struct Folded {
    float base;  // exponent of 2 that sum and values are relative to
    float sum;
    float values[4];

    // Add what other keys gave. A part that saw nothing changes nothing.
    __device__ __forceinline__ void add(float other_base, float other_sum, const float (&other)[4]) {
        const float now = fmaxf(base, other_base);
        const float finite = now == MINUS_INFINITY ? 0.0f : now;
        const float mine = exp2_fast(base - finite), theirs = exp2_fast(other_base - finite);
        base = now;
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
    float* merge;  // (KEY_WARPS, ROWS, MERGE_STRIDE) values, then (KEY_WARPS, ROWS, 2) base and sum
    unsigned* flag;

    __device__ __forceinline__ AttentionFold(const AttentionTile<S>& tile_, unsigned char* shared)
        : tile(tile_),
          merge(reinterpret_cast<float*>(shared + S::Q_BYTES)),
          flag(reinterpret_cast<unsigned*>(shared + S::Q_BYTES + S::WORK_BYTES)) {}

    __device__ __forceinline__ float* merge_stats(int key_warp, int row) const {
        return merge + S::KEY_WARPS * S::ROWS * S::MERGE_STRIDE + (key_warp * S::ROWS + row) * 2;
    }

    // Index of (slot, head) of a packed row in the workspace, for split 0; a split is rows * N further.
    __device__ __forceinline__ long long partial_row(int row) const {
        const AttentionParams& params = tile.params;
        const int packed = tile.task.first_row + row;
        const int token = token_of(packed, params);
        const int head = tile.task.kv_head * params.group + packed - token * params.group;
        return static_cast<long long>(tile.task.item.first_slot + token) * params.num_heads + head;
    }

    __device__ __forceinline__ long long split_stride() const {
        return static_cast<long long>(tile.task.item.rows) * tile.params.num_heads;
    }

    __device__ __forceinline__ float* partial_stats(long long row) const {
        return tile.params.partial + tile.params.num_slots * tile.params.num_heads * S::D + row * 2;
    }

    __device__ __forceinline__ void write_output(int row, int column, float sum, const float (&values)[4]) const {
        const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;  // a row that sees no key is zero
        unsigned* to =
            reinterpret_cast<unsigned*>(static_cast<T*>(tile.params.out) + out_offset(tile.params, tile.task, row) + column);
        to[0] = pack2<T>(values[0] * inverse, values[1] * inverse);
        to[1] = pack2<T>(values[2] * inverse, values[3] * inverse);
    }

    __device__ __forceinline__ void write_partial(int row, int column, const Folded& folded) const {
        const long long where = partial_row(row) + tile.task.item.split * split_stride();
        store4(tile.params.partial + where * S::D + column, folded.values);
        if (column != 0) return;
        float* stats = partial_stats(where);
        stats[0] = folded.base;
        stats[1] = folded.sum;
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
            if (tile.task.item.num_splits == 1) {
                write_output(row, first_column + column, folded.sum, folded.values);
            } else {
                write_partial(row, first_column + column, folded);
            }
        }
    }

    template <int COLUMN>
    __device__ __forceinline__ void merge_from() const {
        if constexpr (COLUMN < S::D) {
            block_sync();  // the ring, or the columns before, have been read
            tile.rows.template share_columns<COLUMN>(merge + tile.key_warp * S::ROWS * S::MERGE_STRIDE,
                                                     merge_stats(tile.key_warp, 0));
            block_sync();
            fold_columns(COLUMN);
            merge_from<COLUMN + S::MERGE_COLUMNS>();
        }
    }

    // Whether this block is the last of its tile's splits to come here.
    __device__ __forceinline__ bool is_last() const {
        block_sync();
        if (threadIdx.x == 0) {
            const PlannedItem& item = tile.task.item;
            unsigned* counter =
                tile.params.counters + static_cast<long long>(item.counter) * tile.params.num_kv_heads + tile.task.kv_head;
            const bool last = add_acquire_release(counter, 1) + 1 == static_cast<unsigned>(item.num_splits);
            if (last) *counter = 0;  // for the next layer
            *flag = last;
        }
        block_sync();
        return *flag != 0;
    }

    // The splits' weights first, for as many rows as shared memory has room for, so that folding is one product each.
    __device__ __forceinline__ void fold_splits() const {
        float2* weights = reinterpret_cast<float2*>(merge);
        const int num_rows = tile.task.num_rows, num_splits = tile.task.item.num_splits;
        const int most_rows = S::WORK_BYTES / static_cast<int>(sizeof(float2)) / num_splits;
        for (int first = 0; first < num_rows; first += most_rows) {
            const int rows = min(most_rows, num_rows - first);
            block_sync();  // shared memory's last use is over
            for (int row = warp_id(); row < rows; row += S::THREADS / 32) {
                weigh_splits(first + row, weights + row * num_splits);
            }
            block_sync();
            fold_rows(first, rows, weights);
        }
    }

    // By a warp: what each split's values, and its sum, count for in the row's.
    __device__ __forceinline__ void weigh_splits(int row, float2* weights) const {
        const float* stats = partial_stats(partial_row(row));
        const long long stride = 2 * split_stride();
        const int num_splits = tile.task.item.num_splits;
        float highest = MINUS_INFINITY;
        for (int split = tile.lane; split < num_splits; split += 32) highest = fmaxf(highest, stats[split * stride]);
        const float base = finite_base(warp_max(highest));
        for (int split = tile.lane; split < num_splits; split += 32) {
            const float weight = exp2_fast(stats[split * stride] - base);
            weights[split] = make_float2(weight, weight * stats[split * stride + 1]);
        }
    }

    // Each thread folds four columns of FOLD_ROWS rows at a time, and asks for FOLD_AHEAD splits' values at once.
    __device__ __forceinline__ void fold_rows(int first_row, int num_rows, const float2* weights) const {
        constexpr int QUADS = S::D / 4;
        const int num_splits = tile.task.item.num_splits, num_indices = num_rows * QUADS;
        for (int first = threadIdx.x; first < num_indices; first += S::THREADS * S::FOLD_ROWS) {
            float sums[S::FOLD_ROWS], totals[S::FOLD_ROWS][4];
            const float* from[S::FOLD_ROWS];
            const float2* row_weights[S::FOLD_ROWS];
#pragma unroll
            for (int r = 0; r < S::FOLD_ROWS; ++r) {
                const int index = min(first + r * S::THREADS, num_indices - 1), row = index / QUADS;
                from[r] = tile.params.partial + partial_row(first_row + row) * S::D + index % QUADS * 4;
                row_weights[r] = weights + row * num_splits;
                sums[r] = 0.0f;
#pragma unroll
                for (int i = 0; i < 4; ++i) totals[r][i] = 0.0f;
            }
            for (int split = 0; split < num_splits; split += S::FOLD_AHEAD) {
                float values[S::FOLD_AHEAD][S::FOLD_ROWS][4];
#pragma unroll
                for (int ahead = 0; ahead < S::FOLD_AHEAD; ++ahead) {
                    const long long offset = min(split + ahead, num_splits - 1) * split_stride() * S::D;
#pragma unroll
                    for (int r = 0; r < S::FOLD_ROWS; ++r) load4(values[ahead][r], from[r] + offset);
                }
#pragma unroll
                for (int ahead = 0; ahead < S::FOLD_AHEAD; ++ahead) {
                    if (split + ahead < num_splits) {
#pragma unroll
                        for (int r = 0; r < S::FOLD_ROWS; ++r) {
                            const float2 weight = row_weights[r][split + ahead];
                            sums[r] += weight.y;
#pragma unroll
                            for (int i = 0; i < 4; ++i) totals[r][i] = fmaf(values[ahead][r][i], weight.x, totals[r][i]);
                        }
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < S::FOLD_ROWS; ++r) {
                const int index = first + r * S::THREADS;
                if (index < num_indices) write_output(first_row + index / QUADS, index % QUADS * 4, sums[r], totals[r]);
            }
        }
    }

    __device__ __forceinline__ void finish() const {
        merge_from<0>();
        if (tile.task.item.num_splits > 1 && is_last()) fold_splits();
    }
};

template <class S>
__device__ __forceinline__ AttentionTask load_task(const AttentionParams& params, int work) {
    AttentionTask task;
    const int index = work / params.num_kv_heads;
    const int* item = params.items + static_cast<long long>(index) * PLAN_ITEM;
    task.item = load_item(item);
    task.pages = item[ITEM_FIELDS + lane_id()];
    task.kv_head = work - index * params.num_kv_heads;
    task.first_row = task.item.tile * S::ROWS;
    task.num_rows = min(task.item.rows * params.group - task.first_row, S::ROWS);
    return task;
}

// Do every stride-th (item, K/V head), from `block` on.
template <class S>
__device__ __forceinline__ void attend(const AttentionParams& params, int block, int stride, unsigned char* shared) {
    for (int work = block; work < params.max_works; work += stride) {
        // The first item is asked for before it is known that there is one: their latencies add up otherwise.
        const AttentionTask task = load_task<S>(params, work);
        if (work >= *params.num_items * params.num_kv_heads) return;
        AttentionTile<S> tile(params, task, shared);
        tile.run();
        if constexpr (S::KEY_WARPS == 1) {
            tile.rows.write_rows(params, task);
        } else {
            AttentionFold<S>(tile, shared).finish();
        }
        block_sync();  // before the next task fills shared memory
    }
}
