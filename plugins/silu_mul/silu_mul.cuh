// SwiGLU: out (T, I) = silu(fused[:, :I]) * fused[:, I:], rounded once.
//
// A thread per 8 elements of the output, through the rows in order. Rows are aligned to 16 bytes, I is a multiple of 8.
#pragma once

#include "element.cuh"
#include "grid.cuh"
#include "math.cuh"

struct SiluMulParams {
    const void* fused;
    void* out;
    long long fused_stride;  // elements between rows, likewise below
    long long out_stride;
    int rows;
    int width;  // I
};
static_assert(sizeof(SiluMulParams) == 4 * 8 + 2 * 4, "mirrored in cuda.py");

constexpr float LOG2_E = 1.4426950408889634f;

// Below -87, where the reciprocal would be subnormal, it is 0.
__device__ __forceinline__ float silu(float x) {
    return x * reciprocal_fast(1.0f + exp2_fast(-x * LOG2_E));
}

template <class T>
__device__ __forceinline__ unsigned silu_mul2(unsigned activated, unsigned multiplier) {
    const float2 a = unpack2<T>(activated), m = unpack2<T>(multiplier);
    return pack2<T>(silu(a.x) * m.x, silu(a.y) * m.y);
}

template <class T>
__device__ __forceinline__ void silu_mul_rows(const SiluMulParams& params) {
    grid_dependency_launch();
    grid_dependency_wait();
    const int vectors = params.width / 8;
    const long long total = static_cast<long long>(params.rows) * vectors;
    for (long long at = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; at < total;
         at += static_cast<long long>(gridDim.x) * blockDim.x) {
        const long long row = at / vectors;
        const int column = static_cast<int>(at % vectors) * 8;
        const T* fused = static_cast<const T*>(params.fused) + row * params.fused_stride + column;
        const uint4 a = load16(fused), m = load16(fused + params.width);
        store16(static_cast<T*>(params.out) + row * params.out_stride + column,
                make_uint4(silu_mul2<T>(a.x, m.x), silu_mul2<T>(a.y, m.y), silu_mul2<T>(a.z, m.z),
                           silu_mul2<T>(a.w, m.w)));
    }
}
