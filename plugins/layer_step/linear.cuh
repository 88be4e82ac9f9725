// A linear layer over few rows, with all that comes before and after it: y = epilogue(x (R, K) . weight (M, K)^T).
//
// 16 outputs are the rows of operand A of mma.m16n8k16 and rows of x the columns of operand B, so a row is computed alike
// whatever the others are and however many. A tile is 16 outputs for each of `row_warps` warps; the other warps, and the
// blocks of the cluster, take other columns of the same tile. Their sums meet in shared memory, where each block of the
// cluster finishes its share of the tile's outputs, adding in a fixed order. Rows may be dealt to blocks too (blockIdx.y):
// reading weights again from L2 takes less time than reading more rows before the first product.
//
// A block has the same columns in all of its tiles, so its part of x is copied once, in bulk. Weights go through a ring of
// cp.async stages from where the thread that asked for 16 bytes takes them itself: no barrier, and any depth without
// registers. The order of k inside a product is free, so a thread's 16 contiguous bytes of both operands are two products
// and neither needs ldmatrix.
//
// The ring is filled before the kernel waits for the one before it, whose results are x, squares and the stream.
// 8 warps. Rows are aligned to 16 bytes. Shared memory: see SharedLayout.
#pragma once

#include "async_copy.cuh"
#include "cluster.cuh"
#include "element.cuh"
#include "grid.cuh"
#include "math.cuh"
#include "mma.cuh"
#include "relaxed.cuh"

#include "params.cuh"

constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;
constexpr int STEP = 32;           // columns of a warp's step
constexpr int SLOT_BYTES = 1024;   // a step's weights, 16 x STEP
constexpr int STAGES = RING_STAGES;
constexpr int SUM_PAIRS = 8 * WARPS;  // pairs of outputs that a block's warps have sums of

__device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__device__ __forceinline__ int log2(int power) { return 31 - __clz(power); }

// Two outputs that one thread has: rows i and i + 8 of 16. Both are -1 past the last.
struct Pair {
    int low, high;
};

// Outputs in the order of operand A's rows. Rotary halves and the two branches of the MLP come in pairs.
__device__ __forceinline__ Pair pair_of(const LayerLinearParams& params, int index) {
    const int block = index / 8, i = index % 8;
    if (params.mode == GATED) {
        const int half = params.outputs / 2, low = 8 * block + i;
        return low < half ? Pair{low, half + low} : Pair{-1, -1};
    }
    if (params.mode == QKV) {
        const int blocks = params.head_dim / 16, low = block / blocks * params.head_dim + block % blocks * 8 + i;
        return low < params.outputs ? Pair{low, low + params.head_dim / 2} : Pair{-1, -1};
    }
    const int low = 16 * block + i;
    return {low < params.outputs ? low : -1, low + 8 < params.outputs ? low + 8 : -1};
}

// How a block's part of a layer is cut. Sizes of warps and blocks are powers of two.
struct Cut {
    int cluster, rank;
    int column_warps;
    int row_warp, column_warp;  // this warp's
    int first_step, num_steps;  // the block's columns
    int pitch;                  // bytes between rows of x in shared memory: 64 modulo 128, so that no banks collide
    int pair_shift, pairs;      // of a tile, that this block finishes
    int first_row, rows;        // of x

    __device__ Cut(const LayerLinearParams& params, int most_rows) {
        first_row = static_cast<int>(blockIdx.y) * most_rows;
        rows = min(most_rows, params.rows - first_row);
        cluster = static_cast<int>(cluster_size());
        rank = static_cast<int>(cluster_rank());
        const int row_shift = log2(params.row_warps), cluster_shift = log2(cluster);
        column_warps = WARPS >> row_shift;
        row_warp = static_cast<int>(warp_id()) & (params.row_warps - 1);
        column_warp = static_cast<int>(warp_id()) >> row_shift;
        const int steps = params.columns / STEP;
        first_step = (rank * steps) >> cluster_shift;
        num_steps = (((rank + 1) * steps) >> cluster_shift) - first_step;
        pitch = ceil_div(2 * STEP * ((steps + cluster - 1) >> cluster_shift), 128) * 128 + 64;
        pair_shift = 3 + row_shift - cluster_shift;
        pairs = 1 << pair_shift;
    }
};

// x | sums | staged | factors | barriers | heads | ring, each aligned to 128 bytes. layout.py has the same sizes.
template <int ROW_BLOCKS>
struct SharedLayout {
    static constexpr int ROWS = 8 * ROW_BLOCKS;
    static constexpr int SUM_PITCH = 2 * ROWS + 8;  // floats of a pair: the rows' low outputs, then the high ones
    unsigned char* x;
    float* sums;     // (cluster x column_warps, pairs, SUM_PITCH), written by the cluster's blocks
    float* staged;   // (cluster, column_warps, pairs, SUM_PITCH): what goes to each; `sums` where there is one block
    float* factors;  // (ROWS,), 1 / rms
    Mbarrier* x_is_there;
    Mbarrier* handed_over;  // a tile's sums, by all blocks of the cluster
    Mbarrier* squared;      // a head's squares, likewise
    float2* heads;          // (cluster, ROWS): the squares of each block's share of a head, beside nothing
    unsigned char* ring;

