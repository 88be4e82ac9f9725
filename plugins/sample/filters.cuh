// The best token of a row among those that pass its filters: top_k, then top_p, then min_p.
//
// Tokens are ranked by a key; the filters find the lowest key that passes, a digit at a time from the highest, with a
// histogram of the tokens that agree in the digits above. A block reads its row a few times, from L2.
#pragma once

#include "row.cuh"

constexpr int TOKENS_EACH = 4;                                 // of a thread, one after another
constexpr int ROUND_TOKENS = SAMPLE_THREADS * TOKENS_EACH;     // of a block
constexpr double LIGHTEST = -29.0;                             // exp of it times MASS_ONE rounds to 0

// Calls `visit(id, logit, is_token)` for all tokens of a row, and for some past its end, so that every thread of the block
// makes the same calls.
template <class Visit>
__device__ __forceinline__ void for_each_token(const SampleRow& row, Visit visit) {
  const bool is_aligned = row.vocab_size % TOKENS_EACH == 0;
  for (int first = 0; first < row.vocab_size; first += ROUND_TOKENS) {
    const int own = first + threadIdx.x * TOKENS_EACH;
    float logits[TOKENS_EACH] = {};
    if (is_aligned && own < row.vocab_size) {
      const uint4 words = load16(row.logits + own);
      const unsigned each[TOKENS_EACH] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int at = 0; at < TOKENS_EACH; ++at) logits[at] = __uint_as_float(each[at]);
    } else {
#pragma unroll
      for (int at = 0; at < TOKENS_EACH; ++at)
        if (own + at < row.vocab_size) logits[at] = row.logits[own + at];
    }
#pragma unroll
    for (int at = 0; at < TOKENS_EACH; ++at) visit(own + at, logits[at], own + at < row.vocab_size);
  }
}

// A key that orders a row's tokens as the filters rank them: by logit, then by lower id. No two are equal.
__device__ inline unsigned long long rank_key(float logit, int id) {
  const unsigned bits = __float_as_uint(logit == 0.0f ? 0.0f : logit);  // -0 ranks as 0
  const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (unsigned long long)ordered << 32 | unsigned(~id);
}

// What a token weighs, where the most likely one weighs MASS_ONE.
__device__ inline unsigned long long mass_of(const SampleRow& row, float logit, double largest) {
  const double behind = double(logit) / row.temperature - largest;
  return behind < LIGHTEST ? 0ull : (unsigned long long)llrint(exp(behind) * MASS_ONE);
}

__device__ inline unsigned long long warp_total(unsigned long long value) {
  for (int mask = 16; mask > 0; mask /= 2) value += shfl_xor(value, mask);
  return value;
}

// Adds a token of every lane that has one to the histogram. The highest digits of all tokens are a few, and a warp's
// atomic additions to one place wait for each other: up to two bins get the sum of their lanes at once.
__device__ inline void add_to_bins(
    bool has_token, int bin, unsigned long long mass, bool by_mass, SampleScratch& scratch) {
  unsigned left = warp_ballot(has_token);
  for (int round = 0; round < 2 && left != 0; ++round) {
    const int leader = __ffs(left) - 1;
    const int common = shfl(bin, leader);
    const bool is_mate = has_token && bin == common;
    const unsigned mates = warp_ballot(is_mate);
    const unsigned count = __popc(mates);
    unsigned long long sum = by_mass ? mass : count;
    if (by_mass && count > 1) sum = warp_total(is_mate ? mass : 0ull);
    if (lane_id() == leader) {
      atomicAdd(&scratch.counts[bin], count);
      atomicAdd(&scratch.masses[bin], sum);
    }
    has_token = has_token && !is_mate;
    left &= ~mates;
  }
  if (!has_token) return;
  atomicAdd(&scratch.counts[bin], 1u);
  atomicAdd(&scratch.masses[bin], by_mass ? mass : 1ull);
}

// How much the tokens from the top down to the floor are to weigh: a count of them, or a share of all their mass.
struct Wanted {
  long long count;  // where it is above 0
  double share;
};

// The smallest key such that the tokens from the top down to it weigh what is wanted or more. Only tokens with keys of
// `floor_key` and above count.
__device__ inline unsigned long long select_key(
    const SampleRow& row, double largest, unsigned long long floor_key, Wanted wanted, SampleScratch& scratch) {
  const bool by_mass = wanted.count <= 0;
  unsigned long long prefix = 0, above = 0, goal = wanted.count;
  for (int shift = 64 - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
    const bool is_first = shift + DIGIT_BITS == 64;
    for (int bin = threadIdx.x; bin < NUM_BINS; bin += SAMPLE_THREADS) scratch.masses[bin] = scratch.counts[bin] = 0;
    block_sync();
    for_each_token(row, [&](int id, float logit, bool is_token) {
      const unsigned long long key = rank_key(logit, id);
      const bool is_open = is_token && key >= floor_key && (is_first || key >> (shift + DIGIT_BITS) == prefix);
      const unsigned long long mass = is_open && by_mass ? mass_of(row, logit, largest) : 0ull;
      add_to_bins(is_open, int(key >> shift) & (NUM_BINS - 1), mass, by_mass, scratch);
    });
    block_sync();
    if (threadIdx.x == 0) {
      if (is_first && by_mass) {
        unsigned long long total = 0;
        for (int bin = 0; bin < NUM_BINS; ++bin) total += scratch.masses[bin];
        goal = (unsigned long long)ceil(wanted.share * double(total));
      }
      int bin = NUM_BINS - 1;
      // The lowest bin ends it: rounding may leave the sum of all just short of what is wanted.
      while (bin > 0 && above + scratch.masses[bin] < goal) above += scratch.masses[bin--];
      while (scratch.counts[bin] == 0) ++bin;
      scratch.prefix = prefix << DIGIT_BITS | unsigned(bin);
      scratch.above = above;
      // Nothing below the bin is wanted, and all of it is: it ends with its lowest key, or is one token.
      scratch.is_done = scratch.counts[bin] == 1 || (!by_mass && above + scratch.masses[bin] == goal);
    }
    block_sync();
    prefix = scratch.prefix;
    above = scratch.above;
    if (scratch.is_done) return prefix << shift;
  }
  return prefix;
}

// A row with filters, whole.
__device__ inline Best filtered_best(const SampleRow& row, SampleScratch& scratch) {
  Best top = nobody();
  for_each_token(row, [&](int id, float logit, bool is_token) {
    if (is_token) take(top, Best{double(logit), id, isnan(logit)});
  });
  top = block_best(top, scratch);
  if (top.has_nan) return top;
  const double largest = top.score / row.temperature;
  unsigned long long floor_key = 0;
  if (row.top_k > 0 && row.top_k < row.vocab_size)
    floor_key = select_key(row, largest, 0, Wanted{row.top_k, 0.0}, scratch);
  if (row.top_p < 1.0) floor_key = select_key(row, largest, floor_key, Wanted{0, row.top_p}, scratch);
  const double lowest = row.min_p > 0.0 ? largest + log(row.min_p) : -INFINITY;
  const Best best = best_of(row, 0, (row.vocab_size + 3) / 4, [&](int id) {
    return rank_key(row.logits[id], id) >= floor_key && row.scaled(id) >= lowest;
  });
  return block_best(best, scratch);
}
