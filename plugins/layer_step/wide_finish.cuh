// What the sums of wide.cuh become: as Item's, with a kernel for each mode, since after the last product every instruction
// is waited for.
#pragma once

#include "epilogue.cuh"

constexpr int WIDE_OUTPUTS = 128, WIDE_PAIRS = WIDE_OUTPUTS / 2;
constexpr int WIDE_PITCH = WIDE_OUTPUTS + 4;  // floats of a row's sums: low outputs, then high ones
constexpr int WIDE_MOST_CLUSTER = 8;

// GATED and LOGITS, of a whole tile, by the threads that have the sums.
template <class T, int ROW_BLOCKS, Mode MODE>
__device__ __forceinline__ void finish_own(
    const LayerLinearParams& layer, int tile, const float (&sums)[ROW_BLOCKS][4], const float* factors) {
    const int lane = static_cast<int>(lane_id()), first = lane % 4 * 2;
    const int pair = tile * WIDE_PAIRS + static_cast<int>(warp_id()) * 8 + lane / 4;
    const bool is_normed = layer.squares != nullptr;
#pragma unroll
    for (int block = 0; block < ROW_BLOCKS; ++block) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = 8 * block + first + i;
            const float factor = is_normed ? factors[row] : 1;
            const float low = sums[block][i] * factor, high = sums[block][i + 2] * factor;
            if constexpr (MODE == GATED) {
                const int width = layer.outputs / 2;
                if (row < layer.rows && pair < width)
                    static_cast<T*>(layer.y)[row * width + pair] = from_float<T>(gate(low, high));
            } else {
                const int output = pair / 8 * 16 + pair % 8;
                if (row >= layer.rows || output >= layer.outputs) continue;
                float* y = static_cast<float*>(layer.y) + row * layer.outputs + output;
                y[0] = low;
                y[8] = high;
            }
        }
    }
}

// The sum over the cluster of neighbouring floats.
template <class Vector>
struct PartSums {
    const float* first;
    int parts, part_floats;

    __device__ __forceinline__ Vector at(int slot) const {
        Vector part[WIDE_MOST_CLUSTER] = {};
#pragma unroll
        for (int i = 0; i < WIDE_MOST_CLUSTER; ++i)
            if (i < parts) part[i] = *reinterpret_cast<const Vector*>(first + i * part_floats + slot);
        Vector sum = part[0];
#pragma unroll
        for (int i = 1; i < WIDE_MOST_CLUSTER; ++i) add(sum, part[i]);
        return sum;
    }

    __device__ __forceinline__ static void add(float2& sum, const float2& part) { sum.x += part.x, sum.y += part.y; }
    __device__ __forceinline__ static void add(float4& sum, const float4& part) {
        sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
};

// A lane's share of rows of a tile: prepared before the kernel waits, loaded after.
template <class T, Mode MODE>
struct WideShare;

// Four neighbouring outputs.
template <class T>
struct WideShare<T, RESIDUAL> {
    int output, slot;
    bool is_real;
    uint2 norm = {};
    uint4 stream = {};

    __device__ WideShare(const LayerLinearParams& layer, int tile) {
        const int lane = static_cast<int>(lane_id());
        output = tile * WIDE_OUTPUTS + 4 * lane;
        slot = lane / 4 * 8 + lane % 2 * 4 + lane % 4 / 2 * WIDE_PAIRS;
        is_real = output < layer.outputs;
        if (is_real) norm = *reinterpret_cast<const uint2*>(static_cast<const T*>(layer.norm) + output);
    }

    __device__ int largest() const { return max(output, slot); }

    __device__ void load(const LayerLinearParams& layer, int row) {
        if (is_real) stream = load_relaxed16(reinterpret_cast<const unsigned*>(layer.hidden) + row * layer.outputs + output);
    }

