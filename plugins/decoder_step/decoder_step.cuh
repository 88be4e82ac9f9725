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

struct LayerWeights {
  const bfloat16* input_norm;  // (H,)
  const bfloat16* qkv;         // (QKV, H)
  const bfloat16* qkv_bias;    // (QKV,), or null
  const bfloat16* q_norm;      // (D,), or null
  const bfloat16* k_norm;
  const bfloat16* dense;      // (H, N D)
  const bfloat16* post_norm;  // (H,)
  const bfloat16* fc;         // (I, H), the branch that is activated
  const bfloat16* gate;       // (I, H)
  const bfloat16* down;       // (H, I)
};

struct DecoderStepParams {
  const LayerWeights* layers;  // (L,)
  const bfloat16* embedding;   // (V, H)
  const bfloat16* final_norm;  // (H,)
  const bfloat16* head;        // (V, H)
  const bfloat16* cos;         // (positions, D): see rope_kv_write
  const bfloat16* sin;
  const long long* token_ids;     // (R,)
  const long long* positions;     // (R,)
  const long long* query_starts;  // (B + 1,)
  const long long* context_lens;  // (B,)
  const long long* block_tables;  // (B, max_blocks)
  const long long* ancestors;     // (B, max_nodes), or null
  bfloat16* cache;                // (2 L, num_blocks, N_kv, BLOCK_SIZE, D)
  float* logits;                  // (R, V)
  float* hidden;                  // (R, H), after the final norm
  unsigned* exchange;             // 2 x EXCHANGE_WORDS, EMPTY before the first launch
  unsigned* launches;             // (blocks,), 0 before the first launch
  float* split_outputs;           // (R, N, max_splits, D)
  float* split_softmax;           // (R, N, max_splits, 2)
  unsigned* split_counts;         // (R, N_kv), 0 before the first launch
  long long layer_stride;         // elements of one layer's K: num_blocks N_kv BLOCK_SIZE D
  int num_rows;
  int num_requests;
  int max_blocks;
  int max_nodes;
  int max_splits;
  float norm_eps;
  float scale;  // of attention's logits
  int unused;
};
static_assert(sizeof(DecoderStepParams) == 21 * 8 + 8 * 4, "mirrored in cuda.py");

__host__ __device__ constexpr int align_up(int bytes, int to) { return ceil_div(bytes, to) * to; }

// Shared memory: activations, or attention's scratch in their place | partials | ring | squares | rows | barriers.
constexpr int ACTIVATION_BYTES = MAX_ROWS * ACTIVATION_PITCH;
constexpr int SCRATCH_BYTES = align_up(ACTIVATION_BYTES > ATTENTION_BYTES ? ACTIVATION_BYTES : ATTENTION_BYTES, 128);
constexpr int PARTIAL_BYTES = 2 * CONSUMER_WARPS * ROW_BLOCKS * 32 * 16;
constexpr int SQUARE_BYTES = align_up(2 * CONSUMER_WARPS * MAX_ROWS * 4, 16);
constexpr int ROWS_BYTES = align_up(sizeof(StepRows), 16);
constexpr int SHARED_BYTES =
    SCRATCH_BYTES + PARTIAL_BYTES + STAGES * STAGE_BYTES + SQUARE_BYTES + ROWS_BYTES + 2 * STAGES * 8;

static_assert(SHARED_BYTES <= LAUNCH_SHARED_BYTES, "plan.py asks for less than the kernel uses");

struct SharedLayout {
  Workspace work;
  AttentionScratch attention;
  StepRows* rows;
};

__device__ inline SharedLayout shared_layout(int num_rows) {
  SharedLayout layout;
  char* at = reinterpret_cast<char*>(shared_memory());
  layout.work.num_rows = num_rows;
  layout.work.activations = at;
  layout.attention = attention_scratch(at);
  at += SCRATCH_BYTES;
  layout.work.partials = reinterpret_cast<float4*>(at);
  at += PARTIAL_BYTES;
  layout.work.ring.stages = at;
  at += STAGES * STAGE_BYTES;
  layout.work.squares = reinterpret_cast<float*>(at);
  at += SQUARE_BYTES;
  layout.rows = reinterpret_cast<StepRows*>(at);
  at += ROWS_BYTES;
  layout.work.ring.full = reinterpret_cast<Mbarrier*>(at);
  layout.work.ring.empty = layout.work.ring.full + STAGES;
  return layout;
}

