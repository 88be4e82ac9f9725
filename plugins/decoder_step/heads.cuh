// What attention works on: the rows of a step, the items they make, and the heads of queries, keys and values that an
// item takes out of the published qkv, rotated and rounded.
#pragma once

#include "activations.cuh"
#include "params.cuh"

constexpr int WARP_KEYS = 16;
static_assert(SPLIT_KEYS == WARP_KEYS * CONSUMER_WARPS, "a warp takes its keys at once");

constexpr int QUERY_TILE = 16;
constexpr int QUERY_ROWS = MAX_ROWS * GROUP < QUERY_TILE ? MAX_ROWS * GROUP : QUERY_TILE;  // that can be real
constexpr int HEAD_PITCH = row_pitch(HEAD_DIM);         // bytes between heads in shared memory
constexpr int HEAD_HALVES = ceil_div(HEAD_DIM, 64);     // 64 dimensions are 16 bytes for each of 8 threads
constexpr int HEAD_STEPS = ceil_div(HEAD_DIM, STEP_COLUMNS);
constexpr int OUTPUT_PITCH = HEAD_DIM + 4;               // floats between outputs: rows begin in different banks
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
    char* queries;    // QUERY_TILE heads, HEAD_PITCH bytes apart, as the two next
    char* keys;       // MAX_ROWS: K of the request's new tokens
    char* values;     // MAX_ROWS: V
    float* outputs;   // CONSUMER_WARPS x QUERY_ROWS, OUTPUT_PITCH apart, before division by their sums
    float2* softmax;  // CONSUMER_WARPS x QUERY_ROWS: maximum in units of log2, sum
    int* is_last;
};

constexpr int ATTENTION_BYTES =
    (QUERY_TILE + 2 * MAX_ROWS) * HEAD_PITCH + CONSUMER_WARPS * QUERY_ROWS * (OUTPUT_PITCH * 4 + 8) + 16;

__device__ inline AttentionScratch attention_scratch(char* memory) {
    AttentionScratch scratch;
    scratch.queries = memory;
    scratch.keys = scratch.queries + QUERY_TILE * HEAD_PITCH;
    scratch.values = scratch.keys + MAX_ROWS * HEAD_PITCH;
    scratch.outputs = reinterpret_cast<float*>(scratch.values + MAX_ROWS * HEAD_PITCH);
    scratch.softmax = reinterpret_cast<float2*>(scratch.outputs + CONSUMER_WARPS * QUERY_ROWS * OUTPUT_PITCH);
    scratch.is_last = reinterpret_cast<int*>(scratch.softmax + CONSUMER_WARPS * QUERY_ROWS);
    return scratch;
}

// What attention reads and writes in one layer.
struct AttentionLayer {
    const DecoderStepParams& params;
    const LayerWeights& weights;
    unsigned* words;    // of the layer's exchange
    bfloat16* k_cache;  // (blocks, N_kv, BLOCK_SIZE, D)

    __device__ bfloat16* v_cache() const { return k_cache + params.layer_stride; }
    __device__ const unsigned* qkv() const { return exchange_at(words).qkv; }
    __device__ unsigned* attended() const { return exchange_at(words).attended; }
    __device__ unsigned* parts() const { return exchange_at(words).parts; }
};

struct AttentionItem {
    int request;
    int head;  // of keys and values
    int split;  // among those that are not left out
    int num_splits;
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
    item.split = local / NUM_KV_HEADS;
    item.num_splits = (rows.item_starts[request + 1] - rows.item_starts[request]) / NUM_KV_HEADS;
    item.first_row = rows.starts[request];
    item.num_rows = rows.starts[request + 1] - item.first_row;
    item.first_new = rows.contexts[request] - item.num_rows;
    item.first_key = (rows.first_splits[request] + item.split) * SPLIT_KEYS;
    item.end_key = min(item.first_key + SPLIT_KEYS, rows.contexts[request]);
    return item;
}

// Element offset of a key's row in one layer's cache.
__device__ inline long long cache_row(const AttentionLayer& layer, const AttentionItem& item, int key) {
    const long long block = layer.params.block_tables[item.request * layer.params.max_blocks + key / BLOCK_SIZE];
    return ((block * NUM_KV_HEADS + item.head) * BLOCK_SIZE + key % BLOCK_SIZE) * HEAD_DIM;
}

