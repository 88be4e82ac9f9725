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

inline void write_peer(const char* name, PeerPointer to, PeerPointer barrier, const void* source, unsigned bytes) {
    const auto offset = to.address - to.block->shared;
    if (offset < 0 || offset + bytes > emulator::shared_bytes || to.block != barrier.block)
        emulator::fail("%s: %u bytes at offset %td of %u bytes of shared memory", name, bytes, offset, emulator::shared_bytes);
    std::memcpy(to.address, source, bytes);
    auto* state = reinterpret_cast<emulator::MbarrierState*>(barrier.address);
    if (state->count == 0x7fff || !state->initialised) emulator::fail("%s: the mbarrier was not initialised", name);
    state->bytes -= int(bytes);
    emulator::end_phase_if_complete(*state);
}

inline void store_peer8(PeerPointer to, PeerPointer barrier, float2 value) {
    if ((to.address - to.block->shared) % 8) emulator::fail("store_peer8: an address that is no multiple of 8");
    write_peer("store_peer8", to, barrier, &value, 8);
}

inline void copy_peer_bulk(PeerPointer to, const void* shared, unsigned bytes, PeerPointer barrier) {
    emulator::check_shared("copy_peer_bulk", shared, bytes, 16);
    if (bytes % 16 || (to.address - to.block->shared) % 16) emulator::fail("copy_peer_bulk: no multiple of 16");
    write_peer("copy_peer_bulk", to, barrier, shared, bytes);
}