// One thread: what the step's rows are, out of the batch.
__device__ inline void describe_rows(const DecoderStepParams& params, StepRows& rows) {
  rows.num_requests = params.num_requests;
  rows.starts[0] = rows.item_starts[0] = 0;
  for (int request = 0; request < params.num_requests; ++request) {
    const int start = params.query_starts[request], end = params.query_starts[request + 1];
    const int context = params.context_lens[request];
    const int first_key = WINDOW > 0 ? max(0, context - (end - start) - WINDOW + 1) : 0;
    rows.starts[request + 1] = end;
    rows.contexts[request] = context;
    rows.first_splits[request] = first_key / SPLIT_KEYS;
    rows.item_starts[request + 1] =
        rows.item_starts[request] + (ceil_div(context, SPLIT_KEYS) - first_key / SPLIT_KEYS) * NUM_KV_HEADS;
    const long long* bits = params.ancestors ? params.ancestors + (long long)request * params.max_nodes : nullptr;
    const bool is_tree = bits && bits[0] != 0;
    for (int row = start; row < end; ++row)
      rows.seen[row] = is_tree ? bits[row - start] : ~0ull >> (LONGEST_TREE - 1 - (row - start));
  }
  for (int row = 0; row < params.num_rows; ++row) {
    rows.token_ids[row] = params.token_ids[row];
    rows.positions[row] = params.positions[row];
  }
}

// The warp that fills the ring: every weight tile of this block, in the order of the phases.
__device__ inline void stream_step(const DecoderStepParams& params, const Ring& ring) {
  const int lane = lane_id() % TILE_ROWS;
  RingCursor cursor;
  Deal deal;
  const auto rows_of = [lane](const bfloat16* weight, int columns, int last_row) {
    return [=](int tile) { return weight + (long long)min(tile * TILE_ROWS + lane, last_row) * columns; };
  };
  for (int layer = 0; layer < NUM_LAYERS; ++layer) {
    const LayerWeights weights = params.layers[layer];
    stream_weights<QkvLinear>(
        ring, cursor, deal.first_tile<QkvLinear>(), rows_of(weights.qkv, HIDDEN, QKV_SIZE - 1));
    stream_weights<DenseLinear>(
        ring, cursor, deal.first_tile<DenseLinear>(), rows_of(weights.dense, Q_SIZE, HIDDEN - 1));
    const bfloat16* branch = lane < TILE_ROWS / 2 ? weights.fc : weights.gate;
    stream_weights<GateUpLinear>(ring, cursor, deal.first_tile<GateUpLinear>(), [=](int tile) {
      return branch + (long long)(tile * (TILE_ROWS / 2) + lane % (TILE_ROWS / 2)) * HIDDEN;
    });
    stream_weights<DownLinear>(
        ring, cursor, deal.first_tile<DownLinear>(), rows_of(weights.down, INTERMEDIATE, HIDDEN - 1));
  }
  stream_weights<HeadLinear>(ring, cursor, deal.first_tile<HeadLinear>(), rows_of(params.head, HIDDEN, VOCAB - 1));
}

struct Consumer {
  const DecoderStepParams& params;
  SharedLayout layout;
  unsigned* set;  // of the exchange
  RingCursor cursor;
  Deal deal;
  int turn = 0;
  int normed = 0;  // phases of this block that began with a norm

  __device__ AttentionLayer attention_layer(const LayerWeights& weights, const LayerExchange& exchange, int layer) {
    AttentionLayer attention;
    attention.qkv = exchange.qkv;
    attention.attended = exchange.attended;
    attention.k_cache = params.cache + 2 * layer * params.layer_stride;
    attention.v_cache = attention.k_cache + params.layer_stride;
    attention.q_norm = weights.q_norm;
    attention.k_norm = weights.k_norm;
    attention.cos = params.cos;
    attention.sin = params.sin;
    attention.block_tables = params.block_tables;
    attention.max_blocks = params.max_blocks;
    attention.norm_eps = params.norm_eps;
    attention.scale = params.scale * 1.4426950408889634f;
    attention.split_outputs = params.split_outputs;
    attention.split_softmax = params.split_softmax;
    attention.split_counts = params.split_counts;
    attention.max_splits = params.max_splits;
    return attention;
  }

  // The next layer's vectors into L2, by one block: they are too short for the ring, and a block would wait for memory.
  __device__ void prefetch_norms(int layer) {
    if (blockIdx.x != layer % gridDim.x || layer == NUM_LAYERS) return;
    const LayerWeights weights = params.layers[layer];
    for (int column = 64 * threadIdx.x; column < HIDDEN; column += 64 * CONSUMERS) {
      prefetch_l2(weights.input_norm + column);
      prefetch_l2(weights.post_norm + column);
    }
    for (int column = 64 * threadIdx.x; HAS_QKV_BIAS && column < QKV_SIZE; column += 64 * CONSUMERS)
      prefetch_l2(weights.qkv_bias + column);
  }

