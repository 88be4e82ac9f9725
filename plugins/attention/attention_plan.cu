// Entry point of the plan: grid (requests, blocks that share a request's items).
#include "attention_plan.cuh"
#include "grid.cuh"

extern "C" __device__ const unsigned attention_plan_params_bytes = sizeof(AttentionPlanParams);

extern "C" __global__ void __launch_bounds__(128)
    attention_plan_kernel(__grid_constant__ const AttentionPlanParams params) {
    grid_dependency_wait();
    grid_dependency_launch();
    plan_request(params, blockIdx.x, blockIdx.y, gridDim.y);
}
