// Entry point. ELEMENT: float, bfloat16 or float16, of the logits.
#include "draft_select.cuh"

extern "C" __device__ const unsigned draft_select_params_bytes = sizeof(DraftSelectParams);

extern "C" __global__ void __launch_bounds__(SELECT_THREADS)
    draft_select_kernel(__grid_constant__ const DraftSelectParams params) {
    select_continuations<ELEMENT>(params);
}
