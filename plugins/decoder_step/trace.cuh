// Where a step's time goes: in builds with STEP_TRACE, the time at which each block passes a point; otherwise nothing.
#pragma once

constexpr int TRACE_POINTS = 16;  // of a layer: 3 for each phase

#ifdef STEP_TRACE
extern "C" __device__ unsigned long long decoder_step_trace[160 * (NUM_LAYERS + 1) * TRACE_POINTS];

__device__ inline void trace(int layer, int point) {
    if (threadIdx.x != 0) return;
    unsigned long long now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    decoder_step_trace[(blockIdx.x * (NUM_LAYERS + 1) + layer) * TRACE_POINTS + point] = now;
}
#else
__device__ inline void trace(int, int) {}
#endif
