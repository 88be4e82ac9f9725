// The emulator's grid.cuh: one fiber runs at a time, so plain accesses are in order; a poll lets the others run.
#pragma once

#include "warp.cuh"

inline void grid_dependency_wait() {}
inline void grid_dependency_wait_after(int) {}
inline void grid_dependency_launch() {}

inline unsigned load_acquire(const unsigned* global) {
    emulator::poll("*load_acquire");
    return *global;
}

inline unsigned add_release(unsigned* global, unsigned value) {
    ++emulator::progress;
    const unsigned old = *global;
    *global += value;
    return old;
}

inline unsigned add_acquire_release(unsigned* global, unsigned value) {
    return add_release(global, value);
}

inline void grid_barrier(unsigned* counter, unsigned num_blocks) {
    block_sync();
    if (threadIdx.x == 0) {
        const unsigned addend = blockIdx.x + blockIdx.y + blockIdx.z == 0 ? 0x80000000u - (num_blocks - 1) : 1u;
        const unsigned old = add_release(counter, addend);
        emulator::wait_until("grid_barrier", [&] { return ((*counter ^ old) & 0x80000000u) != 0; });
    }
    block_sync();
}
