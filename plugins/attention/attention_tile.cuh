// A block's way through one task: pages, copies of chunks under way, and the products of Rows.
#pragma once

#include "attention_narrow.cuh"
#include "attention_wide.cuh"

template <bool NARROW, class S>
struct RowsOf {
    using Type = WideRows<S>;
};
template <class S>
struct RowsOf<true, S> {
    using Type = NarrowRows<S>;
};

template <class S>
struct AttentionTile {
    using T = typename S::T;

    const AttentionParams& params;
    const AttentionTask& task;
    unsigned char* q_shared;
    unsigned char* ring;  // this key warp's chunks
    int lane, key_warp, row_warp;
    int pages;  // lane l: the block of page first_page + l
    int first_page;
    typename RowsOf<S::NARROW, S>::Type rows;

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

    // Run over the task's keys.
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
        // Every row that exists sees the keys from see_from until see_until.
        const int root = task.item.context - task.item.rows;
        const int see_from = max(task.item.context - params.window, 0);
        const int see_until = task.item.is_tree ? root : root + token_of(task.first_row, params) + 1;
        rows.start(params, task, row_warp);
        copy_async_wait<S::STAGES - 1>();
        block_sync();
        rows.load_queries(q_shared);
        int stage = 0, next_stage = S::STAGES - 1;
        for (; chunk < end; chunk += S::KEY_WARPS) {
            copy_async_wait<S::STAGES - 2>();
            group_sync();  // the chunk is here for all, and nobody reads the stage that is filled next
            const int next = chunk + (S::STAGES - 1) * S::KEY_WARPS;
            if (next < end) load_chunk(next, next_stage);
            copy_async_commit();
            const int first_key = chunk * S::CHUNK;
            const bool all_visible = first_key >= see_from && first_key + S::CHUNK <= see_until;
            rows.add_chunk(ring + stage * (2 * S::CHUNK_BYTES), first_key, all_visible, params);
            stage = stage + 1 == S::STAGES ? 0 : stage + 1;
            next_stage = next_stage + 1 == S::STAGES ? 0 : next_stage + 1;
        }
    }
};
