// What comes before and after a linear layer: its activations into shared memory, normed where they are the residual
// stream, and what is done with a tile's sums.
//
// The factor 1 / rms of a row is the same for all of its columns, so it is applied to the sums: the products need not
// wait for it.
#pragma once

#include "linear.cuh"

__device__ inline char* activation_at(const Workspace& work, int row, int column) {
    return work.activations + row * ACTIVATION_PITCH + column * 2;
}

// Four columns x weight to `out`; returns their sum of squares.
__device__ inline float norm_packet(const uint4& packet, const uint2& weights, char* out) {
    const float x = __uint_as_float(packet.x), y = __uint_as_float(packet.y);
    const float z = __uint_as_float(packet.z), w = __uint_as_float(packet.w);
    const float2 low = unpack2<bfloat16>(weights.x), high = unpack2<bfloat16>(weights.y);
    *reinterpret_cast<uint2*>(out) =
        make_uint2(pack2<bfloat16>(x * low.x, y * low.y), pack2<bfloat16>(z * high.x, w * high.y));
    return x * x + y * y + z * z + w * w;
}

// The residual stream, published (R, H) float, times `weight` into the activations, and each row's sum of squares in
// parts.
__device__ inline void load_residual(const Workspace& work, const unsigned* residual, const bfloat16* weight) {
    constexpr int PACKETS = ceil_div(HIDDEN, 4 * CONSUMERS);  // of a row, for each thread
    constexpr int MOST = PACKETS >= 8 ? 1 : 8 / PACKETS;
    constexpr int BATCH = MOST < MAX_ROWS ? MOST : MAX_ROWS;  // rows asked for at once
    uint2 weights[PACKETS];
#pragma unroll
    for (int at = 0; at < PACKETS; ++at) {
        const int column = 4 * (int(threadIdx.x) + at * CONSUMERS);
        if (column < HIDDEN) weights[at] = *reinterpret_cast<const uint2*>(weight + column);
    }
#pragma unroll 1
    for (int first = 0; first < work.num_rows; first += BATCH) {
        const auto column_of = [](int index) { return 4 * (int(threadIdx.x) + index % PACKETS * CONSUMERS); };
        const auto is_real = [&](int index) {
            return first + index / PACKETS < work.num_rows && column_of(index) < HIDDEN;
        };
        uint4 packets[BATCH * PACKETS];
        const auto address = [&](int index) {
            const int at = (first + index / PACKETS) * HIDDEN + column_of(index);
            return is_real(index) ? residual + at : nullptr;
        };
        until_written(packets, address, [&] {
            float squares[BATCH] = {};
#pragma unroll
            for (int index = 0; index < BATCH * PACKETS; ++index)
                if (is_real(index))
                    squares[index / PACKETS] +=
                        norm_packet(packets[index], weights[index % PACKETS],
                                    activation_at(work, first + index / PACKETS, column_of(index)));
#pragma unroll
            for (int row = 0; row < BATCH; ++row) squares[row] = warp_sum(squares[row]);
#pragma unroll
            for (int row = 0; row < BATCH; ++row)
                if (lane_id() == 0 && first + row < work.num_rows)
                    work.squares[warp_id() * MAX_ROWS + first + row] = squares[row];
        });
    }
}

__device__ inline float inverse_rms(const Workspace& work, int row, float eps) {
    float squares = 0.0f;
#pragma unroll
    for (int warp = 0; warp < CONSUMER_WARPS; ++warp) squares += work.squares[warp * MAX_ROWS + row];
    return rsqrt_fast(squares / HIDDEN + eps);
}

