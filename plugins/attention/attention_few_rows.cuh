// The softmax of a group's visits, of attention_few.cuh.
#pragma once

#include "attention_few.cuh"

template <class S>
struct FewRows {
    using T = typename S::T;
    using Scores = float[S::SLOTS][2][4];

    const FewParams& params;
    const FewShared<S>& shared;
    int lane, warp, group;
    TreeKeys visible[2];
    float row_base[2];            // exponent of 2 that weights are relative to; the same in all warps of the group
    float sums[2];                // of the weights of this thread's keys
    float acc[S::COLUMNS][2][4];  // of even and odd steps of 16 keys

    __device__ __forceinline__ FewRows(const FewParams& params_, const AttentionTask& task, const FewShared<S>& shared_)
        : params(params_), shared(shared_), lane(lane_id()) {
        warp = static_cast<int>(warp_id()) % GROUP_WARPS;
        group = static_cast<int>(warp_id()) / GROUP_WARPS;
#pragma unroll
        for (int half = 0; half < 2; ++half) visible[half] = {params, task, half * 8 + lane / 4};
    }

    __device__ __forceinline__ void group_sync() const { named_sync(1 + group, GROUP_THREADS); }

    __device__ __forceinline__ void clear() {
        row_base[0] = row_base[1] = MINUS_INFINITY;
        sums[0] = sums[1] = 0;
#pragma unroll
        for (int i = 0; i < 8 * S::COLUMNS; ++i) acc[i / 8][i / 4 % 2][i % 4] = 0;
    }

    __device__ __forceinline__ void multiply_keys(Scores& scores, const unsigned char* stage) const {
        constexpr int BATCH = S::K_STEPS % 4 == 0 ? 4 : 2;  // steps whose operands are loaded at once
#pragma unroll
        for (int i = 0; i < 8 * S::SLOTS; ++i) scores[i / 8][i / 4 % 2][i % 4] = 0;
        // Lanes 0-7 and 8-15 name the two halves of a key's 16 elements, lanes 16-31 the same of 8 further keys.
        const unsigned char* keys =
            stage + (warp * SLICE_KEYS + lane / 16 * 8 + lane % 8) * S::ROW_BYTES + lane / 8 % 2 * 16;
        const unsigned char* queries = shared.queries + lane % 16 * S::ROW_BYTES + lane / 16 * 16;
#pragma unroll
        for (int first = 0; first < S::K_STEPS; first += BATCH) {
            unsigned rows[BATCH][4], columns[BATCH][S::SLOTS][4];
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                ldmatrix_x4(rows[i], queries + (first + i) * 32);
#pragma unroll
                for (int slot = 0; slot < S::SLOTS; ++slot)
                    ldmatrix_x4(columns[i][slot],
                                keys + slot * (GROUP_WARPS * SLICE_KEYS * S::ROW_BYTES) + (first + i) * 32);
            }
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
#pragma unroll
                for (int slot = 0; slot < S::SLOTS; ++slot) {
                    mma_16x8x16<T>(scores[slot][0], rows[i], {columns[i][slot][0], columns[i][slot][1]});
                    mma_16x8x16<T>(scores[slot][1], rows[i], {columns[i][slot][2], columns[i][slot][3]});
                }
            }
        }
    }

    __device__ __forceinline__ void hide_unseen(Scores& scores, int slot, int first_key) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const unsigned seen = visible[half].seen_in(first_key) >> lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (!(seen >> (i / 2 * 8 + i % 2) & 1)) scores[slot][i / 2][2 * half + i % 2] = MINUS_INFINITY;
            }
        }
    }

    // Leave the rows' largest scores of this warp's keys where the group's warps see them.
    __device__ __forceinline__ void share_maxima(const Scores& scores) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float highest = MINUS_INFINITY;
