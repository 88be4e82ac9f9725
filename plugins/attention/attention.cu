// Entry points. ELEMENT: bfloat16 or float16; HEAD_DIM: 64, 96, 128 or 256.
#include "attention_fold.cuh"

extern "C" __device__ const unsigned attention_params_bytes = sizeof(AttentionParams);

// Few warps' rows beside many warps' keys where the keys are what costs; a row's result is the same in the first three.
// The wide heads' sums leave no room for a second tile of rows.
constexpr int TREE_ROWS = HEAD_DIM <= 128 ? 32 : 16;

constexpr int STAGES = HEAD_DIM <= 128 ? 3 : 2;

//                                       D         key warps  row warps                  warp rows  chunk  stages
using Decode = AttentionConfig<ELEMENT, HEAD_DIM, 4,         1,                         8,         16,    STAGES>;
using Group = AttentionConfig<ELEMENT, HEAD_DIM,  4,         1,                         16,        16,    STAGES>;
using Tree = AttentionConfig<ELEMENT, HEAD_DIM,   4,         2,                         TREE_ROWS, 16,    2>;
using Chunk = AttentionConfig<ELEMENT, HEAD_DIM,  1,         HEAD_DIM <= 128 ? 4 : 8,   TREE_ROWS, 64,    2>;

extern "C" __global__ void __launch_bounds__(Decode::THREADS) attention_decode_kernel(__grid_constant__ const AttentionParams params) {
    grid_dependency_wait();
    grid_dependency_launch();
    attend<Decode>(params, blockIdx.x, gridDim.x, shared_memory());
}

extern "C" __global__ void __launch_bounds__(Group::THREADS) attention_group_kernel(__grid_constant__ const AttentionParams params) {
    grid_dependency_wait();
    grid_dependency_launch();
    attend<Group>(params, blockIdx.x, gridDim.x, shared_memory());
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
