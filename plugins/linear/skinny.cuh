// A linear layer over few rows: y (M, out) = x (M, in) . weight (out, in)^T + bias, M of 1 to 64.
//
// The weight is operand A of mma.m16n8k16 and each row of x a column of operand B, so that a row is computed alike
// whatever the others are and however many. The work is cut into units of TILE weight rows x COLUMNS columns; a block
// takes an equal run of them, tile after tile, so that all stream the same bytes whatever the layer's shape. Where a
// tile's columns are in several runs, each block writes its float32 sums to the workspace, and the last to come adds
// them in order. Runs depend on the layer and the grid alone, never on M.
//
// 8 warps: ROW_WARPS of 32 weight rows, COLUMN_WARPS of 64 columns, whose sums are added in order, each for both halves
// of x's rows. Units arrive in a ring of cp.async stages; the first stages' weights before the previous kernel of the stream has ended. Rows are aligned to
// 16 bytes, `in` is a multiple of 8. Shared memory: Skinny::SHARED_BYTES.
#pragma once

#include "async_copy.cuh"
#include "element.cuh"
#include "grid.cuh"
#include "mma.cuh"

constexpr int SKINNY_THREADS = 256;
constexpr int HALVES = 2;         // of the rows of x
constexpr int WARP_ROWS = 32;     // of the weight
constexpr int WARP_COLUMNS = 64;  // of a unit
constexpr int MOST_STAGES = 8;
// What a block may use, less what a grid that starts early needs; mirrored in skinny.py.
#if __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000
constexpr int SKINNY_SHARED_LIMIT = 220 << 10;
#elif __CUDA_ARCH__ == 800
constexpr int SKINNY_SHARED_LIMIT = 160 << 10;
#else
constexpr int SKINNY_SHARED_LIMIT = 98 << 10;
#endif

struct SkinnyParams {
    const void* x;       // (M, in)
    const void* weight;  // (out, in)
    const void* bias;    // (out,), or null
    void* y;             // (M / parts, out), of the weight's type or float
    float* partials;     // (blocks, 2, 64 x TILE)
    unsigned* counters;  // (tiles,), zero, and left so
    long long x_stride;  // elements between rows
    long long weight_stride;
    long long y_stride;
    int rows;  // M
    int in;
    int out;
    int parts;  // 2: rows r and r + M / 2 of x are parts of one row, and their results are added
    int is_float;  // whether y is
    int unused;
};
static_assert(sizeof(SkinnyParams) == 9 * 8 + 6 * 4, "mirrored in skinny.py");

template <class T_, int ROW_WARPS_, int COLUMN_WARPS_, int ROW_BLOCKS_>
struct Skinny {
    using T = T_;
    static constexpr int ROW_WARPS = ROW_WARPS_, COLUMN_WARPS = COLUMN_WARPS_;
    static constexpr int ROW_BLOCKS = ROW_BLOCKS_;  // of 8 rows of x, that a warp has
    static constexpr int ROWS = 8 * HALVES * ROW_BLOCKS;
    static constexpr int TILE = WARP_ROWS * ROW_WARPS;
    static constexpr int COLUMNS = WARP_COLUMNS * COLUMN_WARPS;
    static constexpr int PITCH = 2 * COLUMNS + 16;  // bytes; rows 16 bytes apart modulo 128 spread over all banks
    static constexpr int WEIGHT_BYTES = TILE * PITCH;
    static constexpr int STAGE_BYTES = WEIGHT_BYTES + ROWS * PITCH;
    static constexpr int SUM_PITCH = TILE + 4;  // floats
    static constexpr int SUM_BYTES = COLUMN_WARPS * ROWS * SUM_PITCH * 4;
    static constexpr int FITTING = (SKINNY_SHARED_LIMIT - SUM_BYTES - 16) / STAGE_BYTES;
    static constexpr int STAGES = FITTING < MOST_STAGES ? FITTING : MOST_STAGES;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES + SUM_BYTES + 16;
    static_assert(ROW_WARPS * COLUMN_WARPS * HALVES * 32 == SKINNY_THREADS, "one tile of warps");
};

