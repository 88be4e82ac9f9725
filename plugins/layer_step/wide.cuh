// A linear layer over few rows, as linear.cuh's, where its weights take longer than anything else: a stream of boxes of
// weights through the tensor copy engine to wgmma.
//
// A tile is 128 outputs, 64 for each of two warpgroups; the blocks of a cluster take other columns of the same tile. Weights
// are operand A, rows of x operand B, so a row is computed alike whatever the others are. A stage of the ring is 64 columns:
// the tile's weights and all rows of x, which are read again for each tile: a quarter of the weights' bytes at 32 rows,
// from L2. One warp asks for boxes, eight multiply. The tensor map deals outputs so that pair_of's pairs are rows i and
// i + 8 of 16, as in linear.cuh.
//
// The ring is filled before the kernel waits for the one before it. Blocks leave room for those of the next kernel, whose
// ring fills while this one's sums are finished: where this is not so, memory rests in every launch.
//
// Each block of a cluster finishes its share of the rows, adding in a fixed order, so that a warp has all that norms of
// heads and of rows need. Layers with tiles enough have no clusters; threads finish the sums that they have.
// 9 warps. Shared memory: see WideShared.
#pragma once

#include "tensor_copy.cuh"
#include "trace.cuh"
#include "wgmma.cuh"

#include "wide_finish.cuh"

constexpr int WIDE_COLUMNS = 64;  // of a stage
constexpr int WIDE_THREADS = THREADS + 32;
constexpr unsigned WIDE_WEIGHT_BYTES = WIDE_OUTPUTS * WGMMA_ROW_BYTES;  // of a box
constexpr int WIDE_MOST_STAGES = 8;
constexpr int CONSUMERS = 1;  // their named barrier

struct WideLinearParams {
    TensorMap weight;         // (columns, 8, 2, groups, heads): see wide.py
    TensorMap x;              // (columns, R, parts)
    LayerLinearParams layer;  // x and weight are not read
    int stages;
    int unused[15];
};
static_assert(sizeof(WideLinearParams) == 2 * 128 + sizeof(LayerLinearParams) + 64, "mirrored in params.py");

// A block's part of the layer.
struct WideCut {
    int cluster, rank;
    int first_chunk, num_chunks;           // of WIDE_COLUMNS
    int first_tile, tile_step, num_tiles;  // one tile where blocks share it
    int first_row, rows;                   // of x

    __device__ WideCut(const LayerLinearParams& layer) {
        cluster = static_cast<int>(cluster_size());
        rank = static_cast<int>(cluster_rank());
        const int shift = log2(cluster), chunks = layer.columns / WIDE_COLUMNS;
        first_chunk = (rank * chunks) >> shift;
        num_chunks = (((rank + 1) * chunks) >> shift) - first_chunk;
        first_tile = static_cast<int>(blockIdx.x) >> shift;
        tile_step = static_cast<int>(gridDim.x) >> shift;
        num_tiles = ceil_div(layer.tiles - first_tile, tile_step);
        first_row = 0;
        rows = layer.rows;
    }
};

// Whether the blocks of a cluster have other columns of one tile; otherwise each has tiles of its own, one after another.
__device__ constexpr bool shares_tiles(Mode mode) { return mode == QKV || mode == RESIDUAL; }

// Boxes of weights in a stage, one below the other: two where x would be read too often for the rate at which L2 is.
__device__ constexpr int boxes_of(Mode mode) { return mode == LOGITS ? 2 : 1; }

// ring | received | factors | barriers; wide.py has the same sizes.
template <int ROW_BLOCKS, Mode MODE>
struct WideShared {
    static constexpr int ROWS = 8 * ROW_BLOCKS;
    static constexpr int BOXES = boxes_of(MODE);
    static constexpr unsigned WEIGHT_BYTES = BOXES * WIDE_WEIGHT_BYTES;
    unsigned stage_bytes;
    unsigned char* ring;  // (stages, weights | x)
    float* staged;        // (ROWS, WIDE_PITCH), this block's sums, where the ring was
    float* received;      // (cluster, ROWS / cluster, WIDE_PITCH), of the rows that it finishes
    float* factors;       // (ROWS,)
    Mbarrier* full;       // of a stage, for the warps that multiply
    Mbarrier* empty;      // of a stage, for the one that asks
    Mbarrier* handed_over;

