// Attention of a step of few rows, without a plan: what there is to read is asked for before the launch is waited for
// whose queries, keys and values are new.
//
// q, out (T, N, D) with strides; k_cache, v_cache (num_blocks, N_kv, block_size, D) contiguous; all 16-byte aligned.
// A tile is 16 packed rows of one request and one K/V head, as in attention.cuh. A block has one tile, and S::GROUPS
// groups of 4 warps. A group goes over its keys in visits of S::KEYS. Of a visit's keys a warp has S::SLOTS chunks of 16
// and multiplies them with all rows; the rows' largest scores meet in shared memory, and so do the weights, of which
// every warp takes all for its columns of the values. So nothing is left to fold between a group's warps.
//
// SUBS visits after each other are a sweep, and sweep w belongs to part w % PARTS. Each visit of a sweep has a softmax of
// its own over the part's sweeps; a part's are folded in order, and then the parts. The blocks of a cluster have equal
// shares of the parts; those of the others come to the first one's shared memory. So which keys meet in which order
// depends on their index alone, and a row's result is the same bit for bit whatever rows, requests and clusters there
// are. Shared memory: S::SHARED_BYTES.
#pragma once

#include "async_copy.cuh"
#include "attention.cuh"
#include "cluster.cuh"
#include "grid.cuh"
#include "math.cuh"
#include "mma.cuh"

#include "few_trace.cuh"

struct FewParams {
    const void* q;
    const void* k_cache;
    const void* v_cache;
    void* out;
    const long long* query_starts;  // (B + 1,)
    const long long* context_lens;  // (B,)
    const long long* block_tables;  // (B, max_blocks)
    const long long* ancestors;     // (B, num_nodes), or null
    long long q_token_stride;       // elements, as all strides
    long long q_head_stride;
    long long out_token_stride;
    long long out_head_stride;
    unsigned long long group_inverse;  // see AttentionParams
    int group;
    int num_kv_heads;
    int num_requests;
    int block_shift;
    int max_blocks;
    int num_nodes;
    int window;
    float log2_scale;
    int trace;  // a number from 1 on where the launch is traced
    int unused;
};
static_assert(sizeof(FewParams) == 8 * 8 + 5 * 8 + 10 * 4, "mirrored in few_rows.py");

constexpr int GROUP_WARPS = 4;
constexpr int GROUP_THREADS = 32 * GROUP_WARPS;
constexpr int TILE_ROWS = 16;
constexpr int SUBS = 4;   // visits of a sweep
constexpr int PARTS = 4;  // of the sweeps

template <class Element, int HEAD_DIM_, int SLOTS_, int GROUPS_, int STAGES_>
struct FewConfig {
    using T = Element;
    static constexpr int D = HEAD_DIM_;
    static constexpr int SLOTS = SLOTS_;
    static constexpr int GROUPS = GROUPS_;
    static constexpr int STAGES = STAGES_;  // visits that a group has under way
    static constexpr int THREADS = GROUP_THREADS * GROUPS;
    static constexpr int KEYS = SLICE_KEYS * GROUP_WARPS * SLOTS;  // of a visit
    static constexpr int K_STEPS = D / 16;
    static constexpr int PIECES = D / 8;  // of 16 bytes, per row
    static constexpr int COLUMNS = PIECES / GROUP_WARPS;  // tiles of 8 columns that a warp has
    static constexpr int ROW_BYTES = 2 * D + 16;
    static constexpr int STAGE_BYTES = 2 * KEYS * ROW_BYTES;  // keys, then values
    static constexpr int RING_BYTES = STAGES * STAGE_BYTES;   // of a group
    static constexpr int WEIGHT_BYTES = 2 * KEYS + 16;        // of a row
    static constexpr int QUADS = COLUMNS * GROUP_THREADS;     // of results: two rows by two columns
    static constexpr int SUB_BYTES = QUADS * 16 + TILE_ROWS * (GROUP_WARPS + 1) * 4;
    static constexpr int PART_BYTES = QUADS * 16 + TILE_ROWS * 8;
    static constexpr int MAXIMA_BYTES = TILE_ROWS * GROUP_WARPS * 4;
    static constexpr int GROUP_BYTES = RING_BYTES + TILE_ROWS * WEIGHT_BYTES + MAXIMA_BYTES;
    static_assert(D % 32 == 0 && KEYS % 64 == 0, "whole fragments and batches");
    static_assert(SUBS % GROUPS == 0, "groups have equal shares");
};

