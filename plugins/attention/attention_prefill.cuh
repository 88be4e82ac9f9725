// Attention of long requests on Hopper's warpgroup products: sm_90a alone. Arguments, plan and tiles as in attention.cuh;
// a result differs from the other kernels' in its last bits.
//
// A block has a warpgroup that copies and S::CONSUMERS that compute, each 64 packed rows of the tile, and goes through
// the step's tiles in strides of the grid. Keys come S::KEYS at a time, the last ones first, page by page through the
// tensor copy engine into swizzled tiles (wgmma.cuh), S::STAGES deep; keys and values have barriers of their own. While a warpgroup weighs the scores of
// one tile of keys, the tensor cores do the products of the other warpgroup and its own with the values before
// (FlashAttention-3: Shah et al., 2024): warpgroups take turns at issuing products.
// Shared memory: S::SHARED_BYTES. Scores, softmax and sums are float32.
#pragma once

#include "attention.cuh"
#include "tensor_copy.cuh"
#include "wgmma.cuh"

struct AttentionPrefillParams {
    TensorMap keys;    // (num_blocks * N_kv * block_size, D), of which it copies S::KEYS rows or a page, the lesser
    TensorMap values;
    AttentionParams attention;
    unsigned unused[6];
};
static_assert(sizeof(AttentionPrefillParams) == 2 * 128 + sizeof(AttentionParams) + 6 * 4, "mirrored in cuda.py");

template <class Element, int HEAD_DIM_>
struct PrefillConfig {
    using T = Element;
    static constexpr int D = HEAD_DIM_;
    static constexpr int CONSUMERS = HEAD_DIM_ == 64 ? 3 : 2;  // warpgroups
    static constexpr int GROUP_ROWS = 64;
    static constexpr int ROWS = GROUP_ROWS * CONSUMERS;
    static constexpr int KEYS = 128;
    static constexpr int STAGES = HEAD_DIM_ == 64 ? 4 : 2;
    static constexpr int THREADS = 128 * (CONSUMERS + 1);
    static constexpr int QUERY_LOADERS = 96;  // threads; the copying warpgroup's first warp has the keys
    static constexpr int PIECES = D / 8;                 // of 16 bytes, per row
    static constexpr int HALVES = D / 64;                // tiles of 128-byte rows that hold whole rows
    static constexpr int Q_HALF_BYTES = ROWS * 128;
    static constexpr int KEY_HALF_BYTES = KEYS * 128;
    static constexpr int Q_BYTES = HALVES * Q_HALF_BYTES;
    static constexpr int TILE_BYTES = HALVES * KEY_HALF_BYTES;
    static constexpr int BARRIER_BYTES = 256;
    static constexpr int SHARED_BYTES = Q_BYTES + 2 * STAGES * TILE_BYTES + BARRIER_BYTES;
    static constexpr int LOADER_REGISTERS = CONSUMERS == 2 ? 40 : 32;
    static constexpr int CONSUMER_REGISTERS = CONSUMERS == 2 ? 232 : 160;
    static_assert(D == 64 || D == 128, "rows of one or two swizzled tiles");
    static_assert(128 * LOADER_REGISTERS + CONSUMERS * 128 * CONSUMER_REGISTERS <= 65536, "registers of a processor");
};

// Which stage of a ring is next, and the parity of its use.
template <int STAGES>
struct RingPlace {
    unsigned stage = 0, parity = 0;

    __device__ __forceinline__ void advance() {
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        parity ^= stage == 0;
    }
};

template <class S>
struct PrefillShared {
    unsigned char* queries;
    unsigned char* keys;
    unsigned char* values;
    Mbarrier *q_full, *q_empty, *v_edge, *k_full, *k_empty, *v_full, *v_empty;

    __device__ __forceinline__ explicit PrefillShared(unsigned char* shared)
        : queries(shared), keys(shared + S::Q_BYTES), values(keys + S::STAGES * S::TILE_BYTES) {
        q_full = reinterpret_cast<Mbarrier*>(values + S::STAGES * S::TILE_BYTES);
        q_empty = q_full + 1;
        v_edge = q_empty + 1;
        k_full = v_edge + 1;
        k_empty = k_full + S::STAGES;
        v_full = k_empty + S::STAGES;
        v_empty = v_full + S::STAGES;
        static_assert((3 + 4 * S::STAGES) * sizeof(Mbarrier) <= S::BARRIER_BYTES, "room for the barriers");
    }

