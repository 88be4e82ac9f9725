// The softmax of one part of attention_few.cuh under way.
#pragma once

#include "attention_few_fold.cuh"

template <class S>
struct FewRows {
    using T = typename S::T;
    using Scores = float[2][4];  // of 8 keys each

    const FewParams& params;
    const FewShared<S>& shared;
    int lane, warp;
    TreeKeys visible[2];
    int see_from, see_until;  // every row that exists sees the keys between
    float row_base[2];            // exponent of 2 that weights are relative to; the same in all warps
    float acc[S::COLUMNS][2][4];  // of even and odd steps of 16 keys
    float sums[2][4];             // products with ones, likewise

    __device__ __forceinline__ FewRows(const FewParams& params_, const AttentionTask& task, const FewShared<S>& shared_)
        : params(params_), shared(shared_), lane(lane_id()), warp(warp_id()) {
        const int root = task.item.context - task.item.rows;
        see_from = max(task.item.context - params.window, 0);
        see_until = task.item.is_tree ? root : root + token_of(task.first_row, params) + 1;
#pragma unroll
        for (int half = 0; half < 2; ++half) visible[half] = {params, task, half * 8 + lane / 4};
    }

    __device__ __forceinline__ void clear() {
        row_base[0] = row_base[1] = MINUS_INFINITY;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            sums[i / 4][i % 4] = 0;
#pragma unroll
            for (int j = 0; j < S::COLUMNS; ++j) acc[j][i / 4][i % 4] = 0;
        }
    }

    // Bit 8 * half + i: whether the row sees the key of this thread's score [i / 2][2 * half + i % 2], of 16 keys.
    __device__ __forceinline__ unsigned seen_in(int first_key) const {
        if (first_key >= see_from && first_key + SLICE_KEYS <= see_until) return 0xffff;
        unsigned seen = 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const unsigned keys = visible[half].seen_in(first_key) >> lane % 4 * 2;
            seen |= ((keys & 3) | (keys >> 8 & 3) << 2) << 8 * half;
        }
        return seen;
    }

    __device__ __forceinline__ void multiply_keys(Scores& scores, const unsigned char* stage) const {
        constexpr int BATCH = S::K_STEPS % 4 == 0 ? 4 : 2;  // steps whose operands are loaded at once
#pragma unroll
        for (int i = 0; i < 8; ++i) scores[i / 4][i % 4] = 0;
        // Lanes 0-7 and 8-15 name the two halves of a key's 16 elements, lanes 16-31 the same of 8 further keys.
        const unsigned char* keys =
            stage + (warp * SLICE_KEYS + lane / 16 * 8 + lane % 8) * S::ROW_BYTES + lane / 8 % 2 * 16;
        const unsigned char* queries = shared.queries + lane % 16 * S::ROW_BYTES + lane / 16 * 16;
#pragma unroll
        for (int first = 0; first < S::K_STEPS; first += BATCH) {
            unsigned rows[BATCH][4], columns[BATCH][4];
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                ldmatrix_x4(columns[i], keys + (first + i) * 32);
                ldmatrix_x4(rows[i], queries + (first + i) * 32);
            }
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                mma_16x8x16<T>(scores[0], rows[i], {columns[i][0], columns[i][1]});
                mma_16x8x16<T>(scores[1], rows[i], {columns[i][2], columns[i][3]});
            }
        }
    }

    // Leave the rows' largest scores of this warp's keys where all warps see them; `seen` is from seen_in.
    __device__ __forceinline__ void share_maxima(Scores& scores, unsigned seen) const {
        if (seen != 0xffff) {
#pragma unroll
            for (int i = 0; i < 8; ++i)
                if (!(seen >> (i / 4 * 8 + i % 4) & 1)) scores[i % 4 / 2][i / 4 * 2 + i % 2] = MINUS_INFINITY;
        }
        float highest[2];
#pragma unroll
        for (int half = 0; half < 2; ++half)
            highest[half] = fmaxf(fmaxf(scores[0][2 * half], scores[0][2 * half + 1]),
                                  fmaxf(scores[1][2 * half], scores[1][2 * half + 1]));
#pragma unroll
        for (int mask = 1; mask <= 2; mask *= 2) {
#pragma unroll
            for (int half = 0; half < 2; ++half) highest[half] = fmaxf(highest[half], shfl_xor(highest[half], mask));
        }
        if (lane % 4 != 0) return;
#pragma unroll
        for (int half = 0; half < 2; ++half) shared.maxima[(half * 8 + lane / 4) * FEW_WARPS + warp] = highest[half];
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
        const float highest[2] = {highest_of(lane / 4), highest_of(8 + lane / 4)};
        float rescales[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            rescales[half] = move_base(row_base[half], highest[half] * params.log2_scale);
            const float base = finite_base(row_base[half]);
            unsigned char* to =
                shared.weights + (half * 8 + lane / 4) * S::WEIGHT_BYTES + (warp * SLICE_KEYS + lane % 4 * 2) * 2;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float low = exp2_fast(fmaf(scores[i][2 * half], params.log2_scale, -base));
                const float high = exp2_fast(fmaf(scores[i][2 * half + 1], params.log2_scale, -base));
                *reinterpret_cast<unsigned*>(to + i * 16) = pack2<T>(low, high);
            }
        }
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                sums[odd][2 * half] *= rescales[half];  // all that is read of them
#pragma unroll
                for (int i = 0; i < 2 * S::COLUMNS; ++i) acc[i / 2][odd][2 * half + i % 2] *= rescales[half];
            }
        }
    }

    // Weigh the first `num_keys` values of a visit; those up to the next multiple of 64 have no weight.
    __device__ __forceinline__ void add_values(const unsigned char* values, int num_keys) {
        const unsigned one = pack2<T>(1.0f, 1.0f), ones[2] = {one, one};
        const unsigned char* weights = shared.weights + lane % 16 * S::WEIGHT_BYTES + lane / 16 * 16;
        const unsigned char* rows = values + lane * S::ROW_BYTES + warp * 16;
#pragma unroll
        for (int first = 0; first < VISIT_KEYS; first += 64) {
            if (first >= num_keys) break;
            unsigned fragments[4][4], columns[2][S::COLUMNS][4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                ldmatrix_x4(fragments[i], weights + (first + i * 16) * 2);
                if (i % 2 == 1) continue;
#pragma unroll
                for (int j = 0; j < S::COLUMNS; ++j) {
                    if (Columns<S>::exists(j))
                        ldmatrix_x4_trans(columns[i / 2][j],
                                          rows + (first + i * 16) * S::ROW_BYTES + j * (FEW_WARPS * 16));
                }
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int j = 0; j < S::COLUMNS; ++j) {
                    const unsigned(&pairs)[4] = columns[i / 2][j];
                    if (Columns<S>::exists(j))
                        mma_16x8x16<T>(acc[j][i % 2], fragments[i], {pairs[i % 2 * 2], pairs[i % 2 * 2 + 1]});
                }
                mma_16x8x16<T>(sums[i % 2], fragments[i], ones);
            }
        }
    }

    __device__ __forceinline__ void finish(FewFolded<S>& part) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            part.base[half] = row_base[half];
            part.sum[half] = sums[0][2 * half] + sums[1][2 * half];
        }
#pragma unroll
        for (int i = 0; i < 4 * S::COLUMNS; ++i)
            part.values[i / 4][i % 4] = acc[i / 4][0][i % 4] + acc[i / 4][1][i % 4];
    }
};
