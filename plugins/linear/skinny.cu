// Entry points, named by the rows of x they have room for. ELEMENT: bfloat16 or float16; TILE_WARPS: 1, 2 or 4.
#include "skinny.cuh"

extern "C" __device__ const unsigned skinny_params_bytes = sizeof(SkinnyParams);

template <int ROW_BLOCKS>
using Layer = Skinny<ELEMENT, TILE_WARPS, 4 / TILE_WARPS, ROW_BLOCKS>;

extern "C" __global__ void __launch_bounds__(SKINNY_THREADS)
    skinny_8_kernel(__grid_constant__ const SkinnyParams params) {
    skinny_linear<Layer<1>>(params);
}

extern "C" __global__ void __launch_bounds__(SKINNY_THREADS)
    skinny_16_kernel(__grid_constant__ const SkinnyParams params) {
    skinny_linear<Layer<2>>(params);
}

extern "C" __global__ void __launch_bounds__(SKINNY_THREADS)
    skinny_32_kernel(__grid_constant__ const SkinnyParams params) {
    skinny_linear<Layer<4>>(params);
}

extern "C" __global__ void __launch_bounds__(SKINNY_THREADS)
    skinny_64_kernel(__grid_constant__ const SkinnyParams params) {
    skinny_linear<Layer<8>>(params);
}
