// Uses every primitive once, so that compiling it checks them all.
#include "async_copy.cuh"
#include "element.cuh"
#include "grid.cuh"
#include "math.cuh"
#include "mma.cuh"
#include "warp.cuh"

struct EveryPrimitiveParams {
    const uint4* input;
    float* output;
    unsigned* counter;
    long long num_valid;
};

__device__ void use_copies(const EveryPrimitiveParams& params, uint4* data, Mbarrier* barrier) {
    if (threadIdx.x == 0) mbarrier_init(barrier, 1);
    block_sync();
    if (threadIdx.x == 0 && HAS_BULK_COPY) {
        bulk_copy_fence();
        mbarrier_arrive_expect(barrier, 1024);
        copy_bulk(data, params.input, 512, barrier);
        copy_bulk_stream(data + 32, params.input + 32, 512, barrier);
        prefetch_l2_bulk(params.input + 64, 1024);
    } else if (threadIdx.x == 0) {
        mbarrier_arrive(barrier);
    }
    if (threadIdx.x > 1024) copy_async_arrive(barrier);
    mbarrier_wait(barrier, 0);
    copy_async16(data + 64 + threadIdx.x, params.input + threadIdx.x);
    copy_async16_or_zero(data + 128, params.input, threadIdx.x < params.num_valid);
    copy_async_commit();
    copy_async_wait<0>();
    block_sync();
}

template <class T>
__device__ float use_products(const uint4* data) {
    unsigned a[4], b[2];
    float acc[4] = {};
    ldmatrix_x4(a, data + lane_id());
    ldmatrix_x2(b, data + lane_id() % 16);
    mma_16x8x16<T>(acc, a, b);
    ldmatrix_x4_trans(a, data + lane_id());
    ldmatrix_x2_trans(b, data + lane_id() % 16);
    mma_16x8x16<T>(acc, a, b);
    const float2 pair = unpack2<T>(pack2<T>(acc[0], acc[1]));
    return warp_sum(pair.x) + warp_max(pair.y) + shfl(to_float(from_float<T>(acc[2])), 3) + shfl_up(acc[3], 1) +
           warp_ballot(acc[3] > 0);
}

extern "C" __global__ void every_primitive_kernel(__grid_constant__ const EveryPrimitiveParams params) {
    unsigned char* shared = shared_memory();
    uint4* data = reinterpret_cast<uint4*>(shared + 1024);
    use_copies(params, data, reinterpret_cast<Mbarrier*>(shared));
    float sum = use_products<bfloat16>(data) + use_products<float16>(data);
    warp_sync();
    named_arrive(1, 64);
    named_sync(1, 64);
    prefetch_l2(params.input);
    grid_dependency_wait();
    grid_barrier(params.counter, gridDim.x);
    grid_dependency_launch();
    const uint4 word = load_stream16(params.input + 5);
    const uint4 random = philox4x32(word, 1, 2);
    store16(params.output + 4 * (threadIdx.x + 100), load16(params.input + 1));
    sum += exp2_fast(sum) + log2_fast(sum) + rsqrt_fast(sum) + reciprocal_fast(sum) + random.x;
    params.output[threadIdx.x] = from_float<float>(sum) + add_acquire_release(params.counter + 1, 1);
}

extern "C" __device__ const unsigned every_primitive_params_bytes = sizeof(EveryPrimitiveParams);
