// Attention of a tile of query rows over one stretch of a paged KV cache, on tensor cores.
//
// q, out (T, N, D) with strides; k_cache, v_cache (num_blocks, N_kv, block_size, D) contiguous; all 16-byte aligned.
// A tile is S::ROWS packed rows of one request and one K/V head: row r is token r / G, head r % G of the group of
// G = N / N_kv heads that share the keys, so K and V are read once for all of them.
//
// A block has S::KEY_WARPS x S::ROW_WARPS warps. Key warp w takes every KEY_WARPS-th chunk of S::CHUNK keys and keeps a
// softmax of its own (base, sum, weighted values, all float32); row warps share its chunks, each for WARP_ROWS
// rows. At the end the key warps are folded in order. Chunks come by cp.async, S::STAGES deep, into rows padded by 16
// bytes, which makes ldmatrix free of bank conflicts for every D here. Shared memory: S::SHARED_BYTES.
//
// A long context is cut into splits at fixed keys. Each split's result goes to a workspace; the last block of a batch of
// splits folds them in order, and the last one of a tile its batches. Which keys fold in which order depends on their index alone; a chunk or split that a row does not
// see changes nothing (its weights are exact zeros, its rescaling an exact one). So a row's result is the same bit for
// bit whatever rows, requests and shapes S are beside it, as long as KEY_WARPS, CHUNK and the cuts agree.
#pragma once

#include "async_copy.cuh"
#include "attention_plan.cuh"
#include "grid.cuh"
#include "math.cuh"
#include "mma.cuh"

struct AttentionParams {
    const void* q;
    const void* k_cache;
    const void* v_cache;
    void* out;
    const long long* block_tables;  // (B, max_blocks)
    const long long* ancestors;     // (B, num_nodes), or null
    const int* items;               // see attention_plan.cuh
    int* header;                    // of the plan: number of items, see attention_plan.cuh
    float* partial;                 // (slots, N, D) weighted values, (slots, N, 2) base and sum, the latter of batches
    unsigned* counters;             // (tiles, N_kv, tile_counters) batches that are done, then splits of each; 0 before and after
    long long q_token_stride;       // elements, as all strides
    long long q_head_stride;
    long long out_token_stride;
    long long out_head_stride;
    long long num_slots;
    unsigned long long group_inverse;  // 2^32 / G, rounded up: x / G is x * group_inverse >> 32 for x < 2^32 / G
    int group;  // G = N / N_kv
    int num_heads;
    int num_kv_heads;
    int block_shift;  // log2 of block_size
    int max_blocks;
    int max_works;    // (item, K/V head) pairs that the plan has room for
    int num_nodes;
    int window;       // keys a query sees, itself included
    int tile_counters;
    float log2_scale;  // scale * log2(e) > 0: scores are kept as exponents of 2
};
static_assert(sizeof(AttentionParams) == 10 * 8 + 6 * 8 + 10 * 4, "mirrored in cuda.py");

// The token of a packed row.
template <class Params>
__device__ __forceinline__ int token_of(int row, const Params& params) {
    return static_cast<int>(static_cast<unsigned>(row) * params.group_inverse >> 32);
}

constexpr float MINUS_INFINITY = -__builtin_huge_valf();

constexpr float BASE_SLACK = 8.0f;  // exponents of 2

constexpr int SLICE_KEYS = 16;  // lie in one block of the cache: block sizes are multiples

template <bool TREES>
struct VisibleKeys;

template <class Element, int HEAD_DIM_, int KEY_WARPS_, int ROW_WARPS_, int WARP_ROWS_, int CHUNK_, int STAGES_>
struct AttentionConfig {
    using T = Element;
    static constexpr int D = HEAD_DIM_;
    static constexpr int KEY_WARPS = KEY_WARPS_;
    static constexpr int ROW_WARPS = ROW_WARPS_;
    static constexpr int WARP_ROWS = WARP_ROWS_;  // 8: narrow, else 16 or 32
    static constexpr int ROW_TILES = WARP_ROWS / 16;
    static constexpr bool NARROW = WARP_ROWS == 8;
    static constexpr int CHUNK = CHUNK_;  // keys
    static constexpr int STAGES = STAGES_;
    static constexpr bool TREES = KEY_WARPS > 1;  // long requests are chains
    using Keys = typename VisibleKeys<TREES>::Type;
    static constexpr int ROWS = WARP_ROWS * ROW_WARPS;
    static constexpr int GROUP_THREADS = 32 * ROW_WARPS;  // that share a chunk
    static constexpr int THREADS = GROUP_THREADS * KEY_WARPS;
    static constexpr int ROW_BYTES = 2 * D + 16;
    static constexpr int PIECES = D / 8;  // of 16 bytes, per row
    static constexpr int CHUNK_BYTES = CHUNK * ROW_BYTES;
    static constexpr int SLICES = CHUNK / SLICE_KEYS;
    static constexpr int COPIES = CHUNK * PIECES / GROUP_THREADS;  // per thread and chunk, of keys and of values each
    static constexpr int Q_BYTES = ROWS * ROW_BYTES;
    static constexpr int RING_BYTES = KEY_WARPS * STAGES * 2 * CHUNK_BYTES;
    static constexpr int MERGE_COLUMNS = ROWS <= 16 ? D : 32;
    static constexpr int MERGE_STRIDE = MERGE_COLUMNS + (NARROW ? 4 : 8);  // floats; spreads a warp's stores over banks
    static constexpr int MERGE_BYTES = KEY_WARPS > 1 ? KEY_WARPS * ROWS * (MERGE_STRIDE + 2) * 4 : 0;
    static constexpr int WORK_BYTES = RING_BYTES > MERGE_BYTES ? RING_BYTES : MERGE_BYTES;
    static constexpr int FLAG_BYTES = KEY_WARPS > 1 ? 16 : 0;
    static constexpr int FOLD_ROWS = ROWS <= 16 ? 1 : 2;  // whose splits a thread folds at once
    static constexpr int SHARED_BYTES = Q_BYTES + WORK_BYTES + FLAG_BYTES;
    static constexpr bool Q_IN_REGISTERS = ROW_TILES * D <= 128;
    static_assert(D % 16 == 0 && CHUNK % 16 == 0 && STAGES >= 2, "whole fragments, and one chunk under way");
    static_assert(COPIES * GROUP_THREADS == CHUNK * PIECES, "whole rounds of copies");
    static_assert(GROUP_THREADS <= SLICE_KEYS * PIECES, "a round of copies touches two slices at most");
    static_assert(D % MERGE_COLUMNS == 0, "whole column groups");
    static_assert(WARP_ROWS == 8 || WARP_ROWS == 16 || WARP_ROWS == 32, "tiles of the products");
    static_assert(!NARROW || (ROW_WARPS == 1 && D % 32 == 0 && KEY_WARPS > 1), "what NarrowRows does");
};

