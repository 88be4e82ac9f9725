// Where each request's work lies: written once per step, read by every layer's attention.
//
// Plan, int32: a header, then the short items, then the long ones, PLAN_ITEM integers each. A request of at
// most SHORT_ROWS tokens is short: its items are its tiles times its splits. Any other is long: its items are its
// tiles. K/V heads come on top of both. A column of blocks per request writes that request's items.
#pragma once

#include "element.cuh"
#include "warp.cuh"

constexpr int ITEM_PAGES = 32;               // block ids that travel with an item, one per lane
constexpr int ITEM_FIELDS = 16;              // integers, in PlannedItem's order
constexpr int PLAN_HEADER = 4;               // integers: number of short items, of long items, PLAN_TAKEN of both
constexpr int PLAN_TAKEN = 2;                // from a number of items to how many a kernel has handed out; 0 between layers
constexpr int PLAN_ITEM = ITEM_FIELDS + ITEM_PAGES;
constexpr int SHORT_ROWS = 64;               // tokens; a draft tree has no more

struct AttentionPlanParams {
    const long long* query_starts;  // (B + 1,)
    const long long* context_lens;  // (B,)
    const long long* block_tables;  // (B, max_blocks)
    const long long* ancestors;     // (B, num_nodes), or null
    int* plan;
    unsigned* counters;             // (short tiles, N_kv, tile_counters)
    int num_requests;
    int num_nodes;
    int num_kv_heads;
    int group;        // N / N_kv
    int block_shift;  // log2 of block_size
    int max_blocks;
    int window;
    int short_tile;   // packed rows of a tile
    int long_tile;
    int near_split;    // keys of a split among the first near_keys
    int middle_split;  // keys of a split after them, among the first middle_keys
    int far_split;     // keys of a split after those
    int near_keys;
    int middle_keys;
    int num_slots;    // (token, split) pairs that the workspace has room for
    int max_short;    // items that the plan has room for
    int tile_counters;
    int unused;
};
static_assert(sizeof(AttentionPlanParams) == 6 * 8 + 18 * 4, "mirrored in cuda.py");

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
    int first_split;  // of the request, among all there can be
    int first_slot;   // of the workspace: row r, split s has first_slot + s * rows + r
    int counter;      // of the tile
    int unused[3];
};
static_assert(sizeof(PlannedItem) == ITEM_FIELDS * 4, "four words of 16 bytes");

__device__ __forceinline__ PlannedItem load_item(const int* from) {
    const uint4 a = load16(from), b = load16(from + 4), c = load16(from + 8), d = load16(from + 12);
    return {static_cast<int>(a.x), static_cast<int>(a.y), static_cast<int>(a.z), static_cast<int>(a.w),
            static_cast<int>(b.x), static_cast<int>(b.y), static_cast<int>(b.z), static_cast<int>(b.w),
            static_cast<int>(c.x), static_cast<int>(c.y), static_cast<int>(c.z), static_cast<int>(c.w),
            static_cast<int>(d.x), {}};
}

// By a warp: the item, and the blocks of its first pages.
__device__ __forceinline__ void store_item(const AttentionPlanParams& params, int* to, const PlannedItem& item) {
    const int lane = lane_id();
    if (lane == 0) {
        const int fields[ITEM_FIELDS] = {item.request,     item.context,    item.rows,        item.is_tree,
                                         item.first_token, item.tile,       item.key_begin,   item.key_end,
                                         item.split,       item.num_splits, item.first_split, item.first_slot,
                                         item.counter};
#pragma unroll
        for (int i = 0; i < ITEM_FIELDS; ++i) to[i] = fields[i];
    }
    const int page = (item.key_begin >> params.block_shift) + lane;
    if (page << params.block_shift >= item.key_end) return;
    to[ITEM_FIELDS + lane] =
        static_cast<int>(params.block_tables[static_cast<long long>(item.request) * params.max_blocks + page]);
}

// Where contexts are cut. Cuts lie at the same keys for every request of a step.
struct SplitRule {
    int near_split, middle_split, far_split, num_near, num_middle;

    __device__ __forceinline__ SplitRule(const AttentionPlanParams& params, int factor)
        : near_split(params.near_split * factor),
          middle_split(params.middle_split * factor),
          far_split(params.far_split * factor),
          num_near(params.near_keys / near_split),
          num_middle((params.middle_keys - num_near * near_split) / middle_split) {}

    __device__ __forceinline__ int first_key(int split) const {
        const int near = min(split, num_near), middle = min(split - near, num_middle);
        return near * near_split + middle * middle_split + (split - near - middle) * far_split;
    }

    __device__ __forceinline__ int split_of(int key) const {
        const int near_end = num_near * near_split, middle_end = near_end + num_middle * middle_split;
        if (key < near_end) return key / near_split;
        if (key < middle_end) return num_near + (key - near_end) / middle_split;
        return num_near + num_middle + (key - middle_end) / far_split;
    }
};

// What a request takes.
struct RequestNeed {
    int context;
    int rows;
    int num_tiles;
    int first_split;  // among all there can be
    int num_splits;   // 0: long, or without rows
};

__device__ __forceinline__ RequestNeed request_need(const AttentionPlanParams& params, int index,
                                                    const SplitRule& rule) {
    RequestNeed need = {0, 0, 0, 0, 0};
    if (index >= params.num_requests) return need;
    const long long context = params.context_lens[index];
    const long long most = static_cast<long long>(params.max_blocks) << params.block_shift;
    need.context = static_cast<int>(context < most ? context : most);
    need.rows = static_cast<int>(params.query_starts[index + 1] - params.query_starts[index]);
    const int tile = need.rows > SHORT_ROWS ? params.long_tile : params.short_tile;
    need.num_tiles = (need.rows * params.group + tile - 1) / tile;
    if (need.rows > SHORT_ROWS || need.rows == 0) return need;
    need.first_split = rule.split_of(max(need.context - need.rows + 1 - params.window, 0));
    need.num_splits = max(rule.split_of(max(need.context - 1, 0)) - need.first_split + 1, 1);
    return need;
}

