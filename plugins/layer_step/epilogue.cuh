// What a layer's sums become: see Mode.
#pragma once

#include "linear.cuh"

// silu(first) x second
__device__ __forceinline__ float gate(float first, float second) {
    constexpr float LOG2_E = 1.4426950408889634f;
    return first * reciprocal_fast(1.0f + exp2_fast(-LOG2_E * first)) * second;
}

enum Head { QUERY, KEY, VALUE };

// A thread's share of a tile: two outputs of one row, and what it needs of memory beside their sums.
template <class T>
struct Item {
    Pair outputs;
    int local;         // the pair's index among the block's
    int row, at_row;   // among the block's, and in memory
    bool is_real;
    int head, at;      // QKV: a Head, and the first output's dimension
    long long target;  // QKV: where the first output goes in its tensor
    long long place;             // QKV: of keys and values, the row in the cache
    float low, high;             // RESIDUAL: the stream
    T low_weight, high_weight;   // RESIDUAL: the next norm's; QKV: cos and sin

    // All that no other launch writes. Items are dealt so that neighbouring threads have neighbouring outputs.
    __device__ void describe(const LayerLinearParams& params, const Cut& cut, int tile, int index) {
        local = index & (cut.pairs - 1);
        row = index >> cut.pair_shift;
        outputs = pair_of(params, tile * 8 * params.row_warps + (cut.rank << cut.pair_shift) + local);
        is_real = row < cut.rows && outputs.low >= 0;
        at_row = cut.first_row + row;
        head = at = 0;
        target = place = 0;
        if (!is_real) return;
        if (params.mode == QKV) describe_head(params);
        if (params.mode == RESIDUAL) {
            low_weight = static_cast<const T*>(params.norm)[outputs.low];
            high_weight = static_cast<const T*>(params.norm)[outputs.high];
        }
    }

    __device__ void describe_head(const LayerLinearParams& params) {
        const int index = outputs.low / params.head_dim, key = index - params.num_heads;
        at = outputs.low - index * params.head_dim;
        head = key < 0 ? QUERY : key < params.num_kv_heads ? KEY : VALUE;
        const int kv_head = head == KEY ? key : key - params.num_kv_heads;
        target = head == QUERY ? at_row * params.num_heads + index : kv_head * params.block_size;
        target = target * params.head_dim + at;
    }

    // The head's norm: its squares are in parts.
    template <int ROWS>
    __device__ void norm_head(const LayerLinearParams& params, const float2* parts, int num_parts, float& first, float& second) const {
        if (head == VALUE) return;
        float squares = 0;
        for (int part = 0; part < num_parts; ++part) squares += parts[part * ROWS + row].x;
        const float factor = rsqrt_fast(squares / params.head_dim + params.eps);
        const T* weight = static_cast<const T*>(head == QUERY ? params.q_norm : params.k_norm) + at;
        first *= factor * to_float(weight[0]);
        second *= factor * to_float(weight[params.head_dim / 2]);
    }

    __device__ int largest() const { return max(max(local + row, head), max(max(outputs.low, outputs.high), at)); }

    __device__ void load(const LayerLinearParams& params) {
        if (!is_real) return;
        if (params.mode == RESIDUAL) {
            const unsigned* hidden = reinterpret_cast<const unsigned*>(params.hidden) + at_row * params.outputs;
            low = __uint_as_float(load_relaxed(hidden + outputs.low));
            high = __uint_as_float(load_relaxed(hidden + outputs.high));
        } else if (params.mode == QKV) {
            if (head != QUERY) place = params.kv_rows[at_row];
            if (head == VALUE) return;
            const int angle = at_row * params.head_dim + at;
            low_weight = static_cast<const T*>(params.cos)[angle];
            high_weight = static_cast<const T*>(params.sin)[angle + params.head_dim / 2];
        }
    }

    // Write what the sums become; returns the squares of the new stream.
    __device__ float finish(const LayerLinearParams& params, float first, float second, float scale) const {
        if (params.mode == QKV) {
            store_head(params, first, second);
        } else if (params.mode == GATED) {
            static_cast<T*>(params.y)[at_row * (params.outputs / 2) + outputs.low] = from_float<T>(gate(first, second));
        } else if (params.mode == RESIDUAL) {
            const float a = low + first, b = high + second;
            const int first_output = at_row * params.outputs;
            params.hidden[first_output + outputs.low] = a;
            params.hidden[first_output + outputs.high] = b;
            T* y = static_cast<T*>(params.y) + first_output;
            y[outputs.low] = from_float<T>(a * to_float(low_weight) * scale);
            y[outputs.high] = from_float<T>(b * to_float(high_weight) * scale);
            return a * a + b * b;
        } else {
            store(params, outputs.low, first);
            if (outputs.high >= 0) store(params, outputs.high, second);
        }
        return 0;
    }

    __device__ void store_head(const LayerLinearParams& params, float first, float second) const {
        void* y = head == QUERY ? params.y : head == KEY ? params.k_cache : params.v_cache;
        const float cos = head == VALUE ? 1 : to_float(low_weight), sin = head == VALUE ? 0 : to_float(high_weight);
        T* at_target = static_cast<T*>(y) + target + place * params.head_dim;
        at_target[0] = from_float<T>(first * cos - second * sin);
        at_target[params.head_dim / 2] = from_float<T>(second * cos + first * sin);
    }

