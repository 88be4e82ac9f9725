// How a small model's layer is cut (see small_linear.cuh), and what its sums become.
#pragma once

#include "element.cuh"
#include "math.cuh"
#include "relaxed.cuh"

#include "params.cuh"

__device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// The most warps, up to 12, that can have equally many steps; small.py has the same.
__device__ constexpr int warps_for(int columns) {
    int warps = 12;
    while (columns / 32 % warps != 0) --warps;
    return warps;
}

template <class T_, Mode MODE_, int OUTPUTS_, int COLUMNS_, int TILES_, int ROW_BLOCKS_>
struct Shape {
    using T = T_;
    static constexpr Mode MODE = MODE_;
    static constexpr int OUTPUTS = OUTPUTS_, COLUMNS = COLUMNS_, TILES = TILES_, ROW_BLOCKS = ROW_BLOCKS_;
    static constexpr int ROWS = 8 * ROW_BLOCKS;
    static constexpr int ALL_TILES = OUTPUTS / 16;
    static constexpr bool HAS_FACTORS = MODE != RESIDUAL || SCALES_ROWS<T>;
    static constexpr int WARPS = warps_for(COLUMNS);  // that multiply
    static constexpr int THREADS = 32 * (WARPS + (HAS_FACTORS ? 1 : 0));
    static constexpr int STEPS = COLUMNS / 32 / WARPS;  // of a warp, 32 columns each
    static constexpr int BLOCKS = TILES * ROW_BLOCKS;   // of 16 outputs and 8 rows
    static constexpr int ITEMS = ceil_div(64 * BLOCKS, THREADS);
    static constexpr int CHAINS = MODE == GATED ? 1 : 2;  // of products that wait for each other; the same in every cut
    static constexpr int HALF = 64;  // floats of 8 outputs of 8 rows
    static constexpr int SQUARES = ceil_div(HIDDEN / 16, 4);  // of a row's parts, that a lane adds
    static_assert(OUTPUTS % 16 == 0 && COLUMNS % 32 == 0, "checked by small.py");

    // Where a row's 8 outputs lie among a block's: so that neither a warp's writes nor its reads share banks.
    __device__ static int slot(int row) { return (row ^ row / 4) * 8; }

    // Two outputs that one thread has: rows i and i + 8 of operand A.
    __device__ static int low_output(int tile, int i) {
        if (MODE == GATED) return 8 * tile + i;
        if (MODE == QKV) return tile / (HEAD_DIM / 16) * HEAD_DIM + tile % (HEAD_DIM / 16) * 8 + i;
        return 16 * tile + i;
    }
    static constexpr int TO_HIGH = MODE == GATED ? OUTPUTS / 2 : MODE == QKV ? HEAD_DIM / 2 : 8;
};

__device__ __forceinline__ unsigned long long address(const void* pointer) {
    return reinterpret_cast<unsigned long long>(pointer);
}

// What a thread finishes: two outputs of one row.
template <class S>
struct SmallItem {
    using T = typename S::T;
    int sums;  // where the warps' sums are
    int row;   // among the block's
    bool is_real;
    bool is_turned = true;         // QKV: queries and keys
    float low_bias = 0, high_bias = 0;
    float low, high;               // RESIDUAL: the stream
    T low_weight, high_weight;     // RESIDUAL: the next norm's; QKV: cos and sin
    long long place = 0;           // QKV: of keys and values, the row in the cache
    T* target;                     // the first output's, in y or, without its place, in the cache
    float* hidden = nullptr;       // RESIDUAL: likewise
    float* squares = nullptr;      // RESIDUAL: of these 16 outputs
    const T* cos = nullptr;        // QKV
    const T* sin = nullptr;
    const long long* place_from = nullptr;

