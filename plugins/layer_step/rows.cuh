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

// 8 elements of 16 bits.
template <class T>
__device__ __forceinline__ void unpack_word(uint4 word, float (&values)[8]) {
    const unsigned pairs[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack2<T>(pairs[i]);
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
    }
}

// The row's angles, by a warp.
template <class T>
__device__ __forceinline__ void gather_angles(const RowsParams& params, int row) {
    const long long from = params.positions[row] * params.head_dim;
    for (int at = static_cast<int>(lane_id()); at < params.head_dim; at += 32) {
        static_cast<T*>(params.row_cos)[row * params.head_dim + at] = static_cast<const T*>(params.cos)[from + at];
        static_cast<T*>(params.row_sin)[row * params.head_dim + at] = static_cast<const T*>(params.sin)[from + at];
    }
}

// Where a row's words come from is read by different warps, so that no chain of loads waits for another.
template <class T>
__device__ __forceinline__ void rows_begin(const RowsParams& params) {
    constexpr int WORD = 16 / sizeof(T);
    const int row = static_cast<int>(blockIdx.x), width = params.hidden_size;
    // In this order: what was written before the step is then there for all of its launches, before they wait.
    grid_dependency_wait();
    grid_dependency_launch();
    if (threadIdx.x == ROW_THREADS - 1) params.kv_rows[row] = cache_row(params, row);
    if (warp_id() == ROW_THREADS / 32 - 2) gather_angles<T>(params, row);
    const T* embedding = static_cast<const T*>(params.embedding) + params.token_ids[row] * width;
    float squares = 0;
    for (int at = WORD * threadIdx.x; at < width; at += WORD * ROW_THREADS) {
        float values[WORD];
        unpack_word<T>(load16(embedding + at), values);
        float4* hidden = reinterpret_cast<float4*>(params.hidden + row * width + at);
        hidden[0] = make_float4(values[0], values[1], values[2], values[3]);
        hidden[1] = make_float4(values[4], values[5], values[6], values[7]);
#pragma unroll
        for (int i = 0; i < WORD; ++i) squares += values[i] * values[i];
    }
    squares = block_sum(squares);
    const float scale = SCALES_ROWS<T> ? row_scale(rsqrt_fast(squares / width + params.eps)) : 1;
    for (int at = WORD * threadIdx.x; at < width; at += WORD * ROW_THREADS) {
        float values[WORD], norm[WORD];
        unpack_word<T>(load16(embedding + at), values);
        unpack_word<T>(load16(static_cast<const T*>(params.norm) + at), norm);
        unsigned scaled[WORD / 2];
#pragma unroll
        for (int i = 0; i < WORD / 2; ++i)
            scaled[i] = pack2<T>(values[2 * i] * norm[2 * i] * scale, values[2 * i + 1] * norm[2 * i + 1] * scale);
        store16(static_cast<T*>(params.scaled) + row * width + at, {scaled[0], scaled[1], scaled[2], scaled[3]});
    }
    if (threadIdx.x != 0) return;
    params.squares[row] = squares;
    if (SCALES_ROWS<T>) params.scales[row] = scale;
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