// Which units a block has: of `total`, in equal runs.
struct Runs {
    int chunks;  // units of a tile
    int total;

    __device__ int first(int block) const {
        return static_cast<int>(static_cast<long long>(block) * total / static_cast<int>(gridDim.x));
    }
    __device__ int owner(int unit) const {
        return static_cast<int>((static_cast<long long>(unit + 1) * gridDim.x - 1) / total);
    }
};

// Copy `rows` of `source`, from `column` on, to a stage; rows and columns past the matrix become zeros.
template <class C, int COUNT>
__device__ __forceinline__ void copy_rows(
    unsigned char* target, const typename C::T* source, long long stride, int first_row, int num_rows, int column,
    int num_columns) {
    constexpr int VECTORS = C::COLUMNS / 8;
#pragma unroll 4
    for (int at = threadIdx.x; at < COUNT * VECTORS; at += SKINNY_THREADS) {
        const int row = at / VECTORS, vector = at % VECTORS;
        const bool is_valid = first_row + row < num_rows && column + 8 * vector < num_columns;
        const typename C::T* from = source + (is_valid ? (first_row + row) * stride + column + 8 * vector : 0);
        copy_async16_or_zero(target + row * C::PITCH + 16 * vector, from, is_valid);
    }
}

template <class C>
__device__ __forceinline__ void copy_weights(const SkinnyParams& params, unsigned char* stage, int tile, int chunk) {
    copy_rows<C, C::TILE>(stage, static_cast<const typename C::T*>(params.weight), params.weight_stride,
                          tile * C::TILE, params.out, chunk * C::COLUMNS, params.in);
}

template <class C>
__device__ __forceinline__ void copy_inputs(const SkinnyParams& params, unsigned char* stage, int chunk) {
    copy_rows<C, C::ROWS>(stage + C::WEIGHT_BYTES, static_cast<const typename C::T*>(params.x), params.x_stride, 0,
                          params.rows, chunk * C::COLUMNS, params.in);
}

// Where a warp is in a unit.
template <class C>
struct WarpPlace {
    int row_warp = warp_id() % C::ROW_WARPS;
    int column_warp = warp_id() / C::ROW_WARPS % C::COLUMN_WARPS;
    int half = warp_id() / (C::ROW_WARPS * C::COLUMN_WARPS);
    int first_row = 8 * C::ROW_BLOCKS * half;  // of x
};

// A warp's part of a unit: 32 weight rows, 64 columns, half the rows of x.
template <class C>
__device__ __forceinline__ void multiply_unit(float (&sums)[2][C::ROW_BLOCKS][4], const unsigned char* stage) {
    using T = typename C::T;
    const int lane = lane_id();
    const WarpPlace<C> place;
    const unsigned char* weights = stage + (place.row_warp * WARP_ROWS + lane % 16) * C::PITCH + lane / 16 * 16;
    const unsigned char* inputs = stage + C::WEIGHT_BYTES + place.first_row * C::PITCH;
#pragma unroll
    for (int step = 0; step < WARP_COLUMNS / 16; ++step) {
        const int offset = 2 * (place.column_warp * WARP_COLUMNS + 16 * step);
        unsigned a[2][4];
        ldmatrix_x4(a[0], weights + offset);
        ldmatrix_x4(a[1], weights + 16 * C::PITCH + offset);
        if constexpr (C::ROW_BLOCKS == 1) {
            unsigned b[2];
            ldmatrix_x2(b, inputs + lane % 8 * C::PITCH + lane / 8 % 2 * 16 + offset);
            mma_16x8x16<T>(sums[0][0], a[0], b);
            mma_16x8x16<T>(sums[1][0], a[1], b);
        } else {
#pragma unroll
            for (int pair = 0; pair < C::ROW_BLOCKS / 2; ++pair) {
                unsigned b[4];
                const int row = 16 * pair + lane % 8 + lane / 16 * 8;
                ldmatrix_x4(b, inputs + row * C::PITCH + lane / 8 % 2 * 16 + offset);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const unsigned columns[2] = {b[2 * half], b[2 * half + 1]};
                    mma_16x8x16<T>(sums[0][2 * pair + half], a[0], columns);
                    mma_16x8x16<T>(sums[1][2 * pair + half], a[1], columns);
                }
            }
        }
    }
}

