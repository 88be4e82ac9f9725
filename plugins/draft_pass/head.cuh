// The blocks that have the LM head: logits of the drafted vocabulary for all beams, with the noise of the requests' draws
// on top where they are sampled, and of each tile of 16 tokens the largest and the softmax's sum.
//
// Tiles are dealt round robin, a warp has a tile's whole width. While the chain runs, the noise is made, which depends on
// nothing that is waited for, and the first steps of a warp's weights are loaded into registers. Memory belongs to the
// chain at first: weights are asked for once the first state is there.
#pragma once

#include "direct.cuh"
#include "sample/noise.cuh"

template <class T, int ROW_BLOCKS>
struct Head {
    static constexpr int GROUP_ROWS = 8 * ROW_BLOCKS;
#ifndef HEAD_STEPS
#define HEAD_STEPS 6
#endif
    static constexpr int STEPS_AHEAD = ROW_BLOCKS == 1 ? HEAD_STEPS : 5;  // of a warp in registers

    const DraftPassParams& params;
    unsigned first_tag;
    Resident resident;
    char* activations;  // GROUP_ROWS x row_pitch(E): E elements and a step of zeros
    float* noise;       // (B, own tiles, 16): T * Gumbel
    float* scores;      // (MOST_DIRECT, own tiles, 16): logits, where the chain chooses
    int* tokens;        // (own tiles, 16), likewise
    int first_block;
    int num_tiles;
    int own_tiles;
    int pitch;
    int num_steps;

    __device__ Head(const DraftPassParams& params, unsigned first_tag) : params(params), first_tag(first_tag) {
        first_block = params.chain_blocks + params.select_blocks;
        num_tiles = divide_up(params.num_draft, TILE_ROWS);
        own_tiles = divide_up(num_tiles - (static_cast<int>(blockIdx.x) - first_block), stride());
        pitch = row_pitch(params.exit_dim);
        num_steps = params.exit_dim / STEP_COLUMNS;
        const unsigned long long* first_state = params.states + params.max_rows * (params.hidden_size / 2);
        resident.fill(params.exit_dim, params.head_resident, [&](int slot, int& bytes) -> const void* {
            bytes = tile_bytes(params.exit_dim);
            return slot < own_tiles ? tile_at(slot) : nullptr;
        }, [&] {
            while (static_cast<unsigned>(load_relaxed_word(first_state) >> 32) != first_tag + 1) spin_pause();
        });
        activations = resident.rest(params.head_resident);
        noise = reinterpret_cast<float*>(activations + GROUP_ROWS * pitch);
        scores = noise + params.requests * own_tiles * TILE_ROWS;
        tokens = reinterpret_cast<int*>(scores + MOST_DIRECT * own_tiles * TILE_ROWS);
        for (int at = threadIdx.x; is_direct() && at < own_tiles * TILE_ROWS; at += PASS_THREADS)
            tokens[at] = static_cast<int>(params.vocab_ids[min(entry_of(at), params.num_draft - 1)]);
        if (threadIdx.x < GROUP_ROWS * 4)
            store16(activations + threadIdx.x / 4 * pitch + num_steps * STEP_COLUMNS * 2 + threadIdx.x % 4 * 16,
                    make_uint4(0, 0, 0, 0));
    }

