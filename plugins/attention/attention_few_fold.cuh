// What the softmaxes of attention_few.cuh fold to.
#pragma once

#include "attention_few.cuh"

// The tiles of 8 columns that a warp has, of a part or of the output.
template <class S>
struct Columns {
    static __device__ __forceinline__ bool exists(int j) {
        return (j + 1) * FEW_WARPS <= S::PIECES || j * FEW_WARPS + static_cast<int>(warp_id()) < S::PIECES;
    }

    static __device__ __forceinline__ int place(int j) {
        return (j * FEW_WARPS + static_cast<int>(warp_id())) * S::COLUMN_BYTES;
    }
};

// Softmax over some keys, of this warp's columns of all rows, in the layout of the products' results.
template <class S>
struct FewFolded {
    float base[2];  // of rows lane / 4 and lane / 4 + 8
    float sum[2];
    float values[S::COLUMNS][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            base[half] = MINUS_INFINITY;
            sum[half] = 0;
        }
#pragma unroll
        for (int i = 0; i < 4 * S::COLUMNS; ++i) values[i / 4][i % 4] = 0;
    }

    // Add what other keys gave. A part that saw nothing changes nothing.
    __device__ __forceinline__ void add(const FewFolded& other) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float now = fmaxf(base[half], other.base[half]), finite = finite_base(now);
            const float mine = exp2_fast(base[half] - finite), theirs = exp2_fast(other.base[half] - finite);
            base[half] = now;
            sum[half] = fmaf(other.sum[half], theirs, sum[half] * mine);
#pragma unroll
            for (int j = 0; j < S::COLUMNS; ++j) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i)
                    values[j][i] = fmaf(other.values[j][i], theirs, values[j][i] * mine);
            }
        }
    }

    static __device__ __forceinline__ float2* stats(unsigned char* part) {
        return reinterpret_cast<float2*>(part + S::PIECES * S::COLUMN_BYTES);
    }

    __device__ __forceinline__ void store(unsigned char* part) const {
        const int lane = lane_id();
#pragma unroll
        for (int j = 0; j < S::COLUMNS; ++j) {
            const float(&v)[4] = values[j];
            if (Columns<S>::exists(j))
                store16(part + Columns<S>::place(j) + lane * 16, {__float_as_uint(v[0]), __float_as_uint(v[1]),
                                                          __float_as_uint(v[2]), __float_as_uint(v[3])});
        }
        if (warp_id() != 0 || lane % 4 != 0) return;
#pragma unroll
        for (int half = 0; half < 2; ++half) stats(part)[half * 8 + lane / 4] = make_float2(base[half], sum[half]);
    }

    __device__ __forceinline__ void load(unsigned char* part) {
        const int lane = lane_id();
#pragma unroll
        for (int j = 0; j < S::COLUMNS; ++j) {
            uint4 v = {};
            if (Columns<S>::exists(j)) v = load16(part + Columns<S>::place(j) + lane * 16);
            values[j][0] = __uint_as_float(v.x);
            values[j][1] = __uint_as_float(v.y);
            values[j][2] = __uint_as_float(v.z);
            values[j][3] = __uint_as_float(v.w);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float2 pair = stats(part)[half * 8 + lane / 4];
            base[half] = pair.x;
            sum[half] = pair.y;
        }
    }
};

// The parts of a cluster's blocks, on their way to the first one.
template <class S>
struct FewParts {
    const FewShared<S>& shared;
    int cluster, rank, share;  // parts of a block

    __device__ __forceinline__ explicit FewParts(const FewShared<S>& shared_) : shared(shared_) {
        cluster = static_cast<int>(cluster_size());
        rank = static_cast<int>(cluster_rank());
        share = PARTS / cluster;
        if (cluster == 1) return;
        if (threadIdx.x == 0) mbarrier_init(shared.arrived, 1);
        cluster_arrive();  // the others may write here
    }

    __device__ __forceinline__ unsigned char* place(int part) const {
        return shared.parts + (part - share) * S::PART_BYTES;
    }

    // Each warp for itself: no barrier of the block.
    __device__ __forceinline__ void send(int part, const FewFolded<S>& folded) const {
        unsigned char* from = place(part);
        folded.store(from);
        bulk_copy_fence();
        warp_sync();
        if (lane_id() != 0) return;
        const PeerPointer to = peer_pointer(from, 0), barrier = peer_pointer(shared.arrived, 0);
#pragma unroll
        for (int j = 0; j < S::COLUMNS; ++j) {
            const int at = Columns<S>::place(j);
            if (Columns<S>::exists(j)) copy_peer_bulk(to + at, from + at, S::COLUMN_BYTES, barrier);
        }
        constexpr int STATS = S::PIECES * S::COLUMN_BYTES;
        if (warp_id() == 0) copy_peer_bulk(to + STATS, from + STATS, S::PART_BYTES - STATS, barrier);
    }

    // By the first block: wait for the others' parts, and fold them in order.
    __device__ __forceinline__ void fold(FewFolded<S>& folded, const Walk& walk) const {
        int num_parts = 0;
        for (int part = share; part < PARTS; ++part) num_parts += walk.first_of(part) < walk.end;
        if (num_parts == 0) return;
        if (threadIdx.x == 0) mbarrier_arrive_expect(shared.arrived, num_parts * S::PART_BYTES);
        mbarrier_wait(shared.arrived, 0);
        for (int part = share; part < PARTS; ++part) {
            if (walk.first_of(part) >= walk.end) continue;
            FewFolded<S> other;
            other.load(place(part));
            folded.add(other);
        }
    }
};

// Where a thread's results go; null where the row does not exist.
template <class S>
struct FewOutput {
    using T = typename S::T;
    T* rows[2];

    __device__ __forceinline__ FewOutput(const FewParams& params, const AttentionTask& task) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = half * 8 + static_cast<int>(lane_id()) / 4, column = warp_id() * 8 + lane_id() % 4 * 2;
            rows[half] = static_cast<T*>(params.out) + out_offset(params, task, min(row, task.num_rows - 1)) + column;
            if (row >= task.num_rows) rows[half] = nullptr;
        }
    }

    __device__ __forceinline__ void write(const FewFolded<S>& folded) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (rows[half] == nullptr) continue;
            const float inverse = folded.sum[half] > 0.0f ? 1.0f / folded.sum[half] : 0.0f;  // no key: zero
#pragma unroll
            for (int j = 0; j < S::COLUMNS; ++j) {
                const float* pair = &folded.values[j][2 * half];
                if (Columns<S>::exists(j))
                    *reinterpret_cast<unsigned*>(rows[half] + j * (FEW_WARPS * 8)) =
                        pack2<T>(pair[0] * inverse, pair[1] * inverse);
            }
        }
    }
};
