// The kernel's course: see linear.cuh for the products and epilogue.cuh for what they become.
#pragma once

#include "epilogue.cuh"
#include "trace.cuh"

template <class T, int ROW_BLOCKS>
__device__ __forceinline__ void layer_linear(const LayerLinearParams& params) {
    const Cut cut(params, 8 * ROW_BLOCKS);
    const SharedLayout<ROW_BLOCKS> shared(params, cut);
    const int clusters = static_cast<int>(gridDim.x) >> log2(cut.cluster);
    const int first_tile = static_cast<int>(blockIdx.x) >> log2(cut.cluster);
    trace(params, 0);
    grid_dependency_launch();
    if (threadIdx.x == 0) {
        mbarrier_init(shared.x_is_there, 1);
        mbarrier_init(shared.handed_over, 1);
        mbarrier_init(shared.squared, 1);
    }
    if (cut.cluster > 1) cluster_arrive();  // the others may write here
    WeightStream<T> stream(params, cut, shared.ring, first_tile, clusters);
#pragma unroll 1
    for (int stage = 0; stage < STAGES; ++stage) stream.ask(stage);
    Item<T> ahead;
    ahead.describe(params, cut, first_tile, static_cast<int>(threadIdx.x));
    trace(params, 1);
    grid_dependency_wait_after(ahead.largest());
    trace(params, 2);
    if (warp_id() == 0) copy_x<ROW_BLOCKS>(params, cut, shared);
    Factors<T> factors{params, cut};
    if (params.squares != nullptr) factors.begin();
    ahead.load(params);
    if (params.squares != nullptr) factors.finish(shared.factors);
    ahead.load_more(params);
    trace(params, 3);
    block_sync();  // the barriers are there, and the factors
    mbarrier_wait(shared.x_is_there, 0);
    trace(params, 4);
    int stage = 0;
    unsigned parity = 0;
#pragma unroll 1
    for (int tile = first_tile; tile < params.tiles; tile += clusters) {
        float sums[ROW_BLOCKS][4] = {};
        multiply_tile<T, ROW_BLOCKS>(sums, params, cut, shared.x, stream, stage);
        trace(params, 5);
        if (cut.cluster > 1) {
            cluster_wait();  // until the sums of the tile before have been read
            stage_sums<ROW_BLOCKS>(sums, cut, shared);
            exchange_sums<ROW_BLOCKS>(cut, shared, parity);
            parity ^= 1;
        } else {
            if (tile != first_tile) block_sync();
            stage_sums<ROW_BLOCKS>(sums, cut, shared);
            block_sync();
        }
        trace(params, 6);
        if (params.q_norm != nullptr)
            finish_head<T, ROW_BLOCKS>(params, cut, shared, tile, ahead, tile == first_tile, parity ^ 1);
        else
            finish_tile<T, ROW_BLOCKS>(params, cut, shared, tile, ahead, tile == first_tile);
        if (cut.cluster > 1 && tile + clusters < params.tiles) cluster_arrive();
    }
    copy_async_wait<0>();
    trace(params, 7);
}
