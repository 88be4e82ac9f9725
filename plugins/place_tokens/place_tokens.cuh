// The tokens of a step: which they are and where they go. The contract: plugins/place_tokens/__init__.py.
// Grid: one block per request, its threads over the request's tokens. No shared memory.
#pragma once

#include "grid.cuh"

struct PlaceTokensParams {
  const long long* slots;         // (B,)
  const long long* query_starts;  // (B + 1,)
  const long long* starts;        // (B,)
  const long long* is_drawn;      // (B,)
  const long long* known_ids;     // (T,)
  const long long* num_tokens;    // (S,)
  const long long* history;       // (S, history_len)
  const long long* tree_ids;      // (B, num_nodes), or null
  const long long* tree_depths;   // (B, num_nodes), or null
  long long* turn;                // (1,), or null: counted up
  long long* token_ids;           // (T,)
  long long* positions;           // (T,)
  long long* cache_positions;     // (T,)
  long long* context_lens;        // (B,)
  long long* roots;               // (B,)
  long long history_len;
  int num_nodes;
  int unused;
};
static_assert(sizeof(PlaceTokensParams) == 16 * 8 + 2 * 4, "mirrored in cuda.py");

__device__ inline void place_tokens(const PlaceTokensParams& params) {
  const int request = blockIdx.x;
  if (request == 0 && threadIdx.x == 0 && params.turn != nullptr) *params.turn += 1;
  const long long slot = params.slots[request];
  const long long begin = params.query_starts[request], count = params.query_starts[request + 1] - begin;
  const bool is_drawn = params.is_drawn[request] != 0;
  const long long first = is_drawn ? params.num_tokens[slot] - 1 : params.starts[request];
  for (long long index = threadIdx.x; index < count; index += blockDim.x) {
    const long long token = begin + index, node = (long long)request * params.num_nodes + index;
    const bool is_node = is_drawn && params.tree_ids != nullptr;
    long long id;
    if (!is_drawn) {
      id = params.known_ids[token];
    } else if (!is_node) {
      id = params.history[slot * params.history_len + first];
    } else {
      id = params.tree_ids[node] < 0 ? 0 : params.tree_ids[node];
    }
    params.token_ids[token] = id;
    params.positions[token] = first + (is_node ? params.tree_depths[node] : index);
    params.cache_positions[token] = first + index;
  }
  if (threadIdx.x == 0) {
    params.context_lens[request] = first + count;
    params.roots[request] = is_drawn ? first : first + count - 1;
  }
}
