// The next token of each row of logits (R, V): argmax, or argmax of filtered logits / T + Gumbel noise. One launch.
//
// Grid (blocks per row, groups): a group of blocks shares a row, each a contiguous part of the vocabulary; where rows are
// more than groups, each group is one block and takes row after row. Blocks of a group meet at a counter, so the launch
// is cooperative; the last to finish a row picks the best of their candidates.
//
// Filters are thresholds on `rank`, a 56-bit integer whose order is that of the contract: by logit, then the lower token.
// A threshold is found digit by digit: each pass adds up, per value of the next 4 bits, the tokens that agree with the
// digits so far (a count for top_k, their mass for top_p). Masses are integers, so that no sum depends on its order.
// Tokens are compared with float32 noise; those within its error of the best are computed again in float64.
//
// Shared memory: SAMPLE_SHARED_BYTES. Logits are float32, bfloat16 or float16; their arithmetic is float64.
#pragma once

#include "element.cuh"
#include "grid.cuh"
#include "noise.cuh"

constexpr int SAMPLE_THREADS = 256;
constexpr int SAMPLE_WARPS = SAMPLE_THREADS / 32;
constexpr int DIGIT_BITS = 4;
constexpr int BINS = 1 << DIGIT_BITS;
constexpr int RANK_BITS = 56;
constexpr int TOKEN_BITS = 24;  // of a rank, below the logit's 32
constexpr long long NO_TOKEN = -1;
constexpr unsigned long long NAN_RANK = ~0ull;
constexpr double MASS_UNIT = 35184372088832.0;  // 2^45: of 2^18 tokens none overflows
constexpr double TINY_MASS = -32.0;  // e^-32 2^45 < 1/2
constexpr int MOST_BLOCKS_PER_ROW = 64;
constexpr int SAMPLE_SHARED_BYTES = BINS * SAMPLE_THREADS * 10 + 3072;

struct Candidate {
    double value;
    long long token;
};

struct SampleParams {
    const void* logits;  // (R, V)
    const float* temperature;
    const long long* top_k;
    const float* top_p;
    const float* min_p;
    const long long* seed;
    const long long* sample_index;
    const long long* position;
    long long* out;
    unsigned long long* partials;  // (groups, 2, blocks per row, 2 BINS)
    Candidate* candidates;         // (groups, blocks per row)
    unsigned* counters;            // (groups,), zero, and left so
    long long row_stride;
    int rows;
    int vocab;
};
static_assert(sizeof(SampleParams) == 13 * 8 + 2 * 4, "mirrored in cuda.py");

// What the threads of a block share while they draw.
struct SampleShared {
    unsigned long long mass[BINS][SAMPLE_THREADS];
    unsigned short count[BINS][SAMPLE_THREADS];  // of a thread's at most 2^18 / SAMPLE_THREADS tokens
    unsigned long long total_mass[BINS];
    unsigned long long total_count[BINS];
    unsigned long long shares[SAMPLE_WARPS][2 * BINS];
    Candidate best[SAMPLE_WARPS];
    unsigned long long rank[SAMPLE_WARPS];
    int is_last;
};
static_assert(sizeof(SampleShared) <= SAMPLE_SHARED_BYTES, "SAMPLE_SHARED_BYTES");

// A block's place: its group, its rank among the group's blocks, and how often it met them.
struct Meeting {
    unsigned* counter;
    unsigned blocks;
    unsigned met;
};

// All blocks of the group, all threads: what was written before is visible after.
__device__ __forceinline__ void meet(Meeting& meeting) {
    block_sync();
    if (meeting.blocks > 1 && threadIdx.x == 0) {
        add_release(meeting.counter, 1);
        const unsigned target = ++meeting.met * meeting.blocks;
        while (load_acquire(meeting.counter) < target) {
        }
    }
    block_sync();
}

__device__ __forceinline__ unsigned long long rank_of(float logit, int token) {
    if (logit != logit) return NAN_RANK;
    const unsigned bits = __float_as_uint(logit + 0.0f);  // -0 ranks as 0
    const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<unsigned long long>(ordered) << TOKEN_BITS | ((1u << TOKEN_BITS) - 1 - token);
}

__device__ __forceinline__ int token_of(unsigned long long rank) {
    return (1 << TOKEN_BITS) - 1 - static_cast<int>(rank & ((1u << TOKEN_BITS) - 1));
}

__device__ __forceinline__ unsigned long long larger(unsigned long long a, unsigned long long b) {
    return a > b ? a : b;
}

__device__ __forceinline__ Candidate better(const Candidate& a, const Candidate& b) {
    return b.value > a.value || (b.value == a.value && b.token < a.token) ? b : a;
}

