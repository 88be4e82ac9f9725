// What a step leaves: tokens in their texts, and the hidden states they were drawn from. The contract:
// plugins/emit_tokens/__init__.py. Grid: one block per row that drew. No shared memory.
#pragma once

#include "grid.cuh"

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
  long long history_len;
  int hidden_words;  // of 4 bytes
  int most_tokens;   // depth + 1
};
static_assert(sizeof(EmitTokensParams) == 11 * 8 + 2 * 4, "mirrored in cuda.py");

__device__ inline void emit_tokens(const EmitTokensParams& params) {
  const long long row = blockIdx.x, slot = params.slots[row], root = params.roots[row], count = params.counts[row];
  const long long first = row * params.most_tokens;
  const long long source = params.first_rows[row] + params.nodes[first + count - 1];
  for (int word = threadIdx.x; word < params.hidden_words; word += blockDim.x)
    params.last_hidden[slot * params.hidden_words + word] = params.hidden[source * params.hidden_words + word];
  for (int index = threadIdx.x; index < params.most_tokens; index += blockDim.x)
    params.history[slot * params.history_len + root + 1 + index] = params.token_ids[first + index];
  if (threadIdx.x == 0) params.num_tokens[slot] = root + 1 + count;
}
