// The blocks that have the LM head: logits of the drafted vocabulary for all beams, with the noise of the requests' draws
// on top where they are sampled, and of each tile of 16 tokens the largest and the softmax's sum.
//
// Tiles are dealt round robin, a warp has a tile's whole width. Noise depends on nothing that is waited for, so it is made
// while the chain runs.
#pragma once

#include "math.cuh"
#include "params.cuh"
#include "sample/noise.cuh"
#include "tiles.cuh"

constexpr float LOG2_OF_E = 1.4426950408889634f;

template <class T, int ROW_BLOCKS>
struct Head {
    static constexpr int GROUP_ROWS = 8 * ROW_BLOCKS;

    const DraftPassParams& params;
    unsigned first_tag;
    Resident resident;
    char* activations;  // GROUP_ROWS x row_pitch(E)
    float* noise;       // (B, own tiles, 16): T * Gumbel
    int first_block;
    int num_tiles;
    int own_tiles;
    int pitch;

    __device__ Head(const DraftPassParams& params, unsigned first_tag) : params(params), first_tag(first_tag) {
        first_block = params.chain_blocks + params.select_blocks;
        num_tiles = divide_up(params.num_draft, TILE_ROWS);
        own_tiles = divide_up(num_tiles - (static_cast<int>(blockIdx.x) - first_block), stride());
        pitch = row_pitch(params.exit_dim);
        resident.fill(params.exit_dim, params.head_resident, [&](int slot, int& bytes) -> const void* {
            bytes = tile_bytes(params.exit_dim);
            return slot < own_tiles ? tile_at(slot) : nullptr;
        });
        activations = resident.rest(params.head_resident);
        noise = reinterpret_cast<float*>(activations + GROUP_ROWS * pitch);
    }

    __device__ int stride() const { return gridDim.x - first_block; }
    __device__ int tile_of(int own) const { return static_cast<int>(blockIdx.x) - first_block + own * stride(); }
    __device__ const char* tile_at(int own) const {
        return static_cast<const char*>(params.lm_head) +
               static_cast<long long>(tile_of(own)) * tile_bytes(params.exit_dim);
    }

    __device__ void run() {
        if (own_tiles <= 0) return;
        for (int depth = 1; depth <= params.depth; ++depth) {
            const int width = depth == 1 ? 1 : params.num_beams, rows = params.requests * width;
            if (params.temperature) make_noise(depth);
            for (int first = 0; first < rows; first += GROUP_ROWS) {
                load_rows(depth, first, min(rows - first, GROUP_ROWS));
                block_sync();
                trace(depth, 0);
                for (int own = warp_id(); own < own_tiles; own += PASS_WARPS) {
                    TileSums<ROW_BLOCKS> sums;
                    multiply(sums, own, min(rows - first, GROUP_ROWS));
                    publish(sums, own, depth, first, rows, width);
                }
                trace(depth, 1);
                block_sync();
            }
        }
    }

    __device__ void make_noise(int depth) {
        const int count = own_tiles * TILE_ROWS;
        for (int at = threadIdx.x; at < params.requests * count; at += PASS_THREADS) {
            const int request = at / count, own = at % count;
            const int entry = tile_of(own / TILE_ROWS) * TILE_ROWS + own % TILE_ROWS;
            const float temperature = params.temperature[request];
            noise[at] = 0.0f;
            if (temperature <= 0 || entry >= params.num_draft) continue;
            const unsigned long long seed = params.seed[request];
            const NoiseKey key = {static_cast<unsigned>(seed), static_cast<unsigned>(seed >> 32),
                                  static_cast<unsigned>(params.sample_index[request]),
                                  static_cast<unsigned>(params.positions[request] + depth)};
            noise[at] = temperature * gumbel_fast(noise_word(key, static_cast<unsigned>(params.vocab_ids[entry])));
        }
    }

