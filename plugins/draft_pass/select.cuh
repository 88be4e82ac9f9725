// The blocks that choose: for each request the C best continuations of its beams at every depth, of which the W best go
// on, and in the end its tree.
//
// A thread looks at tiles' maxima, not at logits. The C best tiles hold the C best continuations; a first threshold, the
// C-th best of GROUPS shares of the tiles, leaves few tiles to rank, and the C-th best tile's maximum, few logits. Ranks
// are keys that no two have alike: score first, then the earlier beam and token. So which are chosen depends on no order
// of threads, and the lists have bounds that hold for any input.
#pragma once

#include "head.cuh"
#include "tree_pack/tree_pack.cuh"

constexpr int MOST_CANDIDATES = 64;    // C
constexpr int MOST_PASS_ROWS = 128;    // R
constexpr int GROUPS = PASS_THREADS / 4;
static_assert(GROUPS >= MOST_CANDIDATES, "one of each group at least may be chosen");

constexpr int SELECT_FIXED_BYTES = 16 * 1024;

struct SelectShared {
    unsigned long long group_keys[GROUPS];
    unsigned long long found[MOST_CANDIDATES * TILE_ROWS];
    int found_tokens[MOST_CANDIDATES * TILE_ROWS];
    unsigned long long best[MOST_CANDIDATES];
    int best_tokens[MOST_CANDIDATES];
    int chosen[MOST_CANDIDATES];  // beam * T + tile
    unsigned long long share_threshold;
    unsigned long long tile_threshold;
    int num_listed;
    int num_found;
    float part_largest[MOST_CANDIDATES];  // of each warp, or of each beam where there are more
    float part_sum[MOST_CANDIDATES];
    float shift[MOST_CANDIDATES];         // what makes a beam's logits cumulative log-probabilities
    float parent_scores[MOST_CANDIDATES];
    float beam_scores[MOST_PASS_ROWS];    // (own requests, W)
};

static_assert(sizeof(SelectShared) <= SELECT_FIXED_BYTES, "SELECT_FIXED_BYTES");

// Orders by score, and of equal scores the lower place first.
__device__ __forceinline__ unsigned long long rank_of(float score, int place) {
    const unsigned bits = __float_as_uint(score + 0.0f);  // -0 ranks as 0
    const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<unsigned long long>(ordered) << 32 | static_cast<unsigned>(~place);
}

__device__ __forceinline__ float score_of(unsigned long long rank) {
    const unsigned ordered = static_cast<unsigned>(rank >> 32);
    return __uint_as_float(ordered & 0x80000000u ? ordered ^ 0x80000000u : ~ordered);
}

__device__ __forceinline__ int place_of(unsigned long long rank) { return static_cast<int>(~static_cast<unsigned>(rank)); }

// How many of `count` keys are above `own`, by the four threads of a group together.
__device__ __forceinline__ int rank_among(const unsigned long long* keys, int count, unsigned long long own) {
    int above = 0;
    for (int at = lane_id() % 4; at < count; at += 4) above += keys[at] > own;
    above += shfl_xor(above, 1);
    return above + shfl_xor(above, 2);
}

struct Select {
    const DraftPassParams& params;
    unsigned first_tag;
    SelectShared& shared;
    float* maxima;               // (W, T), as the head left them
    unsigned long long* listed;  // ranks of tiles
    int num_tiles;
    int count;  // C

    __device__ Select(const DraftPassParams& params, unsigned first_tag)
        : params(params), first_tag(first_tag), shared(*reinterpret_cast<SelectShared*>(shared_memory())) {
        num_tiles = divide_up(params.num_draft, TILE_ROWS);
        count = max(params.num_beams, params.num_nodes - 1);
        listed = reinterpret_cast<unsigned long long*>(shared_memory() + SELECT_FIXED_BYTES);
        maxima = reinterpret_cast<float*>(listed + most_listed());
    }

    // Tiles in the shares of C groups.
    __device__ int most_listed() const {
        const int share = 4 * params.num_beams * divide_up(num_tiles, PASS_THREADS);
        return min(count * share, params.num_beams * num_tiles);
    }

    __device__ int first_request() const { return static_cast<int>(blockIdx.x) - params.chain_blocks; }

