// Where each request's work lies: written once per step by one block, read by every layer's attention.
//
// Plan, int32: header of PLAN_HEADER, then per request a PlannedRequest as PLAN_RECORD integers, then (B) ends of the
// requests' short items, then (B) of their long ones. A request of at most SHORT_ROWS tokens is short: its items are its
// tiles times its splits. Any other is long: its items are its tiles. K/V heads come on top of both.
#pragma once

#include "warp.cuh"

constexpr int PLAN_HEADER = 8;  // integers: short items, long items, split length, unused
constexpr int PLAN_RECORD = 8;  // integers
constexpr int SHORT_ROWS = 64;  // tokens; a draft tree has no more

struct AttentionPlanParams {
    const long long* query_starts;  // (B + 1,)
    const long long* context_lens;  // (B,)
    const long long* ancestors;     // (B, num_nodes), or null
    int* plan;
    unsigned* counters;
    int num_requests;
    int num_nodes;
    int group;         // N / N_kv
    int short_tile;    // packed rows of a tile
    int long_tile;
    int max_context;   // that the block tables can hold
    int window;
    int split_len;     // keys
    int num_slots;     // (token, split) pairs that the workspace has room for
    int num_counters;
};
static_assert(sizeof(AttentionPlanParams) == 5 * 8 + 10 * 4, "mirrored in cuda.py");

struct PlannedRequest {
    int context;
    int rows;  // tokens
    int is_tree;
    int first_token;  // in q
    int first_item;   // among the short, or the long ones
    int first_split;  // absolute: first key / split length
    int num_splits;   // 0: long
    int first_slot;   // of the workspace; row r, split s has first_slot + s * rows + r
    int first_tile;   // among all short tiles: its counter
};

__device__ __forceinline__ PlannedRequest load_request(const int* plan, int request) {
    const int* record = plan + PLAN_HEADER + request * PLAN_RECORD;
    PlannedRequest result;
    result.context = record[0];
    result.rows = record[1] >> 1;
    result.is_tree = record[1] & 1;
    result.first_token = record[2];
    result.first_item = record[3];
    result.first_split = record[4];
    result.num_splits = record[5];
    result.first_slot = record[6];
    result.first_tile = record[7];
    return result;
}

// How many of the ascending `ends` are <= item: the request that has the item. By a whole warp.
__device__ __forceinline__ int find_request(const int* ends, int num_requests, int item) {
    int before = 0;
    for (int first = 0; first < num_requests; first += 32) {
        const int index = first + static_cast<int>(lane_id());
        const unsigned done = warp_ballot(index < num_requests && ends[index] <= item);
        before += __popc(done);
        if (done != ALL_LANES) break;
    }
    return before;
}

// Sum over the lanes before this one; `total` gets the sum over all.
__device__ __forceinline__ int exclusive_sum(int value, int& total) {
    int sum = value;
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
        const int below = shfl_up(sum, delta);
        if (static_cast<int>(lane_id()) >= delta) sum += below;
    }
    total = shfl(sum, 31);
    return sum - value;
}

// A request's record, but for what depends on the requests before it.
__device__ __forceinline__ PlannedRequest measure_request(const AttentionPlanParams& params, int index, int split_len) {
    PlannedRequest request = {0, 0, 0, 0, 0, 0, 0, 0, 0};
    if (index >= params.num_requests) return request;
    const long long first = params.query_starts[index];
    const long long context = params.context_lens[index];
    request.first_token = static_cast<int>(first);
    request.rows = static_cast<int>(params.query_starts[index + 1] - first);
    request.context = static_cast<int>(context < params.max_context ? context : params.max_context);
    request.is_tree =
        params.ancestors != nullptr && params.ancestors[static_cast<long long>(index) * params.num_nodes] != 0;
    if (request.rows > SHORT_ROWS || request.rows == 0) return request;
    const int low = max(request.context - request.rows + 1 - params.window, 0);
    request.first_split = low / split_len;
    request.num_splits = max((request.context + split_len - 1) / split_len - request.first_split, 1);
    return request;
}

// (token, split) pairs of all requests at this split length.
__device__ __forceinline__ long long count_slots(const AttentionPlanParams& params, int split_len) {
    long long slots = 0;
    for (int first = 0; first < params.num_requests; first += 32) {
        const PlannedRequest request = measure_request(params, first + lane_id(), split_len);
        int total;
        exclusive_sum(request.num_splits > 1 ? request.rows * request.num_splits : 0, total);
        slots += total;
    }
    return slots;
}

// One block; its first warp plans, the others clear the counters.
__device__ __forceinline__ void plan_attention(const AttentionPlanParams& params) {
    if (warp_id() != 0) {
        for (int i = threadIdx.x - 32; i < params.num_counters; i += blockDim.x - 32) params.counters[i] = 0;
        return;
    }
    int split_len = params.split_len;
    while (count_slots(params, split_len) > params.num_slots) split_len *= 2;
    int short_items = 0, long_items = 0, slots = 0, tiles = 0;
    int* ends = params.plan + PLAN_HEADER + params.num_requests * PLAN_RECORD;
    for (int first = 0; first < params.num_requests; first += 32) {
        const int index = first + static_cast<int>(lane_id());
        const PlannedRequest request = measure_request(params, index, split_len);
        const bool is_long = request.rows > SHORT_ROWS;
        const int tile = is_long ? params.long_tile : params.short_tile;
        const int num_tiles = (request.rows * params.group + tile - 1) / tile;
        const int my_short = is_long ? 0 : num_tiles * request.num_splits;
        const int my_long = is_long ? num_tiles : 0;
        const int my_slots = request.num_splits > 1 ? request.rows * request.num_splits : 0;
        int all_short, all_long, all_slots, all_tiles;
        const int first_short = short_items + exclusive_sum(my_short, all_short);
        const int first_long = long_items + exclusive_sum(my_long, all_long);
        const int first_slot = slots + exclusive_sum(my_slots, all_slots);
        const int first_tile = tiles + exclusive_sum(is_long ? 0 : num_tiles, all_tiles);
        if (index < params.num_requests) {
            int* record = params.plan + PLAN_HEADER + index * PLAN_RECORD;
            record[0] = request.context;
            record[1] = request.rows * 2 + request.is_tree;
            record[2] = request.first_token;
            record[3] = is_long ? first_long : first_short;
            record[4] = request.first_split;
            record[5] = request.num_splits;
            record[6] = first_slot;
            record[7] = first_tile;
            ends[index] = first_short + my_short;
            ends[params.num_requests + index] = first_long + my_long;
        }
        short_items += all_short;
        long_items += all_long;
        slots += all_slots;
        tiles += all_tiles;
    }
    if (lane_id() == 0) {
        params.plan[0] = short_items;
        params.plan[1] = long_items;
        params.plan[2] = split_len;
    }
}
