// The blocks that choose: for each request the C best continuations of its beams at every depth, of which the W best go
// on, and in the end its tree.
//
// A thread looks at tiles' maxima, not at logits. The C best tiles hold the C best continuations; a first threshold, the
// C-th best of some groups of threads, leaves few tiles to rank, and the C-th best tile's maximum, few logits. Ranks are
// keys that no two have alike: score first, then the earlier beam and token. So which are chosen depends on no order of
// threads, and the lists have bounds that hold for any input.
//
// A tree's N - 1 best candidates so far are held from depth to depth; the next are merged while the chain runs.
#pragma once

#include "head.cuh"
#include "tree_pack/tree_pack.cuh"

constexpr int MOST_CANDIDATES = 64;  // C
constexpr int MOST_PASS_ROWS = 128;  // R
constexpr int READ_WARPS_BITS = 3;  // how many warps read maxima, a power of 2
constexpr int PLACE_BITS = 24;  // of a tile or a token within a beam
constexpr int SELECT_FIXED_BYTES = 22 * 1024;
static_assert(PASS_THREADS / 2 >= 2 * MOST_CANDIDATES, "a group for each candidate held and new");

// A node that a tree may have. `rank` orders by score, then by the number of the candidate.
struct Candidate {
    unsigned long long rank;
    int token;
    int parent;  // number of another, -1 is the root
};

struct SelectShared {
    unsigned long long group_keys[PASS_THREADS];
    unsigned long long found[MOST_CANDIDATES * TILE_ROWS];
    int found_tokens[MOST_CANDIDATES * TILE_ROWS];
    unsigned long long best[MOST_CANDIDATES];
    int best_tokens[MOST_CANDIDATES];
    int chosen[MOST_CANDIDATES];  // beam and tile
    int parent_of[PACK_MOST_NODES];
    unsigned long long group_threshold;
    unsigned long long tile_threshold;
    int num_listed;
    int num_found;
    float part_largest[MOST_CANDIDATES];  // of each beam and warp of it
    float part_sum[MOST_CANDIDATES];
    float shift[PASS_WARPS][MOST_CANDIDATES];  // what makes a beam's logits cumulative log-probabilities, for each warp
    float parent_scores[MOST_CANDIDATES];
    float beam_scores[MOST_PASS_ROWS];  // (own requests, W)
};
static_assert(sizeof(SelectShared) <= SELECT_FIXED_BYTES, "SELECT_FIXED_BYTES");

// The threads of a block in groups of 2^bits, each of which has one of some things.
struct Grouping {
    int bits;

    // The largest groups that leave each of `count` things one; the smallest are pairs, in rounds, for more.
    static __device__ Grouping of(int count) {
        return {count <= PASS_THREADS / 16 ? 4 : count <= PASS_THREADS / 8 ? 3 : count <= PASS_THREADS / 4 ? 2 : 1};
    }

    __device__ int groups() const { return PASS_THREADS >> bits; }
    __device__ int own() const { return static_cast<int>(threadIdx.x) >> bits; }
    __device__ int member() const { return static_cast<int>(threadIdx.x) & ((1 << bits) - 1); }
    __device__ bool is_first() const { return member() == 0; }

    // How many of `count` keys are above `key`, which is the group's.
    template <class KeyAt>
    __device__ int rank_among(int count, unsigned long long key, KeyAt key_at) const {
        int above = 0;
#pragma unroll 4
        for (int at = member(); at < count; at += 1 << bits) above += key_at(at) > key;
        for (int mask = 1; mask < 1 << bits; mask *= 2) above += shfl_xor(above, mask);
        return above;
    }
};

// How a request's tiles are shared out: 2^parts_bits warps read a beam's, each lane has every 32nd of a part of them, and
// a thread one share, or more where there are more shares than threads. The C best of groups of threads' shares hold at
// least C tiles, so groups are as many as leave that few.
struct Shares {
    int parts_bits = READ_WARPS_BITS;
    int count;   // of all beams
    int tiles;   // of one, at most
    Grouping grouping = {0};

    __device__ Shares(int width, int num_tiles, int num_candidates) {
        while (parts_bits > 0 && width << parts_bits > 1 << READ_WARPS_BITS) --parts_bits;
        count = width << parts_bits << 5;
        tiles = divide_up(num_tiles, stride());
        while (grouping.bits < 4 && used() >> 1 >= num_candidates + num_candidates / 2) ++grouping.bits;
    }

