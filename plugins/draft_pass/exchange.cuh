// How thread blocks hand each other what they computed: through 8-byte words in global memory whose upper half says when
// the lower half was written. A reader asks again until it sees the tag that it waits for; neither barrier nor fence is
// needed, and nothing has to be emptied. (NCCL's LL protocol does the same.)
//
// A tag is launch * 64 + depth, so it comes again after 2^26 launches. Words are used again at every depth: what writes
// them waits, through the blocks between, for all that read them before. States alone are read one depth later, and have
// two sets.
#pragma once

#include "element.cuh"
#include "relaxed.cuh"
#include "warp.cuh"

constexpr int DEPTH_BITS = 6;  // a tree is less than 64 deep

__device__ __forceinline__ unsigned long long tagged(unsigned value, unsigned tag) {
    return static_cast<unsigned long long>(tag) << 32 | value;
}

__device__ __forceinline__ float value_of(unsigned long long word) {
    return __uint_as_float(static_cast<unsigned>(word));
}

// Whether one of two words has another tag: 0 where both have it.
__device__ __forceinline__ unsigned differs(const ulonglong2& words, unsigned tag) {
    return (static_cast<unsigned>(words.x >> 32) ^ tag) | (static_cast<unsigned>(words.y >> 32) ^ tag);
}

// Wait for `count` of N pairs of words of each thread of a warp, asked for all at once and all again until each is there:
// a loop of few instructions, which are at hand when the words come. `address(i)` names words that will be written.
template <int N, class Address>
__device__ __forceinline__ void await_pairs(ulonglong2 (&pairs)[N], unsigned tag, Address address, int count = N) {
    while (true) {
#pragma unroll
        for (int i = 0; i < N; ++i)
            if (i < count) pairs[i] = load_relaxed_words(address(i));
        unsigned missing = 0;
#pragma unroll
        for (int i = 0; i < N; ++i)
            if (i < count) missing |= differs(pairs[i], tag);
        if (warp_ballot(missing != 0) == 0) return;
        spin_pause();
    }
}

// Wait for `count` of N words of each thread, likewise.
template <int N>
__device__ __forceinline__ void await_words(
    unsigned (&values)[N], unsigned tag, const unsigned long long* const (&addresses)[N], int count = N) {
    while (true) {
        unsigned missing = 0;
#pragma unroll
        for (int i = 0; i < N; ++i)
            if (i < count) {
                const unsigned long long word = load_relaxed_word(addresses[i]);
                values[i] = static_cast<unsigned>(word);
                missing |= static_cast<unsigned>(word >> 32) ^ tag;
            }
        if (warp_ballot(missing != 0) == 0) return;
        spin_pause();
    }
}

__device__ __forceinline__ unsigned await_word(const unsigned long long* address, unsigned tag) {
    unsigned value[1];
    await_words(value, tag, {address});
    return value[0];
}
