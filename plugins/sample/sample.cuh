// The next token of each row of logits: the argmax, or the argmax of logits / T plus Gumbel noise over the tokens that
// pass the filters. The contract, and the order of the filters: plugins/sample/__init__.py.
//
// Two launches. `sample_chunks`, grid (chunks, R): the best token of every chunk of a row that needs no filter.
// `sample_rows`, grid (R): the best of those, or the whole of a row with filters. What is chosen does not depend on the
// number of chunks: scores are compared exactly, and ties go to the lower token id.
//
// Logits float32. Scores are float64, like the reference's. Masses are sums of integers, so no order of threads shows in
// them: 2^40 stands for the most likely token's, which leaves 2^-41 of it as the rounding of each.
// Shared memory: sizeof(SampleScratch).
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

// A key that orders a row's tokens as the filters rank them: by logit, then by lower id. No two are equal.
__device__ inline unsigned long long rank_key(float logit, int id) {
  const unsigned bits = __float_as_uint(logit == 0.0f ? 0.0f : logit);  // -0 ranks as 0
  const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (unsigned long long)ordered << 32 | unsigned(~id);
}

// The smallest key such that the tokens from the top down to it weigh `wanted` or more: masses, or counts where
// `by_mass` is false. Only tokens with keys of `floor_key` and above count. A digit a round, from the highest.
__device__ inline unsigned long long select_key(
    const SampleRow& row, double largest, unsigned long long floor_key, unsigned long long wanted, bool by_mass,
    SampleScratch& scratch) {
  unsigned long long prefix = 0, above = 0;
  for (int shift = 64 - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
    for (int bin = threadIdx.x; bin < NUM_BINS; bin += SAMPLE_THREADS) scratch.masses[bin] = scratch.counts[bin] = 0;
    block_sync();
    for (int id = threadIdx.x; id < row.vocab_size; id += SAMPLE_THREADS) {
      const unsigned long long key = rank_key(row.logits[id], id);
      const bool is_open = shift + DIGIT_BITS == 64 || key >> (shift + DIGIT_BITS) == prefix;
      if (key < floor_key || !is_open) continue;
      const int bin = int(key >> shift) & (NUM_BINS - 1);
      atomicAdd(&scratch.counts[bin], 1u);
      const unsigned long long mass =
          by_mass ? (unsigned long long)llrint(exp(row.scaled(id) - largest) * MASS_ONE) : 1ull;
      atomicAdd(&scratch.masses[bin], mass);
    }
    block_sync();
    if (threadIdx.x == 0) {
      int bin = NUM_BINS - 1;
      // The lowest bin ends it: rounding may leave the sum of all just short of what is wanted.
      while (bin > 0 && above + scratch.masses[bin] < wanted) above += scratch.masses[bin--];
      while (scratch.counts[bin] == 0) ++bin;
      scratch.prefix = prefix << DIGIT_BITS | unsigned(bin);
      scratch.above = above;
      // Every token of the bin is wanted: none below it, and its lowest key ends the selection.
      scratch.is_done = !by_mass && above + scratch.masses[bin] == wanted;
    }
    block_sync();
    prefix = scratch.prefix;
    above = scratch.above;
    if (scratch.is_done) return prefix << shift;
  }
  return prefix;
}

__device__ inline unsigned long long total_mass(
    const SampleRow& row, double largest, unsigned long long floor_key, SampleScratch& scratch) {
  block_sync();
  if (threadIdx.x == 0) scratch.masses[0] = 0;
  block_sync();
  unsigned long long mass = 0;
  for (int id = threadIdx.x; id < row.vocab_size; id += SAMPLE_THREADS)
    if (rank_key(row.logits[id], id) >= floor_key)
      mass += (unsigned long long)llrint(exp(row.scaled(id) - largest) * MASS_ONE);
  atomicAdd(&scratch.masses[0], mass);
  block_sync();
  mass = scratch.masses[0];
  block_sync();
  return mass;
}

// A row with filters, whole.
__device__ inline Best filtered_best(const SampleRow& row, SampleScratch& scratch) {
  const int num_groups = (row.vocab_size + 3) / 4;
  Best top = nobody();
  for (int id = threadIdx.x; id < row.vocab_size; id += SAMPLE_THREADS)
    take(top, Best{double(row.logits[id]), id, isnan(row.logits[id])});
  top = block_best(top, scratch);
  if (top.has_nan) return top;
  const double largest = top.score / row.temperature;
  unsigned long long floor_key = 0;
  if (row.top_k > 0 && row.top_k < row.vocab_size)
    floor_key = select_key(row, largest, 0, row.top_k, false, scratch);
  if (row.top_p < 1.0) {
    const double wanted = row.top_p * double(total_mass(row, largest, floor_key, scratch));
    floor_key = select_key(row, largest, floor_key, (unsigned long long)ceil(wanted), true, scratch);
  }
  const double lowest = row.min_p > 0.0 ? largest + log(row.min_p) : -INFINITY;
  const Best best = best_of(row, 0, num_groups, [&](int id) {
    return rank_key(row.logits[id], id) >= floor_key && row.scaled(id) >= lowest;
  });
  return block_best(best, scratch);
}

__device__ inline void sample_chunk(const SampleParams& params) {
  SampleScratch& scratch = *reinterpret_cast<SampleScratch*>(shared_memory());
  const SampleRow row = sample_row(params, blockIdx.y);
  if (row.has_filter()) return;
  const int num_groups = (params.vocab_size + 3) / 4;
  const int chunk_groups = (num_groups + params.num_chunks - 1) / params.num_chunks;
  const int first = blockIdx.x * chunk_groups, end = min(first + chunk_groups, num_groups);
  const Best best = block_best(best_of(row, first, end, [](int) { return true; }), scratch);
  if (threadIdx.x == 0) params.bests[blockIdx.y * params.num_chunks + blockIdx.x] = best;
}

__device__ inline void sample_whole_row(const SampleParams& params) {
  SampleScratch& scratch = *reinterpret_cast<SampleScratch*>(shared_memory());
  const SampleRow row = sample_row(params, blockIdx.x);
  Best best = nobody();
  if (row.has_filter()) {
    best = filtered_best(row, scratch);
  } else {
    for (int chunk = threadIdx.x; chunk < params.num_chunks; chunk += SAMPLE_THREADS)
      take(best, params.bests[blockIdx.x * params.num_chunks + chunk]);
    best = block_best(best, scratch);
  }
  if (threadIdx.x == 0) params.out[blockIdx.x] = best.has_nan ? NO_TOKEN : best.id;
}
