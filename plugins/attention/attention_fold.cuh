// Folding partial softmaxes: of a block's key warps through shared memory, of a tile's splits through the workspace.
#pragma once

#include "attention_tile.cuh"

// Softmax over some keys, of four columns of one row.
struct Folded {
    float base;  // exponent of 2 that sum and values are relative to
    float sum;
    float values[4];

    // Add what FOLD_BATCH parts gave: the base moves once, and the rest is a product per split.
    template <int N>
    __device__ __forceinline__ void add_batch(const float2 (&stats)[N], const float (&others)[N][4]) {
        float now = base;
#pragma unroll
        for (int i = 0; i < N; ++i) now = fmaxf(now, stats[i].x);
        const float mine = exp2_fast(base - finite_base(now));
        base = now;
        sum *= mine;
#pragma unroll
        for (int c = 0; c < 4; ++c) values[c] *= mine;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float theirs = exp2_fast(stats[i].x - finite_base(now));
            sum = fmaf(stats[i].y, theirs, sum);
#pragma unroll
            for (int c = 0; c < 4; ++c) values[c] = fmaf(others[i][c], theirs, values[c]);
        }
    }

    // Add what other keys gave. A part that saw nothing changes nothing.
    __device__ __forceinline__ void add(float other_base, float other_sum, const float (&other)[4]) {
        const float now = fmaxf(base, other_base), finite = finite_base(now);
        const float mine = exp2_fast(base - finite), theirs = exp2_fast(other_base - finite);
        base = now;
        sum = fmaf(other_sum, theirs, sum * mine);
#pragma unroll
        for (int i = 0; i < 4; ++i) values[i] = fmaf(other[i], theirs, values[i] * mine);
    }
};