    __device__ SharedLayout(const LayerLinearParams& params, const Cut& cut) {
        x = shared_memory();
        sums = reinterpret_cast<float*>(x + ceil_div(params.parts * ROWS * cut.pitch, 128) * 128);
        staged = cut.cluster > 1 ? sums + SUM_PAIRS * SUM_PITCH : sums;
        factors = staged + SUM_PAIRS * SUM_PITCH;
        x_is_there = reinterpret_cast<Mbarrier*>(factors + (ROWS < 32 ? 32 : ROWS));
        handed_over = x_is_there + 1;
        squared = x_is_there + 2;
        heads = reinterpret_cast<float2*>(reinterpret_cast<unsigned char*>(x_is_there) + 128);
        ring = reinterpret_cast<unsigned char*>(heads + (params.q_norm != nullptr ? cut.cluster * ROWS : 0));
    }
};

// This thread's copies of weights: its 16 bytes of two rows of each step, in the order in which they are used.
template <class T>
struct WeightStream {
    const LayerLinearParams& params;
    const Cut& cut;
    unsigned char* slots;  // this thread's
    const T* low;
    const T* high;
    int tile, step, clusters;

    __device__ WeightStream(const LayerLinearParams& params, const Cut& cut, unsigned char* ring, int first_tile, int clusters)
        : params(params), cut(cut), slots(ring + warp_id() * SLOT_BYTES + lane_id() * 16), tile(first_tile),
          clusters(clusters) {
        begin_tile();
    }

    __device__ void begin_tile() {
        step = cut.column_warp;
        if (tile >= params.tiles) return;
        const Pair rows = pair_of(params, (tile * params.row_warps + cut.row_warp) * 8 + lane_id() / 4);
        const T* first = static_cast<const T*>(params.weight) + cut.first_step * STEP + lane_id() % 4 * 8;
        low = first + static_cast<long long>(rows.low < 0 ? 0 : rows.low) * params.columns;
        high = first + static_cast<long long>(rows.high < 0 ? 0 : rows.high) * params.columns;
    }

    // Ask for the next step, if there is one, and close the group in any case.
    __device__ void ask(int stage) {
        if (tile < params.tiles && step < cut.num_steps) {
            unsigned char* slot = slots + stage * (WARPS * SLOT_BYTES);
            copy_async16(slot, low + step * STEP);
            copy_async16(slot + SLOT_BYTES / 2, high + step * STEP);
            step += cut.column_warps;
            if (step >= cut.num_steps) {
                tile += clusters;
                begin_tile();
            }
        }
        copy_async_commit();
    }
};

// Start copying the block's part of x, by the first warp: a lane has whole rows.
template <int ROW_BLOCKS>
__device__ __forceinline__ void copy_x(const LayerLinearParams& params, const Cut& cut, const SharedLayout<ROW_BLOCKS>& shared) {
    const int rows = params.parts * cut.rows, lane = static_cast<int>(lane_id());
    const unsigned bytes = cut.num_steps * (2 * STEP);
    if (lane == 0) mbarrier_arrive_expect(shared.x_is_there, rows * bytes);
    warp_sync();
    const char* first = static_cast<const char*>(params.x) + cut.first_step * (2 * STEP);
#pragma unroll 1
    for (int row = lane; row < rows; row += 32) {
        const int part = row >= cut.rows ? 1 : 0, own = row - part * cut.rows;
        copy_bulk(shared.x + (part * 8 * ROW_BLOCKS + own) * cut.pitch,
                  first + (part * params.rows + cut.first_row + own) * (2ll * params.columns), bytes, shared.x_is_there);
    }
}

// 1 / rms of every row, and without what x was multiplied with; RESIDUAL: what its row is to be multiplied with. 8 lanes
// to a row, which ask for 64 parts of its squares at once.
template <class T, class Rows = Cut>
struct Factors {
    static constexpr int BATCH = 8;
    const LayerLinearParams& params;
    const Rows& cut;
    float inverse_width;
    unsigned parts[BATCH];

    __device__ Factors(const LayerLinearParams& params, const Rows& cut) : params(params), cut(cut) {
        inverse_width = 1.0f / (params.mode == RESIDUAL ? params.outputs : params.columns);
    }

    __device__ void load(int row, int start) {
        const unsigned* squares = reinterpret_cast<const unsigned*>(params.squares);
        squares += static_cast<long long>(cut.first_row + row) * params.num_squares + start;
        const int left = row < cut.rows ? params.num_squares - start : 0;
#pragma unroll
        for (int i = 0; i < BATCH; ++i) parts[i] = 8 * i < left ? load_relaxed(squares + 8 * i) : 0;
    }

    // The first rows' first parts, so that they are under way with all else.
    __device__ void begin() { load(static_cast<int>(threadIdx.x) / 8, static_cast<int>(threadIdx.x) % 8); }

