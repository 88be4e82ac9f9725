// What a launch of the whole-step kernel takes; mirrored in state.py.
#pragma once

#include "element.cuh"

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
    unsigned* split_parts;          // (R, N, max_splits, PART_WORDS)
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
static_assert(sizeof(DecoderStepParams) == 20 * 8 + 8 * 4, "mirrored in cuda.py");