    __device__ int parts() const { return 1 << parts_bits; }
    __device__ int stride() const { return 32 << parts_bits; }  // between the tiles of one
    __device__ int used() const { return min(count, PASS_THREADS) >> grouping.bits; }  // groups
    __device__ int tiles_of_group() const { return divide_up(count, PASS_THREADS) * tiles << grouping.bits; }
};

struct Select {
    const DraftPassParams& params;
    const unsigned first_tag;
    SelectShared& shared;
    Candidate* held;             // (own requests, 2 * MOST_CANDIDATES)
    unsigned long long* listed;  // ranks of tiles
    float* maxima;               // (W, T), as the head left them
    float* share_largest;        // of each share of tiles
    int* share_tile;
    int num_tiles;
    int count;  // C

    __device__ Select(const DraftPassParams& params, unsigned first_tag)
        : params(params), first_tag(first_tag), shared(*reinterpret_cast<SelectShared*>(shared_memory())),
          num_tiles(divide_up(params.num_draft, TILE_ROWS)), count(max(params.num_beams, params.num_nodes - 1)) {
        const int own_requests = divide_up(params.requests, params.select_blocks);
        held = reinterpret_cast<Candidate*>(shared_memory() + SELECT_FIXED_BYTES);
        listed = reinterpret_cast<unsigned long long*>(held + own_requests * 2 * MOST_CANDIDATES);
        const int shares = most(Shares(1, num_tiles, count).count, Shares(params.num_beams, num_tiles, count).count);
        share_largest = reinterpret_cast<float*>(listed + most(most_listed(1), most_listed(params.num_beams)));
        share_tile = reinterpret_cast<int*>(share_largest + shares);
        maxima = reinterpret_cast<float*>(share_tile + shares);
    }

    static __device__ int most(int a, int b) { return max(a, b); }

    // Tiles of the C best groups.
    __device__ int most_listed(int width) const {
        return min(count * Shares(width, num_tiles, count).tiles_of_group(), width * num_tiles);
    }

    // `body(request, own request)`
    template <class Body>
    __device__ void each_request(Body body) const {
#pragma unroll 1
        for (int own = 0, request = blockIdx.x - params.chain_blocks; request < params.requests;
             ++own, request += params.select_blocks)
            body(request, own);
    }

    __device__ void run() {
        if (threadIdx.x < MOST_PASS_ROWS) shared.beam_scores[threadIdx.x] = 0.0f;
        block_sync();
#pragma unroll 1
        for (int depth = 1; depth <= params.depth; ++depth)
            each_request([&](int request, int own) {
                select(depth, request, depth == 1 ? 1 : params.num_beams, shared.beam_scores + own * params.num_beams);
                hold(depth, held + own * 2 * MOST_CANDIDATES);
            });
        each_request([&](int request, int own) { write_tree(request, held + own * 2 * MOST_CANDIDATES); });
    }

    __device__ void select(int depth, int request, int width, float* beam_scores) {
        const unsigned tag = first_tag + depth;
        const long long first_row = first_row_of(params, depth) + static_cast<long long>(request) * width;
        if (static_cast<int>(threadIdx.x) < count) {
            shared.best[threadIdx.x] = rank_of(-INFINITY, 0);
            shared.best_tokens[threadIdx.x] = 0;
        }
        if (static_cast<int>(threadIdx.x) < width) shared.parent_scores[threadIdx.x] = beam_scores[threadIdx.x];
        if (threadIdx.x == 0) {
            shared.group_threshold = shared.tile_threshold = 0;
            shared.num_listed = shared.num_found = 0;
        }
        const Shares shares(width, num_tiles, count);
        read_maxima(tag, first_row, width, shares);
        block_sync();
        trace(depth, 0);
        params.is_direct ? take_shifts(depth, width) : find_shifts(width, shares);
        trace(depth, 5);
        list_tiles(shares);
        trace(depth, 1);
        choose_tiles();
        trace(depth, 2);
        find_continuations(tag, first_row, depth < params.depth);
        trace(depth, 3);
        rank_continuations();
        trace(depth, 4);
        if (static_cast<int>(threadIdx.x) < params.num_beams) {
            const unsigned long long best = shared.best[threadIdx.x];
            const int beam = place_of(best) >> PLACE_BITS;
            store_relaxed_word(params.beams + request * params.num_beams + threadIdx.x,
                               tagged(static_cast<unsigned>(shared.best_tokens[threadIdx.x]) << DEPTH_BITS | beam, tag));
            beam_scores[threadIdx.x] = continued(best);
        }
    }

