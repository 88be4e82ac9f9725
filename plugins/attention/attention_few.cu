// Entry point. ELEMENT: bfloat16 or float16; HEAD_DIM: 64, 96 or 128; VISIT_SLOTS, GROUPS_OF_WARPS, RING_STAGES: see
// FewConfig.
#include "attention_few_fold.cuh"

extern "C" __device__ const unsigned attention_few_params_bytes = sizeof(FewParams);

using Few = FewConfig<ELEMENT, HEAD_DIM, VISIT_SLOTS, GROUPS_OF_WARPS, RING_STAGES>;

extern "C" __global__ void __launch_bounds__(Few::THREADS)
    attention_few_kernel(__grid_constant__ const FewParams params) {
    attend_few<Few>(params);
}
