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
  for (int bin = threadIdx.x; bin < NUM_BINS; bin += SAMPLE_THREADS) histogram.set(bin, 0, 0);
  block_sync();
}

// Adds some groups of a row to the row's histogram in memory.
__device__ inline void add_histogram(
    const SampleRow& row, RowSums& sums, int first_group, int end_group, double top, SampleScratch& scratch) {
  const EvenBins bins(row, top);
  const double largest = top / row.temperature;
  clear_bins(scratch.whole);
  for_each_token<1>(row, first_group, end_group, [&](int, float logit) {
    const int bin = bins.bin(logit);
    scratch.whole.add(bin, bin > 0 ? mass_of(row, logit, largest) : 0);
  });
  block_sync();
  for (int bin = threadIdx.x; bin < NUM_BINS; bin += SAMPLE_THREADS) {
    if (scratch.whole.counts[bin] == 0) continue;
    atomicAdd(&sums.counts[bin], scratch.whole.counts[bin]);
    atomicAdd(&sums.masses[bin], scratch.whole.mass(bin));
  }
}

// How much the tokens from the top down to the floor are to weigh: a count of them, or a share of all their mass.
struct Wanted {
  unsigned long long count;  // where it is above 0
  double share;

  __device__ unsigned long long weight(const Histogram& histogram, int bin) const {
    return count > 0 ? histogram.counts[bin] : histogram.mass(bin);
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

// A row's tokens of the highest even bins: held in shared memory, where they are not too many.
struct HeldTokens {
  const SampleRow& row;
  const EvenBins bins;
  const double largest;
  SampleScratch& scratch;
  int first_bin = NUM_BINS;  // of those that are held
  int last_bin = -1;

  __device__ HeldTokens(const SampleRow& row, double top, SampleScratch& scratch)
      : row(row), bins(row, top), largest(top / row.temperature), scratch(scratch) {}

  __device__ bool has(int bin) const { return first_bin <= bin && bin <= last_bin; }
  __device__ bool has_all() const { return last_bin == NUM_BINS - 1; }

  // Hold those from the last bin down to `bin`; where they are too many, those of `bin`, or none. Only tokens with keys of
  // `floor_key` and above count, of which the row's histogram is.
  __device__ void hold(int bin, unsigned long long floor_key) {
    if (has(bin)) return;
    unsigned count = 0;
    for (int at = bin + int(lane_id()); at < NUM_BINS; at += 32) count += scratch.whole.counts[at];
    for (int mask = 16; mask > 0; mask /= 2) count += shfl_xor(count, mask);
    first_bin = bin;
    last_bin = count <= MOST_HELD ? NUM_BINS - 1 : scratch.whole.counts[bin] <= MOST_HELD ? bin : -1;
    block_sync();
    if (threadIdx.x == 0) scratch.num_held = 0;
    block_sync();
    if (last_bin < 0) return;
    for_each_token<GROUPS_AHEAD>(row, 0, row.num_groups(), [&](int id, float logit) {
      const unsigned long long key = rank_key(logit, id);
      if (has(bins.bin(logit)) && key >= floor_key) scratch.held[atomicAdd(&scratch.num_held, 1u)] = key;
    });
    block_sync();
  }

  // Calls `visit(key)` for every token that is held.
  template <class Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    for (int at = threadIdx.x; at < int(scratch.num_held); at += SAMPLE_THREADS) visit(scratch.held[at]);
  }

  // Calls `visit(key)` for every token of a bin, held or not, with a key of `floor_key` or above.
  template <class Visit>
  __device__ __forceinline__ void for_each_of(int bin, unsigned long long floor_key, Visit visit) const {
    const auto visit_open = [&](unsigned long long key) {
      if (key >= floor_key && bins.bin(logit_of(key)) == bin) visit(key);
    };
    if (has(bin))
      for_each(visit_open);
    else
      for_each_token<1>(row, 0, row.num_groups(), [&](int id, float logit) { visit_open(rank_key(logit, id)); });
  }

  __device__ unsigned long long mass(unsigned long long key) const { return mass_of(row, logit_of(key), largest); }
};

// The smallest key such that the tokens from the top down to it weigh what is wanted or more, of those in the row's
// histogram, whose keys are `floor_key` and above. The histogram then has those that pass this filter too.
__device__ inline unsigned long long select_key(
    HeldTokens& tokens, unsigned long long floor_key, const Wanted& wanted, SampleScratch& scratch) {
  find_bin(scratch.whole, wanted, true, scratch);
  const int bin = scratch.bin;
  tokens.hold(bin, floor_key);
  unsigned long long lowest = ~0ull, highest = 0;
  tokens.for_each_of(bin, floor_key, [&](unsigned long long key) {
    lowest = min(lowest, key);
    highest = max(highest, key);
  });
  lowest = block_lowest(lowest, scratch);
  highest = ~block_lowest(~highest, scratch);
  int shift = lowest == highest ? 0 : 64 - __clzll(lowest ^ highest);
  unsigned long long prefix = shift == 64 ? 0 : lowest >> shift;  // that all have in common
  while (shift > 0) {
    const int next = max(shift - DIGIT_BITS, 0), mask = (1 << (shift - next)) - 1;
    clear_bins(scratch.digits);
    tokens.for_each_of(bin, floor_key, [&](unsigned long long key) {
      if (shift < 64 && key >> shift != prefix) return;
      scratch.digits.add(int(key >> next) & mask, wanted.count > 0 ? 0 : tokens.mass(key));
    });
    find_bin(scratch.digits, wanted, false, scratch);
    prefix = prefix << (shift - next) | unsigned(scratch.bin);
    shift = next;
    if (scratch.digits.counts[scratch.bin] == 1) break;
  }
  block_sync();
  for (int lower = threadIdx.x; lower <= bin; lower += SAMPLE_THREADS)
    scratch.whole.set(lower, 0, 0);
  block_sync();
  lowest = ~0ull;
  tokens.for_each_of(bin, floor_key, [&](unsigned long long key) {
    if (key >> shift < prefix) return;
    scratch.whole.add(bin, tokens.mass(key));
    lowest = min(lowest, key);
  });
  return block_lowest(lowest, scratch);
}

// A row with filters, of which the histogram is made; `top` is its largest logit.
__device__ inline Best filtered_best(const SampleRow& row, const RowSums& sums, double top, SampleScratch& scratch) {
  for (int bin = threadIdx.x; bin < NUM_BINS; bin += SAMPLE_THREADS)
    scratch.whole.set(bin, sums.counts[bin], sums.masses[bin]);
  block_sync();
  HeldTokens tokens(row, top, scratch);
  unsigned long long floor_key = 0;
  if (row.has_top_k())
    floor_key = select_key(tokens, 0, Wanted{static_cast<unsigned long long>(row.top_k), 0.0}, scratch);
  if (row.top_p < 1.0) floor_key = select_key(tokens, floor_key, Wanted{0, row.top_p}, scratch);
  const double lowest = row.min_p > 0.0 ? tokens.largest + log(row.min_p) : -INFINITY;
  const auto is_likely = [&](float logit) { return row.min_p <= 0.0 || row.scaled(logit) >= lowest; };
  if (floor_key == 0) tokens.hold(max(tokens.bins.bin(float(lowest * row.temperature)) - 1, 0), 0);
  Best best = nobody();
  if (tokens.has_all())
    tokens.for_each([&](unsigned long long key) {
      const float logit = logit_of(key);
      if (key < floor_key || !is_likely(logit)) return;
      const int id = int(~unsigned(key));
      take(best, Best{row.scaled(logit) + gumbel(noise_word(row.noise, id)), id, 0});
    });
  else
    best = drawn_of<1>(row, 0, row.num_groups(), [&](int id, float logit) {
      return rank_key(logit, id) >= floor_key && is_likely(logit);
    });
  return block_best(best, scratch);
}
