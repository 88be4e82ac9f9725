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

#include "filters.cuh"
#include "row.cuh"

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
