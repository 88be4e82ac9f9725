// A linear layer over few rows: y (M, out) = x (M, in) . weight (out, in)^T + bias, M of 1 to 64.
//
// The weight is operand A of mma.m16n8k16 and each row of x a column of operand B, so that a row is computed alike
// whatever the others are and however many. The work is cut into units of TILE weight rows x COLUMNS columns; a block
// takes an equal run of them, tile after tile, so that all stream the same bytes whatever the layer's shape. Where a
// tile's columns are in several runs, each block writes its float32 sums to the workspace, and the last to come adds
// them in order. Runs depend on the layer and the grid alone, never on M.
//
// 4 warps: ROW_WARPS of 32 weight rows, COLUMN_WARPS of 64 columns, whose sums are added in order. Units arrive in a ring
// of cp.async stages; the first stages' weights before the previous kernel of the stream has ended. Rows are aligned to
// 16 bytes, `in` is a multiple of 8. Shared memory: Skinny::SHARED_BYTES.
#pragma once

#include "async_copy.cuh"
#include "element.cuh"
#include "grid.cuh"
#include "mma.cuh"

constexpr int SKINNY_THREADS = 128;
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
    float* partials;     // (blocks, 2, TILE x 64)
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
    static constexpr int ROW_BLOCKS = ROW_BLOCKS_;  // of 8 rows of x
    static constexpr int TILE = WARP_ROWS * ROW_WARPS;
    static constexpr int COLUMNS = WARP_COLUMNS * COLUMN_WARPS;
    static constexpr int PITCH = 2 * COLUMNS + 16;  // bytes; rows 16 bytes apart modulo 128 spread over all banks
    static constexpr int WEIGHT_BYTES = TILE * PITCH;
    static constexpr int STAGE_BYTES = WEIGHT_BYTES + 8 * ROW_BLOCKS * PITCH;
    static constexpr int SUM_PITCH = TILE + 4;  // floats
    static constexpr int SUM_BYTES = COLUMN_WARPS * 8 * ROW_BLOCKS * SUM_PITCH * 4;
    static constexpr int FITTING = (SKINNY_SHARED_LIMIT - SUM_BYTES - 16) / STAGE_BYTES;
    static constexpr int STAGES = FITTING < MOST_STAGES ? FITTING : MOST_STAGES;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES + SUM_BYTES + 16;
    static_assert(ROW_WARPS * COLUMN_WARPS * 32 == SKINNY_THREADS, "one tile of warps");
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
template <class C>
__device__ __forceinline__ void copy_rows(
    unsigned char* target, const typename C::T* source, long long stride, int rows, int first_row, int num_rows,
    int column, int num_columns) {
    constexpr int VECTORS = C::COLUMNS / 8;
    for (int at = threadIdx.x; at < rows * VECTORS; at += SKINNY_THREADS) {
        const int row = at / VECTORS, vector = at % VECTORS;
        const bool is_valid = first_row + row < num_rows && column + 8 * vector < num_columns;
        const typename C::T* from = source + (is_valid ? (first_row + row) * stride + column + 8 * vector : 0);
        copy_async16_or_zero(target + row * C::PITCH + 16 * vector, from, is_valid);
    }
}

template <class C>
__device__ __forceinline__ void copy_weights(const SkinnyParams& params, unsigned char* stage, int tile, int chunk) {
    copy_rows<C>(stage, static_cast<const typename C::T*>(params.weight), params.weight_stride, C::TILE,
                 tile * C::TILE, params.out, chunk * C::COLUMNS, params.in);
}

template <class C>
__device__ __forceinline__ void copy_inputs(const SkinnyParams& params, unsigned char* stage, int chunk) {
    copy_rows<C>(stage + C::WEIGHT_BYTES, static_cast<const typename C::T*>(params.x), params.x_stride,
                 8 * C::ROW_BLOCKS, 0, params.rows, chunk * C::COLUMNS, params.in);
}

