// Attention of a step's rows over the paged cache, with rotary positions and the cache write.
//
// An item is one request, one key/value head and SPLIT_KEYS keys; a block takes whole items. The query heads of the
// group times the request's rows are the 16 rows of operand A. A warp takes 16 keys at a time, straight from the cache
// into mma operands, and keeps an online softmax; the warps' results are added in shared memory. Where a request has
// several splits, the block that ends last adds their partial results, always in the order of the keys.
// The item whose keys include a new token's writes that token's K and V; every item rotates the queries it needs.
#pragma once

#include "activations.cuh"

constexpr int QUERY_TILE = 16;
constexpr int QUERY_ROWS = MAX_ROWS * GROUP < QUERY_TILE ? MAX_ROWS * GROUP : QUERY_TILE;  // that can be real
constexpr int QUERY_PITCH = row_pitch(HEAD_DIM);
constexpr int HEAD_HALVES = ceil_div(HEAD_DIM, 64);      // 64 dimensions are 16 bytes for each of 8 threads
constexpr int HEAD_STEPS = ceil_div(HEAD_DIM, STEP_COLUMNS);
constexpr int LONGEST_TREE = 64;

// What the rows of a step are, the same in every layer; in shared memory.
struct StepRows {
  unsigned long long seen[MAX_ROWS];  // which of its request's new tokens a row sees, itself included
  int token_ids[MAX_ROWS];
  int positions[MAX_ROWS];
  int starts[MAX_ROWS + 1];       // first row of each request
  int item_starts[MAX_ROWS + 1];  // first item of each request
  int first_splits[MAX_ROWS];     // splits before a sliding window are left out
  int contexts[MAX_ROWS];         // tokens in the cache, those of this step included
  int num_requests;
};

struct AttentionScratch {
  bfloat16* queries;  // QUERY_TILE rows, QUERY_PITCH bytes apart
  float* outputs;     // CONSUMER_WARPS x QUERY_ROWS x HEAD_DIM, before division by their sums
  float2* softmax;    // CONSUMER_WARPS x QUERY_ROWS: maximum in units of log2, sum
  int* is_last;
};

constexpr int ATTENTION_BYTES = QUERY_TILE * QUERY_PITCH + CONSUMER_WARPS * QUERY_ROWS * (HEAD_DIM * 4 + 8) + 16;

__device__ inline AttentionScratch attention_scratch(char* memory) {
  AttentionScratch scratch;
  scratch.outputs = reinterpret_cast<float*>(memory);
  scratch.queries = reinterpret_cast<bfloat16*>(scratch.outputs + CONSUMER_WARPS * QUERY_ROWS * HEAD_DIM);
  scratch.softmax = reinterpret_cast<float2*>(reinterpret_cast<char*>(scratch.queries) + QUERY_TILE * QUERY_PITCH);
  scratch.is_last = reinterpret_cast<int*>(scratch.softmax + CONSUMER_WARPS * QUERY_ROWS);
  return scratch;
}

// What attention reads and writes in one layer.
struct AttentionLayer {
  const unsigned* qkv;  // published (R, QKV) float
  unsigned* attended;   // to be published (R, N D) bfloat16
  bfloat16* k_cache;    // (blocks, N_kv, BLOCK_SIZE, D)
  bfloat16* v_cache;
  const bfloat16* q_norm;  // (D,), or null
  const bfloat16* k_norm;
  const bfloat16* cos;  // (positions, D)
  const bfloat16* sin;
  const long long* block_tables;
  int max_blocks;
  float norm_eps;
  float scale;            // of the logits, times log2(e)
  float* split_outputs;   // (R, N, max_splits, D)
  float* split_softmax;   // (R, N, max_splits, 2)
  unsigned* split_counts;  // (R, N_kv), all 0 between uses
  int max_splits;
};

struct AttentionItem {
  int request;
  int head;  // of keys and values
  int split;
  int num_splits;
  int first_split;
  int first_row;
  int num_rows;
  int first_new;  // key of the request's first new token
  int first_key;
  int end_key;
};

__device__ inline AttentionItem find_item(const StepRows& rows, int index) {
  AttentionItem item;
  int request = 0;
  while (index >= rows.item_starts[request + 1]) ++request;
  const int local = index - rows.item_starts[request];
  item.request = request;
  item.head = local % NUM_KV_HEADS;
  item.first_split = rows.first_splits[request];
  item.split = item.first_split + local / NUM_KV_HEADS;
  item.num_splits = (rows.item_starts[request + 1] - rows.item_starts[request]) / NUM_KV_HEADS;
  item.first_row = rows.starts[request];
  item.num_rows = rows.starts[request + 1] - item.first_row;
  item.first_new = rows.contexts[request] - item.num_rows;
  item.first_key = item.split * SPLIT_KEYS;
  item.end_key = min(item.first_key + SPLIT_KEYS, rows.contexts[request]);
  return item;
}