    // By one thread. One lane of each consumer warp arrives at what is empty.
    __device__ __forceinline__ void init() const {
        constexpr unsigned WARPS = 4 * S::CONSUMERS;
        mbarrier_init(q_full, S::QUERY_LOADERS);
        mbarrier_init(q_empty, WARPS);
        mbarrier_init(v_edge, 1);
        for (int stage = 0; stage < S::STAGES; ++stage) {
            mbarrier_init(k_full + stage, 1);
            mbarrier_init(v_full + stage, 1);
            mbarrier_init(k_empty + stage, WARPS);
            mbarrier_init(v_empty + stage, WARPS);
        }
    }
};

// The tiles of a step in this block's share. Tiles come with the longest first, so every second stride runs backwards:
// blocks that had a long one then have a short one.
struct PrefillShare {
    int begin, backwards, num_works;

    __device__ __forceinline__ explicit PrefillShare(const AttentionParams& params)
        : begin(0), backwards(0), num_works(params.header[0] * params.num_kv_heads) {}

    // Whether there is another one, in `work`.
    __device__ __forceinline__ bool next(int& work) {
        const int block = blockIdx.x, stride = gridDim.x;
        work = begin + (backwards ? stride - 1 - block : block);
        begin += stride;
        backwards ^= 1;
        return work < num_works;
    }
};

template <class S>
__device__ __forceinline__ AttentionTask prefill_task(const AttentionParams& params, int work) {
    AttentionTask task;
    const int index = work / params.num_kv_heads;
    task.item = load_item(params.items + static_cast<long long>(index) * PLAN_ITEM);
    task.kv_head = work - index * params.num_kv_heads;
    task.first_row = task.item.tile * S::ROWS;
    task.num_rows = min(task.item.rows * params.group - task.first_row, S::ROWS);
    return task;
}

// The three warps that copy queries, by cp.async: their rows may have any strides. Those that do not exist become zeros.
template <class S>
__device__ __forceinline__ void load_queries(const AttentionParams& params, const PrefillShared<S>& shared) {
    unsigned parity = 0;
    PrefillShare share(params);
    for (int work; share.next(work); parity ^= 1) {
        const AttentionTask task = prefill_task<S>(params, work);
        mbarrier_wait(shared.q_empty, parity ^ 1);
#pragma unroll 1
        for (int index = threadIdx.x - 32; index < S::ROWS * S::PIECES; index += S::QUERY_LOADERS) {
            const int row = index / S::PIECES, piece = index % S::PIECES;
            const bool valid = row < task.num_rows;
            const int packed = task.first_row + (valid ? row : 0);
            const int token = token_of(packed, params);
            const int head = task.kv_head * params.group + packed - token * params.group;
            const long long element =
                (task.item.first_token + token) * params.q_token_stride + head * params.q_head_stride + piece * 8;
            copy_async16_or_zero(shared.queries + piece / 8 * S::Q_HALF_BYTES + wgmma_offset(row, piece % 8),
                                 static_cast<const char*>(params.q) + element * 2, valid);
        }
        copy_async_arrive(shared.q_full);
    }
}

// The warp that copies keys and values. Lane l has half l / boxes of the rows of box l % boxes of each tile.
template <class S>
struct KeyLoader {
    const AttentionPrefillParams& maps;
    const AttentionParams& params;
    const PrefillShared<S>& shared;
    int lane, box_shift;  // log2 of a box's keys
    RingPlace<S::STAGES> ring;
    unsigned edge_parity = 0;

    __device__ __forceinline__ KeyLoader(const AttentionPrefillParams& maps_, const PrefillShared<S>& shared_)
        : maps(maps_), params(maps_.attention), shared(shared_), lane(lane_id()) {
        constexpr int KEYS_SHIFT = 7;
        static_assert(1 << KEYS_SHIFT == S::KEYS, "tiles are whole boxes");
        box_shift = min(params.block_shift, KEYS_SHIFT);
    }

    // Of this lane's box: half of the rows, first key in a tile.
    __device__ __forceinline__ int half() const { return (lane << box_shift) / S::KEYS; }
    __device__ __forceinline__ int box_key() const { return (lane << box_shift) % S::KEYS; }