// Hand the warps' sums to all threads as (column warp, row of x, weight row of the tile), and clear them.
template <class C>
__device__ __forceinline__ void publish_sums(float (&sums)[2][C::ROW_BLOCKS][4], float* shared) {
    const int lane = lane_id();
    const WarpPlace<C> place;
    block_sync();  // the tile before has been read
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int block = 0; block < C::ROW_BLOCKS; ++block)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = place.column_warp * C::ROWS + place.first_row + 8 * block + 2 * (lane % 4) + i % 2;
                const int out = place.row_warp * WARP_ROWS + 16 * half + lane / 4 + 8 * (i / 2);
                shared[row * C::SUM_PITCH + out] = sums[half][block][i];
                sums[half][block][i] = 0;
            }
    block_sync();
}

// Four results next to each other; those past `out` are left out.
template <class C>
__device__ __forceinline__ void store_results(const SkinnyParams& params, int row, int out, float4 sums) {
    using T = typename C::T;
    float values[4] = {sums.x, sums.y, sums.z, sums.w};
    const long long at = row * params.y_stride + out;
    const int count = min(4, params.out - out);
    if (params.bias != nullptr)
        for (int i = 0; i < count; ++i) values[i] += to_float(static_cast<const T*>(params.bias)[out + i]);
    const bool is_whole = count == 4 && at % 4 == 0 && reinterpret_cast<unsigned long long>(params.y) % 16 == 0;
    if (params.is_float) {
        float* target = static_cast<float*>(params.y) + at;
        if (is_whole)
            *reinterpret_cast<float4*>(target) = make_float4(values[0], values[1], values[2], values[3]);
        else
            for (int i = 0; i < count; ++i) target[i] = values[i];
    } else {
        T* target = static_cast<T*>(params.y) + at;
        if (is_whole)
            *reinterpret_cast<uint2*>(target) = {pack2<T>(values[0], values[1]), pack2<T>(values[2], values[3])};
        else
            for (int i = 0; i < count; ++i) target[i] = from_float<T>(values[i]);
    }
}

__device__ __forceinline__ float4 operator+(const float4& a, const float4& b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// The first `count` warps' sums of four results, in order.
template <class C>
__device__ __forceinline__ float4 add_warps(const float* sums, int count, int row, int out) {
    float4 total = *reinterpret_cast<const float4*>(sums + row * C::SUM_PITCH + out);
    for (int warp = 1; warp < count; ++warp)
        total = total + *reinterpret_cast<const float4*>(sums + (warp * C::ROWS + row) * C::SUM_PITCH + out);
    return total;
}

// Store a tile whose sums `count` warps have parts of.
template <class C>
__device__ __forceinline__ void store_tile(const SkinnyParams& params, int tile, const float* sums, int count) {
    constexpr int QUADS = C::TILE / 4;
    const int rows = params.rows / params.parts;
    for (int at = threadIdx.x; at < rows * QUADS; at += SKINNY_THREADS) {
        const int row = at / QUADS, out = 4 * (at % QUADS);
        if (tile * C::TILE + out >= params.out) continue;
        float4 value = add_warps<C>(sums, count, row, out);
        if (params.parts == 2) value = value + add_warps<C>(sums, count, row + rows, out);
        store_results<C>(params, row, tile * C::TILE + out, value);
    }
}

// A tile that several blocks have parts of: leave this one's, and finish the tile if it is the last.
template <class C>
__device__ __forceinline__ void merge_tile(
    const SkinnyParams& params, const Runs& runs, int tile, float* sums, int* is_last) {
    constexpr int SLOT = 64 * C::TILE, QUADS = C::TILE / 4;
    constexpr int HELD = (C::ROWS * QUADS + SKINNY_THREADS - 1) / SKINNY_THREADS;  // of a thread
    const int first = runs.owner(tile * runs.chunks), last = runs.owner((tile + 1) * runs.chunks - 1);
    // A block has two slots, for its first tile and for its last. Of this tile's blocks only the first began before it.
    float* later_slots = params.partials;
    float* first_slot = later_slots + (2ll * first + (runs.first(first) / runs.chunks != tile)) * SLOT;
    float* slot = static_cast<int>(blockIdx.x) == first ? first_slot : later_slots + 2ll * blockIdx.x * SLOT;
    const int size = params.rows * QUADS;
    for (int at = threadIdx.x; at < size; at += SKINNY_THREADS)
        reinterpret_cast<float4*>(slot)[at] = add_warps<C>(sums, C::COLUMN_WARPS, at / QUADS, 4 * (at % QUADS));
    block_sync();
    if (threadIdx.x == 0) {
        *is_last = add_acquire_release(&params.counters[tile], 1) == static_cast<unsigned>(last - first);
        if (*is_last) params.counters[tile] = 0;
    }
    block_sync();
    if (!*is_last) return;
    float4 totals[HELD] = {};
    for (int other = first; other <= last; ++other) {
        const float* from = other == first ? first_slot : later_slots + 2ll * other * SLOT;
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const int at = threadIdx.x + i * SKINNY_THREADS;
            if (at < size) totals[i] = totals[i] + reinterpret_cast<const float4*>(from)[at];
        }
    }
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        const int at = threadIdx.x + i * SKINNY_THREADS;
        if (at < size)
            *reinterpret_cast<float4*>(sums + at / QUADS * C::SUM_PITCH + 4 * (at % QUADS)) = totals[i];
    }
    block_sync();
    store_tile<C>(params, tile, sums, 1);
}

