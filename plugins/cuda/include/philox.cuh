// Counter-based random bits: Philox4x32-10, the same words as plugins/sample/philox.py.
// Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), section 3.3 and table 2.
#pragma once

__device__ __forceinline__ uint4 philox4x32(uint4 counter, unsigned key0, unsigned key1) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned long long product0 = 0xD2511F53ull * counter.x;
        const unsigned long long product1 = 0xCD9E8D57ull * counter.z;
        counter = make_uint4(static_cast<unsigned>(product1 >> 32) ^ counter.y ^ key0, static_cast<unsigned>(product1),
                             static_cast<unsigned>(product0 >> 32) ^ counter.w ^ key1, static_cast<unsigned>(product0));
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}