// Element offset of a key's row in one layer's cache.
__device__ inline long long cache_row(const AttentionLayer& layer, const AttentionItem& item, int key) {
  const long long block = layer.block_tables[(long long)item.request * layer.max_blocks + key / BLOCK_SIZE];
  return ((block * NUM_KV_HEADS + item.head) * BLOCK_SIZE + key % BLOCK_SIZE) * HEAD_DIM;
}

// One warp: a published head, normed if `norm` is given, rotated to `position`, to `out`.
__device__ inline void rotate_head(
    const AttentionLayer& layer, const unsigned* head, const bfloat16* norm, int position, bfloat16* out) {
  constexpr int HALF = HEAD_DIM / 2, PAIRS = ceil_div(HALF, 32);
  float first[PAIRS], second[PAIRS];
  float squares = 0.0f;
#pragma unroll
  for (int pair = 0; pair < PAIRS; ++pair) {
    const int at = lane_id() + 32 * pair;
    first[pair] = at < HALF ? await_float(head + at) : 0.0f;
    second[pair] = at < HALF ? await_float(head + HALF + at) : 0.0f;
    squares += first[pair] * first[pair] + second[pair] * second[pair];
  }
  const float factor = HAS_QK_NORM ? rsqrt_fast(warp_sum(squares) / HEAD_DIM + layer.norm_eps) : 1.0f;
  const bfloat16* cos = layer.cos + (long long)position * HEAD_DIM;
  const bfloat16* sin = layer.sin + (long long)position * HEAD_DIM;
#pragma unroll
  for (int pair = 0; pair < PAIRS; ++pair) {
    const int at = lane_id() + 32 * pair;
    if (at >= HALF) break;
    float x = first[pair], y = second[pair];
    if (HAS_QK_NORM) {
      x *= factor * to_float(norm[at]);
      y *= factor * to_float(norm[HALF + at]);
    }
    out[at] = from_float<bfloat16>(x * to_float(cos[at]) + y * to_float(sin[at]));
    out[HALF + at] = from_float<bfloat16>(y * to_float(cos[HALF + at]) + x * to_float(sin[HALF + at]));
  }
}

// All warps: K and V of the new tokens among the item's keys into the cache.
__device__ inline void write_new_keys(const AttentionLayer& layer, const StepRows& rows, const AttentionItem& item) {
  for (int key = max(item.first_key, item.first_new) + warp_id(); key < item.end_key; key += CONSUMER_WARPS) {
    const int row = item.first_row + key - item.first_new;
    const unsigned* k = layer.qkv + row * QKV_SIZE + Q_SIZE + item.head * HEAD_DIM;
    const long long to = cache_row(layer, item, key);
    rotate_head(layer, k, layer.k_norm, rows.positions[row], layer.k_cache + to);
    for (int at = lane_id(); at < HEAD_DIM; at += 32)
      layer.v_cache[to + at] = from_float<bfloat16>(await_float(k + KV_SIZE + at));
  }
}

// All warps: rotated queries `first` and on, zeros past the last; query i is head i % GROUP of row i / GROUP.
__device__ inline void load_queries(
    const AttentionLayer& layer, const StepRows& rows, const AttentionItem& item, int first, bfloat16* queries) {
  for (int at = warp_id(); at < QUERY_TILE; at += CONSUMER_WARPS) {
    bfloat16* out = queries + at * (QUERY_PITCH / 2);
    const int query = first + at, row = item.first_row + query / GROUP;
    for (int column = lane_id(); column < HEAD_STEPS * STEP_COLUMNS; column += 32) out[column] = from_float<bfloat16>(0.0f);
    warp_sync();
    if (query >= item.num_rows * GROUP) continue;
    const int head = item.head * GROUP + query % GROUP;
    rotate_head(layer, layer.qkv + row * QKV_SIZE + head * HEAD_DIM, layer.q_norm, rows.positions[row], out);
  }
}

