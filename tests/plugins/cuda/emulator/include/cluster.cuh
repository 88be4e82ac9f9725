// The emulator's cluster.cuh: the blocks of a cluster run at the same time.
#pragma once

#include "async_copy.cuh"
#include "warp.cuh"

constexpr bool HAS_CLUSTERS = __CUDA_ARCH__ >= 900;

inline unsigned cluster_size() { return emulator::cluster_blocks; }

inline unsigned cluster_rank() { return static_cast<unsigned>(emulator::current->block - emulator::current->block->cluster); }

inline void cluster_arrive() {
    emulator::Block& first = *emulator::current->block->cluster;
    emulator::current->cluster_generation = first.cluster_barrier.generation;
    emulator::arrive(first.cluster_barrier, emulator::cluster_blocks * emulator::block_size.x);
}

inline void cluster_wait() {
    const emulator::Block& first = *emulator::current->block->cluster;
    emulator::wait_until(
        "cluster_wait", [&] { return first.cluster_barrier.generation != emulator::current->cluster_generation; });
}

struct PeerPointer {
    unsigned char* address;
    emulator::Block* block;

    PeerPointer operator+(int bytes) const { return {address + bytes, block}; }
};

inline PeerPointer peer_pointer(void* shared, unsigned rank) {
    if (rank >= emulator::cluster_blocks) emulator::fail("peer_pointer: block %u of a cluster of %u", rank, emulator::cluster_blocks);
    emulator::Block* block = emulator::current->block->cluster + rank;
    return {block->shared + (static_cast<unsigned char*>(shared) - shared_memory()), block};
}

inline void store_peer8(PeerPointer to, PeerPointer barrier, float2 value) {
    const auto offset = to.address - to.block->shared;
    if (offset < 0 || offset + 8 > emulator::shared_bytes || offset % 8 || to.block != barrier.block)
        emulator::fail("store_peer8: 8 bytes at offset %td of %u bytes of shared memory", offset, emulator::shared_bytes);
    std::memcpy(to.address, &value, 8);
    auto* state = reinterpret_cast<emulator::MbarrierState*>(barrier.address);
    if (state->count == 0x7fff || !state->initialised) emulator::fail("store_peer8: the mbarrier was not initialised");
    state->bytes -= 8;
    emulator::end_phase_if_complete(*state);
}
