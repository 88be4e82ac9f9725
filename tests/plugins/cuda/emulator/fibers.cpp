// The scheduler of fibers.h: creates a block's fibers, switches between them, and finds deadlocks and stray accesses.
#include "fibers.h"

#include <csignal>
#include <cstdarg>
#include <cstdlib>
#include <sys/mman.h>

namespace emulator {

namespace {

constexpr size_t STACK_BYTES = 256 * 1024;
// Passes over all fibers in which nothing happened but polling, until it counts as a deadlock.
constexpr unsigned MAX_IDLE_PASSES = 20000;
constexpr unsigned char POISON = 0xff;  // a NaN in every element type
constexpr size_t SHARED_SLACK = 1024;

sigjmp_buf give_up;
char* reason;
size_t reason_bytes;
void* scheduler_stack_pointer;
void (*entry)(const void*);
const void* entry_params;

#if defined(__x86_64__)
// Save the callee-saved registers on this stack, store its pointer to *from, go on with the stack `to`.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.globl emulator_switch
.type emulator_switch,@function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");
#else
#error "the emulator's fibers are written for x86-64"
#endif

void leave(Fiber& fiber) {
    Block& block = *fiber.block;
    fiber.done = true;
    --block.live;
    ++progress;
    Meeting& all = block.barriers[0];  // threads that have left are not waited for
    if (block.live && all.arrived == block.live) {
        all.arrived = 0;
        ++all.generation;
    }
}

void fiber_main() {
    entry(entry_params);
    leave(*current);
    yield();
    std::abort();
}

void prepare(Fiber& fiber, unsigned char* stack) {
    void** top = reinterpret_cast<void**>(stack + STACK_BYTES);
    *--top = nullptr;  // keeps the stack aligned as a call leaves it
    *--top = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.stack_pointer = top;
}

void report_deadlock(const std::vector<Fiber*>& fibers) {
    const Fiber* first = nullptr;
    unsigned waiting = 0, live = 0;
    for (const Fiber* fiber : fibers) {
        if (fiber->done) continue;
        ++live;
        if (!first) first = fiber;
        waiting += fiber->waits_for && first->waits_for && !std::strcmp(fiber->waits_for, first->waits_for);
    }
    const uint3 b = first->block->block_index, t = first->thread_index;
    const char* name = first->waits_for ? first->waits_for : "nothing";
    name += *name == '*';
    std::snprintf(reason, reason_bytes,
                  "deadlock at %s: %u of %u live threads (of %zu) wait there, the first is thread (%u, %u, %u) of block "
                  "(%u, %u, %u)%s",
                  name, waiting, live, fibers.size(), t.x, t.y, t.z, b.x, b.y, b.z,
                  !std::strcmp(name, "grid_barrier") && !cooperative ? "; the launch is not cooperative" : "");
}

// Run fibers in turn until all are done; whether they got there.
bool schedule(const std::vector<Fiber*>& fibers) {
    unsigned idle = 0;
    for (size_t live = fibers.size(); live;) {
        const auto before = progress;
        live = 0;
        bool polling = false;
        for (Fiber* fiber : fibers) {
            if (fiber->done) continue;
            current = fiber;
            emulator_switch(&scheduler_stack_pointer, fiber->stack_pointer);
            live += !fiber->done;
            polling = polling || (!fiber->done && fiber->waits_for && fiber->waits_for[0] == '*');
        }
        idle = progress == before ? idle + 1 : 0;
        if (idle > (polling ? MAX_IDLE_PASSES : 1)) {
            report_deadlock(fibers);
            return false;
        }
    }
    return true;
}

void on_fault(int, siginfo_t* info, void*) {
    const uint3 b = current->block->block_index, t = current->thread_index;
    std::snprintf(reason, reason_bytes, "stray access of address %p by thread (%u, %u, %u) of block (%u, %u, %u)",
                  info->si_addr, t.x, t.y, t.z, b.x, b.y, b.z);
    siglongjmp(give_up, 1);
}

// Turns faults of the kernel into an error while it lives.
class FaultHandler {
public:
    FaultHandler() : stack_(std::malloc(64 * 1024)) {
        stack_t own = {};
        own.ss_sp = stack_;
        own.ss_size = 64 * 1024;
        sigaltstack(&own, &old_stack_);
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(SIGSEGV, &action, &old_segv_);
        sigaction(SIGBUS, &action, &old_bus_);
    }
    ~FaultHandler() {
        sigaction(SIGSEGV, &old_segv_, nullptr);
        sigaction(SIGBUS, &old_bus_, nullptr);
        sigaltstack(&old_stack_, nullptr);
        std::free(stack_);
    }

private:
    void* stack_;
    stack_t old_stack_;
    struct sigaction old_segv_, old_bus_;
};

void build_block(Block& block, uint3 index, std::vector<Fiber>& fibers, size_t first, unsigned char* stacks) {
    const unsigned threads = block_size.x * block_size.y * block_size.z;
    block.block_index = index;
    block.live = threads;
    block.warps.resize((threads + 31) / 32);
    block.shared = static_cast<unsigned char*>(std::aligned_alloc(1024, (shared_bytes / 1024 + 2) * 1024));
    std::memset(block.shared, POISON, (shared_bytes / 1024 + 2) * 1024);
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[first + i];
        fiber.thread_index = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
        fiber.block = &block;
        fiber.warp = &block.warps[i / 32];
        fiber.lane = i % 32;
        fiber.warp->size = fiber.lane + 1;
        prepare(fiber, stacks + (first + i) * STACK_BYTES);
    }
}

bool shared_is_intact(const Block& block) {
    for (size_t i = shared_bytes; i < (shared_bytes / 1024 + 2) * 1024; ++i)
        if (block.shared[i] != POISON) {
            std::snprintf(reason, reason_bytes, "block (%u, %u, %u) wrote byte %zu of %u bytes of shared memory",
                          block.block_index.x, block.block_index.y, block.block_index.z, i, shared_bytes);
            return false;
        }
    return true;
}

// Run some blocks at the same time.
bool run_blocks(unsigned first, unsigned count, bool reverse) {
    const unsigned threads = block_size.x * block_size.y * block_size.z;
    std::vector<Block> blocks(count);
    std::vector<Fiber> fibers(size_t(count) * threads);
    const size_t stack_bytes = fibers.size() * STACK_BYTES;
    auto* stacks = static_cast<unsigned char*>(
        mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks == MAP_FAILED) {
        std::snprintf(reason, reason_bytes, "no memory for the stacks of %zu threads", fibers.size());
        return false;
    }
    std::vector<Fiber*> order;
    for (unsigned b = 0; b < count; ++b) {
        const unsigned i = first + b;
        const uint3 index = {i % grid_size.x, i / grid_size.x % grid_size.y, i / (grid_size.x * grid_size.y)};
        build_block(blocks[b], index, fibers, size_t(b) * threads, stacks);
        blocks[b].cluster = &blocks[b / cluster_blocks * cluster_blocks];
    }
    for (Fiber& fiber : fibers) order.push_back(&fiber);
    if (reverse) order = {order.rbegin(), order.rend()};
    volatile bool well = false;  // read after a jump
    if (sigsetjmp(give_up, 1) == 0) {
        well = schedule(order);
        for (const Block& block : blocks) well = well && shared_is_intact(block);
    }
    for (Block& block : blocks) std::free(block.shared);
    munmap(stacks, stack_bytes);
    return well;
}

}  // namespace