    __device__ void finish(const LayerLinearParams& layer, int row, int tile, const float* first, int parts, int part_floats, float factor) const {
        const float4 sum = PartSums<float4>{first, parts, part_floats}.at(slot);
        const float scale = SCALES_ROWS<T> ? factor : 1;
        const float4 added = {__uint_as_float(stream.x) + sum.x, __uint_as_float(stream.y) + sum.y,
                              __uint_as_float(stream.z) + sum.z, __uint_as_float(stream.w) + sum.w};
        float squares = 0;
        if (is_real) {
            const int at = row * layer.outputs + output;
            *reinterpret_cast<float4*>(layer.hidden + at) = added;
            const float2 low = unpack2<T>(norm.x), high = unpack2<T>(norm.y);
            *reinterpret_cast<uint2*>(static_cast<T*>(layer.y) + at) = {
                pack2<T>(added.x * low.x * scale, added.y * low.y * scale),
                pack2<T>(added.z * high.x * scale, added.w * high.y * scale)};
            squares = added.x * added.x + added.y * added.y + added.z * added.z + added.w * added.w;
        }
        squares = warp_sum(squares);
        if (lane_id() == 0) layer.squares_out[row * layer.tiles + tile] = squares;
    }
};

// Two neighbouring pairs of a head's dimensions: head_dim is a power of two.
template <class T>
struct WideShare<T, QKV> {
    int half, head, at;  // `head` among queries', keys' and values'
    bool is_real, is_query, is_value;
    float2 low_bias = {}, high_bias = {}, low_norm = {1, 1}, high_norm = {1, 1};
    T* target;           // in row 0
    long long place = 0;
    unsigned cos = 0, sin = 0;

    __device__ WideShare(const LayerLinearParams& layer, int tile) {
        const int pair = tile * WIDE_PAIRS + 2 * static_cast<int>(lane_id());
        half = layer.head_dim / 2;
        head = pair >> log2(half);
        at = pair & (half - 1);
        const int key = head - layer.num_heads, value = key - layer.num_kv_heads;
        is_query = key < 0;
        is_value = value >= 0;
        is_real = value < layer.num_kv_heads;
        void* y = is_query ? layer.y : is_value ? layer.v_cache : layer.k_cache;
        const int before = is_query ? head : (is_value ? value : key) * layer.block_size;
        target = static_cast<T*>(y) + static_cast<long long>(before) * layer.head_dim + at;
        if (!is_real) return;
        if (layer.bias != nullptr) {
            low_bias = two(layer.bias, head * layer.head_dim + at);
            high_bias = two(layer.bias, head * layer.head_dim + at + half);
        }
        if (layer.q_norm != nullptr && !is_value) {
            const void* norm = is_query ? layer.q_norm : layer.k_norm;
            low_norm = two(norm, at);
            high_norm = two(norm, at + half);
        }
    }

    __device__ static float2 two(const void* tensor, int at) {
        return unpack2<T>(*reinterpret_cast<const unsigned*>(static_cast<const T*>(tensor) + at));
    }

    __device__ int largest() const { return max(max(half, head), at); }

    __device__ void load(const LayerLinearParams& layer, int row) {
        if (!is_real) return;
        place = is_query ? static_cast<long long>(row) * layer.num_heads : layer.kv_rows[row];
        if (is_value) return;
        const int angle = row * layer.head_dim + at;
        cos = *reinterpret_cast<const unsigned*>(static_cast<const T*>(layer.cos) + angle);
        sin = *reinterpret_cast<const unsigned*>(static_cast<const T*>(layer.sin) + angle + half);
    }

    __device__ void finish(const LayerLinearParams& layer, int row, int tile, const float* first, int parts, int part_floats, float factor) const {
        const PartSums<float2> sums = {first, parts, part_floats};
        const int slot = 2 * static_cast<int>(lane_id());
        float2 low = sums.at(slot), high = sums.at(slot + WIDE_PAIRS);
        if (layer.squares == nullptr) factor = 1;
        low = {low.x * factor + low_bias.x, low.y * factor + low_bias.y};
        high = {high.x * factor + high_bias.x, high.y * factor + high_bias.y};
        if (layer.q_norm != nullptr) norm_head(layer, low, high);
        if (!is_real) return;
        const float2 c = is_value ? float2{1, 1} : unpack2<T>(cos), s = is_value ? float2{0, 0} : unpack2<T>(sin);
        T* to = target + place * layer.head_dim;
        *reinterpret_cast<unsigned*>(to) = pack2<T>(low.x * c.x - high.x * s.x, low.y * c.y - high.y * s.y);
        *reinterpret_cast<unsigned*>(to + half) = pack2<T>(high.x * c.x + low.x * s.x, high.y * c.y + low.y * s.y);
    }

    // By all lanes; a head is in half / 2 of them.
    __device__ void norm_head(const LayerLinearParams& layer, float2& low, float2& high) const {
        float squares = low.x * low.x + low.y * low.y + high.x * high.x + high.y * high.y;
        for (int mask = half / 4; mask > 0; mask /= 2) squares += shfl_xor(squares, mask);
        const float factor = is_value ? 1 : rsqrt_fast(squares / layer.head_dim + layer.eps);
        low = {low.x * factor * low_norm.x, low.y * factor * low_norm.y};
        high = {high.x * factor * high_norm.x, high.y * factor * high_norm.y};
    }
};
