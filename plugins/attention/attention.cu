// Entry points. ELEMENT: bfloat16 or float16; HEAD_DIM: 64, 96, 128 or 256.
#include "attention_fold.cuh"

extern "C" __device__ const unsigned attention_params_bytes = sizeof(AttentionParams);

//                                      D         key warps  row warps  row tiles  chunk  stages
using Decode = AttentionConfig<ELEMENT, HEAD_DIM, 4,         1,         1,         16,    3>;
using Tree = AttentionConfig<ELEMENT, HEAD_DIM, 4, 2, HEAD_DIM <= 128 ? 2 : 1, 16, 3>;
using Chunk = AttentionConfig<ELEMENT, HEAD_DIM, 1, HEAD_DIM <= 128 ? 4 : 8, HEAD_DIM <= 128 ? 2 : 1, 64 , 2>;

extern "C" __global__ void __launch_bounds__(Decode::THREADS) attention_decode_kernel(__grid_constant__ const AttentionParams params) {
    grid_dependency_wait();
    grid_dependency_launch();
    attend<Decode>(params, blockIdx.x, gridDim.x, shared_memory());
}

extern "C" __global__ void __launch_bounds__(Tree::THREADS) attention_tree_kernel(__grid_constant__ const AttentionParams params) {
    grid_dependency_wait();
    grid_dependency_launch();
    attend<Tree>(params, blockIdx.x, gridDim.x, shared_memory());
}

extern "C" __global__ void __launch_bounds__(Chunk::THREADS) attention_chunk_kernel(__grid_constant__ const AttentionParams params) {
    grid_dependency_wait();
    grid_dependency_launch();
    attend<Chunk>(params, blockIdx.x, gridDim.x, shared_memory());
}
