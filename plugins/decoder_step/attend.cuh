// Attention of a step's rows over the paged cache, with rotary positions and the cache write.
//
// An item is one request, one key/value head and SPLIT_KEYS keys; a block takes whole items. The query heads of the
// group times the request's rows are the 16 rows of operand A. Each warp has 16 of the keys, whose K and V it takes from
// the cache straight into mma operands, the old ones before the queries are even there; the warps' results are added in
// shared memory. Where a request has several splits, one block adds their results in the keys' order: that of the last
// keys if the splits are few, which waits for the others' words; otherwise the one that ends last.
// The item whose keys include a new token's writes that token's K and V; every item rotates the queries it needs.
#pragma once

#include "heads.cuh"

// A warp's 16 keys as operands. K: keys lane / 4 and + 8, pieces lane % 4 of each 32 dimensions. V: keys
// 2 (lane % 4) + 0, 1, 8 and 9, piece lane / 4 of each 64 dimensions.
struct WarpKeys {
    uint4 k[2][HEAD_STEPS];
    uint4 v[4][HEAD_HALVES];

    __device__ static int k_key(int index) { return int(lane_id()) / 4 + 8 * index; }
    __device__ static int v_key(int index) { return 2 * (int(lane_id()) % 4) + index % 2 + 8 * (index / 2); }
    __device__ static int k_column(int step) { return 32 * step + 8 * (int(lane_id()) % 4); }
    __device__ static int v_column(int half) { return 64 * half + 8 * (int(lane_id()) / 4); }
};

// Keys from `first` to before `end`, old ones out of the cache and new ones out of shared memory. Others stay as they are.
__device__ inline void load_keys(
    WarpKeys& keys, const AttentionLayer& layer, const AttentionItem& item, const AttentionScratch& scratch, int base,
    int first, int end) {
    const auto head = [&](int key, const bfloat16* cache, const char* fresh) {
        return key < item.first_new ? reinterpret_cast<const char*>(cache + cache_row(layer, item, key))
                                    : fresh + (key - item.first_new) * HEAD_PITCH;
    };
#pragma unroll
    for (int index = 0; index < 2; ++index) {
        const int key = base + WarpKeys::k_key(index);
        if (key < first || key >= end) continue;
        const char* k = head(key, layer.k_cache, scratch.keys);
#pragma unroll
        for (int step = 0; step < HEAD_STEPS; ++step) {
            const int column = WarpKeys::k_column(step);
            if (column < HEAD_DIM) keys.k[index][step] = load16(k + column * 2);
        }
    }
#pragma unroll
    for (int index = 0; index < 4; ++index) {
        const int key = base + WarpKeys::v_key(index);
        if (key < first || key >= end) continue;
        const char* v = head(key, layer.v_cache(), scratch.values);
#pragma unroll
        for (int half = 0; half < HEAD_HALVES; ++half) {
            const int column = WarpKeys::v_column(half);
            if (column < HEAD_DIM) keys.v[index][half] = load16(v + column * 2);
        }
    }
}

// Whether a row that sees the new tokens `seen` sees a key of its request.
__device__ inline bool is_visible(
    const StepRows& rows, const AttentionItem& item, unsigned long long seen, int key) {
    const int node = key - item.first_new;
    const bool is_seen = node < 0 || (seen >> (node & (LONGEST_TREE - 1))) & 1;
    if (WINDOW == 0) return is_seen && key < item.end_key;
    // A node's position in the text is the root's plus its depth, the number of its ancestors.
    const int row = item.first_row + max(0, min(node, item.num_rows - 1));
    const int depth = node < 0 ? node : __popcll(rows.seen[row]) - 1;
    return is_seen && key < item.end_key && depth > __popcll(seen) - 1 - WINDOW;
}

// queries . K^T: scores[half] has keys 8 half + 2 (lane % 4) and + 1 for rows lane / 4 and + 8.
__device__ inline void score_keys(float (&scores)[2][4], const WarpKeys& keys, const char* queries) {
    const char* query = queries + int(lane_id()) / 4 * HEAD_PITCH;
    const uint4 zeros = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int step = 0; step < HEAD_STEPS; ++step) {
        const int column = WarpKeys::k_column(step);
        const uint4 low = column < HEAD_DIM ? load16(query + column * 2) : zeros;
        const uint4 high = column < HEAD_DIM ? load16(query + 8 * HEAD_PITCH + column * 2) : zeros;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint4 k = keys.k[half][step];
            mma_16x8x16<bfloat16>(scores[half], {low.x, high.x, low.y, high.y}, {k.x, k.y});
            mma_16x8x16<bfloat16>(scores[half], {low.z, high.z, low.w, high.w}, {k.z, k.w});
        }
    }
}

