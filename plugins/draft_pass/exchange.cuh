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

__device__ __forceinline__ bool has_tag(unsigned long long word, unsigned tag) {
    return static_cast<unsigned>(word >> 32) == tag;
}

__device__ __forceinline__ bool has_tag(const ulonglong2& words, unsigned tag) {
    return has_tag(words.x, tag) && has_tag(words.y, tag);
}

__device__ __forceinline__ float value_of(unsigned long long word) {
    return __uint_as_float(static_cast<unsigned>(word));
}

// Wait for N pairs of words of each thread of a warp, asked for all at once; `address(i)` is null where pair i is not
// wanted.
template <int N, class Address>
__device__ __forceinline__ void await_pairs(ulonglong2 (&pairs)[N], unsigned tag, Address address) {
#pragma unroll
    for (int i = 0; i < N; ++i) pairs[i] = make_ulonglong2(0, 0);
    bool is_missing;
    do {
#pragma unroll
        for (int i = 0; i < N; ++i)
            if (address(i) && !has_tag(pairs[i], tag)) pairs[i] = load_relaxed_words(address(i));
        is_missing = false;
#pragma unroll
        for (int i = 0; i < N; ++i) is_missing |= address(i) && !has_tag(pairs[i], tag);
        if (is_missing) spin_pause();
    } while (warp_ballot(is_missing));
}

// Wait for one word of each thread that has an address.
__device__ __forceinline__ unsigned await_word(const unsigned long long* address, unsigned tag) {
    unsigned long long word = 0;
    bool is_missing;
    do {
        if (address && !has_tag(word, tag)) word = load_relaxed_word(address);
        is_missing = address && !has_tag(word, tag);
        if (is_missing) spin_pause();
    } while (warp_ballot(is_missing));
    return static_cast<unsigned>(word);
}