    __device__ __forceinline__ void run() {
        PrefillShare share(params);
        for (int work; share.next(work);) {
            const AttentionTask task = prefill_task<S>(params, work);
            const int first = task.item.key_begin / S::KEYS;
            int tile = (task.item.key_end - 1) / S::KEYS;
            int row = cache_row(task, tile);
#pragma unroll 1
            for (; tile >= first; --tile) {
                const int now = row;
                row = cache_row(task, max(tile - 1, first));  // looked up before it is needed
                load_tile(task, tile, now);
            }
        }
    }

    // Where this lane's box of a tile begins in the caches; -1 where it has none, or none of its keys is the request's.
    __device__ __forceinline__ int cache_row(const AttentionTask& task, int tile) const {
        const int key = tile * S::KEYS + box_key();
        const bool needed = key + (1 << box_shift) > task.item.key_begin && key < task.item.context;
        if (half() >= S::HALVES || !needed) return -1;
        const long long entry =
            static_cast<long long>(task.item.request) * params.max_blocks + (key >> params.block_shift);
        const int block = static_cast<int>(params.block_tables[entry]);
        return ((block * params.num_kv_heads + task.kv_head) << params.block_shift) +
               (key & ((1 << params.block_shift) - 1));
    }

    __device__ __forceinline__ void load_tile(const AttentionTask& task, int tile, int row) {
        const int first_key = tile * S::KEYS;
        const unsigned bytes = __popc(warp_ballot(row >= 0)) << box_shift << 7;
        mbarrier_wait(shared.k_empty + ring.stage, ring.parity ^ 1);
        copy_boxes(maps.keys, shared.keys, row, bytes, shared.k_full + ring.stage);
        mbarrier_wait(shared.v_empty + ring.stage, ring.parity ^ 1);
        if (first_key >= task.item.key_begin && first_key + S::KEYS <= task.item.context) {
            copy_boxes(maps.values, shared.values, row, bytes, shared.v_full + ring.stage);
        } else {
            copy_boxes(maps.values, shared.values, row, bytes, shared.v_edge);
            mbarrier_wait(shared.v_edge, edge_parity);
            edge_parity ^= 1;
            clear_values(task.item.key_begin - first_key, task.item.context - first_key);
            if (lane == 0) mbarrier_arrive(shared.v_full + ring.stage);
        }
        ring.advance();
    }

    __device__ __forceinline__ void copy_boxes(const TensorMap& map, unsigned char* tiles, int row, unsigned bytes,
                                               Mbarrier* barrier) const {
        if (lane == 0) mbarrier_arrive_expect(barrier, bytes);
        warp_sync();
        if (row < 0) return;
        unsigned char* to = tiles + ring.stage * S::TILE_BYTES + half() * S::KEY_HALF_BYTES + box_key() * 128;
        copy_box(to, &map, row, half() * 64, barrier);
    }

    // Values outside keys [begin, end) of a tile become zeros: they may be no numbers, which a weight of 0 does not hide.
    __device__ __forceinline__ void clear_values(int begin, int end) const {
        unsigned char* tile = shared.values + ring.stage * S::TILE_BYTES + lane * 16;
#pragma unroll 1
        for (int place = 0; place < S::TILE_BYTES; place += 512) {
            const int key = (place + lane * 16) % S::KEY_HALF_BYTES / 128;
            if (key < begin || key >= end) store16(tile + place, {0, 0, 0, 0});
        }
        bulk_copy_fence();  // each lane's, before the tensor cores read
        warp_sync();
    }
};

// Lane q of four has words w[n] = m[q][n]; afterwards w[n] = m[n][q].
__device__ __forceinline__ void transpose_4x4(unsigned (&w)[4], unsigned lane) {
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
        const bool upper = lane & bit;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int low = bit == 1 ? 2 * i : i, high = low + bit;
            const unsigned theirs = shfl_xor(upper ? w[low] : w[high], bit);
            if (upper) {
                w[low] = theirs;
            } else {
                w[high] = theirs;
            }
        }
    }
}

// A warpgroup that computes: 64 packed rows of each tile.
template <class S>
struct PrefillRows {
    using T = typename S::T;
    static constexpr int KEY_STEPS = S::KEYS / 8, N_STEPS = S::D / 8;
    using Scores = float[KEY_STEPS][4];
    using Weights = unsigned[S::KEYS / 16][4];

