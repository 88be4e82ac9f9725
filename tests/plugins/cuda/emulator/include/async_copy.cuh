// The emulator's async_copy.cuh. A copy takes place at the wait that it needs; until then its target is poison, so that a
// kernel that reads too early computes NaN.
#pragma once

#include "shared.cuh"

constexpr bool HAS_BULK_COPY = __CUDA_ARCH__ >= 900;

namespace emulator {

inline void carry_out(const Copy& copy) {
    if (copy.valid) std::memcpy(copy.target, copy.source, copy.bytes);
    else std::memset(copy.target, 0, copy.bytes);
}

inline void begin_copy(void* shared, const void* global, bool valid) {
    check_shared("copy_async16", shared, 16, 16);
    if (valid) check_global("copy_async16", global, 16);
    std::memset(shared, 0xff, 16);
    current->open_group.push_back({shared, global, 16, valid, nullptr});
}

inline void finish_groups(size_t left) {
    auto& groups = current->groups;
    while (groups.size() > left) {
        for (const Copy& copy : groups.front()) carry_out(copy);
        groups.erase(groups.begin());
    }
}

// The 64 bits of an Mbarrier.
struct MbarrierState {
    unsigned count : 15, pending : 15, phase : 1, initialised : 1;
    int bytes;
};
static_assert(sizeof(MbarrierState) == 8);

inline MbarrierState& state_of(const char* name, void* barrier) {
    check_shared(name, barrier, 8, 8);
    auto& state = *static_cast<MbarrierState*>(barrier);
    // Poison has all bits set; a count of 2^15 - 1 is refused at initialisation.
    if (state.count == 0x7fff || !state.initialised) fail("%s: the mbarrier was not initialised", name);
    return state;
}

inline void end_phase_if_complete(MbarrierState& state) {
    if (state.pending || state.bytes) return;
    state.phase ^= 1;
    state.pending = state.count;
    ++progress;
}

inline void mbarrier_count_down(const char* name, void* barrier, unsigned bytes) {
    auto& state = state_of(name, barrier);
    if (state.pending == 0) fail("%s: more arrivals than the %u of a phase", name, state.count);
    state.bytes += int(bytes);
    --state.pending;
    end_phase_if_complete(state);
}

inline void finish_bulk_copies(void* barrier) {
    auto& copies = current->block->bulk_copies;
    for (size_t i = 0; i < copies.size();) {
        if (copies[i].barrier != barrier) {
            ++i;
            continue;
        }
        const Copy copy = copies[i];
        copies.erase(copies.begin() + static_cast<ptrdiff_t>(i));
        carry_out(copy);
        auto& state = state_of("copy_bulk", barrier);
        state.bytes -= int(copy.bytes);
        end_phase_if_complete(state);
    }
}

}  // namespace emulator

inline void copy_async16(void* shared, const void* global) { emulator::begin_copy(shared, global, true); }
inline void copy_async16_or_zero(void* shared, const void* global, bool valid) {
    emulator::begin_copy(shared, global, valid);
}

inline void copy_async_commit() {
    emulator::current->groups.push_back(std::move(emulator::current->open_group));
    emulator::current->open_group.clear();
}

template <int N>
void copy_async_wait() {
    emulator::finish_groups(N);
}

struct Mbarrier {
    unsigned long long state;
};

inline void mbarrier_init(Mbarrier* barrier, unsigned count) {
    emulator::check_shared("mbarrier_init", barrier, 8, 8);
    if (count < 1 || count >= 0x7fff) emulator::fail("mbarrier_init: a count of %u", count);
    const emulator::MbarrierState state = {count, count, 0, 1, 0};
    std::memcpy(barrier, &state, sizeof state);
}

inline void mbarrier_arrive(Mbarrier* barrier) { emulator::mbarrier_count_down("mbarrier_arrive", barrier, 0); }

inline void mbarrier_arrive_expect(Mbarrier* barrier, unsigned bytes) {
    if (!HAS_BULK_COPY) emulator::fail("mbarrier_arrive_expect needs sm_90");
    emulator::mbarrier_count_down("mbarrier_arrive_expect", barrier, bytes);
}

inline bool mbarrier_is_past(Mbarrier* barrier, unsigned parity) {
    emulator::finish_bulk_copies(barrier);
    return emulator::state_of("mbarrier_wait", barrier).phase != (parity & 1);
}

inline bool mbarrier_test(Mbarrier* barrier, unsigned parity) {
    const bool past = mbarrier_is_past(barrier, parity);
    if (!past) emulator::poll("*mbarrier_test");
    return past;
}

inline void mbarrier_wait(Mbarrier* barrier, unsigned parity) {
    emulator::wait_until("mbarrier_wait", [&] { return mbarrier_is_past(barrier, parity); });
}

inline void copy_async_arrive(Mbarrier* barrier) {
    emulator::finish_groups(0);
    for (const auto& copy : emulator::current->open_group) emulator::carry_out(copy);
    emulator::current->open_group.clear();
    emulator::mbarrier_count_down("copy_async_arrive", barrier, 0);
}

inline void copy_bulk(void* shared, const void* global, unsigned bytes, Mbarrier* barrier) {
    if (!HAS_BULK_COPY) emulator::fail("copy_bulk needs sm_90");
    emulator::check_shared("copy_bulk", shared, bytes, 16);
    emulator::check_global("copy_bulk", global, 16);
    if (bytes == 0 || bytes % 16) emulator::fail("copy_bulk: %u bytes are no multiple of 16", bytes);
    emulator::state_of("copy_bulk", barrier);
    std::memset(shared, 0xff, bytes);
    emulator::current->block->bulk_copies.push_back({shared, global, bytes, true, barrier});
}

inline void copy_bulk_stream(void* shared, const void* global, unsigned bytes, Mbarrier* barrier) {
    copy_bulk(shared, global, bytes, barrier);
}

inline void bulk_copy_fence() {}
inline void prefetch_l2(const void*) {}
inline void prefetch_l2_bulk(const void* global, unsigned bytes) {
    emulator::check_global("prefetch_l2_bulk", global, 16);
    if (bytes % 16) emulator::fail("prefetch_l2_bulk: %u bytes are no multiple of 16", bytes);
}