// Scores to weights under the warp's maximum, which is kept with their sum for the other warps.
__device__ inline void weigh_scores(
    float (&scores)[2][4], const AttentionLayer& layer, const StepRows& rows, const AttentionItem& item,
    const AttentionScratch& scratch, int first_query, int base) {
    const int quad = int(lane_id()) % 4;
    const float scale = layer.params.scale * 1.4426950408889634f;  // for powers of two
#pragma unroll
    for (int low = 0; low < 2; ++low) {
        const int at = int(lane_id()) / 4 + 8 * low;
        const int row = item.first_row + min(first_query + at, item.num_rows * GROUP - 1) / GROUP;
        const unsigned long long seen = rows.seen[row];
        float maximum = -INFINITY;
#pragma unroll
        for (int index = 0; index < 4; ++index) {
            float& score = scores[index / 2][2 * low + index % 2];
            const int key = base + 8 * (index / 2) + 2 * quad + index % 2;
            score = is_visible(rows, item, seen, key) ? score * scale : -INFINITY;
            maximum = fmaxf(maximum, score);
        }
        maximum = fmaxf(maximum, shfl_xor(maximum, 1));
        maximum = fmaxf(maximum, shfl_xor(maximum, 2));
        const float shift = maximum == -INFINITY ? 0.0f : maximum;
        float sum = 0.0f;
#pragma unroll
        for (int index = 0; index < 4; ++index) {
            float& score = scores[index / 2][2 * low + index % 2];
            score = exp2_fast(score - shift);
            sum += score;
        }
        sum += shfl_xor(sum, 1);
        sum += shfl_xor(sum, 2);
        if (quad == 0 && at < QUERY_ROWS) scratch.softmax[warp_id() * QUERY_ROWS + at] = make_float2(maximum, sum);
    }
}

__device__ inline unsigned low_halves(unsigned a, unsigned b) { return (a & 0xFFFFu) | (b << 16); }
__device__ inline unsigned high_halves(unsigned a, unsigned b) { return (a >> 16) | (b & 0xFFFF0000u); }

// weights . V to scratch.outputs. The columns of the product are taken in an order that suits the loads: those of
// product i of a half are dimensions i, 8 + i, 16 + i, ..., so a thread has 16 dimensions in a row.
__device__ inline void weigh_values(const float (&weights)[2][4], const WarpKeys& keys, const AttentionScratch& scratch) {
    const unsigned a[4] = {
        pack2<bfloat16>(weights[0][0], weights[0][1]), pack2<bfloat16>(weights[0][2], weights[0][3]),
        pack2<bfloat16>(weights[1][0], weights[1][1]), pack2<bfloat16>(weights[1][2], weights[1][3])};
    const int at = int(lane_id()) / 4, quad = int(lane_id()) % 4;
#pragma unroll
    for (int half = 0; half < HEAD_HALVES; ++half) {
        float outputs[8][4] = {};
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            const auto word = [i](const uint4& v) { return i == 0 ? v.x : i == 2 ? v.y : i == 4 ? v.z : v.w; };
            const unsigned w0 = word(keys.v[0][half]), w1 = word(keys.v[1][half]);
            const unsigned w2 = word(keys.v[2][half]), w3 = word(keys.v[3][half]);
            mma_16x8x16<bfloat16>(outputs[i], a, {low_halves(w0, w1), low_halves(w2, w3)});
            mma_16x8x16<bfloat16>(outputs[i + 1], a, {high_halves(w0, w1), high_halves(w2, w3)});
        }
        if (64 * half + 16 * quad >= HEAD_DIM) continue;
#pragma unroll
        for (int index = 0; index < 4; ++index) {
            const int row = at + 8 * (index / 2);
            if (row >= QUERY_ROWS) continue;
            float* out = scratch.outputs + (warp_id() * QUERY_ROWS + row) * OUTPUT_PITCH + 64 * half + 16 * quad;
#pragma unroll
            for (int i = 0; i < 8; i += 4)
                *reinterpret_cast<float4*>(out + 8 * (index % 2) + i) =
                    make_float4(outputs[i][index], outputs[i + 1][index], outputs[i + 2][index], outputs[i + 3][index]);
        }
    }
}