    const AttentionParams& params;
    const PrefillShared<S>& shared;
    int group, lane, first_row;  // of this warpgroup among its kind, of this warp in the tile
    RingPlace<S::STAGES> k_ring, v_ring;
    unsigned q_parity = 0;
    float acc[N_STEPS][4];
    float sums[2];      // over this lane's keys, of rows lane / 4 and lane / 4 + 8
    float row_base[2];  // exponent of 2 that weights are relative to, of the same rows
    ChainKeys visible[2];
    int see_from, see_until;  // keys that all of this warpgroup's rows see

    __device__ __forceinline__ PrefillRows(const AttentionParams& params_, const PrefillShared<S>& shared_)
        : params(params_), shared(shared_), group(warp_id() / 4 - 1), lane(lane_id()) {
        first_row = group * S::GROUP_ROWS + warp_id() % 4 * 16;
    }

    __device__ __forceinline__ void run() {
        if (group == S::CONSUMERS - 1) pass_turn();  // the first warpgroup begins
        PrefillShare share(params);
        for (int work; share.next(work);) {
            const AttentionTask task = prefill_task<S>(params, work);
            start(task);
            attend(task.item.key_begin / S::KEYS, (task.item.key_end - 1) / S::KEYS);
            write_rows(task);
        }
        if (group == 0) wait_for_turn();
    }

    __device__ __forceinline__ void wait_for_turn() const { named_sync(1 + group, 2 * 128); }
    __device__ __forceinline__ void pass_turn() const { named_arrive(1 + (group + 1) % S::CONSUMERS, 2 * 128); }

    __device__ __forceinline__ void release(Mbarrier* barrier) const {
        if (lane == 0) mbarrier_arrive(barrier);
    }

