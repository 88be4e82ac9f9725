#include "accept.cuh"

extern "C" __device__ const unsigned accept_params_bytes = sizeof(AcceptParams);

extern "C" __global__ void __launch_bounds__(32 * ACCEPT_WARPS)
    accept_kernel(__grid_constant__ const AcceptParams params) {
    accept_paths(params);
}
