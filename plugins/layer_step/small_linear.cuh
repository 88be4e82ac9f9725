// A linear layer of a small model over few rows, with all that comes before and after it: as linear.cuh, with all sizes
// known when it is compiled, so that what follows the wait for the launch before is a few loads and products.
//
// A block has `TILES` tiles of 16 outputs and 8 `ROW_BLOCKS` rows (blockIdx.y); its warps split the columns. A warp's
// weights and rows go to registers, where their products need them: weights before the wait, rows after it, in one round
// trip together with all else that the launch before wrote. The order of k inside a product is free, so a thread's 16
// contiguous bytes of both operands are two products. The warps' sums meet in shared memory and are added in their order.
//
// Shared memory: (WARPS, TILES x ROW_BLOCKS, 2, 8, 8) floats of sums, (8 ROW_BLOCKS) factors.
#pragma once

#include "element.cuh"
#include "grid.cuh"
#include "math.cuh"
#include "mma.cuh"
#include "relaxed.cuh"

#include "small_item.cuh"
#include "trace.cuh"

// 1 / rms of the block's rows, and without what x was multiplied with; RESIDUAL: what its row is to be multiplied with. By
// a warp of its own, beside the products: 4 lanes to a row.
template <class S>
struct SmallFactors {
    unsigned parts[S::ROW_BLOCKS][S::SQUARES];
    unsigned scales[S::ROW_BLOCKS];
    const unsigned* squares[S::ROW_BLOCKS];  // this lane's first
    int left;                                // parts of a row from there on

    __device__ static int own_row(int block) { return 8 * block + static_cast<int>(lane_id()) / 4; }
    __device__ static int memory_row(const LayerLinearParams& params, int block) {
        return min(static_cast<int>(blockIdx.y) * S::ROWS + own_row(block), params.rows - 1);
    }

    __device__ unsigned long long find(const LayerLinearParams& params) {
        unsigned long long addresses = 0;
        left = params.num_squares - static_cast<int>(lane_id()) % 4;
#pragma unroll
        for (int block = 0; block < S::ROW_BLOCKS; ++block) {
            squares[block] = reinterpret_cast<const unsigned*>(params.squares) +
                             memory_row(params, block) * params.num_squares + lane_id() % 4;
            addresses |= address(squares[block]);
        }
        return addresses;
    }

    __device__ void load(const LayerLinearParams& params) {
#pragma unroll
        for (int block = 0; block < S::ROW_BLOCKS; ++block) {
#pragma unroll
            for (int part = 0; part < S::SQUARES; ++part)
                parts[block][part] = 4 * part < left ? load_relaxed(squares[block] + 4 * part) : 0;
            if constexpr (SCALES_ROWS<typename S::T> && S::MODE != RESIDUAL)
                scales[block] = load_relaxed(reinterpret_cast<const unsigned*>(params.scales) + memory_row(params, block));
        }
    }

    __device__ void finish(const LayerLinearParams& params, float* factors) const {
#pragma unroll
        for (int block = 0; block < S::ROW_BLOCKS; ++block) {
            float sum = 0;
#pragma unroll
            for (int part = 0; part < S::SQUARES; ++part) sum += __uint_as_float(parts[block][part]);
            sum += shfl_xor(sum, 1);
            sum += shfl_xor(sum, 2);
            float factor = rsqrt_fast(sum * (1.0f / HIDDEN) + params.eps);
            if (lane_id() % 4 != 0) continue;
            if constexpr (SCALES_ROWS<typename S::T> && S::MODE == RESIDUAL) {
                factor = row_scale(factor);
                const int at_row = static_cast<int>(blockIdx.y) * S::ROWS + own_row(block);
                if (blockIdx.x == 0 && at_row < params.rows) params.scales_out[at_row] = factor;
            } else if constexpr (SCALES_ROWS<typename S::T>) {
                factor /= __uint_as_float(scales[block]);
            }
            factors[own_row(block)] = factor;
        }
    }
};

// A warp's weights, and its rows of x: its columns, in registers.
template <class S>
struct SmallOperands {
    using T = typename S::T;
    uint4 weights[S::TILES][S::STEPS][2];
    uint4 rows[S::ROW_BLOCKS][S::STEPS];
    const T* x[S::ROW_BLOCKS];

    __device__ static int column() { return static_cast<int>(warp_id()) * S::STEPS * 32 + lane_id() % 4 * 8; }

    __device__ void load_weights(const LayerLinearParams& params) {
#pragma unroll
        for (int m = 0; m < S::TILES; ++m) {
            const int tile = min(static_cast<int>(blockIdx.x) * S::TILES + m, S::ALL_TILES - 1);
            const int low = S::low_output(tile, lane_id() / 4);
            const T* weight = static_cast<const T*>(params.weight) + low * S::COLUMNS + column();
#pragma unroll
            for (int step = 0; step < S::STEPS; ++step) {
                weights[m][step][0] = load_stream16(weight + step * 32);
                weights[m][step][1] = load_stream16(weight + S::TO_HIGH * S::COLUMNS + step * 32);
            }
        }
    }

