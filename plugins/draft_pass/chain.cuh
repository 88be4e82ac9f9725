// The blocks that run the recurrent cell and the residual blocks, a chain of L + 1 phases at each depth:
//
//     s = act(W e(token) + U s_before + b)  |  y = begun + P s, y += SiLU(L_1 y + l_1)  |  y += SiLU(L_i y + l_i)
//
// The first residual block needs no phase of its own: L_1 y + l_1 = L_1 begun + l_1 + (L_1 P) s, of which L_1 P and what
// makes the rest of the context are multiplied once, at load.
//
// Each block has the same 16 columns of every result, so begun and y stay with it in float32; what others need of s and y
// is published as elements. Its warps share a tile's columns, each waits for those of its own, and the block adds up
// their sums in a fixed order.
//
// A lane whose row does not exist takes the last one's place: its products go nowhere, and nothing has to be asked.
#pragma once

#include "direct.cuh"

constexpr int STEPS_AT_ONCE = 2;
constexpr int PARTIAL_PITCH = TILE_ROWS + 4;  // floats: no two lanes that store hit one bank

// What a warp has of a row's columns: steps of 32, and how many warps have any.
struct Share {
    int first;
    int end;
    int warps;

    __device__ explicit Share(int columns) {
        const int steps = columns / STEP_COLUMNS, each = divide_up(steps, PASS_WARPS);
        first = min(static_cast<int>(warp_id()) * each, steps);
        end = min(first + each, steps);
        warps = divide_up(steps, each);
    }
};

// Operands of one multiplication: 8 columns for each lane, of each of some steps and each block of rows.
template <int ROW_BLOCKS>
using Operand = uint4[STEPS_AT_ONCE][ROW_BLOCKS];

// Rows that other blocks publish: `rows` are this lane's, at its columns of step 0.
template <int ROW_BLOCKS>
struct PublishedRows {
    const unsigned long long* rows[ROW_BLOCKS];
    unsigned tag;

    __device__ void take(Operand<ROW_BLOCKS>& x, int step, int end) const {
        ulonglong2 pairs[STEPS_AT_ONCE * ROW_BLOCKS * 2];
        await_pairs(pairs, tag, [&](int i) {
            const int at = min(step + i / 2 / ROW_BLOCKS, end - 1);
            return rows[i / 2 % ROW_BLOCKS] + at * (STEP_COLUMNS / 2) + i % 2 * 2;
        });
#pragma unroll
        for (int i = 0; i < STEPS_AT_ONCE * ROW_BLOCKS; ++i)
            x[i / ROW_BLOCKS][i % ROW_BLOCKS] =
                make_uint4(static_cast<unsigned>(pairs[2 * i].x), static_cast<unsigned>(pairs[2 * i].y),
                           static_cast<unsigned>(pairs[2 * i + 1].x), static_cast<unsigned>(pairs[2 * i + 1].y));
    }
};

// Rows of the embedding.
template <class T, int ROW_BLOCKS>
struct ElementRows {
    const T* rows[ROW_BLOCKS];

    __device__ void take(Operand<ROW_BLOCKS>& x, int step, int end) const {
#pragma unroll
        for (int i = 0; i < STEPS_AT_ONCE; ++i)
#pragma unroll
            for (int block = 0; block < ROW_BLOCKS; ++block)
                x[i][block] = load16(rows[block] + min(step + i, end - 1) * STEP_COLUMNS);
    }
};

// Rows of the contexts.
template <class T, int ROW_BLOCKS>
struct FloatRows {
    const float* rows[ROW_BLOCKS];

    __device__ void take(Operand<ROW_BLOCKS>& x, int step, int end) const {
#pragma unroll
        for (int i = 0; i < STEPS_AT_ONCE; ++i)
#pragma unroll
            for (int block = 0; block < ROW_BLOCKS; ++block) {
                const float* at = rows[block] + min(step + i, end - 1) * STEP_COLUMNS;
                x[i][block] = make_uint4(pack2<T>(at[0], at[1]), pack2<T>(at[2], at[3]), pack2<T>(at[4], at[5]),
                                         pack2<T>(at[6], at[7]));
            }
    }
};

__device__ __forceinline__ float silu_fast(float x) {
    constexpr float LOG2_E = 1.4426950408889634f;
    return x * reciprocal_fast(1.0f + exp2_fast(-LOG2_E * x));
}

