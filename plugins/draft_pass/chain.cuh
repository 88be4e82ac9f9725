// The blocks that run the recurrent cell and the residual blocks, a chain of L + 2 phases at each depth:
//
//     s = act(W e(token) + U s_before + b)  |  y = begun + P s  |  y += SiLU(L_i y + l_i)
//
// Each block has the same 16 columns of every result, so begun and y stay with it in float32; what others need of s and y
// is published as elements. Its warps share a tile's columns, each waits for those of its own, and the block adds up
// their sums in a fixed order.
#pragma once

#include "math.cuh"
#include "params.cuh"
#include "tiles.cuh"

template <int ROW_BLOCKS>
constexpr int STEPS_AT_ONCE = ROW_BLOCKS < 4 ? 2 : 1;  // as registers allow
constexpr int PARTIAL_PITCH = TILE_ROWS + 4;  // floats: no two lanes that store hit one bank

// How a warp's share of a row's columns is had: 8 of each step for each lane. `rows` are null where there is no row.
template <int ROW_BLOCKS>
struct PublishedRows {
    const unsigned long long* rows[ROW_BLOCKS];
    unsigned tag;

    __device__ void take(uint4 (&x)[STEPS_AT_ONCE<ROW_BLOCKS>][ROW_BLOCKS], int step, int end) const {
        constexpr int PAIRS = 2 * STEPS_AT_ONCE<ROW_BLOCKS> * ROW_BLOCKS;
        ulonglong2 pairs[PAIRS];
        await_pairs(pairs, tag, [&](int i) -> const unsigned long long* {
            const int at = step + i / 2 / ROW_BLOCKS;
            const unsigned long long* row = rows[i / 2 % ROW_BLOCKS];
            return row && at < end ? row + at * (STEP_COLUMNS / 2) + lane_id() % 4 * 4 + i % 2 * 2 : nullptr;
        });
#pragma unroll
        for (int i = 0; i < PAIRS; i += 2)
            x[i / 2 / ROW_BLOCKS][i / 2 % ROW_BLOCKS] =
                make_uint4(static_cast<unsigned>(pairs[i].x), static_cast<unsigned>(pairs[i].y),
                           static_cast<unsigned>(pairs[i + 1].x), static_cast<unsigned>(pairs[i + 1].y));
    }
};

template <class T, int ROW_BLOCKS>
struct ElementRows {
    const T* rows[ROW_BLOCKS];

    __device__ void take(uint4 (&x)[STEPS_AT_ONCE<ROW_BLOCKS>][ROW_BLOCKS], int step, int end) const {
#pragma unroll
        for (int i = 0; i < STEPS_AT_ONCE<ROW_BLOCKS>; ++i)
#pragma unroll
            for (int block = 0; block < ROW_BLOCKS; ++block)
                x[i][block] = rows[block] && step + i < end
                                  ? load16(rows[block] + (step + i) * STEP_COLUMNS + lane_id() % 4 * 8)
                                  : make_uint4(0, 0, 0, 0);
    }
};

template <class T, int ROW_BLOCKS>
struct FloatRows {
    const float* rows[ROW_BLOCKS];

    __device__ void take(uint4 (&x)[STEPS_AT_ONCE<ROW_BLOCKS>][ROW_BLOCKS], int step, int end) const {
#pragma unroll
        for (int i = 0; i < STEPS_AT_ONCE<ROW_BLOCKS>; ++i)
#pragma unroll
            for (int block = 0; block < ROW_BLOCKS; ++block) {
                x[i][block] = make_uint4(0, 0, 0, 0);
                if (!rows[block] || step + i >= end) continue;
                const float* at = rows[block] + (step + i) * STEP_COLUMNS + lane_id() % 4 * 8;
                x[i][block] = make_uint4(pack2<T>(at[0], at[1]), pack2<T>(at[2], at[3]), pack2<T>(at[4], at[5]),
                                         pack2<T>(at[6], at[7]));
            }
    }
};

// What becomes of a tile's sums: value = act(sum + bias) + base, kept and published where these are not null.
template <class T>
struct Ending {
    const T* bias;
    const float* base;  // (rows, 16), row / base_width of it
    float* kept;        // (rows, 16)
    unsigned long long* words;
    int columns;
    int base_width;
    bool has_silu;
    unsigned tag;
};

