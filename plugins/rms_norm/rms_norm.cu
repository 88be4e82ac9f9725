// Entry points, named by the dtypes of rows, weight and output. ELEMENT: bfloat16 or float16.
#include "rms_norm.cuh"

extern "C" __device__ const unsigned rms_norm_params_bytes = sizeof(RmsNormParams);

extern "C" __global__ void __launch_bounds__(512)
    rms_norm_narrow_kernel(__grid_constant__ const RmsNormParams params) {
    normalise_row<ELEMENT, ELEMENT, ELEMENT, ELEMENT>(params, reinterpret_cast<float*>(shared_memory()));
}

extern "C" __global__ void __launch_bounds__(512)
    rms_norm_wide_kernel(__grid_constant__ const RmsNormParams params) {
    normalise_row<float, ELEMENT, ELEMENT, ELEMENT>(params, reinterpret_cast<float*>(shared_memory()));
}

extern "C" __global__ void __launch_bounds__(512)
    rms_norm_wide_out_kernel(__grid_constant__ const RmsNormParams params) {
    normalise_row<float, ELEMENT, ELEMENT, float>(params, reinterpret_cast<float*>(shared_memory()));
}

extern "C" __global__ void __launch_bounds__(512)
    rms_norm_float_kernel(__grid_constant__ const RmsNormParams params) {
    normalise_row<float, ELEMENT, float, float>(params, reinterpret_cast<float*>(shared_memory()));
}
