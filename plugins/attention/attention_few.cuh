// Attention of a step of few rows, without a plan: what there is to read is asked for before the launch is waited for
// whose queries, keys and values are new.
//
// q, out (T, N, D) with strides; k_cache, v_cache (num_blocks, N_kv, block_size, D) contiguous; all 16-byte aligned.
// A tile is 16 packed rows of one request and one K/V head, as in attention.cuh. A block of 8 warps has one tile and goes
// over its keys in visits of 128. A warp multiplies 16 of them with all rows; the rows' largest scores meet in shared
// memory, and so do the weights, of which every warp takes all for its columns of the values. So nothing is left to fold
// between warps, and a thread's results are few registers.
//
// Visit v belongs to part v % PARTS. Parts have a softmax each and are folded in order. The blocks of a cluster have
// equal shares of the parts; those of the others come to the first one's shared memory. So which keys meet in which order
// depends on their index alone, and a row's result is the same bit for bit whatever rows, requests and clusters there
// are. Shared memory: see FewShared.
//
// What counts for a few hundred keys is the number of instructions between the wait and the end, at some 5 cycles each:
// what can be is computed before.
#pragma once

#include "async_copy.cuh"
#include "attention.cuh"
#include "cluster.cuh"
#include "grid.cuh"
#include "math.cuh"
#include "mma.cuh"

#include "attention_few_trace.cuh"

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

constexpr int FEW_WARPS = 8;
constexpr int FEW_THREADS = 32 * FEW_WARPS;
constexpr int TILE_ROWS = 16;
constexpr int VISIT_KEYS = SLICE_KEYS * FEW_WARPS;
constexpr int PARTS = 4;

template <class Element, int HEAD_DIM_, int STAGES_>
struct FewConfig {
    using T = Element;
    static constexpr int D = HEAD_DIM_;
    static constexpr int STAGES = STAGES_;  // visits under way
    static constexpr int K_STEPS = D / 16;
    static constexpr int PIECES = D / 8;  // of 16 bytes, per row; tiles of 8 columns too
    static constexpr int COLUMNS = (PIECES + FEW_WARPS - 1) / FEW_WARPS;  // tiles that a warp has
    static constexpr int ROW_BYTES = 2 * D + 16;
    static constexpr int STAGE_BYTES = 2 * VISIT_KEYS * ROW_BYTES;  // keys, then values
    static constexpr int WEIGHT_BYTES = 2 * VISIT_KEYS + 16;        // of a row
    static constexpr int COLUMN_BYTES = 32 * 16;                    // of a tile of columns, of all rows
    static constexpr int PART_BYTES = PIECES * COLUMN_BYTES + TILE_ROWS * 8;
    static_assert(D % 32 == 0, "whole fragments");
};

template <class S>
struct FewShared {
    unsigned char* ring;     // (STAGES, 2, VISIT_KEYS, ROW_BYTES)
    unsigned char* queries;  // (TILE_ROWS, ROW_BYTES)
    unsigned char* weights;  // (TILE_ROWS, WEIGHT_BYTES)
    float* maxima;           // (TILE_ROWS, FEW_WARPS)
    Mbarrier* arrived;       // the other blocks' parts
    unsigned char* parts;    // (parts of the other blocks, PART_BYTES)

    __device__ __forceinline__ FewShared() {
        ring = shared_memory();
        queries = ring + S::STAGES * S::STAGE_BYTES;
        weights = queries + TILE_ROWS * S::ROW_BYTES;
        maxima = reinterpret_cast<float*>(weights + TILE_ROWS * S::WEIGHT_BYTES);
        arrived = reinterpret_cast<Mbarrier*>(maxima + TILE_ROWS * FEW_WARPS);
        parts = reinterpret_cast<unsigned char*>(arrived) + 16;
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

// The visits of this block: its parts one after another, each in order of its keys.
struct Walk {
    int visit, part;
    int first, end, last_part;  // visits of the task; the block's last part

    __device__ __forceinline__ Walk(int first_, int end_, int first_part, int last_part_)
        : part(first_part), first(first_), end(end_), last_part(last_part_) {
        visit = first_of(part);
        settle();
    }

    __device__ __forceinline__ int first_of(int which) const {
        return first + (which - first % PARTS + PARTS) % PARTS;
    }

    __device__ __forceinline__ void settle() {
        while (visit >= end && part < last_part) visit = first_of(++part);
    }

    __device__ __forceinline__ bool is_done() const { return visit >= end; }

    __device__ __forceinline__ void go_on() {
        visit += PARTS;
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

// Copies into the ring: a warp's own chunks. Of 8 chunks in a row it has one, so at most one that is new.
template <class S>
struct FewCopies {
    const FewParams& params;
    const AttentionTask& task;
    unsigned char* ring;
    int key_begin, key_end, root;  // keys outside are not read; those from root on are this step's

    __device__ __forceinline__ int first_key(int visit) const {
        return visit * VISIT_KEYS + static_cast<int>(warp_id()) * SLICE_KEYS;
    }

    __device__ __forceinline__ bool is_new(int key) const { return key + SLICE_KEYS > root && key < key_end; }

    // The block that a chunk lies in; any where it is not read.
    __device__ __forceinline__ int page_of(int visit) const {
        const int key = first_key(visit);
        if (key >= key_end || key + SLICE_KEYS <= key_begin) return 0;
        const long long entry = static_cast<long long>(task.item.request) * params.max_blocks;
        return static_cast<int>(params.block_tables[entry + (key >> params.block_shift)]);
    }

    __device__ __forceinline__ ChunkCopy describe(int visit, int page, int stage) const {
        const int first = first_key(visit), lane = lane_id();
        const int offset = first & ((1 << params.block_shift) - 1);
        const long long head = static_cast<long long>(page) * params.num_kv_heads + task.kv_head;
        const long long row = (head << params.block_shift) + offset;
        unsigned char* chunk =
            ring + stage * S::STAGE_BYTES + static_cast<int>(warp_id()) * (SLICE_KEYS * S::ROW_BYTES);
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
            copy_async16_or_zero(to + VISIT_KEYS * S::ROW_BYTES, values + i * 512, valid);
        }
    }
};

// A thread's copies of the tile's queries; rows that do not exist become zeros.
template <class S>
struct QueryCopies {
    static constexpr int COPIES = (TILE_ROWS * S::PIECES + FEW_THREADS - 1) / FEW_THREADS;
    long long from[COPIES];  // bytes

    __device__ __forceinline__ QueryCopies(const FewParams& params, const AttentionTask& task) {
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            const int index = i * FEW_THREADS + threadIdx.x, row = index / S::PIECES, piece = index % S::PIECES;
            const int packed = task.first_row + min(row, task.num_rows - 1);
            const int token = token_of(packed, params);
            const int head = task.kv_head * params.group + packed - token * params.group;
            const long long at = (task.item.first_token + token) * params.q_token_stride + head * params.q_head_stride;
            from[i] = 2 * at + piece * 16;
        }
    }

    __device__ __forceinline__ void copy(const FewParams& params, const AttentionTask& task, unsigned char* to) const {
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            const int index = i * FEW_THREADS + threadIdx.x, row = index / S::PIECES, piece = index % S::PIECES;
            if (row < TILE_ROWS)
                copy_async16_or_zero(to + row * S::ROW_BYTES + piece * 16, static_cast<const char*>(params.q) + from[i],
                                     row < task.num_rows);
        }
    }
};
