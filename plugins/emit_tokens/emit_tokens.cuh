// What a step leaves: tokens in their texts, and the hidden states they were drawn from. The contract:
// plugins/emit_tokens/__init__.py. Grid: one block per row that drew. No shared memory.
#pragma once

#include "grid.cuh"
#include "warp.cuh"

struct EmitTokensParams {
  const long long* slots;       // (E,)
  const long long* roots;       // (E,)
  const long long* first_rows;  // (E,)
  const long long* token_ids;   // (E, depth + 1)
  const long long* nodes;       // (E, depth + 1)
  const long long* counts;      // (E,)
  const unsigned* hidden;       // (R, hidden_words), whatever its dtype
  long long* num_tokens;        // (S,)
  long long* history;           // (S, history_len)
  unsigned* last_hidden;        // (S, hidden_words)
  const long long* tree_ids;    // (E, num_nodes), or null
  const long long* turn;        // (1,), read where there are results
  long long* results;           // (turns, E, 2 + depth + 1), or null
  long long history_len;
  int hidden_words;  // of 4 bytes
  int most_tokens;   // depth + 1
  int num_nodes;
  int turns;
  int idle_slot;  // whose text does not grow; -1: none
  int unused;
};
static_assert(sizeof(EmitTokensParams) == 14 * 8 + 6 * 4, "mirrored in cuda.py");

// How many of a row's tree were drafted: neither the root nor padding. For the first warp.
__device__ inline int num_drafted(const EmitTokensParams& params, long long row) {
  int count = 0;
  for (int first = 0; params.tree_ids != nullptr && first < params.num_nodes; first += 32) {
    const int node = first + lane_id();
    const bool is_node = node > 0 && node < params.num_nodes;
    count += __popc(warp_ballot(is_node && params.tree_ids[row * params.num_nodes + node] >= 0));
  }
  return count;
}

__device__ inline void report(const EmitTokensParams& params, long long row, long long count) {
  const int drafted = num_drafted(params, row);
  const long long turn = *params.turn % params.turns;
  long long* result = params.results + (turn * gridDim.x + row) * (2 + params.most_tokens);
  for (int index = lane_id(); index < params.most_tokens; index += 32)
    result[2 + index] = params.token_ids[row * params.most_tokens + index];
  if (lane_id() == 0) {
    result[0] = count;
    result[1] = drafted;
  }
}

__device__ inline void emit_tokens(const EmitTokensParams& params) {
  const long long row = blockIdx.x, slot = params.slots[row], root = params.roots[row], count = params.counts[row];
  const long long first = row * params.most_tokens;
  const long long source = params.first_rows[row] + params.nodes[first + count - 1];
  for (int word = threadIdx.x; word < params.hidden_words; word += blockDim.x)
    params.last_hidden[slot * params.hidden_words + word] = params.hidden[source * params.hidden_words + word];
  for (int index = threadIdx.x; index < params.most_tokens; index += blockDim.x)
    params.history[slot * params.history_len + root + 1 + index] = params.token_ids[first + index];
  if (threadIdx.x == 0) params.num_tokens[slot] = slot == params.idle_slot ? 1 : root + 1 + count;
  if (params.results != nullptr && warp_id() == 0) report(params, row, count);
}