// Sums over requests.
struct PlanSums {
    int short_items, long_items, short_tiles, slots;

    __device__ __forceinline__ void add(const RequestNeed& need) {
        const bool is_long = need.rows > SHORT_ROWS;
        short_items += need.num_tiles * need.num_splits;
        long_items += is_long ? need.num_tiles : 0;
        short_tiles += is_long ? 0 : need.num_tiles;
        slots += need.num_splits > 1 ? need.rows * need.num_splits : 0;
    }

    // Over the lanes of a warp.
    __device__ __forceinline__ void combine() {
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) {
            short_items += shfl_xor(short_items, mask);
            long_items += shfl_xor(long_items, mask);
            short_tiles += shfl_xor(short_tiles, mask);
            slots += shfl_xor(slots, mask);
        }
    }
};

// By a warp: the sums over all requests, and over those before `request`.
__device__ __forceinline__ void sum_needs(const AttentionPlanParams& params, const SplitRule& rule, int request,
                                          PlanSums& all, PlanSums& before) {
    all = before = {0, 0, 0, 0};
    for (int index = lane_id(); index < params.num_requests; index += 32) {
        const RequestNeed need = request_need(params, index, rule);
        all.add(need);
        if (index < request) before.add(need);
    }
    all.combine();
    before.combine();
}

// By a warp: items `first`, `first` + `stride` ... of a short request.
__device__ __forceinline__ void plan_short(const AttentionPlanParams& params, const SplitRule& rule, int request,
                                           const RequestNeed& need, const PlanSums& before, int first, int stride) {
    const int first_token = static_cast<int>(params.query_starts[request]);
    const int is_tree =
        params.ancestors != nullptr && params.ancestors[static_cast<long long>(request) * params.num_nodes] != 0;
    int* items = params.plan + PLAN_HEADER + static_cast<long long>(before.short_items) * PLAN_ITEM;
    for (int index = first; index < need.num_tiles * need.num_splits; index += stride) {
        // The longest splits are the last ones: begun first, they do not end last.
        const int split = need.num_splits - 1 - index / need.num_tiles, tile = index % need.num_tiles;
        const int key_begin =
            max(rule.first_key(need.first_split + split), need.context - need.rows + 1 - params.window);
        const int key_end = min(rule.first_key(need.first_split + split + 1), need.context);
        const PlannedItem item = {request,   need.context, need.rows, is_tree,        first_token,  tile,
                                  key_begin, key_end,      split,     need.num_splits, need.first_split,
                                  before.slots, before.short_tiles + tile, {}};
        store_item(params, items + static_cast<long long>(index) * PLAN_ITEM, item);
    }
    const int per_tile = params.num_kv_heads * params.tile_counters;
    unsigned* counters = params.counters + static_cast<long long>(before.short_tiles) * per_tile;
    for (int i = first * 32 + lane_id(); i < need.num_tiles * per_tile; i += stride * 32) counters[i] = 0;
}

// The same for a long one; its last tiles first: in a chain they see most.
__device__ __forceinline__ void plan_long(const AttentionPlanParams& params, int request, const RequestNeed& need,
                                          const PlanSums& before, int first, int stride) {
    const int first_token = static_cast<int>(params.query_starts[request]);
    const int root = need.context - need.rows;
    int* items =
        params.plan + PLAN_HEADER + (static_cast<long long>(params.max_short) + before.long_items) * PLAN_ITEM;
    for (int index = first; index < need.num_tiles; index += stride) {
        const int tile = need.num_tiles - 1 - index;
        const int first_row = tile * params.long_tile;
        const int last_row = min(first_row + params.long_tile, need.rows * params.group) - 1;
        const int key_begin = max(root + first_row / params.group + 1 - params.window, 0);
        const int key_end = root + last_row / params.group + 1;
        const PlannedItem item = {request,   need.context, need.rows, 0, first_token, tile,
                                  key_begin, key_end,      0,         1, 0,           0,    0, {}};
        store_item(params, items + static_cast<long long>(index) * PLAN_ITEM, item);
    }
}

// Block `part` of `num_parts` of one request. Every warp sums over all requests, which costs less than to tell each other.
__device__ __forceinline__ void plan_request(const AttentionPlanParams& params, int request, int part, int num_parts) {
    PlanSums all, before;
    int factor = 1;
    sum_needs(params, SplitRule(params, factor), request, all, before);
    while (all.slots > params.num_slots) {
        factor *= 2;
        sum_needs(params, SplitRule(params, factor), request, all, before);
    }
    if (request == 0 && part == 0 && threadIdx.x == 0) {
        params.plan[0] = all.short_items;
        params.plan[1] = all.long_items;
        params.plan[PLAN_TAKEN] = params.plan[PLAN_TAKEN + 1] = 0;
    }
    const SplitRule rule(params, factor);
    const RequestNeed need = request_need(params, request, rule);
    const int block_warps = blockDim.x / 32;
    const int warp = part * block_warps + warp_id(), num_warps = num_parts * block_warps;
    if (need.rows > SHORT_ROWS) {
        plan_long(params, request, need, before, warp, num_warps);
    } else {
        plan_short(params, rule, request, need, before, warp, num_warps);
    }
}