    __device__ void store(const LayerLinearParams& params, int output, float value) const {
        const long long at = static_cast<long long>(at_row) * params.outputs + output;
        if (params.mode == LOGITS)
            static_cast<float*>(params.y)[at] = value;
        else
            static_cast<T*>(params.y)[at] = from_float<T>(value);
    }
};

// The two sums of an item, normed and with their bias.
template <class T, int ROW_BLOCKS>
__device__ __forceinline__ float2 sum_item(
    const LayerLinearParams& params, const Cut& cut, const SharedLayout<ROW_BLOCKS>& shared, const Item<T>& item) {
    constexpr int PITCH = SharedLayout<ROW_BLOCKS>::SUM_PITCH, ROWS = SharedLayout<ROW_BLOCKS>::ROWS;
    const int parts = cut.cluster * cut.column_warps;
    const float* sums = shared.sums + item.local * PITCH + item.row;
    float low = 0, high = 0;
#pragma unroll 4
    for (int part = 0; part < parts; ++part) {
        low += sums[(part << cut.pair_shift) * PITCH];
        high += sums[(part << cut.pair_shift) * PITCH + ROWS];
    }
    if (params.squares != nullptr && params.mode != RESIDUAL) {
        low *= shared.factors[item.row];
        high *= shared.factors[item.row];
    }
    if (params.bias != nullptr) {
        low += to_float(static_cast<const T*>(params.bias)[item.outputs.low]);
        if (item.outputs.high >= 0) high += to_float(static_cast<const T*>(params.bias)[item.outputs.high]);
    }
    return make_float2(low, high);
}

// Finish this block's share of a tile. `ahead` has been loaded, unless `is_ahead` is false.
template <class T, int ROW_BLOCKS>
__device__ __forceinline__ void finish_tile(
    const LayerLinearParams& params, const Cut& cut, const SharedLayout<ROW_BLOCKS>& shared, int tile,
    const Item<T>& ahead, bool is_ahead) {
    const int total = cut.rows << cut.pair_shift;
#pragma unroll 1
    for (int first = 0; first < total; first += THREADS) {
        Item<T> item = ahead;
        if (first > 0 || !is_ahead) {
            item.describe(params, cut, tile, first + static_cast<int>(threadIdx.x));
            item.load(params);
        }
        float squares = 0;
        if (item.is_real) {
            const float2 sums = sum_item<T, ROW_BLOCKS>(params, cut, shared, item);
            const float scale = SCALES_ROWS<T> && params.mode == RESIDUAL ? shared.factors[item.row] : 1;
            squares = item.finish(params, sums.x, sums.y, scale);
        }
        if (params.mode != RESIDUAL) continue;
        const int lanes = min(cut.pairs, 32), groups = cut.pairs > 32 ? 2 : 1;
        for (int mask = lanes / 2; mask > 0; mask /= 2) squares += shfl_xor(squares, mask);
        if (item.row < cut.rows && (item.local & (lanes - 1)) == 0) {
            const int part = (tile * cut.cluster + cut.rank) * groups + (item.local >= 32 ? 1 : 0);
            params.squares_out[item.at_row * params.tiles * cut.cluster * groups + part] = squares;
        }
    }
}

// The same where queries and keys are normed: a tile is a head, of which a block has 8 pairs, and its squares go to all
// blocks of the cluster before any can finish.
template <class T, int ROW_BLOCKS>
__device__ __forceinline__ void finish_head(
    const LayerLinearParams& params, const Cut& cut, const SharedLayout<ROW_BLOCKS>& shared, int tile,
    const Item<T>& ahead, bool is_ahead, unsigned parity) {
    constexpr int ROWS = SharedLayout<ROW_BLOCKS>::ROWS, ITEMS = ceil_div(8 * ROWS, THREADS);
    Item<T> items[ITEMS];
    float2 sums[ITEMS];
    if (threadIdx.x == 0) mbarrier_arrive_expect(shared.squared, cut.cluster * cut.rows * sizeof(float2));
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        items[i] = ahead;
        if (i > 0 || !is_ahead) {
            items[i].describe(params, cut, tile, i * THREADS + static_cast<int>(threadIdx.x));
            items[i].load(params);
        }
        sums[i] = items[i].is_real ? sum_item<T, ROW_BLOCKS>(params, cut, shared, items[i]) : make_float2(0, 0);
        float squares = sums[i].x * sums[i].x + sums[i].y * sums[i].y;
#pragma unroll
        for (int mask = 4; mask > 0; mask /= 2) squares += shfl_xor(squares, mask);
        // Each of the pair's 8 lanes sends them to one block.
        if (items[i].row < cut.rows && items[i].local < cut.cluster) {
            const unsigned to = static_cast<unsigned>(items[i].local);
            store_peer8(peer_pointer(shared.heads + cut.rank * ROWS + items[i].row, to), peer_pointer(shared.squared, to),
                        make_float2(squares, 0));
        }
    }
    mbarrier_wait(shared.squared, parity);
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (!items[i].is_real) continue;
        items[i].template norm_head<ROWS>(params, shared.heads, cut.cluster, sums[i].x, sums[i].y);
        items[i].finish(params, sums[i].x, sums[i].y, 1);
    }
}