    __device__ WideShared(const WideLinearParams& params) {
        stage_bytes = WEIGHT_BYTES + params.layer.parts * ROWS * WGMMA_ROW_BYTES;
        ring = shared_memory();
        staged = reinterpret_cast<float*>(ring);
        received = reinterpret_cast<float*>(ring + params.stages * stage_bytes);
        factors = received + (shares_tiles(MODE) ? ROWS * WIDE_PITCH : 0);
        full = reinterpret_cast<Mbarrier*>(factors + (ROWS < 32 ? 32 : ROWS));
        empty = full + WIDE_MOST_STAGES;
        handed_over = empty + WIDE_MOST_STAGES;
    }

    __device__ void init_barriers(int stages) const {
        for (int stage = 0; stage < stages; ++stage) {
            mbarrier_init(full + stage, 1);
            mbarrier_init(empty + stage, WARPS);
        }
        mbarrier_init(handed_over, 1);
    }
};

// One stage after another of a block's tiles.
struct WideUnit {
    int tile, chunk;

    __device__ void advance(const WideCut& cut) {
        if (++chunk < cut.num_chunks) return;
        chunk = 0;
        tile += cut.tile_step;
    }
};

// The thread that asks for all of them.
template <int ROW_BLOCKS, Mode MODE>
struct WideProducer {
    using Shared = WideShared<ROW_BLOCKS, MODE>;
    const WideLinearParams& params;
    const WideCut& cut;
    const Shared& shared;
    int head_shift;  // groups of 16 outputs that a dimension of the weights' map has, a power of two
    CachePolicy read_once, read_often;

    __device__ WideProducer(const WideLinearParams& params, const WideCut& cut, const Shared& shared)
        : params(params), cut(cut), shared(shared), read_once(evict_first()), read_often(evict_normal()) {
        head_shift = MODE == QKV ? log2(params.layer.head_dim / 16) : 30;
    }

    __device__ int column(const WideUnit& unit) const { return (cut.first_chunk + unit.chunk) * WIDE_COLUMNS; }

    __device__ BoxCorner weights(const WideUnit& unit, int box) const {
        const int group = (unit.tile * Shared::BOXES + box) * (WIDE_PAIRS / 8);
        return {{column(unit), 0, 0, group & ((1 << head_shift) - 1), group >> head_shift}};
    }

    __device__ void ask_weights(const WideUnit& unit, int stage) const {
        mbarrier_arrive_expect(shared.full + stage, shared.stage_bytes);
#pragma unroll
        for (int box = 0; box < Shared::BOXES; ++box)
            copy_box(shared.ring + stage * shared.stage_bytes + box * WIDE_WEIGHT_BYTES, &params.weight,
                     weights(unit, box), shared.full + stage, read_once);
    }

    __device__ void ask_x(const WideUnit& unit, int stage) const {
        copy_box(shared.ring + stage * shared.stage_bytes + Shared::WEIGHT_BYTES, &params.x, {{column(unit), 0, 0, 0, 0}},
                 shared.full + stage, read_often);
    }

    __device__ void run() const {
        const int units = cut.num_tiles * cut.num_chunks, at_first = min(params.stages, units);
        WideUnit ahead = {cut.first_tile, 0}, unit = ahead;
#pragma unroll 1
        for (int i = 0; i < at_first; ++i, ahead.advance(cut)) ask_weights(ahead, i);
        prefetch_map(&params.x);
        grid_dependency_wait();
#pragma unroll 1
        for (int i = 0; i < at_first; ++i, unit.advance(cut)) ask_x(unit, i);
        unsigned parity = 0;
        int stage = 0;
#pragma unroll 1
        for (int i = at_first; i < units; ++i, unit.advance(cut)) {
            mbarrier_wait(shared.empty + stage, parity);
            ask_weights(unit, stage);
            ask_x(unit, stage);
            if (++stage == params.stages) stage = 0, parity ^= 1;
        }
    }
};

