// CUDA's keywords, built-in variables and intrinsics for g++. Force-included before a kernel's source.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <math.h>
#include <cstdint>
#include <cstring>

#include "fibers.h"

#define __device__
#define __host__
#define __global__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

#define threadIdx (emulator::current->thread_index)
#define blockIdx (emulator::current->block->block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)

using emulator::uint3;

#define EMULATED_VECTORS(type, name)                                                              \
    struct alignas(2 * sizeof(type)) name##2 {                                                    \
        type x, y;                                                                                \
    };                                                                                            \
    struct alignas(sizeof(type) > 4 ? 16 : 4 * sizeof(type)) name##4 {                            \
        type x, y, z, w;                                                                          \
    };                                                                                            \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }                              \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATED_VECTORS(int, int)
EMULATED_VECTORS(unsigned, uint)
EMULATED_VECTORS(float, float)
EMULATED_VECTORS(short, short)
EMULATED_VECTORS(unsigned short, ushort)
EMULATED_VECTORS(long long, longlong)
EMULATED_VECTORS(unsigned long long, ulonglong)
EMULATED_VECTORS(double, double)
#undef EMULATED_VECTORS

template <class A, class B>
constexpr auto min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
constexpr auto max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(a) < T(b) ? T(b) : T(a);
}

inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline float __uint_as_float(unsigned value) { return std::bit_cast<float>(value); }
inline float __int_as_float(int value) { return std::bit_cast<float>(value); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
inline double __longlong_as_double(long long value) { return std::bit_cast<double>(value); }
inline int __float2int_rn(float value) { return int(std::nearbyint(value)); }
inline int __float2int_rz(float value) { return int(value); }

inline int __popc(unsigned value) { return std::popcount(value); }
inline int __popcll(unsigned long long value) { return std::popcount(value); }
inline int __clz(unsigned value) { return std::countl_zero(value); }
inline int __clzll(unsigned long long value) { return std::countl_zero(value); }
inline int __ffs(unsigned value) { return value ? std::countr_zero(value) + 1 : 0; }
inline int __ffsll(unsigned long long value) { return value ? std::countr_zero(value) + 1 : 0; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((1ull * a * b) >> 32); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const unsigned long long bytes = (1ull * b << 32) | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= unsigned((bytes >> (8 * ((selector >> (4 * i)) & 7))) & 0xff) << (8 * i);
    return result;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned(((1ull * high << 32) | low) >> (shift & 31));
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __sinf(float x) { return std::sin(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __saturatef(float x) { return std::fmin(std::fmax(x, 0.0f), 1.0f); }

template <class T>
T __ldg(const T* address) { return *address; }

template <class T, class V>
T atomicAdd(T* address, V value) { T old = *address; *address = T(old + value); return old; }
template <class T, class V>
T atomicMax(T* address, V value) { T old = *address; *address = std::max(old, T(value)); return old; }
template <class T, class V>
T atomicMin(T* address, V value) { T old = *address; *address = std::min(old, T(value)); return old; }
template <class T, class V>
T atomicOr(T* address, V value) { T old = *address; *address = T(old | value); return old; }
template <class T, class V>
T atomicExch(T* address, V value) { T old = *address; *address = T(value); return old; }
template <class T>
T atomicCAS(T* address, T compare, T value) { T old = *address; if (old == compare) *address = value; return old; }

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) { emulator::poll("__nanosleep"); }
