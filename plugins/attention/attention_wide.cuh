// The products of 16 or 32 rows per warp: rows of the tile are rows of both products.
#pragma once

#include "attention.cuh"

template <class S>
struct WideRows {
    using T = typename S::T;
    static constexpr int K_STEPS = S::D / 16;
    static constexpr int N_STEPS = S::D / 8;
    static constexpr int KEY_STEPS = S::CHUNK / 8;
    using Scores = float[S::ROW_TILES][KEY_STEPS][4];
    using Keys = typename S::Keys;

    int lane, first_row;  // of this warp in the tile
    const unsigned char* queries;
    unsigned fragments[S::Q_IN_REGISTERS ? S::ROW_TILES : 1][S::Q_IN_REGISTERS ? K_STEPS : 1][4];
    float acc[S::ROW_TILES][N_STEPS][4];
    float sums[S::ROW_TILES][4];       // products with ones; elements 0 and 2 are of rows lane / 4 and lane / 4 + 8
    float row_base[S::ROW_TILES][2];   // exponent of 2 that weights are relative to, of the same rows
    Keys visible[S::ROW_TILES][2];

    __device__ __forceinline__ void start(const AttentionParams& params, const AttentionTask& task, int row_warp) {
        lane = lane_id();
        first_row = row_warp * S::WARP_ROWS;
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                visible[m][half] = {params, task, row_of(m, half)};
                row_base[m][half] = MINUS_INFINITY;
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sums[m][i] = 0.0f;
#pragma unroll
                for (int n = 0; n < N_STEPS; ++n) acc[m][n][i] = 0.0f;
            }
        }
    }

    __device__ __forceinline__ int row_of(int m, int half) const { return first_row + m * 16 + half * 8 + lane / 4; }

    __device__ __forceinline__ void load_queries(const unsigned char* q_shared) {
        queries = q_shared;
        if constexpr (S::Q_IN_REGISTERS) {
#pragma unroll
            for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
                for (int step = 0; step < K_STEPS; ++step) load_fragment(fragments[m][step], m, step);
            }
        }
    }

    __device__ __forceinline__ void load_fragment(unsigned (&fragment)[4], int m, int step) const {
        const int row = first_row + m * 16 + lane % 16;
        ldmatrix_x4(fragment, queries + row * S::ROW_BYTES + step * 32 + lane / 16 * 16);
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
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int n = 0; n < KEY_STEPS; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) scores[m][n][i] = 0.0f;
            }
        }
        // Lanes 0-7 and 8-15 name the two halves of a key's 16 elements, lanes 16-31 the same of 8 further keys.
        const unsigned char* from = keys + (lane / 16 * 8 + lane % 8) * S::ROW_BYTES + lane / 8 % 2 * 16;
#pragma unroll
        for (int step = 0; step < K_STEPS; ++step) {
            unsigned rows[S::ROW_TILES][4];
#pragma unroll
            for (int m = 0; m < S::ROW_TILES; ++m) {
                if constexpr (S::Q_IN_REGISTERS) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) rows[m][i] = fragments[m][step][i];
                } else {
                    load_fragment(rows[m], m, step);
                }
            }
