// Attention of a tile of query rows over one stretch of a paged KV cache, on tensor cores.
//
// q, out (T, N, D) with strides; k_cache, v_cache (num_blocks, N_kv, block_size, D) contiguous; all 16-byte aligned.
// A tile is S::ROWS packed rows of one request and one K/V head: row r is token r / G, head r % G of the group of
// G = N / N_kv heads that share the keys, so K and V are read once for all of them.
//
// A block has S::KEY_WARPS x S::ROW_WARPS warps. Key warp w takes every KEY_WARPS-th chunk of S::CHUNK keys and keeps a
// softmax of its own (base, sum, weighted values, all float32); row warps share its chunks, each for 16 * ROW_TILES
// rows. At the end the key warps are folded in order. Chunks come by cp.async, S::STAGES deep, into rows padded by 16
// bytes, which makes ldmatrix free of bank conflicts for every D here. Shared memory: S::SHARED_BYTES.
//
// A long context is cut at multiples of the split length. Each split's result goes to a workspace, and the last block of
// a tile folds them in order. Which keys fold in which order depends on their index alone; a chunk or split that a row
// does not see changes nothing (its weights are exact zeros, its rescaling an exact one). So a row's result is the same
// bit for bit whatever rows, requests and shapes S are beside it, as long as KEY_WARPS, CHUNK and the split length agree.
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
    const int* num_items;
    float* partial;                 // (slots, N, D) weighted values, then (slots, N, 2) base and sum
    unsigned* counters;             // (tiles, N_kv) splits that are done; zero before and after
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
    int unused;
    float log2_scale;  // scale * log2(e) > 0: scores are kept as exponents of 2
};
static_assert(sizeof(AttentionParams) == 10 * 8 + 6 * 8 + 10 * 4, "mirrored in cuda.py");

// The token of a packed row.
__device__ __forceinline__ int token_of(int row, const AttentionParams& params) {
    return static_cast<int>(static_cast<unsigned>(row) * params.group_inverse >> 32);
}

constexpr float MINUS_INFINITY = -__builtin_huge_valf();

constexpr float BASE_SLACK = 8.0f;  // exponents of 2

constexpr int SLICE_KEYS = 16;  // lie in one block of the cache: block sizes are multiples

template <class Element, int HEAD_DIM_, int KEY_WARPS_, int ROW_WARPS_, int ROW_TILES_, int CHUNK_, int STAGES_>
struct AttentionConfig {
    using T = Element;
    static constexpr int D = HEAD_DIM_;
    static constexpr int KEY_WARPS = KEY_WARPS_;
    static constexpr int ROW_WARPS = ROW_WARPS_;
    static constexpr int ROW_TILES = ROW_TILES_;  // of 16 rows, per warp
    static constexpr int CHUNK = CHUNK_;          // keys
    static constexpr int STAGES = STAGES_;
    static constexpr bool TREES = KEY_WARPS > 1;  // long requests are chains
    static constexpr int ROWS = 16 * ROW_TILES * ROW_WARPS;
    static constexpr int GROUP_THREADS = 32 * ROW_WARPS;  // that share a chunk
    static constexpr int THREADS = GROUP_THREADS * KEY_WARPS;
    static constexpr int ROW_BYTES = 2 * D + 16;
    static constexpr int PIECES = D / 8;  // of 16 bytes, per row
    static constexpr int CHUNK_BYTES = CHUNK * ROW_BYTES;
    static constexpr int SLICES = CHUNK / SLICE_KEYS;
    static constexpr int COPIES = CHUNK * PIECES / GROUP_THREADS;  // per thread and chunk, of keys and of values each
    static constexpr int Q_BYTES = ROWS * ROW_BYTES;
    static constexpr int RING_BYTES = KEY_WARPS * STAGES * 2 * CHUNK_BYTES;
    static constexpr int MERGE_COLUMNS = ROWS == 16 ? D : 32;
    static constexpr int MERGE_STRIDE = MERGE_COLUMNS + 8;  // floats
    static constexpr int MERGE_BYTES = KEY_WARPS * ROWS * (MERGE_STRIDE + 2) * 4;
    static constexpr int WORK_BYTES = RING_BYTES > MERGE_BYTES ? RING_BYTES : MERGE_BYTES;
    static constexpr int FLAG_BYTES = 16;
    // Splits are folded some rows at a time, some splits ahead.
    static constexpr int FOLD_ROWS = ROWS == 16 ? 1 : 4;
    static constexpr int FOLD_AHEAD = ROWS == 16 ? 16 : 4;
    static constexpr int SHARED_BYTES = Q_BYTES + WORK_BYTES + FLAG_BYTES;
    static constexpr bool Q_IN_REGISTERS = ROW_TILES * D <= 128;
    static_assert(D % 16 == 0 && CHUNK % 16 == 0 && STAGES >= 2, "whole fragments, and one chunk under way");
    static_assert(COPIES * GROUP_THREADS == CHUNK * PIECES, "whole rounds of copies");
    static_assert(GROUP_THREADS <= SLICE_KEYS * PIECES, "a round of copies touches two slices at most");
    static_assert(D % MERGE_COLUMNS == 0, "whole column groups");
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
    __device__ __forceinline__ TreeKeys(const AttentionParams& params, const AttentionTask& task, int row) {
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

    __device__ __forceinline__ bool sees(int key, const AttentionParams&) const {
        const unsigned node = static_cast<unsigned>(key - root);
        return (key >= low && key < high) || (node < 64 && (nodes >> node & 1));
    }
};

template <bool TREES>
struct VisibleKeys {
    using Type = TreeKeys;
};
template <>
struct VisibleKeys<false> {
    using Type = ChainKeys;
};

template <class S>
struct AttentionTile {
    using T = typename S::T;
    static constexpr int K_STEPS = S::D / 16;
    static constexpr int N_STEPS = S::D / 8;
    static constexpr int KEY_STEPS = S::CHUNK / 8;

