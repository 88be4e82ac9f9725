// The last norm and the LM head over up to 64 rows: logits (R, V) = norm(hidden) . weight (V, H)^T, weights read once.
//
// The weights are operand A of wgmma, 64 outputs to a warpgroup and 128 to a tile, and the rows are B. A normed row is the
// nearest of the weights' type and what that leaves, which together have about twice its bits; both are multiplied. A block
// norms all rows for itself while the first weights are under way: a warp fills a ring of boxes of 128 outputs x 64 columns
// before it is known that the stream is complete.
//
// 1 block a processor, 288 threads: 8 warps that multiply and the one that copies. Shared memory: rows
// (2, H / 64, 8 ROW_BLOCKS) of 128 bytes, swizzled | STAGES boxes of 16 KB | barriers. H is a multiple of 64.
#pragma once

#include "element.cuh"
#include "grid.cuh"
#include "math.cuh"
#include "relaxed.cuh"
#include "tensor_copy.cuh"
#include "wgmma.cuh"

struct HeadParams {
    TensorMap weight;    // (V, H), boxes of 128 rows
    const float* hidden;  // (R, H), the stream
    const float* norm;    // (H,)
    float* normed;        // (R, H)
    float* logits;        // (R, V)
    int rows;
    int outputs;  // V, TILE at least
    int tiles;
    float eps;
    unsigned unused[4];
};
static_assert(sizeof(HeadParams) == 192, "mirrored in head.py");

constexpr int HEAD_WARPS = 8, HEAD_THREADS = 32 * (HEAD_WARPS + 1);
constexpr int TILE = 128;  // outputs
constexpr int BOX_BYTES = TILE * 128;
constexpr int BOXES = HIDDEN / 64;
constexpr int PIECES = HIDDEN / 8;                // of 8 columns
constexpr int LANE_PIECES = (PIECES + 31) / 32;
static_assert(HIDDEN % 64 == 0, "checked by head.py");

template <int ROW_BLOCKS, int STAGES_>
struct HeadShared {
    static constexpr int ROWS = 8 * ROW_BLOCKS, STAGES = STAGES_;
    static constexpr int ROW_BOX_BYTES = ROWS * 128, PART_BYTES = BOXES * ROW_BOX_BYTES;
    unsigned char* rows;
    unsigned char* ring;
    Mbarrier* full;
    Mbarrier* empty;

    __device__ HeadShared() {
        rows = shared_memory();
        ring = rows + 2 * PART_BYTES;
        full = reinterpret_cast<Mbarrier*>(ring + STAGES * BOX_BYTES);
        empty = full + STAGES;
    }
};

// The copying warp: boxes of all of the block's tiles, in order.
template <class S>
__device__ __forceinline__ void stream_weights(const HeadParams& params, const S& shared) {
    if (lane_id() != 0) return;
    int stage = 0;
    unsigned parity = 1;  // of a ring that is empty at first
    for (int tile = static_cast<int>(blockIdx.x); tile < params.tiles; tile += static_cast<int>(gridDim.x)) {
        const int row = min(TILE * tile, params.outputs - TILE);
        for (int box = 0; box < BOXES; ++box) {
            mbarrier_wait(shared.empty + stage, parity);
            mbarrier_arrive_expect(shared.full + stage, BOX_BYTES);
            copy_box(shared.ring + stage * BOX_BYTES, &params.weight, row, 64 * box, shared.full + stage);
            if (++stage == S::STAGES) {
                stage = 0;
                parity ^= 1;
            }
        }
    }
}

