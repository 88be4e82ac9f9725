// Entry point. ELEMENT: bfloat16 or float16; HEAD_DIM: 64, 96 or 128.
#include "attention_few_block.cuh"

extern "C" __device__ const unsigned attention_few_params_bytes = sizeof(FewParams);

constexpr int STAGES = 2;

extern "C" __global__ void __launch_bounds__(FEW_THREADS, 2)
    attention_few_kernel(__grid_constant__ const FewParams params) {
    attend_few<FewConfig<ELEMENT, HEAD_DIM, STAGES>>(params);
}