    const AttentionParams& params;
    const AttentionTask& task;
    unsigned char* q_shared;
    unsigned char* ring;  // this key warp's chunks
    int lane, key_warp, row_warp;
    int pages;            // lane l: the block of page first_page + l
    int first_page;
    float acc[S::ROW_TILES][N_STEPS][4];
    float row_base[S::ROW_TILES][2];  // exponent of 2 that weights are relative to; of rows lane / 4 and lane / 4 + 8
    float row_sum[S::ROW_TILES][2];  // of this thread's columns
    typename VisibleKeys<S::TREES>::Type visible[S::ROW_TILES][2];
    int all_see_from, all_see_until;  // every existing row sees the keys between

    __device__ __forceinline__ AttentionTile(const AttentionParams& params_, const AttentionTask& task_,
                                             unsigned char* shared)
        : params(params_), task(task_), q_shared(shared) {
        lane = lane_id();
        key_warp = warp_id() / S::ROW_WARPS;
        row_warp = warp_id() % S::ROW_WARPS;
        ring = shared + S::Q_BYTES + key_warp * (S::STAGES * 2 * S::CHUNK_BYTES);
        first_page = task.item.key_begin >> params.block_shift;
        pages = (first_page + lane) << params.block_shift < task.item.key_end ? task.pages : 0;
    }

    __device__ __forceinline__ void group_sync() const {
        if constexpr (S::ROW_WARPS == 1) {
            warp_sync();
        } else {
            named_sync(1 + key_warp, S::GROUP_THREADS);
        }
    }

    // Lane l gets the block of page `page` + l, for pages that the task reads and that did not come with it.
    __device__ __forceinline__ void load_pages(int page) {
        first_page = page;
        const int last = (task.item.key_end - 1) >> params.block_shift;
        const int mine = min(page + lane, last);
        const long long entry = static_cast<long long>(task.item.request) * params.max_blocks + mine;
        pages = static_cast<int>(params.block_tables[entry]);
    }

    // Start copying a chunk's keys and values; those outside the task's range become zeros.
    __device__ __forceinline__ void load_chunk(int chunk, int stage) {
        const int first_key = chunk * S::CHUNK;
        // What lies past the task's keys is not read, so its pages need not be known.
        const int last_key = min(first_key + S::CHUNK, task.item.key_end) - 1;
        if ((last_key >> params.block_shift) >= first_page + ITEM_PAGES) load_pages(first_key >> params.block_shift);
        long long starts[S::SLICES];
#pragma unroll
        for (int slice = 0; slice < S::SLICES; ++slice) starts[slice] = slice_start(first_key + slice * SLICE_KEYS);
        if (first_key >= task.item.key_begin && first_key + S::CHUNK <= task.item.key_end) {
            copy_slices<false>(starts, first_key, stage);
        } else {
            copy_slices<true>(starts, first_key, stage);
        }
    }

    // Byte offset of SLICE_KEYS keys of one page, which lie one after another in the caches; any where none is needed.
    __device__ __forceinline__ long long slice_start(int key) const {
        const int page = min(max((key >> params.block_shift) - first_page, 0), ITEM_PAGES - 1);
        const long long block = shfl(pages, page);
        const int offset = key & ((1 << params.block_shift) - 1);
        return (((block * params.num_kv_heads + task.kv_head) << params.block_shift) + offset) * (2 * S::D);
    }

