// A block's way through one tile of attention_few.cuh.
#pragma once

#include "attention_few_rows.cuh"

// The block's visits, and what is under way of them.
template <class S>
struct FewVisits {
    const FewCopies<S>& copies;
    FewRows<S>& rows;
    Walk walk, ahead;  // the next visit, and the first that has not been asked for
    int next_page;     // of `ahead`
    ChunkCopy fresh;   // this warp's chunk that holds keys of this step, of those that have been asked for; or to nowhere
    unsigned seen;     // of the next visit
    int stage, last_stage;

    // Ask for the old keys of the first visits.
    __device__ __forceinline__ FewVisits(const FewCopies<S>& copies_, FewRows<S>& rows_, const Walk& walk_)
        : copies(copies_), rows(rows_), walk(walk_), ahead(walk_), fresh{0, nullptr, 0}, stage(0), last_stage(-1) {
        int asked[S::STAGES], pages[S::STAGES];
#pragma unroll
        for (int i = 0; i < S::STAGES; ++i) {
            asked[i] = ahead.visit;
            pages[i] = copies.page_of(asked[i]);
            if (!ahead.is_done()) ahead.go_on();
        }
        next_page = copies.page_of(ahead.visit);
#pragma unroll
        for (int i = 0; i < S::STAGES; ++i) {
            if (asked[i] >= walk.end) continue;
            const ChunkCopy chunk = copies.describe(asked[i], pages[i], i);
            copies.template copy<OLD_KEYS>(chunk);
            if (copies.is_new(chunk.first)) fresh = chunk;
        }
        seen = rows.seen_in(copies.first_key(walk.visit));
    }

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

// Wait for the launch before, once all has been computed that does not depend on it: what is asked for then.
template <class S>
__device__ __forceinline__ void wait_for_rows(const FewVisits<S>& visits, const QueryCopies<S>& queries,
                                              const FewOutput<S>& output) {
    // Multiples of 4 all, which the compiler does not know: never INT_MAX.
    const unsigned long long known = visits.fresh.from ^ queries.from[0] ^
                                     reinterpret_cast<unsigned long long>(output.rows[0]) ^
                                     reinterpret_cast<unsigned long long>(output.rows[1]);
    const unsigned others = static_cast<unsigned>(known >> 32) ^ visits.next_page ^ visits.seen;
    grid_dependency_wait_after(static_cast<int>(static_cast<unsigned>(known) + (others << 2)));
}

// Go over the visits; returns what the first block's own parts fold to. The other blocks' go to it.
template <class S>
__device__ __forceinline__ FewFolded<S> fold_visits(FewVisits<S>& visits, const FewParts<S>& parts) {
    FewFolded<S> folded;
    folded.clear();
    visits.rows.clear();
    while (!visits.walk.is_done()) {
        const int part = visits.walk.part;
        visits.go();
        if (visits.walk.part == part && !visits.walk.is_done()) continue;
        FewFolded<S> other;
        visits.rows.finish(other);
        visits.rows.clear();
        trace_few(visits.rows.params.trace, 4);
        if (parts.rank == 0) {
            folded.add(other);
        } else {
            parts.send(part, other);
        }
    }
    return folded;
}

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
    const int first_part = parts.rank * parts.share;
    const Walk walk(key_begin / VISIT_KEYS, (key_end + VISIT_KEYS - 1) / VISIT_KEYS, first_part,
                    first_part + parts.share - 1);
    FewRows<S> rows(params, task, shared);
    FewVisits<S> visits(copies, rows, walk);
    const QueryCopies<S> queries(params, task);
    const FewOutput<S> output(params, task);
    trace_few(params.trace, 1);
    wait_for_rows(visits, queries, output);
    trace_few(params.trace, 2);
    queries.copy(params, task, shared.queries);
    if (visits.fresh.to != nullptr) copies.template copy<NEW_KEYS>(visits.fresh);
    copy_async_commit();
    copy_async_wait<0>();
    if (parts.cluster > 1) cluster_wait();
    block_sync();
    trace_few(params.trace, 3);
    FewFolded<S> folded = fold_visits(visits, parts);
    copy_async_wait<0>();
    if (parts.rank == 0) {
        if (parts.cluster > 1) parts.fold(folded, walk);
        trace_few(params.trace, 5);
        output.write(folded);
        trace_few(params.trace, 6);
    }
    if (parts.cluster == 1) return;
    cluster_arrive();
    cluster_wait();  // what was sent has been read
}