// Whether a row sees a key, both of one request.
__device__ inline bool is_visible(const StepRows& rows, const AttentionItem& item, int row, int key) {
  if (key >= item.end_key) return false;
  const unsigned long long seen = rows.seen[row];
  const int node = key - item.first_new;
  if (node >= 0 && !((seen >> node) & 1)) return false;
  if (WINDOW == 0) return true;
  // A node's position in the text is the root's plus its depth, the number of its ancestors.
  const int depth = node < 0 ? node : __popcll(rows.seen[item.first_row + node]) - 1;
  return depth > __popcll(seen) - 1 - WINDOW;
}

// One warp's softmax and outputs of a query tile: rows lane / 4 and + 8.
struct WarpAttention {
  float output[HEAD_HALVES][8][4] = {};  // [.][i] has dimensions 64 half + 16 (lane % 4) + i, and + 8
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};
};

__device__ inline uint4 load_or_zero(const bfloat16* address, bool is_real) {
  return is_real ? *reinterpret_cast<const uint4*>(address) : make_uint4(0, 0, 0, 0);
}

__device__ inline void score_keys(
    float (&scores)[2][4], const AttentionLayer& layer, const AttentionItem& item, const bfloat16* queries, int base) {
  const int row = lane_id() / 4, quad = lane_id() % 4;
  const char* query = reinterpret_cast<const char*>(queries) + row * QUERY_PITCH + 16 * quad;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int key = base + 8 * half + row;
    const bfloat16* k = layer.k_cache + (key < item.end_key ? cache_row(layer, item, key) : 0) + 8 * quad;
    uint4 keys[HEAD_STEPS];
#pragma unroll
    for (int step = 0; step < HEAD_STEPS; ++step)
      keys[step] = load_or_zero(k + 32 * step, key < item.end_key && 32 * step + 8 * quad < HEAD_DIM);
#pragma unroll
    for (int step = 0; step < HEAD_STEPS; ++step) {
      const uint4 low = load16(query + 64 * step), high = load16(query + 8 * QUERY_PITCH + 64 * step);
      mma_16x8x16<bfloat16>(scores[half], {low.x, high.x, low.y, high.y}, {keys[step].x, keys[step].y});
      mma_16x8x16<bfloat16>(scores[half], {low.z, high.z, low.w, high.w}, {keys[step].z, keys[step].w});
    }
  }
}

// Turn scores into weights under the running maximum, scaling down what was added under an older one.
__device__ inline void update_softmax(
    WarpAttention& state, float (&scores)[2][4], const AttentionLayer& layer, const StepRows& rows,
    const AttentionItem& item, int first_query, int base) {
#pragma unroll
  for (int low = 0; low < 2; ++low) {
    const int query = min(first_query + lane_id() / 4 + 8 * low, item.num_rows * GROUP - 1);
    const int row = item.first_row + query / GROUP;
    float maximum = state.maximum[low];
#pragma unroll
    for (int index = 0; index < 4; ++index) {
      const int key = base + 8 * (index / 2) + 2 * (lane_id() % 4) + index % 2;
      float& score = scores[index / 2][2 * low + index % 2];
      score = is_visible(rows, item, row, key) ? score * layer.scale : -INFINITY;
      maximum = fmaxf(maximum, score);
    }
    maximum = fmaxf(maximum, shfl_xor(maximum, 1));
    maximum = fmaxf(maximum, shfl_xor(maximum, 2));
    const float shift = maximum == -INFINITY ? 0.0f : maximum;
    const float shrink = exp2_fast(state.maximum[low] - shift);
    state.maximum[low] = maximum;
    state.sum[low] *= shrink;
#pragma unroll
    for (int index = 0; index < 4; ++index) {
      float& score = scores[index / 2][2 * low + index % 2];
      score = exp2_fast(score - shift);
      state.sum[low] += score;
    }
#pragma unroll
    for (int half = 0; half < HEAD_HALVES; ++half)
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        state.output[half][i][2 * low] *= shrink;
        state.output[half][i][2 * low + 1] *= shrink;
      }
  }
}

__device__ inline unsigned low_halves(unsigned a, unsigned b) { return (a & 0xFFFFu) | (b << 16); }
__device__ inline unsigned high_halves(unsigned a, unsigned b) { return (a >> 16) | (b & 0xFFFF0000u); }