// Norm a row, by a warp, and leave it in two parts; rows past the last are zero.
template <class T, class S>
__device__ __forceinline__ void norm_row(const HeadParams& params, const S& shared, int row) {
    float values[LANE_PIECES][8] = {};
    float squares = 0;
    const unsigned* hidden = reinterpret_cast<const unsigned*>(params.hidden) + row * HIDDEN;
#pragma unroll
    for (int i = 0; i < LANE_PIECES; ++i) {
        const int piece = 32 * i + static_cast<int>(lane_id());
        if (row >= params.rows || piece >= PIECES) continue;
        const uint4 first = load_relaxed16(hidden + 8 * piece), second = load_relaxed16(hidden + 8 * piece + 4);
        const unsigned words[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
#pragma unroll
        for (int j = 0; j < 8; ++j) values[i][j] = __uint_as_float(words[j]);
    }
#pragma unroll
    for (int i = 0; i < LANE_PIECES; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) squares += values[i][j] * values[i][j];
    const float factor = rsqrt_fast(warp_sum(squares) * (1.0f / HIDDEN) + params.eps);
#pragma unroll
    for (int i = 0; i < LANE_PIECES; ++i) {
        const int piece = 32 * i + static_cast<int>(lane_id());
        if (piece >= PIECES) continue;
        unsigned high[4], low[4];
#pragma unroll
        for (int j = 0; j < 8; ++j) values[i][j] *= factor * params.norm[8 * piece + j];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            high[j] = pack2<T>(values[i][2 * j], values[i][2 * j + 1]);
            const float2 rounded = unpack2<T>(high[j]);
            low[j] = pack2<T>(values[i][2 * j] - rounded.x, values[i][2 * j + 1] - rounded.y);
        }
        unsigned char* target = shared.rows + piece / 8 * S::ROW_BOX_BYTES + wgmma_offset(row, piece % 8);
        store16(target, {high[0], high[1], high[2], high[3]});
        store16(target + S::PART_BYTES, {low[0], low[1], low[2], low[3]});
        if (row >= params.rows || row % static_cast<int>(gridDim.x) != static_cast<int>(blockIdx.x)) continue;
#pragma unroll
        for (int j = 0; j < 8; ++j) params.normed[row * HIDDEN + 8 * piece + j] = values[i][j];
    }
}

// A warpgroup's products of one tile. Boxes are given back one product later.
template <class T, int ROW_BLOCKS, class S>
__device__ __forceinline__ void multiply_boxes(float (&acc)[ROW_BLOCKS][4], const S& shared, int first_box) {
    for (int box = 0; box < BOXES; ++box) {
        const unsigned at = first_box + box, stage = at % S::STAGES;
        mbarrier_wait(shared.full + stage, at / S::STAGES & 1);
        const unsigned long long a = wgmma_descriptor(shared.ring + stage * BOX_BYTES + warp_id() / 4 * (BOX_BYTES / 2));
        const unsigned long long b = wgmma_descriptor(shared.rows + box * S::ROW_BOX_BYTES);
        wgmma_hold(acc);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            wgmma_rows<T>(acc, wgmma_advance(a, 32 * step), wgmma_advance(b, 32 * step), box > 0 || step > 0);
            wgmma_rows<T>(acc, wgmma_advance(a, 32 * step), wgmma_advance(b, 32 * step + S::PART_BYTES), true);
        }
        wgmma_commit();
        wgmma_hold(acc);
        if (box == 0) continue;
        wgmma_wait<1>();
        if (lane_id() == 0) mbarrier_arrive(shared.empty + (at - 1) % S::STAGES);
    }
    wgmma_wait<0>();
    wgmma_hold(acc);
    if (lane_id() == 0) mbarrier_arrive(shared.empty + (first_box + BOXES - 1) % S::STAGES);
}

template <int ROW_BLOCKS>
__device__ __forceinline__ void store_logits(const HeadParams& params, const float (&acc)[ROW_BLOCKS][4], int tile) {
    const int first = min(TILE * tile, params.outputs - TILE);
    const int output = first + static_cast<int>(warp_id() * 16 + lane_id() / 4);
#pragma unroll
    for (int block = 0; block < ROW_BLOCKS; ++block)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = 8 * block + static_cast<int>(lane_id()) % 4 * 2 + i % 2;
            if (row >= params.rows) continue;
            params.logits[static_cast<long long>(row) * params.outputs + output + i / 2 * 8] = acc[block][i];
        }
}

template <class T, int ROW_BLOCKS, int STAGES>
__device__ __forceinline__ void head(const HeadParams& params) {
    using S = HeadShared<ROW_BLOCKS, STAGES>;
    const S shared;
    grid_dependency_launch();
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            mbarrier_init(shared.full + stage, 1);
            mbarrier_init(shared.empty + stage, HEAD_WARPS);
        }
    }
    block_sync();
    if (warp_id() == HEAD_WARPS) {
        stream_weights(params, shared);
        return;
    }
    grid_dependency_wait();
#pragma unroll 2
    for (int row = static_cast<int>(warp_id()); row < S::ROWS; row += HEAD_WARPS) norm_row<T>(params, shared, row);
    bulk_copy_fence();
    named_sync(1, 32 * HEAD_WARPS);
    int first_box = 0;
    for (int tile = static_cast<int>(blockIdx.x); tile < params.tiles; tile += static_cast<int>(gridDim.x)) {
        float acc[ROW_BLOCKS][4];
        multiply_boxes<T>(acc, shared, first_box);
        store_logits(params, acc, tile);
        first_box += BOXES;
    }
}
