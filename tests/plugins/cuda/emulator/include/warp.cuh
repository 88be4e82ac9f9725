// The emulator's warp.cuh: collectives that run once the last lane has come.
#pragma once

#include "shared.cuh"

constexpr unsigned WARP_SIZE = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

inline unsigned lane_id() { return threadIdx.x % WARP_SIZE; }
inline unsigned warp_id() { return threadIdx.x / WARP_SIZE; }

// Each lane names the lane whose value it gets; one that does not exist gives the lane its own.
template <class T>
T shfl_from(const char* name, T value, int lane) {
    struct In {
        T value;
        int lane;
    };
    return emulator::collective<T>(name, In{value, lane}, [](const In* ins, T* outs, unsigned lanes) {
        for (unsigned i = 0; i < lanes; ++i) {
            const unsigned from = static_cast<unsigned>(ins[i].lane);
            outs[i] = ins[from < lanes ? from : i].value;
        }
    });
}

template <class T>
T shfl_xor(T value, int lane_mask) {
    return shfl_from("shfl_xor", value, int(emulator::current->lane) ^ lane_mask);
}

template <class T>
T shfl(T value, int lane) {
    return shfl_from("shfl", value, lane % 32);
}

template <class T>
T shfl_up(T value, unsigned delta) {
    return shfl_from("shfl_up", value, int(emulator::current->lane) - int(delta));
}

inline unsigned warp_ballot(bool predicate) {
    return emulator::collective<unsigned>("warp_ballot", predicate, [](const bool* ins, unsigned* outs, unsigned lanes) {
        unsigned bits = 0;
        for (unsigned i = 0; i < lanes; ++i) bits |= unsigned(ins[i]) << i;
        for (unsigned i = 0; i < lanes; ++i) outs[i] = bits;
    });
}

inline void warp_sync() {
    emulator::collective<char>("warp_sync", char(0), [](const char*, char* outs, unsigned lanes) {
        for (unsigned i = 0; i < lanes; ++i) outs[i] = 0;
    });
}

inline float warp_sum(float value) {
    for (int mask = 16; mask > 0; mask /= 2) value += shfl_xor(value, mask);
    return value;
}

inline float warp_max(float value) {
    for (int mask = 16; mask > 0; mask /= 2) value = fmaxf(value, shfl_xor(value, mask));
    return value;
}

inline unsigned warp_max(unsigned value) {
    for (int mask = 16; mask > 0; mask /= 2) value = std::max(value, shfl_xor(value, mask));
    return value;
}

inline unsigned warp_min(unsigned value) {
    for (int mask = 16; mask > 0; mask /= 2) value = std::min(value, shfl_xor(value, mask));
    return value;
}

inline void block_sync() {
    emulator::barrier_sync("block_sync", 0, emulator::current->block->live);
}

inline void check_named(const char* name, int id, int threads) {
    if (id < 1 || id > 15) emulator::fail("%s: barrier %d is not one of 1 to 15", name, id);
    if (threads < 32 || threads % 32) emulator::fail("%s: %d threads are no whole warps", name, threads);
}

inline const char* named_sync_name(int id) {
    static const char* const names[16] = {"", "named_sync(1)", "named_sync(2)", "named_sync(3)", "named_sync(4)",
        "named_sync(5)", "named_sync(6)", "named_sync(7)", "named_sync(8)", "named_sync(9)", "named_sync(10)",
        "named_sync(11)", "named_sync(12)", "named_sync(13)", "named_sync(14)", "named_sync(15)"};
    return names[id];
}

inline void named_sync(int id, int threads) {
    check_named("named_sync", id, threads);
    emulator::barrier_sync(named_sync_name(id), id, unsigned(threads));
}

inline void named_arrive(int id, int threads) {
    check_named("named_arrive", id, threads);
    emulator::arrive(emulator::current->block->barriers[id], unsigned(threads));
}

inline void __syncthreads() { block_sync(); }
inline void __syncwarp(unsigned = ALL_LANES) { warp_sync(); }
template <class T>
T __shfl_sync(unsigned, T value, int lane) { return shfl(value, lane); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) { return shfl_xor(value, mask); }
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned delta) { return shfl_up(value, delta); }
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned delta) {
    return shfl_from("shfl_down", value, int(emulator::current->lane + delta));
}
inline unsigned __ballot_sync(unsigned, bool predicate) { return warp_ballot(predicate); }
inline bool __any_sync(unsigned, bool predicate) { return warp_ballot(predicate) != 0; }
inline bool __all_sync(unsigned, bool predicate) { return warp_ballot(!predicate) == 0; }
