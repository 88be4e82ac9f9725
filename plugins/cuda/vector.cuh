// Eight elements of a row as floats, loaded and stored 16 bytes at a time.
#pragma once

#include "element.cuh"

struct Vector8 {
    float value[8];
};

// `source` is aligned to 16 bytes, likewise below.
template <class T>
__device__ __forceinline__ Vector8 load_vector(const T* source) {
    const uint4 words = load16(source);
    const unsigned all[4] = {words.x, words.y, words.z, words.w};
    Vector8 result;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack2<T>(all[i]);
        result.value[2 * i] = pair.x;
        result.value[2 * i + 1] = pair.y;
    }
    return result;
}

template <>
__device__ __forceinline__ Vector8 load_vector<float>(const float* source) {
    Vector8 result;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint4 words = load16(source + 4 * half);
        result.value[4 * half] = __uint_as_float(words.x);
        result.value[4 * half + 1] = __uint_as_float(words.y);
        result.value[4 * half + 2] = __uint_as_float(words.z);
        result.value[4 * half + 3] = __uint_as_float(words.w);
    }
    return result;
}

template <class T>
__device__ __forceinline__ void store_vector(T* target, const Vector8& v) {
    store16(target, make_uint4(pack2<T>(v.value[0], v.value[1]), pack2<T>(v.value[2], v.value[3]),
                               pack2<T>(v.value[4], v.value[5]), pack2<T>(v.value[6], v.value[7])));
}

template <>
__device__ __forceinline__ void store_vector<float>(float* target, const Vector8& v) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
        store16(target + 4 * half,
                make_uint4(__float_as_uint(v.value[4 * half]), __float_as_uint(v.value[4 * half + 1]),
                           __float_as_uint(v.value[4 * half + 2]), __float_as_uint(v.value[4 * half + 3])));
}
