// A linear layer over few rows, as linear.cuh's, where its weights take longer than anything else: a stream of boxes of
// weights through the tensor copy engine to wgmma.
//
// A tile is 128 outputs, 64 for each of two warpgroups; the blocks of a cluster take other columns of the same tile. Weights
// are operand A, rows of x operand B, so a row is computed alike whatever the others are. A stage of the ring is 64 columns:
// the tile's weights and all rows of x, which are read again for each tile: a quarter of the weights' bytes at 32 rows,
// from L2. One warp asks for boxes, eight multiply. The tensor map deals outputs so that pair_of's pairs are rows i and
// i + 8 of 16, as in linear.cuh.
//
// The ring is filled, and some more weights are brought to L2, before the kernel waits for the one before it. Its blocks
// leave room for as many of the next kernel, whose ring fills while this one's sums are finished: where this is not so,
// memory rests in every launch.
//
// The cluster's sums meet in shared memory where the ring was: a block finishes its share of the rows, adding in a fixed
// order, so that a warp has all that norms of heads and of rows need.
// 9 warps. Shared memory: see WideShared.
#pragma once

#include "epilogue.cuh"
#include "tensor_copy.cuh"
#include "trace.cuh"
#include "wgmma.cuh"

constexpr int WIDE_OUTPUTS = 128, WIDE_PAIRS = WIDE_OUTPUTS / 2;
constexpr int WIDE_COLUMNS = 64;  // of a stage
constexpr int WIDE_THREADS = THREADS + 32;
constexpr unsigned WIDE_WEIGHT_BYTES = WIDE_OUTPUTS * WGMMA_ROW_BYTES;
constexpr int WIDE_PITCH = WIDE_OUTPUTS + 4;  // floats of a row's sums: low outputs, then high ones
constexpr int WIDE_MOST_STAGES = 8;
constexpr int CONSUMERS = 1;  // their named barrier

struct WideLinearParams {
    TensorMap weight;         // (columns, 8, 2, groups, heads): see wide.py
    TensorMap x;              // (columns, R, parts)
    TensorMap next;           // GATED weights of the launch after this one
    LayerLinearParams layer;  // x and weight are not read
    int stages;
    int ahead;                // stages of weights brought to L2 beyond the ring
    int next_tiles;
    int next_stages;          // of each of them that are brought to L2 as well; 0: there is no such launch
    int apart;                // the cluster's sums are not where the ring was
    int unused[11];
};
static_assert(sizeof(WideLinearParams) == 3 * 128 + sizeof(LayerLinearParams) + 64, "mirrored in params.py");

// A block's part of the layer.
struct WideCut {
    int cluster, rank;
    int first_chunk, num_chunks;           // of WIDE_COLUMNS
    int first_tile, tile_step, num_tiles;  // one tile where the cluster has several blocks
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

// ring | sums | factors | barriers; a cluster's blocks have both kinds of sums where the ring was. layout.py has the same.
template <int ROW_BLOCKS>
struct WideShared {
    static constexpr int ROWS = 8 * ROW_BLOCKS;
    unsigned stage_bytes;
    unsigned char* ring;  // (stages, weights | x)
    float* staged;        // (ROWS, WIDE_PITCH), this block's
    float* received;      // (cluster, ROWS / cluster, WIDE_PITCH), of the rows that it finishes
    float* factors;       // (ROWS,)
    Mbarrier* full;       // of a stage, for the warps that multiply
    Mbarrier* empty;      // of a stage, for the one that asks
    Mbarrier* handed_over;

