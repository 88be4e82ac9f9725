// Entry points for TensorRT, which passes inputs, then integers, then outputs; the new caches are the old ones' memory.
// ELEMENT: bfloat16 or float16; HEAD_DIM: see HEAD_DIMS of cuda.py.
#include "rope_kv_write_tensorrt.cuh"

extern "C" __global__ void __launch_bounds__(128)
    rope_kv_write_tensorrt_kernel(const void* qkv, const void* cos, const void* sin, const long long* position_ids,
                                  const long long* write_starts, const void*, const void*, int batch, int rows,
                                  int num_heads, int num_kv_heads, int cache_len, int eps_bits, void* q, void* k_cache,
                                  void* v_cache) {
    rope_kv_write_dense<ELEMENT, HEAD_DIM>({qkv, cos, sin, position_ids, write_starts, nullptr, nullptr, q, k_cache,
                                            v_cache, batch, rows, num_heads, num_kv_heads, cache_len,
                                            __int_as_float(eps_bits)});
}

extern "C" __global__ void __launch_bounds__(128)
    rope_kv_write_norms_tensorrt_kernel(const void* qkv, const void* cos, const void* sin, const long long* position_ids,
                                        const long long* write_starts, const void*, const void*, const void* q_norm,
                                        const void* k_norm, int batch, int rows, int num_heads, int num_kv_heads,
                                        int cache_len, int eps_bits, void* q, void* k_cache, void* v_cache) {
    rope_kv_write_dense<ELEMENT, HEAD_DIM>({qkv, cos, sin, position_ids, write_starts, q_norm, k_norm, q, k_cache,
                                            v_cache, batch, rows, num_heads, num_kv_heads, cache_len,
                                            __int_as_float(eps_bits)});
}