// A warpgroup's products of one tile. `stage` and `parity` go on from tile to tile.
template <class T, int ROW_BLOCKS, Mode MODE>
__device__ __forceinline__ void multiply_wide(
    float (&sums)[boxes_of(MODE)][ROW_BLOCKS][4], const WideLinearParams& params, const WideCut& cut,
    const WideShared<ROW_BLOCKS, MODE>& shared, int& stage, unsigned& parity) {
    constexpr int BOXES = boxes_of(MODE);
    constexpr unsigned X_BYTES = 8 * ROW_BLOCKS * WGMMA_ROW_BYTES, STEP_BYTES = 32;
    const unsigned first = warp_id() / 4 * (WIDE_WEIGHT_BYTES / 2);
    const int parts = MODE == LOGITS ? params.layer.parts : 1;
#pragma unroll 1
    for (int chunk = 0; chunk < cut.num_chunks; ++chunk) {
        mbarrier_wait(shared.full + stage, parity);
        const unsigned char* ring = shared.ring + stage * shared.stage_bytes;
        const unsigned long long a = wgmma_descriptor(ring + first), b = wgmma_descriptor(ring + shared.WEIGHT_BYTES);
#pragma unroll
        for (int box = 0; box < BOXES; ++box) wgmma_hold(sums[box]);
        wgmma_fence();
#pragma unroll 1
        for (int part = 0; part < parts; ++part) {
            const unsigned long long x = wgmma_advance(b, part * X_BYTES);
#pragma unroll
            for (int step = 0; step < WIDE_COLUMNS / 16; ++step)
#pragma unroll
                for (int box = 0; box < BOXES; ++box)
                    wgmma_rows<T, ROW_BLOCKS>(sums[box], wgmma_advance(a, step * STEP_BYTES + box * WIDE_WEIGHT_BYTES),
                                              wgmma_advance(x, step * STEP_BYTES), true);
        }
        wgmma_commit();
        wgmma_wait<0>();
#pragma unroll
        for (int box = 0; box < BOXES; ++box) wgmma_hold(sums[box]);
        if (lane_id() == 0) mbarrier_arrive(shared.empty + stage);
        if (++stage == params.stages) stage = 0, parity ^= 1;
    }
}

// Hand the sums of each share of the rows to the block of the cluster that finishes it.
template <int ROW_BLOCKS, Mode MODE>
__device__ __forceinline__ void hand_over_wide(
    const float (&sums)[ROW_BLOCKS][4], const WideCut& cut, const WideShared<ROW_BLOCKS, MODE>& shared) {
    const int lane = static_cast<int>(lane_id()), share = 8 * ROW_BLOCKS / cut.cluster * WIDE_PITCH;
    const unsigned bytes = share * sizeof(float);
    if (threadIdx.x == 0) mbarrier_arrive_expect(shared.handed_over, cut.cluster * bytes);
    named_sync(CONSUMERS, THREADS);  // the ring has been read
    float* target = shared.staged + lane % 4 * 2 * WIDE_PITCH + warp_id() * 8 + lane / 4;
#pragma unroll
    for (int block = 0; block < ROW_BLOCKS; ++block)
#pragma unroll
        for (int i = 0; i < 4; ++i) target[(8 * block + i % 2) * WIDE_PITCH + i / 2 * WIDE_PAIRS] = sums[block][i];
    bulk_copy_fence();
    named_sync(CONSUMERS, THREADS);
    if (static_cast<int>(threadIdx.x) < cut.cluster) {
        const unsigned to = threadIdx.x;
        copy_peer_bulk(peer_pointer(shared.received + cut.rank * share, to), shared.staged + to * share, bytes,
                       peer_pointer(shared.handed_over, to));
    }
    mbarrier_wait(shared.handed_over, 0);
}