    // The score of a continuation. Rounding must not put it above its parent's.
    __device__ float continued(unsigned long long best) const {
        return fminf(score_of(best), shared.parent_scores[place_of(best) >> PLACE_BITS]);
    }

    // Copy a request's maxima, find the largest of each share, and add up the softmax of each beam in parts of a warp.
    __device__ void read_maxima(unsigned tag, long long first_row, int width, const Shares& shares) {
        constexpr int BATCH = 8;
        const int part = static_cast<int>(warp_id()) & (shares.parts() - 1), stride = shares.stride();
        if (warp_id() >= 1 << READ_WARPS_BITS) return;
#pragma unroll 1
        for (int beam = static_cast<int>(warp_id()) >> shares.parts_bits; beam < width;
             beam += 1 << READ_WARPS_BITS >> shares.parts_bits) {
            const unsigned long long* words = params.maxima + (first_row + beam) * num_tiles * 2;
            float largest = -INFINITY, sum = 0.0f;
            int largest_tile = -1;
#pragma unroll 1
            for (int from = 32 * part; from < num_tiles; from += BATCH * stride) {
                ulonglong2 pairs[BATCH];
                const int wanted = divide_up(num_tiles - from, stride), first = from + static_cast<int>(lane_id());
                await_pairs(
                    pairs, tag, [&](int i) { return words + 2 * min(first + i * stride, num_tiles - 1); }, wanted);
                const float before = largest;
#pragma unroll
                for (int i = 0; i < BATCH; ++i)
                    if (first + i * stride < num_tiles) {
                        maxima[beam * num_tiles + first + i * stride] = value_of(pairs[i].x);
                        if (largest_tile < 0 || value_of(pairs[i].x) > largest) {
                            largest = value_of(pairs[i].x);
                            largest_tile = first + i * stride;
                        }
                    }
                sum = sum > 0 ? sum * exp2_fast((before - largest) * LOG2_OF_E) : 0.0f;
#pragma unroll
                for (int i = 0; i < BATCH; ++i)
                    if (first + i * stride < num_tiles)
                        sum += value_of(pairs[i].y) * exp2_fast((value_of(pairs[i].x) - largest) * LOG2_OF_E);
            }
            const int share = (beam << shares.parts_bits | part) * 32 + static_cast<int>(lane_id());
            share_largest[share] = largest;
            share_tile[share] = largest_tile;
            const float warp_largest = warp_max(largest);
            sum = warp_sum(sum > 0 ? sum * exp2_fast((largest - warp_largest) * LOG2_OF_E) : 0.0f);  // 0: no tiles
            if (lane_id() == 0) {
                shared.part_largest[beam << shares.parts_bits | part] = warp_largest;
                shared.part_sum[beam << shares.parts_bits | part] = sum;
            }
        }
    }

    // The shifts that the chain has.
    __device__ void take_shifts(int depth, int width) {
        const int beam = static_cast<int>(warp_id());
        if (beam < width) {
            const int blocks = summary_blocks(params);
            ulonglong2 sums[LANE_BLOCKS];
            await_pairs(sums, first_tag + depth, [&](int i) { return lane_sums(params, depth, beam, blocks, i); });
            const float shift = shift_of(sums, blocks, shared.parent_scores[beam]);
            if (lane_id() < PASS_WARPS) shared.shift[lane_id()][beam] = shift;
        }
        block_sync();
    }

    // By each warp for itself: the parts of the beams, a lane each.
    __device__ void find_shifts(int width, const Shares& shares) {
        const int num_parts = width << shares.parts_bits;
#pragma unroll 1
        for (int first = 0; first < num_parts; first += 32) {
            const int at = min(first + static_cast<int>(lane_id()), num_parts - 1), beam = at >> shares.parts_bits;
            const float part_largest = shared.part_largest[at];
            float largest = part_largest;
            for (int mask = 1; mask < shares.parts(); mask *= 2) largest = fmaxf(largest, shfl_xor(largest, mask));
            float sum = shared.part_sum[at] * exp2_fast((part_largest - largest) * LOG2_OF_E);
            for (int mask = 1; mask < shares.parts(); mask *= 2) sum += shfl_xor(sum, mask);
            if (first + static_cast<int>(lane_id()) == at && (at & (shares.parts() - 1)) == 0)
                shared.shift[warp_id()][beam] = shared.parent_scores[beam] - (largest + LN_2 * log2_fast(sum));
        }
        warp_sync();
    }

