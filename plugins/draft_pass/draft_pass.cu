// Entry points, for up to 8 rows and for more. ELEMENT: bfloat16 or float16.
#include "draft_pass.cuh"

extern "C" __device__ const unsigned draft_pass_params_bytes = sizeof(DraftPassParams);

extern "C" __global__ void __launch_bounds__(PASS_THREADS, 1)
    draft_pass_8_kernel(__grid_constant__ const DraftPassParams params) {
    draft_pass<ELEMENT, 1>(params);
}

extern "C" __global__ void __launch_bounds__(PASS_THREADS, 1)
    draft_pass_16_kernel(__grid_constant__ const DraftPassParams params) {
    draft_pass<ELEMENT, 2>(params);
}