// One tile, with the other blocks of the cluster.
template <class T, int ROW_BLOCKS, Mode MODE>
__device__ __forceinline__ void multiply_shared(
    const WideLinearParams& params, const WideCut& cut, const WideShared<ROW_BLOCKS, MODE>& shared) {
    const LayerLinearParams& layer = params.layer;
    const int share = 8 * ROW_BLOCKS / cut.cluster, warp = static_cast<int>(warp_id()), first_row = cut.rank * share;
    WideShare<T, MODE> own(layer, cut.first_tile);
    Factors<T, WideCut> factors(layer, cut);
    trace(layer, 1);
    grid_dependency_wait_after(own.largest());
    trace(layer, 2);
    if (layer.squares != nullptr) factors.begin();
    if (warp < share && first_row + warp < layer.rows) own.load(layer, first_row + warp);
    if (layer.squares != nullptr) factors.finish(shared.factors);
    trace(layer, 3);
    int stage = 0;
    unsigned parity = 0;
    float sums[1][ROW_BLOCKS][4] = {};
    multiply_wide<T, ROW_BLOCKS, MODE>(sums, params, cut, shared, stage, parity);
    trace(layer, 5);
    cluster_wait();  // the others have begun
    hand_over_wide<ROW_BLOCKS, MODE>(sums[0], cut, shared);
    cluster_arrive();  // what they have copied from is no longer needed
    trace(layer, 6);
#pragma unroll 1
    for (int local = warp; local < share && first_row + local < layer.rows; local += WARPS) {
        const int row = first_row + local;
        if (local != warp) own.load(layer, row);
        own.finish(layer, row, cut.first_tile, shared.received + local * WIDE_PITCH, cut.cluster, share * WIDE_PITCH,
                   shared.factors[row]);
    }
    trace(layer, 7);
}

// Tiles of this block alone.
template <class T, int ROW_BLOCKS, Mode MODE>
__device__ __forceinline__ void multiply_own(
    const WideLinearParams& params, const WideCut& cut, const WideShared<ROW_BLOCKS, MODE>& shared) {
    const LayerLinearParams& layer = params.layer;
    Factors<T, WideCut> factors(layer, cut);
    trace(layer, 1);
    grid_dependency_wait();
    trace(layer, 2);
    if (layer.squares != nullptr) {
        factors.begin();
        factors.finish(shared.factors);
        named_sync(CONSUMERS, THREADS);
    }
    trace(layer, 3);
    int stage = 0;
    unsigned parity = 0;
#pragma unroll 1
    for (int i = 0; i < cut.num_tiles; ++i) {
        constexpr int BOXES = boxes_of(MODE);
        float sums[BOXES][ROW_BLOCKS][4] = {};
        multiply_wide<T, ROW_BLOCKS, MODE>(sums, params, cut, shared, stage, parity);
        trace(layer, 5);
#pragma unroll
        for (int box = 0; box < BOXES; ++box)
            finish_own<T, ROW_BLOCKS, MODE>(layer, (cut.first_tile + i * cut.tile_step) * BOXES + box, sums[box], shared.factors);
    }
    trace(layer, 7);
}

template <class T, int ROW_BLOCKS, Mode MODE>
__device__ __forceinline__ void wide_linear(const WideLinearParams& params) {
    const WideCut cut(params.layer);
    const WideShared<ROW_BLOCKS, MODE> shared(params);
    trace(params.layer, 0);
    grid_dependency_launch();
    if (threadIdx.x == 0) shared.init_barriers(params.stages);
    if (shares_tiles(MODE)) cluster_arrive();
    block_sync();
    if (threadIdx.x >= THREADS) {
        if (lane_id() == 0) WideProducer<ROW_BLOCKS, MODE>(params, cut, shared).run();
        warp_sync();
        if (!shares_tiles(MODE)) return;
        cluster_wait();
        cluster_arrive();
    } else if constexpr (shares_tiles(MODE)) {
        multiply_shared<T, ROW_BLOCKS, MODE>(params, cut, shared);
    } else {
        multiply_own<T, ROW_BLOCKS, MODE>(params, cut, shared);
    }
    if (shares_tiles(MODE)) cluster_wait();  // until the others have received this block's sums
}