    // List the tiles that are not worse than the best of any of the C best groups of shares.
    __device__ void list_tiles(const Shares& shares) {
        unsigned long long own = 0;
#pragma unroll 1
        for (int share = threadIdx.x; share < shares.count; share += PASS_THREADS) {
            const int beam = share >> 5 >> shares.parts_bits, tile = share_tile[share];
            if (tile >= 0)
                own = max(own, rank_of(share_largest[share] + shared.shift[warp_id()][beam], beam << PLACE_BITS | tile));
        }
        const Grouping& grouping = shares.grouping;
        unsigned long long group_key = own;
        for (int mask = 1; mask < 1 << grouping.bits; mask *= 2) group_key = max(group_key, shfl_xor(group_key, mask));
        if (grouping.is_first()) shared.group_keys[grouping.own()] = group_key;
        block_sync();
        const int rank = grouping.rank_among(shares.used(), group_key, [&](int at) { return shared.group_keys[at]; });
        if (rank == count - 1 && group_key != 0 && grouping.is_first()) shared.group_threshold = group_key;
        block_sync();
        const unsigned long long threshold = shared.group_threshold;
        if (own >= threshold && own != 0) list_shares(shares, threshold);
        block_sync();
    }

    __device__ void list_shares(const Shares& shares, unsigned long long threshold) {
#pragma unroll 1
        for (int share = threadIdx.x; share < shares.count; share += PASS_THREADS) {
            const int beam = share >> 5 >> shares.parts_bits;
            const float shift = shared.shift[warp_id()][beam];
#pragma unroll 4
            for (int tile = share & (shares.stride() - 1); tile < num_tiles; tile += shares.stride()) {
                const unsigned long long rank =
                    rank_of(maxima[beam * num_tiles + tile] + shift, beam << PLACE_BITS | tile);
                if (rank >= threshold) listed[atomicAdd(&shared.num_listed, 1)] = rank;
            }
        }
    }

    // The C best tiles, or all that are listed where there is room for them: ranking takes longer than reading more.
    __device__ void choose_tiles() {
        const int num_listed = shared.num_listed;
        if (num_listed <= MOST_CANDIDATES) {
            if (static_cast<int>(threadIdx.x) < num_listed) shared.chosen[threadIdx.x] = place_of(listed[threadIdx.x]);
            if (threadIdx.x == 0) shared.tile_threshold = shared.group_threshold;
            block_sync();
            return;
        }
        const Grouping grouping = Grouping::of(num_listed);
#pragma unroll 1
        for (int first = 0; first < num_listed; first += grouping.groups()) {
            const int at = first + grouping.own();
            const unsigned long long own = at < num_listed ? listed[at] : 0;
            const int rank = grouping.rank_among(num_listed, own, [&](int other) { return listed[other]; });
            if (at >= num_listed || rank >= count || !grouping.is_first()) continue;
            shared.chosen[rank] = place_of(own);
            if (rank == count - 1) shared.tile_threshold = own;
        }
        block_sync();
    }