__device__ __forceinline__ Candidate warp_best(Candidate best) {
    for (int mask = 16; mask > 0; mask /= 2) {
        const Candidate other = {shfl_xor(best.value, mask), shfl_xor(best.token, mask)};
        best = better(best, other);
    }
    return best;
}

// Every thread gets the block's.
__device__ __forceinline__ Candidate block_best(SampleShared& shared, Candidate best) {
    best = warp_best(best);
    block_sync();
    if (lane_id() == 0) shared.best[warp_id()] = best;
    block_sync();
    for (int warp = 0; warp < SAMPLE_WARPS; ++warp) best = better(best, shared.best[warp]);
    return best;
}

__device__ __forceinline__ unsigned long long block_largest(SampleShared& shared, unsigned long long rank) {
    for (int mask = 16; mask > 0; mask /= 2) rank = larger(rank, shfl_xor(rank, mask));
    block_sync();
    if (lane_id() == 0) shared.rank[warp_id()] = rank;
    block_sync();
    for (int warp = 0; warp < SAMPLE_WARPS; ++warp) rank = larger(rank, shared.rank[warp]);
    return rank;
}

// One row as one block sees it.
template <class T>
struct Row {
    const T* logits;
    int first_quad;  // of 4 tokens; the block's part
    int end_quad;
    int vocab;
    bool is_aligned;  // whether quads can be loaded at once
    double temperature;
    NoiseKey key;

    __device__ float logit(int token) const { return to_float(logits[token]); }
    __device__ double scaled(float logit) const { return static_cast<double>(logit) / temperature; }

    // Visit this thread's tokens, ascending.
    template <class Visit>
    __device__ void for_each(Visit visit) const {
        for (int quad = first_quad + threadIdx.x; quad < end_quad; quad += SAMPLE_THREADS) {
            float values[4];
            const int token = 4 * quad;
            if (sizeof(T) == 4 && is_aligned && token + 4 <= vocab) {
                const uint4 words = load16(logits + token);
                values[0] = __uint_as_float(words.x);
                values[1] = __uint_as_float(words.y);
                values[2] = __uint_as_float(words.z);
                values[3] = __uint_as_float(words.w);
            } else {
#pragma unroll
                for (int i = 0; i < 4; ++i) values[i] = token + i < vocab ? logit(token + i) : 0;
            }
            visit(quad, values, min(4, vocab - token));
        }
    }
};

template <class T>
__device__ __forceinline__ unsigned long long largest_rank(const Row<T>& row) {
    unsigned long long largest = 0;
    row.for_each([&](int quad, const float (&values)[4], int count) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (i < count) largest = larger(largest, rank_of(values[i], 4 * quad + i));
    });
    return largest;
}

// A token's share of the mass, in units; the best has MASS_UNIT.
__device__ __forceinline__ unsigned long long mass_of(double below_best) {
    return below_best < TINY_MASS ? 0 : static_cast<unsigned long long>(exp(below_best) * MASS_UNIT + 0.5);
}

struct Filter {
    bool by_mass;
    long long top_k;
    double top_p;
    double best;  // the largest scaled logit
    unsigned long long threshold;  // tokens that rank below are out already
};

// Add up a digit's bins over this block's tokens: into shared.total_count and total_mass.
template <class T>
__device__ __forceinline__ void count_digit(
    const Row<T>& row, SampleShared& shared, const Filter& filter, unsigned long long prefix, int shift) {
    for (int bin = 0; bin < BINS; ++bin) {
        shared.count[bin][threadIdx.x] = 0;
        shared.mass[bin][threadIdx.x] = 0;
    }
    row.for_each([&](int quad, const float (&values)[4], int count) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const unsigned long long rank = rank_of(values[i], 4 * quad + i);
            if (i >= count || rank < filter.threshold || rank >> (shift + DIGIT_BITS) != prefix) continue;
            const int bin = static_cast<int>(rank >> shift) % BINS;
            ++shared.count[bin][threadIdx.x];
            if (filter.by_mass) shared.mass[bin][threadIdx.x] += mass_of(row.scaled(values[i]) - filter.best);
        }
    });
    block_sync();
    for (int bin = warp_id(); bin < BINS; bin += SAMPLE_WARPS) {
        unsigned long long count = 0, mass = 0;
        for (int at = lane_id(); at < SAMPLE_THREADS; at += 32) {
            count += shared.count[bin][at];
            mass += shared.mass[bin][at];
        }
        for (int mask = 16; mask > 0; mask /= 2) {
            count += shfl_xor(count, mask);
            mass += shfl_xor(mass, mask);
        }
        if (lane_id() == 0) {
            shared.total_count[bin] = count;
            shared.total_mass[bin] = mass;
        }
    }
    block_sync();
}

