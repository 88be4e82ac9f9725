// The draft tree of each request from its candidates. A block per request, a thread per candidate at a time.
//
// A candidate's rank is how many are better, by score and then by place; the N - 1 best are kept, in their order. A
// node's depth and ancestors come from walking up its parents, at most K steps. Shared memory: two words per candidate,
// one per node and per warp.
#pragma once

#include "element.cuh"
#include "grid.cuh"

constexpr int PACK_THREADS = 256;
constexpr int PACK_MOST_NODES = 64;

struct TreePackParams {
    const long long* candidate_ids;      // (B, C)
    const long long* candidate_parents;  // (B, C), -1 for a child of the root
    const float* scores;                 // (B, C), -inf marks no candidate
    const long long* root_ids;           // (B,)
    long long* token_ids;                // (B, N), likewise the next three
    long long* parents;
    long long* depths;
    long long* ancestors;
    int candidates;  // C
    int num_nodes;   // N
};
static_assert(sizeof(TreePackParams) == 8 * 8 + 2 * 4, "mirrored in cuda.py");

// How many of the request's candidates are better than candidate `own`.
__device__ __forceinline__ int rank_among(const float* scores, int count, int own) {
    const float score = scores[own];
    int better = 0;
    for (int other = 0; other < count; ++other)
        better += scores[other] > score || (scores[other] == score && other < own);
    return better;
}

// Give the kept candidates their nodes, from 1 on in their order: node_of[candidate], 0 where it is not kept.
__device__ __forceinline__ void number_kept(const float* scores, int* node_of, int count, int most, int* kept_by_warp) {
    int before = 0;  // kept among the candidates of earlier rounds
    for (int first = 0; first < count; first += PACK_THREADS) {
        const int own = first + threadIdx.x;
        const bool is_kept = own < count && scores[own] > -INFINITY && rank_among(scores, count, own) < most;
        const unsigned kept = warp_ballot(is_kept);
        block_sync();
        if (lane_id() == 0) kept_by_warp[warp_id()] = __popc(kept);
        block_sync();
        int node = before + 1 + __popc(kept & ((1u << lane_id()) - 1));
        for (int warp = 0; warp < PACK_THREADS / 32; ++warp) {
            if (warp < static_cast<int>(warp_id())) node += kept_by_warp[warp];
            before += kept_by_warp[warp];
        }
        if (own < count) node_of[own] = is_kept ? node : 0;
    }
    block_sync();
}

// Parents, depths and ancestors of a request's nodes from each node's parent, -1 where padding.
__device__ __forceinline__ void write_links(
    long long* parents, long long* depths, long long* ancestors, const int* parent_of, int num_nodes) {
    const int node = threadIdx.x;
    if (node >= num_nodes) return;
    unsigned long long seen = 1ull | 1ull << node;
    long long depth = 0;
    if (parent_of[node] >= 0)
        for (int above = node; above > 0; above = parent_of[above], ++depth) seen |= 1ull << above;
    parents[node] = parent_of[node] > 0 ? parent_of[node] : 0;
    depths[node] = depth;
    ancestors[node] = static_cast<long long>(seen);
}

__device__ __forceinline__ void pack_tree(const TreePackParams& params) {
    float* scores = reinterpret_cast<float*>(shared_memory());
    int* node_of = reinterpret_cast<int*>(scores + params.candidates);
    int* parent_of = node_of + params.candidates;
    int* kept_by_warp = parent_of + PACK_MOST_NODES;
    grid_dependency_launch();
    grid_dependency_wait();
    const int count = params.candidates, num_nodes = params.num_nodes;
    const long long first = static_cast<long long>(blockIdx.x) * count;
    const long long row = static_cast<long long>(blockIdx.x) * num_nodes;
    for (int at = threadIdx.x; at < count; at += PACK_THREADS) scores[at] = params.scores[first + at];
    if (threadIdx.x < num_nodes) {
        parent_of[threadIdx.x] = -1;  // padding, until a candidate takes the node
        params.token_ids[row + threadIdx.x] = threadIdx.x == 0 ? params.root_ids[blockIdx.x] : -1;
    }
    block_sync();
    number_kept(scores, node_of, count, num_nodes - 1, kept_by_warp);
    for (int at = threadIdx.x; at < count; at += PACK_THREADS) {
        if (node_of[at] == 0) continue;
        const long long above = params.candidate_parents[first + at];
        parent_of[node_of[at]] = above < 0 ? 0 : node_of[above];
        params.token_ids[row + node_of[at]] = params.candidate_ids[first + at];
    }
    block_sync();
    write_links(params.parents + row, params.depths + row, params.ancestors + row, parent_of, num_nodes);
}
