// Where a launch's time goes: in builds with FEW_TRACE, the time at which each block passes a point of the launches that
// have a number; otherwise nothing.
#pragma once

#ifdef FEW_TRACE
constexpr int FEW_TRACE_BLOCKS = 512, FEW_TRACE_POINTS = 8;
extern "C" __device__ unsigned long long few_trace[16 * FEW_TRACE_BLOCKS * FEW_TRACE_POINTS];

__device__ __forceinline__ void trace_few(int number, int point) {
    if (threadIdx.x != 0 || number == 0) return;
    unsigned long long now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    const unsigned block = blockIdx.y * gridDim.x + blockIdx.x;
    if (block < FEW_TRACE_BLOCKS)
        few_trace[((number - 1) * FEW_TRACE_BLOCKS + block) * FEW_TRACE_POINTS + point] = now;
}
#else
__device__ __forceinline__ void trace_few(int, int) {}
#endif
