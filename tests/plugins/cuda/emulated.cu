// Kernels that use one feature each, to test the emulator (and the primitives) against what PTX says.
#include "async_copy.cuh"
#include "element.cuh"
#include "grid.cuh"
#include "math.cuh"
#include "mma.cuh"
#include "warp.cuh"

struct EmulatedParams {
    const void* input;
    const void* second;
    void* output;
    unsigned* counter;
    long long size;
};
static_assert(sizeof(EmulatedParams) == 40, "mirrored in test_emulator.py");

extern "C" __device__ const unsigned emulated_params_bytes = sizeof(EmulatedParams);

// output (4, threads) float32: shfl_xor 1, shfl from lane 3, warp_sum, ballot of odd lanes, of input (threads).
extern "C" __global__ void shuffle_kernel(__grid_constant__ const EmulatedParams params) {
    const float value = static_cast<const float*>(params.input)[threadIdx.x];
    float* output = static_cast<float*>(params.output) + threadIdx.x;
    output[0] = shfl_xor(value, 1);
    output[blockDim.x] = shfl(value, 3);
    output[2 * blockDim.x] = warp_sum(value);
    output[3 * blockDim.x] = static_cast<float>(warp_ballot(lane_id() % 2) == 0xaaaaaaaau);
}

// output = input reversed within the block, through shared memory. size != 0 leaves the barrier out.
extern "C" __global__ void reverse_kernel(__grid_constant__ const EmulatedParams params) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    shared[threadIdx.x] = static_cast<const float*>(params.input)[i];
    if (params.size == 0) block_sync();
    static_cast<float*>(params.output)[i] = shared[blockDim.x - 1 - threadIdx.x];
}

// Warps 0 and 1 meet at a named barrier that wants `size` threads; warp 2 only arrives.
extern "C" __global__ void named_kernel(__grid_constant__ const EmulatedParams params) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    const int threads = static_cast<int>(params.size);
    if (warp_id() == 2) {
        shared[lane_id()] = static_cast<const float*>(params.input)[lane_id()];
        named_arrive(5, threads);
        return;
    }
    named_sync(5, threads);
    static_cast<float*>(params.output)[threadIdx.x] = shared[lane_id()];
}

// output (16, 8) float32 = input (16, 16) bf16 times second (16, 8), or its transpose (8, 16) where size is 1.
extern "C" __global__ void product_kernel(__grid_constant__ const EmulatedParams params) {
    unsigned char* shared = shared_memory();
    unsigned char* second = shared + 512;
    store16(shared + 16 * threadIdx.x, load16(static_cast<const uint4*>(params.input) + threadIdx.x));
    if (threadIdx.x < 16) store16(second + 16 * threadIdx.x, load16(static_cast<const uint4*>(params.second) + threadIdx.x));
    warp_sync();
    unsigned a[4], b[2];
    ldmatrix_x4(a, shared + (lane_id() % 16) * 32 + (lane_id() / 16) * 16);
    if (params.size == 1) {
        ldmatrix_x2(b, second + (lane_id() % 8) * 32 + (lane_id() / 8 % 2) * 16);
    } else {
        ldmatrix_x2_trans(b, second + (lane_id() % 16) * 16);
    }
    float acc[4] = {};
    mma_16x8x16<bfloat16>(acc, a, b);
    float* output = static_cast<float*>(params.output) + lane_id() / 4 * 8 + 2 * (lane_id() % 4);
    output[0] = acc[0];
    output[1] = acc[1];
    output[64] = acc[2];
    output[65] = acc[3];
}

// output[tile] = sum of the tile's 32 x 4 floats, tiles through a ring of 3 cp.async groups. size: tiles.
extern "C" __global__ void ring_kernel(__grid_constant__ const EmulatedParams params) {
    uint4* shared = reinterpret_cast<uint4*>(shared_memory());
    const uint4* input = static_cast<const uint4*>(params.input);
    for (int tile = 0; tile < 2; ++tile) {
        copy_async16_or_zero(shared + tile * 32 + threadIdx.x, input + tile * 32 + threadIdx.x, tile < params.size);
        copy_async_commit();
    }
    for (int tile = 0; tile < params.size; ++tile) {
        const int next = tile + 2;
        copy_async16_or_zero(shared + next % 3 * 32 + threadIdx.x, input + next * 32 + threadIdx.x, next < params.size);
        copy_async_commit();
        copy_async_wait<2>();
        const uint4 word = shared[tile % 3 * 32 + threadIdx.x];
        const float sum = warp_sum(__uint_as_float(word.x) + __uint_as_float(word.y) + __uint_as_float(word.z) +
                                   __uint_as_float(word.w));
        if (threadIdx.x == 0) static_cast<float*>(params.output)[tile] = sum;
        warp_sync();
    }
}

