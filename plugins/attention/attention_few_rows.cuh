// A block's way through one tile of attention_few.cuh.
#pragma once

#include "attention_few.cuh"

// The softmax of one part under way.
template <class S>
struct FewRows {
    using T = typename S::T;
    using Scores = float[S::ROW_TILES][S::SLOTS][2][4];

    const FewParams& params;
    const FewShared<S>& shared;
    int lane, warp;
    TreeKeys visible[S::ROW_TILES][2];
    float row_base[S::ROW_TILES][2];  // exponent of 2 that weights are relative to; the same in all warps
    float acc[S::COLUMNS][S::ROW_TILES][2][4];  // of even and odd steps of 16 keys
    float sums[S::ROW_TILES][2][4];             // products with ones, likewise

    __device__ __forceinline__ FewRows(const FewParams& params_, const AttentionTask& task, const FewShared<S>& shared_)
        : params(params_), shared(shared_), lane(lane_id()), warp(warp_id()) {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) visible[m][half] = {params, task, m * 16 + half * 8 + lane / 4};
        }
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
            row_base[m][0] = row_base[m][1] = MINUS_INFINITY;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                sums[m][i / 4][i % 4] = 0;
#pragma unroll
                for (int j = 0; j < S::COLUMNS; ++j) acc[j][m][i / 4][i % 4] = 0;
            }
        }
    }

    __device__ __forceinline__ void multiply_keys(Scores& scores, const unsigned char* stage) const {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int i = 0; i < 8 * S::SLOTS; ++i) scores[m][i / 8][i / 4 % 2][i % 4] = 0;
        }
        // Lanes 0-7 and 8-15 name the two halves of a key's 16 elements, lanes 16-31 the same of 8 further keys.
        const unsigned char* keys =
            stage + (warp * SLICE_KEYS + lane / 16 * 8 + lane % 8) * S::ROW_BYTES + lane / 8 % 2 * 16;
        const unsigned char* queries = shared.queries + lane % 16 * S::ROW_BYTES + lane / 16 * 16;
