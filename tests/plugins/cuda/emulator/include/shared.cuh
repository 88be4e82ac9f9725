// The emulator's shared.cuh: the running block's memory.
#pragma once

inline unsigned char* shared_memory() {
    return emulator::current->block->shared;
}

// An offset from the start of shared memory, which the other primitives here do not take: they take pointers.
inline unsigned shared_address(const void* shared) {
    return static_cast<unsigned>(static_cast<const unsigned char*>(shared) - shared_memory());
}
