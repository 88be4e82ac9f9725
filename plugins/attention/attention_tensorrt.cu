// Entry point for TensorRT, which passes inputs, then integers, then outputs. ELEMENT and HEAD_DIM as in attention.cu.
#include "attention_tensorrt.cuh"

// Mirrored in tensorrt.py.     key warps                                            row warps  stages
using Dense = MaskedConfig<ELEMENT, HEAD_DIM,
                           HEAD_DIM <= 64 ? 4 : HEAD_DIM <= 128 ? 2 : 1, HEAD_DIM <= 128 ? 2 : 1, 2>;
static_assert(Dense::SHARED_BYTES <= 48 * 1024, "more needs leave from the driver");

extern "C" __global__ void __launch_bounds__(Dense::THREADS)
    attention_tensorrt_kernel(const void* q, const void* k_cache, const void* v_cache, const unsigned char* mask, int rows,
                              int num_heads, int num_kv_heads, int cache_len, int scale_bits, void* context) {
    attend_dense<Dense>({q, k_cache, v_cache, mask, context, rows, num_heads, num_kv_heads, cache_len,
                         __int_as_float(scale_bits)},
                        shared_memory());
}
