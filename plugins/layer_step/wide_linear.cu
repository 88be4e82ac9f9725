// Entry points, named by the rows they have room for; sm_90a. ELEMENT: bfloat16 or float16. RING_STAGES is linear.cuh's.
#include "wide.cuh"

extern "C" __device__ const unsigned wide_linear_params_bytes = sizeof(WideLinearParams);

extern "C" __global__ void __launch_bounds__(WIDE_THREADS, 2)
    wide_linear_8_kernel(__grid_constant__ const WideLinearParams params) {
    wide_linear<ELEMENT, 1>(params);
}

extern "C" __global__ void __launch_bounds__(WIDE_THREADS, 2)
    wide_linear_16_kernel(__grid_constant__ const WideLinearParams params) {
    wide_linear<ELEMENT, 2>(params);
}

extern "C" __global__ void __launch_bounds__(WIDE_THREADS, 2)
    wide_linear_32_kernel(__grid_constant__ const WideLinearParams params) {
    wide_linear<ELEMENT, 4>(params);
}

extern "C" __global__ void __launch_bounds__(WIDE_THREADS, 2)
    wide_linear_64_kernel(__grid_constant__ const WideLinearParams params) {
    wide_linear<ELEMENT, 8>(params);
}
