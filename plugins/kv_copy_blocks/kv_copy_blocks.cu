#include "kv_copy_blocks.cuh"

extern "C" __device__ const unsigned kv_copy_blocks_params_bytes = sizeof(KvCopyBlocksParams);

extern "C" __global__ void __launch_bounds__(256)
    kv_copy_blocks_kernel(__grid_constant__ const KvCopyBlocksParams params) {
    copy_block(params);
}
