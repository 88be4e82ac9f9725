// Linear layers over a few rows: out (R, OUT) = activations (R, IN) . weight (OUT, IN)^T.
//
// A tile is 16 rows of the weight, operand A of mma.m16n8k16; the activations' rows are the 8 columns of operand B, so
// that each is computed alike whatever the others are and however many. The 8 warps share a tile's columns, 32 at a
// time, and one of them adds their sums in a fixed order. The order of k inside a product is free, so every thread takes
// 16 contiguous bytes of both operands, which are two mma steps, and neither needs ldmatrix.
#pragma once

#include "exchange.cuh"
#include "math.cuh"
#include "mma.cuh"
#include "ring.cuh"

template <int COLUMNS_, int TILES_>
struct Linear {
  static constexpr int COLUMNS = COLUMNS_;
  static constexpr int TILES = TILES_;
  static constexpr int PANELS = ceil_div(COLUMNS, PANEL);
  // Where activations come in panels, a block's tiles share each panel; 100 blocks are the fewest we plan for.
  static constexpr int HELD = PANELS == 1 ? 1 : ceil_div(TILES, 100) < 4 ? ceil_div(TILES, 100) : 4;
};

using QkvLinear = Linear<HIDDEN, ceil_div(QKV_SIZE, TILE_ROWS)>;
using DenseLinear = Linear<Q_SIZE, ceil_div(HIDDEN, TILE_ROWS)>;
using GateUpLinear = Linear<HIDDEN, INTERMEDIATE / (TILE_ROWS / 2)>;  // 8 rows of mlp.fc above their 8 of mlp.gate
using DownLinear = Linear<INTERMEDIATE, ceil_div(HIDDEN, TILE_ROWS)>;
using HeadLinear = Linear<HIDDEN, ceil_div(VOCAB, TILE_ROWS)>;

constexpr int ACTIVATION_PITCH = row_pitch(PANEL);

// Deals tiles to blocks round robin, going on where the operation before stopped, so that all stream the same bytes.
struct Deal {
  int offset = 0;

  template <class Op>
  __device__ int first_tile() {
    const int first = (int(blockIdx.x) - offset + int(gridDim.x)) % int(gridDim.x);
    offset = (offset + Op::TILES) % int(gridDim.x);
    return first;
  }
};

// Visit the stages of a block's tiles in the order that both sides of the ring keep.
template <class Op, class RowOf>
__device__ inline void stream_weights(const Ring& ring, RingCursor& cursor, int first_tile, RowOf row_of) {
  const int grid = gridDim.x;
  for (int group = first_tile; group < Op::TILES; group += Op::HELD * grid)
    for (int panel = 0; panel < Op::COLUMNS; panel += PANEL)
      for (int tile = group; tile < Op::TILES && tile < group + Op::HELD * grid; tile += grid)
        for (int column = panel; column < Op::COLUMNS && column < panel + PANEL; column += CHUNK)
          fill_stage(ring, cursor, row_of(tile) + column, min(CHUNK, Op::COLUMNS - column));
}

// What the consumers of a block share.
struct Workspace {
  Ring ring;
  char* activations;  // MAX_ROWS x PANEL bfloat16, ACTIVATION_PITCH bytes apart
  float* squares;     // CONSUMER_WARPS x MAX_ROWS: parts of the sum of squares of each row; one of two, in turn
  float4* partials;   // 2 x CONSUMER_WARPS x ROW_BLOCKS x 32: the warps' sums of a tile, in turn in two halves
  int num_rows;
};

// A thread's part of a tile: rows lane / 4 and + 8 of the tile, for rows 2 (lane % 4) and + 1 of the activations.
struct TileSums {
  float value[ROW_BLOCKS][4];

  __device__ static int tile_row(int index) { return lane_id() / 4 + (index / 2) * 8; }
  __device__ static int row(int block, int index) { return block * MMA_COLUMNS + 2 * (lane_id() % 4) + index % 2; }
};

struct Accumulator {
  float even[ROW_BLOCKS][4] = {};
  float odd[ROW_BLOCKS][4] = {};
};