    __device__ void finish(float* factors) {
        const int lane = static_cast<int>(threadIdx.x) % 8;
#pragma unroll 1
        for (int first = 0; first < cut.rows; first += THREADS / 8) {
            const int row = first + static_cast<int>(threadIdx.x) / 8;
            float sum = 0;
#pragma unroll 1
            for (int start = lane; start < params.num_squares; start += 8 * BATCH) {
                if (first > 0 || start != lane) load(row, start);
#pragma unroll
                for (int i = 0; i < BATCH; ++i) sum += __uint_as_float(parts[i]);
            }
#pragma unroll
            for (int mask = 4; mask > 0; mask /= 2) sum += shfl_xor(sum, mask);
            if (lane == 0 && row < cut.rows) factors[row] = factor_of(row, sum);
        }
    }

    __device__ float factor_of(int row, float squares) const {
        float factor = rsqrt_fast(squares * inverse_width + params.eps);
        if constexpr (SCALES_ROWS<T>) {
            if (params.mode == RESIDUAL) {
                factor = row_scale(factor);
                if (blockIdx.x == 0) params.scales_out[cut.first_row + row] = factor;
            } else {
                const unsigned* scales = reinterpret_cast<const unsigned*>(params.scales) + cut.first_row;
                factor /= __uint_as_float(load_relaxed(scales + row));
            }
        }
        return factor;
    }
};

// A warp's products of one tile: 16 outputs, its columns, all rows.
template <class T, int ROW_BLOCKS>
__device__ __forceinline__ void multiply_tile(
    float (&sums)[ROW_BLOCKS][4], const LayerLinearParams& params, const Cut& cut, const unsigned char* x,
    WeightStream<T>& stream, int& stage) {
    const unsigned char* rows = x + lane_id() / 4 * cut.pitch + lane_id() % 4 * 16;
#pragma unroll 1
    for (int step = cut.column_warp; step < cut.num_steps; step += cut.column_warps) {
        copy_async_wait<STAGES - 1>();
        const unsigned char* slot = stream.slots + stage * (WARPS * SLOT_BYTES);
        const uint4 low = load16(slot), high = load16(slot + SLOT_BYTES / 2);
#pragma unroll 1
        for (int part = 0; part < params.parts; ++part) {
            const unsigned char* operand = rows + part * (8 * ROW_BLOCKS) * cut.pitch + step * (2 * STEP);
#pragma unroll
            for (int block = 0; block < ROW_BLOCKS; ++block) {
                const uint4 b = load16(operand + block * 8 * cut.pitch);
                mma_16x8x16<T>(sums[block], {low.x, high.x, low.y, high.y}, {b.x, b.y});
                mma_16x8x16<T>(sums[block], {low.z, high.z, low.w, high.w}, {b.z, b.w});
            }
        }
        stream.ask(stage);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
}

// Leave a warp's sums where they go from: for each block of the cluster those of the pairs that it finishes, in slots of a
// pair's low outputs and its high ones.
template <int ROW_BLOCKS>
__device__ __forceinline__ void stage_sums(
    const float (&sums)[ROW_BLOCKS][4], const Cut& cut, const SharedLayout<ROW_BLOCKS>& shared) {
    constexpr int PITCH = SharedLayout<ROW_BLOCKS>::SUM_PITCH, ROWS = 8 * ROW_BLOCKS;
    const int index = cut.row_warp * 8 + static_cast<int>(lane_id()) / 4;  // of the tile's pairs
    const int owner = index >> cut.pair_shift, local = index & (cut.pairs - 1);
    const int slot = ((owner * cut.column_warps + cut.column_warp) << cut.pair_shift) + local;
    float* target = shared.staged + slot * PITCH + lane_id() % 4 * 2;
#pragma unroll
    for (int block = 0; block < ROW_BLOCKS; ++block)
#pragma unroll
        for (int half = 0; half < 2; ++half)
            *reinterpret_cast<float2*>(target + half * ROWS + 8 * block) =
                make_float2(sums[block][2 * half], sums[block][2 * half + 1]);
}

// Exchange the staged sums with the other blocks of the cluster.
template <int ROW_BLOCKS>
__device__ __forceinline__ void exchange_sums(const Cut& cut, const SharedLayout<ROW_BLOCKS>& shared, unsigned parity) {
    const int share = (cut.column_warps << cut.pair_shift) * SharedLayout<ROW_BLOCKS>::SUM_PITCH;  // floats
    const unsigned bytes = share * sizeof(float);
    bulk_copy_fence();
    block_sync();
    if (threadIdx.x == 0) mbarrier_arrive_expect(shared.handed_over, cut.cluster * bytes);
    if (static_cast<int>(threadIdx.x) < cut.cluster) {
        const unsigned to = threadIdx.x;
        copy_peer_bulk(peer_pointer(shared.sums + cut.rank * share, to), shared.staged + to * share, bytes,
                       peer_pointer(shared.handed_over, to));
    }
    mbarrier_wait(shared.handed_over, parity);
}