    __device__ void run() {
        if (threadIdx.x < MOST_PASS_ROWS) shared.beam_scores[threadIdx.x] = 0.0f;
        block_sync();
        for (int depth = 1; depth <= params.depth; ++depth)
            for (int request = first_request(); request < params.requests; request += params.select_blocks)
                select(depth, request, depth == 1 ? 1 : params.num_beams,
                       shared.beam_scores + request / params.select_blocks * params.num_beams);
        for (int request = first_request(); request < params.requests; request += params.select_blocks) {
            trace(0, 0);
            block_sync();  // what the threads have written of candidates; and the tree before
            pack_tree<PASS_THREADS>(
                {params.candidate_ids, params.candidate_parents, params.candidate_scores, params.root_ids,
                 params.token_ids, params.parents, params.depths, params.ancestors, params.depth * count,
                 params.num_nodes},
                request, shared_memory());
            trace(0, 1);
        }
    }

    __device__ void select(int depth, int request, int width, float* beam_scores) {
        const unsigned tag = first_tag + depth;
        const long long first_row = static_cast<long long>(request) * width;
        read_maxima(tag, first_row, width);
        block_sync();
        trace(depth, 0);
        if (threadIdx.x < width) {
            shared.parent_scores[threadIdx.x] = beam_scores[threadIdx.x];
            shared.shift[threadIdx.x] = beam_scores[threadIdx.x] - log_sum(threadIdx.x, width);
        }
        if (threadIdx.x < count) shared.best[threadIdx.x] = rank_of(-INFINITY, 0);
        if (threadIdx.x < count) shared.best_tokens[threadIdx.x] = 0;
        if (threadIdx.x == 0) {
            shared.share_threshold = shared.tile_threshold = 0;
            shared.num_listed = shared.num_found = 0;
        }
        block_sync();
        list_tiles(width);
        trace(depth, 1);
        choose_tiles(width);
        trace(depth, 2);
        find_continuations(tag, first_row, width);
        trace(depth, 3);
        rank_continuations();
        trace(depth, 4);
        if (threadIdx.x < count) leave(depth, request, width, beam_scores);
    }

    __device__ int warps_per_beam(int width) const { return max(1, PASS_WARPS / width); }

    // Copy a request's maxima, and add up the softmax of each beam in parts of a warp each.
    __device__ void read_maxima(unsigned tag, long long first_row, int width) {
        constexpr int BATCH = 4;
        const int parts = warps_per_beam(width), part = static_cast<int>(warp_id()) % parts;
        for (int beam = static_cast<int>(warp_id()) / parts; beam < width; beam += PASS_WARPS / parts) {
            const unsigned long long* words = params.maxima + (first_row + beam) * num_tiles * 2;
            float largest = -INFINITY, sum = 0.0f;
            for (int from = 32 * part; from < num_tiles; from += BATCH * 32 * parts) {
                ulonglong2 pairs[BATCH];
                const auto tile_of = [=](int i) { return from + i * 32 * parts + static_cast<int>(lane_id()); };
                await_pairs(pairs, tag, [&](int i) -> const unsigned long long* {
                    return tile_of(i) < num_tiles ? words + 2 * tile_of(i) : nullptr;
                });
#pragma unroll
                for (int i = 0; i < BATCH; ++i) {
                    if (tile_of(i) >= num_tiles) continue;
                    const float tile_largest = value_of(pairs[i].x), before = largest;
                    maxima[beam * num_tiles + tile_of(i)] = tile_largest;
                    largest = fmaxf(largest, tile_largest);
                    sum = sum * exp2_fast((before - largest) * LOG2_OF_E) +
                          value_of(pairs[i].y) * exp2_fast((tile_largest - largest) * LOG2_OF_E);
                }
            }
            const float warp_largest = warp_max(largest);
            sum = warp_sum(sum > 0 ? sum * exp2_fast((largest - warp_largest) * LOG2_OF_E) : 0.0f);  // 0: no tiles
            if (lane_id() == 0) {
                shared.part_largest[beam * parts + part] = warp_largest;
                shared.part_sum[beam * parts + part] = sum;
            }
        }
    }

    __device__ float log_sum(int beam, int width) const {
        constexpr float LN_2 = 0.6931471805599453f;
        const int parts = warps_per_beam(width);
        float largest = -INFINITY, sum = 0.0f;
        for (int part = 0; part < parts; ++part) largest = fmaxf(largest, shared.part_largest[beam * parts + part]);
        for (int part = 0; part < parts; ++part)
            sum += shared.part_sum[beam * parts + part] *
                   exp2_fast((shared.part_largest[beam * parts + part] - largest) * LOG2_OF_E);
        return largest + LN_2 * log2_fast(sum);
    }

    // `body(rank)` of this thread's share of the tiles.
    template <class Body>
    __device__ void each_tile(int width, Body body) const {
        for (int beam = 0; beam < width; ++beam)
            for (int tile = threadIdx.x; tile < num_tiles; tile += PASS_THREADS)
                body(rank_of(maxima[beam * num_tiles + tile] + shared.shift[beam], beam * num_tiles + tile));
    }

