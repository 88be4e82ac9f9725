// The draft tree of each request from its candidates. A block per request, a thread per candidate at a time.
//
// A candidate's rank is how many are better, by score and then by place; the N - 1 best are kept, in their order. A
// node's depth and ancestors come from walking up its parents, at most K steps. Shared memory: two words per candidate,
// one per node and per warp.
#pragma once

#include "element.cuh"
#include "grid.cuh"

constexpr int PACK_THREADS = 256;  // of a block of the op's own
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
__device__ __forceinline__ int rank_of_candidate(const float* scores, int count, int own) {
    const float score = scores[own];
    int better = 0;
    for (int other = 0; other < count; ++other)
        better += scores[other] > score || (scores[other] == score && other < own);
    return better;
}

// Give the kept candidates their nodes, from 1 on in their order: node_of[candidate], 0 where it is not kept.
template <int THREADS>
__device__ __forceinline__ void number_kept(const float* scores, int* node_of, int count, int most, int* kept_by_warp) {
    int before = 0;  // kept among the candidates of earlier rounds
    for (int first = 0; first < count; first += THREADS) {
        const int own = first + threadIdx.x;
        const bool is_kept = own < count && scores[own] > -INFINITY && rank_of_candidate(scores, count, own) < most;
        const unsigned kept = warp_ballot(is_kept);
        block_sync();
        if (lane_id() == 0) kept_by_warp[warp_id()] = __popc(kept);
        block_sync();
        int node = before + 1 + __popc(kept & ((1u << lane_id()) - 1));
        for (int warp = 0; warp < THREADS / 32; ++warp) {
            if (warp < static_cast<int>(warp_id())) node += kept_by_warp[warp];
            before += kept_by_warp[warp];
        }
        if (own < count) node_of[own] = is_kept ? node : 0;
    }
    block_sync();
}

// By all THREADS threads of a block, in its shared memory from `shared` on.
template <int THREADS>
__device__ __forceinline__ void pack_tree(const TreePackParams& params, int request, unsigned char* shared) {
    float* scores = reinterpret_cast<float*>(shared);
    int* node_of = reinterpret_cast<int*>(scores + params.candidates);
    int* parent_of = node_of + params.candidates;
    int* kept_by_warp = parent_of + PACK_MOST_NODES;
    const int count = params.candidates, num_nodes = params.num_nodes;
    const long long first = static_cast<long long>(request) * count;
    const long long row = static_cast<long long>(request) * num_nodes;
    for (int at = threadIdx.x; at < count; at += THREADS) scores[at] = params.scores[first + at];
    if (threadIdx.x < num_nodes) {
        parent_of[threadIdx.x] = -1;  // padding, until a candidate takes the node
        params.token_ids[row + threadIdx.x] = threadIdx.x == 0 ? params.root_ids[request] : -1;
    }
    block_sync();
    number_kept<THREADS>(scores, node_of, count, num_nodes - 1, kept_by_warp);
    for (int at = threadIdx.x; at < count; at += THREADS) {
        if (node_of[at] == 0) continue;
        const long long above = params.candidate_parents[first + at];
        parent_of[node_of[at]] = above < 0 ? 0 : node_of[above];
        params.token_ids[row + node_of[at]] = params.candidate_ids[first + at];
    }
    block_sync();
    if (threadIdx.x >= num_nodes) return;
    const int node = threadIdx.x;
    unsigned long long ancestors = 1ull | 1ull << node;
    long long depth = 0;
    if (parent_of[node] >= 0)
        for (int above = node; above > 0; above = parent_of[above], ++depth) ancestors |= 1ull << above;
    params.parents[row + node] = parent_of[node] > 0 ? parent_of[node] : 0;
    params.depths[row + node] = depth;
    params.ancestors[row + node] = static_cast<long long>(ancestors);
}