  // The last warp of the phase before may still read its sums of squares, that of the one before it no more.
  template <class Op>
  __device__ void next_squares(int first_tile) {
    if (first_tile >= Op::TILES) return;
    const int offset = CONSUMER_WARPS * MAX_ROWS;
    layout.work.squares += normed % 2 == 0 ? offset : -offset;
    ++normed;
  }

  __device__ void run_layer(int layer, const Residual& input) {
    const LayerWeights weights = params.layers[layer];
    const LayerExchange exchange = layer_exchange(set, layer);
    const Workspace& work = layout.work;
    const int qkv_tile = deal.first_tile<QkvLinear>(), first_item = Deal(deal).first_tile<QkvLinear>();
    const AttentionLayer attention = attention_layer(weights, exchange, layer);
    prefetch_keys(attention, *layout.rows, first_item);
    prefetch_norms(layer + 1);
    trace(layer, 0);
    next_squares<QkvLinear>(qkv_tile);
    run_linear<QkvLinear>(
        work, cursor, turn, qkv_tile, QkvEpilogue{&work, weights.qkv_bias, exchange.qkv, params.norm_eps},
        [&](int) { load_residual(work, input, weights.input_norm); trace(layer, 1); });
    trace(layer, 2);
    attend(attention, *layout.rows, layout.attention, first_item);
    trace(layer, 3);
    run_linear<DenseLinear>(
        work, cursor, turn, deal.first_tile<DenseLinear>(), ResidualEpilogue{&work, input, exchange.middle},
        [&](int panel) { load_published<Q_SIZE>(work, exchange.attended, panel); trace(layer, 4); });
    trace(layer, 5);
    const Residual middle{exchange.middle, nullptr, nullptr};
    const int gate_up_tile = deal.first_tile<GateUpLinear>();
    next_squares<GateUpLinear>(gate_up_tile);
    run_linear<GateUpLinear>(
        work, cursor, turn, gate_up_tile, GateUpEpilogue{&work, exchange.activated, params.norm_eps},
        [&](int) { load_residual(work, middle, weights.post_norm); trace(layer, 6); });
    trace(layer, 7);
    run_linear<DownLinear>(
        work, cursor, turn, deal.first_tile<DownLinear>(), ResidualEpilogue{&work, middle, exchange.output},
        [&](int panel) { load_published<INTERMEDIATE>(work, exchange.activated, panel); trace(layer, 8); });
    trace(layer, 9);
  }

  __device__ void run_head(const Residual& last) {
    const Workspace& work = layout.work;
    const int head_tile = deal.first_tile<HeadLinear>(), tiles = min(HeadLinear::TILES, int(gridDim.x));
    next_squares<HeadLinear>(head_tile);
    run_linear<HeadLinear>(
        work, cursor, turn, head_tile, HeadEpilogue{&work, params.logits, params.norm_eps},
        [&](int) { load_residual(work, last, params.final_norm); trace(NUM_LAYERS, 1); });
    trace(NUM_LAYERS, 2);
    // Only blocks that have a tile of the head have the sums of squares.
    if (head_tile >= tiles) return;
    for (int row = head_tile; row < params.num_rows; row += tiles) {
      const float factor = inverse_rms(work, row, params.norm_eps);
      for (int column = threadIdx.x; column < HIDDEN; column += CONSUMERS)
        params.hidden[row * HIDDEN + column] = last.at(row, column) * factor * to_float(params.final_norm[column]);
    }
  }

  __device__ void run() {
    Residual residual{nullptr, params.embedding, layout.rows->token_ids};
    for (int layer = 0; layer < NUM_LAYERS; ++layer) {
      run_layer(layer, residual);
      residual = Residual{layer_exchange(set, layer).output, nullptr, nullptr};
    }
    run_head(residual);
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
  if (threadIdx.x == 0) describe_rows(params, *layout.rows);
  empty_set(params.exchange + (1 - launch % 2) * EXCHANGE_WORDS);
  named_sync(CONSUMER_BARRIER, CONSUMERS);
  Consumer consumer{params, layout, params.exchange + launch % 2 * EXCHANGE_WORDS};
  consumer.run();
  if (threadIdx.x == 0) params.launches[blockIdx.x] = launch + 1;
}
