// Entry point, of any number of threads.
#include "emit_tokens.cuh"

extern "C" __device__ const unsigned emit_tokens_params_bytes = sizeof(EmitTokensParams);

extern "C" __global__ void emit_tokens_kernel(__grid_constant__ const EmitTokensParams params) {
  grid_dependency_launch();
  grid_dependency_wait();
  emit_tokens(params);
}