template <class T, int ROW_BLOCKS>
struct Chain {
    static constexpr int GROUP_ROWS = 8 * ROW_BLOCKS;  // rows that a product takes at once
    static_assert(GROUP_ROWS * TILE_ROWS <= PASS_THREADS, "a thread for each result");
    static constexpr int WARP_FLOATS = GROUP_ROWS * PARTIAL_PITCH;
    enum Matrix { RNN_W, RNN_U, STATE_PROJ, FIRST_BLOCK };

    const DraftPassParams& params;
    unsigned first_tag;
    const Share hidden_share;
    const Share exit_share;
    Resident resident;
    float* partial;       // warps x GROUP_ROWS x PARTIAL_PITCH, of two halves in turn
    float* next_partial;
    float* second_partial;  // of two products at once
    float* residual;  // (own tiles, rows, 16): y
    float* begun;     // (2, own tiles, B, 16): what y and the first block's L y + l begin with
    int begun_floats;
    Direct* direct;
    float own_score;  // of the beam that has this lane's number, where the chain chooses
    int all_rows;     // B W
    int lane_column;  // of a step

    __device__ explicit Chain(const DraftPassParams& params)
        : params(params), first_tag(0), hidden_share(params.hidden_size), exit_share(params.exit_dim) {
        const int columns = max(params.hidden_size, params.exit_dim);
        resident.fill(columns, params.chain_resident, [&](int slot, int& bytes) -> const void* {
            const int matrix = slot % num_matrices(), tile = blockIdx.x + slot / num_matrices() * params.chain_blocks;
            bytes = tile_bytes(columns_of(matrix));
            return tile < tiles_of(matrix) ? tile_at(matrix, tile) : nullptr;
        }, [] {});
        const int own_tiles = divide_up(columns / TILE_ROWS, params.chain_blocks);
        all_rows = params.requests * params.num_beams;
        lane_column = lane_id() % 4 * 8;
        partial = reinterpret_cast<float*>(resident.rest(params.chain_resident));
        next_partial = partial + max(hidden_share.warps, exit_share.warps) * WARP_FLOATS;
        second_partial = next_partial + max(hidden_share.warps, exit_share.warps) * WARP_FLOATS;
        residual = second_partial + max(hidden_share.warps, exit_share.warps) * WARP_FLOATS;
        begun = residual + own_tiles * all_rows * TILE_ROWS;
        begun_floats = own_tiles * params.requests * TILE_ROWS;
        direct = reinterpret_cast<Direct*>(begun + 2 * begun_floats);
        own_score = 0.0f;
    }

    __device__ bool is_direct() const { return ROW_BLOCKS == 1 && params.is_direct; }
    __device__ int num_matrices() const { return FIRST_BLOCK + params.num_blocks; }
    __device__ int columns_of(int matrix) const { return matrix <= FIRST_BLOCK ? params.hidden_size : params.exit_dim; }
    __device__ int tiles_of(int matrix) const {
        return (matrix < STATE_PROJ ? params.hidden_size : params.exit_dim) / TILE_ROWS;
    }

    __device__ const char* tile_at(int matrix, int tile) const {
        const void* weight = matrix == RNN_W         ? params.rnn_w
                             : matrix == RNN_U       ? params.rnn_u
                             : matrix == STATE_PROJ  ? params.state_proj
                             : matrix == FIRST_BLOCK ? params.first_proj
                                                     : params.blocks;
        const long long block = max(matrix - FIRST_BLOCK - 1, 0);
        return static_cast<const char*>(weight) + (block * tiles_of(matrix) + tile) * tile_bytes(columns_of(matrix));
    }

    __device__ const char* weights(int matrix, int own, int tile) const {
        return resident.tile(own * num_matrices() + matrix, tile_at(matrix, tile));
    }

    __device__ void run(unsigned tag) {
        first_tag = tag;
#pragma unroll 1
        for (int depth = 1; depth <= params.depth; ++depth) {
            const int rows = depth == 1 ? params.requests : all_rows;
            trace(depth, 0);
            advance(depth, rows);
            trace(depth, 1);
            if (depth == 1) {
                begin(params.context_proj, params.context_bias, begun);
                if (params.num_blocks > 0) begin(params.first_context, params.first_bias, begun + begun_floats);
            }
            project(depth, rows);
            trace(depth, 2);
#pragma unroll 1
            for (int block = 1; block < params.num_blocks; ++block) {
                exit_block(block, depth, rows);
                trace(depth, 2 + block);
            }
        }
    }