#pragma unroll
        for (int step = 0; step < S::K_STEPS; ++step) {
            unsigned columns[S::SLOTS][4];
#pragma unroll
            for (int slot = 0; slot < S::SLOTS; ++slot)
                ldmatrix_x4(columns[slot], keys + slot * (FEW_WARPS * SLICE_KEYS * S::ROW_BYTES) + step * 32);
#pragma unroll
            for (int m = 0; m < S::ROW_TILES; ++m) {
                unsigned rows[4];
                ldmatrix_x4(rows, queries + m * 16 * S::ROW_BYTES + step * 32);
#pragma unroll
                for (int slot = 0; slot < S::SLOTS; ++slot) {
                    mma_16x8x16<T>(scores[m][slot][0], rows, {columns[slot][0], columns[slot][1]});
                    mma_16x8x16<T>(scores[m][slot][1], rows, {columns[slot][2], columns[slot][3]});
                }
            }
        }
    }

    __device__ __forceinline__ void hide_unseen(Scores& scores, int slot, int first_key) const {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const unsigned seen = visible[m][half].seen_in(first_key) >> lane % 4 * 2;
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    if (!(seen >> (i / 2 * 8 + i % 2) & 1)) scores[m][slot][i / 2][2 * half + i % 2] = MINUS_INFINITY;
                }
            }
        }
    }

    // Leave the rows' largest scores of this warp's keys where all warps see them.
    __device__ __forceinline__ void share_maxima(const Scores& scores) const {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float highest = MINUS_INFINITY;
#pragma unroll
                for (int i = 0; i < 4 * S::SLOTS; ++i)
                    highest = fmaxf(highest, scores[m][i / 4][i / 2 % 2][2 * half + i % 2]);
                highest = fmaxf(highest, shfl_xor(highest, 1));
                highest = fmaxf(highest, shfl_xor(highest, 2));
                if (lane % 4 == 0) shared.maxima[(m * 16 + half * 8 + lane / 4) * FEW_WARPS + warp] = highest;
            }
        }
    }

    __device__ __forceinline__ float highest_of(int row) const {
        const uint4 low = load16(shared.maxima + row * FEW_WARPS), high = load16(shared.maxima + row * FEW_WARPS + 4);
        const float a = fmaxf(__uint_as_float(low.x), __uint_as_float(low.y));
        const float b = fmaxf(__uint_as_float(low.z), __uint_as_float(low.w));
        const float c = fmaxf(__uint_as_float(high.x), __uint_as_float(high.y));
        const float d = fmaxf(__uint_as_float(high.z), __uint_as_float(high.w));
        return fmaxf(fmaxf(a, b), fmaxf(c, d));
    }

    // Share 2^(score - base) of the row; older sums and values are rescaled where the base moves.
    __device__ __forceinline__ void share_weights(const Scores& scores) {
        float highest[S::ROW_TILES][2];
#pragma unroll
        for (int i = 0; i < 2 * S::ROW_TILES; ++i) highest[i / 2][i % 2] = highest_of(i * 8 + lane / 4);
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = m * 16 + half * 8 + lane / 4;
                const float rescale = move_base(row_base[m][half], highest[m][half] * params.log2_scale);
                const float base = finite_base(row_base[m][half]);
                unsigned char* to = shared.weights + row * S::WEIGHT_BYTES + (warp * SLICE_KEYS + lane % 4 * 2) * 2;
#pragma unroll
                for (int i = 0; i < 2 * S::SLOTS; ++i) {
                    const float* pair = &scores[m][i / 2][i % 2][2 * half];
                    *reinterpret_cast<unsigned*>(to + i / 2 * (FEW_WARPS * SLICE_KEYS * 2) + i % 2 * 16) =
                        pack2<T>(exp2_fast(fmaf(pair[0], params.log2_scale, -base)),
                                 exp2_fast(fmaf(pair[1], params.log2_scale, -base)));
                }
#pragma unroll
                for (int odd = 0; odd < 2; ++odd) {
                    sums[m][odd][2 * half] *= rescale;  // all that is read of them
#pragma unroll
                    for (int j = 0; j < S::COLUMNS; ++j) {
                        acc[j][m][odd][2 * half] *= rescale;
                        acc[j][m][odd][2 * half + 1] *= rescale;
                    }
                }
            }
        }
    }

    // Weigh the first `num_keys` values of a visit; those up to the next multiple of 32 have no weight.
    __device__ __forceinline__ void add_values(const unsigned char* values, int num_keys) {
        const unsigned one = pack2<T>(1.0f, 1.0f), ones[2] = {one, one};
        const unsigned char* weights = shared.weights + lane % 16 * S::WEIGHT_BYTES + lane / 16 * 16;
        const unsigned char* rows = values + lane * S::ROW_BYTES + warp * 16;
#pragma unroll
        for (int first = 0; first < S::KEYS; first += 32) {
            if (first >= num_keys) break;
            unsigned columns[S::COLUMNS][4];
#pragma unroll
            for (int j = 0; j < S::COLUMNS; ++j)
                if (has_column(j)) ldmatrix_x4_trans(columns[j], rows + first * S::ROW_BYTES + j * (FEW_WARPS * 16));
#pragma unroll
            for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
                for (int odd = 0; odd < 2; ++odd) {
                    unsigned fragment[4];
                    ldmatrix_x4(fragment, weights + m * 16 * S::WEIGHT_BYTES + (first + odd * 16) * 2);
                    mma_16x8x16<T>(sums[m][odd], fragment, ones);
#pragma unroll
                    for (int j = 0; j < S::COLUMNS; ++j) {
                        if (has_column(j))
                            mma_16x8x16<T>(acc[j][m][odd], fragment, {columns[j][2 * odd], columns[j][2 * odd + 1]});
                    }
                }
            }
        }
    }

    // Whether this warp's column tile j exists.
    __device__ __forceinline__ bool has_column(int j) const {
        return (j + 1) * FEW_WARPS <= S::PIECES || j * FEW_WARPS + warp < S::PIECES;
    }

    __device__ __forceinline__ void finish(FewFolded<S>& part) const {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                part.base[m][half] = row_base[m][half];
                part.sum[m][half] = sums[m][0][2 * half] + sums[m][1][2 * half];
            }