void yield() {
    emulator_switch(&current->stack_pointer, scheduler_stack_pointer);
}

void fail(const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    const uint3 b = current->block->block_index, t = current->thread_index;
    std::snprintf(reason, reason_bytes, "%s (thread (%u, %u, %u) of block (%u, %u, %u))", text, t.x, t.y, t.z, b.x, b.y, b.z);
    siglongjmp(give_up, 1);
}

int run(void (*call)(const void*), const void* params, const unsigned* grid, const unsigned* block, unsigned shared,
        int is_cooperative, unsigned cluster, int reverse, char* message, size_t message_bytes) {
    FaultHandler handler;
    entry = call;
    entry_params = params;
    grid_size = {grid[0], grid[1], grid[2]};
    block_size = {block[0], block[1], block[2]};
    shared_bytes = shared;
    cooperative = is_cooperative;
    cluster_blocks = cluster;
    reason = message;
    reason_bytes = message_bytes;
    const unsigned blocks = grid[0] * grid[1] * grid[2];
    const unsigned at_once = is_cooperative ? blocks : cluster;
    if (blocks % cluster) {
        std::snprintf(reason, reason_bytes, "a grid of %u blocks in clusters of %u", blocks, cluster);
        return 1;
    }
    for (unsigned b = 0; b < blocks; b += at_once)
        if (!run_blocks(reverse ? blocks - b - at_once : b, at_once, reverse)) return 1;
    return 0;
}

}  // namespace emulator
