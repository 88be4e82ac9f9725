// Every thread of a block as a fiber: one runs until it waits for others, then the next. What waits has a name, so that
// a deadlock is an error that says who waits for what.
#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <tuple>
#include <vector>

namespace emulator {

struct uint3 {
    unsigned x, y, z;
};

// Where one collective of a warp (or a named barrier) is: who has come, and what they brought and get.
struct Meeting {
    const char* name = nullptr;
    unsigned arrived = 0;
    unsigned generation = 0;
};

struct Copy {
    void* target;
    const void* source;
    unsigned bytes;
    bool valid;
    void* barrier;
};

struct Warp {
    Meeting meeting;
    unsigned size = 0;
    alignas(16) unsigned char brought[32][32];
    alignas(16) unsigned char given[32][32];
};

struct Block {
    uint3 block_index;
    std::vector<Warp> warps;
    Meeting barriers[16];
    unsigned live = 0;
    unsigned char* shared = nullptr;
    std::vector<Copy> bulk_copies;
    Block* cluster = nullptr;  // the first block of this one's cluster, which has its barrier
    Meeting cluster_barrier;
};

struct Fiber {
    void* stack_pointer = nullptr;
    uint3 thread_index;
    unsigned lane = 0;
    Block* block = nullptr;
    Warp* warp = nullptr;
    bool done = false;
    const char* waits_for = nullptr;
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open_group;
    unsigned cluster_generation = 0;  // of the barrier, when this thread arrived
};

inline Fiber* current = nullptr;
inline uint3 block_size, grid_size;
inline unsigned shared_bytes = 0;
inline bool cooperative = false;
inline unsigned cluster_blocks = 1;
// Grows whenever something happens that another fiber may wait for.
inline unsigned long long progress = 0;

// Give up with a message; never returns to the kernel.
[[noreturn]] void fail(const char* format, ...);

// Let the other fibers run.
void yield();

template <class Condition>
void wait_until(const char* name, Condition condition) {
    while (!condition()) {
        current->waits_for = name;
        yield();
    }
    current->waits_for = nullptr;
    ++progress;
}

// One turn of a spin loop that the kernel wrote; such names begin with *.
inline void poll(const char* name) {
    current->waits_for = name;
    yield();
    current->waits_for = nullptr;
}

inline void check_shared(const char* name, const void* address, unsigned bytes, unsigned alignment) {
    const auto offset = static_cast<const unsigned char*>(address) - current->block->shared;
    if (offset < 0 || offset + static_cast<ptrdiff_t>(bytes) > static_cast<ptrdiff_t>(shared_bytes))
        fail("%s: %u bytes at offset %td of %u bytes of shared memory", name, bytes, offset, shared_bytes);
    if (offset % alignment) fail("%s: offset %td of shared memory is no multiple of %u", name, offset, alignment);
}

inline void check_global(const char* name, const void* address, unsigned alignment) {
    if (reinterpret_cast<uintptr_t>(address) % alignment) fail("%s: address %p is no multiple of %u", name, address, alignment);
}

// What all lanes of a warp do together: each brings `in`, and once all have come, `execute(ins, outs, lanes)` runs once.
template <class Out, class In, class Execute>
Out collective(const char* name, const In& in, Execute execute) {
    Warp& warp = *current->warp;
    static_assert(sizeof(In) <= 32 && sizeof(Out) <= 32);
    if (warp.meeting.arrived && std::strcmp(warp.meeting.name, name))
        fail("lanes of one warp are in %s and in %s at once", warp.meeting.name, name);
    warp.meeting.name = name;
    std::memcpy(warp.brought[current->lane], &in, sizeof(In));
    const unsigned generation = warp.meeting.generation;
    if (++warp.meeting.arrived == warp.size) {
        In ins[32];
        Out outs[32];
        for (unsigned lane = 0; lane < warp.size; ++lane) std::memcpy(&ins[lane], warp.brought[lane], sizeof(In));
        execute(ins, outs, warp.size);
        for (unsigned lane = 0; lane < warp.size; ++lane) std::memcpy(warp.given[lane], &outs[lane], sizeof(Out));
        warp.meeting.arrived = 0;
        ++warp.meeting.generation;
    }
    wait_until(name, [&] { return warp.meeting.generation != generation; });
    Out out;
    std::memcpy(&out, warp.given[current->lane], sizeof(Out));
    return out;
}

// Arrive at a barrier of `threads` threads of the block.
inline void arrive(Meeting& barrier, unsigned threads) {
    ++progress;
    if (++barrier.arrived < threads) return;
    barrier.arrived = 0;
    ++barrier.generation;
}

inline void barrier_sync(const char* name, int id, unsigned threads) {
    Meeting& barrier = current->block->barriers[id];
    const unsigned generation = barrier.generation;
    arrive(barrier, threads);
    wait_until(name, [&] { return barrier.generation != generation; });
}

// Launch `call(params)` as a grid; returns 0, or 1 with the reason in `message`.
int run(void (*call)(const void*), const void* params, const unsigned* grid, const unsigned* block, unsigned shared,
        int is_cooperative, unsigned cluster, int reverse, char* message, size_t message_bytes);

template <class Params>
void call(void (*kernel)(Params), const void* params) {
    kernel(*static_cast<const Params*>(params));
}

// A kernel of several arguments: `params` are their addresses, in order, as cuLaunchKernel takes them.
template <class First, class Second, class... Rest>
void call(void (*kernel)(First, Second, Rest...), const void* params) {
    const void* const* arguments = static_cast<const void* const*>(params);
    int next = 0;
    // Braces are evaluated from left to right.
    std::tuple<First, Second, Rest...> values{*static_cast<const First*>(arguments[next++]),
                                              *static_cast<const Second*>(arguments[next++]),
                                              *static_cast<const Rest*>(arguments[next++])...};
    std::apply(kernel, values);
}

}  // namespace emulator

#define EMULATED_ENTRY(kernel)                                                                                      \
    extern "C" int emulate_##kernel(const void* params, const unsigned* grid, const unsigned* block,                \
                                    unsigned shared, int cooperative, unsigned cluster, int reverse, char* message, \
                                    size_t bytes) {                                                                 \
        return emulator::run([](const void* p) { emulator::call(&kernel, p); }, params, grid, block, shared,        \
                             cooperative, cluster, reverse, message, bytes);                                        \
    }
