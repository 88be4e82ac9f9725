// Entry points, named by what they do and the rows they have room for; sm_90a. ELEMENT: bfloat16 or float16.
// RING_STAGES is linear.cuh's.
#include "wide.cuh"

extern "C" __device__ const unsigned wide_linear_params_bytes = sizeof(WideLinearParams);

#define WIDE_KERNEL(name, rows, mode)                                                                                    \
    extern "C" __global__ void __launch_bounds__(WIDE_THREADS, 2) name(const __grid_constant__ WideLinearParams params) { \
        wide_linear<ELEMENT, rows / 8, mode>(params);                                                                    \
    }

WIDE_KERNEL(layer_wide_qkv_8_kernel, 8, QKV)
WIDE_KERNEL(layer_wide_qkv_16_kernel, 16, QKV)
WIDE_KERNEL(layer_wide_qkv_32_kernel, 32, QKV)
WIDE_KERNEL(layer_wide_qkv_64_kernel, 64, QKV)
WIDE_KERNEL(layer_wide_residual_8_kernel, 8, RESIDUAL)
WIDE_KERNEL(layer_wide_residual_16_kernel, 16, RESIDUAL)
WIDE_KERNEL(layer_wide_residual_32_kernel, 32, RESIDUAL)
WIDE_KERNEL(layer_wide_residual_64_kernel, 64, RESIDUAL)
WIDE_KERNEL(layer_wide_gated_8_kernel, 8, GATED)
WIDE_KERNEL(layer_wide_gated_16_kernel, 16, GATED)
WIDE_KERNEL(layer_wide_gated_32_kernel, 32, GATED)
WIDE_KERNEL(layer_wide_gated_64_kernel, 64, GATED)
WIDE_KERNEL(layer_wide_logits_8_kernel, 8, LOGITS)
WIDE_KERNEL(layer_wide_logits_16_kernel, 16, LOGITS)
WIDE_KERNEL(layer_wide_logits_32_kernel, 32, LOGITS)
WIDE_KERNEL(layer_wide_logits_64_kernel, 64, LOGITS)