    // The logits of the chosen tiles that are not worse than what all the chosen tiles' largest reach. The chain will ask for
    // the embeddings of some.
    __device__ void find_continuations(unsigned tag, long long first_row, bool goes_on) {
        constexpr int BATCH = (MOST_CANDIDATES * TILE_ROWS + PASS_THREADS - 1) / PASS_THREADS;
        const int num_listed = shared.num_listed, num_chosen = num_listed <= MOST_CANDIDATES ? num_listed : count;
        const int num_places = num_chosen * TILE_ROWS;
        const int batch = divide_up(num_places, PASS_THREADS);
        const unsigned long long threshold = shared.tile_threshold;
        int chosen[BATCH], entry[BATCH], token[BATCH];
        const unsigned long long* address[BATCH];
        unsigned bits[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            const int at = min(i * PASS_THREADS + static_cast<int>(threadIdx.x), num_places - 1);
            chosen[i] = shared.chosen[at / TILE_ROWS];
            entry[i] = min(chosen[i] % (1 << PLACE_BITS) * TILE_ROWS + at % TILE_ROWS, params.num_draft - 1);
            address[i] = params.logits + (first_row + (chosen[i] >> PLACE_BITS)) * num_tiles * TILE_ROWS + entry[i];
            if (i < batch) token[i] = static_cast<int>(params.vocab_ids[entry[i]]);
        }
        await_words(bits, tag, address, batch);
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            const int at = i * PASS_THREADS + static_cast<int>(threadIdx.x), beam = chosen[i] >> PLACE_BITS;
            const int place = chosen[i] % (1 << PLACE_BITS) * TILE_ROWS + at % TILE_ROWS;
            if (at >= num_places || place != entry[i]) continue;
            const float score = __uint_as_float(bits[i]) + shared.shift[warp_id()][beam];
            if (rank_of(score, chosen[i]) >= threshold)
                add_found(rank_of(score, beam << PLACE_BITS | entry[i]), token[i], goes_on);
        }
        block_sync();
    }

    __device__ void add_found(unsigned long long rank, int token, bool goes_on) {
        const int found = atomicAdd(&shared.num_found, 1);
        shared.found[found] = rank;
        shared.found_tokens[found] = token;
        if (!goes_on) return;
        const char* row = static_cast<const char*>(params.embedding) + 2ll * token * params.hidden_size;
#pragma unroll 1
        for (int byte = 0; byte < 2 * params.hidden_size; byte += 128) prefetch_l2(row + byte);
    }

    __device__ void rank_continuations() {
        const int num_found = shared.num_found;
        const Grouping grouping = Grouping::of(num_found);
#pragma unroll 1
        for (int first = 0; first < num_found; first += grouping.groups()) {
            const int at = first + grouping.own();
            const unsigned long long own = at < num_found ? shared.found[at] : 0;
            const int rank = grouping.rank_among(num_found, own, [&](int other) { return shared.found[other]; });
            if (at >= num_found || rank >= count || !grouping.is_first()) continue;
            shared.best[rank] = own;
            shared.best_tokens[rank] = shared.found_tokens[at];
        }
        block_sync();
    }

    // Merge a depth's candidates with those held, of which the N - 1 best stay.
    __device__ void hold(int depth, Candidate* candidates) {
        const int num_held = depth == 1 ? 0 : params.num_nodes - 1, total = num_held + count;
        if (static_cast<int>(threadIdx.x) < count) {
            const unsigned long long best = shared.best[threadIdx.x];
            const int number = (depth - 1) * count + static_cast<int>(threadIdx.x);
            const int parent = depth == 1 ? -1 : (depth - 2) * count + (place_of(best) >> PLACE_BITS);
            candidates[num_held + threadIdx.x] = {rank_of(continued(best), number),
                                                  shared.best_tokens[threadIdx.x], parent};
        }
        block_sync();
        const Grouping grouping = Grouping::of(total);
        const Candidate own = candidates[min(grouping.own(), total - 1)];
        const int rank = grouping.rank_among(total, own.rank, [&](int at) { return candidates[at].rank; });
        block_sync();
        if (grouping.own() < total && rank < params.num_nodes - 1 && grouping.is_first()) candidates[rank] = own;
        block_sync();
    }

    // Number the candidates held in their order; what scores -inf or NaN is none.
    __device__ void write_tree(int request, const Candidate* candidates) {
        const int most = params.num_nodes - 1, at = threadIdx.x;
        const long long row = static_cast<long long>(request) * params.num_nodes;
        if (at < params.num_nodes) {
            shared.parent_of[at] = -1;  // padding, until a candidate takes the node
            params.token_ids[row + at] = at == 0 ? root_of(params, request) : -1;
        }
        block_sync();
        if (at < most && is_node(candidates[at])) {
            int node = 1, parent = 1;
            bool has_parent = false;
            for (int other = 0; other < most; ++other) {
                if (!is_node(candidates[other])) continue;
                const int number = place_of(candidates[other].rank);
                node += number < place_of(candidates[at].rank);
                parent += number < candidates[at].parent;
                has_parent |= number == candidates[at].parent;
            }
            shared.parent_of[node] = has_parent ? parent : 0;
            params.token_ids[row + node] = candidates[at].token;
        }
        block_sync();
        write_links(params.parents + row, params.depths + row, params.ancestors + row, shared.parent_of,
                    params.num_nodes);
        block_sync();  // the next request's
    }

    static __device__ bool is_node(const Candidate& candidate) { return score_of(candidate.rank) > -INFINITY; }
};