__device__ __forceinline__ float silu_fast(float x) {
    constexpr float LOG2_E = 1.4426950408889634f;
    return x * reciprocal_fast(1.0f + exp2_fast(-LOG2_E * x));
}

// How many steps of a tile a warp has, and how many warps have any.
__device__ __forceinline__ int steps_per_warp(int columns) { return divide_up(columns / STEP_COLUMNS, PASS_WARPS); }
__device__ __forceinline__ int warps_with_steps(int columns) {
    return divide_up(columns / STEP_COLUMNS, steps_per_warp(columns));
}

template <class T, int ROW_BLOCKS>
struct Chain {
    static constexpr int GROUP_ROWS = 8 * ROW_BLOCKS;  // rows that a product takes at once
    enum Matrix { RNN_W, RNN_U, STATE_PROJ, BLOCKS };

    const DraftPassParams& params;
    unsigned first_tag;
    Resident resident;
    float* partials;  // 2 x warps x GROUP_ROWS x PARTIAL_PITCH, in turn in two halves
    float* residual;  // (own tiles, rows, 16): y
    float* begun;     // (own tiles, B, 16): what y begins with
    int partial_floats;
    int turn = 0;

    __device__ Chain(const DraftPassParams& params, unsigned first_tag) : params(params), first_tag(first_tag) {
        const int columns = max(params.hidden_size, params.exit_dim);
        resident.fill(columns, params.chain_resident, [&](int slot, int& bytes) -> const void* {
            const int matrix = slot % num_matrices(), tile = blockIdx.x + slot / num_matrices() * params.chain_blocks;
            bytes = tile_bytes(columns_of(matrix));
            return tile < tiles_of(matrix) ? tile_at(matrix, tile) : nullptr;
        });
        const int own_tiles = divide_up(columns / TILE_ROWS, params.chain_blocks);
        partials = reinterpret_cast<float*>(resident.rest(params.chain_resident));
        partial_floats = max(warps_with_steps(params.hidden_size), warps_with_steps(params.exit_dim)) * GROUP_ROWS *
                         PARTIAL_PITCH;
        residual = partials + 2 * partial_floats;
        begun = residual + own_tiles * params.requests * params.num_beams * TILE_ROWS;
    }

    __device__ int num_matrices() const { return BLOCKS + params.num_blocks; }
    __device__ int columns_of(int matrix) const { return matrix < BLOCKS ? params.hidden_size : params.exit_dim; }
    __device__ int tiles_of(int matrix) const {
        return (matrix < STATE_PROJ ? params.hidden_size : params.exit_dim) / TILE_ROWS;
    }

    __device__ const char* tile_at(int matrix, int tile) const {
        const void* weight = matrix == RNN_W        ? params.rnn_w
                             : matrix == RNN_U      ? params.rnn_u
                             : matrix == STATE_PROJ ? params.state_proj
                                                    : params.blocks;
        const long long block = max(matrix - BLOCKS, 0);
        return static_cast<const char*>(weight) + (block * tiles_of(matrix) + tile) * tile_bytes(columns_of(matrix));
    }

    __device__ void run() {
        for (int depth = 1; depth <= params.depth; ++depth) {
            const int rows = params.requests * (depth == 1 ? 1 : params.num_beams);
            trace(depth, 0);
            advance(depth, rows);
            trace(depth, 1);
            if (depth == 1) begin();
            exit(depth, rows);
        }
    }

    // `body(first row, own tile, tile)` for all groups of rows and all of this block's tiles.
    template <class Body>
    __device__ void each(int rows, int tiles, Body body) {
        for (int first = 0; first < rows; first += GROUP_ROWS)
            for (int own = 0; blockIdx.x + own * params.chain_blocks < tiles; ++own)
                body(first, own, static_cast<int>(blockIdx.x) + own * params.chain_blocks);
    }

    __device__ int row_of(int first, int block) const { return first + 8 * block + static_cast<int>(lane_id()) / 4; }

    __device__ unsigned long long* states(int depth) const {
        return params.states + static_cast<long long>(depth % 2) * params.max_rows * (params.hidden_size / 2);
    }

