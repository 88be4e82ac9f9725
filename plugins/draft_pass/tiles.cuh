// Products of weights and few rows. A tile is 16 rows of a weight, operand A of mma.m16n8k16; the rows are the 8 columns
// of operand B, so that each is computed alike whatever the others are and however many. The order of k inside a product
// is free, so every thread takes 16 contiguous bytes of both operands for 32 columns, which are two mma steps.
//
// Weights lie as the threads take them: (tiles, steps of 32 columns, halves of 8 rows, 32 lanes, 8 elements), where lane l
// has row l / 4 of the half and columns 8 (l % 4) on. So a tile is one run of bytes, whole lines of which a warp reads.
//
// A block keeps the first of its tiles in shared memory, for all depths; the others are read from L2 each time.
#pragma once

#include "async_copy.cuh"
#include "exchange.cuh"
#include "grid.cuh"
#include "mma.cuh"
#include "trace.cuh"

constexpr int PASS_THREADS = 384;  // a multiple of 16 rows x TILE_ROWS, and few enough for 168 registers each
constexpr int PASS_WARPS = PASS_THREADS / 32;
constexpr int TILE_ROWS = 16;
constexpr int STEP_COLUMNS = 32;
constexpr int STEP_BYTES = TILE_ROWS * STEP_COLUMNS * 2;
constexpr int MOST_RESIDENT = 64;
constexpr int BARRIER_BYTES = MOST_RESIDENT * 8;  // the start of shared memory

// Weights of one step: rows lane / 4 and + 8 of the tile.
struct WeightStep {
    uint4 low;
    uint4 high;
};

__device__ __forceinline__ int divide_up(int a, int b) { return (a + b - 1) / b; }
__device__ __forceinline__ int tile_bytes(int columns) { return columns / STEP_COLUMNS * STEP_BYTES; }

// Bytes between rows in shared memory: 8 threads that read 64 bytes of each of two rows hit all 32 banks once.
__device__ __forceinline__ int row_pitch(int columns) { return divide_up(columns * 2, 128) * 128 + 64; }

// A block's tiles in shared memory, in slots.
struct Resident {
    Mbarrier* full;
    char* slots;
    int count;
    int slot_bytes;

    // `source(slot)` is a tile in global memory, or null; `wait()` is called before the first is asked for. Nothing is
    // resident where bulk copies do not exist.
    template <class Source, class Wait>
    __device__ void fill(int columns_at_most, int most, Source source, Wait wait) {
        full = reinterpret_cast<Mbarrier*>(shared_memory());
        slots = reinterpret_cast<char*>(shared_memory()) + BARRIER_BYTES;
        count = HAS_BULK_COPY ? most : 0;
        slot_bytes = tile_bytes(columns_at_most);
        if (threadIdx.x == 0)
#pragma unroll 1
            for (int slot = 0; slot < count; ++slot) mbarrier_init(full + slot, 1);
        block_sync();
        if (threadIdx.x != 0 || count == 0) return;
        wait();
#pragma unroll 1
        for (int slot = 0; slot < count; ++slot) {
            int bytes = 0;
            const void* tile = source(slot, bytes);
            if (!tile) continue;
            mbarrier_arrive_expect(full + slot, bytes);
            copy_bulk(slots + slot * slot_bytes, tile, bytes, full + slot);
        }
    }

    __device__ const char* tile(int slot, const void* global) const {
        if (slot >= count) return static_cast<const char*>(global);
        mbarrier_wait(full + slot, 0);
        return slots + slot * slot_bytes;
    }

    // The first byte behind the slots of a plan, 16-byte aligned.
    __device__ char* rest(int most) const { return slots + most * slot_bytes; }
};

// A warp's sums: rows lane / 4 and + 8 of the tile, for rows 2 (lane % 4) and + 1 of each 8.
template <int ROW_BLOCKS>
struct TileSums {
    float even[ROW_BLOCKS][4] = {};
    float odd[ROW_BLOCKS][4] = {};
};

__device__ __forceinline__ WeightStep load_step(const char* tile, int step) {
    const char* at = tile + step * STEP_BYTES + 16 * lane_id();
    return {load16(at), load16(at + STEP_BYTES / 2)};
}

template <class T, int ROW_BLOCKS>
__device__ __forceinline__ void add_products(
    TileSums<ROW_BLOCKS>& sums, const WeightStep& weights, const uint4& x, int row_block) {
    mma_16x8x16<T>(sums.even[row_block], {weights.low.x, weights.high.x, weights.low.y, weights.high.y}, {x.x, x.y});
    mma_16x8x16<T>(sums.odd[row_block], {weights.low.z, weights.high.z, weights.low.w, weights.high.w}, {x.z, x.w});
}