template <class C>
__device__ __forceinline__ void skinny_linear(const SkinnyParams& params) {
    unsigned char* stages = shared_memory();
    float* shared_sums = reinterpret_cast<float*>(stages + C::STAGES * C::STAGE_BYTES);
    int* is_last = reinterpret_cast<int*>(stages + C::STAGES * C::STAGE_BYTES + C::SUM_BYTES);
    Runs runs;
    runs.chunks = (params.in + C::COLUMNS - 1) / C::COLUMNS;
    runs.total = (params.out + C::TILE - 1) / C::TILE * runs.chunks;
    const int first = runs.first(blockIdx.x), end = runs.first(blockIdx.x + 1);
    grid_dependency_launch();
    for (int at = 0; at < C::STAGES - 1 && first + at < end; ++at)
        copy_weights<C>(params, stages + at * C::STAGE_BYTES, (first + at) / runs.chunks, (first + at) % runs.chunks);
    grid_dependency_wait();
    for (int at = 0; at < C::STAGES - 1; ++at) {
        if (first + at < end) copy_inputs<C>(params, stages + at * C::STAGE_BYTES, (first + at) % runs.chunks);
        copy_async_commit();
    }
    float sums[2][C::ROW_BLOCKS][4] = {};
    for (int unit = first; unit < end; ++unit) {
        copy_async_wait<C::STAGES - 2>();
        block_sync();
        const int next = unit + C::STAGES - 1;
        if (next < end) {
            unsigned char* stage = stages + (next - first) % C::STAGES * C::STAGE_BYTES;
            copy_weights<C>(params, stage, next / runs.chunks, next % runs.chunks);
            copy_inputs<C>(params, stage, next % runs.chunks);
        }
        copy_async_commit();
        multiply_unit<C>(sums, stages + (unit - first) % C::STAGES * C::STAGE_BYTES);
        const int tile = unit / runs.chunks;
        if (unit + 1 < end && (unit + 1) / runs.chunks == tile) continue;
        publish_sums<C>(sums, shared_sums);
        if (first <= tile * runs.chunks && end >= (tile + 1) * runs.chunks)
            store_tile<C>(params, tile, shared_sums, C::COLUMN_WARPS);
        else
            merge_tile<C>(params, runs, tile, shared_sums, is_last);
    }
    copy_async_wait<0>();
}