    __device__ unsigned long long* hiddens(int index) const {
        return params.hiddens + static_cast<long long>(index) * params.max_rows * (params.exit_dim / 2);
    }

    // The cell reads the beams' tokens: the roots at first, then what was selected.
    __device__ void advance(int depth, int rows) {
        const T* bias = static_cast<const T*>(depth > 1 || params.has_silu ? params.rnn_bias : nullptr);
        each(rows, tiles_of(RNN_W), [&](int first, int own, int tile) {
            ElementRows<T, ROW_BLOCKS> tokens;
            PublishedRows<ROW_BLOCKS> before;
            before.tag = first_tag + depth - 1;
#pragma unroll
            for (int block = 0; block < ROW_BLOCKS; ++block) {
                const int row = row_of(first, block);
                const bool is_real = row < rows;
                long long token = is_real && depth == 1 ? params.root_ids[row] : 0;
                before.rows[block] = nullptr;
                if (depth > 1) {
                    const unsigned beam = await_word(is_real ? params.beams + row : nullptr, first_tag + depth - 1);
                    token = beam >> DEPTH_BITS;
                    const int width = depth == 2 ? 1 : params.num_beams;
                    const int parent = row / params.num_beams * width + static_cast<int>(beam % (1 << DEPTH_BITS));
                    if (is_real) before.rows[block] = states(depth - 1) + parent * (params.hidden_size / 2);
                }
                tokens.rows[block] =
                    is_real ? static_cast<const T*>(params.embedding) + token * params.hidden_size : nullptr;
            }
            TileSums<ROW_BLOCKS> sums;
            multiply(sums, RNN_W, own, tile_at(RNN_W, tile), params.hidden_size, tokens);
            if (depth > 1) multiply(sums, RNN_U, own, tile_at(RNN_U, tile), params.hidden_size, before);
            const Ending<T> ending = {bias, nullptr, nullptr, states(depth), params.hidden_size, 1,
                                      params.has_silu != 0, first_tag + depth};
            finish(sums, params.hidden_size, ending, first, rows, tile);
        });
    }

    // The context's share of every y.
    __device__ void begin() {
        each(params.requests, tiles_of(STATE_PROJ), [&](int first, int own, int tile) {
            FloatRows<T, ROW_BLOCKS> contexts;
#pragma unroll
            for (int block = 0; block < ROW_BLOCKS; ++block) {
                const int row = row_of(first, block);
                contexts.rows[block] = row < params.requests
                                           ? params.hidden + static_cast<long long>(row) * params.hidden_size
                                           : nullptr;
            }
            const char* weights = static_cast<const char*>(params.context_proj) +
                                  static_cast<long long>(tile) * tile_bytes(params.hidden_size);
            TileSums<ROW_BLOCKS> sums;
            multiply(sums, MOST_RESIDENT, own, weights, params.hidden_size, contexts);
            const Ending<T> ending = {static_cast<const T*>(params.context_bias), nullptr,
                                      begun + own * params.requests * TILE_ROWS, nullptr, params.exit_dim, 1, false, 0};
            finish(sums, params.hidden_size, ending, first, params.requests, tile);
        });
    }

    // From the state to what the LM head reads.
    __device__ void exit(int depth, int rows) {
        const unsigned tag = first_tag + depth;
        const int width = rows / params.requests;
#pragma unroll 1
        for (int index = 0; index <= params.num_blocks; ++index) {
            const int matrix = STATE_PROJ + index, columns = columns_of(matrix);
            const unsigned long long* words = index == 0 ? states(depth) : hiddens(index - 1);
            const T* bias = index == 0 ? nullptr
                                       : static_cast<const T*>(params.block_biases) + (index - 1) * params.exit_dim;
            each(rows, tiles_of(matrix), [&](int first, int own, int tile) {
                PublishedRows<ROW_BLOCKS> published;
                published.tag = tag;
#pragma unroll
                for (int block = 0; block < ROW_BLOCKS; ++block) {
                    const int row = row_of(first, block);
                    published.rows[block] = row < rows ? words + row * (columns / 2) : nullptr;
                }
                TileSums<ROW_BLOCKS> sums;
                multiply(sums, matrix, own, tile_at(matrix, tile), columns, published);
                float* own_residual = residual + own * params.requests * params.num_beams * TILE_ROWS;
                const float* base = index == 0 ? begun + own * params.requests * TILE_ROWS : own_residual;
                const Ending<T> ending = {bias, base, own_residual, hiddens(index), params.exit_dim,
                                          index == 0 ? width : 1, index > 0, tag};
                finish(sums, columns, ending, first, rows, tile);
            });
            trace(depth, 2 + index);
        }
    }