// The same sums by a producer warp and a consumer warp with full and empty mbarriers and bulk copies.
extern "C" __global__ void bulk_kernel(__grid_constant__ const EmulatedParams params) {
    constexpr int STAGES = 2;
    Mbarrier* full = reinterpret_cast<Mbarrier*>(shared_memory());
    Mbarrier* empty = full + STAGES;
    uint4* tiles = reinterpret_cast<uint4*>(shared_memory() + 128);
    if (threadIdx.x < STAGES) {
        mbarrier_init(full + threadIdx.x, 1);
        mbarrier_init(empty + threadIdx.x, 32);
    }
    block_sync();
    for (int tile = 0; tile < params.size; ++tile) {
        const int stage = tile % STAGES;
        const unsigned parity = tile / STAGES % 2;
        if (threadIdx.x == 0) {
            mbarrier_wait(empty + stage, parity ^ 1);
            mbarrier_arrive_expect(full + stage, 512);
            copy_bulk(tiles + stage * 32, static_cast<const uint4*>(params.input) + tile * 32, 512, full + stage);
        }
        if (warp_id() == 1) {
            mbarrier_wait(full + stage, parity);
            const uint4 word = tiles[stage * 32 + lane_id()];
            mbarrier_arrive(empty + stage);
            const float sum = warp_sum(__uint_as_float(word.x) + __uint_as_float(word.y) + __uint_as_float(word.z) +
                                       __uint_as_float(word.w));
            if (lane_id() == 0) static_cast<float*>(params.output)[tile] = sum;
        }
    }
}

// output[block] = input[(block + 1) % blocks], which its neighbour doubled before a grid barrier.
extern "C" __global__ void neighbour_kernel(__grid_constant__ const EmulatedParams params) {
    float* doubled = static_cast<float*>(params.output) + gridDim.x;
    if (threadIdx.x == 0) doubled[blockIdx.x] = 2 * static_cast<const float*>(params.input)[blockIdx.x];
    grid_barrier(params.counter, gridDim.x);
    if (threadIdx.x == 0) static_cast<float*>(params.output)[blockIdx.x] = doubled[(blockIdx.x + 1) % gridDim.x];
}

// output (2, size): input (float32) rounded to bf16 and to fp16, one at a time, each followed by its pair-packed bits.
extern "C" __global__ void round_kernel(__grid_constant__ const EmulatedParams params) {
    const float* input = static_cast<const float*>(params.input);
    bfloat16* wide = static_cast<bfloat16*>(params.output);
    float16* fine = reinterpret_cast<float16*>(wide + params.size);
    for (long long i = threadIdx.x; i < params.size; i += blockDim.x) {
        wide[i] = from_float<bfloat16>(input[i]);
        fine[i] = from_float<float16>(input[i]);
    }
}

// output (4, threads) uint32: the words of philox4x32 at counter (thread, 1, 2, 3), key (4, 5).
extern "C" __global__ void random_kernel(__grid_constant__ const EmulatedParams params) {
    const uint4 words = philox4x32(make_uint4(threadIdx.x, 1, 2, 3), 4, 5);
    store16(static_cast<uint4*>(params.output) + threadIdx.x, words);
}

// What must not be: size names the offence.
extern "C" __global__ void offence_kernel(__grid_constant__ const EmulatedParams params) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    const float* input = static_cast<const float*>(params.input);
    if (params.size == 0 && threadIdx.x < 16) warp_sync();
    if (params.size == 1) warp_id() == 0 ? warp_sync() : named_sync(1, 96);
    if (params.size == 2) shared[64] = 1;
    if (params.size == 3) *static_cast<float*>(params.output) = input[1024];
    if (params.size == 4) lane_id() == 0 ? (void)warp_sum(1) : warp_sync();
    if (params.size == 5) mbarrier_arrive(reinterpret_cast<Mbarrier*>(shared));
    if (params.size == 6) copy_async16(shared, input + 1);
    if (params.size == 7) {
        copy_async16(shared + 4 * lane_id(), input + 4 * lane_id());
        copy_async_commit();
        static_cast<float*>(params.output)[lane_id()] = shared[lane_id()];
    }
    if (params.size == 8) {
        while (load_acquire(params.counter) == 0) {
        }
    }
}
