// RMSNorm of rows, with or without adding to a float32 residual stream first:
//   x (T, H) += delta (T, H);  out (T, H) = x / sqrt(mean(x^2) + eps) * weight (H,)
//
// One block per row. The row waits in shared memory (4 H bytes) between the two passes. Rows are aligned to 16 bytes and
// H is a multiple of 8. Sums are float32, in an order that depends on H and the block's size alone.
#pragma once

#include "element.cuh"
#include "grid.cuh"
#include "math.cuh"
#include "cuda/vector.cuh"

struct RmsNormParams {
    void* x;            // (T, H); written only where there is a delta
    const void* delta;  // (T, H), or null
    const void* weight;
    void* out;
    long long x_stride;  // elements between rows, likewise below
    long long delta_stride;
    long long out_stride;
    int width;  // H
    float eps;
};
static_assert(sizeof(RmsNormParams) == 7 * 8 + 2 * 4, "mirrored in cuda.py");

constexpr int NORM_VECTOR = 8;  // elements that a thread takes at once

// Every thread gets the block's sum. `partials`: a float per warp, in shared memory.
__device__ __forceinline__ float block_sum(float value, float* partials) {
    value = warp_sum(value);
    if (lane_id() == 0) partials[warp_id()] = value;
    block_sync();
    float total = 0;
    for (unsigned warp = 0; warp < blockDim.x / WARP_SIZE; ++warp) total += partials[warp];
    return total;
}

// X: of the rows; D: of the delta; W: of the weight; OUT.
template <class X, class D, class W, class OUT>
__device__ __forceinline__ void normalise_row(const RmsNormParams& params, float* shared) {
    X* x = static_cast<X*>(params.x) + blockIdx.x * params.x_stride;
    const D* delta = static_cast<const D*>(params.delta) + blockIdx.x * params.delta_stride;
    OUT* out = static_cast<OUT*>(params.out) + blockIdx.x * params.out_stride;
    float* row = shared + 32;  // behind the warps' partial sums
    grid_dependency_launch();
    grid_dependency_wait();
    float squares = 0;
    for (int at = NORM_VECTOR * threadIdx.x; at < params.width; at += NORM_VECTOR * blockDim.x) {
        Vector8 values = load_vector(x + at);
        if (params.delta != nullptr) {
            const Vector8 added = load_vector(delta + at);
#pragma unroll
            for (int i = 0; i < 8; ++i) values.value[i] += added.value[i];
            store_vector(x + at, values);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) squares += values.value[i] * values.value[i];
        store_vector(row + at, values);
    }
    const float scale = rsqrt_fast(block_sum(squares, shared) / params.width + params.eps);
    for (int at = NORM_VECTOR * threadIdx.x; at < params.width; at += NORM_VECTOR * blockDim.x) {
        Vector8 values = load_vector(row + at);
        const Vector8 weight = load_vector(static_cast<const W*>(params.weight) + at);
#pragma unroll
        for (int i = 0; i < 8; ++i) values.value[i] = values.value[i] * scale * weight.value[i];
        store_vector(out + at, values);
    }
}