#pragma unroll
            for (int i = 0; i < 4 * S::SLOTS; ++i)
                highest = fmaxf(highest, scores[i / 4][i / 2 % 2][2 * half + i % 2]);
            highest = fmaxf(highest, shfl_xor(highest, 1));
            highest = fmaxf(highest, shfl_xor(highest, 2));
            if (lane % 4 == 0) shared.maxima[(half * 8 + lane / 4) * GROUP_WARPS + warp] = highest;
        }
    }

    __device__ __forceinline__ float highest_of(int row) const {
        const uint4 all = load16(shared.maxima + row * GROUP_WARPS);
        return fmaxf(fmaxf(__uint_as_float(all.x), __uint_as_float(all.y)),
                     fmaxf(__uint_as_float(all.z), __uint_as_float(all.w)));
    }

    // Share 2^(score - base) of the row; older sums and values are rescaled where the base moves.
    __device__ __forceinline__ void share_weights(const Scores& scores) {
        const float highest[2] = {highest_of(lane / 4), highest_of(8 + lane / 4)};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float rescale = move_base(row_base[half], highest[half] * params.log2_scale);
            const float base = finite_base(row_base[half]);
            unsigned char* to =
                shared.weights + (half * 8 + lane / 4) * S::WEIGHT_BYTES + (warp * SLICE_KEYS + lane % 4 * 2) * 2;
            sums[half] *= rescale;
#pragma unroll
            for (int i = 0; i < 2 * S::SLOTS; ++i) {
                const float* pair = &scores[i / 2][i % 2][2 * half];
                const float low = exp2_fast(fmaf(pair[0], params.log2_scale, -base));
                const float high = exp2_fast(fmaf(pair[1], params.log2_scale, -base));
                sums[half] += low + high;
                *reinterpret_cast<unsigned*>(to + i / 2 * (GROUP_WARPS * SLICE_KEYS * 2) + i % 2 * 16) =
                    pack2<T>(low, high);
            }
#pragma unroll
            for (int i = 0; i < 4 * S::COLUMNS; ++i) acc[i / 4][i / 2 % 2][2 * half + i % 2] *= rescale;
        }
    }

    // Weigh the first `num_keys` values of a visit; those up to the next multiple of 64 have no weight.
    __device__ __forceinline__ void add_values(const unsigned char* values, int num_keys) {
        const unsigned char* weights = shared.weights + lane % 16 * S::WEIGHT_BYTES + lane / 16 * 16;
        const unsigned char* rows = values + lane * S::ROW_BYTES + warp * (S::COLUMNS * 16);
#pragma unroll
        for (int first = 0; first < S::KEYS; first += 64) {
            if (first >= num_keys) break;
            unsigned fragments[4][4], columns[2][S::COLUMNS][4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                ldmatrix_x4(fragments[i], weights + (first + i * 16) * 2);
                if (i % 2 == 1) continue;
#pragma unroll
                for (int j = 0; j < S::COLUMNS; ++j)
                    ldmatrix_x4_trans(columns[i / 2][j], rows + (first + i * 16) * S::ROW_BYTES + j * 16);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int j = 0; j < S::COLUMNS; ++j) {
                    const unsigned(&pairs)[4] = columns[i / 2][j];
                    mma_16x8x16<T>(acc[j][i % 2], fragments[i], {pairs[i % 2 * 2], pairs[i % 2 * 2 + 1]});
                }
            }
        }
    }

    // Leave what a sub gave: quads of values, then (TILE_ROWS, GROUP_WARPS) sums and (TILE_ROWS,) bases.
    __device__ __forceinline__ void store(unsigned char* sub) const {
        const int thread = warp * 32 + lane;
#pragma unroll
        for (int j = 0; j < S::COLUMNS; ++j) {
            uint4 quad;
            unsigned* words = &quad.x;
#pragma unroll
            for (int i = 0; i < 4; ++i) words[i] = __float_as_uint(acc[j][0][i] + acc[j][1][i]);
            store16(sub + (j * GROUP_THREADS + thread) * 16, quad);
        }
        float* stats = reinterpret_cast<float*>(sub + S::QUADS * 16);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = half * 8 + lane / 4;
            float sum = sums[half];
            sum += shfl_xor(sum, 1);
            sum += shfl_xor(sum, 2);
            if (lane % 4 != 0) continue;
            stats[row * GROUP_WARPS + warp] = sum;
            if (warp == 0) stats[TILE_ROWS * GROUP_WARPS + row] = row_base[half];
        }
    }
};
