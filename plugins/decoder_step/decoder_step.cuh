// One step of a decoder in one cooperative launch: embeddings, all layers, final norm and LM head for R rows of decode or
// of draft trees. One block on every multiprocessor, of 8 consumer warps and one that fills the weight ring.
//
// Blocks meet in no barrier: the producer streams this block's share of all weights, in order, and the consumers wait
// for exactly the results that they need (exchange.cuh). A layer has five phases: qkv | attention | dense | gate_up |
// down; each ends where its results are published.
//
// Weights, activations and cache bfloat16; residual stream, sums, softmax and logits float32. Rows of weights 16-byte
// aligned. Shared memory: SHARED_BYTES.
#pragma once

#include "attend.cuh"
#include "trace.cuh"

__host__ __device__ constexpr int align_up(int bytes, int to) { return ceil_div(bytes, to) * to; }

// Shared memory: activations, or attention's scratch in their place | partials | ring | squares | rows | layers |
// barriers.
constexpr int ACTIVATION_BYTES = MAX_ROWS * ACTIVATION_PITCH;
constexpr int SCRATCH_BYTES = align_up(ACTIVATION_BYTES > ATTENTION_BYTES ? ACTIVATION_BYTES : ATTENTION_BYTES, 128);
constexpr int PARTIAL_BYTES = 2 * MAX_ROWS * CONSUMER_WARPS * TILE_ROWS * 4;
constexpr int SQUARE_BYTES = align_up(2 * CONSUMER_WARPS * MAX_ROWS * 4, 16);
constexpr int ROWS_BYTES = align_up(sizeof(StepRows), 16);
constexpr int TABLE_BYTES = align_up(NUM_LAYERS * sizeof(LayerWeights), 16);
constexpr int SHARED_BYTES =
        SCRATCH_BYTES + PARTIAL_BYTES + STAGES * STAGE_BYTES + SQUARE_BYTES + ROWS_BYTES + TABLE_BYTES + 2 * STAGES * 8;

static_assert(SHARED_BYTES <= LAUNCH_SHARED_BYTES, "plan.py asks for less than the kernel uses");

struct SharedLayout {
    Workspace work;
    AttentionScratch attention;
    StepRows* rows;
    LayerWeights* layers;  // a copy of the table, which is read at the start of every phase
};

__device__ inline SharedLayout shared_layout(int num_rows) {
    SharedLayout layout;
    char* at = reinterpret_cast<char*>(shared_memory());
    layout.work.num_rows = num_rows;
    layout.work.activations = at;
    layout.attention = attention_scratch(at);
    at += SCRATCH_BYTES;
    layout.work.partials = reinterpret_cast<float*>(at);
    at += PARTIAL_BYTES;
    layout.work.ring.stages = at;
    at += STAGES * STAGE_BYTES;
    layout.work.squares = reinterpret_cast<float*>(at);
    at += SQUARE_BYTES;
    layout.rows = reinterpret_cast<StepRows*>(at);
    at += ROWS_BYTES;
    layout.layers = reinterpret_cast<LayerWeights*>(at);
    at += TABLE_BYTES;
    layout.work.ring.full = reinterpret_cast<Mbarrier*>(at);
    layout.work.ring.empty = layout.work.ring.full + STAGES;
    return layout;
}

__device__ inline unsigned long long seen_by(const DecoderStepParams& params, const StepRows& rows, int row) {
    int request = 0;
    while (row >= rows.starts[request + 1]) ++request;
    const int node = row - rows.starts[request];
    const unsigned long long chain = ~0ull >> (LONGEST_TREE - 1 - node);
    if (!params.ancestors) return chain;
    const long long* bits = params.ancestors + request * params.max_nodes;
    return bits[0] != 0 ? bits[node] : chain;
}

__device__ inline void deal_items(StepRows& rows, int num_requests) {
    rows.num_requests = num_requests;
    rows.item_starts[0] = 0;
#pragma unroll 1
    for (int request = 0; request < num_requests; ++request) {
        const int context = rows.contexts[request], first_row = context - (rows.starts[request + 1] - rows.starts[request]);
        rows.first_splits[request] = WINDOW > 0 ? max(0, first_row - WINDOW + 1) / SPLIT_KEYS : 0;
        const int splits = ceil_div(context, SPLIT_KEYS) - rows.first_splits[request];
        rows.item_starts[request + 1] = rows.item_starts[request] + splits * NUM_KV_HEADS;
    }
}