    __device__ WideShared(const WideLinearParams& params, const WideCut& cut) {
        stage_bytes = WIDE_WEIGHT_BYTES + params.layer.parts * ROWS * WGMMA_ROW_BYTES;
        ring = shared_memory();
        unsigned char* after = ring + params.stages * stage_bytes;
        staged = reinterpret_cast<float*>(cut.cluster > 1 ? ring : after);
        const bool apart = cut.cluster == 1 || params.apart;
        received = reinterpret_cast<float*>(apart ? after : ring + ROWS * WIDE_PITCH * sizeof(float));
        if (apart) after += ROWS * WIDE_PITCH * sizeof(float);
        factors = reinterpret_cast<float*>(after);
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
template <int ROW_BLOCKS>
struct WideProducer {
    const WideLinearParams& params;
    const WideCut& cut;
    const WideShared<ROW_BLOCKS>& shared;
    int head_shift;  // groups of 16 outputs that a dimension of the weights' map has, a power of two

    __device__ WideProducer(const WideLinearParams& params, const WideCut& cut, const WideShared<ROW_BLOCKS>& shared)
        : params(params), cut(cut), shared(shared) {
        head_shift = params.layer.mode == QKV ? log2(params.layer.head_dim / 16) : 30;
    }

    __device__ int column(const WideUnit& unit) const { return (cut.first_chunk + unit.chunk) * WIDE_COLUMNS; }

    __device__ BoxCorner weights(const WideUnit& unit) const {
        const int group = unit.tile * (WIDE_PAIRS / 8);
        return {{column(unit), 0, 0, group & ((1 << head_shift) - 1), group >> head_shift}};
    }

    __device__ void ask_weights(const WideUnit& unit, int stage) const {
        mbarrier_arrive_expect(shared.full + stage, shared.stage_bytes);
        copy_box(shared.ring + stage * shared.stage_bytes, &params.weight, weights(unit), shared.full + stage);
    }

    __device__ void ask_x(const WideUnit& unit, int stage) const {
        copy_box(shared.ring + stage * shared.stage_bytes + WIDE_WEIGHT_BYTES, &params.x, {{column(unit), 0, 0, 0, 0}},
                 shared.full + stage);
    }

    __device__ void prefetch_next() const {
#pragma unroll 1
        for (int stage = 0; stage < params.next_stages; ++stage)
            for (int tile = static_cast<int>(blockIdx.x); tile < params.next_tiles; tile += static_cast<int>(gridDim.x))
                prefetch_box(&params.next, {{stage * WIDE_COLUMNS, 0, 0, tile * (WIDE_PAIRS / 8), 0}});
    }

    __device__ void run() const {
        const int units = cut.num_tiles * cut.num_chunks, at_first = min(params.stages, units);
        WideUnit unit = {cut.first_tile, 0}, ahead = unit;
#pragma unroll 1
        for (int i = 0; i < at_first; ++i, ahead.advance(cut)) ask_weights(ahead, i);
#pragma unroll 1
        for (int i = at_first; i < min(units, at_first + params.ahead); ++i, ahead.advance(cut))
            prefetch_box(&params.weight, weights(ahead));
        prefetch_next();
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
template <class T, int ROW_BLOCKS>
__device__ __forceinline__ void multiply_wide(
    float (&sums)[ROW_BLOCKS][4], const WideLinearParams& params, const WideCut& cut, const WideShared<ROW_BLOCKS>& shared,
    int& stage, unsigned& parity) {
    constexpr unsigned X_BYTES = 8 * ROW_BLOCKS * WGMMA_ROW_BYTES, STEP_BYTES = 32;
    const unsigned first = warp_id() / 4 * (WIDE_WEIGHT_BYTES / 2);
#pragma unroll 1
    for (int chunk = 0; chunk < cut.num_chunks; ++chunk) {
        mbarrier_wait(shared.full + stage, parity);
        const unsigned char* ring = shared.ring + stage * shared.stage_bytes;
        const unsigned long long a = wgmma_descriptor(ring + first), b = wgmma_descriptor(ring + WIDE_WEIGHT_BYTES);
        wgmma_hold(sums);
        wgmma_fence();
#pragma unroll 1
        for (int part = 0; part < params.layer.parts; ++part) {
            const unsigned long long x = wgmma_advance(b, part * X_BYTES);
#pragma unroll
            for (int step = 0; step < WIDE_COLUMNS / 16; ++step)
                wgmma_rows<T, ROW_BLOCKS>(sums, wgmma_advance(a, step * STEP_BYTES), wgmma_advance(x, step * STEP_BYTES), true);
        }
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_hold(sums);
        if (lane_id() == 0) mbarrier_arrive(shared.empty + stage);
        if (++stage == params.stages) stage = 0, parity ^= 1;
    }
}

template <int ROW_BLOCKS>
__device__ __forceinline__ void stage_wide_sums(const float (&sums)[ROW_BLOCKS][4], float* staged) {
    const int lane = static_cast<int>(lane_id());
    float* target = staged + lane % 4 * 2 * WIDE_PITCH + warp_id() * 8 + lane / 4;
#pragma unroll
    for (int block = 0; block < ROW_BLOCKS; ++block)
#pragma unroll
        for (int i = 0; i < 4; ++i) target[(8 * block + i % 2) * WIDE_PITCH + i / 2 * WIDE_PAIRS] = sums[block][i];
}

// Have the rows' sums of this block where its warps finish them: in a cluster all blocks', each of its share of the rows.
template <int ROW_BLOCKS>
__device__ __forceinline__ void hand_over_wide(
    const float (&sums)[ROW_BLOCKS][4], const WideCut& cut, const WideShared<ROW_BLOCKS>& shared, int apart) {
    constexpr int ROWS = 8 * ROW_BLOCKS;
    named_sync(CONSUMERS, THREADS);  // the last sums have been read; in a cluster, the ring
    stage_wide_sums<ROW_BLOCKS>(sums, shared.staged);
    if (cut.cluster > 1) bulk_copy_fence();
    named_sync(CONSUMERS, THREADS);
    if (cut.cluster == 1) return;
    const int share = ROWS / cut.cluster * WIDE_PITCH;
    const unsigned bytes = share * sizeof(float);
    if (threadIdx.x == 0) mbarrier_arrive_expect(shared.handed_over, cut.cluster * bytes);
    if (!apart) cluster_arrive();
    cluster_wait();  // until all rings have been read
    if (static_cast<int>(threadIdx.x) < cut.cluster)
        copy_peer_bulk(peer_pointer(shared.received + cut.rank * share, threadIdx.x), shared.staged + threadIdx.x * share,
                       bytes, peer_pointer(shared.handed_over, threadIdx.x));
    mbarrier_wait(shared.handed_over, 0);
    cluster_arrive();  // what others have copied from is no longer needed
}

// A lane's two items of a row: pairs `lane` and `lane` + 32 of a tile.
template <class T>
struct WideItems {
    Item<T> items[2];

    __device__ void describe(const LayerLinearParams& layer, int tile, int row) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            Item<T>& item = items[i];
            item.local = static_cast<int>(lane_id()) + 32 * i;
            item.row = item.at_row = row;
            item.outputs = pair_of(layer, tile * WIDE_PAIRS + item.local);
            item.is_real = row < layer.rows && item.outputs.low >= 0;
            item.describe_outputs(layer);
        }
    }

    __device__ void load(const LayerLinearParams& layer) {
        items[0].load(layer);
        items[1].load(layer);
    }

    // `sums` are a row's first part; the others are part_floats further, each.
    __device__ void finish(const LayerLinearParams& layer, const float* sums, int parts, int part_floats, float factor, int tile) {
        float2 sum[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) sum[i] = add_up(layer, items[i], sums, parts, part_floats, factor);
        if (layer.q_norm != nullptr) norm_heads(layer, sum);
        const float scale = SCALES_ROWS<T> && layer.mode == RESIDUAL ? factor : 1;
        float squares = 0;
#pragma unroll
        for (int i = 0; i < 2; ++i)
            if (items[i].is_real) squares += items[i].finish(layer, sum[i].x, sum[i].y, scale);
        if (layer.mode != RESIDUAL) return;
        squares = warp_sum(squares);
        if (lane_id() == 0) layer.squares_out[items[0].at_row * layer.tiles + tile] = squares;
    }

    __device__ static float2 add_up(
        const LayerLinearParams& layer, const Item<T>& item, const float* sums, int parts, int part_floats, float factor) {
        float low = 0, high = 0;
        if (!item.is_real) return {0, 0};
#pragma unroll 4
        for (int part = 0; part < parts; ++part) {
            low += sums[part * part_floats + item.local];
            high += sums[part * part_floats + item.local + WIDE_PAIRS];
        }
        if (layer.squares != nullptr && layer.mode != RESIDUAL) {
            low *= factor;
            high *= factor;
        }
        if (layer.bias != nullptr) {
            low += to_float(static_cast<const T*>(layer.bias)[item.outputs.low]);
            high += to_float(static_cast<const T*>(layer.bias)[item.outputs.high]);
        }
        return make_float2(low, high);
    }

    // A tile is one head of 128 dimensions, or two of 64.
    __device__ void norm_heads(const LayerLinearParams& layer, float2 (&sum)[2]) const {
        float squares[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) squares[i] = warp_sum(sum[i].x * sum[i].x + sum[i].y * sum[i].y);
        if (layer.head_dim == WIDE_OUTPUTS) squares[0] = squares[1] = squares[0] + squares[1];
#pragma unroll
        for (int i = 0; i < 2; ++i)
            if (items[i].is_real) items[i].norm_by(layer, squares[i], sum[i].x, sum[i].y);
    }

    __device__ int largest() const { return max(items[0].largest(), items[1].largest()); }
};

// A warp's rows of the block's share. `ahead` has been loaded for its first row of the first tile.
template <class T, int ROW_BLOCKS>
__device__ __forceinline__ void finish_wide(
    const LayerLinearParams& layer, const WideCut& cut, const WideShared<ROW_BLOCKS>& shared, int tile, const WideItems<T>& ahead) {
    const int share = 8 * ROW_BLOCKS / cut.cluster, warp = static_cast<int>(warp_id());
#pragma unroll 1
    for (int local = warp; local < share; local += WARPS) {
        const int row = cut.rank * share + local;
        if (row >= layer.rows) return;
        WideItems<T> items = ahead;
        if (local != warp || tile != cut.first_tile) {
            items.describe(layer, tile, row);
            items.load(layer);
        }
        items.finish(layer, shared.received + local * WIDE_PITCH, cut.cluster, share * WIDE_PITCH, shared.factors[row], tile);
    }
}

template <class T, int ROW_BLOCKS>
__device__ __forceinline__ void multiply_and_finish(
    const WideLinearParams& params, const WideCut& cut, const WideShared<ROW_BLOCKS>& shared) {
    const LayerLinearParams& layer = params.layer;
    WideItems<T> ahead;
    ahead.describe(layer, cut.first_tile, cut.rank * (8 * ROW_BLOCKS / cut.cluster) + static_cast<int>(warp_id()));
    Factors<T, WideCut> factors(layer, cut);
    trace(layer, 1);
    grid_dependency_wait_after(ahead.largest());
    trace(layer, 2);
    if (layer.squares != nullptr) factors.begin();
    ahead.load(layer);
    if (layer.squares != nullptr) factors.finish(shared.factors);
    trace(layer, 3);
    int stage = 0;
    unsigned parity = 0;
#pragma unroll 1
    for (int i = 0; i < cut.num_tiles; ++i) {
        const int tile = cut.first_tile + i * cut.tile_step;
        float sums[ROW_BLOCKS][4] = {};
        multiply_wide<T, ROW_BLOCKS>(sums, params, cut, shared, stage, parity);
        trace(layer, 5);
        hand_over_wide<ROW_BLOCKS>(sums, cut, shared, params.apart);
        trace(layer, 6);
        finish_wide<T, ROW_BLOCKS>(layer, cut, shared, tile, ahead);
    }
    trace(layer, 7);
}

template <class T, int ROW_BLOCKS>
__device__ __forceinline__ void wide_linear(const WideLinearParams& params) {
    const WideCut cut(params.layer);
    const WideShared<ROW_BLOCKS> shared(params, cut);
    trace(params.layer, 0);
    grid_dependency_launch();
    if (threadIdx.x == 0) shared.init_barriers(params.stages);
    if (cut.cluster > 1 && params.apart) cluster_arrive();
    block_sync();
    if (threadIdx.x < THREADS) {
        multiply_and_finish<T, ROW_BLOCKS>(params, cut, shared);
    } else {
        if (lane_id() == 0) WideProducer<ROW_BLOCKS>(params, cut, shared).run();
        warp_sync();
        if (cut.cluster == 1) return;
        if (!params.apart) cluster_arrive();
        cluster_wait();
        cluster_arrive();
    }
    if (cut.cluster > 1) cluster_wait();
}
