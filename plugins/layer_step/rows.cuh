// The ends of a step: the rows' embeddings and where their keys go, and the last norm. A block has one row.
#pragma once

#include "element.cuh"
#include "grid.cuh"
#include "math.cuh"
#include "relaxed.cuh"
#include "warp.cuh"

#include "params.cuh"

constexpr int ROW_THREADS = 256;

// The sum over the block, for all of its threads.
__device__ __forceinline__ float block_sum(float value) {
    float* parts = reinterpret_cast<float*>(shared_memory());
    value = warp_sum(value);
    if (lane_id() == 0) parts[warp_id()] = value;
    block_sync();
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < ROW_THREADS / 32; ++warp) sum += parts[warp];
    return sum;
}

// A token's row of one layer's cache, for the first head.
__device__ __forceinline__ long long cache_row(const RowsParams& params, int row) {
    int request = 0;
    while (row >= params.query_starts[request + 1]) ++request;
    const long long position = params.cache_positions[row];
    const long long block =
        params.block_tables[static_cast<long long>(request) * params.max_blocks + position / params.block_size];
    return block * params.num_kv_heads * params.block_size + position % params.block_size;
}

template <class T>
__device__ __forceinline__ void rows_begin(const RowsParams& params) {
    const int row = static_cast<int>(blockIdx.x), width = params.hidden_size;
    // In this order: what was written before the step is then there for all of its launches, before they wait.
    grid_dependency_wait();
    grid_dependency_launch();
    const T* embedding = static_cast<const T*>(params.embedding) + params.token_ids[row] * width;
    const T* norm = static_cast<const T*>(params.norm);
    float squares = 0;
    for (int at = threadIdx.x; at < width; at += ROW_THREADS) {
        const float value = to_float(embedding[at]);
        params.hidden[row * width + at] = value;
        squares += value * value;
    }
    squares = block_sum(squares);
    const float scale = SCALES_ROWS<T> ? row_scale(rsqrt_fast(squares / width + params.eps)) : 1;
    for (int at = threadIdx.x; at < width; at += ROW_THREADS)
        static_cast<T*>(params.scaled)[row * width + at] =
            from_float<T>(to_float(embedding[at]) * to_float(norm[at]) * scale);
    const long long angles = params.positions[row] * params.head_dim;
    for (int at = threadIdx.x; at < params.head_dim; at += ROW_THREADS) {
        static_cast<T*>(params.row_cos)[row * params.head_dim + at] = static_cast<const T*>(params.cos)[angles + at];
        static_cast<T*>(params.row_sin)[row * params.head_dim + at] = static_cast<const T*>(params.sin)[angles + at];
    }
    if (threadIdx.x != 0) return;
    params.squares[row] = squares;
    if (SCALES_ROWS<T>) params.scales[row] = scale;
    params.kv_rows[row] = cache_row(params, row);
}

// The normed row as the nearest of the weights' type and what that leaves: together they have about twice its bits.
template <class T>
__device__ __forceinline__ void rows_end(const RowsParams& params) {
    const int row = static_cast<int>(blockIdx.x), width = params.hidden_size;
    const unsigned* hidden = reinterpret_cast<const unsigned*>(params.hidden) + row * width;
    const float* norm = static_cast<const float*>(params.norm);
    grid_dependency_launch();
    grid_dependency_wait();
    float squares = 0;
    for (int at = threadIdx.x; at < width; at += ROW_THREADS) {
        const float value = __uint_as_float(load_relaxed(hidden + at));
        squares += value * value;
    }
    const float factor = rsqrt_fast(block_sum(squares) / width + params.eps);
    T* high_rows = static_cast<T*>(params.scaled);
    T* low_rows = high_rows + static_cast<long long>(params.rows) * width;
    for (int at = threadIdx.x; at < width; at += ROW_THREADS) {
        const float value = __uint_as_float(load_relaxed(hidden + at)) * factor * norm[at];
        const T high = from_float<T>(value);
        params.squares[row * width + at] = value;
        high_rows[row * width + at] = high;
        low_rows[row * width + at] = from_float<T>(value - to_float(high));
    }
}
