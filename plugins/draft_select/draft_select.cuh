// The best continuations of each request's beams, from the draft head's logits (B, W, V).
//
// Grid (W, B): a block has one beam. It holds the beam's logits in shared memory, adds up their softmax, and leaves its C
// best, scored, in the workspace; which they are does not depend on the sum. The last block of a request to come there
// picks the C best of those and sorts them. The best of a set are those at or above a threshold on a 56-bit rank, by
// score and then by place, which is found 4 bits at a time.
//
// Shared memory: 4 V bytes (or 8 W C, if more) + SELECT_FIXED_BYTES. Arithmetic is float32; noise is within 2^-15.
#pragma once

#include "element.cuh"
#include "grid.cuh"
#include "math.cuh"
#include "noise.cuh"

constexpr int SELECT_THREADS = 256;
constexpr int SELECT_WARPS = SELECT_THREADS / 32;
constexpr int SELECT_BITS = 4;
constexpr int SELECT_BINS = 1 << SELECT_BITS;
constexpr int PLACE_BITS = 24;
constexpr int SELECT_RANK_BITS = 32 + PLACE_BITS;
constexpr int MOST_KEPT = 64;  // C
constexpr int SELECT_FIXED_BYTES = SELECT_BINS * SELECT_THREADS * 2 + 2048;

struct Continuation {
    float score;
    int place;  // beam * V + index
};

struct DraftSelectParams {
    const void* logits;            // (B, W, V)
    const float* beam_scores;      // (B, W)
    const long long* beam_nodes;   // (B, W)
    const long long* vocab_ids;    // (V,)
    const float* temperature;      // (B,), or null: no noise
    const long long* seed;         // (B,), likewise the next two
    const long long* sample_index;
    const long long* position;
    long long* token_ids;  // (B, C), likewise the rest
    long long* beams;
    long long* parents;
    float* scores;
    Continuation* kept;  // (B, W, C)
    unsigned* counters;  // (B,), zero, and left so
    int num_draft;       // V
    int count;           // C
};
static_assert(sizeof(DraftSelectParams) == 14 * 8 + 2 * 4, "mirrored in cuda.py");

struct SelectShared {
    unsigned short bins[SELECT_BINS][SELECT_THREADS];
    int totals[SELECT_BINS];
    float partials[SELECT_WARPS];
    Continuation best[MOST_KEPT];
    int num_best;
    int is_last;
};
static_assert(sizeof(SelectShared) <= SELECT_FIXED_BYTES, "SELECT_FIXED_BYTES");

__device__ __forceinline__ unsigned long long select_rank(float score, int place) {
    const unsigned bits = __float_as_uint(score + 0.0f);  // -0 ranks as 0
    const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<unsigned long long>(ordered) << PLACE_BITS | ((1u << PLACE_BITS) - 1 - place);
}

// The threshold that exactly `wanted` of `size` ranks, at least as many, reach. `rank_at(i)` gives the i-th.
template <class RankAt>
__device__ __forceinline__ unsigned long long select_threshold(
    SelectShared& shared, int size, int wanted, RankAt rank_at) {
    unsigned long long prefix = 0;
    int above = 0;
    for (int shift = SELECT_RANK_BITS - SELECT_BITS; shift >= 0; shift -= SELECT_BITS) {
        for (int bin = 0; bin < SELECT_BINS; ++bin) shared.bins[bin][threadIdx.x] = 0;
        for (int at = threadIdx.x; at < size; at += SELECT_THREADS) {
            const unsigned long long rank = rank_at(at);
            if (rank >> (shift + SELECT_BITS) == prefix) ++shared.bins[(rank >> shift) % SELECT_BINS][threadIdx.x];
        }
        block_sync();
        for (int bin = warp_id(); bin < SELECT_BINS; bin += SELECT_WARPS) {
            int total = 0;
            for (int at = lane_id(); at < SELECT_THREADS; at += 32) total += shared.bins[bin][at];
            for (int mask = 16; mask > 0; mask /= 2) total += shfl_xor(total, mask);
            if (lane_id() == 0) shared.totals[bin] = total;
        }
        block_sync();
        int bin = SELECT_BINS - 1;
        while (bin > 0 && above + shared.totals[bin] < wanted) above += shared.totals[bin--];
        prefix = prefix << SELECT_BITS | bin;
        const bool is_found = above + shared.totals[bin] == wanted;
        block_sync();
        if (is_found) return prefix << shift;
    }
    return prefix;
}

__device__ __forceinline__ float block_reduce(SelectShared& shared, float value, bool is_max) {
    value = is_max ? warp_max(value) : warp_sum(value);
    block_sync();
    if (lane_id() == 0) shared.partials[warp_id()] = value;
    block_sync();
    float total = shared.partials[0];
    for (int warp = 1; warp < SELECT_WARPS; ++warp)
        total = is_max ? fmaxf(total, shared.partials[warp]) : total + shared.partials[warp];
    return total;
}