#pragma unroll
            for (int j = 0; j < S::COLUMNS; ++j) {
#pragma unroll
                for (int i = 0; i < 4; ++i) part.values[j][m][i] = acc[j][m][0][i] + acc[j][m][1][i];
            }
        }
    }
};

template <class S>
__device__ __forceinline__ void write_rows(const FewParams& params, const AttentionTask& task,
                                           const FewFolded<S>& folded, const FewRows<S>& rows) {
    using T = typename S::T;
#pragma unroll
    for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = m * 16 + half * 8 + rows.lane / 4;
            if (row >= task.num_rows) continue;
            const float sum = folded.sum[m][half], inverse = sum > 0.0f ? 1.0f / sum : 0.0f;  // no key: zero
            T* to = static_cast<T*>(params.out) + out_offset(params, task, row) + rows.lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < S::COLUMNS; ++j) {
                const float* pair = &folded.values[j][m][2 * half];
                if (rows.has_column(j))
                    *reinterpret_cast<unsigned*>(to + (j * FEW_WARPS + rows.warp) * 8) =
                        pack2<T>(pair[0] * inverse, pair[1] * inverse);
            }
        }
    }
}

// The parts of a cluster's blocks, on their way to the first one.
template <class S>
struct FewParts {
    const FewShared<S>& shared;
    int cluster, rank, share;  // parts of a block

    __device__ __forceinline__ FewParts(const FewShared<S>& shared_) : shared(shared_) {
        cluster = static_cast<int>(cluster_size());
        rank = static_cast<int>(cluster_rank());
        share = PARTS / cluster;
        if (cluster == 1) return;
        if (threadIdx.x == 0) mbarrier_init(shared.arrived, 1);
        cluster_arrive();  // the others may write here
    }

    __device__ __forceinline__ unsigned char* place(int part) const {
        return shared.parts + (part - share) * S::PART_BYTES;
    }

    __device__ __forceinline__ void send(int part, const FewFolded<S>& folded) const {
        folded.store(place(part));
        bulk_copy_fence();
        block_sync();
        if (threadIdx.x == 0)
            copy_peer_bulk(peer_pointer(place(part), 0), place(part), S::PART_BYTES, peer_pointer(shared.arrived, 0));
    }

    // By the first block: wait for the others' parts, and fold them in order.
    __device__ __forceinline__ void fold(FewFolded<S>& folded, const Walk& walk) const {
        int num_parts = 0;
        for (int part = share; part < PARTS; ++part) num_parts += walk.first_of(part) < walk.end;
        if (num_parts == 0) return;
        if (threadIdx.x == 0) mbarrier_arrive_expect(shared.arrived, num_parts * S::PART_BYTES);
        mbarrier_wait(shared.arrived, 0);
        for (int part = share; part < PARTS; ++part) {
            if (walk.first_of(part) >= walk.end) continue;
            FewFolded<S> other;
            other.load(place(part));
            folded.add(other);
        }
    }
};