    __device__ bool is_direct() const { return ROW_BLOCKS == 1 && params.is_direct; }
    __device__ int stride() const { return gridDim.x - first_block; }
    __device__ int tile_of(int own) const { return static_cast<int>(blockIdx.x) - first_block + own * stride(); }
    __device__ int entry_of(int at) const { return tile_of(at / TILE_ROWS) * TILE_ROWS + at % TILE_ROWS; }
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
                const int count = min(rows - first, GROUP_ROWS);
                WeightStep ahead[STEPS_AHEAD];
                if (static_cast<int>(warp_id()) < own_tiles) load_ahead(ahead, warp_id());
                load_rows(depth, first, count);
                block_sync();
                trace(depth, 0);
#pragma unroll 1
                for (int own = warp_id(); own < own_tiles; own += PASS_WARPS) {
                    if (own >= PASS_WARPS) load_ahead(ahead, own);
                    TileSums<ROW_BLOCKS> sums;
                    multiply(sums, ahead, own, count);
                    trace(depth, 2);
                    is_direct() ? keep(sums, own, rows) : publish(sums, own, depth, first, rows, width);
                }
                block_sync();
                if (is_direct()) publish_kept(depth, rows);
                trace(depth, 1);
            }
        }
    }

    __device__ void make_noise(int depth) {
        const int count = own_tiles * TILE_ROWS;
        for (int at = threadIdx.x; at < params.requests * count; at += PASS_THREADS) {
            const int request = at / count, own = at % count;
            const int entry = tile_of(own / TILE_ROWS) * TILE_ROWS + own % TILE_ROWS;
            const long long slot = params.slots[request];
            const float temperature = params.temperature[slot];
            noise[at] = 0.0f;
            if (temperature <= 0 || entry >= params.num_draft) continue;
            const unsigned long long seed = params.seed[slot];
            const NoiseKey key = {static_cast<unsigned>(seed), static_cast<unsigned>(seed >> 32),
                                  static_cast<unsigned>(params.sample_index[slot]),
                                  static_cast<unsigned>(root_position(params, slot) + depth)};
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
#pragma unroll 1
        for (int from = 0; from < num_pairs; from += BATCH * PASS_THREADS) {
            const auto index_of = [=](int i) {
                return min(from + i * PASS_THREADS + static_cast<int>(threadIdx.x), num_pairs - 1);
            };
            char* target[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; ++i)
                target[i] = activations + index_of(i) / pairs_per_row * pitch + index_of(i) % pairs_per_row * 8;
            ulonglong2 pairs[BATCH];
            const int wanted = divide_up(num_pairs - from, PASS_THREADS);
            await_pairs(pairs, first_tag + depth, [&](int i) { return words + 2 * index_of(i); }, wanted);
#pragma unroll
            for (int i = 0; i < BATCH; ++i)
                if (from + i * PASS_THREADS + static_cast<int>(threadIdx.x) < num_pairs)
                    *reinterpret_cast<uint2*>(target[i]) =
                        make_uint2(static_cast<unsigned>(pairs[i].x), static_cast<unsigned>(pairs[i].y));
        }
    }

    __device__ void load_ahead(WeightStep (&ahead)[STEPS_AHEAD], int own) const {
        const char* tile = resident.tile(own, tile_at(own));
#pragma unroll
        for (int step = 0; step < STEPS_AHEAD; ++step) ahead[step] = load_step(tile, min(step, num_steps - 1));
    }

    // `ahead` holds the first steps; the others follow in their place, and products with zeros the last. A lane whose row does not exist takes the last
    // one's place; its products go nowhere. Even and odd steps have sums of their own, so that products wait less.
    __device__ void multiply(TileSums<ROW_BLOCKS>& sums, WeightStep (&ahead)[STEPS_AHEAD], int own, int count) const {
        const char* tile = resident.tile(own, tile_at(own));
        const char* rows[ROW_BLOCKS];
#pragma unroll
        for (int block = 0; block < ROW_BLOCKS; ++block)
            rows[block] = activations + lane_id() % 4 * 16 +
                          min(block * 8 + static_cast<int>(lane_id()) / 4, count - 1) * pitch;
        TileSums<ROW_BLOCKS> odd;
#pragma unroll 1
        for (int first = 0; first < num_steps; first += STEPS_AHEAD)
#pragma unroll
            for (int i = 0; i < STEPS_AHEAD; ++i) {
                const int step = first + i, at = min(step, num_steps) * STEP_COLUMNS * 2;
#pragma unroll
                for (int block = 0; block < ROW_BLOCKS; ++block)
                    add_products<T>(i % 2 == 0 ? sums : odd, ahead[i], load16(rows[block] + at), block);
                ahead[i] = load_step(tile, min(step + STEPS_AHEAD, num_steps - 1));
            }
#pragma unroll
        for (int block = 0; block < ROW_BLOCKS; ++block)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sums.even[block][i] += odd.even[block][i];
                sums.odd[block][i] += odd.odd[block][i];
            }
    }

    // What a lane has of a tile's logits once two lanes have exchanged: a pair of tokens and the pair 8 after it, for one row
    // of each 8.
    struct LanePlace {
        int row;    // of its 8
        int token;  // of the tile

        __device__ LanePlace() {
            const int lane = static_cast<int>(lane_id());
            row = lane % 4 * 2 + lane / 4 % 2;
            token = lane / 8 * 2;
        }
        __device__ int at(int i) const { return token + i % 2 + i / 2 * 8; }
    };

    // A tile's logits for 8 of the rows. The products leave tokens lane / 4 and + 8, for rows 2 (lane % 4) and + 1.
    __device__ void take_logits(
        float (&logits)[4], const TileSums<ROW_BLOCKS>& sums, int block, int own, int row, int rows, int width) const {
        const LanePlace place;
        const int side = place.row % 2, entry = tile_of(own) * TILE_ROWS;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float low = sums.even[block][2 * half] + sums.odd[block][2 * half];
            const float high = sums.even[block][2 * half + 1] + sums.odd[block][2 * half + 1];
            const float other = shfl_xor(side ? low : high, 4);
            logits[2 * half] = side ? other : low;
            logits[2 * half + 1] = side ? high : other;
        }
        const float* added = noise + (row / width * own_tiles + own) * TILE_ROWS;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (params.temperature && row < rows) logits[i] += added[place.at(i)];
            if (entry + place.at(i) >= params.num_draft) logits[i] = -INFINITY;
        }
    }

    __device__ void publish(const TileSums<ROW_BLOCKS>& sums, int own, int depth, int first, int rows, int width) const {
#pragma unroll
        for (int block = 0; block < ROW_BLOCKS; ++block) {
            const int row = first + block * 8 + LanePlace().row;
            float logits[4];
            take_logits(logits, sums, block, own, row, rows, width);
            publish_tile(logits, own, depth, row, row < rows);
        }
    }

    __device__ void keep(const TileSums<ROW_BLOCKS>& sums, int own, int rows) const {
        const LanePlace place;
        float logits[4];
        take_logits(logits, sums, 0, own, place.row, rows, rows);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (place.row < rows) scores[(place.row * own_tiles + own) * TILE_ROWS + place.at(i)] = logits[i];
    }

    // Of the rows kept: what the others wait for first.
    __device__ void publish_kept(int depth, int rows) const {
        if (static_cast<int>(warp_id()) < rows) summarise(depth, warp_id());
        trace(depth, 3);
        const LanePlace place;
#pragma unroll 1
        for (int own = warp_id(); own < own_tiles; own += PASS_WARPS) {
            float logits[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                logits[i] = scores[(min(place.row, rows - 1) * own_tiles + own) * TILE_ROWS + place.at(i)];
            publish_tile(logits, own, depth, place.row, place.row < rows);
        }
    }

    __device__ void publish_tile(const float (&logits)[4], int own, int depth, int row, bool is_real) const {
        const unsigned tag = first_tag + depth;
        const int tile = tile_of(own);
        const long long kept_row = first_row_of(params, depth) + row;
        unsigned long long* words = params.logits + kept_row * num_tiles * TILE_ROWS + tile * TILE_ROWS + LanePlace().token;
        float largest = -INFINITY, sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; ++i) largest = fmaxf(largest, logits[i]);
#pragma unroll
        for (int half = 0; half < 2; ++half)
            if (is_real)
                store_relaxed_words(words + 8 * half, make_ulonglong2(tagged(__float_as_uint(logits[2 * half]), tag),
                                                                      tagged(__float_as_uint(logits[2 * half + 1]), tag)));
        for (int mask = 8; mask < 32; mask *= 2) largest = fmaxf(largest, shfl_xor(largest, mask));
#pragma unroll
        for (int i = 0; i < 4; ++i) sum += exp2_fast((logits[i] - largest) * LOG2_OF_E);
        for (int mask = 8; mask < 32; mask *= 2) sum += shfl_xor(sum, mask);
        if (is_real && lane_id() < 8)
            publish_pair(params.maxima + (kept_row * num_tiles + tile) * 2, depth, __float_as_uint(largest),
                         __float_as_uint(sum));
    }

    // By a warp: what this block says of a row, see direct.cuh. The chain will ask for the embeddings of some tokens.
    __device__ void summarise(int depth, int row) const {
        constexpr int EACH = 8;
        const int count = own_tiles * TILE_ROWS, lane = static_cast<int>(lane_id());
        unsigned long long* words = summary_of(params, depth, row, static_cast<int>(blockIdx.x) - first_block);
        float logits[EACH], sum = 0.0f;
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            logits[i] = lane + 32 * i < count ? scores[row * count + lane + 32 * i] : -INFINITY;
#pragma unroll 1
        for (int round = 0; round < params.num_beams; ++round) {
            float largest = logits[0];
#pragma unroll
            for (int i = 1; i < EACH; ++i) largest = fmaxf(largest, logits[i]);
            largest = warp_largest(largest);
            unsigned place = count - 1;
#pragma unroll
            for (int i = EACH - 1; i >= 0; --i) place = logits[i] == largest ? lane + 32 * i : place;
            place = warp_min(place);  // the lowest token among equals, as places ascend
            const int token = tokens[place];
            if (lane == 0) publish_pair(words + 2 * (1 + round), depth, __float_as_uint(largest), token);
            if (round == 0) {
#pragma unroll
                for (int i = 0; i < EACH; ++i) sum += exp2_fast((logits[i] - largest) * LOG2_OF_E);
                sum = warp_sum(sum);
                if (lane == 0) publish_pair(words, depth, __float_as_uint(largest), __float_as_uint(sum));
            }
#pragma unroll
            for (int i = 0; i < EACH; ++i)
                if (lane + 32 * i == static_cast<int>(place)) logits[i] = -INFINITY;
            if (depth == params.depth) continue;
            const char* embedded = static_cast<const char*>(params.embedding) + 2ll * token * params.hidden_size;
            for (int byte = 128 * lane; byte < 2 * params.hidden_size; byte += 32 * 128) prefetch_l2(embedded + byte);
        }
    }

    __device__ void publish_pair(unsigned long long* words, int depth, unsigned one, unsigned other) const {
        store_relaxed_words(words, make_ulonglong2(tagged(one, first_tag + depth), tagged(other, first_tag + depth)));
    }
};
