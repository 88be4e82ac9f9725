// Entry points, named by a tile's rows. ELEMENT: bfloat16 or float16; HEAD_DIM: 64, 96 or 128; VISIT_SLOTS, RING_STAGES: see
// FewConfig.
#include "attention_few_rows.cuh"

extern "C" __device__ const unsigned attention_few_params_bytes = sizeof(FewParams);

extern "C" __global__ void __launch_bounds__(FEW_THREADS, 2)
    attention_few_16_kernel(__grid_constant__ const FewParams params) {
    attend_few<FewConfig<ELEMENT, HEAD_DIM, 1, VISIT_SLOTS, RING_STAGES>>(params);
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS)
    attention_few_32_kernel(__grid_constant__ const FewParams params) {
    attend_few<FewConfig<ELEMENT, HEAD_DIM, 2, VISIT_SLOTS, RING_STAGES>>(params);
}

extern "C" __global__ void __launch_bounds__(FEW_THREADS)
    attention_few_64_kernel(__grid_constant__ const FewParams params) {
    attend_few<FewConfig<ELEMENT, HEAD_DIM, 4, VISIT_SLOTS, RING_STAGES>>(params);
}