    template <bool PARTIAL>
    __device__ __forceinline__ void copy_slices(const long long (&starts)[S::SLICES], int first_key, int stage) const {
        constexpr unsigned ROUND = S::GROUP_THREADS, SLICE_PIECES = SLICE_KEYS * S::PIECES;
        const unsigned thread = row_warp * 32 + lane;
        unsigned char* keys = ring + stage * (2 * S::CHUNK_BYTES);
        const char* k_thread = static_cast<const char*>(params.k_cache) + thread * 16;
        const char* v_thread = static_cast<const char*>(params.v_cache) + thread * 16;
#pragma unroll
        for (unsigned copy = 0; copy < S::COPIES; ++copy) {
            // Where rounds are whole rows and slices, all but the thread's share is known to the compiler.
            constexpr bool WHOLE_ROWS = ROUND % S::PIECES == 0;
            const unsigned index = copy * ROUND + thread;
            const unsigned row = WHOLE_ROWS ? copy * (ROUND / S::PIECES) + thread / S::PIECES : index / S::PIECES;
            const unsigned piece = WHOLE_ROWS ? thread % S::PIECES : index % S::PIECES;
            const unsigned low = copy * ROUND / SLICE_PIECES, high = (copy * ROUND + ROUND - 1) / SLICE_PIECES;
            const unsigned slice = low == high ? low : index / SLICE_PIECES;
            const long long from = (slice == low ? starts[low] : starts[high]) +
                                   (static_cast<int>(copy * ROUND) - static_cast<int>(slice * SLICE_PIECES)) * 16;
            unsigned char* to = keys + row * S::ROW_BYTES + piece * 16;
            if constexpr (PARTIAL) {
                const int key = first_key + static_cast<int>(row);
                const bool valid = key >= task.item.key_begin && key < task.item.key_end;
                copy_async16_or_zero(to, k_thread + from, valid);
                copy_async16_or_zero(to + S::CHUNK_BYTES, v_thread + from, valid);
            } else {
                copy_async16(to, k_thread + from);
                copy_async16(to + S::CHUNK_BYTES, v_thread + from);
            }
        }
    }

    // All threads of the block copy the tile's queries; rows that do not exist become zeros.
    __device__ __forceinline__ void load_queries() {
            for (int index = threadIdx.x; index < S::ROWS * S::PIECES; index += S::THREADS) {
            const int row = index / S::PIECES, piece = index % S::PIECES;
            const bool valid = row < task.num_rows;
            const int packed = task.first_row + (valid ? row : 0);
            const int token = token_of(packed, params);
            const int head = task.kv_head * params.group + packed - token * params.group;
            const long long element =
                (task.item.first_token + token) * params.q_token_stride + head * params.q_head_stride + piece * 8;
            copy_async16_or_zero(q_shared + row * S::ROW_BYTES + piece * 16,
                                 static_cast<const char*>(params.q) + element * 2, valid);
        }
    }

    __device__ __forceinline__ void load_query_fragment(unsigned (&fragment)[4], int row_tile, int step) const {
        const int row = (row_warp * S::ROW_TILES + row_tile) * 16 + lane % 16;
        ldmatrix_x4(fragment, q_shared + row * S::ROW_BYTES + step * 32 + lane / 16 * 16);
    }

    __device__ __forceinline__ void start() {
        const int root = task.item.context - task.item.rows;
            all_see_from = max(task.item.context - params.window, 0);
        all_see_until = task.item.is_tree ? root : root + token_of(task.first_row, params) + 1;
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = (row_warp * S::ROW_TILES + m) * 16 + half * 8 + lane / 4;
                visible[m][half] = {params, task, row};
                row_base[m][half] = MINUS_INFINITY;
                row_sum[m][half] = 0.0f;
            }
#pragma unroll
            for (int n = 0; n < N_STEPS; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) acc[m][n][i] = 0.0f;
            }
        }
    }

    // Weigh one chunk's values by the exponentials of its scores.
    template <class Queries>
    __device__ __forceinline__ void compute_chunk(int chunk, int stage, const Queries& queries) {
        const unsigned char* keys = ring + stage * (2 * S::CHUNK_BYTES);
        float scores[S::ROW_TILES][KEY_STEPS][4];
        compute_scores(scores, keys, queries);
        const int first_key = chunk * S::CHUNK;
        if (first_key < all_see_from || first_key + S::CHUNK > all_see_until) hide_unseen(scores, first_key);
        exponentiate(scores);
        add_values(scores, keys + S::CHUNK_BYTES);
    }

    template <class Queries>
    __device__ __forceinline__ void compute_scores(float (&scores)[S::ROW_TILES][KEY_STEPS][4],
                                                   const unsigned char* keys, const Queries& queries) const {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int n = 0; n < KEY_STEPS; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) scores[m][n][i] = 0.0f;
            }
        }
        // Lanes 0-7 and 8-15 name the two halves of a key's 16 elements, lanes 16-31 the same of 8 further keys.
        const unsigned char* from = keys + (lane / 16 * 8 + lane % 8) * S::ROW_BYTES + lane / 8 % 2 * 16;