    // `body(first row, own tile, tile)` for all groups of rows and all of this block's tiles.
    template <class Body>
    __device__ void each(int rows, int tiles, Body body) {
#pragma unroll 1
        for (int first = 0; first < rows; first += GROUP_ROWS)
#pragma unroll 1
            for (int own = 0, tile = blockIdx.x; tile < tiles; ++own, tile += params.chain_blocks)
                body(first, own, tile);
    }

    // The row of this lane in a block of 8, or the last one.
    __device__ int row_of(int first, int block, int rows) const {
        return min(first + 8 * block + static_cast<int>(lane_id()) / 4, rows - 1);
    }

    __device__ unsigned long long* states(int depth) const {
        return params.states + static_cast<long long>(depth % 2) * params.max_rows * (params.hidden_size / 2);
    }

    __device__ unsigned long long* hiddens(int index) const {
        return params.hiddens + static_cast<long long>(index) * params.max_rows * (params.exit_dim / 2);
    }

    __device__ PublishedRows<ROW_BLOCKS> published(
        const unsigned long long* words, int columns, int first, int rows, unsigned tag) const {
        PublishedRows<ROW_BLOCKS> result;
        result.tag = tag;
#pragma unroll
        for (int block = 0; block < ROW_BLOCKS; ++block)
            result.rows[block] = words + (row_of(first, block, rows) * columns + lane_column) / 2;
        return result;
    }

    // The cell reads the beams' tokens: the roots at first, then what was selected.
    __device__ void advance(int depth, int rows) {
        const T* biases = static_cast<const T*>(depth > 1 || params.has_silu ? params.rnn_bias : nullptr);
        const int chosen = is_direct() && depth > 1 ? choose(depth, depth == 2 ? 1 : params.num_beams) : 0;
        if (is_direct() && depth > 2 && blockIdx.x == 0 && warp_id() == PASS_WARPS - 1) await_selected(depth - 2);
        each(rows, tiles_of(RNN_W), [&](int first, int own, int tile) {
            ElementRows<T, ROW_BLOCKS> tokens;
            PublishedRows<ROW_BLOCKS> before;
            before.tag = first_tag + depth - 1;
            const float bias = bias_of(biases, tile);
#pragma unroll
            for (int block = 0; block < ROW_BLOCKS; ++block) {
                const int row = row_of(first, block, rows);
                long long token;
                if (depth == 1) {
                    token = root_of(params, row);
                } else {
                    int parent = depth == 2 ? row / params.num_beams : row - row % params.num_beams;
                    if (is_direct()) {
                        token = chosen % (1 << DIRECT_TOKEN_BITS);
                        parent = chosen >> DIRECT_TOKEN_BITS;
                    } else {
                        const unsigned beam = await_word(params.beams + row, before.tag);
                        token = beam >> DEPTH_BITS;
                        parent += static_cast<int>(beam % (1 << DEPTH_BITS));
                    }
                    before.rows[block] = states(depth - 1) + (parent * params.hidden_size + lane_column) / 2;
                }
                tokens.rows[block] =
                    static_cast<const T*>(params.embedding) + token * params.hidden_size + lane_column;
            }
            TileSums<ROW_BLOCKS> sums;
            if (depth == 1)
                multiply(sums, hidden_share, weights(RNN_W, own, tile), tokens);
            else
                multiply_both(sums, weights(RNN_W, own, tile), weights(RNN_U, own, tile), tokens, before);
            float value = add_up(sums, hidden_share.warps) + bias;
            if (params.has_silu) value = silu_fast(value);
            publish(states(depth), params.hidden_size, value, first, rows, tile, first_tag + depth);
        });
    }

    // The beam of this lane's row, from what the LM head said of the `width` beams of the depth before: beam before, token.
    __device__ int choose(int depth, int width) {
        direct->read(params, first_tag + depth - 1, depth - 1, width, shfl(own_score, static_cast<int>(warp_id()) % width));
        block_sync();
        const int row = min(static_cast<int>(lane_id()) / 4, params.num_beams - 1);
        int chosen = 0;
        direct->choose(params.num_beams, [&](int beam, unsigned long long rank) {
            if (beam == row) chosen = place_of(rank);
            if (beam == static_cast<int>(lane_id()))
                own_score = fminf(score_of(rank), direct->parents[place_of(rank) >> DIRECT_TOKEN_BITS]);
        });
        return chosen;
    }

    // The head will write where those that select have read two depths before.
    __device__ void await_selected(int depth) const {
        while (static_cast<int>(static_cast<unsigned>(load_relaxed_word(params.beams) >> 32) - (first_tag + depth)) < 0)
            spin_pause();
    }