    // This warp's share of a tile's products. Weights are asked for before the rows are waited for.
    template <class Rows>
    __device__ void multiply(
        TileSums<ROW_BLOCKS>& sums, int matrix, int own, const char* global, int columns, const Rows& rows) {
        const int first = static_cast<int>(warp_id()) * steps_per_warp(columns);
        const int end = min(first + steps_per_warp(columns), columns / STEP_COLUMNS);
        if (first >= end) return;
        const char* tile = resident.tile(own * num_matrices() + matrix, global);
#pragma unroll 1
        for (int step = first; step < end; step += STEPS_AT_ONCE<ROW_BLOCKS>) {
            WeightStep weights[STEPS_AT_ONCE<ROW_BLOCKS>];
#pragma unroll
            for (int i = 0; i < STEPS_AT_ONCE<ROW_BLOCKS>; ++i)
                if (step + i < end) weights[i] = load_step(tile, step + i);
            uint4 x[STEPS_AT_ONCE<ROW_BLOCKS>][ROW_BLOCKS];
            rows.take(x, step, end);
#pragma unroll
            for (int i = 0; i < STEPS_AT_ONCE<ROW_BLOCKS>; ++i)
#pragma unroll
                for (int block = 0; block < ROW_BLOCKS; ++block)
                    if (step + i < end) add_products<T>(sums, weights[i], x[i][block], block);
        }
    }

    // Add up the warps' sums, a thread for each row and column. That all have passed this barrier says that the half of
    // the phase before may be overwritten.
    __device__ void finish(
        const TileSums<ROW_BLOCKS>& sums, int columns, const Ending<T>& ending, int first, int rows, int tile) {
        float* partial = partials + turn++ % 2 * partial_floats;
        const int warps = warps_with_steps(columns);
        if (static_cast<int>(warp_id()) < warps) store_partial(partial, sums);
        const int column = threadIdx.x % TILE_ROWS, out = tile * TILE_ROWS + column;
        const int group_row = threadIdx.x / TILE_ROWS, row = first + group_row;
        const bool is_real = group_row < GROUP_ROWS && row < rows;
        float value = is_real && ending.bias ? to_float(ending.bias[out]) : 0.0f;
        block_sync();
        if (group_row >= GROUP_ROWS) return;
        const float* part = partial + group_row * PARTIAL_PITCH + column;
        for (int warp = 0; warp < warps; ++warp) value += part[warp * GROUP_ROWS * PARTIAL_PITCH];
        if (ending.has_silu) value = silu_fast(value);
        if (is_real && ending.base) value += ending.base[row / ending.base_width * TILE_ROWS + column];
        if (is_real && ending.kept) ending.kept[row * TILE_ROWS + column] = value;
        const float next = shfl_xor(value, 1);
        if (is_real && ending.words && column % 2 == 0)
            store_relaxed_word(ending.words + (row * ending.columns + out) / 2, tagged(pack2<T>(value, next), ending.tag));
    }

    __device__ void store_partial(float* partial, const TileSums<ROW_BLOCKS>& sums) const {
        const int tile_row = static_cast<int>(lane_id()) / 4, first_row = 2 * (static_cast<int>(lane_id()) % 4);
        float* own = partial + static_cast<int>(warp_id()) * GROUP_ROWS * PARTIAL_PITCH;
#pragma unroll
        for (int block = 0; block < ROW_BLOCKS; ++block)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                own[(block * 8 + first_row + i % 2) * PARTIAL_PITCH + tile_row + i / 2 * 8] =
                    sums.even[block][i] + sums.odd[block][i];
    }
};
