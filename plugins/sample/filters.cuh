// The best token of a row among those that pass its filters: top_k, then top_p, then min_p.
//
// A histogram of the row by distance from its largest logit, which all of the row's blocks add up, says in which bin lies the
// last token that passes. One block goes on with the tokens of that bin, which shared memory holds unless they are very many:
// it ranks them by a key and finds the lowest that passes, a digit at a time from the highest.
#pragma once

#include "row.cuh"

constexpr double LIGHTEST = -29.0;  // exp of it times MASS_ONE rounds to 0

// A key that orders a row's tokens as the filters rank them: by logit, then by lower id. No two are equal.
__device__ inline unsigned long long rank_key(float logit, int id) {
  const unsigned bits = __float_as_uint(logit == 0.0f ? 0.0f : logit);  // -0 ranks as 0
  const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (unsigned long long)ordered << 32 | unsigned(~id);
}

__device__ inline float logit_of(unsigned long long key) {
  const unsigned ordered = unsigned(key >> 32);
  return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

// What a token weighs, where the most likely one weighs MASS_ONE.
__device__ inline unsigned long long mass_of(const SampleRow& row, float logit, double largest) {
  const double behind = row.scaled(logit) - largest;
  return behind < LIGHTEST ? 0ull : (unsigned long long)llrint(exp(behind) * MASS_ONE);
}

// Even bins of a row by how far a logit lies behind the largest, from the last bin down: spread out, so that the atomic
// additions of a warp seldom meet. What lies in bin 0 weighs nothing.
struct EvenBins {
  float top;
  float bins_per_unit;

  __device__ EvenBins(const SampleRow& row, double top_logit)
      : top(float(top_logit)), bins_per_unit(float((NUM_BINS - 1) / (-LIGHTEST * row.temperature))) {}

  __device__ int bin(float logit) const {
    const float behind = (top - logit) * bins_per_unit;
    return behind < NUM_BINS - 1 ? NUM_BINS - 1 - int(behind) : 0;
  }
};

__device__ inline void clear_bins(Histogram& histogram) {
  block_sync();
  for (int bin = threadIdx.x; bin < NUM_BINS; bin += SAMPLE_THREADS) histogram.masses[bin] = histogram.counts[bin] = 0;
  block_sync();
}

// Adds some groups of a row to the row's histogram in memory.
__device__ inline void add_histogram(
    const SampleRow& row, Histogram& sums, int first_group, int end_group, double top, SampleScratch& scratch) {
  const EvenBins bins(row, top);
  const double largest = top / row.temperature;
  clear_bins(scratch.whole);
  for_each_token<1>(row, first_group, end_group, [&](int, float logit) {
    const int bin = bins.bin(logit);
    atomicAdd(&scratch.whole.counts[bin], 1u);
    if (bin > 0) atomicAdd(&scratch.whole.masses[bin], mass_of(row, logit, largest));
  });
  block_sync();
  for (int bin = threadIdx.x; bin < NUM_BINS; bin += SAMPLE_THREADS) {
    if (scratch.whole.counts[bin] == 0) continue;
    atomicAdd(&sums.counts[bin], scratch.whole.counts[bin]);
    atomicAdd(&sums.masses[bin], scratch.whole.masses[bin]);
  }
}

// How much the tokens from the top down to the floor are to weigh: a count of them, or a share of all their mass.
struct Wanted {
  unsigned long long count;  // where it is above 0
  double share;

  __device__ unsigned long long weight(const Histogram& histogram, int bin) const {
    return count > 0 ? histogram.counts[bin] : histogram.masses[bin];
  }
};

// From the last bin down, the first at which weights reach the goal together with what is above: scratch.bin; what is above
// it then is scratch.above. A warp adds up, a few bins a lane.
__device__ inline void find_bin(const Histogram& histogram, const Wanted& wanted, bool sets_goal, SampleScratch& scratch) {
  constexpr int EACH = NUM_BINS / 32;
  block_sync();
  if (warp_id() == 0) {
    const int lane = int(lane_id()), last = NUM_BINS - 1 - EACH * lane;  // this lane's bins, downwards
    unsigned long long own = 0;
    for (int at = 0; at < EACH; ++at) own += wanted.weight(histogram, last - at);
    unsigned long long upto = own;
    for (int delta = 1; delta < 32; delta *= 2) {
      const unsigned long long other = shfl_up(upto, delta);
      if (lane >= delta) upto += other;
    }
    const double total = double(shfl(upto, 31));
    unsigned long long above = sets_goal ? 0 : scratch.above, goal = scratch.goal;
    if (sets_goal) goal = wanted.count > 0 ? wanted.count : (unsigned long long)ceil(wanted.share * total);
    const unsigned reaching = warp_ballot(above + upto >= goal);
    warp_sync();
    if (lane == (reaching != 0 ? __ffs(reaching) - 1 : 31)) {
      above += upto - own;
      int bin = last;
      while (bin > last - EACH + 1 && above + wanted.weight(histogram, bin) < goal)
        above += wanted.weight(histogram, bin--);
      scratch.bin = bin;
      scratch.above = above;
      scratch.goal = goal;
    }
  }
  block_sync();
}

// The tokens of one even bin that the filters before have let pass: held in shared memory, or the row where they are too
// many.
struct OpenTokens {
  const SampleRow& row;
  const EvenBins& bins;
  const int bin;
  const unsigned long long floor_key;
  SampleScratch& scratch;
  const bool are_held;

  __device__ OpenTokens(
      const SampleRow& row, const EvenBins& bins, unsigned long long floor_key, SampleScratch& scratch)
      : row(row), bins(bins), bin(scratch.bin), floor_key(floor_key), scratch(scratch),
        are_held(scratch.whole.counts[scratch.bin] <= MOST_HELD) {
    block_sync();
    if (threadIdx.x == 0) scratch.num_held = 0;
    block_sync();
    if (are_held)
      for_each_of_row([&](unsigned long long key) { scratch.held[atomicAdd(&scratch.num_held, 1u)] = key; });
    block_sync();
  }

  template <class Visit>
  __device__ __forceinline__ void for_each_of_row(Visit visit) const {
    for_each_token<GROUPS_AHEAD>(row, 0, row.num_groups(), [&](int id, float logit) {
      const unsigned long long key = rank_key(logit, id);
      if (bins.bin(logit) == bin && key >= floor_key) visit(key);
    });
  }

  template <class Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    if (are_held)
      for (int at = threadIdx.x; at < int(scratch.num_held); at += SAMPLE_THREADS) visit(scratch.held[at]);
    else
      for_each_of_row(visit);
  }

  __device__ void add(Histogram& histogram, int to, unsigned long long key, double largest) const {
    atomicAdd(&histogram.counts[to], 1u);
    atomicAdd(&histogram.masses[to], mass_of(row, logit_of(key), largest));
  }
};

