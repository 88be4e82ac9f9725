// Entry points, named by the rows they have room for. ELEMENT: bfloat16 or float16; HIDDEN: a row's columns; STAGES_n: boxes
// in the ring of the kernel for n rows.
#include "head.cuh"

extern "C" __device__ const unsigned head_params_bytes = sizeof(HeadParams);

extern "C" __global__ void __launch_bounds__(HEAD_THREADS, 1) layer_head_8_kernel(__grid_constant__ const HeadParams params) {
    head<ELEMENT, 1, STAGES_8>(params);
}

extern "C" __global__ void __launch_bounds__(HEAD_THREADS, 1) layer_head_16_kernel(__grid_constant__ const HeadParams params) {
    head<ELEMENT, 2, STAGES_16>(params);
}

extern "C" __global__ void __launch_bounds__(HEAD_THREADS, 1) layer_head_32_kernel(__grid_constant__ const HeadParams params) {
    head<ELEMENT, 4, STAGES_32>(params);
}

extern "C" __global__ void __launch_bounds__(HEAD_THREADS, 1) layer_head_64_kernel(__grid_constant__ const HeadParams params) {
    head<ELEMENT, 8, STAGES_64>(params);
}