    __device__ unsigned long long find_rows(const LayerLinearParams& params) {
        unsigned long long addresses = 0;
#pragma unroll
        for (int n = 0; n < S::ROW_BLOCKS; ++n) {
            const int row = static_cast<int>(blockIdx.y) * S::ROWS + 8 * n + lane_id() / 4;
            x[n] = static_cast<const T*>(params.x) + min(row, params.rows - 1) * S::COLUMNS + column();
            addresses |= address(x[n]);
        }
        return addresses;
    }

    __device__ void load_rows() {
#pragma unroll
        for (int n = 0; n < S::ROW_BLOCKS; ++n)
#pragma unroll
            for (int step = 0; step < S::STEPS; ++step)
                rows[n][step] = load_relaxed16(reinterpret_cast<const unsigned*>(x[n] + step * 32));
    }

    __device__ void multiply(float* shared) const {
        float acc[S::TILES][S::ROW_BLOCKS][S::CHAINS][4] = {};
#pragma unroll
        for (int step = 0; step < S::STEPS; ++step)
#pragma unroll
            for (int m = 0; m < S::TILES; ++m)
#pragma unroll
                for (int n = 0; n < S::ROW_BLOCKS; ++n) {
                    const uint4 low = weights[m][step][0], high = weights[m][step][1], b = rows[n][step];
                    mma_16x8x16<T>(acc[m][n][0], {low.x, high.x, low.y, high.y}, {b.x, b.y});
                    mma_16x8x16<T>(acc[m][n][S::CHAINS - 1], {low.z, high.z, low.w, high.w}, {b.z, b.w});
                }
        float* target = shared + warp_id() * S::BLOCKS * 2 * S::HALF + lane_id() / 4;
        const int slots[2] = {S::slot(lane_id() % 4 * 2), S::slot(lane_id() % 4 * 2 + 1)};
#pragma unroll
        for (int m = 0; m < S::TILES; ++m)
#pragma unroll
            for (int n = 0; n < S::ROW_BLOCKS; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float sum = S::CHAINS == 1 ? acc[m][n][0][i] : acc[m][n][0][i] + acc[m][n][1][i];
                    target[((m * S::ROW_BLOCKS + n) * 2 + i / 2) * S::HALF + slots[i % 2]] = sum;
                }
    }
};

// A block's last step: the sums of all warps, and what they become.
template <class S>
__device__ __forceinline__ void finish_item(const SmallItem<S>& item, const float* sums, const float* factors) {
    float low = 0, high = 0;
#pragma unroll
    for (int warp = 0; warp < S::WARPS; ++warp) {
        low += sums[warp * S::BLOCKS * 2 * S::HALF + item.sums];
        high += sums[warp * S::BLOCKS * 2 * S::HALF + item.sums + S::HALF];
    }
    const float factor = S::HAS_FACTORS ? factors[item.row] : 1;
    if constexpr (S::MODE == RESIDUAL) {
        float squares = item.is_real ? item.finish(low, high, factor) : 0;
#pragma unroll
        for (int mask = 4; mask > 0; mask /= 2) squares += shfl_xor(squares, mask);
        if (item.is_real && threadIdx.x % 8 == 0) *item.squares = squares;
    } else {
        if (item.is_real) item.finish(low * factor, high * factor, 1);
    }
}

template <class S>
__device__ __forceinline__ void small_linear(const LayerLinearParams& params) {
    float* sums = reinterpret_cast<float*>(shared_memory());
    float* factors = sums + S::WARPS * S::BLOCKS * 2 * S::HALF;
    const bool multiplies = warp_id() < S::WARPS;
    trace(params, 0);
    grid_dependency_launch();
    SmallOperands<S> operands;
    SmallFactors<S> squares;
    unsigned long long addresses = 0;
    if (multiplies) {
        operands.load_weights(params);
        addresses = operands.find_rows(params);
    } else {
        addresses = squares.find(params);
    }
    SmallItem<S> items[S::ITEMS];
#pragma unroll
    for (int i = 0; i < S::ITEMS; ++i) {
        items[i].describe(params, i * S::THREADS + static_cast<int>(threadIdx.x));
        addresses |= items[i].addresses();
    }
    trace(params, 1);
    grid_dependency_wait_after(static_cast<int>(addresses >> 32));
    trace(params, 2);
    if (multiplies) {
        operands.load_rows();
#pragma unroll
        for (int i = 0; i < S::ITEMS; ++i) items[i].load();
        trace(params, 3);
        operands.multiply(sums);
    } else {
        squares.load(params);
#pragma unroll
        for (int i = 0; i < S::ITEMS; ++i) items[i].load();
        squares.finish(params, factors);
    }
    trace(params, 4);
    block_sync();
    trace(params, 5);
#pragma unroll
    for (int i = 0; i < S::ITEMS; ++i) {
        if (i * S::THREADS + static_cast<int>(threadIdx.x) >= 64 * S::BLOCKS) break;  // whole warps
        finish_item(items[i], sums, factors);
    }
    trace(params, 7);
}
