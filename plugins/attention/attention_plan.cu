// Entry point of the plan; one block of PLAN_THREADS.
#include "attention_plan.cuh"
#include "grid.cuh"

extern "C" __device__ const unsigned attention_plan_params_bytes = sizeof(AttentionPlanParams);

extern "C" __global__ void __launch_bounds__(256) attention_plan_kernel(__grid_constant__ const AttentionPlanParams params) {
    grid_dependency_wait();
    grid_dependency_launch();
    plan_attention(params);
}
