// Entry points. ELEMENT: bfloat16 or float16; HEAD_DIM: 64, 96, 128 or 256.
#include "attention_fold.cuh"

extern "C" __device__ const unsigned attention_params_bytes = sizeof(AttentionParams);

// sm_90 and sm_100 have 227 KiB of shared memory per block, others as little as 99. Threads and rows are the same on
// all, so that the host's numbers fit an image that was built for another arch.
#if __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000
constexpr bool LARGE = true;
#else
constexpr bool LARGE = false;
#endif
constexpr bool WIDE = HEAD_DIM > 128;  // heads whose keys and sums leave little room
constexpr int KEY_WARPS = WIDE ? 2 : 4;
constexpr int STAGES = WIDE || (HEAD_DIM > 96 && !LARGE) ? 2 : 3;
constexpr int TREE_ROWS = WIDE ? 16 : 32;
constexpr int CHUNK_KEYS = LARGE || HEAD_DIM <= 96 ? 64 : WIDE ? 16 : 32;

// A row's result is the same in all but the last.
//                                                key warps  row warps     warp rows  chunk       stages
using Decode = AttentionConfig<ELEMENT, HEAD_DIM, KEY_WARPS, 1,            8,         16,         STAGES>;
using Group = AttentionConfig<ELEMENT, HEAD_DIM,  KEY_WARPS, 1,            16,        16,         STAGES>;
using SmallTree = AttentionConfig<ELEMENT, HEAD_DIM, KEY_WARPS, 2,         16,        16,         2>;
using Tree = AttentionConfig<ELEMENT, HEAD_DIM,   KEY_WARPS, 2,            TREE_ROWS, 16,         2>;
using Chunk = AttentionConfig<ELEMENT, HEAD_DIM,  1,         WIDE ? 8 : 4, TREE_ROWS, CHUNK_KEYS, 2>;

extern "C" __global__ void __launch_bounds__(Decode::THREADS)
    attention_decode_kernel(__grid_constant__ const AttentionParams params) {
    grid_dependency_wait();
    grid_dependency_launch();
    attend<Decode>(params, shared_memory());
}

extern "C" __global__ void __launch_bounds__(Group::THREADS)
    attention_group_kernel(__grid_constant__ const AttentionParams params) {
    grid_dependency_wait();
    grid_dependency_launch();
    attend<Group>(params, shared_memory());
}

extern "C" __global__ void __launch_bounds__(SmallTree::THREADS)
    attention_small_tree_kernel(__grid_constant__ const AttentionParams params) {
    grid_dependency_wait();
    grid_dependency_launch();
    attend<SmallTree>(params, shared_memory());
}

extern "C" __global__ void __launch_bounds__(Tree::THREADS)
    attention_tree_kernel(__grid_constant__ const AttentionParams params) {
    grid_dependency_wait();
    grid_dependency_launch();
    attend<Tree>(params, shared_memory());
}

extern "C" __global__ void __launch_bounds__(Chunk::THREADS)
    attention_chunk_kernel(__grid_constant__ const AttentionParams params) {
    grid_dependency_wait();
    grid_dependency_launch();
    attend<Chunk>(params, shared_memory());
}