template <class S>
__device__ __forceinline__ void attend_few(const FewParams& params) {
    trace_few(params.trace, 0);
    grid_dependency_launch();
    const FewShared<S> shared;
    const FewParts<S> parts(shared);
    const AttentionTask task = find_task<S>(params, static_cast<int>(blockIdx.x) / parts.cluster);
    if (task.num_rows <= 0) return;
    const int root = task.item.context - task.item.rows;
    const int key_begin = max(root + 1 - params.window, 0), key_end = task.item.context;
    const FewCopies<S> copies = {params, task, shared.ring, key_begin, key_end, root};
    Walk walk(key_begin / S::KEYS, (key_end + S::KEYS - 1) / S::KEYS, parts.rank * parts.share,
              parts.rank * parts.share + parts.share - 1);
    Walk ahead = walk;
    int visits[S::STAGES], pages[S::STAGES][S::SLOTS], next_pages[S::SLOTS];
#pragma unroll
    for (int stage = 0; stage < S::STAGES; ++stage) {
        visits[stage] = ahead.visit;
#pragma unroll
        for (int slot = 0; slot < S::SLOTS; ++slot) pages[stage][slot] = copies.page_of(ahead.visit, slot);
        if (!ahead.is_done()) ahead.go_on();
    }
#pragma unroll
    for (int slot = 0; slot < S::SLOTS; ++slot) next_pages[slot] = copies.page_of(ahead.visit, slot);
    ChunkCopy fresh = {0, nullptr, 0};
#pragma unroll
    for (int i = 0; i < S::STAGES * S::SLOTS; ++i) {
        const int stage = i / S::SLOTS, slot = i % S::SLOTS;
        if (visits[stage] >= walk.end) continue;
        const ChunkCopy chunk = copies.describe(visits[stage], slot, pages[stage][slot], stage);
        copies.template copy<OLD_KEYS>(chunk);
        if (copies.is_new(chunk.first)) fresh = chunk;
    }
    const QueryCopies<S> queries(params, task);
    FewRows<S> rows(params, task, shared);
    rows.clear();
    trace_few(params.trace, 1);
    const unsigned known = next_pages[0] ^ rows.visible[0][0].high ^ static_cast<unsigned>(fresh.from ^ queries.from[0]);
    grid_dependency_wait_after(known & 0x3fffffff);
    trace_few(params.trace, 2);
    queries.copy(params, task, shared.queries);
    if (fresh.to != nullptr) copies.template copy<NEW_KEYS>(fresh);
    copy_async_commit();
    copy_async_wait<0>();
    if (parts.cluster > 1) cluster_wait();
    block_sync();
    trace_few(params.trace, 3);
    // Every row that exists sees the keys from see_from until see_until.
    const int see_from = max(task.item.context - params.window, 0);
    const int see_until = task.item.is_tree ? root : root + token_of(task.first_row, params) + 1;
    FewFolded<S> folded;
    folded.clear();
    for (int stage = 0, last_stage = -1; !walk.is_done();) {
        copy_async_wait<S::STAGES - 2>();
        warp_sync();
        const unsigned char* keys = shared.ring + stage * S::STAGE_BYTES;
        typename FewRows<S>::Scores scores;
        rows.multiply_keys(scores, keys);
#pragma unroll
        for (int slot = 0; slot < S::SLOTS; ++slot) {
            const int first_key = copies.first_key(walk.visit, slot);
            if (first_key < see_from || first_key + SLICE_KEYS > see_until) rows.hide_unseen(scores, slot, first_key);
        }
        rows.share_maxima(scores);
        block_sync();  // and nobody reads the stage before any more
        if (last_stage >= 0 && !ahead.is_done()) {
#pragma unroll
            for (int slot = 0; slot < S::SLOTS; ++slot) 
                copies.template copy<ALL_KEYS>(copies.describe(ahead.visit, slot, next_pages[slot], last_stage));
            ahead.go_on();
#pragma unroll
            for (int slot = 0; slot < S::SLOTS; ++slot) next_pages[slot] = copies.page_of(ahead.visit, slot);
        }
        copy_async_commit();
        rows.share_weights(scores);
        block_sync();
        rows.add_values(keys + S::KEYS * S::ROW_BYTES, min(key_end - walk.visit * S::KEYS, S::KEYS));
        const int part = walk.part;
        walk.go_on();
        last_stage = stage;
        stage = stage + 1 == S::STAGES ? 0 : stage + 1;
        if (walk.part == part && !walk.is_done()) continue;
        trace_few(params.trace, 4);
        FewFolded<S> other;
        rows.finish(other);
        rows.clear();
        if (parts.rank == 0) {
            folded.add(other);
        } else {
            parts.send(part, other);
        }
    }
    copy_async_wait<0>();
    if (parts.cluster > 1 && parts.rank != 0) {
        cluster_arrive();
        cluster_wait();  // what was sent has been read here
        return;
    }
    if (parts.cluster > 1) {
        parts.fold(folded, walk);
        cluster_arrive();
    }
    trace_few(params.trace, 5);
    write_rows(params, task, folded, rows);
    trace_few(params.trace, 6);
    if (parts.cluster > 1) cluster_wait();
}