// Load a beam's logits, with the noise of the request's draw; return log(sum(exp)) of them.
template <class T>
__device__ __forceinline__ float load_beam(const DraftSelectParams& params, SelectShared& shared, float* logits) {
    const int request = blockIdx.y;
    const T* from = static_cast<const T*>(params.logits) +
                    (static_cast<long long>(request) * gridDim.x + blockIdx.x) * params.num_draft;
    const float temperature = params.temperature == nullptr ? 0.0f : params.temperature[request];
    NoiseKey key = {};
    if (temperature > 0) {
        const unsigned long long seed = params.seed[request];
        key = {static_cast<unsigned>(seed), static_cast<unsigned>(seed >> 32),
               static_cast<unsigned>(params.sample_index[request]), static_cast<unsigned>(params.position[request])};
    }
    float largest = -INFINITY;
    for (int at = threadIdx.x; at < params.num_draft; at += SELECT_THREADS) {
        float logit = to_float(from[at]);
        if (temperature > 0)
            logit += temperature * gumbel_fast(noise_word(key, static_cast<unsigned>(params.vocab_ids[at])));
        logits[at] = logit;
        largest = fmaxf(largest, logit);
    }
    constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;
    largest = block_reduce(shared, largest, true);
    float sum = 0;
    for (int at = threadIdx.x; at < params.num_draft; at += SELECT_THREADS)
        sum += exp2_fast((logits[at] - largest) * LOG2_E);
    return largest + LN_2 * log2_fast(block_reduce(shared, sum, false));
}

// The request's best of what its beams have kept, sorted.
__device__ __forceinline__ void merge_beams(
    const DraftSelectParams& params, SelectShared& shared, Continuation* held, int size) {
    const Continuation* kept = params.kept + static_cast<long long>(blockIdx.y) * size;
    for (int at = threadIdx.x; at < size; at += SELECT_THREADS) held[at] = kept[at];
    if (threadIdx.x == 0) shared.num_best = 0;
    block_sync();
    const auto rank_of = [&](const Continuation& entry) { return select_rank(entry.score, entry.place); };
    const unsigned long long threshold =
        select_threshold(shared, size, params.count, [&](int at) { return rank_of(held[at]); });
    for (int at = threadIdx.x; at < size; at += SELECT_THREADS)
        if (rank_of(held[at]) >= threshold) shared.best[atomicAdd(&shared.num_best, 1)] = held[at];
    block_sync();
    if (threadIdx.x >= params.count) return;
    const Continuation own = shared.best[threadIdx.x];
    int better = 0;
    for (int other = 0; other < params.count; ++other) better += rank_of(shared.best[other]) > rank_of(own);
    const int beam = own.place / params.num_draft, target = blockIdx.y * params.count + better;
    params.token_ids[target] = params.vocab_ids[own.place % params.num_draft];
    params.beams[target] = beam;
    params.parents[target] = params.beam_nodes[blockIdx.y * gridDim.x + beam];
    params.scores[target] = own.score;
}

template <class T>
__device__ __forceinline__ void select_continuations(const DraftSelectParams& params) {
    SelectShared& shared = *reinterpret_cast<SelectShared*>(shared_memory());
    float* logits = reinterpret_cast<float*>(shared_memory() + SELECT_FIXED_BYTES);
    grid_dependency_launch();
    grid_dependency_wait();
    const int beam = blockIdx.x, first = beam * params.num_draft;
    const int kept_per_beam = min(params.count, params.num_draft);
    const float shift = params.beam_scores[blockIdx.y * gridDim.x + beam] - load_beam<T>(params, shared, logits);
    if (threadIdx.x == 0) shared.num_best = 0;
    const auto rank_at = [&](int at) { return select_rank(logits[at], at); };
    const unsigned long long threshold = select_threshold(shared, params.num_draft, kept_per_beam, rank_at);
    Continuation* kept =
        params.kept + (static_cast<long long>(blockIdx.y) * gridDim.x + beam) * kept_per_beam;
    for (int at = threadIdx.x; at < params.num_draft; at += SELECT_THREADS)
        if (rank_at(at) >= threshold) kept[atomicAdd(&shared.num_best, 1)] = {logits[at] + shift, first + at};
    block_sync();
    if (threadIdx.x == 0) {
        const unsigned before = add_acquire_release(params.counters + blockIdx.y, 1);
        shared.is_last = before == gridDim.x - 1;
        if (shared.is_last) params.counters[blockIdx.y] = 0;
    }
    block_sync();
    if (shared.is_last)
        merge_beams(params, shared, reinterpret_cast<Continuation*>(logits), kept_per_beam * gridDim.x);
}
