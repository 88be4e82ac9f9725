// What the launches of a layer over few rows take; mirrored in params.py.
#pragma once

#include "element.cuh"

// Whether what a norm's layer reads, stream x norm, is multiplied with a power of two of the row's: the stream may exceed
// float16, and its size is known only when all of it is. The rms of the stream one sublayer before says enough, with a
// margin of 2^4 and all but 2^-20 of the rms represented.
template <class T>
constexpr bool SCALES_ROWS = false;
template <>
constexpr bool SCALES_ROWS<float16> = true;

__device__ __forceinline__ float row_scale(float inverse_rms) {
    return __uint_as_float(__float_as_uint(inverse_rms) & 0x7f800000u) * 0.0625f;
}

// What a linear layer does with its sums.
enum Mode {
    QKV,       // + bias, rotary positions, queries to `y`, keys and values to the cache
    RESIDUAL,  // + the residual stream, and what the next norm needs of it
    GATED,     // silu(first half) x second half to `y`
    PLAIN,     // + bias, to `y`
    LOGITS,    // float to `y`
};

struct LayerLinearParams {
    const void* x;               // (parts, R, K), the parts of a row to be added
    const void* weight;          // (M, K)
    const void* bias;            // (M,), or null
    const float* squares;        // (R, num_squares), whose sum over a row is the stream's sum of squares; null: no norm
    const void* q_norm;          // QKV: (D,), or null; then a tile is a head, which a cluster of as many blocks as it has
    const void* k_norm;          //   row warps finishes
    const float* scales;         // (R,), what x was multiplied with; null where SCALES_ROWS says no
    float* hidden;               // RESIDUAL: (R, M), the stream, updated in place
    const void* norm;            // RESIDUAL: (M,), weight of the next norm
    float* squares_out;          // RESIDUAL: (R, tiles x cluster), or twice that where a block has 64 pairs of a tile
    float* scales_out;           // RESIDUAL: (R,), likewise
    void* y;                     // QKV: (R, N, D); RESIDUAL: (R, M), stream x norm; GATED: (R, M / 2); else (R, M)
    const void* cos;             // QKV: (R, D)
    const void* sin;             // QKV: (R, D), the first half negated
    const long long* kv_rows;    // QKV: (R,), a token's row of the cache for the first head
    void* k_cache;               // QKV: rows of D
    void* v_cache;
    int rows;         // R
    int columns;      // K, a multiple of 32
    int outputs;      // M
    int mode;
    int parts;
    int num_squares;
    int row_warps;    // 1, 2, 4 or 8 warps of 16 outputs make a tile
    int tiles;
    int num_heads;
    int num_kv_heads;
    int head_dim;
    int block_size;   // of the cache: rows between heads
    float eps;
    int trace;        // a number from 1 on where the launch is traced
};
static_assert(sizeof(LayerLinearParams) == 17 * 8 + 14 * 4, "mirrored in params.py");

struct RowsParams {
    const long long* token_ids;        // (R,)
    const long long* cache_positions;  // (R,)
    const long long* query_starts;     // (B + 1,)
    const long long* block_tables;     // (B, max_blocks)
    const void* embedding;             // (V, H)
    const void* norm;                  // (H,), the first norm's weight; at the end, of the last, float
    float* hidden;                     // (R, H)
    void* scaled;                      // (R, H), stream x norm; at the end (2, R, H), the normed stream in two parts
    float* squares;                    // (R, 1); at the end (R, H), the normed stream
    float* scales;                     // (R,), what the row was multiplied with; null where SCALES_ROWS says no
    long long* kv_rows;                // (R,)
    const long long* positions;        // (R,)
    const void* cos;                   // (positions, D): see rope_kv_write
    const void* sin;
    void* row_cos;                     // (R, D), likewise of the rows
    void* row_sin;
    int rows;
    int hidden_size;
    int num_requests;
    int max_blocks;
    int num_kv_heads;
    int block_size;
    int head_dim;
    float eps;
};
static_assert(sizeof(RowsParams) == 16 * 8 + 8 * 4, "mirrored in params.py");
