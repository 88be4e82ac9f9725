// Where each request's work lies: written once per step by one block, read by every layer's attention.
//
// Plan, int32: PLAN_HEADER integers, then the short items, then the long ones, PLAN_ITEM integers each, then what the
// planning block notes of each request. A request of at most SHORT_ROWS tokens is short: its items are its tiles times
// its splits. Any other is long: its items are its tiles. K/V heads come on top of both.
#pragma once

#include "element.cuh"
#include "warp.cuh"

constexpr int PLAN_HEADER = 4;  // integers: short items, long items
constexpr int PLAN_ITEM = 12;   // integers, in PlannedItem's order
constexpr int PLAN_NOTE = 12;   // integers per request
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
    int max_short;     // items that the plan has room for
    int max_long;
};
static_assert(sizeof(AttentionPlanParams) == 5 * 8 + 12 * 4, "mirrored in cuda.py");

// One tile of a request, and the keys it goes over.
struct PlannedItem {
    int request;
    int context;
    int rows;         // tokens of the request
    int is_tree;
    int first_token;  // of the request, in q
    int tile;         // among the request's
    int key_begin;    // keys outside are not read
    int key_end;
    int split;        // among the request's
    int num_splits;
    int first_slot;   // of the workspace: row r, split s has first_slot + s * rows + r
    int counter;      // of the tile
};
static_assert(sizeof(PlannedItem) == PLAN_ITEM * 4, "three words of 16 bytes");

__device__ __forceinline__ PlannedItem load_item(const int* items, int index) {
    const int* from = items + static_cast<long long>(index) * PLAN_ITEM;
    const uint4 a = load16(from), b = load16(from + 4), c = load16(from + 8);
    return {static_cast<int>(a.x), static_cast<int>(a.y), static_cast<int>(a.z), static_cast<int>(a.w),
            static_cast<int>(b.x), static_cast<int>(b.y), static_cast<int>(b.z), static_cast<int>(b.w),
            static_cast<int>(c.x), static_cast<int>(c.y), static_cast<int>(c.z), static_cast<int>(c.w)};
}

__device__ __forceinline__ void store_item(int* items, int index, const PlannedItem& item) {
    int* to = items + static_cast<long long>(index) * PLAN_ITEM;
    const int values[PLAN_ITEM] = {item.request,   item.context, item.rows,  item.is_tree,    item.first_token, item.tile,
                                   item.key_begin, item.key_end, item.split, item.num_splits, item.first_slot,  item.counter};
#pragma unroll
    for (int i = 0; i < PLAN_ITEM; ++i) to[i] = values[i];
}

// What the planning warp finds out about a request.
struct RequestNote {
    int context;
    int rows;
    int is_tree;
    int first_token;
    int first_split;  // absolute: first key / split length
    int num_splits;   // 0: long, or without rows
    int num_tiles;
    int first_slot;
    int first_tile;   // among all short tiles
    int short_end;    // short items up to and including this request's
    int long_end;
    int unused;
};
static_assert(sizeof(RequestNote) == PLAN_NOTE * 4, "notes lie in the plan");

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

// A request's note, but for what depends on the requests before it.
__device__ __forceinline__ RequestNote measure_request(const AttentionPlanParams& params, int index, int split_len) {
    RequestNote note = {};
    if (index >= params.num_requests) return note;
    const long long first = params.query_starts[index];
    const long long context = params.context_lens[index];
    note.first_token = static_cast<int>(first);
    note.rows = static_cast<int>(params.query_starts[index + 1] - first);
    note.context = static_cast<int>(context < params.max_context ? context : params.max_context);
    note.is_tree =
        params.ancestors != nullptr && params.ancestors[static_cast<long long>(index) * params.num_nodes] != 0;
    const int tile = note.rows > SHORT_ROWS ? params.long_tile : params.short_tile;
    note.num_tiles = (note.rows * params.group + tile - 1) / tile;
    if (note.rows > SHORT_ROWS || note.rows == 0) return note;
    const int low = max(note.context - note.rows + 1 - params.window, 0);
    note.first_split = low / split_len;
    note.num_splits = max((note.context + split_len - 1) / split_len - note.first_split, 1);
    return note;
}

