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

inline unsigned long long load_relaxed_word(const unsigned long long* global) { return *global; }

inline ulonglong2 load_relaxed_words(const unsigned long long* global) {
    emulator::check_global("load_relaxed_words", global, 16);
    return {global[0], global[1]};
}

inline void store_relaxed_word(unsigned long long* global, unsigned long long word) {
    ++emulator::progress;
    *global = word;
}

inline void store_relaxed_words(unsigned long long* global, ulonglong2 words) {
    emulator::check_global("store_relaxed_words", global, 16);
    ++emulator::progress;
    global[0] = words.x;
    global[1] = words.y;
}

inline void spin_pause() { emulator::poll("*spin_pause"); }

inline unsigned increment_wrap(unsigned* global, unsigned last) {
    ++emulator::progress;
    const unsigned old = *global;
    *global = old >= last ? 0 : old + 1;
    return old;
}
