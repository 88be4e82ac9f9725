// The emulator's cluster.cuh: the blocks of a cluster run at the same time.
#pragma once

#include "warp.cuh"

constexpr bool HAS_CLUSTERS = __CUDA_ARCH__ >= 900;

inline unsigned cluster_size() { return emulator::cluster_blocks; }

inline unsigned cluster_rank() { return static_cast<unsigned>(emulator::current->block - emulator::current->block->cluster); }

inline void cluster_arrive() {
    emulator::Block& first = *emulator::current->block->cluster;
    emulator::current->cluster_generation = first.cluster_barrier.generation;
    emulator::arrive(first.cluster_barrier, emulator::cluster_blocks * emulator::block_size.x);
}

inline void cluster_arrive_relaxed() { cluster_arrive(); }

inline void cluster_wait() {
    const emulator::Block& first = *emulator::current->block->cluster;
    emulator::wait_until(
        "cluster_wait", [&] { return first.cluster_barrier.generation != emulator::current->cluster_generation; });
}

inline void store_peer8(void* shared, unsigned rank, float2 value) {
    emulator::check_shared("store_peer8", shared, 8, 8);
    if (rank >= emulator::cluster_blocks) emulator::fail("store_peer8: block %u of a cluster of %u", rank, emulator::cluster_blocks);
    const auto offset = static_cast<unsigned char*>(shared) - shared_memory();
    std::memcpy(emulator::current->block->cluster[rank].shared + offset, &value, 8);
}