    // List the tiles that are not worse than the best of any of the C best groups' shares.
    __device__ void list_tiles(int width) {
        unsigned long long own = 0;
        each_tile(width, [&](unsigned long long rank) { own = max(own, rank); });
        unsigned long long group_key = max(own, shfl_xor(own, 1));
        group_key = max(group_key, shfl_xor(group_key, 2));
        if (threadIdx.x % 4 == 0) shared.group_keys[threadIdx.x / 4] = group_key;
        block_sync();
        const int rank = rank_among(shared.group_keys, GROUPS, group_key);
        if (rank == count - 1 && group_key != 0 && threadIdx.x % 4 == 0) shared.share_threshold = group_key;
        block_sync();
        const unsigned long long threshold = shared.share_threshold;
        if (own >= threshold)
            each_tile(width, [&](unsigned long long rank) {
                if (rank >= threshold) listed[atomicAdd(&shared.num_listed, 1)] = rank;
            });
        block_sync();
    }

    __device__ void choose_tiles(int width) {
        const int num_listed = shared.num_listed;
        for (int first = 0; first < num_listed; first += GROUPS) {
            const int at = first + static_cast<int>(threadIdx.x) / 4;
            const unsigned long long own = at < num_listed ? listed[at] : 0;
            const int rank = rank_among(listed, num_listed, own);
            if (at >= num_listed || rank >= count || threadIdx.x % 4 != 0) continue;
            shared.chosen[rank] = place_of(own);
            if (rank == count - 1) shared.tile_threshold = own;
        }
        block_sync();
    }

    // The logits of the chosen tiles that are not worse than the worst of these tiles' largest.
    __device__ void find_continuations(unsigned tag, long long first_row, int width) {
        const int num_places = min(count, shared.num_listed) * TILE_ROWS, padded = num_tiles * TILE_ROWS;
        const unsigned long long threshold = shared.tile_threshold;
        for (int from = 0; from < num_places; from += PASS_THREADS) {
            const int at = from + static_cast<int>(threadIdx.x);
            const int chosen = at < num_places ? shared.chosen[at / TILE_ROWS] : 0;
            const int beam = chosen / num_tiles, entry = chosen % num_tiles * TILE_ROWS + at % TILE_ROWS;
            const bool is_real = at < num_places && entry < params.num_draft;
            const int token = is_real ? static_cast<int>(params.vocab_ids[entry]) : 0;
            const unsigned bits =
                await_word(is_real ? params.logits + (first_row + beam) * padded + entry : nullptr, tag);
            const float score = __uint_as_float(bits) + shared.shift[beam];
            if (!is_real || rank_of(score, chosen) < threshold) continue;
            const int place = atomicAdd(&shared.num_found, 1);
            shared.found[place] = rank_of(score, beam * padded + entry);
            shared.found_tokens[place] = token;
        }
        block_sync();
    }

    __device__ void rank_continuations() {
        const int num_found = shared.num_found;
        for (int first = 0; first < num_found; first += GROUPS) {
            const int at = first + static_cast<int>(threadIdx.x) / 4;
            const unsigned long long own = at < num_found ? shared.found[at] : 0;
            const int rank = rank_among(shared.found, num_found, own);
            if (at >= num_found || rank >= count || threadIdx.x % 4 != 0) continue;
            shared.best[rank] = own;
            shared.best_tokens[rank] = shared.found_tokens[at];
        }
        block_sync();
    }

    // Publish a beam that goes on, and leave a candidate of the tree. Rounding must not put it above its parent.
    __device__ void leave(int depth, int request, int width, float* beam_scores) {
        const int rank = threadIdx.x, token = shared.best_tokens[rank];
        const unsigned long long best = shared.best[rank];
        const int beam = place_of(best) / (num_tiles * TILE_ROWS);
        const float score = fminf(score_of(best), shared.parent_scores[beam]);
        if (rank < params.num_beams) {
            store_relaxed_word(params.beams + request * params.num_beams + rank,
                               tagged(static_cast<unsigned>(token) << DEPTH_BITS | beam, first_tag + depth));
            beam_scores[rank] = score;
        }
        const long long at = (static_cast<long long>(request) * params.depth + depth - 1) * count + rank;
        params.candidate_ids[at] = token;
        params.candidate_parents[at] = depth == 1 ? -1 : (depth - 2) * count + beam;
        params.candidate_scores[at] = score;
    }
};