__device__ inline unsigned* parts_of(const AttentionLayer& layer, const AttentionItem& item, int row, int head) {
    const bool is_exchanged = item.num_splits <= EXCHANGED_SPLITS;
    return (is_exchanged ? layer.parts() : layer.params.split_parts) +
           (long long)(row * NUM_HEADS + head) * (is_exchanged ? EXCHANGED_SPLITS : layer.params.max_splits) * PART_WORDS;
}

// Add the warps' results of a query tile; publish them, or leave them as this split's.
__device__ inline void combine_warps(
    const AttentionLayer& layer, const AttentionItem& item, const AttentionScratch& scratch, int first_query) {
    const int warps = ceil_div(item.end_key - item.first_key, WARP_KEYS);
    const int queries = min(QUERY_TILE, item.num_rows * GROUP - first_query);
#pragma unroll 1
    for (int index = threadIdx.x; index < queries * (HEAD_DIM / 2); index += CONSUMERS) {
        const int at = index / (HEAD_DIM / 2), column = 2 * (index % (HEAD_DIM / 2));
        float2 softmax[CONSUMER_WARPS], outputs[CONSUMER_WARPS];
        float maximum = -INFINITY;
#pragma unroll
        for (int warp = 0; warp < CONSUMER_WARPS; ++warp) {
            const int part = min(warp, warps - 1) * QUERY_ROWS + at;
            softmax[warp] = scratch.softmax[part];
            outputs[warp] = *reinterpret_cast<const float2*>(scratch.outputs + part * OUTPUT_PITCH + column);
            maximum = fmaxf(maximum, softmax[warp].x);
        }
        const float shift = maximum == -INFINITY ? 0.0f : maximum;
        float sum = 0.0f, first = 0.0f, second = 0.0f;
#pragma unroll
        for (int warp = 0; warp < CONSUMER_WARPS; ++warp) {
            const float weight = warp < warps ? exp2_fast(softmax[warp].x - shift) : 0.0f;
            sum += weight * softmax[warp].y;
            first += weight * outputs[warp].x;
            second += weight * outputs[warp].y;
        }
        const int query = first_query + at, row = item.first_row + query / GROUP;
        const int head = item.head * GROUP + query % GROUP;
        if (item.num_splits == 1) {
            const float factor = reciprocal_fast(sum);
            publish(layer.attended() + (row * Q_SIZE + head * HEAD_DIM + column) / 2,
                    pack2<bfloat16>(first * factor, second * factor));
        } else {
            unsigned* part = parts_of(layer, item, row, head) + item.split * PART_WORDS;
            publish(part + column, first, second);
            if (column == 0) publish(part + HEAD_DIM, maximum, sum);
        }
    }
}

__device__ inline float2 to_floats(const uint2& pair) {
    return make_float2(__uint_as_float(pair.x), __uint_as_float(pair.y));
}

// Add a request's splits in order and publish; what is not there yet is waited for.
__device__ inline void combine_splits(const AttentionLayer& layer, const AttentionItem& item) {
#pragma unroll 1
    for (int begin = 0; begin < item.num_rows * GROUP * (HEAD_DIM / 2); begin += CONSUMERS) {
        const int index = begin + int(threadIdx.x), query = index / (HEAD_DIM / 2);
        const int column = 2 * (index % (HEAD_DIM / 2));
        const bool is_real = query < item.num_rows * GROUP;
        const int row = item.first_row + query / GROUP, head = item.head * GROUP + query % GROUP;
        const unsigned* parts = parts_of(layer, item, row, head);
        float maximum = -INFINITY, sum = 0.0f, first = 0.0f, second = 0.0f;
#pragma unroll 1
        for (int split = 0; split < item.num_splits; split += EXCHANGED_SPLITS) {
            uint2 pairs[2 * EXCHANGED_SPLITS];  // of each split outputs, then maximum and sum
            const auto address = [&](int at) {
                const unsigned* part = parts + (split + at / 2) * PART_WORDS + (at % 2 ? HEAD_DIM : column);
                return is_real && split + at / 2 < item.num_splits ? part : nullptr;
            };
            until_written(pairs, address, [] {});
#pragma unroll
            for (int at = 0; at < EXCHANGED_SPLITS; ++at) {
                if (split + at >= item.num_splits) break;
                const float2 output = to_floats(pairs[2 * at]), state = to_floats(pairs[2 * at + 1]);
                const float larger = fmaxf(maximum, state.x), shift = larger == -INFINITY ? 0.0f : larger;
                const float old_weight = exp2_fast(maximum - shift), new_weight = exp2_fast(state.x - shift);
                sum = sum * old_weight + state.y * new_weight;
                first = first * old_weight + output.x * new_weight;
                second = second * old_weight + output.y * new_weight;
                maximum = larger;
            }
        }
        const float factor = reciprocal_fast(sum);
        if (is_real) publish(layer.attended() + (row * Q_SIZE + head * HEAD_DIM + column) / 2,
                pack2<bfloat16>(first * factor, second * factor));
    }
}