template <class S>
struct FewShared {
    unsigned char* ring;     // (STAGES, 2, KEYS, ROW_BYTES), of this group
    unsigned char* weights;  // (TILE_ROWS, WEIGHT_BYTES), likewise
    float* maxima;           // (TILE_ROWS, GROUP_WARPS), likewise
    unsigned char* queries;  // (TILE_ROWS, ROW_BYTES)
    Mbarrier* arrived;       // the other blocks' parts
    unsigned char* subs;     // (SUBS, SUB_BYTES)
    unsigned char* parts;    // (parts of the other blocks, PART_BYTES)

    __device__ __forceinline__ explicit FewShared(int group) {
        ring = shared_memory() + group * S::GROUP_BYTES;
        weights = ring + S::RING_BYTES;
        maxima = reinterpret_cast<float*>(weights + TILE_ROWS * S::WEIGHT_BYTES);
        queries = shared_memory() + S::GROUPS * S::GROUP_BYTES;
        arrived = reinterpret_cast<Mbarrier*>(queries + TILE_ROWS * S::ROW_BYTES);
        subs = reinterpret_cast<unsigned char*>(arrived) + 16;
        parts = subs + SUBS * S::SUB_BYTES;
    }
};

// The tile of this block's cluster; without rows where there are fewer tiles.
__device__ __forceinline__ AttentionTask find_task(const FewParams& params, int tile) {
    AttentionTask task = {};
    task.kv_head = static_cast<int>(blockIdx.y);
    const int lane = lane_id();
    for (int first = 0; first < params.num_requests; first += 32) {
        const int request = first + lane;
        int start = 0, rows = 0, context = 0, root_bits = 0;
        if (request < params.num_requests) {
            start = static_cast<int>(params.query_starts[request]);
            rows = static_cast<int>(params.query_starts[request + 1]) - start;
            const long long most = static_cast<long long>(params.max_blocks) << params.block_shift;
            const long long keys = params.context_lens[request];
            context = static_cast<int>(keys < most ? keys : most);
            if (params.ancestors != nullptr)
                root_bits = params.ancestors[static_cast<long long>(request) * params.num_nodes] != 0;
        }
        const int tiles = (rows * params.group + TILE_ROWS - 1) / TILE_ROWS;
        int until = tiles;  // tiles of the requests up to this one
#pragma unroll
        for (int delta = 1; delta < 32; delta *= 2) {
            const int before = shfl_up(until, delta);
            if (lane >= delta) until += before;
        }
        const unsigned reach = warp_ballot(until > tile);
        if (reach != 0) {
            const int found = __ffs(reach) - 1;
            task.item.request = first + found;
            task.item.context = shfl(context, found);
            task.item.rows = shfl(rows, found);
            task.item.is_tree = shfl(root_bits, found);
            task.item.first_token = shfl(start, found);
            task.item.tile = tile - shfl(until - tiles, found);
            task.first_row = task.item.tile * TILE_ROWS;
            task.num_rows = min(task.item.rows * params.group - task.first_row, TILE_ROWS);
            return task;
        }
        tile -= shfl(until, 31);
    }
    return task;
}

// The visits of a group: part after part, of each its subs, of each its sweeps in order.
template <class S>
struct Walk {
    int group, sub, part, sweep;
    int first, end, last_part;  // visits of the task; the block's last part

    __device__ __forceinline__ Walk(int group_, int first_, int end_, int first_part, int last_part_)
        : group(group_), sub(group_), part(first_part), first(first_), end(end_), last_part(last_part_) {
        begin();
        settle();
    }

    __device__ __forceinline__ int visit() const { return sweep * SUBS + sub; }
    __device__ __forceinline__ bool is_done() const { return visit() >= end; }

    // The first sweep of a part that the task has.
    __device__ __forceinline__ int first_of(int which) const {
        const int first_sweep = first / SUBS;
        return first_sweep + (which - first_sweep % PARTS + PARTS) % PARTS;
    }

    __device__ __forceinline__ void begin() {
        sweep = first_of(part);
        if (visit() < first) sweep += PARTS;
    }

    __device__ __forceinline__ void settle() {
        while (is_done() && (sub + S::GROUPS < SUBS || part < last_part)) {
            sub += S::GROUPS;
            if (sub >= SUBS) {
                sub = group;
                ++part;
            }
            begin();
        }
    }