    // The context's share of every y, and of what the first block makes of it.
    __device__ void begin(const void* context_weights, const void* context_biases, float* kept) {
        each(params.requests, tiles_of(STATE_PROJ), [&](int first, int own, int tile) {
            FloatRows<T, ROW_BLOCKS> contexts;
#pragma unroll
            for (int block = 0; block < ROW_BLOCKS; ++block)
                contexts.rows[block] = params.hidden + lane_column +
                    params.slots[row_of(first, block, params.requests)] * params.hidden_size;
            const float bias = bias_of(static_cast<const T*>(context_biases), tile);
            TileSums<ROW_BLOCKS> sums;
            multiply(sums, hidden_share,
                     static_cast<const char*>(context_weights) +
                         static_cast<long long>(tile) * tile_bytes(params.hidden_size),
                     contexts);
            const float value = add_up(sums, hidden_share.warps) + bias;
            const int row = first + out_row();
            if (out_row() < GROUP_ROWS && row < params.requests)
                kept[(own * params.requests + row) * TILE_ROWS + out_column()] = value;
        });
    }

    __device__ void project(int depth, int rows) {
        const unsigned tag = first_tag + depth;
        const bool has_first = params.num_blocks > 0;
        each(rows, tiles_of(STATE_PROJ), [&](int first, int own, int tile) {
            const auto operand = published(states(depth), params.hidden_size, first, rows, tag);
            const int row = first + out_row(), request = depth == 1 ? row : row / params.num_beams;
            const bool is_real = out_row() < GROUP_ROWS && row < rows;
            const float* from = begun + (own * params.requests + request) * TILE_ROWS + out_column();
            TileSums<ROW_BLOCKS> sums, first_sums;
            const char* tiles[2] = {weights(STATE_PROJ, own, tile), nullptr};
            tiles[1] = has_first ? weights(FIRST_BLOCK, own, tile) : tiles[0];
            multiply_two(sums, first_sums, tiles, operand);
            if (static_cast<int>(warp_id()) < hidden_share.warps) store_partial(second_partial, first_sums);
            float value = add_up(sums, hidden_share.warps) + (is_real ? from[0] : 0.0f);
            if (has_first)
                value += silu_fast(added_up(second_partial, hidden_share.warps) + (is_real ? from[begun_floats] : 0.0f));
            if (is_real) residual[(own * all_rows + row) * TILE_ROWS + out_column()] = value;
            publish(hiddens(has_first), params.exit_dim, value, first, rows, tile, tag);
            block_sync();  // the second products have been read
        });
    }

    __device__ void exit_block(int block, int depth, int rows) {
        const unsigned tag = first_tag + depth;
        const T* biases = static_cast<const T*>(params.block_biases) + block * params.exit_dim;
        each(rows, tiles_of(FIRST_BLOCK), [&](int first, int own, int tile) {
            const auto operand = published(hiddens(block), params.exit_dim, first, rows, tag);
            const float bias = bias_of(biases, tile);
            TileSums<ROW_BLOCKS> sums;
            multiply(sums, exit_share, weights(FIRST_BLOCK + block, own, tile), operand);
            float value = silu_fast(add_up(sums, exit_share.warps) + bias);
            const int row = first + out_row();
            if (out_row() < GROUP_ROWS && row < rows) {
                float& kept = residual[(own * all_rows + row) * TILE_ROWS + out_column()];
                kept = value = value + kept;
            }
            publish(hiddens(block + 1), params.exit_dim, value, first, rows, tile, tag);
        });
    }

    // This warp's share of a tile's products. Weights are asked for before the rows are waited for.
    template <class Rows>
    __device__ void multiply(TileSums<ROW_BLOCKS>& sums, const Share& share, const char* tile, const Rows& rows) const {
#pragma unroll 1
        for (int step = share.first; step < share.end; step += STEPS_AT_ONCE) {
            WeightStep weights[STEPS_AT_ONCE];
            load_steps(weights, tile, step, share.end);
            Operand<ROW_BLOCKS> x;
            rows.take(x, step, share.end);
            add_steps(sums, weights, x, step, share.end);
        }
    }

