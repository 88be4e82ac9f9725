// Entry points, named by a block's tiles and rows. ELEMENT: bfloat16 or float16; HIDDEN, INTERMEDIATE, NUM_HEADS,
// NUM_KV_HEADS, HEAD_DIM: the model's sizes.
#include "small_linear.cuh"

extern "C" __device__ const unsigned small_linear_params_bytes = sizeof(LayerLinearParams);

template <int TILES, int ROWS>
using Qkv = Shape<ELEMENT, QKV, (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM, HIDDEN, TILES, ROWS / 8>;
template <int TILES, int ROWS>
using Dense = Shape<ELEMENT, RESIDUAL, HIDDEN, NUM_HEADS * HEAD_DIM, TILES, ROWS / 8>;
template <int TILES, int ROWS>
using GateUp = Shape<ELEMENT, GATED, 2 * INTERMEDIATE, HIDDEN, TILES, ROWS / 8>;
template <int TILES, int ROWS>
using Down = Shape<ELEMENT, RESIDUAL, HIDDEN, INTERMEDIATE, TILES, ROWS / 8>;

extern "C" __global__ void __launch_bounds__(Qkv<1, 8>::THREADS, 2)
    layer_small_qkv_1_8_kernel(__grid_constant__ const LayerLinearParams params) {
    small_linear<Qkv<1, 8>>(params);
}

extern "C" __global__ void __launch_bounds__(Qkv<1, 16>::THREADS, 2)
    layer_small_qkv_1_16_kernel(__grid_constant__ const LayerLinearParams params) {
    small_linear<Qkv<1, 16>>(params);
}

extern "C" __global__ void __launch_bounds__(Qkv<1, 32>::THREADS, 2)
    layer_small_qkv_1_32_kernel(__grid_constant__ const LayerLinearParams params) {
    small_linear<Qkv<1, 32>>(params);
}

extern "C" __global__ void __launch_bounds__(Dense<1, 8>::THREADS, 2)
    layer_small_dense_1_8_kernel(__grid_constant__ const LayerLinearParams params) {
    small_linear<Dense<1, 8>>(params);
}

extern "C" __global__ void __launch_bounds__(Dense<1, 16>::THREADS, 2)
    layer_small_dense_1_16_kernel(__grid_constant__ const LayerLinearParams params) {
    small_linear<Dense<1, 16>>(params);
}

extern "C" __global__ void __launch_bounds__(GateUp<1, 8>::THREADS, 2)
    layer_small_gate_up_1_8_kernel(__grid_constant__ const LayerLinearParams params) {
    small_linear<GateUp<1, 8>>(params);
}

extern "C" __global__ void __launch_bounds__(GateUp<2, 8>::THREADS, 2)
    layer_small_gate_up_2_8_kernel(__grid_constant__ const LayerLinearParams params) {
    small_linear<GateUp<2, 8>>(params);
}

extern "C" __global__ void __launch_bounds__(GateUp<3, 8>::THREADS, 2)
    layer_small_gate_up_3_8_kernel(__grid_constant__ const LayerLinearParams params) {
    small_linear<GateUp<3, 8>>(params);
}

extern "C" __global__ void __launch_bounds__(GateUp<2, 16>::THREADS, 2)
    layer_small_gate_up_2_16_kernel(__grid_constant__ const LayerLinearParams params) {
    small_linear<GateUp<2, 16>>(params);
}

extern "C" __global__ void __launch_bounds__(GateUp<3, 16>::THREADS, 2)
    layer_small_gate_up_3_16_kernel(__grid_constant__ const LayerLinearParams params) {
    small_linear<GateUp<3, 16>>(params);
}

extern "C" __global__ void __launch_bounds__(Down<1, 8>::THREADS, 2)
    layer_small_down_1_8_kernel(__grid_constant__ const LayerLinearParams params) {
    small_linear<Down<1, 8>>(params);
}

extern "C" __global__ void __launch_bounds__(Down<1, 16>::THREADS, 2)
    layer_small_down_1_16_kernel(__grid_constant__ const LayerLinearParams params) {
    small_linear<Down<1, 16>>(params);
}