    __device__ __forceinline__ void go_on() {
        sweep += PARTS;
        settle();
    }
};

// Where a lane's share of a chunk of 16 keys, and of its values, lies and goes.
struct ChunkCopy {
    long long from;     // bytes, in either cache
    unsigned char* to;  // of the keys
    int first;          // key
};

enum Which { OLD_KEYS, NEW_KEYS, ALL_KEYS };

// Copies into the ring: a warp's own chunks.
template <class S>
struct FewCopies {
    const FewParams& params;
    const AttentionTask& task;
    unsigned char* ring;
    int warp;                      // of the group
    int key_begin, key_end, root;  // keys outside are not read; those from root on are this step's

    __device__ __forceinline__ int first_key(int visit, int slot) const {
        return visit * S::KEYS + (slot * GROUP_WARPS + warp) * SLICE_KEYS;
    }

    __device__ __forceinline__ bool is_new(int key) const { return key + SLICE_KEYS > root && key < key_end; }

    // The block that a chunk lies in; any where it is not read.
    __device__ __forceinline__ int page_of(int visit, int slot) const {
        const int key = first_key(visit, slot);
        if (key >= key_end || key + SLICE_KEYS <= key_begin) return 0;
        const long long entry = static_cast<long long>(task.item.request) * params.max_blocks;
        return static_cast<int>(params.block_tables[entry + (key >> params.block_shift)]);
    }

    __device__ __forceinline__ ChunkCopy describe(int visit, int slot, int page, int stage) const {
        const int first = first_key(visit, slot), lane = lane_id();
        const int offset = first & ((1 << params.block_shift) - 1);
        const long long row = ((static_cast<long long>(page) * params.num_kv_heads + task.kv_head) << params.block_shift) + offset;
        unsigned char* chunk = ring + stage * S::STAGE_BYTES +
                               (slot * GROUP_WARPS + warp) * (SLICE_KEYS * S::ROW_BYTES);
        return {row * (2 * S::D) + lane * 16, chunk, first};
    }

    template <Which WHICH>
    __device__ __forceinline__ void copy(const ChunkCopy& chunk) const {
        const int lane = lane_id();
        const char* keys = static_cast<const char*>(params.k_cache) + chunk.from;
        const char* values = static_cast<const char*>(params.v_cache) + chunk.from;
#pragma unroll
        for (int i = 0; i < SLICE_KEYS * S::PIECES / 32; ++i) {
            const int index = i * 32 + lane, row = index / S::PIECES, key = chunk.first + row;
            const bool is_row_new = key >= root && key < key_end;
            if (WHICH != ALL_KEYS && is_row_new != (WHICH == NEW_KEYS)) continue;
            const bool valid = key >= key_begin && key < key_end;
            unsigned char* to = chunk.to + row * S::ROW_BYTES + index % S::PIECES * 16;
            copy_async16_or_zero(to, keys + i * 512, valid);
            copy_async16_or_zero(to + S::KEYS * S::ROW_BYTES, values + i * 512, valid);
        }
    }
};

// A thread's copies of the tile's queries; rows that do not exist become zeros.
template <class S>
struct QueryCopies {
    static constexpr int COPIES = (TILE_ROWS * S::PIECES + S::THREADS - 1) / S::THREADS;
    long long from[COPIES];  // bytes

    __device__ __forceinline__ QueryCopies(const FewParams& params, const AttentionTask& task) {
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            const int index = i * S::THREADS + threadIdx.x, row = index / S::PIECES, piece = index % S::PIECES;
            const int packed = task.first_row + min(row, task.num_rows - 1);
            const int token = token_of(packed, params), head = task.kv_head * params.group + packed - token * params.group;
            from[i] = 2 * ((task.item.first_token + token) * params.q_token_stride + head * params.q_head_stride) + piece * 16;
        }
    }

    __device__ __forceinline__ void copy(const FewParams& params, const AttentionTask& task, unsigned char* to) const {
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            const int index = i * S::THREADS + threadIdx.x, row = index / S::PIECES, piece = index % S::PIECES;
            if (row < TILE_ROWS)
                copy_async16_or_zero(to + row * S::ROW_BYTES + piece * 16, static_cast<const char*>(params.q) + from[i],
                                     row < task.num_rows);
        }
    }
};
