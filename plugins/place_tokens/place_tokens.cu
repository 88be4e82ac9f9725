// Entry point, of any number of threads.
#include "place_tokens.cuh"

extern "C" __device__ const unsigned place_tokens_params_bytes = sizeof(PlaceTokensParams);

extern "C" __global__ void place_tokens_kernel(__grid_constant__ const PlaceTokensParams params) {
  grid_dependency_launch();
  grid_dependency_wait();
  place_tokens(params);
}