// (token, split) pairs of all requests at this split length.
__device__ __forceinline__ long long count_slots(const AttentionPlanParams& params, int split_len) {
    long long slots = 0;
    for (int first = 0; first < params.num_requests; first += 32) {
        const RequestNote note = measure_request(params, first + lane_id(), split_len);
        int total;
        exclusive_sum(note.num_splits > 1 ? note.rows * note.num_splits : 0, total);
        slots += total;
    }
    return slots;
}

// By one warp: every request's note.
__device__ __forceinline__ void note_requests(const AttentionPlanParams& params, RequestNote* notes, int split_len) {
    int short_items = 0, long_items = 0, slots = 0, tiles = 0;
    for (int first = 0; first < params.num_requests; first += 32) {
        const int index = first + static_cast<int>(lane_id());
        RequestNote note = measure_request(params, index, split_len);
        const bool is_long = note.rows > SHORT_ROWS;
        const int my_short = note.num_tiles * note.num_splits;
        const int my_long = is_long ? note.num_tiles : 0;
        int all_short, all_long, all_slots, all_tiles;
        note.short_end = short_items + exclusive_sum(my_short, all_short) + my_short;
        note.long_end = long_items + exclusive_sum(my_long, all_long) + my_long;
        note.first_slot = slots + exclusive_sum(note.num_splits > 1 ? note.rows * note.num_splits : 0, all_slots);
        note.first_tile = tiles + exclusive_sum(is_long ? 0 : note.num_tiles, all_tiles);
        if (index < params.num_requests) notes[index] = note;
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

// The request that has an item: the first whose end is past it.
template <int RequestNote::*END>
__device__ __forceinline__ int find_request(const RequestNote* notes, int num_requests, int item) {
    int low = 0, high = num_requests - 1;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (notes[middle].*END > item) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

__device__ __forceinline__ PlannedItem short_item(const AttentionPlanParams& params, const RequestNote* notes, int item,
                                                  int split_len) {
    const int request = find_request<&RequestNote::short_end>(notes, params.num_requests, item);
    const RequestNote& note = notes[request];
    const int index = item - (note.short_end - note.num_tiles * note.num_splits);
    const int tile = index % note.num_tiles, split = index / note.num_tiles;
    const int first_key = (note.first_split + split) * split_len;
    const int key_begin = max(first_key, note.context - note.rows + 1 - params.window);
    return {request,   note.context, note.rows, note.is_tree, note.first_token, tile,
            key_begin, min(first_key + split_len, note.context), split, note.num_splits, note.first_slot,
            note.first_tile + tile};
}

// The last tiles of a request first: in a chain they see most.
__device__ __forceinline__ PlannedItem long_item(const AttentionPlanParams& params, const RequestNote* notes, int item) {
    const int request = find_request<&RequestNote::long_end>(notes, params.num_requests, item);
    const RequestNote& note = notes[request];
    const int tile = note.long_end - 1 - item;
    const int root = note.context - note.rows;
    const int first_row = tile * params.long_tile;
    const int last_row = min(first_row + params.long_tile, note.rows * params.group) - 1;
    return {request, note.context, note.rows, 0, note.first_token, tile,
            max(root + first_row / params.group + 1 - params.window, 0), root + last_row / params.group + 1, 0, 1, 0, 0};
}

// One block: its first warp notes the requests while the others clear the counters, then all write items.
__device__ __forceinline__ void plan_attention(const AttentionPlanParams& params) {
    int* short_items = params.plan + PLAN_HEADER;
    int* long_items = short_items + static_cast<long long>(params.max_short) * PLAN_ITEM;
    RequestNote* notes = reinterpret_cast<RequestNote*>(long_items + static_cast<long long>(params.max_long) * PLAN_ITEM);
    if (warp_id() == 0) {
        int split_len = params.split_len;
        while (count_slots(params, split_len) > params.num_slots) split_len *= 2;
        note_requests(params, notes, split_len);
    } else {
        for (int i = threadIdx.x - 32; i < params.num_counters; i += blockDim.x - 32) params.counters[i] = 0;
    }
    block_sync();
    const int num_short = params.plan[0], num_long = params.plan[1], split_len = params.plan[2];
    for (int i = threadIdx.x; i < num_short; i += blockDim.x) {
        store_item(short_items, i, short_item(params, notes, i, split_len));
    }
    for (int i = threadIdx.x; i < num_long; i += blockDim.x) store_item(long_items, i, long_item(params, notes, i));
}
