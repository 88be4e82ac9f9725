// Linear layers over a few rows: out (R, OUT) = activations (R, IN) . weight (OUT, IN)^T.
//
// A tile is 16 rows of the weight, operand A of mma.m16n8k16; the activations' rows are the 8 columns of operand B, so
// that each is computed alike whatever the others are and however many. The 8 warps share a tile's columns, 32 at a
// time, and one of them adds their sums in a fixed order. The order of k inside a product is free, so every thread takes
// 16 contiguous bytes of both operands, which are two mma steps, and neither needs ldmatrix.
//
// All linears share this code at run time rather than one copy each: a phase of a small layer is so short that fetching
// instructions would take longer than running them.
#pragma once

#include "exchange.cuh"
#include "math.cuh"
#include "mma.cuh"
#include "ring.cuh"

enum Phase { QKV, DENSE, GATE_UP, DOWN, HEAD };

__device__ inline int columns_of(int phase) {
    return phase == DENSE ? Q_SIZE : phase == DOWN ? INTERMEDIATE : HIDDEN;
}

// Tiles of gate_up are 8 rows of mlp.fc above the matching 8 of mlp.gate.
__device__ inline int tiles_of(int phase) {
    return phase == QKV       ? ceil_div(QKV_SIZE, TILE_ROWS)
           : phase == GATE_UP ? INTERMEDIATE / (TILE_ROWS / 2)
           : phase == HEAD    ? ceil_div(VOCAB, TILE_ROWS)
                              : ceil_div(HIDDEN, TILE_ROWS);
}

// Deals tiles to blocks round robin, going on where the phase before stopped, so that all stream the same bytes.
struct Deal {
    int grid = gridDim.x;
    int offset = 0;
    int remainders[3] = {tiles_of(QKV) % grid, tiles_of(DENSE) % grid, tiles_of(GATE_UP) % grid};

    // The first of this block's tiles of a phase; the others are one grid apart.
    __device__ int next(int phase) {
        const int first = first_item();
        offset += phase == QKV ? remainders[0] : phase == GATE_UP ? remainders[2] : remainders[1];
        if (offset >= grid) offset -= grid;
        return first;
    }

    __device__ int first_item() const {
        const int first = int(blockIdx.x) - offset;
        return first < 0 ? first + grid : first;
    }
};

constexpr int ACTIVATION_PITCH = row_pitch(PANEL);

// What the consumers of a block share.
struct Workspace {
    Ring ring;
    char* activations;  // MAX_ROWS x PANEL bfloat16, ACTIVATION_PITCH bytes apart
    float* squares;     // CONSUMER_WARPS x MAX_ROWS: parts of the sum of squares of each row; one of two, in turn
    float* partials;    // 2 x MAX_ROWS x CONSUMER_WARPS x TILE_ROWS: the warps' sums of a tile, in turn in two halves
    int num_rows;
};

// A thread's sums of a tile, in two parts: rows lane / 4 and + 8 of the tile, for rows 2 (lane % 4) and + 1 of the
// activations.
struct Accumulator {
    float even[ROW_BLOCKS][4] = {};
    float odd[ROW_BLOCKS][4] = {};
};

__device__ inline void multiply_stage(
    Accumulator& sums, const char* stage, const char* activations, int columns, int num_rows) {
    const int row = int(lane_id()) / 4, offset = 16 * (int(lane_id()) % 4);
    const char* weight = stage + row * STAGE_PITCH + offset;
    const char* operand = activations + row * ACTIVATION_PITCH + offset;
#pragma unroll 2
    for (int at = 64 * int(warp_id()); at < 2 * columns; at += 64 * CONSUMER_WARPS) {
        const uint4 low = load16(weight + at), high = load16(weight + 8 * STAGE_PITCH + at);
#pragma unroll
        for (int block = 0; block < ROW_BLOCKS; ++block) {
            uint4 x = make_uint4(0, 0, 0, 0);
            if (block * MMA_COLUMNS + row < num_rows)
                x = load16(operand + block * MMA_COLUMNS * ACTIVATION_PITCH + at);
            mma_16x8x16<bfloat16>(sums.even[block], {low.x, high.x, low.y, high.y}, {x.x, x.y});
            mma_16x8x16<bfloat16>(sums.odd[block], {low.z, high.z, low.w, high.w}, {x.z, x.w});
        }
    }
}

// Leave a warp's sums of a tile where they are found after the next barrier.
__device__ inline void store_partial(const Workspace& work, const Accumulator& sums, int turn) {
    const int tile_row = int(lane_id()) / 4, first_row = 2 * (int(lane_id()) % 4);
    float* partials = work.partials + ((turn % 2) * MAX_ROWS * CONSUMER_WARPS + int(warp_id())) * TILE_ROWS;
#pragma unroll
    for (int block = 0; block < ROW_BLOCKS; ++block)
#pragma unroll
        for (int index = 0; index < 4; ++index) {
            const int row = block * MMA_COLUMNS + first_row + index % 2;
            if (row < work.num_rows)
                partials[row * CONSUMER_WARPS * TILE_ROWS + tile_row + index / 2 * 8] =
                    sums.even[block][index] + sums.odd[block][index];
        }
}

__device__ inline float add_partials(const Workspace& work, int turn, int row, int tile_row) {
    const float* partials =
        work.partials + ((turn % 2) * MAX_ROWS + row) * CONSUMER_WARPS * TILE_ROWS + tile_row;
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < CONSUMER_WARPS; ++warp) sum += partials[warp * TILE_ROWS];
    return sum;
}