    __device__ __forceinline__ void start(const AttentionTask& task) {
        const int root = task.item.context - task.item.rows;
        const int group_row = task.first_row + group * S::GROUP_ROWS;
        see_until = root + token_of(group_row, params) + 1;
        see_from = root + token_of(group_row + S::GROUP_ROWS - 1, params) + 1 - params.window;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            visible[half] = {params, task, row_of(half)};
            row_base[half] = MINUS_INFINITY;
            sums[half] = 0.0f;
        }
    }

    __device__ __forceinline__ int row_of(int half) const { return first_row + half * 8 + lane / 4; }

    // Over the tiles `last` down to `first` of keys.
    __device__ __forceinline__ void attend(int first, int last) {
        Scores scores;
        Weights weights;
        float rescales[2];
        mbarrier_wait(shared.q_full, q_parity);
        q_parity ^= 1;
        bulk_copy_fence();  // what cp.async wrote is for the tensor cores
        multiply_keys(scores);
        wgmma_wait<0>();
        wgmma_hold(scores);
        release(shared.k_empty + k_ring.stage);
        k_ring.advance();
        weigh(scores, rescales, last * S::KEYS);
        pack(weights, scores);
        bool add = false;
        for (int tile = last - 1; tile >= first; --tile) {
            wait_for_turn();
            multiply_keys(scores);
            multiply_values(weights, add);
            pass_turn();
            wgmma_wait<1>();
            wgmma_hold(scores);
            release(shared.k_empty + k_ring.stage);
            k_ring.advance();
            weigh(scores, rescales, tile * S::KEYS);
            wgmma_wait_after(fminf(sums[0], sums[1]));
            wgmma_hold(acc);
            wgmma_hold(weights);
            release(shared.v_empty + v_ring.stage);
            v_ring.advance();
            rescale(rescales);
            pack(weights, scores);
            add = true;
        }
        release(shared.q_empty);
        multiply_values(weights, add);
        wgmma_wait<0>();
        wgmma_hold(acc);
        release(shared.v_empty + v_ring.stage);
        v_ring.advance();
    }

    // Begin scores = q k^T of the next tile of keys.
    __device__ __forceinline__ void multiply_keys(Scores& scores) {
        mbarrier_wait(shared.k_full + k_ring.stage, k_ring.parity);
        const unsigned long long q = wgmma_descriptor(shared.queries + group * (S::GROUP_ROWS * 128));
        const unsigned long long k = wgmma_descriptor(shared.keys + k_ring.stage * S::TILE_BYTES);
        wgmma_hold(scores);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < S::D / 16; ++step) {
            wgmma_rows<T>(scores, wgmma_advance(q, step / 4 * S::Q_HALF_BYTES + step % 4 * 32),
                          wgmma_advance(k, step / 4 * S::KEY_HALF_BYTES + step % 4 * 32), step > 0);
        }
        wgmma_commit();
    }

    // Begin acc = weights v, plus acc where `add`, of the next tile of values.
    __device__ __forceinline__ void multiply_values(Weights& weights, bool add) {
        mbarrier_wait(shared.v_full + v_ring.stage, v_ring.parity);
        const unsigned long long v = wgmma_descriptor(shared.values + v_ring.stage * S::TILE_BYTES, S::KEY_HALF_BYTES);
        wgmma_hold(acc);
        wgmma_hold(weights);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < S::KEYS / 16; ++step) {
            wgmma_columns<T>(acc, weights[step], wgmma_advance(v, step * 16 * 128), add || step > 0);
        }
        wgmma_commit();
    }

    // scores become 2^(score - base) of the row, 0 where a key is not seen; `rescales` is for older sums and values.
    __device__ __forceinline__ void weigh(Scores& scores, float (&rescales)[2], int first_key) {
        if (first_key < see_from || first_key + S::KEYS > see_until) hide_unseen(scores, first_key);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float highest = MINUS_INFINITY;
#pragma unroll
            for (int n = 0; n < KEY_STEPS; ++n) {
                highest = fmaxf(highest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            }
            highest = fmaxf(highest, shfl_xor(highest, 1));
            highest = fmaxf(highest, shfl_xor(highest, 2));
            rescales[half] = move_base(row_base[half], highest * params.log2_scale);
            const float base = finite_base(row_base[half]);
            float sum = sums[half] * rescales[half];
#pragma unroll
            for (int n = 0; n < KEY_STEPS; ++n) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) {
                    scores[n][i] = exp2_fast(fmaf(scores[n][i], params.log2_scale, -base));
                    sum += scores[n][i];
                }
            }
            sums[half] = sum;
        }
    }

    __device__ __forceinline__ void hide_unseen(Scores& scores, int first_key) const {
#pragma unroll
        for (int n = 0; n < KEY_STEPS; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = first_key + n * 8 + lane % 4 * 2 + i % 2;
                if (!visible[i / 2].sees(key, params)) scores[n][i] = MINUS_INFINITY;
            }
        }
    }

    __device__ __forceinline__ void rescale(const float (&rescales)[2]) {
        if (warp_ballot(rescales[0] != 1.0f || rescales[1] != 1.0f) == 0) return;
#pragma unroll
        for (int n = 0; n < N_STEPS; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[n][i] *= rescales[i / 2];
        }
    }

    __device__ __forceinline__ void pack(Weights& weights, const Scores& scores) const {
#pragma unroll
        for (int step = 0; step < S::KEYS / 16; ++step) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* pair = &scores[2 * step + i / 2][i % 2 * 2];
                weights[step][i] = pack2<T>(pair[0], pair[1]);
            }
        }
    }

    // Four lanes have a row; each writes 16 bytes of it at a time.
    __device__ __forceinline__ void write_rows(const AttentionTask& task) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = sums[half];
            sum += shfl_xor(sum, 1);
            sum += shfl_xor(sum, 2);
            const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
            const int row = row_of(half);
            const bool exists = row < task.num_rows;
            T* to = static_cast<T*>(params.out) + out_offset(params, task, exists ? row : 0) + lane % 4 * 8;
#pragma unroll
            for (int n = 0; n < N_STEPS; n += 4) {
                unsigned words[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    words[i] = pack2<T>(acc[n + i][2 * half] * inverse, acc[n + i][2 * half + 1] * inverse);
                }
                transpose_4x4(words, lane);
                if (exists) store16(to + n * 8, {words[0], words[1], words[2], words[3]});
            }
        }
    }
};

template <class S>
__device__ __forceinline__ void prefill(const AttentionPrefillParams& params, unsigned char* memory) {
    const PrefillShared<S> shared(memory);
    if (threadIdx.x == 0) shared.init();
    block_sync();
    if (warp_id() >= 4) {
        raise_registers<S::CONSUMER_REGISTERS>();
        PrefillRows<S>(params.attention, shared).run();
    } else {
        lower_registers<S::LOADER_REGISTERS>();
        if (warp_id() == 0) {
            KeyLoader<S>(params, shared).run();
        } else {
            load_queries<S>(params.attention, shared);
        }
    }
}