    // Two products of the same rows.
    template <class Rows>
    __device__ void multiply_two(
        TileSums<ROW_BLOCKS>& sums, TileSums<ROW_BLOCKS>& other_sums, const char* const (&tiles)[2],
        const Rows& rows) const {
        const int end = hidden_share.end;
#pragma unroll 1
        for (int step = hidden_share.first; step < end; step += STEPS_AT_ONCE) {
            WeightStep weights[STEPS_AT_ONCE], other_weights[STEPS_AT_ONCE];
            load_steps(weights, tiles[0], step, end);
            load_steps(other_weights, tiles[1], step, end);
            Operand<ROW_BLOCKS> x;
            rows.take(x, step, end);
            add_steps(sums, weights, x, step, end);
            add_steps(other_sums, other_weights, x, step, end);
        }
    }

    // Both products of the cell, whose operands are had at one time.
    __device__ void multiply_both(
        TileSums<ROW_BLOCKS>& sums, const char* tile, const char* tile_before, const ElementRows<T, ROW_BLOCKS>& tokens,
        const PublishedRows<ROW_BLOCKS>& before) const {
        const int end = hidden_share.end;
#pragma unroll 1
        for (int step = hidden_share.first; step < end; step += STEPS_AT_ONCE) {
            Operand<ROW_BLOCKS> x, x_before;
            tokens.take(x, step, end);
            before.take(x_before, step, end);
            WeightStep weights[STEPS_AT_ONCE];
            load_steps(weights, tile_before, step, end);
            add_steps(sums, weights, x_before, step, end);
            load_steps(weights, tile, step, end);
            add_steps(sums, weights, x, step, end);
        }
    }

    static __device__ void load_steps(
        WeightStep (&weights)[STEPS_AT_ONCE], const char* tile, int step, int end) {
#pragma unroll
        for (int i = 0; i < STEPS_AT_ONCE; ++i) weights[i] = load_step(tile, min(step + i, end - 1));
    }

    static __device__ void add_steps(
        TileSums<ROW_BLOCKS>& sums, const WeightStep (&weights)[STEPS_AT_ONCE],
        const Operand<ROW_BLOCKS>& x, int step, int end) {
#pragma unroll
        for (int i = 0; i < STEPS_AT_ONCE; ++i) {
            if (step + i >= end) continue;
#pragma unroll
            for (int block = 0; block < ROW_BLOCKS; ++block) add_products<T>(sums, weights[i], x[i][block], block);
        }
    }

    // A thread's place in a tile's result, once the warps' sums are added up.
    static __device__ int out_row() { return threadIdx.x / TILE_ROWS; }
    static __device__ int out_column() { return threadIdx.x % TILE_ROWS; }

    static __device__ float bias_of(const T* biases, int tile) {
        return biases && out_row() < GROUP_ROWS ? to_float(biases[tile * TILE_ROWS + out_column()]) : 0.0f;
    }

    // The sum over warps of this thread's row and column. That all have passed this barrier says that the half of the
    // phase before may be overwritten.
    __device__ float add_up(const TileSums<ROW_BLOCKS>& sums, int warps) {
        if (static_cast<int>(warp_id()) < warps) store_partial(partial, sums);
        block_sync();
        float* used = partial;
        partial = next_partial;
        next_partial = used;
        return added_up(used, warps);
    }

    static __device__ float added_up(const float* from, int warps) {
        float parts[4] = {};
        if (out_row() < GROUP_ROWS) {
            const float* part = from + out_row() * PARTIAL_PITCH + out_column();
#pragma unroll
            for (int warp = 0; warp < PASS_WARPS; ++warp)
                if (warp < warps) parts[warp % 4] += part[warp * WARP_FLOATS];
        }
        return (parts[0] + parts[1]) + (parts[2] + parts[3]);
    }

    static __device__ void store_partial(float* to, const TileSums<ROW_BLOCKS>& sums) {
        const int tile_row = static_cast<int>(lane_id()) / 4, first_row = 2 * (static_cast<int>(lane_id()) % 4);
        float* own = to + static_cast<int>(warp_id()) * WARP_FLOATS + first_row * PARTIAL_PITCH + tile_row;
#pragma unroll
        for (int block = 0; block < ROW_BLOCKS; ++block)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                own[(block * 8 + i % 2) * PARTIAL_PITCH + i / 2 * 8] = sums.even[block][i] + sums.odd[block][i];
    }

    __device__ void publish(
        unsigned long long* words, int columns, float value, int first, int rows, int tile, unsigned tag) const {
        if (out_row() >= GROUP_ROWS) return;
        const float next = shfl_xor(value, 1);
        const int row = first + out_row();
        if (row < rows && out_column() % 2 == 0)
            store_relaxed_word(words + (row * columns + tile * TILE_ROWS + out_column()) / 2,
                               tagged(pack2<T>(value, next), tag));
    }
};
