// What comes before and after a linear layer: its activations into shared memory, normed where they are the residual
// stream, and what is done with a tile's sums.
//
// The factor 1 / rms of a row is the same for all of its columns, so it is applied to the sums: the products need not
// wait for it.
#pragma once

#include "linear.cuh"

// The residual stream at some point: what a half of a layer published, or at first the tokens' embeddings.
struct Residual {
    const unsigned* words;      // (R, H) float, this block's copy, or null for embeddings
    const bfloat16* embedding;  // (V, H)
    const int* token_ids;       // (R,)

    __device__ const bfloat16* embedded(int row) const { return embedding + (long long)token_ids[row] * HIDDEN; }

    // One column, asked for but perhaps not yet there.
    __device__ unsigned request(int row, int column) const {
        if (words) return load_relaxed(words + row * HIDDEN + column);
        return __float_as_uint(to_float(embedded(row)[column]));
    }

    __device__ float receive(unsigned word, int row, int column) const {
        return __uint_as_float(words ? await(word, words + row * HIDDEN + column) : word);
    }
};

// Four columns of an embedding, as published words would be.
__device__ inline uint4 embedded_packet(const bfloat16* columns) {
    const uint2 packed = *reinterpret_cast<const uint2*>(columns);
    const float2 first = unpack2<bfloat16>(packed.x), second = unpack2<bfloat16>(packed.y);
    return make_uint4(__float_as_uint(first.x), __float_as_uint(first.y), __float_as_uint(second.x),
                      __float_as_uint(second.y));
}

__device__ inline Residual published_residual(const unsigned* copies) {
    return Residual{copies + blockIdx.x % COPIES * RESIDUAL_WORDS, nullptr, nullptr};
}

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

// x * weight into the activations, and each row's sum of squares in parts.
__device__ inline void load_residual(const Workspace& work, const Residual& residual, const bfloat16* weight) {
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
        if (residual.words) {
            await_all(packets, [&](int index) {
                const int at = (first + index / PACKETS) * HIDDEN + column_of(index);
                return is_real(index) ? residual.words + at : nullptr;
            });
        } else {
#pragma unroll
            for (int index = 0; index < BATCH * PACKETS; ++index)
                if (is_real(index))
                    packets[index] = embedded_packet(residual.embedded(first + index / PACKETS) + column_of(index));
        }
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
    for (int first = threadIdx.x; first < packets; first += BATCH * CONSUMERS) {
        uint4 packet[BATCH];
        await_all(packet, [&](int at) {
            const int index = first + at * CONSUMERS, row = row_of(index);
            const int column = first_column + 8 * (index - row * packets_per_row);
            return index < packets ? words + (row * columns + column) / 2 : nullptr;
        });
#pragma unroll
        for (int at = 0; at < BATCH; ++at) {
            const int index = first + at * CONSUMERS, row = row_of(index);
            if (index < packets)
                *reinterpret_cast<uint4*>(activation_at(work, row, 8 * (index - row * packets_per_row))) = packet[at];
        }
    }
}

// What a phase does with its sums: published words, or logits for the LM head.
struct Epilogue {
    int phase;
    Residual before;        // dense, down: what the sums are added to
    const bfloat16* bias;   // qkv, where the model has one
    unsigned* words;        // all but the LM head
    float* logits;          // LM head: (R, V)
    float eps;
    unsigned previous[ROW_BLOCKS][4];

    // By the warp that will finish, before the tile's products, so that the residual is there when they are.
    __device__ void prepare(const Workspace& work, int tile) {
        if (phase != DENSE && phase != DOWN) return;
#pragma unroll
        for (int block = 0; block < ROW_BLOCKS; ++block)
#pragma unroll
            for (int index = 0; index < 4; ++index) {
                const int row = TileSums::row(block, index), column = tile * TILE_ROWS + TileSums::tile_row(index);
                if (row < work.num_rows && column < HIDDEN) previous[block][index] = before.request(row, column);
            }
    }

    __device__ void finish(const Workspace& work, int tile, TileSums sums) const {
        if (phase != DENSE && phase != DOWN) scale(work, sums);
        if (phase == GATE_UP) {
            activate(work, tile, sums);
            return;
        }
#pragma unroll
        for (int block = 0; block < ROW_BLOCKS; ++block)
#pragma unroll
            for (int index = 0; index < 4; ++index) {
                const int row = TileSums::row(block, index), column = tile * TILE_ROWS + TileSums::tile_row(index);
                if (row < work.num_rows) store(row, column, sums.value[block][index], previous[block][index]);
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
            const float sum = before.receive(residual, row, column) + value;
#pragma unroll
            for (int copy = 0; copy < COPIES; ++copy)
                publish(words + copy * RESIDUAL_WORDS + row * HIDDEN + column, sum);
        }
    }

    __device__ void scale(const Workspace& work, TileSums& sums) const {
        const int lane = lane_id();
        const float factor = lane < work.num_rows ? inverse_rms(work, lane, eps) : 0.0f;  // of row `lane`
#pragma unroll
        for (int block = 0; block < ROW_BLOCKS; ++block)
#pragma unroll
            for (int index = 0; index < 2; ++index) {
                const float its = shfl(factor, TileSums::row(block, index));
                sums.value[block][index] *= its;
                sums.value[block][index + 2] *= its;
            }
    }

    // gate_up: a thread has mlp.fc's value (rows 0 to 7 of the tile) and mlp.gate's (8 to 15) of the same column.
    __device__ void activate(const Workspace& work, int tile, const TileSums& sums) const {
        constexpr float LOG2_E = 1.4426950408889634f;
        const bool is_odd = (lane_id() / 4) % 2;
#pragma unroll
        for (int block = 0; block < ROW_BLOCKS; ++block) {
            float activated[2];
#pragma unroll
            for (int index = 0; index < 2; ++index) {
                const float fc = sums.value[block][index];
                activated[index] = fc * reciprocal_fast(1.0f + exp2_fast(-LOG2_E * fc)) * sums.value[block][index + 2];
            }
            // A word is two columns, which two threads have: the even one writes its first row's, the odd its second's.
            const float other = shfl_xor(is_odd ? activated[0] : activated[1], 4);
            const int row = TileSums::row(block, is_odd), column = tile * (TILE_ROWS / 2) + int(lane_id()) / 4;
            const unsigned word =
                is_odd ? pack2<bfloat16>(other, activated[1]) : pack2<bfloat16>(activated[0], other);
            if (row < work.num_rows) publish(words + (row * INTERMEDIATE + column) / 2, word);
        }
    }
};
