#include "tree_pack.cuh"

extern "C" __device__ const unsigned tree_pack_params_bytes = sizeof(TreePackParams);

extern "C" __global__ void __launch_bounds__(PACK_THREADS)
    tree_pack_kernel(__grid_constant__ const TreePackParams params) {
    pack_tree(params);
}