#pragma unroll
        for (int step = 0; step < K_STEPS; ++step) {
            unsigned rows[S::ROW_TILES][4];
#pragma unroll
            for (int m = 0; m < S::ROW_TILES; ++m) queries.get(rows[m], m, step, *this);
#pragma unroll
            for (int n = 0; n < KEY_STEPS; n += 2) {
                unsigned columns[4];
                ldmatrix_x4(columns, from + n * 8 * S::ROW_BYTES + step * 32);
                const unsigned low[2] = {columns[0], columns[1]}, high[2] = {columns[2], columns[3]};
#pragma unroll
                for (int m = 0; m < S::ROW_TILES; ++m) {
                    mma_16x8x16<T>(scores[m][n], rows[m], low);
                    mma_16x8x16<T>(scores[m][n + 1], rows[m], high);
                }
            }
        }
    }

    __device__ __forceinline__ void hide_unseen(float (&scores)[S::ROW_TILES][KEY_STEPS][4], int first_key) const {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int n = 0; n < KEY_STEPS; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int key = first_key + n * 8 + lane % 4 * 2 + i % 2;
                    if (!visible[m][i / 2].sees(key, params)) scores[m][n][i] = MINUS_INFINITY;
                }
            }
        }
    }

    // scores become 2^(score - base) of the row; older sums and values are rescaled where the base moves.
    __device__ __forceinline__ void exponentiate(float (&scores)[S::ROW_TILES][KEY_STEPS][4]) {
        float rescales[S::ROW_TILES][2];
        bool moves = false;
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                rescales[m][half] = move_base(scores[m], row_base[m][half], half);
                moves |= rescales[m][half] != 1.0f;
                float sum = 0.0f;
#pragma unroll
                for (int n = 0; n < KEY_STEPS; ++n) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        scores[m][n][i] = exp2_fast(fmaf(scores[m][n][i], params.log2_scale, -finite(row_base[m][half])));
                        sum += scores[m][n][i];
                    }
                }
                row_sum[m][half] = fmaf(row_sum[m][half], rescales[m][half], sum);
            }
        }
        if (warp_ballot(moves) != 0) rescale_values(rescales);
    }

    // A row that has seen no key has base -inf, and no weight but 0.
    static __device__ __forceinline__ float finite(float base) { return base == MINUS_INFINITY ? 0.0f : base; }

    // The base follows a row's largest score, but only when that is BASE_SLACK above it: weights up to 2^BASE_SLACK do no
    // harm, and most chunks then rescale nothing. Returns what older sums and values are to be multiplied by.
    __device__ __forceinline__ float move_base(const float (&scores)[KEY_STEPS][4], float& base, int half) const {
        float highest = MINUS_INFINITY;
#pragma unroll
        for (int n = 0; n < KEY_STEPS; ++n) {
            highest = fmaxf(highest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
        }
        highest = fmaxf(highest, shfl_xor(highest, 1));
        highest = fmaxf(highest, shfl_xor(highest, 2)) * params.log2_scale;
        if (!(highest > base + BASE_SLACK)) return 1.0f;
        const float rescale = exp2_fast(base - highest);
        base = highest;
        return rescale;
    }

    __device__ __forceinline__ void rescale_values(const float (&rescales)[S::ROW_TILES][2]) {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int n = 0; n < N_STEPS; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) acc[m][n][i] *= rescales[m][i / 2];
            }
        }
    }

    __device__ __forceinline__ void add_values(const float (&weights)[S::ROW_TILES][KEY_STEPS][4],
                                               const unsigned char* values) {
        // Lanes 0-15 name 16 keys' first 8 elements, lanes 16-31 the next 8; the load transposes.
        const unsigned char* from = values + lane % 16 * S::ROW_BYTES + lane / 16 * 16;
#pragma unroll
        for (int step = 0; step < S::CHUNK / 16; ++step) {
            unsigned rows[S::ROW_TILES][4];
#pragma unroll
            for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float* pair = &weights[m][2 * step + i / 2][i % 2 * 2];
                    rows[m][i] = pack2<T>(pair[0], pair[1]);
                }
            }
