// Element types of weights, activations and cache, their conversions, and 16-byte loads and stores.
// Own types rather than cuda_bf16.h: NVRTC takes seconds to read that header.
#pragma once

#ifdef __CUDACC_RTC__  // NVRTC has neither math.h nor GCC's built-in functions
#define INFINITY __builtin_bit_cast(float, 0x7f800000)
#define __builtin_huge_valf() INFINITY
#endif

struct bfloat16 {
    unsigned short bits;
};

struct float16 {
    unsigned short bits;
};

static_assert(sizeof(bfloat16) == 2 && sizeof(float16) == 2, "an element is 2 bytes");

__device__ __forceinline__ float to_float(float value) {
    return value;
}

__device__ __forceinline__ float to_float(bfloat16 value) {
    return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}

__device__ __forceinline__ float to_float(float16 value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}

// Round to nearest even.
template <class T>
__device__ __forceinline__ T from_float(float value);

template <>
__device__ __forceinline__ float from_float<float>(float value) {
    return value;
}

template <>
__device__ __forceinline__ bfloat16 from_float<bfloat16>(float value) {
    bfloat16 narrow;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
    return narrow;
}

template <>
__device__ __forceinline__ float16 from_float<float16>(float value) {
    float16 narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
    return narrow;
}

// Two elements of one 32-bit word, the lower address in the lower half and in x.
template <class T>
__device__ __forceinline__ float2 unpack2(unsigned word) {
    T low, high;
    low.bits = static_cast<unsigned short>(word & 0xffffu);
    high.bits = static_cast<unsigned short>(word >> 16);
    return make_float2(to_float(low), to_float(high));
}

template <>
__device__ __forceinline__ float2 unpack2<bfloat16>(unsigned word) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}

template <class T>
__device__ __forceinline__ unsigned pack2(float low, float high);

template <>
__device__ __forceinline__ unsigned pack2<bfloat16>(float low, float high) {
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

template <>
__device__ __forceinline__ unsigned pack2<float16>(float low, float high) {
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// 16 bytes of read-only global memory that are read once (weights): not kept in L1, and L2 fetches 256 bytes.
__device__ __forceinline__ uint4 load_stream16(const void* global) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(global));
    return value;
}

// 16 bytes from any memory, 16-byte aligned.
__device__ __forceinline__ uint4 load16(const void* address) {
    return *static_cast<const uint4*>(address);
}

__device__ __forceinline__ void store16(void* address, uint4 value) {
    *static_cast<uint4*>(address) = value;
}
