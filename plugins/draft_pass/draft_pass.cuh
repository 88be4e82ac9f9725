// The whole drafting of ReDrafter trees in one cooperative launch: K steps of beam search with the draft head, then the
// trees. Grid: chain_blocks | select_blocks | blocks of the LM head, one block on each multiprocessor; 384 threads.
//
// At each depth results go round: beams -> chain (L + 1 phases) -> LM head -> select -> beams. No barrier of the grid
// lies between: each waits for the words that it needs (exchange.cuh). Weights stay in shared memory for all depths as
// far as it holds them, so that only the first depth waits for memory.
//
// Weights and what is published of s and y are ELEMENT; sums, y, logits and scores float32; noise is within 2^-15.
// Embedding and weights aligned to 16 bytes, words to as many as there are in a row; H and E multiples of 32.
// Shared memory: plan.py.
#pragma once

#include "chain.cuh"
#include "head.cuh"
#include "select.cuh"

// Which launch of its kind this is, as the first tag says it. What the stream's earlier kernels wrote is there from now on.
__device__ __forceinline__ unsigned begin_launch(const DraftPassParams& params) {
    grid_dependency_wait();
    const unsigned launch = params.launches[blockIdx.x];
    block_sync();
    if (threadIdx.x == 0) params.launches[blockIdx.x] = launch + 1;
    return launch << DEPTH_BITS;
}

template <class T, int ROW_BLOCKS>
__device__ __forceinline__ void draft_pass(const DraftPassParams& params) {
    grid_dependency_launch();
    const int block = blockIdx.x;
    if (block < params.chain_blocks) {
        Chain<T, ROW_BLOCKS> chain(params);  // asks for its weights, which no kernel writes
        chain.run(begin_launch(params));
    } else if (block < params.chain_blocks + params.select_blocks) {
        Select(params, begin_launch(params)).run();
    } else {
        Head<T, ROW_BLOCKS>(params, begin_launch(params)).run();
    }
}