__device__ inline void multiply_stage(
    Accumulator& sums, const char* stage, const char* activations, int columns, int num_rows) {
  const int row = lane_id() / 4, offset = 16 * (lane_id() % 4);
  const char* weight = stage + row * STAGE_PITCH + offset;
  const char* operand = activations + row * ACTIVATION_PITCH + offset;
  for (int at = 64 * warp_id(); at < 2 * columns; at += 64 * CONSUMER_WARPS) {
    const uint4 low = load16(weight + at), high = load16(weight + 8 * STAGE_PITCH + at);
#pragma unroll
    for (int block = 0; block < ROW_BLOCKS; ++block) {
      uint4 x = make_uint4(0, 0, 0, 0);
      if (block * MMA_COLUMNS + row < num_rows) x = load16(operand + block * MMA_COLUMNS * ACTIVATION_PITCH + at);
      mma_16x8x16<bfloat16>(sums.even[block], {low.x, high.x, low.y, high.y}, {x.x, x.y});
      mma_16x8x16<bfloat16>(sums.odd[block], {low.z, high.z, low.w, high.w}, {x.z, x.w});
    }
  }
}

// Add the warps' sums of a tile; only the warp that `is_reducer` gets them.
__device__ inline TileSums reduce_tile(const Workspace& work, const Accumulator& sums, int turn, bool is_reducer) {
  float4* partials = work.partials + (turn % 2) * CONSUMER_WARPS * ROW_BLOCKS * 32;
#pragma unroll
  for (int block = 0; block < ROW_BLOCKS; ++block) {
    const float* even = sums.even[block];
    const float* odd = sums.odd[block];
    partials[(warp_id() * ROW_BLOCKS + block) * 32 + lane_id()] =
        make_float4(even[0] + odd[0], even[1] + odd[1], even[2] + odd[2], even[3] + odd[3]);
  }
  named_sync(CONSUMER_BARRIER, CONSUMERS);
  TileSums total = {};
  if (!is_reducer) return total;
#pragma unroll
  for (int block = 0; block < ROW_BLOCKS; ++block)
#pragma unroll
    for (int warp = 0; warp < CONSUMER_WARPS; ++warp) {
      const float4 part = partials[(warp * ROW_BLOCKS + block) * 32 + lane_id()];
      total.value[block][0] += part.x;
      total.value[block][1] += part.y;
      total.value[block][2] += part.z;
      total.value[block][3] += part.w;
    }
  return total;
}

// All consumers. That all have passed the barrier of a tile's reduction says that the activations may be overwritten.
// `load_panel(first column)` fills the activations; `Epilogue` has prepare(tile), called before the
// tile's products so that what it reads is on its way, and finish(tile, sums), both by one warp.
template <class Op, class Epilogue, class LoadPanel>
__device__ inline void run_linear(
    const Workspace& work, RingCursor& cursor, int& turn, int first_tile, const Epilogue& epilogue,
    LoadPanel load_panel) {
  const int grid = gridDim.x;
  for (int group = first_tile; group < Op::TILES; group += Op::HELD * grid) {
    Accumulator sums[Op::HELD];
    Epilogue epilogues[Op::HELD];
#pragma unroll
    for (int held = 0; held < Op::HELD; ++held) {
      const int tile = group + held * grid;
      epilogues[held] = epilogue;
      if (tile < Op::TILES && warp_id() == (turn + held) % CONSUMER_WARPS) epilogues[held].prepare(tile);
    }
#pragma unroll 1
    for (int panel = 0; panel < Op::COLUMNS; panel += PANEL) {
      if (Op::PANELS > 1 || group == first_tile) {
        if (panel > 0) named_sync(CONSUMER_BARRIER, CONSUMERS);
        load_panel(panel);
        named_sync(CONSUMER_BARRIER, CONSUMERS);
      }
#pragma unroll
      for (int held = 0; held < Op::HELD; ++held) {
        if (group + held * grid >= Op::TILES) continue;
#pragma unroll 1
        for (int column = panel; column < Op::COLUMNS && column < panel + PANEL; column += CHUNK) {
          const char* stage = await_stage(work.ring, cursor);
          multiply_stage(sums[held], stage, work.activations + (column - panel) * 2,
                         min(CHUNK, Op::COLUMNS - column), work.num_rows);
          release_stage(work.ring, cursor);
        }
      }
    }
#pragma unroll
    for (int held = 0; held < Op::HELD; ++held) {
      const int tile = group + held * grid;
      if (tile >= Op::TILES) continue;
      const bool is_reducer = warp_id() == turn % CONSUMER_WARPS;
      const TileSums total = reduce_tile(work, sums[held], turn, is_reducer);
      if (is_reducer) epilogues[held].finish(tile, total);
      ++turn;
    }
  }
}