// Add up the group's bins: every block gets the same.
__device__ __forceinline__ void share_digit(
    SampleShared& shared, Meeting& meeting, unsigned long long* partials, int pass) {
    if (meeting.blocks == 1) return;
    unsigned long long* bins = partials + (pass % 2) * meeting.blocks * 2 * BINS;
    const int lane = lane_id();
    static_assert(2 * BINS == WARP_SIZE, "a lane per sum");
    if (warp_id() == 0)
        bins[blockIdx.x * 2 * BINS + lane] = lane < BINS ? shared.total_count[lane] : shared.total_mass[lane - BINS];
    meet(meeting);
    unsigned long long total = 0;
    for (unsigned block = warp_id(); block < meeting.blocks; block += SAMPLE_WARPS)
        total += bins[block * 2 * BINS + lane];
    shared.shares[warp_id()][lane] = total;
    block_sync();
    if (warp_id() == 0) {
        for (int warp = 1; warp < SAMPLE_WARPS; ++warp) total += shared.shares[warp][lane];
        (lane < BINS ? shared.total_count : shared.total_mass)[lane % BINS] = total;
    }
    block_sync();
}

// The threshold that keeps the tokens before which fewer than top_k others, or less than top_p of the mass, rank.
template <class T>
__device__ __forceinline__ unsigned long long find_threshold(
    const Row<T>& row, SampleShared& shared, Meeting& meeting, unsigned long long* partials, const Filter& filter,
    int& pass) {
    unsigned long long prefix = 0, above = 0, target = 0;
    for (int shift = RANK_BITS - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS, ++pass) {
        count_digit(row, shared, filter, prefix, shift);
        share_digit(shared, meeting, partials, pass);
        const unsigned long long* weights = filter.by_mass ? shared.total_mass : shared.total_count;
        if (shift == RANK_BITS - DIGIT_BITS) {
            unsigned long long total = 0;
            for (int bin = 0; bin < BINS; ++bin) total += weights[bin];
            const double wanted = ceil(filter.top_p * static_cast<double>(total));
            target = filter.by_mass ? static_cast<unsigned long long>(wanted) : filter.top_k;
            if (target < 1) target = 1;
            if (target > total) return filter.threshold;
        }
        int bin = BINS - 1;
        while (bin > 0 && above + weights[bin] < target) above += weights[bin--];
        prefix = prefix << DIGIT_BITS | bin;
        const bool is_found = shared.total_count[bin] == 1 || (!filter.by_mass && above + weights[bin] == target);
        block_sync();  // all have read the bins
        if (is_found) return larger(filter.threshold, prefix << shift);
    }
    return larger(filter.threshold, prefix);
}

// Whether one is better than the other by more than both may be off.
__device__ __forceinline__ bool is_clearly_above(double a, double b) {
    return a - b > 2 * GUMBEL_ERROR + 4e-15 * (fabs(a) + fabs(b));
}

template <class T>
__device__ __forceinline__ Candidate exact(const Row<T>& row, int token) {
    return {row.scaled(row.logit(token)) + gumbel(noise_word(row.key, token)), token};
}

// The block's best token among those that rank at or above the threshold and have a scaled logit of `floor` or more.
template <class T>
__device__ __forceinline__ Candidate best_of_slice(
    const Row<T>& row, SampleShared& shared, unsigned long long threshold, double floor) {
    constexpr long long NONE = 1ll << 40;
    Candidate best = {-INFINITY, NONE};  // by float32 noise
    row.for_each([&](int quad, const float (&values)[4], int count) {
        bool is_any_kept = false;
#pragma unroll
        for (int i = 0; i < 4; ++i) is_any_kept |= rank_of(values[i], 4 * quad + i) >= threshold;
        if (!is_any_kept) return;
        const uint4 words = noise_words(row.key, quad);
        const unsigned all[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int token = 4 * quad + i;
            if (i >= count || rank_of(values[i], token) < threshold) continue;
            const double scaled = row.scaled(values[i]);
            if (!(scaled >= floor) || (scaled == -INFINITY && best.token != NONE)) continue;
            const double value = scaled + static_cast<double>(gumbel_fast(all[i]));
            if (best.token == NONE || is_clearly_above(value, best.value)) {
                best = {value, token};
            } else if (!is_clearly_above(best.value, value)) {
                const Candidate held = exact(row, static_cast<int>(best.token)), other = exact(row, token);
                if (better(held, other).token == token) best = {value, token};
            }
        }
    });
    const Candidate leader = block_best(shared, best);
    Candidate candidate = {-INFINITY, NONE};
    if (best.token != NONE && !is_clearly_above(leader.value, best.value))
        candidate = exact(row, static_cast<int>(best.token));
    return block_best(shared, candidate);
}