// One warp: a published head, rotated to `position` after its norm if the model has one, to `out` and perhaps `copy`.
// A value head, whose `position` is negative, is only rounded.
__device__ inline void take_head(
    const AttentionLayer& layer, const unsigned* head, const bfloat16* norm, int position, char* out, bfloat16* copy) {
    constexpr int HALF = HEAD_DIM / 2, PAIRS = ceil_div(HALF, 32);
    const bool is_rotated = position >= 0;
    const bfloat16* cos = layer.params.cos + (long long)position * HEAD_DIM;
    const bfloat16* sin = layer.params.sin + (long long)position * HEAD_DIM;
    unsigned words[2 * PAIRS];  // of each pair the first half's, then the second's
    float cosine[PAIRS], sine[PAIRS];
#pragma unroll
    for (int pair = 0; pair < PAIRS; ++pair) {
        const int at = int(lane_id()) + 32 * pair;
        // The second halves are the same but for sin's sign.
        cosine[pair] = is_rotated && at < HALF ? to_float(cos[HALF + at]) : 1.0f;
        sine[pair] = is_rotated && at < HALF ? to_float(sin[HALF + at]) : 0.0f;
    }
    const auto address = [&](int index) {
        const int at = int(lane_id()) + 32 * (index / 2);
        return at < HALF ? head + index % 2 * HALF + at : nullptr;
    };
    until_written(words, address, [&] {
        float factor = 1.0f;
        if (HAS_QK_NORM && is_rotated) {
            float squares = 0.0f;
#pragma unroll
            for (int index = 0; index < 2 * PAIRS; ++index)
                if (address(index)) squares += __uint_as_float(words[index]) * __uint_as_float(words[index]);
            factor = rsqrt_fast(warp_sum(squares) / HEAD_DIM + layer.params.norm_eps);
        }
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
            const int at = int(lane_id()) + 32 * pair;
            if (at >= HALF) continue;
            float x = __uint_as_float(words[2 * pair]), y = __uint_as_float(words[2 * pair + 1]);
            if (HAS_QK_NORM && is_rotated) {
                x *= factor * to_float(norm[at]);
                y *= factor * to_float(norm[HALF + at]);
            }
            const bfloat16 first = from_float<bfloat16>(x * cosine[pair] - y * sine[pair]);
            const bfloat16 second = from_float<bfloat16>(y * cosine[pair] + x * sine[pair]);
            reinterpret_cast<bfloat16*>(out)[at] = first;
            reinterpret_cast<bfloat16*>(out)[HALF + at] = second;
            if (copy) {
                copy[at] = first;
                copy[HALF + at] = second;
            }
        }
    });
}

// All warps, a head each at a time: the tile's queries (query i is head i % GROUP of row i / GROUP), and with the first
// tile K and V of the new tokens among the item's keys, which also go to the cache.
__device__ inline void take_heads(
    const AttentionLayer& layer, const StepRows& rows, const AttentionItem& item, const AttentionScratch& scratch,
    int first_query) {
    const int queries = min(QUERY_TILE, item.num_rows * GROUP - first_query);
    const int first_key = max(item.first_key, item.first_new);
    const int keys = first_query == 0 ? max(0, item.end_key - first_key) : 0;
#pragma unroll 1
    for (int job = warp_id(); job < queries + 2 * keys; job += CONSUMER_WARPS) {
        const bool is_query = job < queries, is_value = job >= queries + keys;
        const int key = first_key + (is_value ? job - queries - keys : job - queries);
        const int node = is_query ? (first_query + job) / GROUP : key - item.first_new;
        const int row = item.first_row + node;
        const int head = is_query   ? item.head * GROUP + (first_query + job) % GROUP
                         : is_value ? NUM_HEADS + NUM_KV_HEADS + item.head
                                    : NUM_HEADS + item.head;
        char* out = is_query   ? scratch.queries + job * HEAD_PITCH
                    : is_value ? scratch.values + node * HEAD_PITCH
                               : scratch.keys + node * HEAD_PITCH;
        bfloat16* copy = is_query ? nullptr : (is_value ? layer.v_cache() : layer.k_cache) + cache_row(layer, item, key);
        take_head(layer, layer.qkv() + row * QKV_SIZE + head * HEAD_DIM, is_query ? layer.weights.q_norm : layer.weights.k_norm,
                  is_value ? -1 : rows.positions[row], out, copy);
    }
}
