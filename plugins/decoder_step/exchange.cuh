// How blocks hand each other the results of a phase: through words in global memory that say themselves whether they
// have been written. Every word starts a step as EMPTY, a pattern that no result has, and a reader asks again until it
// sees another one. That needs neither barrier nor fence, and a reader goes on as soon as what it needs is there.
//
// Each layer has its own words, so nothing is overwritten within a step. There are two sets: a step uses one and empties
// the other, which the step before used and the next one will.
//
// Words of one layer, R = MAX_ROWS:  qkv (R, QKV) float | attended (R, N D) bfloat16 | middle (R, H) float |
// activated (R, I) bfloat16 | output (R, H) float | parts (R, N, EXCHANGED_SPLITS, PART_WORDS) float. `middle` and
// `output` are the residual stream after each half; `parts` are attention's results of a context's splits, where those
// are few. After the layers: the embeddings (R, H) float.
#pragma once

#include "element.cuh"
#include "grid.cuh"
#include "relaxed.cuh"
#include "shape.cuh"

constexpr unsigned EMPTY = 0xFFFFFFFFu;      // a NaN, and two NaNs as bfloat16
constexpr unsigned WRITTEN_NAN = 0x7FFFFFFFu;  // stands for it where a result is that very NaN

constexpr int FEW_VALUES = 4;  // that a thread asks for again and again

constexpr int QKV_WORDS = MAX_ROWS * QKV_SIZE;
constexpr int ATTENDED_WORDS = MAX_ROWS * Q_SIZE / 2;
constexpr int RESIDUAL_WORDS = MAX_ROWS * HIDDEN;
constexpr int ACTIVATED_WORDS = MAX_ROWS * INTERMEDIATE / 2;
constexpr int EXCHANGED_SPLITS = 4;
constexpr int PART_WORDS = HEAD_DIM + 4;  // outputs, maximum, sum, two unused
constexpr int PARTS_WORDS = MAX_ROWS * NUM_HEADS * EXCHANGED_SPLITS * PART_WORDS;
constexpr int LAYER_WORDS = QKV_WORDS + ATTENDED_WORDS + ACTIVATED_WORDS + 2 * RESIDUAL_WORDS + PARTS_WORDS;
constexpr long long EXCHANGE_WORDS = 1LL * NUM_LAYERS * LAYER_WORDS + RESIDUAL_WORDS;  // of one set
static_assert(QKV_SIZE % 4 == 0, "rows of 16-byte packets");

struct LayerExchange {
    unsigned* qkv;
    unsigned* attended;
    unsigned* middle;
    unsigned* activated;
    unsigned* output;
    unsigned* parts;
};

__device__ inline LayerExchange exchange_at(unsigned* words) {
    LayerExchange exchange;
    exchange.qkv = words;
    exchange.attended = exchange.qkv + QKV_WORDS;
    exchange.middle = exchange.attended + ATTENDED_WORDS;
    exchange.activated = exchange.middle + RESIDUAL_WORDS;
    exchange.output = exchange.activated + ACTIVATED_WORDS;
    exchange.parts = exchange.output + RESIDUAL_WORDS;
    return exchange;
}

__device__ inline bool is_written(const uint4& packet) {
    return packet.x != EMPTY && packet.y != EMPTY && packet.z != EMPTY && packet.w != EMPTY;
}

__device__ inline bool is_written(const uint2& pair) { return pair.x != EMPTY && pair.y != EMPTY; }
__device__ inline bool is_written(unsigned word) { return word != EMPTY; }

__device__ inline void clear(uint4& packet) { packet = make_uint4(EMPTY, EMPTY, EMPTY, EMPTY); }
__device__ inline void clear(uint2& pair) { pair = make_uint2(EMPTY, EMPTY); }
__device__ inline void clear(unsigned& word) { word = EMPTY; }

__device__ inline void request(uint4& packet, const unsigned* words) { packet = load_relaxed16(words); }
__device__ inline void request(uint2& pair, const unsigned* words) { pair = load_relaxed8(words); }
__device__ inline void request(unsigned& word, const unsigned* words) { word = load_relaxed(words); }

// Wait for N values of each thread of a warp: ask for all, then again for those that were not there, so that no two
// answers are waited for one after the other; where they are many, for the first alone until it is there. `address(i)`
// is null where value i is not wanted.
//
// `use()` is called after every round, the last time with all values: what it does for nothing in the rounds before has
// its instructions at hand when the values come, which otherwise takes longer than to run them.
template <class Value, int N, class Address, class Use>
__device__ inline void until_written(Value (&values)[N], Address address, Use use) {
#pragma unroll
    for (int i = 0; i < N; ++i) clear(values[i]);
    bool is_first = true, is_missing;
#pragma unroll 1
    do {
#pragma unroll
        for (int i = 0; i < N; ++i)
            if (address(i) && !is_written(values[i]) && (i == 0 || N <= FEW_VALUES || is_first || is_written(values[0])))
                request(values[i], address(i));
        is_first = is_missing = false;
#pragma unroll
        for (int i = 0; i < N; ++i) is_missing |= address(i) && !is_written(values[i]);
        use();
        if (is_missing) spin_pause();
    } while (warp_ballot(is_missing));
}

__device__ inline unsigned await(unsigned value, const unsigned* word) {
    while (value == EMPTY) {
        spin_pause();
        value = load_relaxed(word);
    }
    return value;
}

__device__ inline void publish(unsigned* word, unsigned value) {
    store_relaxed(word, value == EMPTY ? WRITTEN_NAN : value);
}

__device__ inline void publish(unsigned* word, float value) { publish(word, __float_as_uint(value)); }

__device__ inline void publish(unsigned* words, float first, float second) {
    publish(words, first);
    publish(words + 1, second);
}

// Empty this block's share of a set; to be called by all consumers.
__device__ inline void empty_set(unsigned* set) {
    const uint4 packet = make_uint4(EMPTY, EMPTY, EMPTY, EMPTY);
    uint4* packets = reinterpret_cast<uint4*>(set);
    const long long stride = 1LL * gridDim.x * CONSUMERS;
    for (long long at = 1LL * blockIdx.x * CONSUMERS + threadIdx.x; at < EXCHANGE_WORDS / 4; at += stride)
        packets[at] = packet;
}
