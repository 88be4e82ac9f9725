// The next token of each row of logits: the argmax, or the argmax of logits / T plus Gumbel noise over the tokens that
// pass the filters. The contract, and the order of the filters: plugins/sample/__init__.py.
//
// Two launches of grid (chunks, R). `sample_chunks`: of every chunk of a row the best token, or, with filters, the largest
// logit. `sample_rows`: a row's first block takes the best of those; with filters all of its blocks add up a histogram, and
// the last of them to come goes on alone. What is chosen does not depend on the number of chunks: scores are compared
// exactly, and ties go to the lower token id.
//
// Logits float32. Scores are float64, like the reference's. Masses are sums of integers, so no order of threads shows in
// them: 2^40 stands for the most likely token's, which leaves 2^-41 of it as the rounding of each.
// Shared memory: sizeof(SampleScratch).
#pragma once

#include "filters.cuh"
#include "grid.cuh"
#include "row.cuh"

// The groups of a row that a block has.
struct Chunk {
  int first;
  int end;

  __device__ explicit Chunk(const SampleParams& params, const SampleRow& row) {
    const int each = (row.num_groups() + params.num_chunks - 1) / params.num_chunks;
    first = blockIdx.x * each;
    end = min(first + each, row.num_groups());
  }
};

__device__ inline void sample_chunk(const SampleParams& params) {
  SampleScratch& scratch = *reinterpret_cast<SampleScratch*>(shared_memory());
  const SampleRow row = sample_row(params, blockIdx.y);
  const Chunk chunk(params, row);
  const bool draws = !row.is_greedy() && !row.has_filter();
  Best best = draws ? drawn_of<1>(row, chunk.first, chunk.end, [](int, float) { return true; })
                    : largest_of<1>(row, chunk.first, chunk.end);
  best = block_best(best, scratch);
  if (threadIdx.x == 0) params.bests[blockIdx.y * params.num_chunks + blockIdx.x] = best;
  if (blockIdx.x != 0 || !row.has_filter()) return;
  RowSums& sums = params.sums[blockIdx.y];
  for (int bin = threadIdx.x; bin < NUM_BINS; bin += SAMPLE_THREADS)
    sums.masses[bin] = sums.counts[bin] = 0;
  if (threadIdx.x == 0) sums.arrived = 0;
}

// Whether all other blocks of the row have been here.
__device__ inline bool is_last(RowSums& sums, int num_blocks, SampleScratch& scratch) {
  block_sync();
  if (threadIdx.x == 0) scratch.is_last = int(add_acquire_release(&sums.arrived, 1)) == num_blocks - 1;
  block_sync();
  return scratch.is_last;
}

__device__ inline void sample_whole_row(const SampleParams& params) {
  SampleScratch& scratch = *reinterpret_cast<SampleScratch*>(shared_memory());
  const SampleRow row = sample_row(params, blockIdx.y);
  if (blockIdx.x != 0 && !row.has_filter()) return;
  Best best = nobody();
  for (int chunk = threadIdx.x; chunk < params.num_chunks; chunk += SAMPLE_THREADS)
    take(best, params.bests[blockIdx.y * params.num_chunks + chunk]);
  best = block_best(best, scratch);
  if (row.has_filter() && !best.has_nan) {
    RowSums& sums = params.sums[blockIdx.y];
    const Chunk chunk(params, row);
    add_histogram(row, sums, chunk.first, chunk.end, best.score, scratch);
    if (!is_last(sums, params.num_chunks, scratch)) return;
    best = filtered_best(row, sums, best.score, scratch);
  }
  if (threadIdx.x == 0) params.out[blockIdx.y] = best.has_nan || best.id == NO_ID ? NO_TOKEN : best.id;
}
