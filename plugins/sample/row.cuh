// One row of logits, how it draws, and the best of its tokens. Used by sample.cuh and filters.cuh.
#pragma once

#include "element.cuh"
#include "noise.cuh"
#include "warp.cuh"

constexpr int SAMPLE_THREADS = 512;
constexpr int SAMPLE_WARPS = SAMPLE_THREADS / 32;
constexpr int DIGIT_BITS = 8;
constexpr int NUM_BINS = 1 << DIGIT_BITS;
constexpr int MOST_HELD = 4096;
constexpr int GROUP = 4;  // tokens that a thread loads at once, and that have their noise of one counter
constexpr int GROUPS_AHEAD = 4;  // that a block which is alone with a row has under way in each thread
constexpr int NO_ID = 0x7fffffff;
constexpr int NO_TOKEN = -1;  // of a row that holds NaN, or an infinity that leaves nothing to draw
constexpr double MASS_ONE = 1099511627776.0;  // 2^40

struct Best {
  double score;
  int id;
  int has_nan;
};

// What the tokens of each bin weigh, and how many there are. Masses lie in three parts, as shared memory has atomic additions
// of 32 bits alone; 2^18 tokens of MASS_ONE fit.
struct Histogram {
  static constexpr int PART_BITS = 14;
  static constexpr unsigned PART = (1u << PART_BITS) - 1;

  unsigned counts[NUM_BINS];
  unsigned low[NUM_BINS];
  unsigned middle[NUM_BINS];
  unsigned high[NUM_BINS];

  __device__ unsigned long long mass(int bin) const {
    return low[bin] + ((unsigned long long)middle[bin] << PART_BITS) + ((unsigned long long)high[bin] << 2 * PART_BITS);
  }
  __device__ void set(int bin, unsigned count, unsigned long long mass) {
    counts[bin] = count;
    low[bin] = unsigned(mass) & PART;
    middle[bin] = unsigned(mass >> PART_BITS) & PART;
    high[bin] = unsigned(mass >> 2 * PART_BITS);
  }
  __device__ void add(int bin, unsigned long long mass) {
    atomicAdd(&counts[bin], 1u);
    if (mass == 0) return;
    atomicAdd(&low[bin], unsigned(mass) & PART);
    atomicAdd(&middle[bin], unsigned(mass >> PART_BITS) & PART);
    atomicAdd(&high[bin], unsigned(mass >> 2 * PART_BITS));
  }
};

// What the blocks of a row with filters add up.
struct RowSums {
  unsigned long long masses[NUM_BINS];
  unsigned counts[NUM_BINS];
  unsigned arrived;  // blocks
  unsigned unused;
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
  RowSums* sums;                  // (R,)
  long long* out;                 // (R,)
  int vocab_size;
  int num_chunks;
  int rows_each;  // R / E
  int unused;
};
static_assert(sizeof(SampleParams) == 13 * 8 + 4 * 4, "mirrored in cuda.py");

struct SampleScratch {
  Best warp_bests[SAMPLE_WARPS];
  unsigned long long warp_keys[SAMPLE_WARPS];
  Histogram whole;   // of the row, by even bins
  Histogram digits;  // of the keys in question
  unsigned long long held[MOST_HELD];
  unsigned long long above;  // mass, or count, of what is above a bin
  unsigned long long goal;
  int bin;
  unsigned num_held;
  int is_last;
  int unused;
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
  __device__ bool has_top_k() const { return top_k > 0 && top_k < vocab_size; }
  __device__ bool has_filter() const { return !is_greedy() && (top_p < 1.0 || min_p > 0.0 || has_top_k()); }
  __device__ double scaled(float logit) const { return double(logit) / temperature; }
  __device__ int num_groups() const { return (vocab_size + GROUP - 1) / GROUP; }
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

// The lowest of all threads' keys, in every thread.
__device__ inline unsigned long long block_lowest(unsigned long long key, SampleScratch& scratch) {
  for (int mask = 16; mask > 0; mask /= 2) key = min(key, shfl_xor(key, mask));
  block_sync();
  if (lane_id() == 0) scratch.warp_keys[warp_id()] = key;
  block_sync();
  for (int warp = 0; warp < SAMPLE_WARPS; ++warp) key = min(key, scratch.warp_keys[warp]);
  return key;
}

__device__ inline Best nobody() { return Best{-INFINITY, NO_ID, 0}; }

// Some groups of a row in each thread, all asked for at once.
template <int GROUPS>
struct LoadedGroups {
  float logits[GROUPS][GROUP];
  int first;  // this thread's first group; the next are SAMPLE_THREADS further each
  int end_group;
  int vocab_size;