// The row's filters applied, then the best of the block's part; NO_TOKEN and the largest value where there is a NaN.
template <class T>
__device__ __forceinline__ Candidate draw_part(
    const SampleParams& params, const Row<T>& row, int index, unsigned long long largest, SampleShared& shared,
    Meeting& meeting, unsigned long long* partials) {
    const long long top_k = params.top_k[index];
    const float top_p = params.top_p[index], min_p = params.min_p[index];
    const bool has_top_k = top_k > 0 && top_k < row.vocab, has_top_p = top_p < 1.0f;
    unsigned long long threshold = 0;
    double floor = -INFINITY;
    if (has_top_k || has_top_p || min_p > 0.0f) {
        int pass = 0;
        if (meeting.blocks > 1) {  // the group's largest
            unsigned long long* ranks = partials + (pass % 2) * meeting.blocks * 2 * BINS;
            if (threadIdx.x == 0) ranks[blockIdx.x * 2 * BINS] = largest;
            meet(meeting);
            for (unsigned block = threadIdx.x; block < meeting.blocks; block += SAMPLE_THREADS)
                largest = larger(largest, ranks[block * 2 * BINS]);
            largest = block_largest(shared, largest);
            ++pass;
        }
        if (largest == NAN_RANK) return {INFINITY, NO_TOKEN};
        const double best = row.scaled(row.logit(token_of(largest)));
        if (has_top_k) threshold = find_threshold(row, shared, meeting, partials, {false, top_k, 0, best, 0}, pass);
        ++pass;
        if (has_top_p)
            threshold = find_threshold(row, shared, meeting, partials, {true, 0, top_p, best, threshold}, pass);
        if (min_p > 0.0f) floor = best + log(static_cast<double>(min_p));
    }
    if (largest == NAN_RANK) return {INFINITY, NO_TOKEN};
    return best_of_slice(row, shared, threshold, floor);
}

// The last block of the group to come here picks the row's token.
__device__ __forceinline__ void finish_row(
    const SampleParams& params, int index, const Candidate& own, SampleShared& shared, Meeting& meeting) {
    if (meeting.blocks == 1) {
        if (threadIdx.x == 0) params.out[index] = own.token;
        return;
    }
    Candidate* candidates = params.candidates + static_cast<long long>(blockIdx.y) * meeting.blocks;
    if (threadIdx.x == 0) {
        candidates[blockIdx.x] = own;
        const unsigned before = add_acquire_release(meeting.counter, 1);
        shared.is_last = before == (meeting.met + 1) * meeting.blocks - 1;
    }
    block_sync();
    if (!shared.is_last || warp_id() != 0) return;
    Candidate best = own;
    for (unsigned block = lane_id(); block < meeting.blocks; block += 32) best = better(best, candidates[block]);
    best = warp_best(best);
    if (lane_id() == 0) {
        params.out[index] = best.token;
        *meeting.counter = 0;
    }
}

template <class T>
__device__ __forceinline__ void sample_rows(const SampleParams& params) {
    SampleShared& shared = *reinterpret_cast<SampleShared*>(shared_memory());
    Meeting meeting = {params.counters + blockIdx.y, gridDim.x, 0};
    unsigned long long* partials =
        params.partials + static_cast<long long>(blockIdx.y) * 2 * gridDim.x * 2 * BINS;
    const int quads = (params.vocab + 3) / 4, part = (quads + gridDim.x - 1) / gridDim.x;
    for (int index = blockIdx.y; index < params.rows; index += gridDim.y) {
        const T* logits = static_cast<const T*>(params.logits) + index * params.row_stride;
        const unsigned long long seed = params.seed[index];
        const Row<T> row = {
            logits, static_cast<int>(blockIdx.x) * part, min(quads, static_cast<int>(blockIdx.x + 1) * part),
            params.vocab, reinterpret_cast<unsigned long long>(logits) % 16 == 0, params.temperature[index],
            {static_cast<unsigned>(seed), static_cast<unsigned>(seed >> 32),
             static_cast<unsigned>(params.sample_index[index]), static_cast<unsigned>(params.position[index])}};
        const unsigned long long largest = block_largest(shared, largest_rank(row));
        Candidate best;
        if (row.temperature > 0) {
            best = draw_part(params, row, index, largest, shared, meeting, partials);
        } else if (largest == NAN_RANK) {
            best = {INFINITY, NO_TOKEN};
        } else {
            const int token = token_of(largest);
            best = {largest == 0 ? -INFINITY : row.logit(token), token};
        }
        finish_row(params, index, best, shared, meeting);
    }
}
