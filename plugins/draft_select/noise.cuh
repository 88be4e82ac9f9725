// Gumbel noise of a token, as plugins/sample/philox.py makes it, in float32: drafts need not be exact.
#pragma once

#include "math.cuh"

struct NoiseKey {
    unsigned seed_low;
    unsigned seed_high;
    unsigned sample_index;
    unsigned position;
};

__device__ __forceinline__ unsigned noise_word(const NoiseKey& key, unsigned token) {
    const uint4 words =
        philox4x32(make_uint4(token / 4, key.sample_index, key.position, 0), key.seed_low, key.seed_high);
    const unsigned low = token % 2 ? words.y : words.x, high = token % 2 ? words.w : words.z;
    return token % 4 < 2 ? low : high;
}

// Within 2^-15 of -log(-log((word + 1/2) / 2^32)). The special function unit's log2 is off by 2^-22, absolute near 1 and
// relative elsewhere; where u is near 1, a series of q = 1 - u has the relative precision that the outer one needs.
__device__ __forceinline__ float gumbel_fast(unsigned word) {
    constexpr float UNIT = 1.0f / 4294967296.0f, LN_2 = 0.69314718056f;
    const float q = (static_cast<float>(~word) + 0.5f) * UNIT;
    const float u = (static_cast<float>(word) + 0.5f) * UNIT;
    const float series = q * (1.0f + q * (0.5f + q * (1.0f / 3 + q * (0.25f + q * 0.2f))));
    const float exponential = q < 0.03125f ? series : -LN_2 * log2_fast(u);
    return -LN_2 * log2_fast(exponential);
}
