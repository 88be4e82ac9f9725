// What attention_few.cuh's softmaxes fold to, and a block's way through its tile.
#pragma once

#include "attention_few_rows.cuh"

// Softmax over some keys, of a thread's quads: two columns of rows lane / 4 and lane / 4 + 8.
template <class S>
struct FewFolded {
    static constexpr int COUNT = (S::QUADS + S::THREADS - 1) / S::THREADS;
    float base[2];  // of the rows
    float sum[2];
    float values[COUNT][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            base[half] = MINUS_INFINITY;
            sum[half] = 0;
        }
#pragma unroll
        for (int i = 0; i < 4 * COUNT; ++i) values[i / 4][i % 4] = 0;
    }

    // The thread's quads have the same rows, since blocks have whole warps. Past the last there are none.
    static __device__ __forceinline__ int quad(int i) { return i * S::THREADS + static_cast<int>(threadIdx.x); }
    static __device__ __forceinline__ bool has(int i) { return (i + 1) * S::THREADS <= S::QUADS || quad(i) < S::QUADS; }

    // Add what other keys gave. A softmax that saw nothing changes nothing.
    __device__ __forceinline__ void add(const FewFolded& other) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float now = fmaxf(base[half], other.base[half]), finite = finite_base(now);
            const float mine = exp2_fast(base[half] - finite), theirs = exp2_fast(other.base[half] - finite);
            base[half] = now;
            sum[half] = fmaf(other.sum[half], theirs, sum[half] * mine);
#pragma unroll
            for (int i = 0; i < COUNT; ++i) {
#pragma unroll
                for (int c = 2 * half; c < 2 * half + 2; ++c)
                    values[i][c] = fmaf(other.values[i][c], theirs, values[i][c] * mine);
            }
        }
    }

    __device__ __forceinline__ void load_values(const unsigned char* from) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const uint4 words = load16(from + (has(i) ? quad(i) : 0) * 16);
            values[i][0] = __uint_as_float(words.x);
            values[i][1] = __uint_as_float(words.y);
            values[i][2] = __uint_as_float(words.z);
            values[i][3] = __uint_as_float(words.w);
        }
    }

    __device__ __forceinline__ void load_sub(const unsigned char* sub) {
        const int lane = lane_id();
        load_values(sub);
        const float* stats = reinterpret_cast<const float*>(sub + S::QUADS * 16);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = half * 8 + lane / 4;
            const uint4 of_warps = load16(stats + row * GROUP_WARPS);
            sum[half] = (__uint_as_float(of_warps.x) + __uint_as_float(of_warps.y)) +
                        (__uint_as_float(of_warps.z) + __uint_as_float(of_warps.w));
            base[half] = stats[TILE_ROWS * GROUP_WARPS + row];
        }
    }

    __device__ __forceinline__ void load_part(const unsigned char* part) {
        load_values(part);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float2 stats = reinterpret_cast<const float2*>(part + S::QUADS * 16)[half * 8 + lane_id() / 4];
            base[half] = stats.x;
            sum[half] = stats.y;
        }
    }

    __device__ __forceinline__ void store_part(unsigned char* part) const {
        const int lane = lane_id();
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const float(&v)[4] = values[i];
            if (has(i))
                store16(part + quad(i) * 16, {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                                              __float_as_uint(v[3])});
        }
        if (warp_id() != 0 || lane % 4 != 0) return;
#pragma unroll
        for (int half = 0; half < 2; ++half)
            reinterpret_cast<float2*>(part + S::QUADS * 16)[half * 8 + lane / 4] = make_float2(base[half], sum[half]);
    }

    __device__ __forceinline__ void write(const FewParams& params, const AttentionTask& task) const {
        using T = typename S::T;
        const int lane = lane_id();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = half * 8 + lane / 4;
            if (row >= task.num_rows) continue;
            const float inverse = sum[half] > 0.0f ? 1.0f / sum[half] : 0.0f;  // a row that sees no key is zero
            T* to = static_cast<T*>(params.out) + out_offset(params, task, row) + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < COUNT; ++i) {
                if (!has(i)) continue;
                const int column = quad(i) / GROUP_THREADS, warp = quad(i) / 32 % GROUP_WARPS;
                *reinterpret_cast<unsigned*>(to + (warp * S::COLUMNS + column) * 8) =
                    pack2<T>(values[i][2 * half] * inverse, values[i][2 * half + 1] * inverse);
            }
        }
    }
};