// The smallest key such that the tokens from the top down to it weigh what is wanted or more, of those in the row's
// histogram with keys of `floor_key` and above. The histogram then has the tokens that pass this filter too.
__device__ inline unsigned long long select_key(
    const SampleRow& row, double top, unsigned long long floor_key, const Wanted& wanted, SampleScratch& scratch) {
  const EvenBins bins(row, top);
  const double largest = top / row.temperature;
  find_bin(scratch.whole, wanted, true, scratch);
  const OpenTokens open(row, bins, floor_key, scratch);
  unsigned long long prefix = 0;
  int shift = 64;
  do {
    clear_bins(scratch.digits);
    open.for_each([&](unsigned long long key) {
      if (shift == 64 || key >> shift == prefix)
        open.add(scratch.digits, int(key >> (shift - DIGIT_BITS)) & (NUM_BINS - 1), key, largest);
    });
    find_bin(scratch.digits, wanted, false, scratch);
    prefix = prefix << DIGIT_BITS | unsigned(scratch.bin);
    shift -= DIGIT_BITS;
  } while (shift > 0 && scratch.digits.counts[scratch.bin] > 1);
  block_sync();
  for (int bin = threadIdx.x; bin <= open.bin; bin += SAMPLE_THREADS)
    scratch.whole.masses[bin] = scratch.whole.counts[bin] = 0;
  if (threadIdx.x == 0) scratch.lowest = ~0ull;
  block_sync();
  open.for_each([&](unsigned long long key) {
    if (key >> shift < prefix) return;
    open.add(scratch.whole, open.bin, key, largest);
    atomicMin(&scratch.lowest, key);
  });
  block_sync();
  return scratch.lowest;
}

// A row with filters, of which the histogram is made; `top` is its largest logit.
__device__ inline Best filtered_best(const SampleRow& row, const Histogram& sums, double top, SampleScratch& scratch) {
  for (int bin = threadIdx.x; bin < NUM_BINS; bin += SAMPLE_THREADS) {
    scratch.whole.counts[bin] = sums.counts[bin];
    scratch.whole.masses[bin] = sums.masses[bin];
  }
  unsigned long long floor_key = 0;
  if (row.has_top_k())
    floor_key = select_key(row, top, 0, Wanted{static_cast<unsigned long long>(row.top_k), 0.0}, scratch);
  if (row.top_p < 1.0) floor_key = select_key(row, top, floor_key, Wanted{0, row.top_p}, scratch);
  const double lowest = row.min_p > 0.0 ? row.scaled(float(top)) + log(row.min_p) : -INFINITY;
  const Best best = drawn_of<GROUPS_AHEAD>(row, 0, row.num_groups(), [&](int id, float logit) {
    return rank_key(logit, id) >= floor_key && row.scaled(logit) >= lowest;
  });
  return block_best(best, scratch);
}
