// Entry points, named by head_dim. ELEMENT: bfloat16 or float16.
#include "rope_kv_write.cuh"

extern "C" __device__ const unsigned rope_kv_write_params_bytes = sizeof(RopeKvWriteParams);

extern "C" __global__ void __launch_bounds__(128)
    rope_kv_write_16_kernel(__grid_constant__ const RopeKvWriteParams params) {
    rope_kv_write<ELEMENT, 16>(params);
}

extern "C" __global__ void __launch_bounds__(128)
    rope_kv_write_32_kernel(__grid_constant__ const RopeKvWriteParams params) {
    rope_kv_write<ELEMENT, 32>(params);
}

extern "C" __global__ void __launch_bounds__(128)
    rope_kv_write_64_kernel(__grid_constant__ const RopeKvWriteParams params) {
    rope_kv_write<ELEMENT, 64>(params);
}

extern "C" __global__ void __launch_bounds__(128)
    rope_kv_write_96_kernel(__grid_constant__ const RopeKvWriteParams params) {
    rope_kv_write<ELEMENT, 96>(params);
}

extern "C" __global__ void __launch_bounds__(128)
    rope_kv_write_128_kernel(__grid_constant__ const RopeKvWriteParams params) {
    rope_kv_write<ELEMENT, 128>(params);
}

extern "C" __global__ void __launch_bounds__(128)
    rope_kv_write_256_kernel(__grid_constant__ const RopeKvWriteParams params) {
    rope_kv_write<ELEMENT, 256>(params);
}