// The parts of a cluster's blocks, on their way to the first one.
template <class S>
struct FewParts {
    const FewShared<S>& shared;
    int cluster, rank, share;  // parts of a block

    __device__ __forceinline__ explicit FewParts(const FewShared<S>& shared_) : shared(shared_) {
        cluster = static_cast<int>(cluster_size());
        rank = static_cast<int>(cluster_rank());
        share = PARTS / cluster;
        if (cluster == 1) return;
        if (threadIdx.x == 0) mbarrier_init(shared.arrived, 1);
        cluster_arrive();  // the others may write here
    }

    __device__ __forceinline__ unsigned char* place(int part) const {
        return shared.parts + (part - share) * S::PART_BYTES;
    }

    __device__ __forceinline__ void send(int part, const FewFolded<S>& folded) const {
        folded.store_part(place(part));
        bulk_copy_fence();
        block_sync();
        if (threadIdx.x == 0)
            copy_peer_bulk(peer_pointer(place(part), 0), place(part), S::PART_BYTES, peer_pointer(shared.arrived, 0));
    }

    // By the first block: wait for the others' parts, and fold them in order. Bit p of `parts`: part p has keys.
    __device__ __forceinline__ void fold(FewFolded<S>& folded, unsigned parts) const {
        const unsigned others = parts >> share;
        if (others == 0) return;
        if (threadIdx.x == 0) mbarrier_arrive_expect(shared.arrived, __popc(others) * S::PART_BYTES);
        mbarrier_wait(shared.arrived, 0);
        for (int part = share; part < PARTS; ++part) {
            if (!(parts >> part & 1)) continue;
            FewFolded<S> other;
            other.load_part(place(part));
            folded.add(other);
        }
    }
};

// A group's visits and what is under way of them.
template <class S>
struct FewTile {
    const FewParams& params;
    const AttentionTask& task;
    const FewShared<S>& shared;
    const FewCopies<S>& copies;
    FewRows<S>& rows;
    Walk<S> walk, ahead;
    int next_pages[S::SLOTS];
    int stage, last_stage;
    int see_from, see_until;  // every row that exists sees the keys between

    __device__ __forceinline__ void find_pages() {
#pragma unroll
        for (int slot = 0; slot < S::SLOTS; ++slot) next_pages[slot] = copies.page_of(ahead.visit(), slot);
    }

    // Ask for the visit after those that are under way, where nobody reads any more.
    __device__ __forceinline__ void refill(int free_stage) {
        if (free_stage >= 0 && !ahead.is_done()) {
#pragma unroll
            for (int slot = 0; slot < S::SLOTS; ++slot)
                copies.template copy<ALL_KEYS>(copies.describe(ahead.visit(), slot, next_pages[slot], free_stage));
            ahead.go_on();
            find_pages();
        }
        copy_async_commit();
    }

    __device__ __forceinline__ void visit() {
        copy_async_wait<(S::STAGES > 1 ? S::STAGES - 2 : 0)>();
        warp_sync();
        const int at = walk.visit();
        const unsigned char* keys = shared.ring + stage * S::STAGE_BYTES;
        typename FewRows<S>::Scores scores;
        rows.multiply_keys(scores, keys);
#pragma unroll
        for (int slot = 0; slot < S::SLOTS; ++slot) {
            const int first_key = copies.first_key(at, slot);
            if (first_key < see_from || first_key + SLICE_KEYS > see_until) rows.hide_unseen(scores, slot, first_key);
        }
        rows.share_maxima(scores);
        rows.group_sync();  // and nobody reads the stage before any more
        if (S::STAGES > 1) refill(last_stage);
        rows.share_weights(scores);
        rows.group_sync();
        rows.add_values(keys + S::KEYS * S::ROW_BYTES, copies.key_end - at * S::KEYS);
        if (S::STAGES == 1 && !ahead.is_done()) {
            rows.group_sync();
            refill(0);
        }
        walk.go_on();
        last_stage = stage;
        stage = stage + 1 == S::STAGES ? 0 : stage + 1;
    }

    // The visits of one part, to a fold of its subs.
    __device__ __forceinline__ void add_part(int part, FewFolded<S>& folded) {
        for (int sub = rows.group; sub < SUBS; sub += S::GROUPS) {
            rows.clear();
            while (!walk.is_done() && walk.part == part && walk.sub == sub) visit();
            rows.store(shared.subs + sub * S::SUB_BYTES);
        }
        block_sync();
        folded.clear();
#pragma unroll
        for (int sub = 0; sub < SUBS; ++sub) {
            FewFolded<S> other;
            other.load_sub(shared.subs + sub * S::SUB_BYTES);
            folded.add(other);
        }
    }
};

