// What a launch of the draft pass takes; mirrored in state.py.
//
// Dimensions: B requests, W beams, K depth, N nodes, C candidates of a depth, H hidden, E exit, L residual blocks,
// V_draft tokens that are drafted, T tiles of 16 of them, R rows (beams of all requests together) that there is room for.
// Weights (out, in) lie in tiles of 16 rows, see tiles.cuh.
#pragma once

struct DraftPassParams {
    const void* embedding;     // (V, H) elements
    const void* context_proj;  // (E, H) tiles, likewise the next seven
    const void* rnn_w;         // (H, H)
    const void* rnn_u;         // (H, H)
    const void* state_proj;    // (E, H)
    const void* first_context;  // (E, H): the first block's L times context_proj
    const void* first_proj;     // (E, H): L times state_proj
    const void* blocks;        // (L - 1, E, E), the others
    const void* lm_head;       // (V_draft, E), its last tile filled up with zeros
    const void* context_bias;  // (E,) elements
    const void* rnn_bias;      // (H,)
    const void* first_bias;    // (E,): L times context_bias, and the first block's own
    const void* block_biases;  // (L, E)
    const long long* vocab_ids;     // (V_draft,)
    const long long* slots;         // (B,) rows of the next six
    const float* hidden;            // (S, H)
    const long long* num_tokens;    // (S,)
    const long long* history;       // (S, history_len): the last of a slot's tokens is its tree's root
    const float* temperature;       // (S,), or null: no noise
    const long long* seed;
    const long long* sample_index;
    long long* token_ids;  // (B, N), likewise the next three: see plugins/tree_pack
    long long* parents;
    long long* depths;
    long long* ancestors;
    unsigned long long* states;   // (2, R, H / 2) words, see exchange.cuh
    unsigned long long* hiddens;  // (L + 1, R, E / 2) words, of the first only where L is 0
    unsigned long long* maxima;   // (R, T, 2) words: the largest of a tile's logits, the sum of exp(logit - largest)
    unsigned long long* logits;   // (R, 16 T) words
    unsigned long long* beams;    // (R,) words: token and beam before
    unsigned long long* summaries;  // (2, MOST_DIRECT, SUMMARY_BLOCKS, SUMMARY_PAIRS, 2) words, see direct.cuh
    unsigned* launches;  // (blocks,), 0 before the first launch
    int requests;
    int num_nodes;
    int num_beams;
    int depth;
    int hidden_size;
    int exit_dim;
    int num_blocks;
    int num_draft;
    int max_rows;        // R
    int chain_blocks;    // thread blocks from the first on
    int select_blocks;   // those after them; the others have the LM head
    int chain_resident;  // tiles that a block of the chain keeps in shared memory
    int head_resident;
    int has_silu;   // dialect `apple`
    int is_direct;  // the blocks of the chain choose the beams, see direct.cuh
    int history_len;
};
static_assert(sizeof(DraftPassParams) == 32 * 8 + 16 * 4, "mirrored in state.py");

// Where the root of a slot's tree stands in its text.
__device__ __forceinline__ long long root_position(const DraftPassParams& params, long long slot) {
    return params.num_tokens[slot] - 1;
}

__device__ __forceinline__ long long root_of(const DraftPassParams& params, int request) {
    const long long slot = params.slots[request];
    return params.history[slot * params.history_len + root_position(params, slot)];
}