// Whether this block adds the results of the item's request: few splits are added by the block of the last one, many by
// the block that comes here last.
__device__ inline bool is_adder(
    const AttentionLayer& layer, const AttentionItem& item, const AttentionScratch& scratch) {
    if (item.num_splits <= EXCHANGED_SPLITS) return item.num_splits > 1 && item.split == item.num_splits - 1;
    // Releases what the whole block wrote, by way of the barrier at the item's end; the last one wraps the count to 0.
    if (threadIdx.x == 0) {
        unsigned* count = layer.params.split_counts + item.request * NUM_KV_HEADS + item.head;
        *scratch.is_last = increment_wrap(count, item.num_splits - 1) == unsigned(item.num_splits) - 1;
    }
    named_sync(CONSUMER_BARRIER, CONSUMERS);
    const bool is_last = *scratch.is_last;
    named_sync(CONSUMER_BARRIER, CONSUMERS);
    return is_last;
}

__device__ inline void attend_item(
    const AttentionLayer& layer, const StepRows& rows, const AttentionItem& item, const AttentionScratch& scratch) {
    WarpKeys keys = {};
    // Twice the same code: the old keys before the queries are there, the new ones with the first queries.
#pragma unroll 1
    for (int first_query = -QUERY_TILE; first_query < item.num_rows * GROUP; first_query += QUERY_TILE) {
        int base = item.first_key + WARP_KEYS * int(warp_id());
        asm volatile("" : "+r"(base));  // or the addresses of all keys are kept from one turn to the next, in local memory
        if (first_query >= 0) {
            take_heads(layer, rows, item, scratch, first_query);
            named_sync(CONSUMER_BARRIER, CONSUMERS);
        }
        const bool is_first = first_query < 0;
        const int first = is_first ? 0 : item.first_new, end = is_first ? item.first_new : item.end_key;
        if (first_query <= 0 && base < min(end, item.end_key) && base + WARP_KEYS > first)
            load_keys(keys, layer, item, scratch, base, first, min(end, item.end_key));
        if (is_first) continue;
        if (base < item.end_key) {
            float scores[2][4] = {};
            score_keys(scores, keys, scratch.queries);
            weigh_scores(scores, layer, rows, item, scratch, first_query, base);
            weigh_values(scores, keys, scratch);
        }
        named_sync(CONSUMER_BARRIER, CONSUMERS);
        combine_warps(layer, item, scratch, first_query);
        named_sync(CONSUMER_BARRIER, CONSUMERS);
    }
}

// All consumers: this block's items of a layer, and then what waits for other blocks' items, so that no two wait for
// each other. The scratch lies where the activations do.
__device__ inline void attend(
    const AttentionLayer& layer, const StepRows& rows, const AttentionScratch& scratch, int first_item) {
    const int items = rows.item_starts[rows.num_requests];
#pragma unroll 1
    for (int index = first_item; index < items; index += gridDim.x)
        attend_item(layer, rows, find_item(rows, index), scratch);
#pragma unroll 1
    for (int index = first_item; index < items; index += gridDim.x) {
        const AttentionItem item = find_item(rows, index);
        if (is_adder(layer, item, scratch)) combine_splits(layer, item);
    }
}