#pragma unroll
            for (int n = 0; n < KEY_STEPS; n += 2) {
                unsigned columns[4];
                ldmatrix_x4(columns, from + n * 8 * S::ROW_BYTES + step * 32);
                const unsigned low[2] = {columns[0], columns[1]}, high[2] = {columns[2], columns[3]};
#pragma unroll
                for (int m = 0; m < S::ROW_TILES; ++m) {
                    mma_16x8x16<T>(scores[m][n], rows[m], low);
                    mma_16x8x16<T>(scores[m][n + 1], rows[m], high);
                }
            }
        }
    }

    __device__ __forceinline__ void hide_unseen(Scores& scores, int first_key, const AttentionParams& params) const {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int n = 0; n < KEY_STEPS; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int key = first_key + n * 8 + lane % 4 * 2 + i % 2;
                    if (!visible[m][i / 2].sees(key, params)) scores[m][n][i] = MINUS_INFINITY;
                }
            }
        }
    }

    // scores become 2^(score - base) of the row; older sums and values are rescaled where the base moves.
    __device__ __forceinline__ void exponentiate(Scores& scores, float log2_scale) {
        float rescales[S::ROW_TILES][2];
        bool moves = false;
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float highest = MINUS_INFINITY;
#pragma unroll
                for (int n = 0; n < KEY_STEPS; ++n) {
                    highest = fmaxf(highest, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
                }
                highest = fmaxf(highest, shfl_xor(highest, 1));
                highest = fmaxf(highest, shfl_xor(highest, 2));
                rescales[m][half] = move_base(row_base[m][half], highest * log2_scale);
                moves |= rescales[m][half] != 1.0f;
                const float base = finite_base(row_base[m][half]);
#pragma unroll
                for (int n = 0; n < KEY_STEPS; ++n) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        scores[m][n][i] = exp2_fast(fmaf(scores[m][n][i], log2_scale, -base));
                    }
                }
            }
        }
        if (warp_ballot(moves) != 0) rescale_values(rescales);
    }

    __device__ __forceinline__ void rescale_values(const float (&rescales)[S::ROW_TILES][2]) {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sums[m][i] *= rescales[m][i / 2];
#pragma unroll
                for (int n = 0; n < N_STEPS; ++n) acc[m][n][i] *= rescales[m][i / 2];
            }
        }
    }

    __device__ __forceinline__ void add_values(const Scores& weights, const unsigned char* values) {
        const unsigned one = pack2<T>(1.0f, 1.0f), ones[2] = {one, one};
        // Lanes 0-15 name 16 keys' first 8 elements, lanes 16-31 the next 8; the load transposes.
        const unsigned char* from = values + lane % 16 * S::ROW_BYTES + lane / 16 * 16;
#pragma unroll
        for (int step = 0; step < S::CHUNK / 16; ++step) {
            unsigned rows[S::ROW_TILES][4];
#pragma unroll
            for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float* pair = &weights[m][2 * step + i / 2][i % 2 * 2];
                    rows[m][i] = pack2<T>(pair[0], pair[1]);
                }
                mma_16x8x16<T>(sums[m], rows[m], ones);
            }
#pragma unroll
            for (int n = 0; n < N_STEPS; n += 2) {
                unsigned columns[4];
                ldmatrix_x4_trans(columns, from + step * 16 * S::ROW_BYTES + n * 16);
                const unsigned low[2] = {columns[0], columns[1]}, high[2] = {columns[2], columns[3]};
#pragma unroll
                for (int m = 0; m < S::ROW_TILES; ++m) {
                    mma_16x8x16<T>(acc[m][n], rows[m], low);
                    mma_16x8x16<T>(acc[m][n + 1], rows[m], high);
                }
            }
        }
    }

    // Put columns COLUMN .. COLUMN + MERGE_COLUMNS of this warp's rows into `merge` (ROWS, MERGE_STRIDE), and with the
    // first also base and sum into `stats` (ROWS, 2).
    template <int COLUMN>
    __device__ __forceinline__ void share_columns(float* merge, float* stats) const {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = row_of(m, half);
                float* to = merge + row * S::MERGE_STRIDE + lane % 4 * 2;
#pragma unroll
                for (int n = 0; n < S::MERGE_COLUMNS / 8; ++n) {
                    to[n * 8] = acc[m][COLUMN / 8 + n][2 * half];
                    to[n * 8 + 1] = acc[m][COLUMN / 8 + n][2 * half + 1];
                }
                if (COLUMN == 0 && lane % 4 == 0) {
                    stats[row * 2] = row_base[m][half];
                    stats[row * 2 + 1] = sums[m][2 * half];
                }
            }
        }
    }

    // One key warp: its rows are final.
    __device__ __forceinline__ void write_rows(const AttentionParams& params, const AttentionTask& task) const {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = row_of(m, half);
                if (row >= task.num_rows) continue;
                const float sum = sums[m][2 * half], inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
                T* to = static_cast<T*>(params.out) + out_offset(params, task, row) + lane % 4 * 2;
#pragma unroll
                for (int n = 0; n < N_STEPS; ++n) {
                    *reinterpret_cast<unsigned*>(to + n * 8) =
                        pack2<T>(acc[m][n][2 * half] * inverse, acc[m][n][2 * half + 1] * inverse);
                }
            }
        }
    }
};
