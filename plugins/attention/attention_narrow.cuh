// The products of 8 rows, transposed: keys, then columns of the values, are the 16 rows of the tensor cores' products,
// and the tile's rows their 8 columns. Half of WideRows' work for a group of up to 8 heads that decodes one token.
//
// Every sum has the same terms in the same order as in WideRows, so that a row's result is the same bit for bit.
#pragma once

#include "attention.cuh"

template <class S>
struct NarrowRows {
    using T = typename S::T;
    static constexpr int K_STEPS = S::D / 16;
    static constexpr int SLICES = S::CHUNK / 16;
    using Scores = float[SLICES][4];  // keys lane / 4 (+ 8) by rows pair, pair + 1

    int lane;
    unsigned queries[K_STEPS][2];
    float acc[K_STEPS][4];  // columns lane / 4 (+ 8) by rows pair, pair + 1
    float sums[4];          // products with ones; elements 0 and 1 are of rows pair, pair + 1
    float row_base[2];      // exponent of 2 that weights are relative to, of the same rows
    TreeKeys visible[2];

    __device__ __forceinline__ void start(const AttentionParams& params, const AttentionTask& task, int) {
        lane = lane_id();
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            visible[i] = {params, task, lane % 4 * 2 + i};
            row_base[i] = MINUS_INFINITY;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            sums[i] = 0.0f;
#pragma unroll
            for (int n = 0; n < K_STEPS; ++n) acc[n][i] = 0.0f;
        }
    }

    __device__ __forceinline__ void load_queries(const unsigned char* q_shared) {
        // Lanes 0-7, 8-15 ... name elements 0-7, 8-15 ... of the 8 rows: two steps at once.
        const unsigned char* from = q_shared + lane % 8 * S::ROW_BYTES + lane / 8 * 16;
#pragma unroll
        for (int step = 0; step < K_STEPS; step += 2) {
            unsigned pair[4];
            ldmatrix_x4(pair, from + step * 32);
#pragma unroll
            for (int i = 0; i < 4; ++i) queries[step + i / 2][i % 2] = pair[i];
        }
    }

    // Weigh one chunk's values by the exponentials of its scores.
    __device__ __forceinline__ void add_chunk(const unsigned char* keys, int first_key, bool all_visible,
                                              const AttentionParams& params) {
        Scores scores;
        multiply_keys(scores, keys);
        if (!all_visible) hide_unseen(scores, first_key, params);
        exponentiate(scores, params.log2_scale);
        add_values(scores, keys + S::CHUNK_BYTES);
    }

    __device__ __forceinline__ void multiply_keys(Scores& scores, const unsigned char* keys) const {
        const unsigned char* from = keys + lane % 16 * S::ROW_BYTES + lane / 16 * 16;
#pragma unroll
        for (int slice = 0; slice < SLICES; ++slice) {
#pragma unroll
            for (int i = 0; i < 4; ++i) scores[slice][i] = 0.0f;
#pragma unroll
            for (int step = 0; step < K_STEPS; ++step) {
                unsigned rows[4];
                ldmatrix_x4(rows, from + slice * 16 * S::ROW_BYTES + step * 32);
                mma_16x8x16<T>(scores[slice], rows, queries[step]);
            }
        }
    }

    __device__ __forceinline__ void hide_unseen(Scores& scores, int first_key, const AttentionParams& params) const {
#pragma unroll
        for (int slice = 0; slice < SLICES; ++slice) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = first_key + slice * 16 + i / 2 * 8 + lane / 4;
                if (!visible[i % 2].sees(key, params)) scores[slice][i] = MINUS_INFINITY;
            }
        }
    }

    // scores become 2^(score - base) of the row; older sums and values are rescaled where the base moves.
    __device__ __forceinline__ void exponentiate(Scores& scores, float log2_scale) {
        float rescales[2];
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float highest = MINUS_INFINITY;
#pragma unroll
            for (int slice = 0; slice < SLICES; ++slice) {
                highest = fmaxf(highest, fmaxf(scores[slice][row], scores[slice][row + 2]));
            }
            highest = fmaxf(highest, shfl_xor(highest, 4));
            highest = fmaxf(highest, shfl_xor(highest, 8));
            highest = fmaxf(highest, shfl_xor(highest, 16));
            rescales[row] = move_base(row_base[row], highest * log2_scale);
            const float base = finite_base(row_base[row]);
#pragma unroll
            for (int slice = 0; slice < SLICES; ++slice) {
#pragma unroll
                for (int i = row; i < 4; i += 2) {
                    scores[slice][i] = exp2_fast(fmaf(scores[slice][i], log2_scale, -base));
                }
            }
        }
        if (warp_ballot(rescales[0] != 1.0f || rescales[1] != 1.0f) == 0) return;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            sums[i] *= rescales[i % 2];
#pragma unroll
            for (int n = 0; n < K_STEPS; ++n) acc[n][i] *= rescales[i % 2];
        }
    }

    __device__ __forceinline__ void add_values(const Scores& weights, const unsigned char* values) {
        const unsigned one = pack2<T>(1.0f, 1.0f), ones[4] = {one, one, one, one};
        // Lanes 0-7 name 8 keys' first 8 elements, 8-15 the next 8, 16-31 the same of 8 further keys; transposed.
        const unsigned char* from = values + (lane / 16 * 8 + lane % 8) * S::ROW_BYTES + lane / 8 % 2 * 16;
#pragma unroll
        for (int slice = 0; slice < SLICES; ++slice) {
            const unsigned columns[2] = {transpose_8x8(pack2<T>(weights[slice][0], weights[slice][1])),
                                         transpose_8x8(pack2<T>(weights[slice][2], weights[slice][3]))};
            mma_16x8x16<T>(sums, ones, columns);
#pragma unroll
            for (int n = 0; n < K_STEPS; ++n) {
                unsigned rows[4];
                ldmatrix_x4_trans(rows, from + slice * 16 * S::ROW_BYTES + n * 32);
                mma_16x8x16<T>(acc[n], rows, columns);
            }
        }
    }

    // Put all columns of the rows into `merge` (ROWS, MERGE_STRIDE), and base and sum into `stats` (ROWS, 2).
    template <int COLUMN>
    __device__ __forceinline__ void share_columns(float* merge, float* stats) const {
        const int row = lane % 4 * 2, column = lane / 4;
#pragma unroll
        for (int n = 0; n < K_STEPS; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                merge[(row + i % 2) * S::MERGE_STRIDE + n * 16 + i / 2 * 8 + column] = acc[n][i];
            }
        }
        if (column != 0) return;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            stats[(row + i) * 2] = row_base[i];
            stats[(row + i) * 2 + 1] = sums[i];
        }
    }
};