// outputs += weights (16 x 16 keys) . V. A thread reads whole 16-byte pieces of its 4 keys and pairs them key by key.
__device__ inline void add_values(
    WarpAttention& state, const float (&weights)[2][4], const AttentionLayer& layer, const AttentionItem& item,
    int base) {
  const int quad = lane_id() % 4, column = 8 * (lane_id() / 4);
  const unsigned a[4] = {pack2<bfloat16>(weights[0][0], weights[0][1]), pack2<bfloat16>(weights[0][2], weights[0][3]),
                         pack2<bfloat16>(weights[1][0], weights[1][1]), pack2<bfloat16>(weights[1][2], weights[1][3])};
  const bfloat16* v[4];
  bool is_key[4];
#pragma unroll
  for (int index = 0; index < 4; ++index) {
    const int key = base + 8 * (index / 2) + 2 * quad + index % 2;
    is_key[index] = key < item.end_key;
    v[index] = layer.v_cache + (is_key[index] ? cache_row(layer, item, key) : 0) + column;
  }
#pragma unroll
  for (int half = 0; half < HEAD_HALVES; ++half) {
    uint4 values[4];
#pragma unroll
    for (int index = 0; index < 4; ++index)
      values[index] = load_or_zero(v[index] + 64 * half, is_key[index] && 64 * half + column < HEAD_DIM);
    const unsigned* words[4] = {&values[0].x, &values[1].x, &values[2].x, &values[3].x};
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      mma_16x8x16<bfloat16>(state.output[half][2 * word], a,
                            {low_halves(words[0][word], words[1][word]), low_halves(words[2][word], words[3][word])});
      mma_16x8x16<bfloat16>(state.output[half][2 * word + 1], a,
                            {high_halves(words[0][word], words[1][word]), high_halves(words[2][word], words[3][word])});
    }
  }
}

__device__ inline void store_warp(WarpAttention& state, const AttentionScratch& scratch) {
  const int quad = lane_id() % 4;
#pragma unroll
  for (int low = 0; low < 2; ++low) {
    const int query = lane_id() / 4 + 8 * low, row = warp_id() * QUERY_ROWS + query;
    float sum = state.sum[low];
    sum += shfl_xor(sum, 1);
    sum += shfl_xor(sum, 2);
    if (query >= QUERY_ROWS) continue;
    if (quad == 0) scratch.softmax[row] = make_float2(state.maximum[low], sum);
    float* out = scratch.outputs + row * HEAD_DIM;
#pragma unroll
    for (int half = 0; half < HEAD_HALVES; ++half) {
      if (64 * half + 16 * quad >= HEAD_DIM) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        out[64 * half + 16 * quad + i] = state.output[half][i][2 * low];
        out[64 * half + 16 * quad + 8 + i] = state.output[half][i][2 * low + 1];
      }
    }
  }
}

// Add the warps' results of a query tile; publish them, or leave them as this split's.
__device__ inline void combine_warps(
    const AttentionLayer& layer, const AttentionItem& item, const AttentionScratch& scratch, int first_query) {
  const int warps = min(CONSUMER_WARPS, ceil_div(item.end_key - item.first_key, 16));
  const int queries = min(QUERY_TILE, item.num_rows * GROUP - first_query);
  for (int index = threadIdx.x; index < queries * (HEAD_DIM / 2); index += CONSUMERS) {
    const int at = index / (HEAD_DIM / 2), column = 2 * (index % (HEAD_DIM / 2));
    float maximum = -INFINITY;
    for (int warp = 0; warp < warps; ++warp) maximum = fmaxf(maximum, scratch.softmax[warp * QUERY_ROWS + at].x);
    const float shift = maximum == -INFINITY ? 0.0f : maximum;
    float sum = 0.0f, first = 0.0f, second = 0.0f;
    for (int warp = 0; warp < warps; ++warp) {
      const float2 part = scratch.softmax[warp * QUERY_ROWS + at];
      const float* output = scratch.outputs + (warp * QUERY_ROWS + at) * HEAD_DIM + column;
      const float weight = exp2_fast(part.x - shift);
      sum += weight * part.y;
      first += weight * output[0];
      second += weight * output[1];
    }
    const int query = first_query + at, row = item.first_row + query / GROUP;
    const int head = item.head * GROUP + query % GROUP;
    if (item.num_splits == 1) {
      publish(layer.attended + (row * Q_SIZE + head * HEAD_DIM + column) / 2,
              pack2<bfloat16>(first / sum, second / sum));
    } else {
      const long long slot = (long long)(row * NUM_HEADS + head) * layer.max_splits + item.split - item.first_split;
      *reinterpret_cast<float2*>(layer.split_outputs + slot * HEAD_DIM + column) = make_float2(first, second);
      if (column == 0) *reinterpret_cast<float2*>(layer.split_softmax + slot * 2) = make_float2(maximum, sum);
    }
  }
}

__device__ inline float read_shared_float(const float* address) {
  return __uint_as_float(load_relaxed(reinterpret_cast<const unsigned*>(address)));
}