// All consumers: what the step's rows are, out of the batch, and where the layers' weights are.
__device__ inline void describe_step(const DecoderStepParams& params, const SharedLayout& layout) {
    StepRows& rows = *layout.rows;
    const int at = threadIdx.x, num_requests = params.num_requests;
    if (at <= num_requests) rows.starts[at] = params.query_starts[at];
    if (at < num_requests) rows.contexts[at] = params.context_lens[at];
    if (at < params.num_rows) {
        rows.token_ids[at] = params.token_ids[at];
        rows.positions[at] = params.positions[at];
    }
    constexpr int TABLE_WORDS = NUM_LAYERS * sizeof(LayerWeights) / 8;
    for (int word = at; word < TABLE_WORDS; word += CONSUMERS)
        reinterpret_cast<long long*>(layout.layers)[word] = reinterpret_cast<const long long*>(params.layers)[word];
    named_sync(CONSUMER_BARRIER, CONSUMERS);
    if (at < params.num_rows) rows.seen[at] = seen_by(params, rows, at);
    if (at == 0) deal_items(rows, num_requests);
    named_sync(CONSUMER_BARRIER, CONSUMERS);
}

// The warp that fills the ring: every weight tile of this block, in the order of the phases. Lane r names row r % 16 of a
// tile; past a weight's last row it is the last one again.
__device__ inline void stream_phase(
    const Ring& ring, RingCursor& cursor, int phase, int first_tile, const LayerWeights& weights, const bfloat16* head) {
    const int lane = int(lane_id()) % TILE_ROWS, columns = columns_of(phase), tiles = tiles_of(phase);
    const bfloat16* weight = phase == QKV     ? weights.qkv
                             : phase == DENSE ? weights.dense
                             : phase == DOWN  ? weights.down
                             : phase == HEAD  ? head
                             : lane < TILE_ROWS / 2 ? weights.fc
                                                    : weights.gate;
    const int last_row = (phase == QKV ? QKV_SIZE : phase == HEAD ? VOCAB : HIDDEN) - 1;
#pragma unroll 1
    for (int tile = first_tile; tile < tiles; tile += gridDim.x) {
        const int row = phase == GATE_UP ? tile * (TILE_ROWS / 2) + lane % (TILE_ROWS / 2)
                                         : min(tile * TILE_ROWS + lane, last_row);
#pragma unroll 1
        for (int column = 0; column < columns; column += CHUNK)
            fill_stage(ring, cursor, weight + (long long)row * columns + column, min(CHUNK, columns - column));
    }
}

__device__ inline void stream_step(const DecoderStepParams& params, const Ring& ring) {
    RingCursor cursor;
    Deal deal;
    LayerWeights weights;
#pragma unroll 1
    for (int index = 0; index <= 4 * NUM_LAYERS; ++index) {
        const int phase = index == 4 * NUM_LAYERS ? HEAD : index % 4;
        if (phase == QKV) weights = params.layers[index / 4];
        stream_phase(ring, cursor, phase, deal.next(phase), weights, params.head);
    }
}

// All consumers: what they carry from phase to phase.
struct Consumer {
    const DecoderStepParams& params;
    SharedLayout layout;
    unsigned* set;  // of the exchange
    RingCursor cursor;
    Deal deal;
    int turn = 0;    // tiles so far: whose turn it is to finish one
    int normed = 0;  // phases of this block that began with a norm

    __device__ void run() {
        const unsigned* residual = publish_embeddings();
#pragma unroll 1
        for (int index = 0; index <= 4 * NUM_LAYERS; ++index) {
            const int layer = index / 4, phase = index == 4 * NUM_LAYERS ? HEAD : index % 4;
            unsigned* words = set + (long long)layer * LAYER_WORDS;
            const LayerExchange exchange = exchange_at(words);
            trace(layer, 3 * phase);
            if (phase == DENSE) {
                bfloat16* k_cache = params.cache + 2 * layer * params.layer_stride;
                attend({params, layout.layers[layer], words, k_cache}, *layout.rows, layout.attention, first_item());
            }
            run_phase(layer, phase, exchange, residual);
            if (phase == DENSE) residual = exchange.middle;
            if (phase == DOWN) residual = exchange.output;
        }
    }

    // One linear layer with what comes before and after it; `residual` is the stream before it.
    __device__ void run_phase(int layer, int phase, const LayerExchange& exchange, const unsigned* residual) {
        const int columns = columns_of(phase), tiles = tiles_of(phase), first_tile = deal.next(phase);
        const Workspace& work = layout.work;
        const bool is_normed = phase != DENSE && phase != DOWN;
        if (first_tile >= tiles) return;
        if (is_normed) next_squares();
        Epilogue epilogue = make_epilogue(layer, phase, exchange, residual);
#pragma unroll 1
        for (int tile = first_tile; tile < tiles; tile += gridDim.x) {
            epilogue.prepare(work, tile, turn);
            Accumulator sums;
#pragma unroll 1
            for (int column = 0; column < columns; column += CHUNK) {
                if (tile == first_tile || columns > PANEL) load_panel(layer, phase, exchange, residual, column);
                const char* stage = await_stage(work.ring, cursor);
                multiply_stage(sums, stage, work.activations + column % PANEL * 2, min(CHUNK, columns - column),
                               work.num_rows);
                release_stage(work.ring, cursor);
            }
            store_partial(work, sums, turn);
            named_sync(CONSUMER_BARRIER, CONSUMERS);
            epilogue.finish(work, tile, turn);
            ++turn;
        }
        trace(layer, 3 * phase + 2);
        if (phase == HEAD) store_hidden(residual, first_tile);
    }