#pragma unroll
            for (int n = 0; n < N_STEPS; n += 2) {
                unsigned columns[4];
                ldmatrix_x4_trans(columns, from + step * 16 * S::ROW_BYTES + n * 16);
                const unsigned low[2] = {columns[0], columns[1]}, high[2] = {columns[2], columns[3]};
#pragma unroll
                for (int m = 0; m < S::ROW_TILES; ++m) {
                    mma_16x8x16<T>(acc[m][n], rows[m], low);
                    mma_16x8x16<T>(acc[m][n + 1], rows[m], high);
                }
            }
        }
    }

    // Run over the task's keys; afterwards row_sum holds whole rows' sums.
    template <class Queries>
    __device__ __forceinline__ void run() {
        const int first = task.item.key_begin / S::CHUNK;
        const int end = (task.item.key_end + S::CHUNK - 1) / S::CHUNK;
        // Which key warp takes a chunk depends on the chunk's index alone.
        int chunk = first + (key_warp + S::KEY_WARPS - first % S::KEY_WARPS) % S::KEY_WARPS;
        load_queries();
        copy_async_commit();
#pragma unroll
        for (int stage = 0; stage < S::STAGES - 1; ++stage) {
            if (chunk + stage * S::KEY_WARPS < end) load_chunk(chunk + stage * S::KEY_WARPS, stage);
            copy_async_commit();
        }
        start();
        copy_async_wait<S::STAGES - 1>();
        block_sync();
        Queries queries;
        queries.load(*this);
        int stage = 0, next_stage = S::STAGES - 1;
        for (; chunk < end; chunk += S::KEY_WARPS) {
            copy_async_wait<S::STAGES - 2>();
            group_sync();  // the chunk is here for all, and nobody reads the stage that is filled next
            const int next = chunk + (S::STAGES - 1) * S::KEY_WARPS;
            if (next < end) load_chunk(next, next_stage);
            copy_async_commit();
            compute_chunk(chunk, stage, queries);
            stage = stage + 1 == S::STAGES ? 0 : stage + 1;
            next_stage = next_stage + 1 == S::STAGES ? 0 : next_stage + 1;
        }
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                row_sum[m][half] += shfl_xor(row_sum[m][half], 1);
                row_sum[m][half] += shfl_xor(row_sum[m][half], 2);
            }
        }
    }

    // Element offset of a packed row of the tile in `out`.
    __device__ __forceinline__ long long out_offset(int row) const {
            const int packed = task.first_row + row;
        const int token = token_of(packed, params);
        const int head = task.kv_head * params.group + packed - token * params.group;
        return (task.item.first_token + token) * params.out_token_stride + head * params.out_head_stride;
    }

    // One key warp: its rows are final.
    __device__ __forceinline__ void write_rows() const {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = (row_warp * S::ROW_TILES + m) * 16 + half * 8 + lane / 4;
                if (row >= task.num_rows) continue;
                const float inverse = row_sum[m][half] > 0.0f ? 1.0f / row_sum[m][half] : 0.0f;
                T* to = static_cast<T*>(params.out) + out_offset(row) + lane % 4 * 2;
#pragma unroll
                for (int n = 0; n < N_STEPS; ++n) {
                    *reinterpret_cast<unsigned*>(to + n * 8) =
                        pack2<T>(acc[m][n][2 * half] * inverse, acc[m][n][2 * half + 1] * inverse);
                }
            }
        }
    }
};

// The queries' fragments, loaded once ...
template <class S>
struct QueriesInRegisters {
    unsigned fragments[S::ROW_TILES][S::D / 16][4];

    __device__ __forceinline__ void load(const AttentionTile<S>& tile) {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (int step = 0; step < S::D / 16; ++step) tile.load_query_fragment(fragments[m][step], m, step);
        }
    }

    __device__ __forceinline__ void get(unsigned (&fragment)[4], int m, int step, const AttentionTile<S>&) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) fragment[i] = fragments[m][step][i];
    }
};

// ... or at each use, where they would not fit beside the sums.
template <class S>
struct QueriesInShared {
    __device__ __forceinline__ void load(const AttentionTile<S>&) {}

    __device__ __forceinline__ void get(unsigned (&fragment)[4], int m, int step, const AttentionTile<S>& tile) const {
        tile.load_query_fragment(fragment, m, step);
    }
};

template <bool IN_REGISTERS, class S>
struct QueryFragments {
    using Type = QueriesInRegisters<S>;
};
template <class S>
struct QueryFragments<false, S> {
    using Type = QueriesInShared<S>;
};
