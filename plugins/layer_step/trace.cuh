// Where a launch's time goes: in builds with LAYER_TRACE, the time at which each block passes a point of the launches that
// have a number; otherwise nothing.
#pragma once

#include "params.cuh"

#ifdef LAYER_TRACE
constexpr int TRACE_LAUNCHES = 16, TRACE_BLOCKS = 512, TRACE_POINTS = 8;
extern "C" __device__ unsigned long long layer_trace[TRACE_LAUNCHES * TRACE_BLOCKS * TRACE_POINTS];

__device__ __forceinline__ void trace(const LayerLinearParams& params, int point) {
    if (threadIdx.x != 0 || params.trace == 0) return;
    unsigned long long now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    layer_trace[((params.trace - 1) * TRACE_BLOCKS + blockIdx.y * gridDim.x + blockIdx.x) * TRACE_POINTS + point] = now;
}
#else
__device__ __forceinline__ void trace(const LayerLinearParams&, int) {}
#endif
