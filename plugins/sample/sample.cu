// Entry points of sampling, both of SAMPLE_THREADS threads.
#include "sample.cuh"

extern "C" __device__ const unsigned sample_params_bytes = sizeof(SampleParams);

extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS)
    sample_chunks_kernel(__grid_constant__ const SampleParams params) {
  grid_dependency_launch();
  grid_dependency_wait();
  sample_chunk(params);
}

extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS, 1)
    sample_rows_kernel(__grid_constant__ const SampleParams params) {
  grid_dependency_launch();
  grid_dependency_wait();
  sample_whole_row(params);
}
