// Per-head RMSNorm where the model has one, rotary positions, and K and V into the cache, each rounded once.
//
// A group of lanes has one head of one token: a lane takes 8 elements of the head's first half and their partners in the
// second. The group is the next power of two of D / 16 lanes, so that its norm is a butterfly; for D = 96 two lanes idle.
// Groups go through (token, head) in order. Rows are aligned to 16 bytes. Sums and rotation are float32.
#pragma once

#include "element.cuh"
#include "grid.cuh"
#include "math.cuh"
#include "cuda/vector.cuh"

struct RopeKvWriteParams {
    const void* qkv;           // (T, (N + 2 N_kv) D)
    const void* cos;           // (T, D)
    const void* sin;           // (T, D), the first half negated
    const long long* kv_rows;  // (T, N_kv)
    const void* q_norm;        // (D,), or null
    const void* k_norm;
    void* k_cache;  // rows of D
    void* v_cache;
    void* q_out;  // (T, N, D)
    long long qkv_stride;  // elements between tokens
    int tokens;
    int num_heads;
    int num_kv_heads;
    float eps;
};
static_assert(sizeof(RopeKvWriteParams) == 10 * 8 + 4 * 4, "mirrored in cuda.py");

__device__ constexpr int group_lanes(int head_dim) {
    return head_dim <= 16 ? 1 : head_dim <= 32 ? 2 : head_dim <= 64 ? 4 : head_dim <= 128 ? 8 : 16;
}

// 1 / sqrt(mean square) of the head that a group of lanes has.
template <int D>
__device__ __forceinline__ float head_scale(const Vector8& low, const Vector8& high, float eps) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) squares += low.value[i] * low.value[i] + high.value[i] * high.value[i];
#pragma unroll
    for (int mask = group_lanes(D) / 2; mask > 0; mask /= 2) squares += shfl_xor(squares, mask);
    return rsqrt_fast(squares / D + eps);
}

template <class T>
__device__ __forceinline__ void scale_by(Vector8& values, float scale, const T* weight) {
    const Vector8 weights = load_vector(weight);
#pragma unroll
    for (int i = 0; i < 8; ++i) values.value[i] *= scale * weights.value[i];
}

// One head of one token, seen by a lane: pointers are to its 8 elements of the head's first half, the second half's lie
// D / 2 further. `norm` and `cos` are null where the head has none; `is_mine`: the lane has elements.
template <class T>
struct Head {
    const T* from;
    const T* norm;
    const T* cos;
    const T* sin;
    T* to;
};

// By all lanes of the group, if any head has a norm.
template <class T, int D>
__device__ __forceinline__ void rotate_head(const Head<T>& head, bool has_norms, float eps, bool is_mine) {
    Vector8 low = {}, high = {};
    if (is_mine) {
        low = load_vector(head.from);
        high = load_vector(head.from + D / 2);
    }
    if (has_norms) {
        const float scale = head_scale<D>(low, high, eps);
        if (is_mine && head.norm != nullptr) {
            scale_by(low, scale, head.norm);
            scale_by(high, scale, head.norm + D / 2);
        }
    }
    if (!is_mine) return;
    if (head.cos != nullptr) {
        const Vector8 cos = load_vector(head.cos);
        const Vector8 sin = load_vector(head.sin);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float a = low.value[i], b = high.value[i];
            low.value[i] = a * cos.value[i] - b * sin.value[i];
            high.value[i] = b * cos.value[i] + a * sin.value[i];
        }
    }
    store_vector(head.to, low);
    store_vector(head.to + D / 2, high);
}

// Which head of which token a lane has.
template <int D>
struct HeadPlace {
    int at;  // the lane's first element
    int token;
    int head;  // of Q, then K, then V
    bool is_mine;

    __device__ __forceinline__ HeadPlace(int tokens, int heads) {
        constexpr int LANES = group_lanes(D);
        const long long total = static_cast<long long>(tokens) * heads;
        const long long first = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) / LANES;
        at = 8 * static_cast<int>(threadIdx.x % LANES);
        const long long item = first < total ? first : total - 1;  // the last lanes repeat an item, since all take part
        is_mine = first < total && at < D / 2;
        token = static_cast<int>(item / heads);
        head = static_cast<int>(item % heads);
    }
};

template <class T, int D>
__device__ __forceinline__ void rope_kv_write(const RopeKvWriteParams& params) {
    const int heads = params.num_heads + 2 * params.num_kv_heads;
    const HeadPlace<D> place(params.tokens, heads);
    const long long token = place.token;
    const bool is_query = place.head < params.num_heads, is_value = place.head >= params.num_heads + params.num_kv_heads;
    grid_dependency_launch();
    grid_dependency_wait();
    Head<T> head = {};
    head.from = static_cast<const T*>(params.qkv) + token * params.qkv_stride + place.head * D + place.at;
    if (!is_value) {
        if (params.q_norm != nullptr) {
            head.norm = static_cast<const T*>(is_query ? params.q_norm : params.k_norm) + place.at;
        }
        head.cos = static_cast<const T*>(params.cos) + token * D + place.at;
        head.sin = static_cast<const T*>(params.sin) + token * D + place.at + D / 2;
    }
    if (is_query) {
        head.to = static_cast<T*>(params.q_out) + (token * params.num_heads + place.head) * D + place.at;
    } else {
        const int kv_head = (place.head - params.num_heads) % params.num_kv_heads;
        const long long row = params.kv_rows[token * params.num_kv_heads + kv_head];
        head.to = static_cast<T*>(is_value ? params.v_cache : params.k_cache) + row * D + place.at;
    }
    rotate_head<T, D>(head, params.q_norm != nullptr, params.eps, place.is_mine);
}
