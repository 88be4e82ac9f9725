// Entry point. ELEMENT: bfloat16 or float16.
#include "silu_mul.cuh"

extern "C" __device__ const unsigned silu_mul_params_bytes = sizeof(SiluMulParams);

extern "C" __global__ void __launch_bounds__(256) silu_mul_kernel(__grid_constant__ const SiluMulParams params) {
    silu_mul_rows<ELEMENT>(params);
}
