#include "kv_compact.cuh"

extern "C" __device__ const unsigned kv_compact_params_bytes = sizeof(KvCompactParams);

extern "C" __global__ void __launch_bounds__(128) kv_compact_kernel(__grid_constant__ const KvCompactParams params) {
    compact_path(params);
}