template <class S>
__device__ __forceinline__ void attend_few(const FewParams& params) {
    trace_few(params.trace, 0);
    grid_dependency_launch();
    const int warp = static_cast<int>(warp_id()) % GROUP_WARPS, group = static_cast<int>(warp_id()) / GROUP_WARPS;
    const FewShared<S> shared(group);
    const FewParts<S> parts(shared);
    const AttentionTask task = find_task(params, static_cast<int>(blockIdx.x) / parts.cluster);
    if (task.num_rows <= 0) return;
    const int root = task.item.context - task.item.rows;
    const int key_begin = max(root + 1 - params.window, 0), key_end = task.item.context;
    const FewCopies<S> copies = {params, task, shared.ring, warp, key_begin, key_end, root};
    const int first_part = parts.rank * parts.share;
    const Walk<S> walk(group, key_begin / S::KEYS, (key_end + S::KEYS - 1) / S::KEYS, first_part,
                       first_part + parts.share - 1);
    FewRows<S> rows(params, task, shared);
    FewTile<S> tile = {params, task, shared, copies, rows, walk, walk, {}, 0, -1};
    int visits[S::STAGES], pages[S::STAGES][S::SLOTS];
#pragma unroll
    for (int stage = 0; stage < S::STAGES; ++stage) {
        visits[stage] = tile.ahead.visit();
#pragma unroll
        for (int slot = 0; slot < S::SLOTS; ++slot) pages[stage][slot] = copies.page_of(visits[stage], slot);
        if (!tile.ahead.is_done()) tile.ahead.go_on();
    }
    tile.find_pages();
    ChunkCopy fresh[S::STAGES * S::SLOTS];
#pragma unroll
    for (int i = 0; i < S::STAGES * S::SLOTS; ++i) {
        const int stage = i / S::SLOTS, slot = i % S::SLOTS;
        fresh[i] = copies.describe(visits[stage], slot, pages[stage][slot], stage);
        if (visits[stage] < walk.end) copies.template copy<OLD_KEYS>(fresh[i]);
        if (!copies.is_new(fresh[i].first)) fresh[i].to = nullptr;
    }
    const QueryCopies<S> queries(params, task);
    tile.see_from = max(task.item.context - params.window, 0);
    tile.see_until = task.item.is_tree ? root : root + token_of(task.first_row, params) + 1;
    trace_few(params.trace, 1);
    const unsigned known = tile.next_pages[0] ^ rows.visible[0].high ^ static_cast<unsigned>(fresh[0].from ^ queries.from[0]);
    grid_dependency_wait_after(known & 0x3fffffff);
    trace_few(params.trace, 2);
    queries.copy(params, task, shared.queries);
#pragma unroll
    for (int i = 0; i < S::STAGES * S::SLOTS; ++i) {
        if (fresh[i].to != nullptr) copies.template copy<NEW_KEYS>(fresh[i]);
    }
    copy_async_commit();
    copy_async_wait<0>();
    if (parts.cluster > 1) cluster_wait();
    block_sync();
    trace_few(params.trace, 3);
    FewFolded<S> folded;
    folded.clear();
    unsigned with_keys = 0;
    for (int part = 0; part < PARTS; ++part) with_keys |= (walk.first_of(part) * SUBS < walk.end ? 1u : 0u) << part;
    for (int part = first_part; part < first_part + parts.share; ++part) {
        if (!(with_keys >> part & 1)) continue;
        if (part != first_part) block_sync();  // the subs of the part before have been read
        FewFolded<S> other;
        tile.add_part(part, other);
        trace_few(params.trace, 4);
        if (parts.rank == 0) {
            folded.add(other);
        } else {
            parts.send(part, other);
        }
    }
    copy_async_wait<0>();
    if (parts.cluster > 1 && parts.rank != 0) {
        cluster_arrive();
        cluster_wait();  // what was sent has been read here
        return;
    }
    if (parts.cluster > 1) {
        parts.fold(folded, with_keys);
        cluster_arrive();
    }
    trace_few(params.trace, 5);
    folded.write(params, task);
    trace_few(params.trace, 6);
    if (parts.cluster > 1) cluster_wait();
}
