// Entry point. ELEMENT: float, bfloat16 or float16, of the logits.
#include "sample.cuh"

extern "C" __device__ const unsigned sample_params_bytes = sizeof(SampleParams);

extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS) sample_kernel(__grid_constant__ const SampleParams params) {
    sample_rows<ELEMENT>(params);
}
