// The emulator's relaxed.cuh: one fiber runs at a time, so plain accesses do; only the pause lets the others run.
#pragma once

#include "element.cuh"

inline unsigned load_relaxed(const unsigned* global) { return *global; }

inline uint2 load_relaxed8(const unsigned* global) {
    emulator::check_global("load_relaxed8", global, 8);
    return *reinterpret_cast<const uint2*>(global);
}

inline uint4 load_relaxed16(const unsigned* global) {
    emulator::check_global("load_relaxed16", global, 16);
    return *reinterpret_cast<const uint4*>(global);
}

inline void store_relaxed(unsigned* global, unsigned value) {
    ++emulator::progress;
    *global = value;
}

inline void spin_pause() { emulator::poll("*spin_pause"); }

inline unsigned increment_wrap(unsigned* global, unsigned last) {
    ++emulator::progress;
    const unsigned old = *global;
    *global = old >= last ? 0 : old + 1;
    return old;
}