    // All that no other launch writes. Neighbouring threads have neighbouring outputs.
    __device__ void describe(const LayerLinearParams& params, int index) {
        const int block = index / 64, i = index % 8, block_row = index / 8 % 8;
        const int tile = static_cast<int>(blockIdx.x) * S::TILES + block / S::ROW_BLOCKS;
        const int low_output = S::low_output(tile, i);
        sums = block * 2 * S::HALF + S::slot(block_row) + i;
        row = block % S::ROW_BLOCKS * 8 + block_row;
        const int at_row = static_cast<int>(blockIdx.y) * S::ROWS + row;
        is_real = index < 64 * S::BLOCKS && tile < S::ALL_TILES && at_row < params.rows;
        target = static_cast<T*>(params.y);
        if (!is_real) return;
        if constexpr (S::MODE == QKV) {
            describe_head(params, at_row, low_output);
        } else if constexpr (S::MODE == GATED) {
            target += at_row * (S::OUTPUTS / 2) + low_output;
        } else {
            target += at_row * S::OUTPUTS + low_output;
            hidden = params.hidden + at_row * S::OUTPUTS + low_output;
            squares = params.squares_out + at_row * S::ALL_TILES + tile;
            low_weight = static_cast<const T*>(params.norm)[low_output];
            high_weight = static_cast<const T*>(params.norm)[low_output + S::TO_HIGH];
        }
    }

    __device__ void describe_head(const LayerLinearParams& params, int at_row, int low_output) {
        const int head = low_output / HEAD_DIM, dimension = low_output % HEAD_DIM, key = head - NUM_HEADS;
        is_turned = key < NUM_KV_HEADS;
        cos = static_cast<const T*>(params.cos) + at_row * HEAD_DIM + dimension;
        sin = static_cast<const T*>(params.sin) + at_row * HEAD_DIM + dimension + HEAD_DIM / 2;
        if (key < 0) {
            target += at_row * NUM_HEADS * HEAD_DIM + low_output;
        } else {
            const int kv_head = is_turned ? key : key - NUM_KV_HEADS;
            target = static_cast<T*>(is_turned ? params.k_cache : params.v_cache);
            target += kv_head * params.block_size * HEAD_DIM + dimension;
            place_from = params.kv_rows + at_row;
        }
        if (params.bias == nullptr) return;
        low_bias = to_float(static_cast<const T*>(params.bias)[low_output]);
        high_bias = to_float(static_cast<const T*>(params.bias)[low_output + S::TO_HIGH]);
    }

    __device__ unsigned long long addresses() const {
        return address(target) | address(hidden) | address(squares) | address(cos) | address(sin) | address(place_from);
    }

    __device__ void load() {
        if (!is_real) return;
        if constexpr (S::MODE == RESIDUAL) {
            low = __uint_as_float(load_relaxed(reinterpret_cast<const unsigned*>(hidden)));
            high = __uint_as_float(load_relaxed(reinterpret_cast<const unsigned*>(hidden) + S::TO_HIGH));
        }
        if constexpr (S::MODE == QKV) {
            low_weight = *cos;
            high_weight = *sin;
            if (place_from != nullptr) place = *place_from;
        }
    }

    // Write what the sums become; returns the squares of the new stream.
    __device__ float finish(float first, float second, float scale) const {
        if constexpr (S::MODE == QKV) {
            const float turn = is_turned ? to_float(low_weight) : 1, across = is_turned ? to_float(high_weight) : 0;
            first += low_bias;
            second += high_bias;
            T* at = target + place * HEAD_DIM;
            at[0] = from_float<T>(first * turn - second * across);
            at[HEAD_DIM / 2] = from_float<T>(second * turn + first * across);
        } else if constexpr (S::MODE == GATED) {
            constexpr float LOG2_E = 1.4426950408889634f;
            target[0] = from_float<T>(first * reciprocal_fast(1.0f + exp2_fast(-LOG2_E * first)) * second);
        } else {
            const float a = low + first, b = high + second;
            hidden[0] = a;
            hidden[S::TO_HIGH] = b;
            target[0] = from_float<T>(a * to_float(low_weight) * scale);
            target[S::TO_HIGH] = from_float<T>(b * to_float(high_weight) * scale);
            return a * a + b * b;
        }
        return 0;
    }
};