constexpr int FOLD_BATCH = 8;  // splits

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

    // Base and sum of a split, or of the batch that begins with it.
    template <bool BATCHES>
    __device__ __forceinline__ float* partial_stats(long long row) const {
        const long long rows = tile.params.num_slots * tile.params.num_heads;
        return tile.params.partial + rows * (BATCHES ? S::D + 2 : S::D) + row * 2;
    }

    __device__ __forceinline__ void write_output(int row, int column, const Folded& folded) const {
        const float inverse = folded.sum > 0.0f ? 1.0f / folded.sum : 0.0f;  // a row that sees no key is zero
        T* row_out = static_cast<T*>(tile.params.out) + out_offset(tile.params, tile.task, row);
        unsigned* to = reinterpret_cast<unsigned*>(row_out + column);
        to[0] = pack2<T>(folded.values[0] * inverse, folded.values[1] * inverse);
        to[1] = pack2<T>(folded.values[2] * inverse, folded.values[3] * inverse);
    }

    // What a split gave, or a batch in the place of its first split.
    template <bool BATCHES>
    __device__ __forceinline__ void write_partial(int row, int column, int split, const Folded& folded) const {
        const long long where = partial_row(row) + split * split_stride();
        store4(tile.params.partial + where * S::D + column, folded.values);
        if (column != 0) return;
        float* stats = partial_stats<BATCHES>(where);
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
                write_output(row, first_column + column, folded);
            } else {
                write_partial<false>(row, first_column + column, tile.task.item.split, folded);
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

    // Whether this block is the last of `count` to come to one of the tile's counters: 0, or 1 + a batch.
    __device__ __forceinline__ bool is_last(int which, int count) const {
        block_sync();
        if (threadIdx.x == 0) {
            const AttentionParams& params = tile.params;
            const long long tiles_before = static_cast<long long>(tile.task.item.counter) * params.num_kv_heads;
            unsigned* counter = params.counters + (tiles_before + tile.task.kv_head) * params.tile_counters + which;
            const bool last = add_acquire_release(counter, 1) + 1 == static_cast<unsigned>(count);
            if (last) *counter = 0;  // for the next layer
            *flag = last;
        }
        block_sync();
        return *flag != 0;
    }

    // The split that begins a batch. Batches begin at multiples of FOLD_BATCH among all splits there can be: what a row's
    // window leaves out at its start does not move them.
    __device__ __forceinline__ int batch_begin(int batch) const {
        return batch * FOLD_BATCH - tile.task.item.first_split % FOLD_BATCH;
    }

    // Fold FOLD_BATCH splits, or batches, at once, from `begin` on until `end`. Each thread has four columns of FOLD_ROWS
    // rows at a time.
    template <bool BATCHES>
    __device__ __forceinline__ void fold_rows(int begin, int end, bool is_final) const {
        constexpr int QUADS = S::D / 4;
        const int num_indices = tile.task.num_rows * QUADS;
        for (int first = threadIdx.x; first < num_indices; first += S::THREADS * S::FOLD_ROWS) {
            Folded folded[S::FOLD_ROWS];
            long long from[S::FOLD_ROWS];  // in partial_row's count
            int columns[S::FOLD_ROWS];
#pragma unroll
            for (int r = 0; r < S::FOLD_ROWS; ++r) {
                const int index = min(first + r * S::THREADS, num_indices - 1);
                folded[r] = nothing_folded();
                from[r] = partial_row(index / QUADS);
                columns[r] = index % QUADS * 4;
            }
            for (int part = begin; part < end; part += FOLD_BATCH) fold_parts<BATCHES>(folded, from, columns, part, end);
#pragma unroll
            for (int r = 0; r < S::FOLD_ROWS; ++r) {
                const int index = first + r * S::THREADS;
                if (index >= num_indices) continue;
                if (is_final) {
                    write_output(index / QUADS, columns[r], folded[r]);
                } else {
                    write_partial<true>(index / QUADS, columns[r], max(begin, 0), folded[r]);
                }
            }
        }
    }

    template <bool BATCHES>
    __device__ __forceinline__ void fold_parts(Folded (&folded)[S::FOLD_ROWS], const long long (&from)[S::FOLD_ROWS],
                                               const int (&columns)[S::FOLD_ROWS], int part, int end) const {
        float values[S::FOLD_ROWS][FOLD_BATCH][4];
        float2 stats[S::FOLD_ROWS][FOLD_BATCH];
#pragma unroll
        for (int i = 0; i < FOLD_BATCH; ++i) {
            const bool exists = part + i >= 0 && part + i < end;
            const int index = exists ? part + i : max(part, 0);  // where there is none, one that has been written
            const long long offset = (BATCHES ? max(batch_begin(index), 0) : index) * split_stride();
#pragma unroll
            for (int r = 0; r < S::FOLD_ROWS; ++r) {
                load4(values[r][i], tile.params.partial + (from[r] + offset) * S::D + columns[r]);
                stats[r][i] = *reinterpret_cast<const float2*>(partial_stats<BATCHES>(from[r] + offset));
                if (!exists) stats[r][i] = make_float2(MINUS_INFINITY, 0.0f);
            }
        }
#pragma unroll
        for (int r = 0; r < S::FOLD_ROWS; ++r) folded[r].add_batch(stats[r], values[r]);
    }

    // The last split of a batch to end folds the batch, the last batch the tile: few splits are left to fold at the end.
    __device__ __forceinline__ void finish() const {
        const PlannedItem& item = tile.task.item;
        merge_from<0>();
        if (item.num_splits == 1) return;
        const int num_batches = (item.first_split % FOLD_BATCH + item.num_splits + FOLD_BATCH - 1) / FOLD_BATCH;
        const int batch = (item.first_split % FOLD_BATCH + item.split) / FOLD_BATCH;
        const int begin = batch_begin(batch), end = min(begin + FOLD_BATCH, item.num_splits);
        if (!is_last(num_batches == 1 ? 0 : 1 + batch, end - max(begin, 0))) return;
        fold_rows<false>(begin, end, num_batches == 1);
        if (num_batches == 1 || !is_last(0, num_batches)) return;
        fold_rows<true>(-(item.first_split / FOLD_BATCH % FOLD_BATCH), num_batches, true);
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

// Do (item, K/V head) pairs, this block's first and then whichever is next when one is done: the grid is as large as the
// GPU holds at once, and no block waits for another's long ones.
template <class S>
__device__ __forceinline__ void attend(const AttentionParams& params, unsigned char* shared) {
    const int num_blocks = gridDim.x;
    int work = blockIdx.x;
    if (work >= params.max_works) return;
    // The first item is asked for before it is known that there is one: their latencies add up otherwise.
    AttentionTask task = load_task<S>(params, work);
    const int num_works = params.header[0] * params.num_kv_heads;
    if (work >= num_works) return;
    int* next_work = reinterpret_cast<int*>(shared + 2 * S::D);  // in what pads the first query
    for (;;) {
        int taken = 0;
        if (threadIdx.x == 0) taken = atomicAdd(params.header + PLAN_TAKEN, 1);  // comes while the tile is done
        AttentionTile<S> tile(params, task, shared);
        tile.run();
        if (threadIdx.x == 0) *next_work = num_blocks + taken;
        block_sync();
        work = *next_work;
        if constexpr (S::KEY_WARPS == 1) {
            tile.rows.write_rows(params, task);
            if (work >= num_works) break;
            task = load_task<S>(params, work);
        } else {
            const AttentionTask next = load_task<S>(params, min(work, num_works - 1));
            AttentionFold<S>(tile, shared).finish();
            if (work >= num_works) break;
            task = next;
        }
        block_sync();  // before the next task fills shared memory
    }
    // Every block takes once in vain; the last one to do so leaves the count as the next layer needs it.
    const int all_taken = max(num_works - num_blocks, 0) + min(num_works, num_blocks);
    if (threadIdx.x == 0 && work - num_blocks == all_taken - 1) params.header[PLAN_TAKEN] = 0;
}
