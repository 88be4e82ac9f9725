// Gumbel noise of a token, as plugins/sample/philox.py makes it: exactly, in float64, and approximately, in float32.
#pragma once

#include "math.cuh"

struct NoiseKey {
    unsigned seed_low;
    unsigned seed_high;
    unsigned sample_index;
    unsigned position;
};

// Of tokens 4 * quad to 4 * quad + 3.
__device__ __forceinline__ uint4 noise_words(const NoiseKey& key, unsigned quad) {
    return philox4x32(make_uint4(quad, key.sample_index, key.position, 0), key.seed_low, key.seed_high);
}

__device__ __forceinline__ unsigned noise_word(const NoiseKey& key, unsigned token) {
    const uint4 words = noise_words(key, token / 4);
    const unsigned all[4] = {words.x, words.y, words.z, words.w};
    unsigned word = all[0];
#pragma unroll
    for (unsigned i = 1; i < 4; ++i) word = token % 4 == i ? all[i] : word;
    return word;
}

__device__ __forceinline__ double gumbel(unsigned word) {
    const double uniform = (static_cast<double>(word) + 0.5) / 4294967296.0;
    return -log(-log(uniform));
}

// Within GUMBEL_ERROR of gumbel(word). The special function unit's log2 is off by 2^-22, absolute near 1 and relative
// elsewhere; where u is near 1, a series of q = 1 - u has the relative precision that the outer logarithm needs.
constexpr double GUMBEL_ERROR = 1.0 / 32768;

__device__ __forceinline__ float gumbel_fast(unsigned word) {
    constexpr float UNIT = 1.0f / 4294967296.0f, LN_2 = 0.69314718056f;
    const float q = (static_cast<float>(~word) + 0.5f) * UNIT;
    const float u = (static_cast<float>(word) + 0.5f) * UNIT;
    const float series = q * (1.0f + q * (0.5f + q * (1.0f / 3 + q * (0.25f + q * 0.2f))));
    const float exponential = q < 0.03125f ? series : -LN_2 * log2_fast(u);
    return -LN_2 * log2_fast(exponential);
}