    // A group of rows of the chain's last y, as elements.
    __device__ void load_rows(int depth, int first, int count) {
        constexpr int BATCH = 4;
        const unsigned long long* words =
            params.hiddens +
            (static_cast<long long>(params.num_blocks) * params.max_rows + first) * (params.exit_dim / 2);
        const int pairs_per_row = params.exit_dim / 4, num_pairs = count * pairs_per_row;
        for (int from = 0; from < num_pairs; from += BATCH * PASS_THREADS) {
            ulonglong2 pairs[BATCH];
            const auto index_of = [from](int i) { return from + i * PASS_THREADS + static_cast<int>(threadIdx.x); };
            await_pairs(pairs, first_tag + depth, [&](int i) -> const unsigned long long* {
                return index_of(i) < num_pairs ? words + 2 * index_of(i) : nullptr;
            });
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                const int index = index_of(i);
                if (index < num_pairs)
                    *reinterpret_cast<uint2*>(activations + index / pairs_per_row * pitch + index % pairs_per_row * 8) =
                        make_uint2(static_cast<unsigned>(pairs[i].x), static_cast<unsigned>(pairs[i].y));
            }
        }
    }

    __device__ void multiply(TileSums<ROW_BLOCKS>& sums, int own, int count) const {
        const char* tile = resident.tile(own, tile_at(own));
        const int row = static_cast<int>(lane_id()) / 4;
        const char* at = activations + row * pitch + lane_id() % 4 * 16;
#pragma unroll 3
        for (int step = 0; step < params.exit_dim / STEP_COLUMNS; ++step) {
            const WeightStep weights = load_step(tile, step);
#pragma unroll
            for (int block = 0; block < ROW_BLOCKS; ++block) {
                uint4 x = make_uint4(0, 0, 0, 0);
                if (block * 8 + row < count) x = load16(at + block * 8 * pitch + step * STEP_COLUMNS * 2);
                add_products<T>(sums, weights, x, block);
            }
        }
    }

    // A lane has tokens lane / 4 and + 8 of the tile, for rows 2 (lane % 4) and + 1 of each 8.
    __device__ void publish(const TileSums<ROW_BLOCKS>& sums, int own, int depth, int first, int rows, int width) const {
        const unsigned tag = first_tag + depth;
        const int tile = tile_of(own), entry = tile * TILE_ROWS + static_cast<int>(lane_id()) / 4;
#pragma unroll
        for (int block = 0; block < ROW_BLOCKS; ++block)
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                const int row = first + block * 8 + 2 * (static_cast<int>(lane_id()) % 4) + side;
                const bool is_real = row < rows;
                float logits[2];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    logits[half] = sums.even[block][2 * half + side] + sums.odd[block][2 * half + side];
                    if (params.temperature && is_real)
                        logits[half] += noise[(row / width * own_tiles + own) * TILE_ROWS +
                                              static_cast<int>(lane_id()) / 4 + 8 * half];
                    if (entry + 8 * half >= params.num_draft) logits[half] = -INFINITY;
                    if (is_real)
                        store_relaxed_word(params.logits + (static_cast<long long>(row) * num_tiles * TILE_ROWS + entry +
                                                            8 * half),
                                           tagged(__float_as_uint(logits[half]), tag));
                }
                float largest = fmaxf(logits[0], logits[1]);
                for (int mask = 4; mask < 32; mask *= 2) largest = fmaxf(largest, shfl_xor(largest, mask));
                float sum = exp2_fast((logits[0] - largest) * LOG2_OF_E) + exp2_fast((logits[1] - largest) * LOG2_OF_E);
                for (int mask = 4; mask < 32; mask *= 2) sum += shfl_xor(sum, mask);
                if (is_real && lane_id() < 4)
                    store_relaxed_words(params.maxima + (static_cast<long long>(row) * num_tiles + tile) * 2,
                                        make_ulonglong2(tagged(__float_as_uint(largest), tag),
                                                        tagged(__float_as_uint(sum), tag)));
            }
    }
};
