// A block's way through one tile of attention_few.cuh.
#pragma once

#include "attention_few_rows.cuh"

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

    // Each warp for itself: no barrier of the block.
    __device__ __forceinline__ void send(int part, const FewFolded<S>& folded) const {
        unsigned char* from = place(part);
        folded.store(from);
        bulk_copy_fence();
        warp_sync();
        if (lane_id() != 0) return;
        const PeerPointer to = peer_pointer(from, 0), barrier = peer_pointer(shared.arrived, 0);
#pragma unroll
        for (int j = 0; j < S::COLUMNS; ++j) {
            const int at = folded.column_at(j);
            if (folded.has_column(j)) copy_peer_bulk(to + at, from + at, S::COLUMN_BYTES, barrier);
        }
        constexpr int STATS = S::PIECES * S::COLUMN_BYTES;
        if (warp_id() == 0) copy_peer_bulk(to + STATS, from + STATS, S::PART_BYTES - STATS, barrier);
    }

    // By the first block: wait for the others' parts, and fold them in order.
    __device__ __forceinline__ void fold(FewFolded<S>& folded, const Walk& walk) const {
        int num_parts = 0;
        for (int part = share; part < PARTS; ++part) num_parts += walk.first_of(part) < walk.end;
        if (num_parts == 0) return;
        if (threadIdx.x == 0) mbarrier_arrive_expect(shared.arrived, num_parts * S::PART_BYTES);
        mbarrier_wait(shared.arrived, 0);
        for (int part = share; part < PARTS; ++part) {
            if (walk.first_of(part) >= walk.end) continue;
            FewFolded<S> other;
            other.load(place(part));
            folded.add(other);
        }
    }
};

// The block's visits, and what is under way of them.
template <class S>
struct FewVisits {
    const FewCopies<S>& copies;
    FewRows<S>& rows;
    Walk walk, ahead;  // the next visit, and the first that has not been asked for
    int next_page;     // of `ahead`
    unsigned seen;     // of the next visit
    int stage, last_stage;

    // Ask for a visit where nobody reads any more, if there is one.
    __device__ __forceinline__ void refill() {
        if (last_stage >= 0 && !ahead.is_done()) {
            copies.template copy<ALL_KEYS>(copies.describe(ahead.visit, next_page, last_stage));
            ahead.go_on();
            next_page = copies.page_of(ahead.visit);
        }
        copy_async_commit();
    }

    __device__ __forceinline__ void go() {
        copy_async_wait<S::STAGES - 2>();
        warp_sync();
        const unsigned char* keys = rows.shared.ring + stage * S::STAGE_BYTES;
        typename FewRows<S>::Scores scores;
        rows.multiply_keys(scores, keys);
        rows.share_maxima(scores, seen);
        block_sync();  // and nobody reads the stage before any more
        refill();
        rows.share_weights(scores);
        block_sync();
        rows.add_values(keys + VISIT_KEYS * S::ROW_BYTES, copies.key_end - walk.visit * VISIT_KEYS);
        walk.go_on();
        if (!walk.is_done()) seen = rows.seen_in(copies.first_key(walk.visit));
        last_stage = stage;
        stage = stage + 1 == S::STAGES ? 0 : stage + 1;
    }
};

template <class S>
__device__ __forceinline__ void attend_few(const FewParams& params) {
    trace_few(params.trace, 0);
    grid_dependency_launch();
    const FewShared<S> shared;
    const FewParts<S> parts(shared);
    const AttentionTask task = find_task(params, static_cast<int>(blockIdx.x) / parts.cluster);
    if (task.num_rows <= 0) return;
    const int root = task.item.context - task.item.rows;
    const int key_begin = max(root + 1 - params.window, 0), key_end = task.item.context;
    const FewCopies<S> copies = {params, task, shared.ring, key_begin, key_end, root};
    const Walk walk(key_begin / VISIT_KEYS, (key_end + VISIT_KEYS - 1) / VISIT_KEYS, parts.rank * parts.share,
                    parts.rank * parts.share + parts.share - 1);
    FewRows<S> rows(params, task, shared);
    FewVisits<S> visits = {copies, rows, walk, walk, 0, rows.seen_in(copies.first_key(walk.visit)), 0, -1};
    int asked[S::STAGES], pages[S::STAGES];
#pragma unroll
    for (int stage = 0; stage < S::STAGES; ++stage) {
        asked[stage] = visits.ahead.visit;
        pages[stage] = copies.page_of(asked[stage]);
        if (!visits.ahead.is_done()) visits.ahead.go_on();
    }
    visits.next_page = copies.page_of(visits.ahead.visit);
    ChunkCopy fresh = {0, nullptr, 0};
#pragma unroll
    for (int stage = 0; stage < S::STAGES; ++stage) {
        if (asked[stage] >= walk.end) continue;
        const ChunkCopy chunk = copies.describe(asked[stage], pages[stage], stage);
        copies.template copy<OLD_KEYS>(chunk);
        if (copies.is_new(chunk.first)) fresh = chunk;
    }
    const QueryCopies<S> queries(params, task);
    const FewOutput<S> output(params, task);
    rows.clear();
    trace_few(params.trace, 1);
    // Multiples of 4 all, which the compiler does not know: never INT_MAX.
    const unsigned long long known = fresh.from ^ queries.from[0] ^ reinterpret_cast<unsigned long long>(output.rows[0]) ^
                                     reinterpret_cast<unsigned long long>(output.rows[1]);
    const unsigned others = static_cast<unsigned>(known >> 32) ^ visits.next_page ^ visits.seen;
    grid_dependency_wait_after(static_cast<int>(static_cast<unsigned>(known) + (others << 2)));
    trace_few(params.trace, 2);
    queries.copy(params, task, shared.queries);
    if (fresh.to != nullptr) copies.template copy<NEW_KEYS>(fresh);
    copy_async_commit();
    copy_async_wait<0>();
    if (parts.cluster > 1) cluster_wait();
    block_sync();
    trace_few(params.trace, 3);
    FewFolded<S> folded;
    folded.clear();
    while (!visits.walk.is_done()) {
        const int part = visits.walk.part;
        visits.go();
        if (visits.walk.part == part && !visits.walk.is_done()) continue;
        FewFolded<S> other;
        rows.finish(other);
        rows.clear();
        trace_few(params.trace, 4);
        if (parts.rank == 0) {
            folded.add(other);
        } else {
            parts.send(part, other);
        }
    }
    copy_async_wait<0>();
    if (parts.rank != 0) {
        cluster_arrive();
        cluster_wait();  // what was sent has been read here
        return;
    }
    if (parts.cluster > 1) parts.fold(folded, walk);
    trace_few(params.trace, 5);
    output.write(folded);
    trace_few(params.trace, 6);
    if (parts.cluster == 1) return;
    cluster_arrive();
    cluster_wait();
}
