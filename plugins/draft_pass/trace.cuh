// Where a pass's time goes: in builds with PASS_TRACE, the time at which each block passes a point; otherwise nothing.
#pragma once

constexpr int TRACE_POINTS = 16;  // of a depth

#ifdef PASS_TRACE
extern "C" __device__ unsigned long long draft_pass_trace[160 * 8 * TRACE_POINTS];

__device__ inline void trace(int depth, int point) {
    if (threadIdx.x != 0 || depth >= 8 || point >= TRACE_POINTS) return;
    unsigned long long now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    draft_pass_trace[(blockIdx.x * 8 + depth) * TRACE_POINTS + point] = now;
}
#else
__device__ inline void trace(int, int) {}
#endif
