#include "decoder_step.cuh"

extern "C" __device__ const unsigned decoder_step_params_bytes = sizeof(DecoderStepParams);
extern "C" __device__ const unsigned decoder_step_shared_bytes = SHARED_BYTES;
extern "C" __device__ const unsigned long long decoder_step_exchange_words = EXCHANGE_WORDS;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
        decoder_step_kernel(__grid_constant__ const DecoderStepParams params) {
    decoder_step(params);
}