// One block's task.
struct AttentionTask {
    PlannedItem item;
    int pages;  // lane l: the block of the page l after that of item.key_begin
    int kv_head;
    int first_row;  // packed
    int num_rows;   // packed rows of the tile that exist
};

// What one packed row of a chain sees: the keys before `high` that the window reaches.
struct ChainKeys {
    int high;

    __device__ __forceinline__ ChainKeys() {}
    __device__ __forceinline__ ChainKeys(const AttentionParams& params, const AttentionTask& task, int row) {
        const int token = token_of(task.first_row + row, params);
        high = task.item.context - task.item.rows + token + 1;
    }

    __device__ __forceinline__ bool sees(int key, const AttentionParams& params) const {
        return key < high && key >= high - params.window;
    }
};

// What one packed row of a chain or tree sees: keys in [low, high), and key root + j where bit j of nodes is set.
struct TreeKeys {
    int low;
    int high;
    int root;
    unsigned long long nodes;

    __device__ __forceinline__ TreeKeys() {}
    template <class Params>
    __device__ __forceinline__ TreeKeys(const Params& params, const AttentionTask& task, int row) {
        const int token = token_of(task.first_row + row, params);
        root = task.item.context - task.item.rows;
        high = root + token + 1;
        low = high - params.window;
        nodes = 0;
        if (!task.item.is_tree || row >= task.num_rows) return;
        nodes = params.ancestors[static_cast<long long>(task.item.request) * params.num_nodes + token];
        // Ancestors lie before their descendants, so a window of depths is the highest set bits.
        const int num_seen = __popcll(nodes);
        for (int excess = num_seen - params.window; excess > 0; --excess) nodes &= nodes - 1;
        high = root;
        low = root + num_seen - params.window;
    }

    template <class Params>
    __device__ __forceinline__ bool sees(int key, const Params&) const {
        const unsigned node = static_cast<unsigned>(key - root);
        return (key >= low && key < high) || (node < 64 && (nodes >> node & 1));
    }

    // Bit i: whether it sees key first_key + i, for SLICE_KEYS keys; without a branch.
    __device__ __forceinline__ unsigned seen_in(int first_key) const {
        const auto below = [](int key) { return (1u << min(max(key, 0), SLICE_KEYS)) - 1; };
        const int node = first_key - root;
        const unsigned long long later = node < 64 ? nodes >> max(node, 0) : 0;
        const unsigned from_tree = static_cast<unsigned>(node < 0 ? nodes << min(-node, 63) : later);
        return (below(high - first_key) & ~below(max(low, 0) - first_key)) | from_tree;
    }
};

template <>
struct VisibleKeys<true> {
    using Type = TreeKeys;
};
template <>
struct VisibleKeys<false> {
    using Type = ChainKeys;
};

// Element offset of a packed row of the tile in `out`.
template <class Params>
__device__ __forceinline__ long long out_offset(const Params& params, const AttentionTask& task, int row) {
    const int packed = task.first_row + row;
    const int token = token_of(packed, params);
    const int head = task.kv_head * params.group + packed - token * params.group;
    return (task.item.first_token + token) * params.out_token_stride + head * params.out_head_stride;
}

// A row that has seen no key has base -inf, and no weight but 0.
__device__ __forceinline__ float finite_base(float base) {
    return base == MINUS_INFINITY ? 0.0f : base;
}

// The base follows a row's largest score, but only when that is BASE_SLACK above it: weights up to 2^BASE_SLACK do no
// harm, and most chunks then rescale nothing. Returns what older sums and values are to be multiplied by.
__device__ __forceinline__ float move_base(float& base, float highest) {
    if (!(highest > base + BASE_SLACK)) return 1.0f;
    const float rescale = exp2_fast(base - highest);
    base = highest;
    return rescale;
}