// By the block that ends a request's last split: add the splits in order and publish.
__device__ inline void combine_splits(const AttentionLayer& layer, const AttentionItem& item) {
  for (int index = threadIdx.x; index < item.num_rows * GROUP * (HEAD_DIM / 2); index += CONSUMERS) {
    const int query = index / (HEAD_DIM / 2), column = 2 * (index % (HEAD_DIM / 2));
    const int row = item.first_row + query / GROUP, head = item.head * GROUP + query % GROUP;
    const long long slot = (long long)(row * NUM_HEADS + head) * layer.max_splits;
    const float* softmax = layer.split_softmax + slot * 2;
    const float* output = layer.split_outputs + slot * HEAD_DIM + column;
    float maximum = -INFINITY;
#pragma unroll 4
    for (int split = 0; split < item.num_splits; ++split)
      maximum = fmaxf(maximum, read_shared_float(softmax + 2 * split));
    float sum = 0.0f, first = 0.0f, second = 0.0f;
#pragma unroll 4
    for (int split = 0; split < item.num_splits; ++split) {
      const float weight = exp2_fast(read_shared_float(softmax + 2 * split) - maximum);
      sum += weight * read_shared_float(softmax + 2 * split + 1);
      first += weight * read_shared_float(output + split * HEAD_DIM);
      second += weight * read_shared_float(output + split * HEAD_DIM + 1);
    }
    publish(layer.attended + (row * Q_SIZE + head * HEAD_DIM + column) / 2, pack2<bfloat16>(first / sum, second / sum));
  }
}

__device__ inline void attend_item(
    const AttentionLayer& layer, const StepRows& rows, const AttentionItem& item, const AttentionScratch& scratch) {
  write_new_keys(layer, rows, item);
  for (int first_query = 0; first_query < item.num_rows * GROUP; first_query += QUERY_TILE) {
    load_queries(layer, rows, item, first_query, scratch.queries);
    named_sync(CONSUMER_BARRIER, CONSUMERS);
    WarpAttention state;
#pragma unroll 1
    for (int base = item.first_key + 16 * warp_id(); base < item.end_key; base += 16 * CONSUMER_WARPS) {
      float scores[2][4] = {};
      score_keys(scores, layer, item, scratch.queries, base);
      update_softmax(state, scores, layer, rows, item, first_query, base);
      add_values(state, scores, layer, item, base);
    }
    store_warp(state, scratch);
    named_sync(CONSUMER_BARRIER, CONSUMERS);
    combine_warps(layer, item, scratch, first_query);
    named_sync(CONSUMER_BARRIER, CONSUMERS);
  }
  if (item.num_splits == 1) return;
  unsigned* count = layer.split_counts + item.request * NUM_KV_HEADS + item.head;
  if (threadIdx.x == 0) {
    // Releases what the whole block wrote, by way of the barrier above.
    const bool is_last = add_release(count, 1) == unsigned(item.num_splits) - 1;
    if (is_last) load_acquire(count);
    *scratch.is_last = is_last;
    if (is_last) store_relaxed(count, 0);
  }
  named_sync(CONSUMER_BARRIER, CONSUMERS);
  if (*scratch.is_last) combine_splits(layer, item);
  named_sync(CONSUMER_BARRIER, CONSUMERS);
}

// Ask for the old keys and values of this block's first item, so that they are in L2 once the queries are there.
__device__ inline void prefetch_keys(const AttentionLayer& layer, const StepRows& rows, int first_item) {
  constexpr int LINE = 64, LINES = ceil_div(HEAD_DIM, LINE);  // elements of 128 bytes; lines of a key
  if (first_item >= rows.item_starts[rows.num_requests]) return;
  const AttentionItem item = find_item(rows, first_item);
  const int keys = min(item.end_key, item.first_new) - item.first_key;
  for (int index = threadIdx.x; index < keys * LINES; index += CONSUMERS) {
    const long long at = cache_row(layer, item, item.first_key + index / LINES) + index % LINES * LINE;
    prefetch_l2(layer.k_cache + at);
    prefetch_l2(layer.v_cache + at);
  }
}

// All consumers: this block's items of a layer, dealt on from where the qkv tiles ended.
__device__ inline void attend(
    const AttentionLayer& layer, const StepRows& rows, const AttentionScratch& scratch, int first_item) {
  const int items = rows.item_starts[rows.num_requests];
  for (int index = first_item; index < items; index += gridDim.x)
    attend_item(layer, rows, find_item(rows, index), scratch);
}
