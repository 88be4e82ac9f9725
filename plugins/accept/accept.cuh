// The path through each draft tree that the target's tokens take. A warp per request; a lane has nodes l and l + 32.
#pragma once

#include "grid.cuh"

constexpr int ACCEPT_MOST_NODES = 64;
constexpr int ACCEPT_WARPS = 4;  // of a block

struct AcceptParams {
    const long long* tree_ids;  // (B, N), likewise the next three
    const long long* parents;
    const long long* depths;
    const long long* drawn;
    long long* token_ids;  // (B, levels)
    long long* nodes;
    long long* counts;  // (B,)
    int requests;
    int num_nodes;
    int levels;  // K + 1
    int unused;
};
static_assert(sizeof(AcceptParams) == 7 * 8 + 4 * 4, "mirrored in cuda.py");

__device__ __forceinline__ void accept_paths(const AcceptParams& params) {
    grid_dependency_launch();
    grid_dependency_wait();
    const int request = blockIdx.x * ACCEPT_WARPS + warp_id(), lane = lane_id();
    if (request >= params.requests) return;
    long long ids[2] = {}, parents[2] = {}, drawn[2] = {};
    bool is_child[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (lane + 32 * half >= params.num_nodes) continue;
        const int at = request * params.num_nodes + lane + 32 * half;
        ids[half] = params.tree_ids[at];
        parents[half] = params.parents[at];
        drawn[half] = params.drawn[at];
        is_child[half] = params.depths[at] > 0;
    }
    int node = 0, count = 0;
    bool alive = true;
    for (int level = 0; level < params.levels; ++level) {
        const long long low = shfl(drawn[0], node % 32), high = shfl(drawn[1], node % 32);
        const long long token = node < 32 ? low : high;
        if (lane == 0) {
            params.token_ids[request * params.levels + level] = token;
            params.nodes[request * params.levels + level] = node;
        }
        count += alive;
        const unsigned first = warp_ballot(is_child[0] && parents[0] == node && ids[0] == token);
        const unsigned second = warp_ballot(is_child[1] && parents[1] == node && ids[1] == token);
        alive = alive && (first | second) != 0;
        if (alive) node = first != 0 ? __ffs(first) - 1 : 31 + __ffs(second);
    }
    if (lane == 0) params.counts[request] = count;
}
