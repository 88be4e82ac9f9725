// Entry point for the long requests of a step. ELEMENT: bfloat16 or float16; HEAD_DIM: 64 or 128. sm_90a alone.
#include "attention_prefill.cuh"

extern "C" __device__ const unsigned attention_prefill_params_bytes = sizeof(AttentionPrefillParams);

using Prefill = PrefillConfig<ELEMENT, HEAD_DIM>;

extern "C" __global__ void __launch_bounds__(Prefill::THREADS, 1)
    attention_prefill_kernel(__grid_constant__ const AttentionPrefillParams params) {
    grid_dependency_wait();
    grid_dependency_launch();
    prefill<Prefill>(params, shared_memory());
}