  __device__ LoadedGroups(const SampleRow& row, int from, int end_group)
      : first(from + int(threadIdx.x)), end_group(end_group), vocab_size(row.vocab_size) {
    const bool is_aligned = vocab_size % GROUP == 0;
#pragma unroll
    for (int i = 0; i < GROUPS; ++i) {
#pragma unroll
      for (int at = 0; at < GROUP; ++at) logits[i][at] = 0.0f;
      if (!is_token(i, 0)) continue;
      if (is_aligned) {
        const uint4 words = load16(row.logits + id(i, 0));
        const unsigned each[GROUP] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int at = 0; at < GROUP; ++at) logits[i][at] = __uint_as_float(each[at]);
      } else {
#pragma unroll
        for (int at = 0; at < GROUP; ++at)
          if (is_token(i, at)) logits[i][at] = row.logits[id(i, at)];
      }
    }
  }

  __device__ int group(int i) const { return first + i * SAMPLE_THREADS; }
  __device__ int id(int i, int at) const { return GROUP * group(i) + at; }
  __device__ bool is_token(int i, int at) const { return group(i) < end_group && id(i, at) < vocab_size; }
};

// Calls `visit(id, logit)` for all tokens of a row's groups.
template <int GROUPS, class Visit>
__device__ __forceinline__ void for_each_token(const SampleRow& row, int first_group, int end_group, Visit visit) {
#pragma unroll 1
  for (int from = first_group; from < end_group; from += GROUPS * SAMPLE_THREADS) {
    const LoadedGroups<GROUPS> loaded(row, from, end_group);
#pragma unroll
    for (int i = 0; i < GROUPS; ++i)
#pragma unroll
      for (int at = 0; at < GROUP; ++at)
        if (loaded.is_token(i, at)) visit(loaded.id(i, at), loaded.logits[i][at]);
  }
}

// The token with the largest logit.
template <int GROUPS>
__device__ inline Best largest_of(const SampleRow& row, int first_group, int end_group) {
  Best best = nobody();
  float largest = -INFINITY;
  for_each_token<GROUPS>(row, first_group, end_group, [&](int id, float logit) {
    best.has_nan |= isnan(logit);
    if (logit > largest || (best.id == NO_ID && logit == largest)) {
      largest = logit;
      best.id = id;
    }
  });
  best.score = largest;
  return best;
}

// The best of the tokens that are kept, with noise. A first look is at what it roughly will be: exact scores take a hundred
// times as long, and are computed only where a token may still be the best of its warp.
template <int GROUPS, class Keep>
__device__ inline Best drawn_of(const SampleRow& row, int first_group, int end_group, Keep is_kept) {
  Best best = nobody();
  const float per_degree = float(1.0 / row.temperature);
  float floor = -INFINITY;  // that some token of the warp surely reaches
#pragma unroll 1
  for (int from = first_group; from < end_group; from += GROUPS * SAMPLE_THREADS) {
    const LoadedGroups<GROUPS> loaded(row, from, end_group);
    float most[GROUPS][GROUP];  // what a token's score may be
    float reached = -INFINITY;
#pragma unroll
    for (int i = 0; i < GROUPS; ++i) {
      unsigned kept = 0;
#pragma unroll
      for (int at = 0; at < GROUP; ++at) {
        const float logit = loaded.logits[i][at];
        best.has_nan |= isnan(logit);
        kept |= unsigned(loaded.is_token(i, at) && is_kept(loaded.id(i, at), logit)) << at;
        most[i][at] = -INFINITY;
      }
      if (kept == 0) continue;
      const uint4 words = noise_words(row.noise, loaded.group(i));
      const unsigned each[GROUP] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int at = 0; at < GROUP; ++at) {
        if (!(kept >> at & 1)) continue;
        const float scaled = loaded.logits[i][at] * per_degree, rough = scaled + gumbel_fast(each[at]);
        const float error = 2.0f * float(GUMBEL_ERROR) + fabsf(scaled) * (1.0f / (1 << 21));
        most[i][at] = isfinite(rough) ? rough + error : INFINITY;
        if (isfinite(rough)) reached = fmaxf(reached, rough - error);
      }
    }
    floor = warp_max(fmaxf(floor, reached));
    unsigned candidates = 0;
#pragma unroll
    for (int i = 0; i < GROUPS; ++i)
#pragma unroll
      for (int at = 0; at < GROUP; ++at)
        candidates |= unsigned(most[i][at] > -INFINITY && most[i][at] >= floor) << (GROUP * i + at);
    while (candidates != 0) {
      const int place = __ffs(candidates) - 1, id = loaded.id(place / GROUP, place % GROUP);
      candidates &= candidates - 1;
      take(best, Best{row.scaled(row.logits[id]) + gumbel(noise_word(row.noise, id)), id, 0});
    }
  }
  return best;
}
