// Entry points, named by the rows they have room for. ELEMENT: bfloat16 or float16; RING_STAGES: steps of weights that a
// warp has under way.
#include "layer_linear.cuh"

extern "C" __device__ const unsigned layer_linear_params_bytes = sizeof(LayerLinearParams);

extern "C" __global__ void __launch_bounds__(THREADS, 3)
    layer_linear_8_kernel(__grid_constant__ const LayerLinearParams params) {
    layer_linear<ELEMENT, 1>(params);
}

extern "C" __global__ void __launch_bounds__(THREADS, 3)
    layer_linear_16_kernel(__grid_constant__ const LayerLinearParams params) {
    layer_linear<ELEMENT, 2>(params);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    layer_linear_32_kernel(__grid_constant__ const LayerLinearParams params) {
    layer_linear<ELEMENT, 4>(params);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    layer_linear_64_kernel(__grid_constant__ const LayerLinearParams params) {
    layer_linear<ELEMENT, 8>(params);
}