// A warp's part of a unit: 32 weight rows, 64 columns, all rows of x.
template <class C>
__device__ __forceinline__ void multiply_unit(float (&sums)[2][C::ROW_BLOCKS][4], const unsigned char* stage) {
    using T = typename C::T;
    const int lane = lane_id(), row_warp = warp_id() % C::ROW_WARPS, column_warp = warp_id() / C::ROW_WARPS;
    const unsigned char* weights = stage + (row_warp * WARP_ROWS + lane % 16) * C::PITCH + lane / 16 * 16;
    const unsigned char* inputs = stage + C::WEIGHT_BYTES;
#pragma unroll
    for (int step = 0; step < WARP_COLUMNS / 16; ++step) {
        const int offset = 2 * (column_warp * WARP_COLUMNS + 16 * step);
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
    const int lane = lane_id(), row_warp = warp_id() % C::ROW_WARPS, column_warp = warp_id() / C::ROW_WARPS;
    block_sync();  // the tile before has been read
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int block = 0; block < C::ROW_BLOCKS; ++block)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = 8 * (column_warp * C::ROW_BLOCKS + block) + 2 * (lane % 4) + i % 2;
                const int out = row_warp * WARP_ROWS + 16 * half + lane / 4 + 8 * (i / 2);
                shared[row * C::SUM_PITCH + out] = sums[half][block][i];
                sums[half][block][i] = 0;
            }
    block_sync();
}

template <class C>
__device__ __forceinline__ void store_result(const SkinnyParams& params, int row, int out, float value) {
    using T = typename C::T;
    if (params.bias != nullptr) value += to_float(static_cast<const T*>(params.bias)[out]);
    const long long at = row * params.y_stride + out;
    if (params.is_float)
        static_cast<float*>(params.y)[at] = value;
    else
        static_cast<T*>(params.y)[at] = from_float<T>(value);
}

// Visit the tile's results with `sum_of(row of x, weight row of the tile)`.
template <class C, class SumOf>
__device__ __forceinline__ void store_tile(const SkinnyParams& params, int tile, SumOf sum_of) {
    const int rows = params.rows / params.parts;
    for (int at = threadIdx.x; at < rows * C::TILE; at += SKINNY_THREADS) {
        const int row = at / C::TILE, out = at % C::TILE;
        if (tile * C::TILE + out >= params.out) continue;
        float value = sum_of(row, out);
        if (params.parts == 2) value += sum_of(row + rows, out);
        store_result<C>(params, row, tile * C::TILE + out, value);
    }
}

// A tile that several blocks have parts of: leave this one's, and finish the tile if it is the last.
template <class C, class SumOf>
__device__ __forceinline__ void merge_tile(
    const SkinnyParams& params, const Runs& runs, int tile, int* is_last, SumOf own) {
    constexpr int SLOT = C::TILE * 64;  // floats
    const int first = runs.owner(tile * runs.chunks), last = runs.owner((tile + 1) * runs.chunks - 1);
    // A block has two slots, for its first tile and for its last. Of this tile's blocks only the first began before it.
    float* later_slots = params.partials;
    float* first_slot = later_slots + (2ll * first + (runs.first(first) / runs.chunks != tile)) * SLOT;
    float* slot = static_cast<int>(blockIdx.x) == first ? first_slot : later_slots + 2ll * blockIdx.x * SLOT;
    for (int at = threadIdx.x; at < params.rows * C::TILE; at += SKINNY_THREADS)
        slot[at] = own(at / C::TILE, at % C::TILE);
    block_sync();
    if (threadIdx.x == 0) {
        *is_last = add_acquire_release(&params.counters[tile], 1) == static_cast<unsigned>(last - first);
        if (*is_last) params.counters[tile] = 0;
    }
    block_sync();
    if (!*is_last) return;
    store_tile<C>(params, tile, [&](int row, int out) {
        const int at = row * C::TILE + out;
        float sum = first_slot[at];
        for (int other = first + 1; other <= last; ++other) sum += later_slots[2ll * other * SLOT + at];
        return sum;
    });
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
        const auto own = [&](int row, int out) {
            float sum = 0;
#pragma unroll
            for (int warp = 0; warp < C::COLUMN_WARPS; ++warp)
                sum += shared_sums[(8 * warp * C::ROW_BLOCKS + row) * C::SUM_PITCH + out];
            return sum;
        };
        if (first <= tile * runs.chunks && end >= (tile + 1) * runs.chunks)
            store_tile<C>(params, tile, own);
        else
            merge_tile<C>(params, runs, tile, is_last, own);
    }
    copy_async_wait<0>();
}