    // The activations of the panel that begins at `column`, if one does. That all have passed the barrier of the last
    // tile says that the ones before may be overwritten.
    __device__ void load_panel(
        int layer, int phase, const LayerExchange& exchange, const unsigned* residual, int column) {
        if (column % PANEL) return;
        const Workspace& work = layout.work;
        if (column > 0) named_sync(CONSUMER_BARRIER, CONSUMERS);
        if (phase == DENSE || phase == DOWN) {
            const int columns = columns_of(phase);
            load_published(work, phase == DENSE ? exchange.attended : exchange.activated, columns, column,
                           min(PANEL, columns - column));
        } else {
            load_residual(work, residual, norm_of(layer, phase));
        }
        named_sync(CONSUMER_BARRIER, CONSUMERS);
        trace(layer, 3 * phase + 1);
    }

    __device__ const bfloat16* norm_of(int layer, int phase) const {
        if (phase == HEAD) return params.final_norm;
        return phase == QKV ? layout.layers[layer].input_norm : layout.layers[layer].post_norm;
    }

    __device__ Epilogue make_epilogue(
        int layer, int phase, const LayerExchange& exchange, const unsigned* residual) const {
        Epilogue epilogue;
        epilogue.phase = phase;
        epilogue.before = residual;
        epilogue.bias = HAS_QKV_BIAS && phase == QKV ? layout.layers[layer].qkv_bias : nullptr;
        epilogue.words = phase == QKV       ? exchange.qkv
                         : phase == DENSE   ? exchange.middle
                         : phase == GATE_UP ? exchange.activated
                                            : exchange.output;
        epilogue.logits = params.logits;
        epilogue.eps = params.norm_eps;
        return epilogue;
    }

    // The finishing warp of the phase before may still read its sums of squares, that of the one before it no more.
    __device__ void next_squares() {
        const int offset = CONSUMER_WARPS * MAX_ROWS;
        layout.work.squares += normed % 2 == 0 ? offset : -offset;
        ++normed;
    }

    // Attention's items go to blocks from the first on that has no tile of this layer's dense, if there are any.
    __device__ int first_item() const {
        Deal after = deal;
        after.next(DENSE);
        return after.first_item();
    }

    // The tokens' embeddings, as if a layer before the first had published them.
    __device__ const unsigned* publish_embeddings() const {
        unsigned* words = set + 1LL * NUM_LAYERS * LAYER_WORDS;
        for (int at = blockIdx.x * CONSUMERS + threadIdx.x; at < params.num_rows * HIDDEN; at += gridDim.x * CONSUMERS) {
            const int row = at / HIDDEN, token_id = layout.rows->token_ids[row];
            publish(words + at, to_float(params.embedding[(long long)token_id * HIDDEN + at % HIDDEN]));
        }
        return words;
    }

    // Only blocks that have a tile of the head have the sums of squares.
    __device__ void store_hidden(const unsigned* last, int first_tile) const {
        const int blocks = min(tiles_of(HEAD), int(gridDim.x));
        for (int row = first_tile; row < params.num_rows; row += blocks) {
            const float factor = inverse_rms(layout.work, row, params.norm_eps);
            for (int column = threadIdx.x; column < HIDDEN; column += CONSUMERS)
                params.hidden[row * HIDDEN + column] = __uint_as_float(load_relaxed(last + row * HIDDEN + column)) *
                                                       factor * to_float(params.final_norm[column]);
        }
    }
};

__device__ inline void decoder_step(const DecoderStepParams& params) {
    const SharedLayout layout = shared_layout(params.num_rows);
    if (threadIdx.x == CONSUMERS) init_ring(layout.work.ring);
    block_sync();
    if (warp_id() == CONSUMER_WARPS) {
        stream_step(params, layout.work.ring);
        return;
    }
    const unsigned launch = params.launches[blockIdx.x];
    describe_step(params, layout);
    empty_set(params.exchange + (1 - launch % 2) * EXCHANGE_WORDS);
    Consumer consumer{params, layout, params.exchange + launch % 2 * EXCHANGE_WORDS};
    consumer.run();
    if (threadIdx.x == 0) params.launches[blockIdx.x] = launch + 1;
}
