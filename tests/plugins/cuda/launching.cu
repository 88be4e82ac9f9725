// Small kernels whose results say whether loading, launching and ordering work.
#include "element.cuh"
#include "grid.cuh"

struct LaunchingParams {
    const uint4* input;
    uint4* output;
    unsigned* counter;
    long long num_words;
    unsigned addend;
    unsigned padding;
};
static_assert(sizeof(LaunchingParams) == 40, "mirrored in test_launch.py");

extern "C" __device__ const unsigned launching_params_bytes = sizeof(LaunchingParams);

// output = input, 16 bytes at a time.
extern "C" __global__ void copy_kernel(__grid_constant__ const LaunchingParams params) {
    const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
    for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < params.num_words; i += stride) {
        store16(params.output + i, load_stream16(params.input + i));
    }
}

// Reads everything and writes nothing, unless a word is the addend: for the read bandwidth.
extern "C" __global__ void read_kernel(__grid_constant__ const LaunchingParams params) {
    const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
    unsigned bits = 0;
    long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; i + 3 * stride < params.num_words; i += 4 * stride) {
        uint4 words[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) words[k] = load_stream16(params.input + i + k * stride);
#pragma unroll
        for (int k = 0; k < 4; ++k) bits ^= words[k].x ^ words[k].y ^ words[k].z ^ words[k].w;
    }
    for (; i < params.num_words; i += stride) bits ^= load_stream16(params.input + i).x;
    if (bits == params.addend) *params.counter = bits;
}

// Every word of the output becomes the word of the input before it, plus the addend: wrong if it runs ahead of its input.
extern "C" __global__ void dependent_kernel(__grid_constant__ const LaunchingParams params) {
    grid_dependency_launch();
    grid_dependency_wait();
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= params.num_words) return;
    uint4 word = load16(params.input + (i + 1) % params.num_words);
    word.x += params.addend;
    store16(params.output + i, word);
}

// Each block writes its number, all meet, each reads its neighbour's, ten times over.
extern "C" __global__ void cooperative_kernel(__grid_constant__ const LaunchingParams params) {
    unsigned char* shared = shared_memory();
    for (unsigned round = 0; round < 10; ++round) {
        if (threadIdx.x == 0) {
            const unsigned value = blockIdx.x * 10 + round;
            store16(params.output + blockIdx.x, make_uint4(value, 0, 0, 0));
        }
        grid_barrier(params.counter, gridDim.x);
        if (threadIdx.x == 0) {
            const unsigned neighbour = (blockIdx.x + 1) % gridDim.x;
            const unsigned seen = load_acquire(&params.output[neighbour].x);
            unsigned* errors = reinterpret_cast<unsigned*>(shared);
            *errors = (round == 0 ? 0 : *errors) + (seen != neighbour * 10 + round);
            if (round == 9) params.output[blockIdx.x].y = *errors;
        }
        grid_barrier(params.counter, gridDim.x);
    }
}