// One panel of published bfloat16 rows of `columns` into the activations.
__device__ inline void load_published(
    const Workspace& work, const unsigned* words, int columns, int first_column, int num_columns) {
    constexpr int BATCH = 4;  // packets that a thread asks for at once
    const int packets_per_row = num_columns / 8, packets = work.num_rows * packets_per_row;
    const auto row_of = [=](int index) { return MAX_ROWS == 1 ? 0 : index / packets_per_row; };
#pragma unroll 1
    for (int first = 0; first < packets; first += BATCH * CONSUMERS) {
        const auto index_of = [first](int at) { return first + at * CONSUMERS + int(threadIdx.x); };
        uint4 packet[BATCH];
        const auto address = [&](int at) {
            const int index = index_of(at), row = row_of(index);
            const int column = first_column + 8 * (index - row * packets_per_row);
            return index < packets ? words + (row * columns + column) / 2 : nullptr;
        };
        until_written(packet, address, [&] {
#pragma unroll
            for (int at = 0; at < BATCH; ++at) {
                const int index = index_of(at), row = row_of(index);
                if (index < packets)
                    *reinterpret_cast<uint4*>(activation_at(work, row, 8 * (index - row * packets_per_row))) =
                        packet[at];
            }
        });
    }
}

// What a phase does with its sums: published words, or logits for the LM head. A thread has one sum of a tile at a time:
// of row lane % 16 of the tile, for a row of the activations. Warps take turns to be the first, which is the only one
// where rows are few.
struct Epilogue {
    static constexpr int PASSES = ceil_div(MAX_ROWS * TILE_ROWS, CONSUMERS);

    int phase;
    const unsigned* before;  // dense, down: the residual stream that the sums are added to
    const bfloat16* bias;    // qkv, where the model has one
    unsigned* words;         // all but the LM head
    float* logits;           // LM head: (R, V)
    float eps;
    unsigned previous[PASSES];

    __device__ static int first_row(int turn) { return 2 * ((int(warp_id()) - turn) & (CONSUMER_WARPS - 1)); }
    __device__ static int row_of(int first) { return first + int(lane_id()) / TILE_ROWS; }
    __device__ static int column_of(int tile) { return tile * TILE_ROWS + int(lane_id()) % TILE_ROWS; }

    // Before the tile's products, so that the residual is there when they are.
    __device__ void prepare(const Workspace& work, int tile, int turn) {
        if (phase != DENSE && phase != DOWN) return;
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
            const int row = row_of(first_row(turn) + pass * 2 * CONSUMER_WARPS), column = column_of(tile);
            if (row < work.num_rows && column < HIDDEN) previous[pass] = load_relaxed(before + row * HIDDEN + column);
        }
    }

    __device__ void finish(const Workspace& work, int tile, int turn) const {
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
            const int first = first_row(turn) + pass * 2 * CONSUMER_WARPS, row = row_of(first);
            if (first >= work.num_rows) break;
            const bool is_real = row < work.num_rows;
            float value = is_real ? add_partials(work, turn, row, int(lane_id()) % TILE_ROWS) : 0.0f;
            if (phase != DENSE && phase != DOWN && is_real) value *= inverse_rms(work, row, eps);
            if (phase == GATE_UP)
                activate(tile, row, value, is_real);
            else if (is_real)
                store(row, column_of(tile), value, previous[pass]);
        }
    }

    __device__ void store(int row, int column, float value, unsigned residual) const {
        if (phase == HEAD) {
            if (column < VOCAB) logits[(long long)row * VOCAB + column] = value;
        } else if (phase == QKV) {
            if (column >= QKV_SIZE) return;
            if (HAS_QKV_BIAS) value += to_float(bias[column]);
            publish(words + row * QKV_SIZE + column, value);
        } else if (column < HIDDEN) {
            const int at = row * HIDDEN + column;
            publish(words + at, __uint_as_float(await(residual, before + at)) + value);
        }
    }

    // gate_up: lanes 0 to 7 of 16 have mlp.fc's value of a column, 8 to 15 mlp.gate's.
    __device__ void activate(int tile, int row, float value, bool is_real) const {
        constexpr float LOG2_E = 1.4426950408889634f;
        const float gate = shfl_xor(value, TILE_ROWS / 2);
        const float activated = value * reciprocal_fast(1.0f + exp2_fast(-LOG2_E * value)) * gate;
        const float next = shfl_xor(activated, 1);
        const int lane = int(lane_id()) % TILE_ROWS;
        if (is_real && lane < TILE_ROWS / 2 && lane % 2 == 0)
            publish(words + (row * INTERMEDIATE + tile * (TILE_ROWS / 2) + lane) / 2, pack2<bfloat16>(activated, next));
    }
};
