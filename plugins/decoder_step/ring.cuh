// The weight ring: stages of TILE_ROWS rows x CHUNK columns in shared memory that one warp fills and eight empty.
// Weights are constants, so the filling warp never waits for other blocks: while the consumers wait for the results of
// a phase, the weights of the next one arrive. L2 is told to drop them first: what blocks hand each other was emptied a
// step ago, and would otherwise have to be fetched from memory in every phase.
#pragma once

#include "async_copy.cuh"
#include "element.cuh"
#include "shape.cuh"
#include "warp.cuh"

constexpr int STAGE_PITCH = row_pitch(CHUNK);
constexpr int STAGE_BYTES = TILE_ROWS * STAGE_PITCH;

struct Ring {
    char* stages;
    Mbarrier* full;
    Mbarrier* empty;
};

// Where a warp is in the ring; the two sides advance through the same sequence of stages.
struct RingCursor {
    int stage = 0;
    unsigned parity = 0;

    __device__ void advance() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

__device__ inline void init_ring(const Ring& ring) {
    for (int stage = 0; stage < STAGES; ++stage) {
        mbarrier_init(&ring.full[stage], HAS_BULK_COPY ? 1 : 32);
        mbarrier_init(&ring.empty[stage], CONSUMER_WARPS);
    }
}

// The whole warp: lane r < 16 names row r of the tile. Copies `columns` of each row once the stage is free.
__device__ inline void fill_stage(const Ring& ring, RingCursor& cursor, const bfloat16* row, int columns) {
    Mbarrier* full = &ring.full[cursor.stage];
    char* stage = ring.stages + cursor.stage * STAGE_BYTES;
    const int lane = int(lane_id());
    mbarrier_wait(&ring.empty[cursor.stage], cursor.parity ^ 1);
    if constexpr (HAS_BULK_COPY) {
        if (lane == 0) mbarrier_arrive_expect(full, TILE_ROWS * columns * 2);
        warp_sync();
        if (lane < TILE_ROWS) copy_bulk_stream(stage + lane * STAGE_PITCH, row, columns * 2, full);
    } else {
        for (int tile_row = 0; tile_row < TILE_ROWS; ++tile_row) {
            const bfloat16* source = reinterpret_cast<const bfloat16*>(
                    shfl(reinterpret_cast<unsigned long long>(row), tile_row));
            for (int at = 8 * lane; at < columns; at += 8 * 32)
                copy_async16(stage + tile_row * STAGE_PITCH + at * 2, source + at);
        }
        copy_async_arrive(full);
    }
    cursor.advance();
}

__device__ inline char* await_stage(const Ring& ring, const RingCursor& cursor) {
    mbarrier_wait(&ring.full[cursor.stage], cursor.parity);
    return ring.stages + cursor.stage * STAGE_BYTES;
}

// By every consumer warp, once its last read of the stage is done.
__device__ inline void release_stage(const Ring& ring, RingCursor& cursor) {
    warp_sync();
    if (lane_id() == 0) mbarrier_arrive(&ring.empty[cursor.stage]);
    cursor.advance();
}
