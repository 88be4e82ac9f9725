// How the blocks of the chain learn the next beams without waiting for those that select, where one request drafts with few
// beams: each block of the LM head says of its own tokens, for each row, the largest logit, the softmax's sum and the W best
// tokens; what is best of all follows from these, and every block of the chain works it out for itself. Those that select
// do the same with the sums, so both have the same scores bit for bit and the same beams, and choose the tree's candidates
// meanwhile. (Two tokens of a block whose unequal logits give equal scores may be taken for each other: a branch of the tree
// then is another's.)
//
// A block's pairs of words for a row: (largest, sum), then (logit, token) of its best, its second best, ... They, maxima and
// logits have a set for odd depths and one for even ones, since the chain goes on before they are read.
#pragma once

#include "math.cuh"
#include "params.cuh"
#include "tiles.cuh"

constexpr int MOST_DIRECT = 4;  // beams
constexpr int SUMMARY_PAIRS = 1 + MOST_DIRECT;  // of a block
constexpr int LANE_BLOCKS = 4;                  // that a lane adds up
constexpr int SUMMARY_BLOCKS = 32 * LANE_BLOCKS;
constexpr int DIRECT_TOKEN_BITS = 26;
constexpr float LOG2_OF_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// Orders by score, and of equal scores the lower place first.
__device__ __forceinline__ unsigned long long rank_of(float score, int place) {
    const unsigned bits = __float_as_uint(score + 0.0f);  // -0 ranks as 0
    const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<unsigned long long>(ordered) << 32 | static_cast<unsigned>(~place);
}

__device__ __forceinline__ float score_of(unsigned long long rank) {
    const unsigned ordered = static_cast<unsigned>(rank >> 32);
    return __uint_as_float(ordered & 0x80000000u ? ordered ^ 0x80000000u : ~ordered);
}

__device__ __forceinline__ int place_of(unsigned long long rank) { return static_cast<int>(~static_cast<unsigned>(rank)); }

// The largest of a warp's values.
__device__ __forceinline__ float warp_largest(float value) {
    return score_of(static_cast<unsigned long long>(warp_max(static_cast<unsigned>(rank_of(value, 0) >> 32))) << 32);
}

// Blocks of the LM head that have a tile.
__device__ __forceinline__ int summary_blocks(const DraftPassParams& params) {
    const int blocks = static_cast<int>(gridDim.x) - params.chain_blocks - params.select_blocks;
    return min(blocks, divide_up(params.num_draft, TILE_ROWS));
}

// What a block says of a row.
__device__ __forceinline__ unsigned long long* summary_of(const DraftPassParams& params, int depth, int row, int block) {
    return params.summaries + ((depth % 2 * MOST_DIRECT + row) * SUMMARY_BLOCKS + block) * (2ll * SUMMARY_PAIRS);
}

// The first of the rows of maxima and logits that a depth has.
__device__ __forceinline__ int first_row_of(const DraftPassParams& params, int depth) {
    return params.is_direct ? depth % 2 * MOST_DIRECT : 0;
}

// The highest rank of a warp's lanes.
__device__ __forceinline__ unsigned long long highest(unsigned long long rank) {
    const unsigned high = static_cast<unsigned>(rank >> 32), best = warp_max(high);
    const unsigned low = warp_max(high == best ? static_cast<unsigned>(rank) : 0u);
    return static_cast<unsigned long long>(best) << 32 | low;
}

// By a warp: what makes a row's logits cumulative log-probabilities.
__device__ __forceinline__ float shift_of(const ulonglong2 (&sums)[LANE_BLOCKS], int blocks, float parent_score) {
    float own = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < LANE_BLOCKS; ++i)
        if (32 * i + static_cast<int>(lane_id()) < blocks) own = fmaxf(own, value_of(sums[i].x));
    const float largest = warp_largest(own);
#pragma unroll
    for (int i = 0; i < LANE_BLOCKS; ++i)
        if (32 * i + static_cast<int>(lane_id()) < blocks)
            sum += value_of(sums[i].y) * exp2_fast((value_of(sums[i].x) - largest) * LOG2_OF_E);
    return parent_score - (largest + LN_2 * log2_fast(warp_sum(sum)));
}

// Where the sums of a lane's blocks lie.
__device__ __forceinline__ const unsigned long long* lane_sums(
    const DraftPassParams& params, int depth, int row, int blocks, int i) {
    return summary_of(params, depth, row, min(32 * i + static_cast<int>(lane_id()), blocks - 1));
}

// By the threads of a block of the chain: the best continuations of all rows.
struct Direct {
    unsigned long long ranks[PASS_WARPS * MOST_DIRECT];
    float parents[MOST_DIRECT];

    // Each warp has the tokens of some blocks, of one of `width` rows whose beam scores `parent_score`.
    __device__ void read(const DraftPassParams& params, unsigned tag, int depth, int width, float parent_score) {
        const int warp = static_cast<int>(warp_id()), row = warp % width, blocks = summary_blocks(params);
        const int block = warp / width * 32 + static_cast<int>(lane_id());
        const unsigned long long* tokens = summary_of(params, depth, row, min(block, blocks - 1)) + 2;
        ulonglong2 pairs[LANE_BLOCKS + MOST_DIRECT], sums[LANE_BLOCKS];
        await_pairs(pairs, tag, [&](int i) {
            return i < LANE_BLOCKS ? lane_sums(params, depth, row, blocks, i) : tokens + 2 * (i - LANE_BLOCKS);
        }, LANE_BLOCKS + params.num_beams);
#pragma unroll
        for (int i = 0; i < LANE_BLOCKS; ++i) sums[i] = pairs[i];
        const float shift = shift_of(sums, blocks, parent_score);
        unsigned long long own[MOST_DIRECT];
#pragma unroll
        for (int i = 0; i < MOST_DIRECT; ++i) {
            const ulonglong2& pair = pairs[LANE_BLOCKS + i];
            const int place = row << DIRECT_TOKEN_BITS | static_cast<int>(static_cast<unsigned>(pair.y));
            own[i] = block < blocks && i < params.num_beams ? rank_of(value_of(pair.x) + shift, place) : 0;
        }
#pragma unroll 1
        for (int i = 0; i < params.num_beams; ++i) {
            const unsigned long long rank = highest(own[0]);  // a lane's own descend
            if (lane_id() == 0) ranks[warp * params.num_beams + i] = rank;
            if (own[0] != rank) continue;
#pragma unroll
            for (int next = 1; next < MOST_DIRECT; ++next) own[next - 1] = own[next];
            own[MOST_DIRECT - 1] = 0;
        }
        if (lane_id() == 0 && warp < width) parents[row] = parent_score;
    }

    // By each warp for itself: calls `take(beam, rank)` on all lanes, the best first.
    template <class Take>
    __device__ void choose(int num_beams, Take take) const {
        const int count = PASS_WARPS * num_beams, lane = static_cast<int>(lane_id());
        unsigned long long low = lane < count ? ranks[lane] : 0, high = lane + 32 < count ? ranks[lane + 32] : 0;
#pragma unroll 1
        for (int beam = 0; beam < num_beams; ++beam) {
            const unsigned long long rank = highest(max(low, high));
            take(beam, rank);
            if (low == rank) low = 0;
            if (high == rank) high = 0;
        }
    }
};
static_assert(PASS_WARPS * MOST_DIRECT <= 64, "two ranks a lane");
static_assert(PASS_WARPS % 2 == 0 && PASS_WARPS % 3 == 0 && PASS_WARPS % 4 == 0, "as many warps for each row");
