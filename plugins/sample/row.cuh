// One row of logits, how it draws, and the best of its tokens. Used by sample.cuh and filters.cuh.
#pragma once

#include "element.cuh"
#include "noise.cuh"
#include "warp.cuh"

constexpr int SAMPLE_THREADS = 512;
constexpr int SAMPLE_WARPS = SAMPLE_THREADS / 32;
constexpr int DIGIT_BITS = 8;
constexpr int NUM_BINS = 1 << DIGIT_BITS;
constexpr int NO_ID = 0x7fffffff;
constexpr int NO_TOKEN = -1;  // of a row that holds NaN
constexpr double MASS_ONE = 1099511627776.0;  // 2^40

struct Best {
  double score;
  int id;
  int has_nan;
};

// How a row draws stands at its request's slot of the state, or, without slots, at the row's own index.
struct SampleParams {
  const float* logits;            // (R, V), rows contiguous
  const float* temperature;       // (S,), 0 is greedy
  const long long* top_k;         // (S,), 0 keeps all
  const float* top_p;             // (S,), 1 keeps all
  const float* min_p;             // (S,), 0 keeps all
  const long long* seed;          // (S,)
  const long long* sample_index;  // (S,)
  const long long* slots;         // (E,), of requests with R / E rows each; null: S is R
  const long long* position;      // (E,), what is drawn there; with slots, one before it and a row's depth
  const long long* depths;        // (R,), or null: all 0
  Best* bests;                    // (R, chunks)
  long long* out;                 // (R,)
  int vocab_size;
  int num_chunks;
  int rows_each;  // R / E
  int unused;
};
static_assert(sizeof(SampleParams) == 12 * 8 + 4 * 4, "mirrored in cuda.py");

struct SampleScratch {
  Best warp_bests[SAMPLE_WARPS];
  unsigned long long masses[NUM_BINS];
  unsigned counts[NUM_BINS];
  unsigned long long prefix;  // of the keys that are still in question
  unsigned long long above;   // mass, or count, of the keys above them
  int is_done;
};

// One row, and how it draws.
struct SampleRow {
  const float* logits;
  double temperature;
  double top_p;
  double min_p;
  long long top_k;
  NoiseKey noise;
  int vocab_size;

  __device__ bool is_greedy() const { return temperature == 0.0; }
  __device__ bool has_filter() const {
    return !is_greedy() && (top_p < 1.0 || min_p > 0.0 || (top_k > 0 && top_k < vocab_size));
  }
  __device__ double scaled(int id) const { return double(logits[id]) / temperature; }
};

__device__ inline SampleRow sample_row(const SampleParams& params, int row) {
  const bool has_slots = params.slots != nullptr;
  const int request = row / params.rows_each;
  const long long at = has_slots ? params.slots[request] : row;
  const long long depth = params.depths != nullptr ? params.depths[row] : 0;
  const long long position = params.position[request] + (has_slots ? depth + 1 : 0);
  SampleRow result;
  result.logits = params.logits + (long long)row * params.vocab_size;
  result.temperature = params.temperature[at];
  result.top_p = params.top_p[at];
  result.min_p = params.min_p[at];
  result.top_k = params.top_k[at];
  const unsigned long long seed = params.seed[at];
  result.noise = NoiseKey{
      unsigned(seed), unsigned(seed >> 32), unsigned(params.sample_index[at]), unsigned(position)};
  result.vocab_size = params.vocab_size;
  return result;
}

__device__ inline bool is_better(const Best& one, const Best& other) {
  return one.score > other.score || (one.score == other.score && one.id < other.id);
}

__device__ inline void take(Best& best, const Best& other) {
  const int has_nan = best.has_nan | other.has_nan;
  if (is_better(other, best)) best = other;
  best.has_nan = has_nan;
}

// The best of all threads' candidates, in every thread.
__device__ inline Best block_best(Best best, SampleScratch& scratch) {
  for (int mask = 16; mask > 0; mask /= 2) {
    Best other;
    other.score = shfl_xor(best.score, mask);
    other.id = shfl_xor(best.id, mask);
    other.has_nan = shfl_xor(best.has_nan, mask);
    take(best, other);
  }
  block_sync();
  if (lane_id() == 0) scratch.warp_bests[warp_id()] = best;
  block_sync();
  for (int warp = 0; warp < SAMPLE_WARPS; ++warp) take(best, scratch.warp_bests[warp]);
  return best;
}

__device__ inline Best nobody() { return Best{-INFINITY, NO_ID, 0}; }

// The best of the tokens in [4 * first_group, 4 * end_group) that are kept.
template <class Keep>
__device__ inline Best best_of(const SampleRow& row, int first_group, int end_group, Keep is_kept) {
  Best best = nobody();
  for (int group = first_group + threadIdx.x; group < end_group; group += SAMPLE_THREADS) {
    uint4 words = make_uint4(0, 0, 0, 0);
    if (!row.is_greedy()) words = noise_words(row.noise, group);
    const unsigned each[4] = {words.x, words.y, words.z, words.w};
    for (int at = 0; at < 4; ++at) {
      const int id = 4 * group + at;
      if (id >= row.vocab_size) break;
      const float logit = row.logits[id];
      if (isnan(logit)) best.has_nan = 1;
      if (!is_kept(id)) continue;
      const double score = row.is_greedy() ? double(logit) : row.scaled(id) + gumbel(each[at]);
      take(best, Best{score, id, 0});
    }
  }
  return best;
}
