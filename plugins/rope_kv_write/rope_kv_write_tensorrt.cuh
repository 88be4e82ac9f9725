// rope_kv_write over dense requests and a linear cache, as the ONNX node of that name has it: see onnx.py.
//
// Of cos and sin only each pair's angle is kept, by position; token s of request b goes to cache row write_starts[b] + s.
// One launch, groups of lanes over (request, token, head) in order as in rope_kv_write.cuh.
#pragma once

#include "rope_kv_write.cuh"

struct DenseRopeKvWrite {
    const void* qkv;                // (B, S, (N + 2 N_kv) D)
    const void* cos;                // (positions, D / 2)
    const void* sin;                // the same, nothing negated
    const long long* position_ids;  // (B, S)
    const long long* write_starts;  // (B,)
    const void* q_norm;             // (D,), or null
    const void* k_norm;
    void* q;        // (B, N, S, D)
    void* k_cache;  // (B, N_kv, cache_len, D)
    void* v_cache;
    int batch;
    int rows;  // S
    int num_heads;
    int num_kv_heads;
    int cache_len;
    float eps;
};

template <class T, int D>
__device__ __forceinline__ void rope_kv_write_dense(const DenseRopeKvWrite& args) {
    const int heads = args.num_heads + 2 * args.num_kv_heads;
    const HeadPlace<D> place(args.batch * args.rows, heads);
    const int request = place.token / args.rows, row = place.token % args.rows;
    const bool is_query = place.head < args.num_heads, is_value = place.head >= args.num_heads + args.num_kv_heads;
    Head<T> head = {};
    const long long from = static_cast<long long>(place.token) * heads + place.head;
    head.from = static_cast<const T*>(args.qkv) + from * D + place.at;
    if (!is_value) {
        if (args.q_norm != nullptr) head.norm = static_cast<const T*>(is_query ? args.q_norm : args.k_norm) + place.at;
        const long long angle = args.position_ids[place.token] * (D / 2) + place.at;
        head.cos = static_cast<const T*>(args.cos) + angle;
        head.sin = static_cast<const T*>(args.sin) + angle;
    }
    if (is_query) {
        const long long to = (static_cast<long long>(request) * args.num_heads + place.head) * args.rows + row;
        head.to = static_cast<T*>(args.q) + to * D + place.at;
    } else {
        const int kv_head = (place.head - args.num_heads) % args.num_kv_heads;
        const long long cache = static_cast<long long>(request) * args.num_kv_heads + kv_head;
        const long long to = cache * args.cache_len + args.write_starts[request] + row;
        head.to = static_cast<T*>(is_value ? args.v_cache : args.k_cache) + to * D + place.at;
    }
    rotate_head<T, D>(head, args.q_norm != nullptr, args.eps, place.is_mine);
}
